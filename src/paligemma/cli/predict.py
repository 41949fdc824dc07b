"""The commands that ask a model about images.

Everything that can be wrong with the command line, the files and the output path is checked before
the model is loaded. An image that cannot be read is reported, and the rest are processed.
"""

from __future__ import annotations

import glob
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from paligemma.cli.console import (
    print_error,
    print_json,
    print_note,
    print_text,
    show_image,
    stdout,
    track,
    warnings_as_notes,
)
from paligemma.cli.documents import (
    PARTLY_DONE,
    DocumentOptions,
    is_written_as_document,
    read_files,
)
from paligemma.cli.image_arguments import NamedImage, find_images, looks_like_image
from paligemma.cli.interrupt import exit_when_interrupted
from paligemma.cli.model_options import LoadOptions
from paligemma.cli.options import takes
from paligemma.cli.outputs import (
    OutputFormat,
    Writer,
    choose_format,
    finished_lines,
    open_output,
    text_file,
)
from paligemma.errors import (
    ImageError,
    InputError,
    NumericalError,
    OptionError,
    PromptError,
    counted,
)
from paligemma.escaping import visible
from paligemma.options import Option

if TYPE_CHECKING:
    from PIL.Image import Image

    from paligemma.answering import Query
    from paligemma.checkpoints.trained_on import TrainedOn
    from paligemma.evals.calibration import Calibration
    from paligemma.predictor import Predictor
    from paligemma.results import Result

_IMAGE_TYPES = (".png", ".jpg", ".jpeg", ".webp")
_SCORE_NOTE = (
    "A score is the model's own probability that box and label are right. How far to trust it "
    "depends on the model: `paligemma eval DATA --calibrate` measures and corrects it for images "
    "like yours, and --calibration applies that."
)


@dataclass(frozen=True, kw_only=True)
class PredictOptions(LoadOptions):
    """What every command here takes."""

    max_new_tokens: Annotated[int | None, Option(least=1, shown_default="by task")] = None
    """Maximum length of the answer, in tokens."""
    batch_size: Annotated[int | None, Option(least=1, shown_default="by model")] = None
    """Number of images to process at a time."""
    recursive: bool = False
    """Include the images in the folders of a folder."""
    json: bool = False
    """Print one JSON object per image, on one line. An image that cannot be read has an "error"
    instead of a "result"."""
    output: Annotated[Path | None, Option(shown_default="stdout")] = None
    """File to write the results to instead of printing them: .jsonl or .csv, for objects also
    .json (COCO), written at the end, whole or not at all. Or a folder: for texts, with a .txt file
    for each image; for objects, a new one (YOLO). Or - for stdout, with --output-format."""
    output_format: Annotated[OutputFormat | None, Option(shown_default="by the name")] = None
    """Format of --output. txt without --output: a .txt file next to each image."""
    skip_existing: bool = False
    """Leave out images that already have what would be written: a .txt file, a line in the .jsonl
    file, a drawing."""
    show: bool = False
    """Show the image in the terminal."""
    quiet: bool = False
    """Print no notes, only results and errors."""
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
        bool | None, Option(shown_default="only where one is missing or has another name")
    ] = None
    """Ask for each phrase by itself, or (--no-separate) once for all of them together."""

    def settings(self) -> dict[str, Any]:
        """What to tell the task; nothing about what is not given."""
        return {} if self.max_objects is None else {"max_objects": self.max_objects}


