"""`paligemma eval`: how well a model does on data of one's own, or on a named benchmark."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from paligemma.cli.console import print_json, print_note, print_table, print_text, progress_bar
from paligemma.cli.predict import DtypeOption, QuantizationOption
from paligemma.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from paligemma.evals.evaluation import EvalSet, Evaluation, Published
    from paligemma.evals.scoring import Score


def evaluate(
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA|BENCHMARK",
            show_default=False,
            help="A file or folder of labelled pictures, or a benchmark such as refcoco, whose "
            "official files lie in --folder.",
        ),
    ],
    out: Annotated[
        Path, typer.Option(help="Folder for predictions, scores and report; a run goes on there.")
    ],
    model: Annotated[
        str, typer.Option(envvar="PALIGEMMA_MODEL", help="mini, a hub id or a folder.")
    ] = "mini",
    adapter: Annotated[
        Path | None, typer.Option(help="A folder with an adapter to merge into the model.")
    ] = None,
    folder: Annotated[
        Path | None, typer.Option(help="Where a benchmark's files were unpacked.")
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Part of the data.", show_default="the first")
    ] = None,
    data_format: Annotated[
        str | None, typer.Option("--format", help="Form of the data.", show_default="guessed")
    ] = None,
    task: Annotated[
        Literal["caption", "answer", "ocr", "detect", "segment", "read_text", "generate"] | None,
        typer.Option(help="What the answers are.", show_default="by the prefix"),
    ] = None,
    ask: Annotated[
        Literal["dataset", "present", "all classes"],
        typer.Option(help="Which classes to ask for where the data bring no prefix."),
    ] = "dataset",
    metric: Annotated[
        list[str] | None,
        typer.Option(help="Name of a metric; may be repeated.", show_default="by task"),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Only so many records.", show_default="all")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Records at a time.", show_default="by resolution")
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest answer, in tokens.", show_default="by task")
    ] = None,
    beams: Annotated[int, typer.Option(min=1, help="More than 1: beam search.")] = 1,
    free: Annotated[
        bool, typer.Option("--free", help="Do not hold lists of objects to their form.")
    ] = False,
    any_label: Annotated[
        bool, typer.Option("--any-label", help="Allow labels that the prefix does not name.")
    ] = False,
    calibrate: Annotated[
        bool,
        typer.Option(
            "--calibrate",
            help="Fit a temperature and a threshold for scores: calibration.json, reliability.svg.",
        ),
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of the resamples for intervals.")] = 0,
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit of a hub id.", show_default="main")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")] = "auto",
    dtype: DtypeOption = "auto",
    quantization: QuantizationOption = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Use only what is already downloaded.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Score a model: predictions, scores with 95 % intervals, published figures beside them.

    Writes predictions.jsonl, records.jsonl (the scores of each record) and report.json. The same
    command goes on with a run that was interrupted, and with another --metric scores anew without
    asking again.
    """
    import paligemma
    from paligemma.checkpoints.hub import Source
    from paligemma.evals.evaluation import REPORT_FILE
    from paligemma.evals.evaluation import evaluate as measure
    from paligemma.evals.options import EvalOptions
    from paligemma.fast.weights import weights_name

    options = EvalOptions(
        task=task,
        ask=ask,
        metrics=tuple(metric or ()),
        limit=limit,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        num_beams=beams,
        constrained=not free,
        any_label=any_label,
        calibrate=calibrate,
        seed=seed,
    )
    if folder is None and data_format is None and not Path(data).exists():
        _refuse_name(data)
    if folder is None:  # data of one's own are looked at before a model is loaded
        job = _own_data(data, data_format, split, ask)
    predictor = paligemma.load(
        model,
        weights=weights_name(dtype, quantization),
        device=device,
        adapter=adapter,
        source=Source(revision=revision, offline=offline),
    )
    if folder is not None:
        job = _benchmark(data, folder, split, predictor.processor.resolution)
    for note in (predictor.note, *job.notes):
        if note:
            print_note(note)
    with progress_bar("asking") as on_progress:
        evaluation = measure(predictor, job, out, options, on_progress=on_progress)
    if as_json:
        print_json(json.loads((out / REPORT_FILE).read_text(encoding="utf-8")))
    else:
        _show(evaluation, predictor.name, predictor.processor.resolution, out)


def _refuse_name(data: str) -> None:
    from paligemma.evals.datasets.open import find_benchmark

    if any(mark in data for mark in "./\\"):  # no benchmark has such a name
        raise OptionError(f"There is no file or folder {data!r}. Give the path of labelled data.")
    try:
        title = find_benchmark(data).title
    except OptionError as error:
        raise OptionError(f"There is no file or folder {data!r}. {error}") from None
    raise OptionError(
        f"{title} is a benchmark: download its official files and name their folder with "
        "--folder. What is missing there will be listed."
    )


