"""A model and a file of examples -> the same model, adapted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from paligemma.errors import OptionError
from paligemma.finetune.config import TrainConfig
from paligemma.finetune.dataset import ExampleFile, ExampleSource
from paligemma.finetune.loss import suffix_loss
from paligemma.finetune.trainer import train
from paligemma.predictor import Predictor
from paligemma.processor.inputs import ModelInputs


def finetune(
    predictor: Predictor,
    examples: ExampleFile,
    config: TrainConfig,
    out: Path,
    *,
    on_log: Callable[[dict[str, float]], None] | None = None,
) -> None:
    """Train all weights of the predictor's model in place; the same `out` again resumes.

    Raises OptionError unless the model is loaded in float32: at usual learning rates nearly every
    update would vanish in the rounding of bfloat16. Autocast still computes in bfloat16.

    >>> predictor = paligemma.load("google/paligemma2-3b-pt-224", dtype="float32")
    >>> examples = ExampleFile.open("train.jsonl")
    >>> finetune(predictor, examples, TrainConfig(num_steps=200, learning_rate=1e-5), Path("run"))
    >>> predictor.save("my-model")
    """
    model = predictor.model
    if model.dtype != torch.float32:
        raise OptionError(
            f"The model is loaded in {model.dtype}; fine-tuning all weights needs float32. "
            "Load it with dtype='float32'."
        )

    def losses(batch: ModelInputs) -> dict[str, Tensor]:
        inputs = batch.to(model.device)
        total, count = suffix_loss(
            model.decoder,
            model.hidden_states(inputs),
            inputs,
            reduction=config.loss_reduction,
            final_logit_softcap=config.final_logit_softcap_in_loss,
        )
        return {"loss": total / count}

    source = ExampleSource(
        examples=examples,
        processor=predictor.processor,
        batch_size=config.batch_size,
        seed=config.seed,
    )
    model.requires_grad_(True)
    train(model, source, losses, config, out, on_log=on_log)
    model.eval().requires_grad_(False)
