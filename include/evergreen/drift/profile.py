"""What a day of data must fit, learned from the training rows: faults show here days before a distribution moves.

Two habits of a number, each cross-validated over contiguous folds of the training days, and watched only where the
habit held there:

support: which values occur. Instruments and prices live on a lattice; a changed unit, offset or rounding leaves it at
    once, a warm week does not. Watched over the last days together: the share of rows that hold no known value; where
    new extremes are usual, only of rows between the smallest and the largest known value.
fit: the mean of the day, as the other columns' means (and the weekday) say it should be, by ridge regression. One
    shifted column no longer fits columns that a storm moves together. Learned on days of usual volume: where most rows
    lost their label, the mean of the rest is not the day's.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa

from include.evergreen.drift.verdict import MIN_ROWS_RATIO, Misfit
from include.evergreen.specs import ModelSpec

SUPPORT_DAYS = 3
MAX_VALUES = 2000
"""A column with more distinct values lives on no lattice."""
MAX_USUAL, MAX_USUAL_EARLY = 0.8, 0.5
"""A column whose days have lacked known values to this share is not watched; the second before SEASONAL_DAYS."""
FOLDS = 5
MIN_DAYS = 28
"""Training days with a value that it takes to speak of a habit."""
SEASONAL_DAYS = 100
"""The same for a column that seldom repeats a value: one season says little of the next."""
RIDGE, WEEKDAY_RIDGE = 1.0, 1e-3
HEADROOM = 0.75
"""A column is watched when its misfit stayed within this part of the limit."""
UNITS = {
    "miles to kilometres": (1.609344, 0.0),
    "kilometres to miles": (1 / 1.609344, 0.0),
    "nautical miles to kilometres": (1.852, 0.0),
    "feet to metres": (0.3048, 0.0),
    "metres to feet": (1 / 0.3048, 0.0),
    "inches to centimetres": (2.54, 0.0),
    "inches to millimetres": (25.4, 0.0),
    "pounds to kilograms": (0.45359237, 0.0),
    "kilograms to pounds": (1 / 0.45359237, 0.0),
    "Fahrenheit to Celsius": (1 / 1.8, -32 / 1.8),
    "Celsius to Fahrenheit": (1.8, 32.0),
    "hours to minutes": (60.0, 0.0),
    "minutes to hours": (1 / 60, 0.0),
    "seconds to milliseconds": (1000.0, 0.0),
    "a share to percent": (100.0, 0.0),
    "percent to a share": (0.01, 0.0),
}
"""name -> (factor, offset): new = old * factor + offset."""
SPREAD_TOLERANCE = 0.1
"""After undoing a change of unit, the day's spread is within this part of what training days had."""
MAX_OFF_LATTICE = 0.5
"""And a smaller share of its rows is off the known lattice."""
LATTICE_TOLERANCE = 1e-5
"""Converting there and back loses the last bits: relative distance at which a value is the known one."""
THREADS = 2
Lattice = tuple[np.ndarray, float, bool]
"""Known values of a column, the limit of the share that may be unknown, whether new extremes count as such."""


class _Alone(NamedTuple):
    """What a column says by itself; `means`: of the days, shape (days,). The others: see `Profile`."""

    mean: float
    std: float
    means: np.ndarray
    daily: tuple[float, float, float, float]
    lattice: Lattice | None


@dataclass(frozen=True)
class Profile:
    """Learned habits.

    Attributes:
        mean, std: per number, over the training rows; std > 0.
        support: column -> sorted known values. unseen: column -> limit of the share that may be unknown.
        bounded: columns whose values also stay between the smallest and the largest known one.
        weights: column -> ridge weights over `columns` (own weight 0), seven weekdays, and the intercept.
        daily: column -> smallest and largest mean, smallest and largest spread of a training day.
    """

    columns: tuple[str, ...]
    mean: dict[str, float]
    std: dict[str, float]
    support: dict[str, np.ndarray] = field(repr=False)
    unseen: dict[str, float]
    bounded: frozenset[str]
    weights: dict[str, np.ndarray] = field(repr=False)
    daily: dict[str, tuple[float, float, float, float]]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "columns": list(self.columns),
            "mean": self.mean,
            "std": self.std,
            "support": {name: values.tolist() for name, values in self.support.items()},
            "unseen": self.unseen,
            "bounded": sorted(self.bounded),
            "weights": {name: values.tolist() for name, values in self.weights.items()},
            "daily": {name: list(bounds) for name, bounds in self.daily.items()},
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Profile:
        """Rebuild from `to_dict`."""
        return cls(
            columns=tuple(data["columns"]),
            mean=dict(data["mean"]),
            std=dict(data["std"]),
            support={name: np.asarray(values, dtype="float64") for name, values in data["support"].items()},
            unseen=dict(data["unseen"]),
            bounded=frozenset(data["bounded"]),
            weights={name: np.asarray(values, dtype="float64") for name, values in data["weights"].items()},
            daily={name: tuple(bounds) for name, bounds in data["daily"].items()},
        )


