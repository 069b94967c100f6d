"""Performance of published predictions as their labels arrive: due cohorts alone, revised when the rest is in."""

from __future__ import annotations

import datetime as dt
import functools
import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from sklearn.metrics import roc_auc_score

from include.evergreen.drift.verdict import MonitoringFacts, Performance
from include.evergreen.features.build import features, labelled, labels
from include.evergreen.lake.memory import MemoryLake
from include.evergreen.pipeline.performance import measure
from include.evergreen.pipeline.scoring import predict, publish
from include.evergreen.platform import Platform
from include.evergreen.promotion.ports import TrainingRecord
from include.evergreen.specs import ModelSpec
from include.evergreen.training.bundle import PREDICTION, ModelBundle
from include.evergreen.training.fit import fit
from tests import examples
from tests.support import memory_platform

DAYS = 40
TRAINED = examples.FIRST + dt.timedelta(days=30)
R = examples.FIRST + dt.timedelta(days=32)
"""The date whose labels come in halves."""


def after(days: int) -> dt.date:
    return R + dt.timedelta(days=days)


@functools.cache
def bundle() -> ModelBundle:
    lake, spec = MemoryLake(), examples.model()
    examples.fill(lake, DAYS)
    since, until = examples.FIRST, TRAINED - dt.timedelta(days=1)
    rows = labelled(features(lake, spec, since, until), labels(lake, spec, since, until, cut=TRAINED), spec)
    return fit(spec, rows, TRAINED)


@pytest.fixture
def platform(tmp_path: Path) -> Platform:
    """Forty days, a champion, and its scorings of R-1 to R+6."""
    world = memory_platform(tmp_path)
    examples.fill(world.lake, DAYS)
    for key in ("first", "second"):
        world.registry.register(bundle(), TrainingRecord(key, {}, {}, {}, {}))
    for days in range(-1, 7):
        score(world, after(days))
    return world


def score(platform: Platform, day: dt.date, version: int = 1) -> None:
    spec, source, run_id = examples.model(), examples.source(), f"score-{day}-{version}"
    publish(platform, spec, source, day, predict(platform, spec, source, day, run_id, version), run_id, replace=True)


def arrives(platform: Platform, *steps: tuple[float, int]) -> None:
    """The labels of R: a share of them known `days` after it, step by step."""
    rows = platform.lake.read("trusted.outcomes", R, R)
    days = np.repeat([days for _, days in steps], [round(share * rows.num_rows) for share, _ in steps])
    known = np.datetime64(R, "us") + days.astype("timedelta64[D]")
    at = rows.column_names.index("available_at")
    platform.lake.write("trusted.outcomes", rows.set_column(at, "available_at", pa.array(known)), [R])


def run(platform: Platform, as_of: dt.date, spec: ModelSpec | None = None, **options: Any) -> Performance:
    spec = spec or examples.model()
    first = options.pop("first", as_of - dt.timedelta(days=spec.monitoring.window_days - 1))
    given = {"bundle": bundle(), "version": 1, "run_id": f"monitor-{as_of}", **options}
    return measure(platform, spec, first=first, as_of=as_of, **given)


def cohort(platform: Platform, day: dt.date = R) -> dict[str, Any]:
    return platform.mart.cohorts("late_order", day, day)[0]


def auc(platform: Platform, count: int = 60) -> float:
    """Of the first rows of R."""
    truth = platform.lake.read("trusted.outcomes", R, R).sort_by("order_id")["took"].to_numpy() > 3
    predicted = platform.lake.read("predictions.late_order", R, R).sort_by("order_id")[PREDICTION].to_numpy()
    return float(roc_auc_score(truth[:count], predicted[:count]))


def rows(platform: Platform) -> list[tuple[Any, ...]]:
    """Cohorts and labels as the mart holds them."""
    with platform.mart.engine.connect() as connection:
        return [
            tuple(row)
            for table in ("cohorts", "late_order_labels")
            for row in connection.exec_driver_sql(f"select * from {table} order by 1, 2, 3")
        ]


