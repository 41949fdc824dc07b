"""A model and a file of examples -> the same model, adapted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from paligemma.finetune.config import TrainConfig
from paligemma.finetune.dataset import ExampleFile, ExampleSource
from paligemma.finetune.loss import suffix_loss
from paligemma.finetune.trainer import train
from paligemma.model.paligemma import PaliGemma
from paligemma.processor.inputs import ModelInputs
from paligemma.processor.processor import Processor


def finetune(
    model: PaliGemma,
    processor: Processor,
    examples: ExampleFile,
    config: TrainConfig,
    out: Path,
    *,
    on_log: Callable[[dict[str, float]], None] | None = None,
) -> None:
    """Train all weights of `model` in place; called again with the same `out` it resumes.

    >>> examples = ExampleFile.open("train.jsonl")
    >>> config = TrainConfig(num_steps=200, learning_rate=1e-5)
    >>> finetune(predictor.model, predictor.processor, examples, config, Path("runs/mine"))
    >>> predictor.save("my-model")
    """

    def losses(inputs: ModelInputs) -> dict[str, Tensor]:
        total, num_tokens = suffix_loss(
            model.decoder,
            model.hidden_states(inputs),
            inputs,
            final_logit_softcap=config.final_logit_softcap_in_loss,
        )
        return {"loss": total / num_tokens}

    source = ExampleSource(
        examples=examples, processor=processor, batch_size=config.batch_size, seed=config.seed
    )
    model.requires_grad_(True)
    train(model, source, losses, config, out, on_log=on_log)
    model.eval().requires_grad_(False)
