"""Evaluate a model on mini's test scenes: every task, in one table.

    python -m mini.evaluate --scenes 500 --seed 7 [--json]

    map50          COCO's average precision at IoU 0.5 of `detect`, asked for all kinds present
                   (None if no scene contains an object)
    map            the same, averaged over IoU 0.50 to 0.95
    box_iou        mean IoU of these boxes with those of the objects that they match: same label, in
                   order of score, any overlap
    boxes_50, boxes_75, boxes_90
                   share of all objects matched with an IoU of at least 0.5, 0.75, 0.9
    box_ece        expected calibration error of these boxes' scores: right is the label with an IoU
                   of at least 0.5
    box_auc        probability that a right box scores higher than a wrong one (None if all are
                   right, or all wrong)
    absent         share of scenes in which `detect` finds nothing when asked for an absent kind
    caption_exact  share of captions that equal the truth exactly, per language
    count          share of correct answers to "how many ...?": each kind present, and one absent
    count_ece      expected calibration error of these answers' scores
    ocr_exact      share of scenes with words whose whole text is read correctly
    mask_iou       mean IoU of masks of `segment`, over objects whose box and label match
    codec_iou      mean IoU of the masks that the codec makes of the true masks and boxes, over all
                   objects: the limit of mask_iou (None if the model has no codec)
    matched_masks  share of all objects that `segment` matched in this way
    unparsable     outputs of `detect` and `segment` with a malformed or truncated object, or with
                   text but no object
    repeating      outputs of these two with a repeated object (the repetition is dropped)
    text_f1        `detect text`: F1 of printed words; a word matches at a box IoU of 0.5 and with
                   every letter correct (in any order of words)
    sizes_mask_iou, sizes_matched
                   like mask_iou and matched_masks, on scenes with objects of all sizes
    table_cells    `table`: share of cells with the right text in the right position
    table_exact    share of tables with every cell correct
    chart_values   `chart`: share of bars with the right label and value in the right position
    chart_exact    share of charts with every bar correct
    form_fields    `form`: share of fields with the right label and value in the right position
    form_exact     share of forms with the heading and every field correct
    paper_fields   share of the fields of papers (prescriptions, invoices, receipts, ID cards) whose
                   question is answered with what is printed; a list is one field
    paper_absent   share of questions about fields that are absent answered with "unanswerable"
    paper_lines    `ocr`: share of a paper's lines that are read correctly
    paper_places   share of printed values that `detect` finds with an IoU of at least 0.5

For every four scenes there is one scene with objects of all sizes, one table, chart, form and
paper. The records of --json contain the truth and the predictions of every scene; the scores of
scenes can be recomputed from them.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar, get_args

import numpy as np
import torch
from PIL import Image

from mini import language
from mini.paper_scores import scores_of_papers
from mini.scene import RESOLUTION, Scene, make_scene
from mini.sheet import Sheet, SheetKind, make_sheet
from mini.texts import SceneTexts
from paligemma.cli.console import print_table, progress_bar
from paligemma.data.overlap import iou_of_boxes, mask_iou, match_boxes
from paligemma.errors import OptionError, PaliGemmaError
from paligemma.evals.metrics.detection import match_table
from paligemma.evals.metrics.result import FoundObject, ReferenceImage, ReferenceObject
from paligemma.evals.reliability import box_outcomes, expected_calibration_error, reliability
from paligemma.fast.weights import WeightsName
from paligemma.loading import load
from paligemma.predictor import Predictor
from paligemma.processor.image import LoadedImage
from paligemma.results import BoxXyxy, Detection, Detections, Segment, Segments
from paligemma.tasks.detect import DetectTask
from paligemma.tasks.seg_codec import MaskCodec, crop_mask, paste_mask
from paligemma.tasks.segment import SegmentTask
from paligemma.tasks.task import Task
from paligemma.tasks.text import AnswerTask, CaptionTask, OcrTask

FoundT = TypeVar("FoundT", FoundObject, Detection, Segment)

_ANY_OVERLAP = 1e-9
_CHUNK = 32
_MAX_WORDS = 20
_MAX_SHEET_TOKENS = 96


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m mini.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--model", default="mini", help="mini, a hub id or a checkpoint folder (%(default)s)"
    )
    parser.add_argument(
        "--weights",
        default="auto",
        choices=get_args(WeightsName),
        help="form of the weights (%(default)s)",
    )
    parser.add_argument("--scenes", type=int, default=500, help="number of scenes (%(default)s)")
    parser.add_argument("--seed", type=int, default=7, help="random seed (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object, with records")
    options = parser.parse_args(arguments)
    try:
        predictor = load(options.model, weights=options.weights)
        with progress_bar("evaluating") as on_progress:
            report = evaluate(predictor, options.scenes, options.seed, on_progress)
    except PaliGemmaError as error:
        parser.error(str(error))
    if options.json:
        json.dump(report, sys.stdout, ensure_ascii=False)
        print()
    else:
        print_table(None, ("measure", "value"), score_rows(report), right=("value",))


def score_rows(report: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """The scores by name, without the records.

    >>> score_rows({"map50": 0.8125, "caption_exact": {"de": 1.0}})
    [('map50', '0.812'), ('caption_exact de', '1.000')]
    """
    rows: list[tuple[str, str]] = []
    for name, value in report.items():
        if isinstance(value, dict):
            rows += score_rows(value, f"{prefix}{name} ")
        elif not isinstance(value, list):
            rows.append((prefix + name, f"{value:.3f}" if isinstance(value, float) else str(value)))
    return rows


def evaluate(
    predictor: Predictor,
    scenes: int = 500,
    seed: int = 7,
    on_progress: Callable[[int, int], None] | None = None,
    *,
    constrained: bool = True,
) -> dict[str, Any]:
    """Scores of a model on test scenes 0..scenes-1 of `seed`, as plain JSON values.

    Calls `on_progress` with (scenes done, all scenes). `constrained=False` disables
    grammar-constrained decoding, to measure how well the model keeps the format by itself.
    """
    if scenes < 1:
        raise OptionError(f"The number of scenes is {scenes}; it must be at least 1.")
    records: list[dict[str, Any]] = []
    predicted: list[list[FoundObject]] = []
    true: list[ReferenceImage] = []
    mask_ious: list[float] = []
    codec_ious: list[float] = []
    texts: list[tuple[int, int, int]] = []
    absent: list[bool] = []
    for start in range(0, scenes, _CHUNK):
        batch = [make_scene("test", seed, i) for i in range(start, min(start + _CHUNK, scenes))]
        for scene, answers in zip(batch, _predict(predictor, batch, constrained), strict=True):
            records.append(_record(scene, answers))
            guess, truth = _found_objects(answers["detect"]), true_boxes(scene)
            predicted.append(guess)
            true.append(truth)
            mask_ious += _mask_ious(scene, answers["segment"])
            codec_ious += _codec_ious(scene, predictor.mask_codec)
            absent.append(not answers["absent"])
            if answers["words"] is not None:
                texts.append(_text_matches(scene, answers["words"]))
        if on_progress is not None:
            on_progress(len(records), scenes)
    counts = [right for record in records for right in record["count_right"]]
    reads = [record["ocr"] == record["ocr_truth"] for record in records if record["ocr_truth"]]
    return {
        "model": predictor.name,
        "scenes": scenes,
        "seed": seed,
        **_scores_of_boxes(predicted, true),
        "absent": _share(absent),
        "caption_exact": {
            code: _share([r["captions"][code] == r["captions_truth"][code] for r in records])
            for code in language.LANGUAGES
        },
        "count": _share(counts),
        "count_ece": _calibration_error(
            [score for record in records for score in record["count_scores"]], counts
        ),
        "ocr_exact": _share(reads),
        "mask_iou": _share(mask_ious),
        "codec_iou": _share(codec_ious),
        "matched_masks": _rounded(len(mask_ious) / max(1, sum(len(t.objects) for t in true))),
        "unparsable": sum(record["num_unparsable"] for record in records),
        "repeating": sum(record["num_repeating"] for record in records),
        "text_f1": _f1(texts),
        **_scores_of_sizes(predictor, math.ceil(scenes / 4), seed, constrained),
        **_scores_of_sheets(predictor, math.ceil(scenes / 4), seed, constrained),
        **scores_of_papers(predictor, math.ceil(scenes / 4), seed, constrained),
        "records": records,
    }


def _scores_of_boxes(
    predicted: Sequence[Sequence[FoundObject]], true: Sequence[ReferenceImage]
) -> dict[str, float | None]:
    """Where the boxes are, and how far their scores can be trusted."""
    table = match_table(predicted, true)
    ious = [
        iou_of_boxes(found.box_xyxy, image.objects[index].box_xyxy)
        for objects, image in zip(predicted, true, strict=True)
        for found, index in match_objects(objects, image.objects, _ANY_OVERLAP)
    ]
    num_true = max(1, sum(len(truth.objects) for truth in true))
    outcomes = box_outcomes(predicted, true)
    scores, is_right = outcomes.scores, outcomes.correct == 1
    right, wrong = scores[is_right][:, None], scores[~is_right][None]
    wins = (right > wrong) + 0.5 * (right == wrong)
    values = {
        "map50": table.mean_average_precision(thresholds=(0,)),
        "map": table.mean_average_precision(),
        "box_iou": float(np.mean(ious)) if ious else math.nan,
        **{
            f"boxes_{share}": sum(iou >= share / 100 for iou in ious) / num_true
            for share in (50, 75, 90)
        },
        "box_ece": expected_calibration_error(reliability(scores, outcomes.correct)),
        "box_auc": float(wins.mean()) if wins.size else math.nan,
    }
    return {name: None if math.isnan(value) else _rounded(value) for name, value in values.items()}


def _calibration_error(scores: Sequence[float], right: Sequence[bool]) -> float:
    bins = reliability(np.asarray(scores), np.asarray(right, dtype=np.float64))
    return _rounded(expected_calibration_error(bins))


def match_objects(
    found: Iterable[FoundT], truth: Sequence[ReferenceObject], min_iou: float
) -> list[tuple[FoundT, int]]:
    """Objects with the index of the true one that each matches: same label, in order of score."""
    pairs: list[tuple[FoundT, int]] = []
    found = list(found)
    for label in sorted({thing.label for thing in truth}):
        indices = [index for index, thing in enumerate(truth) if thing.label == label]
        same = [thing for thing in found if thing.label == label]
        boxes = np.asarray([thing.box_xyxy for thing in same], dtype=np.float64).reshape(-1, 4)
        edges = np.asarray([truth[index].box_xyxy for index in indices], dtype=np.float64)
        matches = match_boxes(boxes, [thing.score for thing in same], edges, min_iou)
        pairs += [
            (thing, indices[match])
            for thing, match in zip(same, matches, strict=True)
            if match is not None
        ]
    return pairs


def _predict(
    predictor: Predictor, scenes: Sequence[Scene], constrained: bool
) -> list[dict[str, Any]]:
    """All answers about each scene."""
    rows: list[tuple[int, LoadedImage, Task[Any]]] = []
    for number, scene in enumerate(scenes):
        image = _image(scene, f"scene {scene.index}")
        rows += [(number, image, task) for task in _tasks(scene)]
    results = predictor.run([(image, task) for _, image, task in rows], constrained=constrained)
    answers: list[dict[str, Any]] = [
        {"captions": {}, "counts": [], "detect": None, "segment": None, "words": None}
        for _ in scenes
    ]
    for (number, _, task), result in zip(rows, results, strict=True):
        answer = answers[number]
        match task:
            case CaptionTask():
                answer["captions"][task.language] = result.text
            case OcrTask():
                answer["ocr"] = result.text
            case AnswerTask():
                answer["counts"].append(result)
            case DetectTask(labels="any"):
                answer["words"] = result
            case DetectTask() if task.phrases == _absent_phrases(scenes[number]):
                answer["absent"] = result
            case DetectTask():
                answer["detect"] = result
            case SegmentTask():
                answer["segment"] = result
    return answers


def _scores_of_sizes(
    predictor: Predictor, scenes: int, seed: int, constrained: bool
) -> dict[str, float | None]:
    """Masks on scenes with objects of all sizes."""
    ious: list[float] = []
    num_objects = 0
    for start in range(0, scenes, _CHUNK):
        batch = [
            scene
            for index in range(start, min(start + _CHUNK, scenes))
            if (scene := make_scene("test", seed, index, sizes="wide")).objects
        ]
        rows = [
            (_image(scene, f"sizes {scene.index}"), SegmentTask.of(_phrases(scene)))
            for scene in batch
        ]
        results = predictor.run(rows, constrained=constrained)
        for scene, segments in zip(batch, results, strict=True):
            ious += _mask_ious(scene, segments)
            num_objects += len(scene.objects)
    return {
        "sizes_mask_iou": _share(ious),
        "sizes_matched": _rounded(len(ious) / max(1, num_objects)),
    }


def _scores_of_sheets(
    predictor: Predictor, sheets: int, seed: int, constrained: bool
) -> dict[str, float | None]:
    """Cells of tables, bars of charts and fields of forms, read from free text."""
    scores: dict[str, float | None] = {}
    kinds: tuple[tuple[SheetKind, str], ...] = (
        ("table", "cells"),
        ("chart", "values"),
        ("form", "fields"),
    )
    for kind, part in kinds:
        right: list[bool] = []
        exact: list[bool] = []
        for start in range(0, sheets, _CHUNK):
            batch = [
                make_sheet("test", seed, index, kind)
                for index in range(start, min(start + _CHUNK, sheets))
            ]
            images = [_image(sheet, f"{kind} {index}") for index, sheet in enumerate(batch, start)]
            # A question without a language is passed to the model verbatim.
            task = AnswerTask(question=kind)
            replies = predictor.run(
                [(image, task) for image in images],
                max_new_tokens=_MAX_SHEET_TOKENS,
                constrained=constrained,
            )
            for sheet, reply in zip(batch, replies, strict=True):
                guess = _read_sheet(kind, reply.text)
                row_of = dict(enumerate(guess))
                if kind == "table":
                    right += [
                        dict(enumerate(row_of.get(i, ()))).get(j) == cell
                        for i, row in enumerate(sheet.rows)
                        for j, cell in enumerate(row)
                    ]
                else:
                    first = int(kind == "form")  # after the heading
                    right += [
                        row_of.get(i) == row for i, row in enumerate(sheet.rows) if i >= first
                    ]
                exact.append(guess == sheet.rows)
        scores |= {f"{kind}_{part}": _share(right), f"{kind}_exact": _share(exact)}
    return scores


def _read_sheet(kind: SheetKind, text: str) -> tuple[tuple[str, ...], ...]:
    """Rows of a table's HTML or of a list; of malformed text, the part that can be read."""
    if kind != "table":
        return tuple(tuple(bar.split()) for bar in text.split(";"))
    rows = re.findall("<tr>(.*?)</tr>", text)
    return tuple(tuple(re.findall("<td>(.*?)</td>", row)) for row in rows)


