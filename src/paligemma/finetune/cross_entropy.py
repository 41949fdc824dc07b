"""Cross-entropy over a large vocabulary, a few rows at a time.

PaliGemma's table has 257,152 rows: the logits of 1024 tokens would take a gigabyte in float32, and
their softmax and its gradient as much again. Here logits stand in memory for a few hundred tokens
at once, and the gradients are made on the spot, so that nothing is computed twice. Knows tensors
only; what counts is `loss.py`'s matter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# R rows (tokens that are predicted), D width, V vocabulary

_VOCABULARY_SLICE = 32768  # rows of the table whose gradient is summed in one product


@dataclass(frozen=True, kw_only=True)
class Ruler:
    """Ids `first` ... `first + count - 1` are places on a line, and a near one is nearly right.

    The target of such an id is a Gaussian over its neighbors, `sigma` in places.
    """

    first: int
    count: int
    sigma: float

    @property
    def ids(self) -> slice:
        return slice(self.first, self.first + self.count)

    def targets(self, ids: Tensor) -> Tensor:
        """int64[R] ids on the ruler -> float32[R, count], each row adds up to 1."""
        places = torch.arange(self.count, device=ids.device)
        distance = (places[None, :] - (ids - self.first)[:, None]) / self.sigma
        return torch.softmax(-0.5 * distance.square(), dim=-1)


def cross_entropy_sum(
    hidden: Tensor,
    table: Tensor,
    targets: Tensor,
    weights: Tensor,
    *,
    softcap: float | None = None,
    label_smoothing: float = 0.0,
    ruler: Ruler | None = None,
    chunk_rows: int = 256,
) -> Tensor:
    """float32[]: the weighted sum over rows of the cross-entropy of softmax(hidden @ table.T).

    `hidden` [R, D], `table` [V, D], `targets` int64[R], `weights` float32[R] of the rows. The
    logits are bent by `softcap` first when one is given. With `label_smoothing` e the target of
    the true id is 1 - e and that of every other id e / (V - 1). Under autocast the products are in
    its dtype; softmax and sums are float32 always. The backward pass may run once.
    """
    settings = _Settings(softcap, label_smoothing, ruler, chunk_rows, torch.is_grad_enabled())
    total: Tensor = _CrossEntropySum.apply(  # type: ignore[no-untyped-call]
        hidden, table, targets, weights, settings
    )
    return total


@dataclass(frozen=True)
class _Settings:
    softcap: float | None
    label_smoothing: float
    ruler: Ruler | None
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
        wanted = [settings.with_gradients and needed for needed in ctx.needs_input_grad[:2]]
        ctx.dtypes = hidden.dtype, table.dtype
        grad_hidden = torch.empty_like(hidden, dtype=dtype) if wanted[0] else None
        # Summed in float32 even where the table is bfloat16.
        grad_table = torch.zeros_like(table, dtype=torch.float32) if wanted[1] else None
        losses = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        with torch.autocast(device_type, enabled=False):
            rows, matrix = hidden.to(dtype), table.to(dtype)
            for start in range(0, len(hidden), settings.chunk_rows):
                part = slice(start, start + settings.chunk_rows)
                losses[part], grad_logits = _losses_and_gradient(
                    (rows[part] @ matrix.T).float(), targets[part], settings, any(wanted)
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
            raise RuntimeError("cross_entropy_sum's backward pass may run once only.")
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
    ruler; its cross-entropy is logsumexp(z) - a * (base . z) - b * sum(z), and the gradient
    softmax(z) - a * base - b.
    """
    others = settings.label_smoothing / (logits.shape[1] - 1)  # b
    sharp = 1.0 - settings.label_smoothing - others  # a
    bent = None
    if settings.softcap is not None:
        logits = logits.div_(settings.softcap).tanh_()
        bent = 1.0 - logits.square() if with_gradient else None  # the slope of the soft cap
        logits = logits.mul_(settings.softcap)
    log_total = logits.logsumexp(dim=1)
    hits = logits.gather(1, targets[:, None])[:, 0]
    on_ruler, near = _ruler_targets(targets, settings.ruler)
    if on_ruler is not None and settings.ruler is not None:
        hits = hits.masked_scatter(
            on_ruler, (near * logits[:, settings.ruler.ids][on_ruler]).sum(dim=1)
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
    if on_ruler is not None and settings.ruler is not None:
        one_hot = one_hot.masked_fill(on_ruler, 0.0)
        rows = on_ruler.nonzero()[:, 0]
        gradient[:, settings.ruler.ids].index_add_(0, rows, near, alpha=-sharp)
    gradient.scatter_add_(1, targets[:, None], one_hot[:, None])
    if bent is not None:
        gradient.mul_(bent)
    return losses, gradient


def _ruler_targets(targets: Tensor, ruler: Ruler | None) -> tuple[Tensor | None, Tensor]:
    """Which targets stand on the ruler, and their distributions over it."""
    if ruler is None:
        return None, targets.new_empty(0)
    on_ruler = (targets >= ruler.first) & (targets < ruler.first + ruler.count)
    return on_ruler, ruler.targets(targets[on_ruler])
