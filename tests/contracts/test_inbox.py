"""The inbox of alerts: one suite over SQLite and PostgreSQL. Time is given, so that nothing waits."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from include.evergreen.alerts.cause import MAX_SUBJECT, Occurrence, of_failed_run, of_stopped_partition, of_verdict
from include.evergreen.alerts.delivery import BURST, RETRY, WINDOW
from include.evergreen.alerts.inbox import MAX_NOTE, Inbox
from include.evergreen.errors import NotFound, Refused
from include.evergreen.mart.store import Mart
from include.evergreen.specs import PROJECT
from tests.contracts.test_mart import at_once

DAY = dt.date(2013, 7, 1)
START = dt.datetime(2026, 1, 1, 3, tzinfo=dt.UTC)
REMIND = dt.timedelta(hours=24)
SECOND, HOUR = dt.timedelta(seconds=1), dt.timedelta(hours=1)


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> dt.datetime:
        return self.now

    def move(self, by: dt.timedelta) -> None:
        self.now += by


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def inbox(uri: str, clock: Clock) -> Iterator[Inbox]:
    mart = Mart(uri)
    mart.create()
    yield Inbox(mart, clock)
    mart.engine.dispose()


def day(n: int) -> dt.date:
    return DAY + dt.timedelta(days=n)


def drift(n: int = 0, run: str | None = None, model: str = "flight_delay", kind: str = "covariate_drift") -> Occurrence:
    found = of_verdict(model, day(n), kind, ["humid"], [f"reason of day {n}"], run or f"run-{n}")
    assert found is not None
    return found


def recovered(inbox: Inbox, n: int, **changes: Any) -> list[int]:
    asked: dict[str, Any] = {"subject": "flight_delay", "kinds": ["drift"], "as_of": day(n), "by": f"ok on day {n}"}
    return [alert.id for alert in inbox.recover(**{**asked, **changes})]


# --- one alert per cause ---------------------------------------------------------------------------------------------


def test_an_occurrence_opens_an_alert_that_says_everything(inbox: Inbox) -> None:
    change = inbox.raise_(drift())
    assert change.kind == "opened"
    (alert,) = inbox.open()
    assert change.alert == alert == inbox.get(alert.id)
    assert (alert.cause, alert.subject, alert.kind, alert.severity) == (
        "flight_delay|drift",
        "flight_delay",
        "drift",
        "warn",
    )
    assert alert.what == "Covariate drift in humid on 2013-07-01: reason of day 0"
    assert (alert.since, alert.as_of, alert.seen) == (DAY, DAY, 1)
    assert alert.link == "/evergreen/reports/flight_delay/2013-07-01"
    assert (PROJECT / alert.runbook).is_file()
    assert (alert.opened_at, alert.last_seen_at, alert.resolved_at) == (START, START, None)


def test_repeats_are_folded(inbox: Inbox, clock: Clock) -> None:
    first = inbox.raise_(drift()).alert
    for n in (1, 2):
        clock.move(24 * HOUR)
        assert inbox.raise_(drift(n, kind="label_drift")).kind == "repeated"
    (alert,) = inbox.open()
    assert first is not None
    assert (alert.id, alert.seen, alert.since, alert.as_of) == (first.id, 3, DAY, day(2))
    assert "Label drift" in alert.what
    assert (alert.opened_at, alert.last_seen_at) == (START, clock.now)


def test_a_retry_of_a_run_counts_once(inbox: Inbox) -> None:
    for occurrence in (drift(0), drift(0), drift(1), drift(0), drift(1)):
        inbox.raise_(occurrence)
    assert [alert.seen for alert in inbox.open()] == [2]
    assert inbox.raise_(drift(1, run="another")).kind == "repeated", "another run of that date is another sighting"


def test_every_order_of_the_same_runs_ends_alike(inbox: Inbox) -> None:
    for order in ([0, 1, 2], [2, 0, 1, 2, 0], [1, 0, 2, 1]):
        model = f"model_{order[0]}"
        for n in order:
            inbox.raise_(drift(n, model=model))
        (alert,) = inbox.open(model)
        assert (alert.as_of, alert.what) == (day(2), "Covariate drift in humid on 2013-07-03: reason of day 2")


def test_other_causes_are_other_alerts(inbox: Inbox) -> None:
    inbox.raise_(drift())
    inbox.raise_(drift(model="other"))
    inbox.raise_(drift(kind="broken_data"))
    for table in ("actuals", "weather"):
        inbox.raise_(of_stopped_partition("nyc_flights", table, DAY, ["no rows"], "run"))
    for verb in ("score", "monitor"):
        inbox.raise_(of_failed_run(f"{verb}__flight_delay", DAY, "run", "boom", "publish"))
    assert sorted(alert.cause for alert in inbox.open()) == [
        "flight_delay|broken_data",
        "flight_delay|drift",
        "flight_delay|run_failed|monitor__flight_delay",
        "flight_delay|run_failed|score__flight_delay",
        "nyc_flights|partition_stopped|actuals",
        "nyc_flights|partition_stopped|weather",
        "other|drift",
    ]
    severities = [alert.severity for alert in inbox.open()]
    assert severities == sorted(severities), "what wakes somebody comes first"
    assert {alert.subject for alert in inbox.open("nyc_flights")} == {"nyc_flights"}


def test_a_hundred_at_once_are_one_alert_and_one_message(inbox: Inbox) -> None:
    messages: list[int] = []

    def work(number: int) -> None:
        for n in range(25):
            inbox.raise_(drift(0, run=f"run-{number}-{n}"))
            told = inbox.claim("mail", REMIND)
            messages.extend(one.alert.id for one in told)
            inbox.settle("mail", told, arrived=True)

    assert at_once(work) == []
    (alert,) = inbox.open()
    assert (alert.seen, messages) == (100, [alert.id])


# --- recovery --------------------------------------------------------------------------------------------------------


def test_recovery_ends_an_alert_and_the_next_occurrence_is_a_new_one(inbox: Inbox, clock: Clock) -> None:
    first = inbox.raise_(drift()).alert
    assert first is not None
    clock.move(HOUR)
    assert recovered(inbox, 1) == [first.id]
    assert recovered(inbox, 1) == [], "told once"
    assert inbox.open() == []
    ended = inbox.get(first.id)
    assert (ended.resolved_at, ended.resolution) == (clock.now, "ok on day 1")
    change = inbox.raise_(drift(2))
    assert change.alert is not None
    assert (change.kind, change.alert.since, change.alert.seen) == ("opened", day(2), 1)
    assert [alert.id for alert in inbox.history("flight_delay")] == [change.alert.id, first.id]


def test_recovery_ends_only_what_it_names(inbox: Inbox) -> None:
    inbox.raise_(drift())
    inbox.raise_(drift(model="other"))
    inbox.raise_(drift(kind="performance_drop"))
    inbox.raise_(of_stopped_partition("nyc_flights", "actuals", DAY, ["r"], "run"))
    inbox.raise_(of_stopped_partition("nyc_flights", "weather", DAY, ["r"], "run"))
    assert len(recovered(inbox, 0)) == 1
    assert recovered(inbox, 0, kinds=[]) == []
    assert len(recovered(inbox, 0, subject="nyc_flights", kinds=["partition_stopped"], part="weather")) == 1
    assert sorted(alert.cause for alert in inbox.open()) == [
        "flight_delay|performance_drop",
        "nyc_flights|partition_stopped|actuals",
        "other|drift",
    ]


def test_a_backfill_ends_and_opens_nothing_newer(inbox: Inbox) -> None:
    inbox.raise_(drift(5))
    assert recovered(inbox, 4) == []
    assert inbox.raise_(drift(4)).kind == "unchanged"
    (alert,) = inbox.open()
    assert (alert.as_of, alert.seen) == (day(5), 1)
    assert recovered(inbox, 6) == [alert.id]
    for n in (4, 5):
        assert inbox.raise_(drift(n, run=f"backfill-{n}")).kind == "unchanged"
    assert inbox.open() == []
    assert inbox.raise_(drift(6, run="second look")).kind == "opened", "the same date, judged again"


def test_a_retry_after_the_recovery_reopens_nothing(inbox: Inbox) -> None:
    inbox.raise_(drift(0))
    recovered(inbox, 0)
    assert inbox.raise_(drift(0)).kind == "unchanged"
    assert inbox.open() == []


def test_runs_without_a_date_count_as_they_come(inbox: Inbox) -> None:
    for run in ("a", "b", "a"):
        inbox.raise_(of_failed_run("maintain_lake", None, run, "boom"))
    (alert,) = inbox.open()
    assert (alert.subject, alert.since, alert.as_of, alert.seen) == ("maintain_lake", None, None, 2)
    asked = {"subject": "maintain_lake", "kinds": ["run_failed"], "as_of": None, "part": "maintain_lake"}
    assert recovered(inbox, 0, **asked) == [alert.id]
    assert inbox.raise_(of_failed_run("maintain_lake", None, "c", "boom")).kind == "opened"


def test_an_alert_tells_of_the_runs_that_saw_it(inbox: Inbox) -> None:
    inbox.raise_(drift(0, run="seen"))
    assert inbox.tells_of("flight_delay", "seen", ["drift"])
    assert not inbox.tells_of("flight_delay", "seen", ["run_failed"])
    assert not inbox.tells_of("other", "seen", ["drift"])
    assert not inbox.tells_of("flight_delay", "unseen", ["drift"])
    recovered(inbox, 0)
    assert not inbox.tells_of("flight_delay", "seen", ["drift"])


# --- people ----------------------------------------------------------------------------------------------------------


def decisions(inbox: Inbox) -> list[tuple[str, str, list[str], str, dt.date]]:
    rows = sorted(inbox.mart.decisions(kind="acknowledgement"), key=lambda row: row["id"])
    return [(row["outcome"], row["actor"], row["reasons"], row["run_id"], row["as_of"]) for row in rows]


def opened(inbox: Inbox, occurrence: Occurrence) -> int:
    alert = inbox.raise_(occurrence).alert
    assert alert is not None
    return alert.id


def test_an_acknowledgement_is_a_decision_and_safe_to_press_twice(inbox: Inbox) -> None:
    number = opened(inbox, drift())
    alert = inbox.acknowledge(number, "oncall", "storm season")
    assert inbox.acknowledge(number, "oncall", "storm season") == alert == inbox.get(number)
    assert (alert.acknowledged_by, alert.acknowledged_at, alert.note) == ("oncall", START, "storm season")
    inbox.acknowledge(number, "owner", "mine")
    assert decisions(inbox) == [
        ("acknowledged", "oncall", ["storm season"], f"alert-{number}-1", DAY),
        ("acknowledged", "owner", ["mine"], f"alert-{number}-2", DAY),
    ]


def test_a_snooze_is_a_decision_and_safe_to_press_twice(inbox: Inbox) -> None:
    number = opened(inbox, of_failed_run("maintain_lake", None, "run", "boom"))
    until = START + 8 * HOUR
    alert = inbox.snooze(number, "oncall", until.astimezone(dt.timezone(dt.timedelta(hours=2))))
    assert alert.snoozed_until == until
    assert inbox.snooze(number, "oncall", until) == alert
    assert decisions(inbox) == [
        ("snoozed", "oncall", ["snoozed without a note"], f"alert-{number}-1", START.date()),
    ]


def test_two_people_at_once_are_two_decisions(inbox: Inbox) -> None:
    number = opened(inbox, drift())
    assert at_once(lambda n: inbox.acknowledge(number, f"person-{n}", "mine") and None) == []
    assert sorted(row[3] for row in decisions(inbox)) == [f"alert-{number}-{n}" for n in (1, 2, 3, 4)]


@pytest.mark.parametrize(
    ("who", "note", "message"),
    [(" ", "note", "who: expected"), ("oncall", "x" * (MAX_NOTE + 1), "note: expected at most")],
)
def test_what_a_person_gives_is_checked(inbox: Inbox, who: str, note: str, message: str) -> None:
    number = opened(inbox, drift())
    with pytest.raises(Refused, match=message):
        inbox.acknowledge(number, who, note)
    with pytest.raises(Refused, match=message):
        inbox.snooze(number, who, START + HOUR, note)
    assert decisions(inbox) == []


@pytest.mark.parametrize("until", [START, START - HOUR, dt.datetime(2027, 1, 1)])  # noqa: DTZ001
def test_a_snooze_ends_in_the_future(inbox: Inbox, until: dt.datetime) -> None:
    number = opened(inbox, drift())
    with pytest.raises(Refused, match="until: expected a time to come"):
        inbox.snooze(number, "oncall", until)


def test_an_alert_that_is_over_or_unknown_is_not_taken(inbox: Inbox) -> None:
    number = opened(inbox, drift())
    recovered(inbox, 0)
    with pytest.raises(Refused, match="found it ended: ok on day 0"):
        inbox.acknowledge(number, "oncall", "too late")
    with pytest.raises(NotFound, match="alert 404"):
        inbox.acknowledge(404, "oncall", "who?")
    with pytest.raises(NotFound):
        inbox.get(404)
    assert decisions(inbox) == []


def test_a_repeat_keeps_the_owner(inbox: Inbox) -> None:
    number = opened(inbox, drift())
    inbox.acknowledge(number, "oncall", "mine")
    inbox.raise_(drift(1))
    assert inbox.get(number).acknowledged_by == "oncall"


def test_hostile_text_is_kept_as_it_is_and_fits(inbox: Inbox) -> None:
    hostile = "</script><script>alert(1)</script>{{ 6 * 7 }}'; drop table alerts; --\x00"
    number = opened(inbox, of_failed_run("score__x", None, hostile, hostile * 20, "t", subject=hostile * 20))
    alert = inbox.acknowledge(number, hostile, hostile)
    assert alert.note == hostile.removesuffix("\x00")
    assert len(alert.subject) == MAX_SUBJECT
    assert len(alert.cause) <= 200
    assert [found.id for found in inbox.open(hostile * 20)] == [number]
    assert len(recovered(inbox, 0, subject=hostile * 20, kinds=["run_failed"], part="score__x")) == 1


def test_history_is_read_in_pages(inbox: Inbox) -> None:
    numbers = [opened(inbox, drift(model=f"m{n}")) for n in range(5)]
    first = [alert.id for alert in inbox.history(limit=2)]
    rest = [alert.id for alert in inbox.history(limit=9, before=first[-1])]
    assert first + rest == numbers[::-1]


# --- telling ---------------------------------------------------------------------------------------------------------


def told(inbox: Inbox, channel: str = "mail", arrived: bool = True, **options: Any) -> list[str]:
    """What a channel is told at this moment."""
    due = inbox.claim(channel, REMIND, **options)
    inbox.settle(channel, due, arrived)
    return [one.said for one in due]


def test_a_channel_is_told_at_the_opening_and_at_the_end(inbox: Inbox, clock: Clock) -> None:
    inbox.raise_(drift())
    assert told(inbox) == ["opened"]
    inbox.raise_(drift(1))
    clock.move(HOUR)
    assert told(inbox) == []
    recovered(inbox, 2)
    assert told(inbox) == ["recovered"]
    clock.move(48 * HOUR)
    assert told(inbox) == []


def test_every_channel_is_told_for_itself(inbox: Inbox) -> None:
    inbox.raise_(drift())
    inbox.raise_(drift(kind="broken_data"))
    assert told(inbox, "mail") == ["opened", "opened"], "both in one message"
    assert told(inbox, "pager", severities=["page"]) == ["opened"]
    assert told(inbox, "pager", severities=["page"]) == []


def test_what_stays_open_is_reminded_of(inbox: Inbox, clock: Clock) -> None:
    inbox.raise_(drift())
    said = []
    for _ in range(50):
        said += told(inbox)
        clock.move(HOUR)
    assert said == ["opened", "reminder", "reminder"]
    recovered(inbox, 1)
    assert told(inbox) == ["recovered"], "also after a reminder"


def test_nobody_is_reminded_of_what_somebody_took(inbox: Inbox, clock: Clock) -> None:
    number = opened(inbox, drift())
    told(inbox)
    inbox.acknowledge(number, "oncall", "mine")
    clock.move(48 * HOUR)
    assert told(inbox) == []
    recovered(inbox, 1)
    assert told(inbox) == ["recovered"]


def test_a_snoozed_alert_is_reminded_of_when_its_time_is_over(inbox: Inbox, clock: Clock) -> None:
    number = opened(inbox, drift())
    told(inbox)
    inbox.snooze(number, "oncall", START + 30 * HOUR)
    clock.move(29 * HOUR)
    assert told(inbox) == []
    clock.move(HOUR)
    assert told(inbox) == ["reminder"]


def test_a_message_that_did_not_arrive_is_tried_again(inbox: Inbox, clock: Clock) -> None:
    inbox.raise_(drift())
    assert told(inbox, arrived=False) == ["opened"]
    assert told(inbox) == [], "a dead channel is left alone for a while"
    clock.move(RETRY)
    assert told(inbox, arrived=False) == ["opened"]
    clock.move(RETRY)
    assert told(inbox) == ["opened"]


def test_an_end_that_did_not_arrive_is_tried_again(inbox: Inbox, clock: Clock) -> None:
    inbox.raise_(drift())
    told(inbox)
    recovered(inbox, 0)
    assert told(inbox, arrived=False) == ["recovered"]
    clock.move(RETRY)
    assert told(inbox) == ["recovered"]


def test_nothing_is_said_of_an_end_whose_beginning_nobody_heard(inbox: Inbox, clock: Clock) -> None:
    inbox.raise_(drift())
    assert told(inbox, arrived=False) == ["opened"]
    recovered(inbox, 0)
    clock.move(RETRY)
    assert told(inbox) == []


def test_a_sender_that_died_is_replaced(inbox: Inbox, clock: Clock) -> None:
    inbox.raise_(drift())
    assert len(inbox.claim("mail", REMIND)) == 1
    assert inbox.claim("mail", REMIND) == []
    clock.move(RETRY)
    assert told(inbox) == ["opened"]


def test_a_storm_of_causes_is_a_few_messages(inbox: Inbox, clock: Clock) -> None:
    messages: list[Sequence[str]] = []
    for n in range(40):
        inbox.raise_(drift(model=f"model_{n:02}"))
        messages.append(told(inbox))
        clock.move(SECOND)
    assert [len(one) for one in messages if one] == [1] * BURST
    clock.move(WINDOW)
    assert len(told(inbox)) == 40 - BURST, "the rest in one"
    assert told(inbox) == []
    inbox.raise_(drift(model="another"))
    assert len(told(inbox, "log", burst=None)) == 41, "what is asked for without a limit has none"


def test_one_of_many_senders_gets_the_message(inbox: Inbox) -> None:
    inbox.raise_(drift())
    found: list[int] = []
    assert at_once(lambda _: found.extend(one.alert.id for one in inbox.claim("mail", REMIND))) == []
    assert len(found) == 1


def test_a_row_without_what_was_told_is_new_to_a_channel(inbox: Inbox, tmp_path: Path) -> None:
    """Rows put there by hand, or of before channels were kept."""
    from include.evergreen.mart.schema import alerts

    opened(inbox, drift())
    with inbox.mart.writing() as connection:
        row = dict(connection.execute(alerts.select()).one()._mapping)
        for name in ("id", "told", "told_at"):
            del row[name]
        connection.execute(alerts.insert().values(**{**row, "cause": "by|hand"}))
    assert told(inbox) == ["opened", "opened"]
