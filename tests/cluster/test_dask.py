"""Models with `compute: dask` on a scheduler and two workers, each a process of its own, with real flights.

Rows, model and results of a step travel through a real S3 server; the lake and the registry are the twins in memory.
"""

from __future__ import annotations

import datetime as dt
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

distributed = pytest.importorskip("distributed")

from include.evergreen.distributed.parts import bundle_at, share  # noqa: E402
from include.evergreen.errors import ChecksumMismatch, SettingsError, Unavailable  # noqa: E402
from include.evergreen.lake.objects import S3Objects  # noqa: E402
from include.evergreen.pipeline import rebuild, scoring, staging, training_rows  # noqa: E402
from include.evergreen.pipeline import training as steps  # noqa: E402
from include.evergreen.replay.world import History, MemoryPlatform, history  # noqa: E402
from include.evergreen.settings import DaskSettings, ObjectStoreSettings, Settings  # noqa: E402
from include.evergreen.specs import PROJECT, ModelSpec  # noqa: E402
from include.evergreen.training.bundle import ModelBundle  # noqa: E402
from tests.conftest import free_port  # noqa: E402

AS_OF = dt.date(2013, 2, 27)
SCORED = dt.date(2013, 2, 28)
PATIENCE = 180.0
"""Seconds that a busy machine has to start a process; nothing that is promised."""
LIMIT = 15.0
"""Seconds within which a task says that its cluster is dead or silent."""
TOLERANCE = 0.002
"""Of AUC, log loss and Brier score between a model trained here and one trained on the cluster, of the same rows."""


class Flights(MemoryPlatform):
    """Lake and registry in memory, objects on S3."""

    @cached_property
    def objects(self) -> S3Objects:  # type: ignore[override]
        store = self.settings.object_store
        return S3Objects(store, store.lake_bucket, self.settings.timeouts)


Busy = Callable[[dict[str, Any], str], bool]
"""Of what the workers work on, {address: keys}, and the victim's address."""


class Processes:
    """A scheduler and its workers on loopback, each under a nanny that starts it again, as docs/deploy.md has them."""

    def __init__(self, folder: Path, store: ObjectStoreSettings) -> None:
        assert store.access_key and store.secret_key
        self.folder, self.port = folder, free_port()
        self.address = f"tcp://127.0.0.1:{self.port}"
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(PROJECT),
            "EVERGREEN_S3_ENDPOINT": str(store.endpoint),
            "EVERGREEN_S3_ACCESS_KEY": store.access_key.get_secret_value(),
            "EVERGREEN_S3_SECRET_KEY": store.secret_key.get_secret_value(),
            "EVERGREEN_LAKE_BUCKET": store.lake_bucket,
            "OMP_WAIT_POLICY": "PASSIVE",
        }
        self.running: list[subprocess.Popen[bytes]] = []
        self.scheduler = self._start("scheduler", "--port", str(self.port))

    def _start(self, kind: str, *arguments: str) -> subprocess.Popen[bytes]:
        argv = [sys.executable, "-m", "dask", kind, *arguments, "--host", "127.0.0.1", "--no-dashboard"]
        with (self.folder / f"{kind}-{len(self.running)}.log").open("wb") as log:
            found = subprocess.Popen(
                argv, env=self.environment, cwd=self.folder, stdout=log, stderr=log, start_new_session=True
            )
        self.running.append(found)
        return found

    def worker(self) -> None:
        self._start("worker", self.address, "--nthreads", "1", "--local-directory", str(self.folder))

    @contextmanager
    def client(self) -> Iterator[Any]:
        with distributed.Client(self.address, timeout=PATIENCE, set_as_default=False) as client:
            yield client

    def answers(self) -> None:
        """Wait for the scheduler."""
        with self.client():
            pass

    def wait(self, workers: int) -> set[str]:
        """Addresses of so many workers."""
        with self.client() as client:
            client.wait_for_workers(workers, timeout=PATIENCE)
            return set(client.scheduler_info(n_workers=-1)["workers"])

    def kill_one(self, busy: Busy, ahead: float = 0.0) -> Killing:
        """SIGKILL a worker that is `busy`, when it has been ahead of the others by so many seconds."""
        return Killing(self, busy, ahead)

    def end(self) -> None:
        for process in self.running:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # a nanny and its worker
        for process in self.running:
            process.wait()


