"""A record -> the prefix that asks and the suffix to learn.

Objects become the text of tokens, in the form of `tasks/objects.py`:

    detect    <loc y1><loc x1><loc y2><loc x2> cat ; <loc>... dog
    segment   <loc><loc><loc><loc><seg> x 16 cat ; ...

Coordinates are round(v * 1023), masks are cut to their box and encoded, both as in big_vision
(`pp/proj/paligemma/segmentation.py`). With noise boxes (arXiv 2412.03555, appendix C; after
Pix2Seq, arXiv 2109.10852, section 2.3) a list is filled up to its budget with random boxes whose
label is a reserved token, so that the model learns which boxes are wrong instead of where to
stop:

    part                       <locs> cat ;   <locs>   <unused0> ;   <locs>   <unused0>   EOS
    counts in the loss              1            0           1          0          1        1

Everything random is a function of (seed, epoch, record id), so it does not depend on the order in
which records are read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal, get_args

import numpy as np
import torch

from paligemma.config import NUM_LOC_TOKENS
from paligemma.data.record import Record, TrueObject
from paligemma.data.source import ObjectTask
from paligemma.errors import CheckpointError, DataError, OptionError, counted
from paligemma.options import Option
from paligemma.processor.image import ImageTransform
from paligemma.processor.processor import Processor
from paligemma.processor.sequence import SuffixPart
from paligemma.processor.tokenizer import LOC_PIECES, SEG_PIECES, Tokenizer
from paligemma.results import BoxXyxy
from paligemma.tasks.objects import SEPARATOR, BoxYxyxBins, encode_box
from paligemma.tasks.seg_codec import MaskCodec, crop_mask

Ask = Literal["dataset", "present", "all classes"]
Order = Literal["random", "position", "area", "given"]
DEFAULT_NOISE_TOKEN = "<unused0>"
"""The first of the 99 pieces that Gemma reserves for such uses; it occurs in no training text."""
_LAST_BIN = NUM_LOC_TOKENS - 1


@dataclass(frozen=True, kw_only=True)
class ObjectOptions:
    """How labeled objects become the prefix and the suffix to learn.

    Records that have a suffix of their own are not affected.
    """

    task: Annotated[ObjectTask | None, Option(shown_default="set by the format")] = None
    """Kind of text to train from labeled objects: boxes (detect), or boxes with masks (segment)."""
    ask: Ask = "dataset"
    """Classes that the prefix names: all of the data set, those present in the image (the model
    then never learns to say that something is missing), or just "all classes"."""
    order: Order = "random"
    """Order of the objects in the suffix: random (different in each epoch), by position from left
    to right, by area from large to small, or as given."""
    max_objects: Annotated[int | None, Option(least=1, shown_default="all")] = None
    """Maximum number of objects per image; the last ones in the order are dropped."""
    noise_token: Annotated[str | None, Option(shown_default="none")] = None
    """Fill the list up to --max-objects with random boxes of this label, such as <unused0>, so
    that the model learns which boxes are wrong instead of where to stop."""
    write_labels: Annotated[bool, Option(flags=("--labels/--no-labels",))] = True
    """Write a label after each box. Leave labels out for referring expressions, where the prefix
    names the object."""


@dataclass(frozen=True, kw_only=True)
class TargetOptions(ObjectOptions):
    """`ObjectOptions`, with what a recipe or a training run decides."""

    seed: Annotated[int, Option(least=0)] = 0
    """Random seed for the order of objects and for noise boxes."""

    def __post_init__(self) -> None:
        choices = (("ask", self.ask, Ask), ("order", self.order, Order))
        for name, value, choice in choices:
            if value not in get_args(choice):
                raise OptionError(f"{name} is {value!r}; it must be one of {get_args(choice)}.")
        if self.task not in (None, *get_args(ObjectTask)):
            raise OptionError(f"task is {self.task!r}; it must be one of {get_args(ObjectTask)}.")
        if self.max_objects is not None and self.max_objects < 1:
            raise OptionError(f"max_objects is {self.max_objects}; it must be at least 1.")
        if self.noise_token is None:
            return
        if self.max_objects is None:
            raise OptionError(
                "Noise boxes fill the list up to max_objects, which is not set. Set it."
            )
        if self.task == "segment" or not self.write_labels:
            raise OptionError("Noise boxes are for detection with labels. Leave noise_token out.")


@dataclass(frozen=True, kw_only=True)
class Target:
    """The text to learn from a record."""

    prefix: str
    suffix_parts: tuple[SuffixPart, ...]
    num_objects: int = 0
    num_left_out: int = 0
    """Objects beyond the budget."""
    num_noise: int = 0

    @property
    def suffix(self) -> str:
        return "".join(part.text for part in self.suffix_parts)


@dataclass(frozen=True, kw_only=True)
class TargetBuilder:
    """Builds targets; `class_names` are those of the training data, for validation too.

    Raises CheckpointError when masks are asked for without a codec, OptionError for a noise token
    that is not one token of the tokenizer.
    """

    processor: Processor
    class_names: tuple[str, ...] = ()
    task: ObjectTask = "detect"
    mask_codec: MaskCodec | None = None
    options: TargetOptions = TargetOptions()
    _codes: dict[TrueObject, list[int]] = field(default_factory=dict, repr=False, compare=False)
    """Masks that are encoded already; every epoch needs the same."""

    def __post_init__(self) -> None:
        if self.task == "segment":
            if self.mask_codec is None:
                raise CheckpointError(
                    "The model has no mask codec, which turns masks into <seg> tokens. Put "
                    "vae-oid.npz into its folder, or learn boxes alone: task='detect' (--task "
                    "detect)."
                )
            if self.options.noise_token is not None:
                raise OptionError("Noise boxes are for detection. Leave noise_token out.")
        if self.options.noise_token is not None:
            check_noise_token(self.options.noise_token, self.processor.tokenizer)

    def build(self, record: Record, epoch: int = 0) -> Target:
        """The target of a record in an epoch (which matters only for what is random).

        Raises DataError for objects that cannot be written, or a prefix that would name no class.
        """
        if record.suffix or record.objects is None:
            text = record.suffix or self._choose_reference(record, epoch)
            return Target(prefix=record.prefix, suffix_parts=(SuffixPart(text, True),))
        rng = self._rng(record, epoch)
        ordered = _ordered(record.objects, self.options.order, rng)
        chosen = ordered[: self.options.max_objects]
        prefix = record.prefix or self._prefix(record)
        parts = [SuffixPart(SEPARATOR.join(self._texts(record, chosen)), True)] if chosen else []
        num_noise = 0
        if self.options.noise_token is not None:
            assert self.options.max_objects is not None
            num_noise = self.options.max_objects - len(chosen)
            for _ in range(num_noise):
                if parts:
                    parts[-1] = SuffixPart(parts[-1].text + SEPARATOR, True)
                parts.append(SuffixPart(_box_text(_random_bins(rng)), False))
                parts.append(SuffixPart(f" {self.options.noise_token}", True))
        return Target(
            prefix=prefix,
            suffix_parts=tuple(parts),
            num_objects=len(chosen),
            num_left_out=len(ordered) - len(chosen),
            num_noise=num_noise,
        )

    def bins_of(self, box_xyxy: BoxXyxy, size_wh: tuple[int, int]) -> BoxYxyxBins:
        """The four coordinate bins of a box in pixels, at least one bin high and wide."""
        transform = self.transform(size_wh)
        y1, x1, y2, x2 = encode_box(transform.box_from_source(box_xyxy, order="xyxy"))
        # A box narrower than a bin would be read back as one without area.
        y1, x1 = min(y1, _LAST_BIN - 1), min(x1, _LAST_BIN - 1)
        return y1, x1, max(y2, y1 + 1), max(x2, x1 + 1)

    def transform(self, size_wh: tuple[int, int]) -> ImageTransform:
        """How an image of this size is fitted to the model's square input."""
        return ImageTransform(
            source_wh=size_wh, resolution=self.processor.resolution, resize=self.processor.resize
        )

    def codes_of(self, objects: Sequence[TrueObject], record: Record) -> list[list[int]]:
        """The 16 mask codes of each object. Raises DataError for one without a mask."""
        assert self.mask_codec is not None
        new = [item for item in objects if item not in self._codes]
        if new:
            crops = torch.from_numpy(np.stack([_crop(item, record) for item in new]))
            self._codes.update(zip(new, self.mask_codec.encode_masks(crops).tolist(), strict=True))
        return [self._codes[item] for item in objects]

    def _texts(self, record: Record, objects: Sequence[TrueObject]) -> Iterable[str]:
        assert record.size_wh is not None
        texts = [_box_text(self.bins_of(item.box_xyxy, record.size_wh)) for item in objects]
        if self.task == "segment":
            codes = self.codes_of(objects, record)
            texts = [
                t + "".join(SEG_PIECES[c] for c in row) for t, row in zip(texts, codes, strict=True)
            ]
        if not self.options.write_labels:
            return texts
        return [f"{text} {item.label}" for text, item in zip(texts, objects, strict=True)]

    def _prefix(self, record: Record) -> str:
        assert record.objects is not None
        if self.options.ask == "all classes":
            return f"{self.task} all classes"
        names: Iterable[str] = self.class_names
        if self.options.ask == "present":
            labels = {item.label for item in record.objects}
            names = [name for name in self.class_names if name in labels]
        if not (phrases := SEPARATOR.join(names)):
            raise DataError(
                f"{record.where} has no object, so there is no class to ask for. Ask for all "
                "classes of the data set (ask='dataset', --ask dataset), or leave the image out."
            )
        return f"{self.task} {phrases}"

    def _choose_reference(self, record: Record, epoch: int) -> str:
        if len(record.references) < 2:
            return record.references[0] if record.references else record.suffix
        return record.references[self._rng(record, epoch).integers(len(record.references))]

    def _rng(self, record: Record, epoch: int) -> np.random.Generator:
        digest = hashlib.sha256(record.record_id.encode()).digest()
        return np.random.default_rng([self.options.seed, epoch, int.from_bytes(digest[:8])])


