"""What an adopter writes: valid files load, every mistake is named by file, field and value."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from include.evergreen import specs
from include.evergreen.errors import SpecError
from tests import examples

SOURCE: dict[str, Any] = {
    "name": "shop",
    "description": "A shop",
    "owner": "tests",
    "start_date": "2024-01-01",
    "tables": {
        "orders": {
            "description": "Orders of a day",
            "path": "shop/orders/{date}.csv",
            "date_column": "day",
            "key": ["order_id"],
            "columns": {"day": {"type": "date"}, "order_id": {"type": "integer"}, "amount": {"type": "number"}},
            "derive": {"doubled": "amount * 2"},
            "expectations": [{"type": "expect_column_values_to_be_between", "args": {"column": "amount"}}],
            "freshness": {"column": "day", "hours": 1},
        },
        "outcomes": {
            "description": "What became of them",
            "path": "shop/outcomes/{date}.csv",
            "date_column": "day",
            "lag_days": 1,
            "key": ["order_id"],
            "columns": {"day": {"type": "date"}, "order_id": {"type": "integer"}, "took": {"type": "integer"}},
        },
    },
}
MODEL: dict[str, Any] = {
    "name": "late_order",
    "description": "Will an order be late?",
    "owner": "tests",
    "source": "shop",
    "start_date": "2024-01-01",
    "entity": {"table": "orders", "key": ["order_id"]},
    "label": {"table": "outcomes", "expression": "took > 3"},
    "features": {"region": {"type": "category"}, "amount": {"drift": {"method": "wasserstein", "threshold": 0.2}}},
    "training": {"params": {"max_depth": 3}, "search": {"eta": [0.01, 0.3]}},
    "gate": {"floors": {"auc": 0.6}, "baseline_by": "region"},
    "retrain": {"breaches": 2, "windows": 3},
}


class Project:
    """A project's folder with the specs above, to be spoiled."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.source = root / "include/sources/shop/source.yaml"
        self.model = root / "include/models/late_order/model.yaml"
        self.sql = self.model.with_name("features.sql")
        self.write(self.source, SOURCE)
        self.write(self.model, MODEL)
        self.sql.write_text(examples.SQL, encoding="utf-8")

    def write(self, path: Path, spec: dict[str, Any]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(spec), encoding="utf-8")

    def change(self, path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
        spec = yaml.safe_load(path.read_text(encoding="utf-8"))
        change(spec)
        self.write(path, spec)

    def error(self) -> str:
        with pytest.raises(SpecError) as found:
            specs.models(self.root)
        return str(found.value)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def put(where: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """A change that sets a dotted field."""
    *path, last = where.split(".")

    def change(spec: dict[str, Any]) -> None:
        for part in path:
            spec = spec.setdefault(part, {})
        spec[last] = value

    return change


def drop(where: str) -> Callable[[dict[str, Any]], None]:
    *path, last = where.split(".")

    def change(spec: dict[str, Any]) -> None:
        for part in path:
            spec = spec[part]
        del spec[last]

    return change


def test_the_projects_own_specs_load() -> None:
    assert "nyc_flights" in specs.sources()
    assert "flight_delay" in specs.models()


def test_a_valid_project_loads(project: Project) -> None:
    model = specs.models(project.root)["late_order"]
    assert model.sql == examples.SQL
    assert model.categories == ("region",)
    assert specs.sources(project.root)["shop"].tables["outcomes"].name == "outcomes"


def test_a_gate_asks_by_default_and_no_person_does(project: Project) -> None:
    model = specs.models(project.root)["late_order"]
    assert (model.gate.metric, model.gate.confidence, model.costs) == ("auc", 0.95, None)
    assert model.gate.frozen == specs.FrozenHoldout(every_days=13, renew_days=90, min_days=5)
    assert (model.approval, model.approvers) == ("auto", ())


def test_a_model_is_trained_here_unless_it_says_dask(project: Project) -> None:
    model = specs.models(project.root)["late_order"]
    assert (model.compute, model.training.memory_mb) == ("local", 2048)
    project.change(project.model, put("compute", "dask"))
    assert specs.models(project.root)["late_order"].compute == "dask"
    project.change(project.model, put("compute", "spark"))
    assert "compute: Input should be 'local' or 'dask'; found 'spark'" in project.error()
    project.change(project.model, put("compute", "local"))
    project.change(project.model, put("training.memory_mb", 0))
    assert "training.memory_mb: Input should be greater than or equal to 1; found 0" in project.error()


def test_costs_slices_and_a_person_can_be_asked_for(project: Project) -> None:
    project.change(project.model, put("costs", {"miss": 5, "false_alarm": 2, "unit": "EUR"}))
    project.change(project.model, put("gate", {"metric": "value", "slices": ["region"], "frozen": {"every_days": 7}}))
    project.change(project.model, put("approval", "human"))
    project.change(project.model, put("approvers", ["ada"]))
    model = specs.models(project.root)["late_order"]
    assert model.costs == specs.Costs(hit=0, miss=5, false_alarm=2, unit="EUR")
    assert (model.gate.metric, model.gate.slices, model.gate.frozen.every_days) == ("value", ("region",), 7)
    assert (model.approval, model.approvers, model.approval_hours) == ("human", ("ada",), 72)


def test_every_nth_date_is_frozen_whatever_the_first() -> None:
    rule = specs.FrozenHoldout(every_days=4)
    held = [day for day in examples.dates(100) if rule.holds(day)]
    assert len(held) == 25
    assert {(later - day).days for day, later in pairwise(held)} == {4}


SOURCE_MISTAKES = {
    "an unknown field": (put("colour", "red"), ["colour", "Extra inputs", "'red'"]),
    "an unknown field of a table": (put("tables.orders.pth", "x"), ["tables.orders.pth", "'x'"]),
    "a wrong type": (put("tables.orders.lag_days", "soon"), ["tables.orders.lag_days", "integer", "'soon'"]),
    "a missing field": (drop("owner"), ["owner", "required"]),
    "no such column type": (put("tables.orders.columns.amount.type", "money"), ["columns.amount.type", "'money'"]),
    "a bad name": (put("tables.Orders", SOURCE["tables"]["orders"]), ["tables.Orders", "'Orders'"]),
    "a path above the bucket": (put("tables.orders.path", "../{date}.csv"), ["tables.orders", "path", "../{date}.csv"]),
    "a path from the root": (put("tables.orders.path", "/shop/{date}.csv"), ["path", "/shop/{date}.csv"]),
    "a path without date": (put("tables.orders.path", "shop/orders.csv"), ["path", "{date}", "shop/orders.csv"]),
    "a reserved column": (
        put("tables.orders.columns.available_at", {"type": "date"}),
        ["tables.orders", "columns", "available_at"],
    ),
    "a reserved derived column": (put("tables.orders.derive.source_row", "1"), ["tables.orders", "source_row"]),
    "an undeclared key": (put("tables.orders.key", ["id"]), ["tables.orders", "key", "['id']"]),
    "an undeclared date column": (put("tables.orders.date_column", "date"), ["date_column", "['date']"]),
    "a daily table without date": (drop("tables.orders.date_column"), ["tables.orders", "date_column"]),
    "a share above one": (put("tables.orders.max_bad_share", 5), ["tables.orders.max_bad_share", "5"]),
    "a table with a second name": (put("tables.orders.name", "sales"), ["tables", "orders", "sales"]),
    "a wait of nothing": (put("wait.poke_seconds", 0), ["wait.poke_seconds", "greater than 0", "0"]),
    "another folder's name": (put("name", "store"), ["name", "'shop'", "'store'"]),
    "not an expectation": (
        put("tables.orders.expectations", [{"type": "be_nice"}]),
        ["expectations.0.type", "be_nice"],
    ),
}
MODEL_MISTAKES = {
    "an unknown field": (put("gate.flors", {}), ["gate.flors", "{}"]),
    "a wrong type": (put("training.window_days", "long"), ["training.window_days", "'long'"]),
    "N above M": (put("retrain.breaches", 4), ["retrain", "breaches", "3", "4"]),
    "trials without search": (
        put("training", {"trials": 5, "search": {}}),
        ["training.search", "trials > 0"],
    ),
    "a feature named as the key": (put("features.order_id", {}), ["features", "order_id"]),
    "a feature named as the engine's": (put("features.probability", {}), ["features", "probability"]),
    "a baseline that is no feature": (put("gate.baseline_by", "colour"), ["gate.baseline_by", "'colour'"]),
    "a distance of numbers on a category": (
        put("features.region.drift", {"method": "wasserstein"}),
        ["features.region", "drift.method", "wasserstein", "jensenshannon"],
    ),
    "a slice by a number": (put("gate.slices", ["region", "amount"]), ["gate.slices", "category", "['amount']"]),
    "a slice by nothing known": (put("gate.slices", ["colour"]), ["gate.slices", "category", "['colour']"]),
    "a value without costs": (put("gate.metric", "value"), ["gate.metric", "costs", "none"]),
    "no such metric": (put("gate.metric", "accuracy"), ["gate.metric", "auc_by_day", "'accuracy'"]),
    "costs that never act": (
        put("costs", {"hit": 5, "miss": 5, "false_alarm": 1}),
        ["costs", "hit", "less than miss = 5", "found"],
    ),
    "costs without a false alarm": (put("costs", {"miss": 5}), ["costs.false_alarm", "required"]),
    "a miss that costs nothing": (put("costs", {"miss": 0, "false_alarm": 1}), ["costs.miss", "greater than 0"]),
    "a false alarm that pays": (put("costs", {"miss": 5, "false_alarm": -1}), ["costs.false_alarm", "-1"]),
    "every day frozen": (put("gate.frozen", {"every_days": 1}), ["gate.frozen.every_days", "equal to 2", "1"]),
    "a frozen holdout of a day": (put("gate.frozen", {"min_days": 1}), ["gate.frozen.min_days", "equal to 2", "1"]),
    "a frozen holdout of no life": (put("gate.frozen", {"renew_days": 0}), ["gate.frozen.renew_days", "0"]),
    "a fresh holdout of a day": (put("gate.min_holdout_days", 1), ["gate.min_holdout_days", "equal to 2", "1"]),
    "a toss of a coin": (put("gate.confidence", 0.5), ["gate.confidence", "greater than 0.5", "0.5"]),
    "certainty": (put("gate.confidence", 1), ["gate.confidence", "less than 1", "1"]),
    "too few draws": (put("gate.resamples", 100), ["gate.resamples", "200", "100"]),
    "a slice that must gain": (put("gate.max_slice_drop", -0.1), ["gate.max_slice_drop", "-0.1"]),
    "frozen days that must gain": (put("gate.max_frozen_drop", -0.1), ["gate.max_frozen_drop", "-0.1"]),
    "a calibration error above one": (put("gate.max_calibration_error", 2), ["gate.max_calibration_error", "2"]),
    "no such approval": (put("approval", "maybe"), ["approval", "'auto' or 'human'", "'maybe'"]),
    "no time to answer": (put("approval_hours", 0), ["approval_hours", "greater than 0", "0"]),
    "no features": (put("features", {}), ["features", "{}"]),
    "another folder's name": (put("name", "early_order"), ["name", "'late_order'", "'early_order'"]),
    "an unknown source": (put("source", "store"), ["source", "shop", "'store'"]),
    "an unknown entity table": (put("entity.table", "sales"), ["entity.table", "orders", "'sales'"]),
    "an unknown label table": (put("label.table", "sales"), ["label.table", "outcomes", "'sales'"]),
    "an unknown reference table": (put("reference_tables", ["sales"]), ["reference_tables", "'sales'"]),
    "an unknown entity key": (put("entity.key", ["id"]), ["entity.key", "orders", "['id']"]),
    "a key the labels lack": (
        lambda spec: spec.update(entity={"table": "orders", "key": ["amount"]}, features={"region": {}}),
        ["entity.key", "outcomes", "['amount']"],
    ),
    "a parameter that no record can hold": (put("training.params.seed", b"\x80"), ["training.params.seed", "x80"]),
}


@pytest.mark.parametrize(("change", "named"), SOURCE_MISTAKES.values(), ids=SOURCE_MISTAKES)
def test_a_mistake_in_a_source_is_named(project: Project, change: Any, named: list[str]) -> None:
    project.change(project.source, change)
    error = project.error()
    assert [part for part in [str(project.source), *named] if part not in error] == [], error


@pytest.mark.parametrize(("change", "named"), MODEL_MISTAKES.values(), ids=MODEL_MISTAKES)
def test_a_mistake_in_a_model_is_named(project: Project, change: Any, named: list[str]) -> None:
    project.change(project.model, change)
    error = project.error()
    assert [part for part in [str(project.model), *named] if part not in error] == [], error


def test_every_mistake_is_named_at_once(project: Project) -> None:
    project.change(project.source, lambda spec: spec.update(colour="red", schedule=7, owner=None))
    assert [part for part in ("3 field(s)", "colour", "schedule", "owner") if part not in project.error()] == []


def test_a_long_value_is_shortened(project: Project) -> None:
    project.change(project.source, put("owner", ["x" * 5000]))
    assert len(project.error()) < 600


def test_a_model_needs_its_query(project: Project) -> None:
    project.sql.unlink()
    assert str(project.sql) in project.error()
    project.sql.write_bytes("select 'é'".encode("latin-1"))
    assert str(project.sql) in project.error()


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (b"a: [1", "expected YAML"),
        (b"- 1\n- 2\n", "expected a mapping, found list"),
        (b"", "expected a mapping, found NoneType"),
        (b"owner: caf\xe9", "expected UTF-8"),
        (b"start_date: 2024-13-01", "month must be in 1..12"),
        (b"owner: \x00", "expected YAML"),
        (b"!!python/object/apply:os.getcwd []", "expected YAML"),
    ],
)
def test_what_is_no_spec_at_all_is_named(project: Project, text: bytes, named: str) -> None:
    project.source.write_bytes(text)
    error = project.error()
    assert str(project.source) in error
    assert named in error


