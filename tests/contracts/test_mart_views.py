"""The analysts' views, who may read them, restatement and downloads, on SQLite and PostgreSQL."""

from __future__ import annotations

import csv
import datetime as dt
import io
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa

from include.evergreen.errors import NotFound, Refused
from include.evergreen.local import prepare
from include.evergreen.mart import views
from include.evergreen.mart.dictionary import View, common, dictionary, type_name
from include.evergreen.mart.export import export
from include.evergreen.mart.store import Mart
from tests.contracts.test_mart import DAY, KEY, cohort, decision, everything, model, predictions, query, source

NEXT = DAY + dt.timedelta(days=1)
SPEC, SOURCE = model(), source()


@pytest.fixture
def mart(uri: str) -> Iterator[Mart]:
    made = Mart(uri)
    made.create()
    made.ensure_model(SPEC, SOURCE)
    yield made
    made.engine.dispose()


def publish(mart: Mart, day: dt.date = DAY, version: int = 1, seed: int = 1, **options: Any) -> dict[str, Any]:
    rows = predictions(day=day, version=version, seed=seed)
    return mart.publish_scoring(SPEC, day, version, rows, 1, f"run-{version}", **options)


def label(mart: Mart, day: dt.date = DAY, count: int = 3) -> None:
    known = predictions(day=day).select([*KEY, "as_of"]).slice(0, count)
    moment = pa.array([day + dt.timedelta(days=1)] * count, pa.date32()).cast(pa.timestamp("us"))
    mart.write_labels(SPEC, known.append_column("label", pa.array([True] * count)).append_column("known_at", moment))


def shown(mart: Mart) -> list[View]:
    return [*dictionary(SPEC, SOURCE), *common()]


# --- what there is ---------------------------------------------------------------------------------------------------


def test_the_views_are_what_the_dictionary_says(mart: Mart) -> None:
    inspector = sa.inspect(mart.engine)
    assert set(inspector.get_view_names()) == {view.name for view in shown(mart)}
    for view in shown(mart):
        found = {column["name"]: column["type"] for column in inspector.get_columns(view.name)}
        assert list(found) == [column.name for column in view.columns]
        computed = {name for name, kind in found.items() if isinstance(kind, sa.types.NullType)}
        assert computed == ({"model_version", "reasons"} if mart.is_sqlite and view in common() else set())
        for column in view.columns:
            if column.name not in computed:
                assert type_name(found[column.name]) == column.type, f"{view.name}.{column.name}"
        assert [column.name for column in view.columns if not column.says or column.says == "None"] == []


def test_views_and_columns_are_explained_in_the_database(mart: Mart) -> None:
    if mart.is_sqlite:
        pytest.skip("SQLite has no comments")
    for view in shown(mart):
        said = query(mart, f"select obj_description('{view.name}'::regclass)")
        assert said == [(view.says,)]
        columns = query(
            mart,
            "select attname, col_description(attrelid, attnum) from pg_attribute "
            f"where attrelid = '{view.name}'::regclass and attnum > 0 order by attnum",
        )
        assert columns == [(column.name, column.says) for column in view.columns]
    assert ("carrier", "the operator's code, 100% of them") in columns_of(mart, "flight_delay_current")


def columns_of(mart: Mart, view: str) -> list[tuple[Any, ...]]:
    return query(
        mart,
        "select attname, col_description(attrelid, attnum) from pg_attribute "
        f"where attrelid = '{view}'::regclass and attnum > 0",
    )


def test_a_view_is_made_anew_when_its_definition_changed_and_only_then(mart: Mart) -> None:
    def made() -> dict[str, str]:
        return dict(query(mart, "select name, digest from view_definitions"))  # type: ignore[arg-type]

    publish(mart)
    before = made()
    mart.ensure_model(SPEC, SOURCE)
    assert made() == before
    wider = model(scoring={"reasons": 4})
    mart.ensure_model(wider, SOURCE)
    changed = {name for name, digest in made().items() if digest != before[name]}
    assert changed == {"flight_delay_current", "flight_delay_history", "flight_delay_outcomes"}
    assert query(mart, "select count(*), count(reason_4) from flight_delay_current") == [(5, 0)]
    with mart.writing() as connection:
        connection.exec_driver_sql("drop view flight_delay_daily")
    mart.ensure_model(wider, SOURCE)
    assert query(mart, "select rows from flight_delay_daily") == [(5,)]


