"""Rules quarantine rows, stop partitions or warn; the answer for a partition does not depend on its company."""

from __future__ import annotations

import datetime as dt
import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from include.evergreen.errors import SpecError
from include.evergreen.quality import validation
from include.evergreen.quality.casting import cast
from include.evergreen.quality.deliveries import Delivery, read
from include.evergreen.quality.validation import Validation, bad_rows, document, page, validate
from include.evergreen.specs import TableSpec
from tests import examples

DAY = dt.date(2024, 1, 1)
NEXT = dt.date(2024, 1, 2)
ORDERS = examples.source().tables["orders"]


def table(*expectations: dict[str, Any], **changes: Any) -> TableSpec:
    return TableSpec.model_validate(
        {**ORDERS.model_dump(), "max_bad_share": 1, "expectations": expectations, **changes}
    )


def typed(spec: TableSpec, *days: list[tuple[Any, ...]], first: dt.date = DAY) -> pa.Table:
    """Rows (order_id, region, amount[, day]) of consecutive partitions."""
    deliveries = []
    for at, rows in enumerate(days):
        day = first + dt.timedelta(days=at)
        lines = [",".join(map(str, (row[3] if len(row) > 3 else day, *row[:3]))) for row in rows]
        data = "\n".join(["day,order_id,region,amount", *lines]) + "\n"
        deliveries.append(Delivery(day, f"{day}.csv", "e", dt.datetime(2024, 1, 3, tzinfo=dt.UTC), data.encode()))
    rows, stopped = read(deliveries, spec)
    assert not stopped
    return cast(rows, spec)


def check(spec: TableSpec, *days: list[tuple[Any, ...]], **options: Any) -> Validation:
    return validate(typed(spec, *days), spec, **options)


def rule(kind: str, severity: str = "error", because: str = "", **args: Any) -> dict[str, Any]:
    return {"type": f"expect_{kind}", "args": args, "severity": severity, "because": because}


def test_implied_rules_name_what_they_expected_and_found() -> None:
    found = check(table(), [(1, "n", 1.5), ("x", "n", 1), (2, "n", "nan"), ("NA", "", ""), (3, "n", 1, NEXT)])
    assert found.bad == {
        1: ("order_id: expected integer, found 'x'", "order_id: expected a value, found nothing"),
        2: ("amount: expected number, found 'nan'",),
        3: ("order_id: expected a value, found nothing",),
        4: ("day: expected the date of the partition, found day 2024-01-02, partition_date 2024-01-01",),
    }
    assert found.rows == {DAY: 5}
    assert not found.stopped


@pytest.mark.parametrize(
    ("expectation", "bad"),
    [
        (rule("column_values_to_be_between", column="amount", min_value=2, max_value=3), [0, 3]),
        (rule("column_values_to_be_in_set", column="region", value_set=["n", "s"]), [2]),
        (rule("column_values_to_match_regex", column="region", regex="^[ns]$"), [2]),
        (rule("column_value_lengths_to_equal", column="region", value=1), [2]),
        (rule("column_values_to_be_unique", column="region"), [0, 1]),
        (rule("compound_columns_to_be_unique", column_list=["region", "amount"]), []),
        (rule("select_column_values_to_be_unique_within_record", column_list=["order_id", "amount"]), [0, 1, 2]),
        (rule("multicolumn_sum_to_equal", column_list=["order_id", "amount"], sum_total=2), [1, 2, 3]),
        (rule("column_pair_values_a_to_be_greater_than_b", column_A="order_id", column_B="amount"), [0, 1, 2]),
        (rule("column_values_to_be_between", column="day", min_value=NEXT), [0, 1, 2, 3]),
        (rule("column_values_to_be_between", column="day", min_value="2024-01-02"), [0, 1, 2, 3]),
        (rule("column_values_to_be_between", column="day", max_value=dt.datetime(2024, 1, 1, tzinfo=dt.UTC)), []),
    ],
)
def test_row_rules(expectation: dict[str, Any], bad: list[int]) -> None:
    days = [(1, "n", 1), (2, "n", 2), (3, "west", 3), (4, "", 1)]
    assert sorted(check(table(expectation), days).bad) == bad


