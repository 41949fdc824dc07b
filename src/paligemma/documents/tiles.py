"""Parts of a page that are large enough, at the model's resolution, for the print to be read."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from paligemma.documents.geometry import Box
from paligemma.documents.ink import Mask, ink_mask, without_rules
from paligemma.documents.page import Page
from paligemma.errors import OptionError
from paligemma.processor.image import LoadedImage


@dataclass(frozen=True, kw_only=True, eq=False)
class Tile:
    """A part of a page that is shown to the model as one image."""

    page: Page
    box_xyxy: Box
    """In page units."""
    _images: dict[int, LoadedImage] = field(default_factory=dict, init=False, repr=False)
    _shown_wh: list[tuple[int, int]] = field(default_factory=list, init=False, repr=False)
    _readers: dict[int, Callable[[], LoadedImage]] = field(
        default_factory=dict, init=False, repr=False
    )

    def image(self, resolution: int) -> LoadedImage:
        """The part at the size that a model of this resolution needs, without distortion.

        The shorter side has `resolution` pixels, unless the longer one would pass the limits or
        the image has no more to show. Kept until `release`.
        """
        if resolution not in self._images:
            size_wh = self._size_wh(resolution)
            self._images.clear()
            self._shown_wh[:] = [size_wh]
            self._images[resolution] = LoadedImage(
                rgb=self.page.render(self.box_xyxy, size_wh=size_wh),
                name=f"{self.page.name} at {', '.join(f'{v:.1f}' for v in self.box_xyxy)}",
            )
        return self._images[resolution]

    def reader(self, resolution: int) -> Callable[[], LoadedImage]:
        """A function that returns `image`: for an ImageQuery whose turn comes later.

        It is always the same one, so that questions about the same tile share what was read.
        """
        if resolution not in self._readers:
            self._readers[resolution] = lambda: self.image(resolution)
        return self._readers[resolution]

    def release(self) -> None:
        """Forget the image."""
        self._images.clear()

    def _size_wh(self, resolution: int) -> tuple[int, int]:
        x0, y0, x1, y1 = self.box_xyxy
        width, height = x1 - x0, y1 - y0
        scale = resolution / min(width, height)
        if self.page.unit == "px":
            scale = min(scale, 1.0)
        limit = min(self.page.limits.max_pixels, 16 * resolution**2)
        scale = min(scale, math.sqrt(limit / (width * height)))
        return max(1, round(width * scale)), max(1, round(height * scale))

    def to_page(self, box_xyxy: Box) -> Box:
        """A box in pixels of the tile's image as a box on the page, in page units."""
        if not self._shown_wh:
            raise OptionError("The tile has no image yet. Call image(resolution) before to_page.")
        width, height = self._shown_wh[0]
        x0, y0, x1, y1 = box_xyxy
        return self.from_fractions((x0 / width, y0 / height, x1 / width, y1 / height))

    def from_fractions(self, box_xyxy: Box) -> Box:
        """A box in fractions of the tile as a box on the page, in page units."""
        x0, y0, x1, y1 = self.box_xyxy
        width, height = x1 - x0, y1 - y0
        return (
            x0 + box_xyxy[0] * width,
            y0 + box_xyxy[1] * height,
            x0 + box_xyxy[2] * width,
            y0 + box_xyxy[3] * height,
        )


def whole(page: Page) -> Tile:
    """The whole page as one tile."""
    return Tile(page=page, box_xyxy=(0.0, 0.0, *page.size_wh))


X_HEIGHT_PIXELS = 6.0
"""The height of small letters, in pixels of the model's input, at which print is read."""
_MASK_X_HEIGHT = 5.0  # the same in the image in which white gaps are looked for
_MAX_MASK_PIXELS = 8_000_000
_MAX_TILES = 64
_LINE_PITCH = 2.8  # the distance of two lines in x-heights
_WORD_LENGTH = 12.0  # of a long word, in x-heights


def tiles_of(
    page: Page,
    resolution: int,
    *,
    x_height_pixels: float = X_HEIGHT_PIXELS,
    max_tiles: int = _MAX_TILES,
) -> list[Tile]:
    """The page in parts, row by row, in which its small print is large enough for the model.

    [] where the whole page is enough, or has nothing printed on it; one where little is printed on
    a large page. The grid follows the print: a
    part is as large as leaves small letters `x_height_pixels` high and as wide after the resize to
    `resolution`, but for pages that would need more than `max_tiles`, whose parts are larger.
    Parts end at white gaps, between lines and between columns. Where there is no gap they overlap
    by two lines or a long word.
    """
    x_height = page.print_height()
    if x_height is None:
        return []
    mask = PrintMask.of(page, x_height)
    side = resolution * x_height / x_height_pixels
    around = (0.0, 0.0, *page.size_wh)
    while True:
        boxes = mask.grid(around, (side, side), x_height)
        if len(boxes) <= max_tiles:
            break
        side *= 1.15
    if len(boxes) < 2 and max(page.size_wh) <= side:
        return []
    return [Tile(page=page, box_xyxy=box) for box in boxes]


