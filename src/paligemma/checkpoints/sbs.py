"""gemma.cpp's files (.sbs): named blobs, the structures in them, and its types of weights.

    0        magic, 0, 65536                      16 bytes, zeros up to 256
    256      blobs, each from a multiple of 256   the tensors, `config`, `tokenizer`, `toc`
    end      names (16 bytes each), offset and size of each blob; magic, number of blobs, file size

Files from before August 2025 have the header and the directory in front of the blobs. Structures
are sequences of 32-bit words. Sources: `io/blob_store.cc`, `io/fields.cc`, `util/mat.h` and
`compression/types.h` of gemma.cpp.
"""

from __future__ import annotations

import io
import math
import os
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from paligemma.errors import CheckpointError

MAGIC = b"SBS\n"

CONFIG, TOKENIZER, TABLE = "config", "tokenizer", "toc"
"""The blobs that are not tensors."""

_HEADER = struct.Struct("<4sIQ")  # magic, number of blobs, size of the file
_NAME_BYTES = 16
_DIRECTORY_BYTES = 2 * _NAME_BYTES  # per blob: its name, and two 64-bit numbers
_BLOB_ALIGN, _FILE_ALIGN = 256, 2**16
_MAX_BLOBS = 2**14
_MAX_SMALL_BLOB = 64 * 1024**2  # the released tokenizer has 4 MB
_MAX_STRING_WORDS = 64
_I8_GROUP, _I8_GROUP_HEADER = 128, 4  # values; bytes of a bfloat16 scale and zero point
_NUQ_GROUP, _NUQ_CLUSTERS, _NUQ_ALIGN = 256, 16, 64
SFP_LARGEST = 1.875


