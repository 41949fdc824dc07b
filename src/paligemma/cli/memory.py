"""How much memory a model needs, by arithmetic, and how much this machine has."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from paligemma.config import PaliGemmaConfig, count_parameters

BYTES_PER_VALUE = {"float32": 4, "bfloat16": 2, "float16": 2}
QUANTIZED_BITS = {"int8": 8 + 16 / 128, "int4": 4 + 16 / 32}
"""Bits per weight of the decoder's linear layers, with the bfloat16 scales of its group."""

_PROCESS_BYTES = 300_000_000  # Python, torch and their buffers, without any model


@dataclass(frozen=True, kw_only=True)
class MemoryNeed:
    """Bytes for one image and one prompt."""

    weights: int
    kv_cache: int
    activations: int
    process: int = _PROCESS_BYTES

    @property
    def total(self) -> int:
        return self.weights + self.kv_cache + self.activations + self.process


def memory_need(config: PaliGemmaConfig, form: str, text_length: int) -> MemoryNeed:
    """The need of a model for one image and `text_length` tokens, prompt and answer together.

    `form`: a dtype, or "int8" or "int4". With T = image tokens + text_length and b bytes per value
    (float32: 4, the others: 2):

        weights      parameters * b; quantized: linear layers of the decoder and its table by
                     their bits, the other parameters * 2
        kv_cache     2 * depth * kv heads * head dim * T * b
        activations  peak of the prefill: one layer's attention logits in float32,
                     three at a time (raw, with the mask added, after the softmax), so
                     12 * heads * T^2; or the three products of one MLP, 3 * mlp dim * T * b

        process      Python and torch

    This is an estimate for plain attention; faster forms need less.

    >>> from paligemma.config import release_config
    >>> need = memory_need(release_config("paligemma2", "3b", 224), "bfloat16", 256)
    >>> round(need.weights / 1e9, 1), round(need.kv_cache / 1e6)
    (6.1, 55)
    """
    decoder, size = config.decoder, BYTES_PER_VALUE.get(form, 2)
    length = config.vision.num_image_tokens + text_length
    values_per_token = 2 * decoder.depth * decoder.num_kv_heads * decoder.head_dim
    return MemoryNeed(
        weights=_weight_bytes(config, form, size),
        kv_cache=values_per_token * length * size,
        activations=max(12 * decoder.num_heads * length**2, 3 * decoder.mlp_dim * length * size),
    )


def _weight_bytes(config: PaliGemmaConfig, form: str, size: int) -> int:
    num_parameters = count_parameters(config)
    if form not in QUANTIZED_BITS:
        return num_parameters * size
    decoder = config.decoder
    heads = 2 * decoder.head_dim * (decoder.num_heads + decoder.num_kv_heads)
    attention = decoder.depth * decoder.width * heads
    mlp = decoder.depth * decoder.width * 3 * decoder.mlp_dim
    table = decoder.vocab_size * decoder.width
    # Attention and the table are int8 in an int4 model as well.
    quantized_bits = mlp * QUANTIZED_BITS[form] + (attention + table) * QUANTIZED_BITS["int8"]
    return (num_parameters - attention - mlp - table) * size + round(quantized_bits / 8)


def machine_memory() -> tuple[int, int]:
    """Bytes of main memory, (total, free). If the system does not report it, free is the total.

    Respects the memory limit of a container (Linux control groups, version 2).
    """
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    free = total
    if (meminfo := Path("/proc/meminfo")).exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                free = int(line.split()[1]) * 1024
    group = Path("/sys/fs/cgroup")
    if (group / "memory.max").exists():
        limit = (group / "memory.max").read_text().strip()
        if limit.isdigit() and int(limit) < total:
            total = int(limit)
            free = min(free, total - int((group / "memory.current").read_text()))
    return total, free


def in_gigabytes(num_bytes: int) -> str:
    """
    >>> in_gigabytes(6_100_000_000), in_gigabytes(21_000_000)
    ('6.1 GB', '0.02 GB')
    """
    return f"{num_bytes / 1e9:.{1 if num_bytes >= 1e8 else 2}f} GB"
