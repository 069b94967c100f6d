"""A clock that is wrong: what this process takes for now, moved. The store's client keeps the true time."""

from __future__ import annotations

import datetime as dt
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

REAL, REAL_TIME = dt.datetime, time.time
TRUE = ("botocore", "urllib3")
"""Modules whose signatures a server with the true time would refuse."""


@contextmanager
def moved(by: dt.timedelta) -> Iterator[None]:
    """`datetime.now`, `utcnow`, `today` and `time.time` are off by `by` for the modules that ask for them here."""

    def shift() -> dt.timedelta:
        caller = sys._getframe(2).f_globals.get("__name__", "")
        return dt.timedelta(0) if caller.startswith(TRUE) else by

    class Kind(type):
        def __instancecheck__(cls, instance: Any) -> bool:
            return isinstance(instance, REAL)

        def __subclasscheck__(cls, other: type) -> bool:
            return issubclass(other, REAL)

    class Moved(REAL, metaclass=Kind):
        """Makes plain datetimes only."""

        def __new__(cls, *args: Any, **kwargs: Any) -> Any:
            return REAL(*args, **kwargs)

        @classmethod
        def now(cls, tz: dt.tzinfo | None = None) -> Any:
            return REAL.now(tz) + shift()

        @classmethod
        def utcnow(cls) -> Any:
            return REAL.now(dt.UTC).replace(tzinfo=None) + shift()

        @classmethod
        def today(cls) -> Any:
            return REAL.now() + shift()

    def moved_time() -> float:
        return REAL_TIME() + shift().total_seconds()

    dt.datetime = Moved  # type: ignore[misc]
    time.time = moved_time
    try:
        yield
    finally:
        dt.datetime = REAL  # type: ignore[misc]
        time.time = REAL_TIME
