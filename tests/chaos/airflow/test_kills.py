"""SIGKILL of the task process at every step of every DAG: before each kind of its commits, and after the last one, when
Airflow does not know of it yet."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.chaos.airflow import drive
from tests.chaos.airflow.conftest import Base, Twin
from tests.chaos.airflow.embedded import Embedded, flat, watched
from tests.chaos.airflow.inject import RETURNED, step_of
from tests.chaos.tally import Tally

pytestmark = pytest.mark.timeout(1800)  # the first test pays for the history and the twin

COMMITS = {
    "ingest.table.publish.0": {"lake commit trusted", "lake commit quarantine", "mart ingest_batches"},
    "score.publish": {"lake commit predictions", "mart scorings"},
    "monitor.conclude": {"mart monitorings", "mart ledger verdict"},
    "train.register": {"mlflow create_model_version"},
    "train.promote": {"mart ledger promotion", "mart champions", "mlflow alias champion"},
}
"""Points that some steps must have died at: `inject.py` still wraps what commits."""


def steps(stack: Embedded) -> set[str]:
    """Every step of every DAG, as Airflow has them: `<verb>.<task>`."""
    found = set()
    for dag in stack.api().dags():
        tasks = stack.api().request("GET", f"/dags/{dag['dag_id']}/tasks")["tasks"]
        found |= {step_of(dag["dag_id"], task["task_id"], None) for task in tasks}
    assert len(found) > 20, found
    return found


def kills(stack: Embedded) -> dict[str, list[str]]:
    """{step: points at which it was killed, in order}."""
    found = {}
    for folder in sorted((stack.plan / "fired").iterdir()):
        found[folder.name] = [path.name.split("-", 1)[1] for path in sorted(folder.iterdir())]
    return found


def test_a_task_killed_at_any_point_loses_and_doubles_nothing(
    base: Base, twin: Callable[[], Twin], tmp_path: Path, tally: Tally
) -> None:
    stack = base.stack(tmp_path)
    with stack.running():
        (stack.plan / "kill").touch()
        with watched(stack) as wrong:
            drive.first_day(stack)
            drive.second_day(stack)
            drive.by_hand(stack)
        assert wrong == [], "analysts saw a part of a date"
        fired, planned = kills(stack), steps(stack)
        tries = tried(stack)
        found = stack.facts()
    with ExitStack() as faults:
        tried_faults = [
            faults.enter_context(tally.fault("SIGKILL of a task", f"{step}: {point}"))
            for step, points in fired.items()
            for point in points
        ]
        assert found.keys() == twin().last.keys()
        tried_faults[0].rows(flat(twin().last), flat(found))
        spared = {step for step in planned if not any(name == step or whole(name) == step for name in fired)}
        assert spared == set(), "steps that no run of this test reaches: a new task wants a run in drive.py"
        for step, points in fired.items():
            assert len(points) == len(set(points)), (step, points)
            assert RETURNED in points, (step, points)
        for step, commits in COMMITS.items():
            assert commits <= set(fired[step]), (step, fired[step])
        assert tries >= sum(map(len, fired.values())), "every death cost a try"


def whole(step: str) -> str:
    """A mapped step without its index; a resumed one as it began."""
    return ".".join(part for part in step.split(".") if not part.isdecimal() and part != "resumed")


def tried(stack: Embedded) -> int:
    """Tries beyond the first, of all tasks."""
    [row] = stack.sql(
        stack.layout.airflow_db, "select sum(try_number - 1) as n from task_instance where try_number > 1"
    )
    return int(row["n"])
