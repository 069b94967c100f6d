"""What every DAG promises: its id, its docs, its policy, its order, its assets."""

from __future__ import annotations

import ast
import datetime as dt
import importlib.util
import logging
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.providers.standard.operators.hitl import ApprovalOperator
from airflow.sdk import RetryAction
from airflow.sdk.exceptions import DownstreamTasksSkipped

from include.evergreen import errors
from include.evergreen.orchestration import assets, defaults, settings_file
from include.evergreen.specs import models, sources
from tests import examples

PROJECT = Path(__file__).resolve().parents[2]
FILES = sorted(path for path in (PROJECT / "dags").glob("*.py") if path.stem != "specs")
"""The one file without a DAG tells of wrong specs."""
EXPECTED = {
    "ingest__nyc_flights",
    "score__flight_delay",
    "monitor__flight_delay",
    "train__flight_delay",
    "request__flight_delay",
    "replay_quarantine",
    "maintain_lake",
    "rollback",
    "rebuild",
}
HEADINGS = ["Purpose", "Inputs and outputs", "Rerun policy", "On failure"]
MAX_LINES, MAX_STATEMENTS = 150, 5


def test_the_expected_dags_load(bag: Any) -> None:
    assert set(bag.dag_ids) == EXPECTED
    assert bag.import_errors == {}
    assert bag.captured_warnings == {}


@pytest.fixture(params=sorted(EXPECTED))
def dag(bag: Any, request: pytest.FixtureRequest) -> Any:
    return bag.dags[request.param]


# --- documentation ---------------------------------------------------------------------------------------------------


def test_its_page_has_the_fixed_headings(dag: Any) -> None:
    assert re.findall(r"^## (.+)$", dag.doc_md, re.MULTILINE) == HEADINGS
    assert all(part.strip() for part in re.split(r"^## .+$", dag.doc_md, flags=re.MULTILINE)[1:])
    assert dag.description


def test_its_page_names_the_runbook_of_its_alert(dag: Any) -> None:
    named = re.findall(r"docs/runbooks/[\w-]+\.md", dag.doc_md.split("## On failure")[1])
    assert named == [defaults.runbook(dag.dag_id)]
    assert (PROJECT / named[0]).is_file()


def test_its_params_are_typed_and_explained(dag: Any) -> None:
    for name in dag.params:
        param = dag.params.get_param(name)
        assert param.schema.get("type"), name
        assert param.description, name
        param.resolve()  # the default is valid: a run without a form starts


def test_it_says_whose_it_is(dag: Any) -> None:
    assert len(dag.tags) >= 2
    assert dag.tags & {"ingest", "score", "monitor", "train", "operate"}
    owners = {s.owner for s in sources().values()} | {m.owner for m in models().values()} | {"evergreen"}
    assert {task.owner for task in dag.tasks} <= owners


# --- policy ----------------------------------------------------------------------------------------------------------


def test_a_start_without_catchup_and_with_an_end(dag: Any) -> None:
    assert dag.start_date is not None
    assert dag.start_date.utcoffset() == dt.timedelta(0)
    assert dag.catchup is False
    assert 1 <= dag.max_active_runs <= 4
    assert dag.dagrun_timeout is not None
    assert all(task.execution_timeout < dag.dagrun_timeout for task in dag.tasks)


def test_a_run_outlives_the_wait_for_its_files(bag: Any) -> None:
    for source in sources().values():
        dag = bag.dags[f"ingest__{source.name}"]
        wait = dag.get_task("table.wait")
        assert dt.timedelta(minutes=wait.wait_minutes) < dag.dagrun_timeout


def test_a_dead_dependency_is_tried_again_with_backoff(dag: Any) -> None:
    for task in dag.tasks:
        assert task.retries >= 1, task.task_id
        assert task.retry_exponential_backoff > 1, task.task_id
        assert dt.timedelta(0) < task.retry_delay < task.max_retry_delay, task.task_id
        decision = task.retry_policy.evaluate(errors.Unavailable("silent"), 1, task.retries)
        assert decision.action is not RetryAction.FAIL, task.task_id
        assert task.retry_policy.evaluate(ConnectionError("reset"), 1, task.retries).action is not RetryAction.FAIL
        # so says Airflow of every connection while its own database is away
        undefined = errors.SettingsError("connection mart_db: expected it to be defined, found none")
        assert task.retry_policy.evaluate(undefined, 1, task.retries).action is not RetryAction.FAIL


