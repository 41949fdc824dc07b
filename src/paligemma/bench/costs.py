"""The least that a stage must read and compute, by arithmetic, and how long that takes at best.

A stage can be no faster than its bytes at the machine's read rate, nor than its operations at the
peak of its matrix units; pictures, norms and softmax count as nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from paligemma.bench.limits import Limits
from paligemma.bench.workload import PROMPT_LENGTH, Stage
from paligemma.config import DecoderConfig, PaliGemmaConfig, VisionConfig, count_parameters
from paligemma.fast.quantization import BFLOAT16, INT4, INT8, WeightFormat

# How weights are kept in the decoder's attention, in its MLPs, and in its table of embeddings.
_FORMATS = {
    "bf16": (BFLOAT16, BFLOAT16, BFLOAT16),
    "int8": (INT8, INT8, INT8),
    "int4": (INT8, INT4, INT8),
}
_VALUE_BYTES = 2  # of keys, values and all weights that are not quantized


@dataclass(frozen=True, kw_only=True)
class Work:
    num_bytes: float
    num_operations: float

    def seconds(self, limits: Limits) -> float:
        """The longer of the two: at best, reading and computing overlap in full."""
        return max(self.num_bytes / limits.read_bandwidth, self.num_operations / limits.matrix_peak)


def least_seconds(
    config: PaliGemmaConfig, weights: str, stage: Stage, limits: Limits
) -> dict[str, float]:
    """For each of a stage's metrics the least time, with "bf16", "int8" or "int4" weights.

    Nothing for preparing the picture. What comes one after the other adds up.
    """
    length = config.vision.num_image_tokens + PROMPT_LENGTH

    def step(num_rows: int, length: int) -> float:
        return decode_work(config.decoder, weights, num_rows, length).seconds(limits)

    if stage.kind == "load":
        return {stage.name: weight_bytes(config, weights) / limits.file_bandwidth}
    if stage.kind == "image":
        return {}
    if stage.kind == "vision":
        return {stage.name: vision_work(config).seconds(limits)}
    if stage.kind == "steps":
        return {stage.name: step(stage.num_rows, length + stage.num_tokens // 2)}
    prefill = prefill_work(config.decoder, weights, stage.num_rows, length).seconds(limits)
    if stage.kind == "prefill":
        return {stage.name: prefill}
    first = vision_work(config).seconds(limits) + prefill
    if stage.name == "answer":
        return {"first token": first, "decode step": step(1, length + stage.num_tokens // 2)}
    later = sum(step(stage.num_rows, length + n) for n in range(1, stage.num_tokens))
    return {stage.name: first + later}


def decode_work(config: DecoderConfig, weights: str, num_rows: int, length: int) -> Work:
    """One more token for each row, after `length` tokens.

    >>> from paligemma.config import GEMMA2_2B
    >>> round(decode_work(GEMMA2_2B, "bf16", 1, 272).num_bytes / 1e9, 2)
    5.26
    """
    layers, table = config.depth * _layer_parameters(config), config.vocab_size * config.width
    layer_size, table_size = _weight_sizes(config, weights)
    cached = 2 * config.depth * config.num_kv_heads * config.head_dim * length
    attended = 4 * config.depth * config.num_heads * config.head_dim * length
    return Work(
        num_bytes=layers * layer_size + table * table_size + num_rows * cached * _VALUE_BYTES,
        num_operations=num_rows * (2 * (layers + table) + attended),
    )


def prefill_work(config: DecoderConfig, weights: str, num_rows: int, length: int) -> Work:
    """Prefixes of `length` tokens, and the logits after the last token of each."""
    layers, table = config.depth * _layer_parameters(config), config.vocab_size * config.width
    layer_size, table_size = _weight_sizes(config, weights)
    attended = 4 * config.depth * config.num_heads * config.head_dim * length**2
    return Work(
        num_bytes=layers * layer_size + table * table_size,
        num_operations=num_rows * (2 * layers * length + attended + 2 * table),
    )


def vision_work(config: PaliGemmaConfig) -> Work:
    """One picture, with the projector; its weights are never quantized.

    >>> from paligemma.config import release_config
    >>> round(vision_work(release_config("paligemma2", "3b", 224)).num_operations / 1e12, 2)
    0.22
    """
    vision = config.vision
    num_weights = _vision_parameters(vision) + vision.width * config.decoder.width
    num_patches = vision.num_image_tokens
    attended = 4 * vision.depth * vision.width * num_patches**2
    return Work(
        num_bytes=_VALUE_BYTES * num_weights,
        num_operations=2 * num_weights * num_patches + attended,
    )


def weight_bytes(config: PaliGemmaConfig, weights: str) -> float:
    """All weights in memory."""
    decoder = config.decoder
    layers, table = decoder.depth * _layer_parameters(decoder), decoder.vocab_size * decoder.width
    layer_size, table_size = _weight_sizes(decoder, weights)
    rest = count_parameters(config) - layers - table
    return layers * layer_size + table * table_size + rest * _VALUE_BYTES


def cache_bytes(config: PaliGemmaConfig, num_rows: int, num_tokens: int) -> int:
    """Keys and values of rows of a picture, a prompt and `num_tokens` new tokens."""
    decoder = config.decoder
    length = config.vision.num_image_tokens + PROMPT_LENGTH + num_tokens
    values = 2 * decoder.depth * decoder.num_kv_heads * decoder.head_dim
    return num_rows * length * values * _VALUE_BYTES


def _weight_sizes(config: DecoderConfig, weights: str) -> tuple[float, float]:
    """Bytes of a weight in the layers (on average) and in the table, with its part of a scale."""
    attention, mlp, table = map(_weight_size, _FORMATS[weights])
    mlp_share = config.width * 3 * config.mlp_dim / _layer_parameters(config)
    return mlp_share * mlp + (1 - mlp_share) * attention, table


def _weight_size(weight_format: WeightFormat) -> float:
    scale = 0 if weight_format is BFLOAT16 else 2 / weight_format.group_size
    return weight_format.bits / 8 + scale


def _layer_parameters(config: DecoderConfig) -> int:
    attention = 2 * config.head_dim * (config.num_heads + config.num_kv_heads)
    return config.width * (attention + 3 * config.mlp_dim)


def _vision_parameters(config: VisionConfig) -> int:
    layer = 4 * config.width**2 + 2 * config.width * config.mlp_dim
    return 3 * config.patch_size**2 * config.width + config.depth * layer
