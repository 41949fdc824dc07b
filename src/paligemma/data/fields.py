"""The fields of a record as JSON has them: prefix, suffix, references, objects.

    {"prefix": "caption en", "suffix": "a dog"}
    {"prefix": "answer en How many?", "suffix": "2", "references": ["2", "two"]}
    {"prefix": "caption en", "references": ["a dog", "one dog"]}         one is learned at a time
    {"objects": [{"label": "dog", "box_xyxy": [10, 20, 90, 80]}]}        prefix and suffix are made
    {"objects": [{"label": "dog", "mask": {"size": [H, W], "counts": ...}}]}
    {"objects": [{"label": "dog", "polygons": [[x1, y1, x2, y2, x3, y3]]}]}

Boxes and polygons are in pixels of the upright picture. `id` names a record. Other fields are
left alone. Knows no files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from paligemma.data.annotation import box_of_mask, make_object
from paligemma.data.mask_shapes import (
    box_of_points,
    points_of,
    polygons_to_mask,
    rle_to_mask,
)
from paligemma.data.record import Record, TrueObject
from paligemma.errors import DataError
from paligemma.processor.image import ImageSource, read_size_wh


def record_of_fields(
    fields: Mapping[str, Any],
    *,
    record_id: str,
    where: str,
    image: Path | Callable[[], ImageSource],
    default_prefix: str | None,
    tally: Counter[str],
) -> Record:
    """Checks everything but the pixels. Raises DataError or ImageError.

    The picture's header is read where there are objects.
    """
    prefix, suffix = fields.get("prefix", default_prefix), fields.get("suffix")
    references, items = fields.get("references"), fields.get("objects")
    is_text = isinstance(suffix, str) or (suffix is None and (references or items is not None))
    if not is_text or not (isinstance(prefix, str) or (prefix is None and items is not None)):
        raise DataError(
            f'{where} must be an object with text under "image", "prefix" and "suffix"; '
            '"references" (a list of texts) or "objects" may take the place of "suffix".'
        )
    if references is not None and not _are_texts(references):
        raise DataError(f'{where}: "references" is {references!r}; a list of texts is needed.')
    if items is not None and not isinstance(items, list):
        raise DataError(f'{where}: "objects" is no list; a list of objects is needed.')
    if items is None and not (suffix or "").strip() and not references:
        raise DataError(f"{where} has an empty suffix, from which nothing is learned. Fill it.")
    size_wh = None
    objects: tuple[TrueObject, ...] | None = None
    if items is not None:
        size_wh = read_size_wh(image if isinstance(image, Path) else image())
        objects = tuple(_object(item, size_wh, where, tally) for item in items)
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


def _are_texts(values: Any) -> bool:
    return (
        isinstance(values, list)
        and bool(values)
        and all(isinstance(value, str) and value.strip() for value in values)
    )


def _object(item: Any, size_wh: tuple[int, int], where: str, tally: Counter[str]) -> TrueObject:
    if not isinstance(item, dict):
        raise DataError(
            f'{where}: an object is {item!r}; {{"label": ..., "box_xyxy": [x1, y1, x2, y2]}} is '
            "needed."
        )
    box, make_mask = item.get("box_xyxy"), None
    if item.get("mask") is not None:
        make_mask = partial(rle_to_mask, item["mask"], size_wh, where)
        box = box_of_mask(make_mask(), where) if box is None else box
    elif item.get("polygons") is not None:
        make_mask = partial(polygons_to_mask, item["polygons"], size_wh, where)
        box = _box_of_polygons(item["polygons"], where) if box is None else box
    if box is None:
        raise DataError(f'{where}: an object has neither "box_xyxy" nor "mask" nor "polygons".')
    return make_object(item.get("label"), box, size_wh, where, tally, make_mask)


def _box_of_polygons(polygons: Any, where: str) -> tuple[float, float, float, float]:
    if not isinstance(polygons, list) or not polygons:
        raise DataError(f'{where}: "polygons" is {polygons!r}; a list of polygons is needed.')
    boxes = [box_of_points(points_of(polygon, where)) for polygon in polygons]
    x1s, y1s, x2s, y2s = zip(*boxes, strict=True)
    return min(x1s), min(y1s), max(x2s), max(y2s)
