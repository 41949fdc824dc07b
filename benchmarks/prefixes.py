"""Time the prefill of prefixes that differ in length, beside that of as many of the longest.

    python -m benchmarks.prefixes --images 1 --texts 8,24,57,200
    python -m benchmarks.prefixes --images 1,1,1,3 --texts 16

Each number of images and each number of text tokens makes a prefix; the shorter list repeats.
Weights are random, and a few decoder blocks stand in for all, since each takes the same time.

pads     share of positions that would be pads, if all prefixes were padded to the longest
mixed    these prefixes in one pass: pads are left out
longest  as many prefixes of the length of the longest: what padding would cost
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace
from itertools import cycle, islice

import torch

from benchmarks.command import add_output_options, run_command, write_report
from paligemma.bench.measure import format_seconds
from paligemma.bench.runner import build_runner
from paligemma.bench.workload import named_config
from paligemma.cli.console import print_table
from paligemma.fast.weights import Packed
from paligemma.inputs import ModelInputs
from paligemma.model.kv_cache import KVCache
from paligemma.model.paligemma import PaliGemma


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.prefixes",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", default="paligemma2-3b-224", help="shapes (%(default)s)")
    parser.add_argument("--blocks", type=int, default=2, help="decoder blocks (%(default)s)")
    parser.add_argument("--images", type=_numbers, default=(1,), help="of each prefix (1)")
    parser.add_argument("--texts", type=_numbers, default=(16,), help="tokens of each (16)")
    parser.add_argument("--repeat", type=int, default=5, help="times; the median counts")
    add_output_options(parser)
    options = parser.parse_args()
    config = named_config(options.model)
    per_image = config.vision.num_image_tokens
    shorter = replace(
        config,
        vision=replace(config.vision, depth=1),
        decoder=replace(
            config.decoder,
            depth=options.blocks,
            sliding_layers=config.decoder.sliding_layers[: options.blocks],
        ),
    )
    model = build_runner(shorter, Packed()).model
    number = max(len(options.images), len(options.texts))
    pairs = list(islice(zip(cycle(options.images), cycle(options.texts), strict=False), number))
    lengths = [images * per_image + text for images, text in pairs]
    seconds: dict[str, list[float]] = {"mixed": [], "longest": []}
    for _ in range(options.repeat):
        seconds["mixed"].append(_prefill_seconds(model, lengths))
        seconds["longest"].append(_prefill_seconds(model, [max(lengths)] * number))
    report = {name: statistics.median(times) for name, times in seconds.items()}
    pads = 1 - sum(lengths) / (max(lengths) * number)
    cells = [f"{pads:.1%}", *(format_seconds(value) for value in report.values())]
    saved = f"{1 - report['mixed'] / report['longest']:.1%}"
    print_table(None, ("pads", *report, "saved"), [[*cells, saved]])
    write_report({"lengths": lengths, "pads": pads, "seconds": report}, options)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(","))


@torch.inference_mode()
def _prefill_seconds(model: PaliGemma, lengths: list[int]) -> float:
    shape = (len(lengths), max(lengths))
    mask = torch.arange(shape[1]) < torch.tensor(lengths)[:, None]
    inputs = ModelInputs(
        token_ids=torch.full(shape, 5).masked_fill(~mask, 0),
        input_mask=mask,
        mask_ar=torch.zeros(shape, dtype=torch.bool),
        image_mask=torch.zeros(shape, dtype=torch.bool),  # image tokens cost as much as others
        pixel_values=None,
        image_index=((),) * shape[0],
    )
    cache = KVCache(model.config.decoder, *shape, dtype=model.dtype)
    start = time.perf_counter()
    model.prefix_state(inputs, cache)
    return time.perf_counter() - start


if __name__ == "__main__":
    run_command(main)
