from __future__ import annotations

import gc
import io
import json
import pickle
import subprocess
import sys
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from paligemma.errors import ImageError, MissingExtraError, OptionError
from paligemma.results import (
    Answer,
    Caption,
    Detection,
    Detections,
    Generation,
    ImageReference,
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
    existence_score=1.0,
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
    for no_number in ("0.5", float("nan"), None, True):
        with pytest.raises(OptionError, match="min_score is"):
            FOUND.filter(no_number)  # type: ignore[arg-type]


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


def test_an_object_that_is_more_likely_wrong_is_marked() -> None:
    unsure = replace(WHOLE, objects=(CAT, replace(DOG, score=0.49)))
    assert [obj.unsure for obj in unsure] == [False, True]
    assert [obj["unsure"] for obj in unsure.to_dict()["objects"]] == [False, True]
    lines = str(unsure).splitlines()
    assert lines[3].endswith("Dog  (unsure)")
    assert lines[4] == "unsure: more likely wrong than right, by that score"
    assert str(unsure[1]).endswith("(unsure)")


def test_a_calibrated_score_alone_says_what_is_unsure() -> None:
    """The share of the label is in the score, and a calibration has weighed it."""
    assert not replace(DOG, score=0.75, label_score=0.06).unsure


def test_printing_shows_a_table_and_what_went_wrong() -> None:
    assert str(FOUND).splitlines() == [
        "2 objects in an image of 640 x 480 pixels",
        "score      x1      y1      x2      y2  label",
        " 0.90    64.0    48.0   320.0   240.0  cat",
        " 0.30     0.0     0.0   640.0   480.0  Dog  (unsure)",
        "unsure: more likely wrong than right, by that score",
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


def test_masks_are_kept_packed_and_come_back_as_they_were() -> None:
    rng = np.random.default_rng(0)
    for mask in (MASK, ~MASK, np.zeros((3, 5), bool), rng.random((37, 53)) < 0.3):
        segment = segments(mask)[0]
        assert np.array_equal(segment.mask, mask)
        assert segment.mask.dtype == np.bool_
        assert segment.mask is not segment.mask
        segment.mask[:] = True  # a copy: changes nothing
        assert np.array_equal(pickle.loads(pickle.dumps(segment)).mask, mask)
        assert replace(segment, score=0.1).rle == segment.rle
    large = np.zeros((3000, 4000), bool)
    large[100:300, 200:400] = True
    assert len(pickle.dumps(segments(large))) < 20_000
    with pytest.raises(TypeError, match="needs its mask"):
        Segment(**vars(CAT), mask_score=0.5)


def test_results_are_short_in_a_console() -> None:
    assert repr(CAT) == "Detection('cat', score=0.9, box_xyxy=(64.0, 48.0, 320.0, 240.0))"
    assert repr(replace(FOUND, objects=(CAT,))) == f"Detections([{CAT!r}], size_wh=(640, 480))"
    assert repr(segments(MASK)[0]).startswith("Segment('cat'")
    text: dict[str, Any] = {
        "text": "a cat",
        "token_ids": (1,),
        "logprobs": (-0.1,),
        "stop_reason": "eos",
    }
    assert repr(Generation(**text)) == "Generation('a cat')"
    assert repr(Caption(**text, score=0.5, language="en")) == "Caption('a cat', score=0.5)"


def test_a_result_remembers_a_path_and_an_image_that_exists(tmp_path: Path) -> None:
    image = Image.new("RGB", (640, 480), (9, 9, 9))
    path = tmp_path / "image.png"
    image.save(path)
    by_path = replace(FOUND, image_reference=ImageReference(str(path)))
    in_memory = replace(FOUND, image_reference=ImageReference(image))
    assert by_path == in_memory == FOUND
    assert by_path.to_json() == FOUND.to_json()
    for result in (by_path, in_memory, by_path.filter(0.5), pickle.loads(pickle.dumps(by_path))):
        assert result.draw().size == (640, 480)
        assert [crop.size for crop in result.crop()][:1] == [(256, 192)]
    drawing = Image.open(io.BytesIO(by_path._repr_png_() or b""))
    assert drawing.size == (640, 480)
    assert "<img" in by_path._repr_html_()
    assert "cat" in by_path._repr_html_()
    with Image.open(by_path.save(tmp_path / "drawn.jpg")) as drawn:
        assert drawn.size == (640, 480)
    with pytest.raises(OptionError, match="cannot be written"):
        by_path.save(tmp_path / "drawn.xyz")
    with pytest.raises(OptionError, match="cannot be written"):
        by_path.save(tmp_path / "absent" / "drawn.png")
    unknown = pickle.loads(pickle.dumps(in_memory))
    del image, result
    gc.collect()
    for forgetful in (unknown, in_memory, FOUND):
        with pytest.raises(ImageError, match="Pass the image"):
            forgetful.draw()
        assert forgetful._repr_png_() is None
        assert "<img" not in forgetful._repr_html_()
    assert FOUND.crop(Image.new("RGB", (640, 480)))[1].size == (640, 480)
    with pytest.raises(ImageError, match="64 x 48"):
        FOUND.crop(Image.new("RGB", (64, 48)))


def test_labels_are_escaped_in_a_notebook() -> None:
    assert "<b>" not in replace(FOUND, objects=(replace(CAT, label="<b>"),))._repr_html_()


def test_csv_quotes_labels() -> None:
    result = replace(FOUND, objects=(replace(CAT, label='a "cat", black'),))
    assert result.to_csv().splitlines() == [
        "label,score,x1,y1,x2,y2,unsure",
        '"a ""cat"", black",0.9000,64.00,48.00,320.00,240.00,False',
    ]


def test_yolo_lines_have_the_class_and_the_box_in_fractions() -> None:
    assert replace(FOUND, objects=(CAT,)).to_yolo() == "1 0.300000 0.300000 0.400000 0.400000\n"
    assert FOUND.to_yolo({"cat": 7}).splitlines()[0].startswith("7 ")
    assert replace(FOUND, objects=()).to_yolo() == ""
    line = segments(MASK).to_yolo().split()
    corners = np.array(line[1:], float).reshape(-1, 2) * (6, 4)
    assert line[0] == "1"
    assert sorted(corners.round(4).tolist()) == [[2, 1], [2, 3], [5, 1], [5, 3]]


def test_label_studio_gets_rectangles_in_percent() -> None:
    task = FOUND.to_labelstudio("s3://bucket/1.jpg")
    assert task["data"] == {"image": "s3://bucket/1.jpg"}
    [prediction] = task["predictions"]
    value = prediction["result"][0]["value"]
    assert value["rectanglelabels"] == ["cat"]
    assert [value[k] for k in ("x", "y", "width", "height")] == pytest.approx([10, 10, 40, 40])
    json.dumps(task, allow_nan=False)
    with pytest.raises(OptionError, match="image=ADDRESS"):
        FOUND.to_labelstudio()
    known = replace(FOUND, image_reference=ImageReference(Path("a.jpg")))
    assert known.to_labelstudio()["data"] == {"image": "a.jpg"}
