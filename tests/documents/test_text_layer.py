"""The text layer as lines: words in form fields, and words that do not run from left to right."""

from __future__ import annotations

import io
import math
from dataclasses import replace

import pytest
from PIL import Image

from paligemma.documents import DocumentLimits, ReadOptions, open_document, read_document
from paligemma.documents.pdf import _SPACE, _Letter, _words_of
from paligemma.documents.searchable import to_searchable_pdf
from tests.documents.pdf_files import pdf_of_pages, stream, text_at
from tests.documents.readers import ScriptedReader, text_result

A4 = "0 0 595 842"
LAYER = ReadOptions(source="text layer")
UPWARDS, DOWNWARDS, UPSIDE_DOWN = "0 1 -1 0", "0 -1 1 0", "-1 0 0 -1"


def lines_of(*contents: bytes, rotate: int = 0) -> list[str]:
    """The lines of a page of the contents, on which most text is upright."""
    upright = b"".join(text_at(60, 700 - 20 * i, "most of the page is upright") for i in range(4))
    data = pdf_of_pages(
        [upright + b"".join(contents)], media_box=A4, page_extra=f"/Rotate {rotate}"
    )
    read = read_document(None, data, LAYER)  # type: ignore[arg-type]
    lines = read.text.split("\n")
    assert lines[:4] == ["most of the page is upright"] * 4
    return lines[4:]


def scan_with_field(value: str = "Ann Walker", *, scan: bool = True) -> bytes:
    """A page with a form field, above the image of a paper where there is a `scan`."""
    file = io.BytesIO()
    paper = Image.new("L", (200, 100), "white")
    paper.paste(0, (20, 20, 60, 40))
    paper.save(file, "JPEG")
    image = stream(
        file.getvalue(),
        b"/Type /XObject /Subtype /Image /Width 200 /Height 100 /ColorSpace /DeviceGray "
        b"/BitsPerComponent 8 /Filter /DCTDecode",
    )
    field = (
        f"<< /Type /Annot /Subtype /Widget /FT /Tx /T (name) /V ({value}) /F 4 "
        "/Rect [120 20 180 40] >>"
    )
    return pdf_of_pages(
        [b"q 200 0 0 100 0 0 cm /I Do Q" if scan else b""],
        page_extra="/Annots [6 0 R]",
        catalog_extra="/AcroForm << /Fields [6 0 R] >>",
        more_objects=[field.encode(), image],
    ).replace(b"/Font << /F1 3 0 R >>", b"/XObject << /I 7 0 R >>")


@pytest.mark.parametrize("scan", [False, True])
def test_what_was_filled_in_is_known_where_nothing_else_is(scan: bool) -> None:
    read = read_document(None, scan_with_field(scan=scan), LAYER)  # type: ignore[arg-type]
    assert read.text == "Ann Walker"
    assert read.lines[0].box_xyxy == pytest.approx((120, 60, 180, 80), abs=0.1)
    assert read.problems == (
        "page 1: no text layer: only what was filled into form fields is known",
    )


def test_a_scan_with_a_form_field_is_read_and_turned_as_any_other_scan() -> None:
    with open_document(scan_with_field()) as document:
        [page] = document.pages
        assert [word.text for word in page.words] == ["Ann", "Walker"]
        assert not page.has_text_layer
    reader = ScriptedReader(lambda image: text_result("what the model says"))
    read = read_document(reader, scan_with_field())
    assert len(reader.seen) == 5  # four turns were tried
    made = to_searchable_pdf(scan_with_field(), read)
    with open_document(made) as document:
        assert "says" in [word.text for word in document.pages[0].words]
        assert document.pages[0].has_text_layer


@pytest.mark.parametrize("matrix", [UPWARDS, DOWNWARDS, UPSIDE_DOWN])
@pytest.mark.parametrize("rotate", [0, 90])
def test_words_that_run_another_way_are_a_line_along_their_own_direction(
    matrix: str, rotate: int
) -> None:
    label = text_at(300, 300, "Revenue in kEUR", matrix=matrix)
    assert lines_of(label, rotate=rotate) == ["Revenue in kEUR"]


@pytest.mark.parametrize(("matrix", "step"), [(UPWARDS, 6), (DOWNWARDS, -6)])
def test_letters_that_touch_along_their_direction_are_one_word(matrix: str, step: int) -> None:
    letters = [text_at(300, 300 + step * i, "kE"[i], matrix=matrix) for i in range(2)]
    assert lines_of(*letters) == ["kE"]


