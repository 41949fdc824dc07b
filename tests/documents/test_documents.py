"""Opening documents: pages, sizes, turning, the text layer, rendering, finding."""

from __future__ import annotations

import io
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from paligemma.documents import (
    Document,
    DocumentLimits,
    Word,
    find_on_page,
    open_document,
    whole,
)
from paligemma.documents.open import page_numbers
from paligemma.errors import DocumentError, ImageError, OptionError
from paligemma.processor.image import load_image
from tests.documents.pdf_files import pdf_of_pages, text_at

HELLO = text_at(20, 70, "Hello brave world")
# A black square whose upper left corner is at (20, 10) from the top left of a page of 200 x 100.
SQUARE = b"0 g 20 70 20 20 re f\n"


def tiff_of(images: list[Image.Image], **options: Any) -> bytes:
    file = io.BytesIO()
    images[0].save(file, "TIFF", save_all=True, append_images=images[1:], **options)
    return file.getvalue()


def black_box(image: Image.Image) -> tuple[int, int, int, int] | None:
    return image.convert("L").point(lambda level: 255 if level < 128 else 0).getbbox()


def test_pdf_pages_have_size_words_and_number() -> None:
    with open_document(pdf_of_pages([HELLO, b""])) as document:
        assert document.num_pages == len(document.pages) == 2
        first, second = document.pages
    assert (first.number, second.number) == (1, 2)
    with open_document(pdf_of_pages([HELLO, b""])) as document:
        first, second = document.pages
        assert first.size_wh == (200.0, 100.0)
        assert first.unit == "pt"
        assert [word.text for word in first.words] == ["Hello", "brave", "world"]
        assert second.words == ()
        assert not first.is_blank
        assert second.is_blank


def test_word_boxes_are_in_points_from_the_top_left() -> None:
    with open_document(pdf_of_pages([HELLO])) as document:
        x0, y0, x1, y1 = document.pages[0].words[0].box_xyxy
    assert x0 == pytest.approx(20, abs=1)
    assert y0 < 30 < y1  # the baseline is 30 points from the top
    assert 40 < x1 < 55


@pytest.mark.parametrize("rotation", [0, 90, 180, 270, -90])
def test_rotate_is_undone_by_the_direction_of_the_text(rotation: int) -> None:
    data = pdf_of_pages([HELLO], page_extra=f"/Rotate {rotation}")
    upright = pdf_of_pages([HELLO])
    with open_document(data) as document, open_document(upright) as other:
        page, expected = document.pages[0], other.pages[0]
        assert page.turned == -rotation % 360
        assert page.size_wh == expected.size_wh
        for word, same in zip(page.words, expected.words, strict=True):
            assert word.text == same.text
            assert word.box_xyxy == pytest.approx(same.box_xyxy, abs=0.01)
        drawn = np.asarray(page.render(size_wh=(400, 200)).convert("L"), dtype=int)
        same_drawn = np.asarray(expected.render(size_wh=(400, 200)).convert("L"), dtype=int)
        assert np.abs(drawn - same_drawn).mean() < 2


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_text_that_runs_sideways_on_the_page_turns_it(rotation: int) -> None:
    upwards = text_at(50, 20, "Upwards", matrix="0 1 -1 0")  # turned 90 degrees counterclockwise
    data = pdf_of_pages([upwards], page_extra=f"/Rotate {rotation}")
    with open_document(data) as document:
        [page] = document.pages
        assert page.turned == (90 - rotation) % 360
        assert page.size_wh == (100.0, 200.0)
        [word] = page.words
        assert word.text == "Upwards"
        assert word.box_xyxy[2] - word.box_xyxy[0] > 3 * (word.box_xyxy[3] - word.box_xyxy[1])
        assert black_box(page.render(word.box_xyxy, size_wh=(300, 60))) is not None


def test_a_crop_box_that_does_not_begin_at_the_origin_moves_words() -> None:
    cropped = pdf_of_pages([HELLO], page_extra="/CropBox [10 50 150 90]")
    with open_document(cropped) as document:
        [page] = document.pages
        assert page.size_wh == (140.0, 40.0)
        assert page.words[0].box_xyxy[0] == pytest.approx(10, abs=1)
        assert page.words[0].box_xyxy[1] < 20 < page.words[0].box_xyxy[3]