def test_one_table_has_one_source(project: Project) -> None:
    other = project.source.parents[1] / "zoo/source.yaml"
    project.write(other, {**SOURCE, "name": "zoo"})
    error = project.error()
    assert [part for part in (str(other), "tables.orders", "'shop'") if part not in error] == []
    shutil.rmtree(other.parent)
    assert set(specs.models(project.root)) == {"late_order"}


def second_model(project: Project) -> Path:
    """Another model on the same source."""
    path = project.model.parents[1] / "other_order/model.yaml"
    project.write(path, {**MODEL, "name": "other_order"})
    path.with_name("features.sql").write_text(examples.SQL, encoding="utf-8")
    return path


def test_a_wrong_model_takes_no_other_down(project: Project) -> None:
    path = second_model(project)
    project.change(path, put("gate.confidence", 2))
    found = specs.survey(project.root)
    assert (list(found.models), list(found.sources)) == (["late_order"], ["shop"])
    (error,) = map(str, found.wrong)
    assert [part for part in (str(path), "gate.confidence", "found 2") if part not in error] == []
    assert specs.model("late_order", project.root).name == "late_order"
    with pytest.raises(SpecError, match=r"other_order/model.yaml(?s:.*)gate.confidence"):
        specs.model("other_order", project.root)
    with pytest.raises(SpecError, match=r"gate\.confidence"):
        specs.models(project.root)


