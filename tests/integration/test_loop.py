"""One real loop through a real Airflow on real flights, read back with other tools than the engine's.

Rows come from plain boto3, csv, sqlite3 and DuckDB on Parquet.
"""

from __future__ import annotations

import csv
import datetime as dt
import gzip
import hashlib
import io
import json
import os
import re
import shutil
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import duckdb
import httpx
import pytest
import yaml
from rich.console import Console

from include.evergreen.local import demo, ledger
from include.evergreen.local.api import Api, ApiError
from include.evergreen.local.layout import PORTS, PROJECT, Layout
from include.evergreen.local.stack import Stack
from tests.browser.walk import walk
from tests.outside import LakeReader, Rows, compiled, copy_of_project, ports_of, s3_client, unhurried

pytestmark = pytest.mark.timeout(1800)  # the first test pays for the demo
DAY = dt.timedelta(days=1)
SCENARIO = demo.Scenario(
    history_from=dt.date(2013, 1, 1),
    train_as_of=dt.date(2013, 4, 1),
    replay_from=dt.date(2013, 4, 2),
    replay_until=dt.date(2013, 4, 4),
)
FIRST, SECOND, LAST = SCENARIO.days
BROKEN, WAITING = LAST + DAY, LAST + 2 * DAY
MODEL, INGEST, SCORE, MONITOR, TRAIN = demo.MODEL, demo.INGEST, demo.SCORE, demo.MONITOR, demo.TRAIN
REVIEWED = "flight_delay_reviewed"
ONE_SPLIT = {"max_depth": 1, "eta": 1, "gamma": 600}
"""Parameters that ask one question about each flight: a weak model."""
LATE = dt.timedelta(seconds=30)
"""After which an ingest is late here; bulk loads are, and what waits for its files."""
VERDICTS = {"ok", "covariate_drift", "label_drift", "prediction_drift", "performance_drop", "broken_data"}
KEY = {
    "schedules": ["flight_date", "carrier", "flight", "origin"],
    "actuals": ["flight_date", "carrier", "flight", "origin"],
    "weather": ["origin", "time_hour"],
    "planes": ["tailnum"],
}
MART_TABLES = (
    "flight_delay_predictions",
    "flight_delay_labels",
    "ingest_batches",
    "scorings",
    "champions",
    "monitorings",
    "cohorts",
    "ledger",
)
REASON = re.compile(r"(\w+) = .+ \([+-]\d+\.\d\d\)")
RUNBOOK = "docs/runbooks/ingest-stopped.md"


@dataclass
class Loop(LakeReader):
    """A running stack and the plain clients that look at it from outside."""

    stack: Stack
    api: Api
    said: io.StringIO

    @property
    def layout(self) -> Layout:
        return self.stack.layout

    # --- reading back ------------------------------------------------------------------------------------------------

    def delivered(self, table: str, day: dt.date, suffix: str = "") -> Rows:
        """Rows of one file in the landing bucket, as text."""
        text = gzip.decompress(self.get("landing", file_key(table, day, suffix))).decode()
        return list(csv.DictReader(io.StringIO(text)))

    def put(self, key: str, data: bytes) -> None:
        self.s3.put_object(Bucket="landing", Key=key, Body=data)

    def sql(self, database: Path, query: str, *values: Any) -> Rows:
        with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=20)) as connection:
            connection.row_factory = sqlite3.Row
            return [dict(row) for row in connection.execute(query, [str(value) for value in values])]

    def mart(self, query: str, *values: Any) -> Rows:
        return self.sql(self.layout.mart_db, query, *values)

    def metadata_location(self, table: str) -> str:
        namespace, name = table.split(".")
        query = "select metadata_location from iceberg_tables where table_namespace = ? and table_name = ?"
        [row] = self.sql(self.layout.catalog_db, query, namespace, name)
        return str(row["metadata_location"])

    # --- doing -------------------------------------------------------------------------------------------------------

    def until(self, what: str, found: Callable[[], Any], timeout: float = 120) -> Any:
        """The first true answer of `found`."""
        deadline = time.monotonic() + timeout
        while not (answer := found()):
            assert time.monotonic() < deadline, f"expected within {timeout:.0f} s: {what}"
            time.sleep(0.2)
        return answer

    def runs(self, dag_id: str, key: str) -> Rows:
        """Runs of a partition, oldest first."""
        found = [run for run in self.api.dag_runs(dag_id) if run["partition_key"] == key]
        return sorted(found, key=lambda run: str(run["queued_at"]))

    def run_of(self, dag_id: str, key: str, known: Rows = ()) -> dict[str, Any]:  # type: ignore[assignment]
        """The run of a partition that is not `known`, once it has ended well."""
        old = {run["dag_run_id"] for run in known}
        fresh = lambda: [run for run in self.runs(dag_id, key) if run["dag_run_id"] not in old]  # noqa: E731
        run = self.until(f"a new run of {dag_id} {key}", fresh)[0]
        return self.succeeded(dag_id, run["dag_run_id"])

    def succeeded(self, dag_id: str, run_id: str, timeout: float = 300) -> dict[str, Any]:
        run = self.api.wait_run(dag_id, run_id, timeout)
        assert run["state"] == "success", f"{dag_id} {run_id}: {self.api.failed_tasks(dag_id, run_id)}"
        return run

    def clear(self, dag_id: str, run_id: str) -> None:
        self.api.request("POST", f"/dags/{dag_id}/dagRuns/{quote(run_id, safe='')}/clear", {"dry_run": False})
        self.succeeded(dag_id, run_id)

    def followed(self, dag_id: str, run_id: str, key: str) -> None:
        """Clear a run and wait for everything that its events pull."""
        after = {INGEST: (SCORE, MONITOR), SCORE: (MONITOR,), MONITOR: ()}[dag_id]
        known = {follower: self.runs(follower, key) for follower in after}
        self.clear(dag_id, run_id)
        for follower in after:
            self.run_of(follower, key, known[follower])

    def trigger(self, dag_id: str, **kwargs: Any) -> str:
        self.api.unpause(dag_id)
        run_id = self.api.trigger_run(dag_id, **kwargs)
        self.succeeded(dag_id, run_id)
        return run_id

    def log(self, dag_id: str, run_id: str, task: dict[str, Any]) -> str:
        """What the UI shows of the last try of a task."""
        path = f"/dags/{dag_id}/dagRuns/{quote(run_id, safe='')}/taskInstances/{task['task_id']}/logs"
        answer = self.api.request(
            "GET", f"{path}/{task['try_number']}", params={"map_index": task["map_index"], "full_content": True}
        )
        return json.dumps(answer["content"], ensure_ascii=False)

    def pushed(self, dag_id: str, run_id: str, task_id: str) -> Any:
        """What a task returned."""
        path = f"/dags/{dag_id}/dagRuns/{quote(run_id, safe='')}/taskInstances/{task_id}/xcomEntries/return_value"
        return self.api.request("GET", path, params={"deserialize": False})["value"]


