"""Scenes of mini's world: what stands where (the truth), and the image of it.

A scene is a value: numbers drawn from one random generator, seeded by (split, seed, index). It can
be drawn at any resolution. This file knows how scenes are made and drawn, not how one talks about
them: kinds are numbers here, their names come in as an argument.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mini import assets
from paligemma.errors import OptionError
from paligemma.masks import mask_to_rle

Split = Literal["train", "test"]
Sizes = Literal["usual", "wide"]
Box = tuple[float, float, float, float]
RGB = tuple[int, int, int]

COLORS: dict[str, RGB] = {
    "red": (208, 44, 44),
    "orange": (242, 142, 36),
    "yellow": (246, 218, 74),
    "green": (84, 168, 88),
    "blue": (58, 108, 206),
    "purple": (136, 78, 178),
    "pink": (246, 164, 196),
    "brown": (126, 82, 48),
    "gray": (140, 140, 140),
    "white": (244, 244, 244),
    "black": (28, 28, 30),
}
"""The background colors that have a name."""

WORD_WEIGHTS = (0.45, 0.45, 0.10)
"""The chances that no, one or two words are printed."""

RESOLUTION = 384
"""Pixels along a side of an evaluation image; the processor scales it as it does any image."""

PATTERNS = ("noise", "stripes", "checker", "dots", "gradient")

# How far a named color may be mixed with (black, white) and still go by its name.
_SHADES: dict[str, tuple[float, float]] = {
    "red": (0.30, 0.10),
    "orange": (0.08, 0.30),
    "yellow": (0.12, 0.40),
    "green": (0.30, 0.30),
    "blue": (0.30, 0.30),
    "purple": (0.30, 0.25),
    "pink": (0.08, 0.30),
    "brown": (0.30, 0.12),
    "gray": (0.18, 0.18),
    "white": (0.09, 0.00),
    "black": (0.00, 0.16),
}

_WORD_COLORS: tuple[RGB, ...] = (
    (0, 0, 0),
    (255, 255, 255),
    (150, 16, 24),
    (20, 40, 130),
    (16, 84, 40),
    (84, 20, 110),
    (92, 50, 16),
    (255, 226, 60),
    (255, 190, 214),
    (150, 226, 255),
    (178, 240, 160),
    (224, 60, 50),
    (250, 130, 20),
    (40, 110, 220),
)

_SPLIT_IDS: dict[str, int] = {"train": 0, "test": 1}
_GAP = 0.01  # least distance between two boxes, and from a box to the image's edge
_MIN_SIDE, _MAX_SIDE = 0.17, 0.46  # an object's longer side
_MAX_SIDE_OF_COUNT = (0.46, 0.46, 0.42, 0.37, 0.33, 0.30)  # by the number of objects
_MIN_WIDE_SIDE = 0.10  # the same where sizes are "wide"
_MAX_WIDE_SIDE_OF_COUNT = (0.85, 0.85, 0.60, 0.50, 0.42, 0.38)
_MAX_WORD_WIDTH = 0.8
_MIN_CAP_HEIGHT, _MAX_CAP_HEIGHT = 0.09, 0.17
_MIN_CONTRAST = 0.35  # in luminance (0..1), between a word and the mean of what is under it
_MIN_LOCAL_CONTRAST = 0.25  # and, where it can be had, all but the extremes of what is under it
_MIN_RIM_DISTANCE = 60.0  # in RGB, between the background's color and a rim pixel that stands out
_MIN_VISIBLE_RIM = 0.7  # share of an object's rim that must stand out


@dataclass(frozen=True, kw_only=True)
class SceneObject:
    """A drawn object. box_xyxy: tight around its mask, in units of the image's side."""

    kind: int
    pose: int
    box_xyxy: Box


@dataclass(frozen=True, kw_only=True)
class SceneWord:
    """A printed word. box_xyxy: tight around its ink, in units of the image's side."""

    text: str
    face: int
    color: RGB
    box_xyxy: Box


