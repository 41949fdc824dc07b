"""TallyQA, CountBenchQA, POPE, MMVP and RSVQA: one ability each.

Counting, objects that are not in the image, differences between similar images, and aerial images
at two resolutions. The questions of RSVQA whose answer is a number (count, area) are left out, as
in the papers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL.TiffImagePlugin import TiffImageFile

from paligemma.data.record import Record
from paligemma.errors import DataError, ImageError
from paligemma.evals.datasets.benchmark import Benchmark, Item, SplitSource, coco_images, item
from paligemma.evals.datasets.files import read_csv, read_json, read_json_lines, read_table
from paligemma.evals.datasets.prompts import ANSWER
from paligemma.evals.metrics.counting import CountAccuracy
from paligemma.evals.metrics.result import MetricResult, References, pair
from paligemma.evals.metrics.texts import ExactMatch, normalize_answer


def _tallyqa_files(split: str) -> dict[str, str]:
    genome = "https://cs.stanford.edu/people/rak248/VG_100K_2"
    name = "train" if split == "train" else "test"
    return {
        f"{name}.json": "https://github.com/manoja328/tallyqa, tallyqa.zip",
        "VG_100K/": f"{genome}/images.zip",
        "VG_100K_2/": f"{genome}/images2.zip",
        **(coco_images("train2014", "val2014") if split == "train" else {}),
    }


def _read_tallyqa(source: SplitSource) -> Iterator[Item]:
    """`image` is "VG_100K_2/1.jpg"; only test separates simple from complex questions."""
    name = "train" if source.split == "train" else "test"
    for entry in read_json(source.folder / f"{name}.json"):
        kind = "simple" if entry.get("issimple") else "complex"
        if source.split in ("train", kind):
            record_id = f"{entry['image_id']}-{entry['question_id']}"
            prefix = ANSWER.format(question=entry["question"])
            answer = str(int(entry["answer"]))
            yield item(record_id, source.folder / entry["image"], prefix, answer)


_COUNTBENCH_TABLE = "train-00000-of-00001-cf54c241ba947306.parquet"
_COUNTBENCH_QUESTIONS = "countbench_paired_questions.json"


def _read_countbench(source: SplitSource) -> Iterator[Item]:
    """Question n belongs to row n; rows with a missing or gray image are left out."""
    questions = read_json(source.folder / _COUNTBENCH_QUESTIONS)
    rows = read_table(source.folder / _COUNTBENCH_TABLE, "image", color_only=True)
    for number, (question, row) in enumerate(zip(questions, rows, strict=True)):
        if row.image is not None:
            prefix = ANSWER.format(question=question["question"])
            yield item(number, row.image, prefix, str(int(row.values["number"])))


_POPE_KINDS = ("random", "popular", "adversarial")
_POPE_SPLITS = {"all": _POPE_KINDS, **{kind: (kind,) for kind in _POPE_KINDS}}


def _pope_files(split: str) -> dict[str, str]:
    site = "https://github.com/AoiDragon/POPE, output/coco"
    files = {f"pope/coco_pope_{kind}.json": site for kind in _POPE_SPLITS[split]}
    return files | coco_images("val2014")


def _read_pope(source: SplitSource) -> Iterator[Item]:
    for kind in _POPE_SPLITS[source.split]:
        entries = read_json_lines(source.folder / "pope" / f"coco_pope_{kind}.json")
        for number, entry in enumerate(entries):
            image = source.folder / "val2014" / entry["image"]
            prefix = ANSWER.format(question=entry["text"])
            yield item(f"{kind}-{number}", image, prefix, entry["label"], kind)


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


_RSVQA_LOW = {split: f"LR_split_{split}" for split in ("test", "val", "train")}
_RSVQA_HIGH = {
    "test": "USGS_split_test",
    "test2": "USGS_split_test_phili",
    "val": "USGS_split_val",
    "train": "USGS_split_train",
}
_RSVQA_LEFT_OUT = ("count", "area")


def _rsvqa_files(stem: str, images: str, source: str) -> dict[str, str]:
    return dict.fromkeys((f"{stem}_questions.json", f"{stem}_answers.json", images), source)


def _read_rsvqa(stems: dict[str, str], images: str, source: SplitSource) -> Iterator[Item]:
    """Active questions with their answer; `images` has an image's number in place of braces."""
    stem = source.folder / stems[source.split]
    answers = {a["id"]: a for a in read_json(Path(f"{stem}_answers.json"))["answers"]}
    for question in read_json(Path(f"{stem}_questions.json"))["questions"]:
        kind = question["type"]
        if question["active"] and kind not in _RSVQA_LEFT_OUT:
            path = source.folder / images.format(question["img_id"])
            image = partial(_read_tiff, path) if path.suffix == ".tif" else path
            answer = answers[question["answers_ids"][0]]["answer"].lower()
            prefix = ANSWER.format(question=question["question"])
            yield item(question["id"], image, prefix, answer, str(kind), files=(path,))


