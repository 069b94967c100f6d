"""Fixtures of every tier, and who may open a socket."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from include.evergreen.settings import ObjectStoreSettings, Settings, Timeouts

HERE = Path(__file__).parent
PURE = ("unit", "properties")
LOOPBACK = ["127.0.0.1", "::1"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Pure tests open no socket; contract tests reach loopback only."""
    for item in items:
        if not item.path.is_relative_to(HERE):
            continue
        tier = item.path.relative_to(HERE).parts[0]
        if tier in PURE:
            item.add_marker(pytest.mark.disable_socket)
        elif tier == "contracts":
            item.add_marker(pytest.mark.allow_hosts(LOOPBACK))


def free_port() -> int:
    """A loopback port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def s3_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStoreSettings]:
    """A real S3 server on loopback, with the buckets landing and lake."""
    from include.evergreen.lake.objects import S3Objects
    from include.evergreen.local.object_store import command, wait_ready

    root = tmp_path_factory.mktemp("object-store")
    access, secret = secrets.token_hex(8), secrets.token_hex(16)
    port = free_port()
    argv, env = command(root / "data", port, access, secret)
    (root / "data").mkdir()
    with (root / "log").open("wb") as log:
        server = subprocess.Popen(argv, env={**os.environ, **env}, stdout=log, stderr=log)
        try:
            wait_ready(port, timeout=30)
            store = ObjectStoreSettings(endpoint=f"http://127.0.0.1:{port}", access_key=access, secret_key=secret)
            for bucket in (store.landing_bucket, store.lake_bucket):
                S3Objects(store, bucket, Timeouts()).ensure_bucket()
            yield store
        finally:
            server.terminate()
            try:
                server.wait(timeout=10)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


@pytest.fixture
def settings(s3_store: ObjectStoreSettings, tmp_path: Path) -> Settings:
    """Fresh buckets on the server, fresh SQLite files for catalog, mart and registry."""
    from include.evergreen.lake.objects import S3Objects

    mark = secrets.token_hex(4)
    store = s3_store.model_copy(update={"landing_bucket": f"landing-{mark}", "lake_bucket": f"lake-{mark}"})
    for bucket in (store.landing_bucket, store.lake_bucket):
        S3Objects(store, bucket, Timeouts()).ensure_bucket()
    return Settings(
        object_store=store,
        catalog_uri=f"sqlite:///{tmp_path}/catalog.db",
        mart_uri=f"sqlite:///{tmp_path}/mart.db",
        registry_uri=f"sqlite:///{tmp_path}/registry.db",
    )
