"""The retrain governor: pure, from a model's verdicts, its earlier requests and what became of its challengers.

Everything is dates, not arrivals: a backfill may ask for an earlier date at any time and no rule is broken by it.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from include.evergreen.decisions import Decision
from include.evergreen.drift.verdict import BREACHES, GRAVITY
from include.evergreen.specs import Retrain


@dataclass(frozen=True)
class Window:
    """The verdict on one as-of date."""

    as_of: dt.date
    kind: str


@dataclass(frozen=True)
class Request:
    """An allowed request. `drift` is its fingerprint; None when the schedule asked."""

    as_of: dt.date
    drift: str | None = None


@dataclass(frozen=True)
class Outcome:
    """What the gate said of a challenger; `order` is its place among those of one date."""

    as_of: dt.date
    order: int
    accepted: bool


@dataclass(frozen=True)
class Breaker:
    """The circuit breaker.

    Attributes:
        losers: losing challengers in a row, the latest dates first.
        last_loss: as-of date of the last of them.
        last_try: as-of date of the latest drift request after `last_loss`, whose outcome is not known yet.
        open_until: the first date that may ask; None when the breaker is closed.
    """

    losers: int
    last_loss: dt.date | None
    last_try: dt.date | None
    open_until: dt.date | None

    def state(self, as_of: dt.date) -> Literal["closed", "open", "half_open"]:
        """`half_open`: one try is allowed."""
        if self.open_until is None:
            return "closed"
        return "open" if as_of < self.open_until else "half_open"


def fingerprint(version: int, kind: str, worst: str | None) -> str:
    """What makes two drifts the same: the version that scored, the verdict and the worst guilty column. SHA-256."""
    return hashlib.sha256(json.dumps([version, kind, worst]).encode()).hexdigest()


def breaker(outcomes: Iterable[Outcome], requests: Iterable[Request], policy: Retrain) -> Breaker:
    """The breaker after these outcomes, in any order.

    `policy.losers` losing challengers in a row open it until `policy.breaker_days` after the last loss; then one try is
    allowed, and another `breaker_days` after that try if nothing became of it. An accepted challenger closes it.
    """
    losses: list[dt.date] = []
    for outcome in sorted(outcomes, key=lambda outcome: (outcome.as_of, outcome.order), reverse=True):
        if outcome.accepted:
            break
        losses.append(outcome.as_of)
    last_loss = losses[0] if losses else None
    tries = [r.as_of for r in requests if r.drift is not None and last_loss is not None and r.as_of > last_loss]
    last_try = max(tries, default=None)
    latest = last_try or last_loss
    opened = latest is not None and len(losses) >= policy.losers
    until = latest + dt.timedelta(days=policy.breaker_days) if opened and latest is not None else None
    return Breaker(len(losses), last_loss, last_try, until)


def govern(
    as_of: dt.date,
    history: Iterable[Window],
    requests: Sequence[Request],
    outcomes: Iterable[Outcome],
    drift: str | None,
    policy: Retrain,
    fresh_days: int = 0,
) -> Decision:
    """Should `as_of` ask for a retrain?

    Yes when the verdict of `as_of` is a breach, at least `policy.breaches` of the last `policy.windows` verdicts are,
    no request lies within `policy.cooldown_days`, none for the same drift within `policy.same_drift_days`, no window
    of `policy.budget_days` days would hold more than `policy.budget` requests, the breaker is not open, and no date of
    the gate's fresh days stands as broken data: the gate could not decide, and what dropped may be those labels. Later
    requests and outcomes count too, later verdicts do not.

    Args:
        history: verdicts of the model, in any order; of two for one date the gravest counts.
        requests: those allowed so far, in any order; those of the schedule count for cooldown and budget.
        outcomes: what the gate said of every challenger, in any order.
        drift: fingerprint of the drift of `as_of`.
        fresh_days: days before `as_of` on which the gate would compare.

    Returns:
        The decision with every reason; `evidence["halted"]` when the breaker alone stood in the way.
    """
    verdicts: dict[dt.date, str] = {}
    for window in history:
        if window.as_of <= as_of:
            verdicts[window.as_of] = max(verdicts.get(window.as_of, "ok"), window.kind, key=_gravity)
    last = sorted(verdicts)[-policy.windows :]
    breached = [day for day in last if verdicts[day] in BREACHES]
    count = f"{len(breached)} of the last {len(last)} windows breached, {policy.breaches} of {policy.windows} needed"
    asked = sorted(request.as_of for request in requests)
    nearest = _nearest(asked, as_of)
    same = _nearest([request.as_of for request in requests if drift is not None and request.drift == drift], as_of)
    spent = _spent(asked, as_of, policy.budget_days)
    fuse = breaker(outcomes, requests, policy)
    state = fuse.state(as_of)

    fresh = as_of - dt.timedelta(days=fresh_days)
    broken = [day for day in sorted(verdicts) if fresh <= day < as_of and verdicts[day] == "broken_data"]

    refusals = [
        *_verdict_refusals(verdicts.get(as_of), as_of),
        *([_unjudged(broken, fresh_days)] if broken else []),
        *([count] if len(breached) < policy.breaches else []),
        *_distance_refusals(as_of, nearest, same, policy),
    ]
    if len(spent) >= policy.budget:
        refusals.append(
            f"budget: {len(spent)} request(s) within {policy.budget_days} days, {spent[0]} to {spent[-1]}, "
            f"{policy.budget} allowed"
        )
    halted = state == "open" and not refusals
    if state == "open":
        tried = f", the try of {fuse.last_try} has no outcome yet" if fuse.last_try else ""
        refusals.append(
            f"halted: {fuse.losers} losing challengers in a row, the last of {fuse.last_loss}{tried}; "
            f"no request before {fuse.open_until}"
        )
    evidence = {
        "fingerprint": drift,
        "windows": {day.isoformat(): verdicts[day] for day in last},
        "broken_fresh_days": [day.isoformat() for day in broken],
        "nearest_request": nearest.isoformat() if nearest else None,
        "nearest_same_drift": same.isoformat() if same else None,
        "requests_in_budget_window": [day.isoformat() for day in spent],
        "losers_in_a_row": fuse.losers,
        "breaker": state,
        "halted": halted,
        "policy": policy.model_dump(mode="json"),
    }
    if refusals:
        return Decision(False, tuple(refusals), evidence)
    reasons = [
        f"{as_of} is {verdicts[as_of]}: {count}",
        "no request within the cooldown",
        f"request {len(spent) + 1} of {policy.budget} within {policy.budget_days} days",
    ]
    if state == "half_open":
        reasons.append(f"one try after {fuse.losers} losing challengers in a row, the last of {fuse.last_loss}")
    return Decision(True, tuple(reasons), evidence)


def ledger_outcome(decision: Decision) -> Literal["allowed", "refused", "halted"]:
    """The answer as the ledger holds it; `halted` when the breaker alone stood in the way."""
    if decision.accepted:
        return "allowed"
    return "halted" if decision.evidence["halted"] else "refused"


def _gravity(kind: str) -> int:
    """A kind that nobody knows outranks all: it cannot retrain."""
    order: tuple[str, ...] = GRAVITY
    return order.index(kind) if kind in order else len(order)


def _nearest(days: Iterable[dt.date], as_of: dt.date) -> dt.date | None:
    return min(days, key=lambda day: (abs(day - as_of), day), default=None)


def _spent(asked: Sequence[dt.date], as_of: dt.date, days: int) -> list[dt.date]:
    """The requests of the fullest window of `days` days that holds `as_of`, oldest first."""
    length = dt.timedelta(days=days)
    starts = [day for day in asked if as_of - length < day <= as_of] + [as_of]
    windows = [[day for day in asked if start <= day < start + length] for start in starts]
    return max(windows, key=len)


def _verdict_refusals(latest: str | None, as_of: dt.date) -> list[str]:
    if latest is None:
        return [f"no verdict for {as_of}"]
    if latest == "broken_data":
        return [f"the data of {as_of} is broken: repair it first, broken data never retrains a model"]
    return [] if latest in BREACHES else [f"the latest verdict, {as_of}, is {latest}"]


def _unjudged(broken: Sequence[dt.date], fresh_days: int) -> str:
    return (
        f"{len(broken)} of the last {fresh_days} days stand as broken data, the last {broken[-1]}: the gate could not "
        "decide; repair and monitor them again"
    )


def _distance_refusals(as_of: dt.date, nearest: dt.date | None, same: dt.date | None, policy: Retrain) -> list[str]:
    refusals = []
    if nearest == as_of:
        refusals.append(f"{as_of} has asked already")
    elif nearest is not None and abs(nearest - as_of).days < policy.cooldown_days:
        away = abs(nearest - as_of).days
        refusals.append(f"cooldown: {nearest} asked {away} day(s) away, {policy.cooldown_days} needed")
    if same is not None and abs(same - as_of).days < policy.same_drift_days:
        away = abs(same - as_of).days
        refusals.append(f"same drift: {same} asked for it {away} day(s) away, {policy.same_drift_days} needed")
    return refusals
