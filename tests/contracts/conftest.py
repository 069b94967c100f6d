"""A PostgreSQL server for the contracts of the mart: the one named, or a throwaway one where it is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from include.evergreen.errors import SettingsError
from include.evergreen.local import postgres as server

NAMED = os.environ.get("EVERGREEN_TEST_POSTGRES_URL")


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """URL of a server where databases and roles may be made. It listens on a socket file only."""
    if NAMED:
        yield NAMED
        return
    try:
        folder = server.programs()
    except SettingsError:
        pytest.skip("no PostgreSQL: neither EVERGREEN_TEST_POSTGRES_URL nor an installed server")
    pytest.importorskip("psycopg")
    user = server.owner()  # pytest's own folders are closed to others
    home = Path(tempfile.mkdtemp(prefix="evergreen-postgres-"))
    os.chown(home, user.pw_uid, user.pw_gid)

    def run(program: str, *arguments: str) -> None:
        command = [str(folder / program), "--pgdata", str(home / "data"), *arguments]
        subprocess.run(command, cwd=home, check=True, stdout=subprocess.DEVNULL, **server.as_owner())

    try:
        run("initdb", "--auth=trust", "--username=postgres", "--no-sync", "--encoding=UTF8", "--locale=C")
        options = f"-c listen_addresses= -c unix_socket_directories={home} -c fsync=off"
        run("pg_ctl", "--wait", f"--log={home / 'log'}", f"--options={options}", "start")
        try:
            yield f"postgresql+psycopg://postgres@/postgres?host={home}"
        finally:
            run("pg_ctl", "--wait", "--mode=immediate", "stop")
    finally:
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture
def postgres(postgres_server: str) -> Iterator[str]:
    """URL of an empty database of its own."""
    engine = sa.create_engine(postgres_server, isolation_level="AUTOCOMMIT")
    name = f"mart_{uuid.uuid4().hex}"
    with engine.connect() as connection:
        connection.exec_driver_sql(f"create database {name}")
    try:
        yield sa.make_url(postgres_server).set(database=name).render_as_string(hide_password=False)
    finally:
        with engine.connect() as connection:
            connection.exec_driver_sql(f"drop database {name} with (force)")
        engine.dispose()


@pytest.fixture(params=["sqlite", "postgres"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database on either."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'mart.db'}"
    found: str = request.getfixturevalue("postgres")
    return found
