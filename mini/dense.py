"""Dense supervision of mini's vision encoder: what each patch should know of what covers it.

A decoder trained from nothing learns the language first and ignores the image for a long time.
An encoder whose patches already say which object covers them, where its edges are and which
letters are printed there removes that plateau. The heads exist alongside the model during training
and are thrown away after it; this file knows scenes and features, no language and no decoder.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import ascii_uppercase, digits
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from mini import assets
from mini.examples import SegCodes
from mini.paper import Paper
from mini.scene import Scene, SceneObject, SceneWord
from mini.sheet import Sheet
from paligemma.config import NUM_SEG_TOKENS

# I images, P patches, K kinds

NUM_KINDS = len(assets.KIND_CODEPOINTS)
NONE, WORD = NUM_KINDS, NUM_KINDS + 1
MAX_LETTERS = 6
LETTERS = ascii_uppercase + digits
BLANK = len(LETTERS)
_NUM_LETTERS = BLANK + 1
NUM_CODES = 4
"""Of the 16 codes of a mask: who knows how an object is turned knows the others from these."""
IGNORE = -100
_MIN_COVER = 0.3  # share of a patch (or of the thing itself) that must be covered

FREQUENCIES = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)


def fourier_features(values: Tensor) -> Tensor:
    """Coordinates [...] in 0..1 -> [..., 12]: cosine and sine at each of FREQUENCIES cycles."""
    turns = 2 * math.pi * torch.tensor(FREQUENCIES, device=values.device)
    angles = values[..., None] * turns
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


@dataclass(frozen=True, kw_only=True)
class DenseTargets:
    """What is true of each patch of one or more images.

    kinds int64[I, P]: kind of the thing that covers the patch, NONE or WORD.
    boxes float32[I, P, 4]: its box, ymin xmin ymax xmax in 0..1 (zeros where NONE).
    letters int64[I, P, 6]: the whole word as indices into LETTERS, BLANK behind its end (IGNORE
        where no word).
    halves int64[I, P, 2]: the letter at the center of the patch's left and right half, or BLANK.
    codes int64[I, P, 4]: the first codes of the object's mask (IGNORE where no object, or where
        they are not given).
    """

    kinds: Tensor
    boxes: Tensor
    letters: Tensor
    halves: Tensor
    codes: Tensor


def dense_targets(
    scenes: Sequence[Scene | Sheet | Paper], grid: int, seg_codes: SegCodes | None = None
) -> DenseTargets:
    """The targets of images on a grid x grid raster of patches."""
    columns = zip(*(_scene_targets(scene, grid, seg_codes) for scene in scenes), strict=True)
    kinds, boxes, letters, halves, codes = (torch.from_numpy(np.stack(rows)) for rows in columns)
    return DenseTargets(kinds=kinds, boxes=boxes, letters=letters, halves=halves, codes=codes)


def _scene_targets(
    scene: Scene | Sheet | Paper, grid: int, seg_codes: SegCodes | None
) -> tuple[NDArray[Any], ...]:
    num_patches = grid * grid
    kinds = np.full(num_patches, NONE)
    boxes = np.zeros((num_patches, 4), np.float32)
    letters = np.full((num_patches, MAX_LETTERS), IGNORE)
    halves = np.full((num_patches, 2), IGNORE)
    codes = np.full((num_patches, NUM_CODES), IGNORE)
    best = np.zeros(num_patches)
    low = np.arange(grid) / grid
    high = low + 1 / grid
    things: list[SceneObject | SceneWord] = [*scene.objects, *scene.words]
    for thing in things:
        x0, y0, x1, y1 = thing.box_xyxy
        across = np.clip(np.minimum(high, x1) - np.maximum(low, x0), 0, None)
        down = np.clip(np.minimum(high, y1) - np.maximum(low, y0), 0, None)
        # Share of the patch, or of the thing's height or width where that is less than a patch.
        full = min(1 / grid, x1 - x0) * min(1 / grid, y1 - y0)
        cover = np.outer(down, across).ravel() / full
        mine = (cover >= _MIN_COVER) & (cover > best)
        best[mine] = cover[mine]
        boxes[mine] = (y0, x0, y1, x1)
        if isinstance(thing, SceneObject):
            kinds[mine] = thing.kind
            letters[mine], halves[mine], codes[mine] = IGNORE, IGNORE, IGNORE
            if seg_codes is not None:
                codes[mine] = seg_codes[thing.kind, thing.pose][:NUM_CODES]
            continue
        kinds[mine] = WORD
        codes[mine] = IGNORE
        # Hyphens and periods are too narrow for the heads, and dates too long for `letters`.
        spelled = [LETTERS.index(letter) if letter in LETTERS else BLANK for letter in thing.text]
        letters[mine] = IGNORE
        if len(spelled) <= MAX_LETTERS and BLANK not in spelled:
            letters[mine] = spelled + [BLANK] * (MAX_LETTERS - len(spelled))
        columns = np.full((grid, 2), BLANK)
        edges = assets.letter_edges(thing.text, thing.face)
        for half in (0, 1):
            centers = (low + (0.25 + 0.5 * half) / grid - x0) / (x1 - x0)
            for letter, (left, right) in zip(spelled, edges, strict=True):
                columns[(centers >= left) & (centers < right), half] = letter
        halves[mine] = np.tile(columns, (grid, 1))[mine]
    return kinds, boxes, letters, halves, codes


class DenseHeads(nn.Module):
    """Linear read-outs of patch features, and their loss."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.kind = nn.Linear(width, NUM_KINDS + 2)
        self.box = nn.Linear(width, 4 * 2 * len(FREQUENCIES))
        self.edges = nn.Linear(width, 4)
        self.letters = nn.Linear(width, MAX_LETTERS * _NUM_LETTERS)
        self.halves = nn.Linear(width, 2 * _NUM_LETTERS)
        self.codes = nn.Linear(width, NUM_CODES * NUM_SEG_TOKENS)

    def forward(self, features: Tensor, targets: DenseTargets) -> dict[str, Tensor]:
        """float[I, P, width] -> scalar losses by name, and shares right (not to be optimized)."""
        covered = targets.kinds != NONE
        is_word = targets.kinds == WORD
        kind_logits = self.kind(features).float()
        losses = {"kind": F.cross_entropy(kind_logits.flatten(0, 1), targets.kinds.flatten())}
        where = self.box(features[covered]).float().unflatten(-1, (4, -1))
        losses["box"] = F.mse_loss(where, fourier_features(targets.boxes[covered]))
        # In patches, so that the loss does not depend on the resolution. Beside `box`: the Fourier
        # features are what the decoder's ruler is made of, but alone they stay blunt.
        grid = targets.kinds.shape[1] ** 0.5
        edges = self.edges(features[covered]).float()
        losses["edges"] = F.l1_loss(edges, targets.boxes[covered]) * grid
        letters = self.letters(features[is_word]).float().unflatten(-1, (MAX_LETTERS, _NUM_LETTERS))
        halves = self.halves(features[is_word]).float().unflatten(-1, (2, _NUM_LETTERS))
        word_letters, word_halves = targets.letters[is_word], targets.halves[is_word]
        losses["letters"] = _mean_cross_entropy(letters, word_letters)
        losses["halves"] = _mean_cross_entropy(halves, word_halves)
        is_object = targets.codes[..., 0] != IGNORE
        codes = self.codes(features[is_object]).float().unflatten(-1, (NUM_CODES, NUM_SEG_TOKENS))
        object_codes = targets.codes[is_object]
        losses["codes"] = _mean_cross_entropy(codes, object_codes)
        with torch.no_grad():
            right = kind_logits.argmax(-1) == targets.kinds
            losses["kind_right"] = _share(right[covered])
            losses["word_right"] = _share((letters.argmax(-1) == word_letters).all(-1))
            losses["half_right"] = _share(halves.argmax(-1) == word_halves)
            losses["first_code_right"] = _share((codes.argmax(-1) == object_codes)[:, 0])
        return losses


def _mean_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """As F.cross_entropy, but 0 instead of NaN where a batch has no such patch."""
    summed = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
    return summed / max(1, targets.numel())


def _share(right: Tensor) -> Tensor:
    """Share of True, 0 where there is nothing to be right about."""
    return right.float().sum() / max(1, right.numel())


def total(losses: Mapping[str, Tensor], edges_weight: float, codes_weight: float = 0.0) -> Tensor:
    """The sum that is minimized."""
    return (
        losses["kind"]
        + losses["box"]
        + edges_weight * losses["edges"]
        + losses["letters"]
        + 0.5 * losses["halves"]
        + codes_weight * losses["codes"]
    )
