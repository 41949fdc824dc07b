"""Findings: what would go wrong when training on a data set, or is worth knowing first.

One function per subject. Each takes the rows that training would see and yields findings.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from paligemma.data.open import max_bad
from paligemma.data.overlap import iou_of_boxes
from paligemma.data.record import BadRecord, OnBadRecord, Record
from paligemma.data.round_trip_report import RoundTripReport
from paligemma.data.targets import Target, TargetBuilder
from paligemma.errors import DataError, counted
from paligemma.processor.tokenizer import Tokenizer
from paligemma.results import Result
from paligemma.tasks.objects import SEPARATOR, ParsedObjects, parse_objects, split_phrases
from paligemma.tasks.parse_prompt import kind_of_prompt

Level = Literal["error", "warning", "note"]
LEVELS: tuple[Level, ...] = ("error", "warning", "note")
MAX_IDS = 20
"""Record ids that one finding lists."""
_LOW_BOX_IOU, _LOW_MASK_IOU = 0.5, 0.7
_MAX_FRACTION = 1.5  # pixels
_MAX_AREA_SHARE = 1.05  # of the box
_SPECIAL_TOKEN = re.compile(r"<(loc\d{4}|seg\d{3})>")
_CONTROL_TOKEN = re.compile(r"<(image|bos|eos|pad)>")


@dataclass(frozen=True, kw_only=True)
class Finding(Result):
    """Something to know about a data set; with an error, training would go wrong."""

    level: Level
    text: str
    ids: tuple[str, ...] = ()
    """The records concerned, at most 20."""


@dataclass(frozen=True, kw_only=True)
class RowLengths(Result):
    """The tokens of one record, before anything is cut."""

    record_id: str
    num_image: int
    num_prefix: int
    """BOS, prefix and separator."""
    num_suffix: int
    """Including EOS."""
    num_supervised: int
    """Suffix tokens that count in the loss and are not cut off."""
    is_cut: bool

    @property
    def total(self) -> int:
        return self.num_image + self.num_prefix + self.num_suffix


@dataclass(frozen=True, kw_only=True)
class TrainingRow:
    """A record and the target that the first epoch builds from it."""

    record: Record
    target: Target
    answer: ParsedObjects | None = None
    """The answer to detect or segment, parsed as the model's; None for other answers, and where
    some of it is noise."""
    pixel_digest: str = ""
    """Of the first image; equal pixels have equal digests."""

    @property
    def uses_objects(self) -> bool:
        """Whether the target is built from the record's objects, not from a given suffix."""
        return self.record.objects is not None and not self.record.suffix


def bad_records(
    bad: Sequence[BadRecord], num_records: int, on_bad_record: OnBadRecord, max_skipped: float
) -> Iterator[Finding]:
    """Errors, or with on_bad_record="skip" a warning as long as they are few enough."""
    level: Level = "error" if on_bad_record == "error" else "warning"
    if level == "warning" and bad:
        limit = max_bad(num_records, max_skipped)
        yield _finding(
            "error" if len(bad) > limit else "warning",
            f"{len(bad)} of {num_records} records are skipped."
            if len(bad) <= limit
            else f"{len(bad)} of {num_records} records are bad; at most {int(limit)} may be "
            "skipped. Allow more with --max-skipped.",
            [record.record_id for record in bad],
        )
    for record in bad[:MAX_IDS]:
        yield Finding(level=level, text=record.reason, ids=(record.record_id,))
    if len(bad) > MAX_IDS:
        rest = [record.record_id for record in bad[MAX_IDS:]]
        yield _finding(level, f"{counted(len(rest), 'more record')} cannot be used.", rest)


