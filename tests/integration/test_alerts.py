"""Alerts by mail: Airflow's own notifier on its own connection, against a real SMTP server on loopback."""

from __future__ import annotations

import datetime as dt
import email
import email.policy
import json
import logging
import threading
from collections.abc import Iterator
from email.message import EmailMessage
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP

from include.evergreen.alerts.cause import Occurrence, of_failed_run, of_verdict
from include.evergreen.alerts.delivery import RETRY
from include.evergreen.alerts.inbox import Inbox
from include.evergreen.alerts.message import Links
from include.evergreen.errors import Unavailable
from include.evergreen.mart.store import Mart
from tests.conftest import free_port

pytestmark = pytest.mark.allow_hosts(["127.0.0.1", "::1"])

DAY = dt.date(2013, 7, 1)
CHANNEL = '[{"kind": "smtp", "conn_id": "alerts_smtp", "to": ["oncall@example.org", "owner@example.org"]}]'
LINKS = Links("http://airflow.example.org")
REMIND = dt.timedelta(hours=24)
HOSTILE = "</td><script>alert(1)</script>{{ 6 * 7 }}{% for x in ().__class__.__bases__ %}{% endfor %}"


class Mailbox:
    """A handler that keeps what it is sent."""

    def __init__(self) -> None:
        self.mails: list[EmailMessage] = []
        self.envelopes: list[tuple[str, list[str]]] = []

    async def handle_DATA(self, server: SMTP, session: Any, envelope: Any) -> str:
        self.envelopes.append((envelope.mail_from, list(envelope.rcpt_tos)))
        parsed = email.message_from_bytes(envelope.content, policy=email.policy.default)
        assert isinstance(parsed, EmailMessage)
        self.mails.append(parsed)
        return "250 OK"

    @property
    def subjects(self) -> list[str]:
        return [str(mail["Subject"]) for mail in self.mails]

    def body(self, number: int = -1) -> str:
        (part,) = [part for part in self.mails[number].walk() if part.get_content_type() == "text/html"]
        content = part.get_content()
        assert isinstance(content, str)
        return content


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def mailbox() -> Mailbox:
    return Mailbox()


class Server:
    """An SMTP server that can be stopped and started again."""

    def __init__(self, mailbox: Mailbox, port: int) -> None:
        self.mailbox, self.port = mailbox, port
        self.running: Controller | None = None

    def start(self) -> None:
        self.running = Controller(self.mailbox, hostname="127.0.0.1", port=self.port)
        self.running.start()

    def stop(self) -> None:
        if self.running:
            self.running.stop()
            self.running = None


@pytest.fixture
def server(mailbox: Mailbox, port: int) -> Iterator[Server]:
    made = Server(mailbox, port)
    made.start()
    yield made
    made.stop()


class Clock:
    def __init__(self) -> None:
        self.now = dt.datetime(2026, 1, 1, 3, tzinfo=dt.UTC)

    def __call__(self) -> dt.datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def inbox(tmp_path: Path, clock: Clock, port: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Inbox]:
    extra = {"from_email": "evergreen@example.org", "disable_ssl": True, "disable_tls": True, "timeout": 5}
    connection = {"conn_type": "smtp", "host": "127.0.0.1", "port": port, "extra": extra}
    monkeypatch.setenv("AIRFLOW_CONN_ALERTS_SMTP", json.dumps(connection))
    mart = Mart(f"sqlite:///{tmp_path / 'mart.db'}")
    mart.create()
    yield Inbox(mart, clock)
    mart.engine.dispose()


def tell(inbox: Inbox, channels: str = CHANNEL) -> None:
    from include.evergreen.orchestration import notify

    notify.tell(inbox, LINKS, REMIND, lambda: notify.channels(channels))


def drift(n: int = 0, model: str = "flight_delay", reason: str = "3 of 12 columns") -> Occurrence:
    day = DAY + dt.timedelta(days=n)
    found = of_verdict(model, day, "covariate_drift", ["humid", "wind_speed"], [reason], f"run-{n}")
    assert found is not None
    return found


