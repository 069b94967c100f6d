"""XGBoost's tracker in a process of its own on the scheduler's machine.

XGBoost starts it inside the scheduler, and ends the process it is in when a worker is lost while the workers of a
training find each other: the scheduler, and every other work on the cluster with it.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import threading
from collections import defaultdict
from contextlib import suppress
from importlib import import_module
from multiprocessing.connection import Connection
from typing import Any

_running: dict[str, list[Connection]] = defaultdict(list)
"""On the scheduler, by client: a process ends with its connection."""


async def apart(client: str, module: str, name: str, *arguments: Any) -> Any:
    """On the scheduler: the answer of a module's function, made by a process that lives as long as the threads of the
    function, until `end`, and no longer than the scheduler. Raises what the function raises."""
    return await asyncio.to_thread(_started, client, module, name, arguments)


async def end(client: str) -> None:
    """On the scheduler: end the processes of a client."""
    for connection in _running.pop(client, []):
        connection.close()


def _started(client: str, module: str, name: str, arguments: tuple[Any, ...]) -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["xgboost.dask"])  # once for all trainings
    mine, its = context.Pipe()
    context.Process(target=_run, args=(its, module, name, arguments), daemon=True).start()
    its.close()
    _running[client].append(mine)
    answer, error = mine.recv()
    if error is not None:
        raise error
    return answer


def _run(connection: Connection, module: str, name: str, arguments: tuple[Any, ...]) -> None:
    before = set(threading.enumerate())
    try:
        connection.send((getattr(import_module(module), name)(*arguments), None))
    except Exception as error:
        connection.send((None, error))
    threads = set(threading.enumerate()) - before
    threading.Thread(target=_until_end, args=(connection,), daemon=True).start()
    for thread in threads:
        thread.join()


def _until_end(connection: Connection) -> None:
    with suppress(EOFError, OSError):
        connection.recv()
    os._exit(0)
