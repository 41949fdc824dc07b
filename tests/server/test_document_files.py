"""Documents of strangers: each is read by a process of its own, and ends well whatever it does."""

from __future__ import annotations

import io
import os
import signal
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from PIL import Image

from paligemma.documents.page import Document
from paligemma.documents.remote import RemotePages
from paligemma.errors import CancelledError, DocumentError, OptionError
from paligemma.sandbox.frames import LENGTHS, frame
from paligemma.sandbox.process import ReaderProcess
from paligemma.server.document_reader import DOCUMENTS, DocumentFile, ReaderPool
from paligemma.server.settings import Limits
from tests.documents.pdf_files import pdf_of_pages, stream, text_at

HELLO = text_at(20, 70, "Hello brave world")
TWO_PAGES = pdf_of_pages([HELLO, b""])


@pytest.fixture(scope="module")
def pool() -> Iterator[ReaderPool]:
    pool = ReaderPool(Limits(document_page_seconds=10, document_memory_bytes=512 * 2**20))
    yield pool
    pool.close()


@pytest.fixture
def open_in(pool: ReaderPool) -> Iterator[Callable[..., tuple[Document, ReaderProcess]]]:
    """Opens files; every process has ended after the test."""
    processes = []

    def open_file(
        data: bytes, pages: str | None = None, password: str | None = None
    ) -> tuple[Document, ReaderProcess]:
        process = pool.take()
        processes.append(process)
        file = DocumentFile(data=data, pages=pages, password=password)
        return pool.open(process, file), process

    yield open_file
    for process in processes:
        process.close()
        assert not process.is_running


Open = Callable[..., tuple[Document, ReaderProcess]]


def tiff_of(images: list[Image.Image]) -> bytes:
    file = io.BytesIO()
    images[0].save(file, "TIFF", save_all=True, append_images=images[1:])
    return file.getvalue()


def lying_tiff(width: int, height: int) -> bytes:
    """A TIFF file of a few bytes whose only page claims this size."""
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 1),
            (262, 3, 1, 1), (273, 4, 1, 8), (277, 3, 1, 1), (278, 4, 1, height),
            (279, 4, 1, width * height % 2**32)]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(tags)) + entries + bytes(4)


def test_a13_a_document_is_read_as_without_a_process(open_in: Open) -> None:
    document, _ = open_in(TWO_PAGES)
    first, second = document.pages
    assert (document.num_pages, first.unit, first.size_wh) == (2, "pt", (200.0, 100.0))
    assert [word.text for word in first.words] == ["Hello", "brave", "world"]
    assert first.words[0].x_height is not None
    assert second.words == ()
    assert second.is_blank
    assert first.render((0, 0, 100, 100), size_wh=(50, 70)).size == (50, 70)
    assert document.attachments == ()


def test_a13_images_and_tiff_files_are_documents(open_in: Open) -> None:
    images = [Image.new("RGB", (40 + number, 30), (number, 0, 0)) for number in range(3)]
    document, _ = open_in(tiff_of(images), pages="2-")
    assert [page.number for page in document.pages] == [2, 3]
    assert document.pages[0].size_wh == (41, 30)
    assert document.pages[1].render(size_wh=(10, 10)).getpixel((5, 5)) == (2, 0, 0)
    file = io.BytesIO()
    images[0].save(file, "PNG")
    assert open_in(file.getvalue())[0].pages[0].size_wh == (40, 30)


SCRIPT = "app.alert(1); this.exportDataObject({cName: 'x', nLaunch: 2});"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b"%PDF-1.7\n", "no PDF file that can be read"),
        (TWO_PAGES[: len(TWO_PAGES) // 3], "no PDF file that can be read"),
        (b"II*\0\x08\0\0\0", "no TIFF file that can be read"),
        (tiff_of([Image.new("L", (60, 60))])[:40], "no TIFF file that can be read"),
        (b"hello", "unknown format"),
        (b"\x89PNG\r\n\x1a\n", "damaged|cut"),
    ],
    ids=["empty", "head", "cut", "tiff", "cut tiff", "text", "png"],
)
def test_a13_damaged_files_are_errors_of_the_document(
    data: bytes, message: str, open_in: Open
) -> None:
    with pytest.raises(DocumentError, match=message):
        open_in(data)


def test_a13_a_file_that_claims_a_huge_size_is_refused(open_in: Open) -> None:
    document, process = open_in(lying_tiff(60_000, 60_000))
    with pytest.raises(DocumentError, match=r"too large|60000 x 60000"):
        assert document.pages[0].size_wh
    assert process.is_running


def test_a13_a_file_with_too_many_pages_needs_a_choice(open_in: Open) -> None:
    data = pdf_of_pages([b""] * 5000)
    with pytest.raises(DocumentError, match="5000 pages; the limit is 50"):
        open_in(data)
    document, _ = open_in(data, pages="4990-4991")
    assert [page.number for page in document.pages] == [4990, 4991]
    assert document.num_pages == 5000


