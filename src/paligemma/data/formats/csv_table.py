"""CSV: a row per object, with its image, its box in pixels and its class.

    image,xmin,ymin,xmax,ymax,label
    filename,width,height,class,xmin,ymin,xmax,ymax     TensorFlow's tutorials; size of the image
    dogs/1.jpg,837,346,981,456,cow                      keras-retinanet: without a header, read as
    dogs/2.jpg,,,,,                                     --format retinanet alone; no object

Columns are known by their names, in any order; a row without a box is an image without objects.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from paligemma.data.annotation import AnnotatedImage, size_of
from paligemma.data.formats.yolo import names_in
from paligemma.data.record import Record, TrueObject
from paligemma.data.source import (
    Entry,
    ImageFinder,
    ReadRequest,
    Source,
    choose_split,
    is_split_name,
    read_head,
    read_text,
)
from paligemma.errors import DataError, OptionError, counted
from paligemma.processor.image import read_size_wh

_IMAGE = ("image", "filename", "file_name", "image_name", "image_path", "img_path", "path", "file")
_LABEL = ("label", "class", "class_name", "classname", "category", "name")
_CORNERS = (
    ("xmin", "ymin", "xmax", "ymax"),
    ("x_min", "y_min", "x_max", "y_max"),
    ("x1", "y1", "x2", "y2"),
    ("left", "top", "right", "bottom"),
)
_RETINANET = ("path", "x1", "y1", "x2", "y2", "class")

Row = Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class CsvReader:
    """The reader of files with a header, or of files whose columns are given."""

    NAME: str
    columns: tuple[str, ...] = ()

    def recognizes(self, path: Path) -> bool:
        """A file whose header names an image and a box, or a folder with such files."""
        return not self.columns and bool(_files(path))

    def read(self, path: Path, options: ReadRequest) -> Source:
        """Raises DataError, and OptionError where several files or columns could be meant."""
        files = _files(path) if path.is_dir() else {"": [path]}
        split, chosen = choose_split(files, options, str(path))
        if len(chosen) > 1:
            names = ", ".join(map(str, chosen))
            raise OptionError(f"Several files could be meant: {names}. Give one as the data.")
        (file,) = chosen
        header, rows = _parse(file, self.columns)
        columns = _Columns.of(header, options.column, file)
        by_image: dict[str, list[tuple[int, Row]]] = {}
        for number, row in rows:
            by_image.setdefault(row[columns.image].strip(), []).append((number, row))
        tally: Counter[str] = Counter()
        for other in header:
            if other in _IMAGE and other != columns.image:
                tally[f"column {other} was not used, as the images are in {columns.image}"] = 1
        root = path if path.is_dir() else path.parent
        folders = [options.images] if options.images else [file.parent, root / "images", root]
        class_names = {} if options.class_names is None else names_in(options.class_names)
        reading = _Reading(
            file=file,
            columns=columns,
            class_names={str(number): name for number, name in class_names.items()},
            finder=ImageFinder(folders, tally),
            options=options,
            tally=tally,
        )
        entries = [
            Entry(image, f"Image {image!r} of {str(file)!r}", partial(reading.record, image, items))
            for image, items in by_image.items()
        ]
        if not entries:
            raise DataError(f"{str(file)!r} lists no images.")
        labels = {row[columns.label].strip() for _, row in rows} - {""}
        if options.class_names is None and labels and all(label.isdecimal() for label in labels):
            tally["classes are numbers, which --class-names FILE can name"] = len(labels)
        return Source(
            summary=f"{counted(len(rows), 'row')} about {counted(len(entries), 'image')} in "
            f"{file.name}",
            entries=entries,
            tally=tally,
            split=split or None,
            splits=tuple(filter(None, files)),
        )


@dataclass(frozen=True, kw_only=True)
class _Columns:
    """The names of the columns."""

    image: str
    label: str
    corners: tuple[str, ...]
    size: tuple[str, ...]

    @classmethod
    def of(cls, columns: Sequence[str], label: str | None, file: Path) -> _Columns:
        """Raises DataError for a missing column, OptionError for classes in several."""
        images = [name for name in columns if name in _IMAGE]
        labels = [name for name in columns if name in _LABEL and name not in images[:1]]
        corners = [names for names in _CORNERS if set(names) <= set(columns)]
        if label is not None and label != "objects":
            labels = [name for name in columns if name == label.casefold()]
        if len(labels) > 1:
            raise OptionError(
                f"{str(file)!r} has the columns {' and '.join(labels)}. Choose the one with the "
                f"classes: --column {labels[0]}."
            )
        if not labels and images and corners:
            raise OptionError(
                f"None of the columns {', '.join(columns[:12])} of {str(file)!r} is called "
                f"{_LABEL[0]} or {_LABEL[1]}. Choose the one with the classes: --column NAME."
            )
        if not images or not labels or len(corners) != 1:
            via = (
                " Export VIA's annotations as JSON." if "region_shape_attributes" in columns else ""
            )
            raise DataError(
                f"{str(file)!r} has the columns {', '.join(columns[:12])}; needed are an image "
                f"({_IMAGE[0]} or {_IMAGE[1]}), {', '.join(_CORNERS[0])} in pixels, and a class "
                f"({_LABEL[0]} or {_LABEL[1]}). Rename or add them.{via} A file without a header "
                "whose rows are path,x1,y1,x2,y2,class is read with --format retinanet."
            )
        has_size = {"width", "height"} <= set(columns)
        return cls(
            image=images[0],
            label=labels[0],
            corners=corners[0],
            size=("width", "height") if has_size else (),
        )


def _parse(file: Path, given: tuple[str, ...]) -> tuple[Sequence[str], list[tuple[int, Row]]]:
    """The columns' names, in lower case, and each row that is not empty with its line number."""
    text = read_text(file)
    first, _, _ = text.partition("\n")
    separator = max(",;\t", key=first.count)
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        lines = [(reader.line_num, line) for line in reader if any(map(str.strip, line))]
    except csv.Error as error:
        raise DataError(f"{str(file)!r} is not CSV: {error}.") from error
    columns: Sequence[str] = given
    if not given and lines:
        columns = [name.strip().casefold() for name in lines.pop(0)[1]]
    for number, line in lines:
        if len(line) != len(columns):
            raise DataError(
                f"Line {number} of {str(file)!r} has {counted(len(line), 'field')}; there must be "
                f"{len(columns)}: {', '.join(columns[:12])}."
            )
    return columns, [(number, dict(zip(columns, line, strict=True))) for number, line in lines]


