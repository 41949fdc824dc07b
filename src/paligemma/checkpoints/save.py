"""Save a model atomically as a checkpoint folder that this package and transformers can read.

A quantized model becomes a quantized checkpoint, which only this package can read. The tokenizer
and other files (such as a mask codec) are passed as bytes.
"""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from paligemma.checkpoints.files import CHECKSUM_FILE, sha256_of, write_json
from paligemma.checkpoints.hf import EMBEDDING, num_table_rows, pad_table, to_released_names
from paligemma.checkpoints.hf_config import write_config
from paligemma.checkpoints.quantized import Q_SUFFIX, SCALES_SUFFIX, q_shape, scales_shape
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
from paligemma.checkpoints.rows import Contents, QuantizedRows, StoredRows
from paligemma.checkpoints.tokenizer_file import TOKENIZER_FILE
from paligemma.errors import CheckpointError, NumericalError, counted
from paligemma.fast.accelerate import quantization_of, weight_rows
from paligemma.fast.linear import Rows, WeightRows
from paligemma.model.paligemma import PaliGemma
from paligemma.writing import flush


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
    contents = replace(contents_of(model), tokenizer=tokenizer_proto, files=extra_files or {})
    with new_folder(folder) as partial:
        write_hf(contents, partial, stored_dtype, max_shard_bytes)
    return Path(folder).absolute()


def contents_of(model: PaliGemma) -> Contents:
    """Return the config and weights of a model in memory."""
    rows = weight_rows(model)
    return Contents(
        config=model.config,
        parameters={name: _of_model(name, row, model.dtype) for name, row in rows.items()},
        quantization=quantization_of(model),
    )


def write_hf(
    contents: Contents, folder: Path, dtype: torch.dtype, max_shard_bytes: int = 5_000_000_000
) -> None:
    """Write a checkpoint into an empty folder; see `save_model`. Quantized weights stay quantized.

    Raises CheckpointError and NumericalError.
    """
    _write_weights(contents, folder, dtype, max_shard_bytes)
    dtype_name = str(dtype).removeprefix("torch.")
    write_config(folder, contents.config, dtype_name, contents.quantization)
    write_small_files(contents, folder)


def write_small_files(contents: Contents, folder: Path) -> None:
    """Write the tokenizer and other files of a checkpoint."""
    if contents.tokenizer is not None:
        (folder / TOKENIZER_FILE).write_bytes(contents.tokenizer)
    for name, content in contents.files.items():
        (folder / name).write_bytes(content)


class _ModelRows:
    """A parameter of a model in memory."""

    def __init__(self, name: str, rows: Rows, dtype: torch.dtype) -> None:
        self.name, self.shape, self.dtype = name, rows.shape, dtype
        self.read = rows.read


class _QuantizedModelRows(_ModelRows):
    """A quantized weight of a model in memory."""

    def __init__(self, name: str, rows: WeightRows) -> None:
        super().__init__(name, rows, torch.float32)
        self.scales_name = name + SCALES_SUFFIX
        self.weight_format = rows.layer.weight_format
        self.read_stored = rows.read_stored


def _of_model(name: str, rows: Rows, dtype: torch.dtype) -> StoredRows:
    if isinstance(rows, WeightRows) and rows.layer.scales is not None:
        return _QuantizedModelRows(name, rows)
    return _ModelRows(name, rows, dtype)


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
        files = [path for path in sorted(partial.iterdir()) if path.is_file()]
        write_json(
            partial / CHECKSUM_FILE, {"sha256": {path.name: sha256_of(path) for path in files}}
        )
        for path in (*partial.rglob("*"), partial):
            flush(path)
        partial.rename(folder)
        flush(folder.parent)
    except OSError as error:
        raise CheckpointError(f"{folder} could not be written: {error}.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yield the path of a temporary file to create; at the end, rename it to `path`.

    Raises CheckpointError when `path` exists or cannot be written.
    """
    if path.exists():
        raise CheckpointError(f"{path} already exists. Choose another name or remove it first.")
    partial = path.with_name(f"{path.name}.tmp-{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        flush(partial)
        partial.rename(path)
        flush(path.parent)
    except OSError as error:
        raise CheckpointError(f"{path} could not be written: {error}.") from error
    finally:
        partial.unlink(missing_ok=True)


def _write_weights(
    contents: Contents, folder: Path, dtype: torch.dtype, max_shard_bytes: int
) -> None:
    parameters, quantization = contents.parameters, contents.quantization
    tensors: list[TensorToWrite] = []
    for ours, released in to_released_names(contents.config, parameters).items():
        rows = parameters[ours]
        if isinstance(rows, QuantizedRows):
            tensors += _quantized(released, rows)
        else:
            tensors.append(plain_tensor(released, rows, dtype))
    stem = PLAIN if quantization is None else QUANTIZED
    write_tensors(tensors, folder, stem, max_shard_bytes)


def write_tensors(
    tensors: Sequence[TensorToWrite],
    folder: Path,
    stem: str = PLAIN,
    max_shard_bytes: int = 5_000_000_000,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write tensors to one file, or to shards with an index. Raises NumericalError."""
    shards: list[list[TensorToWrite]] = [[]]
    for tensor in sorted(tensors, key=lambda tensor: tensor.name):
        size = sum(other.num_bytes for other in shards[-1])
        if shards[-1] and size + tensor.num_bytes > max_shard_bytes:
            shards.append([])
        shards[-1].append(tensor)
    weight_map: dict[str, str] = {}
    broken: list[str] = []
    for number, shard in enumerate(shards, start=1):
        name = single_file(stem) if len(shards) == 1 else shard_file(stem, number, len(shards))
        broken += write_weight_file(folder / name, shard, metadata)
        weight_map |= {tensor.name: name for tensor in shard}
    if broken:
        dtypes = {str(tensor.dtype) for tensor in tensors if tensor.name in broken}
        raise NumericalError(
            f"{counted(len(broken), 'weight contains', 'weights contain')} NaN, infinity, or "
            f"values too large for {' and '.join(sorted(dtypes))}: {shorten(broken)}. Nothing was "
            "written. Save as float32, or train again with a lower learning rate."
        )
    if len(shards) > 1:
        total = sum(tensor.num_bytes for tensor in tensors)
        content = {"metadata": {"total_size": total}, "weight_map": weight_map}
        write_json(folder / index_file(stem), content)


def plain_tensor(name: str, rows: StoredRows, dtype: torch.dtype) -> TensorToWrite:
    """Return a parameter as a tensor to write; a table gets the rows that others expect."""
    shape = rows.shape
    blocks: Iterator[Tensor] = (rows.read(*block) for block in row_blocks(shape))
    if name == EMBEDDING:
        shape, blocks = (num_table_rows(shape[0]), *shape[1:]), pad_table(blocks)
    return TensorToWrite(name=name, dtype=dtype, shape=shape, blocks=blocks)


def _quantized(name: str, rows: QuantizedRows) -> Iterator[TensorToWrite]:
    read, shape, weight_format = rows.read_stored, rows.shape, rows.weight_format
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
