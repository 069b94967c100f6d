"""What the loop left in PostgreSQL, in the object store and in the lake, read with psycopg, boto3 and DuckDB."""

from __future__ import annotations

import csv
import datetime as dt
import gzip
import hashlib
import io
import json
import re
from collections import Counter
from typing import Any

import pytest

from include.evergreen.local.demo import INGEST, MODEL, MONITOR, SCORE, TRAIN
from include.evergreen.local.layout import PROJECT
from tests.cluster.conftest import SCENARIO, Outside

KEY = {
    "schedules": ["flight_date", "carrier", "flight", "origin"],
    "actuals": ["flight_date", "carrier", "flight", "origin"],
    "weather": ["origin", "time_hour"],
    "planes": ["tailnum"],
}


def key_of(row: dict[str, Any]) -> tuple[str, str, int, str]:
    return str(row["flight_date"]), row["carrier"], int(row["flight"]), row["origin"]


def delivered(outside: Outside, key: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(gzip.decompress(outside.get("landing", key)).decode())))


@pytest.mark.parametrize("table", list(KEY))
def test_every_delivered_row_is_trusted_quarantined_or_duplicate(outside: Outside, table: str) -> None:
    in_files: Counter[str] = Counter()
    for key in outside.keys("landing", f"nyc_flights/{table}/"):
        day = re.search(r"\d{4}-\d\d-\d\d", key)
        assert day is not None
        in_files[day[0]] += len(delivered(outside, key))
    assert sum(in_files.values()) > 1000
    query = "select * from ingest_batches where table_name = %s"
    batches = {str(row["partition_date"]): row for row in outside.sql("mart", query, table)}
    assert {day: row["rows_in"] for day, row in batches.items()} == in_files
    assert {row["status"] for row in batches.values()} == {"published"}
    stored = {}
    for kind in ("trusted", "quarantine"):
        count = f"select partition_date::varchar as day, count(*) as n from {{{kind}.{table}}} group by 1"
        there = outside.has(f"{kind}.{table}")
        stored[kind] = {row["day"]: row["n"] for row in outside.lake(count)} if there else {}
    for day, batch in batches.items():
        assert batch["trusted"] == stored["trusted"].get(day, 0), (table, day)
        assert batch["quarantined"] == stored["quarantine"].get(day, 0), (table, day)
        assert in_files[day] == batch["trusted"] + batch["quarantined"] + batch["duplicates"], (table, day)
    columns = ", ".join(["partition_date", *KEY[table]])
    [twice] = outside.lake(f"select count(*) - count(distinct ({columns})) as n from {{trusted.{table}}}")
    assert twice["n"] == 0


@pytest.mark.parametrize("day", SCENARIO.days, ids=str)
def test_each_scheduled_flight_has_one_prediction_in_the_mart_and_in_the_lake(outside: Outside, day: dt.date) -> None:
    held = outside.lake("select row from {quarantine.schedules} where partition_date = ?", day)
    expected = Counter(map(key_of, delivered(outside, f"nyc_flights/schedules/{day}.csv.gz")))
    expected -= Counter(key_of(json.loads(row["row"])) for row in held)
    assert len(expected) > 500
    current = outside.sql("mart", "select * from flight_delay_current where as_of = %s", day)
    assert Counter(map(key_of, current)) == expected
    assert all(0 < row["probability"] < 1 and row["reason_1"] for row in current)
    stored = outside.lake("select * from {predictions.flight_delay} where partition_date = ?", day)

    def comparable(rows: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
        return sorted((*key_of(row), row["probability"], row["reason_1"], row["model_version"]) for row in rows)

    assert comparable(stored) == comparable(current)


def test_outcomes_join_what_has_matured(outside: Outside) -> None:
    matured = {day for day in SCENARIO.days if day < SCENARIO.replay_until}
    query = "select as_of, count(*) as n, count(distinct (flight_date, carrier, flight, origin)) as flights, "
    rows = outside.sql("mart", query + "count(label) as labelled from flight_delay_outcomes group by 1")
    assert {row["as_of"] for row in rows} == matured
    assert all(row["n"] == row["flights"] == row["labelled"] > 500 for row in rows)


def test_registry_mart_ledger_and_bytes_agree_on_the_champion(outside: Outside) -> None:
    [alias] = outside.sql(
        "mlflow", "select version from registered_model_aliases where name = %s and alias = 'champion'", MODEL
    )
    champions = outside.sql("mart", "select * from champions where model = %s order by effective_from", MODEL)
    assert champions[-1]["version"] == alias["version"]
    query = "select * from ledger where kind = %s and subject = %s order by id"
    gate, promotion = (outside.sql("mart", query, kind, MODEL)[-1] for kind in ("gate", "promotion"))
    assert (gate["outcome"], promotion["outcome"]) == ("accepted", "promoted")
    query = "select key, value from model_version_tags where name = %s and version = %s"
    tags = {row["key"]: row["value"] for row in outside.sql("mlflow", query, MODEL, alias["version"])}
    assert hashlib.sha256(outside.get("lake", f"{tags['prefix']}/model.ubj")).hexdigest() == tags["sha256"]


def test_each_day_has_a_verdict_and_a_report(outside: Outside) -> None:
    judged = outside.sql("mart", "select * from monitorings where model = %s order by as_of", MODEL)
    assert [row["as_of"] for row in judged] == SCENARIO.days
    for row in judged:
        assert b"<html" in outside.get("lake", f"reports/{MODEL}/{row['as_of']}.html")[:2000]


# --- where tasks ran -------------------------------------------------------------------------------------------------


def ran(outside: Outside, dag_id: str) -> list[dict[str, Any]]:
    query = "select * from task_instance where dag_id = %s and state = 'success'"
    return outside.sql("airflow", query, dag_id)


def test_trainings_ran_on_the_training_worker_and_only_they(outside: Outside) -> None:
    logs = {queue: outside.log(worker) for queue, worker in (("default", "worker"), ("training", "worker-training"))}
    for dag_id, queue in ((TRAIN, "training"), (INGEST, "default"), (SCORE, "default"), (MONITOR, "default")):
        tasks = [task for task in ran(outside, dag_id) if task["external_executor_id"]]
        assert tasks, dag_id
        assert {task["queue"] for task in tasks} == {queue}
        other = logs["training" if queue == "default" else "default"]
        for task in tasks:
            assert task["external_executor_id"] in logs[queue], (dag_id, task["task_id"])
            assert task["external_executor_id"] not in other, (dag_id, task["task_id"])
    assert {task["task_id"] for task in ran(outside, TRAIN)} >= {"build", "fit", "gate", "register", "promote"}


def test_no_task_was_tried_twice(outside: Outside) -> None:
    query = "select dag_id, task_id, try_number from task_instance where try_number > 1"
    assert outside.sql("airflow", query) == []


def test_policies_cover_every_object_that_the_loop_wrote(outside: Outside) -> None:
    """The prefixes that the AWS role may write are those that are written here."""
    policy = json.loads((PROJECT / "deploy/aws/task-role.json").read_text())
    allowed = {
        resource.split("}/", 1)[1].removesuffix("*")
        for statement in policy["Statement"]
        if "s3:PutObject" in statement["Action"]
        for resource in statement["Resource"]
    }
    assert {key.split("/")[0] + "/" for key in outside.keys("lake")} == allowed
