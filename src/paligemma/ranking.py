"""Which label fits an image, and which image fits a text, by the likelihood of answers.

"ask": the probability of "yes" to "is there a dog?", where the answer is yes or no.
One pass over the prompt for each question; an image that several ask about is encoded once.
"caption": the log-probability of the label as the image's whole caption.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from paligemma.answering import ImageInput, ImageQuery, Query, check_control_words, check_several
from paligemma.documents.asker import Asker
from paligemma.errors import OptionError, PaliGemmaError, PromptError, check_choice
from paligemma.results import Result, Score, one_line
from paligemma.tasks.text import CaptionTask
from paligemma.tasks.yes_no import YesNo, YesNoTask

How = Literal["ask", "caption"]

QUESTION = "is there {a}?"
"""As mini learned it, and as `paligemma.search` asks."""

_DETERMINERS = frozenset(
    {"a", "an", "the", "some", "any", "no", "many", "several", "this", "that", "these", "those"}
    | {"one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"}
)
_UNUSUAL_HELD = 0.9
_HELD_NOTE = (
    "The model would rather answer with something else than yes or no, so that the probabilities "
    "mean little. Ask in the way it was trained (question=...), or use how='caption'."
)


class Scorer(Asker, Protocol):
    """A loaded model, such as a `Predictor`."""

    def score(self, images: Any, prompt: str, suffix: list[str], /) -> list[Score]:
        """The log-probability of each text after a prompt."""
        ...


@dataclass(frozen=True, kw_only=True)
class RankOptions:
    """How the model is asked."""

    how: How = "ask"
    """By the answer to a question, or by the likelihood of the text as a caption."""
    question: str = QUESTION
    """What to ask; {a} stands for the text with its article, {label} for the text as it is."""
    language: str | None = "en"
    """That of the prompt: "answer en is there ..."; None for the question alone."""

    def __post_init__(self) -> None:
        check_choice("how", self.how, How)
        if "{a}" not in self.question and "{label}" not in self.question:
            raise OptionError(
                f"The question is {self.question!r}; it must have {{a}}, for the label with its "
                "article, or {label}, for the label as it is."
            )
        if self.how == "caption" and self.language is None:
            raise OptionError("how='caption' needs a language, such as 'en'.")

    def task(self, text: str) -> YesNoTask:
        """The question about a text. Raises PromptError for one that no model takes."""
        _check_text(text)
        asked = self.question.replace("{a}", "\0").replace("{label}", text)
        return YesNoTask(question=asked.replace("\0", with_article(text)), language=self.language)

    def caption(self, text: str) -> tuple[str, str]:
        """Prompt and suffix of the text as a caption."""
        _check_text(text)
        assert self.language is not None
        return CaptionTask(language=self.language).prompt(), with_article(text)


@dataclass(frozen=True, kw_only=True, repr=False)
class Classification(Result):
    """How well each of some labels fits an image.

    >>> print(predictor.classify("cat.jpg", ["cat", "dog"]))        # doctest: +SKIP
    0.97  cat
    0.01  dog
    0.02  none of them
    """

    labels: tuple[str, ...]
    """In the order given."""
    probabilities: tuple[float, ...]
    """One for each label: that it is the one that fits. With `none_of_them` they add up to 1."""
    none_of_them: float
    """The probability that no label fits; 0 where that was not allowed, and by captions."""
    presences: tuple[float, ...] | None = None
    """One for each label, by itself: the probability of yes. Several may be near 1. None by
    captions."""
    notes: tuple[str, ...] = ()
    """What to know before trusting it."""

    @property
    def best(self) -> str | None:
        """The label that fits best; None where it is likelier that none of them does."""
        top = max(range(len(self.labels)), key=lambda index: self.probabilities[index])
        return self.labels[top] if self.probabilities[top] >= self.none_of_them else None

    def present(self, min_probability: float = 0.5) -> tuple[str, ...]:
        """All labels that fit, each judged by itself. Raises OptionError by captions."""
        if self.presences is None:
            raise OptionError("Captions say which label fits best, not which are there. Ask.")
        pairs = zip(self.labels, self.presences, strict=True)
        return tuple(label for label, presence in pairs if presence >= min_probability)

    def __str__(self) -> str:
        pairs = sorted(zip(self.probabilities, self.labels, strict=True), key=lambda pair: -pair[0])
        lines = [f"{probability:.2f}  {one_line(label)}" for probability, label in pairs]
        if self.none_of_them:
            lines.append(f"{self.none_of_them:.2f}  none of them")
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    def __repr__(self) -> str:
        return f"Classification(best={self.best!r}, labels={self.labels!r})"


@dataclass(frozen=True, kw_only=True)
class Ranked(Result):
    """An image in the order of how well a text fits it."""

    index: int
    """Its place among the images given."""
    score: float
    """The probability of yes, or the log-probability of the text as a caption; NaN with an
    error."""
    error: str | None = None
    """Why the image could not be read."""


def classify(
    model: Scorer,
    image: ImageInput,
    labels: Sequence[str],
    options: RankOptions,
    *,
    allow_none: bool = True,
) -> Classification:
    """What `Predictor.classify` does."""
    names = _distinct(labels)
    if options.how == "caption":
        prompt, _ = options.caption(names[0])
        scores = model.score(image, prompt, [options.caption(name)[1] for name in names])
        return Classification(
            labels=names, probabilities=_softmax([s.total for s in scores]), none_of_them=0.0
        )
    queries = [ImageQuery(images=(image,), query=Query(task=options.task(name))) for name in names]
    answers = [_or_raise(answer) for answer in model.answer(queries)]
    # Of the cases "only this label is there" and "none is", each by the odds of its answers.
    odds = [_log_odds(answer.yes) for answer in answers]
    shares = _softmax([*odds, 0.0] if allow_none else odds)
    is_held = sum(answer.held for answer in answers) / len(answers) > _UNUSUAL_HELD
    return Classification(
        labels=names,
        probabilities=shares[: len(names)],
        none_of_them=shares[-1] if allow_none else 0.0,
        presences=tuple(answer.yes for answer in answers),
        notes=(_HELD_NOTE,) if is_held else (),
    )


def rank(
    model: Scorer,
    images: Iterable[ImageInput],
    text: str,
    options: RankOptions,
    *,
    errors: Literal["raise", "return"] = "raise",
) -> list[Ranked]:
    """What `Predictor.rank` does."""
    check_choice("errors", errors, Literal["raise", "return"])
    check_several(images, "rank")
    scores = _captioned if options.how == "caption" else _asked
    ranked = []
    for index, score in enumerate(scores(model, images, text, options)):
        if isinstance(score, PaliGemmaError):
            if errors == "raise":
                raise score
            ranked.append(Ranked(index=index, score=math.nan, error=str(score)))
        else:
            ranked.append(Ranked(index=index, score=score))
    return sorted(ranked, key=lambda each: (each.error is not None, -each.score))


def _asked(
    model: Scorer, images: Iterable[ImageInput], text: str, options: RankOptions
) -> Iterator[float | PaliGemmaError]:
    query = Query(task=options.task(text))
    for answer in model.answer(ImageQuery(images=(image,), query=query) for image in images):
        yield answer if isinstance(answer, PaliGemmaError) else answer.yes


def _captioned(
    model: Scorer, images: Iterable[ImageInput], text: str, options: RankOptions
) -> Iterator[float | PaliGemmaError]:
    prompt, suffix = options.caption(text)
    for image in images:
        try:
            [score] = model.score(image, prompt, [suffix])
        except PaliGemmaError as error:
            yield error
        else:
            yield score.total


def with_article(text: str) -> str:
    """The text with "a" or "an" in front, unless it begins with a word in its place.

    >>> with_article("owl"), with_article("red car"), with_article("the dog")
    ('an owl', 'a red car', 'the dog')
    """
    first = text.split()[0]
    if first.casefold() in _DETERMINERS or first[0].isdigit():
        return text
    return f"{'an' if first[0].casefold() in 'aeiou' else 'a'} {text}"


def _check_text(text: str) -> None:
    if not isinstance(text, str) or not text.strip():
        raise PromptError(f"The text is {text!r}; it must have at least one word.")
    check_control_words(text)


def _distinct(labels: Sequence[str]) -> tuple[str, ...]:
    if not isinstance(labels, Collection) or isinstance(labels, str | bytes) or not labels:
        raise OptionError(f"The labels are {labels!r}; pass a list with at least one.")
    names = tuple(labels)
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise OptionError(f"The label {twice!r} is given more than once.")
    return names


def _or_raise(answer: Any) -> YesNo:
    if isinstance(answer, PaliGemmaError):
        raise answer
    assert isinstance(answer, YesNo)
    return answer


def _log_odds(probability: float) -> float:
    inside = min(max(probability, 1e-12), 1.0 - 1e-12)
    return math.log(inside / (1.0 - inside))


def _softmax(values: Sequence[float]) -> tuple[float, ...]:
    top = max(values)
    weights = [math.exp(value - top) for value in values]
    return tuple(weight / math.fsum(weights) for weight in weights)
