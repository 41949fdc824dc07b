"""Measure tracking on films of mini's world, where the truth of every frame is known.

    python -m benchmarks.tracking noise
    python -m benchmarks.tracking model --model mini --fps 5,2,1

noise  the tracker alone, on true boxes with noise: edges moved by 2 pixels (standard deviation),
       one box in ten left out, all scores alike. With --false, that share of frames has a false box
       as well, with a lower score.
model  a model that is asked for the kinds of things that are in the film.

IDF1, MOTA and HOTA over all films; switches of a true object's number; how many numbers there are
for how many objects; milliseconds of processor time per frame, with detection for a model. What is
covered or
outside the image by more than 70 % counts as gone.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from PIL import Image

import paligemma
from benchmarks.command import add_output_options, run_command, write_report
from mini import language
from mini.film import MIN_VISIBLE, Film, frame_times, make_film
from mini.scene import RESOLUTION
from paligemma.answering import ImageQuery
from paligemma.cli.console import print_table, progress_bar
from paligemma.documents.asker import Asker
from paligemma.evals.metrics.tracking import Hota, Idf1, Mota, TrackedBox, TrackedFilm
from paligemma.processor.image import LoadedImage
from paligemma.processor.processor import Processor
from paligemma.results import BoxXyxy, Detection, Detections, TrackedDetection
from paligemma.tasks.detect import DetectTask
from paligemma.video.clip import Frame
from paligemma.video.tracking import TrackOptions, track_frames

_SEED = 2011
_NOISE_PX = 2.0
_MISSED = 0.1
_FALSE_SIDE = 70.0


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tracking",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parts = parser.add_subparsers(dest="part", required=True)
    noise = parts.add_parser("noise", help="the tracker alone")
    noise.add_argument("--fps", default="25,5,2,1", help="frames a second (%(default)s)")
    noise.add_argument("--scores", default="0.9,0.2", help="scores of boxes (%(default)s)")
    noise.add_argument("--false", type=float, default=0.0, help="share of frames (%(default)s)")
    model = parts.add_parser("model", help="a model and the tracker")
    model.add_argument("--model", default="mini", help="model to load (%(default)s)")
    model.add_argument("--fps", default="5,2,1", help="frames a second (%(default)s)")
    model.add_argument("--together", action="store_true", help="all names in one question only")
    for part in (noise, model):
        part.add_argument("--films", type=int, default=20, help="number (%(default)s)")
        part.add_argument("--seed", type=int, default=_SEED, help="seed of the films (%(default)s)")
        part.add_argument("--detect-every", type=int, default=1, help="frames (%(default)s)")
        part.add_argument("--fill", type=float, default=1.0, help="seconds (%(default)s)")
        add_output_options(part)
    options = parser.parse_args()
    films = [make_film(options.seed, index) for index in range(options.films)]
    rates = [float(fps) for fps in options.fps.split(",")]
    rows_of = _noise_rows if options.part == "noise" else _model_rows
    rows = rows_of(films, rates, options)
    shown = {"idf1": ".3f", "mota": ".3f", "hota": ".3f", "ms": ".2f"}
    cells = [[format(value, shown.get(name, "g")) for name, value in r.items()] for r in rows]
    print_table(None, tuple(rows[0]), cells, right=tuple(rows[0]))
    write_report({"options": {k: str(v) for k, v in vars(options).items()}, "rows": rows}, options)


Row = dict[str, float]


def _model_rows(
    films: Sequence[Film], rates: Sequence[float], options: argparse.Namespace
) -> list[Row]:
    model = paligemma.load(options.model)
    rows = []
    for fps in rates:
        truths = [_truth(film, fps) for film in films]
        found = []
        started = time.process_time()
        with progress_bar(f"{fps:g} frames a second") as on_progress:
            for film in films:
                images = [film.draw(time_s, RESOLUTION) for time_s in frame_times(fps)]
                frames = _frames([Image.fromarray(image) for image in images], fps)
                found.append(_tracked(model, frames, film, options))
                on_progress(len(found), len(films))
        seconds = time.process_time() - started
        rows.append({"fps": fps} | _scores(found, truths, seconds))
    return rows


def _noise_rows(
    films: Sequence[Film], rates: Sequence[float], options: argparse.Namespace
) -> list[Row]:
    blank = Image.new("RGB", (RESOLUTION, RESOLUTION))
    rows = []
    for fps in rates:
        truths = [_truth(film, fps) for film in films]
        for score in map(float, options.scores.split(",")):
            found = []
            started = time.process_time()
            for number, (film, truth) in enumerate(zip(films, truths, strict=True)):
                asker = _Noise(
                    truth=truth[:: options.detect_every],
                    score=score,
                    share_false=options.false,
                    seed=number,
                )
                found.append(_tracked(asker, _frames([blank] * len(truth), fps), film, options))
            seconds = time.process_time() - started
            rows.append({"fps": fps, "score": score} | _scores(found, truths, seconds))
    return rows


def _frames(images: Sequence[Image.Image], fps: float) -> list[Frame]:
    times = frame_times(fps)
    return [Frame(index, times[index], image) for index, image in enumerate(images)]


def _tracked(
    asker: Asker, frames: Sequence[Frame], film: Film, options: argparse.Namespace
) -> TrackedFilm:
    phrases = sorted({language.KINDS[actor.kind].name for actor in film.actors})
    pairs = ((frame, LoadedImage(rgb=frame.image, name="frame")) for frame in frames)
    track_options = TrackOptions(
        detect_every=options.detect_every,
        fill_s=options.fill,
        separate=False if getattr(options, "together", False) else None,
    )
    return [_boxes(frame.objects) for frame in track_frames(asker, pairs, phrases, track_options)]


def _scores(found: Sequence[TrackedFilm], true: Sequence[TrackedFilm], seconds: float) -> Row:
    mota = Mota().score(found, true)
    return {
        "idf1": Idf1().score(found, true).value,
        "mota": mota.value,
        "hota": Hota().score(found, true).value,
        "switches": mota.details["switches"],
        "numbers": _num_tracks(found),
        "objects": _num_tracks(true),
        "ms": 1000 * seconds / sum(map(len, true)),
    }


def _truth(film: Film, fps: float) -> TrackedFilm:
    return [_true_boxes(film, time_s) for time_s in frame_times(fps)]


def _true_boxes(film: Film, time_s: float) -> list[TrackedBox]:
    return [
        TrackedBox(
            track_id=sight.actor,
            box_xyxy=_pixels(sight.box_xyxy),
            label=language.KINDS[film.actors[sight.actor].kind].name,
        )
        for sight in film.sights(time_s, RESOLUTION)
        if sight.visible >= MIN_VISIBLE
    ]


def _boxes(objects: Detections) -> list[TrackedBox]:
    return [
        TrackedBox(track_id=obj.track_id, box_xyxy=obj.box_xyxy, label=obj.label)
        for obj in objects
        if isinstance(obj, TrackedDetection)
    ]


def _num_tracks(films: Sequence[TrackedFilm]) -> int:
    return sum(len({box.track_id for frame in film for box in frame}) for film in films)


def _pixels(box: BoxXyxy) -> BoxXyxy:
    x1, y1, x2, y2 = (edge * RESOLUTION for edge in box)
    return x1, y1, x2, y2


@dataclass(frozen=True, kw_only=True)
class _Noise:
    """Answers with the true boxes of each frame asked about, moved a little, some left out."""

    truth: Sequence[Sequence[TrackedBox]]
    score: float
    share_false: float
    seed: int

    @property
    def processor(self) -> Processor:
        raise NotImplementedError("Nothing is computed here.")

    def answer(
        self, queries: Iterable[ImageQuery], batch_size: int | None = None
    ) -> Iterator[Detections]:
        rng = random.Random(self.seed)
        for query, boxes in zip(queries, self.truth, strict=True):
            task = query.query.task
            assert isinstance(task, DetectTask)
            found = [
                _detection(box.label, _moved(rng, box.box_xyxy), self.score)
                for box in boxes
                if rng.random() >= _MISSED
            ]
            if rng.random() < self.share_false:
                x, y = (rng.uniform(0, RESOLUTION - _FALSE_SIDE) for _ in range(2))
                box = x, y, x + _FALSE_SIDE, y + _FALSE_SIDE
                score = self.score * rng.uniform(0.2, 0.9)
                found.append(_detection(rng.choice(task.phrases), box, score))
            yield Detections(
                objects=tuple(found),
                prompt=task.prompt(),
                phrases=task.phrases,
                problems=(),
                size_wh=(RESOLUTION, RESOLUTION),
                stop_reason="eos",
                text="",
            )


def _moved(rng: random.Random, box: BoxXyxy) -> BoxXyxy:
    x1, y1, x2, y2 = (edge + rng.gauss(0, _NOISE_PX) for edge in box)
    return x1, y1, x2, y2


def _detection(label: str, box: BoxXyxy, score: float) -> Detection:
    x1, y1, x2, y2 = (edge / RESOLUTION for edge in box)
    return Detection(
        label=label,
        box_xyxy=box,
        box_normalized_xyxy=(x1, y1, x2, y2),
        score=score,
        existence_score=score,
        label_score=1.0,
        coordinate_score=1.0,
    )


if __name__ == "__main__":
    run_command(main)
