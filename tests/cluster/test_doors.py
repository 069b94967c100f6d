"""Who gets in, what listens, what is said where."""

from __future__ import annotations

import os
import socket
import subprocess

import httpx
import psutil
import psycopg
import pytest

from include.evergreen.local.api import Api, ApiError
from include.evergreen.local.cluster import WORKERS
from include.evergreen.local.layout import LOOPBACK
from include.evergreen.local.postgres import ADMIN
from include.evergreen.local.prepare import DATABASES, databases
from tests.cluster.conftest import Outside


def test_everything_listens_on_loopback_only(outside: Outside) -> None:
    seen = {
        (c.laddr.ip, c.laddr.port)
        for connections in outside.each(lambda process: process.net_connections("inet"))
        for c in connections
        if c.status == psutil.CONN_LISTEN
    }
    assert seen == {(LOOPBACK, port) for port in outside.cluster.layout.ports.values()}


def test_no_secret_is_in_a_command_line_or_a_log(outside: Outside) -> None:
    variables = outside.cluster.variables
    hidden = {name: value for name, value in variables.items() if name.endswith(("PASSWORD", "KEY", "SECRET"))}
    assert len(hidden) > 10
    lines = [" ".join(arguments) for arguments in outside.each(lambda process: process.cmdline())]
    assert len(lines) > 15
    texts = [path.read_text(errors="replace") for path in outside.cluster.layout.logs.rglob("*") if path.is_file()]
    assert len(texts) > 20
    assert {name for name, value in hidden.items() for text in [*lines, *texts] if value in text} == set()


def test_airflow_stores_no_secret_of_the_settings_file(outside: Outside) -> None:
    """Placeholders are stored, and encrypted."""
    stored = outside.sql("airflow", "select conn_id, login, is_encrypted, is_extra_encrypted from connection")
    loaded = {row["conn_id"]: row for row in stored}
    assert {"lake_s3", "catalog_db", "mart_db", "mlflow"} <= set(loaded)
    assert loaded["lake_s3"]["login"] == "${EVERGREEN_S3_ACCESS_KEY}"
    assert all(loaded[name]["is_extra_encrypted"] for name in ("lake_s3", "catalog_db", "mart_db", "mlflow"))


def test_the_settings_file_is_loaded(outside: Outside) -> None:
    pools = {row["pool"]: row["slots"] for row in outside.sql("airflow", "select pool, slots from slot_pool")}
    assert pools.items() >= {"training": 1, "ingest": 3, "scoring": 2}.items()
    names = {row["key"] for row in outside.sql("airflow", "select key from variable")}
    assert {"evergreen_ui_url", "evergreen_alert_channels"} <= names


@pytest.mark.parametrize("role", [ADMIN, *DATABASES])
@pytest.mark.parametrize("how", ["its name", "nothing", "postgres", "airflow"])
def test_no_default_password_opens_postgresql(outside: Outside, role: str, how: str) -> None:
    uri = outside.cluster.postgres_uri(role, password={"its name": role, "nothing": ""}.get(how, how))
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(uri, connect_timeout=5)


@pytest.mark.parametrize("role", DATABASES)
def test_a_role_opens_its_own_database_only(outside: Outside, role: str) -> None:
    with psycopg.connect(outside.cluster.postgres_uri(role)) as connection:
        assert connection.execute(
            "select current_user, rolsuper from pg_roles where rolname = current_user"
        ).fetchall() == [(role, False)]
    for other in set(DATABASES) - {role}:
        with pytest.raises(psycopg.OperationalError, match="permission denied"):
            psycopg.connect(outside.cluster.postgres_uri(role, other), connect_timeout=5)


def test_an_administrator_who_is_no_superuser_can_make_roles_and_databases(outside: Outside) -> None:
    """As on a managed server."""
    cluster = outside.cluster
    with psycopg.connect(cluster.postgres_uri(ADMIN), autocommit=True) as admin:
        admin.execute("create role boss login createrole createdb password 'chosen-by-a-person'")
        try:
            for password in ("one", "two"):
                databases(cluster.postgres_uri("boss", "postgres", "chosen-by-a-person"), {"shop": password})
            with psycopg.connect(cluster.postgres_uri("shop", password="two")) as shop:
                assert shop.execute("select current_user").fetchall() == [("shop",)]
            with pytest.raises(psycopg.OperationalError, match="password"):
                psycopg.connect(cluster.postgres_uri("shop", password="one"))
            with pytest.raises(psycopg.OperationalError, match="permission denied"):
                psycopg.connect(cluster.postgres_uri("mart", "shop"))
        finally:
            admin.execute("drop database if exists shop")
            for role in ("shop", "boss"):
                admin.execute(f"drop role if exists {role}")


LIBRARY = "libxgboost.so"


