"""Callbacks of runs and tasks: what fails, is late or ends well reaches the inbox, then the channels.

What is rare is a callback of the run; the end of a run, which is not, is one of its last task: that process is warm.

Airflow runs the callbacks of a DAG in the DAG processor, a late run's in the triggerer, a task's in the task; all three
can read connections and variables. None of them ever raises: an alert that cannot be kept is in the log.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import functools
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from include.evergreen.alerts.cause import of_failed_run, of_late_run, subject_of
from include.evergreen.errors import PartitionStopped
from include.evergreen.orchestration.assets import date_of
from include.evergreen.orchestration.runs import key_of

if TYPE_CHECKING:
    from include.evergreen.alerts.inbox import Inbox

log = logging.getLogger("evergreen")

WHY = {
    "task_failure": "a task failed",
    "timed_out": "it was cut off by its time limit",
    "all_tasks_deadlocked": "no task of it can run",
}
"""What Airflow says of a failed run, in words."""


@dataclass(frozen=True)
class Run:
    """What an alert needs of a run. `key`: its id as the pipeline's steps record it."""

    dag_id: str
    key: str
    as_of: dt.date | None
    subject: str
    by_backfill: bool = False


def safe(callback: Callable[..., None]) -> Callable[..., None]:
    """A callback that logs what it raises: no run and no task fails by its alarm."""

    @functools.wraps(callback)
    def guarded(*args: Any, **kwargs: Any) -> None:
        try:
            callback(*args, **kwargs)
        except Exception:
            log.exception("%s: the alert could not be kept", callback.__name__)

    return guarded


def run_of(context: Mapping[str, Any]) -> Run:
    """From the context of a callback: whole, as of a DAG without a task, or a deadline's plain values."""
    found = context.get("dag_run")
    dag_run = found if isinstance(found, Mapping) else vars(found) if found is not None else {}
    dag_id = str(dag_run.get("dag_id") or context["dag"].dag_id)
    run_id = str(dag_run.get("dag_run_id") or dag_run.get("run_id") or context["run_id"])
    params = {**(dag_run.get("conf") or {}), **dict(context.get("params") or {})}
    table = str(params.get("table") or "").split(".")[0]
    return Run(
        dag_id,
        key_of(run_id),
        _date(dag_run.get("partition_key") or params.get("as_of")),
        subject_of(dag_id) if "__" in dag_id else str(params.get("model") or table or dag_id),
        str(getattr(dag_run.get("run_type"), "value", dag_run.get("run_type"))) == "backfill",
    )


def _date(key: Any) -> dt.date | None:
    try:
        return date_of(str(key)) if key else None
    except ValueError:
        return None


def _inbox() -> Inbox:
    from include.evergreen.alerts.inbox import Inbox
    from include.evergreen.orchestration.connections import platform

    return Inbox(platform().mart)


def _deliver() -> None:
    from include.evergreen.orchestration import notify

    notify.deliver()


@safe
def task_failed(context: Any) -> None:
    """A task failed for good: its run has. A stopped partition has an alert of its own already."""
    run, error, inbox = run_of(context), context.get("exception"), _inbox()
    known = isinstance(error, PartitionStopped) and inbox.tells_of(run.subject, run.key, ["partition_stopped"])
    if not known:
        why = f"{type(error).__name__}: {error}" if error else "no exception was recorded"
        inbox.raise_(of_failed_run(run.dag_id, run.as_of, run.key, why, context["ti"].task_id, run.subject))
    _deliver()


@safe
def run_failed(context: Any) -> None:
    """A run failed: an alert, unless its task raised one. Time limits and killed workers show only here."""
    run, inbox = run_of(context), _inbox()
    if not inbox.tells_of(run.subject, run.key, ["run_failed", "partition_stopped"]):
        said = str(context.get("reason") or "")
        inbox.raise_(of_failed_run(run.dag_id, run.as_of, run.key, WHY.get(said, said), subject=run.subject))
    _deliver()


@safe
def task_done(context: Any) -> None:
    """The last task of a run ended well, or skipped itself: what was said of its DAG is over."""
    if context["task"].downstream_task_ids:
        return
    run = run_of(context)
    said = f"a run of {run.dag_id} ended well{f' on {run.as_of}' if run.as_of else ''}"
    _inbox().recover(run.subject, ["run_failed", "run_late"], run.as_of, said, run.dag_id)
    _deliver()


async def run_late(context: Any, minutes: float) -> None:
    """A run has not ended `minutes` after its creation; not of a backfill, which makes all its runs at once.

    For the triggerer: to a callback in the executor Airflow serves no connection.
    """
    await asyncio.to_thread(tell_late, context, minutes)


@safe
def tell_late(context: Any, minutes: float) -> None:
    run = run_of(context)
    if run.by_backfill:
        return
    _inbox().raise_(of_late_run(run.dag_id, run.as_of, run.key, minutes, run.subject))
    _deliver()