def ok(inbox: Inbox, n: int) -> None:
    day = DAY + dt.timedelta(days=n)
    inbox.recover("flight_delay", ["drift"], day, f"the verdict on {day} is ok")


def test_an_episode_is_two_mails_and_reminders(inbox: Inbox, clock: Clock, server: Server, mailbox: Mailbox) -> None:
    inbox.raise_(drift())
    tell(inbox)
    assert mailbox.subjects == ["Evergreen new: flight_delay: drift since 2013-07-01"]
    assert mailbox.envelopes == [("evergreen@example.org", ["oncall@example.org", "owner@example.org"])]
    body = mailbox.body()
    for part in (
        "Covariate drift in humid, wind_speed on 2013-07-01: 3 of 12 columns",
        "2013-07-01",
        "once",
        'href="http://airflow.example.org/evergreen/reports/flight_delay/2013-07-01"',
        'href="http://airflow.example.org/evergreen/runbooks/drift-verdict"',
    ):
        assert part in body

    for hour in range(1, 24):
        clock.now += dt.timedelta(hours=1)
        inbox.raise_(drift(hour))
        tell(inbox)
    assert len(mailbox.mails) == 1, "repeats are folded"

    clock.now += dt.timedelta(hours=1)
    tell(inbox)
    assert mailbox.subjects[1:] == ["Evergreen still open: flight_delay: drift since 2013-07-01"]
    assert "24 times, last for 2013-07-24" in mailbox.body()

    ok(inbox, 24)
    tell(inbox)
    tell(inbox)
    assert mailbox.subjects[2:] == ["Evergreen recovered: flight_delay: drift since 2013-07-01"]
    assert "the verdict on 2013-07-25 is ok" in mailbox.body()


def test_a_hundred_occurrences_are_one_mail(inbox: Inbox, server: Server, mailbox: Mailbox) -> None:
    def work(number: int) -> None:
        for n in range(25):
            inbox.raise_(of_failed_run("score__flight_delay", DAY, f"run-{number}-{n}", "boom", "publish"))
            tell(inbox)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [alert.seen for alert in inbox.open()] == [100]
    assert mailbox.subjects == ["Evergreen [page] new: flight_delay: run failed since 2013-07-01"]


def test_a_dead_server_loses_nothing(
    inbox: Inbox, clock: Clock, server: Server, mailbox: Mailbox, caplog: pytest.LogCaptureFixture
) -> None:
    server.stop()
    inbox.raise_(drift())
    with caplog.at_level(logging.ERROR, "evergreen"):
        tell(inbox)
    assert "did not take 1 alert(s): ConnectionRefusedError" in caplog.messages[-1]
    assert len(inbox.open()) == 1

    server.start()
    clock.now += RETRY
    inbox.raise_(drift(1))
    tell(inbox)
    assert mailbox.subjects == ["Evergreen new: flight_delay: drift since 2013-07-01"]
    assert "2 times, last for 2013-07-02" in mailbox.body()

    server.stop()
    ok(inbox, 1)
    tell(inbox)
    server.start()
    clock.now += RETRY
    tell(inbox)
    assert mailbox.subjects[1:] == ["Evergreen recovered: flight_delay: drift since 2013-07-01"]


