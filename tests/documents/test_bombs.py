"""PDF files that make pdfium take all memory: they cost a process that reads them, and no more."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import zlib
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from paligemma.documents import DocumentLimits, open_document, read_document
from paligemma.documents.apart import _pool
from paligemma.documents.remote import MODULE
from paligemma.errors import DocumentError
from tests.documents.pdf_files import pdf, pdf_of_pages, stream, text_at
from tests.documents.readers import ScriptedReader, text_result

pytest.importorskip("pypdfium2", reason="the docs extra is not installed")

READER = ScriptedReader(lambda image: text_result("words"))
SMALL = DocumentLimits(max_memory_bytes=512 * 2**20)
FORM = b"/Type /XObject /Subtype /Form /BBox [0 0 9 9] "
HELLO = text_at(20, 70, "Hello brave world")


def drawing(content: bytes, uses: str = "", *, is_packed: bool = True) -> bytes:
    about = FORM + f"/Resources << /XObject << {uses} >> >>".encode()
    if not is_packed:
        return stream(content, about)
    return stream(zlib.compress(content), about + b"/Filter /FlateDecode")


BOMBS = {
    "itself": [drawing(b"/X Do /X Do", "/X 6 0 R")],
    "itself, not packed": [drawing(b"/X Do /X Do", "/X 6 0 R", is_packed=False)],
    "each other": [drawing(b"/Y Do /Y Do", "/Y 7 0 R"), drawing(b"/X Do /X Do", "/X 6 0 R")],
    "ten times ten times": [
        *(drawing(b"/X Do " * 10, f"/X {7 + number} 0 R") for number in range(12)),
        drawing(b"0 0 m 1 1 l S"),
    ],
}


def bomb(kind: str = "itself") -> bytes:
    """Two pages, of which the first draws what draws itself, and the second is well."""
    page = "/Type /Page /Parent 2 0 R /MediaBox [0 0 200 100]"
    return pdf(
        [
            b"<< /Type /Catalog /Pages 2 0 R >>",
            b"<< /Type /Pages /Count 2 /Kids [3 0 R 4 0 R] >>",
            f"<< {page} /Contents 5 0 R /Resources << /XObject << /X 6 0 R >> >> >>".encode(),
            f"<< {page} >>".encode(),
            stream(b"/X Do"),
            *BOMBS[kind],
        ]
    )


def test_so_does_the_appearance_of_an_annotation_and_the_letter_of_a_font() -> None:
    annotation = "<< /Type /Annot /Subtype /Stamp /F 4 /Rect [9 9 99 99] /AP << /N 6 0 R >> >>"
    stamped = pdf_of_pages(
        [b""],
        page_extra=f"/Annots [{annotation}]",
        more_objects=[drawing(b"/X Do /X Do", "/X 6 0 R")],
    )
    font = (
        "<< /Type /Font /Subtype /Type3 /FontBBox [0 0 9 9] /FontMatrix [1 0 0 1 0 0] /FirstChar "
        "65 /LastChar 65 /Widths [9] /Encoding << /Differences [65 /a] >> "
        "/CharProcs << /a 8 0 R >> /Resources << /XObject << /X 7 0 R >> >> >>"
    )
    page = (
        "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 200 100] /Contents 4 0 R "
        "/Resources << /Font << /F1 6 0 R >> >> >>"
    )
    lettered = pdf(
        [
            b"<< /Type /Catalog /Pages 2 0 R >>",
            b"<< /Type /Pages /Count 1 /Kids [3 0 R] >>",
            page.encode(),
            stream(text_at(20, 20, "A")),
            b"null",
            font.encode(),
            drawing(b"/X Do /X Do", "/X 7 0 R"),
            stream(b"9 0 d0 /X Do"),
        ]
    )
    for data in (stamped, lettered):
        with (
            open_document(data, limits=SMALL) as document,
            pytest.raises(DocumentError, match="Page 1 of the document"),
        ):
            document.pages[0].render(size_wh=(200, 100))


def children() -> set[int]:
    """The processes that read documents for this one; others are of the fixtures of other tests."""
    found = set()
    for process in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):
            if MODULE in process.cmdline():
                found.add(process.pid)
    return found


@pytest.mark.parametrize("kind", BOMBS)
def test_a_drawing_that_draws_itself_costs_its_page_alone(kind: str) -> None:
    before = psutil.Process().memory_info().rss
    read = read_document(READER, bomb(kind), limits=SMALL)
    first, second = read.pages
    assert first.error is not None
    assert first.error.startswith("Page 1 of the document takes more than 0.5 GiB of memory")
    assert "option for pages" in first.error
    assert second.problems == ("blank: neither ink nor text",)
    assert psutil.Process().memory_info().rss - before < 100 * 2**20


def test_a_page_that_ended_a_process_is_not_tried_again() -> None:
    with open_document(bomb(), limits=SMALL) as document:
        page = document.pages[0]
        with pytest.raises(DocumentError, match="Page 1"):
            assert page.words
        started = time.monotonic()
        for _ in range(20):
            with pytest.raises(DocumentError, match="Page 1"):
                page.render(size_wh=(10, 10))
        assert time.monotonic() - started < 0.2


def test_the_time_of_a_page_is_limited_while_pdfium_cannot_be_interrupted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("paligemma.sandbox.process._EXTRA_SECONDS", 0.3)
    limits = DocumentLimits(max_seconds_per_page=0.2, max_memory_bytes=8 * 2**30)
    with open_document(pdf_of_pages([HELLO])) as document:  # a process has started
        assert document.pages[0].words
    with open_document(bomb(), limits=limits) as document:
        with pytest.raises(DocumentError, match=r"^Page 1 of the document took too long to read"):
            assert document.pages[0].words
        assert document.pages[1].words == ()


def test_documents_are_read_by_one_process_one_after_the_other(tmp_path: Path) -> None:
    path = tmp_path / "a.pdf"
    path.write_bytes(pdf_of_pages([HELLO]))
    with open_document(path) as document:
        assert document.pages[0].words
        running = children()
    for source in (path, path.read_bytes()) * 5:
        with open_document(source) as document:
            assert document.pages[0].words[0].text == "Hello"
    assert children() == running


def test_many_documents_are_open_at_once_in_many_threads() -> None:
    documents = [
        open_document(pdf_of_pages([text_at(20, 70, f"page {number}")])) for number in range(9)
    ]
    found: dict[tuple[int, int], str] = {}

    def read(start: int) -> None:
        for number in range(9):
            at = (start + number) % 9
            page = documents[at].pages[0]
            page.render(size_wh=(20, 10))
            found[start, at] = page.words[1].text

    threads = [threading.Thread(target=read, args=(start,)) for start in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == {(start, at): str(at) for start in range(6) for at in range(9)}
    assert len(_pool._idle) <= 4
    for document in documents:
        document.close()


def test_a_document_is_read_on_after_its_process_was_killed(tmp_path: Path) -> None:
    path = tmp_path / "a.pdf"
    path.write_bytes(pdf_of_pages([HELLO, HELLO]))
    with open_document(path) as document:
        assert document.pages[0].words
        for pid in children():
            os.kill(pid, signal.SIGKILL)
            psutil.wait_procs([psutil.Process(pid)], 5) if psutil.pid_exists(pid) else None
        assert len(document.pages[1].words) == 3


def test_a_file_that_changes_between_two_processes_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.pdf"
    path.write_bytes(pdf_of_pages([HELLO]))
    with open_document(path) as document:
        path.write_bytes(pdf_of_pages([HELLO, HELLO]))
        _pool.close()
        with pytest.raises(DocumentError, match="was changed while it was read"):
            assert document.pages[0].words


FORKED = """
import os, sys
from paligemma.documents import open_document
document = open_document(sys.argv[1])
assert len(document.pages[0].words) == 3
pid = os.fork()
assert len(document.pages[1].words) == 3
assert document.pages[1].render(size_wh=(20, 10)).size == (20, 10)
if pid:
    assert os.waitpid(pid, 0)[1] == 0
    assert len(document.pages[0].words) == 3
    document.close()
