"""What the gate is told: which rows are compared, what makes a comparison unfair, slices, costs, and the self-test."""

from __future__ import annotations

import datetime as dt
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from sklearn.metrics import roc_auc_score

from include.evergreen.features.build import features, labelled, labels
from include.evergreen.lake.memory import MemoryLake
from include.evergreen.promotion.evaluate import baseline, evaluate, metrics_of, trained_on
from include.evergreen.promotion.gate import Evaluation, gate
from include.evergreen.specs import ModelSpec
from include.evergreen.training.bundle import ModelBundle
from include.evergreen.training.fit import fit, label_of
from include.evergreen.training.metrics import best_threshold
from tests import examples

SPEC = examples.model()
DAYS = 40
AS_OF = examples.FIRST + dt.timedelta(days=DAYS)
FRESH = examples.dates(DAYS)[-5:]
FROZEN = [day for day in examples.dates(DAYS - 5) if day.toordinal() % 5 == 0]
COSTS = {"hit": 1.0, "miss": 5.0, "false_alarm": 2.0}


def known(days: int = DAYS, **options: Any) -> pa.Table:
    """Labelled rows of the shop at the end of its days."""
    lake = MemoryLake()
    examples.fill(lake, days, **options)
    last = examples.FIRST + dt.timedelta(days=days)
    until = last - dt.timedelta(days=1)
    return labelled(
        features(lake, SPEC, examples.FIRST, until), labels(lake, SPEC, examples.FIRST, until, cut=last), SPEC
    )


def of(table: pa.Table, days: list[dt.date]) -> pa.Table:
    return table.filter(pc.is_in(table["as_of"], pa.array(days, pa.date32())))


def between(table: pa.Table, first: int, last: int) -> pa.Table:
    """Rows of some of the shop's days, by number, `last` not included."""
    return of(table, examples.dates(last)[first:])


@pytest.fixture(scope="module")
def table() -> pa.Table:
    return known()


@pytest.fixture(scope="module")
def bundle(table: pa.Table) -> ModelBundle:
    return fit(SPEC, table, AS_OF)


@pytest.fixture(scope="module")
def weak(table: pa.Table) -> ModelBundle:
    return fit(SPEC, table, AS_OF, {"max_depth": 1, "eta": 0.01})


def told(bundle: ModelBundle, **facts: Any) -> ModelBundle:
    return replace(bundle, facts={**bundle.facts, **facts})


# --- which rows ------------------------------------------------------------------------------------------------------


def test_fresh_rows_are_in_neither_models_training(table: pa.Table, bundle: ModelBundle, weak: ModelBundle) -> None:
    alone = evaluate(SPEC, table, bundle, None, None, 10)
    assert (alone.fresh.first, alone.fresh.last) == (str(FRESH[0]), str(FRESH[-1]))
    assert (alone.fresh.rows, alone.fresh.days) == (300, 5)
    newer = told(weak, trained_until=FRESH[1].isoformat())
    older = told(weak, trained_until=FRESH[0].replace(day=1).isoformat())
    for champion, first, days in ((newer, FRESH[2], 3), (older, FRESH[0], 5)):
        found = evaluate(SPEC, table, bundle, champion, 1, 10).fresh
        assert (found.first, found.days, found.rows) == (str(first), days, 60 * days)
    assert evaluate(SPEC, table, bundle, told(weak, trained_until=FRESH[-1].isoformat()), 1, 10).fresh.rows == 0


def test_no_fresh_row_at_all_cannot_decide(table: pa.Table, bundle: ModelBundle, weak: ModelBundle) -> None:
    facts = evaluate(SPEC, table, bundle, told(weak, trained_until=FRESH[-1].isoformat()), 1, 10)
    assert gate(facts, SPEC.gate).outcome == "cannot_decide"
    frozen = of(table, FROZEN)
    facts = evaluate(SPEC, table, bundle, told(weak, trained_until=FRESH[-1].isoformat()), 1, 10, frozen)
    assert facts.pooled.rows == frozen.num_rows
    assert gate(facts, SPEC.gate).outcome == "cannot_decide"


