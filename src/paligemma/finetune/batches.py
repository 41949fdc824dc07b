"""Batches of examples in an order that repeats: a function of the seed and the step alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from PIL import Image

from paligemma.data.record import OnBadRecord
from paligemma.errors import DataError, OptionError, PaliGemmaError
from paligemma.finetune.examples import Example, Examples, collate
from paligemma.inputs import ModelInputs
from paligemma.processor.image import LoadedImage
from paligemma.processor.processor import Processor


@dataclass(frozen=True, kw_only=True)
class BadExample:
    """An example that could not be used, and why."""

    example_id: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class ExampleBatch:
    """A micro-batch, and the ids of its examples."""

    inputs: ModelInputs
    ids: tuple[str, ...]
    bad: tuple[BadExample, ...] = ()  # examples that were left out


@dataclass(frozen=True, kw_only=True)
class ExampleSource:
    """Micro-batches of a data set; a function of (seed, number) only.

    The step's `batch_size` examples are divided into `accumulation` times `world_size` equal
    parts; this process gets part `rank` of every micro-batch. A step sees the same examples
    however it is divided.
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
                f"A batch of {self.batch_size} cannot be divided into {parts} equal parts "
                f"({self.accumulation} micro-batches in each of {self.world_size} processes). "
                f"Make the batch size a multiple of {parts}."
            )
        if len(self.examples) == 0:
            raise DataError("The data set holds no example. Give at least one.")

    def batch(self, number: int) -> ExampleBatch:
        """Micro-batch `number`. Raises what an example raises, unless bad ones are skipped."""
        size = self.batch_size // self.accumulation  # in all processes together
        rows = size // self.world_size
        indices = examples_of_step(len(self.examples), size, self.seed, number)
        good, bad = [], []
        for epoch, index in indices[self.rank * rows : (self.rank + 1) * rows]:
            example_id = self._id_of(index)
            try:
                example = self._in_epoch(epoch)[index]
                if self.on_bad_record == "skip":  # raises for text that cannot be tokenized
                    collate(self.processor, [example])
                good.append((example.example_id or example_id, example))
            except PaliGemmaError as error:
                if self.on_bad_record == "error":
                    raise
                bad.append(BadExample(example_id=example_id, reason=str(error)))
        # Processes compute together: one without examples takes part, and learns nothing.
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


@lru_cache(maxsize=2)  # a batch spans at most two epochs, unless it is larger than one
def epoch_order(num_examples: int, seed: int, epoch: int) -> tuple[int, ...]:
    """The order of one epoch: each example once, a function of (seed, epoch) only."""
    return tuple(np.random.default_rng([seed, epoch]).permutation(num_examples).tolist())


def examples_of_step(
    num_examples: int, batch_size: int, seed: int, step: int
) -> list[tuple[int, int]]:
    """Epoch and index of each example of step `step` (from 0); epochs follow without a gap.

    >>> sorted(index for s in (0, 1) for _, index in examples_of_step(4, 2, seed=0, step=s))
    [0, 1, 2, 3]
    """
    first = step * batch_size
    chosen = []
    for number in range(first, first + batch_size):
        epoch, position = divmod(number, num_examples)
        chosen.append((epoch, epoch_order(num_examples, seed, epoch)[position]))
    return chosen
