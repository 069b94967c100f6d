"""docs/benchmarks.md and its plot."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.rows import ROWS, Bound, Found, Row

LIBRARIES = ("apache-airflow", "duckdb", "evidently", "great-expectations", "mlflow", "numpy", "pandas", "pyarrow",
             "pyiceberg", "xgboost-cpu")  # fmt: skip
MODELS = 1_000
"""A size up to this one counts models, not rows."""
BUSY = 0.3
"""Cores. With more kept busy by others, seconds are not the side's own."""


def machine() -> list[tuple[str, str]]:
    """What the numbers were measured on."""
    info = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    names = [line.split(":", 1)[1].strip() for line in info.splitlines() if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return [
        ("processor", f"{os.cpu_count()} cores, {names[0] if names else platform.machine()}"),
        ("memory", f"{memory:.0f} GiB"),
        ("kernel", f"{platform.system()} {platform.release()}"),
        ("Python", platform.python_version()),
        ("libraries", ", ".join(f"{name} {version(name)}" for name in LIBRARIES)),
    ]


def load(found: Mapping[str, Found]) -> tuple[str, str]:
    """What else the machine did while it measured."""
    every = [
        one["others"] for row in found.values() for runs in row.samples.values() for one in runs if "others" in one
    ]
    told = f"{statistics.median(every):.1f} (median), at most {max(every):.1f}" if every else "not recorded"
    return "load", f"cores busy for others during the runs: {told}"


def _missed(found: Mapping[str, Found]) -> list[str]:
    """Every bound that is missed, and why."""
    lines = [
        f"- `{name}`, {told(bound, found[name])}. {bound.cause or 'The cause is not known.'}"
        for name, row in ROWS.items()
        for bound in row.bounds
        if bound.met(found[name]) is False
    ]
    return ["Missed:", "", *lines, ""] if lines else []


def _number(value: float) -> str:
    return (
        f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.2f}" if value >= 0.01 else f"{value:.4f}"
    )


def _amount(value: float, unit: str) -> str:
    return f"{_number(value)}{unit}" if unit in ("", "x") else f"{_number(value)} {unit}"


def limit(bound: Bound) -> str:
    """The bound in words."""
    return f"at {'least' if bound.at_least else 'most'} {_amount(bound.limit, bound.unit)}"


def told(bound: Bound, found: Found) -> str:
    """A bound and what was measured."""
    return f"{bound.says}: {_amount(bound.value(found), bound.unit)}, {limit(bound)}"


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def doubts(row: Row, found: Found) -> str:
    """Why the figures of a row settle nothing yet: too few runs, or a machine that was busy with other work."""
    wanted = [run for run in row.runs if not run.large]
    short = [run for run in wanted if len(found.samples.get(run.name, [])) < run.repeats]
    told = [f"{len(short)} of {len(wanted)} sides have too few runs"] if short else []
    samples = [sample for run in wanted for sample in found.samples.get(run.name, [])]
    if any("others" not in sample for sample in samples):
        told.append("load not recorded")
    elif any(sample["others"] > BUSY for sample in samples):
        told.append("the machine was busy")
    return ", ".join(told)


def _bounds(found: Mapping[str, Found]) -> list[list[str]]:
    lines = []
    for name, row in ROWS.items():
        for at, bound in enumerate(row.bounds):
            met = bound.met(found[name])
            measured = "not measured" if met is None else _amount(bound.value(found[name]), bound.unit)
            answer = {True: "yes", False: "**no**", None: ""}[met]
            if met is not None and (doubt := doubts(row, found[name])):
                answer += f", provisional: {doubt}"
            head = [f"`{name}`: {row.what}", row.against] if at == 0 else ["", ""]
            lines.append([*head, bound.says, measured, limit(bound), answer])
    return lines


def _processor(samples: list[dict[str, Any]]) -> str:
    known = [sample["processor"] for sample in samples if sample.get("processor")]
    return f"{statistics.median(known):.2f} s" if known else ""


def _others(samples: list[dict[str, Any]]) -> str:
    known = [sample["others"] for sample in samples if "others" in sample]
    return f"{min(known):.1f} to {max(known):.1f}" if known else ""


