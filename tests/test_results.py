from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import FrozenInstanceError, replace
from typing import Any

import numpy as np
import pytest

from paligemma.errors import MissingExtraError
from paligemma.results import (
    Answer,
    Caption,
    Detection,
    Detections,
    Generation,
    Problem,
    Score,
    Segment,
    Segments,
    Text,
)

CAT = Detection(
    label="cat",
    box_xyxy=(64.0, 48.0, 320.0, 240.0),
    box_normalized_xyxy=(0.1, 0.1, 0.5, 0.5),
    score=0.9,
    coordinate_score=0.81,
    label_score=1.0,
)
DOG = replace(CAT, label="Dog", score=0.3, box_xyxy=(0.0, 0.0, 640.0, 480.0))
FOUND = Detections(
    objects=(CAT, DOG),
    prompt="detect dog ; cat ; cow",
    phrases=("dog", "cat", "cow"),
    problems=(Problem(kind="cut", detail="the tokens ran out.", token_span=(12, 14)),),
    size_wh=(640, 480),
    stop_reason="length",
    text="<loc0102>... cat",
)


WHOLE = replace(FOUND, problems=(), stop_reason="eos")


def segments(mask: np.ndarray) -> Segments:
    height, width = mask.shape
    segment = Segment(**vars(CAT), mask=mask, mask_score=0.5)
    return Segments(
        **{**vars(FOUND), "objects": (segment,), "size_wh": (width, height), "problems": ()}
    )


MASK = np.zeros((4, 6), dtype=bool)
MASK[1:3, 2:5] = True


def test_detections_are_a_sequence() -> None:
    assert len(FOUND) == 2
    assert list(FOUND) == [CAT, DOG]
    assert FOUND[1] is DOG
    assert FOUND[:1] == (CAT,)
    assert CAT in FOUND
    assert not FOUND.filter(2.0)


def test_columns_are_arrays() -> None:
    assert FOUND.boxes.shape == (2, 4)
    assert FOUND.boxes[0].tolist() == [64.0, 48.0, 320.0, 240.0]
    assert FOUND.scores.tolist() == [0.9, 0.3]
    assert FOUND.labels == ("cat", "Dog")
    assert FOUND.filter(2.0).boxes.shape == (0, 4)


def test_a_phrase_is_found_whatever_the_letter_case() -> None:
    assert WHOLE.missing == ("cow",)


def test_a_list_that_was_cut_says_nothing_of_what_it_did_not_reach() -> None:
    assert (FOUND.missing, FOUND.not_reached) == ((), ("cow",))
    assert (WHOLE.missing, WHOLE.not_reached) == (("cow",), ())


def test_filtering_keeps_what_scores_enough_and_updates_what_is_missing() -> None:
    kept = FOUND.filter(0.9)
    assert kept.labels == ("cat",)
    assert kept.problems == FOUND.problems
    assert (kept.missing, kept.not_reached, kept.filtered) == ((), ("cow",), ("dog",))
    none_left = WHOLE.filter(0.8).filter(0.95)
    assert (none_left.missing, none_left.filtered) == (("cow",), ("dog", "cat"))
    assert "below the minimum score: dog, cat" in str(none_left).splitlines()


def test_one_kept_object_keeps_its_phrase() -> None:
    both = replace(WHOLE, objects=(*WHOLE.objects, replace(DOG, score=0.95)))
    assert both.filter(0.9).filtered == ()


def test_an_object_that_the_model_would_call_something_else_is_marked() -> None:
    unsure = replace(WHOLE, objects=(CAT, replace(DOG, label_score=0.01)))
    assert [obj.unsure for obj in unsure] == [False, True]
    assert [obj["unsure"] for obj in unsure.to_dict()["objects"]] == [False, True]
    lines = str(unsure).splitlines()
    assert lines[3].endswith("Dog  (unsure)")
    assert lines[4] == "unsure: the model would call this something else"
    assert str(unsure[1]).endswith("(unsure)")


def test_printing_shows_a_table_and_what_went_wrong() -> None:
    assert str(FOUND).splitlines() == [
        "2 objects in an image of 640 x 480 pixels",
        "score      x1      y1      x2      y2  label",
        " 0.90    64.0    48.0   320.0   240.0  cat",
        " 0.30     0.0     0.0   640.0   480.0  Dog",
        "not reached: cow",
        "cut: the tokens ran out.",
    ]
    assert str(WHOLE).splitlines()[-1] == "not found: cow"
    assert str(CAT) == "cat 0.90 at (64.0, 48.0, 320.0, 240.0)"


