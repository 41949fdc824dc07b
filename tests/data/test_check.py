"""What a check says about data that would teach nothing, or something else than meant."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from paligemma.data.check import CheckReport, check_data
from paligemma.data.check_page import (
    BatchRow,
    answer_ids,
    draw_row,
    kinds_of_row,
    render_check_page,
)
from paligemma.data.findings import Level
from paligemma.data.open import open_data
from paligemma.data.record import TrueObject, image_keys
from paligemma.data.source import ObjectTask
from paligemma.data.targets import TargetBuilder, TargetOptions
from paligemma.errors import OptionError
from paligemma.processor.processor import ExampleRow, Processor
from paligemma.processor.tokenizer import Tokenizer
from paligemma.tasks.seg_codec import MaskCodec
from tests.data.annotated import coco, jsonl

IMAGE = 25


@pytest.fixture
def processor(tiny_tokenizer: Tokenizer) -> Processor:
    return Processor(tokenizer=tiny_tokenizer, resolution=30, num_image_tokens=IMAGE)


def checked(
    processor: Processor, path: Path, max_tokens: int | None = None, **options: Any
) -> CheckReport:
    records = open_data(path, on_bad_record="skip", max_skipped=1.0)
    builder = TargetBuilder(
        processor=processor,
        class_names=records.class_names,
        options=TargetOptions(**options),
    )
    return check_data(records, builder, max_tokens=max_tokens)


def texts(report: CheckReport, level: Level) -> str:
    return "\n".join(finding.text for finding in report.findings if finding.level == level)


def captions(*suffixes: str) -> list[dict[str, Any]]:
    return [{"prefix": "caption en", "suffix": suffix} for suffix in suffixes]


def box(x: float = 5.0, category: int = 1) -> dict[str, Any]:
    return {"image_id": 1, "category_id": category, "bbox": [x, 3, 10, 4]}


def test_good_data_have_no_fault(processor: Processor, tmp_path: Path) -> None:
    report = checked(processor, jsonl(tmp_path, captions("a cat", "a dog", "on the beach")))
    assert report.errors == ()
    assert texts(report, "warning") == ""
    assert "EOS ends the answer and counts in the loss in 3 records" in texts(report, "note")
    tokens = processor.tokenizer.tokenize_text
    first = report.rows[0]
    assert (first.num_image, first.num_prefix) == (IMAGE, 2 + len(tokens("caption en")))
    assert first.num_suffix == first.num_supervised == len(tokens("a cat")) + 1
    assert report.round_trip is None


def test_rows_without_a_learned_token_are_a_fault(processor: Processor, tmp_path: Path) -> None:
    path = jsonl(tmp_path, captions("a cat", "a dog"))
    report = checked(processor, path, max_tokens=IMAGE)
    assert [row.num_supervised for row in report.rows] == [0, 0]
    silent, cut = report.errors
    assert "2 of 2 records have no token that counts in the loss" in silent.text
    assert f"up to {report.rows[0].total} tokens" in silent.text
    assert silent.ids == ("line 1", "line 2")
    assert "the model never learns to stop" in cut.text


def test_a_row_that_loses_its_end_is_a_warning(processor: Processor, tmp_path: Path) -> None:
    path = jsonl(tmp_path, captions("a cat", "a dog and a cat stand on the beach"))
    longest = max(row.total for row in checked(processor, path).rows)
    report = checked(processor, path, max_tokens=longest - 1)
    assert report.errors == ()
    assert "1 of 2 records are longer" in texts(report, "warning")
    assert [row.is_cut for row in report.rows] == [False, True]
    assert not any(row.is_cut for row in checked(processor, path, max_tokens=longest).rows)


def test_files_that_are_missing_or_damaged_are_faults(processor: Processor, tmp_path: Path) -> None:
    path = jsonl(tmp_path, [*captions("a", "b", "c"), {"prefix": "x", "suffix": ""}])
    (tmp_path / "0.png").unlink()
    (tmp_path / "1.png").write_bytes(b"no picture")
    report = checked(processor, path)
    assert (report.num_records, report.num_bad) == (4, 3)
    found = "\n".join(error.text for error in report.errors)
    assert re.search(r"0\.png.*does not exist", found)
    assert re.search(r"1\.png.*unknown format", found)
    assert re.search(r"Line 4.*empty suffix", found)
    assert len(report.rows) == 1


def test_the_same_answer_everywhere_is_said(processor: Processor, tmp_path: Path) -> None:
    report = checked(processor, jsonl(tmp_path, captions("a dog", "a dog")))
    assert "All 2 records have the same answer, 'a dog'" in texts(report, "warning")


def test_no_object_anywhere_is_a_fault(processor: Processor, tmp_path: Path) -> None:
    report = checked(processor, coco(tmp_path, []))
    assert "All 2 records have the same answer, ''" in texts(report, "error")


def test_text_that_a_person_need_not_write_is_said(processor: Processor, tmp_path: Path) -> None:
    records = [
        {"prefix": "<image>caption en", "suffix": "a dog"},
        {"prefix": "caption en", "suffix": "a cat<eos>"},
        {"prefix": "caption en", "suffix": " a cow"},
    ]
    warnings = texts(checked(processor, jsonl(tmp_path, records)), "warning")
    assert "2 records spell out <image>" in warnings
    assert "1 suffix begins or ends with white space" in warnings


def test_ready_made_lists_of_objects_are_parsed(processor: Processor, tmp_path: Path) -> None:
    good = "<loc0001><loc0002><loc0003><loc0004> cat"
    records = [
        {"prefix": "detect cat", "suffix": good},
        {"prefix": "detect cat", "suffix": "<loc0009><loc0002><loc0003><loc0004> cat"},
        {"prefix": "detect cat", "suffix": f"{good} ; {good}"},
        {"prefix": "detect cat", "suffix": "no box"},
        {"prefix": "detect", "suffix": "no box"},
    ]
    report = checked(processor, jsonl(tmp_path, records))
    warnings = texts(report, "warning")
    assert "Answers to detect or segment that are not lists of objects: 3" in warnings
    assert "has no area" in warnings
    assert "1 object appears twice" in warnings


def test_classes_are_counted_and_missing_ones_said(processor: Processor, tmp_path: Path) -> None:
    report = checked(processor, coco(tmp_path, [box(), box(20.0)]))
    assert report.class_counts == (("cat", 2),)
    assert "1 class has no object: dog" in texts(report, "warning")
    assert "1 of 2 images have no object" in texts(report, "note")
    assert report.round_trip is not None
    assert report.round_trip.num_boxes == 2


def test_objects_beyond_the_budget_are_said(processor: Processor, tmp_path: Path) -> None:
    path = coco(tmp_path, [box(), box(20.0), box(30.0, category=2)])
    report = checked(processor, path, max_objects=2)
    assert "1 object is left out: the limit is 2" in texts(report, "warning")


def test_names_that_differ_in_capitals_are_said(processor: Processor, tmp_path: Path) -> None:
    objects = [{"label": name, "box_xyxy": [1, 2, 9, 9]} for name in ("Cat", "cat", "dog")]
    report = checked(processor, jsonl(tmp_path, [{"objects": objects}]))
    assert "Cat and cat" in texts(report, "warning")


def test_a_limit_that_makes_no_sense_is_refused(processor: Processor, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="max_tokens is 0"):
        checked(processor, jsonl(tmp_path, captions("a")), max_tokens=0)


# The page


def page_of(
    processor: Processor, codec: MaskCodec | None, path: Path, max_tokens: int | None = None
) -> tuple[str, TargetBuilder, list[BatchRow], Any]:
    records = open_data(path)
    task: ObjectTask = "detect" if codec is None else "segment"
    builder = TargetBuilder(
        processor=processor, class_names=records.class_names, task=task, mask_codec=codec
    )
    rows = [
        BatchRow(record=record, target=builder.build(record), image=record.load_image())
        for record in records
    ]
    inputs = processor.example_inputs(
        [
            ExampleRow(prompt=row.target.prefix, suffix=row.target.suffix_parts, images=(i,))
            for i, row in enumerate(rows)
        ],
        [row.image for row in rows],
    )
    report = check_data(records, builder, max_tokens=max_tokens)
    return render_check_page(report, builder, rows, inputs), builder, rows, inputs


def test_the_page_needs_nothing_else_and_takes_no_markup_from_data(
    processor: Processor, tmp_path: Path
) -> None:
    evil = "<script>alert(1)</script>"
    records = [
        {"prefix": "caption en", "suffix": f"a {evil}", "id": evil},
        {"prefix": "caption en", "suffix": "a dog\ncat"},
    ]
    page, *_ = page_of(processor, None, jsonl(tmp_path, records))
    assert "<script" not in page
    assert "&lt;" in page
    assert not re.search(r"https?://|<link|@import|url\(", page)
    assert page.count('src="data:image/png;base64,') == page.count("<img ") == 2
    assert "⏎" in page


def test_every_token_is_colored_by_what_becomes_of_it(processor: Processor, tmp_path: Path) -> None:
    path = jsonl(tmp_path, captions("a", "a dog and a cat stand on the beach"))
    page, _, _, inputs = page_of(processor, None, path)
    kinds = kinds_of_row(inputs, 0, None)
    assert kinds.count("image") == IMAGE
    assert kinds.count("loss") == int(inputs.loss_mask[0].sum())
    assert kinds.count("pad") == int((~inputs.input_mask[0]).sum()) > 0
    assert f"{IMAGE} x image" in page
    assert f"{kinds.count('pad')} x pad" in page
    cut, *_ = page_of(processor, None, path, max_tokens=IMAGE + 6)
    assert 'class="t lost" title' not in page
    lost = sum(kinds_of_row(inputs, place, IMAGE + 6).count("lost") for place in (0, 1))
    assert cut.count('class="t lost" title') == lost > 0


def test_what_is_drawn_is_read_back_from_the_tokens(processor: Processor, tmp_path: Path) -> None:
    path = coco(tmp_path, [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 20, 20]}])
    _, builder, rows, inputs = page_of(processor, None, path)
    drawn = draw_row(rows[0], builder, answer_ids(inputs, 0, None), False)
    plain = draw_row(rows[1], builder, answer_ids(inputs, 1, None), False)
    assert drawn.size == plain.size == (448, 448)
    # The box is the left half: its right edge is drawn in the middle, nothing stands right of it.
    assert drawn.getpixel((222, 300)) != plain.getpixel((222, 300))
    assert drawn.getpixel((400, 300)) == plain.getpixel((400, 300))
    # Of a row that was cut inside the box, nothing is left to draw.
    inside = IMAGE + 2 + len(processor.tokenizer.tokenize_text(rows[0].target.prefix)) + 3
    cut = draw_row(rows[0], builder, answer_ids(inputs, 0, inside), True)
    assert cut.getpixel((222, 300)) == plain.getpixel((222, 300))


def test_masks_are_drawn_through_the_codec(
    mini: tuple[Processor, MaskCodec], tmp_path: Path
) -> None:
    processor, codec = mini
    shape = [[0, 0, 20, 0, 20, 20, 0, 20]]
    item = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 20, 20], "segmentation": shape}
    page, builder, rows, inputs = page_of(processor, codec, coco(tmp_path, [item]))
    drawn = draw_row(rows[0], builder, answer_ids(inputs, 0, None), False)
    assert drawn.getpixel((100, 220)) != drawn.getpixel((400, 220))
    assert "masks" in page


def test_true_objects_without_masks_say_so() -> None:
    assert TrueObject(label="cat", box_xyxy=(0, 0, 1, 1)).mask is None


def test_objects_of_answers_are_counted_by_class(mini: Any, tmp_path: Path) -> None:
    processor, _ = mini
    cat, dog = (
        "<loc0001><loc0001><loc0100><loc0100> cat",
        "<loc0001><loc0001><loc0200><loc0300> dog",
    )
    lines = [
        {"prefix": "detect cat ; dog", "suffix": f"{cat} ; {dog}"},
        {"prefix": "detect cat ; dog", "suffix": dog},
        {"prefix": "caption en", "suffix": "a cat"},
    ]
    report = checked(processor, jsonl(tmp_path, lines))
    assert report.class_counts == (("dog", 2), ("cat", 1))


def test_areas_that_no_box_can_hold_are_named(processor: Processor, tmp_path: Path) -> None:
    data = coco(
        tmp_path,
        [{**box(), "area": 40}, {**box(16, 2), "area": 4000}, {**box(28), "area": 0}, box(1)],
    )
    warning = texts(checked(processor, data), "warning")
    assert (
        "2 of 3 objects have an area of 0, or a larger one than their box: 4000 in a box of 40"
        in (warning)
    )
    data = coco(tmp_path / "right", [{**box(), "area": 40.5}, {**box(16, 2), "area": 12}])
    assert "area of 0" not in texts(checked(processor, data), "warning")


def test_images_that_repeat_others_are_told_by_their_pixels(
    processor: Processor, tmp_path: Path
) -> None:
    lines = [
        {"image": name, "objects": [{"label": label, "box_xyxy": [1, 1, 9, 9]}]}
        for name, label in (("a.jpg", "cat"), ("a.png", "cat"), ("b.png", "dog"), ("a.bmp", "dog"))
    ]
    path = jsonl(tmp_path, lines)
    image = Image.effect_noise((40, 20), 90).convert("RGB")
    image.save(tmp_path / "a.jpg")
    with Image.open(tmp_path / "a.jpg") as jpg:
        jpg.save(tmp_path / "a.png")
        jpg.save(tmp_path / "a.bmp")
    image.save(tmp_path / "b.png")
    report = checked(processor, path)
    repeated = {f.level: f.ids for f in report.findings if "repeats another" in f.text}
    assert repeated == {"warning": ("line 1", "line 4"), "note": ("line 1", "line 2")}
    keys = image_keys(open_data(path))
    assert keys["line 1"] == keys["line 2"] == keys["line 4"] != keys["line 3"]


def test_some_boxes_in_fractions_are_named(processor: Processor, tmp_path: Path) -> None:
    fraction = {"image_id": 1, "category_id": 1, "bbox": [0.1, 0.2, 0.3, 0.4]}
    report = checked(processor, coco(tmp_path, [fraction, box(), box(16)]))
    assert "1 of 3 boxes lie within the first 1.5 pixels" in texts(report, "warning")
    report = checked(processor, coco(tmp_path / "most", [fraction, fraction, box()]))
    assert "2 of 3 boxes lie within the first 1.5 pixels" in texts(report, "error")
