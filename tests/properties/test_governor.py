"""What holds of the governor for any verdicts, dates in any order, gate outcomes, schedules and monitors at once."""

from __future__ import annotations

import datetime as dt
import itertools
import random
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from include.evergreen.drift.governor import Outcome, Request, Window, fingerprint, govern
from include.evergreen.pipeline.retraining import Asked, ask, request_on_schedule
from include.evergreen.specs import ModelSpec, Retrain
from tests import examples
from tests.support import MemoryPlatform, memory_platform

DAYS = st.integers(0, 40).map(lambda n: dt.date(2013, 12, 1) + dt.timedelta(days=n))
DRIFTS = ["covariate_drift", "prediction_drift", "label_drift", "performance_drop"]
KINDS = st.sampled_from([*DRIFTS * 2, "broken_data", "ok", "nobody knows this kind"])
COLUMNS = st.sampled_from(["distance", "hour", None])
GATES = st.sampled_from(["accepted", "refused", "refused", "cannot_decide"])


@st.composite
def policies(draw: st.DrawFn) -> Retrain:
    windows = draw(st.integers(1, 3))
    return Retrain(
        windows=windows,
        breaches=draw(st.integers(1, windows)),
        cooldown_days=draw(st.integers(0, 6)),
        budget=draw(st.integers(1, 3)),
        budget_days=draw(st.integers(1, 25)),
        same_drift_days=draw(st.integers(0, 15)),
        losers=draw(st.integers(1, 3)),
        breaker_days=draw(st.integers(1, 15)),
    )


@dataclass
class Story:
    """What happened so far, and the rules told a second time, by brute force."""

    policy: Retrain
    fresh_days: int
    verdicts: dict[dt.date, tuple[str, str | None]] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)

    def drift(self, as_of: dt.date) -> str | None:
        return fingerprint(1, *self.verdicts[as_of]) if as_of in self.verdicts else None

    def broken_rules(self, as_of: dt.date) -> set[str]:
        """The rules that a request of `as_of` would break."""
        policy, asked = self.policy, [request.as_of for request in self.requests]
        days = [day for day in sorted(self.verdicts) if day <= as_of][-policy.windows :]
        latest = self.verdicts.get(as_of, ("none", None))[0]
        same = [request.as_of for request in self.requests if request.drift == self.drift(as_of)]
        starts = [as_of - dt.timedelta(days=back) for back in range(policy.budget_days)]
        windows = [sum(0 <= (day - start).days < policy.budget_days for day in asked) for start in starts]
        newest_first = sorted(self.outcomes, key=lambda one: (one.as_of, one.order))[::-1]
        lost = [one.as_of for one in itertools.takewhile(lambda one: not one.accepted, newest_first)]
        stops = [*lost[:1], *(one.as_of for one in self.requests if one.drift and lost and one.as_of > lost[0])]
        rules = {
            "broken data": latest == "broken_data",
            "broken fresh days": any(
                kind == "broken_data" and 0 < (as_of - day).days <= self.fresh_days
                for day, (kind, _) in self.verdicts.items()
            ),
            "latest": latest not in DRIFTS,
            "n of m": sum(self.verdicts[day][0] in DRIFTS for day in days) < policy.breaches,
            "once a date": as_of in asked,
            "cooldown": any(abs((day - as_of).days) < policy.cooldown_days for day in asked),
            "budget": max(windows) + 1 > policy.budget,
            "same drift": any(abs((day - as_of).days) < policy.same_drift_days for day in same),
            "breaker": len(lost) >= policy.losers and (as_of - max(stops)).days < policy.breaker_days,
        }
        return {rule for rule, broken in rules.items() if broken}


@settings(deadline=None, max_examples=300)
@given(policies(), st.data())
def test_yes_exactly_when_no_rule_is_broken(policy: Retrain, data: st.DataObject) -> None:
    story = Story(policy, data.draw(st.integers(0, 8)))
    limits = [story.fresh_days, policy.cooldown_days, policy.budget_days, policy.same_drift_days, policy.breaker_days]
    far = sorted({sign * limit + off for limit in limits for sign in (1, -1) for off in (-1, 0, 1)})
    days: list[dt.date] = []
    for step in range(data.draw(st.integers(4, 25))):
        day = data.draw(DAYS)
        if days and data.draw(st.booleans()):  # at the edge of a rule
            day = data.draw(st.sampled_from(days)) + dt.timedelta(days=data.draw(st.sampled_from(far)))
        days.append(day)
        event = data.draw(st.sampled_from(["ask", "ask", "ask", "gate", "schedule"]))
        if event == "gate":
            story.outcomes.append(Outcome(day, step, data.draw(GATES) == "accepted"))
        elif event == "schedule":
            story.requests.append(Request(day))
        else:
            story.verdicts[day] = (data.draw(KINDS), data.draw(COLUMNS))
            history = [Window(at, kind) for at, (kind, _) in story.verdicts.items()]
            decision = govern(day, history, story.requests, story.outcomes, story.drift(day), policy, story.fresh_days)
            broken = story.broken_rules(day)
            assert decision.accepted is (not broken), (broken, decision.reasons)
            assert decision.evidence["halted"] is (broken == {"breaker"})
            if decision.accepted:
                story.requests.append(Request(day, story.drift(day)))


