"""What is measured: shapes, stages and made-up inputs. Runs nothing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from paligemma.checkpoints.hf_config import read_config
from paligemma.config import RELEASES, PaliGemmaConfig
from paligemma.errors import OptionError

# B rows, T positions

MINI = "mini"
PROMPT_LENGTH = 16  # BOS, a short question and the separator
PICTURE_SIZE_WH = (640, 480)

_BATCHES = (1, 2, 4, 8, 16, 32, 64)
_QUESTIONS = (1, 2, 4, 8, 16, 32)
_TOKENS_AN_ANSWER = 10
_TOKENS_A_BOX = 4 + 1 + 1  # places, a label, a separator

Kind = Literal["load", "image", "vision", "prefill", "answer", "steps"]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One thing to measure.

    `answer` is everything from a picture in memory to `num_tokens` tokens for each of `num_rows`
    questions about it; `steps` are `num_tokens` decode steps of `num_rows` rows without the
    prefill before them. `load` ends when every byte of the weights was read.
    """

    name: str
    kind: Kind
    num_tokens: int = 0
    num_rows: int = 1

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the times that come out: seconds, a decode step's where it says so."""
        return ("first token", "decode step") if self.name == "answer" else (self.name,)


def _stages() -> dict[str, Stage]:
    stages = [
        Stage(name="load", kind="load"),
        Stage(name="image", kind="image"),
        Stage(name="vision", kind="vision"),
        Stage(name="prefill", kind="prefill"),
        Stage(name="answer", kind="answer", num_tokens=9),
        Stage(name="caption", kind="answer", num_tokens=20),
        Stage(name="detect", kind="answer", num_tokens=3 * _TOKENS_A_BOX),
        Stage(name="page", kind="answer", num_tokens=200),
    ]
    stages += [Stage(name=f"batch-{n}", kind="steps", num_tokens=6, num_rows=n) for n in _BATCHES]
    stages += [
        Stage(name=f"questions-{n}", kind="answer", num_tokens=_TOKENS_AN_ANSWER, num_rows=n)
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
    """Stages and groups of stages by name, each once, in the order of `STAGES`.

    >>> [stage.name for stage in choose_stages(["prefill", "quick"])]
    ['vision', 'prefill', 'answer']
    """
    wanted: set[str] = set()
    for name in names:
        if name not in STAGES and name not in GROUPS:
            raise OptionError(
                f"There is no stage {name!r}. There are the groups {', '.join(GROUPS)} and the "
                f"stages {', '.join(STAGES)}."
            )
        wanted.update(GROUPS.get(name, (name,)))
    return tuple(stage for name, stage in STAGES.items() if name in wanted)


def named_config(name: str) -> PaliGemmaConfig:
    """The shapes of "mini", of a release, or of a size and resolution ("paligemma2-3b-224").

    >>> named_config("paligemma2-10b-448").decoder.width
    3584
    """
    if name == MINI:
        return read_config(Path(__file__).parents[1] / "mini" / "model").config
    for release in RELEASES:
        shape = f"{release.family}-{release.size}-{release.resolution}"
        if name in (shape, release.variant, release.hub_id):
            return release.config
    raise OptionError(
        f"There is no shape {name!r}. Give {MINI!r}, a release such as 'paligemma2-3b-mix-448' "
        "(`paligemma models` lists them), or a size and resolution such as 'paligemma2-3b-224'."
    )


def fill_with_noise(weights: Iterable[Tensor], seed: int = 0) -> None:
    """Small random numbers into all of them, the same for the same shapes; any bytes into bytes.

    One block of numbers over and over: drawing three billion would take a minute.
    """
    generator = torch.Generator().manual_seed(seed)
    block = torch.rand(2**22 + 1, generator=generator) * 0.04 - 0.02
    some_bytes = torch.randint(0, 256, block.shape, dtype=torch.uint8, generator=generator)
    for weight in weights:
        values = some_bytes if weight.dtype == torch.uint8 else block.to(weight.dtype)
        for piece in weight.detach().view(-1).split(len(values)):
            piece.copy_(values[: len(piece)])


def noise_picture() -> NDArray[np.uint8]:
    """uint8[480, 640, 3]."""
    width, height = PICTURE_SIZE_WH
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def prompt_ids(config: PaliGemmaConfig, num_rows: int) -> Tensor:
    """int64[B, 16]: questions of equal length and different words."""
    generator = torch.Generator().manual_seed(1)
    shape = (num_rows, PROMPT_LENGTH)
    return torch.randint(5, config.decoder.vocab_size, shape, generator=generator)


class Runner(Protocol):
    """One program with its model in memory. All times are in seconds."""

    def image(self) -> float:
        """A picture in memory to pixel values."""
        ...

    def vision(self) -> float:
        """Pixel values to image tokens."""
        ...

    def prefill(self) -> float:
        """Image tokens and a prompt to the logits after the last position."""
        ...

    def answer(self, num_tokens: int, num_rows: int) -> list[float]:
        """From a picture in memory: when each next token of all rows was known."""
        ...

    def steps(self, num_tokens: int, num_rows: int) -> list[float]:
        """How long each decode step took, one after the prefill of all rows."""
        ...


def read_every_page(model: nn.Module) -> None:
    """Touches all weights, since a file that is only mapped has not been loaded."""
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.detach().contiguous().view(-1).view(torch.uint8)[::4096].sum()
