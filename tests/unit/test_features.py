"""Point in time: what a feature may see, and what happens to a query that sees more."""

import datetime as dt

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
