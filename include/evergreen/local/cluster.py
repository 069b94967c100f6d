"""The services of `docker-compose.yaml` as processes of one machine, on loopback, without a container engine.

Commands and variables are read from that file. What differs stands in `Cluster`: hosts, ports, folders, one log server,
rclone instead of SeaweedFS.
"""

from __future__ import annotations

import datetime as dt
import json
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx
import yaml

from include.evergreen.errors import SettingsError
from include.evergreen.local import dotenv, postgres, processes
from include.evergreen.local.layout import CLUSTER_PORTS, LOOPBACK, PROJECT, Layout, environment, write_private
from include.evergreen.local.stack import LOG_SERVER, OBJECT_STORE, Stack, StackFell, listens

COMPOSE = PROJECT / "docker-compose.yaml"
WITHIN = {"postgres:5432": "postgres", "redis:6379": "redis", "object-store:8333": "s3", "mlflow:5000": "mlflow"}
"""Where the parts find each other in compose -> the port here."""
WORKERS = ("worker", "worker-training")
AIRFLOW = ("api-server", "scheduler", "dag-processor", "triggerer", *WORKERS)
LOCAL_EXECUTOR = (
    "AIRFLOW__CORE__PARALLELISM",
    "AIRFLOW__SCHEDULER__MP_START_METHOD",
    "AIRFLOW__SCHEDULER__MP_FORKSERVER_PRELOAD",
)
"""What the embedded stack sets for its executor."""
FIRST_DELAY, LONGEST_DELAY, SETTLED = 0.1, 60.0, 10.0
"""Seconds before a part is started again, at first and at most; seconds after which it has settled. Docker's."""
PASSWORDS = "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE"
VARIABLE = re.compile(r"\$\$|\$\{([A-Za-z0-9_]+)(?::([-?])([^}]*))?\}")


def interpolate(value: Any, variables: Mapping[str, str]) -> Any:
    """A value of a compose file with `${NAME}`, `${NAME:-default}`, `${NAME:?message}` and `$$` resolved.

    Raises:
        SettingsError: a variable that must have a value has none.
    """
    if isinstance(value, dict):
        return {key: interpolate(item, variables) for key, item in value.items()}
    if isinstance(value, list):
        return [interpolate(item, variables) for item in value]
    if not isinstance(value, str):
        return value

    def found(match: re.Match[str]) -> str:
        name, kind, word = match.groups()
        if name is None:
            return "$"
        text = variables.get(name, "")
        if not text and kind == "?":
            raise SettingsError(f"{name}: expected a value, found none: {word}")
        return text or (word if kind == "-" else "")

    return VARIABLE.sub(found, value)


@dataclass(frozen=True)
class Restart:
    """A part that ended by itself and was started again. `after`: seconds between the two."""

    part: str
    code: int
    after: float


