"""The two ports of the lake: objects (files) and tables. Each has a real and an in-memory twin, one contract suite."""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import pyarrow as pa

PARTITION = "partition_date"
"""The identity-partition column (date32) of every lake table."""


@dataclass(frozen=True)
class ObjectInfo:
    """One stored object. `modified` is UTC."""

    key: str
    size: int
    etag: str
    modified: dt.datetime


def newest(objects: Iterable[ObjectInfo]) -> dt.datetime:
    """When the newest object was stored: the store's own time, whatever the clock here says; now without objects."""
    here = dt.datetime.now(dt.UTC)
    return min(here, max((item.modified for item in objects), default=here))


class ObjectStore(Protocol):
    """One bucket."""

    bucket: str

    def put(self, key: str, data: bytes, content_type: str = "application/octet-stream") -> None:
        """Store `data` whole, or raise Unavailable with nothing visible."""

    def get(self, key: str) -> bytes:
        """Raises NotFound, Unavailable."""

    def list(self, prefix: str = "") -> list[ObjectInfo]:
        """Every object whose key starts with `prefix`, by key."""

    def delete(self, keys: Iterable[str]) -> None:
        """Delete; a key that is not there is no error."""

    def uri(self, key: str) -> str:
        """`s3://bucket/key`."""


@dataclass(frozen=True)
class Upkeep:
    """What one maintenance pass did to a table."""

    table: str
    files_before: int
    files_after: int
    snapshots_expired: int
    bytes_before: int
    bytes_after: int


class Lake(Protocol):
    """Iceberg-like tables, named `namespace.table`, partitioned by `partition_date`."""

    def write(self, table: str, rows: pa.Table | Iterable[pa.Table], dates: Collection[dt.date]) -> int:
        """Replace the partitions `dates` by `rows` in one atomic commit, creating the table at need.

        Tables of one schema, one after the other, are written in bounded memory; where they end in an error, nothing
        is committed.
        Every `partition_date` in `rows` must be in `dates`; a date without rows becomes empty. New columns are added
        to the table; missing ones become null. Returns the snapshot id.
        Raises ValueError (a row outside `dates`), Unavailable.
        """

    def read(
        self,
        table: str,
        since: dt.date | None = None,
        until: dt.date | None = None,
        columns: Sequence[str] | None = None,
        snapshot: int | None = None,
    ) -> pa.Table:
        """Rows with since <= partition_date <= until. Raises NotFound for a table that is not there."""

    def stream(
        self,
        table: str,
        since: dt.date | None = None,
        until: dt.date | None = None,
        columns: Sequence[str] | None = None,
        snapshot: int | None = None,
    ) -> pa.RecordBatchReader:
        """As `read`, in batches of bounded memory."""

    def schema(self, table: str, snapshot: int | None = None) -> pa.Schema:
        """The columns of `read`. Raises NotFound for a table that is not there."""

    def counts(self, table: str) -> dict[dt.date, int]:
        """Rows per partition; empty for a table that is not there."""

    def snapshot(self, table: str) -> int | None:
        """The current snapshot id, None for a table that is not there."""

    def tag(self, table: str, snapshot: int, name: str) -> None:
        """Pin a snapshot by name so that `maintain` keeps it. Idempotent."""

    def tables(self) -> list[str]:
        """Every table, sorted."""

    def maintain(self, table: str, keep_snapshots: int = 10) -> Upkeep:
        """Compact partitions of many small files, expire untagged snapshots beyond the newest `keep_snapshots`,
        delete the files that nothing references. Changes no row."""
