"""Fit on rows with a known pattern."""

import datetime as dt
import json

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from include.evergreen.drift.profile import Profile
from include.evergreen.errors import ChecksumMismatch, DataError, NotEnoughData
from include.evergreen.features.build import features, labelled, labels
from include.evergreen.lake.memory import MemoryLake
from include.evergreen.promotion.bootstrap import Draws
from include.evergreen.promotion.evaluate import baseline
from include.evergreen.specs import FrozenHoldout
from include.evergreen.training import fit as training
from include.evergreen.training.bundle import ModelBundle
from include.evergreen.training.fit import fit, label_of, on_frozen_days, split
from include.evergreen.training.metrics import best_threshold, score
from tests import examples

AS_OF = examples.FIRST + dt.timedelta(days=40)
SPEC = examples.model()
FROZEN = SPEC.gate.frozen


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
    parts = split(table, AS_OF, SPEC.training, FROZEN)
    bounds = [
        (min(p["as_of"].to_pylist()), max(p["as_of"].to_pylist()))
        for p in (parts.train, parts.validation, parts.holdout)
    ]
    assert bounds[0][1] < parts.validation_from <= bounds[1][0]
    assert bounds[1][1] < parts.holdout_from == bounds[2][0]
    assert AS_OF - parts.holdout_from == parts.holdout_from - parts.validation_from == dt.timedelta(days=5)


@pytest.mark.parametrize("every", [3, 5, 7])
def test_frozen_days_are_in_no_part_and_the_others_are_in_one(table: pa.Table, every: int) -> None:
    parts = split(table, AS_OF, SPEC.training, FrozenHoldout(every_days=every))
    fitted = {*parts.train["as_of"].to_pylist(), *parts.validation["as_of"].to_pylist()}
    fresh = examples.dates(40)[-5:]
    assert fitted == {day for day in examples.dates(35) if day.toordinal() % every}
    assert sorted(set(parts.holdout["as_of"].to_pylist())) == fresh, "the newest days are fresh, frozen ones too"
    count = parts.train.num_rows + parts.validation.num_rows + parts.holdout.num_rows
    assert count == 60 * (len(fitted) + 5)


def test_rows_of_frozen_days_leave_no_trace_in_the_model(table: pa.Table, bundle: ModelBundle) -> None:
    """Their labels turned round, or the rows gone: the same bytes."""
    kept = on_frozen_days(table, FROZEN, AS_OF - dt.timedelta(days=5))
    assert 0 < pc.sum(kept).as_py() < table.num_rows
    turned = pc.if_else(kept, pc.invert(table["label"]), table["label"])
    lying = table.set_column(table.column_names.index("label"), "label", turned)
    found = fit(SPEC, lying, AS_OF)
    assert (found.sha256, found.facts, found.reference) == (bundle.sha256, bundle.facts, bundle.reference)
    assert fit(SPEC, table.filter(pc.invert(kept)), AS_OF).files() == bundle.files()
    everything = fit(examples.model(gate={"frozen": {"every_days": 1000}}), table, AS_OF)
    assert everything.sha256 != bundle.sha256


def test_too_few_rows_are_named(table: pa.Table) -> None:
    with pytest.raises(NotEnoughData, match="expected at least 100"):
        split(table.slice(0, 50), AS_OF, SPEC.training, FROZEN)


def test_the_same_rows_give_the_same_bytes(table: pa.Table, bundle: ModelBundle) -> None:
    assert fit(SPEC, table, AS_OF).sha256 == bundle.sha256
    assert fit(SPEC, table, AS_OF, {"max_depth": 1}).sha256 != bundle.sha256


