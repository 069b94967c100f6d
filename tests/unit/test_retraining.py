"""Asking for a retrain on a real ledger: recorded once, answered the same to a retry, a person called once per halt."""

from __future__ import annotations

import datetime as dt
import threading
from pathlib import Path

import pytest

from include.evergreen.alerts.inbox import Inbox
from include.evergreen.drift.governor import fingerprint
from include.evergreen.health.facts import Alert
from include.evergreen.pipeline.retraining import Asked, ask, close_halt, record_by_hand, request_on_schedule
from include.evergreen.specs import ModelSpec
from tests import examples
from tests.support import MemoryPlatform, memory_platform

AS_OF = dt.date(2024, 2, 8)
RULES = {"breaches": 2, "windows": 3, "cooldown_days": 7, "same_drift_days": 14, "losers": 2, "breaker_days": 20}


def spec(**rules: int) -> ModelSpec:
    return examples.model(retrain={**RULES, **rules})


def after(days: int) -> dt.date:
    return AS_OF + dt.timedelta(days=days)


@pytest.fixture
def world(tmp_path: Path) -> MemoryPlatform:
    return memory_platform(tmp_path)


def judge(
    world: MemoryPlatform, as_of: dt.date, kind: str = "label_drift", guilty: tuple[str, ...] = (), version: int = 1
) -> None:
    """A verdict, as `conclude` leaves it."""
    world.mart.record_monitoring(
        model="late_order",
        as_of=as_of,
        version=version,
        verdict=kind,
        reasons=["r"],
        columns={},
        performance={},
        report_uri=None,
        run_id="m",
    )
    world.mart.append_decision(
        kind="verdict",
        subject="late_order",
        as_of=as_of,
        outcome=kind,
        reasons=["r"],
        evidence={"version": version, "guilty": list(guilty)},
        actor="monitor",
        run_id=f"m-{kind}",
    )


def gate(world: MemoryPlatform, as_of: dt.date, outcome: str) -> None:
    world.mart.append_decision(
        kind="gate",
        subject="late_order",
        as_of=as_of,
        outcome=outcome,
        reasons=["r"],
        evidence={},
        actor="gate",
        run_id=f"train-{as_of}",
    )


def asked(world: MemoryPlatform, as_of: dt.date, run_id: str, **rules: int) -> Asked:
    """The verdict of the day before and of `as_of` are drifts; ask."""
    judge(world, as_of - dt.timedelta(days=1))
    judge(world, as_of)
    return ask(world, spec(**rules), as_of, run_id)


def ledger(world: MemoryPlatform) -> list[tuple[str, str]]:
    rows = sorted(world.mart.decisions(subject="late_order", kind="retrain"), key=lambda row: row["id"])
    return [(row["run_id"], row["outcome"]) for row in rows]


def test_two_breaches_ask_once_and_a_retry_gets_the_same_answer(world: MemoryPlatform) -> None:
    judge(world, after(-1))
    assert not ask(world, spec(), after(-1), "a").decision.accepted
    judge(world, AS_OF, "performance_drop")
    first = ask(world, spec(), AS_OF, "b")
    assert first.decision.accepted
    assert ask(world, spec(), AS_OF, "b") == first, "a retry of the run that asked"
    again = ask(world, spec(), AS_OF, "c").decision
    assert not again.accepted
    assert f"{AS_OF} has asked already" in again.reasons
    judge(world, after(1))
    assert "cooldown" in ask(world, spec(), after(1), "d").decision.reasons[0]
    assert ledger(world) == [("a", "refused"), ("b", "allowed"), ("c", "refused"), ("d", "refused")]


def test_a_run_that_died_after_its_yes_gets_it_again_whatever_happened_since(world: MemoryPlatform) -> None:
    first = asked(world, AS_OF, "died")
    assert first.decision.accepted
    for days in (1, 2):
        gate(world, after(days), "refused")
    assert not asked(world, after(1), "another").decision.accepted
    judge(world, AS_OF, "ok")
    before = ledger(world)
    assert ask(world, spec(), AS_OF, "died") == first
    assert ledger(world) == before


def test_another_run_that_hears_the_same_leaves_no_row(world: MemoryPlatform) -> None:
    judge(world, AS_OF)
    first = ask(world, spec(), AS_OF, "a")
    assert ask(world, spec(), AS_OF, "b") == first
    assert ledger(world) == [("a", "refused")]


