"""Draw scenes that mini was not trained on, with their ground truth.

    python -m mini.scene --out scenes --count 20

Writes scene_0000.png, ... of 384 x 384 pixels and truth.json: objects with boxes and masks, words,
captions in six languages, questions with answers. Overwrites files of these names and keeps others;
writes nothing if a file cannot be written.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from mini import language, scene
from mini.scene import RESOLUTION, Scene
from mini.texts import SceneTexts
from paligemma.errors import OptionError, PaliGemmaError

_MAX_COUNT = 10_000  # file names have four digits


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m mini.scene",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, help="output folder")
    parser.add_argument("--seed", type=int, default=7, help="random seed (%(default)s)")
    parser.add_argument("--count", type=int, default=20, help="number of scenes (%(default)s)")
    options = parser.parse_args(arguments)
    try:
        write_scenes(options.out, seed=options.seed, count=options.count)
    except PaliGemmaError as error:
        parser.error(str(error))
    print(f"Wrote {options.count} scenes and truth.json to {options.out}")


def write_scenes(out: Path, *, seed: int, count: int) -> None:
    """Writes the test scenes 0 to count - 1 of a seed. Raises OptionError."""
    if not 1 <= count <= _MAX_COUNT:
        raise OptionError(f"The count is {count}; it must be from 1 to {_MAX_COUNT}.")
    _check_writable(out)
    with tempfile.TemporaryDirectory(prefix=".scenes-", dir=out) as staging:
        truths = []
        for index in range(count):
            drawn = scene.make_scene("test", seed, index)
            name = f"scene_{index:04d}.png"
            Image.fromarray(drawn.draw(RESOLUTION)).save(Path(staging, name))
            truths.append({"image": name, **truth_of(drawn)})
        header = {"split": "test", "seed": seed, "resolution": RESOLUTION}
        Path(staging, "truth.json").write_text(_truth_json(header, truths), encoding="utf-8")
        # truth.json is moved last: where it exists, all its images exist too.
        (out / "truth.json").unlink(missing_ok=True)
        for name in [*(truth["image"] for truth in truths), "truth.json"]:
            os.replace(Path(staging, name), out / name)


def truth_of(drawn: Scene) -> dict[str, Any]:
    """What is in the image, in pixels, and what can be said and asked about it."""
    texts, languages = SceneTexts(drawn), language.LANGUAGES
    names = [kind.name for kind in language.KINDS]
    questions = [
        (code, language.ask_count(kind, count, code))
        for kind, count in texts.counts
        for code in languages
    ]
    questions += [("en", language.ask_presence(kind, True)) for kind, _ in texts.counts]
    questions.append(("en", language.ask_listing(texts.counts)))
    if texts.words:
        questions.append(("en", language.ask_reading(texts.words)))
    if (color := drawn.background.color_name) is not None:
        questions.append(("en", language.ask_background(color)))
    return {
        **drawn.to_truth(RESOLUTION, names),
        "ocr": texts.reading(),
        "captions": {code: texts.caption(code) for code in languages},
        "descriptions": {code: texts.describe(code) for code in languages},
        "counts": {names[kind]: count for kind, count in texts.counts},
        "questions": [
            {"prompt": f"answer {code} {question}", "answer": answer}
            for code, (question, answer) in questions
        ],
    }


def _truth_json(header: dict[str, Any], truths: list[dict[str, Any]]) -> str:
    """One JSON object, {..., "scenes": [...]}, with one line per scene."""
    opening = json.dumps({**header, "scenes": []}).removesuffix("]}")
    lines = ",\n".join(json.dumps(truth, ensure_ascii=False) for truth in truths)
    return f"{opening}\n{lines}\n]}}\n"


def _check_writable(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise OptionError(
            f"Cannot write to the folder {out}: {error.strerror}. Choose another --out."
        ) from error
