"""Land, validate, publish: a row is trusted, quarantined or a duplicate, or its partition stops with a reason."""

from __future__ import annotations

import datetime as dt
import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from include.evergreen.errors import (
    AccountingError,
    DeliveryMissing,
    NotFound,
    PartitionStopped,
    Refused,
    SpecError,
    Unavailable,
)
from include.evergreen.pipeline import ingest as steps
from include.evergreen.pipeline import staging
from include.evergreen.quality import deliveries, validation
from include.evergreen.specs import SourceSpec, TableSpec, sources
from include.sources.nyc_flights.publish import publish
from tests import examples
from tests.support import MemoryPlatform, memory_platform

DAY = examples.FIRST
DAYS = examples.dates(6)
HEADER = "day,order_id,region,amount\n"


def instant(text: str) -> dt.datetime:
    """Naive UTC, as the lake holds it."""
    return dt.datetime.fromisoformat(text)


@pytest.fixture
def platform(tmp_path: Path) -> MemoryPlatform:
    return memory_platform(tmp_path)


def shop(**changes: Any) -> SourceSpec:
    """The shop with changes to its orders; a usual day has 20 rows."""
    spec = examples.source().model_dump()
    bounds = {"min_ratio": 0.5, "max_ratio": 2.0}
    regions = {"type": "expect_column_values_to_be_in_set", "args": {"column": "region", "value_set": ["n", "s"]}}
    spec["tables"]["orders"] |= {"row_count": bounds, "expectations": [regions], "max_bad_share": 0.2, **changes}
    return SourceSpec.model_validate(spec)


SHOP = shop()


def csv(day: dt.date, rows: Sequence[Sequence[Any]] | None = None, start: int = 0, size: int = 20) -> bytes:
    """Rows (order_id, region, amount); by default `size` good ones."""
    rows = [(start + at, "n", at) for at in range(size)] if rows is None else rows
    return (HEADER + "".join(f"{day},{','.join(map(str, row))}\n" for row in rows)).encode()


def deliver(platform: MemoryPlatform, day: dt.date, data: bytes, mark: str = "") -> str:
    key = f"shop/orders/{day}{mark}.csv"
    platform.landing.put(key, data)
    return key


def run(
    platform: MemoryPlatform,
    days: Sequence[dt.date],
    spec: SourceSpec = SHOP,
    table: str = "orders",
    run_id: str = "r",
) -> dict[str, Any]:
    staged = steps.land(platform, spec, spec.tables[table], days, run_id)
    validated = json.loads(json.dumps(steps.validate(platform, spec, spec.tables[table], staged, run_id)))
    return steps.publish(platform, spec, spec.tables[table], validated, run_id)


def batch(platform: MemoryPlatform, day: dt.date = DAY, table: str = "orders") -> dict[str, Any]:
    return next(b for b in platform.mart.batches(table) if b["partition_date"] == day)


def counts(platform: MemoryPlatform, day: dt.date = DAY) -> tuple[int, int, int, int]:
    found = batch(platform, day)
    return found["rows_in"], found["trusted"], found["quarantined"], found["duplicates"]


def held(platform: MemoryPlatform, name: str = "quarantine.orders") -> list[dict[str, Any]]:
    return platform.lake.read(name).to_pylist() if name in platform.lake.tables() else []


def trusted(platform: MemoryPlatform, day: dt.date = DAY) -> list[dict[str, Any]]:
    if "trusted.orders" not in platform.lake.tables():
        return []
    return platform.lake.read("trusted.orders", day, day).to_pylist()


def history(platform: MemoryPlatform) -> dt.date:
    """Five usual days; the day that follows."""
    for at, day in enumerate(DAYS[:5]):
        deliver(platform, day, csv(day, start=100 * at))
    run(platform, DAYS[:5])
    return DAYS[5]


# --- what is good ----------------------------------------------------------------------------------------------------


