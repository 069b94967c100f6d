"""Every finding of a window, and the gravest gives its kind."""

from __future__ import annotations

import datetime as dt
import json
from typing import Any

import pytest

from include.evergreen.drift.verdict import ColumnDrift, ColumnHealth, MonitoringFacts, Performance, Verdict, judge
from include.evergreen.specs import ModelSpec
from include.evergreen.training.bundle import PREDICTION

AS_OF = dt.date(2013, 12, 9)
NAN = float("nan")
HEALTHY = ColumnHealth(null_share=0.01, reference_null_share=0.01, distinct=50, reference_distinct=60)


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
        "performance": Performance(0.72, 0.15, 0.45, 5000, 6000, 0.74),
    }
    return MonitoringFacts(**{**values, **changes})


def columns(**scores: float | None) -> dict[str, ColumnDrift]:
    return {**facts().columns, **{name: drift(score) for name, score in scores.items()}}


def health(**changes: ColumnHealth) -> dict[str, ColumnHealth]:
    return {**facts().health, **changes}


def test_a_healthy_window_is_ok_with_a_reason() -> None:
    assert judge(facts(), spec()) == Verdict("ok", ("nothing found in 6000 rows of 7 scored partition(s)",))


CASES: dict[str, tuple[dict[str, Any], str, str, tuple[str, ...]]] = {
    "the prediction alone": ({"columns": columns(probability=0.3)}, "drift", "the prediction drifts", (PREDICTION,)),
    "the exact threshold is a breach": ({"columns": columns(probability=0.1)}, "drift", "0.100 >= 0.1", (PREDICTION,)),
    "below the threshold": ({"columns": columns(probability=0.0999999)}, "ok", "nothing found", ()),
    "one feature is too few": ({"columns": columns(a=0.9)}, "ok", "nothing found", ()),
    "two features, ranked": ({"columns": columns(a=0.2, c=0.5)}, "drift", "2 features drift", ("c", "a")),
    "no drift score at all": ({"columns": {}}, "ok", "nothing found", ()),
    "a NaN score": ({"columns": columns(a=NAN, b=0.5)}, "ok", "a: drift not measured", ()),
    "a missing score": ({"columns": columns(a=None)}, "ok", "a: drift not measured: no finite distance", ()),
    "AUC too low": ({"performance": Performance(0.68, 0, 0, 1000, 2000, 0.74)}, "performance_drop", "0.0600 below", ()),
    "the exact drop is allowed": ({"performance": Performance(0.70, 0, 0, 1000, 2000, 0.75)}, "ok", "nothing", ()),
    "one row short": ({"performance": Performance(0.50, 0, 0, 999, 2000, 0.74)}, "ok", "999 matured rows", ()),
    "no matured labels": ({"performance": Performance(scored_rows=900)}, "ok", "performance unknown: 0", ()),
    "NaN AUC": ({"performance": Performance(NAN, 0, 0, 5000, 6000, 0.74)}, "ok", "AUC is undefined", ()),
    "one class only": ({"performance": Performance(None, 0, 0, 5000, 6000, 0.74)}, "ok", "AUC is undefined", ()),
    "no reference AUC": ({"performance": Performance(0.6, 0, 0, 5000, 6000, None)}, "ok", "no reference AUC", ()),
    "a better AUC": ({"performance": Performance(0.9, 0, 0, 5000, 6000, 0.74)}, "ok", "nothing found", ()),
    "an empty window": ({"rows": 0, "scored_rows": 0}, "broken_data", "nothing to judge", ()),
    "nothing scored on the date": ({"scored_rows": 0}, "broken_data", "nothing to judge", ()),
    "half the usual rows": ({"scored_rows": 450, "recent_rows": (900, 900, 900)}, "ok", "nothing found", ()),
    "under half": ({"scored_rows": 452}, "broken_data", "at least 50% of the usual 905, found 452", ()),
    "too little history for usual": ({"scored_rows": 1, "recent_rows": (900, 900)}, "ok", "nothing found", ()),
    "a stopped partition": ({"stopped": ("actuals of 2013-12-08 stopped",)}, "broken_data", "stopped", ()),
    "nulls at the limit": ({"health": health(a=ColumnHealth(0.3, 0.1, 9, 9))}, "ok", "nothing found", ()),
    "nulls above it": ({"health": health(a=ColumnHealth(0.31, 0.1, 9, 9))}, "broken_data", "10.0% to 31.0%", ("a",)),
    "fewer nulls": ({"health": health(a=ColumnHealth(0.0, 0.9, 9, 9))}, "ok", "nothing found", ()),
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
}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_one_finding(case: str) -> None:
    changes, kind, reason, guilty = CASES[case]
    verdict = judge(facts(**changes), spec())
    assert verdict.kind == kind
    assert any(reason in said for said in verdict.reasons), verdict.reasons
    assert verdict.guilty == guilty


def test_the_gravest_gives_the_kind_and_every_reason_is_listed() -> None:
    sick = {
        "columns": columns(a=0.2, b=0.3, probability=0.4),
        "performance": Performance(0.6, 0, 0, 5000, 6000, 0.74),
    }
    verdict = judge(facts(**sick), spec())
    assert verdict.kind == "performance_drop"
    assert verdict.guilty == (PREDICTION, "b", "a")
    assert [reason.split()[0] for reason in verdict.reasons] == ["AUC", "the", "2"]

    sick["health"] = health(a=ColumnHealth(0.4, 0, 9, 9), c=ColumnHealth(1, 0, 0, 9))
    sick["stopped"] = ("weather of 2013-12-08 stopped",)
    verdict = judge(facts(**sick), spec())
    assert verdict.kind == "broken_data"
    assert verdict.guilty == ("c", "a", PREDICTION, "b")
    assert [reason.split()[0] for reason in verdict.reasons] == ["weather", "c:", "a:", "AUC", "the", "2"]


def test_min_columns_is_the_spec_s() -> None:
    one = facts(columns=columns(a=0.2))
    assert judge(one, spec(min_columns=1)).kind == "drift"
    assert judge(one, spec(min_columns=2)).kind == "ok"


def test_facts_survive_json() -> None:
    before = facts(columns=columns(a=None), health=health(a=ColumnHealth(0, 0, 1, 9, 0.1)), stopped=("x",))
    assert MonitoringFacts.from_dict(json.loads(json.dumps(before.to_dict()))) == before


def test_coverage() -> None:
    assert Performance(matured_rows=5, scored_rows=20).coverage == 0.25
    assert Performance().coverage == 0.0
