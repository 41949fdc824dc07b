"""Our average precision is COCO's, by COCO's own tool."""

import numpy as np
import pytest

from paligemma.evals.average_precision import Labeled, mean_average_precision
from paligemma.evals.box_iou import box_iou, match_boxes

LABELS = ("cat", "dog", "key")


def random_pictures(seed: int, count: int = 25) -> tuple[list[Labeled], list[Labeled]]:
    """Truth, and guesses that are near it, elsewhere, doubled or of another label."""
    rng = np.random.default_rng(seed)
    predicted, true = [], []
    for _ in range(count):
        corners = rng.uniform(0, 80, (int(rng.integers(0, 5)), 2))
        boxes = np.hstack([corners, corners + rng.uniform(8, 40, corners.shape)])
        labels = [LABELS[i] for i in rng.integers(0, 3, len(boxes))]
        true.append(Labeled(boxes_xyxy=boxes, labels=labels))
        kept = rng.random(len(boxes)) < 0.8
        near = boxes[kept] + rng.normal(0, 4, boxes[kept].shape)
        own = [label for label, keep in zip(labels, kept, strict=True) if keep]
        extra = rng.uniform(0, 60, (int(rng.integers(0, 3)), 2))
        near = np.vstack([near, np.hstack([extra, extra + 20])])
        own += [LABELS[i] for i in rng.integers(0, 3, len(extra))]
        # Few different scores, so that ties happen.
        scores = (rng.integers(1, 6, len(near)) / 6 + rng.random(len(near)) * 1e-3).tolist()
        predicted.append(Labeled(boxes_xyxy=near, labels=own, scores=scores))
    return predicted, true


def coco_map50(predicted: list[Labeled], true: list[Labeled]) -> float:
    coco_eval = pytest.importorskip("faster_coco_eval", reason="the oracle is not installed")
    names = sorted({label for picture in true for label in picture.labels})
    ids = {name: i + 1 for i, name in enumerate(names)}

    def rows(pictures: list[Labeled], scored: bool) -> list[dict[str, object]]:
        return [
            {
                "id": image * 1000 + i + 1,
                "image_id": image + 1,
                "category_id": ids[label],
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": (x2 - x1) * (y2 - y1),
                "iscrowd": 0,
                **({"score": picture.scores[i]} if scored else {}),
            }
            for image, picture in enumerate(pictures)
            for i, ((x1, y1, x2, y2), label) in enumerate(
                zip(picture.boxes_xyxy.tolist(), picture.labels, strict=True)
            )
            if label in ids
        ]

    truth = coco_eval.COCO(
        {
            "images": [{"id": i + 1, "width": 200, "height": 200} for i in range(len(true))],
            "categories": [{"id": i, "name": name} for name, i in ids.items()],
            "annotations": rows(true, scored=False),
        }
    )
    run = coco_eval.COCOeval_faster(truth, truth.loadRes(rows(predicted, scored=True)), "bbox")
    run.evaluate()
    run.accumulate()
    run.summarize()
    return float(run.stats[1])


@pytest.mark.parametrize("seed", range(4))
def test_it_equals_the_reference_tool(seed: int) -> None:
    predicted, true = random_pictures(seed)
    assert mean_average_precision(predicted, true) == pytest.approx(
        coco_map50(predicted, true), abs=1e-6
    )


def test_perfect_guesses_score_one_and_none_score_zero() -> None:
    truth = [Labeled(boxes_xyxy=np.array([[0.0, 0, 10, 10]]), labels=["cat"])]
    right = [Labeled(boxes_xyxy=truth[0].boxes_xyxy, labels=["cat"], scores=[0.4])]
    nothing = [Labeled(boxes_xyxy=np.zeros((0, 4)), labels=[], scores=[])]
    assert mean_average_precision(right, truth) == 1.0
    assert mean_average_precision(nothing, truth) == 0.0
    assert mean_average_precision(nothing, nothing) is None


def test_one_true_box_is_matched_once_by_the_surest_guess() -> None:
    boxes = np.array([[0.0, 0, 10, 10], [0.0, 0, 10, 11], [50.0, 50, 60, 60]])
    assert match_boxes(boxes, [0.2, 0.9, 0.5], boxes[:1], 0.5) == [None, 0, None]


def test_an_empty_box_overlaps_nothing() -> None:
    assert box_iou(np.array([[3.0, 3, 3, 3]]), np.array([[3.0, 3, 3, 3]])).tolist() == [[0.0]]
