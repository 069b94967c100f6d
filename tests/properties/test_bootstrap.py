"""Promises of the bootstrap, for any rows."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from include.evergreen.promotion.bootstrap import Draws, Estimate

METRICS = ["auc", "auc_by_day", "average_precision", "log_loss", "brier", "value"]
RANKS = ["auc", "auc_by_day", "average_precision"]
COSTS = (0.5, 3.0, 1.0)

Rows = tuple[np.ndarray, np.ndarray, np.ndarray]


@st.composite
def rows(draw: Any) -> Rows:
    """(day, label, probability) of 0 to 40 rows; probabilities are multiples of 1/64, so transforms keep ties."""
    size = draw(st.integers(0, 40))

    def column(values: Any) -> np.ndarray:
        return np.array(draw(st.lists(values, min_size=size, max_size=size)), dtype="float64")

    day = column(st.integers(0, 6)).astype("int64")
    return day, column(st.integers(0, 1)).astype("int8"), column(st.integers(1, 63)) / 64


def estimate(name: str, day: np.ndarray, label: np.ndarray, probability: np.ndarray, seed: int = 3) -> Estimate:
    draws = Draws(day, 200, seed)
    return draws.bound(draws.metric(name, label, probability, 0.4, COSTS), 0.9)


def near(one: Estimate, other: Estimate) -> bool:
    """Equal but for the order of summation."""
    pairs = [(one.value, other.value), (one.low, other.low), (one.high, other.high)]
    return all(a == b or math.isclose(a, b, abs_tol=1e-9) or (math.isnan(a) and math.isnan(b)) for a, b in pairs)


@settings(deadline=None)
@given(rows(), st.sampled_from(METRICS))
def test_the_value_is_within_its_bounds(given_: Rows, name: str) -> None:
    found = estimate(name, *given_)
    if math.isnan(found.value):
        assert (found.low, found.high) == (-math.inf, math.inf)
    else:
        assert found.low <= found.value <= found.high
    if len(np.unique(given_[0])) < 2:
        assert (found.low, found.high) == (-math.inf, math.inf)


@settings(deadline=None)
@given(rows(), st.sampled_from(RANKS))
def test_shares_stay_between_none_and_all(given_: Rows, name: str) -> None:
    day, label, probability = given_
    sample = Draws(day, 200, 3).metric(name, label, probability)
    every = np.append(sample.draws, sample.value)
    every = every[~np.isnan(every)]
    assert ((every >= -1e-12) & (every <= 1 + 1e-12)).all()


@settings(deadline=None)
@given(rows(), st.sampled_from(METRICS), st.randoms(use_true_random=False))
def test_the_order_of_the_rows_changes_nothing(given_: Rows, name: str, random: Any) -> None:
    order = list(range(len(given_[0])))
    random.shuffle(order)
    day, label, probability = (column[order] for column in given_)
    assert near(estimate(name, day, label, probability), estimate(name, *given_))


@settings(deadline=None)
@given(
    rows(),
    st.sampled_from(RANKS),
    st.sampled_from([lambda p: p**2, np.sqrt, lambda p: 0.2 + p / 2, lambda p: np.log1p(p) / 2, lambda p: p**3 / 9]),
)
def test_a_rank_metric_sees_ranks_alone(given_: Rows, name: str, monotone: Any) -> None:
    day, label, probability = given_
    assert near(estimate(name, day, label, monotone(probability)), estimate(name, *given_))


@settings(deadline=None)
@given(rows())
def test_the_complement_ranks_the_other_class(given_: Rows) -> None:
    day, label, probability = given_
    assert near(estimate("auc", day, 1 - label, 1 - probability), estimate("auc", *given_))


@settings(deadline=None)
@given(rows(), st.sampled_from(METRICS))
def test_a_twin_gains_exactly_nothing(given_: Rows, name: str) -> None:
    day, label, probability = given_
    draws = Draws(day, 200, 3)
    one, other = (draws.metric(name, label, values, 0.4, COSTS) for values in (probability, probability.copy()))
    found = draws.bound(one - other, 0.9)
    if math.isfinite(found.low):
        assert (found.value, found.low, found.high) == (0, 0, 0)
