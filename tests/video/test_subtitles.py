"""Subtitles hold what a model wrote as text, whatever it wrote."""

from __future__ import annotations

import html
import json
import re

from paligemma.video import VideoSegment, to_json_lines, to_srt, to_vtt
from paligemma.video.segment import FrameTime


def segment(text: str, start_s: float = 0.0, end_s: float = 5.0) -> VideoSegment:
    frames = (FrameTime(0, start_s),)
    return VideoSegment(start_s=start_s, end_s=end_s, text=text, score=0.5, frames=frames)


HOSTILE = [
    "a cat\n\n2\n00:00:01,000 --> 00:00:02,000\nAnother",
    "<script>alert(1)</script> & <i>x</i>",
    "{\\an8}top --> bottom",
    "bell\x07 and \x1b[2J and \u202e and \u2028 line",
    "NOTE\n\nSTYLE\n::cue {}",
    "3 < 4 > 2",
]


def test_srt_numbers_its_subtitles_and_has_commas_in_times() -> None:
    text = "".join(to_srt([segment("a cat"), segment("", 5, 6), segment("a dog", 3661.5, 3662)]))
    assert text == (
        "1\n00:00:00,000 --> 00:00:05,000\na cat\n\n2\n01:01:01,500 --> 01:01:02,000\na dog\n\n"
    )


def test_vtt_begins_with_its_name_and_has_points_in_times() -> None:
    text = "".join(to_vtt([segment("a cat & a dog")]))
    assert text == "WEBVTT\n\n00:00:00.000 --> 00:00:05.000\na cat &amp; a dog\n\n"


def test_what_a_model_writes_cannot_become_markup_or_another_subtitle() -> None:
    segments = [segment(text, k, k + 1) for k, text in enumerate(HOSTILE)]
    for text in ("".join(to_srt(segments)), "".join(to_vtt(segments))):
        cues = text.removeprefix("WEBVTT\n\n").strip("\n").split("\n\n")
        assert len(cues) == len(HOSTILE)
        assert text.count("-->") == len(HOSTILE)
        assert not re.search(r"<[A-Za-z/]", text)
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\u2028\u202e]", text)
    assert "{\\" not in "".join(to_srt(segments))
    cues = "".join(to_vtt(segments)).removeprefix("WEBVTT\n\n").strip("\n").split("\n\n")
    shown = [html.unescape(cue.partition("\n")[2]) for cue in cues]
    assert shown[1] == HOSTILE[1]
    assert shown[5] == HOSTILE[5]
    assert "".join(to_srt([segment("3 < 4 > 2")])).splitlines()[2] == "3 < 4 > 2"


def test_a_subtitle_lasts_at_least_a_millisecond() -> None:
    assert "00:00:01,000 --> 00:00:01,001" in "".join(to_srt([segment("x", 1.0, 1.0)]))


def test_json_lines_have_one_segment_per_line() -> None:
    lines = "".join(to_json_lines([segment(text) for text in HOSTILE])).splitlines()
    assert [json.loads(line)["text"] for line in lines] == HOSTILE
