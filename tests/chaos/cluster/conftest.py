"""A cluster of processes with a first champion whose parts start again as compose's do, and what to compare with."""

from __future__ import annotations

import contextlib
import datetime as dt
import gzip
import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import duckdb
import psutil
import psycopg
import pytest
import yaml

from include.evergreen.local.cluster import Cluster
from include.evergreen.local.demo import INGEST, MODEL, MONITOR, SCORE, SOURCE, TRAIN
from include.evergreen.local.layout import CLUSTER_PORTS, PROJECT
from include.evergreen.mart.values import number
from include.evergreen.platform import Platform
from include.evergreen.settings import Settings
from tests.chaos.tally import Fault
from tests.cluster.conftest import Outside
from tests.outside import Rows, compiled, copy_of_project, ports_of, s3_client, unhurried

HERE = Path(__file__).parent
HISTORY_FROM = dt.date(2013, 3, 4)
LOADED = dt.date(2013, 4, 1)
TABLES: dict[str, dict[str, Any]] = yaml.safe_load((PROJECT / "include/sources" / SOURCE / "source.yaml").read_text())[
    "tables"
]
DAILY = ("schedules", "actuals", "weather")
LOOP = (INGEST, SCORE, MONITOR)
PATIENCE = 600.0
"""Seconds after which a recovery counts as none: minutes, not hours, on a busy machine too."""
NOTES: list[str] = []
"""How long recoveries took: printed, never asserted."""
DOWN = (psycopg.OperationalError, psycopg.InterfaceError)
T = TypeVar("T")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.timeout(1500))  # the first test pays for the cluster


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if NOTES:
        terminalreporter.section("recoveries")
        for line in NOTES:
            terminalreporter.write_line(line)


