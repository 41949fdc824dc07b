"""RSVQA, low and high resolution: questions about aerial and satellite images.

Questions whose answer is a number (count, area) are left out, as in the papers.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL.TiffImagePlugin import TiffImageFile

from paligemma.data.record import Record
from paligemma.errors import ImageError
from paligemma.evals.datasets.benchmark import Benchmark, Item, Needed, SplitSource
from paligemma.evals.datasets.files import read_json
from paligemma.evals.datasets.prompts import ANSWER
from paligemma.evals.metrics.texts import ExactMatch

_NUMERIC = ("count", "area")


def _items(source: SplitSource, stem: str) -> Iterator[tuple[dict[str, object], str]]:
    """Active questions with their answer."""
    questions = read_json(source.folder / f"{stem}_questions.json")["questions"]
    answers = {
        answer["id"]: answer
        for answer in read_json(source.folder / f"{stem}_answers.json")["answers"]
    }
    for question in questions:
        if question["active"] and question["type"] not in _NUMERIC:
            yield question, answers[question["answers_ids"][0]]["answer"].lower()


def _low_needs(split: str) -> tuple[Needed, ...]:
    source = "https://zenodo.org/records/6344334"
    return (
        Needed(path=f"LR_split_{split}_questions.json", source=source),
        Needed(path=f"LR_split_{split}_answers.json", source=source),
        Needed(path="Images_LR/", source=source),
    )


def _read_low(source: SplitSource) -> Iterator[Item]:
    for question, answer in _items(source, f"LR_split_{source.split}"):
        path = source.folder / "Images_LR" / f"{question['img_id']}.tif"
        record = Record(
            record_id=str(question["id"]),
            image=partial(_read_tiff, path),
            prefix=ANSWER.format(question=question["question"]),
            suffix=answer,
            references=(answer,),
        )
        yield Item(record, str(question["type"]), files=(path,))


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


RSVQA_LR = Benchmark(
    name="rsvqa-lr",
    title="RSVQA, low resolution",
    task="answer",
    prompt=ANSWER,
    metrics={"mean acc": ExactMatch(ignore_case=True)},
    splits={"test": ("RSVQA-lr",), "val": (), "train": ()},
    needs=_low_needs,
    read=_read_low,
    homepage="https://rsvqa.sylvainlobry.com",
    max_new_tokens=32,
    mean_of_groups=True,
)

_HIGH_FILES = {"test": "test", "test2": "test_phili", "val": "val", "train": "train"}


def _high_needs(split: str) -> tuple[Needed, ...]:
    source = "https://zenodo.org/records/6344367"
    stem = f"USGS_split_{_HIGH_FILES[split]}"
    return (
        Needed(path=f"{stem}_questions.json", source=source),
        Needed(path=f"{stem}_answers.json", source=source),
        Needed(path="Data/", source=source),
    )


def _read_high(source: SplitSource) -> Iterator[Item]:
    for question, answer in _items(source, f"USGS_split_{_HIGH_FILES[source.split]}"):
        record = Record(
            record_id=str(question["id"]),
            image=source.folder / "Data" / f"{question['img_id']}.png",
            prefix=ANSWER.format(question=question["question"]),
            suffix=answer,
            references=(answer,),
        )
        yield Item(record, str(question["type"]))


RSVQA_HR = Benchmark(
    name="rsvqa-hr",
    title="RSVQA, high resolution",
    task="answer",
    prompt=ANSWER,
    metrics={"mean acc": ExactMatch(ignore_case=True)},
    splits={"test": ("RSVQA-hr (test)",), "test2": ("RSVQA-hr (test2)",), "val": (), "train": ()},
    needs=_high_needs,
    read=_read_high,
    homepage="https://rsvqa.sylvainlobry.com",
    max_new_tokens=32,
    mean_of_groups=True,
)
