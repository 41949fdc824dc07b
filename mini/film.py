"""Films of mini's world: things that move, cross, leave and come back, and what is true of them.

A film is a value, like a scene, drawn from one random generator that is seeded by (seed, index). It
can be drawn at any resolution and at any time. Positions are in units of the image's side, times in
seconds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mini import assets
from mini.scene import Background, Box, make_background
from paligemma.errors import OptionError

SECONDS = 8.0
FRAMES_PER_SECOND = 25
MIN_VISIBLE = 0.3
"""Of an object that is covered or outside by more than this, nobody says that it is there."""

_FILMS = 3  # beside the numbers of the splits of scenes, so that no scene has the same generator
_MIN_SIDE, _MAX_SIDE = 0.16, 0.26
_SPEEDS = (0.08, 0.30)  # sides per second


@dataclass(frozen=True, kw_only=True)
class Actor:
    """A thing in the film. Its center goes straight from one waypoint to the next."""

    kind: int
    pose: int
    size_wh: tuple[float, float]
    times_s: tuple[float, ...]
    centers: tuple[tuple[float, float], ...]

    def box_at(self, time_s: float) -> Box:
        """Its box, which may lie outside the image."""
        x, y = (
            float(np.interp(time_s, self.times_s, [center[axis] for center in self.centers]))
            for axis in (0, 1)
        )
        width, height = self.size_wh
        return x - width / 2, y - height / 2, x + width / 2, y + height / 2


@dataclass(frozen=True, kw_only=True)
class Sight:
    """What can be seen of an actor at one time."""

    actor: int
    """Its number, from 0, in the order in which actors are drawn."""
    box_xyxy: Box
    """In units of the image's side, tight around what of it is in the image, covered or not."""
    visible: float
    """The share of its pixels that can be seen."""


