"""VQA accuracy: how many of the (usually ten) annotators gave the model's answer.

Two forms, as the evaluation of PaliGemma uses them (benchmark table in docs/metrics.md):
`VqaAccuracy` is VQAv2's and TextVQA's, with leave-one-out and the official normal form of
answers (Antol et al. 2015, arXiv 1505.00468; visualqa.org/evaluation.html);
`DirectAnswerAccuracy` is OK-VQA's, A-OKVQA's and VizWiz's, without either.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from paligemma.evals.metrics.result import MetricResult, References, mean_result, pair

_ARTICLES = frozenset(("a", "an", "the"))
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
# The official pattern, whose look-behind is written wrongly ("(?!<=\d)"), comes to this.
_FULL_STOP = re.compile(r"\.(?!\d)")
_NUMBER_WORDS = "zero one two three four five six seven eight nine ten"
# A word that lacks one of these apostrophes gets it back. Forms that would be another word
# ("ill", "were", "its") are no part of the official list, nor are those with a capital letter,
# which never match since answers are in lower case by then.
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


def _replacements() -> dict[str, str]:
    words = {word: str(number) for number, word in enumerate(_NUMBER_WORDS.split())}
    words["none"] = "0"
    for whole in _CONTRACTIONS.split():
        for place in re.finditer("'", whole):
            words[whole[: place.start()] + whole[place.end() :]] = whole
    words["somebody'd"] = "somebodyd"  # so it stands in the official list
    return words


_REPLACEMENTS = _replacements()


def normalize_answer(answer: str) -> str:
    """The official normal form: punctuation, case, number words, articles, contractions.

    A punctuation mark becomes nothing where it touches a space anywhere in the answer, or where
    a number with a comma stands in it, and a space otherwise: the rule of the official code.

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


@dataclass(frozen=True, kw_only=True)
class VqaAccuracy:
    """Mean over the leave-one-out sets of annotators of min(matches / 3, 1).

    Answers are brought to the normal form only where the annotators differ, as in the official
    code; where all agree, prediction and answers are compared as they are (spaces stripped).
    """

    def score(self, predictions: Sequence[str], references: References) -> MetricResult:
        """References: all annotators' answers; a single one is compared for equality."""
        scores = [_leave_one_out(*example) for example in pair(predictions, references)]
        return mean_result("vqa_accuracy", scores)


@dataclass(frozen=True, kw_only=True)
class DirectAnswerAccuracy:
    """min(1, annotators with exactly this answer / 3); with one reference, equality.

    Nothing is normalised, but for the case of letters with `ignore_case`.
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


def _leave_one_out(prediction: str, answers: tuple[str, ...]) -> float:
    prediction = _plain_spaces(prediction)
    answers = tuple(_plain_spaces(answer) for answer in answers)
    if len(set(answers)) > 1:
        prediction = normalize_answer(prediction)
        answers = tuple(normalize_answer(answer) for answer in answers)
    if len(answers) == 1:
        # Nobody is left to agree once the only annotator is left out.
        return float(prediction == answers[0])
    matches = answers.count(prediction)
    # Of the n sets with one annotator left out, `matches` have one match fewer.
    scores = matches * min(1.0, (matches - 1) / 3) if matches else 0.0
    return (scores + (len(answers) - matches) * min(1.0, matches / 3)) / len(answers)


def _plain_spaces(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()
