"""Read the safetensors files of a checkpoint: one file, or shards under an index.

Files are read, not mapped into memory: if a mapped file is truncated while in use, the process dies
(SIGBUS), whereas reading raises an error. Values are read in blocks of rows, so that only a few
megabytes are needed in addition to the weights.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import FileIO
from math import isfinite, prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from paligemma.checkpoints.files import read_json, verify_files
from paligemma.checkpoints.refused import why_file
from paligemma.errors import CheckpointError

PLAIN = "model"
QUANTIZED = "quantized"
"""Stems of file names. Other readers look for `model.safetensors` and would initialize the weights
missing from a quantized checkpoint randomly; under another name, they refuse it."""

DTYPE_CODES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
"""The dtypes of stored weights, by their names in safetensors."""

STORED_DTYPES = DTYPE_CODES | {"U8": torch.uint8, "I8": torch.int8, "U32": torch.uint32}
"""All dtypes that are read and written; quantized weights are integers."""

_BLOCK = 2**20  # values read or written at once
_BLOCK_START = 16  # blocks start at multiples of it, because packed layers group 16 rows
_SHARD_NAME = re.compile(rf"({PLAIN}|{QUANTIZED})-\d{{5}}-of-\d{{5}}\.safetensors")
_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """The location of a tensor: `num_bytes` from `offset` on in `path`."""

    path: Path
    dtype_code: str
    shape: tuple[int, ...]
    offset: int
    num_bytes: int


class WeightFiles:
    """The tensors of a checkpoint folder by name; a context manager that keeps the files open.

    Raises CheckpointError, which names the file and the reason, when a file is truncated or
    damaged, when the index and the files disagree, when a name occurs twice, and when a file is
    outside the folder (the links of a hub cache into `blobs` are allowed).
    """

    def __init__(self, folder: Path, stems: tuple[str, ...] = (PLAIN, QUANTIZED)) -> None:
        self.folder = folder.resolve()
        self.stems = stems
        self.tensors: dict[str, StoredTensor] = {}
        self.metadata: dict[str, str] = {}
        self._files: dict[Path, FileIO] = {}
        try:
            self._open(folder)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> WeightFiles:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        for file in self._files.values():
            file.close()

    @property
    def paths(self) -> tuple[Path, ...]:
        """The safetensors files of this checkpoint."""
        return tuple(self._files)

    def read_rows(self, name: str, start: int, end: int) -> Tensor:
        """Read the rows from `start` up to `end` along the first axis, in the stored dtype."""
        stored = self.tensors[name]
        rows = torch.empty(end - start, *stored.shape[1:], dtype=STORED_DTYPES[stored.dtype_code])
        first = start * prod(stored.shape[1:]) * rows.element_size()
        self._read_into(rows.view(-1).view(torch.uint8), stored, first)
        return rows

    def read_bytes(self, name: str, start: int, end: int) -> Tensor:
        """Read the bytes from `start` up to `end` of a tensor of any dtype and shape."""
        content = torch.empty(end - start, dtype=torch.uint8)
        self._read_into(content, self.tensors[name], start)
        return content

    def _read_into(self, target: Tensor, stored: StoredTensor, start: int) -> None:
        file = self._files[stored.path]
        file.seek(stored.offset + start)
        buffer = target.numpy().data
        while buffer:
            num_read = file.readinto(buffer)
            if not num_read:
                raise CheckpointError(
                    f"{stored.path} was truncated while being read. Another process is writing to "
                    "it; load it again afterwards."
                )
            buffer = buffer[num_read:]

    def hold_the_same(self, first: str, second: str) -> bool:
        """Return whether two tensors agree in dtype, shape and every bit."""
        stored, other = self.tensors[first], self.tensors[second]
        if (stored.dtype_code, stored.shape) != (other.dtype_code, other.shape):
            return False
        return all(
            torch.equal(
                self.read_rows(first, *block).view(torch.uint8),
                self.read_rows(second, *block).view(torch.uint8),
            )
            for block in row_blocks(stored.shape)
        )

    def verify(self) -> None:
        """Compare every file with its SHA-256; raise CheckpointError at the first difference."""
        verify_files(self.folder, self.paths)

    def _open(self, folder: Path) -> None:
        if not self.folder.is_dir():
            raise CheckpointError(f"{folder} is not a folder. Give the folder of a checkpoint.")
        names = [name(stem) for stem in self.stems for name in (single_file, index_file)]
        present = [name for name in names if (self.folder / name).exists()]
        if present == [single_file(PLAIN), index_file(PLAIN)]:
            # MLX writes an index even for a single file.
            weight_map = read_json(self.folder / present[1]).get("weight_map")
            if isinstance(weight_map, dict) and all(f == present[0] for f in weight_map.values()):
                del present[0]
        if len(present) > 1:
            raise CheckpointError(
                f"{self.folder} contains both {present[0]} and {present[1]}. Ambiguous: remove one "
                "of them."
            )
        if not present:
            raise CheckpointError(_why_no_weights(self.folder))
        path = self.folder / present[0]
        if path.suffix == ".json":
            self._open_shards(path)
        else:
            self.tensors = self._open_file(path)

    def _open_shards(self, index: Path) -> None:
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointError(
                f"{index} has no weight_map that maps tensors to files. Download or copy it again."
            )
        for shard in sorted({str(shard) for shard in weight_map.values()}):
            if Path(shard).name != shard or "\\" in shard or not shard.endswith(".safetensors"):
                raise CheckpointError(
                    f"{index} names the file {shard!r}; expected plain names of .safetensors "
                    "files in the same folder."
                )
            tensors = self._open_file(self.folder / shard)
            listed = {name for name, file in weight_map.items() if file == shard}
            if tensors.keys() != listed:
                raise CheckpointError(
                    f"{index} and {shard} disagree. "
                    + _name_list("Listed but not in the file", listed - tensors.keys())
                    + _name_list("In the file but not listed", tensors.keys() - listed)
                    + "The files do not belong together; download or save them again."
                )
            self.tensors |= tensors
        strays = {p.name for p in self.folder.iterdir() if _SHARD_NAME.fullmatch(p.name)}
        strays -= set(weight_map.values())
        if strays:
            raise CheckpointError(
                f"{index} does not list {', '.join(sorted(strays))}. The folder mixes two "
                "checkpoints: remove the files of one of them."
            )

    def _open_file(self, path: Path) -> dict[str, StoredTensor]:
        check_location(path, self.folder)
        try:
            # The library's parser refuses files that are truncated, empty, have overlaps or gaps,
            # or would exhaust memory. It does not detect duplicate names and does not expose
            # offsets, so the header is parsed again here.
            with safe_open(path, framework="np"):
                pass
            self._files[path] = file = path.open("rb", buffering=0)
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length), object_pairs_hook=_refuse_repeats)
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error}.") from error
        except (SafetensorError, ValueError) as error:
            raise CheckpointError(
                f"{path} is damaged or not a safetensors file: {error}. Copy or download it again."
            ) from error
        self.metadata |= header.pop("__metadata__", None) or {}
        tensors = {}
        for name, entry in header.items():
            start, end = entry["data_offsets"]
            tensors[name] = StoredTensor(
                path=path,
                dtype_code=entry["dtype"],
                shape=tuple(entry["shape"]),
                offset=8 + length + start,
                num_bytes=end - start,
            )
        return tensors


def check_location(path: Path, folder: Path) -> None:
    """Raise unless this is a regular file in the resolved folder, or in the hub cache
    around it.
    """
    try:
        # Unlike Path.resolve, which raises RuntimeError for circular links before Python 3.13.
        target = Path(os.path.realpath(path, strict=True))
        regular = stat.S_ISREG(target.stat().st_mode)
    except OSError as error:
        raise CheckpointError(
            f"{path} is missing or unreadable ({error.strerror}). The checkpoint is "
            "incomplete; download or copy it again."
        ) from error
    if not regular:
        raise CheckpointError(f"{path} is not a regular file. Copy the file into the folder.")
    allowed = folder
    if folder.parent.name == "snapshots":  # hub cache: <model>/snapshots/<revision>
        allowed = folder.parent.parent
    if not target.is_relative_to(allowed):
        raise CheckpointError(
            f"{path} is a link to {target}, outside the checkpoint. Copy the file into the "
            "folder, or give the folder that contains it."
        )


def single_file(stem: str) -> str:
    return f"{stem}.safetensors"


def index_file(stem: str) -> str:
    return f"{stem}.safetensors.index.json"


def shard_file(stem: str, number: int, count: int) -> str:
    """
    >>> shard_file("model", 1, 2)
    'model-00001-of-00002.safetensors'
    """
    return f"{stem}-{number:05}-of-{count:05}.safetensors"


def row_blocks(shape: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of blocks of rows of a few megabytes; they start at multiples of 16.

    >>> list(row_blocks((2500, 1024)))
    [(0, 1024), (1024, 2048), (2048, 2500)]
    """
    step = max(1, _BLOCK // max(1, prod(shape[1:])) // _BLOCK_START) * _BLOCK_START
    for start in range(0, shape[0], step):
        yield start, min(start + step, shape[0])


def is_finite(values: Tensor) -> bool:
    """Return whether the values contain neither NaN nor infinity."""
    if values.numel() == 0 or not values.is_floating_point():
        return True
    smallest, largest = values.aminmax()  # NaN if any value is
    return isfinite(smallest) and isfinite(largest)


def _refuse_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name {twice!r} occurs twice in the header")
    return content


def _name_list(what: str, names: set[str]) -> str:
    return f"{what}: {shorten(sorted(names))}. " if names else ""


def shorten(names: Sequence[str], limit: int = 10) -> str:
    """Join the first names, and the number of the others.

    >>> shorten(["a", "b", "c"], limit=2)
    'a, b and 1 more'
    """
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"


def _why_no_weights(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir())
    if any(_SHARD_NAME.fullmatch(name) for name in names):
        return (
            f"{folder} contains shards but no index ({index_file(PLAIN)} or "
            f"{index_file(QUANTIZED)}). Download or copy it too."
        )
    for path in sorted(folder.iterdir()):
        if path.is_file() and (refusal := why_file(path)):
            return f"{folder} contains no safetensors. {refusal}"
    if pickles := [name for name in names if name.endswith(_PICKLE_SUFFIXES)]:
        return (
            f"{folder} contains weights only as {shorten(pickles)}. These are pickles, which can "
            "run code when opened, so they are never read. If you trust them, convert them to "
            "safetensors, for example with transformers' save_pretrained."
        )
    if any(name.endswith((".npz", ".h5", ".sbs")) for name in names):
        return (
            f"{folder} contains weights in another format ({shorten(names)}); only safetensors is "
            "supported. Use the release without -jax or -keras in its name."
        )
    return (
        f"{folder} contains neither {single_file(PLAIN)} nor {index_file(PLAIN)}, so there are no "
        "weights to load. Give the folder of a complete checkpoint."
    )
