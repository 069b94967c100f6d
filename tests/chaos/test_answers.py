"""The answer to a commit that took place is lost: after a retry it has taken place once.

A walk loses one answer after the other: on SQLite the driver fails after its commit, on PostgreSQL a proxy cuts the
connection before the server's answer, with MLflow's server one swallows the answer to a request.
"""

from __future__ import annotations

import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import pytest

from include.evergreen.settings import Settings
from tests.chaos.proxy import HttpProxy, Wire
from tests.chaos.stages import STEPS, Lose, Outcome, Tasks
from tests.chaos.tally import Tally
from tests.chaos.worlds import Server, Twin, World, facts_after, made, server, tasks, twin, worlds
from tests.conftest import free_port

__all__ = ["made", "server", "tasks", "twin", "worlds"]

pytestmark = pytest.mark.allow_hosts(["127.0.0.1", "::1"])

LAKE: Lose = ("catalog", "UPDATE iceberg_tables")
COMMITS: dict[str, tuple[Lose, ...]] = {
    "publish": (("mart", "INSERT INTO ingest_batches"), LAKE),
    "publish_scoring": (("mart", "INSERT INTO flight_delay_predictions"), LAKE),
    "measure": (("mart", "INSERT INTO flight_delay_labels"), ("mart", "INSERT INTO cohorts")),
    "conclude": (("mart", "INSERT INTO monitorings"), ("mart", "INSERT INTO ledger")),
    "ask": (("mart", "INSERT INTO ledger"),),
    "build": (LAKE,),
    "decide": (("mart", "INSERT INTO ledger"),),
    "promote": (("mart", "INSERT INTO ledger"), ("mart", "INSERT INTO champions")),
    "rebuild": (("mart", "INSERT INTO ledger"),),
    "withdraw": (("mart", "INSERT INTO ledger"), ("mart", "INSERT INTO champions")),
    "rescore": (("mart", "INSERT INTO flight_delay_predictions"), LAKE),
    "maintain": (LAKE,),
}
"""Step -> commits whose answers are lost, one try after the other. After the mart's the try ends; the lake looks
whether its commit took place, and goes on."""
REQUESTS = {
    "register": ("runs/create", "runs/log-batch", "runs/update", "model-versions/create"),
    "promote": ("registered-models/alias",),
    "withdraw": ("registered-models/alias",),
}
"""Step -> requests to MLflow whose answers are lost, one try after the other."""
LAST = "withdraw"
"""No step after it asks the registry for more than a model."""


def judged(outcome: Outcome) -> None:
    """A try that lost an answer went on by itself, or says that it may be tried again."""
    assert outcome.error in (None, "Unavailable"), f"{outcome.error}: {outcome.text}\n{outcome.trace}"
    assert "\n" not in outcome.text and len(outcome.text) < 500, outcome.text


@dataclass
class Walk:
    """A walk in which steps lose answers."""

    world: World
    settings: Settings
    tasks: Tasks
    twin: Twin
    tally: Tally

    def run(self, step: str, lose: Lose | None = None) -> Outcome:
        return self.tasks.run(step, self.settings, self.world.memo, lose)

    def step(self, step: str, losses: Iterable[tuple[str, str, Callable[[], Outcome]]] = ()) -> None:
        """Try a step once for each (kind, where, try that loses an answer), then once more, and compare everything."""
        with ExitStack() as stack:
            faults = []
            for kind, where, attempt in losses:
                faults.append(stack.enter_context(self.tally.fault(f"answer to a commit lost: {kind}", where)))
                judged(attempt())
            self.world.memo[step] = self.run(step).done()
            found = facts_after(self.world, step) if faults else []
            for fault in faults:
                fault.rows(self.twin.facts[step], found)


def test_commits_on_sqlite(worlds: Callable[[str], World], tasks: Tasks, twin: Twin, tally: Tally) -> None:
    world = worlds("world")
    walk = Walk(world, world.settings(), tasks, twin, tally)

    def losing(step: str, lose: Lose) -> Outcome:
        tried = walk.run(step, lose)
        assert tried.lost == 1, f"{step}: no answer to {lose} was lost: {tried}"
        return tried

    for step in STEPS:
        walk.step(
            step,
            [
                (f"{lose[0]} on SQLite", f"{step}: {lose[1]}", partial(losing, step, lose))
                for lose in COMMITS.get(step, ())
            ],
        )


def test_commits_on_postgres(
    worlds: Callable[[str], World], server: Server, tasks: Tasks, twin: Twin, tally: Tally
) -> None:
    world = worlds("world")
    with Wire(server.port) as catalog, Wire(server.port) as mart:
        wires = {"catalog": catalog, "mart": mart}
        uris = {f"{name}_uri": server.uri(server.copy(world, name), wire.port) for name, wire in wires.items()}
        walk = Walk(world, world.settings(**uris), tasks, twin, tally)

        def losing(step: str, lose: Lose) -> Outcome:
            wire = wires[lose[0]]
            wire.lose_commit(lose[1].encode())
            tried = walk.run(step)
            assert wire.lost == 1, f"{step}: no answer to {lose} was lost: {tried}"
            wire.heal()
            return tried

        for step in STEPS:
            walk.step(
                step,
                [
                    (f"{lose[0]} on PostgreSQL", f"{step}: {lose[1]}", partial(losing, step, lose))
                    for lose in COMMITS.get(step, ())
                ],
            )


@pytest.fixture
def world(worlds: Callable[[str], World]) -> World:
    return worlds("world")


@pytest.fixture
def mlflow(world: World) -> Iterator[HttpProxy]:
    """MLflow's server on the world's registry, behind a proxy."""
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host=127.0.0.1", f"--port={port}", "--workers=1"]
    command += [f"--backend-store-uri=sqlite:///{world.folder}/registry.db", "--no-serve-artifacts"]
    command += [f"--default-artifact-root=s3://{world.store.lake_bucket}/mlflow"]
    with (world.folder / "mlflow.log").open("wb") as log:
        running = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + 120
            while True:
                assert running.poll() is None, (world.folder / "mlflow.log").read_text()
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                        break
                except OSError:
                    assert time.monotonic() < deadline, (world.folder / "mlflow.log").read_text()
                    time.sleep(0.2)
            with HttpProxy(port) as found:
                yield found
        finally:
            running.terminate()
            running.wait(30)


def test_requests_to_mlflow(world: World, mlflow: HttpProxy, tasks: Tasks, twin: Twin, tally: Tally) -> None:
    walk = Walk(world, world.settings(registry_uri=mlflow.url), tasks, twin, tally)

    def losing(step: str, path: str) -> Outcome:
        mlflow.break_("lost answer", wanted=lambda method, target: target.endswith(path))
        tried = walk.run(step)
        assert mlflow.hit == 1, f"{step}: {path} was asked {mlflow.hit} times: {tried}"
        mlflow.heal()
        assert tried.error == "Unavailable" and mlflow.url in tried.text, tried
        return tried

    for step in STEPS:
        walk.step(step, [("MLflow", f"{step}: {path}", partial(losing, step, path)) for path in REQUESTS.get(step, ())])
        if step == LAST:
            break
