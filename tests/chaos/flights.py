"""Real flights on real stores, without Airflow: what the chaos tests of the steps build on."""

from __future__ import annotations

import csv
import datetime as dt
import gzip
import io
import multiprocessing
import secrets
import shutil
import signal
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

from include.evergreen.errors import SettingsError
from include.evergreen.lake.objects import S3Objects
from include.evergreen.local import postgres as server
from include.evergreen.pipeline import ingest, scoring, training
from include.evergreen.platform import Platform
from include.evergreen.settings import ObjectStoreSettings, Settings, Timeouts
from include.evergreen.specs import ModelSpec, SourceSpec, TableSpec, models, sources
from include.sources.nyc_flights.publish import files
from tests.conftest import free_port
from tests.outside import LakeReader, Rows, s3_client

SOURCE: SourceSpec = sources()["nyc_flights"]
MODEL = models()["flight_delay"]
SCHEDULES = SOURCE.tables["schedules"]
DAY = dt.timedelta(days=1)


@lru_cache(maxsize=4)
def delivered(since: dt.date, until: dt.date, sample: float = 1.0) -> dict[str, bytes]:
    """{key: CSV text} as the upstream would have delivered it for the runs of these dates."""
    return files(SOURCE, since, until, sample)


def days(first: dt.date, count: int) -> list[dt.date]:
    return [first + i * DAY for i in range(count)]


def csv_rows(text: bytes) -> list[dict[str, str]]:
    """Rows of a delivered file, as Python's own reader sees them."""
    return list(csv.DictReader(io.StringIO(text.decode(), newline="")))


def written(rows: list[dict[str, str]]) -> bytes:
    """Rows as an upstream writes them."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode()


def packed(text: bytes) -> bytes:
    return gzip.compress(text, 6, mtime=0)


def take_in(platform: Platform, table: TableSpec, dates: list[dt.date], run_id: str) -> dict[str, Any]:
    """Land, validate and publish, as `ingest__nyc_flights` does. Raises what they raise."""
    staged = ingest.land(platform, SOURCE, table, dates, run_id)
    return ingest.publish(platform, SOURCE, table, ingest.validate(platform, SOURCE, table, staged, run_id), run_id)


def history(platform: Platform, since: dt.date, until: dt.date, sample: float = 1.0) -> None:
    """Everything that the runs of these dates expect, delivered and taken in."""
    for key, text in delivered(since, until, sample).items():
        platform.landing.put(key, packed(text))
    for table in SOURCE.tables.values():
        first, last = since - table.lag_days * DAY, until - table.lag_days * DAY
        if table.cadence == "occasional":
            first = last = dt.date(2013, 1, 1)
        first = max(first, SOURCE.start_date - table.lag_days * DAY)
        dates = [day for day in days(first, (last - first).days + 1) if table.path.format(date=day) in _keys(platform)]
        take_in(platform, table, dates, "history")


def _keys(platform: Platform) -> set[str]:
    return {info.key for info in platform.landing.list()}


class Outside(LakeReader):
    """Plain clients of what a platform's settings name: boto3, DuckDB, sqlite3 or psycopg."""

    def __init__(self, settings: Settings, cache: Path) -> None:
        store = settings.object_store
        assert store.access_key is not None and store.secret_key is not None
        keys = {
            "s3_access_key": store.access_key.get_secret_value(),
            "s3_secret_key": store.secret_key.get_secret_value(),
        }
        self._layout = SimpleNamespace(s3_url=store.endpoint, secrets=SimpleNamespace(**keys))
        self.settings = settings
        self.bucket = store.lake_bucket
        cache.mkdir(parents=True, exist_ok=True)
        super().__init__(s3_client(self._layout), cache)  # type: ignore[arg-type]

    @property
    def layout(self) -> Any:
        return self._layout

    def sql(self, uri: str, query: str, *values: Any) -> Rows:
        """Rows of a database, by its own driver; `?` is the placeholder."""
        url = sa.make_url(uri)
        if url.get_backend_name() == "sqlite":
            with closing(sqlite3.connect(f"file:{url.database}?mode=ro", uri=True, timeout=30)) as connection:
                found = connection.execute(query, values)
                names = [column[0] for column in found.description]
                return [dict(zip(names, row, strict=True)) for row in found]
        plain = url.set(drivername="postgresql").render_as_string(hide_password=False)
        with psycopg.connect(plain, row_factory=psycopg.rows.dict_row) as connection:
            return connection.execute(query.replace("?", "%s"), values or None).fetchall()

    def mart(self, query: str, *values: Any) -> Rows:
        return self.sql(self.settings.mart_uri.get_secret_value(), query, *values)

    def metadata_location(self, table: str) -> str:
        namespace, name = table.split(".")
        query = "select metadata_location from iceberg_tables where table_namespace = ? and table_name = ?"
        [row] = self.sql(self.settings.catalog_uri.get_secret_value(), query, namespace, name)
        return str(row["metadata_location"])

    def has(self, table: str) -> bool:
        namespace, name = table.split(".")
        query = "select 1 from iceberg_tables where table_namespace = ? and table_name = ?"
        return bool(self.sql(self.settings.catalog_uri.get_secret_value(), query, namespace, name))


