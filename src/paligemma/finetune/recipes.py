"""Recipes: how the papers fine-tuned a model for each task, and the training options that follow.

recipes.toml holds them, one entry per task. An entry copied into a file of your own is a recipe
too: its path is accepted wherever a recipe's name is.
"""

from __future__ import annotations

import difflib
import math
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from paligemma.config import RELEASES
from paligemma.errors import OptionError, counted
from paligemma.evals.datasets.benchmark import Benchmark
from paligemma.evals.datasets.open import find_benchmark
from paligemma.evals.datasets.published import PublishedScore, best_learning_rate
from paligemma.finetune.config import Optimizer, Schedule, TrainConfig

Model = Literal["paligemma-3b", "paligemma2-3b", "paligemma2-10b", "paligemma2-28b"]
Number = TypeVar("Number", int, float)
NOT_STATED = "not stated"
_TABLE = Path(__file__).with_name("recipes.toml")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The hyperparameters at one resolution. None stands for what the papers do not state."""

    resolution: int
    epochs: float | None = None
    """Passes over the images. Of several captions or answers per image, one is drawn each time."""
    steps: int | None = None
    examples_seen: int | None = None
    batch_size: int | None = 256
    learning_rate: float | None = 1e-5
    weight_decay: float = 0.0
    """As big_vision defines it; see TrainConfig.weight_decay_kind."""
    dropout: float = 0.0
    """In the decoder's blocks."""
    label_smoothing: float = 0.0
    freeze_vision: bool = False
    beams: int = 1
    """Beam width in evaluation; 1 is greedy decoding."""
    optimizer: Optimizer = "adamw"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One task: the prompt, the text to learn, the hyperparameters and the data."""

    name: str
    title: str
    prompt: str
    """With placeholders for the data's fields. The processor adds the newline after it."""
    suffix: str
    """What is learned, in words."""
    text_length: int
    """Tokens of prompt and answer; longer ones are cut."""
    settings: tuple[Setting, ...]
    benchmarks: tuple[str, ...] = ()
    """Names in `evals.datasets`. The model was trained for the first; the others are scored without
    training of their own, except RefCOCO's three and RSVQA's."""
    sweep_rows: tuple[str, ...] = ()
    """Rows of the sweep that chose PaliGemma 2's learning rate."""
    model: Model = "paligemma-3b"
    """The model that the settings are for."""
    learning_rates: Mapping[Model, float] = field(default_factory=dict)
    """For other models, where the paper states them."""
    stage: str = "pt"
    """The kind of checkpoint that training starts from."""
    schedule: Schedule = "cosine"
    antialias_training: bool | None = None
    """Whether images were shrunk with antialiasing; None where this is not published."""
    antialias_evaluation: bool | None = None
    resize: Literal["squash", "pad"] = "squash"
    write_labels: bool = True
    """Whether the answer holds each object's label. A phrase that means one object needs none."""
    noise_boxes: bool = False
    """Whether lists of boxes are filled up with noise boxes (paligemma.data.targets)."""
    num_images: int = 1
    frame_stride: int | None = None
    """Frames of the video from one image to the next."""
    train_split: str = ""
    train_examples: int | None = None
    evaluated_on: str = ""
    metric: str = ""
    source: str = "https://arxiv.org/abs/2407.07726, appendices B and J"
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

        PaliGemma 2 takes over PaliGemma's figures at 224 pixels except for the learning rate, which
        was swept for every size at 224 pixels and kept for 448 (arXiv 2412.03555, section 4); it
        was not trained at 896 for these tasks.

        Raises OptionError for a resolution that the recipe has no setting for.
        """
        if resolution is None:
            resolution = self.resolutions[0]
        if resolution not in self.resolutions:
            trained = ", ".join(map(str, self.resolutions))
            raise OptionError(
                f"The recipe {self.name!r} has no settings for {resolution} pixels, only for "
                f"{trained}. Use a model of that resolution, or a recipe file of your own with "
                f"resolution = {resolution}."
            )
        setting = self.settings[self.resolutions.index(resolution)]
        if model is None or model == self.model:
            return setting
        if model in self.learning_rates:
            return replace(setting, learning_rate=self.learning_rates[model])
        if not self.sweep_rows:
            return setting
        size = model.rpartition("-")[2]
        rate = best_learning_rate(self.sweep_rows, size)
        return replace(self.settings[0], resolution=resolution, learning_rate=rate)


def find_recipe(name: str | Path) -> Recipe:
    """The recipe of a name, or of a TOML file that holds one entry like those of recipes.toml.

    Raises OptionError for an unknown name, with similar ones, and for an unreadable file.

    >>> find_recipe("aokvqa-mc").text_length
    128
    """
    if is_recipe_file(name):
        return _read_recipe_file(Path(name))
    names = [recipe.name for recipe in RECIPES]
    normalized = str(name).strip().lower().replace("_", "-")
    if normalized in names:
        return RECIPES[names.index(normalized)]
    similar = difflib.get_close_matches(normalized, names, n=3)
    hint = f" Did you mean: {', '.join(similar)}?" if similar else ""
    raise OptionError(
        f"There is no recipe {str(name)!r}.{hint} `paligemma recipes` lists them; a recipe of your "
        "own is the path of a .toml file."
    )


def is_recipe_file(name: str | Path) -> bool:
    """Whether this means a file rather than the name of a recipe.

    >>> is_recipe_file("my_recipe.toml"), is_recipe_file("ai2d")
    (True, False)
    """
    return Path(name).suffix.lower() == ".toml"


def _read_recipe_file(path: Path) -> Recipe:
    try:
        recipes = parse_recipes(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise OptionError(
            f"The recipe file {str(path)!r} cannot be read: {error.strerror}."
        ) from None
    except ValueError as error:
        raise OptionError(f"The recipe file {str(path)!r} is invalid: {error}") from None
    if len(recipes) != 1:
        raise OptionError(
            f"The recipe file {str(path)!r} holds {counted(len(recipes), 'recipe')}; it must hold "
            "exactly one."
        )
    return recipes[0]


def parse_recipes(text: str) -> tuple[Recipe, ...]:
    """The recipes of a TOML text: one table per recipe, its settings as an array of tables.

    Raises ValueError (tomllib's or OptionError) that names the entry and the field.
    """
    return tuple(_parse_recipe(name, entry) for name, entry in tomllib.loads(text).items())


def _parse_recipe(name: str, entry: object) -> Recipe:
    if not isinstance(entry, dict):
        raise OptionError(
            f"{name!r} stands outside of a table. Begin the recipe with a line like [my-recipe]."
        )
    settings = entry.get("settings")
    if not isinstance(settings, list) or not all(isinstance(item, dict) for item in settings):
        raise OptionError(f"{name} has no settings. Add at least one [[{name}.settings]] table.")
    parsed = tuple(
        Setting(**_checked_fields(Setting, setting, f"{name}.settings")) for setting in settings
    )
    others = {key: value for key, value in entry.items() if key != "settings"}
    known = {"name": name, "settings": parsed}
    recipe = Recipe(**_checked_fields(Recipe, others, name, known))
    for benchmark in recipe.benchmarks:
        find_benchmark(benchmark)
    return recipe


def _checked_fields(
    cls: type, table: Mapping[str, Any], where: str, known: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The arguments of the dataclass, checked against its fields; `known` ones come first."""
    hints = get_type_hints(cls)
    arguments: dict[str, Any] = dict(known or {})
    for key, value in table.items():
        if key not in hints or key in arguments:
            similar = difflib.get_close_matches(key, hints, n=1)
            hint = f" Did you mean {similar[0]!r}?" if similar else ""
            raise OptionError(f"{where} has an unknown field {key!r}.{hint}")
        if value == NOT_STATED and type(None) in get_args(hints[key]):
            arguments[key] = None
            continue
        if not _has_type(value, hints[key]):
            raise OptionError(f"{where}.{key} is {value!r}; it must be {_type_name(hints[key])}.")
        arguments[key] = tuple(value) if isinstance(value, list) else value
    missing = [
        item.name
        for item in fields(cls)
        if item.default is MISSING
        and item.default_factory is MISSING
        and item.name not in arguments
    ]
    if missing:
        raise OptionError(f"{where} lacks {', '.join(missing)}.")
    return arguments


def _has_type(value: object, hint: Any) -> bool:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return value in arguments
    if origin is tuple:
        return isinstance(value, list) and all(_has_type(item, arguments[0]) for item in value)
    if origin is Mapping:
        return isinstance(value, dict) and all(
            _has_type(key, arguments[0]) and _has_type(item, arguments[1])
            for key, item in value.items()
        )
    if arguments:
        return any(_has_type(value, argument) for argument in arguments)
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, (int, float) if hint is float else hint)


