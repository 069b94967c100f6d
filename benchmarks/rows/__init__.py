"""The rows of `make bench`: what runs, how often, and what it may cost."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

GIB = 1024
THRESHOLD = 0.1
"""Evidently's own threshold of drift."""


class Found:
    """The samples of a row: `<side>@<scale>` -> what each run of it said."""

    def __init__(self, samples: Mapping[str, list[dict[str, Any]]]) -> None:
        self.samples = samples

    def median(self, run: str, fact: str = "seconds") -> float:
        """Raises KeyError: never measured."""
        return statistics.median(sample[fact] for sample in self.samples[run])

    def ratio(self, run: str, other: str, fact: str = "seconds") -> float:
        return self.median(run, fact) / self.median(other, fact)

    def ratio_of(self, run: str, fact: str, other: str) -> float:
        return self.median(run, fact) / self.median(run, other)

    def last(self, run: str) -> dict[str, Any]:
        return self.samples[run][-1]


@dataclass(frozen=True)
class Bound:
    """`value` of the medians is at most `limit`, or at least."""

    says: str
    value: Callable[[Found], float]
    limit: float
    unit: str = "x"
    at_least: bool = False

    def met(self, found: Found) -> bool | None:
        """None where a side was never measured."""
        try:
            value = self.value(found)
        except KeyError:
            return None
        return value >= self.limit if self.at_least else value <= self.limit


@dataclass(frozen=True)
class Run:
    """One side at one scale; `large` ones run on request."""

    side: str
    scale: int
    repeats: int = 3
    large: bool = False

    @property
    def name(self) -> str:
        return f"{self.side}@{self.scale}"


@dataclass(frozen=True)
class Row:
    """A line of the page. `law` are the runs of one side at several scales, in rows of input."""

    what: str
    against: str
    runs: tuple[Run, ...]
    bounds: tuple[Bound, ...]
    law: tuple[str, ...] = ()
    notes: Callable[[Found], list[str]] = field(default=lambda found: [])


def _far(found: Found) -> float:
    """The largest difference of a score, over the columns of under 200 categories."""
    bare = found.last("bare@10")
    many = {name for name, number in bare["categories"].items() if number >= 200}
    ours = found.last("engine@10")["scores"]
    return max(abs(ours[name] - score) for name, score in bare["scores"].items() if name not in many)


def _differ(found: Found) -> float:
    """Columns that are judged otherwise, by the model's thresholds or by Evidently's own."""
    ours, bare = found.last("engine@10"), found.last("bare@10")
    flagged = [{n for n, s in side["scores"].items() if s >= THRESHOLD} for side in (ours, bare)]
    return len(set(ours["breached"]) ^ set(bare["breached"])) + len(flagged[0] ^ flagged[1])


def _same(found: Found, *runs: str, fact: str) -> str:
    values = {run: found.last(run)[fact] for run in runs}
    agree = "agree" if len({round(value, 6) for value in values.values()}) == 1 else "DISAGREE"
    return f"Both sides {agree} on {fact}: {', '.join(f'{run} {value:,}' for run, value in values.items())}."


def _training(found: Found) -> list[str]:
    engine, bare = found.last("engine@10"), found.last("bare@10")
    boost, alone = found.median("engine@10", "boost_seconds"), found.median("bare@10", "boost_seconds")
    made = [sample["sha256"] for sample in found.samples["engine@10"]]
    notes = [
        f"Both fitted {engine['fitted']:,} and {bare['fitted']:,} rows. The trees alone: {boost:.1f} s against "
        f"{alone:.1f} s ({boost / alone:.2f}x). The rest of `fit` is what a registered model needs beside "
        "them: metrics with bounds by day, the sketch and the profile that later days must fit.",
    ]
    if len(made) > 1:
        same = "the same" if len(set(made)) == 1 else "NOT the same"
        notes.append(f"The model's bytes were {same} in all {len(made)} runs.")
    return notes


def _drift(found: Found) -> list[str]:
    scores = found.last("bare@10")["scores"]
    flagged = sorted(name for name, score in scores.items() if score >= THRESHOLD)
    many = {n: c for n, c in found.last("bare@10")["categories"].items() if c >= 200}
    return [
        f"Columns: {len(scores)}. At Evidently's own threshold {THRESHOLD} the rows themselves flag {len(flagged)}: "
        f"{', '.join(flagged)}. Columns of 200 categories or more, left out of the difference: {many or 'none'}.",
        "Evidently is given the metrics of the report (each distance once), not its preset, which computes them three "
        "times.",
    ]


def _scoring(found: Found) -> list[str]:
    notes = [_same(found, "engine@10", "bare@10", fact="mean")]
    if "reasons@1" in found.samples:
        reasons = found.median("reasons@1", "rows_per_second")
        notes.append(
            f"With three reasons a row (exact SHAP values): {reasons:,.0f} rows/s on {_rows(found, 'reasons@1')}."
        )
    if "engine@100" in found.samples and "bare@100" in found.samples:
        ratio = found.ratio("engine@100", "bare@100", "rows_per_second")
        notes.append(
            f"{_rows(found, 'engine@100')}, one run a side: {ratio:.2f}x the rows/s, peak "
            f"{found.median('engine@100', 'peak_mib'):,.0f} MiB."
        )
    else:
        notes.append("34 M rows: not measured; `make bench ROW=scoring LARGE=1`.")
    return notes


