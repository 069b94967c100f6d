"""Every step of the loop as a task calls it, in a process of its own that is forked from a warm one, as Airflow's are.

The steps are a walk through two days of real flights: each takes what those before it returned.
"""

from __future__ import annotations

import datetime as dt
import multiprocessing
import time
import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from typing import Any

from include.evergreen.errors import EvergreenError
from include.evergreen.platform import Platform
from include.evergreen.settings import Settings
from include.evergreen.specs import ModelSpec, SourceSpec, TableSpec, models, sources

Memo = dict[str, Any]
MODEL = "flight_delay"
FIRST, LOADED, DAY, NEXT = (dt.date(2013, 1, day) for day in (1, 22, 23, 24))
"""Taken in in bulk from FIRST to LOADED, which the first champion has scored; the walk is DAY, and a bit of NEXT."""
SAMPLE = 0.3
TABLE = "schedules"


@cache
def spec() -> ModelSpec:
    """The real model, quick to train; its gate can decide on a few days."""
    found = models()[MODEL].model_dump(mode="json")
    found["training"] |= {"validation_days": 3, "holdout_days": 3, "min_rows": 200, "num_boost_round": 12, "threads": 1}
    found["gate"] |= {"min_holdout_rows": 50, "max_ms_per_1k": 60_000, "frozen": {"every_days": 5, "min_days": 2}}
    return ModelSpec.model_validate({**found, "sql": models()[MODEL].sql})


@cache
def source() -> SourceSpec:
    return sources()[spec().source]


def _table() -> TableSpec:
    return source().tables[TABLE]


def _take_in(platform: Platform, table: TableSpec, as_of: dt.date, since: dt.date | None, run_id: str) -> None:
    from include.evergreen.pipeline import ingest

    if days := ingest.due(platform, table, as_of, since, source().start_date):
        landed = ingest.land(platform, source(), table, days, run_id)
        ingest.publish(platform, source(), table, ingest.validate(platform, source(), table, landed, run_id), run_id)


def _accepted(decided: dict[str, Any]) -> dict[str, Any]:
    """A handful of days convinces no gate; what a yes sets off is what is tested here."""
    return {**decided, "accepted": True}


def deliver(platform: Platform) -> None:
    """What upstream lands for the whole walk."""
    publisher = import_module(f"include.sources.{source().name}.publish")
    publisher.publish(platform.landing, FIRST, NEXT, SAMPLE)


def prepare(platform: Platform, memo: Memo) -> None:
    """The world before the walk: history, a first champion, one scored day."""
    from include.evergreen.lake.objects import S3Objects
    from include.evergreen.pipeline import scoring, training

    store = platform.settings.object_store
    for bucket in (store.landing_bucket, store.lake_bucket):
        S3Objects(store, bucket, platform.settings.timeouts).ensure_bucket()
    deliver(platform)
    platform.mart.create()
    platform.mart.ensure_model(spec(), source())
    for table in source().tables.values():
        _take_in(platform, table, LOADED, FIRST, "history")
    built = training.build(platform, spec(), LOADED, "first", "the first champion")
    fitted = training.fit(platform, spec(), LOADED, "first", built, {"max_depth": 1})
    leaks = training.check_leaks(platform, spec(), LOADED, built)
    decided = _accepted(training.decide(platform, spec(), LOADED, "first", built, fitted, leaks))
    registered = training.register(platform, spec(), LOADED, "first", built, fitted, decided)
    training.promote(platform, spec(), LOADED, "first", registered, decided)
    staged = scoring.predict(platform, spec(), source(), LOADED, "score-0")
    scoring.publish(platform, spec(), source(), LOADED, staged, "score-0")


def land(platform: Platform, memo: Memo) -> Any:
    from include.evergreen.pipeline import ingest

    return ingest.land(platform, source(), _table(), [DAY], "ingest-1")


def validate(platform: Platform, memo: Memo) -> Any:
    from include.evergreen.pipeline import ingest

    return ingest.validate(platform, source(), _table(), memo["land"], "ingest-1")


def publish(platform: Platform, memo: Memo) -> Any:
    from include.evergreen.pipeline import ingest

    return ingest.publish(platform, source(), _table(), memo["validate"], "ingest-1")