def _own_data(data: str, data_format: str | None, split: str | None, ask: str) -> EvalSet:
    from paligemma.data.open import open_data
    from paligemma.evals.evaluation import EvalSet

    records = open_data(data, format=data_format, split=split)
    own = EvalSet.of(records)
    if ask == "present":
        kept = [record for record in records if record.prefix or record.objects != ()]
        if len(kept) < len(records):
            note = f"images without an object, left out: {len(records) - len(kept)}"
            own = replace(own, records=kept, notes=(*own.notes, note))
    return own


def _benchmark(name: str, folder: Path, split: str | None, resolution: int) -> EvalSet:
    from paligemma.evals.datasets.open import open_benchmark
    from paligemma.evals.datasets.spotting import IGNORED
    from paligemma.evals.evaluation import EvalSet
    from paligemma.evals.named_metrics import NamedMetric
    from paligemma.evals.scoring import DONT_CARE, Grouping

    found = open_benchmark(name, folder, split=split, resolution=resolution)
    benchmark = found.benchmark
    return EvalSet(
        name=f"{benchmark.name} {found.split}",
        records=found.records,
        metrics=tuple(NamedMetric(name=n, metric=m) for n, m in found.metrics.items()),
        task="generate" if found.task == "write" else found.task,
        max_new_tokens=benchmark.max_new_tokens,
        published=found.published,
        grouping=Grouping(names=found.groups, is_mean=benchmark.mean_of_groups),
        dont_care=(IGNORED[benchmark.name],) if benchmark.name in IGNORED else DONT_CARE,
        notes=(benchmark.note,),
    )


def _show(evaluation: Evaluation, model: str, resolution: int, out: Path) -> None:
    figures = evaluation.published_for(model, resolution)
    rows = [row for score in evaluation.scores for row in _rows(score, figures)]
    columns = ("task", "metric", "value", "95 % interval", "records", "published")
    print_table(None, columns, rows, right=("value", "records"))
    scored = {score.result.name for score in evaluation.scores}
    which, others = "for other models", list(evaluation.published)
    if figures:
        which, others = "by other metrics", [one for one in figures if one.metric not in scored]
    if others:
        print_text(f"Published {which}: " + "; ".join(f"{one.metric} {one}" for one in others))
    found = evaluation.calibration
    if found is not None:
        print_text(
            f"Calibration of {found.subject}: temperature {found.temperature:.3g}, bias "
            f"{found.bias:.3g}; expected calibration error {found.ece_before:.3f} -> "
            f"{found.ece_after:.3f} on the half that was not fitted on."
        )
        if found.held is not None and found.threshold is not None:
            print_text(
                f"Recommended threshold {found.threshold:.3f} (calibrated): there precision "
                f"{found.held.precision:.3f}, recall {found.held.recall:.3f}, F1 "
                f"{found.held.f1:.3f}."
            )
    if evaluation.formulas:
        rows_of_formulas = [
            (
                row.name,
                f"{row.box_map:.4f}",
                f"{row.difference:+.4f}",
                ""
                if row.interval is None
                else f"{row.interval.low:+.4f} .. {row.interval.high:+.4f}",
            )
            for row in evaluation.formulas
        ]
        print_table(
            "Scores of boxes by other formulas",
            ("formula", "box mAP", "to the one in use", "95 % interval"),
            rows_of_formulas,
            right=("box mAP", "to the one in use"),
        )
    print_text(f"Predictions, scores of each record and the report are in {out}")


def _rows(score: Score, figures: Sequence[Published]) -> list[tuple[str, ...]]:
    """The metric's row, then its further figures; those of single labels are in the report.

    Of the published figures those by the same metric stand beside it.
    """
    interval = score.interval
    rows: list[tuple[str, ...]] = [
        (
            score.task,
            score.result.name,
            f"{score.result.value:.4f}",
            "" if interval is None else f"{interval.low:.4f} .. {interval.high:.4f}",
            str(score.num_records),
            _beside(score.result.value, [f for f in figures if f.metric == score.result.name]),
        )
    ]
    for name, value in score.result.details.items():
        if not name.startswith("ap/"):
            rows.append(("", f"  {name}", f"{value:.4f}", "", "", ""))
    return rows


def _beside(value: float, figures: Sequence[Published]) -> str:
    """Ours in the unit of the papers, and theirs."""
    theirs = "; ".join(str(figure) for figure in figures)
    return f"{100 * value:.1f}, published {theirs}" if theirs else ""
