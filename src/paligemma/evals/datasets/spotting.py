"""ICDAR'15 and Total-Text: the positions of words in a photograph, and their text.

Outlines become the upright boxes around them. A word that does not count has the label in
`IGNORED`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from paligemma.data.record import Record, TrueObject
from paligemma.data.source import read_text
from paligemma.evals.datasets.benchmark import Benchmark, Item, SplitSource
from paligemma.evals.metrics.text_regions import TextDetection
from paligemma.processor.image import read_size_wh

IGNORED = {"icdar15": "###", "total-text": "#"}
"""The label of words that are neither right nor wrong to find, by benchmark."""
PROMPT = "ocr"
_ICDAR_FOLDERS = {
    "test": ("ch4_test_images", "Challenge4_Test_Task4_GT"),
    "train": ("ch4_training_images", "ch4_training_localization_transcription_gt"),
}


def _record(path: Path, words: list[tuple[list[float], list[float], str]]) -> Item:
    """Words as x coordinates, y coordinates, text; boxes are clipped to the image."""
    width, height = read_size_wh(path)
    objects = []
    for xs, ys, text in words:
        x1, x2 = max(min(xs), 0.0), min(max(xs), float(width))
        y1, y2 = max(min(ys), 0.0), min(max(ys), float(height))
        if x1 < x2 and y1 < y2:
            objects.append(TrueObject(label=text, box_xyxy=(x1, y1, x2, y2)))
    return Item(
        Record(
            record_id=path.stem,
            image=path,
            prefix=PROMPT,
            objects=tuple(objects),
            size_wh=(width, height),
            where=path.name,
        )
    )


def _read_icdar(source: SplitSource) -> Iterator[Item]:
    """gt_img_1.txt has lines x1,y1,...,x4,y4,word; the word may contain commas."""
    images, truths = (source.folder / name for name in _ICDAR_FOLDERS[source.split])
    for path in sorted(images.glob("img_*.jpg"), key=_number):
        words = []
        for line in read_text(truths / f"gt_{path.stem}.txt").splitlines():
            if line.strip():
                *corners, text = line.split(",", 8)
                numbers = [float(corner) for corner in corners]
                words.append((numbers[::2], numbers[1::2], text))
        yield _record(path, words)


_TOTAL_TEXT = re.compile(
    r"x: \[\[(?P<xs>[^\]]*)\]\], y: \[\[(?P<ys>[^\]]*)\]\], ornt: \[.*?\], "
    r"transcriptions: \[(?P<text>u?(?:'[^'\n]*'|\"[^\"\n]*\"))\]",
    re.DOTALL,
)


def _read_total_text(source: SplitSource) -> Iterator[Item]:
    """poly_gt_img1.txt: x: [[1 2 3]], y: [[4 5 6]], ornt: [u'c'], transcriptions: [u'WORD'];
    long rows of numbers continue in the next line."""
    name = source.split.title()
    truths = source.folder / "Groundtruth" / "Polygon" / name
    for path in sorted((source.folder / "Images" / name).glob("img*.jpg"), key=_number):
        text = read_text(truths / f"poly_gt_{path.stem}.txt")
        matches = list(_TOTAL_TEXT.finditer(text))
        if len(matches) != text.count("transcriptions:"):
            raise ValueError(f"poly_gt_{path.stem}.txt has lines in an unknown format")
        words = [
            (
                [float(number) for number in match["xs"].split()],
                [float(number) for number in match["ys"].split()],
                str(ast.literal_eval(match["text"])),
            )
            for match in matches
        ]
        yield _record(path, words)


def _number(path: Path) -> int:
    return int(re.sub(r"\D", "", path.stem))


_ICDAR_SOURCE = "https://rrc.cvc.uab.es/?ch=4, task 4 (an account is needed)"
_TOTAL_TEXT_SITE = "https://github.com/cs-chan/Total-Text-Dataset"
_Spotting = partial(
    Benchmark,
    task="read_text",
    prompt=PROMPT,
    metrics={"F1": TextDetection(with_text=True)},
    max_new_tokens=2048,
    note="The paper publishes neither its prompt nor the format of boxes and words; 'ocr' and the "
    "format of detection (four loc tokens, then the word) are used instead.",
)
BENCHMARKS = (
    _Spotting(
        name="icdar15",
        title="ICDAR'15 incidental scene text",
        splits={"test": ("ICDAR'15",), "train": ()},
        files=lambda split: {f"{name}/": _ICDAR_SOURCE for name in _ICDAR_FOLDERS[split]},
        read=_read_icdar,
        homepage="https://rrc.cvc.uab.es/?ch=4",
    ),
    _Spotting(
        name="total-text",
        title="Total-Text",
        splits={"test": ("Total-Text",), "train": ()},
        files=lambda split: {
            f"Images/{split.title()}/": _TOTAL_TEXT_SITE,
            f"Groundtruth/Polygon/{split.title()}/": f"{_TOTAL_TEXT_SITE}, the text form",
        },
        read=_read_total_text,
        homepage=_TOTAL_TEXT_SITE,
    ),
)