def _files(path: Path) -> dict[str, list[Path]]:
    """By split: `train/_annotations.csv` and `train_labels.csv` are "train"."""
    if path.is_file():
        return {"": [path]} if path.suffix.lower() == ".csv" and _has_header(path) else {}
    files: dict[str, list[Path]] = {}
    for file in sorted((*path.glob("*.csv"), *path.glob("*/*.csv"))):
        if not file.name.startswith(".") and _has_header(file):
            words = [file.parent.name] if file.parent != path else []
            words += re.split(r"[._-]", file.stem)
            split = next((word for word in words if is_split_name(word)), "")
            files.setdefault(split, []).append(file)
    return files


def _has_header(file: Path) -> bool:
    first = read_head(file).decode("utf-8-sig", "replace").splitlines()[:1]
    columns = {name.strip(' "').casefold() for line in first for name in re.split("[,;\t]", line)}
    has_box = any(columns.issuperset(names) for names in _CORNERS)
    return has_box and not columns.isdisjoint(_IMAGE)


@dataclass(frozen=True, kw_only=True)
class _Reading:
    """What the records of one file have in common."""

    file: Path
    columns: _Columns
    class_names: dict[str, str]
    finder: ImageFinder
    options: ReadRequest
    tally: Counter[str]

    def record(self, image: str, rows: Sequence[tuple[int, Row]]) -> Record:
        where = f"Image {image!r} of {str(self.file)!r}"
        path = self.finder.find(image, where)
        sizes = {tuple(row[name].strip() for name in self.columns.size) for _, row in rows}
        if len(sizes) > 1:
            raise DataError(f"{where} has rows with different sizes of the image.")
        (size,) = sizes
        annotated = AnnotatedImage(
            image=path,
            size_wh=(size_of(size[0], size[1], where) if size else None) or read_size_wh(path),
            where=where,
            tally=self.tally,
            boxes=self.options.boxes,
        )
        return annotated.record(image, self.options.prefix, self._objects(rows, annotated))

    def _objects(
        self, rows: Sequence[tuple[int, Row]], image: AnnotatedImage
    ) -> Iterator[TrueObject | None]:
        for number, row in rows:
            where = f"Line {number} of {str(self.file)!r}"
            label = row[self.columns.label].strip()
            edges = [row[name].strip() for name in self.columns.corners]
            if not any(edges) and not label:
                continue
            try:
                box = [float(edge) for edge in edges]
            except ValueError as error:
                raise DataError(
                    f"{where}: the box is {', '.join(edges)}; it must be four numbers."
                ) from error
            if self.class_names:
                if label not in self.class_names:
                    raise DataError(
                        f"{where} is of class {label!r}, and the file of class names has the "
                        f"numbers 0 to {len(self.class_names) - 1}."
                    )
                label = self.class_names[label]
            yield image.object(label, box, where=where)


CSV_READERS = (CsvReader(NAME="csv"), CsvReader(NAME="retinanet", columns=_RETINANET))
