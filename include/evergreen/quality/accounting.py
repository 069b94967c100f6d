"""Every row in is exactly one of trusted, quarantined, duplicate.

A row that breaks a rule is quarantined. Among the valid rows of one key the latest delivery wins, then the later row;
the others are duplicates.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from include.evergreen.errors import AccountingError
from include.evergreen.lake.ports import PARTITION
from include.evergreen.quality.deliveries import ORDER
from include.evergreen.query import connect


@dataclass(frozen=True)
class Count:
    """Rows of one partition."""

    rows_in: int
    trusted: int
    quarantined: int
    duplicates: int

    def __post_init__(self) -> None:
        if self.rows_in != self.trusted + self.quarantined + self.duplicates:
            raise AccountingError(f"expected in = trusted + quarantined + duplicates, found {self}")


def winners(rows: pa.Table, key: tuple[str, ...]) -> pa.Array:
    """A mask, shape (rows,), that is true for the one row of each partition and key that wins. A null is a value."""
    names = ", ".join(f'"{name}"' for name in (PARTITION, *key))
    numbered = rows.select(list(dict.fromkeys([PARTITION, *key, ORDER, "source_row"])))
    numbered = numbered.append_column("__at", pa.array(range(rows.num_rows), pa.int64()))
    with connect() as connection:
        connection.register("rows", numbered)
        won = connection.sql(
            f"select __at from rows qualify row_number() over "
            f"(partition by {names} order by {ORDER} desc, source_row desc, __at desc) = 1"
        ).to_arrow_table()
    return pc.is_in(numbered["__at"].combine_chunks(), won["__at"].combine_chunks())


def per_partition(rows: pa.Table) -> dict[dt.date, int]:
    """Rows of each partition."""
    counted = pc.value_counts(rows[PARTITION].combine_chunks())
    return {item["values"]: item["counts"] for item in counted.to_pylist()}


def count(rows_in: pa.Table, trusted: pa.Table, quarantined: pa.Table, duplicates: pa.Table) -> dict[dt.date, Count]:
    """The count of each partition. Raises AccountingError when a row is lost or doubled."""
    parts = [per_partition(part) for part in (rows_in, trusted, quarantined, duplicates)]
    days = sorted(set().union(*parts))
    return {day: Count(*(part.get(day, 0) for part in parts)) for day in days}