def test_a_good_partition(platform: MemoryPlatform) -> None:
    key = deliver(platform, DAY, csv(DAY))
    result = run(platform, [DAY])
    assert {k: result[k] for k in ("partitions", "in", "trusted", "quarantined", "duplicates", "late")} == {
        "partitions": 1,
        "in": 20,
        "trusted": 20,
        "quarantined": 0,
        "duplicates": 0,
        "late": [],
    }
    first = trusted(platform)[0]
    assert (first["source_file"], first["source_row"], first["available_at"]) == (key, 1, instant("2024-01-01T00:00"))
    recorded = batch(platform)
    assert (recorded["status"], recorded["reasons"]) == ("published", [])
    assert [(d["key"], d["rows"]) for d in recorded["deliveries"]] == [(key, 20)]
    assert recorded["snapshot_id"] == platform.lake.snapshot("trusted.orders")
    assert "quarantine.orders" not in platform.lake.tables()
    page = recorded["validation_uri"].removeprefix("s3://lake/")
    assert b"0 rows broke a rule" in platform.objects.get(page)
    assert [platform.objects.get(o.key) for o in platform.objects.list("raw/shop/orders/2024-01-01/")] == [csv(DAY)]


def test_a_rerun_changes_no_row(platform: MemoryPlatform) -> None:
    deliver(platform, DAY, csv(DAY, [(1, "n", 1), (1, "n", 2), (2, "x", 1), *[(at, "s", 1) for at in range(3, 12)]]))
    run(platform, [DAY])
    before = trusted(platform), held(platform), counts(platform)
    run(platform, [DAY], run_id="again")
    assert (trusted(platform), held(platform), counts(platform)) == before
    assert before[2] == (12, 10, 1, 1)


def test_a_real_day_of_flights(platform: MemoryPlatform) -> None:
    flights = sources()["nyc_flights"]
    day = dt.date(2013, 7, 1)
    publish(platform.landing, day, day)
    found = {}
    for name, table in flights.tables.items():
        dates = steps.due(platform, table, day, None, flights.start_date)
        assert steps.arrived(platform, table, dates)
        found[name] = run(platform, dates, flights, name)
    assert {name: (r["in"], r["trusted"]) for name, r in found.items()} == {
        "schedules": (966, 966),
        "actuals": (918, 918),
        "weather": (72, 72),
        "planes": (3322, 3322),
    }
    planned = platform.lake.read("trusted.schedules", day, day)
    assert set(planned["available_at"].to_pylist()) == {instant("2013-06-30T20:00")}
    happened = platform.lake.read("trusted.actuals", day - dt.timedelta(days=1))
    assert set(happened["available_at"].to_pylist()) == {instant("2013-07-01T00:00")}


# --- what stops a partition ------------------------------------------------------------------------------------------

WHOLE = csv(DAYS[5], start=900)
STOPPING = {
    "empty": (b"", "expected a header and rows, found an empty file"),
    "header only": (HEADER.encode(), "rows: expected at least 10 (usual: 20), found 0"),
    "truncated": (gzip.compress(WHOLE)[:-12], "expected a whole gzip file, found: "),
    "missing column": (b"day,order_id,region\n2024-01-06,1,n\n", "missing ['amount'], not expected []"),
    "extra column": (WHOLE.replace(b"\n", b",1\n").replace(b"amount,1", b"amount,x"), "not expected ['x']"),
    "delimiter": (WHOLE.replace(b",", b"\t"), r"is the delimiter '\t' instead of ','?"),
    "latin-1": (WHOLE.replace(b",n,5\n", b",\xfcst,5\n"), "expected UTF-8, found byte 0xfc in line 7"),
    "zero byte": (WHOLE.replace(b",n,5\n", b",\x00,5\n"), "expected text, found a zero byte in line 7"),
    "ragged": (WHOLE.replace(b",n,5\n", b",n\n"), "expected 4 values in every row, found 3 in data row 6"),
    "open quote": (WHOLE.replace(b",n,5\n", b',"n,5\n'), "expected every quote to be closed"),
    "text in a number": (WHOLE.replace(b",n,", b",n,x"), "bad rows: expected at most 20.0%, found 100.0% (20)"),
    "another date": (csv(DAY, start=900), "day: expected the date of the partition, found day 2024-01-01"),
    "ten times": (csv(DAYS[5], start=900, size=200), "rows: expected at most 40 (usual: 20), found 200"),
    "one row, often": (csv(DAYS[5], [(1, "n", 1)] * 20), "rows: expected at least 10 (usual: 20), found 1"),
    "bad rows": (
        csv(DAYS[5], [(at, "x" if at < 5 else "n", 1) for at in range(20)]),
        "found 25.0% (5): 5 rows: region",
    ),
}