def file_key(table: str, day: dt.date, suffix: str = "") -> str:
    return f"nyc_flights/{table}/{day}{suffix}.csv.gz"


def key_of(row: dict[str, Any]) -> tuple[str, str, int, str]:
    return str(row["flight_date"]), row["carrier"], int(row["flight"]), row["origin"]


@pytest.fixture(scope="module")
def upstream() -> dict[str, bytes]:
    """{key: gzip} of what the upstream delivers for the two days after the scenario."""
    from include.evergreen.specs import load_source
    from include.sources.nyc_flights.publish import files

    spec = load_source(PROJECT / "include/sources/nyc_flights/source.yaml")
    found = files(spec, BROKEN, WAITING)
    return {key: gzip.compress(data, mtime=0) for key, data in found.items() if "/planes/" not in key}


def project(folder: Path) -> Path:
    """A copy of the project with a second model, which a person approves, with another baseline and a lower floor."""
    copy_of_project(folder)
    models = folder / "include" / "models"
    shutil.copytree(models / MODEL, models / REVIEWED)
    unhurried(models / MODEL / "model.yaml")
    reviewed = {"name": REVIEWED, "approval": "human", "approvers": ["oncall"]}
    unhurried(models / REVIEWED / "model.yaml", **reviewed, gate={"baseline_by": None, "floors": {"auc": 0.55}})
    defaults = folder / "include" / "evergreen" / "orchestration" / "defaults.py"
    source = yaml.safe_load((PROJECT / "include/sources/nyc_flights/source.yaml").read_text())
    late = LATE.total_seconds() / 60 - source["wait"]["timeout_minutes"]
    text = defaults.read_text()
    assert '"ingest": 60' in text
    defaults.write_text(text.replace('"ingest": 60', f'"ingest": {late}'))
    return compiled(folder)


@pytest.fixture(scope="module")
def loop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loop]:
    """The demo on a slice of the flights, in a stack of its own."""
    folder = tmp_path_factory.mktemp("loop")
    (folder / "cache").mkdir()
    copy = project(folder / "project")
    layout = Layout.from_env(
        {
            "EVERGREEN_VAR": str(folder / "var"),
            "EVERGREEN_DAGS": str(copy / "dags"),
            **ports_of(PORTS),
        }
    )
    layout = replace(layout, project=copy)
    said = io.StringIO()
    environment = dict(os.environ)
    try:
        with Stack(layout) as stack:
            shortfalls = demo.run(stack, SCENARIO, Console(file=said, width=200))
            assert shortfalls == [], said.getvalue()
            with Api.login(layout) as api:
                yield Loop(s3_client(layout), folder / "cache", stack, api, said)
    finally:
        os.environ.clear()
        os.environ.update(environment)


# --- rows ------------------------------------------------------------------------------------------------------------


def assert_all_rows_accounted_for(loop: Loop, table: str) -> None:
    """Rows of the files = trusted + quarantined + duplicates, in the mart and in the live files of the lake."""
    in_files: Counter[str] = Counter()
    for key in loop.keys("landing", f"nyc_flights/{table}/"):
        day = re.search(r"\d{4}-\d\d-\d\d", key)
        assert day is not None
        in_files[day[0]] += len(list(csv.reader(io.StringIO(gzip.decompress(loop.get("landing", key)).decode())))) - 1
    batches = {
        row["partition_date"]: row for row in loop.mart("select * from ingest_batches where table_name = ?", table)
    }
    assert {day: row["rows_in"] for day, row in batches.items()} == in_files
    assert {row["status"] for row in batches.values()} == {"published"}
    stored = {}
    for kind in ("trusted", "quarantine"):
        held = f"{kind}.{table}"
        tables = [f"{row['table_namespace']}.{row['table_name']}" for row in loop.sql(loop.layout.catalog_db, CATALOG)]
        query = f"select partition_date::varchar as day, count(*) as n from {{{held}}} group by 1"
        stored[kind] = {row["day"]: row["n"] for row in loop.lake(query)} if held in tables else {}
    for day, batch in batches.items():
        assert batch["trusted"] == stored["trusted"].get(day, 0), (table, day)
        assert batch["quarantined"] == stored["quarantine"].get(day, 0), (table, day)
        assert in_files[day] == batch["trusted"] + batch["quarantined"] + batch["duplicates"], (table, day)
    assert set(stored["trusted"]) | set(stored["quarantine"]) <= set(batches)
    columns = ", ".join(["partition_date", *KEY[table]])
    [twice] = loop.lake(f"select count(*) - count(distinct ({columns})) as n from {{trusted.{table}}}")
    assert twice["n"] == 0


CATALOG = "select table_namespace, table_name from iceberg_tables"


@pytest.mark.parametrize("table", list(KEY))
def test_every_delivered_row_is_trusted_quarantined_or_duplicate(loop: Loop, table: str) -> None:
    assert_all_rows_accounted_for(loop, table)


@pytest.mark.parametrize("table", ["schedules", "actuals"])
def test_trusted_values_are_the_delivered_ones(loop: Loop, table: str) -> None:
    rows = loop.delivered(table, FIRST)
    delivered = {key_of(row): row for row in rows}
    columns = [name for name in next(iter(delivered.values())) if name not in KEY[table] and name != "time_hour"]
    trusted = {key_of(row): row for row in loop.lake(f"select * from {{trusted.{table}}} where flight_date = ?", FIRST)}
    assert trusted.keys() == delivered.keys()
    for key, row in trusted.items():
        expected = {name: None if delivered[key][name] == "NA" else delivered[key][name] for name in columns}
        assert {name: None if row[name] is None else str(row[name]) for name in columns} == expected
        assert row["source_file"] == file_key(table, FIRST)
        assert key_of(rows[row["source_row"] - 1]) == key


@pytest.mark.parametrize(
    ("table", "day", "column", "value"),
    [
        ("schedules", dt.date(2013, 2, 11), "tailnum", "D942DN"),
        ("weather", dt.date(2013, 2, 12), "wind_speed", "1048.36058"),
    ],
)
def test_a_bad_row_is_in_quarantine_with_its_file_row_and_reason(
    loop: Loop, table: str, day: dt.date, column: str, value: str
) -> None:
    [held] = loop.lake(f"select * from {{quarantine.{table}}} where partition_date = ?", day)
    assert held["source_file"] == file_key(table, day)
    row = loop.delivered(table, day)[held["source_row"] - 1]
    assert row[column] == value
    assert json.loads(held["row"]) == row
    assert any(column in reason and value in reason for reason in held["reasons"])


