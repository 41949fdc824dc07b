"""Text on images in any alphabet: with the font of this folder, then with the system's fonts.

The font of this folder, DejaVu Sans, has Latin, Greek, Cyrillic, Hebrew and Arabic letters. For
others, such as Chinese, Hindi or emoji, the first font of the system that has them is used.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import re
import sys
import unicodedata
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, features

from paligemma.errors import OptionError

_SHIPPED = str(Path(__file__).with_name("DejaVuSans.ttf"))
_NO_LETTER = "\U0010ffff"
_BITMAP_SIZES = (109, 136, 128, 160, 96, 64)  # Noto Color Emoji has 109 or 136 only, Apple's 160
_PREFERRED = re.compile(
    r"NotoSans(CJK|SC|JP|KR|Devanagari|Bengali|Telugu|Thai|Tamil|Gujarati|-)|NotoColorEmoji"
    r"|PingFang|Hiragino|AppleSDGothic|Kohinoor|Thonburi|Apple Color Emoji|Arial Unicode"
    r"|msyh|YuGoth|meiryo|malgun|Nirmala|LeelawUI|seguiemj|wqy|DroidSansFallback|Lohit"
)
# A font whose every letter is a box, and faces that read badly in small letters.
_AVOIDED = re.compile(r"LastResort|AdobeBlank")
_STYLED = re.compile(r"bold|italic|oblique|black|thin|light|heavy|condensed", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class _Run:
    text: str
    path: str
    is_rtl: bool


class Lettering:
    """Measures and draws text of one size. `font` is a font file to use before all others."""

    def __init__(self, size: float, font: str | Path | None = None) -> None:
        self._size = size
        self._first: list[str] = []
        if font is not None:
            path = os.path.expanduser(font)
            if _usable_size(path) is None:
                raise OptionError(
                    f"The font {path!r} cannot be read. Pass the path of a .ttf, .otf or .ttc file."
                )
            self._first.append(path)
        self._first.append(_SHIPPED)
        fonts = [self._scaled(path)[0] for path in self._first]
        self.ascent = max(each.getmetrics()[0] for each in fonts)
        self.descent = max(each.getmetrics()[1] for each in fonts)

    def length(self, text: str) -> float:
        """Width in pixels."""
        total = 0.0
        for run in self._runs(text):
            scaled, factor = self._scaled(run.path)
            total += scaled.getlength(run.text) * factor
        return total

    def draw(
        self, canvas: Image.Image, origin: tuple[float, float], text: str, fill: tuple[int, ...]
    ) -> None:
        """Draw the text with the left end of its baseline at `origin`."""
        x, y = origin
        runs = list(self._runs(text))
        if runs and runs[0].is_rtl:
            runs.reverse()
        for run in runs:
            scaled, factor = self._scaled(run.path)
            if factor == 1.0:
                ImageDraw.Draw(canvas).text(
                    (x, y), run.text, fill=fill, font=scaled, anchor="ls", embedded_color=True
                )
            else:
                _draw_bitmaps(canvas, (x, y), run.text, scaled, factor)
            x += scaled.getlength(run.text) * factor

    def warn_about(self, texts: Iterable[str]) -> None:
        """Warn once about letters that no font has, and of scripts that are not shaped here."""
        letters = dict.fromkeys("".join(texts))
        missing = [c for c in letters if not _is_invisible(c) and self._path_of(c) is None]
        if missing:
            warnings.warn(
                f"No font has the letters {''.join(missing[:40])!r}, which are drawn as boxes. "
                f"Install {_font_with(missing)}, or choose one with them: font=PATH, --font PATH.",
                stacklevel=4,
            )
        if not _shapes_text() and any(_needs_shaping(c) for c in letters):
            warnings.warn(
                "Arabic, Hebrew and Indic letters are drawn one by one from left to right, because "
                "this Pillow has no Raqm with FriBiDi. Install Pillow from PyPI on Linux, or "
                "the library fribidi.",
                stacklevel=4,
            )

    def _runs(self, text: str) -> Iterator[_Run]:
        """Split the text into parts of one font each."""
        path, start = None, 0
        is_rtl = any(unicodedata.bidirectional(c) in ("R", "AL") for c in _first_strong(text))
        for index, letter in enumerate(text):
            is_after_emoji = path is not None and _usable_size(path) in _BITMAP_SIZES
            if letter.isspace() and is_after_emoji:
                needed = _SHIPPED  # the blank of an emoji font is as wide as an emoji
            elif _is_invisible(letter) or (
                path is not None and not letter.isascii() and _has(path, letter)
            ):
                continue
            else:
                needed = self._path_of(letter) or path or _SHIPPED
            if path is not None and needed != path:
                yield _Run(text=text[start:index], path=path, is_rtl=is_rtl)
                start = index
            path = needed
        if text:
            yield _Run(text=text[start:], path=path or _SHIPPED, is_rtl=is_rtl)

    def _path_of(self, letter: str) -> str | None:
        own = next((path for path in self._first if _has(path, letter)), None)
        return own or _system_font_with(letter)

    def _scaled(self, path: str) -> tuple[ImageFont.FreeTypeFont, float]:
        """The font and the factor by which to scale its bitmaps, 1.0 for outlines."""
        try:
            return _open(path, self._size), 1.0
        except OSError:
            size = _usable_size(path) or 20
            return _open(path, size), self._size / size


def _draw_bitmaps(
    canvas: Image.Image,
    origin: tuple[float, float],
    text: str,
    font: ImageFont.FreeTypeFont,
    factor: float,
) -> None:
    """Draw the pictures of an emoji font, which come in one size only."""
    ascent, descent = font.getmetrics()
    width, height = math.ceil(font.getlength(text)), ascent + descent
    drawn = Image.new("RGBA", (max(1, width), max(1, height)))
    ImageDraw.Draw(drawn).text((0, ascent), text, font=font, anchor="ls", embedded_color=True)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    small = drawn.resize(size, Image.Resampling.BOX)
    canvas.paste(small, (round(origin[0]), round(origin[1] - ascent * factor)), mask=small)


@functools.lru_cache(maxsize=64)
def _open(path: str, size: float, engine: ImageFont.Layout | None = None) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size, layout_engine=engine)


@functools.lru_cache(maxsize=1024)
def _usable_size(path: str) -> int | None:
    """20 for a font of outlines, the size of an emoji font's bitmaps, None for other files."""
    for size in (20, *_BITMAP_SIZES):
        with contextlib.suppress(OSError):
            return int(ImageFont.truetype(path, size).size)
    return None


