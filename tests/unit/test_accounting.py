"""One row of each key wins; what does not add up is refused."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pyarrow as pa
import pytest

from include.evergreen.errors import AccountingError
from include.evergreen.quality.accounting import Count, count, winners
from include.evergreen.quality.deliveries import ORDER

DAY = dt.date(2024, 1, 1)


def rows(*found: tuple[Any, int, int], day: dt.date = DAY) -> pa.Table:
    """(key, delivery, row)."""
    return pa.table(
        {
            "id": pa.array([f[0] for f in found], pa.int64()),
            ORDER: pa.array([f[1] for f in found], pa.int32()),
            "source_row": pa.array([f[2] for f in found], pa.int64()),
            "partition_date": pa.array([day] * len(found), pa.date32()),
        }
    )


def test_the_later_delivery_wins_then_the_later_row() -> None:
    found = rows((1, 0, 9), (1, 1, 1), (2, 0, 1), (2, 0, 2), (3, 0, 3))
    assert winners(found, ("id",)).to_pylist() == [False, True, False, True, True]


def test_a_null_is_a_value_and_partitions_are_apart() -> None:
    found = pa.concat_tables([rows((None, 0, 1), (None, 0, 2)), rows((None, 0, 1), day=dt.date(2024, 1, 2))])
    assert winners(found, ("id",)).to_pylist() == [False, True, True]


def test_no_rows_have_no_winners() -> None:
    assert winners(rows(), ("id",)).to_pylist() == []


def test_the_count_of_each_partition() -> None:
    every = rows((1, 0, 1), (1, 0, 2), (2, 0, 3), (3, 0, 4))
    assert count(every, every.slice(0, 2), every.slice(2, 1), every.slice(3)) == {DAY: Count(4, 2, 1, 1)}


def test_a_lost_or_a_doubled_row_is_refused() -> None:
    every = rows((1, 0, 1), (2, 0, 2))
    for trusted in (every.slice(0, 1), pa.concat_tables([every, every])):
        with pytest.raises(AccountingError, match=r"expected in = trusted \+ quarantined \+ duplicates, found Count"):
            count(every, trusted, rows(), rows())
