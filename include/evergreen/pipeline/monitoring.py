"""The steps of `monitor__<model>`: measure a window, conclude."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from include.evergreen.alerts.cause import ended_by_verdict, of_verdict
from include.evergreen.drift.verdict import ColumnHealth, MonitoringFacts, Verdict, judge
from include.evergreen.errors import NotEnoughData
from include.evergreen.pipeline import performance
from include.evergreen.platform import Platform
from include.evergreen.specs import ModelSpec, SourceSpec
from include.evergreen.training.bundle import PREDICTION

if TYPE_CHECKING:
    import pyarrow as pa

RECENT_PARTITIONS = 28
"""Scored partitions before the as-of date that say how many rows are usual."""


def measure(
    platform: Platform, spec: ModelSpec, source: SourceSpec, as_of: dt.date, run_id: str, page: bool = True
) -> dict[str, Any]:
    """Measure the last `window_days` dates up to `as_of` against the reference of the version that scored `as_of`, and
    keep the report as `reports/<model>/<as_of>.html` and `.json`.

    Features and prediction are judged on every entity of the window, the prediction made anew by that version, so that
    one model is compared with itself. Performance is judged on what that version published and whose labels are due, so
    that a new champion does not answer for its predecessor; where labels take longer than a day, its window reaches
    back by as much.

    Args:
        page: without it the facts are the same and no report is drawn, which takes most of the time.

    Returns:
        `MonitoringFacts.to_dict()` and {report_uri, report_json_uri, run_id, seen}: plain JSON values; `seen` names the
        verdict of the date that stood before anything was read.

    Raises:
        NotEnoughData: `as_of` was never scored. NotFound: a table of the features is gone.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    from include.evergreen.drift import report
    from include.evergreen.drift.profile import Profile, misfits
    from include.evergreen.drift.sketch import from_bytes, sketch
    from include.evergreen.features.build import features

    seen_before = _standing(platform, spec, as_of)
    scoring = platform.mart.scoring(spec.name, as_of)
    if scoring is None:
        raise NotEnoughData(f"{spec.name}: expected a scoring of {as_of} to monitor, found none")
    version = scoring["version"]
    bundle = platform.registry.load(spec.name, version)
    first = as_of - dt.timedelta(days=spec.monitoring.window_days - 1)
    matured_from = first - dt.timedelta(days=spec.label.matures_after_days - 1)
    rows_of = platform.lake.counts(f"predictions.{spec.name}")
    scored = [day for day in sorted(rows_of) if day <= as_of and rows_of[day]]
    entities = platform.lake.counts(f"trusted.{spec.entity.table}")
    window = [day for day in sorted(entities) if first <= day <= as_of and entities[day]]

    kinds = report.kinds(spec)
    if window:
        seen = features(platform.lake, spec, first, as_of, cut=None)
        seen = seen.append_column(PREDICTION, pa.array(bundle.predict(seen).astype("float64")))
    else:
        arrow = {"number": pa.float64(), "category": pa.string()}
        seen = pa.table({name: pa.array([], arrow[kind]) for name, kind in kinds.items()})

    reference, size = from_bytes(bundle.reference), spec.monitoring.sketch_rows
    current = sketch(seen, kinds, size)
    today = seen.filter(pc.equal(seen["as_of"], pa.scalar(as_of, pa.date32()))) if window else seen
    built = report.build(reference, current, spec, _context(spec, as_of, version, first, window)) if page else None
    facts = MonitoringFacts(
        as_of=as_of,
        version=version,
        partitions=tuple(window),
        rows=seen.num_rows,
        scored_rows=rows_of.get(as_of, 0),
        recent_rows=tuple(rows_of[day] for day in scored if day < as_of)[-RECENT_PARTITIONS:],
        columns=built.columns if built else report.columns(reference, current, spec),
        health={
            name: _health(seen, today, reference, name) for name in spec.features if name in reference.column_names
        },
        performance=performance.measure(platform, spec, bundle, version, matured_from, as_of, run_id),
        stopped=tuple(_stopped(platform, spec, source, sorted({*window, as_of}))),
        misfits=misfits(Profile.from_dict(bundle.facts["profile"]), seen, as_of, spec.monitoring.max_misfit)
        if window and "profile" in bundle.facts
        else {},
        importances=bundle.facts.get("importances", {}),
    )
    found = {**facts.to_dict(), "run_id": run_id, "seen": seen_before}
    if built is None:
        return {**found, "report_uri": None, "report_json_uri": None}
    built = report.judged(built, judge(facts, spec))
    key = f"reports/{spec.name}/{as_of}"
    platform.objects.put(f"{key}.html", built.html, "text/html; charset=utf-8")
    platform.objects.put(f"{key}.json", json.dumps(built.json, allow_nan=False).encode(), "application/json")
    uris = {"report_uri": platform.objects.uri(f"{key}.html"), "report_json_uri": platform.objects.uri(f"{key}.json")}
    return {**found, **uris}


def _standing(platform: Platform, spec: ModelSpec, as_of: dt.date) -> str | None:
    """The moment at which the verdict of a date was recorded; null where there is none."""
    newest = platform.mart.monitorings(spec.name, until=as_of, limit=1)
    return newest[0]["recorded_at"].isoformat() if newest and newest[0]["as_of"] == as_of else None