# --- predictions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("day", SCENARIO.days, ids=str)
def test_each_scheduled_flight_of_a_day_has_one_prediction(loop: Loop, day: dt.date) -> None:
    held = loop.lake("select row from {quarantine.schedules} where partition_date = ?", day)
    expected = Counter(map(key_of, loop.delivered("schedules", day)))
    expected -= Counter(key_of(json.loads(row["row"])) for row in held)
    current = loop.mart("select * from flight_delay_current where as_of = ?", day)
    assert Counter(map(key_of, current)) == expected
    threshold = yaml.safe_load((PROJECT / "include/models/flight_delay/model.yaml").read_text())["scoring"]["threshold"]
    for row in current:
        assert 0 < row["probability"] < 1
        assert bool(row["decision"]) == (row["probability"] >= threshold)
        reasons = [REASON.fullmatch(row[f"reason_{rank}"]) for rank in (1, 2, 3)]
        assert len({match[1] for match in reasons if match}) == 3, row

    def comparable(rows: Rows) -> list[tuple[Any, ...]]:
        values = ("probability", "reason_1", "reason_2", "reason_3", "model_version")
        return sorted((*key_of(row), bool(row["decision"]), *(row[name] for name in values)) for row in rows)

    stored = loop.lake("select * from {predictions.flight_delay} where partition_date = ?", day)
    assert {str(row["as_of"]) for row in stored} == {str(day)}
    assert comparable(stored) == comparable(current)


def test_probabilities_vary_and_rank_delays(loop: Loop) -> None:
    rows = loop.mart("select probability, label from flight_delay_outcomes")
    late = [row["probability"] for row in rows if row["label"]]
    others = [row["probability"] for row in rows if not row["label"]]
    assert len({round(row["probability"], 3) for row in rows}) > 50
    assert sum(late) / len(late) > sum(others) / len(others)


def test_outcomes_join_only_days_that_have_matured(loop: Loop) -> None:
    matured = [day for day in SCENARIO.days if day < LAST]
    for day in matured:
        landed = {key_of(r): int(r["arr_delay"]) > 15 for r in loop.delivered("actuals", day) if r["arr_delay"] != "NA"}
        scored = {key_of(row) for row in loop.mart("select * from flight_delay_current where as_of = ?", day)}
        rows = loop.mart("select * from flight_delay_outcomes where as_of = ?", day)
        assert {key_of(row): bool(row["label"]) for row in rows} == {k: v for k, v in landed.items() if k in scored}
        assert len(rows) == len({key_of(row) for row in rows})
        assert {row["known_at"][:19] for row in rows} == {f"{day + DAY} 00:00:00"}
    days = {
        row["as_of"] for row in loop.mart("select distinct as_of from flight_delay_outcomes where as_of <= ?", LAST)
    }
    assert days == {str(day) for day in matured}


# --- the champion ----------------------------------------------------------------------------------------------------


def alias(loop: Loop, name: str, model: str = MODEL) -> int | None:
    query = "select version from registered_model_aliases where name = ? and alias = ?"
    rows = loop.sql(loop.layout.registry_db, query, model, name)
    return rows[0]["version"] if rows else None


def tags(loop: Loop, version: int, model: str = MODEL) -> dict[str, str]:
    query = "select key, value from model_version_tags where name = ? and version = ?"
    return {row["key"]: row["value"] for row in loop.sql(loop.layout.registry_db, query, model, version)}


def champions(loop: Loop, model: str = MODEL) -> Rows:
    return loop.mart("select * from champions where model = ? order by effective_from", model)


def champion(loop: Loop, model: str = MODEL) -> dict[str, Any]:
    return champions(loop, model)[-1]


def test_registry_mart_and_ledger_agree_on_the_champion(loop: Loop) -> None:
    row = champion(loop)
    promotion = loop.mart("select * from ledger where kind = 'promotion' and subject = ? order by id", MODEL)[-1]
    assert alias(loop, "champion") == row["version"] == json.loads(promotion["evidence"])["version"]
    [gate] = loop.mart("select * from ledger where kind = 'gate' and run_id = ?", promotion["run_id"])
    assert (gate["outcome"], promotion["outcome"], row["run_id"]) == ("accepted", "promoted", gate["run_id"])
    assert json.loads(gate["evidence"])["challenger_sha256"] == tags(loop, row["version"])["sha256"]
    assert json.loads(gate["reasons"])


def test_a_plain_booster_gives_the_stored_probabilities(loop: Loop) -> None:
    import pandas as pd
    import xgboost

    scored = loop.mart("select * from flight_delay_current where as_of = ?", FIRST)
    [version] = {row["model_version"] for row in scored}
    tagged = tags(loop, version)
    data = loop.get("lake", f"{tagged['prefix']}/model.ubj")
    assert hashlib.sha256(data).hexdigest() == tagged["sha256"]
    bundle = json.loads(loop.get("lake", f"{tagged['prefix']}/bundle.json"))

    with duckdb.connect() as connection:
        connection.execute("set timezone = 'UTC'")
        for table in KEY:
            recent = f"partition_date between '{FIRST - 8 * DAY}' and '{FIRST}'" if table != "planes" else "true"
            connection.execute(f"create table {table} as from {loop.files(f'trusted.{table}')} where {recent}")
        connection.execute(
            "create table entities as select flight_date, carrier, flight, origin, flight_date::timestamp as as_of "
            f"from schedules where flight_date = '{FIRST}'"
        )
        sql = (PROJECT / "include/models/flight_delay/features.sql").read_text()
        frame = connection.execute(sql).df()
    values = frame[bundle["features"]].copy()
    for name in bundle["features"]:
        if name in bundle["categories"]:
            values[name] = pd.Categorical(values[name], categories=bundle["categories"][name])
        else:
            values[name] = values[name].astype("float32")
    predicted = xgboost.Booster(model_file=bytearray(data)).predict(xgboost.DMatrix(values, enable_categorical=True))
    frame["flight_date"] = frame["flight_date"].dt.date
    expected = {key_of(row): row["probability"] for row in scored}
    found = {key_of(row): float(p) for row, p in zip(frame.to_dict("records"), predicted, strict=True)}
    assert found == pytest.approx(expected, abs=1e-5)


# --- verdicts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("day", SCENARIO.days, ids=str)
def test_a_day_has_one_verdict_and_a_report(loop: Loop, day: dt.date) -> None:
    [monitored] = loop.mart("select * from monitorings where model = ? and as_of = ?", MODEL, day)
    [recorded] = loop.mart("select * from ledger where kind = 'verdict' and subject = ? and as_of = ?", MODEL, day)
    assert monitored["verdict"] in VERDICTS
    assert (recorded["outcome"], json.loads(recorded["reasons"])) == (
        monitored["verdict"],
        json.loads(monitored["reasons"]),
    )
    report = json.loads(loop.get("lake", f"reports/flight_delay/{day}.json"))
    assert (report["model"], report["as_of"], report["version"]) == ("flight_delay", str(day), monitored["version"])
    [scoring] = loop.mart("select * from scorings where model = ? and as_of = ? and is_current", MODEL, day)
    assert monitored["version"] == scoring["version"]
    assert monitored["report_uri"] == f"s3://lake/reports/flight_delay/{day}.html"
    page = loop.get("lake", f"reports/flight_delay/{day}.html")
    assert b"<html" in page[:2000]
    assert len(page) > 100_000
    assert report["columns"] == json.loads(monitored["columns"])


