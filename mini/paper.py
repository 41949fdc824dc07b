"""Papers of mini's world: prescriptions, invoices, receipts and ID cards in large print.

Like a scene a paper is a value, drawn from a generator seeded by (split, seed, index), and can be
drawn at any resolution. A page holds the parts of a long one side by side, so that the whole page
is too small to be read at mini's resolution and its quarters are not. This file is about what
papers say and how they are laid out; paper_examples.py is about what one asks about them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from functools import cache
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from mini import assets
from mini.scene import RGB, Box, SceneObject, SceneWord, Split, draw_words
from mini.sheet import Patch
from paligemma.errors import OptionError

PaperKind = Literal["prescription", "invoice", "receipt", "id-card"]
PAPER_KINDS: tuple[PaperKind, ...] = get_args(PaperKind)

Row = list[tuple[str, str]]
"""One line: each text, and the path of the field that it is (part of), or ""."""

_SPLIT_IDS: dict[str, int] = {"train": 0, "test": 1}
_STREAM = 2  # keeps the random numbers of papers apart from those of scenes and sheets
_MARGIN = 0.03
_MIN_CAP, _MAX_CAP = 0.07, 0.11
_LINE = 0.006
_WORD_GAP = 0.75  # between words of a line, in cap heights
_COLORS: tuple[RGB, ...] = ((255, 255, 255), (248, 246, 236), (236, 242, 250), (252, 238, 240))
_INKS: tuple[RGB, ...] = ((0, 0, 0), (20, 40, 130), (92, 50, 16), (16, 84, 40))

_DOSES = (5, 10, 15, 20, 25, 30, 40, 50, 60, 75, 80, 100, 120, 150, 200, 250, 300, 400, 500)
_SHOPS = ("CAFE", "SHOP", "STORE", "MARKET", "BAKERY", "HOTEL")


@cache
def _words(name: str) -> tuple[str, ...]:
    """The names, surnames, medicines or diseases that papers print; the medicines are invented."""
    words = json.loads((Path(__file__).parent / "data" / "paper_words.json").read_text("utf-8"))
    return tuple(words[name].split())


@dataclass(frozen=True, kw_only=True)
class PaperField:
    """What a paper says: `value` as it is printed, `path` in the built-in schema of its kind, such
    as "total" or "medicines[0].dose"."""

    path: str
    value: str
    box_xyxy: Box


@dataclass(frozen=True, kw_only=True)
class Paper:
    """One paper, or a part of one; places in units of the image's side."""

    kind: PaperKind
    color: RGB
    patches: tuple[Patch, ...]
    lines: tuple[tuple[SceneWord, ...], ...]
    """The printed words of each line, from top to bottom and left to right."""
    labels: tuple[int, ...]
    """The lines that are a label and a value."""
    fields: tuple[PaperField, ...]

    @property
    def objects(self) -> tuple[SceneObject, ...]:
        """None: a paper shows no things, only print."""
        return ()

    @property
    def words(self) -> tuple[SceneWord, ...]:
        return tuple(word for line in self.lines for word in line)

    @property
    def text(self) -> str:
        """All that is printed, line by line."""
        return "\n".join(" ".join(word.text for word in line) for line in self.lines)

    def draw(self, resolution: int) -> NDArray[np.uint8]:
        """The image: uint8[resolution, resolution, 3], RGB."""
        image = np.full((resolution, resolution, 3), self.color, np.uint8)
        for patch in self.patches:
            x0, y0, x1, y1 = (round(edge * resolution) for edge in patch.box_xyxy)
            image[y0 : max(y1, y0 + 1), x0 : max(x1, x0 + 1)] = patch.color
        draw_words(image, self.words)
        return image


@dataclass(frozen=True, kw_only=True)
class Page:
    """A long paper in parts: `parts[row][column]`, each as large as a paper of its own."""

    kind: PaperKind
    parts: tuple[tuple[Paper, ...], ...]

    @property
    def fields(self) -> tuple[PaperField, ...]:
        """Every field, by path, its box in units of a part's side."""
        fields = [
            PaperField(
                path=field.path, value=field.value, box_xyxy=(x0 + x, y0 + y, x1 + x, y1 + y)
            )
            for y, row in enumerate(self.parts)
            for x, part in enumerate(row)
            for field in part.fields
            for x0, y0, x1, y1 in (field.box_xyxy,)
        ]
        return tuple(sorted(fields, key=lambda field: field.path))

    @property
    def text(self) -> str:
        """All that is printed, part by part."""
        return "\n".join(part.text for row in self.parts for part in row)

    def draw(self, resolution: int) -> NDArray[np.uint8]:
        """The image, `resolution` pixels along a side of each part."""
        rows = [np.concatenate([part.draw(resolution) for part in row], 1) for row in self.parts]
        return np.concatenate(rows, 0)