class WeightType(IntEnum):
    """The types of stored tensors that gemma.cpp's readers know."""

    f32 = 1
    bf16 = 2
    sfp = 3
    """One byte: sign, and exponent and mantissa of 4 + 3 bits, or 5 + 2 for small values."""
    nuq = 4
    """4 bits: an index into 16 SFP values per 256 weights."""
    i8 = 8
    """8 bits, with a scale and a zero point per 128 weights."""

    @property
    def bits(self) -> int:
        """As gemma.cpp orders types by size."""
        return {"f32": 32, "bf16": 16, "sfp": 8, "nuq": 4, "i8": 8}[self.name]

    def num_bytes(self, num_values: int) -> int:
        """Return the size of a tensor."""
        if self is WeightType.nuq:
            return _NUQ_CLUSTERS * -(-num_values // _NUQ_GROUP) + -(-num_values // 2)
        if self is WeightType.i8:
            return _I8_GROUP_HEADER * -(-num_values // _I8_GROUP) + num_values
        return num_values * self.bits // 8


@dataclass(frozen=True, kw_only=True)
class Structure:
    """A structure of the format: its fields in order, with their kinds."""

    name: str
    fields: Mapping[str, Kind]


@dataclass(frozen=True)
class Vector:
    element: Kind


Kind = type[int] | type[float] | type[str] | Structure | Vector
"""The kind of a field; numbers have one word."""

TENSOR = Structure(
    name="tensor",
    fields={
        "name": str,
        "type": int,
        "element_bytes": int,
        "num_elements": int,
        "rows": int,
        "cols": int,
        "scale": float,
        "stride": int,
    },
)


def encode_structure(kind: Kind, value: Any) -> list[int]:
    """Return the words of a value: a number, a string, a list or, for a Structure, a dict.

    >>> encode_structure(Vector(str), ["w"])
    [1, 1, 119]
    """
    if kind is int:
        return [value]
    if kind is float:
        return list(struct.unpack("<I", struct.pack("<f", value)))
    if kind is str:
        raw = value.encode("ascii")
        words = -(-len(raw) // 4)
        return [words, *struct.unpack(f"<{words}I", raw.ljust(4 * words, b"\0"))]
    if isinstance(kind, Vector):
        return [
            len(value),
            *(word for item in value for word in encode_structure(kind.element, item)),
        ]
    assert isinstance(kind, Structure)
    words_of = [encode_structure(field, value[name]) for name, field in kind.fields.items()]
    content = [word for words in words_of for word in words]
    return [len(content), *content]


class Words:
    """Reads structures from a blob. Raises CheckpointError where they do not fit into it."""

    def __init__(self, blob: bytes, where: str) -> None:
        if len(blob) % 4:
            raise CheckpointError(f"{where} has {len(blob)} bytes; expected a multiple of 4.")
        self._words: tuple[int, ...] = struct.unpack(f"<{len(blob) // 4}I", blob)
        self._next = 0
        self._where = where

    @property
    def at_end(self) -> bool:
        return self._next == len(self._words)

    def structure(self, kind: Structure) -> dict[str, Any]:
        """Read the fields that are stored; older writers leave out the last ones."""
        end = self._next + 1 + self._take(len(self._words))
        self._check(end <= len(self._words), f"{kind.name} ends beyond its blob")
        content = {}
        for name, field in kind.fields.items():
            if self._next == end:
                break
            content[name] = self._value(field, end)
        self._next = end  # newer writers append fields
        return content

    def _value(self, kind: Kind, end: int) -> Any:
        if kind is int:
            return self._take(end)
        if kind is float:
            value = struct.unpack("<f", struct.pack("<I", self._take(end)))[0]
            self._check(math.isfinite(value), "a number is NaN or infinity")
            return float(str(np.float32(value)))  # 30.1, not 30.100000381
        if kind is str:
            return self._string(end)
        if isinstance(kind, Vector):
            count = self._take(end)
            self._check(count <= end - self._next, "a list is longer than its structure")
            return [self._value(kind.element, end) for _ in range(count)]
        assert isinstance(kind, Structure)
        content = self.structure(kind)
        self._check(self._next <= end, f"{kind.name} is longer than the structure around it")
        return content

    def _string(self, end: int) -> str:
        count = self._take(end)
        self._check(count <= min(_MAX_STRING_WORDS, end - self._next), "a string is too long")
        raw = struct.pack(f"<{count}I", *(self._take(end) for _ in range(count))).rstrip(b"\0")
        self._check(raw.isascii() and b"\0" not in raw, "a string is not ASCII")
        return raw.decode("ascii")

    def _take(self, end: int) -> int:
        self._check(self._next < end, "a value is missing")
        self._next += 1
        return self._words[self._next - 1]

    def _check(self, valid: bool, problem: str) -> None:
        if not valid:
            raise CheckpointError(
                f"{self._where} is damaged at word {self._next}: {problem}. Download or convert "
                "the file again."
            )


@dataclass(frozen=True, kw_only=True)
class StoredMatrix:
    """A tensor in the file. Its values are those of its type times `scale`."""

    type: WeightType
    shape: tuple[int, int]
    scale: float
    offset: int

    @property
    def dtype(self) -> torch.dtype:
        """The smallest dtype that holds its values exactly."""
        exact_in_bf16 = self.type is WeightType.bf16
        if self.type in (WeightType.sfp, WeightType.nuq):
            exact_in_bf16 = self.scale == 1
        return torch.bfloat16 if exact_in_bf16 else torch.float32


class SbsFile:
    """The blobs and tensors of a file, which is kept open. Tensors are matrices.

    Raises CheckpointError, which says what is damaged, before it allocates memory for it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = path.open("rb", buffering=0)
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from error
        try:
            self.size = os.fstat(self._file.fileno()).st_size
            self.version, self.blobs = self._read_directory()
            self.tensors = self._read_table() if TABLE in self.blobs else {}
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._file.close()

    @property
    def names(self) -> Sequence[str]:
        return list(self.tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.tensors[name].shape

    def dtype(self, name: str) -> torch.dtype:
        return self.tensors[name].dtype

    def read(self, name: str, index: tuple[int, ...], start: int, end: int) -> Tensor:
        """Read rows of a matrix, or with `index` values of one of its rows."""
        matrix = self.tensors[name]
        columns = 1 if index else matrix.shape[1]
        first = sum(index) * matrix.shape[1] + start * columns
        values = self._values(matrix, first, first + (end - start) * columns)
        return values if index else values.view(end - start, columns)

    def blob(self, name: str) -> bytes:
        """Read a whole blob that is not a tensor."""
        offset, num_bytes = self.blobs[name]
        if num_bytes > _MAX_SMALL_BLOB:
            raise self._damaged(f"its {name} has {num_bytes} bytes; the limit is {_MAX_SMALL_BLOB}")
        return self._bytes(offset, num_bytes).tobytes()

    def _values(self, matrix: StoredMatrix, first: int, end: int) -> Tensor:
        match matrix.type:
            case WeightType.f32:
                raw = self._bytes(matrix.offset + 4 * first, 4 * (end - first))
                return torch.from_numpy(raw.view(np.float32))
            case WeightType.bf16:
                raw = self._bytes(matrix.offset + 2 * first, 2 * (end - first))
                return torch.from_numpy(raw.view(np.int16)).view(torch.bfloat16)
            case WeightType.sfp:
                values = decode_sfp(self._bytes(matrix.offset + first, end - first))
            case WeightType.nuq:
                values = self._nuq(matrix, first, end)
            case WeightType.i8:
                values = self._i8(matrix, first, end)
        return values if matrix.scale == 1 else values.float() * matrix.scale

    def _nuq(self, matrix: StoredMatrix, first: int, end: int) -> Tensor:
        tables_bytes = _NUQ_CLUSTERS * -(-math.prod(matrix.shape) // _NUQ_GROUP)
        indices = matrix.offset + tables_bytes
        group, last = first // _NUQ_GROUP, -(-end // _NUQ_GROUP)
        tables = self._bytes(
            matrix.offset + group * _NUQ_CLUSTERS, (last - group) * _NUQ_CLUSTERS
        ).reshape(-1, _NUQ_CLUSTERS)
        start, stop = first // 2, -(-end // 2)
        packed = self._bytes(indices + start, stop - start)
        nibbles = np.stack((packed & 15, packed >> 4), axis=1).reshape(-1)
        nibbles = nibbles[first - 2 * start :][: end - first]
        groups = np.arange(first, end) // _NUQ_GROUP - group
        return decode_sfp(tables[groups, nibbles])

    def _i8(self, matrix: StoredMatrix, first: int, end: int) -> Tensor:
        step = _I8_GROUP_HEADER + _I8_GROUP
        group, last = first // _I8_GROUP, -(-end // _I8_GROUP)
        total = WeightType.i8.num_bytes(math.prod(matrix.shape))
        raw = self._bytes(matrix.offset + group * step, min(last * step, total) - group * step)
        padded = np.zeros((last - group) * step, dtype=np.uint8)
        padded[: len(raw)] = raw
        rows = torch.from_numpy(padded.reshape(-1, step))
        scales = rows[:, :_I8_GROUP_HEADER].contiguous().view(torch.bfloat16).float()
        values = rows[:, _I8_GROUP_HEADER:].view(torch.int8).float()
        values = ((values - scales[:, 1:]) * scales[:, :1]).view(-1)
        return values[first - group * _I8_GROUP :][: end - first]

    def _read_directory(self) -> tuple[int, dict[str, tuple[int, int]]]:
        if self.size < _BLOB_ALIGN + _HEADER.size:
            raise self._damaged(f"it has only {self.size} bytes")
        magic, count, file_bytes = _HEADER.unpack(self._bytes(0, _HEADER.size).data)
        if magic != MAGIC:
            raise CheckpointError(
                f"{self.path} is not a file of gemma.cpp: it starts with {magic!r}, expected "
                f"{MAGIC!r}."
            )
        version = 1 if count else 2
        if version == 2:
            footer = self._bytes(self.size - _HEADER.size, _HEADER.size)
            magic, count, file_bytes = _HEADER.unpack(footer.data)
            if magic != MAGIC:
                raise self._damaged("it does not end with a directory, so its end is missing")
        directory_bytes = count * _DIRECTORY_BYTES
        if not 1 <= count < _MAX_BLOBS or directory_bytes + _BLOB_ALIGN > self.size:
            raise self._damaged(f"it claims to contain {count} blobs")
        if file_bytes != self.size:
            raise self._damaged(f"it has {self.size} bytes, and its header says {file_bytes}")
        start = _HEADER.size if version == 1 else self.size - _HEADER.size - directory_bytes
        first = _rounded(_HEADER.size + directory_bytes) if version == 1 else _BLOB_ALIGN
        limit = self.size if version == 1 else start
        raw = self._bytes(start, directory_bytes).tobytes()
        names = [
            raw[i : i + _NAME_BYTES].rstrip(b"\0")
            for i in range(0, count * _NAME_BYTES, _NAME_BYTES)
        ]
        ranges = struct.unpack(f"<{2 * count}Q", raw[count * _NAME_BYTES :])
        return version, self._check_directory(
            names, list(zip(ranges[::2], ranges[1::2], strict=True)), first, limit
        )

    def _check_directory(
        self, names: list[bytes], ranges: list[tuple[int, int]], first: int, limit: int
    ) -> dict[str, tuple[int, int]]:
        blobs: dict[str, tuple[int, int]] = {}
        expected = first
        for raw, (offset, num_bytes) in zip(names, ranges, strict=True):
            name = raw.decode("ascii", errors="backslashreplace")
            if not raw or not raw.isascii() or not name.isprintable():
                raise self._damaged(f"a blob is named {raw!r}")
            if name in blobs:
                raise self._damaged(f"it contains {name!r} twice")
            if offset != expected or num_bytes == 0 or offset + num_bytes > limit:
                raise self._damaged(
                    f"{name!r} should have {num_bytes} bytes from {offset} on; it can only start "
                    f"at {expected} and end before {limit}"
                )
            blobs[name] = (offset, num_bytes)
            expected = _rounded(offset + num_bytes)
        return blobs

    def _read_table(self) -> dict[str, StoredMatrix]:
        words = Words(self.blob(TABLE), f"{TABLE!r} of {self.path}")
        tensors: dict[str, StoredMatrix] = {}
        while not words.at_end:
            entry = words.structure(TENSOR)
            if len(entry) < len(TENSOR.fields):
                raise self._damaged(f"its table says too little about {entry.get('name')!r}")
            name = entry["name"]
            if name in tensors:
                raise self._damaged(f"its table lists {name!r} twice")
            tensors[name] = self._matrix(name, entry)
        return tensors

    def _matrix(self, name: str, entry: Mapping[str, Any]) -> StoredMatrix:
        if name not in self.blobs:
            raise self._damaged(f"its table lists {name!r}, which it does not contain")
        if entry["type"] not in set(WeightType):
            raise CheckpointError(
                f"{name!r} in {self.path} has type {entry['type']}; only "
                f"{', '.join(kind.name for kind in WeightType)} can be read."
            )
        weight_type = WeightType(entry["type"])
        shape = (entry["rows"], entry["cols"])
        offset, num_bytes = self.blobs[name]
        if num_bytes != weight_type.num_bytes(math.prod(shape)) or entry["stride"] != shape[1]:
            raise self._damaged(
                f"{name!r} has {num_bytes} bytes, which are not {shape[0]} rows of {shape[1]} "
                f"{weight_type.name} values, one after the other"
            )
        num_groups = -(-math.prod(shape) // _NUQ_GROUP)
        if weight_type is WeightType.nuq and num_groups * _NUQ_CLUSTERS % _NUQ_ALIGN:
            raise CheckpointError(
                f"{name!r} in {self.path} has {math.prod(shape)} nuq values; gemma.cpp writes them "
                "in whole only if their number is a multiple of 1024."
            )
        if not entry["scale"] > 0:
            raise self._damaged(f"the scale of {name!r} is {entry['scale']}")
        scale = entry["scale"] if weight_type in (WeightType.sfp, WeightType.nuq) else 1.0
        if scale != entry["scale"]:
            raise self._damaged(
                f"{name!r} has type {weight_type.name} and scale {entry['scale']}; expected 1"
            )
        return StoredMatrix(type=weight_type, shape=shape, scale=scale, offset=offset)

    def _bytes(self, offset: int, count: int) -> NDArray[np.uint8]:
        """Read into an aligned array of its own."""
        raw = np.empty(count, dtype=np.uint8)
        self._file.seek(offset)
        buffer = raw.data
        while buffer:
            num_read = self._file.readinto(buffer)
            if not num_read:
                raise CheckpointError(
                    f"{self.path} was truncated while being read. Another process is writing to "
                    "it; read it again afterwards."
                )
            buffer = buffer[num_read:]
        return raw

    def _damaged(self, problem: str) -> CheckpointError:
        return CheckpointError(
            f"{self.path} is damaged: {problem}. Download or convert the file again."
        )


@dataclass(frozen=True, kw_only=True)
class NewMatrix:
    """A tensor to write."""

    type: WeightType
    shape: tuple[int, int]
    pieces: Callable[[], Iterable[Tensor]]
    """Returns its float32 or, for bf16, bfloat16 values in order. Called twice for sfp."""


def write_sbs_file(
    path: Path, tensors: Mapping[str, NewMatrix], blobs: Mapping[str, bytes]
) -> None:
    """Write a new file. Tensors are written as they come, so that little memory is needed."""
    with path.open("xb") as file:
        writer = _Writer(file)
        table: list[int] = []
        for name, matrix in tensors.items():
            scale = _sfp_scale(matrix.pieces()) if matrix.type is WeightType.sfp else 1.0
            num_bytes = writer.blob(name, _encoded(matrix, scale))
            if num_bytes != matrix.type.num_bytes(math.prod(matrix.shape)):
                raise CheckpointError(
                    f"{name!r} has {num_bytes} bytes, which are not {matrix.shape[0]} rows of "
                    f"{matrix.shape[1]} {matrix.type.name} values."
                )
            entry = {
                "name": name,
                "type": int(matrix.type),
                "element_bytes": matrix.type.bits // 8,
                "num_elements": math.prod(matrix.shape),
                "rows": matrix.shape[0],
                "cols": matrix.shape[1],
                "scale": scale,
                "stride": matrix.shape[1],
            }
            table += encode_structure(TENSOR, entry)
        for name, content in {**blobs, TABLE: struct.pack(f"<{len(table)}I", *table)}.items():
            writer.blob(name, [content])
        writer.finish()


class _Writer:
    def __init__(self, file: io.BufferedWriter) -> None:
        self._file = file
        self._ranges: dict[str, tuple[int, int]] = {}
        file.write(_HEADER.pack(MAGIC, 0, _FILE_ALIGN))

    def blob(self, name: str, pieces: Iterable[bytes | memoryview]) -> int:
        if len(name) > _NAME_BYTES:
            raise CheckpointError(f"The name {name!r} has more than {_NAME_BYTES} characters.")
        self._pad(_rounded(self._file.tell()))
        offset = self._file.tell()
        for piece in pieces:
            self._file.write(piece)
        num_bytes = self._file.tell() - offset
        self._ranges[name] = (offset, num_bytes)
        return num_bytes

    def finish(self) -> None:
        end = _rounded(self._file.tell())
        directory = b"".join(
            name.encode("ascii").ljust(_NAME_BYTES, b"\0") for name in self._ranges
        )
        directory += b"".join(struct.pack("<2Q", *blob) for blob in self._ranges.values())
        size = _rounded(end + _rounded(_HEADER.size + len(directory)), _FILE_ALIGN)
        self._pad(size - len(directory) - _HEADER.size)
        self._file.write(directory + _HEADER.pack(MAGIC, len(self._ranges), size))

    def _pad(self, offset: int) -> None:
        self._file.write(bytes(offset - self._file.tell()))


def _encoded(matrix: NewMatrix, scale: float) -> Iterable[memoryview]:
    for piece in matrix.pieces():
        if matrix.type is WeightType.sfp:
            values = piece.float()
            yield encode_sfp(values if scale == 1 else values / scale).data
        else:
            yield piece.contiguous().view(-1).view(torch.uint8).numpy().data


def _sfp_scale(pieces: Iterable[Tensor]) -> float:
    """Return max(1, largest / 1.875), with 20 binary digits.

    The products with SFP values are then exact in float32, so that decoded weights that are encoded
    again get the same scale.
    """
    largest = max(float(piece.abs().max()) for piece in pieces)
    if not math.isfinite(largest):
        raise CheckpointError("The weights contain NaN or infinity, which sfp cannot hold.")
    mantissa, exponent = math.frexp(largest / SFP_LARGEST)
    return max(1.0, math.ldexp(round(mantissa * 2**20), exponent - 20))


def decode_sfp(codes: NDArray[np.uint8]) -> Tensor:
    """Return the bfloat16 values of SFP bytes.

    >>> decode_sfp(np.array([0x00, 0x01, 0x40, 0x7F, 0xFF], dtype=np.uint8)).tolist()
    [0.0, 1.4901161193847656e-07, 0.0078125, 1.875, -1.875]
    """
    return torch.from_numpy(_sfp_values()[codes]).view(torch.bfloat16)


def encode_sfp(values: Tensor) -> NDArray[np.uint8]:
    """Return the nearest SFP bytes of float32 values; halfway, the larger in magnitude.

    Values halfway between two codes have at most four binary digits after the first, so that the
    upper 16 bits of a value decide.

    >>> encode_sfp(torch.tensor([0.0, -0.0, 2.5, 1.0625, -0.0078125])).tolist()
    [0, 0, 127, 121, 192]
    """
    upper = values.contiguous().view(-1).numpy().view(np.uint16)[1::2]
    return _sfp_codes()[upper]


@cache
def _sfp_values() -> NDArray[np.int16]:
    """The bits of the bfloat16 value of each byte."""
    codes = np.arange(128)
    large = ((0x38 + (codes >> 4)) << 8) | ((codes << 4) & 0xFF)
    small = ((0x34 + (codes >> 3)) << 8) | ((codes << 5) & 0xFF)
    values = np.where(codes >= 64, large, small)
    values[0] = 0
    negative = values | 0x8000
    negative[0] = 0
    return np.concatenate((values, negative)).astype(np.uint16).view(np.int16)


@cache
def _sfp_codes() -> NDArray[np.uint8]:
    """The byte nearest to each bfloat16 value, by its bits."""
    values = torch.from_numpy(_sfp_values()[:128]).view(torch.bfloat16).double().numpy()
    halfway = (values[1:] + values[:-1]) / 2
    bits = torch.arange(2**15, dtype=torch.int32).to(torch.int16)
    magnitudes = bits.view(torch.bfloat16).double().nan_to_num(nan=math.inf).numpy()
    codes = np.searchsorted(halfway, magnitudes, side="right").astype(np.uint8)
    return np.concatenate((codes, np.where(codes, codes | 0x80, 0).astype(np.uint8)))


def _rounded(number: int, multiple: int = _BLOB_ALIGN) -> int:
    return -(-number // multiple) * multiple
