"""Promises of the gate, for any numbers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import event, given, settings
from hypothesis import strategies as st

from include.evergreen.promotion.bootstrap import Estimate
from include.evergreen.promotion.gate import Calibration, Evaluation, Holdout, Slice, gate
from include.evergreen.specs import Gate

number = st.floats(allow_nan=True, allow_infinity=True)
small = st.floats(-0.2, 0.3)
METRICS = ("auc", "average_precision")


def ordered(values: Any) -> st.SearchStrategy[Estimate]:
    """low <= value <= high."""
    return st.lists(values, min_size=3, max_size=3).map(sorted).map(lambda x: Estimate(x[1], x[0], x[2]))


estimates = ordered(small) | st.builds(Estimate, number, number, number)


def holdouts(champion: bool, few: bool) -> st.SearchStrategy[Holdout]:
    known = st.fixed_dictionaries({}, optional=dict.fromkeys(METRICS, estimates))
    return st.builds(
        Holdout,
        rows=st.integers(0 if few else 500, 10_000),
        days=st.integers(0 if few else 5, 40),
        first=st.just("2013-06-24"),
        last=st.just("2013-06-30"),
        challenger=known,
        baseline=known,
        champion=known if champion else st.none(),
        over_baseline=estimates,
        over_champion=estimates if champion else st.none(),
    )


@st.composite
def evaluations(draw: Any) -> Evaluation:
    """Any facts; about as often fair as not."""
    champion, few = draw(st.booleans()), draw(st.booleans())
    some = st.builds(
        Slice,
        column=st.just("airport"),
        value=st.sampled_from(["JFK", "LGA"]),
        rows=st.integers(500, 900),
        days=st.integers(1, 9),
        challenger=number,
        champion=number,
        over_champion=estimates if champion else st.none(),
    )
    return Evaluation(
        metric="auc",
        confidence=0.95,
        fresh=draw(holdouts(champion, few)),
        frozen=draw(st.none() | holdouts(champion, few)),
        pooled=draw(holdouts(champion, few)),
        slices=tuple(draw(st.lists(some, max_size=3))),
        calibration=Calibration(draw(estimates), ()),
        champion_version=draw(st.integers(1, 99)) if champion else None,
        identical=draw(st.booleans()) if champion and few else False,
        obstacles=tuple(draw(st.lists(st.text(min_size=1, max_size=9), max_size=2))) if few else (),
        model_mb=draw(number if few else st.floats(0, 50)),
        ms_per_1k=draw(number if few else st.floats(0, 200)),
        leak_rows=draw(st.integers(0 if few else 1, 1000)),
    )


rules = st.builds(
    Gate,
    min_gain=st.floats(0, 0.1),
    min_holdout_rows=st.just(500),
    max_frozen_drop=st.floats(0, 0.1),
    max_slice_drop=st.floats(0, 0.1),
    max_calibration_error=st.floats(0, 1),
)


@settings(deadline=None)
@given(evaluations(), rules)
def test_a_yes_has_every_ground(facts: Evaluation, rule: Gate) -> None:
    decision = gate(facts, rule)
    event(decision.outcome)
    assert decision.reasons
    assert decision.accepted == (decision.outcome == "accepted")
    if not decision.accepted:
        return
    assert not facts.obstacles
    assert facts.leak_rows > 0
    assert facts.fresh.rows >= 500
    assert facts.fresh.days >= 5
    assert facts.pooled.over_baseline.value > 0
    assert facts.model_mb <= rule.max_model_mb
    assert facts.ms_per_1k <= rule.max_ms_per_1k
    if facts.champion_version is None:
        assert facts.pooled.over_baseline.low > 0
        return
    assert not facts.identical
    assert facts.fresh.over_champion is not None
    assert facts.fresh.over_champion.low > rule.min_gain
    for gain, allowed in [
        (facts.frozen.over_champion if facts.frozen else None, rule.max_frozen_drop),
        *((part.over_champion, rule.max_slice_drop) for part in facts.slices),
    ]:
        assert gain is None or not gain.high < -allowed


@settings(deadline=None)
@given(evaluations(), rules, ordered(st.floats(-1, 0)))
def test_what_is_worse_in_fact_is_never_accepted(facts: Evaluation, rule: Gate, loss: Estimate) -> None:
    beaten = replace(facts, champion_version=7, fresh=replace(facts.fresh, over_champion=loss))
    assert not gate(beaten, rule).accepted


def more(estimate: Estimate | None, by: float) -> Estimate | None:
    return estimate and Estimate(estimate.value + by, estimate.low + by, estimate.high + by)


@st.composite
def sound(draw: Any) -> Evaluation:
    """Facts near the border of a yes, with a champion."""
    facts: Evaluation = draw(evaluations())
    near, wide = ordered(st.floats(-0.05, 0.2)) | ordered(st.floats(0.05, 0.2)), draw(ordered(st.floats(0.001, 0.2)))
    part = Slice("airport", "JFK", 600, 6, 0.7, 0.7, draw(near))
    frozen = replace(facts.fresh, over_champion=draw(near))
    return replace(
        facts,
        champion_version=1,
        identical=False,
        obstacles=(),
        leak_rows=9,
        model_mb=1.0,
        ms_per_1k=1.0,
        fresh=replace(facts.fresh, rows=900, days=9, over_champion=draw(near)),
        frozen=draw(st.sampled_from([None, frozen])),
        pooled=replace(facts.pooled, over_baseline=wide),
        slices=(part,),
        calibration=Calibration(Estimate(0.0, 0.0, 0.0), ()),
    )


@settings(deadline=None)
@given(sound(), rules, st.floats(0, 0.2))
def test_more_gain_never_turns_a_yes_into_a_no(facts: Evaluation, rule: Gate, by: float) -> None:
    raised = replace(
        facts,
        fresh=replace(facts.fresh, over_champion=more(facts.fresh.over_champion, by)),
        frozen=facts.frozen and replace(facts.frozen, over_champion=more(facts.frozen.over_champion, by)),
        pooled=replace(facts.pooled, over_baseline=more(facts.pooled.over_baseline, by) or facts.pooled.over_baseline),
        slices=tuple(replace(part, over_champion=more(part.over_champion, by)) for part in facts.slices),
    )
    before, after = gate(facts, rule), gate(raised, rule)
    event(f"{before.outcome} then {after.outcome}")
    assert after.accepted or not before.accepted


@settings(deadline=None)
@given(evaluations(), rules, st.text(min_size=1, max_size=20))
def test_an_obstacle_is_never_a_yes(facts: Evaluation, rule: Gate, obstacle: str) -> None:
    assert gate(replace(facts, obstacles=(obstacle,)), rule).outcome == "cannot_decide"


@settings(deadline=None)
@given(evaluations(), rules)
def test_the_same_facts_give_the_same_answer(facts: Evaluation, rule: Gate) -> None:
    assert gate(facts, rule).reasons == gate(facts, rule).reasons
