"""The steps of `monitor__<model>` over in-memory adapters: real features, model, scorings and report."""

from __future__ import annotations

import datetime as dt
import functools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from include.evergreen.drift.verdict import MonitoringFacts
from include.evergreen.errors import NotEnoughData
from include.evergreen.features.build import features, labelled, labels
from include.evergreen.lake.memory import MemoryLake
from include.evergreen.pipeline.monitoring import conclude, measure
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
AS_OF = examples.FIRST + dt.timedelta(days=38)
CALM: dict[str, Any] = {"sketch_rows": 500, "min_matured_rows": 100, "window_days": 5, "max_performance_drop": 0.2}


def spec(**monitoring: Any) -> ModelSpec:
    """Thresholds that the noise of 60 rows a day does not reach, and a shift does."""
    drift = {"drift": {"threshold": 0.3}}
    return examples.model(
        features={"region": {"type": "category", **drift}, "amount": drift, "late_before": {"drift": None}},
        monitoring={**CALM, "prediction": {"threshold": 0.3}, **monitoring},
        retrain={"breaches": 2, "windows": 3, "cooldown_days": 7},
    )


@functools.cache
def bundle() -> ModelBundle:
    lake = MemoryLake()
    examples.fill(lake, DAYS)
    since, until = examples.FIRST, TRAINED - dt.timedelta(days=1)
    rows = labelled(features(lake, spec(), since, until), labels(lake, spec(), since, until, cut=TRAINED), spec())
    return fit(spec(), rows, TRAINED)


def batch(table: str, day: dt.date, status: str = "published", reasons: tuple[str, ...] = ()) -> dict[str, Any]:
    return {
        "table_name": table,
        "partition_date": day,
        "source": "shop",
        "status": status,
        "rows_in": 60,
        "trusted": 60,
        "quarantined": 0,
        "duplicates": 0,
        "deliveries": [],
        "reasons": list(reasons),
        "run_id": "ingest",
    }


def register(platform: Platform, key: str) -> int:
    version = platform.registry.register(bundle(), TrainingRecord(key, {}, {}, {}, {}))
    return version.number


def score(platform: Platform, days: list[dt.date], version: int) -> None:
    for day in days:
        staged = predict(platform, spec(), examples.source(), day, f"score-{day}-{version}", version)
        publish(platform, spec(), examples.source(), day, staged, f"score-{day}-{version}", replace=True)


def days_to(last: dt.date, count: int) -> list[dt.date]:
    return [last - dt.timedelta(days=back) for back in reversed(range(count))]


@pytest.fixture
def platform(tmp_path: Path) -> Platform:
    """Forty days of orders and outcomes, a champion, its scorings of the seven days to AS_OF."""
    world = memory_platform(tmp_path)
    examples.fill(world.lake, DAYS)
    days = examples.dates(DAYS)
    world.mart.record_batches([batch(table, day) for table in ("orders", "outcomes") for day in days])
    score(world, days_to(AS_OF, 7), register(world, "first"))
    return world


def change(platform: Platform, table: str, days: list[dt.date], **columns: Any) -> None:
    """Replace columns of some partitions in the lake."""
    rows = platform.lake.read(f"trusted.{table}", days[0], days[-1])
    for name, make in columns.items():
        at = rows.column_names.index(name)
        rows = rows.set_column(at, name, pa.array(make(rows.num_rows), rows.schema.field(name).type))
    platform.lake.write(f"trusted.{table}", rows, days)


def run(platform: Platform, model: ModelSpec, as_of: dt.date = AS_OF, run_id: str = "r1") -> dict[str, Any]:
    facts = measure(platform, model, examples.source(), as_of, run_id)
    facts = json.loads(json.dumps(facts, allow_nan=False))
    return {**facts, **conclude(platform, model, examples.source(), as_of, facts, run_id)}