def test_views_of_before_there_were_definitions_are_replaced(mart: Mart) -> None:
    with mart.writing() as connection:
        connection.exec_driver_sql("delete from view_definitions")
        connection.exec_driver_sql("drop view flight_delay_outcomes")
        connection.exec_driver_sql("create view flight_delay_outcomes as select 1 as one")
    mart.ensure_model(SPEC, SOURCE)
    assert query(mart, "select label from flight_delay_outcomes") == []


# --- what they show --------------------------------------------------------------------------------------------------


def test_the_daily_view_has_a_row_per_scored_date_and_figures_once_matured(mart: Mart) -> None:
    publish(mart)
    publish(mart, NEXT, seed=2)
    publish(mart, DAY, 2, seed=3)
    mart.record_cohorts([cohort(version=1, auc=0.1), cohort(version=2, auc=0.7, matured_rows=4, coverage=0.8)])
    rows = query(
        mart,
        "select as_of, model_version, rows, decision_rate, matured_rows, coverage, label_rate, auc, brier "
        "from flight_delay_daily order by as_of",
    )
    decided = predictions(version=2, seed=3)["decision"].to_pylist()
    assert [(str(row[0]), *row[1:3]) for row in rows] == [(str(DAY), 2, 5), (str(NEXT), 1, 5)]
    assert rows[0][3:] == (sum(decided) / 5, 4, 0.8, 0.2, 0.7, 0.2)
    assert rows[1][4:] == (None,) * 5
    (mean,) = query(mart, f"select avg(probability) from flight_delay_current where as_of = '{DAY}'")
    assert query(mart, f"select mean_probability from flight_delay_daily where as_of = '{DAY}'")[0] == pytest.approx(
        mean
    )


def test_decisions_are_columns_and_reasons_keep_their_order(mart: Mart) -> None:
    mart.append_decision(**decision(reasons=["z first", "a second", "it's 100% sure"]))
    mart.append_decision(**decision(kind="promotion", outcome="promoted", evidence={"version": 7}, reasons=[]))
    mart.append_decision(**decision(kind="holdout", outcome="pinned", evidence={"version": "seven"}))
    rows = query(mart, "select kind, outcome, model_version, reasons from model_decisions order by id")
    assert rows[0] == ("gate", "accepted", None, "z first; a second; it's 100% sure")
    assert rows[1][:3] == ("promotion", "promoted", 7)
    assert rows[1][3] in (None, ""), "no reason"
    assert rows[2][2] is None


def test_history_holds_every_scoring_once(mart: Mart) -> None:
    publish(mart)
    publish(mart, DAY, 2, seed=2)
    publish(mart, DAY, 2, seed=2)
    rows = query(
        mart,
        "select model_version, is_current, count(*), count(distinct flight) from flight_delay_history "
        "group by 1, 2 order by 1",
    )
    assert [(version, bool(now), *counts) for version, now, *counts in rows] == [(1, False, 5, 5), (2, True, 5, 5)]


# --- restatement -----------------------------------------------------------------------------------------------------


def restated(mart: Mart, view: str) -> list[tuple[Any, ...]]:
    found = query(
        mart,
        f"select distinct model_version, restated_at is not null, restated_reason from flight_delay_{view} order by 1",
    )
    return sorted((version, bool(when), why) for version, when, why in found)


def test_a_first_scoring_and_its_rerun_are_no_restatement(mart: Mart) -> None:
    publish(mart)
    publish(mart, reason="a rerun has none")
    assert restated(mart, "current") == [(1, False, None)]


def test_another_version_restates_a_date_and_says_why(mart: Mart) -> None:
    publish(mart)
    publish(mart, NEXT)
    before = publish(mart, DAY, 2, seed=2, reason="rollback: late at noon")
    assert restated(mart, "current") == [(1, False, None), (2, True, "rollback: late at noon")]
    assert restated(mart, "history") == [(1, False, None), (2, True, "rollback: late at noon")]
    stored = everything(mart)
    assert publish(mart, DAY, 2, seed=2, reason="another") == before
    assert everything(mart) == stored, "a rerun changes nothing"
    back = publish(mart, DAY, 1)
    assert back["restated_at"] >= before["restated_at"]
    assert back["scored_at"] < before["scored_at"], "first scored"
    assert restated(mart, "history") == [
        (1, False, None),
        (1, True, "version 1 in place of version 2"),
        (2, True, "rollback: late at noon"),
    ]


def test_other_rows_of_the_same_version_restate_a_date(mart: Mart) -> None:
    first = publish(mart)
    changed = publish(mart, seed=2)
    assert changed["restated_reason"] == "other inputs of version 1"
    assert changed["scored_at"] == first["scored_at"]
    assert publish(mart, seed=2) == changed


