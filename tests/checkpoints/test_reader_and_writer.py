"""Damaged, dishonest and misplaced safetensors files are refused by name and reason."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from math import prod
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import load_file, save_file

from paligemma.checkpoints.reader import WeightFiles, is_finite, row_blocks
from paligemma.checkpoints.save import TensorToWrite, write_weight_file
from paligemma.errors import CheckpointError

ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def raw_file(header: object, data: bytes = bytes(8), length: int | None = None) -> bytes:
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(encoded) if length is None else length).to_bytes(8, "little") + encoded + data


VALID = raw_file({"a": ENTRY})
TWICE = b'{"a":%s,"a":%s}' % (json.dumps(ENTRY).encode(), json.dumps(ENTRY).encode())
DAMAGED = {
    "empty": b"",
    "cut in the header": VALID[:20],
    "cut in the values": VALID[:-1],
    "trailing bytes": VALID + b"x",
    "header of 2^62 bytes": raw_file({"a": ENTRY}, length=2**62),
    "header of 200 MB": raw_file({"a": ENTRY}, length=200 * 1024**2),
    "not JSON": raw_file(b"\xff\xfe{{"),
    "deeply nested": raw_file(b"[" * 100_000),
    "overlap": raw_file({"a": ENTRY, "b": ENTRY}),
    "hole": raw_file({"a": ENTRY | {"data_offsets": [4, 12]}}, bytes(12)),
    "negative shape": raw_file({"a": ENTRY | {"shape": [-2]}}),
    "shape of 2^80": raw_file({"a": ENTRY | {"shape": [2**40, 2**40]}}),
    "offsets outside": raw_file({"a": ENTRY | {"data_offsets": [0, 800]}}),
    "name given twice": raw_file(TWICE),
    "a pickle": b"\x80\x04\x95" + bytes(100),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_file_is_refused_with_its_name(tmp_path: Path, kind: str) -> None:
    (tmp_path / "model.safetensors").write_bytes(DAMAGED[kind])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
        WeightFiles(tmp_path)


def test_a_name_that_occurs_twice_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(DAMAGED["name given twice"])
    with pytest.raises(CheckpointError, match="'a' occurs twice"):
        WeightFiles(tmp_path)


def sharded(folder: Path) -> dict[str, str]:
    """Two shards and their index; gives back the weight map."""
    save_file({"a": torch.arange(3.0)}, folder / "model-00001-of-00002.safetensors")
    save_file({"b": torch.arange(4.0)}, folder / "model-00002-of-00002.safetensors")
    weight_map = {
        "a": "model-00001-of-00002.safetensors",
        "b": "model-00002-of-00002.safetensors",
    }
    write_index(folder, weight_map)
    return weight_map


def write_index(folder: Path, weight_map: object) -> None:
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_shards_are_read_as_one(tmp_path: Path) -> None:
    sharded(tmp_path)
    with WeightFiles(tmp_path) as weights:
        assert {name: t.shape for name, t in weights.tensors.items()} == {"a": (3,), "b": (4,)}
        assert weights.read_rows("b", 0, 4).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "outside", ["../x.safetensors", "/x.safetensors", "a/x.safetensors", "..\\x.safetensors", ".."]
)
def test_an_index_that_names_a_file_elsewhere_is_refused(tmp_path: Path, outside: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"a": torch.zeros(1)}, tmp_path / "x.safetensors")
    write_index(folder, {"a": outside})
    with pytest.raises(CheckpointError, match="expected plain names"):
        WeightFiles(folder)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder, m: (folder / m["b"]).unlink(), "00002-of-00002.safetensors is missing"),
        (lambda folder, m: write_index(folder, {"a": m["a"]}), "does not list model-00002"),
        (lambda folder, m: write_index(folder, m | {"c": m["a"]}), "not in the file: c"),
        (lambda folder, m: write_index(folder, m | {"b": m["a"]}), "not in the file: b"),
        (lambda folder, m: write_index(folder, {}), "no weight_map"),
        (lambda folder, m: write_index(folder, ["a"]), "no weight_map"),
        (
            lambda folder, m: save_file({"b": torch.zeros(4), "a": torch.ones(3)}, folder / m["b"]),
            "not listed: a",
        ),
        (
            lambda folder, m: save_file({"a": torch.zeros(1)}, folder / "model.safetensors"),
            "contains both",
        ),
        (lambda folder, m: (folder / "model.safetensors.index.json").unlink(), "shards but no"),
    ],
)
def test_an_index_that_disagrees_with_the_files_is_refused(
    tmp_path: Path, spoil: Callable[[Path, dict[str, str]], object], message: str
) -> None:
    spoil(tmp_path, sharded(tmp_path))
    with pytest.raises(CheckpointError, match=message):
        WeightFiles(tmp_path)


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "x.safetensors")
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").symlink_to(tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="outside the checkpoint"):
        WeightFiles(folder)


def test_links_in_a_circle_are_refused(tmp_path: Path) -> None:
    shard = min(set(sharded(tmp_path).values()))
    (tmp_path / shard).unlink()
    (tmp_path / shard).symlink_to(tmp_path / shard)
    with pytest.raises(CheckpointError, match="is missing or unreadable"):
        WeightFiles(tmp_path)


@pytest.mark.parametrize("broken", ["paligemma.checkpoints.reader.os.path.realpath", "json.loads"])
def test_what_is_not_the_files_fault_is_not_blamed_on_it(
    tmp_path: Path, broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    monkeypatch.setattr(broken, Mock(side_effect=RecursionError("too deep")))
    with pytest.raises(RecursionError):
        WeightFiles(tmp_path)


def test_too_many_open_files_are_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    error = OSError(errno.EMFILE, "Too many open files")
    monkeypatch.setattr("paligemma.checkpoints.reader.safe_open", Mock(side_effect=error))
    with pytest.raises(CheckpointError, match=r"cannot be read: .*Too many open files"):
        WeightFiles(tmp_path)


def hub_cache(root: Path) -> Path:
    """The hub's layout: a snapshot of links into the model's `blobs`, named by their SHA-256."""
    import hashlib

    folder = root / "models--owner--name" / "snapshots" / "0123abc"
    blobs = folder.parent.parent / "blobs"
    folder.mkdir(parents=True)
    blobs.mkdir()
    save_file({"a": torch.arange(3.0)}, blobs / "new")
    blob = blobs / hashlib.sha256((blobs / "new").read_bytes()).hexdigest()
    (blobs / "new").rename(blob)
    (folder / "model.safetensors").symlink_to(Path("../../blobs") / blob.name)
    return folder


def test_the_links_of_a_hub_cache_are_followed_and_verified(tmp_path: Path) -> None:
    folder = hub_cache(tmp_path)
    with WeightFiles(folder) as weights:
        weights.verify()
        assert list(weights.tensors) == ["a"]
    flip_last_bit((folder / "model.safetensors").resolve())
    with WeightFiles(folder) as weights, pytest.raises(CheckpointError, match="SHA-256"):
        weights.verify()


def flip_last_bit(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)


def test_without_known_checksums_verification_says_so(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    with WeightFiles(tmp_path) as weights, pytest.raises(CheckpointError, match="no checksum"):
        weights.verify()


def test_a_checksum_list_may_not_point_elsewhere(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    (tmp_path / "checksums.json").write_text(json.dumps({"sha256": {"../x": "00"}}))
    with WeightFiles(tmp_path) as weights, pytest.raises(CheckpointError, match="plain file name"):
        weights.verify()


def test_special_files_are_refused_without_being_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="not a regular file"):
        WeightFiles(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "x.pth", "weights.pkl"])
def test_pickles_are_never_read(tmp_path: Path, name: str) -> None:
    marker = tmp_path / "ran"
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'touch %s'\ntR." % str(marker).encode())
    with pytest.raises(CheckpointError, match="pickles"):
        WeightFiles(tmp_path)
    assert not marker.exists()


def test_no_weights_and_no_folder_are_said_plainly(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no weights to load"):
        WeightFiles(tmp_path)
    (tmp_path / "model.npz").touch()
    with pytest.raises(CheckpointError, match="another format"):
        WeightFiles(tmp_path)
    with pytest.raises(CheckpointError, match="not a folder"):
        WeightFiles(tmp_path / "absent")


def test_a_file_that_shrinks_while_it_is_read_is_an_error_and_not_a_crash(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(1000, 1000)}, path)
    code = """
