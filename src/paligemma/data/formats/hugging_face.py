"""A data set of Hugging Face's `datasets` library: a folder, or a name on the hub.

Columns are recognized by their names, the image by its type:

    prefix, or question ("answer en {question}")
    suffix, caption(s), answer(s), text, or label with class names; a list gives references
    objects: bbox as x, y, width, height in pixels, and category or label

Only a name uses the network, through that library. Images are read when they are needed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from paligemma.data.annotation import AnnotatedImage
from paligemma.data.record import Record, TrueObject
from paligemma.data.source import DEFAULT_CAPTION_PREFIX, Entry, ReadOptions, Source, choose_split
from paligemma.errors import DataError, MissingExtraError, counted
from paligemma.processor.image import ImageSource, read_size_wh

NAME = "huggingface"
_SAVED = ("dataset_info.json", "dataset_dict.json", "state.json")
_ANSWERS = ("suffix", "caption", "captions", "answer", "answers", "text", "label")
_CATEGORIES = ("category", "categories", "label", "labels", "category_id")


class _Columns(NamedTuple):
    """The columns that hold the answers."""

    answer: str | None
    answer_names: list[str] | None
    """Class names, where the answers are class numbers."""
    category: str | None
    """The field of `objects` with the classes."""
    class_names: list[str] | None


def recognizes(path: Path) -> bool:
    """A folder that the library saved, or one of Parquet files."""
    return path.is_dir() and (
        any((path / name).is_file() for name in _SAVED)
        or any(path.glob("*.parquet"))
        or any(path.glob("data/*.parquet"))
    )


def read(path: Path, options: ReadOptions) -> Source:
    """Raises DataError where columns are missing, MissingExtraError without `datasets`."""
    table = _load(path, options.split)
    images = [name for name, kind in table.features.items() if type(kind).__name__ == "Image"]
    answers = [name for name in _ANSWERS if name in table.features]
    if len(images) != 1 or not (answers or "objects" in table.features):
        raise DataError(
            f"The data set {str(path)!r} has the columns {', '.join(table.features)}. It must have "
            f"one column of images and one of: {', '.join(_ANSWERS)}, objects. Rename its columns, "
            "or write JSON Lines of image, prefix and suffix."
        )
    image_column, answer = images[0], answers[0] if answers else None
    from datasets import Image

    table = table.cast_column(image_column, Image(decode=False))
    rows = table.select_columns([name for name in table.features if name != image_column])
    category, classes = _category(table.features.get("objects"))
    columns = _Columns(
        answer=answer,
        answer_names=_names(table.features[answer]) if answer else None,
        category=category,
        class_names=classes,
    )
    tally: Counter[str] = Counter()
    entries = []
    for index in range(len(table)):
        where = f"Row {index} of {str(path)!r}"
        image = partial(_image, table, index, image_column)
        build = partial(_record, rows, index, image, where, columns, options.prefix, tally)
        entries.append(Entry(f"row {index}", where, build))
    if not entries:
        raise DataError(f"The data set {str(path)!r} has no rows.")
    return Source(
        summary=f"{counted(len(entries), 'row')} with the columns {', '.join(table.features)}",
        entries=entries,
        class_names=tuple(classes or ()) if answer is None else (),
        tally=tally,
    )


def _load(path: Path, split: str | None) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError("datasets", "data", "Reading a Hugging Face data set") from error
    try:
        if any((path / name).is_file() for name in _SAVED):
            tables = datasets.load_from_disk(str(path))
        elif path.is_dir():
            tables = datasets.load_dataset(path.resolve().as_posix())
        else:
            tables = datasets.load_dataset(path.as_posix())
    except (MemoryError, RecursionError):
        raise
    except Exception as error:  # the library passes on any error of its own dependencies
        first = (str(error).splitlines() or [""])[0]
        raise DataError(
            f"The data set {str(path)!r} cannot be loaded: {type(error).__name__}: {first}"
        ) from error
    return choose_split(tables, split, str(path))[1] if isinstance(tables, dict) else tables


def _names(feature: Any) -> list[str] | None:
    """The class names of a column of class numbers."""
    names = getattr(feature, "names", None)
    return None if names is None else list(names)


def _category(objects: Any) -> tuple[str | None, list[str] | None]:
    """The field of `objects` with the classes, and its class names."""
    inner = getattr(objects, "feature", objects)
    for name in _CATEGORIES if isinstance(inner, dict) else ():
        if name in inner:
            kind = inner[name]
            return name, _names(getattr(kind, "feature", kind))
    return None, None


def _image(table: Any, index: int, column: str) -> ImageSource:
    value = table[index][column]
    if value is None:
        raise DataError(f"Row {index} has no image.")
    source: ImageSource = value["bytes"] if value["bytes"] is not None else Path(value["path"])
    return source


def _record(
    rows: Any,
    index: int,
    image: partial[ImageSource],
    where: str,
    columns: _Columns,
    default_prefix: str | None,
    tally: Counter[str],
) -> Record:
    row = rows[index]
    texts: tuple[str, ...] = ()
    answer, names = columns.answer, columns.answer_names
    if answer is not None:
        value = row[answer]
        if names is not None and value is not None:
            value = names[value]
        texts = tuple(value) if isinstance(value, list) else (value,)
        if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
            raise DataError(f"{where}: {answer} is {value!r}; it must be text.")
    prefix = row.get("prefix", default_prefix)
    if prefix is None and isinstance(row.get("question"), str):
        prefix = f"answer en {row['question']}"
    if prefix is None and answer is not None:
        prefix = DEFAULT_CAPTION_PREFIX
    size_wh = objects = None
    if answer is None:
        size_wh = read_size_wh(image())
        annotated = AnnotatedImage(image=image, size_wh=size_wh, where=where, tally=tally)
        objects = tuple(_objects(row["objects"], columns, annotated))
    return Record(
        record_id=f"row {index}",
        image=image,
        prefix=prefix or "",
        suffix=texts[0] if len(texts) == 1 else "",
        objects=objects,
        references=texts,
        size_wh=size_wh,
        where=where,
    )


def _objects(value: Any, columns: _Columns, image: AnnotatedImage) -> Iterator[TrueObject]:
    if isinstance(value, dict):  # a column of lists, which the library stores as one list per field
        lengths = {len(column) for column in value.values()}
        if len(lengths) > 1:
            raise DataError(f"{image.where}: the fields of its objects have different lengths.")
        rows = zip(*value.values(), strict=True)
        value = [dict(zip(value, row, strict=True)) for row in rows]
    category, classes = columns.category, columns.class_names
    for item in value or ():
        box, kind = item.get("bbox"), item.get(category) if category else None
        if box is None or len(box) != 4 or kind is None:
            raise DataError(
                f"{image.where}: an object has the fields {', '.join(item)}; it must have bbox "
                f"(x, y, width, height) and one of {', '.join(_CATEGORIES)}."
            )
        label = classes[kind] if classes is not None and isinstance(kind, int) else kind
        x, y, width, height = box
        yield image.object(label, (x, y, x + width, y + height))
