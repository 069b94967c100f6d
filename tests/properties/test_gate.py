"""Promises of the gate, for any numbers."""

from hypothesis import given
from hypothesis import strategies as st

from include.evergreen.promotion.gate import Evaluation, gate
from include.evergreen.specs import Gate

number = st.floats(allow_nan=True, allow_infinity=True)
evaluations = st.builds(
    Evaluation,
    rows=st.integers(0, 10_000),
    first=st.just("2013-06-24"),
    last=st.just("2013-06-30"),
    challenger=st.fixed_dictionaries({}, optional={"auc": number}),
    baseline=st.fixed_dictionaries({}, optional={"auc": number}),
    champion=st.none() | st.fixed_dictionaries({}, optional={"auc": number}),
    champion_version=st.none() | st.integers(1, 99),
    identical=st.booleans(),
    model_mb=number,
    ms_per_1k=number,
    leak_rows=st.integers(0, 1000),
)


@given(evaluations, st.floats(0, 0.1))
def test_nothing_is_accepted_unless_it_beats_the_champion_on_enough_rows(facts: Evaluation, min_gain: float) -> None:
    rules = Gate(metric="auc", min_gain=min_gain, min_holdout_rows=500)
    decision = gate(facts, rules)
    assert decision.reasons
    if decision.accepted:
        assert facts.rows >= 500
        assert facts.leak_rows > 0
        assert facts.challenger["auc"] > facts.baseline["auc"]
        if facts.champion is not None:
            assert not facts.identical
            assert facts.challenger["auc"] - facts.champion["auc"] > min_gain


@given(evaluations)
def test_the_same_facts_give_the_same_answer(facts: Evaluation) -> None:
    assert gate(facts, Gate()).reasons == gate(facts, Gate()).reasons
