"""Record: one image with a question about it and the true answer. And which records share images.

Images are compared by their pixels, not by name or file: the same image under two names, in two
formats, in two splits or in several questions counts once, so that no model is scored on an image
that it was trained on.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from PIL import Image

from paligemma.errors import DataError, ImageError
from paligemma.masks import Mask
from paligemma.processor.image import ImageSource, LoadedImage, load_image
from paligemma.results import BoxXyxy, Result

OnBadRecord = Literal["error", "skip"]
"""What to do with a record that cannot be used: raise an error, or leave it out."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TrueObject:
    """An annotated object in the image."""

    label: str
    box_xyxy: BoxXyxy
    """In pixels of the upright image; inside it, with area."""
    make_mask: Callable[[], Mask] | None = None
    """Returns bool[H, W]; all masks of a data set together would not fit into memory."""
    area: float | None = None
    """In pixels, where the data give it: the object's own, usually less than its box's."""
    mask_box: Callable[[], BoxXyxy] | None = None
    """Returns the box around the mask, without making it; raises as `mask`."""

    @property
    def mask(self) -> Mask | None:
        """bool[H, W] of the whole image, computed at each call; None for an object without one.

        Raises DataError when the annotation cannot be read as a mask.
        """
        return None if self.make_mask is None else self.make_mask()


@dataclass(frozen=True, kw_only=True, eq=False)
class Record:
    """One line, image or entry of a data set.

    `suffix` is the text to learn. Where it is empty, it is built from `objects`, or is one of
    `references`. An empty `prefix` of a record with objects is built, too.
    """

    record_id: str
    """Unique in the data set, and the same each time it is opened."""
    image: Path | Callable[[], ImageSource]
    prefix: str = ""
    suffix: str = ""
    objects: tuple[TrueObject, ...] | None = None
    """All objects in the image, possibly none; None where the data say nothing about objects."""
    crowds: tuple[TrueObject, ...] = ()
    """Regions of many objects at once, or objects marked as difficult: not learned, and detections
    of them are not wrong."""
    references: tuple[str, ...] = ()
    """All accepted answers or captions; evaluation compares with them."""
    size_wh: tuple[int, int] | None = None
    """Size of the upright image according to the annotations; always given with objects."""
    where: str = ""
    """For messages: "Line 3 of 'train.jsonl'"."""
    more_images: tuple[Path | Callable[[], ImageSource], ...] = ()
    """Images that follow `image` in the same question: pairs, frames of a video."""

    def load_images(self) -> tuple[LoadedImage, ...]:
        """All images of the question, in order. Raises as `load_image`."""
        more = (load_image(m if isinstance(m, Path) else m()) for m in self.more_images)
        return (replace(self, more_images=()).load_image(), *more)

    def load_image(self) -> LoadedImage:
        """The record's only image.

        Raises ImageError when it is missing or damaged, DataError when its size is not the one
        that the annotations are for, or when there are several images.
        """
        if self.more_images:
            raise DataError(
                f"{self.where or self.record_id}: the question has "
                f"{1 + len(self.more_images)} images; load all of them with load_images()."
            )
        if isinstance(self.image, Path):
            image = load_image(self.image)
        else:
            try:
                image = load_image(self.image())
            except ImageError as error:  # which names no file, as there is none
                raise ImageError(f"{self.where}: {error}") from error
        if self.size_wh is not None and image.size_wh != self.size_wh:
            is_swapped = image.size_wh == self.size_wh[::-1]
            is_turned = is_swapped and self._size_as_stored() == self.size_wh
            raise DataError(
                f"{self.where}: the annotations are for an image of {self.size_wh[0]} x "
                f"{self.size_wh[1]} pixels, {image.name!r} has {image.size_wh[0]} x "
                f"{image.size_wh[1]}. "
                + (
                    "It was turned upright according to its EXIF data; annotate the upright image."
                    if is_turned
                    else "Width and height are swapped in the annotations."
                    if is_swapped
                    else "Check which image the annotations belong to."
                )
            )
        return image

    def _size_as_stored(self) -> tuple[int, int]:
        """Width and height of the only image before it is turned upright; it can be read."""
        source = self.image if isinstance(self.image, Path) else self.image()
        if isinstance(source, str | Path | bytes):
            data = source if isinstance(source, bytes) else Path(source).read_bytes()
            return Image.open(io.BytesIO(data)).size
        return source.size if isinstance(source, Image.Image) else load_image(source).size_wh

    def image_keys(self) -> tuple[str, ...]:
        """The `pixel_digest` of each image. Raises as `load_images`."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # training and evaluation read the images again
            return tuple(pixel_digest(image) for image in self.load_images())


def pixel_digest(image: LoadedImage) -> str:
    """The same for the same upright pixels, in whatever file they are."""
    digest = hashlib.blake2b(repr(image.size_wh).encode(), digest_size=32)
    digest.update(image.rgb.tobytes())
    return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class BadRecord(Result):
    """A record that cannot be used, and why."""

    record_id: str
    where: str
    reason: str


ImageKeys = Mapping[str, tuple[str, ...]]
"""Record id -> digests of its images."""


def image_keys(records: Sequence[Record]) -> ImageKeys:
    """Decodes all images; one that cannot be used is unlike all others, and sorts after them, so
    that it does not become the only validation image."""
    keys: dict[str, tuple[str, ...]] = {}
    for record in records:
        try:
            keys[record.record_id] = record.image_keys()
        except (ImageError, DataError):
            digest = hashlib.sha256(record.record_id.encode()).hexdigest()
            keys[record.record_id] = (f"~{digest}",)
    return keys


def held_out_ids(keys: ImageKeys, share: float) -> frozenset[str]:
    """The ids of this share of the records, at least one, together with all that share an image.

    They are those whose images have the smallest digests, so that a record stays where it is when
    others are added or removed.
    """
    ordered = sorted(_groups(keys), key=lambda group: min(keys[i] for i in group))
    count = max(1, round(share * len(keys)))
    ids: list[str] = []
    for group in ordered:
        if len(ids) >= count:
            break
        ids += group
    return frozenset(ids)


def _groups(keys: ImageKeys) -> list[list[str]]:
    """Record ids, in groups that share no image with each other."""
    parent: dict[str, str] = {}

    def root(image: str) -> str:
        while parent.setdefault(image, image) != image:
            parent[image] = parent[parent[image]]
            image = parent[image]
        return image

    for images in keys.values():
        for image in images[1:]:
            parent[root(image)] = root(images[0])
    groups: dict[str, list[str]] = {}
    for record_id, images in keys.items():
        groups.setdefault(root(images[0]), []).append(record_id)
    return list(groups.values())


def shared_ids(keys: ImageKeys, others: ImageKeys) -> list[str]:
    """The ids of records whose images are among the others' too."""
    images = {image for group in others.values() for image in group}
    return [record_id for record_id, group in keys.items() if images.intersection(group)]


def num_images(keys: ImageKeys) -> int:
    """Number of different images."""
    return len({image for group in keys.values() for image in group})
