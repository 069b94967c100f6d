"""What the deployment waits for a dead worker, against what the DAGs allow their tasks."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
import yaml

from include.evergreen.local.layout import PROJECT

COMPOSE = yaml.safe_load((PROJECT / "docker-compose.yaml").read_text())
GIVEN = {name: str(value) for name, value in COMPOSE["services"]["scheduler"]["environment"].items()}


def seconds(variable: str) -> dt.timedelta:
    return dt.timedelta(seconds=float(GIVEN[f"AIRFLOW__{variable}"]))


def test_no_message_goes_out_again_while_its_task_may_still_run(bag: Any) -> None:
    limits = {task.execution_timeout for dag in bag.dags.values() for task in dag.tasks} - {None}
    assert max(limits) < seconds("CELERY_BROKER_TRANSPORT_OPTIONS__VISIBILITY_TIMEOUT")


@pytest.mark.parametrize(
    ("timeout", "check"),
    [
        ("SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT", "SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL"),
        ("SCHEDULER__TASK_QUEUED_TIMEOUT", "SCHEDULER__TASK_QUEUED_TIMEOUT_CHECK_INTERVAL"),
    ],
)
def test_lost_tasks_are_found_within_minutes(timeout: str, check: str) -> None:
    assert seconds(timeout) + seconds(check) < dt.timedelta(minutes=3)


def test_a_long_queue_fails_no_task_for_as_long_as_its_run_may_take(bag: Any) -> None:
    """Each time it has waited for the timeout, it is sent again."""
    patience = seconds("SCHEDULER__TASK_QUEUED_TIMEOUT") * int(GIVEN["AIRFLOW__SCHEDULER__NUM_STUCK_IN_QUEUED_RETRIES"])
    assert patience >= min(dag.dagrun_timeout for dag in bag.dags.values())


def test_a_silent_api_server_is_asked_again_for_less_than_a_heartbeats_timeout() -> None:
    """After its return a task is heard before the scheduler gives it up."""
    longest = seconds("WORKERS__EXECUTION_API_RETRY_WAIT_MAX")
    assert 4 * longest < seconds("SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT")
