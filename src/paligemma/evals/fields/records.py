"""Documents with their true values.

    {"file": "rx.pdf", "fields": {"date": "2024-05-01", "medicines": [{"name": "Vyvanse"}]},
     "boxes": {"date": [50, 60, 130, 75]}, "text": "all that is printed, in reading order"}

A field that is left out is not scored; null says that the document does not have it; a list is
complete. Keys may also be paths, such as "medicines[0].name", or a list of objects with path,
value, page and box_xyxy. Only `file` and `fields` are needed, or `text` instead of `fields`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paligemma.data.record import BadRecord
from paligemma.data.source import read_text
from paligemma.errors import DataError
from paligemma.results import BoxXyxy

if TYPE_CHECKING:
    from paligemma.documents.open import DocumentInput

Keys = tuple[str | int, ...]
_KEY = re.compile(r'\.?([^\[\].]+)|\[(\d+)\]|\[("(?:[^"\\]|\\.)*")\]')
_MAX_INDEX = 10_000
_MAX_DEPTH = 20
_NAMES = frozenset({"id", "file", "image", "fields", "boxes", "text"})


@dataclass(frozen=True, kw_only=True)
class TrueBox:
    """Where a value is: page from 1, box in page units (points of PDF files, else pixels)."""

    page: int
    box_xyxy: BoxXyxy


@dataclass(frozen=True, kw_only=True)
class FieldRecord:
    """A document and what is true of it."""

    record_id: str
    source: Path | Callable[[], DocumentInput]
    """The file, or a function that returns the image."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """Nested dicts and lists of values: texts as they are printed, numbers, dates, or None."""
    boxes: Mapping[str, TrueBox] = field(default_factory=dict)
    """By path."""
    text: str | None = None
    """All that is printed, in reading order."""
    where: str = ""
    """For messages."""

    def open(self) -> DocumentInput:
        """What `open_document` takes."""
        return self.source if isinstance(self.source, Path) else self.source()


def keys_of(path: str) -> Keys:
    """The keys of a path. Raises ValueError for a text that is none.

    >>> keys_of('medicines[0].dose'), keys_of('["a.b"]')
    (('medicines', 0, 'dose'), ('a.b',))
    """
    keys: list[str | int] = []
    end = 0
    for match in _KEY.finditer(path):
        if match.start() != end:
            break
        end = match.end()
        if match[2] is not None:
            if len(match[2]) > 5 or int(match[2]) > _MAX_INDEX:
                raise ValueError(f"the index {match[2][:20]} in {path[:80]!r} is too large")
            keys.append(int(match[2]))
        else:
            keys.append(match[1] if match[1] is not None else json.loads(match[3]))
    if end != len(path) or not keys:
        raise ValueError(f"{path[:80]!r} is not the path of a value, such as items[0].amount")
    return tuple(keys)


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values by path as dicts and lists; keys without "." and "[" may hold dicts and lists.

    Raises ValueError for paths that contradict each other, and lists with gaps.

    >>> nested({"items[0].name": "tea", "items[1].name": None, "total": "3"})
    {'items': [{'name': 'tea'}, {'name': None}], 'total': '3'}
    """
    root: dict[str | int, Any] = {}
    for path, value in values.items():
        *above, last = keys_of(path)
        node = root
        for key in above:
            node = node.setdefault(key, {})
            if not isinstance(node, dict):
                raise ValueError(f"{path!r} is inside of another value")
        if last in node:
            raise ValueError(f"{path!r} is given twice")
        node[last] = value
    result: dict[str, Any] = _with_lists(root, "")
    return result


def _with_lists(node: Any, path: str) -> Any:
    if not isinstance(node, dict):
        return node
    numbers = [key for key in node if isinstance(key, int)]
    if not numbers:
        return {key: _with_lists(value, f"{path}.{key}") for key, value in node.items()}
    if sorted(node, key=str) != sorted(range(len(node)), key=str):
        raise ValueError(f"the list {path.strip('.')!r} has gaps; number its items from 0")
    return [_with_lists(node[i], f"{path}[{i}]") for i in range(len(node))]


