"""Decoder and vision blocks on packed weights, with fewer, larger steps than the plain ones.

A decoder block:

x -> norm -> query, key, value in one product -> rotary positions -> attention -> product
  -> sum and two norms in one step -> gate and up in one product, GeGLU at its end -> product
  -> sum and norm
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paligemma.config import DecoderConfig, VisionConfig
from paligemma.fast.kernels.block import Block, can_run_blocks, run_blocks
from paligemma.fast.kernels.layers import (
    FEW_QUERIES,
    add_layer_norm,
    add_rms_norm,
    address_of,
    attend,
    attend_all,
    split_heads,
)
from paligemma.fast.linear import BiasRows, PackedLinear, Rows, WeightRows
from paligemma.fast.quantization import WeightFormat
from paligemma.model import attention
from paligemma.model.gemma import Decoder, DecoderBlock, RMSNorm
from paligemma.model.kv_cache import Cache
from paligemma.model.paligemma import Projector
from paligemma.model.siglip import VisionBlock

# B batch, T tokens in this call, S visible positions, D width, N query heads, H head dim;
# of images: I images, P patches, W width


class FusedDecoderBlock(nn.Module):
    """A packed replacement for a `DecoderBlock`, which reuses its norms."""

    def __init__(
        self,
        block: DecoderBlock,
        config: DecoderConfig,
        attention_format: WeightFormat,
        mlp_format: WeightFormat,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.layer = block.attention.layer
        self.width = config.width
        self.num_heads = config.num_heads
        self.num_kv_heads = config.num_kv_heads
        self.head_dim = config.head_dim
        self.query_scale = config.query_scale
        self.logit_softcap = config.attn_logit_softcap
        self.eps = config.rms_norm_eps
        width, queries = config.width, config.num_heads * config.head_dim
        keys = config.num_kv_heads * config.head_dim

        self.pre_attention_norm = block.pre_attention_norm
        self.qkv = PackedLinear(width, (queries, keys, keys), attention_format, device=device)
        self.out = PackedLinear(queries, (width,), attention_format, device=device)
        self.post_attention_norm = block.post_attention_norm
        self.pre_mlp_norm = block.pre_mlp_norm
        self.gate_up = PackedLinear(
            width, (config.mlp_dim,) * 2, mlp_format, activation="geglu", device=device
        )
        self.down = PackedLinear(config.mlp_dim, (width,), mlp_format, device=device)
        self.post_mlp_norm = block.post_mlp_norm

    def forward(
        self,
        x: Tensor,
        angles: tuple[Tensor, Tensor],
        bias: Tensor,
        kv_cache: Cache | None,
        at: Tensor | None = None,
    ) -> Tensor:
        """As `DecoderBlock.forward`. From the second layer on, x is modified in place."""
        if self.layer == 0:
            x = x.clone(memory_format=torch.contiguous_format)
        normed = add_rms_norm(x, None, None, self.pre_attention_norm.weight, self.eps)
        assert normed is not None
        attended = self.out(self._attention(normed, angles, bias, kv_cache, at))
        if at is not None:
            x = attention.pick(x, at, 1)
        normed = add_rms_norm(
            x, attended, _weight(self.post_attention_norm), self.pre_mlp_norm.weight, self.eps
        )
        transformed = self.down(self.gate_up(normed))
        add_rms_norm(x, transformed, _weight(self.post_mlp_norm), None, self.eps)
        return x

    def _attention(
        self,
        x: Tensor,
        angles: tuple[Tensor, Tensor],
        bias: Tensor,
        kv_cache: Cache | None,
        at: Tensor | None,
    ) -> Tensor:
        if at is None:
            queries, keys, values = self.qkv.split(x)
        else:
            keys, values = self.qkv.split(x, slice(1, 3))
        keys = split_heads(keys, self.head_dim, angles)
        values = split_heads(values, self.head_dim)
        if at is not None:
            [queries] = self.qkv.split(attention.pick(x, at, 1), slice(0, 1))
            angles, bias = attention.pick_queries(at, angles, bias)
        queries = split_heads(queries, self.head_dim, angles, self.query_scale)
        if kv_cache is not None:
            keys, values = kv_cache.write(self.layer, keys, values)
        mixed = attend(queries, keys, values, bias, self.logit_softcap)
        if mixed is None:
            mixed = attention.attend(queries, keys, values, bias, self.logit_softcap)
            mixed = mixed.transpose(1, 2).flatten(2)
        return mixed

    def tensors(self) -> list[Tensor | None]:
        """Return all tensors whose addresses `to_struct` contains."""
        layers = (self.qkv, self.out, self.gate_up, self.down)
        norms = (
            self.pre_attention_norm, self.post_attention_norm,
            self.pre_mlp_norm, self.post_mlp_norm,
        )  # fmt: skip
        parts = [part for layer in layers for part in (layer.values, layer.scales)]
        return [*parts, *(_weight(norm) for norm in norms)]

    def to_struct(self) -> Block:
        """Describe the block for the kernel that runs all blocks."""
        return Block(
            self.qkv.to_struct(), self.out.to_struct(),
            self.gate_up.to_struct(), self.down.to_struct(),
            *(address_of(tensor) for tensor in self.tensors()[-4:]),
            self.width, self.num_heads, self.num_kv_heads, self.head_dim,
            FEW_QUERIES, self.eps, self.query_scale, self.logit_softcap or 0.0,
        )  # fmt: skip

    def weight_rows(self) -> dict[str, Rows]:
        return {
            "attention.q_proj.weight": WeightRows(self.qkv, 0),
            "attention.k_proj.weight": WeightRows(self.qkv, 1),
            "attention.v_proj.weight": WeightRows(self.qkv, 2),
            "attention.o_proj.weight": WeightRows(self.out),
            "mlp.gate_proj.weight": WeightRows(self.gate_up, 0),
            "mlp.up_proj.weight": WeightRows(self.gate_up, 1),
            "mlp.down_proj.weight": WeightRows(self.down),
        }


def _weight(norm: RMSNorm | None) -> Tensor | None:
    return None if norm is None else norm.weight


class FusedDecoder(Decoder):
    """A `Decoder` of `FusedDecoderBlock`s, which runs all blocks in one kernel call if possible."""

    def __init__(self, decoder: Decoder) -> None:
        nn.Module.__init__(self)
        self.config = decoder.config
        self.embedding = decoder.embedding
        self.blocks = decoder.blocks
        self.final_norm = decoder.final_norm
        self._structs: tuple[list[int | None], ctypes.Array[Block]] | None = None

    def run_blocks(
        self,
        x: Tensor,
        angles: tuple[Tensor, Tensor],
        biases: Sequence[Tensor],
        kv_cache: Cache | None,
        at: Tensor | None = None,
    ) -> Tensor:
        if kv_cache is None or not can_run_blocks(x):
            return super().run_blocks(x, angles, biases, kv_cache, at)
        return run_blocks(self._blocks(), x, angles, biases, kv_cache, at)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the addresses, which mean nothing in a copy or another process."""
        return {**self.__dict__, "_structs": None}

    def _blocks(self) -> ctypes.Array[Block]:
        """Return the blocks' structs, rebuilt when the address of a weight has changed."""
        blocks = [block for block in self.blocks if isinstance(block, FusedDecoderBlock)]
        addresses = [address_of(tensor) for block in blocks for tensor in block.tensors()]
        if self._structs is None or self._structs[0] != addresses:
            structs = (Block * len(blocks))(*(block.to_struct() for block in blocks))
            self._structs = addresses, structs
        return self._structs[1]


