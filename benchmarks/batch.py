"""Captions of the same images by `run`, by `Predictor.batch` and by the worker of a job.

    python -m mini.scene --out scenes --count 100
    python -m benchmarks.batch scenes --rounds 2

Prints seconds of CPU time and of the clock, in one process with one thread; the clock counts what
else the machine does, too.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

from paligemma.batch import BatchWorker
from paligemma.batch.runner import BATCH_ROWS
from paligemma.tasks import CaptionTask


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("images", type=Path)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    paths = sorted(map(str, arguments.images.glob("*.png")))
    worker = BatchWorker({"name": "caption"}, {"model": arguments.model, "threads": 1})
    model = worker.predictor
    rows = [{"key": path, "image": path} for path in paths]
    size, ahead = BATCH_ROWS * worker.rows_at_a_time, worker.rows_at_a_time

    def run() -> None:
        model.run([(path, CaptionTask()) for path in paths], errors="return")

    def batch() -> None:
        for _ in model.batch(paths, CaptionTask()):
            continue

    def job() -> None:
        for first in range(0, len(rows), size):
            following = rows[first + size : first + size + ahead]
            worker(rows[first : first + size], following)

    model.caption(paths[0])  # the first call takes longer
    for _ in range(arguments.rounds):
        for name, call in (("run", run), ("batch", batch), ("job", job)):
            model.clear_cache()
            _print_time(name, call, len(paths))


def _print_time(name: str, call: Callable[[], None], count: int) -> None:
    cpu, clock = time.process_time(), time.monotonic()
    call()
    cpu, clock = time.process_time() - cpu, time.monotonic() - clock
    print(f"{name:6} {count} images  {cpu:6.2f} s CPU  {clock:6.2f} s", flush=True)


if __name__ == "__main__":
    main()
