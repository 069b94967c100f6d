"""The report and the verdict's numbers are one; the page is inert whatever the data says."""

from __future__ import annotations

import datetime as dt
import html
import json
import re
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from include.evergreen.drift import distance, report
from include.evergreen.drift.sketch import sketch
from include.evergreen.drift.verdict import GRAVITY, Misfit, MonitoringFacts, Verdict, judge
from include.evergreen.errors import SpecError
from include.evergreen.specs import PROJECT, Drift, ModelSpec
from include.evergreen.training.bundle import PREDICTION

FEATURES: dict[str, Any] = {
    "smooth": {},
    "level": {"drift": {"method": "psi", "threshold": 0.2}},
    "speed": {"drift": {"method": "wasserstein", "threshold": 0.1}},
    "carrier": {"type": "category"},
    "shown": {"drift": None},
}


def model(features: dict[str, Any] = FEATURES, **monitoring: Any) -> ModelSpec:
    return ModelSpec.model_validate(
        {
            "name": "delay",
            "description": "d",
            "owner": "o",
            "source": "s",
            "start_date": dt.date(2013, 1, 1),
            "entity": {"table": "t", "key": ["id"]},
            "label": {"table": "t", "expression": "true"},
            "features": features,
            "monitoring": monitoring,
            "sql": "select 1",
        }
    )


def rows(size: int, seed: int, shift: float = 0.0) -> pa.Table:
    rng = np.random.default_rng(seed)
    shares = np.array([0.5, 0.3, 0.2]) + shift * np.array([-0.4, 0.0, 0.4])
    return pa.table(
        {
            "smooth": rng.normal(shift, 1, size),
            "level": rng.integers(1, 8, size) + round(3 * shift),
            "speed": rng.exponential(10 * (1 + shift), size),
            "carrier": rng.choice(["AA", "B6", "UA"], size, p=shares),
            "shown": rng.normal(size=size),
            PREDICTION: rng.beta(2 + 4 * shift, 8, size),
        }
    )


def reduced(table: pa.Table, spec: ModelSpec | None = None, size: int = 5000) -> pa.Table:
    return sketch(table, report.kinds(spec or model()), size)


def test_no_drift_at_all_breaches_nothing() -> None:
    found = report.build(reduced(rows(20_000, 1)), reduced(rows(6_000, 2)), model())
    assert set(found.columns) == {"smooth", "level", "speed", "carrier", PREDICTION}
    assert not [name for name, column in found.columns.items() if column.breached]


def test_identical_sketches_have_no_distance() -> None:
    same = reduced(rows(20_000, 1))
    for column in report.build(same, same, model()).columns.values():
        assert column.score == pytest.approx(0, abs=1e-9)


def test_a_shift_breaches_every_column_worst_first() -> None:
    found = report.build(reduced(rows(20_000, 1)), reduced(rows(6_000, 2, shift=1.0)), model())
    assert all(column.breached for column in found.columns.values())
    ranks = [column.severity for column in found.columns.values()]
    assert ranks == sorted(ranks, reverse=True)


@pytest.mark.parametrize("size", [300, 999, 1000, 1001, 5000])
def test_the_verdict_does_not_invert_with_the_number_of_reference_rows(size: int) -> None:
    reference = reduced(rows(20_000, 1), size=size)
    spec = model({"smooth": {}, "carrier": {"type": "category"}})
    calm = report.build(reference, reduced(rows(20_000, 2), size=size), spec).columns
    shifted = report.build(reference, reduced(rows(20_000, 2, shift=1.0), size=size), spec).columns
    for name in spec.features:
        assert not calm[name].breached and shifted[name].breached
        assert shifted[name].score > calm[name].score  # type: ignore[operator]


