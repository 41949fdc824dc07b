"""A worker without a model, whose answers are known, and which some files kill."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from paligemma.batch.process import Row


class ScriptedWorker:
    """Answers with the size of a file. Of a file that begins with "kill" it dies."""

    def __init__(
        self,
        task: Any,
        model: dict[str, Any],
        batch_size: int | None,
        allow_urls: bool,
        rows_ask: bool = False,
    ) -> None:
        self.rows_at_a_time = batch_size or 4
        self.note = model.get("note")
        self._seconds = float(model.get("seconds", 0.0))
        self._log = model.get("log")
        if model.get("refuse"):
            from paligemma.errors import CheckpointError

            raise CheckpointError(model["refuse"])
        if model.get("die"):
            os.kill(os.getpid(), signal.SIGKILL)

    def watch(self, tell: Callable[[str, bool], object]) -> None:
        self._tell = tell

    def info(self) -> dict[str, Any]:
        return {"family": "scripted"}

    def __call__(self, rows: Sequence[Row], following: Sequence[Row] = ()) -> list[Row]:
        if self._log:
            with open(self._log, "a", encoding="utf-8") as log:
                log.write(" ".join(row["key"] for row in rows) + "\n")
        for row in (*rows, *following):  # which a decoder that reads ahead would open, too
            self._tell(row["key"], False)
            if Path(row["image"]["path"]).read_bytes().startswith(b"kill"):
                os.kill(os.getpid(), signal.SIGKILL)
            self._tell(row["key"], True)
        if len(rows) > 1 and any(Path(r["image"]["path"]).read_bytes() == b"crash" for r in rows):
            os.kill(os.getpid(), signal.SIGKILL)  # in the model, with all images read
        results = []
        for number, row in enumerate(rows):
            time.sleep(self._seconds)
            data = Path(row["image"]["path"]).read_bytes()
            # As in a model, the last digits depend on the whole batch.
            score = 0.5 + len(data) / 1e6 + 1e-12 * len(rows) + 1e-13 * number
            question = row.get("question", "")
            result = {"text": f"{question} {len(data)} bytes".strip(), "score": score}
            error = "bad" if data.startswith(b"bad") else None
            results.append(
                {
                    "key": row["key"],
                    "result": None if error else result,
                    "error": error,
                    "seconds": self._seconds,
                }
            )
        return results
