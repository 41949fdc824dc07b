"""Read all photos of a folder, resumably, and make the catalog of what they say."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from paligemma.batch.journal import Entry, Journal
from paligemma.catalog.articles import Article, Cell, Grouping, group_photos, vote
from paligemma.catalog.reading import check_schema, read_photo
from paligemma.catalog.tables import check_output, write_table
from paligemma.data.source import fingerprint_of, images_below
from paligemma.errors import ImageError, NumericalError, OptionError, check_choice
from paligemma.extraction.options import ExtractOptions, QuestionLanguage
from paligemma.extraction.schema import Schema, read_schema
from paligemma.options import Option
from paligemma.processor.image import load_image
from paligemma.tasks.task import check_language

if TYPE_CHECKING:
    from paligemma.documents.asker import Asker

_OF_THE_MODEL = ("name", "adapter", "revision", "dtype", "quantization", "resize")
"""What distinguishes a model from others, whose results are not mixed with its own."""


@dataclass(frozen=True, kw_only=True)
class CatalogOptions:
    """How photos are read and become articles. Raises OptionError for values not allowed."""

    group: Grouping = "folder"
    """Which photos show the same article. folder: those in a folder of PHOTOS; name: hat-1.jpg and
    hat-2.jpg, hat_front.jpg and hat_back.jpg; none: each photo is an article."""
    min_score: Annotated[float, Option(least=0, most=1)] = 0.5
    """Minimum score; cells with lower scores are left empty."""
    language: str = "en"
    """Language code of the answers; "" leaves it out of the prompt."""
    question_language: QuestionLanguage = "en"
    """Language that the descriptions and names in the schema are written in."""
    batch_size: Annotated[int | None, Option(least=1, shown_default="by model")] = None
    """Number of questions to answer at a time."""

    def __post_init__(self) -> None:
        check_choice("group", self.group, Grouping)
        check_choice("question_language", self.question_language, QuestionLanguage)
        if self.language:
            check_language(self.language)
        if not isinstance(self.min_score, int | float) or not 0 <= self.min_score <= 1:
            raise OptionError(f"min_score is {self.min_score!r}; it must be a number from 0 to 1.")

    @property
    def for_photos(self) -> ExtractOptions:
        """How a photo is read: upright as it is, as a whole, without looking for places."""
        return ExtractOptions(
            language=self.language,
            question_language=self.question_language,
            min_score=0.0,
            turn=False,
            detect=False,
            whole_page_score=0.0,
            batch_size=self.batch_size,
        )


@dataclass(kw_only=True)
class CatalogJob:
    """A catalog while it is made: `use` a model, iterate over `photos()`, and `write()`.

    With `out`, what each photo says is kept in the folder `OUT.job` next to it, so that a run that
    was interrupted, or one over more photos, reads only photos that are new or changed.

    Raises OptionError for a schema or a file that cannot be used, ImageError for a folder without
    images.
    """

    folder: Path
    schema: Schema[Any]
    options: CatalogOptions
    out: Path | None = None
    _asker: Asker | None = None
    _said: dict[str, dict[str, Cell] | str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.names = check_schema(self.schema)
        self.all_photos = images_below(self.folder)
        if self.out is not None:
            check_output(self.out)

    def use(self, asker: Asker) -> None:
        """Take the model, and what it said in an earlier run. Raises OptionError where another
        model or schema, or another process, made what is there."""
        self._asker = asker
        with self._journal() as journal:
            if journal is not None:
                self._take(journal)

    @property
    def num_left(self) -> int:
        """Photos that are still to be read."""
        return len(self.all_photos) - len(self._said)

    def photos(self) -> Iterator[str]:
        """Read the photos that are not yet read, and yield the path of each as it is finished."""
        with self._journal() as journal:
            for photo in self.all_photos:
                if photo in self._said:
                    continue
                entry = self._read(photo)
                if journal is not None:
                    journal.add([entry])
                yield photo

    def articles(self) -> list[Article]:
        """The articles by name."""
        groups = group_photos(self.all_photos, self.options.group)
        return [self._article(name, groups[name]) for name in sorted(groups)]

    def write(self) -> None:
        """Write the table to `out`. Raises OptionError where it cannot be written."""
        if self.out is not None:
            write_table(self.out, self.articles(), self.schema)

    def _journal(self) -> Any:
        if self.out is None:
            return nullcontext()
        info: dict[str, Any] = getattr(self._asker, "info", dict)()
        settings = {
            "job": "catalog",
            "photos": str(self.folder.resolve()),
            "schema": dict(self.schema.json_schema),
            "language": self.options.language,
            "question_language": self.options.question_language,
            **{f"model {key}": info.get(key) for key in _OF_THE_MODEL},
        }
        return Journal.open(self.out.with_name(f"{self.out.name}.job"), settings)

    def _take(self, journal: Journal) -> None:
        wanted = {photo: fingerprint_of(self.folder / photo) for photo in self.all_photos}
        for entry in journal.entries():
            if entry.fingerprint == wanted.get(entry.key) and entry.result is not None:
                self._said[entry.key] = {
                    name: Cell.of(values) for name, values in entry.result.items()
                }

    def _read(self, photo: str) -> Entry:
        assert self._asker is not None
        start, fingerprint = time.perf_counter(), fingerprint_of(self.folder / photo)
        result, error = None, None
        try:
            loaded = load_image(self.folder / photo)
            cells = read_photo(self._asker, loaded, self.schema, self.options.for_photos)
            self._said[photo] = cells
            result = {name: cell.to_dict() for name, cell in cells.items()}
        except (ImageError, NumericalError) as caught:
            error = str(caught)
            self._said[photo] = error
        seconds = time.perf_counter() - start
        return Entry(
            key=photo, fingerprint=fingerprint, result=result, error=error, seconds=seconds
        )

    def _article(self, name: str, photos: list[str]) -> Article:
        said = {photo: self._said[photo] for photo in photos}
        read = [cells for cells in said.values() if not isinstance(cells, str)]
        return Article(
            name=name,
            photos=tuple(photos),
            cells={
                attribute: vote([cells[attribute] for cells in read]) for attribute in self.names
            },
            failed={photo: cells for photo, cells in said.items() if isinstance(cells, str)},
            min_score=self.options.min_score,
        )


def build_catalog(
    asker: Asker,
    folder: Path | str,
    schema: Any,
    out: Path | str | None = None,
    options: CatalogOptions | None = None,
    *,
    each: Callable[[str], object] = lambda photo: None,
) -> list[Article]:
    """The articles whose photos are in a folder, and their table in `out`: .csv, .jsonl, .parquet.

    `schema`: a pydantic model, a JSON schema, or "product". `each` is called with the path of each
    photo when it was read. With `out`, a run that was interrupted is resumed; see `CatalogJob`.

    Raises OptionError for a schema or options that cannot be used, before anything is read, and
    ImageError for a folder without images. A photo that cannot be read is in `failed`.
    """
    job = CatalogJob(
        folder=Path(folder),
        schema=read_schema(schema),
        options=options or CatalogOptions(),
        out=None if out is None else Path(out),
    )
    job.use(asker)
    for photo in job.photos():
        each(photo)
    job.write()
    return job.articles()
