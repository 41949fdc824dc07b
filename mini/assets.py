"""The drawn parts of mini's world: glyphs, letters, digits, photographs; loaded on first use.

Everything comes from small images shipped in `data/` (made by mini/make_assets.py), so
that drawing needs no font and is the same on every machine. This file knows neither scenes nor the
kinds' names (they are in language.py, in the same order).
"""

import json
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

KIND_CODEPOINTS = (
    # dog, cat, bear, panda, pig, frog, lion, monkey
    0x1F436, 0x1F431, 0x1F43B, 0x1F43C, 0x1F437, 0x1F438, 0x1F981, 0x1F435,
    # chicken, penguin, owl, fish, octopus, turtle, snail, butterfly
    0x1F414, 0x1F427, 0x1F989, 0x1F41F, 0x1F419, 0x1F422, 0x1F40C, 0x1F98B,
    # bee, elephant, rabbit, snake, apple, banana, grapes, strawberry
    0x1F41D, 0x1F418, 0x1F430, 0x1F40D, 0x1F34E, 0x1F34C, 0x1F347, 0x1F353,
    # lemon, pineapple, cherry, carrot, mushroom, bread, cheese, pizza
    0x1F34B, 0x1F34D, 0x1F352, 0x1F955, 0x1F344, 0x1F35E, 0x1F9C0, 0x1F355,
    # hamburger, egg, cake, candy, flower, tree, cactus, moon
    0x1F354, 0x1F95A, 0x1F382, 0x1F36C, 0x1F33B, 0x1F333, 0x1F335, 0x1F319,
    # star, cloud, umbrella, snowman, ball, guitar, drum, bell
    0x2B50, 0x2601, 0x2602, 0x26C4, 0x26BD, 0x1F3B8, 0x1F941, 0x1F514,
    # key, lock, book, phone, lamp, clock, car, bus
    0x1F511, 0x1F512, 0x1F4D5, 0x1F4F1, 0x1F4A1, 0x23F0, 0x1F697, 0x1F68C,
    # bicycle, airplane, rocket, boat, house, chair, hat, crown
    0x1F6B2, 0x2708, 0x1F680, 0x26F5, 0x1F3E0, 0x1FA91, 0x1F3A9, 0x1F451,
)  # fmt: skip
"""Unicode code point of each kind's glyph; a kind is an index into this tuple."""

ANGLES = (-20, -10, 0, 10, 20)
NUM_POSES = 2 * len(ANGLES)
"""A pose is 2 * (index into ANGLES, degrees counterclockwise) + (1 if mirrored before turning)."""

# Transparent pixels kept around a sprite or word at its full size, so that an antialiased edge is
# not cut when it is drawn at a fraction of a pixel: one drawn pixel is at most this many of ours.
_MARGIN = 12


@dataclass(frozen=True, kw_only=True)
class Layer:
    """Pixels to put on an image with the upper left one at (left, top).

    pixels: of a sprite uint8[h, w, 4], RGB premultiplied by alpha; of a word uint8[h, w], coverage.
    """

    left: int
    top: int
    pixels: NDArray[np.uint8]


def _data() -> Path:
    return Path(__file__).parent / "data"


def _read_image(name: str, mode: str) -> Image.Image:
    with (_data() / name).open("rb") as file, Image.open(file) as image:
        return image.convert(mode)


# --- glyphs -------------------------------------------------------------------------------------


@cache
def _glyphs() -> tuple[Image.Image, ...]:
    """The upright glyphs, RGBA with premultiplied colors, tight."""
    table = json.loads((_data() / "glyphs.json").read_text())
    atlas = _read_image("glyphs.png", "RGBA")
    cell, per_row = table["cell"], table["per_row"]
    crops = []
    for index, (width, height) in enumerate(table["sizes_wh"]):
        left, top = index % per_row * cell, index // per_row * cell
        crops.append(atlas.crop((left, top, left + width, top + height)).convert("RGBa"))
    return tuple(crops)


