"""What was taken in: one row per table and partition."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping
from typing import Any

import sqlalchemy as sa

from include.evergreen.errors import AccountingError
from include.evergreen.mart.database import Database
from include.evergreen.mart.schema import ingest_batches
from include.evergreen.mart.values import now


class Batches(Database):
    """Batches of ingest."""

    def record_batches(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Upsert batches by (table_name, partition_date); keys are columns of `ingest_batches` but `recorded_at`.

        A batch stopped after an earlier one of its partition was published keeps that one's counts, deliveries and
        snapshot: they are still what the lake holds.

        Raises:
            AccountingError: a published batch whose rows in are not trusted + quarantined + duplicates.
        """
        with self.writing("ingest_batches") as connection:
            for batch in rows:
                values = {"validation_uri": None, "snapshot_id": None, **batch, "recorded_at": now()}
                parts = values["trusted"] + values["quarantined"] + values["duplicates"]
                if values["status"] == "published" and values["rows_in"] != parts:
                    raise AccountingError(
                        f"{values['table_name']} of {values['partition_date']}: expected rows in = trusted + "
                        f"quarantined + duplicates, found {values['rows_in']} = {values['trusted']} + "
                        f"{values['quarantined']} + {values['duplicates']}"
                    )
                stored = self.stored(connection, ingest_batches, values)
                if values["status"] == "stopped" and stored is not None and self._holds_rows(stored):
                    kept = ("rows_in", "trusted", "quarantined", "duplicates", "deliveries", "snapshot_id")
                    values |= {name: stored[name] for name in kept}
                self.record(connection, ingest_batches, values)

    @staticmethod
    def _holds_rows(batch: Mapping[str, Any]) -> bool:
        return batch["status"] == "published" or batch["snapshot_id"] is not None

    def recent_counts(self, table: str, before: dt.date, n: int) -> list[int]:
        """Rows without duplicates of the last `n` published partitions before a date, newest first."""
        c = ingest_batches.c
        published = sa.or_(c.status == "published", c.snapshot_id.is_not(None))
        query = sa.select(c.trusted + c.quarantined).where(c.table_name == table, c.partition_date < before, published)
        with self.reading() as connection:
            return list(connection.scalars(query.order_by(c.partition_date.desc()).limit(n)))

    def batches(self, table: str | None = None) -> list[dict[str, Any]]:
        """Batches, by table and partition."""
        query = sa.select(ingest_batches).order_by(ingest_batches.c.table_name, ingest_batches.c.partition_date)
        return self.listed(query if table is None else query.where(ingest_batches.c.table_name == table))

    def totals(self) -> dict[str, dict[str, int]]:
        """Rows of published partitions by table: {table: {in, trusted, quarantined, duplicates}}."""
        c = ingest_batches.c
        counts = (c.rows_in, c.trusted, c.quarantined, c.duplicates)
        query = (
            sa.select(c.table_name, *(sa.func.sum(count) for count in counts))
            .where(sa.or_(c.status == "published", c.snapshot_id.is_not(None)))
            .group_by(c.table_name)
            .order_by(c.table_name)
        )
        names = ("in", "trusted", "quarantined", "duplicates")
        with self.reading() as connection:
            return {row[0]: dict(zip(names, map(int, row[1:]), strict=True)) for row in connection.execute(query)}
