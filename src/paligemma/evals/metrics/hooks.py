"""Two published figures that need what this package does not have: a model, and people.

Each hook takes the missing part as a function of yours and does the arithmetic; without it, it
refuses and says what is needed. No figure is made up in their place.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

from paligemma.errors import OptionError
from paligemma.evals.metrics.result import MetricResult, References, mean_result, pair

# Entities and relations of one report, each as a tuple such as ("effusion", "OBS-DP", ...).
Facts = Collection[Hashable]
Verdict = Literal["entailment", "neutral", "contradiction"]


@dataclass(frozen=True, kw_only=True)
class RadGraphF1:
    """F1 of the entities and relations that RadGraph finds in report and truth.

    Jain et al. 2021, arXiv 2106.14463. `extract` maps the text of a report to its facts, which
    are compared as sets; two reports without any fact score 1.
    """

    extract: Callable[[str], Facts] | None = None

    def score(self, predictions: Sequence[str], references: References) -> MetricResult:
        """Raises OptionError without `extract`."""
        if self.extract is None:
            raise OptionError(
                "RadGraph F1 needs the RadGraph model, which is not part of this package: its "
                "weights are on PhysioNet under a licence that you accept there. Load it yourself "
                "and pass RadGraphF1(extract=...), a function from a report's text to its "
                "entities and relations."
            )
        scores = []
        for prediction, (reference,) in pair(predictions, references, single=True):
            found, true = set(self.extract(prediction)), set(self.extract(reference))
            total = len(found) + len(true)
            scores.append(2 * len(found & true) / total if total else 1.0)
        return mean_result("radgraph_f1", scores)


@dataclass(frozen=True, kw_only=True)
class NonEntailmentSentences:
    """NES: the share of sentences of a description that the picture does not bear out.

    PaliGemma 2, arXiv 2412.03555, section on long captions: people judge each sentence as
    entailed, neutral or contradicted, by majority of five. `judge` gives the verdicts of one
    description, one a sentence. 0 is best.
    """

    judge: Callable[[int, str], Sequence[Verdict]] | None = None

    def score(self, predictions: Sequence[str]) -> MetricResult:
        """`judge` gets the index of the example and its text; raises OptionError without it."""
        if self.judge is None:
            raise OptionError(
                "NES needs a verdict of people (the paper: majority of five raters) on every "
                "sentence of a description, and no program here can give it. Collect them and pass "
                "NonEntailmentSentences(judge=...), a function from the example's index and text "
                "to 'entailment', 'neutral' or 'contradiction' for each sentence."
            )
        verdicts = [tuple(self.judge(index, text)) for index, text in enumerate(predictions)]
        judged = [verdict for of_one in verdicts for verdict in of_one]
        if not judged:
            raise OptionError("NES is undefined: the judge gave no verdict on any sentence.")
        wrong = [sum(verdict != "entailment" for verdict in of_one) for of_one in verdicts]
        return MetricResult(
            name="nes",
            value=sum(wrong) / len(judged),
            per_example=tuple(
                count / max(1, len(of_one)) for count, of_one in zip(wrong, verdicts, strict=True)
            ),
            details={"sentences": float(len(judged))},
            higher_is_better=False,
        )