@pytest.mark.parametrize("name", STOPPING)
def test_a_bad_file_stops_its_partition_and_a_good_one_mends_it(platform: MemoryPlatform, name: str) -> None:
    data, said = STOPPING[name]
    day = history(platform)
    key = deliver(platform, day, data)
    with pytest.raises(PartitionStopped) as caught:
        run(platform, [day])
    message = str(caught.value)
    assert said in message
    assert f"shop.orders: 1 partition(s) stopped, nothing of them is published:\n  {day}: " in message
    assert "s3://lake/validation/orders/2024-01-06.html" in message
    assert trusted(platform, day) == []
    assert held(platform) == []
    stopped = batch(platform, day)
    assert (stopped["status"], counts(platform, day), stopped["snapshot_id"]) == ("stopped", (0, 0, 0, 0), None)
    assert any(said in reason for reason in stopped["reasons"])
    assert [d["key"] for d in stopped["deliveries"]] == [key]
    assert said.replace("'", "&#x27;") in platform.objects.get("validation/orders/2024-01-06.html").decode()

    deliver(platform, day, WHOLE)
    run(platform, [day])
    assert counts(platform, day) == (20, 20, 0, 0)
    assert (batch(platform, day)["status"], batch(platform, day)["reasons"]) == ("published", [])
    assert len(trusted(platform, day)) == 20
    assert held(platform) == []
    assert json.loads(platform.objects.get("validation/orders/2024-01-06.json"))["success"] is True


def test_a_large_file_that_breaks_at_its_end_stops_its_partition_alone(platform: MemoryPlatform) -> None:
    """Its rows are staged before its end is seen."""
    deliver(platform, DAY, csv(DAY))
    deliver(platform, DAYS[1], csv(DAYS[1], size=100_000) + b"2024-01-02,7,n\n")
    with pytest.raises(PartitionStopped, match="found 3 in data row 100001"):
        run(platform, DAYS[:2])
    assert platform.lake.counts("trusted.orders") == {DAY: 20}
    assert (counts(platform), counts(platform, DAYS[1])) == ((20, 20, 0, 0), (0, 0, 0, 0))
    assert held(platform) == []


def test_a_bad_file_leaves_what_was_published_before(platform: MemoryPlatform) -> None:
    deliver(platform, DAY, csv(DAY))
    run(platform, [DAY])
    deliver(platform, DAY, b"")
    with pytest.raises(PartitionStopped):
        run(platform, [DAY])
    assert len(trusted(platform)) == 20
    assert (batch(platform)["status"], counts(platform)) == ("stopped", (20, 20, 0, 0))


def test_no_file_is_said_and_leaves_nothing(platform: MemoryPlatform) -> None:
    assert not steps.arrived(platform, SHOP.tables["orders"], [DAY])
    with pytest.raises(
        DeliveryMissing, match=r"orders: expected a file at shop/orders/\{date\}.csv for 2024-01-01, found"
    ):
        run(platform, [DAY])
    assert platform.lake.tables() == []
    assert platform.mart.batches("orders") == []
    deliver(platform, DAY, csv(DAY))
    assert steps.arrived(platform, SHOP.tables["orders"], [DAY])
    run(platform, [DAY])
    assert counts(platform) == (20, 20, 0, 0)


def test_one_bad_partition_of_many_stops_alone(platform: MemoryPlatform) -> None:
    for at, day in enumerate(DAYS):
        deliver(platform, day, csv(day, start=100 * at) if at != 2 else b"")
    deliver(platform, DAYS[4], csv(DAYS[4], start=400, size=200))
    with pytest.raises(PartitionStopped) as caught:
        run(platform, DAYS)
    message = str(caught.value)
    assert "2 partition(s) stopped" in message
    assert f"  {DAYS[2]}: UnreadableDelivery" in message
    assert f"  {DAYS[4]}: rows: expected at most 40 (usual: 20), found 200" in message
    assert platform.lake.counts("trusted.orders") == {day: 20 for day in DAYS if day not in (DAYS[2], DAYS[4])}
    states = {b["partition_date"]: b["status"] for b in platform.mart.batches("orders")}
    assert [states[day] for day in DAYS] == ["published", "published", "stopped", "published", "stopped", "published"]

    deliver(platform, DAYS[2], csv(DAYS[2], start=200))
    deliver(platform, DAYS[4], csv(DAYS[4], start=400))
    run(platform, DAYS)
    assert platform.lake.counts("trusted.orders") == dict.fromkeys(DAYS, 20)


