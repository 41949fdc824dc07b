"""Five tests for models that answer questions: counting, colors, objects, a chart and an invoice.

    python examples/five_tests.py five
    paligemma compare five/questions.jsonl --models mini,mini@int4 --out five/compared

The kinds of tests of docs/compare.md, drawn in mini's world, so that they run without downloads.
Writes images and questions.jsonl: a question and its true answer per line, with the kind of test in
the id. For models that read photographs, write such lines about photographs of your own.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from mini import language
from mini.paper import make_paper
from mini.scene import RESOLUTION, make_scene
from mini.sheet import make_sheet
from mini.texts import SceneTexts

SEED = 7
INVOICE_FIELDS = {
    "invoice_number": "what is the invoice number?",
    "invoice_date": "what is the invoice date?",
    "total": "what is the total?",
}


def tests(number: int) -> Iterator[tuple[str, Any, list[tuple[str, str]]]]:
    """(kind, pixels, questions with answers) of the tests with this number."""
    scene = make_scene("test", SEED, number)
    pixels = scene.draw(RESOLUTION)
    if scene.objects:
        kind, count = SceneTexts(scene).counts[0]
        yield "counting", pixels, [language.ask_count(kind, count, "en")]
        yield "objects", pixels, [language.ask_presence(kind, present=True)]
    if scene.background.color_name:
        yield "colors", pixels, [language.ask_background(scene.background.color_name)]
    chart = make_sheet("test", SEED, number, "chart")
    highest = max(chart.bars, key=lambda bar: bar[1])[0]
    asked = [language.ask_value(*chart.bars[0]), language.ask_highest(highest)]
    yield "chart", chart.draw(RESOLUTION), asked
    invoice = make_paper("test", SEED, number, "invoice")
    values = {field.path: field.value for field in invoice.fields}
    found = [
        (question, values[name]) for name, question in INVOICE_FIELDS.items() if name in values
    ]
    yield "invoice", invoice.draw(RESOLUTION), found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--count", type=int, default=8, help="tests of each kind (8)")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    lines = []
    for number in range(options.count):
        for kind, pixels, questions in tests(number):
            image = f"{kind}-{number}.png"
            Image.fromarray(pixels).save(options.out / image)
            for place, (question, answer) in enumerate(questions):
                line = {"id": f"{kind} {number}.{place}", "image": image}
                lines.append({**line, "prefix": f"answer en {question}", "suffix": answer})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (options.out / "questions.jsonl").write_text(text, encoding="utf-8")
    print(f"Wrote {len(lines)} questions to {options.out / 'questions.jsonl'}")


if __name__ == "__main__":
    main()
