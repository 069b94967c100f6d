"""`make time-machine`: run what has not run yet, show how far it is, write the page."""

from __future__ import annotations

import argparse
import datetime as dt
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from include.evergreen.replay import machine, story
from include.evergreen.replay.selftest import measure as gate_selftest
from include.evergreen.replay.world import History, history
from include.evergreen.specs import PROJECT, models

TRIALS = 200
OUTSIDE = ("health/", "local/", "orchestration/", "web/")
"""Rooms of the engine that a replay does not enter."""


def inputs(past: History) -> str:
    """A hash of all that a replay depends on: the code of the engine and the source, the specs, the history's dates."""
    digest = hashlib.sha256(f"{past.model.hash} {past.source.hash} {past.first} {past.last}".encode())
    engine, source = PROJECT / "include" / "evergreen", PROJECT / "include" / "sources" / past.source.name
    for path in [*sorted(engine.rglob("*.py")), *sorted(source.rglob("*.py"))]:
        name = path.relative_to(engine if path.is_relative_to(engine) else source).as_posix()
        if not name.startswith(OUTSIDE) and name not in ("replay/story.py", "replay/cli.py"):
            digest.update(name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def run(past: History, folder: Path, progress: Progress) -> story.Found:
    """Run every scenario that the journal in `folder` does not hold yet."""

    def lived(scenario: machine.Scenario) -> tuple[machine.Scenario, machine.Life]:
        task = progress.add_task(scenario.name, total=len(scenario.days))
        life = machine.lived(past, scenario, folder, lambda _: progress.advance(task))
        progress.update(task, completed=len(scenario.days))
        return scenario, life

    def once(name: str, total: int, make: Callable[[Callable[..., None]], Any]) -> Any:
        task = progress.add_task(name, total=total)
        with machine.journal(folder, name) as (kept, keep):
            if kept is None:
                kept = make(lambda *_: progress.advance(task))
                keep(kept)
        progress.update(task, completed=total)
        return kept

    as_of = past.model.calibration.as_of if past.model.calibration else past.first
    policies = [lived(scenario) for scenario in machine.policies(past)]
    faults = [lived(scenario) for scenario in machine.faults(past)]
    cases = 3 * machine.TOP * len(machine.SHIFTS)
    shifts = once("shifts", cases, lambda s: machine.shifts(past, folder / "shifts.run", s))
    months = past.model.calibration.months if past.model.calibration else 0
    placebo = once("placebo", months, lambda s: machine.placebo_alarms(past, folder / "placebo.run", s))
    selftest = once("gate", 1, lambda _: _selftest(past, as_of))
    return story.Found(past.model, policies, faults, shifts, placebo, selftest)


def _selftest(past: History, as_of: dt.date) -> dict[str, Any]:
    found = gate_selftest(past, as_of, TRIALS, Console(quiet=True))
    return {
        "false_accepts": found.false_accepts,
        "false_rejects": found.false_rejects,
        "smallest_gain": found.smallest_gain,
        "fresh_days": found.fresh_days,
        "frozen_days": found.frozen_days,
        "trials": TRIALS,
        "rows": [
            [t.rival.replace("_", " "), f"{t.accepted} of {t.trials}", f"{t.gains.mean():+.4f}"] for t in found.trials
        ],
    }


def main(arguments: argparse.Namespace) -> int:
    """Write the page and its plot. Exit code 0 also when a bar is not met: the page says so."""
    console = Console()
    past = history(arguments.model, arguments.var)
    folder = arguments.var / f"machine-{past.model.name}-{inputs(past)}"
    columns = (TextColumn("{task.description:<18}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
               TimeRemainingColumn())  # fmt: skip
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        found = run(past, folder, progress)
    name = "time-machine" if len(models()) == 1 else f"time-machine-{past.model.name}"
    page, picture = (Path(arguments.docs) / f"{name}{suffix}" for suffix in (".md", ".svg"))
    story.plot(found, picture)
    page.write_text(story.text(found, picture.name), encoding="utf-8")
    table = Table("bar", "measured", "met")
    for bar, measured, met in story.bars(found):
        table.add_row(bar, measured, "yes" if met else "no")
    console.print(table)
    console.print(f"Written: {page}")
    return 0
