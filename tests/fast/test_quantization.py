"""Weights in whole numbers: how near they stay, and what becomes of odd groups."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from paligemma.fast import quantization
from paligemma.fast.quantization import dequantize, quantize


def weights(num_rows: int = 40, num_inputs: int = 320, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 0.02 * torch.randn(num_rows, num_inputs, generator=generator)


def error(rows: Tensor, bits: int, group_size: int) -> float:
    found = dequantize(*quantize(rows, bits, group_size), group_size)
    return float((found - rows).norm() / rows.norm())


@pytest.mark.parametrize(("bits", "lowest", "highest"), [(8, -127, 127), (4, -8, 7)])
def test_numbers_stay_in_their_range_and_use_it(bits: int, lowest: int, highest: int) -> None:
    q, scales = quantize(weights(), bits, 32)
    assert q.dtype == torch.int8
    assert scales.dtype == torch.bfloat16
    assert q.shape == (40, 320)
    assert scales.shape == (40, 10)
    assert (int(q.min()), int(q.max())) == (lowest, highest)


def test_8_bits_round_to_the_nearest_step() -> None:
    rows = weights()
    q, scales = quantize(rows, 8, 64)
    steps = scales.float().repeat_interleave(64, dim=1)
    assert bool(((dequantize(q, scales, 64) - rows).abs() <= 0.76 * steps).all())
    assert error(rows, 8, 64) < 0.0065


def test_4_bits_beat_the_scale_that_fits_the_largest_weight() -> None:
    rows = weights(400)
    largest = rows.unflatten(1, (-1, 32)).abs().amax(dim=2, keepdim=True)
    plain = (rows.unflatten(1, (-1, 32)) / largest * 7).round() * largest / 7
    plain_error = float((plain.flatten(1) - rows).norm() / rows.norm())
    assert error(rows, 4, 32) < 0.86 * plain_error


def test_either_sign_may_have_the_longer_side() -> None:
    rows = torch.tensor([[8.0, -7.0, 1.0, 0.0], [-8.0, 7.0, 1.0, 0.0]])
    q, scales = quantize(rows, 4, 4)
    assert q.tolist() == [[-8, 7, -1, 0], [-8, 7, 1, 0]]
    assert scales.tolist() == [[-1.0], [1.0]]


@pytest.mark.parametrize("bits", [8, 4])
def test_what_is_representable_comes_back_as_it_was(bits: int) -> None:
    q, scales = quantize(weights(), bits, 32)
    again, same_scales = quantize(dequantize(q, scales, 32), bits, 32)
    assert torch.equal(dequantize(again, same_scales, 32), dequantize(q, scales, 32))


@pytest.mark.parametrize("bits", [8, 4])
def test_a_row_does_not_depend_on_the_rows_beside_it(
    bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = weights()
    together = quantize(rows, bits, 64)
    alone = [quantize(row[None], bits, 64) for row in rows]
    monkeypatch.setattr(quantization, "_BLOCK", 3 * rows.shape[1])
    in_blocks = quantize(rows, bits, 64)
    for place in (0, 1):
        assert torch.equal(together[place], torch.cat([one[place] for one in alone]))
        assert torch.equal(together[place], in_blocks[place])


@pytest.mark.parametrize("bits", [8, 4])
def test_a_last_group_may_be_short_and_a_group_may_be_zero(bits: int) -> None:
    rows = weights(num_inputs=70)
    rows[:, 32:64] = 0
    q, scales = quantize(rows, bits, 32)
    assert scales.shape == (40, 3)
    assert bool((scales[:, 1] == 0).all())
    found = dequantize(q, scales, 32)
    assert found.shape == rows.shape
    assert float((found - rows).norm() / rows.norm()) < 0.1


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_broken_stays_broken(bits: int, value: float) -> None:
    rows = weights(num_rows=2, num_inputs=64)
    rows[1, 3] = value
    found = dequantize(*quantize(rows, bits, 32), 32)
    assert not bool(found[1, :32].isfinite().all())
    assert bool(found[0].isfinite().all())
    assert bool(found[1, 32:].isfinite().all())
