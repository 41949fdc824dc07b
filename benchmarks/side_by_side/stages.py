"""What is measured, and the least time that it needs on this machine."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import nn

from paligemma.bench.limits import (
    Limits,
    decode_work,
    median_seconds,
    prefill_work,
    vision_work,
    weight_bytes,
)
from paligemma.bench.workload import PROMPT_LENGTH
from paligemma.config import PaliGemmaConfig
from paligemma.errors import OptionError

_BATCHES = (1, 2, 4, 8, 16, 32, 64)
_QUESTIONS = (1, 2, 4, 8, 16, 32)
_TOKENS_PER_ANSWER = 10
_TOKENS_PER_BOX = 4 + 1 + 1  # locations, a label, a separator
_PIECE_BYTES = 2**26
_VALUE_BYTES = 2  # keys and values

Kind = Literal["load", "image", "vision", "prefill", "answer", "steps"]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One thing to measure.

    `answer` is everything from an image in memory to `num_tokens` tokens for each of `num_rows`
    questions about it; `steps` are `num_tokens` decode steps of `num_rows` rows without the
    prefill before them. `load` ends when every byte of the weights has been read.
    """

    name: str
    kind: Kind
    num_tokens: int = 0
    num_rows: int = 1

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the measured times, in seconds."""
        return ("first token", "decode step") if self.name == "answer" else (self.name,)


def _stages() -> dict[str, Stage]:
    stages = [
        Stage(name="load", kind="load"),
        Stage(name="image", kind="image"),
        Stage(name="vision", kind="vision"),
        Stage(name="prefill", kind="prefill"),
        Stage(name="answer", kind="answer", num_tokens=9),
        Stage(name="caption", kind="answer", num_tokens=20),
        Stage(name="detect", kind="answer", num_tokens=3 * _TOKENS_PER_BOX),
        Stage(name="page", kind="answer", num_tokens=200),
    ]
    stages += [Stage(name=f"batch-{n}", kind="steps", num_tokens=6, num_rows=n) for n in _BATCHES]
    stages += [
        Stage(name=f"questions-{n}", kind="answer", num_tokens=_TOKENS_PER_ANSWER, num_rows=n)
        for n in _QUESTIONS
    ]
    return {stage.name: stage for stage in stages}


STAGES: dict[str, Stage] = _stages()
GROUPS: dict[str, tuple[str, ...]] = {
    "main": ("image", "vision", "prefill", "answer", "caption", "batch-8"),
    "quick": ("vision", "prefill", "answer"),
    "tasks": ("caption", "detect", "page"),
    "batch": tuple(f"batch-{n}" for n in _BATCHES),
    "questions": tuple(f"questions-{n}" for n in _QUESTIONS),
    "all": tuple(name for name in STAGES if name != "load"),
}


def choose_stages(names: Iterable[str]) -> tuple[Stage, ...]:
    """Stages by name or by group, each once, in the order of `STAGES`. Raises OptionError.

    >>> [stage.name for stage in choose_stages(["prefill", "quick"])]
    ['vision', 'prefill', 'answer']
    """
    chosen: set[str] = set()
    for name in names:
        if name not in STAGES and name not in GROUPS:
            raise OptionError(
                f"Unknown stage {name!r}. Groups: {', '.join(GROUPS)}. Stages: {', '.join(STAGES)}."
            )
        chosen.update(GROUPS.get(name, (name,)))
    return tuple(stage for name, stage in STAGES.items() if name in chosen)


class Runner(Protocol):
    """One program with its model in memory. All times are in seconds."""

    def image(self) -> float:
        """An image in memory to pixel values."""
        ...

    def vision(self) -> float:
        """Pixel values to image tokens."""
        ...

    def prefill(self) -> float:
        """Image tokens and a prompt to the logits after the last position."""
        ...

    def answer(self, num_tokens: int, num_rows: int) -> list[float]:
        """From an image in memory: when each token of all rows was available."""
        ...

    def steps(self, num_tokens: int, num_rows: int) -> list[float]:
        """The duration of each decode step after a prefill of all rows."""
        ...


def least_seconds(
    config: PaliGemmaConfig, weights: str, stage: Stage, limits: Limits
) -> dict[str, float]:
    """The least time per metric of a stage, with "bfloat16", "int8" or "int4" weights.

    Parts that follow each other are added up. There is none for preprocessing and loading.
    """
    length = config.vision.num_image_tokens + PROMPT_LENGTH

    def step(num_rows: int, length: int) -> float:
        return decode_work(config.decoder, weights, num_rows, length).seconds(limits)

    if stage.kind in ("load", "image"):
        return {}
    if stage.kind == "vision":
        return {stage.name: vision_work(config).seconds(limits)}
    if stage.kind == "steps":
        return {stage.name: step(stage.num_rows, length + stage.num_tokens // 2)}
    prefill = prefill_work(config.decoder, weights, stage.num_rows, length).seconds(limits)
    if stage.kind == "prefill":
        return {stage.name: prefill}
    first = vision_work(config).seconds(limits) + prefill
    if stage.name == "answer":
        return {"first token": first, "decode step": step(1, length + stage.num_tokens // 2)}
    later = sum(step(stage.num_rows, length + n) for n in range(1, stage.num_tokens))
    return {stage.name: first + later}


def seconds_to_read_weights(
    config: PaliGemmaConfig, weights: str, bytes_per_second: float
) -> float:
    """The least time to load a model from a file."""
    return weight_bytes(config, weights) / bytes_per_second


def cache_bytes(config: PaliGemmaConfig, num_rows: int, num_tokens: int) -> int:
    """Keys and values of rows of an image, a prompt and `num_tokens` new tokens."""
    decoder = config.decoder
    length = config.vision.num_image_tokens + PROMPT_LENGTH + num_tokens
    values = 2 * decoder.depth * decoder.num_kv_heads * decoder.head_dim
    return num_rows * length * values * _VALUE_BYTES


def file_bandwidth(folder: Path) -> float:
    """Bytes per second of reading a folder's weight files, which are in the page cache."""
    piece = bytearray(_PIECE_BYTES)
    files = sorted(folder.glob("*.safetensors"))

    def read() -> None:
        for path in files:
            with path.open("rb", buffering=0) as file:
                while file.readinto(piece):
                    pass

    return sum(path.stat().st_size for path in files) / median_seconds(read)


def read_every_page(model: nn.Module) -> None:
    """Touch all weights: a file that is only mapped has not been loaded."""
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.detach().contiguous().view(-1).view(torch.uint8)[::4096].sum()
