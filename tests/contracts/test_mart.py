"""The mart and the ledger: one suite over SQLite and PostgreSQL."""

from __future__ import annotations

import datetime as dt
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import sqlalchemy as sa

from include.evergreen.errors import AccountingError, NotFound, Refused, Unavailable
from include.evergreen.mart.schema import cohorts
from include.evergreen.mart.store import Mart
from include.evergreen.mart.views import names
from include.evergreen.specs import ModelSpec, SourceSpec

KEY = ["flight_date", "carrier", "flight", "origin"]
DAY = dt.date(2013, 7, 1)


def source() -> SourceSpec:
    return SourceSpec.model_validate(
        {
            "name": "nyc_flights",
            "description": "Flights out of New York",
            "owner": "tests",
            "start_date": DAY,
            "tables": {
                "schedules": {
                    "description": "What is planned",
                    "path": "schedules/{date}.csv",
                    "date_column": "flight_date",
                    "key": KEY,
                    "columns": {
                        "flight_date": {"type": "date", "nullable": False},
                        "carrier": {"type": "string", "description": "the operator's code, 100% of them"},
                        "flight": {"type": "integer"},
                        "origin": {"type": "string"},
                    },
                }
            },
        }
    )


def model(**changes: Any) -> ModelSpec:
    return ModelSpec.model_validate(
        {
            "name": "flight_delay",
            "description": "Will it be late?",
            "owner": "tests",
            "source": "nyc_flights",
            "start_date": DAY,
            "entity": {"table": "schedules", "key": KEY},
            "label": {"table": "actuals", "expression": "arr_delay > 15"},
            "features": {"dep_hour": {}},
            "sql": "select 1",
            **changes,
        }
    )


def predictions(count: int = 5, day: dt.date = DAY, version: int = 1, seed: int = 1, **columns: Any) -> pa.Table:
    probability = np.random.default_rng(seed).random(count)
    return pa.table(
        {
            "flight_date": pa.array([day] * count, pa.date32()),
            "carrier": ["UA"] * count,
            "flight": np.arange(count),
            "origin": ["JFK"] * count,
            "as_of": pa.array([day] * count, pa.date32()),
            "probability": probability,
            "decision": probability >= 0.5,
            **{f"reason_{rank}": [f"dep_hour = {rank} (+0.10)"] * count for rank in (1, 2, 3)},
            "model_version": pa.array([version] * count, pa.int32()),
            **columns,
        }
    )


def batch(day: dt.date = DAY, rows_in: int = 10, **changes: Any) -> dict[str, Any]:
    return {
        "table_name": "schedules",
        "partition_date": day,
        "source": "nyc_flights",
        "status": "published",
        "rows_in": rows_in,
        "trusted": rows_in - 3,
        "quarantined": 2,
        "duplicates": 1,
        "deliveries": [{"key": "a.csv", "etag": "1", "sha256": "2", "rows": rows_in}],
        "reasons": [],
        "snapshot_id": 11,
        "run_id": "r1",
        **changes,
    }


def decision(**changes: Any) -> dict[str, Any]:
    return {
        "kind": "gate",
        "subject": "flight_delay",
        "as_of": DAY,
        "outcome": "accepted",
        "reasons": ["better than the champion"],
        "evidence": {"auc": np.float64(0.7), "gain": float("nan"), "as_of": DAY},
        "actor": "train__flight_delay",
        "run_id": "r1",
        **changes,
    }


def query(mart: Mart, sql: str) -> list[tuple[Any, ...]]:
    with mart.engine.connect() as connection:
        return [tuple(row) for row in connection.exec_driver_sql(sql)]


def everything(mart: Mart) -> dict[str, list[tuple[Any, ...]]]:
    names = sa.inspect(mart.engine).get_table_names()
    return {name: sorted(query(mart, f"select * from {name}"), key=repr) for name in names}


def at_once(work: Callable[[int], None], workers: int = 4) -> list[BaseException]:
    failures: list[BaseException] = []
    barrier = threading.Barrier(workers)

    def run(number: int) -> None:
        try:
            barrier.wait()
            work(number)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return failures


@pytest.fixture
def mart(uri: str) -> Iterator[Mart]:
    made = Mart(uri)
    made.create()
    made.ensure_model(model(), source())
    yield made
    made.engine.dispose()


