"""Files of annotation programs: CVAT, LabelMe, Label Studio, Labelbox, VGG VIA and CreateML.

    cvat          <annotations> with <image name=...> and <box>, <polygon>, <ellipse>, <mask>
    labelme       a JSON file per image, with "shapes"
    labelstudio   a JSON list of tasks with "annotations", or JSON-MIN; in percent of the image
    labelbox      a JSON line per image with "data_row" and "projects", or a list of "Labeled Data"
    via           a JSON object of files with "regions", or a project with "_via_img_metadata"
    createml      a JSON list of {"image", "annotations": [{"label", "coordinates"}]}

Boxes, polygons and brush masks are read; rotated boxes, circles and ellipses become polygons.
Points and lines are left out and counted. Images are found by name, wherever the program had them.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt
from PIL import Image

from paligemma.data.annotation import AnnotatedImage, Shape, box_of_mask, size_of
from paligemma.data.formats.jsonl import LABELBOX_MARKS
from paligemma.data.formats.voc import parse_xml
from paligemma.data.record import Record, TrueObject
from paligemma.data.source import (
    IMAGE_SUFFIXES,
    Entry,
    ImageFinder,
    Marks,
    ReadRequest,
    Source,
    begins_with,
    choose_split,
    is_split_name,
    read_text,
)
from paligemma.errors import DataError, OptionError, counted
from paligemma.masks import Mask
from paligemma.processor.image import LARGEST_PIXELS, read_size_wh
from paligemma.results import BoxXyxy

_NO_AREA = "points, lines and other annotations without an area, left out"
_CORNERS = 36  # of the polygon that stands for an ellipse
Points = list[tuple[float, float]]


class ToolObject(NamedTuple):
    """An object as a program describes it, in pixels."""

    label: Any
    box_xyxy: BoxXyxy | None = None
    shape: Shape | Callable[[], Mask] | None = None


class ToolImage(NamedTuple):
    """An image and its annotations, not converted yet."""

    record_id: str
    names: tuple[str, ...]
    """The image's name, and other names that it may have."""
    size_wh: tuple[Any, Any]
    items: Sequence[Any] | None
    """None for an image that nobody has labeled, which is not the same as one without objects."""
    convert: Callable[[Any, tuple[int, int]], ToolObject | None]
    """One item of an image of this size; None for what is neither a box nor a region."""
    split: str = ""


@dataclass(frozen=True, kw_only=True)
class ToolReader:
    """The reader of one program's files."""

    NAME: str
    suffixes: tuple[str, ...]
    marks: Marks
    """A file is the program's if its beginning holds all marks of one of the groups."""
    parse: Callable[[Path, ReadRequest], Iterator[ToolImage]]
    """Raises DataError for a file that is not the program's."""
    has_file_per_image: bool = False

    def recognizes(self, path: Path) -> bool:
        """One of the program's files, or a folder that holds some."""
        return bool(self._files(path))

    def read(self, path: Path, options: ReadRequest) -> Source:
        """Raises DataError, and OptionError where several files could be meant."""
        groups = {"": [path]} if path.is_file() else self._files(path)
        splits, split, files = tuple(groups), "", groups.get("", [])
        if set(groups) != {""}:
            split, files = choose_split(groups, options, str(path))
        if len(files) > 1 and not self.has_file_per_image:
            names = ", ".join(map(str, files))
            raise OptionError(f"Several files could be meant: {names}. Give one as the data.")
        tally: Counter[str] = Counter()
        root = path if path.is_dir() else path.parent
        folders = [options.images] if options.images else [files[0].parent, root / "images", root]
        reading = _Reading(finder=ImageFinder(folders, tally), options=options, tally=tally)
        by_split: dict[str, list[Entry]] = {}
        for file in files:
            for image in self.parse(file, options):
                if image.items is None:
                    tally["images that nobody has labeled, left out"] += 1
                    continue
                where = f"Image {image.names[0]!r} of {str(file)!r}"
                build = partial(reading.record, image, where)
                by_split.setdefault(image.split, []).append(Entry(image.record_id, where, build))
        entries = [entry for group in by_split.values() for entry in group]
        if not split and (len(by_split) > 1 or options.split is not None):
            splits, (split, entries) = tuple(by_split), choose_split(by_split, options, str(path))
        if not entries:
            raise DataError(
                f"{str(path)!r} lists no images"
                + (" that somebody has labeled." if tally.total() else ".")
            )
        return Source(
            summary=f"{counted(len(entries), 'image')} in {counted(len(files), 'file')} of {path}",
            entries=entries,
            tally=tally,
            split=split or None,
            splits=tuple(filter(None, splits)),
        )

    def _files(self, path: Path) -> dict[str, list[Path]]:
        """By split, which is the folder of a file where it is named as one."""
        if path.is_file():
            is_file = path.suffix.lower() in self.suffixes and begins_with(path, self.marks)
            return {"": [path]} if is_file else {}
        groups: dict[str, list[Path]] = {}
        patterns = [f"{folder}*{suffix}" for suffix in self.suffixes for folder in ("", "*/")]
        for file in sorted(file for pattern in patterns for file in path.glob(pattern)):
            if not file.name.startswith(".") and begins_with(file, self.marks):
                name = file.parent.name
                split = name if file.parent != path and is_split_name(name) else ""
                groups.setdefault(split, []).append(file)
        return groups