def test_a_wrong_source_takes_its_models_with_it(project: Project) -> None:
    zoo = project.source.parents[1] / "zoo/source.yaml"
    project.write(zoo, {**SOURCE, "name": "zoo", "tables": {"animals": SOURCE["tables"]["orders"]}})
    project.change(project.source, put("tables.orders.max_bad_share", 7))
    found = specs.survey(project.root)
    assert (list(found.sources), list(found.models)) == (["zoo"], [])
    assert [str(error).split(": ")[:2] for error in found.wrong] == [
        [str(project.source), "1 field(s) are wrong\n  tables.orders.max_bad_share"],
        [str(project.model), "source"],
    ]
    with pytest.raises(SpecError, match="max_bad_share"):
        specs.model("late_order", project.root)


def test_sources_that_share_a_table_are_both_wrong(project: Project) -> None:
    """Which of them shall own the rows is not for a sort order to say."""
    project.write(project.source.parents[1] / "zoo/source.yaml", {**SOURCE, "name": "zoo"})
    found, wrong = specs.survey_sources(project.root)
    assert found == {}
    assert {error.args[0].split("tables.")[0] for error in wrong} == {
        f"{project.root}/include/sources/{name}/source.yaml: " for name in ("shop", "zoo")
    }


def test_one_model_is_read_without_the_others(project: Project) -> None:
    second_model(project).write_text(": not YAML :", encoding="utf-8")
    assert specs.names("model", project.root) == ["late_order", "other_order"]
    assert specs.model("late_order", project.root) == specs.survey(project.root).models["late_order"]
    assert specs.source("shop", project.root).name == "shop"