import os, sys, torch
from pathlib import Path
from unittest.mock import Mock
from paligemma.checkpoints.reader import WeightFiles
from paligemma.errors import CheckpointError
path = Path(sys.argv[1])
with WeightFiles(path.parent) as weights:
    os.truncate(path, 5000)
    try:
        weights.read_rows("a", 0, 1000)
    except CheckpointError as error:
        print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, path], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "was truncated" in done.stdout


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
def test_rows_are_read_as_they_are_stored(tmp_path: Path, dtype: torch.dtype) -> None:
    stored = torch.arange(40 * 3 * 2).view(40, 3, 2).to(dtype)
    save_file({"before": torch.zeros(3), "x": stored}, tmp_path / "model.safetensors")
    with WeightFiles(tmp_path) as weights:
        for start, end in ((0, 40), (16, 33), (32, 40), (7, 7)):
            found = weights.read_rows("x", start, end)
            assert found.dtype == dtype
            assert torch.equal(found, stored[start:end])


@pytest.mark.parametrize("shape", [(1,), (5_000_000,), (700, 5000), (20, 3_000_000), (0,), (9, 0)])
def test_blocks_of_rows_cover_all_and_begin_at_multiples_of_16(shape: tuple[int, ...]) -> None:
    blocks = list(row_blocks(shape))
    ends = [0, *(end for _, end in blocks)]
    assert [start for start, _ in blocks] == ends[:-1]
    assert ends[-1] == shape[0]
    for start, end in blocks:
        assert start % 16 == 0
        assert end - start <= 16 or (end - start) * prod(shape[1:]) <= 2**20


