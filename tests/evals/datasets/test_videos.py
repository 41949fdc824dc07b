"""Videos as files or as folders of frames: what is taken, and the official lists of questions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from paligemma.data.record import Record
from paligemma.errors import DataError, ImageError
from paligemma.evals.datasets.open import open_benchmark
from paligemma.video.sampling import SampledFilm, evenly_spaced
from tests.evals.datasets.official import Official
from tests.video.clips import film, number_of


def video(official: Official, name: str, num_frames: int, pattern: str = "{:06d}.jpg") -> None:
    for number in range(1, num_frames + 1):
        official.picture(f"frames/{name}/{pattern.format(number)}", (4, 4))


def numbers(record: Record) -> list[int]:
    """The numbers in the names of the frames that a record takes."""
    frames = (record.image, *record.more_images)
    return [int("".join(filter(str.isdigit, Path(str(frame)).stem))) for frame in frames]


@pytest.mark.parametrize(
    ("available", "wanted", "taken"),
    [
        (16, 16, list(range(16))),
        (32, 16, list(range(1, 32, 2))),
        (17, 16, [*range(8), *range(9, 17)]),
        (5, 8, [0, 1, 2, 3, 4, 0, 1, 2]),
        (1, 3, [0, 0, 0]),
        (9, 1, [4]),
    ],
)
def test_frames_are_evenly_spaced_or_run_through_again(
    available: int, wanted: int, taken: list[int]
) -> None:
    frames = [Path(str(number)) for number in range(available)]
    assert [int(path.name) for path in evenly_spaced(frames, wanted)] == taken


def msrvtt(official: Official, *names: str) -> None:
    official.json(
        "test_videodatainfo.json",
        {
            "info": {"version": "1.0"},
            "videos": [
                {"id": 7010, "video_id": name, "split": "test", "category": 9, "start time": 1.0}
                for name in names
            ],
            "sentences": [
                {"caption": f"{name} {text}", "video_id": name, "sen_id": 3}
                for text in ("runs", "walks")
                for name in names
            ],
        },
    )


def test_msrvtt_captions_gather_the_sentences_of_a_video(official: Official) -> None:
    msrvtt(official, "video7010", "video7011")
    video(official, "video7010", 32)
    video(official, "video7011", 20, "frame_{}.png")  # without leading zeros
    official.text("frames/video7011/notes.txt", "no picture")
    data = open_benchmark("msrvtt-cap", official.folder)
    first, second = data.records
    assert (first.record_id, first.prefix, first.suffix) == ("video7010", "caption en", "")
    assert first.references == ("video7010 runs", "video7010 walks")
    assert numbers(first) == list(range(2, 33, 2))
    assert numbers(second) == sorted(numbers(second))
    assert len(first.load_images()) == len(numbers(second)) == data.benchmark.num_images == 16
    assert data.published[0].row == "MSRVTT-CAP"
    assert ("paligemma2-10b", 72.1) in {(score.model, score.value) for score in data.published}


def test_the_other_splits_of_msrvtt_lie_in_one_file(official: Official) -> None:
    official.json(
        "train_val_videodatainfo.json",
        {
            "videos": [
                {"video_id": "video1", "split": "train"},
                {"video_id": "video2", "split": "validate"},
            ],
            "sentences": [{"caption": f"c{n}", "video_id": f"video{n}"} for n in (1, 2)],
        },
    )
    video(official, "video2", 1)
    (record,) = open_benchmark("msrvtt-cap", official.folder, split="validate").records
    assert record.references == ("c2",)


@pytest.mark.parametrize(
    ("name", "folder", "prefix", "num_frames"),
    [("msrvtt-qa", "MSRVTT-QA", "video", 16), ("msvd-qa", "MSVD-QA", "vid", 8)],
)
def test_questions_name_their_video_by_its_number(
    official: Official, name: str, folder: str, prefix: str, num_frames: int
) -> None:
    entries = [
        {"answer": "couch", "id": 5, "question": "what did he sit on?", "video_id": 1301},
        {"answer": "dog", "id": 6, "question": "what runs?", "video_id": 1301},
    ]
    official.json(f"{folder}/test_qa.json", entries)
    video(official, f"{prefix}1301", num_frames)
    data = open_benchmark(name, official.folder)
    assert [(r.record_id, r.prefix, r.suffix, r.references) for r in data.records] == [
        ("5", "answer en what did he sit on?", "couch", ("couch",)),
        ("6", "answer en what runs?", "dog", ("dog",)),
    ]
    assert numbers(data.records[0]) == list(range(1, num_frames + 1))
    assert data.task == "answer"


def test_a_sentence_of_activitynet_is_about_a_part_of_the_video(official: Official) -> None:
    entry = {
        "duration": 50.0,
        "timestamps": [[0, 50.0], [10.0, 30.0], [40.0, 30.0], [20.1, 20.2], [49.9, 61.0]],
        "sentences": [" All of it. ", "A middle.", "Turned round.", "A moment.", "Beyond the end."],
    }
    official.json("captions/val_2.json", {"v_QOlSCBRmfWY": entry})
    video(official, "v_QOlSCBRmfWY", 100)  # frame n stands at n / 2 - 0.25 seconds
    data = open_benchmark("activitynet-cap", official.folder)
    assert [record.references for record in data.records] == [
        ("All of it.",),
        ("A middle.",),
        ("Turned round.",),
        ("A moment.",),
        ("Beyond the end.",),
    ]
    assert data.records[1].record_id == "v_QOlSCBRmfWY-1"
    whole, middle, turned, moment, last = map(numbers, data.records)
    assert (whole[0], whole[-1]) == (4, 97)
    assert (middle[0], middle[-1]) == (22, 59)
    assert (turned[0], turned[-1]) == (61, 80)
    assert set(moment) == {41}  # none lies inside: the one that stands there
    assert set(last) == {100}


def test_activitynet_answers_meet_their_questions(official: Official) -> None:
    def entry(number: int, **more: Any) -> dict[str, Any]:
        return {"question_id": f"v_1QIUV7WYKXg_{number}"} | more

    folder = "activitynet-qa/dataset"
    official.json(
        f"{folder}/test_q.json",
        [
            entry(3, video_name="1QIUV7WYKXg", question="is the athlete wearing trousers"),
            entry(4, video_name="1QIUV7WYKXg", question="what color is it"),
        ],
    )
    answers = [entry(4, answer="red", type=4), entry(3, answer="yes", type=3)]
    official.json(f"{folder}/test_a.json", answers)
    video(official, "v_1QIUV7WYKXg", 16)
    data = open_benchmark("activitynet-qa", official.folder)
    assert [(r.prefix, r.references) for r in data.records] == [
        ("answer en is the athlete wearing trousers", ("yes",)),
        ("answer en what color is it", ("red",)),
    ]
    assert data.groups == ("yes/no", "color")
    assert not data.benchmark.mean_of_groups


def test_vatex_takes_the_captions_in_english(official: Official) -> None:
    name = "Ptf_2VRj-V0_000122_000132"
    official.json(
        "vatex_validation_v1.0.json",
        [{"videoID": name, "enCap": ["a", "b"], "chCap": ["一", "二"]}],
    )
    video(official, name, 3)
    (record,) = open_benchmark("vatex", official.folder, split="val").records
    assert (record.record_id, record.references) == (name, ("a", "b"))
    assert numbers(record) == [1, 2, 3] * 5 + [1]


def test_videos_without_frames_are_named_with_what_is_expected(official: Official) -> None:
    msrvtt(official, *(f"video{number}" for number in range(8)))
    video(official, "video0", 2)
    official.text("frames/video1/video1.mp4", "not a frame")
    with pytest.raises(DataError) as caught:
        open_benchmark("msrvtt-cap", official.folder)
    message = str(caught.value)
    assert "7 of 8 videos are missing" in message
    assert "videos/video1.mp4, videos/video2.mp4" in message
    assert "frames/video1/" in message
    assert "and 2 more" in message
    assert "000001.jpg" in message
    assert "videos/unavailable.txt" in message


def film_file(official: Official, name: str, num_frames: int) -> None:
    path = official.folder / "videos" / name
    path.parent.mkdir(exist_ok=True)
    suffix = {".mp4": ("mp4", "libx264"), ".avi": ("avi", "mpeg4")}[path.suffix]
    times = [k / 10 for k in range(num_frames)]
    path.write_bytes(film(times, container=suffix[0], codec=suffix[1], ticks=10))


def shown(record: Record) -> list[int]:
    return [number_of(image.rgb) for image in record.load_images()]


def test_video_files_are_sampled_with_the_stride_of_the_papers(official: Official) -> None:
    """One frame in 9 of 29 frames, run through again until there are 16."""
    msrvtt(official, "video0", "video1")
    film_file(official, "video0.mp4", 29)
    video(official, "video1", 3)
    from_file, from_folder = open_benchmark("msrvtt-cap", official.folder).records
    assert shown(from_file) == [0, 9, 18, 27] * 4
    assert numbers(from_folder) == [1, 2, 3] * 5 + [1]
    assert from_file.image_keys()[0] == from_file.image_keys()[4]


def test_a_part_of_a_video_file_has_its_own_frames(official: Official) -> None:
    entry = {"duration": 2.7, "timestamps": [[0, 1.0], [2.0, 2.7]], "sentences": ["a", "b"]}
    official.json("captions/val_2.json", {"v_a.b": entry})
    film_file(official, "v_a.b.avi", 27)
    first, second = open_benchmark("activitynet-cap", official.folder).records
    assert shown(first) == shown(second) == [0] * 16  # one frame in 30
    sampled = SampledFilm(
        path=official.folder / "videos" / "v_a.b.avi", stride=3, number=3, part=(0.5, 1.0)
    )
    assert [number_of(image()) for image in sampled.images()] == [12, 18, 24]


def test_a_damaged_video_file_is_an_error_of_its_record(official: Official) -> None:
    msrvtt(official, "video0")
    film_file(official, "video0.mp4", 5)
    path = official.folder / "videos" / "video0.mp4"
    path.write_bytes(path.read_bytes()[:200])
    (record,) = open_benchmark("msrvtt-cap", official.folder).records
    with pytest.raises(ImageError, match=r"the video video0\.mp4: .* cannot be decoded"):
        replace(record, more_images=()).load_image()


def test_videos_that_a_list_names_as_lost_are_left_out(official: Official) -> None:
    msrvtt(official, "video0", "video1")
    video(official, "video0", 2)
    official.text("frames/unavailable.txt", "video1\n\n")
    (record,) = open_benchmark("msrvtt-cap", official.folder).records
    assert record.record_id == "video0"
    official.text("frames/unavailable.txt", "video1\nvideo0\n")
    with pytest.raises(DataError, match="have no records of the split 'test'"):
        open_benchmark("msrvtt-cap", official.folder)


def test_a_video_without_a_length_is_an_error_of_the_files(official: Official) -> None:
    entry = {"duration": 0, "timestamps": [[0, 1]], "sentences": ["a"]}
    official.json("captions/val_2.json", {"v_a": entry})
    video(official, "v_a", 1)
    with pytest.raises(DataError, match=r"not in the official format \(ZeroDivisionError"):
        open_benchmark("activitynet-cap", official.folder)
