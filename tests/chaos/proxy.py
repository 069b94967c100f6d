"""Proxies that misbehave on purpose: `HttpProxy` between a client and an HTTP/1.1 server, `Wire` on any TCP connection.

Each runs in a thread of its own. A fault begins with the n-th request that matches, and lasts until `heal`.
"""

from __future__ import annotations

import asyncio
import re
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import unquote

Mode = Literal["down", "silent", "busy", "slow", "cut upload", "cut download", "lost answer", "stale list"]
CHUNK = 64 * 1024
SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Reduce your request rate</Message></Error>"
_CONTENTS = re.compile(rb"<Contents>.*?</Contents>", re.DOTALL)
_KEY = re.compile(rb"<Key>(.*?)</Key>", re.DOTALL)


class Proxy:
    """A loopback listener in front of a port; `client` is what a connection is given to."""

    def __init__(self, port: int) -> None:
        self.upstream = port
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="chaos-proxy", daemon=True)
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self._serving: set[asyncio.Task[Any]] = set()

    def __enter__(self) -> Self:
        self._thread.start()
        self._do(self._listen())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._do(self._shut())
        self._do(asyncio.sleep(0))  # what was cancelled ends
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _listen(self) -> None:
        if self._server is None:
            listening = socket.create_server(("127.0.0.1", self.port))
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, CHUNK)  # as on a network, little is on its way
            self._server = await asyncio.start_server(self._accept, sock=listening, limit=CHUNK)
            self.port = listening.getsockname()[1]

    async def _shut(self) -> None:
        """Refuse connections, and end those that are open."""
        if self._server is not None:
            self._server.close()
            self._server = None
        self._abort()

    def _abort(self) -> None:
        for writer in list(self._open):
            writer.transport.abort()
        for task in self._serving - {asyncio.current_task()}:
            task.cancel()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving = asyncio.current_task()
        assert serving is not None
        self._serving.add(serving)
        self._open.add(writer)
        try:
            await self.client(reader, writer)
        except (OSError, EOFError, asyncio.CancelledError):
            pass
        finally:
            self._serving.discard(serving)
            self._open.discard(writer)
            writer.transport.abort()

    async def client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        raise NotImplementedError

    async def server(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection to what stands behind."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.upstream, limit=CHUNK)
        self._open.add(writer)
        return reader, writer


@dataclass
class Head:
    """The head of a request or an answer; header names in lower case."""

    first: str
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def method(self) -> str:
        return self.first.split(" ")[0]

    @property
    def target(self) -> str:
        return self.first.split(" ")[1]

    def bytes(self) -> bytes:
        lines = [self.first, *(f"{name}: {value}" for name, value in self.headers.items())]
        return "\r\n".join([*lines, "", ""]).encode("latin-1")


async def read_head(reader: asyncio.StreamReader) -> Head:
    """Raises EOFError when the other side has ended."""
    text = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = text.strip().split("\r\n")
    return Head(
        first, {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    )


async def body(reader: asyncio.StreamReader, head: Head, of_answer_to: str = "") -> AsyncIterator[bytes]:
    """A body as it is on the wire, its frames too."""
    if of_answer_to:
        status = int(head.first.split(" ")[1])
        if of_answer_to == "HEAD" or status in (204, 304) or status < 200:
            return
    if "chunked" in head.headers.get("transfer-encoding", ""):
        while True:
            line = await reader.readuntil(b"\r\n")
            size = int(line.split(b";")[0], 16)
            yield line + await reader.readexactly(size + 2)
            if size == 0:
                return
    left = int(head.headers.get("content-length", 0))
    while left:
        part = await reader.read(min(CHUNK, left))
        if not part:
            raise EOFError
        left -= len(part)
        yield part


def unframed(wire: bytes) -> bytes:
    """The content of a chunked body."""
    found, at = b"", 0
    while True:
        end = wire.index(b"\r\n", at)
        size = int(wire[at:end].split(b";")[0], 16)
        if size == 0:
            return found
        found += wire[end + 2 : end + 2 + size]
        at = end + 2 + size + 2


class HttpProxy(Proxy):
    """Speaks HTTP/1.1 to both sides.

    Attributes:
        seen: (method, target) of every request since `heal`. hit: how many of them the fault met.
        hit_at: the first of them, by the monotonic clock.
    """

    def __init__(self, port: int) -> None:
        super().__init__(port)
        self.seen: list[tuple[str, str]] = []
        self.hit = 0
        self.hit_at = 0.0
        self._mode: Mode | None = None
        self._after = 0
        self._wanted: Callable[[str, str], bool] = lambda method, target: True
        self._rate = 0
        self._stored: set[str] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def break_(
        self,
        mode: Mode,
        after: int = 0,
        wanted: Callable[[str, str], bool] | None = None,
        bytes_per_second: int = 2**20,
    ) -> None:
        """Break from the request on that follows `after` matching ones. `wanted` is asked (method, target)."""
        self._mode, self._after, self._rate = mode, after, bytes_per_second
        self._wanted = wanted or (lambda method, target: True)
        self.seen, self.hit, self.hit_at = [], 0, 0.0

    def heal(self) -> None:
        """Be a good proxy again; what hung is cut."""
        self._mode = None
        self.seen, self.hit, self.hit_at = [], 0, 0.0

        async def again() -> None:
            self._abort()
            await self._listen()

        self._do(again())

    def forget(self) -> None:
        """A stale list shows what was stored before this."""
        self._stored = set()

    def _faulty(self, head: Head) -> bool:
        self.seen.append((head.method, head.target))
        if self._mode is None or not self._wanted(head.method, head.target):
            return False
        if self._after > 0:
            self._after -= 1
            return False
        return True

    async def client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await self.server()
        try:
            while await self._exchange(reader, writer, up_reader, up_writer):
                pass
        finally:
            self._open.discard(up_writer)
            up_writer.transport.abort()

    async def _exchange(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        up_reader: asyncio.StreamReader,
        up_writer: asyncio.StreamWriter,
    ) -> bool:
        """One request and its answer. False: the connection is to be ended."""
        head = await read_head(reader)
        mode = self._mode if self._faulty(head) else None
        listing = head.method == "GET" and "list-type=2" in head.target
        size = int(head.headers.get("content-length", 0))
        if mode == "cut upload" and not (head.method in ("PUT", "POST") and size):
            mode = None
        if (mode == "lost answer" and head.method not in ("PUT", "POST", "DELETE")) or (
            mode == "cut download" and head.method != "GET"
        ):
            mode = None
        if mode == "stale list" and not listing:
            mode = None
        if mode is not None:
            self.hit += 1
            self.hit_at = self.hit_at or time.monotonic()
        if mode == "down":
            await self._shut()
            return False
        if mode == "silent":
            await asyncio.Event().wait()
        if head.headers.pop("expect", None):  # no part of the signature
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if mode == "busy":
            async for _ in body(reader, head):
                pass
            answer = Head("HTTP/1.1 503 Slow Down", {"content-type": "application/xml"})
            answer.headers["content-length"] = str(len(SLOW_DOWN))
            writer.write(answer.bytes() + (SLOW_DOWN if head.method != "HEAD" else b""))
            await writer.drain()
            return True
        up_writer.write(head.bytes())
        sent = 0
        async for part in body(reader, head):
            if mode == "cut upload" and sent + len(part) > size // 2:
                up_writer.write(part[: max(0, size // 2 - sent)])
                await up_writer.drain()
                return False
            sent += len(part)
            up_writer.write(part)
            await up_writer.drain()
            await self._pace(mode, len(part))
        answer = await read_head(up_reader)
        if mode == "lost answer":
            async for _ in body(up_reader, answer, head.method):
                pass
            self._note(head)
            return False
        if mode == "stale list":
            await self._stale(writer, up_reader, answer)
            return True
        writer.write(answer.bytes())
        total, given = int(answer.headers.get("content-length", 0)), 0
        async for part in body(up_reader, answer, head.method):
            if mode == "cut download":
                writer.write(part[: len(part) // 2])
                await writer.drain()
                return False
            given += len(part)
            writer.write(part)
            await writer.drain()
            await self._pace(mode, len(part))
        await writer.drain()
        if mode == "cut download" and total == 0:
            return False
        self._note(head)
        return "close" not in answer.headers.get("connection", "")

    def _note(self, head: Head) -> None:
        if head.method == "PUT":
            self._stored.add(unquote(head.target.split("?")[0]).lstrip("/").partition("/")[2])

    async def _pace(self, mode: Mode | None, count: int) -> None:
        if mode == "slow":
            await asyncio.sleep(count / self._rate)

    async def _stale(self, writer: asyncio.StreamWriter, up_reader: asyncio.StreamReader, answer: Head) -> None:
        """A listing without the keys that came through here since `forget`."""
        wire = b"".join([part async for part in body(up_reader, answer, "GET")])
        if answer.headers.pop("transfer-encoding", None):
            wire = unframed(wire)

        def kept(match: re.Match[bytes]) -> bytes:
            found = _KEY.search(match[0])
            return b"" if found and unquote(found[1].decode()) in self._stored else match[0]

        text = _CONTENTS.sub(kept, wire)
        answer.headers["content-length"] = str(len(text))
        writer.write(answer.bytes() + text)
        await writer.drain()


class Wire(Proxy):
    """Bytes both ways, until it goes silent or loses the answer to a commit.

    Attributes:
        lost: commits whose answer was lost since `heal`.
    """

    def __init__(self, port: int) -> None:
        super().__init__(port)
        self.silent = False
        self.lost = 0
        self._lose: bytes | None = None

    def be_silent(self, after: bytes | None = None) -> None:
        """Accept and never answer: from now on, or once a client has said `after`."""
        self.silent, self._trigger = after is None, after

    _trigger: bytes | None = None

    def lose_commit(self, said: bytes) -> None:
        """Cut the connection of the next client that commits after it has said `said`; the commit takes place."""
        self._lose, self.lost = said, 0

    def down(self) -> None:
        self._do(self._shut())

    def heal(self) -> None:
        self.silent, self._trigger, self._lose = False, None, None

        async def again() -> None:
            self._abort()
            await self._listen()

        self._do(again())

    async def client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.silent:
            await asyncio.Event().wait()
        up_reader, up_writer = await self.server()
        told, said, committing = b"", False, False

        async def onwards() -> None:
            nonlocal told, said, committing
            while data := await reader.read(CHUNK):
                told = told[-200:] + data
                if self._trigger is not None and self._trigger in told:
                    self.silent = True
                said = said or (self._lose is not None and self._lose in told)
                if said and self._lose is not None and b"COMMIT" in data.upper():
                    committing, self._lose = True, None
                if not self.silent:
                    up_writer.write(data)
                    await up_writer.drain()

        async def back() -> None:
            while data := await up_reader.read(CHUNK):
                if committing:
                    self.lost += 1
                    writer.transport.abort()
                    return
                if not self.silent:
                    writer.write(data)
                    await writer.drain()

        tasks = [asyncio.ensure_future(onwards()), asyncio.ensure_future(back())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
                with suppress(asyncio.CancelledError, OSError):
                    await task
            self._open.discard(up_writer)
            up_writer.transport.abort()
