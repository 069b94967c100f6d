"""How long the fleet takes to read: 300 models of 60 days, medians of five.

    PYTHONPATH=. .venv/bin/python benchmarks/bench_fleet.py [models] [days]

Six models are seeded through the real steps; their rows are copied for the others.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event

from include.evergreen.health import read
from include.evergreen.mart.schema import alerts, champions, cohorts, ledger, monitorings, scorings
from include.evergreen.mart.store import Mart
from include.evergreen.specs import ModelSpec
from tests.examples_health import World, seed

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


def measured(mart: Mart, what: str, call: Callable[[], Any], repeats: int = 5) -> None:
    """Print the median times of a call after a first one, and its queries."""
    queries: list[str] = []

    def count(_c: Any, _cur: Any, statement: str, *_: Any) -> None:
        queries.append(statement)

    call()
    event.listen(mart.engine, "before_cursor_execute", count)
    times, busy = [], []
    for _ in range(repeats):
        start, spent = time.perf_counter(), time.process_time()
        call()
        times.append((time.perf_counter() - start) * 1000)
        busy.append((time.process_time() - spent) * 1000)
    event.remove(mart.engine, "before_cursor_execute", count)
    wall, cpu, number = statistics.median(times), statistics.median(busy), len(queries) // repeats
    sys.stdout.write(f"{what:22} {wall:8.1f} ms, {cpu:7.1f} ms of processor, {number:3d} queries\n")


def main(models: int = 300, days: int = 60) -> None:
    with tempfile.TemporaryDirectory() as folder:
        mart = Mart(f"sqlite:///{Path(folder)}/mart.db")
        world, specs = fill(mart, models, days)
        spec = next(iter(specs.values()))
        source = world.sources[spec.source]
        few = dict(list(specs.items())[:3])
        measured(mart, f"fleet, {models} models", lambda: read.fleet(mart, specs, world.sources))
        measured(mart, "fleet, 3 of them", lambda: read.fleet(mart, few, world.sources))
        measured(mart, "model page", lambda: read.model_page(mart, spec, source, peers=specs))
        measured(mart, "story", lambda: read.story(mart, [spec.name]))
        measured(mart, "report page", lambda: read.report_page(mart, spec, source, world.today))
        measured(mart, "tables", lambda: read.tables(mart, world.sources))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
