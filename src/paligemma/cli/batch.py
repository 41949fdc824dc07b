"""`paligemma batch`: one task about any number of images, in a job that survives interruption."""

from __future__ import annotations

import json
import re
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from paligemma.cli.console import (
    duration,
    print_error,
    print_json,
    print_note,
    print_text,
    progress_line,
)
from paligemma.cli.interrupt import exit_when_interrupted
from paligemma.cli.model_options import LoadOptions
from paligemma.cli.options import takes
from paligemma.errors import OptionError, counted
from paligemma.options import Option

if TYPE_CHECKING:
    from paligemma.batch.job import Job, JobResult
    from paligemma.batch.outputs.write import OutputOptions
    from paligemma.batch.runner import Progress
    from paligemma.batch.status import JobStatus

_LISTED = 20  # errors printed; all of them are in the outputs
_SECONDS_BETWEEN_LINES = 30.0  # of progress, where stderr is no terminal


@dataclass(frozen=True, kw_only=True)
class BatchCommandOptions(LoadOptions):
    """What is asked of which images."""

    out: Annotated[Path | None, Option(shown_default="none")] = None
    """Folder of the job: its journal, and the files of --to. Running the same command again goes on
    where the job stopped."""
    where: Annotated[str | None, Option(shown_default="all")] = None
    """Pattern that the names of images must match, such as '*.jpg'."""
    limit: Annotated[int | None, Option(least=1, shown_default="all")] = None
    """Take only the first images, in the order of their names."""
    shard: Annotated[str | None, Option(metavar="K/N", shown_default="all")] = None
    """Do one part of N, such as 3/16, so that several machines or GPUs share a job and its
    folder."""
    check: Annotated[str, Option(metavar="[stat|content]")] = "stat"
    """What makes an image a changed one, to be done again: the size and time of its file, or its
    content, which takes reading it."""
    retry_failed: bool = False
    """Do images again that failed."""
    allow_urls: bool = False
    """Fetch images from the http and https addresses in lists."""
    language: Annotated[str, Option(flags=("--language",))] = "en"
    """Language code of captions, and of questions and answers; "" leaves it out of questions."""
    schema: Annotated[str | None, Option(flags=("--schema", "-s"), shown_default="none")] = None
    """For extract: prescription, invoice, receipt, id-card, form or a JSON schema (schema.json)."""
    max_objects: Annotated[int | None, Option(least=1, shown_default="100")] = None
    """Maximum number of objects in an image."""
    any_label: bool = False
    """Allow labels of objects that were not requested."""
    separate: Annotated[
        bool | None, Option(shown_default="only where one is missing or has another name")
    ] = None
    """Ask for each kind of object by itself, or (--no-separate) once for all of them together."""
    max_new_tokens: Annotated[int | None, Option(least=1, shown_default="by task")] = None
    """Maximum length of the answer, in tokens."""
    batch_size: Annotated[int | None, Option(least=1, shown_default="by model")] = None
    """Number of images to process at a time."""
    dry_run: bool = False
    """Count the images and measure how long they will take; write nothing."""
    json: bool = False
    """Print how the job ended, or its status, as JSON."""
    quiet: bool = False
    """Print no notes and no progress, only errors."""


@takes(command=BatchCommandOptions, outputs="paligemma.batch.outputs.write:OutputOptions")
def batch(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE... TASK [TEXT]",
            show_default=False,
            help="Folders, quoted patterns, PDF files, lists of paths or addresses (.txt), tables "
            "(.jsonl, .parquet) or webdataset shards (.tar); then caption, describe, ask QUESTION, "
            "ocr, read, detect NAMES, segment NAMES, extract or embed. Rows of tables may have "
            'their own "question" or "names". Or: status FOLDER.',
        ),
    ],
    *,
    command: BatchCommandOptions,
    outputs: OutputOptions,
) -> None:
    """Do one task for any number of images, and go on after an interruption.

    Each finished image is recorded in a journal in the folder of --out, from which the files of
    --to and --sidecar are made. Killed at any point, the job loses the batch it was working on,
    and the same command goes on. Ctrl-C finishes the running batch; a second one stops at once.
    `paligemma batch status FOLDER` shows how far a job is. Exits with code 3 if some images
    failed, and with 2 if all did.
    """
    if len(words) == 2 and words[0] == "status":
        _show_status(Path(words[1]), command)
        return
    shown = _Shown(command)
    with exit_when_interrupted():
        job = _job(words, command, outputs)
        items = job.items(shown.say)
        job.check()
    done, pending, failed = job.split(items)
    if not command.quiet:
        print_note(
            f"{counted(len(items), 'image')}: {len(done):,} done, {len(failed):,} failed, "
            f"{len(pending):,} to do"
        )
    if command.dry_run:
        _estimate(job, job.todo(items), command)
        return
    with (
        _asking_to_stop() as should_stop,
        shown.running(len(items) - len(job.todo(items)), len(items)),
    ):
        result = job.run(items=items, report=shown.report, say=shown.say, should_stop=should_stop)
    _finish(result, command, outputs, was_stopped=should_stop())


