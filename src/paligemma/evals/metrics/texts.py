"""Metrics of short texts: accuracy of answers, edit distances and error rates.

VQA accuracy says how many of the (usually ten) annotators gave the model's answer, in the two forms
that PaliGemma was evaluated with (benchmark table in docs/metrics.md). Levenshtein distances are
computed by rapidfuzz (extra "eval").
"""

from __future__ import annotations

import math
import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

from paligemma.errors import MissingExtraError
from paligemma.evals.metrics.result import MetricResult, References, mean_result, pair

Unit = Literal["character", "word", "symbol", "line"]
_RATE_NAMES: dict[Unit, str] = {"character": "cer", "word": "wer", "symbol": "ser", "line": "ler"}

_ARTICLES = frozenset(("a", "an", "the"))
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
# What the official pattern does, in spite of its mistyped look-behind ("(?!<=\d)").
_FULL_STOP = re.compile(r"\.(?!\d)")
_NUMBER_WORDS = "zero one two three four five six seven eight nine ten"
# A word that lacks one of these apostrophes gets it back. The official list has no forms that are
# other words ("ill", "were", "its"); its forms with a capital letter never match, since answers are
# in lower case by then, so they are left out here.
_CONTRACTIONS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've
might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've
shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll
someone's something'd something'd've something'll that's there'd there'd've there're there's
they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're
what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're
why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're
you've
"""


@dataclass(frozen=True, kw_only=True)
class ExactMatch:
    """1 where the prediction equals one of the references.

    Nothing is normalized unless asked for: the case of letters, and white space (stripped, runs
    collapsed to one space).
    """

    ignore_case: bool = False
    collapse_space: bool = False

    def score(self, predictions: Sequence[str], references: References) -> MetricResult:
        scores = []
        for prediction, accepted in pair(predictions, references):
            normal = {self._normal(reference) for reference in accepted}
            scores.append(float(self._normal(prediction) in normal))
        return mean_result("exact_match", scores)

    def _normal(self, text: str) -> str:
        if self.collapse_space:
            text = " ".join(text.split())
        return text.lower() if self.ignore_case else text


@dataclass(frozen=True, kw_only=True)
class RelaxedAccuracy:
    """ChartQA's accuracy: 1 where a number is within 5 % of the reference, or a text equals it.

    Masry et al. 2022, arXiv 2203.10244, section 5.1 (after Methani et al. 2020), in the form that
    PaliGemma was evaluated with: big_vision's evaluators/proj/paligemma/transfers/chartqa.py.

    "12%" is 0.12, so it does not equal "12". A reference of 0, or one that is not a number, must
    match exactly, as text. A number with thousands commas or units is text. `ignore_case` (on, as
    in PaliGemma's ChartQA evaluation) compares texts in lower case. `details` has the fraction of
    exact matches.
    """

    tolerance: float = 0.05
    ignore_case: bool = True

    def score(self, predictions: Sequence[str], references: References) -> MetricResult:
        scores, exact = [], 0
        for prediction, accepted in pair(predictions, references):
            if self.ignore_case:
                prediction, accepted = prediction.lower(), tuple(a.lower() for a in accepted)
            scores.append(float(any(self._matches(prediction, a) for a in accepted)))
            exact += prediction in accepted
        return mean_result("relaxed_accuracy", scores, {"exact_match": exact / len(scores)})

    def _matches(self, prediction: str, reference: str) -> bool:
        value, true_value = _number(prediction), _number(reference)
        if value is None or not true_value:
            return prediction == reference
        return abs(value - true_value) / abs(true_value) <= self.tolerance


def _number(text: str) -> float | None:
    """The number that a text stands for, or None; "nan" and "inf" are texts, not numbers."""
    try:
        value = float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


@dataclass(frozen=True, kw_only=True)
class VqaAccuracy:
    """VQAv2's and TextVQA's: mean over the leave-one-out sets of annotators of min(matches / 3, 1).

    Antol et al. 2015, arXiv 1505.00468; visualqa.org/evaluation.html. Answers are normalized only
    where the annotators differ, as in the official code; where all agree, prediction and answers
    are compared as they are (spaces stripped).
    """

    def score(self, predictions: Sequence[str], references: References) -> MetricResult:
        """References: all annotators' answers; a single one is compared for equality."""
        scores = [_leave_one_out(*example) for example in pair(predictions, references)]
        return mean_result("vqa_accuracy", scores)


@dataclass(frozen=True, kw_only=True)
class DirectAnswerAccuracy:
    """OK-VQA's, A-OKVQA's and VizWiz's: min(1, annotators with exactly this answer / 3).

    With a single reference, equality. Nothing is normalized, except case with `ignore_case`.
    """

    ignore_case: bool = False

    def score(self, predictions: Sequence[str], references: References) -> MetricResult:
        scores, any_match = [], 0
        for prediction, accepted in pair(predictions, references):
            if self.ignore_case:
                prediction, accepted = prediction.lower(), tuple(a.lower() for a in accepted)
            matches = accepted.count(prediction)
            needed = 3 if len(accepted) > 1 else 1
            scores.append(min(1.0, matches / needed))
            any_match += matches > 0
        details = {"any_match": any_match / len(scores)}
        return mean_result("direct_answer_accuracy", scores, details)


def _replacements() -> dict[str, str]:
    words = {word: str(number) for number, word in enumerate(_NUMBER_WORDS.split())}
    words["none"] = "0"
    for whole in _CONTRACTIONS.split():
        for match in re.finditer("'", whole):
            words[whole[: match.start()] + whole[match.end() :]] = whole
    words["somebody'd"] = "somebodyd"  # as in the official list
    return words


_REPLACEMENTS = _replacements()


def normalize_answer(answer: str) -> str:
    """The official normal form: punctuation, case, number words, articles, contractions.

    A punctuation mark is removed where it touches a space anywhere in the answer, or where the
    answer has a number with a comma; otherwise it becomes a space, as in the official code.

    >>> normalize_answer("The two T-shirts.")
    '2 t shirts'
    """
    joins_all = _COMMA_IN_NUMBER.search(answer) is not None
    text = answer
    for mark in _PUNCTUATION:
        touches_space = f"{mark} " in answer or f" {mark}" in answer
        text = text.replace(mark, "" if joins_all or touches_space else " ")
    words = _FULL_STOP.sub("", text).lower().split()
    return " ".join(_REPLACEMENTS.get(word, word) for word in words if word not in _ARTICLES)


# VQA's list ends at ten.
_MORE_NUMBER_WORDS = (
    "eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen twenty"
)
_MORE_NUMBERS = {w: str(n) for n, w in enumerate(_MORE_NUMBER_WORDS.split(), start=11)}


def loose_answer(answer: str) -> str:
    """`normalize_answer`, with numbers up to twenty as digits: to compare models that write freely.

    >>> loose_answer("There are twelve."), loose_answer("12")
    ('there are 12', '12')
    """
    words = normalize_answer(answer).split()
    return " ".join(_MORE_NUMBERS.get(word, word) for word in words)


@dataclass(frozen=True, kw_only=True)
class NormalizedMatch:
    """1 where the prediction equals one of the references in the form of `loose_answer`.

    For answers of chat models, which write "Three." for "3".
    """

    def score(self, predictions: Sequence[str], references: References) -> MetricResult:
        scores = [
            float(loose_answer(prediction) in {loose_answer(text) for text in accepted})
            for prediction, accepted in pair(predictions, references)
        ]
        return mean_result("normalized_match", scores)


@dataclass(frozen=True, kw_only=True)
class ContainsAnswer:
    """1 where the words of one of the references are in the prediction, one after the other.

    Both are compared in the form of `loose_answer`. For models that answer in sentences; an answer
    that lists everything contains the right one too, so read it next to `normalized_match`.
    """

    def score(self, predictions: Sequence[str], references: References) -> MetricResult:
        scores = []
        for prediction, accepted in pair(predictions, references):
            text = f" {loose_answer(prediction)} "
            scores.append(float(any(f" {loose_answer(each)} " in text for each in accepted)))
        return mean_result("contains_answer", scores)


def _leave_one_out(prediction: str, answers: tuple[str, ...]) -> float:
    prediction = _plain_spaces(prediction)
    answers = tuple(_plain_spaces(answer) for answer in answers)
    if len(set(answers)) > 1:
        prediction = normalize_answer(prediction)
        answers = tuple(normalize_answer(answer) for answer in answers)
    if len(answers) == 1:
        # Leaving out the only annotator would leave nobody to agree with.
        return float(prediction == answers[0])
    matches = answers.count(prediction)
    # Of the n sets with one annotator left out, `matches` have one match fewer.
    scores = matches * min(1.0, (matches - 1) / 3) if matches else 0.0
    return (scores + (len(answers) - matches) * min(1.0, matches / 3)) / len(answers)


def _plain_spaces(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def edit_distance(first: Sequence[Hashable], second: Sequence[Hashable]) -> int:
    """The smallest number of insertions, deletions and replacements (1 each) between two sequences.

    Texts are compared by code point: a letter with a combining accent counts as two.
    """
    try:
        from rapidfuzz.distance import Levenshtein
    except ImportError as error:
        raise MissingExtraError("rapidfuzz", "eval", "An edit distance") from error
    return int(Levenshtein.distance(first, second))


def normalized_edit_distance(first: Sequence[Hashable], second: Sequence[Hashable]) -> float:
    """Edit distance divided by the longer length, 0..1; 0 for two empty sequences."""
    longer = max(len(first), len(second))
    return edit_distance(first, second) / longer if longer else 0.0


@dataclass(frozen=True, kw_only=True)
class Anls:
    """Average normalized Levenshtein similarity, of DocVQA, InfoVQA and ST-VQA.

    Biten et al. 2019, arXiv 1907.00490, equation 1: 1 - d for the reference at the smallest
    normalized distance d (edit distance divided by the longer length), and 0 where d is not below
    0.5. Texts are compared in lower case, with white space stripped and runs of it collapsed, as
    the competitions' server does; `ignore_case=False` keeps the case.
    """

    threshold: float = 0.5
    ignore_case: bool = True

    def score(self, predictions: Sequence[str], references: References) -> MetricResult:
        scores = []
        for prediction, accepted in pair(predictions, references):
            prediction = self._normal(prediction)
            scores.append(
                max(self._similarity(prediction, self._normal(text)) for text in accepted)
            )
        return mean_result("anls", scores)

    def _similarity(self, prediction: str, reference: str) -> float:
        distance = normalized_edit_distance(prediction, reference)
        return 1.0 - distance if distance < self.threshold else 0.0

    def _normal(self, text: str) -> str:
        text = " ".join(text.split())
        return text.lower() if self.ignore_case else text


@dataclass(frozen=True, kw_only=True)
class ErrorRate:
    """Number of edits divided by the length of the references; 0 is best, with no upper end.

    Units: characters (CER), words (WER), symbols (SER) and lines (LER). The last two are for music
    in **kern and split it as the evaluation of the Sheet Music Transformer does (Rios-Vila et al.
    2024, arXiv 2402.07596): symbols are separated by spaces, and each tab and line break is a
    symbol too.

    Nothing is normalized: case, punctuation, accents and, except for words, white space count.
    Words are separated by white space. `average="pooled"` divides the sum of edits by the sum of
    lengths (the usual corpus rate); `"examples"` is the mean of the examples' rates. `details`
    holds both. An empty reference has rate 0 if the prediction is empty too, and otherwise one
    error per unit of the prediction.
    """

    unit: Unit = "character"
    average: Literal["pooled", "examples"] = "pooled"

    def score(self, predictions: Sequence[str], references: References) -> MetricResult:
        """References: exactly one per example."""
        rates, edits, lengths = [], 0, 0
        for prediction, (reference,) in pair(predictions, references, single=True):
            true_units = self._units(reference)
            distance = edit_distance(self._units(prediction), true_units)
            rates.append(distance / max(1, len(true_units)))
            edits += distance
            lengths += len(true_units)
        both = {"pooled": edits / max(1, lengths), "examples": math.fsum(rates) / len(rates)}
        return MetricResult(
            name=_RATE_NAMES[self.unit],
            value=both[self.average],
            per_example=tuple(rates),
            details=both,
            higher_is_better=False,
        )

    def _units(self, text: str) -> Sequence[Hashable]:
        if self.unit == "character":
            return text
        if self.unit == "word":
            return text.split()
        if not text:
            return ()
        if self.unit == "line":
            return text.split("\n")
        return text.replace("\n", " \n ").replace("\t", " \t ").split(" ")


@dataclass(frozen=True, kw_only=True)
class NormalizedEditDistance:
    """Edit distance of characters divided by the longer length, 0..1; 0 is best.

    Donut's validation figure (Kim et al. 2022, arXiv 2111.15664). No text is normalized; with
    several references the nearest counts.
    """

    def score(self, predictions: Sequence[str], references: References) -> MetricResult:
        distances = [
            min(normalized_edit_distance(prediction, reference) for reference in accepted)
            for prediction, accepted in pair(predictions, references)
        ]
        return mean_result("normalized_edit_distance", distances, higher_is_better=False)