def test_frozen_and_fresh_rows_are_measured_apart_and_together(
    table: pa.Table, bundle: ModelBundle, weak: ModelBundle
) -> None:
    frozen, fresh = of(table, FROZEN), of(table, FRESH)
    facts = evaluate(SPEC, table, bundle, weak, 1, 10, frozen, {"cut": "2024-02-10"})
    assert facts.obstacles == ()
    assert facts.frozen is not None
    assert facts.frozen_from == {"cut": "2024-02-10"}
    together = pa.concat_tables([frozen, fresh])
    for found, rows in ((facts.fresh, fresh), (facts.frozen, frozen), (facts.pooled, together)):
        assert found.rows == rows.num_rows
        assert found.days == len(pc.unique(rows["as_of"]))
        assert found.champion is not None
        assert found.over_champion is not None
        mine, theirs = (roc_auc_score(label_of(rows), model.predict(rows)) for model in (bundle, weak))
        plain = roc_auc_score(label_of(rows), baseline(SPEC, known_to(bundle, table), rows))
        assert found.challenger["auc"].value == pytest.approx(mine)
        assert found.champion["auc"].value == pytest.approx(theirs)
        assert found.baseline["auc"].value == pytest.approx(plain)
        assert found.over_champion.value == pytest.approx(mine - theirs)
        assert found.over_baseline.value == pytest.approx(mine - plain)
        assert found.over_champion.low < found.over_champion.value < found.over_champion.high


def known_to(bundle: ModelBundle, table: pa.Table) -> pa.Table:
    """The rows that a model was made from."""
    return of(table, [day for day in examples.dates(DAYS) if trained_on(bundle, day)])


def test_a_model_was_trained_on_its_days_but_the_frozen_ones(bundle: ModelBundle) -> None:
    seen = [day for day in examples.dates(DAYS) if trained_on(bundle, day)]
    assert seen == [day for day in examples.dates(DAYS - 5) if day not in FROZEN]
    assert not trained_on(bundle, examples.FIRST - dt.timedelta(days=1))
    old = replace(bundle, facts={k: v for k, v in bundle.facts.items() if k != "frozen_every"})
    assert trained_on(old, FROZEN[2]), "a version of before the frozen days kept none"


def test_a_lower_log_loss_is_a_gain(table: pa.Table, bundle: ModelBundle, weak: ModelBundle) -> None:
    spec = examples.model(gate={**SPEC.gate.model_dump(), "metric": "log_loss"})
    found = evaluate(spec, table, bundle, weak, 1, 10).fresh
    assert found.champion is not None
    assert found.over_champion is not None
    gain = found.champion["log_loss"].value - found.challenger["log_loss"].value
    assert found.over_champion.value == pytest.approx(gain)
    assert found.over_champion.low > 0


def test_floors_are_measured_too() -> None:
    spec = examples.model(gate={"floors": {"average_precision": 0.3}})
    assert metrics_of(spec) == ["auc", "auc_by_day", "log_loss", "brier", "average_precision"]


# --- what is unfair --------------------------------------------------------------------------------------------------


def test_a_champion_trained_on_a_frozen_day_is_no_fair_champion(
    table: pa.Table, bundle: ModelBundle, weak: ModelBundle
) -> None:
    greedy = told(weak, frozen_every=7)
    facts = evaluate(SPEC, table, bundle, greedy, 4, 10, of(table, FROZEN))
    (obstacle,) = facts.obstacles
    seen = [day for day in FROZEN if day.toordinal() % 7]
    assert f"champion 4 was trained on {len(seen)} frozen day(s), such as {min(seen)}" in obstacle
    assert gate(facts, SPEC.gate).outcome == "cannot_decide"
    facts = evaluate(SPEC, table, greedy, weak, 4, 10, of(table, FROZEN))
    assert "the challenger was trained on" in facts.obstacles[0]
    fair = [day for day in FROZEN if day.toordinal() % 7 == 0]
    assert evaluate(SPEC, table, bundle, greedy, 4, 10, of(table, fair)).obstacles == ()