def test_broken_data_is_refused_in_the_ledger_and_ok_asks_nothing(world: MemoryPlatform) -> None:
    for days, kind in ((-2, "label_drift"), (-1, "label_drift"), (0, "broken_data")):
        judge(world, after(days), kind)
    assert not ask(world, spec(), AS_OF, "a").decision.accepted
    assert ledger(world) == [("a", "refused")]
    judge(world, AS_OF, "ok")
    assert not ask(world, spec(), AS_OF, "b").decision.accepted
    assert not ask(world, spec(), after(1), "c").decision.accepted, "a date without a verdict"
    assert ledger(world) == [("a", "refused")]


def test_a_backfilled_date_ignores_later_verdicts(world: MemoryPlatform) -> None:
    for days in (0, 1, 2):
        judge(world, after(days))
    decision = ask(world, spec(), AS_OF, "a").decision
    assert not decision.accepted
    assert decision.evidence["windows"] == {AS_OF.isoformat(): "label_drift"}


# --- the fingerprint -------------------------------------------------------------------------------------------------


def test_the_fingerprint_is_read_from_the_newest_verdict_that_stands(world: MemoryPlatform) -> None:
    judge(world, after(-1))
    judge(world, AS_OF, "label_drift", ("region", "amount"), version=3)
    judge(world, AS_OF, "performance_drop", ("amount",), version=3)
    evidence = ask(world, spec(), AS_OF, "a").decision.evidence
    assert evidence["fingerprint"] == fingerprint(3, "performance_drop", "amount")
    (row,) = world.mart.decisions(kind="retrain")
    assert row["evidence"] == evidence


@pytest.mark.parametrize(
    ("kind", "guilty", "version", "accepted"),
    [
        ("label_drift", ("amount", "region"), 1, False),
        ("label_drift", ("region", "amount"), 1, True),
        ("covariate_drift", ("amount",), 1, True),
        ("label_drift", ("amount",), 2, True),
    ],
)
def test_the_same_drift_asks_once_within_its_days(
    world: MemoryPlatform, kind: str, guilty: tuple[str, ...], version: int, accepted: bool
) -> None:
    judge(world, after(-1))
    judge(world, AS_OF, "label_drift", ("amount",))
    assert ask(world, spec(), AS_OF, "a").decision.accepted
    judge(world, after(9))
    judge(world, after(10), kind, guilty, version)
    decision = ask(world, spec(), after(10), "b").decision
    assert decision.accepted is accepted
    assert accepted or decision.reasons == (f"same drift: {AS_OF} asked for it 10 day(s) away, 14 needed",)


# --- the schedule ----------------------------------------------------------------------------------------------------


def test_a_scheduled_training_counts_for_the_cooldown(world: MemoryPlatform) -> None:
    model = spec(same_drift_days=0)
    for run in ("request-1", "request-1", "request-2"):
        request_on_schedule(world, model, AS_OF, run)
    (row,) = world.mart.decisions(subject=model.name, kind="retrain")
    assert (row["outcome"], row["actor"], row["as_of"]) == ("allowed", "schedule", AS_OF)
    assert model.training.schedule is not None
    assert model.training.schedule in row["reasons"][0]
    answers = {}
    for days in range(12):
        judge(world, after(days))
        answers[days] = ask(world, model, after(days), f"monitor-{days}").decision
    assert [days for days, answer in answers.items() if answer.accepted] == [7]
    assert any("asked already" in reason for reason in answers[0].reasons)
    assert any(f"cooldown: {AS_OF} asked" in reason for reason in answers[6].reasons)
    assert any(f"cooldown: {after(7)} asked" in reason for reason in answers[8].reasons)


def test_a_scheduled_training_counts_for_the_budget_and_is_not_governed(world: MemoryPlatform) -> None:
    model = spec(budget=2)
    for days in (-30, -20, -10):
        request_on_schedule(world, model, after(days), f"request-{days}")
    decision = asked(world, AS_OF, "a", budget=2).decision
    assert decision.reasons == (f"budget: 2 request(s) within 30 days, {after(-20)} to {after(-10)}, 2 allowed",), (
        "all three of the schedule are allowed, two lie in the window"
    )
    assert len(world.mart.decisions(kind="retrain")) == 4


def test_without_the_schedules_request_drift_asks_at_once(world: MemoryPlatform) -> None:
    assert asked(world, AS_OF, "a").decision.accepted


# --- the breaker -----------------------------------------------------------------------------------------------------


