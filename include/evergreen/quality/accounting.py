"""Every row in is exactly one of trusted, quarantined, duplicate.

A row that breaks a rule is quarantined. Among the valid rows of one key the latest delivery wins, then the later row;
the others are duplicates.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from include.evergreen.errors import AccountingError
from include.evergreen.lake.ports import PARTITION
from include.evergreen.lake.rows import per_partition
from include.evergreen.quality.deliveries import ORDER
from include.evergreen.quality.typed import Typed
from include.evergreen.query import connect, quoted


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
    names = quoted(PARTITION, *key)
    numbered = rows.select(list(dict.fromkeys([PARTITION, *key, ORDER, "source_row"])))
    numbered = numbered.append_column("__at", pa.array(np.arange(rows.num_rows)))
    wins = np.ones(rows.num_rows, dtype=bool)
    with connect() as connection:
        connection.register("rows", numbered)
        # most batches repeat no key: rows are ranked only where one does
        repeated = connection.sql(f"select {names} from rows group by all having count(*) > 1").to_arrow_table()
        if repeated.num_rows:
            connection.register("repeated", repeated)
            same = " and ".join(f'r."{name}" is not distinct from d."{name}"' for name in (PARTITION, *key))
            rank = f"row_number() over (partition by {names} order by {ORDER} desc, source_row desc, __at desc)"
            lost = connection.sql(
                f"select __at from rows r where exists (select 1 from repeated d where {same}) qualify {rank} > 1"
            ).to_arrow_table()
            wins[lost["__at"].to_numpy()] = False
    return pa.array(wins)


def losers(rows: Typed, key: tuple[str, ...], bad: Collection[int] = ()) -> np.ndarray[Any, Any]:
    """Ascending positions of the rows, those of `bad` aside, that do not win their partition and key."""
    at = rows.repeated(list(dict.fromkeys([PARTITION, *key])))
    at = at[~np.isin(at, np.fromiter(bad, dtype=np.int64, count=len(bad)))] if at.size else at
    if not at.size:
        return at
    won = winners(rows.take(at, list(dict.fromkeys([PARTITION, *key, ORDER, "source_row"]))), key)
    lost: np.ndarray[Any, Any] = at[~won.to_numpy(zero_copy_only=False)]
    return lost


def count(rows_in: pa.Table, trusted: pa.Table, quarantined: pa.Table, duplicates: pa.Table) -> dict[dt.date, Count]:
    """The count of each partition. Raises AccountingError when a row is lost or doubled."""
    parts = [per_partition(part) for part in (rows_in, trusted, quarantined, duplicates)]
    days = sorted(set().union(*parts))
    return {day: Count(*(part.get(day, 0) for part in parts)) for day in days}