def _samples(row: Row, found: Found) -> list[str]:
    lines = []
    for run in row.runs:
        samples = found.samples.get(run.name)
        if not samples:
            continue
        peak = found.median(run.name, "peak_mib")
        rows = samples[-1].get("rows")
        lines.append(
            [
                run.side,
                f"{rows:,}" if rows else f"{run.scale:,} models",
                f"{found.median(run.name):.2f} s",
                ", ".join(f"{sample['seconds']:.2f}" for sample in samples),
                _processor(samples),
                f"{peak:,.0f} MiB" if peak else "",
                _others(samples),
            ]
        )
    return _table(
        ["side", "size", "median", "all runs", "processor time", "peak memory", "cores busy for others"], lines
    )


def _laws(found: Mapping[str, Found]) -> dict[str, list[tuple[int, float]]]:
    """Stage -> (rows or models, median seconds) of what was measured at two sizes or more."""
    laws = {}
    for name, row in ROWS.items():
        points = [
            (found[name].last(run).get("rows") or int(run.partition("@")[2]), found[name].median(run))
            for run in row.law
            if run in found[name].samples
        ]
        if len(points) > 1:
            laws[name] = points
    return laws


def plot(laws: Mapping[str, list[tuple[int, float]]], path: Path) -> None:
    """Seconds by rows and stage, both axes logarithmic; SVG without a date in it."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    with pyplot.rc_context({"svg.hashsalt": "evergreen", "font.size": 9, "svg.fonttype": "none"}):
        figure, all_axes = pyplot.subplots(
            1, len(laws), figsize=(2.4 * len(laws), 2.6), layout="constrained", squeeze=False
        )
        for axes, (name, points) in zip(all_axes[0], laws.items(), strict=True):
            rows, seconds = zip(*points, strict=True)
            axes.plot(rows, seconds, marker="o", color="#2f6f4f")
            linear = [seconds[0] * number / rows[0] for number in rows]
            axes.plot(rows, linear, color="#999999", linestyle=":", linewidth=1)
            axes.set_xscale("log")
            axes.set_yscale("log")
            axes.set_title(name, fontsize=9, loc="left")
            axes.set_xlabel("rows" if rows[-1] > MODELS else "models")
            axes.grid(alpha=0.25, which="both")
            axes.spines[["top", "right"]].set_visible(False)
        all_axes[0][0].set_ylabel("seconds (dotted: linear)")
        figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})
        pyplot.close(figure)


def write(found: Mapping[str, Found], path: Path) -> None:
    """The page, whatever was measured so far."""
    lines = [
        "# Benchmarks",
        "",
        "Written by `make bench`. Every sample is a process of its own, warm (libraries loaded, first use made) before "
        "the clock starts; the two sides take turns; figures are medians. One row again: `make bench ROW=training`.",
        "",
        *_table(["what", "against", "measure", "measured", "bound", "met"], _bounds(found)),
        "",
        *_missed(found),
        "## The machine",
        *_table(["part", "found"], [list(fact) for fact in [*machine(), load(found)]]),
        "",
        "Data: the flights of 2013, repeated with dates shifted by whole weeks; `engine` is this project on a real S3 "
        "endpoint (rclone), Iceberg and SQLite; peak memory is that of the side's process. Labelled "
        "rows are 95% of the flights: 3.2 M where flights are 3.4 M. "
        "Other work on the machine slows both sides; how much there was stands beside the runs.",
        "",
    ]
    for name, row in ROWS.items():
        if not found[name].samples:
            continue
        lines += [f"## {name}", *_samples(row, found[name]), ""]
        try:
            lines += [note for told_ in row.notes(found[name]) for note in (told_, "")]
        except KeyError as error:
            lines += [f"Not all sides were measured: {error.args[0]} is missing.", ""]
    laws = _laws(found)
    if laws:
        plot(laws, path.with_suffix(".svg"))
        lines += [
            "## Scaling",
            f"![Seconds by rows]({path.with_suffix('.svg').name})",
            "",
            *_table(
                ["stage", "rows or models", "times the size", "times the seconds"],
                [
                    [
                        name,
                        f"{points[0][0]:,} to {points[-1][0]:,}",
                        f"{points[-1][0] / points[0][0]:.1f}",
                        f"{points[-1][1] / points[0][1]:.1f}",
                    ]
                    for name, points in laws.items()
                ],
            ),
            "",
        ]
    path.write_text("\n".join(lines), encoding="utf-8")
