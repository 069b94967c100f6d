"""The sketch keeps a column's distribution at a fixed size, the same every time."""

from __future__ import annotations

import collections
import math

import numpy as np
import pyarrow as pa
import pytest

from include.evergreen.drift.sketch import from_bytes, sketch, source_rows, to_bytes
from include.evergreen.errors import SchemaMismatch

ROWS = 1000


@pytest.mark.parametrize("size", [1, 2, 999, 1000, 1001, 20_000])
def test_shape_is_the_same_at_every_size(size: int) -> None:
    table = pa.table({"n": pa.array(range(size)), "c": pa.array([f"v{i % 7}" for i in range(size)])})
    reduced = sketch(table, {"n": "number", "c": "category"}, ROWS)
    assert reduced.num_rows == ROWS
    assert reduced.schema.types == [pa.float64(), pa.string()]
    assert reduced["n"].null_count == reduced["c"].null_count == 0
    assert source_rows(reduced) == size


def test_quantiles_are_even_and_occur_in_the_data() -> None:
    values = np.random.default_rng(1).exponential(size=30_000)
    kept = np.sort(sketch(pa.table({"n": values}), {"n": "number"}, ROWS)["n"].to_numpy())
    assert np.isin(kept, values).all()
    for share in (0.05, 0.5, 0.95):
        assert np.quantile(kept, share) == pytest.approx(np.quantile(values, share), rel=0.01)


def test_discrete_numbers_keep_their_shares() -> None:
    table = pa.table({"n": pa.array([1] * 700 + [2] * 200 + [7] * 100, pa.int32())})
    kept = collections.Counter(sketch(table, {"n": "number"}, ROWS)["n"].to_pylist())
    assert kept == {1.0: 700, 2.0: 200, 7.0: 100}


def test_nulls_nan_and_infinities_are_proportional_nulls() -> None:
    table = pa.table({"n": pa.array([None] * 100 + [math.nan] * 50 + [math.inf] * 50 + [1.5] * 600, pa.float32())})
    assert sketch(table, {"n": "number"}, ROWS)["n"].null_count == 250


def test_a_lone_value_survives_a_sea_of_nulls() -> None:
    table = pa.table({"n": pa.array([None] * 99_999 + [3.0])})
    assert sketch(table, {"n": "number"}, ROWS)["n"].null_count == ROWS - 1


def test_category_counts_by_largest_remainder() -> None:
    table = pa.table({"c": pa.array(["a"] * 5 + ["b"] * 3 + [None] * 2 + ["c"])})
    kept = collections.Counter(sketch(table, {"c": "category"}, 10)["c"].to_pylist())
    # 10/11 of 5, 3, 2, 1 = 4.55, 2.73, 1.82, 0.91: the three largest remainders round up.
    assert kept == {"a": 4, "b": 3, None: 2, "c": 1}


def test_every_category_with_a_row_of_share_is_present() -> None:
    values = ["common"] * 9_000 + [f"rare{i:02}" for i in range(100) for _ in range(10)]
    kept = sketch(pa.table({"c": values}), {"c": "category"}, ROWS)["c"].to_pylist()
    assert set(kept) == set(values)


@pytest.mark.parametrize("kind", ["number", "category"])
def test_empty_and_all_null_columns_become_nulls(kind: str) -> None:
    for table in (pa.table({"x": pa.array([], pa.string())}), pa.table({"x": pa.nulls(5, pa.float64())})):
        reduced = sketch(table, {"x": kind}, ROWS)  # type: ignore[dict-item]
        assert reduced["x"].null_count == reduced.num_rows == ROWS


def test_row_order_does_not_matter_and_the_bytes_repeat() -> None:
    rng = np.random.default_rng(2)
    table = pa.table({"n": rng.normal(size=3000), "c": rng.choice(["x", "y", "z"], 3000)})
    shuffled = table.take(pa.array(rng.permutation(3000)))
    columns = {"n": "number", "c": "category"}
    first, second = (to_bytes(sketch(t, columns, ROWS)) for t in (table, shuffled))  # type: ignore[arg-type]
    assert first == second
    assert from_bytes(first).equals(sketch(table, columns, ROWS))  # type: ignore[arg-type]
    assert source_rows(from_bytes(first)) == 3000


def test_columns_are_shuffled_apart() -> None:
    values = np.arange(5000.0)
    reduced = sketch(pa.table({"a": values, "b": values}), {"a": "number", "b": "number"}, ROWS)
    a, b = reduced["a"].to_numpy(), reduced["b"].to_numpy()
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.1
    assert abs(np.corrcoef(a, np.arange(ROWS))[0, 1]) < 0.1


def test_dictionary_and_integer_categories_become_strings() -> None:
    table = pa.table({"d": pa.array(["a", "b", "a"]).dictionary_encode(), "i": [1, 2, 2]})
    reduced = sketch(table, {"d": "category", "i": "category"}, 3)
    assert sorted(reduced["d"].to_pylist()) == ["a", "a", "b"]
    assert sorted(reduced["i"].to_pylist()) == ["1", "2", "2"]


def test_errors_name_what_was_expected_and_found() -> None:
    table = pa.table({"c": ["a"]})
    with pytest.raises(SchemaMismatch, match=r"expected the columns \['n'\]"):
        sketch(table, {"n": "number"})
    with pytest.raises(SchemaMismatch, match="c: expected a number, found string"):
        sketch(table, {"c": "number"})
    with pytest.raises(ValueError, match="rows: expected at least 1"):
        sketch(table, {"c": "category"}, 0)
    with pytest.raises(SchemaMismatch, match="expected a sketch as Parquet"):
        from_bytes(b"not parquet")