@pytest.mark.parametrize("name", ["nobody", "../late_order", "", "late_order/../late_order", "Late"])
def test_a_name_that_is_no_spec_is_refused(project: Project, name: str) -> None:
    with pytest.raises(SpecError, match=r"expected one of the models \['late_order'\], found "):
        specs.model(name, project.root)


def test_a_spec_is_made_once_and_again_when_a_file_of_it_changes(project: Project) -> None:
    first = specs.model("late_order", project.root)
    assert specs.models(project.root)["late_order"] is first
    project.sql.write_text(examples.SQL + "-- changed\n", encoding="utf-8")
    assert specs.model("late_order", project.root).sql.endswith("-- changed\n")
    project.sql.write_text(examples.SQL, encoding="utf-8")
    assert specs.model("late_order", project.root) == first
    project.change(project.model, put("owner", "another"))
    assert specs.model("late_order", project.root).owner == "another"
    project.model.with_name("thresholds.yaml").write_text("calibration: 1\n", encoding="utf-8")
    with pytest.raises(SpecError, match="expected calibration and thresholds"):
        specs.model("late_order", project.root)
    assert specs.model("late_order", project.root, calibrated=False).owner == "another"


def test_a_spec_cannot_be_changed(project: Project) -> None:
    model = specs.models(project.root)["late_order"]
    with pytest.raises(ValidationError, match="frozen"):
        model.owner = "somebody"  # type: ignore[misc]