def test_a_wrong_rule_publishes_nothing(platform: MemoryPlatform) -> None:
    deliver(platform, DAY, csv(DAY))
    with pytest.raises(SpecError, match="expect_no_such_thing"):
        run(platform, [DAY], shop(expectations=[{"type": "expect_no_such_thing"}]))
    assert platform.lake.tables() == []


# --- what is quarantined or dropped ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("7,n,abc", "amount: expected number, found 'abc'"),
        ("7,n,nan", "amount: expected number, found 'nan'"),
        ("7,n,inf", "amount: expected number, found 'inf'"),
        ("1.5,n,1", "order_id: expected integer, found '1.5'"),
        ("9223372036854775808,n,1", "order_id: expected integer, found '9223372036854775808'"),
        (",n,1", "order_id: expected a value, found nothing"),
        ("7,<script>alert(1)</script>,1", "region: expected one of ['n', 's'], found '<script>alert(1)</script>'"),
        ('7,"two\nlines",1', "region: expected one of ['n', 's'], found 'two\\nlines'"),
    ],
)
def test_a_bad_row_is_held_with_its_reason_and_place(platform: MemoryPlatform, text: str, reason: str) -> None:
    key = deliver(platform, DAY, csv(DAY, start=100) + f"{DAY},{text}\n".encode())
    run(platform, [DAY])
    assert counts(platform) == (21, 20, 1, 0)
    (row,) = held(platform)
    assert reason in row["reasons"]
    assert (row["source_file"], row["source_row"], row["partition_date"]) == (key, 21, DAY)
    assert list(json.loads(row["row"])) == ["day", "order_id", "region", "amount"]
    assert b"<script" not in platform.objects.get("validation/orders/2024-01-01.html")

    deliver(platform, DAY, csv(DAY, start=100))
    run(platform, [DAY])
    assert counts(platform) == (20, 20, 0, 0)
    assert held(platform) == []


def test_the_text_of_a_held_row_is_its_own(platform: MemoryPlatform) -> None:
    data = HEADER + f"{DAY},a,NA,\n" + "".join(f"{DAY},{at},n,{at}\n" for at in range(10)) + f'{DAY},b," é""",NA\n'
    deliver(platform, DAY, data.encode())
    deliver(platform, DAY, f"{HEADER}{DAY},c,n,1\n".encode(), "-2")
    run(platform, [DAY], shop(max_bad_share=0.5))
    assert [(json.loads(r["row"]), r["source_row"]) for r in held(platform)] == [
        ({"day": "2024-01-01", "order_id": "a", "region": "NA", "amount": ""}, 1),
        ({"day": "2024-01-01", "order_id": "b", "region": ' é"', "amount": "NA"}, 12),
        ({"day": "2024-01-01", "order_id": "c", "region": "n", "amount": "1"}, 1),
    ]


def test_bom_and_quoted_lines_are_read(platform: MemoryPlatform) -> None:
    data = f'{HEADER}{DAY},1,"two\nlines",1\n{DAY},2,n,1\n'.encode("utf-8-sig")
    deliver(platform, DAY, data)
    run(platform, [DAY], shop(expectations=[]))
    assert [row["region"] for row in trusted(platform)] == ["two\nlines", "n"]


def test_the_same_file_twice_is_counted_and_dropped(platform: MemoryPlatform) -> None:
    day = history(platform)
    deliver(platform, day, csv(day, start=900))
    deliver(platform, day, csv(day, start=900), "-2")
    run(platform, [day])
    assert counts(platform, day) == (40, 20, 0, 20)
    assert {row["source_file"] for row in trusted(platform, day)} == {"shop/orders/2024-01-06-2.csv"}


