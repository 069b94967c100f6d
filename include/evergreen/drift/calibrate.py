"""Drift thresholds for a stated budget of false alarms, from history in which nothing is to be found.

The history is cut into contiguous folds. A model trained without a fold, on the rest, watches placebo months of that
fold: whole weeks of its days, drawn with replacement (days of a week belong together). The model has not seen the
month, as it will not have seen the next one, and every alarm is false. A column's scale is a high quantile of its
distances; one multiplier for all columns is the smallest that keeps the verdicts within the budget, where the scales
come from the other folds.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from include.evergreen.errors import NotEnoughData
from include.evergreen.specs import Drift, ModelSpec
from include.evergreen.training.bundle import PREDICTION

if TYPE_CHECKING:
    import pyarrow as pa

    from include.evergreen.training.bundle import ModelBundle

FOLDS = 5
MONTH = 30
SCALE = 0.95
"""Quantile of a column's placebo distances that is its scale."""
MULTIPLIERS = np.round(np.arange(0.5, 6.001, 0.02), 2)
MOST_DAYS = 0.5
"""With a larger share of days in alarm, runs grow together: few runs are no longer few alarms."""
LABEL = "label"


@dataclass(frozen=True)
class Placebo:
    """What was measured on placebo months.

    Attributes:
        columns: features, the prediction, and `label` (absolute difference of rates); the order of `distances`.
        distances: shape (months, windows, columns).
        fold: of each month, shape (months,).
        misfit_days: watched days on which a number did not fit the profile; `days` watched.
    """

    columns: tuple[str, ...]
    distances: np.ndarray
    fold: np.ndarray
    misfit_days: tuple[dt.date, ...]
    days: int


@dataclass(frozen=True)
class Calibration:
    """Thresholds, and what they cost.

    Attributes:
        thresholds: column -> distance from which it breaches.
        multiplier: of the columns' scales.
        false_alarms: expected per month (runs of consecutive alarming days), on folds that gave no scale.
        alarm_days: expected share of days in alarm, likewise.
        by_kind: expected false alarms a month of each verdict alone.
    """

    thresholds: dict[str, float]
    multiplier: float
    false_alarms: float
    alarm_days: float
    by_kind: dict[str, float]


