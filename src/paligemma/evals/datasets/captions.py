"""COCO captions, COCO-35L, NoCaps, TextCaps, XM3600, SciCap and DOCCI: what is in an image."""

from __future__ import annotations

from collections.abc import Iterator

from paligemma.data.record import Record
from paligemma.evals.datasets.benchmark import Benchmark, Item, Needed, SplitSource
from paligemma.evals.datasets.files import read_json, read_json_lines
from paligemma.evals.datasets.prompts import CAPTION, CAPTION_IN
from paligemma.evals.metrics.captions import Bleu, Cider

LANGUAGES_35 = (
    "ar", "bn", "cs", "da", "de", "el", "en", "es", "fa", "fi", "fil", "fr", "he", "hi", "hr",
    "hu", "id", "it", "ja", "ko", "mi", "nl", "no", "pl", "pt", "ro", "ru", "sv", "sw", "te",
    "th", "tr", "uk", "vi", "zh",
)  # fmt: skip
_KARPATHY = Needed(
    path="dataset_coco.json",
    source="http://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip",
)
_COCO_2014 = tuple(
    Needed(path=f"{name}/", source=f"http://images.cocodataset.org/zips/{name}.zip")
    for name in ("train2014", "val2014")
)


def _read_cococap(source: SplitSource) -> Iterator[Item]:
    for entry in read_json(source.folder / "dataset_coco.json")["images"]:
        if entry["split"] == source.split:
            record = Record(
                record_id=str(entry["cocoid"]),
                image=source.folder / entry["filepath"] / entry["filename"],
                prefix=CAPTION,
                references=tuple(sentence["raw"] for sentence in entry["sentences"]),
            )
            yield Item(record)


COCOCAP = Benchmark(
    name="cococap",
    title="COCO captions, Karpathy's splits",
    task="caption",
    prompt=CAPTION,
    metrics={"CIDEr": Cider()},
    splits={"val": ("COCOcap",), "test": (), "train": (), "restval": ()},
    needs=lambda split: (_KARPATHY, *_COCO_2014),
    read=_read_cococap,
    homepage="https://cocodataset.org",
    max_new_tokens=32,
    note="Training takes train and restval together.",
)

_COCO_35L_ROWS = {"avg34": ("COCO-35L (avg34)",), "en": ("COCO-35L (en)",)}


def _coco35l_parts(split: str) -> tuple[str, tuple[str, ...]]:
    """ "train-de" -> ("train", ("de",)); "avg34" -> dev in all languages but English."""
    if split == "avg34":
        return "dev", tuple(language for language in LANGUAGES_35 if language != "en")
    part, _, language = split.rpartition("-")
    return part or "dev", (language,)


def _coco35l_needs(split: str) -> tuple[Needed, ...]:
    name = f"coco_mt_{_coco35l_parts(split)[0]}.jsonl"
    return (
        Needed(
            path=name, source=f"https://storage.googleapis.com/crossmodal-3600/{name}.bz2, unpacked"
        ),
        _KARPATHY,
        *_COCO_2014,
    )


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
        record = Record(
            record_id=f"{image_id}-{language}",
            image=images[image_id],
            prefix=CAPTION_IN.format(language=language),
            references=tuple(texts),
        )
        yield Item(record, language)


COCO_35L = Benchmark(
    name="coco35l",
    title="COCO-35L",
    task="caption",
    prompt=CAPTION_IN,
    metrics={"CIDEr": Cider()},
    splits={
        **_COCO_35L_ROWS,
        **{language: () for language in LANGUAGES_35 if language != "en"},
        **{f"train-{language}": () for language in LANGUAGES_35},
    },
    needs=_coco35l_needs,
    read=_read_coco35l,
    homepage="https://google.github.io/crossmodal-3600",
    max_new_tokens=32,
    mean_of_groups=True,
    note="The captions were split into words by their authors, which leaves odd punctuation.",
)


def _nocaps_needs(split: str) -> tuple[Needed, ...]:
    return (
        Needed(
            path="nocaps_val_4500_captions.json",
            source="https://nocaps.s3.amazonaws.com/nocaps_val_4500_captions.json",
        ),
        Needed(
            path="validation/",
            source="https://s3.amazonaws.com/open-images-dataset/tar/validation.tar.gz",
        ),
    )


def _read_nocaps(source: SplitSource) -> Iterator[Item]:
    data = read_json(source.folder / "nocaps_val_4500_captions.json")
    captions: dict[int, list[str]] = {}
    for annotation in data["annotations"]:
        captions.setdefault(annotation["image_id"], []).append(annotation["caption"])
    for entry in data["images"]:
        record = Record(
            record_id=str(entry["id"]),
            image=source.folder / "validation" / entry["file_name"],
            prefix=CAPTION,
            references=tuple(captions[entry["id"]]),
        )
        yield Item(record, entry.get("domain", ""))


NOCAPS = Benchmark(
    name="nocaps",
    title="NoCaps",
    task="caption",
    prompt=CAPTION,
    metrics={"CIDEr": Cider()},
    splits={"val": ("NoCaps",)},
    needs=_nocaps_needs,
    read=_read_nocaps,
    homepage="https://nocaps.org",
    max_new_tokens=32,
    note="For a model that was trained on COCO captions.",
)


def _textcaps_needs(split: str) -> tuple[Needed, ...]:
    base = "https://dl.fbaipublicfiles.com/textvqa"
    name = f"TextCaps_0.1_{split}.json"
    return (
        Needed(path=name, source=f"{base}/data/textcaps/{name}"),
        Needed(path="train_images/", source=f"{base}/images/train_val_images.zip"),
    )


