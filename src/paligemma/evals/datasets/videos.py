"""MSR-VTT, MSVD, ActivityNet and VATEX: captions of videos, and questions about them.

No video is decoded here. The user extracts the frames of each video into its own folder, and a
record uses some of them, evenly spaced, as the images of one question. The scores of Objaverse
Multiview are here too, but its files are not read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import NamedTuple

from paligemma.data.record import Record
from paligemma.errors import DataError
from paligemma.evals.datasets.benchmark import Benchmark, Item, Needed, SplitSource
from paligemma.evals.datasets.files import read_json, read_lines
from paligemma.evals.datasets.prompts import ANSWER, CAPTION
from paligemma.evals.metrics.captions import Cider
from paligemma.evals.metrics.texts import ExactMatch

_FRAMES = "frames"
_UNAVAILABLE = "unavailable.txt"
_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
_SHOWN = 5


class _Question(NamedTuple):
    """A question about a video or a part of it, or a caption to write."""

    record_id: str
    video: str
    """The name of its folder of frames."""
    references: tuple[str, ...]
    text: str = ""
    """Empty for a caption."""
    group: str = ""
    part: tuple[float, float] | None = None
    """Beginning and end, as fractions of the video; None for all of it."""


def evenly_spaced(frames: Sequence[Path], number: int) -> list[Path]:
    """The middle frame of each of `number` equal parts; too few frames are repeated from the start.

    So does big_vision (pp/proj/paligemma/video.py).

    >>> [path.name for path in evenly_spaced([Path(name) for name in "abcdef"], 3)]
    ['b', 'd', 'f']
    """
    if len(frames) < number:
        return list(islice(cycle(frames), number))
    return [frames[(2 * i + 1) * len(frames) // (2 * number)] for i in range(number)]


def _frames_of(folder: Path) -> list[Path]:
    """The frames by number, with or without leading zeros."""
    if not folder.is_dir():
        return []
    images = [path for path in folder.iterdir() if path.suffix.lower() in _IMAGE_SUFFIXES]
    return sorted(images, key=lambda path: (len(path.name), path.name))


def _within(frames: Sequence[Path], part: tuple[float, float]) -> Sequence[Path]:
    """The frames inside the part; frames are evenly spaced over the video."""
    begin, end = sorted(part)
    inside = [frame for i, frame in enumerate(frames) if begin <= (i + 0.5) / len(frames) <= end]
    middle = min(max(0.0, (begin + end) / 2), 1.0)
    return inside or [frames[min(int(middle * len(frames)), len(frames) - 1)]]


def _read(
    questions: Callable[[SplitSource], Iterable[_Question]], number: int, source: SplitSource
) -> Iterator[Item]:
    """Videos listed as unavailable are left out; all others must have frames."""
    folder = source.folder / _FRAMES
    unavailable = folder / _UNAVAILABLE
    lost = set(read_lines(unavailable) if unavailable.is_file() else ())
    asked = [question for question in questions(source) if question.video not in lost]
    frames = {video: _frames_of(folder / video) for video in dict.fromkeys(q.video for q in asked)}
    if missing := [video for video, images in frames.items() if not images]:
        named = ", ".join(f"{_FRAMES}/{video}/" for video in missing[:_SHOWN])
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        raise DataError(
            f"{len(missing)} of {len(frames)} videos have no frames below {str(source.folder)!r}: "
            f"{named}{more}. Each folder must hold the frames of one video as numbered images, "
            f"evenly spaced from beginning to end, such as 000001.jpg; {number} of them are used. "
            f"To leave out videos that are no longer available, list them in "
            f"{_FRAMES}/{_UNAVAILABLE}, one per line."
        )
    for question in asked:
        images = frames[question.video]
        if question.part:
            images = list(_within(images, question.part))
        first, *others = evenly_spaced(images, number)
        text = question.text
        record = Record(
            record_id=question.record_id,
            image=first,
            more_images=tuple(others),
            prefix=ANSWER.format(question=text) if text else CAPTION,
            suffix=question.references[0] if text else "",
            references=question.references,
        )
        yield Item(record, question.group, files=tuple(others))


def _frames_needed(video: str) -> Needed:
    return Needed(
        path=f"{_FRAMES}/",
        source=f"the videos, one folder each: ffmpeg -i {video}.mp4 {_FRAMES}/{video}/%06d.jpg",
    )


class _Evaluated(NamedTuple):
    """How the papers evaluated, by big_vision's configs."""

    stride: int
    scored: str
    num_frames: int = 16
    max_new_tokens: int = 64