# --- doors -----------------------------------------------------------------------------------------------------------


def test_nothing_answers_without_a_login_and_an_analyst_only_reads(loop: Loop) -> None:
    runs = f"/api/v2/dags/{INGEST}/dagRuns"
    body = {"logical_date": None, "partition_key": str(WAITING)}
    known = len(loop.runs(INGEST, str(WAITING)))
    with httpx.Client(base_url=loop.layout.ui_url, trust_env=False) as anonymous:
        assert anonymous.get("/api/v2/dags").status_code == 401
        assert anonymous.post(runs, json=body).status_code == 401
    lake = httpx.get(f"{loop.layout.s3_url}/lake/reports/flight_delay/{LAST}.json", trust_env=False)
    assert lake.status_code in {400, 403}
    assert b"wasserstein" not in lake.content
    with Api.login(loop.layout, "analyst") as analyst:
        assert analyst.dag_runs(INGEST)
        with pytest.raises(ApiError, match="403"):
            analyst.trigger_run(INGEST, partition_key=str(WAITING))
    assert len(loop.runs(INGEST, str(WAITING))) == known


def test_pages_need_a_login_are_sandboxed_and_linked_from_their_tasks(loop: Loop) -> None:
    def page(path: str, user: str | None) -> httpx.Response:
        headers = {"Authorization": f"Bearer {Api.login(loop.layout, user).token()}"} if user else {}
        return httpx.get(f"{loop.layout.ui_url}/evergreen{path}", headers=headers, timeout=60, trust_env=False)

    report, validation, card = f"/reports/flight_delay/{LAST}", f"/validation/schedules/{LAST}", "/cards/flight_delay/1"
    for path in (report, validation, card):
        assert page(path, None).status_code == page(f"/raw{path}", None).status_code == 401
        drawn, raw = page(path, "analyst"), page(f"/raw{path}", "analyst")
        assert (drawn.status_code, raw.status_code) == (200, 200)
        assert drawn.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'; ")
        assert raw.headers["content-security-policy"].startswith("sandbox allow-scripts; default-src 'none'")
    assert "Verdict: " in page(f"/raw{report}", "oncall").text
    assert "<title>flight_delay, version 1</title>" in page(f"/raw{card}", "analyst").text
    for path in (
        f"/reports/flight_delay/{LAST + 9 * DAY}",
        f"/reports/other/{LAST}",
        f"/validation/ledger/{LAST}",
        "/raw/cards/flight_delay/999",
    ):
        assert page(path, "admin").status_code == 404
    for path in ("/reports/flight_delay/..%2f..%2fsecrets.json", "/cards/flight_delay/0", "/cards/..%2fsecrets/1"):
        assert page(path, "admin").status_code == page(f"/raw{path}", "admin").status_code == 404

    for dag_id, task, path in ((MONITOR, "measure", report), (INGEST, "table.validate", validation)):
        run = loop.runs(dag_id, str(LAST))[0]["dag_run_id"]
        names = list(yaml.safe_load((PROJECT / "include/sources/nyc_flights/source.yaml").read_text())["tables"])
        index = names.index("schedules") if dag_id == INGEST else -1
        links = loop.api.request(
            "GET",
            f"/dags/{dag_id}/dagRuns/{quote(run, safe='')}/taskInstances/{task}/links",
            params={"map_index": index},
        )["extra_links"]
        assert list(links.values()) == [f"{loop.layout.ui_url}/evergreen{path}"]


# --- again -----------------------------------------------------------------------------------------------------------


def mart_rows(loop: Loop) -> dict[str, list[str]]:
    return {
        table: sorted(json.dumps(row, sort_keys=True) for row in loop.mart(f"select * from {table}"))
        for table in MART_TABLES
    }


def lake_rows(loop: Loop) -> dict[str, tuple[int, str]]:
    """Rows and a fingerprint of each lake table, whatever its files are."""
    query = "select count(*) as n, bit_xor(md5_number(t::varchar))::varchar as print from {{{}}} t"
    names = [f"{row['table_namespace']}.{row['table_name']}" for row in loop.sql(loop.layout.catalog_db, CATALOG)]
    found = {name: loop.lake(query.format(name))[0] for name in sorted(names)}
    return {name: (row["n"], row["print"]) for name, row in found.items()}


def test_a_second_demo_changes_no_row_and_starts_no_run(loop: Loop) -> None:
    rows, lake = mart_rows(loop), lake_rows(loop)
    runs = {dag: len(loop.api.dag_runs(dag)) for dag in (INGEST, SCORE, MONITOR, TRAIN)}
    assert demo.run(loop.stack, SCENARIO, Console(file=loop.said, width=200)) == []
    assert {dag: len(loop.api.dag_runs(dag)) for dag in runs} == runs
    assert mart_rows(loop) == rows
    assert lake_rows(loop) == lake


def test_cleared_runs_leave_the_same_rows(loop: Loop) -> None:
    rows, lake = mart_rows(loop), lake_rows(loop)
    for dag_id in (INGEST, SCORE, MONITOR):
        loop.followed(dag_id, loop.runs(dag_id, str(SECOND))[-1]["dag_run_id"], str(SECOND))
    assert lake_rows(loop) == lake
    assert mart_rows(loop) == rows


# --- late and broken files -------------------------------------------------------------------------------------------


def test_a_late_file_wins_and_what_it_repeats_is_a_duplicate(loop: Loop) -> None:
    before = loop.delivered("actuals", SECOND)
    changed = next(row for row in before if row["arr_delay"] != "NA" and int(row["arr_delay"]) <= 15)
    repeated = next(row for row in before if row["arr_delay"] != "NA" and key_of(row) != key_of(changed))
    late = {**changed, "arr_delay": "16"}
    text = "".join(",".join(row) + "\n" for row in [list(before[0]), list(late.values()), list(repeated.values())])
    loop.put(file_key("actuals", SECOND, "-2"), gzip.compress(text.encode(), mtime=0))
    loop.followed(INGEST, loop.runs(INGEST, str(LAST))[-1]["dag_run_id"], str(LAST))

    [batch] = loop.mart("select * from ingest_batches where table_name = 'actuals' and partition_date = ?", SECOND)
    counts = {name: batch[name] for name in ("status", "rows_in", "trusted", "quarantined", "duplicates")}
    assert counts == {
        "status": "published",
        "rows_in": len(before) + 2,
        "trusted": len(before),
        "quarantined": 0,
        "duplicates": 2,
    }
    assert [d["key"] for d in json.loads(batch["deliveries"])] == [
        file_key("actuals", SECOND),
        file_key("actuals", SECOND, "-2"),
    ]
    trusted = {key_of(r): r for r in loop.lake("select * from {trusted.actuals} where partition_date = ?", SECOND)}
    assert trusted[key_of(changed)]["arr_delay"] == 16
    for number, row in enumerate((changed, repeated), 1):
        found = trusted[key_of(row)]
        assert (found["source_file"], found["source_row"]) == (file_key("actuals", SECOND, "-2"), number)
    assert_all_rows_accounted_for(loop, "actuals")
    outcomes = {key_of(r): r for r in loop.mart("select * from flight_delay_outcomes where as_of = ?", SECOND)}
    assert bool(outcomes[key_of(changed)]["label"]) is True


