"""Scoring on a tiny real model: probabilities, reasons, the output contract and the steps of the DAG."""

from __future__ import annotations

import datetime as dt
import re
import threading
import time
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from include.evergreen.errors import DataError, NotEnoughData, NotFound, OutputInvalid, SchemaMismatch
from include.evergreen.lake.memory import MemoryLake
from include.evergreen.lake.objects import MemoryObjects
from include.evergreen.mart.store import Mart
from include.evergreen.pipeline import scoring as steps
from include.evergreen.promotion.memory import MemoryRegistry
from include.evergreen.promotion.ports import TrainingRecord
from include.evergreen.scoring.contract import check
from include.evergreen.scoring.score import reasons, score_batches
from include.evergreen.specs import ModelSpec
from include.evergreen.training.bundle import ModelBundle
from tests import examples

SPEC = examples.model(scoring={"reasons": 2, "batch_rows": 64})
THRESHOLD = 0.4
"""Of the bundle; the spec's is another one."""
DAY = examples.FIRST + dt.timedelta(days=9)
FEATURES = ("region", "amount", "late_before")


def train(seed: int = 1) -> ModelBundle:
    import xgboost

    rows = inputs(2000, seed)
    south = np.array([region == "south" for region in rows["region"].to_pylist()])
    amount = np.nan_to_num(rows["amount"].to_numpy(), nan=100.0)
    label = np.random.default_rng(seed).random(2000) < 1 / (1 + np.exp(1.5 - 2 * south - 0.02 * (amount - 100)))
    bundle = ModelBundle("late_order", DAY, b"", features=FEATURES, categories={"region": ("north", "south", "west")})
    data = xgboost.DMatrix(bundle.matrix(rows), label=label, enable_categorical=True)
    params = {"objective": "binary:logistic", "max_depth": 3, "eta": 0.3, "nthread": 1, "seed": seed}
    booster = bytes(xgboost.train(params, data, 15).save_raw("ubj"))
    return replace(bundle, booster=booster, facts={"threshold": THRESHOLD})


def inputs(count: int, seed: int = 1, **columns: Any) -> pa.Table:
    random = np.random.default_rng(seed)
    amount = random.gamma(2.0, 50.0, count)
    return pa.table(
        {
            "order_id": np.arange(count),
            "as_of": pa.array([DAY] * count, pa.date32()),
            "region": random.choice(["north", "south", "west"], count),
            "amount": pa.array(np.where(random.random(count) < 0.1, np.nan, amount), pa.float32()),
            "late_before": pa.array(random.random(count), pa.float32()),
            **columns,
        }
    )


@pytest.fixture(scope="module")
def bundle() -> ModelBundle:
    return train()


def scored(bundle: ModelBundle, rows: pa.Table, spec: ModelSpec = SPEC) -> pa.Table:
    return pa.Table.from_batches(score_batches(bundle, rows.to_batches(), spec, 7))


# --- scores ----------------------------------------------------------------------------------------------------------


def test_scores_are_the_models_own_whatever_the_batches(bundle: ModelBundle) -> None:
    rows = inputs(500)
    found = scored(bundle, rows)
    assert found.column_names == [
        *("order_id", "as_of", "probability", "decision", "reason_1", "reason_2", "model_version"),
    ]
    assert found["order_id"].to_pylist() == list(range(500))
    assert set(found["model_version"].to_pylist()) == {7}
    np.testing.assert_array_equal(found["probability"].to_numpy(), bundle.predict(rows).astype("float64"))
    assert found["decision"].to_pylist() == [value >= THRESHOLD for value in found["probability"].to_pylist()]
    whole = scored(bundle, rows, examples.model(scoring={"reasons": 2}))
    assert whole.equals(found.combine_chunks()) or whole.to_pylist() == found.to_pylist()
    check(500, found, SPEC, THRESHOLD)


def test_batches_are_bounded_and_lazy(bundle: ModelBundle) -> None:
    taken = 0

    def source() -> Any:
        nonlocal taken
        for _ in range(3):
            taken += 1
            yield inputs(150).to_batches()[0]

    stream = score_batches(bundle, source(), SPEC, 1)
    assert next(stream).num_rows == 64
    assert taken == 1
    assert [batch.num_rows for batch in stream] == [64, 22, 64, 64, 22, 64, 64, 22]


def test_the_threshold_is_the_bundles_own(bundle: ModelBundle) -> None:
    rows = inputs(500)
    probability = bundle.predict(rows).astype("float64")
    assert ((probability >= THRESHOLD) != (probability >= SPEC.scoring.threshold)).any(), "the two differ"
    for threshold in (0.2, THRESHOLD, 0.7):
        made = replace(bundle, facts={"threshold": threshold})
        found = scored(made, rows)
        assert found["decision"].to_pylist() == (probability >= threshold).tolist()
        check(500, found, SPEC, threshold)
        with pytest.raises(OutputInvalid, match=r"decision: expected probability >= 0\.3"):
            check(500, found, SPEC, 0.3)
    plain = scored(replace(bundle, facts={}), rows)
    assert plain["decision"].to_pylist() == (probability >= 0.5).tolist(), "a version of before had 0.5"


