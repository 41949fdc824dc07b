"""Average precision of boxes and masks: the figures of the COCO API."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paligemma.errors import DataError, MissingExtraError
from paligemma.evals.metrics.detection import MeanAveragePrecision, f1_of, match_table
from paligemma.evals.metrics.result import FoundObject, ReferenceImage, ReferenceObject, area_of
from paligemma.masks import mask_to_rle

pytest.importorskip("faster_coco_eval", reason="the package of the extra 'eval' is not installed")


def xyxy(xywh: list[float]) -> tuple[float, float, float, float]:
    x, y, width, height = xywh
    return x, y, x + width, y + height


@pytest.fixture(scope="module")
def coco_sample(shared_data: Path) -> dict[str, Any]:
    folder = shared_data / "metrics" / "coco"
    truth = json.loads((folder / "instances_val2014_100.json").read_text())
    rows = json.loads((folder / "instances_val2014_fakebbox100_results.json").read_text())
    names = {c["id"]: c["name"] for c in truth["categories"]}
    # Equal scores rank by picture, and the COCO API takes pictures by number.
    truth["images"].sort(key=lambda image: image["id"])
    known = [
        ReferenceImage(
            size_wh=(image["width"], image["height"]),
            objects=tuple(
                ReferenceObject(
                    label=names[a["category_id"]],
                    box_xyxy=xyxy(a["bbox"]),
                    is_crowd=bool(a["iscrowd"]),
                    area=a["area"],
                )
                for a in truth["annotations"]
                if a["image_id"] == image["id"]
            ),
        )
        for image in truth["images"]
    ]
    found = [
        [
            FoundObject(
                label=names[row["category_id"]], box_xyxy=xyxy(row["bbox"]), score=row["score"]
            )
            for row in rows
            if row["image_id"] == image["id"]
        ]
        for image in truth["images"]
    ]
    expected = json.loads((folder / "expected.json").read_text())["bbox"]
    return {"known": known, "found": found, "expected": expected}


def test_all_twelve_figures_are_those_of_the_coco_api(coco_sample: dict[str, Any]) -> None:
    result = MeanAveragePrecision().score(coco_sample["found"], coco_sample["known"])
    ours = {"AP": result.value} | {
        name.replace("ap_", "AP").replace("ar_", "AR").upper(): value
        for name, value in result.details.items()
    }
    for name, value in coco_sample["expected"].items():
        own = {"APs": "APSMALL", "APm": "APMEDIUM", "APl": "APLARGE"}.get(name, name)
        own = {"ARs": "ARSMALL", "ARm": "ARMEDIUM", "ARl": "ARLARGE"}.get(own, own)
        assert ours[own] == pytest.approx(value, abs=1e-9), name


def test_the_mean_over_labels_is_the_value(coco_sample: dict[str, Any]) -> None:
    result = MeanAveragePrecision().score(coco_sample["found"], coco_sample["known"])
    labels = [value for name, value in result.details.items() if name.startswith("ap/")]
    assert np.nanmean(labels) == pytest.approx(result.value, abs=1e-12)


def test_the_table_for_resampling_gives_the_same_figure_crowds_included(
    coco_sample: dict[str, Any],
) -> None:
    assert sum(thing.is_crowd for known in coco_sample["known"] for thing in known.objects) > 5
    table = match_table(coco_sample["found"], coco_sample["known"])
    assert table.mean_average_precision() == pytest.approx(coco_sample["expected"]["AP"], abs=1e-9)


def test_an_image_drawn_twice_counts_as_two_images(coco_sample: dict[str, Any]) -> None:
    found, known = coco_sample["found"][:30], coco_sample["known"][:30]
    counts = np.random.default_rng(3).integers(0, 3, 30)
    picks = np.repeat(np.arange(30), counts)
    drawn = MeanAveragePrecision().score([found[i] for i in picks], [known[i] for i in picks])
    statistic = MeanAveragePrecision().statistic(found, known)
    # Labels that are in no drawn picture are not in its mean, here and there.
    assert statistic(counts) == pytest.approx(drawn.value, abs=1e-9)


def random_images(seed: int) -> tuple[list[list[FoundObject]], list[ReferenceImage]]:
    """Truth, and predictions that are near it, elsewhere, repeated or of another label."""
    rng = np.random.default_rng(seed)
    labels = ("cat", "dog", "key")
    found, known = [], []
    for _ in range(25):
        corners = rng.uniform(0, 80, (int(rng.integers(0, 5)), 2))
        boxes = np.hstack([corners, corners + rng.uniform(8, 40, corners.shape)])
        names = [labels[i] for i in rng.integers(0, 3, len(boxes))]
        things = [
            ReferenceObject(label=name, box_xyxy=tuple(box))
            for name, box in zip(names, boxes.tolist(), strict=True)
        ]
        known.append(ReferenceImage(size_wh=(200, 200), objects=tuple(things)))
        kept = rng.random(len(boxes)) < 0.8
        near = boxes[kept] + rng.normal(0, 4, boxes[kept].shape)
        near_names = [name for name, keep in zip(names, kept, strict=True) if keep]
        extra = rng.uniform(0, 60, (int(rng.integers(0, 3)), 2))
        near = np.vstack([near, np.hstack([extra, extra + 20])])
        near_names += [labels[i] for i in rng.integers(0, 3, len(extra))]
        # Few different scores, so that there are ties.
        scores = (rng.integers(1, 6, len(near)) / 6 + rng.random(len(near)) * 1e-3).tolist()
        found.append(
            [
                FoundObject(label=name, box_xyxy=tuple(box), score=score)
                for name, box, score in zip(near_names, near.tolist(), scores, strict=True)
            ]
        )
    return found, known


@pytest.mark.parametrize("seed", range(4))
def test_the_table_gives_the_figures_of_the_coco_api_on_random_boxes(seed: int) -> None:
    found, known = random_images(seed)
    result = MeanAveragePrecision().score(found, known)
    table = match_table(found, known)
    assert table.mean_average_precision() == pytest.approx(result.value, abs=1e-9)
    ap50 = table.mean_average_precision(thresholds=(0,))
    assert ap50 == pytest.approx(result.details["ap50"], abs=1e-9)


def rectangle(box: tuple[int, int, int, int], size: int = 40) -> Any:
    mask = np.zeros((size, size), dtype=np.bool_)
    x1, y1, x2, y2 = box
    mask[y1:y2, x1:x2] = True
    return mask_to_rle(mask)


def test_masks_are_scored_like_the_boxes_that_they_fill() -> None:
    rng = np.random.default_rng(0)
    found, known = [], []
    for _ in range(12):
        corners = rng.integers(0, 20, (3, 2))
        boxes = [(int(x), int(y), int(x) + 10, int(y) + 14) for x, y in corners]
        moved = [(x1 + 1, y1, x2 + int(rng.integers(0, 5)), y2) for x1, y1, x2, y2 in boxes]
        known.append(
            ReferenceImage(
                size_wh=(40, 40),
                objects=tuple(
                    ReferenceObject(label="cat", box_xyxy=box, rle=rectangle(box)) for box in boxes
                ),
            )
        )
        found.append(
            [
                FoundObject(label="cat", box_xyxy=box, rle=rectangle(box), score=rng.random())
                for box in moved
            ]
        )
    boxes_result = MeanAveragePrecision(kind="box").score(found, known)
    masks_result = MeanAveragePrecision(kind="mask").score(found, known)
    assert 0.2 < boxes_result.value < 1
    assert masks_result.value == pytest.approx(boxes_result.value, abs=1e-9)
    statistic = MeanAveragePrecision(kind="mask").statistic(found, known)
    assert statistic(np.ones(12, dtype=np.int64)) == pytest.approx(masks_result.value, abs=1e-9)


def moved(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The mask a few pixels on, with a bite taken out."""
    down, right = (int(step) for step in rng.integers(-4, 5, 2))
    shifted = np.roll(mask, (down, right), axis=(0, 1))
    rows, columns = np.nonzero(shifted)
    if len(rows):
        place = int(rng.integers(len(rows)))
        size = max(2, int(len(rows) ** 0.5 / 3))
        shifted[rows[place] : rows[place] + size, columns[place] : columns[place] + size] = False
    return shifted


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_masks_with_crowds_and_sizes_are_scored_as_pycocotools_does(shared_data: Path) -> None:
    """COCO's own polygons and crowds of 40 pictures; guesses are the same masks, moved."""
    pycocotools = pytest.importorskip("pycocotools.coco", reason="the oracle is not installed")
    evaluator = pytest.importorskip("pycocotools.cocoeval")
    path = shared_data / "metrics" / "coco" / "instances_val2014_100.json"
    whole = json.loads(path.read_text())
    images = sorted(whole["images"], key=lambda image: image["id"])[:40]
    chosen = {image["id"] for image in images}
    truth = pycocotools.COCO()
    annotations = [a for a in whole["annotations"] if a["image_id"] in chosen]
    truth.dataset = {**whole, "images": images, "annotations": annotations}
    truth.createIndex()
    names = {c["id"]: c["name"] for c in whole["categories"]}
    rng = np.random.default_rng(0)
    known, found, rows = [], [], []
    for image in images:
        things, guesses = [], []
        for a in (a for a in annotations if a["image_id"] == image["id"]):
            mask = truth.annToMask(a).astype(bool)
            box, label = xyxy(a["bbox"]), names[a["category_id"]]
            things.append(
                ReferenceObject(
                    label=label,
                    box_xyxy=box,
                    rle=mask_to_rle(mask),
                    is_crowd=bool(a["iscrowd"]),
                    area=a["area"],
                )
            )
            for _ in range(int(rng.integers(0, 3))):
                rle, score = mask_to_rle(moved(mask, rng)), float(rng.random())
                guesses.append(FoundObject(label=label, box_xyxy=box, rle=rle, score=score))
                rows.append(
                    {
                        "image_id": image["id"],
                        "category_id": a["category_id"],
                        "segmentation": {**rle, "counts": rle["counts"].encode()},
                        "score": score,
                    }
                )
        known.append(ReferenceImage(size_wh=(image["width"], image["height"]), objects=(*things,)))
        found.append(guesses)
    assert sum(a["iscrowd"] for a in annotations) > 2
    run = evaluator.COCOeval(truth, truth.loadRes(rows), "segm")
    run.evaluate()
    run.accumulate()
    run.summarize()
    metric = MeanAveragePrecision(kind="mask")
    result = metric.score(found, known)
    ours = [result.value, *list(result.details.values())[:11]]
    assert ours == pytest.approx(run.stats.tolist(), abs=1e-9)
    assert 0.2 < result.value < 0.9
    every_one = np.ones(len(known), dtype=np.int64)
    assert metric.statistic(found, known)(every_one) == pytest.approx(result.value, abs=1e-9)