def _read_textcaps(source: SplitSource) -> Iterator[Item]:
    """One line per caption; the images of val are in train_images too."""
    captions: dict[str, list[str]] = {}
    for entry in read_json(source.folder / f"TextCaps_0.1_{source.split}.json")["data"]:
        captions.setdefault(entry["image_name"], []).append(entry["caption_str"].lower())
    for name, texts in captions.items():
        record = Record(
            record_id=name,
            image=source.folder / "train_images" / f"{name}.jpg",
            prefix=CAPTION,
            references=tuple(texts),
        )
        yield Item(record)


TEXTCAPS = Benchmark(
    name="textcaps",
    title="TextCaps",
    task="caption",
    prompt=CAPTION,
    metrics={"CIDEr": Cider()},
    splits={"val": ("TextCaps",), "train": ()},
    needs=_textcaps_needs,
    read=_read_textcaps,
    homepage="https://textvqa.org/textcaps",
    max_new_tokens=32,
)

_XM3600_LANGUAGES = tuple(sorted((*LANGUAGES_35, "quz")))


def _xm3600_languages(split: str) -> tuple[str, ...]:
    if split == "avg35":
        return tuple(language for language in _XM3600_LANGUAGES if language != "en")
    return _XM3600_LANGUAGES if split == "avg" else (split,)


def _xm3600_needs(split: str) -> tuple[Needed, ...]:
    return (
        Needed(
            path="captions.jsonl",
            source="https://google.github.io/crossmodal-3600/web-data/captions.zip",
        ),
        Needed(
            path="images/",
            source="https://open-images-dataset.s3.amazonaws.com/crossmodal-3600/images.tgz",
        ),
    )


def _read_xm3600(source: SplitSource) -> Iterator[Item]:
    languages = _xm3600_languages(source.split)
    for entry in read_json_lines(source.folder / "captions.jsonl"):
        for language in languages:
            record = Record(
                record_id=f"{entry['image/key']}-{language}",
                image=source.folder / "images" / f"{entry['image/key']}.jpg",
                prefix=CAPTION_IN.format(language=language),
                references=tuple(entry[language]["caption"]),
            )
            yield Item(record, language)


XM3600 = Benchmark(
    name="xm3600",
    title="XM3600",
    task="caption",
    prompt=CAPTION_IN,
    metrics={"CIDEr": Cider()},
    splits={
        split: (f"XM3600 ({split})",) if split in ("avg35", "avg", "en") else ()
        for split in ("avg35", "avg", *_XM3600_LANGUAGES)
    },
    needs=_xm3600_needs,
    read=_read_xm3600,
    homepage="https://google.github.io/crossmodal-3600",
    max_new_tokens=32,
    mean_of_groups=True,
    note="For a model that was trained on COCO-35L. avg35 leaves English out of the 36 languages, "
    "which makes the README's en, avg35 and avg consistent.",
)

_SCICAP_CAPTION = "1-lowercase-and-token-and-remove-figure-index"


def _scicap_needs(split: str) -> tuple[Needed, ...]:
    source = "https://github.com/tingyaohsu/SciCap, scicap_data.zip"
    return (
        Needed(path=_scicap_list(split), source=source),
        Needed(path=f"SciCap-Caption-All/{split}/", source=source),
        Needed(path=f"SciCap-No-Subfig-Img/{split}/", source=source),
    )


def _scicap_list(split: str) -> str:
    folder = "List-of-Files-for-Each-Experiments/First-Sentence/No-Subfig"
    return f"{folder}/{split}/file_idx.json"


def _read_scicap(source: SplitSource) -> Iterator[Item]:
    """The first sentence of the captions of figures without subfigures."""
    for name in read_json(source.folder / _scicap_list(source.split)):
        figure = name.removesuffix(".png")
        captions = read_json(source.folder / "SciCap-Caption-All" / source.split / f"{figure}.json")
        caption = captions[_SCICAP_CAPTION]["caption"]
        record = Record(
            record_id=figure,
            image=source.folder / "SciCap-No-Subfig-Img" / source.split / name,
            prefix=CAPTION,
            suffix=caption,
            references=(caption,),
        )
        yield Item(record)


SCICAP = Benchmark(
    name="scicap",
    title="SciCap, first sentence, no subfigures",
    task="caption",
    prompt=CAPTION,
    metrics={"CIDEr": Cider(), "BLEU-4": Bleu()},
    splits={"test": ("SciCap",), "val": (), "train": ()},
    needs=_scicap_needs,
    read=_read_scicap,
    homepage="https://github.com/tingyaohsu/SciCap",
    max_new_tokens=96,
)


def _docci_needs(split: str) -> tuple[Needed, ...]:
    site = "https://storage.googleapis.com/docci/data"
    return (
        Needed(path="docci_descriptions.jsonlines", source=f"{site}/docci_descriptions.jsonlines"),
        Needed(path="images/", source=f"{site}/docci_images.tar.gz"),
    )


def _read_docci(source: SplitSource) -> Iterator[Item]:
    for entry in read_json_lines(source.folder / "docci_descriptions.jsonlines"):
        if entry["split"] == source.split:
            record = Record(
                record_id=entry["example_id"],
                image=source.folder / "images" / entry["image_file"],
                prefix=CAPTION,
                suffix=entry["description"],
                references=(entry["description"],),
            )
            yield Item(record)


DOCCI = Benchmark(
    name="docci",
    title="DOCCI",
    task="caption",
    prompt=CAPTION,
    metrics={},
    splits={"qual_dev": ("DOCCI",), "test": (), "train": (), "qual_test": ()},
    needs=_docci_needs,
    read=_read_docci,
    homepage="https://google.github.io/docci",
    max_new_tokens=192,
    note="The paper's NES counts the sentences that the image does not entail, as judged by five "
    "people; it cannot be computed. The prompt of the released models is not published.",
)