@dataclass(frozen=True, kw_only=True)
class _Reading:
    """What the records of one data set have in common."""

    finder: ImageFinder
    options: ReadRequest
    tally: Counter[str]

    def record(self, image: ToolImage, where: str) -> Record:
        name, *more = image.names
        if not name:
            raise DataError(f"{where}, {image.record_id}, names no image.")
        path = self.finder.find(name, where, more)
        size_wh = size_of(*image.size_wh, where) or read_size_wh(path)
        annotated = AnnotatedImage(
            image=path, size_wh=size_wh, where=where, tally=self.tally, boxes=self.options.boxes
        )
        num_left_out = self.tally[_NO_AREA]
        objects = [self._object(item, image, annotated) for item in image.items or ()]
        if objects and self.tally[_NO_AREA] == num_left_out + len(objects):
            self.tally["images with points or lines alone, taken to show no object"] += 1
        return annotated.record(image.record_id, self.options.prefix, objects)

    def _object(self, item: Any, image: ToolImage, annotated: AnnotatedImage) -> TrueObject | None:
        try:
            found = image.convert(item, annotated.size_wh)
        except DataError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise DataError(
                f"{annotated.where}: an annotation cannot be read: {type(error).__name__} {error}."
            ) from error
        if found is None:
            self.tally[_NO_AREA] += 1
            return None
        return annotated.object(found.label, found.box_xyxy, found.shape)


def _json(file: Path) -> Any:
    try:
        return json.loads(read_text(file))
    except (ValueError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{str(file)!r} is not JSON: {error}.") from error


def _polygon(points: Points) -> Shape:
    return Shape(polygons=[[float(value) for point in points for value in point]])


def _ellipse(x: float, y: float, rx: float, ry: float, angle: float = 0.0) -> Shape:
    """Around a center; the angle is in radians."""
    steps = [2 * math.pi * step / _CORNERS for step in range(_CORNERS)]
    return _turned([(rx * math.cos(a), ry * math.sin(a)) for a in steps], (x, y), angle)


def _turned(points: Points, origin: tuple[float, float], angle: float) -> Shape:
    """Points relative to an origin, turned clockwise (as y points down) by radians."""
    sine, cosine = math.sin(angle), math.cos(angle)
    x, y = origin
    return _polygon([(x + cosine * u - sine * v, y + sine * u + cosine * v) for u, v in points])


def _box_at(x: float, y: float, width: float, height: float) -> BoxXyxy:
    return x, y, x + width, y + height


# CVAT


def _cvat(file: Path, options: ReadRequest) -> Iterator[ToolImage]:
    root = parse_xml(file, repr(str(file)))
    if root.find("track") is not None:
        raise DataError(f"{str(file)!r} is of a video. Export 'CVAT for images' instead.")
    for image in root.iter("image"):
        name = image.get("name", "")
        size = image.get("width"), image.get("height")
        items = [item for item in image if item.get("label") and item.tag != "tag"]
        yield ToolImage(name, (name,), size, items, _cvat_object, image.get("subset", ""))


def _cvat_object(item: ElementTree.Element, size_wh: tuple[int, int]) -> ToolObject | None:
    label = item.get("label")

    def numbers(*names: str) -> list[float]:
        return [float(item.get(name, "")) for name in names]

    if item.tag == "box":
        x1, y1, x2, y2 = numbers("xtl", "ytl", "xbr", "ybr")
        if not (angle := float(item.get("rotation", 0))):
            return ToolObject(label, (x1, y1, x2, y2))
        u, v = (x2 - x1) / 2, (y2 - y1) / 2
        corners = [(-u, -v), (u, -v), (u, v), (-u, v)]
        return ToolObject(label, None, _turned(corners, (x1 + u, y1 + v), math.radians(angle)))
    if item.tag == "polygon":
        pairs = [point.split(",") for point in item.get("points", "").split(";")]
        return ToolObject(label, None, _polygon([(float(x), float(y)) for x, y in pairs]))
    if item.tag == "ellipse":
        x, y, rx, ry = numbers("cx", "cy", "rx", "ry")
        angle = math.radians(float(item.get("rotation", 0)))
        return ToolObject(label, None, _ellipse(x, y, rx, ry, angle))
    if item.tag == "mask":
        left, top, width, height = map(int, numbers("left", "top", "width", "height"))
        runs = [int(run) for run in item.get("rle", "").split(",")]
        if min(runs) < 0 or sum(runs) != width * height or sum(runs) > LARGEST_PIXELS:
            raise ValueError(f"the runs of a mask do not have {width} x {height} pixels")
        flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)  # along the rows, unlike COCO's
        return _masked(label, flat.reshape(height, width), (left, top), size_wh)
    return None


