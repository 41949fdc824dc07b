"""Batches: padding, shared pictures, and the reference's examples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from paligemma.errors import OptionError
from paligemma.inputs import ModelInputs
from paligemma.processor.image import load_image
from paligemma.processor.processor import ExampleRow, Processor, PromptRow
from paligemma.processor.tokenizer import Tokenizer

IMAGES = [load_image(np.full((5, 7, 3), value, np.uint8)) for value in (0, 255)]
ROWS = (
    ExampleRow(prompt="answer en Where is the cow standing?", suffix="beach"),
    ExampleRow(prompt="", suffix="cow standing on the beach", images=(1, 0)),
)


@pytest.fixture
def processor(tiny_tokenizer: Tokenizer) -> Processor:
    return Processor(tokenizer=tiny_tokenizer, resolution=6, num_image_tokens=3)


@pytest.fixture(scope="module")
def gemma_processor(shared_data: Path) -> Processor:
    tokenizer = Tokenizer.from_file(shared_data / "tokenizer" / "tokenizer.model")
    return Processor(tokenizer=tokenizer, resolution=28, num_image_tokens=256)


@pytest.fixture(scope="module")
def cases(shared_data: Path) -> dict[str, Any]:
    data = json.loads((shared_data / "vectors" / "processor.json").read_text())
    return {case["id"]: case for case in data["cases"]}


def expanded(runs: list[list[int]]) -> list[int]:
    return [value for value, count in runs for _ in range(count)]


def real(batch: ModelInputs, table: torch.Tensor, row: int) -> list[int]:
    values: list[int] = table[row][batch.input_mask[row]].int().tolist()
    return values


def test_pads_stand_left_of_prompts_and_right_of_examples(processor: Processor) -> None:
    prompts = [PromptRow(prompt=row.prompt, images=row.images) for row in ROWS]
    assert not processor.prefix_inputs(prompts, IMAGES).input_mask[1, 0]
    assert processor.prefix_inputs(prompts, IMAGES).input_mask[:, -1].all()
    right = processor.example_inputs(ROWS, IMAGES)
    assert right.input_mask[:, 0].all()
    assert not right.input_mask[1, -1] or not right.input_mask[0, -1]


def test_a_row_is_the_same_alone_and_padded_in_a_batch(processor: Processor) -> None:
    prompts = [PromptRow(prompt=row.prompt, images=row.images) for row in ROWS]
    left = processor.prefix_inputs(prompts, IMAGES)
    right = processor.example_inputs(ROWS, IMAGES)
    for row in range(len(ROWS)):
        for batch, alone in (
            (left, processor.prefix_inputs(prompts[row : row + 1], IMAGES)),
            (right, processor.example_inputs(ROWS[row : row + 1], IMAGES)),
        ):
            for name in ("token_ids", "mask_ar", "image_mask"):
                assert real(batch, getattr(batch, name), row) == getattr(alone, name)[0].tolist()


def test_pads_count_nowhere(processor: Processor) -> None:
    prompts = [PromptRow(prompt=row.prompt, images=row.images) for row in ROWS]
    left = processor.prefix_inputs(prompts, IMAGES)
    right = processor.example_inputs(ROWS, IMAGES)
    assert right.loss_mask is not None
    assert not (~right.input_mask & right.loss_mask).any()
    for batch in (left, right):
        pads = ~batch.input_mask
        assert pads.any()
        assert not (pads & batch.image_mask).any()
        assert (batch.token_ids[pads] == 0).all()
        # Behind a row pads are causal; before it they must not end the prefix.
        assert (batch.mask_ar[pads] == (batch is right)).all()


def test_tensors_have_the_promised_types(processor: Processor) -> None:
    batch = processor.example_inputs(ROWS, IMAGES)
    assert batch.token_ids.dtype == torch.int64
    assert batch.required_pixel_values.dtype == torch.float32
    assert batch.required_pixel_values.shape == (2, 3, 6, 6)
    assert batch.loss_mask is not None
    for mask in (batch.input_mask, batch.mask_ar, batch.image_mask, batch.loss_mask):
        assert mask.dtype == torch.bool
        assert mask.shape == batch.token_ids.shape
    assert batch.image_index == ((0,), (1, 0))
    assert batch.image_mask.sum(dim=1).tolist() == [3, 6]
    assert processor.prefix_inputs([PromptRow(prompt="")], IMAGES).loss_mask is None


def test_black_and_white_are_the_ends_of_the_range(processor: Processor) -> None:
    values = processor.pixel_values(IMAGES)
    assert (values[0] == -1).all()
    assert (values[1] == 1).all()


def test_two_questions_about_one_image_hold_it_once(processor: Processor) -> None:
    rows = [PromptRow(prompt="caption en"), PromptRow(prompt="detect cat")]
    batch = processor.prefix_inputs(rows, IMAGES[:1])
    assert batch.required_pixel_values.shape[0] == 1
    assert batch.image_index == ((0,), (0,))


def test_a_row_without_images_is_text_alone(processor: Processor) -> None:
    batch = processor.prefix_inputs([PromptRow(prompt="caption en", images=())], [])
    assert not batch.image_mask.any()
    assert batch.required_pixel_values.shape == (0, 3, 6, 6)


def test_images_that_are_not_there_are_refused(processor: Processor) -> None:
    for image in (2, -1):
        with pytest.raises(OptionError, match="the batch has 2"):
            processor.prefix_inputs([PromptRow(prompt="", images=(image,))], IMAGES)
    with pytest.raises(OptionError, match="Empty batch"):
        processor.prefix_inputs([], IMAGES)


def test_an_empty_prompt_matches_the_reference(
    gemma_processor: Processor, cases: dict[str, Any]
) -> None:
    case = cases["hf-empty-prompt-224"]
    # The reference gives image tokens an id of their own; here they have a mask.
    expected = [0 if i == 257152 else i for i in expanded(case["input_ids_compact"])]
    batch = gemma_processor.prefix_inputs([PromptRow(prompt=case["prompt"])], IMAGES)
    assert batch.token_ids.tolist() == [expected]
    assert batch.image_mask.sum() == case["image_tokens"]


def test_a_batch_of_examples_matches_the_reference(
    gemma_processor: Processor, cases: dict[str, Any]
) -> None:
    case = cases["hf-suffix-batch"]
    rows = [
        ExampleRow(prompt=prompt, suffix=suffix)
        for prompt, suffix in zip(case["prompts"], case["suffixes"], strict=True)
    ]
    batch = gemma_processor.example_inputs(rows, IMAGES)
    assert batch.token_ids.shape == (2, case["sequence_length"])
    assert batch.loss_mask is not None
    labels = torch.where(batch.loss_mask, batch.token_ids, -100)
    for row in range(2):
        # The reference pads on the left.
        num_pads = int((~batch.input_mask[row]).sum())
        expected = expanded(case["labels_compact"][row])
        assert [-100] * num_pads + real(batch, labels, row) == expected
        expected = expanded(case["token_type_ids_compact"][row])
        assert [0] * num_pads + real(batch, batch.mask_ar, row) == expected


def test_prompts_have_the_lengths_of_the_reference(
    gemma_processor: Processor, cases: dict[str, Any]
) -> None:
    case = cases["cord-extract-224"]
    batch = gemma_processor.prefix_inputs([PromptRow(prompt=case["prompt"])], IMAGES)
    assert batch.token_ids.shape[1] == case["sequence_length"]
    tail = gemma_processor.tokenizer.detokenize(batch.token_ids[0].tolist())
    assert "<image><bos>" + tail == case["decoded_tail"]

    case = cases["detect-cow-448"]
    at_448 = Processor(
        tokenizer=gemma_processor.tokenizer, resolution=28, num_image_tokens=case["image_tokens"]
    )
    batch = at_448.prefix_inputs([PromptRow(prompt=case["prompt"])], IMAGES)
    assert batch.token_ids.shape[1] == case["prompt_tokens_total"]
