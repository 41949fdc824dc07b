"""MSR-VTT, MSVD, ActivityNet and VATEX: captions of videos, and questions about them.

A video is a file, of which one frame in `stride` is looked at, or a folder with its frames, which
the user has extracted. A record uses some of them, evenly spaced, as the images of one question.
The scores of Objaverse
Multiview are here too, but its files are not read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from paligemma.data.record import Record
from paligemma.errors import DataError
from paligemma.evals.datasets.benchmark import Benchmark, Item, SplitSource
from paligemma.evals.datasets.files import group_values, read_json, read_lines
from paligemma.evals.datasets.prompts import ANSWER, CAPTION
from paligemma.evals.metrics.captions import Cider
from paligemma.evals.metrics.texts import ExactMatch
from paligemma.video.sampling import (
    FILM_SUFFIXES,
    SampledFilm,
    evenly_spaced,
    frames_within,
)

_VIDEOS = "videos"
_FRAMES = "frames"
_UNAVAILABLE = "unavailable.txt"
_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
_SHOWN = 5


class _Question(NamedTuple):
    """A question about a video or a part of it, or a caption to write."""

    record_id: str
    video: str
    """The name of its file, without the suffix, or of its folder of frames."""
    references: tuple[str, ...]
    text: str = ""
    """Empty for a caption."""
    group: str = ""
    part: tuple[float, float] | None = None
    """Beginning and end, as fractions of the video; None for all of it."""


def _frames_of(folder: Path) -> list[Path]:
    """The frames by number, with or without leading zeros."""
    if not folder.is_dir():
        return []
    images = [path for path in folder.iterdir() if path.suffix.lower() in _IMAGE_SUFFIXES]
    return sorted(images, key=lambda path: (len(path.name), path.name))


def _film_of(folder: Path, video: str) -> Path | None:
    """The file of a video, whose name may have dots."""
    paths = (folder / f"{video}{suffix}" for suffix in FILM_SUFFIXES)
    return next((path for path in paths if path.is_file()), None)


def _read(
    questions: Callable[[SplitSource], Iterable[_Question]], stride: int, source: SplitSource
) -> Iterator[Item]:
    """Videos listed as unavailable are left out; all others must have a file, or frames."""
    lost: set[str] = set()
    for folder in (source.folder / _VIDEOS, source.folder / _FRAMES):
        if (unavailable := folder / _UNAVAILABLE).is_file():
            lost.update(read_lines(unavailable))
    asked = [question for question in questions(source) if question.video not in lost]
    names = dict.fromkeys(question.video for question in asked)
    films = {name: _film_of(source.folder / _VIDEOS, name) for name in names}
    frames = {
        name: [] if films[name] else _frames_of(source.folder / _FRAMES / name) for name in names
    }
    if missing := [name for name in names if not films[name] and not frames[name]]:
        raise _missing(missing, len(names), source)
    for question in asked:
        film = films[question.video]
        text = question.text
        images: Sequence[Any]
        files: Sequence[Path]
        if film is not None:
            sampled = SampledFilm(
                path=film, stride=stride, number=source.num_images, part=question.part
            )
            images, files = sampled.images(), [film]
        else:
            chosen: Sequence[Path] = frames[question.video]
            if question.part:
                chosen = frames_within(chosen, question.part)
            images = evenly_spaced(chosen, source.num_images)
            files = images
        record = Record(
            record_id=question.record_id,
            image=images[0],
            more_images=tuple(images[1:]),
            prefix=ANSWER.format(question=text) if text else CAPTION,
            suffix=question.references[0] if text else "",
            references=question.references,
            where=f"the video {film.name}" if film else "",
        )
        yield Item(record, question.group, files=tuple(files))


def _missing(missing: Sequence[str], number: int, source: SplitSource) -> DataError:
    named = ", ".join(f"{_VIDEOS}/{video}.mp4" for video in missing[:_SHOWN])
    more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
    return DataError(
        f"{len(missing)} of {number} videos are missing below {str(source.folder)!r}: "
        f"{named}{more}. Put each there as a file ({', '.join(FILM_SUFFIXES)}), or its frames into "
        f"a folder, {_FRAMES}/{missing[0]}/, as numbered images, evenly spaced from beginning to "
        f"end, such as 000001.jpg; {source.num_images} of them are used. To leave out videos that "
        f"are no longer available, list them in {_VIDEOS}/{_UNAVAILABLE}, one per line."
    )


def _frames(video: str) -> dict[str, str]:
    how = f"{_VIDEOS}/{video}.mp4, or a folder of its frames, {_FRAMES}/{video}/"
    return {f"{_VIDEOS}/ or {_FRAMES}/": f"the videos, each as {how}"}


def _note(stride: int, scored: str, num_frames: int = 16) -> str:
    """How the papers evaluated, by big_vision's configs."""
    return (
        f"{num_frames} frames, evenly spaced over one in {stride} of a video file, as in the "
        "papers, whose video reader is not published, or over all those in a folder; they scored "
        f"{scored}."
    )


def _msrvtt_file(split: str) -> str:
    return f"{'test' if split == 'test' else 'train_val'}_videodatainfo.json"


