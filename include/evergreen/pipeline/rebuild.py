"""The step of `rebuild`: retrain a registered version from its recorded lineage and compare the bytes."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import re
from typing import TYPE_CHECKING, Any

from include.evergreen.errors import ChecksumMismatch, DataError, NotFound
from include.evergreen.pipeline import training_rows
from include.evergreen.platform import Platform
from include.evergreen.specs import ModelSpec

if TYPE_CHECKING:
    from include.evergreen.training.bundle import ModelBundle

KIND = "rebuild"
NEEDED = ("as_of", "since", "until", "snapshots", "spec", "spec_sha256", "rows_sha256")
"""What a version cannot be rebuilt without."""
DASK_TOLERANCE = 0.01
"""Between two trainings on Dask, of the same rows: `DASK_METRICS` over validation and holdout."""
DASK_METRICS = ("auc", "log_loss", "brier")


def rebuild(platform: Platform, model: str, version: int, run_id: str, actor: str) -> dict[str, Any]:
    """Retrain `version` from its lineage; write the ledger. A retry answers what its run has recorded.

    Returns:
        {model, version, equal, expected_sha256, found_sha256, changed}: `changed` has one sentence for every recorded
        input that is another one now. Code and libraries may change and the bytes be equal all the same.

    Raises:
        NotFound: no such version. ChecksumMismatch: the bytes differ; recorded first, with all of `changed`.
        Unavailable.
    """
    recorded = next((row for row in platform.mart.decisions(model, KIND) if row["run_id"] == run_id), None)
    if recorded is None:
        report = _retrain(platform, model, version, run_id)
        recorded = platform.mart.append_decision(
            kind=KIND,
            subject=model,
            as_of=platform.registry.load(model, version).as_of,
            outcome="equal" if report["equal"] else "different",
            reasons=report["changed"] or ["every recorded input is the same"],
            evidence=report,
            actor=actor,
            run_id=run_id,
        )
    found: dict[str, Any] = recorded["evidence"]
    if not found["equal"]:
        raise ChecksumMismatch(
            f"{model} version {found['version']}, model.ubj: expected SHA-256 {found['expected_sha256']}, found "
            f"{found['found_sha256'] or 'nothing to compare'}: {'; '.join(found['changed'])}"
        )
    return found


def _retrain(platform: Platform, model: str, version: int, run_id: str) -> dict[str, Any]:
    """The report of `rebuild`."""
    registered = platform.registry.load(model, version)
    lineage = platform.registry.lineage(model, version)
    changed = _surroundings(lineage)
    bundle = None
    missing = [name for name in NEEDED if lineage.get(name) is None]
    if missing:
        changed.append(f"lineage: expected {', '.join(missing)}, found none recorded")
    else:
        spec = _spec(lineage, changed)
        prefix = f"staging/rebuild/{model}/{version}-{re.sub(r'[^A-Za-z0-9._-]', '_', run_id)}"
        rows_key = _rows(platform, spec, lineage, prefix, changed) if spec else None
        if spec and rows_key is not None:
            bundle = _fit(platform, spec, rows_key, lineage, prefix, changed)
    equal = bundle is not None and bundle.booster == registered.booster
    if bundle is not None and not equal and bundle.facts["compute"]["kind"] == "dask":
        # the order in which workers' sums arrive is not the same twice
        away = _away(bundle, registered)
        equal = away <= DASK_TOLERANCE
        changed.append(f"trained on Dask: expected metrics within {DASK_TOLERANCE}, found them {away:.2g} away")
    if not equal and not changed:
        changed.append("no recorded input differs: look at the machine (processor, threads)")
    return {
        "model": model,
        "version": version,
        "equal": equal,
        "expected_sha256": registered.sha256,
        "found_sha256": bundle.sha256 if bundle else None,
        "changed": changed,
    }


def _surroundings(lineage: dict[str, Any]) -> list[str]:
    """How the recorded code and libraries differ from today's."""
    from include.evergreen.training.lineage import code_version, library_versions

    changed = []
    code = code_version()
    if lineage.get("code") not in (None, code):
        changed.append(f"code: expected {lineage['code']}, found {code}")
    now = library_versions()
    for name, version in sorted((lineage.get("libraries") or {}).items()):
        if now.get(name) != version:
            changed.append(f"library {name}: {version} -> {now.get(name, 'none')}")
    return changed