def alerts(loop: Loop, subject: str, kind: str) -> Rows:
    """The open ones."""
    query = "select * from alerts where subject = ? and kind = ? and resolved_at is null order by id"
    return loop.mart(query, subject, kind)


def tasks_of(loop: Loop, run_id: str, task_id: str) -> dict[str, dict[str, Any]]:
    """{table: task instance} of a mapped task of ingest."""
    found = [task for task in loop.api.task_instances(INGEST, run_id) if task["task_id"] == task_id]
    return {list(KEY)[task["map_index"]]: task for task in found if task["map_index"] >= 0}


@pytest.fixture(scope="module")
def waiting(loop: Loop, upstream: dict[str, bytes]) -> tuple[str, dict[str, str]]:
    """The ingest of a day without files, and the states of its waits before the files were put."""
    run_id = loop.api.trigger_run(INGEST, partition_key=str(WAITING))

    def states() -> dict[str, str]:
        return {table: str(task["state"]) for table, task in tasks_of(loop, run_id, "table.wait").items()}

    loop.until("every wait deferred or ended", lambda: set(states().values()) == {"deferred", "success"})
    seen = states()
    loop.until("an alert that it is late", lambda: alerts(loop, "nyc_flights", "run_late"))
    for key in arriving(upstream, WAITING):
        loop.put(key, upstream[key])
    return run_id, seen


def arriving(upstream: dict[str, bytes], day: dt.date) -> list[str]:
    """The keys that the run of a day expects."""
    wanted = {file_key("schedules", day), file_key("actuals", day - DAY), file_key("weather", day - DAY)}
    assert wanted <= set(upstream)
    return sorted(wanted)


def test_a_day_without_files_waits_without_a_worker(loop: Loop, waiting: tuple[str, dict[str, str]]) -> None:
    _, states = waiting
    assert states == {"schedules": "deferred", "actuals": "deferred", "weather": "deferred", "planes": "success"}


