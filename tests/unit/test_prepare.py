"""`prepare managed`: what is left to do where a cloud made databases, buckets and logins."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from include.evergreen.errors import SettingsError, Unavailable
from include.evergreen.local.prepare import managed

AIRFLOW = '#!/bin/sh\necho "$@" >> "$CALLS"\n[ "$1" != "$FAILS" ]\n'


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where an `airflow` that only writes down its arguments writes them; FAILS names a verb that fails."""
    program = tmp_path / "airflow"
    program.write_text(AIRFLOW)
    program.chmod(0o755)
    for name, value in {
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
        "CALLS": str(tmp_path / "calls"),
        "FAILS": "none",
        "MLFLOW_BACKEND_STORE_URI": f"sqlite:///{tmp_path}/mlflow.db",
        "EVERGREEN_MART_URI": f"sqlite:///{tmp_path}/mart.db",
    }.items():
        monkeypatch.setenv(name, value)
    return tmp_path / "calls"


def tables(path: Path) -> set[str]:
    with closing(sqlite3.connect(path)) as connection:
        return {name for (name,) in connection.execute("select name from sqlite_master")}


def test_schemas_and_settings_are_made_and_nothing_else(calls: Path) -> None:
    managed()
    assert {"ledger", "flight_delay_current"} <= tables(calls.parent / "mart.db")
    assert "registered_models" in tables(calls.parent / "mlflow.db")
    said = {" ".join(line.split()[:2]) for line in calls.read_text().splitlines()}
    assert said == {"db migrate", "connections import", "pools import", "variables import"}


@pytest.mark.parametrize("verb", ["db", "pools"])
def test_a_failure_of_airflow_is_said(calls: Path, monkeypatch: pytest.MonkeyPatch, verb: str) -> None:
    monkeypatch.setenv("FAILS", verb)
    with pytest.raises(Unavailable, match="airflow"):
        managed()


@pytest.mark.parametrize("missing", ["MLFLOW_BACKEND_STORE_URI", "EVERGREEN_MART_URI"])
def test_a_missing_address_is_said(calls: Path, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    monkeypatch.delenv(missing)
    with pytest.raises(SettingsError, match=missing):
        managed()