def test_a_calm_window_is_ok_and_its_numbers_are_everywhere_the_same(platform: Platform) -> None:
    found = run(platform, spec())
    assert found["verdict"] == "ok", found["reasons"]
    assert found["partitions"] == [day.isoformat() for day in days_to(AS_OF, 5)]
    assert (found["rows"], found["scored_rows"], found["version"]) == (300, 60, 1)
    assert set(found["columns"]) == {"region", "amount", PREDICTION}

    stored = json.loads(platform.objects.get(f"reports/late_order/{AS_OF}.json"))
    page = platform.objects.get(f"reports/late_order/{AS_OF}.html").decode()
    row = platform.mart.monitorings("late_order")[0]
    assert stored["columns"] == found["columns"] == row["columns"]
    assert found["report_uri"] == row["report_uri"] == platform.objects.uri(f"reports/late_order/{AS_OF}.html")
    assert f"{found['columns'][PREDICTION]['score']:.4f}" in page
    entry = platform.mart.decisions(subject="late_order", kind="verdict")[0]
    assert (entry["outcome"], entry["reasons"], entry["actor"]) == ("ok", row["reasons"], "monitor")


def test_performance_counts_only_what_was_known_at_the_as_of_date(platform: Platform) -> None:
    seen = run(platform, spec())["performance"]
    # Outcomes of a day are known the next midnight: all of the window but AS_OF itself.
    assert (seen["matured_rows"], seen["scored_rows"], seen["cohorts"], seen["waiting"]) == (240, 240, 4, 1)
    assert platform.mart.monitorings("late_order")[0]["performance"]["coverage"] == 1.0
    assert seen["auc"] > 0.6
    assert seen["reference_auc"] == bundle().facts["metrics"]["reference"]["auc"]

    from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score

    days = days_to(AS_OF, 5)
    predicted = platform.lake.read("predictions.late_order", days[0], days[-2]).sort_by("order_id")
    took = platform.lake.read("trusted.outcomes", days[0], days[-2]).sort_by("order_id")["took"].to_numpy()
    truth, probability = took > 3, predicted[PREDICTION].to_numpy()
    assert seen["auc"] == pytest.approx(roc_auc_score(truth, probability), abs=1e-9)
    assert seen["brier"] == pytest.approx(brier_score_loss(truth, probability), abs=1e-9)
    assert seen["log_loss"] == pytest.approx(log_loss(truth, probability), abs=1e-6)


def test_labels_that_take_longer_move_the_window_of_performance_back(platform: Platform) -> None:
    slow = spec().model_copy(update={"label": spec().label.model_copy(update={"matures_after_days": 3})})
    seen = run(platform, slow)["performance"]
    assert (seen["cohorts"], seen["waiting"], seen["matured_rows"]) == (4, 3, 240)


def test_a_shift_is_drift(platform: Platform) -> None:
    days = days_to(AS_OF, 5)
    change(platform, "orders", days, region=lambda n: ["south"] * (n - 1) + ["west"])
    change(platform, "orders", days, amount=lambda n: 300 + np.arange(n) % 7)
    score(platform, days, 1)
    found = run(platform, spec(min_matured_rows=1000))
    assert found["verdict"] == "prediction_drift", found["reasons"]
    assert found["guilty"][0] == PREDICTION
    assert set(found["guilty"]) == {"region", "amount", PREDICTION}
    assert [reason.split(":")[0].split(" (")[0] for reason in found["reasons"]] == [
        "the prediction drifts",
        "2 features drift",
        "performance unknown",
    ]


def test_an_empty_feature_is_broken_data(platform: Platform) -> None:
    change(platform, "orders", days_to(AS_OF, 5), amount=lambda n: [None] * n)
    found = run(platform, spec())
    assert found["verdict"] == "broken_data"
    assert found["guilty"][0] == "amount"
    assert any("amount: no value in the window" in reason for reason in found["reasons"])
    assert found["columns"]["amount"]["score"] is None


def test_a_stuck_category_is_broken_data(platform: Platform) -> None:
    change(platform, "orders", days_to(AS_OF, 5), region=lambda n: ["south"] * n)
    found = run(platform, spec())
    assert found["verdict"] == "broken_data"
    assert any(reason.startswith("region: one value throughout") for reason in found["reasons"])


