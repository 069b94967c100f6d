"""Many models in one deployment: the fleet page, and what Airflow does with their DAGs in a real stack.

The page is every query and the rendering, as the server answers a request; beside it the queries alone.
"""

from __future__ import annotations

import compileall
import datetime as dt
import shutil
import sqlite3
import statistics
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import psutil
import sqlalchemy as sa

from benchmarks import stack
from benchmarks.rows.parse import MODEL, PROJECT, project
from benchmarks.side import Side
from include.evergreen.health import read
from include.evergreen.local.stack import Stack
from include.evergreen.mart.schema import alerts, champions, cohorts, ledger, monitorings, scorings
from include.evergreen.mart.store import Mart
from include.evergreen.specs import ModelSpec
from tests.examples_health import World, seed

DAYS = 60
SAMPLES = 7
SEEDED = 6
VERBS = 4
"""DAGs of a model."""
OF_MODEL = ((scorings, "model"), (monitorings, "model"), (cohorts, "model"), (champions, "model"), (ledger, "subject"))


def fill(mart: Mart, models: int, days: int) -> tuple[World, dict[str, ModelSpec]]:
    """A mart of that many models, and their specs."""
    world = seed(mart, models=min(models, SEEDED), days=days)
    specs = dict(world.models)
    patterns = list(world.models)
    with mart.engine.execution_options(write=True).begin() as connection:
        for at in range(len(specs), models):
            pattern, name = patterns[at % len(patterns)], f"copy_{at:03d}"
            specs[name] = world.models[pattern].model_copy(update={"name": name})
            for table, column in OF_MODEL:
                _copy(connection, table, column, pattern, name)
            _copy(connection, alerts, "subject", pattern, name)
        for table in (scorings, monitorings, cohorts):
            _as_they_came(connection, table)
    return world, specs


def _as_they_came(connection: sa.Connection, table: sa.Table) -> None:
    """Store the rows by date: days pass for all models at once, so that a model's rows lie far apart."""
    connection.exec_driver_sql(f"create temp table moved as select * from {table.name}")
    connection.exec_driver_sql(f"delete from {table.name}")
    connection.exec_driver_sql(f"insert into {table.name} select * from moved order by as_of, model")
    connection.exec_driver_sql("drop table moved")


def _copy(connection: sa.Connection, table: sa.Table, column: str, pattern: str, name: str) -> None:
    skipped = {"id"} if "id" in table.c else set()
    names = [c.name for c in table.c if c.name not in skipped]
    changed: dict[str, Any] = {column: sa.literal(name)}
    if "cause" in names:
        changed["cause"] = sa.func.replace(table.c.cause, pattern, name)
    rows = sa.select(*(changed.get(c, table.c[c]) for c in names)).where(table.c[column] == pattern)
    connection.execute(table.insert().from_select(names, rows))


def _median(call: Callable[[], Any]) -> float:
    """Seconds, after a first call."""
    call()
    times = []
    for _ in range(SAMPLES):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def engine(side: Side) -> dict[str, Any]:
    """`scale` models of 60 days. Six are seeded through the real steps; their rows are copied for the others."""
    from starlette.testclient import TestClient

    from include.evergreen.web.app import create_app
    from tests.examples_web import ORIGIN, FakeAirflow
    from tests.support import memory_platform

    platform = memory_platform(side.folder)
    world, specs = fill(platform.mart, side.scale, DAYS)
    spec = next(iter(specs.values()))
    app = create_app(lambda: platform, FakeAirflow(platform.mart), lambda: (specs, world.sources))
    headers = {"authorization": "Bearer token-oncall", "accept": "text/html"}
    with TestClient(app, base_url=ORIGIN, headers=headers) as client:
        page = client.get("/")
        with side.timed():
            fleet = _median(lambda: client.get("/"))
        parts = {
            "read_seconds": _median(lambda: read.fleet(platform.mart, specs, world.sources)),
            "model_seconds": _median(
                lambda: read.model_page(platform.mart, spec, world.sources[spec.source], peers=specs)
            ),
        }
    if page.status_code != 200 or page.text.count("copy_") < side.scale - SEEDED:
        raise RuntimeError(f"expected a page with {side.scale} models, found {page.status_code}: {page.text[:300]}")
    return {"page_seconds": fleet, "kib": len(page.content) / 1024, **parts}


# --- Airflow with the DAGs of many models -----------------------------------------------------------------------------

RUNS = 7
WATCHED = 60
"""Seconds for which parts are watched while no run is there."""


def airflow(side: Side) -> dict[str, Any]:
    """The DAGs of `scale` models: how long until all are known, what they cost at rest, how late a task starts."""
    root = project(side.folder / "project", side.scale)
    shutil.copytree(PROJECT / "plugins", root / "plugins")
    shutil.copy(PROJECT / "airflow_settings.yaml", root)
    compileall.compile_dir(root, quiet=1)
    score = f"score__{MODEL}"
    with stack.stack(side.folder / "var", root / "dags", root) as (made, api):
        began = time.time()
        while (known := len(_parsed(made.layout.airflow_db))) < side.scale * VERBS:
            if time.time() - began > stack.PATIENCE:
                raise RuntimeError(f"expected {side.scale * VERBS} DAGs, found {known}")
            time.sleep(1)
        all_known = time.time() - began
        api.unpause(score)
        stack.run(api, score, partition_key="2013-07-01")
        with stack.timed(side, made):
            rest = _at_rest(made)
            days = [f"2013-08-{day:02d}" for day in range(1, RUNS + 1)]
            runs = [(score, stack.run(api, score, partition_key=day)) for day in days]
        first = [one for one in stack.tasks(api, runs) if one["task"].endswith("predict")]
        files = _durations(made.layout.airflow_db)
    side.seconds = statistics.median(one["start"] - one["queued"] for one in first)
    return {
        "dags": known,
        "known_seconds": all_known,
        "files": files,
        "body": statistics.median(one["end"] - one["start"] for one in first),
        "lag": statistics.median(one["start"] - one["scheduled"] for one in first),
        **rest,
    }


