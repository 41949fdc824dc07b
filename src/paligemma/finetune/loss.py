"""Cross-entropy over the suffix: what a row should say, and nothing else, is learned.

row         img  BOS  cap  \\n   a    dog  EOS
loss_mask   0    0    0    0    1    1    1
predicted at     -    -    \\n   a    dog         (the position before each)
"""

from __future__ import annotations

import torch
from torch import Tensor

from paligemma.config import NUM_LOC_TOKENS
from paligemma.errors import DataError
from paligemma.finetune.config import Reduction
from paligemma.finetune.cross_entropy import Ruler, cross_entropy_sum
from paligemma.inputs import ModelInputs
from paligemma.model.gemma import Decoder


def suffix_loss(
    decoder: Decoder,
    hidden: Tensor,
    inputs: ModelInputs,
    *,
    reduction: Reduction = "example",
    final_logit_softcap: bool = False,
    label_smoothing: float = 0.0,
    loc_offset: int | None = None,
    loc_sigma: float = 0.0,
) -> tuple[Tensor, int]:
    """Summed loss and what to divide it by, from hidden states [B, T, D] of the same batch.

    reduction "example": every row's mean over its tokens, and the number of rows, as in
    big_vision (`trainers/proj/paligemma/train.py`): a short answer counts as much as a long one.
    "token": every token's loss, and the number of tokens, as in transformers. The final soft cap
    stays out unless asked, as in the transfers of arXiv 2412.03555.

    With `loc_sigma` > 0 the target of a `<loc>` token is a Gaussian over neighboring bins, sigma in
    bins of 1/1023: one bin beside the edge is nearly right, and a model trained from nothing
    learns that 1024 tokens are a ruler. Raises DataError when no token counts.
    """
    count = loss_count(inputs, reduction)
    if inputs.loss_mask is None or count == 0:
        raise DataError(
            "No token of this batch counts in the loss, so nothing would be learned. "
            "Give examples with a suffix, built with their loss mask."
        )
    counts = inputs.loss_mask[:, 1:]
    tokens_of_row = counts.sum(dim=1)
    row_of_token = counts.nonzero()[:, 0]
    weights = torch.ones(len(row_of_token), device=hidden.device)
    if reduction == "example":
        weights = 1.0 / tokens_of_row[row_of_token]
    ruler = None
    if loc_sigma > 0 and loc_offset is not None:
        ruler = Ruler(first=loc_offset, count=NUM_LOC_TOKENS, sigma=loc_sigma)
    total = cross_entropy_sum(
        hidden[:, :-1][counts],  # only the positions that predict
        decoder.embedding.weight,
        inputs.token_ids[:, 1:][counts],
        weights,
        softcap=decoder.config.final_logit_softcap if final_logit_softcap else None,
        label_smoothing=label_smoothing,
        ruler=ruler,
    )
    return total, count


def loss_count(inputs: ModelInputs, reduction: Reduction) -> int:
    """What the summed loss of a batch is divided by: rows that have something to learn, or tokens.

    The first position is predicted by nothing, and never counts.
    """
    if inputs.loss_mask is None:
        return 0
    tokens_of_row = inputs.loss_mask[:, 1:].sum(dim=1)
    return int((tokens_of_row > 0).sum() if reduction == "example" else tokens_of_row.sum())
