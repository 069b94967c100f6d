"""Distances between two sketches, measured by Evidently's own stat tests: the only module that imports Evidently.

The verdict is taken on the numbers that Evidently prints, read back from its result, so that the page and the verdict
cannot disagree. Every method is a distance (larger = more drift) at any number of rows.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pyarrow as pa

from include.evergreen.errors import SpecError
from include.evergreen.specs import Drift

Kind = Literal["number", "category"]
MIN_STD = 0.001
"""Evidently divides Wasserstein's distance by the reference's standard deviation, and by no less."""
DIGITS = 9
"""Evidently adds up categories in the order of a Python set: beyond these digits a rerun differs."""


@dataclass(frozen=True)
class Measurement:
    """What Evidently found.

    Attributes:
        scores: column -> distance; None where Evidently gave no finite number.
        html: a standalone page.
        result: Evidently's own result as plain JSON values.
    """

    scores: dict[str, float | None]
    html: str = field(repr=False)
    result: dict[str, Any] = field(repr=False)


def measure(
    reference: pa.Table, current: pa.Table, kinds: Mapping[str, Kind], drifts: Mapping[str, Drift]
) -> Measurement:
    """Run one Evidently report over the columns `kinds` of both tables, with a distance for each column in `drifts`.

    Both tables need at least one non-null value in every column of `drifts`; values reach the HTML as they are.
    Raises SpecError (a method that does not measure the column's kind).
    """
    for name, drift in drifts.items():
        if drift.method == "wasserstein" and kinds[name] == "category":
            raise SpecError(f"{name}: drift.method: expected jensenshannon or psi for a category, found wasserstein")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _run(reference, current, kinds, drifts)


def distances(
    reference: pa.Table, current: pa.Table, kinds: Mapping[str, Kind], drifts: Mapping[str, Drift]
) -> dict[str, float | None]:
    """The scores of `measure` without its page, 30 times as fast; for many windows. Raises SpecError."""
    import numpy as np
    from scipy.spatial.distance import jensenshannon
    from scipy.stats import wasserstein_distance

    found: dict[str, float | None] = {}
    for name, drift in drifts.items():
        then, now = reference[name].drop_null(), current[name].drop_null()
        known = len(then) > 0 and len(now) > 0
        if not known:
            found[name] = None
        elif drift.method == "wasserstein":
            values = then.to_numpy()
            found[name] = wasserstein_distance(values, now.to_numpy()) / max(float(values.std()), MIN_STD)
        elif drift.method == "jensenshannon" and kinds[name] == "category":
            shares = [{v["values"]: v["counts"] / len(column) for v in column.value_counts().to_pylist()}
                      for column in (then, now)]  # fmt: skip
            levels = sorted({*shares[0], *shares[1]})
            found[name] = float(jensenshannon(*(np.array([share.get(v, 0.0) for v in levels]) for share in shares)))
        else:
            found[name] = measure(reference, current, {name: kinds[name]}, {name: drift}).scores[name]
    return {name: None if score is None else round(score, DIGITS) for name, score in found.items()}


def _run(reference: pa.Table, current: pa.Table, kinds: Mapping[str, Kind], drifts: Mapping[str, Drift]) -> Measurement:
    import numpy as np
    from evidently import DataDefinition, Dataset, Report
    from evidently.metrics import MissingValueCount, ValueDrift

    names = list(kinds)
    definition = DataDefinition(
        numerical_columns=[name for name in names if kinds[name] == "number"],
        categorical_columns=[name for name in names if kinds[name] == "category"],
    )
    # Drift first: ValueDrift computes once what the preset computes three times. Only it carries a pass or fail.
    metrics = [ValueDrift(column=name, method=d.method, threshold=d.threshold) for name, d in drifts.items()]
    metrics += [MissingValueCount(column=name, tests=[]) for name in names]
    with np.errstate(all="ignore"):
        snapshot = Report(metrics, include_tests=True).run(
            Dataset.from_pandas(current.select(names).to_pandas(), definition),
            Dataset.from_pandas(reference.select(names).to_pandas(), definition),
        )
        html = snapshot.get_html_str(as_iframe=False)
    result = _finite(json.loads(snapshot.json()))
    scores: dict[str, float | None] = dict.fromkeys(drifts)
    for metric in result["metrics"]:
        config = metric.get("config", {})
        if config.get("type", "").endswith(":ValueDrift"):
            if metric["value"] is not None:
                metric["value"] = round(metric["value"], DIGITS)
            scores[config["column"]] = metric["value"]
    return Measurement(scores, html, result)


def _finite(value: Any) -> Any:
    """NaN and infinities are no JSON: None."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
