"""The loop on three days of real flights, in a cluster of processes, and plain clients that look at it from outside."""

from __future__ import annotations

import compileall
import datetime as dt
import io
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import boto3
import duckdb
import psutil
import psycopg
import pytest
import yaml
from psycopg.rows import dict_row
from rich.console import Console

from include.evergreen.local import demo, processes
from include.evergreen.local.api import Api
from include.evergreen.local.cluster import Cluster
from include.evergreen.local.layout import CLUSTER_PORTS, PROJECT
from tests.conftest import free_port

HERE = Path(__file__).parent
SCENARIO = demo.Scenario(
    history_from=dt.date(2013, 1, 1),
    train_as_of=dt.date(2013, 4, 1),
    replay_from=dt.date(2013, 4, 2),
    replay_until=dt.date(2013, 4, 4),
)
Rows = list[dict[str, Any]]
T = TypeVar("T")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.timeout(1800))  # the first test pays for the loop


@dataclass
class Outside:
    """A running cluster, and readers that know nothing of the engine."""

    cluster: Cluster
    s3: Any
    cache: Path
    said: str

    def api(self, user: str = "admin") -> Api:
        return Api.login(self.cluster.layout, user)

    def sql(self, database: str, query: str, *values: Any) -> Rows:
        """Rows of one of the four databases, as its role."""
        with psycopg.connect(self.cluster.postgres_uri(database), row_factory=dict_row) as connection:
            return connection.execute(query, values or None).fetchall()

    def get(self, bucket: str, key: str) -> bytes:
        return bytes(self.s3.get_object(Bucket=bucket, Key=key)["Body"].read())

    def keys(self, bucket: str, prefix: str = "") -> list[str]:
        pages = self.s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        return [item["Key"] for page in pages for item in page.get("Contents", [])]

    def has(self, table: str) -> bool:
        namespace, name = table.split(".")
        query = "select 1 from iceberg_tables where table_namespace = %s and table_name = %s"
        return bool(self.sql("catalog", query, namespace, name))

    def files(self, table: str) -> str:
        """The live data files of a lake table as DuckDB reads them; PyIceberg only says which they are."""
        from pyiceberg.table import StaticTable

        namespace, name = table.split(".")
        query = "select metadata_location from iceberg_tables where table_namespace = %s and table_name = %s"
        [row] = self.sql("catalog", query, namespace, name)
        secrets, url = self.cluster.layout.secrets, self.cluster.layout.s3_url
        properties = {
            "py-io-impl": "pyiceberg.io.fsspec.FsspecFileIO",
            "s3.endpoint": url,
            "s3.access-key-id": secrets.s3_access_key,
            "s3.secret-access-key": secrets.s3_secret_key,
            "s3.region": "us-east-1",
        }
        paths = []
        for task in StaticTable.from_metadata(row["metadata_location"], properties).scan().plan_files():
            assert not task.delete_files
            bucket, key = task.file.file_path.removeprefix("s3://").split("/", 1)
            path = self.cache / key.replace("/", "_")
            if not path.exists():
                path.write_bytes(self.get(bucket, key))
            paths.append(str(path))
        return f"read_parquet({paths}, union_by_name = true)"

    def lake(self, query: str, *values: Any) -> Rows:
        """Rows of a query whose `{namespace.table}` are lake tables."""
        text = re.sub(r"\{(\w+\.\w+)\}", lambda match: self.files(match[1]), query)
        with duckdb.connect() as connection:
            found = connection.execute(text, list(values))
            names = [column[0] for column in found.description]
            return [dict(zip(names, row, strict=True)) for row in found.fetchall()]

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
    for name in ("dags", "include", "plugins"):
        shutil.copytree(PROJECT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(PROJECT / "airflow_settings.yaml", folder)
    path = folder / "include" / "models" / demo.MODEL / "model.yaml"
    spec = yaml.safe_load(path.read_text())
    spec["gate"]["max_ms_per_1k"] = 60_000
    path.write_text(yaml.safe_dump(spec, sort_keys=False))
    compileall.compile_dir(folder, quiet=1)
    return folder


@pytest.fixture(scope="session")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outside]:
    """The cluster after the demo's loop; when it has ended, no process and no file outside its folder is left."""
    folder = tmp_path_factory.mktemp("cluster")
    (folder / "cache").mkdir()
    ports: set[int] = set()
    while len(ports) < len(CLUSTER_PORTS):
        ports.add(free_port())
    copy = project(folder / "project")
    given = {variable: str(port) for (variable, _), port in zip(CLUSTER_PORTS.values(), ports, strict=True)}
    layout = Cluster.layout_of({"EVERGREEN_VAR": str(folder / "var"), "EVERGREEN_DAGS": str(copy / "dags"), **given})
    layout = replace(layout, project=copy)
    said = io.StringIO()
    environment = dict(os.environ)
    cluster = Cluster(layout)
    try:
        with cluster:
            shortfalls = demo.run(cluster, SCENARIO, Console(file=said, width=200))
            assert shortfalls == [], said.getvalue()
            config = boto3.session.Config(s3={"addressing_style": "path"}, request_checksum_calculation="when_required")
            s3 = boto3.client(
                "s3",
                endpoint_url=layout.s3_url,
                region_name="us-east-1",
                aws_access_key_id=layout.secrets.s3_access_key,
                aws_secret_access_key=layout.secrets.s3_secret_key,
                config=config,
            )
            found = Outside(cluster, s3, folder / "cache", said.getvalue())
            yield found
            family = found.processes()
        assert [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE] == []
    finally:
        os.environ.clear()
        os.environ.update(environment)
        print(said.getvalue())
        cluster.remove()
