"""MSR-VTT, MSVD, ActivityNet and VATEX: captions of videos, and questions about them.

No video is decoded here. A person writes the frames of each video into a folder of its own, and a
record takes some of them, evenly spaced, as the pictures of one question.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import NamedTuple

from paligemma.data.record import Record
from paligemma.errors import DataError
from paligemma.evals.datasets.benchmark import Benchmark, Item, Needed, Place
from paligemma.evals.datasets.files import read_json, read_lines
from paligemma.evals.datasets.prompts import ANSWER, CAPTION
from paligemma.evals.metrics.answers import ExactMatch
from paligemma.evals.metrics.captions import Cider

_FRAMES = "frames"
_UNAVAILABLE = "unavailable.txt"
_PICTURES = (".jpg", ".jpeg", ".png", ".webp")
_SHOWN = 5


class _Asked(NamedTuple):
    """What is asked about a video, or a part of it."""

    record_id: str
    video: str
    """The name of its folder of frames."""
    references: tuple[str, ...]
    question: str = ""
    """Empty for a caption."""
    group: str = ""
    part: tuple[float, float] | None = None
    """Begin and end, as shares of the whole video; None for all of it."""


def evenly_spaced(frames: Sequence[Path], number: int) -> list[Path]:
    """The middle one of each of `number` equal parts; too few frames are run through again.

    Running short videos through again is big_vision's way (pp/proj/paligemma/video.py).

    >>> [path.name for path in evenly_spaced([Path(name) for name in "abcdef"], 3)]
    ['b', 'd', 'f']
    """
    if len(frames) < number:
        return list(islice(cycle(frames), number))
    return [frames[(2 * place + 1) * len(frames) // (2 * number)] for place in range(number)]


def _frames_of(folder: Path) -> list[Path]:
    """In the order of their numbers, with leading zeros or without."""
    if not folder.is_dir():
        return []
    pictures = [path for path in folder.iterdir() if path.suffix.lower() in _PICTURES]
    return sorted(pictures, key=lambda path: (len(path.name), path.name))


def _within(frames: Sequence[Path], part: tuple[float, float]) -> Sequence[Path]:
    """Those whose time lies in the part; frames are evenly spaced over the video."""
    begin, end = sorted(part)
    inside = [
        frame for place, frame in enumerate(frames) if begin <= (place + 0.5) / len(frames) <= end
    ]
    middle = min(max(0.0, (begin + end) / 2), 1.0)
    return inside or [frames[min(int(middle * len(frames)), len(frames) - 1)]]


def _read(
    questions: Callable[[Place], Iterable[_Asked]], number: int, place: Place
) -> Iterator[Item]:
    """Videos that a list names as lost are left out; any other must have frames."""
    folder = place.folder / _FRAMES
    lost = set(read_lines(listed) if (listed := folder / _UNAVAILABLE).is_file() else ())
    asked = [one for one in questions(place) if one.video not in lost]
    frames = {video: _frames_of(folder / video) for video in dict.fromkeys(a.video for a in asked)}
    if missing := [video for video, found in frames.items() if not found]:
        named = ", ".join(f"{_FRAMES}/{video}/" for video in missing[:_SHOWN])
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        raise DataError(
            f"{len(missing)} of {len(frames)} videos have no frames below {str(place.folder)!r}: "
            f"{named}{more}. Each folder holds the frames of one video, evenly spaced from its "
            f"begin to its end, numbered pictures such as 000001.jpg; {number} are taken. Videos "
            f"that cannot be had any more are left out where {_FRAMES}/{_UNAVAILABLE} names them, "
            "one a line."
        )
    for one in asked:
        shown = frames[one.video]
        first, *others = evenly_spaced(_within(shown, one.part) if one.part else shown, number)
        record = Record(
            record_id=one.record_id,
            image=first,
            more_images=tuple(others),
            prefix=ANSWER.format(question=one.question) if one.question else CAPTION,
            suffix=one.references[0] if one.question else "",
            references=one.references,
        )
        yield Item(record, one.group, files=tuple(others))


def _frames_needed(video: str) -> Needed:
    return Needed(
        path=f"{_FRAMES}/",
        source=f"the videos, one folder each: ffmpeg -i {video}.mp4 {_FRAMES}/{video}/%06d.jpg",
    )


def _videos(
    name: str,
    title: str,
    row: str,
    questions: Callable[[Place], Iterable[_Asked]],
    needs: Callable[[str], tuple[Needed, ...]],
    homepage: str,
    *,
    other_splits: tuple[str, ...],
    stride: int,
    scored: str,
    num_frames: int = 16,
    max_new_tokens: int = 64,
) -> Benchmark:
    """`stride` and `scored` are those of big_vision's configs."""
    is_caption = name.endswith("-cap") or name == "vatex"
    return Benchmark(
        name=name,
        title=title,
        task="caption" if is_caption else "answer",
        prompt=CAPTION if is_caption else ANSWER,
        metrics={"CIDEr": Cider()} if is_caption else {"acc": ExactMatch()},
        splits={"test": (row,), **{split: () for split in other_splits}},
        needs=needs,
        read=partial(_read, questions, num_frames),
        homepage=homepage,
        max_new_tokens=max_new_tokens,
        num_images=num_frames,
        note=f"{num_frames} frames, evenly spaced over those in the folder; the papers took one in "
        f"{stride}, with a reader of videos that is not published, and scored {scored}.",
    )


