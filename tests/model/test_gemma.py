"""The decoder's parts against their formulas."""

from __future__ import annotations

import pytest
import torch

from paligemma.config import GEMMA2_9B
from paligemma.model.attention import attend, rotary_angles, rotate, soft_cap
from paligemma.model.gemma import Decoder, RMSNorm
from tests.tiny import FLOAT32_TOLERANCE, tiny_config, tiny_model


def test_a_norm_with_zero_weights_only_normalizes() -> None:
    x = torch.tensor([[3.0, 4.0]])
    norm = RMSNorm(2, eps=0.0)
    assert torch.allclose(norm(x), x / 12.5**0.5)
    with torch.no_grad():
        norm.weight.fill_(1.0)  # the factor is 1 + weight
    assert torch.allclose(norm(x), 2 * x / 12.5**0.5)
    assert norm(x.bfloat16()).dtype == torch.bfloat16


def test_text_embeddings_are_scaled_by_a_root_rounded_like_the_table() -> None:
    width = GEMMA2_9B.width
    decoder = Decoder(tiny_config().decoder)
    assert torch.allclose(
        decoder.embed(torch.tensor([[5]]))[0, 0], decoder.embedding.weight[5] * 48**0.5
    )
    assert torch.tensor(width**0.5, dtype=torch.bfloat16).item() == 59.75  # not 59.87


def test_soft_caps_bend_and_keep_the_order() -> None:
    x = torch.tensor([-1e9, -1.0, 0.0, 0.01, 60.0, 1e9])
    y = soft_cap(x, 50.0)
    assert y.abs().max() <= 50
    assert torch.equal(y.argsort(), x.argsort())
    assert torch.allclose(y[3], x[3], atol=1e-6)


def test_query_heads_read_the_key_value_head_of_their_group() -> None:
    values = torch.stack([torch.zeros(3, 2), torch.ones(3, 2)])[None]  # (1, K=2, S=3, H=2)
    out = attend(torch.randn(1, 6, 4, 2), torch.randn(1, 2, 3, 2), values, torch.zeros(1), None)
    assert out.shape == (1, 6, 4, 2)
    assert torch.allclose(out[0, :3], torch.zeros(3, 4, 2))
    assert torch.allclose(out[0, 3:], torch.ones(3, 4, 2))


def test_rotated_products_depend_on_distance_only() -> None:
    q, k = torch.randn(1, 1, 1, 10), torch.randn(1, 1, 1, 10)

    def product(i: int, j: int) -> torch.Tensor:
        at = [rotary_angles(torch.tensor([[p]]), 10, 500.0) for p in (i, j)]
        return (rotate(q, at[0]) * rotate(k, at[1])).sum()

    assert torch.allclose(product(3, 1), product(12, 10), atol=FLOAT32_TOLERANCE)
    assert not torch.allclose(product(3, 1), product(3, 2), atol=1e-3)


def test_the_first_half_is_paired_with_the_second() -> None:
    x = torch.zeros(1, 1, 1, 4)
    x[..., 0] = 1.0
    turned = rotate(x, rotary_angles(torch.tensor([[1]]), 4, 500.0))[0, 0, 0]
    one = torch.tensor(1.0)
    assert torch.allclose(turned, torch.stack([one.cos(), 0 * one, one.sin(), 0 * one]))


def test_the_final_soft_cap_can_be_left_out() -> None:
    decoder = tiny_model().decoder
    hidden = 5 * torch.randn(2, 3, 48)
    plain = decoder.logits(hidden, softcap=False)
    assert plain.abs().max() > 2.5
    assert torch.allclose(decoder.logits(hidden), soft_cap(plain, 2.5))
    assert plain.shape == (2, 3, 151)


@pytest.mark.parametrize("vocab_range", [range(0, 151), range(40, 43), range(150, 151)])
@pytest.mark.parametrize("softcap", [True, False])
def test_logits_of_a_range_are_those_of_its_ids(vocab_range: range, softcap: bool) -> None:
    decoder = tiny_model().decoder
    hidden = 5 * torch.randn(2, 3, 48)
    whole = decoder.logits(hidden, softcap=softcap)
    part = decoder.logits(hidden, softcap=softcap, vocab_range=vocab_range)
    assert part.shape == (2, 3, len(vocab_range))
    assert torch.allclose(part, whole[..., list(vocab_range)], atol=FLOAT32_TOLERANCE)
