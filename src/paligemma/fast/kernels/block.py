"""Run all decoder blocks in one kernel call, because in decode steps, the overhead between many
small calls takes as long as the calls.

`fast/blocks.py` has the same computation step by step; the two must agree.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import c_float, c_int32, c_void_p

import torch
from torch import Tensor

from paligemma.fast.kernels.layers import address_of, compiled_for
from paligemma.fast.kernels.library import DecoderBlocksArguments
from paligemma.fast.kernels.products import ACTIVATION_CODES, Activation
from paligemma.fast.quantization import LANES, WeightFormat
from paligemma.model.kv_cache import Cache

# B batch, T tokens in this call, S slots, K key/value heads, H head dim, D width


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
    computes only this position of each row, and the result is [B, 1, D].
    """
    compiled = compiled_for(x)
    assert compiled is not None
    x = x.clone(memory_format=torch.contiguous_format)
    batch, tokens, width = x.shape
    keys, values, reach = kv_cache.keys, kv_cache.values, kv_cache.length
    cos, sin = (angle.contiguous() for angle in angles)
    # Blocks share a few bias tensors, which are made contiguous once.
    dense = {id(bias): bias.expand(batch, 1, tokens, reach).contiguous() for bias in biases}
    slots = kv_cache.claimed.contiguous()
    at = None if at is None else at.contiguous()
    work = torch.empty(batch * tokens * compiled.decoder_work(blocks), dtype=x.dtype)
    compiled.decoder_blocks(
        DecoderBlocksArguments(
            blocks=blocks,
            num_blocks=len(blocks),
            x=x.data_ptr(),
            batch=batch,
            tokens=tokens,
            cos=cos.data_ptr(),
            sin=sin.data_ptr(),
            keys=_addresses(keys),
            values=_addresses(values),
            batch_stride=keys[0].stride(0),
            head_stride=keys[0].stride(1),
            slots=slots.data_ptr(),
            reach=reach,
            bias=_addresses([dense[id(bias)] for bias in biases]),
            at=address_of(at),
            work=work.data_ptr(),
            is_float32=x.dtype == torch.float32,
            threads=torch.get_num_threads(),
        )
    )
    if at is None:
        return x
    return x.view(-1, 1, width)[:batch]  # where the last block puts them


def _addresses(tensors: Sequence[Tensor]) -> ctypes.Array[c_void_p]:
    return (c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))
