"""The true and the read values of a document, matched cell by cell.

Values are compared after normalization: dates as dates and amounts as numbers, however they are
printed, where the schema says what they are; texts without case, white space and the punctuation
around them. Items of lists are matched one to one so that as much as possible agrees.
"""

from __future__ import annotations

import datetime
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any

from paligemma.data.overlap import iou_of_boxes
from paligemma.evals.fields.records import FieldRecord, Keys, TrueBox, keys_of
from paligemma.evals.metrics.fields import FieldCell, best_matching, similarity
from paligemma.extraction.schema import path_of
from paligemma.extraction.values import Formats, read_value
from paligemma.results import BoxXyxy

if TYPE_CHECKING:
    from paligemma.extraction.schema import Leaf, Schema

_PUNCTUATION = " .,:;!?'\"()[]*-_"


@dataclass(frozen=True, kw_only=True)
class ReadField:
    """What was read of one value."""

    value: Any
    """As JSON holds it: dates in ISO form, amounts as text. None: nothing was read."""
    raw: str | None = None
    score: float = 0.0
    page: int | None = None
    box_xyxy: BoxXyxy | None = None

    @classmethod
    def of(cls, field: Mapping[str, Any]) -> ReadField:
        """From `Field.to_dict()` of an extraction."""
        box = field.get("box_xyxy")
        return cls(
            value=field["value"],
            raw=field.get("raw"),
            score=float(field.get("score") or 0.0),
            page=field.get("page"),
            box_xyxy=None if box is None else (box[0], box[1], box[2], box[3]),
        )


@dataclass(frozen=True, kw_only=True)
class Aligner:
    """Matches the values of documents with one schema."""

    leaves: Mapping[str, Leaf]
    """Path -> what the schema says of the value; without, values are texts."""
    formats: Formats
    """How the true values are printed."""
    labeled: frozenset[str]
    """Paths for which some document has a true value: what is read elsewhere is not scored."""

    @classmethod
    def of(cls, records: Iterable[FieldRecord], schema: Schema[Any], formats: Formats) -> Aligner:
        paths = {path_of(keys) for record in records for keys in _paths(record.fields, ())}
        leaves = {leaf.path: leaf for leaf in schema.leaves()}
        # An empty list says something of all values that its items would have.
        lists = tuple(path for path in paths if path.endswith("[]") and path not in leaves)
        labeled = (paths - set(lists)) | {path for path in leaves if path.startswith(lists)}
        return cls(leaves=leaves, formats=formats, labeled=frozenset(labeled))

    @property
    def not_in_schema(self) -> tuple[str, ...]:
        """Paths of true values that nothing can be read for."""
        return tuple(sorted(path for path in self.labeled if path not in self.leaves))

    def cells(
        self, number: int, record: FieldRecord, read: Mapping[str, ReadField]
    ) -> list[FieldCell]:
        """The cells of document `number`; `read` by path."""
        tree: Any = {}
        for path, value in read.items():
            keys = keys_of(path)
            node = tree
            for key in keys[:-1]:
                node = node.setdefault(key, {})
            node[keys[-1]] = value
        walk = _Walk(aligner=self, record=record, number=number)
        return [
            cell
            for cell in walk.cells(record.fields, tree, ())
            if cell.path in self.leaves or not self.leaves
        ]


