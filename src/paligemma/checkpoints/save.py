"""Save a model atomically as a checkpoint folder that this package and transformers can read.

A quantized model becomes a quantized checkpoint, which only this package can read. The tokenizer
and other files (such as a mask codec) are passed as bytes.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from paligemma.checkpoints.files import CHECKSUM_FILE, sha256_of, write_json
from paligemma.checkpoints.hf import EMBEDDING, num_table_rows, pad_table, to_released_names
from paligemma.checkpoints.hf_config import write_config
from paligemma.checkpoints.quantized import (
    Q_SUFFIX,
    SCALES_SUFFIX,
    format_of,
    q_shape,
    scales_shape,
)
from paligemma.checkpoints.reader import (
    DTYPE_CODES,
    PLAIN,
    QUANTIZED,
    STORED_DTYPES,
    index_file,
    is_finite,
    row_blocks,
    shard_file,
    shorten,
    single_file,
)
from paligemma.errors import CheckpointError, NumericalError, counted
from paligemma.fast.accelerate import quantization_of, weight_rows
from paligemma.fast.linear import Rows, WeightRows
from paligemma.fast.quantization import WeightFormat
from paligemma.fast.weights import Quantization
from paligemma.model.paligemma import PaliGemma

TOKENIZER_FILE = "tokenizer.model"


def save_model(
    model: PaliGemma,
    folder: Path | str,
    *,
    tokenizer_proto: bytes | None = None,
    extra_files: Mapping[str, bytes] | None = None,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = 5_000_000_000,
) -> Path:
    """Write weights, configs, `tokenizer.model`, extra files and checksums; return the folder.

    Everything is written to a new folder next to the target and renamed at the end, so a crash
    leaves the target as it was. `dtype` is that of the files: float32, bfloat16 or float16, by
    default the model's own. Tensors have the names of the released files. Quantized weights are
    stored as they are, and loaded bit-identical.

    Raises CheckpointError when the target exists and is not empty or cannot be written, and
    NumericalError when a weight is NaN or infinite.

    >>> save_model(model, "my-model", dtype=torch.bfloat16)  # doctest: +SKIP
    PosixPath('/home/me/my-model')
    """
    stored_dtype = dtype or model.dtype
    if stored_dtype not in DTYPE_CODES.values():
        raise CheckpointError(
            f"Weights cannot be stored as {stored_dtype}; choose float32, bfloat16 or float16."
        )
    quantization = quantization_of(model)
    with new_folder(folder) as partial:
        _write_weights(model, partial, stored_dtype, quantization, max_shard_bytes)
        dtype_name = str(stored_dtype).removeprefix("torch.")
        write_config(partial, model.config, dtype_name, quantization)
        files = dict(extra_files or {})
        if tokenizer_proto is not None:
            files[TOKENIZER_FILE] = tokenizer_proto
        for name, content in files.items():
            (partial / name).write_bytes(content)
    return Path(folder).absolute()


@contextmanager
def new_folder(folder: Path | str) -> Iterator[Path]:
    """Yield a temporary folder to write into; at the end, add checksums and rename it to `folder`.

    Raises CheckpointError when `folder` exists and is not empty, or cannot be written.
    """
    folder = Path(folder).absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"{folder} already exists. Choose another name or remove it first.")
    partial = folder.with_name(f"{folder.name}.tmp-{secrets.token_hex(4)}")
    try:
        partial.mkdir(parents=True)
        yield partial
        sums = {path.name: sha256_of(path) for path in sorted(partial.iterdir())}
        write_json(partial / CHECKSUM_FILE, {"sha256": sums})
        for path in (*partial.iterdir(), partial):
            flush(path)
        partial.rename(folder)
        flush(folder.parent)
    except OSError as error:
        raise CheckpointError(f"{folder} could not be written: {error}.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_weights(
    model: PaliGemma,
    folder: Path,
    dtype: torch.dtype,
    quantization: Quantization | None,
    max_shard_bytes: int,
) -> None:
    rows = weight_rows(model)
    tensors: list[TensorToWrite] = []
    for ours, released in to_released_names(model.config, rows).items():
        weight_format = format_of(ours, quantization)
        if weight_format is None:
            tensors.append(_plain(released, rows[ours], dtype))
        else:
            tensors += _quantized(released, rows[ours], weight_format)
    shards: list[list[TensorToWrite]] = [[]]
    for tensor in sorted(tensors, key=lambda tensor: tensor.name):
        size = sum(other.num_bytes for other in shards[-1])
        if shards[-1] and size + tensor.num_bytes > max_shard_bytes:
            shards.append([])
        shards[-1].append(tensor)
    stem = PLAIN if quantization is None else QUANTIZED
    weight_map: dict[str, str] = {}
    broken: list[str] = []
    for number, shard in enumerate(shards, start=1):
        name = single_file(stem) if len(shards) == 1 else shard_file(stem, number, len(shards))
        broken += write_weight_file(folder / name, shard)
        weight_map |= {tensor.name: name for tensor in shard}
    if broken:
        raise NumericalError(
            f"{counted(len(broken), 'weight contains', 'weights contain')} NaN, infinity, or "
            "values too "
            f"large for {dtype}: {shorten(broken)}. Nothing was written. Save as float32, or train "
            "again with a lower learning rate."
        )
    if len(shards) > 1:
        total = sum(tensor.num_bytes for tensor in tensors)
        content = {"metadata": {"total_size": total}, "weight_map": weight_map}
        write_json(folder / index_file(stem), content)


def _plain(name: str, rows: Rows, dtype: torch.dtype) -> TensorToWrite:
    shape = rows.shape
    blocks: Iterator[Tensor] = (rows.read(*block) for block in row_blocks(shape))
    if name == EMBEDDING:
        shape, blocks = (num_table_rows(shape[0]), *shape[1:]), pad_table(blocks)
    return TensorToWrite(name=name, dtype=dtype, shape=shape, blocks=blocks)


def _quantized(name: str, rows: Rows, weight_format: WeightFormat) -> Iterator[TensorToWrite]:
    assert isinstance(rows, WeightRows)
    read, shape = rows.read_stored, rows.shape
    yield TensorToWrite(
        name=name + Q_SUFFIX,
        dtype=torch.uint8,
        shape=q_shape(shape, weight_format),
        blocks=(read(*block)[0] for block in row_blocks(shape)),
    )
    yield TensorToWrite(
        name=name + SCALES_SUFFIX,
        dtype=torch.bfloat16,
        shape=scales_shape(shape, weight_format),
        blocks=(read(*block)[1] for block in row_blocks(shape)),
    )


def flush(path: Path) -> None:
    """Flush a file, or the entries of a folder, to disk."""
    if os.name == "nt":  # cannot flush a file that is open for reading only
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


_CODES = {dtype: code for code, dtype in STORED_DTYPES.items()}


@dataclass(frozen=True, kw_only=True)
class TensorToWrite:
    """A tensor to write. `blocks` are its rows in order, computed while they are written."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    blocks: Iterable[Tensor]

    @property
    def num_bytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


def write_weight_file(
    path: Path, tensors: Sequence[TensorToWrite], metadata: Mapping[str, str] | None = None
) -> list[str]:
    """Write a safetensors file, block by block; return the names of tensors that are not finite.

    Unlike the library's own writer, it needs no second copy of the weights to change dtypes, and
    the mode of the file follows the umask.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    end = 0
    for tensor in tensors:
        start, end = end, end + tensor.num_bytes
        header[tensor.name] = {
            "dtype": _CODES[tensor.dtype],
            "shape": tensor.shape,
            "data_offsets": [start, end],
        }
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)  # values start at a multiple of 8 bytes
    not_finite = []
    with path.open("xb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for tensor in tensors:
            finite, start = True, file.tell()
            for block in tensor.blocks:
                values = block.to(device="cpu", dtype=tensor.dtype).contiguous()
                finite &= is_finite(values)
                file.write(values.view(-1).view(torch.uint8).numpy().data)
            assert file.tell() - start == tensor.num_bytes, tensor.name
            if not finite:
                not_finite.append(tensor.name)
    return not_finite
