"""What the steps of the DAGs put into the inbox, and take out of it."""

from __future__ import annotations

import datetime as dt
import itertools
from pathlib import Path
from typing import Any

import pytest

from include.evergreen.alerts.inbox import Inbox
from include.evergreen.drift.verdict import ColumnDrift, MonitoringFacts
from include.evergreen.errors import PartitionStopped
from include.evergreen.health.facts import Alert
from include.evergreen.pipeline import monitoring
from tests import examples
from tests.support import MemoryPlatform, memory_platform
from tests.unit import test_approval as approvals
from tests.unit import test_ingest as deliveries

DAY = examples.FIRST
SPEC = examples.model()
DRIFTED = {name: ColumnDrift("psi", 0.9, 0.1, breached=True) for name in SPEC.features}


@pytest.fixture
def platform(tmp_path: Path) -> MemoryPlatform:
    return memory_platform(tmp_path)


def alerts(platform: MemoryPlatform) -> list[Alert]:
    return Inbox(platform.mart).open()


def kinds(platform: MemoryPlatform) -> list[str]:
    return sorted(alert.kind for alert in alerts(platform))


def after(days: int) -> dt.date:
    return DAY + dt.timedelta(days=days)


# --- verdicts --------------------------------------------------------------------------------------------------------

STATES: dict[str, dict[str, Any]] = {
    "ok": {},
    "drift": {"columns": DRIFTED},
    "broken": {"columns": DRIFTED, "stopped": ("orders of today: expected a published partition, found none",)},
}


def judge(platform: MemoryPlatform, days: int, state: str, run_id: str | None = None) -> str:
    facts = MonitoringFacts(after(days), 1, (after(days),), 60, 60, **STATES[state])
    found = monitoring.conclude(
        platform, SPEC, examples.source(), after(days), facts.to_dict(), run_id or f"run-{days}"
    )
    return str(found["verdict"])


def test_the_states_are_what_they_say(platform: MemoryPlatform) -> None:
    assert [judge(platform, at, state) for at, state in enumerate(STATES)] == ["ok", "covariate_drift", "broken_data"]


def test_a_drift_is_one_alert_until_a_verdict_of_ok(platform: MemoryPlatform) -> None:
    for days in range(3):
        judge(platform, days, "drift")
    (alert,) = alerts(platform)
    assert (alert.kind, alert.since, alert.as_of, alert.seen) == ("drift", DAY, after(2), 3)
    assert alert.link == f"/evergreen/reports/late_order/{after(2)}"
    judge(platform, 3, "ok")
    assert alerts(platform) == []
    (ended,) = Inbox(platform.mart).history("late_order")
    assert ended.resolution == f"the verdict on {after(3)} is ok"


def test_a_lighter_verdict_ends_the_graver_alert_only(platform: MemoryPlatform) -> None:
    judge(platform, 0, "drift")
    judge(platform, 1, "broken")
    assert kinds(platform) == ["broken_data", "drift"], "under broken data nobody knows whether it drifts"
    judge(platform, 2, "drift")
    assert kinds(platform) == ["drift"]
    judge(platform, 3, "ok")
    assert kinds(platform) == []


def test_an_earlier_date_judged_again_changes_nothing(platform: MemoryPlatform) -> None:
    judge(platform, 5, "ok")
    judge(platform, 4, "drift")
    assert alerts(platform) == [], "the newest date is well"
    judge(platform, 6, "drift")
    before = alerts(platform)
    for days, state in ((2, "ok"), (5, "ok"), (3, "broken")):
        judge(platform, days, state, f"backfill-{days}")
    assert alerts(platform) == before


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
@pytest.mark.parametrize("states", [("broken", "ok", "drift"), ("ok", "drift", "ok")], ids="-".join)
def test_a_backfill_in_any_order_ends_where_the_days_do(
    platform: MemoryPlatform, states: tuple[str, ...], order: tuple[int, ...]
) -> None:
    for days in (*order, *order):
        judge(platform, days, states[days])
    found = [(alert.kind, alert.as_of, alert.seen) for alert in alerts(platform)]
    assert found == ([("drift", after(2), 1)] if states[2] == "drift" else [])


# --- partitions ------------------------------------------------------------------------------------------------------


def stop(platform: MemoryPlatform, day: dt.date, run_id: str = "r") -> None:
    deliveries.deliver(platform, day, b"not,the,columns\n1,2,3\n")
    with pytest.raises(PartitionStopped):
        deliveries.run(platform, [day], run_id=run_id)


