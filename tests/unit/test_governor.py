"""N of the last M windows and the latest; cooldown; budget; one request per drift; the breaker; no broken data."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Any

import pytest

from include.evergreen.decisions import Decision
from include.evergreen.drift.governor import Outcome, Request, Window, fingerprint, govern, ledger_outcome
from include.evergreen.specs import Retrain

TODAY = dt.date(2013, 12, 9)
POLICY = Retrain(
    breaches=2, windows=3, cooldown_days=7, budget=3, budget_days=30, same_drift_days=14, losers=3, breaker_days=20
)
LETTERS = {
    "o": "ok",
    "c": "covariate_drift",
    "r": "prediction_drift",
    "l": "label_drift",
    "p": "performance_drop",
    "b": "broken_data",
    "x": "nobody knows this kind",
}
DRIFT = fingerprint(4, "covariate_drift", "distance")


def ago(days: int) -> dt.date:
    return TODAY - dt.timedelta(days=days)


def history(letters: str) -> list[Window]:
    """One verdict a day, the last one today."""
    return [Window(ago(len(letters) - 1 - at), LETTERS[letter]) for at, letter in enumerate(letters)]


def gates(letters: str, last: int = 1, step: int = 1) -> list[Outcome]:
    """`+` accepted, `-` lost; one every `step` days, the last one `last` days ago."""
    count = len(letters)
    return [Outcome(ago(last + step * (count - 1 - at)), at, letter == "+") for at, letter in enumerate(letters)]


def decide(
    letters: str = "ccc",
    requests: Sequence[Request] = (),
    outcomes: Sequence[Outcome] = (),
    as_of: dt.date = TODAY,
    drift: str | None = DRIFT,
    policy: Retrain = POLICY,
) -> Decision:
    return govern(as_of, history(letters), requests, outcomes, drift, policy)


def check(decision: Decision, accepted: bool, *reasons: str) -> None:
    assert decision.accepted is accepted, decision.reasons
    for reason in reasons:
        assert any(reason in said for said in decision.reasons), decision.reasons
    if not accepted:
        assert len(decision.reasons) == len(reasons), "every reason and no other"


@pytest.mark.parametrize(
    ("letters", "asked", "accepted", "reasons"),
    [
        ("occ", [], True, ["2 of the last 3 windows breached", "no request within the cooldown", "request 1 of 3"]),
        ("coc", [], True, ["2 of the last 3"]),
        ("poc", [], True, ["2 of the last 3"]),
        ("cp", [], True, ["2 of the last 2"]),
        ("or", [], False, ["1 of the last 2"]),
        ("lr", [], True, ["2 of the last 2"]),
        ("cl", [], True, ["2 of the last 2"]),
        ("cco", [], False, ["latest verdict, 2013-12-09, is ok"]),
        ("coo", [], False, ["is ok", "1 of the last 3 windows breached, 2 of 3 needed"]),
        ("ooc", [], False, ["1 of the last 3 windows breached"]),
        ("cooc", [], False, ["1 of the last 3 windows breached"]),
        ("c", [], False, ["1 of the last 1 windows breached"]),
        ("", [], False, ["no verdict for 2013-12-09", "0 of the last 0"]),
        ("ccb", [], False, ["is broken: repair it first"]),
        ("cbc", [], True, ["2 of the last 3"]),
        ("bbc", [], False, ["1 of the last 3"]),
        ("ccx", [], False, ["the latest verdict, 2013-12-09, is nobody knows this kind"]),
        ("cxc", [], True, ["2 of the last 3"]),
        ("xxc", [], False, ["1 of the last 3"]),
        ("ccc", [7], True, ["3 of the last 3"]),
        ("ccc", [6], False, ["cooldown: 2013-12-03 asked 6 day(s) away, 7 needed"]),
        ("ccc", [40, 1], False, ["cooldown: 2013-12-08 asked 1 day(s) away"]),
        ("ccc", [0], False, ["2013-12-09 has asked already"]),
        ("ccc", [-3], False, ["cooldown: 2013-12-12 asked 3 day(s) away"]),
        ("ccc", [-7], True, ["3 of the last 3"]),
        ("cob", [2], False, ["is broken", "1 of the last 3", "cooldown"]),
        ("ccc", [29, 20, 10], False, ["budget: 3 request(s) within 30 days, 2013-11-10 to 2013-11-29, 3 allowed"]),
        ("ccc", [30, 20, 10], True, ["request 3 of 3 within 30 days"]),
        ("ccc", [-29, -20, -10], False, ["budget: 3 request(s) within 30 days, 2013-12-19 to 2014-01-07"]),
        ("ccc", [15, -7, -14], False, ["budget: 3 request(s) within 30 days"]),
        ("ccc", [15, -7, -15], True, ["request 3 of 3"]),
    ],
)
def test_verdicts_cooldown_and_budget(letters: str, asked: list[int], accepted: bool, reasons: list[str]) -> None:
    check(decide(letters, [Request(ago(days)) for days in asked]), accepted, *reasons)


@pytest.mark.parametrize(
    ("days", "drift", "accepted"),
    [
        (14, DRIFT, True),
        (13, DRIFT, False),
        (-13, DRIFT, False),
        (-14, DRIFT, True),
        (13, "another", True),
        (13, None, True),
    ],
)
def test_one_request_per_drift(days: int, drift: str | None, accepted: bool) -> None:
    decision = decide(requests=[Request(ago(days), drift)])
    check(
        decision, accepted, *([] if accepted else [f"same drift: {ago(days)} asked for it 13 day(s) away, 14 needed"])
    )


def test_a_drift_nobody_named_is_not_the_same_as_the_schedules() -> None:
    check(decide(requests=[Request(ago(10), None)], drift=None), True)


def test_the_fingerprint_is_version_verdict_and_worst_column() -> None:
    made = {
        fingerprint(version, kind, worst)
        for version in (4, 5)
        for kind in ("covariate_drift", "label_drift")
        for worst in ("distance", "hour", None)
    }
    assert len(made) == 12
    assert fingerprint(4, "covariate_drift", "distance") == DRIFT
    assert all(len(one) == 64 for one in made)


@pytest.mark.parametrize(
    ("outcomes", "state", "accepted"),
    [
        (gates(""), "closed", True),
        (gates("--"), "closed", True),
        (gates("---"), "open", False),
        (gates("-+--"), "closed", True),
        (gates("---+"), "closed", True),
        (gates("+---"), "open", False),
        (gates("---", last=19), "open", False),
        (gates("---", last=20), "half_open", True),
        (gates("---", last=-5), "open", False),
        (gates("--", last=20) + gates("-", last=3), "open", False),
        ([Outcome(ago(1), order, order == 0) for order in range(4)], "open", False),
        ([Outcome(ago(1), order, order == 3) for order in range(4)], "closed", True),
    ],
)
def test_the_breaker(outcomes: list[Outcome], state: str, accepted: bool) -> None:
    for given in (outcomes, outcomes[::-1]):
        decision = decide(outcomes=given)
        assert decision.evidence["breaker"] == state
        check(decision, accepted, *([] if accepted else ["losing challengers in a row"]))
        assert ledger_outcome(decision) == ("allowed" if accepted else "halted")


def test_half_open_allows_one_try() -> None:
    lost = gates("---", last=40)
    first = decide(outcomes=lost)
    check(first, True, "one try after 3 losing challengers in a row, the last of 2013-10-30")
    for days in (-10, 10, 19):
        pending = decide(requests=[Request(ago(days), "another")], outcomes=lost)
        check(
            pending, False, f"halted: 3 losing challengers in a row, the last of 2013-10-30, the try of {ago(days)} has"
        )
    check(decide(requests=[Request(ago(20), "another")], outcomes=lost), True, "one try")
    check(decide(requests=[Request(ago(10), None)], outcomes=lost), True, "one try")
    check(decide(requests=[Request(ago(40), "another")], outcomes=lost), True, "one try")


def test_a_try_that_loses_opens_it_again_and_one_that_wins_closes_it() -> None:
    tried = [Request(ago(10), "another")]
    lost = gates("---", last=40)
    check(decide(requests=tried, outcomes=[*lost, Outcome(ago(10), 9, False)]), False, f"no request before {ago(-10)}")
    closed = decide(requests=tried, outcomes=[*lost, Outcome(ago(10), 9, True)])
    assert (closed.accepted, closed.evidence["breaker"]) == (True, "closed")


@pytest.mark.parametrize(
    ("changes", "reasons"),
    [
        ({"letters": "ccb"}, ["is broken", "halted"]),
        ({"letters": "occo"}, ["is ok", "halted"]),
        ({"letters": "ooc"}, ["1 of the last 3", "halted"]),
        ({"requests": [Request(ago(1))]}, ["cooldown", "halted"]),
        ({"requests": [Request(ago(10), DRIFT)]}, ["same drift", "halted"]),
        ({"requests": [Request(ago(days)) for days in (8, 16, 24)]}, ["budget", "halted"]),
        (
            {"letters": "oob", "requests": [Request(ago(0), DRIFT), Request(ago(1)), Request(ago(2))]},
            ["is broken", "0 of the last 3", "asked already", "same drift", "budget", "halted"],
        ),
    ],
)
def test_halted_only_when_the_breaker_alone_stands_in_the_way(changes: dict[str, Any], reasons: list[str]) -> None:
    decision = decide(**changes, outcomes=gates("---"))
    check(decision, False, *reasons)
    assert (ledger_outcome(decision), decision.evidence["halted"]) == ("refused", False)


def test_no_cooldown_still_asks_once_a_date() -> None:
    policy = Retrain(breaches=1, windows=1, cooldown_days=0, same_drift_days=0)
    assert decide("c", [Request(ago(1), DRIFT)], policy=policy).accepted
    assert not decide("c", [Request(TODAY, DRIFT)], policy=policy).accepted


def test_a_backfilled_date_does_not_see_later_verdicts() -> None:
    verdicts = [*history("oc"), Window(ago(-1), "label_drift"), Window(ago(-2), "label_drift")]
    check(govern(TODAY, verdicts, [], [], DRIFT, POLICY), False, "1 of the last 2 windows breached")
    assert govern(ago(-2), verdicts, [], [], DRIFT, POLICY).accepted


def test_a_verdict_of_yesterday_does_not_ask_for_today() -> None:
    yesterday = [Window(ago(2), "label_drift"), Window(ago(1), "label_drift")]
    check(govern(TODAY, yesterday, [], [], None, POLICY), False, "no verdict for 2013-12-09")


@pytest.mark.parametrize("grave", ["broken_data", "nobody knows this kind"])
def test_of_two_verdicts_for_one_date_the_gravest_counts(grave: str) -> None:
    twice = [*history("pp"), Window(TODAY, grave)]
    for verdicts in (twice, twice[::-1]):
        assert not govern(TODAY, verdicts, [], [], DRIFT, POLICY).accepted


def test_the_evidence_can_be_read_later() -> None:
    asked = [Request(ago(30), DRIFT), Request(ago(8))]
    evidence = decide("occ", asked, gates("+-", last=8)).evidence
    assert evidence == {
        "fingerprint": DRIFT,
        "windows": {"2013-12-07": "ok", "2013-12-08": "covariate_drift", "2013-12-09": "covariate_drift"},
        "broken_fresh_days": [],
        "nearest_request": "2013-12-01",
        "nearest_same_drift": "2013-11-09",
        "requests_in_budget_window": ["2013-12-01"],
        "losers_in_a_row": 1,
        "breaker": "closed",
        "halted": False,
        "policy": POLICY.model_dump(mode="json"),
    }


def test_a_broken_day_among_those_the_gate_would_compare_refuses() -> None:
    def asked(last_broken: int, fresh_days: int) -> Decision:
        days = [Window(ago(last_broken), "broken_data"), Window(ago(1), "label_drift"), Window(TODAY, "label_drift")]
        return govern(TODAY, days, [], [], DRIFT, POLICY, fresh_days)

    check(asked(7, 7), False, "1 of the last 7 days stand as broken data, the last 2013-12-02")
    assert asked(7, 7).evidence["broken_fresh_days"] == ["2013-12-02"]
    check(asked(8, 7), True)
    check(asked(2, 0), True)
