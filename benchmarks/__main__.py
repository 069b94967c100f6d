"""Run the benchmarks, write docs/benchmarks.md.

    PYTHONPATH=. .venv/bin/python -m benchmarks [row ...] [--fresh] [--large] [--page]

Each sample is a process of its own; sides take turns. Samples are kept as var/bench/<row>.json and only missing ones
are run. Missed bounds are named, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks import page
from benchmarks.rows import ROWS, Found, Run
from benchmarks.side import ROOT

PROJECT = Path(__file__).resolve().parents[1]
DOCS = PROJECT / "docs"


def kept(row: str) -> dict[str, list[dict[str, Any]]]:
    """The samples of a row so far."""
    path = ROOT / f"{row}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def sample(row: str, run: Run) -> dict[str, Any]:
    """One run of one side. OpenMP threads sleep where they wait, as in the project's workers."""
    env = {**os.environ, "PYTHONPATH": str(PROJECT), "OMP_WAIT_POLICY": "PASSIVE", "MPLBACKEND": "svg"}
    argv = [sys.executable, "-m", "benchmarks.side", row, run.side, str(run.scale)]
    done = subprocess.run(argv, env=env, cwd=PROJECT, stdout=subprocess.PIPE, text=True, check=True)  # noqa: S603
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def prepare(row: str, runs: list[Run]) -> None:
    """Make the inputs, outside of any measurement and of this process."""
    made = {
        "ingest": "data.delivery({0})",
        "scoring": "data.bundle(), data.rows({0}), data.lake_of({0})",
        "training": "data.bundle(), data.rows({0})",
        "drift": "data.bundle(), data.rows({0})",
        "features": "data.trusted()",
        "commits": "data.history()",
        "loop": "data.landed()",
        "cycle": "data.champion()",
    }
    for scale in sorted({run.scale for run in runs}) if row in made else []:
        code = f"from benchmarks import data; {made[row].format(scale)}"
        env = {**os.environ, "PYTHONPATH": str(PROJECT)}
        subprocess.run([sys.executable, "-c", code], env=env, cwd=PROJECT, check=True)  # noqa: S603


def measure(row: str, large: bool) -> None:
    """Run what is missing of a row; every sample is kept as soon as it is there."""
    runs = [run for run in ROWS[row].runs if large or not run.large]
    samples = kept(row)
    missing = [run for run in runs if len(samples.get(run.name, [])) < run.repeats]
    prepare(row, missing)
    for turn in range(max((run.repeats for run in missing), default=0)):
        for run in missing:
            if turn < len(samples.get(run.name, [])) or turn >= run.repeats:
                continue
            found = sample(row, run)
            samples.setdefault(run.name, []).append(found)
            (ROOT / f"{row}.json").write_text(json.dumps(samples, indent=1), encoding="utf-8")
            sys.stdout.write(f"{row:9} {run.name:12} {found['seconds']:8.2f} s {found['peak_mib']:7.0f} MiB\n")
            sys.stdout.flush()


def main() -> int:
    """The exit code: 1 when a bound is missed."""
    parser = argparse.ArgumentParser(prog="benchmarks")
    parser.add_argument("rows", nargs="*", metavar="row", help=", ".join(ROWS))
    parser.add_argument("--fresh", action="store_true", help="forget what was measured of these rows")
    parser.add_argument("--large", action="store_true", help="34 M rows too: 3 GB on disk, some minutes")
    parser.add_argument("--page", action="store_true", help="only write the page")
    options = parser.parse_args()
    if unknown := set(options.rows) - set(ROWS):
        parser.error(f"row: expected one of {', '.join(ROWS)}, found {', '.join(sorted(unknown))}")
    ROOT.mkdir(parents=True, exist_ok=True)
    for row in [] if options.page else options.rows or ROWS:
        if options.fresh:
            (ROOT / f"{row}.json").unlink(missing_ok=True)
        measure(row, options.large)
    found = {row: Found(kept(row)) for row in ROWS}
    page.write(found, DOCS / "benchmarks.md")
    missed = [(row, bound) for row, spec in ROWS.items() for bound in spec.bounds if bound.met(found[row]) is False]
    for row, bound in missed:
        sys.stderr.write(f"missed: {row}, {page.told(bound, found[row])}\n")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
