"""Log-probabilities of given suffixes, in one pass over whole sequences."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from paligemma.engine.sampling import logprobs_of
from paligemma.errors import NumericalError, OptionError
from paligemma.inputs import ModelInputs
from paligemma.model.paligemma import PaliGemma
from paligemma.results import Score


@torch.inference_mode()
def score(
    model: PaliGemma, inputs: ModelInputs, *, image_tokens: Tensor | None = None
) -> list[Score]:
    """Return the log-probabilities of the tokens that `inputs.loss_mask` marks, per row.

    The token at position t is scored by the logits at t - 1. `image_tokens` float[I, P, D] replace
    encoding `inputs.pixel_values`. Raises OptionError without a `loss_mask`, NumericalError for
    NaN and infinity.
    """
    if inputs.loss_mask is None:
        raise OptionError(
            "The inputs have no loss_mask, which marks the tokens to score. "
            "Build them with Processor.example_inputs."
        )
    inputs = inputs.to(model.device)
    assert inputs.loss_mask is not None
    hidden = model.hidden_states(inputs, image_tokens=image_tokens)
    rows = []
    for row in range(hidden.shape[0]):
        targets = inputs.loss_mask[row].nonzero()[:, 0]
        token_ids = inputs.token_ids[row, targets]
        # Logits of the suffix only: with 257,152 per position, those of the prefix would take more
        # memory than the pass itself.
        logprobs = logprobs_of(model.decoder.logits(hidden[row, targets - 1]), token_ids)
        score = Score(token_ids=tuple(token_ids.tolist()), logprobs=tuple(logprobs.tolist()))
        if not all(map(math.isfinite, score.logprobs)):
            raise NumericalError.of_model()
        rows.append(score)
    return rows
