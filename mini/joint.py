"""The joint stages of mini: the whole model on scenes, sheets and their tasks.

The suffix loss of `finetune/loss.py`, with the dense targets of stage 0, so that the encoder keeps
learning while the decoder does. The checkpoint contains the model without the dense heads.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from mini.dense import (
    FREQUENCIES,
    IGNORE,
    NONE,
    NUM_CODES,
    DenseHeads,
    DenseTargets,
    dense_targets,
    fourier_features,
)
from mini.dense import total as dense_total
from mini.examples import Asking, SegCodes, draw_example, draw_sheet_example
from mini.language import FIRST_LANGUAGES, KINDS, LATER_LANGUAGES
from mini.paper import training_papers
from mini.paper_examples import draw_paper_example
from mini.reading import ReadingAlignment, ReadingHints, reading_hints
from mini.scene import training_scenes
from mini.sheet import training_sheets
from paligemma.config import (
    NUM_LOC_TOKENS,
    NUM_SEG_TOKENS,
    DecoderConfig,
    PaliGemmaConfig,
    VisionConfig,
)
from paligemma.finetune.config import Reduction
from paligemma.finetune.examples import Example, collate, split_by_length
from paligemma.finetune.loss import TokenScale, suffix_loss
from paligemma.inputs import ModelInputs
from paligemma.model.paligemma import PaliGemma
from paligemma.processor.image import LoadedImage
from paligemma.processor.processor import Processor
from paligemma.processor.tokenizer import Tokenizer


def mini_config(vocab_size: int, resolution: int) -> PaliGemmaConfig:
    """PaliGemma 2 in small: every mechanism of the large ones, a three-hundredth of the size."""
    return PaliGemmaConfig(
        vision=VisionConfig(
            resolution=resolution, patch_size=16, width=256, depth=6, mlp_dim=1024, num_heads=8
        ),
        decoder=DecoderConfig(
            vocab_size=vocab_size,
            width=256,
            depth=6,
            mlp_dim=768,
            num_heads=4,
            num_kv_heads=2,
            head_dim=64,
            query_scale=64**-0.5,
            post_norms=True,
            attn_logit_softcap=50.0,
            final_logit_softcap=30.0,
        ),
    )


def build_mini(config: PaliGemmaConfig, loc_offset: int, seed: int) -> PaliGemma:
    """A fresh model. Neighboring `<loc>` rows start alike, as places on one ruler are."""
    torch.manual_seed(seed)
    model = PaliGemma(config)
    width = config.decoder.width
    table = model.decoder.embedding.weight
    with torch.no_grad():
        nn.init.normal_(model.vision_encoder.position_embedding.weight, std=0.02)
        nn.init.normal_(table, std=width**-0.5)
        ruler = fourier_features(torch.arange(NUM_LOC_TOKENS) / (NUM_LOC_TOKENS - 1))
        turned = torch.linalg.qr(torch.randn(width, 2 * len(FREQUENCIES)))[0]
        rows = slice(loc_offset, loc_offset + NUM_LOC_TOKENS)
        table[rows] = 0.3 * table[rows] + ruler @ turned.T / len(FREQUENCIES) ** 0.5
    return model


_NUM_PARTS = 3


@dataclass(frozen=True, kw_only=True)
class JointBatch:
    """Rows in parts of similar length that share their images, and what the images hold."""

    parts: list[ModelInputs]
    hints: list[list[ReadingHints]]
    """Of the rows of each part."""
    targets: DenseTargets


@dataclass(frozen=True, kw_only=True)
class JointSource:
    """Scenes and papers with several prompts each, sheets with one; a function of (seed, step)."""

    processor: Processor
    seg_codes: SegCodes
    task_weights: Mapping[str, float]
    asking: Asking
    word_weights: tuple[float, ...]
    num_scenes: int
    prompts_per_scene: int
    drawn_at: tuple[int, ...]
    """Sizes at which scenes are drawn; one is picked, the processor then resizes."""
    seed: int
    num_wide: int = 0
    """How many of the scenes hold objects of all sizes."""
    num_sheets: int = 0
    num_papers: int = 0
    prompts_per_paper: int = 2

    def batch(self, step: int) -> JointBatch:
        rng = random.Random(f"joint {self.seed} {step}")
        scenes = training_scenes(
            self.seed,
            step,
            self.num_scenes,
            num_wide=self.num_wide,
            word_weights=self.word_weights,
        )
        sheets = training_sheets(self.seed, step, self.num_sheets)
        papers = training_papers(self.seed, step, self.num_papers)
        examples = []
        for scene in scenes:
            rgb = Image.fromarray(scene.draw(rng.choice(self.drawn_at)))
            image = LoadedImage(rgb=rgb, name="scene")
            for _ in range(self.prompts_per_scene):
                prefix, suffix = draw_example(
                    scene, rng, self.task_weights, self.seg_codes, self.asking
                )
                examples.append(Example(images=(image,), prefix=prefix, suffix=suffix))
        for sheet in sheets:
            rgb = Image.fromarray(sheet.draw(rng.choice(self.drawn_at)))
            image = LoadedImage(rgb=rgb, name="sheet")
            prefix, suffix = draw_sheet_example(sheet, rng)
            examples.append(Example(images=(image,), prefix=prefix, suffix=suffix))
        hints = [ReadingHints(image=0, words=(), letters=())] * len(examples)
        for number, paper in enumerate(papers, len(scenes) + len(sheets)):
            rgb = Image.fromarray(paper.draw(rng.choice(self.drawn_at)))
            image = LoadedImage(rgb=rgb, name="paper")
            for _ in range(self.prompts_per_paper):
                example = draw_paper_example(paper, rng)
                examples.append(
                    Example(images=(image,), prefix=example.prefix, suffix=example.suffix)
                )
                tokenizer, num_words = self.processor.tokenizer, len(paper.words)
                hints.append(reading_hints(tokenizer, example, number, num_words))
        grid = round(self.processor.num_image_tokens**0.5)
        inputs = collate(self.processor, examples)
        # In the order of `split_by_length`.
        rows = inputs.input_mask.sum(dim=1).argsort(stable=True).tensor_split(_NUM_PARTS)
        return JointBatch(
            parts=split_by_length(inputs, _NUM_PARTS),
            hints=[[hints[row] for row in part.tolist()] for part in rows if len(part)],
            targets=dense_targets([*scenes, *sheets, *papers], grid, self.seg_codes),
        )


def extend_rows(table: Tensor, old: Tokenizer, new: Tokenizer) -> Tensor:
    """The rows of an old vocabulary's pieces, as those of a longer one that holds all of them.

    A new piece starts as the mean of what it was before: the nouns of the first languages, for a
    noun of a later one; else the pieces that it was cut into. [V, D] -> [new.vocab_size, D].
    """
    extra = new.vocab_size - old.vocab_size
    rows = table.new_zeros(new.vocab_size, table.shape[1])
    rows[: old.loc_offset] = table[: old.loc_offset]
    rows[new.loc_offset :] = table[old.loc_offset : old.vocab_size]
    relatives = {
        f" {getattr(kind.forms[code], number)}": [
            f" {getattr(kind.forms[first], number)}" for first in FIRST_LANGUAGES
        ]
        for kind in KINDS
        for code in LATER_LANGUAGES
        for number in ("singular", "plural")
    }
    for index in range(old.loc_offset, old.loc_offset + extra):
        piece = new.detokenize([index])
        if new.tokenize_text(piece) != [index]:
            piece = piece.strip()
        alike = [old.tokenize_text(text) for text in relatives.get(piece, [piece])]
        rows[index] = torch.stack([table[ids].mean(0) for ids in alike]).mean(0)
    return rows


def _noun_pieces(tokenizer: Tokenizer) -> list[list[list[int]]]:
    """The ids of every form (singular and plural in each language) of every kind."""
    return [
        [
            tokenizer.tokenize_text(f" {form}")
            for noun in kind.forms.values()
            for form in (noun.singular, noun.plural)
        ]
        for kind in KINDS
    ]


class NameAlignment(nn.Module):
    """Image tokens should resemble the embeddings of the words for what they show.

    Then a word in the prompt finds its patches by likeness, one rule for all kinds and languages
    instead of one to be learned for each. Cross-entropy over the kinds, once for every form
    (singular and plural in each language) in which all are named.
    """

    _SCALE = 10.0  # of cosines

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        rows = [torch.tensor(row) for forms in _noun_pieces(tokenizer) for row in forms]
        pieces = pad_sequence(rows, batch_first=True)
        self.register_buffer("pieces", pieces, persistent=False)
        self.pieces: Tensor

    def forward(self, image_tokens: Tensor, table: Tensor, targets: DenseTargets) -> Tensor:
        """[I, P, D] image tokens, [V, D] embeddings -> mean loss over patches with an object."""
        shown = targets.kinds < len(KINDS)
        present = (self.pieces != 0).float()[..., None]
        words = (F.embedding(self.pieces, table) * present).sum(1) / present.sum(1)
        words = F.normalize(words, dim=-1).view(len(KINDS), -1, words.shape[-1])  # (K, forms, D)
        tokens = F.normalize(image_tokens[shown].float(), dim=-1)
        logits = self._SCALE * torch.einsum("nd,kfd->nkf", tokens, words)
        kinds = targets.kinds[shown][:, None].expand(-1, logits.shape[-1])
        return F.cross_entropy(logits, kinds, reduction="sum") / max(1, kinds.numel())


class AskedGrounding(nn.Module):
    """Halfway through the decoder, image tokens should know whether the prompt asks for them.

    That is the look-up behind counting and detection by name; told so directly, it is learned in
    minutes. Binary cross-entropy over patches with an object, in rows whose prefix names a kind.
    """

    def __init__(self, tokenizer: Tokenizer, width: int) -> None:
        super().__init__()
        self.asked = nn.Linear(width, 1)
        kind_of_token = torch.full((tokenizer.vocab_size,), -1)
        for kind, forms in enumerate(_noun_pieces(tokenizer)):
            for pieces in forms:
                if len(pieces) == 1:
                    kind_of_token[pieces[0]] = kind
        self.register_buffer("kind_of_token", kind_of_token, persistent=False)
        self.kind_of_token: Tensor

    def forward(
        self, hidden: Tensor, inputs: ModelInputs, targets: DenseTargets
    ) -> tuple[Tensor, int]:
        """[B, T, D] of a middle layer, one image per row -> summed loss and number of patches."""
        is_prefix = inputs.input_mask & ~inputs.mask_ar & ~inputs.image_mask
        named = self.kind_of_token[inputs.token_ids].masked_fill(~is_prefix, -1)  # (B, T)
        kind_ids = torch.arange(len(KINDS), device=hidden.device)
        asked = (named[..., None] == kind_ids).any(dim=1)  # (B, K)
        rows = asked.any(dim=1).nonzero()[:, 0]
        images = torch.tensor([index[0] for index in inputs.image_index])
        kinds = targets.kinds[images[rows]]  # (R, P)
        shown = kinds < len(KINDS)
        wanted = asked[rows].gather(1, kinds.clamp_max(len(KINDS) - 1))[shown]
        patches = hidden[rows][inputs.image_mask[rows]].view(*kinds.shape, hidden.shape[-1])[shown]
        logits = self.asked(patches)[:, 0].float()
        loss = F.binary_cross_entropy_with_logits(logits, wanted.float(), reduction="sum")
        return loss, wanted.numel()


class PlaceAlignment(nn.Module):
    """Image tokens and, two thirds through the decoder, what writes a coordinate should point to
    its `<loc>` embedding.

    The encoder knows where an object is; the decoder has to find it there and to write it. Both
    halves of that way are learned sooner if each is told where it leads. Soft cross-entropy over
    the `<loc>` rows, as in the loss of the suffix.
    """

    def __init__(self, width: int, scale: TokenScale) -> None:
        super().__init__()
        self.box = nn.Linear(width, 4 * width)
        self.scale = scale

    def of_patches(self, image_tokens: Tensor, table: Tensor, targets: DenseTargets) -> Tensor:
        """[I, P, D] image tokens -> mean loss of the boxes of patches with an object or a word."""
        shown = targets.kinds != NONE
        width = image_tokens.shape[-1]
        pointers = self.box(image_tokens[shown]).view(-1, width)
        bins = (targets.boxes[shown] * (NUM_LOC_TOKENS - 1)).round().long().flatten()
        return self._losses(pointers, table, bins).sum() / max(1, len(bins))

    def of_coordinates(
        self, normed: Tensor, table: Tensor, inputs: ModelInputs
    ) -> tuple[Tensor, int]:
        """[B, T, D] of a late layer -> summed loss and number of the suffix's coordinates."""
        assert inputs.loss_mask is not None
        bins = inputs.token_ids[:, 1:] - self.scale.first
        is_loc = inputs.loss_mask[:, 1:] & (bins >= 0) & (bins < NUM_LOC_TOKENS)
        losses = self._losses(normed[:, :-1][is_loc], table, bins[is_loc])
        return losses.sum(), losses.numel()

    def _losses(self, pointers: Tensor, table: Tensor, bins: Tensor) -> Tensor:
        rows = table[self.scale.first : self.scale.first + NUM_LOC_TOKENS]
        logprobs = F.log_softmax((pointers @ rows.T).float(), dim=-1)
        return -(self.scale.targets(bins + self.scale.first) * logprobs).sum(-1)


