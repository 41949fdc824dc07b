"""GQA, xGQA, NLVR2, MaRVL and VSR: relations between objects, in one image or two."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from pathlib import Path

from paligemma.data.record import Record
from paligemma.evals.datasets.benchmark import Benchmark, Item, SplitSource, item
from paligemma.evals.datasets.files import read_json, read_json_lines
from paligemma.evals.datasets.prompts import ANSWER, SENTENCE
from paligemma.evals.metrics.texts import ExactMatch

_GQA = "https://downloads.cs.stanford.edu/nlp/data/gqa"


def _gqa_items(source: SplitSource, path: str, group: str = "") -> Iterator[Item]:
    for question_id, entry in read_json(source.folder / path).items():
        yield item(
            f"{group}-{question_id}" if group else question_id,
            source.folder / "images" / f"{entry['imageId']}.jpg",
            ANSWER.format(question=entry["question"]),
            entry["answer"],
            group,
        )


_XGQA_LANGUAGES = ("bn", "de", "id", "ko", "pt", "ru", "zh")
_XGQA_SPLITS = {
    "avg7": _XGQA_LANGUAGES,
    "avg8": (*_XGQA_LANGUAGES, "en"),
    **{language: (language,) for language in (*_XGQA_LANGUAGES, "en")},
}


def _xgqa_file(language: str) -> str:
    return f"annotations/zero_shot/testdev_balanced_questions_{language}.json"


def _xgqa_files(split: str) -> dict[str, str]:
    site = "https://raw.githubusercontent.com/e-bug/iglue/main/datasets/xGQA"
    paths = [_xgqa_file(language) for language in _XGQA_SPLITS[split]]
    return {**{path: f"{site}/{path}" for path in paths}, "images/": f"{_GQA}/images.zip"}


def _read_xgqa(source: SplitSource) -> Iterator[Item]:
    for language in _XGQA_SPLITS[source.split]:
        yield from _gqa_items(source, _xgqa_file(language), language)


_NLVR2_FILES = {"test": "test1", "dev": "dev", "train": "train"}


def _nlvr2_files(split: str) -> dict[str, str]:
    path = f"data/{_NLVR2_FILES[split]}.json"
    return {
        path: f"https://github.com/lil-lab/nlvr, nlvr2/{path}",
        f"images/{_NLVR2_FILES[split]}/": "https://lil.nlp.cornell.edu/nlvr (on request)",
    }


def _read_nlvr2(source: SplitSource) -> Iterator[Item]:
    """ "dev-850-0-1" asks about dev-850-0-img0.png and -img1.png; train has numbered folders."""
    name = _NLVR2_FILES[source.split]
    for entry in read_json_lines(source.folder / "data" / f"{name}.json"):
        stem = entry["identifier"].rpartition("-")[0]
        folder = source.folder / "images" / name
        if name == "train":
            folder /= str(entry["directory"])
        images = folder / f"{stem}-img0.png", folder / f"{stem}-img1.png"
        yield _pair(entry["identifier"], images, entry["sentence"], entry["label"])


def _pair(
    record_id: str, images: tuple[Path, Path], sentence: str, label: str | bool, group: str = ""
) -> Item:
    left, right = images
    record = Record(
        record_id=record_id,
        image=left,
        more_images=(right,),
        prefix=SENTENCE.format(sentence=sentence),
        suffix=str(label),
        references=(str(label),),
    )
    return Item(record, group, files=(right,))


_MARVL_LANGUAGES = ("id", "sw", "ta", "tr", "zh")
_MARVL_SPLITS = {
    "avg5": _MARVL_LANGUAGES,
    **{language: (language,) for language in _MARVL_LANGUAGES},
}


def _marvl_files(split: str) -> dict[str, str]:
    annotations = "https://github.com/e-bug/iglue, datasets/marvl/zero_shot/annotations"
    images = "https://marvl-challenge.github.io"
    languages = _MARVL_SPLITS[split]
    return {
        **{f"annotations/marvl-{language}.jsonl": annotations for language in languages},
        **{f"images/{language}/images/": images for language in languages},
    }


def _read_marvl(source: SplitSource) -> Iterator[Item]:
    """The archives have folder names with decomposed accents (NFKD)."""
    for language in _MARVL_SPLITS[source.split]:
        folder = source.folder / "images" / language / "images"
        for entry in read_json_lines(source.folder / f"annotations/marvl-{language}.jsonl"):
            left, right = (
                folder / unicodedata.normalize("NFKD", f"{entry['concept']}/{entry[side]}")
                for side in ("left_img", "right_img")
            )
            record_id = f"{language}-{entry['id']}"
            yield _pair(record_id, (left, right), entry["caption"], entry["label"], language)


def _vsr_file(split: str) -> str:
    """ "zeroshot-train" -> "splits/zeroshot/train.jsonl"; "zeroshot" is its test split."""
    kind, _, part = split.partition("-")
    return f"splits/{kind}/{part or 'test'}.jsonl"


def _vsr_files(split: str) -> dict[str, str]:
    site = "https://github.com/cambridgeltl/visual-spatial-reasoning"
    return {
        _vsr_file(split): f"{site}, data/splits/{split.partition('-')[0]}",
        "images/": f"{site}, data/README.md",
    }


def _read_vsr(source: SplitSource) -> Iterator[Item]:
    for number, entry in enumerate(read_json_lines(source.folder / _vsr_file(source.split))):
        image = source.folder / "images" / entry["image"]
        prefix = SENTENCE.format(sentence=entry["caption"])
        yield item(number, image, prefix, str(bool(entry["label"])), entry["relation"])


BENCHMARKS = (
    Benchmark(
        name="gqa",
        title="GQA",
        metrics={"acc": ExactMatch()},
        splits={"testdev": ("GQA",), "val": (), "train": ()},
        files=lambda split: {
            f"{split}_balanced_questions.json": f"{_GQA}/questions1.2.zip",
            "images/": f"{_GQA}/images.zip",
        },
        read=lambda source: _gqa_items(source, f"{source.split}_balanced_questions.json"),
        homepage="https://cs.stanford.edu/people/dorarad/gqa",
    ),
    Benchmark(
        name="xgqa",
        title="xGQA",
        metrics={"acc": ExactMatch()},
        splits={
            split: (f"xGQA ({split})",) if split.startswith("avg") else () for split in _XGQA_SPLITS
        },
        files=_xgqa_files,
        read=_read_xgqa,
        homepage="https://github.com/adapter-hub/xGQA",
        mean_of_groups=True,
        note="Questions in eight languages, answers in English. avg7 leaves English out.",
    ),
    Benchmark(
        name="nlvr2",
        title="NLVR2",
        prompt=SENTENCE,
        metrics={"acc": ExactMatch()},
        splits={"test": ("NLVR2",), "dev": (), "train": ()},
        files=_nlvr2_files,
        read=_read_nlvr2,
        homepage="https://lil.nlp.cornell.edu/nlvr",
        max_new_tokens=64,
        num_images=2,
    ),
    Benchmark(
        name="marvl",
        title="MaRVL",
        prompt=SENTENCE,
        metrics={"acc": ExactMatch()},
        splits={"avg5": ("MARVL (avg5)",), **dict.fromkeys(_MARVL_LANGUAGES, ())},
        files=_marvl_files,
        read=_read_marvl,
        homepage="https://marvl-challenge.github.io",
        max_new_tokens=64,
        mean_of_groups=True,
        num_images=2,
    ),
    Benchmark(
        name="vsr",
        title="VSR",
        prompt=SENTENCE,
        metrics={"acc": ExactMatch()},
        splits={
            "zeroshot": ("VSR (zero-shot)", "VSR"),
            "random": ("VSR (random)", "VSR"),
            **{
                f"{kind}-{part}": () for kind in ("zeroshot", "random") for part in ("dev", "train")
            },
        },
        files=_vsr_files,
        read=_read_vsr,
        homepage="https://github.com/cambridgeltl/visual-spatial-reasoning",
        max_new_tokens=18,
        note="The paper does not publish its prompt; that of NLVR2 is used instead.",
    ),
)