def test_a_stopped_partition_is_an_alert_until_it_is_published(platform: MemoryPlatform) -> None:
    day = deliveries.history(platform)
    stop(platform, day)
    stop(platform, day)
    (alert,) = alerts(platform)
    assert (alert.cause, alert.seen, alert.since) == ("shop|partition_stopped|orders", 1, day)
    assert alert.what.startswith(f"orders of {day} is not published: ")
    assert alert.link == "/evergreen/data/shop/orders"
    deliveries.deliver(platform, day, deliveries.csv(day))
    deliveries.run(platform, [day])
    assert alerts(platform) == []


def test_it_stands_whatever_other_partitions_are_published(platform: MemoryPlatform) -> None:
    day = deliveries.history(platform)
    later = day + dt.timedelta(days=1)
    deliveries.deliver(platform, later, deliveries.csv(later, start=900))
    deliveries.run(platform, [later], run_id="later")
    stop(platform, day)
    (alert,) = alerts(platform)
    assert alert.as_of == day, "also after a later one was published"
    deliveries.run(platform, deliveries.DAYS[:2], run_id="again")
    deliveries.run(platform, [later], run_id="again")
    assert alerts(platform) == [alert]
    deliveries.deliver(platform, day, deliveries.csv(day))
    deliveries.run(platform, [day], run_id="mended")
    assert alerts(platform) == []


def test_a_partition_that_stops_again_after_its_repair_is_a_new_alert(platform: MemoryPlatform) -> None:
    day = deliveries.history(platform)
    stop(platform, day)
    deliveries.deliver(platform, day, deliveries.csv(day))
    deliveries.run(platform, [day])
    assert alerts(platform) == []
    stop(platform, day)
    (alert,) = alerts(platform)
    assert (alert.id, alert.seen) == (2, 1)


def test_a_bulk_load_with_one_stopped_date_is_an_alert(platform: MemoryPlatform) -> None:
    """What is published after the stopped date in the same load does not hide it."""
    for at, day in enumerate(deliveries.DAYS):
        bad = at == 3
        deliveries.deliver(platform, day, b"a,b\n" if bad else deliveries.csv(day, start=100 * at))
    for run_id in ("r", "r", "another"):
        with pytest.raises(PartitionStopped):
            deliveries.run(platform, deliveries.DAYS, run_id=run_id)
    (alert,) = alerts(platform)
    assert (alert.as_of, alert.seen) == (deliveries.DAYS[3], 2)


# --- approval --------------------------------------------------------------------------------------------------------


def test_a_person_is_called_while_a_candidate_waits(platform: MemoryPlatform) -> None:
    first = approvals.trained(platform)
    approvals.ask(platform, first)
    approvals.ask(platform, first)
    (alert,) = alerts(platform)
    assert (alert.cause, alert.seen, alert.as_of) == ("late_order|person_needed|1", 1, approvals.AS_OF)
    approvals.decide(platform, first, approvals.answer())
    assert alerts(platform) == []
    (ended,) = Inbox(platform.mart).history("late_order")
    assert ended.resolution == "approved by oncall"


@pytest.mark.parametrize(
    ("response", "said"),
    [(approvals.answer("Reject"), "rejected by oncall"), (approvals.TIMEOUT, "expired by timeout")],
)
def test_every_answer_ends_the_call(platform: MemoryPlatform, response: dict[str, Any], said: str) -> None:
    approvals.decide(platform, approvals.trained(platform), response)
    assert [alert.resolution for alert in Inbox(platform.mart).history()] == [said]


def test_an_answer_about_one_candidate_leaves_the_other_waiting(platform: MemoryPlatform) -> None:
    first = approvals.trained(platform)
    second = approvals.trained(platform, approvals.AS_OF + approvals.DAY, "train-2")
    approvals.ask(platform, second, run_id="approve-2")
    approvals.decide(platform, first, approvals.answer("Reject"))
    assert [alert.cause for alert in alerts(platform)] == ["late_order|person_needed|2"]


def test_a_call_that_is_prepared_again_after_its_answer_calls_nobody(platform: MemoryPlatform) -> None:
    first = approvals.trained(platform)
    approvals.decide(platform, first, approvals.answer())
    approvals.ask(platform, first)
    assert alerts(platform) == []