def test_a_stopped_partition_is_broken_data(platform: Platform) -> None:
    yesterday = AS_OF - dt.timedelta(days=1)
    platform.mart.record_batches([batch("outcomes", yesterday, "stopped", ("80% bad rows",))])
    found = run(platform, spec())
    assert found["verdict"] == "broken_data"
    assert f"outcomes of {yesterday}: stopped: 80% bad rows" in found["reasons"]


def test_a_body_that_concludes_late_takes_no_newer_verdict_back(platform: Platform) -> None:
    late = measure(platform, spec(), examples.source(), AS_OF, "late")
    yesterday = AS_OF - dt.timedelta(days=1)
    platform.mart.record_batches([batch("outcomes", yesterday, "stopped", ("80% bad rows",))])
    assert run(platform, spec())["verdict"] == "broken_data"
    said = conclude(platform, spec(), examples.source(), AS_OF, late, "late")
    assert said["verdict"] == "broken_data", "it measures again"
    [newest] = platform.mart.monitorings("late_order", until=AS_OF, limit=1)
    assert newest["verdict"] == "broken_data"


def test_a_verdict_is_concluded_on_what_was_measured_when_none_came_between(platform: Platform) -> None:
    run(platform, spec())
    facts = measure(platform, spec(), examples.source(), AS_OF, "again")
    platform.mart.record_batches([batch("outcomes", AS_OF - dt.timedelta(days=1), "stopped", ("since",))])
    assert conclude(platform, spec(), examples.source(), AS_OF, facts, "again")["verdict"] == "ok"


def test_a_partition_that_was_due_and_never_came_is_broken_data(platform: Platform) -> None:
    orders, _ = examples.rows(DAYS + 1)
    unrecorded = examples.FIRST + dt.timedelta(days=DAYS)
    platform.lake.write("trusted.orders", orders.slice(orders.num_rows - 60), [unrecorded])
    score(platform, days_to(unrecorded, 2), 1)
    found = run(platform, spec(), unrecorded)
    assert found["verdict"] == "broken_data"
    assert f"orders of {unrecorded}: expected a published partition, found none" in found["reasons"]


def test_a_table_with_a_lag_is_due_later(platform: Platform) -> None:
    platform.mart.record_batches([batch("outcomes", AS_OF, "stopped", ("not due yet",))])
    assert run(platform, spec())["verdict"] == "ok"


def outcomes(platform: Platform, days: list[dt.date], make: Callable[[np.ndarray], np.ndarray]) -> None:
    """Replace what became of the orders of some dates."""
    rows = platform.lake.read("trusted.outcomes", days[0], days[-1])
    took = pa.array(make(rows["took"].to_numpy()), pa.int64())
    platform.lake.write("trusted.outcomes", rows.set_column(rows.column_names.index("took"), "took", took), days)


def test_labels_without_a_pattern_are_a_performance_drop(platform: Platform) -> None:
    outcomes(platform, days_to(AS_OF, 5), np.random.default_rng(0).permutation)
    found = run(platform, spec())
    assert found["verdict"] == "performance_drop", found["reasons"]
    seen = found["performance"]
    assert seen["auc_low"] < seen["auc"] < seen["auc_high"] < seen["reference_auc_low"]
    assert found["reasons"][0].startswith(f"AUC {seen['auc']:.4f}, at most {seen['auc_high']:.4f}, on 240 matured rows")


def test_a_fall_within_the_intervals_is_no_performance_drop(platform: Platform) -> None:
    def some(took: np.ndarray) -> np.ndarray:
        return np.where(np.arange(len(took)) % 8 == 0, np.random.default_rng(0).permutation(took), took)

    outcomes(platform, days_to(AS_OF, 5), some)
    found = run(platform, spec(max_performance_drop=0.02))
    seen = found["performance"]
    assert seen["reference_auc"] - seen["auc"] > 0.02
    assert seen["auc_high"] >= seen["reference_auc_low"]
    assert found["verdict"] == "ok", found["reasons"]


def test_more_positives_are_label_drift(platform: Platform) -> None:
    outcomes(platform, days_to(AS_OF, 5), lambda took: np.where(np.arange(len(took)) % 2 == 0, 5, took))
    found = run(platform, spec(max_performance_drop=0.5, max_label_shift=0.1, prediction={"threshold": 0.5}))
    assert found["verdict"] == "label_drift", found["reasons"]
    assert found["performance"]["label_rate"] - found["performance"]["reference_rate"] > 0.1