def lengths(rows: Sequence[RowLengths], max_tokens: int | None) -> Iterator[Finding]:
    if not rows:
        yield Finding(level="error", text="No record is left to train on.")
        return
    longest = max(row.total for row in rows)
    unsupervised = [row.record_id for row in rows if row.num_supervised == 0]
    cut = [row.record_id for row in rows if row.is_cut]
    if unsupervised:
        yield _finding(
            "error",
            f"{len(unsupervised)} of {len(rows)} records have no token that counts in the loss: "
            f"image tokens and prefix fill all {max_tokens} tokens. Nothing is learned from them. "
            f"Allow longer rows, up to {longest} tokens, or shorten the prefix.",
            unsupervised,
        )
    if cut:
        all_cut = len(cut) == len(rows)
        yield _finding(
            "error" if all_cut else "warning",
            f"{len(cut)} of {len(rows)} records are longer than {max_tokens} tokens and lose their "
            f"end, and with it EOS: {'the model' if all_cut else 'from those the model'} never "
            f"learns to stop. The longest has {longest}.",
            cut,
        )
    if complete := len(rows) - len(cut):
        yield Finding(
            level="note",
            text=f"EOS ends the answer and counts in the loss in {counted(complete, 'record')}.",
        )


def texts(rows: Sequence[TrainingRow]) -> Iterator[Finding]:
    spelled_out = [
        row.record.record_id
        for row in rows
        if _CONTROL_TOKEN.search(row.target.prefix) or _CONTROL_TOKEN.search(row.target.suffix)
    ]
    if spelled_out:
        yield _finding(
            "warning",
            f"{counted(len(spelled_out), 'record spells', 'records spell')} out <image>, <bos>, "
            "<eos> or "
            "<pad>, which are read as plain text here. Leave them out: they are added where they "
            "belong.",
            spelled_out,
        )
    spaced = [r.record.record_id for r in rows if r.target.suffix != r.target.suffix.strip()]
    if spaced:
        yield _finding(
            "warning",
            f"{counted(len(spaced), 'suffix begins or ends', 'suffixes begin or end')} with white "
            "space. "
            "Answers of the model do not: ' yes' is not the same token as 'yes'. Strip it.",
            spaced,
        )
    odd = [r.record.record_id for r in rows if r.target.prefix != r.target.prefix.strip()]
    if odd:
        yield _finding(
            "warning",
            f"{counted(len(odd), 'prefix begins or ends', 'prefixes begin or end')} with white "
            "space or a line break, which becomes a token that users will not type. Strip it.",
            odd,
        )
    other_lists = {
        row.record.record_id: (row.target.prefix, usual)
        for row in rows
        if (usual := _usual_list(row.target.prefix)) not in (None, row.target.prefix.strip())
    }
    if other_lists:
        prefix, usual = next(iter(other_lists.values()))
        yield _finding(
            "warning",
            f"{counted(len(other_lists), 'prefix lists', 'prefixes list')} phrases in another form "
            f"than detect and segment send: {prefix!r} instead of {usual!r}. Other tokens are "
            "learned than are asked with.",
            other_lists,
        )


def _usual_list(prefix: str) -> str | None:
    """The prefix of detect or segment as this package writes it; None for another prefix."""
    word, _, rest = prefix.strip().partition(" ")
    if word not in ("detect", "segment") or not rest.strip(" ;"):
        return None
    if _SPECIAL_TOKEN.search(rest):  # of a model tuned for another form
        return None
    return f"{word} {SEPARATOR.join(split_phrases(rest))}"


def same_answers(rows: Sequence[TrainingRow]) -> Iterator[Finding]:
    suffixes = {row.target.suffix for row in rows}
    if len(rows) > 1 and len(suffixes) == 1:
        (suffix,) = suffixes
        yield Finding(
            level="warning" if suffix else "error",
            text=f"All {len(rows)} records have the same answer, {suffix[:80]!r}. There is nothing "
            "in the images to learn it from.",
        )


def parse_answer(target: Target, tokenizer: Tokenizer) -> ParsedObjects | None:
    """The `TrainingRow.answer` of a target."""
    if kind_of_prompt(target.prefix) not in ("detect", "segment") or target.num_noise:
        return None
    ids = tokenizer.tokenize_text(target.suffix)
    return parse_objects(ids, [0.0] * len(ids), tokenizer)


def labels_of(row: TrainingRow) -> list[str]:
    """The labels of the objects that a row teaches, also where the answer is given as text."""
    if row.uses_objects:
        return [item.label for item in row.record.objects or ()]
    return [item.label for item in row.answer.objects if item.label] if row.answer else []


