"""`DAG` and `task` for the DAGs that every model has: Airflow's, made in half of the time.

Airflow's `@task` fills in the arguments of four classes, one after the other, and reads the function's signature in
each. A `PythonOperator` is two and reads none; it runs a function in the same way. The UI shows both as `@task`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, overload

from airflow import sdk
from airflow.providers.standard.operators.python import PythonOperator

Function = Callable[..., Any]


class DAG(sdk.DAG):
    """Airflow asks for its hash twice for every edge, and writes the schedule out each time; equal DAGs share an id."""

    def __hash__(self) -> int:
        return hash(self.dag_id)


class Step(PythonOperator):
    """A function of a DAG file, called with what earlier tasks returned."""

    custom_operator_name = "@task"


@overload
def task(function: Function, /) -> Function: ...
@overload
def task(**arguments: Any) -> Callable[[Function], Function]: ...
def task(function: Function | None = None, /, **arguments: Any) -> Any:
    """Where the function is then called, in a DAG, it becomes a task; earlier tasks' results are given by position.

    What it returns is one value, a mapping too. For mapped tasks, or values of the context by name, take Airflow's.

    Args:
        arguments: of the operator, such as `outlets`.
    """

    def decorate(function: Function) -> Function:
        name, takes = function.__name__, function.__code__.co_argcount

        def call(*results: Any) -> Any:
            if len(results) != takes:
                raise TypeError(f"{name}: expected {takes} arguments, found {len(results)}")
            return Step(task_id=name, python_callable=function, op_args=results, **arguments).output

        return call

    return decorate(function) if function else decorate