def test_a13_pages_that_do_not_exist_are_named_without_the_request(open_in: Open) -> None:
    with pytest.raises(OptionError) as caught:
        open_in(TWO_PAGES, pages="777")
    assert "2 pages" in str(caught.value)
    assert "777" not in str(caught.value)


def test_a13_a_huge_page_is_drawn_at_the_size_that_is_needed(open_in: Open) -> None:
    document, process = open_in(pdf_of_pages([HELLO], media_box="0 0 8400 8400"))
    assert document.pages[0].render(size_wh=(448, 448)).size == (448, 448)
    assert psutil.Process(process.pid).memory_info().rss < 200 * 2**20
    with pytest.raises(OptionError, match="megapixels"):
        document.pages[0].render(size_wh=(8400, 8400))


def test_a13_scripts_of_a_pdf_do_not_run(open_in: Open) -> None:
    action = f"<< /S /JavaScript /JS ({SCRIPT.replace('(', '').replace(')', '')}) >>"
    data = pdf_of_pages(
        [HELLO],
        page_extra=f"/AA << /O {action} >>",
        catalog_extra=f"/OpenAction {action} /AA << /WC {action} >>",
    )
    document, process = open_in(data)
    assert [word.text for word in document.pages[0].words] == ["Hello", "brave", "world"]
    assert psutil.Process(process.pid).children() == []


def test_a13_a_memory_bomb_ends_with_an_error_and_little_memory(open_in: Open) -> None:
    image = b"/Type /XObject /Subtype /Image /Width 30000 /Height 30000 /BitsPerComponent 8 "
    image += b"/ColorSpace /DeviceRGB /Filter /RunLengthDecode"
    data = pdf_of_pages(
        [b"q 200 0 0 100 0 0 cm /Im Do Q"],
        page_extra="/Resources << /XObject << /Im 6 0 R >> >>",
        more_objects=[stream(bytes([129, 7]) * 200_000 + b"\x80", image)],
    )
    data = data.replace(b"/Resources << /Font << /F1 3 0 R >> >>", b"")
    document, process = open_in(data)
    peak = 0

    def watch() -> None:
        nonlocal peak
        while process.is_running:
            with suppress(psutil.Error):
                peak = max(peak, psutil.Process(process.pid).memory_info().rss)
            time.sleep(0.005)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    with suppress(DocumentError):  # or it is drawn without the image
        document.pages[0].render(size_wh=(100, 50))
    process.close()
    watcher.join(5)
    assert peak < 600 * 2**20


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL, signal.SIGABRT])
def test_a13_a_process_that_crashes_is_an_error_and_the_next_one_works(
    number: signal.Signals, open_in: Open
) -> None:
    document, process = open_in(TWO_PAGES)
    os.kill(process.pid, number)
    with pytest.raises(DocumentError, match="crashes"):
        document.pages[0].render(size_wh=(10, 10))
    assert process.failure is not None
    with pytest.raises(DocumentError, match="crashes"):  # and stays one
        assert document.pages[1].words
    assert open_in(TWO_PAGES)[0].num_pages == 2