def test_a_person_is_called_once_per_halt(world: MemoryPlatform) -> None:
    for days in (-16, -8):
        gate(world, after(days), "refused" if days == -16 else "cannot_decide")
    first = asked(world, AS_OF, "a")
    assert (first.page, first.decision.accepted) == (True, False)
    assert ask(world, spec(), AS_OF, "a") == first, "a cleared task of that run fails again"
    again = ask(world, spec(), AS_OF, "b")
    assert not again.page, "another run of the same date skips"
    assert not asked(world, after(1), "c").page
    assert ledger(world) == [("a", "halted"), ("b", "halted"), ("c", "halted")]
    assert ask(world, spec(), AS_OF, "a") == first

    tried = asked(world, after(12), "try")
    assert tried.decision.accepted, "half-open: 20 days after the last loss"
    gate(world, after(12), "refused")
    second = asked(world, after(30), "d")
    assert second.page, "the try lost: called again"
    assert not asked(world, after(31), "e").page
    gate(world, after(31), "accepted")
    assert asked(world, after(32), "f").decision.accepted, "a winner closes it"
    for days in (33, 34):
        gate(world, after(days), "refused")
    assert asked(world, after(46), "g").page


def test_a_request_of_the_schedule_is_no_try(world: MemoryPlatform) -> None:
    for days in (-30, -25):
        gate(world, after(days), "refused")
    request_on_schedule(world, spec(), after(-10), "request")
    answer = asked(world, AS_OF, "a").decision
    assert answer.accepted
    assert answer.evidence["breaker"] == "half_open"


def test_no_page_when_another_rule_refuses_too(world: MemoryPlatform) -> None:
    request_on_schedule(world, spec(), after(-1), "request")
    for days in (-16, -8):
        gate(world, after(days), "refused")
    answer = asked(world, AS_OF, "a")
    assert not answer.page
    assert ledger(world)[-1] == ("a", "refused")
    assert asked(world, after(6), "b").page, "and the first that is halted calls"


def halted(world: MemoryPlatform) -> list[Alert]:
    for days in (-16, -8):
        gate(world, after(days), "refused")
    asked(world, AS_OF, "a")
    return Inbox(world.mart).open("late_order")


def test_a_halt_calls_a_person_once(world: MemoryPlatform) -> None:
    (alert,) = halted(world)
    assert (alert.kind, alert.as_of, alert.seen) == ("retrain_halted", AS_OF, 1)
    assert "2 losing challengers in a row" in alert.what
    asked(world, AS_OF, "a")
    asked(world, after(1), "b")
    assert Inbox(world.mart).open("late_order") == [alert], "neither the retry nor the next date calls again"


def test_the_try_ends_the_call(world: MemoryPlatform) -> None:
    halted(world)
    assert asked(world, after(12), "try").decision.accepted
    (alert,) = Inbox(world.mart).history("late_order")
    assert alert.resolution == f"a retrain was asked for on {after(12)}"


@pytest.mark.parametrize(("accepted", "left"), [(True, 0), (False, 1)])
def test_an_accepted_challenger_ends_the_call(world: MemoryPlatform, accepted: bool, left: int) -> None:
    halted(world)
    close_halt(world, spec(), after(3), {"accepted": accepted})
    assert len(Inbox(world.mart).open("late_order")) == left


def test_a_challenger_of_before_the_halt_ends_nothing(world: MemoryPlatform) -> None:
    halted(world)
    close_halt(world, spec(), after(-1), {"accepted": True})
    assert len(Inbox(world.mart).open("late_order")) == 1


def test_monitors_that_end_together_get_one_yes(world: MemoryPlatform) -> None:
    days = [after(n) for n in range(4)]
    for day in (after(-1), *days):
        judge(world, day)
    barrier, answers = threading.Barrier(len(days)), []

    def run(day: dt.date) -> None:
        barrier.wait()
        answers.append(ask(world, spec(), day, f"monitor-{day}").decision.accepted)

    threads = [threading.Thread(target=run, args=(day,)) for day in days]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [False, False, False, True]
    assert sorted(outcome for _, outcome in ledger(world)) == ["allowed", "refused", "refused", "refused"]


def test_a_training_by_hand_is_in_the_ledger_once_with_who_and_why(tmp_path: Path) -> None:
    platform, spec = memory_platform(tmp_path), examples.model()
    for person in (None, "oncall", "oncall"):
        record_by_hand(platform, spec, examples.FIRST, "run-1", "the desk asks", person)
    [row] = platform.mart.decisions(subject=spec.name)
    assert (row["kind"], row["outcome"], row["actor"], row["reasons"]) == (
        *("training", "started", "oncall"),
        ["the desk asks"],
    )
