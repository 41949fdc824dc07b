"""The comparison as one HTML page: tables, every answer beside the others, and blind voting.

The page needs no network and no other file. Images are reduced and inside it, up to a total size;
what comes from models, files and endpoints is data for its script, which writes it as text.
"""

from __future__ import annotations

import json
import math
from typing import Any

from paligemma.compare.agreement import Agreement
from paligemma.compare.comparison import Comparison, Row
from paligemma.compare.contest import Answers
from paligemma.compare.quality import Quality
from paligemma.compare.questions import image_name, question_in, truth_of
from paligemma.data.record import Record
from paligemma.escaping import visible
from paligemma.evals.bootstrap import Interval
from paligemma.evals.predictions import OBJECT_TASKS
from paligemma.report import image_uri, render_sealed_page
from paligemma.results import BoxXyxy

MAX_IMAGE_BYTES = 32 * 2**20
MAX_RECORDS = 2000
_SIDE, _SMALL_SIDE = 640, 320
_MANY_IMAGES = 150
_MAX_DIGITS = 4


def render_gallery(comparison: Comparison) -> str:
    """The page; questions on which the contestants disagree most come first."""
    records = sorted(
        comparison.questions.data.records,
        key=lambda record: -comparison.disagreements[record.record_id],
    )
    data = {
        "id": comparison.identity,
        "names": [_text(row.name) for row in comparison.rows],
        **_shown_records(comparison, records[:MAX_RECORDS]),
    }
    notes = [*comparison.notes, *filter(None, [comparison.bad_note])]
    if len(records) > MAX_RECORDS:
        notes.append(
            f"The page has the {MAX_RECORDS} questions with most disagreement of {len(records)}; "
            "answers.jsonl has all."
        )
    if any(record["image"] is None for record in data["records"]):
        notes.append(
            f"Some images are left out: together they would exceed {MAX_IMAGE_BYTES // 2**20} MiB."
        )
    return render_sealed_page(
        "comparison.html",
        title=f"Comparison: {_text(comparison.name)}",
        data=json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":")).replace(
            "<", "\\u003c"
        ),
        num_records=len(records),
        num_images=len({image_name(record) for record in records}),
        notes=[_text(note) for note in notes],
        rows=[_shown_row(row) for row in comparison.rows],
        scores=_score_tables(comparison),
        differences=[
            {
                "first": _text(each.first),
                "second": _text(each.second),
                "metric": each.metric,
                "value": f"{each.value:+.{_MAX_DIGITS}f}",
                "interval": _interval(each.interval, sign="+"),
                "is_clear": each.is_clear,
                "mcnemar": each.mcnemar,
                "num_records": each.num_records,
            }
            for each in comparison.differences
        ],
        agreements=[_shown_agreement(each) for each in comparison.agreements],
        has_right=any(comparison.right.values()),
    )


def _shown_records(comparison: Comparison, records: list[Record]) -> dict[str, Any]:
    images: list[dict[str, Any]] = []
    places: dict[str, int | None] = {}
    side = _SIDE if len({image_name(r) for r in records}) <= _MANY_IMAGES else _SMALL_SIDE
    size, shown = 0, []
    for record in records:
        key = image_name(record)
        if key not in places:
            places[key] = None
            if size < MAX_IMAGE_BYTES:
                uri = image_uri(record.load_images()[0].rgb, side=side)
                size += len(uri)
                places[key] = len(images)
                width, height = comparison.sizes[record.record_id]
                images.append({"uri": uri, "width": width, "height": height})
        shown.append(_shown_record(comparison, record, places[key]))
    return {"images": images, "records": shown}


def _shown_record(comparison: Comparison, record: Record, image: int | None) -> dict[str, Any]:
    record_id = record.record_id
    majority = comparison.majorities.get(record_id)
    has_most = majority is not None and majority.text is not None and majority.count > 1
    return {
        "id": record_id,
        "image": image,
        "name": _text(image_name(record)),
        "question": _text(question_in(record.prefix)),
        "task": comparison.questions.task_of(record),
        "truth": [_text(text) for text in truth_of(comparison.questions, record)],
        "trueBoxes": [
            {"label": _text(true.label), "box": _box(true.box_xyxy)}
            for true in comparison.true_objects.get(record_id, ())
        ],
        "disagreement": round(comparison.disagreements[record_id], 4),
        "majority": _text(majority.text or "") if majority is not None and has_most else None,
        "answers": [_shown_answer(comparison, each, record_id) for each in comparison.answers],
    }


