"""Channels of alerts: Airflow's own notifiers, by connection. The inbox and the log are always there.

A channel that is dead or badly set up loses no alert and fails no task: it is said in the log, and tried again with the
next alert or the end of any run.
"""

from __future__ import annotations

import contextvars
import datetime as dt
import hashlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any

from include.evergreen.alerts.cause import Severity
from include.evergreen.alerts.delivery import Due
from include.evergreen.alerts.message import Links, Message, compose, headline, line
from include.evergreen.errors import SettingsError

if TYPE_CHECKING:
    from include.evergreen.alerts.inbox import Inbox

log = logging.getLogger("evergreen")

CHANNELS, REMIND_HOURS, RUNBOOK_URL = (
    "evergreen_alert_channels",
    "evergreen_alert_remind_hours",
    "evergreen_alert_runbook_url",
)
"""Variables."""
LOG = "log"
PATIENCE = 10.0
"""Seconds for all channels of one delivery: a silent one holds no task, and Airflow gives the callbacks of a DAG 50."""
MAIL_SECONDS = 4
"""Waited for each answer of a mail server."""
KINDS = {
    "smtp": ("airflow.providers.smtp.notifications.smtp", "SmtpNotifier", "apache-airflow-providers-smtp"),
    "slack": (
        "airflow.providers.slack.notifications.slack_webhook",
        "SlackWebhookNotifier",
        "apache-airflow-providers-slack",
    ),
    "pagerduty": (
        "airflow.providers.pagerduty.notifications.pagerduty",
        "PagerdutyNotifier",
        "apache-airflow-providers-pagerduty",
    ),
    "apprise": (
        "airflow.providers.apprise.notifications.apprise",
        "AppriseNotifier",
        "apache-airflow-providers-apprise",
    ),
}
"""Kind of a channel -> module, notifier, the package that brings it."""
FIELDS = {"kind", "conn_id", "to", "severity"}


@dataclass(frozen=True)
class Channel:
    """One entry of the variable. `to`: addresses of an smtp channel. `severity` page: only what wakes somebody."""

    kind: str
    conn_id: str
    to: tuple[str, ...] = ()
    severity: Severity = "warn"

    @property
    def name(self) -> str:
        """What the inbox keeps its messages under; addresses are none of its business."""
        digest = hashlib.sha256(",".join(sorted(self.to)).encode()).hexdigest()[:8]
        return f"{self.kind}:{self.conn_id}:{digest}" if self.to else f"{self.kind}:{self.conn_id}"

    @property
    def severities(self) -> tuple[Severity, ...]:
        return ("page",) if self.severity == "page" else ("page", "warn")


def channels(text: str) -> list[Channel]:
    """The channels in the value of the variable: a JSON list of {kind, conn_id, to, severity}.

    Raises:
        SettingsError: names the entry, the field and what would be right.
    """
    try:
        entries = json.loads(text)
    except ValueError as error:
        raise SettingsError(f"variable {CHANNELS}: expected a JSON list, found {error}") from error
    if not isinstance(entries, list):
        raise SettingsError(f"variable {CHANNELS}: expected a JSON list, found {type(entries).__name__}")
    return [_channel(number, entry) for number, entry in enumerate(entries, 1)]


def _channel(number: int, entry: Any) -> Channel:
    where = f"variable {CHANNELS}, entry {number}"
    if not isinstance(entry, dict) or not set(entry) <= FIELDS:
        found = sorted(set(entry) - FIELDS) if isinstance(entry, dict) else entry
        raise SettingsError(f"{where}: expected an object of {sorted(FIELDS)}, found {found!r}")
    kind, conn_id, to = entry.get("kind"), entry.get("conn_id"), entry.get("to", [])
    severity = entry.get("severity", "warn")
    if kind not in KINDS:
        raise SettingsError(f"{where}: kind: expected one of {sorted(KINDS)}, found {kind!r}")
    if not isinstance(conn_id, str) or not conn_id:
        raise SettingsError(f"{where}: conn_id: expected the id of a connection, found {conn_id!r}")
    if severity not in ("page", "warn"):
        raise SettingsError(f"{where}: severity: expected page or warn, found {severity!r}")
    if not isinstance(to, list) or not all(isinstance(one, str) and "@" in one for one in to):
        raise SettingsError(f"{where}: to: expected a list of addresses, found {to!r}")
    if (kind == "smtp") != bool(to):
        raise SettingsError(f"{where}: to: expected addresses with smtp and with no other kind, found {to!r}")
    return Channel(kind, conn_id, tuple(to), severity)


def notifier(kind: str) -> Any:
    """The notifier's class. Raises SettingsError: its provider is not installed."""
    module, name, package = KINDS[kind]
    try:
        found = getattr(import_module(module), name)
        return _impatient(found) if kind == "smtp" else found
    except ImportError as error:
        raise SettingsError(f"channel {kind}: expected the package {package}, found: {error}. Install it") from error