def test_rows_all_the_same_are_one_row(platform: MemoryPlatform) -> None:
    deliver(platform, DAY, csv(DAY, [(1, "n", 1)] * 20))
    run(platform, [DAY])
    assert counts(platform) == (20, 1, 0, 19)


def test_a_late_second_file_is_seen_taken_in_and_wins(platform: MemoryPlatform) -> None:
    orders = SHOP.tables["orders"]
    late = dt.timedelta(days=2)
    deliver(platform, DAY, csv(DAY))
    run(platform, [DAY])
    key = deliver(platform, DAY, csv(DAY, [(3, "s", 99), (50, "n", 1)]), "-2")
    assert steps.late_deliveries(platform, SHOP, orders, DAY + late, 7) == [key]
    assert steps.late_deliveries(platform, SHOP, orders, DAY + late, 1) == []
    deliver(platform, DAY + late, csv(DAY + late, start=200))
    assert run(platform, [DAY + late])["late"] == [key]

    assert run(platform, [DAY])["late"] == []
    assert counts(platform) == (22, 21, 0, 1)
    amounts = {row["order_id"]: row["amount"] for row in trusted(platform)}
    assert (amounts[3], amounts[4], amounts[50]) == (99, 4, 1)

    deliver(platform, DAY, csv(DAY, [(3, "s", 100)]), "-2")
    assert steps.late_deliveries(platform, SHOP, orders, DAY, 1) == [key]


