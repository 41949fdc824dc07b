"""Values by key, as many as fit into so many bytes; the longest unused go first.

Knows neither what the values are nor how large: whoever keeps one says so.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

from paligemma.errors import OptionError

ValueT = TypeVar("ValueT")


class RecentCache(Generic[ValueT]):
    """For any number of threads. Raises OptionError for a `max_bytes` that is no number of bytes.

    With 0 it keeps nothing.
    """

    def __init__(self, max_bytes: int) -> None:
        if isinstance(max_bytes, bool) or not isinstance(max_bytes, int) or max_bytes < 0:
            raise OptionError(
                f"The bytes of a cache are {max_bytes!r}; they must be a whole number of at least "
                "0, which keeps nothing."
            )
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self.num_hits = 0
        self.num_misses = 0
        self._kept: OrderedDict[Hashable, tuple[ValueT, int]] = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[RecentCache[ValueT]], tuple[int]]:
        # A lock has no copy; a copied cache begins empty.
        return type(self), (self.max_bytes,)

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: Hashable) -> ValueT | None:
        """The value of that key, or None; it counts as used now."""
        with self._lock:
            if key not in self._kept:
                self.num_misses += 1
                return None
            self.num_hits += 1
            self._kept.move_to_end(key)
            return self._kept[key][0]

    def keep(self, key: Hashable, value: ValueT, num_bytes: int) -> None:
        """Instead of what the key had before; not if it is larger than the cache."""
        if num_bytes > self.max_bytes:
            return
        with self._lock:
            if key in self._kept:
                self.num_bytes -= self._kept.pop(key)[1]
            self._kept[key] = value, num_bytes
            self.num_bytes += num_bytes
            while self.num_bytes > self.max_bytes:
                _, (_, oldest) = self._kept.popitem(last=False)
                self.num_bytes -= oldest
