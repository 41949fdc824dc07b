"""What a checkpoint contains, in terms of our parameters: the same for every format.

Readers of all formats return `Contents`, writers take them. A parameter is read in blocks of rows,
so that converting or loading a model needs only a few megabytes, or one matrix of one layer where
a format stores it in another order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from paligemma.checkpoints.reader import row_blocks
from paligemma.config import PaliGemmaConfig
from paligemma.fast.quantization import WeightFormat
from paligemma.fast.weights import Quantization
from paligemma.model.paligemma import PaliGemma


class StoredRows(Protocol):
    """A parameter of the plain model, wherever it is stored, read in blocks of rows."""

    @property
    def name(self) -> str:
        """The name of the tensor where it is stored, for errors."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the parameter in our model."""

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that `read` returns."""

    def read(self, start: int, end: int) -> Tensor:
        """Read the rows along the first axis from `start`, a multiple of 16, up to `end`."""


@runtime_checkable
class QuantizedRows(StoredRows, Protocol):
    """A weight in one of our own quantized formats; `read` dequantizes it to float32."""

    @property
    def weight_format(self) -> WeightFormat: ...

    @property
    def scales_name(self) -> str:
        """The name of the tensor of scales, for errors."""

    def read_stored(self, start: int, end: int) -> tuple[Tensor, Tensor]:
        """Read bytes uint8[n, ...] and scales bfloat16[n, groups] of rows, as they are stored."""


@runtime_checkable
class ForeignRows(StoredRows, Protocol):
    """A weight that another tool quantized; `read` dequantizes it as that tool does."""

    @property
    def scheme(self) -> str:
        """The tool and its format, such as "bitsandbytes nf4"."""


@dataclass(frozen=True, kw_only=True)
class Contents:
    """The config, weights and small files of a checkpoint."""

    config: PaliGemmaConfig
    parameters: Mapping[str, StoredRows]
    """Our parameter names, those of `PaliGemma.named_parameters()`, to their rows."""
    quantization: Quantization | None = None
    """The format of parameters that are `QuantizedRows`."""
    tokenizer: bytes | None = None
    """The SentencePiece model."""
    files: Mapping[str, bytes] = field(default_factory=dict)
    """Other files to keep, such as a mask codec, by name."""


class Uninitialized(TorchFunctionMode):
    """Skips initial values of parameters. To draw them on the meta device, torch would import
    900 modules, which takes a second or more.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def read_all(rows: StoredRows) -> Tensor:
    """Read a whole parameter."""
    values = torch.empty(rows.shape, dtype=rows.dtype)
    for start, end in row_blocks(rows.shape):
        values[start:end] = rows.read(start, end)
    return values


def parameter_shapes(config: PaliGemmaConfig) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all parameters of the plain model.

    >>> from paligemma.config import release_config
    >>> parameter_shapes(release_config("paligemma2", "3b", 224))["projector.linear.weight"]
    (2304, 1152)
    """
    with torch.device("meta"), Uninitialized():
        model = PaliGemma(config)
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
