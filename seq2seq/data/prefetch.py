"""Work that threads do ahead of time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
Made = TypeVar("Made")


def prefetched(make: Callable[[T], Made], items: Iterable[T], threads: int = 1) -> Generator[Made]:
    """`make` of each item, in order, computed by threads, for each thread up to two items ahead of the consumer."""
    waiting: deque[Future[Made]] = deque()
    with ThreadPoolExecutor(threads, "prefetch") as pool:
        try:
            for item in items:
                waiting.append(pool.submit(make, item))
                if len(waiting) > 2 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
