"""RunOptions: what a person chooses of a training run, and what follows where nothing is chosen.

Knows methods, sizes and rates; opens no file.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

from paligemma.adapters.lora import LEARNING_RATES, LoraConfig, Method, Part
from paligemma.config import RELEASES, PaliGemmaConfig, count_parameters
from paligemma.data.source import ObjectTask
from paligemma.data.targets import Ask, Order
from paligemma.errors import OptionError
from paligemma.fast.weights import FrozenFormat
from paligemma.finetune.config import OnBadExample, TrainConfig
from paligemma.finetune.recipes import Model, Recipe, find_recipe, train_config

Size = Literal["mini", "3b", "10b", "28b"]

_SMALL_RATE_FACTOR = 5.0
"""Models far smaller than 3B take larger steps; tried on mini with sixty pictures."""
_DEFAULT_EPOCHS = 10.0
_DEFAULT_BATCH_SIZE = 8
_MIN_STEPS_BETWEEN_STATES = 50


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """A training run. None means: by the recipe, or by method, size and data.

    `hold_out` is the part of the records that is kept back for validation where no validation data
    are given; which ones is a function of their ids, so that it stays the same when data are added.
    """

    data: str
    model: str = "mini"
    method: Method = "lora"
    validation: str | None = None
    hold_out: float = 0.1
    data_format: str | None = None
    split: str | None = None
    recipe: str | None = None
    prefix: str | None = None
    task: ObjectTask | None = None
    ask: Ask = "dataset"
    order: Order = "random"
    max_objects: int | None = None
    noise_token: str | None = None
    metrics: tuple[str, ...] = ()
    epochs: float | None = None
    steps: int | None = None
    batch_size: int | None = None
    accumulation: int = 1
    learning_rate: float | None = None
    weight_decay: float | None = None
    label_smoothing: float | None = None
    llm_dropout: float | None = None
    rank: int = 16
    alpha: float | None = None
    rslora: bool = False
    dora: bool = False
    parts: tuple[Part, ...] = ("decoder",)
    base_format: FrozenFormat = "nf4"
    """Of a QLoRA's frozen weights."""
    bfloat16_weights: bool = False
    """Full methods only: bfloat16 weights with a float32 copy for the optimizer."""
    checkpoint_activations: bool | None = None
    seed: int = 0
    num_workers: int = 0
    validation_limit: int = 200
    on_bad_example: OnBadExample = "error"

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            raise OptionError(
                f"There is no method {self.method!r}. Methods: {', '.join(get_args(Method))}."
            )
        if not 0 <= self.hold_out < 1:
            raise OptionError(f"hold_out is {self.hold_out}; it must be at least 0 and below 1.")
        if self.epochs is not None and self.steps is not None:
            raise OptionError(
                f"epochs is {self.epochs} and steps is {self.steps}; give one of the two."
            )
        if self.method not in ("lora", "qlora") and (self.rslora or self.dora):
            raise OptionError(
                f"rslora and dora are forms of adapters, and the method is {self.method!r}. "
                "Use method='lora'."
            )
        if self.bfloat16_weights and self.method in ("lora", "qlora"):
            raise OptionError(
                "bfloat16_weights is for methods that train the weights themselves; adapters are "
                "always float32."
            )

    @property
    def trains_adapters(self) -> bool:
        return self.method in ("lora", "qlora")

    @property
    def found_recipe(self) -> Recipe | None:
        return None if self.recipe is None else find_recipe(self.recipe)

    def lora_config(self) -> LoraConfig:
        """Alpha is twice the rank where nothing is chosen."""
        return LoraConfig(
            rank=self.rank,
            alpha=2.0 * self.rank if self.alpha is None else self.alpha,
            use_rslora=self.rslora,
            use_dora=self.dora,
            parts=self.parts,
        )


def size_of(config: PaliGemmaConfig) -> Size:
    """The released size whose number of parameters is nearest, or "mini" for what is far smaller.

    >>> from paligemma.config import release_config
    >>> size_of(release_config("paligemma2", "10b", 448))
    '10b'
    """
    num_parameters = count_parameters(config)
    sizes = {release.size: count_parameters(release.config) for release in RELEASES}
    if 10 * num_parameters < min(sizes.values()):
        return "mini"
    nearest = min(sizes, key=lambda size: abs(sizes[size] - num_parameters))
    return "3b" if nearest == "3b" else "10b" if nearest == "10b" else "28b"


def default_learning_rate(method: Method, config: PaliGemmaConfig) -> float:
    """Where to start; see `lora.LEARNING_RATES` for where the figures come from."""
    size = size_of(config)
    if size == "mini":
        return _SMALL_RATE_FACTOR * LEARNING_RATES[method]["3b"]
    return LEARNING_RATES[method][size]


def plan_training(options: RunOptions, config: PaliGemmaConfig, num_examples: int) -> TrainConfig:
    """The trainer's options, its length in steps.

    What is chosen goes before the recipe's figures, and these before the defaults: 10 epochs of
    batches of 8, cosine to 0 after 5 % of warm-up, no decay, no dropout, no smoothing. With a
    recipe adapters keep their own learning rate: the papers' are for all weights.

    Raises OptionError for a recipe that does not state a figure which is not given.
    """
    is_large = size_of(config) != "mini"
    batch_size = options.batch_size
    rate = options.learning_rate
    if rate is None and (options.found_recipe is None or options.trains_adapters):
        rate = default_learning_rate(options.method, config)
    recipe = options.found_recipe
    if recipe is None:
        epochs = options.epochs
        if epochs is None and options.steps is None:
            epochs = _DEFAULT_EPOCHS
        assert rate is not None
        planned = TrainConfig(
            epochs=epochs,
            num_steps=options.steps,
            learning_rate=rate,
            batch_size=batch_size or min(_DEFAULT_BATCH_SIZE, num_examples),
        )
    else:
        planned = train_config(
            recipe,
            num_examples,
            resolution=config.vision.resolution,
            model=_model_of(config),
            epochs=options.epochs,
            batch_size=batch_size,
            learning_rate=rate,
        )
        if options.steps is not None:
            planned = replace(planned, num_steps=options.steps)
    planned = planned.resolved(num_examples)
    recomputes = options.checkpoint_activations
    steps_per_epoch = -(-num_examples // planned.batch_size)
    return replace(
        planned,
        weight_decay=_chosen(options.weight_decay, planned.weight_decay),
        label_smoothing=_chosen(options.label_smoothing, planned.label_smoothing),
        llm_dropout=_chosen(options.llm_dropout, planned.llm_dropout),
        accumulation=options.accumulation,
        master_weights=options.bfloat16_weights,
        checkpoint_activations=is_large if recomputes is None else recomputes,
        seed=options.seed,
        save_every=max(_MIN_STEPS_BETWEEN_STATES, steps_per_epoch),
        keep_last=1 if is_large and not options.trains_adapters else 2,
        log_every=1,
        num_workers=options.num_workers,
        on_bad_example=options.on_bad_example,
    )


def _model_of(config: PaliGemmaConfig) -> Model | None:
    size = size_of(config)
    models: dict[str, Model] = {model: model for model in get_args(Model)}
    return models.get(f"{config.family}-{size}")


def _chosen(value: float | None, planned: float) -> float:
    return planned if value is None else value
