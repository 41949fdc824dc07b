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
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from paligemma.finetune.collate import Example, collate
from paligemma.finetune.config import TrainConfig
from paligemma.finetune.distributed import joined
from paligemma.finetune.finetune import finetune
from paligemma.finetune.loss import suffix_loss
from paligemma.model.paligemma import PaliGemma
from paligemma.predictor import Predictor
from paligemma.processor.image import LoadedImage
from paligemma.processor.processor import Processor
from paligemma.processor.tokenizer import Tokenizer
from tests.tiny import randomize, tiny_config

SUFFIXES = ("a cat", "on the beach", "a dog and a cat stand on the beach", "cow", "a")


class DrawnExamples:
    """22 noise pictures with answers of several lengths."""

    fingerprint = "drawn"

    def __len__(self) -> int:
        return 22

    def __getitem__(self, index: int) -> Example:
        pixels = np.random.default_rng(index).integers(0, 255, (9, 11, 3), dtype=np.uint8)
        return Example(
            image=LoadedImage(rgb=Image.fromarray(pixels), name=f"drawn {index}"),
            prefix="caption en" if index % 3 else "detect cat ; dog",
            suffix=SUFFIXES[index % len(SUFFIXES)],
            example_id=f"drawn-{index}",
        )


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


def run(
    tokenizer: Tokenizer, out: Path, *, dtype: torch.dtype = torch.float32, **fields: Any
) -> PaliGemma | None:
    """Validates by the answers' mean log-probability and what the model says to two pictures."""
    small = predictor(tokenizer)
    small.model.to(dtype)
    held_back = [DrawnExamples()[index] for index in (3, 4, 5)]
    batch = collate(small.processor, held_back)

    def validate() -> dict[str, float]:
        hidden = small.model.hidden_states(batch)
        total, count = suffix_loss(small.model.decoder, hidden, batch)
        image = held_back[0].image.rgb
        said = small.generate(image, "caption en", max_new_tokens=3)
        return {"score": -float(total) / count, "length": float(len(said.token_ids))}

    return finetune(small, DrawnExamples(), config(**fields), out, validate=validate)


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
        shutil.copytree(out / "whole", out / "half")
        for folder in (out / "half" / "checkpoints").glob("step-*"):
            if folder.name != "step-4":
                shutil.rmtree(folder)
        shutil.copytree(out / "half", out / "one")
    model = run(tokenizer, out / "half", keep_last=99, **fields)
    if model is not None:
        save_file(dict(model.named_parameters()), out / "half.safetensors")
    run(tokenizer, out / "bfloat16", dtype=torch.bfloat16, master_weights=True, **fields)


def main() -> None:
    way, tokenizer_path, out, *more = sys.argv[1:]
    torch.set_num_threads(1)
    ways: dict[str, Any] = {"run": run, "killed": killed, "both": both}
    fields = json.loads(more[0]) if more else {}
    with joined():
        ways[way](Tokenizer.from_file(Path(tokenizer_path)), Path(out), **fields)


if __name__ == "__main__":
    main()
