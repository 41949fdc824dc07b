"""Measure the memory and time that loading PaliGemma 2 3B takes.

    python benchmarks/load_memory.py

Writes random bfloat16 weights of the real shapes to a temporary folder (6 GB of disk), loads them
in a separate process and prefills one prompt. Prints peak resident memory divided by the size of
the weights, after loading and after the prompt.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from paligemma.checkpoints.load import load_model
from paligemma.checkpoints.save import save_model
from paligemma.config import release_config
from paligemma.fast.weights import DtypeName, Plain
from paligemma.inputs import ModelInputs
from paligemma.model.kv_cache import KVCache
from paligemma.model.paligemma import PaliGemma

_PROMPT_LENGTH = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--resolution",
        type=int,
        default=224,
        choices=(224, 448, 896),
        help="image size in pixels (224)",
    )
    parser.add_argument(
        "--dtype",
        default="bfloat16",
        choices=("bfloat16", "float32"),
        help="data type of the loaded weights (bfloat16)",
    )
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.folder is not None:
        measure(arguments.folder, arguments.dtype)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        start = time.perf_counter()
        save_model(random_model(arguments.resolution), folder)
        print(f"saved in {time.perf_counter() - start:.1f} s", flush=True)
        options = ["--folder", str(folder), "--dtype", arguments.dtype]
        subprocess.run([sys.executable, __file__, *options], check=True)


def random_model(resolution: int) -> PaliGemma:
    """Small random weights of the real shapes, made in bfloat16 so that 6 GB are enough."""
    with torch.device("meta"):
        model = PaliGemma(release_config("paligemma2", "3b", resolution)).to(torch.bfloat16)
    model = model.to_empty(device="cpu")
    for parameter in model.parameters():
        parameter.data.uniform_(-0.02, 0.02)
    return model


def peak_bytes() -> int:
    """Peak resident memory of this process."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux, where getrusage would count the parent process as well
        return 1024 * int(status.read_text().split("VmHWM:")[1].split()[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def measure(folder: Path, dtype: DtypeName) -> None:
    before = peak_bytes()
    start = time.perf_counter()
    model = load_model(folder, weights=Plain(dtype))
    seconds = time.perf_counter() - start
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    print(f"loaded {weights / 1e9:.2f} GB in {seconds:.1f} s")
    print(f"peak / weights after loading: {(peak_bytes() - before) / weights:.3f}", flush=True)
    start = time.perf_counter()
    token_id = answer(model)
    print(f"prompt read in {time.perf_counter() - start:.1f} s, next token {token_id}")
    print(f"peak / weights after the prompt: {(peak_bytes() - before) / weights:.3f}")


@torch.inference_mode()
def answer(model: PaliGemma) -> int:
    vision = model.config.vision
    length = vision.num_image_tokens + _PROMPT_LENGTH
    is_image = torch.arange(length)[None] < vision.num_image_tokens
    inputs = ModelInputs(
        token_ids=torch.full((1, length), 5) * ~is_image,
        input_mask=torch.ones(1, length, dtype=torch.bool),
        mask_ar=torch.zeros(1, length, dtype=torch.bool),
        image_mask=is_image,
        pixel_values=torch.rand(1, 3, vision.resolution, vision.resolution) * 2 - 1,
        image_index=((0,),),
    )
    cache = KVCache(model.config.decoder, 1, length, dtype=model.dtype)
    return int(model.prefill(inputs, cache).argmax())


if __name__ == "__main__":
    main()
