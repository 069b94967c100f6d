"""Bodies that run twice, a scheduler, an API server and a whole stack that die in the middle of a day."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterator

import psutil
import pytest

from tests.chaos.airflow.conftest import FIRST, SECOND, Base, Twin
from tests.chaos.airflow.embedded import INGEST, MODEL, MONITOR, SCORE, SOURCE, TRAIN, Embedded, flat, watched
from tests.chaos.tally import Tally

pytestmark = pytest.mark.timeout(1800)  # the first test pays for the history and the twin

ORPHANS = {
    "ingest.table.publish.0": ("lake write trusted", INGEST),
    "score.publish": ("lock", SCORE),
    "monitor.conclude": ("mart monitorings", MONITOR),
    "train.register": ("mlflow create_model_version", TRAIN),
    "train.promote": ("lock", TRAIN),
}
"""Where the first body of a step stops. One that has no lock yet goes on when its retry has done all it had to do; one
that has it, as soon as its retry runs."""


@pytest.fixture(scope="module")
def stack(base: Base, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedded]:
    """A stack that has lived through nothing yet. The tests below are days of its life, in order."""
    with base.stack(tmp_path_factory.mktemp("outages")).running() as found:
        yield found


def orphaned(stack: Embedded, step: str) -> int:
    """Kill the worker over a body that is held; the pid of the body, which lives."""
    body, worker = stack.held(step)
    assert "LocalExecutor" in " ".join(worker.cmdline()), worker.cmdline()
    worker.kill()
    stack.until("the worker is gone", lambda: not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE)
    assert body.is_running()
    return body.pid


def returned(stack: Embedded, step: str, pid: int) -> None:
    stack.until(f"the orphan of {step} has returned", lambda: pid in stack.bodies(step))


def retried(stack: Embedded, dag_id: str, step: str) -> None:
    stack.until(f"a retry of {step}", lambda: stack.newest(dag_id, step)[1] == 2)


def done(stack: Embedded, dag_id: str, step: str) -> None:
    stack.until(f"the end of {step}", lambda: stack.newest(dag_id, step)[0] == "success")


def test_a_body_whose_worker_died_and_its_retry_commit_once(
    stack: Embedded, twin: Callable[[], Twin], tally: Tally
) -> None:
    for step, (point, _) in ORPHANS.items():
        stack.hold(step, point)
    with watched(stack) as wrong:
        stack.api().unpause(TRAIN)
        stack.trigger(INGEST, partition_key=str(FIRST))
        for step, (point, dag_id) in ORPHANS.items():
            with tally.fault("SIGKILL of a worker, both bodies run", step):
                pid = orphaned(stack, step)
                if point == "lock":
                    done(stack, dag_id, step)
                else:
                    retried(stack, dag_id, step)
                stack.let_go(step)
                returned(stack, step, pid)
                done(stack, dag_id, step)
                assert len(stack.bodies(step)) == 2, "both bodies ran to their end"
        stack.run_of(TRAIN, f"{MODEL}|{FIRST}")
    assert wrong == []
    with tally.fault("SIGKILL of a worker, both bodies run", "rows after all of them") as fault:
        fault.rows(flat(twin().first), flat(stack.facts()))


def fallen(stack: Embedded, part: str) -> None:
    """Kill a part; the supervisor says so and ends the rest."""
    supervisor = psutil.Process(stack.state()["pid"])
    family = stack.processes()
    stack.part(part).kill()
    supervisor.wait(60)
    assert f"StackFell: {part} ended with signal SIGKILL" in stack.said()
    assert [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE] == []


Fell = Callable[[Embedded], None]
FALLS: dict[str, tuple[str, str, str, Fell]] = {
    "SIGKILL of the scheduler": (
        "ingest.table.publish.0",
        "lake commit trusted",
        INGEST,
        lambda stack: fallen(stack, "scheduler"),
    ),
    "SIGKILL of the api-server": (
        "score.publish",
        "mart scorings, uncommitted",
        SCORE,
        lambda stack: fallen(stack, "api-server"),
    ),
    "power cut": ("monitor.conclude", "mart ledger verdict", MONITOR, Embedded.cut),
}


def test_whatever_falls_a_start_goes_on_and_the_rows_are_the_same(
    stack: Embedded, twin: Callable[[], Twin], tally: Tally
) -> None:
    for step, point, _, _ in FALLS.values():
        stack.hold(step, point)
    stack.trigger(INGEST, partition_key=str(SECOND))
    with watched(stack) as wrong:
        for kind, (step, point, dag_id, fell) in FALLS.items():
            with tally.fault(kind, f"{step}: {point}"):
                stack.held(step)
                fell(stack)
                stack.up()
                stack.run_of(dag_id, str(SECOND))
    assert wrong == []
    with tally.fault("power cut", "rows after all of them") as fault:
        fault.rows(flat(twin().second), flat(stack.facts()))


def test_an_orphan_that_was_overtaken_by_a_corrected_file_changes_nothing(stack: Embedded, tally: Tally) -> None:
    """Its run was cleared, took in the correction and ended; then the body of the first try goes on."""
    step, key = "ingest.table.publish.0", f"{SOURCE}/schedules/{SECOND}.csv.gz"
    run = stack.api().partition_run(INGEST, str(SECOND))
    assert run is not None
    with tally.fault("SIGKILL of a worker, both bodies run", "a corrected file came between them") as fault:
        stack.hold(step, "lock")
        stack.clear(INGEST, run["dag_run_id"], only_failed=False)
        pid = orphaned(stack, step)
        stack.succeeded(INGEST, run["dag_run_id"])
        text = gzip.decompress(stack.get("landing", key)).decode()
        corrected = "".join(line for line in text.splitlines(keepends=True) if ",UA," not in line)
        assert len(corrected) < len(text)
        stack.s3.put_object(Bucket="landing", Key=key, Body=gzip.compress(corrected.encode(), mtime=0))
        stack.clear(INGEST, run["dag_run_id"], only_failed=False)
        stack.succeeded(INGEST, run["dag_run_id"])
        stack.let_go(step)
        returned(stack, step, pid)
        expected = [(row["carrier"], int(row["flight"]), row["origin"]) for row in stack.delivered("schedules", SECOND)]
        query = "select carrier, flight, origin from {trusted.schedules} where partition_date = ?"
        there = [(row["carrier"], row["flight"], row["origin"]) for row in stack.lake(query, SECOND)]
        fault.rows(expected, there)
        query = "select rows_in, trusted + quarantined + duplicates as parts from ingest_batches "
        [batch] = stack.mart(f"{query} where table_name = ? and partition_date = ?", "schedules", SECOND)
        assert batch == {"rows_in": len(expected), "parts": len(expected)}