def _job(words: Sequence[str], command: BatchCommandOptions, outputs: OutputOptions) -> Job:
    from paligemma.batch.job import Job
    from paligemma.batch.source import SourceOptions
    from paligemma.batch.tasks import BatchTask

    sources, name, text = _split(words)
    if command.out is None:
        raise OptionError("A job needs a folder for its journal and results: add --out FOLDER.")
    task = BatchTask(
        name=name,
        text=text,
        language=command.language,
        max_new_tokens=command.max_new_tokens,
        max_objects=command.max_objects,
        any_label=command.any_label,
        separate=command.separate,
        schema=_schema(command.schema),
    )
    source = SourceOptions(
        where=command.where,
        limit=command.limit,
        shard=_shard(command.shard),
        check=command.check,  # type: ignore[arg-type]  # SourceOptions checks it
        allow_urls=command.allow_urls,
        whole_documents=name == "extract",
    )
    return Job(
        sources=tuple(sources),
        task=task,
        out=command.out,
        model=_model(command),
        source=source,
        outputs=outputs,
        batch_size=command.batch_size,
        retry_failed=command.retry_failed,
    )


def _split(words: Sequence[str]) -> tuple[Sequence[str], Any, str | None]:
    """The sources, the name of the task, and its text.

    >>> _split(["a.jpg", "ask", "how many?"])
    (['a.jpg'], 'ask', 'how many?')
    """
    from paligemma.batch.tasks import TEXT_COLUMNS, TaskName

    names = get_args(TaskName)
    if len(words) > 2 and words[-2] in TEXT_COLUMNS:
        return words[:-2], words[-2], words[-1]
    if len(words) > 1 and words[-1] in names:
        return words[:-1], words[-1], None
    if len(words) > 2 and words[-2] in names:
        raise OptionError(f"{words[-2]} takes no text, but got {words[-1]!r}.")
    raise OptionError(
        f"There is no task at the end of {' '.join(words)!r}. Write: paligemma batch SOURCE TASK "
        f"--out FOLDER, with one of the tasks {', '.join(names)}; after "
        f"{', '.join(TEXT_COLUMNS)} a quoted text follows, unless the rows of a table have one. "
        "Or: paligemma batch status FOLDER."
    )


