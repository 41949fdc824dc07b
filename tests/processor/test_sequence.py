"""Rows of ids and masks: order, separator, and what counts where."""

from __future__ import annotations

import pytest

from paligemma.errors import PromptError
from paligemma.processor.sequence import SuffixPart, build_example, build_prefix
from paligemma.processor.tokenizer import Tokenizer


def test_a_prefix_is_images_bos_text_and_newline(tiny_tokenizer: Tokenizer) -> None:
    text = tiny_tokenizer.tokenize_text("caption en")
    row = build_prefix(tiny_tokenizer, "caption en", 2, 3)
    assert row.token_ids == (0, 0, 0, 0, 0, 0, 2, *text, tiny_tokenizer.separator_id)
    assert row.image_mask == (True,) * 6 + (False,) * (len(text) + 2)
    assert not any(row.mask_ar)
    assert not any(row.loss_mask)


def test_an_example_is_causal_and_scored_from_the_suffix_on(tiny_tokenizer: Tokenizer) -> None:
    row = build_example(tiny_tokenizer, "caption en", "on the beach", 1, 4)
    prefix = build_prefix(tiny_tokenizer, "caption en", 1, 4)
    suffix = (*tiny_tokenizer.tokenize_text("on the beach"), tiny_tokenizer.eos_id)
    assert row.token_ids == (*prefix.token_ids, *suffix)
    assert row.mask_ar == row.loss_mask == (False,) * len(prefix) + (True,) * len(suffix)
    assert row.image_mask == prefix.image_mask + (False,) * len(suffix)


def test_parts_of_a_suffix_count_in_the_loss_or_not(tiny_tokenizer: Tokenizer) -> None:
    parts = (SuffixPart("<loc0001><loc0002>", False), SuffixPart(" cow", True))
    row = build_example(tiny_tokenizer, "caption en", parts, 1, 4)
    whole = build_example(tiny_tokenizer, "caption en", "<loc0001><loc0002> cow", 1, 4)
    assert (row.token_ids, row.mask_ar) == (whole.token_ids, whole.mask_ar)
    counts = whole.loss_mask
    first = counts.index(True)
    assert row.loss_mask == (*counts[:first], False, False, *counts[first + 2 :])


def test_a_suffix_of_no_parts_is_eos_which_counts(tiny_tokenizer: Tokenizer) -> None:
    row = build_example(tiny_tokenizer, "", (), 0, 4)
    assert row == build_example(tiny_tokenizer, "", "", 0, 4)
    assert row.loss_mask[-1]


def test_an_empty_prompt_is_bos_and_newline(tiny_tokenizer: Tokenizer) -> None:
    assert build_prefix(tiny_tokenizer, "", 0, 4).token_ids == (2, tiny_tokenizer.separator_id)


def test_an_empty_suffix_is_eos(tiny_tokenizer: Tokenizer) -> None:
    assert build_example(tiny_tokenizer, "", "", 0, 4).token_ids[-1] == tiny_tokenizer.eos_id


def test_one_newline_at_the_end_makes_no_difference(tiny_tokenizer: Tokenizer) -> None:
    plain = build_prefix(tiny_tokenizer, "a dog", 1, 4)
    assert build_prefix(tiny_tokenizer, "a dog\n", 1, 4) == plain
    assert len(build_prefix(tiny_tokenizer, "a dog\n\n", 1, 4)) == len(plain) + 1


def test_the_separator_never_merges_with_a_newline_before_it(tiny_tokenizer: Tokenizer) -> None:
    newline = tiny_tokenizer.separator_id
    assert build_prefix(tiny_tokenizer, "a\n\n", 0, 4).token_ids[-2:] == (newline, newline)
    inner = tuple(tiny_tokenizer.tokenize_text("a\n\nb"))
    assert build_prefix(tiny_tokenizer, "a\n\nb", 0, 4).token_ids == (2, *inner, newline)


@pytest.mark.parametrize("text", ["<image>", "<bos>", "<eos>", "<pad>", "<image>" * 9])
def test_text_cannot_add_places_for_images(tiny_tokenizer: Tokenizer, text: str) -> None:
    row = build_example(tiny_tokenizer, text, text, 2, 3)
    assert sum(row.image_mask) == 6
    assert row.token_ids.count(tiny_tokenizer.bos_id) == 1
    assert row.token_ids.count(tiny_tokenizer.eos_id) == 1


def test_what_is_no_text_is_refused(tiny_tokenizer: Tokenizer) -> None:
    for prompt in ("\ud800", None, b"caption en"):
        with pytest.raises(PromptError):
            build_prefix(tiny_tokenizer, prompt, 1, 4)  # type: ignore[arg-type]