def _msrvtt_captions(source: SplitSource) -> Iterator[_Question]:
    """Videos and their twenty captions, in two lists of one file."""
    whole = read_json(source.folder / _msrvtt_file(source.split))
    captions = group_values((s["video_id"], s["caption"]) for s in whole["sentences"])
    for video in whole["videos"]:
        if video["split"] == source.split:
            name = video["video_id"]
            yield _Question(record_id=name, video=name, references=tuple(captions[name]))


def _numbered_questions(folder: str, video: str, source: SplitSource) -> Iterator[_Question]:
    """A list of questions with one answer each; videos are numbered."""
    for entry in read_json(source.folder / folder / f"{source.split}_qa.json"):
        yield _Question(
            record_id=str(entry["id"]),
            video=video.format(entry["video_id"]),
            references=(str(entry["answer"]),),
            text=entry["question"],
        )


def _numbered_files(folder: str, video: str, split: str) -> dict[str, str]:
    return {f"{folder}/{split}_qa.json": f"{_NUMBERED}, {folder}.zip", **_frames(video)}


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


_ACTIVITYNET_TYPES = (
    "motion", "spatial", "temporal", "yes/no", "color", "object", "location", "number", "other",
)  # fmt: skip


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


_MSRVTT = "https://www.microsoft.com/en-us/research/publication/msr-vtt"
_NUMBERED = "https://github.com/xudejing/video-question-answering"
_ACTIVITYNET = "https://cs.stanford.edu/people/ranjaykrishna/densevid"
_ACTIVITYNET_QA = "https://github.com/MILVLG/activitynet-qa"
_VATEX = "https://eric-xw.github.io/vatex-website"
_Captions = partial(
    Benchmark,
    task="caption",
    prompt=CAPTION,
    metrics={"CIDEr": Cider()},
    max_new_tokens=64,
    num_images=16,
)
_Questions = partial(Benchmark, metrics={"acc": ExactMatch()}, max_new_tokens=64, num_images=16)
BENCHMARKS = (
    _Captions(
        name="msrvtt-cap",
        title="MSR-VTT captions",
        splits={"test": ("MSRVTT-CAP",), "validate": (), "train": ()},
        files=lambda split: {_msrvtt_file(split): _MSRVTT, **_frames("video7010")},
        read=partial(_read, _msrvtt_captions, 9),
        homepage=_MSRVTT,
        max_new_tokens=32,
        note=_note(9, "2,094 of the 2,990 videos"),
    ),
    _Captions(
        name="activitynet-cap",
        title="ActivityNet captions",
        splits={"test": ("ActivityNet-CAP",), "val": (), "train": ()},
        files=lambda split: {
            f"captions/{_ACTIVITYNET_FILES[split]}.json": f"{_ACTIVITYNET}, captions.zip",
            **_frames(_ACTIVITYNET_VIDEO),
        },
        read=partial(_read, _activitynet_captions, 30),
        homepage=_ACTIVITYNET,
        note=_note(30, "13,982 parts of videos; test is val_2, val is val_1"),
    ),
    _Captions(
        name="vatex",
        title="VATEX",
        splits={"test": ("VATEX",), "val": (), "train": ()},
        files=lambda split: {
            _VATEX_FILES[split]: f"{_VATEX}/download.html",
            **_frames("Ptf_2VRj-V0_000122_000132"),
        },
        read=partial(_read, _vatex_captions, 7),
        homepage=_VATEX,
        note=_note(7, "5,135 of the 6,000 videos of the public test set"),
    ),
    _Questions(
        name="msrvtt-qa",
        title="MSR-VTT questions",
        splits={"test": ("MSRVTT-QA",), "val": (), "train": ()},
        files=partial(_numbered_files, "MSRVTT-QA", "video1301"),
        read=partial(_read, partial(_numbered_questions, "MSRVTT-QA", "video{}"), 9),
        homepage=_NUMBERED,
        note=_note(9, "51,680 of the 72,821 questions"),
    ),
    _Questions(
        name="activitynet-qa",
        title="ActivityNet questions",
        splits={"test": ("ActivityNet-QA",), "val": (), "train": ()},
        files=lambda split: {
            f"activitynet-qa/dataset/{split}_q.json": _ACTIVITYNET_QA,
            f"activitynet-qa/dataset/{split}_a.json": _ACTIVITYNET_QA,
            **_frames(_ACTIVITYNET_VIDEO),
        },
        read=partial(_read, _activitynet_questions, 70),
        homepage=_ACTIVITYNET_QA,
        note=_note(70, "6,900 of the 8,000 questions"),
    ),
    _Questions(
        name="msvd-qa",
        title="MSVD questions",
        splits={"test": ("MSVD-QA",), "val": (), "train": ()},
        files=partial(_numbered_files, "MSVD-QA", "vid1301"),
        read=partial(_read, partial(_numbered_questions, "MSVD-QA", "vid{}"), 26),
        homepage=_NUMBERED,
        num_images=8,
        note=_note(26, "10,136 of the 13,157 questions", num_frames=8),
    ),
    Benchmark(
        name="objaverse",
        title="Objaverse Multiview",
        metrics={},
        splits={"test": ("Objaverse Multiview",)},
        files=lambda split: {},
        read=lambda source: (),
        homepage="https://objaverse.allenai.org",
        max_new_tokens=64,
        not_read_because="its score needs Google's sentence encoder USEv4 and renderings that are "
        "not published",
    ),
)
