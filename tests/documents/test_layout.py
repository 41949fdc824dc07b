"""Print on pages: reading order, tiles, text lines in ink, slant."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Sequence

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from paligemma.documents import deskew_angle, ink_lines, open_document, reading_order, tiles_of
from paligemma.documents.level import leveled
from paligemma.documents.order import reading_rows
from paligemma.documents.regions import regions_of
from paligemma.errors import OptionError
from paligemma.fonts import Lettering
from tests.documents.pdf_files import pdf_of_pages, text_at

Box = tuple[float, float, float, float]


def column(x: float, y: float, lines: int, *, width: float = 150, pitch: float = 14) -> list[Box]:
    return [(x, y + pitch * i, x + width, y + pitch * i + 10) for i in range(lines)]


def shuffled_order_is(boxes: list[Box]) -> None:
    """The boxes are given in reading order, and found in it again from any other."""
    indices = list(range(len(boxes)))
    random.Random(0).shuffle(indices)
    order = reading_order([boxes[index] for index in indices])
    assert [indices[index] for index in order] == list(range(len(boxes)))


def test_columns_are_read_one_after_the_other() -> None:
    shuffled_order_is([*column(0, 0, 20), *column(170, 3, 18), *column(340, 0, 20)])


def test_a_heading_and_a_footer_stay_above_and_below_columns() -> None:
    heading, footer = (0.0, -40.0, 500.0, -20.0), (0.0, 300.0, 500.0, 310.0)
    shuffled_order_is([heading, *column(0, 0, 20), *column(170, 0, 20), footer])


def test_the_words_of_loose_lines_are_no_cells_of_a_table() -> None:
    """A justified column of short lines, in whose third line the words stand far apart."""
    words = [[(170 + 30 * n, y, 190 + 30 * n, y + 10.0) for n in range(5)] for y in (32.0, 46.0)]
    loose = [*column(170, 4, 2), *words[0], *words[1], *column(170, 60, 4)]
    shuffled_order_is([*column(0, 0, 8), *loose])


def test_what_crosses_the_columns_divides_them() -> None:
    banner = (0.0, 150.0, 320.0, 165.0)
    shuffled_order_is(
        [
            *(*column(0, 0, 10), *column(170, 0, 10)),
            banner,
            *(*column(0, 175, 10), *column(170, 175, 10)),
        ]
    )


def test_facing_pages_of_two_columns_each_are_read_column_by_column() -> None:
    columns = [box for x in (0, 170, 400, 570) for box in column(x, 0, 12)]
    shuffled_order_is(columns)
    shuffled_order_is([(0.0, -40.0, 720.0, -20.0), *columns])


@pytest.mark.parametrize("gap", [2.0, 0.01])
def test_thousands_of_rows_are_ordered_in_about_the_time_that_reading_them_takes(
    gap: float,
) -> None:
    boxes = [(0.0, 10 * i + gap * i * i, 100.0, 10 * i + gap * i * i + 8) for i in range(5000)]
    started = time.process_time()
    assert reading_order(boxes) == list(range(5000))
    assert time.process_time() - started < 4


def test_paragraphs_that_end_at_the_same_height_do_not_cut_the_columns() -> None:
    left = [*column(0, 0, 8), *column(0, 140, 8)]
    right = [*column(170, 0, 8), *column(170, 140, 8)]
    shuffled_order_is([(0.0, -20.0, 320.0, -8.0), *left, *right])


def test_tables_are_read_row_by_row() -> None:
    rows = [
        [(0.0, 20.0 * row, 90.0, 20.0 * row + 10), (150.0, 20.0 * row, 170.0, 20.0 * row + 10),
         (250.0, 20.0 * row + 1, 300.0, 20.0 * row + 11)]
        for row in range(12)
    ]  # fmt: skip
    shuffled_order_is(list(itertools.chain(*rows)))
    assert len(reading_rows(list(itertools.chain(*rows)))) == 12


def test_a_table_across_two_columns_is_read_row_by_row_between_them() -> None:
    cells = [
        (x, 150.0 + 15 * row, x + 40.0, 160.0 + 15 * row)
        for row in range(4)
        for x in (0.0, 90.0, 180.0, 270.0)
    ]
    shuffled_order_is(
        [
            *(*column(0, 0, 10), *column(170, 0, 10)),
            *cells,
            *(*column(0, 230, 10), *column(170, 230, 10)),
        ]
    )


def test_words_are_joined_to_lines_first() -> None:
    words = [
        (x + 25 * i, y, x + 25 * i + 20, y + 10)
        for x in (0, 170)
        for y in range(0, 200, 14)
        for i in range(6)
    ]
    shuffled_order_is([(float(a), float(b), float(c), float(d)) for a, b, c, d in words])


def placed(
    *columns: Sequence[str], gap: float = 35, shift: float = 0
) -> tuple[list[Box], list[str]]:
    """Texts below each other, in columns next to each other, each lower than the last."""
    boxes: list[Box] = []
    x = 50.0
    for number, column in enumerate(columns):
        width = 5.0 * max(map(len, column))
        for line, text in enumerate(column):
            y = 100 + 13.0 * line + shift * number
            boxes.append((x, y, x + 5 * len(text), y + 10))
        x += width + gap
    return boxes, [text for column in columns for text in column]


SENDER = ["Muster GmbH", "Hauptstr. 1", "12345 Berlin", "Tel. 030 123456"]
BUYER = ["Jane Q. Public", "Accounts", "1234 Elm Street", "Springfield, IL 62701"]
THIRD = ["Best Ltd", "12 High Street", "London SW1A 2AA"]


@pytest.mark.parametrize("gap", [25, 35, 200])
@pytest.mark.parametrize("shift", [0, 4])
@pytest.mark.parametrize("columns", [(SENDER, BUYER), (BUYER, THIRD), (THIRD, SENDER, BUYER)])
def test_addresses_side_by_side_are_read_one_after_the_other(
    columns: tuple[list[str], ...], shift: float, gap: float
) -> None:
    boxes, texts = placed(*columns, gap=gap, shift=shift)
    footer = (50.0, 300.0, 400.0, 310.0)
    order = reading_order([*boxes, footer], texts=[*texts, "What follows on the page."])
    assert order == list(range(len(texts) + 1))


def test_a_line_below_addresses_of_other_lengths_is_read_after_both() -> None:
    boxes, texts = placed(SENDER, THIRD)
    below = (50.0, 165.0, 130.0, 175.0)
    order = reading_order([*boxes, below], texts=[*texts, "Berlin, 3 May 2024"])
    assert order == list(range(len(texts) + 1))


def test_an_address_next_to_labels_with_values_is_read_before_them() -> None:
    labels, values = ["Invoice number:", "Date:", "Due:"], ["R-17/2024", "3 May 2024", "3 June"]
    boxes, texts = placed(SENDER, labels, values)
    rows = reading_rows(boxes, texts=texts)
    read = [" ".join(texts[index] for index in row) for row in rows]
    assert read == [*SENDER, "Invoice number: R-17/2024", "Date: 3 May 2024", "Due: 3 June"]


@pytest.mark.parametrize(
    "columns",
    [
        (["Subtotal", "VAT 19 %", "Shipping", "Total"], ["10.00", "1.90", "3.10", "15.00"]),
        (["Name", "Street", "Town", "Country"], ["Max Meier", "Weg 2", "12345 Berlin", "Germany"]),
        (["Name:", "Street:", "Town:", "Tel.:"], ["Max Meier", "Weg 2", "12345 Berlin", "030 12"]),
        (["Name", "Ann", "Bob", "Cy"], ["Town", "12345 Berlin", "75001 Paris", "1010 Wien"]),
        (["Town", "12345 Berlin", "1010 Wien"], ["Branch", "20095 Hamburg", "75001 Paris"]),
        (["Model", "Nokia 3310", "Samsung"], ["Kind", "Black", "64 GB"]),
    ],
    ids=lambda columns: columns[0][0],
)
def test_rows_of_tables_and_labels_with_values_stay_rows(columns: tuple[list[str], ...]) -> None:
    boxes, texts = placed(*columns)
    rows = reading_rows(boxes, texts=texts)
    assert [[texts[index] for index in row] for row in rows] == [
        list(row) for row in zip(*columns, strict=True)
    ]


def test_texts_are_those_of_the_boxes() -> None:
    with pytest.raises(OptionError, match="1 text was given for 2 boxes"):
        reading_order([(0, 0, 1, 1), (2, 0, 3, 1)], texts=["one"])


def test_from_right_to_left() -> None:
    right, left = column(170, 0, 10), column(0, 0, 10)
    boxes = [*left, *right]
    assert reading_order(boxes, right_to_left=True) == [*range(10, 20), *range(10)]


def test_odd_boxes_have_an_order_too() -> None:
    assert reading_order([]) == []
    assert reading_order([(5, 5, 5, 5), (0, 0, 0, 0), (9, 9, 1, 1)]) is not None
    same = [(0.0, 0.0, 10.0, 10.0)] * 500
    assert sorted(reading_order(same)) == list(range(500))
    with pytest.raises(OptionError, match="finite"):
        reading_order([(0, 0, float("nan"), 1)])


def test_every_box_is_in_the_order_once() -> None:
    generator = random.Random(1)
    for count in (1, 2, 3, 10, 300):
        boxes = []
        for _ in range(count):
            x, y = generator.uniform(0, 500), generator.uniform(0, 700)
            width, height = generator.uniform(0, 200), generator.uniform(0, 40)
            boxes.append((x, y, x + width, y + height))
        assert sorted(reading_order(boxes)) == list(range(count))


def page_image(lines: int, *, size: int = 20, width: int = 800, left: int = 60) -> Image.Image:
    image = Image.new("RGB", (width, 60 + 34 * lines), "white")
    lettering = Lettering(size)
    for line in range(lines):
        text = " ".join(["some", "murmurs", "of", "wine", "and", "cars"][: 3 + line % 4])
        lettering.draw(image, (left, 60 + 34 * line), text, (0, 0, 0))
    return image


def test_ink_lines_are_the_lines_of_text() -> None:
    image = page_image(9)
    lines = ink_lines(image)
    assert len(lines) == 9
    for number, (x0, y0, x1, y1) in enumerate(lines):
        baseline = 60 + 34 * number
        assert x0 == pytest.approx(60, abs=4)
        assert x1 > 150
        assert y0 < baseline - 8 < baseline + 5 > y1 - 6


def test_ink_lines_do_not_see_the_rules_of_a_table() -> None:
    image = page_image(9)
    draw = ImageDraw.Draw(image)
    for line in range(10):
        draw.line([(20, 34 * line + 36), (780, 34 * line + 36)], fill="black", width=2)
    for x in (20, 780):
        draw.line([(x, 36), (x, image.height - 20)], fill="black", width=2)
    assert len(ink_lines(image)) == 9


def test_print_on_a_dark_bar_is_ink() -> None:
    image = page_image(3)
    ImageDraw.Draw(image).rectangle((30, 100, 700, 140), fill="black")
    Lettering(20).draw(image, (60, 128), "white words on black", (255, 255, 255))
    assert any(90 < y0 < y1 < 145 and x1 - x0 > 150 for x0, y0, x1, y1 in ink_lines(image))


@pytest.mark.parametrize("table", [(40, 36, 34), (90, 70, 52), (200, 190, 170)])
@pytest.mark.parametrize("slant", [0, 3])
def test_the_edges_of_a_sheet_on_a_table_are_no_print(
    table: tuple[int, int, int], slant: int
) -> None:
    sheet = page_image(9).convert("RGBA").rotate(slant, Image.Resampling.BICUBIC, expand=True)
    photo = Image.new("RGB", (sheet.width + 220, sheet.height + 200), table)
    photo.paste(sheet, (110, 100), sheet)
    if slant == 0:
        assert len(ink_lines(photo)) == 9
    assert deskew_angle(photo) == pytest.approx(-slant, abs=0.25)
    pages = open_document(photo).pages
    level = leveled(pages[0])
    [region] = regions_of(pages[0] if level is None else level.page, 896)
    assert len(region.rows) == 9


@pytest.mark.parametrize("angle", [-4.0, -1.3, 0.0, 0.7, 3.2])
def test_deskew_finds_the_slant(angle: float) -> None:
    image = page_image(16).rotate(-angle, fillcolor="white", resample=Image.Resampling.BICUBIC)
    assert deskew_angle(image) == pytest.approx(angle, abs=0.25)


def test_an_empty_image_has_no_lines_and_no_slant() -> None:
    for image in (Image.new("RGB", (300, 200), "white"), Image.new("L", (1, 1))):
        assert ink_lines(image) == []
        assert deskew_angle(image) == 0.0


def contents(size: float, *, columns: int = 1) -> bytes:
    """A4 full of print of this size in points."""
    width = 500 / columns
    per_line = int((width - 20) / (size * 0.5))
    text = ("some acorns can move a marmoset " * 20)[:per_line]
    lines = int(700 / (1.25 * size))
    return b"".join(
        text_at(50 + width * number, 780 - 1.25 * size * line, text, size)
        for number in range(columns)
        for line in range(lines)
    )


A4 = "0 0 595 842"


def test_the_grid_follows_the_print() -> None:
    counts = []
    for size in (30, 12, 6):
        with open_document(pdf_of_pages([contents(size)], media_box=A4)) as document:
            counts.append(len(tiles_of(document.pages[0], 448)))
            more = len(tiles_of(document.pages[0], 896))
            assert more < counts[-1] or counts[-1] == 0
    assert counts[0] == 0
    assert 2 <= counts[1] <= 8
    assert counts[2] > 2 * counts[1]


def test_tiles_are_no_larger_than_print_can_be_read_in() -> None:
    with open_document(pdf_of_pages([contents(9)], media_box=A4)) as document:
        [page] = document.pages
        x_height = page.print_height()
        assert x_height is not None
        for tile in tiles_of(page, 448):
            x0, y0, x1, y1 = tile.box_xyxy
            assert max(x1 - x0, y1 - y0) * 6 / 448 <= x_height * 1.05 + 12 * 6 / 448


def test_tiles_show_all_print_and_cut_no_line() -> None:
    with open_document(pdf_of_pages([contents(9, columns=2)], media_box=A4)) as document:
        [page] = document.pages
        tiles = [tile.box_xyxy for tile in tiles_of(page, 448)]
        assert len(tiles) >= 4
        for word in page.words:
            x0, y0, x1, y1 = word.box_xyxy
            middle = (y0 + y1) / 2
            assert any(
                a <= x0 + 1 and x1 - 1 <= c and b <= middle - 4 and middle + 4 <= d
                for a, b, c, d in tiles
            ), word


def test_print_without_a_gap_is_cut_with_an_overlap() -> None:
    generator = np.random.default_rng(0)
    noise = np.where(generator.random((900, 900)) < 0.5, 0, 255).astype(np.uint8)
    with open_document(Image.fromarray(noise)) as document:
        tiles = tiles_of(document.pages[0], 224, max_tiles=9)
    assert len(tiles) <= 9


def test_a_card_on_a_large_page_is_a_tile_of_its_own() -> None:
    image = Image.new("RGB", (2400, 3200), "white")
    lettering = Lettering(24)
    for number in range(6):
        lettering.draw(image, (1500, 2000 + 40 * number), "TOTAL 12.50 EUR", (0, 0, 0))
    with open_document(image) as document:
        [tile] = tiles_of(document.pages[0], 448)
    x0, y0, x1, y1 = tile.box_xyxy
    assert (x0 > 1400, y0 > 1900, x1 - x0 < 400, y1 - y0 < 400) == (True,) * 4
    with open_document(image.crop((1480, 1980, 1880, 2280))) as document:
        assert tiles_of(document.pages[0], 448) == []


def test_a_page_never_has_more_tiles_than_allowed() -> None:
    with open_document(pdf_of_pages([contents(3)], media_box=A4)) as document:
        assert 1 < len(tiles_of(document.pages[0], 224, max_tiles=20)) <= 20


def test_blank_pages_need_no_tiles() -> None:
    with open_document(Image.new("RGB", (2000, 3000), "white")) as document:
        assert tiles_of(document.pages[0], 224) == []


def test_a_page_of_faint_small_print_is_not_blank_and_one_of_noise_is() -> None:
    faint = Image.new("L", (1654, 2339), "white")
    ImageDraw.Draw(faint).text(
        (200, 300), "Total amount 12.50 EUR", fill=170, font=ImageFont.load_default(20)
    )
    noise = np.random.default_rng(0).normal(245, 10, (2339, 1654)).clip(0, 255).astype(np.uint8)
    assert not open_document(faint).pages[0].is_blank
    assert open_document(Image.fromarray(noise)).pages[0].is_blank