def _video_benchmark(
    name: str,
    title: str,
    splits: dict[str, tuple[str, ...]],
    questions: Callable[[SplitSource], Iterable[_Question]],
    needs: Callable[[str], tuple[Needed, ...]],
    homepage: str,
    papers: _Evaluated,
) -> Benchmark:
    is_caption = splits["test"][0].endswith("CAP") or name == "vatex"
    return Benchmark(
        name=name,
        title=title,
        task="caption" if is_caption else "answer",
        prompt=CAPTION if is_caption else ANSWER,
        metrics={"CIDEr": Cider()} if is_caption else {"acc": ExactMatch()},
        splits=splits,
        needs=needs,
        read=partial(_read, questions, papers.num_frames),
        homepage=homepage,
        max_new_tokens=papers.max_new_tokens,
        num_images=papers.num_frames,
        note=f"{papers.num_frames} frames, evenly spaced over those in the folder; the papers took "
        f"one in {papers.stride}, with a video reader that is not published, and scored "
        f"{papers.scored}.",
    )


_MSRVTT = "https://www.microsoft.com/en-us/research/publication/msr-vtt"


def _msrvtt_file(split: str) -> str:
    return f"{'test' if split == 'test' else 'train_val'}_videodatainfo.json"


def _msrvtt_captions(source: SplitSource) -> Iterator[_Question]:
    """Videos and their twenty captions, in two lists of one file."""
    whole = read_json(source.folder / _msrvtt_file(source.split))
    captions: dict[str, list[str]] = {}
    for sentence in whole["sentences"]:
        captions.setdefault(sentence["video_id"], []).append(sentence["caption"])
    for video in whole["videos"]:
        if video["split"] == source.split:
            name = video["video_id"]
            yield _Question(record_id=name, video=name, references=tuple(captions[name]))


MSRVTT_CAP = _video_benchmark(
    "msrvtt-cap",
    "MSR-VTT captions",
    {"test": ("MSRVTT-CAP",), "validate": (), "train": ()},
    _msrvtt_captions,
    lambda split: (
        Needed(path=_msrvtt_file(split), source=_MSRVTT),
        _frames_needed("video7010"),
    ),
    _MSRVTT,
    _Evaluated(stride=9, scored="2,094 of the 2,990 videos", max_new_tokens=32),
)


def _numbered_questions(folder: str, video: str, source: SplitSource) -> Iterator[_Question]:
    """A list of questions with one answer each; videos are numbered."""
    for entry in read_json(source.folder / folder / f"{source.split}_qa.json"):
        yield _Question(
            record_id=str(entry["id"]),
            video=video.format(entry["video_id"]),
            references=(str(entry["answer"]),),
            text=entry["question"],
        )


def _numbered_needs(folder: str, video: str, split: str) -> tuple[Needed, ...]:
    source = "https://github.com/xudejing/video-question-answering"
    return (
        Needed(path=f"{folder}/{split}_qa.json", source=f"{source}, {folder}.zip"),
        _frames_needed(video.format(1301)),
    )


MSRVTT_QA = _video_benchmark(
    "msrvtt-qa",
    "MSR-VTT questions",
    {"test": ("MSRVTT-QA",), "val": (), "train": ()},
    partial(_numbered_questions, "MSRVTT-QA", "video{}"),
    partial(_numbered_needs, "MSRVTT-QA", "video{}"),
    "https://github.com/xudejing/video-question-answering",
    _Evaluated(stride=9, scored="51,680 of the 72,821 questions"),
)
MSVD_QA = _video_benchmark(
    "msvd-qa",
    "MSVD questions",
    {"test": ("MSVD-QA",), "val": (), "train": ()},
    partial(_numbered_questions, "MSVD-QA", "vid{}"),
    partial(_numbered_needs, "MSVD-QA", "vid{}"),
    "https://github.com/xudejing/video-question-answering",
    _Evaluated(stride=26, scored="10,136 of the 13,157 questions", num_frames=8),
)

_ACTIVITYNET_FILES = {"test": "val_2", "val": "val_1", "train": "train"}
_ACTIVITYNET_VIDEO = "v_1QIUV7WYKXg"