def object_lists(rows: Sequence[TrainingRow]) -> Iterator[Finding]:
    """About answers to detect and segment that are not lists of objects, or repeat some."""
    broken: dict[str, str] = {}
    repeated: list[str] = []
    for row in rows:
        if row.answer is None:
            continue
        for problem in row.answer.problems:
            if problem.kind == "repeated":
                repeated.append(row.record.record_id)
            else:
                broken[row.record.record_id] = str(problem)
        if row.answer.texts:
            broken.setdefault(row.record.record_id, f"{row.answer.texts[0]!r} belongs to no box.")
    if broken:
        yield _finding(
            "warning",
            "Answers to detect or segment that are not lists of objects: "
            f"{len(broken)}. The first: "
            f"{next(iter(broken.values()))} The form is <loc y1><loc x1><loc y2><loc x2> label ; "
            "...",
            broken,
        )
    if repeated:
        yield _finding(
            "warning",
            f"{counted(len(repeated), 'object appears', 'objects appear')} twice, with the same "
            "label and "
            "box. A detector learns to repeat itself from this. Remove the duplicates.",
            repeated,
        )


def objects(rows: Sequence[TrainingRow], builder: TargetBuilder) -> Iterator[Finding]:
    """About images without objects, objects beyond the limit, and masks that are not used."""
    with_objects = [row for row in rows if row.uses_objects]
    empty = [row.record.record_id for row in with_objects if not row.record.objects]
    if empty:
        learned = "call every box noise" if builder.options.noise_token else "say nothing"
        yield _finding(
            "warning" if len(empty) > len(with_objects) / 2 else "note",
            f"{len(empty)} of {len(with_objects)} images have no object; the model learns to "
            f"{learned} there.",
            empty,
        )
    if left_out := sum(row.target.num_left_out for row in with_objects):
        yield _finding(
            "warning",
            f"{counted(left_out, 'object is', 'objects are')} left out: the limit is "
            f"{builder.options.max_objects} per image. Raise max_objects (--max-objects) to "
            "keep them.",
            [row.record.record_id for row in with_objects if row.target.num_left_out],
        )
    has_masks = any(item.make_mask for row in with_objects for item in row.record.objects or ())
    if has_masks and builder.task == "detect":
        yield Finding(
            level="note",
            text="The data set has masks, which detect does not use. To use them, train with "
            "task='segment' (--task segment).",
        )


def classes(counts: Counter[str], class_names: Sequence[str]) -> Iterator[Finding]:
    """`counts` holds the number of objects per class."""
    if unused := [name for name in class_names if name not in counts]:
        yield Finding(
            level="warning",
            text=f"{counted(len(unused), 'class has', 'classes have')} no object: "
            f"{', '.join(unused[:MAX_IDS])}.",
        )
    spellings: dict[str, list[str]] = {}
    for name in counts:
        spellings.setdefault(name.casefold(), []).append(name)
    if alike := [names for names in spellings.values() if len(names) > 1]:
        pairs = "; ".join(" and ".join(sorted(names)) for names in alike[:5])
        yield Finding(level="warning", text=f"Classes that differ in capitals only: {pairs}.")


def ignored_classes(rows: Sequence[TrainingRow]) -> Iterator[Finding]:
    """About classes of which all objects are crowds or difficult: nothing is learned of them."""
    learned = {item.label for row in rows for item in row.record.objects or ()}
    ignored = Counter(item.label for row in rows for item in row.record.crowds)
    names = [name for name in ignored if name not in learned]
    if names:
        yield _finding(
            "warning" if learned else "error",
            f"All {sum(ignored[name] for name in names)} annotations of {', '.join(names)} are "
            "marked as crowds (iscrowd) or as difficult, and are not learned. CVAT marks all masks "
            "drawn with its brush so. Learn them with crowds='learn' (--crowds learn).",
            [row.record.record_id for row in rows if row.record.crowds],
        )


