"""What outputs take from the lines of a journal."""

from __future__ import annotations

import base64
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from paligemma.batch.journal import Entry
from paligemma.errors import OptionError
from paligemma.results import one_line

Entries = Callable[[], Iterator[Entry]]
"""Reads the entries, sorted by key, from the start."""


@dataclass(frozen=True, kw_only=True)
class Content:
    """The results of a job, and what it asked."""

    entries: Entries
    model: str
    task: str

    def line(self, entry: Entry) -> dict[str, Any]:
        """The JSON of an entry, as `paligemma caption --json` prints it."""
        about = {"image": entry.key, **entry.asks}
        if entry.error is not None:
            return {**about, "error": entry.error}
        return {**about, "model": self.model, "task": self.task, "result": entry.result}

    def asked_columns(self) -> tuple[str, ...]:
        """The columns of tables for what rows asked by themselves: none, or one."""
        return tuple(dict.fromkeys(name for entry in self.entries() for name in entry.asks))

    def text(self, entry: Entry) -> str:
        """The text of a result: a caption on one line, as training reads it from files."""
        text: str = (entry.result or {}).get("text", "")
        return one_line(text) if self.task == "caption" else text


def filtered(entry: Entry, min_score: float) -> Entry:
    """The entry without objects of lower scores."""
    if not min_score or entry.result is None or "objects" not in entry.result:
        return entry
    kept = [each for each in entry.result["objects"] if (each["score"] or 0.0) >= min_score]
    return replace(entry, result={**entry.result, "objects": kept})


def embedding(result: dict[str, Any]) -> npt.NDArray[np.float32]:
    """float32[D] of a result of `embed`."""
    data = base64.b64decode(result["embedding_float32"])
    return np.frombuffer(data, "<f4").astype(np.float32)


def utf8(text: str) -> str:
    r"""The text, with `\udcff` for a byte of a file's name that is not UTF-8."""
    return text.encode("utf-8", errors="backslashreplace").decode("utf-8")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to, whose file takes the place of the final one when it is complete.

    Raises OptionError when it cannot be written.
    """
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        yield unfinished
        with open(unfinished, "rb+") as file:
            os.fsync(file.fileno())
        unfinished.replace(path)
    except OSError as error:
        raise OptionError(f"{str(path)!r} cannot be written: {error.strerror}.") from error
    finally:
        unfinished.unlink(missing_ok=True)
