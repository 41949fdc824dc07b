"""A line in which clients take turns, between threads.

Knows nothing of what stands in it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from typing import Generic, TypeVar

ItemT = TypeVar("ItemT")


class FairQueue(Generic[ItemT]):
    """Items of one client keep their order; the client served last waits for all others."""

    def __init__(self) -> None:
        self._lines: OrderedDict[str, deque[ItemT]] = OrderedDict()
        self._news = threading.Condition()
        self._is_closed = False

    def put(self, client: str, item: ItemT) -> None:
        """Stand at the end of the client's own line."""
        with self._news:
            self._lines.setdefault(client, deque()).append(item)
            self._news.notify()

    def take(self) -> ItemT | None:
        """The next item, when there is one; None when the line is closed."""
        with self._news:
            while not self._lines and not self._is_closed:
                self._news.wait()
            if self._is_closed:
                return None
            client, line = next(iter(self._lines.items()))
            item = line.popleft()
            if line:
                self._lines.move_to_end(client)
            else:
                del self._lines[client]
            return item

    def close(self) -> None:
        """Send away whoever waits in `take`; what stands in the line is dropped."""
        with self._news:
            self._is_closed = True
            self._lines.clear()
            self._news.notify_all()