def _type_name(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(map(repr, arguments))
    if origin is tuple:
        return "a list of strings"
    if origin is Mapping:
        return "a table of models and numbers"
    kinds = {str: "a string", int: "an integer", float: "a number", bool: "true or false"}
    return kinds[next(item for item in arguments or (hint,) if item in kinds)]


RECIPES: tuple[Recipe, ...] = parse_recipes(_TABLE.read_text(encoding="utf-8"))
"""All recipes of the papers, in their order, and the two that are made to be copied."""


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

    `epochs`, `batch_size` and `learning_rate` override the recipe's. All recipes share: cosine to
    0 after 5 % of warm-up, Adam (0.9, 0.999), gradients clipped to norm 1, the mean over examples
    of the mean over tokens, no cap on the final logits (big_vision's transfer configs).

    Raises OptionError where the papers do not state a figure and none is given, or the recipe has
    no setting for the resolution.
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


def command(
    recipe: Recipe,
    resolution: int | None = None,
    model: Model | None = None,
    *,
    file: str | None = None,
) -> str:
    """The command line that trains by the recipe; `file` is where it was read from, if anywhere."""
    resolution = recipe.setting(resolution, model).resolution
    start = (
        start_checkpoint(recipe, resolution, model)
        if recipe.stage == "pt"
        else "FOLDER_OF_THE_STAGE_BEFORE"
    )
    out = _out(recipe, resolution, model)
    return f"paligemma train DATA --recipe {file or recipe.name} --model {start} --out {out}"


def evaluation_commands(
    recipe: Recipe, resolution: int | None = None, model: Model | None = None
) -> tuple[str, ...]:
    """The command lines that score the trained model, one per benchmark that can be read here."""
    setting = recipe.setting(resolution, model)
    out = _out(recipe, setting.resolution, model)
    beams = f" --num-beams {setting.beams}" if setting.beams > 1 else ""
    return tuple(
        f"paligemma eval {benchmark.name} --folder FOLDER --model {out}/model "
        f"--out {out}/eval-{benchmark.name}{beams}"
        for benchmark in recipe.find_benchmarks()
        if not benchmark.not_read_because
    )


def _out(recipe: Recipe, resolution: int, model: Model | None) -> str:
    suffix = f"-{model}" if model not in (None, recipe.model) else ""
    return f"runs/{recipe.name}-{resolution}{suffix}"