def _activitynet_captions(source: SplitSource) -> Iterator[_Question]:
    """Each sentence is about a part of the video, from begin to end in seconds."""
    name = f"{_ACTIVITYNET_FILES[source.split]}.json"
    for video, entry in read_json(source.folder / "captions" / name).items():
        duration = float(entry["duration"])
        pairs = zip(entry["timestamps"], entry["sentences"], strict=True)
        for number, ((begin, end), sentence) in enumerate(pairs):
            yield _Question(
                record_id=f"{video}-{number}",
                video=video,
                references=(sentence.strip(),),
                part=(begin / duration, end / duration),
            )


ACTIVITYNET_CAP = _video_benchmark(
    "activitynet-cap",
    "ActivityNet captions",
    {"test": ("ActivityNet-CAP",), "val": (), "train": ()},
    _activitynet_captions,
    lambda split: (
        Needed(
            path=f"captions/{_ACTIVITYNET_FILES[split]}.json",
            source="https://cs.stanford.edu/people/ranjaykrishna/densevid, captions.zip",
        ),
        _frames_needed(_ACTIVITYNET_VIDEO),
    ),
    "https://cs.stanford.edu/people/ranjaykrishna/densevid",
    _Evaluated(stride=30, scored="13,982 parts of videos; test is val_2, val is val_1"),
)

_ACTIVITYNET_TYPES = (
    "motion", "spatial", "temporal", "yes/no", "color", "object", "location", "number", "other",
)  # fmt: skip
_ACTIVITYNET_QA = "https://github.com/MILVLG/activitynet-qa"


def _activitynet_questions(source: SplitSource) -> Iterator[_Question]:
    """Questions and answers are in two files, joined by the question's id."""
    folder = source.folder / "activitynet-qa" / "dataset"
    answers = {a["question_id"]: a for a in read_json(folder / f"{source.split}_a.json")}
    for entry in read_json(folder / f"{source.split}_q.json"):
        answer = answers[entry["question_id"]]
        yield _Question(
            record_id=entry["question_id"],
            video=f"v_{entry['video_name']}",
            references=(str(answer["answer"]),),
            text=entry["question"],
            group=_ACTIVITYNET_TYPES[int(answer["type"])],
        )


ACTIVITYNET_QA = _video_benchmark(
    "activitynet-qa",
    "ActivityNet questions",
    {"test": ("ActivityNet-QA",), "val": (), "train": ()},
    _activitynet_questions,
    lambda split: (
        *(
            Needed(path=f"activitynet-qa/dataset/{split}_{kind}.json", source=_ACTIVITYNET_QA)
            for kind in "qa"
        ),
        _frames_needed(_ACTIVITYNET_VIDEO),
    ),
    _ACTIVITYNET_QA,
    _Evaluated(stride=70, scored="6,900 of the 8,000 questions"),
)

_VATEX = "https://eric-xw.github.io/vatex-website"
_VATEX_FILES = {
    "test": "vatex_public_test_english_v1.1.json",
    "val": "vatex_validation_v1.0.json",
    "train": "vatex_training_v1.0.json",
}


def _vatex_captions(source: SplitSource) -> Iterator[_Question]:
    """`videoID` is the video's id on YouTube with the clip's beginning and end."""
    for entry in read_json(source.folder / _VATEX_FILES[source.split]):
        name = entry["videoID"]
        yield _Question(record_id=name, video=name, references=tuple(entry["enCap"]))


VATEX = _video_benchmark(
    "vatex",
    "VATEX",
    {"test": ("VATEX",), "val": (), "train": ()},
    _vatex_captions,
    lambda split: (
        Needed(path=_VATEX_FILES[split], source=f"{_VATEX}/download.html"),
        _frames_needed("Ptf_2VRj-V0_000122_000132"),
    ),
    _VATEX,
    _Evaluated(stride=7, scored="5,135 of the 6,000 videos of the public test set"),
)

OBJAVERSE = Benchmark(
    name="objaverse",
    title="Objaverse Multiview",
    task="answer",
    prompt=ANSWER,
    metrics={},
    splits={"test": ("Objaverse Multiview",)},
    needs=lambda split: (),
    read=lambda source: (),
    homepage="https://objaverse.allenai.org",
    max_new_tokens=64,
    not_read_because="its score needs Google's sentence encoder USEv4 and renderings that are not "
    "published",
)