def _read_tiff(path: Path) -> npt.NDArray[np.uint8]:
    """uint8[H, W, 3]. Raises ImageError for a TIFF that is not like the data set's own."""
    try:
        with path.open("rb") as file, TiffImageFile(file) as image:
            pixels = np.asarray(image)
    except (OSError, SyntaxError, ValueError) as error:
        raise ImageError(f"{str(path)!r} cannot be read as TIFF: {error}.") from error
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
        raise ImageError(
            f"{str(path)!r} holds {pixels.dtype} of shape {pixels.shape}; the images of RSVQA "
            "have three channels of 8 bits. Unpack the official archive again."
        )
    return pixels


BENCHMARKS = (
    Benchmark(
        name="tallyqa",
        title="TallyQA",
        metrics={"acc": CountAccuracy()},
        splits={"simple": ("TallyQA (simple)",), "complex": ("TallyQA (complex)",), "train": ()},
        files=_tallyqa_files,
        read=_read_tallyqa,
        homepage="https://github.com/manoja328/TallyQA_dataset",
    ),
    Benchmark(
        name="countbenchqa",
        title="CountBenchQA",
        metrics={"acc": CountAccuracy()},
        splits={"huggingface": ("CountBenchQA",)},
        files=lambda split: {
            _COUNTBENCH_TABLE: "https://huggingface.co/datasets/nielsr/countbench, "
            f"data/{_COUNTBENCH_TABLE}",
            _COUNTBENCH_QUESTIONS: "https://github.com/google-research/big_vision, "
            f"big_vision/datasets/countbenchqa/data/{_COUNTBENCH_QUESTIONS}",
        },
        read=_read_countbench,
        homepage="https://teaching-clip-to-count.github.io",
        note="For a model that was trained on TallyQA.",
    ),
    Benchmark(
        name="pope",
        title="POPE",
        metrics={"acc": ExactMatch(ignore_case=True)},
        splits={"all": ("POPE",), **{kind: (f"POPE ({kind})",) for kind in _POPE_KINDS}},
        files=_pope_files,
        read=_read_pope,
        homepage="https://github.com/AoiDragon/POPE",
        max_new_tokens=48,
        mean_of_groups=True,
        note="For a model that was trained on VQAv2. The prompt is the paper's; big_vision's "
        "config has no 'answer en'.",
    ),
    Benchmark(
        name="mmvp",
        title="MMVP",
        metrics={"paired acc": PairedAccuracy()},
        splits={"test": ("MMVP",)},
        files=lambda split: dict.fromkeys(
            ("Questions.csv", "MMVP Images/"), "https://huggingface.co/datasets/MMVP/MMVP"
        ),
        read=_read_mmvp,
        homepage="https://github.com/tsb0601/MMVP",
        note="For a model that was trained on VQAv2. The papers do not say how an answer is "
        "matched to one of the two options (its authors ask a language model): here it must be the "
        "right option, the words that distinguish it from the other, or its letter, in VQAv2's "
        "normal form.",
    ),
    Benchmark(
        name="rsvqa-lr",
        title="RSVQA, low resolution",
        metrics={"mean acc": ExactMatch(ignore_case=True)},
        splits={"test": ("RSVQA-lr",), "val": (), "train": ()},
        files=lambda split: _rsvqa_files(
            _RSVQA_LOW[split], "Images_LR/", "https://zenodo.org/records/6344334"
        ),
        read=partial(_read_rsvqa, _RSVQA_LOW, "Images_LR/{}.tif"),
        homepage="https://rsvqa.sylvainlobry.com",
        mean_of_groups=True,
    ),
    Benchmark(
        name="rsvqa-hr",
        title="RSVQA, high resolution",
        metrics={"mean acc": ExactMatch(ignore_case=True)},
        splits={
            "test": ("RSVQA-hr (test)",),
            "test2": ("RSVQA-hr (test2)",),
            "val": (),
            "train": (),
        },
        files=lambda split: _rsvqa_files(
            _RSVQA_HIGH[split], "Data/", "https://zenodo.org/records/6344367"
        ),
        read=partial(_read_rsvqa, _RSVQA_HIGH, "Data/{}.png"),
        homepage="https://rsvqa.sylvainlobry.com",
        mean_of_groups=True,
    ),
)
