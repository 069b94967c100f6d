"""The embedded stack as its own commands run it, its faults, and readers of what it left that know nothing of it."""

from __future__ import annotations

import csv
import datetime as dt
import gzip
import io
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil
import yaml

from include.evergreen.local import processes
from include.evergreen.local.api import Api
from include.evergreen.local.layout import PORTS, Layout
from include.evergreen.local.stack import READY_SECONDS
from tests.outside import LakeReader, Rows, compiled, copy_of_project, ports_of, s3_client, unhurried

HERE = Path(__file__).parent
SOURCE, MODEL, REVIEWED = "nyc_flights", "flight_delay", "flight_delay_reviewed"
INGEST, SCORE, MONITOR, TRAIN = f"ingest__{SOURCE}", f"score__{MODEL}", f"monitor__{MODEL}", f"train__{MODEL}"
WEAK = {"max_depth": 1, "eta": 1, "gamma": 30}
"""Parameters that ask few questions about each flight."""
CHANGES = {
    "include/evergreen/orchestration/defaults.py": [
        ('"retries": 2', '"retries": 30'),
        ('"retry_delay": timedelta(seconds=10)', '"retry_delay": timedelta(0)'),
        ('"retry_exponential_backoff": 2.0', '"retry_exponential_backoff": 0'),
    ],
    "include/evergreen/local/layout.py": [
        ('"SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": 60', '"SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": 10'),
        (
            '"SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": 30',
            '"SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": 5, '
            '"SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": 2',
        ),
    ],
}
"""Of a copy of the project: a step dies more often than anyone retries by hand, and nobody waits for the next try."""

UNTOLD = {"run_id", "recorded_at", "promoted_at", "scored_at", "decided_at", "opened_at", "last_seen_at"}
UNTOLD |= {"resolved_at", "restated_at", "snapshot_id", "id", "told", "told_at", "evidence"}
"""What two runs of the same days cannot have in common; the evidence of a decision names snapshots and runs."""


def project(folder: Path) -> Path:
    """A copy of the project whose model is small and quick, with a second one that a person approves, and with points
    at which its tasks can be killed."""
    copy = copy_of_project(folder)
    models = copy / "include" / "models"
    gate = {
        "metric": "auc",
        "confidence": 0.51,
        "floors": {"auc": 0.5},
        "baseline_by": None,
        "min_holdout_rows": 500,
        "slices": [],
        "max_frozen_drop": 0.5,
        "max_calibration_error": 0.9,
        "frozen": {"every_days": 6, "renew_days": 90, "min_days": 2},
    }
    spec = yaml.safe_load((models / MODEL / "model.yaml").read_text())
    training = {**spec["training"], "num_boost_round": 30, "min_rows": 1000, "validation_days": 5}
    retrain = {"breaches": 1, "windows": 1, "cooldown_days": 7, "budget": 4, "losers": 9}
    monitoring = {**spec["monitoring"], "min_columns": 1, "max_misfit": 1000.0, "max_null_increase": 0.9}
    unhurried(models / MODEL / "model.yaml", gate=gate, training=training, retrain=retrain, monitoring=monitoring)
    thresholds = yaml.safe_load((models / MODEL / "thresholds.yaml").read_text())
    thresholds["thresholds"] = dict.fromkeys(thresholds["thresholds"], 1e-6)  # every day drifts
    (models / MODEL / "thresholds.yaml").write_text(yaml.safe_dump(thresholds, sort_keys=False))
    shutil.copytree(models / MODEL, models / REVIEWED)
    unhurried(models / REVIEWED / "model.yaml", name=REVIEWED, approval="human", approvers=["oncall"])
    for name, changes in CHANGES.items():
        text = (copy / name).read_text()
        for was, becomes in changes:
            assert text.count(was) == 1, (name, was)
            text = text.replace(was, becomes)
        (copy / name).write_text(text)
    shutil.copy(HERE / "inject.py", copy / "chaos_inject.py")
    with (copy / "include/evergreen/local/preload.py").open("a") as preload:
        preload.write("\nimport chaos_inject\n")
    return compiled(copy)