class Killing:
    """A block in which a worker dies. `at`: when it did, None before; `victim`: its address; `pids`: of all before."""

    def __init__(self, cluster: Processes, busy: Busy, ahead: float) -> None:
        self.cluster, self.busy, self.ahead = cluster, busy, ahead
        self.at: float | None = None
        self.victim, self.pids = "", dict[str, int]()
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._kill, daemon=True)

    def _kill(self) -> None:
        with self.cluster.client() as client:
            self.pids = pids = client.run(os.getpid)
            self.victim = max(pids)
            while not self.over.is_set():
                if self.busy(client.processing(), self.victim):
                    others = [pid for address, pid in pids.items() if address != self.victim and self.ahead]
                    for pid in others:
                        os.kill(pid, signal.SIGSTOP)
                    time.sleep(self.ahead)
                    os.kill(pids[self.victim], signal.SIGKILL)
                    self.at = time.monotonic()
                    for pid in others:
                        os.kill(pid, signal.SIGCONT)
                    return
                time.sleep(0.01)

    def __enter__(self) -> Killing:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join(PATIENCE)


@pytest.fixture(scope="module")
def flights(tmp_path_factory: pytest.TempPathFactory) -> History:
    """Flights of some weeks, taken in by the project's own ingest."""
    return history("flight_delay", tmp_path_factory.mktemp("history"), until=SCORED)


