"""Performance of what was published, judged only where labels are due, and judged again when the rest arrives.

A cohort is the predictions of one as-of date by the version whose scoring of it is current. Its labels are due
`label.matures_after_days` later; from then on, for `monitoring.reconcile_days`, every run measures it again.
"""

from __future__ import annotations

import datetime as dt
import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from include.evergreen.drift.verdict import Performance
from include.evergreen.lake.ports import PARTITION
from include.evergreen.platform import Platform
from include.evergreen.specs import ModelSpec
from include.evergreen.training.bundle import PREDICTION

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from include.evergreen.training.bundle import ModelBundle

STANDARD_ERRORS = 3
"""Above the AUC of the newest cohort."""
DIGITS = 9
"""Figures of a cohort are rounded: another machine's last bits are no revision."""


@dataclass(frozen=True)
class Outcomes:
    """The matured rows of a date.

    Attributes:
        label: 0 or 1, shape (rows,); `probability` as published.
        newest: when the last of the labels became known, naive UTC.
    """

    label: np.ndarray
    probability: np.ndarray
    newest: dt.datetime


def measure(
    platform: Platform,
    spec: ModelSpec,
    bundle: ModelBundle,
    version: int,
    first: dt.date,
    as_of: dt.date,
    run_id: str,
) -> Performance:
    """Record every cohort that is due with the labels known at midnight of `as_of`, and measure the due cohorts of
    `version` from `first` on.

    The labels go to the mart too. A cohort without any label is recorded once it has one, and counts in the coverage
    from the day it is due.

    Args:
        bundle: `version` as registered, for what it could do on its reference rows.

    Raises:
        NotFound: nothing was ever published.
    """
    from include.evergreen.features.build import labels, midnight

    due = as_of - dt.timedelta(days=spec.label.matures_after_days)
    since = min(first, due - dt.timedelta(days=spec.monitoring.reconcile_days - 1))
    known = labels(platform.lake, spec, since, as_of, cut=as_of)
    platform.mart.write_labels(spec, known)
    current = {
        row["as_of"]: row["version"]
        for row in platform.mart.scorings(spec.name)
        if row["is_current"] and since <= row["as_of"] <= as_of
    }
    scored, matured = _joined(platform, spec, current, known, since, as_of, due)
    cohorts = {
        day: {
            "model": spec.name,
            "as_of": day,
            "version": current[day],
            **_figures(scored[day], matured[day]),
            "measured_on": as_of,
            "run_id": run_id,
        }
        for day in sorted(matured)
    }
    stored = {row["as_of"]: row for row in platform.mart.record_cohorts(list(cohorts.values()))}
    yesterday = midnight(as_of - dt.timedelta(days=1))
    grown = [
        day
        for day in cohorts
        if cohorts[day]["matured_rows"] > stored[day]["first_matured_rows"]
        # the second holds when an older run is repeated after a later one revised the cohort again
        and (stored[day]["measured_on"] == as_of or matured[day].newest > yesterday)
    ]
    window = [day for day in sorted(scored) if day >= first and current[day] == version]
    return _performance(
        spec,
        bundle,
        {day: matured[day] for day in window if day in matured},
        scored_rows=sum(scored[day] for day in window if day <= due),
        cohorts=sum(day <= due for day in window),
        waiting=sum(day > due for day in window),
        revised=[_said(cohorts[day], stored[day]) for day in grown],
    )


def _joined(
    platform: Platform,
    spec: ModelSpec,
    current: dict[dt.date, int],
    known: pa.Table,
    since: dt.date,
    until: dt.date,
    due: dt.date,
) -> tuple[dict[dt.date, int], dict[dt.date, Outcomes]]:
    """(scored rows by date, outcomes by date that is due and has any), of the current scorings."""
    import numpy as np
    import pyarrow as pa

    from include.evergreen.query import connect

    columns = [*spec.entity.key, PARTITION, "model_version", PREDICTION]
    predicted = platform.lake.read(f"predictions.{spec.name}", since, until, columns=columns)
    scorings = pa.table(
        {"day": pa.array(list(current), pa.date32()), "version": pa.array(list(current.values()), pa.int32())}
    )
    keys = " and ".join(f'p."{name}" = l."{name}"' for name in spec.entity.key)
    with connect() as connection:
        connection.register("predicted", predicted)
        connection.register("l", known)
        connection.register("s", scorings)
        connection.execute(
            f"create temp view p as select predicted.* from predicted join s on predicted.{PARTITION} = s.day "
            "and predicted.model_version = s.version"
        )
        scored = dict(connection.execute(f"select {PARTITION}, count(*) from p group by 1").fetchall())
        rows = connection.execute(
            f"select p.{PARTITION} as day, l.label, p.{PREDICTION} as probability, l.known_at "
            f"from p join l on {keys} and p.{PARTITION} = l.as_of "
            f"where p.{PARTITION} <= ? and l.label is not null and isfinite(p.{PREDICTION}) order by all",
            [due],
        ).fetchnumpy()
    days, starts = np.unique(rows["day"].astype("datetime64[D]"), return_index=True)
    bounds = itertools.pairwise([*starts, len(rows["day"])])
    return scored, {
        day: Outcomes(
            label=rows["label"][start:end].astype("int8"),
            probability=rows["probability"][start:end].astype("float64"),
            newest=rows["known_at"][start:end].max().astype("datetime64[us]").item(),
        )
        for day, (start, end) in zip(days.tolist(), bounds, strict=True)
    }


