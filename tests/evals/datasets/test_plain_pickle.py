"""Pickles of plain data are read; what would run code, or is damaged or huge, is refused."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from paligemma.errors import DataError
from paligemma.evals.datasets import files
from paligemma.evals.datasets.files import read_plain_pickle

PLAIN = [{"sent": "left caf\xe9", "ids": (1, 2.5, None, True), "no": -(2**70), "": []}]


@pytest.fixture
def written(tmp_path: Path) -> Callable[[bytes], Path]:
    def write(data: bytes) -> Path:
        path = tmp_path / "refs.p"
        path.write_bytes(data)
        return path

    return write


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_data_are_read(written: Callable[[bytes], Path], protocol: int) -> None:
    assert read_plain_pickle(written(pickle.dumps(PLAIN, protocol=protocol))) == PLAIN


def test_strings_of_python_2_are_read(written: Callable[[bytes], Path]) -> None:
    """pickle.dumps([{'sent': 'caf\xe9', 'id': 3L, u'ok': True}]) of Python 2, protocol 0."""
    data = b"(lp0\n(dp1\nS'sent'\np2\nS'caf\\xe9'\np3\nsS'id'\np4\nL3L\nsVok\np5\nI01\nsa."
    assert read_plain_pickle(written(data)) == [{"sent": "caf\xe9", "id": 3, "ok": True}]


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("ran",)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_what_would_run_is_refused(
    written: Callable[[bytes], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: int
) -> None:
    monkeypatch.chdir(tmp_path)
    for value in (Evil(), [1, {"a": Evil()}], date(2024, 1, 1), len):
        path = written(pickle.dumps(value, protocol=protocol))
        with pytest.raises(DataError, match=r"refs.p' contains more than plain data \("):
            read_plain_pickle(path)
    assert not (tmp_path / "ran").exists()


def test_an_object_outside_of_the_file_is_refused(written: Callable[[bytes], Path]) -> None:
    with pytest.raises(DataError, match="outside the file"):
        read_plain_pickle(written(b"P1\n."))


@pytest.mark.parametrize(
    "data", [b"", b"no pickle", pickle.dumps([1, 2, 3])[:-4], b"\x80\x02.", b"e.", b"g9\n."]
)
def test_a_damaged_file_is_an_error(written: Callable[[bytes], Path], data: bytes) -> None:
    with pytest.raises(DataError, match="is damaged or not a pickle"):
        read_plain_pickle(written(data))


def test_a_small_file_of_a_huge_value_is_refused(written: Callable[[bytes], Path]) -> None:
    value: list[Any] = ["x"]
    for _ in range(40):
        value = [value, value]
    with pytest.raises(DataError, match="larger than any official file"):
        read_plain_pickle(written(pickle.dumps(value)))
    cycle: list[Any] = []
    cycle.append(cycle)
    with pytest.raises(DataError, match="is damaged"):
        read_plain_pickle(written(pickle.dumps(cycle)))


def test_a_huge_or_missing_file_is_an_error(
    written: Callable[[bytes], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_MAX_BYTES", 10)
    with pytest.raises(DataError, match="bytes; the limit is 10"):
        read_plain_pickle(written(pickle.dumps(PLAIN)))
    with pytest.raises(DataError, match=r"nowhere\.p"):
        read_plain_pickle(tmp_path / "nowhere.p")
