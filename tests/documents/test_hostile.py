"""Files that are damaged, enormous or malicious end in one line of reason, never in a crash."""

from __future__ import annotations

import io
import re
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from paligemma.documents import (
    DocumentLimits,
    ReadOptions,
    find_on_page,
    open_document,
    read_document,
    tiles_of,
    whole,
)
from paligemma.documents.image_pages import _count_pages
from paligemma.errors import DocumentError, ImageError, OptionError
from tests.documents.pdf_files import pdf, pdf_of_pages, stream, text_at
from tests.documents.readers import ScriptedReader, text_result
from tests.documents.test_documents import HELLO, tiff_of

READER = ScriptedReader(lambda image: text_result("words"))


def one_line(error: Exception) -> str:
    text = str(error)
    assert "\n" not in text
    assert len(text) < 400
    assert text.endswith(".") or "--password" in text
    return text


@pytest.mark.parametrize("length", [5, 20, 200, 400, -1])
def test_pdfs_that_are_cut_short(length: int) -> None:
    data = pdf_of_pages([HELLO])[: length if length > 0 else -30]
    try:
        with open_document(data) as document:  # pdfium rebuilds some of them
            read_document(READER, document)
    except ImageError as error:
        one_line(error)


def test_every_cut_of_a_pdf_and_a_tiff_has_an_end() -> None:
    for data in (pdf_of_pages([HELLO, b""]), tiff_of([Image.new("L", (50, 40), 200)] * 3)):
        for length in range(0, len(data), max(1, len(data) // 60)):
            try:
                with open_document(data[:length]) as document:
                    for page in document.pages:
                        page.render(size_wh=(20, 20))
            except ImageError as error:
                one_line(error)


def test_random_damage_is_survived() -> None:
    generator = np.random.default_rng(0)
    for data in (pdf_of_pages([HELLO, HELLO]), tiff_of([Image.new("L", (50, 40), 200)] * 3)):
        for _ in range(60):
            damaged = bytearray(data)
            for at in generator.integers(0, len(data), 8):
                damaged[at] = generator.integers(0, 256)
            try:
                with open_document(bytes(damaged)) as document:
                    for page in document.pages:
                        assert page.words is not None
                        page.render(size_wh=(20, 20))
            except ImageError as error:
                one_line(error)


def test_empty_files(tmp_path: Path) -> None:
    (tmp_path / "empty.pdf").write_bytes(b"")
    with pytest.raises(DocumentError, match=r"'empty.pdf' is empty \(0 bytes\)"):
        open_document(tmp_path / "empty.pdf")
    with pytest.raises(DocumentError, match="is a folder"):
        open_document(tmp_path)
    no_pages = pdf([b"<< /Type /Catalog /Pages 2 0 R >>", b"<< /Type /Pages /Count 0 /Kids [] >>"])
    with pytest.raises(DocumentError, match=r"has no pages|can be read"):
        open_document(no_pages)


# Encrypted by 40-bit RC4, as PDF 1.4 has it: the user's password is "sesame".
def encrypted() -> bytes:
    import hashlib

    pad = bytes.fromhex("28bf4e5e4e758a4164004e56fffa01082e2e00b6d0683e802f0ca9fe6453697a")

    def rc4(key: bytes, data: bytes) -> bytes:
        box, j = list(range(256)), 0
        for i in range(256):
            j = (j + box[i] + key[i % len(key)]) % 256
            box[i], box[j] = box[j], box[i]
        out, i, j = bytearray(), 0, 0
        for byte in data:
            i = (i + 1) % 256
            j = (j + box[i]) % 256
            box[i], box[j] = box[j], box[i]
            out.append(byte ^ box[(box[i] + box[j]) % 256])
        return bytes(out)

    password, identifier = (b"sesame" + pad)[:32], b"0123456789abcdef"
    owner = rc4(hashlib.md5(password).digest()[:5], password)
    key = hashlib.md5(password + owner + struct.pack("<i", -4) + identifier).digest()[:5]
    user = rc4(key, pad)
    encrypt = (
        f"<< /Filter /Standard /V 1 /R 2 /P -4 /O <{owner.hex()}> /U <{user.hex()}> >>".encode()
    )
    content = rc4(hashlib.md5(key + b"\x05\0\0\0\0").digest()[:10], HELLO)
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Count 1 /Kids [4 0 R] >>",
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 200 100] /Contents 5 0 R "
        b"/Resources << /Font << /F1 3 0 R >> >> >>",
        stream(content),
        encrypt,
    ]
    hexed = identifier.hex()
    return pdf(objects, f"/Encrypt 6 0 R /ID [<{hexed}> <{hexed}>]".encode())