def _figures(scored_rows: int, matured: Outcomes) -> dict[str, Any]:
    from include.evergreen.training.metrics import score

    label, probability = matured.label, matured.probability
    metrics = score(label, probability)
    figures = {
        "coverage": len(label) / scored_rows,
        "label_rate": label.mean(),
        "mean_probability": probability.mean(),
        **{name: metrics[name] for name in ("auc", "brier", "log_loss")},
    }
    found = {name: _finite(value) for name, value in figures.items()}
    rounded = {name: None if value is None else round(value, DIGITS) for name, value in found.items()}
    return {"scored_rows": scored_rows, "matured_rows": len(label), **rounded}


def _performance(
    spec: ModelSpec,
    bundle: ModelBundle,
    matured: dict[dt.date, Outcomes],
    *,
    scored_rows: int,
    cohorts: int,
    waiting: int,
    revised: list[str],
) -> Performance:
    import numpy as np

    from include.evergreen.promotion.bootstrap import Draws
    from include.evergreen.training.metrics import score

    label = np.concatenate([np.empty(0, "int8"), *(outcomes.label for outcomes in matured.values())])
    probability = np.concatenate([np.empty(0), *(outcomes.probability for outcomes in matured.values())])
    days = np.repeat([day.toordinal() for day in matured], [len(outcomes.label) for outcomes in matured.values()])
    draws = Draws(days, spec.gate.resamples, spec.training.seed)
    auc = draws.bound(draws.metric("auc", label, probability), spec.gate.confidence)
    metrics = score(label, probability)
    # Validation and holdout together, the rows the version was not fitted on: the steadiest reference there is.
    reference = bundle.facts.get("metrics", {}).get("reference", {})
    return Performance(
        auc=_finite(auc.value),
        brier=_finite(metrics["brier"]),
        log_loss=_finite(metrics["log_loss"]),
        matured_rows=len(label),
        scored_rows=scored_rows,
        reference_auc=_finite(reference.get("auc")),
        auc_low=_finite(auc.low),
        auc_high=_finite(auc.high),
        label_rate=float(label.mean()) if len(label) else None,
        reference_auc_low=_finite(reference.get("auc_low")),
        reference_auc_high=_finite(reference.get("auc_high")),
        reference_rate=_finite(reference.get("rate")),
        cohorts=cohorts,
        waiting=waiting,
        revised=revised,
        **_newest(matured),
    )


def _newest(matured: dict[dt.date, Outcomes]) -> dict[str, Any]:
    """The newest cohort alone: labels that are turned round show on their first day."""
    from include.evergreen.training.metrics import auc_error, score

    if not matured:
        return {}
    day = max(matured)
    label = matured[day].label
    auc = score(label, matured[day].probability)["auc"]
    error = auc_error(auc, int(label.sum()), int(len(label) - label.sum()))
    return {
        "newest": day.isoformat(),
        "newest_auc": _finite(auc),
        "newest_auc_high": _finite(auc + STANDARD_ERRORS * error),
    }


def _said(cohort: dict[str, Any], stored: dict[str, Any]) -> str:
    def auc(value: float | None) -> str:
        return "undefined" if value is None else f"{value:.4f}"

    return (
        f"as of {cohort['as_of']}: AUC {auc(cohort['auc'])} on {cohort['matured_rows']} rows "
        f"was {auc(stored['first_auc'])} on {stored['first_matured_rows']}"
    )


def _finite(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None
