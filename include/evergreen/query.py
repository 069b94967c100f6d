"""DuckDB in memory, over Arrow: features, casts, accounting. The one place that opens it."""

from __future__ import annotations

import duckdb


def connect() -> duckdb.DuckDBPyConnection:
    """An in-memory DuckDB whose answers depend on its inputs alone: UTC, two threads, no progress bar."""
    connection = duckdb.connect()
    connection.execute("set timezone = 'UTC'; set threads = 2; set enable_progress_bar = false")
    return connection
