"""GQA, xGQA, NLVR2, MaRVL and VSR: relations between objects, in one image or two."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from pathlib import Path

from paligemma.data.record import Record
from paligemma.evals.datasets.benchmark import Benchmark, Item, Needed, SplitSource
from paligemma.evals.datasets.files import read_json, read_json_lines
from paligemma.evals.datasets.prompts import ANSWER, SENTENCE
from paligemma.evals.metrics.texts import ExactMatch

_GQA_SITE = "https://downloads.cs.stanford.edu/nlp/data/gqa"
_GQA_IMAGES = Needed(path="images/", source=f"{_GQA_SITE}/images.zip")


def _gqa_needs(split: str) -> tuple[Needed, ...]:
    path = f"{split}_balanced_questions.json"
    return Needed(path=path, source=f"{_GQA_SITE}/questions1.2.zip"), _GQA_IMAGES


def _gqa_items(path: Path, images: Path, group: str = "") -> Iterator[Item]:
    for question_id, entry in read_json(path).items():
        record = Record(
            record_id=f"{group}{'-' if group else ''}{question_id}",
            image=images / f"{entry['imageId']}.jpg",
            prefix=ANSWER.format(question=entry["question"]),
            suffix=entry["answer"],
            references=(entry["answer"],),
        )
        yield Item(record, group)


GQA = Benchmark(
    name="gqa",
    title="GQA",
    task="answer",
    prompt=ANSWER,
    metrics={"acc": ExactMatch()},
    splits={"testdev": ("GQA",), "val": (), "train": ()},
    needs=_gqa_needs,
    read=lambda source: _gqa_items(
        source.folder / f"{source.split}_balanced_questions.json", source.folder / "images"
    ),
    homepage="https://cs.stanford.edu/people/dorarad/gqa",
    max_new_tokens=32,
)

_XGQA_LANGUAGES = ("bn", "de", "id", "ko", "pt", "ru", "zh")
_XGQA_SPLITS = {
    "avg7": _XGQA_LANGUAGES,
    "avg8": (*_XGQA_LANGUAGES, "en"),
    **{language: (language,) for language in (*_XGQA_LANGUAGES, "en")},
}


def _xgqa_file(language: str) -> str:
    return f"annotations/zero_shot/testdev_balanced_questions_{language}.json"


def _xgqa_needs(split: str) -> tuple[Needed, ...]:
    site = "https://raw.githubusercontent.com/e-bug/iglue/main/datasets/xGQA"
    return (
        *(
            Needed(path=_xgqa_file(language), source=f"{site}/{_xgqa_file(language)}")
            for language in _XGQA_SPLITS[split]
        ),
        _GQA_IMAGES,
    )


def _read_xgqa(source: SplitSource) -> Iterator[Item]:
    for language in _XGQA_SPLITS[source.split]:
        yield from _gqa_items(
            source.folder / _xgqa_file(language), source.folder / "images", language
        )


XGQA = Benchmark(
    name="xgqa",
    title="xGQA",
    task="answer",
    prompt=ANSWER,
    metrics={"acc": ExactMatch()},
    splits={
        split: (f"xGQA ({split})",) if split.startswith("avg") else () for split in _XGQA_SPLITS
    },
    needs=_xgqa_needs,
    read=_read_xgqa,
    homepage="https://github.com/adapter-hub/xGQA",
    max_new_tokens=32,
    mean_of_groups=True,
    note="Questions in eight languages, answers in English. avg7 leaves English out.",
)

_NLVR2_FILES = {"test": "test1", "dev": "dev", "train": "train"}


def _nlvr2_needs(split: str) -> tuple[Needed, ...]:
    name = _NLVR2_FILES[split]
    return (
        Needed(
            path=f"data/{name}.json",
            source=f"https://github.com/lil-lab/nlvr, nlvr2/data/{name}.json",
        ),
        Needed(path=f"images/{name}/", source="https://lil.nlp.cornell.edu/nlvr (on request)"),
    )


def _read_nlvr2(source: SplitSource) -> Iterator[Item]:
    """ "dev-850-0-1" asks about dev-850-0-img0.png and -img1.png; train has numbered folders."""
    name = _NLVR2_FILES[source.split]
    for entry in read_json_lines(source.folder / "data" / f"{name}.json"):
        stem = entry["identifier"].rpartition("-")[0]
        folder = source.folder / "images" / name
        if name == "train":
            folder /= str(entry["directory"])
        left, right = (folder / f"{stem}-img{side}.png" for side in (0, 1))
        yield _pair(entry["identifier"], left, right, entry["sentence"], entry["label"])


def _pair(
    record_id: str, left: Path, right: Path, sentence: str, label: str | bool, group: str = ""
) -> Item:
    answer = str(label)
    record = Record(
        record_id=record_id,
        image=left,
        more_images=(right,),
        prefix=SENTENCE.format(sentence=sentence),
        suffix=answer,
        references=(answer,),
    )
    return Item(record, group, files=(right,))


NLVR2 = Benchmark(
    name="nlvr2",
    title="NLVR2",
    task="answer",
    prompt=SENTENCE,
    metrics={"acc": ExactMatch()},
    splits={"test": ("NLVR2",), "dev": (), "train": ()},
    needs=_nlvr2_needs,
    read=_read_nlvr2,
    homepage="https://lil.nlp.cornell.edu/nlvr",
    max_new_tokens=64,
    num_images=2,
)

_MARVL_LANGUAGES = ("id", "sw", "ta", "tr", "zh")


def _marvl_languages(split: str) -> tuple[str, ...]:
    return _MARVL_LANGUAGES if split == "avg5" else (split,)


def _marvl_needs(split: str) -> tuple[Needed, ...]:
    languages = _marvl_languages(split)
    return (
        *(
            Needed(
                path=f"annotations/marvl-{language}.jsonl",
                source="https://github.com/e-bug/iglue, datasets/marvl/zero_shot/annotations",
            )
            for language in languages
        ),
        *(
            Needed(path=f"images/{language}/images/", source="https://marvl-challenge.github.io")
            for language in languages
        ),
    )


def _read_marvl(source: SplitSource) -> Iterator[Item]:
    """The archives have folder names with decomposed accents (NFKD)."""
    for language in _marvl_languages(source.split):
        images = source.folder / "images" / language / "images"
        for entry in read_json_lines(source.folder / f"annotations/marvl-{language}.jsonl"):
            left, right = (
                images / unicodedata.normalize("NFKD", f"{entry['concept']}/{entry[side]}")
                for side in ("left_img", "right_img")
            )
            yield _pair(
                f"{language}-{entry['id']}",
                left,
                right,
                entry["caption"],
                entry["label"],
                language,
            )


MARVL = Benchmark(
    name="marvl",
    title="MaRVL",
    task="answer",
    prompt=SENTENCE,
    metrics={"acc": ExactMatch()},
    splits={"avg5": ("MARVL (avg5)",), **{language: () for language in _MARVL_LANGUAGES}},
    needs=_marvl_needs,
    read=_read_marvl,
    homepage="https://marvl-challenge.github.io",
    max_new_tokens=64,
    mean_of_groups=True,
    num_images=2,
)


def _vsr_parts(split: str) -> tuple[str, str]:
    """ "zeroshot-train" -> ("zeroshot", "train")."""
    kind, _, part = split.partition("-")
    return kind, part or "test"


def _vsr_needs(split: str) -> tuple[Needed, ...]:
    kind, part = _vsr_parts(split)
    site = "https://github.com/cambridgeltl/visual-spatial-reasoning"
    return (
        Needed(path=f"splits/{kind}/{part}.jsonl", source=f"{site}, data/splits/{kind}"),
        Needed(path="images/", source=f"{site}, data/README.md"),
    )


def _read_vsr(source: SplitSource) -> Iterator[Item]:
    kind, part = _vsr_parts(source.split)
    entries = read_json_lines(source.folder / "splits" / kind / f"{part}.jsonl")
    for number, entry in enumerate(entries):
        answer = str(bool(entry["label"]))
        record = Record(
            record_id=str(number),
            image=source.folder / "images" / entry["image"],
            prefix=SENTENCE.format(sentence=entry["caption"]),
            suffix=answer,
            references=(answer,),
        )
        yield Item(record, entry["relation"])


VSR = Benchmark(
    name="vsr",
    title="VSR",
    task="answer",
    prompt=SENTENCE,
    metrics={"acc": ExactMatch()},
    splits={
        "zeroshot": ("VSR (zero-shot)", "VSR"),
        "random": ("VSR (random)", "VSR"),
        **{f"{kind}-{part}": () for kind in ("zeroshot", "random") for part in ("dev", "train")},
    },
    needs=_vsr_needs,
    read=_read_vsr,
    homepage="https://github.com/cambridgeltl/visual-spatial-reasoning",
    max_new_tokens=18,
    note="The paper does not publish its prompt; that of NLVR2 is used instead.",
)