def final_errors() -> list[type[Exception]]:
    """Every error of the tree that says the same input would fail again."""
    tree = [found for found in vars(errors).values() if isinstance(found, type) and issubclass(found, Exception)]
    return [found for found in tree if found not in (errors.EvergreenError, errors.Unavailable, errors.SettingsError)]


@pytest.mark.parametrize("error", final_errors(), ids=lambda error: error.__name__)
def test_a_final_error_fails_at_once(bag: Any, error: type[Exception]) -> None:
    for dag in bag.dags.values():
        for task in dag.tasks:
            assert task.retry_policy.evaluate(error("no"), 1, task.retries).action is RetryAction.FAIL, task.task_id


def test_a_failed_task_names_its_runbook(dag: Any, caplog: pytest.LogCaptureFixture) -> None:
    for task in dag.tasks:
        (callback,) = task.on_failure_callback
        context = {
            "ti": SimpleNamespace(task_id=task.task_id, dag_id=dag.dag_id),
            "dag_run": SimpleNamespace(partition_key="2013-07-01"),
            "exception": errors.SchemaMismatch("expected tailnum, found tail"),
        }
        with caplog.at_level(logging.ERROR, "evergreen"):
            callback(context)
        said = caplog.messages[-1]
        for part in (task.task_id, "2013-07-01", "expected tailnum, found tail", defaults.runbook(dag.dag_id)):
            assert part in said


def test_pools_exist_and_each_is_used(bag: Any) -> None:
    declared = set(settings_file.read().pools)
    used = {task.pool for dag in bag.dags.values() for task in dag.tasks}
    assert used - {"default_pool"} == declared
    assert bag.dag_warnings == set()


def test_every_training_task_waits_for_the_training_pool(bag: Any) -> None:
    for model in models():
        assert {task.pool for task in bag.dags[f"train__{model}"].tasks} == {"training"}
    assert settings_file.read().pools["training"]["slots"] == 1


def test_the_scheduler_can_store_it(dag: Any) -> None:
    from airflow.serialization.serialized_objects import DagSerialization

    stored = DagSerialization.from_dict(DagSerialization.to_dict(dag))
    assert {task.task_id for task in stored.tasks} == {task.task_id for task in dag.tasks}


# --- order and wiring ------------------------------------------------------------------------------------------------

ORDER = [
    ("ingest__nyc_flights", ["table.wait", "table.land", "table.validate", "table.publish", "complete"]),
    ("score__flight_delay", ["predict", "publish"]),
    ("monitor__flight_delay", ["measure", "conclude", "ask_retrain"]),
    ("rollback", ["plan", "withdraw", "rescore", "complete"]),
    ("train__flight_delay", ["build", "check_leaks", "gate", "register", "promote"]),
    ("train__flight_delay", ["build", "fit", "gate", "register", "promote"]),
]


@pytest.mark.parametrize(("dag_id", "order"), ORDER, ids=lambda value: value if isinstance(value, str) else "")
def test_steps_follow_each_other(bag: Any, dag_id: str, order: list[str]) -> None:
    dag = bag.dags[dag_id]
    for index, name in enumerate(order):
        before = dag.get_task(name).get_flat_relative_ids(upstream=True)
        assert set(order[:index]) <= before, name


def test_every_task_has_a_place_in_an_order(bag: Any) -> None:
    placed: dict[str, set[str]] = {}
    for dag_id, order in ORDER:
        placed.setdefault(dag_id, set()).update(order)
    alone = {dag_id: {task.task_id for task in bag.dags[dag_id].tasks} for dag_id in EXPECTED - set(placed)}
    assert all(len(tasks) == 1 for tasks in alone.values()), alone
    assert {dag_id: {task.task_id for task in bag.dags[dag_id].tasks} for dag_id in placed} == placed