def _shard(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
    if match is None:
        raise OptionError(f"--shard is {text!r}; expected a part and their number, such as 3/16.")
    return int(match[1]), int(match[2])


def _schema(word: str | None) -> str | dict[str, Any] | None:
    if word is None or (not word.endswith((".json", ".py")) and ".py:" not in word):
        return word
    if not word.endswith(".json"):
        raise OptionError(
            f"--schema {word}: a job takes no Python files. Write the schema to a file with "
            "json.dump(Model.model_json_schema(), file), and give that."
        )
    from paligemma.cli.extract import load_schema

    load_schema(word)  # raises for what is no schema
    schema: dict[str, Any] = json.loads(Path(word).read_bytes())
    return schema


def _model(options: LoadOptions) -> dict[str, Any]:
    """The arguments of the worker's model, without those that are not given."""
    given = {
        "model": options.model,
        "revision": options.revision,
        "device": options.device,
        "dtype": options.dtype,
        "quantization": options.quantization,
        "adapter": None if options.adapter is None else str(options.adapter),
        "resize": options.resize,
        "mask_codec": None if options.mask_codec is None else str(options.mask_codec),
        "offline": options.offline or None,
        "verify": options.verify or None,
        "threads": options.threads,
    }
    return {name: value for name, value in given.items() if value is not None}


@contextmanager
def _asking_to_stop() -> Iterator[Any]:
    """Whether Ctrl-C was pressed. The second time it interrupts."""
    pressed = threading.Event()

    def press(number: int, frame: object) -> None:
        if pressed.is_set():
            raise KeyboardInterrupt
        pressed.set()
        print_note("Finishing the running batch; press Ctrl-C again to stop at once.")

    if threading.current_thread() is not threading.main_thread():
        yield pressed.is_set
        return
    before = signal.signal(signal.SIGINT, press)
    try:
        yield pressed.is_set
    finally:
        signal.signal(signal.SIGINT, before)


class _Shown:
    """Shows progress: a line that changes on a terminal, else a line now and then."""

    def __init__(self, options: BatchCommandOptions) -> None:
        self._is_quiet = options.quiet
        self._update: Any = None
        self._last_line = -_SECONDS_BETWEEN_LINES
        self._last_text = ""

    @contextmanager
    def running(self, done: int, total: int) -> Iterator[None]:
        """While the job runs, of which so many images are done."""
        self._last_text = f"{done:,} of {total:,} images, {total - done:,} left"
        is_over = threading.Event()
        # A batch of documents, after which the next report comes, may take minutes.
        ticking = threading.Thread(target=self._tick, args=(is_over,), daemon=True)
        with progress_line() as update:
            self._update = update
            if update is None and not self._is_quiet:
                ticking.start()
            try:
                yield
            finally:
                is_over.set()
                if ticking.ident is not None:
                    ticking.join()

    def _tick(self, is_over: threading.Event) -> None:
        started = time.monotonic()
        while not is_over.wait(_SECONDS_BETWEEN_LINES):
            if time.monotonic() - self._last_line >= _SECONDS_BETWEEN_LINES:
                print_note(f"{self._last_text}; running for {duration(time.monotonic() - started)}")

    def report(self, progress: Progress) -> None:
        if self._is_quiet:
            return
        self._last_text = text = _progress_text(progress)
        if self._update is not None:
            self._update(text)
        elif time.monotonic() - self._last_line >= _SECONDS_BETWEEN_LINES:
            print_note(text)
            self._last_line = time.monotonic()

    def say(self, text: str) -> None:
        if not self._is_quiet:
            print_note(text)


def _progress_text(progress: Progress) -> str:
    failed = f" ({progress.failed:,} failed)" if progress.failed else ""
    left = progress.seconds_left
    return (
        f"{progress.finished:,} of {progress.total:,} images{failed}, "
        f"{progress.per_second:.3g} images/s" + ("" if not left else f", {duration(left)} left")
    )


def _estimate(job: Job, todo: Sequence[Any], command: BatchCommandOptions) -> None:
    """Time a batch, and print what all of them would take."""
    seconds = job.measure(todo) if todo else 0.0
    if command.json:
        print_json(
            {"to_do": len(todo), "seconds_per_image": seconds, "seconds": seconds * len(todo)}
        )
        return
    rate = f" at {1 / seconds:.3g} images/s" if seconds else ""
    print_text(f"about {duration(seconds * len(todo))} for {counted(len(todo), 'image')}{rate}")


def _finish(
    result: JobResult, command: BatchCommandOptions, outputs: OutputOptions, *, was_stopped: bool
) -> None:
    for key, error in result.failed[:_LISTED]:
        print_error(f"{key}: {error}")
    if len(result.failed) > _LISTED:
        print_error(
            f"and {len(result.failed) - _LISTED:,} more, which `paligemma batch status "
            f"{command.out} --json` lists"
        )
    if command.json:
        print_json(
            {
                "done": result.done,
                "failed": dict(result.failed),
                "left": result.left,
                "files": [str(path) for path in result.files],
            }
        )
    if not command.quiet:
        written = ", ".join(_written(result, outputs))
        print_note(
            f"{result.done:,} done, {len(result.failed):,} failed, {result.left:,} left"
            + (f"; written: {written}" if written else "")
        )
    if was_stopped and result.left:
        print_note("Stopped. The same command goes on.")
        raise typer.Exit(130)
    if result.failed:
        raise typer.Exit(3 if result.done or result.left else 2)


def _written(result: JobResult, outputs: OutputOptions) -> Iterator[str]:
    yield from map(str, result.files)
    root = outputs.sidecar_root
    place = "next to the images" if root is None else f"in {root}"
    for kind in dict.fromkeys(outputs.sidecar):
        yield f"{counted(result.done, f'.{kind} file')} {place}"


def _show_status(folder: Path, command: BatchCommandOptions) -> None:
    from paligemma.batch.status import read_status

    status = read_status(folder)
    if command.json:
        print_json(
            {
                "done": status.done,
                "failed": dict(status.failed),
                "left": status.left,
                "total": status.total,
                "running": status.running,
                "images_per_second": status.per_second,
                "seconds_left": status.seconds_left,
                "parts": [
                    {"name": name, "finished": finished, "total": total}
                    for name, finished, total in status.parts
                ],
            }
        )
        return
    for line in _status_lines(status):
        print_text(line)


def _status_lines(status: JobStatus) -> Iterator[str]:
    yield (
        f"{counted(status.total, 'image')}: {status.done:,} done, {len(status.failed):,} failed, "
        f"{status.left:,} left"
    )
    if status.per_second is not None:
        left = status.seconds_left
        until = f", {duration(left)} left" if left else ""
        yield f"{status.per_second:.3g} images/s in each process{until}"
    if status.running:
        yield f"{counted(status.running, 'process is', 'processes are')} working on it"
    elif status.left:
        yield "no process is working on it; the same command goes on"
    for name, finished, total in status.parts:
        yield f"part {name}: {finished:,} of {total:,}"
    for key, error in status.failed[:_LISTED]:
        yield f"failed: {key}: {error}"
    if len(status.failed) > _LISTED:
        yield f"and {len(status.failed) - _LISTED:,} more (--json lists all)"