@pytest.mark.parametrize("turn", [0, 90, 180, 270])
def test_a_part_is_rendered_at_exactly_the_size_asked_for(turn: int) -> None:
    with open_document(pdf_of_pages([SQUARE])) as document:
        page = document.pages[0].turn(turn)
        box = black_box(page.render(size_wh=(int(4 * page.size_wh[0]), int(4 * page.size_wh[1]))))
        assert box is not None
        part = (box[0] / 4, box[1] / 4, box[2] / 4, box[3] / 4)
        image = page.render(part, size_wh=(50, 70))
    assert image.mode == "RGB"
    assert image.size == (50, 70)
    assert np.asarray(image).max() == 0


def test_tiles_map_boxes_back_to_the_page() -> None:
    with open_document(pdf_of_pages([SQUARE])) as document:
        tile = whole(document.pages[0])
        image = tile.image(448)
        assert image.size_wh == (896, 448)
        assert tile.image(448) is image
        assert tile.reader(448)() is image
        assert tile.reader(448) is tile.reader(448)
        box = black_box(image.rgb)
        assert box is not None
        assert tile.to_page(box) == pytest.approx((20, 10, 40, 30), abs=0.3)
        tile.release()
        assert tile.to_page(box) == pytest.approx((20, 10, 40, 30), abs=0.3)


def test_a_tile_without_an_image_says_what_to_do() -> None:
    with (
        open_document(pdf_of_pages([SQUARE])) as document,
        pytest.raises(OptionError, match="image\\(resolution\\)"),
    ):
        whole(document.pages[0]).to_page((0, 0, 1, 1))


def test_small_letters_give_the_height_of_print() -> None:
    contents = text_at(20, 70, "anaconda camera", 20) + text_at(20, 20, "sum of moves", 10)
    with open_document(pdf_of_pages([contents])) as document:
        height = document.pages[0].print_height()
    assert height == pytest.approx(5.3, abs=0.3)  # of Helvetica at 10 points


def test_the_height_of_print_is_measured_from_ink_where_there_is_no_text() -> None:
    contents = [text_at(20, 150 - 20 * line, "some more moans on acorns", 12) for line in range(6)]
    page = pdf_of_pages([b"".join(contents)], media_box="0 0 200 200")
    with open_document(page) as document:
        image = document.pages[0].render(size_wh=(800, 800))
        from_text = document.pages[0].print_height()
    with open_document(image) as document:
        from_ink = document.pages[0].print_height()
    assert from_text is not None
    assert from_ink == pytest.approx(4 * from_text, rel=0.15)


def test_tiff_pages_and_images_are_documents(tmp_path: Path) -> None:
    colors = ["red", "white", "blue"]
    data = tiff_of([Image.new("RGB", (30, 20), color) for color in colors])
    with open_document(data) as document:
        assert document.num_pages == 3
        pages = list(document.pages)
        assert [page.unit for page in pages] == ["px"] * 3
        assert pages[2].render(size_wh=(3, 2)).getpixel((0, 0)) == (0, 0, 255)
        assert pages[0].render(size_wh=(3, 2)).getpixel((0, 0)) == (255, 0, 0)
    path = tmp_path / "image.dat"
    Image.new("L", (30, 20), 7).save(path, "PNG")
    for source in (path, str(path), path.read_bytes(), Image.open(path), load_image(path)):
        with open_document(source) as document:
            [page] = document.pages
            assert page.size_wh == (30.0, 20.0)
            assert page.render((10, 10, 20, 20), size_wh=(2, 2)).getpixel((0, 0)) == (7, 7, 7)
            assert page.words == ()
            assert document.attachments == ()


@pytest.mark.parametrize("mode", ["1", "L", "I;16", "CMYK"])
def test_tiff_modes(mode: str) -> None:
    white: Any = {"1": 1, "L": 255, "I;16": 65535, "CMYK": (0, 0, 0, 0)}[mode]
    image = Image.new(mode, (40, 30), white)
    with open_document(tiff_of([image, image])) as document:
        assert document.pages[1].render(size_wh=(4, 3)).getpixel((1, 1)) == (255, 255, 255)
        assert document.pages[1].is_blank