@dataclass(frozen=True, kw_only=True)
class Background:
    """What is behind the objects.

    plain: `shades[0]` everywhere. texture: `pattern` in two shades of the color called
    `color_name`, `cycles` repeats across the image, turned by `angle` (radians), moved by `phase`
    (radians); `grain_seed` is for noise. photo: the part `crop_xyxy` (pixels) of photograph
    `photo`, mirrored or not, its values multiplied by `brightness`; it has no color name.
    """

    style: Literal["plain", "texture", "photo"]
    color_name: str | None = None
    shades: tuple[RGB, RGB] = ((0, 0, 0), (0, 0, 0))
    pattern: str = ""
    cycles: float = 0.0
    angle: float = 0.0
    phase: float = 0.0
    grain_seed: int = 0
    photo: int = 0
    crop_xyxy: Box = (0.0, 0.0, 0.0, 0.0)
    mirrored: bool = False
    brightness: float = 1.0

    def draw(self, resolution: int) -> NDArray[np.uint8]:
        """The background alone: uint8[resolution, resolution, 3], fresh and writable."""
        if self.style == "photo":
            return self._draw_photo(resolution)
        if self.style == "plain":
            return np.full((resolution, resolution, 3), self.shades[0], np.uint8)
        # 0..63 says where between the two shades a pixel is: enough steps for soft edges.
        amount = (self._pattern(resolution) * 63.0 + 0.5).astype(np.uint8)
        steps = np.linspace(0.0, 1.0, 64, dtype=np.float32)[:, None]
        first, second = np.asarray(self.shades, np.float32)
        table = (first + steps * (second - first) + 0.5).astype(np.uint8)
        image: NDArray[np.uint8] = table[amount]
        return image

    def _draw_photo(self, resolution: int) -> NDArray[np.uint8]:
        photo = assets.photos()[self.photo].resize(
            (resolution, resolution), Image.Resampling.BILINEAR, box=self.crop_xyxy
        )
        values = np.minimum(np.arange(256) * self.brightness, 255.0).astype(np.uint8)
        image: NDArray[np.uint8] = values[np.asarray(photo)]
        return image[:, ::-1].copy() if self.mirrored else image

    def _pattern(self, resolution: int) -> NDArray[np.float32]:
        """float32[resolution, resolution] in [0, 1], the share of the second shade."""
        at = _pixel_centers(resolution)
        turns = 2.0 * np.pi * self.cycles
        # A wave times this goes from one shade to the other within about one pixel.
        sharpness = resolution / turns if turns else 1.0
        share: NDArray[np.floating[Any]]
        if self.pattern == "noise":
            cells = max(2, round(self.cycles))
            grain = np.random.default_rng(self.grain_seed).random((cells, cells), np.float32)
            smooth = Image.fromarray(grain).resize((resolution, resolution), _BICUBIC)
            share = np.asarray(smooth)
        elif self.pattern == "gradient":
            ramp_x, ramp_y = np.cos(self.angle) * (at - 0.5), np.sin(self.angle) * (at - 0.5)
            reach = abs(np.cos(self.angle)) + abs(np.sin(self.angle))
            share = 0.5 + (ramp_x[None, :] + ramp_y[:, None]) / reach
        elif self.pattern == "stripes":
            across_x = turns * np.cos(self.angle) * at + self.phase
            across_y = turns * np.sin(self.angle) * at
            # sin(a + b) from the sines of the two axes: no sine per pixel.
            wave = np.outer(np.cos(across_y), np.sin(across_x))
            wave += np.outer(np.sin(across_y), np.cos(across_x))
            share = 0.5 + 0.5 * sharpness * wave
        elif self.pattern == "checker":
            across, down = np.sin(turns * at + self.phase), np.sin(turns * at + self.angle)
            squares = np.outer((down * sharpness).clip(-1, 1), (across * sharpness).clip(-1, 1))
            share = 0.5 + 0.5 * squares
        else:  # dots
            across, down = np.cos(turns * at + self.phase), np.cos(turns * at + self.angle)
            share = 0.5 + 0.5 * sharpness * (across[None, :] + down[:, None] - 0.9)
        return np.clip(share, 0.0, 1.0).astype(np.float32, copy=False)


