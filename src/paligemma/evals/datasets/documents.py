"""DocVQA, InfoVQA, ST-VQA, OCR-VQA and ChartQA: questions about text in an image."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import permutations

from paligemma.data.record import Record
from paligemma.evals.datasets.benchmark import Benchmark, Item, Needed, SplitSource
from paligemma.evals.datasets.files import read_json
from paligemma.evals.datasets.prompts import ANSWER, QUESTION
from paligemma.evals.metrics.texts import Anls, ExactMatch, RelaxedAccuracy

_ROBUST_READING = "https://rrc.cvc.uab.es/?ch={} (an account is needed)"
_DOCVQA = _ROBUST_READING.format(17)


def _docvqa_needs(split: str) -> tuple[Needed, ...]:
    return (
        Needed(path=f"{split}_v1.0_withQT.json", source=_DOCVQA),
        Needed(path=f"{split}/", source=_DOCVQA),
    )


def _read_docvqa(source: SplitSource) -> Iterator[Item]:
    """`image` is "documents/x.png", below a folder with the split's name."""
    for entry in read_json(source.folder / f"{source.split}_v1.0_withQT.json")["data"]:
        record = Record(
            record_id=str(entry["questionId"]),
            image=source.folder / source.split / entry["image"],
            prefix=QUESTION.format(question=entry["question"]),
            references=tuple(entry["answers"]),
        )
        yield Item(record)


DOCVQA = Benchmark(
    name="docvqa",
    title="DocVQA",
    task="answer",
    prompt=QUESTION,
    metrics={"ANLS": Anls()},
    splits={"val": ("DocVQA (val)", "DocVQA (test server)"), "train": ()},
    needs=_docvqa_needs,
    read=_read_docvqa,
    homepage="https://www.docvqa.org",
    max_new_tokens=32,
)

_INFOVQA_FILES = {
    "val": "infographicsVQA_val_v1.0_withQT.json",
    "train": "infographicsVQA_train_v1.0.json",
}


def _infovqa_needs(split: str) -> tuple[Needed, ...]:
    return (
        Needed(path=_INFOVQA_FILES[split], source=_DOCVQA),
        Needed(path="images/", source=_DOCVQA),
    )


def _read_infovqa(source: SplitSource) -> Iterator[Item]:
    for entry in read_json(source.folder / _INFOVQA_FILES[source.split])["data"]:
        answers = [answer.lower() for answer in entry["answers"]]
        if source.split == "val":
            answers = _in_any_order(answers)
        record = Record(
            record_id=str(entry["questionId"]),
            image=source.folder / "images" / entry["image_local_name"],
            prefix=ANSWER.format(question=entry["question"]),
            references=tuple(answers),
        )
        yield Item(record)


def _in_any_order(answers: list[str]) -> list[str]:
    """The parts of an answer that is a list may come in any order.

    >>> _in_any_order(["a, b", "c"])
    ['a, b', 'b, a', 'c']
    """
    orders = []
    for answer in answers:
        orders += [", ".join(parts) for parts in permutations(answer.split(", "))]
    return orders


INFOVQA = Benchmark(
    name="infovqa",
    title="InfoVQA",
    task="answer",
    prompt=ANSWER,
    metrics={"ANLS": Anls()},
    splits={"val": ("InfoVQA (val)", "InfoVQA (test server)"), "train": ()},
    needs=_infovqa_needs,
    read=_read_infovqa,
    homepage="https://www.docvqa.org/datasets/infographicvqa",
    max_new_tokens=48,
)


def _stvqa_needs(split: str) -> tuple[Needed, ...]:
    source = _ROBUST_READING.format(11)
    return (
        Needed(path="train_task_3.json", source=source),
        Needed(path="train_images/", source=source),
        Needed(path="train2014/", source="http://images.cocodataset.org/zips/train2014.zip"),
    )


