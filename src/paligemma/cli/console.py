"""What the commands print and where: results on stdout, everything else on stderr.

Text that comes from a model, a file or a name is never treated as markup, and characters that
could change what a terminal shows elsewhere are escaped. All other characters are printed as they
are: Persian joins words with U+200C, French sets U+00A0 before "!", Japanese spaces are U+3000.
"""

from __future__ import annotations

import errno
import io
import json
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from paligemma.errors import OptionError
from paligemma.escaping import visible
from paligemma.writing import is_stream, write_whole

if TYPE_CHECKING:
    from PIL import Image
    from rich.console import Console
    from rich.progress import Progress, ProgressColumn
    from rich.text import Text

Item = TypeVar("Item")


@cache
def stdout() -> Console:
    from rich.console import Console

    # Written to a file or a pipe, table rows are not wrapped.
    width = None if sys.stdout.isatty() else 160
    return Console(width=width, markup=False, highlight=False, emoji=False)


@cache
def stderr() -> Console:
    from rich.console import Console

    return Console(stderr=True, markup=False, highlight=False, emoji=False)


def prepare_streams() -> None:
    """Make stdout take every character. Raises OSError if stdout is closed."""
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        raise OSError(errno.EBADF, "stdout is closed; redirect it to a file or to /dev/null")
    escape_what_cannot_be_encoded()


def discard_stdout() -> None:
    """Drop what is still buffered if stdout cannot be written to, so that the exit is quiet."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def escape_what_cannot_be_encoded() -> None:
    r"""Write `\u9752` for a character that stdout's encoding lacks, instead of failing."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def print_text(text: str) -> None:
    """Print a result as text; the terminal wraps long lines."""
    stdout().print(visible(text, keep="\n\t"), soft_wrap=True)


def print_json(value: object) -> None:
    """Print a JSON value on one line of stdout."""
    line = json.dumps(value, ensure_ascii=False, allow_nan=False)
    try:
        line.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:  # a small code page, or a file name that is not UTF-8
        line = json.dumps(value, allow_nan=False)
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def check_output_files(*paths: Path | None) -> None:
    """Raises OptionError for a file in a folder that does not exist or that nothing can be written
    to, before any work is done."""
    for path in paths:
        if path is None or is_stream(path):
            continue
        if not path.absolute().parent.is_dir():
            raise OptionError(f"The folder {path.parent} for {path.name} does not exist.")
        if not os.access(path.absolute().parent, os.W_OK):
            raise OptionError(f"The folder {path.parent} for {path.name} is not writable.")


def write_json(path: Path, value: object) -> None:
    """Write one JSON document to a file, over several lines."""
    write_whole(path, (json.dumps(value, indent=1) + "\n").encode())


def print_table(
    title: str | None,
    headings: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    right: Sequence[str] = (),
) -> None:
    """Print a table on stdout; columns whose heading is in `right` are aligned right."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in headings:
        table.add_column(heading, justify="right" if heading in right else "left")
    for row in rows:
        table.add_row(*(Text(visible(cell)) for cell in row))
    stdout().print(table)


def print_note(text: str) -> None:
    """Print a dim line on stderr, for information."""
    stderr().print(visible(text), style="dim", soft_wrap=True)


@contextmanager
def warnings_as_notes(*, is_quiet: bool = False) -> Iterator[None]:
    """Print what is warned of without the line of code, each warning once; or nothing."""

    def show(message: Warning | str, *where: object) -> None:
        if not is_quiet:
            print_note(str(message))

    with warnings.catch_warnings():
        warnings.simplefilter("once", UserWarning)
        warnings.showwarning = show  # type: ignore[assignment]
        yield


def print_error(text: str) -> None:
    """Print `error: ...` as one line on stderr."""
    line = re.sub(r"\s*[\r\n]+\s*", " ", text.strip())
    print(f"error: {visible(line)}", file=sys.stderr)


def track(items: Iterable[Item], total: int, description: str) -> Iterator[Item]:
    """The items, one by one, with a progress bar if stderr is a terminal."""
    if total < 2 or not stderr().is_terminal:
        yield from items
        return
    from rich.progress import track as rich_track

    yield from rich_track(
        items, description=description, total=total, console=stderr(), transient=True
    )


def _progress(*columns: ProgressColumn) -> Progress:
    """Progress bars on stderr, which disappear at the end; hidden unless it is a terminal."""
    from rich.progress import Progress

    return Progress(
        *columns,
        console=stderr(),
        transient=True,
        disable=not stderr().is_terminal,
        redirect_stdout=False,
        redirect_stderr=False,
    )


@contextmanager
def progress_bar(description: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar if stderr is a terminal; call it with (number done, total)."""
    with _progress() as progress:
        bar = progress.add_task(description, total=None)
        yield lambda done, total: progress.update(bar, completed=done, total=total)


@contextmanager
def progress_line() -> Iterator[Callable[[str], object] | None]:
    """A line on stderr that changes; call it with the text. None unless it is a terminal."""
    from rich.progress import SpinnerColumn, TextColumn

    if not stderr().is_terminal:
        yield None
        return
    with _progress(SpinnerColumn(), TextColumn("{task.description}", markup=False)) as progress:
        line = progress.add_task("loading the model", total=None)
        yield lambda text: progress.update(line, description=visible(text))


def duration(seconds: float) -> str:
    """A time in words.

    >>> duration(5), duration(50), duration(3000), duration(10_000), duration(400_000)
    ('5 s', '50 s', '50 min', '2.8 h', '4.6 days')
    """
    if seconds < 120:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86_400:.1f} days"


@contextmanager
def byte_progress(description: str, total: int) -> Iterator[Callable[[int], object]]:
    """A progress bar with a rate if stderr is a terminal; call it with the bytes of each step."""
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    with _progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    ) as progress:
        bar = progress.add_task(description, total=total)
        yield lambda num_bytes: progress.advance(bar, num_bytes)


def show_image(image: Image.Image) -> None:
    """Print the image in the terminal, two pixels per character."""
    stdout().print(half_blocks(image, min(stdout().width, 100)))


def half_blocks(image: Image.Image, num_columns: int) -> Text:
    """The image as `num_columns` upper half blocks per line.

    The color of a block is its upper pixel, the background its lower one.
    """
    from rich.color import Color
    from rich.style import Style
    from rich.text import Text

    width = max(1, min(num_columns, image.width))
    height = max(2, round(image.height * width / image.width / 2) * 2)
    pixels = image.convert("RGB").resize((width, height)).tobytes()
    colors = [Color.from_rgb(*pixels[i : i + 3]) for i in range(0, len(pixels), 3)]
    text = Text(no_wrap=True)
    for upper in range(0, width * height, 2 * width):
        for i in range(upper, upper + width):
            text.append("▀", Style(color=colors[i], bgcolor=colors[i + width]))
        text.append("\n" if upper + 2 * width < width * height else "")
    return text
