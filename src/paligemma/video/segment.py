"""VideoSegment: what is said about a part of a film; and how several answers become one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from paligemma.results import Result, Text, one_line
from paligemma.video.times import short_clock
from paligemma.video.windows import Window


@dataclass(frozen=True)
class FrameTime(Result):
    """A frame that was shown to the model."""

    index: int
    """Its place among the frames that were shown, from 0."""
    time_s: float


@dataclass(frozen=True, kw_only=True)
class VideoSegment(Result):
    """A caption of, or an answer about, a part of a film."""

    start_s: float
    end_s: float
    """Seconds from the beginning of the film. The next segment begins here."""
    text: str
    score: float
    """From 0 to 1: the mean score of the frames, where one that says something else counts 0."""
    frames: tuple[FrameTime, ...]
    """The frames that were asked about, in order of time."""
    question: str | None = None
    """None for captions."""
    notes: tuple[str, ...] = ()
    """What to know before trusting it."""

    def to_dict(self) -> dict[str, Any]:
        values = super().to_dict()
        for name in ("question", "notes"):
            if not values[name]:
                del values[name]
        return values

    def __str__(self) -> str:
        return f"{short_clock(self.start_s)}-{short_clock(self.end_s)}  {one_line(self.text)}"


def voted(
    window: Window,
    frames: Sequence[FrameTime],
    answers: Sequence[Text],
    *,
    question: str | None = None,
    notes: Sequence[str] = (),
) -> VideoSegment:
    """The text for which the answers' scores add up to most.

    The score is that sum divided by the number of answers.
    """
    sums: dict[str, float] = defaultdict(float)
    for answer in answers:
        sums[_key(answer.text)] += answer.score
    winner = max(sums, key=lambda key: sums[key])
    best = max((a for a in answers if _key(a.text) == winner), key=lambda answer: answer.score)
    every_note = (*notes, *(note for answer in answers for note in answer.notes))
    return VideoSegment(
        start_s=window.start_s,
        end_s=window.end_s,
        text=best.text,
        score=min(1.0, sums[winner] / len(answers)),
        frames=tuple(frames),
        question=question,
        notes=tuple(dict.fromkeys(every_note)),
    )


def merged(segments: Iterable[VideoSegment]) -> Iterator[VideoSegment]:
    """The segments in order, neighbors that say the same joined.

    The joined score is the mean, weighted by the number of frames.
    """
    held: VideoSegment | None = None
    for segment in segments:
        if held is not None and _key(held.text) == _key(segment.text):
            held = _joined(held, segment)
            continue
        if held is not None:
            yield held
        held = segment
    if held is not None:
        yield held


def _joined(first: VideoSegment, second: VideoSegment) -> VideoSegment:
    counts = len(first.frames), len(second.frames)
    score = (first.score * counts[0] + second.score * counts[1]) / sum(counts)
    return replace(
        first,
        end_s=second.end_s,
        score=score,
        frames=first.frames + second.frames,
        notes=tuple(dict.fromkeys(first.notes + second.notes)),
    )


def _key(text: str) -> str:
    """By this, two texts are the same: letter case, blanks and a final full stop do not count."""
    return one_line(text).casefold().removesuffix(".")
