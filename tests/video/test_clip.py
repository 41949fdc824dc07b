"""Films are opened safely, and their frames come upright, at the right times, in bounded memory."""

from __future__ import annotations

import gc
import io
import os
import re
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from paligemma import OptionError
from paligemma.errors import VideoError
from paligemma.video import Clip, ClipLimits, open_clip
from tests.video.clips import film, number_of, numbered

FORMATS = [
    ("mp4", "libx264"),
    ("mov", "mpeg4"),
    ("matroska", "libx264"),
    ("webm", "libvpx"),
    ("avi", "mpeg4"),
]


def seen(clip: Clip, **options: object) -> list[tuple[float, int]]:
    """Time and number of each frame."""
    frames = clip.frames(**options)  # type: ignore[arg-type]
    return [(round(frame.time_s, 3), number_of(frame.image)) for frame in frames]


@pytest.mark.parametrize(("container", "codec"), FORMATS)
def test_every_container_gives_its_frames_with_their_times(container: str, codec: str) -> None:
    clip = open_clip(film(container=container, codec=codec, ticks=10))
    assert seen(clip) == [(k / 10, k) for k in range(20)]
    assert (clip.info.width, clip.info.height) == (64, 48)
    assert clip.info.duration_s == pytest.approx(2.0, abs=0.01)
    assert clip.problems == ()


def test_a_frame_is_shown_until_the_next_one() -> None:
    clip = open_clip(film([0.0, 0.25, 0.8, 1.6]))
    wanted = [0.0, 0.2, 0.25, 0.79, 0.8, 1.5, 1.6]
    assert [n for _, n in seen(clip, times=wanted)] == [0, 0, 1, 1, 2, 2, 3]
    assert [t for t, _ in seen(clip, every_s=0.1, end_s=1.7)] == [0.0, 0.25, 0.8, 1.6]
    assert seen(clip, times=[50.0]) == []


def test_every_so_many_seconds_counts_from_the_start_and_stops_before_the_end() -> None:
    clip = open_clip(film())
    assert seen(clip, every_s=0.3, start_s=0.5, end_s=1.4) == [(0.5, 5), (0.8, 8), (1.1, 11)]
    assert seen(clip, fps=2) == [(0.0, 0), (0.5, 5), (1.0, 10), (1.5, 15)]
    assert seen(clip, start_s=1.7) == [(1.7, 17), (1.8, 18), (1.9, 19)]
    assert seen(clip, fps=1000, end_s=0.3) == [(0.0, 0), (0.1, 1), (0.2, 2)]


@pytest.mark.parametrize("container", ["mp4", "matroska"])
def test_times_count_from_the_beginning_that_players_show(container: str) -> None:
    """Time stamps of a part cut out of a longer film begin where the part did."""
    clip = open_clip(film([7.0, 7.1, 7.2], container=container))
    assert seen(clip) == [(0.0, 0), (0.1, 1), (0.2, 2)]
    assert clip.info.duration_s < 1
    assert clip.problems == ()


def test_a_length_that_the_file_does_not_say_is_measured() -> None:
    """Browsers record WebM without a length."""
    data = film(container="webm", codec="libvpx", live="1")
    clip = open_clip(data)
    assert clip.info.duration_s == pytest.approx(1.9, abs=0.11)
    assert len(seen(clip)) == 20


@pytest.mark.parametrize(
    ("rotation", "corner"), [(0, "tl"), (90, "bl"), (180, "br"), (-90, "tr"), (270, "tr")]
)
def test_frames_are_turned_upright(rotation: int, corner: str) -> None:
    """Counterclockwise, as FFmpeg writes it: -90 is a phone held upright."""
    clip = open_clip(film(rotation=rotation))
    [frame, *_] = clip.frames()
    assert frame.image.size == ((48, 64) if rotation % 180 else (64, 48))
    assert (clip.info.width, clip.info.height) == frame.image.size
    grey = np.asarray(frame.image.convert("L"))
    corners = {"tl": grey[0, 0], "tr": grey[0, -1], "bl": grey[-1, 0], "br": grey[-1, -1]}
    assert {name for name, value in corners.items() if value > 200} == {corner}


