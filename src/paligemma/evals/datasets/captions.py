"""COCO captions, COCO-35L, NoCaps, TextCaps, XM3600, SciCap and DOCCI: what is in an image.

Screen2Words and WidgetCap: what a phone's screen, or one part of it, is for; both need the images
of RICO.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from paligemma.evals.datasets.benchmark import Benchmark, Item, SplitSource, coco_images, item
from paligemma.evals.datasets.files import (
    group_values,
    read_csv,
    read_json,
    read_json_lines,
    read_lines,
)
from paligemma.evals.datasets.prompts import CAPTION, CAPTION_IN
from paligemma.evals.metrics.captions import Bleu, Cider
from paligemma.processor.image import load_image

LANGUAGES_35 = (
    "ar", "bn", "cs", "da", "de", "el", "en", "es", "fa", "fi", "fil", "fr", "he", "hi", "hr",
    "hu", "id", "it", "ja", "ko", "mi", "nl", "no", "pl", "pt", "ro", "ru", "sv", "sw", "te",
    "th", "tr", "uk", "vi", "zh",
)  # fmt: skip
_NOT_ENGLISH = tuple(language for language in LANGUAGES_35 if language != "en")
_KARPATHY = {
    "dataset_coco.json": "http://cs.stanford.edu/people/karpathy/deepimagesent/"
    "caption_datasets.zip",
    **coco_images("train2014", "val2014"),
}


def _read_cococap(source: SplitSource) -> Iterator[Item]:
    for entry in read_json(source.folder / "dataset_coco.json")["images"]:
        if entry["split"] == source.split:
            image = source.folder / entry["filepath"] / entry["filename"]
            captions = (sentence["raw"] for sentence in entry["sentences"])
            yield item(entry["cocoid"], image, CAPTION, captions)


def _read_nocaps(source: SplitSource) -> Iterator[Item]:
    data = read_json(source.folder / "nocaps_val_4500_captions.json")
    captions = group_values((a["image_id"], a["caption"]) for a in data["annotations"])
    for entry in data["images"]:
        image = source.folder / "validation" / entry["file_name"]
        yield item(entry["id"], image, CAPTION, captions[entry["id"]], entry.get("domain", ""))


def _coco35l_parts(split: str) -> tuple[str, tuple[str, ...]]:
    """ "train-de" -> ("train", ("de",)); "avg34" -> dev in all languages but English."""
    if split == "avg34":
        return "dev", _NOT_ENGLISH
    part, _, language = split.rpartition("-")
    return part or "dev", (language,)


def _coco35l_files(split: str) -> dict[str, str]:
    name = f"coco_mt_{_coco35l_parts(split)[0]}.jsonl"
    site = "https://storage.googleapis.com/crossmodal-3600"
    return {name: f"{site}/{name}.bz2, unpacked", **_KARPATHY}


def _read_coco35l(source: SplitSource) -> Iterator[Item]:
    """A line is an English caption with one translation; English is read from the German lines."""
    part, languages = _coco35l_parts(source.split)
    images = {
        entry["cocoid"]: source.folder / entry["filepath"] / entry["filename"]
        for entry in read_json(source.folder / "dataset_coco.json")["images"]
    }
    captions: dict[tuple[str, int], list[str]] = {}
    for line in read_json_lines(source.folder / f"coco_mt_{part}.jsonl"):
        image_id, target = int(str(line["image_id"]).split("_")[0]), line["trg_lang"]
        if target in languages:
            captions.setdefault((target, image_id), []).append(line["translation_tokenized"])
        if target == "de" and "en" in languages:
            captions.setdefault(("en", image_id), []).append(line["caption_tokenized"])
    for (language, image_id), texts in captions.items():
        prefix = CAPTION_IN.format(language=language)
        yield item(f"{image_id}-{language}", images[image_id], prefix, texts, language)


_XM3600_LANGUAGES = tuple(sorted((*LANGUAGES_35, "quz")))
_XM3600_SPLITS = {
    "avg35": tuple(language for language in _XM3600_LANGUAGES if language != "en"),
    "avg": _XM3600_LANGUAGES,
    **{language: (language,) for language in _XM3600_LANGUAGES},
}


def _read_xm3600(source: SplitSource) -> Iterator[Item]:
    for entry in read_json_lines(source.folder / "captions.jsonl"):
        key = entry["image/key"]
        image = source.folder / "images" / f"{key}.jpg"
        for language in _XM3600_SPLITS[source.split]:
            prefix = CAPTION_IN.format(language=language)
            yield item(f"{key}-{language}", image, prefix, entry[language]["caption"], language)


def _textcaps_files(split: str) -> dict[str, str]:
    base = "https://dl.fbaipublicfiles.com/textvqa"
    name = f"TextCaps_0.1_{split}.json"
    return {
        name: f"{base}/data/textcaps/{name}",
        "train_images/": f"{base}/images/train_val_images.zip",
    }


def _read_textcaps(source: SplitSource) -> Iterator[Item]:
    """One line per caption; the images of val are in train_images too."""
    entries = read_json(source.folder / f"TextCaps_0.1_{source.split}.json")["data"]
    captions = group_values((e["image_name"], e["caption_str"].lower()) for e in entries)
    for name, texts in captions.items():
        yield item(name, source.folder / "train_images" / f"{name}.jpg", CAPTION, texts)


_SCICAP_LIST = "List-of-Files-for-Each-Experiments/First-Sentence/No-Subfig/{}/file_idx.json"
_SCICAP_CAPTION = "1-lowercase-and-token-and-remove-figure-index"


def _read_scicap(source: SplitSource) -> Iterator[Item]:
    """The first sentence of the captions of figures without subfigures."""
    images = source.folder / "SciCap-No-Subfig-Img" / source.split
    for name in read_json(source.folder / _SCICAP_LIST.format(source.split)):
        figure = name.removesuffix(".png")
        captions = read_json(source.folder / "SciCap-Caption-All" / source.split / f"{figure}.json")
        yield item(figure, images / name, CAPTION, captions[_SCICAP_CAPTION]["caption"])


def _read_docci(source: SplitSource) -> Iterator[Item]:
    for entry in read_json_lines(source.folder / "docci_descriptions.jsonlines"):
        if entry["split"] == source.split:
            image = source.folder / "images" / entry["image_file"]
            yield item(entry["example_id"], image, CAPTION, entry["description"])


_RICO = {
    "combined/": "https://storage.googleapis.com/crowdstf-rico-uiuc-4540/rico_dataset_v0.1/"
    "unique_uis.tar.gz"
}
_RICO_HEIGHT = 2560  # pixels; boxes of RICO are in a canvas of this height
_SCREEN2WORDS = "https://github.com/google-research-datasets/screen2words"
_WIDGETCAP = "https://github.com/google-research-datasets/widget-caption"
_RED = (255, 0, 0)


def _read_screen2words(source: SplitSource) -> Iterator[Item]:
    folder = source.folder / "screen2words"
    rows = read_csv(folder / "screen_summaries.csv")
    summaries = group_values((row["screenId"], row["summary"]) for row in rows)
    for screen in read_lines(folder / "split" / f"{source.split}_screens.txt"):
        image = source.folder / "combined" / f"{screen}.jpg"
        yield item(screen, image, CAPTION, summaries[screen])


def _read_widgetcap(source: SplitSource) -> Iterator[Item]:
    """`nodeId` "0.2.1" is a path from the root of the screen's tree; captions are joined by "|"."""
    folder, screens = source.folder / "widget-caption", source.folder / "combined"
    names = set(read_lines(folder / "split" / f"{source.split}.txt"))
    for row in read_csv(folder / "widget_captions.csv"):
        screen, node = row["screenId"], row["nodeId"]
        if screen in names:
            path = screens / f"{screen}.jpg"
            bounds = _bounds(screens / f"{screen}.json", node)
            image = partial(_with_red_box, path, bounds, source.resolution)
            captions = row["captions"].split("|")
            yield item(f"{screen}_{node}", image, CAPTION, captions, files=(path,))


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
    scale = height / _RICO_HEIGHT
    image = screen.resize((resolution, resolution), Image.Resampling.BILINEAR)
    x1, y1, x2, y2 = (
        int(bound * scale / side * (resolution - 1))
        for bound, side in zip(bounds, (width, height, width, height), strict=True)
    )
    ImageDraw.Draw(image).rectangle((x1, y1, x2, y2), outline=_RED)
    return image


