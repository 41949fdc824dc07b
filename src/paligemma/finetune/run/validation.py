"""Validation during training: metrics of generated answers and the loss on the validation split."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from paligemma.data.open import Records
from paligemma.data.targets import Ask, TargetBuilder
from paligemma.evals.evaluation import EvalSet, Evaluation, evaluate
from paligemma.evals.options import EvalOptions
from paligemma.finetune.config import multiplies_bfloat16
from paligemma.finetune.examples import RecordExamples, collate
from paligemma.finetune.loss import suffix_loss
from paligemma.predictor import Predictor

SCORE = "score"
"""The first metric's value, with its sign such that more is better; chooses the best checkpoint."""
FEW_IMAGES = 30
"""With fewer validation images, the best state is chosen almost by chance."""
_ROWS_AT_ONCE = 4


@dataclass(frozen=True, kw_only=True)
class Validation:
    """Scores a model after every epoch, on at most `limit` records, the first ones."""

    predictor: Predictor
    records: Records
    targets: TargetBuilder
    folder: Path
    metrics: tuple[str, ...] = ()
    ask: Ask = "dataset"
    limit: int | None = None
    num_images: int = 0
    """Number of different images."""

    def __call__(self) -> Mapping[str, float]:
        """Metrics by name, `loss` and `score`. Files of an earlier call are overwritten."""
        evaluation = self.evaluate(self.folder, limit=self.limit)
        values = {score.result.name: score.result.value for score in evaluation.scores}
        first = evaluation.scores[0].result
        sign = 1.0 if first.higher_is_better else -1.0
        return {**values, "loss": self.loss(), SCORE: sign * first.value}

    def evaluate(self, folder: Path, *, limit: int | None = None) -> Evaluation:
        """Predict and score; predictions and report go to `folder`, which is emptied first."""
        shutil.rmtree(folder, ignore_errors=True)  # predictions of other weights
        folder.mkdir(parents=True)
        data = EvalSet(
            records=self.records,
            name=self.records.name,
            object_task=self.targets.task,
            class_names=tuple(self.targets.class_names),
            is_chosen_on=True,
        )
        options = EvalOptions(metrics=self.metrics, ask=self.ask, limit=limit)
        return evaluate(self.predictor, data, folder, options)

    @torch.no_grad()
    def loss(self) -> float:
        """The mean over records of the mean loss over their suffix tokens."""
        examples = RecordExamples(records=self.records, targets=self.targets)
        model = self.predictor.model
        count = min(len(examples), self.limit or len(examples))
        total = 0.0
        for start in range(0, count, _ROWS_AT_ONCE):
            rows = [examples[i] for i in range(start, min(start + _ROWS_AT_ONCE, count))]
            inputs = collate(self.predictor.processor, rows).to(model.device)
            enabled = multiplies_bfloat16(model.device)
            with torch.autocast(model.device.type, torch.bfloat16, enabled=enabled):
                hidden = model.hidden_states(inputs)
                total += float(suffix_loss(model.decoder, hidden, inputs)[0])
        return total / count
