"""Ingest and validate one CSV: land, validate, publish, against DuckDB with the same rules by hand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import data
from benchmarks.side import Side

PIECE = 256 * 2**20

# the rules of include/sources/nyc_flights/source.yaml, table schedules, as a person would write them
TYPED = """
    select
        case when regexp_full_match(flight_date, '\\d{4}-\\d{2}-\\d{2}') then try_cast(flight_date as date) end
            flight_date,
        carrier, try_cast(flight as bigint) flight, tailnum, origin, dest,
        try_cast(sched_dep_time as bigint) sched_dep_time, try_cast(sched_arr_time as bigint) sched_arr_time,
        try_cast(distance as bigint) distance,
        try_cast(time_hour as timestamptz) at time zone 'UTC' time_hour
    from read_csv($file, all_varchar = true, nullstr = 'NA')
"""
DERIVED = """
    select *, origin <> dest leaves_the_airport, sched_dep_time % 100 dep_minute, sched_arr_time % 100 arr_minute,
        (sched_arr_time // 100 * 60 + sched_arr_time % 100 - sched_dep_time // 100 * 60 - sched_dep_time % 100 + 1440)
            % 1440 planned_minutes,
        planned_minutes + 60 + 60 * distance / 750 longest_plan, distance / 10.0 fastest_flight
    from typed
"""
SOUND = """
    flight_date = $day and regexp_matches(carrier, '^[A-Z0-9]{2}$') and flight between 1 and 9999
    and (tailnum is null or regexp_matches(tailnum, '^N[0-9A-Z]{1,5}$')) and origin in ('EWR', 'JFK', 'LGA')
    and regexp_matches(dest, '^[A-Z]{3}$') and leaves_the_airport and sched_dep_time between 0 and 2400
    and sched_arr_time between 0 and 2400 and dep_minute <= 59 and arr_minute <= 59 and distance between 10 and 6000
    and planned_minutes between 20 and 600 and longest_plan > fastest_flight and time_hour is not null
"""


def _pieces(file: Path) -> Iterator[bytes]:
    """The file as deliveries of at most 256 MiB; a delivery beyond 1 GiB is refused."""
    with file.open("rb") as lines:
        header = lines.readline()
        while part := lines.read(PIECE):
            yield header + part + lines.readline()


def _deliver(platform: Any, table: Any, file: Path) -> None:
    for number, piece in enumerate(_pieces(file)):
        mark = f"-{number:02}" if number else ""
        platform.landing.put(table.path.format(date=f"{data.DAY}{mark}"), piece)


def engine(side: Side) -> dict[str, Any]:
    from include.evergreen.pipeline import ingest
    from include.evergreen.quality import validation
    from include.evergreen.quality.casting import cast
    from include.evergreen.quality.deliveries import schema_of

    source, table = data.source(), data.delivered()
    file = data.delivery(side.scale)
    # imports and first use, as in a warm worker
    validation.validate(cast(schema_of(table).empty_table(), table), table)
    with side.platform() as platform:
        _deliver(platform, table, file)
        platform.lake.tables()
        with side.timed():
            staged = ingest.land(platform, source, table, [data.DAY], "bench")
            validated = ingest.validate(platform, source, table, staged, "bench")
            found = ingest.publish(platform, source, table, validated, "bench")
    return {"rows": found["in"], "trusted": found["trusted"], "quarantined": found["quarantined"]}


def bare(side: Side) -> dict[str, Any]:
    import duckdb

    file = data.delivery(side.scale)
    trusted, quarantined = side.folder / "trusted.parquet", side.folder / "quarantined.parquet"
    keys = "flight_date, carrier, flight, origin, time_hour"
    with side.timed():
        connection = duckdb.connect()
        connection.execute("set threads = 2; set timezone = 'UTC'")
        connection.execute("set variable file = ?", [str(file)])
        connection.execute("set variable day = ?", [data.DAY])
        typed = TYPED.replace("$file", "getvariable('file')")
        connection.execute(f"create table rows as with typed as ({typed}) {DERIVED}")
        sound = SOUND.replace("$day", "getvariable('day')")
        connection.execute(f"copy (select * from rows where coalesce({sound}, false)) to '{trusted}'")
        connection.execute(f"copy (select * from rows where not coalesce({sound}, false)) to '{quarantined}'")
        counts = connection.execute(
            f"select count(*), count(distinct ({keys})), max(time_hour) - getvariable('day') from '{trusted}'"
        ).fetchall()[0]
        bad = connection.execute(f"select count(*) from '{quarantined}'").fetchall()[0][0]
    if counts[0] != counts[1]:
        raise ValueError(f"expected each key once, found {counts}")
    return {"rows": counts[0] + bad, "trusted": counts[0], "quarantined": bad}


SIDES = {"engine": engine, "bare": bare}