def rest(platform: Platform, memo: Memo) -> Any:
    """The other tables of DAY, and all of NEXT."""
    for name, table in source().tables.items():
        if name != TABLE:
            _take_in(platform, table, DAY, None, "ingest-1")
        _take_in(platform, table, NEXT, None, "ingest-2")


def predict(platform: Platform, memo: Memo) -> Any:
    from include.evergreen.pipeline import scoring

    return scoring.predict(platform, spec(), source(), DAY, "score-1")


def publish_scoring(platform: Platform, memo: Memo) -> Any:
    from include.evergreen.pipeline import scoring

    return scoring.publish(platform, spec(), source(), DAY, memo["predict"], "score-1")


def measure(platform: Platform, memo: Memo) -> Any:
    from include.evergreen.pipeline import monitoring

    return monitoring.measure(platform, spec(), source(), DAY, "monitor-1")


def conclude(platform: Platform, memo: Memo) -> Any:
    from include.evergreen.pipeline import monitoring

    return monitoring.conclude(platform, spec(), source(), DAY, memo["measure"], "monitor-1")


def ask(platform: Platform, memo: Memo) -> Any:
    from include.evergreen.pipeline import retraining

    return retraining.ask(platform, spec(), DAY, "monitor-1").decision.outcome


def build(platform: Platform, memo: Memo) -> Any:
    from include.evergreen.pipeline import training

    return training.build(platform, spec(), NEXT, "train-1", "chaos")


def check_leaks(platform: Platform, memo: Memo) -> Any:
    from include.evergreen.pipeline import training

    return training.check_leaks(platform, spec(), NEXT, memo["build"])


def fit(platform: Platform, memo: Memo) -> Any:
    from include.evergreen.pipeline import training

    return training.fit(platform, spec(), NEXT, "train-1", memo["build"])


def decide(platform: Platform, memo: Memo) -> Any:
    from include.evergreen.pipeline import training

    steps = (memo["build"], memo["fit"], memo["check_leaks"])
    return _accepted(training.decide(platform, spec(), NEXT, "train-1", *steps))


def register(platform: Platform, memo: Memo) -> Any:
    from include.evergreen.pipeline import training

    return training.register(platform, spec(), NEXT, "train-1", memo["build"], memo["fit"], memo["decide"])


def promote(platform: Platform, memo: Memo) -> Any:
    from include.evergreen.pipeline import training

    # in force from NEXT on, which is not scored yet
    return training.promote(platform, spec(), DAY, "train-1", memo["register"], memo["decide"])


def score_next(platform: Platform, memo: Memo) -> Any:
    from include.evergreen.pipeline import scoring

    staged = scoring.predict(platform, spec(), source(), NEXT, "score-2")
    return scoring.publish(platform, spec(), source(), NEXT, staged, "score-2")


def rebuild(platform: Platform, memo: Memo) -> Any:
    from include.evergreen.pipeline.rebuild import rebuild as again

    return again(platform, MODEL, memo["register"]["version"], "rebuild-1", "chaos")


def plan(platform: Platform, memo: Memo) -> Any:
    from include.evergreen.pipeline import rollback

    return rollback.plan(platform, spec(), 1, "rollback-1")


def withdraw(platform: Platform, memo: Memo) -> Any:
    from include.evergreen.pipeline import rollback

    return rollback.withdraw(platform, spec(), memo["plan"], "rollback-1", "chaos", "chaos", dry_run=False)


def rescore(platform: Platform, memo: Memo) -> Any:
    from include.evergreen.pipeline import rollback

    return rollback.rescore(platform, spec(), source(), NEXT, memo["plan"]["version"], "rollback-1")


def complete(platform: Platform, memo: Memo) -> Any:
    from include.evergreen.pipeline import rollback

    return rollback.complete(platform, spec(), memo["plan"], "rollback-1")


def maintain(platform: Platform, memo: Memo) -> Any:
    from include.evergreen.pipeline.maintenance import maintain_lake

    later = dt.datetime.now(dt.UTC) + dt.timedelta(days=4)
    return len(maintain_lake(platform, keep_snapshots=1, now=later))


