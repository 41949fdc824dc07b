"""Check and measure a GPU in one run of less than ten minutes.

    python benchmarks/gpu.py --out FOLDER

Uses random weights of the real shapes, made on the device; nothing is downloaded, and only torch is
required (transformers, torchao and bitsandbytes are used if installed). Steps are independent: a
step that fails leaves its error in the table. `table.md` and `results.json` are rewritten after
each step. `--device cpu --tiny` tries the script without a GPU.
"""

from __future__ import annotations

import argparse
import datetime
import json
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from paligemma.config import DecoderConfig, PaliGemmaConfig, VisionConfig, release_config
from paligemma.fast.cuda.model import accelerate_for_cuda
from paligemma.inputs import ModelInputs
from paligemma.model.kv_cache import KVCache, SlotCache
from paligemma.model.paligemma import PaliGemma

_BUDGET_SECONDS = 540
_PROMPT_LENGTH = 16
_CAPTION_LENGTH = 20
_TINY = PaliGemmaConfig(
    vision=VisionConfig(resolution=28, patch_size=14, width=64, depth=2, mlp_dim=96, num_heads=4),
    decoder=DecoderConfig(
        vocab_size=320, width=64, depth=2, mlp_dim=128, num_heads=4, num_kv_heads=2, head_dim=32,
        query_scale=32**-0.5, post_norms=True, attn_logit_softcap=50.0, final_logit_softcap=30.0,
    ),
)  # fmt: skip