def test_the_hash_follows_the_spec_and_its_query(project: Project) -> None:
    def current() -> str:
        return specs.models(project.root)["late_order"].hash

    first = current()
    assert current() == first
    project.change(project.model, put("training.seed", 1))
    second = current()
    project.sql.write_text(examples.SQL + "-- a remark", encoding="utf-8")
    assert len({first, second, current()}) == 3


# --- calibrated thresholds -------------------------------------------------------------------------------------------

CALIBRATED: dict[str, Any] = {
    "calibration": {
        "as_of": "2024-06-01",
        "budget": 1.0,
        "false_alarms": 0.9,
        "alarm_days": 0.1,
        "by_kind": {"label_drift": 0.9},
        "multiplier": 1.2,
        "months": 40,
        "seed": 0,
    },
    "thresholds": {"region": 0.031, "amount": 0.42, "probability": 0.57, "label": 0.115},
}


@pytest.fixture
def calibrated(project: Project) -> Path:
    """The project's thresholds.yaml; no threshold is left in its model.yaml."""
    project.change(project.model, put("features.amount.drift", {"method": "wasserstein"}))
    project.change(project.model, put("monitoring.prediction", {"method": "wasserstein"}))
    path = project.model.with_name(specs.THRESHOLDS)
    project.write(path, CALIBRATED)
    return path


