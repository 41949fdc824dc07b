"""Measure `classify` and `rank` on scenes of mini's world.

    python -m benchmarks.ranking --scenes 24 --labels 17

Each scene is asked about the kinds that are in it and others, 17 in all.

presence  average precision of all pairs of scene and label, by the score of "is it there?": the
          probability of yes, or the log-probability of the caption
best      share of scenes with one kind of thing where `classify` gives that kind, among 17 labels
none      share of scenes where it gives none of them, asked about labels that are not there alone
images    mean average precision of `rank`: all scenes in the order of how well a kind fits them
seconds   of processor time for `classify` with all labels, per scene
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

import paligemma
from benchmarks.command import add_output_options, run_command, write_report
from mini import language
from mini.scene import RESOLUTION, make_scene
from mini.texts import SceneTexts
from paligemma.cli.console import print_table, progress_bar
from paligemma.predictor import Predictor
from paligemma.processor.image import LoadedImage
from paligemma.ranking import RankOptions

_SEED = 2011
_WAYS = {
    "is there {a}?": RankOptions(question="is there {a}?"),
    "is there {a} in the image?": RankOptions(question="is there {a} in the image?"),
    "caption": RankOptions(how="caption"),
}


@dataclass(frozen=True, kw_only=True)
class _Case:
    image: LoadedImage
    present: tuple[str, ...]
    labels: tuple[str, ...]
    """The present ones first."""


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.ranking",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", default="mini", help="model to load (%(default)s)")
    parser.add_argument("--scenes", type=int, default=24, help="number (%(default)s)")
    parser.add_argument("--labels", type=int, default=17, help="for each (%(default)s)")
    parser.add_argument("--seed", type=int, default=_SEED, help="seed of the scenes (%(default)s)")
    add_output_options(parser)
    options = parser.parse_args()
    cases = _cases(options.scenes, options.labels, options.seed)
    model = paligemma.load(options.model)
    rows = [{"way": way} | _measured(model, cases, asked) for way, asked in _WAYS.items()]
    cells = [[v if isinstance(v, str) else f"{v:.3f}" for v in row.values()] for row in rows]
    print_table(None, tuple(rows[0]), cells, right=tuple(rows[0])[1:])
    write_report({"options": {k: str(v) for k, v in vars(options).items()}, "rows": rows}, options)


def _cases(number: int, num_labels: int, seed: int) -> list[_Case]:
    rng = np.random.default_rng(seed)
    names = [kind.name for kind in language.KINDS]
    cases = []
    for index in range(number):
        scene = make_scene("test", seed, index)
        present = tuple(names[kind] for kind, _ in SceneTexts(scene).counts)
        others = [name for name in rng.permutation(names).tolist() if name not in present]
        image = LoadedImage(rgb=Image.fromarray(scene.draw(RESOLUTION)), name=f"scene {index}")
        labels = (*present, *others[: num_labels - len(present)])
        cases.append(_Case(image=image, present=present, labels=labels))
    return cases


def _measured(model: Predictor, cases: Sequence[_Case], options: RankOptions) -> dict[str, Any]:
    scores: list[float] = []
    truth: list[bool] = []
    best: list[bool] = []
    none: list[bool] = []
    seconds = 0.0
    with progress_bar(options.question) as on_progress:
        for number, case in enumerate(cases, start=1):
            started = time.process_time()
            found = model.classify(case.image, case.labels, options.how, options=options)
            seconds += time.process_time() - started
            truth += [label in case.present for label in case.labels]
            if found.presences is not None:
                scores += found.presences
                absent = case.labels[len(case.present) :]
                without = model.classify(case.image, absent, options.how, options=options)
                none.append(without.best is None)
            else:
                prompt, _ = options.caption("it")
                texts = [options.caption(label)[1] for label in case.labels]
                scores += [each.total for each in model.score(case.image, prompt, texts)]
            if len(case.present) == 1:
                best.append(found.best == case.present[0])
            on_progress(number, len(cases))
    return {
        "presence": _average_precision(scores, truth),
        "best": float(np.mean(best)),
        "none": float(np.mean(none)) if none else "-",
        "images": _ranked(model, cases, options),
        "seconds": seconds / len(cases),
    }


def _ranked(model: Predictor, cases: Sequence[_Case], options: RankOptions) -> float:
    """Over the kinds that are in the first eight scenes."""
    kinds = sorted({kind for case in cases[:8] for kind in case.present})
    precisions = []
    for kind in kinds:
        images = [case.image for case in cases]
        ranked = model.rank(images, kind, options.how, options=options)
        precisions.append(
            _average_precision(
                [each.score for each in ranked],
                [kind in cases[each.index].present for each in ranked],
            )
        )
    return float(np.mean(precisions))


def _average_precision(scores: Sequence[float], truth: Sequence[bool]) -> float:
    order = np.argsort(-np.asarray(scores), kind="stable")
    right = np.asarray(truth, dtype=np.float64)[order]
    precision = np.cumsum(right) / np.arange(1, len(right) + 1)
    return float((precision * right).sum() / right.sum())


if __name__ == "__main__":
    run_command(main)
