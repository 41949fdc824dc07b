"""Examples: pictures with a prefix and the suffix to learn; and files of them.

A file is JSON Lines of {"image": "pictures/1.jpg", "prefix": "caption en", "suffix": "a dog"}, the
form in use for this model; image paths are relative to the file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image

from paligemma.data.open import Records, open_data
from paligemma.errors import DataError, OptionError, PaliGemmaError
from paligemma.finetune.collate import Example, collate
from paligemma.finetune.config import OnBadRecord
from paligemma.inputs import ModelInputs
from paligemma.processor.image import LoadedImage
from paligemma.processor.processor import Processor


class Examples(Protocol):
    """What training needs of a data set: any sequence of examples will do.

    Where there is more, it is used: `in_epoch(epoch)`, the examples as that epoch shows them;
    `id_of(index)`, the name of one that cannot be read; `fingerprint`, another for other data.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Example: ...


@dataclass(frozen=True, kw_only=True)
class ExampleFile:
    """A JSON Lines file of examples; pictures are read when an example is asked for."""

    path: Path
    records: Records

    @classmethod
    def open(cls, path: str | Path) -> ExampleFile:
        """Reads and checks every line. Raises DataError that names the line."""
        records = open_data(path, format="jsonl")
        for record in records:
            if not record.suffix:
                raise DataError(
                    f'{record.where} must be an object with text under "suffix"; references and '
                    "objects are read by open_data and learned as RecordExamples."
                )
        return cls(path=Path(path), records=records)

    @property
    def fingerprint(self) -> str:
        """See `fingerprint_of`."""
        return fingerprint_of(self.records)

    def id_of(self, index: int) -> str:
        return self.records[index].record_id

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Example:
        record = self.records[index]
        return Example(
            images=record.load_images(),
            prefix=record.prefix,
            suffix=record.suffix,
            example_id=record.record_id,
        )


@dataclass(frozen=True, kw_only=True)
class BadExample:
    """An example that could not be used, and why."""

    example_id: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class ExampleBatch:
    """A micro-batch, and which examples it is made of."""

    inputs: ModelInputs
    ids: tuple[str, ...]
    bad: tuple[BadExample, ...] = ()
    """Left out."""


@dataclass(frozen=True, kw_only=True)
class ExampleSource:
    """Micro-batches of a data set; a function of (seed, number) only.

    Step s of a batch of `batch_size` is cut into `accumulation` times `world_size` equal parts;
    this process gets part `rank` of every micro-batch. However it is cut, a step sees the same
    examples.
    """

    examples: Examples
    processor: Processor
    batch_size: int
    seed: int
    accumulation: int = 1
    rank: int = 0
    world_size: int = 1
    on_bad_record: OnBadRecord = "error"

    def __post_init__(self) -> None:
        if self.batch_size % (parts := self.accumulation * self.world_size):
            raise OptionError(
                f"A batch of {self.batch_size} cannot be cut into {parts} equal parts "
                f"({self.accumulation} micro-batches in each of {self.world_size} processes). "
                f"Make the batch size a multiple of {parts}."
            )
        if len(self.examples) == 0:
            raise DataError("There is no example to learn from.")

    def batch(self, number: int) -> ExampleBatch:
        """Raises what an example raises, unless bad ones are to be skipped."""
        together = self.batch_size // self.accumulation  # in all processes
        rows = together // self.world_size
        places = places_of_step(len(self.examples), together, self.seed, number)
        good, bad = [], []
        for epoch, index in places[self.rank * rows : (self.rank + 1) * rows]:
            example_id = self._id_of(index)
            try:
                example = self._in_epoch(epoch)[index]
                if self.on_bad_record == "skip":  # text that has no tokens comes out here
                    collate(self.processor, [example])
                good.append((example.example_id or example_id, example))
            except PaliGemmaError as error:
                if self.on_bad_record == "error":
                    raise
                bad.append(BadExample(example_id=example_id, reason=str(error)))
        # Processes compute together, so one with nothing left goes along and learns nothing.
        inputs = collate(self.processor, [example for _, example in good] or [_BLANK])
        if not good and inputs.loss_mask is not None:
            inputs = replace(inputs, loss_mask=torch.zeros_like(inputs.loss_mask))
        return ExampleBatch(
            inputs=inputs, ids=tuple(example_id for example_id, _ in good), bad=tuple(bad)
        )

    def _id_of(self, index: int) -> str:
        id_of: Callable[[int], str] = getattr(self.examples, "id_of", str)
        return id_of(index)

    def _in_epoch(self, epoch: int) -> Examples:
        in_epoch: Callable[[int], Examples] | None = getattr(self.examples, "in_epoch", None)
        return self.examples if in_epoch is None else in_epoch(epoch)


_BLANK = Example(
    images=(LoadedImage(rgb=Image.new("RGB", (1, 1)), name="blank"),), prefix="", suffix=""
)


@lru_cache(maxsize=2)  # a batch reaches into two epochs at most, unless it is larger than one
def epoch_order(num_examples: int, seed: int, epoch: int) -> tuple[int, ...]:
    """The order of one epoch: each example once, a function of (seed, epoch) only."""
    return tuple(np.random.default_rng([seed, epoch]).permutation(num_examples).tolist())


def places_of_step(
    num_examples: int, batch_size: int, seed: int, step: int
) -> list[tuple[int, int]]:
    """Epoch and index of what step `step` (from 0) trains on; epochs follow without a gap.

    >>> sorted(index for s in (0, 1) for _, index in places_of_step(4, 2, seed=0, step=s))
    [0, 1, 2, 3]
    """
    first = step * batch_size
    chosen = []
    for position in range(first, first + batch_size):
        epoch, place = divmod(position, num_examples)
        chosen.append((epoch, epoch_order(num_examples, seed, epoch)[place]))
    return chosen


def fingerprint_of(records: Records) -> str:
    """Another one means other data: of ids and texts, not of the pictures' pixels."""
    said = [(r.record_id, r.prefix, r.suffix, r.references) for r in records]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()