_BICUBIC = Image.Resampling.BICUBIC


@lru_cache(maxsize=16)
def _pixel_centers(resolution: int) -> NDArray[np.float32]:
    return ((np.arange(resolution) + 0.5) / resolution).astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Everything that is true of one synthetic image. No object or word covers another."""

    split: Split
    seed: int
    index: int
    background: Background
    objects: tuple[SceneObject, ...]
    words: tuple[SceneWord, ...]

    def draw(self, resolution: int) -> NDArray[np.uint8]:
        """The image: uint8[resolution, resolution, 3], RGB."""
        image = self.background.draw(resolution)
        for thing in self.objects:
            layer = assets.draw_sprite(thing.kind, thing.pose, _scaled(thing.box_xyxy, resolution))
            place = _place(image, layer)
            behind = place * (255 - layer.pixels[..., 3:].astype(np.uint16))
            place[:] = np.minimum(layer.pixels[..., :3] + (behind + 127) // 255, 255)
        draw_words(image, self.words)
        return image

    def object_mask(self, index: int, resolution: int) -> NDArray[np.bool_]:
        """Where object `index` is: bool[resolution, resolution], True where its alpha > 0.5."""
        thing = self.objects[index]
        mask = np.zeros((resolution, resolution), np.bool_)
        layer = assets.draw_sprite(thing.kind, thing.pose, _scaled(thing.box_xyxy, resolution))
        _place(mask, layer)[:] = layer.pixels[..., 3] > 127
        return mask

    def to_truth(self, resolution: int, kind_names: Sequence[str]) -> dict[str, Any]:
        """The scene as plain JSON values, coordinates in pixels of `draw(resolution)`.

        Masks are COCO's compressed run lengths, as in the results of `segment`.
        """
        objects = [
            {
                "label": kind_names[thing.kind],
                "box_xyxy": _rounded(thing.box_xyxy, resolution),
                "mask": mask_to_rle(self.object_mask(index, resolution)),
            }
            for index, thing in enumerate(self.objects)
        ]
        words = [
            {"text": word.text, "box_xyxy": _rounded(word.box_xyxy, resolution)}
            for word in self.words
        ]
        return {
            "split": self.split,
            "seed": self.seed,
            "index": self.index,
            "size_wh": [resolution, resolution],
            "background": {"style": self.background.style, "color": self.background.color_name},
            "objects": objects,
            "words": words,
        }


def training_scenes(
    seed: int, step: int, number: int, *, num_wide: int, word_weights: tuple[float, ...]
) -> list[Scene]:
    """The scenes of one step of training, the first `num_wide` with objects of all sizes."""
    return [
        make_scene(
            "train",
            seed,
            step * number + place,
            word_weights=word_weights,
            sizes="wide" if place < num_wide else "usual",
        )
        for place in range(number)
    ]


def draw_words(image: NDArray[np.uint8], words: Sequence[SceneWord]) -> None:
    """Print words on a square image, uint8[R, R, 3], in place."""
    for word in words:
        layer = assets.draw_word(word.text, word.face, _scaled(word.box_xyxy, len(image)))
        place = _place(image, layer)
        cover = layer.pixels[..., None].astype(np.uint16)
        ink = np.array(word.color, np.uint16) * cover
        place[:] = (place * (255 - cover) + ink + 127) // 255


def _scaled(box: Box, resolution: int) -> Box:
    return (
        box[0] * resolution,
        box[1] * resolution,
        box[2] * resolution,
        box[3] * resolution,
    )


def _rounded(box: Box, resolution: int) -> list[float]:
    return [round(value * resolution, 2) for value in box]


def _place(image: NDArray[Any], layer: assets.Layer) -> NDArray[Any]:
    height, width = layer.pixels.shape[:2]
    return image[layer.top : layer.top + height, layer.left : layer.left + width]


# --- making scenes ------------------------------------------------------------------------------


@dataclass(kw_only=True)
class _Item:
    """An object or a word on its way into the scene; sizes in units of the image's side."""

    kind: int = -1
    pose: int = 0
    text: str = ""
    face: int = 0
    width: float
    height: float
    shrink_limit: float  # it may become this much smaller, as a factor


