"""The steps of `train__<model>`: build, check leaks, fit, evaluate, decide, register, promote.

Each takes and returns small JSON-able dicts; rows and models are staged under `staging/train/` between steps.
"""

from __future__ import annotations

import datetime as dt
from typing import Any

from include.evergreen.decisions import Decision
from include.evergreen.errors import NotEnoughData, Refused
from include.evergreen.pipeline import holdout, staging, training_rows
from include.evergreen.platform import Platform
from include.evergreen.specs import ModelSpec
from include.evergreen.training.bundle import manifest_sha256


def _window(spec: ModelSpec, as_of: dt.date, window_days: int | None) -> tuple[dt.date, dt.date]:
    first = as_of - dt.timedelta(days=window_days or spec.training.window_days)
    return max(first, spec.start_date), as_of - dt.timedelta(days=1)


def build(
    platform: Platform, spec: ModelSpec, as_of: dt.date, key: str, reason: str, window_days: int | None = None
) -> dict[str, Any]:
    """Stage the labelled rows known at midnight of `as_of`, and those of the frozen holdout; pin the snapshots they
    were read from.

    Returns:
        {reason, rows_key, rows, rows_sha256, windows, since, until, snapshots, frozen}; `windows`: see
        `training_rows.stage`; `frozen` is {rows_key, rows, days, snapshots, cut, every_days}, or null without a
        holdout. Raises NotEnoughData.
    """
    from include.evergreen.features.build import input_tables

    snapshots: dict[str, int] = {}
    for table in input_tables(spec):
        snapshot = platform.lake.snapshot(table)
        if snapshot is None:
            raise NotEnoughData(f"{spec.name}: expected the table {table}, found none. Load its source's history first")
        platform.lake.tag(table, snapshot, f"train-{key}")
        snapshots[table] = snapshot
    since, until = _window(spec, as_of, window_days)
    stage = f"staging/train/{spec.name}/{key}"
    windows = training_rows.windows(platform, spec, since, until)
    staged = training_rows.stage(platform, spec, as_of, snapshots, stage, windows)
    if staged["rows"] < spec.training.min_rows:
        raise NotEnoughData(
            f"{spec.name} as of {as_of}: expected at least {spec.training.min_rows} labelled rows "
            f"from {since} to {until}, found {staged['rows']}"
        )
    _, champion = _champion(platform, spec)
    frozen = holdout.pin(platform, spec, as_of, key, snapshots, since, champion)
    if frozen is not None:
        if staged["windows"] is None and holdout.covered(frozen, snapshots, since, as_of):
            kept = holdout.among(staging.get(platform, staged["rows_key"]), frozen)
        else:
            kept = holdout.rows(platform, spec, frozen, by_day=len(windows) > 1)
        frozen |= {"rows_key": staging.put(platform, f"{stage}/frozen.parquet", kept), "rows": kept.num_rows}
    return {
        "reason": reason,
        **staged,
        "frozen": frozen,
        "since": since.isoformat(),
        "until": until.isoformat(),
        "snapshots": {table: str(snapshot) for table, snapshot in snapshots.items()},
    }


def _champion(platform: Platform, spec: ModelSpec) -> tuple[int | None, Any]:
    """The champion's version and bundle; (None, None) before the first."""
    champion = platform.registry.champion(spec.name)
    if champion is None:
        return None, None
    return champion.number, platform.registry.load(spec.name, champion.number)


