"""Fit, evaluate and decide on rows with a known pattern."""

import datetime as dt
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from include.evergreen.errors import ChecksumMismatch, NotEnoughData
from include.evergreen.features.build import features, labelled, labels
from include.evergreen.lake.memory import MemoryLake
from include.evergreen.promotion.evaluate import baseline, comparison_rows, evaluate
from include.evergreen.promotion.gate import gate
from include.evergreen.training.bundle import ModelBundle
from include.evergreen.training.fit import fit, label_of, split
from tests import examples

AS_OF = examples.FIRST + dt.timedelta(days=40)
SPEC = examples.model()


@pytest.fixture(scope="module")
def table() -> pa.Table:
    lake = MemoryLake()
    examples.fill(lake, 60)
    since, until = examples.FIRST, AS_OF - dt.timedelta(days=1)
    return labelled(features(lake, SPEC, since, until), labels(lake, SPEC, since, until, cut=AS_OF), SPEC)


@pytest.fixture(scope="module")
def bundle(table: pa.Table) -> ModelBundle:
    return fit(SPEC, table, AS_OF)


def test_the_split_is_ordered_by_time(table: pa.Table) -> None:
    parts = split(table, AS_OF, SPEC.training)
    bounds = [
        (min(p["as_of"].to_pylist()), max(p["as_of"].to_pylist()))
        for p in (parts.train, parts.validation, parts.holdout)
    ]
    assert bounds[0][1] < bounds[1][0] == parts.validation_from
    assert bounds[1][1] < bounds[2][0] == parts.holdout_from
    assert parts.train.num_rows + parts.validation.num_rows + parts.holdout.num_rows == table.num_rows


def test_too_few_rows_are_named(table: pa.Table) -> None:
    with pytest.raises(NotEnoughData, match="expected at least 100"):
        split(table.slice(0, 50), AS_OF, SPEC.training)


def test_the_same_rows_give_the_same_bytes(table: pa.Table, bundle: ModelBundle) -> None:
    assert fit(SPEC, table, AS_OF).sha256 == bundle.sha256
    assert fit(SPEC, table, AS_OF, {"max_depth": 1}).sha256 != bundle.sha256


def test_it_learns_the_pattern(bundle: ModelBundle) -> None:
    assert bundle.facts["metrics"]["holdout"]["auc"] > 0.65
    assert set(bundle.facts["importances"]) <= set(SPEC.features)
    assert bundle.categories["region"] == ("north", "south", "west")


def test_a_stored_bundle_predicts_the_same_and_a_damaged_one_is_refused(bundle: ModelBundle, table: pa.Table) -> None:
    files = bundle.files()
    assert np.array_equal(ModelBundle.from_files(files).predict(table), bundle.predict(table))
    damaged = bytearray(files["model.ubj"])
    damaged[len(damaged) // 2] ^= 1
    with pytest.raises(ChecksumMismatch, match=r"model\.ubj"):
        ModelBundle.from_files({**files, "model.ubj": bytes(damaged)})


def test_an_unseen_category_and_a_missing_number_are_scored(bundle: ModelBundle, table: pa.Table) -> None:
    odd = pa.table(
        {
            "region": ["mars", None],
            "amount": pa.array([None, 1e9], pa.float32()),
            "late_before": pa.array([0.1, None], pa.float32()),
        }
    )
    assert np.isfinite(bundle.predict(odd)).all()


def test_the_baseline_is_the_training_rate_by_the_feature(table: pa.Table) -> None:
    rate = dict(zip(table["region"].to_pylist(), baseline(SPEC, table, table), strict=True))
    label, region = label_of(table), np.array(table["region"].to_pylist())
    for name, value in rate.items():
        assert value == pytest.approx(label[region == name].mean())
    by_number = baseline(examples.model(gate={"baseline_by": "amount"}), table, table)
    assert len(np.unique(by_number)) > 10
    assert np.allclose(baseline(examples.model(gate={}), table, table), label.mean())


def test_only_rows_that_neither_model_saw_are_compared(bundle: ModelBundle, table: pa.Table) -> None:
    assert comparison_rows(table, bundle, None).num_rows == 5 * 60
    newer = replace(bundle, facts={**bundle.facts, "trained_until": (AS_OF - dt.timedelta(days=3)).isoformat()})
    assert comparison_rows(table, bundle, newer).num_rows == 2 * 60


def test_the_gate_on_real_models_twin_worse_better(bundle: ModelBundle, table: pa.Table) -> None:
    shuffled = table.set_column(
        table.column_names.index("label"),
        "label",
        pa.array(np.random.default_rng(7).permutation(table["label"].to_numpy(zero_copy_only=False))),
    )
    worse = fit(SPEC, shuffled, AS_OF)
    first = evaluate(SPEC, table, bundle, None, None, 10)
    assert gate(first, SPEC.gate).accepted
    twin = evaluate(SPEC, table, bundle, bundle, 1, 10)
    assert twin.challenger == twin.champion
    assert not gate(twin, SPEC.gate).accepted
    assert not gate(evaluate(SPEC, table, worse, bundle, 1, 10), SPEC.gate).accepted
    assert gate(evaluate(SPEC, table, bundle, worse, 1, 10), SPEC.gate).accepted


def test_tuning_searches_the_ranges_and_is_seeded(table: pa.Table) -> None:
    training = {**SPEC.training.model_dump(), "trials": 4, "search": {"max_depth": (1, 4), "eta": (0.05, 0.5)}}
    tuned = examples.model(training=training)
    first, second = fit(tuned, table, AS_OF), fit(tuned, table, AS_OF)
    assert first.sha256 == second.sha256
    assert 1 <= first.facts["params"]["max_depth"] <= 4
    assert 0.05 <= first.facts["params"]["eta"] <= 0.5
    assert first.facts["params"]["eta"] != SPEC.training.params["eta"]
