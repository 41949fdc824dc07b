"""The result of an extraction: a value per field, with score, place and question."""

from __future__ import annotations

import csv
import datetime
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from paligemma.errors import MissingExtraError, counted
from paligemma.escaping import csv_cell, visible
from paligemma.extraction.values import is_absent
from paligemma.results import UNSURE_SCORE, BoxXyxy, ImageReference, Result, one_line
from paligemma.writing import replacing, write_whole

if TYPE_CHECKING:
    import PIL.Image

T_co = TypeVar("T_co", covariant=True)

ValueSource = Literal["model", "xml"]
BoxSource = Literal["text layer", "detect", "tile"]

CSV_COLUMNS = (
    *("file", "path", "value", "raw", "score", "held", "page", "x1", "y1", "x2", "y2"),
    *("box_source", "matched", "question", "problems", "source"),
)
"""Of a table of fields: one row per field."""


@dataclass(frozen=True, kw_only=True)
class Match(Result):
    """The entry of the user's list of names that is nearest to what was read."""

    text: str
    score: float
    """Likeness of both spellings, from 0 to 1."""


@dataclass(frozen=True, kw_only=True, repr=False)
class Field(Result):
    """One value of the object: what was read, how sure the model is, and where it is."""

    path: str
    """Such as "total" or "medicines[0].dose"."""
    value: Any
    """What was read, as the schema's type: a date, a Decimal, text; None where nothing was."""
    raw: str | None
    """The model's own words; None where it was not asked or gave no answer."""
    score: float
    """The model's probability of exactly these words; 0 where nothing was read, and NaN for values
    of an XML file, which no model has read."""
    held: float
    """The probability that the answer's pattern took away from other answers: near 0, the model
    answered freely in this form; near 1, it wanted to say something else."""
    page: int | None
    """The page that the value is from; the first is 1."""
    box_xyxy: BoxXyxy | None
    """Where it is on the page: points (1/72 inch) of PDF files, pixels of images."""
    box_source: BoxSource | None
    """text layer: the words of the file, which are exact. detect: found by the model. tile: the
    part of the page that the model saw when it gave the answer."""
    question: str
    """The question asked."""
    list_path: str | None = None
    """For an item of a list: the list, whose question had all items as its answer."""
    prompt: str = ""
    """The prompt as a whole; "" in JSON mode, where the answer has all values."""
    tile_xyxy: BoxXyxy | None = None
    """The part of the page that the model saw when it gave the answer."""
    source: ValueSource | None = "model"
    """Where the value comes from: the model, or the XML of an electronic invoice; None where there
    is none."""
    problems: tuple[str, ...] = ()
    """Why the value may be wrong, or is missing."""
    matched: Match | None = None
    """The nearest name in the list that the user gave. The value itself is what was read."""

    @property
    def is_missing(self) -> bool:
        """Whether the document was found to have no such value."""
        return self.value is None

    @property
    def unread(self) -> str | None:
        """The words that could not be read as a value; None where there is one, and where the words
        say that there is none."""
        return None if not self.is_missing or is_absent(self.raw or "") else self.raw

    def is_unsure(self, min_score: float = UNSURE_SCORE) -> bool:
        """Whether a person should look at it: a low score, or problems."""
        return bool(self.problems) or (not self.is_missing and self.score < min_score)

    def doubt(self) -> float:
        """What sorts fields, the most doubtful ones first: the score, or 1 where no model read."""
        return 1.0 if math.isnan(self.score) else self.score

    def to_dict(self) -> dict[str, Any]:
        values = super().to_dict()
        values["value"], values["unread"] = plain_value(self.value), self.unread
        values["score"], values["held"] = rounded(self.score), rounded(self.held)
        if self.box_xyxy is not None:
            values["box_xyxy"] = [round(edge, 2) for edge in self.box_xyxy]
        if self.tile_xyxy is not None:
            values["tile_xyxy"] = [round(edge, 2) for edge in self.tile_xyxy]
        return values

    def row(self) -> tuple[Any, ...]:
        """The values of `CSV_COLUMNS`, without the file."""
        box = self.box_xyxy or (None,) * 4
        return (
            self.path,
            shown_value(self.value),
            self.raw,
            rounded(self.score),
            rounded(self.held),
            self.page,
            *(None if edge is None else round(edge, 2) for edge in box),
            self.box_source,
            None if self.matched is None else self.matched.text,
            self.question,
            " ; ".join(self.problems),
            self.source,
        )

    def __repr__(self) -> str:
        return f"Field({self.path!r}, {self.value!r}, score={self.score:.3g}, page={self.page})"


