"""Inputs of the benchmarks: the flights of 2013, and several years like it. Made once, kept under var/bench/data."""

from __future__ import annotations

import datetime as dt
import shutil
import tempfile
import zipfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.side import ROOT

if TYPE_CHECKING:
    from include.evergreen.replay.world import History
    from include.evergreen.specs import ModelSpec, SourceSpec, TableSpec
    from include.evergreen.training.bundle import ModelBundle

DATA = ROOT / "data"
MODEL = "flight_delay"
FLIGHTS = 336_776
FIRST, LAST = dt.date(2013, 1, 9), dt.date(2013, 12, 30)
YEAR = 371
"""Days between a flight and its copy: whole weeks, and more than a year, so that no key comes twice."""
DAY = dt.date(2013, 12, 31)
"""The one partition of the large delivery."""
HISTORY, TRAINED = dt.date(2013, 6, 23), dt.date(2013, 6, 1)


@cache
def history() -> History:
    """What the source delivered in 2013, as ingest leaves it."""
    from include.evergreen.replay.world import history as taken_in

    DATA.mkdir(parents=True, exist_ok=True)
    return taken_in(MODEL, DATA)


def spec() -> ModelSpec:
    from include.evergreen.specs import models

    return models()[MODEL]


def source() -> SourceSpec:
    from include.evergreen.specs import sources

    return sources()[spec().source]


def _whole(path: Path, write: Any) -> Path:
    """`path`, written by `write(path)` in one piece unless it is there."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}")
        write(part)
        part.rename(path)
    return path


def rows(scale: int) -> Path:
    """Labelled features with the prediction of `bundle()`: that many years of flights as Parquet, sorted by as_of."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    def one(path: Path) -> None:
        from include.evergreen.features.build import features, labelled, labels

        with tempfile.TemporaryDirectory() as folder:
            lake = history().platform(Path(folder) / "lake").lake
            after = LAST + dt.timedelta(days=1)
            table = labelled(features(lake, spec(), FIRST, LAST), labels(lake, spec(), FIRST, LAST, after), spec())
        pq.write_table(table, path, compression="zstd")

    def many(path: Path) -> None:
        year = pq.read_table(labelled_year())
        scored = year.append_column("probability", pa.array(bundle().predict(year).astype("float64")))
        with pq.ParquetWriter(path, scored.schema, compression="zstd") as writer:
            for number in range(scale):
                shifted = scored
                for name in ("as_of", "flight_date"):
                    moved = pc.add(scored[name].cast(pa.int32()), pa.scalar(number * YEAR, pa.int32()))
                    shifted = shifted.set_column(scored.column_names.index(name), name, moved.cast(pa.date32()))
                writer.write_table(shifted, row_group_size=131_072)

    def labelled_year() -> Path:
        return _whole(DATA / "labelled.parquet", one)

    if scale == 0:
        return labelled_year()
    return _whole(DATA / f"rows-{scale}.parquet", many)


def after(scale: int) -> dt.date:
    """The as-of date that follows all rows of a scale."""
    return LAST + dt.timedelta(days=1 + (scale - 1) * YEAR)


def bundle() -> ModelBundle:
    """A model of the spec, trained once on the flights of 2013."""
    import pyarrow.parquet as pq

    from include.evergreen.training.bundle import FILES, ModelBundle
    from include.evergreen.training.fit import fit

    folder = DATA / "bundle"
    if not folder.exists():
        made = fit(spec(), pq.read_table(rows(0)), LAST + dt.timedelta(days=1))
        part = DATA / ".bundle"
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        for name, data in made.files().items():
            (part / name).write_bytes(data)
        part.rename(folder)
    return ModelBundle.from_files({name: (folder / name).read_bytes() for name in FILES})


def delivery(scale: int) -> Path:
    """One CSV with the schedules of that many years, delivered as one partition; its hours are of earlier years."""
    import duckdb

    from include.sources.nyc_flights.publish import _data

    def write(path: Path) -> None:
        columns = ", ".join(
            f"'{DAY}' as flight_date"
            if name == "flight_date"
            else "(2013 - y.range)::varchar || time_hour[5:] as time_hour"
            if name == "time_hour"
            else name
            for name in source().tables["schedules"].columns
        )
        with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(_data() / "flights.csv.zip") as archive:
            flights = archive.extract("flights.csv", folder)
            duckdb.sql(
                f"copy (select {columns} from range({scale}) y, read_csv('{flights}', all_varchar = true)) "
                f"to '{path}' (format csv, header)"
            )

    return _whole(DATA / f"schedules-{scale}.csv", write)


def delivered() -> TableSpec:
    """The spec of `delivery`: the rules of `schedules`, with the hour in the key and without bounds on the rows."""
    from include.evergreen.specs import TableSpec

    table = source().tables["schedules"]
    changes = {"key": [*table.key, "time_hour"], "row_count": {"min": 1}}
    return TableSpec.model_validate({**table.model_dump(), **changes})


def lake_of(scale: int) -> Path:
    """A folder whose platform holds `bench.rows`: `rows(scale)`, one partition a year."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from benchmarks.side import Side

    folder = DATA / f"lake-{scale}"
    if not folder.exists():
        part = DATA / f".lake-{scale}"
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        file = pq.ParquetFile(rows(scale))
        groups = file.num_row_groups // scale
        with Side(scale, part).platform() as platform:
            for number in range(scale):
                table = file.read_row_groups(range(number * groups, (number + 1) * groups))
                day = DAY + dt.timedelta(days=number * YEAR)
                partition = pa.repeat(pa.scalar(day, pa.date32()), table.num_rows)
                platform.lake.write("bench.rows", table.append_column("partition_date", partition), [day])
        part.rename(folder)
    return folder


def landed() -> Path:
    """A folder whose platform has the files of 2013 in its landing bucket, and nothing else."""
    from benchmarks.side import Side
    from include.sources.nyc_flights.publish import publish

    folder = DATA / "landed"
    if not folder.exists():
        part = _part(folder)
        with Side(1, part).platform() as platform:
            publish(platform.landing, dt.date(2013, 1, 1), DAY)
            platform.registry.versions(MODEL)  # makes MLflow's tables
        part.rename(folder)
    return folder


def champion() -> Path:
    """`landed`, with the history until `HISTORY` taken in and a champion trained as of `TRAINED`."""
    from benchmarks import steps
    from benchmarks.side import Side

    folder = DATA / "champion"
    if not folder.exists():
        part = _part(folder)
        shutil.copytree(landed(), part, dirs_exist_ok=True)
        with Side(1, part).platform() as platform:
            steps.ingest(platform, HISTORY, dt.date(2013, 1, 1))
            steps.train(platform, TRAINED)
        part.rename(folder)
    return folder


def _part(folder: Path) -> Path:
    part = folder.with_name(f".{folder.name}")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    return part


def trusted() -> Path:
    """A folder whose platform holds the trusted tables of 2013, a partition a day, as daily ingest leaves them."""
    import pyarrow.compute as pc

    from benchmarks.side import Side

    folder = DATA / "trusted"
    if not folder.exists():
        part = _part(folder)
        with Side(1, part).platform() as platform:
            for name, table in history().tables.items():
                platform.lake.write(name, table, pc.unique(table["partition_date"]).to_pylist())
        part.rename(folder)
    return folder