def test_scores_are_those_of_evidently_and_of_the_formulas() -> None:
    """The page, the JSON and the columns carry one number, and it is the named distance."""
    from scipy import stats
    from scipy.spatial.distance import jensenshannon

    reference, current = reduced(rows(20_000, 1)), reduced(rows(6_000, 2, shift=0.3))
    found = report.build(reference, current, model())
    printed = {
        metric["config"]["column"]: (metric["config"]["method"], metric["config"]["threshold"], metric["value"])
        for metric in found.json["evidently"]["metrics"]
        if "method" in metric["config"]
    }
    assert printed == {name: (c.method, c.threshold, c.score) for name, c in found.columns.items()}
    statuses = {test["metric_config"]["params"]["column"]: test["status"] for test in found.json["evidently"]["tests"]}
    assert {name: status.endswith("FAIL") for name, status in statuses.items()} == {
        name: column.breached for name, column in found.columns.items()
    }

    a, b = reference["speed"].to_numpy(), current["speed"].to_numpy()
    assert found.columns["speed"].score == pytest.approx(stats.wasserstein_distance(a, b) / np.std(a), abs=1e-6)
    a, b = reference["smooth"].to_numpy(), current["smooth"].to_numpy()
    edges = np.histogram_bin_edges(np.concatenate([a, b]), bins="sturges")
    by_hand = jensenshannon(np.histogram(a, edges)[0] / len(a), np.histogram(b, edges)[0] / len(b))
    assert found.columns["smooth"].score == pytest.approx(by_hand, abs=1e-6)
    a, b = reference["level"].to_numpy(), current["level"].to_numpy()
    p, q = (np.array([max((x == v).mean(), 1e-4) for v in range(1, 9)]) for x in (a, b))
    assert found.columns["level"].score == pytest.approx(float(np.sum((p - q) * np.log(p / q))), abs=1e-6)


def test_the_exact_threshold_is_a_breach() -> None:
    reference, current = reduced(rows(20_000, 1)), reduced(rows(6_000, 2, shift=0.3))
    score = report.build(reference, current, model({"smooth": {}})).columns["smooth"].score
    assert score is not None
    for threshold, expected in ((score, True), (float(np.nextafter(score, 1)), False)):
        spec = model({"smooth": {"drift": {"threshold": threshold}}})
        assert report.build(reference, current, spec).columns["smooth"].breached is expected


PAYLOAD = "</script><script>alert(1)</script>"


def test_markup_in_the_data_never_reaches_the_page() -> None:
    spec = model({"carrier": {"type": "category"}})
    evil = [PAYLOAD, '"><img src=x onerror=alert(2)>', "a&b", "it's", "AA"]
    table = pa.table({"carrier": evil * 400, PREDICTION: np.linspace(0, 1, 2000)})
    found = report.build(reduced(table, spec), reduced(table, spec), spec, {"model": PAYLOAD})
    page, document = found.html.decode(), json.dumps(found.json)
    clean = report.build(
        *[reduced(table.set_column(0, "carrier", pa.array(["AA"] * 2000)), spec)] * 2, spec, {"model": "m"}
    ).html.decode()
    for raw in (PAYLOAD, "<script>alert(1)", "<img src=x", "onerror=alert(2)>"):
        assert raw not in page
        assert raw not in json.dumps(found.json["evidently"]) and raw not in json.dumps(found.json["columns"])
    assert page.count("</script") == clean.count("</script")
    assert "alert(1)" in page and "AA" in document, "the value is shown, as text"


def test_sanitise_keeps_values_apart_and_nulls_null() -> None:
    dirty = pa.chunked_array([["<a>", None, "plain"], ["&lt;", '"', "`", "\u2028"]])
    clean = report.sanitise(dirty).to_pylist()
    assert clean[1] is None and clean[2] == "plain"
    assert not set("<>&\"'`\u2028") & set("".join(value for value in clean if value))
    assert len(set(clean)) == len(clean)


def test_empty_columns_are_named_and_do_not_stop_the_report() -> None:
    spec = model()
    reference, current = rows(2_000, 1), rows(2_000, 2)
    current = current.set_column(0, "smooth", pa.nulls(2_000, pa.float64()))
    reference = reference.set_column(3, "carrier", pa.nulls(2_000, pa.string()))
    found = report.build(reduced(reference), reduced(current).drop_columns(["speed"]), spec)
    unmeasured = {name: (column.score, column.note) for name, column in found.columns.items() if column.note}
    assert unmeasured == {
        "smooth": (None, "no value in the current window"),
        "carrier": (None, "no value in the reference"),
        "speed": (None, "not in the current window"),
    }
    assert not found.columns["smooth"].breached
    assert list(found.columns)[-3:] == ["carrier", "smooth", "speed"]
    assert json.loads(json.dumps(found.json, allow_nan=False))["columns"]["smooth"]["score"] is None