def _impatient(base: Any) -> Any:
    """The mail notifier with one short try: its own six of 30 s each go on after they were given up, and mail twice."""
    from airflow.providers.smtp.hooks.smtp import SmtpHook

    class Hook(SmtpHook):  # type: ignore[misc]
        smtp_retry_limit = 0
        timeout = MAIL_SECONDS

    class SmtpNotifier(base):  # type: ignore[misc]
        @cached_property
        def hook(self) -> Hook:
            return Hook(smtp_conn_id=self.smtp_conn_id, auth_type=self.auth_type)

    return SmtpNotifier


def deliver() -> None:
    """Tell every channel what it does not know yet. Never raises."""
    try:
        from airflow.sdk import Variable

        from include.evergreen.alerts.inbox import Inbox
        from include.evergreen.orchestration.connections import platform
        from include.evergreen.orchestration.settings_file import expand

        def variable(name: str, default: str) -> str:
            return str(expand(Variable.get(name, default=default), os.environ, f"variable {name}"))

        inbox = Inbox(platform().mart)
        links = Links(platform().settings.ui_url, variable(RUNBOOK_URL, ""))
        remind = _hours(variable(REMIND_HOURS, "24"))
        tell(inbox, links, remind, lambda: channels(variable(CHANNELS, "[]")))
    except Exception:
        log.exception("alerts could not be sent; they are in the inbox")


def _hours(text: str) -> dt.timedelta:
    try:
        hours = float(text)
        if not 0 < hours < 24 * 365:
            raise ValueError(text)
    except ValueError as error:
        raise SettingsError(f"variable {REMIND_HOURS}: expected hours above 0, found {text!r}") from error
    return dt.timedelta(hours=hours)


def tell(inbox: Inbox, links: Links, remind: dt.timedelta, configured: Any) -> None:
    """Tell the log, then the channels that `configured()` gives. A channel that fails is said in the log."""
    for one in inbox.claim(LOG, remind, burst=None):
        say = log.info if one.said == "recovered" else log.warning
        say("alert %s", line(f"{headline(one)}. {one.alert.what} Page: {links.page(one.alert)}", 1_000))
        inbox.settle(LOG, [one], arrived=True)
    until = time.monotonic() + PATIENCE
    for channel in configured():
        while time.monotonic() < until and (told := inbox.claim(channel.name, remind, channel.severities)):
            arrived = _send(channel, told, links, until)
            inbox.settle(channel.name, told, arrived)
            if not arrived:
                break


def _send(channel: Channel, told: Sequence[Due], links: Links, until: float) -> bool:
    try:
        for send in _notifications(channel, told, compose(told, links), links):
            _by(until, send)
    except Exception as error:
        log.error("channel %s did not take %d alert(s): %s: %s", channel.name, len(told), type(error).__name__, error)
        return False
    return True


def _by(until: float, send: Callable[[], None]) -> None:
    """Call `send`, given up at `until` (monotonic clock): the clients of channels wait for minutes, and try again.

    Raises TimeoutError, and what `send` raises.
    """
    failed: list[Exception] = []
    context = contextvars.copy_context()

    def run() -> None:
        try:
            context.run(send)
        except Exception as error:
            failed.append(error)

    seconds = max(0.0, until - time.monotonic())
    sending = threading.Thread(target=run, name="evergreen-channel", daemon=True)
    sending.start()
    sending.join(seconds)
    if sending.is_alive():
        raise TimeoutError(f"expected an answer within {seconds:.0f} s, found none")
    if failed:
        raise failed[0]


def _notifications(channel: Channel, told: Sequence[Due], message: Message, links: Links) -> list[Any]:
    """Calls that send: one for all alerts, or one for each where the channel keeps count of them itself.

    A notifier runs its texts as templates: ours come in as values, so that data cannot be a template.
    """
    made = notifier(channel.kind)

    def ready(values: dict[str, Any], **fields: Any) -> Any:
        return lambda: made(**fields)(dict(values))

    values = {"evergreen_title": message.title, "evergreen_text": message.text, "evergreen_html": message.html}
    title, text = "{{ evergreen_title }}", "{{ evergreen_text }}"
    if channel.kind == "smtp":
        html = "{{ evergreen_html }}"
        return [ready(values, smtp_conn_id=channel.conn_id, to=list(channel.to), subject=title, html_content=html)]
    if channel.kind == "slack":
        values["evergreen_text"] = _slack(f"{message.title}\n{message.text}")
        return [ready(values, slack_webhook_conn_id=channel.conn_id, text=text)]
    if channel.kind == "apprise":
        return [ready(values, apprise_conn_id=channel.conn_id, title=title, body=text)]
    return [
        ready(
            {"evergreen_title": headline(one), "evergreen_text": compose([one], links).text},
            pagerduty_events_conn_id=channel.conn_id,
            summary=title,
            severity="critical" if one.alert.severity == "page" else "warning",
            source="evergreen",
            action="resolve" if one.said == "recovered" else "trigger",
            dedup_key=f"evergreen-alert-{one.alert.id}",
            custom_details=text,
        )
        for one in told
    ]


def _slack(text: str) -> str:
    """Slack's markup has three characters; escaped, no text can call a channel or fake a link."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
