"""Products by kernels equal the plain torch form beside them, on every level of processor."""

from __future__ import annotations

import pytest
import torch

from paligemma.fast.kernels.library import Kernels
from paligemma.fast.kernels.products import Activation, packed_linear, packed_linear_reference
from paligemma.fast.quantization import (
    BFLOAT16,
    FLOAT32,
    INT4,
    INT8,
    WeightFormat,
    pack_scales,
    quantize,
)
from tests.fast.kernels.packing import pack_values

FORMATS = [FLOAT32, BFLOAT16, INT8, INT4]


def packed(
    num_outputs: int, num_inputs: int, weight_format: WeightFormat
) -> tuple[torch.Tensor, torch.Tensor | None]:
    weight = torch.randn(num_outputs, num_inputs, generator=torch.Generator().manual_seed(2))
    weight *= num_inputs**-0.5
    if not weight_format.is_quantized:
        return pack_values(weight.to(weight_format.row_dtype), weight_format), None
    q, scales = quantize(weight, weight_format.bits, weight_format.group_size)
    return pack_values(q, weight_format), pack_scales(scales)


def rows_of(num_rows: int, num_inputs: int, weight_format: WeightFormat = BFLOAT16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(num_rows)
    rows = torch.randn(num_rows, num_inputs, generator=generator)
    return rows.to(weight_format.row_dtype)


@pytest.mark.parametrize("num_rows", [1, 2, 3, 9, 16, 17, 25, 33, 40, 600])
@pytest.mark.parametrize("shape", [(80, 70), (48, 512), (16, 1)])
@pytest.mark.parametrize("weight_format", FORMATS, ids=lambda f: f.name)
def test_a_product_equals_its_reference(
    compiled: Kernels, weight_format: WeightFormat, shape: tuple[int, int], num_rows: int
) -> None:
    values, scales = packed(*shape, weight_format)
    x = rows_of(num_rows, shape[1], weight_format)
    found = packed_linear(x, values, scales, weight_format, out_dtype=torch.float32)
    expected = packed_linear_reference(x, values, scales, weight_format, out_dtype=torch.float32)
    # Sums of rounded products: both sides round the same, only the order of summing differs.
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("shape", "num_threads"), [((700, 2100), 3), ((100, 4110), 1)])
@pytest.mark.parametrize("weight_format", FORMATS, ids=lambda f: f.name)
def test_a_product_in_many_parts_by_several_threads_equals_its_reference(
    compiled: Kernels,
    monkeypatch: pytest.MonkeyPatch,
    weight_format: WeightFormat,
    shape: tuple[int, int],
    num_threads: int,
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: num_threads)
    values, scales = packed(*shape, weight_format)
    x = rows_of(50, shape[1], weight_format)
    found = packed_linear(x, values, scales, weight_format, out_dtype=torch.float32)
    expected = packed_linear_reference(x, values, scales, weight_format, out_dtype=torch.float32)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("num_rows", [1, 5, 33])
@pytest.mark.parametrize("activation", ["none", "gelu", "geglu"])
@pytest.mark.parametrize("weight_format", FORMATS, ids=lambda f: f.name)
def test_bias_and_activation_are_part_of_it(
    compiled: Kernels, weight_format: WeightFormat, activation: Activation, num_rows: int
) -> None:
    values, scales = packed(96, 200, weight_format)
    bias = None if activation == "geglu" else torch.linspace(-2, 2, 96)
    x = 3 * rows_of(num_rows, 200, weight_format)
    found = packed_linear(x, values, scales, weight_format, bias=bias, activation=activation)
    expected = packed_linear_reference(
        x, values, scales, weight_format, bias=bias, activation=activation
    )
    assert found.shape == (num_rows, 48 if activation == "geglu" else 96)
    assert found.dtype == weight_format.row_dtype
    tolerance = 2e-5 if weight_format == FLOAT32 else 1e-2  # bfloat16: 8 bits
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("weight_format", FORMATS, ids=lambda f: f.name)
def test_a_row_gets_the_same_whatever_stands_beside_it(
    compiled: Kernels, weight_format: WeightFormat
) -> None:
    values, scales = packed(64, 300, weight_format)
    x = rows_of(40, 300, weight_format)
    whole = packed_linear(x, values, scales, weight_format, out_dtype=torch.float32)
    for rows in (slice(1), slice(3, 8), slice(8, 25), slice(39, 40)):
        found = packed_linear(x[rows], values, scales, weight_format, out_dtype=torch.float32)
        if weight_format == BFLOAT16:  # tiles and vectors sum in different orders
            torch.testing.assert_close(found, whole[rows], rtol=1e-5, atol=1e-5)
        else:
            assert torch.equal(found, whole[rows])


@pytest.mark.parametrize("num_rows", [3, 20])
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@pytest.mark.parametrize("weight_format", FORMATS, ids=lambda f: f.name)
def test_a_broken_row_stays_broken_and_harms_no_other(
    compiled: Kernels, weight_format: WeightFormat, poison: float, num_rows: int
) -> None:
    values, scales = packed(32, 130, weight_format)
    x = rows_of(num_rows, 130, weight_format)
    healthy = packed_linear(x, values, scales, weight_format, out_dtype=torch.float32)
    x[1, 7] = poison
    found = packed_linear(x, values, scales, weight_format, out_dtype=torch.float32)
    assert not found[1].isfinite().all()
    others = torch.arange(num_rows) != 1
    assert torch.equal(found[others], healthy[others])


def test_an_input_that_is_a_slice_is_read_where_it_stands(compiled: Kernels) -> None:
    values, scales = packed(32, 64, BFLOAT16)
    wide = rows_of(6, 100)
    found = packed_linear(wide[:, 10:74], values, scales, BFLOAT16)
    assert torch.equal(found, packed_linear(wide[:, 10:74].clone(), values, scales, BFLOAT16))


def test_float32_rows_of_other_weights_take_the_plain_form(compiled: Kernels) -> None:
    values, scales = packed(32, 64, INT8)
    x = rows_of(2, 64).float()
    found = packed_linear(x, values, scales, INT8)
    assert torch.equal(found, packed_linear_reference(x, values, scales, INT8))
