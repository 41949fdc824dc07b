"""The commands that ask a model about pictures.

Everything that can be wrong with the command line, the files and the output's place is checked
before the model is loaded. A picture that cannot be read is reported and the next one is taken.
"""

from __future__ import annotations

import inspect
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_type_hints

import typer

from paligemma.cli.console import (
    print_error,
    print_json,
    print_note,
    print_text,
    show_picture,
    stdout,
    track,
    visible,
)
from paligemma.errors import ImageError, InputError, OptionError, PromptError

if TYPE_CHECKING:
    from PIL.Image import Image

    from paligemma.predictor import Predictor
    from paligemma.processor.image import LoadedImage
    from paligemma.results import Objects, Result

DtypeOption = Annotated[
    Literal["auto", "float32", "bfloat16", "float16"], typer.Option(help="Of the weights.")
]
QuantizationOption = Annotated[
    Literal["int8", "int4"] | None,
    typer.Option(help="Of the decoder's large weights.", show_default="as they are stored"),
]

FoundT = TypeVar("FoundT", bound="Objects[Any]")

_PICTURE_TYPES = (".png", ".jpg", ".jpeg", ".webp")
_MIX = "google/paligemma2-3b-mix-224"


@dataclass(frozen=True, kw_only=True)
class Options:
    """What every command here understands; each field is an option."""

    model: Annotated[
        str,
        typer.Option(envvar="PALIGEMMA_MODEL", help=f"mini, a hub id such as {_MIX}, or a folder."),
    ] = "mini"
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit of a hub id.", show_default="main")
    ] = None
    adapter: Annotated[
        Path | None, typer.Option(help="A folder with an adapter to merge into the model.")
    ] = None
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")] = "auto"
    dtype: DtypeOption = "auto"
    quantization: QuantizationOption = None
    offline: Annotated[
        bool, typer.Option("--offline", help="Use only what is already downloaded.")
    ] = False
    verify: Annotated[
        bool, typer.Option("--verify", help="Compare files with their SHA-256 first.")
    ] = False
    allow_urls: Annotated[
        bool, typer.Option("--allow-urls", help="Fetch pictures from http and https addresses.")
    ] = False
    max_new_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Longest answer, in tokens.", show_default="by task"),
    ] = None
    json: Annotated[
        bool, typer.Option("--json", help="One JSON object a picture on stdout, nothing else.")
    ] = False
    show: Annotated[bool, typer.Option("--show", help="Show the picture in the terminal.")] = False


Images = Annotated[list[str], typer.Argument(metavar="IMAGE", show_default=False)]
ImagesAndPrompt = Annotated[
    list[str],
    typer.Argument(
        metavar="IMAGE ... PROMPT", show_default=False, help="Pictures, then the prompt."
    ),
]
Language = Annotated[str, typer.Option(help="Language code of the answer, such as de.")]
Draw = Annotated[
    Path | None,
    typer.Option(
        "--draw",
        help="Write the picture with what was found to this .png, .jpg or .webp. With several "
        "pictures: a folder, or a name that gets -1, -2, ... added.",
    ),
]
MinScore = Annotated[
    float | None,
    typer.Option(
        min=0.0,
        max=1.0,
        help="Leave out what scores lower than this.",
        show_default="0, or the calibration's",
    ),
]
CalibrationFile = Annotated[
    Path | None,
    typer.Option(
        "--calibration",
        help="Make scores probabilities with this calibration.json of `paligemma eval`.",
    ),
]
AnyLabel = Annotated[
    bool,
    typer.Option(
        "--any-label", help="Take whatever names the model gives, not only those asked for."
    ),
]
MaxObjects = Annotated[
    int | None, typer.Option(min=1, help="End after this many objects.", show_default="100")
]
MinObjects = Annotated[
    int, typer.Option(min=0, help="Do not end before; for models that learned with noise boxes.")
]


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """Gives the command one option for each field of `Options`, handed over as `options`."""
    hints = get_type_hints(Options, include_extras=True)
    own = inspect.signature(command, eval_str=True).parameters
    by_name = inspect.Parameter.KEYWORD_ONLY
    parameters = [p.replace(kind=by_name) for p in own.values() if p.name != "options"]
    parameters += [
        inspect.Parameter(f.name, by_name, default=f.default, annotation=hints[f.name])
        for f in fields(Options)
    ]

    @wraps(command)
    def run(**values: Any) -> None:
        options = Options(**{f.name: values.pop(f.name) for f in fields(Options)})
        command(**values, options=options)

    # What typer reads a command's options from.
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    return run


@with_options
def caption(images: Images, *, lang: Language = "en", options: Options) -> None:
    """Say in a few words what is in each picture."""
    _each("caption", images, options, lambda p, image: p.caption(image, lang, **_limit(options)))


@with_options
def describe(images: Images, *, lang: Language = "en", options: Options) -> None:
    """Describe each picture at more length."""
    _each("describe", images, options, lambda p, image: p.describe(image, lang, **_limit(options)))


