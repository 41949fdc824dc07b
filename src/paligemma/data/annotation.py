"""Labels, boxes and records as annotators write them: checked, cleaned, moved into the image.

A record's fields in JSON, as JSON Lines and tar shards have them:

    {"prefix": "caption en", "suffix": "a dog"}
    {"prefix": "answer en How many?", "suffix": "2", "references": ["2", "two"]}
    {"prefix": "caption en", "references": ["a dog", "one dog"]}         one is learned per epoch
    {"objects": [{"label": "dog", "box_xyxy": [10, 20, 90, 80]}]}        prefix and suffix are built
    {"objects": [{"label": "dog", "mask": {"size": [H, W], "counts": ...}}]}
    {"objects": [{"label": "dog", "polygons": [[x1, y1, x2, y2, x3, y3]]}]}

Boxes and polygons are in pixels of the upright image. `id` names a record. Other fields are
ignored.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from paligemma.data.record import Record, TrueObject
from paligemma.data.source import Boxes, ReadOptions
from paligemma.errors import DataError
from paligemma.masks import Mask, box_of_points, points_of, polygons_to_mask, rle_to_mask
from paligemma.processor.image import LARGEST_PIXELS, ImageSource, read_size_wh
from paligemma.results import BoxXyxy
from paligemma.tasks.parse_prompt import kind_of_prompt

MAX_OVERHANG = 2.0
"""Pixels by which a box may extend beyond its image: tools round, and count from 0 or 1."""
CLIPPED = "boxes clipped to their image, beyond which they extended by at most 2 pixels"
_SPECIAL_TOKEN = re.compile(r"<(loc\d{4}|seg\d{3})>")


def clean_label(label: object, where: str) -> str:
    """The label with single spaces.

    Raises DataError for an empty one, and for one that would not be read back as one label.

    >>> clean_label(" traffic  light", "")
    'traffic light'
    """
    text = " ".join(label.split()) if isinstance(label, str) else ""
    if not text:
        raise DataError(f"{where}: an object has the label {label!r}; it must be a name.")
    if ";" in text or _SPECIAL_TOKEN.search(text):
        raise DataError(
            f"{where}: the label {text!r} contains a semicolon or a location token, which have a "
            "meaning of their own in lists of objects. Rename the class."
        )
    return text


def clean_box(
    box_xyxy: Sequence[float],
    size_wh: tuple[int, int],
    where: str,
    tally: Counter[str],
    boxes: Boxes = "error",
) -> BoxXyxy | None:
    """The box in pixels, clipped to the image; `tally` counts those that were clipped.

    A box without area, or one that extends beyond the image by more than `MAX_OVERHANG` pixels
    (it belongs to another image, or has another unit or order), raises DataError; or, as `boxes`
    says, it is clipped, or None.
    """
    try:
        x1, y1, x2, y2 = (float(edge) for edge in box_xyxy)
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: a box is {box_xyxy!r}; it must be four numbers.") from error
    shown = f"({x1:g}, {y1:g}, {x2:g}, {y2:g})"
    width, height = size_wh
    has_area = all(map(math.isfinite, (x1, y1, x2, y2))) and x1 < x2 and y1 < y2
    inside = (max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height)))
    is_inside = inside[0] < inside[2] and inside[1] < inside[3]
    overhang = max(-x1, -y1, x2 - width, y2 - height)
    if has_area and is_inside and overhang <= MAX_OVERHANG:
        if overhang > 0:
            tally[CLIPPED] += 1
        return inside
    if boxes == "clip" and has_area and is_inside:
        tally["boxes clipped to their image, beyond which they extended further"] += 1
        return inside
    if boxes in ("clip", "drop"):
        tally["objects dropped for a box without area, or beyond the image"] += 1
        return None
    if not has_area:
        is_swapped = x1 > x2 or y1 > y2
        cause = ", as its edges are in the wrong order" if is_swapped else ""
        raise DataError(
            f"{where}: the box {shown} (x1, y1, x2, y2) has no area{cause}. Remove or redraw it, "
            "or drop the object with boxes='drop' (--boxes drop)."
        )
    raise DataError(
        f"{where}: the box {shown} (x1, y1, x2, y2) extends beyond its image of {width} x "
        f"{height} pixels. Check the unit and order of its numbers, and the image; or clip or drop "
        "such boxes: boxes='clip' (--boxes clip)."
    )


def box_of_mask(mask: Mask, where: str) -> BoxXyxy:
    """The box around the mask bool[H, W]. Raises DataError for an empty mask."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        raise DataError(f"{where}: a mask is empty. Remove the object, or redraw it.")
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The outline of an object: run lengths, or polygons x1, y1, x2, y2, ... in pixels."""

    rle: Any = None
    polygons: Any = ()

    @classmethod
    def of_segmentation(cls, segmentation: Any, where: str, tally: Counter[str]) -> Shape | None:
        """Of COCO's field: run lengths, polygons, or one polygon as a list of numbers or points.

        Parts of fewer than three points are dropped and counted; None where nothing is left.
        """
        if not segmentation:  # some exports have an empty list where there are only boxes
            return None
        if isinstance(segmentation, dict):
            return cls(rle=segmentation)
        if not isinstance(segmentation, list):
            raise DataError(f"{where}: the segmentation is {segmentation!r}; it must be polygons.")
        parts = segmentation
        if all(is_number(value) for value in parts) or all(map(_is_point, parts)):
            parts = [parts]
        polygons = [
            [value for point in part for value in point]
            if isinstance(part, list) and part and all(map(_is_point, part))
            else part
            for part in parts
        ]
        whole = [part for part in polygons if not isinstance(part, list) or len(part) >= 6]
        if len(whole) < len(polygons):
            tally["parts of polygons dropped, as they have fewer than three points"] += len(
                polygons
            ) - len(whole)
        return cls(polygons=whole) if whole else None

    def mask(self, size_wh: tuple[int, int], where: str) -> Mask:
        """bool[H, W]. Raises DataError."""
        if self.rle is not None:
            return rle_to_mask(self.rle, size_wh, where)
        return polygons_to_mask(self.polygons, size_wh, where)

    def box(self, size_wh: tuple[int, int], where: str) -> BoxXyxy:
        """The box around it, in pixels. Raises DataError."""
        if self.rle is not None:
            return box_of_mask(self.mask(size_wh, where), where)
        return _box_of_polygons(self.polygons, where)


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_point(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(is_number, value))


@dataclass(frozen=True, kw_only=True)
class AnnotatedImage:
    """An image whose annotations are read: makes its objects, checked, and its record."""

    image: Path | Callable[[], ImageSource]
    size_wh: tuple[int, int]
    where: str
    tally: Counter[str]
    boxes: Boxes = "error"

    def object(
        self,
        label: object,
        box_xyxy: Sequence[float] | None,
        shape: Shape | Callable[[], Mask] | None = None,
        *,
        area: float | None = None,
        where: str = "",
    ) -> TrueObject | None:
        """None for an object that is dropped for its box, as `boxes` says.

        Without a box, it is that around the shape. Raises DataError that begins with `where`, by
        default that of the image.
        """
        where = where or self.where
        label = clean_label(label, where)
        mask_box: Callable[[], BoxXyxy] | None = None
        make_mask: Callable[[], Mask] | None = None
        if isinstance(shape, Shape):
            make_mask = partial(shape.mask, self.size_wh, where)
            mask_box = partial(shape.box, self.size_wh, where)
        elif shape is not None:
            make_mask = shape
        if mask_box is not None and (box_xyxy is None or self.boxes == "from-masks"):
            box_xyxy = mask_box()
        if box_xyxy is None:
            raise DataError(f"{where}: the object {label!r} has neither a box nor a shape.")
        box = clean_box(box_xyxy, self.size_wh, where, self.tally, self.boxes)
        if box is None:
            return None
        return TrueObject(
            label=label, box_xyxy=box, make_mask=make_mask, area=area, mask_box=mask_box
        )

    def record(
        self,
        record_id: str,
        prefix: str | None,
        objects: Iterable[TrueObject | None],
        crowds: Iterable[TrueObject | None] = (),
    ) -> Record:
        """Objects that are None were dropped."""
        return Record(
            record_id=record_id,
            image=self.image,
            prefix=prefix or "",
            objects=tuple(item for item in objects if item is not None),
            crowds=tuple(item for item in crowds if item is not None),
            size_wh=self.size_wh,
            where=self.where,
        )


def size_of(width: Any, height: Any, where: str) -> tuple[int, int] | None:
    """An image's size according to an annotation; None where it has none.

    Raises DataError for anything that is not a size.
    """
    if width in (None, 0, "0", "") and height in (None, 0, "0", ""):
        return None
    try:
        size = int(width), int(height)
    except (TypeError, ValueError, OverflowError):
        size = 0, 0
    if min(size) < 1 or size[0] * size[1] > LARGEST_PIXELS:
        raise DataError(
            f"{where}: the image's size is given as {width!r} x {height!r}; it must be two whole "
            f"numbers above 0, with at most {LARGEST_PIXELS} pixels."
        )
    return size


def record_of_fields(
    fields: Mapping[str, Any],
    *,
    record_id: str,
    where: str,
    image: Path | Callable[[], ImageSource],
    options: ReadOptions,
    tally: Counter[str],
) -> Record:
    """A record from its fields in JSON, with everything checked but the pixels.

    The image's header is read where there are objects. Raises DataError or ImageError.
    """
    prefix, suffix = fields.get("prefix", options.prefix), fields.get("suffix")
    references, items = fields.get("references"), fields.get("objects")
    _check_fields(prefix, suffix, references, items, where)
    size_wh = None
    objects: tuple[TrueObject, ...] | None = None
    if items is not None:
        size_wh = read_size_wh(image if isinstance(image, Path) else image())
        annotated = AnnotatedImage(
            image=image, size_wh=size_wh, where=where, tally=tally, boxes=options.boxes
        )
        made = [_object(item, annotated) for item in items]
        objects = tuple(item for item in made if item is not None)
        if suffix:
            tally["records with a suffix and objects, of which the suffix is learned"] += 1
    return Record(
        record_id=record_id,
        image=image,
        prefix=prefix or "",
        suffix=suffix or "",
        objects=objects,
        references=tuple(references or ((suffix,) if suffix else ())),
        size_wh=size_wh,
        where=where,
    )


def _check_fields(prefix: Any, suffix: Any, references: Any, items: Any, where: str) -> None:
    has_suffix = isinstance(suffix, str) or (suffix is None and (references or items is not None))
    has_prefix = isinstance(prefix, str) or (prefix is None and items is not None)
    if not has_suffix or not has_prefix:
        raise DataError(
            f'{where} must be an object with text under "image", "prefix" and "suffix"; instead '
            'of "suffix" it may have "references" (a list of texts) or "objects".'
        )
    if references is not None and not _are_texts(references):
        raise DataError(f'{where}: "references" is {references!r}; it must be a list of texts.')
    if items is not None and not isinstance(items, list):
        raise DataError(f'{where}: "objects" is {items!r}; it must be a list of objects.')
    # An empty list of objects is an answer: the model learns that nothing of it is in the image.
    may_be_empty = kind_of_prompt(prefix or "") in ("detect", "segment") and suffix == ""
    if items is None and not (suffix or "").strip() and not references and not may_be_empty:
        raise DataError(
            f"{where} has an empty suffix, so nothing is learned from it. Fill it in; only detect "
            "and segment may have none, for an image without objects."
        )


def _are_texts(values: Any) -> bool:
    return (
        isinstance(values, list)
        and bool(values)
        and all(isinstance(value, str) and value.strip() for value in values)
    )


def _object(item: Any, image: AnnotatedImage) -> TrueObject | None:
    where = image.where
    if not isinstance(item, dict):
        raise DataError(
            f"{where}: an object is {item!r}; it must look like "
            '{"label": ..., "box_xyxy": [x1, y1, x2, y2]}.'
        )
    shape = None
    if item.get("mask") is not None:
        shape = Shape(rle=item["mask"])
        shape.mask(image.size_wh, where)  # raises for run lengths of another image
    elif item.get("polygons") is not None:
        shape = Shape(polygons=item["polygons"])
    if item.get("box_xyxy") is None and shape is None:
        raise DataError(f'{where}: an object has none of "box_xyxy", "mask" and "polygons".')
    return image.object(item.get("label"), item.get("box_xyxy"), shape)


def _box_of_polygons(polygons: Any, where: str) -> BoxXyxy:
    if not isinstance(polygons, list) or not polygons:
        raise DataError(f'{where}: "polygons" is {polygons!r}; it must be a list of polygons.')
    boxes = [box_of_points(points_of(polygon, where)) for polygon in polygons]
    x1s, y1s, x2s, y2s = zip(*boxes, strict=True)
    return min(x1s), min(y1s), max(x2s), max(y2s)
