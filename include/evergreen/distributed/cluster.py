"""The Dask cluster of models with `compute: dask`: a client that fails clearly, and what its workers have of their own.

Workers run this project's code, and read the object store with the credentials of their own environment: no secret and
no row travels through the scheduler.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar

from include.evergreen.errors import SettingsError, Unavailable
from include.evergreen.settings import DaskSettings, ObjectStoreSettings, Timeouts

if TYPE_CHECKING:
    from distributed import Client

    from include.evergreen.lake.objects import S3Objects

T = TypeVar("T")
ANSWER = 5.0
"""Seconds within which a scheduler answers."""
BEAT = 2.0
"""Seconds between two looks at it, while its answer is awaited."""
WORKERS = 8.0
"""Seconds without any worker, after which none is waited for."""
NEEDED = (
    "dask.dataframe",
    "xgboost.dask",
    "include.evergreen.distributed.training",
    "include.evergreen.distributed.scoring",
)
"""What a scheduler imports for us: it unpickles tasks, also those of XGBoost."""


@contextmanager
def connected(settings: DaskSettings | None) -> Iterator[Client]:
    """A client of the cluster with at least one worker.

    Raises:
        SettingsError: no address, or no Dask. Unavailable: the scheduler is dead or silent, or has no worker.
    """
    if settings is None:
        raise SettingsError(
            "compute: dask: expected the scheduler's address in the connection evergreen_dask "
            "(EVERGREEN_DASK_ADDRESS), found none"
        )
    try:
        import dask
        import distributed
        from distributed.security import Security
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"compute: dask: expected the packages of requirements-cluster.txt, found none: {error}"
        ) from error

    security = None
    if settings.address.startswith("tls://"):
        security = Security(
            tls_ca_file=settings.ca_file,
            tls_client_cert=settings.cert_file,
            tls_client_key=settings.key_file,
            require_encryption=True,
        )
    bounds = {
        "distributed.comm.timeouts.connect": ANSWER,
        "distributed.comm.retry.count": 0,
        "dataframe.convert-string": False,  # XGBoost wants the categories as they are
    }
    with dask.config.set(bounds):
        try:
            asyncio.run(asyncio.wait_for(_greeting(settings.address, security), ANSWER))
            client = distributed.Client(settings.address, timeout=ANSWER, security=security)
        except (OSError, TimeoutError, ValueError) as error:
            raise Unavailable(f"Dask scheduler {settings.address}: expected an answer, found {_said(error)}") from error
        try:
            _workers(client)
            watched(client, lambda: client.run_on_scheduler(_import))
            yield client
        finally:
            with suppress(Exception):  # a silent scheduler cannot be told goodbye
                client.close(timeout=1)


async def _greeting(address: str, security: Any) -> None:
    """Ask a scheduler who it is: a client would wait without end for one that accepts, and never answers."""
    from distributed.core import rpc

    async with rpc(address, connection_args=security.get_connection_args("client") if security else None) as scheduler:
        await scheduler.identity()


async def _import() -> None:
    """On the scheduler: import beside its event loop what would stop that for seconds, on a busy machine beyond
    `ANSWER`."""
    for name in NEEDED:
        await asyncio.to_thread(import_module, name)


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def workers(client: Client) -> list[str]:
    """Addresses of the workers, sorted. Raises Unavailable: no answer."""

    async def ask() -> dict[str, Any]:
        found: dict[str, Any] = await asyncio.wait_for(client.scheduler.identity(), ANSWER)
        return found

    try:
        return sorted(client.sync(ask, callback_timeout=ANSWER + 1)["workers"])
    except (OSError, TimeoutError, RuntimeError) as error:
        address = client.scheduler.address if client.scheduler else "(closed)"
        raise Unavailable(f"Dask scheduler {address}: expected an answer, found {_said(error)}") from error


def _workers(client: Client) -> list[str]:
    """At least one worker, waited for. Raises Unavailable."""
    until = time.monotonic() + WORKERS
    while True:
        found = workers(client)
        if found:
            return found
        if time.monotonic() >= until:
            address = client.scheduler.address
            raise Unavailable(f"Dask scheduler {address}: expected a worker within {WORKERS:g} s, found none")
        time.sleep(0.2)


def watched(client: Client, work: Callable[[], T], together: bool = False) -> T:
    """The answer of `work`, which waits for the cluster.

    Args:
        together: the workers depend on each other, as in a training: one that is lost ends the work.

    Raises:
        Unavailable: the scheduler fell silent, no worker is left, or workers were lost too often.
    """
    from distributed.comm import CommClosedError
    from distributed.scheduler import KilledWorker

    answer: futures.Future[T] = futures.Future()

    def run() -> None:
        try:
            answer.set_result(work())
        except BaseException as error:
            answer.set_exception(error)

    before = set(workers(client))

    def lost(left: list[str]) -> Unavailable:
        address, found = client.scheduler.address, len(before & set(left))
        return Unavailable(f"Dask cluster {address}: expected its {len(before)} workers to stay, found {found} of them")

    threading.Thread(target=run, daemon=True, name="dask-answer").start()
    while not futures.wait([answer], timeout=BEAT).done:
        left = _workers(client)
        if together and not before <= set(left):
            raise lost(left)
    error = answer.exception()
    if error is None:
        return answer.result()
    if together:
        time.sleep(1)  # a worker knows of another's death before the scheduler does
    left = workers(client)
    if not before <= set(left):  # a training cannot go on without one of its workers, whatever it says
        raise lost(left) from error
    gone = (KilledWorker, CommClosedError, OSError, TimeoutError, futures.CancelledError, asyncio.CancelledError)
    if isinstance(error, gone):
        raise Unavailable(f"Dask cluster {client.scheduler.address}: {_said(error)}") from error
    raise error


def objects() -> S3Objects:
    """The lake bucket, for a worker: by `EVERGREEN_S3_*` of its environment."""
    from include.evergreen.lake.objects import S3Objects

    store = ObjectStoreSettings.from_env()
    return S3Objects(store, store.lake_bucket, Timeouts())