@functools.lru_cache(maxsize=4096)
def _has(path: str, letter: str) -> bool:
    """Whether the letter looks different from the font's glyph for missing letters."""
    return _usable_size(path) is not None and _glyph(path, letter) != _glyph(path, _NO_LETTER)


@functools.lru_cache(maxsize=1024)
def _glyph(path: str, letter: str) -> tuple[float, bytes]:
    size = _usable_size(path) or 20
    # Without shaping, which would put a dotted circle under a vowel sign that stands alone.
    font = _open(path, size, ImageFont.Layout.BASIC)
    drawn = Image.new("RGBA", (2 * size, 2 * size))
    origin = (size // 2, size // 2)
    ImageDraw.Draw(drawn).text(origin, letter, font=font, embedded_color=True)
    return font.getlength(letter), drawn.tobytes()


@functools.lru_cache(maxsize=1024)
def _system_font_with(letter: str) -> str | None:
    return next((path for path in _system_fonts() if _has(path, letter)), None)


@functools.cache
def _system_fonts() -> tuple[str, ...]:
    """All font files of the system: those with many letters first, bold and italic ones last."""
    files = {
        os.path.join(folder, name)
        for root in _font_folders()
        for folder, _, names in os.walk(root)
        for name in names
        if name.lower().endswith((".ttf", ".otf", ".ttc")) and not _AVOIDED.search(name)
    }

    def rank(path: str) -> tuple[bool, bool, str]:
        name = os.path.basename(path)
        return bool(_STYLED.search(name)), not _PREFERRED.search(name), path

    return tuple(sorted(files, key=rank))


def _font_folders() -> list[str]:
    home = Path.home()
    if sys.platform == "win32":
        windows = os.environ.get("WINDIR", r"C:\Windows")
        return [
            os.path.join(windows, "Fonts"),
            str(home / "AppData/Local/Microsoft/Windows/Fonts"),
        ]
    if sys.platform == "darwin":
        return [str(home / "Library/Fonts"), "/Library/Fonts", "/System/Library/Fonts"]
    data_home = os.environ.get("XDG_DATA_HOME") or str(home / ".local/share")
    return [
        os.path.join(data_home, "fonts"),
        str(home / ".fonts"),
        "/usr/local/share/fonts",
        "/usr/share/fonts",
    ]


def _is_invisible(letter: str) -> bool:
    """Blanks, joiners, variation selectors: what a font need not have."""
    return (
        letter.isspace()
        or unicodedata.category(letter) in ("Cc", "Cf")
        or "\ufe00" <= letter <= "\ufe0f"
    )


def _first_strong(text: str) -> str:
    return next((c for c in text if unicodedata.bidirectional(c) in ("L", "R", "AL")), "")


def _needs_shaping(letter: str) -> bool:
    """Letters from right to left, and those of India, Thailand and their neighbors."""
    return unicodedata.bidirectional(letter) in ("R", "AL") or "\u0900" <= letter <= "\u109f"


@functools.cache
def _shapes_text() -> bool:
    return bool(features.check("raqm")) and bool(features.check("fribidi"))


def _font_with(letters: Iterable[str]) -> str:
    """The fonts to install, with their packages for Debian and Ubuntu."""
    names = {
        "Noto Sans CJK (package fonts-noto-cjk)"
        if unicodedata.name(c, "").startswith(("CJK", "HIRAGANA", "KATAKANA", "HANGUL"))
        else "Noto Color Emoji (package fonts-noto-color-emoji)"
        if unicodedata.category(c) in ("So", "Sk")
        else "Noto Sans (package fonts-noto-core)"
        for c in letters
    }
    return " and ".join(sorted(names))
