"""The compose file on a real container engine, with stand-ins for public images, after three days of real flights."""

from __future__ import annotations

import io
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import psycopg
import pytest
import yaml
from psycopg.rows import dict_row
from rich.console import Console

from include.evergreen.local import demo, dotenv
from include.evergreen.local.api import Api
from include.evergreen.local.cluster import AIRFLOW, interpolate
from include.evergreen.local.layout import LOOPBACK, PROJECT, Layout
from tests.cluster.conftest import SCENARIO
from tests.compose import stand_ins
from tests.compose.engine import LABEL, CommandFailed, Engine, engine, run
from tests.conftest import free_port
from tests.outside import LakeReader, Rows, s3_client

HERE = Path(__file__).parent
COMPOSE = PROJECT / "docker-compose.yaml"
SERVERS = ("postgres", "redis", "object-store", "mlflow", *AIRFLOW)
"""Services that run on; `init` ends."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.timeout(5400))  # the first test pays for the images and for the loop


@dataclass
class Containers:
    """The services of the compose file under one project name.

    What `demo.run` asks of a stack: start, wait_ready, layout, environment.
    """

    engine: Engine
    name: str
    folder: Path
    variables: dict[str, str] = field(repr=False)

    @property
    def argv(self) -> list[str]:
        files = [f"--file={COMPOSE}", f"--file={self.folder / 'override.yaml'}"]
        given = [f"--env-file={self.folder / '.env'}", f"--project-directory={PROJECT}"]
        return [*self.engine.compose, f"--project-name={self.name}", *given, *files]

    def compose(self, *arguments: str, timeout: float = 900) -> str:
        return run([*self.argv, *arguments], self.engine.environment, timeout=timeout)

    def ids(self) -> dict[str, str]:
        """{service: container id} of all containers of the project, ended ones too."""
        template = '{{.ID}} {{.Label "com.docker.compose.service"}}'
        project = f"label=com.docker.compose.project={self.name}"
        listed = self.engine.docker("ps", "--all", "--no-trunc", f"--filter={project}", f"--format={template}")
        return {service: found for found, service in (line.split() for line in listed.splitlines())}

    def state(self, service: str) -> dict[str, Any]:
        """What the engine knows of a service's container."""
        return self.engine.inspect(self.ids()[service])

    def address(self, service: str) -> str:
        """Within the project's network; nothing but the UI is published."""
        [network] = self.state(service)["NetworkSettings"]["Networks"].values()
        return str(network["IPAddress"])

    def within(self, service: str, *command: str, timeout: float = 120) -> str:
        """Output of a command inside a service's container."""
        return self.engine.docker("exec", self.ids()[service], *command, timeout=timeout)

    def log(self, service: str) -> str:
        return self.compose("logs", "--no-color", service)

    # --- as a stack --------------------------------------------------------------------------------------------------

    def start(self) -> None:
        self.compose("up", "--detach")

    def wait_ready(self, timeout: float = 600) -> None:
        """Until every service is healthy. Raises CommandFailed with the logs of one that is not."""
        deadline = time.monotonic() + timeout
        while late := self.late():
            if time.monotonic() > deadline:
                logs = "\n".join(self.log(name)[-3000:] for name in late)
                raise CommandFailed(f"expected all services healthy within {timeout:g} s, found {late}:\n{logs}")
            time.sleep(1)

    def late(self) -> dict[str, str]:
        """Services that are not healthy, and the job `init` while it has not ended well."""
        found = {}
        known = self.ids()
        for name in (*SERVERS, "init"):
            state = self.engine.inspect(known[name])["State"] if name in known else {"Status": "absent"}
            if name == "init":
                fine = state["Status"] == "exited" and state["ExitCode"] == 0
            else:
                fine = state.get("Health", {}).get("Status") == "healthy"
            if not fine:
                found[name] = f"{state['Status']} {state.get('Health', {}).get('Status', '')}".strip()
        return found

    @property
    def layout(self) -> Layout:
        """The parts of a layout that readers and the demo ask for."""
        passwords = {
            user: self.variables[f"EVERGREEN_{user.upper()}_PASSWORD"] for user in ("admin", "oncall", "analyst")
        }
        secrets = SimpleNamespace(
            s3_access_key=self.variables["EVERGREEN_S3_ACCESS_KEY"],
            s3_secret_key=self.variables["EVERGREEN_S3_SECRET_KEY"],
            passwords=passwords,
        )
        found = SimpleNamespace(
            ui_url=self.variables["EVERGREEN_UI_URL"],
            s3_url=f"http://{self.address('object-store')}:8333",
            secrets=secrets,
        )
        return cast(Layout, found)

    @property
    def environment(self) -> dict[str, str]:
        """The variables of a task, with the addresses that this host can reach."""
        text = json.dumps(yaml.safe_load(COMPOSE.read_text())["services"]["scheduler"]["environment"])
        for service, port in (("postgres", 5432), ("object-store", 8333), ("mlflow", 5000)):
            text = text.replace(f"{service}:{port}", f"{self.address(service)}:{port}")
        found: dict[str, str] = interpolate(json.loads(text), self.variables)
        return found