def test_thresholds_beside_a_model_are_its_own(project: Project, calibrated: Path) -> None:
    model = specs.models(project.root)["late_order"]
    region, amount = model.features["region"].drift, model.features["amount"].drift
    assert (region, amount) == (specs.Drift(threshold=0.031), specs.Drift(method="wasserstein", threshold=0.42))
    assert model.features["region"].type == "category"
    assert model.monitoring.prediction == specs.Drift(method="wasserstein", threshold=0.57)
    assert model.monitoring.max_label_shift == 0.115
    assert model.monitoring.window_days == 7
    assert model.calibration is not None
    assert (str(model.calibration.as_of), model.calibration.months) == ("2024-06-01", 40)

    plain = specs.models(project.root, calibrated=False)["late_order"]
    assert plain.calibration is None
    assert plain.monitoring.prediction.threshold == specs.Drift().threshold
    calibrated.unlink()
    assert specs.models(project.root)["late_order"] == plain


def test_the_hash_follows_the_thresholds(project: Project, calibrated: Path) -> None:
    def current() -> str:
        return specs.models(project.root)["late_order"].hash

    found = {current()}
    assert found == {current()}
    for where, value in (("thresholds.amount", 0.43), ("thresholds.label", 0.2), ("calibration.seed", 1)):
        project.change(calibrated, put(where, value))
        found.add(current())
    calibrated.unlink()
    found.add(current())
    assert len(found) == 5


def test_some_columns_may_keep_their_own_threshold(project: Project, calibrated: Path) -> None:
    for name in ("thresholds.probability", "thresholds.label", "thresholds.amount"):
        project.change(calibrated, drop(name))
    project.change(project.model, put("features.amount.drift.threshold", 0.3))
    model = specs.models(project.root)["late_order"]
    assert model.features["amount"].drift == specs.Drift(method="wasserstein", threshold=0.3)
    assert model.monitoring.max_label_shift == 0.2


THRESHOLD_MISTAKES = {
    "an unknown feature": (put("thresholds.colour", 0.1), ["thresholds.colour", "expected a feature with drift"]),
    "a list": (lambda spec: spec.update(thresholds=[0.1]), ["expected calibration and thresholds"]),
    "no thresholds": (drop("thresholds"), ["expected calibration and thresholds", "['calibration']"]),
    "no calibration": (drop("calibration"), ["expected calibration and thresholds", "['thresholds']"]),
    "another part": (put("notes", "x"), ["expected calibration and thresholds", "'notes'"]),
}


@pytest.mark.parametrize(("change", "named"), THRESHOLD_MISTAKES.values(), ids=THRESHOLD_MISTAKES)
def test_a_mistake_in_the_thresholds_is_named(
    project: Project, calibrated: Path, change: Any, named: list[str]
) -> None:
    project.change(calibrated, change)
    error = project.error()
    assert [part for part in [str(calibrated), "run make calibrate", *named] if part not in error] == [], error