@dataclass(frozen=True, kw_only=True, eq=False)
class PrintMask:
    """Where something is printed on a page, rules apart."""

    mask: Mask
    scale: float
    """Pixels per page unit."""
    page: Page

    @classmethod
    def of(cls, page: Page, x_height: float) -> PrintMask:
        width, height = page.size_wh
        scale = _MASK_X_HEIGHT / x_height
        image = page.thumbnail(max(1, min(_MAX_MASK_PIXELS, int(width * height * scale**2))))
        mask = without_rules(ink_mask(image), max(40, min(image.size) // 12))
        return cls(mask=mask, scale=image.width / width, page=page)

    def grid(self, box_xyxy: Box, max_wh: tuple[float, float], x_height: float) -> list[Box]:
        """Parts of a box of at most this size that hold all of its print, row by row."""
        left, top, right, bottom = (round(value * self.scale) for value in box_xyxy)
        margin = x_height  # so that no letter stands at the edge
        boxes = []
        sides = (
            max(1.0, (max_wh[0] - 2 * margin) * self.scale),
            max(1.0, (max_wh[1] - 2 * margin) * self.scale),
        )
        for x0, y0, x1, y1 in _grid(
            self.mask[top:bottom, left:right], sides, x_height * self.scale
        ):
            box = (
                (left + x0) / self.scale - margin,
                (top + y0) / self.scale - margin,
                (left + x1) / self.scale + margin,
                (top + y1) / self.scale + margin,
            )
            boxes.append(self.page.clamp(box))
        return boxes


def _grid(
    mask: Mask, sides: tuple[float, float], x_height: float
) -> list[tuple[int, int, int, int]]:
    """Boxes of at most this width and height, in pixels of the mask."""
    rows, columns = _cuts(mask, 1, sides[1], x_height), _cuts(mask, 0, sides[0], x_height)
    # First along the direction in which fewer cuts go through print.
    first = 0 if columns.num_forced < rows.num_forced else 1
    boxes = []
    for start, end in (columns if first == 0 else rows).spans:
        band = mask[:, start:end] if first == 0 else mask[start:end]
        for begin, stop in _cuts(band, 1 - first, sides[1 - first], x_height).spans:
            part = (start, begin, end, stop) if first == 0 else (begin, start, stop, end)
            if (shrunk := _shrunk(mask, part)) is not None:
                boxes.append(shrunk)
    return boxes


def _shrunk(mask: Mask, box: tuple[int, int, int, int]) -> tuple[int, int, int, int] | None:
    """The box without its empty edges; None without ink."""
    x0, y0, x1, y1 = box
    part = mask[y0:y1, x0:x1]
    columns, rows = np.flatnonzero(part.any(axis=0)), np.flatnonzero(part.any(axis=1))
    if not len(columns):
        return None
    return (
        x0 + int(columns[0]), y0 + int(rows[0]), x0 + int(columns[-1]) + 1, y0 + int(rows[-1]) + 1
    )  # fmt: skip


@dataclass(frozen=True)
class _Cuts:
    """Parts of a length, and how many cuts between them go through print."""

    spans: Sequence[tuple[int, int]]
    num_forced: int


def _cuts(mask: Mask, axis: int, side: float, x_height: float) -> _Cuts:
    """Cut along an axis (1: rows are set apart, 0: columns) into parts of at most `side`.

    As few parts as possible, and as few cuts through print; of several ways that with the widest
    gaps.
    """
    ink = np.flatnonzero(mask.any(axis=axis))
    if not len(ink):
        return _Cuts([], 0)
    first, last = int(ink[0]), int(ink[-1]) + 1
    if last - first <= side:
        return _Cuts([(first, last)], 0)
    overlap = (_LINE_PITCH if axis == 1 else _WORD_LENGTH / 2) * x_height
    overlap = min(overlap, side / 4)
    least_gap = (0.4 if axis == 1 else 1.2) * x_height
    places, gaps = _places(ink, least_gap, max(1, int(side / 12)))
    steps = _cheapest(places, gaps, first, last, side, overlap)
    spans = []
    for start, end in itertools.pairwise(steps):
        begin = start if gaps.get(start, 1) else start - overlap
        stop = end if gaps.get(end, 1) else end + overlap
        spans.append((max(first, int(begin)), min(last, math.ceil(stop))))
    return _Cuts(spans, sum(not gaps.get(step, 1) for step in steps[1:-1]))


def _places(
    ink: NDArray[np.intp], least_gap: float, spacing: int
) -> tuple[list[int], dict[int, float]]:
    """Where a cut is possible, with the width of the gap: 0 where it goes through print."""
    widths = np.diff(ink)
    gaps: dict[int, float] = dict.fromkeys(range(int(ink[0]) + spacing, int(ink[-1]), spacing), 0.0)
    for at in np.flatnonzero(widths > max(1.0, least_gap)):
        gaps[int(ink[at] + widths[at] // 2)] = float(widths[at])
    return sorted(gaps), gaps


def _cheapest(
    places: Sequence[int],
    gaps: dict[int, float],
    first: int,
    last: int,
    side: float,
    overlap: float,
) -> list[int]:
    """The cuts, with both ends, that cost least."""
    stops = [first, *places, last]
    widest = max(gaps.values(), default=0.0) or 1.0
    best: list[tuple[float, int]] = [(0.0, 0)]
    for end in range(1, len(stops)):
        forced_end = end < len(stops) - 1 and not gaps[stops[end]]
        cost = 0.0 if end == len(stops) - 1 else 0.6 if forced_end else 0.0
        if not forced_end and end < len(stops) - 1:
            cost = 0.3 * (1 - gaps[stops[end]] / widest)
        options = []
        for start in range(end - 1, -1, -1):
            length = float(stops[end] - stops[start])
            length += overlap * (forced_end + (start > 0 and not gaps[stops[start]]))
            if length > side and start < end - 1:
                break
            options.append((best[start][0] + 1 + cost, start))
        best.append(min(options))
    cuts, at = [], len(stops) - 1
    while True:
        cuts.append(stops[at])
        if at == 0:
            return cuts[::-1]
        at = best[at][1]