def _masked(
    label: Any, part: Mask, corner: tuple[int, int], size_wh: tuple[int, int]
) -> ToolObject:
    """The object whose mask has its upper left corner at x, y of the image."""
    x1, y1, x2, y2 = box_of_mask(part, repr(label))
    x, y = corner
    box = x + x1, y + y1, x + x2, y + y2
    return ToolObject(label, box, partial(_placed, part, corner, size_wh))


def _placed(part: Mask, corner: tuple[int, int], size_wh: tuple[int, int]) -> Mask:
    """bool[H, W]: a mask whose upper left corner is at x, y of the image."""
    mask = np.zeros((size_wh[1], size_wh[0]), np.bool_)
    x, y = max(corner[0], 0), max(corner[1], 0)
    inside = part[y - corner[1] :, x - corner[0] :][: size_wh[1] - y, : size_wh[0] - x]
    mask[y : y + inside.shape[0], x : x + inside.shape[1]] = inside
    return mask


# LabelMe


def _labelme(file: Path, options: ReadRequest) -> Iterator[ToolImage]:
    content = _json(file)
    if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
        raise DataError(f"{str(file)!r} has no list of shapes.")
    own = [file.stem + suffix for suffix in IMAGE_SUFFIXES]
    names = tuple(filter(None, (content.get("imagePath"), *own)))
    size = content.get("imageWidth"), content.get("imageHeight")
    yield ToolImage(file.stem, names, size, content["shapes"], _labelme_object)


def _labelme_object(item: dict[str, Any], size_wh: tuple[int, int]) -> ToolObject | None:
    label, points = item["label"], [(float(x), float(y)) for x, y in item["points"]]
    kind = item.get("shape_type") or "polygon"
    if kind in ("rectangle", "mask"):
        xs, ys = zip(*points, strict=True)
        box = min(xs), min(ys), max(xs), max(ys)
        if kind == "rectangle" or not item.get("mask"):
            return ToolObject(label, box)
        try:
            part = (
                np.asarray(Image.open(io.BytesIO(base64.b64decode(item["mask"]))).convert("L")) > 0
            )
        except (OSError, binascii.Error) as error:
            raise DataError(f"The mask of {label!r} is not a PNG file: {error}.") from error
        return _masked(label, part, (round(box[0]), round(box[1])), size_wh)
    if kind == "circle":
        center, edge = points
        radius = math.dist(center, edge)
        return ToolObject(label, None, _ellipse(*center, radius, radius))
    if kind in ("polygon", "rotation") and len(points) > 2:
        return ToolObject(label, None, _polygon(points))
    return None


# Label Studio


