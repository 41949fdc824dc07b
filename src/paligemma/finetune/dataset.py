"""Examples: a picture with a prefix and the suffix to learn; and files of them.

A file is JSON Lines of {"image": "pictures/1.jpg", "prefix": "caption en", "suffix": "a dog"}, the
form in use for this model; image paths are relative to the file.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from paligemma.errors import DataError
from paligemma.finetune.collate import Example, collate
from paligemma.processor.image import load_image
from paligemma.processor.inputs import ModelInputs
from paligemma.processor.processor import Processor


@dataclass(frozen=True, kw_only=True)
class ExampleFile:
    """A JSON Lines file of examples; pictures are read when an example is asked for."""

    path: Path
    records: tuple[dict[str, str], ...]

    @classmethod
    def open(cls, path: str | Path) -> ExampleFile:
        """Reads and checks every line. Raises DataError that names the line."""
        path = Path(path)
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(
                f"The data file {str(path)!r} cannot be read as UTF-8 text. Give a JSON Lines "
                'file of {"image": ..., "prefix": ..., "suffix": ...}.'
            ) from error
        records = tuple(
            _parse_line(path, number, line)
            for number, line in enumerate(lines, start=1)
            if line.strip()
        )
        if not records:
            raise DataError(f"The data file {str(path)!r} holds no example.")
        return cls(path=path, records=records)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Example:
        record = self.records[index]
        return Example(
            image=load_image(self.path.parent / record["image"]),
            prefix=record["prefix"],
            suffix=record["suffix"],
        )


@dataclass(frozen=True, kw_only=True)
class ExampleSource:
    """Batches of a file's examples; the batch of a step is a function of (seed, step)."""

    examples: ExampleFile
    processor: Processor
    batch_size: int
    seed: int

    def batch(self, step: int) -> ModelInputs:
        chosen = indices_of_step(len(self.examples), self.batch_size, self.seed, step)
        return collate(self.processor, [self.examples[index] for index in chosen])


@lru_cache(maxsize=2)  # a batch reaches into two epochs at most, unless it is larger than one
def epoch_order(num_examples: int, seed: int, epoch: int) -> tuple[int, ...]:
    """The order of one epoch: each example once, a function of (seed, epoch) only."""
    return tuple(np.random.default_rng([seed, epoch]).permutation(num_examples).tolist())


def indices_of_step(num_examples: int, batch_size: int, seed: int, step: int) -> list[int]:
    """Which examples step `step` (from 0) trains on; epochs follow each other without a gap.

    >>> sorted(indices_of_step(4, 2, 0, 0) + indices_of_step(4, 2, 0, 1))
    [0, 1, 2, 3]
    """
    first = step * batch_size
    chosen = []
    for position in range(first, first + batch_size):
        epoch, place = divmod(position, num_examples)
        chosen.append(epoch_order(num_examples, seed, epoch)[place])
    return chosen


def _parse_line(path: Path, number: int, line: str) -> dict[str, str]:
    where = f"Line {number} of {str(path)!r}"
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{where} is not JSON: {error}. Write one object a line.") from error
    fields: Sequence[str] = ("image", "prefix", "suffix")
    if not isinstance(record, dict) or not all(isinstance(record.get(f), str) for f in fields):
        raise DataError(
            f'{where} must be an object with text under "image", "prefix" and "suffix".'
        )
    return {field: record[field] for field in fields}
