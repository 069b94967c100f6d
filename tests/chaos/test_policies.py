"""The clock is wrong, or a run of last month comes after one of today: decisions depend on as-of dates alone."""

from __future__ import annotations

import datetime as dt
import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from include.evergreen.alerts.delivery import BURST
from include.evergreen.alerts.inbox import Inbox
from include.evergreen.errors import NotFound
from include.evergreen.pipeline import monitoring, retraining, rollback, scoring, training
from include.evergreen.pipeline.maintenance import maintain_lake
from include.evergreen.platform import Platform
from include.evergreen.settings import ObjectStoreSettings
from include.evergreen.specs import ModelSpec
from tests.chaos.clock import moved
from tests.chaos.flights import (
    DAY,
    SOURCE,
    TRAINED,
    UNTIL,
    Outside,
    promoted,
    quick,
    registered,
    score,
    world,
)
from tests.chaos.tally import Tally
from tests.chaos.test_storm import verdict

SPEC = quick()
SHIFTS = {"a day ahead": DAY, "a year back": -365 * DAY, "a year ahead": 365 * DAY}
YEARS = ("a year back", "a year ahead")
SECOND = TRAINED + 7 * DAY
"""From this date on version 2 is in force."""
CLOCKS = {"recorded_at", "decided_at", "promoted_at", "scored_at", "restated_at", "opened_at", "last_seen_at",
          "resolved_at", "told_at", "acknowledged_at"}  # fmt: skip
"""Columns that say when a row was written."""
TABLES = ("ledger", "champions", "scorings", "monitorings", "cohorts", "alerts", "alert_occurrences")


