"""A dependency that is dead or silent: every step says so within 15 seconds, and so does every page; no alert is lost.

A silent server accepts connections and never answers. The bound is the clock's: it is what is promised. Neither a slow
server nor a busy one is silent.
"""

from __future__ import annotations

import datetime as dt
import json
import socket
import sqlite3
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import ExitStack, closing, suppress
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pytest
import sqlalchemy as sa
from aiosmtpd.controller import Controller
from fastapi.testclient import TestClient

from include.evergreen import silence
from include.evergreen.alerts.cause import of_failed_run
from include.evergreen.alerts.delivery import RETRY
from include.evergreen.alerts.inbox import Inbox
from include.evergreen.alerts.message import Links
from include.evergreen.errors import Unavailable
from include.evergreen.lake.iceberg import IcebergLake
from include.evergreen.lake.objects import S3Objects
from include.evergreen.mart.store import Mart
from include.evergreen.platform import Platform
from include.evergreen.settings import Timeouts
from include.evergreen.web.app import create_app
from tests.chaos.proxy import HttpProxy, Wire
from tests.chaos.stages import DAY, FAULTED, MODEL, Outcome, Tasks, source, spec
from tests.chaos.tally import Tally
from tests.chaos.worlds import FACTS, Server, Twin, World, made, served, server, tasks, twin
from tests.examples_web import FakeAirflow

__all__ = ["made", "server", "tasks", "twin"]

pytestmark = pytest.mark.allow_hosts(["127.0.0.1", "::1"])

SECONDS = 15.0
Part = Literal["object store", "registry", "mart", "catalog"]
PARTS: tuple[Part, ...] = ("object store", "registry", "mart", "catalog")
FILES = ("catalog.db", "mart.db", "registry.db")


class Silent:
    """A loopback port that accepts connections and never reads them. `met_at`: the first, by the monotonic clock."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = int(self._socket.getsockname()[1])
        self.met_at: float | None = None
        self._held: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                self._held.append(self._socket.accept()[0])
                self.met_at = self.met_at or time.monotonic()

    def close(self) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes the thread
        for one in (self._socket, *self._held):
            one.close()


def clear(error: str | None, text: str, address: str) -> None:
    """An error a person can act on: ours, one short line, with the address and what was expected of it."""
    assert error == "Unavailable", f"{error}: {text}"
    assert address in text and "expected" in text and "\n" not in text and len(text) < 500, text


@pytest.fixture(scope="module")
def middle(twin: Twin) -> Iterator[World]:
    """The clean walk before rebuild and rollback, served; nobody writes its files."""
    with served(twin.middle) as found:
        yield found


def world_of(middle: World, folder: Path) -> World:
    """The same objects, with files of its own."""
    folder.mkdir()
    for name in FILES:  # what is in a log beside the file comes along
        with closing(sqlite3.connect(middle.folder / name)) as old, closing(sqlite3.connect(folder / name)) as new:
            old.backup(new)
    return World(folder, middle.port, middle.store)


def settings_without(world: World, part: Part, port: int) -> Any:
    if part == "object store":
        return world.settings(f"http://127.0.0.1:{port}")
    uri = f"http://127.0.0.1:{port}" if part == "registry" else f"postgresql+psycopg://u:p@127.0.0.1:{port}/{part}"
    return world.settings(**{f"{part}_uri": uri})


def files_of(world: World, part: Part) -> list[tuple[Any, ...]]:
    """What the world's files say but for those of the part that is gone."""
    return [*(world.mart() if part != "mart" else []), *(world.registry() if part != "registry" else [])]


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.replace(" ", "-"))
def test_every_step_says_that_a_part_is_dead_or_silent(
    part: Part, middle: World, tasks: Tasks, twin: Twin, tally: Tally, tmp_path: Path
) -> None:
    steps = [step for step in FAULTED if step != "maintain" or part in ("object store", "catalog")]
    met: list[str] = []
    work: dict[str, float] = {}
    for kind in ("silent", "dead"):
        with ExitStack() as stack:
            running: dict[str, tuple[World, Silent, Future[Outcome]]] = {}
            for step in steps if kind == "silent" else met:
                world = world_of(middle, tmp_path / f"{kind}-{step}")
                nobody = Silent()
                stack.callback(nobody.close)
                if kind == "dead":
                    nobody.close()
                settings = settings_without(world, part, nobody.port)
                running[step] = (world, nobody, tasks.start(step, settings, twin.memo))
            for step, (world, nobody, future) in running.items():
                tried = future.result()
                if kind == "silent":
                    if nobody.met_at is None:  # a step that does not need the part
                        continue
                    met.append(step)
                    work[step] = nobody.met_at - (tried.ended - tried.seconds)
                with tally.fault(f"{part} {kind}", step) as fault:
                    clear(tried.error, tried.text, f"127.0.0.1:{nobody.port}")
                    # from the moment the part is asked: a training has worked before it asks for the champion
                    assert tried.seconds - work[step] < SECONDS, f"{step}: {tried.seconds:.1f} s"
                    if (part, step) == ("registry", "withdraw"):  # the ledger says so first; a retry goes on from there
                        tasks.run(step, world.settings(), twin.memo).done()
                        ledger = [fact for fact in twin.facts[step] if fact[:2] != ("decision", "rebuild")]
                        fault.rows([fact for fact in ledger if fact[0] in FACTS], world.mart())
                    else:
                        fault.rows(files_of(middle, part), files_of(world, part))
    assert len(met) >= {"object store": 15, "registry": 8, "mart": 15, "catalog": 8}[part], met