def _label_studio(file: Path, options: ReadRequest) -> Iterator[ToolImage]:
    content = _json(file)
    if not isinstance(content, list) or not all(isinstance(task, dict) for task in content):
        raise DataError(f"{str(file)!r} is not a list of Label Studio's tasks.")
    for number, task in enumerate(content):
        data = task.get("data", task)
        name = data.get("image") if isinstance(data, dict) else None
        if not isinstance(name, str):
            texts = [v for v in dict(data).values() if isinstance(v, str)]
            name = next((t for t in texts if Path(t).suffix.lower() in IMAGE_SUFFIXES), "")
        yield ToolImage(
            f"task {task.get('id', number)}",
            _label_studio_names(name, task.get("file_upload")),
            (None, None),
            _label_studio_results(task),
            _label_studio_object,
        )


def _label_studio_names(name: str, upload: Any) -> tuple[str, ...]:
    """Uploads get eight digits before the name; local files are in a query: ?d=images/1.jpg."""
    names = [name.rpartition("?d=")[2]]
    names += [upload] if isinstance(upload, str) else []
    last = names[-1].replace("\\", "/").rpartition("/")[2]
    prefix, dash, rest = last.partition("-")
    if dash and len(prefix) == 8:
        names.append(rest)
    # The folders of a server are not those of this machine.
    return tuple(dict.fromkeys((*names, last)))


def _label_studio_results(task: dict[str, Any]) -> list[Any] | None:
    if "annotations" not in task and "completions" not in task:  # JSON-MIN
        if "data" in task:  # a task to import: it has predictions at most
            return None
        lists = [value for value in task.values() if isinstance(value, list)]
        items = [item for value in lists for item in value if isinstance(item, dict)]
        return [{"value": item, **item} for item in items if "original_width" in item]
    annotations = task.get("annotations", task.get("completions")) or []
    annotations = [item for item in annotations if not item.get("was_cancelled")]
    if not annotations:
        return None
    if len(annotations) > 1:
        return [len(annotations)]  # said where the record is built
    results = [item for annotation in annotations for item in annotation.get("result", [])]
    return [item for item in results if item.get("type") not in ("choices", "textarea", "relation")]


def _label_studio_object(item: Any, size_wh: tuple[int, int]) -> ToolObject | None:
    if isinstance(item, int):
        raise DataError(
            f"A task has {item} annotations, by several people or at several times. Keep one."
        )
    value = item["value"]
    labels = [text for key, texts in value.items() if key.endswith("labels") for text in texts]
    label = labels[0] if len(labels) == 1 else None
    width, height = size_wh[0] / 100, size_wh[1] / 100
    angle = math.radians(value.get("rotation") or 0)
    if "points" in value:
        return ToolObject(
            label, None, _polygon([(x * width, y * height) for x, y in value["points"]])
        )
    if "radiusX" in value:
        center = value["x"] * width, value["y"] * height
        radii = value["radiusX"] * width, value["radiusY"] * height
        return ToolObject(label, None, _ellipse(*center, *radii, angle))
    if "rle" in value:
        stored = int(item["original_width"]), int(item["original_height"])
        if stored != size_wh:
            raise DataError(
                f"The brush mask of {label!r} is for an image of {stored[0]} x {stored[1]} pixels; "
                f"the image has {size_wh[0]} x {size_wh[1]}."
            )
        rgba = _brush_bytes(value["rle"], 4 * size_wh[0] * size_wh[1])
        mask = rgba.reshape(size_wh[1], size_wh[0], 4)[..., 3] > 0
        return _masked(label, mask, (0, 0), size_wh)
    if "width" not in value:
        return None
    x, y, w, h = (
        value["x"] * width,
        value["y"] * height,
        value["width"] * width,
        value["height"] * height,
    )
    if not angle:
        return ToolObject(label, _box_at(x, y, w, h))
    return ToolObject(label, None, _turned([(0, 0), (w, 0), (w, h), (0, h)], (x, y), angle))


