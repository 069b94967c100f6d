"""`make sql`: one query on the embedded mart, read only."""

from __future__ import annotations

import sqlite3
import sys
from contextlib import closing

from rich.console import Console
from rich.table import Table

from include.evergreen.local.layout import Layout
from include.evergreen.mart.database import read_only_uri

MAX_ROWS = 1000


def main(layout: Layout, query: str) -> int:
    """Print the answer as a table. Exit code 1 with the database's own message when it is refused."""
    if not query.strip():
        print('expected a query: make sql Q="select * from flight_delay_current limit 5"', file=sys.stderr)
        return 2
    if not layout.mart_db.is_file():
        print(f"expected the mart at {layout.mart_db}, found none: run `make demo` first", file=sys.stderr)
        return 1
    try:
        with closing(sqlite3.connect(read_only_uri(layout.mart_db), uri=True)) as connection:
            cursor = connection.execute(query)
            rows = cursor.fetchmany(MAX_ROWS + 1)
            names = [column[0] for column in cursor.description or []]
    except (sqlite3.Error, sqlite3.Warning) as error:
        print(f"the mart refused the query: {error}", file=sys.stderr)
        return 1
    table = Table(*names)
    for row in rows[:MAX_ROWS]:
        table.add_row(*("" if value is None else str(value) for value in row))
    Console().print(table, markup=False)
    if len(rows) > MAX_ROWS:
        print(f"the first {MAX_ROWS} rows", file=sys.stderr)
    return 0