def _read_stvqa(source: SplitSource) -> Iterator[Item]:
    """Images from COCO-Text are read in COCO's own, larger size."""
    for entry in read_json(source.folder / "train_task_3.json")["data"]:
        origin, _, name = entry["file_path"].partition("/")
        folder = "train2014" if origin == "coco-text" else f"train_images/{origin}"
        record = Record(
            record_id=str(entry["question_id"]),
            image=source.folder / folder / name,
            prefix=ANSWER.format(question=entry["question"]),
            references=tuple(answer.lower() for answer in entry["answers"]),
        )
        yield Item(record, origin)


STVQA = Benchmark(
    name="stvqa",
    title="ST-VQA",
    task="answer",
    prompt=ANSWER,
    metrics={"ANLS": Anls()},
    splits={"train": ("ST-VQA (val)", "ST-VQA (test server)")},
    needs=_stvqa_needs,
    read=_read_stvqa,
    homepage="https://rrc.cvc.uab.es/?ch=11",
    max_new_tokens=48,
    note="Only train has public answers. The papers' val is 2,628 of its 26,074 questions; the "
    "list of them is not published. Hold out some images yourself before training on it.",
)

_OCRVQA_SPLITS = {"test": 3, "val": 2, "train": 1}


def _ocrvqa_needs(split: str) -> tuple[Needed, ...]:
    return (
        Needed(path="dataset.json", source="https://ocr-vqa.github.io"),
        Needed(path="images/", source="the imageURL entries of dataset.json, saved as <id>.jpg"),
    )


def _read_ocrvqa(source: SplitSource) -> Iterator[Item]:
    """One entry per book, with several questions."""
    for book_id, book in read_json(source.folder / "dataset.json").items():
        if book["split"] != _OCRVQA_SPLITS[source.split]:
            continue
        pairs = zip(book["questions"], book["answers"], strict=True)
        for number, (question, answer) in enumerate(pairs):
            record = Record(
                record_id=f"{book_id}-{number}",
                image=source.folder / "images" / f"{book_id}.jpg",
                prefix=ANSWER.format(question=question),
                suffix=answer,
                references=(answer,),
            )
            yield Item(record)


OCRVQA = Benchmark(
    name="ocrvqa",
    title="OCR-VQA",
    task="answer",
    prompt=ANSWER,
    metrics={"acc": ExactMatch(ignore_case=True)},
    splits={"test": ("OCR-VQA",), "val": (), "train": ()},
    needs=_ocrvqa_needs,
    read=_read_ocrvqa,
    homepage="https://ocr-vqa.github.io",
    max_new_tokens=32,
)

_CHARTQA_ROWS = {"human": "ChartQA (human)", "augmented": "ChartQA (aug)"}


def _chartqa_parts(split: str) -> tuple[str, str]:
    """ "train-human" -> ("train", "human")."""
    part, _, kind = split.rpartition("-")
    return part or "test", kind


def _chartqa_needs(split: str) -> tuple[Needed, ...]:
    part, kind = _chartqa_parts(split)
    source = "https://huggingface.co/datasets/ahmed-masry/ChartQA, 'ChartQA Dataset.zip'"
    return (
        Needed(path=f"{part}/{part}_{kind}.json", source=source),
        Needed(path=f"{part}/png/", source=source),
    )


def _read_chartqa(source: SplitSource) -> Iterator[Item]:
    part, kind = _chartqa_parts(source.split)
    entries = read_json(source.folder / part / f"{part}_{kind}.json")
    for number, entry in enumerate(entries):
        record = Record(
            record_id=str(number),
            image=source.folder / part / "png" / entry["imgname"],
            prefix=QUESTION.format(question=entry["query"]),
            suffix=entry["label"],
            references=(entry["label"],),
        )
        yield Item(record)


CHARTQA = Benchmark(
    name="chartqa",
    title="ChartQA",
    task="answer",
    prompt=QUESTION,
    metrics={"relaxed acc": RelaxedAccuracy()},
    splits={
        **{kind: (row,) for kind, row in _CHARTQA_ROWS.items()},
        **{f"{part}-{kind}": () for part in ("val", "train") for kind in _CHARTQA_ROWS},
    },
    needs=_chartqa_needs,
    read=_read_chartqa,
    homepage="https://github.com/vis-nlp/ChartQA",
    max_new_tokens=48,
    note="'human' and 'augmented' are the two test sets; their mean is not a score of the papers.",
)
