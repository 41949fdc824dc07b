"""Linear layers of float32 models on processors with AMX, whose tiles multiply bfloat16 only.

Each number is split into three of bfloat16, which are exact together, and six products of these
give a float32 product (`kernels/csrc/linear_float32.cpp`). Weights stay plain parameters and are
split part by part while they are used. What tiles do not win, or cannot do, is torch's product.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from paligemma.config import PaliGemmaConfig
from paligemma.fast.kernels.layers import address_of
from paligemma.fast.kernels.library import Float32LinearArguments, Kernels, kernels
from paligemma.fast.weights import is_small
from paligemma.model.gemma import TiedEmbedding
from paligemma.model.paligemma import PaliGemma

# M rows, K inputs, N outputs

# What tiles take at least. Counted in cycles for 32 inputs of 16 outputs, not measured: FMA on 16
# numbers, twice a cycle, takes 16 for a row. Six products of tiles (TDPBF16PS) take 96 for 16 rows
# (156 where they are the odd sixteen, which has too few sums to hide the latency of 52), splitting
# these weights 171, and for every 16 rows, splitting and reordering them 372 / (N / 16), and sums
# 104 / (K / 32) + 3. At K = N = 512, 48 rows take 573 instead of 768, but 33 rows 573 instead of
# 528; at K = 2304 and N = 9216, 272 rows take 1,941 instead of 4,352. mini's widest (100 rows, K =
# 256, N = 1024) would save 290,000 cycles in all, 12 us on each of eight threads, about what a call
# and a barrier of theirs may take.
LEAST_ROWS = 48
LEAST_WIDTH = 512  # of K and of N


def runs_packed(config: PaliGemmaConfig) -> bool:
    """Return whether a float32 model is faster packed than plain.

    Large layers are limited by arithmetic, which torch does as well.
    """
    return is_small(config) and kernels() is not None


def use_tiles(model: PaliGemma) -> PaliGemma:
    """Replace linear layers and the table by ones with the same parameters; return the model.

    Without kernels for AMX, the model stays as it is.
    """
    if _tile_kernels() is None:
        return model
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Linear:
                setattr(parent, name, TileLinear(child))
            elif type(child) is TiedEmbedding:
                setattr(parent, name, TileEmbedding(child))
    return model


class TileLinear(nn.Linear):
    """A `nn.Linear` with the parameters of another."""

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__(plain.in_features, plain.out_features, plain.bias is not None, "meta")
        self.weight, self.bias = plain.weight, plain.bias

    def forward(self, x: Tensor) -> Tensor:
        out = float32_linear(x, self.weight, self.bias)
        return super().forward(x) if out is None else out


class TileEmbedding(TiedEmbedding):
    """A `TiedEmbedding` with the table of another."""

    def __init__(self, plain: TiedEmbedding) -> None:
        super().__init__(plain.num_embeddings, plain.embedding_dim, device="meta")
        self.weight = plain.weight

    def logits(self, hidden: Tensor, vocab_range: range | None = None) -> Tensor:
        table = self.weight
        if vocab_range is not None:
            table = table[vocab_range.start : vocab_range.stop]
        out = float32_linear(hidden, table, None)
        return super().logits(hidden, vocab_range) if out is None else out


def float32_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor | None:
    """[..., K] times [N, K] -> [..., N], or None where torch has to compute it.

    That is where tiles do not win or do not exist, for other dtypes and devices, for gradients, and
    for numbers that are not finite or so large that sums of their pieces are not (above 2^79).
    """
    if _is_recorded(x, weight, bias):
        return None
    compiled = _tile_kernels()
    if compiled is None or not _wins(x, weight):
        return None
    tensors = (x, weight) if bias is None else (x, weight, bias)
    if any(t.dtype != torch.float32 or t.device.type != "cpu" for t in tensors):
        return None
    if not weight.is_contiguous():
        return None
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    out = torch.empty(rows.shape[0], weight.shape[0])
    is_computed = compiled.linear_float32(
        Float32LinearArguments(
            weight=weight.data_ptr(),
            bias=address_of(bias),
            x=rows.data_ptr(),
            rows=rows.shape[0],
            inputs=rows.shape[1],
            outputs=weight.shape[0],
            out=out.data_ptr(),
            threads=torch.get_num_threads(),
        )
    )
    return out.view(*x.shape[:-1], -1) if is_computed else None


def _tile_kernels() -> Kernels | None:
    compiled = kernels()
    return compiled if compiled is not None and compiled.level == "amx" else None


def _wins(x: Tensor, weight: Tensor) -> bool:
    num_rows = x.numel() // max(x.shape[-1], 1)
    return num_rows >= LEAST_ROWS and min(weight.shape) >= LEAST_WIDTH


def _is_recorded(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Return whether torch follows the operations: for a gradient, a compiler, or other dtypes."""
    needs_grad = any(t is not None and t.requires_grad for t in (x, weight, bias))
    return (
        (torch.is_grad_enabled() and needs_grad)
        or torch.is_autocast_enabled("cpu")
        or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        or torch.compiler.is_compiling()
    )
