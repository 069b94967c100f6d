"""What every DAG shares: retries, timeouts, pools, the failure callback that names the runbook."""

from __future__ import annotations

import datetime as dt
import logging
from datetime import timedelta
from typing import Any

from airflow.sdk import ExceptionRetryPolicy, Param, RetryAction, RetryRule

log = logging.getLogger("evergreen")

NOT_WORTH_A_RETRY = [
    f"include.evergreen.errors.{name}"
    for name in (
        "DataError",
        "SpecError",
        "SettingsError",
        "AccountingError",
        "ChecksumMismatch",
        "NotFound",
        "Refused",
    )
]

RUNBOOKS = {
    "ingest": "docs/runbooks/ingest-stopped.md",
    "score": "docs/runbooks/scoring-failed.md",
    "monitor": "docs/runbooks/monitoring-failed.md",
    "train": "docs/runbooks/training-failed.md",
    "request": "docs/runbooks/training-failed.md",
    "approve": "docs/runbooks/approval.md",
    "replay": "docs/runbooks/ingest-stopped.md",
    "rollback": "docs/runbooks/rollback.md",
    "rebuild": "docs/runbooks/rebuild.md",
    "maintain": "docs/runbooks/maintenance-failed.md",
}

POOL_INGEST = "ingest"
POOL_SCORING = "scoring"
POOL_TRAINING = "training"


def midnight(day: dt.date) -> dt.datetime:
    """A spec's date as Airflow's start and end dates."""
    return dt.datetime.combine(day, dt.time(), dt.UTC)


def as_of_param() -> Param:
    """The as-of date of a run that has no partition key."""
    return Param(None, type=["null", "string"], format="date", description="For a run without partition key")


def runbook(dag_id: str) -> str:
    """The runbook of a DAG, by the verb its id starts with."""
    return RUNBOOKS[dag_id.split("_", 1)[0]]


def on_failure(context: Any) -> None:
    """Say what failed and what to do: the last words in the log of a failed task."""
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


def default_args(owner: str, pool: str | None = None, timeout_minutes: float = 30) -> dict[str, Any]:
    """Task defaults: a dead dependency is tried three times with backoff, a data error fails at once."""
    return {
        "owner": owner,
        "retries": 2,
        "retry_delay": timedelta(seconds=10),
        "retry_exponential_backoff": 2.0,
        "max_retry_delay": timedelta(minutes=10),
        "retry_policy": ExceptionRetryPolicy(
            rules=[
                RetryRule(
                    exception=list(NOT_WORTH_A_RETRY), action=RetryAction.FAIL, reason="the same input fails again"
                )
            ]
        ),
        "execution_timeout": timedelta(minutes=timeout_minutes),
        "on_failure_callback": [on_failure],
        **({"pool": pool} if pool else {}),
    }
