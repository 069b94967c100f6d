"""Whatever is delivered: in = trusted + quarantined + duplicates, and a rerun leaves the same rows."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from include.evergreen.pipeline import ingest as steps
from include.evergreen.quality.accounting import winners
from include.evergreen.quality.deliveries import ORDER
from include.evergreen.specs import SourceSpec
from tests import examples
from tests.support import MemoryPlatform, memory_platform

DAYS = examples.dates(2)
HEADER = "day,order_id,region,amount\n"


def shop() -> SourceSpec:
    spec = examples.source().model_dump()
    spec["tables"]["orders"] |= {
        "max_bad_share": 1,
        "row_count": {"min": 0},
        "expectations": [
            {"type": "expect_column_values_to_be_in_set", "args": {"column": "region", "value_set": ["n", "s"]}},
            {"type": "expect_column_values_to_be_unique", "args": {"column": "amount"}},
            {
                "type": "expect_column_values_to_be_between",
                "args": {"column": "order_id", "max_value": 2, "mostly": 0.5},
            },
        ],
    }
    return SourceSpec.model_validate(spec)


SHOP = shop()
ROWS = st.lists(
    st.tuples(
        st.sampled_from(["2024-01-01", "2024-01-01", "2024-01-02", "no day"]),
        st.sampled_from(["1", "2", "3", "4", "1.5", "NA"]),
        st.sampled_from(["n", "s", "n", "x", "", '"a ""b"" c"']),
        st.sampled_from(["1", "2", "3", "4", "5", "inf", ""]),
    ),
    max_size=8,
)
FILES = st.lists(st.tuples(st.sampled_from(DAYS), ROWS), min_size=1, max_size=4)


def text(rows: list[tuple[str, ...]]) -> bytes:
    return (HEADER + "".join(",".join(row) + "\n" for row in rows)).encode()


def state(platform: MemoryPlatform) -> dict[str, Any]:
    return {name: platform.lake.read(name).to_pylist() for name in platform.lake.tables()}


def ingest(platform: MemoryPlatform, run_id: str) -> dict[str, Any]:
    orders = SHOP.tables["orders"]
    staged = steps.land(platform, SHOP, orders, DAYS, run_id)
    return steps.publish(platform, SHOP, orders, steps.validate(platform, SHOP, orders, staged, run_id), run_id)


@settings(max_examples=10, deadline=None)
@given(FILES)
def test_every_row_in_is_one_of_three_and_a_rerun_changes_none(files: list[tuple[Any, list[tuple[str, ...]]]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        platform = memory_platform(Path(folder))
        rows_in = dict.fromkeys(DAYS, 0)
        for day in DAYS:
            platform.landing.put(f"shop/orders/{day}.csv", text([]))
        for at, (day, rows) in enumerate(files):
            platform.landing.put(f"shop/orders/{day}-{at}.csv", text(rows))
            rows_in[day] += len(rows)
        ingest(platform, "first")
        before = state(platform)
        batches = {b["partition_date"]: b for b in platform.mart.batches("orders")}
        trusted = platform.lake.read("trusted.orders").to_pylist()
        held = before.get("quarantine.orders", [])
        for day in DAYS:
            found = batches[day]
            assert found["rows_in"] == rows_in[day]
            assert found["rows_in"] == found["trusted"] + found["quarantined"] + found["duplicates"]
            assert found["trusted"] == sum(row["partition_date"] == day for row in trusted)
            assert found["quarantined"] == sum(row["partition_date"] == day for row in held)
        keys = [(row["partition_date"], row["order_id"]) for row in trusted]
        assert len(keys) == len(set(keys))
        places = [(row["source_file"], row["source_row"]) for row in (*trusted, *held)]
        assert len(places) == len(set(places))
        for row in trusted:
            assert row["day"] == row["partition_date"]
            assert row["region"] in ("n", "s", None)
        assert all(row["reasons"] and json.loads(row["row"]) for row in held)
        ingest(platform, "again")
        assert state(platform) == before
        assert [{**b, "run_id": "", "snapshot_id": 0} for b in platform.mart.batches("orders")] == [
            {**b, "run_id": "", "snapshot_id": 0} for b in batches.values()
        ]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([None, 1, 2, 3]), st.integers(0, 2), st.sampled_from(DAYS)), max_size=30))
def test_each_key_of_a_partition_has_one_winner_and_it_is_the_latest(found: list[tuple[Any, int, Any]]) -> None:
    rows = pa.table(
        {
            "id": pa.array([f[0] for f in found], pa.int64()),
            ORDER: pa.array([f[1] for f in found], pa.int32()),
            "source_row": pa.array(range(len(found)), pa.int64()),
            "partition_date": pa.array([f[2] for f in found], pa.date32()),
        }
    )
    latest: dict[Any, tuple[int, int]] = {}
    for at, (key, delivery, day) in enumerate(found):
        latest[day, key] = max(latest.get((day, key), (-1, -1)), (delivery, at))
    won = [at for at, wins in enumerate(winners(rows, ("id",)).to_pylist()) if wins]
    assert won == sorted(at for _, at in latest.values())
