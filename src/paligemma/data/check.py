"""What a data set would teach: lengths, truncation, what counts in the loss, classes, faults.

Builds every row exactly as training does. Knows no model beyond its processor and mask codec, and
prints nothing.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from paligemma.data.open import Records
from paligemma.data.record import Record
from paligemma.data.round_trip_report import RoundTripReport, round_trip
from paligemma.data.targets import Target, TargetBuilder
from paligemma.errors import DataError, ImageError, OptionError
from paligemma.processor.processor import Processor
from paligemma.processor.sequence import TokenSequence, build_example
from paligemma.results import Result
from paligemma.tasks.objects import parse_objects

Level = Literal["error", "warning", "note"]
_SHOWN_IDS = 20
_LOW_BOX_IOU, _LOW_MASK_IOU = 0.5, 0.7
_CONTROL = re.compile(r"<(image|bos|eos|pad)>")
_OBJECT_PREFIX = re.compile(r"(detect|segment) ")


@dataclass(frozen=True, kw_only=True)
class Finding(Result):
    """Something that the person should know; with an error, training would go wrong."""

    level: Level
    text: str
    ids: tuple[str, ...] = ()
    """Of the records concerned, at most 20."""


@dataclass(frozen=True, kw_only=True)
class RowLengths(Result):
    """The tokens of one record, before anything is cut."""

    record_id: str
    num_image: int
    num_prefix: int
    """BOS, prefix and separator."""
    num_suffix: int
    """With EOS."""
    num_supervised: int
    """Of those that are left after the cut, which count in the loss."""
    is_cut: bool

    @property
    def total(self) -> int:
        return self.num_image + self.num_prefix + self.num_suffix


@dataclass(frozen=True, kw_only=True)
class CheckReport(Result):
    """What `check_data` found."""

    name: str
    format: str
    found: str
    num_records: int
    num_bad: int
    max_tokens: int | None
    findings: tuple[Finding, ...]
    """Errors first."""
    rows: tuple[RowLengths, ...]
    class_counts: tuple[tuple[str, int], ...]
    """Objects of each class, most first."""
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
    """Look at every record, its pictures included, as the first epoch would show it.

    `max_tokens` is the longest row that training takes, image tokens included; what is beyond is
    cut, as training would. `on_record` is called after each record.

    Raises OptionError for a `max_tokens` below 1.
    """
    if max_tokens is not None and max_tokens < 1:
        raise OptionError(f"max_tokens is {max_tokens}; it must be at least 1.")
    bad = [(slot.record_id, slot.reason) for slot in records.skipped]
    rows: list[RowLengths] = []
    taught: list[tuple[Record, Target]] = []
    for record in records:
        try:
            num_images = len(record.load_images())
            target = builder.build(record)
            row = build_row(builder.processor, target, num_images)
        except (DataError, ImageError) as error:
            bad.append((record.record_id, str(error)))
        else:
            rows.append(_lengths(record, row, max_tokens))
            taught.append((record, target))
        on_record()
    report = round_trip([record for record, _ in taught], builder)
    classes = Counter(found.label for record in records for found in record.objects or ())
    findings = [
        *_about_bad(bad),
        *_about_lengths(rows, max_tokens),
        *_about_texts(taught),
        *_about_objects(taught, builder, classes),
        *_about_round_trip(report),
        *(Finding(level="note", text=f"{note}.") for note in records.notes),
    ]
    order = {"error": 0, "warning": 1, "note": 2}
    return CheckReport(
        name=records.name,
        format=records.format,
        found=records.found,
        num_records=len(records.slots),
        num_bad=len(bad),
        max_tokens=max_tokens,
        findings=tuple(sorted(findings, key=lambda finding: order[finding.level])),
        rows=tuple(rows),
        class_counts=tuple(classes.most_common()),
        round_trip=report if report.num_boxes else None,
    )


def build_row(processor: Processor, target: Target, num_images: int) -> TokenSequence:
    """The row of a record's pictures and its target, before pads."""
    return build_example(
        processor.tokenizer,
        target.prefix,
        target.suffix_parts,
        num_images,
        processor.num_image_tokens,
    )


def _lengths(record: Record, row: TokenSequence, max_tokens: int | None) -> RowLengths:
    num_image, num_suffix = sum(row.image_mask), sum(row.mask_ar)
    return RowLengths(
        record_id=record.record_id,
        num_image=num_image,
        num_prefix=len(row) - num_image - num_suffix,
        num_suffix=num_suffix,
        num_supervised=sum(row.loss_mask[:max_tokens]),
        is_cut=max_tokens is not None and len(row) > max_tokens,
    )


def _about_bad(bad: Sequence[tuple[str, str]]) -> Iterable[Finding]:
    for record_id, reason in bad[:_SHOWN_IDS]:
        yield Finding(level="error", text=reason, ids=(record_id,))
    if len(bad) > _SHOWN_IDS:
        rest = [record_id for record_id, _ in bad[_SHOWN_IDS:]]
        yield _finding("error", f"{len(rest)} more records cannot be used.", rest)


def _about_lengths(rows: Sequence[RowLengths], max_tokens: int | None) -> Iterable[Finding]:
    if not rows:
        yield Finding(level="error", text="No record is left to learn from.")
        return
    silent = [row.record_id for row in rows if row.num_supervised == 0]
    cut = [row.record_id for row in rows if row.is_cut]
    if silent:
        yield _finding(
            "error",
            f"{len(silent)} of {len(rows)} records have no token that counts in the loss: image "
            f"tokens and prefix fill all {max_tokens} tokens. Nothing is learned from them. Allow "
            f"longer rows, up to {max(row.total for row in rows)} tokens, or shorten the prefix.",
            silent,
        )
    if cut:
        all_cut = len(cut) == len(rows)
        yield _finding(
            "error" if all_cut else "warning",
            f"{len(cut)} of {len(rows)} records are longer than {max_tokens} tokens and lose their "
            f"end, and with it EOS: {'the model' if all_cut else 'from those the model'} never "
            f"learns to stop. The longest has {max(row.total for row in rows)}.",
            cut,
        )
    if len(cut) < len(rows):
        ends = len(rows) - len(cut)
        yield Finding(
            level="note", text=f"EOS ends the answer and counts in the loss in {ends} records."
        )