class Bench:
    """The device, the sizes, and the results so far."""

    def __init__(self, device: str, tiny: bool, out: Path) -> None:
        self.device = torch.device(device)
        self.is_cuda = self.device.type == "cuda"
        self.tiny = tiny
        self.out = out
        self.start = time.perf_counter()
        self.rows: list[dict[str, Any]] = []
        self.limits: dict[str, float] = {}

    def config(self, size: str = "3b") -> PaliGemmaConfig:
        return _TINY if self.tiny else release_config("paligemma2", size, 224)

    def step(self, name: str, work: Callable[[], str]) -> None:
        """Add a row to the table: the result of `work`, or its error."""
        spent = time.perf_counter() - self.start
        if spent > _BUDGET_SECONDS:
            result = "skipped: no time left"
        else:
            try:
                result = work()
            except Exception as error:  # the next step must run all the same
                result = f"failed: {type(error).__name__}: {str(error).splitlines()[0][:160]}"
        if self.is_cuda:
            torch.cuda.empty_cache()
        self.rows.append({"step": name, "result": result})
        print(f"[{spent:5.0f} s] {name}: {result}", flush=True)
        self.write()

    def write(self) -> None:
        title = torch.cuda.get_device_name(self.device) if self.is_cuda else "CPU (a trial)"
        date = datetime.datetime.now(datetime.UTC).date().isoformat()
        lines = [
            f"{title}, torch {torch.__version__}, {date}",
            "",
            "| step | result |",
            "| - | - |",
        ]
        lines += [f"| {row['step']} | {row['result']} |" for row in self.rows]
        (self.out / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
        report = {"device": title, "date": date, "limits": self.limits, "rows": self.rows}
        (self.out / "results.json").write_text(json.dumps(report, indent=1), encoding="utf-8")

    def seconds(self, work: Callable[[], object], repeat: int = 5) -> float:
        """Median of several runs, after a warm-up run."""
        samples = []
        for number in range(repeat + 1):
            self.wait()
            start = time.perf_counter()
            work()
            self.wait()
            if number:
                samples.append(time.perf_counter() - start)
        return sorted(samples)[len(samples) // 2]

    def wait(self) -> None:
        if self.is_cuda:
            torch.cuda.synchronize(self.device)

    def random_model(self, config: PaliGemmaConfig, dtype: torch.dtype) -> PaliGemma:
        with torch.device("meta"):
            model = PaliGemma(config).to(dtype)
        model = model.to_empty(device=self.device).eval()
        generator = torch.Generator(self.device).manual_seed(0)
        for parameter in model.parameters():
            parameter.data.uniform_(-0.02, 0.02, generator=generator)
        return model

    def inputs(self, config: PaliGemmaConfig, num_rows: int) -> ModelInputs:
        num_image_tokens = config.vision.num_image_tokens
        length = num_image_tokens + _PROMPT_LENGTH
        is_image = torch.arange(length)[None].expand(num_rows, -1) < num_image_tokens
        side = config.vision.resolution
        return ModelInputs(
            token_ids=torch.arange(length)[None].expand(num_rows, -1) % 99 * ~is_image,
            input_mask=torch.ones_like(is_image),
            mask_ar=torch.zeros_like(is_image),
            image_mask=is_image,
            pixel_values=torch.rand(num_rows, 3, side, side) * 2 - 1,
            image_index=tuple((row,) for row in range(num_rows)),
        ).to(self.device)

    @torch.inference_mode()
    def write_tokens(self, model: PaliGemma, num_rows: int, num_tokens: int) -> torch.Tensor:
        """Greedy ids int64[B, num_tokens], decoded with an engine's slot cache."""
        inputs = self.inputs(model.config, num_rows)
        length = inputs.token_ids.shape[1]
        cache = SlotCache(
            model.config.decoder, num_rows, length + num_tokens,
            dtype=model.dtype, device=self.device,
        )  # fmt: skip
        ids = [model.prefill(inputs, cache.fresh(num_rows)).argmax(dim=1)]
        cache.admit([length] * num_rows)
        while len(ids) < num_tokens:
            ids.append(model.decode_step(ids[-1], cache).argmax(dim=1))
        return torch.stack(ids, dim=1)


def measure_limits(bench: Bench) -> str:
    size = 2**22 if bench.tiny else 2**30
    source = torch.ones(size, dtype=torch.uint8, device=bench.device)
    target = torch.empty_like(source)
    copied = 2 * size / bench.seconds(lambda: target.copy_(source))
    side = 256 if bench.tiny else 8192
    square = torch.randn(side, side, device=bench.device, dtype=torch.bfloat16)
    peak = 2 * side**3 / bench.seconds(lambda: square @ square)
    bench.limits = {"copy_bytes_per_second": copied, "matrix_flops": peak}
    return f"copy {copied / 1e9:.0f} GB/s, bfloat16 matrix product {peak / 1e12:.1f} TFLOP/s"


def compare_with_plain(bench: Bench, dtype: torch.dtype, config: PaliGemmaConfig) -> str:
    """Logits and greedy ids of the fast model against the plain one on the same device."""
    plain = bench.random_model(config, dtype)
    inputs = bench.inputs(config, 2)
    with torch.inference_mode():
        cache = KVCache(config.decoder, 2, 400, dtype=dtype, device=bench.device)
        expected = plain.prefill(inputs, cache)
    expected_ids = bench.write_tokens(plain, 2, 16)
    fast = accelerate_for_cuda(plain)
    with torch.inference_mode():
        cache = KVCache(config.decoder, 2, 400, dtype=dtype, device=bench.device)
        logits = fast.prefill(inputs, cache)
    same = bench.write_tokens(fast, 2, 16) == expected_ids
    error = (logits - expected).abs().max() / expected.abs().max()
    return f"largest relative logit error {error:.1e}; {same.float().mean():.0%} of ids equal"


def measure_decode(bench: Bench, size: str, quantization: Any) -> str:
    """Time of a decode step of one row, and its share of the copy bandwidth."""
    model = accelerate_for_cuda(
        bench.random_model(bench.config(size), torch.bfloat16), quantization
    )
    num_bytes = sum(t.nbytes for t in (*model.decoder.parameters(), *model.decoder.buffers()))
    few, many = 4, 36
    short = bench.seconds(lambda: bench.write_tokens(model, 1, few), 3)
    step = (bench.seconds(lambda: bench.write_tokens(model, 1, many), 3) - short) / (many - few)
    share = num_bytes / step / bench.limits["copy_bytes_per_second"]
    peak = f", peak {torch.cuda.max_memory_allocated() / 1e9:.1f} GB" if bench.is_cuda else ""
    return f"{1000 * step:.2f} ms per token, {share:.2f} of copy bandwidth{peak}"


@torch.inference_mode()
def measure_prefill(bench: Bench, num_rows: int) -> str:
    config = bench.config()
    model = accelerate_for_cuda(bench.random_model(config, torch.bfloat16))
    inputs = bench.inputs(config, num_rows)
    length = inputs.token_ids.shape[1]

    def work() -> None:
        cache = KVCache(config.decoder, num_rows, length, dtype=torch.bfloat16, device=bench.device)
        model.prefill(inputs, cache)

    seconds = bench.seconds(work)
    vision = sum(p.numel() for p in model.vision_encoder.blocks.parameters())
    layers = sum(p.numel() for p in model.decoder.blocks.parameters())
    operations = 2 * num_rows * (vision * config.vision.num_image_tokens + layers * length)
    share = operations / seconds / bench.limits["matrix_flops"]
    return f"{1000 * seconds:.1f} ms, {share:.2f} of the matrix peak (products with weights only)"


def compare_captions(bench: Bench, num_rows: int) -> str:
    """Images per second with captions of 20 tokens, next to transformers if installed."""
    model = accelerate_for_cuda(bench.random_model(bench.config(), torch.bfloat16))
    ours = num_rows / bench.seconds(lambda: bench.write_tokens(model, num_rows, _CAPTION_LENGTH), 3)
    if bench.tiny:
        return f"{ours:.1f} images per second"
    from benchmarks.side_by_side.transformers_runner import build

    runner = build(bench.config())
    runner.model.to(bench.device)
    theirs = num_rows / bench.seconds(lambda: runner.answer(_CAPTION_LENGTH, num_rows), 2)
    return f"{ours:.1f} images per second, transformers {theirs:.1f}: {ours / theirs:.1f} times"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/gpu"), help="output folder (out/gpu)")
    parser.add_argument("--device", default="cuda", help="torch device (cuda)")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, to try the script out")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    bench = Bench(arguments.device, arguments.tiny, arguments.out)
    gemma1 = replace(_TINY, decoder=replace(_TINY.decoder, post_norms=False))
    bench.step("limits", lambda: measure_limits(bench))
    for name, config in (("Gemma 2", _TINY), ("Gemma 1", gemma1)):
        bench.step(
            f"tiny {name}, float32, against plain",
            partial(compare_with_plain, bench, torch.float32, config),
        )
    bench.step(
        "3B, bfloat16, against plain",
        lambda: compare_with_plain(bench, torch.bfloat16, bench.config()),
    )
    bench.step("3B decode, batch 1", lambda: measure_decode(bench, "3b", None))
    bench.step("3B vision + prefill, batch 16", lambda: measure_prefill(bench, 16))
    bench.step("3B captions of 20 tokens, batch 64", lambda: compare_captions(bench, 64))
    if bench.is_cuda:
        for method in ("int8", "int4", "fp8", "nf4", "int8-outliers"):
            bench.step(
                f"3B decode, {method}",
                partial(measure_decode, bench, "3b", method),
            )
        bench.step("28B decode, bfloat16", lambda: measure_decode(bench, "28b", None))
        bench.step("28B decode, int4", lambda: measure_decode(bench, "28b", "int4"))


if __name__ == "__main__":
    main()