def test_a_champion_with_an_unknown_feature_cannot_be_compared(
    table: pa.Table, bundle: ModelBundle, weak: ModelBundle
) -> None:
    strange = replace(weak, features=(*weak.features, "colour"))
    facts = evaluate(SPEC, table, bundle, strange, 4, 10)
    assert facts.obstacles == ("champion 4 needs features that the spec no longer has: ['colour']",)
    assert (facts.champion_version, facts.fresh.champion, facts.fresh.over_champion) == (4, None, None)
    decision = gate(facts, SPEC.gate)
    assert decision.outcome == "cannot_decide"
    assert "colour" in decision.reasons[0]


def test_obstacles_known_before_are_kept(table: pa.Table, bundle: ModelBundle) -> None:
    facts = evaluate(SPEC, table, bundle, None, None, 10, obstacles=["the data of 2024-02-08 is broken"])
    assert gate(facts, SPEC.gate).outcome == "cannot_decide"
    assert gate(facts, SPEC.gate).reasons == ("cannot decide: the data of 2024-02-08 is broken",)


def test_a_twin_is_known_by_its_bytes(table: pa.Table, bundle: ModelBundle, weak: ModelBundle) -> None:
    assert evaluate(SPEC, table, bundle, told(bundle, note="a copy"), 1, 10).identical
    assert not evaluate(SPEC, table, bundle, weak, 1, 10).identical


# --- slices and calibration ------------------------------------------------------------------------------------------


def sliced(least: int) -> ModelSpec:
    return examples.model(gate={**SPEC.gate.model_dump(), "slices": ["region"], "min_slice_rows": least})


def test_slices_below_the_least_rows_are_left_out(table: pa.Table, bundle: ModelBundle, weak: ModelBundle) -> None:
    counts = {row["values"]: row["counts"] for row in pc.value_counts(of(table, FRESH)["region"]).to_pylist()}
    assert len(set(counts.values())) == 3, "regions of unequal size tell the border"
    most, middle, least = sorted(counts, key=lambda name: -counts[name])
    found = evaluate(sliced(counts[middle]), table, bundle, weak, 1, 10).slices
    assert [(s.column, s.value, s.rows, s.days) for s in found] == [
        ("region", most, counts[most], 5),
        ("region", middle, counts[middle], 5),
    ]
    assert {s.value for s in evaluate(sliced(counts[least]), table, bundle, weak, 1, 10).slices} == set(counts)
    assert evaluate(sliced(10_000), table, bundle, weak, 1, 10).slices == ()


def test_a_slice_is_measured_on_its_own_fresh_and_frozen_rows(
    table: pa.Table, bundle: ModelBundle, weak: ModelBundle
) -> None:
    together = of(table, [*FROZEN, *FRESH])
    for found in evaluate(sliced(50), table, bundle, weak, 1, 10, of(table, FROZEN)).slices:
        rows = together.filter(pc.equal(together["region"], found.value))
        assert found.rows == rows.num_rows
        mine, theirs = (roc_auc_score(label_of(rows), model.predict(rows)) for model in (bundle, weak))
        assert found.challenger == pytest.approx(mine)
        assert found.champion == pytest.approx(theirs)
        assert found.over_champion is not None
        assert found.over_champion.value == pytest.approx(mine - theirs)


def test_a_slice_that_loses_is_refused_by_name(table: pa.Table) -> None:
    """The challenger has learned the south the wrong way round, and more of the rest than the champion."""
    south = pc.equal(table["region"], "south")
    frame = table.set_column(
        table.column_names.index("label"), "label", pc.if_else(south, pc.invert(table["label"]), table["label"])
    )
    partial = fit(SPEC, frame, AS_OF)
    fair = fit(SPEC, table, AS_OF)
    decision = gate(evaluate(sliced(50), table, partial, fair, 1, 10, of(table, FROZEN)), SPEC.gate)
    assert decision.outcome == "refused"
    named = [reason for reason in decision.reasons if "region = south" in reason]
    assert named
    assert "region = north" not in named[0]


def test_a_missing_category_is_no_slice(table: pa.Table, bundle: ModelBundle) -> None:
    region = pc.if_else(pc.equal(table["region"], "west"), None, table["region"])
    blank = table.set_column(table.column_names.index("region"), "region", region)
    assert {s.value for s in evaluate(sliced(1), blank, bundle, None, None, 10).slices} == {"north", "south"}