def _parsed(db: Path) -> dict[str, float]:
    """DAG -> seconds that its file took to parse."""
    with closing(sqlite3.connect(f"file:{db}?mode=ro", uri=True)) as connection:
        found = connection.execute(
            "select d.dag_id, d.last_parse_duration from dag d join serialized_dag using (dag_id) "
            "where d.dag_id like '%\\_\\_model\\_%' escape '\\'"
        )
        return dict(found.fetchall())


def _durations(db: Path) -> dict[str, float]:
    """Seconds of the last parse, by file: the import and what Airflow serialises."""
    with closing(sqlite3.connect(f"file:{db}?mode=ro", uri=True)) as connection:
        found = connection.execute("select relative_fileloc, max(last_parse_duration) from dag group by 1 order by 1")
        return {name: round(seconds, 2) for name, seconds in found.fetchall() if seconds}


def _at_rest(made: Stack) -> dict[str, Any]:
    """Cores that the scheduler and the DAG processor keep busy."""

    def seconds(part: str) -> float:
        whole = psutil.Process(made.parts[part].process.pid)
        total = 0.0
        for one in [whole, *whole.children(recursive=True)]:
            with suppress(psutil.Error):
                total += sum(one.cpu_times()[:4])
        return total

    before = {part: seconds(part) for part in ("scheduler", "dag-processor")}
    time.sleep(WATCHED)
    spent = {part: (seconds(part) - was) / WATCHED for part, was in before.items()}
    return {"scheduler_cores": spent["scheduler"], "processor_cores": spent["dag-processor"]}


# --- one DAG for each model, or one mapped over them -----------------------------------------------------------------

GIVE = """
from airflow.sdk import DAG, Asset, get_current_context, task
given = Asset(name="given", uri="x-bench://given")

@task(outlets=[given])
def give():
    get_current_context()["outlet_events"][given].add_partitions("2013-07-01")

with DAG("give", schedule=None):
    give()
"""
EACH = """
from airflow.sdk import DAG, Asset, PartitionedAssetTimetable, get_parsing_context, task
only = get_parsing_context().dag_id

@task
def score():
    return 1

for number in range({models}):
    name = f"each__{{number:03d}}"
    if only in (None, name):
        given = Asset(name="given", uri="x-bench://given")
        with DAG(name, schedule=PartitionedAssetTimetable(assets=given), is_paused_upon_creation=False) as dag:
            score()
        globals()[name] = dag
"""
MAPPED = """
from airflow.sdk import DAG, Asset, PartitionedAssetTimetable, task

@task
def score(model):
    return 1

given = Asset(name="given", uri="x-bench://given")
with DAG("mapped", schedule=PartitionedAssetTimetable(assets=given), is_paused_upon_creation=False):
    score.expand(model=[f"model_{{number:03d}}" for number in range({models})])
"""


def _prototype(side: Side, file: str, dags: int) -> dict[str, Any]:
    """One event, one empty task for each of `scale` models: until the last has ended."""
    folder = side.folder / "dags"
    folder.mkdir()
    (folder / "give.py").write_text(GIVE, encoding="utf-8")
    (folder / "file.py").write_text(file.format(models=side.scale), encoding="utf-8")
    with stack.stack(side.folder / "var", folder) as (made, api):
        api.unpause("give")
        while len(api.dags()) < dags + 1:
            time.sleep(1)
        with stack.timed(side, made):
            api.trigger_run("give")
            found: list[tuple[float, float, float]] = []
            while len(found) < side.scale:
                time.sleep(1)
                found = _done(made.layout.airflow_db)
            parts = {name: sum(psutil.Process(p.process.pid).cpu_times()[:2]) for name, p in made.parts.items()}
    return {
        "first_start": min(start for _, start, _ in found) - min(queued for queued, _, _ in found),
        "whole": max(end for _, _, end in found) - min(queued for queued, _, _ in found),
        "lag": statistics.median(start - queued for queued, start, _ in found),
        "scheduler_seconds": parts["scheduler"],
        "api_seconds": parts["api-server"],
    }


def _done(db: Path) -> list[tuple[float, float, float]]:
    """(scheduled, start, end) of every task but the event's that has succeeded, seconds since the epoch."""
    with closing(sqlite3.connect(f"file:{db}?mode=ro", uri=True)) as connection:
        found = connection.execute(
            "select scheduled_dttm, start_date, end_date from task_instance "
            "where state = 'success' and dag_id <> 'give'"
        ).fetchall()
    return [tuple(dt.datetime.fromisoformat(at).replace(tzinfo=dt.UTC).timestamp() for at in row) for row in found]


def each(side: Side) -> dict[str, Any]:
    return _prototype(side, EACH, side.scale)


def mapped(side: Side) -> dict[str, Any]:
    return _prototype(side, MAPPED, 1)


SIDES = {"engine": engine, "airflow": airflow, "each": each, "mapped": mapped}
