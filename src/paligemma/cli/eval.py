"""`paligemma eval`: evaluate a model on the user's data or on a named benchmark."""

from __future__ import annotations

import json
import math
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Never

import typer

from paligemma.cli.console import print_json, print_note, print_table, print_text, progress_bar
from paligemma.cli.model_options import LoadOptions
from paligemma.cli.options import Json, takes
from paligemma.errors import OptionError, counted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from paligemma.data.record import BadRecord
    from paligemma.evals.bootstrap import Interval
    from paligemma.evals.datasets.published import PublishedScore
    from paligemma.evals.evaluation import EvalSet, Evaluation
    from paligemma.evals.fields.evaluation import FieldEvaluation
    from paligemma.evals.fields.records import FieldRecord
    from paligemma.evals.options import EvalRunOptions
    from paligemma.evals.scoring import Score

BAD_RECORDS_FILE = "bad_records.jsonl"


@takes(options="paligemma.evals.options:EvalRunOptions", loading=LoadOptions)
def evaluate(
    *,
    out: Annotated[
        Path,
        typer.Option(
            "--out", help="Output folder for predictions, scores and report. Reuse it to resume."
        ),
    ],
    options: EvalRunOptions,
    loading: LoadOptions,
    as_json: Json = False,
) -> None:
    """Evaluate a model on labeled images, on documents with fields, or on a benchmark.

    Writes predictions.jsonl, records.jsonl (the scores of each record) and report.json; for
    documents extractions.jsonl, cells.jsonl (a line per value) and report.json. Shows scores with
    95 % confidence intervals, next to published figures. To resume an interrupted run, repeat the
    command. Rerunning with another --metric rescores without generating again.
    """
    if _has_fields(options):
        _evaluate_fields(out, options, loading, as_json=as_json)
        return
    from paligemma.data.open import write_bad
    from paligemma.evals.evaluation import REPORT_FILE, skip_unusable
    from paligemma.evals.evaluation import evaluate as measure

    if options.folder is None:  # users' data are read before a model is loaded
        if options.format is None and not Path(options.data).exists():
            _refuse_name(options.data)
        eval_set = _user_data(options)
    predictor = loading.load()
    bad: Sequence[BadRecord] = ()
    if options.folder is None:
        eval_set = eval_set.asked_as(predictor.trained_on, options)
        eval_set, bad = skip_unusable(predictor, eval_set, options, options)
    else:
        eval_set = _benchmark(
            options.data, options.folder, options.split, predictor.processor.resolution
        )
    for note in (predictor.note, *eval_set.notes):
        if note:
            print_note(note)
    if bad:
        write_bad(out / BAD_RECORDS_FILE, bad)
        print_note(
            f"{counted(len(bad), 'record')} skipped; {out / BAD_RECORDS_FILE} lists them. The "
            f"first: {bad[0].reason}"
        )
    with progress_bar("generating") as on_progress:
        evaluation = measure(predictor, eval_set, out, options, on_progress=on_progress)
    if as_json:
        print_json(json.loads((out / REPORT_FILE).read_text(encoding="utf-8")))
    else:
        _show(evaluation, predictor.name, predictor.processor.resolution, out)


def _has_fields(options: EvalRunOptions) -> bool:
    """Whether the data are documents with fields."""
    from paligemma.evals.fields.datasets import find_field_benchmark
    from paligemma.evals.fields.records import is_field_data

    if options.schema is not None:
        return True
    path = Path(options.data)
    if options.folder is None:
        return options.format is None and path.is_file() and is_field_data(path)
    return find_field_benchmark(options.data) is not None


