"""What one photo says, by extraction.

The score of a value is the model's probability of exactly these words. For a word of a closed list
that would be low wherever the model knows another word for the same ("sneakers" for "shoes"), so
that it is divided by the probability of all answers that the list allows: it is the probability of
the word among those, computed token by token while the answer is held to the list.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from paligemma.catalog.articles import Cell
from paligemma.documents.image_pages import ImagePage
from paligemma.documents.page import Document, Page
from paligemma.errors import OptionError
from paligemma.extraction.asking import FORCED, extract
from paligemma.extraction.options import ExtractOptions
from paligemma.extraction.result import Extraction, plain_value
from paligemma.extraction.schema import Group, Leaf, List, Node, Schema, path_of

if TYPE_CHECKING:
    from paligemma.documents.asker import Asker
    from paligemma.processor.image import LoadedImage

LEAST_MASS = 0.05
"""Below this probability of all words of a closed list together, the model means something else."""
COLUMNS_OF_ALL = ("article", "photos")
"""Columns that every table has."""


class _Photo(Page):
    """A photo. Unlike a page without ink, it is never blank: a fabric may have one color."""

    @functools.cached_property
    def is_blank(self) -> bool:
        return False


def check_schema(schema: Schema[Any]) -> tuple[str, ...]:
    """The names of the attributes. Raises OptionError for what does not fit into a row."""
    names = tuple(path_of(node.keys) for node in attributes_of(schema.root))
    taken = {*COLUMNS_OF_ALL, *(f"{name}_score" for name in names)}
    if repeated := sorted(taken & set(names)):
        raise OptionError(
            f"The attribute {repeated[0]!r} would have the name of a column that the table has "
            "anyway. Give it another name."
        )
    return names


def read_photo(
    asker: Asker, photo: LoadedImage, schema: Schema[Any], options: ExtractOptions
) -> dict[str, Cell]:
    """Every attribute of the schema, as the photo shows it.

    Raises ImageError for a photo that cannot be read, NumericalError for a model that is broken.
    """
    pixels = ImagePage(photo)
    page = _Photo(document_name=photo.name, number=1, source=pixels)
    document = Document(name=photo.name, num_pages=1, pages=(page,), source=pixels)
    found = extract(asker, document, schema, options)
    return {path_of(node.keys): _cell_of(node, found) for node in attributes_of(schema.root)}


def attributes_of(node: Node) -> Iterator[Leaf | List]:
    """The values and lists in a node, in the order of the schema. Raises OptionError for others."""
    if isinstance(node, Group):
        for child in node.children:
            yield from attributes_of(child)
    elif isinstance(node, List) and isinstance(node.item, Group):
        raise OptionError(
            f"The attribute {path_of(node.keys)} is a list of objects, which does not fit into a "
            "row of a catalog. Use values, groups of values and lists of values."
        )
    else:
        yield node


def _cell_of(node: Leaf | List, found: Extraction[Any]) -> Cell:
    path = path_of(node.keys)
    if isinstance(node, List):
        fields = [f for f in found.fields if f.list_path == path and not f.is_missing]
        value: Any = [plain_value(field.value) for field in fields] or None
    else:
        fields = [] if found[path].is_missing else [found[path]]
        value = plain_value(found[path].value)
    problems = tuple(problem for field in fields for problem in field.problems)
    score = min((_finite(field.score) for field in fields), default=0.0)
    if isinstance(node, Leaf) and node.kind == "choice" and fields:
        mass = 1.0 - fields[0].held
        score = min(1.0, _finite(score / mass)) if mass >= LEAST_MASS else score
        if mass >= LEAST_MASS:
            problems = tuple(problem for problem in problems if problem != FORCED)
    return Cell(value=value, score=round(score, 4), problems=problems)


def _finite(score: float) -> float:
    return score if math.isfinite(score) else 0.0
