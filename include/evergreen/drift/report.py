"""The drift report: one page and one JSON per window, against the training reference of the version that scored it."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from include.evergreen.drift import distance
from include.evergreen.drift.sketch import source_rows
from include.evergreen.drift.verdict import ColumnDrift, Verdict
from include.evergreen.specs import Drift, ModelSpec
from include.evergreen.training.bundle import PREDICTION

VERDICT = "<!-- verdict -->"
LOOK_ALIKES = str.maketrans("<>&\"'`\u2028\u2029", "\u2039\u203a\uff06\u201d\u2019\u2018  ")


@dataclass(frozen=True)
class Report:
    """A drift report.

    Attributes:
        html: a standalone page, UTF-8.
        json: the same numbers as plain JSON values, with Evidently's own result under `evidently`.
        columns: the measured columns, worst first (score over threshold), what could not be measured last.
    """

    html: bytes = field(repr=False)
    json: dict[str, Any] = field(repr=False)
    columns: dict[str, ColumnDrift]


def kinds(spec: ModelSpec) -> dict[str, Literal["number", "category"]]:
    """What a sketch of this model holds: its features and the prediction."""
    return {**{name: feature.type for name, feature in spec.features.items()}, PREDICTION: "number"}


def drifts(spec: ModelSpec) -> dict[str, Drift]:
    """Which columns are measured, and how: a feature with `drift: null` is shown and not measured."""
    measured = {name: feature.drift for name, feature in spec.features.items() if feature.drift is not None}
    return {**measured, PREDICTION: spec.monitoring.prediction}


def sanitise(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Replace markup characters of category values by look-alikes: Evidently's page would execute them."""
    encoded = values.combine_chunks().dictionary_encode()
    clean = pa.array(
        [v if v is None else v.translate(LOOK_ALIKES) for v in encoded.dictionary.to_pylist()], pa.string()
    )
    return pa.chunked_array([clean.take(encoded.indices)])


def build(reference: pa.Table, current: pa.Table, spec: ModelSpec, context: Mapping[str, Any] | None = None) -> Report:
    """Compare two sketches (see `sketch`): features and the prediction, each by its own method and threshold.

    `context` are small facts shown on top of the page (model, as-of date, version). A column that one of the sketches
    lacks or holds only nulls of is in `columns` with no score and a note. Raises SpecError (method and kind disagree).
    """
    reference, current, shown, notes = _measurable(reference, current, spec)
    measured = distance.measure(reference, current, shown, {n: d for n, d in drifts(spec).items() if n in shown})
    columns = _columns(spec, measured.scores, notes)
    facts = dict(context or {})
    facts |= {"reference_rows": source_rows(reference), "current_rows": source_rows(current)}
    summary = {name: _summary(name, kind, reference, current) for name, kind in shown.items()}
    page = measured.html.replace("<body>", f"<body>\n{_head(facts, columns, summary)}", 1)
    document = {
        **facts,
        "columns": {name: asdict(column) for name, column in columns.items()},
        "summary": summary,
        "evidently": measured.result,
    }
    return Report(page.encode(), document, columns)


def columns(reference: pa.Table, current: pa.Table, spec: ModelSpec) -> dict[str, ColumnDrift]:
    """The columns of `build` without its page, five times as fast: for a replay. Raises SpecError."""
    reference, current, shown, notes = _measurable(reference, current, spec)
    wanted = {name: drift for name, drift in drifts(spec).items() if name in shown}
    return _columns(spec, distance.distances(reference, current, shown, wanted), notes)


def _measurable(
    reference: pa.Table, current: pa.Table, spec: ModelSpec
) -> tuple[pa.Table, pa.Table, dict[str, Literal["number", "category"]], dict[str, str]]:
    """Both tables with the columns that can be measured, these columns, and why the others cannot."""
    declared = kinds(spec)
    notes = {name: note for name in declared if (note := _unmeasurable(name, reference, current))}
    shown = {name: kind for name, kind in declared.items() if name not in notes}
    return _clean(reference, shown), _clean(current, shown), shown, notes


def _columns(spec: ModelSpec, scores: Mapping[str, float | None], notes: Mapping[str, str]) -> dict[str, ColumnDrift]:
    found = {}
    for name, drift in drifts(spec).items():
        known = scores.get(name)
        score = None if known is None else float(known)
        breached = score is not None and score >= drift.threshold
        note = notes.get(name, "" if score is not None else "Evidently gave no finite distance")
        found[name] = ColumnDrift(drift.method, score, drift.threshold, breached, note)
    return dict(sorted(found.items(), key=lambda item: (-item[1].severity, item[0])))


