"""A `Ticket` is what the caller holds while the service works: updates, then the result."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from typing import Any

from paligemma.answering import Update, Usage
from paligemma.engine.request import TopLogprob


class Ticket:
    """A submitted job. All methods belong to the event loop that submitted it."""

    def __init__(
        self,
        *,
        number: int,
        loop: asyncio.AbstractEventLoop,
        cancel: Callable[[], None],
    ) -> None:
        self.number = number
        self.loop = loop
        self.usage = Usage()
        """Available when the job has ended."""
        self.top_logprobs: tuple[tuple[TopLogprob, ...], ...] = ()
        """Of the whole answer, if they were requested; available when the job has ended."""
        self._cancel = cancel
        self._pending: deque[Update] = deque()
        self._changed = asyncio.Event()
        self._has_ended = False
        self._result: Any = None
        self._error: Exception | None = None

    @property
    def has_ended(self) -> bool:
        return self._has_ended

    async def updates(self) -> AsyncIterator[Update]:
        """The updates until the job ends, however it ends. Only one reader is supported.

        Leaving early, by an exception or a cancelled asyncio task, cancels the job.
        """
        try:
            while True:
                while self._pending:
                    yield self._pending.popleft()
                if self._has_ended:
                    return
                self._changed.clear()
                await self._changed.wait()
        finally:
            self.cancel()

    def result(self) -> Any:
        """The typed result of the task, `Generation` of a prompt, list[Score] of a `ScoreJob`.

        Raises the error that ended the job, a PaliGemmaError.
        """
        if not self._has_ended:
            raise RuntimeError("The job has not ended; read updates() to their end first.")
        if self._error is not None:
            raise self._error
        return self._result

    async def wait(self) -> Any:
        """Wait for the end and return `result()`."""
        async for _ in self.updates():
            pass
        return self.result()

    def cancel(self) -> None:
        """Cancel the job: the engine stops within a step. Does nothing when it has ended."""
        if not self._has_ended:
            self._cancel()

    # Called by the service, on the loop

    def deliver(self, update: Update) -> None:
        """Add an update; it is merged with what a slow reader has not taken yet."""
        last = self._pending[-1] if self._pending else None
        if last is None or last.object is not None or update.object is not None:
            self._pending.append(update)
        else:
            self._pending[-1] = Update(
                text=last.text + update.text,
                token_ids=last.token_ids + update.token_ids,
                logprobs=last.logprobs + update.logprobs,
                top_logprobs=last.top_logprobs + update.top_logprobs,
            )
        self._changed.set()

    def end(self, result: Any, error: Exception | None, usage: Usage) -> None:
        """Record how the job ended. Only the first call counts."""
        if self._has_ended:
            return
        self._result, self._error, self.usage = result, error, usage
        self._has_ended = True
        self._changed.set()


async def gather_results(tickets: Sequence[Ticket]) -> list[Any]:
    """All results. If one fails or the caller is cancelled, the others are cancelled."""
    try:
        return [await ticket.wait() for ticket in tickets]
    finally:
        for ticket in tickets:
            ticket.cancel()


async def merge_updates(tickets: Sequence[Ticket]) -> AsyncGenerator[tuple[int, Update], None]:
    """The updates of all tickets as they come, each with the index of its ticket.

    Raises the first error of any ticket.
    """
    queue: asyncio.Queue[tuple[int, Update | None]] = asyncio.Queue(maxsize=1)

    async def forward(index: int, ticket: Ticket) -> None:
        async for update in ticket.updates():
            await queue.put((index, update))
        await queue.put((index, None))

    tasks = [asyncio.ensure_future(forward(i, ticket)) for i, ticket in enumerate(tickets)]
    try:
        num_open = len(tickets)
        while num_open:
            index, update = await queue.get()
            if update is None:
                num_open -= 1
                tickets[index].result()  # raises, and so ends the stream at once
            else:
                yield index, update
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