def learn(rows: pa.Table, spec: ModelSpec) -> Profile:
    """Learn the habits of the watched numbers (those with `drift`), from features with `as_of`, any order."""
    days, day = np.unique(_ordinals(rows), return_inverse=True)
    names = [n for n, f in spec.features.items() if f.type == "number" and f.drift is not None]
    folds = np.array_split(np.arange(len(days)), FOLDS)

    def alone(name: str) -> _Alone | None:
        """None for a column that says nothing."""
        values, at = _finite(_values(rows, name), day)
        if not len(values) or not (spread := float(values.std())) > 0:
            return None
        middle = float(values.mean())
        means = _standardised(values, at, len(days), middle, spread)
        present = np.isfinite(means).sum()
        most = MAX_USUAL if present >= SEASONAL_DAYS else MAX_USUAL_EARLY
        lattice = _lattice(values, at, len(days), folds, most) if present >= MIN_DAYS else None
        return _Alone(middle, spread, means, _daily(values, at, len(days)), lattice)

    with ThreadPoolExecutor(THREADS) as pool:  # few columns at a time: the rows may be many
        learned = {name: found for name, found in zip(names, pool.map(alone, names), strict=True) if found is not None}
    columns = tuple(learned)
    lattices = {name: found.lattice for name, found in learned.items() if found.lattice is not None}
    weights: dict[str, np.ndarray] = {}
    z = np.stack([found.means for found in learned.values()], axis=1) if learned else np.empty((len(days), 0))
    volume = np.bincount(day, minlength=len(days))
    usual = np.flatnonzero(volume >= MIN_ROWS_RATIO * np.median(volume)) if len(days) else np.arange(0)
    usual_folds = np.array_split(np.arange(len(usual)), FOLDS)
    for index, name in enumerate(columns):
        if np.isfinite(z[:, index]).sum() < MIN_DAYS:
            continue
        weight = _relation(z[usual], _weekdays(days)[usual], index, usual_folds, HEADROOM * spec.monitoring.max_misfit)
        if weight is not None:
            weights[name] = weight
    return Profile(
        columns,
        mean={name: found.mean for name, found in learned.items()},
        std={name: found.std for name, found in learned.items()},
        support={name: known for name, (known, _, _) in lattices.items()},
        unseen={name: limit for name, (_, limit, _) in lattices.items()},
        bounded=frozenset(name for name, (_, _, strict) in lattices.items() if strict),
        weights=weights,
        daily={name: found.daily for name, found in learned.items()},
    )


