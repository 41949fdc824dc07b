"""Run a job on this machine: a parent with the journal, and a worker process with the model.

Items are computed in closed batches, in the order of their keys, and a batch is journaled whole.
So a job that is stopped at any point and resumed has the same batches, and with them the same
numbers to the last bit, as one that runs through.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from paligemma.batch.process import Row, WorkerDiedError, WorkerProcess
from paligemma.batch.source import Item

BATCH_ROWS = 2
"""A batch of the journal has this many times the rows that the model computes together: few enough
to lose little, enough for rows that end early to be replaced."""
_WHOLE_TRIES = 5  # of a batch whose images, one by one, all do well
_LOADING_TRIES = 3


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a job is."""

    finished: int
    """Items with a result or an error, those of earlier runs included."""
    failed: int
    """Of these, those with an error."""
    total: int
    now: int
    """Items of this run."""
    seconds: float
    """Since this run began to compute."""

    @property
    def per_second(self) -> float:
        """Items of this run per second; 0 before the first."""
        return self.now / self.seconds if self.now else 0.0

    @property
    def seconds_left(self) -> float | None:
        """None before the first batch."""
        return (self.total - self.finished) / self.per_second if self.now else None


def cut_into_batches(items: Sequence[Item], rows_at_a_time: int) -> deque[list[Row]]:
    """The rows of the items, in the batches of the journal."""
    rows = [{"key": item.key, "image": item.location, **item.asks} for item in items]
    size = BATCH_ROWS * rows_at_a_time
    return deque(rows[first : first + size] for first in range(0, len(rows), size))


@dataclass(kw_only=True)
class Runner:
    """Computes items in a worker process, which is started again when it dies.

    `say` is told what a person should know; `should_stop` is asked before each batch.
    """

    worker: str
    """The class that computes, as "module:Class"."""
    options: dict[str, Any]
    say: Callable[[str], object] = lambda text: None
    should_stop: Callable[[], bool] = lambda: False
    _process: WorkerProcess | None = field(default=None, init=False)
    _rows_at_a_time: int = field(default=1, init=False)
    _loading_deaths: int = field(default=0, init=False)
    _suspects: set[str] = field(default_factory=set, init=False)
    """Keys of the images that were being read when the worker last died."""
    _notes: set[str] = field(default_factory=set, init=False)

    def load(self) -> dict[str, Any]:
        """Start the worker process. Returns what its results depend on.

        Raises what loading the model raises, and WorkerDiedError when the process dies each time.
        """
        while True:
            self._process = WorkerProcess(self.worker, self.options)
            try:
                info, self._rows_at_a_time, note = self._process.wait_until_ready()
            except WorkerDiedError as error:
                self._loading_deaths += 1
                if self._loading_deaths >= _LOADING_TRIES:
                    raise
                self._restart(error, load=False)
                continue
            self._loading_deaths = 0
            if note is not None and note not in self._notes:
                self.say(note)
                self._notes.add(note)
            return info

    def run(self, items: Sequence[Item]) -> Iterator[tuple[dict[str, Any], list[Row]]]:
        """What `load` says with the results of each batch; first, before any, with none."""
        info = self.load()
        yield info, []
        for results in self._computed(cut_into_batches(items, self._rows_at_a_time)):
            yield info, results

    def compute(self, rows: Sequence[Row]) -> list[Row]:
        """The results of one batch, after `load`."""
        return self._try(rows) or self._careful(rows)

    def seconds_per_row(self, items: Sequence[Item]) -> float:
        """Measured on the first of these, without the first of all."""
        self.load()
        rows = cut_into_batches(items, self._rows_at_a_time)[0][: self._rows_at_a_time]
        self.compute(rows[:1])
        started = time.monotonic()
        self.compute(rows)
        return (time.monotonic() - started) / len(rows)

    def close(self) -> None:
        """End the worker process."""
        if self._process is not None:
            self._process.close()
            self._process = None

    def _computed(self, batches: deque[list[Row]]) -> Iterator[list[Row]]:
        """The results of each batch. While the caller keeps them, the next one is computed."""
        is_running = False
        while batches and not (self.should_stop() and not is_running):
            rows = batches[0]
            try:
                if not is_running:
                    self._start(rows, batches)
                results = self._worker.finish()
            except WorkerDiedError as error:
                is_running = False
                self._restart(error)
                results = self._careful(rows)
            batches.popleft()
            is_running = bool(batches) and not self.should_stop() and self._start_next(batches)
            yield results

    def _start_next(self, batches: deque[list[Row]]) -> bool:
        """Whether the first of the batches is being computed."""
        try:
            self._start(batches[0], batches)
        except WorkerDiedError as error:
            self._restart(error)
            return False
        return True

    def _start(self, rows: Sequence[Row], batches: deque[list[Row]]) -> None:
        following = next(islice(batches, 1, None), [])[: self._rows_at_a_time]
        self._worker.start(rows, following)

    def _careful(self, rows: Sequence[Row]) -> list[Row]:
        """The results of a batch during which the worker died, with nothing else in progress.

        It may have been killed from outside, or by an image of the next batch. Images that were
        being read when it died are suspected, and tried alone; one that kills it twice more is to
        blame. Results of images that were computed alone are not used as long as the batch works
        without those, as they may differ in the last bit.
        """
        bad: list[Row] = []
        rest = list(rows)
        for _ in range(_WHOLE_TRIES):
            suspects = [row for row in rest if row["key"] in self._suspects]
            bad += [row for row in suspects if self._alone(row) is None]
            rest = [row for row in rest if row not in bad]
            results = self._try(rest) if rest else []
            if results is not None:
                break
        else:
            self.say(
                "The worker process dies on a batch again and again; its images are tried one by "
                "one. If memory is short, stop, and resume with a smaller --batch-size."
            )
            alone = [(row, self._alone(row)) for row in rest]
            bad += [row for row, result in alone if result is None]
            results = [result for _, result in alone if result is not None]
        by_key = {row["key"]: row for row in (*results, *map(self._blamed, bad))}
        return [by_key[row["key"]] for row in rows]

    def _alone(self, row: Row) -> Row | None:
        """The result of one image, or None where it kills the worker twice."""
        for _ in range(2):
            if (results := self._try([row])) is not None:
                return results[0]
        return None

    def _blamed(self, row: Row) -> Row:
        error = "The worker process died twice while it was working on this image alone."
        self.say(f"failed: {row['key']}: {error}")
        return {"key": row["key"], "result": None, "error": error, "seconds": None}

    def _try(self, rows: Sequence[Row]) -> list[Row] | None:
        """The results, or None where the worker died; then there is a new one."""
        try:
            self._worker.start(rows)
            return self._worker.finish()
        except WorkerDiedError as error:
            self._restart(error)
            return None

    @property
    def _worker(self) -> WorkerProcess:
        assert self._process is not None, "call load() first"
        return self._process

    def _restart(self, error: WorkerDiedError, *, load: bool = True) -> None:
        self.say(f"{error} It is started again.")
        self._suspects = set() if self._process is None else set(self._process.reading)
        self.close()
        if load:
            self.load()
