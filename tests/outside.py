"""Readers of what a running stack wrote that know nothing of the engine: boto3, and DuckDB on Parquet.

PyIceberg's StaticTable, with its own file access, only says which data files are live.
"""

from __future__ import annotations

import compileall
import contextlib
import re
import shutil
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import yaml

from include.evergreen.local.layout import LAKE_BUCKET, LOOPBACK, PROJECT, Layout

Rows = list[dict[str, Any]]


def s3_client(layout: Layout) -> Any:
    """A plain client of the stack's object store."""
    import boto3

    return boto3.client(
        "s3",
        endpoint_url=layout.s3_url,
        region_name="us-east-1",
        aws_access_key_id=layout.secrets.s3_access_key,
        aws_secret_access_key=layout.secrets.s3_secret_key,
        config=boto3.session.Config(s3={"addressing_style": "path"}, request_checksum_calculation="when_required"),
    )


def ports_of(known: dict[str, tuple[str, int]]) -> dict[str, str]:
    """{variable: free port} for every part of a layout."""
    with contextlib.ExitStack() as stack:  # all at once: no port twice
        probes = {variable: stack.enter_context(socket.socket()) for variable, _ in known.values()}
        for probe in probes.values():
            probe.bind((LOOPBACK, 0))
        return {variable: str(probe.getsockname()[1]) for variable, probe in probes.items()}


def copy_of_project(folder: Path) -> Path:
    """The project's DAGs, engine and plugins in a folder, to be changed and then compiled."""
    for name in ("dags", "include", "plugins"):
        shutil.copytree(PROJECT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(PROJECT / "airflow_settings.yaml", folder)
    return folder


def unhurried(path: Path, **changes: Any) -> None:
    """Change a model.yaml; `gate` is merged. The gate does not ask how fast a busy machine scores."""
    spec = yaml.safe_load(path.read_text())
    gate = {**spec["gate"], **changes.pop("gate", {}), "max_ms_per_1k": 60_000}
    path.write_text(yaml.safe_dump({**spec, **changes, "gate": gate}, sort_keys=False))


def compiled(folder: Path) -> Path:
    """The folder, its Python compiled: no process of the stack has to."""
    compileall.compile_dir(folder, quiet=1)
    return folder


@dataclass
class LakeReader:
    """The object store and the lake of a stack. Who uses it says where a table's metadata is.

    Attributes:
        s3: of `s3_client`. cache: folder for data files read once. bucket: the lake's, of the embedded stack.
    """

    s3: Any
    cache: Path
    bucket = LAKE_BUCKET

    @property
    def layout(self) -> Layout:
        raise NotImplementedError

    def metadata_location(self, table: str) -> str:
        """The URI of a lake table's metadata, from the catalog's database."""
        raise NotImplementedError

    def get(self, bucket: str, key: str) -> bytes:
        return bytes(self.s3.get_object(Bucket=bucket, Key=key)["Body"].read())

    def keys(self, bucket: str, prefix: str = "") -> list[str]:
        pages = self.s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        return [item["Key"] for page in pages for item in page.get("Contents", [])]

    def paths(self, table: str) -> list[str]:
        """Keys of the live data files of a lake table."""
        from pyiceberg.table import StaticTable

        secrets = self.layout.secrets
        properties = {
            "py-io-impl": "pyiceberg.io.fsspec.FsspecFileIO",
            "s3.endpoint": self.layout.s3_url,
            "s3.access-key-id": secrets.s3_access_key,
            "s3.secret-access-key": secrets.s3_secret_key,
            "s3.region": "us-east-1",
        }
        tasks = list(StaticTable.from_metadata(self.metadata_location(table), properties).scan().plan_files())
        assert not [task for task in tasks if task.delete_files]
        return [task.file.file_path.removeprefix(f"s3://{self.bucket}/") for task in tasks]

    def files(self, table: str) -> str:
        """The live data files of a lake table as DuckDB reads them."""
        paths = []
        for key in self.paths(table):
            path = self.cache / key.replace("/", "_")
            if not path.exists():
                path.write_bytes(self.get(self.bucket, key))
            paths.append(str(path))
        return f"read_parquet({paths}, union_by_name = true)"

    def lake(self, query: str, *values: Any) -> Rows:
        """Rows of a query whose `{namespace.table}` are lake tables."""
        text = re.sub(r"\{(\w+\.\w+)\}", lambda match: self.files(match[1]), query)
        with duckdb.connect() as connection:
            found = connection.execute(text, list(values))
            names = [column[0] for column in found.description]
            return [dict(zip(names, row, strict=True)) for row in found.fetchall()]
