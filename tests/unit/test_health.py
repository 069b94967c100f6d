"""The read models of the health page, on a mart with a past."""

from __future__ import annotations

import datetime as dt
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event

from include.evergreen.errors import NotFound
from include.evergreen.health import read
from include.evergreen.health.fleet import gravity
from include.evergreen.mart.schema import alerts
from include.evergreen.mart.store import Mart
from include.evergreen.specs import PROJECT
from tests.examples_health import HOSTILE, HUBS, LONG, SCRIPT, TODAY, World, quarantine, seed

DAYS = 45


@dataclass(frozen=True)
class Seeded:
    mart: Mart
    world: World

    def spec(self, part: str) -> Any:
        return next(spec for name, spec in self.world.models.items() if self.world.parts[name] == part)

    def page(self, part: str, **options: Any) -> Any:
        spec = self.spec(part)
        source = self.world.sources[spec.source]
        return read.model_page(self.mart, spec, source, peers=self.world.models, **options)

    def report(self, part: str, ago: int = 0) -> Any:
        spec = self.spec(part)
        return read.report_page(self.mart, spec, self.world.sources[spec.source], TODAY - dt.timedelta(days=ago))


@pytest.fixture(scope="module")
def seeded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seeded]:
    mart = Mart(f"sqlite:///{tmp_path_factory.mktemp('health')}/mart.db")
    yield Seeded(mart, seed(mart, models=7, days=DAYS))
    mart.engine.dispose()


