"""An open checkpoint of any format, ready to be read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from paligemma.checkpoints.files import verify_files
from paligemma.checkpoints.rows import Contents, ForeignRows


@dataclass(frozen=True, kw_only=True)
class OpenCheckpoint:
    """A checkpoint whose tensors were checked but not read; a context manager that closes it."""

    format: str
    """"hf", "npz", "keras", "mlx" or "sbs"."""
    path: Path
    """The folder or file."""
    contents: Contents
    weight_files: tuple[Path, ...]
    close: Callable[[], None]
    dtype: torch.dtype
    """The dtype that the weights are stored in; of quantized weights, that of the others."""
    description: Mapping[str, Any] = field(default_factory=dict)
    """What `paligemma info` shows about the format, such as its version and quantization."""
    notes: tuple[str, ...] = ()
    """What a user should know, such as that quantized weights are dequantized."""

    def __enter__(self) -> OpenCheckpoint:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @property
    def folder(self) -> Path:
        """The folder of the weights, where tokenizer and mask codec are too."""
        return self.path if self.path.is_dir() else self.path.parent

    @property
    def is_all_bfloat16(self) -> bool:
        return all(rows.dtype == torch.bfloat16 for rows in self.contents.parameters.values())

    @property
    def schemes(self) -> Mapping[str, int]:
        """How weights were quantized by other tools, with the number of weights."""
        rows = self.contents.parameters.values()
        return Counter(row.scheme for row in rows if isinstance(row, ForeignRows))

    def verify(self) -> None:
        """Compare the weight files with their SHA-256; see `files.verify_files`."""
        verify_files(self.folder, self.weight_files)
