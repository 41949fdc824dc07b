"""`paligemma video`: what is seen in a film, with the times at which it is seen."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from paligemma.cli.console import (
    check_output_files,
    print_error,
    print_json,
    print_note,
    print_text,
    track,
    warnings_as_notes,
)
from paligemma.cli.documents import PARTLY_DONE
from paligemma.cli.model_options import LoadOptions
from paligemma.cli.options import Command, takes
from paligemma.errors import OptionError
from paligemma.options import Option
from paligemma.writing import write_whole

if TYPE_CHECKING:
    from paligemma.video import Video, VideoSegment


class ClipFirst(TyperGroup):
    """Takes the film before the command, as in `paligemma video clip.mp4 caption`, or after it."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if len(args) > 1 and args[0] not in self.commands and args[1] in self.commands:
            args = [args[1], args[0], *args[2:]]
        elif args and args[0] not in self.commands and not args[0].startswith("-"):
            ctx.fail(
                f"There is no command in {' '.join(args[:2])!r}. Write: paligemma video CLIP "
                "caption, paligemma video CLIP ask QUESTION, or paligemma video CLIP track NAMES."
            )
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=ClipFirst,
    help="Caption a film, ask about it, or track objects in it. "
    "Needs: pip install 'paligemma[video]'",
    subcommand_metavar="CLIP COMMAND [ARGS]...",
    no_args_is_help=True,
    rich_markup_mode=None,
)

ClipArgument = Annotated[
    str,
    typer.Argument(
        metavar="CLIP",
        show_default=False,
        help="Film: an MP4, QuickTime, Matroska, WebM or AVI file.",
    ),
]
_FORMATS: tuple[str, ...] = ("srt", "vtt", "jsonl")


@app.callback()
def _group() -> None: ...


@dataclass(frozen=True, kw_only=True)
class PartOptions:
    """Which part of a film is read."""

    start: Annotated[str, Option(flags=("--from",), metavar="TIME")] = "0"
    """Where to begin, such as 0:10, 1:02:03 or 90s."""
    end: Annotated[str | None, Option(flags=("--to",), metavar="TIME", shown_default="the end")] = (
        None
    )
    """Where to end."""

    def seconds(self) -> tuple[float, float | None]:
        """Beginning and end. Raises OptionError for what is no time."""
        from paligemma.video.times import parse_time

        return parse_time(self.start), None if self.end is None else parse_time(self.end)


@dataclass(frozen=True, kw_only=True)
class WindowOptions(PartOptions):
    """How often a film is looked at."""

    every: Annotated[
        str | None, Option(metavar="TIME", shown_default="one result for the whole film")
    ] = None
    """A result for every so many seconds, such as 5s; equal neighbors are joined."""
    frames: Annotated[int | None, Option(least=1, shown_default="16; 1 with --every")] = None
    """Number of frames to judge by; where they differ, the text with the largest sum of scores
    wins."""
    pick: Literal["middle", "sharpest"] = "middle"
    """Which frame to take of each part: that in the middle, or the sharpest of five."""
    joint: bool = False
    """Show the model all frames in one prompt: for models fine-tuned on videos. With --every, 16 of
    each window."""


@dataclass(frozen=True, kw_only=True)
class VideoOptions(LoadOptions):
    """What `caption` and `ask` take."""

    srt: Annotated[Path | None, Option(shown_default="none")] = None
    """File to write SubRip subtitles to."""
    vtt: Annotated[Path | None, Option(shown_default="none")] = None
    """File to write WebVTT subtitles to."""
    jsonl: Annotated[Path | None, Option(shown_default="none")] = None
    """File to write one JSON object per result to, with scores and the frames that were used."""
    json: bool = False
    """Print one JSON object per result, on one line."""
    max_new_tokens: Annotated[int | None, Option(least=1, shown_default="by task")] = None
    """Maximum length of a text, in tokens."""
    batch_size: Annotated[int | None, Option(least=1, shown_default="by model")] = None
    """Number of frames to process at a time."""
    quiet: bool = False
    """Print no notes, only results and errors."""

    def files(self, clip: str) -> dict[str, Path]:
        """Format -> file to write. Raises OptionError for files that cannot be written."""
        files = {name: path for name in _FORMATS if (path := getattr(self, name)) is not None}
        check_distinct(clip, tuple(files.values()))
        for path in files.values():
            if path.is_dir():
                raise OptionError(f"{path} is a folder. Give the name of a file.")
        check_output_files(*files.values())
        if files and self.json:
            raise OptionError("--json prints the results. Leave it out, or use --jsonl FILE.")
        return files