def with_matrix(data: bytes, a: float, b: float, c: float, d: float) -> bytes:
    """The MP4 file with another display matrix in its track header."""
    start = data.index(b"tkhd") + 4 + 40
    assert struct.unpack_from(">9i", data, start)[8] == 1 << 30, "not the matrix"
    fixed = [round(value * 65536) for value in (a, b, 0, c, d, 0, 0, 0)]
    return data[:start] + struct.pack(">9i", *fixed, 1 << 30) + data[start + 36 :]


def test_a_mirrored_film_is_mirrored_back() -> None:
    clip = open_clip(with_matrix(film(), -1, 0, 0, 1))
    [frame, *_] = clip.frames()
    grey = np.asarray(frame.image.convert("L"))
    assert grey[0, -1] > 200
    assert grey[0, 0] < 100


def test_a_film_turned_by_an_odd_angle_is_left_and_said() -> None:
    clip = open_clip(with_matrix(film(), 0.8, 0.6, -0.6, 0.8))
    assert (clip.info.width, clip.info.height) == (64, 48)
    assert any("odd angle" in problem for problem in clip.problems)


def test_a_film_of_a_camera_s_jpegs_is_turned_by_their_exif_data() -> None:
    """PyAV cannot list the side data of such a frame."""
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise
    with av.open(file, "w", format="avi") as output:
        stream = output.add_stream("mjpeg", rate=10)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        for number in range(3):
            picture = io.BytesIO()
            numbered(number, (64, 48)).save(picture, "JPEG", exif=exif)
            packet = av.Packet(picture.getvalue())
            packet.stream, packet.time_base = stream, Fraction(1, 10)
            packet.pts = packet.dts = number
            output.mux(packet)
    clip = open_clip(file.getvalue())
    assert seen(clip) == [(k / 10, k) for k in range(3)]
    assert {frame.image.size for frame in clip.frames()} == {(48, 64)}
    assert clip.problems == ()


@pytest.mark.parametrize(("container", "fps"), [("mp4", 2.7), ("matroska", 10)])
def test_a_film_of_variable_rate_lasts_until_its_last_frame_ends(
    container: str, fps: float
) -> None:
    """An MP4 file states 2.6 s here: until the end of the frame that is decoded last."""
    times = [0.0, 0.04, 0.5, 0.51, 2.0, 2.01, 9.0]
    clip = open_clip(film(times, container=container))
    assert clip.info.duration_s == pytest.approx(9.1, abs=0.01)
    assert clip.info.frames_per_second == pytest.approx(fps, abs=0.1)
    assert [t for t, _ in seen(clip)] == times
    assert clip.problems == ()


def test_the_rate_is_told_of_a_film_that_is_read_twice_for_its_length() -> None:
    """A first frame that comes late leaves the stated length of a Matroska file in doubt."""
    clip = open_clip(film([1000, 1001, 1002], container="matroska"))
    assert clip.info.frames_per_second == 10
    assert seen(clip) == [(0.0, 0), (1.0, 1), (2.0, 2)]


def test_frames_are_freed_without_the_garbage_collector() -> None:
    """A frame of a large film is megabytes: hundreds of them must not wait for it."""
    clip = open_clip(film())
    gc.collect()
    gc.disable()
    try:
        most = 0
        for _ in clip.frames():
            most = max(most, sum(isinstance(each, av.VideoFrame) for each in gc.get_objects()))
    finally:
        gc.enable()
    assert 0 < most <= 4


def test_of_several_streams_the_best_is_taken_and_named() -> None:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        streams = []
        for size in ((32, 32), (96, 64)):
            stream = output.add_stream("libx264", rate=10)
            assert isinstance(stream, av.VideoStream)
            stream.width, stream.height = size
            stream.pix_fmt = "yuv420p"
            streams.append((stream, size))
        streams[1][0].disposition = av.stream.Disposition.default
        for number in range(8):
            for stream, size in streams:
                output.mux(stream.encode(av.VideoFrame.from_image(_noise(number, size))))
        for stream, _ in streams:
            output.mux(stream.encode(None))
    clip = open_clip(file.getvalue())
    assert (clip.info.width, clip.info.height) == (96, 64)
    assert (clip.info.stream_index, clip.info.num_video_streams) == (1, 2)
    assert "stream 1, the best of 2" in clip.info.stream


