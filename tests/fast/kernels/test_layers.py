"""Norms, heads and attention by kernels equal their plain forms, on every level of processor."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from paligemma.fast.kernels import layers
from paligemma.fast.kernels.library import Kernels
from paligemma.model import attention

DTYPES = [torch.bfloat16, torch.float32]


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(dtype)


def assert_close(
    found: torch.Tensor | None, expected: torch.Tensor | None, dtype: torch.dtype
) -> None:
    """Equal up to two roundings of the dtype, or the order of sums."""
    assert found is not None
    assert expected is not None
    tolerance = 2e-2 if dtype == torch.bfloat16 else 3e-6
    torch.testing.assert_close(found.float(), expected.float(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 40])
@pytest.mark.parametrize("has_delta", [True, False])
@pytest.mark.parametrize("has_delta_weight", [True, False])
def test_sum_and_norms_equal_the_plain_form(
    compiled: Kernels, has_delta_weight: bool, has_delta: bool, rows: int, dtype: torch.dtype
) -> None:
    x = random(rows, 70, dtype=dtype)
    delta = random(rows, 70, seed=1, dtype=dtype) if has_delta else None
    delta_weight = random(70, seed=2, dtype=dtype) if has_delta_weight else None
    weight = random(70, seed=3, dtype=dtype)
    expected_x = x.clone()
    expected = layers.add_rms_norm_reference(expected_x, delta, delta_weight, weight, 1e-6)
    found = layers.add_rms_norm(x, delta, delta_weight, weight, 1e-6)
    assert_close(x, expected_x, dtype)
    assert_close(found, expected, dtype)


def test_without_an_outer_norm_nothing_is_given_back(compiled: Kernels) -> None:
    x = random(3, 32)
    expected = x + random(3, 32, seed=1)
    assert layers.add_rms_norm(x, random(3, 32, seed=1), None, None, 1e-6) is None
    torch.testing.assert_close(x, expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 40])
@pytest.mark.parametrize("has_delta", [True, False])
def test_layer_norm_equals_torch(
    compiled: Kernels, has_delta: bool, rows: int, dtype: torch.dtype
) -> None:
    x = random(rows, 54, dtype=dtype)
    delta = random(rows, 54, seed=1, dtype=dtype) if has_delta else None
    weight, bias = random(54, seed=2, dtype=dtype), random(54, seed=3, dtype=dtype)
    summed = x if delta is None else x + delta
    expected = F.layer_norm(summed, (54,), weight, bias, 1e-6)
    found = layers.add_layer_norm(x, delta, weight, bias, 1e-6)
    assert_close(x, summed, dtype)
    assert_close(found, expected, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [1, 20])
def test_heads_are_split_turned_and_scaled(
    compiled: Kernels, tokens: int, dtype: torch.dtype
) -> None:
    wide = random(2, tokens, 100, dtype=dtype)
    part = wide[..., 20:62]  # 3 heads of 14
    angles = (random(2, 1, tokens, 7, seed=1).float(), random(2, 1, tokens, 7, seed=2).float())
    found = layers.split_heads(part, 14, angles, 0.3)
    expected = layers.split_heads_reference(part, 14, angles, 0.3)
    assert found.shape == (2, 3, tokens, 14)
    assert_close(found, expected, dtype)
    assert torch.equal(
        layers.split_heads(part, 14), layers.split_heads_reference(part, 14).contiguous()
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [1, 3, layers.FEW_QUERIES + 5])
@pytest.mark.parametrize("cap", [None, 1.5])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2), (8, 1)])
def test_attention_equals_the_models_own(
    compiled: Kernels,
    heads: int,
    kv_heads: int,
    cap: float | None,
    tokens: int,
    dtype: torch.dtype,
) -> None:
    cache = [random(2, kv_heads, 50, 22, seed=i, dtype=dtype) for i in (1, 2)]
    keys, values = (part[:, :, :37] for part in cache)  # what a cache gives: a slice
    queries = random(2, heads, tokens, 22, dtype=dtype) * 22**-0.5
    hidden = torch.rand(2, 1, tokens, 37, generator=torch.Generator().manual_seed(3)) < 0.4
    hidden[..., 0] = False
    bias = torch.zeros(hidden.shape).masked_fill(hidden, torch.finfo(torch.float32).min)
    expected = attention.attend(queries.float(), keys.float(), values.float(), bias, cap)
    found = layers.attend(queries, keys, values, bias, cap)
    assert found is not None
    assert found.shape == (2, tokens, heads * 22)
    assert_close(found, expected.transpose(1, 2).flatten(2), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [2, 45, 300])
@pytest.mark.parametrize("head_dim", [9, 64])
def test_without_a_bias_all_is_seen(
    compiled: Kernels, head_dim: int, tokens: int, dtype: torch.dtype
) -> None:
    queries, keys, values = (random(2, 3, tokens, head_dim, seed=i, dtype=dtype) for i in range(3))
    found = layers.attend(queries, keys, values, None, scale=0.2)
    expected = F.scaled_dot_product_attention(
        queries.float(), keys.float(), values.float(), scale=0.2
    )
    assert_close(found, expected.transpose(1, 2).flatten(2), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_attention_of_patches_equals_torch(compiled: Kernels, dtype: torch.dtype) -> None:
    x = random(2, 36, 3 * 4 * 24, dtype=dtype)
    queries, keys, values = (layers.split_heads(part, 24) for part in x.split(4 * 24, dim=-1))
    found = layers.attend_all(queries, keys, values)
    expected = F.scaled_dot_product_attention(queries.float(), keys.float(), values.float())
    assert_close(found, expected.transpose(1, 2).flatten(2), dtype)


def test_what_is_hidden_does_not_matter(compiled: Kernels) -> None:
    keys, values, queries = (random(1, 2, n, 16, seed=n) for n in (9, 9, 1))
    bias = torch.zeros(1, 1, 1, 9)
    bias[..., 5:] = torch.finfo(torch.float32).min
    before = layers.attend(queries, keys, values, bias, None)
    keys[:, :, 5:], values[:, :, 5:] = 9.0, 1e30
    after = layers.attend(queries, keys, values, bias, None)
    assert before is not None
    assert after is not None
    assert torch.equal(before, after)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_dtypes_take_the_plain_form(compiled: Kernels, dtype: torch.dtype) -> None:
    queries, keys = random(1, 2, 1, 8, dtype=dtype), random(1, 2, 4, 8, dtype=dtype)
    assert layers.attend(queries, keys, keys, torch.zeros(1, 1, 1, 4), None) is None
    assert layers.compiled_for(queries) is None


def test_queries_of_another_dtype_than_the_keys_take_the_plain_form(compiled: Kernels) -> None:
    queries, keys = random(1, 2, 1, 8), random(1, 2, 4, 8, dtype=torch.float32)
    assert layers.attend(queries, keys, keys, torch.zeros(1, 1, 1, 4), None) is None
