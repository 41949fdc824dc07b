"""Lines of JSON that name a film: its frames are the images of the question."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from paligemma.data.open import open_data
from paligemma.data.record import Record
from paligemma.errors import ImageError
from tests.video.clips import film, number_of

FIELDS = {"prefix": "caption en", "suffix": "a grey film"}


def records(folder: Path, *lines: dict[str, Any]) -> list[Record]:
    path = folder / "train.jsonl"
    path.write_text("".join(json.dumps({**FIELDS, **line}) + "\n" for line in lines))
    return list(open_data(path))


def shown(record: Record) -> list[int]:
    return [number_of(image.rgb) for image in record.load_images()]


def test_frames_are_taken_with_a_stride_from_a_part(tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "a.mp4").write_bytes(film())
    whole, strided, part = records(
        tmp_path,
        {"video": "clips/a.mp4"},
        {"video": "clips/a.mp4", "frames": 4, "stride": 9},
        {"video": "clips/a.mp4", "frames": 2, "start_s": 1, "end_s": 1.4},
    )
    assert shown(whole) == [0, 1, 3, 4, 5, 6, 8, 9, 10, 11, 13, 14, 15, 16, 18, 19]
    assert shown(strided) == [0, 9, 18, 0]
    assert shown(part) == [11, 13]
    assert (whole.prefix, whole.suffix) == ("caption en", "a grey film")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"video": "b.mp4"}, "does not exist"),
        ({"video": 5}, "must be the path of a film"),
        ({"video": "a.mp4", "image": "a.png"}, 'has a "video" and "image"'),
        ({"video": "a.mp4", "objects": []}, 'has a "video" and "objects"'),
        ({"video": "a.mp4", "frames": 0}, "whole number of at least 1"),
        ({"video": "a.mp4", "stride": "9"}, "whole number of at least 1"),
        ({"video": "a.mp4", "start_s": "0:10"}, "must be seconds"),
        ({"video": "a.mp4", "start_s": 5, "end_s": 2}, "later than the start"),
    ],
)
def test_what_cannot_be_a_film_is_named_with_its_line(
    tmp_path: Path, line: dict[str, Any], message: str
) -> None:
    (tmp_path / "a.mp4").write_bytes(film([0.0, 0.1]))
    with pytest.raises(Exception, match=message) as caught:
        records(tmp_path, {"video": "a.mp4"}, line)
    assert "Line 2 of" in str(caught.value)


def test_a_film_that_cannot_be_read_is_an_error_of_its_record(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(film()[:300])
    (tmp_path / "list.mp4").write_text("ffconcat version 1.0\nfile a.mp4\n")
    (tmp_path / "b.mp4").write_bytes(film([0.0, 0.1]))
    cut, listed, late = records(
        tmp_path, {"video": "a.mp4"}, {"video": "list.mp4"}, {"video": "b.mp4", "start_s": 9}
    )
    for record, message in (
        (cut, "cannot be decoded"),
        (listed, "a list of other video files"),
        (late, "no frame from 9 s on"),
    ):
        with pytest.raises(ImageError, match=message):
            record.load_images()
