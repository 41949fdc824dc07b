"""Muon: steps of orthogonalized momentum for the matrices of transformer blocks.

A gradient's large directions drown its small ones, and Adam's scaling of single entries does not
change that. Muon replaces the momentum matrix U S V^T by U V^T, in which all directions are
equally long.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, overload

import torch
from torch import Tensor

ORTHOGONALIZED = "orthogonalized"
"""Key of a parameter group: its matrices take Muon's steps."""
MOMENTUM = "momentum_buffer"
_BETA = 0.95
# The quintic iteration of Keller Jordan, "Muon: An optimizer for hidden layers" (2024): steep at
# zero, and singular values end between 0.7 and 1.2 after five rounds.
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ROUNDS = 5
_ADAM_RMS = 0.2


class Muon(torch.optim.AdamW):
    """Muon for the groups marked ORTHOGONALIZED, AdamW for the others, at one learning rate.

    Momentum is Nesterov's with 0.95. The steps of a matrix [A, B] are multiplied by
    0.2 * sqrt(max(A, B)), so that their root mean square is that of Adam's steps and rates can be
    kept (arXiv 2502.16982, equation 4). Products are in float32.
    """

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        groups = self.param_groups
        self.param_groups = [group for group in groups if not group[ORTHOGONALIZED]]
        try:
            loss: float | None = super().step(closure)
        finally:
            self.param_groups = groups
        for group in groups:
            if group[ORTHOGONALIZED]:
                for matrix in group["params"]:
                    if matrix.grad is not None:
                        _step(matrix, matrix.grad, self.state[matrix], group)
        return loss


def _step(matrix: Tensor, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
    if MOMENTUM not in state:
        state[MOMENTUM] = torch.zeros_like(matrix)
    momentum = state[MOMENTUM].lerp_(gradient, 1 - _BETA)
    direction = orthogonalized(gradient.lerp(momentum, _BETA))
    rate = group["lr"]
    matrix.mul_(1 - rate * group["weight_decay"])
    matrix.add_(direction, alpha=-rate * _ADAM_RMS * math.sqrt(max(matrix.shape)))


def orthogonalized(matrix: Tensor) -> Tensor:
    """[A, B] -> float32[A, B] with the same singular vectors and singular values near 1.

    By the Newton-Schulz iteration, which needs products only.
    """
    a, b, c = _COEFFICIENTS
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.float()
    x = x.T if is_tall else x
    x = x / x.norm().clamp_min(1e-7)
    for _ in range(_ROUNDS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if is_tall else x
