"""check_data: what a data set would teach: token lengths, truncation, loss, classes, faults.

Builds every row exactly as training does, from the processor and the mask codec alone; no weights
are needed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from paligemma.data import findings
from paligemma.data.findings import LEVELS, Finding, RowLengths, TrainingRow
from paligemma.data.open import Records
from paligemma.data.record import BadRecord, ImageKeys, OnBadRecord, Record, pixel_digest
from paligemma.data.round_trip_report import RoundTripReport, round_trip
from paligemma.data.source import MAX_SKIPPED
from paligemma.data.targets import Target, TargetBuilder
from paligemma.errors import DataError, InputError, OptionError
from paligemma.processor.image import LoadedImage
from paligemma.processor.processor import Processor
from paligemma.processor.sequence import TokenSequence, build_example
from paligemma.results import Result


@dataclass(frozen=True, kw_only=True)
class TrainingText(Result):
    """What a record teaches: the answer to a prefix."""

    record_id: str
    prefix: str
    suffix: str

    def __str__(self) -> str:
        suffix = self.suffix if len(self.suffix) <= 200 else f"{self.suffix[:200]}..."
        return f"{self.record_id}: {self.prefix!r} -> {suffix!r}"


@dataclass(frozen=True, kw_only=True)
class CheckReport(Result):
    """The outcome of `check_data`."""

    name: str
    format: str
    found: str
    """In words, what was read."""
    num_records: int
    bad: tuple[BadRecord, ...]
    """Records that cannot be used; with on_bad_record="skip" they are left out."""
    max_tokens: int | None
    findings: tuple[Finding, ...]
    """Errors first."""
    rows: tuple[RowLengths, ...]
    class_counts: tuple[tuple[str, int], ...]
    """Number of objects per class, in descending order."""
    round_trip: RoundTripReport | None
    example: TrainingText | None
    """What one of the records teaches; None without any."""

    @property
    def num_bad(self) -> int:
        return len(self.bad)

    @property
    def errors(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.level == "error")


def check_data(
    records: Records,
    builder: TargetBuilder,
    *,
    max_tokens: int | None = None,
    on_bad_record: OnBadRecord = "error",
    max_skipped: float = MAX_SKIPPED,
    image_keys: ImageKeys | None = None,
    on_record: Callable[[], None] = lambda: None,
) -> CheckReport:
    """Check every record, including its images, as the first epoch would show it.

    `max_tokens` is the longest row that training takes, image tokens included; the rest is cut
    off. With on_bad_record="skip", a record that cannot be used or is too long is left out, and is
    an error only where there are more than the share `max_skipped` of them. `image_keys` are those
    of all records, where they are known already. `on_record` is called after each record.

    Raises OptionError for a `max_tokens` below 1.
    """
    if max_tokens is not None and max_tokens < 1:
        raise OptionError(f"max_tokens is {max_tokens}; it must be at least 1.")
    tokenizer = builder.processor.tokenizer

    def digest(record: Record, image: LoadedImage) -> str:
        if record.objects is None:
            return ""
        return pixel_digest(image) if image_keys is None else image_keys[record.record_id][0]

    bad = list(records.skipped)
    lengths: list[RowLengths] = []
    rows: list[TrainingRow] = []
    for record in records:
        try:
            images = record.load_images()
            target = builder.build(record)
            row = _lengths(record, build_row(builder.processor, target, len(images)), max_tokens)
            if row.is_cut and on_bad_record == "skip":
                raise DataError(f"The record has {row.total} tokens; the limit is {max_tokens}.")
        except (DataError, InputError) as error:
            bad.append(_bad_record(record, error))
        else:
            lengths.append(row)
            rows.append(
                TrainingRow(
                    record=record,
                    target=target,
                    answer=findings.parse_answer(target, tokenizer),
                    pixel_digest=digest(record, images[0]),
                )
            )
        on_record()
    report = round_trip([row.record for row in rows], builder)
    counts = Counter(label for row in rows for label in findings.labels_of(row))

    def all_findings() -> Iterator[Finding]:
        yield from findings.bad_records(bad, len(records.slots), on_bad_record, max_skipped)
        yield from findings.lengths(lengths, max_tokens)
        causes = [*findings.ignored_classes(rows), *findings.units(rows)]
        yield from causes
        if not any(finding.level == "error" for finding in causes):
            yield from findings.same_answers(rows)
        yield from findings.texts(rows)
        yield from findings.object_lists(rows)
        yield from findings.classes(counts, builder.class_names)
        if any(row.uses_objects for row in rows):
            yield from findings.objects(rows, builder)
            yield from findings.boxes_and_masks(rows)
            yield from findings.areas(rows)
            yield from findings.duplicates(rows)
        yield from findings.token_losses(report)
        for note in records.notes:
            yield Finding(level="note", text=f"{note}.")

    return CheckReport(
        name=records.name,
        format=records.format,
        found=records.summary,
        num_records=len(records.slots),
        bad=tuple(bad),
        max_tokens=max_tokens,
        findings=tuple(sorted(all_findings(), key=lambda finding: LEVELS.index(finding.level))),
        rows=tuple(lengths),
        class_counts=tuple(counts.most_common()),
        round_trip=report if report.num_boxes else None,
        example=_example(rows),
    )


def _bad_record(record: Record, error: Exception) -> BadRecord:
    where = record.where or record.record_id
    reason = str(error) if where in str(error) else f"{where}: {error}"
    return BadRecord(record_id=record.record_id, where=where, reason=reason)


def _example(rows: Sequence[TrainingRow]) -> TrainingText | None:
    """The first record that has something to say, or the first."""
    for row in (*(row for row in rows if row.target.suffix), *rows[:1]):
        return TrainingText(
            record_id=row.record.record_id, prefix=row.target.prefix, suffix=row.target.suffix
        )
    return None


def build_row(processor: Processor, target: Target, num_images: int) -> TokenSequence:
    """The tokens of a record's images and its target, without padding."""
    return build_example(
        processor.tokenizer,
        target.prefix,
        target.suffix_parts,
        num_images,
        processor.num_image_tokens,
    )


def _lengths(record: Record, tokens: TokenSequence, max_tokens: int | None) -> RowLengths:
    num_image, num_suffix = sum(tokens.image_mask), sum(tokens.mask_ar)
    return RowLengths(
        record_id=record.record_id,
        num_image=num_image,
        num_prefix=len(tokens) - num_image - num_suffix,
        num_suffix=num_suffix,
        num_supervised=sum(tokens.loss_mask[:max_tokens]),
        is_cut=max_tokens is not None and len(tokens) > max_tokens,
    )