class Cluster(Stack):
    """PostgreSQL, Redis, object store, MLflow server, Airflow's parts, two Celery workers, the log server.

        with Cluster(Cluster.layout_of(env)) as cluster:
            cluster.start()
            cluster.wait_ready()

    With `restarting`, a part that ends by itself is started again as compose's `restart: unless-stopped` does;
    otherwise its end is the end of the cluster.
    """

    stop_order = (
        ("scheduler", "triggerer", "dag-processor"),
        WORKERS,
        ("api-server", LOG_SERVER, "mlflow"),
        (OBJECT_STORE, "redis"),
        ("postgres",),
    )

    def __init__(self, layout: Layout, restarting: bool = False) -> None:
        layout.make_folders()
        super().__init__(self._with_secrets(layout))
        self.environment = self._environment_of("scheduler")
        self.restarting = restarting
        self.restarts: list[Restart] = []
        self._spared: set[int] = set()
        self._hand = threading.RLock()  # who starts and ends single parts
        self._over = threading.Event()
        self._keeper: threading.Thread | None = None

    @staticmethod
    def layout_of(env: Mapping[str, str]) -> Layout:
        """From `EVERGREEN_VAR`, `EVERGREEN_DAGS` and `EVERGREEN_PORT_*`. Raises SettingsError."""
        return Layout.from_env(env, CLUSTER_PORTS)

    @staticmethod
    def _with_secrets(layout: Layout) -> Layout:
        """Make the layout's `.env` unless it is there; its secrets are the layout's."""
        path = layout.var / ".env"
        if not path.exists():
            dotenv.create(path)
        given = dotenv.read(path)
        kept = {
            "s3_access_key": given["EVERGREEN_S3_ACCESS_KEY"],
            "s3_secret_key": given["EVERGREEN_S3_SECRET_KEY"],
            "jwt_secret": given["AIRFLOW_JWT_SECRET"],
            "api_secret_key": given["AIRFLOW_API_SECRET_KEY"],
            "fernet_key": given["AIRFLOW_FERNET_KEY"],
            "passwords": {user: given[f"EVERGREEN_{user.upper()}_PASSWORD"] for user in ("admin", "oncall", "analyst")},
        }
        write_private(layout.var / "secrets.json", json.dumps(kept))
        return layout

    @property
    def variables(self) -> dict[str, str]:
        """What `.env` gives compose, with this machine's port."""
        return {**dotenv.read(self.layout.var / ".env"), "EVERGREEN_UI_URL": self.layout.ui_url}

    @cached_property
    def services(self) -> dict[str, Any]:
        """The services of the compose file, with this machine's addresses."""
        text = COMPOSE.read_text(encoding="utf-8")
        for address, port in WITHIN.items():
            text = text.replace(address, f"{LOOPBACK}:{self.layout.ports[port]}")
        text = text.replace("http://api-server:8080", self.layout.ui_url)
        services: dict[str, Any] = interpolate(yaml.safe_load(text)["services"], self.variables)
        return services

    def _environment_of(self, service: str) -> dict[str, str]:
        """A service's variables: the embedded stack's, then those of the compose file, then this machine's."""
        embedded = environment(self.layout)
        composed = {name: str(value) for name, value in self.services[service]["environment"].items()}
        if service == "mlflow":
            ours = ("AIRFLOW", "EVERGREEN_", "MLFLOW_")
            return {**{name: value for name, value in embedded.items() if not name.startswith(ours)}, **composed}
        changed = {
            **{name: embedded[name] for name in ("AIRFLOW__API__HOST", "AIRFLOW__API__PORT", PASSWORDS)},
            "MLFLOW_TRACKING_URI": composed["EVERGREEN_REGISTRY_URI"],
        }
        kept = {name: value for name, value in embedded.items() if name not in LOCAL_EXECUTOR}
        return {**kept, **composed, **changed}

    def command_of(self, service: str) -> list[str]:
        """A service's argv on this machine."""
        argv = [str(part) for part in self.services[service]["command"]]
        if service == "mlflow":
            changed = {"--host=0.0.0.0": f"--host={LOOPBACK}", "--port=5000": f"--port={self.layout.ports['mlflow']}"}
            return [changed.get(part, part) for part in argv]
        if service in WORKERS:  # Two on one host need names; one log server serves both.
            argv += ["--skip-serve-logs", "--celery-hostname", self.node(service)]
            argv += ["--pid", str(self.layout.airflow_home / f"{service}.pid")]
        elif service in {"scheduler", "triggerer"}:
            argv.append("--skip-serve-logs")
        return argv

    @staticmethod
    def node(worker: str) -> str:
        """The name of a worker among Celery's."""
        return f"{worker}@{LOOPBACK}"

    @property
    def postgres_home(self) -> Path:
        return postgres.home(self.layout.var)

    def postgres_uri(self, role: str, database: str | None = None, password: str | None = None) -> str:
        """URL of a database for a role of `.env`, or for one with a password of its own."""
        name = "POSTGRES_PASSWORD" if role == postgres.ADMIN else f"{role.upper()}_DB_PASSWORD"
        secret = self.variables[name] if password is None else password
        return f"postgresql://{role}:{secret}@{LOOPBACK}:{self.layout.ports['postgres']}/{database or role}"

    # --- start -------------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        self._claim()
        for name in (OBJECT_STORE, "postgres", "redis"):
            self.launch(name)
        self._prepare()
        for name in ("mlflow", *AIRFLOW, LOG_SERVER):
            self.launch(name)
        self._watch()

    def launch(self, name: str) -> None:
        """Start one part, or start it again."""
        special: dict[str, Callable[[], None]] = {
            OBJECT_STORE: self._start_object_store,
            LOG_SERVER: self._start_log_server,
            "postgres": self._start_postgres,
            "redis": self._start_redis,
        }
        with self._hand:
            if name in {"scheduler", "dag-processor", "triggerer"}:
                self._started_at = dt.datetime.now(dt.UTC)
            if name in special:
                special[name]()
            else:
                self._spawn(name, self.command_of(name), env=self._env_of(name))
            self._down.discard(name)

    def _env_of(self, service: str) -> dict[str, str]:
        return {**self._inherited(), **self._environment_of(service), **self.mark}

    def _start_postgres(self) -> None:
        postgres.make(self.postgres_home, self.variables["POSTGRES_PASSWORD"])
        argv = postgres.command(self.postgres_home, self.layout.ports["postgres"])
        how = postgres.as_owner()
        how["env"] |= self.mark
        self._spawn("postgres", argv, cwd=self.postgres_home, **how)
        self.parts["postgres"].stop = signal.SIGINT  # SIGTERM waits for every client

    def _start_redis(self) -> None:
        """The password is in a file: `ps` shows arguments."""
        program = shutil.which("redis-server")
        if program is None:
            raise SettingsError("expected redis-server on the path, found none: `make cluster-tools` installs it")
        folder = self.layout.var / "redis"
        folder.mkdir(exist_ok=True)
        settings = {
            "bind": LOOPBACK,
            "port": self.layout.ports["redis"],
            "requirepass": self.variables["REDIS_PASSWORD"],
            "appendonly": "yes",
            "dir": folder,
            "set-proc-title": "no",  # it would overwrite the environment by which the supervisor knows its own
        }
        file = self.layout.var / "redis.conf"
        write_private(file, "".join(f"{name} {value}\n" for name, value in settings.items()))
        self._spawn("redis", [program, str(file)])

    def _prepare(self, timeout: float = 60) -> None:
        """The job `init`."""
        deadline = time.monotonic() + timeout
        while not (postgres.ready(self.layout.ports["postgres"]) and listens(self.layout.ports["s3"])):
            self.check()
            if time.monotonic() > deadline:
                raise StackFell("postgres", None, self.parts["postgres"].log)
            time.sleep(0.1)
        argv = [sys.executable, *self.services["init"]["command"][1:]]
        self._finish(self._run("init", argv, env=self._env_of("init")), timeout=300)

    def _load_settings(self) -> None:
        """The job `init` did."""

    def _late(self) -> str | None:
        if not listens(self.layout.ports["redis"]):
            return "redis"
        try:
            answer = httpx.get(f"{self.environment['EVERGREEN_REGISTRY_URI']}/health", timeout=5, trust_env=False)
            answer.raise_for_status()
        except httpx.HTTPError:
            return "mlflow"
        for name in WORKERS:
            if f"{self.node(name)} ready" not in self.parts[name].log.read_text(encoding="utf-8", errors="replace"):
                return name
        return super()._late()

    # --- faults ------------------------------------------------------------------------------------------------------

    def kill(self, *names: str, sparing: Collection[int] = ()) -> None:
        """SIGKILL to parts and to every process under them, as containers end. With `restarting` they come back.

        Processes of `sparing` live on without their parents, as where nothing ends them: on a host that is cut off.
        """
        with self._hand:
            self._spared.update(sparing)
        processes.kill([self.parts[name].process.pid for name in names], self._spared)

    def halt(self, *names: str, grace: float = 30) -> None:
        """End parts in order, SIGKILL after `grace` seconds; they stay down until `launch`."""
        with self._hand:
            self._down.update(names)
        self._end([self.parts[name] for name in names], grace)

    def power_cut(self) -> None:
        """SIGKILL to every process at once. Then `start`, on the same `var`, as after the power came back.

        Proves that what was answered was written, and that each part starts from files nobody closed: write-ahead log,
        append-only file, stale pid files. Does not prove that it was synced: the kernel lives on with its page cache,
        so that a missing fsync, a torn page or a rename that never reached the disk is not seen.
        """
        self._stopping = True
        self._rest()
        processes.kill([part.process.pid for part in self.parts.values()])
        while left := processes.of_stack(self._id):
            processes.send(left, signal.SIGKILL)
            time.sleep(0.02)
        for part in self.parts.values():
            part.process.wait()
        self._release()
        self._stopping = False

    def stop(self, grace: float = 8.0) -> None:
        self._rest()
        super().stop(grace)

    def check(self) -> None:
        if self._keeper is None:
            super().check()

    def _watch(self) -> None:
        """From here on parts are started again, when they are to be."""
        if self.restarting:
            self._over.clear()
            self._keeper = threading.Thread(target=self._keep, name="restarts", daemon=True)
            self._keeper.start()

    def _rest(self) -> None:
        """No part is started again from here on."""
        self._over.set()
        if self._keeper:
            self._keeper.join()
        self._keeper = None

    def _keep(self) -> None:
        """What an engine of containers does: 0.1 s after its end a part starts again, later after each quick end."""
        delays: dict[str, float] = {}
        ended: dict[str, float] = {}
        began: dict[str, float] = {}
        while not self._over.wait(0.05):
            with self._hand:
                for name, part in list(self.parts.items()):
                    code, now = part.process.poll(), time.monotonic()
                    if name in self._down or code is None:
                        continue
                    if name not in ended:
                        ended[name] = now
                        quick = now - began.get(name, -SETTLED) < SETTLED
                        delays[name] = min(2 * delays[name], LONGEST_DELAY) if quick else FIRST_DELAY
                    if (after := now - ended[name]) >= delays[name]:
                        processes.kill([part.process.pid], self._spared)
                        self.launch(name)
                        del ended[name]
                        began[name] = now
                        self.restarts.append(Restart(name, code, after))

    def remove(self) -> None:
        """Delete the server's files, which may lie outside `var`. The cluster is down."""
        shutil.rmtree(self.postgres_home, ignore_errors=True)
