"""The bootstrap by day: the same numbers as scikit-learn, draws as if rows were repeated, bounds that hold."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from sklearn import metrics as sk

from include.evergreen.promotion.bootstrap import Draws, Estimate, Sample
from include.evergreen.training.metrics import saved

COSTS = (1.0, 5.0, 2.0)
THRESHOLD = 0.4
METRICS = ["auc", "auc_by_day", "average_precision", "log_loss", "brier", "value"]


def world(days: int = 8, rows: int = 400, seed: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(day, label, probability) in any order, with ties among the probabilities and days of unequal size."""
    random = np.random.default_rng(seed)
    day = np.datetime64("2024-01-01") + random.integers(0, days, rows) ** 2 // days
    late = random.random(rows)
    label = (random.random(rows) < late).astype("int8")
    return day, label, np.round(0.7 * late + 0.3 * random.random(rows), 2).clip(0.01, 0.99)


def by_day(day: np.ndarray, label: np.ndarray, probability: np.ndarray) -> float:
    """The share of pairs of one day ranked right, counted pair by pair."""
    right = pairs = 0.0
    for one in np.unique(day):
        high, low = (probability[(day == one) & (label == kind)] for kind in (1, 0))
        gap = high[:, None] - low[None, :]
        right, pairs = right + (gap > 0).sum() + (gap == 0).sum() / 2, pairs + gap.size
    return right / pairs


def expected(name: str, day: np.ndarray, label: np.ndarray, probability: np.ndarray) -> float:
    """The metric by other means."""
    if name == "auc_by_day":
        return by_day(day, label, probability)
    if name == "value":
        hit, miss, false_alarm = COSTS
        never = miss * (label == 1)
        acting = np.where(label == 1, hit, false_alarm)
        paid = np.where(probability >= THRESHOLD, acting, never)
        return float(1000 * (never.sum() - paid.sum()) / len(label))
    found = {
        "auc": lambda: sk.roc_auc_score(label, probability),
        "average_precision": lambda: sk.average_precision_score(label, probability),
        "log_loss": lambda: sk.log_loss(label, probability, labels=[0, 1]),
        "brier": lambda: sk.brier_score_loss(label, probability),
    }[name]()
    return float(found)


def measure(draws: Draws, name: str, label: np.ndarray, probability: np.ndarray) -> Sample:
    return draws.metric(name, label, probability, THRESHOLD, COSTS)


# --- values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_value_is_the_metric_of_the_rows(name: str, seed: int) -> None:
    day, label, probability = world(seed=seed)
    found = measure(Draws(day, 200, 1), name, label, probability)
    assert found.value == pytest.approx(expected(name, day, label, probability), rel=1e-12)


@pytest.mark.parametrize("name", METRICS)
def test_a_draw_is_the_metric_of_the_drawn_days_rows(name: str) -> None:
    """The draws are taken again from the same generator, and each drawn day's rows repeated."""
    day, label, probability = world()
    days, size = np.unique(day), len(np.unique(day))
    found = measure(Draws(day, 200, 5), name, label, probability)
    drawn = np.random.default_rng([5, size]).multinomial(size, np.full(size, 1 / size), size=200)
    assert found.draws.shape == (200,)
    for number in range(25):
        parts = [np.flatnonzero(day == one) for one in np.repeat(days, drawn[number])]
        # a day drawn twice is two days, each with its own pairs
        copy = np.concatenate([np.full(len(part), at) for at, part in enumerate(parts)])
        rows = np.concatenate(parts)
        again = expected(name, copy, label[rows], probability[rows])
        assert found.draws[number] == pytest.approx(again, rel=1e-9), number


def test_every_draw_takes_as_many_days_as_there_are() -> None:
    day = np.repeat(np.arange(6), 10)
    ones = Draws(day, 300, 1).mean(np.ones(60))
    assert ones.draws == pytest.approx(np.ones(300))
    share = Draws(day, 300, 1).mean((day == 0) * 1.0).draws * 6
    assert share == pytest.approx(np.round(share))
    assert share.min() == 0
    assert share.max() >= 3


