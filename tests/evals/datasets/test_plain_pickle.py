"""Pickles of plain data, read without running them: against the standard library's own reader."""

from __future__ import annotations

import os
import pickle
import pickletools
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paligemma.errors import DataError
from paligemma.evals.datasets import plain_pickle
from paligemma.evals.datasets.plain_pickle import read_plain_pickle

PLAIN: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(st.text() | st.integers(), inner)
        | st.lists(inner, max_size=5).map(tuple)
    ),
    max_leaves=12,
)


def written(folder: Path, data: bytes) -> Path:
    path = folder / "refs.p"
    path.write_bytes(data)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pickles")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@given(value=PLAIN)
def test_plain_data_of_every_protocol_are_read_as_written(
    folder: Path, protocol: int, value: Any
) -> None:
    read = read_plain_pickle(written(folder, pickle.dumps(value, protocol=protocol)))
    assert read == value
    assert repr(read) == repr(value)  # 1, 1.0 and True are equal but not the same


def test_a_value_that_stands_twice_is_one_value(folder: Path) -> None:
    word = ["a", "b"]
    read = read_plain_pickle(written(folder, pickle.dumps([word, word, {"w": word}])))
    assert read[0] is read[1] is read[2]["w"]


def test_texts_of_python_2_are_read(folder: Path) -> None:
    """pickle.dumps([{'sent': 'left', 'id': 3L, u'ok': True}]) of Python 2, protocol 0."""
    data = b"(lp0\n(dp1\nS'sent'\np2\nS'left'\np3\nsS'id'\np4\nL3L\nsVok\np5\nI01\nsa."
    assert read_plain_pickle(written(folder, data)) == [{"sent": "left", "id": 3, "ok": True}]
    assert read_plain_pickle(written(folder, data)) == pickle.loads(data)


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("ran",)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_what_would_run_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: int
) -> None:
    monkeypatch.chdir(tmp_path)
    for value in (Evil(), [1, {"a": Evil()}], date(2024, 1, 1)):
        path = written(folder, pickle.dumps(value, protocol=protocol))
        with pytest.raises(DataError, match=r"refs.p' wants to do more than hold data \("):
            read_plain_pickle(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "opcode",
    [op for op in pickletools.opcodes if op.name not in plain_pickle._KNOWN],
    ids=lambda op: op.name,
)
def test_every_other_instruction_is_refused_by_its_name(folder: Path, opcode: Any) -> None:
    """Even where nothing follows that it could work on: it is refused before that is read."""
    for before in (b"", b"\x80\x04(K\x01"):
        with pytest.raises(DataError, match=rf"more than hold data \({opcode.name}\)"):
            read_plain_pickle(written(folder, before + opcode.code.encode("latin-1")))


def test_all_that_can_call_or_look_up_is_among_the_refused() -> None:
    acting = {
        "GLOBAL", "STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "REDUCE", "BUILD",
        "PERSID", "BINPERSID", "EXT1", "EXT2", "EXT4", "NEXT_BUFFER", "READONLY_BUFFER",
    }  # fmt: skip
    assert acting <= {op.name for op in pickletools.opcodes}
    assert not acting & plain_pickle._KNOWN


def test_texts_of_python_2_beyond_ascii_are_latin_1(folder: Path) -> None:
    data = b"(S'caf\\xe9'\nU\x04caf\xe9T\x04\x00\x00\x00caf\xe9l."
    assert read_plain_pickle(written(folder, data)) == ["café"] * 3
    assert pickle.loads(data, encoding="latin-1") == ["café"] * 3


OFFICIAL = [
    {
        "ref_id": n,
        "split": "testA",
        "image_id": 581857,
        "sentences": [{"tokens": ["left", "cat"], "raw": "Left cat", "sent_id": n, "sent": "l c"}],
        "area": 1.5,
        "pair": (n, None, True),
    }
    for n in range(2)
]


@pytest.mark.parametrize("protocol", [0, 1, 2, 4])
def test_a_file_that_is_cut_anywhere_is_an_error(folder: Path, protocol: int) -> None:
    data = pickle.dumps(OFFICIAL, protocol=protocol)
    for end in range(len(data)):
        with pytest.raises(DataError, match="is damaged, or no pickle"):
            read_plain_pickle(written(folder, data[:end]))
    for more in (b"\n", b".", data):
        with pytest.raises(DataError, match="left over behind the end"):
            read_plain_pickle(written(folder, data + more))