class Analyst:
    """Looks at the analysts' view all the time: how many rows it ever showed of each day."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self.seen: dict[dt.date, set[int]] = {}
        self.looks = 0

    def __enter__(self) -> Analyst:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        query = f"select as_of, count(*) from {MODEL}_current group by 1"
        while not self._over.is_set():
            with contextlib.suppress(*DOWN), psycopg.connect(self._uri, connect_timeout=2, autocommit=True) as mart:
                while not self._over.wait(0.1):
                    for day, rows in mart.execute(query).fetchall():
                        self.seen.setdefault(day, set()).add(rows)
                    self.looks += 1
            self._over.wait(0.2)


@dataclass
class Ward(Outside):
    """The cluster, its outside readers, the faults' days."""

    work: Path = field(default=Path())
    analyst: Analyst = field(init=False)
    days: Iterator[dt.date] = field(init=False)

    def __post_init__(self) -> None:
        self.analyst = Analyst(self.cluster.postgres_uri("mart"))
        self.days = (LOADED + dt.timedelta(days=i) for i in range(1, 60))
        self.ended: list[dt.date] = []
        self._files: dict[str, str] = {}

    def files(self, table: str) -> str:
        """As the reader's, asked once per commit."""
        location = self.metadata_location(table)
        if location not in self._files:
            self._files[location] = super().files(table)
        return self._files[location]

    # --- ask ---------------------------------------------------------------------------------------------------------

    def until(self, what: str, ask: Callable[[], T], timeout: float = PATIENCE) -> T:
        """The first answer that is not empty. A database that is away is asked again."""
        deadline = time.monotonic() + timeout
        last: Any = None
        while time.monotonic() < deadline:
            with contextlib.suppress(*DOWN):
                if last := ask():
                    return last
            time.sleep(0.05)
        raise AssertionError(f"expected {what} within {timeout:.0f} s, found {last}; {self.unfinished()}")

    def unfinished(self) -> Rows:
        """For a message: the tasks of open runs, and those that failed."""
        return self.sql(
            "airflow",
            "select t.dag_id, t.run_id, t.task_id, t.map_index, t.state, t.try_number from task_instance t "
            "join dag_run r using (dag_id, run_id) where r.state <> 'success' "
            "and t.state is distinct from 'success' order by t.dag_id, t.run_id",
        )

    def body(self, dag_id: str, task_id: str) -> int:
        """The process of the only task of this name that runs, once it is the only one."""
        query = "select pid from task_instance where dag_id = %s and task_id = %s and state = 'running'"

        def alone() -> int:
            found = self.sql("airflow", query, dag_id, task_id)
            return int(found[0]["pid"] or 0) if len(found) == 1 else 0

        return self.until(f"one {task_id}", alone)

    # --- a day of flights --------------------------------------------------------------------------------------------

    @cached_property
    def platform(self) -> Platform:
        """To put files and start runs with; asserts read without it."""
        return Platform(Settings.from_env(self.cluster.environment))

    def deliver(self, since: dt.date, until: dt.date) -> None:
        from include.sources.nyc_flights.publish import publish

        publish(self.platform.landing, since, until)

    def begin(self, deliver: bool = True) -> dt.date:
        """Deliver the next day and start its ingest; score and monitor follow by their events."""
        day = next(self.days)
        if deliver:
            self.deliver(day, day)
        with self.api() as api:
            api.trigger_run(INGEST, partition_key=day.isoformat())
        return day

    def train(self, as_of: dt.date, reason: str) -> str:
        with self.api() as api:
            return api.trigger_run(TRAIN, conf={"reason": reason, "as_of": as_of.isoformat()})

    @contextlib.contextmanager
    def held(self, name: str) -> Iterator[Callable[..., None]]:
        """Hold the engine's own lock `name`, so that a body waits for it in mid-run.

        Yields a call that returns once so many wait for any lock. It is let go at the end, or by PostgreSQL's.
        """
        key = number(f"lock {name}")
        uri = self.cluster.postgres_uri("mart")
        mine = self.until("PostgreSQL", lambda: psycopg.connect(uri, autocommit=True, connect_timeout=5))
        try:
            mine.execute("select pg_advisory_lock(%s)", [key])

            def waits(bodies: int = 1) -> None:
                pid = mine.info.backend_pid
                self.until(f"{bodies} bodies that wait for a lock", lambda: len(self._waiting(pid)) >= bodies)

            yield waits
        finally:
            mine.close()

    def _waiting(self, since: int) -> Rows:
        """Sessions younger than `since` that have asked for a lock that is not theirs. The engine asks every 50 ms."""
        query = (
            "select pid from pg_stat_activity a where datname = 'mart' and query like '%%pg_try_advisory_lock%%' "
            "and backend_start > (select backend_start from pg_stat_activity where pid = %s) "
            "and pid <> pg_backend_pid() and state_change > clock_timestamp() - interval '1 second' "
            "and not exists (select from pg_locks l where l.pid = a.pid and l.locktype = 'advisory' and granted)"
        )
        return self.sql("mart", query, since)

    def recover(self, day: dt.date) -> None:
        """Wait for the day's loop to succeed by itself."""

        def whole() -> bool:
            runs = self.runs(day)
            bad = [run for run in runs if run["state"] == "failed"]
            assert not bad, (bad, self.unfinished())
            return sorted(run["dag_id"] for run in runs if run["state"] == "success") == sorted(LOOP)

        self.until(f"the loop of {day}", whole)
        self.ended.append(day)

    def runs(self, day: dt.date) -> Rows:
        query = "select dag_id, run_id, state from dag_run where partition_key = %s and dag_id = any(%s)"
        return self.sql("airflow", query, day.isoformat(), list(LOOP))

    def trained(self, run_id: str) -> None:
        """Wait for a training to succeed by itself."""

        def done() -> bool:
            [run] = self.sql("airflow", "select state from dag_run where dag_id = %s and run_id = %s", TRAIN, run_id)
            assert run["state"] != "failed", self.unfinished()
            return bool(run["state"] == "success")

        self.until(f"training {run_id}", done)

    def tries(self, dag_id: str, day: dt.date) -> int:
        """The highest try of the tasks of a day's run."""
        query = (
            "select max(t.try_number) as n from task_instance t join dag_run r using (dag_id, run_id) "
            "where r.dag_id = %s and r.partition_key = %s"
        )
        return int(self.sql("airflow", query, dag_id, day.isoformat())[0]["n"])

    def in_state(self, dag_id: str, task_id: str, state: str, day: dt.date) -> Rows:
        query = (
            "select t.* from task_instance t join dag_run r using (dag_id, run_id) "
            "where t.dag_id = %s and t.task_id = %s and t.state = %s and r.partition_key = %s"
        )
        return self.sql("airflow", query, dag_id, task_id, state, day.isoformat())

    def commits(self, table: str) -> int:
        """The commits of a lake table; `maintain_lake`, which expires them, is paused."""
        bucket, key = self.metadata_location(table).removeprefix("s3://").split("/", 1)
        return len(json.loads(self.get(bucket, key))["snapshots"])

    @staticmethod
    def lives(pid: int) -> bool:
        return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE

    def healthy(self) -> None:
        """Wait until every part answers again: the next fault meets a whole cluster."""
        self.until("every part to answer", lambda: self.cluster._late() is None)

    # --- what must be there ------------------------------------------------------------------------------------------

    def landed(self, table: str, day: dt.date) -> list[tuple[Any, ...]]:
        """The rows of a landed file, typed as the lake's table is."""
        columns = list(TABLES[table]["columns"])
        key = TABLES[table]["path"].format(date=day)
        path = self.cache / key.replace("/", "_").removesuffix(".gz")
        path.write_bytes(gzip.decompress(self.get("landing", key)))
        with duckdb.connect() as connection:
            typed = connection.execute(f"describe select {', '.join(columns)} from {self.files(f'trusted.{table}')}")
            casts = ", ".join(f"{name}::{kind} as {name}" for name, kind, *_ in typed.fetchall())
            return connection.execute(
                f"select {casts} from read_csv('{path}', all_varchar = true, header = true, nullstr = ['', 'NA'])"
            ).fetchall()

    def trusted(self, table: str, day: dt.date) -> list[tuple[Any, ...]]:
        columns = list(TABLES[table]["columns"])
        query = f"select {', '.join(columns)} from {{trusted.{table}}} where partition_date = ?"
        return [tuple(row.values()) for row in self.lake(query, day)]

    def quarantined(self, table: str, day: dt.date) -> Rows:
        if not self.has(f"quarantine.{table}"):
            return []
        held = self.lake(f"select row from {{quarantine.{table}}} where partition_date = ?", day)
        return [json.loads(row["row"]) for row in held]

    @cached_property
    def twin(self) -> Any:
        """Everything delivered so far taken in at once, in memory, without a fault."""
        from include.evergreen.replay.world import memory_platform, take_in
        from include.evergreen.specs import sources

        folder = self.work / "twin"
        folder.mkdir()
        twin = memory_platform(folder)
        for key in self.keys("landing"):
            twin.landing.put(key, self.get("landing", key))
        take_in(twin, sources()[SOURCE], max(self.ended), HISTORY_FROM, "twin")
        return twin

    def recomputed(self, day: dt.date) -> list[tuple[Any, ...]]:
        """(carrier, flight, origin, version, probability) as one clean scoring gives them."""
        import pyarrow as pa

        from include.evergreen.features.build import features
        from include.evergreen.scoring.score import score_batches
        from include.evergreen.specs import models

        spec = models()[MODEL]
        [scoring] = self.sql("mart", "select version from scorings where as_of = %s and is_current", day)
        version = int(scoring["version"])
        bundle = self.platform.registry.load(MODEL, version)
        rows = features(self.twin.lake, spec, since=day, until=day, cut=day)
        found = pa.Table.from_batches(score_batches(bundle, rows.to_batches(), spec, version))
        return [prediction(row) for row in found.to_pylist()]

    def whole(self, day: dt.date, fault: Fault) -> None:
        """Assert the day: every landed row once in the lake or in quarantine, every flight predicted once, in the lake
        and in the mart, one verdict, one run per DAG."""
        for table in DAILY:
            of = day - dt.timedelta(days=TABLES[table].get("lag_days", 0))
            landed, held = self.landed(table, of), self.quarantined(table, of)
            [batch] = self.sql(
                "mart", "select * from ingest_batches where table_name = %s and partition_date = %s", table, of
            )
            assert batch["status"] == "published"
            counts = (batch["rows_in"], batch["trusted"], batch["quarantined"], batch["duplicates"])
            assert counts == (len(landed), len(landed) - len(held), len(held), 0), (table, of)
            columns = list(TABLES[table]["columns"])
            keys = [columns.index(name) for name in TABLES[table]["key"]]
            bad = {tuple(str(row[columns[i]]) for i in keys) for row in held}
            fault.rows([row for row in landed if tuple(str(row[i]) for i in keys) not in bad], self.trusted(table, of))
        flights = [row[:3] for row in self.predicted_in_mart(day)]
        trusted = self.lake("select carrier, flight, origin from {trusted.schedules} where partition_date = ?", day)
        fault.rows([tuple(row.values()) for row in trusted], flights)
        fault.rows(self.predicted_in_mart(day), self.predicted_in_lake(day))
        monitored = self.sql("mart", "select verdict from monitorings where model = %s and as_of = %s", MODEL, day)
        assert len(monitored) == 1
        decided = "select count(*) as n from ledger where kind = 'retrain' and subject = %s and as_of = %s"
        assert self.sql("mart", decided, MODEL, day)[0]["n"] <= 1
        assert sorted(run["dag_id"] for run in self.runs(day)) == sorted(LOOP)
        assert self.analyst.seen[day] == {len(flights)}, "an analyst saw a part of a day"

    def registered_once(self, fault: Fault) -> None:
        """Each training decided once and made one version, whose bytes are those it was registered with."""
        trained = self.sql("airflow", "select run_id, state from dag_run where dag_id = %s", TRAIN)
        assert {run["state"] for run in trained} == {"success"}
        gates = self.sql("mart", "select run_id from ledger where kind = 'gate' and subject = %s", MODEL)
        assert len(gates) == len({row["run_id"] for row in gates}) == len(trained)
        query = "select version, key, value from model_version_tags where name = %s and key in ('prefix', 'sha256')"
        tags: dict[int, dict[str, str]] = {}
        for row in self.sql("mlflow", query, MODEL):
            tags.setdefault(row["version"], {})[row["key"]] = row["value"]
        assert len(tags) == len(trained)
        said = [(version, tag["sha256"]) for version, tag in tags.items()]
        kept = [
            (version, hashlib.sha256(self.get("lake", f"{tag['prefix']}/model.ubj")).hexdigest())
            for version, tag in tags.items()
        ]
        fault.rows(said, kept)

    def predicted_in_mart(self, day: dt.date) -> list[tuple[Any, ...]]:
        return [prediction(row) for row in self.sql("mart", f"select * from {MODEL}_current where as_of = %s", day)]

    def predicted_in_lake(self, day: dt.date) -> list[tuple[Any, ...]]:
        rows = self.lake(f"select * from {{predictions.{MODEL}}} where partition_date = ?", day)
        return [prediction(row) for row in rows]


