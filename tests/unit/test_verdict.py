"""Every finding of a date, and the gravest gives its kind. What is unknown is said and is never a finding."""

from __future__ import annotations

import datetime as dt
import json
from dataclasses import replace
from typing import Any

import pytest

from include.evergreen.drift.verdict import (
    BREACHES,
    GRAVITY,
    ColumnDrift,
    ColumnHealth,
    Misfit,
    MonitoringFacts,
    Performance,
    Verdict,
    judge,
)
from include.evergreen.specs import ModelSpec
from include.evergreen.training.bundle import PREDICTION

AS_OF = dt.date(2013, 12, 9)
NAN = float("nan")
HEALTHY = ColumnHealth(null_share=0.01, reference_null_share=0.01, distinct=50, reference_distinct=60)
STEADY = Performance(
    auc=0.72,
    brier=0.15,
    log_loss=0.45,
    matured_rows=5000,
    scored_rows=6000,
    reference_auc=0.74,
    auc_low=0.70,
    auc_high=0.735,
    label_rate=0.25,
    reference_auc_low=0.73,
    reference_auc_high=0.75,
    reference_rate=0.2,
    cohorts=6,
    waiting=1,
    newest="2013-12-08",
    newest_auc=0.7,
    newest_auc_high=0.76,
)
DROPPED = replace(STEADY, auc=0.66, auc_low=0.64, auc_high=0.68)
TURNED = replace(STEADY, newest_auc=0.3, newest_auc_high=0.499)


def spec(**monitoring: Any) -> ModelSpec:
    return ModelSpec.model_validate(
        {
            "name": "delay",
            "description": "d",
            "owner": "o",
            "source": "s",
            "start_date": dt.date(2013, 1, 1),
            "entity": {"table": "t", "key": ["id"]},
            "label": {"table": "t", "expression": "true"},
            "features": {"a": {}, "b": {}, "c": {"type": "category"}, "month": {"drift": None}},
            "monitoring": monitoring,
            "sql": "select 1",
        }
    )


def drift(score: float | None, threshold: float = 0.1, note: str = "") -> ColumnDrift:
    return ColumnDrift("jensenshannon", score, threshold, score is not None and score >= threshold, note)


def facts(**changes: Any) -> MonitoringFacts:
    values: dict[str, Any] = {
        "as_of": AS_OF,
        "version": 3,
        "partitions": tuple(AS_OF - dt.timedelta(days=n) for n in range(6, -1, -1)),
        "rows": 6000,
        "scored_rows": 900,
        "recent_rows": (880, 900, 910, 920),
        "columns": {name: drift(0.02) for name in ("a", "b", "c", PREDICTION)},
        "health": dict.fromkeys(("a", "b", "c", "month"), HEALTHY),
        "performance": STEADY,
        "importances": {"a": 10.0, "b": 10.0, "c": 10.0},
    }
    return MonitoringFacts(**{**values, **changes})


def columns(**scores: float | None) -> dict[str, ColumnDrift]:
    return {**facts().columns, **{name: drift(score) for name, score in scores.items()}}


def health(**changes: ColumnHealth) -> dict[str, ColumnHealth]:
    return {**facts().health, **changes}


def seen(base: Performance = STEADY, **changes: Any) -> dict[str, Performance]:
    return {"performance": replace(base, **changes)}


def test_a_healthy_window_is_ok_with_a_reason() -> None:
    assert judge(facts(), spec()) == Verdict("ok", ("nothing found in 6000 rows of 7 scored partition(s)",))


def test_broken_data_is_the_gravest_and_no_breach() -> None:
    assert GRAVITY[-1] == "broken_data"
    assert set(GRAVITY) - BREACHES == {"ok", "broken_data"}


