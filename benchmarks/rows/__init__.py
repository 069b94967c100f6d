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
    """`value` of the medians is at most `limit`, or at least. `cause`: why it is not, where it is missed."""

    says: str
    value: Callable[[Found], float]
    limit: float
    unit: str = "x"
    at_least: bool = False
    cause: str = ""

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
    """A line of the page. `law` are the runs of one side at several scales, in rows of input, else in models."""

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
        f"{found.median('task@300'):.2f} s of 300 models, {found.median('task@1'):.2f} s of one.",
        "A loop of the DAG processor, file by file in a process of its own, with serialisation: "
        f"{found.median('files@300'):.1f} s.",
    ]


def _fleet(found: Found) -> list[str]:
    last = found.last("engine@300")
    read, model = last["read_seconds"] * 1000, last["model_seconds"] * 1000
    notes = [
        f"The page: 300 models of 60 days, {last['kib']:,.0f} KiB of HTML; medians of seven after a first. The queries "
        f"alone: {read:.0f} ms; those of one model's page: {model:.0f} ms."
    ]
    for run in (run for run in ("airflow@300", "airflow@3") if run in found.samples):
        files = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in found.last(run)["files"].items())
        known, processor = found.median(run, "known_seconds"), found.median(run, "processor_cores")
        notes.append(
            f"{run}, a real stack: {found.last(run)['dags']:,} DAGs are known {known:.0f} s after it is ready. At rest "
            f"the DAG processor keeps {processor:.2f} cores busy, the scheduler "
            f"{found.median(run, 'scheduler_cores'):.2f}. A task starts {found.median(run):.2f} s after it is queued, "
            f"{found.median(run, 'lag'):.2f} s after it can, and takes {found.median(run, 'body'):.2f} s. "
            f"Last parse: {files}."
        )
    for run in (run for run in ("each@60", "mapped@60") if run in found.samples):
        notes.append(
            f"{run}, one event and an empty task for each of 60 models: all done {found.median(run, 'whole'):.1f} s "
            f"after the first can start, the first starts after {found.median(run, 'first_start'):.2f} s; processor "
            f"seconds of the scheduler {found.median(run, 'scheduler_seconds'):.1f}, of the API server "
            f"{found.median(run, 'api_seconds'):.1f}."
        )
    return notes


def _loop(found: Found) -> list[str]:
    last = found.last("engine@1")
    stages = ", ".join(f"`{dag_id}` {seconds:.1f} s" for dag_id, seconds in last["stages"].items())
    bodies = ", ".join(f"`{task}` {seconds:.1f} s" for task, seconds in last["bodies"].items())
    scores = ", ".join(f"{run} {found.last(run)['auc']:.3f}" for run in found.samples)
    return [
        "The loop: the year's files, landed as gzipped CSV; every row typed, checked against the source's rules and "
        "written as sound or quarantined; features; XGBoost with early stopping; a floor on the newest days; one day "
        "scored with three reasons a row; its drift against the training days.",
        f"Through Airflow in {last['tasks']} tasks: {stages}. The longest tasks: {bodies}.",
        f"AUC on the newest days: {scores}.",
    ]


def _cycle(found: Found) -> list[str]:
    last, samples = found.last("engine@1"), found.samples["engine@1"]
    lag = statistics.median(sample["lag"] for sample in samples)
    body = statistics.median(sample["body"] for sample in samples)
    return [
        f"{last['tasks']} tasks a day; the first day of each sample warms and is left out. A task starts {lag:.2f} s "
        f"after it can (median) and takes {body:.2f} s from its process to its end. Tables are ingested side by side: "
        "a second of overhead in two tasks at once counts once."
    ]


def _start(found: Found) -> list[str]:
    sides = [
        f"{run} begins its body after {found.median(run, 'began'):.2f} s and imports for "
        f"{found.median(run, 'imports'):.2f} s"
        for run in found.samples
    ]
    return [
        "From queued to a body that has imported evidently, great_expectations, mlflow and xgboost, the median of five "
        f"runs a sample. {'; '.join(sides)}."
    ]


LOOP_TAKES = (
    "Ingest takes 18 of 40 s: it lands 1,086 files and writes as many, a partition a day and table; training 15, 5 of "
    "them to stage and 5 to fit. Scheduler, API server and DAG processor take a third of the processor time."
)
LAW = ("engine@1", "engine@10", "engine@100")
"""The flights of a year, of ten, of a hundred; the last are `large`."""

