from __future__ import annotations

import pytest

from paligemma.errors import PromptError
from paligemma.processor.image import ImageTransform
from paligemma.tasks.detect import DetectTask
from paligemma.tasks.task import TaskContext
from tests.tasks.character_tokenizer import CharacterTokenizer


def test_phrases_are_joined_by_the_separator() -> None:
    assert DetectTask.of("cat;dog").prompt() == "detect cat ; dog"
    assert DetectTask.of(["cat", "traffic light"]).prompt() == "detect cat ; traffic light"
    assert DetectTask.of("all classes").prompt() == "detect all classes"


def test_detecting_nothing_is_refused() -> None:
    with pytest.raises(PromptError):
        DetectTask.of(" ; ")
    with pytest.raises(PromptError):
        DetectTask(phrases=())


def test_boxes_come_in_pixels_and_fractions(
    tokenizer: CharacterTokenizer, context: TaskContext
) -> None:
    text = "<loc0341><loc0000><loc0682><loc1023> Cat ; <loc0001><loc0002><loc0003>"
    found = DetectTask.of("cat ; dog").parse(
        tokenizer.generation(text, "length"), tokenizer, context
    )
    assert found[0].box_xyxy == pytest.approx((0, 160, 640, 320))
    assert found[0].box_normalized_xyxy == pytest.approx((0, 1 / 3, 1, 2 / 3))
    assert found.labels == ("Cat",)
    assert (found.missing, found.not_reached) == ((), ("dog",))
    assert [p.kind for p in found.problems] == ["cut"]
    assert (found.size_wh, found.stop_reason, found.text) == ((640, 480), "length", text)
    assert found.prompt == "detect cat ; dog"


def test_one_phrase_names_a_box_without_label(
    tokenizer: CharacterTokenizer, context: TaskContext
) -> None:
    generated = tokenizer.generation("<loc0000><loc0000><loc0682><loc1023>")
    assert DetectTask.of("cat").parse(generated, tokenizer, context).labels == ("cat",)
    assert DetectTask.of("cat ; dog").parse(generated, tokenizer, context).labels == ("",)


def test_a_box_in_the_added_border_is_left_out(tokenizer: CharacterTokenizer) -> None:
    transform = ImageTransform(source_wh=(640, 480), resolution=224, resize="pad")
    generated = tokenizer.generation("<loc0000><loc0000><loc0100><loc1023> sky")
    found = DetectTask.of("sky").parse(generated, tokenizer, TaskContext(transform=transform))
    assert len(found) == 0
    assert [p.kind for p in found.problems] == ["malformed"]
    assert found.problems[0].token_span == (0, 8)


def test_text_without_objects_is_an_empty_result(
    tokenizer: CharacterTokenizer, context: TaskContext
) -> None:
    found = DetectTask.of("cat").parse(tokenizer.generation("no cat"), tokenizer, context)
    assert (len(found), found.missing, found.problems) == (0, ("cat",), ())
