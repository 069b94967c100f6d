"""The in-memory twin of `IcebergLake`, with snapshots and tags."""

from __future__ import annotations

import datetime as dt
import itertools
import threading
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from include.evergreen.errors import NotFound
from include.evergreen.lake.ports import Upkeep
from include.evergreen.lake.rows import cast, chosen, prepare, stored_schema

BATCH_ROWS = 65_536


@dataclass(frozen=True)
class _Snapshot:
    id: int
    schema: pa.Schema
    parts: dict[dt.date, pa.Table]


@dataclass
class _Table:
    snapshots: list[_Snapshot] = field(default_factory=list)
    tags: dict[str, int] = field(default_factory=dict)

    def files(self) -> dict[int, int]:
        """Identity -> bytes of every stored part."""
        return {id(part): part.nbytes for snapshot in self.snapshots for part in snapshot.parts.values()}


class MemoryLake:
    """Tables as immutable snapshots of {partition date: rows}."""

    def __init__(self) -> None:
        self._tables: dict[str, _Table] = {}
        self._ids = itertools.count(1)
        self._lock = threading.RLock()

    def write(self, table: str, rows: pa.Table | Iterable[pa.Table], dates: Collection[dt.date]) -> int:
        """Replace the partitions `dates`. Raises ValueError, SchemaMismatch."""
        rows = rows if isinstance(rows, pa.Table) else pa.concat_tables(rows)
        parts = prepare(table, rows, dates)
        given = stored_schema(rows.schema)
        with self._lock:
            known = self._tables[table].snapshots[-1] if table in self._tables else None
            schema = known.schema if known else pa.schema([])
            for column in given:
                if column.name not in schema.names:
                    schema = schema.append(column)
            kept = {day: part for day, part in known.parts.items() if day not in set(dates)} if known else {}
            kept |= {day: cast(table, part, schema) for day, part in parts.items()}
            snapshot = _Snapshot(next(self._ids), schema, dict(sorted(kept.items())))
            self._tables.setdefault(table, _Table()).snapshots.append(snapshot)
            return snapshot.id

    def _at(self, table: str, snapshot: int | None) -> _Snapshot:
        with self._lock:
            if table not in self._tables:
                raise NotFound(f"lake table {table}: expected a table, found none")
            known = self._tables[table].snapshots
            if snapshot is None:
                return known[-1]
            for candidate in known:
                if candidate.id == snapshot:
                    return candidate
            raise NotFound(f"lake table {table}: expected snapshot {snapshot}, found {len(known)} other(s)")

    def read(
        self,
        table: str,
        since: dt.date | None = None,
        until: dt.date | None = None,
        columns: Sequence[str] | None = None,
        snapshot: int | None = None,
    ) -> pa.Table:
        """Rows by partition date, in written order. Raises NotFound."""
        at = self._at(table, snapshot)
        schema = chosen(table, at.schema, columns)
        picked = [
            cast(table, part, schema)
            for day, part in at.parts.items()
            if (since is None or day >= since) and (until is None or day <= until)
        ]
        return pa.concat_tables([schema.empty_table(), *picked])

    def stream(
        self,
        table: str,
        since: dt.date | None = None,
        until: dt.date | None = None,
        columns: Sequence[str] | None = None,
        snapshot: int | None = None,
    ) -> pa.RecordBatchReader:
        """As `read`, in batches."""
        return self.read(table, since, until, columns, snapshot).to_reader(max_chunksize=BATCH_ROWS)

    def schema(self, table: str, snapshot: int | None = None) -> pa.Schema:
        """Raises NotFound."""
        return self._at(table, snapshot).schema

    def counts(self, table: str) -> dict[dt.date, int]:
        """Rows per partition that has any; empty for a table that is not there."""
        with self._lock:
            if table not in self._tables:
                return {}
            return {day: part.num_rows for day, part in self._tables[table].snapshots[-1].parts.items()}

    def snapshot(self, table: str) -> int | None:
        with self._lock:
            return self._tables[table].snapshots[-1].id if table in self._tables else None

    def tag(self, table: str, snapshot: int, name: str) -> None:
        """Pin a snapshot; a name that is in use moves. Raises NotFound."""
        self._at(table, snapshot)
        with self._lock:
            self._tables[table].tags[name] = snapshot

    def tables(self) -> list[str]:
        with self._lock:
            return sorted(self._tables)

    def maintain(self, table: str, keep_snapshots: int = 10) -> Upkeep:
        """Drop untagged snapshots beyond the newest `keep_snapshots`. Raises NotFound."""
        if keep_snapshots < 1:
            raise ValueError(f"keep_snapshots: expected at least 1, found {keep_snapshots}")
        self._at(table, None)
        with self._lock:
            known = self._tables[table]
            before = known.files()
            pinned = {s.id for s in known.snapshots[-keep_snapshots:]} | set(known.tags.values())
            expired = len(known.snapshots) - len(pinned)
            known.snapshots = [s for s in known.snapshots if s.id in pinned]
            after = known.files()
        return Upkeep(table, len(before), len(after), expired, sum(before.values()), sum(after.values()))
