"""Recipe: how a model was fine-tuned for one task, and the training options that follow from it.

The figures are those of arXiv 2407.07726 (PaliGemma, appendices B and J) and arXiv 2412.03555
(PaliGemma 2, section 4 and appendices B and C). What the papers do not state is None, and has to
be given. Knows the trainer's options; reads no data.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, TypeVar

from paligemma.config import RELEASES
from paligemma.errors import OptionError
from paligemma.evals.datasets.benchmark import Benchmark
from paligemma.evals.datasets.open import find_benchmark
from paligemma.evals.datasets.published import PublishedScore, best_learning_rate
from paligemma.finetune.config import Optimizer, Schedule, TrainConfig

Model = Literal["paligemma-3b", "paligemma2-3b", "paligemma2-10b", "paligemma2-28b"]
Number = TypeVar("Number", int, float)
PALIGEMMA_1 = "https://arxiv.org/abs/2407.07726, appendices B and J"
PALIGEMMA_2 = "https://arxiv.org/abs/2412.03555, section 4 and appendices B and C"
BIG_VISION = "https://github.com/google-research/big_vision, configs/proj/paligemma/transfers"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The hyper-parameters at one resolution."""

    resolution: int
    epochs: float | None = None
    """Over the pictures; of several captions or answers of one, one is drawn each time."""
    steps: int | None = None
    examples_seen: int | None = None
    batch_size: int | None = 256
    learning_rate: float | None = 1e-5
    weight_decay: float = 0.0
    """As big_vision means it; see TrainConfig.weight_decay_kind."""
    dropout: float = 0.0
    """In the decoder's blocks."""
    label_smoothing: float = 0.0
    freeze_vision: bool = False
    beams: int = 1
    """1: greedy. More: beam search of that width, in evaluation."""
    optimizer: Optimizer = "adamw"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One task: what is asked, what is learned, how, and on what."""

    name: str
    title: str
    prompt: str
    """With the blanks that the data fill; the newline behind it is the processor's."""
    suffix: str
    """What is learned, in words."""
    text_length: int
    """Tokens of prompt and answer; longer ones are cut."""
    settings: tuple[Setting, ...]
    benchmarks: tuple[str, ...] = ()
    """Names in `evals/benchmarks`; those after the first are asked without training of their own,
    but for RefCOCO's three and RSVQA's."""
    sweep_rows: tuple[str, ...] = ()
    """Lines of the sweep that chose PaliGemma 2's learning rate."""
    model: Model = "paligemma-3b"
    """Whose figures the settings are."""
    learning_rates: Mapping[Model, float] = field(default_factory=dict)
    """Of other models, where the paper names them."""
    stage: str = "pt"
    """The kind of checkpoint it starts from."""
    schedule: Schedule = "cosine"
    antialias_training: bool | None = None
    """Whether pictures were made smaller with antialiasing; None where it is not known."""
    antialias_evaluation: bool | None = None
    resize: Literal["squash", "pad"] = "squash"
    write_labels: bool = True
    """Whether objects are learned with their labels; a phrase that means one thing needs none."""
    noise_boxes: bool = False
    """Whether lists of boxes are filled up with noise boxes (paligemma.data.targets)."""
    num_images: int = 1
    frame_stride: int | None = None
    """Frames of the video from one picture to the next."""
    train_split: str = ""
    train_examples: int | None = None
    evaluated_on: str = ""
    metric: str = ""
    source: str = PALIGEMMA_1
    note: str = ""

    @property
    def resolutions(self) -> tuple[int, ...]:
        return tuple(setting.resolution for setting in self.settings)

    def find_benchmarks(self) -> tuple[Benchmark, ...]:
        return tuple(find_benchmark(name) for name in self.benchmarks)

    def published(self) -> tuple[PublishedScore, ...]:
        """Every published score of the recipe's benchmarks."""
        return tuple(
            score
            for benchmark in self.find_benchmarks()
            for split in benchmark.splits
            for score in benchmark.published(split)
        )

    def setting(self, resolution: int | None = None, model: Model | None = None) -> Setting:
        """The figures for a resolution (None: the lowest) and a model (None: the recipe's own).

        PaliGemma 2 takes over PaliGemma's figures of 224 pixels, but for the learning rate, which
        was swept anew for every size at 224 pixels and kept for 448 (arXiv 2412.03555, section 4);
        it was not trained at 896 for these tasks.

        Raises OptionError for a resolution that the papers did not train.
        """
        if resolution is None:
            resolution = self.resolutions[0]
        if resolution not in self.resolutions:
            known = ", ".join(map(str, self.resolutions))
            raise OptionError(
                f"The recipe {self.name!r} has no setting for {resolution} pixels; the papers "
                f"trained it at {known}."
            )
        own = self.settings[self.resolutions.index(resolution)]
        if model is None or model == self.model:
            return own
        if model in self.learning_rates:
            return replace(own, learning_rate=self.learning_rates[model])
        if not self.sweep_rows:
            return own
        size = model.rpartition("-")[2]
        rate = best_learning_rate(self.sweep_rows, size)
        return replace(self.settings[0], resolution=resolution, learning_rate=rate)