def test_a_scoring_of_before_digests_were_kept_is_no_restatement(mart: Mart) -> None:
    first = publish(mart)
    with mart.writing() as connection:
        connection.exec_driver_sql("update scorings set digest = null")
    assert publish(mart) == first
    with mart.writing() as connection:
        connection.exec_driver_sql("update scorings set digest = null")
    assert publish(mart, seed=2)["restated_at"] is not None


# --- who may read ----------------------------------------------------------------------------------------------------


def test_the_read_only_uri_reads_and_never_writes(tmp_path: Path) -> None:
    mart = Mart(f"sqlite:///{tmp_path / 'a mart #1?.db'}")
    mart.create()
    mart.ensure_model(SPEC, SOURCE)
    publish(mart)
    with sqlite3.connect(mart.read_only_uri(), uri=True) as reader:
        assert reader.execute("select count(*) from flight_delay_current").fetchone() == (5,)
        for statement in ("insert into scorings (model) values ('x')", "drop view flight_delay_current"):
            with pytest.raises(sqlite3.OperationalError, match="readonly database"):
                reader.execute(statement)
    with pytest.raises(Refused, match="expected PostgreSQL"):
        mart.grant_read()
    mart.engine.dispose()


def test_a_reader_reads_the_views_and_nothing_else(postgres: str) -> None:
    mart = Mart(postgres)
    name = sa.make_url(postgres).database
    mart.create()
    with pytest.raises(NotFound, match="create it first"):
        mart.grant_read("nobody_at_all")
    for _ in range(2):
        prepare.databases(libpq(postgres), {})
    mart.grant_read()
    mart.ensure_model(SPEC, SOURCE)  # views made later are granted too
    publish(mart)
    wider = model(scoring={"reasons": 4})
    mart.ensure_model(wider, SOURCE)  # and those that are made anew
    with mart.engine.begin() as connection:
        connection.exec_driver_sql(f"create role ada_{name} login in role {views.READ_ROLE}")
    ada = sa.create_engine(sa.make_url(postgres).set(username=f"ada_{name}"))
    try:
        for view in [*views.names(SPEC), "model_decisions"]:
            with ada.connect() as connection:
                connection.exec_driver_sql(f"select * from {view}").all()
        with ada.connect() as connection:
            assert connection.exec_driver_sql("select count(*) from flight_delay_current").scalar() == 5
        for statement in (
            "insert into scorings (model) values ('x')",
            "update model_decisions set outcome = 'x'",
            "select * from ledger",
            "select * from flight_delay_predictions",
            "create table mine (id int)",
            "drop view flight_delay_current",
        ):
            with pytest.raises(sa.exc.DBAPIError, match=r"permission denied|must be owner"), ada.begin() as connection:
                connection.exec_driver_sql(statement)
    finally:
        ada.dispose()
        with mart.engine.begin() as connection:
            connection.exec_driver_sql(f"drop role ada_{name}")
            connection.exec_driver_sql(f"drop owned by {views.READ_ROLE}")
            connection.exec_driver_sql(f"drop role {views.READ_ROLE}")
        mart.engine.dispose()


def libpq(url: str) -> str:
    return sa.make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)


def test_the_grants_of_a_role_outlive_its_views(postgres: str) -> None:
    mart = Mart(postgres)
    mart.create()
    name = f"bob_{sa.make_url(postgres).database}"
    with mart.engine.begin() as connection:
        connection.exec_driver_sql(f"create role {name}")
    mart.grant_read(name)
    with mart.writing() as connection:
        connection.exec_driver_sql("update view_definitions set digest = 'another'")
    mart.create()
    mart.ensure_model(SPEC, SOURCE)
    for view in [*views.names(SPEC), "model_decisions"]:
        assert query(mart, f"select has_table_privilege('{name}', '{view}', 'select')") == [(True,)]
        assert query(mart, f"select has_table_privilege('{name}', '{view}', 'insert')") == [(False,)]
    with pytest.raises(Refused, match="expected a SQLite file"):
        mart.read_only_uri()
    with mart.engine.begin() as connection:
        connection.exec_driver_sql(f"drop owned by {name}")
        connection.exec_driver_sql(f"drop role {name}")
    mart.engine.dispose()


# --- downloads -------------------------------------------------------------------------------------------------------


def rows_of(data: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(data.decode())))


def download(mart: Mart, view: str, since: dt.date = DAY, until: dt.date = NEXT, format: Any = "csv") -> bytes:
    return b"".join(export(mart, SPEC, view, since, until, format))


