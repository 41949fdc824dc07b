"""Benchmark: a named test set, with its official files, prompt, metrics and published scores.

The user downloads the official files and unpacks them into one folder; a reader reads them as they
are. Nothing is downloaded here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from paligemma.data.record import Record
from paligemma.errors import DataError, OptionError, PaliGemmaError
from paligemma.evals.datasets.prompts import ANSWER
from paligemma.evals.datasets.published import PublishedScore, published_scores
from paligemma.evals.named_metrics import Metric
from paligemma.processor.image import ImageSource

Task = Literal["answer", "caption", "detect", "segment", "read_text", "write"]
"""What the answer is: a word or two; a sentence; boxes with labels; a mask; boxes with the text
inside; or a longer text (HTML, SMILES, **kern, a report)."""
_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class Needed:
    """A file, or a folder of images (its path ends in "/"), that the user must download."""

    path: str
    """Relative to the benchmark's folder. One of two will do in "videos/ or frames/"."""
    source: str
    """A web address, or how to get it."""


@dataclass(frozen=True, kw_only=True)
class SplitSource:
    """What a reader reads: one split, from the files in a folder."""

    folder: Path
    split: str
    resolution: int
    """Of the model; it matters where something is drawn into the image (WidgetCap)."""
    num_images: int
    """Per question."""


class Item(NamedTuple):
    """One question, with the group that its score counts for."""

    record: Record
    group: str = ""
    files: tuple[Path, ...] = ()
    """The image files of the record besides `record.image`, or that it is made from."""


def item(
    record_id: object,
    image: Path | Callable[[], ImageSource],
    prefix: str,
    answer: str | Iterable[str],
    group: str = "",
    files: tuple[Path, ...] = (),
) -> Item:
    """A question with the text to learn, or with several people's answers or captions.

    >>> record = item(7, Path("a.jpg"), "answer en what?", "cat").record
    >>> record.record_id, record.suffix, record.references
    ('7', 'cat', ('cat',))
    >>> item(7, Path("a.jpg"), "caption en", ["a cat", "a pet"]).record.references
    ('a cat', 'a pet')
    """
    record = Record(
        record_id=str(record_id),
        image=image,
        prefix=prefix,
        suffix=answer if isinstance(answer, str) else "",
        references=(answer,) if isinstance(answer, str) else tuple(answer),
    )
    return Item(record, group, files)


def coco_images(*names: str) -> dict[str, str]:
    """The image folders of COCO with their sources, for `Benchmark.files`."""
    return {f"{name}/": f"http://images.cocodataset.org/zips/{name}.zip" for name in names}


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """One named test set."""

    name: str
    title: str
    task: Task = "answer"
    prompt: str = ANSWER
    """A template that the reader fills in."""
    metrics: Mapping[str, Metric]
    """By their names in the papers' tables; the printed one is first. Empty where only people can
    judge."""
    splits: Mapping[str, tuple[str, ...]]
    """Name -> its rows in the papers' tables; the first split is the default."""
    files: Callable[[str], Mapping[str, str]]
    """Split -> the files that its reader opens: `path` and `source` of each `Needed`."""
    read: Callable[[SplitSource], Iterable[Item]]
    homepage: str
    max_new_tokens: int = 32
    mean_of_groups: bool = False
    """Score each group separately; the score is the plain mean over them."""
    num_images: int = 1
    not_read_because: str = ""
    """Why there is no reader; empty where there is one."""
    note: str = ""
    """How this differs from the papers' evaluation, or how to read the score."""

    @property
    def default_split(self) -> str:
        return next(iter(self.splits))

    def published(self, split: str) -> tuple[PublishedScore, ...]:
        """All published scores of a split, every model and resolution."""
        return tuple(score for row in self.splits[split] for score in published_scores(row))

    def needs(self, split: str) -> tuple[Needed, ...]:
        """The files that the reader opens for a split."""
        files = self.files(split)
        return tuple(Needed(path=path, source=source) for path, source in files.items())

    def missing(self, folder: str | Path, split: str | None = None) -> tuple[Needed, ...]:
        """The needed files that are missing in the folder. Raises OptionError."""
        needs = self.needs(self.checked_split(split))
        return tuple(need for need in needs if not _exists(Path(folder), need))

    def checked_split(self, split: str | None) -> str:
        """The split, or the default one for None. Raises OptionError for an unknown split."""
        if split is None:
            return self.default_split
        if split not in self.splits:
            splits = ", ".join(self.splits)
            raise OptionError(f"{self.title} has no split {split!r}. Splits: {splits}.")
        return split


