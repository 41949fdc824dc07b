"""What helps mini's decoder to read papers, while it trains: which printed words a prompt asks for,
and where the letter to be written next is printed.

Both are looked up halfway through the decoder, so that the later layers have something to read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from mini import assets
from mini.dense import WORD, DenseTargets
from mini.paper_examples import PaperExample
from mini.scene import SceneWord
from paligemma.config import NUM_LOC_TOKENS
from paligemma.finetune.loss import TokenScale
from paligemma.inputs import ModelInputs
from paligemma.processor.tokenizer import Tokenizer

_NOWHERE = (math.nan, math.nan)
_NO_WORD = ((-1.0, -1.0, -1.0, -1.0),)


@dataclass(frozen=True, kw_only=True)
class ReadingHints:
    """Of one row of a batch."""

    image: int
    """Of the row, among those of the batch."""
    words: tuple[tuple[float, float, float, float], ...]
    """Boxes (ymin, xmin, ymax, xmax) of the printed words that the answer repeats; empty where it
    repeats none of them or all."""
    letters: tuple[tuple[float, float], ...]
    """For each token of the suffix, without its end: x and y of the letter that it ends with; NaN
    for tokens that are not printed."""


def reading_hints(
    tokenizer: Tokenizer, example: PaperExample, image: int, num_words: int
) -> ReadingHints:
    """The hints of an example about an image with `num_words` printed words."""
    boxes = [word.box_xyxy for word in example.words] if len(example.words) < num_words else []
    places = iter(_letter_places(example.words))
    letters = []
    for token_id in tokenizer.tokenize_text(example.suffix) if example.words else ():
        piece, place = tokenizer.detokenize([token_id]), _NOWHERE
        if not tokenizer.is_loc(token_id):
            for character in piece:
                if character.isalnum() or character in "-.":
                    place = next(places)
        letters.append(place)
    return ReadingHints(
        image=image,
        words=tuple((y0, x0, y1, x1) for x0, y0, x1, y1 in boxes),
        letters=tuple(letters),
    )


def _letter_places(words: Sequence[SceneWord]) -> list[tuple[float, float]]:
    """The center of each letter of these words, in units of the image's side."""
    places = []
    for word in words:
        x0, y0, x1, y1 = word.box_xyxy
        for left, right in assets.letter_edges(word.text, word.face):
            places.append((x0 + (left + right) / 2 * (x1 - x0), (y0 + y1) / 2))
    return places


class ReadingAlignment(nn.Module):
    """Losses on the hidden states of a layer halfway through the decoder."""

    def __init__(self, width: int, scale: TokenScale) -> None:
        super().__init__()
        self.place = nn.Linear(width, 2 * width)
        self.asked = nn.Linear(width, 1)
        self.scale = scale

    def of_letters(
        self, normed: Tensor, table: Tensor, inputs: ModelInputs, hints: Sequence[ReadingHints]
    ) -> tuple[Tensor, int]:
        """[B, T, D] -> summed loss and number of the coordinates of letters.

        What writes a letter should point to the `<loc>` embeddings of its place.
        """
        assert inputs.loss_mask is not None
        places = torch.full((*normed.shape[:2], 2), math.nan)
        for row, (start, hint) in enumerate(
            zip(inputs.loss_mask.long().argmax(dim=1).tolist(), hints, strict=True)
        ):
            if hint.letters:  # the first token is written by the position before it
                end = start - 1 + len(hint.letters)
                places[row, start - 1 : end] = torch.tensor(hint.letters)
        printed = ~places[..., 0].isnan()
        bins = (places[printed] * (NUM_LOC_TOKENS - 1)).round().long().flatten().to(normed.device)
        rows = table[self.scale.first : self.scale.first + NUM_LOC_TOKENS]
        pointers = self.place(normed[printed.to(normed.device)]).view(-1, normed.shape[-1])
        logprobs = F.log_softmax((pointers @ rows.T).float(), dim=-1)
        losses = -(self.scale.targets(bins + self.scale.first) * logprobs).sum(-1)
        return losses.sum(), losses.numel()

    def of_words(
        self,
        hidden: Tensor,
        inputs: ModelInputs,
        targets: DenseTargets,
        hints: Sequence[ReadingHints],
    ) -> tuple[Tensor, int]:
        """[B, T, D], one image per row -> summed loss and number of patches with print.

        Such a patch should know whether the prompt asks for its word.
        """
        device = hidden.device
        boxes = pad_sequence(
            [torch.tensor(hint.words or _NO_WORD) for hint in hints], batch_first=True
        ).to(device)  # (B, words, 4)
        images = torch.tensor([hint.image for hint in hints], device=device)
        has_words = torch.tensor([bool(hint.words) for hint in hints], device=device)
        away = (targets.boxes[images][:, :, None] - boxes[:, None]).abs().amax(dim=-1)
        is_asked = (away < 1e-5).any(dim=-1)
        is_print = (targets.kinds[images] == WORD) & has_words[:, None]
        patches = hidden[inputs.image_mask].view(*is_print.shape, -1)[is_print]
        logits = self.asked(patches)[:, 0].float()
        wanted = is_asked[is_print].float()
        loss = F.binary_cross_entropy_with_logits(logits, wanted, reduction="sum")
        return loss, logits.numel()