@pytest.mark.parametrize(
    "steps", [("publish", "predict", "measure", "build", "register", "rebuild")], ids=["six-steps"]
)
def test_an_object_store_that_falls_silent_on_the_way(
    steps: tuple[str, ...], middle: World, tasks: Tasks, twin: Twin, tally: Tally, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        running = {}
        for step in ("publish", "predict", "measure", "build", "register", "rebuild"):
            world = world_of(middle, tmp_path / step)
            proxy = stack.enter_context(HttpProxy(middle.port))
            proxy.break_("silent", after=len(twin.requests[step]) // 2)
            running[step] = (world, proxy, tasks.start(step, world.settings(proxy.url), twin.memo))
        for step, (world, proxy, future) in running.items():
            tried = future.result()
            with tally.fault("object store silent", f"{step}, on the way") as fault:
                assert proxy.hit
                clear(tried.error, tried.text, proxy.url)
                assert tried.ended - proxy.hit_at < SECONDS, f"{step}: {tried.ended - proxy.hit_at:.1f} s"
                fault.rows(files_of(middle, "object store"), files_of(world, "object store"))


# --- PostgreSQL ------------------------------------------------------------------------------------------------------


@pytest.fixture
def wire(server: Server) -> Iterator[Wire]:
    with Wire(server.port) as found:
        yield found


def decided(mart: Mart) -> dict[str, Any]:
    return mart.append_decision(
        kind="verdict", subject=MODEL, as_of=DAY, outcome="ok", reasons=[], evidence={}, actor="chaos", run_id="r"
    )


def test_a_mart_that_falls_silent_in_a_transaction(server: Server, wire: Wire, tally: Tally) -> None:
    database = server.database()
    mart = Mart(server.uri(database, wire.port))
    mart.create()
    count = server.reader(database)
    with tally.fault("mart silent", "in a transaction, under a lock") as fault:
        wire.be_silent(after=b"INSERT INTO ledger")
        began = time.monotonic()
        with pytest.raises(Unavailable) as error, mart.lock("chaos"):
            decided(mart)
        assert time.monotonic() - began < SECONDS
        clear("Unavailable", str(error.value), f"127.0.0.1:{wire.port}")
        assert count("select count(*) from ledger") == [(0,)]
        wire.heal()
        again = Mart(server.uri(database, wire.port))
        forgotten()
        with again.lock("chaos"):
            decided(again)
        fault.rows([("verdict", "r")], count("select kind, run_id from ledger"))
    with tally.fault("mart silent", "a connection of the pool") as fault:
        wire.be_silent()
        began = time.monotonic()
        with pytest.raises(Unavailable):
            again.decisions()
        assert time.monotonic() - began < SECONDS
        wire.heal()
        forgotten()
        fault.rows([("verdict", "r")], [(row["kind"], row["run_id"]) for row in again.decisions()])
    for made_here in (mart, again):
        made_here.engine.dispose()


@pytest.fixture(scope="module")
def warm() -> None:
    """What a running API server has imported: the clock is for waiting."""
    for name in ("boto3", "mlflow.tracking", "mlflow.store.tracking.sqlalchemy_store"):
        import_module(name)


def forgotten() -> None:
    """What a new process does not know: who was silent a moment ago."""
    silence.forget()


def test_a_busy_server_is_not_a_silent_one(server: Server, wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("include.evergreen.postgres.QUIET_SECONDS", 0.3)
    mart = Mart(server.uri(server.database(), wire.port))
    with mart.reading() as connection:
        assert connection.scalar(sa.text("select 7 from pg_sleep(2)")) == 7
    mart.engine.dispose()


def test_a_dead_client_leaves_no_lock_behind(server: Server) -> None:
    """The server asks about clients that say nothing; without it the locks of a lost machine stay for hours."""
    mart = Mart(server.uri(server.database()))
    names = ("tcp_keepalives_idle", "tcp_keepalives_interval", "tcp_keepalives_count", "tcp_user_timeout")
    with mart.reading() as connection:
        found = {name: connection.scalar(sa.text(f"show {name}")) for name in (*names, "statement_timeout")}
    assert found == dict(zip(names, ("10", "5", "3", "10000"), strict=True)) | {"statement_timeout": "10min"}
    mart.engine.dispose()


def test_a_catalog_that_falls_silent_in_a_commit(
    server: Server, wire: Wire, middle: World, tmp_path: Path, tally: Tally
) -> None:
    database = server.database()
    world = world_of(middle, tmp_path / "world")
    settings = world.settings(catalog_uri=server.uri(database, wire.port))
    settings = settings.model_copy(
        update={"object_store": settings.object_store.model_copy(update={"lake_bucket": "other"})}
    )
    S3Objects(settings.object_store, "other", settings.timeouts).ensure_bucket()
    day = dt.date(2013, 1, 1)
    rows = pa.table({"n": [1, 2], "partition_date": pa.array([day, day], pa.date32())})
    IcebergLake(settings).write("trusted.t", rows, [day])
    with tally.fault("catalog silent", "in a commit") as fault:
        wire.be_silent(after=b"UPDATE iceberg_tables")
        began = time.monotonic()
        with pytest.raises(Unavailable) as error:
            IcebergLake(settings).write("trusted.t", rows.slice(0, 1), [day])
        assert time.monotonic() - began < SECONDS
        clear("Unavailable", str(error.value), f"127.0.0.1:{wire.port}")
        wire.heal()
        forgotten()
        IcebergLake(settings).write("trusted.t", rows.slice(0, 1), [day])
        fault.rows([1], IcebergLake(settings).read("trusted.t")["n"].to_pylist())


# --- slow and alive --------------------------------------------------------------------------------------------------


def test_a_slow_object_store_works(middle: World, tally: Tally) -> None:
    """1 MB/s, and files that take longer than any timeout: those bound a pause, not a transfer."""
    size, timeouts = 8 * 2**20, Timeouts()
    data = b"".join(path.read_bytes() for path in sorted((middle.folder / "store").rglob("*")) if path.is_file())
    data = (data * (size // len(data) + 1))[:size]
    assert size / 2**20 > timeouts.read > timeouts.connect
    with HttpProxy(middle.port) as proxy, tally.fault("object store slow", "8 MiB at 1 MiB/s") as fault:
        store = S3Objects(middle.settings(proxy.url).object_store, "lake", timeouts)
        proxy.break_("slow", bytes_per_second=2**20)
        began = time.monotonic()
        store.put("staging/chaos/slow", data)
        assert time.monotonic() - began > timeouts.read
        stored = (middle.folder / "store/lake/staging/chaos/slow").read_bytes()
        got = store.get("staging/chaos/slow")
        assert len([1 for method, _ in proxy.seen if method in ("PUT", "GET")]) == 2, "nothing was tried twice"
        fault.rows([data, data], [stored, got])
        store.delete(["staging/chaos/slow"])


# --- channels of alerts ----------------------------------------------------------------------------------------------


class Mailbox:
    """A handler that counts what it is sent."""

    def __init__(self) -> None:
        self.mails: list[str] = []

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        self.mails.append(envelope.content.decode())
        return "250 OK"


@pytest.mark.parametrize("kind", ["silent", "dead"])
def test_a_mail_server_holds_no_task(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tally: Tally) -> None:
    from include.evergreen.orchestration import notify

    notify.notifier("smtp")  # tasks have it loaded
    nobody = Silent()
    port = nobody.port
    if kind == "dead":
        nobody.close()
    extra = {"from_email": "evergreen@example.org", "disable_ssl": True, "disable_tls": True}
    monkeypatch.setenv(
        "AIRFLOW_CONN_ALERTS_SMTP",
        json.dumps({"conn_type": "smtp", "host": "127.0.0.1", "port": port, "extra": extra}),
    )
    mart = Mart(f"sqlite:///{tmp_path}/mart.db")
    mart.create()
    now = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    inbox = Inbox(mart, lambda: now)
    inbox.raise_(of_failed_run(f"score__{MODEL}", DAY, "run", "Unavailable: chaos", "predict", MODEL))
    channel = '[{"kind": "smtp", "conn_id": "alerts_smtp", "to": ["oncall@example.org"]}]'

    def tell() -> None:
        notify.tell(
            inbox, Links("http://airflow.example.org"), dt.timedelta(hours=24), lambda: notify.channels(channel)
        )

    with tally.fault(f"SMTP {kind}", "an alert") as fault:
        began = time.monotonic()
        tell()
        assert time.monotonic() - began < SECONDS
        nobody.close()
        box = Mailbox()
        controller = Controller(box, hostname="127.0.0.1", port=port)
        controller.start()
        try:
            now += RETRY * 2
            tell()
            now += RETRY * 2
            tell()
        finally:
            controller.stop()
        fault.rows(["mail"], ["mail" for mail in box.mails if "oncall@example.org" in mail])
    mart.engine.dispose()


# --- pages -----------------------------------------------------------------------------------------------------------


def paths(client: TestClient) -> list[str]:
    """Every page, about something that is there."""
    values = {"model": MODEL, "version": "1", "as_of": str(DAY), "source": source().name, "table": "schedules"}
    values |= {"partition": str(DAY), "name": "scoring-failed", "view": f"{MODEL}_current", "dag_id": f"train__{MODEL}"}
    found = []
    for route in client.app.routes:  # type: ignore[attr-defined]
        if "GET" in (getattr(route, "methods", None) or ()):
            path = route.path
            for name, value in values.items():
                path = path.replace(f"{{{name}}}", value)
            found.append(f"{path}?since={DAY}&until={DAY}" if "/downloads/" in path else path)
    return [path for path in found if "{" not in path]


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.replace(" ", "-"))
@pytest.mark.usefixtures("warm")
def test_every_page_answers(part: Part, middle: World, tmp_path: Path, tally: Tally) -> None:
    forgotten()
    world = world_of(middle, tmp_path / "world")
    nobody = Silent()
    platform = Platform(settings_without(world, part, nobody.port))
    app = create_app(lambda: platform, FakeAirflow(platform.mart), lambda: ({MODEL: spec()}, {source().name: source()}))
    refused: list[str] = []
    with TestClient(app, raise_server_exceptions=True, headers={"authorization": "Bearer token-admin"}) as client:
        pages = paths(client)
        assert len(pages) > 10
        for path in pages:
            with tally.fault(f"{part} silent", f"page {path}"):
                began = time.monotonic()
                answer = client.get(path, headers={"accept": "text/html"})
                assert time.monotonic() - began < SECONDS, path
                assert answer.status_code < 500 or answer.status_code == 503, f"{path}: {answer.status_code}"
                assert "Traceback" not in answer.text and f"127.0.0.1:{nobody.port}" not in answer.text, path
                if answer.status_code == 503:
                    refused.append(path)
                    assert "does not answer" in answer.text, path
    nobody.close()
    assert refused or part not in ("mart", "object store"), pages
    if part == "mart":
        assert len(refused) > len(pages) // 2, refused