def _image(drawn: Scene | Sheet, name: str) -> LoadedImage:
    return LoadedImage(rgb=Image.fromarray(drawn.draw(RESOLUTION)), name=name)


def _phrases(scene: Scene) -> list[str]:
    return [language.KINDS[kind].name for kind, _ in SceneTexts(scene).counts]


def _text_matches(scene: Scene, predicted: Detections) -> tuple[int, int, int]:
    """Number of matched, predicted and true words; a match has the same text and IoU >= 0.5."""
    words = [
        ReferenceObject(label=word.text, box_xyxy=_pixels(word.box_xyxy)) for word in scene.words
    ]
    return len(match_objects(predicted, words, 0.5)), len(predicted), len(words)


def _f1(counts: Sequence[tuple[int, int, int]]) -> float | None:
    if not counts:
        return None
    num_matched, num_predicted, num_true = (sum(column) for column in zip(*counts, strict=True))
    return _rounded(2 * num_matched / (num_predicted + num_true))


def _tasks(scene: Scene) -> list[Task[Any]]:
    tasks: list[Task[Any]] = [CaptionTask(language=code) for code in language.LANGUAGES]
    tasks.append(OcrTask())
    if scene.words:
        tasks.append(DetectTask.of("text", labels="any", max_objects=_MAX_WORDS))
    for kind, _ in _counted_kinds(scene):
        question, _ = language.ask_count(kind, 0, "en")
        tasks.append(AnswerTask(question=question, language="en"))
    if scene.objects:
        phrases = _phrases(scene)
        tasks += [DetectTask.of(phrases), SegmentTask.of(phrases)]
    tasks.append(DetectTask.of(_absent_phrases(scene)))
    return tasks