def test_a_new_champion_does_not_answer_for_its_predecessor(platform: Platform) -> None:
    score(platform, [AS_OF], register(platform, "second"))
    found = run(platform, spec())
    assert found["version"] == 2
    assert (found["performance"]["matured_rows"], found["performance"]["cohorts"]) == (0, 0)
    assert found["performance"]["waiting"] == 1
    assert any("performance unknown: 0 matured rows" in reason for reason in found["reasons"])
    assert found["rows"] == 300


def test_no_matured_label_is_named(platform: Platform) -> None:
    platform.lake.write("trusted.outcomes", platform.lake.read("trusted.outcomes").slice(0, 0), examples.dates(DAYS))
    found = run(platform, spec())
    assert found["performance"]["auc"] is None
    assert any("performance unknown: 0 matured rows" in reason for reason in found["reasons"])


def test_the_first_scored_date_is_judged_on_a_whole_window(platform: Platform) -> None:
    first = days_to(AS_OF, 7)[0]
    found = run(platform, spec(), first)
    assert found["partitions"] == [day.isoformat() for day in days_to(first, 5)]
    assert (found["performance"]["cohorts"], found["performance"]["waiting"]) == (0, 1)
    assert found["verdict"] == "ok", found["reasons"]


def test_emptied_predictions_are_broken_data(platform: Platform) -> None:
    days = days_to(AS_OF, 7)
    platform.lake.write("predictions.late_order", platform.lake.read("predictions.late_order").slice(0, 0), days)
    found = run(platform, spec())
    assert (found["verdict"], found["rows"]) == ("broken_data", 300)
    assert found["partitions"] == [day.isoformat() for day in days_to(AS_OF, 5)]
    assert any("nothing to judge" in reason for reason in found["reasons"])


def test_a_date_never_scored_cannot_be_monitored(platform: Platform) -> None:
    with pytest.raises(NotEnoughData, match="expected a scoring of 2024-02-09"):
        measure(platform, spec(), examples.source(), dt.date(2024, 2, 9), "r1")


def test_a_rerun_leaves_the_same_rows(platform: Platform) -> None:
    first = run(platform, spec())
    rows = platform.mart.monitorings("late_order"), platform.mart.decisions()
    again = run(platform, spec())
    assert again.pop("seen") is not first.pop("seen") is None  # the first verdict is what the second run found
    assert again == first
    assert (platform.mart.monitorings("late_order"), platform.mart.decisions()) == rows


def test_another_run_that_says_the_same_leaves_no_row_and_one_that_differs_does(platform: Platform) -> None:
    run(platform, spec(), run_id="r1")
    run(platform, spec(), run_id="r2")
    assert [row["run_id"] for row in platform.mart.decisions(kind="verdict")] == ["r1"]
    change(platform, "orders", days_to(AS_OF, 5), amount=lambda n: np.full(n, None))
    run(platform, spec(), run_id="r3")
    assert [row["run_id"] for row in platform.mart.decisions(kind="verdict")] == ["r3", "r1"]


def test_facts_are_small(platform: Platform) -> None:
    facts = measure(platform, spec(), examples.source(), AS_OF, "r1")
    assert len(json.dumps(facts)) < 4_000
    assert MonitoringFacts.from_dict(facts).as_of == AS_OF


BUSY_DAYS, PER_DAY = 50, 240
FAULT = examples.FIRST + dt.timedelta(days=45)
"""The date whose data is broken."""


@functools.cache
def busy_bundle() -> ModelBundle:
    lake, trained = MemoryLake(), FAULT - dt.timedelta(days=5)
    examples.fill(lake, BUSY_DAYS, per_day=PER_DAY)
    until = trained - dt.timedelta(days=1)
    known = labels(lake, spec(), examples.FIRST, until, cut=trained)
    return fit(spec(), labelled(features(lake, spec(), examples.FIRST, until), known, spec()), trained)


