"""The callbacks and the channels: as Airflow calls them, on a mart of their own, without a stack."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import structlog
from airflow.sdk.definitions.callback import AsyncCallback

from include.evergreen.alerts.cause import VERDICTS, of_stopped_partition, of_verdict
from include.evergreen.alerts.inbox import Inbox
from include.evergreen.errors import PartitionStopped, SettingsError, Unavailable
from include.evergreen.health.facts import Alert
from include.evergreen.mart.store import Mart
from include.evergreen.orchestration import alarms, connections, defaults, notify
from include.evergreen.orchestration.deadline import RunCreated
from include.evergreen.specs import sources

DAY = dt.date(2013, 7, 1)


@pytest.fixture
def inbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Inbox]:
    """The inbox that callbacks reach by the connection `mart_db`, as in a task."""
    uri = f"sqlite:///{tmp_path / 'mart.db'}"
    for name in (connections.CATALOG, connections.MART, connections.REGISTRY):
        extra = {"connection_string": uri}
        monkeypatch.setenv(f"AIRFLOW_CONN_{name.upper()}", json.dumps({"conn_type": "generic", "extra": extra}))
    monkeypatch.setenv("AIRFLOW_CONN_LAKE_S3", json.dumps({"conn_type": "aws", "extra": {}}))
    monkeypatch.setenv("AIRFLOW_VAR_EVERGREEN_UI_URL", "http://airflow.example.org")
    monkeypatch.setenv("AIRFLOW_VAR_EVERGREEN_ALERT_CHANNELS", "[]")
    monkeypatch.setenv("AIRFLOW_VAR_EVERGREEN_ALERT_REMIND_HOURS", "24")
    monkeypatch.setenv("AIRFLOW_VAR_EVERGREEN_ALERT_RUNBOOK_URL", "https://runbooks.example.org")
    connections.platform.cache_clear()
    mart = Mart(uri)
    mart.create()
    yield Inbox(mart)
    mart.engine.dispose()
    connections.platform.cache_clear()


def dag_run(dag_id: str, run_id: str = "asset_triggered__1+x", day: dt.date | None = DAY, **more: Any) -> Any:
    key = day.isoformat() if day else None
    return SimpleNamespace(dag_id=dag_id, run_id=run_id, partition_key=key, run_type="scheduled", conf=None, **more)


def context(
    dag_id: str = "score__flight_delay", error: Exception | None = None, params: Any = None, **run: Any
) -> dict[str, Any]:
    """What Airflow hands to a callback of a task or a DAG."""
    made = dag_run(dag_id, **run)
    return {
        "ti": SimpleNamespace(task_id="publish", dag_id=dag_id),
        "task": SimpleNamespace(downstream_task_ids=set()),
        "dag": SimpleNamespace(dag_id=dag_id),
        "dag_run": made,
        "run_id": made.run_id,
        "params": params or {},
        "exception": error,
    }


def only(inbox: Inbox) -> Alert:
    (alert,) = inbox.open()
    return alert


# --- failed runs -----------------------------------------------------------------------------------------------------


def test_a_failed_task_is_an_alert_of_its_run(inbox: Inbox, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "evergreen"):
        defaults.on_failure(context(error=Unavailable("the lake did not answer")))
    alert = only(inbox)
    assert (alert.cause, alert.severity, alert.as_of) == ("flight_delay|run_failed|score__flight_delay", "page", DAY)
    assert "publish in score__flight_delay failed on 2013-07-01: Unavailable: the lake did not answer" in alert.what
    said, last = [record.message for record in caplog.records if record.name == "evergreen"]
    assert said.startswith("alert new: flight_delay: run failed since 2013-07-01. publish in score__flight_delay")
    assert said.endswith("Page: http://airflow.example.org/evergreen/models/flight_delay")
    assert last.endswith("What to do: docs/runbooks/scoring-failed.md")


def test_one_alert_per_run_not_per_task(inbox: Inbox, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3):
        alarms.task_failed(context(error=Unavailable("no answer")))
    alarms.run_failed({**context(), "reason": "task_failure"})
    assert only(inbox).seen == 1
    assert "Unavailable" in only(inbox).what, "the run adds nothing to what its task said"
    assert sum(message.startswith("alert ") for message in caplog.messages) == 1


def test_a_run_that_was_cut_off_is_seen_though_no_task_failed(inbox: Inbox) -> None:
    alarms.run_failed({**context(), "reason": "timed_out"})
    assert only(inbox).what == "score__flight_delay failed on 2013-07-01: it was cut off by its time limit"


def test_a_run_whose_task_is_not_known_is_seen(inbox: Inbox) -> None:
    """Airflow hands over no more when it has no task to name."""
    alarms.run_failed({"dag": SimpleNamespace(dag_id="maintain_lake"), "run_id": "r", "reason": "task_failure"})
    alert = only(inbox)
    assert (alert.subject, alert.as_of, alert.what) == ("maintain_lake", None, "maintain_lake failed: a task failed")


def test_a_stopped_partition_is_not_told_twice(inbox: Inbox) -> None:
    ingest = context("ingest__nyc_flights", PartitionStopped("actuals stopped"), run_id="scheduled__a:b")
    inbox.raise_(of_stopped_partition("nyc_flights", "actuals", DAY, ["no rows"], "scheduled__a-b"))
    alarms.task_failed(ingest)
    alarms.run_failed({**ingest, "reason": "task_failure"})
    assert only(inbox).kind == "partition_stopped"
    alarms.task_failed({**ingest, "exception": Unavailable("and the store is down")})
    assert {alert.kind for alert in inbox.open()} == {"partition_stopped", "run_failed"}


def test_a_stopped_partition_that_nobody_was_told_of_is_a_failed_run(inbox: Inbox) -> None:
    alarms.task_failed(context("ingest__nyc_flights", PartitionStopped("actuals stopped")))
    assert only(inbox).kind == "run_failed"


def test_a_verdict_of_the_same_run_hides_no_failure(inbox: Inbox) -> None:
    drift = of_verdict("flight_delay", DAY, next(iter(VERDICTS)), [], [], "r")
    assert drift is not None
    inbox.raise_(drift)
    alarms.run_failed({**context("monitor__flight_delay", run_id="r"), "reason": "timed_out"})
    assert {alert.kind for alert in inbox.open()} == {"drift", "run_failed"}


def test_a_run_that_ends_well_ends_the_alerts_of_its_dag(inbox: Inbox, caplog: pytest.LogCaptureFixture) -> None:
    alarms.task_failed(context(error=Unavailable("no answer")))
    alarms.task_failed(context("monitor__flight_delay", error=Unavailable("no answer")))
    asyncio.run(alarms.run_late({"dag_run": late("score__flight_delay")}, minutes=90))
    alarms.task_done(context(day=DAY - dt.timedelta(days=1)))
    assert len(inbox.open()) == 3, "an earlier date says nothing of a later one"
    with caplog.at_level(logging.INFO, "evergreen"):
        alarms.task_done(context(run_id="another"))
    assert only(inbox).cause == "flight_delay|run_failed|monitor__flight_delay"
    assert sum(message.startswith("alert recovered: ") for message in caplog.messages) == 2


@pytest.mark.parametrize(
    ("dag_id", "params", "subject"),
    [
        ("rollback", {"model": "flight_delay", "version": 1}, "flight_delay"),
        ("replay_quarantine", {"table": "nyc_flights.actuals"}, "nyc_flights"),
        ("maintain_lake", {"keep_snapshots": 10}, "maintain_lake"),
    ],
)
def test_a_run_by_params_is_about_what_they_name(
    inbox: Inbox, dag_id: str, params: dict[str, Any], subject: str
) -> None:
    alarms.task_failed(context(dag_id, Unavailable("no answer"), params=params, day=None))
    assert (only(inbox).subject, only(inbox).as_of) == (subject, None)
    alarms.task_done(context(dag_id, params=params, day=None))
    assert inbox.open() == []


def test_a_date_by_param_counts_and_a_key_of_a_retrain_too(inbox: Inbox) -> None:
    assert alarms.run_of(context(day=None, params={"as_of": "2013-07-01"})).as_of == DAY
    keyed = context()
    keyed["dag_run"].partition_key = "flight_delay|2013-07-01"
    assert alarms.run_of(keyed).as_of == DAY
    keyed["dag_run"].partition_key = "tomorrow"
    assert alarms.run_of(keyed).as_of is None


def test_no_callback_fails_when_the_mart_is_gone(
    inbox: Inbox, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gone = {"conn_type": "generic", "extra": {"connection_string": "sqlite:////nowhere/mart.db"}}
    monkeypatch.setenv("AIRFLOW_CONN_MART_DB", json.dumps(gone))
    defaults.on_failure(context(error=Unavailable("no answer")))
    alarms.run_failed({**context(), "reason": "task_failure"})
    alarms.task_done(context())
    asyncio.run(alarms.run_late({"dag_run": late("score__flight_delay")}, minutes=90))
    kept = [message for message in caplog.messages if "could not be kept" in message]
    assert [message.split(":")[0] for message in kept] == ["task_failed", "run_failed", "task_done", "tell_late"]
    assert any("What to do" in message for message in caplog.messages), "the task's last words are said all the same"


def test_the_dag_processor_calls_them(inbox: Inbox, bag: Any) -> None:
    """The way Airflow goes when a run has failed."""
    import uuid

    from airflow.api_fastapi.execution_api.datamodels.taskinstance import DagRun, TaskInstance
    from airflow.callbacks.callback_requests import DagCallbackRequest, DagRunContext
    from airflow.dag_processing.processor import _execute_dag_callbacks

    now = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    run = DagRun.model_construct(
        dag_id="score__flight_delay",
        run_id="r:1",
        logical_date=None,
        partition_key="2013-07-01",
        partition_date=now,
        run_after=now,
        start_date=now,
        run_type="asset_triggered",
        state="failed",
        conf=None,
        consumed_asset_events=[],
        triggering_user_name=None,
        data_interval_start=None,
        data_interval_end=None,
        end_date=None,
        clear_number=0,
    )
    last = TaskInstance.model_construct(
        id=uuid.uuid4(),
        task_id="predict",
        dag_id="score__flight_delay",
        run_id="r:1",
        try_number=3,
        map_index=-1,
        dag_version_id=uuid.uuid4(),
    )

    request = DagCallbackRequest.model_construct(
        filepath="score.py",
        dag_id="score__flight_delay",
        run_id="r:1",
        bundle_name="dags-folder",
        bundle_version=None,
        context_from_server=DagRunContext.model_construct(dag_run=run, last_ti=last),
        is_failure_callback=True,
        msg="timed_out",
    )
    _execute_dag_callbacks(bag, request, structlog.get_logger())
    alert = only(inbox)
    assert (alert.as_of, alert.cause) == (DAY, "flight_delay|run_failed|score__flight_delay")
    assert "cut off by its time limit" in alert.what


# --- late runs -------------------------------------------------------------------------------------------------------


def late(dag_id: str, run_type: str = "asset_triggered") -> dict[str, Any]:
    """What a deadline hands over: a run as plain values."""
    return {
        "dag_id": dag_id,
        "dag_run_id": "asset_triggered__1",
        "run_type": run_type,
        "conf": {},
        "partition_key": "2013-07-01",
    }


def test_a_late_run_is_an_alert_and_a_backfill_is_never_late(inbox: Inbox) -> None:
    asyncio.run(alarms.run_late({"dag_run": late("score__flight_delay", "backfill")}, minutes=90))
    assert inbox.open() == []
    asyncio.run(alarms.run_late(context={"dag_run": late("score__flight_delay")}, minutes=90))
    assert only(inbox).cause == "flight_delay|run_late|score__flight_delay"
    assert "has not ended 90 minutes" in only(inbox).what


def test_every_dag_is_watched(bag: Any) -> None:
    for dag in bag.dags.values():
        assert dag.on_failure_callback == [alarms.run_failed], dag.dag_id
        assert not dag.on_success_callback, "a process of its own for every run that ends"
        for task in dag.tasks:
            assert task.on_success_callback == task.on_skipped_callback == [alarms.task_done], task.task_id


def test_every_dag_ends_in_one_task_that_fails_with_what_is_before_it(bag: Any) -> None:
    """So that its end is the end of the run."""
    for dag in bag.dags.values():
        (last,) = [task for task in dag.tasks if not task.downstream_task_ids]
        assert last.trigger_rule in ("all_success", "none_failed"), dag.dag_id
        assert not last.is_mapped, dag.dag_id


def test_only_the_last_task_ends_an_alert(inbox: Inbox, bag: Any) -> None:
    alarms.task_failed(context(error=Unavailable("no answer")))
    score = bag.dags["score__flight_delay"]
    alarms.task_done({**context(), "task": score.get_task("predict")})
    assert only(inbox).kind == "run_failed"
    alarms.task_done({**context(), "task": score.get_task("publish")})
    assert inbox.open() == []


def test_the_loop_has_deadlines(bag: Any) -> None:
    waits = {f"ingest__{name}": source.wait.timeout_minutes for name, source in sources().items()}
    for dag in bag.dags.values():
        minutes = defaults.LATE_MINUTES.get(dag.dag_id.split("_")[0])
        if minutes is None:
            assert not dag.deadline, dag.dag_id
            continue
        (alert,) = dag.deadline
        expected = minutes + waits.get(dag.dag_id, 0)
        assert alert.reference == RunCreated()
        assert alert.interval == dt.timedelta(minutes=expected), dag.dag_id
        assert isinstance(alert.callback, AsyncCallback)
        assert alert.callback.path == "include.evergreen.orchestration.alarms.run_late"
        assert alert.callback.kwargs == {"minutes": expected}


def test_the_triggerer_can_call_a_deadline(inbox: Inbox, bag: Any) -> None:
    from airflow.triggers.callback import CallbackTrigger

    (alert,) = bag.dags["score__flight_delay"].deadline
    kwargs = {**alert.callback.kwargs, "context": {"dag_run": late("score__flight_delay"), "deadline": {"id": "1"}}}

    async def states() -> list[str]:
        return [event.payload["state"] async for event in CallbackTrigger(alert.callback.path, kwargs).run()]

    assert asyncio.run(states()) == ["running", "success"]
    assert only(inbox).kind == "run_late"


# --- channels --------------------------------------------------------------------------------------------------------


def test_channels_are_read() -> None:
    text = json.dumps(
        [
            {"kind": "smtp", "conn_id": "alerts_smtp", "to": ["b@example.org", "a@example.org"]},
            {"kind": "pagerduty", "conn_id": "pager", "severity": "page"},
        ]
    )
    mail, pager = notify.channels(text)
    assert (mail.to, mail.severities) == (("b@example.org", "a@example.org"), ("page", "warn"))
    assert mail.name.startswith("smtp:alerts_smtp:")
    assert "example.org" not in mail.name
    assert replace(mail, to=mail.to[::-1]).name == mail.name != replace(mail, to=mail.to[:1]).name
    assert (pager.name, pager.severities) == ("pagerduty:pager", ("page",))
    assert notify.channels("[]") == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("smtp", "expected a JSON list, found Expecting value"),
        ("{}", "expected a JSON list, found dict"),
        ("[1]", "entry 1: expected an object of .*found 1"),
        ('[{"kind": "fax", "conn_id": "a"}]', "entry 1: kind: expected one of .*found 'fax'"),
        ('[{"kind": "slack", "conn_id": "a"}, {"kind": "slack"}]', "entry 2: conn_id: expected .*found None"),
        ('[{"kind": "slack", "conn_id": "a", "password": "b"}]', r"found \['password'\]"),
        ('[{"kind": "slack", "conn_id": "a", "severity": "high"}]', "severity: expected page or warn, found 'high'"),
        ('[{"kind": "smtp", "conn_id": "a"}]', "to: expected addresses with smtp"),
        ('[{"kind": "smtp", "conn_id": "a", "to": "a@b"}]', "to: expected a list of addresses, found 'a@b'"),
        ('[{"kind": "slack", "conn_id": "a", "to": ["a@b"]}]', "to: expected addresses with smtp and with no other"),
    ],
)
def test_channels_that_are_wrong_say_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        notify.channels(text)


@pytest.mark.parametrize("kind", sorted(notify.KINDS))
def test_a_channel_without_its_provider_names_the_package(kind: str) -> None:
    package = notify.KINDS[kind][2]
    if kind == "smtp":
        assert notify.notifier(kind).__name__ == "SmtpNotifier"
        return
    with pytest.raises(SettingsError, match=rf"channel {kind}: expected the package {package}"):
        notify.notifier(kind)


@pytest.mark.parametrize(
    ("variable", "value"),
    [("CHANNELS", "nonsense"), ("CHANNELS", '[{"kind": "slack", "conn_id": "a"}]'), ("REMIND_HOURS", "soon")],
)
def test_a_wrong_setting_fails_no_task_and_loses_no_alert(
    inbox: Inbox, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, variable: str, value: str
) -> None:
    monkeypatch.setenv(f"AIRFLOW_VAR_EVERGREEN_ALERT_{variable}", value)
    alarms.task_failed(context(error=Unavailable("no answer")))
    assert only(inbox).seen == 1
    assert any(record.levelno == logging.ERROR for record in caplog.records)


def test_a_placeholder_in_the_channels_is_expanded(
    inbox: Inbox, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("AIRFLOW_VAR_EVERGREEN_ALERT_CHANNELS", "${EVERGREEN_ALERT_CHANNELS:-[]}")
    alarms.task_failed(context(error=Unavailable("no answer")))
    assert not [record for record in caplog.records if record.levelno == logging.ERROR]
    monkeypatch.setenv("EVERGREEN_ALERT_CHANNELS", '[{"kind": "fax", "conn_id": "a"}]')
    alarms.task_failed(context(error=Unavailable("no answer"), run_id="another"))
    assert any("found 'fax'" in str(record.exc_info) for record in caplog.records if record.exc_info)