@pytest.fixture(scope="module", autouse=True)
def parts() -> Iterator[None]:
    """Rows are staged in several parts for each worker, as those of a large training are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_rows, "PART_ROWS", 8192)
        yield


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, s3_store: ObjectStoreSettings) -> Iterator[Processes]:
    found = Processes(tmp_path_factory.mktemp("dask"), s3_store)
    try:
        for _ in range(2):
            found.worker()
        found.wait(2)
        yield found
    finally:
        found.end()


@pytest.fixture(scope="module")
def platform(
    cluster: Processes, flights: History, s3_store: ObjectStoreSettings, tmp_path_factory: pytest.TempPathFactory
) -> Flights:
    folder = tmp_path_factory.mktemp("platform")
    made = Flights(
        Settings(
            object_store=s3_store,
            catalog_uri="sqlite://",
            mart_uri=f"sqlite:///{folder}/mart.db",
            registry_uri="sqlite://",
            dask=DaskSettings(address=cluster.address),
        )
    )
    made.mart.create()
    for name, rows in flights.tables.items():
        made.lake.write(name, rows, pc.unique(rows["partition_date"]).to_pylist())
    return made


def spec(flights: History, compute: str, **training: Any) -> ModelSpec:
    """The project's model with few trees, each of all rows: a sample is drawn by each worker from its own rows, and two
    samples of so few are further apart than what is compared here."""
    data = flights.model.model_dump()
    params = data["training"]["params"] | {"subsample": 1.0}
    few = {"num_boost_round": 15, "min_rows": 1000, "validation_days": 14, "params": params}
    data["training"] |= {**few, **training}
    data["gate"] |= {"max_ms_per_1k": 60_000}
    return ModelSpec.model_validate({**data, "compute": compute})


def trained(platform: Flights, model: ModelSpec, key: str) -> dict[str, Any]:
    built = steps.build(platform, model, AS_OF, key, "a test")
    return {"built": built, "fitted": steps.fit(platform, model, AS_OF, key, built)}


@pytest.fixture(scope="module")
def both(platform: Flights, flights: History) -> dict[str, dict[str, Any]]:
    """A training on the cluster, and one here."""
    return {compute: trained(platform, spec(flights, compute), compute) for compute in ("dask", "local")}


def alike(theirs: ModelBundle, mine: ModelBundle) -> None:
    """Metrics of a model trained on the cluster are those of one trained here."""
    for part in ("validation", "holdout", "reference"):
        for metric in ("auc", "log_loss", "brier"):
            value = mine.facts["metrics"][part][metric]
            away = abs(theirs.facts["metrics"][part][metric] - value)
            print(f"{part} {metric}: here {value:.5f}, {away:.6f} away on the cluster")
            assert away <= TOLERANCE, (part, metric)


def bundle(platform: Flights, run: dict[str, Any]) -> ModelBundle:
    files = ("bundle.json", "model.ubj", "reference.parquet")
    return ModelBundle.from_files({name: platform.objects.get(f"{run['fitted']['prefix']}/{name}") for name in files})


# --- training --------------------------------------------------------------------------------------------------------


def test_the_workers_train_a_model_as_good_as_one_trained_here(
    platform: Flights, both: dict[str, dict[str, Any]]
) -> None:
    mine, theirs = bundle(platform, both["local"]), bundle(platform, both["dask"])
    assert mine.facts["rows"] == theirs.facts["rows"]
    assert mine.facts["rows"]["train"] > 15_000
    assert theirs.facts["compute"]["kind"] == "dask"
    assert theirs.facts["compute"]["workers"] == 2
    assert (mine.categories, mine.features) == (theirs.categories, theirs.features)
    assert theirs.baseline == pytest.approx(mine.baseline, abs=1e-9)
    alike(theirs, mine)
    assert theirs.facts["metrics"]["holdout"]["auc"] > 0.6
    assert theirs.facts["profile"]["columns"] == mine.facts["profile"]["columns"]


def test_the_rows_are_staged_in_parts_that_hold_each_of_them_once(
    platform: Flights, both: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    keys = [info.key for info in platform.objects.list("staging/train/flight_delay/dask/rows/")]
    assert len(keys) == bundle(platform, both["dask"]).facts["compute"]["partitions"] > 1
    for number, key in enumerate(keys):
        (tmp_path / f"{number}.parquet").write_bytes(platform.objects.get(key))
    (tmp_path / "whole.pq").write_bytes(platform.objects.get(both["local"]["built"]["rows_key"]))
    parts, whole = f"select * from '{tmp_path}/*.parquet'", f"select * from read_parquet('{tmp_path}/whole.pq')"
    counts = [duckdb.sql(f"select count(*) from ({query})").fetchall()[0][0] for query in (parts, whole)]
    assert counts == [both["dask"]["built"]["rows"]] * 2
    for left, right in ((parts, whole), (whole, parts)):
        assert duckdb.sql(f"{left} except all {right}").fetchall() == []


def test_a_version_of_the_cluster_is_rebuilt_within_the_tolerance(
    platform: Flights, flights: History, both: dict[str, dict[str, Any]]
) -> None:
    model, (built, fitted) = spec(flights, "dask"), both["dask"].values()
    leaks = {"rows": 1, "dates": []}
    decided = steps.decide(platform, model, AS_OF, "dask", built, fitted, leaks)
    version = steps.register(platform, model, AS_OF, "dask", built, fitted, decided)["version"]
    assert platform.registry.lineage(model.name, version)["compute"]["kind"] == "dask"
    report = rebuild.rebuild(platform, model.name, version, "again", "ada")
    assert report["equal"]
    assert not [reason for reason in report["changed"] if reason.startswith("rows")]
    if report["found_sha256"] != report["expected_sha256"]:
        assert [reason for reason in report["changed"] if reason.startswith("trained on Dask: expected metrics within")]


# --- scoring ---------------------------------------------------------------------------------------------------------


def scored(platform: Flights, model: ModelSpec, version: int, run: str) -> pa.Table:
    """The rows that `predict` stages."""
    source = None  # only named in an error
    staged = scoring.predict(platform, model, source, SCORED, run, version)  # type: ignore[arg-type]
    return staging.get(platform, staged["key"])


@pytest.fixture(scope="module")
def version(platform: Flights, flights: History, both: dict[str, dict[str, Any]]) -> int:
    from include.evergreen.promotion.ports import TrainingRecord

    made = platform.registry.register(bundle(platform, both["local"]), TrainingRecord("scored", {}, {}, {}, {}))
    return made.number


@pytest.fixture(scope="module")
def expected(platform: Flights, flights: History, version: int) -> pa.Table:
    return scored(platform, spec(flights, "local"), version, "here")


def same(found: pa.Table, expected: pa.Table) -> None:
    """Row by row, in order: keys and decisions equal, probabilities within a millionth."""
    assert found.schema == expected.schema
    assert found.num_rows == expected.num_rows > 500
    for name in expected.column_names:
        if name == "probability":
            np.testing.assert_allclose(found[name].to_numpy(), expected[name].to_numpy(), rtol=0, atol=1e-6)
        else:
            assert found[name].to_pylist() == expected[name].to_pylist(), name


def test_the_workers_score_each_row_as_this_process_does(
    platform: Flights, flights: History, version: int, expected: pa.Table
) -> None:
    same(scored(platform, spec(flights, "dask"), version, "cluster"), expected)
    keys = [info.key for info in platform.objects.list(f"staging/score/flight_delay/{SCORED}/cluster/rows/")]
    assert len(keys) == 8, "four parts for each of two workers"


def test_a_worker_that_dies_while_it_scores_changes_no_row(
    platform: Flights, flights: History, cluster: Processes, version: int, expected: pa.Table
) -> None:
    model = spec(flights, "dask")
    many = model.model_copy(update={"scoring": model.scoring.model_copy(update={"batch_rows": 10})})
    with cluster.kill_one(lambda work, victim: bool(work.get(victim))) as killing:
        found = scored(platform, many, version, "killed")
        done = time.monotonic()
    assert killing.at is not None
    assert killing.at < done
    same(found, expected)
    assert killing.victim not in cluster.wait(2), "its nanny has started another one"


def test_a_worker_refuses_a_model_that_was_tampered_with(
    platform: Flights, cluster: Processes, both: dict[str, dict[str, Any]]
) -> None:
    made, other = bundle(platform, both["local"]), bundle(platform, both["dask"])
    share(platform.objects, made, "staging/tampered")
    with cluster.client() as client:
        with pytest.raises(ChecksumMismatch, match="expected SHA-256"):
            client.submit(bundle_at, "staging/tampered", other.sha256).result()
        platform.objects.put("staging/tampered/model.ubj", made.booster[:-1] + b"\0")
        with pytest.raises(ChecksumMismatch, match="expected SHA-256"):
            client.submit(bundle_at, "staging/tampered", made.sha256).result()


# --- a training that breaks off ---------------------------------------------------------------------------------------


LONG = {"num_boost_round": 2000, "early_stopping_rounds": 2000}


def training(work: dict[str, Any]) -> bool:
    """Both workers have been given XGBoost's training."""
    return len(work) == 2 and all(any(str(key).startswith("fn-") for key in keys) for keys in work.values())