_MSRVTT = "https://www.microsoft.com/en-us/research/publication/msr-vtt"


def _msrvtt_file(split: str) -> str:
    return f"{'test' if split == 'test' else 'train_val'}_videodatainfo.json"


def _msrvtt_captions(place: Place) -> Iterator[_Asked]:
    """Videos and their twenty sentences, in two lists of one file."""
    whole = read_json(place.folder / _msrvtt_file(place.split))
    captions: dict[str, list[str]] = {}
    for sentence in whole["sentences"]:
        captions.setdefault(sentence["video_id"], []).append(sentence["caption"])
    for video in whole["videos"]:
        if video["split"] == place.split:
            name = video["video_id"]
            yield _Asked(record_id=name, video=name, references=tuple(captions[name]))


MSRVTT_CAP = _videos(
    "msrvtt-cap",
    "MSR-VTT captions",
    "MSRVTT-CAP",
    _msrvtt_captions,
    lambda split: (
        Needed(path=_msrvtt_file(split), source=_MSRVTT),
        _frames_needed("video7010"),
    ),
    _MSRVTT,
    other_splits=("validate", "train"),
    stride=9,
    scored="2,094 of the 2,990 videos",
    max_new_tokens=32,
)


def _numbered_questions(folder: str, video: str, place: Place) -> Iterator[_Asked]:
    """A list of questions with one answer each; videos have numbers."""
    for entry in read_json(place.folder / folder / f"{place.split}_qa.json"):
        yield _Asked(
            record_id=str(entry["id"]),
            video=video.format(entry["video_id"]),
            references=(str(entry["answer"]),),
            question=entry["question"],
        )


def _numbered_needs(folder: str, video: str, split: str) -> tuple[Needed, ...]:
    source = "https://github.com/xudejing/video-question-answering"
    return (
        Needed(path=f"{folder}/{split}_qa.json", source=f"{source}, {folder}.zip"),
        _frames_needed(video.format(1301)),
    )


MSRVTT_QA = _videos(
    "msrvtt-qa",
    "MSR-VTT questions",
    "MSRVTT-QA",
    partial(_numbered_questions, "MSRVTT-QA", "video{}"),
    partial(_numbered_needs, "MSRVTT-QA", "video{}"),
    "https://github.com/xudejing/video-question-answering",
    other_splits=("val", "train"),
    stride=9,
    scored="51,680 of the 72,821 questions",
)
MSVD_QA = _videos(
    "msvd-qa",
    "MSVD questions",
    "MSVD-QA",
    partial(_numbered_questions, "MSVD-QA", "vid{}"),
    partial(_numbered_needs, "MSVD-QA", "vid{}"),
    "https://github.com/xudejing/video-question-answering",
    other_splits=("val", "train"),
    stride=26,
    scored="10,136 of the 13,157 questions",
    num_frames=8,
)

