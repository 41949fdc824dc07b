"""`paligemma video CLIP track`: objects followed through a film."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from paligemma.cli.console import (
    check_output_files,
    print_error,
    print_json,
    print_note,
    print_text,
    track,
    warnings_as_notes,
)
from paligemma.cli.documents import PARTLY_DONE
from paligemma.cli.model_options import LoadOptions
from paligemma.cli.options import takes
from paligemma.cli.predict import ObjectOptions, box_calibration, check_font
from paligemma.cli.video import ClipArgument, PartOptions, check_distinct
from paligemma.errors import OptionError
from paligemma.options import Option

if TYPE_CHECKING:
    from paligemma.video import TrackedFrame, TrackOptions, Tracks, Video

TracksFormat = Literal["json", "mot"]


@dataclass(frozen=True, kw_only=True)
class FollowOptions(ObjectOptions):
    """Which objects to search for and which to follow."""

    min_score: Annotated[float | None, Option(least=0, most=1, shown_default="0")] = None
    """Minimum score; boxes with lower scores are left out."""
    calibration: Annotated[Path | None, Option(shown_default="none")] = None
    """File that turns scores into probabilities: the calibration.json that `paligemma eval
    --calibrate` writes. A track then begins with a box that reaches its threshold; without it, with
    one that has half the mean score of its label, and at least 0.05."""


@dataclass(frozen=True, kw_only=True)
class TrackCommandOptions(LoadOptions):
    """How a film is searched, and what is written."""

    fps: Annotated[float, Option(most=1000)] = 5.0
    """Frames to take in a second of film."""
    detect_every: Annotated[int, Option(least=1)] = 1
    """Search every so many of these frames; boxes in between are interpolated, and marked."""
    fill: Annotated[float, Option(least=0, metavar="SECONDS")] = 1.0
    """Interpolate the box of an object that is not found for up to so many seconds."""
    max_lost: Annotated[float, Option(least=0, metavar="SECONDS")] = 3.0
    """An object that is found again after so many seconds is a new one."""
    out: Annotated[Path | None, Option(shown_default="print a table")] = None
    """File to write the tracks to."""
    format: Annotated[TracksFormat | None, Option(shown_default="by the name of --out")] = None
    """Format of --out: json (.json), or mot (.txt), the text of the MOT challenges."""
    draw: Annotated[Path | None, Option(shown_default="none")] = None
    """Write the film with boxes, labels and numbers drawn on every frame to this .mp4 file."""
    font: Annotated[Path | None, Option(shown_default="one that has the letters")] = None
    """Font file for the labels: .ttf, .otf or .ttc."""
    json: bool = False
    """Print one JSON object per frame, on one line, as soon as it is known."""
    batch_size: Annotated[int | None, Option(least=1, shown_default="by model")] = None
    """Number of frames to process at a time."""
    quiet: bool = False
    """Print no notes, only results and errors."""

    def check(self, clip: str) -> TracksFormat | None:
        """The format of the file. Raises OptionError for what cannot be written."""
        if self.fps <= 0:
            raise OptionError(f"--fps is {self.fps:g}; it must be above 0.")
        if self.format is not None and self.out is None:
            raise OptionError(f"--format {self.format} needs --out FILE.")
        check_output_files(self.out)
        if self.draw is not None:
            from paligemma.video.encoding import check_film_name

            check_film_name(self.draw)
        check_distinct(clip, [path for path in (self.out, self.draw) if path is not None])
        check_font(self.font)
        if self.out is None:
            return None
        by_suffix: dict[str, TracksFormat] = {".json": "json", ".txt": "mot"}
        chosen = self.format or by_suffix.get(self.out.suffix.lower())
        if chosen is None or self.out.is_dir():
            raise OptionError(
                f"--out {self.out}: tracks are written to a .json file, or to a .txt file for MOT. "
                "Choose such a name, or add --format."
            )
        return chosen


def _track_options(objects: FollowOptions, options: TrackCommandOptions) -> TrackOptions:
    from paligemma.video import TrackerOptions, TrackOptions

    min_score = objects.min_score or 0.0
    calibration = None
    if objects.calibration is not None:
        calibration = box_calibration(objects.calibration)
    return TrackOptions(
        detect_every=options.detect_every,
        fill_s=options.fill,
        keep=lambda found: (calibration.apply(found) if calibration else found).filter(min_score),
        separate=objects.separate,
        labels="any" if objects.any_label else "asked",
        tracker=TrackerOptions(
            start_score=calibration.threshold if calibration else None,
            max_lost_s=options.max_lost,
        ),
        **objects.settings(),
    )


@takes(part=PartOptions, objects=FollowOptions, options=TrackCommandOptions)
def track_objects(
    clip: ClipArgument,
    names: Annotated[
        str,
        typer.Argument(
            metavar="NAMES",
            show_default=False,
            help='Names of what to follow, separated by " ; ".',
        ),
    ],
    *,
    part: PartOptions,
    objects: FollowOptions,
    options: TrackCommandOptions,
) -> None:
    """Follow objects through a film: each has a number that is the same in all frames."""
    from paligemma.tasks.objects import read_phrases
    from paligemma.video import open_clip
    from paligemma.video.asking import check_part

    tracks_format = options.check(clip)
    track_options = _track_options(objects, options)
    _, notes = read_phrases(names)  # checked before a model is loaded
    start_s, end_s = part.seconds()
    film = open_clip(clip)
    check_part(film, start_s, end_s)
    if film.info.num_video_streams > 1 and not options.quiet:
        print_note(f"video: {film.info.stream}")
    for note in () if options.quiet else notes:
        print_note(note)
    with warnings_as_notes(is_quiet=options.quiet):
        model = options.load()
        if model.note and not (options.json or options.quiet):
            print_note(model.note)
        video = model.video(film, start_s=start_s, end_s=end_s, batch_size=options.batch_size)
        tracks = _collected(clip, video, names, track_options, options)
        if tracks_format is not None:
            assert options.out is not None
            _write(options.out, tracks_format, clip, tracks, options)
        elif not options.json:
            print_text(str(tracks))
        if options.draw is not None:
            tracks.draw(film, options.draw, end_s=end_s, font=options.font)
    for path in (options.out, options.draw):
        if path is not None and not options.quiet:
            print_note(f"written: {path}")
    for problem in film.problems:
        print_error(f"{clip}: {problem}")
    if film.is_damaged:
        raise typer.Exit(PARTLY_DONE)


def _collected(
    name: str, video: Video, names: str, track_options: TrackOptions, options: TrackCommandOptions
) -> Tracks:
    from paligemma.video import Tracks

    length_s = (video.end_s or video.clip.info.duration_s) - video.start_s
    frames = video.track(names, options.fps, track_options)

    def printed() -> Iterator[TrackedFrame]:
        for frame in track(frames, max(1, math.ceil(length_s * options.fps)), "track"):
            if options.json:
                shown = {"video": name, "model": options.model, "task": "track"}
                print_json({**shown, "result": frame.to_dict()})
            yield frame

    return Tracks.of(printed())


def _write(
    path: Path, tracks_format: str, name: str, tracks: Tracks, options: TrackCommandOptions
) -> None:
    from paligemma.writing import write_whole

    if tracks_format == "mot":
        text = tracks.to_mot()
    else:
        values = {
            "video": name,
            "model": options.model,
            "task": "track",
            "result": tracks.to_dict(),
        }
        text = json.dumps(values, ensure_ascii=False, allow_nan=False) + "\n"
    # The name of a file may be no UTF-8: "\\udce9" in JSON is such a letter.
    write_whole(path, text.encode("utf-8", errors="backslashreplace"))