def _rows(found: Found, run: str) -> str:
    return f"{found.last(run)['rows']:,} rows"


def _commits(found: Found) -> list[str]:
    last = found.last("engine@1")
    return [
        "Medians of five commits each, of one day of schedules. Every 30th commit of the year, in ms: "
        f"{', '.join(f'{value * 1000:.0f}' for value in last['every_30'])}. Maintenance took {last['maintain']:.1f} s."
    ]


def _parse(found: Found) -> list[str]:
    return [
        f"{found.last('every@300')['dags']:,} DAGs of 300 models; files, specs and the engine's imports; Airflow "
        f"itself is loaded before. One model: {found.median('every@1'):.2f} s. The file of one scoring task: "
        f"{found.median('task@300'):.2f} s of 300 models, {found.median('task@1'):.2f} s of one."
    ]


def _fleet(found: Found) -> list[str]:
    last = found.last("engine@300")
    return [
        f"300 models of 60 days, {last['kib']:,.0f} KiB of HTML; medians of seven after a first. The queries alone: "
        f"{last['read_seconds'] * 1000:.0f} ms; those of one model's page: {last['model_seconds'] * 1000:.0f} ms."
    ]


ROWS: dict[str, Row] = {
    "ingest": Row(
        "ingest and validate one CSV of 3.4 M rows",
        "DuckDB: the same rules by hand, `copy` to Parquet",
        (Run("engine", 10), Run("bare", 10), Run("engine", 1), Run("bare", 1)),
        (
            Bound("time", lambda f: f.ratio("engine@10", "bare@10"), 3.0),
            Bound("peak memory", lambda f: f.median("engine@10", "peak_mib") / GIB, 1.5, "GiB"),
        ),
        ("engine@1", "engine@10"),
        lambda f: [_same(f, "engine@10", "bare@10", fact="quarantined")],
    ),
    "scoring": Row(
        "score 3.4 M rows from the lake, without reasons",
        "a loop of Parquet batches and `inplace_predict`",
        (
            Run("engine", 10),
            Run("bare", 10),
            Run("engine", 1),
            Run("reasons", 1),
            Run("engine", 100, 1, large=True),
            Run("bare", 100, 1, large=True),
        ),
        (
            Bound("rows/s", lambda f: f.ratio("engine@10", "bare@10", "rows_per_second"), 0.8, at_least=True),
            Bound("peak memory", lambda f: f.median("engine@10", "peak_mib") / GIB, 0.8, "GiB"),
        ),
        ("engine@1", "engine@10", "engine@100"),
        _scoring,
    ),
    "training": Row(
        "train on 3.4 M rows",
        "XGBoost on a QuantileDMatrix of a frame in memory",
        (Run("engine", 10), Run("bare", 10), Run("engine", 1)),
        (
            Bound("time", lambda f: f.ratio("engine@10", "bare@10"), 1.15),
            Bound("peak memory", lambda f: f.ratio("engine@10", "bare@10", "peak_mib"), 0.7),
        ),
        ("engine@1", "engine@10"),
        _training,
    ),
    "drift": Row(
        "drift report on 3.4 M rows",
        "Evidently on all rows",
        (Run("engine", 10), Run("few", 10), Run("bare", 10), Run("engine", 1)),
        (
            Bound("times as fast", lambda f: f.ratio("bare@10", "engine@10"), 30, at_least=True),
            Bound("largest difference of a score", _far, 0.002, ""),
            Bound("verdicts that differ", _differ, 0, ""),
            Bound("time against 30 thousand rows", lambda f: f.ratio("engine@10", "few@10"), 1.5),
        ),
        ("engine@1", "engine@10"),
        _drift,
    ),
    "features": Row(
        "features of 90 as-of dates",
        "the same SQL in DuckDB on the same Parquet files",
        (Run("engine", 1), Run("bare", 1), Run("engine", 3), Run("bare", 3)),
        (Bound("time", lambda f: f.ratio("engine@1", "bare@1"), 1.3),),
        ("engine@1", "engine@3"),
        lambda f: [_same(f, "engine@1", "bare@1", fact="sum")],
    ),
    "commits": Row(
        "365 daily commits, then one",
        "the first commit",
        (Run("engine", 1, 1),),
        (
            Bound("time", lambda f: f.ratio_of("engine@1", "last", "first"), 2.0),
            Bound("after maintenance", lambda f: f.ratio_of("engine@1", "after", "first"), 1.2),
        ),
        (),
        _commits,
    ),
    "parse": Row(
        "parse the DAG files of 300 models",
        "1 model",
        (Run("every", 300), Run("every", 1), Run("task", 300), Run("task", 1)),
        (
            Bound("in all", lambda f: f.median("every@300"), 1.5, "s"),
            Bound("task start, more", lambda f: f.median("task@300") - f.median("task@1"), 0.1, "s"),
        ),
        (),
        _parse,
    ),
    "fleet": Row(
        "the fleet page of 300 models, with rendering",
        "",
        (Run("engine", 300),),
        (Bound("server time", lambda f: f.median("engine@300", "page_seconds") * 1000, 300, "ms"),),
        (),
        _fleet,
    ),
}
