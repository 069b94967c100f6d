"""The page of the benchmarks, and the exit code."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import __main__ as bench
from benchmarks import page, rows
from benchmarks.rows import ROWS, Bound, Found, Row, Run


def samples(**seconds: list[float]) -> Found:
    return Found(
        {name.replace("_at_", "@"): [{"seconds": s, "peak_mib": 1.0} for s in some] for name, some in seconds.items()}
    )


def test_a_bound_is_on_medians_and_unknown_without_them() -> None:
    bound = Bound("time", lambda f: f.ratio("engine@10", "bare@10"), 3.0)
    assert bound.met(samples(engine_at_10=[9, 3, 1], bare_at_10=[1, 1, 90])) is True
    assert bound.met(samples(engine_at_10=[3.1], bare_at_10=[1])) is False
    assert bound.met(samples(engine_at_10=[3.1])) is None
    fast = Bound("times as fast", lambda f: f.ratio("bare@10", "engine@10"), 30, at_least=True)
    assert fast.met(samples(engine_at_10=[1], bare_at_10=[30])) is True
    assert fast.met(samples(engine_at_10=[1], bare_at_10=[29.9])) is False


def test_every_row_has_bounds_and_a_side_for_each_run() -> None:
    from importlib import import_module

    assert set(ROWS) == {path.stem for path in Path(rows.__file__).parent.glob("*.py")} - {"__init__"}
    for name, row in ROWS.items():
        assert row.bounds
        assert {run.side for run in row.runs} <= set(import_module(f"benchmarks.rows.{name}").SIDES)
        assert set(row.law) <= {run.name for run in row.runs}


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Samples of two rows; the second misses its bound."""
    monkeypatch.setattr(bench, "ROOT", tmp_path)
    monkeypatch.setattr(bench, "DOCS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["bench", "--page"])

    def sample(seconds: float, **facts: Any) -> dict[str, Any]:
        return {"seconds": seconds, "peak_mib": 100.0, "rows": 10, "quarantined": 4, "sum": 1.0, **facts}

    ingest = {"engine@10": [sample(2.0)], "bare@10": [sample(1.0)], "engine@1": [sample(0.3, rows=1)]}
    features = {"engine@1": [sample(2.0)], "bare@1": [sample(1.0)]}
    (tmp_path / "ingest.json").write_text(json.dumps(ingest))
    (tmp_path / "features.json").write_text(json.dumps(features))
    return tmp_path


def test_a_missed_bound_is_named_and_fails(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main() == 1
    assert capsys.readouterr().err == "missed: features, time: 2x, at most 1.30x\n"


def test_the_page_is_written_all_the_same(kept: Path) -> None:
    bench.main()
    text = (kept / "benchmarks.md").read_text()
    lines = [line for line in text.splitlines() if line.startswith("| `ingest`")]
    assert lines == [
        "| `ingest`: ingest and validate one CSV of 3.4 M rows | DuckDB: the same rules by hand, `copy` to Parquet "
        "| time | 2x | at most 3x | yes, provisional: 4 of 4 sides have too few runs, load not recorded |"
    ]
    assert "| time | 2x | at most 1.30x | **no**, provisional: " in text
    assert "not measured" in text
    assert "- `features`, time: 2x, at most 1.30x. The engine gets each file of a day from an S3 server; " in text
    assert "| load | cores busy for others during the runs: not recorded |" in text
    assert "Both sides agree on quarantined: engine@10 4, bare@10 4." in text
    assert "| ingest | 1 to 10 | 10.0 | 6.7 |" in text
    assert (kept / "benchmarks.svg").read_text().startswith("<?xml")
    for fact, found in page.machine():
        assert f"| {fact} | {found} |" in text


@pytest.mark.parametrize(
    ("count", "others", "doubt"),
    [(3, 0.1, ""), (3, 1.5, "the machine was busy"), (2, 0.1, "1 of 1 sides have too few runs")],
)
def test_a_figure_settles_nothing_with_few_runs_or_on_a_busy_machine(count: int, others: float, doubt: str) -> None:
    sample = {"seconds": 1.0, "peak_mib": 1.0, "others": others}
    assert page.doubts(Row("", "", (Run("engine", 300),), ()), Found({"engine@300": [sample] * count})) == doubt
