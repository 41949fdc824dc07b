"""`paligemma data`: what a data set would teach, before it does."""

from __future__ import annotations

import os
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from paligemma.cli.console import print_json, print_note, print_table, print_text, progress_bar
from paligemma.cli.data_options import (
    Ask,
    DataFormat,
    MaxObjects,
    NoiseToken,
    ObjectTask,
    Order,
    Prefix,
    Split,
)
from paligemma.errors import DataError, ImageError, OptionError

if TYPE_CHECKING:
    from paligemma.data.check import CheckReport
    from paligemma.data.check_page import BatchRow
    from paligemma.data.open import Records
    from paligemma.data.targets import TargetBuilder

app = typer.Typer(
    help="Labelled pictures to learn from.", no_args_is_help=True, rich_markup_mode=None
)

_MAX_LISTED = 12


@app.callback()
def _group() -> None: ...


@app.command()
def check(
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            help="A file or folder: JSON Lines, COCO, YOLO, Pascal VOC, masks, captions beside "
            "pictures, a Hugging Face data set, webdataset shards.",
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option(
            envvar="PALIGEMMA_MODEL",
            help="Whose tokens and picture size count: mini, a hub id or a folder.",
            show_default="mini",
        ),
    ] = None,
    format: DataFormat = None,
    split: Split = None,
    images: Annotated[
        Path | None, typer.Option(help="Folder of the pictures.", show_default="beside the labels")
    ] = None,
    prefix: Prefix = None,
    task: ObjectTask = None,
    ask: Ask = "dataset",
    order: Order = "random",
    max_objects: MaxObjects = None,
    noise_token: NoiseToken = None,
    labels: Annotated[bool, typer.Option(help="Write labels behind boxes.")] = True,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Longest row that training takes, image tokens included.",
            show_default="no limit",
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, max=64, help="Rows of the first batch.")] = 8,
    seed: Annotated[int, typer.Option(min=0, help="Of the order of training.")] = 0,
    resize: Annotated[
        Literal["squash", "pad"], typer.Option(help="How pictures are laid into the square.")
    ] = "squash",
    offline: Annotated[
        bool, typer.Option("--offline", help="Use only what is already downloaded.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="The page to write.", show_default="data-check.html")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object on stdout, nothing else.")
    ] = False,
) -> None:
    """Show what the model will see, and whether it would learn anything.

    Reads all of the data, pictures included, and writes a page with the first batch: pictures
    with the boxes and masks that their tokens say, tokens colored by whether they are learned,
    lengths, classes, and what boxes and masks lose as tokens. Ends with exit code 2 where training
    would fail, or silently learn nothing.
    """
    from paligemma.checkpoints.hub import Source
    from paligemma.data.check_page import render_page
    from paligemma.data.open import open_data
    from paligemma.data.targets import TargetBuilder, TargetOptions
    from paligemma.finetune.collate import collate
    from paligemma.finetune.examples import RecordExamples
    from paligemma.loading import load_processor

    options = TargetOptions(
        task=task,
        ask=ask,
        order=order,
        max_objects=max_objects,
        noise_token=noise_token,
        write_labels=labels,
        seed=seed,
    )
    # Everything is to be found, not the first fault alone.
    records = open_data(
        data, format=format, split=split, images=images, prefix=prefix, bad="skip", max_skipped=1.0
    )
    processor, codec = load_processor(model, source=Source(offline=offline), resize=resize)
    builder = TargetBuilder(
        processor=processor,
        class_names=records.class_names,
        task=task or records.task,
        mask_codec=codec,
        options=options,
    )
    report = _with_progress(records, builder, max_tokens)
    rows = _first_batch(records, builder, batch_size, seed)
    page = out or Path("data-check.html")
    if rows:
        examples = RecordExamples(records=records, targets=builder)
        places = {record.record_id: place for place, record in enumerate(records.slots)}
        inputs = collate(processor, [examples[places[row.record.record_id]] for row in rows])
        _write(page, render_page(report, builder, rows, inputs))
    if as_json:
        print_json(report.to_dict())
    else:
        _print(report, page if rows else None)
    if errors := report.errors:
        raise DataError(
            f"{len(errors)} fault(s) of the data must be repaired before training; the first: "
            f"{errors[0].text}"
        )


def _with_progress(records: Records, builder: TargetBuilder, max_tokens: int | None) -> CheckReport:
    from paligemma.data.check import check_data

    numbers = count(1)
    with progress_bar("reading") as show:
        return check_data(
            records,
            builder,
            max_tokens=max_tokens,
            on_record=lambda: show(next(numbers), len(records)),
        )


def _first_batch(
    records: Records, builder: TargetBuilder, batch_size: int, seed: int
) -> list[BatchRow]:
    """What the first step of training would see, without what it could not read."""
    from paligemma.data.check_page import BatchRow
    from paligemma.data.record import BadRecord
    from paligemma.finetune.dataset import places_of_step

    rows = []
    size = min(batch_size, len(records.slots))
    for epoch, place in places_of_step(len(records.slots), size, seed, 0):
        record = records.slots[place]
        if isinstance(record, BadRecord):
            continue
        try:
            target = builder.build(record, epoch)
            rows.append(BatchRow(record=record, target=target, image=record.load_images()[0]))
        except (DataError, ImageError):
            continue
    return rows


def _write(page: Path, html: str) -> None:
    unfinished = page.with_name(f".{page.name}.unfinished")
    try:
        unfinished.write_text(html, encoding="utf-8")
        os.replace(unfinished, page)
    except OSError as error:
        raise OptionError(f"The page {page} cannot be written: {error}. Choose --out.") from error


def _print(report: CheckReport, page: Path | None) -> None:
    print_text(f"{report.name}: {report.format}, {report.found}")
    totals = [row.total for row in report.rows]
    learned = [row.num_supervised for row in report.rows]
    lines = [("records", str(report.num_records)), ("that cannot be used", str(report.num_bad))]
    if totals:
        lines += [
            ("tokens of a row", f"{min(totals)} to {max(totals)}"),
            ("of these image tokens", str(report.rows[0].num_image)),
            ("learned in a row", f"{min(learned)} to {max(learned)}"),
            ("rows that are cut", str(sum(row.is_cut for row in report.rows))),
        ]
    trip = report.round_trip
    if trip is not None and trip.box_iou_mean is not None:
        lines.append(
            ("box IoU as tokens", f"{trip.box_iou_mean:.3f}, lowest {trip.box_iou_min:.3f}")
        )
    if trip is not None and trip.mask_iou_mean is not None:
        lines.append(
            ("mask IoU as tokens", f"{trip.mask_iou_mean:.3f}, lowest {trip.mask_iou_min:.3f}")
        )
    print_table(None, ("", ""), lines)
    if report.class_counts:
        shown = [(name, str(count)) for name, count in report.class_counts[:_MAX_LISTED]]
        if rest := len(report.class_counts) - _MAX_LISTED:
            shown += [(f"and {rest} more", "")] if rest > 0 else []
        print_table(None, ("class", "objects"), shown, right=("objects",))
    for finding in report.findings:
        ids = f" [{', '.join(finding.ids[:5])}{', ...' if finding.ids[5:] else ''}]"
        print_text(f"{finding.level}: {finding.text}{ids if finding.ids else ''}")
    if page is not None:
        print_note(f"The first batch is drawn in {page}")
