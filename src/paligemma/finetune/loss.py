"""Cross-entropy over the suffix: a row learns what it should answer, and nothing else.

row         img  BOS  cap  \\n   a    dog  EOS
loss_mask   0    0    0    0    1    1    1
predicted at     -    -    \\n   a    dog         (the position before each)

PaliGemma's table has 257,152 rows: the float32 logits of 1024 tokens would take a gigabyte, and
their softmax and its gradient as much again. `cross_entropy_sum` keeps the logits of a few hundred
tokens in memory at a time and computes the gradients along with them, so that nothing is computed
twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from paligemma.config import NUM_LOC_TOKENS
from paligemma.errors import DataError
from paligemma.finetune.config import Reduction
from paligemma.inputs import ModelInputs
from paligemma.model.gemma import Decoder

# R rows (tokens that are predicted), D width, V vocabulary

_VOCABULARY_SLICE = 32768  # rows of the table whose gradient is summed in one product


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
    """The summed loss of hidden states [B, T, D], and the count to divide it by.

    reduction "example": every row's mean over its tokens, and the number of rows, as in
    big_vision (`trainers/proj/paligemma/train.py`): a short answer counts as much as a long one.
    "token": every token's loss, and the number of tokens, as in transformers. The final soft cap
    is left out by default, as in the transfers of arXiv 2412.03555.

    With `loc_sigma` > 0 the target of a `<loc>` token is a Gaussian over neighboring bins, sigma in
    bins of 1/1023: the bin next to the true edge is nearly right, and a model trained from scratch
    learns that the 1024 tokens are a scale. Raises DataError when no token counts.
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
    loc_scale = None
    if loc_sigma > 0 and loc_offset is not None:
        loc_scale = TokenScale(first=loc_offset, count=NUM_LOC_TOKENS, sigma=loc_sigma)
    total = cross_entropy_sum(
        hidden[:, :-1][counts],  # only the positions that predict
        decoder.embedding.weight,
        inputs.token_ids[:, 1:][counts],
        weights,
        softcap=decoder.config.final_logit_softcap if final_logit_softcap else None,
        label_smoothing=label_smoothing,
        scale=loc_scale,
    )
    return total, count


def loss_count(inputs: ModelInputs, reduction: Reduction) -> int:
    """The count to divide a batch's summed loss by: rows with supervised tokens, or tokens.

    The first position is not predicted, so it never counts.
    """
    if inputs.loss_mask is None:
        return 0
    tokens_of_row = inputs.loss_mask[:, 1:].sum(dim=1)
    return int((tokens_of_row > 0).sum() if reduction == "example" else tokens_of_row.sum())


@dataclass(frozen=True, kw_only=True)
class TokenScale:
    """Ids `first` ... `first + count - 1` are steps of a scale, where a near one is nearly right.

    The target of such an id is a Gaussian over its neighbors, `sigma` in steps.
    """

    first: int
    count: int
    sigma: float

    @property
    def ids(self) -> slice:
        return slice(self.first, self.first + self.count)

    def targets(self, ids: Tensor) -> Tensor:
        """int64[R] ids on the scale -> float32[R, count], each row adds up to 1."""
        steps = torch.arange(self.count, device=ids.device)
        distance = (steps[None, :] - (ids - self.first)[:, None]) / self.sigma
        return torch.softmax(-0.5 * distance.square(), dim=-1)


def cross_entropy_sum(
    hidden: Tensor,
    table: Tensor,
    targets: Tensor,
    weights: Tensor,
    *,
    softcap: float | None = None,
    label_smoothing: float = 0.0,
    scale: TokenScale | None = None,
    chunk_rows: int = 256,
) -> Tensor:
    """float32[]: the weighted sum over rows of the cross-entropy of softmax(hidden @ table.T).

    `hidden` [R, D], `table` [V, D], `targets` int64[R], `weights` float32[R] of the rows. The
    logits are capped by `softcap` first when one is given. With `label_smoothing` e the target of
    the true id is 1 - e and that of every other id e / (V - 1). Under autocast the products are in
    its dtype; softmax and sums are always float32. The backward pass may run only once.
    """
    settings = _Settings(softcap, label_smoothing, scale, chunk_rows, torch.is_grad_enabled())
    total: Tensor = _CrossEntropySum.apply(  # type: ignore[no-untyped-call]
        hidden, table, targets, weights, settings
    )
    return total