@given(data=st.data())
def test_no_change_of_a_file_does_anything_but_an_error_or_other_plain_data(
    folder: Path, data: st.DataObject
) -> None:
    protocol = data.draw(st.sampled_from([0, 2, 4]))
    changed = bytearray(pickle.dumps(OFFICIAL, protocol=protocol))
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    try:
        value = read_plain_pickle(written(folder, bytes(changed)))
    except DataError:
        return
    assert is_plain(value)


def is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(is_plain(part) for pair in value.items() for part in pair)
    if isinstance(value, list | tuple):
        return all(map(is_plain, value))
    return value is None or type(value) in (str, int, float, bool)


TWICE = b"(h\x00h\x00lq\x000"  # a list of what was noted last, twice, is noted itself


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"(.", "not enough values"),
        (b"](a.", "IndexError"),
        (b"(\x85.", "IndexError"),
        (b"K\x01\x86.", "IndexError"),
        (b"K\x01K\x02.", "ValueError"),
        (b"(K\x01](.", "ValueError"),
        (b"]K\x01aK\x00K\x02s.", "a dict should be there, and a list is"),
        (b"}K\x01a.", "a list should be there, and a dict is"),
        (b"(K\x01d.", "argument 2 is shorter"),
        (b"}](K\x01K\x02u.", "a dict should be there"),
        (b"}]K\x01s.", "a list is the key"),
        (b"}" + b")" + b"\x85" * 200_000 + b"K\x01s.", "a tuple is the key"),
        (b"]" * 100_000 + b"a" * 99_999 + b".", "nested more than 100 deep"),
        (b")" + b"\x85" * 200_000 + b".", "nested more than 100 deep"),
        (b"]q\x00h\x00a.", "nested more than 100 deep"),
        (b"}q\x00K\x01h\x00s.", "nested more than 100 deep"),
        (b"]q\x000" + TWICE * 60 + b"h\x00.", "come to more than"),
        (b"(h\x07.", "KeyError"),
        (b"X" + (1000).to_bytes(4, "little") + b"a" * 1000 + b"q\x000" + TWICE * 20 + b"h\x00.",
         "come to more than"),
        (b"\x8b\xff\xff\xff\x7fabc.", "not enough data"),
        (b"\x8b\xff\xff\xff\xffabc.", "byte count < 0"),
        (b"\x8d" + b"\xff" * 8 + b"abc.", "byte count > sys.maxsize"),
        (b"\x8d" + b"\xff" * 7 + b"\x3fabc.", "only 4 remain"),
        (b"T\xff\xff\xff\xffabc.", "byte count < 0"),
        (b"T\xff\xff\xff\x7fabc.", "only 4 remain"),
        (b"I" + b"9" * 100_000 + b"\n.", "Exceeds the limit"),
        (b"S" + b"a" * 100_000 + b"\n.", "no string quotes"),
        (b"V\\ud800\\\n.", None),
        (b"\x00", "unknown"),
    ],
)  # fmt: skip
def test_bombs_and_nonsense_end_in_one_short_error(
    folder: Path, data: bytes, reason: str | None
) -> None:
    path = written(folder, data)
    if reason is None:  # odd, and plain
        assert read_plain_pickle(path) == "\ud800\\"
        return
    with pytest.raises(DataError, match=reason) as caught:
        read_plain_pickle(path)
    assert str(caught.value).startswith(f"The file {str(path)!r} is damaged, or no pickle (")
    assert len(str(caught.value)) < len(str(path)) + 320


def test_limits_are_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(folder, pickle.dumps(OFFICIAL))
    monkeypatch.setattr(plain_pickle, "_MAX_VALUES", 50)
    with pytest.raises(DataError, match="more than 50 instructions"):
        read_plain_pickle(path)
    monkeypatch.setattr(plain_pickle, "_MAX_BYTES", 10)
    with pytest.raises(DataError, match="bytes, and at most 10 are read"):
        read_plain_pickle(path)


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.p"):
        read_plain_pickle(tmp_path / "nowhere.p")


@pytest.mark.parametrize(
    "data",
    [b"", b"no pickle", pickle.dumps([1, 2, 3])[:-4], b"\x80\x02.", b"e.", b"g9\n.", b"(lp0\n"],
)
def test_a_damaged_file_is_an_error(folder: Path, data: bytes) -> None:
    with pytest.raises(DataError, match="is damaged"):
        read_plain_pickle(written(folder, data))