@pytest.mark.parametrize(("later", "ahead"), [(0.0, 3.0), (2.0, 0.0)], ids=["as it begins", "in its midst"])
def test_a_worker_that_dies_in_a_training_fails_it_and_a_retry_succeeds(
    later: float, ahead: float, platform: Flights, flights: History, cluster: Processes, both: dict[str, dict[str, Any]]
) -> None:
    """As it begins: XGBoost's tracker knows one worker, and dies when it tells that one of the other."""
    built, since = both["dask"]["built"], []

    def busy(work: dict[str, Any], _: str) -> bool:
        if training(work):
            since.append(time.monotonic())
        return bool(since) and time.monotonic() >= since[0] + later

    with cluster.kill_one(busy, ahead) as killing:
        with pytest.raises(
            Unavailable, match=r"Dask cluster tcp://\S+: expected its 2 workers to stay, found 1 of them"
        ):
            steps.fit(platform, spec(flights, "dask", **LONG), AS_OF, "broken", built)
        assert killing.at is not None
        took = time.monotonic() - killing.at
    print(f"named {took:.1f} s after the worker died")
    assert took < LIMIT
    assert cluster.scheduler.poll() is None
    until = time.monotonic() + PATIENCE
    while killing.pids.keys() & cluster.wait(2):
        assert time.monotonic() < until, "the nannies start both workers again: the other one may wait for the dead one"
        time.sleep(0.5)
    again = steps.fit(platform, spec(flights, "dask"), AS_OF, "broken", built)
    alike(bundle(platform, {"fitted": again}), bundle(platform, both["local"]))


