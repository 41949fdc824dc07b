"""Run all decoder blocks in one kernel call, because in decode steps, the overhead between many
small calls takes as long as the calls.

`fast/blocks.py` has the same computation step by step; the two must agree.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import c_float, c_int32, c_void_p
from typing import NamedTuple

import torch
from torch import Tensor

from paligemma.fast.kernels.layers import address_of, compiled_for
from paligemma.fast.kernels.library import DecoderBlocksArguments
from paligemma.fast.kernels.products import ACTIVATION_CODES, Activation
from paligemma.fast.quantization import LANES, WeightFormat
from paligemma.model.kv_cache import Cache

# B sequences, T tokens in this call, R rows that are computed, S slots, K key/value heads,
# H head dim, D width


class Projection(ctypes.Structure):
    """A packed weight; the layout matches `csrc/block.cpp`."""

    _fields_ = (
        ("values", c_void_p),
        ("scales", c_void_p),
        ("format", c_int32),
        ("group", c_int32),
        ("panels", c_int32),
        ("k", c_int32),
        ("inputs", c_int32),
        ("epilogue", c_int32),
    )


class Block(ctypes.Structure):
    """A decoder block; the layout matches `csrc/block.cpp`. Missing norms are None."""

    _fields_ = (
        ("qkv", Projection),
        ("out", Projection),
        ("gate_up", Projection),
        ("down", Projection),
        ("pre_attention_norm", c_void_p),
        ("post_attention_norm", c_void_p),
        ("pre_mlp_norm", c_void_p),
        ("post_mlp_norm", c_void_p),
        ("width", c_int32),
        ("heads", c_int32),
        ("kv_heads", c_int32),
        ("head_dim", c_int32),
        ("few_queries", c_int32),
        ("eps", c_float),
        ("query_scale", c_float),
        ("cap", c_float),
    )


def projection(
    values: Tensor,
    scales: Tensor | None,
    weight_format: WeightFormat,
    num_inputs: int,
    activation: Activation,
) -> Projection:
    return Projection(
        values.data_ptr(),
        None if scales is None else scales.data_ptr(),
        weight_format.code,
        weight_format.group_size,
        values.shape[0],
        weight_format.padded_inputs(num_inputs),
        num_inputs,
        ACTIVATION_CODES[activation],
    )


def can_run_blocks(x: Tensor) -> bool:
    """Return whether `run_blocks` supports [B, T, D]."""
    return compiled_for(x) is not None and x.shape[2] % LANES == 0


class _Rows(NamedTuple):
    """Which R of B x T positions the kernel computes, one sequence after the other."""

    kept: Tensor | None  # int64[R], in B * T; None: all
    lengths: Tensor | None  # int64[B]: rows of each sequence; None: T
    at: Tensor | None  # int64[B], in R: the row of each sequence that the last block computes

    @classmethod
    def of(cls, kv_cache: Cache, at: Tensor | None) -> _Rows:
        """Where only `at` int64[B] is wanted of each sequence, leave pads out."""
        if at is None:
            return cls(None, None, None)
        batch = torch.arange(len(at))
        is_real = kv_cache.valid.gather(1, kv_cache.claimed)
        is_real[batch, at] = True
        rank = is_real.flatten().cumsum(0).view_as(is_real) - 1
        if bool(is_real.all()):
            return cls(None, None, rank[batch, at])
        return cls(is_real.flatten().nonzero()[:, 0], is_real.sum(dim=1), rank[batch, at])

    def select(self, x: Tensor) -> Tensor:
        """[B, T, ...] -> [R, ...], contiguous."""
        rows = x.flatten(0, 1)
        return rows.contiguous() if self.kept is None else rows[self.kept]


def run_blocks(
    blocks: ctypes.Array[Block],
    x: Tensor,
    angles: tuple[Tensor, Tensor],
    biases: Sequence[Tensor],
    kv_cache: Cache,
    at: Tensor | None = None,
) -> Tensor:
    """Run [B, T, D], bfloat16 or float32, through all blocks, into a new tensor.

    `angles` are cosines and sines float32[B, 1, T, H / 2]. Queries see the cache's first `length`
    slots, with the block's bias float32[B, 1, T, length]. With `at` int64[B], the last block
    computes only this position of each sequence, and the result is [B, 1, D]. Pads are not
    computed then, and nothing is written to their slots, which no query sees.
    """
    compiled = compiled_for(x)
    assert compiled is not None
    batch, tokens, width = x.shape
    keys, values, reach = kv_cache.keys, kv_cache.values, kv_cache.length
    rows = _Rows.of(kv_cache, at)
    out = rows.select(x)
    if out.data_ptr() == x.data_ptr():
        out = out.clone()
    cos, sin = (rows.select(angle[:, 0]) for angle in angles)
    # Blocks share a few bias tensors, whose rows are selected once.
    dense: dict[int, Tensor] = {}
    for bias in biases:
        if id(bias) not in dense:
            dense[id(bias)] = rows.select(bias.expand(batch, 1, tokens, reach)[:, 0])
    slots = rows.select(kv_cache.claimed)
    work = torch.empty(len(out) * compiled.decoder_work(blocks), dtype=x.dtype)
    compiled.decoder_blocks(
        DecoderBlocksArguments(
            blocks=blocks,
            num_blocks=len(blocks),
            x=out.data_ptr(),
            batch=batch,
            tokens=tokens,
            lengths=address_of(rows.lengths),
            cos=cos.data_ptr(),
            sin=sin.data_ptr(),
            keys=_addresses(keys),
            values=_addresses(values),
            batch_stride=keys[0].stride(0),
            head_stride=keys[0].stride(1),
            slots=slots.data_ptr(),
            reach=reach,
            bias=_addresses([dense[id(bias)] for bias in biases]),
            at=address_of(rows.at),
            work=work.data_ptr(),
            is_float32=x.dtype == torch.float32,
            threads=torch.get_num_threads(),
        )
    )
    if at is None:
        return out.view(batch, tokens, width)
    return out[:batch, None]  # where the last block puts them


def _addresses(tensors: Sequence[Tensor]) -> ctypes.Array[c_void_p]:
    return (c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))