def placebo(
    spec: ModelSpec,
    features: pa.Table,
    labelled: pa.Table,
    as_of: dt.date,
    months: int = 40,
    seed: int = 0,
    report: Callable[[int, int], None] | None = None,
) -> Placebo:
    """Measure placebo months on history before `as_of`.

    Args:
        features: of every entity, with `as_of`; labelled: the same with `label`, where it is known.
        months: placebo months in all, spread over the folds.
        report: called with (months done, months in all).

    Raises NotEnoughData: fewer than three windows or no whole window in a fold, fewer months than folds, or too few
    rows to fit.
    """
    import pyarrow.compute as pc

    from include.evergreen.drift import report as drift_report
    from include.evergreen.drift.profile import SUPPORT_DAYS, Profile, misfits
    from include.evergreen.drift.sketch import from_bytes
    from include.evergreen.training.fit import fit

    before = pc.less(labelled["as_of"], as_of)
    labelled = labelled.filter(before)
    features = features.filter(pc.less(features["as_of"], as_of))
    days = sorted(pc.unique(labelled["as_of"]).to_pylist())
    if len(days) < 3 * spec.monitoring.window_days * FOLDS:
        raise NotEnoughData(
            f"{spec.name}: expected at least {3 * spec.monitoring.window_days * FOLDS} labelled days, found {len(days)}"
        )
    if months < FOLDS:
        raise NotEnoughData(f"{spec.name}: expected at least {FOLDS} placebo months, found {months}")
    drifts, kinds = drift_report.drifts(spec), drift_report.kinds(spec)
    columns = (*drifts, LABEL)
    rng = np.random.default_rng(seed)
    found, fold_of, odd, watched = [], [], [], 0
    done = 0
    for fold, part in enumerate(np.array_split(np.arange(len(days)), FOLDS)):
        left_out = [days[i] for i in part]
        kept = labelled.filter(pc.invert(pc.is_in(labelled["as_of"], _dates(left_out))))
        bundle = fit(spec, kept, left_out[0] if fold == FOLDS - 1 else as_of)
        rate = bundle.facts["metrics"]["reference"]["rate"]
        reference, profile = from_bytes(bundle.reference), Profile.from_dict(bundle.facts["profile"])
        by_day = _by_day(spec, bundle, features, labelled, left_out)
        for day in left_out:
            since = day - dt.timedelta(days=SUPPORT_DAYS)
            recent = features.filter(
                pc.and_(pc.greater(features["as_of"], since), pc.less_equal(features["as_of"], day))
            )
            watched += 1
            if misfits(profile, recent, day, spec.monitoring.max_misfit):
                odd.append(day)
        for _ in range(months // FOLDS + (fold < months % FOLDS)):
            month = _month(left_out, spec.monitoring.window_days, rng)
            found.append(_measure(spec, month, by_day, reference, kinds, drifts, rate))
            fold_of.append(fold)
            done += 1
            if report is not None:
                report(done, months)
    return Placebo(columns, np.array(found), np.array(fold_of), tuple(odd), watched)


def _dates(days: list[dt.date]) -> pa.Array:
    import pyarrow as pa

    return pa.array(days, pa.date32())


def _by_day(
    spec: ModelSpec, bundle: ModelBundle, features: pa.Table, labelled: pa.Table, days: list[dt.date]
) -> dict[dt.date, tuple[pa.Table, np.ndarray]]:
    """Per day: features with the prediction, and labels."""
    import pyarrow as pa
    import pyarrow.compute as pc

    from include.evergreen.training.fit import label_of

    found = {}
    for day in days:
        rows = features.filter(pc.equal(features["as_of"], pa.scalar(day, pa.date32())))
        rows = rows.select(list(spec.features)).append_column(
            PREDICTION, pa.array(bundle.predict(rows).astype("float64"))
        )
        known = labelled.filter(pc.equal(labelled["as_of"], pa.scalar(day, pa.date32())))
        found[day] = (rows, label_of(known))
    return found


def _month(days: list[dt.date], block: int, rng: np.random.Generator) -> list[dt.date]:
    """A month of whole blocks of consecutive days, drawn with replacement; every block starts on the same weekday.

    Raises NotEnoughData.
    """
    size = len(days)
    starts = [i for i in range(size - block + 1) if (days[i + block - 1] - days[i]).days == block - 1]
    if not starts:
        raise NotEnoughData(f"expected {block} consecutive labelled days from {days[0]} to {days[-1]}, found none")
    same = [i for i in starts if block % 7 or days[i].weekday() == days[starts[0]].weekday()]
    count = math.ceil((MONTH + block - 1) / block)
    return [days[i + j] for i in rng.choice(same, count) for j in range(block)][: MONTH + block - 1]


def _measure(
    spec: ModelSpec,
    month: list[dt.date],
    by_day: Mapping[dt.date, tuple[pa.Table, np.ndarray]],
    reference: pa.Table,
    kinds: Mapping[str, Any],
    drifts: Mapping[str, Drift],
    rate: float,
) -> np.ndarray:
    """Distances of every window of a month, shape (windows, columns); NaN where one is undefined."""
    import pyarrow as pa

    from include.evergreen.drift.distance import distances
    from include.evergreen.drift.sketch import sketch

    size = spec.monitoring.window_days
    found = []
    for end in range(size, len(month) + 1):
        parts = [by_day[day] for day in month[end - size : end]]
        current = sketch(pa.concat_tables([rows for rows, _ in parts]), kinds, spec.monitoring.sketch_rows)
        label = np.concatenate([label for _, label in parts])
        scores = distances(reference, current, kinds, drifts)
        line = [math.nan if scores[name] is None else scores[name] for name in drifts]
        found.append([*line, abs(float(label.mean()) - rate) if len(label) else math.nan])
    return np.array(found, dtype="float64")


def calibrate(measured: Placebo, spec: ModelSpec, budget: float) -> Calibration:
    """The smallest thresholds whose expected false alarms are at most `budget` a month.

    Raises NotEnoughData: no multiplier reaches the budget, or a column has distances in fewer than two folds.
    """
    folds = [np.isfinite(measured.distances[measured.fold == fold]).any(axis=(0, 1)) for fold in set(measured.fold)]
    unknown = [name for name, known in zip(measured.columns, np.sum(folds, axis=0), strict=True) if known < 2]
    if unknown:
        raise NotEnoughData(
            f"{spec.name}: expected distances of {unknown} in two folds or more, found fewer; give them drift: null"
        )
    ratio, misfits = _ratio(measured), _misfits(measured)
    found = None
    for multiplier in reversed(MULTIPLIERS):  # downwards: far below the scales everything is one long alarm
        rate, days, kinds = _at(ratio, misfits, measured.columns, spec, float(multiplier))
        if rate > budget or days > MOST_DAYS:
            break
        found = (float(multiplier), rate, days, kinds)
    if found is None:
        raise NotEnoughData(
            f"{spec.name}: expected thresholds with at most {budget:g} false alarms a month, found none: "
            f"{misfits:.2f} come from numbers that do not fit; raise the budget or monitoring.max_misfit"
        )
    final = _scale(measured.distances) * found[0]
    thresholds = {name: _round_up(float(v)) for name, v in zip(measured.columns, final, strict=True)}
    thresholds[LABEL] = min(thresholds[LABEL], 1.0)  # a difference of shares
    return Calibration(
        thresholds=thresholds,
        multiplier=found[0],
        false_alarms=found[1],
        alarm_days=found[2],
        by_kind=found[3],
    )


def false_alarms(measured: Placebo, spec: ModelSpec, multiplier: float) -> tuple[float, float, dict[str, float]]:
    """(alarms a month, share of days in alarm, alarms a month by kind) at a multiplier of the other folds' scales."""
    return _at(_ratio(measured), _misfits(measured), measured.columns, spec, multiplier)


def _ratio(measured: Placebo) -> np.ndarray:
    """Distances over the scales of the other folds."""
    scales = {fold: _scale(measured.distances[measured.fold != fold]) for fold in np.unique(measured.fold)}
    found: np.ndarray = measured.distances / np.stack([scales[fold] for fold in measured.fold])[:, None, :]
    return found


def _misfits(measured: Placebo) -> float:
    """Alarms a month from numbers that do not fit, whatever the thresholds."""
    return MONTH * len(measured.misfit_days) / max(measured.days, 1)


def _at(
    ratio: np.ndarray, misfits: float, columns: tuple[str, ...], spec: ModelSpec, multiplier: float
) -> tuple[float, float, dict[str, float]]:
    kinds = _alarms(ratio, columns, multiplier, spec.monitoring.min_columns)
    alarm = np.logical_or.reduce(list(kinds.values()))
    by_kind = {**{kind: _episodes(alarming) for kind, alarming in kinds.items()}, "broken_data": misfits}
    return _episodes(alarm) + misfits, float(alarm.mean()), by_kind


def _scale(distances: np.ndarray) -> np.ndarray:
    """Per column; never 0, so that a column that never moved breaches when it does."""
    flat = distances.reshape(-1, distances.shape[-1])
    found: np.ndarray = np.maximum(np.nanquantile(flat, SCALE, axis=0), 1e-3)
    return found


def _alarms(ratio: np.ndarray, columns: tuple[str, ...], multiplier: float, least: int) -> dict[str, np.ndarray]:
    """Per kind of verdict, shape (months, windows)."""
    breached = np.nan_to_num(ratio, nan=0.0) >= multiplier
    single = {name: breached[..., columns.index(name)] for name in (PREDICTION, LABEL)}
    features = [i for i, name in enumerate(columns) if name not in single]
    return {
        "covariate_drift": breached[..., features].sum(axis=-1) >= least,
        "prediction_drift": single[PREDICTION],
        "label_drift": single[LABEL],
    }


def _episodes(alarm: np.ndarray) -> float:
    """Runs of consecutive alarming days per month of 30 days, from shape (months, windows)."""
    before = np.concatenate([np.zeros((len(alarm), 1), dtype=bool), alarm[:, :-1]], axis=1)
    started = float(np.count_nonzero(alarm & ~before))
    return float(started * MONTH / alarm.size)


def _round_up(value: float) -> float:
    """Three significant digits, never below the value."""
    digits = 2 - math.floor(math.log10(value))
    return float(math.ceil(value * 10.0**digits - 1e-9) / 10.0**digits)