def redis_says(port: int, *commands: str) -> list[str]:
    with socket.create_connection((LOOPBACK, port), timeout=5) as connection:
        answers = []
        for command in commands:
            connection.sendall(f"{command}\r\n".encode())
            answers.append(connection.recv(200).decode().strip())
        return answers


def test_redis_asks_for_its_password(outside: Outside) -> None:
    port = outside.cluster.layout.ports["redis"]
    [refused] = redis_says(port, "PING")
    assert refused.startswith("-NOAUTH")
    for guess in ("redis", "airflow", "admin", ""):
        assert redis_says(port, f'AUTH "{guess}"')[0].startswith("-WRONGPASS")
    assert redis_says(port, f"AUTH {outside.cluster.variables['REDIS_PASSWORD']}", "PING") == ["+OK", "+PONG"]


@pytest.mark.parametrize(
    ("user", "password"), [("admin", "admin"), ("airflow", "airflow"), ("oncall", "oncall"), ("admin", "")]
)
def test_no_default_password_opens_the_ui(outside: Outside, user: str, password: str) -> None:
    with pytest.raises(ApiError, match=r"found 40[01]"):
        Api(outside.cluster.layout.ui_url, user, password).token()
    assert httpx.get(f"{outside.cluster.layout.ui_url}/api/v2/dags", trust_env=False).status_code == 401


@pytest.mark.parametrize("user", ["admin", "oncall", "analyst"])
def test_the_three_users_get_in(outside: Outside, user: str) -> None:
    with outside.api(user) as api:
        assert {dag["dag_id"] for dag in api.dags()} >= {"ingest__nyc_flights", "train__flight_delay"}
        assert api.import_errors() == []


def test_a_member_of_the_analysts_role_reads_the_views_and_nothing_else(outside: Outside) -> None:
    cluster = outside.cluster
    with psycopg.connect(cluster.postgres_uri(ADMIN), autocommit=True) as admin:
        admin.execute("create role ada login password 'chosen-by-a-person' in role analyst_read")
    try:
        with psycopg.connect(cluster.postgres_uri("ada", "mart", "chosen-by-a-person"), autocommit=True) as ada:
            [(rows,)] = ada.execute("select count(*) from flight_delay_current").fetchall()
            assert rows > 1500
            for table in ("ledger", "flight_delay_predictions", "champions"):
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    ada.execute(f"select * from {table}")
            for statement in ("delete from flight_delay_current", "create table mine (n int)"):
                with pytest.raises((psycopg.errors.InsufficientPrivilege, psycopg.errors.ObjectNotInPrerequisiteState)):
                    ada.execute(statement)
        with pytest.raises(psycopg.OperationalError, match="permission denied"):
            psycopg.connect(cluster.postgres_uri("ada", "airflow", "chosen-by-a-person"))
    finally:
        with psycopg.connect(cluster.postgres_uri(ADMIN), autocommit=True) as admin:
            admin.execute("drop role ada")


# --- workers ---------------------------------------------------------------------------------------------------------


def libraries(process: psutil.Process) -> set[str]:
    return {os.path.basename(mapped.path) for mapped in process.memory_maps()}


@pytest.mark.parametrize("worker", WORKERS)
def test_a_workers_parent_holds_the_libraries_that_its_pool_is_forked_with(outside: Outside, worker: str) -> None:
    parent = psutil.Process(outside.cluster.parts[worker].process.pid)
    command = outside.cluster.command_of(worker)
    warm = [process for process in parent.children() if LIBRARY in libraries(process)]
    assert LIBRARY in libraries(parent)
    assert len(warm) == int(command[command.index("--concurrency") + 1]), "tasks run in forks of these"
    assert "preload:" not in outside.log(worker), "a module could not be loaded"


def test_nothing_but_workers_holds_them(outside: Outside) -> None:
    for part in ("api-server", "scheduler", "dag-processor", "triggerer"):
        process = psutil.Process(outside.cluster.parts[part].process.pid)
        assert LIBRARY not in libraries(process), part


@pytest.mark.parametrize("worker", WORKERS)
def test_the_health_check_of_compose_finds_the_worker(outside: Outside, worker: str) -> None:
    kind, command = outside.cluster.services[worker]["healthcheck"]["test"]
    assert kind == "CMD-SHELL"
    command = command.replace("celery@$HOSTNAME", outside.cluster.node(worker))
    env = outside.cluster._env_of(worker)
    done = subprocess.run(command, shell=True, env=env, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    assert "pong" in done.stdout
    wrong = command.replace(outside.cluster.node(worker), "nobody@nowhere")
    assert subprocess.run(wrong, shell=True, env=env, capture_output=True, timeout=180).returncode != 0


def test_the_init_job_can_run_again(outside: Outside) -> None:
    before = outside.sql("mart", "select count(*) as n from flight_delay_current")
    outside.cluster._prepare()
    assert outside.sql("mart", "select count(*) as n from flight_delay_current") == before