class FusedPatchEmbedding(nn.Module):
    """A replacement for the vision encoder's `Conv2d`, with its parameters, computed in float32.

    Where the processor has no bfloat16 products, torch's bfloat16 convolution takes fifty times as
    long.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.weight = conv.weight
        self.bias = conv.bias
        self.stride = conv.stride

    def forward(self, pixel_values: Tensor) -> Tensor:
        """float[I, 3, height, width] -> float[I, W, rows, columns] in the dtype of the pixels."""
        bias = None if self.bias is None else self.bias.float()
        patches = F.conv2d(pixel_values.float(), self.weight.float(), bias, self.stride)
        return patches.to(pixel_values.dtype)


class FusedProjector(nn.Module):
    """A packed replacement for a `Projector`."""

    def __init__(
        self,
        projector: Projector,
        weight_format: WeightFormat,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        plain = projector.linear
        sizes = plain.in_features, (plain.out_features,)
        self.layer = PackedLinear(*sizes, weight_format, bias=True, device=device)

    def forward(self, features: Tensor) -> Tensor:
        """As `Projector.forward`."""
        out: Tensor = self.layer(features)
        return out

    def weight_rows(self) -> dict[str, Rows]:
        return {"linear.weight": WeightRows(self.layer), "linear.bias": BiasRows(self.layer)}


class FusedVisionBlock(nn.Module):
    """A packed replacement for a `VisionBlock`, which reuses its norms."""

    def __init__(
        self,
        block: VisionBlock,
        config: VisionConfig,
        weight_format: WeightFormat,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        width, mlp_dim = config.width, config.mlp_dim
        self.layer_norm1 = block.layer_norm1
        self.qkv = PackedLinear(width, (width,) * 3, weight_format, bias=True, device=device)
        self.out = PackedLinear(width, (width,), weight_format, bias=True, device=device)
        self.layer_norm2 = block.layer_norm2
        self.fc1 = PackedLinear(
            width, (mlp_dim,), weight_format, bias=True, activation="gelu", device=device
        )
        self.fc2 = PackedLinear(mlp_dim, (width,), weight_format, bias=True, device=device)

    def forward(self, x: Tensor) -> Tensor:
        """As `VisionBlock.forward`."""
        x = x.clone(memory_format=torch.contiguous_format)
        norm1, norm2 = self.layer_norm1, self.layer_norm2
        normed = add_layer_norm(x, None, norm1.weight, norm1.bias, norm1.eps)
        queries, keys, values = (
            split_heads(part, self.head_dim) for part in self.qkv.split(normed)
        )
        attended = self.out(attend_all(queries, keys, values))
        normed = add_layer_norm(x, attended, norm2.weight, norm2.bias, norm2.eps)
        x += self.fc2(self.fc1(normed))
        return x

    def weight_rows(self) -> dict[str, Rows]:
        layers = {
            "attention.q_proj": (self.qkv, 0),
            "attention.k_proj": (self.qkv, 1),
            "attention.v_proj": (self.qkv, 2),
            "attention.out_proj": (self.out, 0),
            "mlp.fc1": (self.fc1, 0),
            "mlp.fc2": (self.fc2, 0),
        }
        rows: dict[str, Rows] = {}
        for name, (layer, number) in layers.items():
            rows[f"{name}.weight"] = WeightRows(layer, number)
            rows[f"{name}.bias"] = BiasRows(layer, number)
        return rows
