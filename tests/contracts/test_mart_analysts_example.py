"""The worked example of docs/analysts.md, run as it is printed on a mart and an Iceberg table in an object store."""

from __future__ import annotations

import datetime as dt
import re
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from include.evergreen import specs
from include.evergreen.lake.objects import S3Objects
from include.evergreen.lake.ports import PARTITION
from include.evergreen.mart.store import Mart
from include.evergreen.platform import Platform
from include.evergreen.settings import Settings

DAY = dt.date(2013, 7, 7)
GUIDE = specs.PROJECT / "docs" / "analysts.md"


def example() -> str:
    """The Python block of the guide."""
    (block,) = re.findall(r"^```python\n(.*?)^```", GUIDE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return str(block)


def predictions(day: dt.date, version: int) -> pa.Table:
    count = 90
    probability = np.random.default_rng(day.toordinal() + version).random(count)
    return pa.table(
        {
            "flight_date": pa.array([day] * count, pa.date32()),
            "carrier": [("AA", "B6", "UA")[number % 3] for number in range(count)],
            "flight": np.arange(count),
            "origin": ["JFK"] * count,
            "as_of": pa.array([day] * count, pa.date32()),
            "probability": probability,
            "decision": probability >= 0.4,
            **{f"reason_{rank}": ["dep_hour = 15 (+0.10)"] * count for rank in (1, 2, 3)},
            "model_version": pa.array([version] * count, pa.int32()),
        }
    )


@pytest.fixture
def platform(settings: Settings, tmp_path: Path) -> Platform:
    """Three days scored, the middle one by two versions."""
    (tmp_path / "var").mkdir()
    made = Platform(settings)
    made.mart = Mart(f"sqlite:///{tmp_path}/var/mart.db")
    made.mart.create()
    spec, source = specs.models()["flight_delay"], specs.sources()["nyc_flights"]
    made.mart.ensure_model(spec, source)
    days = [(DAY - dt.timedelta(days=1), 1), (DAY, 1), (DAY + dt.timedelta(days=1), 1), (DAY, 2)]
    for day, version in days:
        rows = predictions(day, version)
        stamp = pa.array([dt.date(2013, 7, 7)] * rows.num_rows, pa.date32()).cast(pa.timestamp("us"))
        stored = rows.append_column("scored_at", stamp).append_column(PARTITION, rows["as_of"])
        snapshot = made.lake.write("predictions.flight_delay", stored, [day])
        made.mart.publish_scoring(spec, day, version, rows, snapshot, "r", dt.datetime(2013, 7, 7, tzinfo=dt.UTC))
    return made


def run(platform: Platform, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    store = platform.settings.object_store
    monkeypatch.chdir(folder)
    monkeypatch.setenv("EVERGREEN_CATALOG_URI", platform.settings.catalog_uri.get_secret_value())
    monkeypatch.setenv("EVERGREEN_S3_ENDPOINT", str(store.endpoint))
    assert store.access_key
    assert store.secret_key
    monkeypatch.setenv("EVERGREEN_S3_ACCESS_KEY", store.access_key.get_secret_value())
    monkeypatch.setenv("EVERGREEN_S3_SECRET_KEY", store.secret_key.get_secret_value())
    names: dict[str, Any] = {}
    exec(compile(example(), str(GUIDE), "exec"), names)
    return names


def test_the_three_ways_of_the_example_agree(
    platform: Platform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = run(platform, tmp_path, monkeypatch)
    expected = predictions(DAY, 2).to_pandas().groupby("carrier")["probability"].agg(["size", "mean"])
    for name in ("by_sql", "by_pandas", "by_duckdb"):
        answer = found[name]
        assert answer["carrier"].tolist() == ["AA", "B6", "UA"], name
        assert answer["flights"].tolist() == expected["size"].tolist() == [30] * 3, name
        np.testing.assert_allclose(answer["risk"], expected["mean"], rtol=1e-12, err_msg=name)


def test_the_lakes_files_hold_the_rows_of_the_mart(
    platform: Platform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = run(platform, tmp_path, monkeypatch)
    tasks = found["lake"].load_table("predictions.flight_delay").scan().plan_files()
    for number, task in enumerate(tasks):
        bucket, _, key = task.file.file_path.removeprefix("s3://").partition("/")
        objects = S3Objects(platform.settings.object_store, bucket, platform.settings.timeouts)
        (tmp_path / f"{number}.parquet").write_bytes(objects.get(key))
    columns = "flight_date, carrier, flight, origin, as_of, probability, decision, reason_1, model_version"
    in_files = duckdb.sql(f"select {columns} from '{tmp_path}/*.parquet' order by as_of, flight").fetchall()
    with platform.mart.reading() as connection:
        in_mart = pd.read_sql(f"select {columns} from flight_delay_current order by as_of, flight", connection)
    as_text = [(str(row[0]), *row[1:4], str(row[4]), row[5], bool(row[6]), *row[7:]) for row in in_files]
    assert len(as_text) == 270
    assert as_text == [
        (str(row[0]), *row[1:4], str(row[4]), row[5], bool(row[6]), *row[7:]) for row in in_mart.itertuples(index=False)
    ]


def test_the_example_is_short() -> None:
    assert len(example().splitlines()) <= 22