@dataclass(frozen=True, kw_only=True)
class Film:
    """A film of eight seconds in front of a still background."""

    seed: int
    index: int
    background: Background
    actors: tuple[Actor, ...]

    def draw(self, time_s: float, resolution: int) -> NDArray[np.uint8]:
        """The image at a time: uint8[resolution, resolution, 3], RGB. Later actors are in front."""
        image = self.background.draw(resolution)
        for actor in self.actors:
            layer = _layer(actor, time_s, resolution)
            place, pixels = _overlap(image, layer)
            behind = place * (255 - pixels[..., 3:].astype(np.uint16))
            place[:] = np.minimum(pixels[..., :3] + (behind + 127) // 255, 255)
        return image

    def sights(self, time_s: float, resolution: int) -> list[Sight]:
        """The actors of which at least one pixel can be seen at this resolution."""
        front = np.full((resolution, resolution), -1)
        layers = [_layer(actor, time_s, resolution) for actor in self.actors]
        for number, layer in enumerate(layers):
            place, pixels = _overlap(front, layer)
            place[pixels[..., 3] > 127] = number
        sights = []
        for number, (actor, layer) in enumerate(zip(self.actors, layers, strict=True)):
            seen = int((front == number).sum())
            if seen:
                visible = seen / int((layer.pixels[..., 3] > 127).sum())
                box = _cut(actor.box_at(time_s), layer, resolution)
                sights.append(Sight(actor=number, box_xyxy=box, visible=visible))
        return sights

    def to_truth(
        self, resolution: int, kind_names: Sequence[str], fps: float = FRAMES_PER_SECOND
    ) -> dict[str, Any]:
        """The film as plain JSON values, boxes in pixels; ids of objects begin at 1."""
        frames = []
        for time_s in frame_times(fps):
            objects = [
                {
                    "id": sight.actor + 1,
                    "label": kind_names[self.actors[sight.actor].kind],
                    "box_xyxy": [round(edge * resolution, 2) for edge in sight.box_xyxy],
                    "visible": round(sight.visible, 4),
                }
                for sight in self.sights(time_s, resolution)
            ]
            frames.append({"time_s": round(time_s, 6), "objects": objects})
        return {
            "seed": self.seed,
            "index": self.index,
            "size_wh": [resolution, resolution],
            "fps": fps,
            "frames": frames,
        }


def frame_times(fps: float = FRAMES_PER_SECOND) -> list[float]:
    """When the frames of a film are shown, in seconds."""
    return [number / fps for number in range(round(SECONDS * fps))]


def make_film(seed: int, index: int) -> Film:
    """Film number `index` of a seed; the same arguments give the same film.

    One thing stands still, two cross each other, one leaves the image and comes back, and in every
    second film one more wanders. In every third film, two of them are of one kind.

    >>> make_film(seed=7, index=0).draw(time_s=1.5, resolution=128).shape
    (128, 128, 3)

    Raises OptionError for a negative seed or index.
    """
    if seed < 0 or index < 0:
        raise OptionError(
            f"There is no film of seed {seed}, index {index}; neither may be negative."
        )
    rng = np.random.default_rng([_FILMS, seed, index])
    kinds = [int(kind) for kind in rng.permutation(len(assets.KIND_CODEPOINTS))[:5]]
    if index % 3 == 2:
        kinds[1] = kinds[2]
    paths = [_still(rng), *_crossing(rng), _leaving(rng)]
    if index % 2:
        paths.append(_wandering(rng))
    actors = [_actor(rng, kind, path) for kind, path in zip(kinds, paths, strict=False)]
    order = rng.permutation(len(actors))
    return Film(
        seed=seed,
        index=index,
        background=make_background(rng, {actor.kind for actor in actors}),
        actors=tuple(actors[place] for place in order),
    )


_Path = list[tuple[float, float, float]]
"""Waypoints: time, x and y."""


def _actor(rng: np.random.Generator, kind: int, path: _Path) -> Actor:
    pose = int(rng.integers(assets.NUM_POSES))
    width, height = assets.sprite_size_wh(kind, pose)
    scale = rng.uniform(_MIN_SIDE, _MAX_SIDE) / max(width, height)
    return Actor(
        kind=kind,
        pose=pose,
        size_wh=(width * scale, height * scale),
        times_s=tuple(time_s for time_s, _, _ in path),
        centers=tuple((x, y) for _, x, y in path),
    )


def _inside(rng: np.random.Generator) -> tuple[float, float]:
    x, y = rng.uniform(0.15, 0.85, 2)
    return float(x), float(y)


def _still(rng: np.random.Generator) -> _Path:
    return [(0.0, *_inside(rng))]


def _crossing(rng: np.random.Generator) -> tuple[_Path, _Path]:
    """Two go from side to side, one to the right and one to the left, and meet on the way."""
    meeting_s = float(rng.uniform(2.5, 5.5))
    x, y = rng.uniform(0.4, 0.6, 2)
    paths = []
    for direction in (1, -1):
        start_x = 0.5 - 0.38 * direction
        start_y, end_y = y + rng.uniform(-0.2, 0.2, 2)
        paths.append(
            [
                (0.0, start_x, float(start_y)),
                (meeting_s, float(x), float(y + rng.uniform(-0.06, 0.06))),
                (SECONDS, 1 - start_x, float(end_y)),
            ]
        )
    return paths[0], paths[1]


def _leaving(rng: np.random.Generator) -> _Path:
    """One goes out of the image over the nearer side and comes back after a while."""
    x, y = _inside(rng)
    outside = -0.15 if x < 0.5 else 1.15
    leave_s, gone_s = float(rng.uniform(1.0, 2.5)), float(rng.uniform(0.4, 1.5))
    out_s = leave_s + abs(outside - x) / float(rng.uniform(0.15, _SPEEDS[1]))
    back_s = out_s + gone_s
    end_s = back_s + abs(outside - x) / float(rng.uniform(0.15, _SPEEDS[1]))
    back_y = min(max(y + float(rng.uniform(-0.05, 0.05)), 0.15), 0.85)
    return [(leave_s, x, y), (out_s, outside, y), (back_s, outside, back_y), (end_s, x, back_y)]


def _wandering(rng: np.random.Generator) -> _Path:
    """One goes from place to place and sometimes rests."""
    path = [(0.0, *_inside(rng))]
    while path[-1][0] < SECONDS:
        time_s, x, y = path[-1]
        next_x, next_y = _inside(rng)
        distance = float(np.hypot(next_x - x, next_y - y))
        time_s += distance / float(rng.uniform(*_SPEEDS))
        path.append((time_s, next_x, next_y))
        path.append((time_s + float(rng.uniform(0.1, 1.0)), next_x, next_y))
    return path


def _layer(actor: Actor, time_s: float, resolution: int) -> assets.Layer:
    x1, y1, x2, y2 = (edge * resolution for edge in actor.box_at(time_s))
    return assets.draw_sprite(actor.kind, actor.pose, (x1, y1, x2, y2))


def _overlap(image: NDArray[Any], layer: assets.Layer) -> tuple[NDArray[Any], NDArray[np.uint8]]:
    """The part of the image where the layer lies, and the part of the layer in the image."""
    height, width = layer.pixels.shape[:2]
    top, left = max(0, layer.top), max(0, layer.left)
    bottom = max(top, min(len(image), layer.top + height))
    right = max(left, min(image.shape[1], layer.left + width))
    rows = slice(top - layer.top, bottom - layer.top)
    columns = slice(left - layer.left, right - layer.left)
    return image[top:bottom, left:right], layer.pixels[rows, columns]


def _cut(box: Box, layer: assets.Layer, resolution: int) -> Box:
    """The box of what is in the image: where the image cuts it, tight around the pixels left."""
    if min(box) >= 0.0 and max(box) <= 1.0:
        return box
    mask = np.zeros((resolution, resolution), np.bool_)
    place, pixels = _overlap(mask, layer)
    place[:] = pixels[..., 3] > 127
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    x1, y1, x2, y2 = box
    return (
        max(x1, columns[0] / resolution),
        max(y1, rows[0] / resolution),
        min(x2, (columns[-1] + 1) / resolution),
        min(y2, (rows[-1] + 1) / resolution),
    )


if __name__ == "__main__":
    from mini.film_files import main

    main()
