"""Where the embedded stack keeps its files, which ports it opens, its secrets and its environment.

Standard library only: `status` reads it before `.venv` exists, and Airflow imports `hostname` from it.
"""

from __future__ import annotations

import base64
import json
import os
import secrets as random
import shutil
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from include.evergreen.errors import SettingsError

PROJECT = Path(__file__).resolve().parents[3]
LOOPBACK = "127.0.0.1"
ROLES = {"admin": "admin", "oncall": "user", "analyst": "viewer"}
LANDING_BUCKET = "landing"
LAKE_BUCKET = "lake"
PORTS = {
    "ui": ("EVERGREEN_PORT_UI", 8080),
    "s3": ("EVERGREEN_PORT_S3", 9000),
    "logs": ("EVERGREEN_PORT_LOG", 8793),
    "health": ("EVERGREEN_PORT_HEALTH", 8974),
}
"""name -> (variable that changes it, default). `logs` serves the logs of running tasks and triggers, `health` the
scheduler's own check."""
CLUSTER_PORTS = {
    **PORTS,
    "postgres": ("EVERGREEN_PORT_POSTGRES", 15432),
    "redis": ("EVERGREEN_PORT_REDIS", 16379),
    "mlflow": ("EVERGREEN_PORT_MLFLOW", 15000),
}
"""The same for the services of `docker-compose.yaml` as processes; no service's usual port."""


LOW_DISK = 64 * 2**20
"""Bytes below which a disk is said to be full: databases and files of one day need about as much."""


def hostname() -> str:
    """The name under which tasks say where they run: every part is on this machine."""
    return LOOPBACK


@dataclass(frozen=True)
class Secrets:
    """Random secrets of one installation; never printed."""

    s3_access_key: str = field(repr=False)
    s3_secret_key: str = field(repr=False)
    jwt_secret: str = field(repr=False)
    api_secret_key: str = field(repr=False)
    fernet_key: str = field(repr=False)
    passwords: dict[str, str] = field(repr=False)

    @property
    def admin_password(self) -> str:
        return self.passwords["admin"]

    @classmethod
    def generate(cls) -> Secrets:
        return cls(
            s3_access_key=random.token_hex(10),
            s3_secret_key=random.token_hex(20),
            jwt_secret=random.token_hex(64),
            api_secret_key=random.token_hex(32),
            fernet_key=base64.urlsafe_b64encode(os.urandom(32)).decode(),
            passwords={user: random.token_urlsafe(12) for user in ROLES},
        )