@dataclass(frozen=True, kw_only=True)
class DrawOptions:
    """Whether and how to draw the objects."""

    draw: Annotated[Path | None, Option(shown_default="none")] = None
    """Write the image with the objects drawn on it to this .png, .jpg or .webp file. For several
    images: a folder, or a file name to which -1, -2, ... is added."""
    font: Annotated[Path | None, Option(shown_default="one that has the letters")] = None
    """Font file for the labels: .ttf, .otf or .ttc."""


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """How the text is chosen."""

    temperature: Annotated[float, Option(least=0)] = 0.0
    """Sampling temperature. 0: always take the most likely token."""
    top_k: Annotated[int | None, Option(least=1, shown_default="all")] = None
    """Sample from this many of the most likely tokens."""
    top_p: Annotated[float | None, Option(least=0, most=1, shown_default="all")] = None
    """Sample from the most likely tokens that together have this probability."""
    seed: Annotated[str, Option(metavar="INTEGER|random")] = "0"
    """Random seed of sampling. random: another text each time."""
    num_beams: Annotated[int, Option(least=1)] = 1
    """Number of beams. 1: no beam search."""
    stop: Annotated[tuple[str, ...], Option(shown_default="none")] = ()
    """Text at which to stop; may be repeated."""
    stream: bool = False
    """Print the text while it is generated."""

    def settings(self) -> dict[str, Any]:
        """The options of `Predictor.stream`. Raises OptionError for a seed that is no number."""
        if self.seed != "random" and not (self.seed.isascii() and self.seed.isdecimal()):
            raise OptionError(
                f"--seed is {self.seed!r}; it must be a whole number of at least 0, or 'random'."
            )
        return {
            "temperature": self.temperature,
            "top_k": self.top_k,
            "top_p": self.top_p,
            "seed": None if self.seed == "random" else int(self.seed),
            "stop": self.stop,
        }


def _images(metavar: str, text: str) -> Any:
    return typer.Argument(metavar=metavar, show_default=False, help=text)


_SOURCES = "Images: files, folders, quoted patterns ('scans/*.png'), web addresses, or - for stdin"
ImageArguments = Annotated[list[str], _images("IMAGE...", f"{_SOURCES}.")]
DocumentArguments = Annotated[
    list[str], _images("FILE...", f"{_SOURCES.replace('Images', 'Images and PDF files', 1)}.")
]
ImagesAndPrompt = Annotated[list[str], _images("IMAGE... PROMPT", f"{_SOURCES}; then the prompt.")]
ImagesAndQuestion = Annotated[
    list[str], _images("IMAGE... QUESTION", f"{_SOURCES}; then the question.")
]
ImagesAndPhrases = Annotated[
    list[str],
    _images(
        "IMAGE... NAMES",
        f'{_SOURCES}; then the names of what to find, separated by " ; ". A fine-tuned model or '
        "adapter needs no names: it finds what it was trained on.",
    ),
]
Language = Annotated[
    str, typer.Option("--language", help="Language code of the answer, such as de.")
]


@takes(options=PredictOptions)
def caption(images: ImageArguments, *, language: Language = "en", options: PredictOptions) -> None:
    """Caption each image in a few words."""

    def query() -> Query:
        from paligemma.tasks.text import CaptionTask

        return _task_query(CaptionTask(language=language), options)

    _run(_Job(command="caption", images=_images_of(images, options), query=query, options=options))


@takes(options=PredictOptions)
def describe(images: ImageArguments, *, language: Language = "en", options: PredictOptions) -> None:
    """Describe each image in several sentences."""

    def query() -> Query:
        from paligemma.tasks.text import CaptionTask

        return _task_query(CaptionTask(language=language, style="describe"), options)

    _run(_Job(command="describe", images=_images_of(images, options), query=query, options=options))


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
    images, question = _split(words, "ask", options)

    def query() -> Query:
        from paligemma.tasks.text import AnswerTask

        return _task_query(AnswerTask(question=question, language=language or None), options)

    _run(_Job(command="ask", images=images, query=query, options=options))


@takes(documents=DocumentOptions, options=PredictOptions)
def ocr(files: DocumentArguments, *, documents: DocumentOptions, options: PredictOptions) -> None:
    """Read the text in each image, PDF file or TIFF file, line by line in reading order.

    The pages of documents are turned upright, laid straight and read in parts that are large
    enough for their print. An image is read as a whole; --to txt reads it as a page.
    """
    images = _documents_of(files, options)
    are_pages = documents.is_given or is_written_as_document(options)
    if are_pages or any(image.has_pages for image in images):
        read_files(images, documents, options)
        return

    def query() -> Query:
        from paligemma.tasks.text import OcrTask

        return _task_query(OcrTask(), options)

    _run(_Job(command="ocr", images=images, query=query, options=options))


