"""A checkpoint of any format, with its tensors in blocks of rows and the files it consists of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from paligemma.checkpoints import open as formats
from paligemma.checkpoints.reader import WeightFiles, row_blocks
from paligemma.checkpoints.rows import ForeignRows, QuantizedRows, StoredRows, read_all
from paligemma.checkpoints.tokenizer_file import TOKENIZER_FILE, tokenizer_beside
from paligemma.config import PaliGemmaConfig
from paligemma.fast.weights import Quantization

_TABLE = "decoder.embedding.weight"
_COARSE = frozenset({"int8", "sfp", "nuq", "i8"})
"""Stored dtypes of Keras and gemma.cpp that are decoded to floating point."""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """One parameter: dequantized if it is stored quantized."""

    name: str
    """Ours."""
    stored: StoredRows
    is_quantized: bool = False
    """Whether another tool or this package may have quantized it."""

    @property
    def shape(self) -> tuple[int, ...]:
        return self.stored.shape

    @property
    def stored_name(self) -> str:
        return self.stored.name

    @property
    def dtype(self) -> torch.dtype:
        return self.stored.dtype

    def blocks(self) -> Iterator[tuple[int, Tensor]]:
        """(first row, rows) of a few megabytes at a time."""
        for start, end in row_blocks(self.shape):
            yield start, self.stored.read(start, end)

    def whole(self) -> Tensor:
        """All rows, as float32."""
        return read_all(self.stored).float()


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """An open checkpoint."""

    path: Path
    format: str
    config: PaliGemmaConfig
    parameters: Mapping[str, Rows]
    quantization: Quantization | None
    tokenizer: bytes | None
    padding: Tensor | None
    """Rows of the stored table beyond the vocabulary: [at most 64 or so, width]."""


@contextmanager
def open_checkpoint(path: Path) -> Iterator[Checkpoint]:
    """Open a folder or file. Raises CheckpointError where config, names or shapes do not fit."""
    with formats.open_checkpoint(path) as opened:
        contents = opened.contents
        is_coarse = not _COARSE.isdisjoint(opened.description.get("stored_dtypes", ()))
        yield Checkpoint(
            path=path,
            format=opened.format,
            config=contents.config,
            parameters={
                name: Rows(
                    name=name,
                    stored=rows,
                    is_quantized=(is_coarse and len(rows.shape) > 1)
                    or isinstance(rows, QuantizedRows | ForeignRows),
                )
                for name, rows in contents.parameters.items()
            },
            quantization=contents.quantization,
            tokenizer=contents.tokenizer,
            padding=_padding(path, contents.parameters[_TABLE]) if opened.format == "hf" else None,
        )


def _padding(folder: Path, table: StoredRows) -> Tensor | None:
    if isinstance(table, QuantizedRows):
        return None
    with WeightFiles(folder) as files:
        num_rows, num_used = files.tensors[table.name].shape[0], table.shape[0]
        return files.read_rows(table.name, num_used, num_rows) if num_rows > num_used else None


def files_of(path: Path) -> list[Path]:
    """The files of a checkpoint folder, or a single file with its tokenizer."""
    if path.is_dir():
        return [file for file in sorted(path.iterdir()) if file.is_file()]
    beside = (tokenizer_beside(path), path.with_name(TOKENIZER_FILE))
    return [path, *(file for file in beside if file.is_file())]