def test_thresholds_that_are_no_yaml_are_named(project: Project, calibrated: Path) -> None:
    for text, named in ((b"a: [1", "expected YAML"), (b"", "expected a mapping"), (b"\xe9", "expected UTF-8")):
        calibrated.write_bytes(text)
        error = project.error()
        assert str(calibrated) in error
        assert named in error


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (put("thresholds.amount", "much"), ["amount", "'much'"]),
        (put("thresholds.amount", 0), ["amount", "greater than 0"]),
        (put("thresholds.label", 1.01), ["max_label_shift", "1.01"]),
        (drop("calibration.as_of"), ["calibration.as_of", "required"]),
        (put("calibration.alarm_days", 2), ["calibration.alarm_days", "2"]),
        (put("calibration.colour", 2), ["calibration.colour", "2"]),
    ],
    ids=["text", "zero", "label", "no date", "alarm days", "unknown"],
)
def test_a_threshold_out_of_bounds_is_named(project: Project, calibrated: Path, change: Any, named: list[str]) -> None:
    project.change(calibrated, change)
    error = project.error()
    assert [part for part in [str(calibrated.parent), *named] if part not in error] == [], error


def test_a_threshold_has_one_place(project: Project, calibrated: Path) -> None:
    project.change(project.model, put("features.amount.drift.threshold", 0.3))
    error = project.error()
    named = [str(project.model), "features.amount.drift.threshold", "thresholds.yaml has it"]
    assert [part for part in named if part not in error] == [], error


def test_a_feature_that_is_not_measured_has_no_threshold(project: Project, calibrated: Path) -> None:
    project.change(project.model, put("features.amount.drift", None))
    error = project.error()
    named = [str(calibrated), "thresholds.amount", "run make calibrate again"]
    assert [part for part in named if part not in error] == [], error


# --- any mutation ----------------------------------------------------------------------------------------------------

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.dates()
    | st.binary(max_size=4)
    | st.sampled_from(
        ["..", "/x/{date}", "{date}", "{", "1d", "orders", "order_id", 10**400, -1, "date", "wasserstein"]
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8) | st.integers(), inner, max_size=3),
    max_leaves=6,
)


def places(spec: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every path into a nested spec."""
    yield at
    items = spec.items() if isinstance(spec, dict) else enumerate(spec) if isinstance(spec, list) else ()
    for key, value in items:
        yield from places(value, (*at, key))


def mutated(spec: dict[str, Any], at: tuple[Any, ...], kind: str, key: Any, value: Any) -> Any:
    """`spec` with the part at `at` replaced, removed, or given one more entry."""
    if not at and kind != "add":
        return value
    spec = copy.deepcopy(spec)
    inner: Any = spec
    for part in at if kind == "add" else at[:-1]:
        inner = inner[part]
    if kind == "add":
        if isinstance(inner, dict):
            inner[key] = value
        elif isinstance(inner, list):
            inner.append(value)
    elif kind == "drop":
        del inner[at[-1]]
    else:
        inner[at[-1]] = value
    return spec


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    which=st.sampled_from(["source", "model"]),
    where=st.integers(0, 10_000),
    kind=st.sampled_from(["set", "drop", "add"]),
    key=st.text(max_size=8) | st.sampled_from(["name", "tables", "drift", "expectations"]),
    value=values,
)
def test_any_spec_loads_or_is_refused(tmp_path: Path, which: str, where: int, kind: str, key: str, value: Any) -> None:
    project = Project(tmp_path)
    path, spec = (project.source, SOURCE) if which == "source" else (project.model, MODEL)
    every = list(places(spec))
    changed = mutated(spec, every[where % len(every)], kind, key, value)
    try:
        text = yaml.safe_dump(changed, allow_unicode=True)
    except (yaml.YAMLError, UnicodeEncodeError):
        return
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    try:
        found = specs.models(tmp_path)
    except SpecError as error:
        refusal, found = str(error), {}
        event("refused")
    else:
        refusal = f"none for {tmp_path}"
        event("loads")
    assert str(tmp_path) in refusal
    assert all(len(model.hash) == 64 for model in found.values())
