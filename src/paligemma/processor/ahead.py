"""Read images in threads before their turn comes, while the model computes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import chain
from typing import Generic, TypeVar

ItemT = TypeVar("ItemT")
ReadT = TypeVar("ReadT")


class ReadAhead(Generic[ItemT, ReadT]):
    """Calls `read` for up to `depth` items before they are asked for.

    Pillow and torch release Python's lock while they decode and resize, so that threads help.
    """

    def __init__(
        self,
        read: Callable[[ItemT], ReadT],
        key: Callable[[ItemT], Hashable],
        *,
        depth: int,
        num_threads: int = 2,
    ) -> None:
        self._read = read
        self._key = key
        self._depth = depth
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="paligemma-reader")
        self._started: dict[Hashable, Future[ReadT]] = {}

    def over(
        self, items: Iterable[ItemT], following: Iterable[ItemT] = ()
    ) -> Iterator[tuple[ItemT, Callable[[], ReadT]]]:
        """Each of `items`, with a function that returns what `read` did, or raises its error.

        `following` are likely to come in the next call: reading them begins, too.
        """
        source = chain(((item, True) for item in items), ((item, False) for item in following))
        window: deque[tuple[ItemT, bool]] = deque()
        while True:
            while len(window) < self._depth and (pair := next(source, None)) is not None:
                self._start(pair[0])
                window.append(pair)
            if not window or not window[0][1]:
                return
            item, _ = window.popleft()
            yield item, partial(self._take, item)

    def forget(self, items: Iterable[ItemT]) -> None:
        """Drop what was read of these and not taken."""
        for item in items:
            self._started.pop(self._key(item), None)

    def close(self) -> None:
        """Stop reading."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _start(self, item: ItemT) -> None:
        key = self._key(item)
        if key not in self._started:
            self._started[key] = self._pool.submit(self._read, item)

    def _take(self, item: ItemT) -> ReadT:
        future = self._started.pop(self._key(item), None)
        return self._read(item) if future is None else future.result()
