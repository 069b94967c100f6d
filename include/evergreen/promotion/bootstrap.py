"""The paired bootstrap by day: how far a metric, or a difference of two, can be trusted.

Rows of one day share their weather and their strikes: whole days are drawn, with replacement, and every model is
measured on the same draws. No row is touched twice: AUC over any draw of days is a quadratic form in the days' counts,
mean losses are ratios of sums per day.

Bounds are expanded percentiles (T. Hesterberg, What Teachers Should Know about the Bootstrap, 2014): with few days the
plain percentiles are too narrow, and are widened to those of Student's t with days - 1 degrees of freedom.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from include.evergreen.training.metrics import EPSILON, saved


@dataclass(frozen=True)
class Estimate:
    """A value and its bounds; the truth is above `low`, and below `high`, each with the stated confidence."""

    value: float
    low: float
    high: float

    def __neg__(self) -> Estimate:
        return Estimate(-self.value, -self.high, -self.low)


@dataclass(frozen=True)
class Sample:
    """A metric on the rows as they are, and on every draw: `draws` has shape (resamples,)."""

    value: float
    draws: np.ndarray = field(repr=False)

    def __sub__(self, other: Sample) -> Sample:
        return Sample(self.value - other.value, self.draws - other.draws)

    def __neg__(self) -> Sample:
        return Sample(-self.value, -self.draws)


class Draws:
    """Draws of whole days, the same for every model and metric.

    Args:
        days: the day of each row, shape (rows,), any sortable type.
        resamples: number of draws.
        seed: of the draws; the same days, resamples and seed give the same bounds.
    """

    def __init__(self, days: np.ndarray, resamples: int, seed: int) -> None:
        self.days, self._day = np.unique(days, return_inverse=True)
        size = len(self.days)
        rng = np.random.default_rng([seed, size])
        self._counts = np.ones((1, size))
        if size:
            drawn = rng.multinomial(size, np.full(size, 1 / size), size=resamples)
            self._counts = np.vstack([self._counts, drawn]).astype("float64")

    def _per_day(self, values: np.ndarray) -> np.ndarray:
        found: np.ndarray = np.bincount(self._day, weights=values, minlength=len(self.days))
        return found

    @cached_property
    def _rows(self) -> np.ndarray:
        found: np.ndarray = self._counts @ self._per_day(np.ones(len(self._day)))
        return found

    def mean(self, values: np.ndarray) -> Sample:
        """The mean of a value per row, shape (rows,)."""
        return _sample(self._counts @ self._per_day(values), self._rows)

    def auc(self, label: np.ndarray, probability: np.ndarray) -> Sample:
        """The area under the ROC curve; NaN in a draw with a single class."""
        wins = self._wins(label, probability)
        positive, negative = self._per_day((label == 1) * 1.0), self._per_day((label == 0) * 1.0)
        pairs = (self._counts @ positive) * (self._counts @ negative)
        return _sample(((self._counts @ wins) * self._counts).sum(axis=1), pairs)

    def auc_by_day(self, label: np.ndarray, probability: np.ndarray) -> Sample:
        """The share of pairs of one day that are ranked right: AUC blind to good and bad days."""
        wins = np.diag(self._wins(label, probability))
        positive, negative = self._per_day((label == 1) * 1.0), self._per_day((label == 0) * 1.0)
        return _sample(self._counts @ wins, self._counts @ (positive * negative))

    def _wins(self, label: np.ndarray, probability: np.ndarray) -> np.ndarray:
        """Entry (i, j): pairs of a positive of day i and a negative of day j that are ranked right, ties as halves."""
        size = len(self.days)
        _, rank = np.unique(probability, return_inverse=True)
        positive = label == 1
        ranks = int(rank.max(initial=-1)) + 1
        found = np.zeros((size, size))
        rank_of, day_of = rank[positive], self._day[positive]
        for j in range(size):
            here = np.bincount(rank[~positive & (self._day == j)], minlength=ranks)
            below = np.cumsum(here) - here / 2
            found[:, j] = np.bincount(day_of, weights=below[rank_of], minlength=size)
        return found

    def average_precision(self, label: np.ndarray, probability: np.ndarray) -> Sample:
        """Average precision; NaN in a draw without a positive."""
        order = np.argsort(-probability, kind="stable")
        day, hit, score = self._day[order], (label[order] == 1).astype("float64"), probability[order]
        last = np.append(score[1:] != score[:-1], True) if len(score) else np.zeros(0, dtype=bool)
        found = np.full(len(self._counts), math.nan)
        for index, counts in enumerate(self._counts):
            weight = counts[day]
            seen, right = np.cumsum(weight)[last], np.cumsum(weight * hit)[last]
            if len(right) and right[-1] > 0:
                precision = np.divide(right, seen, out=np.zeros_like(right), where=seen > 0)
                found[index] = np.sum(precision * np.diff(right, prepend=0.0)) / right[-1]
        return Sample(float(found[0]), found[1:])

    def metric(
        self,
        name: str,
        label: np.ndarray,
        probability: np.ndarray,
        threshold: float = 0.5,
        costs: tuple[float, float, float] | None = None,
    ) -> Sample:
        """Any metric of `training.metrics`; `value` needs `costs` (hit, miss, false alarm) and uses `threshold`.

        Raises ValueError: a metric that is not known here.
        """
        clipped = np.clip(probability.astype("float64"), EPSILON, 1 - EPSILON)
        if name == "auc":
            return self.auc(label, clipped)
        if name == "auc_by_day":
            return self.auc_by_day(label, clipped)
        if name == "average_precision":
            return self.average_precision(label, clipped)
        if name == "brier":
            return self.mean((clipped - label) ** 2)
        if name == "log_loss":
            return self.mean(-np.log(np.where(label == 1, clipped, 1 - clipped)))
        if name == "value" and costs is not None:
            return self.mean(saved(label, probability >= threshold, costs) * 1000)
        raise ValueError(
            f"metric: expected auc, auc_by_day, average_precision, brier, log_loss, or value with costs, found {name}"
        )

    def bound(self, sample: Sample, confidence: float) -> Estimate:
        """Bounds of a sample, each holding with `confidence`; without bounds (-inf, inf) below two days."""
        from scipy import stats

        size = len(self.days)
        draws = sample.draws[np.isfinite(sample.draws)]
        if size < 2 or not len(draws) or not math.isfinite(sample.value):
            return Estimate(sample.value, -math.inf, math.inf)
        widened = stats.norm.cdf(math.sqrt(size / (size - 1)) * stats.t.ppf(1 - confidence, size - 1))
        low, high = np.quantile(draws, [widened, 1 - widened])
        return Estimate(sample.value, float(min(low, sample.value)), float(max(high, sample.value)))


def _sample(above: np.ndarray, below: np.ndarray) -> Sample:
    with np.errstate(invalid="ignore", divide="ignore"):
        found = np.where(below > 0, above / below, math.nan)
    return Sample(float(found[0]), found[1:])