@dataclass
class Outside(LakeReader):
    """Running containers, and readers that know nothing of the engine."""

    containers: Containers
    said: str

    @property
    def layout(self) -> Layout:
        return self.containers.layout

    def api(self, user: str = "admin") -> Api:
        return Api.login(self.layout, user)

    def sql(self, database: str, query: str, *values: Any) -> Rows:
        """Rows of one of the four databases, as its role."""
        password = self.containers.variables[f"{database.upper()}_DB_PASSWORD"]
        uri = f"postgresql://{database}:{password}@{self.containers.address('postgres')}:5432/{database}"
        with psycopg.connect(uri, row_factory=dict_row, connect_timeout=10) as connection:
            return connection.execute(query, values or None).fetchall()

    def has(self, table: str) -> bool:
        namespace, name = table.split(".")
        query = "select 1 from iceberg_tables where table_namespace = %s and table_name = %s"
        return bool(self.sql("catalog", query, namespace, name))

    def metadata_location(self, table: str) -> str:
        namespace, name = table.split(".")
        query = "select metadata_location from iceberg_tables where table_namespace = %s and table_name = %s"
        [row] = self.sql("catalog", query, namespace, name)
        return str(row["metadata_location"])

    def log(self, service: str) -> str:
        return self.containers.log(service)


def with_variables(folder: Path) -> dict[str, str]:
    """`make env` into a folder, and a free port for the UI."""
    path = folder / ".env"
    dotenv.create(path)
    port = free_port()
    changed = {"EVERGREEN_PORT_UI": str(port), "EVERGREEN_UI_URL": f"http://{LOOPBACK}:{port}"}
    kept = [line for line in path.read_text().splitlines() if line.partition("=")[0] not in changed]
    path.write_text("\n".join([*kept, *(f"{name}={value}" for name, value in changed.items())]) + "\n")
    return dotenv.read(path)


@pytest.fixture(scope="session")
def scratch() -> Iterator[Path]:
    """A short path: a socket's name has at most 107 characters."""
    folder = Path(tempfile.mkdtemp(prefix="evergreen-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def running(scratch: Path) -> Iterator[Engine]:
    """An engine with every image. A folder in EVERGREEN_COMPOSE_DATA keeps the images for the next time."""
    kept = os.environ.get("EVERGREEN_COMPOSE_DATA")
    with engine(scratch, Path(kept) if kept else scratch / "data") as found:
        stand_ins.build_all(found, scratch / "images")
        try:
            yield found
        finally:
            if not (found.own or kept):
                listed = found.docker("images", "--quiet", f"--filter=label={LABEL}").split()
                found.docker("rmi", "--force", *dict.fromkeys(listed))


@pytest.fixture(scope="session")
def containers(running: Engine, scratch: Path) -> Iterator[Containers]:
    """The project, not started yet; when it has ended, nothing of it is left."""
    (scratch / "override.yaml").write_text(yaml.safe_dump(stand_ins.override()))
    found = Containers(running, f"evergreen-test-{os.getpid()}", scratch, with_variables(scratch))
    try:
        yield found
    finally:
        found.compose("down", "--volumes", "--remove-orphans", "--timeout=20")
        assert found.ids() == {}


@pytest.fixture(scope="session")
def outside(containers: Containers, scratch: Path) -> Outside:
    """The containers after the demo's loop."""
    (scratch / "cache").mkdir()
    said = io.StringIO()
    try:
        shortfalls = demo.run(cast(Any, containers), SCENARIO, Console(file=said, width=200))
        assert shortfalls == [], said.getvalue()
    finally:
        print(said.getvalue())
    return Outside(s3_client(containers.layout), scratch / "cache", containers, said.getvalue())