def check_distinct(clip: str, paths: Sequence[Path]) -> None:
    """Raises OptionError where a file to write is the film, or two of them are one."""
    places = [os.path.realpath(path) for path in paths]
    for path, place in zip(paths, places, strict=True):
        if place == os.path.realpath(os.path.expanduser(clip)):
            raise OptionError(f"{path} is the film itself. Choose another name.")
        if places.count(place) > 1:
            raise OptionError(f"{path} would be written twice. Give each its own file.")


@app.command(cls=Command)
@takes(windows=WindowOptions, options=VideoOptions)
def caption(
    clip: ClipArgument,
    *,
    language: Annotated[
        str, typer.Option("--language", help="Language code of the captions, such as de.")
    ] = "en",
    windows: WindowOptions,
    options: VideoOptions,
) -> None:
    """Caption a film: as a whole, or every few seconds."""

    def ask(video: Video, every_s: float | None, **settings: Any) -> Iterator[VideoSegment]:
        if every_s is None:
            return iter((video.caption(language=language, **_given(settings)),))
        return video.captions(every_s, language=language, merge=False, **settings)

    _run(clip, "caption", ask, windows, options)


@app.command(cls=Command)
@takes(windows=WindowOptions, options=VideoOptions)
def ask(
    clip: ClipArgument,
    question: Annotated[
        str,
        typer.Argument(
            metavar="QUESTION",
            show_default=False,
            help="Question about what is seen, in quotes.",
        ),
    ],
    *,
    language: Annotated[
        str,
        typer.Option(
            "--language",
            help='Language code of question and answer; "" leaves it out of the prompt.',
        ),
    ] = "en",
    windows: WindowOptions,
    options: VideoOptions,
) -> None:
    """Answer a question about a film: as a whole, or every few seconds."""

    def answer(video: Video, every_s: float | None, **settings: Any) -> Iterator[VideoSegment]:
        if every_s is None:
            return iter((video.ask(question, language=code, **_given(settings)),))
        return video.answers(question, every_s, language=code, merge=False, **settings)

    from paligemma.tasks.text import AnswerTask

    code = language or None
    AnswerTask(question=question, language=code)  # is checked before a model is loaded
    _run(clip, "ask", answer, windows, options)


def _given(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if value is not None}


def _run(name: str, task: str, ask: Any, windows: WindowOptions, options: VideoOptions) -> None:
    """Ask about the film, and print or write what is found."""
    from paligemma.video import open_clip
    from paligemma.video.asking import check_part
    from paligemma.video.segment import merged
    from paligemma.video.times import parse_time
    from paligemma.video.windows import windows_of

    files = options.files(name)
    start_s, end_s = windows.seconds()
    every_s = None if windows.every is None else parse_time(windows.every)
    clip = open_clip(name)
    check_part(clip, start_s, end_s)
    if every_s is not None:
        windows_of(0.0, clip.info.duration_s, every_s)  # a wrong one is refused before loading
    if clip.info.num_video_streams > 1 and not options.quiet:
        print_note(f"video: {clip.info.stream}")
    with warnings_as_notes(is_quiet=options.quiet):
        model = options.load()
        if model.note and not (options.json or options.quiet):
            print_note(model.note)
        video = model.video(clip, start_s=start_s, end_s=end_s, batch_size=options.batch_size)
        found = ask(
            video,
            every_s,
            frames=windows.frames,
            pick=windows.pick,
            joint=windows.joint,
            max_new_tokens=options.max_new_tokens,
        )
        number = 1 if every_s is None else len(video.windows(every_s))
        segments = _noted(merged(track(found, number, task)), options)
        if files:
            _write(files, segments)
        else:
            for segment in segments:
                _print(segment, name, task, options, is_only=every_s is None)
    if files and not options.quiet:
        print_note(f"written: {', '.join(map(str, files.values()))}")
    for problem in clip.problems:
        print_error(f"{name}: {problem}")
    if clip.is_damaged:
        raise typer.Exit(PARTLY_DONE)


def _noted(segments: Iterable[VideoSegment], options: VideoOptions) -> Iterator[VideoSegment]:
    """The segments; their notes are printed once."""
    printed: set[str] = set()
    for segment in segments:
        yield segment
        for note in segment.notes:
            if note not in printed and not (options.json or options.quiet):
                print_note(note)
                printed.add(note)


def _print(
    segment: VideoSegment, name: str, task: str, options: VideoOptions, *, is_only: bool
) -> None:
    if options.json:
        print_json(
            {"video": name, "model": options.model, "task": task, "result": segment.to_dict()}
        )
    else:
        print_text(segment.text if is_only else str(segment))


def _write(files: Mapping[str, Path], segments: Iterable[VideoSegment]) -> None:
    """Write each file whole or not at all."""
    from paligemma.video.subtitles import SUBTITLE_WRITERS

    found = list(segments)
    for name, path in files.items():
        text = "".join(SUBTITLE_WRITERS[name](found))  # type: ignore[index]
        write_whole(path, text.encode("utf-8"))
