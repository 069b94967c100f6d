"""Worlds: an object store on disk, SQLite files, and readers of them that know nothing of the engine.

One is prepared for all tests of a run; each test works on copies of it, with a server of its own.
"""

from __future__ import annotations

import datetime as dt
import fcntl
import hashlib
import json
import os
import pickle
import re
import secrets
import shutil
import signal
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from psycopg import sql
from pyiceberg.catalog.sql import SqlCatalog

from include.evergreen.local import object_store, postgres
from include.evergreen.mart.store import Mart
from include.evergreen.settings import ObjectStoreSettings, Settings
from tests.chaos.proxy import HttpProxy
from tests.chaos.stages import MODEL, STEPS, Memo, Tasks, source, spec
from tests.conftest import free_port
from tests.outside import LakeReader, s3_client

QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "GX_ANALYTICS_ENABLED": "false"}
Facts = list[tuple[Any, ...]]

FACTS = {
    "batch": "select table_name, partition_date, status, rows_in, trusted, quarantined, duplicates, deliveries, run_id "
    "from ingest_batches",
    "decision": "select kind, subject, as_of, outcome, actor, run_id from ledger",
    "champion": "select model, effective_from, version, run_id from champions",
    "scoring": "select as_of, version, is_current, rows, digest, run_id from scorings",
    "prediction": f"select flight_date, carrier, flight, origin, as_of, model_version, probability, decision, reason_1 "
    f"from {MODEL}_predictions",
    "label": f"select flight_date, carrier, flight, origin, as_of, label from {MODEL}_labels",
    "monitoring": "select as_of, version, verdict, run_id from monitorings",
    "cohort": "select as_of, version, matured_rows, auc from cohorts",
    "alert": "select cause, seen, resolved_at is null from alerts",
}
"""What the mart is about, without moments and counters."""
VERSIONS = {
    "version": "select v.name, v.version, t.value from model_versions v left join model_version_tags t "
    "on t.name = v.name and t.version = v.version and t.key = 'sha256'",
    "alias": "select name, alias, version from registered_model_aliases",
    "run": "select key, value from tags where key = 'evergreen.key'",
    "experiment": "select name from experiments where name <> 'Default'",
}


@dataclass(frozen=True)
class Made:
    """The prepared world on disk. `folder` is never served."""

    folder: Path


@dataclass
class World:
    """A copy of the prepared world, served.

    Attributes:
        endpoint: of the server; the engine may be given another one in front of it.
        memo: what the steps so far have returned. elsewhere: readers of databases that are no longer files.
    """

    folder: Path
    port: int
    store: ObjectStoreSettings
    memo: Memo = field(default_factory=dict)
    elsewhere: dict[str, Callable[[str], Facts]] = field(default_factory=dict)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def settings(self, endpoint: str | None = None, **changes: str) -> Settings:
        """Settings of the engine; `changes` replace the URIs of catalog, mart and registry."""
        uris = {f"{name}_uri": f"sqlite:///{self.folder}/{name}.db" for name in ("catalog", "mart", "registry")}
        store = self.store.model_copy(update={"endpoint": endpoint or self.endpoint})
        return Settings.model_validate({**uris, **changes, "object_store": store})

    # --- outside readers ---------------------------------------------------------------------------------------------

    def rows(self, database: str, query: str) -> Facts:
        """Rows of one of the databases."""
        if database in self.elsewhere:
            return self.elsewhere[database](query)
        with closing(sqlite3.connect(f"file:{self.folder}/{database}.db?mode=ro", uri=True)) as connection:
            return connection.execute(query).fetchall()

    def mart(self) -> Facts:
        """Every fact of the mart."""
        return [(kind, *map(plain, row)) for kind, query in FACTS.items() for row in self.rows("mart", query)]

    def registry(self) -> Facts:
        return [(kind, *map(plain, row)) for kind, query in VERSIONS.items() for row in self.rows("registry", query)]

    def objects(self) -> Facts:
        """What the lake bucket shows to people, and the models, by content; run ids are no content."""
        found = []
        lake = self.folder / "store" / self.store.lake_bucket
        for room in ("raw", "validation", "reports", "mlflow"):
            for path in sorted((lake / room).rglob("*")):
                if path.is_file():
                    key = re.sub(r"[0-9a-f]{32}", "*", str(path.relative_to(lake)))
                    exact = room == "raw" or path.suffix == ".ubj"
                    found.append((key, hashlib.sha256(path.read_bytes()).hexdigest() if exact else None))
        return found

    def tables(self) -> list[str]:
        query = "select table_namespace || '.' || table_name from iceberg_tables order by 1"
        return [name for (name,) in self.rows("catalog", query)]

    @cached_property
    def _reader(self) -> _Reader:
        secret = self.store.secret_key.get_secret_value() if self.store.secret_key else ""
        access = self.store.access_key.get_secret_value() if self.store.access_key else ""
        keys = SimpleNamespace(s3_access_key=access, s3_secret_key=secret)
        layout: Any = SimpleNamespace(s3_url=self.endpoint, secrets=keys)
        cache = self.folder / "cache"
        cache.mkdir(exist_ok=True)
        return _Reader(s3_client(layout), cache, self, layout)

    def lake(self, *tables: str) -> Facts:
        """The rows of lake tables (all by default) but for the moment they were scored."""
        found: Facts = []
        for table in tables or self.tables():
            if table in self.tables():
                query = f"select columns(lambda c: c <> 'scored_at')::varchar from {{{table}}}"
                found += [(table, *row.values()) for row in self._reader.lake(query)]
        return found

    def everything(self) -> Facts:
        return [*self.mart(), *self.registry(), *self.objects(), *self.lake()]