def _brush_bytes(rle: Sequence[int], count: int) -> npt.NDArray[np.uint8]:
    """Label Studio's brush strokes, in the code of the npm package @thi.ng/rle-pack, as uint8.

    Of `count` values, in bits, high bits first: 32 bits the count, 5 the bits per value - 1,
    4 x 4 the bits per length - 1; then runs of 1 bit (whether one value is repeated, or each value
    follows), 2 bits (which of the four), the length - 1, and the values. Raises ValueError.
    """
    data, position = bytes(rle), 0

    def read(size: int) -> int:
        nonlocal position
        end = position + size
        if end > 8 * len(data):
            raise ValueError("the run lengths of a brush mask are cut short")
        window = int.from_bytes(data[position // 8 : -(-end // 8)])
        position = end
        return window >> (-end % 8) & ((1 << size) - 1)

    if (stored := read(32)) != count:
        raise ValueError(f"a brush mask has {stored} values; its image needs {count}")
    value_bits = read(5) + 1
    length_bits = [read(4) + 1 for _ in range(4)]
    values = np.zeros(count, np.uint8)
    start = 0
    while start < count:
        is_repeated = read(1)
        end = start + 1 + read(length_bits[read(2)])
        if is_repeated:
            values[start:end] = read(value_bits) & 255
        else:
            values[start:end] = [read(value_bits) & 255 for _ in range(min(end, count) - start)]
        start = end
    return values


# Labelbox


def _labelbox(file: Path, options: ReadRequest) -> Iterator[ToolImage]:
    if file.suffix.lower() == ".json":
        rows = _json(file)
    else:
        lines = [line for line in read_text(file).split("\n") if line.strip()]
        try:
            rows = [json.loads(line) for line in lines]
        except (ValueError, RecursionError) as error:
            raise DataError(f"{str(file)!r} is not JSON Lines: {error}.") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{str(file)!r} is not a list of Labelbox's images.")
    for number, row in enumerate(rows):
        try:
            yield _labelbox_image(row, number)
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"Image {number} of {str(file)!r} is not in Labelbox's form: "
                f"{type(error).__name__} {error}."
            ) from error


def _labelbox_image(row: dict[str, Any], number: int) -> ToolImage:
    if "data_row" not in row:  # the first form of exports
        label = row.get("Label")  # {} or "Skip" for an image that was not labeled
        labels, size = [label] if isinstance(label, dict) and label else [], (None, None)
        names = [row.get("External ID"), row["Labeled Data"]]
        record_id = row.get("ID") or f"image {number}"
    else:
        media = row.get("media_attributes") or {}
        size = media.get("width"), media.get("height")
        projects = (row.get("projects") or {}).values()
        labels = [label["annotations"] for project in projects for label in project["labels"]]
        data = row["data_row"]
        names = [data.get("external_id"), data.get("global_key"), data.get("row_data")]
        record_id = data.get("id") or f"image {number}"
    if any(label and "objects" not in label and "classifications" not in label for label in labels):
        raise TypeError("classes as keys, an old form in which y may be counted from the bottom;")
    items = [item for label in labels for item in label.get("objects") or ()]
    is_labeled = bool(labels) and not row.get("Skipped")
    paths = [name.partition("?")[0] for name in names if isinstance(name, str) and name]
    return ToolImage(
        str(record_id),
        tuple(dict.fromkeys((*paths, *(path.rpartition("/")[2] for path in paths)))) or ("",),
        size,
        ([len(labels)] if len(labels) > 1 else items) if is_labeled else None,
        _labelbox_object,
    )


def _labelbox_object(item: Any, size_wh: tuple[int, int]) -> ToolObject | None:
    if isinstance(item, int):
        raise DataError(f"An image has {item} sets of labels, of several people. Keep one.")
    label = item.get("name") or item.get("title") or item.get("value")
    if box := item.get("bounding_box") or item.get("bbox"):
        return ToolObject(label, _box_at(box["left"], box["top"], box["width"], box["height"]))
    if polygon := item.get("polygon"):
        return ToolObject(label, None, _polygon([(point["x"], point["y"]) for point in polygon]))
    if item.keys() & {"mask", "composite_mask", "instanceURI"}:
        raise DataError(
            f"The mask of {label!r} is a web address, from which nothing is read. Export polygons "
            "or boxes, or download the masks and give them as folders of images and masks."
        )
    return None


# VGG VIA


def _via(file: Path, options: ReadRequest) -> Iterator[ToolImage]:
    content = _json(file)
    files = content.get("_via_img_metadata", content) if isinstance(content, dict) else None
    if not isinstance(files, dict):
        raise DataError(f"{str(file)!r} is not an object of VIA's files.")
    convert = partial(_via_object, options.column)
    for key, image in files.items():
        if not isinstance(image, dict) or not isinstance(image.get("filename"), str):
            raise DataError(f"{str(file)!r}: {key!r} has no filename.")
        regions = image.get("regions") or []
        items = list(regions.values()) if isinstance(regions, dict) else regions
        yield ToolImage(image["filename"], (image["filename"],), (None, None), items, convert)


def _via_object(
    column: str | None, item: dict[str, Any], size_wh: tuple[int, int]
) -> ToolObject | None:
    shape, label = item["shape_attributes"], _via_label(item.get("region_attributes"), column)
    kind = shape["name"]
    if kind == "rect":
        return ToolObject(label, _box_at(*(shape[n] for n in ("x", "y", "width", "height"))))
    if kind == "polygon":
        points = zip(shape["all_points_x"], shape["all_points_y"], strict=True)
        return ToolObject(label, None, _polygon(list(points)))
    if kind in ("circle", "ellipse"):
        rx, ry = shape.get("r", shape.get("rx")), shape.get("r", shape.get("ry"))
        return ToolObject(
            label, None, _ellipse(shape["cx"], shape["cy"], rx, ry, shape.get("theta", 0))
        )
    return None


def _via_label(attributes: Any, column: str | None) -> str:
    """The value of the only attribute, or of the chosen one; {"cat": true} is "cat"."""
    values: dict[str, str] = {}
    for name, value in dict(attributes or {}).items():
        if isinstance(value, dict):
            value = ", ".join(key for key, is_set in value.items() if is_set)
        if value:
            values[name] = str(value)
    if column in values:
        return values[column]
    if len(values) != 1:
        raise DataError(
            f"A region has the attributes {', '.join(values) or 'none'}; one must be its class. "
            "Choose it with --column."
        )
    return next(iter(values.values()))


# CreateML


def _create_ml(file: Path, options: ReadRequest) -> Iterator[ToolImage]:
    content = _json(file)
    if not isinstance(content, list) or not all(isinstance(image, dict) for image in content):
        raise DataError(f"{str(file)!r} is not a list of CreateML's images.")
    for number, image in enumerate(content):
        name = image.get("image", image.get("imagefilename"))
        if not isinstance(name, str):
            raise DataError(f"Item {number} of {str(file)!r} names no image.")
        items = image.get("annotations", image.get("annotation")) or []
        yield ToolImage(name, (name,), (None, None), items, _create_ml_object)


def _create_ml_object(item: dict[str, Any], size_wh: tuple[int, int]) -> ToolObject:
    place = item["coordinates"]
    x, y, width, height = (float(place[n]) for n in ("x", "y", "width", "height"))
    return ToolObject(item["label"], _box_at(x - width / 2, y - height / 2, width, height))


TOOL_READERS = (
    ToolReader(NAME="cvat", suffixes=(".xml",), marks=((b"<annotations",),), parse=_cvat),
    ToolReader(
        NAME="labelme",
        suffixes=(".json",),
        marks=((b'"shapes"', b'"version"'), (b'"shapes"', b'"imagePath"'), (b'"shape_type"',)),
        parse=_labelme,
        has_file_per_image=True,
    ),
    ToolReader(
        NAME="labelstudio",
        suffixes=(".json",),
        marks=(
            (b'"annotations"', b'"result"'),
            (b'"completions"', b'"result"'),
            (b'"original_width"',),
            (b'"completed_by"',),
        ),
        parse=_label_studio,
    ),
    ToolReader(
        NAME="labelbox",
        suffixes=(".ndjson", ".jsonl", ".json"),
        marks=LABELBOX_MARKS,
        parse=_labelbox,
    ),
    ToolReader(
        NAME="via",
        suffixes=(".json",),
        marks=((b'"_via_img_metadata"',), (b'"_via_settings"',), (b'"regions"', b'"filename"')),
        parse=_via,
    ),
    ToolReader(
        NAME="createml",
        suffixes=(".json",),
        marks=((b'"coordinates"', b'"image'),),
        parse=_create_ml,
    ),
)