STEPS: Mapping[str, Callable[[Platform, Memo], Any]] = {
    step.__name__: step
    for step in (
        *(land, validate, publish, rest, predict, publish_scoring, measure, conclude, ask),
        *(build, check_leaks, fit, decide, register, promote, score_next, rebuild),
        *(plan, withdraw, rescore, complete, maintain),
    )
}
HELPERS = ("rest", "score_next")
"""They only carry the walk on: what they do is a step of its own elsewhere."""
FAULTED = tuple(name for name in STEPS if name not in HELPERS)


@dataclass(frozen=True)
class Outcome:
    """What a task process came to.

    Attributes:
        error: the type's name, of one of ours without its module. text: what it says.
        seconds: of the step alone. lost: commits whose answer was lost on SQLite. ended: by the clock of all
            processes of this machine.
    """

    result: Any
    error: str | None
    text: str
    seconds: float
    trace: str = ""
    lost: int = 0
    ended: float = field(default_factory=time.monotonic)

    def done(self) -> Any:
        """The result. Raises AssertionError with the trace of a step that failed."""
        assert self.error is None, f"{self.error}: {self.text}\n{self.trace}"
        return self.result


Lose = tuple[str, str]
"""("catalog" or "mart", what a transaction has said): it is committed, and the answer is an error."""


def lose_one(platform: Platform, lose: Lose) -> list[str]:
    """Lose the answer to one commit on SQLite. Returns a list that holds the statement once it is done."""
    import sqlite3

    from sqlalchemy import event

    part, said = lose
    engine = platform.mart.engine if part == "mart" else platform.lake._catalog.engine  # type: ignore[attr-defined]
    lost: list[str] = []
    told: list[str] = []
    commit = engine.dialect.do_commit

    def listen(*heard: Any) -> None:
        if str(heard[2]).upper().startswith(said.upper()):
            told.append(str(heard[2]))

    def losing(connection: Any) -> None:
        commit(connection)
        if told and not lost:
            lost.append(told[0])
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorname = "SQLITE_IOERR"
            raise error

    event.listen(engine, "before_cursor_execute", listen)
    engine.dialect.do_commit = losing
    return lost


def task(name: str, settings: Settings, memo: Memo, lose: Lose | None = None) -> Outcome:
    """Run a step, in the process of the caller."""
    step = prepare if name == "prepare" else STEPS[name]
    platform = Platform(settings)
    lost = lose_one(platform, lose) if lose else []
    started = time.monotonic()
    try:
        result = step(platform, memo)
        return Outcome(result, None, "", time.monotonic() - started, lost=len(lost))
    except Exception as error:
        ours = isinstance(error, EvergreenError)
        kind = type(error).__name__ if ours else f"{type(error).__module__}.{type(error).__qualname__}"
        seconds = time.monotonic() - started
        return Outcome(None, kind, str(error), seconds, traceback.format_exc(limit=-12), len(lost))


WARM = (
    *("pandas", "pyarrow.compute", "pyarrow.parquet", "duckdb", "boto3", "botocore.config", "xgboost"),
    *("sklearn.metrics", "sqlalchemy.dialects.sqlite", "psycopg", "pyiceberg.catalog.sql", "pyiceberg.expressions"),
    *("mlflow", "mlflow.tracking", "mlflow.store.tracking.sqlalchemy_store"),
    *("mlflow.store.model_registry.sqlalchemy_store", "evidently", "evidently.metrics", "evidently.presets"),
    *("great_expectations", "great_expectations.expectations"),
    *("great_expectations.render.renderer.page_renderer", "great_expectations.render.view"),
    *("include.evergreen.specs", "include.evergreen.pipeline.training", "tests.chaos.stages"),
)


class Tasks:
    """Task processes, each forked for one step from a server that holds the heavy modules."""

    def __init__(self, at_once: int = 6) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(list(WARM))
        self._pool = ProcessPoolExecutor(at_once, mp_context=context, max_tasks_per_child=1)

    def start(
        self, name: str, settings: Settings, memo: Memo | None = None, lose: Lose | None = None
    ) -> Future[Outcome]:
        return self._pool.submit(task, name, settings, memo or {}, lose)

    def run(self, name: str, settings: Settings, memo: Memo | None = None, lose: Lose | None = None) -> Outcome:
        return self.start(name, settings, memo, lose).result()

    def close(self) -> None:
        self._pool.shutdown()
