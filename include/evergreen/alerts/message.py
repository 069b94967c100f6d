"""What a channel is told: pure. Everything that comes from data or people is escaped."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from include.evergreen.alerts.cause import KINDS, fit
from include.evergreen.alerts.delivery import Due

if TYPE_CHECKING:
    from include.evergreen.health.facts import Alert

MAX_TITLE = 150
MAX_LISTED = 20
"""Alerts in one message; the page has the rest."""
WORDS = {"opened": "new", "reminder": "still open", "recovered": "recovered"}
UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff]")
"""Control characters and what reorders or hides text."""


@dataclass(frozen=True)
class Message:
    """A message: `title` is one line, `text` plain, `html` a whole body."""

    title: str
    text: str
    html: str


@dataclass(frozen=True)
class Links:
    """Where pages are. `ui_url`: Airflow's address. `runbooks`: what stands before a runbook's file name."""

    ui_url: str
    runbooks: str = ""

    def page(self, alert: Alert) -> str:
        return f"{self.ui_url.rstrip('/')}{alert.link}"

    def inbox(self) -> str:
        return f"{self.ui_url.rstrip('/')}/evergreen/alerts"

    def runbook(self, alert: Alert) -> str:
        file = alert.runbook.rsplit("/", 1)[-1]
        base = self.runbooks or f"{self.ui_url.rstrip('/')}/evergreen/runbooks"
        return f"{base.rstrip('/')}/{file if self.runbooks else file.removesuffix('.md')}"


def compose(told: Sequence[Due], links: Links) -> Message:
    """One message about one or several alerts. Raises ValueError: about none."""
    if not told:
        raise ValueError("told: expected at least one alert, found none")
    listed, more = told[:MAX_LISTED], len(told) - MAX_LISTED
    rest = f"{more} more: {links.inbox()}" if more > 0 else f"All alerts: {links.inbox()}"
    entries = [_text(one, links) for one in listed]
    bodies = [_html(one, links) for one in listed]
    end = f'<p><a href="{_safe(links.inbox())}">{f"{more} more" if more > 0 else "All alerts"}</a></p>'
    return Message(
        title=_title(told),
        text="\n\n".join([*entries, rest]),
        html=f'<div style="font-family: sans-serif; max-width: 42em">{"<hr>".join(bodies)}{end}</div>',
    )


def headline(one: Due) -> str:
    """`new: flight_delay: drift since 2013-07-01`, one line."""
    alert = one.alert
    since = f" since {alert.since}" if alert.since else ""
    return line(f"{WORDS[one.said]}: {alert.subject}: {KINDS[alert.kind].title}{since}", MAX_TITLE)


def line(text: str, length: int = MAX_TITLE) -> str:
    """`text` as one line of at most `length` visible characters: a name cannot add a header to a mail."""
    return fit(re.sub(r"\s+", " ", UNSEEN.sub(" ", text)), length)


def _title(told: Sequence[Due]) -> str:
    first = told[0]
    if len(told) == 1:
        wake = "" if first.said == "recovered" or first.alert.severity == "warn" else " [page]"
        return line(f"Evergreen{wake} {headline(first)}")
    subjects = list(dict.fromkeys(one.alert.subject for one in told))
    named = ", ".join(subjects[:3]) + (f" and {len(subjects) - 3} others" if len(subjects) > 3 else "")
    ended = sum(one.said == "recovered" for one in told)
    counts = [f"{len(told) - ended} open"] * (ended < len(told)) + [f"{ended} recovered"] * (ended > 0)
    return line(f"Evergreen {len(told)} alerts ({', '.join(counts)}): {named}")


def _facts(one: Due) -> list[tuple[str, str]]:
    alert = one.alert
    facts = [
        ("What", alert.what),
        ("Since", str(alert.since or f"{alert.opened_at:%Y-%m-%d %H:%M} UTC")),
        ("Seen", "once" if alert.seen == 1 else f"{alert.seen} times, last for {alert.as_of or alert.last_seen_at}"),
    ]
    if one.said == "recovered":
        facts.append(("Ended by", alert.resolution or "not recorded"))
    if alert.note:
        facts.append(("Note", f"{alert.note} ({alert.acknowledged_by or 'snoozed'})"))
    return [(name, UNSEEN.sub(" ", value)) for name, value in facts]


def _text(one: Due, links: Links) -> str:
    facts = [f"{name}: {value}" for name, value in _facts(one)]
    todo = [] if one.said == "recovered" else [f"What to do: {links.runbook(one.alert)}"]
    return "\n".join([headline(one), *facts, f"Page: {links.page(one.alert)}", *todo])


def _html(one: Due, links: Links) -> str:
    rows = "".join(
        f'<tr><th align="left" valign="top">{name}</th><td>{_safe(value)}</td></tr>' for name, value in _facts(one)
    )
    anchors = [f'<a href="{_safe(links.page(one.alert))}">Open the page</a>']
    if one.said != "recovered":
        anchors.append(f'<a href="{_safe(links.runbook(one.alert))}">What to do</a>')
    return f"<h3>{_safe(headline(one))}</h3><table cellpadding='4'>{rows}</table><p>{' &middot; '.join(anchors)}</p>"


def _safe(text: str) -> str:
    return html.escape(text, quote=True)