_Captions = partial(Benchmark, task="caption", prompt=CAPTION, metrics={"CIDEr": Cider()})
BENCHMARKS = (
    _Captions(
        name="cococap",
        title="COCO captions, Karpathy's splits",
        splits={"val": ("COCOcap",), "test": (), "train": (), "restval": ()},
        files=lambda split: _KARPATHY,
        read=_read_cococap,
        homepage="https://cocodataset.org",
        note="Training takes train and restval together.",
    ),
    _Captions(
        name="nocaps",
        title="NoCaps",
        splits={"val": ("NoCaps",)},
        files=lambda split: {
            "nocaps_val_4500_captions.json": "https://nocaps.s3.amazonaws.com/"
            "nocaps_val_4500_captions.json",
            "validation/": "https://s3.amazonaws.com/open-images-dataset/tar/validation.tar.gz",
        },
        read=_read_nocaps,
        homepage="https://nocaps.org",
        note="For a model that was trained on COCO captions.",
    ),
    _Captions(
        name="coco35l",
        title="COCO-35L",
        prompt=CAPTION_IN,
        splits={
            "avg34": ("COCO-35L (avg34)",),
            "en": ("COCO-35L (en)",),
            **dict.fromkeys(_NOT_ENGLISH, ()),
            **{f"train-{language}": () for language in LANGUAGES_35},
        },
        files=_coco35l_files,
        read=_read_coco35l,
        homepage="https://google.github.io/crossmodal-3600",
        mean_of_groups=True,
        note="The captions were split into words by their authors, which leaves odd punctuation.",
    ),
    _Captions(
        name="xm3600",
        title="XM3600",
        prompt=CAPTION_IN,
        splits={
            split: (f"XM3600 ({split})",) if split in ("avg35", "avg", "en") else ()
            for split in _XM3600_SPLITS
        },
        files=lambda split: {
            "captions.jsonl": "https://google.github.io/crossmodal-3600/web-data/captions.zip",
            "images/": "https://open-images-dataset.s3.amazonaws.com/crossmodal-3600/images.tgz",
        },
        read=_read_xm3600,
        homepage="https://google.github.io/crossmodal-3600",
        mean_of_groups=True,
        note="For a model that was trained on COCO-35L. avg35 leaves English out of the 36 "
        "languages, which makes the README's en, avg35 and avg consistent.",
    ),
    _Captions(
        name="textcaps",
        title="TextCaps",
        splits={"val": ("TextCaps",), "train": ()},
        files=_textcaps_files,
        read=_read_textcaps,
        homepage="https://textvqa.org/textcaps",
    ),
    _Captions(
        name="scicap",
        title="SciCap, first sentence, no subfigures",
        metrics={"CIDEr": Cider(), "BLEU-4": Bleu()},
        splits={"test": ("SciCap",), "val": (), "train": ()},
        files=lambda split: dict.fromkeys(
            (
                _SCICAP_LIST.format(split),
                f"SciCap-Caption-All/{split}/",
                f"SciCap-No-Subfig-Img/{split}/",
            ),
            "https://github.com/tingyaohsu/SciCap, scicap_data.zip",
        ),
        read=_read_scicap,
        homepage="https://github.com/tingyaohsu/SciCap",
        max_new_tokens=96,
    ),
    _Captions(
        name="docci",
        title="DOCCI",
        metrics={},
        splits={"qual_dev": ("DOCCI",), "test": (), "train": (), "qual_test": ()},
        files=lambda split: {
            "docci_descriptions.jsonlines": "https://storage.googleapis.com/docci/data/"
            "docci_descriptions.jsonlines",
            "images/": "https://storage.googleapis.com/docci/data/docci_images.tar.gz",
        },
        read=_read_docci,
        homepage="https://google.github.io/docci",
        max_new_tokens=192,
        note="The paper's NES counts the sentences that the image does not entail, as judged by "
        "five people; it cannot be computed. The prompt of the released models is not published.",
    ),
    _Captions(
        name="screen2words",
        title="Screen2Words",
        splits={"test": ("Screen2Words",), "dev": (), "train": ()},
        files=lambda split: {
            "screen2words/screen_summaries.csv": _SCREEN2WORDS,
            f"screen2words/split/{split}_screens.txt": _SCREEN2WORDS,
            **_RICO,
        },
        read=_read_screen2words,
        homepage=_SCREEN2WORDS,
        max_new_tokens=24,
    ),
    _Captions(
        name="widgetcap",
        title="WidgetCap",
        splits={"test": ("WidgetCap",), "dev": ("WidgetCap (val)",), "train": ()},
        files=lambda split: {
            "widget-caption/widget_captions.csv": _WIDGETCAP,
            f"widget-caption/split/{split}.txt": _WIDGETCAP,
            **_RICO,
        },
        read=_read_widgetcap,
        homepage=_WIDGETCAP,
        note="The widget is framed in red after resizing, so the model's resolution matters.",
    ),
)