def emitted(dag: Any) -> dict[str, set[str]]:
    """Task -> names of the assets it emits."""
    return {task.task_id: {asset.name for asset in task.outlets} for task in dag.tasks if task.outlets}


def consumed(dag: Any) -> set[str]:
    """The one asset that starts it: a partitioned run never waits for two."""
    return {dag.timetable.asset_condition.name}


def test_assets_carry_the_loop(bag: Any) -> None:
    model = models()["flight_delay"]
    ingest, score, monitor, train, request = (
        bag.dags[f"{verb}__{name}"]
        for verb, name in (
            ("ingest", model.source),
            ("score", model.name),
            ("monitor", model.name),
            ("train", model.name),
            ("request", model.name),
        )
    )
    assert emitted(ingest) == {"complete": {assets.trusted(model.source).name}}
    assert consumed(score) == {assets.trusted(model.source).name}
    assert emitted(score) == {"publish": {assets.predictions(model.name).name}}
    assert consumed(monitor) == {assets.predictions(model.name).name}
    assert emitted(monitor) == {"ask_retrain": {assets.retrain_requested(model.name).name}}
    assert emitted(request) == {"ask": {assets.retrain_requested(model.name).name}}
    assert consumed(train) == {assets.retrain_requested(model.name).name}
    assert emitted(train) == {"promote": {assets.champion(model.name).name}}


def test_partition_keys_travel_the_loop(bag: Any) -> None:
    """An event with a key never starts a DAG without partitions, nor the other way round."""
    kinds = {dag_id: type(dag.timetable).__name__ for dag_id, dag in bag.dags.items()}
    for dag_id in ("ingest__nyc_flights", "request__flight_delay"):
        assert kinds[dag_id] == "CronPartitionTimetable"
    for dag_id in ("score__flight_delay", "monitor__flight_delay", "train__flight_delay"):
        assert kinds[dag_id] == "PartitionedAssetTimetable"


def test_a_table_is_ingested_by_itself(bag: Any) -> None:
    for source in sources().values():
        dag = bag.dags[f"ingest__{source.name}"]
        group = dag.get_task("table.publish").get_closest_mapped_task_group()
        assert group.group_id == "table"
        assert set(group._expand_input.value["table"]) == set(source.tables)
        assert dag.get_task("complete").trigger_rule == "none_failed", "a table without a new delivery is skipped"


# --- approval by a person --------------------------------------------------------------------------------------------

SPEC = examples.model(approval="human", approvers=["oncall", "owner"], approval_hours=48)


