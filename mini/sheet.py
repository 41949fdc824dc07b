"""Sheets of mini's world: a small table, a bar chart or a form on plain paper, and what it says.

Like a scene a sheet is a value, drawn from a generator seeded by (split, seed, index), and can be
drawn at any resolution. This file knows how sheets are laid out and drawn, not how one talks about
them.
"""

from __future__ import annotations

from dataclasses import dataclass
from string import ascii_uppercase
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from mini import assets
from mini.scene import COLORS, RGB, Box, SceneObject, SceneWord, Split, draw_words
from paligemma.errors import OptionError

SheetKind = Literal["table", "chart", "form"]
SHEET_KINDS: tuple[SheetKind, ...] = get_args(SheetKind)
MAX_VALUE = 9
"""The highest value of a bar; values start at 1."""

_SPLIT_IDS: dict[str, int] = {"train": 0, "test": 1}
_STREAM = 1  # keeps the random numbers of sheets apart from those of scenes
_MARGIN = 0.03
_MIN_CAP, _MAX_CAP = 0.075, 0.11
_LINE = 0.006  # the width of a ruled line
_PAPERS: tuple[RGB, ...] = ((255, 255, 255), (248, 246, 236), (236, 242, 250), (30, 32, 40))
_DARK_INKS: tuple[RGB, ...] = ((0, 0, 0), (20, 40, 130), (92, 50, 16), (16, 84, 40))
_LIGHT_INKS: tuple[RGB, ...] = ((255, 255, 255), (255, 226, 60), (150, 226, 255))
_LIGHT_BARS = ("orange", "yellow", "pink", "white", "gray", "green", "red", "blue")
_FORMS: dict[str, dict[str, bool]] = {
    "CLINIC": dict(NAME=True, AGE=False, DRUG=True, DOSE=False, TIMES=False, DAYS=False),
    "SHOP": dict(DATE=False, ITEM=True, PRICE=False, TAX=False, TOTAL=False, CASH=False),
    "BILL": dict(NO=False, DATE=False, NAME=True, ITEM=True, TAX=False, TOTAL=False),
}
"""The heading of a prescription, a receipt and an invoice -> each field, and whether it holds a
word rather than a number."""
_DARK_BARS = ("red", "orange", "green", "blue", "purple", "pink", "brown", "gray", "black")


@dataclass(frozen=True, kw_only=True)
class Patch:
    """A rectangle of one color; box_xyxy in units of the image's side."""

    color: RGB
    box_xyxy: Box


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """A table (`rows` are its cells), a chart (`rows` are label and value of each bar) or a form
    (`rows` are its heading, and label and value of each field)."""

    kind: SheetKind
    paper: RGB
    patches: tuple[Patch, ...]
    """Lines and bars, in the order in which they are painted."""
    words: tuple[SceneWord, ...]
    rows: tuple[tuple[str, ...], ...]

    @property
    def objects(self) -> tuple[SceneObject, ...]:
        """None: a sheet shows no things, only print."""
        return ()

    @property
    def bars(self) -> list[tuple[str, int]]:
        """Label and value of each bar of a chart, from left to right."""
        return [(label, int(value)) for label, value in self.rows]

    def draw(self, resolution: int) -> NDArray[np.uint8]:
        """The image: uint8[resolution, resolution, 3], RGB."""
        image = np.full((resolution, resolution, 3), self.paper, np.uint8)
        for patch in self.patches:
            x0, y0, x1, y1 = (round(edge * resolution) for edge in patch.box_xyxy)
            image[y0 : max(y1, y0 + 1), x0 : max(x1, x0 + 1)] = patch.color
        draw_words(image, self.words)
        return image


def make_sheet(split: Split, seed: int, index: int, kind: SheetKind | None = None) -> Sheet:
    """Sheet number `index` of the stream (split, seed), of a kind drawn if none is asked for.

    Raises OptionError for another split, and for a negative seed or index.
    """
    if split not in _SPLIT_IDS or seed < 0 or index < 0:
        raise OptionError(
            f"There is no sheet for split {split!r}, seed {seed}, index {index}. "
            'The split is "train" or "test"; seed and index are not negative.'
        )
    rng = np.random.default_rng([_SPLIT_IDS[split], seed, index, _STREAM])
    if kind is None:
        kind = SHEET_KINDS[int(rng.integers(len(SHEET_KINDS)))]
    paper = _PAPERS[int(rng.integers(len(_PAPERS)))]
    is_dark = sum(paper) < 384
    inks = _LIGHT_INKS if is_dark else _DARK_INKS
    ink = inks[int(rng.integers(len(inks)))]
    face = int(rng.integers(assets.num_digit_faces()))
    make = {"table": _make_table, "chart": _make_chart, "form": _make_form}[kind]
    return make(rng, paper, ink, face, is_dark)


