"""Contestants that this package loads: checkpoints in any form, with or without an adapter."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch

from paligemma.checkpoints.hub import Source
from paligemma.checkpoints.trained_on import TrainedOn
from paligemma.compare.contestants import Contestant
from paligemma.compare.options import CompareOptions
from paligemma.compare.questions import Questions
from paligemma.compare.reply import Reply
from paligemma.data.record import Record
from paligemma.errors import PaliGemmaError
from paligemma.evals.predictions import answer_records
from paligemma.loading import load
from paligemma.threads import set_threads


class CheckpointModel:
    """A loaded model."""

    def __init__(
        self, contestant: Contestant, questions: Questions, options: CompareOptions
    ) -> None:
        set_threads(options.threads)
        start = time.perf_counter()
        self._predictor = load(
            contestant.model,
            weights=contestant.form,  # type: ignore[arg-type]
            device=options.device,
            adapter=contestant.adapter,
            source=Source(offline=options.offline),
        )
        self.load_seconds: float | None = time.perf_counter() - start
        self.info: dict[str, Any] = self._predictor.info()
        self._batch_size = options.batch_size
        self._options = questions.predict_options(questions.asked_of(self._predictor.trained_on))

    @property
    def trained_on(self) -> TrainedOn | None:
        """How the model was asked in its training."""
        return self._predictor.trained_on

    def answer(self, records: Sequence[Record]) -> list[tuple[Reply | PaliGemmaError, float]]:
        """An answer or an error for each record, and its share of the seconds of the batch."""
        start = time.perf_counter()
        answers = answer_records(self._predictor, records, self._options, self._batch_size)
        seconds = (time.perf_counter() - start) / len(records)
        return [
            (
                answer
                if isinstance(answer, PaliGemmaError)
                else Reply(prediction=answer, asked=record.prefix),
                seconds,
            )
            for record, answer in zip(records, answers, strict=True)
        ]

    def warm_up(self, record: Record) -> None:
        """Answer once, so that the first measured answer finds what later ones find."""
        self.answer([record])
        self._predictor.clear_cache()

    @property
    def peak_gpu_bytes(self) -> int | None:
        """Peak memory that torch took on the GPU."""
        device = self._predictor.model.device
        return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
