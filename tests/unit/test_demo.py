"""What `make demo EXIT=1` calls a shortfall, from the mart alone."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from include.evergreen.local.api import Api
from include.evergreen.local.demo import MODEL, Demo, Scenario
from tests.support import MemoryPlatform, memory_platform

FIRST = dt.date(2013, 6, 24)
SCENARIO = Scenario(replay_from=FIRST, replay_until=FIRST + dt.timedelta(days=1))


def batch(day: dt.date, **changes: Any) -> dict[str, Any]:
    return {
        "table_name": "schedules",
        "partition_date": day,
        "source": "nyc_flights",
        "status": "published",
        "rows_in": 3,
        "trusted": 2,
        "quarantined": 1,
        "duplicates": 0,
        "deliveries": [],
        "reasons": [],
        "validation_uri": None,
        "snapshot_id": 1,
        "run_id": "r",
        **changes,
    }


def decision(demo: Demo, kind: str, day: dt.date, outcome: str) -> None:
    demo.mart.append_decision(
        kind=kind,
        subject=MODEL,
        as_of=day,
        outcome=outcome,
        reasons=["r"],
        evidence={},
        actor="test",
        run_id=f"{kind}{day}",
    )


@pytest.fixture
def demo(tmp_path: Path) -> Demo:
    """A loop of two days that did all it should."""
    platform: MemoryPlatform = memory_platform(tmp_path)
    found = Demo(platform.settings, Api("http://127.0.0.1:1", "admin", "x"), SCENARIO, Console(quiet=True))
    for day in SCENARIO.days:
        found.mart.record_batches([batch(day)])
        found.mart.record_monitoring(
            model=MODEL,
            as_of=day,
            version=1,
            verdict="ok",
            reasons=["r"],
            columns={},
            performance={},
            report_uri=None,
            run_id="r",
        )
        with found.mart.engine.begin() as connection:
            connection.exec_driver_sql(
                "insert into scorings (model, as_of, version, is_current, rows, mean_probability, run_id, scored_at) "
                "values (?, ?, 1, 1, 3, 0.2, 'r', '2013-06-24 00:00:00')",
                (MODEL, day.isoformat()),
            )
    return found


def test_a_loop_that_did_all_it_should_has_none(demo: Demo) -> None:
    assert demo.shortfalls() == []


def test_a_stopped_partition_is_one(demo: Demo) -> None:
    stopped = {"rows_in": 0, "trusted": 0, "quarantined": 0, "snapshot_id": None, "reasons": ["too few rows"]}
    demo.mart.record_batches([batch(FIRST - dt.timedelta(days=3), status="stopped", **stopped)])
    assert demo.shortfalls() == ["partitions stopped: ['schedules 2013-06-21']"]


def test_a_day_that_was_not_scored_is_one(demo: Demo) -> None:
    with demo.mart.engine.begin() as connection:
        connection.exec_driver_sql("delete from scorings where as_of = '2013-06-25'")
    assert demo.shortfalls() == ["days not scored: ['2013-06-25']"]


def test_an_allowed_retrain_without_a_gate_is_one(demo: Demo) -> None:
    decision(demo, "retrain", FIRST, "allowed")
    assert demo.shortfalls() == ["retrains allowed without a gate's decision: ['2013-06-24']"]
    decision(demo, "gate", FIRST, "refused")
    assert demo.shortfalls() == []
