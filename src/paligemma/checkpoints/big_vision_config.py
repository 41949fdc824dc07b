"""Derive a config from the shapes of big_vision's arrays, whose files contain nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from math import isqrt
from pathlib import Path

from paligemma.checkpoints.config_checks import MAX_SIZE, released_decoder
from paligemma.config import DecoderConfig, PaliGemmaConfig, VisionConfig
from paligemma.errors import CheckpointError, OptionError

VISION = "params/img/"
DECODER = "params/llm/"
BLOCKS = VISION + "Transformer/encoderblock"
LAYERS = DECODER + "layers/"


def config_of_shapes(
    path: Path, shapes: Mapping[str, tuple[int, ...]], sliding_window: int | None = None
) -> PaliGemmaConfig:
    """Derive a config from the shapes of arrays under the names of released files.

    Raises CheckpointError for arrays that are missing or do not fit each other, and OptionError for
    an invalid window.
    """
    try:
        vision, decoder = _vision_config(path, shapes), _decoder_sizes(path, shapes)
    except OptionError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return PaliGemmaConfig(vision=vision, decoder=released_decoder(decoder, sliding_window))


def _shape(
    path: Path, shapes: Mapping[str, tuple[int, ...]], name: str, axes: str
) -> tuple[int, ...]:
    """Return the shape of an array with the given axes, such as "L N D H"."""
    shape = shapes.get(name)
    if shape is None:
        raise CheckpointError(f"{path} contains no array {name}, which a PaliGemma needs.")
    if len(shape) != len(axes.split()) or not all(1 <= size <= MAX_SIZE for size in shape):
        raise CheckpointError(
            f"{path}: {name} is {shape}; expected ({', '.join(axes.split())}), each from 1 to "
            f"{MAX_SIZE}."
        )
    return shape


def _vision_config(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> VisionConfig:
    patch, _, _, width = _shape(path, shapes, VISION + "embedding/kernel", "h w 3 d")
    _, num_positions, _ = _shape(path, shapes, VISION + "pos_embedding", "1 P d")
    grid = isqrt(num_positions)
    if grid**2 != num_positions:
        raise CheckpointError(
            f"{path}: {VISION}pos_embedding has {num_positions} positions; expected a square "
            "number."
        )
    query, up = "MultiHeadDotProductAttention_0/query/kernel", "MlpBlock_0/Dense_0/kernel"
    if f"{BLOCKS}/{query}" in shapes:
        depth, _, num_heads, _ = _shape(path, shapes, f"{BLOCKS}/{query}", "l d n h")
        *_, mlp_dim = _shape(path, shapes, f"{BLOCKS}/{up}", "l d m")
    else:
        _, num_heads, _ = _shape(path, shapes, f"{BLOCKS}_0/{query}", "d n h")
        _, mlp_dim = _shape(path, shapes, f"{BLOCKS}_0/{up}", "d m")
        depth = sum(name.endswith(query) for name in shapes)
    return VisionConfig(
        resolution=grid * patch,
        patch_size=patch,
        width=width,
        depth=depth,
        mlp_dim=mlp_dim,
        num_heads=num_heads,
    )


def _decoder_sizes(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> DecoderConfig:
    vocab_size, width = _shape(path, shapes, DECODER + "embedder/input_embedding", "V D")
    merged = LAYERS + "attn/qkv_einsum/w"
    if merged in shapes:
        depth, _, num_heads, _, head_dim = _shape(path, shapes, merged, "L 3 N D H")
        num_kv_heads = num_heads
    else:
        depth, num_heads, _, head_dim = _shape(path, shapes, LAYERS + "attn/q_einsum/w", "L N D H")
        _, _, num_kv_heads, *_ = _shape(path, shapes, LAYERS + "attn/kv_einsum/w", "L 2 K D H")
    *_, mlp_dim = _shape(path, shapes, LAYERS + "mlp/gating_einsum", "L 2 D F")
    return DecoderConfig(
        vocab_size=vocab_size,
        width=width,
        depth=depth,
        mlp_dim=mlp_dim,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        query_scale=head_dim**-0.5,
        post_norms=LAYERS + "post_ffw_norm/scale" in shapes,
    )
