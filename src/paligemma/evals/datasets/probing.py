"""POPE and MMVP: objects that are not in the image, and differences between similar images."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from paligemma.data.record import Record
from paligemma.errors import DataError
from paligemma.evals.datasets.benchmark import Benchmark, Item, Needed, SplitSource
from paligemma.evals.datasets.files import read_csv, read_json_lines
from paligemma.evals.datasets.prompts import ANSWER
from paligemma.evals.metrics.result import MetricResult, References, pair
from paligemma.evals.metrics.texts import ExactMatch, normalize_answer

_KINDS = ("random", "popular", "adversarial")


def _kinds(split: str) -> tuple[str, ...]:
    return _KINDS if split == "all" else (split,)


def _needs(split: str) -> tuple[Needed, ...]:
    site = "https://github.com/AoiDragon/POPE, output/coco"
    return (
        *(Needed(path=f"pope/coco_pope_{kind}.json", source=site) for kind in _kinds(split)),
        Needed(path="val2014/", source="http://images.cocodataset.org/zips/val2014.zip"),
    )


def _read(source: SplitSource) -> Iterator[Item]:
    for kind in _kinds(source.split):
        entries = read_json_lines(source.folder / "pope" / f"coco_pope_{kind}.json")
        for number, entry in enumerate(entries):
            record = Record(
                record_id=f"{kind}-{number}",
                image=source.folder / "val2014" / entry["image"],
                prefix=ANSWER.format(question=entry["text"]),
                suffix=entry["label"],
                references=(entry["label"],),
            )
            yield Item(record, kind)


POPE = Benchmark(
    name="pope",
    title="POPE",
    task="answer",
    prompt=ANSWER,
    metrics={"acc": ExactMatch(ignore_case=True)},
    splits={"all": ("POPE",), **{kind: (f"POPE ({kind})",) for kind in _KINDS}},
    needs=_needs,
    read=_read,
    homepage="https://github.com/AoiDragon/POPE",
    max_new_tokens=48,
    mean_of_groups=True,
    note="For a model that was trained on VQAv2. The prompt is the paper's; big_vision's config "
    "has no 'answer en'.",
)


@dataclass(frozen=True, kw_only=True)
class PairedAccuracy:
    """The fraction of pairs of consecutive examples of which both answers are right.

    An answer is right if it equals a reference: a letter "(a)", or any text in VQAv2's normal
    form. `per_example` is 1 for both examples of a pair or for neither; `details` has the fraction
    of single answers that are right.
    """

    def score(self, predictions: Sequence[str], references: References) -> MetricResult:
        """Raises DataError for an odd number of examples."""
        right = [
            bool(answer := _normal(prediction)) and answer in map(_normal, accepted)
            for prediction, accepted in pair(predictions, references)
        ]
        if len(right) % 2:
            raise DataError(
                f"There are {len(right)} examples, and pairs are scored. Give an even number, in "
                "the order of the file."
            )
        both = np.logical_and(right[::2], right[1::2])
        return MetricResult(
            name="paired_accuracy",
            value=float(both.mean()),
            per_example=tuple(np.repeat(both, 2).astype(float).tolist()),
            details={"single": sum(right) / len(right)},
        )

    def statistic(
        self, predictions: Sequence[str], references: References
    ) -> Callable[[npt.NDArray[np.int64]], float]:
        """The value where a pair counts as often as its first example was drawn; NaN for none."""
        both = np.array(self.score(predictions, references).per_example[::2])

        def value(counts: npt.NDArray[np.int64]) -> float:
            drawn = counts[::2]
            return float(drawn @ both / drawn.sum()) if drawn.any() else float("nan")

        return value


def _normal(answer: str) -> str:
    """The normal form, except that a letter alone stays: it would be dropped as an article."""
    letter = answer.strip(" ().").lower()
    return letter if letter in ("a", "b") else normalize_answer(answer)


_OPTIONS = re.compile(r"\(a\)\s*(.+?)\s*\(b\)\s*(.+)", re.IGNORECASE | re.DOTALL)


def _accepted(options: str, correct: str) -> tuple[str, ...]:
    """The right option, those of its words that the other lacks, and its letter.

    >>> _accepted("(a) On the left (b) On the right", "(b)")
    ('On the right', 'right', '(b)')
    """
    texts = _OPTIONS.fullmatch(options.strip())
    letter = correct.strip().strip("()").lower()
    if texts is None or letter not in ("a", "b"):
        raise ValueError(f"{options!r} with the answer {correct!r} are not two options")
    right, wrong = texts.groups() if letter == "a" else texts.groups()[::-1]
    words, others = (normalize_answer(text).split() for text in (right, wrong))
    apart = [word for word in words if word not in others]
    between = (" ".join(apart),) if apart and apart != words else ()
    return right, *between, f"({letter})"


def _mmvp_needs(split: str) -> tuple[Needed, ...]:
    source = "https://huggingface.co/datasets/MMVP/MMVP"
    return Needed(path="Questions.csv", source=source), Needed(path="MMVP Images/", source=source)


def _read_mmvp(source: SplitSource) -> Iterator[Item]:
    """The image has the row's number; the name of that column differs between copies."""
    for number, row in enumerate(read_csv(source.folder / "Questions.csv"), start=1):
        accepted = _accepted(row["Options"], row["Correct Answer"])
        record = Record(
            record_id=str(number),
            image=source.folder / "MMVP Images" / f"{number}.jpg",
            prefix=ANSWER.format(question=row["Question"]),
            suffix=accepted[0],
            references=accepted,
        )
        yield Item(record)


MMVP = Benchmark(
    name="mmvp",
    title="MMVP",
    task="answer",
    prompt=ANSWER,
    metrics={"paired acc": PairedAccuracy()},
    splits={"test": ("MMVP",)},
    needs=_mmvp_needs,
    read=_read_mmvp,
    homepage="https://github.com/tsb0601/MMVP",
    max_new_tokens=32,
    note="For a model that was trained on VQAv2. The papers do not say how an answer is matched to "
    "one of the two options (its authors ask a language model): here it must be the right option, "
    "the words that distinguish it from the other, or its letter, in VQAv2's normal form.",
)