@takes(drawing=DrawOptions, objects=ObjectOptions, options=PredictOptions)
def detect(
    words: ImagesAndPhrases,
    *,
    min_objects: Annotated[
        int,
        typer.Option(
            "--min-objects",
            min=0,
            help="Minimum number of objects, for models that were trained with noise boxes.",
        ),
    ] = 0,
    drawing: DrawOptions,
    objects: ObjectOptions,
    options: PredictOptions,
) -> None:
    """Find objects, such as "dog ; key", and print their boxes."""

    def task(**asked: Any) -> Any:
        from paligemma.tasks.detect import DetectTask

        return DetectTask(min_objects=min_objects, **objects.settings(), **asked)

    _find("detect", words, task, drawing, objects, options)


@takes(drawing=DrawOptions, objects=ObjectOptions, options=PredictOptions)
def segment(
    words: ImagesAndPhrases,
    *,
    drawing: DrawOptions,
    objects: ObjectOptions,
    options: PredictOptions,
) -> None:
    """Find objects, such as "dog ; key", and print their boxes and masks."""

    def task(**asked: Any) -> Any:
        from paligemma.tasks.segment import SegmentTask

        return SegmentTask(**objects.settings(), **asked)

    _find("segment", words, task, drawing, objects, options)


def _find(
    command: str,
    words: Sequence[str],
    make_task: Callable[..., Any],
    drawing: DrawOptions,
    objects: ObjectOptions,
    options: PredictOptions,
) -> None:
    """Answer with the list of objects that `make_task` asks for, given phrases and labels."""
    trained_on = _trained_on(words, options)
    phrases = None
    if trained_on is None:
        images, phrases = _split(words, command, options)
    else:
        images = _images_of(words, options)

    def query() -> Query:
        from paligemma.predictor import asked_for

        asked = asked_for(
            command,
            phrases,
            trained_on,
            labels="any" if objects.any_label else "asked",
            separate=objects.separate,
        )
        task = make_task(phrases=asked.phrases, labels=asked.labels)
        return replace(_task_query(task, options), separate=asked.separate, notes=asked.notes)

    _run(
        _Job(
            command=command,
            images=images,
            query=query,
            options=options,
            drawing=drawing,
            keep=_keeper(objects),
            footnote=_score_note(objects),
        )
    )


def _trained_on(words: Sequence[str], options: PredictOptions) -> TrainedOn | None:
    """What the model or its adapter was trained on, where the words are images alone."""
    last = words[-1]
    if not looks_like_image(last) and not (len(words) == 1 and _exists(last)):
        return None
    from paligemma.checkpoints.trained_on import TrainedOn

    return TrainedOn.read(options.adapter or Path(options.model))


def _keeper(options: ObjectOptions) -> Callable[[Any], Any]:
    if options.calibration is None:
        return lambda objects: objects.filter(options.min_score or 0.0)
    calibration = box_calibration(options.calibration)
    min_score = options.min_score
    if min_score is None:
        min_score = calibration.threshold or 0.0
    return lambda objects: calibration.apply(objects).filter(min_score)


def box_calibration(path: Path) -> Calibration:
    """Raises DataError for a file that is none, OptionError for a calibration of answers."""
    from paligemma.evals.calibration import load_calibration

    calibration = load_calibration(path)
    if calibration.subject != "boxes":
        raise OptionError(
            f"{str(path)!r} is a calibration of {calibration.subject}, and boxes are needed. Make "
            "one with data that have boxes: paligemma eval DATA --calibrate."
        )
    return calibration


def _score_note(options: ObjectOptions) -> str | None:
    return _SCORE_NOTE if options.calibration is None and options.min_score is None else None


