"""A small run for processes of its own: to be killed, to be told to stop, or to be two at once.

    python -m tests.finetune.runner WAY TOKENIZER OUT [FIELDS]

Pictures are drawn from their number; FIELDS is JSON for TrainConfig.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from paligemma.adapters.lora import LoraConfig, add_lora, freeze_base
from paligemma.errors import NumericalError
from paligemma.fast.weights import FrozenFormat
from paligemma.finetune.config import TrainConfig
from paligemma.finetune.distributed import World, joined
from paligemma.finetune.examples import Example, collate
from paligemma.finetune.learner import finetune
from paligemma.finetune.loss import suffix_loss
from paligemma.model.paligemma import PaliGemma
from paligemma.predictor import Predictor
from paligemma.processor.image import LoadedImage
from paligemma.processor.processor import Processor
from paligemma.processor.tokenizer import Tokenizer
from tests.tiny import randomize, tiny_config

SUFFIXES = ("a cat", "on the beach", "a dog and a cat stand on the beach", "cow", "a")


class DrawnExamples:
    """22 answers of several lengths to noise pictures: to one, two or none."""

    fingerprint = "drawn"

    def __len__(self) -> int:
        return 22

    def __getitem__(self, index: int) -> Example:
        generator = np.random.default_rng(index)
        num_images = 0 if index % 3 == 1 else 2 if index % 5 == 3 else 1
        pixels = generator.integers(0, 255, (num_images, 9, 11, 3), dtype=np.uint8)
        return Example(
            images=tuple(
                LoadedImage(rgb=Image.fromarray(one), name=f"drawn {index}") for one in pixels
            ),
            prefix="caption en" if index % 3 else "detect cat ; dog",
            suffix=SUFFIXES[index % len(SUFFIXES)],
            example_id=f"drawn-{index}",
        )


class Deadly(DrawnExamples):
    """Process 1 gets a signal when it reads its 20th example; once, while `mark` is not there."""

    def __init__(self, mark: Path, number: signal.Signals) -> None:
        self.mark = mark
        self.number = number
        self.num_read = 0

    def __getitem__(self, index: int) -> Example:
        self.num_read += 1
        if self.num_read == 20 and os.environ["RANK"] == "1" and not self.mark.exists():
            self.mark.touch()
            os.kill(os.getpid(), self.number)
        return super().__getitem__(index)


class Poisoned(Processor):
    """Example 6 becomes NaN."""

    def pixel_values(self, images: Sequence[LoadedImage]) -> Tensor:
        pixels = super().pixel_values(images)
        for image, values in zip(images, pixels, strict=True):
            if image.name == "drawn 6":
                values.fill_(float("nan"))
        return pixels


def predictor(tokenizer: Tokenizer) -> Predictor:
    config = tiny_config(vocab_size=tokenizer.vocab_size, attn_logit_softcap=50.0)
    model = PaliGemma(config)
    randomize(model, 0)
    processor = Processor(
        tokenizer=tokenizer,
        resolution=config.vision.resolution,
        num_image_tokens=config.vision.num_image_tokens,
    )
    return Predictor(model=model, processor=processor)


def config(**fields: Any) -> TrainConfig:
    defaults: dict[str, Any] = {
        "num_steps": 30,
        "learning_rate": 1e-4,
        "batch_size": 4,
        "save_every": 4,
        "autocast": False,
        "best_metric": "score",
    }
    return TrainConfig(**defaults | fields)


ADAPTERS: dict[str, tuple[LoraConfig, FrozenFormat | None]] = {
    "lora": (LoraConfig(rank=2), None),
    "dora": (
        LoraConfig(rank=3, use_dora=True, parts=("decoder", "projector", "vision_encoder")),
        None,
    ),
    "qlora": (LoraConfig(rank=2, use_rslora=True), "nf4"),
}
"""On a base that is bfloat16, as released weights are."""


def run(
    tokenizer: Tokenizer,
    out: Path,
    *,
    dtype: torch.dtype = torch.float32,
    adapters: str | None = None,
    examples: DrawnExamples | None = None,
    poisoned: bool = False,
    **fields: Any,
) -> PaliGemma | None:
    """Validates by the answers' mean log-probability and what the model says to two pictures."""
    small = predictor(tokenizer)
    small.model.to(dtype)
    if poisoned:
        small = replace(small, processor=Poisoned(**vars(small.processor)))
    if adapters is not None:
        lora, base = ADAPTERS[adapters]
        small.model.to(torch.bfloat16)
        if base is not None:
            freeze_base(small.model, base)
        add_lora(small.model, lora, seed=1)
    held_back = [DrawnExamples()[index] for index in (3, 4, 5)]
    batch = collate(small.processor, held_back)

    def validate() -> dict[str, float]:
        hidden = small.model.hidden_states(batch)
        total, count = suffix_loss(small.model.decoder, hidden, batch)
        image = held_back[0].images[0].rgb
        said = small.generate(image, "caption en", max_new_tokens=3)
        return {"score": -float(total) / count, "length": float(len(said.token_ids))}

    return finetune(
        small,
        examples or DrawnExamples(),
        config(**fields),
        out,
        method="full" if adapters is None else "lora",
        validate=validate,
    )