def _about_texts(taught: Sequence[tuple[Record, Target]]) -> Iterable[Finding]:
    control = [r for r, t in taught if _CONTROL.search(t.prefix) or _CONTROL.search(t.suffix)]
    if control:
        yield _finding(
            "warning",
            f"{len(control)} records spell out <image>, <bos>, <eos> or <pad>, which are read as "
            "plain letters here. Leave them out: they are added where they belong.",
            [record.record_id for record in control],
        )
    spaced = [r.record_id for r, t in taught if t.suffix != t.suffix.strip()]
    if spaced:
        yield _finding(
            "warning",
            f"{len(spaced)} suffixes begin or end with white space. The model's own answers do "
            "not: ' yes' is another token than 'yes'.",
            spaced,
        )
    answers = {(target.prefix, target.suffix) for _, target in taught}
    if len(taught) > 1 and len({suffix for _, suffix in answers}) == 1:
        yield Finding(
            level="error" if not any(suffix for _, suffix in answers) else "warning",
            text=f"All {len(taught)} records have the same answer, {taught[0][1].suffix[:80]!r}. "
            "There is nothing in the pictures to learn it from.",
        )


def _about_objects(
    taught: Sequence[tuple[Record, Target]], builder: TargetBuilder, classes: Counter[str]
) -> Iterable[Finding]:
    tokenizer = builder.processor.tokenizer
    broken: dict[str, str] = {}
    repeated: list[str] = []
    for record, target in taught:
        if not _OBJECT_PREFIX.match(target.prefix):
            continue
        true = "".join(p.text for p in target.suffix_parts) if not target.num_noise else ""
        ids = tokenizer.tokenize_text(true)
        read = parse_objects(ids, [0.0] * len(ids), tokenizer)
        for problem in read.problems:
            if problem.kind == "repeated":
                repeated.append(record.record_id)
            else:
                broken[record.record_id] = str(problem)
        if read.texts:
            broken.setdefault(record.record_id, f"{read.texts[0]!r} belongs to no box.")
    if broken:
        yield _finding(
            "warning",
            f"{len(broken)} answers to detect or segment are no list of objects. The first: "
            f"{next(iter(broken.values()))} The form is <loc y1><loc x1><loc y2><loc x2> label ; "
            "...",
            broken,
        )
    if repeated:
        yield _finding(
            "warning",
            f"{len(repeated)} objects are there twice, with the same label and box. A detector "
            "learns to repeat itself from them.",
            repeated,
        )
    with_objects = [(r, t) for r, t in taught if r.objects is not None and not r.suffix]
    if not with_objects:
        return
    empty = [r.record_id for r, _ in with_objects if not r.objects]
    if empty:
        too_many = len(empty) > len(with_objects) / 2
        yield _finding(
            "warning" if too_many else "note",
            f"{len(empty)} of {len(with_objects)} pictures have no object; the model learns to "
            f"{'call every box noise' if builder.options.noise_token else 'say nothing'} there.",
            empty,
        )
    if left_out := sum(target.num_left_out for _, target in with_objects):
        yield _finding(
            "warning",
            f"{left_out} objects are left out, beyond the budget of {builder.options.max_objects} "
            "a picture.",
            [r.record_id for r, t in with_objects if t.num_left_out],
        )
    if unseen := [name for name in builder.class_names if name not in classes]:
        yield Finding(
            level="warning",
            text=f"{len(unseen)} classes have no object: {', '.join(unseen[:_SHOWN_IDS])}.",
        )
    cases: dict[str, list[str]] = {}
    for name in classes:
        cases.setdefault(name.casefold(), []).append(name)
    if alike := [names for names in cases.values() if len(names) > 1]:
        pairs = "; ".join(" and ".join(sorted(names)) for names in alike[:5])
        yield Finding(level="warning", text=f"Classes that differ in capitals only: {pairs}.")
    has_masks = any(found.make_mask for r, _ in with_objects for found in r.objects or ())
    if has_masks and builder.task == "detect":
        yield Finding(
            level="note", text="The data have masks, which are not used to learn boxes (detect)."
        )


def _about_round_trip(report: RoundTripReport) -> Iterable[Finding]:
    if report.box_iou_min is not None and report.box_iou_min < _LOW_BOX_IOU:
        low = [o for o in report.worst if o.of == "box" and o.iou < _LOW_BOX_IOU]
        yield _finding(
            "warning",
            f"Some boxes keep less than {_LOW_BOX_IOU} IoU as tokens, the worst "
            f"{report.box_iou_min:.2f}: they are about as small as one of the 1024 steps.",
            [o.record_id for o in low],
        )
    if report.mask_iou_mean is not None and report.mask_iou_mean < _LOW_MASK_IOU:
        yield _finding(
            "warning",
            f"Masks keep {report.mask_iou_mean:.2f} IoU as tokens on average. No model can do "
            "better than its codec: look whether masks and boxes fit, and whether things are "
            "thin or full of holes.",
            [o.record_id for o in report.worst if o.of == "mask"],
        )


def _finding(level: Level, text: str, ids: Iterable[str]) -> Finding:
    return Finding(level=level, text=text, ids=tuple(dict.fromkeys(ids))[:_SHOWN_IDS])
