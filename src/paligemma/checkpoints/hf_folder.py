"""Folders with config.json and safetensors, as transformers, MLX and this package write them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from paligemma.checkpoints.hf_config import StoredConfig, read_config
from paligemma.checkpoints.match import match_tensors
from paligemma.checkpoints.opened import OpenCheckpoint
from paligemma.checkpoints.reader import WeightFiles
from paligemma.checkpoints.rows import Contents, parameter_shapes
from paligemma.checkpoints.save import write_hf
from paligemma.checkpoints.tokenizer_file import read_tokenizer
from paligemma.checkpoints.tokenizer_json import write_tokenizer_files
from paligemma.errors import counted


def open_hf(
    folder: Path, sliding_window: int | None = None, stored: StoredConfig | None = None
) -> OpenCheckpoint:
    """Open a folder that transformers, MLX or this package wrote.

    `stored` is its config, if it was read before. Raises CheckpointError, which names the invalid
    files, config keys or tensors.
    """
    stored = stored or read_config(folder, sliding_window)
    files = WeightFiles(folder)
    try:
        matched = match_tensors(files, parameter_shapes(stored.config), stored)
    except BaseException:
        files.close()
        raise
    parameters = matched.parameters
    is_quantized = stored.quantization is not None
    dtype = torch.bfloat16 if is_quantized else parameters["decoder.embedding.weight"].dtype
    checkpoint = OpenCheckpoint(
        format="mlx" if matched.is_mlx else "hf",
        path=folder,
        contents=Contents(
            config=stored.config,
            parameters=parameters,
            quantization=stored.quantization,
            tokenizer=read_tokenizer(folder),
        ),
        weight_files=files.paths,
        close=files.close,
        dtype=dtype,
        notes=(*stored.notes, *matched.notes),
    )
    if not checkpoint.schemes:
        return checkpoint
    names = (f"{scheme} ({counted(n, 'weight')})" for scheme, n in checkpoint.schemes.items())
    return replace(checkpoint, description={"quantization": ", ".join(names)})


def write_hf_folder(contents: Contents, folder: Path, dtype: torch.dtype) -> None:
    """Write a folder for this package and others: as `save.write_hf`, and with tokenizer.json."""
    write_hf(contents, folder, dtype)
    write_tokenizer_files(contents, folder)
