"""The loop on three days of real flights, in a cluster of processes, and plain clients that look at it from outside."""

from __future__ import annotations

import datetime as dt
import io
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import psutil
import psycopg
import pytest
from psycopg.rows import dict_row
from rich.console import Console

from include.evergreen.local import demo, processes
from include.evergreen.local.api import Api
from include.evergreen.local.cluster import Cluster
from include.evergreen.local.layout import CLUSTER_PORTS, Layout
from tests.outside import LakeReader, Rows, compiled, copy_of_project, ports_of, s3_client, unhurried

HERE = Path(__file__).parent
SCENARIO = demo.Scenario(
    history_from=dt.date(2013, 1, 1),
    train_as_of=dt.date(2013, 4, 1),
    replay_from=dt.date(2013, 4, 2),
    replay_until=dt.date(2013, 4, 4),
)
T = TypeVar("T")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.timeout(1800))  # the first test pays for the loop


@dataclass
class Outside(LakeReader):
    """A running cluster, and readers that know nothing of the engine."""

    cluster: Cluster
    said: str

    @property
    def layout(self) -> Layout:
        return self.cluster.layout

    def api(self, user: str = "admin") -> Api:
        return Api.login(self.cluster.layout, user)

    def sql(self, database: str, query: str, *values: Any) -> Rows:
        """Rows of one of the four databases, as its role."""
        with psycopg.connect(self.cluster.postgres_uri(database), row_factory=dict_row) as connection:
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

    def log(self, part: str) -> str:
        return self.cluster.parts[part].log.read_text(errors="replace")

    def processes(self) -> list[psutil.Process]:
        """Of the cluster, by what they inherit: PostgreSQL's own children overwrite their environment."""
        found: dict[int, psutil.Process] = {}
        for process in processes.of_stack(self.cluster.mark[processes.MARK]):
            with suppress(psutil.NoSuchProcess):
                found |= {p.pid: p for p in [process, *process.children(recursive=True)]}
        return list(found.values())

    def each(self, ask: Callable[[psutil.Process], T]) -> list[T]:
        """The answers of all processes; one may end meanwhile."""
        answers = []
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                answers.append(ask(process))
        return answers


def project(folder: Path) -> Path:
    """A copy of the project where the gate does not ask how fast a busy machine scores."""
    copy_of_project(folder)
    unhurried(folder / "include" / "models" / demo.MODEL / "model.yaml")
    return compiled(folder)


@pytest.fixture(scope="session")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outside]:
    """The cluster after the demo's loop; when it has ended, no process and no file outside its folder is left."""
    folder = tmp_path_factory.mktemp("cluster")
    (folder / "cache").mkdir()
    copy = project(folder / "project")
    given = ports_of(CLUSTER_PORTS)
    layout = Cluster.layout_of({"EVERGREEN_VAR": str(folder / "var"), "EVERGREEN_DAGS": str(copy / "dags"), **given})
    layout = replace(layout, project=copy)
    said = io.StringIO()
    environment = dict(os.environ)
    cluster = Cluster(layout)
    try:
        with cluster:
            shortfalls = demo.run(cluster, SCENARIO, Console(file=said, width=200))
            assert shortfalls == [], said.getvalue()
            found = Outside(s3_client(layout), folder / "cache", cluster, said.getvalue())
            yield found
            family = found.processes()
        assert [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE] == []
    finally:
        os.environ.clear()
        os.environ.update(environment)
        print(said.getvalue())
        cluster.remove()
