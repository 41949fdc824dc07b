"""The commands that ask a model about images.

Everything that can be wrong with the command line, the files and the output path is checked before
the model is loaded. An image that cannot be read is reported, and the rest are processed.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from paligemma.cli.console import (
    print_error,
    print_json,
    print_note,
    print_text,
    show_image,
    stdout,
    track,
    visible,
)
from paligemma.cli.model_options import LoadOptions
from paligemma.cli.options import takes
from paligemma.errors import ImageError, InputError, OptionError, PromptError
from paligemma.options import Option

if TYPE_CHECKING:
    from PIL.Image import Image

    from paligemma.predictor import Predictor
    from paligemma.processor.image import LoadedImage
    from paligemma.results import Objects, Result

ObjectsT = TypeVar("ObjectsT", bound="Objects[Any]")

_IMAGE_TYPES = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True, kw_only=True)
class PredictOptions(LoadOptions):
    """What every command here takes."""

    max_new_tokens: Annotated[int | None, Option(least=1, shown_default="by task")] = None
    """Maximum length of the answer, in tokens."""
    json: bool = False
    """Print one JSON object per image, on one line."""
    show: bool = False
    """Show the image in the terminal."""
    allow_urls: bool = False
    """Fetch images from http and https addresses."""


@dataclass(frozen=True, kw_only=True)
class ObjectOptions:
    """Which objects to search for and which to keep."""

    min_score: Annotated[
        float | None, Option(least=0, most=1, shown_default="0, or the calibration's threshold")
    ] = None
    """Minimum score; objects with lower scores are dropped."""
    calibration: Annotated[Path | None, Option(shown_default="none")] = None
    """File that turns scores into probabilities: the calibration.json that `paligemma eval
    --calibrate` writes."""
    any_label: bool = False
    """Allow labels that were not requested."""
    max_objects: Annotated[int | None, Option(least=1, shown_default="100")] = None
    """Maximum number of objects."""
    separate: Annotated[
        bool | None, Option(shown_default="only where an object is missing or unsure")
    ] = None
    """Ask for each phrase by itself, or (--no-separate) once for all of them together."""

    def settings(self) -> dict[str, Any]:
        """What to tell the model; nothing about what is not given."""
        settings: dict[str, Any] = {"labels": "any"} if self.any_label else {}
        if self.separate is not None:
            settings["separate"] = self.separate
        if self.max_objects is not None:
            settings["max_objects"] = self.max_objects
        return settings


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """How the text is chosen."""

    temperature: Annotated[float, Option(least=0)] = 0.0
    """Sampling temperature. 0: always take the most likely token."""
    top_k: Annotated[int | None, Option(least=1, shown_default="all")] = None
    """Sample from this many of the most likely tokens."""
    top_p: Annotated[float | None, Option(least=0, most=1, shown_default="all")] = None
    """Sample from the most likely tokens that together have this probability."""
    seed: int = 0
    """Random seed of sampling."""
    num_beams: Annotated[int, Option(least=1)] = 1
    """Number of beams. 1: no beam search."""
    stop: Annotated[tuple[str, ...], Option(shown_default="none")] = ()
    """Text at which to stop; may be repeated."""
    stream: bool = False
    """Print the text while it is generated."""


def _images(metavar: str, text: str) -> Any:
    return typer.Argument(metavar=metavar, show_default=False, help=text)


ImageArguments = Annotated[list[str], _images("IMAGE...", "Image files to read.")]
ImagesAndPrompt = Annotated[list[str], _images("IMAGE... PROMPT", "Image files, then the prompt.")]
ImagesAndQuestion = Annotated[
    list[str], _images("IMAGE... QUESTION", "Image files, then the question.")
]
ImagesAndPhrases = Annotated[
    list[str],
    _images("IMAGE... NAMES", 'Image files, then the names of what to find, separated by " ; ".'),
]
Language = Annotated[
    str, typer.Option("--language", help="Language code of the answer, such as de.")
]
Draw = Annotated[
    Path | None,
    typer.Option(
        "--draw",
        show_default="none",
        help="Write the image with the objects drawn on it to this .png, .jpg or .webp file. For "
        "several images: a folder, or a file name to which -1, -2, ... is added.",
    ),
]


@takes(options=PredictOptions)
def caption(images: ImageArguments, *, language: Language = "en", options: PredictOptions) -> None:
    """Caption each image in a few words."""
    _each(
        "caption",
        images,
        options,
        lambda predictor, image: predictor.caption(image, language, **_length(options)),
    )


@takes(options=PredictOptions)
def describe(images: ImageArguments, *, language: Language = "en", options: PredictOptions) -> None:
    """Describe each image in several sentences."""
    _each(
        "describe",
        images,
        options,
        lambda predictor, image: predictor.describe(image, language, **_length(options)),
    )


@takes(options=PredictOptions)
def ask(
    words: ImagesAndQuestion,
    *,
    language: Annotated[
        str,
        typer.Option(
            "--language",
            help='Language code of question and answer; "" leaves it out of the prompt.',
        ),
    ] = "en",
    options: PredictOptions,
) -> None:
    """Answer a question about each image."""
    images, question = _split(words, "ask")
    _each(
        "ask",
        images,
        options,
        lambda predictor, image: predictor.ask(
            image, question, language or None, **_length(options)
        ),
    )


@takes(options=PredictOptions)
def ocr(images: ImageArguments, *, options: PredictOptions) -> None:
    """Read the text in each image."""
    _each("ocr", images, options, lambda predictor, image: predictor.ocr(image, **_length(options)))


@takes(objects=ObjectOptions, options=PredictOptions)
def detect(
    words: ImagesAndPhrases,
    *,
    draw: Draw = None,
    min_objects: Annotated[
        int,
        typer.Option(
            "--min-objects",
            min=0,
            help="Minimum number of objects, for models that were trained with noise boxes.",
        ),
    ] = 0,
    objects: ObjectOptions,
    options: PredictOptions,
) -> None:
    """Find objects, such as "dog ; key", and print their boxes."""
    images, phrases = _split(words, "detect")
    keep = _keeper(objects)
    settings = objects.settings() | _length(options)
    if min_objects:
        settings["min_objects"] = min_objects
    _each(
        "detect",
        images,
        options,
        lambda predictor, image: keep(predictor.detect(image, phrases, **settings)),
        draw,
    )


@takes(objects=ObjectOptions, options=PredictOptions)
def segment(
    words: ImagesAndPhrases, *, draw: Draw = None, objects: ObjectOptions, options: PredictOptions
) -> None:
    """Find objects, such as "dog ; key", and print their boxes and masks."""
    images, phrases = _split(words, "segment")
    keep = _keeper(objects)
    settings = objects.settings() | _length(options)
    _each(
        "segment",
        images,
        options,
        lambda predictor, image: keep(predictor.segment(image, phrases, **settings)),
        draw,
    )


def _keeper(options: ObjectOptions) -> Callable[[ObjectsT], ObjectsT]:
    if options.calibration is None:
        return lambda objects: objects.filter(options.min_score or 0.0)
    from paligemma.evals.calibration import load_calibration

    calibration = load_calibration(options.calibration)
    if calibration.subject != "boxes":
        raise OptionError(
            f"{str(options.calibration)!r} is a calibration of {calibration.subject}, and boxes "
            "are needed. Make one with data that have boxes: paligemma eval DATA --calibrate."
        )
    min_score = options.min_score
    if min_score is None:
        min_score = calibration.threshold or 0.0
    return lambda objects: calibration.apply(objects).filter(min_score)


@takes(sampling=SamplingOptions, options=PredictOptions)
def generate(words: ImagesAndPrompt, *, sampling: SamplingOptions, options: PredictOptions) -> None:
    """Generate the text that follows a prompt about images.

    All images become part of the one prompt, in the order given.
    """
    images, prompt = _split(words, "generate")
    if sampling.num_beams > 1 and (sampling.temperature or sampling.stop or sampling.stream):
        raise OptionError(
            "--num-beams does not work with --temperature, --stop or --stream. Leave those out, "
            "or leave out --num-beams."
        )
    if sampling.stream and options.json:
        raise OptionError("--stream and --json exclude each other. Choose one.")
    settings: dict[str, Any] = {
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "seed": sampling.seed,
        "stop": sampling.stop,
    }
    if sampling.stream:
        _stream(images, prompt, options, settings)
        return
    settings["num_beams"] = sampling.num_beams
    _run(
        "generate",
        [images],
        options,
        lambda predictor, loaded: predictor.generate(
            loaded, prompt, **settings, **_length(options)
        ),
    )


def _split(words: Sequence[str], command: str) -> tuple[list[str], str]:
    *images, prompt = words
    if os.path.isfile(prompt):  # unlike Path.is_file, False for a name too long to be one
        raise PromptError(
            f"The prompt is missing: the last argument, {prompt}, is a file. "
            f'Write the prompt last: paligemma {command} {prompt} "..."'
        )
    if not images:
        raise InputError(
            f"There is no image before the prompt {prompt!r}. "
            f'Write: paligemma {command} IMAGE "{prompt}"'
        )
    if os.path.exists(images[0]) and not os.path.exists(images[-1]) and "://" not in images[-1]:
        raise PromptError(
            f"The file {images[-1]!r} does not exist. If it is part of the prompt, quote the "
            f'prompt: paligemma {command} {images[0]} "... {images[-1]} {prompt}"'
        )
    return images, prompt


def _length(options: PredictOptions) -> dict[str, Any]:
    return {} if options.max_new_tokens is None else {"max_new_tokens": options.max_new_tokens}


def _each(
    task: str,
    images: Sequence[str],
    options: PredictOptions,
    ask_one: Callable[[Predictor, LoadedImage], Result],
    draw: Path | None = None,
) -> None:
    _run(task, [[image] for image in images], options, lambda p, group: ask_one(p, group[0]), draw)


def _run(
    task: str,
    groups: Sequence[Sequence[str]],
    options: PredictOptions,
    ask_group: Callable[[Predictor, tuple[LoadedImage, ...]], Result],
    draw: Path | None = None,
) -> None:
    """One question and one result per group of images."""
    _check_images([name for group in groups for name in group], options)
    targets = _draw_targets(draw, [group[0] for group in groups])
    predictor = _load(options)
    num_unread = 0
    for group, target in track(list(zip(groups, targets, strict=True)), task):
        try:
            loaded = _read(group, options)
        except ImageError as error:
            print_error(str(error))
            num_unread += 1
            continue
        result = ask_group(predictor, loaded)
        if options.json:
            named = {"images": list(group)} if task == "generate" else {"image": group[0]}
            print_json({**named, "model": options.model, "task": task, "result": result.to_dict()})
        else:
            print_text(f"{visible(group[0])}: {result}" if len(groups) > 1 else str(result))
            if task == "generate":
                _print_notes(result)
            if options.show:
                show_image(_draw(result, loaded[0].rgb))
        if target is not None:
            _save(_draw(result, loaded[0].rgb), target)
            print_note(f"drawn: {target}")
    if num_unread:
        raise typer.Exit(2)


def _print_notes(result: Any) -> None:
    for note in result.notes:
        print_note(note)


def _stream(
    images: Sequence[str], prompt: str, options: PredictOptions, settings: dict[str, Any]
) -> None:
    _check_images(images, options)
    predictor = _load(options)
    loaded = _read(images, options)
    from paligemma.tasks.parse_prompt import prompt_notes

    for note in prompt_notes(prompt):
        print_note(note)
    for piece in predictor.stream(loaded, prompt, **settings, **_length(options)):
        stdout().out(visible(piece, keep="\n\t"), end="")
    stdout().out("")


def _load(options: PredictOptions) -> Predictor:
    predictor = options.load()
    if predictor.note and not options.json:
        print_note(predictor.note)
    return predictor


def _check_images(names: Sequence[str], options: PredictOptions) -> None:
    for name in names:
        if "://" in name:
            if not options.allow_urls:
                raise ImageError(f"{name!r} is a web address. Add --allow-urls to fetch it.")
        elif not os.path.exists(name):
            raise ImageError(f"The file {name!r} does not exist. Check the path.")


def _read(names: Sequence[str], options: PredictOptions) -> tuple[LoadedImage, ...]:
    from paligemma.processor.image import load_image

    return tuple(load_image(name, allow_urls=options.allow_urls) for name in names)


def _draw(result: Result, image: Image) -> Image:
    from paligemma.results import Detections, Segments

    return result.draw(image) if isinstance(result, Detections | Segments) else image


def _draw_targets(draw: Path | None, images: Sequence[str]) -> list[Path | None]:
    """The file for the drawing of each image, after a check that it can be written."""
    if draw is None:
        return [None] * len(images)
    if draw.is_dir():
        targets = [draw / f"{Path(image).stem}.png" for image in images]
    elif len(images) == 1:
        targets = [draw]
    else:
        numbers = range(1, len(images) + 1)
        targets = [draw.with_name(f"{draw.stem}-{number}{draw.suffix}") for number in numbers]
    for target in targets:
        _check_target(target)
    for target in targets:
        if targets.count(target) > 1:
            raise OptionError(
                f"Two images would both be drawn to {target}. Give --draw a file name instead "
                "of a folder: -1, -2, ... will be added to it."
            )
    if overwritten := {t.resolve() for t in targets} & {Path(image).resolve() for image in images}:
        raise OptionError(
            f"--draw would overwrite the image {min(overwritten)}. Choose another file."
        )
    return list(targets)


def _check_target(target: Path) -> None:
    if target.suffix.lower() not in _IMAGE_TYPES:
        raise OptionError(
            f"--draw writes {', '.join(_IMAGE_TYPES)} files, and the name {target.name!r} ends in "
            "none of them."
        )
    try:
        with tempfile.TemporaryFile(dir=target.parent):
            pass
    except OSError as error:
        raise OptionError(
            f"--draw cannot write to the folder {target.parent}: {error.strerror}. "
            "Create it first, or choose another."
        ) from error


def _save(image: Image, target: Path) -> None:
    """Write the whole image or nothing, without the metadata of its source."""
    from PIL import Image as PILImage

    bare = PILImage.frombytes("RGB", image.size, image.convert("RGB").tobytes())
    staging = target.with_name(f".{target.stem}.{os.getpid()}{target.suffix}")
    try:
        bare.save(staging)
        staging.replace(target)
    except (OSError, ValueError) as error:  # ValueError: WebP is limited to 16383 pixels per side
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise OptionError(f"The drawing {target} cannot be written: {reason}.") from error
    finally:
        staging.unlink(missing_ok=True)
