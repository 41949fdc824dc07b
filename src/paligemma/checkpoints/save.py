"""The model -> a checkpoint folder that this package and transformers read; whole or not at all.

Knows no network; the tokenizer and other parts (such as a mask codec) come in as bytes.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from paligemma.checkpoints.hf import EMBEDDING, num_table_rows, pad_table, to_released_names
from paligemma.checkpoints.hf_config import write_config
from paligemma.checkpoints.json_file import write_json
from paligemma.checkpoints.weight_files import (
    CHECKSUM_FILE,
    DTYPE_CODES,
    INDEX_FILE,
    SINGLE_FILE,
    is_finite,
    sha256_of,
    shorten,
    write_weight_file,
)
from paligemma.errors import CheckpointError, NumericalError
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
    """Write weights, configs, `tokenizer.model`, extra files and checksums; give back the folder.

    Everything goes into a new folder beside the target, which gets its name when all is on the
    disk: a crash leaves the target as it was. `dtype` is that of the files (float32, bfloat16 or
    float16; None: the model's own). Tensors carry the names of the released files.

    Raises CheckpointError when the target exists and is not empty or the disk refuses, and
    NumericalError when a weight is NaN or infinite.

    >>> save_model(model, "my-model", dtype=torch.bfloat16)  # doctest: +SKIP
    PosixPath('/home/me/my-model')
    """
    folder = Path(folder).absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"{folder} exists already. Choose another name or remove it first.")
    stored_dtype = dtype or model.dtype
    if stored_dtype not in DTYPE_CODES.values():
        raise CheckpointError(
            f"Weights cannot be stored as {stored_dtype}; choose float32, bfloat16 or float16."
        )
    _check_finite(model, stored_dtype)
    partial = folder.with_name(f"{folder.name}.tmp-{secrets.token_hex(4)}")
    try:
        partial.mkdir(parents=True)
        _write_weights(model, partial, stored_dtype, max_shard_bytes)
        write_config(partial, model.config, str(stored_dtype).removeprefix("torch."))
        files = dict(extra_files or {})
        if tokenizer_proto is not None:
            files[TOKENIZER_FILE] = tokenizer_proto
        for name, content in files.items():
            (partial / name).write_bytes(content)
        sums = {path.name: sha256_of(path) for path in sorted(partial.iterdir())}
        write_json(partial / CHECKSUM_FILE, {"sha256": sums})
        for path in (*partial.iterdir(), partial):
            _flush(path)
        partial.rename(folder)
        _flush(folder.parent)
    except OSError as error:
        raise CheckpointError(f"{folder} could not be written: {error}.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _write_weights(
    model: PaliGemma, folder: Path, dtype: torch.dtype, max_shard_bytes: int
) -> None:
    parameters = dict(model.named_parameters())
    names = to_released_names(model.config, parameters)
    by_name = {names[ours]: parameter.detach() for ours, parameter in parameters.items()}

    def make(name: str) -> Tensor:
        return pad_table(by_name[name]) if name == EMBEDDING else by_name[name]

    shards: list[list[tuple[str, torch.dtype, tuple[int, ...]]]] = [[]]
    shard_bytes = total_bytes = 0
    for name, tensor in sorted(by_name.items()):
        shape = tuple(tensor.shape)
        if name == EMBEDDING:
            shape = (num_table_rows(shape[0]), shape[1])
        num_bytes = torch.Size(shape).numel() * dtype.itemsize
        if shards[-1] and shard_bytes + num_bytes > max_shard_bytes:
            shards.append([])
            shard_bytes = 0
        shards[-1].append((name, dtype, shape))
        shard_bytes += num_bytes
        total_bytes += num_bytes
    if len(shards) == 1:
        write_weight_file(folder / SINGLE_FILE, shards[0], make)
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file_name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        write_weight_file(folder / file_name, shard, make)
        weight_map |= {name: file_name for name, _, _ in shard}
    write_json(
        folder / INDEX_FILE, {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
    )


def _check_finite(model: PaliGemma, dtype: torch.dtype) -> None:
    parameters = model.named_parameters()
    broken = [name for name, p in parameters if not is_finite(p.detach().contiguous(), dtype)]
    if broken:
        raise NumericalError(
            f"{len(broken)} weight(s) hold NaN, infinity, or values too large for {dtype}: "
            f"{shorten(broken)}. Nothing was written."
        )


def _flush(path: Path) -> None:
    """Make sure that a file, or a folder's list of names, has reached the disk."""
    if os.name == "nt":  # which cannot flush what is open for reading only
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