# --- creation --------------------------------------------------------------------------------------------------------


def test_creating_at_once_and_again_fails_nowhere(uri: str) -> None:
    def work(_: int) -> None:
        mart = Mart(uri)
        mart.create()
        mart.ensure_model(model(), source())
        mart.create()
        mart.ensure_model(model(), source())
        mart.engine.dispose()

    assert at_once(work) == []
    mart = Mart(uri)
    inspector = sa.inspect(mart.engine)
    assert {"ledger", "flight_delay_predictions", "flight_delay_labels"} <= set(inspector.get_table_names())
    assert set(inspector.get_view_names()) == {"model_decisions", *names(model())}
    mart.engine.dispose()


def test_the_key_columns_have_the_types_of_the_source(mart: Mart) -> None:
    columns = {c["name"]: c for c in sa.inspect(mart.engine).get_columns("flight_delay_predictions")}
    assert list(columns) == [
        *KEY,
        *("as_of", "probability", "decision", "reason_1", "reason_2", "reason_3", "model_version", "scored_at"),
    ]
    assert isinstance(columns["flight_date"]["type"], sa.Date)
    assert isinstance(columns["flight"]["type"], sa.BigInteger)
    assert isinstance(columns["carrier"]["type"], sa.Text)
    if not mart.is_sqlite:
        assert columns["carrier"]["comment"] == "the operator's code, 100% of them"


def test_more_reasons_add_columns_and_keep_rows(mart: Mart) -> None:
    mart.publish_scoring(model(), DAY, 1, predictions(), 1, "r1")
    wider = model(scoring={"reasons": 4})
    mart.ensure_model(wider, source())
    more = predictions(day=DAY + dt.timedelta(days=1), reason_4=["weekday = 1 (+0.01)"] * 5)
    mart.publish_scoring(wider, DAY + dt.timedelta(days=1), 1, more, 2, "r2")
    assert query(mart, "select reason_4, count(*) from flight_delay_current group by 1 order by 1 desc nulls last") == [
        ("weekday = 1 (+0.01)", 5),
        (None, 5),
    ]


def test_a_changed_entity_key_is_refused(mart: Mart) -> None:
    with pytest.raises(Refused, match=r"expected the key .*'flight'.*found .*'origin'"):
        mart.ensure_model(model(entity={"table": "schedules", "key": ["flight_date", "flight"]}), source())


def test_a_mart_that_was_not_created_says_so(uri: str) -> None:
    mart = Mart(uri)
    with pytest.raises(NotFound, match="Has it been created"):
        mart.totals()
    mart.engine.dispose()


# --- ingest ----------------------------------------------------------------------------------------------------------


def test_batches_are_totalled_by_table(mart: Mart) -> None:
    later = DAY + dt.timedelta(days=1)
    mart.record_batches([batch(), batch(later, 20), batch(table_name="actuals", rows_in=7)])
    assert mart.totals() == {
        "actuals": {"in": 7, "trusted": 4, "quarantined": 2, "duplicates": 1},
        "schedules": {"in": 30, "trusted": 24, "quarantined": 4, "duplicates": 2},
    }
    assert mart.recent_counts("schedules", later + dt.timedelta(days=1), 5) == [19, 9]
    assert mart.recent_counts("schedules", later + dt.timedelta(days=1), 1) == [19]
    assert mart.recent_counts("schedules", later, 5) == [9]
    assert [row["partition_date"] for row in mart.batches("schedules")] == [DAY, later]
    assert len(mart.batches()) == 3


def test_the_same_batch_again_changes_nothing_and_another_replaces_it(mart: Mart) -> None:
    mart.record_batches([batch()])
    before = everything(mart)
    mart.record_batches([batch(run_id="r2", snapshot_id=12)])
    assert everything(mart) == before
    mart.record_batches([batch(rows_in=11, run_id="r3")])
    assert [(row["rows_in"], row["run_id"]) for row in mart.batches()] == [(11, "r3")]


def test_rows_that_do_not_add_up_are_refused_and_none_is_kept(mart: Mart) -> None:
    with pytest.raises(AccountingError, match=r"found 10 = 7 \+ 2 \+ 2"):
        mart.record_batches([batch(DAY + dt.timedelta(days=1)), batch(duplicates=2)])
    assert mart.batches() == []


