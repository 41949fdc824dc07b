"""Parse the text of a prompt into a task, and into the kind of answer that it asks for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from paligemma.errors import InputError, PromptError
from paligemma.tasks.detect import DetectTask
from paligemma.tasks.objects import split_phrases
from paligemma.tasks.segment import SegmentTask
from paligemma.tasks.task import LANGUAGES, AnswerKind, Task, language_doubt
from paligemma.tasks.text import AnswerTask, CaptionTask, OcrTask, QuestionTask

_SPECIAL_TOKENS = ("<loc", "<seg")


def parse_prompt(prompt: str) -> Task[Any] | None:
    """Return the task with this prompt, or None if it is not the prompt of a known task.

    The prompt of the task equals the text, except that lists of phrases are normalized as in
    `DetectTask.of`: white space and duplicates. Raises PromptError for a list without phrases.

    >>> parse_prompt("answer en how many cats?")
    AnswerTask(question='how many cats?', language='en')
    >>> parse_prompt("detect cat;dog").prompt()
    'detect cat ; dog'
    >>> parse_prompt("Write me a poem.") is None
    True
    """
    word, _, rest = prompt.partition(" ")
    if word in ("detect", "segment") and rest:
        # With location tokens, it is the prompt of another task, for a model tuned for it.
        if any(token in rest for token in _SPECIAL_TOKENS):
            return None
        return DetectTask.of(rest) if word == "detect" else SegmentTask.of(rest)
    try:
        task = _text_task(word, rest)
    except InputError:
        return None
    return task if task is not None and task.prompt() == prompt else None


def parse_task(prompt: str) -> Task[Any]:
    """As `parse_prompt`, in English where a language is missing.

    Raises PromptError for a text that is not the prompt of a known task.

    >>> parse_task("caption")
    CaptionTask(language='en', style='caption')
    """
    task = parse_prompt(prompt) or parse_prompt(f"{prompt} en")
    if task is None:
        raise PromptError(
            f"{prompt!r} is not the prompt of a task. Write, for example, 'caption', 'ocr', "
            "'detect cat ; dog' or 'answer en how many cats?', or pass a task such as "
            "AnswerTask(question=...)."
        )
    return task


def _text_task(word: str, rest: str) -> Task[Any] | None:
    """Raises InputError for an invalid language code or an empty question."""
    language, _, text = rest.partition(" ")
    if text and language not in LANGUAGES:  # such as "answer the question"
        return None
    match word:
        case "caption" | "cap" | "describe":
            return CaptionTask(language=rest, style=word)
        case "answer":
            return AnswerTask(question=text, language=language)
        case "question":
            return QuestionTask(answer=text, language=language)
        case "ocr":
            return OcrTask()
    return None


_KINDS: dict[str, AnswerKind] = {
    "caption": "caption",
    "cap": "caption",
    "describe": "describe",
    "answer": "answer",
    "question": "answer",
    "ocr": "ocr",
    "detect": "detect",
    "segment": "segment",
}


_SHORT_TASKS = ("caption", "cap", "describe", "ocr")
"""Tasks without text of the user's."""


def kind_of_prompt(prompt: str) -> AnswerKind:
    """Return the kind of answer by the prompt's first word; "generate" for any other text.

    >>> kind_of_prompt("describe en"), kind_of_prompt("Write me a poem.")
    ('describe', 'generate')
    """
    first = prompt.split(maxsplit=1)[:1]
    return _KINDS.get(first[0] if first else "", "generate")


def prompt_notes(prompt: str, languages: Sequence[str] | None = None) -> tuple[str, ...]:
    """A note where the prompt is empty or, but for capitals, white space or language, a task's.

    `languages` as for `language_doubt`.

    >>> prompt_notes("Caption EN")
    ("The prompt 'Caption EN' was sent unchanged. The task's own prompt is 'caption en'.",)
    """
    if not prompt.strip():
        return ("The prompt is empty. The model was trained with prompts such as 'caption en'.",)
    first, _, rest = " ".join(prompt.split()).partition(" ")
    word = first.lower()
    if word not in _KINDS:
        return ()
    plain = f"{word} {rest.lower() if word in _SHORT_TASKS else rest}".strip()
    try:
        if (task := parse_prompt(prompt)) is not None:
            language = getattr(task, "language", None)
            doubt = None if language is None else language_doubt(language, languages)
            return () if doubt is None else (doubt,)
        if prompt == plain or parse_prompt(plain) is None:
            return ()
    except PromptError:
        return ()
    return (f"The prompt {prompt!r} was sent unchanged. The task's own prompt is {plain!r}.",)


def phrases_of_prompt(prompt: str) -> tuple[str, ...]:
    """Return the phrases of a detect or segment prompt; any other prompt is a single phrase.

    >>> phrases_of_prompt("detect cat;dog")
    ('cat', 'dog')
    """
    first, _, rest = prompt.partition(" ")
    return split_phrases(rest) if first in ("detect", "segment") else (prompt,)