else:
    document.close()
    os._exit(0)
print("read", flush=True)
"""


def test_a_document_is_read_on_in_both_processes_after_a_fork(tmp_path: Path) -> None:
    path = tmp_path / "a.pdf"
    path.write_bytes(pdf_of_pages([HELLO, HELLO]))
    command = [sys.executable, "-W", "error", "-c", FORKED, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "read\n", "")


INTERRUPTED = """
import sys
from paligemma.documents import open_document
with open_document(sys.argv[1]) as document:
    print(document.num_pages, flush=True)
    document.pages[0].words
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_program_leaves_no_process_behind(
    number: signal.Signals, tmp_path: Path
) -> None:
    path = tmp_path / "bomb.pdf"
    path.write_bytes(bomb())
    command = [sys.executable, "-c", INTERRUPTED, str(path)]
    program = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert program.stdout is not None
    assert program.stdout.readline() == b"2\n"
    readers = psutil.Process(program.pid).children()
    assert len(readers) == 1
    program.send_signal(number)
    _, messages = program.communicate(timeout=10)
    assert (b"KeyboardInterrupt" in messages) == (number == signal.SIGINT)
    assert psutil.wait_procs(readers, 5)[1] == []


@pytest.mark.slow  # 2 GiB are filled
def test_the_command_line_ends_with_one_line_and_reads_the_rest(tmp_path: Path) -> None:
    """With the memory that a document may usually take."""
    (tmp_path / "bomb.pdf").write_bytes(bomb())
    command = [sys.executable, "-m", "paligemma", "ocr", "bomb.pdf", "--source", "text layer"]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, timeout=120, check=False
    )
    assert done.returncode == 3
    [line] = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: Page 1 of bomb.pdf takes more than 2 GiB of memory to read")


def test_where_the_system_sets_no_limit_a_process_watches_its_own_memory() -> None:
    code = "import os, time; from paligemma.sandbox.child import _watch; _watch(os.getppid(), 1)"
    done = subprocess.run([sys.executable, "-c", code], timeout=30, check=False)
    assert done.returncode == 1


def test_the_text_layer_of_a_slanted_line_is_the_same_as_in_this_process(tmp_path: Path) -> None:
    from paligemma.documents.pdf import PdfFile

    data = pdf_of_pages([HELLO + text_at(20, 20, "rising words", 12, "0.8 0.6 -0.6 0.8")])
    with open_document(data) as document:
        words, turn = document.source.words(0)
        image = document.source.render(0, (0, 0, 200, 100), (400, 200))
    here = PdfFile(data, "the document", None, DocumentLimits())
    others, other_turn = here.words(0)
    about = [(w.x_height, w.turn, w.slant, w.is_filled_in) for w in words]
    assert (words, turn) == (others, other_turn)
    assert about == [(w.x_height, w.turn, w.slant, w.is_filled_in) for w in others]
    assert any(word.slant for word in words)
    assert image.tobytes() == here.render(0, (0, 0, 200, 100), (400, 200)).tobytes()
    here.close()