def test_passwords() -> None:
    with pytest.raises(DocumentError, match=r"^The document needs a password: --password"):
        open_document(encrypted())
    with pytest.raises(DocumentError, match="The password of the document is wrong"):
        open_document(encrypted(), password="open")
    with open_document(encrypted(), password="sesame") as document:
        assert [word.text for word in document.pages[0].words] == ["Hello", "brave", "world"]


def test_an_enormous_page_takes_the_memory_of_what_is_asked_for() -> None:
    huge = pdf_of_pages([text_at(4000, 4000, "Huge", 900)], media_box="0 0 8400 8400")
    with open_document(huge) as document:
        [page] = document.pages
        assert page.size_wh == (8400.0, 8400.0)
        image = whole(page).image(448)
        assert image.size_wh == (448, 448)
        assert len(tiles_of(page, 448)) <= 64
        with pytest.raises(OptionError, match="at most 50 megapixels"):
            page.render(size_wh=(23333, 23333))
        read_document(READER, document)


def test_five_thousand_pages_are_refused_or_chosen_from() -> None:
    data = pdf_of_pages([b""] * 5000)
    with pytest.raises(DocumentError, match="5000 pages; the limit is 1000"):
        open_document(data)
    started = time.monotonic()
    with open_document(data, pages="4999-") as document:
        assert [page.number for page in document.pages] == [4999, 5000]
    assert time.monotonic() - started < 10
    tiff = tiff_of([Image.new("1", (8, 8), 1)] * 1200)
    with pytest.raises(DocumentError, match="1200 pages; the limit is 1000"):
        open_document(tiff)


def test_scripts_of_a_document_do_not_run() -> None:
    script = "(app.alert\\('x'\\); this.getField\\('a'\\).value = 'changed';)"
    action = f"<< /S /JavaScript /JS {script} >>"
    names = f"/OpenAction {action} /AA << /WC {action} >> "
    names += f"/Names << /JavaScript << /Names [(a) {action}] >> >>"
    field = "<< /Type /Annot /Subtype /Widget /FT /Tx /T (a) /V (kept) /Rect [10 10 90 30] >>"
    data = pdf_of_pages(
        [HELLO],
        page_extra=f"/AA << /O {action} >> /Annots [{field}]",
        catalog_extra=names + " /AcroForm << /Fields [] >>",
    )
    with open_document(data) as document:
        words = [word.text for word in document.pages[0].words]
        assert words == ["Hello", "brave", "world", "kept"]
        document.pages[0].render(size_wh=(100, 50))
    import pypdfium2.raw as raw

    assert not hasattr(raw, "FPDF_GetRecommendedV8Flags") or "V8" not in repr(
        __import__("pypdfium2").PDFIUM_INFO.flags
    )


def test_links_and_launch_actions_are_not_followed() -> None:
    action = "<< /S /Launch /F (/bin/true) >>"
    uri = "<< /S /URI /URI (http://127.0.0.1:9/) >>"
    annotation = f"<< /Type /Annot /Subtype /Link /Rect [0 0 200 100] /A {uri} >>"
    data = pdf_of_pages(
        [HELLO], page_extra=f"/Annots [{annotation}]", catalog_extra=f"/OpenAction {action}"
    )
    with open_document(data) as document:
        assert len(document.pages[0].words) == 3