def _context(
    spec: ModelSpec, as_of: dt.date, version: int, first: dt.date, window: Sequence[dt.date]
) -> dict[str, Any]:
    return {
        "model": spec.name,
        "as_of": as_of.isoformat(),
        "version": version,
        "window": f"{first} to {as_of}, {len(window)} date(s) with entities",
    }


def conclude(
    platform: Platform, spec: ModelSpec, source: SourceSpec, as_of: dt.date, facts: dict[str, Any], run_id: str
) -> dict[str, Any]:
    """Judge what `measure` found; write the numbers to the mart, the verdict to the ledger, alerts to the inbox.

    One at a time per model. Who finds another verdict of the date than the one that `measure` saw measures again: a
    body that goes on late takes nothing back.

    Returns {verdict, reasons, guilty, version, report_uri}.
    """
    with platform.mart.lock(f"conclude-{spec.name}"):
        standing = _standing(platform, spec, as_of)
        if standing != facts.get("seen", standing):
            facts = measure(platform, spec, source, as_of, run_id, page=facts.get("report_uri") is not None)
        verdict = _record(platform, spec, as_of, facts, run_id)
    _alert(platform, spec, as_of, verdict, run_id)
    return {
        "verdict": verdict.kind,
        "reasons": list(verdict.reasons),
        "guilty": list(verdict.guilty),
        "version": facts["version"],
        "report_uri": facts.get("report_uri"),
    }


def _record(platform: Platform, spec: ModelSpec, as_of: dt.date, facts: dict[str, Any], run_id: str) -> Verdict:
    measured = MonitoringFacts.from_dict(facts)
    verdict = judge(measured, spec)
    performance = {**asdict(measured.performance), "coverage": round(measured.performance.coverage, 4)}
    platform.mart.record_monitoring(
        model=spec.name,
        as_of=as_of,
        version=measured.version,
        verdict=verdict.kind,
        reasons=list(verdict.reasons),
        columns={name: asdict(column) for name, column in measured.columns.items()},
        performance=performance,
        report_uri=facts.get("report_uri"),
        run_id=run_id,
    )
    platform.mart.append_decision(
        kind="verdict",
        subject=spec.name,
        as_of=as_of,
        outcome=verdict.kind,
        reasons=list(verdict.reasons),
        evidence={
            "version": measured.version,
            "guilty": list(verdict.guilty),
            "partitions": [day.isoformat() for day in measured.partitions],
            "rows": measured.rows,
            "performance": performance,
            "report_uri": facts.get("report_uri"),
        },
        actor="monitor",
        run_id=run_id,
        once_a_date=True,
    )
    return verdict


def _alert(platform: Platform, spec: ModelSpec, as_of: dt.date, verdict: Verdict, run_id: str) -> None:
    """The inbox follows the newest date: an earlier one that is judged again opens and ends nothing."""
    from include.evergreen.alerts.inbox import Inbox

    inbox = Inbox(platform.mart)

    def end(day: dt.date, kind: str) -> None:
        inbox.recover(spec.name, ended_by_verdict(kind), day, f"the verdict on {day} is {kind}")

    if platform.mart.monitorings(spec.name, limit=1)[0]["as_of"] > as_of:
        return
    end(as_of, verdict.kind)
    found = of_verdict(spec.name, as_of, verdict.kind, verdict.guilty, verdict.reasons, run_id)
    if found:
        inbox.raise_(found)
        newest = platform.mart.monitorings(spec.name, limit=1)[0]
        if newest["as_of"] > as_of:  # judged meanwhile, when there was nothing to end yet
            end(newest["as_of"], newest["verdict"])


def _stopped(platform: Platform, spec: ModelSpec, source: SourceSpec, window: Sequence[dt.date]) -> list[str]:
    """One sentence per partition that was due for the window, of the tables the model reads, and is not published."""
    from include.evergreen.features.build import input_tables

    read = {name.removeprefix("trusted.") for name in input_tables(spec)}
    found = []
    for table in source.tables.values():
        if table.name not in read or table.cadence != "daily":
            continue
        batches = {batch["partition_date"]: batch for batch in platform.mart.batches(table.name)}
        for day in window:
            due = day - dt.timedelta(days=table.lag_days)
            if due < source.start_date or (source.end_date is not None and due > source.end_date):
                continue
            batch = batches.get(due)
            if batch is None:
                found.append(f"{table.name} of {due}: expected a published partition, found none")
            elif batch["status"] != "published":
                why = "; ".join(map(str, batch["reasons"])) or "no reason recorded"
                found.append(f"{table.name} of {due}: {batch['status']}: {why}")
    return found


def _health(seen: pa.Table, today: pa.Table, reference: pa.Table, name: str) -> ColumnHealth:
    import pyarrow as pa
    import pyarrow.compute as pc

    def present(values: pa.ChunkedArray) -> pa.ChunkedArray:
        if pa.types.is_floating(values.type):
            values = pc.if_else(pc.is_finite(values), values, None)
        return values.drop_null()

    now, then = present(seen[name]), present(reference[name])
    distinct = pc.unique(now)
    only = None
    if len(distinct) == 1:
        equal = pc.sum(pc.equal(then, distinct[0].cast(then.type))).as_py() or 0
        only = equal / len(reference)
    return ColumnHealth(
        null_share=1 - len(present(today[name])) / len(today) if len(today) else 0.0,
        reference_null_share=1 - len(then) / len(reference) if len(reference) else 0.0,
        distinct=len(distinct),
        reference_distinct=len(pc.unique(then)),
        only_value_share=only,
    )