def test_equality_is_told_bit_by_bit(tmp_path: Path) -> None:
    a = torch.randn(1100, 1001, generator=torch.Generator().manual_seed(0))
    b = a.clone()
    b[-1, -1] += 1
    tensors = {"a": a, "same": a.clone(), "b": b, "half": a.half(), "flat": a.flatten().clone()}
    save_file(tensors, tmp_path / "model.safetensors")
    with WeightFiles(tmp_path) as weights:
        assert weights.hold_the_same("a", "same")
        assert not any(weights.hold_the_same("a", other) for other in ("b", "half", "flat"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_library_reads_what_is_written(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {"odd": torch.randn(3, 5).T, "long": torch.randn(1_100_003), "none": torch.empty(0)}
    to_write = [
        TensorToWrite(name=name, dtype=dtype, shape=tuple(tensor.shape), blocks=tensor.split(1000))
        for name, tensor in tensors.items()
    ]
    assert write_weight_file(tmp_path / "x.safetensors", to_write) == []
    found = load_file(tmp_path / "x.safetensors")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(found[name], tensor.to(dtype)), name


def test_the_writer_names_what_is_not_finite_in_the_dtype_of_the_file(tmp_path: Path) -> None:
    for dtype, broken in ((torch.bfloat16, ["nan"]), (torch.float16, ["nan", "large"])):
        tensors = {"nan": torch.tensor([1.0, torch.nan]), "large": torch.tensor([70_000.0])}
        to_write = [
            TensorToWrite(name=name, dtype=dtype, shape=tuple(tensor.shape), blocks=[tensor])
            for name, tensor in tensors.items()
        ]
        assert write_weight_file(tmp_path / f"{dtype}.safetensors", to_write) == broken


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_one_broken_value_is_seen_and_large_ones_are_not_taken_for_it(
    dtype: torch.dtype, value: float
) -> None:
    values = torch.full((1100, 1000), torch.finfo(dtype).max, dtype=dtype)
    assert is_finite(values)
    values[-1, -1] = value
    assert not is_finite(values)
    assert is_finite(torch.zeros(3, dtype=torch.uint8))
    assert is_finite(torch.zeros(0))