def _spec(lineage: dict[str, Any], changed: list[str]) -> ModelSpec | None:
    """The recorded spec, None when today's code cannot read it."""
    from pydantic import ValidationError

    # the recorded text is hashed, not the model built from it: a field that the engine gained since is no change
    found = hashlib.sha256(json.dumps(lineage["spec"], sort_keys=True).encode()).hexdigest()
    if found != lineage["spec_sha256"]:
        changed.append(f"spec: expected SHA-256 {lineage['spec_sha256']}, found {found}")
    try:
        return ModelSpec.model_validate(lineage["spec"])
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        changed.append(f"spec: expected one that this code can read, found {where}: {first['msg']}")
        return None


def _rows(platform: Platform, spec: ModelSpec, lineage: dict[str, Any], prefix: str, changed: list[str]) -> str | None:
    """The key of the labelled rows from the recorded snapshots, None when they cannot be made again."""
    import duckdb

    from include.evergreen.features.build import input_tables

    as_of, until = (dt.date.fromisoformat(lineage[name]) for name in ("as_of", "until"))
    snapshots = {table: int(snapshot) for table, snapshot in lineage["snapshots"].items()}
    recorded = lineage.get("windows") or [[lineage["since"], lineage["until"]]]
    windows = [(dt.date.fromisoformat(first), dt.date.fromisoformat(last)) for first, last in recorded]
    try:
        unpinned = sorted(set(input_tables(spec)) - set(snapshots))
        gone = [
            f"snapshot {snapshot} of {table} is gone from the lake"
            for table, snapshot in snapshots.items()
            if not _holds(platform, table, snapshot, until)
        ]
        changed += [*(f"snapshot of {table}: expected one recorded, found none" for table in unpinned), *gone]
        if unpinned or gone:
            return None
        staged = training_rows.stage(platform, spec, as_of, snapshots, prefix, windows)
    except (NotFound, DataError, duckdb.Error) as error:
        changed.append(f"rows: expected them from the recorded snapshots, found {type(error).__name__}: {error}")
        return None
    if staged["rows_sha256"] != lineage["rows_sha256"]:
        changed.append(f"rows differ: expected SHA-256 {lineage['rows_sha256']}, found {staged['rows_sha256']}")
    return str(staged["rows_key"])


def _holds(platform: Platform, table: str, snapshot: int, day: dt.date) -> bool:
    """Whether the lake still holds a snapshot; reads one partition at most."""
    try:
        platform.lake.stream(table, day, day, snapshot=snapshot).close()
    except NotFound:
        return False
    return True


def _fit(
    platform: Platform, spec: ModelSpec, rows_key: str, lineage: dict[str, Any], prefix: str, changed: list[str]
) -> ModelBundle | None:
    """The model that these rows make, None when they make none."""
    as_of = dt.date.fromisoformat(lineage["as_of"])
    try:
        return training_rows.fit(platform, spec, rows_key, as_of, lineage.get("overrides"), prefix)
    except DataError as error:
        changed.append(f"fit: expected a model, found {type(error).__name__}: {error}")
        return None


def _away(found: ModelBundle, registered: ModelBundle) -> float:
    """How far apart `DASK_METRICS` of two trainings are, at most."""
    mine, theirs = found.facts["metrics"]["reference"], registered.facts["metrics"]["reference"]
    return max(abs(float(mine[name]) - float(theirs[name])) for name in DASK_METRICS)