# --- a model of real flights -----------------------------------------------------------------------------------------

FROM, TRAINED, UNTIL, SHARE = dt.date(2013, 1, 1), dt.date(2013, 2, 8), dt.date(2013, 2, 20), 0.12
"""History is taken in for the runs of these dates; the first model is of TRAINED."""


def quick(spec: ModelSpec = MODEL, **changes: Any) -> ModelSpec:
    """The model of the project, made for a share of a few weeks: small trees, and a gate that is not asked."""
    training = {"window_days": 30, "validation_days": 5, "holdout_days": 5, "min_rows": 300, "num_boost_round": 12}
    data = spec.model_dump()
    data["training"] |= {**training, "early_stopping_rounds": 5, "threads": 1, "leak_check_dates": 1}
    data["gate"] |= {"min_holdout_rows": 50, "min_holdout_days": 2, "max_ms_per_1k": 60_000, "floors": {}}
    data["gate"]["frozen"] |= {"every_days": 5, "min_days": 2}
    data["gate"]["resamples"] = 200
    data["monitoring"] |= {"min_matured_rows": 50, "sketch_rows": 500}
    return ModelSpec.model_validate({**data, **changes})


def registered(platform: Platform, spec: ModelSpec, as_of: dt.date, key: str, eta: float = 0.3) -> dict[str, Any]:
    """Train and register a version as `train__<model>` does, as if the gate had said yes. {registered, decided}."""
    built = training.build(platform, spec, as_of, key, "chaos")
    leaks = training.check_leaks(platform, spec, as_of, built)
    fitted = training.fit(platform, spec, as_of, key, built, {"eta": eta})
    decided = training.decide(platform, spec, as_of, key, built, fitted, leaks) | {"accepted": True}
    return {"registered": training.register(platform, spec, as_of, key, built, fitted, decided), "decided": decided}


def promoted(platform: Platform, spec: ModelSpec, as_of: dt.date, key: str, eta: float = 0.3) -> int:
    """`registered`, and in force. The version."""
    made = registered(platform, spec, as_of, key, eta)
    training.promote(platform, spec, as_of, key, made["registered"], made["decided"])
    return int(made["registered"]["version"])


def score(platform: Platform, spec: ModelSpec, as_of: dt.date, run_id: str) -> dict[str, Any]:
    """As `score__<model>`."""
    staged = scoring.predict(platform, spec, SOURCE, as_of, run_id)
    return scoring.publish(platform, spec, SOURCE, as_of, staged, run_id)