def test_half_of_the_labels_then_the_rest(platform: Platform) -> None:
    arrives(platform, (0.5, 1), (0.5, 3))
    half = run(platform, after(1), first=R)
    assert (half.cohorts, half.waiting, half.matured_rows, half.scored_rows, half.coverage) == (1, 1, 30, 60, 0.5)
    assert half.auc == pytest.approx(auc(platform, 30))
    assert half.revised == []
    early = cohort(platform)
    assert (early["matured_rows"], early["coverage"], early["revisions"]) == (30, 0.5, 0)

    run(platform, after(2))
    assert cohort(platform) == early, "nothing more arrived"

    whole = run(platform, after(3), first=R)
    assert (whole.cohorts, whole.waiting, whole.matured_rows, whole.scored_rows, whole.coverage) == (3, 1, 180, 180, 1)
    now = cohort(platform)
    assert whole.revised == [f"as of {R}: AUC {auc(platform):.4f} on 60 rows was {auc(platform, 30):.4f} on 30"]
    assert (now["matured_rows"], now["coverage"], now["revisions"], now["measured_on"]) == (60, 1.0, 1, after(3))
    assert now["auc"] == pytest.approx(auc(platform))
    assert (now["first_measured_on"], now["first_matured_rows"]) == (after(1), 30)
    assert (now["first_auc"], now["first_brier"]) == (early["auc"], early["brier"])
    assert now["first_auc"] == pytest.approx(auc(platform, 30))

    before = rows(platform)
    assert run(platform, after(3), first=R) == whole, "a rerun"
    assert run(platform, after(1), first=R) == half, "an older run repeated"
    assert rows(platform) == before


@pytest.mark.parametrize("order", list(itertools.permutations((1, 3, 5))))
def test_runs_in_any_order_and_again_end_in_the_same_figures(platform: Platform, order: tuple[int, ...]) -> None:
    arrives(platform, (0.3, 1), (0.3, 3), (0.4, 5))
    for days in order:
        run(platform, after(days))
    assert (cohort(platform)["matured_rows"], cohort(platform)["measured_on"]) == (60, after(5))
    before = rows(platform)
    for days in (1, 3, 5, 3, 1):
        run(platform, after(days))
    assert rows(platform) == before


def test_an_older_run_repeated_says_the_same_of_what_was_revised_again(platform: Platform) -> None:
    arrives(platform, (0.3, 1), (0.3, 3), (0.4, 5))
    said = {days: run(platform, after(days)).revised for days in (1, 2, 3, 4, 5)}
    assert [len(said[days]) for days in (1, 2, 3, 4, 5)] == [0, 0, 1, 0, 1]
    assert "on 36 rows" in said[3][0] and "on 60 rows" in said[5][0]
    assert {days: run(platform, after(days)).revised for days in (5, 4, 3, 2, 1)} == said


def test_labels_that_were_delivered_late_under_an_old_timestamp_are_a_revision_too(platform: Platform) -> None:
    outcomes = platform.lake.read("trusted.outcomes", R, R)
    platform.lake.write("trusted.outcomes", outcomes.slice(0, 20), [R])
    run(platform, after(1))
    platform.lake.write("trusted.outcomes", outcomes, [R])
    assert [sentence[-5:] for sentence in run(platform, after(4)).revised] == ["on 20"]


def test_nothing_is_judged_before_it_is_due(platform: Platform) -> None:
    slow = examples.model(label={"table": "outcomes", "expression": "took > 3", "matures_after_days": 3})
    found = run(platform, after(2), slow, first=R)
    assert (found.cohorts, found.waiting, found.matured_rows, found.auc, found.coverage) == (0, 3, 0, None, 0)
    assert [row["as_of"] for row in platform.mart.cohorts("late_order")] == [after(-1)], "R-1 is due, though not asked"
    found = run(platform, after(3), slow, first=R)
    assert (found.cohorts, found.waiting, found.matured_rows) == (1, 3, 60)
    assert cohort(platform)["first_measured_on"] == after(3)


def test_a_due_cohort_without_a_label_lowers_the_coverage(platform: Platform) -> None:
    arrives(platform, (1.0, 4))
    found = run(platform, after(2), first=R)
    assert (found.cohorts, found.matured_rows, found.scored_rows, found.coverage) == (2, 60, 120, 0.5)
    assert platform.mart.cohorts("late_order", R, R) == [], "recorded once it has a label"


def test_the_window_is_one_version_and_the_record_is_all_that_is_current(platform: Platform) -> None:
    for days in (1, 2):
        score(platform, after(days), version=2)
    run(platform, after(1), version=2)
    found = run(platform, after(3), version=2)
    assert (found.cohorts, found.waiting, found.scored_rows, found.matured_rows) == (2, 0, 120, 120)
    kept = [(row["as_of"], row["version"]) for row in platform.mart.cohorts("late_order")]
    assert kept == [(after(-1), 1), (R, 1), (after(1), 2), (after(2), 2)]


