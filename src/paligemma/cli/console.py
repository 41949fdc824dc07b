"""What the commands print and where: results on stdout, everything else on stderr.

Text that comes from a model, a file or a name is never taken as markup, and its control characters
are shown, not obeyed. Knows no model and no command.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, TypeVar

from paligemma.errors import OptionError

if TYPE_CHECKING:
    from PIL import Image
    from rich.console import Console
    from rich.text import Text

Item = TypeVar("Item")


@cache
def stdout() -> Console:
    from rich.console import Console

    # In a file or a pipe no table row is broken to fit a screen.
    width = None if sys.stdout.isatty() else 160
    return Console(width=width, markup=False, highlight=False, emoji=False)


@cache
def stderr() -> Console:
    from rich.console import Console

    return Console(stderr=True, markup=False, highlight=False, emoji=False)


def visible(text: str, *, keep: str = "") -> str:
    r"""The text with control characters written out, except those in `keep`.

    >>> visible("a\x1b[2Jb\n")
    'a\\x1b[2Jb\\n'
    """
    return "".join(c if c.isprintable() or c in keep else ascii(c)[1:-1] for c in text)


def print_text(text: str) -> None:
    """A result in words, as it is; long lines are left to the terminal."""
    stdout().print(visible(text, keep="\n\t"), soft_wrap=True)


def print_json(value: object) -> None:
    """One JSON value on one line of stdout."""
    line = json.dumps(value, ensure_ascii=False, allow_nan=False)
    try:
        line.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:  # a narrow code page, or a file name that is not UTF-8
        line = json.dumps(value, allow_nan=False)
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def print_table(
    title: str | None,
    headings: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    right: Sequence[str] = (),
) -> None:
    """A table on stdout; columns whose heading is in `right` are flush right."""
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
    """One dim line on stderr, for what is good to know."""
    stderr().print(visible(text), style="dim", soft_wrap=True)


def print_error(text: str) -> None:
    """`error: ...`, one line on stderr."""
    print(f"error: {visible(' '.join(text.split()))}", file=sys.stderr)


def track(items: Sequence[Item], what: str) -> Iterator[Item]:
    """The items, one by one, with a progress bar on stderr if there is someone to watch it."""
    if len(items) < 2 or not stderr().is_terminal:
        yield from items
        return
    from rich.progress import track as rich_track

    yield from rich_track(items, description=what, console=stderr(), transient=True)


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr if there is someone to watch it; tell it how many are done, of how many."""
    from rich.progress import Progress

    with Progress(
        console=stderr(),
        transient=True,
        disable=not stderr().is_terminal,
        redirect_stdout=False,
        redirect_stderr=False,
    ) as progress:
        bar = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(bar, completed=done, total=total)


def show_picture(picture: Image.Image) -> None:
    """The picture in the terminal, two pixels a character."""
    stdout().print(half_blocks(picture, min(stdout().width, 100)))


def half_blocks(picture: Image.Image, num_columns: int) -> Text:
    """The picture as `num_columns` upper half blocks a line: foreground above, background below."""
    from rich.color import Color
    from rich.style import Style
    from rich.text import Text

    width = max(1, min(num_columns, picture.width))
    height = max(2, round(picture.height * width / picture.width / 2) * 2)
    pixels = picture.convert("RGB").resize((width, height)).tobytes()
    colors = [Color.from_rgb(*pixels[at : at + 3]) for at in range(0, len(pixels), 3)]
    text = Text(no_wrap=True)
    for upper in range(0, width * height, 2 * width):
        for at in range(upper, upper + width):
            text.append("▀", Style(color=colors[at], bgcolor=colors[at + width]))
        text.append("\n" if upper + 2 * width < width * height else "")
    return text


def require_scenes(command: str) -> None:
    """Raises OptionError where the scenes of mini's world cannot be drawn.

    They belong to the repository, not to the package, so an installed wheel has none.
    """
    if find_spec("mini") is None or find_spec("mini.scene") is None:
        raise OptionError(
            f"`{command}` draws scenes with the folder mini/ of paligemma's repository, which is "
            "not part of the installed package. Clone the repository, run `pip install -e .` there "
            "and try again."
        )