OFF = Misfit("support", 0.9, 0.5, "as if changed from miles to kilometres")
Case = tuple[dict[str, Any], str, str, tuple[str, ...]]
DRIFTED: dict[str, Case] = {
    "the prediction alone": (
        {"columns": columns(probability=0.3)},
        "prediction_drift",
        "the prediction drifts: jensenshannon 0.300 >= 0.1",
        (PREDICTION,),
    ),
    "the exact threshold is a breach": (
        {"columns": columns(probability=0.1)},
        "prediction_drift",
        "0.100 >= 0.1",
        (PREDICTION,),
    ),
    "below the threshold": ({"columns": columns(probability=0.0999999)}, "ok", "nothing found", ()),
    "one feature is too few": ({"columns": columns(a=0.9)}, "ok", "nothing found", ()),
    "two features": (
        {"columns": columns(a=0.2, c=0.5)},
        "covariate_drift",
        "2 features drift (allowed: 1): c jensenshannon 0.500 >= 0.1, a",
        ("c", "a"),
    ),
    "the prediction is no feature": ({"columns": columns(a=0.9, probability=0.09)}, "ok", "nothing found", ()),
    "no drift score at all": ({"columns": {}}, "ok", "nothing found", ()),
    "a NaN score": ({"columns": columns(a=NAN, b=0.5)}, "ok", "a: drift not measured: no finite distance", ()),
    "NaN is no breach, whatever it says": (
        {"columns": {**columns(b=0.5), "a": ColumnDrift("psi", NAN, 0.1, True)}},
        "ok",
        "a: drift not measured",
        (),
    ),
    "a missing score": ({"columns": columns(a=None)}, "ok", "a: drift not measured: no finite distance", ()),
}
PERFORMED: dict[str, Case] = {
    "AUC too low": (
        seen(DROPPED),
        "performance_drop",
        "AUC 0.6600, at most 0.6800, on 5000 matured rows (83% of those due) is below the reference's 0.7400, at least",
        (),
    ),
    "the exact drop is allowed": (seen(DROPPED, auc=0.71, auc_high=0.72), "ok", "nothing found", ()),
    "a hair more is not": (seen(DROPPED, auc=0.7099, auc_high=0.72), "performance_drop", "AUC 0.7099", ()),
    "a wide interval reaches the reference's": (seen(DROPPED, auc_high=0.731), "ok", "nothing found", ()),
    "intervals that touch": (seen(DROPPED, auc_high=0.73), "ok", "nothing found", ()),
    "a narrow interval, a small drop": (seen(auc_high=0.725), "ok", "nothing found", ()),
    "a reference without bounds": (seen(DROPPED, reference_auc_low=None), "performance_drop", "at least 0.7400", ()),
    "a reference with NaN bounds": (seen(DROPPED, reference_auc_low=NAN), "performance_drop", "at least 0.7400", ()),
    "as many rows as it takes": (seen(DROPPED, matured_rows=1000), "performance_drop", "1000 matured rows", ()),
    "one row short": (seen(DROPPED, matured_rows=999), "ok", "performance unknown: 999 matured rows, expected", ()),
    "no matured labels": ({"performance": Performance(scored_rows=900)}, "ok", "performance unknown: 0", ()),
    "NaN AUC": (seen(DROPPED, auc=NAN), "ok", "performance unknown: AUC is undefined", ()),
    "one class only": (seen(DROPPED, auc=None), "ok", "performance unknown: AUC is undefined", ()),
    "one matured date": (seen(DROPPED, auc_high=None, cohorts=1), "ok", "performance unknown: 1 matured date(s)", ()),
    "a NaN bound": (seen(DROPPED, auc_high=NAN), "ok", "performance unknown: 6 matured date(s)", ()),
    "no reference AUC": (seen(DROPPED, reference_auc=None), "ok", "version 3 has no reference AUC", ()),
    "NaN reference AUC": (seen(DROPPED, reference_auc=NAN), "ok", "version 3 has no reference AUC", ()),
    "a better AUC": (seen(auc=0.9, auc_low=0.88, auc_high=0.92), "ok", "nothing found", ()),
    "more positives": (seen(label_rate=0.41), "label_drift", "the label drifts: 41.0% of 5000 matured rows", ()),
    "the exact label shift is allowed": (seen(label_rate=0.4), "ok", "nothing found", ()),
    "fewer positives": (seen(label_rate=0.1, reference_rate=0.31), "label_drift", "10.0% of 5000", ()),
    "a label shift on too few rows": (seen(label_rate=0.9, matured_rows=999), "ok", "performance unknown", ()),
    "a label shift on just enough": (seen(label_rate=0.9, matured_rows=1000), "label_drift", "the label", ()),
    "a label shift while AUC is unknown": (seen(label_rate=1.0, auc=None), "label_drift", "AUC is undefined", ()),
    "no label rate": (seen(label_rate=None), "ok", "nothing found", ()),
    "NaN label rate": (seen(label_rate=NAN), "ok", "nothing found", ()),
    "no reference rate": (seen(label_rate=0.9, reference_rate=None), "ok", "nothing found", ()),
    "NaN reference rate": (seen(label_rate=0.9, reference_rate=NAN), "ok", "nothing found", ()),
}
BROKEN: dict[str, Case] = {
    "an empty window": ({"rows": 0, "scored_rows": 0}, "broken_data", "nothing to judge", ()),
    "nothing scored on the date": ({"scored_rows": 0}, "broken_data", "nothing to judge", ()),
    "half the usual rows": ({"scored_rows": 450, "recent_rows": (900, 900, 900)}, "ok", "nothing found", ()),
    "under half": ({"scored_rows": 452}, "broken_data", "at least 50% of the usual 905, found 452", ()),
    "too little history for usual": ({"scored_rows": 1, "recent_rows": (900, 900)}, "ok", "nothing found", ()),
    "a stopped partition": ({"stopped": ("actuals of 2013-12-08 stopped",)}, "broken_data", "stopped", ()),
    "nulls at the limit": ({"health": health(a=ColumnHealth(0.3, 0.1, 9, 9))}, "ok", "nothing found", ()),
    "nulls above it": ({"health": health(a=ColumnHealth(0.31, 0.1, 9, 9))}, "broken_data", "10.0% to 31.0%", ("a",)),
    "fewer nulls": ({"health": health(a=ColumnHealth(0.0, 0.9, 9, 9))}, "ok", "nothing found", ()),
    "an unknown share of nulls": ({"health": health(a=ColumnHealth(NAN, 0.1, 9, 9))}, "ok", "nothing found", ()),
    "an empty feature": ({"health": health(a=ColumnHealth(1, 0.9, 0, 9))}, "broken_data", "a: no value", ("a",)),
    "empty in both": ({"health": health(a=ColumnHealth(1, 1, 0, 0))}, "ok", "nothing found", ()),
    "a stuck feature": ({"health": health(a=ColumnHealth(0, 0, 1, 9, 0.1))}, "broken_data", "one value", ("a",)),
    "a new value everywhere": ({"health": health(a=ColumnHealth(0, 0, 1, 9, 0.0))}, "broken_data", "0.0%", ("a",)),
    "the usual value everywhere": ({"health": health(a=ColumnHealth(0, 0, 1, 9, 0.5))}, "ok", "nothing found", ()),
    "constant in both": ({"health": health(a=ColumnHealth(0, 0, 1, 1, 0.0))}, "ok", "nothing found", ()),
    "not watched": ({"health": health(month=ColumnHealth(0, 0, 1, 12, 0.1))}, "ok", "nothing found", ()),
    "a day is constant by nature": (
        {"health": health(a=ColumnHealth(0, 0, 1, 7, 0.1)), "partitions": (AS_OF,)},
        "ok",
        "nothing found",
        (),
    ),
    "unknown values": (
        {"misfits": {"a": OFF}},
        "broken_data",
        "a: 90% of the last rows hold values never seen in training, at most 50% expected; as if changed from miles to "
        "kilometres?",
        ("a",),
    ),
    "one column does not fit the others": (
        {"misfits": {"b": Misfit("fit", -0.51, 0.4)}},
        "broken_data",
        "b: does not fit the other columns: -0.51 standard deviations off, at most 0.4 expected",
        ("b",),
    ),
    "labels turned round": (seen(TURNED), "broken_data", "the labels of 2013-12-08 contradict the predictions", ()),
    "a coin": (seen(TURNED, newest_auc_high=0.5), "ok", "nothing found", ()),
    "NaN newest AUC": (seen(TURNED, newest_auc=NAN), "ok", "nothing found", ()),
    "one class on the newest date": (seen(TURNED, newest_auc=None, newest_auc_high=None), "ok", "nothing found", ()),
    "a NaN error": (seen(TURNED, newest_auc_high=NAN), "ok", "nothing found", ()),
}


