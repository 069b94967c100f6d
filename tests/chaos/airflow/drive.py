"""The days that every stack of these tests lives through."""

from __future__ import annotations

import time
from contextlib import suppress
from urllib.parse import quote

from include.evergreen.local.api import ApiError
from tests.chaos.airflow.conftest import FIRST, SECOND
from tests.chaos.airflow.embedded import INGEST, MODEL, MONITOR, REVIEWED, SCORE, TRAIN, Embedded

RULE = ('regex: "^N[0-9A-Z]{1,5}$"', 'regex: "^[DN][0-9A-Z]{1,5}$"')
REQUEST, APPROVE = f"request__{REVIEWED}", f"approve__{REVIEWED}"
KEY = f"{REVIEWED}|{FIRST}"


def first_day(stack: Embedded) -> None:
    """A day that asks for a training, which makes version 2 champion."""
    stack.api().unpause(TRAIN)
    stack.trigger(INGEST, partition_key=str(FIRST))
    for dag_id, key in ((INGEST, FIRST), (SCORE, FIRST), (MONITOR, FIRST), (TRAIN, f"{MODEL}|{FIRST}")):
        stack.run_of(dag_id, str(key))
    champions = stack.mart("select version from champions where model = ? order by effective_from", MODEL)
    assert [row["version"] for row in champions] == [1, 2]


def second_day(stack: Embedded) -> None:
    """A day that version 2 scores."""
    stack.trigger(INGEST, partition_key=str(SECOND))
    for dag_id in (INGEST, SCORE, MONITOR):
        stack.run_of(dag_id, str(SECOND))
    [scored] = stack.mart("select version from scorings where model = ? and as_of = ? and is_current", MODEL, SECOND)
    assert scored["version"] == 2


def by_hand(stack: Embedded) -> None:
    """What people do: a training that one asks for and another approves, beside a rollback, a released quarantine,
    maintenance, a rebuild."""
    for dag_id in (f"train__{REVIEWED}", APPROVE):
        stack.api().unpause(dag_id)
    asked = stack.trigger(REQUEST, conf={"as_of": str(FIRST)})
    conf = {"model": MODEL, "version": 1, "reason": "to see it", "dry_run": False}
    stack.succeeded("rollback", stack.trigger("rollback", conf=conf))
    spec = stack.project / "include/sources/nyc_flights/source.yaml"
    text = spec.read_text()
    assert text.count(RULE[0]) == 2  # of schedules and of planes
    spec.write_text(text.replace(*RULE))
    conf = {"table": "nyc_flights.schedules", "since": str(FIRST), "until": str(SECOND)}
    stack.succeeded("replay_quarantine", stack.trigger("replay_quarantine", conf=conf))
    rebuilt = stack.trigger("rebuild", conf={"model": MODEL, "version": 2})
    stack.succeeded(REQUEST, asked)
    stack.run_of(f"train__{REVIEWED}", KEY)
    run = stack.until(f"a run of {APPROVE}", lambda: stack.api().partition_run(APPROVE, KEY))
    approve(stack, run["dag_run_id"])
    stack.succeeded("rebuild", rebuilt)
    stack.api().unpause("maintain_lake")  # its schedule starts it
    [run, *_] = stack.until("a run of maintain_lake", lambda: stack.api().dag_runs("maintain_lake"))
    stack.succeeded("maintain_lake", run["dag_run_id"])


def approve(stack: Embedded, run_id: str) -> None:
    """On-call says yes whenever the run asks: who dies with an answer in hand asks again."""

    def ended() -> bool:
        tasks = {task["task_id"]: task["state"] for task in stack.api().task_instances(APPROVE, run_id)}
        if tasks.get("wait") == "awaiting_input":
            time.sleep(2)  # an answer before the scheduler has seen the task leave its worker is lost
            path = f"/dags/{APPROVE}/dagRuns/{quote(run_id, safe='')}/taskInstances/wait/-1/hitlDetails"
            with suppress(ApiError):  # answered already, and not seen yet
                stack.api("oncall").request("PATCH", path, {"chosen_options": ["Approve"], "params_input": {}})
        return tasks.get("conclude") in {"success", "failed"}

    stack.until(f"{APPROVE} has an answer", ended)
    stack.succeeded(APPROVE, run_id)