def test_a_download_has_the_rows_of_the_days_asked_for(mart: Mart) -> None:
    for offset in range(4):
        publish(mart, DAY + dt.timedelta(days=offset), seed=offset)
    label(mart)
    rows = rows_of(download(mart, "flight_delay_current"))
    assert [(row["as_of"], row["flight"]) for row in rows] == [
        (str(day), str(n)) for day in (DAY, NEXT) for n in range(5)
    ]
    found = [float(row["probability"]) for row in rows[:5]]
    assert found == predictions(seed=0)["probability"].to_pylist()
    assert {row["decision"] for row in rows} <= {"true", "false"}
    assert {row["restated_at"] for row in rows} == {""}
    assert rows[0]["scored_at"].endswith("+00:00")
    assert len(rows_of(download(mart, "flight_delay_outcomes"))) == 3
    assert len(rows_of(download(mart, "flight_delay_daily", DAY, DAY))) == 1
    assert rows_of(download(mart, "flight_delay_history", dt.date(2000, 1, 1), dt.date(2000, 1, 1))) == []


def test_csv_and_parquet_hold_the_same(mart: Mart) -> None:
    publish(mart)
    publish(mart, DAY, 2, seed=2)
    mart.record_cohorts([cohort(version=2)])
    label(mart)
    mart.append_decision(**decision())
    mart.append_decision(**decision(subject="other"))
    for view in shown(mart):
        table = pq.read_table(pa.BufferReader(download(mart, view.name, format="parquet")))
        rows = rows_of(download(mart, view.name))
        assert table.column_names == [column.name for column in view.columns]
        assert table.num_rows == len(rows) > 0, view.name
        kinds = {"integer": pa.int64(), "number": pa.float64(), "boolean": pa.bool_(), "date": pa.date32()}
        moments = {"timestamp": pa.timestamp("us", "UTC"), "string": pa.string()}
        assert table.schema.types == [(kinds | moments)[column.type] for column in view.columns]
        for line, row in zip(rows, table.to_pylist(), strict=True):
            for name, value in row.items():
                if isinstance(value, float):
                    assert float(line[name]) == value
                elif isinstance(value, bool):
                    assert line[name] == str(value).lower()
                elif not isinstance(value, dt.datetime):
                    assert line[name] == ("" if value is None else str(value))


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@sum(a1)", "\t=1", "\r=1", " =1", '=cmd|"/c calc"!a1'])
def test_a_spreadsheet_runs_no_cell(mart: Mart, text: str) -> None:
    rows = predictions(carrier=[text] * 5)
    mart.publish_scoring(SPEC, DAY, 1, rows, 1, "r")
    found = rows_of(download(mart, "flight_delay_current"))
    assert [row["carrier"] for row in found] == [f"'{text}"] * 5
    exact = pq.read_table(pa.BufferReader(download(mart, "flight_delay_current", format="parquet")))
    assert set(exact["carrier"].to_pylist()) == {text}, "Parquet is for programs"


def test_negative_numbers_stay_numbers(mart: Mart) -> None:
    rows = predictions(flight=pa.array([-1, -2, 3, 4, 5], pa.int64()))
    mart.publish_scoring(SPEC, DAY, 1, rows, 1, "r")
    assert {row["flight"] for row in rows_of(download(mart, "flight_delay_current"))} == {"-1", "-2", "3", "4", "5"}


def test_a_download_streams_by_day_and_is_of_one_moment(mart: Mart) -> None:
    days = [DAY + dt.timedelta(days=offset) for offset in range(6)]
    for day in days:
        publish(mart, day)
    stream = export(mart, SPEC, "flight_delay_current", days[0], days[-1], "csv")
    parts = [next(stream), next(stream)]
    if not mart.is_sqlite:  # there a writer waits for nobody too, but in its journal
        publish(mart, days[-1], 2, seed=9)
    parts += list(stream)
    assert len(parts) == 1 + len(days)
    found = rows_of(b"".join(parts))
    assert {row["model_version"] for row in found} == {"1"}
    assert len(found) == 30


def test_what_cannot_be_downloaded_is_named_before_the_first_byte(mart: Mart, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"expected one of flight_delay_current, .*found 'ledger'"):
        export(mart, SPEC, "ledger", DAY, NEXT, "csv")
    with pytest.raises(Refused, match="expected since <= until"):
        export(mart, SPEC, "flight_delay_daily", NEXT, DAY, "csv")
    with pytest.raises(Refused, match="expected csv or parquet, found 'xlsx'"):
        export(mart, SPEC, "flight_delay_daily", DAY, NEXT, "xlsx")  # type: ignore[arg-type]
    with pytest.raises(NotFound, match="nothing was scored yet"):
        export(mart, model(name="unscored"), "unscored_daily", DAY, NEXT, "csv")