def killed(tokenizer: Tokenizer, out: Path, *, kills: int, seed: int, **fields: Any) -> None:
    """out/whole is never disturbed; those beside it are, `kills` times together, and finish.

    Each attempt is a process of its own, which starts as a copy of this one: imports are slow.
    """
    started = time.monotonic()
    assert os.waitpid(_start(tokenizer, out / "whole", fields), 0)[1] == 0
    seconds = time.monotonic() - started
    times = random.Random(seed)
    done, finished = 0, 0
    while done < kills:
        place = out / f"killed-{finished}"
        child = _start(tokenizer, place, fields)
        time.sleep(times.uniform(0.0, 0.5 * seconds))
        os.kill(child, signal.SIGKILL)
        if os.waitpid(child, 0)[1] == 0:
            finished += 1
        else:
            done += 1
    assert os.waitpid(_start(tokenizer, out / f"killed-{finished}", fields), 0)[1] == 0


def _start(tokenizer: Tokenizer, out: Path, fields: dict[str, Any]) -> int:
    child = os.fork()
    if child == 0:
        run(tokenizer, out, **fields)
        os._exit(0)
    return child


def both(tokenizer: Tokenizer, out: Path, **fields: Any) -> None:
    """By several processes: the whole run, and its second half once more from a checkpoint."""
    model = run(tokenizer, out / "whole", keep_last=99, **fields)
    if model is not None:
        save_file(dict(model.named_parameters()), out / "whole.safetensors")
        shutil.copytree(out / "whole", out / "half", dirs_exist_ok=True)  # the other may be ahead
        for folder in (out / "half" / "checkpoints").glob("step-*"):
            if folder.name != "step-4":
                shutil.rmtree(folder)
        shutil.copytree(out / "half", out / "one")
    model = run(tokenizer, out / "half", keep_last=99, **fields)
    if model is not None:
        save_file(dict(model.named_parameters()), out / "half.safetensors")


def variants(tokenizer: Tokenizer, out: Path, **fields: Any) -> None:
    """By several processes: in bfloat16, with adapters, and with an example that is not finite."""
    run(tokenizer, out / "bfloat16", dtype=torch.bfloat16, master_weights=True, **fields)
    for adapters in ADAPTERS:
        run(tokenizer, out / adapters, adapters=adapters, **fields | {"num_steps": 4})
    run(tokenizer, out / "skipping", poisoned=True, on_non_finite="skip", **fields)
    try:
        run(tokenizer, out / "stopping", poisoned=True, **fields)
    except NumericalError as error:
        (out / f"stopped-{World.current().rank}").write_text(str(error))


def deadly(tokenizer: Tokenizer, out: Path, *, number: int, **fields: Any) -> None:
    """Process 1 gets the signal `number` in step 5, and lives if it is started again."""
    run(tokenizer, out, examples=Deadly(out / "mark", signal.Signals(number)), **fields)


def main() -> None:
    way, tokenizer_path, out, *more = sys.argv[1:]
    torch.set_num_threads(1)
    ways: dict[str, Any] = {
        "run": run,
        "killed": killed,
        "both": both,
        "variants": variants,
        "deadly": deadly,
    }
    fields = json.loads(more[0]) if more else {}
    with joined(timedelta(seconds=fields.pop("patience", 300))):
        ways[way](Tokenizer.from_file(Path(tokenizer_path)), Path(out), **fields)


if __name__ == "__main__":
    main()
