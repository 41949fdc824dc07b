from __future__ import annotations

from paligemma.tasks.task import TaskContext
from paligemma.tasks.text import OcrTask
from tests.tasks.character_tokenizer import CharacterTokenizer


def test_text_is_read_with_its_line_breaks(
    tokenizer: CharacterTokenizer, context: TaskContext
) -> None:
    assert OcrTask().prompt() == "ocr"
    text = OcrTask().parse(tokenizer.generation("STOP\nRue de l'Ourcq\n"), tokenizer, context)
    assert text.text == "STOP\nRue de l'Ourcq"