def units(rows: Sequence[TrainingRow]) -> Iterator[Finding]:
    """About boxes that could be in fractions of the image where pixels are expected."""
    with_objects = [row for row in rows if row.uses_objects and row.record.objects]
    boxes = [(item.box_xyxy, row) for row in with_objects for item in row.record.objects or ()]
    tiny = [row.record.record_id for box, row in boxes if max(box) <= _MAX_FRACTION]
    if tiny:
        yield _finding(
            "error" if len(tiny) > len(boxes) / 2 else "warning",
            f"{len(tiny)} of {len(boxes)} boxes lie within the first {_MAX_FRACTION:g} pixels of "
            "their image. They look like fractions of the image; this format has pixels.",
            tiny,
        )


def boxes_and_masks(rows: Sequence[TrainingRow]) -> Iterator[Finding]:
    """About boxes that are not those of their masks."""
    differing: list[tuple[float, str]] = []
    count = 0
    for row in rows:
        for item in row.record.objects or ():
            if item.mask_box is None:
                continue
            count += 1
            try:
                iou = iou_of_boxes(item.box_xyxy, item.mask_box())
            except DataError:  # said where the mask is needed
                continue
            if iou < _LOW_BOX_IOU:
                differing.append((iou, row.record.record_id))
    if differing:
        iou, record_id = min(differing)
        yield _finding(
            "error" if len(differing) > count / 2 else "warning",
            f"{len(differing)} of {count} boxes do not fit the masks of their own objects: IoU "
            f"below {_LOW_BOX_IOU}, the lowest {iou:.2f} in {record_id}. Compute boxes from the "
            "masks with boxes='from-masks' (--boxes from-masks), or correct the data.",
            [record_id for _, record_id in differing],
        )


def areas(rows: Sequence[TrainingRow]) -> Iterator[Finding]:
    """About objects whose area, according to the data, is not one that their box can hold."""
    wrong: list[tuple[float, float, str]] = []
    count = 0
    for row in rows:
        for item in row.record.objects or ():
            if item.area is None:
                continue
            count += 1
            x1, y1, x2, y2 = item.box_xyxy
            of_box = (x2 - x1) * (y2 - y1)
            if item.area == 0 or item.area > _MAX_AREA_SHARE * of_box + 1:
                wrong.append((item.area, of_box, row.record.record_id))
    if wrong:
        area, of_box, record_id = max(wrong, key=lambda each: each[0] / each[1])
        yield _finding(
            "warning",
            f"{len(wrong)} of {count} objects have an area of 0, or a larger one than their box: "
            f"{area:g} in a box of {of_box:g} square pixels in {record_id}. One of the two is "
            "wrong. Evaluation tells small from large objects by it.",
            [record_id for *_, record_id in wrong],
        )


def duplicates(rows: Sequence[TrainingRow]) -> Iterator[Finding]:
    """About images that appear several times, each time with its own objects."""
    first: dict[str, TrainingRow] = {}
    same: list[str] = []
    differing: list[str] = []
    for row in rows:
        if not row.uses_objects or row.record.prefix or not row.pixel_digest:
            continue
        other = first.setdefault(row.pixel_digest, row)
        if other is not row:
            pairs = [
                sorted((item.label, item.box_xyxy) for item in each.record.objects or ())
                for each in (other, row)
            ]
            ids = same if pairs[0] == pairs[1] else differing
            ids += [other.record.record_id, row.record.record_id]
    if differing:
        yield _finding(
            "warning",
            f"{counted(len(differing) // 2, 'image repeats', 'images repeat')} another, pixel by "
            "pixel, with other objects: the model learns two answers to one question. Merge them.",
            differing,
        )
    if same:
        yield _finding(
            "note",
            f"{counted(len(same) // 2, 'image repeats', 'images repeat')} another, with the same "
            "objects.",
            same,
        )


def token_losses(report: RoundTripReport) -> Iterator[Finding]:
    """About boxes and masks that lose much as tokens."""
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
            "better than its codec: check whether masks and boxes belong together, and whether "
            "objects are thin or full of holes.",
            [o.record_id for o in report.worst if o.of == "mask"],
        )


def _finding(level: Level, text: str, ids: Iterable[str]) -> Finding:
    return Finding(level=level, text=text, ids=tuple(dict.fromkeys(ids))[:MAX_IDS])
