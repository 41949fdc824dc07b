"""`paligemma mini`: pictures of the built-in model's own world, and how well it knows them."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from paligemma.cli.console import (
    print_json,
    print_table,
    print_text,
    progress_bar,
    require_scenes,
    track,
)
from paligemma.cli.model_options import DtypeOption, QuantizationOption
from paligemma.errors import OptionError

if TYPE_CHECKING:
    from mini.scene import Scene

app = typer.Typer(
    help="Pictures of the built-in model's world.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

_MAX_COUNT = 10_000  # names have four digits

Seed = Annotated[int, typer.Option(min=0, help="Which stream of pictures.")]


@app.command()
def scene(
    out: Annotated[Path, typer.Option(help="Folder for the pictures and truth.json.")],
    seed: Seed = 7,
    count: Annotated[int, typer.Option(min=1, max=_MAX_COUNT, help="How many pictures.")] = 20,
) -> None:
    """Draw pictures that mini was not trained on.

    Writes scene_0000.png, ... of 384 x 384 pixels and truth.json: objects with boxes and masks,
    words, captions in six languages, questions with answers. Files of these names are replaced,
    others are left alone; nothing is written unless everything could be.
    """
    require_scenes("paligemma mini scene")
    from PIL import Image

    from mini.scene import RESOLUTION, make_scene

    _check_folder(out)
    with tempfile.TemporaryDirectory(prefix=".scenes-", dir=out) as staging:
        truths = []
        for index in track(range(count), "drawing"):
            one = make_scene("test", seed, index)
            name = f"scene_{index:04d}.png"
            Image.fromarray(one.draw(RESOLUTION)).save(Path(staging, name))
            truths.append({"image": name, **_truth(one)})
        head = {"split": "test", "seed": seed, "resolution": RESOLUTION}
        Path(staging, "truth.json").write_text(_truth_json(head, truths), encoding="utf-8")
        # The truth goes last: where it lies, the pictures it speaks of lie too.
        (out / "truth.json").unlink(missing_ok=True)
        for name in [*(t["image"] for t in truths), "truth.json"]:
            os.replace(Path(staging, name), out / name)
    print_text(f"{count} pictures and truth.json are in {out}")


def _truth_json(head: dict[str, Any], scenes: list[dict[str, Any]]) -> str:
    """One JSON object, {..., "scenes": [...]}, with a line for each scene."""
    opening = json.dumps({**head, "scenes": []}).removesuffix("]}")
    lines = ",\n".join(json.dumps(one, ensure_ascii=False) for one in scenes)
    return f"{opening}\n{lines}\n]}}\n"


def _check_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise OptionError(
            f"The folder {out} cannot be written to: {error.strerror}. Choose another --out."
        ) from error


def _truth(one: Scene) -> dict[str, Any]:
    """What is in the picture, in pixels, and what can be said and asked about it."""
    from mini import language
    from mini.scene import RESOLUTION
    from mini.texts import SceneTexts

    texts, codes = SceneTexts(one), language.LANGUAGES
    names = [kind.name for kind in language.KINDS]
    asked = [
        (code, language.ask_count(kind, count, code))
        for kind, count in texts.counts
        for code in codes
    ]
    asked += [("en", language.ask_presence(kind, True)) for kind, _ in texts.counts]
    asked.append(("en", language.ask_listing(texts.counts)))
    if texts.words:
        asked.append(("en", language.ask_reading(texts.words)))
    if (color := one.background.color_name) is not None:
        asked.append(("en", language.ask_background(color)))
    return {
        **one.to_truth(RESOLUTION, names),
        "ocr": texts.reading(),
        "captions": {code: texts.caption(code) for code in codes},
        "descriptions": {code: texts.describe(code) for code in codes},
        "counts": {names[kind]: count for kind, count in texts.counts},
        "questions": [
            {"prompt": f"answer {code} {question}", "answer": answer}
            for code, (question, answer) in asked
        ],
    }


@app.command("eval")
def evaluate(
    scenes: Annotated[int, typer.Option(min=1, max=_MAX_COUNT, help="How many pictures.")] = 500,
    seed: Seed = 7,
    model: Annotated[str, typer.Option(help="mini, a hub id or a folder.")] = "mini",
    dtype: DtypeOption = "auto",
    quantization: QuantizationOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Measure a model on pictures of mini's world."""
    require_scenes("paligemma mini eval")
    import paligemma
    from mini.evaluate import evaluate as measure
    from paligemma.fast.weights import weights_name

    predictor = paligemma.load(model, weights=weights_name(dtype, quantization))
    with progress_bar("measuring") as on_progress:
        report = measure(predictor, scenes=scenes, seed=seed, on_progress=on_progress)
    if as_json:
        print_json(report)
    else:
        print_table(None, ("measure", "value"), _rows(report), right=("value",))


def _rows(report: dict[str, Any], above: str = "") -> list[tuple[str, str]]:
    """
    >>> _rows({"map50": 0.8125, "caption_exact": {"de": 1.0}})
    [('map50', '0.812'), ('caption_exact de', '1.000')]
    """
    rows: list[tuple[str, str]] = []
    for name, value in report.items():
        if isinstance(value, dict):
            rows += _rows(value, f"{above}{name} ")
        elif not isinstance(value, list):  # the records of single scenes are for --json
            rows.append((above + name, f"{value:.3f}" if isinstance(value, float) else str(value)))
    return rows
