"""`paligemma compare`: several models on the same questions; and the votes on its page."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from paligemma.cli.console import print_json, print_note, print_table, print_text, progress_bar
from paligemma.cli.image_arguments import find_images
from paligemma.cli.options import Json, takes
from paligemma.errors import OptionError, counted

if TYPE_CHECKING:
    from paligemma.compare.comparison import Comparison, Row
    from paligemma.compare.options import CompareOptions

SomeFailed = 3


@takes(options="paligemma.compare.options:CompareOptions")
def compare(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...",
            show_default=False,
            help="Images (files, folders, quoted patterns) to ask about, or labeled data whose "
            "records are asked.",
        ),
    ],
    *,
    models: Annotated[
        list[str],
        typer.Option(
            "--models",
            help="Contestants, separated by commas; may be repeated. A checkpoint (mini, a hub id, "
            "a folder), with @int8, @int4, @float32, @bfloat16 or @float16 in that form; the "
            "folder of an adapter, or MODEL+ADAPTER; openai:NAME@URL for a chat model behind an "
            "OpenAI-compatible address, paligemma:NAME@URL for a PaliGemma behind one, with "
            "#VARIABLE for the environment variable of its key; transformers:MODEL; or a .jsonl "
            "file of recorded answers.",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out", help="Output folder for answers, report and page. Reuse it to resume."
        ),
    ],
    recursive: Annotated[
        bool, typer.Option("--recursive", help="Include the images in the folders of a folder.")
    ] = False,
    options: CompareOptions,
    as_json: Json = False,
) -> None:
    """Let several models answer the same questions, and compare quality, time and memory.

    Each contestant answers in a process of its own, one after the other. Writes report.json,
    answers.jsonl and compare.html, a page with all answers beside each other, sorted by
    disagreement, and a blind vote. With true answers, quality is scored as by `paligemma eval`,
    with paired intervals of differences; without, agreement is shown. To resume an interrupted run,
    repeat the command. Exit code 3: a contestant or some questions failed.
    """
    from paligemma.compare.comparison import PAGE_FILE, REPORT_FILE, compare_models

    if options.has_questions:
        sources = _image_files(sources, recursive=recursive)
    elif recursive:
        raise OptionError("--recursive is for images, which need a question, such as --caption.")
    with progress_bar("answering") as update:
        comparison = compare_models(
            sources,
            models,
            out,
            options,
            on_progress=lambda _, done, total: update(done, total),
        )
    if as_json:
        print_json(json.loads((out / REPORT_FILE).read_text(encoding="utf-8")))
    else:
        _show(comparison)
        print_text(f"All answers are in {out / PAGE_FILE}; open it in a browser.")
    if not comparison.is_complete:
        raise typer.Exit(SomeFailed)


def count_votes(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE...",
            show_default=False,
            help="Files of votes, which the page of `paligemma compare` saves.",
        ),
    ],
    *,
    as_json: Json = False,
) -> None:
    """Count the blind votes on a comparison.

    The win rate is the share of the first model among the votes for one of the two, with Wilson's
    95 % interval. A vote that is in two files counts once.
    """
    from paligemma.compare import votes

    pairs = votes.count_votes(files)
    if as_json:
        print_json(
            [
                {
                    **{name: getattr(pair, name) for name in pair.__dataclass_fields__},
                    "win_rate": pair.win_rate,
                    "interval": None
                    if pair.interval is None
                    else [pair.interval.low, pair.interval.high],
                }
                for pair in pairs
            ]
        )
        return
    columns = ("first", "second", "first better", "second better", "both", "neither", "first wins")
    rows = [
        (
            pair.first,
            pair.second,
            str(pair.first_better),
            str(pair.second_better),
            str(pair.both),
            str(pair.neither),
            ""
            if pair.win_rate is None or pair.interval is None
            else f"{pair.win_rate:.0%} ({pair.interval.low:.0%} .. {pair.interval.high:.0%})",
        )
        for pair in pairs
    ]
    print_table(None, columns, rows, right=columns[2:])


def _image_files(sources: list[str], *, recursive: bool) -> list[str]:
    names = []
    if web := next((source for source in sources if "://" in source), None):
        raise OptionError(f"{web!r} is an address. Save the image, and name the file.")
    for image in find_images(sources, recursive=recursive):
        if not isinstance(image.source, Path):
            raise OptionError(
                f"{image.name} is not a file, and every contestant reads the images again. Save it "
                "first."
            )
        names.append(os.fspath(image.source))
    return names


def _show(comparison: Comparison) -> None:
    for note in comparison.notes:
        print_note(note)
    if comparison.bad_note is not None:
        print_note(comparison.bad_note)
    columns = ("model", "answers", "failed", "s median", "s p95", "load s", "peak memory", "tokens")
    rows = [_row(row) for row in comparison.rows]
    print_table(None, columns, rows, right=columns[1:])
    for row in comparison.rows:
        if row.failure:
            print_note(f"{row.name}: {row.failure}")
        elif row.first_error:
            missing = counted(row.num_failed, "question has", "questions have")
            print_note(f"{row.name}: {missing} no answer. The first: {row.first_error}")
    _show_quality(comparison)
    for agreement in comparison.agreements if not comparison.qualities else ():
        matrix = [
            (name, *("–" if value is None else f"{value:.2f}" for value in values))
            for name, values in zip(agreement.names, agreement.similarity, strict=True)
        ]
        print_text(f"Agreement ({agreement.task}): mean similarity of two models' answers")
        print_table(None, ("", *agreement.names), matrix, right=agreement.names)


def _show_quality(comparison: Comparison) -> None:
    scores = [
        (
            quality.task,
            quality.result.name,
            quality.contestant,
            f"{quality.result.value:.4f}",
            ""
            if quality.interval is None
            else f"{quality.interval.low:.4f} .. {quality.interval.high:.4f}",
            str(quality.num_records),
        )
        for quality in comparison.qualities
    ]
    if scores:
        columns = ("task", "metric", "model", "value", "95 % interval", "records")
        print_table(None, columns, scores, right=("value", "records"))
    first_metrics = {q.task: q.result.name for q in reversed(comparison.qualities)}
    differences = [
        (
            each.first,
            each.second,
            each.metric,
            "" if math.isnan(each.value) else f"{each.value:+.4f}",
            ""
            if each.interval is None
            else f"{each.interval.low:+.4f} .. {each.interval.high:+.4f}",
            ""
            if each.mcnemar is None
            else f"{each.mcnemar.first_only} : {each.mcnemar.second_only}",
            "" if each.mcnemar is None else f"{each.mcnemar.p_value:.3g}",
        )
        for each in comparison.differences
        if each.metric == first_metrics[each.task]
    ]
    if differences:
        headings = ("first", "second", "metric", "difference", "95 % interval", "only one right",
                   "McNemar p")  # fmt: skip
        print_table(None, headings, differences, right=("difference", "McNemar p"))


def _row(row: Row) -> tuple[str, ...]:
    def seconds(value: float | None) -> str:
        return "" if value is None else f"{value:.2f}"

    memory: Any = "not visible" if row.kind in ("openai", "paligemma") else ""
    if row.peak_bytes is not None:
        memory = f"{row.peak_bytes / 2**30:.2f} GiB"
    if row.peak_gpu_bytes is not None:
        memory += f" + GPU {row.peak_gpu_bytes / 2**30:.2f} GiB"
    return (
        row.name,
        str(row.num_answered),
        str(row.num_failed),
        seconds(None if row.seconds is None else row.seconds.median),
        seconds(None if row.seconds is None else row.seconds.p95),
        seconds(row.load_seconds),
        memory,
        "" if row.mean_tokens is None else f"{row.mean_tokens:.1f}",
    )