@dataclass(frozen=True, kw_only=True)
class BenchmarkData:
    """A benchmark's questions, read from files."""

    benchmark: Benchmark
    split: str
    records: tuple[Record, ...]
    groups: tuple[str, ...]
    """The group of each record: question type, language or domain; "" where there are none."""

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
    """Reads one split from the official files in `folder`; images are read later.

    Raises OptionError for an unknown split; DataError that lists the missing files and their
    sources, or names the file that is not in the official format.
    """
    folder = Path(folder)
    split = benchmark.checked_split(split)
    if benchmark.not_read_because:
        raise DataError(
            f"The files of {benchmark.title} are not read: {benchmark.not_read_because}. Its "
            f"published scores are available; more at {benchmark.homepage}."
        )
    if missing := benchmark.missing(folder, split):
        raise DataError(_message_of_missing(benchmark, folder, split, missing))
    source = SplitSource(
        folder=folder, split=split, resolution=resolution, num_images=benchmark.num_images
    )
    try:
        items = tuple(benchmark.read(source))
    except PaliGemmaError:
        raise
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError, OSError) as error:
        raise DataError(
            f"The files of {benchmark.title} in {str(folder)!r} are not in the official format "
            f"({type(error).__name__}: {error}). Unpack the official files again. "
            + _sources(benchmark, split)
        ) from error
    if not items:
        raise DataError(
            f"The files of {benchmark.title} in {str(folder)!r} have no records of the split "
            f"{split!r}. Are they the official files? {_sources(benchmark, split)}"
        )
    _check_images(benchmark, folder, split, items)
    return BenchmarkData(
        benchmark=benchmark,
        split=split,
        records=tuple(item.record for item in items),
        groups=tuple(item.group for item in items),
    )


def _check_images(benchmark: Benchmark, folder: Path, split: str, items: tuple[Item, ...]) -> None:
    named: dict[Path, None] = {}
    for item in items:
        image = (item.record.image,) if isinstance(item.record.image, Path) else ()
        named.update(dict.fromkeys((*image, *item.files)))
    missing = [path for path in named if not path.is_file()]
    if missing:
        names = [p.relative_to(folder) if p.is_relative_to(folder) else p for p in missing]
        shown = ", ".join(repr(str(name)) for name in names[:_SHOWN])
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        raise DataError(
            f"{len(missing)} of the {len(named)} images of {benchmark.title} ({split}) are missing "
            f"in {str(folder)!r}: {shown}{more}. {_sources(benchmark, split)}"
        )


def _exists(folder: Path, need: Needed) -> bool:
    return any(
        (folder / path).is_dir() if path.endswith("/") else (folder / path).is_file()
        for path in need.path.split(" or ")
    )


def _message_of_missing(
    benchmark: Benchmark, folder: Path, split: str, missing: tuple[Needed, ...]
) -> str:
    lines = "; ".join(f"{need.path} (from {need.source})" for need in missing)
    return (
        f"{benchmark.title} ({split}) needs files that are missing in {str(folder)!r}: {lines}. "
        f"Download them, accept their terms, and unpack them there."
    )


def _sources(benchmark: Benchmark, split: str) -> str:
    return "They come from " + ", ".join(
        dict.fromkeys(need.source for need in benchmark.needs(split))
    )