@given(
    policies(),
    st.dictionaries(DAYS, KINDS, max_size=20),
    st.lists(st.tuples(DAYS, st.sampled_from(["a", "b", None])), max_size=5),
    st.lists(st.tuples(DAYS, st.booleans()), max_size=5),
    DAYS,
    st.randoms(use_true_random=False),
)
def test_the_order_of_arrival_and_later_verdicts_do_not_matter(
    policy: Retrain,
    kinds: dict[dt.date, str],
    asked: list[tuple[dt.date, str | None]],
    gates: list[tuple[dt.date, bool]],
    as_of: dt.date,
    rng: random.Random,
) -> None:
    history = [Window(day, kind) for day, kind in sorted(kinds.items())]
    requests = [Request(day, drift) for day, drift in asked]
    outcomes = [Outcome(day, order, accepted) for order, (day, accepted) in enumerate(gates)]
    known = [window for window in history if window.as_of <= as_of]
    shuffled = [rng.sample(items, len(items)) for items in (history, requests, outcomes)]
    given = govern(as_of, *shuffled, "a", policy, 7)  # type: ignore[arg-type]
    assert given == govern(as_of, known, requests, outcomes, "a", policy, 7)


# --- monitors at once, on a real mart --------------------------------------------------------------------------------


def at_once(calls: list[Callable[[], Asked]]) -> list[Asked]:
    answers: list[Asked] = []
    barrier = threading.Barrier(len(calls))

    def run(call: Callable[[], Asked]) -> None:
        barrier.wait()
        answers.append(call())

    threads = [threading.Thread(target=run, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == len(calls), "a monitor died"
    return answers


class World:
    """A model with its mart; `story` is told from the ledger alone, in the order of its rows."""

    def __init__(self, folder: Path, policy: Retrain) -> None:
        self.spec: ModelSpec = examples.model(retrain=policy.model_dump())
        self.platform: MemoryPlatform = memory_platform(folder)
        self.story = Story(policy, self.spec.training.holdout_days)
        self.runs = itertools.count()
        self.read = 0
        self.paged = False

    def run_id(self) -> str:
        return f"run-{next(self.runs)}"

    def judge(self, day: dt.date, kind: str, worst: str | None) -> None:
        run_id = self.run_id()
        common = {"as_of": day, "reasons": [kind], "run_id": run_id}
        self.platform.mart.record_monitoring(
            model=self.spec.name, version=1, verdict=kind, columns={}, performance={}, report_uri=None, **common
        )
        self.platform.mart.append_decision(
            kind="verdict",
            subject=self.spec.name,
            outcome=kind,
            evidence={"guilty": [worst] if worst else []},
            actor="monitor",
            **common,
        )
        self.story.verdicts[day] = (kind, worst)

    def gate(self, day: dt.date, outcome: str) -> None:
        row = self.platform.mart.append_decision(
            kind="gate",
            subject=self.spec.name,
            as_of=day,
            outcome=outcome,
            reasons=[outcome],
            evidence={},
            actor="gate",
            run_id=self.run_id(),
        )
        self.story.outcomes.append(Outcome(day, row["id"], outcome == "accepted"))
        self.paged = self.paged and outcome != "accepted"

    def schedule(self, day: dt.date) -> None:
        request_on_schedule(self.platform, self.spec, day, self.run_id())
        self.replay()

    def monitor(self, days: list[dt.date]) -> None:
        """All of them end together; the answers must be those of some order of them, one after the other."""
        free = {day for day in days if not self.story.broken_rules(day)}
        asks = {self.run_id(): day for day in days}

        def call(run_id: str, day: dt.date) -> Callable[[], Asked]:
            return lambda: ask(self.platform, self.spec, day, run_id)

        calls = [call(run_id, day) for run_id, day in asks.items()]
        allowed = sum(asked.decision.accepted for asked in at_once(calls))
        before = len(self.story.requests)
        self.replay()
        assert len(self.story.requests) - before == allowed, "every yes is in the ledger once, and no other"
        assert allowed >= bool(free), "a request was lost"
        if len(set(days)) == 1:
            assert allowed == len(free)
        first = {row["run_id"]: row for row in self.rows()}
        for run_id, day in asks.items():
            again = ask(self.platform, self.spec, day, run_id)
            if run_id in first:
                assert again.decision.accepted is (first[run_id]["outcome"] == "allowed"), "a retry answers the same"
                assert again.page is first[run_id]["evidence"]["page"]
        told = len(self.story.requests)
        self.replay()
        assert len(self.story.requests) == told, "a retry asks nothing more"

    def rows(self) -> list[dict[str, Any]]:
        """The retrain decisions as they were recorded."""
        return sorted(self.platform.mart.decisions(kind="retrain"), key=lambda row: row["id"])

    def replay(self) -> None:
        """Check the new rows of the ledger against the rules, each as if it were alone."""
        for row in self.rows():
            if row["id"] <= self.read:
                continue
            self.read = row["id"]
            governed = row["actor"] == "monitor"
            if governed:
                broken = self.story.broken_rules(row["as_of"])
                expected = "halted" if broken == {"breaker"} else "refused" if broken else "allowed"
                assert row["outcome"] == expected, (broken, row["reasons"])
                assert row["evidence"]["page"] is (expected == "halted" and not self.paged), "one page per halt"
                self.paged = expected == "halted" or (self.paged and expected != "allowed")
            if row["outcome"] == "allowed":
                self.story.requests.append(Request(row["as_of"], self.story.drift(row["as_of"]) if governed else None))


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(policies(), st.data())
def test_monitors_that_end_together_ask_as_if_one_by_one(policy: Retrain, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder), policy)
        for _ in range(data.draw(st.integers(2, 6))):
            event = data.draw(st.sampled_from(["monitors", "monitors", "gate", "schedule"]))
            day = data.draw(DAYS)
            if event == "monitors":
                days = [
                    day + dt.timedelta(days=n) for n in data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=3))
                ]
                kind, worst = data.draw(KINDS), data.draw(COLUMNS)
                for one in sorted(set(days)):
                    world.judge(one, kind, worst)
                world.monitor(days)
            elif event == "gate":
                world.gate(day, data.draw(GATES))
            else:
                world.schedule(day)
        world.platform.mart.engine.dispose()
