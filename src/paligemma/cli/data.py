"""`paligemma data`: check a data set before training."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from paligemma.cli.console import (
    check_output_files,
    print_json,
    print_note,
    print_table,
    print_text,
    progress_bar,
)
from paligemma.cli.options import Command, Json, takes
from paligemma.errors import DataError, counted
from paligemma.options import Option
from paligemma.writing import write_whole

if TYPE_CHECKING:
    from paligemma.data.check import CheckReport
    from paligemma.data.check_page import BatchRow
    from paligemma.data.open import Records
    from paligemma.data.source import ReadOptions
    from paligemma.data.targets import TargetBuilder, TargetOptions

app = typer.Typer(
    help="Check data sets of labeled images.", no_args_is_help=True, rich_markup_mode=None
)

_MAX_LISTED = 12


@app.callback()
def _group() -> None: ...


@dataclass(frozen=True, kw_only=True)
class CheckOptions:
    """The data set to check and the page to write."""

    data: str
    """File or folder of labeled images: JSON Lines, COCO, YOLO, Pascal VOC, masks, captions
    next to images, a Hugging Face data set or webdataset shards."""
    model: Annotated[str | None, Option(shown_default="mini")] = None
    """Model whose tokenizer and image size to use: mini, a hub id such as
    google/paligemma2-3b-pt-224, or a folder."""
    out: Path = Path("data-check.html")
    """File to write the HTML page to."""
    max_tokens: Annotated[int | None, Option(least=1, shown_default="no limit")] = None
    """Maximum number of tokens per example in training, image tokens included."""
    batch_size: Annotated[int, Option(least=1, most=64)] = 8
    """Number of examples to show on the page."""
    resize: Literal["squash", "pad"] = "squash"
    """How images are fitted to the square input: squash changes the aspect ratio, pad keeps it and
    adds borders."""
    offline: bool = False
    """Use only files that are already downloaded."""


@app.command(cls=Command)
@takes(
    options=CheckOptions,
    reading="paligemma.data.source:ReadOptions",
    targets="paligemma.data.targets:TargetOptions",
)
def check(
    *, options: CheckOptions, reading: ReadOptions, targets: TargetOptions, as_json: Json = False
) -> None:
    """Validate a data set and preview the first training batch.

    Reads all of the data, images included, and writes a page with the first batch: images with the
    boxes and masks that their tokens encode, tokens colored by whether they count in the loss,
    lengths, classes, and the precision that boxes and masks lose as tokens. Exits with code 2 if
    training would fail or would learn nothing.
    """
    from paligemma.checkpoints.hub import Source
    from paligemma.data.check_page import render_check_page
    from paligemma.data.open import open_data
    from paligemma.data.targets import TargetBuilder
    from paligemma.finetune.examples import RecordExamples, collate
    from paligemma.loading import load_processor

    check_output_files(options.out)
    # All faults are reported, not just the first.
    column = reading.column or (None if targets.task is None else "objects")
    records = open_data(
        options.data, replace(reading, column=column, on_bad_record="skip", max_skipped=1.0)
    )
    processor, codec = load_processor(
        options.model, source=Source(offline=options.offline), resize=options.resize
    )
    builder = TargetBuilder(
        processor=processor,
        class_names=records.class_names,
        task=targets.task or records.task,
        mask_codec=codec,
        options=targets,
    )
    report = _with_progress(records, builder, options, reading)
    usable = records.without(report.bad[len(records.skipped) :])
    rows = _first_batch(usable, builder, options.batch_size, targets.seed)
    if rows:
        examples = RecordExamples(records=records, targets=builder)
        positions = {record.record_id: index for index, record in enumerate(records.slots)}
        inputs = collate(processor, [examples[positions[row.record.record_id]] for row in rows])
        write_whole(options.out, render_check_page(report, builder, rows, inputs).encode())
    if as_json:
        print_json(report.to_dict())
    else:
        _print(report, options.out if rows else None)
    if errors := report.errors:
        raise DataError(
            f"The data set has {counted(len(errors), 'error')} to fix before training. The first: "
            f"{errors[0].text}"
        )


def _with_progress(
    records: Records, builder: TargetBuilder, options: CheckOptions, reading: ReadOptions
) -> CheckReport:
    from paligemma.data.check import check_data

    numbers = count(1)
    with progress_bar("reading") as show:
        return check_data(
            records,
            builder,
            max_tokens=options.max_tokens,
            on_bad_record=reading.on_bad_record,
            max_skipped=reading.max_skipped,
            on_record=lambda: show(next(numbers), len(records)),
        )


def _first_batch(
    records: Records, builder: TargetBuilder, batch_size: int, seed: int
) -> list[BatchRow]:
    """The first batch of training, without bad records."""
    from paligemma.data.check_page import BatchRow
    from paligemma.data.record import BadRecord
    from paligemma.finetune.batches import examples_of_step

    rows = []
    size = min(batch_size, len(records.slots))
    for epoch, place in examples_of_step(len(records.slots), size, seed, 0):
        record = records.slots[place]
        if isinstance(record, BadRecord):
            continue
        target = builder.build(record, epoch)
        rows.append(BatchRow(record=record, target=target, image=record.load_images()[0]))
    return rows


def _print(report: CheckReport, page: Path | None) -> None:
    print_text(f"{report.name}: {report.format}, {report.found}")
    totals = [row.total for row in report.rows]
    learned = [row.num_supervised for row in report.rows]
    lines = [("records", str(report.num_records)), ("invalid records", str(report.num_bad))]
    if totals:
        lines += [
            ("tokens per example", f"{min(totals)} to {max(totals)}"),
            ("image tokens per example", str(report.rows[0].num_image)),
            ("tokens in the loss per example", f"{min(learned)} to {max(learned)}"),
            ("truncated examples", str(sum(row.is_cut for row in report.rows))),
        ]
    if (trip := report.round_trip) is not None:
        for kind, mean, lowest in (
            ("box", trip.box_iou_mean, trip.box_iou_min),
            ("mask", trip.mask_iou_mean, trip.mask_iou_min),
        ):
            if mean is not None:
                label = f"{kind} IoU after encoding as tokens"
                lines.append((label, f"{mean:.3f}, lowest {lowest:.3f}"))
    print_table(None, ("", ""), lines)
    if report.class_counts:
        shown = [(name, str(count)) for name, count in report.class_counts[:_MAX_LISTED]]
        if rest := len(report.class_counts) - _MAX_LISTED:
            shown += [(f"and {rest} more", "")] if rest > 0 else []
        print_table(None, ("class", "objects"), shown, right=("objects",))
    if report.example is not None:
        print_text(f"example: {report.example}")
    for finding in report.findings:
        ids = f" [{', '.join(finding.ids[:5])}{', ...' if finding.ids[5:] else ''}]"
        print_text(f"{finding.level}: {finding.text}{ids if finding.ids else ''}")
    if page is not None:
        print_note(f"The first batch is shown in {page}")
