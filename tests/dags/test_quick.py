"""`DAG` and `task` of the models' DAGs do what Airflow's do."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from airflow import sdk

from include.evergreen.orchestration.quick import DAG, task

START = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


def first() -> dict[str, int]:
    return {"x": 20}


def second(found: dict[str, int], more: int) -> int:
    return found["x"] + more


def made(dag_class: Any, decorate: Any) -> Any:
    with dag_class("pair", schedule=None, start_date=START, default_args={"owner": "me", "retries": 3}) as dag:
        decorate(outlets=[sdk.Asset("done")])(second)(decorate(first)(), 3)
    return dag


def test_the_scheduler_is_told_the_same() -> None:
    from airflow.serialization.serialized_objects import DagSerialization

    def told(dag: Any) -> Any:
        stored = DagSerialization.to_dict(dag)
        for one in stored["dag"]["tasks"]:
            del one["__var"]["task_type"], one["__var"]["_task_module"]
        return stored

    ours = told(made(DAG, task))
    assert ours == told(made(sdk.DAG, lambda *of, **given: sdk.task(*of, **given, multiple_outputs=False)))
    assert [one["__var"]["_operator_name"] for one in ours["dag"]["tasks"]] == ["@task", "@task"]


def test_results_go_from_task_to_task() -> None:
    dag = made(DAG, task)
    assert dag.task_dict["second"].upstream_task_ids == {"first"}
    assert dag.task_dict["second"].op_args[0].operator is dag.task_dict["first"]


def test_a_wrong_number_of_arguments_fails_when_the_file_is_parsed() -> None:
    with (
        DAG("wrong", schedule=None, start_date=START),
        pytest.raises(TypeError, match=r"second: expected 2 .* found 1"),
    ):
        task(second)(1)


def test_equal_dags_have_one_hash() -> None:
    assert made(DAG, task) == made(DAG, task)
    assert len({made(DAG, task), made(DAG, task), DAG("other")}) == 2