@pytest.fixture
def busy(tmp_path: Path) -> Platform:
    """Enough rows a day for a fault to show on its first: a champion, and its scorings up to the day before FAULT."""
    world = memory_platform(tmp_path)
    examples.fill(world.lake, BUSY_DAYS, per_day=PER_DAY)
    days = examples.dates(BUSY_DAYS)
    world.mart.record_batches([batch(table, day) for table in ("orders", "outcomes") for day in days])
    world.registry.register(busy_bundle(), TrainingRecord("first", {}, {}, {}, {}))
    score(world, days_to(FAULT - dt.timedelta(days=1), 5), 1)
    return world


def arrives(platform: Platform, day: dt.date) -> dict[str, Any]:
    """A date as the loop sees it: scored, then monitored."""
    score(platform, [day], 1)
    return run(platform, spec(), day, f"monitor-{day}")


def test_five_days_without_a_fault_are_not_broken(busy: Platform) -> None:
    days = days_to(FAULT + dt.timedelta(days=4), 5)
    assert [arrives(busy, day)["verdict"] for day in days] == ["ok"] * 5


def test_a_change_of_unit_is_broken_data_on_its_date_and_named(busy: Platform) -> None:
    rows = busy.lake.read("trusted.orders", FAULT, FAULT)
    change(busy, "orders", [FAULT], amount=lambda n: rows["amount"].to_numpy() * 0.45359237)
    found = arrives(busy, FAULT)
    assert (found["verdict"], found["guilty"][0]) == ("broken_data", "amount")
    assert found["reasons"][0].startswith("amount: does not fit the other columns: -0."), found["reasons"]
    assert found["reasons"][0].endswith("as if changed from pounds to kilograms?")
    assert busy.mart.monitorings("late_order")[0]["verdict"] == "broken_data"
    page = busy.objects.get(f"reports/late_order/{FAULT}.html").decode()
    assert "as if changed from pounds to kilograms?" in page
    assert arrives(busy, FAULT + dt.timedelta(days=1))["verdict"] == "ok", "the next date is whole"


@pytest.mark.parametrize("column", ["amount", "region"])
def test_a_flood_of_nulls_is_broken_data_on_its_date_alone(busy: Platform, column: str) -> None:
    """A third of one date is a fifteenth of the window."""
    values = busy.lake.read("trusted.orders", FAULT, FAULT)[column].to_pylist()
    holes = [None if row % 3 == 0 else value for row, value in enumerate(values)]
    change(busy, "orders", [FAULT], **{column: lambda n: holes})
    found = arrives(busy, FAULT)
    assert (found["verdict"], found["guilty"]) == ("broken_data", [column])
    assert found["reasons"][0].startswith(f"{column}: nulls rose from 0.0% to 33.3% of the date")
    assert arrives(busy, FAULT + dt.timedelta(days=1))["verdict"] == "ok"


def test_labels_turned_round_are_broken_data_the_day_after(busy: Platform) -> None:
    """From FAULT on the label says the opposite. Its first cohort is due on the next date, among four good ones."""
    days = days_to(FAULT + dt.timedelta(days=4), 5)
    outcomes(busy, days, lambda took: np.where(took > 3, 2, 5))
    assert arrives(busy, FAULT)["verdict"] == "ok", "not one of these labels is due"
    found = arrives(busy, days[1])
    assert found["verdict"] == "broken_data", found["reasons"]
    assert found["reasons"][0].startswith(f"the labels of {FAULT} contradict the predictions: AUC 0.")
    assert (found["performance"]["newest"], found["performance"]["newest_auc"] < 0.4) == (FAULT.isoformat(), True)
    assert [arrives(busy, day)["verdict"] for day in days[2:]] == ["broken_data"] * 3


def test_a_version_without_a_profile_is_judged_without_it(busy: Platform) -> None:
    old = replace(busy_bundle(), facts={k: v for k, v in busy_bundle().facts.items() if k != "profile"})
    version = busy.registry.register(old, TrainingRecord("old", {}, {}, {}, {})).number
    score(busy, [FAULT], version)
    found = run(busy, spec(), FAULT)
    assert (found["version"], found["misfits"], found["verdict"]) == (version, {}, "ok")