def make_paper(
    split: Split, seed: int, index: int, kind: PaperKind | None = None, *, is_part: bool = False
) -> Paper:
    """Paper number `index` of the stream (split, seed), of a kind drawn if none is asked for.

    With `is_part` some of its lines at the top or the bottom are missing, as in a tile of a page.
    Raises OptionError for another split, and for a negative seed or index.
    """
    rng = _generator(split, seed, index)
    if kind is None:
        kind = PAPER_KINDS[int(rng.integers(len(PAPER_KINDS)))]
    style = _make_style(rng)
    rows = _ROWS[kind](rng, 2)
    if is_part:
        kept = 2 + int(rng.integers(len(rows) - 1))
        first = int(rng.integers(len(rows) - kept + 1))
        rows = rows[first : first + kept]
    return _lay_out(rng, kind, style, rows)


def make_page(split: Split, seed: int, index: int, kind: PaperKind) -> Page:
    """A long paper in four parts, two by two."""
    rng = _generator(split, seed, index)
    style = _make_style(rng)
    rows = _ROWS[kind](rng, 5)
    cuts = [len(rows) * part // 4 for part in range(5)]
    parts = [_lay_out(rng, kind, style, rows[cuts[i] : cuts[i + 1]]) for i in range(4)]
    return Page(kind=kind, parts=((parts[0], parts[1]), (parts[2], parts[3])))


def printed_words() -> list[str]:
    """Words of which any may be printed on a paper."""
    return [word for name in ("names", "medicines", "diseases") for word in _words(name)]


def training_papers(seed: int, step: int, number: int) -> list[Paper]:
    """The papers of one step of training; every third is a part of one."""
    return [make_paper("train", seed, step * number + i, is_part=i % 3 == 2) for i in range(number)]


def _generator(split: str, seed: int, index: int) -> np.random.Generator:
    if split not in _SPLIT_IDS or seed < 0 or index < 0:
        raise OptionError(
            f"There is no paper for split {split!r}, seed {seed}, index {index}. "
            'The split is "train" or "test"; seed and index are not negative.'
        )
    return np.random.default_rng([_SPLIT_IDS[split], seed, index, _STREAM])


# --- what papers say ----------------------------------------------------------------------------


def _pick(rng: np.random.Generator, choices: Sequence[str], number: int = 1) -> list[str]:
    """Different ones of `choices`, a quarter of them replaced by invented words."""
    picked = [choices[i] for i in rng.choice(len(choices), size=number, replace=False)]
    for i in range(number):
        if rng.random() < 0.25 and (word := _invent(rng)) not in picked:
            picked[i] = word
    return picked


def _invent(rng: np.random.Generator) -> str:
    """Three to six letters, consonants and vowels in turn; rude words do not end like this."""
    groups = ("BDFGHJKLMNPRSTVWYZ", "AEIOU", "BLNRVX", "AEIOU", "LNRVX", "AO")
    length = 3 + int(rng.integers(4))
    return "".join(group[int(rng.integers(len(group)))] for group in groups[:length])


def _some(rng: np.random.Generator, share: float = 0.85) -> bool:
    return bool(rng.random() < share)


def _date(rng: np.random.Generator, first: date, last: date) -> str:
    return str(first + timedelta(days=int(rng.integers((last - first).days))))


def _amount(cents: int) -> str:
    return f"{cents // 100}.{cents % 100:02d}"


def _digits(rng: np.random.Generator, number: int) -> str:
    return str(int(rng.integers(10 ** (number - 1), 10**number)))


def _recent(rng: np.random.Generator) -> str:
    return _date(rng, date(2020, 1, 1), date(2030, 1, 1))


def _prescription(rng: np.random.Generator, most: int) -> list[Row]:
    rows: list[Row] = [[("RX", "")]]
    if _some(rng):
        rows.append([("NAME", ""), (_pick(rng, _words("names"))[0], "patient")])
    if _some(rng, 0.7):
        rows.append([("DR", ""), (_pick(rng, _words("surnames"))[0], "prescriber")])
    if _some(rng):
        rows.append([("DATE", ""), (_recent(rng), "date")])
    for i, name in enumerate(_pick(rng, _words("medicines"), 1 + int(rng.integers(most)))):
        row = [(name, f"medicines[{i}].name")]
        if _some(rng, 0.95):
            row.append((f"{_DOSES[int(rng.integers(len(_DOSES)))]}MG", f"medicines[{i}].dose"))
        if _some(rng, 0.4):
            row.append((f"{1 + int(rng.integers(4))}X", f"medicines[{i}].frequency"))
        if _some(rng, 0.25):
            row.append((f"{2 + int(rng.integers(13))}D", f"medicines[{i}].duration"))
        rows.append(row)
    if _some(rng, 0.75):
        rows.append([("FOR", ""), (_pick(rng, _words("diseases"))[0], "diseases[0]")])
    return rows


def _items(
    rng: np.random.Generator, most: int, name: str, price: str
) -> tuple[list[Row], list[Row]]:
    """The rows of things sold, and those of the tax and the total, which add up.

    `name` and `price` are what the schema calls the two values of an item.
    """
    number = 1 + int(rng.integers(most))
    cents = [5 * int(rng.integers(20, 600)) for _ in range(number)]
    items: list[Row] = [
        [(thing, f"items[{i}].{name}"), (_amount(cents[i]), f"items[{i}].{price}")]
        for i, thing in enumerate(_pick(rng, assets.words(), number))
    ]
    sums: list[Row] = []
    total = sum(cents)
    if _some(rng, 0.6):
        tax = 5 * round(total * 0.04)
        sums.append([("TAX", ""), (_amount(tax), "tax")])
        total += tax
    sums.append([("TOTAL", ""), (_amount(total), "total")])
    return items, sums


def _invoice(rng: np.random.Generator, most: int) -> list[Row]:
    items, sums = _items(rng, most, "description", "amount")
    rows: list[Row] = [[("INVOICE", "")]]
    if _some(rng):
        rows.append([("NO", ""), (_digits(rng, 3 + int(rng.integers(3))), "invoice_number")])
    if _some(rng):
        rows.append([("DATE", ""), (_recent(rng), "invoice_date")])
    both = most > 2 and _some(rng)
    if both or _some(rng, 0.45):
        rows.append([("FROM", ""), (_pick(rng, _words("surnames"))[0], "seller")])
    if both or len(rows) < 4:
        rows.append([("TO", ""), (_pick(rng, _words("names"))[0], "buyer")])
    return rows + items + sums


def _receipt(rng: np.random.Generator, most: int) -> list[Row]:
    items, sums = _items(rng, most + 1, "name", "price")
    shop = _SHOPS[int(rng.integers(len(_SHOPS)))]
    rows: list[Row] = [[(_pick(rng, assets.words())[0], "merchant"), (shop, "merchant")]]
    if _some(rng):
        rows.append([("DATE", ""), (_recent(rng), "date")])
    rows += items + sums
    if _some(rng, 0.5):
        rows.append([("PAID", ""), ("CARD" if _some(rng, 0.5) else "CASH", "paid_by")])
    return rows


def _id_card(rng: np.random.Generator, most: int) -> list[Row]:
    rows: list[Row] = [[("ID", ""), ("CARD", "")]]
    rows.append([("NAME", ""), (_pick(rng, _words("surnames"))[0], "surname")])
    if _some(rng):
        rows.append([("FIRST", ""), (_pick(rng, _words("names"))[0], "given_names")])
    if _some(rng):
        born = _date(rng, date(1930, 1, 1), date(2012, 1, 1))
        rows.append([("BORN", ""), (born, "date_of_birth")])
    if _some(rng, 0.3):
        rows.append([("SEX", ""), ("F" if _some(rng, 0.5) else "M", "sex")])
    if _some(rng):
        rows.append([("NO", ""), (_digits(rng, 5 + int(rng.integers(2))), "document_number")])
    if _some(rng, 0.8):
        rows.append([("UNTIL", ""), (_recent(rng), "date_of_expiry")])
    return rows


_ROWS: dict[PaperKind, Callable[[np.random.Generator, int], list[Row]]] = {
    "prescription": _prescription,
    "invoice": _invoice,
    "receipt": _receipt,
    "id-card": _id_card,
}


# --- how they are laid out ----------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Style:
    color: RGB
    ink: RGB
    face: int
    stretch: float
    """How wide letters are drawn, compared with the face's own width."""
    to_the_right: bool
    """Whether values end at the right edge instead of starting in a column."""
    with_line: bool


def _make_style(rng: np.random.Generator) -> _Style:
    return _Style(
        color=_COLORS[int(rng.integers(len(_COLORS)))],
        ink=_INKS[int(rng.integers(len(_INKS)))],
        face=int(rng.integers(assets.num_digit_faces())),
        stretch=_between(rng, 0.8, 1.0),
        to_the_right=_some(rng, 0.5),
        with_line=_some(rng, 0.5),
    )


def _between(rng: np.random.Generator, low: float, high: float) -> float:
    return low + (high - low) * float(rng.random())


def _is_pair(row: Row) -> bool:
    """Whether it has a label or a name to the left, and one value."""
    return len(row) == 2 and row[0][1] != row[1][1]


def _lay_out(
    rng: np.random.Generator, kind: PaperKind, style: _Style, rows: Sequence[Row]
) -> Paper:
    """The rows one below the other; pairs in two columns, other lines from the left."""
    sizes = [
        [(w * style.stretch, h) for w, h in (assets.word_size_wh(t, style.face) for t, _ in row)]
        for row in rows
    ]
    pairs = [size for row, size in zip(rows, sizes, strict=True) if _is_pair(row)]
    left_column = max((size[0][0] for size in pairs), default=0.0)
    gap = _between(rng, 0.8, 1.6)
    lines = [sum(w for w, _ in size) + _WORD_GAP * (len(size) - 1) for size in sizes]
    columns = left_column + gap + max((size[1][0] for size in pairs), default=0.0)
    width = max(*lines, columns)
    pitch = _between(rng, 1.35, 1.8)  # from line to line, in cap heights
    room = 1 - 2 * _MARGIN
    cap = min(_between(rng, _MIN_CAP, _MAX_CAP), room / width, room / (pitch * len(rows)))
    left = _between(rng, _MARGIN, 1 - _MARGIN - width * cap)
    top = _between(rng, _MARGIN, 1 - _MARGIN - pitch * cap * len(rows))
    printed = []
    for number, (row, size) in enumerate(zip(rows, sizes, strict=True)):
        baseline = top + pitch * cap * (number + 0.5) + cap / 2
        start, words = 0.0, []
        for place, ((text, _), (w, _)) in enumerate(zip(row, size, strict=True)):
            if place and _is_pair(row):
                start = width - w if style.to_the_right else left_column + gap
            x0, (up, down) = left + start * cap, assets.word_reach(text, style.face)
            box = (x0, baseline - up * cap, x0 + w * cap, baseline + down * cap)
            words.append(SceneWord(text=text, face=style.face, color=style.ink, box_xyxy=box))
            start += w + _WORD_GAP
        printed.append(tuple(words))
    line = Patch(
        color=style.ink,
        box_xyxy=(left, top + pitch * cap, left + width * cap, top + pitch * cap + _LINE),
    )
    return Paper(
        kind=kind,
        color=style.color,
        patches=(line,) if style.with_line and len(rows) > 1 else (),
        lines=tuple(printed),
        labels=tuple(i for i, row in enumerate(rows) if _is_pair(row) and not row[0][1]),
        fields=_fields(rows, printed),
    )


def _fields(rows: Sequence[Row], printed: Sequence[Sequence[SceneWord]]) -> tuple[PaperField, ...]:
    words: dict[str, list[SceneWord]] = {}
    for row, line in zip(rows, printed, strict=True):
        for (_, path), word in zip(row, line, strict=True):
            if path:
                words.setdefault(path, []).append(word)
    return tuple(
        PaperField(
            path=path,
            value=" ".join(word.text for word in parts),
            box_xyxy=_around([word.box_xyxy for word in parts]),
        )
        for path, parts in words.items()
    )


def _around(boxes: Sequence[Box]) -> Box:
    x0, y0, x1, y1 = zip(*boxes, strict=True)
    return min(x0), min(y0), max(x1), max(y1)


if __name__ == "__main__":
    from mini.paper_files import main

    main()