_ACTIVITYNET_FILES = {"test": "val_2", "val": "val_1", "train": "train"}
_ACTIVITYNET_VIDEO = "v_1QIUV7WYKXg"


def _activitynet_captions(place: Place) -> Iterator[_Asked]:
    """Each sentence is about a part of the video: begin and end in seconds."""
    name = f"{_ACTIVITYNET_FILES[place.split]}.json"
    for video, entry in read_json(place.folder / "captions" / name).items():
        duration = float(entry["duration"])
        pairs = zip(entry["timestamps"], entry["sentences"], strict=True)
        for number, ((begin, end), sentence) in enumerate(pairs):
            yield _Asked(
                record_id=f"{video}-{number}",
                video=video,
                references=(sentence.strip(),),
                part=(begin / duration, end / duration),
            )


ACTIVITYNET_CAP = _videos(
    "activitynet-cap",
    "ActivityNet captions",
    "ActivityNet-CAP",
    _activitynet_captions,
    lambda split: (
        Needed(
            path=f"captions/{_ACTIVITYNET_FILES[split]}.json",
            source="https://cs.stanford.edu/people/ranjaykrishna/densevid, captions.zip",
        ),
        _frames_needed(_ACTIVITYNET_VIDEO),
    ),
    "https://cs.stanford.edu/people/ranjaykrishna/densevid",
    other_splits=("val", "train"),
    stride=30,
    scored="13,982 parts of videos; test is val_2, val is val_1",
)

_ACTIVITYNET_TYPES = (
    "motion", "spatial", "temporal", "yes/no", "color", "object", "location", "number", "other",
)  # fmt: skip
_ACTIVITYNET_QA = "https://github.com/MILVLG/activitynet-qa"


def _activitynet_questions(place: Place) -> Iterator[_Asked]:
    """Questions and answers lie in two files, joined by the question's id."""
    folder = place.folder / "activitynet-qa" / "dataset"
    answers = {one["question_id"]: one for one in read_json(folder / f"{place.split}_a.json")}
    for entry in read_json(folder / f"{place.split}_q.json"):
        answer = answers[entry["question_id"]]
        yield _Asked(
            record_id=entry["question_id"],
            video=f"v_{entry['video_name']}",
            references=(str(answer["answer"]),),
            question=entry["question"],
            group=_ACTIVITYNET_TYPES[int(answer["type"])],
        )


ACTIVITYNET_QA = _videos(
    "activitynet-qa",
    "ActivityNet questions",
    "ActivityNet-QA",
    _activitynet_questions,
    lambda split: (
        *(
            Needed(path=f"activitynet-qa/dataset/{split}_{kind}.json", source=_ACTIVITYNET_QA)
            for kind in "qa"
        ),
        _frames_needed(_ACTIVITYNET_VIDEO),
    ),
    _ACTIVITYNET_QA,
    other_splits=("val", "train"),
    stride=70,
    scored="6,900 of the 8,000 questions",
)

_VATEX = "https://eric-xw.github.io/vatex-website"
_VATEX_FILES = {
    "test": "vatex_public_test_english_v1.1.json",
    "val": "vatex_validation_v1.0.json",
    "train": "vatex_training_v1.0.json",
}


def _vatex_captions(place: Place) -> Iterator[_Asked]:
    """`videoID` is the video's name on YouTube with begin and end of the clip."""
    for entry in read_json(place.folder / _VATEX_FILES[place.split]):
        name = entry["videoID"]
        yield _Asked(record_id=name, video=name, references=tuple(entry["enCap"]))


VATEX = _videos(
    "vatex",
    "VATEX",
    "VATEX",
    _vatex_captions,
    lambda split: (
        Needed(path=_VATEX_FILES[split], source=f"{_VATEX}/download.html"),
        _frames_needed("Ptf_2VRj-V0_000122_000132"),
    ),
    _VATEX,
    other_splits=("val", "train"),
    stride=7,
    scored="5,135 of the 6,000 videos of the public test set",
)
