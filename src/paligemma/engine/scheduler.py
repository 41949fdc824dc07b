"""Which requests are prefilled next, and which decode; requests join and leave between steps.

Clients take turns: the next row goes to the client with the fewest running requests, and of equals
to the one served longest ago. The requests of one client keep their order. If all rows are taken
and a client without any is waiting, the client with the most rows loses its latest. So the number
of steps that a request waits does not depend on the length of other clients' answers.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Iterable

from paligemma.engine.request import RequestState
from paligemma.errors import BusyError


class Scheduler:
    """The running requests, in the order of the cache's slots, and a queue per client."""

    def __init__(self, *, max_rows: int, max_queued: int, max_prefill_positions: int) -> None:
        self.running: list[RequestState] = []
        self._queues: OrderedDict[str, deque[RequestState]] = OrderedDict()
        self._max_rows = max_rows
        self._max_queued = max_queued
        self._max_prefill_positions = max_prefill_positions
        # Temporarily smaller after a pass has failed, such as out of memory.
        self._row_limit = max_rows
        self._group_limit = max_rows

    @property
    def num_queued(self) -> int:
        return sum(len(queue) for queue in self._queues.values())

    @property
    def is_full(self) -> bool:
        return self.num_queued >= self._max_queued

    def add(self, state: RequestState, *, goes_first: bool = False) -> None:
        """Put a request into its client's queue, at the end or at the front.

        Raises BusyError when the queue is full.
        """
        if self.is_full:
            raise BusyError(
                f"The queue is full: {self.num_queued} requests are waiting, the limit is "
                f"{self._max_queued}. Try again later."
            )
        queue = self._queues.setdefault(state.request.client, deque())
        if goes_first:
            queue.appendleft(state)
        else:
            queue.append(state)

    def requeue(self, states: Iterable[RequestState]) -> None:
        """Return requests to the front of their queues, in their original order."""
        for state in sorted(states, key=lambda state: state.request_id, reverse=True):
            self._queues.setdefault(state.request.client, deque()).appendleft(state)

    def drop(self, state: RequestState) -> None:
        """Remove a waiting request from its queue."""
        queue = self._queues[state.request.client]
        queue.remove(state)
        if not queue:
            del self._queues[state.request.client]

    def next_group(self) -> list[RequestState]:
        """Remove the requests to prefill together now from their queues and return them.

        They fit into the free slots and, padded, into `max_prefill_positions`; a longer request
        goes alone. Long requests are never overtaken for being long.
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

    def row_to_preempt(self) -> int | None:
        """Return the running row that must make room for a client without any, or None."""
        num_rows = self._rows_by_client()
        if len(self.running) < self._row_limit or all(num_rows[c] for c in self._queues):
            return None
        client, most = num_rows.most_common(1)[0]
        if most < 2:
            return None
        rows = [row for row, state in enumerate(self.running) if state.request.client == client]
        return max(rows, key=lambda row: self.running[row].request_id)

    def remove(self, row: int) -> RequestState:
        """Remove a row from `running`; the last one takes its index, as in the slot cache."""
        state, last = self.running[row], self.running.pop()
        if state is not last:
            self.running[row] = last
        return state

    # After each pass of the model

    def prefilled(self, group: Iterable[RequestState]) -> None:
        self.running.extend(group)
        self._group_limit = min(self._max_rows, 2 * self._group_limit)

    def prefill_failed(self, group: list[RequestState]) -> None:
        """Halve the size of the next group."""
        self._group_limit = max(1, len(group) // 2)

    def decoded(self) -> None:
        self._row_limit = min(self._max_rows, self._row_limit + 1)

    def decode_failed(self) -> None:
        """Halve the number of running rows; each successful step allows one more."""
        self._row_limit = max(1, len(self.running) // 2)

    def _rows_by_client(self) -> Counter[str]:
        return Counter(state.request.client for state in self.running)