@pytest.mark.parametrize("seed", range(3))
def test_many_rows_are_judged_by_their_distinct_values_as_by_themselves(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nulls, values that do not cast, rules on pairs, a condition, a rule that nothing keeps."""
    random = np.random.default_rng(seed)
    spec = table(
        rule("column_values_to_be_between", column="amount", min_value=2, max_value=3),
        rule("column_values_to_be_in_set", column="region", value_set=["n", "s"]),
        rule("column_values_to_match_regex", column="region", regex="^[ns]$", severity="warning"),
        rule("column_values_to_be_null", column="region"),
        rule("column_pair_values_a_to_be_greater_than_b", column_A="order_id", column_B="amount"),
        rule("column_pair_values_to_be_equal", column_A="amount", column_B="order_id", severity="warning"),
        rule(
            "column_values_to_be_between",
            column="amount",
            max_value=2,
            row_condition='region == "n"',
            condition_parser="pandas",
        ),
        rule("column_values_to_be_unique", column="order_id"),
    )
    ids, regions, amounts = ["1", "2", "3", "x", ""], ["n", "s", "west", ""], ["1", "2.5", "4", "nan", ""]
    days = [
        [(*(str(random.choice(some)) for some in (ids, regions, amounts)), DAY + dt.timedelta(days=int(late)))
         for late in random.integers(0, 2, 60)]
        for _ in range(2)
    ]  # fmt: skip
    by_row = check(spec, *days)
    monkeypatch.setattr(validation, "MANY", 0)
    by_value = check(spec, *days)
    assert len(by_row.bad) > 60
    assert (by_value.bad, by_value.stopped, by_value.rows) == (by_row.bad, by_row.stopped, by_row.rows)
    assert (by_value.findings, by_value.warnings) == (by_row.findings, by_row.warnings)


def test_reasons_say_why() -> None:
    spec = table(rule("column_values_to_be_between", column="amount", min_value=0, because="No refunds here"))
    assert check(spec, [(1, "n", -1)]).bad == {0: ("amount: expected 0 <= value (No refunds here), found -1.0",)}


def test_a_warning_is_shown_and_nothing_more() -> None:
    spec = table(
        rule("column_values_to_be_between", "warning", column="amount", min_value=0),
        rule("column_mean_to_be_between", "warning", column="amount", min_value=10),
        rule("column_values_to_be_unique", "warning", column="region"),
    )
    found = check(spec, [(1, "n", -1), (2, "n", 1)])
    assert (found.bad, found.stopped) == ({}, {})
    assert found.warnings == (
        "1 rows: amount: expected 0 <= value, found for example -1.0",
        '2 rows: column values to be unique {"column": "region"}, found for example \'n\'',
        '2024-01-01: column mean to be between {"column": "amount", "min_value": 10}, found 0.0',
    )


def test_mostly_is_asked_of_each_partition() -> None:
    spec = table(rule("column_values_to_be_between", column="amount", min_value=0, mostly=0.75))
    fine = [(at, "n", -1 if at == 0 else 1) for at in range(4)]
    poor = [(at, "n", -1 if at < 2 else 1) for at in range(4)]
    assert check(spec, fine).bad == {}
    assert sorted(check(spec, poor).bad) == [0, 1]
    assert sorted(check(spec, fine, poor).bad) == [4, 5]
    assert sorted(check(spec, fine, fine, fine, poor).bad) == [12, 13]


def test_uniqueness_is_asked_within_a_partition_and_not_of_duplicates() -> None:
    spec = table(rule("column_values_to_be_unique", column="amount"))
    assert check(spec, [(1, "n", 5)], [(2, "n", 5)]).bad == {}
    assert check(spec, [(1, "n", 5), (1, "n", 5)]).bad == {}
    # where the later row of a key falls, the earlier one is asked too
    found = check(spec, [(1, "n", 5), (1, "n", 5), (2, "n", 5), (3, "n", 6)])
    assert sorted(found.bad) == [0, 1, 2] or sorted(found.bad) == [1, 2]
    left = [row for at, row in enumerate([5, 5, 5, 6]) if at not in found.bad]
    assert left in ([5, 6], [6])


def test_rows_that_are_trusted_already_are_asked_beside() -> None:
    spec = table(rule("column_values_to_be_unique", column="amount"))
    trusted = typed(spec, [(1, "n", 5)])
    assert list(bad_rows(typed(spec, [(2, "n", 5), (3, "n", 6)]), spec, trusted)) == [0]


def test_rules_of_a_partition_stop_it_alone() -> None:
    spec = table(rule("column_proportion_of_unique_values_to_be_between", column="region", min_value=0.5))
    found = check(spec, [(1, "n", 1), (2, "s", 1)], [(1, "n", 1), (2, "n", 1), (3, "n", 1)])
    assert list(found.stopped) == [NEXT]
    assert found.stopped[NEXT][0].endswith("found 0.3333333333333333")
    assert [f.count for f in found.findings if "proportion" in f.rule] == [1]
    assert check(spec, [(1, "n", 1), (2, "s", 1)]).findings[-1].count == 0


def test_rules_of_a_partition_see_what_would_be_published() -> None:
    spec = table(
        rule("column_values_to_be_between", column="amount", max_value=100),
        rule("column_mean_to_be_between", column="amount", max_value=10),
        rule("table_row_count_to_equal", value=2),
    )
    assert check(spec, [(1, "n", 1e9), (2, "n", 5), (3, "n", 5), (3, "n", 5)]).stopped == {}


def test_a_rule_about_the_type_of_a_column_stops_the_partition() -> None:
    found = check(table(rule("column_values_to_be_of_type", column="order_id", type_="str")), [(1, "n", 1)])
    assert found.bad == {}
    assert "found 'int64'" in found.stopped[DAY][0]


def test_two_equal_rules_are_both_answered() -> None:
    same = rule("column_values_to_be_between", column="amount", min_value=0)
    assert len(check(table(same, same), [(1, "n", -1)]).bad[0]) == 2


@pytest.mark.parametrize("rows", [[], [(1, "n", 1)]])
@pytest.mark.parametrize(
    ("expectation", "said"),
    [
        (rule("column_values_to_be_nonsense", column="amount"), "found 'expect_column_values_to_be_nonsense'"),
        (rule("table_to_be_nonsense"), "found 'expect_table_to_be_nonsense'"),
        (rule("column_values_to_be_in_set", column="amount"), "value_set\n  field required"),
        (rule("column_values_to_be_in_set", column="amount", value_set=[1], set=2), "extra fields not permitted"),
        (rule("column_mean_to_be_between", column="amount", min_value=1, minimum=2), "extra fields not permitted"),
    ],
)
def test_a_rule_that_cannot_be_is_an_error_of_the_spec_with_and_without_rows(
    expectation: dict[str, Any], said: str, rows: list[tuple[Any, ...]]
) -> None:
    with pytest.raises(SpecError) as caught:
        check(table(expectation), rows)
    assert expectation["type"] in str(caught.value)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "expectation",
    [
        rule("column_values_to_be_between", column="nope", min_value=1),
        rule("column_mean_to_be_between", column="nope", min_value=1),
        rule("column_values_to_be_unique", column="nope"),
        rule("column_values_to_match_regex", column="region", regex="(["),
    ],
)
def test_a_rule_that_cannot_be_evaluated_is_an_error_of_the_spec(expectation: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match=r"nope|unterminated character set"):
        check(table(expectation), [(1, "n", 1)])


def test_every_known_kind_of_distribution_rule_is_found_by_its_name() -> None:
    objective = {"values": ["n", "s"], "weights": [0.5, 0.5]}
    spec = table(rule("column_kl_divergence_to_be_less_than", column="region", partition_object=objective, threshold=1))
    assert check(spec, [(1, "n", 1), (2, "s", 1)]).stopped == {}


def many(count: int, start: int = 0) -> list[tuple[Any, ...]]:
    return [(start + at, "n", 1) for at in range(count)]


@pytest.mark.parametrize(
    ("bounds", "size", "recent", "said"),
    [
        ({"min": 5}, 4, [], "rows: expected at least 5, found 4"),
        ({"min": 0}, 0, [], None),
        ({"max": 5}, 6, [], "rows: expected at most 5, found 6"),
        ({"max_ratio": 2.0}, 21, [10, 10, 10], "rows: expected at most 20 (usual: 10), found 21"),
        ({"max_ratio": 2.0}, 20, [10, 10, 10], None),
        ({"max_ratio": 2.0}, 99, [10, 10], None),
        ({"min_ratio": 0.5}, 4, [12, 10, 9], "rows: expected at least 5 (usual: 10), found 4"),
        ({"min_ratio": 0.5, "recent_partitions": 3}, 4, [8, 8, 8, 99, 99, 99, 99], None),
    ],
)
def test_row_counts(bounds: dict[str, Any], size: int, recent: list[int], said: str | None) -> None:
    found = check(table(row_count=bounds), many(size), recent=recent, days=[DAY])
    assert found.stopped == ({DAY: (said,)} if said else {})


@pytest.mark.parametrize(("recent", "expected"), [([10, 10, 10], [2, 4, 6]), ([], [4, 6])])
def test_a_day_in_a_batch_is_counted_as_a_day_alone(recent: list[int], expected: list[int]) -> None:
    spec = table(row_count={"min_ratio": 0.5, "max_ratio": 2.0, "recent_partitions": 3})
    days = [many(10), many(100), many(10), many(25), many(12), many(3)]
    together = validate(typed(spec, *days), spec, recent=recent).stopped
    history, alone = list(recent), {}
    for at, rows in enumerate(days):
        day = DAY + dt.timedelta(days=at)
        stopped = validate(typed(spec, rows, first=day), spec, recent=history).stopped
        alone |= stopped
        if not stopped:
            history.insert(0, len(rows))
    assert together == alone
    assert [day.day for day in together] == expected


def test_a_file_delivered_twice_is_not_a_day_twice_as_large() -> None:
    spec = table(row_count={"max_ratio": 1.5})
    assert check(spec, many(10) * 2, recent=[10] * 5).stopped == {}


def test_too_many_bad_rows_say_which_rule() -> None:
    spec = table(max_bad_share=0.1)
    found = check(spec, [*many(8), ("x", "n", 1), ("y", "n", "z")])
    said = "bad rows: expected at most 10.0%, found 20.0% (2): 2 rows: order_id: expected integer, found 'x'"
    assert found.stopped == {DAY: (said,)}


@pytest.mark.parametrize(("days", "said"), [(["2024-01-01"], None), ([""], "no value"), (["2023-12-31"], "-24.0 h")])
def test_freshness_is_of_rows_that_are_fit(days: list[str], said: str | None) -> None:
    columns = {**ORDERS.model_dump()["columns"], "seen": {"type": "date"}}
    spec = table(columns=columns, freshness={"column": "seen", "hours": 0})
    lines = [f"2024-01-01,{at},n,1,{day}" for at, day in enumerate(days)] + ["2024-01-01,x,n,1,2024-02-01"]
    data = "\n".join(["day,order_id,region,amount,seen", *lines]).encode()
    rows, _ = read([Delivery(DAY, "f", "e", dt.datetime.now(dt.UTC), data)], spec)
    expected = {DAY: (f"seen: expected to reach 0 h of the day, found {said}",)} if said else {}
    assert validate(cast(rows, spec), spec).stopped == expected


@pytest.mark.parametrize("column", ["region", "nope"])
def test_freshness_needs_a_column_of_time(column: str) -> None:
    with pytest.raises(SpecError, match=r"orders: freshness.column: expected a date or a timestamp"):
        check(table(freshness={"column": column, "hours": 1}), [(1, "n", 1)])


def test_the_page_runs_nothing_and_the_document_is_whole() -> None:
    payload = "<script>alert(1)</script>"
    spec = table(
        rule("column_values_to_be_in_set", column="region", value_set=["n"], because="<b>why</b>"), max_bad_share=0.1
    )
    doc = document(check(spec, [(1, payload, 1), (2, "n", 1)]), f"t {payload}", {"rows_in": 2}, {NEXT: f"u {payload}"})
    assert json.loads(json.dumps(doc)) == doc
    assert doc["success"] is False
    assert list(doc["stopped"]) == ["2024-01-01", "2024-01-02"]
    text = page(doc).decode()
    assert payload not in text
    assert "<b>why" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "Stopped: 2 of 2 partitions" in text


def test_an_unreadable_partition_is_no_success() -> None:
    assert document(check(table(), []), "t", {}, {DAY: "broken"})["success"] is False
    assert document(check(table(), [(1, "n", 1)]), "t", {})["success"] is True