@dataclass(frozen=True)
class _Settings:
    softcap: float | None
    label_smoothing: float
    scale: TokenScale | None
    chunk_rows: int
    with_gradients: bool


class _CrossEntropySum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        table: Tensor,
        targets: Tensor,
        weights: Tensor,
        settings: _Settings,
    ) -> Tensor:
        device_type = hidden.device.type
        dtype = hidden.dtype
        if torch.is_autocast_enabled(device_type):
            dtype = torch.get_autocast_dtype(device_type)
        needs_gradient = [settings.with_gradients and needed for needed in ctx.needs_input_grad[:2]]
        ctx.dtypes = hidden.dtype, table.dtype
        grad_hidden = torch.empty_like(hidden, dtype=dtype) if needs_gradient[0] else None
        # Summed in float32 even where the table is bfloat16.
        grad_table = torch.zeros_like(table, dtype=torch.float32) if needs_gradient[1] else None
        losses = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        with torch.autocast(device_type, enabled=False):
            rows, matrix = hidden.to(dtype), table.to(dtype)
            for start in range(0, len(hidden), settings.chunk_rows):
                part = slice(start, start + settings.chunk_rows)
                losses[part], grad_logits = _losses_and_gradient(
                    (rows[part] @ matrix.T).float(), targets[part], settings, any(needs_gradient)
                )
                if grad_logits is None:
                    continue
                grad_logits = grad_logits.mul_(weights[part, None]).to(dtype)
                if grad_hidden is not None:
                    torch.mm(grad_logits, matrix, out=grad_hidden[part])
                if grad_table is not None:
                    for first in range(0, len(table), _VOCABULARY_SLICE):
                        ids = slice(first, first + _VOCABULARY_SLICE)
                        grad_table[ids] += grad_logits[:, ids].T @ rows[part]
        ctx.gradients = grad_hidden, grad_table
        return (losses * weights).sum()

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("cross_entropy_sum's backward pass may run only once.")
        # In place: the gradient of the table is as large as the table.
        gradients = [
            None if gradient is None else gradient.mul_(grad_total).to(dtype)
            for gradient, dtype in zip(ctx.gradients, ctx.dtypes, strict=True)
        ]
        ctx.gradients = None
        return (*gradients, None, None, None)


def _losses_and_gradient(
    logits: Tensor, targets: Tensor, settings: _Settings, with_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """float32[R, V], int64[R] -> losses [R] and, in the logits' own memory, their gradient [R, V].

    The target distribution is a * base + b, where base is one-hot, or a Gaussian for ids on the
    scale; its cross-entropy is logsumexp(z) - a * (base . z) - b * sum(z), and the gradient
    softmax(z) - a * base - b.
    """
    others = settings.label_smoothing / (logits.shape[1] - 1)  # b
    sharp = 1.0 - settings.label_smoothing - others  # a
    slope = None
    if settings.softcap is not None:
        logits = logits.div_(settings.softcap).tanh_()
        slope = 1.0 - logits.square() if with_gradient else None  # of the soft cap
        logits = logits.mul_(settings.softcap)
    log_total = logits.logsumexp(dim=1)
    hits = logits.gather(1, targets[:, None])[:, 0]
    on_scale, near = _scale_targets(targets, settings.scale)
    if on_scale is not None and settings.scale is not None:
        hits = hits.masked_scatter(
            on_scale, (near * logits[:, settings.scale.ids][on_scale]).sum(dim=1)
        )
    losses = log_total - sharp * hits
    if others:
        losses = losses - others * logits.sum(dim=1)
    if not with_gradient:
        return losses, None
    gradient = logits.sub_(log_total[:, None]).exp_()
    if others:
        gradient.sub_(others)
    one_hot = torch.full_like(losses, -sharp)
    if on_scale is not None and settings.scale is not None:
        one_hot = one_hot.masked_fill(on_scale, 0.0)
        rows = on_scale.nonzero()[:, 0]
        gradient[:, settings.scale.ids].index_add_(0, rows, near, alpha=-sharp)
    gradient.scatter_add_(1, targets[:, None], one_hot[:, None])
    if slope is not None:
        gradient.mul_(slope)
    return losses, gradient


def _scale_targets(targets: Tensor, scale: TokenScale | None) -> tuple[Tensor | None, Tensor]:
    """Which targets are on the scale, and their distributions over it."""
    if scale is None:
        return None, targets.new_empty(0)
    on_scale = (targets >= scale.first) & (targets < scale.first + scale.count)
    return on_scale, scale.targets(targets[on_scale])