@takes(sampling=SamplingOptions, options=PredictOptions)
def generate(words: ImagesAndPrompt, *, sampling: SamplingOptions, options: PredictOptions) -> None:
    """Generate the text that follows a prompt about images.

    All images become part of the one prompt, in the order given.
    """
    if sampling.num_beams > 1 and (sampling.temperature or sampling.stop or sampling.stream):
        raise OptionError(
            "--num-beams does not work with --temperature, --stop or --stream. Leave those out, "
            "or leave out --num-beams."
        )
    if sampling.stream and (options.json or options.output):
        raise OptionError("--stream excludes --json and --output. Choose one.")
    settings = sampling.settings()
    images, prompt = _split(words, "generate", options)
    if error := next((image.error for image in images if image.error is not None), None):
        raise error  # the prompt is about all of them
    if sampling.stream:
        _stream(images, prompt, options, settings)
        return

    def query() -> Query:
        from paligemma.answering import Query
        from paligemma.engine.sampling import Sampling, drawn_seed

        stop, seed = settings.pop("stop"), drawn_seed(settings.pop("seed"))
        return Query(
            prompt=prompt,
            max_new_tokens=options.max_new_tokens,
            sampler=Sampling(seed=seed, **settings),
            stop=stop,
        )

    _run(
        _Job(
            command="generate",
            images=images,
            query=query,
            options=options,
            num_beams=sampling.num_beams,
        )
    )


def _task_query(task: Any, options: PredictOptions) -> Query:
    from paligemma.answering import Query

    return Query(task=task, max_new_tokens=options.max_new_tokens)


@exit_when_interrupted()
def _images_of(words: Sequence[str], options: PredictOptions) -> list[NamedImage]:
    return find_images(words, recursive=options.recursive, allow_urls=options.allow_urls)


@exit_when_interrupted()
def _documents_of(words: Sequence[str], options: PredictOptions) -> list[NamedImage]:
    return find_images(
        words, recursive=options.recursive, allow_urls=options.allow_urls, documents=True
    )


@exit_when_interrupted()
def _split(
    words: Sequence[str], command: str, options: PredictOptions
) -> tuple[list[NamedImage], str]:
    *names, prompt = words
    # unlike Path.is_file, False for a name too long to be one
    is_file = os.path.isfile(prompt)
    if looks_like_image(prompt) or (is_file and not names):
        raise PromptError(
            f"The prompt is missing: the last argument, {prompt}, "
            f"{'is a file' if is_file else 'names an image'}. "
            f'Write the prompt last: paligemma {command} {prompt} "..."'
        )
    if not names:
        raise InputError(
            f"There is no image before the prompt {prompt!r}. "
            f'Write: paligemma {command} IMAGE "{prompt}"'
        )
    last = names[-1]
    if last and _exists(names[0]) and not looks_like_image(last) and not _exists(last):
        raise PromptError(
            f"The file {last!r} does not exist. If it is part of the prompt, quote the prompt: "
            f'paligemma {command} {names[0]} "... {last} {prompt}"'
        )
    return _images_of(names, options), prompt


def _exists(name: str) -> bool:
    path = os.path.expanduser(name)
    return os.path.exists(path) or (glob.has_magic(path) and bool(glob.glob(path)))


@dataclass(frozen=True, kw_only=True)
class _Job:
    """A question about images, and what becomes of the results."""

    command: str
    images: Sequence[NamedImage]
    query: Callable[[], Query]
    """Called before the model is loaded. Raises PromptError and OptionError."""
    options: PredictOptions
    drawing: DrawOptions = DrawOptions()
    keep: Callable[[Any], Any] = lambda result: result
    num_beams: int = 1
    footnote: str | None = None
    """Note after the last result, if any has objects."""
    printed_notes: set[str] = field(default_factory=set)
    """Notes of results that need not be printed again."""

    @property
    def groups(self) -> list[list[NamedImage]]:
        """The images of each question."""
        if self.command == "generate":
            return [list(self.images)]
        return [[image] for image in self.images]

    def named(self, group: Sequence[NamedImage]) -> dict[str, Any]:
        """How the JSON of a result begins."""
        if self.command == "generate":
            return {"images": [image.name for image in group]}
        return {"image": group[0].name}


