"""report.html: what a run did and how well the model does, as one page that needs no other file.

Curves come from log.jsonl, examples from the final evaluation, facts from run.json.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from paligemma.data.overlap import match_boxes
from paligemma.data.record import Record
from paligemma.draw import draw_detections
from paligemma.errors import MissingExtraError
from paligemma.evals.evaluation import PREDICTIONS_FILE, Evaluation
from paligemma.evals.metrics.result import FoundObject, ReferenceImage, ReferenceObject, mask_of
from paligemma.evals.predictions import OBJECT_TASKS, Prediction, objects_in_text, read_predictions
from paligemma.finetune.run.validation import FEW_IMAGES, SCORE, Validation
from paligemma.processor.image import LoadedImage
from paligemma.report import image_uri, render_page, svg_uri
from paligemma.report.charts import Curve, check_charts, line_chart
from paligemma.results import Detection, Detections, Segment, Segments

REPORT_FILE = "report.html"
_LOG_FILE, _RUN_FILE, _EVALUATION_FOLDER = "log.jsonl", "run.json", "evaluation"
_NUM_EXAMPLES = 12
_IMAGE_SIDE = 420
_MAX_CLASSES = 20
_SMOOTHING = 20  # a part of the run: a twentieth


def write_report(
    out: Path, saved: Path, evaluation: Evaluation | None, validation: Validation | None
) -> Path:
    """Write the page into a run's folder; without validation it has only curves and facts."""
    facts = json.loads((out / _RUN_FILE).read_text(encoding="utf-8"))
    lines = (out / _LOG_FILE).read_text(encoding="utf-8").splitlines()
    log = [json.loads(line) for line in lines]
    steps = [record for record in log if "validation" not in record]
    window = max(1, len(steps) // _SMOOTHING)
    charts, no_charts = _charts(log, window)
    confusion, examples = None, []
    if evaluation is not None and validation is not None:
        predictions = read_predictions(out / _EVALUATION_FOLDER / PREDICTIONS_FILE)
        by_id = {prediction.record_id: prediction for prediction in predictions}
        asked = [(record, by_id[record.record_id]) for record in validation.records]
        confusion = _confusion(asked, validation)
        examples = [_example(*pair, validation) for pair in asked[:_NUM_EXAMPLES]]
    page = render_page(
        "training.html",
        title=f"{facts['options']['method']} of {facts['model']['name']}",
        data=facts["options"]["data"],
        saved=saved.name,
        scores=() if evaluation is None else evaluation.scores,
        num_images=0 if validation is None else validation.num_images,
        few_images=FEW_IMAGES,
        charts=charts,
        no_charts=no_charts,
        window=window,
        confusion=confusion,
        examples=examples,
        command=facts["command"],
        versions=", ".join(f"{name} {number}" for name, number in facts["versions"].items()),
        num_steps=len(steps),
        seconds=steps[-1]["seconds"] if steps else 0,
        options=facts["training"].items(),
    )
    path = out / REPORT_FILE
    path.write_text(page, encoding="utf-8")
    return path


def _charts(log: Sequence[dict[str, Any]], window: int) -> tuple[list[dict[str, str]], str]:
    try:
        check_charts("train", "Drawing the training curves")
    except MissingExtraError as error:  # the model is trained: do not fail now
        return [], str(error)
    charts = []
    for curves in _curves(log, window):
        if svg := line_chart(curves, x_name="step"):
            names = ", ".join(curve.name for curve in curves)
            charts.append({"alt": f"{names} by step", "uri": svg_uri(svg)})
    return charts, "No figure was logged."


def _curves(log: Sequence[dict[str, Any]], window: int) -> list[list[Curve]]:
    steps = [record for record in log if "validation" not in record]
    validations = [record for record in log if "validation" in record]

    def number(record: dict[str, Any], name: str) -> float:
        value = record.get(name)
        return math.nan if value is None else float(value)

    def curve(title: str, name: str, window: int = 1) -> Curve:
        values = smoothed([number(record, name) for record in steps], window)
        xs = [float(record["step"]) for record in steps]
        return Curve(name=title, points=list(zip(xs, values, strict=True)))

    def validation_curve(title: str, name: str) -> Curve:
        points = [(record["step"], number(record["validation"], name)) for record in validations]
        return Curve(name=title, points=points, has_dots=True)

    charts = [[curve("training loss", "loss", window)]]
    if validations:
        charts[0].append(validation_curve("validation loss", "loss"))
        names = [name for name in validations[0]["validation"] if name not in ("loss", SCORE)]
        charts.append([validation_curve(name, name) for name in names])
    charts.append([curve("learning rate", "learning_rate")])
    charts.append([curve("gradient norm", "grad_norm", window)])
    return charts


def smoothed(values: Sequence[float], window: int) -> list[float]:
    """The mean of each value and at most `window` - 1 values before it, of those that are finite.

    >>> smoothed([1.0, 3.0, 5.0], 2)
    [1.0, 2.0, 4.0]
    """
    means = []
    for end in range(1, len(values) + 1):
        near = [v for v in values[max(0, end - window) : end] if math.isfinite(v)]
        means.append(sum(near) / len(near) if near else math.nan)
    return means


def _confusion(
    asked: Sequence[tuple[Record, Prediction]], validation: Validation
) -> dict[str, Any] | None:
    objects = [(r, p) for r, p in asked if p.task in OBJECT_TASKS]
    answers = [(r, p) for r, p in asked if p.task not in OBJECT_TASKS]
    confusion: Confusion | None = None
    if objects:
        confusion = confusion_of_boxes(
            [p.objects for _, p in objects],
            [
                ReferenceImage(size_wh=p.size_wh, objects=_known(r, p, validation))
                for r, p in objects
            ],
            max_names=_MAX_CLASSES,
        )
    elif answers:
        confusion = confusion_of_answers(
            [p.text for _, p in answers], [_truth(r) for r, _ in answers], max_names=_MAX_CLASSES
        )
    if confusion is None:
        return None
    return {
        "names": confusion.names,
        "rows": list(zip(confusion.names, confusion.counts, strict=True)),
        "largest": max(max(row) for row in confusion.counts) or 1,
        "is_of_boxes": bool(objects),
    }


def _example(record: Record, prediction: Prediction, validation: Validation) -> dict[str, str]:
    image = record.load_images()[0]
    true_image, model_image = image.rgb, image.rgb
    if prediction.task in OBJECT_TASKS:
        known = _known(record, prediction, validation)
        names = validation.targets.class_names
        true_image = _drawn(image, known, prediction, names)
        model_image = _drawn(image, prediction.objects, prediction, names)
        true_text = _num_objects(len(known))
        model_text = _num_objects(len(prediction.objects))
    else:
        true_text, model_text = _truth(record), prediction.text
    return {
        "record_id": record.record_id,
        "prefix": prediction.prefix,
        "true_image": image_uri(true_image, side=_IMAGE_SIDE),
        "true_text": true_text,
        "model_image": image_uri(model_image, side=_IMAGE_SIDE),
        "model_text": model_text,
    }


def _num_objects(number: int) -> str:
    return f"{number} object{'' if number == 1 else 's'}"


def _known(
    record: Record, prediction: Prediction, validation: Validation
) -> tuple[ReferenceObject, ...]:
    if record.objects is not None:
        return tuple(ReferenceObject(label=o.label, box_xyxy=o.box_xyxy) for o in record.objects)
    found, _ = objects_in_text(
        validation.predictor, record.suffix, record.prefix, prediction.size_wh, has_masks=False
    )
    return tuple(ReferenceObject(label=o.label, box_xyxy=o.box_xyxy) for o in found)


def _truth(record: Record) -> str:
    return record.suffix or (record.references[0] if record.references else "")


def _drawn(
    image: LoadedImage,
    things: Sequence[ReferenceObject | FoundObject],
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
            "existence_score": 1.0,
            "label_score": 1.0,
            "coordinate_score": 1.0,
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
    return draw_detections(image, result, scores=bool(things) and hasattr(things[0], "score"))


NOTHING = "(nothing)"
"""As true class: a detection of nothing; as predicted class: an object that was missed."""
_OTHER = "(other)"
_IOU = 0.5


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """`counts[i][j]`: how often the truth is `names[i]` and the model's answer `names[j]`."""

    names: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]


def confusion_of_boxes(
    found: Sequence[Sequence[FoundObject]],
    known: Sequence[ReferenceImage],
    *,
    max_names: int,
) -> Confusion | None:
    """Boxes are matched at IoU 0.5 whatever their labels, best scores first; None for no boxes."""
    pairs: Counter[tuple[str, str]] = Counter()
    for detections, truth in zip(found, known, strict=True):
        matches = match_boxes(
            np.array([d.box_xyxy for d in detections], dtype=np.float64).reshape(-1, 4),
            [d.score for d in detections],
            np.array([t.box_xyxy for t in truth.objects], dtype=np.float64).reshape(-1, 4),
            _IOU,
        )
        for detection, match in zip(detections, matches, strict=True):
            label = NOTHING if match is None else truth.objects[match].label
            pairs[label, detection.label] += 1
        for index, missed in enumerate(truth.objects):
            if index not in matches:
                pairs[missed.label, NOTHING] += 1
    return _table(pairs, max_names)


def confusion_of_answers(
    answers: Sequence[str], truths: Sequence[str], *, max_names: int
) -> Confusion | None:
    """None where more than `max_names` different answers are true: they are not classes."""
    names = set(truths)
    if len(names) > max_names:
        return None
    pairs = Counter(
        (truth, answer if answer in names else _OTHER)
        for truth, answer in zip(truths, answers, strict=True)
    )
    return _table(pairs, max_names + 1)


def _table(pairs: Counter[tuple[str, str]], max_names: int) -> Confusion | None:
    totals: Counter[str] = Counter()
    for (truth, answer), count in pairs.items():
        totals[truth] += count
        totals[answer] += count
    last = [name for name in (NOTHING, _OTHER) if name in totals]
    names = sorted(name for name, _ in totals.most_common(max_names) if name not in last) + last
    if not names:
        return None
    return Confusion(
        names=tuple(names),
        counts=tuple(tuple(pairs[truth, answer] for answer in names) for truth in names),
    )
