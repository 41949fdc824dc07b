"""Screen2Words and WidgetCap: what a phone's screen, or one part of it, is for.

Both need the images of RICO.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from paligemma.data.record import Record
from paligemma.evals.datasets.benchmark import Benchmark, Item, Needed, SplitSource
from paligemma.evals.datasets.files import read_csv, read_json, read_lines
from paligemma.evals.datasets.prompts import CAPTION
from paligemma.evals.metrics.captions import Cider
from paligemma.processor.image import load_image

_RICO = Needed(
    path="combined/",
    source="https://storage.googleapis.com/crowdstf-rico-uiuc-4540/rico_dataset_v0.1/"
    "unique_uis.tar.gz",
)
_RED = (255, 0, 0)
_CANVAS_HEIGHT = 2560  # pixels; boxes of RICO are in a canvas of this height


def _screen2words_needs(split: str) -> tuple[Needed, ...]:
    source = "https://github.com/google-research-datasets/screen2words"
    return (
        Needed(path="screen2words/screen_summaries.csv", source=source),
        Needed(path=f"screen2words/split/{split}_screens.txt", source=source),
        _RICO,
    )


def _read_screen2words(source: SplitSource) -> Iterator[Item]:
    folder = source.folder / "screen2words"
    summaries: dict[str, list[str]] = {}
    for row in read_csv(folder / "screen_summaries.csv"):
        summaries.setdefault(row["screenId"], []).append(row["summary"])
    for screen in read_lines(folder / "split" / f"{source.split}_screens.txt"):
        record = Record(
            record_id=screen,
            image=source.folder / "combined" / f"{screen}.jpg",
            prefix=CAPTION,
            references=tuple(summaries[screen]),
        )
        yield Item(record)


SCREEN2WORDS = Benchmark(
    name="screen2words",
    title="Screen2Words",
    task="caption",
    prompt=CAPTION,
    metrics={"CIDEr": Cider()},
    splits={"test": ("Screen2Words",), "dev": (), "train": ()},
    needs=_screen2words_needs,
    read=_read_screen2words,
    homepage="https://github.com/google-research-datasets/screen2words",
    max_new_tokens=24,
)


def _widgetcap_needs(split: str) -> tuple[Needed, ...]:
    source = "https://github.com/google-research-datasets/widget-caption"
    return (
        Needed(path="widget-caption/widget_captions.csv", source=source),
        Needed(path=f"widget-caption/split/{split}.txt", source=source),
        _RICO,
    )


def _read_widgetcap(source: SplitSource) -> Iterator[Item]:
    """`nodeId` "0.2.1" is a path from the root of the screen's tree; captions are joined by "|"."""
    folder = source.folder / "widget-caption"
    screens = set(read_lines(folder / "split" / f"{source.split}.txt"))
    for row in read_csv(folder / "widget_captions.csv"):
        screen, node = row["screenId"], row["nodeId"]
        if screen not in screens:
            continue
        image = source.folder / "combined" / f"{screen}.jpg"
        bounds = _bounds(source.folder / "combined" / f"{screen}.json", node)
        record = Record(
            record_id=f"{screen}_{node}",
            image=partial(_with_red_box, image, bounds, source.resolution),
            prefix=CAPTION,
            references=tuple(row["captions"].split("|")),
        )
        yield Item(record, files=(image,))


def _bounds(path: Path, node: str) -> tuple[float, float, float, float]:
    """x1, y1, x2, y2 in the canvas."""
    element: dict[str, Any] = read_json(path)["activity"]["root"]
    for index in node.split(".")[1:]:
        element = element["children"][int(index)]
    x1, y1, x2, y2 = element["bounds"]
    return x1, y1, x2, y2


def _with_red_box(
    path: Path, bounds: tuple[float, float, float, float], resolution: int
) -> Image.Image:
    """The screen at the model's resolution with a red frame, one pixel wide, around the widget.

    The frame is drawn after resizing, as in big_vision (tf.image.draw_bounding_boxes: a fractional
    coordinate is multiplied by the side minus one pixel).
    """
    screen = load_image(path).rgb
    width, height = screen.size
    scale = height / _CANVAS_HEIGHT
    image = screen.resize((resolution, resolution), Image.Resampling.BILINEAR)
    x1, y1, x2, y2 = (
        int(bound * scale / side * (resolution - 1))
        for bound, side in zip(bounds, (width, height, width, height), strict=True)
    )
    ImageDraw.Draw(image).rectangle((x1, y1, x2, y2), outline=_RED)
    return image


WIDGETCAP = Benchmark(
    name="widgetcap",
    title="WidgetCap",
    task="caption",
    prompt=CAPTION,
    metrics={"CIDEr": Cider()},
    splits={"test": ("WidgetCap",), "dev": ("WidgetCap (val)",), "train": ()},
    needs=_widgetcap_needs,
    read=_read_widgetcap,
    homepage="https://github.com/google-research-datasets/widget-caption",
    max_new_tokens=32,
    note="The widget is framed in red after resizing, so the model's resolution matters.",
)
