"""Hebrew and Arabic: text layers in the order in which they are read, and found where written."""

from __future__ import annotations

import numpy as np
import pypdfium2
import pytest

from paligemma.documents.direction import (
    order_on_page,
    text_on_page,
    word_as_read,
    words_as_read,
)
from paligemma.documents.page import Word
from paligemma.documents.read import DocumentText, Line, PageText, _joined
from paligemma.documents.searchable import to_searchable_pdf
from paligemma.documents.text_layer import lines_of_words
from paligemma.documents.text_of_lines import ReadLine
from paligemma.documents.write import words_of_line

HEBREW = "שלום עולם 12, תל אביב"


@pytest.mark.parametrize(
    ("read", "on_page"),
    [
        ("Total 12.50 EUR", "Total 12.50 EUR"),
        ("אב 12.50 גד", "דג 12.50 בא"),
        ("אב ABC Model 12 גד", "דג ABC Model 12 בא"),
        ("say אב גד (now)", "say דג בא (now)"),
        ("אב (גד)", "(דג) בא"),
        ("אב: 03 1234", "1234 03 :בא"),
        ("مبلغ 10/25", "10/25 غلبم"),
    ],
)
def test_a_line_stands_on_the_page_as_the_unicode_algorithm_says(read: str, on_page: str) -> None:
    assert text_on_page(read) == on_page
    assert sorted(order_on_page(read)) == list(range(len(read)))


@pytest.mark.parametrize(
    ("from_left", "of_page", "read"),
    [
        ("Total 12.50 EUR", "R", "Total 12.50 EUR"),
        ("3 12.90", "L", "3 12.90"),
        ("12.90 3", "R", "3 12.90"),
        ("אביב תל ,12 הרצל", "L", "הרצל 12, תל אביב"),
        ("עולם ABC Model 12 X שלום", "L", "שלום ABC Model 12 X עולם"),
        ("say עולם 12 שלום now", "R", "say שלום 12 עולם now"),
        ("Model שלום", "L", "Model שלום"),
        ("Model שלום", "R", "שלום Model"),
    ],
)
def test_words_of_a_line_are_read_in_its_direction(from_left: str, of_page: str, read: str) -> None:
    assert " ".join(words_as_read(from_left.split(), of_page)) == read  # type: ignore[arg-type]


def test_letters_given_as_they_stand_are_put_in_the_order_in_which_they_are_read() -> None:
    assert word_as_read("25-غلبم") == "مبلغ-25"
    assert word_as_read("ב\u05b8א") == "אב\u05b8"


def test_a_right_to_left_table_of_a_text_layer_is_read_from_the_right() -> None:
    def word(text: str, x: float, y: float) -> Word:
        return Word(text, (x, y, x + 30, y + 10))

    words = [
        *(word("תיאור", 170, 0), word("כמות", 90, 0), word("מחיר", 10, 0)),
        *(word("מחברת", 170, 20), word("קטנה", 137, 20), word("3", 90, 20), word("12.90", 10, 20)),
    ]
    assert [line.text for line in lines_of_words(words)] == [
        "תיאור כמות מחיר",
        "מחברת קטנה 3 12.90",
    ]


def test_what_is_read_from_right_to_left_is_found_in_a_searchable_pdf_where_it_stands() -> None:
    line = Line(text=HEBREW, box_xyxy=(100, 20, 500, 60), score=0.9, page=1, source="model")
    page = PageText(page=1, size_wh=(600.0, 200.0), unit="px", turned=0, lines=(line,))
    text = DocumentText(name="a", source="model", pages=(page,))
    image = np.full((200, 600, 3), 255, np.uint8)
    with pypdfium2.PdfDocument(to_searchable_pdf(image, text)) as pdf:
        shown = pdf[0].get_textpage()
        first, second = (shown.search(part).get_next() for part in ("שלום עולם", "תל אביב"))
        assert first is not None
        assert second is not None
        assert shown.get_charbox(first[0])[0] > shown.get_charbox(second[0])[2]
    boxes = dict(words_of_line(line))
    assert boxes["שלום"][2] == 500
    assert boxes["אביב"][0] == 100


def test_parts_of_a_line_from_tiles_side_by_side_are_joined_in_its_direction() -> None:
    parts = [ReadLine("תל אביב", (0, 0, 50, 9), 0.9), ReadLine("שלום עולם", (60, 0, 99, 9), 0.9)]
    assert _joined(parts).text == "שלום עולם תל אביב"