def test_a_stopped_batch_counts_no_rows_but_keeps_those_published_before(mart: Mart) -> None:
    stopped = {"status": "stopped", "trusted": 0, "quarantined": 0, "duplicates": 0, "snapshot_id": None}
    mart.record_batches([batch(rows_in=99, **stopped)])
    assert (mart.totals(), mart.recent_counts("schedules", dt.date.max, 9)) == ({}, [])
    mart.record_batches([batch()])
    mart.record_batches([batch(rows_in=99, reasons=["empty file"], **stopped)])
    assert mart.totals()["schedules"] == {"in": 10, "trusted": 7, "quarantined": 2, "duplicates": 1}
    assert [(row["status"], row["reasons"]) for row in mart.batches()] == [("stopped", ["empty file"])]


# --- ledger ----------------------------------------------------------------------------------------------------------


def test_a_retry_returns_the_first_decision(mart: Mart) -> None:
    first = mart.append_decision(**decision())
    assert first["evidence"] == {"auc": 0.7, "gain": None, "as_of": "2013-07-01"}
    assert first["decided_at"].tzinfo is dt.UTC
    assert mart.append_decision(**decision(outcome="refused", reasons=["changed my mind"])) == first
    assert mart.decisions() == [first]


def test_retries_at_once_record_one_decision(mart: Mart) -> None:
    assert at_once(lambda number: mart.append_decision(**decision(outcome=str(number))) and None) == []
    assert len(mart.decisions()) == 1


def test_once_a_date_another_run_that_says_the_same_leaves_no_row(mart: Mart) -> None:
    first = mart.append_decision(**decision())
    assert mart.append_decision(**decision(run_id="r2", actor="me"), once_a_date=True) == first
    other_date = mart.append_decision(**decision(run_id="r2", as_of=DAY + dt.timedelta(days=1)), once_a_date=True)
    assert other_date["run_id"] == "r2"
    assert len(mart.decisions()) == 2
    mart.append_decision(**decision(run_id="r3"))
    assert len(mart.decisions()) == 3, "without it every run leaves its row"


@pytest.mark.parametrize(
    "change",
    [{"outcome": "refused"}, {"reasons": ["another"]}, {"evidence": {"auc": 0.8}}],
    ids=lambda c: next(iter(c)),
)
def test_once_a_date_only_the_newest_counts(mart: Mart, change: dict[str, Any]) -> None:
    mart.append_decision(**decision(), once_a_date=True)
    mart.append_decision(**decision(run_id="r2", **change), once_a_date=True)
    mart.append_decision(**decision(run_id="r3"), once_a_date=True)
    assert [row["run_id"] for row in mart.decisions()] == ["r3", "r2", "r1"]
    assert mart.append_decision(**decision(run_id="r2"), once_a_date=True)["run_id"] == "r2", "a retry gets its own"
    assert len(mart.decisions()) == 3


def test_once_a_date_holds_for_runs_at_once(mart: Mart) -> None:
    runs = at_once(lambda n: mart.append_decision(**decision(run_id=f"r{n}"), once_a_date=True) and None, workers=8)
    assert runs == []
    assert len(mart.decisions()) == 1


def test_decisions_are_newest_first_and_filtered(mart: Mart) -> None:
    for number in range(3):
        day = DAY + dt.timedelta(days=number)
        mart.append_decision(**decision(as_of=day, run_id=f"r{number}"))
        mart.append_decision(**decision(as_of=day, run_id=f"r{number}", kind="retrain", subject="other"))
    assert [row["as_of"].day for row in mart.decisions(kind="gate")] == [3, 2, 1]
    assert [row["as_of"].day for row in mart.decisions(subject="other", until=dt.date(2013, 7, 2))] == [2, 1]
    assert [row["as_of"].day for row in mart.decisions(kind="gate", since=dt.date(2013, 7, 2))] == [3, 2]
    assert len(mart.decisions(limit=2)) == 2


@pytest.mark.parametrize("statement", ["update ledger set outcome = 'refused'", "delete from ledger"])
def test_the_ledger_refuses_changes(mart: Mart, statement: str) -> None:
    mart.append_decision(**decision())
    before = everything(mart)
    with pytest.raises(sa.exc.DBAPIError, match="append only"), mart.engine.begin() as connection:
        connection.exec_driver_sql(statement)
    assert everything(mart) == before