def test_calibration_is_the_distance_in_ten_bins(table: pa.Table, bundle: ModelBundle) -> None:
    rows = of(table, FRESH)
    label, order = label_of(rows), np.argsort(bundle.predict(rows), kind="stable")
    predicted = bundle.predict(rows).astype("float64")
    bins = np.array_split(order, 10)
    expected = sum(len(b) * abs(predicted[b].mean() - label[b].mean()) for b in bins) / len(label)
    found = evaluate(SPEC, table, bundle, None, None, 10).calibration
    assert found.error.value == pytest.approx(expected)
    assert [part.rows for part in found.bins] == [30] * 10
    assert [part.predicted for part in found.bins] == pytest.approx([predicted[b].mean() for b in bins])
    assert [part.happened for part in found.bins] == pytest.approx([label[b].mean() for b in bins])


def test_a_model_that_is_too_sure_is_ill_calibrated(table: pa.Table, bundle: ModelBundle) -> None:
    sure = fit(SPEC, table, AS_OF, {"scale_pos_weight": 30.0})
    decision = gate(evaluate(SPEC, table, sure, None, None, 10, of(table, FROZEN)), SPEC.gate)
    assert any("calibration error" in reason and "beyond 0.1" in reason for reason in decision.reasons)
    assert decision.outcome == "refused"


# --- costs -----------------------------------------------------------------------------------------------------------


def costly(metric: str = "auc") -> ModelSpec:
    return examples.model(costs=COSTS, gate={**SPEC.gate.model_dump(), "metric": metric})


def value_by_hand(label: np.ndarray, decision: np.ndarray) -> float:
    acted, late = np.asarray(decision, dtype=bool), label == 1
    paid = COSTS["hit"] * (acted & late).sum() + COSTS["miss"] * (~acted & late).sum()
    return float(1000 * (COSTS["miss"] * late.sum() - paid - COSTS["false_alarm"] * (acted & ~late).sum()) / len(label))


def test_the_value_is_what_each_models_own_threshold_saves(table: pa.Table) -> None:
    spec = costly()
    challenger = fit(spec, table, AS_OF)
    champion = told(fit(spec, table, AS_OF, {"max_depth": 1}), threshold=0.6)
    assert challenger.threshold != champion.threshold
    rows = of(table, FRESH)
    found = evaluate(spec, table, challenger, champion, 1, 10).fresh
    assert found.champion is not None
    label = label_of(rows)
    for model, seen in ((challenger, found.challenger), (champion, found.champion)):
        assert seen["value"].value == pytest.approx(value_by_hand(label, model.predict(rows) >= model.threshold))
    plain = baseline(spec, known_to(challenger, table), rows) >= 2.0 / (2.0 + 5.0 - 1.0)
    assert found.baseline["value"].value == pytest.approx(value_by_hand(label, plain))


def test_without_costs_there_is_no_value(table: pa.Table, bundle: ModelBundle) -> None:
    assert "value" not in evaluate(SPEC, table, bundle, None, None, 10).fresh.challenger


def test_value_as_the_primary_metric_decides(table: pa.Table) -> None:
    spec = costly("value")
    good = fit(spec, table, AS_OF)
    never = told(good, threshold=1.0)
    first = evaluate(spec, table, good, None, None, 10, of(table, FROZEN))
    assert (first.metric, gate(first, spec.gate).outcome) == ("value", "accepted")
    poor = fit(spec, table, AS_OF, {"max_depth": 1, "eta": 0.01})
    poor = told(poor, threshold=1.0)
    facts = evaluate(spec, table, good, poor, 1, 10, of(table, FROZEN))
    assert facts.fresh.champion is not None
    assert facts.fresh.over_champion is not None
    assert facts.fresh.champion["value"].value == 0
    assert facts.fresh.over_champion.value == pytest.approx(facts.fresh.challenger["value"].value)
    assert gate(facts, spec.gate).outcome == "accepted"
    assert gate(evaluate(spec, table, poor, good, 1, 10, of(table, FROZEN)), spec.gate).outcome == "refused"
    assert not gate(evaluate(spec, table, never, good, 1, 10), spec.gate).accepted