def test_json_holds_everything_and_nothing_infinite() -> None:
    strange = replace(FOUND, objects=(replace(CAT, score=float("nan"), label="猫"),))
    loaded = json.loads(strange.to_json())
    assert loaded["objects"][0]["score"] is None
    assert loaded["objects"][0]["label"] == "猫"
    assert loaded["objects"][0]["box_xyxy"] == [64.0, 48.0, 320.0, 240.0]
    assert (loaded["missing"], loaded["not_reached"]) == ([], ["dog", "cat", "cow"])
    assert loaded["problems"] == [
        {"kind": "cut", "detail": "the tokens ran out.", "token_span": [12, 14]}
    ]


def test_numpy_numbers_become_json_numbers() -> None:
    found = replace(CAT, score=np.float32(0.5), box_xyxy=tuple(np.arange(4.0)))  # type: ignore[arg-type]
    assert json.loads(found.to_json())["score"] == 0.5
    assert json.loads(found.to_json())["box_xyxy"] == [0, 1, 2, 3]


def test_a_mask_becomes_run_lengths_in_json() -> None:
    mask = json.loads(segments(MASK).to_json())["objects"][0]["mask"]
    assert mask["size"] == [4, 6]
    coco_mask = pytest.importorskip("faster_coco_eval").mask
    decoded = coco_mask.decode({"size": mask["size"], "counts": mask["counts"].encode()})
    assert np.array_equal(decoded.astype(bool), MASK)


def test_segments_compare_by_their_masks_and_hash() -> None:
    assert segments(MASK) == segments(MASK.copy())
    assert segments(MASK) != segments(~MASK)
    assert hash(segments(MASK)[0]) == hash(segments(MASK.copy())[0])
    assert segments(MASK)[0] != CAT
    assert segments(MASK).masks.shape == (1, 4, 6)
    assert segments(MASK).filter(1.1).masks.shape == (0, 4, 6)
    assert segments(MASK)[0].polygons == [[[2, 1], [5, 1], [5, 3], [2, 3]]]


def test_coco_numbers_classes_in_the_order_asked() -> None:
    coco = FOUND.to_coco(image_id=7)
    assert coco["images"] == [{"id": 7, "width": 640, "height": 480}]
    assert coco["categories"] == [
        {"id": 1, "name": "dog"},
        {"id": 2, "name": "cat"},
        {"id": 3, "name": "cow"},
        {"id": 4, "name": "Dog"},
    ]
    assert coco["annotations"][0] == {
        "id": 1,
        "image_id": 7,
        "category_id": 2,
        "bbox": [64.0, 48.0, 256.0, 192.0],
        "area": 256.0 * 192.0,
        "iscrowd": 0,
        "score": 0.9,
    }
    json.dumps(coco, allow_nan=False)


def test_coco_keeps_given_class_numbers_and_adds_unknown_ones() -> None:
    coco = FOUND.to_coco(categories={"cat": 17})
    assert [a["category_id"] for a in coco["annotations"]] == [17, 18]
    assert coco["categories"] == [{"id": 17, "name": "cat"}, {"id": 18, "name": "Dog"}]


def test_coco_segments_carry_masks() -> None:
    annotation = segments(MASK).to_coco()["annotations"][0]
    assert annotation["area"] == 6
    assert annotation["segmentation"]["size"] == [4, 6]
    json.dumps(annotation)


@pytest.mark.filterwarnings("default")
def test_supervision_gets_boxes_masks_and_names() -> None:
    pytest.importorskip("supervision")
    ours = FOUND.to_supervision()
    assert ours.xyxy.tolist() == FOUND.boxes.tolist()
    assert ours.class_id.tolist() == [1, 3]
    assert ours.data["class_name"].tolist() == ["cat", "Dog"]
    assert segments(MASK).to_supervision().mask.sum() == 6
    assert len(FOUND.filter(2.0).to_supervision()) == 0


def test_without_supervision_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(MissingExtraError, match=r"paligemma\[supervision\]"):
        FOUND.to_supervision()


def test_texts_print_as_their_text() -> None:
    words: dict[str, Any] = {
        "text": "a cow",
        "token_ids": (5, 1),
        "logprobs": (-0.1, -0.2),
        "stop_reason": "eos",
    }
    for result in (
        Generation(**words),
        Text(**words, score=0.9),
        Caption(**words, score=0.9, language="en"),
        Answer(**words, score=0.9, question="What is it?"),
    ):
        assert str(result) == "a cow"
        assert json.loads(result.to_json())["token_ids"] == [5, 1]


def test_a_score_sums_its_logprobs() -> None:
    score = Score(token_ids=(5, 6, 1), logprobs=(-0.5, -0.25, -0.25))
    assert score.total == -1.0
    assert score.to_dict()["total"] == -1.0
    assert str(score) == "log-probability -1.0000 over 3 tokens"


def test_results_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        CAT.label = "dog"  # type: ignore[misc]


def test_importing_results_loads_neither_torch_nor_pil() -> None:
    code = "import sys, paligemma.results; print({'torch', 'PIL'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
