"""Packed weights hold what was put in, in the order that the kernels read."""

from __future__ import annotations

import pytest
import torch

from paligemma.fast.quantization import (
    BFLOAT16,
    FLOAT32,
    INT4,
    INT8,
    WeightFormat,
    from_stored,
    pack_scales,
    to_stored,
    unpack_scales,
    unpack_stored,
    unpack_values,
)
from tests.fast.kernels.packing import pack_values


def whole_numbers(rows: int, inputs: int, bits: int) -> torch.Tensor:
    largest = 2 ** (bits - 1) - 1
    generator = torch.Generator().manual_seed(rows + inputs)
    numbers = torch.randint(-largest, largest + 1, (rows, inputs), generator=generator)
    return numbers.to(torch.int8)


@pytest.mark.parametrize("shape", [(16, 128), (100, 70), (1, 1), (33, 257)])
@pytest.mark.parametrize("weight_format", [FLOAT32, BFLOAT16, INT8, INT4])
def test_unpacking_gives_back_what_was_packed(
    shape: tuple[int, int], weight_format: WeightFormat
) -> None:
    if not weight_format.is_quantized:
        rows = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        rows = rows.to(weight_format.row_dtype)
    else:
        rows = whole_numbers(*shape, weight_format.bits)
    values = pack_values(rows, weight_format)
    num_panels = -(-shape[0] // 16)
    assert values.shape == weight_format.values_shape(num_panels, shape[1])
    unpacked = unpack_values(values, weight_format)
    assert torch.equal(unpacked[: shape[0], : shape[1]], rows)
    assert not unpacked[shape[0] :].any()
    assert not unpacked[:, shape[1] :].any()


def test_each_weight_stands_where_the_layout_says() -> None:
    rows = torch.arange(32 * 64).view(32, 64).to(torch.bfloat16)
    assert pack_values(rows, BFLOAT16)[1, 5, 3, 1] == rows[16 + 3, 2 * 5 + 1]
    assert pack_values(rows.float(), FLOAT32)[1, 5, 3, 0] == rows[16 + 3, 5]
    q = whole_numbers(32, 128, 8)
    assert pack_values(q, INT8)[1, 5, 3, 2] == q[16 + 3, 4 * 5 + 2] + 128
    q = whole_numbers(32, 128, 4)
    byte = int(pack_values(q, INT4)[1, 5, 3, 2])
    assert byte & 15 == q[16 + 3, 8 * 5 + 2] + 8
    assert byte >> 4 == q[16 + 3, 8 * 5 + 4 + 2] + 8


@pytest.mark.parametrize("num_inputs", [32, 60, 128, 257])
@pytest.mark.parametrize("weight_format", [INT8, INT4])
def test_stored_rows_are_padded_to_whole_groups_and_come_back(
    num_inputs: int, weight_format: WeightFormat
) -> None:
    q = whole_numbers(5, num_inputs, weight_format.bits)
    stored = to_stored(q, weight_format)
    padded = weight_format.padded_inputs(num_inputs)
    assert stored.dtype == torch.uint8
    assert stored.shape == (5, padded * weight_format.bits // 8)
    assert torch.equal(from_stored(stored, weight_format)[:, :num_inputs], q)
    packed = pack_values(q, weight_format)
    assert torch.equal(unpack_stored(packed)[:5], stored)


def test_stored_bytes_are_without_sign_and_fours_share_them() -> None:
    q = torch.tensor([[-8, -7, -6, -5, 4, 5, 6, 7] + [0] * 24], dtype=torch.int8)
    assert to_stored(q, INT4)[0, :5].tolist() == [0xC0, 0xD1, 0xE2, 0xF3, 0x88]
    q = torch.tensor([[-127, 0, 127]], dtype=torch.int8)
    assert to_stored(q, INT8)[0, :4].tolist() == [1, 128, 255, 128]


def test_scales_are_packed_beside_their_panel() -> None:
    scales = torch.rand(20, 3, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    packed = pack_scales(scales)
    assert packed.shape == (2, 3, 16)
    assert packed[1, 2, 3] == scales[19, 2]
    assert torch.equal(unpack_scales(packed)[:20], scales)
