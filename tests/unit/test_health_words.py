"""The sentences of the health page."""

from __future__ import annotations

import datetime as dt
import re
from typing import Any

import pytest

from include.evergreen.drift.verdict import GRAVITY
from include.evergreen.health.words import (
    MAX_SENTENCE,
    RUNBOOKS,
    blamed,
    estimate,
    finding,
    listed,
    parsed,
    refusal,
    retrained,
    short,
    summary,
)
from tests.examples_health import HOSTILE, LONG

DAY = dt.date(2013, 6, 17)
SEEN = {
    "auc": 0.651,
    "auc_low": 0.64,
    "auc_high": 0.66,
    "matured_rows": 5120,
    "reference_auc": 0.724,
    "label_rate": 0.331,
    "reference_rate": 0.2,
}
POLICY = {"cooldown_days": 7, "same_drift_days": 14, "budget": 2, "budget_days": 30}


def asked(outcome: str, *reasons: str, **evidence: Any) -> dict[str, Any]:
    return {"outcome": outcome, "reasons": list(reasons), "evidence": {"policy": POLICY, **evidence}, "as_of": DAY}


def told(verdict: str, *guilty: str, reasons: tuple[str, ...] = ("why",), **changes: Any) -> tuple[str, str]:
    given: dict[str, Any] = {
        "performance": SEEN,
        "model": "flight_delay",
        "source": "nyc_flights",
        "as_of": DAY,
        "version": 2,
        "owner": "flight-operations",
        "tables": ("actuals", "actuals_late"),
        "retrain": asked("refused", "cooldown: ...", nearest_request="2013-06-14"),
        **changes,
    }
    return summary(verdict, guilty, reasons, given.pop("performance"), **given)


def test_a_good_date_asks_for_nothing() -> None:
    assert told("ok") == (
        "Nothing is wrong on 17 June: version 2 ranks with AUC 0.651 on 5,120 matured rows, 0.724 in its reference.",
        "Nothing to do.",
    )
    happened, _ = told("ok", performance={})
    assert happened == "Nothing is wrong on 17 June; how well version 2 ranks is not known yet."


def test_drift_names_columns_and_since_when_and_what_the_governor_said() -> None:
    assert told("covariate_drift", "humid", "wind_speed", since=dt.date(2013, 6, 15)) == (
        "humid, wind_speed differ since 15 June from what version 2 was trained on.",
        "Nothing to do: the retrain governor refused (cooldown until 21 June).",
    )
    happened, _ = told("covariate_drift", "a", "b", "c", "d", "probability", since=DAY)
    assert happened == "a, b, c and 1 more differ on 17 June from what version 2 was trained on."


def test_the_prediction_is_no_column() -> None:
    happened, _ = told("prediction_drift", "probability", "humid")
    assert happened == "The predictions of version 2 differ on 17 June from its reference, most with humid."
    assert "most with" not in told("prediction_drift", "probability")[0]


def test_a_label_that_drifts_shows_both_rates() -> None:
    happened, _ = told("label_drift")
    assert happened == "The label drifts on 17 June: 33.1% of 5,120 matured rows are positive, 20.0% in training."
    assert "share of positives" in told("label_drift", performance={})[0]


def test_a_drop_shows_the_interval_and_offers_a_training() -> None:
    assert told("performance_drop") == (
        "Version 2 ranks worse on 17 June: AUC 0.651 [0.640, 0.660] on 5,120 matured rows, 0.724 in its reference.",
        "Start train__flight_delay by hand if it cannot wait: the retrain governor refused (cooldown until 21 June).",
    )
    assert told("performance_drop", performance={})[0] == (
        "Version 2 ranks worse on 17 June than it did on its reference."
    )


def test_broken_columns_go_to_their_owner() -> None:
    reasons = ("distance: does not fit the other columns", "6 features drift (allowed: 5): humid ...")
    happened, todo = told("broken_data", "distance", "humid", reasons=reasons)
    assert happened.startswith("The data is broken in distance on 17 June: distance: does not fit")
    assert todo == (
        "Ask the owner of nyc_flights (flight-operations) about `distance`; nothing retrains on broken data."
    )


def test_a_stopped_partition_is_repaired_and_run_again() -> None:
    _, todo = told("broken_data", reasons=("actuals_late of 2013-06-16: stopped: bad rows",))
    assert todo == (
        "Repair actuals_late of 16 June and run ingest__nyc_flights for it again; nothing retrains on broken data."
    )


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("the labels of 2013-06-16 contradict the predictions: AUC 0.2", "whether the label is turned round"),
        ("nothing to judge: 0 rows scored", "ingest__nyc_flights and score__flight_delay"),
        ("scored rows: expected at least 50%", "why entities are missing"),
        ("something new", "Ask the owner of nyc_flights"),
    ],
)
def test_other_broken_data_says_where_to_look(reason: str, expected: str) -> None:
    assert expected in told("broken_data", reasons=(reason,))[1]