def test_a_withdrawn_scoring_keeps_its_cohort_and_the_new_one_gets_its_own(platform: Platform) -> None:
    run(platform, after(1))
    before = cohort(platform)
    score(platform, R, version=2)
    found = run(platform, after(1), version=1, first=R)
    assert (found.cohorts, found.scored_rows) == (0, 0)
    assert [row["version"] for row in platform.mart.cohorts("late_order", R, R)] == [1, 2]
    assert cohort(platform) == before
    score(platform, R, version=1)
    assert run(platform, after(1), version=1, first=R).cohorts == 1, "the withdrawn one is back"


def test_cohorts_are_followed_for_reconcile_days_and_no_longer(platform: Platform) -> None:
    arrives(platform, (0.5, 1), (0.5, 4))
    brief = examples.model(monitoring={"reconcile_days": 3, "window_days": 1})
    run(platform, after(1), brief)
    run(platform, after(4), brief)
    assert cohort(platform)["matured_rows"] == 30, "its third day was R+3"
    run(platform, after(4), examples.model(monitoring={"reconcile_days": 4, "window_days": 1}))
    assert cohort(platform)["matured_rows"] == 60


def test_the_labels_of_the_span_are_in_the_mart(platform: Platform) -> None:
    run(platform, after(3))
    with platform.mart.engine.connect() as connection:
        query = "select count(*), max(as_of) from late_order_outcomes"
        count, last = connection.exec_driver_sql(query).one()
    assert (count, str(last)) == (4 * 60, str(after(2)))


def test_bounds_are_by_day_and_need_two_days(platform: Platform) -> None:
    week = run(platform, after(6))
    assert week.auc is not None and week.auc_low is not None and week.auc_high is not None
    assert 0.5 < week.auc_low < week.auc < week.auc_high < 1
    assert run(platform, after(6)) == week, "seeded"
    surer = examples.model(gate={"confidence": 0.8})
    narrow = run(platform, after(6), surer)
    assert narrow.auc_low is not None and week.auc_low < narrow.auc_low < week.auc
    day = run(platform, after(1), first=R)
    assert day.auc is not None
    assert (day.auc_low, day.auc_high) == (None, None)


def test_rates_and_the_reference(platform: Platform) -> None:
    seen = run(platform, after(1), first=R)
    truth = platform.lake.read("trusted.outcomes", R, R)
    assert seen.label_rate == pytest.approx(pc.mean(pc.greater(truth["took"], 3)).as_py())
    assert cohort(platform)["label_rate"] == pytest.approx(seen.label_rate, abs=1e-9)
    predicted = platform.lake.read("predictions.late_order", R, R)
    assert cohort(platform)["mean_probability"] == pytest.approx(pc.mean(predicted[PREDICTION]).as_py(), abs=1e-9)

    stated = {"auc": 0.8, "auc_low": 0.7, "auc_high": 0.9, "rate": 0.3}
    told = run(platform, after(1), bundle=replace(bundle(), facts={"metrics": {"reference": stated}}))
    assert (told.reference_auc, told.reference_auc_low, told.reference_auc_high) == (0.8, 0.7, 0.9)
    assert told.reference_rate == 0.3
    silent = run(platform, after(1), bundle=replace(bundle(), facts={}))
    assert (silent.reference_auc, silent.reference_auc_low, silent.reference_rate) == (None, None, None)


def test_a_single_class_has_no_auc(platform: Platform) -> None:
    outcomes = platform.lake.read("trusted.outcomes", R, R)
    at = outcomes.column_names.index("took")
    same = outcomes.set_column(at, "took", pa.array([2] * 60, pa.int64()))
    platform.lake.write("trusted.outcomes", same, [R])
    found = run(platform, after(1), first=R)
    assert (found.auc, found.auc_low, found.label_rate, found.matured_rows) == (None, None, 0.0, 60)
    assert found.brier is not None and found.log_loss is not None
    assert (cohort(platform)["auc"], cohort(platform)["first_auc"]) == (None, None)


def test_it_travels_as_json(platform: Platform) -> None:
    arrives(platform, (0.5, 1), (0.5, 3))
    run(platform, after(1))
    performance = run(platform, after(3))
    assert performance.revised
    facts = MonitoringFacts(after(3), 1, (R,), 60, 60, performance=performance)
    text = json.dumps(facts.to_dict(), allow_nan=False)
    assert MonitoringFacts.from_dict(json.loads(text)) == facts
