"""Read and write NumPy's .npz archives a few rows at a time, without unpacking them.

An .npz is a zip archive with one .npy member per array. `numpy.savez` stores members uncompressed,
so rows are read from their place in the file, in any order; compressed members are decompressed as
far as the rows that are needed. Arrays of objects, which are pickles, are never read.
"""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from paligemma.errors import CheckpointError

_DTYPES = {"<f4": torch.float32, "<f2": torch.float16, "|V2": torch.bfloat16}
"""NumPy has no bfloat16: JAX stores its two bytes as an array of type void."""
_DESCRIPTIONS = {dtype: description for description, dtype in _DTYPES.items()}

_LOCAL_HEADER = struct.Struct("<4s5H3I2H")
"""The header before each member of a zip archive; it ends with the lengths of name and extra."""

_MAX_MEMBERS = 100_000
_MAX_HEADER = 10_000  # bytes of a .npy header; NumPy's own limit


@dataclass(frozen=True, kw_only=True)
class _Member:
    info: zipfile.ZipInfo
    dtype: torch.dtype
    shape: tuple[int, ...]
    is_fortran: bool
    offset: int
    """Where the values begin: in the file, or in the decompressed member if it is compressed."""


class NpzStore:
    """The arrays of an .npz file. Raises CheckpointError for a file that is damaged or lies."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._streams: dict[str, IO[bytes]] = {}
        """The decompressed members that were read from."""
        self._archive = _open_archive(path)
        self._file = path.open("rb", buffering=0)
        try:
            self._members = self._read_headers()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        for stream in self._streams.values():
            stream.close()
        self._archive.close()
        self._file.close()

    @property
    def names(self) -> Collection[str]:
        return self._members.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return self._members[name].shape

    def dtype(self, name: str) -> torch.dtype:
        return self._members[name].dtype

    def read(self, name: str, index: tuple[int, ...], start: int, end: int) -> Tensor:
        """Read rows `start` to `end` of the block `array[index]`."""
        member = self._members[name]
        if member.is_fortran:  # the rows of a block are scattered over the whole member
            whole = self._read(name, 0, member.shape[::-1])
            return whole.permute(*reversed(range(whole.ndim)))[index][start:end]
        first = 0
        for i, size in zip(index, member.shape, strict=False):
            first = first * size + i
        rest = member.shape[len(index) :]
        num_values = prod(rest[1:])
        return self._read(name, (first * rest[0] + start) * num_values, (end - start, *rest[1:]))

    def _read(self, name: str, first: int, shape: tuple[int, ...]) -> Tensor:
        """Read values in the order of the file, from number `first` on."""
        member = self._members[name]
        values = torch.empty(shape, dtype=member.dtype)
        buffer = values.view(-1).view(torch.uint8).numpy().data
        try:
            stream = self._stream(name)
            stream.seek(member.offset + first * member.dtype.itemsize)
            while buffer:
                num_read = stream.readinto(buffer)  # type: ignore[attr-defined]
                if not num_read:
                    raise EOFError("it ends too early")
                buffer = buffer[num_read:]
        except _DAMAGE as error:
            raise CheckpointError(
                f"{self.path}: the array {name} cannot be read: {_reason(error)}. The file is "
                "damaged; copy or download it again."
            ) from error
        return values

    def _stream(self, name: str) -> IO[bytes]:
        """Return the stream that a member's offset refers to.

        Uncompressed members are read from the file itself: `zipfile` reads all that is skipped.
        """
        info = self._members[name].info
        if info.compress_type == zipfile.ZIP_STORED:
            return self._file
        if name not in self._streams:
            self._streams[name] = self._archive.open(info)
        return self._streams[name]

    def _read_headers(self) -> dict[str, _Member]:
        infos = self._archive.infolist()
        if len(infos) > _MAX_MEMBERS:
            raise CheckpointError(f"{self.path} contains {len(infos)} files, too many for a model.")
        members: dict[str, _Member] = {}
        for info in infos:
            name = info.filename.removesuffix(".npy")
            if name.endswith("data.pkl"):
                raise CheckpointError(
                    f"{self.path} is a pickle (torch.save), which can run code when opened, so it "
                    "is never read. If you trust it, convert it to safetensors, for example with "
                    "transformers' save_pretrained."
                )
            if name == info.filename:
                raise CheckpointError(
                    f"{self.path} contains {info.filename!r}, which is not an array (.npy). It is "
                    "not the .npz file of a model."
                )
            if name in members:
                raise CheckpointError(f"{self.path} contains the array {name} twice.")
            try:
                members[name] = _read_header(self._archive, info, self._file)
            except _DAMAGE as error:
                raise CheckpointError(
                    f"{self.path}: the array {name} cannot be read: {_reason(error)}. The file is "
                    "damaged or not of a model; copy or download it again."
                ) from error
        return members


_DAMAGE = (
    OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, struct.error, RuntimeError,
    NotImplementedError,
)  # fmt: skip
"""What Python's zip reader and NumPy's header reader raise for damaged files."""


def _reason(error: Exception) -> str:
    """What a reader said, which may quote the damaged bytes at length."""
    text = str(error)
    return text if len(text) <= 200 else text[:197] + "..."


def _open_archive(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except _DAMAGE as error:
        raise CheckpointError(
            f"{path} is damaged or incomplete: {_reason(error)}. An .npz file ends with a "
            "directory of its arrays; copy or download it again. If the file was published in "
            "parts, join them: cat NAME.part* > NAME."
        ) from error


def _read_header(archive: zipfile.ZipFile, info: zipfile.ZipInfo, file: IO[bytes]) -> _Member:
    """Raise ValueError, or what the zip reader raises, for a member that is not an array."""
    if info.flag_bits & 1:
        raise ValueError("it is encrypted")
    with archive.open(info) as stream:
        version = npy.read_magic(stream)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"its .npy version is {version}; expected (1, 0) or (2, 0)")
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, is_fortran, dtype = read(stream, max_header_size=_MAX_HEADER)
        offset = stream.tell()
    if dtype.hasobject:
        raise ValueError("it contains Python objects, which can run code and are never read")
    if dtype.str not in _DTYPES:
        raise ValueError(f"its type is {dtype}; expected float32, float16 or bfloat16 (void of 2)")
    if any(size < 0 for size in shape):
        raise ValueError(f"its shape is {shape}")
    expected = offset + prod(shape) * dtype.itemsize
    if info.file_size != expected:
        raise ValueError(f"it has {info.file_size} bytes; its shape {shape} needs {expected}")
    if info.compress_type == zipfile.ZIP_STORED:
        offset += _start_of_member(info, file)
    return _Member(
        info=info,
        dtype=_DTYPES[dtype.str],
        shape=tuple(shape),
        is_fortran=is_fortran and len(shape) > 1,
        offset=offset,
    )


def _start_of_member(info: zipfile.ZipInfo, file: IO[bytes]) -> int:
    """Return where the content of an uncompressed member begins in the file."""
    if info.compress_size != info.file_size:
        raise ValueError(f"it has {info.file_size} bytes, but occupies {info.compress_size}")
    file.seek(info.header_offset)
    header = file.read(_LOCAL_HEADER.size)
    *_, len_name, len_extra = _LOCAL_HEADER.unpack(header)
    start = info.header_offset + len(header) + len_name + len_extra
    if start + info.file_size > file.seek(0, os.SEEK_END):
        raise ValueError("it extends beyond the end of the file")
    return int(start)


@dataclass(frozen=True, kw_only=True)
class ArrayToWrite:
    """An array, given as its values in order, in pieces of any shape."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    pieces: Iterable[Tensor]


def write_npz(path: Path, arrays: Mapping[str, ArrayToWrite]) -> None:
    """Write arrays piece by piece.

    The file is as `numpy.savez` writes it: uncompressed, in zip's 64-bit form.
    """
    with zipfile.ZipFile(path, "x", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for name, array in arrays.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as stream:
                header = {
                    "descr": np.dtype(_DESCRIPTIONS[array.dtype]).str,
                    "fortran_order": False,
                    "shape": array.shape,
                }
                npy.write_array_header_1_0(stream, header)
                num_values = 0
                for piece in array.pieces:
                    values = piece.to(device="cpu", dtype=array.dtype).contiguous()
                    num_values += values.numel()
                    stream.write(values.view(-1).view(torch.uint8).numpy().data)
            assert num_values == prod(array.shape), name