def test_a_truncated_file_stops_its_table_at_once_and_the_right_one_is_taken(
    loop: Loop, upstream: dict[str, bytes]
) -> None:
    key = file_key("schedules", BROKEN)
    for name in arriving(upstream, BROKEN):
        loop.put(name, upstream[name] if name != key else upstream[name][: len(upstream[name]) // 2])
    backfill = loop.api.backfill(INGEST, BROKEN, BROKEN)
    run = loop.until("the backfill's run", lambda: loop.runs(INGEST, str(BROKEN)))[0]
    run_id = run["dag_run_id"]
    assert loop.api.wait_run(INGEST, run_id)["state"] == "failed"
    loop.api.wait_backfill(backfill)

    published = tasks_of(loop, run_id, "table.publish")
    task = published["schedules"]
    assert (task["state"], task["try_number"]) == ("failed", 1)
    assert {table: published[table]["state"] for table in ("actuals", "weather")} == dict.fromkeys(
        ("actuals", "weather"), "success"
    )
    log = loop.log(INGEST, run_id, task)
    for told in (key, "expected a whole gzip file", "PartitionStopped", RUNBOOK):
        assert told in log
    assert (PROJECT / RUNBOOK).is_file()
    [batch] = loop.mart("select * from ingest_batches where table_name = 'schedules' and partition_date = ?", BROKEN)
    assert (batch["status"], batch["rows_in"], batch["trusted"]) == ("stopped", 0, 0)
    assert key in batch["reasons"]
    assert not loop.lake("select 1 from {trusted.schedules} where partition_date = ?", BROKEN)
    assert not loop.runs(SCORE, str(BROKEN))
    [alert] = alerts(loop, "nyc_flights", "partition_stopped")
    assert (alert["cause"], alert["seen"], alert["as_of"]) == (
        "nyc_flights|partition_stopped|schedules",
        1,
        str(BROKEN),
    )
    assert key in alert["what"] and alert["runbook"] == RUNBOOK

    loop.put(key, upstream[key])
    loop.clear(INGEST, run_id)
    loop.run_of(SCORE, str(BROKEN))
    loop.run_of(MONITOR, str(BROKEN))
    assert alerts(loop, "nyc_flights", "partition_stopped") == []
    [ended] = loop.mart("select resolution from alerts where id = ?", alert["id"])
    assert ended["resolution"] == f"schedules of {BROKEN} is published, no partition stands stopped"
    [batch] = loop.mart("select * from ingest_batches where table_name = 'schedules' and partition_date = ?", BROKEN)
    rows = loop.delivered("schedules", BROKEN)
    assert (batch["status"], batch["rows_in"], json.loads(batch["reasons"])) == ("published", len(rows), [])
    assert len(loop.lake("select 1 from {trusted.schedules} where partition_date = ?", BROKEN)) == batch["trusted"]
    [scored] = loop.mart("select count(*) as n from flight_delay_current where as_of = ?", BROKEN)
    assert scored["n"] == batch["trusted"] > 500
    [verdict] = loop.mart("select verdict from monitorings where model = ? and as_of = ?", MODEL, BROKEN)
    assert verdict["verdict"] != "broken_data"


# --- training --------------------------------------------------------------------------------------------------------


def decisions(loop: Loop, run_id: str) -> dict[str, dict[str, Any]]:
    """{kind: decision} of one run, by its id as the ledger keeps it."""
    key = re.sub(r"[^A-Za-z0-9_.-]", "-", run_id)
    return {row["kind"]: row for row in loop.mart("select * from ledger where run_id = ?", key)}


def test_a_weak_challenger_by_hand_is_refused_and_the_champion_stays(loop: Loop) -> None:
    before = champion(loop)
    run_id = loop.trigger(
        TRAIN,
        conf={
            "reason": "a stump, to see the gate",
            "as_of": str(LAST),
            "hyper_parameters": ONE_SPLIT,
        },
    )
    found = decisions(loop, run_id)
    assert set(found) == {"gate", "training"}
    assert (found["training"]["actor"], json.loads(found["training"]["reasons"])) == (
        "admin",
        ["a stump, to see the gate"],
    )
    assert found["gate"]["outcome"] == "refused"
    assert json.loads(found["gate"]["reasons"])
    version = loop.pushed(TRAIN, run_id, "register")["version"]
    assert alias(loop, "challenger") == version != before["version"]
    assert alias(loop, "champion") == before["version"]
    assert champion(loop) == before
    prefix = tags(loop, version)["prefix"]
    assert hashlib.sha256(loop.get("lake", f"{prefix}/model.ubj")).hexdigest() == tags(loop, version)["sha256"]
    lineage = json.loads(loop.get("lake", f"{prefix}/lineage.json"))
    assert (lineage["reason"], lineage["decision"]) == ("a stump, to see the gate", "refused")
    skipped = {task["task_id"]: task["state"] for task in loop.api.task_instances(TRAIN, run_id)}
    assert skipped["promote"] == "skipped"


def test_a_request_trains_by_its_keyed_event(loop: Loop) -> None:
    before = champion(loop)
    request = loop.trigger("request__flight_delay", partition_key=str(LAST))
    assert decisions(loop, request)["retrain"]["outcome"] == "allowed"
    run = loop.run_of(TRAIN, f"flight_delay|{LAST}")
    found = decisions(loop, run["dag_run_id"])
    assert found["gate"]["as_of"] == str(LAST)
    version = loop.pushed(TRAIN, run["dag_run_id"], "register")["version"]
    assert version > before["version"]
    if found["gate"]["outcome"] == "accepted":
        assert champion(loop)["version"] == alias(loop, "champion") == version
        assert champion(loop)["effective_from"] == str(LAST + DAY)
    else:
        assert champion(loop) == before
        assert (alias(loop, "champion"), alias(loop, "challenger")) == (before["version"], version)


# --- a person decides ------------------------------------------------------------------------------------------------

APPROVE, SCORE_REVIEWED, TRAIN_REVIEWED = f"approve__{REVIEWED}", f"score__{REVIEWED}", f"train__{REVIEWED}"
TRAINED = SCENARIO.train_as_of


def task_states(loop: Loop, dag_id: str, run_id: str) -> dict[str, str]:
    return {task["task_id"]: str(task["state"]) for task in loop.api.task_instances(dag_id, run_id)}


def asks(loop: Loop, run_id: str) -> str:
    """The run of approve__, once it waits for a person."""
    wanted = f"{APPROVE} {run_id} awaits input"
    loop.until(wanted, lambda: task_states(loop, APPROVE, run_id).get("wait") == "awaiting_input")
    time.sleep(2)  # an answer before the scheduler has seen the task leave its worker is lost, and asked for again
    return run_id


def request_of(run_id: str) -> str:
    return f"/dags/{APPROVE}/dagRuns/{quote(run_id, safe='')}/taskInstances/wait/-1/hitlDetails"


def answer(loop: Loop, run_id: str, user: str, option: str) -> None:
    with Api.login(loop.layout, user) as api:
        api.request("PATCH", request_of(run_id), {"chosen_options": [option], "params_input": {}})


def concluded(loop: Loop, run_id: str, option: str) -> dict[str, Any]:
    """Answer as on-call; the approval as the ledger has it."""
    began = dt.datetime.now(dt.UTC)
    answer(loop, run_id, "oncall", option)
    loop.succeeded(APPROVE, run_id)
    row = decisions(loop, run_id)["approval"]
    evidence = json.loads(row["evidence"])
    assert (row["subject"], row["as_of"], row["actor"]) == (REVIEWED, str(TRAINED), "oncall")
    assert evidence["responded_by"] == {"id": "oncall", "name": "oncall"}
    assert evidence["answer"] == [option]
    assert began <= dt.datetime.fromisoformat(evidence["responded_at"]) <= dt.datetime.now(dt.UTC)
    return {**row, "evidence": evidence}


def champion_events(loop: Loop) -> Rows:
    """Events of the asset that says a new champion is in force, as Airflow keeps them."""
    query = (
        "select e.partition_key, e.extra, e.source_dag_id, e.source_run_id from asset_event e "
        "join asset a on a.id = e.asset_id where a.name = ? order by e.id"
    )
    return loop.sql(loop.layout.airflow_db, query, f"champion__{REVIEWED}")


def trained(loop: Loop, reason: str, **conf: Any) -> str:
    """Train the reviewed model by hand; the run of approve__ that the gate's yes starts, once it waits."""
    loop.api.unpause(APPROVE)
    key = f"{REVIEWED}|{TRAINED}"
    known = {run["dag_run_id"] for run in loop.runs(APPROVE, key)}
    run_id = loop.trigger(TRAIN_REVIEWED, conf={"reason": reason, "as_of": str(TRAINED), **conf})
    gate = decisions(loop, run_id)["gate"]
    assert gate["outcome"] == "accepted", gate["reasons"]
    assert "promotion" not in decisions(loop, run_id)
    fresh = lambda: [run for run in loop.runs(APPROVE, key) if run["dag_run_id"] not in known]  # noqa: E731
    return asks(loop, loop.until(f"a run of {APPROVE}", fresh)[0]["dag_run_id"])


@pytest.fixture(scope="module")
def candidate(loop: Loop) -> str:
    """A run that asks whether version 1 shall be the first champion."""
    return trained(loop, "a first one, weak", hyper_parameters=ONE_SPLIT)


@pytest.fixture(scope="module")
def rejected(loop: Loop, candidate: str) -> dict[str, Any]:
    """The no to version 1."""
    return concluded(loop, candidate, "Reject")


@pytest.fixture(scope="module")
def approved(loop: Loop, rejected: dict[str, Any]) -> dict[str, Any]:
    """The yes to version 1, asked a second time by hand."""
    return concluded(loop, asks(loop, loop.api.trigger_run(APPROVE, conf={"version": 1})), "Approve")


@pytest.fixture(scope="module")
def replaced(loop: Loop, approved: dict[str, Any]) -> dict[str, Any]:
    """The yes to version 2. Version 1 has scored the first day, version 2 the others."""
    loop.trigger(SCORE_REVIEWED, partition_key=str(FIRST))
    found = concluded(loop, trained(loop, "the spec, to beat the first"), "Approve")
    for day in (SECOND, LAST):
        loop.trigger(SCORE_REVIEWED, partition_key=str(day))
    loop.api.pause(SCORE_REVIEWED)
    return found


def test_only_an_approver_may_answer(loop: Loop, candidate: str) -> None:
    asked = loop.api.request("GET", request_of(candidate))
    assert asked["subject"] == f"Promote {REVIEWED} version 1, trained as of {TRAINED}?"
    assert f"({loop.layout.ui_url}/evergreen/cards/{REVIEWED}/1)" in asked["body"]
    assert asked["defaults"] == ["Reject"]
    for user in ("analyst", "admin"):  # a viewer; one who may everything but is no approver
        with pytest.raises(ApiError, match="403"):
            answer(loop, candidate, user, "Approve")
    assert task_states(loop, APPROVE, candidate)["wait"] == "awaiting_input"


def test_a_no_promotes_nothing_and_stands(loop: Loop, candidate: str, rejected: dict[str, Any]) -> None:
    evidence = rejected["evidence"]
    assert (rejected["outcome"], evidence["version"], evidence["effective_from"]) == ("rejected", 1, None)
    assert task_states(loop, APPROVE, candidate)["conclude"] == "skipped"
    assert "promotion" not in decisions(loop, candidate)
    assert not [event for event in champion_events(loop) if event["source_run_id"] == candidate]
    with pytest.raises(ApiError, match="409"):
        answer(loop, candidate, "oncall", "Approve")


def test_a_yes_makes_the_candidate_champion(loop: Loop, approved: dict[str, Any]) -> None:
    evidence, run_id = approved["evidence"], approved["run_id"]
    assert (approved["outcome"], evidence["version"], evidence["champion"]) == ("approved", 1, None)
    gate = loop.mart("select * from ledger where kind = 'gate' and run_id = ?", evidence["gate_run"])[0]
    assert json.loads(gate["evidence"])["challenger_sha256"] == tags(loop, 1, REVIEWED)["sha256"]
    promotion = loop.mart("select * from ledger where kind = 'promotion' and subject = ? order by id", REVIEWED)[0]
    assert (promotion["actor"], json.loads(promotion["evidence"])["version"]) == ("oncall", 1)
    assert gate["id"] < approved["id"] < promotion["id"]
    first = champions(loop, REVIEWED)[0]
    assert (first["version"], first["effective_from"]) == (1, str(TRAINED))
    event = champion_events(loop)[0]
    assert (event["source_dag_id"], event["partition_key"]) == (APPROVE, str(TRAINED))
    assert json.loads(event["extra"])["version"] == 1
    assert re.sub(r"[^A-Za-z0-9_.-]", "-", event["source_run_id"]) == run_id


def versions_seen(loop: Loop) -> dict[str, list[int]]:
    """{date: versions} of what analysts see of the reviewed model."""
    rows = loop.mart(f"select distinct as_of, model_version from {REVIEWED}_current order by 1, 2")
    days: dict[str, list[int]] = {}
    for row in rows:
        days.setdefault(row["as_of"], []).append(row["model_version"])
    return days


def test_a_better_candidate_replaces_the_champion_from_the_first_date_not_scored(
    loop: Loop, replaced: dict[str, Any]
) -> None:
    evidence = replaced["evidence"]
    assert (replaced["outcome"], evidence["version"], evidence["champion"]) == ("approved", 2, 1)
    [gate] = loop.mart("select * from ledger where kind = 'gate' and run_id = ?", evidence["gate_run"])
    measured = json.loads(gate["evidence"])
    assert measured["champion_version"] == 1
    assert measured["fresh"]["over_champion"]["low"] > 0
    assert (evidence["effective_from"], alias(loop, "champion", REVIEWED)) == (str(SECOND), 2)
    assert [(row["effective_from"], row["version"]) for row in champions(loop, REVIEWED)] == [
        (str(TRAINED), 1),
        (str(SECOND), 2),
    ]
    assert versions_seen(loop) == {str(FIRST): [1], str(SECOND): [2], str(LAST): [2]}


def test_a_rollback_is_planned_then_moves_the_champion_and_scores_again(loop: Loop, replaced: dict[str, Any]) -> None:
    scored = {str(day): len(loop.delivered("schedules", day)) for day in (SECOND, LAST)}
    history = f"select * from {REVIEWED}_predictions where model_version = ? order by as_of, carrier, flight, origin"
    withdrawn = loop.mart(history, 2)
    assert Counter(row["as_of"] for row in withdrawn) == scored
    conf = {"model": REVIEWED, "version": 1}

    def rolled_back(**more: Any) -> tuple[str, dict[str, Any]]:
        loop.api.unpause("rollback")
        with Api.login(loop.layout, "oncall") as oncall:
            run_id = oncall.trigger_run("rollback", conf={**conf, **more})
        loop.succeeded("rollback", run_id)
        row = decisions(loop, run_id)["rollback"]
        assert (row["subject"], row["actor"], row["as_of"]) == (REVIEWED, "oncall", str(SECOND))
        plan = json.loads(row["evidence"])
        assert (plan["version"], plan["withdrawn"], plan["partitions"]) == (1, 2, [str(SECOND), str(LAST)])
        assert plan["rows"] == sum(scored.values())
        return run_id, row

    with Api.login(loop.layout, "analyst") as analyst, pytest.raises(ApiError, match="403"):
        analyst.trigger_run("rollback", conf=conf)

    rows, lake = mart_rows(loop), lake_rows(loop)
    run_id, row = rolled_back()
    assert row["outcome"] == "dry_run"
    assert task_states(loop, "rollback", run_id)["rescore"] == "skipped"
    after = mart_rows(loop)
    assert len(after.pop("ledger")) == len(rows.pop("ledger")) + 1
    assert after == rows
    assert lake_rows(loop) == lake
    assert versions_seen(loop) == {str(FIRST): [1], str(SECOND): [2], str(LAST): [2]}
    assert (alias(loop, "champion", REVIEWED), alias(loop, "withdrawn", REVIEWED)) == (2, None)

    run_id, row = rolled_back(dry_run=False, reason="the desk distrusts version 2")
    assert (row["outcome"], json.loads(row["reasons"])) == ("rolled_back", ["the desk distrusts version 2"])
    assert loop.pushed("rollback", run_id, "complete")["rescored"] == 2
    assert (alias(loop, "champion", REVIEWED), alias(loop, "withdrawn", REVIEWED)) == (1, 2)
    assert [(row["effective_from"], row["version"]) for row in champions(loop, REVIEWED)] == [
        (str(TRAINED), 1),
        (str(SECOND), 1),
    ]
    assert versions_seen(loop) == {str(FIRST): [1], str(SECOND): [1], str(LAST): [1]}
    assert loop.mart(history, 2) == withdrawn
    scorings = "select as_of, version, is_current from scorings where model = ? order by 1, 2"
    assert [tuple(row.values()) for row in loop.mart(scorings, REVIEWED)] == [
        (str(FIRST), 1, 1),
        *((day, version, version == 1) for day in scored for version in (1, 2)),
    ]
    current = loop.mart(f"select as_of, probability from {REVIEWED}_current where as_of > ?", FIRST)
    assert Counter(row["as_of"] for row in current) == scored
    assert len({row["probability"] for row in current}) < 10 < len({row["probability"] for row in withdrawn})
    stored = loop.lake(f"select distinct model_version as v from {{predictions.{REVIEWED}}}")
    assert stored == [{"v": 1}]

    rows, lake = mart_rows(loop), lake_rows(loop)
    loop.clear("rollback", run_id)
    assert mart_rows(loop) == rows
    assert lake_rows(loop) == lake


def test_make_ledger_tells_who_decided_what(loop: Loop, approved: dict[str, Any]) -> None:
    recorded = loop.mart("select as_of, kind, outcome, actor from ledger where subject = ? order by id", REVIEWED)
    told = io.StringIO()
    assert ledger.main(loop.layout, ["--model", REVIEWED], Console(file=told, width=400)) == 0
    lines = [line.split() for line in told.getvalue().splitlines() if line.startswith("2013-")]
    assert [tuple(line[:4]) for line in lines] == [tuple(row.values()) for row in recorded]
    asked = [line[2] for line in lines if line[1] == "approval"]
    assert asked[:2] == ["rejected", "approved"]
    assert ["promotion", "promoted", "oncall"] in [line[1:4] for line in lines]


# --- upkeep ----------------------------------------------------------------------------------------------------------


def test_replaying_quarantine_under_the_same_rules_releases_nothing(loop: Loop) -> None:
    rows, lake = mart_rows(loop), lake_rows(loop)
    day = "2013-02-11"
    conf = {"table": "nyc_flights.schedules", "since": day, "until": day}
    run_id = loop.trigger("replay_quarantine", conf=conf)
    assert loop.pushed("replay_quarantine", run_id, "replay") == {
        "released": 0,
        "kept": 1,
        "duplicates": 0,
        "partitions": 0,
    }
    assert lake_rows(loop) == lake
    assert mart_rows(loop) == rows


def test_maintenance_drops_snapshots_and_no_row(loop: Loop) -> None:
    def snapshots(table: str) -> tuple[set[int], set[int]]:
        location = loop.metadata_location(table).removeprefix("s3://lake/")
        metadata = json.loads(loop.get("lake", location))
        tagged = {ref["snapshot-id"] for ref in metadata["refs"].values() if ref["type"] == "tag"}
        return {snapshot["snapshot-id"] for snapshot in metadata["snapshots"]}, tagged

    before, lake = snapshots("trusted.schedules"), lake_rows(loop)
    assert len(before[0]) > 2
    loop.trigger("maintain_lake", conf={"keep_snapshots": 1})
    after = snapshots("trusted.schedules")
    assert len(after[0]) < len(before[0])
    assert after[1] == before[1] <= after[0]
    assert lake_rows(loop) == lake


def test_a_registered_version_is_made_again_byte_for_byte(loop: Loop) -> None:
    tagged = tags(loop, 1)
    run_id = loop.trigger("rebuild", conf={"model": MODEL, "version": 1})
    row = decisions(loop, run_id)["rebuild"]
    assert (row["outcome"], row["actor"], row["as_of"]) == ("equal", "admin", str(TRAINED))
    evidence = json.loads(row["evidence"])
    sha256 = hashlib.sha256(loop.get("lake", f"{tagged['prefix']}/model.ubj")).hexdigest()
    assert evidence["expected_sha256"] == evidence["found_sha256"] == sha256
    assert json.loads(row["reasons"]) == ["every recorded input is the same"]
    gate = loop.mart("select evidence from ledger where kind = 'gate' and subject = ? order by id", MODEL)[0]
    assert json.loads(gate["evidence"])["challenger_sha256"] == sha256


def test_what_waited_goes_on_when_its_files_have_come(loop: Loop, waiting: tuple[str, dict[str, str]]) -> None:
    run_id, _ = waiting
    loop.succeeded(INGEST, run_id)
    key = re.sub(r"[^A-Za-z0-9_.-]", "-", run_id)
    late = loop.mart("select * from alerts where kind = 'run_late' and run_id = ?", key)
    assert [(row["cause"], row["as_of"]) for row in late] == [(f"nyc_flights|run_late|{INGEST}", str(WAITING))]
    assert late[0]["resolution"] == f"a run of {INGEST} ended well on {WAITING}"
    loop.run_of(SCORE, str(WAITING))
    loop.run_of(MONITOR, str(WAITING))
    [scored] = loop.mart("select count(*) as n from flight_delay_current where as_of = ?", WAITING)
    assert scored["n"] == len(loop.delivered("schedules", WAITING))
    for table in KEY:
        assert_all_rows_accounted_for(loop, table)


# --- people, on the pages --------------------------------------------------------------------------------------------

SHOTS = Path(os.environ.get("EVERGREEN_SCREENSHOTS", PROJECT / "var" / "screenshots"))
ACTIONS = {"acknowledge", "snooze", "approve", "release", "retrain", "rollback"}


@pytest.fixture(scope="module")
def night(loop: Loop, replaced: dict[str, Any]) -> str:
    """Work for a person: a run that fails, and a candidate that waits. The failed run."""
    for dag_id in ("rollback", "replay_quarantine", TRAIN):
        loop.api.unpause(dag_id)
    trained(loop, "the spec once more")
    run_id = loop.api.trigger_run(SCORE, conf={"as_of": "2013-12-24"})
    assert loop.api.wait_run(SCORE, run_id)["state"] == "failed"
    return run_id


def test_a_failed_run_is_one_alert(loop: Loop, night: str) -> None:
    [alert] = alerts(loop, MODEL, "run_failed")
    assert (alert["cause"], alert["seen"]) == (f"{MODEL}|run_failed|{SCORE}", 1)
    assert "2013-12-24" in alert["what"]


def test_an_analyst_sees_every_page_and_no_button(loop: Loop, night: str) -> None:
    seen = walk(loop.layout.ui_url, "analyst", loop.layout.secrets.passwords["analyst"], SHOTS)
    assert seen.complaints == []
    assert (seen.offered, seen.done) == (set(), {})
    for path in ("/", "/alerts", "/data", f"/models/{MODEL}", f"/models/{REVIEWED}", f"/dictionary/{MODEL}"):
        assert path in seen.pages
    assert [path for path in seen.pages if path.startswith("/reports/")]


def test_an_admin_is_offered_every_action(loop: Loop, night: str) -> None:
    seen = walk(loop.layout.ui_url, "admin", loop.layout.secrets.passwords["admin"], SHOTS, act=False)
    assert seen.complaints == []
    assert (seen.offered, seen.done) == (ACTIONS, {})


def test_on_call_presses_every_action_once_and_the_ledger_knows_who(loop: Loop, night: str) -> None:
    [newest] = loop.mart("select max(id) as id from ledger")
    seen = walk(loop.layout.ui_url, "oncall", loop.layout.secrets.passwords["oncall"], SHOTS)
    assert seen.complaints == []
    assert set(seen.done) == seen.offered == ACTIONS
    ended = {verb: seen.done[verb].rsplit(": ", 1)[-1] for verb in ("release", "retrain", "rollback")}
    assert ended == dict.fromkeys(ended, "success")
    rows = loop.mart("select kind, outcome, actor from ledger where id > ? order by id", newest["id"])
    mine = Counter((row["kind"], row["outcome"]) for row in rows if row["actor"] == "oncall")
    for decided in (("acknowledgement", "acknowledged"), ("acknowledgement", "snoozed"), ("approval", "approved")):
        assert mine[decided] == 1, rows
    assert (mine["rollback", "dry_run"], mine["rollback", "rolled_back"], mine["training", "started"]) == (1, 1, 1)
    trainings = [*loop.api.dag_runs(TRAIN), *loop.api.dag_runs(TRAIN_REVIEWED)]
    runs = [run for run in trainings if run["dag_run_id"].startswith("health__")]
    assert len(runs) == 1, "a double click trains once"
    assert runs[0]["triggering_user_name"] == "oncall"
