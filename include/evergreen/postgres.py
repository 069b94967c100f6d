"""Connections to PostgreSQL that no dead or silent server can hold, nor a dead client the server's locks.

libpq bounds the connecting; the kernel finds a host that is gone. Neither sees a server that stopped answering while
its kernel lives on (frozen, or lost by a proxy). So who waits `QUIET_SECONDS` for an answer asks the server for a sign
of life on a second connection: a busy one gives it, and the wait goes on.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Generator
from contextlib import suppress
from typing import Any, TypeVar

import psycopg
import sqlalchemy as sa
from psycopg.waiting import Ready
from sqlalchemy import event

from include.evergreen import silence
from include.evergreen.settings import Timeouts

T = TypeVar("T")

QUIET_SECONDS = 4.0
"""Waited for the next byte of an answer before the server is asked for a sign of life, again and again."""
LOCK_SECONDS = 30
STATEMENT_SECONDS = 600
HELLO = bytes.fromhex("0000000804d2162f")
"""SSLRequest: every server and pooler answers it with one byte, before any login."""


def answers(host: str, port: int, seconds: float) -> bool:
    """Whether a server gives a sign of life within `seconds`."""
    try:
        if host.startswith("/"):
            with socket.socket(socket.AF_UNIX) as probe:
                probe.settimeout(seconds)
                probe.connect(f"{host}/.s.PGSQL.{port}")
                probe.sendall(HELLO)
                return bool(probe.recv(1))
        with socket.create_connection((host, port), seconds) as probe:
            probe.sendall(HELLO)
            return bool(probe.recv(1))
    except OSError:
        return False


class Connection(psycopg.Connection[Any]):
    """Raises OperationalError, and is closed, once its server is found silent."""

    probe_seconds = 3.0

    def wait(self, gen: Generator[Any, Any, T], *args: Any, **options: Any) -> T:
        return super().wait(self._watched(gen), *args, **options)

    def _watched(self, gen: Generator[Any, Any, T]) -> Generator[Any, Any, T]:
        since = time.monotonic()
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted
                if ready != Ready.NONE:
                    since = time.monotonic()
                elif time.monotonic() - since > QUIET_SECONDS or silence.rests(self._address) is not None:
                    self._ask()
                    since = time.monotonic()
                wanted = gen.send(ready)
        except StopIteration as end:
            found: T = end.value
            return found

    @property
    def _address(self) -> str:
        return f"{self.info.host}:{self.info.port}"

    def _ask(self) -> None:
        if silence.rests(self._address) is None:
            if answers(self.info.host, self.info.port, self.probe_seconds):
                return
            silence.found(self._address)
        address = self._address
        self.pgconn.finish()
        raise psycopg.OperationalError(f"expected an answer from {address}, found it silent")


def watch(engine: sa.Engine, timeouts: Timeouts | None = None) -> None:
    """Bound every wait of an engine on PostgreSQL; on another database nothing changes.

    With psycopg2 only the connecting is bounded, and hosts that are gone.
    """
    if engine.dialect.name != "postgresql":
        return
    connect_seconds = (timeouts or Timeouts()).connect

    def connect(dialect: Any, _: Any, arguments: Any, options: dict[str, Any]) -> Any:
        options.setdefault("connect_timeout", max(2, int(connect_seconds)))
        for name, value in (("idle", 10), ("interval", 5), ("count", 3)):
            options.setdefault(f"keepalives_{name}", value)
        options.setdefault("tcp_user_timeout", 10_000)
        server = f"{options.get('host')}:{options.get('port') or 5432}"
        if silence.rests(server) is not None:
            raise dialect.loaded_dbapi.OperationalError(f"expected an answer from {server}, found it silent")
        try:
            made = (Connection if dialect.driver == "psycopg" else dialect.loaded_dbapi).connect(*arguments, **options)
        except psycopg.errors.ConnectionTimeout:
            silence.found(server)
            raise
        with made.cursor() as cursor:
            cursor.execute(
                f"set time zone 'UTC'; set lock_timeout = '{LOCK_SECONDS}s'; "
                f"set statement_timeout = '{STATEMENT_SECONDS}s'; set tcp_keepalives_idle = 10; "
                "set tcp_keepalives_interval = 5; set tcp_keepalives_count = 3; set tcp_user_timeout = 10000"
            )
        with suppress(AttributeError):
            made.probe_seconds = connect_seconds
        made.commit()
        return made

    event.listen(engine, "do_connect", connect)
