"""Segments of a film as subtitles: SubRip (SRT), WebVTT, and JSON Lines.

What a model writes is shown as it is: it cannot end a subtitle, begin another or set its style.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Literal

from paligemma.escaping import visible
from paligemma.results import one_line
from paligemma.video.segment import VideoSegment
from paligemma.video.times import clock

SubtitleFormat = Literal["srt", "vtt", "jsonl"]


def to_srt(segments: Iterable[VideoSegment]) -> Iterator[str]:
    """SubRip, piece by piece. Segments without text have no subtitle.

    SubRip has no way to write "<" or "{" where players look for tags, so that an invisible space
    (U+200B) follows where one would begin.
    """
    for number, segment in enumerate(_shown(segments), start=1):
        start, end = _times(segment, ",")
        text = re.sub(r"<(?=[A-Za-z/])|\{(?=\\)|--(?=>)", lambda m: f"{m[0]}\u200b", _text(segment))
        yield f"{number}\n{start} --> {end}\n{text}\n\n"


def to_vtt(segments: Iterable[VideoSegment]) -> Iterator[str]:
    """WebVTT, piece by piece. Segments without text have no subtitle."""
    yield "WEBVTT\n\n"
    for segment in _shown(segments):
        start, end = _times(segment, ".")
        yield f"{start} --> {end}\n{html.escape(_text(segment), quote=False)}\n\n"


def to_json_lines(segments: Iterable[VideoSegment]) -> Iterator[str]:
    """A JSON object per segment, with its score and the frames that were used.

    Characters that some readers take for the end of a line are written as escapes.
    """
    for segment in segments:
        line = re.sub("[\x85\u2028\u2029]", lambda m: f"\\u{ord(m[0]):04x}", segment.to_json())
        yield f"{line}\n"


SUBTITLE_WRITERS: dict[SubtitleFormat, Callable[[Iterable[VideoSegment]], Iterator[str]]] = {
    "srt": to_srt,
    "vtt": to_vtt,
    "jsonl": to_json_lines,
}


def _shown(segments: Iterable[VideoSegment]) -> Iterator[VideoSegment]:
    return (segment for segment in segments if _text(segment))


def _text(segment: VideoSegment) -> str:
    return visible(one_line(segment.text))


def _times(segment: VideoSegment, mark: str) -> tuple[str, str]:
    """Start and end; the end at least a millisecond later, as players need it."""
    return clock(segment.start_s, mark), clock(max(segment.end_s, segment.start_s + 0.001), mark)
