"""What the tasks of the DAGs call, in a row: the same functions without Airflow."""

from __future__ import annotations

import datetime as dt

from benchmarks import data
from include.evergreen.pipeline import ingest as ingesting
from include.evergreen.pipeline import monitoring, retraining, scoring, training
from include.evergreen.platform import Platform


def ingest(platform: Platform, as_of: dt.date, history_from: dt.date | None = None) -> None:
    """`ingest__<source>`. Raises RuntimeError: a file is not there."""
    source, key = data.source(), f"bench-{as_of}"
    for table in source.tables.values():
        dates = ingesting.due(platform, table, as_of, history_from, source.start_date)
        if not ingesting.arrived(platform, table, dates):
            raise RuntimeError(f"{table.name}: expected its file of {dates[-1]}, found none")
        if dates:
            staged = ingesting.land(platform, source, table, dates, key)
            validated = ingesting.validate(platform, source, table, staged, key)
            ingesting.publish(platform, source, table, validated, key)


def train(platform: Platform, as_of: dt.date) -> None:
    """`train__<model>`. Raises RuntimeError: the gate refused."""
    spec, key = data.spec(), f"bench-train-{as_of}"
    spec = spec.model_copy(update={"gate": spec.gate.model_copy(update={"max_ms_per_1k": 60_000})})  # a busy machine
    retraining.record_by_hand(platform, spec, as_of, key, "benchmark", "bench")
    built = training.build(platform, spec, as_of, key, "benchmark")
    leaks = training.check_leaks(platform, spec, as_of, built)
    fitted = training.fit(platform, spec, as_of, key, built, {})
    decided = training.decide(platform, spec, as_of, key, built, fitted, leaks)
    if not decided["accepted"]:
        raise RuntimeError(f"expected a champion, found: {decided['reasons']}")
    registered = training.register(platform, spec, as_of, key, built, fitted, decided)
    training.promote(platform, spec, as_of, key, registered, decided)


def score(platform: Platform, as_of: dt.date) -> None:
    """`score__<model>`."""
    spec, source, key = data.spec(), data.source(), f"bench-score-{as_of}"
    staged = scoring.predict(platform, spec, source, as_of, key)
    scoring.publish(platform, spec, source, as_of, staged, key)


def monitor(platform: Platform, as_of: dt.date) -> None:
    """`monitor__<model>`."""
    spec, source, key = data.spec(), data.source(), f"bench-monitor-{as_of}"
    facts = monitoring.measure(platform, spec, source, as_of, key)
    monitoring.conclude(platform, spec, source, as_of, facts, key)
    retraining.ask(platform, spec, as_of, key)