def make_scene(
    split: Split,
    seed: int,
    index: int,
    *,
    word_weights: tuple[float, ...] = WORD_WEIGHTS,
    sizes: Sizes = "usual",
) -> Scene:
    """Scene number `index` of the stream (split, seed); the same arguments give the same scene.

    `word_weights`: the chances of 0, 1, 2, ... printed words (training may ask for more of them).
    `sizes`: "wide" also draws objects much smaller (a tenth of the side) and larger than usual.

    >>> scene = make_scene("train", seed=0, index=0)
    >>> scene.draw(128).shape
    (128, 128, 3)

    Raises OptionError for another split, and for a negative seed or index.
    """
    if split not in _SPLIT_IDS or seed < 0 or index < 0:
        raise OptionError(
            f"There is no scene for split {split!r}, seed {seed}, index {index}. "
            'The split is "train" or "test"; seed and index are not negative.'
        )
    rng = np.random.default_rng([_SPLIT_IDS[split], seed, index])
    num_words = _pick(rng, word_weights)
    kinds = _choose_kinds(rng)
    if not kinds:
        num_words = max(1, num_words)
    items = [_make_object(rng, kind, len(kinds), sizes) for kind in kinds]
    items += [_make_word(rng) for _ in range(num_words)]
    items.sort(key=lambda item: item.width * item.height, reverse=True)
    placed = _place_items(rng, items)

    objects = tuple(
        SceneObject(kind=item.kind, pose=item.pose, box_xyxy=box)
        for item, box in placed
        if item.kind >= 0
    )
    background = make_background(rng, {thing.kind for thing in objects})
    printed = [(item, box) for item, box in placed if item.kind < 0]
    luminance = _luminance(background.draw(_COARSE)) if printed else np.zeros((0, 0))
    words = tuple(
        SceneWord(
            text=item.text,
            face=item.face,
            color=_contrasting_color(rng, luminance, box),
            box_xyxy=box,
        )
        for item, box in printed
    )
    return Scene(
        split=split, seed=seed, index=index, background=background, objects=objects, words=words
    )


def _pick(rng: np.random.Generator, weights: tuple[float, ...]) -> int:
    """An index, drawn with these weights (they sum to 1)."""
    at = rng.random()
    for index, weight in enumerate(weights):
        at -= weight
        if at < 0:
            return index
    return len(weights) - 1


def _uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return low + (high - low) * float(rng.random())


def _choose_kinds(rng: np.random.Generator) -> list[int]:
    """Each object's kind: none, or one to three kinds, each one to three times, at most five."""
    if rng.random() < 0.04:
        return []
    num_kinds = 1 + _pick(rng, (0.4, 0.4, 0.2))
    distinct: list[int] = []
    while len(distinct) < num_kinds:
        kind = int(rng.integers(len(assets.KIND_CODEPOINTS)))
        if kind not in distinct:
            distinct.append(kind)
    kinds: list[int] = []
    for position, kind in enumerate(distinct):
        room = 5 - len(kinds) - (num_kinds - 1 - position)  # one place for each kind to come
        count = 1 + _pick(rng, (0.5, 0.3, 0.2))
        kinds += [kind] * min(count, room)
    return kinds


