"""Who is prefilled next and who decodes: requests join and leave between steps.

Clients take turns: the next place goes to the client with the fewest requests running, among
equals to the one whose turn is the longest ago; a client's own requests keep their order. When
all places are taken and a client with none is waiting, one that has several gives back its last.
So a request waits for a number of steps that the length of other clients' answers does not change.

Counts rows and positions; knows no tensors and no model.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Iterable

from paligemma.engine.request import RequestState
from paligemma.errors import BusyError


class Scheduler:
    """Keeps `running`, in the order of the cache's slots, and a queue for each client."""

    def __init__(self, *, max_rows: int, max_queued: int, max_prefill_positions: int) -> None:
        self.running: list[RequestState] = []
        self._queues: OrderedDict[str, deque[RequestState]] = OrderedDict()
        self._max_rows = max_rows
        self._max_queued = max_queued
        self._max_prefill_positions = max_prefill_positions
        # Smaller for a while after something failed for want of memory.
        self._row_limit = max_rows
        self._group_limit = max_rows

    @property
    def num_queued(self) -> int:
        return sum(len(queue) for queue in self._queues.values())

    @property
    def is_full(self) -> bool:
        return self.num_queued >= self._max_queued

    def add(self, state: RequestState) -> None:
        """Put a request at the end of its client's queue. Raises BusyError when all is full."""
        if self.is_full:
            raise BusyError(
                f"The queue is full: {self.num_queued} requests are waiting, the limit is "
                f"{self._max_queued}. Try again later."
            )
        self._queues.setdefault(state.request.client, deque()).append(state)

    def put_back(self, states: Iterable[RequestState]) -> None:
        """Put requests that were taken before at the head of their queues, in their old order."""
        for state in sorted(states, key=lambda state: state.request_id, reverse=True):
            self._queues.setdefault(state.request.client, deque()).appendleft(state)

    def drop(self, state: RequestState) -> None:
        """Take a waiting request out of its queue."""
        queue = self._queues[state.request.client]
        queue.remove(state)
        if not queue:
            del self._queues[state.request.client]

    def next_group(self) -> list[RequestState]:
        """Take the requests to prefill together now; they count as waiting no more.

        They fit into the free slots and, padded, into `max_prefill_positions`; a request that is
        longer than that goes alone. Nobody is overtaken for being long.
        """
        group: list[RequestState] = []
        longest = 0
        num_rows = self._rows_by_client()
        limit = min(self._row_limit - len(self.running), self._group_limit)
        while self._queues and len(group) < limit:
            client = min(self._queues, key=num_rows.__getitem__)
            queue = self._queues[client]
            longest = max(longest, queue[0].num_tokens)
            if group and longest * (len(group) + 1) > self._max_prefill_positions:
                break
            group.append(queue.popleft())
            num_rows[client] += 1
            self._queues.move_to_end(client)
            if not queue:
                del self._queues[client]
        return group

    def row_to_give_back(self) -> int | None:
        """The running row that must make room for a client that has none, if there is one."""
        num_rows = self._rows_by_client()
        if len(self.running) < self._row_limit or all(num_rows[c] for c in self._queues):
            return None
        client, most = num_rows.most_common(1)[0]
        if most < 2:
            return None
        own = [row for row, state in enumerate(self.running) if state.request.client == client]
        return max(own, key=lambda row: self.running[row].request_id)

    def remove(self, row: int) -> RequestState:
        """Take a row out of `running`; the last one takes its number, as in the slot cache."""
        state, last = self.running[row], self.running.pop()
        if state is not last:
            self.running[row] = last
        return state

    # After each pass of the model

    def prefilled(self, group: Iterable[RequestState]) -> None:
        self.running.extend(group)
        self._group_limit = min(self._max_rows, 2 * self._group_limit)

    def prefill_failed(self, group: list[RequestState]) -> None:
        """The next group is half as large."""
        self._group_limit = max(1, len(group) // 2)

    def decoded(self) -> None:
        self._row_limit = min(self._max_rows, self._row_limit + 1)

    def decode_failed(self) -> None:
        """Half of the rows may run; one more after each step that goes well."""
        self._row_limit = max(1, len(self.running) // 2)

    def _rows_by_client(self) -> Counter[str]:
        return Counter(state.request.client for state in self.running)
