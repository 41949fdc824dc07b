"""One row: image tokens, BOS, prefix, separator, suffix, EOS as ids and masks.

Rules (arXiv 2407.07726 section 3.1; big_vision `configs/proj/paligemma/transfers/common.py`):
prefix, separator and suffix are tokenized apart, so that no piece spans two of them; the suffix
has no leading space; image tokens and prefix see each other, the suffix is causal.

Knows no pixels, no batch and no padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from paligemma.processor.tokenizer import Tokenizer, check_text


class SuffixPart(NamedTuple):
    """A piece of a suffix, and whether its tokens count in the loss."""

    text: str
    counts_in_loss: bool


@dataclass(frozen=True, kw_only=True)
class TokenSequence:
    """A row of T positions. Here: 2 image tokens and "caption en", answered by "beach".

        row         <img> <img>   BOS  caption     en     \\n  beach  EOS
        token_ids      0     0      2    21209    659    108  54901    1
        image_mask     1     1      0        0      0      0      0    0
        mask_ar        0     0      0        0      0      0      1    1
        loss_mask      0     0      0        0      0      0      1    1

    A prefix alone ends after the separator.
    """

    token_ids: tuple[int, ...]
    image_mask: tuple[bool, ...]
    mask_ar: tuple[bool, ...]
    loss_mask: tuple[bool, ...]

    def __len__(self) -> int:
        return len(self.token_ids)


def build_prefix(
    tokenizer: Tokenizer, prompt: str, num_images: int, num_image_tokens: int
) -> TokenSequence:
    """What the model reads before it answers.

    One newline at the prompt's end is dropped, since the separator follows anyway; newlines inside
    stay. An empty prompt is allowed: the model then captions.

    Raises PromptError for text that cannot be tokenized.
    """
    check_text(prompt)
    prefix = [
        tokenizer.bos_id,
        *tokenizer.tokenize_text(prompt.removesuffix("\n")),
        tokenizer.separator_id,
    ]
    return _joined(num_images * num_image_tokens, tokenizer.pad_id, prefix, [])


def build_example(
    tokenizer: Tokenizer,
    prompt: str,
    suffix: str | Sequence[SuffixPart],
    num_images: int,
    num_image_tokens: int,
) -> TokenSequence:
    """A prompt with the answer to learn (or to score), which ends with EOS.

    A suffix in parts is tokenized part by part, so cut it only where tokens end in any case: at a
    `<loc>`, a `<seg>` or another whole piece. EOS always counts in the loss.

    Raises PromptError for text that cannot be tokenized.
    """
    prefix = build_prefix(tokenizer, prompt, 0, num_image_tokens).token_ids
    parts = [SuffixPart(suffix, True)] if isinstance(suffix, str) else suffix
    answer: list[int] = []
    counts: list[bool] = []
    for part in parts:
        ids = tokenizer.tokenize_text(part.text)
        answer += ids
        counts += [part.counts_in_loss] * len(ids)
    return _joined(
        num_images * num_image_tokens,
        tokenizer.pad_id,
        list(prefix),
        [*answer, tokenizer.eos_id],
        (*counts, True),
    )


def _joined(
    num_image_positions: int,
    placeholder: int,
    prefix: list[int],
    suffix: list[int],
    counts_in_loss: tuple[bool, ...] = (),
) -> TokenSequence:
    before = (False,) * (num_image_positions + len(prefix))
    return TokenSequence(
        token_ids=(placeholder,) * num_image_positions + (*prefix, *suffix),
        image_mask=(True,) * num_image_positions + (False,) * (len(prefix) + len(suffix)),
        mask_ar=before + (True,) * len(suffix),
        loss_mask=before + counts_in_loss,
    )
