"""The frozen holdout of a model: days that no version is trained on, pinned by snapshot and recorded in the ledger."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any

from include.evergreen.platform import Platform
from include.evergreen.specs import FrozenHoldout, ModelSpec

if TYPE_CHECKING:
    import pyarrow as pa

    from include.evergreen.training.bundle import ModelBundle


def pinned(platform: Platform, spec: ModelSpec, as_of: dt.date) -> dict[str, Any] | None:
    """The newest pin not after `as_of`, as the ledger has it: {days, snapshots, cut, every_days}."""
    rows = platform.mart.decisions(subject=spec.name, kind="holdout", until=as_of, limit=1)
    return dict(rows[0]["evidence"]) if rows else None


def stale(pin: dict[str, Any] | None, rule: FrozenHoldout, as_of: dt.date, champion: ModelBundle | None) -> str:
    """Why a new holdout is due; empty while the pinned one is in force."""
    from include.evergreen.promotion.evaluate import trained_on

    if pin is None:
        return "the first one"
    age = (as_of - dt.date.fromisoformat(pin["cut"])).days
    if age >= rule.renew_days:
        return f"the last one is {age} days old, {rule.renew_days} allowed"
    if pin["every_days"] != rule.every_days:
        return f"every {rule.every_days} days are kept now, every {pin['every_days']} were"
    if len(pin["days"]) < rule.min_days:
        return f"the last one held {len(pin['days'])} days, {rule.min_days} needed"
    if champion is not None and any(trained_on(champion, dt.date.fromisoformat(day)) for day in pin["days"]):
        return "the champion was trained on the last one"
    return ""


def pin(
    platform: Platform,
    spec: ModelSpec,
    as_of: dt.date,
    key: str,
    snapshots: dict[str, int],
    since: dt.date,
    champion: ModelBundle | None,
) -> dict[str, Any] | None:
    """The holdout in force at `as_of`, renewed when it is due (see `stale`): frozen days from `since` to the fresh
    holdout, without those the champion was trained on. None while there are fewer than `min_days`."""
    from include.evergreen.promotion.evaluate import trained_on

    rule, found = spec.gate.frozen, pinned(platform, spec, as_of)
    why = stale(found, rule, as_of, champion)
    if why:
        span = (as_of - dt.timedelta(days=spec.training.holdout_days) - since).days
        dates = [since + dt.timedelta(days=i) for i in range(max(span, 0))]
        days = [d for d in dates if rule.holds(d) and not (champion is not None and trained_on(champion, d))]
        if len(days) < rule.min_days:
            return None
        for table, snapshot in snapshots.items():
            platform.lake.tag(table, snapshot, f"holdout-{spec.name}-{as_of}")
        recorded = platform.mart.append_decision(
            kind="holdout",
            subject=spec.name,
            as_of=as_of,
            outcome="pinned",
            reasons=[f"{len(days)} frozen days from {days[0]} to {days[-1]}: {why}"],
            evidence={
                "days": [day.isoformat() for day in days],
                "snapshots": {table: str(snapshot) for table, snapshot in snapshots.items()},
                "cut": as_of.isoformat(),
                "every_days": rule.every_days,
            },
            actor="train",
            run_id=key,
        )
        found = dict(recorded["evidence"])
    return found


def covered(holdout: dict[str, Any], snapshots: dict[str, int], since: dt.date, as_of: dt.date) -> bool:
    """Whether rows built from `since` to `as_of` hold those of the pinned days: a holdout that was pinned just now."""
    same: bool = holdout["snapshots"] == {table: str(snapshot) for table, snapshot in snapshots.items()}
    return same and holdout["cut"] == as_of.isoformat() and bool(min(holdout["days"]) >= since.isoformat())


def among(built: pa.Table, holdout: dict[str, Any]) -> pa.Table:
    """Those of labelled rows that are of the pinned days."""
    import pyarrow as pa
    import pyarrow.compute as pc

    days = [dt.date.fromisoformat(day) for day in holdout["days"]]
    return built.filter(pc.is_in(built["as_of"], pa.array(days, pa.date32())))


def rows(platform: Platform, spec: ModelSpec, holdout: dict[str, Any], by_day: bool = False) -> pa.Table:
    """Labelled rows of the pinned days, from the pinned snapshots. Raises NotFound: a snapshot is gone.

    Args:
        by_day: build each day alone, for days that are too much for memory together with those between them.
    """
    import pyarrow as pa

    from include.evergreen.features.build import features, labelled, labels

    days = [dt.date.fromisoformat(day) for day in holdout["days"]]
    snapshots = {table: int(snapshot) for table, snapshot in holdout["snapshots"].items()}
    cut = dt.date.fromisoformat(holdout["cut"])
    found = []
    for since, until in [(day, day) for day in sorted(days)] if by_day else [(min(days), max(days))]:
        built = labelled(
            features(platform.lake, spec, since, until, snapshots=snapshots),
            labels(platform.lake, spec, since, until, cut=cut, snapshots=snapshots),
            spec,
        )
        found.append(among(built, holdout))
    return pa.concat_tables(found)