def _absent_phrases(scene: Scene) -> tuple[str, ...]:
    """The name of a kind that is not in the scene."""
    kind, _ = _counted_kinds(scene)[-1]
    return (language.KINDS[kind].name,)


def _counted_kinds(scene: Scene) -> list[tuple[int, int]]:
    """Every kind present with its count, and one that is absent."""
    present = dict(SceneTexts(scene).counts)
    absent = next(
        kind
        for step in range(len(language.KINDS))
        if (kind := (scene.index + step) % len(language.KINDS)) not in present
    )
    return [*present.items(), (absent, 0)]


def _record(scene: Scene, answers: dict[str, Any]) -> dict[str, Any]:
    texts = SceneTexts(scene)
    truths = [str(count) for _, count in _counted_kinds(scene)]
    results: list[Detections | Segments] = [
        result for result in (answers["detect"], answers["segment"]) if result is not None
    ]
    return {
        "index": scene.index,
        "captions": answers["captions"],
        "captions_truth": {code: texts.caption(code) for code in language.LANGUAGES},
        "counts": [answer.text for answer in answers["counts"]],
        "count_scores": [answer.score for answer in answers["counts"]],
        "counts_truth": truths,
        "count_right": [
            answer.text == truth for answer, truth in zip(answers["counts"], truths, strict=True)
        ],
        "ocr": answers["ocr"],
        "ocr_truth": texts.reading(),
        "detections": [] if answers["detect"] is None else answers["detect"].to_dict()["objects"],
        "words": [] if answers["words"] is None else answers["words"].to_dict()["objects"],
        "absent": answers["absent"].to_dict()["objects"],
        "segments": [] if answers["segment"] is None else answers["segment"].to_dict()["objects"],
        "objects_truth": scene.to_truth(RESOLUTION, [kind.name for kind in language.KINDS])[
            "objects"
        ],
        "num_unparsable": sum(_is_unparsable(result) for result in results),
        "num_repeating": sum(
            any(problem.kind == "repeated" for problem in result.problems) for result in results
        ),
    }


