"""One JSON object on the state of the stack and of the loop, also when the stack is down. Standard library only."""

from __future__ import annotations

import json
import sqlite3
import sys
import urllib.error
import urllib.request
from contextlib import closing
from typing import Any

from include.evergreen.local.layout import PROJECT, Layout, full_disk

UP, DOWN = "up", "down"


def _get(url: str, timeout: float) -> tuple[int, bytes]:
    """Status and body; status 0 when nothing answers."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=timeout) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, b""
    except OSError:
        return 0, b""


def services(layout: Layout, timeout: float = 3) -> dict[str, str]:
    """Each part: up or down, by what it answers."""
    code, body = _get(f"{layout.ui_url}/api/v2/monitor/health", timeout)
    try:
        health: dict[str, Any] = json.loads(body) if code == 200 else {}
    except ValueError:
        health = {}
    found = {
        "object-store": UP if _get(layout.s3_url, timeout)[0] else DOWN,
        "api-server": UP if health else DOWN,
        "log-server": UP if _get(f"http://127.0.0.1:{layout.ports['logs']}/", timeout)[0] else DOWN,
    }
    for part in ("scheduler", "dag_processor", "triggerer"):
        healthy = (health.get(part) or {}).get("status") == "healthy"
        found[part.replace("_", "-")] = UP if healthy else DOWN
    return found


def loop(layout: Layout) -> dict[str, Any]:
    """What the mart and the ledger say of the loop; empty numbers before the first run."""
    empty: dict[str, Any] = {
        "tables": {},
        "stopped": [],
        "champion": None,
        "champions": {},
        "partitions_scored": 0,
        "scored": {"first": None, "last": None, "rows": 0},
        "verdicts": {},
        "retrains": {"asked": 0, "allowed": 0, "refused": 0, "halted": 0},
        "retrain_decisions": [],
    }
    if not layout.mart_db.is_file():
        return empty
    with closing(sqlite3.connect(f"{layout.mart_db.as_uri()}?mode=ro", uri=True, timeout=10)) as connection:
        connection.row_factory = sqlite3.Row
        there = {row[0] for row in connection.execute("select name from sqlite_master where type = 'table'")}
        if not {"ingest_batches", "champions", "scorings", "monitorings", "ledger"} <= there:
            return empty
        return {**empty, **_loop(connection)}


def _loop(connection: sqlite3.Connection) -> dict[str, Any]:
    tables = {
        row["table_name"]: {key: row[key] for key in ("in", "trusted", "quarantined", "duplicates")}
        for row in connection.execute(
            'select table_name, sum(rows_in) as "in", sum(trusted) as trusted, sum(quarantined) as quarantined, '
            "sum(duplicates) as duplicates from ingest_batches where status = 'published' group by table_name "
            "order by table_name"
        )
    }
    stopped = [
        {"table": row["table_name"], "partition": row["partition_date"], "reasons": json.loads(row["reasons"])}
        for row in connection.execute(
            "select table_name, partition_date, reasons from ingest_batches where status <> 'published' order by 1, 2"
        )
    ]
    champions = {
        row["model"]: {
            "model": row["model"],
            "version": row["version"],
            "effective_from": row["effective_from"],
            "metrics": json.loads(row["metrics"]),
        }
        for row in connection.execute("select * from champions order by effective_from, promoted_at")
    }
    scored = connection.execute(
        "select count(*) as n, min(as_of) as first, max(as_of) as last, coalesce(sum(rows), 0) as rows "
        "from scorings where is_current"
    ).fetchone()
    judged = connection.execute("select model, as_of, verdict from monitorings order by as_of, model").fetchall()
    many = len({row["model"] for row in judged}) > 1
    retrains = [
        {
            "model": row["subject"],
            "as_of": row["as_of"],
            "outcome": row["outcome"],
            "reasons": json.loads(row["reasons"]),
        }
        for row in connection.execute("select * from ledger where kind = 'retrain' order by as_of, id")
    ]
    outcomes = [item["outcome"] for item in retrains]
    return {
        "tables": tables,
        "stopped": stopped,
        "champion": next(reversed(list(champions.values())), None),
        "champions": champions,
        "partitions_scored": scored["n"],
        "scored": {key: scored[key] for key in ("first", "last", "rows")},
        "verdicts": {(f"{r['model']}|{r['as_of']}" if many else r["as_of"]): r["verdict"] for r in judged},
        "retrains": {
            "asked": len(outcomes),
            "allowed": outcomes.count("allowed"),
            "refused": outcomes.count("refused"),
            "halted": outcomes.count("halted"),
        },
        "retrain_decisions": retrains,
    }


def status(layout: Layout) -> dict[str, Any]:
    """Services, endpoints, the disk, and the loop, which is left out when a full disk keeps the mart from being read.

    Raises sqlite3.Error when the mart cannot be read for another reason.
    """
    found, full = services(layout), full_disk(layout.var)
    try:
        numbers = loop(layout)
    except sqlite3.Error:
        if not full:
            raise
        numbers = {}
    return {
        "running": all(state == UP for state in found.values()),
        "services": found,
        "endpoints": {
            "ui": layout.ui_url,
            "s3": layout.s3_url,
            "mart": str(layout.mart_db),
            "logs": str(layout.logs),
            "project": str(PROJECT),
        },
        "disk": full or "ok",
        **numbers,
    }


def main() -> int:
    """Print the status as JSON; exit code 0 whether or not the stack is up."""
    json.dump(status(Layout.from_env()), sys.stdout, indent=2)
    print()
    return 0
