"""The values of electronic invoices: what the XML says, without asking a model.

Each value is read as the schema's kind and validated like one that a model read. Where the file has
a text layer, its place on the page is looked up there, and a value that is not printed has a
problem: the page and the XML of an invoice may say different things.
"""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

from paligemma.documents.open import DocumentInput, open_document
from paligemma.documents.page import Document
from paligemma.errors import DocumentError, OptionError
from paligemma.extraction.assemble import Keys, assemble
from paligemma.extraction.dates import order_of_dates
from paligemma.extraction.einvoice import FIELDS, ITEM_FIELDS, einvoice_in, read_einvoice
from paligemma.extraction.names import Names
from paligemma.extraction.options import ExtractOptions
from paligemma.extraction.result import Extraction, Field
from paligemma.extraction.schema import Group, Kind, Leaf, List, Node, Schema, path_of
from paligemma.extraction.values import Formats, read_value
from paligemma.extraction.views import WORDS_OF_A_LAYER, View, Views
from paligemma.results import BoxXyxy, ImageReference

_AMOUNTS = ("net_total", "discount", "tax", "shipping", "total", *ITEM_FIELDS[1:])
_KINDS: dict[str, Kind] = {
    **dict.fromkeys(_AMOUNTS, "amount"),
    **dict.fromkeys(("invoice_date", "due_date"), "date"),
}
"""Of the values that are no texts."""
_XML_FORMATS = Formats(date_order="ymd", decimal_mark=".")
_XML = re.compile(rb"(?:\xef\xbb\xbf)?\s*<[?!A-Za-z_]|\xff\xfe<\0|\xfe\xff\0<")
_ANY_RESOLUTION = 448  # no view is shown to a model


def extract_from_xml(
    source: DocumentInput, schema: Schema[Any], options: ExtractOptions, names: Names
) -> Extraction[Any]:
    """The values of a schema from the XML of an invoice: a PDF file's attachment, or an XML file.

    Raises OptionError for a schema without a value that invoices have, and DocumentError for a
    file without XML, or whose XML is no invoice or unsafe.
    """
    known = [node.path for node in schema.nodes() if _is_known(node)]
    if not known:
        raise OptionError(
            "The schema has no value of an electronic invoice. Use the schema invoice, or values "
            f"of its names: {', '.join(FIELDS)}."
        )
    if (xml := xml_file(source)) is not None:
        return _Reader(schema, options, names, read_einvoice(xml), None).result(source)
    with open_document(source, password=options.password, pages=options.pages) as document:
        attachment = einvoice_in(document.attachments)
        if attachment is None:
            raise DocumentError(
                "The document has no XML of an electronic invoice inside. Read it with the model "
                "instead of the source xml."
            )
        fields = read_einvoice(attachment.data())
        return _Reader(schema, options, names, fields, document).result(source)


def note_of_einvoice(document: Document, schema: Schema[Any]) -> str | None:
    """That the document has an electronic invoice inside, which was not used."""
    if not any(_is_known(leaf) for leaf in schema.leaves()):
        return None
    try:
        attachment = einvoice_in(document.attachments)
    except DocumentError:
        return None
    if attachment is None:
        return None
    return (
        "The file has the XML of an electronic invoice inside. The values are what the model read; "
        "the option source=xml takes those of the XML."
    )


def xml_file(source: DocumentInput) -> bytes | None:
    """The contents of an XML file; None for documents."""
    if isinstance(source, bytes):
        return source if _XML.match(source) else None
    if not isinstance(source, str | Path):
        return None
    try:
        with Path(source).expanduser().open("rb") as file:
            first = file.read(1024)
            return first + file.read() if _XML.match(first) else None
    except (OSError, ValueError, RuntimeError):
        return None  # said when it is opened as a document


def _is_known(node: Node) -> bool:
    keys = node.keys
    if len(keys) == 1:
        return keys[0] in FIELDS
    return len(keys) == 3 and keys[:2] == ("items", "[]") and keys[2] in ITEM_FIELDS


