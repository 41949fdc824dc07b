"""Making an index: caption, read text and labels of every picture that is new or changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from paligemma.answering import ImageQuery, Query
from paligemma.data.source import fingerprint_of, images_below
from paligemma.errors import ImageError, NumericalError, OptionError, PaliGemmaError
from paligemma.extraction.values import is_absent
from paligemma.options import Option
from paligemma.processor.image import load_image
from paligemma.search.store import Picture, Store
from paligemma.tasks.detect import DetectTask
from paligemma.tasks.objects import read_phrases
from paligemma.tasks.task import check_language
from paligemma.tasks.text import CaptionTask, OcrTask

if TYPE_CHECKING:
    from paligemma.documents.asker import Asker

_OF_THE_MODEL = ("name", "adapter", "revision", "dtype", "quantization", "resize")
_AT_A_TIME = 16
"""Pictures in a transaction: what is lost at most when the process is killed."""


@dataclass(frozen=True, kw_only=True)
class IndexOptions:
    """What is read from each picture. Raises OptionError for values that are not allowed."""

    language: str = "en"
    """Language code of the captions."""
    detect: str = ""
    """Names of objects to look for in every picture, separated by " ; ", so that they can be
    searched for."""
    min_score: Annotated[float, Option(least=0, most=1)] = 0.5
    """Minimum score of a detected object; others do not become labels."""
    batch_size: Annotated[int | None, Option(least=1, shown_default="by model")] = None
    """Number of questions to answer at a time."""

    def __post_init__(self) -> None:
        check_language(self.language)
        if not isinstance(self.min_score, int | float) or not 0 <= self.min_score <= 1:
            raise OptionError(f"min_score is {self.min_score!r}; it must be a number from 0 to 1.")

    @property
    def phrases(self) -> tuple[str, ...]:
        """The names of objects. Raises PromptError for what is no name."""
        return read_phrases(self.detect)[0] if self.detect.strip() else ()


@dataclass(kw_only=True)
class IndexJob:
    """An index while it is made: `use` a model, then iterate over `pictures()`.

    Raises OptionError for options and files that cannot be used, ImageError for a folder without
    images.
    """

    folder: Path
    out: Path
    options: IndexOptions
    errors: dict[str, str] = field(default_factory=dict)
    """The pictures that could not be read, with the reason."""
    num_removed: int = 0
    """Pictures that are no longer there and were taken out."""
    _asker: Asker | None = None
    _store: Store | None = None
    _todo: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.phrases = self.options.phrases
        self.all_pictures = images_below(self.folder)
        if self.out.is_dir():
            raise OptionError(f"{str(self.out)!r} is a folder. Give the name of a file.")
        if not self.out.absolute().parent.is_dir():
            raise OptionError(f"The folder {self.out.parent} for {self.out.name} does not exist.")

    def use(self, asker: Asker) -> None:
        """Take the model, open the index, and take out pictures that are no longer there.

        Raises OptionError for a file that is no index or was made in another way.
        """
        info: dict[str, Any] = getattr(asker, "info", dict)()
        settings = {
            "folder": str(self.folder.resolve()),
            "language": self.options.language,
            "detect": list(self.phrases),
            "min_score": self.options.min_score,
            **{f"model {key}": info.get(key) for key in _OF_THE_MODEL},
        }
        # English words are found in all their forms: "frog" in "frogs".
        stemmer = "porter " if self.options.language[:2] == "en" else ""
        self._asker = asker
        self._store = Store.write(self.out, settings, f"{stemmer}unicode61 remove_diacritics 2")
        known = self._store.fingerprints()
        gone = known.keys() - set(self.all_pictures)
        if gone:
            self._store.change(removed=gone)
        self.num_removed = len(gone)
        for picture in self.all_pictures:
            fingerprint = fingerprint_of(self.folder / picture)
            if known.get(picture) != fingerprint:
                self._todo[picture] = fingerprint

    @property
    def num_left(self) -> int:
        """Pictures that are new or changed."""
        return len(self._todo)

    def pictures(self) -> Iterator[str]:
        """Read the pictures that are new or changed, and yield the path of each when it is done.

        They are added in groups; those of a group that is not finished are read again in the next
        run.
        """
        assert self._asker is not None
        assert self._store is not None
        ready: list[Picture] = []
        failed: list[str] = []
        tasks = self._tasks()
        answers = self._asker.answer(self._queries(tasks), self.options.batch_size)
        try:
            for path, fingerprint in self._todo.items():
                said = [next(answers) for _ in tasks]
                made = self._picture(path, fingerprint, said)
                if made is None:
                    failed.append(path)
                else:
                    ready.append(made)
                if len(ready) + len(failed) >= _AT_A_TIME:
                    self._store.change(ready, failed)
                    ready, failed = [], []
                yield path
        finally:
            self._store.change(ready, failed)
            self._store.close()

    def _tasks(self) -> list[Any]:
        tasks: list[Any] = [CaptionTask(language=self.options.language), OcrTask()]
        return [*tasks, DetectTask(phrases=self.phrases)] if self.phrases else tasks

    def _queries(self, tasks: list[Any]) -> Iterator[ImageQuery]:
        for path in self._todo:
            read = partial(load_image, self.folder / path)
            yield from (ImageQuery(images=(read,), query=Query(task=task)) for task in tasks)

    def _picture(self, path: str, fingerprint: str, said: list[Any]) -> Picture | None:
        for answer in said:
            if isinstance(answer, ImageError | NumericalError):
                self.errors[path] = str(answer)
                return None
            if isinstance(answer, PaliGemmaError):
                raise answer
        caption, text, *found = said
        is_read = not is_absent(text.text)
        scores = {"caption": round(caption.score, 4)}
        if is_read:
            scores["text"] = round(text.score, 4)
        labels = (
            each.label
            for objects in found
            for each in objects
            if each.score >= self.options.min_score
        )
        return Picture(
            path=path,
            fingerprint=fingerprint,
            caption=caption.text,
            text=text.text if is_read else "",
            labels=tuple(dict.fromkeys(labels)),
            scores=scores,
        )


def build_index(
    asker: Asker,
    folder: Path | str,
    out: Path | str,
    options: IndexOptions | None = None,
    *,
    each: Callable[[str], object] = lambda picture: None,
) -> dict[str, str]:
    """Index the images in a folder and below, or bring the index `out` up to date.

    Returns the pictures that could not be read, with the reason. `each` is called with the path of
    every picture that was read. A run that was interrupted, or killed, is continued by the next.

    Raises OptionError for an index that was made with another model, folder or option.
    """
    job = IndexJob(folder=Path(folder), out=Path(out), options=options or IndexOptions())
    job.use(asker)
    for picture in job.pictures():
        each(picture)
    return job.errors