def _make_object(rng: np.random.Generator, kind: int, num_objects: int, sizes: Sizes) -> _Item:
    if sizes == "wide":
        shortest, high = _MIN_WIDE_SIDE, _MAX_WIDE_SIDE_OF_COUNT[num_objects]
        # Small and large ones alike: the logarithm is what is evenly drawn.
        longer = shortest * (high / shortest) ** float(rng.random())
    else:
        shortest, high = _MIN_SIDE, _MAX_SIDE_OF_COUNT[num_objects]
        longer = _uniform(rng, 0.20 if num_objects < 4 else shortest, high)
    pose = int(rng.integers(assets.NUM_POSES))
    width_px, height_px = assets.sprite_size_wh(kind, pose)
    scale = longer / max(width_px, height_px)
    return _Item(
        kind=kind,
        pose=pose,
        width=width_px * scale,
        height=height_px * scale,
        shrink_limit=shortest / longer,
    )


def _make_word(rng: np.random.Generator) -> _Item:
    if rng.random() < 0.15:
        text = _invent_word(rng)
    else:
        words = assets.words()
        text = words[int(rng.integers(len(words)))]
    face = int(rng.integers(assets.num_faces()))
    width, height = assets.word_size_wh(text, face)
    cap_height = _uniform(rng, _MIN_CAP_HEIGHT, _MAX_CAP_HEIGHT)
    cap_height = min(cap_height, _MAX_WORD_WIDTH / width)
    return _Item(
        text=text,
        face=face,
        width=width * cap_height,
        height=height * cap_height,
        shrink_limit=_MIN_CAP_HEIGHT / cap_height,
    )


def _invent_word(rng: np.random.Generator) -> str:
    """Three to five letters, consonants and vowels in turn.

    Few consonants may stand inside or at the end: it keeps chance from spelling rude words.
    """
    groups = ("BDFGHJKLMNPRSTVWYZ", "AEIOU", "BLNRV", "AEIOU", "BLNRV")
    length = 3 + int(rng.integers(3))
    return "".join(group[int(rng.integers(len(group)))] for group in groups[:length])


def _place_items(rng: np.random.Generator, items: list[_Item]) -> list[tuple[_Item, Box]]:
    """Finds a free place for each item in turn, smaller if need be; what finds none is left out."""
    placed: list[tuple[_Item, Box]] = []
    taken = np.zeros((len(items), 4))
    for item in items:
        scale = 1.0
        while scale >= item.shrink_limit:
            box = _free_place(rng, item.width * scale, item.height * scale, taken[: len(placed)])
            if box is not None:
                taken[len(placed)] = box
                placed.append((item, box))
                break
            if scale == item.shrink_limit:
                break
            scale = max(0.85 * scale, item.shrink_limit)
    return placed


def _free_place(
    rng: np.random.Generator, width: float, height: float, taken: NDArray[np.float64]
) -> Box | None:
    """The first of a few random places that keeps _GAP to all boxes taken (N, 4), if one does."""
    tries = 24 if len(taken) else 1
    room = np.array([1.0 - 2 * _GAP - width, 1.0 - 2 * _GAP - height])
    corners = _GAP + rng.random((tries, 2)) * room
    free = 0
    if len(taken):
        low, high = corners[:, None], corners[:, None] + (width, height)  # (tries, 1, 2)
        apart = (high + _GAP <= taken[:, :2]) | (low >= taken[:, 2:] + _GAP)
        fits = apart.any(axis=2).all(axis=1)
        free = int(fits.argmax())
        if not fits[free]:
            return None
    x0, y0 = float(corners[free, 0]), float(corners[free, 1])
    return x0, y0, x0 + width, y0 + height


