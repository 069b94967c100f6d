"""The steps of `rollback`: plan, withdraw the champion, re-score what it scored, complete."""

from __future__ import annotations

import datetime as dt
from typing import Any

from include.evergreen.errors import AccountingError, Refused
from include.evergreen.pipeline import scoring
from include.evergreen.platform import Platform
from include.evergreen.specs import ModelSpec, SourceSpec

KIND = "rollback"


def _latest(platform: Platform, model: str) -> dict[str, Any] | None:
    """The champion now: of all, the one in force last."""
    history = platform.mart.champion_history(model)
    return history[-1] if history else None


def _recorded(platform: Platform, model: str, run_id: str) -> dict[str, Any] | None:
    """What this run has decided already."""
    return next((row for row in platform.mart.decisions(model, KIND) if row["run_id"] == run_id), None)


def _scored_by(platform: Platform, plan: dict[str, Any]) -> dict[str, int]:
    """Partitions that analysts see as the withdrawn version scored them since it is in force: {date: rows}."""
    since = dt.date.fromisoformat(plan["effective_from"])
    return {
        row["as_of"].isoformat(): row["rows"]
        for row in platform.mart.scorings(plan["model"])
        if row["is_current"] and row["version"] == plan["withdrawn"] and row["as_of"] >= since
    }


def plan(platform: Platform, spec: ModelSpec, version: int, run_id: str) -> dict[str, Any]:
    """What going back to `version` means. Changes nothing; a run that has decided gets its recorded plan.

    Returns:
        {model, version, withdrawn, effective_from, partitions, rows}: `withdrawn` is champion since `effective_from`,
        `partitions` are the dates to re-score, with `rows` in all.

    Raises:
        NotFound: a version that the registry does not hold. ChecksumMismatch: its bytes have changed.
        Refused: it never was champion, it is the champion now, or it needs features that are gone.
    """
    recorded = _recorded(platform, spec.name, run_id)
    if recorded is not None:
        found: dict[str, Any] = recorded["evidence"]
        return found
    bundle = platform.registry.load(spec.name, version)
    promoted = sorted(
        {
            row["evidence"]["version"]
            for row in platform.mart.decisions(spec.name, "promotion")
            if row["outcome"] == "promoted"
        }
    )
    champion = _latest(platform, spec.name)
    if version not in promoted or champion is None:
        raise Refused(
            f"{spec.name}: expected a version that was champion, one of {promoted or 'none yet'}, found {version}"
        )
    if champion["version"] == version:
        raise Refused(
            f"{spec.name}: expected another version than the champion, found {version}, champion since "
            f"{champion['effective_from']}"
        )
    gone = [name for name in bundle.features if name not in spec.features]
    if gone:
        raise Refused(f"{spec.name} version {version}: expected its features in features.sql, found none named {gone}")
    made = {
        "model": spec.name,
        "version": version,
        "withdrawn": champion["version"],
        "effective_from": champion["effective_from"].isoformat(),
    }
    scored = _scored_by(platform, made)
    return {**made, "partitions": list(scored), "rows": sum(scored.values())}


