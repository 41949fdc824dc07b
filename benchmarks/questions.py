"""Count which English questions mini answers rightly.

    python -m benchmarks.questions --scenes 120 --seed 1007

Every question that mini learned is asked about scenes of the test split, in the words of
`mini/language.py`: about all kinds in a scene, and about one that is not there. An answer is right
if it is the expected one, letter for letter.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator

from PIL import Image

import paligemma
from benchmarks.command import add_output_options, run_command, write_report
from mini import language
from mini.examples import ask_where
from mini.scene import RESOLUTION, Scene, make_scene
from mini.texts import SceneTexts
from paligemma.cli.console import print_table, progress_bar
from paligemma.predictor import Predictor

_Question = tuple[str, str, str]  # which question, its text, the answer


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.questions",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", default="mini", help="model to load (%(default)s)")
    parser.add_argument("--scenes", type=int, default=120, help="number (%(default)s)")
    parser.add_argument("--seed", type=int, default=1007, help="seed of the scenes (%(default)s)")
    parser.add_argument("--bare", action="store_true", help='leave out "answer en"')
    add_output_options(parser)
    options = parser.parse_args()
    model = paligemma.load(options.model)
    asked, right = _counted(model, options)
    rows = [(name, f"{right[name]} of {asked[name]}") for name in asked]
    print_table(None, ("question", "right"), rows, right=("right",))
    write_report({"asked": dict(asked), "right": dict(right)}, options)


def _counted(model: Predictor, options: argparse.Namespace) -> tuple[Counter[str], Counter[str]]:
    asked: Counter[str] = Counter()
    right: Counter[str] = Counter()
    with progress_bar("Asking") as on_progress:
        for index in range(options.scenes):
            scene = make_scene("test", options.seed, index)
            names, texts, expected = zip(*_questions(scene), strict=True)
            image = Image.fromarray(scene.draw(RESOLUTION))
            answers = model.ask(image, list(texts), None if options.bare else "en")
            asked.update(names)
            right.update(
                name
                for name, answer, text in zip(names, answers, expected, strict=True)
                if answer.text == text
            )
            on_progress(index + 1, options.scenes)
    return asked, right


def _questions(scene: Scene) -> Iterator[_Question]:
    texts = SceneTexts(scene)
    counts = dict(texts.counts)
    absent = next(kind for kind in range(len(language.KINDS)) if kind not in counts)
    for kind in (*counts, absent):
        yield "is there a dog?", *language.ask_presence(kind, kind in counts)
        yield "how many dogs are there?", *language.ask_count(kind, counts.get(kind, 0), "en")
    for thing in scene.objects:
        if counts[thing.kind] == 1 and (pair := ask_where(thing)) is not None:
            yield "where is the dog?", *pair
    yield "what is in the picture?", *language.ask_listing(texts.counts)
    if texts.words:
        yield "what is written?", *language.ask_reading(texts.words)
    if (color := scene.background.color_name) is not None:
        yield "what color is the background?", *language.ask_background(color)


if __name__ == "__main__":
    run_command(main)
