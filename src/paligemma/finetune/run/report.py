"""report.html: what a run did and what came out, one page that asks nobody for anything.

Curves come from log.jsonl, examples from the final evaluation, facts from run.json.
"""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from paligemma.data.record import Record
from paligemma.draw import draw_detections
from paligemma.evals.evaluation import PREDICTIONS_FILE, Evaluation
from paligemma.evals.metrics.objects import FoundObject, KnownObject, KnownPicture, mask_of
from paligemma.evals.predictions import OBJECT_TASKS, Prediction, objects_in_text, read_predictions
from paligemma.finetune.run.confusion import Confusion, confusion_of_answers, confusion_of_boxes
from paligemma.finetune.run.svg import Curve, line_chart, smoothed
from paligemma.finetune.run.validation import SCORE, Validation
from paligemma.results import Detection, Detections, Segment, Segments

REPORT_FILE = "report.html"
_LOG_FILE, _RUN_FILE, _EVALUATION_FOLDER = "log.jsonl", "run.json", "evaluation"
_NUM_EXAMPLES = 12
_PICTURE_SIDE = 420
_MAX_CLASSES = 20
_SMOOTHING = 20  # a part of the run: a twentieth

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem;
  color: #1a1a1a; background: #fff; }
h1 { font-size: 1.5rem; margin-bottom: 0; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
code, pre { font: 13px/1.5 ui-monospace, monospace; background: #f5f5f5; overflow-wrap: anywhere;
  white-space: pre-wrap; padding: .15rem .3rem; }
.small { color: #555; font-size: .85rem; }
table { border-collapse: collapse; } td, th { padding: .15rem .9rem .15rem 0; text-align: left;
  vertical-align: top; }
td.n { text-align: right; font-variant-numeric: tabular-nums; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(20rem, 1fr)); gap: 1rem; }
figure { margin: 0; } svg { width: 100%; height: auto; }
.key { margin-right: 1rem; font-size: .85rem; } .key i { display: inline-block; width: .9rem;
  height: .25rem; margin: 0 .35rem .2rem 0; }
.example { display: grid; grid-template-columns: 1fr 1fr; gap: 1rem; border-top: 1px solid #ddd;
  padding: 1rem 0; }
.example img { width: 100%; } .example p { margin: .2rem 0; overflow-wrap: anywhere; }
.example h3 { font-size: .95rem; margin: 0; grid-column: 1 / -1; overflow-wrap: anywhere; }
.confusion td { text-align: center; padding: .2rem .5rem; } .confusion th { font-weight: normal;
  font-size: .85rem; }
@media (max-width: 40rem) { .example { grid-template-columns: 1fr; } }
"""


def write_report(
    out: Path, saved: Path, evaluation: Evaluation | None, validation: Validation | None
) -> Path:
    """Write the page into a run's folder; without validation it has curves and facts alone."""
    facts = json.loads((out / _RUN_FILE).read_text(encoding="utf-8"))
    lines = (out / _LOG_FILE).read_text(encoding="utf-8").splitlines()
    log = [json.loads(line) for line in lines]
    title = f"{facts['options']['method']} of {facts['model']['name']}"
    parts = [
        f"<h1>{escape(title)}</h1>",
        f"<p class=small>on {escape(facts['options']['data'])}; saved in "
        f"<code>{escape(saved.name)}/</code> beside this page</p>",
    ]
    if evaluation is not None:
        parts.append(_scores(evaluation))
    parts.append(_curves(log))
    if evaluation is not None and validation is not None:
        predictions = read_predictions(out / _EVALUATION_FOLDER / PREDICTIONS_FILE)
        by_id = {one.record_id: one for one in predictions}
        asked = [(record, by_id[record.record_id]) for record in validation.records]
        parts += [_confusion(asked, validation), _examples(asked, validation)]
    parts.append(_facts(facts, log))
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )
    path = out / REPORT_FILE
    path.write_text(page, encoding="utf-8")
    return path