def _run(job: _Job) -> None:
    """Answer the query for each group of images, and print or write the results in order."""
    options = job.options
    first_images = [group[0] for group in job.groups]
    all_targets = _draw_targets(job.drawing.draw, first_images)
    output_format = choose_format(
        options.output, options.output_format, command=job.command, images=first_images
    )
    check_font(job.drawing.font)
    query = _checked_query(job)
    job, targets, kept_lines = _without_finished(job, all_targets, output_format)
    if not job.images:
        return
    groups = job.groups
    with ExitStack() as stack:
        stack.enter_context(warnings_as_notes(is_quiet=options.quiet))
        predictor = _load(options)
        writer = None
        if output_format is not None:  # after loading, which Ctrl-C ends without tidying up
            output = open_output(options.output, output_format, kept_lines=kept_lines)
            writer = stack.enter_context(output)
        codes = [
            _finish(job, group, target, result, writer)
            for group, target, result in track(
                zip(groups, targets, _answers(job, predictor, query), strict=True),
                len(groups),
                job.command,
            )
        ]
    if writer is not None and not options.quiet:
        print_note(f"written: {options.output or 'a .txt file next to each image'}")
    if any(codes):
        raise typer.Exit(max(codes) if all(codes) else PARTLY_DONE)


def _without_finished(
    job: _Job, targets: Sequence[Path | None], output_format: OutputFormat | None
) -> tuple[_Job, Sequence[Path | None], Sequence[str] | None]:
    """What --skip-existing leaves to do, with the lines of an earlier run that stay in the file.

    Raises OptionError for text files that would be overwritten, and where nothing can be skipped.
    """
    options = job.options
    lines: dict[str, str] = {}
    finished: set[str] = set()
    if output_format == "txt":
        texts = {image.name: text_file(image, options.output) for image in job.images}
        finished = {name for name, path in texts.items() if path.exists()}
        if finished and not options.skip_existing:
            raise OptionError(
                f"{counted(len(finished), 'text file')} of {counted(len(texts), 'image')} already "
                f"exist, such as {texts[min(finished)]}. Add --skip-existing to leave these images "
                "out, choose another folder with --output, or remove the files."
            )
    if not options.skip_existing:
        return job, targets, None
    if job.command == "generate" or output_format not in (None, "txt", "jsonl"):
        raise OptionError(
            "--skip-existing works where each image has its own result, in text files, a .jsonl "
            "file or drawings. Leave it out, or choose such an --output."
        )
    if output_format is None and job.drawing.draw is None:
        raise OptionError("--skip-existing needs --output, --output-format txt or --draw.")
    if output_format == "jsonl" and options.output is not None:
        lines = finished_lines(options.output, command=job.command, model=options.model)
        finished = set(lines)
    todo = [
        (image, target)
        for image, target in zip(job.images, targets, strict=True)
        if (output_format is not None and image.name not in finished)
        or (target is not None and not target.exists())
    ]
    if (num_skipped := len(job.images) - len(todo)) and not options.quiet:
        all_of_them = "" if todo else ", all of them"
        print_note(f"skipped: {counted(num_skipped, 'image')} with results{all_of_them}")
    remaining = replace(job, images=[image for image, _ in todo])
    again = {image.name for image in remaining.images}
    kept = [line for name, line in lines.items() if name not in again]
    return remaining, [target for _, target in todo], kept if output_format == "jsonl" else None


@exit_when_interrupted()
def _checked_query(job: _Job) -> Query:
    """Raises PromptError and OptionError for a query that no model answers."""
    from paligemma.answering import check_control_words

    query = job.query()
    check_control_words(query.text)
    return query


def _answers(job: _Job, predictor: Predictor, query: Query) -> Iterator[Any]:
    from paligemma.answering import ImageQuery

    queries = (
        ImageQuery(images=tuple(image.read for image in group), query=query) for group in job.groups
    )
    has_footnote = False
    for result in predictor.answer(queries, job.options.batch_size, job.num_beams):
        if isinstance(result, ImageError | NumericalError):
            yield result
        elif isinstance(result, Exception):
            raise result
        else:
            result = job.keep(result)
            has_footnote |= job.footnote is not None and len(result) > 0
            yield result
    if has_footnote and job.footnote and not (job.options.quiet or job.options.json):
        print_note(job.footnote)


