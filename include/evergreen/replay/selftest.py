"""`make gate-selftest`: the gate's answers to a twin, worse models and a better one, on a model's own history."""

from __future__ import annotations

import argparse
import datetime as dt
import tempfile
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from include.evergreen.promotion.selftest import EXPECTED, SelfTest, run
from include.evergreen.replay.world import History, history

SHARE = 0.4


def measure(past: History, as_of: dt.date, trials: int, console: Console) -> SelfTest:
    """Run the self-test on the history before `as_of`. Raises NotEnoughData."""
    from include.evergreen.features.build import features, labelled, labels

    spec, until = past.model, as_of - dt.timedelta(days=1)
    since = max(spec.start_date, as_of - dt.timedelta(days=spec.training.window_days))
    with tempfile.TemporaryDirectory() as folder:
        lake = past.platform(Path(folder)).lake
        rows = labelled(features(lake, spec, since, until), labels(lake, spec, since, until, cut=as_of), spec)
    with Progress(console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(f"trials as of {as_of}", total=None)
        return run(spec, rows, as_of, trials=trials, report=lambda n, m: progress.update(task, completed=n, total=m))


def main(arguments: argparse.Namespace) -> int:
    """Print the answers. Exit code 1 when a twin or a worse model was accepted more often than the confidence allows,
    or a better one was refused more often than not."""
    console = Console()
    past = history(arguments.model, arguments.var)
    spec = past.model
    days = (spec.end_date or past.last) - spec.start_date
    as_of = arguments.as_of or spec.start_date + dt.timedelta(days=round(days.days * SHARE))
    found = measure(past, as_of, arguments.resamples, console)
    table = Table("rival", "expected", "accepted", f"gain in {spec.gate.metric}", "lower bound", "refused because")
    for t in found.trials:
        why = ", ".join(f"{n}x {reason}" for reason, n in sorted(t.reasons.items(), key=lambda item: -item[1])[:3])
        table.add_row(
            t.rival.replace("_", " "),
            "yes" if EXPECTED[t.rival] else "no",
            f"{t.accepted} of {t.trials}",
            f"{t.gains.mean():+.4f}",
            f"{t.lows.mean():+.4f}",
            why,
        )
    console.print(table)
    allowed = 1 - spec.gate.confidence
    console.print(
        f"{spec.name} as of {as_of}: {found.rows:,} rows of {found.fresh_days} fresh and {found.frozen_days} frozen "
        f"days.\n"
        f"False accepts: {found.false_accepts:.1%} (confidence allows {allowed:.1%}). "
        f"False rejects: {found.false_rejects:.1%}.\n"
        f"Smallest gain that this holdout sees in four of five trials: {found.smallest_gain:.4f} {spec.gate.metric}.",
        soft_wrap=True,
    )
    return int(found.false_accepts > allowed or found.false_rejects > 1 / 2)
