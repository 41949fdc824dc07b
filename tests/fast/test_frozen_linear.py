"""Frozen layers: the codebook, the error of rounding, gradients, and what is kept in memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from paligemma.errors import OptionError
from paligemma.fast.frozen_linear import FrozenLinear, freeze_linears, nf4_codebook

# arXiv 2305.14314, appendix E.
PUBLISHED = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
]  # fmt: skip

FORMATS: dict[str, dict[str, Any]] = {
    "nf4": {"frozen_format": "nf4"},
    "nf4, sizes in float32": {"frozen_format": "nf4", "double_quantization": False},
    "int8": {"frozen_format": "int8"},
}
RELATIVE_ERROR = {"nf4": 0.1, "nf4, sizes in float32": 0.1, "int8": 0.008}


def made(name: str, weight: Tensor) -> FrozenLinear:
    layer = FrozenLinear(weight.shape[1], weight.shape[0], **FORMATS[name])
    layer.write(0, weight)
    return layer


def weights(num_outputs: int = 48, num_inputs: int = 200, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_outputs, num_inputs, generator=generator) * 0.03


def test_the_codebook_is_the_published_one() -> None:
    assert (nf4_codebook() - torch.tensor(PUBLISHED)).abs().max() == 0


def test_what_stands_in_the_codebook_comes_back_exactly() -> None:
    rows = nf4_codebook().repeat(3, 8) * torch.tensor([[0.5], [1.0], [4.0]])
    assert torch.equal(made("nf4, sizes in float32", rows).read(0, 3), rows)
    assert torch.allclose(made("nf4", rows).read(0, 3), rows)


def test_nf4_equals_that_of_bitsandbytes() -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    rows = weights(num_inputs=256)
    codes, state = functional.quantize_4bit(rows, quant_type="nf4", blocksize=64)
    theirs = functional.dequantize_4bit(codes, state)
    assert (made("nf4, sizes in float32", rows).read(0, 48) - theirs).abs().max() < 1e-6


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("num_inputs", [200, 256, 37])
def test_rounding_stays_within_its_bound(name: str, num_inputs: int) -> None:
    rows = weights(num_inputs=num_inputs)
    error = made(name, rows).weight(torch.float32) - rows
    assert error.norm() / rows.norm() < RELATIVE_ERROR[name]


@pytest.mark.parametrize("name", FORMATS)
def test_rows_can_be_written_and_read_a_few_at_a_time(name: str) -> None:
    rows = weights()
    layer = FrozenLinear(200, 48, **FORMATS[name])
    for start in (0, 16, 32):
        layer.write(start, rows[start : start + 16])
    whole = made(name, rows).weight(torch.float32)
    assert torch.equal(layer.read(16, 40), whole[16:40])
    assert torch.equal(layer.weight(torch.float32), whole)


@pytest.mark.parametrize("name", FORMATS)
def test_rows_of_zeros_stay_zeros(name: str) -> None:
    assert made(name, torch.zeros(3, 70)).weight(torch.float32).abs().max() == 0


@pytest.mark.parametrize("name", FORMATS)
def test_product_and_gradient_are_those_of_the_widened_weight(name: str) -> None:
    layer = made(name, weights())
    x = torch.randn(2, 5, 200, generator=torch.Generator().manual_seed(1), requires_grad=True)
    other = x.detach().clone().requires_grad_()
    out, expected = layer(x), other @ layer.weight(torch.float32).T
    assert torch.allclose(out, expected, atol=1e-6)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(2))
    out.backward(grad)
    expected.backward(grad)
    assert x.grad is not None
    assert other.grad is not None
    assert torch.allclose(x.grad, other.grad, atol=1e-6)


def test_nothing_is_kept_for_the_gradient() -> None:
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    layer = made("nf4", weights())
    x = torch.randn(5, 200, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = layer(x)
    out.sum().backward()
    assert kept == []
    assert x.grad is not None


def test_autocast_computes_in_bfloat16() -> None:
    layer = made("nf4", weights())
    x = torch.randn(5, 200, generator=torch.Generator().manual_seed(1), requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x)
    assert out.dtype == torch.bfloat16
    assert torch.allclose(out.float(), layer(x), rtol=0.02, atol=0.02)
    out.sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.float32


def test_a_layer_takes_the_bits_that_it_says() -> None:
    def bits(**options: Any) -> float:
        layer = FrozenLinear(2304, 16, device="meta", **options)
        return 8 * sum(b.numel() * b.element_size() for b in layer.buffers()) / (16 * 2304)

    assert bits(frozen_format="nf4") == pytest.approx(4.15, abs=0.01)
    assert bits(frozen_format="nf4", double_quantization=False) == 4.5
    assert bits(frozen_format="int8") == 8.125


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(OptionError, match="int3"):
        FrozenLinear(8, 8, "int3")  # type: ignore[arg-type]


def test_freezing_takes_the_place_of_the_layer() -> None:
    layer = nn.Linear(70, 6, bias=False)
    parent, weight = nn.Sequential(layer), layer.weight.detach().clone()
    freeze_linears([(parent, "0")], "int8")
    frozen = parent.get_submodule("0")
    assert isinstance(frozen, FrozenLinear)
    assert not list(parent.parameters())
    assert torch.allclose(frozen.weight(torch.float32), weight, atol=0.01)
