"""One behaviour of objects, over S3 and in memory."""

from __future__ import annotations

import datetime as dt
import hashlib
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from include.evergreen.errors import NotFound, SettingsError, Unavailable
from include.evergreen.lake.objects import MemoryObjects, S3Objects
from include.evergreen.local.object_store import command, wait_ready
from include.evergreen.settings import ObjectStoreSettings, Settings, Timeouts

QUICK = Timeouts(connect=0.5, read=0.5, tries=2)


@pytest.fixture(params=["memory", "s3"])
def objects(request: pytest.FixtureRequest) -> MemoryObjects | S3Objects:
    if request.param == "memory":
        return MemoryObjects("lake")
    settings: Settings = request.getfixturevalue("settings")
    return S3Objects(settings.object_store, settings.object_store.lake_bucket, settings.timeouts)


def test_what_was_put_is_got(objects: MemoryObjects | S3Objects) -> None:
    objects.put("a/b.csv", b"one", "text/csv")
    objects.put("a/b.csv", b"two", "text/csv")
    assert objects.get("a/b.csv") == b"two"
    assert objects.exists("a/b.csv")
    assert not objects.exists("a/c.csv")


def test_empty_object_and_odd_names(objects: MemoryObjects | S3Objects) -> None:
    for key in ("empty", "a b/ü+1%.csv", "a=1/x.csv"):
        objects.put(key, key.encode() if key != "empty" else b"")
    assert objects.get("empty") == b""
    assert objects.get("a b/ü+1%.csv") == "a b/ü+1%.csv".encode()
    assert {o.key for o in objects.list()} == {"empty", "a b/ü+1%.csv", "a=1/x.csv"}


def test_missing_object_is_named(objects: MemoryObjects | S3Objects) -> None:
    with pytest.raises(NotFound, match=f"s3://{objects.bucket}/no/such.csv"):
        objects.get("no/such.csv")


def test_list_is_by_key_with_size_etag_and_time(objects: MemoryObjects | S3Objects) -> None:
    begun = dt.datetime.now(dt.UTC) - dt.timedelta(seconds=2)
    for key in ("b/2", "a/1", "b/10", "bb/3"):
        objects.put(key, key.encode())
    found = objects.list("b/")
    assert [o.key for o in found] == ["b/10", "b/2"]
    assert [o.size for o in found] == [4, 3]
    assert found[0].etag == hashlib.md5(b"b/10").hexdigest()
    assert begun < found[0].modified < dt.datetime.now(dt.UTC) + dt.timedelta(seconds=2)
    assert [o.key for o in objects.list("b")] == ["b/10", "b/2", "bb/3"]
    assert objects.list("nothing/") == []


def test_list_goes_past_one_page(objects: MemoryObjects | S3Objects) -> None:
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda i: objects.put(f"many/{i:04}", b"x"), range(1003)))
    assert [o.key for o in objects.list("many/")] == [f"many/{i:04}" for i in range(1003)]
    objects.delete(o.key for o in objects.list("many/"))
    assert objects.list() == []


def test_delete_is_idempotent(objects: MemoryObjects | S3Objects) -> None:
    objects.put("x", b"1")
    objects.put("y", b"2")
    objects.delete(["x", "never"])
    objects.delete(["x"])
    objects.delete([])
    assert [o.key for o in objects.list()] == ["y"]


def test_threads_share_one_store(objects: MemoryObjects | S3Objects) -> None:
    for i in range(40):
        objects.put(f"t/{i}", str(i).encode() * 1000)
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda i: objects.get(f"t/{i}"), range(40)))
    assert got == [str(i).encode() * 1000 for i in range(40)]


def test_ensure_bucket_twice(objects: MemoryObjects | S3Objects) -> None:
    objects.put("kept", b"1")
    objects.ensure_bucket()
    assert objects.get("kept") == b"1"


def test_missing_bucket_and_wrong_key(settings: Settings) -> None:
    store = settings.object_store
    with pytest.raises(NotFound, match="s3://nowhere"):
        S3Objects(store, "nowhere", settings.timeouts).list()
    wrong = ObjectStoreSettings(endpoint=store.endpoint, access_key="someone", secret_key="else")
    with pytest.raises(SettingsError, match="valid keys"):
        S3Objects(wrong, store.lake_bucket, settings.timeouts).list()


@pytest.fixture(params=["closed", "silent"])
def dead_endpoint(request: pytest.FixtureRequest) -> Iterator[str]:
    """A port that nothing listens on, and one that accepts and never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if request.param == "silent":
            listener.listen(64)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_dead_endpoint_is_unavailable_within_its_timeouts(dead_endpoint: str) -> None:
    store = ObjectStoreSettings(endpoint=dead_endpoint, access_key="a", secret_key="b")
    objects = S3Objects(store, "lake", QUICK)
    for call in (lambda: objects.get("x"), lambda: objects.put("x", b"1"), objects.list, lambda: objects.delete(["x"])):
        begun = time.monotonic()
        with pytest.raises(Unavailable, match=dead_endpoint):
            call()
        assert time.monotonic() - begun < 5


@pytest.mark.parametrize("answers", [["short", "whole"], ["short", "short"], ["busy", "whole"]], ids="-then-".join)
def test_a_broken_answer_is_asked_again(answers: list[str]) -> None:
    left = list(answers)

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer = left.pop(0)
            body = b"" if answer == "busy" else b"0123456789"
            self.send_response(503 if answer == "busy" else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[:4] if answer == "short" else body)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing to say."""

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        endpoint = f"http://127.0.0.1:{server.server_port}"
        objects = S3Objects(ObjectStoreSettings(endpoint=endpoint, access_key="a", secret_key="b"), "lake", QUICK)
        if answers[-1] == "whole":
            assert objects.get("x") == b"0123456789"
        else:
            with pytest.raises(Unavailable, match=f"s3://lake/x: expected an answer from {endpoint}, found"):
                objects.get("x")
        server.shutdown()
    assert not left


def test_server_keys_stay_out_of_the_command_line(tmp_path: Path) -> None:
    argv, env = command(tmp_path, 9000, "access", "secret")
    assert "secret" not in " ".join(argv)
    assert "secret" in env["RCLONE_AUTH_KEY"]
    with pytest.raises(SettingsError):
        command(tmp_path, 9000, "access", 'se"cret')


def test_wait_ready_gives_up() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        with pytest.raises(Unavailable, match=r"within 0\.2 s"):
            wait_ready(listener.getsockname()[1], timeout=0.2)