def check_noise_token(token: str, tokenizer: Tokenizer) -> int:
    """The id of the token that labels noise boxes.

    Raises OptionError unless it is one token, and neither a control token nor a location.
    """
    ids = tokenizer.tokenize_text(token)
    usable = len(ids) == 1 and ids[0] > tokenizer.unk_id
    if not usable or tokenizer.is_loc(ids[0]) or tokenizer.is_seg(ids[0]):
        raise OptionError(
            f"{token!r} is {counted(len(ids), 'token')} of this model's vocabulary; the label of "
            "noise "
            f"boxes must be a single token that no text uses. Gemma has <unused0> to <unused98>; "
            "the built-in model mini has none, so it cannot be trained with noise boxes."
        )
    return ids[0]


def _ordered(
    objects: Sequence[TrueObject], order: Order, rng: np.random.Generator
) -> list[TrueObject]:
    if order == "random":
        return [objects[i] for i in rng.permutation(len(objects))]
    if order == "position":
        return sorted(objects, key=lambda o: (o.box_xyxy[0], o.box_xyxy[1]))
    if order == "area":
        return sorted(objects, key=lambda o: -_area(o.box_xyxy))
    return list(objects)


def _area(box_xyxy: BoxXyxy) -> float:
    x1, y1, x2, y2 = box_xyxy
    return (x2 - x1) * (y2 - y1)


