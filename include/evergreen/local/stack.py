"""One supervisor of the embedded stack: object store, Airflow's parts, the log server.

Every process it starts carries the stack's id in its environment, so that none is lost: not a scheduler's worker, not a
fork server, not an orphan of a killed parent. A guard beside the supervisor ends them should the supervisor be killed.
"""

from __future__ import annotations

import datetime as dt
import fcntl
import json
import os
import secrets as random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import IO, Any

import httpx
import psutil

from include.evergreen.errors import EvergreenError, Unavailable
from include.evergreen.local import object_store, processes
from include.evergreen.local.guard import FAREWELL
from include.evergreen.local.layout import CLUSTER_PORTS, LOOPBACK, Layout, environment, full_disk, taken, write_private

AIRFLOW = (
    ("api-server", ("api-server",)),
    ("scheduler", ("scheduler", "--skip-serve-logs")),
    ("dag-processor", ("dag-processor",)),
    ("triggerer", ("triggerer", "--skip-serve-logs")),
)
OBJECT_STORE = "object-store"
LOG_SERVER = "log-server"
STOP_ORDER = (("scheduler", "triggerer", "dag-processor"), ("api-server", LOG_SERVER), (OBJECT_STORE,))
"""Who writes ends before what is written to; tasks need the api-server and the object store to end in order."""
READY_SECONDS = 300
"""A part that ends is named at once; one that lives imports for minutes on a busy machine."""
TAIL_LINES = 15


class PortTaken(EvergreenError):
    """A port of the stack is held by another process."""


class AlreadyRunning(EvergreenError):
    """Another supervisor works on the same `var`."""


class StackFell(EvergreenError):
    """A part ended by itself; names the part, its log, and a disk that is full."""

    def __init__(self, part: str, code: int | None, log: Path) -> None:
        self.part, self.code, self.log = part, code, log
        ended = "did not become ready" if code is None else f"ended with {_meaning(code)}"
        full = full_disk(log.parent)
        super().__init__(f"{part} {ended}. {f'{full}. ' if full else ''}Its log: {log}\n{tail(log)}")


