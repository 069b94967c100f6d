"""A whole history in memory: the steps that the DAGs call, on a lake, a registry and a mart of their own.

What a source would have delivered is taken in by the pipeline's own ingest. A point-in-time build reads only what was
available, so that history in bulk and history day by day are the same history.
"""

from __future__ import annotations

import datetime as dt
import shutil
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from include.evergreen.errors import NotFound
from include.evergreen.lake.objects import MemoryObjects
from include.evergreen.platform import Platform
from include.evergreen.settings import ObjectStoreSettings, Settings
from include.evergreen.specs import ModelSpec, SourceSpec, models, sources

if TYPE_CHECKING:
    import pyarrow as pa

    from include.evergreen.lake.memory import MemoryLake
    from include.evergreen.promotion.memory import MemoryRegistry


class MemoryPlatform(Platform):
    """Objects, lake and registry in memory; the mart in its settings' SQLite file."""

    @cached_property
    def landing(self) -> MemoryObjects:
        return MemoryObjects(self.settings.object_store.landing_bucket)

    @cached_property
    def objects(self) -> MemoryObjects:
        return MemoryObjects(self.settings.object_store.lake_bucket)

    @cached_property
    def lake(self) -> MemoryLake:
        from include.evergreen.lake.memory import MemoryLake

        return MemoryLake()

    @cached_property
    def registry(self) -> MemoryRegistry:
        from include.evergreen.promotion.memory import MemoryRegistry

        return MemoryRegistry()


def memory_platform(folder: Path) -> MemoryPlatform:
    """A fresh platform; the mart's schema is created in `folder`."""
    platform = MemoryPlatform(
        Settings(
            object_store=ObjectStoreSettings(),
            catalog_uri=f"sqlite:///{folder}/catalog.db",
            mart_uri=f"sqlite:///{folder}/mart.db",
            registry_uri=f"sqlite:///{folder}/registry.db",
        )
    )
    platform.mart.create()
    return platform


@dataclass(frozen=True)
class History:
    """A model with everything its source delivered.

    Attributes:
        tables: lake name -> rows with `partition_date`.
        first, last: as-of dates whose runs were taken in.
        mart: the mart file as ingest left it.
    """

    model: ModelSpec
    source: SourceSpec
    tables: dict[str, pa.Table]
    first: dt.date
    last: dt.date
    mart: Path

    def platform(self, folder: Path) -> MemoryPlatform:
        """A platform that holds this history and nothing else, in an empty folder of its own."""
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(self.mart, folder / "mart.db")
        platform = memory_platform(folder)
        for name, rows in self.tables.items():
            platform.lake.write(name, rows, _partitions(rows))
        return platform


def _partitions(rows: pa.Table) -> list[dt.date]:
    import pyarrow.compute as pc

    return sorted(pc.unique(rows["partition_date"]).to_pylist())


def take_in(platform: Platform, source: SourceSpec, as_of: dt.date, since: dt.date | None, run_id: str) -> None:
    """Run `as_of` of every table of a source, from `since` on in bulk. Raises what ingest raises."""
    from include.evergreen.pipeline import ingest

    for table in source.tables.values():
        dates = ingest.due(platform, table, as_of, since, source.start_date)
        if dates:
            staged = ingest.land(platform, source, table, dates, run_id)
            ingest.publish(platform, source, table, ingest.validate(platform, source, table, staged, run_id), run_id)


def history(name: str, folder: Path, until: dt.date | None = None, calibrated: bool = True) -> History:
    """Everything that the source of a model delivered, through `until` (its end date by default).

    The source needs a module `include/sources/<source>/publish.py` with `publish(landing, since, until)`. The lake is
    kept in `folder` as Parquet, and read from there the next time.

    Raises NotFound: no such model, or a source that cannot be replayed.
    """
    import pyarrow.parquet as pq

    known = models(calibrated=calibrated)
    if name not in known:
        raise NotFound(f"model: expected one of {sorted(known)}, found {name!r}")
    model = known[name]
    source = sources()[model.source]
    last = until or source.end_date
    if last is None:
        raise NotFound(f"{source.name}: expected an end date to replay until, found none")
    kept = folder / f"history-{source.name}-{source.hash[:12]}-{last}"
    if not (kept / "complete").exists():
        shutil.rmtree(kept, ignore_errors=True)
        kept.mkdir(parents=True)
        platform = memory_platform(kept)
        try:
            publisher = import_module(f"include.sources.{source.name}.publish")
        except ModuleNotFoundError as error:
            raise NotFound(f"{source.name}: expected include/sources/{source.name}/publish.py to replay it") from error
        publisher.publish(platform.landing, source.start_date, last)
        take_in(platform, source, last, source.start_date, "history")
        platform.mart.engine.dispose()
        for table in platform.lake.tables():
            pq.write_table(platform.lake.read(table), kept / f"{table}.parquet")
        (kept / "complete").touch()
    tables = {path.name.removesuffix(".parquet"): pq.read_table(path) for path in sorted(kept.glob("*.parquet"))}
    return History(model, source, tables, source.start_date, last, kept / "mart.db")
