"""A data set of Hugging Face's `datasets` library: a folder, or a name on the hub.

Columns are recognized by their names, the image by its type:

    prefix, or question ("answer en {question}")
    suffix, caption(s), answer(s), text, or label with class names; a list gives references
    objects: bbox as x, y, width, height in pixels, and category or label

Where several of them could hold the answers, the user chooses one (`column`). Only a name uses the
network, through that library. Images are read when they are needed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from paligemma.data.annotation import AnnotatedImage
from paligemma.data.record import Record, TrueObject
from paligemma.data.source import DEFAULT_CAPTION_PREFIX, Entry, ReadRequest, Source, choose_split
from paligemma.errors import DataError, MissingExtraError, OptionError, counted
from paligemma.processor.image import ImageSource, read_size_wh
from paligemma.tasks.parse_prompt import kind_of_prompt

NAME = "huggingface"
_SAVED = ("dataset_info.json", "dataset_dict.json", "state.json")
_ANSWERS = ("suffix", "caption", "captions", "answer", "answers", "text", "label")
_PARQUET = ".parquet"
_OBJECTS = "objects"
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
    """A Parquet file, a folder of such files, or one that the library saved."""
    if path.is_file():
        return path.suffix.lower() == _PARQUET
    return path.is_dir() and (
        any((path / name).is_file() for name in _SAVED)
        or any(path.glob("*.parquet"))
        or any(path.glob("data/*.parquet"))
    )


def read(path: Path, options: ReadRequest) -> Source:
    """Raises DataError where columns are missing, OptionError where several could hold the answers,
    and MissingExtraError without `datasets`."""
    split, splits, table = _load(path, options)
    images = [name for name, kind in table.features.items() if type(kind).__name__ == "Image"]
    candidates = [name for name in (*_ANSWERS, _OBJECTS) if name in table.features]
    if len(images) != 1 or not (candidates or options.column in table.features):
        raise DataError(
            f"The data set {str(path)!r} has the columns {', '.join(table.features)}. It must have "
            f"one column of images and one of: {', '.join(_ANSWERS)}, {_OBJECTS}. Rename its "
            "columns, or write JSON Lines of image, prefix and suffix."
        )
    from datasets import Image

    image_column = images[0]
    tally: Counter[str] = Counter()
    answer = _answer_column(list(table.features), candidates, options.column, str(path), tally)
    table = table.cast_column(image_column, Image(decode=False))
    rows = table.select_columns([name for name in table.features if name != image_column])
    category, classes = _category(table.features.get(_OBJECTS))
    columns = _Columns(
        answer=None if answer == _OBJECTS else answer,
        answer_names=None if answer == _OBJECTS else _names(table.features[answer]),
        category=category,
        class_names=classes,
    )
    reading = _Reading(rows=rows, columns=columns, options=options, tally=tally)
    entries = []
    for index in range(len(table)):
        where = f"Row {index} of {str(path)!r}"
        image = partial(_image, table, index, image_column)
        entries.append(Entry(f"row {index}", where, partial(reading.record, index, image, where)))
    if not entries:
        raise DataError(f"The data set {str(path)!r} has no rows.")
    return Source(
        summary=f"{counted(len(entries), 'row')} with the columns {', '.join(table.features)}; "
        f"the answers are in {answer}",
        entries=entries,
        class_names=tuple(classes or ()) if answer == _OBJECTS else (),
        tally=tally,
        split=split,
        splits=splits,
    )


def _answer_column(
    columns: list[str], candidates: list[str], chosen: str | None, where: str, tally: Counter[str]
) -> str:
    """The chosen column, or the only one that can hold the answers: "suffix" where there is one,
    that of the answers where there are questions."""
    if chosen is not None:
        if chosen not in columns:
            raise OptionError(f"{where} has no column {chosen!r}. Columns: {', '.join(columns)}.")
        answer = chosen
    else:
        to_question = [name for name in candidates if name.startswith("answer")]
        fitting = candidates
        if "suffix" in candidates:
            fitting = ["suffix"]
        elif "question" in columns and to_question:
            fitting = to_question
        if len(fitting) > 1:
            raise OptionError(
                f"{where} has several columns that could hold the answers: {', '.join(fitting)}. "
                f"Choose one, for example --column {fitting[-1]}."
            )
        answer = fitting[0]
    for other in candidates:
        if other != answer:
            tally[f"column with other answers is not used: {other}"] = 1
    return answer


def _load(path: Path, options: ReadRequest) -> tuple[str | None, tuple[str, ...], Any]:
    """The split, all splits, and the table."""
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError("datasets", "data", "Reading a Hugging Face data set") from error
    try:
        if any((path / name).is_file() for name in _SAVED):
            tables = datasets.load_from_disk(str(path))
        elif path.is_file():
            tables = datasets.load_dataset("parquet", data_files=str(path), split="train")
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
    if not isinstance(tables, dict):
        return None, (), tables
    split, table = choose_split(tables, options, str(path))
    return split, tuple(tables), table


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


@dataclass(frozen=True, kw_only=True)
class _Reading:
    """What the records of one table have in common."""

    rows: Any
    columns: _Columns
    options: ReadRequest
    tally: Counter[str]

    def record(self, index: int, image: partial[ImageSource], where: str) -> Record:
        row = self.rows[index]
        prefix = row.get("prefix", self.options.prefix)
        if prefix is None and isinstance(row.get("question"), str):
            prefix = f"answer en {row['question']}"
        if self.columns.answer is None:
            size_wh = read_size_wh(image())
            annotated = AnnotatedImage(
                image=image,
                size_wh=size_wh,
                where=where,
                tally=self.tally,
                boxes=self.options.boxes,
            )
            objects = _objects(row[_OBJECTS], self.columns, annotated)
            return annotated.record(f"row {index}", prefix, objects)
        prefix = DEFAULT_CAPTION_PREFIX if prefix is None else prefix
        texts = self._texts(row[self.columns.answer], prefix, where)
        return Record(
            record_id=f"row {index}",
            image=image,
            prefix=prefix,
            suffix=texts[0] if len(texts) == 1 else "",
            references=tuple(filter(None, texts)),
            where=where,
        )

    def _texts(self, value: Any, prefix: str, where: str) -> tuple[str, ...]:
        names = self.columns.answer_names
        if names is not None and value is not None:
            value = names[value]
        texts = tuple(value) if isinstance(value, list) else (value,)
        may_be_empty = kind_of_prompt(prefix) in ("detect", "segment")
        if not texts or not all(
            isinstance(text, str) and (text.strip() or (may_be_empty and not text))
            for text in texts
        ):
            raise DataError(f"{where}: {self.columns.answer} is {value!r}; it must be text.")
        return texts


def _objects(value: Any, columns: _Columns, image: AnnotatedImage) -> Iterator[TrueObject | None]:
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