def opened(store: ObjectStoreSettings, folder: Path, postgres: str | None = None) -> Platform:
    """A platform of its own: fresh buckets, and SQLite files in `folder`, or databases of a server for catalog and
    mart."""
    mark = secrets.token_hex(4)
    store = store.model_copy(update={"landing_bucket": f"landing-{mark}", "lake_bucket": f"lake-{mark}"})
    for bucket in (store.landing_bucket, store.lake_bucket):
        S3Objects(store, bucket, Timeouts()).ensure_bucket()
    urls = {name: database(postgres) if postgres else f"sqlite:///{folder}/{name}.db" for name in ("catalog", "mart")}
    platform = Platform(
        Settings(
            object_store=store,
            catalog_uri=urls["catalog"],
            mart_uri=urls["mart"],
            registry_uri=f"sqlite:///{folder}/registry.db",
        )
    )
    platform.mart.create()
    return platform


def world(store: ObjectStoreSettings, folder: Path, spec: ModelSpec, postgres: str | None = None) -> Platform:
    """A platform with some weeks of real flights and two champions: 1 from TRAINED on, 2 a week later."""
    platform = opened(store, folder, postgres)
    history(platform, FROM, UNTIL, SHARE)
    promoted(platform, spec, TRAINED, "first", eta=0.3)
    promoted(platform, spec, TRAINED + 6 * DAY, "second", eta=0.1)
    return platform


# --- processes -------------------------------------------------------------------------------------------------------

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["include.evergreen.lake.iceberg", "mlflow.store.tracking.sqlalchemy_store", "xgboost", "boto3", "psycopg",
     "mlflow.store.model_registry.sqlalchemy_store", "great_expectations.expectations", "tests.chaos.flights"]
)  # fmt: skip
Work = tuple[Callable[..., Any], tuple[Any, ...]]


def _work(function: Callable[..., Any], arguments: tuple[Any, ...], barrier: Any, told: Any) -> None:
    try:
        barrier.wait(300)
        told.send(("answer", function(*arguments)))
    except Exception as error:
        told.send(("error", f"{type(error).__name__}: {error}"))


def together(*work: Work, timeout: float = 600) -> list[tuple[str, Any]]:
    """Run functions in processes of their own, released at one moment: ("answer", what it returned) or ("error", text)
    of each. A process that dies or does not end fails the test."""
    barrier = CONTEXT.Barrier(len(work))
    started = []
    for function, arguments in work:
        mine, its = CONTEXT.Pipe(duplex=False)
        process = CONTEXT.Process(target=_work, args=(function, arguments, barrier, its), daemon=True)
        process.start()
        its.close()
        started.append((process, mine))
    answers = []
    for process, mine in started:
        assert mine.poll(timeout), f"{process}: no answer within {timeout:g} s"
        answers.append(mine.recv())
        process.join(30)
        assert process.exitcode == 0, process
    return answers


# --- PostgreSQL ------------------------------------------------------------------------------------------------------


@contextmanager
def postgres_server() -> Iterator[str]:
    """URL of a throwaway server on loopback, for its administrator. Skips where none is installed."""
    try:
        server.programs()
    except SettingsError:
        pytest.skip("no PostgreSQL is installed")
    folder = Path(tempfile.mkdtemp(prefix="evergreen-chaos-")) / "server"
    folder.parent.chmod(0o755)
    port, password = free_port(), secrets.token_hex(12)
    server.make(folder, password)
    with (folder.parent / "log").open("wb") as log:
        process = subprocess.Popen(
            server.command(folder, port), cwd=folder, stdout=log, stderr=log, **server.as_owner()
        )
    try:
        for _ in range(600):
            if server.ready(port):
                break
            time.sleep(0.1)
        yield f"postgresql+psycopg://{server.ADMIN}:{password}@127.0.0.1:{port}/postgres"
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)
        shutil.rmtree(folder.parent, ignore_errors=True)


def database(server_url: str) -> str:
    """URL of an empty database of its own."""
    name = f"chaos_{secrets.token_hex(6)}"
    engine = sa.create_engine(server_url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(f"create database {name}")
    engine.dispose()
    return sa.make_url(server_url).set(database=name).render_as_string(hide_password=False)