@with_options
def ask(
    words: ImagesAndPrompt,
    *,
    lang: Annotated[
        str,
        typer.Option(help='Language code of question and answer; "" leaves it out of the prompt.'),
    ] = "en",
    options: Options,
) -> None:
    """Answer a question about each picture."""
    images, question = _split(words, "ask")
    _each(
        "ask",
        images,
        options,
        lambda p, image: p.ask(image, question, lang or None, **_limit(options)),
    )


@with_options
def ocr(images: Images, *, options: Options) -> None:
    """Read the text in each picture."""
    _each("ocr", images, options, lambda p, image: p.ocr(image, **_limit(options)))


@with_options
def detect(
    words: ImagesAndPrompt,
    *,
    draw: Draw = None,
    min_score: MinScore = None,
    calibration: CalibrationFile = None,
    any_label: AnyLabel = False,
    max_objects: MaxObjects = None,
    min_objects: MinObjects = 0,
    options: Options,
) -> None:
    """Find boxes of things, such as "dog ; key"."""
    images, things = _split(words, "detect")
    kept = _keeper(min_score, calibration)
    settings = _search(any_label, max_objects) | _limit(options)
    if min_objects:
        settings["min_objects"] = min_objects
    _each(
        "detect",
        images,
        options,
        lambda p, image: kept(p.detect(image, things, **settings)),
        draw,
    )


@with_options
def segment(
    words: ImagesAndPrompt,
    *,
    draw: Draw = None,
    min_score: MinScore = None,
    calibration: CalibrationFile = None,
    any_label: AnyLabel = False,
    max_objects: MaxObjects = None,
    options: Options,
) -> None:
    """Find outlines of things, such as "dog ; key"."""
    images, things = _split(words, "segment")
    kept = _keeper(min_score, calibration)
    settings = _search(any_label, max_objects) | _limit(options)
    _each(
        "segment",
        images,
        options,
        lambda p, image: kept(p.segment(image, things, **settings)),
        draw,
    )


def _keeper(min_score: float | None, calibration_file: Path | None) -> Callable[[FoundT], FoundT]:
    """What becomes of the objects that were found: calibrated, and those of low score left out."""
    if calibration_file is None:
        return lambda found: found.filter(min_score or 0.0)
    from paligemma.evals.calibration import load_calibration

    calibration = load_calibration(calibration_file)
    if calibration.subject != "boxes":
        raise OptionError(
            f"{str(calibration_file)!r} is a calibration of {calibration.subject}; boxes need "
            "their own: paligemma eval DATA --calibrate with data that have boxes."
        )
    least = (calibration.threshold or 0.0) if min_score is None else min_score
    return lambda found: calibration.apply(found).filter(least)