def train_config(
    recipe: Recipe,
    num_examples: int,
    *,
    resolution: int | None = None,
    model: Model | None = None,
    epochs: float | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
) -> TrainConfig:
    """The trainer's options for a data set of `num_examples` examples.

    `epochs`, `batch_size` and `learning_rate` go before the recipe's. All recipes share: cosine to
    0 after 5 % of warm-up, Adam (0.9, 0.999), gradients clipped to norm 1, the mean over examples
    of the mean over tokens, no cap on the final logits (big_vision's transfer configs).

    Raises OptionError where the papers do not state a figure and none is given, or the resolution
    is not the recipe's.
    """
    setting = recipe.setting(resolution, model)
    batch_size = _stated(recipe, "batch size", batch_size or setting.batch_size)
    learning_rate = _stated(recipe, "learning rate", learning_rate or setting.learning_rate)
    steps = setting.steps
    if setting.examples_seen is not None:
        steps = math.ceil(setting.examples_seen / batch_size)
    if epochs is not None:
        steps = None
    elif steps is None:
        epochs = _stated(recipe, "number of epochs", setting.epochs)
    return TrainConfig(
        num_steps=steps,
        epochs=epochs,
        learning_rate=learning_rate,
        schedule=recipe.schedule,
        optimizer=setting.optimizer,
        weight_decay=setting.weight_decay,
        weight_decay_kind="big_vision",
        batch_size=batch_size,
        label_smoothing=setting.label_smoothing,
        llm_dropout=setting.dropout,
        frozen=("vision_encoder.*",) if setting.freeze_vision else (),
        seed=0,
        save_every=1000,
    ).resolved(num_examples)


def _stated(recipe: Recipe, name: str, value: Number | None) -> Number:
    if value is None:
        raise OptionError(
            f"The papers do not state the {name} of {recipe.title}. Give one yourself."
        )
    return value


def start_checkpoint(recipe: Recipe, resolution: int, model: Model | None = None) -> str:
    """The hub id of the checkpoint that training starts from.

    Raises OptionError when there is none of that resolution.
    """
    variant = f"{model or recipe.model}-{recipe.stage}-{resolution}"
    for release in RELEASES:
        if release.variant == variant:
            return release.hub_id
    raise OptionError(f"There is no checkpoint {variant!r}. `paligemma models` lists them.")


def command(recipe: Recipe, resolution: int | None = None, model: Model | None = None) -> str:
    """The command line that trains by the recipe."""
    resolution = recipe.setting(resolution, model).resolution
    start = (
        start_checkpoint(recipe, resolution, model)
        if recipe.stage == "pt"
        else "FOLDER_OF_THE_STAGE_BEFORE"
    )
    out = _out(recipe, resolution, model)
    return f"paligemma train DATA --recipe {recipe.name} --model {start} --out {out}"


def evaluation_commands(
    recipe: Recipe, resolution: int | None = None, model: Model | None = None
) -> tuple[str, ...]:
    """The command lines that score what came out, one for each benchmark that is read here."""
    setting = recipe.setting(resolution, model)
    out = _out(recipe, setting.resolution, model)
    beams = f" --beams {setting.beams}" if setting.beams > 1 else ""
    return tuple(
        f"paligemma eval {benchmark.name} --folder FOLDER --model {out}/model "
        f"--out {out}/eval-{benchmark.name}{beams}"
        for benchmark in recipe.find_benchmarks()
        if not benchmark.not_read_because
    )


def _out(recipe: Recipe, resolution: int, model: Model | None) -> str:
    chosen = f"-{model}" if model not in (None, recipe.model) else ""
    return f"runs/{recipe.name}-{resolution}{chosen}"