class MaskAlignment(nn.Module):
    """Image tokens should point to the `<seg>` embeddings of their object's first mask codes.

    As `PlaceAlignment` for coordinates. These codes say how the object is turned.
    """

    def __init__(self, width: int, seg_offset: int) -> None:
        super().__init__()
        self.codes = nn.Linear(width, NUM_CODES * width)
        self.seg_offset = seg_offset

    def forward(self, image_tokens: Tensor, table: Tensor, targets: DenseTargets) -> Tensor:
        """[I, P, D] image tokens, [V, D] embeddings -> mean loss over patches with an object."""
        shown = targets.codes[..., 0] != IGNORE
        pointers = self.codes(image_tokens[shown]).view(-1, image_tokens.shape[-1])
        rows = table[self.seg_offset : self.seg_offset + NUM_SEG_TOKENS]
        codes = targets.codes[shown].flatten()
        loss = F.cross_entropy((pointers @ rows.T).float(), codes, reduction="sum")
        return loss / max(1, len(codes))


@dataclass(frozen=True, kw_only=True)
class LossWeights:
    """How much each loss counts next to that of the suffix."""

    dense: float
    edges: float
    """Of the edge head, within the dense losses."""
    names: float = 0.0
    asked: float = 0.0
    place: float = 0.0
    letters: float = 0.0
    """Of the places of letters that are read from papers."""
    codes: float = 0.0
    """Of the first codes of masks, which image tokens point to and a dense head predicts."""
    loc_sigma: float
    """Width of the targets of coordinates, in bins of 1/1024 of the image."""


