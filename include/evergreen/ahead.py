"""Work that runs ahead of its consumer: results in order, a bounded number of them in memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def ahead(calls: Iterable[Callable[[], T]], threads: int, name: str = "ahead") -> Iterator[T]:
    """The results of `calls` in their order, from threads; at most `threads` + 1 are under way or waiting at a time.

    `calls` is read in the consumer's thread. An error of a call, or of `calls` itself, ends the rest.
    """
    with ThreadPoolExecutor(threads, thread_name_prefix=name) as pool:
        waiting: deque[Future[T]] = deque()
        try:
            for call in calls:
                waiting.append(pool.submit(call))
                if len(waiting) > threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