@dataclass(frozen=True)
class Layout:
    """Paths and ports of one stack.

    Attributes:
        var: everything the stack writes.
        ports: by the names of `PORTS`.
        dags: the folder of DAG files.
    """

    var: Path
    ports: dict[str, int]
    dags: Path = PROJECT / "dags"
    project: Path = PROJECT

    @classmethod
    def from_env(
        cls, env: Mapping[str, str] | None = None, known: Mapping[str, tuple[str, int]] | None = None
    ) -> Layout:
        """Read `EVERGREEN_VAR`, `EVERGREEN_DAGS` and `EVERGREEN_PORT_*`: the ports of `known`, by default `PORTS`.

        Raises:
            SettingsError: a port is no number from 1 to 65535, or two parts share one.
        """
        env = os.environ if env is None else env
        known = PORTS if known is None else known
        ports: dict[str, int] = {}
        for name, (variable, default) in known.items():
            found = env.get(variable) or str(default)
            if not found.isdigit() or not 0 < int(found) < 65536:
                raise SettingsError(f"{variable}: expected a port from 1 to 65535, found {found!r}")
            taken = next((other for other, port in ports.items() if port == int(found)), None)
            if taken:
                raise SettingsError(
                    f"{variable}: expected a port of its own, found {found}, which is {known[taken][0]}"
                )
            ports[name] = int(found)
        return cls(
            var=Path(env.get("EVERGREEN_VAR") or PROJECT / "var").resolve(),
            ports=ports,
            dags=Path(env.get("EVERGREEN_DAGS") or PROJECT / "dags").resolve(),
        )

    @property
    def logs(self) -> Path:
        """One file per part."""
        return self.var / "logs"

    @property
    def objects(self) -> Path:
        """Root of the object store; its folders are the buckets."""
        return self.var / "s3"

    @property
    def airflow_home(self) -> Path:
        return self.var / "airflow"

    @property
    def airflow_db(self) -> Path:
        return self.var / "airflow.db"

    @property
    def mart_db(self) -> Path:
        return self.var / "mart.db"

    @property
    def registry_db(self) -> Path:
        return self.var / "mlflow.db"

    @property
    def catalog_db(self) -> Path:
        return self.var / "catalog.db"

    @property
    def passwords_file(self) -> Path:
        return self.airflow_home / "passwords.json"

    @property
    def state_file(self) -> Path:
        """Pid, start time, id and readiness of the running supervisor."""
        return self.var / "stack.pid"

    @property
    def ui_url(self) -> str:
        return f"http://{LOOPBACK}:{self.ports['ui']}"

    @property
    def s3_url(self) -> str:
        return f"http://{LOOPBACK}:{self.ports['s3']}"

    def make_folders(self) -> None:
        """Create every folder; `var` itself is readable by its owner only."""
        self.var.mkdir(parents=True, exist_ok=True)
        self.var.chmod(0o700)
        for path in (
            self.logs,
            self.logs / "airflow",
            self.airflow_home,
            self.objects / LANDING_BUCKET,
            self.objects / LAKE_BUCKET,
        ):
            path.mkdir(parents=True, exist_ok=True)

    @cached_property
    def secrets(self) -> Secrets:
        """The secrets of this `var`, generated on first use, in a file of mode 600.

        Raises:
            SettingsError: the file is damaged.
        """
        path = self.var / "secrets.json"
        if not path.exists():
            self.make_folders()
            write_private(path, json.dumps(Secrets.generate().__dict__, indent=1), keep=True)
        path.chmod(0o600)
        try:
            found = Secrets(**json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise SettingsError(
                f"{path}: expected the secrets of this stack, found {error}; `make clean` resets"
            ) from error
        if set(found.passwords) != set(ROLES):
            raise SettingsError(f"{path}: passwords: expected {sorted(ROLES)}, found {sorted(found.passwords)}")
        return found


def write_private(path: Path, text: str, keep: bool = False) -> None:
    """Write a file of mode 600, whole or not at all. `keep` leaves an existing one, whoever wrote it first."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
    try:
        if keep:
            os.link(part, path)
        else:
            os.replace(part, path)
    except FileExistsError:
        pass
    finally:
        part.unlink(missing_ok=True)


def parse_interval(project: Path) -> int:
    """Seconds between two looks at the specs: a minute, and a second more for every model above 60 (docs/adr/0022)."""
    return max(60, sum(1 for _ in project.glob("include/models/*/model.yaml")))


def _sqlite(path: Path) -> str:
    return f"sqlite:///{path}"


def environment(layout: Layout, base: Mapping[str, str] | None = None) -> dict[str, str]:
    """Every variable the parts need on top of `base` (default: this process): Airflow, Evergreen, libraries."""
    base = os.environ if base is None else base
    secrets = layout.secrets
    interval = parse_interval(layout.project)
    airflow = {
        "CORE__DAGS_FOLDER": layout.dags,
        "CORE__PLUGINS_FOLDER": layout.project / "plugins",
        "CORE__LOAD_EXAMPLES": False,
        "CORE__EXECUTOR": "LocalExecutor",
        "CORE__PARALLELISM": 4,
        "CORE__FERNET_KEY": secrets.fernet_key,
        "CORE__HOSTNAME_CALLABLE": f"{__name__}.hostname",
        "CORE__AUTH_MANAGER": "airflow.api_fastapi.auth.managers.simple.simple_auth_manager.SimpleAuthManager",
        "CORE__SIMPLE_AUTH_MANAGER_USERS": ",".join(f"{user}:{role}" for user, role in ROLES.items()),
        "CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": layout.passwords_file,
        "CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": False,
        "CORE__EXECUTION_API_SERVER_URL": f"{layout.ui_url}/execution/",
        "CORE__HIDE_SENSITIVE_VAR_CONN_FIELDS": True,
        "CORE__DEFAULT_TIMEZONE": "utc",
        "DATABASE__SQL_ALCHEMY_CONN": _sqlite(layout.airflow_db),
        "API__HOST": LOOPBACK,
        "API__PORT": layout.ports["ui"],
        "API__WORKERS": 1,
        "API__BASE_URL": layout.ui_url,
        "API__SECRET_KEY": secrets.api_secret_key,
        "API__EXPOSE_CONFIG": False,
        "API__INSTANCE_NAME": "Evergreen",
        "API_AUTH__JWT_SECRET": secrets.jwt_secret,
        "SCHEDULER__MP_START_METHOD": "forkserver",
        "SCHEDULER__MP_FORKSERVER_PRELOAD": "include.evergreen.local.preload",
        "SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": 0.1,
        # The check is the scheduler's first child: it starts the fork server, so that the first task finds it warm.
        "SCHEDULER__ENABLE_HEALTH_CHECK": True,
        "SCHEDULER__SCHEDULER_HEALTH_CHECK_SERVER_HOST": LOOPBACK,
        "SCHEDULER__SCHEDULER_HEALTH_CHECK_SERVER_PORT": layout.ports["health"],
        # After a crash, tasks that died with the stack are found within a minute and a half.
        "SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": 60,
        "SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": 30,
        # Also the longest time for which a worker does not notice that its task has ended.
        "WORKERS__MIN_HEARTBEAT_INTERVAL": 1,
        "DAG_PROCESSOR__REFRESH_INTERVAL": 5,
        "DAG_PROCESSOR__BUNDLE_REFRESH_CHECK_INTERVAL": 5,
        "DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": interval,
        "DAG_PROCESSOR__STALE_DAG_THRESHOLD": 2 * interval,
        # One file holds a DAG of every model; on a busy machine hundreds take longer than Airflow's 30 and 50 seconds.
        "CORE__DAGBAG_IMPORT_TIMEOUT": 120,
        "DAG_PROCESSOR__DAG_FILE_PROCESSOR_TIMEOUT": 180,
        "LOGGING__BASE_LOG_FOLDER": layout.logs / "airflow",
        "LOGGING__DAG_PROCESSOR_CHILD_PROCESS_LOG_DIRECTORY": layout.logs / "airflow" / "dag_processor",
        "LOGGING__COLORED_CONSOLE_LOG": False,
        "LOGGING__WORKER_LOG_SERVER_PORT": layout.ports["logs"],
        "LOGGING__TRIGGER_LOG_SERVER_PORT": layout.ports["logs"],
    }
    evergreen = {
        "VAR": layout.var,
        "DAGS": layout.dags,
        "S3_ENDPOINT": layout.s3_url,
        "S3_REGION": "us-east-1",
        "S3_ACCESS_KEY": secrets.s3_access_key,
        "S3_SECRET_KEY": secrets.s3_secret_key,
        "LANDING_BUCKET": LANDING_BUCKET,
        "LAKE_BUCKET": LAKE_BUCKET,
        "CATALOG_URI": _sqlite(layout.catalog_db),
        "MART_URI": _sqlite(layout.mart_db),
        "REGISTRY_URI": _sqlite(layout.registry_db),
        "UI_URL": layout.ui_url,
        **{variable.removeprefix("EVERGREEN_"): layout.ports[name] for name, (variable, _) in PORTS.items()},
    }
    quiet = {
        "DO_NOT_TRACK": "true",
        "GX_ANALYTICS_ENABLED": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "SCARF_ANALYTICS": "false",
    }
    libraries = {
        "AIRFLOW_HOME": layout.airflow_home,
        "PYTHONPATH": layout.project,
        "PYTHONUNBUFFERED": "1",
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), base.get("PATH", os.defpath)]),
        "NO_COLOR": "1",
        "NO_PROXY": ",".join(filter(None, [base.get("NO_PROXY"), "localhost", LOOPBACK])),
        "no_proxy": ",".join(filter(None, [base.get("no_proxy"), "localhost", LOOPBACK])),
        "OMP_WAIT_POLICY": "PASSIVE",
        "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
        "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
        "AWS_EC2_METADATA_DISABLED": "true",
        "MLFLOW_TRACKING_URI": _sqlite(layout.registry_db),
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        # setproctitle would overwrite the environment by which the supervisor knows its descendants.
        "SPT_NOENV": "1",
    }
    values: dict[str, object] = {
        **{f"AIRFLOW__{name}": value for name, value in airflow.items()},
        **{f"EVERGREEN_{name}": value for name, value in evergreen.items()},
        **quiet,
        **libraries,
    }
    return {name: str(value) for name, value in values.items()}


def full_disk(var: Path) -> str:
    """One sentence that names the disk of `var` when nearly nothing is left of it, else an empty string."""
    try:
        free = shutil.disk_usage(var).free
    except OSError:
        return ""
    if free >= LOW_DISK:
        return ""
    expected = f"expected at least {LOW_DISK / 2**20:.0f} MB free on the disk of {var}"
    return f"the disk is full: {expected}, found {free / 2**20:.1f} MB. Free some: what was cut off is run again"


def taken(port: int) -> bool:
    """True when something listens on the port, or it cannot be bound."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return True
    return False
