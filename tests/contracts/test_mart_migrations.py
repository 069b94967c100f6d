"""Revisions of the mart, up and down with data in it, on SQLite and PostgreSQL."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest
import sqlalchemy as sa

from include.evergreen.errors import Refused
from include.evergreen.mart import migrate
from include.evergreen.mart.schema import alerts, metadata
from include.evergreen.mart.store import Mart
from tests.contracts.test_mart import (
    DAY,
    KEY,
    at_once,
    batch,
    cohort,
    decision,
    everything,
    model,
    predictions,
    query,
    source,
)

NEXT = DAY + dt.timedelta(days=1)
GONE_BELOW_2 = {"alerts", "alert_occurrences", "view_definitions"}


@pytest.fixture
def mart(uri: str) -> Iterator[Mart]:
    made = Mart(uri)
    yield made
    made.engine.dispose()


@pytest.fixture
def full(mart: Mart) -> Mart:
    """A mart at the newest revision with a fact of every kind."""
    mart.create()
    mart.ensure_model(model(), source())
    mart.record_batches([batch()])
    mart.append_decision(**decision())
    mart.promote(model="flight_delay", version=1, effective_from=DAY, metrics={"auc": 0.7}, run_id="r")
    mart.publish_scoring(model(), DAY, 1, predictions(), 1, "r1")
    mart.publish_scoring(model(), DAY, 2, predictions(version=2, seed=2), 2, "r2", reason="rollback")
    mart.publish_scoring(model(), NEXT, 2, predictions(day=NEXT, version=2, seed=3), 3, "r3")
    mart.record_cohorts([cohort()])
    mart.record_monitoring(
        model="flight_delay",
        as_of=DAY,
        version=1,
        verdict="ok",
        reasons=[],
        columns={},
        performance={},
        report_uri=None,
        run_id="r",
    )
    moment = pa.array([NEXT] * 5, pa.date32()).cast(pa.timestamp("us"))
    known = predictions().select([*KEY, "as_of"]).append_column("label", pa.array([True] * 5))
    mart.write_labels(model(), known.append_column("known_at", moment))
    return mart


def raised(mart: Mart) -> None:
    """An alert in the inbox."""
    now = dt.datetime(2013, 7, 1, tzinfo=dt.UTC)
    texts = dict.fromkeys(("cause", "subject", "kind", "severity", "what", "link", "runbook", "run_id"), "x")
    with mart.writing() as connection:
        connection.execute(alerts.insert().values(**texts, seen=1, opened_at=now, last_seen_at=now))


def revision(mart: Mart) -> str | None:
    with mart.reading() as connection:
        return migrate.current(connection)


def facts(mart: Mart) -> dict[str, list[dict[str, Any]]]:
    """Rows by table as {column: value}, of every table but the bookkeeping."""
    found = {}
    for name, rows in everything(mart).items():
        if name not in {*GONE_BELOW_2, migrate.VERSION_TABLE}:
            columns = [column["name"] for column in sa.inspect(mart.engine).get_columns(name)]
            found[name] = [dict(zip(columns, row, strict=True)) for row in rows]
    return found


def _texts(options: dict[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in options.items()}


def schema(mart: Mart) -> dict[str, Any]:
    """Everything that the database says about its tables and triggers."""
    inspector = sa.inspect(mart.engine)
    found: dict[str, Any] = {}
    for table in sorted(inspector.get_table_names()):
        found[table] = {
            "columns": [{**column, "type": repr(column["type"])} for column in inspector.get_columns(table)],
            "key": inspector.get_pk_constraint(table)["constrained_columns"],
            "unique": inspector.get_unique_constraints(table),
            "indexes": sorted(
                (str(index["name"]), index["column_names"], index["unique"], _texts(index.get("dialect_options", {})))
                for index in inspector.get_indexes(table)
            ),
            "comment": None if mart.is_sqlite else inspector.get_table_comment(table),
        }
    triggers = (
        "select name, sql from sqlite_master where type = 'trigger' order by 1"
        if mart.is_sqlite
        else "select tgname, pg_get_triggerdef(oid) from pg_trigger where not tgisinternal order by 1"
    )
    return found | {"triggers": query(mart, triggers)}


def test_the_newest_revision_is_the_one_that_is_named(mart: Mart) -> None:
    from alembic.script import ScriptDirectory

    with mart.reading() as connection:
        assert ScriptDirectory.from_config(migrate.config(connection)).get_heads() == [migrate.HEAD]


def test_the_revisions_make_what_the_code_declares(mart: Mart) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.runtime.migration import MigrationContext

    mart.migrate("head")
    mart.ensure_model(model(), source())
    with mart.reading() as connection:
        options = {"version_table": migrate.VERSION_TABLE, "include_name": migrate.ours, "compare_type": True}
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, metadata) == []


def test_made_at_once_or_by_revisions_it_is_the_same(uri: str) -> None:
    found = []
    for by_revisions in (False, True):
        mart = Mart(uri)
        if by_revisions:
            mart.migrate("base")
            with mart.writing() as connection:
                connection.exec_driver_sql(f"drop table {migrate.VERSION_TABLE}")
            assert schema(mart) == {"triggers": []}, "nothing is left"
            mart.migrate("head")
        mart.create()
        found.append((schema(mart), query(mart, f"select * from {migrate.VERSION_TABLE}")))
        mart.engine.dispose()
    assert found[0] == found[1]


def test_down_and_up_again_keeps_the_facts(full: Mart) -> None:
    raised(full)
    before = facts(full)
    full.migrate("0001")
    assert revision(full) == "0001"
    assert sa.inspect(full.engine).get_view_names() == []
    assert not GONE_BELOW_2 & set(sa.inspect(full.engine).get_table_names())
    new = {"decision_rate", "digest", "restated_at", "restated_reason"}
    below = facts(full)
    assert {**below, "scorings": None} == {**before, "scorings": None}
    assert below["scorings"] == [{k: v for k, v in row.items() if k not in new} for row in before["scorings"]]
    for statement in ("update ledger set outcome = 'x'", "delete from ledger"):
        with pytest.raises(sa.exc.DBAPIError, match="append only"), full.engine.begin() as connection:
            connection.exec_driver_sql(statement)

    full.create()
    full.ensure_model(model(), source())
    assert revision(full) == migrate.HEAD
    after = facts(full)
    forgotten = dict.fromkeys(new - {"decision_rate"})
    assert {**after, "scorings": None} == {**before, "scorings": None}
    assert after["scorings"] == [row | forgotten for row in before["scorings"]]
    assert all(0 <= row["decision_rate"] <= 1 for row in after["scorings"])
    assert query(full, "select count(*), min(model_version) from flight_delay_current") == [(10, 2)]
    again = full.publish_scoring(model(), NEXT, 2, predictions(day=NEXT, version=2, seed=3), 9, "r9")
    assert (again["restated_at"], again["run_id"]) == (None, "r3"), "a rerun after it is one still"


def test_a_mart_of_before_there_were_revisions_is_brought_up(full: Mart) -> None:
    full.migrate("0001")
    with full.writing() as connection:
        connection.exec_driver_sql(f"drop table {migrate.VERSION_TABLE}")
        connection.exec_driver_sql("drop table cohorts")  # an even older one
        connection.exec_driver_sql("create view flight_delay_current as select 1 as one")
    before = facts(full)
    assert at_once(lambda _: Mart(str(full.engine.url.render_as_string(hide_password=False))).create()) == []
    full.ensure_model(model(), source())
    after = facts(full)
    assert after.pop("cohorts") == []
    kept = {"scorings": [{k: row[k] for k in before["scorings"][0]} for row in after["scorings"]]}
    assert {**after, **kept} == before
    assert len(query(full, "select probability from flight_delay_current")) == 10
    assert revision(full) == migrate.HEAD


def test_a_mart_at_the_newest_revision_is_left_alone(full: Mart) -> None:
    raised(full)
    before = (everything(full), schema(full))
    full.create()
    full.ensure_model(model(), source())
    assert (everything(full), schema(full)) == before


def test_down_to_nothing_and_up_again(full: Mart) -> None:
    full.migrate("base")
    left = set(sa.inspect(full.engine).get_table_names())
    assert left == {"flight_delay_predictions", "flight_delay_labels", migrate.VERSION_TABLE}, "a model's tables stay"
    full.create()
    assert revision(full) == migrate.HEAD
    assert full.decisions() == []


def test_a_mart_that_is_newer_than_the_code_is_refused(full: Mart) -> None:
    with full.writing() as connection:
        connection.exec_driver_sql(f"update {migrate.VERSION_TABLE} set version_num = '9999'")
    before = everything(full)
    with pytest.raises(Refused, match="found it at 9999"):
        full.create()
    assert everything(full) == before
    with pytest.raises(Refused, match="on the way to 0404"):
        full.migrate("0404")