@pytest.fixture(scope="module")
def made(s3_store: ObjectStoreSettings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    platform = world(s3_store, tmp_path_factory.mktemp("policies"), SPEC)
    platform.mart.ensure_model(SPEC, SOURCE)
    yield platform
    platform.mart.engine.dispose()


def copied(platform: Platform, folder: Path) -> Platform:
    """A platform with a mart of its own, that holds what the other's holds."""
    folder.mkdir()
    source = str(platform.mart.engine.url.database)
    with closing(sqlite3.connect(source)) as held_there, closing(sqlite3.connect(folder / "mart.db")) as mine:
        held_there.backup(mine)
    uri = SecretStr(f"sqlite:///{folder}/mart.db")
    other = Platform(platform.settings.model_copy(update={"mart_uri": uri}))
    other.__dict__ |= {"lake": platform.lake, "registry": platform.registry}  # opened already
    return other


def held(outside: Outside, tables: tuple[str, ...] = TABLES) -> list[Any]:
    """Rows of the mart without the moments at which they were written, and the lake's snapshot ids."""
    drop = {*CLOCKS, "snapshot_id", "told"}
    found = []
    for table in tables:
        for row in outside.mart(f"select * from {table}"):
            values = {k: (v is not None) if k in CLOCKS else v for k, v in row.items() if k not in drop - CLOCKS}
            found.append((table, json.dumps(values, default=str, sort_keys=True)))
    return found


# --- the clock is wrong ----------------------------------------------------------------------------------------------


def life(platform: Platform) -> None:
    """A week in production: scored, monitored, drift, broken data, requests, a halt, a training, a rollback."""
    for i, kind in enumerate(("ok", "covariate_drift", "covariate_drift", "broken_data", "covariate_drift", "ok")):
        day = SECOND + i * DAY
        score(platform, SPEC, day, f"score-{day}")
        facts = json.loads(json.dumps(monitoring.measure(platform, SPEC, SOURCE, day, f"monitor-{day}", page=False)))
        monitoring.conclude(platform, SPEC, SOURCE, day, verdict(facts, day, kind), f"monitor-{day}")
        retraining.ask(platform, SPEC, day, f"monitor-{day}")
    for i in range(SPEC.retrain.losers):
        platform.mart.append_decision(
            kind="gate", subject=SPEC.name, as_of=SECOND + i * DAY, outcome="refused", reasons=["worse"], evidence={},
            actor="gate", run_id=f"loser-{i}",
        )  # fmt: skip
    for days in (20, 21, 45):  # the breaker is open, then lets one try pass
        day = SECOND + days * DAY
        for at in (day, day + DAY):
            monitoring.conclude(platform, SPEC, SOURCE, at, verdict(facts, at, "covariate_drift"), f"monitor-{at}")
            retraining.ask(platform, SPEC, at, f"monitor-{at}")
    plan = rollback.plan(platform, SPEC, 1, "back")
    done = rollback.withdraw(platform, SPEC, plan, "back", "oncall", "a test", dry_run=False)
    for text in done["partitions"]:
        rollback.rescore(platform, SPEC, SOURCE, dt.date.fromisoformat(text), 1, "back")
    rollback.complete(platform, SPEC, plan, "back")


@pytest.fixture(scope="module")
def right(made: Platform, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """What `life` leaves when the clock is right."""
    folder = tmp_path_factory.mktemp("right")
    platform = copied(made, folder / "mart")
    life(platform)
    made.registry.set_alias(SPEC.name, 2, "champion")
    found = held(Outside(platform.settings, folder / "outside"))
    outcomes = {json.loads(row)["outcome"] for table, row in found if table == "ledger"}
    assert {"allowed", "refused", "halted", "rolled_back", "covariate_drift", "broken_data"} <= outcomes
    return found


@pytest.mark.parametrize("name", YEARS)
def test_no_decision_depends_on_the_wall_clock(
    made: Platform, right: list[Any], tally: Tally, name: str, tmp_path: Path
) -> None:
    """The same week with a wrong clock: the same verdicts, requests, halts, champions, scorings and alerts."""
    platform = copied(made, tmp_path / "mart")
    with tally.fault("clock moved", f"{name}: a week of scoring, monitoring, requests and a rollback") as fault:
        with moved(SHIFTS[name]):
            life(platform)
        made.registry.set_alias(SPEC.name, 2, "champion")
        fault.rows(right, held(Outside(platform.settings, tmp_path / "outside")))


def test_a_clock_that_moves_within_a_week_changes_no_decision(
    made: Platform, right: list[Any], tally: Tally, tmp_path: Path
) -> None:
    """Every step at another time: forwards, back, forwards."""
    platform = copied(made, tmp_path / "mart")
    turns = [365 * DAY, -365 * DAY, DAY, -DAY]
    steps: list[Any] = []

    def at_another_time(call: Any) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            steps.append(call.__name__)
            with moved(turns[len(steps) % len(turns)]):
                return call(*args, **kwargs)

        return run

    with tally.fault("clock moved", "between any two steps") as fault, pytest.MonkeyPatch.context() as patch:
        for module, names in (
            (scoring, ("predict", "publish")),
            (monitoring, ("measure", "conclude")),
            (retraining, ("ask",)),
            (rollback, ("plan", "withdraw", "rescore")),
        ):
            for each in names:
                patch.setattr(module, each, at_another_time(getattr(module, each)))
        life(platform)
        made.registry.set_alias(SPEC.name, 2, "champion")
        assert len(steps) > 30
        fault.rows(right, held(Outside(platform.settings, tmp_path / "outside")))


@pytest.mark.parametrize("name", YEARS)
def test_a_training_does_not_depend_on_the_wall_clock(made: Platform, tally: Tally, name: str, tmp_path: Path) -> None:
    """The same rows, the same bytes, the same answer of the gate."""
    platform = copied(made, tmp_path / "mart")
    with tally.fault("clock moved", f"{name}: training"):
        answers = []
        for shift in (dt.timedelta(0), SHIFTS[name]):
            with moved(shift):
                key = f"clock-{name}-{shift}"
                built = training.build(platform, SPEC, UNTIL, key, "chaos")
                fitted = training.fit(platform, SPEC, UNTIL, key, built, None)
                leaks = training.check_leaks(platform, SPEC, UNTIL, built)
                decided = training.decide(platform, SPEC, UNTIL, key, built, fitted, leaks)
            answers.append((built["rows_sha256"], fitted["sha256"], decided["outcome"], len(decided["reasons"])))
        assert answers[0] == answers[1]


@pytest.mark.parametrize("name", SHIFTS)
def test_upkeep_keeps_what_a_writer_is_about_to_commit(made: Platform, tally: Tally, name: str, tmp_path: Path) -> None:
    """A clock that runs ahead makes no file old: not the one of a commit on its way, nor a step's staged rows."""
    outside = Outside(made.settings, tmp_path)
    table = "trusted.schedules"
    before = outside.lake("select * from {trusted.schedules}")
    folder = outside.paths(table)[0].rsplit("/", 1)[0]
    young = [f"{folder}/on-its-way.parquet", "staging/ingest/schedules/running/raw.parquet"]
    for key in young:
        made.objects.put(key, b"soon")
    with tally.fault("clock moved", f"{name}: maintain_lake beside a writer") as fault:
        with moved(SHIFTS[name]):
            maintain_lake(made)
        assert set(young) <= set(outside.keys(outside.bucket))
        fault.rows(map(repr, before), map(repr, outside.lake("select * from {trusted.schedules}")))


@pytest.mark.parametrize("name", SHIFTS)
def test_alerts_are_told_after_a_wrong_clock_is_right_again(
    made: Platform, tally: Tally, name: str, measured_facts: dict[str, Any], tmp_path: Path
) -> None:
    """A sender with a wrong clock that died, or that told many: the next one is held up by neither."""
    platform = copied(made, tmp_path / "mart")
    remind = dt.timedelta(hours=24)
    with tally.fault("clock moved", f"{name}: alerts"):
        with moved(SHIFTS[name]):
            wrong = Inbox(platform.mart, now=lambda: dt.datetime.now(dt.UTC))
            for i in range(BURST + 1):
                part = verdict(measured_facts, SECOND, "broken_data") | {"run_id": f"run-{i}"}
                _open(platform, f"model_{i}", part)
                told = wrong.claim("mail", remind)
                if i:
                    wrong.settle("mail", told, arrived=True)  # the first sender died before it could say so
        inbox = Inbox(platform.mart, now=lambda: dt.datetime.now(dt.UTC))
        _open(platform, "model_new", verdict(measured_facts, SECOND, "broken_data"))
        due = {one.alert.subject: one.said for one in inbox.claim("mail", remind)}
        assert due.get("model_new") == "opened"
        assert due.get("model_0") == "opened", due


def _open(platform: Platform, model: str, facts: dict[str, Any]) -> None:
    from include.evergreen.alerts.cause import of_verdict

    found = of_verdict(model, SECOND, "broken_data", [], facts["stopped"], "run")
    assert found is not None
    Inbox(platform.mart).raise_(found)


@pytest.fixture(scope="module")
def measured_facts(made: Platform, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    platform = copied(made, tmp_path_factory.mktemp("facts") / "mart")
    score(platform, SPEC, SECOND, "facts")
    found: dict[str, Any] = monitoring.measure(platform, SPEC, SOURCE, SECOND, "facts", page=False)
    return json.loads(json.dumps(found))  # type: ignore[no-any-return]


# --- last month after today ------------------------------------------------------------------------------------------


def test_a_run_of_the_past_after_a_run_of_today(
    made: Platform, tally: Tally, measured_facts: dict[str, Any], tmp_path: Path
) -> None:
    """Today is scored, monitored and asked for; then days before it, in any order, and one before any champion."""
    platform = copied(made, tmp_path / "mart")
    outside = Outside(platform.settings, tmp_path / "outside")
    today, past = UNTIL, [TRAINED + 3 * DAY, TRAINED + 1 * DAY, TRAINED + 2 * DAY]
    score(platform, SPEC, today, "today")
    for day in (today - DAY, today):
        monitoring.conclude(
            platform, SPEC, SOURCE, day, verdict(measured_facts, day, "covariate_drift"), f"monitor-{day}"
        )
    assert retraining.ask(platform, SPEC, today, "today").decision.accepted
    before = {table: held(outside, (table,)) for table in (*TABLES, f"{SPEC.name}_predictions")}

    with tally.fault("a run of last month", "no champion was in force yet"):
        early = dt.date(2013, 1, 20)
        with pytest.raises(NotFound, match=f"in force at {early}, found the first one, version 1"):
            score(platform, SPEC, early, "early")
    with tally.fault("a run of last month", "scored by the champion of its date") as fault:
        for day in past:
            assert score(platform, SPEC, day, f"late-{day}")["version"] == 1
        scored = outside.mart("select as_of, version from scorings where is_current = 1")
        fault.rows(
            [(str(today), 2), *((str(day), 1) for day in past)], [(row["as_of"], row["version"]) for row in scored]
        )
    with tally.fault("a run of last month", "alerts, requests and verdicts of today stay") as fault:
        for day, kind in zip(past, ("broken_data", "ok", "covariate_drift"), strict=True):
            monitoring.conclude(platform, SPEC, SOURCE, day, verdict(measured_facts, day, kind), f"late-{day}")
            answer = retraining.ask(platform, SPEC, day, f"late-{day}")
            assert not answer.decision.accepted
        for table in TABLES:
            if table == "alert_occurrences":
                continue
            stays = [row for row in held(outside, (table,)) if row in before[table]]
            if before[table]:
                fault.rows(before[table], stays)
        assert held(outside, ("alerts",)) == before["alerts"]
        newest = outside.mart("select verdict from monitorings order by as_of desc limit 1")
        assert newest[0]["verdict"] == "covariate_drift"
    with tally.fault("a run of last month", "the governor counts no later verdict, and every request") as fault:
        rows = outside.mart("select as_of, outcome from ledger where kind = 'retrain'")
        allowed = [row["as_of"] for row in rows if row["outcome"] == "allowed"]
        fault.rows([str(today)], allowed)
    with tally.fault("a run of last month", "rows of today") as fault:
        table = f"{SPEC.name}_predictions"
        fault.rows(before[table], [row for row in held(outside, (table,)) if f'"as_of": "{today}"' in row[1]])


def test_a_training_of_last_month_makes_no_champion_of_today(made: Platform, tally: Tally, tmp_path: Path) -> None:
    """It is in force where it would have been, the alias stays, and the gate does not compare it with its future."""
    platform = copied(made, tmp_path / "mart")
    outside = Outside(platform.settings, tmp_path / "outside")
    as_of = TRAINED + 2 * DAY
    score(platform, SPEC, UNTIL, "today")
    with tally.fault("a run of last month", "training: the gate"):
        key = "late"
        built = training.build(platform, SPEC, as_of, key, "chaos")
        fitted = training.fit(platform, SPEC, as_of, key, built, {"eta": 0.2})
        leaks = training.check_leaks(platform, SPEC, as_of, built)
        decided = training.decide(platform, SPEC, as_of, key, built, fitted, leaks)
        assert decided["outcome"] == "cannot_decide", decided["reasons"]
        assert any("no compared model was trained on" in reason for reason in decided["reasons"])
    with tally.fault("a run of last month", "training: the champion") as fault:
        version = promoted(platform, SPEC, as_of, "late-by-hand", eta=0.15)
        rows = outside.mart("select version, effective_from from champions order by effective_from")
        expected = [(1, TRAINED), (version, as_of + DAY), (2, SECOND)]
        fault.rows([(n, str(day)) for n, day in expected], [(row["version"], row["effective_from"]) for row in rows])
        champion = platform.registry.champion(SPEC.name)
        assert champion is not None and champion.number == 2
        assert score(platform, SPEC, as_of + DAY, "late")["version"] == version
        assert score(platform, SPEC, SECOND, "later")["version"] == 2
        assert score(platform, SPEC, as_of, "earlier")["version"] == 1


FLIGHT_NUMBERS = """
select e.carrier, e.flight, e.origin, e.as_of, s.carrier as airline, s.distance, s.sched_dep_time // 100 as hour
from entities e
join schedules s on s.carrier = e.carrier and s.flight = e.flight and s.origin = e.origin
    and s.flight_date = e.as_of::date and s.available_at <= e.as_of
"""


def numbers() -> ModelSpec:
    """A model whose entity comes back every day: the flight number."""
    data = SPEC.model_dump()
    return ModelSpec.model_validate(
        {
            **data,
            "name": "flight_number",
            "entity": {"table": "schedules", "key": ["carrier", "flight", "origin"]},
            "reference_tables": [],
            "lookback_days": 0,
            "features": {"airline": {"type": "category"}, "distance": {}, "hour": {}},
            "gate": {**data["gate"], "slices": [], "baseline_by": None},
            "calibration": None,
            "sql": FLIGHT_NUMBERS,
        }
    )


def test_the_current_view_does_not_go_back(made: Platform, tally: Tally, tmp_path: Path) -> None:
    """Flight numbers that fly every day: after a backfill each shows its latest date, as in one clean run."""
    spec = numbers()
    version = promoted(made, spec, TRAINED, "numbers")
    days = [TRAINED + i * DAY for i in range(1, 6)]
    views = {}
    for name, order in {
        "in order": days,
        "backwards": days[::-1],
        "today first": [days[4], *days[:4], days[4]],
    }.items():
        platform = copied(made, tmp_path / name)
        for i, day in enumerate(order):
            assert score(platform, spec, day, f"{name}-{i}")["version"] == version
        outside = Outside(platform.settings, tmp_path / f"{name}-outside")
        columns = "carrier, flight, origin, as_of, probability, model_version, restated_at"
        views[name] = [tuple(row.values()) for row in outside.mart(f"select {columns} from flight_number_current")]
        repeated = [row for row in views[name] if row[3] == str(days[-1])]
        assert 0 < len(repeated) < len(views[name])
    for name in ("backwards", "today first"):
        with tally.fault("a run of last month", f"the current view, scored {name}") as fault:
            fault.rows(views["in order"], views[name])


def test_a_late_answer_of_a_person_puts_nothing_back(made: Platform, tally: Tally, tmp_path: Path) -> None:
    """A promotion that is repeated after a rollback has overruled it moves nothing."""
    platform = copied(made, tmp_path / "mart")
    late = registered(platform, SPEC, UNTIL, "late-yes", eta=0.25)
    training.promote(platform, SPEC, UNTIL, "late-yes", late["registered"], late["decided"])
    plan = rollback.plan(platform, SPEC, 1, "back")
    rollback.withdraw(platform, SPEC, plan, "back", "oncall", "a test", dry_run=False)
    outside = Outside(platform.settings, tmp_path / "outside")
    with tally.fault("a run of last month", "a promotion again, after its rollback") as fault:
        before = held(outside, ("champions", "ledger"))
        training.promote(platform, SPEC, UNTIL, "late-yes", late["registered"], late["decided"])
        fault.rows(before, held(outside, ("champions", "ledger")))
        champion = platform.registry.champion(SPEC.name)
        assert champion is not None and champion.number == 1
    made.registry.set_alias(SPEC.name, 2, "champion")
