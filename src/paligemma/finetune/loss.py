"""Cross-entropy over the suffix: what a row should say, and nothing else, is learned.

row         img  BOS  cap  \\n   a    dog  EOS
loss_mask   0    0    0    0    1    1    1
predicted at     -    -    \\n   a    dog         (the position before each)
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from paligemma.config import NUM_LOC_TOKENS
from paligemma.errors import DataError
from paligemma.finetune.config import Reduction
from paligemma.model.gemma import Decoder
from paligemma.processor.inputs import ModelInputs


def suffix_loss(
    decoder: Decoder,
    hidden: Tensor,
    inputs: ModelInputs,
    *,
    reduction: Reduction = "example",
    final_logit_softcap: bool = False,
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
    if inputs.loss_mask is None or not inputs.loss_mask.any():
        raise DataError(
            "No token of this batch counts in the loss, so nothing would be learned. "
            "Give examples with a suffix, built with their loss mask."
        )
    counts = inputs.loss_mask[:, 1:]
    targets = inputs.token_ids[:, 1:][counts]
    # Only the positions that predict: the table is the largest matrix of the model.
    logits = decoder.logits(hidden[:, :-1][counts], softcap=final_logit_softcap)
    log_probs = F.log_softmax(logits, dim=-1)
    losses = -log_probs.gather(1, targets[:, None])[:, 0]
    if loc_sigma > 0 and loc_offset is not None:
        bins = targets - loc_offset
        is_loc = (bins >= 0) & (bins < NUM_LOC_TOKENS)
        ruler = torch.arange(NUM_LOC_TOKENS, device=bins.device)
        distance = (ruler[None, :] - bins[is_loc][:, None]) / loc_sigma
        weights = torch.softmax(-0.5 * distance.square(), dim=-1)
        places = log_probs[is_loc, loc_offset : loc_offset + NUM_LOC_TOKENS]
        losses = losses.masked_scatter(is_loc, -(weights * places).sum(dim=-1))
    if reduction == "token":
        return losses.sum(), len(targets)
    row_of_token = counts.nonzero()[:, 0]
    tokens_of_row = counts.sum(dim=1)
    return (losses / tokens_of_row[row_of_token]).sum(), int((tokens_of_row > 0).sum())
