"""Benchmark: where a named test set lies, how it is asked and scored, and what others reached.

A person downloads the official files; a reader takes them as they are when unpacked into one
folder. Nothing is fetched here. Knows no single benchmark.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from paligemma.data.record import Record
from paligemma.errors import DataError, OptionError, PaliGemmaError
from paligemma.evals.datasets.published import PublishedScore, published_scores
from paligemma.evals.metrics.result import MetricResult

Task = Literal["answer", "caption", "detect", "segment", "read_text", "write"]
"""What the answer is: a word or two; a sentence; boxes with labels; a mask; boxes with what is
written there; or a longer text (HTML, SMILES, **kern, a report)."""
_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class Needed:
    """A file, or a folder of pictures (its path ends in "/"), that a person must bring."""

    path: str
    """Below the benchmark's folder."""
    source: str
    """A web address, or how to get it."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """What a reader is asked for."""

    folder: Path
    split: str
    resolution: int
    """Of the model; it matters where something is drawn into the picture (WidgetCap)."""


class Metric(Protocol):
    """Any of `evals/metrics`: texts with texts, objects with objects, words with words."""

    def score(self, predictions: Any, references: Any) -> MetricResult: ...


class Item(NamedTuple):
    """One question, with the group that its score is counted in."""

    record: Record
    group: str = ""
    files: tuple[Path, ...] = ()
    """Pictures behind `record.image`, where that is no path."""


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """One named test set."""

    name: str
    title: str
    task: Task
    prompt: str
    """The template; the reader fills it in."""
    metrics: Mapping[str, Metric]
    """By the word that the papers' tables have for it; the one that they print comes first. Empty
    where only people can judge."""
    splits: Mapping[str, tuple[str, ...]]
    """Name -> the rows of the papers' tables that it stands for; the first is the default."""
    needs: Callable[[str], tuple[Needed, ...]]
    """Split -> the files that its reader opens."""
    read: Callable[[Place], Iterable[Item]]
    homepage: str
    max_new_tokens: int
    mean_of_groups: bool = False
    """Score every group on its own; the score is the plain mean over them."""
    num_images: int = 1
    not_read_because: str = ""
    """Why there is no reader; empty where there is one."""
    note: str = ""
    """What differs from the papers' evaluation, or must be known to read the score."""

    @property
    def default_split(self) -> str:
        return next(iter(self.splits))

    def published(self, split: str) -> tuple[PublishedScore, ...]:
        """All published scores of a split, every model and resolution."""
        return tuple(score for row in self.splits[split] for score in published_scores(row))

    def missing(self, folder: str | Path, split: str | None = None) -> tuple[Needed, ...]:
        """Which of the needed files are not below the folder. Raises OptionError."""
        needs = self.needs(self.checked_split(split))
        return tuple(need for need in needs if not _is_there(Path(folder), need))

    def checked_split(self, split: str | None) -> str:
        """The split, or the default one for None. Raises OptionError for one that is not known."""
        if split is None:
            return self.default_split
        if split not in self.splits:
            known = ", ".join(self.splits)
            raise OptionError(f"{self.title} has no split {split!r}. There are: {known}.")
        return split


@dataclass(frozen=True, kw_only=True)
class BenchmarkData:
    """A benchmark's questions, read from files."""

    benchmark: Benchmark
    split: str
    records: tuple[Record, ...]
    groups: tuple[str, ...]
    """One for each record: question type, language or domain; empty texts where there are none."""

    @property
    def task(self) -> Task:
        return self.benchmark.task

    @property
    def metrics(self) -> Mapping[str, Metric]:
        return self.benchmark.metrics

    @property
    def published(self) -> tuple[PublishedScore, ...]:
        return self.benchmark.published(self.split)


def read_benchmark(
    benchmark: Benchmark, folder: str | Path, *, split: str | None = None, resolution: int = 224
) -> BenchmarkData:
    """Reads one split from the official files below `folder`; pictures are read later.

    Raises OptionError for an unknown split; DataError that lists what is missing and where it
    comes from, or says which file is not of the official form.
    """
    folder = Path(folder)
    split = benchmark.checked_split(split)
    if benchmark.not_read_because:
        raise DataError(
            f"The files of {benchmark.title} are not read: {benchmark.not_read_because}. Its "
            f"published scores are here; more at {benchmark.homepage}."
        )
    if missing := benchmark.missing(folder, split):
        raise DataError(_message_of_missing(benchmark, folder, split, missing))
    place = Place(folder=folder, split=split, resolution=resolution)
    try:
        items = tuple(benchmark.read(place))
    except PaliGemmaError:
        raise
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError, OSError) as error:
        raise DataError(
            f"The files of {benchmark.title} below {str(folder)!r} are not of the official form "
            f"({type(error).__name__}: {error}). Unpack the official files anew. "
            + _sources(benchmark, split)
        ) from error
    if not items:
        raise DataError(
            f"The files of {benchmark.title} below {str(folder)!r} hold nothing for the split "
            f"{split!r}. Are they the official ones? {_sources(benchmark, split)}"
        )
    _check_pictures(benchmark, folder, split, items)
    return BenchmarkData(
        benchmark=benchmark,
        split=split,
        records=tuple(item.record for item in items),
        groups=tuple(item.group for item in items),
    )


def _check_pictures(
    benchmark: Benchmark, folder: Path, split: str, items: tuple[Item, ...]
) -> None:
    named: dict[Path, None] = {}
    for item in items:
        own = (item.record.image,) if isinstance(item.record.image, Path) else ()
        named.update(dict.fromkeys((*own, *item.files)))
    missing = [path for path in named if not path.is_file()]
    if missing:
        names = [p.relative_to(folder) if p.is_relative_to(folder) else p for p in missing]
        shown = ", ".join(repr(str(name)) for name in names[:_SHOWN])
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        raise DataError(
            f"{len(missing)} of the {len(named)} pictures of {benchmark.title} ({split}) are not "
            f"below {str(folder)!r}: {shown}{more}. {_sources(benchmark, split)}"
        )


def _is_there(folder: Path, need: Needed) -> bool:
    path = folder / need.path
    return path.is_dir() if need.path.endswith("/") else path.is_file()


def _message_of_missing(
    benchmark: Benchmark, folder: Path, split: str, missing: tuple[Needed, ...]
) -> str:
    lines = "; ".join(f"{need.path} (from {need.source})" for need in missing)
    return (
        f"{benchmark.title} ({split}) needs files that are not below {str(folder)!r}: {lines}. "
        f"Download them yourself, accept their terms, and unpack them there."
    )


def _sources(benchmark: Benchmark, split: str) -> str:
    return "They come from " + ", ".join(
        dict.fromkeys(need.source for need in benchmark.needs(split))
    )