@pytest.mark.parametrize("by", ["r", "another run"])
def test_a_body_that_goes_on_late_takes_nothing_back(
    platform: MemoryPlatform, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    """It was cut off from Airflow before it had the lock; a corrected file has been taken in since."""
    orders, take = SHOP.tables["orders"], platform.mart.lock
    deliver(platform, DAY, csv(DAY))
    orphan = steps.validate(platform, SHOP, orders, steps.land(platform, SHOP, orders, [DAY], "r"), "r")
    for _ in range(2):
        assert steps.publish(platform, SHOP, orders, orphan, "r")["trusted"] == 20, "both bodies of one try"

    def lock(name: str) -> Any:
        monkeypatch.undo()
        deliver(platform, DAY, csv(DAY, size=25))
        assert run(platform, [DAY], run_id=by)["trusted"] == 25
        return take(name)

    monkeypatch.setattr(platform.mart, "lock", lock)
    with pytest.raises(Refused, match="meanwhile"):
        steps.publish(platform, SHOP, orders, orphan, "r")
    assert platform.lake.counts("trusted.orders") == {DAY: 25}
    [batch] = platform.mart.batches("orders")
    assert (batch["status"], batch["trusted"], batch["run_id"]) == ("published", 25, by)


def test_a_run_that_read_more_files_than_the_one_before_it_publishes_them(platform: MemoryPlatform) -> None:
    orders = SHOP.tables["orders"]
    deliver(platform, DAY, csv(DAY))
    first = steps.validate(platform, SHOP, orders, steps.land(platform, SHOP, orders, [DAY], "a"), "a")
    deliver(platform, DAY, csv(DAY, start=20, size=5), "_2")
    second = steps.validate(platform, SHOP, orders, steps.land(platform, SHOP, orders, [DAY], "b"), "b")
    steps.publish(platform, SHOP, orders, first, "a")
    assert steps.publish(platform, SHOP, orders, second, "b")["trusted"] == 25


def test_late_deliveries_cost_one_listing(platform: MemoryPlatform) -> None:
    history(platform)
    asked: list[str] = []
    listing = platform.landing.list
    platform.landing.list = lambda prefix="": asked.append(prefix) or listing(prefix)  # type: ignore[func-returns-value,method-assign]
    assert steps.late_deliveries(platform, SHOP, SHOP.tables["orders"], DAYS[4], 28) == []
    assert asked == ["shop/orders/2024-01-0"]


# --- which partitions are due ----------------------------------------------------------------------------------------


def test_due_partitions_of_a_daily_table(platform: MemoryPlatform) -> None:
    orders, outcomes = SHOP.tables["orders"], SHOP.tables["outcomes"]
    assert steps.due(platform, orders, DAYS[3], None, DAY) == [DAYS[3]]
    assert steps.due(platform, outcomes, DAYS[3], None, DAY) == [DAYS[2]]
    assert steps.due(platform, outcomes, DAY, None, DAY) == []
    assert steps.due(platform, outcomes, DAYS[3], dt.date(2000, 1, 1), DAY) == DAYS[:3]
    assert steps.arrived(platform, outcomes, [])


def test_an_occasional_table_is_landed_when_it_is_new_or_changed(platform: MemoryPlatform) -> None:
    spec = shop(cadence="occasional", date_column=None, row_count={})
    orders = spec.tables["orders"]
    assert steps.due(platform, orders, DAYS[3], None, DAY) == [DAYS[3]]
    deliver(platform, DAYS[1], csv(DAY))
    deliver(platform, DAYS[5], csv(DAY))
    assert steps.due(platform, orders, DAYS[3], None, DAY) == [DAYS[1]]
    run(platform, [DAYS[1]], spec)
    assert steps.due(platform, orders, DAYS[3], None, DAY) == []
    deliver(platform, DAYS[1], csv(DAY, size=21))
    assert steps.due(platform, orders, DAYS[3], None, DAY) == [DAYS[1]]
    assert run(platform, [DAYS[1]], spec)["in"] == 21
    assert steps.due(platform, orders, DAYS[3], None, DAY) == []
    deliver(platform, DAYS[1], b"")
    with pytest.raises(PartitionStopped):
        run(platform, [DAYS[1]], spec)
    assert steps.due(platform, orders, DAYS[3], None, DAY) == [DAYS[1]]


# --- a second chance for quarantined rows ----------------------------------------------------------------------------

RELAXED = shop(expectations=[])


def replay(platform: MemoryPlatform, spec: SourceSpec = RELAXED, run_id: str = "replay") -> dict[str, Any]:
    return steps.replay_quarantine(platform, spec, spec.tables["orders"], DAYS[0], DAYS[-1], run_id, "oncall")


def mixed(platform: MemoryPlatform) -> None:
    """Two files of DAY and one of the next day: two rows released cleanly, one that loses, one that wins, one bad."""
    first = [(at, "n", at) for at in range(10)] + [(20, "x", 1), (3, "x", 1)]
    deliver(platform, DAY, csv(DAY, first))
    deliver(
        platform, DAY, csv(DAY, [(3, "s", 30), (4, "x", 40), ("?", "n", 1), *[(at, "n", 1) for at in (60, 61)]]), "-2"
    )
    deliver(platform, DAYS[1], csv(DAYS[1], [*[(at, "n", at) for at in range(9)], (9, "x", 9)]))
    run(platform, DAYS[:2], shop(max_bad_share=0.5))


def test_a_replay_leaves_what_a_clean_run_with_todays_rules_would(platform: MemoryPlatform, tmp_path: Path) -> None:
    mixed(platform)
    assert counts(platform) == (17, 12, 4, 1)
    assert replay(platform) == {"released": 2, "kept": 1, "duplicates": 2, "partitions": 2}
    assert counts(platform) == (17, 13, 1, 3)
    assert counts(platform, DAYS[1]) == (10, 10, 0, 0)

    (tmp_path / "clean").mkdir()
    clean = memory_platform(tmp_path / "clean")
    clean.landing = platform.landing  # type: ignore[misc]
    run(clean, DAYS[:2], RELAXED)
    for day in DAYS[:2]:
        assert trusted(platform, day) == trusted(clean, day)
        assert counts(platform, day) == counts(clean, day)
    assert held(platform) == held(clean)
    amounts = {row["order_id"]: row["amount"] for row in trusted(platform)}
    assert (amounts[3], amounts[4], amounts[20]) == (30, 40, 1)


def test_a_replay_is_in_the_ledger_once_and_a_second_changes_nothing(platform: MemoryPlatform) -> None:
    mixed(platform)
    replay(platform)
    decisions = platform.mart.decisions(kind="quarantine_release")
    assert {d["as_of"]: d["evidence"] for d in decisions} == {
        DAY: {"released": 1, "duplicates": 2, "kept": 1},
        DAYS[1]: {"released": 1, "duplicates": 0, "kept": 0},
    }
    assert {d["actor"] for d in decisions} == {"oncall"}
    before = platform.mart.batches("orders"), platform.lake.snapshot("trusted.orders"), held(platform)
    assert replay(platform, run_id="again") == {"released": 0, "kept": 1, "duplicates": 0, "partitions": 0}
    assert (platform.mart.batches("orders"), platform.lake.snapshot("trusted.orders"), held(platform)) == before
    assert len(platform.mart.decisions(kind="quarantine_release")) == 2


def test_a_replay_without_a_relaxed_rule_releases_nothing(platform: MemoryPlatform) -> None:
    mixed(platform)
    before = trusted(platform), held(platform), counts(platform)
    assert replay(platform, SHOP) == {"released": 0, "kept": 5, "duplicates": 0, "partitions": 0}
    assert (trusted(platform), held(platform), counts(platform)) == before


def test_what_stays_has_its_reasons_of_today_and_its_text(platform: MemoryPlatform) -> None:
    mixed(platform)
    texts = [row["row"] for row in held(platform)]
    other = {"type": "expect_column_values_to_be_in_set", "args": {"column": "region", "value_set": ["z"]}}
    assert replay(platform, shop(expectations=[other]))["kept"] == 5
    assert [row["row"] for row in held(platform)] == texts
    assert all("region: expected one of ['z']" in row["reasons"][-1] for row in held(platform))
    assert {json.loads(row["row"])["region"] for row in held(platform)} == {"x", "n"}


def test_released_rows_keep_their_arrival(platform: MemoryPlatform) -> None:
    strict = shop(available={"rule": "arrival"})
    deliver(platform, DAY, csv(DAY, [*[(at, "n", 1) for at in range(9)], (9, "x", 1)]))
    run(platform, [DAY], strict)
    (arrival,) = {row["available_at"] for row in trusted(platform)}
    replay(platform, shop(available={"rule": "arrival"}, expectations=[]))
    assert [row["available_at"] for row in trusted(platform)] == [arrival] * 10


def test_a_released_row_keeps_the_rules_about_rows_together(platform: MemoryPlatform) -> None:
    unique = {"type": "expect_column_values_to_be_unique", "args": {"column": "amount"}}
    deliver(platform, DAY, csv(DAY, [*[(at, "n", at) for at in range(9)], (9, "x", 3), (10, "x", 77)]))
    run(platform, [DAY])
    assert replay(platform, shop(expectations=[unique])) == {"released": 1, "kept": 1, "duplicates": 0, "partitions": 1}
    assert [row["amount"] for row in trusted(platform)] == [*range(9), 77]


def test_a_new_derived_column_does_not_hinder_a_replay(platform: MemoryPlatform) -> None:
    mixed(platform)
    replay(platform, shop(expectations=[], derive={"double": "amount * 2"}))
    assert [row["double"] for row in trusted(platform) if row["order_id"] in (4, 20)] == [2, 80]
    assert counts(platform) == (17, 13, 1, 3)


class _Dies(Exception):
    """The process is gone."""


@pytest.mark.parametrize("writes", [1, 2])
def test_a_replay_that_died_is_finished_by_the_next(platform: MemoryPlatform, writes: int) -> None:
    mixed(platform)
    write, done = platform.lake.write, []

    def dying(table: str, rows: pa.Table, dates: Any) -> int:
        snapshot = write(table, rows, dates)
        done.append(table)
        if len(done) == writes:
            raise _Dies
        return snapshot

    platform.lake.write = dying  # type: ignore[method-assign]
    with pytest.raises(_Dies):
        replay(platform)
    platform.lake.write = write  # type: ignore[method-assign]
    assert done == ["trusted.orders", "quarantine.orders"][:writes]
    assert replay(platform) == {"released": 2, "kept": 1, "duplicates": 2, "partitions": 2}
    assert counts(platform) == (17, 13, 1, 3)
    assert len(trusted(platform)) == 13
    assert len(held(platform)) == 1


def test_a_replay_needs_a_quarantine_and_a_published_partition(platform: MemoryPlatform) -> None:
    with pytest.raises(NotFound, match=r"quarantine\.orders"):
        replay(platform)
    mixed(platform)
    deliver(platform, DAYS[1], b"")
    with pytest.raises(PartitionStopped):
        run(platform, [DAYS[1]])
    before = trusted(platform), held(platform)
    with pytest.raises(Refused, match=r"found \['2024-01-02'\] stopped: run them again first"):
        replay(platform)
    assert (trusted(platform), held(platform)) == before
    platform.lake.write(
        "quarantine.orders",
        platform.lake.read("quarantine.orders", DAY, DAY).set_column(
            0, "partition_date", pa.array([DAYS[4]] * 4, pa.date32())
        ),
        [DAYS[4]],
    )
    with pytest.raises(NotFound, match=r"found none of \['2024-01-05'\]"):
        replay(platform)


# --- one at a time, in order -----------------------------------------------------------------------------------------


def test_publishing_waits_for_the_table(platform: MemoryPlatform, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = platform.mart.lock
    monkeypatch.setattr(platform.mart, "lock", lambda name: lock(name, timeout=0.1))
    deliver(platform, DAY, csv(DAY))
    with lock("ingest-orders"), pytest.raises(Unavailable, match="ingest-orders"):
        run(platform, [DAY])
    assert platform.lake.tables() == []
    run(platform, [DAY])


def test_many_parts_leave_what_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = shop(max_bad_share=0.5)
    found = []
    for part, many in ((1 << 17, 100_000), (4, 0)):
        monkeypatch.setattr(staging, "PART_ROWS", part)
        monkeypatch.setattr(deliveries, "SMALL_ROWS", part)
        monkeypatch.setattr(validation, "MANY", many)
        (tmp_path / str(part)).mkdir()
        platform = memory_platform(tmp_path / str(part))
        mixed(platform)
        deliver(platform, DAYS[1], csv(DAYS[1], [(at, "n", at) for at in range(13)]), "-2")
        deliver(platform, DAYS[2], b"")
        with pytest.raises(PartitionStopped) as caught:
            run(platform, DAYS[:3], spec, run_id="many")
        parts = [o.key for o in platform.objects.list("staging/ingest/orders/many/trusted")]
        lines = [
            [{k: v for k, v in row.items() if k != "available_at"} for row in rows]
            for rows in (platform.lake.read("trusted.orders").to_pylist(), held(platform))
        ]
        pages = {o.key: platform.objects.get(o.key) for o in platform.objects.list("validation/")}
        found.append((lines, [counts(platform, day) for day in DAYS[:3]], str(caught.value), pages))
        assert len(parts) == (1 if part > 100 else 10)
    assert found[0] == found[1]
    assert found[0][1] == [(17, 12, 4, 1), (23, 13, 1, 9), (0, 0, 0, 0)]


def test_a_trusted_row_that_went_missing_between_two_steps_is_seen(
    platform: MemoryPlatform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "PART_ROWS", 8)
    orders = SHOP.tables["orders"]
    deliver(platform, DAY, csv(DAY))
    validated = steps.validate(platform, SHOP, orders, steps.land(platform, SHOP, orders, [DAY], "r"), "r")
    last = staging.part(validated["trusted_key"], 2)
    staging.put(platform, last, staging.get(platform, last).slice(1))
    with pytest.raises(AccountingError, match="expected the trusted rows"):
        steps.publish(platform, SHOP, orders, validated, "r")
    assert platform.lake.tables() == []


def test_rows_in_another_order_than_their_text_are_refused() -> None:
    from include.evergreen.quality.casting import cast
    from include.evergreen.quality.deliveries import Delivery, read

    table: TableSpec = SHOP.tables["orders"]
    raw, _ = read([Delivery(DAY, "k", "e", dt.datetime.now(dt.UTC), csv(DAY))], table)
    typed = cast(raw, table)
    with pytest.raises(AccountingError, match="in the order of their text"):
        steps._split(raw, typed.take(pa.array(range(19, -1, -1))), table, {})
    shuffled = steps._split(raw.take(pa.array([*range(10, 20), *range(10)])), typed, table, {0: ("a",), 11: ("b",)})
    assert [json.loads(row)["order_id"] for row in shuffled["quarantined"]["row"].to_pylist()] == ["0", "11"]
