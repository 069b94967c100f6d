"""Parts of the cluster end in the middle of a day of flights, and come back: every day ends whole, by itself.

Each test is a day. A fault strikes while a task waits, in mid-body, for a lock of the engine's that the test holds.
What a day must be is said by its landed files; the last test compares the predictions of all days with one clean
scoring in memory.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import time
from collections.abc import Callable

from include.evergreen.local.demo import INGEST, MODEL, TRAIN
from tests.chaos.cluster.conftest import LOOP, NOTES, Ward
from tests.chaos.tally import Fault, Tally

SIGKILL, RESTART = "SIGKILL of a part", "restart of a part"
ACTUALS, SCORING = "ingest-actuals", MODEL
"""The engine's locks, held by `publish` of ingest and of score."""


Strike = tuple[str, str, str, Callable[[], None]]
"""Kind, where, the lock at which a body waits when it happens, what happens."""


def strike(ward: Ward, tally: Tally, *strikes: Strike) -> None:
    """A day with these faults, each while its loop is in mid-run; it must recover, and be whole."""
    ward.healthy()
    with contextlib.ExitStack() as tried:
        faults = [tried.enter_context(tally.fault(kind, where)) for kind, where, _, _ in strikes]
        day, struck, last = None, 0.0, contextlib.ExitStack()
        for i, (_, _, lock, happen) in enumerate(strikes):
            holding = contextlib.ExitStack()
            waits = holding.enter_context(ward.held(lock))
            last.close()
            day = day or ward.begin()
            waits()
            if i:
                said(ward, faults[i - 1], struck, "on again")
            struck = time.monotonic()
            happen()
            last = holding
        last.close()
        assert day is not None
        ward.recover(day)
        said(ward, faults[-1], struck, "whole", day)
        for fault in faults:
            ward.whole(day, fault)


def said(ward: Ward, fault: Fault, struck: float, what: str, day: dt.date | None = None) -> None:
    tries = f"; highest try {[ward.tries(dag_id, day) for dag_id in LOOP]}" if day else ""
    NOTES.append(f"{fault.kind}, {fault.where}: {what} after {time.monotonic() - struck:.0f} s{tries}")


def test_a_day_without_a_fault(ward: Ward, tally: Tally) -> None:
    """What the others are compared with."""
    with tally.fault("none", "") as fault:
        began = time.monotonic()
        day = ward.begin()
        ward.recover(day)
        said(ward, fault, began, "whole", day)
        ward.whole(day, fault)


def test_both_workers_and_two_bodies_that_outlive_them(ward: Ward, tally: Tally) -> None:
    """Each worker dies while a task of its queue runs; one body of each waits before its commit and lives on, as on a
    host that is cut off. The heartbeat's timeout finds the tasks. When their retries have come as far as the first
    bodies, all four go on: each commit is made twice.
    """
    ward.healthy()
    as_of = ward.ended[-1]
    with (
        tally.fault(SIGKILL, "worker") as light,
        tally.fault(SIGKILL, "training worker") as heavy,
        tally.fault("two bodies of one task", "ingest: publish") as publishing,
        tally.fault("two bodies of one task", "train: register") as registering,
    ):
        with ward.held(ACTUALS), ward.held(f"register-{MODEL}") as waits:
            day, training = ward.begin(), ward.train(as_of, "its worker will die")
            waits(2)
            bodies = [ward.body(INGEST, "table.publish"), ward.body(TRAIN, "register")]
            before = ward.commits("trusted.actuals")
            struck = time.monotonic()
            ward.cluster.kill("worker", "worker-training", sparing=bodies)
            waits(4)
            said(ward, light, struck, "tried again")
            assert all(map(ward.lives, bodies))
        ward.recover(day)
        said(ward, light, struck, "whole", day)
        ward.trained(training)
        said(ward, heavy, struck, "trained")
        ward.until("the first bodies to end", lambda: not any(map(ward.lives, bodies)))
        assert ward.commits("trusted.actuals") == before + 2, "one of two bodies did not commit"
        for fault in (light, publishing):
            ward.whole(day, fault)
        for fault in (heavy, registering):
            ward.registered_once(fault)


def test_scheduler(ward: Ward, tally: Tally) -> None:
    strike(ward, tally, (SIGKILL, "scheduler", ACTUALS, lambda: ward.cluster.kill("scheduler")))


def test_api_server(ward: Ward, tally: Tally) -> None:
    """The tasks that run go on: they ask again until it answers."""
    strike(ward, tally, (SIGKILL, "api-server", ACTUALS, lambda: ward.cluster.kill("api-server")))


def test_dag_processor_and_triggerer(ward: Ward, tally: Tally) -> None:
    """While the triggerer waits for the day's files."""
    ward.healthy()
    with tally.fault(SIGKILL, "triggerer") as fault, tally.fault(SIGKILL, "dag-processor") as other:
        day = ward.begin(deliver=False)
        ward.until("a wait for files", lambda: ward.in_state(INGEST, "table.wait", "deferred", day))
        struck = time.monotonic()
        ward.cluster.kill("dag-processor", "triggerer")
        ward.deliver(day, day)
        ward.recover(day)
        said(ward, fault, struck, "whole", day)
        for tried in (fault, other):
            ward.whole(day, tried)


def restarted(ward: Ward, part: str) -> Callable[[], None]:
    """An orderly end, and a start three seconds later: tasks begin in between."""

    def happen() -> None:
        ward.cluster.halt(part)
        time.sleep(3)
        ward.cluster.launch(part)

    return happen


def test_postgresql(ward: Ward, tally: Tally) -> None:
    """Its fast shutdown ends every session and rolls open transactions back; SIGKILL leaves that to the log."""
    strike(
        ward,
        tally,
        (RESTART, "postgres", ACTUALS, restarted(ward, "postgres")),
        (SIGKILL, "postgres", SCORING, lambda: ward.cluster.kill("postgres")),
    )


def test_redis(ward: Ward, tally: Tally) -> None:
    strike(
        ward,
        tally,
        (RESTART, "redis", ACTUALS, restarted(ward, "redis")),
        (SIGKILL, "redis", SCORING, lambda: ward.cluster.kill("redis")),
    )


def test_power_cut(ward: Ward, tally: Tally) -> None:
    """All at once, while ingest and a training run; then the same `var` is started again."""
    ward.healthy()
    as_of = ward.ended[-1]
    with tally.fault("power cut", "ingest") as ingest, tally.fault("power cut", "training") as train:
        with ward.held(ACTUALS), ward.held(f"register-{MODEL}") as waits:
            day, training = ward.begin(), ward.train(as_of, "the power will fail")
            waits(2)
            struck = time.monotonic()
            ward.cluster.power_cut()
        ward.cluster.start()
        ward.cluster.wait_ready()
        said(ward, ingest, struck, "ready")
        ward.recover(day)
        said(ward, ingest, struck, "whole", day)
        ward.trained(training)
        said(ward, train, struck, "trained")
        ward.whole(day, ingest)
        ward.registered_once(train)


def test_all_days_are_as_one_clean_scoring_makes_them(ward: Ward, tally: Tally) -> None:
    with tally.fault("all of them", "predictions of every day") as fault:
        for day in ward.ended:
            fault.rows(ward.recomputed(day), ward.predicted_in_mart(day))
            ward.whole(day, fault)
        assert ward.analyst.looks > 100