GOVERNED = "The retrain governor decides; see docs/runbooks/"
WHAT_TO_DO = {
    "ok": "Nothing.",
    "covariate_drift": f"{GOVERNED}drift-verdict.md.",
    "label_drift": f"{GOVERNED}drift-verdict.md.",
    "prediction_drift": f"{GOVERNED}drift-verdict.md.",
    "performance_drop": f"{GOVERNED}performance-drop.md.",
    "broken_data": "Repair the data first, nothing is retrained on it; see docs/runbooks/broken-data.md.",
}


def judged(report: Report, verdict: Verdict) -> Report:
    """The same report with the verdict, its reasons and what to do on top of the page and in the JSON."""
    reasons = "".join(f"<li>{html.escape(reason)}</li>" for reason in verdict.reasons)
    banner = (
        f"<p style='font-size:16px'><b>Verdict: {html.escape(verdict.kind)}</b></p><ul>{reasons}</ul>"
        f"<p>What to do: {html.escape(WHAT_TO_DO[verdict.kind])}</p>"
    )
    document = {"verdict": verdict.kind, "reasons": list(verdict.reasons), **report.json}
    return Report(report.html.replace(VERDICT.encode(), banner.encode(), 1), document, report.columns)


def _unmeasurable(name: str, reference: pa.Table, current: pa.Table) -> str:
    for label, table in (("reference", reference), ("current window", current)):
        if name not in table.column_names:
            return f"not in the {label}"
        if table[name].null_count == table.num_rows:
            return f"no value in the {label}"
    return ""


def _clean(table: pa.Table, shown: Mapping[str, str]) -> pa.Table:
    columns = {name: table[name] if kind == "number" else sanitise(table[name]) for name, kind in shown.items()}
    return pa.table(columns).replace_schema_metadata(table.schema.metadata)


def _summary(name: str, kind: str, reference: pa.Table, current: pa.Table) -> dict[str, dict[str, Any]]:
    return {label: _stats(kind, t[name]) for label, t in (("reference", reference), ("current", current))}


def _stats(kind: str, values: pa.ChunkedArray) -> dict[str, Any]:
    nulls = {"null_share": round(values.null_count / len(values), 4)}
    if kind == "number":
        present = values.drop_null().to_numpy()
        low, first, middle, third, high = (float(q) for q in np.quantile(present, [0, 0.25, 0.5, 0.75, 1]))
        spread = {"min": low, "q1": first, "median": middle, "q3": third, "max": high}
        return nulls | spread | {"mean": float(present.mean()), "std": float(present.std())}
    counted = pc.value_counts(values.drop_null()).to_pylist()
    top = min(counted, key=lambda item: (-item["counts"], item["values"]))
    return nulls | {"values": len(counted), "top": top["values"], "top_share": round(top["counts"] / len(values), 4)}


def _head(facts: Mapping[str, Any], columns: Mapping[str, ColumnDrift], summary: Mapping[str, Any]) -> str:
    """The part of the page above Evidently's: the answer first, the worst column first."""
    rows = []
    for name in [*columns, *(name for name in summary if name not in columns)]:
        column = columns.get(name)
        if column is None:
            cells = ["not measured", "", "", ""]
        elif column.score is None:
            cells = [column.method, "", f"{column.threshold:g}", column.note]
        else:
            cells = [column.method, f"{column.score:.4f}", f"{column.threshold:g}", "drift" if column.breached else ""]
        cells += [_brief(summary[name][label]) if name in summary else "" for label in ("reference", "current")]
        rows.append(_row("td", [name, *cells]))
    title = " | ".join(f"{key.replace('_', ' ')}: {value}" for key, value in facts.items())
    heads = ["column", "method", "distance", "threshold", "finding", "reference", "current window"]
    return (
        '<section style="font-family:sans-serif;font-size:13px;padding:16px">'
        f"<h1 style='font-size:18px'>Drift report</h1>{VERDICT}<p>{html.escape(title)}</p>"
        f"<table cellpadding='4' border='1' style='border-collapse:collapse'>{_row('th', heads)}{''.join(rows)}</table>"
        "<p>Charts below are drawn on quantile sketches of the windows: shapes and shares hold, row counts do not.</p>"
        "</section>"
    )


def _brief(stats: Mapping[str, Any]) -> str:
    nulls = f", null {stats['null_share']:.1%}" if stats["null_share"] else ""
    if "median" in stats:
        return f"median {stats['median']:.4g} [{stats['q1']:.4g}, {stats['q3']:.4g}], mean {stats['mean']:.4g}{nulls}"
    return f"{stats['values']} values, top {stats['top']} {stats['top_share']:.1%}{nulls}"


def _row(tag: str, cells: list[str]) -> str:
    return f"<tr>{''.join(f'<{tag} align=left>{html.escape(str(cell))}</{tag}>' for cell in cells)}</tr>"