def _meaning(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def tail(log: Path, lines: int = TAIL_LINES) -> str:
    """The last lines of a log, indented."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 16_384))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return "  (no log)"
    return "\n".join(f"  | {line}" for line in text.splitlines()[-lines:]) or "  (empty log)"


@dataclass
class Part:
    """One child: a process that must live as long as the stack."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    stop: signal.Signals = signal.SIGTERM


class Stack:
    """The embedded stack on one machine.

        with Stack() as stack:
            stack.start()
            stack.wait_ready()
            stack.serve()

    Inside `with`, SIGTERM and SIGHUP end the block as Ctrl-C does, and the death of a part raises StackFell at once.
    """

    stop_order: tuple[tuple[str, ...], ...] = STOP_ORDER

    def __init__(self, layout: Layout | None = None) -> None:
        self.layout = layout or Layout.from_env()
        self.environment = environment(self.layout)
        self.parts: dict[str, Part] = {}
        self._steps: dict[str, Part] = {}
        self._down: set[str] = set()
        self._id = ""
        self._guard: subprocess.Popen[bytes] | None = None
        self._lock: IO[str] | None = None
        self._handlers: dict[int, Any] = {}
        self._started_at = dt.datetime.now(dt.UTC)
        self._stopping = False
        self._leaving = False

    # --- start -------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start every part; returns before they are ready.

        Raises:
            AlreadyRunning: another supervisor has this `var`.
            PortTaken: names the port, its holder and the variable that changes it.
            StackFell: a database could not be prepared.
        """
        if self.parts:
            return
        try:
            self._start()
        except BaseException:
            self.stop()
            raise

    def _start(self) -> None:
        self._claim()
        self._start_object_store()
        self._prepare()
        for name, arguments in AIRFLOW:
            self._spawn(name, [sys.executable, "-m", "airflow", *arguments])
        self._start_log_server()

    def _claim(self) -> None:
        """Take `var` and the ports, and start the guard."""
        self.layout.make_folders()
        self._take_lock()
        end_leftovers(self.layout)
        for name, port in self.layout.ports.items():
            if taken(port):
                by = processes.holder(port)
                raise PortTaken(
                    f"port {port} ({name}) is taken{' by ' + by if by else ''}: "
                    f"free it, or choose another one with {CLUSTER_PORTS[name][0]}=<port>"
                )
        write_private(self.layout.passwords_file, json.dumps(self.layout.secrets.passwords))
        self._id = random.token_hex(8)
        self._started_at = dt.datetime.now(dt.UTC)
        self._write_state(ready=False)
        self._start_guard()

    def _start_object_store(self) -> None:
        store = self.layout.secrets
        argv, extra = object_store.command(
            self.layout.objects, self.layout.ports["s3"], store.s3_access_key, store.s3_secret_key
        )
        self._spawn(OBJECT_STORE, argv, extra)

    def _start_log_server(self) -> None:
        server = "airflow.utils.serve_logs.log_server:get_app"
        at = ["--host", LOOPBACK, "--port", str(self.layout.ports["logs"])]
        self._spawn(LOG_SERVER, [sys.executable, "-m", "uvicorn", server, "--factory", "--no-access-log", *at])

    def _take_lock(self) -> None:
        self._lock = (self.layout.var / "stack.lock").open("a+")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            self._lock = None
            raise AlreadyRunning(f"a stack already runs on {self.layout.var}: `make down` ends it") from error

    def _env(self, extra: dict[str, str] | None = None) -> dict[str, str]:
        return {**self._inherited(), **self.environment, **(extra or {}), **self.mark}

    @staticmethod
    def _inherited() -> dict[str, str]:
        return {k: v for k, v in os.environ.items() if not k.startswith(("AIRFLOW__", "EVERGREEN_"))}

    @property
    def mark(self) -> dict[str, str]:
        """By which the processes of this stack are known."""
        return {processes.MARK: self._id}

    def _start_guard(self) -> None:
        self._guard = subprocess.Popen(
            [sys.executable, "-m", "include.evergreen.local.guard", self._id],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=self.layout.project,
            start_new_session=True,
        )

    def _run(self, name: str, argv: list[str], extra: dict[str, str] | None = None, **popen: Any) -> Part:
        log = self.layout.logs / f"{name}.log"
        if log.exists():
            log.replace(log.with_suffix(".log.1"))
        with log.open("wb") as file:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                **{"cwd": self.layout.project, "env": self._env(extra), **popen},
            )
        return Part(name, process, log)

    def _spawn(self, name: str, argv: list[str], extra: dict[str, str] | None = None, **popen: Any) -> None:
        self.parts[name] = self._run(name, argv, extra, **popen)

    def _prepare(self) -> None:
        """Bring the databases up to date. Airflow's is awaited; the others are, in `wait_ready`."""
        python = [sys.executable, "-m"]
        self._steps = {"prepare-mart": self._run("prepare-mart", [*python, "include.evergreen.local.prepare", "mart"])}
        if not _migrated(self.layout.registry_db, _registry_mark(self.layout)):
            self._steps["prepare-mlflow"] = self._run(
                "prepare-mlflow", [*python, "include.evergreen.local.prepare", "mlflow"]
            )
        if not _migrated(self.layout.airflow_db, _airflow_mark(self.layout)):
            self._finish(self._run("prepare-airflow", [*python, "airflow", "db", "migrate"]))
            _record(self.layout.airflow_db, _airflow_mark(self.layout))

    def _finish(self, step: Part, timeout: float = 180) -> None:
        try:
            code = step.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise StackFell(step.name, None, step.log) from None
        if code:
            raise StackFell(step.name, code, step.log)

    # --- readiness ---------------------------------------------------------------------------------------------------

    def wait_ready(self, timeout: float = READY_SECONDS) -> None:
        """Return once every part answers and the settings file is loaded.

        Raises:
            StackFell: a part ended, or was not ready in time.
        """
        deadline = time.monotonic() + timeout
        for step in self._steps.values():
            self._finish(step, max(1.0, deadline - time.monotonic()))
        if "prepare-mlflow" in self._steps:
            _record(self.layout.registry_db, _registry_mark(self.layout))
        loaded = False
        while late := self._late():
            self.check()
            if time.monotonic() > deadline:
                raise StackFell(late, None, self.layout.logs / f"{late}.log")
            if not loaded and late != "api-server" and late != OBJECT_STORE:
                self._load_settings()
                loaded = True
            time.sleep(0.1)
        self.check()
        if not loaded:
            self._load_settings()
        # The first call to the task API builds its routes, which takes seconds: no task shall wait for that.
        httpx.get(f"{self.layout.ui_url}/execution/health", timeout=60, trust_env=False)
        self._write_state(ready=True)

    def _load_settings(self) -> None:
        from include.evergreen.local.api import Api
        from include.evergreen.orchestration import settings_file

        with Api.login(self.layout) as api:
            settings_file.load(api, settings_file.read(environment=self.environment))

    def _late(self) -> str | None:
        """The first part that does not answer yet. Heartbeats of a former stack do not count."""
        try:
            object_store.wait_ready(self.layout.ports["s3"], 0)
        except Unavailable:
            return OBJECT_STORE
        try:
            found = httpx.get(f"{self.layout.ui_url}/api/v2/monitor/health", timeout=5, trust_env=False).json()
        except (httpx.HTTPError, ValueError):
            return "api-server"
        for key, name in (("scheduler", "scheduler"), ("dag_processor", "dag-processor"), ("triggerer", "triggerer")):
            part = found.get(key) or {}
            beat = part.get(f"latest_{key}_heartbeat")
            if part.get("status") != "healthy" or not beat or dt.datetime.fromisoformat(beat) < self._started_at:
                return name
        if not listens(self.layout.ports["health"]):
            return "scheduler"
        return None if listens(self.layout.ports["logs"]) else LOG_SERVER

    def check(self) -> None:
        """Raises StackFell when a part has ended that was not meant to."""
        if self._stopping:
            return
        for part in list(self.parts.values()):
            if part.name not in self._down and (code := part.process.poll()) is not None:
                raise StackFell(part.name, code, part.log)

    def serve(self) -> None:
        """Hold until interrupted; say so when the disk runs full. Raises StackFell when a part ends."""
        said = ""
        while True:
            self.check()
            full = full_disk(self.layout.var)
            if full and not said:
                with suppress(OSError):  # standard output may be a file on that disk
                    print(full, file=sys.stderr, flush=True)
            said = full
            time.sleep(0.5)

    # --- stop --------------------------------------------------------------------------------------------------------

    def stop(self, grace: float = 8.0) -> None:
        """End every process of the stack and wait until none is left. Idempotent; not to be interrupted."""
        with _signals_ignored():
            self._stopping = True
            if self._id:
                for names in self.stop_order:
                    self._end([self.parts[name] for name in names if name in self.parts], grace)
                processes.end(self._id, grace=2.0)
                for part in [*self.parts.values(), *self._steps.values()]:
                    part.process.wait()
                self.layout.state_file.unlink(missing_ok=True)
            self._release()
            self._stopping = False

    def _release(self) -> None:
        """Let go of `var` and of the guard; no process is left."""
        if self._guard and self._guard.stdin:
            try:
                self._guard.stdin.write(FAREWELL)
                self._guard.stdin.close()
            except BrokenPipeError:
                pass
            self._guard.wait(20)
        if self._lock:
            self._lock.close()
        self.parts, self._steps, self._down, self._id, self._guard, self._lock = {}, {}, set(), "", None, None

    def _end(self, parts: list[Part], grace: float) -> None:
        """SIGTERM to each part, then to what is left of its session, which SIGKILL ends."""
        for part in parts:
            if part.process.poll() is None:
                part.process.send_signal(part.stop)
        deadline = time.monotonic() + grace
        for part in parts:
            try:
                part.process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                continue
        sessions = {part.process.pid for part in parts}
        if left := [p for p in processes.of_stack(self._id) if processes.session(p) in sessions]:
            processes.send(left, signal.SIGTERM)
            _, alive = psutil.wait_procs(left, timeout=2)
            processes.send(alive, signal.SIGKILL)

    # --- state and signals -------------------------------------------------------------------------------------------

    def _write_state(self, ready: bool) -> None:
        state = {
            "pid": os.getpid(),
            "created": psutil.Process().create_time(),
            "id": self._id,
            "ready": ready,
            "started_at": self._started_at.isoformat(),
            "ui": self.layout.ui_url,
            "ports": self.layout.ports,
        }
        write_private(self.layout.state_file, json.dumps(state))

    def __enter__(self) -> Stack:
        if threading.current_thread() is threading.main_thread():
            for number, handler in (
                (signal.SIGTERM, self._interrupted),
                (signal.SIGHUP, self._interrupted),
                (signal.SIGCHLD, self._child_ended),
            ):
                self._handlers[number] = signal.signal(number, handler)
        return self

    def __exit__(self, *_: object) -> None:
        self._leaving = True
        try:
            self.stop()
        finally:
            for number, handler in self._handlers.items():
                signal.signal(number, handler)
            self._handlers, self._leaving = {}, False

    def _interrupted(self, number: int, frame: FrameType | None) -> None:
        if not self._leaving:
            self._leaving = True
            raise SystemExit(128 + number)

    def _child_ended(self, number: int, frame: FrameType | None) -> None:
        if not self._leaving:
            try:
                self.check()
            except StackFell:
                self._leaving = True
                raise


def listens(port: int) -> bool:
    """Whether something takes connections on a loopback port."""
    import socket

    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((LOOPBACK, port)) == 0


@contextmanager
def _signals_ignored() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# --- migrations: done once per version of the library -----------------------------------------------------------------


def _airflow_mark(layout: Layout) -> Path:
    return layout.var / f".airflow-{version('apache-airflow-core')}"


def _registry_mark(layout: Layout) -> Path:
    return layout.var / f".mlflow-{version('mlflow')}"


def _revision(db: Path) -> str:
    """The Alembic revision of a SQLite database; empty when there is none."""
    if not db.is_file():
        return ""
    try:
        with closing(sqlite3.connect(f"file:{db}?mode=ro", uri=True)) as connection:
            return str(connection.execute("select version_num from alembic_version").fetchone()[0])
    except (sqlite3.Error, TypeError):
        return ""


def _migrated(db: Path, mark: Path) -> bool:
    """True when this version of the library has migrated the database, and it still has the revision it got then."""
    return mark.is_file() and bool(revision := _revision(db)) and mark.read_text(encoding="utf-8") == revision


def _record(db: Path, mark: Path) -> None:
    mark.write_text(_revision(db), encoding="utf-8")


# --- the background supervisor ----------------------------------------------------------------------------------------


def running(layout: Layout) -> dict[str, Any] | None:
    """State of the living supervisor of this `var`: pid, id, ready, ui, ports; None when there is none."""
    try:
        state: dict[str, Any] = json.loads(layout.state_file.read_text(encoding="utf-8"))
        alive = abs(psutil.Process(state["pid"]).create_time() - state["created"]) < 1
    except (OSError, ValueError, KeyError, psutil.NoSuchProcess):
        return None
    return state if alive else None


def end_leftovers(layout: Layout) -> int:
    """End what a killed supervisor left behind. Returns how many processes were found."""
    if running(layout) is not None:
        return 0
    try:
        stack_id = str(json.loads(layout.state_file.read_text(encoding="utf-8"))["id"])
    except (OSError, ValueError, KeyError):
        return 0
    found = processes.end(stack_id) if stack_id else 0
    layout.state_file.unlink(missing_ok=True)
    return found


def up(layout: Layout, foreground: bool = False) -> int:
    """Start the stack: in the background, returning when it is ready, or in the foreground until it is interrupted."""
    if foreground:
        with Stack(layout) as stack:
            stack.start()
            stack.wait_ready()
            print(f"ready: {layout.ui_url}", flush=True)
            stack.serve()
    state = running(layout)
    if state is None:
        layout.make_folders()
        log = layout.logs / "supervisor.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "include.evergreen.local", "up", "--foreground"],
                cwd=layout.project,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        while not ((state := running(layout)) and state["ready"]):
            if process.poll() is not None:
                print(log.read_text(encoding="utf-8", errors="replace").strip(), file=sys.stderr)
                return 1
            time.sleep(0.1)
    print(f"Airflow is up: {layout.ui_url}  login admin / {layout.secrets.admin_password}")
    print(f"Logs: {layout.logs}. `make down` ends it.")
    return 0


def down(layout: Layout, timeout: float = 60) -> int:
    """End the background stack and wait until no process is left."""
    state = running(layout)
    if state is None:
        found = end_leftovers(layout)
        print(
            f"The stack is down; ended {found} processes a killed supervisor had left."
            if found
            else "The stack is down."
        )
        return 0
    supervisor = psutil.Process(state["pid"])
    supervisor.terminate()
    try:
        supervisor.wait(timeout)
    except psutil.TimeoutExpired:
        supervisor.kill()
        processes.end(state["id"])
    left = processes.of_stack(state["id"])
    print(f"Processes left behind: {[p.pid for p in left]}" if left else "The stack is down.")
    return 1 if left else 0


def clean(layout: Layout) -> int:
    """End the stack and delete everything it wrote."""
    code = down(layout)
    if code == 0 and layout.var.exists():
        shutil.rmtree(layout.var)
        print(f"Removed {layout.var}.")
    return code
