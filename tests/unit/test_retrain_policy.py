"""N of the last M windows and the latest; a cooldown; never on broken data; never twice."""

from __future__ import annotations

import datetime as dt

import pytest

from include.evergreen.drift.policy import Window, retrain
from include.evergreen.drift.verdict import Kind
from include.evergreen.specs import Retrain

TODAY = dt.date(2013, 12, 9)
POLICY = Retrain(breaches=2, windows=3, cooldown_days=7)
LETTERS: dict[str, Kind] = {"o": "ok", "d": "drift", "p": "performance_drop", "b": "broken_data"}


def ago(days: int) -> dt.date:
    return TODAY - dt.timedelta(days=days)


def history(letters: str) -> list[Window]:
    """One verdict a day, the last one today."""
    return [Window(ago(len(letters) - 1 - at), LETTERS[letter]) for at, letter in enumerate(letters)]


@pytest.mark.parametrize(
    ("letters", "asked", "accepted", "reasons"),
    [
        ("odd", [], True, ["2 of the last 3 windows breached", "no request within the cooldown"]),
        ("dod", [], True, ["2 of the last 3"]),
        ("pod", [], True, ["2 of the last 3"]),
        ("dp", [], True, ["2 of the last 2"]),
        ("ddo", [], False, ["latest verdict, 2013-12-09, is ok"]),
        ("doo", [], False, ["is ok", "1 of the last 3 windows breached, 2 of 3 needed"]),
        ("ood", [], False, ["1 of the last 3 windows breached"]),
        ("dood", [], False, ["1 of the last 3 windows breached"]),
        ("d", [], False, ["1 of the last 1 windows breached"]),
        ("", [], False, ["no verdict for 2013-12-09", "0 of the last 0"]),
        ("ddb", [], False, ["is broken: repair it first"]),
        ("dbd", [], True, ["2 of the last 3"]),
        ("bbd", [], False, ["1 of the last 3"]),
        ("ddd", [ago(7)], True, ["3 of the last 3"]),
        ("ddd", [ago(6)], False, ["cooldown: 2013-12-03 asked 6 day(s) away, 7 needed"]),
        ("ddd", [ago(40), ago(1)], False, ["cooldown: 2013-12-08 asked 1 day(s) away"]),
        ("ddd", [TODAY], False, ["2013-12-09 has asked already"]),
        ("ddd", [ago(-3)], False, ["cooldown: 2013-12-12 asked 3 day(s) away"]),
        ("ddd", [ago(-7)], True, ["3 of the last 3"]),
        ("dob", [ago(2)], False, ["is broken", "1 of the last 3", "cooldown"]),
    ],
)
def test_table(letters: str, asked: list[dt.date], accepted: bool, reasons: list[str]) -> None:
    decision = retrain(history(letters), asked, TODAY, POLICY)
    assert decision.accepted is accepted
    for reason in reasons:
        assert any(reason in said for said in decision.reasons), decision.reasons
    if not accepted:
        assert len(decision.reasons) == len(reasons), "every reason and no other"


def test_no_cooldown_still_asks_once_a_date() -> None:
    policy = Retrain(breaches=1, windows=1, cooldown_days=0)
    assert retrain(history("d"), [ago(1)], TODAY, policy).accepted
    assert not retrain(history("d"), [TODAY], TODAY, policy).accepted


def test_a_backfilled_date_does_not_see_later_verdicts() -> None:
    verdicts = [*history("oo"), Window(ago(-1), "drift"), Window(ago(-2), "drift")]
    assert not retrain(verdicts, [], TODAY, POLICY).accepted
    assert retrain(verdicts, [], ago(-2), POLICY).accepted


def test_a_verdict_of_yesterday_does_not_ask_for_today() -> None:
    yesterday = [Window(ago(2), "drift"), Window(ago(1), "drift")]
    decision = retrain(yesterday, [], TODAY, POLICY)
    assert not decision.accepted and decision.reasons == ("no verdict for 2013-12-09",)


def test_of_two_verdicts_for_one_date_the_gravest_counts() -> None:
    twice = [*history("dd"), Window(TODAY, "broken_data")]
    for verdicts in (twice, twice[::-1]):
        assert not retrain(verdicts, [], TODAY, POLICY).accepted


def test_the_evidence_can_be_read_later() -> None:
    evidence = retrain(history("odd"), [ago(30)], TODAY, POLICY).evidence
    assert evidence["windows"] == {"2013-12-07": "ok", "2013-12-08": "drift", "2013-12-09": "drift"}
    assert evidence["nearest_request"] == "2013-11-09"
    assert evidence["policy"] == {"breaches": 2, "windows": 3, "cooldown_days": 7}
