"""What chat models are asked, in sentences, where PaliGemma has prompts of its own."""

from __future__ import annotations

from paligemma.compare.questions import question_in
from paligemma.data.record import Record
from paligemma.errors import OptionError
from paligemma.evals.options import TaskName
from paligemma.tasks.parse_prompt import kind_of_prompt, phrases_of_prompt

SHORT = "Answer with one word or number."
_BOXES = (
    "Reply with a list in JSON and nothing else, each item "
    '{"label": name, "box": [x1, y1, x2, y2]}, with x and y from 0 to 1000 over the width and '
    "height of the image; [] if there are none."
)


def chat_prompt(record: Record, task: TaskName) -> str:
    """The question as a chat model gets it.

    Raises OptionError for a task that no chat model answers.
    """
    prefix = record.prefix
    match task:
        case "answer":
            return f"{question_in(prefix).strip()} {SHORT}"
        case "caption":
            style = kind_of_prompt(prefix)
            wanted = "in several sentences" if style == "describe" else "in one short sentence"
            return f"Describe the image {wanted}{_in_language(prefix)}."
        case "ocr":
            return "Write down all text in the image, line by line, and nothing else."
        case "detect":
            names = ", ".join(phrases_of_prompt(prefix))
            return f"Find every one of these in the image: {names}. {_BOXES}"
        case "segment" | "read_text":
            raise OptionError(
                f"Chat models are not asked to {task.replace('_', ' ')}: there is no form of "
                "answer that they have in common."
            )
        case "generate":
            return prefix


def _in_language(prefix: str) -> str:
    _, _, language = prefix.partition(" ")
    return f", in the language with the code {language}" if language not in ("", "en") else ""