@pytest.mark.parametrize(
    ("retrain", "gate", "expected"),
    [
        (None, None, "See whether monitor__flight_delay of 17 June has ended"),
        (asked("allowed", "yes"), None, "train__flight_delay runs by itself and the gate decides"),
        (asked("allowed", "yes"), "accepted", "Nothing to do: the challenger beat the champion."),
        (asked("allowed", "yes"), "refused", "the champion is still the better one"),
        (asked("allowed", "yes"), "cannot_decide", "Read why the gate could not decide"),
        (
            asked("halted", "halted: 3 losing challengers in a row; no request before 2013-07-21"),
            None,
            "nothing asks again before 21 July; then start train__flight_delay by hand",
        ),
        (asked("halted", "halted"), None, "Find out why the last challengers lost; then start"),
    ],
)
def test_what_to_do_about_drift_follows_the_decisions(
    retrain: dict[str, Any] | None, gate: str | None, expected: str
) -> None:
    assert expected in told("covariate_drift", "humid", retrain=retrain, gate=gate)[1]


def test_a_verdict_from_another_time_is_told_as_it_is() -> None:
    happened, todo = told("drift", "humid", reasons=("10 features drift",))
    assert happened == "The verdict on 17 June is drift: 10 features drift"
    assert "governor refused" in todo


@pytest.mark.parametrize("verdict", [*GRAVITY, "drift"])
@pytest.mark.parametrize("since", [None, dt.date(2013, 6, 1)])
def test_no_sentence_is_longer_than_a_phone_shows(verdict: str, since: dt.date | None) -> None:
    guilty = [*HOSTILE, LONG + "b"]
    reasons = (*(f"{name}: nulls rose {LONG}" for name in guilty), *HOSTILE)
    for retrain in (None, asked("refused", LONG), asked("halted", LONG), asked("allowed", LONG)):
        for sentence in told(verdict, *guilty, reasons=reasons, since=since, owner=LONG, retrain=retrain):
            assert 0 < len(sentence) <= MAX_SENTENCE
            assert "\n" not in sentence


def test_every_verdict_has_a_runbook_that_is_there() -> None:
    from include.evergreen.specs import PROJECT

    assert set(RUNBOOKS) == set(GRAVITY)
    assert all((PROJECT / path).is_file() for path in RUNBOOKS.values())


@pytest.mark.parametrize(
    ("evidence", "expected"),
    [
        ({"nearest_request": "2013-06-14"}, "cooldown until 21 June"),
        ({"nearest_request": "2013-06-01", "nearest_same_drift": "2013-06-08"}, "again from 22 June"),
        ({"nearest_request": "2013-06-14", "nearest_same_drift": "2013-06-14"}, "again from 28 June"),
        ({"nearest_request": "2013-06-10", "requests_in_budget_window": ["a", "b"]}, "budget of 2 in 30 days is spent"),
        ({"nearest_request": "2013-06-01"}, "1 of the last 3 windows breached"),
        ({"nearest_request": "2013-06-20"}, "1 of the last 3 windows breached"),
        ({"nearest_request": None, "policy": None}, "1 of the last 3 windows breached"),
    ],
)
def test_a_refusal_names_the_rule_that_lasts_longest(evidence: dict[str, Any], expected: str) -> None:
    row = asked("refused", "1 of the last 3 windows breached", **evidence)
    assert expected in refusal(row["evidence"], row["reasons"], DAY)


def test_an_answer_of_the_governor_in_a_few_words() -> None:
    assert retrained(asked("allowed", "yes")) == "retrain allowed"
    assert retrained(asked("halted", "no")) == "retrain halted"
    assert retrained({**asked("refused"), "evidence": None}) == "retrain refused (no reason recorded)"


def test_findings_in_a_few_words() -> None:
    assert finding("covariate_drift", ["humid", "wind_speed"], []) == "drift in humid, wind_speed"
    assert finding("performance_drop", ["probability"], []) == "performance dropped"
    assert finding("ok", [], []) == "ok, nothing found"
    assert finding("drift", ["humid"], []) == "drift in humid"


def test_only_broken_columns_are_blamed_for_broken_data() -> None:
    reasons = ["seats: nulls rose", "humid: drift not measured: no value"]
    assert blamed("broken_data", ["seats", "humid", "probability", "temp"], reasons) == ["seats"]
    assert blamed("covariate_drift", ["seats", "probability"], reasons) == ["seats"]


def test_small_words() -> None:
    assert short("a  b\n c") == "a b c"
    assert short("abcdef", 4) == "abc…"
    assert listed(["a", "b", "c"]) == "a, b, c"
    assert listed(["a", "b", "c", "d"]) == "a, b, c and 1 more"
    assert estimate({"value": 0.0213, "low": 0.014, "high": None}) == "0.021 [0.014, unknown]"
    assert estimate(None) == estimate({"value": None}) == ""
    assert parsed("2013-06-17T10:00:00+00:00") == DAY
    assert parsed(None) is parsed("soon") is None
    assert re.fullmatch(r"n+…", listed([LONG]))