def test_no_threshold_saves_more_than_the_best_one(table: pa.Table) -> None:
    spec = costly()
    model = fit(spec, table, AS_OF)
    rows = of(table, FRESH)
    best = best_threshold(label_of(rows), model.predict(rows), (1.0, 5.0, 2.0))
    values = [
        evaluate(spec, table, told(model, threshold=threshold), None, None, 10).fresh.challenger["value"].value
        for threshold in (best, 0.1, 0.3, 0.5, 0.7, 1.0)
    ]
    assert max(values) == values[0] > 0


# --- the gate on real models -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def busy() -> dict[str, Any]:
    """Two hundred orders a day, ten of them fresh; a champion with all features and half the days."""
    spec = examples.model(training={**SPEC.training.model_dump(), "holdout_days": 10})
    table, as_of = known(60, per_day=200), examples.FIRST + dt.timedelta(days=60)
    return {"spec": spec, "table": table, "as_of": as_of, "frozen": frozen_of(table, 50)}


def frozen_of(table: pa.Table, last: int) -> pa.Table:
    return of(table, [day for day in examples.dates(last) if day.toordinal() % 5 == 0])


def judged(busy: dict[str, Any], challenger: ModelBundle, champion: ModelBundle) -> tuple[Evaluation, str]:
    facts = evaluate(busy["spec"], busy["table"], challenger, champion, 1, 10, busy["frozen"])
    assert facts.obstacles == ()
    return facts, gate(facts, busy["spec"].gate).outcome


@pytest.fixture(scope="module")
def champion(busy: dict[str, Any]) -> ModelBundle:
    return fit(busy["spec"], busy["table"], busy["as_of"])


def test_self_test_a_twin_is_refused(busy: dict[str, Any], champion: ModelBundle) -> None:
    facts, outcome = judged(busy, fit(busy["spec"], busy["table"], busy["as_of"]), champion)
    assert outcome == "refused"
    assert facts.identical
    assert facts.fresh.challenger == facts.fresh.champion
    unnamed = replace(facts, identical=False)
    assert gate(unnamed, busy["spec"].gate).outcome == "refused", "a gain of nothing is a tie too"


def test_self_test_shuffled_labels_are_refused(busy: dict[str, Any], champion: ModelBundle) -> None:
    table = busy["table"]
    for seed in range(3):
        mixed = np.random.default_rng(seed).permutation(table["label"].to_numpy(zero_copy_only=False))
        shuffled = table.set_column(table.column_names.index("label"), "label", pa.array(mixed))
        _, outcome = judged(busy, fit(busy["spec"], shuffled, busy["as_of"]), champion)
        assert outcome == "refused"


@pytest.mark.parametrize("kept", [("amount",), ("region",), ("late_before",)])
def test_self_test_half_the_features_are_refused(
    busy: dict[str, Any], champion: ModelBundle, kept: tuple[str, ...]
) -> None:
    spec = busy["spec"].model_copy(update={"features": {name: SPEC.features[name] for name in kept}})
    half = fit(spec, busy["table"], busy["as_of"])
    assert half.features == kept
    assert judged(busy, half, champion)[1] == "refused"


def test_self_test_more_data_is_accepted(busy: dict[str, Any], champion: ModelBundle) -> None:
    """The same model, made from the first three days of the 50."""
    few = examples.model(
        training={**SPEC.training.model_dump(), "holdout_days": 1, "validation_days": 1, "min_rows": 50},
        features={name: feature.model_dump() for name, feature in SPEC.features.items()},
    )
    rows = between(busy["table"], 0, 4)
    small = fit(few, rows.filter(pc.less(pc.random(rows.num_rows, initializer=1), 0.3)), examples.dates(5)[-1])
    facts, outcome = judged(busy, champion, small)
    assert outcome == "accepted", facts.fresh.over_champion
    assert judged(busy, small, champion)[1] == "refused"


def test_a_model_without_rows_is_measured_as_unknown(table: pa.Table, bundle: ModelBundle) -> None:
    facts = evaluate(SPEC, table.slice(0, 1200), bundle, None, None, 10)
    assert (facts.fresh.rows, facts.fresh.first, facts.fresh.last) == (0, "", "")
    assert math.isnan(facts.fresh.challenger["auc"].value)
    assert math.isnan(facts.ms_per_1k)
    assert gate(facts, SPEC.gate).outcome == "cannot_decide"
