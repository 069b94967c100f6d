"""Features of 90 as-of dates from the lake, against the same SQL in DuckDB on the same Parquet files."""

from __future__ import annotations

import datetime as dt
from typing import Any

from benchmarks import data
from benchmarks.side import Side

SINCE = dt.date(2013, 4, 1)
DATES = 90


def engine(side: Side) -> dict[str, Any]:
    from include.evergreen.features.build import features

    spec, until = data.spec(), SINCE + dt.timedelta(days=side.scale * DATES - 1)
    with side.platform(data.trusted()) as platform:
        features(platform.lake, spec, SINCE, SINCE)
        with side.timed():
            found = features(platform.lake, spec, SINCE, until)
    return {"rows": found.num_rows, "sum": _sum(found)}


def bare(side: Side) -> dict[str, Any]:
    import duckdb

    spec, until = data.spec(), SINCE + dt.timedelta(days=side.scale * DATES - 1)
    root = data.trusted() / "s3" / "lake" / "iceberg" / "trusted"
    first = SINCE - dt.timedelta(days=spec.lookback_days)
    with side.timed():
        connection = duckdb.connect()
        connection.execute("set threads = 2; set timezone = 'UTC'")
        for name in ("schedules", "actuals", "weather", "planes"):
            folders = sorted((root / name / "data").glob("partition_date=*"))
            days = [(dt.date.fromisoformat(folder.name.split("=")[1]), folder) for folder in folders]
            read = [folder for day, folder in days if name in spec.reference_tables or first <= day <= until]
            files = ", ".join(f"'{file}'" for folder in read for file in sorted(folder.glob("*.parquet")))
            connection.execute(
                f"create view {name} as select * from read_parquet([{files}], hive_partitioning = false)"
            )
        keys = ", ".join(spec.entity.key)
        connection.execute(
            f"create table entities as select {keys}, cast(partition_date as timestamp) as as_of "
            f"from {spec.entity.table} where partition_date between '{SINCE}' and '{until}'"
        )
        found = connection.sql(spec.sql).to_arrow_table()
    return {"rows": found.num_rows, "sum": _sum(found)}


def _sum(found: Any) -> float:
    """One number that both sides must agree on."""
    import pyarrow as pa
    import pyarrow.compute as pc

    return round(
        sum(pc.sum(found[name].cast(pa.float64())).as_py() for name in ("dep_hour", "origin_late_7d", "temp")), 1
    )


SIDES = {"engine": engine, "bare": bare}
