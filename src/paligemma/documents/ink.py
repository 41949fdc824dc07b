"""What is printed on the image of a page: ink, text lines, the height of print, its slant.

No model is needed for any of this; all of it works on the difference between print and paper.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from paligemma.documents.geometry import Box

Mask = NDArray[np.bool_]
Levels = NDArray[np.uint8]

_CONTRAST = 32  # of 255, by which ink differs from the paper around it
_DARK_PAPER = 110  # below this gray level, print is lighter than the paper
_LINE_PIXELS = 1_500_000  # of the image in which lines are looked for
_SKEW_PIXELS = 500_000
_MAX_SKEW = 5.0  # degrees


def ink_mask(image: Image.Image) -> Mask:
    """bool[H, W]: True where something is printed, on light or on dark paper.

    The edges of large shapes, such as of a sheet on a dark table, are no print.
    """
    gray = image.convert("L")
    radius = max(8, min(image.size) // 20)
    paper = np.asarray(gray.filter(ImageFilter.BoxBlur(radius)), dtype=np.int16)
    level = np.asarray(gray)
    dark: Mask = (level < paper - _CONTRAST) & (level < 200)
    light: Mask = (level > paper + 2 * _CONTRAST) & (paper < _DARK_PAPER)
    widest = max(24, 3 * radius // 2)  # stroke of a letter, 7 % of the image
    if dark.any():
        dark &= _is_stroke(level, widest)
    if light.any():
        light &= _is_stroke(255 - level, widest)
    return dark | light


def _is_stroke(level: Levels, width: int) -> Mask:
    """True where it is darker than around, in a shape narrower than `width` pixels.

    By a morphological closing with a square, of blocks of some pixels.
    """
    size = max(1, width // 16)
    height, length = level.shape
    blocks = np.pad(level, ((0, -height % size), (0, -length % size)), mode="edge")
    blocks = blocks.reshape(-1, size, blocks.shape[1] // size, size).max(axis=(1, 3))
    reach = width // size // 2
    # A block at the edge of a large shape is as light as what is next to the shape.
    around = _extremes(_extremes(blocks, reach, np.maximum), reach + (size > 1), np.minimum)
    closed = around.repeat(size, axis=0).repeat(size, axis=1)[:height, :length]
    is_stroke: Mask = closed > level.astype(np.int16) + _CONTRAST
    return is_stroke


def _extremes(level: Levels, reach: int, larger: np.ufunc) -> Levels:
    """The largest, or smallest, level up to `reach` away, within the image."""
    for _ in range(2):
        window = np.pad(level, ((reach, reach), (0, 0)), mode="edge")
        done = 1
        while done < 2 * reach + 1:  # twice as far in each step
            step = min(done, 2 * reach + 1 - done)
            window = larger(window[:-step], window[step:])
            done += step
        level = window.T
    return level


def without_rules(mask: Mask, length: int) -> Mask:
    """The mask without straight horizontal and vertical lines of at least this many pixels."""
    rules = _long_runs(mask, length, axis=1) | _long_runs(mask, length, axis=0)
    return mask & ~rules


def _long_runs(mask: Mask, length: int, axis: int) -> Mask:
    """True at pixels of runs of at least `length`, along the axis."""
    if mask.shape[axis] < length:
        return np.zeros_like(mask)
    rows = mask if axis == 1 else mask.T
    starts, ends, row = _runs(rows)
    is_long = ends - starts >= length
    edges = np.zeros((rows.shape[0], rows.shape[1] + 1), dtype=np.int8)
    edges[row[is_long], starts[is_long]] = 1
    edges[row[is_long], ends[is_long]] = -1
    marked: Mask = np.cumsum(edges[:, :-1], axis=1, dtype=np.int8).astype(bool)
    return marked if axis == 1 else marked.T


def _runs(mask: Mask) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]:
    """Start, end (exclusive) and row of each horizontal run, row by row."""
    padded = np.zeros((mask.shape[0], mask.shape[1] + 2), dtype=np.int8)
    padded[:, 1:-1] = mask
    change = np.diff(padded, axis=1)
    row, starts = np.nonzero(change == 1)
    ends = np.nonzero(change == -1)[1]
    return starts, ends, row


@dataclass(frozen=True)
class InkLine:
    """A line of print, in pixels of the image."""

    box: Box
    x_height: float


def ink_lines(image: Image.Image) -> list[Box]:
    """The lines of text in an image, from the top, as boxes in its pixels.

    Parts of a line that are far from each other, such as the cells of a table's row or the lines
    of two columns, have a box each.
    """
    return [line.box for line in lines_of_ink(image)]


def lines_of_ink(image: Image.Image) -> list[InkLine]:
    """As `ink_lines`, with the height of print of each line."""
    scale = min(1.0, (_LINE_PIXELS / max(1, image.width * image.height)) ** 0.5)
    if scale < 1.0:
        size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
        small = image.convert("L").resize(size, Image.Resampling.BOX)
    else:
        small = image
    mask = without_rules(ink_mask(small), max(40, min(small.size) // 12))
    factor = image.width / small.width, image.height / small.height
    lines = []
    for x0, y0, x1, y1 in _components(mask):
        part = mask[y0:y1, x0:x1]
        height = _band_height(part)
        box = (x0 * factor[0], y0 * factor[1], x1 * factor[0], y1 * factor[1])
        lines.append(InkLine(box, height * factor[1]))
    return sorted(lines, key=lambda line: (line.box[1], line.box[0]))


def x_height_of_ink(image: Image.Image, angle: float) -> float | None:
    """The x-height of the small print of an image, in its pixels; None where no line is seen.

    `angle`: the image's `deskew_angle`.
    """
    lines = lines_of_ink(_rotated(image, angle) if angle else image)
    if not lines:
        return None
    widths = np.array([line.box[2] - line.box[0] for line in lines])
    heights = np.array([line.x_height for line in lines])
    order = np.argsort(heights)
    share = np.cumsum(widths[order]) / widths.sum()
    return float(heights[order][np.searchsorted(share, 0.2)])


def _rotated(image: Image.Image, angle: float) -> Image.Image:
    return image.convert("L").rotate(angle, Image.Resampling.BILINEAR, expand=True, fillcolor=255)


def _band_height(part: Mask) -> float:
    """The x-height of a line: the rows that most of its ink is in."""
    profile = part.sum(axis=1).astype(float)
    return float((profile >= 0.5 * np.percentile(profile, 90)).sum())


def _components(mask: Mask) -> list[tuple[int, int, int, int]]:
    """Boxes of lines: ink joined across the gaps between letters and words."""
    typical = _typical_height(mask)
    if typical is None:
        return []
    joined = _close_gaps(mask, max(2, round(1.2 * typical)))
    boxes = []
    for x0, y0, x1, y1 in _connected(joined):
        width, height = x1 - x0, y1 - y0
        if height < max(3, 0.4 * typical) or width < max(3, 0.4 * typical):
            continue  # specks and rules
        if height > 2.4 * typical and width > 3 * typical:
            boxes.extend(_split_rows(mask, (x0, y0, x1, y1), typical))
        else:
            boxes.append((x0, y0, x1, y1))
    return boxes


def _typical_height(mask: Mask) -> float | None:
    """The height of most letters, in pixels."""
    boxes = [box for box in _connected(mask) if box[3] - box[1] >= 3]
    heights = [y1 - y0 for x0, y0, x1, y1 in boxes if x1 - x0 < 6 * (y1 - y0)]
    return float(np.percentile(heights, 60)) if heights else None


def _close_gaps(mask: Mask, length: int) -> Mask:
    """Fill horizontal gaps of at most `length` pixels."""
    gaps = ~mask
    starts, ends, row = _runs(gaps)
    is_short = (ends - starts <= length) & (starts > 0) & (ends < mask.shape[1])
    closed = mask.copy()
    edges = np.zeros((mask.shape[0], mask.shape[1] + 1), dtype=np.int8)
    edges[row[is_short], starts[is_short]] = 1
    edges[row[is_short], ends[is_short]] = -1
    closed |= np.cumsum(edges[:, :-1], axis=1, dtype=np.int8).astype(bool)
    return closed


def _connected(mask: Mask) -> list[tuple[int, int, int, int]]:
    """The box of each connected part."""
    starts, ends, rows = (values.tolist() for values in _runs(mask))
    parents = list(range(len(starts)))

    def root(index: int) -> int:
        while parents[index] != index:
            parents[index] = parents[parents[index]]
            index = parents[index]
        return index

    above = current = 0  # runs of the row above that may still touch; the row's first run
    for index in range(len(starts)):
        if rows[index] != rows[current]:
            above, current = current, index
        while above < current and (rows[above] < rows[index] - 1 or ends[above] < starts[index]):
            above += 1
        touching = above
        while touching < current and starts[touching] <= ends[index]:
            parents[root(touching)] = root(index)
            touching += 1
    boxes: dict[int, list[int]] = {}
    for index in range(len(starts)):
        start, end, row = starts[index], ends[index], rows[index]
        box = boxes.setdefault(root(index), [start, row, end, row + 1])
        box[0], box[2] = min(box[0], start), max(box[2], end)
        box[1], box[3] = min(box[1], row), max(box[3], row + 1)
    return [(box[0], box[1], box[2], box[3]) for box in boxes.values()]


def _split_rows(
    mask: Mask, box: tuple[int, int, int, int], typical: float
) -> list[tuple[int, int, int, int]]:
    """Lines that touch each other, apart where there is least ink between them."""
    x0, y0, x1, y1 = box
    profile = mask[y0:y1, x0:x1].sum(axis=1)
    cuts, last = [y0], y0
    low = profile <= max(1, 0.15 * np.percentile(profile, 90))
    for row in range(1, y1 - y0):
        if low[row] and y0 + row - last >= 0.8 * typical:
            cuts.append(y0 + row)
            last = y0 + row
    cuts.append(y1)
    parts = []
    for top, bottom in itertools.pairwise(cuts):
        rows = np.flatnonzero(mask[top:bottom, x0:x1].any(axis=1))
        columns = np.flatnonzero(mask[top:bottom, x0:x1].any(axis=0))
        if len(rows) >= max(3, 0.4 * typical):
            parts.append(
                (
                    x0 + int(columns[0]),
                    top + int(rows[0]),
                    x0 + int(columns[-1]) + 1,
                    top + int(rows[-1]) + 1,
                )
            )
    return parts


def deskew_angle(image: Image.Image) -> float:
    """Degrees, counterclockwise, by which to rotate an image so that its lines run level.

    Between -5 and 5; 0.0 where no slant is seen. For `PIL.Image.Image.rotate`.
    """
    scale = min(1.0, (_SKEW_PIXELS / max(1, image.width * image.height)) ** 0.5)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    mask = ink_mask(image.convert("L").resize(size, Image.Resampling.BOX))
    y, x = np.nonzero(mask)
    if len(x) < 50:
        return 0.0
    best = 0.0
    for step, reach in ((0.5, _MAX_SKEW), (0.1, 0.5), (0.02, 0.1)):
        angles = np.arange(-reach, reach + step / 2, step) + best
        scores = [_sharpness(x, y, angle) for angle in angles]
        best = float(angles[int(np.argmax(scores))])
    is_clear = _sharpness(x, y, best) > 1.02 * _sharpness(x, y, 0.0)
    return round(min(max(best, -_MAX_SKEW), _MAX_SKEW), 2) if is_clear else 0.0


def _sharpness(x: NDArray[np.intp], y: NDArray[np.intp], angle: float) -> float:
    """How much the ink of neighboring rows differs after a rotation by `angle`."""
    rows = np.round(y - x * math.tan(math.radians(angle))).astype(np.intp)
    profile = np.bincount(rows - rows.min()).astype(float)
    return float(np.square(np.diff(profile)).sum())
