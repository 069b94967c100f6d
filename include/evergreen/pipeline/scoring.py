"""Steps of `score__<model>`: which version, predict into staging, publish to the lake and the mart."""

from __future__ import annotations

import datetime as dt
import re
from typing import Any

from include.evergreen.errors import NotEnoughData, NotFound, OutputInvalid, Refused
from include.evergreen.lake.ports import PARTITION
from include.evergreen.pipeline import staging
from include.evergreen.platform import Platform
from include.evergreen.specs import ModelSpec, SourceSpec


def version_for(platform: Platform, spec: ModelSpec, as_of: dt.date) -> int:
    """The version that scores a partition: the one that already did, else the champion in force at the date.

    Raises:
        NotFound: no champion yet, or none in force so early; names the first date in force.
    """
    scored = platform.mart.scoring(spec.name, as_of)
    if scored is not None:
        return int(scored["version"])
    champion = platform.mart.champion_at(spec.name, as_of)
    if champion is not None:
        return champion[0]
    history = platform.mart.champion_history(spec.name)
    if not history:
        raise NotFound(f"{spec.name}: expected a champion to score {as_of}, found none yet; run train__{spec.name}")
    raise NotFound(
        f"{spec.name}: expected a champion in force at {as_of}, found the first one, version {history[0]['version']}, "
        f"in force from {history[0]['effective_from']}"
    )


def predict(
    platform: Platform,
    spec: ModelSpec,
    source: SourceSpec,
    as_of: dt.date,
    run_id: str,
    version: int | None = None,
) -> dict[str, Any]:
    """Score the entities of one partition into a staged Parquet file.

    Returns:
        {key, version, threshold, rows, mean_probability, seen}: `key` in the lake bucket, `seen` names the scoring that
        was current before the inputs were read.

    Raises:
        NotFound: no champion, version or table. NotEnoughData: no entity. OutputInvalid: see `contract.check`.
        Unavailable, SettingsError: `compute: dask` without its cluster.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    from include.evergreen.features.build import features
    from include.evergreen.scoring.contract import check
    from include.evergreen.scoring.score import score_batches

    seen = _shown(platform.mart.scoring(spec.name, as_of))
    number = version_for(platform, spec, as_of) if version is None else version
    bundle = platform.registry.load(spec.name, number)
    rows = features(platform.lake, spec, since=as_of, until=as_of, cut=as_of)
    if rows.num_rows == 0:
        table = f"{source.name}.{spec.entity.table}"
        raise NotEnoughData(f"{spec.name}, as of {as_of}: expected entities in {table}, found none")
    stage = f"staging/score/{spec.name}/{as_of}/{re.sub(r'[^A-Za-z0-9._-]', '_', run_id)}"
    if spec.compute == "dask":
        from include.evergreen.distributed.scoring import score

        predictions = score(platform, bundle, rows, spec, number, stage)
    else:
        predictions = pa.Table.from_batches(score_batches(bundle, rows.to_batches(), spec, number))
    check(rows.num_rows, predictions, spec, bundle.threshold)
    return {
        "key": staging.put(platform, f"{stage}.parquet", predictions),
        "version": number,
        "threshold": bundle.threshold,
        "rows": predictions.num_rows,
        "mean_probability": pc.mean(predictions["probability"]).as_py(),
        "seen": seen,
    }


def _shown(current: dict[str, Any] | None) -> str | None:
    """Names a scoring by its version and its rows."""
    return None if current is None else f"{current['version']} {current['digest']}"


def publish(
    platform: Platform,
    spec: ModelSpec,
    source: SourceSpec,
    as_of: dt.date,
    staged: dict[str, Any],
    run_id: str,
    replace: bool = False,
    reason: str | None = None,
) -> dict[str, Any]:
    """Publish a staged scoring to `predictions.<model>` and the mart. Idempotent.

    One publisher at a time per model: of two scorings of one partition the later is whole in both places. Who finds
    another scoring than the one it saw predicts again: a body that goes on late takes nothing back. A version
    other than the current scoring's needs `replace`; a partition without a scoring gets the version in force now: one
    that a rollback withdrew since `predict` stays withdrawn.
    Rows that take the place of others say so to analysts (`restated_at`), with `reason`.

    Returns:
        {version, rows, mean_probability, snapshot_id, scored_at}.

    Raises:
        NotFound: nothing staged. OutputInvalid: the staged rows are not those of the partition. Refused: the partition
        is scored by another version.
    """
    import pyarrow as pa

    from include.evergreen.scoring.contract import check

    version = int(staged["version"])
    predictions = staging.get(platform, staged["key"])
    check(int(staged["rows"]), predictions, spec, staged["threshold"])
    found = predictions.group_by(["as_of", "model_version"]).aggregate([]).to_pylist()
    if found != [{"as_of": as_of, "model_version": version}]:
        raise OutputInvalid(f"{staged['key']}: expected version {version} as of {as_of} alone, found {found}")
    mart = platform.mart
    mart.ensure_model(spec, source)
    with mart.lock(spec.name):
        current = mart.scoring(spec.name, as_of)
        if current is not None and current["version"] != version and not replace:
            raise Refused(
                f"{spec.name}, as of {as_of}: expected version {current['version']}, which scored it meanwhile, "
                f"found a scoring by version {version}; clear the run from predict on"
            )
        if current is None and not replace:
            version = (mart.champion_at(spec.name, as_of) or (version,))[0]
        if version != staged["version"] or _shown(current) != staged.get("seen", _shown(current)):
            again = f"{run_id}-{version}"  # a retry finds its own rows as they were
            predictions = staging.get(platform, predict(platform, spec, source, as_of, again, version)["key"])
        earlier = [row for row in mart.scorings(spec.name) if row["as_of"] == as_of and row["version"] == version]
        scored_at = earlier[0]["scored_at"] if earlier else dt.datetime.now(dt.UTC)
        stamp = pa.scalar(scored_at.replace(tzinfo=None), pa.timestamp("us"))
        size = predictions.num_rows
        rows = predictions.append_column("scored_at", pa.repeat(stamp, size)).append_column(
            PARTITION, pa.repeat(pa.scalar(as_of, pa.date32()), size)
        )
        snapshot = platform.lake.write(f"predictions.{spec.name}", rows, [as_of])
        scoring = mart.publish_scoring(spec, as_of, version, predictions, snapshot, run_id, scored_at, reason)
    return {
        "version": version,
        "rows": scoring["rows"],
        "mean_probability": scoring["mean_probability"],
        "snapshot_id": snapshot,
        "scored_at": scoring["scored_at"].isoformat(),
    }
