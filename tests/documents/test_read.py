"""Reading documents: lines with boxes and scores, in order, with what went wrong."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from PIL import Image

from paligemma.documents import ReadOptions, find_on_page, open_document, read_document
from paligemma.documents.geometry import Box
from paligemma.documents.text_of_lines import lines_in_tile
from paligemma.errors import DocumentError, OptionError
from paligemma.fonts import Lettering
from paligemma.processor.image import LoadedImage
from paligemma.results import Text
from tests.documents.pdf_files import pdf_of_pages, text_at
from tests.documents.readers import (
    Letters,
    ScriptedReader,
    letters_in,
    perfect_reader,
    text_result,
    texts,
)
from tests.documents.test_layout import A4, contents
from tests.tasks.character_tokenizer import CharacterTokenizer

WORDS = "any of some more moss can serve as cover over acorns in even rows near our rose oaks"


def lines_of_words(count: int, per_line: int = 6) -> list[str]:
    words = WORDS.split()
    return [
        f"{line} " + " ".join(words[(line * 5 + index) % len(words)] for index in range(per_line))
        for line in range(count)
    ]


def letter(lines: list[str], *, size: float = 11, x: float = 60) -> bytes:
    return b"".join(
        text_at(x, 780 - 1.4 * size * number, line, size) for number, line in enumerate(lines)
    )


@pytest.mark.parametrize("line_breaks", [True, False])
@pytest.mark.parametrize("resolution", [224, 448, 896])
def test_a_page_is_read_line_by_line(resolution: int, line_breaks: bool) -> None:
    lines = lines_of_words(30)
    data = pdf_of_pages([letter(lines)], media_box=A4)
    with open_document(data) as document:
        reader = perfect_reader(document, resolution, line_breaks=line_breaks)
        [page] = read_document(reader, document).pages
        assert " ".join(texts(page)) == " ".join(lines)
        assert page.problems == ()
        if line_breaks:
            assert texts(page) == lines
        for line in page.lines:
            assert line.source == "model"
            assert line.page == 1
            assert line.score == pytest.approx(0.9)
            if line_breaks:
                box = find_on_page(document.pages[0].words, line.text)
                assert box is not None
                assert line.box_xyxy == pytest.approx(box, abs=5)


def test_columns_are_read_one_after_the_other() -> None:
    left, right = lines_of_words(25, 4), lines_of_words(25, 5)[::-1]
    heading = text_at(60, 810, "A heading across both of the columns of this page", 14)
    data = pdf_of_pages([heading + letter(left) + letter(right, x=330)], media_box=A4)
    with open_document(data) as document:
        [page] = read_document(perfect_reader(document, 896), document).pages
    assert texts(page)[0].startswith("A heading")
    assert texts(page)[1:] == left + right


def read_beside(
    left: list[str], right: list[str], *, gap: float, resolution: int = 448
) -> list[str]:
    """What is read of a page on which both stand side by side, line by line, between texts."""
    places = [(60.0, left), (60 + 5.5 * max(map(len, left)) + gap, right)]
    content = b"".join(
        text_at(x, 700 - 14 * number, text, 11)
        for x, column in places
        for number, text in enumerate(column)
    )
    content += b"".join(
        text_at(60, y - 14 * number, text, 11)
        for y in (780, 600)
        for number, text in enumerate(lines_of_words(4, 14))
    )
    with open_document(pdf_of_pages([content], media_box=A4)) as document:
        [page] = read_document(perfect_reader(document, resolution), document).pages
    return texts(page)[4:-4]


ANN = ["Ann Lee", "Weg 2", "1010 Wien"]
BOB = ["Bob Meier", "Hauptstr. 12", "12345 Berlin", "Tel. 030 12"]


@pytest.mark.parametrize("gap", [40, 150, 250])
@pytest.mark.parametrize(("left", "right"), [(ANN, BOB), (BOB, ANN), (ANN, ANN)])
def test_addresses_that_are_read_across_are_told_by_what_they_say(
    left: list[str], right: list[str], gap: float
) -> None:
    for resolution in (448, 896):
        read = read_beside(left, right, gap=gap, resolution=resolution)
        assert read == [*left, *right]


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (["Name", "Street", "Town", "Country"], ["Max Meier", "Weg 2", "12345 Berlin", "Austria"]),
        (["Name", "Ann", "Bob", "Cy"], ["Town", "12345 Berlin", "75001 Paris", "1010 Wien"]),
        (["Total", "VAT 19 %", "Sum"], ["10.00", "1.90", "11.90"]),
    ],
)
def test_labels_with_values_that_are_read_across_stay_so(left: list[str], right: list[str]) -> None:
    assert read_beside(left, right, gap=60) == [
        f"{label} {value}" for label, value in zip(left, right, strict=True)
    ]


@pytest.mark.parametrize("resolution", [224, 448])
def test_rows_of_tiles_side_by_side_are_joined_without_the_letters_that_tiles_cut_off(
    resolution: int,
) -> None:
    lines = lines_of_words(14, 18)
    data = pdf_of_pages([letter(lines)], media_box="0 0 640 842")
    with open_document(data) as document:
        reader = perfect_reader(document, resolution, shown_in=letters_in)
        [page] = read_document(reader, document).pages
    assert len(reader.seen) > 2
    assert texts(page) == lines


def test_a_wide_table_whose_halves_are_read_apart_is_read_row_by_row() -> None:
    rows = [[f"{r} Name of thing", "0.00", f"{r}.50", "0.00", "0.00", "19%"] for r in range(16)]
    places = [50, 260, 330, 480, 540, 600]
    content = b"".join(
        text_at(x, 500 - 20 * r, cell, 9)
        for r, row in enumerate(rows)
        for x, cell in zip(places, row, strict=True)
    )
    with open_document(pdf_of_pages([content], media_box="0 0 680 540")) as document:
        [page] = read_document(perfect_reader(document, 448), document).pages
    assert texts(page) == [" ".join(row) for row in rows]


def test_small_print_is_cut_and_joined_again() -> None:
    with open_document(pdf_of_pages([contents(6)], media_box=A4)) as document:
        reader = perfect_reader(document, 224)
        [page] = read_document(reader, document).pages
        truth = read_document(reader, document, ReadOptions(source="text layer")).pages[0]
    assert len(reader.seen) > 10
    assert texts(page) == texts(truth)


def test_without_tiles_the_page_is_asked_once() -> None:
    with open_document(pdf_of_pages([contents(6)], media_box=A4)) as document:
        reader = ScriptedReader(lambda image: text_result("a few words"), 224)
        read_document(reader, document, ReadOptions(tiles=False))
    assert len(reader.seen) == 1


def test_the_text_layer_is_read_only_when_asked_for() -> None:
    data = pdf_of_pages([text_at(20, 50, "Hello world"), b""])
    reader = ScriptedReader(lambda image: text_result("what the model says"))
    read = read_document(reader, data)
    assert read.text.startswith("what the model says")
    layer = read_document(reader, data, ReadOptions(source="text layer"))
    assert (layer.text, layer.source) == ("Hello world\f", "text layer")
    assert layer.lines[0].source == "text layer"
    assert layer.lines[0].score is None
    assert layer.problems == ("page 2: blank: neither ink nor text",)
    with pytest.raises(OptionError, match="'text layer'"):
        ReadOptions(source="ocr")  # type: ignore[arg-type]


def test_an_image_has_no_text_layer_and_says_so() -> None:
    image = Image.new("RGB", (200, 100), "white")
    image.paste((0, 0, 0), (20, 20, 40, 40))
    read = read_document(None, image, ReadOptions(source="text layer"))  # type: ignore[arg-type]
    assert read.problems == ("page 1: no text layer",)


def test_blank_pages_are_not_asked_about() -> None:
    reader = ScriptedReader(lambda image: text_result("made up"))
    read = read_document(reader, pdf_of_pages([b"", b""]))
    assert reader.seen == []
    assert read.text == "\f"
    assert len(read.problems) == 2


def scan(turn: int) -> Image.Image:
    """A page without a text layer that lies turned counterclockwise by this."""
    with open_document(pdf_of_pages([letter(lines_of_words(20))], media_box=A4)) as document:
        return document.pages[0].render(size_wh=(595, 842)).rotate(turn, expand=True)


@pytest.mark.parametrize("turn", [0, 90, 180, 270])
def test_scans_are_turned_the_way_they_are_read_best(turn: int) -> None:
    upright = np.asarray(scan(0).convert("L").resize((59, 84)), dtype=float)

    def read(image: LoadedImage) -> Text:
        if "0.0, 0.0" not in image.name:
            return text_result("words")
        seen = np.asarray(image.rgb.convert("L").resize((59, 84)), dtype=float)
        return text_result("words", 0.9 if np.abs(seen - upright).mean() < 5 else 0.4)

    [page] = read_document(ScriptedReader(read), scan(turn)).pages
    assert page.turned == turn
    assert page.size_wh == (595.0, 842.0)
    [unturned] = read_document(ScriptedReader(read), scan(turn), ReadOptions(turn=False)).pages
    assert unturned.turned == 0


def test_photos_are_read_as_a_whole() -> None:
    reader = ScriptedReader(lambda image: text_result("SOFA"))
    [page] = read_document(reader, "examples/scene.png", ReadOptions(turn=False)).pages
    [line] = page.lines
    assert (line.text, line.box_xyxy) == ("SOFA", (0, 0, *page.size_wh))
    assert len(reader.seen) == 1


def test_a_cut_answer_is_a_problem() -> None:
    reader = ScriptedReader(lambda image: text_result("and so on", stop_reason="length"))
    data = pdf_of_pages([letter(lines_of_words(3))], media_box=A4)
    [problem] = read_document(reader, data).problems
    assert "cut off after 9 tokens" in problem


def test_a_bad_page_does_not_stop_the_others() -> None:
    def read(image: LoadedImage) -> Text:
        if image.name.startswith("page 2 "):
            raise DocumentError("Page 2 is broken.")
        return text_result("fine")

    data = pdf_of_pages([letter(lines_of_words(3))] * 20, media_box=A4)
    pages = read_document(ScriptedReader(read), data).pages
    assert [page.error for page in pages] == [None, "Page 2 is broken.", *[None] * 18]
    assert [page.page for page in pages] == list(range(1, 21))
    assert pages[19].text == "fine"


def test_scores_are_those_of_each_line() -> None:
    text = "sure\nnot so"
    logprobs = [math.log(0.9)] * 5 + [math.log(0.2)] * 6
    answer = text_result(text, logprobs=tuple(logprobs))
    boxes = [[(0.0, 0.0, 40.0, 10.0)], [(0.0, 20.0, 60.0, 30.0)]]
    first, second = lines_in_tile(answer, boxes, Letters())
    assert (first.text, second.text) == ("sure", "not so")
    assert first.score == pytest.approx(0.9)
    assert second.score == pytest.approx(0.2)


@pytest.mark.parametrize("count", [1, 2, 5, 9])
def test_any_number_of_lines_fits_any_number_of_rows(count: int) -> None:
    rows = [[(0.0, 20.0 * row, 50.0 + row, 20.0 * row + 10)] for row in range(4)]
    for text in ("\n".join(["some words"] * count), " ".join(["word"] * count)):
        lines = lines_in_tile(text_result(text), rows, Letters())
        assert " ".join(line.text for line in lines) == " ".join(text.split())
        tops = [line.box[1] for line in lines]
        assert tops == sorted(tops)
    assert lines_in_tile(text_result("  \n"), rows, Letters()) == []


class CountingLetters(Letters):
    num_ids = 0

    def detokenize(self, ids: Sequence[int]) -> str:
        self.num_ids += len(ids)
        return super().detokenize(ids)


@pytest.mark.parametrize("separator", ["\n", " "])
def test_placing_a_dense_page_takes_time_in_proportion_to_its_length(separator: str) -> None:
    rows = [[(0.0, 20.0 * row, 500.0, 20.0 * row + 10)] for row in range(250)]
    text = separator.join(["twenty words of print"] * 250)
    tokens = CountingLetters()
    lines = lines_in_tile(text_result(text), rows, tokens)
    assert len(lines) == 250
    assert tokens.num_ids <= 4 * len(text)


def test_places_in_an_answer_are_shown_as_they_are_written() -> None:
    tokens = CharacterTokenizer()
    ids = tokens.tokenize_text("total<loc0012>\n571")
    answer = Text(
        text="total<loc0012>\n571",
        token_ids=tuple(ids),
        logprobs=(-0.1,) * len(ids),
        stop_reason="eos",
        score=0.9,
    )
    rows = [[(0.0, 0.0, 9.0, 5.0)], [(0.0, 9.0, 9.0, 14.0)]]
    assert [line.text for line in lines_in_tile(answer, rows, tokens)] == ["total<loc0012>", "571"]


def test_no_line_is_lost_where_the_model_sees_more_lines_than_the_ink() -> None:
    said = "first line\nsecond line\nthird line\nfourth line"
    reader = ScriptedReader(lambda image: text_result(said))
    data = pdf_of_pages([letter(lines_of_words(1))], media_box=A4)
    read = read_document(reader, data)
    assert [line.text for line in read.lines] == said.split("\n")


def test_lines_of_text_are_laid_on_the_rows_that_are_as_wide_as_they_are_long() -> None:
    """Other rows are none of print, such as the fold of a sheet, or a word that stands apart."""
    fold = (0.0, 30.0, 500.0, 34.0)
    rows = [(0.0, 0.0, 100.0, 10.0), fold, (0.0, 40.0, 250.0, 50.0), (0.0, 60.0, 50.0, 70.0)]

    def places(said: str, of: Sequence[Box]) -> list[Box]:
        lines = lines_in_tile(text_result(said), [[box] for box in of], Letters())
        assert " ".join(line.text for line in lines) == " ".join(said.split())
        return [line.box for line in lines]

    said = "ten letter\nand then twenty-five ones\nfive."
    assert places(said, rows) == [rows[0], rows[2], rows[3]]
    assert places(said, [fold, *rows[:1], *rows[2:]]) == [rows[0], rows[2], rows[3]]
    apart = [rows[0], (0.0, 40.0, 120.0, 50.0), (160.0, 41.0, 260.0, 51.0), rows[3]]
    assert places(said, apart) == [rows[0], (0.0, 40.0, 260.0, 51.0), rows[3]]
    broken = "ten letter\nand then\ntwenty-five ones\nfive."
    assert places(broken, [rows[0], *rows[2:]]) == [rows[0], rows[2], rows[2], rows[3]]
    assert len(places("a\n" * 40, rows)) == 40
    assert places("one line\nand two", [fold] * 9)


@pytest.mark.parametrize("slant", [2.5, -4.0])
def test_a_slanted_scan_is_read_line_by_line_with_boxes_on_the_page_as_it_is(slant: float) -> None:
    scan = Image.new("RGB", (1000, 1400), "white")
    lettering = Lettering(22)
    for number in range(20):
        text = f"{number} some more moss can serve as cover over acorns"
        lettering.draw(scan, (120, 150 + 44 * number), text, (0, 0, 0))
    slanted = scan.rotate(slant, Image.Resampling.BICUBIC, fillcolor="white")
    reader = ScriptedReader(lambda image: text_result("line\n" * 30))
    page = read_document(reader, slanted, ReadOptions(turn=False)).pages[0]
    boxes = sorted({line.box_xyxy for line in page.lines}, key=lambda box: box[1])
    assert len(boxes) == 20
    assert page.size_wh == (1000, 1400)
    ink = np.asarray(slanted.convert("L")) < 128
    covered = np.zeros_like(ink)
    for x0, y0, x1, y1 in boxes:
        assert (y1 - y0) < 22 + 1.3 * (x1 - x0) * abs(math.sin(math.radians(slant)))
        covered[int(y0) : math.ceil(y1), int(x0) : math.ceil(x1)] = True
    assert (ink & ~covered).sum() < 0.03 * ink.sum()
    # Each tile shows level lines: rows between them without ink.
    for image in reader.seen:
        rows = (np.asarray(image.rgb.convert("L")) < 128).any(axis=1)
        assert not rows.all()


def test_the_print_of_a_slanted_scan_is_as_high_as_that_of_a_straight_one() -> None:
    scan = Image.new("RGB", (1000, 1400), "white")
    for number in range(20):
        Lettering(22).draw(
            scan, (120, 150 + 44 * number), "some more moss on acorns " * 2, (0, 0, 0)
        )
    heights = []
    for slant in (0, 1, 3, 5):
        slanted = scan.rotate(slant, Image.Resampling.BICUBIC, fillcolor="white")
        with open_document(slanted) as document:
            heights.append(document.pages[0].print_height() or 0)
    assert max(heights) < 1.25 * min(heights)