def _is_unparsable(result: Detections | Segments) -> bool:
    broken = any(problem.kind != "repeated" for problem in result.problems)
    return broken or bool(result.text.strip() and not result.objects)


def _found_objects(detections: Detections | None) -> list[FoundObject]:
    return [
        FoundObject(label=found.label, box_xyxy=found.box_xyxy, score=found.score)
        for found in detections or ()
    ]


def true_boxes(scene: Scene) -> ReferenceImage:
    objects = [
        ReferenceObject(label=language.KINDS[thing.kind].name, box_xyxy=_pixels(thing.box_xyxy))
        for thing in scene.objects
    ]
    return ReferenceImage(size_wh=(RESOLUTION, RESOLUTION), objects=tuple(objects))


def _pixels(box: BoxXyxy) -> BoxXyxy:
    """A box in fractions of the image, in pixels."""
    x1, y1, x2, y2 = (edge * RESOLUTION for edge in box)
    return x1, y1, x2, y2


def _mask_ious(scene: Scene, segments: Segments | None) -> list[float]:
    """Mask IoU of every matched object: same label, box IoU of at least 0.5."""
    if segments is None:
        return []
    return [
        mask_iou(segment.mask, scene.object_mask(index, RESOLUTION))
        for segment, index in match_objects(segments, true_boxes(scene).objects, 0.5)
    ]


def _codec_ious(scene: Scene, codec: MaskCodec | None) -> list[float]:
    """IoU of each object's mask with itself, encoded and decoded in its true box."""
    if codec is None or not scene.objects:
        return []
    masks = [scene.object_mask(index, RESOLUTION) for index in range(len(scene.objects))]
    crops = [
        crop_mask(mask, thing.box_xyxy) for mask, thing in zip(masks, scene.objects, strict=True)
    ]
    decoded = codec.decode_masks(codec.encode_masks(torch.from_numpy(np.stack(crops))))
    return [
        mask_iou(paste_mask(part.numpy(), _pixels(thing.box_xyxy), mask.shape[::-1]), mask)
        for part, thing, mask in zip(decoded, scene.objects, masks, strict=True)
    ]


def _share(values: Sequence[float | bool]) -> float | None:
    return _rounded(float(np.mean(values))) if values else None


def _rounded(value: float) -> float:
    return round(value, 4)


if __name__ == "__main__":
    main()
