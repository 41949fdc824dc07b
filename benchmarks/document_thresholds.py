"""Measure the thresholds of extraction on drawn forms whose values are known.

    python -m benchmarks.document_thresholds --number 30

Each page has a form of mini's world, a prescription or a receipt, and is one to three times as wide
as it, so that print is smaller on the whole page than in its tiles. The schema asks for all fields
of both; most are not on the page. Every question is asked once, whatever the number of thresholds.

whole_page_score  from which on an answer about the whole page is kept: right values, and questions
held              above which a value is doubted: wrong and right values that are
min_box_score     from which on a box that the model finds is kept: boxes, and those in the place
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from PIL import Image

import paligemma
from benchmarks.command import add_output_options, run_command, write_report
from mini.scene import RESOLUTION
from mini.sheet import Sheet, make_sheet
from paligemma.answering import ImageQuery
from paligemma.cli.console import print_table
from paligemma.data.overlap import iou_of_boxes
from paligemma.extraction.asking import extract
from paligemma.extraction.options import ExtractOptions
from paligemma.extraction.result import Field
from paligemma.processor.processor import Processor

_SCORES = (0.0, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_LIMITS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9)
_HEADINGS = ("CLINIC", "SHOP")
_SIZES = (1.0, 1.5, 2.0, 3.0)
"""Of pages, in sides of the form."""
_WORDS = ("NAME", "DRUG", "ITEM")
_NUMBERS = ("AGE", "DOSE", "TIMES", "DAYS", "DATE", "PRICE", "TAX", "TOTAL", "CASH")
_SEED = 14


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.document_thresholds",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--number", type=int, default=30, help="pages (%(default)s)")
    parser.add_argument("--seed", type=int, default=_SEED, help="random seed (%(default)s)")
    parser.add_argument("--model", default="mini", help="model to load (%(default)s)")
    add_output_options(parser)
    options = parser.parse_args()
    write_report(_measure(options), options)


@dataclass(frozen=True, kw_only=True)
class _Page:
    image: Image.Image
    values: dict[str, str]
    boxes: dict[str, tuple[float, float, float, float]]


def _pages(number: int, seed: int) -> Iterator[_Page]:
    """Pages that are one to three times as wide as the form on them."""
    forms = [_forms(heading, seed + place) for place, heading in enumerate(_HEADINGS)]
    rng = np.random.default_rng(seed)
    for index in range(number):
        side = round(_SIZES[index % len(_SIZES)] * RESOLUTION)
        image = Image.new("RGB", (side, side), "white")
        sheet = next(forms[index // len(_SIZES) % len(forms)])
        left, top = rng.integers(side - RESOLUTION + 1, size=2).tolist()
        image.paste(Image.fromarray(sheet.draw(RESOLUTION)), (left, top))
        values, boxes = {}, {}
        for row, (label, value) in enumerate(sheet.rows[1:]):
            x0, y0, x1, y1 = (edge * RESOLUTION for edge in sheet.words[2 + 2 * row].box_xyxy)
            values[label] = value
            boxes[label] = (left + x0, top + y0, left + x1, top + y1)
        yield _Page(image=image, values=values, boxes=boxes)


def _forms(heading: str, seed: int) -> Iterator[Sheet]:
    """Light forms of a heading."""
    index = 0
    while True:
        sheet = make_sheet("test", seed, index, "form")
        if sheet.rows[0] == (heading,) and sum(sheet.paper) > 384:
            yield sheet
        index += 1


def _schema() -> dict[str, Any]:
    properties: dict[str, Any] = {}
    for label in (*_WORDS, *_NUMBERS):
        is_word = label in _WORDS
        kind = {"type": "string", "maxLength": 12} if is_word else {"type": "integer"}
        properties[label] = {**kind, "question": f"what is the {label}?"}
    return {"title": "Forms", "type": "object", "properties": properties}


@dataclass
class _Remembering:
    """Asks each question about each part of a page once."""

    model: Any
    """A `Predictor`."""
    number: int = 0
    """Of the page."""
    num_asked: int = 0
    answers: dict[tuple[int, str, str], Any] = field(default_factory=dict)

    @property
    def processor(self) -> Processor:
        return self.model.processor

    def answer(self, queries: Iterable[ImageQuery], batch_size: int | None = None) -> Iterator[Any]:
        for query in queries:
            self.num_asked += 1
            [read] = query.images
            image = read() if callable(read) else read
            key = (self.number, getattr(image, "name", ""), query.query.text)
            if key not in self.answers:
                asked: Any = (image,)
                [self.answers[key]] = self.model.answer([replace(query, images=asked)])
            yield self.answers[key]


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    asker = _Remembering(paligemma.load(options.model))
    pages = list(_pages(options.number, options.seed))
    schema = _schema()
    report: dict[str, Any] = {"number": options.number, "whole_page_score": []}
    usual: list[tuple[_Page, Field]] = []
    for score in _SCORES:
        asker.num_asked = 0
        read = ExtractOptions(whole_page_score=score, turn=False, detect=False)
        fields = []
        for asker.number, page in enumerate(pages):
            fields += [(page, each) for each in extract(asker, page.image, schema, read).fields]
        if score == ExtractOptions().whole_page_score:
            usual = fields
        printed = [_is_right(*each) for each in fields if each[1].path in each[0].values]
        absent = [_is_right(*each) for each in fields if each[1].path not in each[0].values]
        report["whole_page_score"].append(
            {
                "score": score,
                "printed_right": float(np.mean(printed)),
                "absent_right": float(np.mean(absent)),
                "questions_per_page": asker.num_asked / len(pages),
            }
        )
        print(report["whole_page_score"][-1], flush=True)
    read_values = [(_is_right(*each), each[1].held) for each in usual if not each[1].is_missing]
    report["held"] = [
        {
            "limit": limit,
            "wrong_doubted": _share(held > limit for is_right, held in read_values if not is_right),
            "right_doubted": _share(held > limit for is_right, held in read_values if is_right),
        }
        for limit in _LIMITS
    ]
    report["min_box_score"] = _boxes(asker, pages, schema)
    _show(report, len(read_values))
    return report


def _boxes(asker: _Remembering, pages: list[_Page], schema: Any) -> list[dict[str, Any]]:
    """Boxes kept by score, of values that were read rightly."""
    rows = []
    for score in _SCORES[:-1]:
        overlaps = []
        num_values = 0
        for asker.number, page in enumerate(pages):
            options = ExtractOptions(turn=False, min_box_score=score)
            for each in extract(asker, page.image, schema, options).fields:
                if each.path not in page.values or not _is_right(page, each):
                    continue
                num_values += 1
                if each.box_source == "detect" and each.box_xyxy is not None:
                    overlaps.append(iou_of_boxes(each.box_xyxy, page.boxes[each.path]))
        rows.append(
            {
                "score": score,
                "kept": len(overlaps) / max(1, num_values),
                "right": _share(overlap >= 0.5 for overlap in overlaps),
                "values": num_values,
            }
        )
    return rows


def _is_right(page: _Page, each: Field) -> bool:
    truth = page.values.get(each.path)
    return (None if each.value is None else str(each.value)) == truth


def _share(values: Iterable[bool]) -> float | None:
    listed = list(values)
    return float(np.mean(listed)) if listed else None


def _show(report: dict[str, Any], num_values: int) -> None:
    for name, rows in report.items():
        if isinstance(rows, list):
            columns = (name, *list(rows[0])[1:])
            shown = [
                tuple(
                    "-" if v is None else f"{v:.3f}".rstrip("0").rstrip(".") for v in row.values()
                )
                for row in rows
            ]
            print_table(None, columns, shown, right=columns)
    print(f"{num_values} values were read")


if __name__ == "__main__":
    run_command(main)
