"""The fleet page: every query and the rendering, as the server answers a request. Beside it the queries alone."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa

from benchmarks.side import Side
from include.evergreen.health import read
from include.evergreen.mart.schema import alerts, champions, cohorts, ledger, monitorings, scorings
from include.evergreen.mart.store import Mart
from include.evergreen.specs import ModelSpec
from tests.examples_health import World, seed

DAYS = 60
SAMPLES = 7
SEEDED = 6
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


SIDES = {"engine": engine}