@dataclass(frozen=True, kw_only=True, repr=False)
class Extraction(Result, Generic[T_co]):
    """The fields that were read from a document, and the object that they make.

    >>> found["medicines[0].dose"].value, found.missing         # doctest: +SKIP
    ('50 mgs', ('patient',))
    """

    value: T_co | None
    """The object: an instance of the pydantic model, or a dict for a JSON schema. None where the
    fields make none that is valid; `problems` says why."""
    fields: tuple[Field, ...]
    """In the order of the schema."""
    schema_name: str
    page_numbers: tuple[int, ...]
    """The pages that were read, from 1; none of an XML file."""
    object_problems: tuple[str, ...] = ()
    """What is wrong with the object as a whole, such as sums that do not agree."""
    notes: tuple[str, ...] = ()
    """What to know about the reading: limits that were set, pages that could not be read."""
    min_score: float = UNSURE_SCORE
    """Fields with lower scores are shown as unsure."""
    turns: Mapping[int, int] = field(default_factory=dict)
    """How far pages were turned to be upright, in degrees by number; boxes are on the turned
    page."""
    image_reference: ImageReference | None = field(default=None, compare=False)
    """The document: its path, or as long as it exists the image in memory."""

    def __getitem__(self, path: str) -> Field:
        """The field of a path. Raises KeyError."""
        for each in self.fields:
            if each.path == path:
                return each
        raise KeyError(path)

    def __contains__(self, path: object) -> bool:
        return any(each.path == path for each in self.fields)

    def unsure(self, min_score: float | None = None) -> tuple[Field, ...]:
        """The fields that a person should look at: with a low score or a problem, lowest first."""
        limit = self.min_score if min_score is None else min_score
        return tuple(sorted((f for f in self.fields if f.is_unsure(limit)), key=Field.doubt))

    @property
    def num_pages(self) -> int:
        """How many pages were read."""
        return len(self.page_numbers)

    @property
    def missing(self) -> tuple[str, ...]:
        """The paths of all values that were asked for and not found. They are None in the object,
        or the schema's own default."""
        return tuple(f.path for f in self.fields if f.is_missing)

    @property
    def problems(self) -> tuple[str, ...]:
        """Everything that may be wrong: those of the fields, then those of the whole object."""
        of_fields = (f"{f.path}: {problem}" for f in self.fields for problem in f.problems)
        return (*of_fields, *self.object_problems)

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema": self.schema_name,
            "value": self.plain_object(),
            "fields": [each.to_dict() for each in self.fields],
            "missing": list(self.missing),
            "unsure": [each.path for each in self.unsure()],
            "problems": list(self.problems),
            "notes": list(self.notes),
            "num_pages": self.num_pages,
            "turns": {str(number): degrees for number, degrees in self.turns.items()},
        }

    def plain_object(self) -> Any:
        """The object as JSON holds it; None where there is none."""
        dump = getattr(self.value, "model_dump", None)
        return self.value if dump is None else dump(mode="json", by_alias=True)

    def csv_rows(self) -> list[tuple[Any, ...]]:
        """A row per field with the values of `CSV_COLUMNS` after the file."""
        return [field.row() for field in self.fields]

    def to_csv(self, path: str | Path | None = None, *, file: str = "", safe: bool = False) -> str:
        """The fields as CSV, one row per field. `safe` puts a ' before what a spreadsheet would
        take for a formula."""
        text = csv_text([(file, *row) for row in self.csv_rows()], safe=safe)
        if path is not None:
            write_whole(Path(path), text.encode("utf-8", "backslashreplace"))
        return text

    def to_parquet(self, path: str | Path, *, file: str = "") -> None:
        """Write the fields as a Parquet file, one row per field; needs pyarrow."""
        write_parquet(path, [(file, *row) for row in self.csv_rows()])

    def to_html(self, path: str | Path | None = None, *, file: str = "", source: Any = None) -> str:
        """A page to review and correct the fields, in one file that needs no network.

        `source` is the document, where it was neither a path nor is still in memory.
        """
        from paligemma.extraction.review import render_review

        page = render_review(self, file=file, source=source)
        if path is not None:
            write_whole(Path(path), page.encode("utf-8", "backslashreplace"))
        return page

    def draw(self, path: str | Path | None = None, *, source: Any = None) -> list[PIL.Image.Image]:
        """The pages that values are from, with their boxes. `path` is the file to write to; the
        drawings of further pages get -2, -3, ... in their names."""
        from paligemma.extraction.review import draw_pages

        drawn = draw_pages(self, source=source)
        if path is not None:
            name = Path(path)
            for number, image in drawn.items():
                is_first = number == min(drawn)
                image.save(name if is_first else name.with_stem(f"{name.stem}-{number}"))
        return list(drawn.values())

    def __str__(self) -> str:
        """A table of the fields. What the document says is printed without control characters."""
        width = max((len(visible(f.path)) for f in self.fields), default=0)
        name = _cell(self.schema_name)
        lines = [f"{name} on {counted(self.num_pages, 'page')}", " score  page  field"]
        for each in self.fields:
            score = "     " if each.is_missing else f"{each.score:5.2f}"
            score = "  xml" if each.source == "xml" else score
            page = "    " if each.page is None else f"{each.page:4d}"
            shown = "not found" if each.is_missing else shown_value(each.value)
            if each.matched is not None:
                shown = f"{shown} (list: {each.matched.text} {each.matched.score:.2f})"
            mark = "?" if each.is_unsure(self.min_score) else " "
            path = visible(each.path).ljust(width)
            lines.append(f" {score}{mark} {page}  {path}  {_cell(shown)}".rstrip())
        lines += [f"problem: {_cell(problem)}" for problem in self.problems]
        lines += [f"note: {_cell(note)}" for note in self.notes]
        if self.value is None:
            lines.append("The fields make no valid object; see the problems.")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return (
            f"Extraction({_cell(self.schema_name)}, {counted(len(self.fields), 'field')}, "
            f"{len(self.missing)} missing, {counted(len(self.problems), 'problem')})"
        )