def test_a13_a_process_that_hangs_is_ended(open_in: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paligemma.sandbox.process._EXTRA_SECONDS", -9.8)
    document, process = open_in(TWO_PAGES)
    os.kill(process.pid, signal.SIGSTOP)
    started = time.monotonic()
    with pytest.raises(DocumentError, match="took too long"):
        assert document.pages[0].words
    assert time.monotonic() - started < 5
    assert not process.is_running


def test_a13_another_thread_can_end_a_call(open_in: Open) -> None:
    document, process = open_in(TWO_PAGES)
    os.kill(process.pid, signal.SIGSTOP)
    threading.Timer(0.3, process.cancel).start()
    with pytest.raises(CancelledError):
        assert document.pages[0].words


def test_a13_the_process_inherits_nothing_and_can_write_nothing(
    pool: ReaderPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PALIGEMMA_API_KEYS", "secret-secret-secret")
    monkeypatch.setenv("HF_TOKEN", "secret-secret-secret")
    read_end, write_end = os.pipe()
    os.set_inheritable(write_end, True)
    process = ReaderPool(Limits()).take()
    try:
        child = psutil.Process(process.pid)
        environment = child.environ()
        assert not [name for name in environment if "KEY" in name or "TOKEN" in name]
        assert "secret" not in str(child.cmdline()) + str(environment)
        if sys.platform == "linux":
            links = Path(f"/proc/{process.pid}/fd")
            assert os.readlink(f"/proc/self/fd/{write_end}") not in [
                os.readlink(link) for link in links.iterdir()
            ]
            limits = Path(f"/proc/{process.pid}/limits").read_text()
            for name, value in {
                "Max file size": 0,
                "Max core file size": 0,
                "Max address space": Limits().document_memory_bytes,
                "Max cpu time": 900,
            }.items():
                [line] = [line for line in limits.splitlines() if line.startswith(name)]
                assert line.removeprefix(name).split()[:2] == [str(value)] * 2, line
    finally:
        process.close()
        os.close(read_end)
        os.close(write_end)


class Liar(ReaderProcess):
    """A process that a document has taken over, and that answers what it likes."""

    def __init__(self, header: object, payload: bytes = b"", raw: bytes | None = None) -> None:
        self._messages = DOCUMENTS
        self._lock = threading.Lock()
        self._is_cancelled = False
        self.failure = None
        self._rest = frame(header, payload) if raw is None else raw

    def end(self) -> None: ...

    def _send(self, data: bytes, deadline: float) -> None: ...

    def _read(self, num_bytes: int, deadline: float) -> bytes:
        part, self._rest = self._rest[:num_bytes], self._rest[num_bytes:]
        if len(part) < num_bytes:
            raise DocumentError("The document cannot be read: it crashes")
        return part


BAD_WORDS: list[object] = [
    {"words": [["a", 1, 2, 3]], "turn": 0},
    {"words": [["a", 1, 2, 3, 4, None]], "turn": 0},
    {"words": [["a", 1, 2, 3, "4", None, 0, 0.0, False]], "turn": 0},
    {"words": [["\ud800", 1, 2, 3, 4, None, 0, 0.0, False]], "turn": 0},
    {"words": [[["a"], 1, 2, 3, 4, None, 0, 0.0, False]], "turn": 0},
    {"words": [["a", True, 2, 3, 4, None, 0, 0.0, False]], "turn": 0},
    {"words": [["a", 1, 2, 3, 4, None, 45, 0.0, False]], "turn": 0},
    {"words": [["a", 1, 2, 3, 4, None, [0], 0.0, False]], "turn": 0},
    {"words": [["a", 1, 2, 3, 4, None, 0, 0.0, 1]], "turn": 0},
    {"words": 7, "turn": 0},
    {"words": [], "turn": 45},
    {"words": [], "turn": [0]},
    {},
    [],
    None,
]


@pytest.mark.parametrize("header", BAD_WORDS, ids=str)
def test_a13_words_of_a_process_are_checked(header: object) -> None:
    check_liar(Liar(header), lambda pages: pages.words(0))


@pytest.mark.parametrize(
    "raw",
    [
        LENGTHS.pack(2**31, 0),
        LENGTHS.pack(2, 2**31) + b"{}",
        LENGTHS.pack(5, 0) + b"[[[[[",
        LENGTHS.pack(100_000, 0) + b"[" * 100_000,
        LENGTHS.pack(26, 0) + b'{"words":[["a",1,2,3,NaN]]}'[:26],
        LENGTHS.pack(3, 0) + b"\xff\xff\xff",
        b"\x00",
    ],
    ids=range(7),
)
def test_a13_bytes_of_a_process_are_checked(raw: bytes) -> None:
    check_liar(Liar(None, raw=raw), lambda pages: pages.words(0))


@pytest.mark.parametrize(
    "size", ["[1]", "[0, 5]", "[-1, 5]", '["1", 2]', "[Infinity, 2]", "[]", "null", '"ab"']
)
def test_a13_sizes_of_a_process_are_checked(size: str) -> None:
    raw = f'{{"size_wh":{size}}}'.encode()
    check_liar(Liar(None, raw=LENGTHS.pack(len(raw), 0) + raw), lambda pages: pages.size_wh(0))


@pytest.mark.parametrize("num_bytes", [0, 299, 301, 10_000])
def test_a13_images_of_a_process_are_checked(num_bytes: int) -> None:
    liar = Liar({"size_wh": [10, 10]}, bytes(num_bytes))
    check_liar(liar, lambda pages: pages.render(0, (0, 0, 1, 1), (10, 10)))


def check_liar(liar: Liar, ask: Callable[[RemotePages], object]) -> None:
    pages = RemotePages(liar, {"unit": "pt", "num_pages": 1}, 5.0)
    with pytest.raises(DocumentError, match="crashes"):
        ask(pages)


@pytest.mark.parametrize(
    "header",
    [{}, {"unit": "pt"}, {"unit": "mm", "num_pages": 1}, {"unit": "px", "num_pages": 10**9},
     {"unit": "px", "num_pages": True}],
    ids=str,
)  # fmt: skip
def test_a13_the_form_of_a_document_is_checked(header: dict[str, object]) -> None:
    with pytest.raises(DocumentError, match="crashes"):
        RemotePages(None, header, 5.0)  # type: ignore[arg-type]


def test_a13_one_process_waits_for_the_next_document() -> None:
    pool = ReaderPool(Limits())
    pool.keep_ready()
    pool.keep_ready()
    [spare] = pool._spare
    spare.wait_until_started()
    assert pool.take() is spare
    spare.close()
    pool.keep_ready()
    [spare] = pool._spare
    spare.end()
    other = pool.take()  # the one that waited has ended by itself
    assert other is not spare
    assert other.is_running
    other.close()
    pool.close()
