"""Norms with residual sums, splitting of heads, and attention, by the kernels or in plain torch.

Where no kernel can run, a function falls back to its reference in plain torch, which it must match.
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

# B batch, T tokens, S visible positions, D width, N query heads, K key/value heads, H head dim

FEW_QUERIES = 16
"""Up to this many queries per row, attention processes them one by one: it is limited by reading
the cache."""


def compiled_for(*tensors: Tensor) -> Kernels | None:
    """Return the kernels if they support these tensors, else None.

    All must be on the CPU and have one dtype, bfloat16 or float32.
    """
    dtypes = {t.dtype for t in tensors}
    fits = dtypes == {torch.bfloat16} or dtypes == {torch.float32}
    return kernels() if fits and all(t.device.type == "cpu" for t in tensors) else None


def add_rms_norm(
    x: Tensor,
    delta: Tensor | None,
    delta_weight: Tensor | None,
    out_weight: Tensor | None,
    eps: float,
) -> Tensor | None:
    """Add norm(delta) to x [..., D] in place; then return norm(x) as a new tensor.

    Without `delta`, x does not change; without `delta_weight`, delta is added without a norm;
    without `out_weight`, the result is None. The norm is Gemma's: x / rms(x) * (1 + weight).
    """
    compiled = compiled_for(x)
    if compiled is None:
        return add_rms_norm_reference(x, delta, delta_weight, out_weight, eps)
    out = None if out_weight is None else torch.empty_like(x)
    compiled.add_rms_norm(
        RmsNormArguments(
            x=x.data_ptr(),
            delta=address_of(delta),
            delta_weight=address_of(delta_weight),
            out_weight=address_of(out_weight),
            out=address_of(out),
            rows=x.numel() // x.shape[-1],
            width=x.shape[-1],
            eps=eps,
            is_float32=x.dtype == torch.float32,
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
    """Add delta to x [..., D] in place; then return LayerNorm(x) as a new tensor."""
    compiled = compiled_for(x)
    if compiled is None:
        if delta is not None:
            x += delta
        return F.layer_norm(x, (x.shape[-1],), weight, bias, eps)
    out = torch.empty_like(x)
    compiled.add_layer_norm(
        LayerNormArguments(
            x=x.data_ptr(),
            delta=address_of(delta),
            weight=weight.data_ptr(),
            bias=bias.data_ptr(),
            out=out.data_ptr(),
            rows=x.numel() // x.shape[-1],
            width=x.shape[-1],
            eps=eps,
            is_float32=x.dtype == torch.float32,
            threads=torch.get_num_threads(),
        )
    )
    return out


def split_heads(
    x: Tensor, head_dim: int, angles: tuple[Tensor, Tensor] | None = None, scale: float = 1.0
) -> Tensor:
    """[B, T, N * H], possibly a slice of a wider tensor -> [B, N, T, H], rotated and scaled.

    `angles` are cosines and sines float32[B, 1, T, H / 2]; without them, nothing is rotated or
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
            cos=address_of(cos),
            sin=address_of(sin),
            scale=scale,
            out=out.data_ptr(),
            batch=batch,
            tokens=tokens,
            heads=width // head_dim,
            head_dim=head_dim,
            is_float32=x.dtype == torch.float32,
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
    rotated = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
    return rotated.to(x.dtype) * scale


def attend(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    bias: Tensor | None,
    logit_softcap: float | None = None,
    scale: float = 1.0,
) -> Tensor | None:
    """Queries [B, N, T, H] times `scale`, keys and values [B, K, S, H] -> [B, T, N * H].

    `bias` float32[B, 1, T, S] is 0 where a query may attend and very negative elsewhere; without
    it, every query sees every key. Keys and values may be slices of a cache. Returns None if no
    kernel supports these tensors; the reference is `model.attention.attend`.
    """
    compiled = compiled_for(queries, keys, values)
    batch, num_heads, tokens, head_dim = queries.shape
    num_kv_heads, count = keys.shape[1], keys.shape[2]
    if compiled is None or keys.stride() != values.stride() or keys.stride()[2:] != (head_dim, 1):
        return None
    if bias is not None:
        bias = bias.expand(batch, 1, tokens, count).contiguous()
    out = torch.empty(batch, tokens, num_heads * head_dim, dtype=queries.dtype)
    arguments = AttentionArguments(
        queries=queries.data_ptr(),
        keys=keys.data_ptr(),
        values=values.data_ptr(),
        batch_stride=keys.stride(0),
        head_stride=keys.stride(1),
        bias=address_of(bias),
        scale=scale,
        cap=logit_softcap or 0.0,
        out=out.data_ptr(),
        batch=batch,
        heads=num_heads,
        kv_heads=num_kv_heads,
        tokens=tokens,
        num_keys=count,
        head_dim=head_dim,
        is_float32=queries.dtype == torch.float32,
        threads=torch.get_num_threads(),
    )
    if tokens <= FEW_QUERIES:
        compiled.attend(arguments)
    else:
        compiled.attend_many(arguments)
    return out


def attend_all(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attention of all patches to all patches, scaled by H^-0.5: [B, N, T, H] -> [B, T, N * H].

    In bfloat16 by the kernel, where the processor multiplies bfloat16: on AVX-512 it takes a bit
    more than half of torch's time. In float32, and on AVX2, torch is as fast or faster.
    """
    compiled = compiled_for(queries, keys, values)
    if compiled is not None and compiled.multiplies_bfloat16 and queries.dtype == torch.bfloat16:
        mixed = attend(queries, keys, values, None, scale=queries.shape[-1] ** -0.5)
        if mixed is not None:
            return mixed
    return F.scaled_dot_product_attention(queries, keys, values).transpose(1, 2).flatten(2)


def address_of(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
