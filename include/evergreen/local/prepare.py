"""What must exist before the first task. Idempotent.

    python -m include.evergreen.local.prepare mlflow|mart|migrate [REVISION]
    python -m include.evergreen.local.prepare cluster|managed

`cluster` is the job `init` of `docker-compose.yaml`: roles, databases, schemas, buckets, logins, airflow_settings.yaml.
`managed` is the rest of that job where roles, databases, buckets and logins are made by others: in a cloud.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from include.evergreen.errors import EvergreenError, NotFound, SettingsError, Unavailable
from include.evergreen.settings import Settings

DATABASES = ("airflow", "catalog", "mlflow", "mart")
USERS = ("admin", "oncall", "analyst")


def mlflow(uri: str | None = None) -> None:
    """Create or upgrade the MLflow database."""
    import sqlalchemy as sa
    from mlflow.store.db.utils import _safe_initialize_tables, _upgrade_db

    engine = sa.create_engine(uri or Settings.from_env().registry_uri.get_secret_value())
    _safe_initialize_tables(engine)
    _upgrade_db(engine)
    engine.dispose()


def mart(uri: str | None = None) -> None:
    """Create or upgrade the mart: common tables, every model's tables and views, who may read them."""
    from include.evergreen.mart.store import Mart
    from include.evergreen.specs import survey

    made = Mart(uri or Settings.from_env().mart_uri.get_secret_value())
    made.create()
    specs = survey()
    wrong: list[EvergreenError] = [*specs.wrong]  # they show in the UI too; the other models go on
    for spec, source in specs.pairs:
        try:
            made.ensure_model(spec, source)
        except EvergreenError as error:
            wrong.append(error)
    for one in wrong:
        print(f"{type(one).__name__}: {one}", file=sys.stderr)
    if not made.is_sqlite:
        with suppress(NotFound):
            made.grant_read()
    made.engine.dispose()


def migrate(revision: str = "head") -> None:
    """Bring a mart to a revision: that of EVERGREEN_MART_URI, else the embedded one."""
    from include.evergreen.local.layout import Layout
    from include.evergreen.mart.store import Mart

    uri = os.environ.get("EVERGREEN_MART_URI") or f"sqlite:///{Layout.from_env().mart_db}"
    if revision == "head":
        mart(uri)
    else:
        made = Mart(uri)
        made.migrate(revision)
        made.engine.dispose()
    print(f"the mart is at {revision}")


def _given(name: str) -> str:
    if not (found := os.environ.get(name)):
        raise SettingsError(f"{name}: expected a value, found none")
    return found


def databases(uri: str, passwords: dict[str, str]) -> None:
    """A role and a database of its own for each of `passwords`, and a role for analysts. Sets changed passwords.

    Args:
        uri: of the server's administrator.
        passwords: by the name of role and database.
    """
    import psycopg
    from psycopg import sql

    from include.evergreen.mart.views import READ_ROLE

    with psycopg.connect(uri, autocommit=True, connect_timeout=10) as connection:

        def run(statement: str, *names: sql.Composable) -> None:
            connection.execute(sql.SQL(statement).format(*names))

        def known(table: str, column: str, name: str) -> bool:
            query = sql.SQL("select 1 from {} where {} = %s").format(sql.Identifier(table), sql.Identifier(column))
            return connection.execute(query, [name]).fetchone() is not None

        row = connection.execute("select rolsuper from pg_roles where rolname = current_user").fetchone()
        superuser = row is not None and row[0]
        for name, password in passwords.items():
            if not known("pg_roles", "rolname", name):
                run("create role {} login", sql.Identifier(name))
            if not superuser:  # as on managed servers: who gives a database to a role must be a member of it
                run("grant {} to current_user", sql.Identifier(name))
            run("alter role {} password {}", sql.Identifier(name), sql.Literal(password))
            if not known("pg_database", "datname", name):
                run("create database {} owner {}", sql.Identifier(name), sql.Identifier(name))
            run("revoke all on database {} from public", sql.Identifier(name))
        if not known("pg_roles", "rolname", READ_ROLE):
            run("create role {} nologin", sql.Identifier(READ_ROLE))
        if "mart" in passwords:
            run("grant connect on database mart to {}", sql.Identifier(READ_ROLE))


def buckets() -> None:
    """Make the two buckets."""
    from include.evergreen.lake.objects import S3Objects

    settings = Settings.from_env()
    store = settings.object_store
    for bucket in (store.landing_bucket, store.lake_bucket):
        S3Objects(store, bucket, settings.timeouts).ensure_bucket()


def logins() -> None:
    """Write the passwords of the UI's users where Airflow's simple auth manager reads them."""
    from include.evergreen.local.layout import write_private

    passwords = {user: _given(f"LOGIN_PASSWORD_{user}") for user in USERS}
    write_private(Path(_given("AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE")), json.dumps(passwords))


def airflow_settings() -> None:
    """Load airflow_settings.yaml with Airflow's CLI, placeholders kept: no secret is stored. Raises Unavailable."""
    from include.evergreen.orchestration import settings_file

    with tempfile.TemporaryDirectory() as folder:
        settings_file.export(Path(folder), settings_file.read())
        commands = {
            "connections": ["--overwrite"],
            "pools": [],
            "variables": ["--action-on-existing-key", "overwrite"],
        }
        running = {
            name: subprocess.Popen(["airflow", name, "import", *options, f"{folder}/{name}.json"])
            for name, options in commands.items()
        }
        codes = {name: process.wait() for name, process in running.items()}
    if failed := [name for name, code in codes.items() if code]:
        raise Unavailable(f"airflow import: expected success, found failures of {failed}")


def _schemas(also: Sequence[Callable[[], None]] = ()) -> None:
    """Airflow's schema, with that of its auth manager, beside those of MLflow and the mart and what `also` makes."""
    migrating = subprocess.Popen(["airflow", "db", "migrate"])
    try:
        mlflow(_given("MLFLOW_BACKEND_STORE_URI"))
        mart(_given("EVERGREEN_MART_URI"))
        for make in also:
            make()
    finally:
        code = migrating.wait()
    if code:
        raise Unavailable(f"airflow db migrate: expected exit code 0, found {code}")


def cluster() -> None:
    """All of it, from the variables of the job `init` in `docker-compose.yaml`."""
    databases(_given("POSTGRES_ADMIN_URI"), {name: _given(f"DATABASE_PASSWORD_{name}") for name in DATABASES})
    _schemas([buckets, logins])
    airflow_settings()
    print("ready for the first task")


def managed() -> None:
    """Schemas and airflow_settings.yaml, from MLFLOW_BACKEND_STORE_URI, EVERGREEN_MART_URI, Airflow's own variables."""
    _schemas()
    airflow_settings()
    print("ready for the first task")


if __name__ == "__main__":
    verbs = {"mlflow": mlflow, "mart": mart, "migrate": migrate, "cluster": cluster, "managed": managed}
    try:
        verbs[sys.argv[1]](*sys.argv[2:])
    except EvergreenError as failure:
        print(f"{type(failure).__name__}: {failure}", file=sys.stderr)
        sys.exit(1)
