"""What is worth an alert, and what it says."""

from __future__ import annotations

import datetime as dt

import pytest

from include.evergreen.alerts.cause import (
    KINDS,
    MAX_CAUSE,
    MAX_WHAT,
    RUNBOOKS,
    VERDICTS,
    Occurrence,
    cause_key,
    ended_by_verdict,
    fit,
    of_failed_run,
    of_halted_retrain,
    of_late_run,
    of_stopped_partition,
    of_verdict,
    of_waiting_approval,
    page_of,
    subject_of,
)
from include.evergreen.drift.verdict import GRAVITY
from include.evergreen.specs import PROJECT

DAY = dt.date(2013, 7, 1)


def test_every_verdict_but_ok_has_a_kind() -> None:
    assert set(VERDICTS) == set(GRAVITY) - {"ok"}
    assert set(VERDICTS.values()) <= set(KINDS)
    assert of_verdict("m", DAY, "ok", [], [], "r") is None


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_a_severity_and_a_runbook_that_is_written(kind: str) -> None:
    known = KINDS[kind]
    assert known.severity in ("page", "warn")
    for runbook in [known.runbook] if known.runbook else RUNBOOKS.values():
        assert (PROJECT / runbook).is_file()


def test_what_wakes_somebody_is_said_in_one_place() -> None:
    assert {kind for kind, known in KINDS.items() if known.severity == "page"} == {
        "broken_data",
        "performance_drop",
        "run_failed",
    }


@pytest.mark.parametrize(
    ("verdict", "ended"),
    [
        ("ok", ("drift", "performance_drop", "broken_data")),
        ("covariate_drift", ("performance_drop", "broken_data")),
        ("label_drift", ("performance_drop", "broken_data")),
        ("prediction_drift", ("performance_drop", "broken_data")),
        ("performance_drop", ("broken_data",)),
        ("broken_data", ()),
    ],
)
def test_a_verdict_ends_what_is_graver_than_itself(verdict: str, ended: tuple[str, ...]) -> None:
    assert ended_by_verdict(verdict) == ended
    assert VERDICTS.get(verdict) not in ended


def test_every_verdict_is_in_the_table_above() -> None:
    (marked,) = test_a_verdict_ends_what_is_graver_than_itself.pytestmark  # type: ignore[attr-defined]
    assert [row[0] for row in marked.args[1]] == list(GRAVITY)


def test_drifts_of_all_kinds_are_one_cause() -> None:
    found = [of_verdict("m", DAY, f"{what}_drift", [], [], "r") for what in ("covariate", "label", "prediction")]
    assert {one.cause for one in found if one} == {"m|drift"}


def test_a_verdict_names_the_worst_columns_and_the_first_reason() -> None:
    found = of_verdict("m", DAY, "prediction_drift", ["a", "b", "c", "d"], ["the gravest", "another"], "r")
    assert found is not None
    assert found.what == "Prediction drift in a, b, c and others on 2013-07-01: the gravest"
    assert (found.link, found.as_of, found.severity) == ("/evergreen/reports/m/2013-07-01", DAY, "warn")
    bare = of_verdict("m", DAY, "broken_data", [], [], "r")
    assert bare is not None
    assert bare.what == "Broken data on 2013-07-01"


def test_a_stopped_partition_is_about_its_table() -> None:
    found = of_stopped_partition("nyc_flights", "actuals", DAY, ["too few rows", "stale"], "r")
    assert (found.subject, found.cause) == ("nyc_flights", "nyc_flights|partition_stopped|actuals")
    assert found.what == "actuals of 2013-07-01 is not published: too few rows; stale"
    assert found.link == "/evergreen/data/nyc_flights/actuals"


def test_a_run_is_about_its_dag() -> None:
    failed = of_failed_run("score__flight_delay", DAY, "r", "Unavailable: no answer", "publish")
    assert (failed.subject, failed.cause) == ("flight_delay", "flight_delay|run_failed|score__flight_delay")
    assert failed.what == "publish in score__flight_delay failed on 2013-07-01: Unavailable: no answer"
    assert failed.runbook == "docs/runbooks/scoring-failed.md"
    whole = of_failed_run("maintain_lake", None, "r", "it was cut off by its time limit")
    assert whole.what == "maintain_lake failed: it was cut off by its time limit"
    late = of_late_run("monitor__flight_delay", DAY, "r", 180.0)
    assert late.what == "monitor__flight_delay on 2013-07-01 has not ended 180 minutes after it was queued"
    assert failed.cause != late.cause


@pytest.mark.parametrize(
    ("dag_id", "subject", "page"),
    [
        ("score__flight_delay", "flight_delay", "/evergreen/models/flight_delay"),
        ("ingest__nyc_flights", "nyc_flights", "/evergreen/data"),
        ("maintain_lake", "maintain_lake", "/evergreen/alerts"),
    ],
)
def test_a_run_links_to_the_page_of_its_subject(dag_id: str, subject: str, page: str) -> None:
    assert subject_of(dag_id) == subject
    assert page_of(dag_id, subject) == page


def test_a_run_by_params_is_about_what_they_name() -> None:
    found = of_failed_run("rollback", None, "r", "boom", subject="flight_delay")
    assert (found.subject, found.link) == ("flight_delay", "/evergreen/models/flight_delay")
    assert of_failed_run("replay_quarantine", None, "r", "boom", subject="nyc_flights").link == "/evergreen/data"


def test_a_person_is_called_for_each_candidate() -> None:
    found = of_waiting_approval("m", DAY, 7, 48.0, "r")
    assert (found.cause, found.runbook) == ("m|person_needed|7", "docs/runbooks/approval.md")
    assert "Version 7, trained as of 2013-07-01, waits for an answer; none within 48 hours" in found.what


def test_a_halt_says_why() -> None:
    assert of_halted_retrain("m", DAY, ["halted: 3 losers", "and more"], "r").what == "Halted: 3 losers; and more"


def test_an_impossible_occurrence_cannot_be_built() -> None:
    with pytest.raises(ValueError, match="kind: expected one of"):
        Occurrence("m", "bad_mood", "what", DAY, "/", "r")
    with pytest.raises(ValueError, match="runbook: expected one"):
        Occurrence("m", "run_failed", "what", DAY, "/", "r")
    with pytest.raises(KeyError):
        of_verdict("m", DAY, "bad_mood", [], [], "r")


def test_a_name_cannot_break_out_of_its_link() -> None:
    found = of_verdict('../x"><script>', DAY, "broken_data", [], [], "r")
    assert found is not None
    assert found.link == "/evergreen/reports/..%2Fx%22%3E%3Cscript%3E/2013-07-01"


def test_long_texts_fit_their_columns_and_long_causes_stay_apart() -> None:
    found = of_failed_run("score__m", DAY, "r", "x" * 5_000)
    assert len(found.what) == MAX_WHAT
    assert found.what.endswith("…")
    keys = {cause_key("s", "run_failed", "d" * 300 + end) for end in ("a", "b")}
    assert len(keys) == 2
    assert all(len(key) <= MAX_CAUSE for key in keys)
    assert fit(" a\x00b ", 10) == "ab"
