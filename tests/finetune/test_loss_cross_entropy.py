"""In chunks it is the plain cross-entropy, in value and gradients, and its logits never stand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from paligemma.finetune.loss import TokenScale, cross_entropy_sum

NUM_ROWS, WIDTH, VOCABULARY = 37, 24, 1100
SCALE = TokenScale(first=40, count=1024, sigma=3.0)
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "soft cap": {"softcap": 2.5},
    "label smoothing": {"label_smoothing": 0.2},
    "scale": {"scale": SCALE},
    "all": {"softcap": 2.5, "label_smoothing": 0.3, "scale": SCALE},
}


def make(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(NUM_ROWS, WIDTH, generator=generator).to(dtype)
    table = 0.3 * torch.randn(VOCABULARY, WIDTH, generator=generator).to(dtype)
    targets = torch.randint(0, VOCABULARY, (NUM_ROWS,), generator=generator)
    targets[:5] = torch.arange(5)  # off the scale
    weights = torch.rand(NUM_ROWS, generator=generator)
    return hidden, table, targets, weights


def plain(
    hidden: Tensor,
    table: Tensor,
    targets: Tensor,
    weights: Tensor,
    *,
    softcap: float | None = None,
    label_smoothing: float = 0.0,
    scale: TokenScale | None = None,
) -> Tensor:
    """By the definition: every target a distribution over the whole vocabulary."""
    logits = hidden @ table.T
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    wanted = F.one_hot(targets, len(table)).to(logits.dtype)
    if scale is not None:
        for row, target in enumerate(targets.tolist()):
            place = target - scale.first
            if 0 <= place < scale.count:
                distance = (torch.arange(scale.count) - place) / scale.sigma
                wanted[row] = 0.0
                wanted[row, scale.ids] = torch.softmax(-0.5 * distance.double() ** 2, 0).to(wanted)
    others = label_smoothing / (len(table) - 1)
    wanted = wanted * (1 - label_smoothing - others) + others
    return (-(wanted * logits.log_softmax(1)).sum(1) * weights).sum()


def trainable(hidden: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    return hidden.clone().requires_grad_(True), table.clone().requires_grad_(True)


def gradient(tensor: Tensor) -> Tensor:
    assert tensor.grad is not None
    return tensor.grad


@pytest.mark.parametrize("chunk_rows", [1, 16, 64])
@pytest.mark.parametrize("options", OPTIONS)
def test_value_and_gradients_are_those_of_the_definition(options: str, chunk_rows: int) -> None:
    hidden, table, targets, weights = make()
    exact_hidden, exact_table = trainable(hidden.double(), table.double())
    expected = plain(exact_hidden, exact_table, targets, weights.double(), **OPTIONS[options]) / 7
    expected.backward()
    our_hidden, our_table = trainable(hidden, table)
    total = cross_entropy_sum(
        our_hidden, our_table, targets, weights, chunk_rows=chunk_rows, **OPTIONS[options]
    )
    (total / 7).backward()
    assert float(total.detach() / 7) == pytest.approx(float(expected.detach()), rel=1e-6)
    assert gradient(exact_hidden).abs().max() > 0.05
    assert gradient(exact_table).abs().max() > 0.05
    assert (gradient(our_hidden) - gradient(exact_hidden)).abs().max() < 1e-6
    assert (gradient(our_table) - gradient(exact_table)).abs().max() < 1e-6


def test_label_smoothing_is_one_minus_epsilon_for_the_true_token() -> None:
    # torch spreads epsilon over all V ids, the true one included; the other V - 1 get as much.
    hidden, table, targets, _ = make()
    epsilon = 0.1
    ones = torch.ones(NUM_ROWS)
    ours = cross_entropy_sum(hidden, table, targets, ones, label_smoothing=epsilon)
    theirs = F.cross_entropy(
        hidden @ table.T,
        targets,
        label_smoothing=epsilon * VOCABULARY / (VOCABULARY - 1),
        reduction="sum",
    )
    assert float(ours) == pytest.approx(float(theirs), rel=1e-6)


def test_a_frozen_table_gets_no_gradient() -> None:
    hidden, table, targets, weights = make()
    hidden.requires_grad_(True)
    cross_entropy_sum(hidden, table, targets, weights).backward()
    assert table.grad is None
    expected = hidden.detach().clone().requires_grad_(True)
    plain(expected, table, targets, weights).backward()
    assert (gradient(hidden) - gradient(expected)).abs().max() < 1e-6


def test_under_autocast_products_are_bfloat16_and_gradients_keep_their_dtypes() -> None:
    hidden, table, targets, weights = make()
    our_hidden, our_table = trainable(hidden, table)
    with torch.autocast("cpu", torch.bfloat16):
        total = cross_entropy_sum(our_hidden, our_table, targets, weights)
    total.backward()
    their_hidden, their_table = trainable(hidden, table)
    with torch.autocast("cpu", torch.bfloat16):
        logits = F.linear(their_hidden, their_table)
    expected = (F.cross_entropy(logits.float(), targets, reduction="none") * weights).sum()
    expected.backward()
    assert float(total.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    for mine, theirs in ((our_hidden, their_hidden), (our_table, their_table)):
        assert gradient(mine).dtype == torch.float32
        largest = gradient(theirs).abs().max()
        assert (gradient(mine) - gradient(theirs)).abs().max() < 0.01 * largest


def test_without_gradients_none_are_made() -> None:
    hidden, table, targets, weights = make()
    expected = float(plain(hidden, table, targets, weights))
    table.requires_grad_(True)
    with torch.no_grad():
        total = cross_entropy_sum(hidden, table, targets, weights, chunk_rows=4)
    assert not total.requires_grad
    assert float(total) == pytest.approx(expected, rel=1e-6)


def test_a_second_backward_pass_is_an_error() -> None:
    hidden, table, targets, weights = make()
    total = cross_entropy_sum(hidden.requires_grad_(True), table, targets, weights)
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="only once"):
        total.backward()


class Largest(TorchDispatchMode):
    """The largest tensor that any operation gives."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple) else (result,):
            if isinstance(tensor, Tensor):
                self.numel = max(self.numel, tensor.numel())
        return result


def test_no_tensor_of_all_logits_is_ever_made() -> None:
    hidden, table, targets, weights = make()
    hidden.requires_grad_(True)
    table.requires_grad_(True)
    with Largest() as largest:
        cross_entropy_sum(hidden, table, targets, weights, chunk_rows=4).backward()
    assert largest.numel == table.numel() < NUM_ROWS * VOCABULARY