def training_sheets(seed: int, step: int, number: int) -> list[Sheet]:
    """The sheets of one step of training."""
    return [make_sheet("train", seed, step * number + place) for place in range(number)]


def _between(rng: np.random.Generator, low: float, high: float) -> float:
    return low + (high - low) * float(rng.random())


def _mixed(paper: RGB, ink: RGB, share: float) -> RGB:
    red, green, blue = (round(p + (i - p) * share) for p, i in zip(paper, ink, strict=True))
    return red, green, blue


def _print(text: str, face: int, ink: RGB, cap: float, center: tuple[float, float]) -> SceneWord:
    """A word of cap height `cap` around a center (x, y)."""
    width, height = (side * cap for side in assets.word_size_wh(text, face))
    left, top = center[0] - width / 2, center[1] - height / 2
    return SceneWord(
        text=text, face=face, color=ink, box_xyxy=(left, top, left + width, top + height)
    )


def _cells(rng: np.random.Generator) -> list[list[str]]:
    """Two to four rows of a word and one or two numbers; no word twice."""
    num_numbers = 1 + int(rng.random() < 0.5)
    short = [word for word in assets.words() if len(word) <= 6 - num_numbers]
    names = rng.choice(len(short), size=2 + int(rng.integers(3)), replace=False)
    return [
        [
            short[name],
            *(str(int(rng.integers(10 ** rng.integers(1, 3)))) for _ in range(num_numbers)),
        ]
        for name in names
    ]


def _make_table(rng: np.random.Generator, paper: RGB, ink: RGB, face: int, is_dark: bool) -> Sheet:
    rows = _cells(rng)
    widths = [
        max(assets.word_size_wh(cell, face)[0] for cell in column)
        for column in zip(*rows, strict=True)
    ]
    gap = _between(rng, 0.7, 1.2)  # around a column's text, in cap heights, both sides together
    pitch = _between(rng, 1.7, 2.4)  # from row to row, in cap heights
    room = 1 - 2 * _MARGIN
    cap = _between(rng, _MIN_CAP, _MAX_CAP)
    cap = min(cap, room / (sum(widths) + gap * len(widths)), room / (pitch * len(rows)))
    column_widths = [(width + gap) * cap for width in widths]
    left = _between(rng, _MARGIN, 1 - _MARGIN - sum(column_widths))
    top = _between(rng, _MARGIN, 1 - _MARGIN - pitch * cap * len(rows))
    edges_x = [left + sum(column_widths[:i]) for i in range(len(widths) + 1)]
    edges_y = [top + pitch * cap * i for i in range(len(rows) + 1)]
    line = _mixed(paper, ink, _between(rng, 0.3, 1.0))
    ruling = rng.choice(["grid", "rows", "stripes"])
    patches = []
    if ruling == "stripes":
        stripe = _mixed(paper, ink, 0.12)
        patches += [
            Patch(color=stripe, box_xyxy=(left, y0, edges_x[-1], y1))
            for y0, y1 in zip(edges_y[::2], edges_y[1::2], strict=False)
        ]
    else:
        patches += [
            Patch(color=line, box_xyxy=(left, y, edges_x[-1] + _LINE, y + _LINE)) for y in edges_y
        ]
    if ruling == "grid":
        patches += [Patch(color=line, box_xyxy=(x, top, x + _LINE, edges_y[-1])) for x in edges_x]
    words = tuple(
        _print(
            cell,
            face,
            ink,
            cap,
            ((edges_x[j] + edges_x[j + 1]) / 2, (edges_y[i] + edges_y[i + 1]) / 2),
        )
        for i, row in enumerate(rows)
        for j, cell in enumerate(row)
    )
    return Sheet(
        kind="table",
        paper=paper,
        patches=tuple(patches),
        words=words,
        rows=tuple(tuple(row) for row in rows),
    )


