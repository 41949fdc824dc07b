"""The memory and time that training will take, by arithmetic and one quick measurement.

No weights are loaded. Memory is the peak: weights, gradients, the optimizer's two moments, the
activations kept for the backward pass, and part of the logits. Time is arithmetic, at this
machine's rate of matrix multiplication.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from paligemma.config import PaliGemmaConfig, count_parameters
from paligemma.fast.weights import FrozenFormat
from paligemma.finetune.config import Method, multiplies_bfloat16
from paligemma.finetune.run.options import size_of

# D width, F mlp dim, T tokens of a row, P patches

BITS: dict[FrozenFormat, float] = {"nf4": 4 + 16 / 64, "int8": 8 + 16 / 64}
"""Bits per frozen weight, including its group's 16-bit scale."""
_PROCESS_BYTES = 450_000_000  # Python, torch, images and buffers
_LOGITS_AT_ONCE = 512  # tokens whose logits are in memory at a time, three times
_EFFICIENCY = 0.22
"""Share of the rate of large products that training reaches: measured on two cores with mini, for
LoRA and for all weights. Elsewhere it may be off by a factor of two."""
_PROBE_SIDE, _PROBE_SECONDS = 512, 0.4


@dataclass(frozen=True, kw_only=True)
class TrainingCost:
    """Peak memory in bytes, and the operations of one step."""

    method: Method
    weights: int
    training: int  # gradients and optimizer
    activations: int
    process: int
    operations: float

    @property
    def total(self) -> int:
        return self.weights + self.training + self.activations + self.process

    def seconds(self, operations_per_second: float) -> float:
        """Seconds per step."""
        return self.operations / (_EFFICIENCY * operations_per_second)


def estimate(
    config: PaliGemmaConfig,
    method: Method,
    *,
    text_length: int,
    batch_size: int,
    accumulation: int = 1,
    rank: int = 16,
    base_format: FrozenFormat = "nf4",
    checkpoint_activations: bool | None = None,
) -> TrainingCost:
    """For rows of one image and `text_length` tokens of prefix and suffix together."""
    vision, decoder = config.vision, config.decoder
    is_large = size_of(config) != "mini"
    recomputes = is_large if checkpoint_activations is None else checkpoint_activations
    rows = -(-batch_size // accumulation)
    patches = vision.num_image_tokens
    length = patches + text_length
    parameters = count_parameters(config)
    heads = decoder.num_heads * decoder.head_dim
    keys = decoder.num_kv_heads * decoder.head_dim
    linear = decoder.depth * decoder.width * (2 * heads + 2 * keys + 3 * decoder.mlp_dim)
    encoder = vision.depth * vision.width * (4 * vision.width + 2 * vision.mlp_dim)
    outs_and_ins = (
        2 * (heads + decoder.width)
        + 2 * (keys + decoder.width)
        + 3 * (decoder.width + decoder.mlp_dim)
    )
    adapters = decoder.depth * rank * outs_and_ins

    plain = 4 if method in ("full", "frozen-encoder") or not is_large else 2
    weights = parameters * plain
    if method == "qlora":
        weights += round(linear * (BITS[base_format] / 8 - plain))
    trained = {
        "full": parameters,
        "frozen-encoder": parameters - encoder,
        "lora": adapters,
        "qlora": adapters,
    }[method]
    weights += 4 * adapters if method in ("lora", "qlora") else 0

    # Under autocast, kept activations are bfloat16, and those of the softmax float32 as well.
    block = length * (2 * (10 * decoder.width + 2 * heads + 2 * keys + 4 * decoder.mlp_dim))
    block += 6 * decoder.num_heads * length**2
    encoder_block = patches * 2 * (10 * vision.width + 3 * vision.mlp_dim)
    encoder_block += 6 * vision.num_heads * patches**2
    kept = length * 4 * decoder.width
    activations = decoder.depth * (kept if recomputes else block) + block
    if method == "full":
        encoder_kept = patches * 4 * vision.width
        activations += vision.depth * (encoder_kept if recomputes else encoder_block)
    activations = rows * (activations + encoder_block)
    answer = min(_LOGITS_AT_ONCE, rows * text_length)
    activations += 12 * answer * decoder.vocab_size

    attention = 4 * decoder.depth * heads * length**2
    forward = 2 * linear * length + attention
    forward += 2 * decoder.width * decoder.vocab_size * text_length
    backward = 2.0 if method in ("full", "frozen-encoder") else 1.1
    operations = forward * (1 + backward + (1 if recomputes else 0))
    encoding = 2 * encoder * patches + 4 * vision.depth * vision.width * patches**2
    operations += encoding * ((4 if recomputes else 3) if method == "full" else 1)
    return TrainingCost(
        method=method,
        weights=weights,
        training=12 * trained,
        activations=activations,
        process=_PROCESS_BYTES,
        operations=batch_size * operations,
    )


def measure_rate(device: torch.device) -> float:
    """Operations per second of large products as in training, measured in less than a second."""
    dtype = torch.bfloat16 if multiplies_bfloat16(device) else torch.float32
    side = _PROBE_SIDE if device.type == "cpu" else 16 * _PROBE_SIDE
    left = torch.ones(side, side, dtype=dtype, device=device)
    product = left @ left
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < _PROBE_SECONDS:
        product = left @ left
        count += 1
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    assert product.numel()
    return 2.0 * side**3 * count / (time.perf_counter() - start)
