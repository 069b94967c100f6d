"""What holds of the verdict for any facts: broken data outranks all, and a kind is a finding."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from include.evergreen.drift.verdict import (
    BREACHES,
    ColumnDrift,
    ColumnHealth,
    Misfit,
    MonitoringFacts,
    Performance,
    judge,
)
from include.evergreen.specs import ModelSpec
from include.evergreen.training.bundle import PREDICTION

AS_OF = dt.date(2013, 12, 9)
FEATURES = ("a", "b", "c")
SPEC = ModelSpec.model_validate(
    {
        "name": "delay",
        "description": "d",
        "owner": "o",
        "source": "s",
        "start_date": dt.date(2013, 1, 1),
        "entity": {"table": "t", "key": ["id"]},
        "label": {"table": "t", "expression": "true"},
        "features": {name: {} for name in FEATURES},
        "sql": "select 1",
    }
)
FINDINGS = {
    "covariate_drift": "features drift (allowed",
    "label_drift": "the label drifts",
    "prediction_drift": "the prediction drifts",
    "performance_drop": "is below the reference's",
}

shares = st.floats(0, 1)
maybe = st.none() | st.just(float("nan")) | shares
scores = st.none() | st.just(float("nan")) | st.floats(0, 1)


@st.composite
def drifts(draw: st.DrawFn) -> ColumnDrift:
    score, threshold = draw(scores), draw(st.floats(0.01, 1))
    return ColumnDrift("psi", score, threshold, score is not None and score >= threshold)


unhurt = st.builds(
    ColumnHealth,
    null_share=st.floats(0, 0.2),
    reference_null_share=st.floats(0, 0.5),
    distinct=st.integers(2, 9),
    reference_distinct=st.integers(0, 9),
)
performances = st.builds(
    Performance,
    auc=maybe,
    matured_rows=st.integers(0, 3000),
    scored_rows=st.integers(3000, 5000),
    reference_auc=maybe,
    auc_high=maybe,
    label_rate=maybe,
    reference_auc_low=maybe,
    reference_rate=maybe,
    cohorts=st.integers(0, 9),
    newest=st.just("2013-12-08"),
    newest_auc=maybe,
    newest_auc_high=st.none() | st.floats(0.5, 1),
)
sound = st.builds(
    MonitoringFacts,
    as_of=st.just(AS_OF),
    version=st.integers(1, 9),
    partitions=st.just((AS_OF - dt.timedelta(days=1), AS_OF)),
    rows=st.integers(1, 9000),
    scored_rows=st.integers(50, 100),
    recent_rows=st.lists(st.integers(80, 100), max_size=5).map(tuple),
    columns=st.dictionaries(st.sampled_from([*FEATURES, PREDICTION]), drifts()),
    health=st.dictionaries(st.sampled_from(FEATURES), unhurt),
    performance=performances,
    importances=st.dictionaries(st.sampled_from(FEATURES), st.floats(0, 100)),
)
"""Facts of a date whose data is whole; everything else may be wrong or unknown."""
faults: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.just({"rows": 0}),
    st.just({"scored_rows": 0}),
    st.just({"scored_rows": 39, "recent_rows": (80, 80, 80)}),
    st.just({"stopped": ("weather of 2013-12-08: stopped: 80% bad rows",)}),
    st.just({"health": {"a": ColumnHealth(1.0, 0.0, 0, 9)}}),
    st.floats(0.41, 1).map(lambda share: {"health": {"b": ColumnHealth(share, 0.2, 5, 9)}}),
    st.just({"health": {"c": ColumnHealth(0.0, 0.0, 1, 9, 0.01)}}),
    st.floats(0.5, 1).map(lambda share: {"misfits": {"a": Misfit("support", share, 0.5, "as if")}}),
    st.floats(-9, 9).map(lambda off: {"misfits": {"b": Misfit("fit", off, 0.4)}}),
)
"""Each alone breaks a date."""


@given(sound, faults)
def test_any_fault_makes_broken_data_and_no_breach(facts: MonitoringFacts, fault: dict[str, Any]) -> None:
    verdict = judge(replace(facts, **fault), SPEC)
    assert verdict.kind == "broken_data"
    assert verdict.kind not in BREACHES
    named = [*fault.get("health", {}), *fault.get("misfits", {})]
    assert list(verdict.guilty[: len(named)]) == named


@given(sound, st.floats(0, 0.49), st.floats(0, 0.4999))
def test_labels_turned_round_are_broken_data(facts: MonitoringFacts, auc: float, high: float) -> None:
    turned = replace(facts.performance, newest_auc=auc, newest_auc_high=high)
    assert judge(replace(facts, performance=turned), SPEC).kind == "broken_data"


@given(sound)
def test_the_kind_is_ok_iff_nothing_was_found(facts: MonitoringFacts) -> None:
    verdict = judge(facts, SPEC)
    found = {kind for kind, words in FINDINGS.items() if any(words in said for said in verdict.reasons)}
    assert verdict.kind in (found or {"ok"})
    assert (verdict.kind == "ok") == (not found) == verdict.reasons[0].startswith("nothing found")
    assert verdict.kind != "broken_data"
    assert len(set(verdict.reasons)) == len(verdict.reasons)
    assert verdict.guilty == () or verdict.kind != "ok"


@given(sound)
def test_every_guilty_column_breached_once_and_the_prediction_comes_first(facts: MonitoringFacts) -> None:
    guilty = judge(facts, SPEC).guilty
    assert len(set(guilty)) == len(guilty)
    assert all(facts.columns[name].breached for name in guilty)
    assert PREDICTION not in guilty[1:]
    rank = [facts.columns[name].severity * facts.importances.get(name, 0.0) for name in guilty if name != PREDICTION]
    assert rank == sorted(rank, reverse=True)


@given(sound)
def test_what_is_unknown_is_never_a_finding(facts: MonitoringFacts) -> None:
    blind = replace(
        facts,
        columns={name: replace(column, score=None) for name, column in facts.columns.items()},
        performance=Performance(matured_rows=facts.performance.matured_rows),
    )
    verdict = judge(blind, SPEC)
    assert (verdict.kind, verdict.guilty) == ("ok", ())
    assert sum("drift not measured" in said for said in verdict.reasons) == len(facts.columns)


@given(sound | st.builds(lambda facts, fault: replace(facts, **fault), sound, faults))
def test_facts_survive_their_plain_form(facts: MonitoringFacts) -> None:
    again = MonitoringFacts.from_dict(facts.to_dict())
    assert judge(again, SPEC) == judge(facts, SPEC)
