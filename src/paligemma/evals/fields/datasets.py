"""Data sets of documents with fields: users' own, and public ones by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paligemma.data.record import BadRecord
from paligemma.errors import DataError, OptionError, PaliGemmaError
from paligemma.evals.fields.einvoices import read_einvoices
from paligemma.evals.fields.receipts import (
    CORD_SCHEMA,
    SROIE_SCHEMA,
    read_cord,
    read_funsd,
    read_sroie,
)
from paligemma.evals.fields.records import FieldRecord


@dataclass(frozen=True, kw_only=True)
class FieldBenchmark:
    """A public data set of documents, read from its official files in a folder."""

    name: str
    title: str
    schema: str | Mapping[str, Any]
    """The fields that its truth has: a built-in schema, or a JSON schema."""
    splits: tuple[str, ...]
    files: Callable[[str], Mapping[str, str]]
    """Split -> path of what is needed (a folder ends in "/") -> where to get it."""
    read: Callable[[Path, str], Iterable[FieldRecord | BadRecord]]
    note: str = ""


_CORD = "https://huggingface.co/datasets/naver-clova-ix/cord-v2"
_SROIE = "https://rrc.cvc.uab.es/?ch=13 (task 3)"
_FUNSD = "https://guillaumejaume.github.io/FUNSD/"

FIELD_BENCHMARKS = (
    FieldBenchmark(
        name="cord",
        title="CORD v2, receipts",
        schema=CORD_SCHEMA,
        splits=("test", "validation", "train"),
        files=lambda split: {"data/": _CORD},
        read=read_cord,
        note="Fields that few receipts have are left out. Published figures score whole sequences "
        "(Donut's tree edit accuracy), not fields.",
    ),
    FieldBenchmark(
        name="sroie",
        title="SROIE, receipts",
        schema=SROIE_SCHEMA,
        splits=("test", "train"),
        files=lambda split: {f"{split}/img/": _SROIE, f"{split}/entities/": _SROIE},
        read=read_sroie,
        note="Dates are day first: --date-order dmy.",
    ),
    FieldBenchmark(
        name="funsd",
        title="FUNSD, scanned forms",
        schema="form",
        splits=("test", "train"),
        files=lambda split: {f"dataset/{split}ing_data/": _FUNSD},
        read=read_funsd,
    ),
    FieldBenchmark(
        name="einvoices",
        title="Electronic invoices, with their XML as the truth",
        schema="invoice",
        splits=("all",),
        files=lambda split: {},
        read=lambda folder, split: read_einvoices(folder),
    ),
)


def find_field_benchmark(name: str) -> FieldBenchmark | None:
    """The data set of a name; None where there is none."""
    normalized = name.strip().lower().replace("_", "-")
    return next((each for each in FIELD_BENCHMARKS if each.name == normalized), None)


def open_field_benchmark(
    benchmark: FieldBenchmark, folder: str | Path, split: str | None = None
) -> Sequence[FieldRecord | BadRecord]:
    """The documents of one split, by default the first.

    Raises OptionError for an unknown split; DataError that lists missing files and their sources,
    or for files that are not in the official format.
    """
    folder = Path(folder)
    split = split or benchmark.splits[0]
    if split not in benchmark.splits:
        raise OptionError(
            f"{benchmark.title} has no split {split!r}. Splits: {', '.join(benchmark.splits)}."
        )
    missing = {
        path: source
        for path, source in benchmark.files(split).items()
        if not (folder / path).is_dir()
    }
    if missing or not folder.is_dir():
        needed = "; ".join(f"{path} (from {source})" for path, source in missing.items())
        raise DataError(
            f"{benchmark.title} ({split}) needs files that are missing in {str(folder)!r}: "
            f"{needed or 'the folder itself'}. Download them and unpack them there."
        )
    try:
        records = list(benchmark.read(folder, split))
    except PaliGemmaError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, OSError) as error:
        raise DataError(
            f"The files of {benchmark.title} in {str(folder)!r} are not in the official format "
            f"({type(error).__name__}: {error}). Unpack the official files again."
        ) from error
    if not records:
        raise DataError(
            f"The files of {benchmark.title} in {str(folder)!r} have no documents of the split "
            f"{split!r}."
        )
    return records
