"""`make ledger`, and the query of the operator's guide that says why a version is champion."""

from __future__ import annotations

import datetime as dt
import re
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from include.evergreen.local import ledger, sql
from include.evergreen.local.layout import Layout
from include.evergreen.mart.store import Mart
from include.evergreen.specs import PROJECT

DAY = dt.date(2013, 6, 1)
FENCED = re.compile(r'^```sh\nmake sql Q="(select .*?)"\n```', re.MULTILINE | re.DOTALL)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout.from_env({"EVERGREEN_VAR": str(tmp_path / "var")})


@pytest.fixture
def mart(layout: Layout) -> Mart:
    layout.make_folders()
    made = Mart(f"sqlite:///{layout.mart_db}")
    made.create()
    return made


def append(mart: Mart, days: int, kind: str, outcome: str, run_id: str, **changes: Any) -> None:
    values = {
        "kind": kind,
        "subject": "flight_delay",
        "as_of": DAY + dt.timedelta(days=days),
        "outcome": outcome,
        "reasons": [f"{kind} of {run_id}"],
        "evidence": {},
        "actor": "gate",
        "run_id": run_id,
    }
    mart.append_decision(**{**values, **changes})


def printed(layout: Layout, *argv: str, width: int = 120) -> list[list[str]]:
    """The printed lines, split at the gaps between columns; without heading and rule."""
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        assert ledger.main(layout, list(argv), console) == 0
    lines = [re.split(r"\s{2,}", line.strip()) for line in capture.get().splitlines() if line.strip()]
    return lines[2:]


def test_the_story_is_in_the_order_of_the_ledger_newest_last(layout: Layout, mart: Mart) -> None:
    append(mart, 5, "verdict", "label_drift", "monitor-5", actor="monitor")
    append(mart, 5, "retrain", "allowed", "monitor-5", actor="monitor")
    append(mart, 1, "gate", "refused", "train-1", reasons=["auc [red] beats nobody", "a slice drops"])
    assert printed(layout) == [
        ["2013-06-06", "verdict", "label_drift", "monitor", "verdict of monitor-5"],
        ["2013-06-06", "retrain", "allowed", "monitor", "retrain of monitor-5"],
        ["2013-06-02", "gate", "refused", "gate", "auc [red] beats nobody"],
        ["a slice drops"],
    ]
    assert [line[1] for line in printed(layout, "--limit", "2") if len(line) > 1] == ["retrain", "gate"]
    assert [line[1] for line in printed(layout, "--kind", "verdict")] == ["verdict"]


def test_long_reasons_are_wrapped_and_nothing_is_cut(layout: Layout, mart: Mart) -> None:
    words = [f"word{number}" for number in range(60)]
    append(mart, 0, "gate", "cannot_decide", "train-0", reasons=[" ".join(words)], actor="somebody-with-a-long-name")
    lines = printed(layout, width=80)
    assert len(lines) > 5
    assert re.findall(r"word\d+", " ".join(line[-1] for line in lines)) == words


def test_two_models_are_told_apart_and_one_can_be_asked_for(layout: Layout, mart: Mart) -> None:
    append(mart, 0, "gate", "accepted", "train-0")
    append(mart, 0, "gate", "refused", "train-0", subject="another_model")
    assert [line[1] for line in printed(layout)] == ["flight_delay", "another_model"]
    assert printed(layout, "--model", "another_model") == [
        ["2013-06-01", "gate", "refused", "gate", "gate of train-0"],
    ]


def test_nothing_found_says_what_there_is(layout: Layout, mart: Mart, capsys: pytest.CaptureFixture[str]) -> None:
    assert ledger.main(layout, []) == 0
    assert capsys.readouterr().out == "expected decisions, found none; the ledger holds: nothing yet\n"
    append(mart, 0, "gate", "accepted", "train-0")
    append(mart, 0, "promotion", "promoted", "train-0")
    assert ledger.main(layout, ["--kind", "gates", "--model", "flight_delay"]) == 0
    expected = "expected decisions (gates of flight_delay), found none; the ledger holds: 1 gate, 1 promotion\n"
    assert capsys.readouterr().out == expected


def test_without_a_mart_it_says_what_to_do_and_makes_none(layout: Layout, capsys: pytest.CaptureFixture[str]) -> None:
    assert ledger.main(layout, []) == 1
    assert f"expected the mart at {layout.mart_db}, found none: run `make demo` first" in capsys.readouterr().err
    assert not layout.mart_db.exists()
    layout.make_folders()
    with sqlite3.connect(layout.mart_db) as other:
        other.execute("create table t (a)")
    assert ledger.main(layout, []) == 1
    assert "the mart refused the query: no such table: ledger" in capsys.readouterr().err


@pytest.mark.parametrize("limit", ["0", "-3", "many"])
def test_a_limit_is_a_number_of_rows(layout: Layout, limit: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        ledger.main(layout, ["--limit", limit])
    assert f"expected a number of decisions, at least 1, found '{limit}'" in capsys.readouterr().err


# --- the query of the guide ------------------------------------------------------------------------------------------


def guide_query() -> str:
    (query,) = FENCED.findall((PROJECT / "docs/operator.md").read_text(encoding="utf-8"))
    joined = " ".join(str(query).replace("\\\n", " ").split())  # as the shell joins it
    assert not set(joined) & set('$`"\\'), "make and the shell would change it"
    return joined


def fill(mart: Mart) -> None:
    """Version 3, then version 4 as a person approved it, a dry run, a rollback to it; and what is not about it."""
    append(mart, 0, "gate", "accepted", "train-a")
    append(mart, 0, "promotion", "promoted", "train-a", evidence={"version": 3})
    append(mart, 9, "verdict", "label_drift", "monitor-b", evidence={"version": 4})
    append(mart, 9, "gate", "accepted", "train-b", evidence={"challenger": {"auc": 0.7}})
    append(mart, 9, "approval", "approved", "approve-b", evidence={"version": 4}, actor="admin")
    append(mart, 9, "promotion", "promoted", "train-b", evidence={"version": 4, "former_version": 3}, actor="admin")
    append(mart, 9, "gate", "accepted", "train-b", subject="another_model")
    append(mart, 9, "promotion", "promoted", "train-b", subject="another_model", evidence={"version": 4})
    append(mart, 20, "gate", "refused", "train-c")
    append(mart, 25, "rollback", "rolled_back", "back", evidence={"version": 4, "withdrawn": 5}, actor="oncall")


def test_why_is_version_4_champion(layout: Layout, mart: Mart, capsys: pytest.CaptureFixture[str]) -> None:
    fill(mart)
    with sqlite3.connect(f"file:{layout.mart_db}?mode=ro", uri=True) as connection:
        rows = connection.execute(guide_query()).fetchall()
    assert [row[1:] for row in rows] == [
        ("2013-06-10", "gate", "accepted", "gate", "train-b", '["gate of train-b"]'),
        ("2013-06-10", "approval", "approved", "admin", "approve-b", '["approval of approve-b"]'),
        ("2013-06-10", "promotion", "promoted", "admin", "train-b", '["promotion of train-b"]'),
        ("2013-06-26", "rollback", "rolled_back", "oncall", "back", '["rollback of back"]'),
    ]
    with sqlite3.connect(layout.mart_db) as connection:
        (evidence,) = connection.execute("select evidence from ledger where id = ?", rows[0][:1]).fetchone()
    assert evidence == '{"challenger": {"auc": 0.7}}'
    assert sql.main(layout, guide_query()) == 0
    assert "rolled_back" in capsys.readouterr().out
