"""What stands side by side: sidebars, cells of several lines, names below two columns."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest

from paligemma.documents import reading_order
from paligemma.documents.ink import InkLine
from paligemma.documents.order import reading_rows
from paligemma.documents.regions import _blocks

Box = tuple[float, float, float, float]

WORDS = [
    *("some", "acorns", "can", "move", "a", "marmoset", "while", "the", "river", "runs", "below"),
    *("old", "bridges", "and", "nobody", "sees", "them", "cross", "until", "evening", "comes"),
    *("with", "rain", "over", "fields"),
]
ASCENDERS = set("bdfhklt0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ")


@dataclass
class Layout:
    """Lines of print in the order in which they are read."""

    seed: int = 0
    texts: list[str] = field(default_factory=list)
    boxes: list[Box] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)

    def line(self, x: float, y: float, text: str, size: float = 10) -> None:
        self.texts.append(text)
        self.boxes.append((x, y, x + size / 2 * len(text), y + size))

    def text(
        self,
        x: float,
        y: float,
        width: float,
        count: int,
        *,
        size: float = 10,
        pitch: float = 12.5,
        paragraphs: tuple[int, ...] = (),
    ) -> float:
        """Running text, and where it ends."""
        for number in range(count):
            y += 0.7 * pitch * (number in paragraphs)
            is_last = number == count - 1 or number + 1 in paragraphs
            most = width / (size / 2) * (0.6 if is_last else 1)
            line = ""
            while len(line) + len(word := self.random.choice(WORDS)) + 1 <= most:
                line = f"{line} {word}".strip()
            line = line or "a"
            is_first = number == 0 or number in paragraphs
            line = line.capitalize() if is_first else line
            self.line(x, y, line + "." * is_last, size)
            y += pitch
        return y

    def by_words(self) -> tuple[list[int], list[Box], list[str]]:
        """The line, box and text of each word, with the boxes of letters of a text layer."""
        lines, boxes, words = [], [], []
        for number, (text, (x0, y0, x1, y1)) in enumerate(zip(self.texts, self.boxes, strict=True)):
            letter, margin, at = (x1 - x0) / len(text), 0.1 * (y1 - y0), 0
            for word in text.split():
                left = x0 + letter * at
                boxes.append((left, y0 - margin, left + letter * len(word), y1 + margin))
                lines.append(number)
                words.append(word)
                at += len(word) + 1
        return lines, boxes, words

    def in_ink(self) -> list[Box]:
        """The boxes of the lines as they are seen: with ascenders and descenders, and noise."""
        noise = random.Random(5)
        found = []
        for text, (x0, y0, x1, y1) in zip(self.texts, self.boxes, strict=True):
            size = y1 - y0
            top = (
                y0
                if set(text) & set("bdfhklt0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ")
                else y0 + 0.25 * size
            )
            bottom = y1 if set(text) & set("gpqy,") else y1 - 0.2 * size
            edges = (x0, top, x1, bottom)
            a, b, c, d = (edge + noise.uniform(-0.04, 0.04) * size for edge in edges)
            found.append((a, b, c, d))
        return found

    def is_read_right(self, right_to_left: bool = False) -> tuple[bool, bool]:
        """Whether the words of a text layer are in order, and the lines of a scan."""
        lines, boxes, words = self.by_words()
        shuffled = list(range(len(boxes)))
        random.Random(3).shuffle(shuffled)
        mirrored = [turned(box) if right_to_left else box for box in boxes]
        order = reading_order(
            [mirrored[index] for index in shuffled],
            texts=[words[index] for index in shuffled],
            right_to_left=right_to_left,
        )
        read = [lines[shuffled[index]] for index in order]
        ink = [turned(box) if right_to_left else box for box in self.in_ink()]
        return read == sorted(read), reading_order(ink, right_to_left=right_to_left) == list(
            range(len(ink))
        )


def turned(box: Box) -> Box:
    return 600 - box[2], box[1], 600 - box[0], box[3]


BOTH = (True, True)


def with_sidebar(side: str, width: float, **about: float) -> Layout:
    """A page of text with a sidebar."""
    start = int(about.pop("below", 5))
    count = int(about.pop("count", 25))
    layout = Layout()
    if side == "left":
        layout.text(50, 100 + start, width, count, **about)  # type: ignore[arg-type]
    layout.text(50 if side == "right" else 70 + width, 100, 400, 40, pitch=13, paragraphs=(10, 22))
    if side == "right":
        layout.text(470, 100 + start, width, count, **about)  # type: ignore[arg-type]
    return layout


@pytest.mark.parametrize("right_to_left", [False, True])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("width", [50, 65, 90])
def test_narrow_sidebars_are_read_beside_the_text(
    width: float, side: str, right_to_left: bool
) -> None:
    for about in (
        {"size": 8, "pitch": 10, "count": 30},
        {"size": 10, "pitch": 13, "below": 6},
        {"size": 8, "pitch": 10, "below": 80, "count": 9},
    ):
        assert with_sidebar(side, width, **about).is_read_right(right_to_left) == BOTH, about


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("width", [65, 90])
def test_a_sidebar_whose_lines_stand_at_the_heights_of_the_text_is_told_by_its_words(
    width: float, side: str
) -> None:
    layout = with_sidebar(side, width, size=10, pitch=13, below=0)
    assert layout.is_read_right()[0]


def test_labels_and_times_beside_long_lines_stay_in_their_rows() -> None:
    times, labels = Layout(), Layout()
    for number in range(14):
        times.line(50, 100 + 13 * number, f"{8 + number // 2}:{30 * (number % 2):02}")
        times.text(120, 100 + 13 * number, 300, 1)
        labels.line(50, 100 + 26 * number, "First name" if number % 2 else "Town")
        labels.text(200, 97 + 26 * number, 250, 1, size=12)
    assert times.is_read_right() == BOTH
    assert labels.is_read_right()[0]


def table(widths: tuple[float, ...], *, gap: float, seed: int, is_centered: bool = False) -> Layout:
    """A table of seven rows whose cells have one to four lines."""
    layout, lengths = Layout(seed), random.Random(seed)
    y = 100.0
    for row in range(7):
        counts = [lengths.choice((1, 2, 3, 4)) for _ in widths]
        counts = [1, *counts[1:-1], 3] if row == 0 else counts
        x = 50.0
        for width, count in zip(widths, counts, strict=True):
            lower = (max(counts) - count) * 6.25 if is_centered else 0
            layout.text(x, y + lower, width, count)
            x += width + 20
        y += 12.5 * max(counts) + gap
    return layout


@pytest.mark.parametrize("right_to_left", [False, True])
@pytest.mark.parametrize(
    "widths", [(230, 230), (90, 370), (330, 130), (150, 150, 150), (100, 250, 100)]
)
def test_cells_of_several_lines_are_read_row_by_row(
    widths: tuple[float, ...], right_to_left: bool
) -> None:
    for gap in (4, 8, 14):
        for seed in (0, 1, 2):
            assert table(widths, gap=gap, seed=seed).is_read_right(right_to_left)[0], (gap, seed)
    assert table(widths, gap=8, seed=5, is_centered=True).is_read_right(right_to_left)[0]
    assert table(widths, gap=8, seed=0).is_read_right(right_to_left) == BOTH


def test_a_table_of_cells_of_several_lines_stands_between_texts_across_the_page() -> None:
    for seed in range(6):
        layout, inside = Layout(seed), table((220, 240), gap=8, seed=seed)
        end = layout.text(50, 40, 480, 3)
        layout.texts += inside.texts
        layout.boxes += [(x0, y0 + end - 80, x1, y1 + end - 80) for x0, y0, x1, y1 in inside.boxes]
        layout.text(50, max(box[3] for box in layout.boxes) + 20, 480, 4)
        assert layout.is_read_right()[0], seed


def test_the_model_sees_the_cells_of_a_scanned_table_together() -> None:
    ink = table((230, 230), gap=8, seed=0).in_ink()
    rows = reading_rows(ink, splits_cells=False)
    lines = [[InkLine(ink[index], 5) for index in row] for row in rows]
    assert len(_blocks(lines)) == 1
    assert max(map(len, rows)) == 2


@pytest.mark.parametrize("num_columns", [2, 3])
def test_columns_whose_paragraphs_end_as_they_like_are_read_one_after_the_other(
    num_columns: int,
) -> None:
    """On one grid of lines, with paragraphs set apart by a whole line or by a part of one."""
    width = (490 - 20 * (num_columns - 1)) / num_columns
    for seed in range(8):
        layout, lengths = Layout(seed), random.Random(seed)
        for column in range(num_columns):
            y = 100.0
            while y < 600:
                y = layout.text(50 + column * (width + 20), y, width, lengths.randint(2, 9))
                y += 12.5 if seed % 2 else 6.0
        assert layout.is_read_right() == BOTH, seed


def test_stanzas_side_by_side_are_read_column_by_column() -> None:
    layout = Layout()
    for column in range(2):
        y = 100.0
        for count in (4, 4, 6, 4, 4):
            y = layout.text(50 + 250 * column, y, 200, count) + 12.5
    assert layout.is_read_right() == BOTH


@pytest.mark.parametrize("right_to_left", [False, True])
@pytest.mark.parametrize("x", [50, 300])
@pytest.mark.parametrize("count", [1, 2])
def test_names_below_two_columns_are_read_last(count: int, x: float, right_to_left: bool) -> None:
    layout = Layout()
    layout.text(50, 100, 230, 40, paragraphs=(9, 17))
    end = layout.text(300, 100, 230, 40, paragraphs=(12, 25))
    for number, text in enumerate(["Sincerely yours,", "John Q. Public"][:count]):
        layout.line(x, end + 26 + 13 * number, text)
    assert layout.is_read_right(right_to_left) == BOTH


def test_the_last_paragraph_of_a_longer_column_belongs_to_it() -> None:
    layout = Layout()
    layout.text(50, 100, 230, 40, paragraphs=(9, 17, 34))
    layout.text(300, 100, 230, 34, paragraphs=(12, 25))
    assert layout.is_read_right() == BOTH


def test_captions_and_footnotes_stand_where_they_belong() -> None:
    layout = Layout(4)
    layout.text(50, 60, 480, 6)
    layout.text(50, 300, 200, 3, size=8, pitch=10)
    layout.text(300, 300, 200, 2, size=8, pitch=10)
    layout.text(50, 360, 480, 8)
    assert layout.is_read_right() == BOTH
    layout = Layout(6)
    for column, (count, notes) in enumerate([(36, 3), (33, 4)]):
        layout.text(50 + 250 * column, 100, 230, count, paragraphs=(9,))
        layout.text(50 + 250 * column, 580, 230, notes, size=8, pitch=10)
    layout.text(50, 640, 480, 3, size=8, pitch=10)
    assert layout.is_read_right() == BOTH


def test_any_boxes_with_any_texts_are_in_the_order_once() -> None:
    said = ["", "a", "12345 Berlin", "Ann Lee", "some text goes on", "Total:", "x y z"]
    for seed in range(100):
        pick = random.Random(seed)
        boxes: list[Box] = []
        for _ in range(pick.randint(1, 60)):
            x, y = pick.choice((50.0, 200.0, 350.0)), 12.0 * pick.randint(0, 25)
            height = pick.choice((0, 9, 10, 10, 10, 12, 40)) if pick.random() < 0.3 else 10
            boxes.append((x, y, x + pick.choice((0, 1, 30, 80, 140)), y + height))
        texts = [pick.choice(said) for _ in boxes]
        for rows in (
            reading_rows(boxes, texts=texts),
            reading_rows(boxes, texts=texts, right_to_left=True),
            reading_rows(boxes, splits_cells=False),
        ):
            assert sorted(index for row in rows for index in row) == list(range(len(boxes)))


def test_boxes_without_height_in_the_gap_beside_an_address_are_no_side_of_it() -> None:
    texts = ["Ann Lee", "", "Ann Lee", "Total:", "a", "12345 Berlin", "going on", "Ann Lee", "Ann"]
    boxes: list[Box] = [
        (350, 156, 430, 166), (350, 132, 351, 142), (200, 60, 230, 60), (350, 144, 380, 154),
        (50, 132, 50, 141), (350, 84, 380, 96), (200, 96, 200, 106), (350, 132, 351, 172),
        (50, 84, 51, 124),
    ]  # fmt: skip
    for right_to_left in (False, True):
        order = reading_order(boxes, texts=texts, right_to_left=right_to_left)
        assert sorted(order) == list(range(9))