@dataclass
class Embedded(LakeReader):
    """A stack in a folder of its own: `project/`, `var/`, `plan/` of `inject.py`.

    Attributes:
        env: of its commands.
    """

    folder: Path
    env: dict[str, str]
    _api: dict[str, Api] = field(default_factory=dict)

    @classmethod
    def make(cls, folder: Path, copy: Path, var: Path | None = None) -> Embedded:
        """From a project and, when given, from the `var` of a stack that is down."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("cache", "plan"):
            (folder / name).mkdir()
        shutil.copytree(copy, folder / "project")
        if var is not None:
            shutil.copytree(var, folder / "var", dirs_exist_ok=True, ignore=shutil.ignore_patterns("logs", "stack.*"))
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("AIRFLOW_", "EVERGREEN_"))}
        env = {
            **clean,
            "PYTHONPATH": str(folder / "project"),
            "EVERGREEN_VAR": str(folder / "var"),
            "EVERGREEN_DAGS": str(folder / "project" / "dags"),
            "EVG_CHAOS": str(folder / "plan"),
            **ports_of(PORTS),
        }
        found = cls(None, folder / "cache", folder, env)
        found.s3 = s3_client(found.layout)
        return found

    # --- its commands ------------------------------------------------------------------------------------------------

    @cached_property
    def layout(self) -> Layout:  # type: ignore[override]
        return Layout.from_env(self.env)

    @property
    def project(self) -> Path:
        return self.folder / "project"

    @property
    def plan(self) -> Path:
        return self.folder / "plan"

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "include.evergreen.local", *arguments],
            env=self.env,
            cwd=self.project,
            capture_output=True,
            text=True,
            timeout=READY_SECONDS + 60,
        )

    def up(self) -> None:
        done = self.command("up")
        assert done.returncode == 0, done.stderr

    def down(self) -> None:
        for api in self._api.values():
            api.__exit__()
        self._api.clear()
        self.command("down")

    @contextmanager
    def running(self) -> Iterator[Embedded]:
        try:
            self.up()
            yield self
        finally:
            self.down()

    def state(self) -> dict[str, Any]:
        return dict(json.loads(self.layout.state_file.read_text()))

    def said(self, part: str = "supervisor") -> str:
        """The log of a part."""
        return (self.layout.logs / f"{part}.log").read_text(errors="replace")

    def api(self, user: str = "admin") -> Api:
        if user not in self._api:
            self._api[user] = Api.login(self.layout, user)
        return self._api[user]

    # --- its faults --------------------------------------------------------------------------------------------------

    def processes(self) -> list[psutil.Process]:
        """Every process of the stack, the supervisor and its guard too."""
        state = self.state()
        supervisor = psutil.Process(state["pid"])
        return [supervisor, *supervisor.children(recursive=True), *processes.of_stack(state["id"])]

    def cut(self) -> None:
        """The power fails: every process at once, and nobody is left to clean up."""
        family = self.processes()
        for process in {process.pid: process for process in family}.values():
            process.send_signal(signal.SIGSTOP)  # nothing happens between the first death and the last
        for process in {process.pid: process for process in [*family, *self.processes()]}.values():
            process.kill()
        psutil.wait_procs(family, timeout=20)

    def hold(self, step: str, point: str) -> None:
        """The next body of a step stops at a point of `inject.py`."""
        for name in ("hold", "held", "go"):
            (self.plan / name).mkdir(exist_ok=True)
            (self.plan / name / step).unlink(missing_ok=True)
        (self.plan / "hold" / step).write_text(point)

    def held(self, step: str) -> tuple[psutil.Process, psutil.Process]:
        """The process of the body that is held, and the worker that watches over it."""
        path = self.plan / "held" / step
        text = self.until(f"{step} is held", lambda: path.read_text() if path.exists() else "")
        body, parent = (psutil.Process(int(pid)) for pid in text.split())
        assert body.parent() == parent
        return body, parent

    def let_go(self, step: str) -> None:
        (self.plan / "go" / step).touch()

    def bodies(self, step: str) -> set[int]:
        """Processes in which a body of a step has returned."""
        folder = self.plan / "ended" / step
        return {int(path.name) for path in folder.iterdir()} if folder.exists() else set()

    def newest(self, dag_id: str, step: str) -> tuple[str, int]:
        """State and try of the newest instance of a step."""
        _, *task = step.split(".")
        index = int(task.pop()) if task[-1].isdecimal() else -1
        query = "select state, try_number from task_instance where dag_id = ? and task_id = ? and map_index = ?"
        [row, *_] = self.sql(
            self.layout.airflow_db, f"{query} order by queued_dttm desc", dag_id, ".".join(task), index
        )
        return row["state"], row["try_number"]

    def part(self, name: str) -> psutil.Process:
        """The process of a part, which the supervisor started."""
        children = psutil.Process(self.state()["pid"]).children()
        [found] = [p for p in children if name.replace("-", "_") in " ".join(p.cmdline()).replace("-", "_")]
        return found

    # --- reading back ------------------------------------------------------------------------------------------------

    def sql(self, database: Path, query: str, *values: Any) -> Rows:
        with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=20)) as connection:
            connection.row_factory = sqlite3.Row
            return [dict(row) for row in connection.execute(query, [str(value) for value in values])]

    def mart(self, query: str, *values: Any) -> Rows:
        return self.sql(self.layout.mart_db, query, *values)

    def metadata_location(self, table: str) -> str:
        query = "select metadata_location from iceberg_tables where table_namespace = ? and table_name = ?"
        [row] = self.sql(self.layout.catalog_db, query, *table.split("."))
        return str(row["metadata_location"])

    def tables(self) -> list[str]:
        query = "select table_namespace || '.' || table_name as name from iceberg_tables order by 1"
        return [row["name"] for row in self.sql(self.layout.catalog_db, query)]

    def delivered(self, table: str, day: dt.date) -> list[dict[str, str]]:
        text = gzip.decompress(self.get("landing", f"{SOURCE}/{table}/{day}.csv.gz")).decode()
        return list(csv.DictReader(io.StringIO(text)))

    def facts(self) -> dict[str, Counter[str]]:
        """Every row that a run may not lose or double, by where it is, without what no two runs share."""
        found: dict[str, Counter[str]] = {}
        for table in self.tables():
            empty = self.files(table).startswith("read_parquet([]")
            found[f"lake {table}"] = _rows([] if empty else self.lake(f"select * from {{{table}}}"))
        query = "select name from sqlite_master where type = 'table' and name not like 'sqlite%' order by 1"
        for name in (row["name"] for row in self.mart(query)):
            if name not in {"alembic_version", "alert_occurrences", "view_definitions"}:
                found[f"mart {name}"] = _rows(self.mart(f"select * from {name}"))
        query = (
            "select v.name, v.version, t.value as sha256, (select group_concat(alias) from (select alias from "
            "registered_model_aliases a where a.name = v.name and a.version = v.version order by alias)) as aliases "
            "from model_versions v join model_version_tags t on t.name = v.name and t.version = v.version "
            "where t.key = 'sha256'"
        )
        found["registry"] = _rows(self.sql(self.layout.registry_db, query))
        query = "select e.name, r.status from runs r join experiments e on e.experiment_id = r.experiment_id"
        found["registry runs"] = _rows(self.sql(self.layout.registry_db, query))
        found["landing"] = Counter(f"{key} {self.etag('landing', key)}" for key in self.keys("landing"))
        found["raw files"] = Counter(self.keys("lake", "raw/"))
        query = "select a.name, e.partition_key from asset_event e join asset a on a.id = e.asset_id"
        found["asset events"] = _rows(self.sql(self.layout.airflow_db, query))
        return found

    def etag(self, bucket: str, key: str) -> str:
        return str(self.s3.head_object(Bucket=bucket, Key=key)["ETag"])

    # --- doing -------------------------------------------------------------------------------------------------------

    def until(self, what: str, found: Callable[[], Any], timeout: float = 240) -> Any:
        """The first true answer of `found`."""
        deadline = time.monotonic() + timeout
        while not (answer := found()):
            assert time.monotonic() < deadline, f"expected within {timeout:.0f} s: {what}"
            time.sleep(0.1)
        return answer

    def succeeded(self, dag_id: str, run_id: str, timeout: float = 400) -> str:
        run = self.api().wait_run(dag_id, run_id, timeout)
        assert run["state"] == "success", f"{dag_id} {run_id}: {self.api().failed_tasks(dag_id, run_id)}"
        return run_id

    def run_of(self, dag_id: str, key: str) -> str:
        """The run of a partition, once it has ended well."""
        run = self.until(f"a run of {dag_id} {key}", lambda: self.api().partition_run(dag_id, key))
        return self.succeeded(dag_id, run["dag_run_id"])

    def trigger(self, dag_id: str, **kwargs: Any) -> str:
        self.api().unpause(dag_id)
        return self.api().trigger_run(dag_id, **kwargs)

    def clear(self, dag_id: str, run_id: str, only_failed: bool = True) -> None:
        """Start a run again, from what failed or from its beginning."""
        path = f"/dags/{dag_id}/dagRuns/{quote(run_id, safe='')}/clear"
        self.api().request("POST", path, {"dry_run": False, "only_failed": only_failed})

    def tasks_log(self) -> str:
        """What every task of the stack has logged."""
        return "\n".join(path.read_text(errors="replace") for path in (self.layout.logs / "airflow").rglob("*.log"))


CLOCK = re.compile(r"in [\d.]+ ms|at \d{4}-\d\d-\d\dT[\d:.+]+|(automatic|manual|asset_triggered)__[^\"]*")


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.9g}")
    return CLOCK.sub("", value) if isinstance(value, str) else value


def _rows(rows: Rows) -> Counter[str]:
    return Counter(
        json.dumps({k: _plain(v) for k, v in row.items() if k not in UNTOLD}, default=str, sort_keys=True)
        for row in rows
    )


def flat(facts: dict[str, Counter[str]]) -> list[str]:
    """Facts as one multiset of rows, as the tally compares them."""
    return [f"{where}: {row}" for where, rows in facts.items() for row in rows.elements()]


@contextmanager
def watched(stack: Embedded) -> Iterator[list[str]]:
    """What analysts saw while the block ran that they should not have: a part of a date, or two versions of one."""
    wrong: list[str] = []
    sizes: dict[str, int] = {}
    stop = threading.Event()
    query = (
        "select as_of, count(*) as n, count(distinct model_version) as versions, (select rows from scorings s where "
        "s.as_of = c.as_of and s.model = 'flight_delay' and s.is_current) as said from flight_delay_current c "
        "group by as_of"
    )
    polls = 0

    def look() -> None:
        nonlocal polls
        while not stop.is_set():
            try:
                rows = stack.mart(query)
            except sqlite3.OperationalError:  # the stack is being ended, or its disk is full: nothing is seen
                rows = []
            polls += bool(rows)
            for row in rows:
                known = sizes.setdefault(row["as_of"], row["n"])
                if row["n"] != known or row["versions"] != 1 or row["said"] != row["n"]:
                    wrong.append(str(row))
            stop.wait(0.1)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield wrong
    finally:
        stop.set()
        thread.join()
    assert polls, "nobody looked"
