"""Objects become prefix and suffix: form, order, budget, noise, masks."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from paligemma.data.record import Record, TrueObject
from paligemma.data.round_trip_report import round_trip
from paligemma.data.targets import Order, TargetBuilder, TargetOptions, check_noise_token
from paligemma.errors import CheckpointError, DataError, OptionError
from paligemma.masks import Mask
from paligemma.processor.processor import Processor
from paligemma.processor.sequence import build_example
from paligemma.processor.tokenizer import Tokenizer
from paligemma.results import BoxXyxy
from paligemma.tasks.objects import parse_objects
from paligemma.tasks.seg_codec import MaskCodec

BOXES: dict[str, BoxXyxy] = {
    "cat": (30.0, 0.0, 40.0, 10.0),
    "dog": (0.0, 0.0, 20.0, 20.0),
    "cow": (10.0, 5.0, 15.0, 20.0),
}


def full_mask(box_xyxy: BoxXyxy) -> Mask:
    """Every pixel of the box."""
    mask = np.zeros((20, 40), np.bool_)
    x1, y1, x2, y2 = map(int, box_xyxy)
    mask[y1:y2, x1:x2] = True
    return mask


def shown(
    record_id: str = "r", boxes: dict[str, BoxXyxy] | None = None, prefix: str = ""
) -> Record:
    found = BOXES if boxes is None else boxes
    return Record(
        record_id=record_id,
        image=lambda: Image.new("RGB", (40, 20)),
        prefix=prefix,
        objects=tuple(
            TrueObject(label=label, box_xyxy=box, make_mask=partial(full_mask, box))
            for label, box in found.items()
        ),
        size_wh=(40, 20),
        where="Line 1",
    )


@pytest.fixture
def processor(tiny_tokenizer: Tokenizer) -> Processor:
    return Processor(tokenizer=tiny_tokenizer, resolution=30, num_image_tokens=25)


def builder(processor: Processor, task: str = "detect", **options: object) -> TargetBuilder:
    torch.manual_seed(0)
    return TargetBuilder(
        processor=processor,
        class_names=("cow", "cat", "dog", "emu"),
        task=task,  # type: ignore[arg-type]
        mask_codec=MaskCodec() if task == "segment" else None,
        options=TargetOptions(**options),  # type: ignore[arg-type]
    )


def test_boxes_are_written_y_first_in_1024_steps(processor: Processor) -> None:
    target = builder(processor, order="given").build(shown())
    assert target.prefix == "detect cow ; cat ; dog ; emu"
    assert target.suffix == (
        "<loc0000><loc0767><loc0512><loc1023> cat ; "
        "<loc0000><loc0000><loc1023><loc0512> dog ; "
        "<loc0256><loc0256><loc1023><loc0384> cow"
    )
    assert (target.num_objects, target.num_left_out, target.num_noise) == (3, 0, 0)


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ("given", ["cat", "dog", "cow"]),
        ("position", ["dog", "cow", "cat"]),
        ("area", ["dog", "cat", "cow"]),
    ],
)
def test_the_order_is_the_one_that_was_asked_for(
    processor: Processor, order: Order, expected: list[str]
) -> None:
    suffix = builder(processor, order=order).build(shown()).suffix
    assert [part.split(" ")[-1] for part in suffix.split(" ; ")] == expected


def test_a_random_order_depends_on_seed_epoch_and_record_alone(processor: Processor) -> None:
    made = builder(processor)
    suffixes = {made.build(shown(), epoch).suffix for epoch in range(40)}
    assert len(suffixes) == 6
    assert made.build(shown(), 3).suffix == builder(processor).build(shown(), 3).suffix
    others = [
        builder(processor, seed=s).build(shown(str(i))).suffix for s in (0, 1) for i in (1, 2)
    ]
    assert len(set(others)) > 1


@pytest.mark.parametrize(
    ("ask", "prefix"),
    [
        ("dataset", "detect cow ; cat ; dog ; emu"),
        ("present", "detect cow ; cat ; dog"),
        ("all classes", "detect all classes"),
    ],
)
def test_the_prefix_names_the_classes_that_were_asked_for(
    processor: Processor, ask: str, prefix: str
) -> None:
    assert builder(processor, ask=ask).build(shown()).prefix == prefix


def test_a_prefix_of_the_data_stays(processor: Processor) -> None:
    target = builder(processor, write_labels=False).build(
        shown(boxes={"dog": BOXES["dog"]}, prefix="the dog on the left")
    )
    assert target.prefix == "the dog on the left"
    assert target.suffix == "<loc0000><loc0000><loc1023><loc0512>"


def test_an_image_without_objects_teaches_to_say_nothing(processor: Processor) -> None:
    target = builder(processor).build(shown(boxes={}))
    assert (target.prefix, target.suffix) == ("detect cow ; cat ; dog ; emu", "")
    row = build_example(processor.tokenizer, target.prefix, target.suffix_parts, 1, 25)
    assert sum(row.loss_mask) == 1
    with pytest.raises(DataError, match=r"Line 1 has no object.*ask='dataset'"):
        builder(processor, ask="present").build(shown(boxes={}))


def test_a_budget_leaves_out_the_last_of_the_order(processor: Processor) -> None:
    target = builder(processor, order="area", max_objects=2).build(shown())
    assert target.suffix.endswith("dog ; <loc0000><loc0767><loc0512><loc1023> cat")
    assert (target.num_objects, target.num_left_out) == (2, 1)


def test_a_suffix_of_the_data_stays(processor: Processor) -> None:
    record = Record(
        record_id="r", image=Path("1.png"), prefix="ocr", suffix="STOP", objects=(), size_wh=(4, 2)
    )
    target = builder(processor).build(record)
    assert (target.prefix, target.suffix) == ("ocr", "STOP")


def test_one_of_several_references_is_learned_in_each_epoch(processor: Processor) -> None:
    record = Record(record_id="r", image=Path("1.png"), prefix="p", references=("a", "b", "c"))
    drawn = [builder(processor).build(record, epoch).suffix for epoch in range(30)]
    assert set(drawn) == {"a", "b", "c"}
    assert drawn == [builder(processor).build(record, epoch).suffix for epoch in range(30)]


def test_a_tiny_box_keeps_a_step_in_each_direction(processor: Processor) -> None:
    made = builder(processor)
    for box in ((1.0, 1.0, 1.001, 1.001), (39.999, 19.999, 40.0, 20.0), (0.0, 0.0, 1e-6, 1e-6)):
        y1, x1, y2, x2 = made.bins_of(box, (40, 20))
        assert 0 <= y1 < y2 <= 1023
        assert 0 <= x1 < x2 <= 1023


# Noise boxes

NOISE = "<unused0>"


@pytest.fixture
def gemma(shared_data: Path) -> Processor:
    tokenizer = Tokenizer.from_file(shared_data / "tokenizer" / "tokenizer.model")
    return Processor(tokenizer=tokenizer, resolution=30, num_image_tokens=25)


def test_noise_fills_the_budget_and_only_its_label_is_learned(gemma: Processor) -> None:
    made = builder(gemma, order="given", max_objects=5, noise_token=NOISE)
    target = made.build(shown())
    assert target.suffix.startswith("<loc0000><loc0767><loc0512><loc1023> cat ; ")
    assert target.suffix.count(NOISE) == target.num_noise == 2
    row = build_example(gemma.tokenizer, target.prefix, target.suffix_parts, 1, 25)
    # Cut into parts, the text gives the tokens that it gives as a whole.
    whole = build_example(gemma.tokenizer, target.prefix, target.suffix, 1, 25)
    assert row.token_ids == whole.token_ids
    assert row.mask_ar == whole.mask_ar
    learned = [i for i, counts in zip(row.token_ids, row.loss_mask, strict=True) if counts]
    silent = [
        i
        for i, counts, is_suffix in zip(row.token_ids, row.loss_mask, row.mask_ar, strict=True)
        if is_suffix and not counts
    ]
    assert len(silent) == 8
    assert all(gemma.tokenizer.is_loc(i) for i in silent)
    assert sum(gemma.tokenizer.is_loc(i) for i in learned) == 12
    assert learned.count(check_noise_token(NOISE, gemma.tokenizer)) == 2
    assert learned[-1] == gemma.tokenizer.eos_id


def test_noise_boxes_have_area_and_change_with_the_epoch(gemma: Processor) -> None:
    made = builder(gemma, max_objects=20, noise_token=NOISE)
    suffixes = [made.build(shown(boxes={}), epoch).suffix for epoch in (0, 1, 0)]
    assert suffixes[0] == suffixes[2] != suffixes[1]
    ids = gemma.tokenizer.tokenize_text(suffixes[0])
    parsed = parse_objects(ids, [0.0] * len(ids), gemma.tokenizer)
    assert (len(parsed.objects), parsed.problems) == (20, ())
    assert {found.label for found in parsed.objects} == {NOISE}


def test_a_token_that_is_none_cannot_label_noise(processor: Processor, gemma: Processor) -> None:
    with pytest.raises(OptionError, match="mini has none"):
        builder(processor, max_objects=5, noise_token=NOISE)
    for token in ("noise box", "<loc0001>", ""):
        with pytest.raises(OptionError, match="token"):
            check_noise_token(token, gemma.tokenizer)


@pytest.mark.parametrize(
    "options",
    [
        {"noise_token": NOISE},
        {"noise_token": NOISE, "max_objects": 3, "task": "segment"},
        {"noise_token": NOISE, "max_objects": 3, "write_labels": False},
        {"max_objects": 0},
        {"order": "alphabet"},
        {"ask": "everything"},
        {"task": "caption"},
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(OptionError):
        TargetOptions(**options)  # type: ignore[arg-type]


# Masks


def test_masks_follow_their_boxes_as_sixteen_codes(processor: Processor) -> None:
    made = builder(processor, "segment", order="given")
    target = made.build(shown())
    assert target.prefix == "segment cow ; cat ; dog ; emu"
    ids = processor.tokenizer.tokenize_text(target.suffix)
    parsed = parse_objects(ids, [0.0] * len(ids), processor.tokenizer)
    assert parsed.problems == ()
    assert [found.label for found in parsed.objects] == ["cat", "dog", "cow"]
    codes = made.codes_of(shown().objects or (), shown())
    assert [list(found.seg_codes) for found in parsed.objects] == codes


def test_masks_need_a_codec_and_objects_that_have_them(processor: Processor) -> None:
    with pytest.raises(CheckpointError, match="vae-oid"):
        TargetBuilder(processor=processor, task="segment")
    plain = TrueObject(label="dog", box_xyxy=BOXES["dog"])
    record = Record(record_id="r", image=Path("1"), objects=(plain,), size_wh=(40, 20), where="X")
    with pytest.raises(DataError, match="X: the object 'dog' has no mask"):
        builder(processor, "segment").build(record)


def test_a_mask_that_is_not_in_its_box_is_refused(processor: Processor) -> None:
    mask = np.zeros((20, 40), np.bool_)
    mask[0, 0] = True
    astray = TrueObject(label="dog", box_xyxy=(30.0, 10.0, 40.0, 20.0), make_mask=lambda: mask)
    record = Record(record_id="r", image=Path("1"), objects=(astray,), size_wh=(40, 20), where="X")
    with pytest.raises(DataError, match="no pixel inside its box"):
        builder(processor, "segment").build(record)


# The round trip


def test_boxes_come_back_within_a_step(processor: Processor) -> None:
    report = round_trip([shown(str(i)) for i in range(3)], builder(processor))
    assert (report.num_records, report.num_boxes, report.num_masks) == (3, 9, 0)
    assert report.mask_iou_mean is None
    assert report.box_iou_mean is not None
    assert report.box_iou_mean > 0.99
    assert report.box_iou_min == min(o.iou for o in report.worst)


def test_a_thin_box_is_named_as_the_worst(processor: Processor) -> None:
    thin = {"hair": (3.0, 1.0, 3.002, 19.0)}
    report = round_trip([shown("a"), shown("b", boxes=thin)], builder(processor))
    assert (report.worst[0].record_id, report.worst[0].label) == ("b", "hair")
    assert report.worst[0].iou < 0.5


def test_padding_keeps_boxes_and_masks_in_their_places(tiny_tokenizer: Tokenizer) -> None:
    padded = Processor(tokenizer=tiny_tokenizer, resolution=30, num_image_tokens=25, resize="pad")
    made = builder(padded, order="given")
    assert made.build(shown()).suffix.startswith("<loc0239><loc0767><loc0494>")
    report = round_trip([shown()], made)
    assert report.box_iou_min is not None
    assert report.box_iou_min > 0.98


def test_the_built_in_codec_brings_masks_back(mini: tuple[Processor, MaskCodec]) -> None:
    processor, codec = mini
    made = TargetBuilder(
        processor=processor, task="segment", mask_codec=codec, class_names=("dog",)
    )
    y, x = np.mgrid[:160, :200]
    round_mask = (x - 90) ** 2 / 70**2 + (y - 80) ** 2 / 50**2 < 1
    found = TrueObject(label="dog", box_xyxy=(21, 31, 160, 130), make_mask=lambda: round_mask)
    record = Record(record_id="r", image=Path("1"), objects=(found,), size_wh=(200, 160), where="")
    report = round_trip([record], made)
    assert report.mask_iou_mean is not None
    assert report.mask_iou_mean > 0.9
    assert [o.of for o in report.worst] == ["box", "mask"]