@pytest.fixture(scope="module")
def approve() -> Any:
    """`dags/approve.py` as a module: no model of ours asks a person."""
    path = PROJECT / "dags/approve.py"
    spec = importlib.util.spec_from_file_location("approve_under_test", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def approval(approve: Any) -> Any:
    return approve.approve(SPEC)


def test_only_a_model_that_asks_a_person_has_an_approval(bag: Any) -> None:
    asking = {f"approve__{model.name}" for model in models().values() if model.approval == "human"}
    assert {dag_id for dag_id in bag.dag_ids if dag_id.startswith("approve__")} == asking


def test_an_approval_keeps_the_promises_of_every_dag(approval: Any, caplog: pytest.LogCaptureFixture) -> None:
    assert approval.dag_id == "approve__late_order"
    test_its_page_has_the_fixed_headings(approval)
    test_its_page_names_the_runbook_of_its_alert(approval)
    test_its_params_are_typed_and_explained(approval)
    test_a_dead_dependency_is_tried_again_with_backoff(approval)
    test_a_failed_task_names_its_runbook(approval, caplog)
    test_the_scheduler_can_store_it(approval)


def test_an_approval_asks_then_concludes(approval: Any) -> None:
    assert type(approval.timetable).__name__ == "PartitionedAssetTimetable"
    assert consumed(approval) == {assets.approval_requested(SPEC.name).name}
    assert emitted(approval) == {"conclude": {assets.champion(SPEC.name).name}}
    assert approval.get_task("wait").upstream_task_ids == {"prepare"}
    assert approval.get_task("conclude").upstream_task_ids == {"prepare", "wait"}
    assert approval.max_active_runs == 8, "a newer candidate waits beside an older one"


def test_no_answer_is_a_no_in_good_time(approval: Any) -> None:
    wait = approval.get_task("wait")
    assert isinstance(wait, ApprovalOperator)
    assert (wait.options, wait.defaults, wait.multiple) == (["Approve", "Reject"], ["Reject"], False)
    assert wait.response_timeout == dt.timedelta(hours=48)
    assert wait.response_timeout < approval.dagrun_timeout, "a run that is cut off would record nothing"
    assert wait.assigned_users == [{"id": "oncall", "name": "oncall"}, {"id": "owner", "name": "owner"}]


def test_without_approvers_every_user_who_may_edit_answers(approve: Any) -> None:
    anyone = approve.approve(examples.model(approval="human", name="other_order"))
    assert anyone.get_task("wait").assigned_users is None


@pytest.mark.parametrize("option", ["Approve", "Reject"])
@pytest.mark.parametrize("user", [{"id": "oncall", "name": "oncall"}, None], ids=["person", "timeout"])
def test_every_answer_reaches_conclude(approval: Any, option: str, user: dict[str, str] | None) -> None:
    wait = approval.get_task("wait")
    event = {
        "chosen_options": [option],
        "params_input": {},
        "responded_at": dt.datetime(2024, 3, 4, tzinfo=dt.UTC),
        "responded_by_user": user,
        "timedout": user is None,
    }
    context = {"task": wait, "ti": SimpleNamespace(map_index=-1, xcom_push=lambda **_: None)}
    answer = wait.execute_complete(context, dict(event))
    assert answer == {name: value for name, value in event.items() if name != "timedout"}
    if option == "Reject":  # what the operator does by itself: no answer for `conclude`, which is skipped
        with pytest.raises(DownstreamTasksSkipped):
            ApprovalOperator.skip(wait, context["ti"], [approval.get_task("conclude")])


def test_a_template_in_the_data_is_not_run(approval: Any) -> None:
    asked = {"subject": "Promote {{ 6 * 7 }}?", "body": "region = {{ 6 * 7 }} {% raw %}"}
    wait = approval.get_task("wait").prepare_for_execution()
    wait.render_template_fields({"ti": SimpleNamespace(xcom_pull=lambda task_ids: {"prepare": asked}[task_ids])})
    assert (wait.subject, wait.body) == (asked["subject"], asked["body"])


# --- the files -------------------------------------------------------------------------------------------------------


def decorated(node: ast.FunctionDef) -> bool:
    """Whether a function is a task's body."""
    names = {found.id for item in node.decorator_list for found in ast.walk(item) if isinstance(found, ast.Name)}
    return "task" in names


def task_bodies(path: Path) -> Iterator[tuple[str, int]]:
    """(name, statements, nested ones included) of every task in a file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef) and decorated(node):
            yield node.name, sum(isinstance(found, ast.stmt) for found in ast.walk(node)) - 1


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_dag_file_is_wiring(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) < MAX_LINES
    bodies = list(task_bodies(path))
    assert bodies
    assert [name for name, statements in bodies if statements > MAX_STATEMENTS] == []


def test_a_long_task_body_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "long.py"
    path.write_text("@task\ndef f():\n    if a:\n        b()\n    c()\n    return d\n\n\ndef g():\n    return 1\n")
    assert list(task_bodies(path)) == [("f", 4)]


@pytest.mark.parametrize("dag_id", [*sorted(EXPECTED), "some_other_dag"])
def test_a_guarded_parse_makes_one_dag_of_each_factory(dag_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task's process parses its file for one DAG: factories leave the others out."""
    from airflow.sdk import DAG

    monkeypatch.setenv("_AIRFLOW_PARSING_CONTEXT_DAG_ID", dag_id)
    made: set[str] = set()
    for path in FILES:
        scope: dict[str, Any] = {"__name__": f"guarded_{path.stem}", "__doc__": "", "__file__": str(path)}
        exec(compile(path.read_text(encoding="utf-8"), path, "exec"), scope)
        made |= {value.dag_id for value in scope.values() if isinstance(value, DAG)}
    assert {name for name in made if "__" in name} == {dag_id} & {name for name in EXPECTED if "__" in name}