def rounded(value: float) -> float | None:
    """A score for people and files; None for NaN."""
    return round(value, 4) if math.isfinite(value) else None


def plain_value(value: Any) -> Any:
    """A value as JSON holds it."""
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, Decimal):
        return str(value)
    return value.value if isinstance(value, Enum) else value


def shown_value(value: Any) -> str:
    """A value as people read it; "" for None."""
    plain = plain_value(value)
    if isinstance(plain, bool):
        return "yes" if plain else "no"
    return "" if plain is None else str(plain)


def csv_text(rows: Iterable[Sequence[Any]], *, safe: bool = False) -> str:
    """CSV with a heading; every text is quoted, and its control characters are written out. With
    `safe`, what a spreadsheet would take for a formula begins with an apostrophe."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    writer.writerow(CSV_COLUMNS)
    writer.writerows([_csv_cell(cell, safe=safe) for cell in row] for row in rows)
    return file.getvalue()


def write_parquet(path: str | Path, rows: Sequence[Sequence[Any]]) -> None:
    """Raises MissingExtraError without pyarrow, OptionError where the file cannot be written."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise MissingExtraError("pyarrow", "data", "Writing Parquet") from error
    numbers = {"score", "held", "x1", "y1", "x2", "y2"}
    kinds = {
        name: pyarrow.float64() if name in numbers else pyarrow.string() for name in CSV_COLUMNS
    }
    kinds["page"] = pyarrow.int32()
    columns = {
        name: pyarrow.array([_storable(row[index]) for row in rows], type=kinds[name])
        for index, name in enumerate(CSV_COLUMNS)
    }
    with replacing(Path(path)) as unfinished:
        pyarrow.parquet.write_table(pyarrow.table(columns), str(unfinished))


def _cell(text: str) -> str:
    return visible(one_line(text))


def _csv_cell(cell: Any, *, safe: bool) -> Any:
    if isinstance(cell, str):
        return csv_cell(cell, safe=safe)
    return "" if cell is None else cell


def _storable(cell: Any) -> Any:
    """A cell without what UTF-8 cannot hold, such as in names of files that are not UTF-8."""
    return cell.encode("utf-8", "backslashreplace").decode() if isinstance(cell, str) else cell
