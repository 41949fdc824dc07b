"""Stage 0 of mini: the vision encoder learns to see before any decoder listens.

Two losses together: SigLIP's sigmoid loss between images and their descriptions
(arXiv 2303.15343), and the dense targets of `dense.py`. What is kept is the encoder.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from mini.dense import DenseHeads, DenseTargets, dense_targets, total
from mini.examples import SegCodes
from mini.language import FIRST_LANGUAGES
from mini.paper import Paper, training_papers
from mini.scene import Scene, training_scenes
from mini.sheet import Sheet, training_sheets
from mini.texts import SceneTexts
from paligemma.config import VisionConfig
from paligemma.model.siglip import VisionEncoder
from paligemma.processor.tokenizer import Tokenizer

# More print than in the world itself: reading is the slowest to learn.
STAGE0_WORD_WEIGHTS = (0.1, 0.3, 0.3, 0.3)


@dataclass(frozen=True, kw_only=True)
class Stage0Batch:
    """images uint8[I, 3, R, R]; token_ids int64[S, T] of the descriptions of the first S images,
    0 where none."""

    images: Tensor
    token_ids: Tensor
    targets: DenseTargets


@dataclass(frozen=True, kw_only=True)
class Stage0Source:
    """Images with their descriptions and dense targets; a function of (seed, step)."""

    tokenizer: Tokenizer
    resolution: int
    grid: int
    batch_size: int
    seed: int
    num_wide: int = 0
    """How many of a batch's scenes hold objects of all sizes."""
    num_sheets: int = 0
    """How many tables, charts and forms follow the scenes; they have no description."""
    num_papers: int = 0
    """How many papers follow these; they have none either."""
    languages: tuple[str, ...] = FIRST_LANGUAGES
    seg_codes: SegCodes | None = None
    """For the targets of masks."""

    def batch(self, step: int) -> Stage0Batch:
        num_scenes = self.batch_size - self.num_sheets - self.num_papers
        scenes = training_scenes(
            self.seed, step, num_scenes, num_wide=self.num_wide, word_weights=STAGE0_WORD_WEIGHTS
        )
        sheets = training_sheets(self.seed, step, self.num_sheets)
        rng = random.Random(f"stage0 {self.seed} {step}")
        texts = [SceneTexts(scene).describe(rng.choice(self.languages)) for scene in scenes]
        rows = [torch.tensor(self.tokenizer.tokenize_text(text)) for text in texts]
        papers = training_papers(self.seed, step, self.num_papers)
        drawings: list[Scene | Sheet | Paper] = [*scenes, *sheets, *papers]
        images = np.stack([drawing.draw(self.resolution) for drawing in drawings])
        return Stage0Batch(
            images=torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(),
            token_ids=pad_sequence(rows, batch_first=True),
            targets=dense_targets(drawings, self.grid, self.seg_codes),
        )


def to_pixel_values(images: Tensor) -> Tensor:
    """uint8 -> float32 in [-1, 1], as the processor does."""
    return images.float() / 127.5 - 1.0


class Stage0(nn.Module):
    """The encoder with everything that only stage 0 needs around it."""

    def __init__(
        self,
        vision: VisionConfig,
        vocab_size: int,
        *,
        edges_weight: float,
        codes_weight: float = 0.0,
    ) -> None:
        super().__init__()
        self.edges_weight = edges_weight
        self.codes_weight = codes_weight
        self.vision_encoder = VisionEncoder(vision)
        nn.init.normal_(self.vision_encoder.position_embedding.weight, std=0.02)
        self.heads = DenseHeads(vision.width)
        self.text_embedding = nn.Embedding(vocab_size, vision.width, padding_idx=0)
        self.text_proj = nn.Linear(vision.width, vision.width)
        self.image_proj = nn.Linear(vision.width, vision.width)
        # SigLIP's start: temperature 10, bias -10 (arXiv 2303.15343 section 3).
        self.log_temperature = nn.Parameter(torch.tensor([2.302585]))
        self.bias = nn.Parameter(torch.tensor([-10.0]))

    def losses(self, batch: Stage0Batch) -> dict[str, Tensor]:
        features = self.vision_encoder(to_pixel_values(batch.images))
        losses: dict[str, Tensor] = self.heads(features, batch.targets)
        described = features[: len(batch.token_ids)]
        losses["contrastive"] = self.sigmoid_loss(described, batch.token_ids)
        dense = total(losses, self.edges_weight, self.codes_weight)
        losses["loss"] = dense + 0.1 * losses["contrastive"]
        return losses

    def sigmoid_loss(self, features: Tensor, token_ids: Tensor) -> Tensor:
        """Every image with every text of the batch: +1 for its own, -1 for the others."""
        present = (token_ids != 0).float()[..., None]
        words = self.text_embedding(token_ids)
        text = self.text_proj((words * present).sum(1) / present.sum(1).clamp_min(1))
        image = self.image_proj(features.mean(1))
        similarity = F.normalize(image.float(), dim=-1) @ F.normalize(text.float(), dim=-1).T
        logits = similarity * self.log_temperature.exp() + self.bias
        signs = 2 * torch.eye(len(logits)) - 1
        return -F.logsigmoid(signs * logits).sum(1).mean()
