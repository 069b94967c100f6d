"""DuckDB in memory, over Arrow: features, casts, accounting. The one place that opens it."""

from __future__ import annotations

import json
import os
from functools import cache
from typing import Any

import duckdb

from include.evergreen.errors import SpecError


def connect(settings: str = "") -> duckdb.DuckDBPyConnection:
    """An in-memory DuckDB whose answers depend on its inputs alone: UTC, two threads.

    SQL of a spec runs here: it sees what is registered, and reaches no file, no network and no setting. What does not
    fit into memory is still spilled to disk.

    Connections of a process share a database, 13 ms sooner than one of their own; what is registered in one, and its
    temporary tables, no other sees.

    Args:
        settings: `set` statements to run before the settings are locked, in a database of its own.
    """
    return _opened(settings) if settings else _shared(os.getpid()).cursor()


def _opened(settings: str) -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect()
    connection.execute("set global timezone = 'UTC'; set threads = 2")
    connection.execute(settings)
    connection.execute("set enable_external_access = false; set lock_configuration = true")
    return connection


@cache
def _shared(process: int) -> duckdb.DuckDBPyConnection:
    """Of one process: a fork has no threads of its parent's database, and must not close it."""
    return _opened("")


def quoted(*names: str) -> str:
    """Names of columns or tables as SQL takes them, reserved words too."""
    return ", ".join(f'"{name}"' for name in names)


def statements(connection: duckdb.DuckDBPyConnection, sql: str) -> list[dict[str, Any]]:
    """The parse trees of queries. Raises SpecError for what is no query: it could change what later ones read."""
    parsed = json.loads(connection.execute("select json_serialize_sql(?)", [sql]).fetchall()[0][0])
    if parsed["error"]:
        raise SpecError(f"expected a DuckDB query, found: {parsed['error_message']}")
    found: list[dict[str, Any]] = parsed["statements"]
    return found


def expression(connection: duckdb.DuckDBPyConnection, text: str, where: str) -> str:
    """`text` in brackets. Raises SpecError, which names `where`, unless it is one expression and nothing beside it."""
    if text not in _ALONE:
        try:
            alone = _around(connection, text) == _around(connection, "1")
        except SpecError as error:
            raise SpecError(f"{where}: expected one DuckDB expression, found {text!r}: {error}") from error
        if not alone:
            raise SpecError(f"{where}: expected one DuckDB expression, found more in {text!r}")
        _ALONE.add(text)
    return f"({text})"


_ALONE: set[str] = set()
"""Texts that were found to be one expression: those of specs, asked for every part of a batch."""


def _around(connection: duckdb.DuckDBPyConnection, inner: str) -> tuple[int, Any]:
    """How many columns a text selects, and what else its query holds."""
    found = statements(connection, f"select ({inner})")
    node = found[0]["node"]
    beside = {name: value for name, value in node.items() if name != "select_list"}
    return len(found) * len(node.get("select_list", [])), beside