class Joint(nn.Module):
    """The model and its dense heads."""

    def __init__(
        self,
        model: PaliGemma,
        tokenizer: Tokenizer,
        weights: LossWeights,
        reduction: Reduction,
    ) -> None:
        super().__init__()
        self.model = model
        self.heads = DenseHeads(model.config.vision.width)
        self.loc_offset = tokenizer.loc_offset
        self.names = NameAlignment(tokenizer)
        self.asked = AskedGrounding(tokenizer, model.config.decoder.width)
        scale = TokenScale(first=self.loc_offset, count=NUM_LOC_TOKENS, sigma=weights.loc_sigma)
        self.places = PlaceAlignment(model.config.decoder.width, scale)
        self.reading = ReadingAlignment(model.config.decoder.width, scale)
        self.masks = MaskAlignment(model.config.decoder.width, tokenizer.seg_offset)
        self._middle: list[Tensor] = []
        self._late: list[Tensor] = []
        depth = model.config.decoder.depth
        for blocks, kept in ((depth // 2, self._middle), (2 * depth // 3, self._late)):
            block = model.decoder.blocks[blocks - 1]
            block.register_forward_hook(lambda _, __, hidden, kept=kept: kept.append(hidden))
        self.weights = weights
        self.reduction: Reduction = reduction

    def losses(self, batch: JointBatch) -> dict[str, Tensor]:
        features = self.model.vision_encoder(batch.parts[0].pixel_values)
        dense = self.heads(features, batch.targets)
        image_tokens = self.model.projector(features)
        table = self.model.decoder.embedding.weight
        names = self.names(image_tokens, table, batch.targets)
        place = torch.zeros(())
        total, count = torch.zeros(()), 0
        grounding, num_patches = torch.zeros(()), 0
        coordinates, num_coordinates = torch.zeros(()), 0
        letters, num_letters = torch.zeros(()), 0
        words, num_words = torch.zeros(()), 0
        for part, hints in zip(batch.parts, batch.hints, strict=True):
            self._middle.clear()
            self._late.clear()
            hidden = self.model.hidden_states(part, image_tokens=image_tokens)
            summed, num = suffix_loss(
                self.model.decoder,
                hidden,
                part,
                reduction=self.reduction,
                loc_offset=self.loc_offset,
                loc_sigma=self.weights.loc_sigma,
            )
            total, count = total + summed, count + num
            asked, num = self.asked(self._middle[0], part, batch.targets)
            grounding, num_patches = grounding + asked, num_patches + num
            if self.weights.letters:
                middle = self.model.decoder.final_norm(self._middle[0])
                summed, num = self.reading.of_letters(middle, table, part, hints)
                letters, num_letters = letters + summed, num_letters + num
                summed, num = self.reading.of_words(self._middle[0], part, batch.targets, hints)
                words, num_words = words + summed, num_words + num
            if self.weights.place:
                late = self.model.decoder.final_norm(self._late[0])
                summed, num = self.places.of_coordinates(late, table, part)
                coordinates, num_coordinates = coordinates + summed, num_coordinates + num
        if self.weights.place:
            place = self.places.of_patches(image_tokens, table, batch.targets)
            place = place + coordinates / max(1, num_coordinates)
        codes = torch.zeros(())
        if self.weights.codes:
            codes = self.masks(image_tokens, table, batch.targets)
        suffix = total / count
        logged = ("kind_right", "word_right", "half_right", "box", "edges")
        grounding = grounding / max(1, num_patches) + words / max(1, num_words)
        letters = letters / max(1, num_letters)
        extra = self.weights.dense * dense_total(dense, self.weights.edges, self.weights.codes)
        extra = extra + self.weights.names * names + self.weights.asked * grounding
        extra = extra + self.weights.place * place + self.weights.letters * letters
        extra = extra + self.weights.codes * codes
        return {
            "loss": suffix + extra,
            "suffix": suffix,
            "names": names,
            "asked": grounding,
            "place": place,
            "letters": letters,
            "codes": codes,
            **{name: dense[name] for name in logged},
        }


def fit_heads(joint: Joint, source: JointSource, num_steps: int) -> None:
    """Train new heads of a trained model while the model is frozen."""
    joint.model.requires_grad_(False)
    heads = [parameter for parameter in joint.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(heads, lr=5e-3)
    for step in range(num_steps):
        losses = joint.losses(source.batch(step))
        losses["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
    joint.model.requires_grad_(True)