def make_background(rng: np.random.Generator, kinds: set[int]) -> Background:
    style = _pick(rng, (0.40, 0.35, 0.25))
    if style == 2:
        side = _uniform(rng, 128.0, 256.0)
        left, top = _uniform(rng, 0.0, 256.0 - side), _uniform(rng, 0.0, 256.0 - side)
        return Background(
            style="photo",
            photo=int(rng.integers(len(assets.photos()))),
            crop_xyxy=(left, top, left + side, top + side),
            mirrored=bool(rng.random() < 0.5),
            brightness=_uniform(rng, 0.7, 1.25),
        )
    name = _choose_color_name(rng, kinds)
    base = np.array(COLORS[name], np.float64) + rng.uniform(-2.5, 2.5, 3)
    darker, lighter = _SHADES[name]
    first = _mixed(base, _uniform(rng, -0.4 * darker, 0.4 * lighter))
    if style == 0:
        return Background(style="plain", color_name=name, shades=(first, first))
    amount = _uniform(rng, 0.6, 1.0)
    goes_darker = rng.random() * (darker + lighter) < darker
    second = _mixed(base, -darker * amount if goes_darker else lighter * amount)
    pattern = PATTERNS[int(rng.integers(len(PATTERNS)))]
    low, high = {"noise": (6.0, 40.0), "gradient": (0.0, 0.0)}.get(pattern, (3.0, 10.0))
    return Background(
        style="texture",
        color_name=name,
        shades=(first, second),
        pattern=pattern,
        cycles=_uniform(rng, low, high),
        angle=_uniform(rng, 0.0, 2.0 * np.pi),
        phase=_uniform(rng, 0.0, 2.0 * np.pi),
        grain_seed=int(rng.integers(2**31)),
    )


def _choose_color_name(rng: np.random.Generator, kinds: set[int]) -> str:
    """A color against which every object's outline can be seen, if there is one."""
    names = tuple(COLORS)
    visible = [name for name in names if all(_outline_is_visible(kind, name) for kind in kinds)]
    choices = visible or names
    return choices[int(rng.integers(len(choices)))]


@cache
def _outline_is_visible(kind: int, color_name: str) -> bool:
    away = assets.sprite_rim(kind) - np.array(COLORS[color_name], np.float32)
    far = (away**2).sum(axis=1) > _MIN_RIM_DISTANCE**2
    return bool(far.mean() >= _MIN_VISIBLE_RIM)


def _mixed(base: NDArray[np.float64], amount: float) -> RGB:
    """`base` mixed with white (amount > 0) or black (amount < 0)."""
    target = 255.0 if amount > 0 else 0.0
    red, green, blue = np.clip(base + abs(amount) * (target - base), 0.0, 255.0)
    return round(float(red)), round(float(green)), round(float(blue))


_COARSE = 32  # resolution at which the background is looked at to choose a word's color


def _luminance(image: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Rec. 601 luma in [0, 1]."""
    luminance: NDArray[np.float64] = image @ np.array([0.299, 0.587, 0.114]) / 255.0
    return luminance


def _contrasting_color(rng: np.random.Generator, luminance: NDArray[np.float64], box: Box) -> RGB:
    """A word color at least _MIN_CONTRAST lighter or darker than the mean under the box.

    Where the background varies, preferably one that stands out from most of what is there.
    """
    x0, y0, x1, y1 = (int(value * _COARSE) for value in box)
    behind = np.sort(luminance[y0 : y1 + 1, x0 : x1 + 1], axis=None)
    mean = float(behind.mean())
    dark, light = float(behind[len(behind) // 8]), float(behind[-1 - len(behind) // 8])
    enough: list[RGB] = []
    clear: list[RGB] = []
    for color in _WORD_COLORS:
        own = (0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2]) / 255.0
        if abs(own - mean) >= _MIN_CONTRAST:
            enough.append(color)
            if own >= light + _MIN_LOCAL_CONTRAST or own <= dark - _MIN_LOCAL_CONTRAST:
                clear.append(color)
    choices = clear or enough  # never empty: black or white is at least 0.5 away from any mean
    return choices[int(rng.integers(len(choices)))]


if __name__ == "__main__":
    from mini.scene_files import main

    main()