def test_no_rows_give_no_batches(bundle: ModelBundle) -> None:
    assert list(score_batches(bundle, inputs(0).to_batches(), SPEC, 1)) == []


# --- reasons ---------------------------------------------------------------------------------------------------------


def test_contributions_and_bias_add_up_to_the_log_odds(bundle: ModelBundle) -> None:
    rows = inputs(300)
    probability = bundle.predict(rows).astype("float64")
    logit = np.log(probability / (1 - probability))
    np.testing.assert_allclose(bundle.contributions(rows).sum(axis=1), logit, atol=1e-4)


def test_reasons_name_the_largest_contributions_with_the_value(bundle: ModelBundle) -> None:
    rows = inputs(300)
    contributions = bundle.contributions(rows)[:, :-1]
    found = scored(bundle, rows)
    for number, row in enumerate(rows.to_pylist()):
        strongest = sorted(range(3), key=lambda at: -abs(contributions[number, at]))
        for rank in (1, 2):
            at = strongest[rank - 1]
            text = found[f"reason_{rank}"][number].as_py()
            match = re.fullmatch(r"(\w+) = (.+) \(([+-]\d+\.\d\d)\)", text)
            assert match is not None, text
            assert match[1] == FEATURES[at]
            assert float(match[3]) == pytest.approx(contributions[number, at], abs=0.00501)
            value = row[FEATURES[at]]
            if isinstance(value, str):
                assert match[2] == value
            elif np.isnan(value):
                assert match[2] == "missing"
            else:
                assert float(match[2]) == pytest.approx(value, rel=1e-3)


def test_an_unseen_category_scores_as_missing_and_says_so(bundle: ModelBundle) -> None:
    rows = inputs(4, region=pa.array(["atlantis"] * 4), amount=pa.array([50.0] * 4, pa.float32()))
    blank = inputs(4, region=pa.array([None] * 4, pa.string()), amount=pa.array([50.0] * 4, pa.float32()))
    np.testing.assert_array_equal(bundle.predict(rows), bundle.predict(blank))
    shown = " ".join(text.to_pylist()[0] for text in reasons(bundle, rows, 3))
    assert "region = atlantis, unseen (" in shown
    assert "amount = 50 (" in shown
    assert "region = missing (" in " ".join(text.to_pylist()[0] for text in reasons(bundle, blank, 3))


@pytest.mark.parametrize("nothing", [float("nan"), None])
def test_missing_numbers_are_scored(bundle: ModelBundle, nothing: float | None) -> None:
    rows = inputs(3, amount=pa.array([nothing] * 3, pa.float32()), late_before=pa.array([nothing] * 3, pa.float32()))
    found = scored(bundle, rows)
    check(3, found, SPEC, THRESHOLD)
    assert "amount = missing (" in " ".join(text.to_pylist()[0] for text in reasons(bundle, rows, 3))


def test_more_reasons_than_features_are_null(bundle: ModelBundle) -> None:
    texts = reasons(bundle, inputs(5), 5)
    assert [text.null_count for text in texts] == [0, 0, 0, 5, 5]
    assert scored(bundle, inputs(5), examples.model(scoring={"reasons": 0})).column_names == [
        *("order_id", "as_of", "probability", "decision", "model_version"),
    ]


def test_a_feature_that_contributed_nothing_is_no_reason() -> None:
    import xgboost

    frame = inputs(200)
    empty = ModelBundle("late_order", DAY, b"", FEATURES, {"region": ("north", "south", "west")})
    data = xgboost.DMatrix(empty.matrix(frame), label=np.arange(200) % 2, enable_categorical=True)
    stump = xgboost.train({"objective": "binary:logistic", "gamma": 1e9}, data, 1)
    flat = ModelBundle("late_order", DAY, bytes(stump.save_raw("ubj")), FEATURES, empty.categories)
    assert [text.null_count for text in reasons(flat, frame, 2)] == [200, 200]


def test_bad_features_are_refused_by_name(bundle: ModelBundle) -> None:
    with pytest.raises(SchemaMismatch, match=r"expected \['amount'\], found only"):
        scored(bundle, inputs(3).drop_columns("amount"))
    with pytest.raises(DataError, match="amount: expected finite"):
        scored(bundle, inputs(3, amount=pa.array([1.0, np.inf, 2.0], pa.float32())))


# --- the contract ----------------------------------------------------------------------------------------------------


