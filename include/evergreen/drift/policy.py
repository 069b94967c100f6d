"""The retrain policy: pure, from the verdicts and earlier requests of a model."""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from include.evergreen.decisions import Decision
from include.evergreen.drift.verdict import GRAVITY, Kind
from include.evergreen.specs import Retrain

BREACHES: frozenset[Kind] = frozenset({"drift", "performance_drop"})


@dataclass(frozen=True)
class Window:
    """The verdict on one as-of date."""

    as_of: dt.date
    kind: Kind


def retrain(history: Sequence[Window], asked: Collection[dt.date], as_of: dt.date, policy: Retrain) -> Decision:
    """Should `as_of` ask for a retrain?

    Yes when the verdict of `as_of` is a breach, at least `policy.breaches` of the last `policy.windows` verdicts are,
    and no request was allowed within `policy.cooldown_days`. Windows are dates, not arrivals: `history` may come in any
    order, verdicts after `as_of` are ignored, and a later date's request (a backfill) counts for the cooldown too.

    Args:
        history: verdicts of the model; of two for one date the gravest counts.
        asked: as-of dates of the requests allowed so far.
    """
    verdicts: dict[dt.date, Kind] = {}
    for window in history:
        if window.as_of <= as_of:
            known = verdicts.get(window.as_of, "ok")
            verdicts[window.as_of] = max(known, window.kind, key=GRAVITY.index)
    last = sorted(verdicts)[-policy.windows :]
    breached = [day for day in last if verdicts[day] in BREACHES]
    latest = verdicts.get(as_of)
    nearest = min(asked, key=lambda day: (abs(day - as_of), day), default=None)

    refusals = []
    if latest is None:
        refusals.append(f"no verdict for {as_of}")
    elif latest == "broken_data":
        refusals.append(f"the data of {as_of} is broken: repair it first, broken data never retrains a model")
    elif latest not in BREACHES:
        refusals.append(f"the latest verdict, {as_of}, is {latest}")
    count = f"{len(breached)} of the last {len(last)} windows breached, {policy.breaches} of {policy.windows} needed"
    if len(breached) < policy.breaches:
        refusals.append(count)
    if as_of in asked:
        refusals.append(f"{as_of} has asked already")
    elif nearest is not None and abs(nearest - as_of).days < policy.cooldown_days:
        away = abs(nearest - as_of).days
        refusals.append(f"cooldown: {nearest} asked {away} day(s) away, {policy.cooldown_days} needed")
    evidence = {
        "windows": {day.isoformat(): verdicts[day] for day in last},
        "nearest_request": nearest.isoformat() if nearest else None,
        "policy": policy.model_dump(mode="json"),
    }
    if refusals:
        return Decision(False, tuple(refusals), evidence)
    return Decision(True, (f"{as_of} is {latest}: {count}", "no request within the cooldown"), evidence)