def test_form_fields_show_what_was_filled_in() -> None:
    appearance = stream(
        b"BT /F1 12 Tf 2 5 Td (Walker) Tj ET",
        b"/Type /XObject /Subtype /Form /BBox [0 0 80 20] /Resources << /Font << /F1 3 0 R >> >>",
    )
    field = (
        "<< /Type /Annot /Subtype /Widget /FT /Tx /T (name) /V (Walker) /F 4 "
        "/Rect [20 40 100 60] /AP << /N 6 0 R >> >>"
    )
    data = pdf_of_pages(
        [b""],
        page_extra=f"/Annots [{field}]",
        catalog_extra="/AcroForm << /Fields [] >>",
        more_objects=[appearance],
    )
    with open_document(data) as document:
        [page] = document.pages
        shown = np.asarray(page.render((20, 40, 100, 60), size_wh=(160, 40)).convert("L"))
        assert shown.min() < 100
        assert not page.is_blank


def test_what_was_filled_in_belongs_to_the_text_layer() -> None:
    def field(name: str, value: str, flags: int = 4, kind: str = "/Tx", more: str = "") -> str:
        return (
            f"<< /Type /Annot /Subtype /Widget /FT {kind} /T ({name}) /V ({value}) /F {flags} "
            f"/Rect [20 20 120 40] {more} >>"
        )

    shown = [field("name", "Ann Walker"), field("town", "Ulm", kind="/Ch", more="/Ff 131072")]
    unseen = [field("hidden", "Secret", 2), field("password", "Secret", more="/Ff 8192")]
    unseen.append(field("tick", "Secret", kind="/Btn"))
    names = [f"{6 + number} 0 R" for number in range(5)]
    data = pdf_of_pages(
        [HELLO],
        page_extra=f"/Rotate 180 /Annots [{' '.join(names)}]",
        catalog_extra=f"/AcroForm << /Fields [{' '.join(names)}] >>",
        more_objects=[each.encode() for each in (*shown, *unseen)],
    )
    with open_document(data) as document:
        words = document.pages[0].words
        assert [word.text for word in words[3:]] == ["Ann", "Walker", "Ulm"]
        # The page is turned back by its text, so that boxes are those of the file.
        assert document.pages[0].turned == 180
        assert find_on_page(words, "Ann Walker") == pytest.approx((20, 60, 120, 80), abs=0.1)


def test_pages_without_ink_and_text_are_flagged() -> None:
    unknown = b"q 1 0 0 1 0 0 cm /Nothing Do Q garbage ((("
    data = pdf_of_pages([b"", unknown, b"1 g 0 0 200 100 re f", HELLO])
    read = read_document(READER, data)
    blank = [page.page for page in read.pages if "blank: neither ink nor text" in page.problems]
    assert blank == [1, 2, 3]


@pytest.mark.parametrize(
    "media_box", ["0 0 0 0", "0 0 -5 9", "1e9 0 2e9 1e9", "a b c d", "0 0 1e-9 1e-9", "0 0 1e30 9"]
)
def test_odd_sizes_of_pages(media_box: str) -> None:
    data = pdf_of_pages([HELLO], media_box=media_box)
    try:
        with open_document(data) as document:
            [page] = read_document(READER, document).pages
            assert page.error is None or page.error.endswith(".")
    except ImageError as error:
        one_line(error)


def test_a_page_tree_that_runs_in_a_circle() -> None:
    data = pdf(
        [
            b"<< /Type /Catalog /Pages 2 0 R >>",
            b"<< /Type /Pages /Count 3 /Kids [2 0 R 2 0 R 3 0 R] >>",
            b"<< /Type /Pages /Count 3 /Kids [2 0 R] /Parent 3 0 R >>",
        ]
    )
    try:
        read_document(READER, data)
    except ImageError as error:
        one_line(error)