@pytest.mark.parametrize(
    "statement",
    [
        "update ledger set outcome = 'refused'",
        "delete from ledger",
        "insert or replace into ledger select id, kind, subject, as_of, 'refused', reasons, evidence, actor, run_id, "
        "decided_at from ledger",
    ],
)
def test_the_ledger_refuses_changes_by_other_tools(tmp_path: Path, statement: str) -> None:
    mart = Mart(f"sqlite:///{tmp_path / 'mart.db'}")
    mart.create()
    mart.append_decision(**decision())
    mart.engine.dispose()
    with sqlite3.connect(tmp_path / "mart.db") as other:
        with pytest.raises(sqlite3.DatabaseError, match="append only"):
            other.execute(statement)
        assert other.execute("select outcome from ledger").fetchall() == [("accepted",)]


# --- champions -------------------------------------------------------------------------------------------------------


def test_the_champion_is_the_latest_in_force(mart: Mart) -> None:
    assert mart.champion_at("flight_delay", DAY) is None
    for version, days in ((1, 0), (2, 10), (1, 20)):
        mart.promote(
            model="flight_delay",
            version=version,
            effective_from=DAY + dt.timedelta(days=days),
            metrics={"auc": 0.7},
            run_id="r",
        )
    mart.promote(model="other", version=9, effective_from=DAY, metrics={}, run_id="r")
    found = [mart.champion_at("flight_delay", DAY + dt.timedelta(days=days)) for days in (-1, 0, 9, 10, 20, 99)]
    assert [champion and champion[0] for champion in found] == [None, 1, 1, 2, 1, 1]
    assert [row["version"] for row in mart.champion_history("flight_delay")] == [1, 2, 1]


def test_promoting_again_changes_nothing(mart: Mart) -> None:
    fact: dict[str, Any] = {"model": "m", "version": 1, "effective_from": DAY, "metrics": {"auc": 0.7}}
    first = mart.promote(**fact, run_id="r1")
    assert mart.promote(**fact, run_id="r2") == first


# --- scorings --------------------------------------------------------------------------------------------------------


def test_a_rerun_changes_no_row(mart: Mart) -> None:
    first = mart.publish_scoring(model(), DAY, 1, predictions(), 5, "r1")
    mart.publish_scoring(model(), DAY + dt.timedelta(days=1), 1, predictions(day=DAY + dt.timedelta(days=1)), 6, "r2")
    before = everything(mart)
    assert mart.publish_scoring(model(), DAY, 1, predictions(), 7, "r3") == first
    assert everything(mart) == before


def test_a_rerun_leaves_the_same_bytes(tmp_path: Path) -> None:
    def dump() -> list[str]:
        mart.engine.dispose()
        with sqlite3.connect(tmp_path / "mart.db") as other:
            return list(other.iterdump())

    mart = Mart(f"sqlite:///{tmp_path / 'mart.db'}")
    mart.create()
    mart.ensure_model(model(), source())
    days = [DAY + dt.timedelta(days=number) for number in range(3)]
    for day in days:
        mart.publish_scoring(model(), day, 1, predictions(day=day), 5, "r1")
    before = dump()
    for day in days[:2]:
        shuffled = predictions(day=day).take(pa.array([3, 1, 4, 0, 2]))
        mart.publish_scoring(model(), day, 1, shuffled, 8, "r9")
    assert dump() == before


def test_current_has_one_row_per_entity_of_the_version_in_force(mart: Mart) -> None:
    mart.publish_scoring(model(), DAY, 1, predictions(), 1, "r1")
    mart.publish_scoring(model(), DAY, 2, predictions(version=2, seed=2), 2, "r2")
    assert query(mart, "select model_version, count(*) from flight_delay_current group by 1") == [(2, 5)]
    mart.publish_scoring(model(), DAY, 1, predictions(), 3, "r3")
    assert query(mart, "select model_version, count(*) from flight_delay_current group by 1") == [(1, 5)]
    assert query(mart, "select count(*) from flight_delay_predictions") == [(10,)]
    assert [(row["version"], row["is_current"]) for row in mart.scorings("flight_delay")] == [(1, True), (2, False)]
    current = mart.scoring("flight_delay", DAY)
    assert current is not None
    assert (current["version"], current["rows"], current["snapshot_id"]) == (1, 5, 3)
    assert mart.scoring("flight_delay", DAY - dt.timedelta(days=1)) is None


