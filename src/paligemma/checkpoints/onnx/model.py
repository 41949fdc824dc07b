"""The three graphs that transformers.js runs; the same formulas as in `paligemma/model/`.

    pixel_values -> vision_encoder -> image_features ┐
    input_ids -> embed_tokens -> inputs_embeds ──────┴-> decoder_model_merged -> logits

The caller puts the image features where `<image>` is in the ids. All embeddings are multiplied by
sqrt(D) in embed_tokens, image features not at all, so graphs of other exports, which may scale
elsewhere, do not fit.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from onnx import TensorProto

from paligemma.checkpoints.onnx.graph import Dims, Graph
from paligemma.checkpoints.onnx.weights import Variant, Weights
from paligemma.checkpoints.rows import StoredRows
from paligemma.config import DecoderConfig, PaliGemmaConfig, VisionConfig

# B batch, T tokens in this call, S visible positions, D width, F mlp dim, V vocabulary
# N query heads, K key/value heads, G = N // K, H head dim; P image tokens, W vision width
# Rows are flattened: [B * T, D] between the attentions.

_LAST = np.iinfo(np.int64).max


def vision_encoder(
    config: PaliGemmaConfig, parameters: Mapping[str, StoredRows], variant: Variant
) -> Graph:
    """pixel_values float32[B, 3, R, R] in [-1, 1] -> image_features float32[B, P, D]."""
    graph = Graph("vision_encoder")
    weights = Weights(graph, parameters, variant)
    side = config.vision.resolution
    pixel_values = graph.input("pixel_values", TensorProto.FLOAT, ["batch_size", 3, side, side])
    features = _Vision(graph, weights, config.vision).encode(pixel_values)
    bias = weights.vector("projector.linear.bias")
    out = weights.linear(features, "projector.linear.weight", bias)
    shape = (config.vision.num_image_tokens, config.decoder.width)
    out = graph.op("Reshape", out, graph.constant([-1, *shape]))
    graph.output("image_features", out, ["batch_size", *shape])
    return graph


def embed_tokens(
    config: PaliGemmaConfig, parameters: Mapping[str, StoredRows], variant: Variant
) -> Graph:
    """input_ids int64[B, T] -> inputs_embeds float32[B, T, D], times sqrt(D)."""
    graph = Graph("embed_tokens")
    weights = Weights(graph, parameters, variant)
    ids = graph.input("input_ids", TensorProto.INT64, ["batch_size", "sequence_length"])
    rows = weights.embedding(ids, "decoder.embedding.weight")
    out = graph.op("Mul", rows, graph.constant(np.float32(config.decoder.width**0.5)))
    graph.output("inputs_embeds", out, ["batch_size", "sequence_length", config.decoder.width])
    return graph


def decoder_model_merged(
    config: PaliGemmaConfig, parameters: Mapping[str, StoredRows], variant: Variant
) -> Graph:
    """inputs_embeds float32[B, T, D] and a cache -> logits float32[B, T, V] and the longer cache.

    attention_mask int64[B, S] marks real positions, those in the cache included. There is no
    causal mask: a call contains a whole prefix, which is bidirectional, or one token per row.
    position_ids int64[B, T] start at 1. Logits are those of the last num_logits_to_keep tokens, or
    of all if that is 0.
    """
    graph = Graph("decoder_model_merged")
    decoder = config.decoder
    attention_mask = graph.input(
        "attention_mask", TensorProto.INT64, ["batch_size", "total_sequence_length"]
    )
    position_ids = graph.input("position_ids", TensorProto.INT64, ["batch_size", "sequence_length"])
    embeds = graph.input(
        "inputs_embeds", TensorProto.FLOAT, ["batch_size", "sequence_length", decoder.width]
    )
    num_logits = graph.input("num_logits_to_keep", TensorProto.INT64, [])
    layers = _Decoder(graph, Weights(graph, parameters, variant), decoder, embeds)
    layers.bias = _attention_bias(graph, attention_mask)
    layers.angles = _rotary_angles(graph, position_ids, decoder)
    x = graph.op("Reshape", embeds, graph.constant([-1, decoder.width]))
    for i in range(decoder.depth):
        x = layers.block(x, i)
    x = graph.op("Reshape", x, layers.shape(-1, decoder.width))
    start = graph.op("Neg", graph.op("Reshape", num_logits, graph.constant([1])))
    x = graph.op("Slice", x, start, graph.constant([_LAST]), graph.constant([1]))
    x = graph.op("Reshape", x, graph.constant([-1, decoder.width]))
    x = layers.rms_norm(x, "decoder.final_norm.weight")
    logits = layers.weights.linear(x, "decoder.embedding.weight")
    if decoder.final_logit_softcap is not None:
        logits = _soft_cap(graph, logits, decoder.final_logit_softcap)
    logits = graph.op("Reshape", logits, layers.shape(-1, decoder.vocab_size))
    graph.output("logits", logits, ["batch_size", "num_logits", decoder.vocab_size])
    for name, cached in layers.presents.items():
        dims: Dims = [
            "batch_size",
            decoder.num_kv_heads,
            "total_sequence_length",
            decoder.head_dim,
        ]
        graph.output(name, cached, dims)
    return graph


class _Vision:
    """SigLIP without its pooling head, on rows [B * P, W]."""

    def __init__(self, graph: Graph, weights: Weights, config: VisionConfig) -> None:
        self.graph = graph
        self.weights = weights
        self.config = config

    def encode(self, pixel_values: str) -> str:
        graph, config, patch = self.graph, self.config, self.config.patch_size
        patches = graph.op(
            "Conv",
            pixel_values,
            self.weights.tensor("vision_encoder.patch_embedding.weight"),
            self.weights.vector("vision_encoder.patch_embedding.bias"),
            kernel_shape=[patch, patch],
            strides=[patch, patch],
        )
        flat = graph.constant([0, config.width, config.num_image_tokens])
        patches = graph.op("Transpose", graph.op("Reshape", patches, flat), perm=[0, 2, 1])
        positions = self.weights.tensor("vision_encoder.position_embedding.weight")
        x = graph.op("Add", patches, positions)
        x = graph.op("Reshape", x, graph.constant([-1, config.width]))
        for i in range(config.depth):
            x = self.block(x, f"vision_encoder.blocks.{i}")
        return self.layer_norm(x, "vision_encoder.post_layernorm")

    def block(self, x: str, name: str) -> str:
        attended = self.attention(self.layer_norm(x, f"{name}.layer_norm1"), f"{name}.attention")
        x = self.graph.op("Add", x, attended)
        hidden = self.linear(self.layer_norm(x, f"{name}.layer_norm2"), f"{name}.mlp.fc1")
        hidden = self.linear(_gelu(self.graph, hidden), f"{name}.mlp.fc2")
        return self.graph.op("Add", x, hidden)

    def attention(self, x: str, name: str) -> str:
        graph, config = self.graph, self.config
        heads = graph.constant([-1, config.num_image_tokens, config.num_heads, config.head_dim])
        queries, keys, values = (
            graph.op("Reshape", self.linear(x, f"{name}.{proj}"), heads)  # (B, P, N, H)
            for proj in ("q_proj", "k_proj", "v_proj")
        )
        scale = graph.constant(np.float32(config.head_dim**-0.5))
        queries = graph.op("Transpose", graph.op("Mul", queries, scale), perm=[0, 2, 1, 3])
        logits = graph.op("MatMul", queries, graph.op("Transpose", keys, perm=[0, 2, 3, 1]))
        values = graph.op("Transpose", values, perm=[0, 2, 1, 3])
        mixed = graph.op("MatMul", graph.op("Softmax", logits, axis=-1), values)
        mixed = graph.op("Transpose", mixed, perm=[0, 2, 1, 3])
        mixed = graph.op("Reshape", mixed, graph.constant([-1, config.width]))
        return self.linear(mixed, f"{name}.out_proj")

    def linear(self, x: str, name: str) -> str:
        return self.weights.linear(x, f"{name}.weight", self.weights.vector(f"{name}.bias"))

    def layer_norm(self, x: str, name: str) -> str:
        return self.graph.op(
            "LayerNormalization",
            x,
            self.weights.vector(f"{name}.weight"),
            self.weights.vector(f"{name}.bias"),
            epsilon=self.config.layer_norm_eps,
        )


class _Decoder:
    """Gemma 1 or 2, on rows [B * T, D]."""

    bias: str
    angles: tuple[str, str]

    def __init__(self, graph: Graph, weights: Weights, config: DecoderConfig, embeds: str) -> None:
        self.graph = graph
        self.weights = weights
        self.config = config
        self.batch = graph.op("Shape", embeds, start=0, end=1)
        self.presents: dict[str, str] = {}

    def block(self, x: str, layer: int) -> str:
        name = f"decoder.blocks.{layer}"
        attended = self.attention(
            self.rms_norm(x, f"{name}.pre_attention_norm.weight"), f"{name}.attention", layer
        )
        if self.config.post_norms:
            attended = self.rms_norm(attended, f"{name}.post_attention_norm.weight")
        x = self.graph.op("Add", x, attended)
        transformed = self.mlp(self.rms_norm(x, f"{name}.pre_mlp_norm.weight"), f"{name}.mlp")
        if self.config.post_norms:
            transformed = self.rms_norm(transformed, f"{name}.post_mlp_norm.weight")
        return self.graph.op("Add", x, transformed)

    def rms_norm(self, x: str, name: str) -> str:
        """x / rms(x) * (1 + weight)."""
        op, constant = self.graph.op, self.graph.constant
        square = op("ReduceMean", op("Pow", x, constant(np.float32(2))), axes=[-1], keepdims=1)
        rms = op("Sqrt", op("Add", square, constant(np.float32(self.config.rms_norm_eps))))
        return op("Mul", op("Div", x, rms), self.weights.vector(name, plus=1.0))

    def mlp(self, x: str, name: str) -> str:
        gate = _gelu(self.graph, self.weights.linear(x, f"{name}.gate_proj.weight"))
        up = self.weights.linear(x, f"{name}.up_proj.weight")
        product = self.graph.op("Mul", gate, up)
        return self.weights.linear(product, f"{name}.down_proj.weight")

    def attention(self, x: str, name: str, layer: int) -> str:
        op, config = self.graph.op, self.config
        past = [
            self.graph.input(
                f"past_key_values.{layer}.{part}",
                TensorProto.FLOAT,
                ["batch_size", config.num_kv_heads, "past_sequence_length", config.head_dim],
            )
            for part in ("key", "value")
        ]
        queries = self.split_heads(
            self.weights.linear(x, f"{name}.q_proj.weight"), config.num_heads
        )
        keys, values = (
            self.split_heads(self.weights.linear(x, f"{name}.{proj}.weight"), config.num_kv_heads)
            for proj in ("k_proj", "v_proj")
        )
        scale = self.graph.constant(np.float32(config.query_scale))
        queries = op("Mul", self.rotate(queries), scale)
        keys = op("Concat", past[0], self.rotate(keys), axis=2)
        values = op("Concat", past[1], values, axis=2)
        self.presents |= {f"present.{layer}.key": keys, f"present.{layer}.value": values}
        grouped = self.graph.constant([0, config.num_kv_heads, -1, config.head_dim])
        queries = op("Reshape", queries, grouped)  # (B, K, G * T, H)
        logits = op("MatMul", queries, op("Transpose", keys, perm=[0, 1, 3, 2]))
        if config.attn_logit_softcap is not None:
            logits = _soft_cap(self.graph, logits, config.attn_logit_softcap)
        attn_weights = op("Softmax", op("Add", logits, self.bias), axis=-1)
        mixed = op("MatMul", attn_weights, values)
        per_head = self.graph.constant([0, config.num_heads, -1, config.head_dim])
        mixed = op("Transpose", op("Reshape", mixed, per_head), perm=[0, 2, 1, 3])
        mixed = op("Reshape", mixed, self.graph.constant([-1, config.num_heads * config.head_dim]))
        return self.weights.linear(mixed, f"{name}.o_proj.weight")

    def split_heads(self, x: str, num_heads: int) -> str:
        """[B * T, N * H] -> [B, N, T, H]"""
        heads = self.graph.op("Reshape", x, self.shape(-1, num_heads, self.config.head_dim))
        return self.graph.op("Transpose", heads, perm=[0, 2, 1, 3])

    def rotate(self, x: str) -> str:
        """Rotate queries or keys [B, N, T, H] by their positions."""
        op, (cos, sin) = self.graph.op, self.angles
        half = self.config.head_dim // 2
        halves = self.graph.constant([half, half])
        first, second = self.graph.ops("Split", x, halves, num_outputs=2, axis=-1)
        return op(
            "Concat",
            op("Sub", op("Mul", first, cos), op("Mul", second, sin)),
            op("Add", op("Mul", second, cos), op("Mul", first, sin)),
            axis=-1,
        )

    def shape(self, *dims: int) -> str:
        """Return the shape [B, *dims]; -1 becomes T."""
        return self.graph.op("Concat", self.batch, self.graph.constant(dims), axis=0)


def _rotary_angles(graph: Graph, position_ids: str, config: DecoderConfig) -> tuple[str, str]:
    """Return cosines and sines of int64[B, T] positions that start at 1: two float32[B, 1, T, H/2].

    Ours start at 0. Only differences of positions matter, but like this even the roundings agree.
    """
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32)
    frequencies = graph.constant((config.rope_theta ** -(exponents / config.head_dim)).numpy())
    positions = graph.op("Sub", position_ids, graph.constant(np.int64(1)))
    positions = graph.op("Unsqueeze", positions, graph.constant([1, 3]))
    positions = graph.op("Cast", positions, to=TensorProto.FLOAT)
    angles = graph.op("Mul", positions, frequencies)
    return graph.op("Cos", angles), graph.op("Sin", angles)


def _attention_bias(graph: Graph, attention_mask: str) -> str:
    """int64[B, S] -> float32[B, 1, 1, S]: 0 where a key is visible, else the lowest number."""
    visible = graph.op("Cast", attention_mask, to=TensorProto.BOOL)
    lowest = graph.constant(np.finfo(np.float32).min)
    bias = graph.op("Where", visible, graph.constant(np.float32(0)), lowest)
    return graph.op("Unsqueeze", bias, graph.constant([1, 2]))


def _soft_cap(graph: Graph, x: str, cap: float) -> str:
    """cap * tanh(x / cap)"""
    limit = graph.constant(np.float32(cap))
    return graph.op("Mul", graph.op("Tanh", graph.op("Div", x, limit)), limit)


def _gelu(graph: Graph, x: str) -> str:
    """x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x^3))), in the form onnxruntime fuses."""

    def number(value: float) -> str:
        return graph.constant(np.float32(value))

    cubic = graph.op("Mul", graph.op("Pow", x, number(3)), number(0.044715))
    inner = graph.op("Mul", graph.op("Add", x, cubic), number((2 / np.pi) ** 0.5))
    gate = graph.op("Add", graph.op("Tanh", inner), number(1))
    return graph.op("Mul", graph.op("Mul", x, number(0.5)), gate)
