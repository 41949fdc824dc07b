"""Measure how fast OpenVINO runs the decoder of PaliGemma 2 3B.

    python benchmarks/openvino_decoder.py

Converts the plain decoder with random weights, unchanged, and runs it in bfloat16 and with weights
compressed to int8 and int4 (groups of 128; with and without the output layer): a decode step after
272 tokens, and a prefill of 272 tokens with the logits of the last one. Measured alternately with
the same matrix products in torch, in bfloat16. Layers and output layer are timed separately; the
time of all 26 layers is extrapolated from `--layers`. Six layers need 20 GB of memory.

Needs `pip install openvino nncf` in addition to paligemma.
"""

from __future__ import annotations

import argparse
import copy
import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import nncf
import openvino
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paligemma.config import GEMMA2_2B
from paligemma.model.attention import rotary_angles
from paligemma.model.gemma import Decoder

_LENGTH = 272
_INT4 = {"mode": nncf.CompressWeightsMode.INT4_SYM, "group_size": 128}
_MODES = {
    "bf16": None,
    "int8": {"mode": nncf.CompressWeightsMode.INT8_SYM},
    "int4, head int8": _INT4,
    "int4": _INT4 | {"all_layers": True},
}
Run = Callable[[], object]


class _Past:
    """Keys and values as inputs and outputs of the graph, where the decoder expects a cache."""

    def __init__(self, past: tuple[Tensor, ...]) -> None:
        self.past = past
        self.new: list[Tensor] = []

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        self.new += [keys, values]
        if not self.past:
            return keys, values
        past_keys, past_values = self.past[2 * layer : 2 * layer + 2]
        return torch.cat([past_keys, keys], dim=2), torch.cat([past_values, values], dim=2)


class _Graph(nn.Module):
    """float32[1, T, D] and the past's keys and values -> last logits, new keys and values."""

    def __init__(self, decoder: Decoder, positions: Tensor) -> None:
        super().__init__()
        self.decoder = decoder
        config = decoder.config
        self.angles = rotary_angles(positions, config.head_dim, config.rope_theta)

    def forward(self, x: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        cache = _Past(past)
        for block in self.decoder.blocks:
            x = block(x, self.angles, torch.zeros(1), cache)
        return self.decoder.logits(self.decoder.final_norm(x)[:, -1]), *cache.new


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=6, help="number of layers to run (6)")
    parser.add_argument("--repeat", type=int, default=7, help="samples per figure (7)")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    # float32: OpenVINO unpacks compressed bfloat16 constants again when it compiles the graph.
    decoder = Decoder(replace(GEMMA2_2B, depth=arguments.layers)).eval().requires_grad_(False)
    print(
        "medians in ms: 26 layers + output layer = total; decode: memory read, share of bandwidth"
    )
    with torch.inference_mode():
        for stage in ("decode", "prefill"):
            for (
                mode
            ) in _MODES:  # one at a time: a compiled graph holds several copies of the weights
                measure(decoder, stage, mode, arguments.repeat)
                gc.collect()


def measure(decoder: Decoder, stage: str, mode: str, num_rounds: int) -> None:
    head = copy.copy(decoder)
    head._modules = decoder._modules | {"blocks": nn.ModuleList()}
    linears = [m.weight for m in decoder.blocks.modules() if isinstance(m, nn.Linear)]
    layer_weights = [w.to(torch.bfloat16) for w in linears]
    head_weights = [decoder.embedding.weight.to(torch.bfloat16)]
    openvino_name = f"openvino {mode}"
    runs: dict[str, tuple[Run, Run]] = {  # layers (for openvino: and output layer); output layer
        "torch F.linear": (
            products(layer_weights, 1 if stage == "decode" else _LENGTH),
            products(head_weights, 1),
        )
    }
    if stage == "decode":
        runs["torch.mv"] = vector_products(layer_weights), vector_products(head_weights)
    start = time.perf_counter()
    runs[openvino_name] = compiled(decoder, stage, mode), compiled(head, stage, mode)
    print(f"{stage}, {mode}: compiled in {time.perf_counter() - start:.0f} s", flush=True)
    matrix, vector = torch.ones(2**14, 2**14), torch.ones(2**14)
    probe_seconds = []
    layers_ms: dict[str, list[float]] = {name: [] for name in runs}
    head_ms: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(num_rounds):
        probe_seconds.append(seconds(lambda: torch.mv(matrix, vector)))
        for name, (run_layers, run_head) in runs.items():
            head_ms[name].append(1000 * seconds(run_head))
            layers = 1000 * seconds(run_layers)
            if name == openvino_name:
                layers -= head_ms[name][-1]
            layers_ms[name].append(layers * GEMMA2_2B.depth / len(decoder.blocks))
    probe = 2**30 / 1e9 / statistics.median(probe_seconds)
    for name in runs:
        layers, head_time = statistics.median(layers_ms[name]), statistics.median(head_ms[name])
        total = layers + head_time
        line = f"  {name:24} {layers:7.1f} + {head_time:6.1f} = {total:7.1f}"
        if stage == "decode":
            num_bytes = bytes_read(name)
            line += f"  {num_bytes / 1e9:.2f} GB at {num_bytes / 1e6 / total / probe:.2f}"
        print(f"{line} of {probe:.1f} GB/s", flush=True)


def seconds(run: Run) -> float:
    run()
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def bytes_read(name: str) -> float:
    """Bytes of weights and scales that a decode step of the whole decoder reads."""
    config = GEMMA2_2B
    attention = 2 * config.head_dim * (config.num_heads + config.num_kv_heads)
    layers = config.depth * config.width * (attention + 3 * config.mlp_dim)
    head = config.vocab_size * config.width
    int4 = 0.5 + 2 / 128
    layer_size = 2.0 if "int" not in name else 1.0 if "int8" in name and "4" not in name else int4
    head_size = 2.0 if "int" not in name else 1.0 if "int8" in name else int4
    return layers * layer_size + head * head_size


def products(weights: list[Tensor], num_tokens: int) -> Run:
    inputs = [torch.randn(num_tokens, w.shape[1]).to(w.dtype) for w in weights]
    return lambda: [F.linear(x, w) for x, w in zip(inputs, weights, strict=True)]


def vector_products(weights: list[Tensor]) -> Run:
    inputs = [torch.randn(w.shape[1]).to(w.dtype) for w in weights]
    return lambda: [torch.mv(w, x) for x, w in zip(inputs, weights, strict=True)]


def compiled(decoder: Decoder, stage: str, mode: str) -> Run:
    config, num_layers = decoder.config, len(decoder.blocks)
    if stage == "decode":
        shape = (1, config.num_kv_heads, _LENGTH, config.head_dim)
        past, positions = [torch.randn(shape)] * (2 * num_layers), torch.tensor([[_LENGTH]])
    else:
        past, positions = [], torch.arange(_LENGTH)[None]
    examples = [torch.randn(1, positions.shape[1], config.width), *past]
    graph = openvino.convert_model(
        _Graph(decoder, positions),
        example_input=tuple(examples),
        input=[tuple(x.shape) for x in examples],
    )
    if (compression := _MODES[mode]) is not None:
        graph = nncf.compress_weights(graph, **compression)
    options = {"INFERENCE_PRECISION_HINT": "bf16", "PERFORMANCE_HINT": "LATENCY"}
    request = openvino.Core().compile_model(graph, "CPU", options).create_infer_request()
    for i, x in enumerate(examples):
        request.set_input_tensor(i, openvino.Tensor(x.numpy()))
    return request.infer


if __name__ == "__main__":
    main()