@cache
def _posed(kind: int, pose: int) -> Image.Image:
    """A kind in a pose, premultiplied, with _MARGIN pixels around its tight box (alpha > 127)."""
    glyph = _glyphs()[kind]
    if pose % 2:
        glyph = glyph.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    # Room for the diagonal, so that nothing is cut while turning.
    side = int(np.hypot(*glyph.size)) + 2 * _MARGIN + 2
    canvas = Image.new("RGBa", (side, side))
    canvas.paste(glyph, ((side - glyph.width) // 2, (side - glyph.height) // 2))
    angle = ANGLES[pose // 2]
    if angle:
        canvas = canvas.rotate(angle, Image.Resampling.BICUBIC)
    solid = np.asarray(canvas)[..., 3] > 127
    rows, columns = np.flatnonzero(solid.any(axis=1)), np.flatnonzero(solid.any(axis=0))
    left, top, right, bottom = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    return canvas.crop((left - _MARGIN, top - _MARGIN, right + _MARGIN, bottom + _MARGIN))


@cache
def sprite_size_wh(kind: int, pose: int) -> tuple[int, int]:
    """Width and height, in pixels, of the tight box of a kind in a pose."""
    posed = _posed(kind, pose)
    return posed.width - 2 * _MARGIN, posed.height - 2 * _MARGIN


def sprite(kind: int, pose: int) -> NDArray[np.uint8]:
    """A kind in a pose: uint8[h, w, 4] RGBA, tight around the pixels with alpha > 127.

    >>> sprite(0, 4).shape  # an upright dog
    (92, 119, 4)
    """
    width, height = sprite_size_wh(kind, pose)
    box = (_MARGIN, _MARGIN, _MARGIN + width, _MARGIN + height)
    return np.array(_posed(kind, pose).crop(box).convert("RGBA"))


@cache
def sprite_mask64(kind: int, pose: int) -> NDArray[np.float32]:
    """The mask of a kind in a pose, its tight box stretched to 64x64: float32[64, 64] in [0, 1]."""
    mask = Image.fromarray((sprite(kind, pose)[..., 3] > 127).astype(np.float32))
    return np.asarray(mask.resize((64, 64), Image.Resampling.BILINEAR)).clip(0.0, 1.0)


@cache
def sprite_rim(kind: int) -> NDArray[np.float32]:
    """Colors of a kind's outermost pixels, those that must differ from the background.

    float32[n, 3], 0..255: the pixels within 4 of the transparent outside.
    """
    pixels = sprite(kind, NUM_POSES // 2 - 1)
    inside = np.pad(pixels[..., 3] > 127, 1)
    core = inside.copy()
    for _ in range(4):
        core[1:-1, 1:-1] &= core[:-2, 1:-1] & core[2:, 1:-1] & core[1:-1, :-2] & core[1:-1, 2:]
    return pixels[..., :3][(inside & ~core)[1:-1, 1:-1]].astype(np.float32)


@cache
def _shrunken(kind: int, pose: int, halvings: int) -> Image.Image:
    posed = _posed(kind, pose)
    if halvings == 0:
        return posed
    size = (max(1, posed.width >> halvings), max(1, posed.height >> halvings))
    return posed.resize(size, Image.Resampling.BOX)


def draw_sprite(kind: int, pose: int, box_xyxy: tuple[float, float, float, float]) -> Layer:
    """A kind in a pose, its tight box laid on `box_xyxy` (pixels, fractions allowed)."""
    size_wh = sprite_size_wh(kind, pose)
    shrink = max(size_wh) / max(box_xyxy[2] - box_xyxy[0], box_xyxy[3] - box_xyxy[1], 1e-6)
    # Shrinking from a half or a quarter of the size is as sharp and takes a fraction of the time.
    halvings = 2 if shrink >= 4 else 1 if shrink >= 2 else 0
    return _resample(_shrunken(kind, pose, halvings), size_wh, box_xyxy)


# --- words --------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Letter:
    ink: Image.Image
    dx: int
    dy: int
    advance: int


@cache
def _cap_height() -> int:
    return int(json.loads((_data() / "letters.json").read_text())["cap_height"])


@cache
def _faces() -> tuple[dict[str, _Letter], ...]:
    """The letters of every face, and the digits, hyphen and period of the first few."""
    faces = _read_faces("letters")
    for name in ("digits", "marks"):
        for face, characters in zip(faces, _read_faces(name), strict=False):
            face.update(characters)
    return tuple(faces)


def _read_faces(name: str) -> list[dict[str, _Letter]]:
    table = json.loads((_data() / f"{name}.json").read_text())
    atlas = _read_image(f"{name}.png", "L")
    faces = []
    for face in table["faces"]:
        letters = {}
        for letter, (x, width, height, dx, dy, advance) in face["letters"].items():
            ink = atlas.crop((x, face["y"], x + width, face["y"] + height))
            letters[letter] = _Letter(ink=ink, dx=dx, dy=dy, advance=advance)
        faces.append(letters)
    return faces


@cache
def num_faces() -> int:
    """How many type faces there are; a face is an index below this."""
    return len(_faces())


@cache
def num_digit_faces() -> int:
    """How many of them, the first ones, have digits too."""
    return sum("0" in face for face in _faces())


@lru_cache(maxsize=4096)
def _word(text: str, face: int) -> Image.Image:
    """A word at the letters' own size, with _MARGIN empty pixels around its ink."""
    letters = [_faces()[face][letter] for letter in text]
    placed = []
    pen = 0
    for letter in letters:
        placed.append((pen + letter.dx, letter.dy, letter.ink))
        pen += letter.advance
    left = min(x for x, _, _ in placed)
    top = min(y for _, y, _ in placed)
    right = max(x + ink.width for x, _, ink in placed)
    bottom = max(y + ink.height for _, y, ink in placed)
    word = Image.new("L", (right - left + 2 * _MARGIN, bottom - top + 2 * _MARGIN))
    for x, y, ink in placed:
        # As a mask, because the boxes of neighboring letters may overlap.
        word.paste(255, (x - left + _MARGIN, y - top + _MARGIN), ink)
    return word


def word_size_wh(text: str, face: int) -> tuple[float, float]:
    """Width and height of a word's ink, in units of the cap height (the height of an "H")."""
    word = _word(text, face)
    return (word.width - 2 * _MARGIN) / _cap_height(), (word.height - 2 * _MARGIN) / _cap_height()


def word_reach(text: str, face: int) -> tuple[float, float]:
    """How far a word's ink reaches above and below its line, in units of the cap height."""
    letters = [_faces()[face][letter] for letter in text]
    top = min(letter.dy for letter in letters)
    bottom = max(letter.dy + letter.ink.height for letter in letters)
    return 1 - top / _cap_height(), bottom / _cap_height() - 1


def letter_edges(text: str, face: int) -> tuple[tuple[float, float], ...]:
    """Left and right edge of each letter's ink, as fractions of the width of the word's ink."""
    letters = [_faces()[face][letter] for letter in text]
    edges, pen = [], 0
    for letter in letters:
        edges.append((pen + letter.dx, pen + letter.dx + letter.ink.width))
        pen += letter.advance
    left, right = min(a for a, _ in edges), max(b for _, b in edges)
    return tuple(((a - left) / (right - left), (b - left) / (right - left)) for a, b in edges)


def draw_word(text: str, face: int, box_xyxy: tuple[float, float, float, float]) -> Layer:
    """A word, the tight box of its ink laid on `box_xyxy` (pixels, fractions allowed)."""
    word = _word(text, face)
    return _resample(word, (word.width - 2 * _MARGIN, word.height - 2 * _MARGIN), box_xyxy)


# --- photographs --------------------------------------------------------------------------------


@cache
def photos() -> tuple[Image.Image, ...]:
    """The background photographs, RGB, 256x256."""
    names = sorted(entry.name for entry in _data().iterdir() if entry.name.endswith(".jpg"))
    return tuple(_read_image(name, "RGB") for name in names)


@cache
def words() -> tuple[str, ...]:
    """The common words that get printed, upper case, three to six letters."""
    return tuple((_data() / "words.txt").read_text().split())


# --- drawing at fractions of a pixel ------------------------------------------------------------


def _resample(
    source: Image.Image, inner_wh: tuple[int, int], box_xyxy: tuple[float, float, float, float]
) -> Layer:
    """Lays the inside of `source` (all but its margin) on `box_xyxy`, sampled on whole pixels.

    `inner_wh` is the inside's size where the margin is _MARGIN; `source` may be a smaller copy.
    The whole pixels that cover box_xyxy reach up to one pixel into the margin on each side.
    """
    x0, y0, x1, y1 = box_xyxy
    left, top = int(np.floor(x0)), int(np.floor(y0))
    right, bottom = int(np.ceil(x1)), int(np.ceil(y1))
    per_x, per_y = inner_wh[0] / (x1 - x0), inner_wh[1] / (y1 - y0)
    copy_x = source.width / (inner_wh[0] + 2 * _MARGIN)
    copy_y = source.height / (inner_wh[1] + 2 * _MARGIN)
    source_box = (
        max(0.0, (_MARGIN + (left - x0) * per_x) * copy_x),
        max(0.0, (_MARGIN + (top - y0) * per_y) * copy_y),
        min(float(source.width), (_MARGIN + (right - x0) * per_x) * copy_x),
        min(float(source.height), (_MARGIN + (bottom - y0) * per_y) * copy_y),
    )
    size = (right - left, bottom - top)
    drawn = source.resize(size, Image.Resampling.BICUBIC, box=source_box)
    return Layer(left=left, top=top, pixels=np.asarray(drawn))