def test_many_rows_reach_xgboost_in_batches(
    table: pa.Table, bundle: ModelBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same bytes each time, as good a model, and the same one as in one piece where the bins are the same."""
    monkeypatch.setattr(training, "IN_ONE_PIECE", 100)
    monkeypatch.setattr(training, "BATCH_ROWS", 128)
    first, second = fit(SPEC, table, AS_OF), fit(SPEC, table, AS_OF)
    assert first.files() == second.files()
    assert first.facts["rows"] == bundle.facts["rows"]
    found, expected = first.facts["metrics"]["reference"]["auc"], bundle.facts["metrics"]["reference"]["auc"]
    assert found == pytest.approx(expected, abs=0.02)
    few = table.set_column(table.column_names.index("amount"), "amount", pc.round(table["amount"], -2))
    batched = fit(SPEC, few, AS_OF)
    monkeypatch.setattr(training, "IN_ONE_PIECE", 10**9)
    assert fit(SPEC, few, AS_OF).sha256 == batched.sha256


def test_rows_in_any_order_are_split_the_same(table: pa.Table) -> None:
    mixed = table.take(pa.array(np.random.default_rng(3).permutation(table.num_rows)))
    ordered, found = split(table, AS_OF, SPEC.training, FROZEN), split(mixed, AS_OF, SPEC.training, FROZEN)
    key = [("as_of", "ascending"), ("order_id", "ascending")]
    for part in ("train", "validation", "holdout"):
        assert getattr(found, part).sort_by(key).equals(getattr(ordered, part).combine_chunks())


def test_it_predicts_what_xgboost_itself_does(bundle: ModelBundle, table: pa.Table) -> None:
    import xgboost

    odd = table.set_column(
        table.column_names.index("region"), "region", pc.if_else(pc.less(table["amount"], 50), "mars", table["region"])
    )
    blank = pc.if_else(pc.greater(odd["amount"], 150), pa.scalar(None, odd["amount"].type), odd["amount"])
    odd = odd.set_column(odd.column_names.index("amount"), "amount", blank)
    booster = xgboost.Booster(model_file=bytearray(bundle.booster))
    expected = booster.predict(xgboost.DMatrix(bundle.matrix(odd), enable_categorical=True))
    np.testing.assert_array_equal(bundle.predict(odd), expected)


def test_the_reference_holds_what_the_model_predicts(bundle: ModelBundle, table: pa.Table) -> None:
    """The fit predicts from XGBoost's bins; from the values it is the same to the last bit."""
    parts = split(table, AS_OF, SPEC.training, SPEC.gate.frozen)
    again = training.described(SPEC, bundle, bundle.facts["params"], parts, bundle.facts["compute"])
    assert again.files() == bundle.files()


def test_an_infinite_feature_is_refused(bundle: ModelBundle, table: pa.Table) -> None:
    endless = table.set_column(
        table.column_names.index("amount"), "amount", pa.array(np.full(table.num_rows, np.inf, "float32"))
    )
    with pytest.raises(DataError, match="found infinity"):
        bundle.predict(endless)


def test_it_learns_the_pattern(bundle: ModelBundle) -> None:
    assert bundle.facts["metrics"]["holdout"]["auc"] > 0.65
    assert set(bundle.facts["importances"]) <= set(SPEC.features)
    assert bundle.categories["region"] == ("north", "south", "west")


def test_the_facts_say_how_it_was_made(bundle: ModelBundle, table: pa.Table) -> None:
    facts = json.loads(json.dumps(bundle.facts, allow_nan=False))
    first = next(day for day in examples.dates(9) if day.toordinal() % 5)
    assert facts["train_from"] == first.isoformat()
    assert facts["trained_until"] == examples.dates(35)[-1].isoformat()
    assert facts["frozen_every"] == 5
    assert facts["rows"] == {"train": 24 * 60, "validation": 4 * 60, "holdout": 5 * 60}
    assert facts["threshold"] == bundle.threshold == SPEC.scoring.threshold
    assert Profile.from_dict(facts["profile"]).to_dict() == facts["profile"]


def test_the_reference_is_what_was_not_fitted_on_with_its_bounds(bundle: ModelBundle, table: pa.Table) -> None:
    parts = split(table, AS_OF, SPEC.training, FROZEN)
    later = pa.concat_tables([parts.validation, parts.holdout])
    found = bundle.facts["metrics"]["reference"]
    expected = score(label_of(later), bundle.predict(later))
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert found["auc_low"] < found["auc"] < found["auc_high"]
    draws = Draws(later["as_of"].to_numpy(), SPEC.gate.resamples, SPEC.training.seed)
    bounds = draws.bound(draws.auc(label_of(later), bundle.predict(later)), SPEC.gate.confidence)
    assert (found["auc_low"], found["auc_high"]) == pytest.approx((bounds.low, bounds.high))
    assert found["rate"] == pytest.approx(label_of(pa.concat_tables([parts.train, later])).mean())


def test_costs_pick_the_threshold_on_the_validation_rows(table: pa.Table, bundle: ModelBundle) -> None:
    parts = split(table, AS_OF, SPEC.training, FROZEN)
    found = {}
    for false_alarm in (0.5, 2.0, 8.0):
        made = fit(examples.model(costs={"hit": 1, "miss": 5, "false_alarm": false_alarm}), table, AS_OF)
        label, probability = label_of(parts.validation), made.predict(parts.validation)
        assert made.sha256 == bundle.sha256
        assert made.threshold == best_threshold(label, probability, (1, 5, false_alarm))
        assert ModelBundle.from_files(made.files()).threshold == made.threshold
        found[false_alarm] = made.threshold
    assert found[0.5] < found[2.0] < found[8.0]


def saved_by_hand(label: np.ndarray, probability: np.ndarray, threshold: float, costs: tuple[float, ...]) -> float:
    """Cost of never acting, less the cost of acting from the threshold on."""
    hit, miss, false_alarm = costs
    paid = never = 0.0
    for happened, chance in zip(label.tolist(), probability.tolist(), strict=True):
        never += miss * happened
        paid += (hit if happened else false_alarm) if chance >= threshold else miss * happened
    return never - paid


@pytest.mark.parametrize("seed", range(12))
def test_the_best_threshold_is_that_of_brute_force(seed: int) -> None:
    random = np.random.default_rng(seed)
    probability = np.round(random.random(60), 1 + seed % 2).astype("float32")
    label = (random.random(60) < probability).astype("int8")
    costs = (random.uniform(0, 1), random.uniform(2, 6), random.uniform(0, 6))
    found = best_threshold(label, probability, costs)
    tried = {1.0, *probability[probability > 0].astype("float64").tolist()}
    best = max(saved_by_hand(label, probability, threshold, costs) for threshold in tried)
    assert 0 < found <= 1
    assert saved_by_hand(label, probability, found, costs) == pytest.approx(best)
    assert found == max(t for t in tried if saved_by_hand(label, probability, t, costs) >= best - 1e-9)


def test_a_threshold_that_cannot_save_is_one() -> None:
    assert best_threshold(np.array([0, 0, 1]), np.array([0.9, 0.8, 0.1]), (0.0, 1.0, 5.0)) == 1.0
    assert best_threshold(np.zeros(0), np.zeros(0), (0.0, 1.0, 5.0)) == 1.0


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


def test_tuning_searches_the_ranges_and_is_seeded(table: pa.Table) -> None:
    training = {**SPEC.training.model_dump(), "trials": 4, "search": {"max_depth": (1, 4), "eta": (0.05, 0.5)}}
    tuned = examples.model(training=training)
    first, second = fit(tuned, table, AS_OF), fit(tuned, table, AS_OF)
    assert first.sha256 == second.sha256
    assert 1 <= first.facts["params"]["max_depth"] <= 4
    assert 0.05 <= first.facts["params"]["eta"] <= 0.5
    assert first.facts["params"]["eta"] != SPEC.training.params["eta"]