@dataclass
class _Reader(LakeReader):
    world: World
    at: Any

    @property
    def layout(self) -> Any:
        return self.at

    def metadata_location(self, table: str) -> str:
        space, _, name = table.partition(".")
        query = "select table_namespace, table_name, metadata_location from iceberg_tables"
        return str(next(row[2] for row in self.world.rows("catalog", query) if row[:2] == (space, name)))


def plain(value: Any) -> Any:
    """A value as both databases give it."""
    if isinstance(value, dt.datetime | dt.date):
        return value.isoformat()
    if isinstance(value, dict | list):
        return json.dumps(value, sort_keys=True)
    if isinstance(value, str) and value[:1] in "[{":
        return json.dumps(json.loads(value), sort_keys=True)
    if isinstance(value, bool):
        return int(value)
    return round(value, 12) if isinstance(value, float) else value


@contextmanager
def served(folder: Path) -> Iterator[World]:
    """The world in a folder, behind a real S3 server."""
    keys = json.loads((folder / "keys.json").read_text())
    port = free_port()
    argv, env = object_store.command(folder / "store", port, keys["access_key"], keys["secret_key"])
    with (folder / "store.log").open("ab") as log:
        server = subprocess.Popen(argv, env={**os.environ, **env}, stdout=log, stderr=log)
        try:
            object_store.wait_ready(port, 30)
            memo = json.loads((folder / "memo.json").read_text()) if (folder / "memo.json").exists() else {}
            yield World(folder, port, ObjectStoreSettings(**keys), memo)
        finally:
            server.terminate()
            try:
                server.wait(10)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