def test_content_that_unpacks_to_a_bomb() -> None:
    bomb = zlib.compress(b"0 0 m 9 9 l S\n" * 600_000, 9)
    data = pdf(
        [
            b"<< /Type /Catalog /Pages 2 0 R >>",
            b"<< /Type /Pages /Count 1 /Kids [3 0 R] >>",
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 200 100] /Contents 4 0 R >>",
            stream(bomb, b"/Filter /FlateDecode"),
        ]
    )
    started = time.monotonic()
    limits = DocumentLimits(max_seconds_per_page=0.5)
    with open_document(data, limits=limits) as document:
        [page] = read_document(READER, document).pages
    assert page.error is None or "longer than 0.5 s" in page.error
    assert time.monotonic() - started < 60


def test_the_time_of_a_page_is_limited() -> None:
    lines = b"".join(b"%d 0 m %d 99 l S\n" % (x % 200, (7 * x) % 200) for x in range(20_000))
    limits = DocumentLimits(max_seconds_per_page=0.0)
    with open_document(pdf_of_pages([lines]), limits=limits) as document:
        [page] = read_document(READER, document).pages
    assert page.error is not None
    assert "longer than 0 s" in page.error


def lying_tiff(width: int, height: int) -> bytes:
    """A file that declares a size which it does not have."""
    tags = [
        (256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1),
        (273, 4, 1, 200), (277, 3, 1, 1), (278, 4, 1, height), (279, 4, 1, 90_000),
    ]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    header = b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(tags)) + entries + bytes(4)
    return header.ljust(200, b"\0") + bytes(90_000)


@pytest.mark.parametrize("size", [(60_000, 60_000), (2**31 - 1, 2**31 - 1), (0, 0), (3000, 3000)])
def test_tiffs_that_lie_about_their_size(size: tuple[int, int]) -> None:
    with pytest.raises(ImageError) as raised, open_document(lying_tiff(*size)) as document:
        document.pages[0].render(size_wh=(10, 10))
    one_line(raised.value)


def test_tiff_pages_that_run_in_a_circle() -> None:
    data = bytearray(tiff_of([Image.new("L", (9, 9), 255)] * 2))
    first = struct.unpack("<I", data[4:8])[0]
    count = struct.unpack("<H", data[first : first + 2])[0]
    second = struct.unpack("<I", data[first + 2 + 12 * count :][:4])[0]
    count = struct.unpack("<H", data[second : second + 2])[0]
    at = second + 2 + 12 * count
    data[at : at + 4] = struct.pack("<I", first)
    with open_document(bytes(data)) as document:
        assert document.num_pages == 2
        read_document(READER, document)


@pytest.mark.parametrize("big", [False, True])
def test_a_tiff_of_endless_pages_is_refused_at_once(big: bool) -> None:
    """Pillow takes minutes to count 200,000 pages of 20 bytes."""
    if big:
        head, size = b"II" + struct.pack("<HHHQ", 43, 8, 0, 16), 8 + 20 + 8
        page = struct.pack("<QHHQQ", 1, 256, 4, 1, 9)
        pages = b"".join(page + struct.pack("<Q", 16 + size * n) for n in range(1, 200_000))
    else:
        head, size = b"II" + struct.pack("<HI", 42, 8), 2 + 12 + 4
        page = struct.pack("<HHHII", 1, 256, 4, 1, 9)
        pages = b"".join(page + struct.pack("<I", 8 + size * n) for n in range(1, 200_000))
    whole_one = io.BytesIO()
    Image.new("L", (50, 40), 200).save(whole_one, "TIFF", big_tiff=big)
    start = time.perf_counter()
    with pytest.raises(DocumentError, match=r"limit is 1000|damaged"):
        open_document(head + pages)
    assert time.perf_counter() - start < 5
    file = io.BytesIO(head + pages)
    assert _count_pages(file, 100_000) == 100_001
    assert _count_pages(io.BytesIO((head + pages)[: -size * 199_990]), 100_000) in (9, 10)
    assert _count_pages(whole_one, 100_000) == 1