def _evaluate_fields(
    out: Path, options: EvalRunOptions, loading: LoadOptions, *, as_json: bool
) -> None:
    from paligemma.cli.extract import load_schema
    from paligemma.evals.fields.datasets import find_field_benchmark, open_field_benchmark
    from paligemma.evals.fields.evaluation import REPORT_FILE, FieldEvalOptions, evaluate_fields
    from paligemma.evals.fields.records import read_field_records
    from paligemma.extraction.options import ExtractOptions

    schema: Any = None if options.schema is None else load_schema(options.schema)
    benchmark = None if options.folder is None else find_field_benchmark(options.data)
    records: Sequence[FieldRecord | BadRecord]
    if benchmark is not None and options.folder is not None:
        records = open_field_benchmark(benchmark, options.folder, options.split)
        name, schema = benchmark.name, schema or benchmark.schema
        if benchmark.note:
            print_note(benchmark.note)
    elif not Path(options.data).is_file():
        _refuse_fields(options.data)
    else:
        records = read_field_records(Path(options.data), options.images)
        name = Path(options.data).name
    field_options = FieldEvalOptions(
        extract=ExtractOptions(
            language=options.language,
            date_order=options.date_order,
            decimal_mark=options.decimal_mark,
            mode=options.mode,
            turn=options.turn,
            batch_size=options.batch_size,
        ),
        limit=options.limit,
        on_bad_record=options.on_bad_record,
        max_skipped=options.max_skipped,
        seed=options.seed,
    )
    predictor = loading.load()
    if predictor.note:
        print_note(predictor.note)
    with progress_bar("reading") as on_progress:
        evaluation = evaluate_fields(
            predictor, records, schema, out, field_options, name=name, on_progress=on_progress
        )
    for note in evaluation.notes:
        print_note(note)
    if evaluation.bad:
        print_note(
            f"{counted(len(evaluation.bad), 'document')} skipped; {out / BAD_RECORDS_FILE} lists "
            f"them. The first: {evaluation.bad[0].reason}"
        )
    if as_json:
        print_json(json.loads((out / REPORT_FILE).read_text(encoding="utf-8")))
    else:
        _show_fields(evaluation, out)


def _refuse_fields(data: str) -> Never:
    """Raise OptionError for what is neither a file of documents nor a benchmark with --folder."""
    from paligemma.evals.fields.datasets import FIELD_BENCHMARKS

    names = ", ".join(benchmark.name for benchmark in FIELD_BENCHMARKS)
    raise OptionError(
        f"{data!r} is no .jsonl file of documents with fields. Data sets that are read from their "
        f"official files: {names}, with --folder."
    )


def _show_fields(evaluation: FieldEvaluation, out: Path) -> None:
    total = [] if evaluation.total is None else [evaluation.total]
    rows = [
        (
            score.path,
            str(score.num_cells),
            *map(_figure, (score.exact, score.anls, score.f1, score.evidence_iou)),
            "" if score.coverage is None else f"{score.coverage.share:.3f}",
            "" if score.coverage is None else _range(score.coverage.interval),
        )
        for score in (*evaluation.fields, *total)
    ]
    columns = ("field", "values", "exact", "ANLS", "F1", "place IoU", "accepted", "95 % interval")
    if rows:
        print_table(None, columns, rows, right=columns[1:7])
        print_text(
            "accepted: largest share of the values that can be taken by their score alone so that "
            "95 % of those are right; empty where no score is high enough for that."
        )
    if (order := evaluation.reading_order) is not None:
        print_text(
            f"Reading order: normalized edit distance {order.distance:.4f} {_range(order.interval)}"
        )
    print_text(f"Extractions, the values and the report are in {out}")


def _figure(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.3f}"


def _range(interval: Interval | None) -> str:
    return "" if interval is None else f"{interval.low:.3f} .. {interval.high:.3f}"


def _refuse_name(data: str) -> None:
    """Raise OptionError for a path that does not exist, or for a benchmark without --folder."""
    from paligemma.evals.datasets.open import find_benchmark
    from paligemma.evals.fields.datasets import find_field_benchmark

    if any(mark in data for mark in "./\\"):  # no benchmark has such a name
        raise OptionError(
            f"The file or folder {data!r} does not exist. Give the path of labeled images."
        )
    try:
        fields = find_field_benchmark(data)
        title = find_benchmark(data).title if fields is None else fields.title
    except OptionError as error:
        raise OptionError(f"The file or folder {data!r} does not exist. {error}") from None
    raise OptionError(
        f"{title} is a benchmark. Download its official files and give their folder with "
        "--folder; missing files will be listed."
    )


