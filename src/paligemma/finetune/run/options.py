"""RunOptions: what a user chooses for a training run, and the defaults for the rest."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from paligemma.adapters.lora import LoraConfig, Part
from paligemma.config import RELEASES, PaliGemmaConfig, count_parameters
from paligemma.data.source import ReadOptions
from paligemma.data.targets import DEFAULT_NOISE_TOKEN, ObjectOptions, TargetOptions
from paligemma.errors import OptionError
from paligemma.fast.weights import FrozenFormat
from paligemma.finetune.config import LEARNING_RATES, Method, TrainConfig
from paligemma.finetune.recipes import Model, Recipe, find_recipe, train_config
from paligemma.options import Option
from paligemma.processor.image import Resize

Size = Literal["mini", "3b", "10b", "28b"]

DEFAULT_EPOCHS = 10.0
DEFAULT_FRACTION = 0.1
"""Of the training data, held out for validation where there is no validation split."""
_SMALL_RATE_FACTOR = 5.0
"""Models far smaller than 3B take larger steps; measured on mini with sixty images."""
_MIN_STEPS_BETWEEN_CHECKPOINTS = 50


@dataclass(frozen=True, kw_only=True)
class RunOptions(ReadOptions, ObjectOptions):
    """A training run. None means: as in the recipe, or chosen by method, model size and data."""

    data: str
    """Labeled images, in any format that `paligemma data check` reads."""
    model: str = "mini"
    """Model to start from: mini, a hub id such as google/paligemma2-3b-pt-224, or a folder."""
    from_adapter: Annotated[Path | None, Option(flags=("--from",), shown_default="none")] = None
    """Adapter of an earlier run, to train further in a new run. Its rank, form and parts stay."""
    vision_tower: Annotated[Path | None, Option(shown_default="none")] = None
    """Vision encoder to start from instead of the model's: a .safetensors file of a SigLIP model by
    timm, open_clip or transformers, or an .npz file of big_vision. For the methods full and
    frozen-encoder."""
    method: Annotated[Method | None, Option(shown_default="lora; with a recipe full")] = None
    """Weights to train: adapters (lora), adapters on a quantized base (qlora), all (full), or all
    except the vision encoder's (frozen-encoder)."""
    recipe: Annotated[str | None, Option(shown_default="none")] = None
    """Recipe with the hyperparameters: a name that `paligemma recipes` lists, or a TOML file."""
    validation: Annotated[str | None, Option(shown_default="a part of DATA")] = None
    """Data set to validate on, in the format of DATA."""
    validation_split: Annotated[
        float | str | None, Option(shown_default="that of DATA, else 0.1")
    ] = None
    """Split of DATA to validate on, by name; or, as a number below 1, the fraction of DATA to hold
    out. 0: no validation. Records that share an image stay together, and in the same part when
    data are added."""
    validation_limit: Annotated[int, Option(least=1)] = 200
    """Maximum number of validation records to score after each epoch."""
    metrics: Annotated[tuple[str, ...], Option(flags=("--metric",), shown_default="by task")] = ()
    """Metric to compute (docs/metrics.md lists them); may be repeated. The first one chooses the
    best checkpoint."""
    epochs: Annotated[float | None, Option(shown_default=f"{DEFAULT_EPOCHS:g}")] = None
    """Number of passes over the data."""
    steps: Annotated[int | None, Option(least=1)] = None
    """Number of optimizer steps, instead of epochs."""
    batch_size: Annotated[
        int | None, Option(least=1, shown_default=str(TrainConfig.batch_size))
    ] = None
    """Examples per step."""
    accumulation: Annotated[int, Option(least=1)] = TrainConfig.accumulation
    """Split each batch into this many parts, to save memory."""
    learning_rate: Annotated[float | None, Option(shown_default="by method and size")] = None
    """Peak learning rate."""
    weight_decay: Annotated[float | None, Option(shown_default=f"{TrainConfig.weight_decay:g}")] = (
        None
    )
    """Weight decay. It applies to weight matrices, not to biases and norms."""
    label_smoothing: Annotated[
        float | None, Option(shown_default=f"{TrainConfig.label_smoothing:g}")
    ] = None
    """Label-smoothing factor."""
    llm_dropout: Annotated[float | None, Option(shown_default=f"{TrainConfig.llm_dropout:g}")] = (
        None
    )
    """Dropout rate in the decoder's blocks."""
    rank: Annotated[int, Option(least=1)] = LoraConfig.rank
    """Rank of LoRA adapters."""
    alpha: Annotated[float | None, Option(shown_default="twice the rank")] = None
    """LoRA alpha: adapters are scaled by alpha / rank."""
    rslora: bool = LoraConfig.use_rslora
    """Use rsLoRA scaling (alpha / sqrt(rank))."""
    dora: bool = LoraConfig.use_dora
    """Use DoRA (weight-decomposed LoRA)."""
    parts: Annotated[tuple[Part, ...], Option(flags=("--part",), shown_default="decoder")] = (
        LoraConfig.parts
    )
    """Part of the model that gets adapters; may be repeated."""
    base_format: FrozenFormat = "nf4"
    """Format of the frozen base weights when the method is qlora."""
    bfloat16_weights: bool = False
    """Keep bfloat16 weights with float32 master copies (full fine-tuning only)."""
    checkpoint_activations: Annotated[bool | None, Option(shown_default="for 3B and larger")] = None
    """Recompute activations in the backward pass to save memory."""
    seed: Annotated[int, Option(least=0)] = TrainConfig.seed
    """Random seed for the data order, dropout and new adapters."""
    num_workers: Annotated[int, Option(least=0)] = TrainConfig.num_workers
    """Data loader processes; 0: load in the training process."""
    max_tokens: Annotated[int | None, Option(least=1, shown_default="no limit")] = None
    """Maximum number of tokens per example, image tokens included; longer ones are invalid."""
    resize: Annotated[Resize | None, Option(shown_default="squash; with a recipe as there")] = None
    """How images are fitted to the square input: squash changes the aspect ratio, pad keeps it and
    adds borders."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.method not in (None, *get_args(Method)):
            raise OptionError(
                f"There is no method {self.method!r}. Methods: {', '.join(get_args(Method))}."
            )
        fraction = self.validation_fraction
        if fraction is not None and not 0 <= fraction < 1:
            raise OptionError(
                f"validation_split is {self.validation_split}; it must be the name of a split, or "
                "a number of at least 0 and below 1."
            )
        if self.epochs is not None and self.steps is not None:
            raise OptionError(
                f"epochs is {self.epochs} and steps is {self.steps}; give one of the two."
            )
        if not self.trains_adapters and (self.rslora or self.dora):
            raise OptionError(
                f"rslora and dora are forms of adapters, and the method is {self.chosen_method!r}. "
                "Use method='lora' (--method lora)."
            )
        if self.from_adapter is not None:
            self._check_continuation()
        if self.vision_tower is not None and self.trains_adapters:
            raise OptionError(
                "vision_tower needs a method that saves a whole model: adapters belong to the "
                "encoder of the model that they were trained on. Use method='frozen-encoder' or "
                "'full' (--method)."
            )
        if self.bfloat16_weights and self.trains_adapters:
            raise OptionError(
                "bfloat16_weights is for methods that train the weights themselves; adapters are "
                "always float32."
            )

    def _check_continuation(self) -> None:
        if not self.trains_adapters:
            raise OptionError(
                f"from_adapter trains an adapter further, and the method is {self.chosen_method!r}."
                " Use method='lora' or 'qlora' (--method), or merge the adapter into its model "
                "first."
            )
        default = RunOptions(data=self.data)
        names = ("rank", "alpha", "rslora", "dora", "parts")
        if changed := [n for n in names if getattr(self, n) != getattr(default, n)]:
            raise OptionError(
                f"{' and '.join(changed)} cannot be chosen: the adapter that is trained further, "
                f"{str(self.from_adapter)!r}, has its own."
            )

    @property
    def validation_fraction(self) -> float | None:
        """The fraction to hold out; None where a split is named, or nothing is chosen."""
        try:
            return None if self.validation_split is None else float(self.validation_split)
        except ValueError:
            return None

    @property
    def validation_name(self) -> str | None:
        """The split to validate on, if it is named."""
        is_name = self.validation_fraction is None and self.validation_split is not None
        return str(self.validation_split) if is_name else None

    @property
    def chosen_method(self) -> Method:
        return self.method or ("lora" if self.recipe is None else "full")

    @property
    def trains_adapters(self) -> bool:
        return self.chosen_method in ("lora", "qlora")

    @cached_property
    def loaded_recipe(self) -> Recipe | None:
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

    def target_options(self) -> TargetOptions:
        """How objects become targets, with what the recipe says."""
        recipe = self.loaded_recipe
        noise_token = self.noise_token
        if noise_token is None and recipe is not None and recipe.noise_boxes:
            noise_token = DEFAULT_NOISE_TOKEN
        return TargetOptions(
            task=self.task,
            ask=self.ask,
            order=self.order,
            max_objects=self.max_objects,
            noise_token=noise_token,
            write_labels=self.write_labels and (recipe is None or recipe.write_labels),
            seed=self.seed,
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
    """The peak learning rate to start with; `LEARNING_RATES` says where the figures come from."""
    size = size_of(config)
    if size == "mini":
        return _SMALL_RATE_FACTOR * LEARNING_RATES[method]["3b"]
    return LEARNING_RATES[method][size]


def plan_training(options: RunOptions, config: PaliGemmaConfig, num_examples: int) -> TrainConfig:
    """The trainer's config, its length in steps.

    Options override the recipe's figures, and these the defaults: 10 epochs of batches of 8,
    cosine to 0 after 5 % of warm-up, no decay, no dropout, no smoothing. With a recipe adapters
    keep their own learning rate: the papers' are for all weights.

    Raises OptionError for a recipe that does not state a figure which is not given.
    """
    is_large = size_of(config) != "mini"
    recipe = options.loaded_recipe
    if recipe is None:
        planned = _plan_without_recipe(options, config, num_examples)
    else:
        planned = _plan_by_recipe(options, recipe, config, num_examples)
    planned = planned.resolved(num_examples)
    recomputes = options.checkpoint_activations
    steps_per_epoch = -(-num_examples // planned.batch_size)
    chosen: dict[str, Any] = {
        name: getattr(options, name)
        for name in ("weight_decay", "label_smoothing", "llm_dropout")
        if getattr(options, name) is not None
    }
    return replace(
        planned,
        **chosen,
        accumulation=options.accumulation,
        master_weights=options.bfloat16_weights,
        checkpoint_activations=is_large if recomputes is None else recomputes,
        seed=options.seed,
        save_every=max(_MIN_STEPS_BETWEEN_CHECKPOINTS, steps_per_epoch),
        keep_last=1 if is_large and not options.trains_adapters else TrainConfig.keep_last,
        log_every=1,
        num_workers=options.num_workers,
        on_bad_record=options.on_bad_record,
    )


def _plan_without_recipe(
    options: RunOptions, config: PaliGemmaConfig, num_examples: int
) -> TrainConfig:
    epochs = options.epochs
    if epochs is None and options.steps is None:
        epochs = DEFAULT_EPOCHS
    rate = options.learning_rate
    if rate is None:
        rate = default_learning_rate(options.chosen_method, config)
    return TrainConfig(
        epochs=epochs,
        num_steps=options.steps,
        learning_rate=rate,
        batch_size=options.batch_size or min(TrainConfig.batch_size, num_examples),
    )


def _plan_by_recipe(
    options: RunOptions, recipe: Recipe, config: PaliGemmaConfig, num_examples: int
) -> TrainConfig:
    rate = options.learning_rate
    if rate is None and options.trains_adapters:
        rate = default_learning_rate(options.chosen_method, config)
    planned = train_config(
        recipe,
        num_examples,
        resolution=config.vision.resolution,
        model=_model_of(config),
        epochs=options.epochs,
        batch_size=options.batch_size,
        learning_rate=rate,
    )
    return planned if options.steps is None else replace(planned, num_steps=options.steps)


def _model_of(config: PaliGemmaConfig) -> Model | None:
    size = size_of(config)
    models: dict[str, Model] = {model: model for model in get_args(Model)}
    return models.get(f"{config.family}-{size}")