def _shown_answer(comparison: Comparison, answers: Answers, record_id: str) -> dict[str, Any]:
    reply = answers.replies.get(record_id)
    if reply is None:
        return {"error": _text(answers.errors.get(record_id, "Not asked."))}
    prediction = reply.prediction
    is_list = prediction.task in OBJECT_TASKS
    seconds = answers.seconds.get(record_id)
    return {
        "text": _text(prediction.text),
        "score": round(prediction.score, 3) if reply.has_score and not is_list else None,
        "right": comparison.right.get(answers.contestant.name, {}).get(record_id),
        "seconds": None if seconds is None else round(seconds, 3),
        "asked": _text(reply.asked),
        "problems": [_text(problem) for problem in prediction.problems],
        "boxes": [
            {
                "label": _text(found.label),
                "box": _box(found.box_xyxy),
                "score": round(found.score, 3) if reply.has_score else None,
            }
            for found in prediction.objects
        ]
        if is_list
        else None,
    }


def _shown_row(row: Row) -> dict[str, Any]:
    info = row.info
    about = [
        str(info[name])
        for name in ("family", "dtype", "quantization", "resolution", "device")
        if info.get(name) is not None
    ]
    if info.get("parameters"):
        about.insert(0, f"{info['parameters'] / 1e6:.1f}M parameters")
    return {
        "name": _text(row.name),
        "kind": row.kind,
        "about": _text(", ".join(about)),
        "answered": row.num_answered,
        "failed": row.num_failed,
        "why": _text(row.failure or row.first_error or ""),
        "asked": _text(row.asked),
        "median": _seconds(None if row.seconds is None else row.seconds.median),
        "p95": _seconds(None if row.seconds is None else row.seconds.p95),
        "load": _seconds(row.load_seconds),
        "memory": _memory(row),
        "tokens": "" if row.mean_tokens is None else f"{row.mean_tokens:.1f}",
        "retries": row.num_retries,
    }


def _score_tables(comparison: Comparison) -> list[dict[str, Any]]:
    """By task: a row for each contestant, a column for each metric."""
    tables = []
    for task in dict.fromkeys(quality.task for quality in comparison.qualities):
        of_task = [quality for quality in comparison.qualities if quality.task == task]
        metrics = list(dict.fromkeys(quality.result.name for quality in of_task))
        cells = {(q.contestant, q.result.name): q for q in of_task}
        best = {name: _best(cells, name) for name in metrics}
        tables.append(
            {
                "task": task,
                "num_records": max(quality.num_records for quality in of_task),
                "metrics": [
                    f"{name} {'↑' if cells_name.result.higher_is_better else '↓'}"
                    for name in metrics
                    for cells_name in [next(q for q in of_task if q.result.name == name)]
                ],
                "rows": [
                    {
                        "name": _text(row.name),
                        "cells": [
                            {
                                "value": f"{cell.result.value:.{_MAX_DIGITS}f}",
                                "interval": _interval(cell.interval),
                                "is_best": cell.result.value == best[name],
                            }
                            if (cell := cells.get((row.name, name))) is not None
                            else None
                            for name in metrics
                        ],
                    }
                    for row in comparison.rows
                ],
            }
        )
    return tables


def _best(cells: dict[tuple[str, str], Quality], metric: str) -> float | None:
    found = [q.result for (_, name), q in cells.items() if name == metric]
    values = [result.value for result in found if not math.isnan(result.value)]
    if not values:
        return None
    return max(values) if found[0].higher_is_better else min(values)


def _shown_agreement(agreement: Agreement) -> dict[str, Any]:
    return {
        "task": agreement.task,
        "names": [_text(name) for name in agreement.names],
        "rows": [
            {
                "name": _text(name),
                "cells": [
                    None
                    if similar is None or same is None
                    else {"similar": f"{similar:.2f}", "same": f"{same:.2f}", "level": similar}
                    for similar, same in zip(similars, sames, strict=True)
                ],
            }
            for name, similars, sames in zip(
                agreement.names, agreement.similarity, agreement.same, strict=True
            )
        ],
    }


def _memory(row: Row) -> str:
    if row.kind in ("openai", "paligemma"):
        return "not visible"
    parts = []
    if row.peak_bytes is not None:
        parts.append(f"{row.peak_bytes / 2**30:.2f} GiB")
    if row.peak_gpu_bytes is not None:
        parts.append(f"GPU {row.peak_gpu_bytes / 2**30:.2f} GiB")
    return ", ".join(parts)


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}" if value >= 0.1 else f"{value:.3f}"


def _interval(interval: Interval | None, sign: str = "") -> str:
    if interval is None:
        return ""
    return f"{interval.low:{sign}.{_MAX_DIGITS}f} .. {interval.high:{sign}.{_MAX_DIGITS}f}"


def _box(box: BoxXyxy) -> list[float]:
    return [round(edge, 1) for edge in box]


def _text(text: str) -> str:
    return visible(text, keep="\n\t")