def _scores(evaluation: Evaluation) -> str:
    rows = []
    for score in evaluation.scores:
        between = score.interval
        interval = "" if between is None else f"{between.low:.3f} to {between.high:.3f}"
        rows.append(
            f"<tr><td>{escape(score.task)}</td><td>{escape(score.result.name)}</td>"
            f"<td class=n>{score.result.value:.3f}</td><td>{interval}</td>"
            f"<td class=n>{score.num_records}</td></tr>"
        )
    return (
        "<h2>Scores on what was held back</h2><table><tr><th>task</th><th>metric</th><th>value</th>"
        f"<th>95 % of resampled records</th><th>records</th></tr>{''.join(rows)}</table>"
    )


def _curves(log: Sequence[dict[str, Any]]) -> str:
    steps = [record for record in log if "validation" not in record]
    validations = [record for record in log if "validation" in record]
    window = max(1, len(steps) // _SMOOTHING)

    def known(record: dict[str, Any], name: str) -> float:
        value = record.get(name)
        return math.nan if value is None else float(value)

    numbers = [float(record["step"]) for record in steps]
    losses = smoothed([known(record, "loss") for record in steps], window)
    charts = [[Curve(name="training loss", points=list(zip(numbers, losses, strict=True)))]]
    if validations:
        points = [(r["step"], known(r["validation"], "loss")) for r in validations]
        charts[0].append(Curve(name="validation loss", points=points, has_dots=True))
        names = [n for n in validations[0]["validation"] if n not in ("loss", SCORE)]
        charts.append(
            [
                Curve(
                    name=name,
                    points=[(r["step"], known(r["validation"], name)) for r in validations],
                    has_dots=True,
                )
                for name in names
            ]
        )
    rates = [known(record, "learning_rate") for record in steps]
    charts.append([Curve(name="learning rate", points=list(zip(numbers, rates, strict=True)))])
    norms = smoothed([known(record, "grad_norm") for record in steps], window)
    charts.append([Curve(name="gradient norm", points=list(zip(numbers, norms, strict=True)))])
    drawn = "".join(line_chart(curves, x_name="step") for curves in charts)
    note = f" Training figures are means over {window} steps." if window > 1 else ""
    return f"<h2>Training</h2><p class=small>{note}</p><div class=charts>{drawn}</div>"


def _confusion(asked: Sequence[tuple[Record, Prediction]], validation: Validation) -> str:
    objects = [(r, p) for r, p in asked if p.task in OBJECT_TASKS]
    answers = [(r, p) for r, p in asked if p.task not in OBJECT_TASKS]
    found: Confusion | None = None
    if objects:
        found = confusion_of_boxes(
            [p.objects for _, p in objects],
            [KnownPicture(size_wh=p.size_wh, objects=_known(r, p, validation)) for r, p in objects],
            max_names=_MAX_CLASSES,
        )
    elif answers:
        found = confusion_of_answers(
            [p.text for _, p in answers], [_truth(r) for r, _ in answers], max_names=_MAX_CLASSES
        )
    if found is None:
        return ""
    largest = max(max(row) for row in found.counts) or 1
    heads = "".join(f"<th>{escape(name)}</th>" for name in found.names)
    rows = []
    for i, (name, counts) in enumerate(zip(found.names, found.counts, strict=True)):
        cells = []
        for j, count in enumerate(counts):
            color = "0,158,115" if i == j else "213,94,0"
            shade = 0.75 * count / largest
            style = f' style="background:rgba({color},{shade:.2f})"' if count else ""
            cells.append(f"<td{style}>{count or '·'}</td>")
        rows.append(f"<tr><th>{escape(name)}</th>{''.join(cells)}</tr>")
    what = "Boxes are matched at IoU 0.5 whatever their labels." if objects else ""
    return (
        "<h2>What was taken for what</h2><p class=small>Rows: what is there; columns: what the "
        f"model says. {what}</p><table class=confusion><tr><td></td>{heads}</tr>{''.join(rows)}"
        "</table>"
    )


def _examples(asked: Sequence[tuple[Record, Prediction]], validation: Validation) -> str:
    shown = []
    for record, prediction in asked[:_NUM_EXAMPLES]:
        picture = record.load_images()[0].rgb
        left, right = picture, picture
        if prediction.task in OBJECT_TASKS:
            known = _known(record, prediction, validation)
            names = validation.targets.class_names
            left = _drawn(picture, known, prediction, names)
            right = _drawn(picture, prediction.objects, prediction, names)
            texts = (f"{len(known)} there", f"{len(prediction.objects)} found")
        else:
            texts = (_truth(record), prediction.text)
        cells = "".join(
            f'<div><img alt="{escape(head)}" src="{_as_data(image)}">'
            f"<p><b>{head}</b> {escape(text)}</p></div>"
            for head, image, text in (("truth", left, texts[0]), ("model", right, texts[1]))
        )
        shown.append(
            f"<div class=example><h3>{escape(record.record_id)}: "
            f"{escape(prediction.prefix)}</h3>{cells}</div>"
        )
    return f"<h2>Examples, the first {len(shown)} held back</h2>{''.join(shown)}"


def _known(
    record: Record, prediction: Prediction, validation: Validation
) -> tuple[KnownObject, ...]:
    if record.objects is not None:
        return tuple(KnownObject(label=o.label, box_xyxy=o.box_xyxy) for o in record.objects)
    found, _ = objects_in_text(
        validation.predictor, record.suffix, record.prefix, prediction.size_wh, has_masks=False
    )
    return tuple(KnownObject(label=o.label, box_xyxy=o.box_xyxy) for o in found)


def _truth(record: Record) -> str:
    return record.suffix or (record.references[0] if record.references else "")


def _drawn(
    picture: Image.Image,
    things: Sequence[KnownObject | FoundObject],
    prediction: Prediction,
    class_names: tuple[str, ...],
) -> Image.Image:
    width, height = prediction.size_wh
    has_masks = bool(things) and all(thing.rle is not None for thing in things)
    items: list[Detection] = []
    for thing in things:
        x1, y1, x2, y2 = thing.box_xyxy
        values: dict[str, Any] = {
            "label": thing.label,
            "box_xyxy": thing.box_xyxy,
            "box_normalized_xyxy": (x1 / width, y1 / height, x2 / width, y2 / height),
            "score": getattr(thing, "score", 1.0),
            "coordinate_score": 1.0,
            "label_score": 1.0,
        }
        if has_masks:
            assert thing.rle is not None
            items.append(Segment(**values, mask=mask_of(thing.rle), mask_score=1.0))
        else:
            items.append(Detection(**values))
    result = (Segments if has_masks else Detections)(
        objects=tuple(items),  # type: ignore[arg-type]
        prompt=prediction.prefix,
        phrases=class_names,
        problems=(),
        size_wh=prediction.size_wh,
        stop_reason="eos",
        text="",
    )
    return draw_detections(picture, result, scores=bool(things) and hasattr(things[0], "score"))


def _as_data(picture: Image.Image) -> str:
    small = picture.copy()
    small.thumbnail((_PICTURE_SIDE, _PICTURE_SIDE))
    memory = io.BytesIO()
    small.save(memory, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(memory.getvalue()).decode('ascii')}"


def _facts(facts: dict[str, Any], log: Sequence[dict[str, Any]]) -> str:
    steps = [record for record in log if "validation" not in record]
    seconds = steps[-1]["seconds"] if steps else 0
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td>{escape(str(value))}</td></tr>"
        for name, value in facts["training"].items()
    )
    return (
        f"<h2>How</h2><pre>{escape(facts['command'])}</pre>"
        f"<p>{escape(versions)}. {len(steps)} steps, {seconds:.0f} s since the last start.</p>"
        f"<details><summary>All training options</summary><table>{rows}</table></details>"
    )