def _user_data(options: EvalRunOptions) -> EvalSet:
    from paligemma.data.open import open_data
    from paligemma.data.source import ReadOptions
    from paligemma.evals.evaluation import EvalSet

    names = [field.name for field in fields(ReadOptions)]
    reading = ReadOptions(**{name: getattr(options, name) for name in names})
    if reading.column is None and options.task in ("detect", "segment"):
        reading = replace(reading, column="objects")
    records = open_data(options.data, reading, purpose="test")
    return EvalSet.of(records)


def _benchmark(name: str, folder: Path, split: str | None, resolution: int) -> EvalSet:
    from paligemma.evals.datasets.open import open_benchmark
    from paligemma.evals.datasets.spotting import IGNORED
    from paligemma.evals.evaluation import EvalSet
    from paligemma.evals.named_metrics import NamedMetric
    from paligemma.evals.scoring import DONT_CARE, Grouping

    opened = open_benchmark(name, folder, split=split, resolution=resolution)
    benchmark = opened.benchmark
    return EvalSet(
        name=f"{benchmark.name} {opened.split}",
        records=opened.records,
        metrics=tuple(NamedMetric(name=n, metric=m) for n, m in opened.metrics.items()),
        task="generate" if opened.task == "write" else opened.task,
        max_new_tokens=benchmark.max_new_tokens,
        published=opened.published,
        grouping=Grouping(names=opened.groups, is_mean=benchmark.mean_of_groups),
        dont_care=(IGNORED[benchmark.name],) if benchmark.name in IGNORED else DONT_CARE,
        notes=(benchmark.note,),
    )


def _show(evaluation: Evaluation, model: str, resolution: int, out: Path) -> None:
    figures = evaluation.published_for(model, resolution)
    rows = [row for score in evaluation.scores for row in _rows(score, figures)]
    for score in evaluation.scores:
        if math.isnan(score.result.value):
            print_note(
                f"There is nothing to score with {score.result.name}: no record has an object that "
                "counts. Crowds and difficult objects do not, unless --crowds learn."
            )
    columns = ("task", "metric", "value", "95 % interval", "records", "published")
    print_table(None, columns, rows, right=("value", "records"))
    scored = {score.result.name for score in evaluation.scores}
    which, others = "for other models", list(evaluation.published)
    if figures:
        which, others = (
            "by other metrics",
            [figure for figure in figures if figure.metric not in scored],
        )
    if others:
        print_text(
            f"Published {which}: " + "; ".join(f"{figure.metric} {figure}" for figure in others)
        )
    if (calibration := evaluation.calibration) is not None:
        print_text(
            f"Calibration of {calibration.subject}: temperature {calibration.temperature:.3g}, "
            f"bias {calibration.bias:.3g}; expected calibration error "
            f"{calibration.ece_before:.3f} -> {calibration.ece_after:.3f} on the half that "
            "was not used for the fit."
        )
        if calibration.held is not None and calibration.threshold is not None:
            print_text(
                f"Recommended threshold {calibration.threshold:.3f} (calibrated): precision "
                f"{calibration.held.precision:.3f}, recall {calibration.held.recall:.3f}, F1 "
                f"{calibration.held.f1:.3f}."
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
            "Box scores by other formulas",
            ("formula", "box mAP", "vs. the one in use", "95 % interval"),
            rows_of_formulas,
            right=("box mAP", "vs. the one in use"),
        )
    print_text(f"Predictions, scores per record and the report are in {out}")


def _rows(score: Score, figures: Sequence[PublishedScore]) -> list[tuple[str, ...]]:
    """The row of the metric, then rows of its details; those of single labels are in the report.

    Published figures of the same metric are in the same row.
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


def _beside(value: float, figures: Sequence[PublishedScore]) -> str:
    """Our value in the unit of the papers, and the published figures."""
    theirs = "; ".join(str(figure) for figure in figures)
    return f"{100 * value:.1f}, published {theirs}" if theirs else ""