def _finish(
    job: _Job,
    group: Sequence[NamedImage],
    target: Path | None,
    result: Any,
    writer: Writer | None,
) -> int:
    """Print, write and draw a result or an error; return the exit code that it calls for."""
    options = job.options
    from paligemma.results import Generation

    if isinstance(result, ImageError | NumericalError):
        print_error(str(result))
        line = {**job.named(group), "error": str(result)}
    else:
        named = {**job.named(group), "model": options.model, "task": job.command}
        line = {**named, "result": result.to_dict()} if options.json or writer else named
    if writer is not None:
        writer.add(group[0], line, result)
    elif options.json:
        print_json(line)
    if isinstance(result, ImageError | NumericalError):
        return 2 if isinstance(result, ImageError) else 1
    if writer is None and not options.json:
        _print(job, group, result)
    if isinstance(result, Generation) and not (options.json or options.quiet):
        for note in result.notes:
            if note not in job.printed_notes:
                print_note(note)
                job.printed_notes.add(note)
    if target is not None:
        _save(_draw(job, result, group[0]), target)
        if not options.quiet:
            print_note(f"drawn: {target}")
    for image in group:
        image.release()
    return 0


def _print(job: _Job, group: Sequence[NamedImage], result: Any) -> None:
    if job.options.quiet and result.notes:
        result = replace(result, notes=())
    text = str(result)
    if len(job.images) > 1 and job.command != "generate":
        text = f"{visible(group[0].name)}: {text}"
        if "\n" in text:
            text += "\n"  # sets the tables of several images apart
    print_text(text)
    if job.options.show:
        show_image(_draw(job, result, group[0]))


def _stream(
    images: Sequence[NamedImage], prompt: str, options: PredictOptions, settings: dict[str, Any]
) -> None:
    from paligemma.tasks.parse_prompt import prompt_notes

    predictor = _load(options)
    for note in () if options.quiet else prompt_notes(prompt, predictor.languages):
        print_note(note)
    if options.max_new_tokens is not None:
        settings["max_new_tokens"] = options.max_new_tokens
    for piece in predictor.stream([image.read() for image in images], prompt, **settings):
        stdout().out(visible(piece, keep="\n\t"), end="")
    stdout().out("")


def _load(options: PredictOptions) -> Predictor:
    predictor = options.load()
    if predictor.note and not (options.json or options.quiet):
        print_note(predictor.note)
    return predictor


def _draw(job: _Job, result: Result, image: NamedImage) -> Image:
    from paligemma.results import Detections, Segments

    loaded = image.read()
    if isinstance(result, Detections | Segments):
        return result.draw(loaded, font=job.drawing.font)
    return loaded.rgb


def check_font(font: Path | None) -> None:
    """Raises OptionError for a font that cannot be read."""
    if font is not None:
        from paligemma.fonts import Lettering

        Lettering(12, font)


def _draw_targets(draw: Path | None, images: Sequence[NamedImage]) -> list[Path | None]:
    """The file for the drawing of each image, after a check that it can be written."""
    if draw is None:
        return [None] * len(images)
    if draw.is_dir():
        targets = [draw / f"{image.stem}.png" for image in images]
    elif len(images) == 1:
        targets = [draw]
    else:
        numbers = range(1, len(images) + 1)
        targets = [draw.with_name(f"{draw.stem}-{number}{draw.suffix}") for number in numbers]
    _check_target(targets[0])
    for target, count in Counter(targets).items():
        if count > 1:
            raise OptionError(
                f"Two images would both be drawn to {target}. Give --draw a file name instead "
                "of a folder: -1, -2, ... will be added to it."
            )
    files = {image.source.resolve() for image in images if isinstance(image.source, Path)}
    if overwritten := {target.resolve() for target in targets} & files:
        raise OptionError(
            f"--draw would overwrite the image {min(overwritten)}. Choose another file."
        )
    return list(targets)


def _check_target(target: Path) -> None:
    if target.suffix.lower() not in _IMAGE_TYPES:
        raise OptionError(
            f"--draw writes {', '.join(_IMAGE_TYPES)} files, and the name {target.name!r} ends in "
            f"none of them. If it is meant to be a folder, create it first: mkdir {target.name}"
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

    from paligemma.draw import write_drawing

    bare = PILImage.frombytes("RGB", image.size, image.convert("RGB").tobytes())
    write_drawing(bare, target)