def task(settings: Settings, model: ModelSpec, built: dict[str, Any]) -> None:
    """The step in a process of its own."""
    steps.fit(Flights(settings), model, AS_OF, "killed", built)


def test_a_training_whose_task_was_killed_does_not_stop_the_next_one(
    platform: Flights, flights: History, cluster: Processes, both: dict[str, dict[str, Any]]
) -> None:
    """XGBoost has locked the workers for it, and they go on with it."""
    built = both["dask"]["built"]
    arguments = (platform.settings, spec(flights, "dask", num_boost_round=300, early_stopping_rounds=300), built)
    killed = multiprocessing.get_context("spawn").Process(target=task, args=arguments)
    killed.start()
    try:
        with cluster.client() as client:
            while not training(client.processing()):
                assert killed.is_alive(), "it ended before both workers trained"
                time.sleep(0.01)
    finally:
        killed.kill()
        killed.join()
    again = steps.fit(platform, spec(flights, "dask"), AS_OF, "killed", built)
    alike(bundle(platform, {"fitted": again}), bundle(platform, both["local"]))


# --- a cluster that is not there -------------------------------------------------------------------------------------


def refused(work: Callable[[], Any], error: type[Exception], said: str) -> None:
    start = time.monotonic()
    with pytest.raises(error, match=said):
        work()
    took = time.monotonic() - start
    print(f"named after {took:.1f} s")
    assert took < LIMIT


def elsewhere(platform: Flights, address: str | None) -> Flights:
    """The same platform with another scheduler."""
    dask = DaskSettings(address=address) if address else None
    made = Flights(platform.settings.model_copy(update={"dask": dask}))
    made.__dict__ |= {"lake": platform.lake, "registry": platform.registry}
    return made


@pytest.mark.parametrize("kind", ["none", "dead", "silent", "without workers"])
def test_a_cluster_that_does_not_answer_is_named_in_time(
    kind: str, platform: Flights, flights: History, version: int, tmp_path: Path
) -> None:
    model = spec(flights, "dask")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        alone = Processes(tmp_path, platform.settings.object_store) if kind == "without workers" else None
        try:
            if alone:
                alone.answers()
            address, error, said = {
                "none": (None, SettingsError, "evergreen_dask"),
                "dead": (f"tcp://127.0.0.1:{free_port()}", Unavailable, "Dask scheduler tcp://127.0.0.1:"),
                "silent": (f"tcp://127.0.0.1:{silent.getsockname()[1]}", Unavailable, "expected an answer"),
                "without workers": (alone and alone.address, Unavailable, "expected a worker within"),
            }[kind]
            there = elsewhere(platform, address)
            refused(lambda: scored(there, model, version, "nowhere"), error, said)
        finally:
            if alone:
                alone.end()


def test_a_scheduler_that_falls_silent_while_it_is_asked_is_named_in_time(
    platform: Flights, flights: History, cluster: Processes, version: int
) -> None:
    """The last test: the cluster is of no use after it."""
    from include.evergreen.distributed.cluster import connected, watched

    def stopped() -> None:
        with connected(platform.settings.dask) as client:
            waiting = client.submit(time.sleep, 60, pure=False)
            cluster.scheduler.send_signal(signal.SIGSTOP)
            watched(client, waiting.result)

    try:
        refused(stopped, Unavailable, "expected an answer")
    finally:
        cluster.scheduler.send_signal(signal.SIGCONT)
