"""Pickles of plain data, read without running them: against the standard library's own reader."""

from __future__ import annotations

import os
import pickle
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paligemma.errors import DataError
from paligemma.evals.benchmarks.plain_pickle import read_plain_pickle

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
        with pytest.raises(
            DataError, match=r"refs.p': this pickle wants to do more than hold data"
        ):
            read_plain_pickle(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "data",
    [b"", b"no pickle", pickle.dumps([1, 2, 3])[:-4], b"\x80\x02.", b"e.", b"g9\n.", b"(lp0\n"],
)
def test_a_damaged_file_is_an_error(folder: Path, data: bytes) -> None:
    with pytest.raises(DataError, match="is damaged"):
        read_plain_pickle(written(folder, data))
