"""The one SQL database: engine, transactions, locks; what the driver raises as errors of ours."""

from __future__ import annotations

import contextlib
import fcntl
import time
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.dialects import postgresql, sqlite

from include.evergreen.errors import NotFound, Refused, Unavailable
from include.evergreen.mart.values import dumps, number, row_of, same

BUSY_SECONDS = 30
POOL_SECONDS = 10
"""Waited for a free connection of this process."""
SQLITE_UNAVAILABLE = tuple(f"SQLITE_{name}" for name in ("BUSY", "LOCKED", "CANTOPEN", "IOERR", "FULL", "READONLY"))


def read_only_uri(file: Path) -> str:
    """A URI by which `sqlite3.connect(..., uri=True)` can only read a file."""
    return f"{file.absolute().as_uri()}?mode=ro"


class Database:
    """SQLite on one machine, PostgreSQL on many. All timestamps in and out are UTC.

    Every method raises Unavailable when the database cannot be reached or stays locked, NotFound when its tables are
    absent.
    """

    def __init__(self, uri: str) -> None:
        self._uri = sa.make_url(uri)
        self.is_sqlite = self._uri.get_backend_name() == "sqlite"

    def __repr__(self) -> str:
        return f"Mart({self._uri.render_as_string(hide_password=True)!r})"

    @cached_property
    def engine(self) -> sa.Engine:
        """The one engine, opened at first use. On SQLite a transaction with the option `write` takes the lock first."""
        if not self.is_sqlite:
            from include.evergreen.postgres import watch

            engine = sa.create_engine(self._uri, json_serializer=dumps, pool_pre_ping=True, pool_timeout=POOL_SECONDS)
            watch(engine)
            return engine
        engine = sa.create_engine(self._uri, json_serializer=dumps, connect_args={"timeout": BUSY_SECONDS})
        event.listen(engine, "connect", self._configure_sqlite)
        event.listen(engine, "begin", self._begin_sqlite)
        return engine

    @staticmethod
    def _configure_sqlite(connection: Any, _: Any) -> None:
        # the driver opens transactions too late: we begin them ourselves
        connection.isolation_level = None
        connection.execute(f"pragma busy_timeout = {BUSY_SECONDS * 1000}")
        connection.execute("pragma foreign_keys = on")

    @staticmethod
    def _begin_sqlite(connection: sa.Connection) -> None:
        write = connection.get_execution_options().get("write", False)
        connection.exec_driver_sql("begin immediate" if write else "begin")

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sa.exc.TimeoutError as error:
            where = self._uri.render_as_string(hide_password=True)
            raise Unavailable(
                f"mart {where}: expected a free connection within {POOL_SECONDS} s, found none"
            ) from error
        except sa.exc.DBAPIError as error:
            where = self._uri.render_as_string(hide_password=True)
            cause = error.orig
            if getattr(cause, "sqlstate", None) == "42P01" or "no such table" in str(cause):
                raise NotFound(f"mart {where}: expected its tables, found: {cause}. Has it been created?") from error
            if self.is_sqlite:
                dead = str(getattr(cause, "sqlite_errorname", "")).startswith(SQLITE_UNAVAILABLE)
            else:
                lost = isinstance(error, (sa.exc.OperationalError, sa.exc.InterfaceError))
                dead = lost or error.connection_invalidated
            if dead:
                raise Unavailable(f"mart {where}: expected an answer, found: {' '.join(str(cause).split())}") from error
            raise

    @contextlib.contextmanager
    def reading(self, as_of_one_moment: bool = False) -> Iterator[sa.Connection]:
        """One transaction that reads; its statements may see the database change, unless `as_of_one_moment`."""
        # on SQLite a transaction is of one moment anyway
        options = {"isolation_level": "REPEATABLE READ"} if as_of_one_moment and not self.is_sqlite else {}
        with self._translated(), self.engine.execution_options(**options).begin() as connection:
            yield connection

    @contextlib.contextmanager
    def writing(self, alone: str | None = None) -> Iterator[sa.Connection]:
        """One transaction; among transactions with the same `alone` only one runs at a time."""
        with self._translated(), self.engine.execution_options(write=True).begin() as connection:
            if alone is not None and not self.is_sqlite:
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(number(alone))))
            yield connection

    @contextlib.contextmanager
    def lock(self, name: str, timeout: float = 600) -> Iterator[None]:
        """Hold `name` among all processes; released when the holder dies.

        For work that spans the mart and the lake. Raises Unavailable after `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        with contextlib.ExitStack() as stack:
            if self.is_sqlite:
                database = Path(self._uri.database or "mart.db")
                try:
                    file = stack.enter_context(database.with_name(f"{database.name}.{name}.lock").open("a"))
                except OSError as error:
                    raise Unavailable(f"mart lock {name!r}: expected a writable folder, found: {error}") from error
                held = False
                while not held:
                    try:
                        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        held = True
                    except BlockingIOError:
                        self._wait_for(name, deadline, timeout)
            else:
                stack.enter_context(self._translated())
                connection = stack.enter_context(self.engine.connect()).execution_options(isolation_level="AUTOCOMMIT")
                key = number(f"lock {name}")
                while not connection.scalar(sa.select(sa.func.pg_try_advisory_lock(key))):
                    self._wait_for(name, deadline, timeout)
                stack.callback(lambda: connection.scalar(sa.select(sa.func.pg_advisory_unlock(key))))
            yield

    @staticmethod
    def _wait_for(name: str, deadline: float, timeout: float) -> None:
        if time.monotonic() > deadline:
            raise Unavailable(f"mart lock {name!r}: expected it within {timeout:g} s, found it still held")
        time.sleep(0.05)

    def read_only_uri(self) -> str:
        """A URI for `sqlite3.connect(..., uri=True)` and tools that take one: reads only.

        Raises Refused on PostgreSQL, where a role does it (`grant_read`).
        """
        if not self.is_sqlite or not self._uri.database:
            raise Refused(
                f"{self!r}: expected a SQLite file to read; on PostgreSQL log in with a role that may only read"
            )
        return read_only_uri(Path(self._uri.database))

    def enable_wal(self) -> None:
        """Let readers and a writer of a SQLite file work at once."""
        # switching the journal ignores the busy timeout
        deadline = time.monotonic() + BUSY_SECONDS
        while True:
            try:
                with self._translated():
                    driver = self.engine.raw_connection()
                    try:
                        driver.cursor().execute("pragma journal_mode = wal")
                    finally:
                        driver.close()
                return
            except sa.exc.DBAPIError:
                raise
            except Exception as error:
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise Unavailable(f"{self!r}: expected to open it, found: {error}") from error
                time.sleep(0.05)

    # --- facts -------------------------------------------------------------------------------------------------------

    def insert(self, table: Any) -> Any:
        """An insert that knows `on_conflict_do_update`."""
        return sqlite.insert(table) if self.is_sqlite else postgresql.insert(table)

    @staticmethod
    def stored(connection: sa.Connection, table: sa.Table, values: Mapping[str, Any]) -> dict[str, Any] | None:
        """The row with the primary key of `values`."""
        match = [column == values[column.name] for column in table.primary_key]
        row = connection.execute(sa.select(table).where(*match)).one_or_none()
        return None if row is None else row_of(row)

    def record(self, connection: sa.Connection, table: sa.Table, values: Mapping[str, Any]) -> dict[str, Any]:
        """Upsert one fact by primary key, leaving an unchanged one alone. Returns the stored row."""
        stored = self.stored(connection, table, values)
        if stored is not None and same(table, stored, values):
            return stored
        key = [column.name for column in table.primary_key]
        statement = self.insert(table).values(**values)
        changed = {name: statement.excluded[name] for name in values if name not in key}
        connection.execute(statement.on_conflict_do_update(index_elements=key, set_=changed))
        match = [column == values[column.name] for column in table.primary_key]
        return row_of(connection.execute(sa.select(table).where(*match)).one())

    def listed(self, statement: sa.Select[Any]) -> list[dict[str, Any]]:
        """Rows of a query, timestamps in UTC."""
        with self.reading() as connection:
            return [row_of(row) for row in connection.execute(statement)]