def _box_text(bins: BoxYxyxBins) -> str:
    return "".join(LOC_PIECES[bin_] for bin_ in bins)


def _random_bins(rng: np.random.Generator) -> BoxYxyxBins:
    """A box with area, each pair of different edges equally likely."""
    y1, y2 = np.sort(rng.choice(NUM_LOC_TOKENS, 2, replace=False)).tolist()
    x1, x2 = np.sort(rng.choice(NUM_LOC_TOKENS, 2, replace=False)).tolist()
    return y1, x1, y2, x2


def _crop(item: TrueObject, record: Record) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """float32[64, 64]: the object's mask within its box, which is widened to at least a pixel."""
    mask = item.mask
    if mask is None:
        raise DataError(
            f"{record.where}: the object {item.label!r} has no mask, only a box. Add masks to the "
            "data, or learn boxes alone: task='detect' (--task detect)."
        )
    height, width = mask.shape
    assert record.size_wh == (width, height)
    x1, y1, x2, y2 = (round(edge) for edge in item.box_xyxy)
    x1, y1 = min(x1, width - 1), min(y1, height - 1)
    x2, y2 = max(x2, x1 + 1), max(y2, y1 + 1)
    if not mask[y1:y2, x1:x2].any():
        raise DataError(
            f"{record.where}: the mask of {item.label!r} has no pixel inside its box "
            f"{item.box_xyxy}. They belong to different objects or images."
        )
    return crop_mask(mask, (x1 / width, y1 / height, x2 / width, y2 / height))
