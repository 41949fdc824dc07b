"""Norms with their residual sums, heads and attention, by the kernels or in plain torch.

Each function stands next to its plain form, which it must equal; the plain form runs where no
kernel can.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from paligemma.fast.kernels.library import (
    AttentionArguments,
    Kernels,
    LayerNormArguments,
    RmsNormArguments,
    SplitHeadsArguments,
    kernels,
)

# B batch, T tokens, S positions in reach, D width, N query heads, K key/value heads, H head dim

FEW_QUERIES = 16
"""Queries a row up to which attention goes one by one, bound by reading the cache."""


def compiled_for(*tensors: Tensor) -> Kernels | None:
    """The kernels, where they can take these tensors: bfloat16 on the CPU."""
    fits = all(t.dtype == torch.bfloat16 and t.device.type == "cpu" for t in tensors)
    return kernels() if fits else None


def add_rms_norm(
    x: Tensor,
    delta: Tensor | None,
    delta_weight: Tensor | None,
    out_weight: Tensor | None,
    eps: float,
) -> Tensor | None:
    """x [..., D] += norm(delta), in place; then norm(x), a new tensor.

    Without `delta` x stays as it is; without `delta_weight` the delta is added as it is; without
    `out_weight` nothing is given back. The norm is Gemma's: x / rms(x) * (1 + weight).
    """
    compiled = compiled_for(x)
    if compiled is None:
        return add_rms_norm_reference(x, delta, delta_weight, out_weight, eps)
    out = None if out_weight is None else torch.empty_like(x)
    compiled.add_rms_norm(
        RmsNormArguments(
            x=x.data_ptr(),
            delta=_address(delta),
            delta_weight=_address(delta_weight),
            out_weight=_address(out_weight),
            out=_address(out),
            rows=x.numel() // x.shape[-1],
            width=x.shape[-1],
            eps=eps,
            threads=torch.get_num_threads(),
        )
    )
    return out


def add_rms_norm_reference(
    x: Tensor,
    delta: Tensor | None,
    delta_weight: Tensor | None,
    out_weight: Tensor | None,
    eps: float,
) -> Tensor | None:
    """`add_rms_norm` in plain torch."""

    def norm(rows: Tensor, weight: Tensor) -> Tensor:
        wide = rows.float()
        wide = wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
        return (wide * (1.0 + weight.float())).to(rows.dtype)

    if delta is not None:
        x += delta if delta_weight is None else norm(delta, delta_weight)
    return None if out_weight is None else norm(x, out_weight)


def add_layer_norm(
    x: Tensor, delta: Tensor | None, weight: Tensor, bias: Tensor, eps: float
) -> Tensor:
    """x [..., D] += delta, in place; then LayerNorm(x), a new tensor."""
    compiled = compiled_for(x)
    if compiled is None:
        if delta is not None:
            x += delta
        return F.layer_norm(x, (x.shape[-1],), weight, bias, eps)
    out = torch.empty_like(x)
    compiled.add_layer_norm(
        LayerNormArguments(
            x=x.data_ptr(),
            delta=_address(delta),
            weight=weight.data_ptr(),
            bias=bias.data_ptr(),
            out=out.data_ptr(),
            rows=x.numel() // x.shape[-1],
            width=x.shape[-1],
            eps=eps,
            threads=torch.get_num_threads(),
        )
    )
    return out


def split_heads(
    x: Tensor, head_dim: int, angles: tuple[Tensor, Tensor] | None = None, scale: float = 1.0
) -> Tensor:
    """[B, T, N * H] (a slice of a wider tensor, perhaps) -> [B, N, T, H], turned and scaled.

    `angles` are cosines and sines float32[B, 1, T, H / 2]; without them nothing is turned or
    scaled.
    """
    compiled = compiled_for(x)
    batch, tokens, width = x.shape
    if compiled is None or x.stride(0) != tokens * x.stride(1) or x.stride(2) != 1:
        return split_heads_reference(x, head_dim, angles, scale)
    out = torch.empty(batch, width // head_dim, tokens, head_dim, dtype=x.dtype)
    cos, sin = (None, None) if angles is None else (a.contiguous() for a in angles)
    compiled.split_heads(
        SplitHeadsArguments(
            x=x.data_ptr(),
            x_stride=x.stride(1),
            cos=_address(cos),
            sin=_address(sin),
            scale=scale,
            out=out.data_ptr(),
            batch=batch,
            tokens=tokens,
            heads=width // head_dim,
            head_dim=head_dim,
            threads=torch.get_num_threads(),
        )
    )
    return out


def split_heads_reference(
    x: Tensor, head_dim: int, angles: tuple[Tensor, Tensor] | None = None, scale: float = 1.0
) -> Tensor:
    """`split_heads` in plain torch."""
    heads = x.reshape(*x.shape[:2], -1, head_dim).transpose(1, 2)
    if angles is None:
        return heads.contiguous()
    cos, sin = angles
    first, second = heads.float().chunk(2, dim=-1)
    turned = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
    return turned.to(x.dtype) * scale


def attend(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    bias: Tensor | None,
    logit_softcap: float | None = None,
    scale: float = 1.0,
) -> Tensor | None:
    """Queries [B, N, T, H] times `scale`, keys and values [B, K, S, H] -> [B, T, N * H].

    `bias` float32[B, 1, T, S] is 0 where a query may look and very negative elsewhere; without it
    every query sees every key. Keys and values may be slices of a cache. None where no kernel can
    take these tensors (many queries need tiles): then the plain form is the model's own.
    """
    compiled = compiled_for(queries, keys, values)
    batch, num_heads, tokens, head_dim = queries.shape
    num_kv_heads, count = keys.shape[1], keys.shape[2]
    if compiled is None or keys.stride() != values.stride() or keys.stride()[2:] != (head_dim, 1):
        return None
    if bias is not None:
        bias = bias.expand(batch, 1, tokens, count).contiguous()
    out = torch.empty(batch, tokens, num_heads * head_dim, dtype=queries.dtype)
    few = tokens <= FEW_QUERIES
    if not few and compiled.level != "amx":
        return None
    arguments = AttentionArguments(
        queries=queries.data_ptr(),
        keys=keys.data_ptr(),
        values=values.data_ptr(),
        batch_stride=keys.stride(0),
        head_stride=keys.stride(1),
        bias=_address(bias),
        scale=scale,
        cap=logit_softcap or 0.0,
        out=out.data_ptr(),
        batch=batch,
        heads=num_heads,
        kv_heads=num_kv_heads,
        tokens=tokens,
        num_keys=count,
        head_dim=head_dim,
        threads=torch.get_num_threads(),
    )
    if few:
        compiled.attend(arguments)
    else:
        compiled.attend_many(arguments)
    return out


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