@pytest.mark.parametrize("case", [*DRIFTED, *PERFORMED, *BROKEN], ids=str)
def test_one_finding(case: str) -> None:
    changes, kind, reason, guilty = {**DRIFTED, **PERFORMED, **BROKEN}[case]
    verdict = judge(facts(**changes), spec())
    assert verdict.kind == kind
    assert any(reason in said for said in verdict.reasons), verdict.reasons
    assert verdict.guilty == guilty


def test_the_cases_show_every_kind() -> None:
    assert {kind for _, kind, _, _ in [*DRIFTED.values(), *PERFORMED.values(), *BROKEN.values()]} == set(GRAVITY)


def test_the_gravest_gives_the_kind_and_every_reason_is_listed() -> None:
    """One more sickness at a time, from light to grave; each new one comes first."""
    sick: dict[str, Any] = {"columns": columns(a=0.2, b=0.3)}
    kinds = []
    for change in (
        {},
        seen(label_rate=0.5),
        {"columns": columns(a=0.2, b=0.3, probability=0.4)},
        seen(DROPPED, label_rate=0.5),
        {"stopped": ("weather of 2013-12-08 stopped",)},
    ):
        sick |= change
        verdict = judge(facts(**sick), spec())
        kinds.append(verdict.kind)
        assert len(verdict.reasons) == len(kinds)
    assert tuple(kinds) == GRAVITY[1:]
    starts = ["weather", "AUC", "the prediction", "the label", "2 features"]
    assert [said.startswith(start) for said, start in zip(verdict.reasons, starts, strict=True)] == [True] * 5
    assert verdict.guilty == (PREDICTION, "b", "a")


