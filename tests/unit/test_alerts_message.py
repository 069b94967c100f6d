"""What a channel is told, and when."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest

from include.evergreen.alerts.delivery import RETRY, Due, Said, Told, due
from include.evergreen.alerts.message import MAX_LISTED, MAX_TITLE, Links, compose, headline, line
from include.evergreen.health.facts import Alert

DAY = dt.date(2013, 7, 1)
NOW = dt.datetime(2026, 1, 2, 3, 4, tzinfo=dt.UTC)
HOUR = dt.timedelta(hours=1)
REMIND = 24 * HOUR
LINKS = Links("http://airflow.example.org/")
HOSTILE = "</td></table><script>alert(1)</script><img src=x onerror=\"alert('2')\">"


def alert(**changes: Any) -> Alert:
    values: dict[str, Any] = {
        "id": 7,
        "cause": "flight_delay|drift",
        "subject": "flight_delay",
        "kind": "drift",
        "severity": "warn",
        "what": "Covariate drift in humid on 2013-07-03: 3 of 12 columns",
        "since": DAY,
        "as_of": DAY + dt.timedelta(days=2),
        "link": "/evergreen/reports/flight_delay/2013-07-03",
        "runbook": "docs/runbooks/drift-verdict.md",
        "seen": 3,
        "opened_at": NOW - 48 * HOUR,
        "last_seen_at": NOW,
    }
    return Alert(**{**values, **changes})


def told(said: Said = "opened", **changes: Any) -> Due:
    return Due(alert(**changes), said)


# --- what ------------------------------------------------------------------------------------------------------------


def test_a_message_says_what_since_when_how_often_where_and_what_to_do() -> None:
    message = compose([told()], LINKS)
    assert message.title == "Evergreen new: flight_delay: drift since 2013-07-01"
    assert message.text.splitlines() == [
        "new: flight_delay: drift since 2013-07-01",
        "What: Covariate drift in humid on 2013-07-03: 3 of 12 columns",
        "Since: 2013-07-01",
        "Seen: 3 times, last for 2013-07-03",
        "Page: http://airflow.example.org/evergreen/reports/flight_delay/2013-07-03",
        "What to do: http://airflow.example.org/evergreen/runbooks/drift-verdict",
        "",
        "All alerts: http://airflow.example.org/evergreen/alerts",
    ]
    for part in ("Covariate drift in humid", "3 times", 'href="http://airflow.example.org/evergreen/runbooks/'):
        assert part in message.html


def test_an_end_says_what_ended_it_and_asks_for_nothing() -> None:
    message = compose([told("recovered", resolved_at=NOW, resolution="the verdict is ok", severity="page")], LINKS)
    assert message.title == "Evergreen recovered: flight_delay: drift since 2013-07-01"
    assert "Ended by: the verdict is ok" in message.text
    assert "What to do" not in message.text + message.html


def test_what_wakes_somebody_says_so() -> None:
    assert compose([told(severity="page")], LINKS).title.startswith("Evergreen [page] new: ")
    assert headline(told("reminder")).startswith("still open: ")


def test_an_alert_without_dates_says_when_it_was_seen() -> None:
    text = compose([told(since=None, as_of=None, seen=2)], LINKS).text
    assert "Since: 2025-12-31 03:04 UTC" in text
    assert "Seen: 2 times, last for 2026-01-02" in text
    assert "Seen: once" in compose([told(seen=1)], LINKS).text


def test_several_alerts_are_one_message() -> None:
    names = ["a", "b", "c", "d", "e"]
    message = compose([told(subject=name) for name in names] + [told("recovered", resolved_at=NOW)], LINKS)
    assert message.title == "Evergreen 6 alerts (5 open, 1 recovered): a, b, c and 3 others"
    assert [name for name in names if f"new: {name}: drift" in message.text] == names
    assert compose([told("recovered")] * 2, LINKS).title == "Evergreen 2 alerts (2 recovered): flight_delay"


def test_a_long_list_ends_in_a_link() -> None:
    message = compose([told(subject=f"model_{n:03}") for n in range(300)], LINKS)
    assert message.text.count("What to do") == MAX_LISTED
    assert f"{300 - MAX_LISTED} more: http://airflow.example.org/evergreen/alerts" in message.text
    assert f"{300 - MAX_LISTED} more</a>" in message.html


def test_a_message_about_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one alert"):
        compose([], LINKS)


def test_runbooks_can_stand_elsewhere() -> None:
    links = Links("http://a", "https://git.example.org/runbooks/")
    assert links.runbook(alert()) == "https://git.example.org/runbooks/drift-verdict.md"


@pytest.mark.parametrize("field", ["subject", "what", "note", "resolution", "link", "acknowledged_by"])
def test_hostile_text_is_escaped(field: str) -> None:
    for said in ("opened", "recovered"):
        changes = {"note": "n", field: HOSTILE}
        message = compose([told(said, **changes)], LINKS)  # type: ignore[arg-type]
        assert "<script" not in message.html
        assert "<img" not in message.html
        assert message.html.count("</table>") == 1


def test_a_title_is_one_visible_line() -> None:
    message = compose([told(subject="a\r\nBcc: all@example.org\u202e\x1b[31m" + "x" * 500)], LINKS)
    assert message.title.isprintable()
    assert len(message.title) <= MAX_TITLE
    assert "\u202e" not in message.text + message.html
    assert line("a\n\tb\x00c") == "a b c"


# --- when ------------------------------------------------------------------------------------------------------------

OPENED = Told("opened", NOW - HOUR)
OLD = Told("opened", NOW - REMIND)
ENDED = {"resolved_at": NOW}
MINE = {"acknowledged_at": NOW - HOUR, "acknowledged_by": "oncall"}


@pytest.mark.parametrize(
    ("changes", "known", "said"),
    [
        ({}, Told(), "opened"),
        ({}, OPENED, None),
        ({}, OLD, "reminder"),
        ({}, Told("reminder", NOW - REMIND), "reminder"),
        ({}, Told("reminder", NOW - HOUR), None),
        (MINE, OLD, None),
        (MINE, Told(), None),
        ({"snoozed_until": NOW + HOUR}, OLD, None),
        ({"snoozed_until": NOW}, OLD, "reminder"),
        (ENDED, Told(), None),
        (ENDED, OPENED, "recovered"),
        ({**ENDED, **MINE, "snoozed_until": NOW + HOUR}, OPENED, "recovered"),
        (ENDED, Told("recovered", NOW - HOUR), None),
        ({}, Told(tried_at=NOW - RETRY / 2), None),
        ({}, Told(tried_at=NOW - RETRY), "opened"),
        (ENDED, Told("opened", NOW - HOUR, tried_at=NOW - RETRY / 2), None),
        (ENDED, Told("opened", NOW - HOUR, tried_at=NOW - RETRY), "recovered"),
    ],
)
def test_when_a_channel_is_told(changes: dict[str, Any], known: Told, said: str | None) -> None:
    assert due(alert(**changes), known, NOW, REMIND) == said
    assert Told.read(known.write()) == known


def test_a_channel_that_was_never_told_knows_nothing() -> None:
    assert Told.read({}) == Told()