@pytest.fixture(scope="session")
def tasks() -> Iterator[Tasks]:
    """Warm task processes."""
    os.environ.update(QUIET)
    found = Tasks()
    yield found
    found.close()


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory, tasks: Tasks) -> Made:
    """The prepared world, made once for all processes of a run."""
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "chaos-world"
    shared.mkdir(exist_ok=True)
    with (shared / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (shared / "complete").exists():
            _make(shared / "world", tasks)
            (shared / "complete").touch()
    return Made(shared / "world")


def _make(folder: Path, tasks: Tasks) -> None:
    from include.evergreen.local.prepare import mlflow

    shutil.rmtree(folder, ignore_errors=True)
    (folder / "store").mkdir(parents=True)
    keys = {"access_key": secrets.token_hex(8), "secret_key": secrets.token_hex(16)}
    (folder / "keys.json").write_text(json.dumps(keys))
    mlflow(f"sqlite:///{folder}/registry.db")
    with served(folder) as world:
        tasks.run("prepare", world.settings()).done()


@pytest.fixture
def worlds(made: Made, tmp_path: Path) -> Iterator[Callable[[str], World]]:
    """Copies of the prepared world, by name."""
    with ExitStack() as stack:

        def copy(name: str) -> World:
            shutil.copytree(made.folder, tmp_path / name)
            return stack.enter_context(served(tmp_path / name))

        yield copy


# --- the clean twin --------------------------------------------------------------------------------------------------

LAKE_OF = {
    "publish": ("trusted.schedules", "quarantine.schedules"),
    "publish_scoring": (f"predictions.{MODEL}",),
    "rescore": (f"predictions.{MODEL}",),
    "maintain": ("trusted.schedules", "trusted.actuals", f"predictions.{MODEL}"),
}
"""Lake tables that are read after a step."""


@dataclass(frozen=True)
class Twin:
    """The walk without a fault.

    Attributes:
        memo: what every step returned. requests: step -> (method, target) of its requests to the object store.
        facts: step -> what there is after it. middle: folder of the world as it is before `rebuild`.
    """

    memo: Memo
    requests: dict[str, list[tuple[str, str]]]
    facts: dict[str, Facts]
    middle: Path


def facts_after(world: World, step: str) -> Facts:
    """What there is after a step, of what it may have changed."""
    return [*world.mart(), *world.registry(), *world.objects(), *world.lake(*LAKE_OF.get(step, ("none",)))]


@pytest.fixture(scope="session")
def twin(made: Made, tasks: Tasks) -> Twin:
    """The clean twin of every walk, walked once for all processes of a run."""
    folder = made.folder.parent
    with (folder / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        kept = folder / "twin.pickle"
        if not kept.exists():
            kept.write_bytes(pickle.dumps(_walk(made, folder, tasks)))
        found = pickle.loads(kept.read_bytes())
        assert isinstance(found, Twin)
        return found


def _walk(made: Made, folder: Path, tasks: Tasks) -> Twin:
    shutil.rmtree(folder / "twin", ignore_errors=True)
    shutil.copytree(made.folder, folder / "twin")
    shutil.rmtree(folder / "middle", ignore_errors=True)
    twin = Twin({}, {}, {}, folder / "middle")
    with served(folder / "twin") as world, HttpProxy(world.port) as proxy:
        twin.facts["before"] = facts_after(world, "before")
        for step in STEPS:
            if step == "rebuild":
                shutil.copytree(world.folder, twin.middle)
            proxy.heal()
            twin.memo[step] = tasks.run(step, world.settings(proxy.url), twin.memo).done()
            twin.requests[step] = list(proxy.seen)
            twin.facts[step] = facts_after(world, step)
    return twin


# --- PostgreSQL ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Server:
    """A PostgreSQL server on loopback."""

    port: int
    password: str

    def uri(self, database: str, port: int | None = None) -> str:
        """URL of a database; `port` of a proxy in front of the server."""
        return f"postgresql+psycopg://{postgres.ADMIN}:{self.password}@127.0.0.1:{port or self.port}/{database}"

    def reader(self, database: str) -> Callable[[str], Facts]:
        """Runs a query with the plain driver."""

        def read(query: str) -> Facts:
            with psycopg.connect(self.uri(database).replace("+psycopg", "")) as connection:
                return connection.execute(query).fetchall()

        return read

    def database(self) -> str:
        """A new, empty one."""
        name = f"chaos_{secrets.token_hex(6)}"
        admin = self.uri(postgres.ADMIN).replace("+psycopg", "")
        with psycopg.connect(admin, autocommit=True) as connection:
            connection.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
        return name

    def copy(self, world: World, name: str) -> str:
        """A database with the rows of one of a world's SQLite files; the world is read from it from now on."""
        found = self.database()
        if name == "mart":
            mart = Mart(self.uri(found))
            mart.create()
            mart.ensure_model(spec(), source())
            mart.engine.dispose()
        else:
            SqlCatalog("evergreen", uri=self.uri(found)).engine.dispose()
        old, new = sa.create_engine(f"sqlite:///{world.folder}/{name}.db"), sa.create_engine(self.uri(found))
        there = sa.MetaData()
        there.reflect(new)
        with old.connect() as rows, new.begin() as connection:
            for table in there.sorted_tables:
                columns = (_typed(column) for column in table.columns)
                have = rows.execute(sa.select(*columns).select_from(sa.table(table.name)))
                if connection.scalar(sa.select(sa.func.count()).select_from(table)):
                    connection.execute(sa.delete(table))
                if values := [dict(row) for row in have.mappings()]:
                    connection.execute(sa.insert(table), values)
                if "id" in table.columns:
                    last = f"(select max(id) + 1 from {table.name})"
                    connection.exec_driver_sql(f"select setval(pg_get_serial_sequence('{table.name}', 'id'), {last})")
        old.dispose()
        new.dispose()
        world.elsewhere[name] = self.reader(found)
        return found


def _typed(column: sa.Column[Any]) -> sa.ColumnElement[Any]:
    """A column as SQLite's reader is to understand it."""
    kind: Any = column.type
    for plain_type in (sa.DateTime, sa.Date, sa.Boolean, sa.JSON):
        if isinstance(kind, plain_type):
            kind = plain_type()
    return sa.column(column.name, kind)


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """A PostgreSQL server of this process's own."""
    folder = Path(tempfile.gettempdir()) / f"evergreen-chaos-{secrets.token_hex(6)}"
    found = Server(free_port(), secrets.token_hex(12))
    try:
        postgres.make(folder, found.password)
        with (folder / "log").open("wb") as log:
            running = subprocess.Popen(
                postgres.command(folder, found.port), cwd=folder, stdout=log, stderr=log, **postgres.as_owner()
            )
            try:
                deadline = time.monotonic() + 60
                while not postgres.ready(found.port):
                    assert running.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()
                    time.sleep(0.1)
                yield found
            finally:
                running.send_signal(signal.SIGINT)
                running.wait(30)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