def test_seeking_gives_the_same_frames_as_decoding_everything() -> None:
    data = film([k / 2 for k in range(200)], key_gap=12, size=(32, 32), draw=_by_second)
    clip = open_clip(data)
    wanted = [3.2, 17.0, 17.3, 61.9, 62.0, 98.6]
    everything = [(f.time_s, f.image.tobytes()) for f in clip.frames()]
    expected = [next(e for e in reversed(everything) if e[0] <= t + 1e-6) for t in wanted]
    limited = open_clip(data, ClipLimits(max_frames=110))  # decoding everything takes 200
    found = [(f.time_s, f.image.tobytes()) for f in limited.frames(times=wanted)]
    assert found == expected


def _by_second(number: int, size: tuple[int, int]) -> Image.Image:
    return numbered(number // 2 % 28, size)


def test_a_cut_film_gives_what_comes_before_the_cut_and_says_so() -> None:
    data = film([k / 10 for k in range(60)], movflags="faststart", size=(96, 64), draw=_noise)
    clip = open_clip(data[: len(data) // 2])
    times = [frame.time_s for frame in clip.frames()]
    assert 10 < len(times) < 50
    assert times == sorted(times)
    assert len(clip.problems) >= 1
    assert all(re.search(r"\d s", problem) for problem in clip.problems)


def _noise(number: int, size: tuple[int, int]) -> Image.Image:
    generator = np.random.default_rng(number)
    return Image.fromarray(generator.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8))


def test_damage_in_the_middle_costs_the_frames_that_depend_on_it() -> None:
    data = bytearray(film([k / 10 for k in range(40)], size=(96, 96), draw=_noise))
    middle = len(data) // 2
    data[middle : middle + 3000] = bytes(3000)
    clip = open_clip(bytes(data))
    assert 10 <= len(list(clip.frames())) <= 40
    assert any("damaged" in problem for problem in clip.problems)


# What is no film


CONCAT = b"ffconcat version 1.0\nfile other.mp4\n"
PLAYLIST = b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nother.mp4\n#EXT-X-ENDLIST\n"


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (b"", "is empty"),
        (CONCAT, "a list of other video files"),
        (PLAYLIST, "a playlist"),
        (b"WEBVTT\n\n00:00.000 --> 00:01.000\nHello\n", "subtitles"),
        (b"1\n00:00:00,000 --> 00:00:01,000\nHello\n", "subtitles"),
        (b"Just a letter, named like a video.", "a text file"),
        (b"\x89PNG\r\n\x1a\n" + bytes(50), "a PNG image"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "an image"),
        (b"\0\0\0\x18ftypavif\0\0\0\0avifmif1", "an image"),
        (os.urandom(1) + bytes(2000), "unknown format"),
        (b"\0\0\0\x18ftypisom\0\0\0\0isommp41" + bytes(500), "cannot be decoded"),
        (b"\x1a\x45\xdf\xa3" + bytes(500), "cannot be decoded"),
        (b"RIFF\x10\0\0\0AVI " + bytes(500), "cannot be decoded"),
    ],
)
def test_what_is_no_film_ends_in_one_clear_error(
    contents: bytes, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(contents)
    with pytest.raises(VideoError, match=message) as caught:
        open_clip(path)
    assert str(caught.value).startswith("'clip.mp4' ")
    with pytest.raises(VideoError, match=message):
        open_clip(contents)


@pytest.mark.parametrize("text", [CONCAT, PLAYLIST], ids=["ffconcat", "HLS"])
def test_no_file_is_opened_but_the_film_itself(
    text: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where our own look at the first bytes is fooled, FFmpeg is told the format."""
    monkeypatch.chdir(tmp_path)
    Path("other.mp4").write_bytes(film())
    for start in (b"\0\0\0 ftypisom", b"\x1a\x45\xdf\xa3", b"RIFF\0\0\0\0AVI "):
        with pytest.raises(VideoError):
            open_clip(start + text)


def test_references_to_other_files_inside_a_film_are_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A QuickTime file can say that its frames lie in another file."""
    monkeypatch.chdir(tmp_path)
    data = film(container="mov")
    Path("other.mov").write_bytes(data)
    start = data.index(b"dref") - 4
    [length] = struct.unpack_from(">I", data, start)
    assert data[start + 16 : start + length] == b"\0\0\0\x0curl \0\0\0\x01"
    reference = b"\0\0\0\x16url \0\0\0\0other.mov\0"
    dref = struct.pack(">I", 16 + len(reference)) + data[start + 4 : start + 16] + reference
    # The index is the last box of the file, so that nothing behind it moves.
    grown = bytearray(data[:start] + dref + data[start + length :])
    for name in (b"moov", b"trak", b"mdia", b"minf", b"dinf"):
        at = data.index(name) - 4
        [size] = struct.unpack_from(">I", grown, at)
        struct.pack_into(">I", grown, at, size + len(dref) - length)
    media = data.index(b"mdat") + 4
    for at in range(media, media + 600):
        grown[at] = 0  # what is shown would have to come from the other file
    try:
        found = list(open_clip(bytes(grown)).frames())
    except VideoError:
        found = []
    assert len(found) < 20


def test_names_are_never_patterns_or_addresses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for number in range(3):
        numbered(number, (32, 32)).save(f"scene_{number:04d}.png")
    with pytest.raises(VideoError, match="does not exist"):
        open_clip("scene_%04d.png")
    Path("scene_%04d.png").write_bytes(Path("scene_0000.png").read_bytes())
    with pytest.raises(VideoError, match="PNG image"):
        open_clip("scene_%04d.png")
    for address in ("https://example.org/clip.mp4", "rtsp://example.org/x", "concat:a.mp4|b.mp4"):
        with pytest.raises(VideoError, match="is an address"):
            open_clip(address)
    with pytest.raises(VideoError, match="is a folder"):
        open_clip(tmp_path)
    with pytest.raises(VideoError, match="not BytesIO"):
        open_clip(io.BytesIO(film()))  # type: ignore[arg-type]
    os.mkfifo("pipe.mp4")
    with pytest.raises(VideoError, match="device or pipe"):
        open_clip("pipe.mp4")


def test_sound_with_a_cover_is_no_film() -> None:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        sound = output.add_stream("aac", rate=8000)
        assert isinstance(sound, av.AudioStream)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.rate = 8000
        output.mux(sound.encode(frame))
        output.mux(sound.encode(None))
    with pytest.raises(VideoError, match="no video stream, only: audio"):
        open_clip(file.getvalue())


# Limits


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (ClipLimits(max_file_bytes=100), "larger than"),
        (ClipLimits(max_seconds=1.0), "2 s long"),
        (ClipLimits(max_pixels=1000), "64 x 48 pixels"),
        (ClipLimits(max_frames=3), "More than 3 frames"),
        (ClipLimits(max_decoding_seconds=0.0), "took more than 0 s"),
    ],
)
def test_limits_end_in_one_clear_error(limits: ClipLimits, message: str) -> None:
    with pytest.raises(VideoError, match=message):
        list(open_clip(film(), limits).frames())


def test_a_pass_can_be_left_and_begun_again(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(film())
    clip = open_clip(path)
    for _ in range(50):
        frames = clip.frames()
        assert number_of(next(frames).image) == 0
        frames.close()
    first, second = clip.frames(), clip.frames()
    assert [number_of(next(first).image) for _ in range(3)] == [0, 1, 2]
    assert number_of(next(second).image) == 0
    held = {os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.exists()}
    assert str(path) in held
    first.close()
    second.close()
    names = [os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.exists()]
    assert str(path) not in names


def test_what_cannot_be_asked_is_said_at_once() -> None:
    clip = open_clip(film())
    for options in (
        {"every_s": 0.0},
        {"fps": -1.0},
        {"fps": float("nan")},
        {"fps": 1e300},
        {"every_s": 1e-9},
        {"every_s": 1.0, "fps": 1.0},
        {"start_s": -1.0},
        {"start_s": 2.0, "end_s": 1.0},
    ):
        with pytest.raises(OptionError):
            clip.frames(**options)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="ascend"):
        list(clip.frames(times=[1.0, 0.5]))