def check_leaks(platform: Platform, spec: ModelSpec, as_of: dt.date, built: dict[str, Any]) -> dict[str, Any]:
    """Run the leak check on dates spread over the window. Returns {rows, dates}. Raises LeakDetected."""
    from include.evergreen.features.build import check_leaks as check

    since, until = dt.date.fromisoformat(built["since"]), dt.date.fromisoformat(built["until"])
    span = (until - since).days
    count = spec.training.leak_check_dates
    dates = sorted({since + dt.timedelta(days=span * (i + 1) // (count + 1)) for i in range(count)})
    return {"rows": check(platform.lake, spec, dates), "dates": [day.isoformat() for day in dates]}


def fit(
    platform: Platform,
    spec: ModelSpec,
    as_of: dt.date,
    key: str,
    built: dict[str, Any],
    overrides: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Train the challenger and stage its bundle.

    Returns {prefix, sha256, bundle_sha256, overrides, metrics, trees}. Raises NotEnoughData; with `compute: dask`
    Unavailable, SettingsError.
    """
    stage = f"staging/train/{spec.name}/{key}"
    bundle = training_rows.fit(platform, spec, built["rows_key"], as_of, overrides, stage)
    prefix = f"{stage}/bundle"
    files = bundle.files()
    for name, data in files.items():
        platform.objects.put(f"{prefix}/{name}", data)
    return {
        "overrides": overrides or {},
        "prefix": prefix,
        "sha256": bundle.sha256,
        "bundle_sha256": manifest_sha256(files),
        "metrics": bundle.facts["metrics"],
        "trees": bundle.facts["trees"],
    }


def _bundle(platform: Platform, fitted: dict[str, Any]) -> Any:
    """The staged bundle. Raises ChecksumMismatch: it is not the one that `fit` staged."""
    from include.evergreen.training.bundle import FILES, ModelBundle

    files = {name: platform.objects.get(f"{fitted['prefix']}/{name}") for name in FILES}
    return ModelBundle.from_files(files, fitted["bundle_sha256"])


def decide(
    platform: Platform,
    spec: ModelSpec,
    as_of: dt.date,
    key: str,
    built: dict[str, Any],
    fitted: dict[str, Any],
    leaks: dict[str, Any],
    actor: str = "gate",
) -> dict[str, Any]:
    """Measure challenger, champion and baseline on the same rows, decide, write the ledger.

    Returns:
        {accepted, outcome, reasons, evidence}. A retry of the same training returns the recorded decision.
    """
    from include.evergreen.promotion.evaluate import evaluate, trained_until
    from include.evergreen.promotion.gate import gate

    number, champion = _champion(platform, spec)
    challenger = _bundle(platform, fitted)
    frozen = built["frozen"]
    rows, train = training_rows.compared(platform, spec, built["rows_key"], trained_until(challenger))
    facts = evaluate(
        spec,
        rows,
        challenger,
        champion,
        number,
        leaks["rows"],
        staging.get(platform, frozen["rows_key"]) if frozen else None,
        frozen,
        _broken(platform, spec, trained_until(challenger), as_of),
        train,
    )
    decision: Decision = gate(facts, spec.gate)
    recorded = platform.mart.append_decision(
        kind="gate",
        subject=spec.name,
        as_of=as_of,
        outcome=decision.outcome,
        reasons=list(decision.reasons),
        evidence={**decision.evidence, "challenger_sha256": fitted["sha256"], "rows_from": built},
        actor=actor,
        run_id=key,
    )
    return {
        "accepted": recorded["outcome"] == "accepted",
        "outcome": recorded["outcome"],
        "reasons": list(recorded["reasons"]),
        "evidence": recorded["evidence"],
    }


def _broken(platform: Platform, spec: ModelSpec, after: dt.date, as_of: dt.date) -> list[str]:
    """One sentence per date among the fresh days whose standing verdict is broken data: labels of a broken day may be
    as wrong as its features."""
    return [
        f"the data of {row['as_of']} is broken ({row['reasons'][0]}): repair it, and monitor that date again"
        for row in reversed(platform.mart.monitorings(spec.name, until=as_of))
        if row["as_of"] > after and row["verdict"] == "broken_data"
    ]


def register(
    platform: Platform,
    spec: ModelSpec,
    as_of: dt.date,
    key: str,
    built: dict[str, Any],
    fitted: dict[str, Any],
    decided: dict[str, Any],
) -> dict[str, Any]:
    """Register the version with everything that made it, and attach its model card.

    Returns {version, accepted, model}.
    """
    from include.evergreen.promotion.ports import TrainingRecord
    from include.evergreen.training.lineage import code_version, library_versions

    bundle = _bundle(platform, fitted)
    evidence = decided["evidence"]
    metrics = {
        f"{who}_{name}": found["value"]
        for who in ("challenger", "champion", "baseline")
        for name, found in (evidence["fresh"][who] or {}).items()
        if found["value"] is not None
    }
    record = TrainingRecord(
        key=key,
        params={
            **{f"xgboost.{name}": value for name, value in bundle.facts["params"].items()},
            "as_of": as_of.isoformat(),
            "window": f"{built['since']}..{built['until']}",
            "trees": bundle.facts["trees"],
            "seed": spec.training.seed,
        },
        metrics={
            **metrics,
            **{f"validation_{name}": value for name, value in bundle.facts["metrics"]["validation"].items()},
            "ms_per_1k": evidence["ms_per_1k"] or 0.0,
            "model_mb": evidence["model_mb"],
        },
        lineage={
            "as_of": as_of.isoformat(),
            "since": built["since"],
            "until": built["until"],
            "snapshots": built["snapshots"],
            "rows_sha256": built["rows_sha256"],
            "windows": built["windows"],
            "compute": bundle.facts["compute"],
            "overrides": fitted["overrides"],
            "frozen": built["frozen"],
            "spec_sha256": spec.hash,
            "spec": spec.model_dump(mode="json"),
            "code": code_version(),
            "libraries": library_versions(),
            "reason": built["reason"],
            "decision": decided["outcome"],
            "decision_reasons": decided["reasons"],
        },
        importances=bundle.facts["importances"],
    )
    with platform.mart.lock(f"register-{spec.name}"):  # an orphaned task beside its retry makes one version, not two
        version = platform.registry.register(bundle, record)
    if not decided["accepted"]:
        platform.registry.set_alias(spec.name, version.number, "challenger")
    _attach_card(platform, spec, version.number, bundle, decided, record.lineage, built)
    return {"version": version.number, "accepted": decided["accepted"], "model": spec.name}


def _attach_card(
    platform: Platform,
    spec: ModelSpec,
    version: int,
    bundle: Any,
    decided: dict[str, Any],
    lineage: dict[str, Any],
    built: dict[str, Any],
) -> None:
    import json

    from include.evergreen.promotion.card import card, page, shap_importance

    with training_rows.local(platform, built["rows_key"]) as rows:
        shap = shap_importance(bundle, rows)
    found = card(spec, version, bundle, decided, lineage, shap)
    content = json.dumps(found, indent=1, sort_keys=True).encode()
    platform.registry.attach(spec.name, version, "card.json", content, "application/json")
    platform.registry.attach(spec.name, version, "card.html", page(found), "text/html; charset=utf-8")


def promote(
    platform: Platform,
    spec: ModelSpec,
    as_of: dt.date,
    key: str,
    registered: dict[str, Any],
    decided: dict[str, Any],
) -> dict[str, Any]:
    """`put_in_force`, one at a time and never beside a rollback."""
    with platform.mart.lock(f"champion-{spec.name}"):
        return put_in_force(platform, spec, as_of, key, registered, decided)


def put_in_force(
    platform: Platform,
    spec: ModelSpec,
    as_of: dt.date,
    key: str,
    registered: dict[str, Any],
    decided: dict[str, Any],
    effective_from: dt.date | None = None,
    actor: str = "gate",
) -> dict[str, Any]:
    """Make an accepted version champion: the ledger first, then the mart's history, then the alias. For the holder of
    the lock `champion-<model>`.

    It is in force for as-of dates after the one it was trained as of (that one is already scored), and for that one
    too when it is the first champion. A promotion that a rollback or a later promotion has overruled stays so: it is
    returned as recorded, and moves nothing. Returns {version, effective_from}. Raises Refused: the gate said no.
    """
    if not decided["accepted"]:
        raise Refused(f"{spec.name} version {registered['version']}: {'; '.join(decided['reasons'])}")
    version = registered["version"]
    evidence = decided["evidence"]
    overruled = _overruled(platform, spec, key)
    if overruled is not None:
        return {name: overruled[name] for name in ("version", "effective_from")}
    former = platform.mart.champion_at(spec.name, as_of)
    mine = next((c for c in platform.mart.champion_history(spec.name) if c["version"] == version), None)
    if mine is not None:
        effective_from = mine["effective_from"]
    elif effective_from is None:
        effective_from = as_of if former is None else as_of + dt.timedelta(days=1)
    platform.mart.append_decision(
        kind="promotion",
        subject=spec.name,
        as_of=as_of,
        outcome="promoted",
        reasons=decided["reasons"],
        evidence={
            "version": version,
            "former_version": evidence.get("champion_version"),
            "effective_from": effective_from.isoformat(),
        },
        actor=actor,
        run_id=key,
    )
    platform.mart.promote(
        model=spec.name,
        version=version,
        effective_from=effective_from,
        metrics={**evidence["fresh"], "metric": evidence["metric"]},
        run_id=key,
    )
    latest = max(platform.mart.champion_history(spec.name), key=lambda champion: champion["effective_from"])
    if latest["version"] == version:  # a training of the past makes no champion of today
        platform.registry.set_alias(spec.name, version, "champion")
    return {"version": version, "effective_from": effective_from.isoformat()}


def _overruled(platform: Platform, spec: ModelSpec, key: str) -> dict[str, Any] | None:
    """The promotion that a run has recorded, if its version was withdrawn since, or another has its date now."""
    promotions = platform.mart.decisions(subject=spec.name, kind="promotion")
    mine = next((row for row in promotions if row["run_id"] == key), None)
    if mine is None:
        return None
    found: dict[str, Any] = mine["evidence"]
    later = [row["evidence"] for row in promotions if row["id"] > mine["id"]]
    replaced = any(other["effective_from"] == found["effective_from"] for other in later)
    withdrawn = any(
        row["outcome"] == "rolled_back" and row["evidence"]["withdrawn"] == found["version"]
        for row in platform.mart.decisions(subject=spec.name, kind="rollback")
    )
    return found if replaced or withdrawn else None