def changed(table: pa.Table, name: str, values: list[Any]) -> pa.Table:
    at = table.column_names.index(name)
    return table.set_column(at, name, pa.array(values, table.schema.field(name).type))


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("probability", [0.1, None, 0.2], "probability: expected no nulls, found 1"),
        ("probability", [0.1, 1.5, 0.2], "expected 0 to 1, found 1 outside, such as 1.5"),
        ("probability", [0.1, -0.1, 0.2], "expected 0 to 1, found 1 outside, such as -0.1"),
        ("probability", [0.1, float("nan"), 0.2], "expected 0 to 1, found 1 outside, such as nan"),
        ("decision", [True, True, True], "decision: expected probability >= 0.4, found 2 rows otherwise"),
        ("order_id", [1, 1, 2], "expected each entity once, found 1 repeated, such as order_id=1"),
        ("order_id", [1, None, 2], "order_id: expected no nulls, found 1"),
        ("model_version", [1, None, 1], "model_version: expected no nulls, found 1"),
    ],
)
def test_invalid_output_is_refused(name: str, values: list[Any], message: str) -> None:
    sound = pa.table(
        {
            "order_id": [1, 2, 3],
            "as_of": pa.array([DAY] * 3, pa.date32()),
            "probability": [0.1, 0.5, 0.2],
            "decision": [False, True, False],
            "model_version": pa.array([1] * 3, pa.int32()),
        }
    )
    check(3, sound, SPEC, THRESHOLD)
    with pytest.raises(OutputInvalid) as caught:
        check(3, changed(sound, name, values), SPEC, THRESHOLD)
    assert message in str(caught.value)


def test_lost_rows_and_columns_are_refused(bundle: ModelBundle) -> None:
    found = scored(bundle, inputs(10))
    with pytest.raises(OutputInvalid, match="expected 11 rows, one per entity, found 10"):
        check(11, found, SPEC, THRESHOLD)
    with pytest.raises(OutputInvalid, match=r"found none of \['decision'\]"):
        check(10, found.drop_columns("decision"), SPEC, THRESHOLD)


# --- the steps -------------------------------------------------------------------------------------------------------


@pytest.fixture
def world(tmp_path: Path, bundle: ModelBundle) -> Any:
    lake = MemoryLake()
    examples.fill(lake, 12)
    registry = MemoryRegistry()
    for number, made in enumerate((bundle, train(2)), 1):
        registry.register(made, TrainingRecord(f"t{number}", {}, {}, {}, {}))
    mart = Mart(f"sqlite:///{tmp_path / 'mart.db'}")
    mart.create()
    yield SimpleNamespace(lake=lake, objects=MemoryObjects("lake"), registry=registry, mart=mart)
    mart.engine.dispose()


def promote(world: Any, version: int, day: dt.date) -> None:
    world.mart.promote(model=SPEC.name, version=version, effective_from=day, metrics={}, run_id="t")


def test_a_version_in_force_is_found_or_its_absence_explained(world: Any) -> None:
    with pytest.raises(NotFound, match="found none yet"):
        steps.version_for(world, SPEC, DAY)
    promote(world, 1, DAY)
    with pytest.raises(NotFound, match=f"version 1, in force from {DAY}"):
        steps.version_for(world, SPEC, DAY - dt.timedelta(days=1))
    assert steps.version_for(world, SPEC, DAY) == 1


def test_a_scored_partition_keeps_its_version(world: Any) -> None:
    promote(world, 1, DAY)
    staged = steps.predict(world, SPEC, examples.source(), DAY, "run 1")
    steps.publish(world, SPEC, examples.source(), DAY, staged, "run 1")
    promote(world, 2, DAY)
    assert steps.version_for(world, SPEC, DAY) == 1
    assert steps.version_for(world, SPEC, DAY + dt.timedelta(days=1)) == 2


def test_a_partition_is_scored_and_a_rerun_changes_nothing(world: Any) -> None:
    promote(world, 1, DAY)

    def run(run_id: str) -> tuple[dict[str, Any], Any, Any]:
        staged = steps.predict(world, SPEC, examples.source(), DAY, run_id)
        result = steps.publish(world, SPEC, examples.source(), DAY, staged, run_id)
        with world.mart.engine.connect() as connection:
            rows = connection.exec_driver_sql("select * from late_order_current order by order_id").fetchall()
        return result, rows, world.lake.read("predictions.late_order")

    result, rows, lake_rows = run("manual__2024-01-10T00:00:00+00:00")
    again, same_rows, same_lake_rows = run("other")
    assert (result["version"], result["rows"], len(rows), lake_rows.num_rows) == (1, 60, 60, 60)
    assert {**again, "snapshot_id": 0} == {**result, "snapshot_id": 0}
    assert same_rows == rows
    assert same_lake_rows.equals(lake_rows)
    assert set(lake_rows["partition_date"].to_pylist()) == {DAY}
    keys = [info.key for info in world.objects.list("staging/score/late_order/")]
    assert keys == [
        f"staging/score/late_order/{DAY}/manual__2024-01-10T00_00_00_00_00.parquet",
        f"staging/score/late_order/{DAY}/other.parquet",
    ]