def misfits(profile: Profile, rows: pa.Table, as_of: dt.date, limit: float) -> dict[str, Misfit]:
    """What `as_of` does not fit: what a change of unit explains first, then worst first. Nothing without a row of that
    date.

    A column without a value that date is no misfit, and the others have the benefit of the doubt: it may have been
    anything it was on a training day.

    Args:
        rows: features with `as_of`, of the last days up to `as_of`; later rows are not looked at.
        limit: of the fit, in standard deviations (`monitoring.max_misfit`).
    """
    ordinals = _ordinals(rows)
    today = ordinals == as_of.toordinal()
    recent = (ordinals > as_of.toordinal() - SUPPORT_DAYS) & (ordinals <= as_of.toordinal())
    if not today.any():
        return {}
    columns = profile.columns
    values = {name: _values(rows, name) for name in columns}
    values_today = {name: found[today] for name, found in values.items()}
    z = np.array([_today(values_today[name], profile.mean[name], profile.std[name]) for name in columns])
    line = np.concatenate([np.nan_to_num(z), _weekdays(np.array([as_of.toordinal()]))[0], [1.0]])
    doubt = np.where(np.isfinite(z), 0.0, [_reach(profile, name) for name in columns])
    expected = {name: float(line @ weight) for name, weight in profile.weights.items()}

    def misfit(name: str, kind: Literal["support", "fit"], found: float, allowed: float) -> Misfit:
        unit = _unit(profile, name, values_today[name], expected.get(name), HEADROOM * limit)
        return Misfit(kind, found, allowed, unit)

    found: dict[str, Misfit] = {}
    for name, known in profile.support.items():
        strict = name in profile.bounded
        # the date itself too: the day after a repair is no fault
        share = min(
            _daily_unseen(values[name][recent], ordinals[recent], known, strict),
            _daily_unseen(values_today[name], ordinals[today], known, strict),
        )
        if share >= profile.unseen[name] and np.isfinite(values_today[name]).any():
            found[name] = misfit(name, "support", share, profile.unseen[name])
    for name, weight in profile.weights.items():
        residual = float(z[columns.index(name)] - expected[name])  # NaN without a value: below every limit
        if abs(residual) - np.abs(weight[: len(columns)]) @ doubt >= limit:
            off = misfit(name, "fit", residual, limit)
            if name not in found or found[name].severity < off.severity:
                found[name] = off
    return dict(sorted(found.items(), key=lambda item: (not item[1].hint, -item[1].severity, item[0])))


def _ordinals(rows: pa.Table) -> np.ndarray:
    found: np.ndarray = rows["as_of"].cast(pa.date32()).to_numpy().astype("datetime64[D]").astype("int64")
    return found + dt.date(1970, 1, 1).toordinal()


def _weekdays(ordinals: np.ndarray) -> np.ndarray:
    found: np.ndarray = np.eye(7)[ordinals % 7]
    return found


def _values(rows: pa.Table, name: str) -> np.ndarray:
    # a large integer loses its last digits here, which no habit needs
    found: np.ndarray = rows[name].cast(pa.float32(), safe=False).to_numpy().astype("float64")
    return found


