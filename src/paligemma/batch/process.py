"""A worker in a process of its own, so that a file that kills it costs no more than itself.

Parent and child exchange lines of JSON over the child's stdin and stdout:

    parent  {"worker": "module:Class", "options": {...}}
    child   {"ready": {...}, "rows_at_a_time": 32, "note": null}   or  {"error": [class, message]}
    parent  {"rows": [...], "following": [...]}
    child   {"reading": key} and {"read": key}, for each image, so that the parent knows which ones
            were being read when the child died
    child   {"rows": [...]}                                 or  {"error": [class, message]}

The child ends when its stdin is closed, in the middle of a batch too: it never outlives the parent.
"""

from __future__ import annotations

import importlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Any, BinaryIO

from paligemma import errors
from paligemma.errors import PaliGemmaError, ProcessLostError

Row = dict[str, Any]

_writing = threading.Lock()  # images are read in threads


class WorkerDiedError(ProcessLostError):
    """The worker process ended by itself, or was killed, before it answered."""


class WorkerProcess:
    """The parent's end. `worker` names a class such as `BatchWorker`, made with `options`."""

    def __init__(self, worker: str, options: dict[str, Any]) -> None:
        self._reading: dict[str, None] = {}
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "paligemma.batch.process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # Ctrl-C is the parent's to handle: the running batch is to be finished.
            start_new_session=True,
        )
        self._say({"worker": worker, "options": options})

    @property
    def reading(self) -> tuple[str, ...]:
        """The keys of the images that were being read when the process last said something."""
        return tuple(self._reading)

    def wait_until_ready(self) -> tuple[dict[str, Any], int, str | None]:
        """What the worker's `info`, `rows_at_a_time` and `note` say.

        Raises what its constructor raised, and WorkerDiedError.
        """
        said = self._hear()
        return said["ready"], said["rows_at_a_time"], said["note"]

    def start(self, rows: Sequence[Row], following: Sequence[Row] = ()) -> None:
        """Let it compute; `finish` waits for the results. Raises WorkerDiedError."""
        self._say({"rows": list(rows), "following": list(following)})

    def finish(self) -> list[Row]:
        """Raises WorkerDiedError, and what the worker raised."""
        rows: list[Row] = self._hear()["rows"]
        return rows

    def close(self) -> None:
        """End the process, whatever it is doing."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            try:
                stream.close()
            except OSError:  # what was not sent any more
                continue

    def _say(self, message: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            _write(self._process.stdin, message)
        except OSError:
            raise self._death() from None

    def _hear(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        while True:
            line = self._process.stdout.readline()
            if not line.endswith(b"\n"):
                raise self._death()
            message: dict[str, Any] = json.loads(line)
            if "reading" in message:
                self._reading[message["reading"]] = None
            elif "read" in message:
                self._reading.pop(message["read"], None)
            else:
                break
        if "error" in message:
            name, text = message["error"]
            kind = getattr(errors, name, PaliGemmaError)
            error = PaliGemmaError.__new__(kind)
            error.args = (text,)
            raise error
        return message

    def _death(self) -> WorkerDiedError:
        code = self._process.wait()
        if code >= 0:
            return WorkerDiedError(f"The worker process ended with exit code {code}.")
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        memory = " Memory may be short." if name == "SIGKILL" else ""
        return WorkerDiedError(f"The worker process was ended by {name}.{memory}")


def _write(stream: BinaryIO | Any, message: dict[str, Any]) -> None:
    line = json.dumps(message, allow_nan=False).encode("ascii") + b"\n"
    with _writing:
        stream.write(line)
        stream.flush()


def _serve(messages: queue.SimpleQueue[dict[str, Any]], answers: BinaryIO) -> None:
    """The child's work: make the worker, and answer batch by batch."""

    def tell(key: str, is_over: bool) -> None:
        _write(answers, {"read" if is_over else "reading": key})

    first = messages.get()
    module, _, name = first["worker"].partition(":")
    try:
        worker = getattr(importlib.import_module(module), name)(**first["options"])
        worker.watch(tell)
        ready = {"ready": worker.info(), "rows_at_a_time": worker.rows_at_a_time}
        _write(answers, {**ready, "note": worker.note})
        while True:
            message = messages.get()
            _write(answers, {"rows": worker(message["rows"], message["following"])})
    except PaliGemmaError as error:
        _write(answers, {"error": [_public_class(error), str(error)]})


def _public_class(error: PaliGemmaError) -> str:
    """The nearest class that the parent knows by name."""
    return next(kind.__name__ for kind in type(error).__mro__ if hasattr(errors, kind.__name__))


def main() -> None:
    """Run the child."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print must not come between
    messages: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()

    def receive() -> None:
        for line in sys.stdin.buffer:
            if not line.endswith(b"\n"):
                break
            messages.put(json.loads(line))
        os._exit(0)  # the parent is gone, or needs nothing more

    threading.Thread(target=receive, daemon=True).start()
    _serve(messages, answers)


if __name__ == "__main__":
    main()