ROWS: dict[str, Row] = {
    "loop": Row(
        "the whole loop on 336,776 flights through Airflow",
        "a script of DuckDB and XGBoost; the engine's libraries, a process a step",
        (Run("engine", 1), Run("bare", 1), Run("steps", 1)),
        (
            Bound("time against the script", lambda f: f.ratio("engine@1", "bare@1"), 4.0, cause=LOOP_TAKES),
            Bound("time against a process a step", lambda f: f.ratio("engine@1", "steps@1"), 0.5, cause=LOOP_TAKES),
        ),
        (),
        _loop,
    ),
    "cycle": Row(
        "one daily cycle through Airflow: ingest, score, monitor",
        "the same functions in a row",
        (Run("engine", 1), Run("row", 1)),
        (
            Bound(
                "overhead a task",
                lambda f: (f.median("engine@1") - f.median("row@1")) / f.median("engine@1", "tasks"),
                0.5,
                "s",
            ),
        ),
        (),
        _cycle,
    ),
    "start": Row(
        "start of a task with all libraries",
        "LocalExecutor as Airflow ships it, without preload",
        (Run("engine", 1), Run("stock", 1)),
        (Bound("times as fast", lambda f: f.ratio("stock@1", "engine@1"), 10, at_least=True),),
        (),
        _start,
    ),
    "ingest": Row(
        "ingest and validate one CSV of 3.4 M rows",
        "DuckDB: the same rules by hand, `copy` to Parquet",
        (Run("engine", 10), Run("bare", 10), Run("engine", 1), Run("bare", 1), Run("engine", 100, 1, large=True)),
        (
            Bound(
                "time",
                lambda f: f.ratio("engine@10", "bare@10"),
                3.0,
                cause="The file comes from an S3 server and is kept there; its rows are written three times: as text, "
                "typed, published.",
            ),
            Bound("peak memory", lambda f: f.median("engine@10", "peak_mib") / GIB, 1.5, "GiB"),
        ),
        LAW,
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
        LAW,
        _scoring,
    ),
    "training": Row(
        "train on 3.4 M rows",
        "XGBoost on a QuantileDMatrix of a frame in memory",
        (Run("engine", 10), Run("bare", 10), Run("engine", 1), Run("engine", 100, 1, large=True)),
        (
            Bound(
                "time",
                lambda f: f.ratio("engine@10", "bare@10"),
                1.15,
                cause="The trees take as long. For 0.6 of the memory rows are read from disk in batches; and `fit` "
                "predicts all of them, for the reference that drift is measured against, and learns their profile.",
            ),
            Bound("peak memory", lambda f: f.ratio("engine@10", "bare@10", "peak_mib"), 0.7),
        ),
        LAW,
        _training,
    ),
    "drift": Row(
        "drift report on 3.4 M rows",
        "Evidently on all rows",
        (Run("engine", 10), Run("few", 10), Run("bare", 10), Run("engine", 1), Run("engine", 100, 1, large=True)),
        (
            Bound(
                "times as fast",
                lambda f: f.ratio("bare@10", "engine@10"),
                30,
                at_least=True,
                cause="Evidently and its page take most of it on a sketch too.",
            ),
            Bound("largest difference of a score", _far, 0.002, ""),
            Bound("verdicts that differ", _differ, 0, ""),
            Bound("time against 30 thousand rows", lambda f: f.ratio("engine@10", "few@10"), 1.5),
        ),
        LAW,
        _drift,
    ),
    "features": Row(
        "features of 90 as-of dates",
        "the same SQL in DuckDB on the same Parquet files",
        (Run("engine", 1), Run("bare", 1), Run("engine", 3), Run("bare", 3)),
        (
            Bound(
                "time",
                lambda f: f.ratio("engine@1", "bare@1"),
                1.3,
                cause="The engine gets each file of a day from an S3 server; DuckDB opens it on the disk.",
            ),
        ),
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
        (
            Run("every", 300),
            Run("every", 30),
            Run("every", 3),
            Run("every", 1),
            Run("task", 300),
            Run("task", 1),
            Run("files", 300),
        ),
        (
            Bound(
                "in all",
                lambda f: f.median("every@300"),
                1.5,
                "s",
                cause="Airflow makes 3,610 operators, 0.2 ms each, and 1,205 DAGs; specs and imports are a fifth each.",
            ),
            Bound("task start, more", lambda f: f.median("task@300") - f.median("task@1"), 0.1, "s"),
        ),
        ("every@3", "every@30", "every@300"),
        _parse,
    ),
    "fleet": Row(
        "300 models in one deployment",
        "3 models",
        (
            Run("engine", 300),
            Run("airflow", 300),
            Run("airflow", 3),
            Run("each", 60, 1, large=True),
            Run("mapped", 60, 1, large=True),
        ),
        (
            Bound("the page, with rendering", lambda f: f.median("engine@300", "page_seconds") * 1000, 300, "ms"),
            Bound("task start, more", lambda f: f.median("airflow@300") - f.median("airflow@3"), 0.3, "s"),
        ),
        (),
        _fleet,
    ),
}
