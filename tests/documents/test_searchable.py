"""Searchable PDF files: the pages are as they were, and the text is found where it stands."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageFont

from paligemma.documents import DocumentText, Line, PageText, find_on_page, open_document
from paligemma.documents.searchable import font_of_boxes, to_searchable_pdf
from tests.documents.pdf_files import pdf, pdf_of_pages, stream

BOX = (40.0, 20.0, 120.0, 40.0)
SQUARE = b"0 0 1 rg 20 70 20 20 re f\n"
WORDS = "Größe 漢字 Привет 😀 a&b <x>"


def read_text(*, turned: int = 0, size_wh: tuple[float, float] = (200.0, 100.0)) -> DocumentText:
    line = Line(text=WORDS, box_xyxy=BOX, score=0.9, page=1, source="model")
    page = PageText(page=1, size_wh=size_wh, unit="pt", turned=turned, lines=(line,))  # type: ignore[arg-type]
    return DocumentText(name="x.pdf", source="model", pages=(page,))


def pixels(data: bytes) -> np.ndarray:
    with open_document(data) as document:
        page = document.pages[0]
        page = page.turn(-page.turned)
        width, height = page.size_wh
        return np.asarray(page.render(size_wh=(round(2 * width), round(2 * height))))


@pytest.mark.parametrize("extra", ["", "/CropBox [10 5 150 155]"])
@pytest.mark.parametrize("rotate", [0, 90, 180, 270])
@pytest.mark.parametrize("turned", [0, 90, 180, 270])
def test_text_is_found_where_it_was_read(turned: int, rotate: int, extra: str) -> None:
    source = pdf_of_pages([SQUARE], media_box="0 0 200 160", page_extra=f"/Rotate {rotate} {extra}")
    with open_document(source) as document:
        size_wh = document.pages[0].turn(turned).size_wh
    made = to_searchable_pdf(source, read_text(turned=turned, size_wh=size_wh))
    assert np.array_equal(pixels(made), pixels(source))
    with open_document(made) as document:
        [page] = document.pages
        assert page.turned == turned
        assert [word.text for word in page.words] == WORDS.split()
        box = find_on_page(page.words, WORDS)
        assert box == pytest.approx(BOX, abs=1.0)
        word = find_on_page(page.words, "Привет")
    start, end = WORDS.index("П") + 0.0, WORDS.index("П") + 6.0
    total = len(WORDS.encode("utf-16-be")) / 2
    assert word is not None
    assert word[0] == pytest.approx(40 + 80 * start / total, abs=1)
    assert word[2] == pytest.approx(40 + 80 * end / total, abs=1)


def test_contents_that_leave_the_page_transformed_do_not_move_the_text() -> None:
    source = pdf_of_pages([b"0.5 0 0 0.5 30 30 cm\n" + SQUARE])
    made = to_searchable_pdf(source, read_text())
    assert np.array_equal(pixels(made), pixels(source))
    with open_document(made) as document:
        assert find_on_page(document.pages[0].words, WORDS) == pytest.approx(BOX, abs=1.0)


def test_the_images_of_a_pdf_stay_as_they_are() -> None:
    file = io.BytesIO()
    Image.effect_noise((64, 64), 90).save(file, "JPEG")
    image = stream(
        file.getvalue(),
        b"/Type /XObject /Subtype /Image /Width 64 /Height 64 /ColorSpace /DeviceGray "
        b"/BitsPerComponent 8 /Filter /DCTDecode",
    )
    source = pdf(
        [
            b"<< /Type /Catalog /Pages 2 0 R >>",
            b"<< /Type /Pages /Count 1 /Kids [3 0 R] >>",
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 200 100] /Contents 4 0 R "
            b"/Resources << /XObject << /I 5 0 R >> >> >>",
            stream(b"q 200 0 0 100 0 0 cm /I Do Q"),
            image,
        ]
    )
    made = to_searchable_pdf(source, read_text())
    assert file.getvalue() in made
    assert np.array_equal(pixels(made), pixels(source))


def test_a_text_layer_is_not_doubled() -> None:
    source = pdf_of_pages([b"BT /F1 12 Tf 20 70 Td (Hello) Tj ET"])
    with open_document(to_searchable_pdf(source, read_text())) as document:
        assert [word.text for word in document.pages[0].words] == ["Hello"]


@pytest.mark.parametrize("turned", [0, 90])
def test_images_become_pages_with_text(turned: int) -> None:
    image = Image.new("RGB", (400, 200), "white")
    image.paste((200, 30, 30), (40, 40, 80, 80))
    size_wh = (400.0, 200.0) if turned == 0 else (200.0, 400.0)
    line = Line(text="words on it", box_xyxy=BOX, score=0.9, page=1, source="model")
    page = PageText(page=1, size_wh=size_wh, unit="px", turned=turned, lines=(line,))  # type: ignore[arg-type]
    text = DocumentText(name="x.png", source="model", pages=(page,))
    with open_document(to_searchable_pdf(image, text)) as document:
        [made] = document.pages
        scale = 72 / 200
        assert made.size_wh == pytest.approx([side * scale for side in size_wh], abs=0.1)
        box = find_on_page(made.words, "words on it")
        assert box == pytest.approx([value * scale for value in BOX], abs=1)
        shown = np.asarray(made.turn(-turned).render(size_wh=(400, 200)).convert("RGB"), int)
    assert np.abs(shown - np.asarray(image, int)).mean() < 3


@pytest.mark.parametrize(
    ("dpi", "used"), [((204, 98), (204, 98)), ((300, 300), (300, 300)), ((72, 72), (200, 200))]
)
@pytest.mark.parametrize("kind", ["TIFF", "PNG"])
def test_pages_of_scans_and_faxes_are_as_large_as_their_paper(
    kind: str, dpi: tuple[int, int], used: tuple[int, int]
) -> None:
    file = io.BytesIO()
    Image.new("L", (400, 200), "white").save(file, kind, dpi=dpi)
    line = Line(text="words on it", box_xyxy=BOX, score=0.9, page=1, source="model")
    page = PageText(page=1, size_wh=(400.0, 200.0), unit="px", turned=0, lines=(line,))
    text = DocumentText(name="x", source="model", pages=(page,))
    with open_document(to_searchable_pdf(file.getvalue(), text)) as document:
        [made] = document.pages
        across, down = (72 / each for each in used)
        assert made.size_wh == pytest.approx((400 * across, 200 * down), abs=0.1)
        box = (BOX[0] * across, BOX[1] * down, BOX[2] * across, BOX[3] * down)
        assert find_on_page(made.words, "words on it") == pytest.approx(box, abs=1)


def test_the_font_is_one_that_others_read() -> None:
    font = ImageFont.truetype(io.BytesIO(font_of_boxes()), 100)
    assert font.getlength("abc") == pytest.approx(150)
