"""Text becomes typed values; what does not is null with its text beside it."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from include.evergreen.errors import SpecError
from include.evergreen.quality.casting import cast, uncast
from include.evergreen.quality.deliveries import DELIVERED, ORDER
from include.evergreen.specs import TableSpec

TYPES = ("string", "integer", "number", "boolean", "date", "timestamp")
DAY = dt.date(2024, 1, 1)


def instant(text: str) -> dt.datetime:
    """Naive UTC, as the lake holds it."""
    return dt.datetime.fromisoformat(text)


def table(**changes: Any) -> TableSpec:
    return TableSpec.model_validate(
        {
            "name": "t",
            "description": "t",
            "path": "t/{date}.csv",
            "cadence": "occasional",
            "key": ["c_string"],
            "columns": {f"c_{kind}": {"type": kind} for kind in TYPES},
            **changes,
        }
    )


def raw(spec: TableSpec, values: list[str | None], kind: str | None = None) -> pa.Table:
    texts = pa.array(values, pa.string())
    nothing = pa.array([""] * len(values), pa.string())
    size = len(values)
    return pa.table(
        {
            **{name: texts if kind in (None, column.type) else nothing for name, column in spec.columns.items()},
            "source_row": pa.array(range(1, size + 1), pa.int64()),
            "partition_date": pa.array([DAY] * size, pa.date32()),
            "source_file": pa.array(["f"] * size, pa.string()),
            ORDER: pa.array([0] * size, pa.int32()),
            DELIVERED: pa.array([instant("2024-01-02T03:00")] * size, pa.timestamp("us")),
        }
    )


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        ("string", " a ", " a "),
        ("integer", "-7", -7),
        ("integer", "9223372036854775807", 2**63 - 1),
        ("number", "-1.5e3", -1500.0),
        ("number", ".5", 0.5),
        ("number", "3", 3.0),
        ("boolean", "TRUE", True),
        ("boolean", "0", False),
        ("date", "2024-02-29", dt.date(2024, 2, 29)),
        ("timestamp", "2024-01-01T05:00:00Z", instant("2024-01-01T05:00")),
        ("timestamp", "2024-01-01 05:00", instant("2024-01-01T05:00")),
        ("timestamp", "2024-01-01T05:00:00-05:00", instant("2024-01-01T10:00")),
    ],
)
def test_values(kind: str, text: str, value: Any) -> None:
    spec = table()
    rows = cast(raw(spec, [text], kind), spec)
    assert rows[f"c_{kind}"].to_pylist() == [value]
    if kind != "string":
        assert rows[uncast(f"c_{kind}", spec)].to_pylist() == [None]


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("integer", "abc"),
        ("integer", "1.5"),
        ("integer", "9223372036854775808"),
        ("integer", "1_000"),
        ("integer", "1e3"),
        ("number", "nan"),
        ("number", "inf"),
        ("number", "-Infinity"),
        ("number", "1e400"),
        ("number", "1_000"),
        ("number", "1,5"),
        ("boolean", "yes"),
        ("date", "2024-02-30"),
        ("date", "01/02/2024"),
        ("date", "2024-01-01T00:00:00"),
        ("date", "0000-12-31"),
        ("timestamp", "0000-12-31T23:59"),
        ("timestamp", "0001-01-01T00:00:00+05:00"),
        ("timestamp", "9999-12-31T23:59:59-05:00"),
        ("timestamp", "2024-01-01"),
        ("timestamp", "2024-01-01T25:00:00"),
    ],
)
def test_what_is_not_of_the_type_is_kept_as_text(kind: str, text: str) -> None:
    spec = table()
    rows = cast(raw(spec, [text], kind), spec)
    assert rows[f"c_{kind}"].to_pylist() == [None]
    assert rows[uncast(f"c_{kind}", spec)].to_pylist() == [text]


def test_null_and_empty_are_null_and_no_error() -> None:
    spec = table(null="it's null")
    rows = cast(raw(spec, ["it's null", "", None]), spec)
    for name, column in spec.columns.items():
        assert rows[name].to_pylist() == [None] * 3
        if column.type != "string":
            assert rows[uncast(name, spec)].null_count == 3


TYPED = cast(raw(table(), []), table()).schema


TEXTS = st.one_of(st.none(), st.text(), st.text("0123456789-+.eE:TZ _naif/"), st.datetimes().map(str))


@settings(max_examples=60, deadline=None)
@given(st.lists(TEXTS, max_size=20))
def test_no_text_raises_and_none_is_lost(values: list[str | None]) -> None:
    spec = table()
    values = [v if v is None else v.encode("utf-8", "ignore").decode() for v in values]
    rows = cast(raw(spec, values), spec)
    assert rows.num_rows == len(values)
    assert rows.schema == TYPED
    for name, column in spec.columns.items():
        left = rows[uncast(name, spec)].to_pylist() if column.type != "string" else [None] * len(values)
        for text, value, other in zip(values, rows[name].to_pylist(), left, strict=True):
            absent = text in (None, "", "NA")
            assert absent == (value is None and other is None)
            assert other in (None, text)
            assert value is None or other is None


def test_availability() -> None:
    spec = table(available={"rule": "scheduled", "hours_after": -4.5})
    assert cast(raw(spec, ["a"]), spec)["available_at"].to_pylist() == [instant("2023-12-31T19:30")]
    spec = table(available={"rule": "arrival"})
    assert cast(raw(spec, ["a"]), spec)["available_at"].to_pylist() == [instant("2024-01-02T03:00")]


def test_derived_values_that_cannot_be_computed_are_null() -> None:
    spec = table(
        derive={
            "ratio": "1.0 / c_integer",
            "nothing": "0.0 / c_integer",
            "root": "sqrt(c_integer)",
            "beyond": "9223372036854775807 + c_integer",
        }
    )
    rows = cast(raw(spec, ["0", "4", "-1"], "integer"), spec)
    assert rows["ratio"].to_pylist() == [None, 0.25, -1.0]
    assert rows["nothing"].to_pylist() == [None, 0.0, 0.0]
    assert rows["root"].to_pylist() == [0.0, 2.0, None]
    assert rows["beyond"].to_pylist() == [2**63 - 1, None, 2**63 - 2]


@pytest.mark.parametrize("expression", ["no_such_column + 1", "no_such_function(c_integer)", "c_integer +"])
def test_a_derived_column_that_cannot_be_understood_is_an_error_of_the_spec(expression: str) -> None:
    spec = table(derive={"x": expression})
    with pytest.raises(SpecError, match=r"t: derive(\.x)?: expected (one )?DuckDB expression"):
        cast(raw(spec, ["1"], "integer"), spec)
