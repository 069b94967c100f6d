"""`make calibrate`: placebo months on a model's history; writes `thresholds.yaml` beside its `model.yaml`."""

from __future__ import annotations

import argparse
import datetime as dt
import tempfile
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from include.evergreen.drift.calibrate import Calibration, calibrate, placebo
from include.evergreen.replay.world import history
from include.evergreen.specs import PROJECT, THRESHOLDS, ModelSpec

SHARE = 0.4
"""Without a date, the first part of the history is used: what comes later stays an honest test."""


def main(arguments: argparse.Namespace) -> int:
    """Calibrate and write. Raises NotFound, NotEnoughData."""
    from include.evergreen.features.build import features, labelled, labels

    console = Console()
    past = history(arguments.model, arguments.var, calibrated=False)
    spec = past.model
    end = spec.end_date or past.last
    as_of = arguments.as_of or spec.start_date + dt.timedelta(days=round((end - spec.start_date).days * SHARE))
    with tempfile.TemporaryDirectory() as folder:
        lake = past.platform(Path(folder)).lake
        until = as_of - dt.timedelta(days=1)
        rows = features(lake, spec, spec.start_date, until)
        known = labelled(rows, labels(lake, spec, spec.start_date, until, cut=as_of), spec)
    with Progress(console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(f"placebo months before {as_of}", total=arguments.months)
        measured = placebo(
            spec, rows, known, as_of, arguments.months, arguments.seed,
            lambda done, _: progress.update(task, completed=done),
        )  # fmt: skip
    found = calibrate(measured, spec, arguments.budget)
    path = PROJECT / "include" / "models" / spec.name / THRESHOLDS
    path.write_text(document(spec, found, as_of, arguments.budget, arguments.months, arguments.seed), encoding="utf-8")
    _show(console, found, as_of, path)
    return 0


def document(spec: ModelSpec, found: Calibration, as_of: dt.date, budget: float, months: int, seed: int) -> str:
    """The text of `thresholds.yaml`."""
    content: dict[str, Any] = {
        "calibration": {
            "as_of": as_of,
            "budget": budget,
            "false_alarms": round(found.false_alarms, 3),
            "alarm_days": round(found.alarm_days, 4),
            "by_kind": {kind: round(rate, 3) for kind, rate in found.by_kind.items()},
            "multiplier": found.multiplier,
            "months": months,
            "seed": seed,
        },
        "thresholds": found.thresholds,
    }
    head = f"# Written by `make calibrate MODEL={spec.name}`. Run it again rather than edit: docs/adr/0014.\n"
    return head + yaml.safe_dump(content, sort_keys=False, default_flow_style=False)


def _show(console: Console, found: Calibration, as_of: dt.date, path: Path) -> None:
    table = Table("column", "threshold")
    for name, threshold in found.thresholds.items():
        table.add_row(name, f"{threshold:g}")
    console.print(table)
    kinds = ", ".join(f"{kind} {rate:.2f}" for kind, rate in found.by_kind.items())
    console.print(
        f"History before {as_of}. Expected false alarms a month: {found.false_alarms:.2f} ({kinds}); "
        f"{found.alarm_days:.1%} of days in alarm. Written to {path.relative_to(PROJECT)}.",
        soft_wrap=True,
    )