@dataclass(frozen=True)
class _Reader:
    """Makes the fields of a schema from the values in the XML."""

    schema: Schema[Any]
    options: ExtractOptions
    names: Names
    values: Mapping[str, Any]
    document: Document | None

    def result(self, source: DocumentInput) -> Extraction[Any]:
        lengths: dict[Keys, int] = {}
        problems: list[str] = []
        made_of = list(self._fields(self.schema.root, (), self.values, lengths, problems))
        views = None if self.document is None else Views(self.document, _ANY_RESOLUTION)
        fields = {keys: field for keys, _, field in made_of}
        if views is not None:
            places = _Places(views, _page_formats(views, self.options.formats), {})
            fields = {keys: places.placed(field, keys, node) for keys, node, field in made_of}
        by_keys = {keys: field.value for keys, field in fields.items()}
        made = assemble(self.schema, by_keys, lengths)
        invalid, of_object = made.problems_by(fields)
        for keys, problem in invalid:
            fields[keys] = _with_problem(fields[keys], problem)
        where = "the XML file" if self.document is None else "the XML inside of the file"
        notes = [f"The values are from {where}; no model has read the page."]
        return Extraction(
            value=made.value,
            fields=tuple(fields.values()),
            schema_name=self.schema.name,
            page_numbers=tuple(page.number for page in self.document.pages)
            if self.document
            else (),
            object_problems=(*problems, *of_object),
            notes=(*self.schema.notes, *notes, *(views.notes if views else ())),
            min_score=self.options.min_score,
            image_reference=ImageReference(source),
        )

    def _fields(
        self, node: Node, keys: Keys, value: Any, lengths: dict[Keys, int], problems: list[str]
    ) -> Iterator[tuple[Keys, Leaf | List, Field]]:
        """The field of each value below a node, whose value in the XML is given."""
        if isinstance(node, Leaf):
            yield keys, node, self._field(node, keys, value)
            return
        if isinstance(node, Group):
            inside = value if isinstance(value, Mapping) else {}
            for child in node.children:
                name = str(child.keys[-1])
                yield from self._fields(child, (*keys, name), inside.get(name), lengths, problems)
            return
        items = value if isinstance(value, list) else []
        if len(items) > node.max_items:
            problems.append(
                f"{path_of(keys)}: the XML has {len(items)} items; the first {node.max_items} are "
                "kept"
            )
        lengths[keys] = min(len(items), node.max_items)
        if not items:
            yield keys, node, _missing(keys, node)
        for number, item in enumerate(items[: node.max_items]):
            yield from self._fields(node.item, (*keys, number), item, lengths, problems)

    def _field(self, leaf: Leaf, keys: Keys, value: Any) -> Field:
        if value is None or isinstance(value, list | Mapping):
            return _missing(keys, leaf)
        raw = _written(value)
        reading = read_value(leaf, raw, _XML_FORMATS)
        matched, problem = (None, None)
        if isinstance(reading.value, str):
            matched, problem = self.names.match(leaf, reading.value)
        found = [text for text in (reading.problem, problem) if text]
        return replace(
            _missing(keys, leaf),
            value=reading.value,
            raw=raw,
            score=math.nan if reading.value is not None else 0.0,
            source="xml" if reading.value is not None else None,
            problems=tuple(found),
            matched=matched,
        )


def _page_formats(views: Views, formats: Formats) -> Formats:
    """How the pages write values: the order of their dates, where others in them settle it."""
    if formats.date_order != "auto":
        return formats
    printed = (word.text for view in views.wholes for word in views.words(view))
    return replace(formats, date_order=order_of_dates(printed))


def _missing(keys: Keys, node: Leaf | List) -> Field:
    is_required = node.is_required and not node.is_nullable
    return Field(
        path=path_of(keys),
        value=None,
        raw=None,
        score=0.0,
        held=0.0,
        page=None,
        box_xyxy=None,
        box_source=None,
        question="",
        source=None,
        problems=("required, and not in the XML",) if is_required else (),
    )


def _written(value: Any) -> str:
    if isinstance(value, Decimal):
        return format(value, "f")
    return value.isoformat() if isinstance(value, datetime.date) else str(value)


@dataclass(frozen=True)
class _Places:
    """Where the text layer has the values. Those of an item are looked for near its own text."""

    views: Views
    formats: Formats
    items: dict[Keys, tuple[View, BoxXyxy]]

    def placed(self, field: Field, keys: Keys, leaf: Leaf | List) -> Field:
        """The field with its place on the first page that has the value, or a problem."""
        if field.value is None or isinstance(leaf, List):
            return field
        num_printed = 0
        for view in self.views.wholes:
            num_printed += self.views.num_printed(view)
            box = self._box(field, keys, view, leaf)
            if box is not None:
                if leaf.keys[1:2] == ("[]",):
                    self.items.setdefault(keys[:2], (view, box))
                page = self.views.number(view)
                return replace(field, page=page, box_xyxy=box, box_source="text layer")
        if num_printed < WORDS_OF_A_LAYER or leaf.kind in ("boolean", "choice"):
            return field
        return _with_problem(field, "the text layer of the pages does not have this value")

    def _box(self, field: Field, keys: Keys, view: View, leaf: Leaf) -> BoxXyxy | None:
        assert field.raw is not None
        item = self.items.get(keys[:2])
        near = item[1] if item is not None and item[0] == view else None
        value = field.value
        if isinstance(value, str) and (kind := _KINDS.get(leaf.keys[-1])):
            # The schema has it as text, and pages print it in their own way.
            leaf = replace(leaf, kind=kind)
            value = read_value(leaf, value, _XML_FORMATS).value
        box = self.views.find_value(view, field.raw, value, leaf, self.formats, near)
        if box is None and leaf.keys == ("discount",) and value is not None:
            # Printed with a minus sign or without.
            box = self.views.find_value(view, f"-{field.raw}", -value, leaf, self.formats, near)
        return box


def _with_problem(field: Field, problem: str) -> Field:
    return replace(field, problems=(*field.problems, problem))