def test_an_empty_window_is_a_page_without_scores() -> None:
    found = report.build(reduced(rows(2_000, 1)), reduced(rows(0, 2)), model())
    assert {column.note for column in found.columns.values()} == {"no value in the current window"}
    assert b"Drift report" in found.html


def test_a_constant_column_has_a_finite_distance() -> None:
    spec = model({"smooth": {}})
    reference = pa.table({"smooth": np.full(2000, 3.0), PREDICTION: np.full(2000, 0.5)})
    columns = report.build(reduced(reference, spec), reduced(reference, spec), spec).columns
    assert {column.score for column in columns.values()} == {0.0}


def test_wasserstein_on_a_category_is_a_spec_error() -> None:
    drift = {"carrier": Drift(method="wasserstein")}
    table = pa.table({"carrier": ["AA"]})
    with pytest.raises(SpecError, match=r"carrier: drift.method: expected jensenshannon or psi"):
        distance.measure(table, table, {"carrier": "category"}, drift)


def test_the_page_says_what_was_compared() -> None:
    spec = model()
    page = report.build(reduced(rows(2_000, 1)), reduced(rows(700, 2)), spec, {"as_of": "2013-12-09"}).html.decode()
    head = page[page.index("<section") : page.index("</section>")]
    assert "as of: 2013-12-09" in head and "reference rows: 2000" in head and "current rows: 700" in head
    assert "psi" in head and "wasserstein" in head and "not measured" in head


def banner(verdict: Verdict) -> str:
    """What stands above the table of a calm report."""
    page = report.judged(report.build(reduced(rows(2_000, 1)), reduced(rows(700, 2)), model()), verdict).html.decode()
    assert report.VERDICT not in page
    return page[page.index("<section") : page.index("<table")]


@pytest.mark.parametrize("kind", GRAVITY)
def test_every_verdict_stands_on_top_with_its_runbook(kind: Any) -> None:
    said = banner(Verdict(kind, ("first reason", "second reason")))
    assert f"<b>Verdict: {kind}</b>" in said
    assert "<li>first reason</li><li>second reason</li>" in said
    runbooks = re.findall(r"docs/runbooks/[a-z-]+\.md", said)
    assert len(runbooks) == (0 if kind == "ok" else 1)
    for runbook in runbooks:
        text = (PROJECT / runbook).read_text(encoding="utf-8")
        assert f"`{kind}`" in text.split("## What you see")[0], "the runbook is about this verdict"


def test_what_to_do_knows_every_verdict_and_no_other() -> None:
    assert tuple(report.WHAT_TO_DO) == GRAVITY


def test_misfits_stand_on_top_as_text() -> None:
    facts = MonitoringFacts(
        as_of=dt.date(2013, 12, 9),
        version=1,
        partitions=(dt.date(2013, 12, 9),),
        rows=700,
        scored_rows=100,
        misfits={
            "speed": Misfit("support", 0.9, 0.5, "as if changed from miles to kilometres"),
            "smooth": Misfit("fit", -0.5, 0.4, PAYLOAD),
        },
    )
    verdict = judge(facts, model())
    said = banner(verdict)
    assert "Verdict: broken_data" in said
    assert "<li>speed: 90% of the last rows hold values never seen in training" in said
    assert "as if changed from miles to kilometres?" in said
    assert PAYLOAD not in said and html.escape(PAYLOAD) in said


def test_the_json_says_what_the_page_says() -> None:
    built = report.build(reduced(rows(2_000, 1)), reduced(rows(700, 2)), model())
    found = report.judged(built, Verdict("label_drift", ("the label drifts",)))
    assert (found.json["verdict"], found.json["reasons"]) == ("label_drift", ["the label drifts"])
    assert found.json["columns"] == built.json["columns"] and found.columns == built.columns