def read_field_records(path: Path, folder: Path | None = None) -> list[FieldRecord | BadRecord]:
    """Documents from a JSON Lines file; `folder` is where the files are, by default next to it.

    Raises DataError where the file cannot be read or has no records.
    """
    folder = folder or path.parent
    slots: list[FieldRecord | BadRecord] = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            where = f"line {number} of {path.name!r}"
            try:
                slots.append(_record(json.loads(line), folder, where))
            except (ValueError, RecursionError) as error:
                slots.append(BadRecord(record_id=where, where=where, reason=f"{where}: {error}"))
    if not slots:
        raise DataError(f"{str(path)!r} has no records. Write one JSON object per line.")
    return slots


def is_field_data(path: Path) -> bool:
    """Whether a file is JSON Lines of documents with fields, by its first line."""
    try:
        with path.open("rb") as file:
            value = json.loads(file.readline(2**20))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(value, dict) and ("fields" in value or {"file", "text"} <= value.keys())


def _record(value: Any, folder: Path, where: str) -> FieldRecord:
    if not isinstance(value, Mapping):
        raise ValueError("it is no JSON object")
    if unknown := sorted(set(value) - _NAMES):
        raise ValueError(f"{unknown[0]!r} is not known; expected {', '.join(sorted(_NAMES))}")
    name = value.get("file", value.get("image"))
    if not isinstance(name, str) or not name:
        raise ValueError("the name of the document is missing: 'file'")
    text = value.get("text")
    if text is not None and not isinstance(text, str):
        raise ValueError("'text' is not text")
    if "fields" not in value and text is None:
        raise ValueError("neither 'fields' nor 'text' is given")
    fields, boxes = _truth(value.get("fields", {}))
    given = value.get("boxes", {})
    if not isinstance(given, Mapping):
        raise ValueError("'boxes' is not an object: path -> box")
    boxes |= {path: _box(box, path) for path, box in given.items()}
    source = folder / name
    if not source.is_file():
        raise ValueError(f"the file {str(source)!r} does not exist")
    return FieldRecord(
        record_id=str(value.get("id", name)),
        source=source,
        fields=fields,
        boxes=boxes,
        text=text,
        where=where,
    )


def _truth(fields: Any) -> tuple[dict[str, Any], dict[str, TrueBox]]:
    """Nested values, and boxes by path."""
    _check_depth(fields, 0)
    if isinstance(fields, Mapping):
        return nested(fields), {}
    if not isinstance(fields, Sequence) or isinstance(fields, str):
        raise ValueError("'fields' is neither an object nor a list")
    values: dict[str, Any] = {}
    boxes: dict[str, TrueBox] = {}
    for entry in fields:
        if not isinstance(entry, Mapping) or not isinstance(entry.get("path"), str):
            raise ValueError("a field of the list has no 'path'")
        path = entry["path"]
        if path in values:
            raise ValueError(f"{path!r} is given twice")
        values[path] = entry.get("value")
        if entry.get("box_xyxy") is not None:
            boxes[path] = _box(entry, path)
    return nested(values), boxes


def _check_depth(value: Any, depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise ValueError(f"the fields are more than {_MAX_DEPTH} levels deep")
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            _check_depth(item, depth + 1)


def _box(value: Any, path: str) -> TrueBox:
    """From [x1, y1, x2, y2] on the first page, or an object with page and box_xyxy."""
    page = value.get("page") or 1 if isinstance(value, Mapping) else 1
    box: Any = value.get("box_xyxy") if isinstance(value, Mapping) else value
    is_box = isinstance(box, Sequence) and len(box) == 4
    if not is_box or not all(isinstance(e, int | float) and math.isfinite(e) for e in box):
        raise ValueError(f"the box of {path!r} is not four numbers: x1, y1, x2, y2")
    x1, y1, x2, y2 = map(float, box)
    if isinstance(page, bool) or not isinstance(page, int) or page < 1 or x2 <= x1 or y2 <= y1:
        raise ValueError(f"the box of {path!r} has no area, or its page is not counted from 1")
    return TrueBox(page=page, box_xyxy=(x1, y1, x2, y2))