def test_both_models_are_measured_on_the_same_draws() -> None:
    day, label, probability = world()
    draws = Draws(day, 500, 1)
    gain = draws.auc(label, probability) - draws.auc(label, probability)
    assert gain.value == 0
    assert np.ptp(gain.draws) == 0
    near = np.where(np.arange(len(label)) % 40 == 0, 0.5, probability)
    one, other = draws.auc(label, probability), draws.auc(label, near)
    paired = (one - other).draws.std()
    assert paired < 0.5 * math.hypot(one.draws.std(), other.draws.std()), "unpaired draws are as wide as their sum"


def test_a_gain_turned_round_swaps_its_bounds() -> None:
    day, label, probability = world()
    draws = Draws(day, 500, 1)
    sample = draws.metric("brier", label, probability) - draws.metric("brier", label, 0 * probability + 0.5)
    there, back = draws.bound(sample, 0.9), draws.bound(-sample, 0.9)
    assert (back.value, back.low, back.high) == pytest.approx((-there.value, -there.high, -there.low))
    assert -there == Estimate(-there.value, -there.high, -there.low)


def test_the_same_seed_gives_the_same_bounds() -> None:
    day, label, probability = world()

    def bounds(seed: int) -> Estimate:
        draws = Draws(day, 500, seed)
        return draws.bound(draws.auc(label, probability), 0.95)

    assert bounds(1) == bounds(1)
    assert bounds(1) != bounds(2)


def test_saved_counts_what_acting_saves_against_never_acting() -> None:
    label, acted = np.array([1, 1, 0, 0]), np.array([True, False, True, False])
    assert saved(label, acted, COSTS).tolist() == [4.0, 0.0, -2.0, 0.0]


def test_an_unknown_metric_is_named() -> None:
    day, label, probability = world()
    with pytest.raises(ValueError, match="found f1"):
        Draws(day, 200, 1).metric("f1", label, probability)
    with pytest.raises(ValueError, match="value with costs, found value"):
        Draws(day, 200, 1).metric("value", label, probability)


# --- bounds ----------------------------------------------------------------------------------------------------------


def test_few_days_widen_the_percentiles() -> None:
    draws = np.sort(np.random.default_rng(1).normal(size=100_001))
    below = []
    for days in (2, 3, 5, 10, 20, 1000):
        found = Draws(np.arange(days), 200, 1).bound(Sample(0.0, draws), 0.95)
        below.append(float((draws < found.low).mean()))
        assert float((draws > found.high).mean()) == pytest.approx(below[-1], abs=1e-4)
    assert below == sorted(below)
    assert below[0] < 1e-4
    assert below[-1] == pytest.approx(0.05, abs=5e-4)


@pytest.mark.parametrize("days", [8, 12, 20, 40])
def test_the_bounds_of_a_mean_are_those_of_students_t(days: int) -> None:
    from scipy import stats

    values = np.random.default_rng(days).normal(size=days)
    draws = Draws(np.arange(days), 20_000, 1)
    found = draws.bound(draws.mean(values), 0.95)
    half = stats.t.ppf(0.95, days - 1) * values.std(ddof=1) / math.sqrt(days)
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.03)


def test_more_confidence_is_wider() -> None:
    day, label, probability = world()
    draws = Draws(day, 2000, 1)
    sample = draws.auc(label, probability)
    sure, unsure = draws.bound(sample, 0.95), draws.bound(sample, 0.6)
    assert sure.low < unsure.low < sample.value < unsure.high < sure.high


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("days", [0, 1])
def test_below_two_days_there_are_no_bounds(name: str, days: int) -> None:
    day, label, probability = (values[: 100 * days] for values in world())
    draws = Draws(np.full(len(day), np.datetime64("2024-01-01")), 200, 1)
    found = draws.bound(measure(draws, name, label, probability), 0.95)
    assert (found.low, found.high) == (-math.inf, math.inf)
    assert math.isfinite(found.value) == bool(days)