def test_a_damaged_page_of_a_tiff_does_not_stop_the_others() -> None:
    noise = [Image.effect_noise((64, 64), 99) for _ in range(3)]
    data = bytearray(tiff_of(noise, compression="tiff_lzw"))
    with Image.open(io.BytesIO(data)) as tiff:
        tiff.seek(1)
        start = tiff.tag_v2[273][0]  # type: ignore[attr-defined]
    data[start : start + 40] = b"\xff" * 40
    pages = read_document(READER, bytes(data), ReadOptions(turn=False)).pages
    assert [page.error is None for page in pages][::2] == [True, True]


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_a_damaged_page_stays_damaged_however_often_it_is_asked_for(
    compression: str | None,
) -> None:
    """Pillow gives black pixels, which look like a blank page, when it is asked again."""
    noise = [Image.effect_noise((90, 90), 99), Image.effect_noise((90, 90), 99)]
    data = tiff_of(noise, compression=compression)
    with Image.open(io.BytesIO(data)) as tiff:
        starts = []
        for number in (0, 1):
            tiff.seek(number)
            starts.append(tiff._frame_pos[number])  # type: ignore[attr-defined]
    first, second = starts
    table = bytearray(data)
    for place in range(second + 2, second + 2 + 12 * struct.unpack_from("<H", data, second)[0], 12):
        if struct.unpack_from("<H", data, place)[0] == 273:  # where its pixels are
            assert struct.unpack_from("<I", data, place + 4)[0] == 1
            struct.pack_into("<I", table, place + 8, len(data) - 100)
    with open_document(bytes(table)) as document:
        for _ in range(3):
            document.pages[0].render(size_wh=(20, 20))
            with pytest.raises(DocumentError, match=r"Page 2 .* damaged"):
                document.pages[1].render(size_wh=(20, 20))
            with pytest.raises(DocumentError, match=r"Page 2 .* damaged"):
                assert document.pages[1].is_blank
    assert first < second


def test_attachments_have_no_paths_and_a_limit() -> None:
    bomb = zlib.compress(bytes(70 * 2**20), 9)
    embedded = stream(bomb, b"/Type /EmbeddedFile /Filter /FlateDecode")
    filespec = "<< /Type /Filespec /F (/etc/passwd) /EF << /F 6 0 R >> >>"
    names = f"/Names << /EmbeddedFiles << /Names [(a) {filespec}] >> >>"
    data = pdf_of_pages([b""], catalog_extra=names, more_objects=[embedded])
    with open_document(data) as document:
        [attachment] = document.attachments
        with pytest.raises(DocumentError, match=r"larger than 64 MiB|damaged"):
            attachment.data()


def test_strangers_may_send_fewer_formats_and_smaller_files() -> None:
    limits = DocumentLimits(strict=True, max_file_bytes=100_000)
    with open_document(pdf_of_pages([HELLO]), limits=limits) as document:
        assert len(document.pages) == 1
    with pytest.raises(ImageError, match="supported"):
        open_document(b"P6 1 1 255 abc", limits=limits)
    with pytest.raises(DocumentError, match="larger than"):
        open_document(b"%PDF-1.7" + bytes(100_001), limits=limits)


MEMORY = """
import resource, sys
from paligemma.documents import open_document, read_document, ReadOptions, read_pages
from tests.documents.pdf_files import pdf_of_pages
from tests.documents.readers import ScriptedReader, text_result
from tests.documents.test_read import letter, lines_of_words
from tests.documents.test_layout import A4
reader = ScriptedReader(lambda image: text_result("words"), 224)
pages = pdf_of_pages([letter(lines_of_words(12))] * {pages}, media_box=A4)
with open_document(pages) as document:
    for number, page in enumerate(read_pages(reader, document.pages)):
        reader.seen.clear()
        if number + 1 in ({early}, {pages}):
            print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_does_not_grow_with_the_pages() -> None:
    code = MEMORY.format(pages=60, early=20)
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=600, check=True
    )
    early, late = map(int, re.findall(r"\d+", ran.stdout))
    assert late < early + 12_000  # kB
