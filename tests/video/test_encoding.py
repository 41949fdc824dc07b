"""Films are written with the times of their images, whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from paligemma import OptionError
from paligemma.video import encoding, open_clip
from paligemma.video.encoding import write_film
from tests.video.clips import number_of, numbered

TIMES = {
    "25 frames a second": [k / 25 for k in range(10)],
    "30000/1001 frames a second": [k * 1001 / 30000 for k in range(10)],
    "a variable rate": [0.0, 0.1, 0.5, 0.52, 1.7],
    "one image": [0.0],
}


@pytest.mark.parametrize("times", TIMES.values(), ids=TIMES)
@pytest.mark.parametrize("codec", ["h264", "mpeg4"])
def test_each_image_is_shown_at_its_time(
    times: list[float], codec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if codec == "mpeg4":  # a build of FFmpeg without x264
        monkeypatch.setattr(encoding, "_encoder", lambda: "mpeg4")
    write_film(tmp_path / "f.mp4", [(t, numbered(k, (64, 48))) for k, t in enumerate(times)])
    clip = open_clip(tmp_path / "f.mp4")
    frames = list(clip.frames())
    assert [frame.time_s for frame in frames] == pytest.approx(times, abs=1e-4)
    assert [number_of(frame.image) for frame in frames] == list(range(len(times)))
    last = times[-1] - times[-2] if len(times) > 1 else 0.04
    assert clip.info.duration_s == pytest.approx(times[-1] + last, abs=1e-3)
    assert clip.info.codec == codec


def test_an_odd_side_is_filled_up_without_a_dark_edge(tmp_path: Path) -> None:
    white = Image.new("RGB", (33, 17), "white")
    write_film(tmp_path / "f.mp4", [(0.0, white)])
    [frame] = open_clip(tmp_path / "f.mp4").frames()
    assert frame.image.size == (34, 18)
    assert np.asarray(frame.image).min() > 240


def test_a_film_that_breaks_off_leaves_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "f.mp4").write_bytes(b"old")

    def images() -> Iterator[tuple[float, Image.Image]]:
        yield 0.0, numbered(0, (64, 48))
        yield 0.1, numbered(1, (64, 48))
        raise RuntimeError("lost")

    with pytest.raises(RuntimeError, match="lost"):
        write_film(tmp_path / "f.mp4", images())
    assert [path.name for path in tmp_path.iterdir()] == ["f.mp4"]
    assert (tmp_path / "f.mp4").read_bytes() == b"old"


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    small, large = numbered(0, (64, 48)), numbered(0, (64, 64))
    for name, images, problem in [
        ("f.avi", [(0.0, small)], "not a name for a film. Choose one that ends in .mp4"),
        ("no/f.mp4", [(0.0, small)], "does not exist"),
        ("f.mp4", [], "no image"),
        ("f.mp4", [(0.0, small), (0.0, small)], "not later than the one before"),
        ("f.mp4", [(0.0, small), (1.0, large)], "64, 48.*64, 64"),
    ]:
        with pytest.raises(OptionError, match=problem):
            write_film(tmp_path / name, images)
    assert list(tmp_path.iterdir()) == []