@with_options
def generate(
    words: ImagesAndPrompt,
    *,
    temperature: Annotated[
        float, typer.Option(min=0.0, help="0 takes the likeliest token each time.")
    ] = 0.0,
    top_k: Annotated[
        int | None, typer.Option(min=1, help="Draw from this many tokens.", show_default="all")
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(min=0.0, max=1.0, help="Draw from this much probability.", show_default="all"),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the random draw.")] = 0,
    beams: Annotated[
        int, typer.Option(min=1, help="More than 1: search for the likeliest whole text.")
    ] = 1,
    stop: Annotated[
        list[str] | None, typer.Option(help="End where this text appears; may be repeated.")
    ] = None,
    stream: Annotated[bool, typer.Option("--stream", help="Print the text as it comes.")] = False,
    options: Options,
) -> None:
    """Continue any prompt.

    Several pictures go into the one prompt, in this order.
    """
    images, prompt = _split(words, "generate")
    if beams > 1 and (temperature or stop or stream):
        raise OptionError(
            "--beams searches for the likeliest text as a whole. It does not go with "
            "--temperature, --stop or --stream: leave those out."
        )
    if stream and options.json:
        raise OptionError("--stream prints text as it comes, --json one object. Choose one.")
    settings: dict[str, Any] = {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "seed": seed,
        "stop": tuple(stop or ()),
    }
    if stream:
        _stream(images, prompt, options, settings)
        return
    _run(
        "generate",
        [images],
        options,
        lambda p, pictures: p.generate(
            pictures, prompt, num_beams=beams, **settings, **_limit(options)
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
            f"There is no picture before the prompt {prompt!r}. "
            f'Write: paligemma {command} IMAGE "{prompt}"'
        )
    if os.path.exists(images[0]) and not os.path.exists(images[-1]) and "://" not in images[-1]:
        raise PromptError(
            f"There is no file {images[-1]!r}. If it belongs to the prompt, quote the prompt: "
            f'paligemma {command} {images[0]} "... {images[-1]} {prompt}"'
        )
    return images, prompt


def _limit(options: Options) -> dict[str, Any]:
    """The length of the answer where it was given; each task has its own otherwise."""
    return {} if options.max_new_tokens is None else {"max_new_tokens": options.max_new_tokens}


def _search(any_label: bool, max_objects: int | None) -> dict[str, Any]:
    """What a list may hold, where that was given."""
    given = {"labels": "any"} if any_label else {}
    return given if max_objects is None else {**given, "max_objects": max_objects}


def _each(
    task: str,
    images: Sequence[str],
    options: Options,
    ask_one: Callable[[Predictor, LoadedImage], Result],
    draw: Path | None = None,
) -> None:
    _run(task, [[image] for image in images], options, lambda p, group: ask_one(p, group[0]), draw)


def _run(
    task: str,
    groups: Sequence[Sequence[str]],
    options: Options,
    ask_group: Callable[[Predictor, tuple[LoadedImage, ...]], Result],
    draw: Path | None = None,
) -> None:
    """One question and one result for each group of pictures."""
    _check_pictures([name for group in groups for name in group], options)
    targets = _draw_targets(draw, [group[0] for group in groups])
    predictor = _load(options)
    num_unread = 0
    for group, target in track(list(zip(groups, targets, strict=True)), task):
        try:
            pictures = _read(group, options)
        except ImageError as error:
            print_error(str(error))
            num_unread += 1
            continue
        result = ask_group(predictor, pictures)
        if options.json:
            named = {"images": list(group)} if task == "generate" else {"image": group[0]}
            print_json({**named, "model": options.model, "task": task, "result": result.to_dict()})
        else:
            print_text(f"{group[0]}: {result}" if len(groups) > 1 else str(result))
            if options.show:
                show_picture(_draw(result, pictures[0].rgb))
        if target is not None:
            _save(_draw(result, pictures[0].rgb), target)
            print_note(f"drawn: {target}")
    if num_unread:
        raise typer.Exit(2)


def _stream(images: Sequence[str], prompt: str, options: Options, settings: dict[str, Any]) -> None:
    _check_pictures(images, options)
    predictor = _load(options)
    pictures = _read(images, options)
    for piece in predictor.stream(pictures, prompt, **settings, **_limit(options)):
        stdout().out(visible(piece, keep="\n\t"), end="")
    stdout().out("")


def _load(options: Options) -> Predictor:
    import paligemma
    from paligemma.checkpoints.hub import Source
    from paligemma.fast.weights import weights_name

    predictor = paligemma.load(
        options.model,
        weights=weights_name(options.dtype, options.quantization),
        device=options.device,
        adapter=options.adapter,
        source=Source(revision=options.revision, offline=options.offline, verify=options.verify),
    )
    if predictor.note and not options.json:
        print_note(predictor.note)
    return predictor


def _check_pictures(names: Sequence[str], options: Options) -> None:
    """Finds what is plainly wrong before anything slow begins."""
    for name in names:
        if "://" in name:
            if not options.allow_urls:
                raise ImageError(f"{name!r} is a web address. Add --allow-urls to fetch it.")
        elif not os.path.exists(name):
            raise ImageError(f"There is no file {name!r}. Check the path.")


def _read(names: Sequence[str], options: Options) -> tuple[LoadedImage, ...]:
    from paligemma.processor.image import load_image

    return tuple(load_image(name, allow_urls=options.allow_urls) for name in names)


def _draw(result: Result, picture: Image) -> Image:
    """The picture with boxes and masks; other results leave it as it is."""
    from paligemma.results import Detections, Segments

    return result.draw(picture) if isinstance(result, Detections | Segments) else picture


def _draw_targets(draw: Path | None, images: Sequence[str]) -> list[Path | None]:
    """Where each picture's drawing goes, after a check that it can go there."""
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
                f"Two pictures would both be drawn to {target}. Give --draw a file name instead "
                "of a folder: -1, -2, ... will be added to it."
            )
    if overwritten := {t.resolve() for t in targets} & {Path(image).resolve() for image in images}:
        raise OptionError(
            f"--draw would overwrite the picture {min(overwritten)}. Choose another place."
        )
    return list(targets)


def _check_target(target: Path) -> None:
    if target.suffix.lower() not in _PICTURE_TYPES:
        raise OptionError(
            f"--draw writes {', '.join(_PICTURE_TYPES)}; {target.name!r} ends in none of them."
        )
    try:
        with tempfile.TemporaryFile(dir=target.parent):
            pass
    except OSError as error:
        raise OptionError(
            f"--draw cannot write to the folder {target.parent}: {error.strerror}. "
            "Make it first, or choose another."
        ) from error


def _save(picture: Image, target: Path) -> None:
    """Writes the picture whole or not at all, without the metadata of the one it came from."""
    from PIL import Image as PILImage

    bare = PILImage.frombytes("RGB", picture.size, picture.convert("RGB").tobytes())
    staging = target.with_name(f".{target.stem}.{os.getpid()}{target.suffix}")
    try:
        bare.save(staging)
        staging.replace(target)
    except (OSError, ValueError) as error:  # ValueError: WebP takes 16383 pixels a side
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise OptionError(f"The drawing {target} cannot be written: {reason}.") from error
    finally:
        staging.unlink(missing_ok=True)