def test_a_partition_is_decided_by_its_versions_threshold(world: Any) -> None:
    promote(world, 1, DAY)
    staged = steps.predict(world, SPEC, examples.source(), DAY, "r")
    assert staged["threshold"] == THRESHOLD
    steps.publish(world, SPEC, examples.source(), DAY, staged, "r")
    found = world.lake.read("predictions.late_order")
    assert found["decision"].to_pylist() == [value >= THRESHOLD for value in found["probability"].to_pylist()]
    assert 0 < sum(found["decision"].to_pylist()) < 60
    with pytest.raises(OutputInvalid, match=r"expected probability >= 0\.9"):
        steps.publish(world, SPEC, examples.source(), DAY, {**staged, "threshold": 0.9}, "r")


def test_a_date_without_entities_is_not_scored(world: Any) -> None:
    promote(world, 1, DAY)
    with pytest.raises(NotEnoughData, match=r"expected entities in shop\.orders"):
        steps.predict(world, SPEC, examples.source(), DAY + dt.timedelta(days=90), "r")


def test_staged_rows_of_another_date_are_not_published(world: Any) -> None:
    promote(world, 1, DAY)
    staged = steps.predict(world, SPEC, examples.source(), DAY, "r")
    with pytest.raises(OutputInvalid, match="alone, found"):
        steps.publish(world, SPEC, examples.source(), DAY + dt.timedelta(days=1), staged, "r")
    short = pq.read_table(pa.BufferReader(world.objects.get(staged["key"]))).slice(1)
    sink = pa.BufferOutputStream()
    pq.write_table(short, sink)
    world.objects.put(staged["key"], sink.getvalue().to_pybytes())
    with pytest.raises(OutputInvalid, match="expected 60 rows, one per entity, found 59"):
        steps.publish(world, SPEC, examples.source(), DAY, staged, "r")
    assert world.mart.scorings(SPEC.name) == []
    assert world.lake.counts("predictions.late_order") == {}


def test_a_body_that_goes_on_late_takes_nothing_back(world: Any) -> None:
    """Its task was cut off from Airflow; the day was ingested and scored again since, with fewer orders."""
    promote(world, 1, DAY)
    orphan = steps.predict(world, SPEC, examples.source(), DAY, "r")
    table = f"trusted.{SPEC.entity.table}"
    world.lake.write(table, world.lake.read(table, DAY, DAY).slice(5), [DAY])
    newer = steps.predict(world, SPEC, examples.source(), DAY, "newer")
    steps.publish(world, SPEC, examples.source(), DAY, newer, "newer")
    published = world.lake.read("predictions.late_order")
    assert published.num_rows == 55
    steps.publish(world, SPEC, examples.source(), DAY, orphan, "r")
    assert world.lake.read("predictions.late_order").equals(published)
    assert [row["rows"] for row in world.mart.scorings(SPEC.name)] == [55]


class SlowLake(MemoryLake):
    """Pauses after its first scoring is written, so that another publisher can come between lake and mart."""

    def __init__(self) -> None:
        super().__init__()
        self.written = threading.Event()

    def write(self, table: str, rows: pa.Table, dates: Collection[dt.date]) -> int:
        snapshot = super().write(table, rows, dates)
        if table.startswith("predictions.") and not self.written.is_set():
            self.written.set()
            time.sleep(0.5)
        return snapshot


def test_two_scorings_at_once_end_in_one_whole_result(world: Any) -> None:
    world.lake = SlowLake()
    examples.fill(world.lake, 12)
    staged = [steps.predict(world, SPEC, examples.source(), DAY, f"r{v}", version=v) for v in (1, 2)]
    failures: list[Exception] = []

    def work(number: int) -> None:
        try:
            if number:
                world.lake.written.wait(10)
            steps.publish(world, SPEC, examples.source(), DAY, staged[number], f"r{number}", replace=True)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    with world.mart.engine.connect() as connection:
        rows = connection.exec_driver_sql(
            "select order_id, probability, model_version from late_order_current order by order_id"
        ).fetchall()
    lake_rows = world.lake.read("predictions.late_order").sort_by("order_id")
    found = lake_rows.select(["order_id", "probability", "model_version"]).to_pylist()
    assert [tuple(row.values()) for row in found] == [tuple(row) for row in rows]
    assert len({row[2] for row in rows}) == 1
    assert len(rows) == 60
