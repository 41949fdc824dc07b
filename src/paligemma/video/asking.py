"""Video: captions of a film and answers about it, with the times at which they hold."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from paligemma.answering import ImageQuery, Query
from paligemma.documents.asker import Asker
from paligemma.errors import OptionError, PaliGemmaError, check_choice, check_whole
from paligemma.processor.image import LoadedImage
from paligemma.tasks.task import Task
from paligemma.tasks.text import AnswerTask, CaptionTask
from paligemma.video.clip import Frame, FrameSource, check_range
from paligemma.video.segment import FrameTime, VideoSegment, merged, voted
from paligemma.video.windows import Pick, Window, distinct, frames_of, reduced, windows_of

if TYPE_CHECKING:
    from paligemma.video.tracking import TrackOptions
    from paligemma.video.tracks import TrackedFrame

FRAMES_OF_A_FILM = 16  # as in the transfers to video of arXiv 2407.07726, appendix B

_JOINT_NOTE = (
    "All frames were put into one prompt (joint), which only a model that was fine-tuned on videos "
    "has learned to read; no released checkpoint was."
)


@dataclass(frozen=True, kw_only=True)
class Video:
    """A film, or a part of it, and the model that is asked about it.

    >>> video = predictor.video("clip.mp4")
    >>> for segment in video.captions(every=5.0):
    ...     print(segment.start_s, segment.end_s, segment.text)

    By default a model is shown one frame at a time, as the released checkpoints were trained. With
    `joint=True` it sees all frames of a window in one prompt, as in the papers' transfers to video.
    """

    asker: Asker = field(repr=False)
    clip: FrameSource
    start_s: float = 0.0
    end_s: float | None = None
    """The part that is asked about; None: to the end."""
    trained_frames: int = 1
    """Images of one prompt in the model's fine-tuning."""
    batch_size: int | None = None

    def __post_init__(self) -> None:
        check_part(self.clip, self.start_s, self.end_s)

    @property
    def problems(self) -> tuple[str, ...]:
        """What was wrong with the film, as far as it was decoded yet."""
        return self.clip.problems

    def captions(
        self,
        every: float = 5.0,
        *,
        language: str = "en",
        frames: int | None = None,
        pick: Pick = "middle",
        joint: bool = False,
        max_new_tokens: int | None = None,
        merge: bool = True,
    ) -> Iterator[VideoSegment]:
        """A caption for every so many seconds, each as soon as it is known.

        A window is judged by `frames` frames (1; 16 if `joint`): those in the middles of its equal
        parts, or the sharpest of five in each (`pick`). Where they differ, the text with the
        largest sum of scores wins. Neighbors that say the same are joined, unless `merge` is off.
        Memory does not grow with the length of the film.

        Raises OptionError for options that cannot be used, and while it goes on VideoError for a
        film beyond the limits, PromptError where the frames of a joint prompt do not fit.
        """
        windows = self.windows(every)
        plan = _Plan(_per_window(frames, joint), pick, joint, max_new_tokens)
        segments = self._segments(CaptionTask(language=language), windows, plan)
        return merged(segments) if merge else segments

    def answers(
        self,
        question: str,
        every: float = 5.0,
        *,
        language: str | None = "en",
        frames: int | None = None,
        pick: Pick = "middle",
        joint: bool = False,
        max_new_tokens: int | None = None,
        merge: bool = True,
    ) -> Iterator[VideoSegment]:
        """The answer to a question for every so many seconds; options as for `captions`.

        `language` is as for `Predictor.ask`.
        """
        windows = self.windows(every)
        plan = _Plan(_per_window(frames, joint), pick, joint, max_new_tokens)
        task = AnswerTask(question=question, language=language)
        segments = self._segments(task, windows, plan)
        return merged(segments) if merge else segments

    def caption(
        self,
        *,
        language: str = "en",
        frames: int = FRAMES_OF_A_FILM,
        pick: Pick = "middle",
        joint: bool = False,
        max_new_tokens: int | None = None,
    ) -> VideoSegment:
        """One caption of the whole film, by 16 frames of it; options as for `captions`."""
        plan = _Plan(frames, pick, joint, max_new_tokens)
        return self._whole(CaptionTask(language=language), plan)

    def ask(
        self,
        question: str,
        *,
        language: str | None = "en",
        frames: int = FRAMES_OF_A_FILM,
        pick: Pick = "middle",
        joint: bool = False,
        max_new_tokens: int | None = None,
    ) -> VideoSegment:
        """One answer about the whole film, by 16 frames of it; options as for `answers`."""
        plan = _Plan(frames, pick, joint, max_new_tokens)
        return self._whole(AnswerTask(question=question, language=language), plan)

    def track(
        self, phrases: str | Sequence[str], fps: float = 5.0, options: TrackOptions | None = None
    ) -> Iterator[TrackedFrame]:
        """The frames, so many a second, with the objects in them: each has the same number in all.

        `phrases` as for `Predictor.detect`: "person ; dog". `Tracks.of` collects what is yielded.
        A frame is yielded once no gap in it will be filled: `fill_s` seconds of film, or two more
        detections, later. Memory does not grow with the length of the film.

        Raises OptionError, PromptError and MissingExtraError before the model is asked, and while
        it goes on VideoError for a film beyond the limits.

        >>> for frame in video.track("person ; dog"):
        ...     print(frame.time_s, [(obj.track_id, obj.box_xyxy) for obj in frame.objects])
        """
        from paligemma.video.tracking import TrackOptions, track_frames

        frames = self.clip.frames(fps=fps, start_s=self.start_s, end_s=self.end_s)
        return track_frames(
            self.asker,
            ((frame, self._image(frame)) for frame in frames),
            phrases,
            options or TrackOptions(),
            batch_size=self.batch_size,
        )

    def windows(self, every: float) -> list[Window]:
        """The parts of the film that `captions` and `answers` ask about."""
        return windows_of(self.start_s, self._end_s, every)

    @property
    def _end_s(self) -> float:
        duration_s = self.clip.info.duration_s
        return duration_s if self.end_s is None else min(self.end_s, duration_s)

    def _whole(self, task: Task[Any], plan: _Plan) -> VideoSegment:
        window = Window(self.start_s, self._end_s)
        found = next(self._segments(task, [window], plan), None)
        if found is None:
            raise OptionError(f"The video has no frame from {self.start_s:g} s on.")
        return found

    def _segments(
        self, task: Task[Any], windows: Sequence[Window], plan: _Plan
    ) -> Iterator[VideoSegment]:
        waiting: deque[tuple[Window, list[FrameTime]]] = deque()
        query = Query(task=task, max_new_tokens=plan.max_new_tokens)

        def queries() -> Iterator[ImageQuery]:
            for window, found in frames_of(self.clip, windows, plan.frames, plan.pick):
                shown = found if plan.joint else distinct(found)
                waiting.append((window, [FrameTime(f.index, round(f.time_s, 6)) for f in shown]))
                images = [self._image(frame) for frame in shown]
                for group in [images] if plan.joint else [[image] for image in images]:
                    yield ImageQuery(images=tuple(group), query=query)

        answers = map(_or_raise, self.asker.answer(queries(), self.batch_size))
        notes = [_JOINT_NOTE] if plan.joint and self.trained_frames == 1 else []
        for answer in answers:
            window, frames = waiting.popleft()
            count = 1 if plan.joint else len(frames)
            rest = itertools.islice(answers, count - 1)
            question = task.question if isinstance(task, AnswerTask) else None
            yield voted(window, frames, [answer, *rest], question=question, notes=notes)

    def _image(self, frame: Frame) -> LoadedImage:
        image = reduced(frame.image, self.asker.processor.resolution)
        name = f"the frame at {frame.time_s:.2f} s"
        return LoadedImage(rgb=image, name=name, full_size_wh=frame.image.size)


def check_part(clip: FrameSource, start_s: float, end_s: float | None) -> None:
    """Raise OptionError for a part that the film does not have."""
    check_range(start_s, end_s)
    if start_s >= clip.info.duration_s:
        raise OptionError(
            f"The start is {start_s:g} s, and the video is {clip.info.duration_s:.2f} s long."
        )


@dataclass(frozen=True)
class _Plan:
    """How windows are judged. Raises OptionError for values that cannot be used."""

    frames: int
    pick: Pick
    joint: bool
    max_new_tokens: int | None

    def __post_init__(self) -> None:
        check_whole("frames", self.frames)
        check_choice("pick", self.pick, Pick)


def _per_window(frames: int | None, joint: bool) -> int:
    usual = FRAMES_OF_A_FILM if joint else 1
    return usual if frames is None else frames


def _or_raise(answer: Any) -> Any:
    if isinstance(answer, PaliGemmaError):
        raise answer
    return answer
