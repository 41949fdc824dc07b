"""A checkpoint's tensors under our parameter names, read in blocks of rows, never as a whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from paligemma.checkpoints.hf_config import StoredConfig, read_config
from paligemma.checkpoints.match import StoredParameter, match_tensors
from paligemma.checkpoints.reader import DTYPE_CODES, WeightFiles, row_blocks
from paligemma.config import PaliGemmaConfig
from paligemma.fast.quantization import dequantize, from_stored
from paligemma.model.paligemma import PaliGemma


@dataclass(frozen=True, kw_only=True)
class Rows:
    """One parameter: dequantized if it is stored quantized."""

    name: str
    """Ours."""
    shape: tuple[int, ...]
    source: StoredParameter
    files: WeightFiles

    @property
    def stored_name(self) -> str:
        return self.source.weight

    @property
    def is_quantized(self) -> bool:
        return self.source.scales is not None

    @property
    def dtype(self) -> torch.dtype:
        return DTYPE_CODES[self.files.tensors[self.source.scales or self.source.weight].dtype_code]

    def read(self, start: int, end: int) -> Tensor:
        """Rows along the first axis, from `start`, a multiple of 16."""
        values = self.files.read_rows(self.source.weight, start, end)
        if self.source.scales is None:
            return values
        weight_format = self.source.weight_format
        assert weight_format is not None
        scales = self.files.read_rows(self.source.scales, start, end)
        quantized = from_stored(values, weight_format)[:, : self.shape[1]]
        return dequantize(quantized, scales, weight_format.group_size).to(self.dtype)

    def blocks(self) -> Iterator[tuple[int, Tensor]]:
        """(first row, rows) of a few megabytes at a time."""
        for start, end in row_blocks(self.shape):
            yield start, self.read(start, end)

    def whole(self) -> Tensor:
        """All rows, as float32."""
        values = torch.empty(self.shape)
        for start, block in self.blocks():
            values[start : start + len(block)] = block
        return values


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """An open checkpoint folder."""

    folder: Path
    stored: StoredConfig
    parameters: Mapping[str, Rows]
    padding: Tensor | None
    """Rows of the stored table beyond the vocabulary: [at most 64 or so, width]."""
    weight_files: tuple[Path, ...]

    @property
    def config(self) -> PaliGemmaConfig:
        return self.stored.config


@contextmanager
def open_checkpoint(folder: Path) -> Iterator[Checkpoint]:
    """Open a folder. Raises CheckpointError where config, names or shapes do not fit."""
    stored = read_config(folder)
    with torch.device("meta"):
        model = PaliGemma(stored.config)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    with WeightFiles(folder) as files:
        sources = match_tensors(files, shapes, stored)
        table = sources["decoder.embedding.weight"]
        num_rows = files.tensors[table.weight].shape[0]
        vocab_size = stored.config.decoder.vocab_size
        has_padding = table.scales is None and num_rows > vocab_size
        yield Checkpoint(
            folder=folder,
            stored=stored,
            parameters={
                name: Rows(name=name, shape=shape, source=sources[name], files=files)
                for name, shape in shapes.items()
            },
            padding=files.read_rows(table.weight, vocab_size, num_rows) if has_padding else None,
            weight_files=files.paths,
        )
