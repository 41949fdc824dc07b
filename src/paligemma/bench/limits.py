"""How fast this machine reads memory and multiplies, and the time that a stage needs at best.

A stage cannot be faster than reading its bytes at the memory's rate, or than computing its
operations at the peak of the matrix units. Both are counted by arithmetic; preprocessing, norms
and softmax are not. Weights are "bfloat16", "int8" or "int4". The peak is always that of bfloat16;
processors whose integer products are faster can be faster than this limit with int8 and int4.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from paligemma.config import DecoderConfig, PaliGemmaConfig, VisionConfig, count_parameters
from paligemma.fast.kernels.library import kernels
from paligemma.fast.quantization import BFLOAT16, INT4, INT8, WeightFormat

_BUFFER_BYTES = 2**30  # larger than any cache
_SIDE = 2048
# Formats of the decoder's attention, of its MLPs, and of its embedding table.
_FORMATS = {
    "bfloat16": (BFLOAT16, BFLOAT16, BFLOAT16),
    "int8": (INT8, INT8, INT8),
    "int4": (INT8, INT4, INT8),
}
_VALUE_BYTES = 2  # keys, values and all weights that are not quantized


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The machine's measured limits."""

    read_bandwidth: float
    """Bytes per second from memory."""
    matrix_peak: float
    """bfloat16 operations per second; a multiplication and an addition are two."""


class LimitsProbe:
    """Measures the limits repeatedly, in buffers of 1 GiB.

    Uses the package's compiled kernels if there are any: they measure the peak of the processor's
    matrix unit on operands in registers. torch's matrix products reach less, so without kernels
    shares are relative to the best that torch reaches.
    """

    def __init__(self) -> None:
        self._read_bandwidth: Callable[[], float]
        self._matrix_peak: Callable[[], float]
        native = kernels()
        self.measured_by = "torch" if native is None else "native"
        if native is None:
            side = round((_BUFFER_BYTES / 4) ** 0.5)
            self._matrix, self._vector = torch.ones(side, side), torch.ones(side)
            self._factor = torch.ones(_SIDE, _SIDE, dtype=torch.bfloat16)
            self._read_bandwidth, self._matrix_peak = self._torch_read, self._torch_multiply
        else:
            self._read_bandwidth = native.measure_read_bandwidth
            self._matrix_peak = native.measure_matrix_peak

    def measure(self) -> Limits:
        return Limits(read_bandwidth=self._read_bandwidth(), matrix_peak=self._matrix_peak())

    @torch.inference_mode()
    def _torch_read(self) -> float:
        # The torch operation that comes closest to the memory's rate.
        return _BUFFER_BYTES / median_seconds(lambda: torch.mv(self._matrix, self._vector))

    @torch.inference_mode()
    def _torch_multiply(self) -> float:
        return 2 * _SIDE**3 / median_seconds(lambda: F.linear(self._factor, self._factor))


def median_seconds(run: Callable[[], object]) -> float:
    """The median of three runs, after one warm-up run."""
    run()
    times = []
    for _ in range(3):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


@dataclass(frozen=True, kw_only=True)
class Work:
    """Bytes read and operations computed; a multiplication and an addition are two."""

    num_bytes: float
    num_operations: float

    def seconds(self, limits: Limits) -> float:
        """The longer of the two: at best, reading and computing overlap completely."""
        return max(self.num_bytes / limits.read_bandwidth, self.num_operations / limits.matrix_peak)


def decode_work(config: DecoderConfig, weights: str, num_rows: int, length: int) -> Work:
    """One decode step: one more token per row, after `length` tokens.

    >>> from paligemma.config import GEMMA2_2B
    >>> round(decode_work(GEMMA2_2B, "bfloat16", 1, 272).num_bytes / 1e9, 2)
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
    """A prefill: prefixes of `length` tokens, and the logits after the last token of each.

    The last layer computes only keys and values for all tokens.
    """
    layers, table = config.depth * _layer_parameters(config), config.vocab_size * config.width
    layer_size, table_size = _weight_sizes(config, weights)
    keys_and_values = 2 * config.width * config.num_kv_heads * config.head_dim
    at_last_only = _layer_parameters(config) - keys_and_values
    multiplied = (layers - at_last_only) * length + at_last_only
    num_queries = (config.depth - 1) * length + 1
    attended = 4 * config.num_heads * config.head_dim * num_queries * length
    return Work(
        num_bytes=layers * layer_size + table * table_size,
        num_operations=num_rows * (2 * multiplied + attended + 2 * table),
    )


def vision_work(config: PaliGemmaConfig) -> Work:
    """Encoder and projector for one image; their weights are never quantized.

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
    """Size of all weights in memory."""
    decoder = config.decoder
    layers, table = decoder.depth * _layer_parameters(decoder), decoder.vocab_size * decoder.width
    layer_size, table_size = _weight_sizes(decoder, weights)
    rest = count_parameters(config) - layers - table
    return layers * layer_size + table * table_size + rest * _VALUE_BYTES


def _weight_sizes(config: DecoderConfig, weights: str) -> tuple[float, float]:
    """Bytes per weight in the layers (on average) and in the table, including scales."""
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