def _finite(values: np.ndarray, day: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The finite values, and the days they are of."""
    finite = np.isfinite(values)
    return (values, day) if finite.all() else (values[finite], day[finite])


def _lattice(values: np.ndarray, day: np.ndarray, size: int, folds: list[np.ndarray], most: float) -> Lattice | None:
    """The known ones of finite values, the limit of what may be unknown, and whether new extremes count; None for a
    column that is not watched."""
    encoded = pa.array(values + 0.0).dictionary_encode()  # one zero
    if len(encoded.dictionary) > MAX_VALUES or len(encoded.dictionary) < 2:
        return None
    known, rank = np.unique(encoded.dictionary.to_numpy(), return_inverse=True)
    code = rank[encoded.indices.to_numpy()]
    counts = np.bincount(day * len(known) + code, minlength=size * len(known)).reshape(size, len(known))
    for strict in (True, False):
        usual = _usual(known, counts, folds, strict)
        if usual is not None and usual <= most:
            return known, (1 + usual) / 2, strict
    return None


def _usual(known: np.ndarray, counts: np.ndarray, folds: list[np.ndarray], strict: bool) -> float | None:
    """The largest share of unknown values that days left out had, over `SUPPORT_DAYS` together."""
    share = np.zeros(len(counts))
    for fold in folds:
        seen = np.delete(counts, fold, axis=0).any(axis=0)
        if not seen.any():
            return None
        between = np.full(len(known), strict) | ((known >= known[seen].min()) & (known <= known[seen].max()))
        total = counts[fold][:, between].sum(axis=1)
        share[fold] = counts[fold][:, between & ~seen].sum(axis=1) / np.maximum(total, 1)
    return float(np.convolve(share, np.ones(SUPPORT_DAYS) / SUPPORT_DAYS, mode="valid").max())


def _daily_unseen(values: np.ndarray, ordinals: np.ndarray, known: np.ndarray, strict: bool) -> float:
    """Mean over the days of the share of unknown values; unless `strict`, among those within the known range."""
    between = np.isfinite(values)
    if not strict:
        between &= (values >= known[0]) & (values <= known[-1])
    at = np.clip(np.searchsorted(known, values), 0, len(known) - 1)
    unseen = between & (known[at] != values)
    _, day = np.unique(ordinals, return_inverse=True)
    total, count = np.bincount(day, between), np.bincount(day, unseen)
    return float(np.mean(count / np.maximum(total, 1)))


def _standardised(values: np.ndarray, day: np.ndarray, size: int, mean: float, std: float) -> np.ndarray:
    """Daily means of finite values in training standard deviations, shape (days,); NaN for a day without a value."""
    count = np.bincount(day, minlength=size)
    total = np.bincount(day, values, minlength=size)
    return np.where(count > 0, (total / np.maximum(count, 1) - mean) / std, np.nan)


def _today(values: np.ndarray, mean: float, std: float) -> float:
    """`_standardised` of one day."""
    known, day = _finite(values, np.zeros(len(values), dtype=int))
    return float(_standardised(known, day, 1, mean, std)[0])


def _relation(
    z: np.ndarray, weekdays: np.ndarray, index: int, folds: list[np.ndarray], most: float
) -> np.ndarray | None:
    """Ridge weights of one column over the others; None where they do not explain it on days left out."""
    others = np.nan_to_num(z)
    others[:, index] = 0.0
    design = np.concatenate([others, weekdays, np.ones((len(z), 1))], axis=1)
    penalty = np.diag([RIDGE] * z.shape[1] + [WEEKDAY_RIDGE] * 7 + [WEEKDAY_RIDGE])
    target = z[:, index]

    def solve(train: np.ndarray) -> np.ndarray:
        a = design[train]
        found: np.ndarray = np.linalg.solve(a.T @ a + penalty, a.T @ target[train])
        return found

    everything = np.flatnonzero(np.isfinite(target))
    for fold in folds:
        left = np.intersect1d(everything, fold)
        weights = solve(np.setdiff1d(everything, fold))
        if np.abs(target[left] - design[left] @ weights).max(initial=0.0) > most:
            return None
    return solve(everything)


def _daily(values: np.ndarray, day: np.ndarray, size: int) -> tuple[float, float, float, float]:
    """Smallest and largest mean, smallest and largest standard deviation of a day with finite values."""
    count = np.bincount(day, minlength=size)
    mean = np.bincount(day, values, minlength=size) / np.maximum(count, 1)
    square = np.bincount(day, (values - mean[day]) ** 2, minlength=size)
    spread = np.sqrt(square / np.maximum(count, 1))
    mean, spread = mean[count > 0], spread[count > 0]
    return float(mean.min()), float(mean.max()), float(spread.min()), float(spread.max())


def _reach(profile: Profile, name: str) -> float:
    """How far from the training's mean the mean of a training day was, at most, in standard deviations."""
    low, high, _, _ = profile.daily[name]
    return max(profile.mean[name] - low, high - profile.mean[name]) / profile.std[name]


def _unit(profile: Profile, name: str, values: np.ndarray, expected: float | None, near: float) -> str:
    """The change of unit that explains the day best, if one does: undone, most values are on the known lattice, the
    spread is one of a training day, and the mean is where the other columns expect it (`expected`, within `near`; both
    in standard deviations), or else one of a training day."""
    values = values[np.isfinite(values)]
    if not len(values):
        return ""
    mean, std, (lowest, highest, tight, wide) = profile.mean[name], profile.std[name], profile.daily[name]
    explained = []
    for unit, (factor, offset) in UNITS.items():
        undone = (values - offset) / factor
        away = abs((undone.mean() - mean) / std - (expected or 0.0))
        off = _off_lattice(undone, profile.support.get(name))
        fits = away < near if expected is not None else lowest <= undone.mean() <= highest
        spread = (1 - SPREAD_TOLERANCE) * tight <= undone.std() <= (1 + SPREAD_TOLERANCE) * wide
        if fits and spread and off < MAX_OFF_LATTICE:
            explained.append((off, away, unit))
    return f"as if changed from {min(explained)[2]}" if explained else ""


def _off_lattice(values: np.ndarray, known: np.ndarray | None) -> float:
    """Share of values that are none of the known ones, as near as makes no difference."""
    if known is None:
        return 0.0
    right = np.clip(np.searchsorted(known, values), 1, len(known) - 1)
    nearest = np.minimum(np.abs(known[right] - values), np.abs(values - known[right - 1]))
    return float(np.mean(nearest > LATTICE_TOLERANCE * np.maximum(np.abs(values), 1.0)))
