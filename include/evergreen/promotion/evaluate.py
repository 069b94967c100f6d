"""Measure a challenger, the champion and a baseline on the same rows."""

from __future__ import annotations

import datetime as dt
import time

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from include.evergreen.promotion.gate import Evaluation
from include.evergreen.specs import ModelSpec
from include.evergreen.training.bundle import ModelBundle
from include.evergreen.training.fit import label_of
from include.evergreen.training.metrics import score

BINS = 24


def baseline(spec: ModelSpec, train: pa.Table, rows: pa.Table) -> np.ndarray:
    """The training rate of the label by one feature: the simplest prediction worth beating, shape (rows,)."""
    label = label_of(train).astype("float64")
    overall = float(label.mean())
    name = spec.gate.baseline_by
    if name is None:
        return np.full(rows.num_rows, overall)
    if spec.features[name].type == "category":
        levels = sorted(v for v in pc.unique(train[name]).to_pylist() if v is not None)
        index = {v: i for i, v in enumerate(levels)}
        code = [np.array([index.get(v, len(levels)) for v in t[name].to_pylist()]) for t in (train, rows)]
        size = len(levels) + 1
    else:
        values = [t[name].to_numpy(zero_copy_only=False).astype("float64") for t in (train, rows)]
        edges = np.unique(np.nanquantile(values[0], np.linspace(0, 1, BINS + 1)[1:-1]))
        code = [np.where(np.isnan(v), len(edges) + 1, np.searchsorted(edges, v, side="right")) for v in values]
        size = len(edges) + 2
    count = np.bincount(code[0], minlength=size)
    late = np.bincount(code[0], weights=label, minlength=size)
    rate = np.where(count > 0, late / np.maximum(count, 1), overall)
    found: np.ndarray = rate[code[1]]
    return found


def comparison_rows(rows: pa.Table, challenger: ModelBundle, champion: ModelBundle | None) -> pa.Table:
    """The labelled rows that neither model was fitted or stopped early on."""
    seen = [challenger.facts["trained_until"], *([champion.facts["trained_until"]] if champion else [])]
    after = max(dt.date.fromisoformat(day) for day in seen)
    return rows.filter(pc.greater(rows["as_of"], pa.scalar(after, pa.date32())))


def latency(bundle: ModelBundle, rows: pa.Table) -> float:
    """Milliseconds to score 1,000 rows, the best of three, features in memory."""
    sample = rows.slice(0, 1000)
    if sample.num_rows == 0:
        return float("nan")
    times = []
    for _ in range(3):
        start = time.perf_counter()
        bundle.predict(sample)
        times.append(time.perf_counter() - start)
    return min(times) * 1000 * 1000 / float(sample.num_rows)


def evaluate(
    spec: ModelSpec,
    rows: pa.Table,
    challenger: ModelBundle,
    champion: ModelBundle | None,
    champion_version: int | None,
    leak_rows: int,
) -> Evaluation:
    """The facts of the gate, from the labelled rows the challenger was made with."""
    fair = comparison_rows(rows, challenger, champion)
    label = label_of(fair)
    train = rows.filter(
        pc.less_equal(rows["as_of"], pa.scalar(dt.date.fromisoformat(challenger.facts["trained_until"]), pa.date32()))
    )
    days = fair["as_of"].to_pylist()
    return Evaluation(
        rows=fair.num_rows,
        first=min(days).isoformat() if days else "",
        last=max(days).isoformat() if days else "",
        challenger=score(label, challenger.predict(fair)) if days else {},
        baseline=score(label, baseline(spec, train, fair)) if days else {},
        champion=(score(label, champion.predict(fair)) if days else {}) if champion else None,
        champion_version=champion_version,
        identical=champion is not None and champion.sha256 == challenger.sha256,
        model_mb=len(challenger.booster) / 1e6,
        ms_per_1k=latency(challenger, fair),
        leak_rows=leak_rows,
    )
