"""Read the safetensors files of a checkpoint: one file, or shards under an index.

Files are read, never mapped into memory: a mapped file that is truncated or replaced while in use
kills the process (SIGBUS), reading one raises an error. Values are read in blocks of rows, which
needs no memory beyond that of the weights and a few megabytes.
"""

from __future__ import annotations

import json
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

from paligemma.checkpoints.checksums import verify_files
from paligemma.checkpoints.json_file import read_json
from paligemma.errors import CheckpointError

PLAIN = "model"
QUANTIZED = "quantized"
"""What file names begin with. Other readers look for `model.safetensors` only, and would fill what
they miss in a quantized checkpoint with random numbers: under another name they refuse it."""

DTYPE_CODES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
"""The stored dtypes that hold weights, by the name that safetensors gives them."""

STORED_DTYPES = DTYPE_CODES | {"U8": torch.uint8}
"""Every dtype that is read and written: quantized weights are bytes."""

_BLOCK = 2**20  # values read or written at once
_BLOCK_START = 16  # blocks begin at multiples of it: packed layers keep rows in sixteens
_SHARD_NAME = re.compile(rf"({PLAIN}|{QUANTIZED})-\d{{5}}-of-\d{{5}}\.safetensors")
_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """Where a tensor lies: `num_bytes` from `offset` on in `path`."""

    path: Path
    dtype_code: str
    shape: tuple[int, ...]
    offset: int
    num_bytes: int


class WeightFiles:
    """The tensors of a checkpoint folder by name; a context manager that holds the files open.

    Raises CheckpointError, which names the file and the reason, when a file is cut or damaged,
    when the index and the files disagree, when a name occurs twice, and when a file stands
    outside the folder (a hub cache, where names point into `blobs`, is known and allowed).
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
        """Rows from `start` up to `end` along the first axis, in the stored dtype."""
        stored = self.tensors[name]
        rows = torch.empty(end - start, *stored.shape[1:], dtype=STORED_DTYPES[stored.dtype_code])
        file = self._files[stored.path]
        file.seek(stored.offset + start * prod(stored.shape[1:]) * rows.element_size())
        buffer = rows.view(-1).view(torch.uint8).numpy().data
        while buffer:
            num_read = file.readinto(buffer)
            if not num_read:
                raise CheckpointError(
                    f"{stored.path} was truncated while being read. Another process is writing to "
                    "it; load it again afterwards."
                )
            buffer = buffer[num_read:]
        return rows

    def hold_the_same(self, first: str, second: str) -> bool:
        """Whether two tensors agree in dtype, shape and every bit."""
        one, two = self.tensors[first], self.tensors[second]
        if (one.dtype_code, one.shape) != (two.dtype_code, two.shape):
            return False
        return all(
            torch.equal(
                self.read_rows(first, *block).view(torch.uint8),
                self.read_rows(second, *block).view(torch.uint8),
            )
            for block in row_blocks(one.shape)
        )

    def verify(self) -> None:
        """Compare every file with its SHA-256; raise CheckpointError at the first difference."""
        verify_files(self.folder, self.paths)

    def _open(self, given: Path) -> None:
        if not self.folder.is_dir():
            raise CheckpointError(f"{given} is not a folder. Give the folder of a checkpoint.")
        names = [name(stem) for stem in self.stems for name in (single_file, index_file)]
        present = [name for name in names if (self.folder / name).exists()]
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
        self._check_place(path)
        try:
            # The library's parser refuses what is cut, empty, overlapping, full of holes or made
            # to exhaust memory. It does not notice that a name occurs twice, and keeps offsets
            # to itself, so the header is read here once more.
            with safe_open(path, framework="np"):
                pass
            self._files[path] = file = path.open("rb", buffering=0)
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length), object_pairs_hook=_refuse_repeats)
        except (SafetensorError, OSError, ValueError) as error:
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

    def _check_place(self, path: Path) -> None:
        """The file must be a regular one, in the folder or in the hub cache around it."""
        try:
            target = path.resolve(strict=True)
            regular = stat.S_ISREG(target.stat().st_mode)
        except (OSError, RuntimeError) as error:  # RuntimeError: links that lead in a circle
            reason = error.strerror if isinstance(error, OSError) else error
            raise CheckpointError(
                f"{path} is missing or unreadable ({reason}). The checkpoint is incomplete; "
                "download or copy it again."
            ) from error
        if not regular:
            raise CheckpointError(f"{path} is not a regular file. Copy the file into the folder.")
        allowed = self.folder
        if self.folder.parent.name == "snapshots":  # hub cache: <model>/snapshots/<revision>
            allowed = self.folder.parent.parent
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
    """(start, end) of blocks of rows that hold a few megabytes; they start at multiples of 16.

    >>> list(row_blocks((2500, 1024)))
    [(0, 1024), (1024, 2048), (2048, 2500)]
    """
    step = max(1, _BLOCK // max(1, prod(shape[1:])) // _BLOCK_START) * _BLOCK_START
    for start in range(0, shape[0], step):
        yield start, min(start + step, shape[0])


def is_finite(values: Tensor) -> bool:
    """Whether there is neither NaN nor infinity among the values."""
    if values.numel() == 0 or not values.is_floating_point():
        return True
    smallest, largest = values.aminmax()  # NaN where one of the values is
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
    """The first names and the count of the rest.

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
    pickles = [name for name in names if name.endswith(_PICKLE_SUFFIXES)]
    if pickles:
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