@pytest.mark.parametrize("name", ["auc", "auc_by_day", "average_precision"])
def test_a_single_class_has_no_value_and_no_bounds(name: str) -> None:
    day, label, probability = world()
    draws = Draws(day, 200, 1)
    found = draws.bound(draws.metric(name, 0 * label, probability), 0.95)
    assert math.isnan(found.value)
    assert (found.low, found.high) == (-math.inf, math.inf)


def test_a_draw_without_a_class_is_left_out() -> None:
    """All positives are of one day of four: a third of the draws have none."""
    day = np.repeat(np.arange(4), 25)
    label = ((day == 0) & (np.arange(100) % 2 == 0)).astype("int8")
    probability = np.random.default_rng(1).random(100)
    draws = Draws(day, 500, 1)
    sample = draws.auc(label, probability)
    assert 0.2 < np.isnan(sample.draws).mean() < 0.45
    found = draws.bound(sample, 0.95)
    assert -math.inf < found.low <= found.value <= found.high < math.inf


# --- what the bounds are worth ---------------------------------------------------------------------------------------


def simulated(random: np.random.Generator, days: int, rows: int) -> tuple[Any, ...]:
    """(day, label, good, weak): two scores of days that differ in rate, and in how much each score tells of them."""
    day = np.repeat(np.arange(days), rows)
    rate, told = random.normal(0, 0.7, days)[day], random.normal(1.0, 0.5, days)[day]
    noise = random.normal(size=(3, len(day)))
    label = (rate + noise[0] > 0.3).astype("int8")
    odds = rate + noise[0]
    return day, label, told * odds + noise[1], 0.6 * odds + noise[2]


def squashed(score: np.ndarray) -> np.ndarray:
    found: np.ndarray = 1 / (1 + np.exp(-score))
    return found


@pytest.fixture(scope="module")
def gains() -> dict[str, tuple[float, list[Estimate]]]:
    """Metric -> the true gain of the better score, and its estimates in 400 worlds of 20 days."""
    random = np.random.default_rng(20130101)
    _, label, good, weak = simulated(random, 20_000, 25)
    worlds = [simulated(random, 20, 25) for _ in range(400)]
    found = {}
    for name, of in (("auc", sk.roc_auc_score), ("brier", sk.brier_score_loss)):
        truth = float(of(label, squashed(good)) - of(label, squashed(weak)))
        seen = []
        for number, (days, labels, better, worse) in enumerate(worlds):
            draws = Draws(days, 500, number)
            gain = draws.metric(name, labels, squashed(better)) - draws.metric(name, labels, squashed(worse))
            seen.append(draws.bound(gain, 0.95))
        found[name] = truth, seen
    return found


@pytest.mark.parametrize("name", ["auc", "brier"])
@pytest.mark.parametrize("side", ["low", "high"])
def test_a_bound_holds_as_often_as_it_says(gains: Any, name: str, side: str) -> None:
    truth, estimates = gains[name]
    held = [found.low <= truth if side == "low" else truth <= found.high for found in estimates]
    assert 0.92 <= np.mean(held) <= 0.98, np.mean(held)


def test_rows_drawn_one_by_one_would_be_too_sure() -> None:
    """Why days are drawn: with effects of days, bounds over independent rows hold far less often."""
    random = np.random.default_rng(7)
    held = {"days": 0, "rows": 0}
    for number in range(200):
        day = np.repeat(np.arange(20), 25)
        values = random.normal(0, 1, 20)[day] + random.normal(size=len(day))
        for name, unit in (("days", day), ("rows", np.arange(len(day)))):
            draws = Draws(unit, 200, number)
            held[name] += draws.bound(draws.mean(values), 0.95).low <= 0
    assert held["days"] >= 184
    assert held["rows"] <= 160