def one(label: str = "cat", score: float = 0.5) -> FoundObject:
    return FoundObject(label=label, box_xyxy=(0, 0, 10, 10), score=score)


def picture(*labels: str) -> ReferenceImage:
    return ReferenceImage(
        size_wh=(40, 40),
        objects=tuple(ReferenceObject(label=label, box_xyxy=(0, 0, 10, 10)) for label in labels),
    )


def test_nothing_found_scores_zero_and_nothing_to_find_has_no_score() -> None:
    nothing = MeanAveragePrecision().score([[]], [picture("cat")])
    assert nothing.value == 0.0
    assert nothing.per_example == (0.0,)
    empty = MeanAveragePrecision().score([[], [one()]], [picture(), picture()])
    assert math.isnan(empty.value)
    assert empty.per_example == (1.0, 0.0)
    assert math.isnan(empty.details["f1"])
    crowd = replace(picture("cat").objects[0], is_crowd=True)
    crowds = MeanAveragePrecision().score([[]], [replace(picture(), objects=(crowd,))])
    assert math.isnan(crowds.value)
    assert math.isnan(crowds.details["f1"])
    assert math.isnan(crowds.per_example[0])


def test_a_label_that_is_nowhere_true_lowers_an_images_f1_and_not_the_mean() -> None:
    result = MeanAveragePrecision().score([[one(), one("noise")]], [picture("cat")])
    assert result.value == 1.0
    assert result.per_example == pytest.approx((2 / 3,))
    assert f1_of(1, 2, 1) == pytest.approx(2 / 3)


def test_a_box_where_a_mask_is_compared_is_refused() -> None:
    with pytest.raises(DataError, match="no mask"):
        MeanAveragePrecision(kind="mask").score([[one()]], [picture("cat")])


def test_the_area_is_the_annotations_then_the_masks_then_the_boxs() -> None:
    box = (0, 0, 10, 10)
    assert area_of(ReferenceObject(label="a", box_xyxy=box)) == 100
    assert area_of(ReferenceObject(label="a", box_xyxy=box, rle=rectangle((0, 0, 3, 3)))) == 9
    assert area_of(ReferenceObject(label="a", box_xyxy=box, area=5.0)) == 5.0


def test_the_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    with pytest.raises(MissingExtraError, match=r"paligemma\[eval\]"):
        MeanAveragePrecision().score([[one()]], [picture("cat")])