@contextmanager
def queries(mart: Mart) -> Iterator[list[tuple[str, Any]]]:
    """What is asked of the database."""
    seen: list[tuple[str, Any]] = []

    def note(_c: Any, _cur: Any, statement: str, parameters: Any, *_: Any) -> None:
        seen.append((statement, parameters))

    event.listen(mart.engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        event.remove(mart.engine, "before_cursor_execute", note)


# --- fleet -----------------------------------------------------------------------------------------------------------


def test_the_sick_come_first_by_gravity_lateness_and_name(seeded: Seeded) -> None:
    fleet = read.fleet(seeded.mart, seeded.world.models, seeded.world.sources)
    assert [(row.model, row.verdict) for row in fleet.rows] == [
        ("missed_connection", "broken_data"),
        ("baggage_late", "performance_drop"),
        ("crew_timeout", "covariate_drift"),
        ("flight_delay", "covariate_drift"),
        ("taxi_time", "unknown"),
        ("gate_hold", "ok"),
        ("model_007", "ok"),
    ]
    assert fleet.today == TODAY
    assert gravity("a new kind") > gravity("broken_data") > gravity("unknown") > gravity("ok")


def test_a_row_says_what_is_wrong_since_when_and_who_scores(seeded: Seeded) -> None:
    rows = {row.model: row for row in read.fleet(seeded.mart, seeded.world.models).rows}
    ill = rows["flight_delay"]
    assert (ill.since, ill.as_of) == (TODAY - dt.timedelta(days=2), TODAY)
    assert set(ill.guilty) >= {"humid", "wind_speed"}
    assert (ill.champion, ill.champion_since, ill.champion_days) == (2, TODAY - dt.timedelta(days=21), 21)
    assert (ill.scored, ill.scored_rows, ill.late_days) == (TODAY, 4, 0)
    assert (ill.retrains, ill.budget, ill.retrain_days) == (2, 2, 30)
    assert (ill.band.value, ill.band.low, ill.band.high) == (0.724, 0.711, 0.736)
    assert rows["crew_timeout"].late_days == 2
    assert rows["missed_connection"].guilty[0] == "distance"


def test_a_version_put_back_by_a_rollback_keeps_its_first_day(seeded: Seeded) -> None:
    row = seeded.page("broken").row
    assert (row.champion, row.champion_since) == (1, seeded.world.first)


def test_performance_is_of_the_current_scorings_oldest_first(seeded: Seeded) -> None:
    rows = {row.model: row for row in read.fleet(seeded.mart, seeded.world.models).rows}
    for row in rows.values():
        dates = [point.as_of for point in row.performance]
        assert len(dates) == 28
        assert dates == sorted(set(dates))
    assert rows["flight_delay"].performance[-1].as_of == TODAY - dt.timedelta(days=1)
    assert {point.version for point in rows["flight_delay"].performance} == {1, 2}
    assert rows["flight_delay"].current == rows["flight_delay"].performance[-1].auc
    # 17 days ago there was one class only
    assert rows["flight_delay"].performance[-17].auc is None
    withdrawn = [p.version for p in seeded.page("broken").points]
    assert set(withdrawn) == {1}


def test_what_waits_for_a_person(seeded: Seeded) -> None:
    rows = {row.model: row for row in read.fleet(seeded.mart, seeded.world.models).rows}
    assert rows["gate_hold"].waiting == (
        "version 3 of 27 June waits for an answer: 0.018 [0.011, 0.025] auc_by_day over champion 2",
        "1 open alert nobody has taken",
    )
    assert any(said.startswith("retraining is halted: ") for said in rows["baggage_late"].waiting)
    assert rows["model_007"].waiting == ()


def test_alerts_are_counted_taken_and_silent(seeded: Seeded) -> None:
    fleet = read.fleet(seeded.mart, seeded.world.models, seeded.world.sources)
    rows = {row.model: row for row in fleet.rows}
    taken, free, none = rows["flight_delay"], rows["missed_connection"], rows["model_007"]
    assert (taken.alerts, taken.acknowledged, taken.silenced) == (1, True, True)
    assert (free.alerts, free.acknowledged, free.silenced) == (1, False, False)
    assert (none.alerts, none.acknowledged, none.silenced) == (0, False, False)
    later = dt.datetime.now(dt.UTC) + dt.timedelta(days=3)
    woken = read.fleet(seeded.mart, seeded.world.models, now=later)
    assert not next(row for row in woken.rows if row.model == "flight_delay").silenced
    assert HUBS in {alert.subject for alert in fleet.alerts}
    assert [a.severity for a in fleet.alerts] == sorted((a.severity for a in fleet.alerts), key="page warn".index)
    assert all(alert.opened_at.tzinfo is not None and alert.resolved_at is None for alert in fleet.alerts)
    only = read.fleet(seeded.mart, {}, {})
    assert (only.rows, only.alerts) == ((), ())


def test_the_number_of_queries_does_not_depend_on_the_models(seeded: Seeded) -> None:
    names = list(seeded.world.models)
    with queries(seeded.mart) as few:
        read.fleet(seeded.mart, {name: seeded.world.models[name] for name in names[:3]})
    with queries(seeded.mart) as many:
        read.fleet(seeded.mart, seeded.world.models)
    assert len(few) == len(many) <= 15


def test_no_page_reads_a_table_whole(seeded: Seeded) -> None:
    with queries(seeded.mart) as seen:
        read.fleet(seeded.mart, seeded.world.models)
        seeded.page("broken")
        seeded.report("halted")
        read.tables(seeded.mart, seeded.world.sources)
        read.partitions(seeded.mart, seeded.world.sources[HUBS], "hub_actuals")
    whole = []
    with seeded.mart.engine.connect() as connection:
        for statement, parameters in [one for one in seen if one[0].startswith(("SELECT", "WITH"))]:
            plan = [row[3] for row in connection.exec_driver_sql(f"explain query plan {statement}", parameters)]
            # the partial index of the open alerts is what is read
            scans = [step for step in plan if step.startswith("SCAN") and "one_open_alert" not in step]
            whole += [step for step in scans if "VIRTUAL TABLE" not in step]
    assert len(seen) > 30
    assert whole == []


def test_an_empty_mart_knows_nothing_and_says_so(tmp_path: Any, seeded: Seeded) -> None:
    mart = Mart(f"sqlite:///{tmp_path}/mart.db")
    mart.create()
    spec = seeded.spec("well")
    source = seeded.world.sources[spec.source]
    fleet = read.fleet(mart, {spec.name: spec}, seeded.world.sources)
    row = fleet.rows[0]
    assert (fleet.today, fleet.alerts) == (None, ())
    assert (row.verdict, row.as_of, row.since, row.champion, row.scored) == ("unknown", None, None, None, None)
    assert (row.champion_days, row.late_days, row.performance, row.waiting) == (None, 0, (), ())
    page = read.model_page(mart, spec, source)
    assert (page.points, page.marks, page.story, page.versions, page.reports) == ((), (), (), (), ())
    assert page.heat.dates == ()
    assert read.report_page(mart, spec, source, TODAY) is None
    table = read.tables(mart, {source.name: source})[0]
    assert (table.newest, table.due, table.late_days, table.partitions, table.total) == (None, None, 0, (), 0)
    mart.engine.dispose()


# --- story -----------------------------------------------------------------------------------------------------------


def test_the_ledger_is_told_in_sentences(seeded: Seeded) -> None:
    lines = [story.line for story in seeded.page("drifting").story]
    assert "8 June: challenger 2 beat champion 1 by 0.021 [0.014, 0.028] auc_by_day; promoted" in lines
    assert "8 June: drift in airline, planned_minutes, weekday and 4 more; retrain allowed" in lines
    assert (
        "9 June: drift in airline, planned_minutes, weekday and 4 more; retrain refused (cooldown until 15 June)"
        in (lines)
    )
    assert any("a challenger did not beat champion 2: -0.004 [-0.011, 0.003]" in line for line in lines)
    assert lines[0].startswith("30 June: oncall snoozed an alert until ")
    assert lines[0].endswith(": Storm season, watching it")


def test_one_line_for_the_decisions_of_a_run(seeded: Seeded) -> None:
    told = seeded.page("drifting").story
    first = told[-1]
    assert first.text == "challenger 1 beat the baseline by 0.070 [0.060, 0.080] auc_by_day; promoted; " + (
        "frozen holdout renewed"
    )
    assert (first.kind, first.outcome, first.link) == ("gate", "promoted", "/evergreen/cards/flight_delay/1")
    assert not {"promotion", "holdout", "retrain"} & {story.kind for story in told}


def test_ok_is_told_only_after_something_else(seeded: Seeded) -> None:
    told = [story for story in seeded.page("drifting").story if story.kind == "verdict"]
    assert [story.as_of for story in told if story.outcome == "ok"] == [TODAY - dt.timedelta(days=20), told[-1].as_of]


def test_people_are_named(seeded: Seeded) -> None:
    waits = {story.kind: story.text for story in seeded.page("waiting").story[::-1]}
    assert waits["approval"] == "ada approved version 2, in force from 2 June"
    assert any("; promoted after ada approved" in story.text for story in seeded.page("waiting").story)
    broken = [story.text for story in seeded.page("broken").story]
    assert any(
        text.startswith("oncall rolled back from version 2 to 1, 4 dates to score again: Worse for transfers")
        for text in broken
    )
    assert "version 1 rebuilt: the same bytes" in broken
    assert "data broken in distance; no retrain on broken data" in broken


def test_pages_of_the_story_join_without_gap_or_repeat(seeded: Seeded) -> None:
    whole, more = read.story(seeded.mart, ["baggage_late"], limit=500)
    assert not more
    pages: list[Any] = []
    before = None
    while True:
        told, more = read.story(seeded.mart, ["baggage_late"], limit=4, before=before)
        pages += told
        if not more:
            break
        before = told[-1].id
    assert tuple(pages) == whole
    assert [story.id for story in whole] == sorted({story.id for story in whole}, reverse=True)


def test_every_decision_is_told_somewhere(seeded: Seeded) -> None:
    for name in seeded.world.models:
        rows = seeded.mart.decisions(subject=name)
        told, _ = read.story(seeded.mart, [name], limit=1000)
        reasons = {reason for story in told for reason in story.reasons}
        for row in rows:
            if row["outcome"] != "ok" and row["kind"] not in ("promotion", "holdout"):
                assert reasons >= set(row["reasons"])


def test_a_table_has_a_story_too(seeded: Seeded) -> None:
    told, _ = read.story(seeded.mart, ["nyc_flights.schedules"])
    assert [story.text for story in told] == [
        "5 rows of nyc_flights.schedules released from quarantine by replay_quarantine, 3 kept"
    ]


@pytest.mark.parametrize(
    ("decision", "expected"),
    [
        ({"kind": "approval", "outcome": "expired", "evidence": {"version": 4}}, "nobody answered for version 4"),
        ({"kind": "approval", "outcome": "rejected", "evidence": {"version": 4}}, "ada rejected version 4"),
        (
            {
                "kind": "approval",
                "outcome": "rejected",
                "evidence": {"version": 4},
                "reasons": ["approved by ada", "no going backwards: version 5"],
            },
            "ada approved version 4, too late: no going backwards: version 5",
        ),
        ({"kind": "rebuild", "outcome": "different", "evidence": {"version": 1}}, "the bytes differ: because"),
        ({"kind": "promotion", "outcome": "promoted", "evidence": {"version": 9}}, "version 9 promoted"),
        ({"kind": "holdout", "outcome": "pinned", "evidence": {}}, "frozen holdout renewed: because"),
        (
            {"kind": "retrain", "outcome": "allowed", "evidence": {}, "actor": "schedule"},
            "retrain asked for on schedule",
        ),
        ({"kind": "retrain", "outcome": "halted", "evidence": {}}, "retrain halted"),
        ({"kind": "gate", "outcome": "accepted", "evidence": {"auc": 0.7}}, "challenger accepted"),
        ({"kind": "gate", "outcome": "refused", "evidence": {}}, "challenger refused: because"),
        (
            {"kind": "gate", "outcome": "cannot_decide", "evidence": {}, "reasons": ["cannot decide: no rows"]},
            "no decision on a challenger: no rows",
        ),
        (
            {"kind": "acknowledgement", "outcome": "acknowledged", "evidence": {}},
            "ada acknowledged an alert: because",
        ),
        (
            {
                "kind": "acknowledgement",
                "outcome": "acknowledged",
                "evidence": {},
                "reasons": ["acknowledged without a note"],
            },
            "ada acknowledged an alert",
        ),
        ({"kind": "something_new", "outcome": "done_well", "evidence": {}}, "something new: done well"),
    ],
)
def test_every_kind_of_decision_has_a_sentence(tmp_path: Any, decision: dict[str, Any], expected: str) -> None:
    mart = Mart(f"sqlite:///{tmp_path}/mart.db")
    mart.create()
    given = {"subject": "m", "as_of": TODAY, "reasons": ["because"], "actor": "ada", "run_id": "r", **decision}
    mart.append_decision(**given)
    told, more = read.story(mart, ["m"])
    assert (len(told), more) == (1, False)
    assert expected in told[0].text
    mart.engine.dispose()


# --- model -----------------------------------------------------------------------------------------------------------


def test_versions_say_what_became_of_them(seeded: Seeded) -> None:
    def statuses(part: str) -> dict[int, str]:
        return {version.number: version.status for version in seeded.page(part).versions}

    assert statuses("drifting") == {3: "refused", 2: "champion", 1: "former champion"}
    assert statuses("broken") == {2: "withdrawn", 1: "champion"}
    assert statuses("waiting") == {3: "waiting", 2: "champion", 1: "former champion"}
    drifting = {version.number: version for version in seeded.page("drifting").versions}
    assert [n for n, version in drifting.items() if version.can_roll_back_to] == [1]
    assert [n for n, version in drifting.items() if version.counted] == [3]
    assert drifting[2].gain == pytest.approx((0.021, 0.014, 0.028))
    assert drifting[2].effective_from == TODAY - dt.timedelta(days=21)
    assert drifting[1].gain is None
    page, more = read.versions(seeded.mart, seeded.spec("drifting"), limit=1, before=3)
    assert ([version.number for version in page], more) == ([2], True)


def test_marks_of_the_timeline(seeded: Seeded) -> None:
    def kinds(part: str) -> set[str]:
        return {mark.kind for mark in seeded.page(part).marks}

    assert {"promotion", "refusal", "data_fault"} <= kinds("drifting")
    assert {"rollback", "data_fault", "promotion"} <= kinds("broken")
    assert {"approval", "training"} <= kinds("waiting")
    assert "retrain_halted" in kinds("halted")
    marks = seeded.page("broken").marks
    assert [mark.as_of for mark in marks] == sorted(mark.as_of for mark in marks)
    faults = [(mark.as_of, mark.text) for mark in marks if mark.kind == "data_fault"]
    assert (TODAY - dt.timedelta(days=1), "data broken: distance") in faults
    assert (TODAY, "hub_actuals of 2013-06-29 stopped at ingest") in faults
    assert (TODAY, "data broken: distance") not in faults  # one mark an episode
    assert all(mark.link.startswith("/evergreen/") for mark in marks)


def test_heat_is_in_units_of_the_threshold_worst_first(seeded: Seeded) -> None:
    heat = seeded.page("drifting").heat
    assert heat.dates == tuple(TODAY - dt.timedelta(days=ago) for ago in range(DAYS - 1, -1, -1))
    worst = [max(v for v in heat.score[name] if v is not None) for name in heat.columns]
    assert worst == sorted(worst, reverse=True)
    assert heat.score["humid"][-1] is not None and heat.score["humid"][-1] > 1
    assert heat.score["distance"][-1] is not None and heat.score["distance"][-1] < 1
    assert heat.score["seats"][heat.dates.index(TODAY - dt.timedelta(days=7))] is None


def test_reports_and_verdicts_by_date(seeded: Seeded) -> None:
    page = seeded.page("drifting", limit=10)
    assert [report.as_of for report in page.reports] == [TODAY - dt.timedelta(days=ago) for ago in range(10)]
    assert page.more == {"story": True, "versions": False, "reports": True}
    assert [report.has_page for report in page.reports[4:7]] == [True, False, True]
    older, more = read.reports(seeded.mart, seeded.spec("drifting"), 10, before=page.reports[-1].as_of)
    assert older[0].as_of == TODAY - dt.timedelta(days=10) and more
    assert page.verdicts[TODAY] == "covariate_drift"
    assert len(page.verdicts) == DAYS
    waiting = seeded.page("waiting").waiting
    assert [(one.version, one.as_of) for one in waiting] == [(3, TODAY - dt.timedelta(days=3))]


def test_a_report_has_two_sentences_neighbours_and_its_runbook(seeded: Seeded) -> None:
    page = seeded.report("broken")
    assert page.happened.startswith("The data is broken in distance since 29 June: hub_actuals of 2013-06-29: stopped")
    assert page.todo.startswith("Repair hub_actuals of 29 June and run ingest__hub_flights for it again")
    assert (page.earlier, page.later) == (TODAY - dt.timedelta(days=1), None)
    assert page.runbook == "docs/runbooks/broken-data.md"
    severities = [(c.score or -1) / c.threshold for c in page.columns]
    assert severities == sorted(severities, reverse=True)
    assert seeded.report("broken", ago=1).later == TODAY
    assert seeded.report("broken", ago=DAYS) is None
    halted = seeded.report("halted")
    assert "Find out why the last challengers lost" in halted.todo
    assert halted.happened.startswith("Version 1 ranks worse since 27 June: AUC 0.640")
    promoted = seeded.report("drifting", ago=22)
    assert promoted.todo == "Nothing to do: the challenger beat the champion."


# --- data ------------------------------------------------------------------------------------------------------------


def test_tables_say_how_fresh_they_are(seeded: Seeded) -> None:
    tables = {table.name: table for table in read.tables(seeded.mart, seeded.world.sources, limit=5)}
    assert list(tables)[:4] == ["schedules", "actuals", "weather", "planes"]
    late, fresh, now_and_then = tables["hub_actuals"], tables["schedules"], tables["planes"]
    yesterday = TODAY - dt.timedelta(days=1)
    assert (late.due, late.newest, late.late_days) == (yesterday, yesterday - dt.timedelta(days=1), 1)
    assert (late.stopped, late.total) == (1, DAYS)
    assert late.partitions[0].status == "stopped" and late.partitions[0].day == yesterday
    assert (fresh.due, fresh.newest, fresh.late_days) == (TODAY, TODAY, 0)
    assert [p.day for p in fresh.partitions] == [TODAY - dt.timedelta(days=ago) for ago in range(5)]
    assert (now_and_then.due, now_and_then.late_days, now_and_then.total) == (None, 0, 2)
    assert all(partition.balanced for table in tables.values() for partition in table.partitions)


def test_partitions_page_by_date(seeded: Seeded) -> None:
    source = seeded.world.sources[HUBS]
    first, more = read.partitions(seeded.mart, source, "hub_weather", limit=3)
    assert more
    rest, more = read.partitions(seeded.mart, source, "hub_weather", before=first[-1].day, limit=500)
    assert not more
    assert len(first) + len(rest) == DAYS
    assert first[-1].day > rest[0].day
    assert read.partitions(seeded.mart, source, "weather") == ((), False)  # another source's table


def test_failures_count_rows_by_rule_and_show_them_as_they_came(seeded: Seeded) -> None:
    lake, source = quarantine(seeded.world), seeded.world.sources["nyc_flights"]
    table = next(t for t in read.tables(seeded.mart, seeded.world.sources) if t.name == "schedules")
    day = next(partition for partition in table.partitions if partition.quarantined == 8)
    found = read.failures(seeded.mart, source, "schedules", day.day, lake.read, examples=2)
    assert [(failure.reason, failure.rows) for failure in found] == [
        ("carrier: expected to match ^[A-Z0-9]{2}$", 8),
        ("time_hour: expected at least 0", 4),
    ]
    assert len(found[0].examples) == 2
    assert found[0].examples[1]["carrier"] == "carrier 1"
    assert found[0].examples[0]["time_hour"] == ""
    clean = next(partition for partition in table.partitions if partition.quarantined == 0)
    assert read.failures(seeded.mart, source, "schedules", clean.day, lake.read) == ()


def test_what_stopped_a_partition_comes_from_the_mart(seeded: Seeded) -> None:
    source, day = seeded.world.sources[HUBS], TODAY - dt.timedelta(days=1)
    found = read.failures(seeded.mart, source, "hub_actuals", day, quarantine(seeded.world).read)
    assert [failure.rows for failure in found] == [0]
    assert found[0].reason.startswith("bad rows: expected at most 5.0%")
    with pytest.raises(NotFound, match="hub_actuals of 2012-01-01: expected a partition"):
        read.failures(seeded.mart, source, "hub_actuals", dt.date(2012, 1, 1), quarantine(seeded.world).read)


# --- hostile text ----------------------------------------------------------------------------------------------------


def test_hostile_text_is_handed_on_as_it_is_and_kept_short(tmp_path: Any) -> None:
    mart = Mart(f"sqlite:///{tmp_path}/mart.db")
    hostile = Seeded(mart, seed(mart, models=2, days=40, hostile=True))
    page = hostile.page("drifting")
    assert set(HOSTILE) <= set(page.heat.columns)
    assert all(len(story.text) <= 300 for story in page.story)
    assert any(SCRIPT in story.text for story in page.story)
    for part in ("drifting", "broken"):
        report = hostile.report(part)
        assert len(report.happened) <= 240 and len(report.todo) <= 240
        assert LONG not in report.happened
        assert {column.name for column in report.columns} >= set(HOSTILE)
    links = [story.link for story in page.story] + [mark.link for mark in page.marks]
    assert not any("<" in link or '"' in link for link in links)
    lake = quarantine(hostile.world, hostile=True)
    source = hostile.world.sources["nyc_flights"]
    day = next(p for p in read.partitions(mart, source, "schedules")[0] if p.quarantined)
    shown = read.failures(mart, source, "schedules", day.day, lake.read)[0].examples[0]
    assert SCRIPT in shown.values()
    mart.engine.dispose()


# --- weight ----------------------------------------------------------------------------------------------------------


def test_reading_imports_nothing_heavy() -> None:
    heavy = ["pandas", "numpy", "pyarrow", "xgboost", "mlflow", "duckdb", "evidently", "great_expectations", "airflow"]
    code = f"import sys, include.evergreen.health.read; print([m for m in {heavy} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_the_example_holds_alerts_that_ended(seeded: Seeded) -> None:
    with seeded.mart.reading() as connection:
        ended = connection.scalar(sa.select(sa.func.count()).where(alerts.c.resolved_at.is_not(None)))
    assert ended and ended > 0