def withdraw(
    platform: Platform,
    spec: ModelSpec,
    plan: dict[str, Any],
    run_id: str,
    actor: str,
    reason: str | None,
    dry_run: bool = True,
) -> dict[str, Any]:
    """Put the plan's version in force in place of the withdrawn one: the ledger, the mart's history, the aliases.

    A dry run writes the ledger only. A retry goes on with what its run has recorded.

    Returns:
        {outcome, partitions}: `rolled_back` with the dates to re-score, `dry_run` with none.

    Raises:
        Refused: no reason given; the champion changed since the plan; a later rollback overruled this run's.
        Unavailable.
    """
    if not (dry_run or reason):
        raise Refused(f"{spec.name}: expected the param reason: a rollback says why, found none")
    effective_from = dt.date.fromisoformat(plan["effective_from"])
    version, withdrawn = plan["version"], plan["withdrawn"]
    mart = platform.mart
    with mart.lock(f"champion-{spec.name}"):
        recorded = _recorded(platform, spec.name, run_id)
        if recorded is None:
            champion = _latest(platform, spec.name) or {}
            if (champion.get("version"), champion.get("effective_from")) != (withdrawn, effective_from):
                raise Refused(
                    f"{spec.name}: expected version {withdrawn}, champion since {effective_from}, found version "
                    f"{champion.get('version')} since {champion.get('effective_from')}: clear `plan`"
                )
            recorded = mart.append_decision(
                kind=KIND,
                subject=spec.name,
                as_of=effective_from,
                outcome="dry_run" if dry_run else "rolled_back",
                reasons=[reason or "dry run"],
                evidence=plan,
                actor=actor,
                run_id=run_id,
            )
        if recorded["outcome"] == "dry_run":
            return {"outcome": "dry_run", "partitions": []}
        _not_overruled(platform, spec, recorded, plan)
        with mart.lock(spec.name):  # a scoring is published before, and found below, or after, by another version
            mart.promote(
                model=spec.name,
                version=version,
                effective_from=effective_from,
                metrics={"rollback_from": withdrawn},
                run_id=run_id,
            )
        latest = _latest(platform, spec.name)
        # a champion that was promoted since a try that broke off keeps its alias
        if latest is not None and latest["version"] == version:
            platform.registry.set_alias(spec.name, version, "champion")
            platform.registry.set_alias(spec.name, withdrawn, "withdrawn")
    # dates that the withdrawn version scored after the plan are re-scored too
    return {"outcome": "rolled_back", "partitions": sorted({*plan["partitions"], *_scored_by(platform, plan)})}


def _not_overruled(platform: Platform, spec: ModelSpec, recorded: dict[str, Any], plan: dict[str, Any]) -> None:
    """A run cleared long after does not undo what was decided since. Raises Refused."""
    later = [
        row
        for row in platform.mart.decisions(spec.name, KIND)
        if row["id"] > recorded["id"] and row["outcome"] == "rolled_back"
    ]
    since = plan["effective_from"]
    history = platform.mart.champion_history(spec.name)
    mine = next((row["version"] for row in history if row["effective_from"].isoformat() == since), None)
    if later or mine not in (plan["withdrawn"], plan["version"]):
        raise Refused(
            f"{spec.name}: expected version {plan['withdrawn']} or {plan['version']} from {since} on, found version "
            f"{mine} and {len(later)} later rollback(s): start a new run"
        )


def rescore(
    platform: Platform, spec: ModelSpec, source: SourceSpec, as_of: dt.date, version: int, run_id: str
) -> dict[str, Any]:
    """Score one partition with `version` and make it current; earlier scorings stay in the history. Idempotent.

    Returns and raises as `scoring.publish` and `scoring.predict`.
    """
    staged = scoring.predict(platform, spec, source, as_of, run_id, version)
    recorded = _recorded(platform, spec.name, run_id)
    reason = f"rollback: {'; '.join(recorded['reasons'])}" if recorded else None
    return scoring.publish(platform, spec, source, as_of, staged, run_id, replace=True, reason=reason)


def complete(platform: Platform, spec: ModelSpec, plan: dict[str, Any], run_id: str) -> dict[str, Any]:
    """Check that analysts see no scoring of the withdrawn version in the plan's range.

    Returns:
        {model, version, withdrawn, outcome, rescored}: `rescored` counts partitions. A dry run checks nothing.

    Raises:
        AccountingError: names the dates that are left, or this run has recorded nothing.
    """
    recorded = _recorded(platform, spec.name, run_id)
    if recorded is None:
        raise AccountingError(f"{spec.name}: expected a rollback of the run {run_id} in the ledger, found none")
    summary = {name: plan[name] for name in ("model", "version", "withdrawn")} | {"outcome": recorded["outcome"]}
    if recorded["outcome"] == "dry_run":
        return {**summary, "rescored": 0}
    left = list(_scored_by(platform, plan))
    if left:
        raise AccountingError(
            f"{spec.name}: expected no current scoring by version {plan['withdrawn']} since {plan['effective_from']}, "
            f"found {', '.join(left)}: clear `withdraw` and what follows"
        )
    since = dt.date.fromisoformat(plan["effective_from"])
    rescored = [
        row
        for row in platform.mart.scorings(spec.name)
        if row["is_current"] and row["version"] == plan["version"] and row["as_of"] >= since
    ]
    return {**summary, "rescored": len(rescored)}