def test_labels_of_an_axis_that_stand_upright_are_read_one_after_the_other() -> None:
    labels = [text_at(100 + 30 * i, 300, f"Jan {2020 + i}", matrix=UPWARDS) for i in range(3)]
    assert lines_of(*labels) == ["Jan 2020", "Jan 2021", "Jan 2022"]


def test_labels_next_to_each_other_are_read_from_left_to_right_whatever_their_length() -> None:
    left, right = "Revenue", "Number of customers"
    labels = [
        text_at(x, 300, text, matrix=UPWARDS)
        for x, text in ((60, left), (74, "in EUR"), (500, right))
    ]
    assert lines_of(*labels) == [left, "in EUR", right]


def test_a_label_at_the_side_takes_no_row_of_the_page_into_its_line() -> None:
    ticks = [text_at(80, 300 - 20 * i, str(60 - 20 * i)) for i in range(3)]
    label = text_at(70, 275, "Revenue", matrix=UPWARDS)
    assert lines_of(label, *ticks) == ["Revenue", "60", "40", "20"]


@pytest.mark.parametrize("degrees", [15, 44, 46, 75, -30, -60])
@pytest.mark.parametrize("rotate", [0, 90])
def test_slanted_labels_next_to_each_other_are_lines_along_their_own_direction(
    degrees: int, rotate: int
) -> None:
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    matrix = f"{cos:.4f} {sin:.4f} {-sin:.4f} {cos:.4f}"
    labels = [f"Product number {number}" for number in range(3)]
    contents = [text_at(60 + 80 * i, 400, label, 9, matrix) for i, label in enumerate(labels)]
    # The page is turned back, since most of its text is upright.
    assert lines_of(*contents, rotate=rotate) == labels


@pytest.mark.parametrize("matrix", ["0.7071 0.7071 -0.7071 0.7071", "1 0 0 1"])
def test_a_watermark_comes_last_and_leaves_the_columns_below_it_as_they_are(matrix: str) -> None:
    rows = range(30)
    left = [f"Line {number} of the left column of text" for number in rows]
    right = [f"Line {number} of the column at the right" for number in rows]
    columns = b"".join(
        text_at(50, 600 - 16 * i, left[i], 9) + text_at(320, 600 - 16 * i, right[i], 9)
        for i in rows
    )
    mark = text_at(150, 230, "DRAFT COPY", 60, matrix)
    read = lines_of(mark, columns)
    assert read[:60] == left + right
    assert " ".join(read[60:]) == "DRAFT COPY"


def test_what_stands_outside_of_the_displayed_part_of_the_sheet_is_not_read() -> None:
    content = text_at(20, 140, "Total 12.50") + text_at(-90, 140, "slug") + text_at(20, 20, "below")
    data = pdf_of_pages(
        [content], media_box="-100 -50 350 350", page_extra="/CropBox [0 100 220 200]"
    )
    assert read_document(None, data, LAYER).text == "Total 12.50"  # type: ignore[arg-type]


def test_a_comment_typed_onto_the_page_is_read_as_a_filled_field_is() -> None:
    comment = b"<< /Type /Annot /Subtype /FreeText /F %d /Contents (%b) /Rect [%b] >>"
    data = pdf_of_pages(
        [text_at(20, 60, "Name:")],
        page_extra="/Annots [6 0 R 7 0 R]",
        more_objects=[
            comment % (4, b"Ann Walker", b"80 55 180 75"),
            comment % (2, b"hidden", b"80 20 180 40"),
        ],
    )
    with open_document(data) as document:
        words = document.pages[0].words
        assert read_document(None, document, LAYER).text == "Name: Ann Walker"  # type: ignore[arg-type]
    assert [word.is_filled_in for word in words] == [False, True, True]


def test_form_fields_take_no_longer_than_a_page_may() -> None:
    limits = DocumentLimits(max_seconds_per_page=0.0)
    with open_document(scan_with_field(scan=False), limits=limits) as document:
        [page] = read_document(None, document, LAYER).pages  # type: ignore[arg-type]
    assert page.error is not None
    assert "longer than 0 s" in page.error


def test_white_space_that_pdfium_guesses_between_letters_that_touch_ends_no_word() -> None:
    guess = replace(_SPACE, is_guessed=True)

    def letter(text: str, x: float, y: float = 0.0) -> _Letter:
        return _Letter(text, (x, y, x + 6, y + 12), 0.0, 5.0)

    letters = [letter("T", 0), guess, letter("o", 6), guess, letter("5", 16), letter("7", 22)]
    stacked = [letter("1", 60), guess, guess, letter("2", 60, 12), guess, letter("3", 60, 24)]
    words = _words_of([*letters, guess, *stacked])
    assert [word.text for word in words] == ["To", "57", "1", "2", "3"]