@pytest.mark.parametrize("case", [name for name, case in BROKEN.items() if case[1] == "broken_data"], ids=str)
def test_broken_data_outranks_everything(case: str) -> None:
    sick = {"columns": columns(a=0.2, b=0.3, probability=0.4), **seen(DROPPED, label_rate=0.5)}
    changes, _, reason, broken = BROKEN[case]
    if "performance" in changes:
        changes = seen(DROPPED, newest_auc=TURNED.newest_auc, newest_auc_high=TURNED.newest_auc_high, label_rate=0.5)
    verdict = judge(facts(**{**sick, **changes}), spec())
    assert verdict.kind == "broken_data"
    assert reason in verdict.reasons[0]
    assert verdict.guilty[: len(broken)] == broken
    assert any(said.startswith("AUC") for said in verdict.reasons)


def test_broken_columns_come_first_then_misfits_then_drift() -> None:
    """Nulls by their rise, misfits in the order of the facts, each column once."""
    verdict = judge(
        facts(
            health=health(a=ColumnHealth(0.4, 0, 9, 9), c=ColumnHealth(1, 0, 0, 9)),
            misfits={"month": Misfit("fit", 3.0, 0.4), "a": OFF},
            columns=columns(a=0.2, b=0.3, probability=0.4),
        ),
        spec(),
    )
    assert verdict.guilty == ("c", "a", "month", PREDICTION, "b")
    assert [said.split(":")[0] for said in verdict.reasons[:3]] == ["c", "a", "month"]
    assert not any("never seen" in said for said in verdict.reasons), "a is named once, by its nulls"


@pytest.mark.parametrize(
    ("importances", "guilty"),
    [
        ({"a": 10.0, "b": 10.0, "c": 10.0}, ("c", "b", "a")),
        ({"a": 10.0, "b": 4.0, "c": 1.0}, ("a", "b", "c")),
        ({"a": 1.0}, ("a", "c", "b")),
        ({}, ("c", "b", "a")),
    ],
    ids=["by severity", "times importance", "never split on", "no importances"],
)
def test_guilty_columns_by_severity_times_importance(importances: dict[str, float], guilty: tuple[str, ...]) -> None:
    columns_ = {**columns(a=0.2, b=0.3, c=0.5, probability=0.11)}
    verdict = judge(facts(columns=columns_, importances=importances), spec())
    assert verdict.guilty == (PREDICTION, *guilty)


def test_severity_is_in_units_of_the_threshold() -> None:
    columns_ = {**columns(a=0.2), "b": ColumnDrift("wasserstein", 1.5, 1.0, True)}
    assert judge(facts(columns=columns_), spec()).guilty == ("a", "b")


def test_an_ok_date_has_nobody_guilty() -> None:
    assert judge(facts(columns=columns(a=0.9)), spec()).guilty == ()


@pytest.mark.parametrize(("least", "kind"), [(1, "covariate_drift"), (2, "ok")])
def test_min_columns_is_the_spec_s(least: int, kind: str) -> None:
    assert judge(facts(columns=columns(a=0.2)), spec(min_columns=least)).kind == kind


@pytest.mark.parametrize(("allowed", "kind"), [(0.04, "label_drift"), (0.06, "ok")])
def test_max_label_shift_is_the_spec_s(allowed: float, kind: str) -> None:
    assert judge(facts(), spec(max_label_shift=allowed)).kind == kind


@pytest.mark.parametrize(("allowed", "kind"), [(0.07, "performance_drop"), (0.08, "ok"), (0.09, "ok")])
def test_max_performance_drop_is_the_spec_s(allowed: float, kind: str) -> None:
    assert judge(facts(**seen(DROPPED)), spec(max_performance_drop=allowed)).kind == kind


def test_facts_survive_json() -> None:
    before = facts(
        columns=columns(a=None),
        health=health(a=ColumnHealth(0, 0, 1, 9, 0.1)),
        stopped=("x",),
        misfits={"b": Misfit("fit", -0.5, 0.4), "a": OFF},
        **seen(revised=["as of 2013-12-01: AUC 0.7 on 9 rows was 0.6 on 5"]),
    )
    after = MonitoringFacts.from_dict(json.loads(json.dumps(before.to_dict(), allow_nan=False)))
    assert after == before
    assert list(after.misfits) == ["b", "a"], "the order is the rank"
    assert judge(after, spec()) == judge(before, spec())


def test_facts_ignore_keys_they_do_not_know() -> None:
    assert MonitoringFacts.from_dict({**facts().to_dict(), "report_uri": "s3://lake/r.html"}) == facts()


def test_coverage() -> None:
    assert Performance(matured_rows=5, scored_rows=20).coverage == 0.25
    assert Performance().coverage == 0.0
