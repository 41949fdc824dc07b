"""Who sees whom, shown by disturbing one position and looking where the model's output changes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from paligemma.inputs import ModelInputs
from paligemma.model.attention import (
    in_window,
    positions_of,
    prefix_lm_mask,
    sliding_prefix_lm_mask,
)
from tests.tiny import FAMILIES, Row, tiny_inputs, tiny_model

ROWS = [Row(images=(0, 1), prefix=4, suffix=5), Row(images=(2, 1), prefix=7), Row(suffix=3)]


def bits(*rows: str) -> Tensor:
    return torch.tensor([[c == "1" for c in row] for row in rows])


def test_the_mask_of_a_short_row_is_as_drawn() -> None:
    # prefix of three, suffix of two, one pad
    mask = prefix_lm_mask(bits("111110"), bits("000111"))[0]
    expected = bits("111000", "111000", "111000", "111100", "111110", "111110")
    assert torch.equal(mask, expected)


def test_pads_start_no_block_wherever_they_stand() -> None:
    mask = prefix_lm_mask(bits("0111101"), bits("1001111"))[0]
    assert torch.equal(mask[1:3], bits("0110000", "0110000"))
    assert torch.equal(mask[3:], bits("0111000", "0111100", "0111100", "0111101"))


def test_the_window_spares_the_prefix_and_narrows_the_suffix() -> None:
    input_mask, mask_ar = bits("0111111"), bits("0000111")
    positions = positions_of(input_mask)
    assert positions.tolist() == [[0, 0, 1, 2, 3, 4, 5]]
    mask = prefix_lm_mask(input_mask, mask_ar)
    mask = sliding_prefix_lm_mask(mask, input_mask, mask_ar, positions, 2)[0]
    expected = bits("0111000", "0111000", "0111000", "0001100", "0000110", "0000011")
    assert torch.equal(mask[1:], expected)


def test_a_window_counts_the_query_itself() -> None:
    positions = torch.arange(5)[None]
    assert in_window(positions, positions, 3)[0, 4].tolist() == [False, False, True, True, True]


@torch.inference_mode()
def changes(model: Any, inputs: ModelInputs, row: int) -> Tensor:
    """bool[T, T]: at [j, i], whether output i of the row changes with what position j holds.

    Copy j of the row differs from the last copy, which is the row itself, in position j.
    """
    length, num_images = inputs.token_ids.shape[1], len(inputs.required_pixel_values)
    token_ids = inputs.token_ids[row].repeat(length + 1, 1)
    image_tokens = model.embed_images(inputs.pixel_values).repeat(length + 1, 1, 1)
    copies = replace(
        inputs,
        token_ids=token_ids,
        input_mask=inputs.input_mask[row].repeat(length + 1, 1),
        mask_ar=inputs.mask_ar[row].repeat(length + 1, 1),
        image_mask=inputs.image_mask[row].repeat(length + 1, 1),
        pixel_values=None,
        image_index=tuple(
            tuple(copy * num_images + image for image in inputs.image_index[row])
            for copy in range(length + 1)
        ),
        loss_mask=None,
    )
    embedded = model.embed(copies, image_tokens)
    for j in range(length):
        if inputs.image_mask[row, j]:
            nth = int(inputs.image_mask[row, :j].sum())
            image_tokens[copies.image_index[j][nth // 25], nth % 25] += 1.0
        else:
            token_ids[j, j] = (token_ids[j, j] + 1) % 151
    differs = (model.embed(copies, image_tokens) != embedded).any(dim=-1)[:-1]
    assert torch.equal(differs, torch.eye(length, dtype=torch.bool))
    after = model.hidden_states(copies, image_tokens=image_tokens)
    return (after[:-1] - after[-1]).abs().amax(dim=-1) > 1e-5


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("pad", ["left", "right"])
@pytest.mark.parametrize("family", FAMILIES)
def test_e2_prefix_is_seen_by_all_suffix_by_later_ones_and_pads_by_nobody(
    family: Any, pad: str, train: bool
) -> None:
    model = tiny_model(family).train(train)
    inputs = tiny_inputs(model.config, ROWS, pad=pad)
    steps = torch.arange(inputs.token_ids.shape[1])
    for row in range(len(ROWS)):
        real = inputs.input_mask[row]
        changes_of_row = changes(model, inputs, row)
        for j in steps.tolist():
            changed = changes_of_row[j] & real
            if not real[j]:
                expected = torch.zeros_like(real)
            elif inputs.mask_ar[row, j]:
                expected = real & (steps >= j)
            else:
                expected = real
            assert torch.equal(changed, expected), (row, j)


def test_a_row_that_sees_nothing_stays_finite() -> None:
    model = tiny_model()
    inputs = tiny_inputs(model.config, [Row(images=(), prefix=3), Row(images=(0,))])
    with torch.inference_mode():
        assert model(inputs).isfinite().all()