def _make_chart(rng: np.random.Generator, paper: RGB, ink: RGB, face: int, is_dark: bool) -> Sheet:
    """Bars over labels, a line at every value, and numbers at 0, 3, 6 and 9."""
    num_bars = 2 + int(rng.integers(3))
    if num_bars < 4 and rng.random() < 0.5:
        names = [word for word in assets.words() if len(word) == 3]
    else:
        names = list(ascii_uppercase)
    labels = [names[i] for i in rng.choice(len(names), size=num_bars, replace=False)]
    values = [1 + int(rng.integers(MAX_VALUE)) for _ in labels]

    left, right = _between(rng, 0.13, 0.16), _between(rng, 0.90, 0.97)
    top, bottom = _between(rng, 0.08, 0.18), _between(rng, 0.76, 0.82)
    unit = (bottom - top) / MAX_VALUE
    faint, axis = _mixed(paper, ink, 0.22), _mixed(paper, ink, 0.8)
    lines = [bottom - unit * value for value in range(MAX_VALUE + 1)]
    patches = [
        Patch(color=axis if i % 3 == 0 else faint, box_xyxy=(left, y, right, y + _LINE))
        for i, y in enumerate(lines)
    ]
    tick_cap = _between(rng, 0.055, 0.065)
    words = [
        _print(str(value), face, ink, tick_cap, (left - 0.055, lines[value]))
        for value in range(0, MAX_VALUE + 1, 3)
    ]
    slot = (right - left) / num_bars
    thickness = slot * _between(rng, 0.45, 0.75)
    widest = max(assets.word_size_wh(label, face)[0] for label in labels)
    cap = min(_between(rng, _MIN_CAP, 0.10), 0.94 * slot / widest)
    bar_names = _LIGHT_BARS if is_dark else _DARK_BARS
    colors = [COLORS[bar_names[int(rng.integers(len(bar_names)))]] for _ in labels]
    if rng.random() < 0.5:
        colors = [colors[0]] * num_bars
    for i, (label, value, color) in enumerate(zip(labels, values, colors, strict=True)):
        center = left + slot * (i + 0.5)
        bar = (center - thickness / 2, lines[value], center + thickness / 2, bottom)
        patches.append(Patch(color=color, box_xyxy=bar))
        words.append(_print(label, face, ink, cap, (center, bottom + 0.03 + cap / 2)))
    return Sheet(
        kind="chart",
        paper=paper,
        patches=tuple(patches),
        words=tuple(words),
        rows=tuple((label, str(value)) for label, value in zip(labels, values, strict=True)),
    )


def _fields(rng: np.random.Generator) -> tuple[tuple[str, ...], ...]:
    """A heading, and three to six fields in their usual order."""
    headings = list(_FORMS)
    heading = headings[int(rng.integers(len(headings)))]
    labels = list(_FORMS[heading])
    kept = sorted(rng.choice(len(labels), size=3 + int(rng.integers(4)), replace=False).tolist())
    short = [word for word in assets.words() if len(word) <= 5]
    rows: list[tuple[str, ...]] = [(heading,)]
    for label in (labels[index] for index in kept):
        if _FORMS[heading][label]:
            rows.append((label, short[int(rng.integers(len(short)))]))
        else:
            rows.append((label, str(int(rng.integers(10 ** rng.integers(1, 4))))))
    return tuple(rows)


def _make_form(rng: np.random.Generator, paper: RGB, ink: RGB, face: int, is_dark: bool) -> Sheet:
    """A heading over fields, their values in a column to the right of the labels."""
    rows = _fields(rng)
    sizes = [[assets.word_size_wh(text, face)[0] for text in row] for row in rows[1:]]
    label_width, value_width = (max(column) for column in zip(*sizes, strict=True))
    gap = _between(rng, 0.8, 2.0)  # between labels and values, in cap heights
    pitch = _between(rng, 1.35, 1.8)  # from row to row, in cap heights
    room = 1 - 2 * _MARGIN
    width = label_width + gap + value_width
    cap = min(_between(rng, _MIN_CAP, _MAX_CAP), room / width, room / (pitch * len(rows)))
    left = _between(rng, _MARGIN, 1 - _MARGIN - width * cap)
    top = _between(rng, _MARGIN, 1 - _MARGIN - pitch * cap * len(rows))
    right = left + width * cap
    to_the_right, with_line = rng.random() < 0.5, rng.random() < 0.5
    words = [_print(rows[0][0], face, ink, cap, ((left + right) / 2, top + pitch * cap / 2))]
    for number, ((label, value), (wide, broad)) in enumerate(zip(rows[1:], sizes, strict=True), 1):
        y = top + pitch * cap * (number + 0.5)
        words.append(_print(label, face, ink, cap, (left + wide * cap / 2, y)))
        start = width - broad if to_the_right else label_width + gap
        words.append(_print(value, face, ink, cap, (left + (start + broad / 2) * cap, y)))
    line = Patch(
        color=_mixed(paper, ink, _between(rng, 0.3, 1.0)),
        box_xyxy=(left, top + pitch * cap, right, top + pitch * cap + _LINE),
    )
    return Sheet(
        kind="form",
        paper=paper,
        patches=(line,) if with_line else (),
        words=tuple(words),
        rows=rows,
    )
