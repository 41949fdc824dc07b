from __future__ import annotations

import pytest

from paligemma.errors import InputError
from paligemma.tasks.task import TaskContext
from paligemma.tasks.text import BoxCaptionTask, CaptionTask
from tests.tasks.character_tokenizer import CharacterTokenizer


def test_prompts_are_those_of_the_paper() -> None:
    assert CaptionTask().prompt() == "caption en"
    assert CaptionTask(language="fil").prompt() == "caption fil"
    assert CaptionTask(style="cap").prompt() == "cap en"
    assert CaptionTask(style="describe", language="de").prompt() == "describe de"


def test_a_box_is_asked_about_with_y_first() -> None:
    task = BoxCaptionTask(box_normalized_xyxy=(100 / 1023, 250 / 1023, 900 / 1023, 750 / 1023))
    assert task.prompt() == "caption <loc0250><loc0100><loc0750><loc0900>"


def test_captions_are_read(tokenizer: CharacterTokenizer, context: TaskContext) -> None:
    caption = CaptionTask(language="es").parse(
        tokenizer.generation("una vaca en la playa", "length"), tokenizer, context
    )
    assert (caption.text, caption.language) == ("una vaca en la playa", "es")
    assert caption.stop_reason == "length"
    task = BoxCaptionTask(box_normalized_xyxy=(0, 0, 1, 1))
    assert task.parse(tokenizer.generation("a cow"), tokenizer, context).language is None


@pytest.mark.parametrize(
    "options", [{"language": "Spanish"}, {"style": "poem"}, {"style": "caption en\nocr"}]
)
def test_odd_options_are_refused(options: dict[str, str]) -> None:
    with pytest.raises(InputError):
        CaptionTask(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "box", [(0.5, 0, 0.5, 1), (0.9, 0, 0.1, 1), (2, 2, 3, 3), (0, 0, float("nan"), 1)]
)
def test_a_box_without_area_is_refused(box: tuple[float, float, float, float]) -> None:
    with pytest.raises(InputError):
        BoxCaptionTask(box_normalized_xyxy=box)
