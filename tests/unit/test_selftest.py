"""The gate's self-test on the shop: its rivals, its draws, and what it says of the gate."""

from __future__ import annotations

import datetime as dt
import functools
import math

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from include.evergreen.errors import NotEnoughData
from include.evergreen.features.build import features, labelled, labels
from include.evergreen.lake.memory import MemoryLake
from include.evergreen.promotion import selftest
from include.evergreen.promotion.selftest import EXPECTED, SelfTest, Trials
from include.evergreen.specs import ModelSpec
from tests import examples

DAYS, TRIALS = 60, 12
AS_OF = examples.FIRST + dt.timedelta(days=DAYS)


@functools.cache
def spec() -> ModelSpec:
    plain = examples.model()
    return plain.model_copy(update={"gate": plain.gate.model_copy(update={"resamples": 200})})


@functools.cache
def rows() -> pa.Table:
    lake, last = MemoryLake(), AS_OF - dt.timedelta(days=1)
    examples.fill(lake, DAYS, per_day=100)
    known = labels(lake, spec(), examples.FIRST, last, cut=AS_OF)
    return labelled(features(lake, spec(), examples.FIRST, last), known, spec())


@functools.cache
def found() -> tuple[SelfTest, tuple[tuple[int, int], ...]]:
    done: list[tuple[int, int]] = []
    answer = selftest.run(spec(), rows(), AS_OF, few_days=2, trials=TRIALS, report=lambda *at: done.append(at))
    return answer, tuple(done)


def trials(rival: str, answer: SelfTest | None = None) -> Trials:
    return next(t for t in (answer or found()[0]).trials if t.rival == rival)


def test_rivals_are_what_their_names_say() -> None:
    offered = selftest.pairs(spec(), rows(), AS_OF, few_days=2)
    assert list(offered) == list(EXPECTED)
    champion, twin = offered["twin"]
    assert twin.sha256 == champion.sha256
    assert offered["shuffled_labels"][0] is offered["half_the_features"][0] is offered["more_data"][1] is champion
    importances = champion.facts["importances"]
    best = max(importances, key=importances.get)
    half = offered["half_the_features"][1].facts["importances"]
    assert set(half) < set(importances)
    assert best not in half
    few = offered["more_data"][0].facts
    until = AS_OF - dt.timedelta(days=spec().training.holdout_days + spec().training.validation_days)
    two = [until - dt.timedelta(days=back) for back in (1, 2)]
    assert few["rows"]["train"] == 100 * sum(not spec().gate.frozen.holds(day) for day in two) > 0
    assert champion.facts["rows"]["train"] > 30 * 100
    assert few["trained_until"] == champion.facts["trained_until"]
    assert offered["shuffled_labels"][1].facts["metrics"]["reference"]["rate"] == pytest.approx(
        champion.facts["metrics"]["reference"]["rate"], abs=0.03
    )


def test_the_gate_refuses_a_twin_and_worse_models_and_accepts_a_better_one() -> None:
    answer, done = found()
    assert [t.rival for t in answer.trials] == list(EXPECTED)
    assert done == tuple((at, 4 * TRIALS) for at in range(1, 4 * TRIALS + 1))
    for rival in ("twin", "shuffled_labels", "half_the_features"):
        assert trials(rival).accepted == 0
        assert sum(trials(rival).reasons.values()) >= TRIALS, "every refusal has its reason"
    assert trials("more_data").accepted > TRIALS / 2
    assert (trials("twin").gains == 0).all()
    assert trials("shuffled_labels").gains.mean() < trials("half_the_features").gains.mean() < 0
    assert trials("more_data").gains.mean() > 0
    assert all((t.lows <= t.gains).all() for t in answer.trials)
    assert answer.false_accepts == 0
    assert answer.false_rejects == pytest.approx(1 - trials("more_data").accepted / TRIALS)
    assert answer.smallest_gain > 0
    newest = examples.dates(DAYS)[-5:]
    held = [day for day in examples.dates(DAYS) if spec().gate.frozen.holds(day) and day not in newest]
    assert (answer.fresh_days, answer.frozen_days) == (len(newest), len(held))
    assert answer.rows == 100 * (answer.fresh_days + answer.frozen_days)


def test_the_same_trials_twice_are_the_same() -> None:
    again = selftest.run(spec(), rows(), AS_OF, few_days=2, trials=3)
    for t in again.trials:
        np.testing.assert_array_equal(t.gains, trials(t.rival).gains[:3])
        np.testing.assert_array_equal(t.lows, trials(t.rival).lows[:3])
    assert len(np.unique(trials("more_data").gains)) > 1, "no two fortnights are the same"


def test_days_are_drawn_whole_and_twice_is_two() -> None:
    days = np.repeat(np.array([3, 4, 5, 10, 11, 12, 13]), [2, 3, 1, 4, 2, 3, 5])
    fresh = days >= 10
    seen = set()
    for seed in range(30):
        index, day = selftest._drawn(days, fresh, np.random.default_rng(seed))
        for part, number in ((False, 3), (True, 4)):
            mine = fresh[index] == part
            drawn = [np.unique(days[index[mine & (day == d)]]).tolist() for d in np.unique(day[mine])]
            assert len(drawn) == number, "as many days as there are"
            assert all(len(chosen) == 1 for chosen in drawn), "a drawn day is one day"
            assert [len(index[mine & (day == d)]) for d in np.unique(day[mine])] == [
                int(np.count_nonzero(days == chosen[0])) for chosen in drawn
            ], "and all of it"
            seen.add((part, len({chosen[0] for chosen in drawn})))
    assert {(False, 2), (False, 3), (True, 3)} <= seen, "with replacement"


def test_the_smallest_gain_is_what_four_of_five_trials_see() -> None:
    """By hand: the bound is 0.02 below the gain, which spreads by 0.01 from trial to trial."""
    rng = np.random.default_rng(1)
    noise = rng.normal(0, 1, 4000)
    gains = 0.03 + 0.01 * (noise - noise.mean()) / noise.std()
    accepted = {"twin": 0, "shuffled_labels": 0, "half_the_features": 1, "more_data": 3}
    made = tuple(Trials(rival, accepted[rival], 4, gains, gains - 0.02, {}) for rival in EXPECTED)
    answer = selftest._summary(spec(), made, 7, 9, 100)
    assert answer.smallest_gain == pytest.approx(0.02 + 0.8416 * 0.01, abs=1e-5)
    at_that_gain = gains - gains.mean() + answer.smallest_gain
    assert np.mean(at_that_gain - 0.02 > 0) == pytest.approx(selftest.POWER, abs=0.02)
    assert (answer.false_accepts, answer.false_rejects) == (1 / 12, 1 / 4)
    strict = spec().model_copy(update={"gate": spec().gate.model_copy(update={"min_gain": 0.005})})
    assert selftest._summary(strict, made, 7, 9, 100).smallest_gain == pytest.approx(answer.smallest_gain + 0.005)
    assert math.isfinite(answer.smallest_gain)


def test_too_little_history_is_said() -> None:
    few = rows().filter(pc.greater_equal(rows()["as_of"], pa.scalar(AS_OF - dt.timedelta(days=8))))
    with pytest.raises(NotEnoughData):
        selftest.run(spec(), few, AS_OF, trials=1)
