"""check_data: what a data set would teach: token lengths, truncation, loss, classes, faults.

Builds every row exactly as training does, from the processor and the mask codec alone; no weights
are needed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from paligemma.data import findings
from paligemma.data.findings import LEVELS, Finding, RowLengths, TrainingRow
from paligemma.data.open import Records
from paligemma.data.record import Record
from paligemma.data.round_trip_report import RoundTripReport, round_trip
from paligemma.data.targets import Target, TargetBuilder
from paligemma.errors import DataError, ImageError, OptionError
from paligemma.processor.processor import Processor
from paligemma.processor.sequence import TokenSequence, build_example
from paligemma.results import Result


@dataclass(frozen=True, kw_only=True)
class CheckReport(Result):
    """The outcome of `check_data`."""

    name: str
    format: str
    found: str
    """In words, what was read."""
    num_records: int
    num_bad: int
    max_tokens: int | None
    findings: tuple[Finding, ...]
    """Errors first."""
    rows: tuple[RowLengths, ...]
    class_counts: tuple[tuple[str, int], ...]
    """Number of objects per class, in descending order."""
    round_trip: RoundTripReport | None

    @property
    def errors(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.level == "error")


def check_data(
    records: Records,
    builder: TargetBuilder,
    *,
    max_tokens: int | None = None,
    on_record: Callable[[], None] = lambda: None,
) -> CheckReport:
    """Check every record, including its images, as the first epoch would show it.

    `max_tokens` is the longest row that training takes, image tokens included; the rest is cut
    off, as in training. `on_record` is called after each record.

    Raises OptionError for a `max_tokens` below 1.
    """
    if max_tokens is not None and max_tokens < 1:
        raise OptionError(f"max_tokens is {max_tokens}; it must be at least 1.")
    bad = [(slot.record_id, slot.reason) for slot in records.skipped]
    lengths: list[RowLengths] = []
    rows: list[TrainingRow] = []
    for record in records:
        try:
            num_images = len(record.load_images())
            target = builder.build(record)
            tokens = build_row(builder.processor, target, num_images)
        except (DataError, ImageError) as error:
            bad.append((record.record_id, str(error)))
        else:
            lengths.append(_lengths(record, tokens, max_tokens))
            rows.append(TrainingRow(record=record, target=target))
        on_record()
    report = round_trip([row.record for row in rows], builder)
    counts = Counter(item.label for record in records for item in record.objects or ())

    def all_findings() -> Iterator[Finding]:
        yield from findings.bad_records(bad)
        yield from findings.lengths(lengths, max_tokens)
        yield from findings.texts(rows)
        yield from findings.object_lists(rows, builder.processor.tokenizer)
        if any(row.uses_objects for row in rows):
            yield from findings.objects(rows, builder)
            yield from findings.classes(counts, builder.class_names)
        yield from findings.token_losses(report)
        for note in records.notes:
            yield Finding(level="note", text=f"{note}.")

    return CheckReport(
        name=records.name,
        format=records.format,
        found=records.summary,
        num_records=len(records.slots),
        num_bad=len(bad),
        max_tokens=max_tokens,
        findings=tuple(sorted(all_findings(), key=lambda finding: LEVELS.index(finding.level))),
        rows=tuple(lengths),
        class_counts=tuple(counts.most_common()),
        round_trip=report if report.num_boxes else None,
    )


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
