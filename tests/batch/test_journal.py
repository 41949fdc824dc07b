"""The journal keeps whole batches, whatever happens to the process that writes it."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from paligemma.batch.journal import JOURNAL_FILE, Entry, Journal
from paligemma.batch.lock import locked
from paligemma.errors import OptionError

SETTINGS = {"model": "mini", "task": {"name": "caption", "language": "en"}}


def entry(key: str, text: str = "a cat", *, error: str | None = None) -> Entry:
    result = None if error else {"text": text}
    return Entry(key=key, fingerprint="12-34", result=result, error=error, seconds=0.5)


def write(folder: Path, *batches: list[Entry]) -> bytes:
    with Journal.open(folder, SETTINGS) as journal:
        for batch in batches:
            journal.add(batch)
    return (folder / JOURNAL_FILE).read_bytes()


def keys(folder: Path) -> list[str]:
    return [entry.key for entry in Journal.read(folder).entries()]


def test_what_was_added_is_there_after_opening_again(tmp_path: Path) -> None:
    batch = [entry("b.jpg"), entry("a.jpg", "ein Haus \u2028 \x1b[2J"), entry("c", error="torn")]
    write(tmp_path, batch)
    with Journal.open(tmp_path, SETTINGS) as journal:
        assert list(journal.entries()) == [batch[1], batch[0], batch[2]]
        assert journal.done() == {"a.jpg": "12-34", "b.jpg": "12-34"}
        assert journal.failed() == {"c": "12-34"}
        assert journal.settings == SETTINGS


def test_the_last_entry_of_a_key_counts(tmp_path: Path) -> None:
    write(tmp_path, [entry("a", error="busy")], [entry("b")], [entry("a", "a dog")])
    journal = Journal.read(tmp_path)
    assert list(journal.entries()) == [entry("a", "a dog"), entry("b")]
    assert journal.failed() == {}


def test_a_file_name_that_is_not_utf8_keeps_its_bytes(tmp_path: Path) -> None:
    key = os.fsdecode(b"caf\xe9.jpg")
    write(tmp_path, [entry(key)])
    assert os.fsencode(keys(tmp_path)[0]) == b"caf\xe9.jpg"


def test_cut_at_any_byte_the_journal_has_exactly_the_whole_batches_before_it(
    tmp_path: Path,
) -> None:
    whole = tmp_path / "whole"
    first = len(write(whole, [entry("a"), entry("b")]))
    content = write(whole, [entry("c"), entry("d")])
    header = content.index(b"\n") + 1
    torn = tmp_path / "torn"
    torn.mkdir()
    edges = [n for end in (0, header, first, len(content)) for n in (end - 1, end, end + 1)]
    for length in sorted({*edges, *range(0, len(content), 13)} & {*range(len(content) + 1)}):
        (torn / JOURNAL_FILE).write_bytes(content[:length])
        with Journal.open(torn, SETTINGS) as journal:
            found = [e.key for e in journal.entries()]
            journal.add([entry("e")])
        expected = ["a", "b", "c", "d"][
            : 0 if length < first else 2 if length < len(content) else 4
        ]
        assert found == expected
        assert keys(torn) == [*expected, "e"]
        kept = header if length < first else first if length < len(content) else length
        assert (torn / JOURNAL_FILE).read_bytes()[:kept] == content[:kept]


@pytest.mark.parametrize("rest", [b"\0" * 40, b"\0" * 40 + b"\n\n", b'{"key": "x"}\n', b"[1]\n"])
def test_a_damaged_end_is_cut_off(tmp_path: Path, rest: bytes) -> None:
    content = write(tmp_path, [entry("a")])
    (tmp_path / JOURNAL_FILE).write_bytes(content + rest)
    assert write(tmp_path) == content


def test_a_damaged_line_between_whole_ones_is_an_error_and_changes_nothing(tmp_path: Path) -> None:
    lines = write(tmp_path, [entry("a")], [entry("b")]).splitlines(keepends=True)
    for damaged in (0, 1):
        content = b"".join([*lines[:damaged], b"?\n", *lines[damaged + 1 :]])
        (tmp_path / JOURNAL_FILE).write_bytes(content)
        with pytest.raises(OptionError, match=f"damaged: its line {damaged + 1} "):
            Journal.open(tmp_path, SETTINGS)
        assert (tmp_path / JOURNAL_FILE).read_bytes() == content


def test_other_settings_are_refused_and_what_differs_is_named(tmp_path: Path) -> None:
    content = write(tmp_path, [entry("a")])
    with pytest.raises(OptionError, match="model was 'mini' and is now 'x'") as caught:
        Journal.open(tmp_path, {**SETTINGS, "model": "x"})
    assert "caption" not in str(caught.value)
    with pytest.raises(OptionError, match="adapter was not set and is now 'run'"):
        Journal.open(tmp_path, {**SETTINGS, "adapter": "run"})
    assert write(tmp_path) == content


def test_tuples_in_the_settings_are_the_same_as_lists(tmp_path: Path) -> None:
    Journal.open(tmp_path, {"phrases": ("cat", "dog")}).close()
    Journal.open(tmp_path, {"phrases": ["cat", "dog"]}).close()


def test_a_second_writer_is_refused_until_the_first_has_closed(tmp_path: Path) -> None:
    with Journal.open(tmp_path, SETTINGS) as journal:
        with pytest.raises(OptionError, match="Another process is working in"):
            Journal.open(tmp_path, SETTINGS)
        journal.add([entry("a")])
        assert keys(tmp_path) == ["a"]  # reading is allowed
    write(tmp_path, [entry("b")])
    assert keys(tmp_path) == ["a", "b"]


def test_a_writer_killed_in_the_middle_leaves_whole_batches_and_no_lock(tmp_path: Path) -> None:
    code = """if True:
        import sys
        from pathlib import Path
        from paligemma.batch.journal import Entry, Journal
        journal = Journal.open(Path(sys.argv[1]), {"model": "mini"})
        for number in range(10**6):
            journal.add([Entry(key=f"{number}-{i}", fingerprint="", result={"text": "x" * 1000},
                               error=None, seconds=None) for i in range(50)])
            print(number, flush=True)
        """
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        said = [process.stdout.readline() for _ in range(5)]
        process.send_signal(signal.SIGKILL)
        said += process.stdout.readlines()
    written = len([line for line in said if line.endswith("\n")])
    with Journal.open(tmp_path, {"model": "mini"}) as journal:
        batches = len(journal.done()) / 50
        assert batches in (written, written + 1)  # it may have been killed before it said so


def test_a_full_disk_leaves_the_journal_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = write(tmp_path, [entry("a")])
    with Journal.open(tmp_path, SETTINGS) as journal:
        write_bytes = os.write

        def write_little(descriptor: int, data: Any) -> int:
            if len(data) <= 10:
                raise OSError(errno.ENOSPC, "No space left on device")
            return write_bytes(descriptor, data[: len(data) // 2])

        with monkeypatch.context() as patched:
            patched.setattr("paligemma.batch.journal.os.write", write_little)
            with pytest.raises(OptionError, match="No space left on device"):
                journal.add([entry("b")])
        assert (tmp_path / JOURNAL_FILE).read_bytes() == content
        journal.add([entry("c")])
    assert keys(tmp_path) == ["a", "c"]


def test_a_folder_that_is_no_job_is_said(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="not the folder of a job"):
        Journal.read(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(OptionError, match="cannot be read or written"):
        Journal.open(tmp_path / "file", SETTINGS)


def test_a_closed_journal_takes_nothing(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path, SETTINGS)
    journal.close()
    with pytest.raises(ValueError, match="closed"):
        journal.add([entry("a")])


@pytest.mark.skipif(sys.platform == "win32", reason="locks in another way")
def test_a_file_system_without_locks_is_named_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    for start in (lambda: Journal.open(tmp_path, {}), lambda: locked(tmp_path / "x").__enter__()):
        with pytest.raises(OptionError, match="cannot be locked: No locks available") as caught:
            start()
        assert "Another process is" not in str(caught.value)
    assert not Journal.is_open(tmp_path)