def test_an_open_document_is_not_closed_by_who_borrows_it() -> None:
    with open_document(pdf_of_pages([HELLO, b"", HELLO])) as document:
        with open_document(document, pages="3") as same:
            assert isinstance(same, Document)
            assert [page.number for page in same.pages] == [3]
        assert len(document.pages[0].words) == 3
    with pytest.raises(DocumentError, match="is closed"):
        _ = document.pages[0].words


def test_attachments_are_read_when_asked_for() -> None:
    embedded = b"<< /Type /EmbeddedFile /Length 9 >>\nstream\n<xml>1</>\nendstream"
    filespec = "<< /Type /Filespec /F (../a.xml) /UF (../a.xml) /EF << /F 6 0 R >> >>"
    names = f"/Names << /EmbeddedFiles << /Names [(a) {filespec}] >> >>"
    data = pdf_of_pages([b""], catalog_extra=names, more_objects=[embedded])
    with open_document(data) as document:
        [attachment] = document.attachments
        assert attachment.name == "../a.xml"
        assert attachment.data() == b"<xml>1</>"


def test_pages_are_chosen_by_number() -> None:
    assert page_numbers("1-3,7,9-", 10) == [1, 2, 3, 7, 9, 10]
    assert page_numbers([2, 1, 2], 3) == [1, 2]
    for wrong in ("0", "4", "2-1", "a", "", "1-4", "-2"):
        with pytest.raises(OptionError, match="pages are"):
            page_numbers(wrong, 3)


def test_more_pages_than_the_limit_are_refused_with_advice() -> None:
    data = pdf_of_pages([b""] * 12)
    limits = DocumentLimits(max_pages=10)
    with pytest.raises(DocumentError, match=r"has 12 pages; the limit is 10\. .*1-10"):
        open_document(data, limits=limits)
    with open_document(data, pages="3-12", limits=limits) as document:
        assert [page.number for page in document.pages] == list(range(3, 13))


def test_pdfs_are_read_by_several_threads() -> None:
    data = pdf_of_pages([HELLO] * 8)
    failed: list[BaseException] = []

    def read() -> None:
        try:
            for _ in range(3):
                with open_document(data) as document:
                    for page in document.pages:
                        assert len(page.words) == 3
                        assert black_box(page.render(size_wh=(200, 100)))
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []


def test_find_on_page() -> None:
    texts = ["Invoice", "No.", "RE-2017/505", "Total:", "571.04", "EUR", "Künst-", "lerin", "(Ann"]
    words = [Word(text, (10.0 * i, 0.0, 10.0 * i + 9, 5.0)) for i, text in enumerate(texts)]
    assert find_on_page(words, "571.04") == (40, 0, 49, 5)
    assert find_on_page(words, "re-2017 / 505") == (20, 0, 29, 5)
    assert find_on_page(words, "571.04 EUR") == (40, 0, 59, 5)
    assert find_on_page(words, "künstlerin") == (60, 0, 79, 5)
    quoted = [Word("l’Étoile", (0, 0, 9, 5)), Word("“d’or”", (20, 0, 29, 5))]
    assert find_on_page(quoted, 'L\'Étoile "D´or"') == (0, 0, 29, 5)
    assert find_on_page(words, "ann") == (80, 0, 89, 5)
    assert find_on_page(words, "505") == (20, 0, 29, 5)
    assert find_on_page(words, "571") is None
    assert find_on_page(words, "04") is None
    assert find_on_page(words, "71.04") is None
    assert find_on_page(words, "voice") is None
    assert find_on_page(words, "") is None
    assert find_on_page(words, "Total EUR") is None


@pytest.mark.parametrize("source", [b"", b"garbage" * 9, b"<svg></svg>", Path("no/such/file.pdf")])
def test_what_is_no_document_is_refused(source: bytes | Path) -> None:
    with pytest.raises(ImageError):
        open_document(source)


def test_a_page_of_a_tiff_file_that_is_intact_but_of_unknown_values_is_not_called_damaged() -> None:
    file = io.BytesIO()
    Image.fromarray(np.full((20, 30), 200, np.float32)).save(file, "TIFF")
    with (
        open_document(file.getvalue()) as document,
        pytest.raises(DocumentError, match=r"cannot be read\. .*values from 200 to 200") as error,
    ):
        document.pages[0].render(size_wh=(30, 20))
    assert "damaged" not in str(error.value)
