"""Answers that came from other programs, as they write them."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch

from paligemma.errors import CheckpointError, InputError, OptionError
from paligemma.tasks import MaskCodec, parse_text

CAT, DOG = "<loc0256><loc0000><loc0767><loc1023>", "<loc0000><loc0512><loc0512><loc1023>"
SEG = "".join(f"<seg{n:03d}>" for n in range(16))


@pytest.mark.parametrize(
    "text",
    [
        f"{CAT} cat ; {DOG} dog",
        f"{CAT} cat ; {DOG} dog ;",
        f"{CAT} cat;{DOG} dog",
        f"{CAT}cat\n{DOG}dog\n",
        f"{CAT} cat, {DOG} dog",
        f"{CAT} cat | {DOG} dog",
        f"{CAT} cat {DOG} dog",
        f"{CAT.replace('><', '> <')} cat ; {DOG.replace('><', '>  <')} dog",
        f"<image><image><bos>detect cat ; dog\n{CAT} cat ; {DOG} dog<eos><pad>",
        f"<s>detect cat ; dog\n{CAT} cat ; {DOG} dog</s>",
    ],
)
def test_boxes_are_read_however_they_are_separated(text: str) -> None:
    result = parse_text(text, (1023, 1023))
    assert result.labels == ("cat", "dog")
    assert np.allclose(result.boxes, [[0, 256, 1023, 767], [512, 0, 1023, 512]])
    assert result.problems == ()


def test_scores_are_not_known() -> None:
    result = parse_text(f"{CAT} cat ; {DOG} dog", (64, 48), phrases="cat ; dog ; cow")
    assert all(math.isnan(obj.score) and math.isnan(obj.label_score) for obj in result)
    assert result.missing == ("cow",)
    assert json.loads(result.to_json())["objects"][0]["score"] is None
    json.dumps(result.to_coco(), allow_nan=False)
    assert "nan" not in str(result)
    assert result.draw(np.zeros((48, 64), np.uint8)).size == (64, 48)
    assert not result[0].unsure


def test_labels_come_from_the_only_phrase_where_there_are_none() -> None:
    assert parse_text(CAT, (64, 48), phrases="left cat").labels == ("left cat",)
    assert parse_text(CAT, (64, 48)).labels == ("",)


@pytest.mark.parametrize(
    ("text", "stop_reason", "kind"),
    [
        ("<loc0256><loc0000><loc0767> cat", "eos", "malformed"),
        ("<loc0256><loc0000><loc9999><loc1023> cat", "eos", "malformed"),
        (f"{CAT} cat ; <loc0256><loc00", "length", "cut"),
        (f"{CAT} cat ; {CAT} cat", "eos", "repeated"),
    ],
)
def test_what_is_no_object_is_a_problem(text: str, stop_reason: Any, kind: str) -> None:
    assert kind in [p.kind for p in parse_text(text, (64, 48), stop_reason=stop_reason).problems]


@pytest.mark.parametrize("text", ["", "<eos>", "a cat on a sofa", "cat ; dog", SEG])
def test_text_without_boxes_has_no_objects_and_says_why(text: str) -> None:
    result = parse_text(text, (64, 48), phrases="cat")
    assert len(result) == 0
    notes = [note for note in result.notes if "skip_special_tokens=False" in note]
    assert bool(notes) == (text not in ("", "<eos>"))


def test_masks_that_were_not_asked_for_are_said_to_be_left_out() -> None:
    [note] = parse_text(f"{CAT}{SEG} cat", (64, 48)).notes
    assert "task='segment'" in note
    assert parse_text(f"{CAT} cat", (64, 48)).notes == ()


@pytest.mark.parametrize("size", [(48, 64, 3), (64,), 64, (0, 48), (64.5, 48), None])
def test_what_is_no_size_is_refused(size: Any) -> None:
    with pytest.raises(OptionError, match="must be the image's width and height"):
        parse_text(f"{CAT} cat", size)


def test_masks_are_decoded() -> None:
    torch.manual_seed(0)
    codec = MaskCodec().eval()
    text = f"{CAT}{SEG} cat ; {DOG} {SEG} dog"
    result = parse_text(text, (64, 48), task="segment", mask_codec=codec)
    assert result.labels == ("cat", "dog")
    assert result.masks.shape == (2, 48, 64)
    assert parse_text(text, (64, 48)).labels == ("cat", "dog")
    with pytest.raises(CheckpointError, match="mask_codec=PATH"):
        parse_text(text, (64, 48), task="segment")


def test_padding_is_undone() -> None:
    box = "<loc0256><loc0000><loc0767><loc1023>"
    [obj] = parse_text(f"{box} cat", (800, 400), resize="pad", resolution=448)
    assert np.allclose(obj.box_xyxy, (0, 0, 800, 400), atol=1)


def test_what_cannot_be_parsed_is_named() -> None:
    with pytest.raises(InputError, match="list"):
        parse_text(["<loc0000>"], (64, 48))  # type: ignore[call-overload]
    with pytest.raises(OptionError, match="caption"):
        parse_text(CAT, (64, 48), task="caption")  # type: ignore[call-overload]
    with pytest.raises(OptionError, match="each at least 1"):
        parse_text(CAT, (0, 48))