def test_a_dead_channel_stops_no_other(
    inbox: Inbox, server: Server, mailbox: Mailbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    nobody = {"conn_type": "smtp", "host": "127.0.0.1", "port": free_port(), "extra": {"from_email": "a@example.org"}}
    monkeypatch.setenv("AIRFLOW_CONN_DEAD_SMTP", json.dumps(nobody))
    dead = {"kind": "smtp", "conn_id": "dead_smtp", "to": ["a@example.org"]}
    absent = {"kind": "slack", "conn_id": "slack_alerts"}
    unknown = {"kind": "smtp", "conn_id": "no_such_connection", "to": ["a@example.org"]}
    inbox.raise_(drift())
    tell(inbox, json.dumps([dead, absent, unknown, *json.loads(CHANNEL)]))
    assert len(mailbox.mails) == 1


def test_hostile_text_runs_nowhere(inbox: Inbox, clock: Clock, server: Server, mailbox: Mailbox) -> None:
    """Not as a template of the notifier, not as markup of the mail, not as a header."""
    inbox.raise_(drift(model=f"m\r\nBcc: all@example.org {HOSTILE}", reason=HOSTILE))
    tell(inbox)
    (alert,) = inbox.open()
    inbox.snooze(alert.id, HOSTILE, clock.now + dt.timedelta(hours=30), HOSTILE)
    clock.now += dt.timedelta(hours=31)
    tell(inbox)
    assert [recipients for _, recipients in mailbox.envelopes] == [["oncall@example.org", "owner@example.org"]] * 2
    for number, mail in enumerate(mailbox.mails):
        assert "Bcc" not in mail
        assert "Bcc: all@example.org" in str(mail["Subject"])
        body = mailbox.body(number)
        assert "<script" not in body
        assert body.count("</table>") == 1
        assert "{{ 6 * 7 }}" in body
        assert "{% endfor %}" in body
    assert "Note" in mailbox.body()


def test_many_causes_are_one_mail(inbox: Inbox, server: Server, mailbox: Mailbox) -> None:
    for n in range(30):
        inbox.raise_(drift(model=f"model_{n:02}"))
    tell(inbox)
    assert mailbox.subjects == ["Evergreen 30 alerts (30 open): model_00, model_01, model_02 and 27 others"]
    assert "10 more" in mailbox.body()


def test_a_pager_is_only_told_what_wakes_somebody(inbox: Inbox, server: Server, mailbox: Mailbox) -> None:
    inbox.raise_(drift())
    inbox.raise_(of_failed_run("score__flight_delay", DAY, "run", "boom", "publish"))
    tell(inbox, json.dumps([{**json.loads(CHANNEL)[0], "severity": "page"}]))
    assert mailbox.subjects == ["Evergreen [page] new: flight_delay: run failed since 2013-07-01"]


def test_a_failed_task_reaches_the_mailbox(
    inbox: Inbox, server: Server, mailbox: Mailbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the callback that Airflow calls to the mail, by connections and variables alone."""
    from include.evergreen.orchestration import alarms, connections

    for name in (connections.CATALOG, connections.MART, connections.REGISTRY):
        extra = {"connection_string": f"sqlite:///{tmp_path / 'mart.db'}"}
        monkeypatch.setenv(f"AIRFLOW_CONN_{name.upper()}", json.dumps({"conn_type": "generic", "extra": extra}))
    monkeypatch.setenv("AIRFLOW_CONN_LAKE_S3", json.dumps({"conn_type": "aws", "extra": {}}))
    for name, value in (
        ("UI_URL", "http://airflow.example.org"),
        ("ALERT_CHANNELS", CHANNEL),
        ("ALERT_REMIND_HOURS", "24"),
        ("ALERT_RUNBOOK_URL", "https://runbooks.example.org"),
    ):
        monkeypatch.setenv(f"AIRFLOW_VAR_EVERGREEN_{name}", value)
    run = SimpleNamespace(
        dag_id="score__flight_delay", run_id="r", partition_key="2013-07-01", run_type="scheduled", conf=None
    )
    context = {"dag_run": run, "run_id": "r", "params": {}, "ti": SimpleNamespace(task_id="publish")}
    connections.platform.cache_clear()
    try:
        alarms.task_failed({**context, "exception": Unavailable("the lake did not answer")})
        alarms.task_done({**context, "task": SimpleNamespace(downstream_task_ids=set())})
    finally:
        connections.platform.cache_clear()
    assert mailbox.subjects == [
        "Evergreen [page] new: flight_delay: run failed since 2013-07-01",
        "Evergreen recovered: flight_delay: run failed since 2013-07-01",
    ]
    assert "the lake did not answer" in mailbox.body(0)
    assert 'href="https://runbooks.example.org/scoring-failed.md"' in mailbox.body(0)
