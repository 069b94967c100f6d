"""Point in time: what a feature may see, and what happens to a query that sees more."""

import datetime as dt
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from include.evergreen.errors import DataError, LeakDetected
from include.evergreen.features.build import check_leaks, features, labelled, labels
from include.evergreen.lake.memory import MemoryLake
from tests import examples

DAY = dt.date(2024, 1, 15)


@pytest.fixture
def lake() -> MemoryLake:
    lake = MemoryLake()
    examples.fill(lake, 30)
    return lake


def test_one_row_per_entity_in_the_declared_columns(lake: MemoryLake) -> None:
    table = features(lake, examples.model(), DAY, DAY + dt.timedelta(days=1))
    assert table.column_names == ["order_id", "as_of", "region", "amount", "late_before"]
    assert table.num_rows == 120
    assert pc.count_distinct(table["late_before"]).as_py() == 2  # one rate per as-of date


def test_a_row_counts_from_the_moment_it_was_available(lake: MemoryLake) -> None:
    spec = examples.model()
    outcomes = lake.read("trusted.outcomes")
    late = outcomes.set_column(
        outcomes.column_names.index("available_at"),
        "available_at",
        pc.add(
            outcomes["available_at"],
            pc.cast(pc.multiply(pc.cast(pc.greater(outcomes["took"], 3), "int64"), 3 * 86_400_000_000), "duration[us]"),
        ),
    )
    before = features(lake, spec, DAY, DAY)["late_before"][0].as_py()
    lake.write("trusted.outcomes", late, examples.dates(30))
    after = features(lake, spec, DAY, DAY)["late_before"][0].as_py()
    assert after < before  # the late orders of the last three days are not known yet


def test_labels_are_those_known_at_the_cut(lake: MemoryLake) -> None:
    known = labels(lake, examples.model(), DAY - dt.timedelta(days=3), DAY, cut=DAY)
    assert max(known["as_of"].to_pylist()) == DAY - dt.timedelta(days=1)
    assert known.num_rows == 180
    joined = labelled(features(lake, examples.model(), DAY - dt.timedelta(days=3), DAY), known, examples.model())
    assert joined.num_rows == 180


NEEDED = {"order_id", "region", "amount", "partition_date", "available_at"}


@pytest.mark.parametrize(
    ("sql", "found"),
    [
        (examples.SQL, NEEDED),
        (f"select * from ({examples.SQL}) join (select order_id from orders o) using (order_id)", NEEDED),
        (f"with o as (select * from orders) {examples.SQL.replace('join orders o', 'join o')}", NEEDED),
        (examples.SQL.replace("o.region,", "struct_extract(o, 'region') as region,"), NEEDED),
        (
            f"with h as (select order_id, length(o::varchar) as long from orders o) select s.* from ({examples.SQL}) s "
            "join h using (order_id) where long > 0",
            {*NEEDED, "day", "source_file", "source_row"},
        ),
    ],
    ids=["named", "star outside", "star in a table of its own", "field of a row", "whole row"],
)
def test_only_the_columns_that_a_query_reads_are_read(
    lake: MemoryLake, sql: str, found: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    until = DAY + dt.timedelta(days=2)
    expected = features(lake, examples.model(), DAY, until)
    asked: dict[str, set[str]] = {}
    read = lake.read

    def noting(table: str, *args: Any, columns: list[str], **more: Any) -> pa.Table:
        asked[table] = set(columns)
        return read(table, *args, columns=columns, **more)

    monkeypatch.setattr(lake, "read", noting)
    assert features(lake, examples.model(sql=sql), DAY, until).equals(expected)
    assert asked["trusted.orders"] == found


def test_a_condition_on_entities_may_use_any_column(lake: MemoryLake) -> None:
    spec = examples.model()
    every = features(lake, spec, DAY, DAY)
    changed = spec.model_copy(update={"entity": spec.entity.model_copy(update={"where": "source_row % 2 = 0"})})
    assert features(lake, changed, DAY, DAY).num_rows < every.num_rows


def test_an_honest_query_passes_the_leak_check(lake: MemoryLake) -> None:
    assert check_leaks(lake, examples.model(), [DAY, DAY + dt.timedelta(days=3)]) == 120


@pytest.mark.parametrize(
    "leak",
    [
        examples.SQL.replace("x.available_at <= d.as_of and ", ""),
        "select e.order_id, e.as_of, o.region, o.amount, (x.took > 3)::int as late_before "
        "from entities e join orders o using (order_id) left join outcomes x using (order_id)",
    ],
)
def test_a_query_that_sees_the_future_is_caught_by_name(lake: MemoryLake, leak: str) -> None:
    with pytest.raises(LeakDetected, match="late_before"):
        check_leaks(lake, examples.model(sql=leak), [DAY])


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        (examples.SQL.replace("o.amount", "o.amount as price"), "amount"),
        (examples.SQL.replace("left join (", "join orders o2 on o2.region = o.region left join ("), "one row for each"),
        (examples.SQL + " where o.region = 'south'", "one row for each"),
    ],
)
def test_a_query_with_the_wrong_shape_is_refused(lake: MemoryLake, sql: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        features(lake, examples.model(sql=sql), DAY, DAY)
