"""Token ids and masks of one row: image tokens, BOS, prefix, separator, suffix, EOS.

Rules (arXiv 2407.07726 section 3.1; big_vision `configs/proj/paligemma/transfers/common.py`):
prefix, separator and suffix are tokenized separately, so no piece spans two of them; the suffix
has no leading space; image tokens and prefix attend to each other, the suffix is causal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from paligemma.processor.tokenizer import Tokenizer, check_text


class SuffixPart(NamedTuple):
    """A part of a suffix, and whether its tokens count in the loss."""

    text: str
    counts_in_loss: bool


@dataclass(frozen=True, kw_only=True)
class TokenSequence:
    """A row of T positions. Example: 2 image tokens, the prefix "caption en", the suffix "beach".

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
    """Build what the model reads before it generates: image tokens, BOS, prompt and separator.

    One newline at the end of the prompt is dropped, because the separator follows. Other newlines
    are kept. With an empty prompt the model writes a caption.

    Raises PromptError for text that cannot be tokenized.
    """
    check_text(prompt)
    prefix = [
        tokenizer.bos_id,
        *tokenizer.tokenize_text(prompt.removesuffix("\n")),
        tokenizer.separator_id,
    ]
    return _concatenate(num_images * num_image_tokens, tokenizer.pad_id, prefix, [])


def build_example(
    tokenizer: Tokenizer,
    prompt: str,
    suffix: str | Sequence[SuffixPart],
    num_images: int,
    num_image_tokens: int,
) -> TokenSequence:
    """Build a prompt with the suffix to learn or to score, followed by EOS.

    The parts of a suffix are tokenized separately, so split it only at token boundaries: at a
    `<loc>`, a `<seg>` or another whole piece. EOS always counts in the loss.

    Raises PromptError for text that cannot be tokenized.
    """
    prefix = build_prefix(tokenizer, prompt, 0, num_image_tokens).token_ids
    parts = [SuffixPart(suffix, True)] if isinstance(suffix, str) else suffix
    suffix_ids: list[int] = []
    counts: list[bool] = []
    for part in parts:
        ids = tokenizer.tokenize_text(part.text)
        suffix_ids += ids
        counts += [part.counts_in_loss] * len(ids)
    return _concatenate(
        num_images * num_image_tokens,
        tokenizer.pad_id,
        list(prefix),
        [*suffix_ids, tokenizer.eos_id],
        (*counts, True),
    )


def _concatenate(
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