def test_current_takes_the_latest_as_of_of_each_entity(mart: Mart) -> None:
    narrow = model(name="loyalty", entity={"table": "schedules", "key": ["flight"]})
    mart.ensure_model(narrow, source())
    for days, count in ((0, 5), (1, 3)):
        day = DAY + dt.timedelta(days=days)
        mart.publish_scoring(narrow, day, 1, predictions(count, day=day, seed=days), 1, "r1")
    # the latest date was also scored by a version that is no longer current
    late = DAY + dt.timedelta(days=2)
    mart.publish_scoring(narrow, late, 1, predictions(5, day=late), 1, "r1")
    mart.publish_scoring(narrow, late, 2, predictions(2, day=late, version=2), 1, "r1")
    rows = query(mart, "select flight, as_of, model_version from loyalty_current order by flight")
    assert [(row[0], str(row[1]), row[2]) for row in rows] == [
        (0, "2013-07-03", 2),
        (1, "2013-07-03", 2),
        (2, "2013-07-02", 1),
        (3, "2013-07-01", 1),
        (4, "2013-07-01", 1),
    ]


def test_a_failed_publication_leaves_the_former_rows(mart: Mart) -> None:
    mart.publish_scoring(model(), DAY, 1, predictions(), 1, "r1")
    before = everything(mart)
    twice = pa.concat_tables([predictions(seed=9), predictions(seed=9)])
    with pytest.raises(sa.exc.IntegrityError):
        mart.publish_scoring(model(), DAY, 1, twice, 2, "r2")
    assert everything(mart) == before


def test_two_publications_at_once_end_in_one(mart: Mart) -> None:
    def work(number: int) -> None:
        version = number % 2 + 1
        mart.publish_scoring(model(), DAY, version, predictions(500, version=version, seed=version), 1, f"r{number}")

    assert at_once(work) == []
    assert query(mart, "select count(*), count(distinct model_version) from flight_delay_current") == [(500, 1)]
    assert sum(row["is_current"] for row in mart.scorings("flight_delay")) == 1


def test_outcomes_join_what_happened_once_known(mart: Mart) -> None:
    spec = model()
    mart.publish_scoring(spec, DAY, 1, predictions(), 1, "r1")
    assert query(mart, "select * from flight_delay_outcomes") == []
    known = predictions().select([*KEY, "as_of"]).slice(0, 3)

    def labels(values: list[bool]) -> pa.Table:
        moment = pa.array([dt.date(2013, 7, 2)] * 3, pa.date32()).cast(pa.timestamp("us"))
        return known.append_column("label", pa.array(values)).append_column("known_at", moment)

    assert mart.write_labels(spec, labels([True, False, True])) == 3
    mart.write_labels(spec, labels([True, True, True]))
    before = everything(mart)
    mart.write_labels(spec, labels([True, True, True]))
    assert everything(mart) == before
    rows = query(mart, "select flight, label, model_version from flight_delay_outcomes order by flight")
    assert rows == [(0, True, 1), (1, True, 1), (2, True, 1)]
    moment = query(mart, "select distinct known_at from flight_delay_outcomes")[0][0]
    assert str(moment).startswith("2013-07-02 00:00:00")


# --- monitoring ------------------------------------------------------------------------------------------------------


def test_monitoring_keeps_the_first_record_of_the_same_verdict(mart: Mart) -> None:
    def record(day: int, verdict: str = "ok", run_id: str = "r1") -> dict[str, Any]:
        return mart.record_monitoring(
            model="flight_delay",
            as_of=dt.date(2013, 7, day),
            version=1,
            verdict=verdict,
            reasons=["nothing moved"],
            columns={"dep_hour": {"method": "psi", "score": np.float32(0.5), "threshold": 0.1, "breached": np.True_}},
            performance={"auc": float("nan")},
            report_uri=None,
            run_id=run_id,
        )

    first = record(1)
    assert record(1, run_id="r2") == first
    record(2)
    changed = record(1, verdict="drift", run_id="r3")
    assert (changed["verdict"], changed["run_id"]) == ("drift", "r3")
    assert [row["as_of"].day for row in mart.monitorings("flight_delay")] == [2, 1]
    assert [row["as_of"].day for row in mart.monitorings("flight_delay", until=dt.date(2013, 7, 1))] == [1]
    assert len(mart.monitorings("flight_delay", limit=1)) == 1
    assert changed["columns"]["dep_hour"] == {"method": "psi", "score": 0.5, "threshold": 0.1, "breached": True}


