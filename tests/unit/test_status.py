from __future__ import annotations

import datetime as dt
import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa

from include.evergreen.local.layout import PORTS, PROJECT, Layout
from include.evergreen.local.status import loop, status
from include.evergreen.mart import schema

NOW = dt.datetime(2013, 7, 2, tzinfo=dt.UTC)
FIRST, SECOND, THIRD, FOURTH = (dt.date(2013, 7, day) for day in (1, 2, 3, 4))


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout.from_env({"EVERGREEN_VAR": str(tmp_path / "var")})


def batch(table: str, date: dt.date, status: str, *counts: int) -> dict[str, Any]:
    names = ("rows_in", "trusted", "quarantined", "duplicates")
    common = {"source": "nyc_flights", "deliveries": [], "reasons": ["why"], "run_id": "r", "recorded_at": NOW}
    return {
        "table_name": table,
        "partition_date": date,
        "status": status,
        **dict(zip(names, counts, strict=True)),
        **common,
    }


def retrain(date: dt.date, outcome: str) -> dict[str, Any]:
    told = {"reasons": [f"{outcome} because"], "evidence": {}, "actor": "policy", "run_id": "r", "decided_at": NOW}
    return {"kind": "retrain", "subject": "flight_delay", "as_of": date, "outcome": outcome, **told}


def champion(version: int, since: dt.date) -> dict[str, Any]:
    told = {"metrics": {"auc": 0.7 + version / 100}, "run_id": "r", "promoted_at": NOW}
    return {"model": "flight_delay", "effective_from": since, "version": version, **told}


def scoring(date: dt.date, version: int, current: bool) -> dict[str, Any]:
    told = {"rows": 100, "mean_probability": 0.2, "run_id": "r", "scored_at": NOW}
    return {"model": "flight_delay", "as_of": date, "version": version, "is_current": current, **told}


def verdict(date: dt.date, kind: str, model: str = "flight_delay") -> dict[str, Any]:
    told: dict[str, Any] = {"reasons": [], "columns": {}, "performance": {}, "run_id": "r", "recorded_at": NOW}
    return {"model": model, "as_of": date, "version": 1, "verdict": kind, **told}


def fill(layout: Layout, rows: dict[sa.Table, list[dict[str, Any]]]) -> None:
    layout.make_folders()
    engine = sa.create_engine(f"sqlite:///{layout.mart_db}")
    schema.metadata.create_all(engine)
    with engine.begin() as connection:
        for table, values in rows.items():
            connection.execute(sa.insert(table), values)
    engine.dispose()


def test_the_loop_as_the_mart_tells_it(layout: Layout) -> None:
    fill(
        layout,
        {
            schema.ingest_batches: [
                batch("weather", FIRST, "published", 24, 24, 0, 0),
                batch("schedules", FIRST, "published", 100, 90, 7, 3),
                batch("schedules", SECOND, "published", 50, 50, 0, 0),
                batch("weather", SECOND, "stopped", 9, 0, 9, 0),
            ],
            schema.champions: [champion(2, SECOND), champion(1, FIRST)],
            schema.scorings: [scoring(FIRST, 1, False), scoring(FIRST, 2, True), scoring(SECOND, 2, True)],
            schema.monitorings: [verdict(FIRST, "ok"), verdict(SECOND, "label_drift")],
            schema.ledger: [
                retrain(FIRST, "refused"),
                retrain(SECOND, "allowed"),
                retrain(THIRD, "halted"),
                retrain(FOURTH, "halted"),
                {**retrain(SECOND, "x"), "kind": "gate"},
            ],
        },
    )
    found = loop(layout)
    assert found["tables"] == {
        "schedules": {"in": 150, "trusted": 140, "quarantined": 7, "duplicates": 3},
        "weather": {"in": 24, "trusted": 24, "quarantined": 0, "duplicates": 0},
    }
    assert found["stopped"] == [{"table": "weather", "partition": "2013-07-02", "reasons": ["why"]}]
    assert found["champion"]["version"] == 2
    assert found["champion"]["metrics"] == {"auc": 0.72}
    assert found["partitions_scored"] == 2
    assert found["scored"] == {"first": "2013-07-01", "last": "2013-07-02", "rows": 200}
    assert found["verdicts"] == {"2013-07-01": "ok", "2013-07-02": "label_drift"}
    assert found["retrains"] == {"asked": 4, "allowed": 1, "refused": 1, "halted": 2}


def test_verdicts_of_several_models_do_not_hide_each_other(layout: Layout) -> None:
    fill(layout, {schema.monitorings: [verdict(FIRST, "ok"), verdict(FIRST, "label_drift", "other")]})
    assert loop(layout)["verdicts"] == {"flight_delay|2013-07-01": "ok", "other|2013-07-01": "label_drift"}


def test_an_empty_mart_and_none_at_all_have_one_shape(layout: Layout) -> None:
    before = loop(layout)
    fill(layout, {})
    assert loop(layout) == before
    assert before["champion"] is None
    assert before["retrains"] == {"asked": 0, "allowed": 0, "refused": 0, "halted": 0}


def test_reading_changes_nothing(layout: Layout) -> None:
    loop(layout)
    assert not layout.var.exists()


def test_a_full_disk_is_said_even_when_the_mart_cannot_be_read(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    layout.make_folders()
    layout.mart_db.write_bytes(b"half a page")
    monkeypatch.setattr("include.evergreen.local.status.services", lambda _: {"object-store": "down"})
    with pytest.raises(sqlite3.DatabaseError):
        status(layout)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=0))
    found = status(layout)
    assert "found 0.0 MB" in found["disk"] and str(layout.var) in found["disk"]
    assert found["services"] == {"object-store": "down"}


def test_it_runs_on_a_bare_python_while_the_stack_is_down(layout: Layout) -> None:
    fill(layout, {schema.ingest_batches: [batch("weather", FIRST, "published", 24, 24, 0, 0)]})
    ports = {variable: str(20 + i) for i, (variable, _) in enumerate(PORTS.values())}
    bare = [sys.executable, "-S", "-m", "include.evergreen.local", "status"]
    env = {"PATH": os.defpath, "EVERGREEN_VAR": str(layout.var), **ports}
    done = subprocess.run(bare, cwd=PROJECT, env=env, capture_output=True, text=True, timeout=60, check=True)
    found = json.loads(done.stdout)
    assert found["running"] is False
    assert set(found["services"].values()) == {"down"}
    assert found["tables"]["weather"]["in"] == 24
