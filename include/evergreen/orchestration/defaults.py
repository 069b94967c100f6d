"""What every DAG shares: retries, timeouts, pools, deadlines, the callbacks that alert and name the runbook."""

from __future__ import annotations

import datetime as dt
import logging
import os
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

from airflow.sdk import ExceptionRetryPolicy, Param, RetryAction, RetryRule
from airflow.sdk.configuration import conf
from airflow.sdk.definitions.callback import AsyncCallback
from airflow.sdk.definitions.deadline import DeadlineAlert
from airflow.sdk.definitions.param import ParamsDict

from include.evergreen.alerts.cause import RUNBOOKS
from include.evergreen.local.layout import full_disk
from include.evergreen.orchestration import alarms
from include.evergreen.orchestration.deadline import RunCreated
from include.evergreen.orchestration.quick import DAG

log = logging.getLogger("evergreen")

NOT_WORTH_A_RETRY = [
    f"include.evergreen.errors.{name}"
    for name in (
        "DataError",
        "SpecError",
        "AccountingError",
        "ChecksumMismatch",
        "NotFound",
        "Refused",
    )
]
"""Not SettingsError: while its metadata database is away, Airflow says of every connection that it is not defined."""

RETRIES = ExceptionRetryPolicy(
    rules=[RetryRule(exception=NOT_WORTH_A_RETRY, action=RetryAction.FAIL, reason="the same input fails again")]
)
"""Of every task."""

LATE_MINUTES = {"ingest": 60, "score": 90, "monitor": 180}
"""A run of these that has not ended so long after it was queued is late; the wait for files comes on top."""

POOL_INGEST = "ingest"
POOL_SCORING = "scoring"
POOL_TRAINING = "training"

QUEUES = {POOL_TRAINING: "training"}
"""Celery's queue of a pool's tasks, where it is not the default one. Other executors ignore it."""


def midnight(day: dt.date) -> dt.datetime:
    """A spec's date as Airflow's start and end dates."""
    return dt.datetime.combine(day, dt.time(), dt.UTC)


AS_OF = Param(None, type=["null", "string"], format="date", description="For a run without partition key")
"""The as-of date of a run that has no partition key."""


def form(**params: Param) -> ParamsDict:
    """Params that DAGs share, once their defaults are found valid. Raises ParamValidationError."""
    checked = ParamsDict(params)
    checked.validate()
    return checked


def finish(dag: DAG, params: ParamsDict) -> DAG:
    """Give a DAG its params when its tasks are made, and take from its defaults the callbacks, which the tasks have.

    Airflow copies the params of a DAG into its tasks, one by one, and stores default callbacks as source text: most of
    the time that it takes to parse and to store the DAGs of 300 models.
    """
    dag.params.update(params)
    for name in CALLBACKS:
        dag.default_args.pop(name, None)
    return dag


def runbook(dag_id: str) -> str:
    """The runbook of a DAG, by the verb its id starts with."""
    return RUNBOOKS[dag_id.split("_", 1)[0]]


@cache
def configured() -> dict[str, Any]:
    """What Airflow's configuration says of a DAG, read once: by itself each DAG reads it, a third of its own making."""
    return {
        "max_active_tasks": conf.getint("core", "max_active_tasks_per_dag"),
        "max_consecutive_failed_dag_runs": conf.getint("core", "max_consecutive_failed_dag_runs_per_dag"),
        "disable_bundle_versioning": conf.getboolean("dag_processor", "disable_bundle_versioning"),
    }


def watched(verb: str, wait_minutes: float = 0) -> dict[str, Any]:
    """What a DAG gives Airflow to be watched: a run that fails or is late reaches the inbox."""
    failed: dict[str, Any] = {"on_failure_callback": [alarms.run_failed], **configured()}
    if verb not in LATE_MINUTES:
        return failed
    minutes = LATE_MINUTES[verb] + wait_minutes
    late = DeadlineAlert(
        reference=RunCreated(),
        interval=timedelta(minutes=minutes),
        callback=AsyncCallback(alarms.run_late, kwargs={"minutes": minutes}),
    )
    return {**failed, "deadline": late}


def on_failure(context: Any) -> None:
    """Alert, then say what failed and what to do: the last words in the log of a failed task."""
    alarms.task_failed(context)
    task = context["ti"]
    error = context.get("exception")
    log.error(
        "%s failed in %s (partition %s): %s. What to do: %s",
        task.task_id,
        task.dag_id,
        context["dag_run"].partition_key or "none",
        f"{type(error).__name__}: {error}" if error else "no exception was recorded",
        runbook(task.dag_id),
    )
    # an object store does not say why it cannot store
    if (var := os.environ.get("EVERGREEN_VAR")) and (full := full_disk(Path(var))):
        log.error("%s", full)


CALLBACKS = ("on_failure_callback", "on_success_callback", "on_skipped_callback")


def default_args(owner: str, pool: str | None = None, timeout_minutes: float = 30) -> dict[str, Any]:
    """Task defaults: a dead dependency is tried three times with backoff, a data error fails at once."""
    return {
        "owner": owner,
        "retries": 2,
        "retry_delay": timedelta(seconds=10),
        "retry_exponential_backoff": 2.0,
        "max_retry_delay": timedelta(minutes=10),
        "retry_policy": RETRIES,
        "execution_timeout": timedelta(minutes=timeout_minutes),
        "on_failure_callback": [on_failure],
        "on_success_callback": [alarms.task_done],
        "on_skipped_callback": [alarms.task_done],
        **({"pool": pool} if pool else {}),
        **({"queue": QUEUES[pool]} if pool in QUEUES else {}),
    }