def cohort(**changes: Any) -> dict[str, Any]:
    return {
        "model": "flight_delay",
        "as_of": DAY,
        "version": 1,
        "scored_rows": 10,
        "matured_rows": np.int64(5),
        "coverage": 0.5,
        "label_rate": np.float64(0.2),
        "mean_probability": 0.25,
        "auc": float("nan"),
        "brier": 0.2,
        "log_loss": 0.6,
        "measured_on": DAY + dt.timedelta(days=1),
        "run_id": "r1",
        **changes,
    }


def test_a_cohort_keeps_its_first_figures_and_counts_its_revisions(mart: Mart) -> None:
    first = mart.record_cohorts([cohort()])[0]
    assert (first["auc"], first["first_auc"], first["first_brier"], first["first_matured_rows"]) == (None, None, 0.2, 5)
    assert (first["first_measured_on"], first["revisions"]) == (DAY + dt.timedelta(days=1), 0)
    later = [DAY + dt.timedelta(days=days) for days in range(10)]
    assert mart.record_cohorts([cohort(measured_on=later[2], run_id="r2")]) == [first], "unchanged"

    all_in = cohort(matured_rows=10, coverage=1.0, auc=0.7, brier=0.1, measured_on=later[3], run_id="r3")
    full = mart.record_cohorts([all_in])[0]
    assert (full["matured_rows"], full["auc"], full["measured_on"], full["run_id"]) == (10, 0.7, later[3], "r3")
    assert (full["first_matured_rows"], full["first_auc"], full["first_brier"], full["revisions"]) == (5, None, 0.2, 1)
    assert full["first_measured_on"] == later[1]
    before = everything(mart)
    for again in (all_in, cohort(), cohort(measured_on=later[2], auc=0.1)):
        assert mart.record_cohorts([again]) == [full], "a rerun, and runs of earlier dates"
    assert everything(mart) == before
    worse = mart.record_cohorts([{**all_in, "auc": 0.6}])[0]
    assert (worse["auc"], worse["first_auc"], worse["revisions"]) == (0.6, None, 2), "the same date measured anew"


def test_cohorts_are_listed_by_date_and_version(mart: Mart) -> None:
    days = [DAY + dt.timedelta(days=days) for days in range(3)]
    assert mart.record_cohorts([]) == []
    mart.record_cohorts([cohort(as_of=day, version=version) for version in (2, 1) for day in reversed(days)])
    mart.record_cohorts([cohort(model="other")])
    assert [(row["as_of"], row["version"]) for row in mart.cohorts("flight_delay", days[1], days[1])] == [
        (days[1], 1),
        (days[1], 2),
    ]
    assert [row["as_of"] for row in mart.cohorts("flight_delay")] == [day for day in days for _ in (1, 2)]
    assert [row["as_of"] for row in mart.cohorts("flight_delay", since=days[2])] == [days[2]] * 2
    assert [row["as_of"] for row in mart.cohorts("flight_delay", until=days[0])] == [days[0]] * 2


def test_every_column_of_cohorts_is_explained() -> None:
    assert [column.name for column in cohorts.columns if not column.comment] == []


# --- the lock and failures -------------------------------------------------------------------------------------------


def test_the_lock_has_one_holder(mart: Mart) -> None:
    with mart.lock("flight_delay"):
        with pytest.raises(Unavailable, match="still held"), mart.lock("flight_delay", timeout=0.1):
            pass
        with mart.lock("other", timeout=0.1):
            pass
    with mart.lock("flight_delay", timeout=0.1):
        pass


@pytest.mark.parametrize("address", ["sqlite:////nowhere/mart.db", "postgresql+psycopg://u:secret@127.0.0.1:1/mart"])
def test_a_database_out_of_reach_is_unavailable(address: str) -> None:
    if address.startswith("postgres"):
        pytest.importorskip("psycopg")
    with pytest.raises(Unavailable) as caught:
        Mart(address).totals()
    assert "secret" not in str(caught.value) + repr(Mart(address))
