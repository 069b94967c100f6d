"""`make ledger`: the decisions of the embedded mart as a story, newest last, read only."""

from __future__ import annotations

import argparse
import json
import sqlite3
import sys
from contextlib import closing
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from include.evergreen.local.layout import Layout

LIMIT = 50
GOOD = {"accepted", "approved", "promoted", "allowed", "released", "ok"}
BAD = {"refused", "rejected", "cannot_decide", "halted", "broken_data"}


def main(layout: Layout, argv: list[str], console: Console | None = None) -> int:
    """Print the last decisions: date, kind, outcome, actor, reasons. Exit code 1 when there is no mart."""
    wanted = _arguments(argv)
    if not layout.mart_db.is_file():
        print(f"expected the mart at {layout.mart_db}, found none: run `make demo` first", file=sys.stderr)
        return 1
    try:
        rows, kinds = _read(layout, wanted)
    except sqlite3.Error as error:
        print(f"the mart refused the query: {error}", file=sys.stderr)
        return 1
    if not rows:
        asked = " ".join(filter(None, (wanted.kind, f"of {wanted.model}" if wanted.model else None)))
        held = ", ".join(f"{count} {kind}" for kind, count in kinds) or "nothing yet"
        print(f"expected decisions{f' ({asked})' if asked else ''}, found none; the ledger holds: {held}")
        return 0
    (console or Console()).print(_table(rows))
    return 0


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make ledger", description="Decisions, newest last")
    parser.add_argument("--model", help="of this model or source")
    parser.add_argument("--kind", help="gate, promotion, approval, rollback, rebuild, holdout, verdict, retrain, ...")
    parser.add_argument("--limit", type=_positive, default=LIMIT, help=f"how many, default {LIMIT}")
    return parser.parse_args(argv)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number of decisions, at least 1, found {text!r}")
    return int(text)


def _read(layout: Layout, wanted: argparse.Namespace) -> tuple[list[sqlite3.Row], list[tuple[str, int]]]:
    """The last decisions as they were recorded, oldest first, and how many of each kind there are at all."""
    rules = {"subject = ?": wanted.model, "kind = ?": wanted.kind}
    rules = {rule: value for rule, value in rules.items() if value}
    where = f"where {' and '.join(rules)}" if rules else ""
    with closing(sqlite3.connect(f"{layout.mart_db.as_uri()}?mode=ro", uri=True, timeout=10)) as connection:
        connection.row_factory = sqlite3.Row
        rows = connection.execute(
            f"select * from ledger {where} order by id desc limit ?", (*rules.values(), wanted.limit)
        ).fetchall()
        kinds = connection.execute("select kind, count(*) from ledger group by kind order by kind").fetchall()
    return rows[::-1], [(kind, count) for kind, count in kinds]


def _table(rows: list[sqlite3.Row]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    several = len({row["subject"] for row in rows}) > 1
    table.add_column("as of", no_wrap=True)
    if several:
        table.add_column("about", overflow="fold")
    table.add_column("kind", no_wrap=True)
    table.add_column("outcome", no_wrap=True)
    table.add_column("actor", overflow="fold")
    table.add_column("reasons", overflow="fold", ratio=1)
    for row in rows:
        reasons: list[Any] = json.loads(row["reasons"])
        outcome = row["outcome"]
        style = "green" if outcome in GOOD else "red" if outcome in BAD else "yellow"
        table.add_row(
            row["as_of"],
            *([Text(row["subject"])] if several else []),
            row["kind"],
            Text(outcome, style=style),
            Text(row["actor"]),
            Text("\n".join(map(str, reasons))),
        )
    return table
