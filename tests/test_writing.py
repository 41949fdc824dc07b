"""Files are written whole or not at all, and what is no file stays what it is."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from PIL import Image

from paligemma.draw import write_drawing
from paligemma.errors import OptionError
from paligemma.writing import replacing, write_whole

POSIX = pytest.mark.skipif(os.name == "nt", reason="needs the files of POSIX systems")


@POSIX
def test_a_named_pipe_gets_the_bytes_and_stays_a_pipe(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.csv"
    os.mkfifo(pipe)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()))
    reader.start()
    write_whole(pipe, b"whole")
    reader.join(10)
    assert got == [b"whole"]
    assert pipe.is_fifo()


@POSIX
def test_a_device_stays_a_device(tmp_path: Path) -> None:
    write_whole(Path(os.devnull), b"gone")
    assert Path(os.devnull).is_char_device()
    (link := tmp_path / "link").symlink_to(os.devnull)
    write_whole(link, b"gone")
    assert link.is_symlink()
    assert link.is_char_device()


@POSIX
@pytest.mark.parametrize("mode", ["wb", "ab"])
def test_what_is_written_to_stdout_follows_what_was_printed_there(
    tmp_path: Path, mode: str
) -> None:
    program = (
        "from pathlib import Path\n"
        "from paligemma.writing import write_whole\n"
        "print('printed', flush=True)\n"
        "write_whole(Path('/dev/stdout'), b'written\\n')\n"
    )
    command = [sys.executable, "-c", program]
    shown = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    assert shown == "printed\nwritten\n"
    log = tmp_path / "log.txt"
    log.write_text("before\n", encoding="utf-8")
    with log.open(mode) as file:
        subprocess.run(command, stdout=file, check=True)
    expected = "printed\nwritten\n"
    assert log.read_text(encoding="utf-8") == ("before\n" if mode == "ab" else "") + expected


def test_a_link_is_followed_and_permissions_are_kept(tmp_path: Path) -> None:
    (file := tmp_path / "file").write_bytes(b"old")
    file.chmod(0o640)
    (link := tmp_path / "link").symlink_to(file)
    write_whole(link, b"new")
    assert link.is_symlink()
    assert file.read_bytes() == b"new"
    assert file.stat().st_mode & 0o777 == 0o640


def test_a_failure_leaves_the_file_and_nothing_else(tmp_path: Path) -> None:
    (file := tmp_path / "file").write_bytes(b"old")

    def fail() -> None:
        with replacing(file) as unfinished:
            unfinished.write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("drawing", "no format of images"),
        ("drawing.txt", "no format of images"),
        ("drawing.cur", "no format of images|as CUR"),
        ("absent/drawing.png", "No such file"),
        ("wide.webp", "as WEBP"),
    ],
)
def test_a_drawing_that_cannot_be_written_is_one_error(
    name: str, reason: str, tmp_path: Path
) -> None:
    image = Image.new("RGB", (16_384 if name == "wide.webp" else 4, 1))
    with pytest.raises(OptionError, match=reason):
        write_drawing(image, tmp_path / name)
    assert not list(tmp_path.iterdir())