def prediction(row: dict[str, Any]) -> tuple[Any, ...]:
    return (row["carrier"], row["flight"], row["origin"], row["model_version"], row["probability"])


def project(folder: Path) -> Path:
    """A copy of the project: four weeks of history, few rounds, files looked for every other second."""
    copy_of_project(folder)
    unhurried(
        folder / "include/models" / MODEL / "model.yaml",
        training={
            **yaml.safe_load((folder / "include/models" / MODEL / "model.yaml").read_text())["training"],
            "window_days": 28,
            "validation_days": 5,
            "min_rows": 1000,
            "num_boost_round": 30,
        },
        gate={"floors": {"auc": 0.5}, "min_holdout_rows": 1000, "max_calibration_error": 0.5},
    )
    source = folder / "include/sources" / SOURCE / "source.yaml"
    text = source.read_text()
    assert text.count("poke_seconds: 60") == 1
    source.write_text(text.replace("poke_seconds: 60", "poke_seconds: 2"))
    return compiled(folder)


@pytest.fixture(scope="session")
def ward(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ward]:
    """The cluster after history and a first champion; when it has ended, no process is left."""
    folder = tmp_path_factory.mktemp("ward")
    (folder / "cache").mkdir()
    copy = project(folder / "project")
    given = ports_of(CLUSTER_PORTS)
    layout = Cluster.layout_of({"EVERGREEN_VAR": str(folder / "var"), "EVERGREEN_DAGS": str(copy / "dags"), **given})
    environment = dict(os.environ)
    cluster = Cluster(replace(layout, project=copy), restarting=True)
    ward = Ward(s3_client(layout), folder / "cache", cluster, "", work=folder)
    began = time.monotonic()
    try:
        with cluster:
            cluster.start()
            cluster.wait_ready()
            NOTES.append(f"cluster ready after {time.monotonic() - began:.0f} s")
            ward.deliver(HISTORY_FROM, LOADED)
            with ward.api() as api:
                for dag_id in (INGEST, TRAIN, SCORE, MONITOR):
                    api.unpause(dag_id)
                conf = {"history_from": HISTORY_FROM.isoformat()}
                run = api.wait_run(INGEST, api.trigger_run(INGEST, partition_key=LOADED.isoformat(), conf=conf))
                assert run["state"] == "success", api.failed_tasks(INGEST, run["dag_run_id"])
            ward.trained(ward.train(LOADED, "first champion"))
            NOTES.append(f"first champion after {time.monotonic() - began:.0f} s")
            with ward.analyst:
                yield ward
            family = ward.processes()
        assert [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE] == []
    finally:
        os.environ.clear()
        os.environ.update(environment)
        NOTES.extend(f"started again: {r.part}, which ended with {r.code}" for r in cluster.restarts)
        cluster.remove()