@dataclass(frozen=True, kw_only=True)
class _Walk:
    """One document."""

    aligner: Aligner
    record: FieldRecord
    number: int

    def cells(self, true: Any, read: Any, keys: Keys) -> Iterator[FieldCell]:
        if isinstance(true, Mapping):
            for key, value in true.items():
                below = read.get(key) if isinstance(read, dict) else None
                yield from self.cells(value, below, (*keys, key))
        elif isinstance(true, list):
            yield from self._list(true, read, keys)
        elif true is None and isinstance(read, dict):
            yield from self._invented(read, keys)
        else:
            yield self._cell(true, read if isinstance(read, ReadField) else None, keys)

    def _list(self, true: Sequence[Any], read: Any, keys: Keys) -> Iterator[FieldCell]:
        items = {n: item for n, item in enumerate(true) if item is not None}
        numbers = list(items)
        reads = [read[n] for n in sorted(read)] if isinstance(read, dict) else []

        def weight(number: int, item: Any) -> float:
            return self._likeness(items[number], item, (*keys, number))

        pairs = dict(best_matching(numbers, reads, weight))
        for place, number in enumerate(numbers):
            partner = reads[pairs[place]] if place in pairs else None
            yield from self.cells(items[number], partner, (*keys, number))
        taken = set(pairs.values())
        for place, item in enumerate(reads):
            if place not in taken:
                yield from self._invented(item, (*keys, "[]"))

    def _likeness(self, true: Any, read: Any, keys: Keys) -> float:
        cells = [cell for cell in self.cells(true, read, keys) if cell.true is not None]
        if not cells:
            return 0.0
        return sum(cell.is_right + cell.similarity for cell in cells) / (2 * len(cells))

    def _invented(self, read: Any, keys: Keys) -> Iterator[FieldCell]:
        """Values of an item that the document does not have."""
        if isinstance(read, ReadField):
            if read.value is not None and _plain_path(keys) in self.aligner.labeled:
                yield self._cell(None, read, keys)
        elif isinstance(read, dict):
            for key, value in read.items():
                yield from self._invented(value, (*keys, key))

    def _cell(self, true: Any, read: ReadField | None, keys: Keys) -> FieldCell:
        path = _plain_path(keys)
        leaf = self.aligner.leaves.get(path)
        is_read = read is not None and read.value is not None
        true_text = None if true is None else _shown(true)
        read_text = None if read is None or read.value is None else _shown(read.value)
        iou: float | None = None
        place = self.record.boxes.get(path_of(keys))
        if read is not None and is_read and place is not None:
            iou = _iou(place, read)
        if read is None or read_text is None or true_text is None:
            both_absent = true_text is None and read_text is None
            alike = 1.0 if both_absent else 0.0
            is_right = both_absent
        else:
            is_right = self._equal(true, read, leaf)
            alike = (
                1.0
                if is_right
                else max(similarity(text, true_text) for text in (read_text, read.raw or read_text))
            )
        return FieldCell(
            record=self.number,
            path=path,
            true=true_text,
            read=read_text,
            is_right=is_right,
            similarity=alike,
            score=read.score if read is not None and is_read else 0.0,
            iou=iou,
        )

    def _equal(self, true: Any, read: ReadField, leaf: Leaf | None) -> bool:
        kind = "text" if leaf is None else leaf.kind
        if leaf is not None and kind not in ("text", "choice"):
            true_value = None if isinstance(true, str) else _typed(true, kind)
            if true_value is None:
                true_value = read_value(leaf, _shown(true), self.aligner.formats).value
            read_value_ = _typed(read.value, kind)
            if true_value is not None and read_value_ is not None:
                return bool(true_value == read_value_)
        texts = {_normal(_shown(read.value))}
        if read.raw is not None:
            texts.add(_normal(read.raw))
        return _normal(_shown(true)) in texts


def _typed(value: Any, kind: str) -> Any:
    """A value of JSON or Python in the type of its kind; None where it has to be read first."""
    match kind:
        case "integer" | "number" | "amount":
            is_number = isinstance(value, int | float | Decimal) and not isinstance(value, bool)
            text = str(value) if is_number else value
            try:
                # Of texts, only those that we write ourselves: "1.234" may be a thousand.
                return Decimal(text) if is_number or _is_plain_number(text) else None
            except (InvalidOperation, TypeError):
                return None
        case "date":
            return _parsed(datetime.date, value)
        case "time":
            return _parsed(datetime.time, value)
        case "datetime":
            return _parsed(datetime.datetime, value)
        case "boolean":
            return value if isinstance(value, bool) else None
    return None


def _is_plain_number(text: Any) -> bool:
    return isinstance(text, str) and text.isascii() and "," not in text and "_" not in text


def _parsed(kind: Any, value: Any) -> Any:
    if isinstance(value, kind):
        return value
    try:
        return kind.fromisoformat(value)
    except (TypeError, ValueError):
        return None


def _normal(text: str) -> str:
    text = unicodedata.normalize("NFKC", text).casefold().strip(_PUNCTUATION)
    return "".join(text.split())


def _shown(value: Any) -> str:
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def _iou(place: TrueBox, read: ReadField) -> float:
    if read.box_xyxy is None or read.page != place.page:
        return 0.0
    return iou_of_boxes(read.box_xyxy, place.box_xyxy)


def _plain_path(keys: Keys) -> str:
    """The path of a field, the same for all items of its lists."""
    return path_of(tuple("[]" if isinstance(key, int) else key for key in keys))


def _paths(true: Any, keys: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    if isinstance(true, Mapping):
        for key, value in true.items():
            yield from _paths(value, (*keys, key))
    elif isinstance(true, list):
        for item in true or [None]:
            yield from _paths(item, (*keys, "[]"))
    else:
        yield keys
