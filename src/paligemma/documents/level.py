"""Pages that were scanned or photographed at a slant, as if they had been laid straight."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from PIL import Image

from paligemma.documents.geometry import Box, Turn, union
from paligemma.documents.page import Attachment, Page, Word
from paligemma.documents.regions import shows_print

_EDGE_PIXELS = 10_000
_LEAST_SLANT = 0.3  # degrees: less moves neither lines nor the height of print


@dataclass(frozen=True, kw_only=True, eq=False)
class Leveled:
    """A page rotated by a few degrees, with its corners kept: the source of a page of its own."""

    slanted: Page
    angle: float
    """Degrees, counterclockwise, by which the page is rotated to be level."""
    num_pages: int = field(default=1, init=False)

    @property
    def unit(self) -> Literal["pt", "px"]:
        return self.slanted.unit

    def size_wh(self, index: int) -> tuple[float, float]:
        width, height = self.slanted.size_wh
        cosine, sine = self._cosine_sine()
        return (
            width * cosine + height * abs(sine),
            width * abs(sine) + height * cosine,
        )

    def render(self, index: int, box_xyxy: Box, size_wh: tuple[int, int]) -> Image.Image:
        x0, y0, x1, y1 = box_xyxy
        scale = size_wh[0] / (x1 - x0), size_wh[1] / (y1 - y0)
        around = self.to_page(box_xyxy)
        shown = (
            max(1, round((around[2] - around[0]) * scale[0])),
            max(1, round((around[3] - around[1]) * scale[1])),
        )
        image = self.slanted.render(around, size_wh=shown)
        factor = shown[0] / (around[2] - around[0]), shown[1] / (around[3] - around[1])
        # From pixels of the result to those of the image.
        cosine, sine = self._cosine_sine()
        start = self._point(x0, y0)
        matrix = (
            *(cosine * factor[0] / scale[0], -sine * factor[0] / scale[1]),
            (start[0] - around[0]) * factor[0],
            *(sine * factor[1] / scale[0], cosine * factor[1] / scale[1]),
            (start[1] - around[1]) * factor[1],
        )
        return image.transform(
            size_wh,
            Image.Transform.AFFINE,
            matrix,
            Image.Resampling.BICUBIC,
            fillcolor=self._around,
        )

    @functools.cached_property
    def _around(self) -> tuple[int, int, int]:
        """The color of the page's edges, so that what lies around it is no shape of its own."""
        pixels = np.asarray(self.slanted.thumbnail(_EDGE_PIXELS).convert("RGB"))
        edges = [pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]]
        red, green, blue = np.median(np.concatenate(edges), axis=0)
        return int(red), int(green), int(blue)

    def words(self, index: int) -> tuple[tuple[Word, ...], Turn]:
        return (), 0

    def attachments(self) -> tuple[Attachment, ...]:
        return ()

    def close(self) -> None: ...

    def to_page(self, box_xyxy: Box) -> Box:
        """The part of the slanted page around a box of the level one."""
        x0, y0, x1, y1 = box_xyxy
        corners = [self._point(x, y) for x in (x0, x1) for y in (y0, y1)]
        return self.slanted.clamp(union([(x, y, x, y) for x, y in corners]))

    def _cosine_sine(self) -> tuple[float, float]:
        radians = math.radians(self.angle)
        return math.cos(radians), math.sin(radians)

    def _point(self, x: float, y: float) -> tuple[float, float]:
        """Where a point of the level page is on the slanted one."""
        cosine, sine = self._cosine_sine()
        level_wh, slanted_wh = self.size_wh(0), self.slanted.size_wh
        x, y = x - level_wh[0] / 2, y - level_wh[1] / 2
        return (
            cosine * x - sine * y + slanted_wh[0] / 2,
            sine * x + cosine * y + slanted_wh[1] / 2,
        )

    @functools.cached_property
    def page(self) -> Page:
        """The level page."""
        return Page(
            document_name=self.slanted.document_name,
            number=self.slanted.number,
            source=self,
            limits=self.slanted.limits,
        )


def leveled(page: Page) -> Leveled | None:
    """The page laid straight; None for one that is straight already, has a text layer, or shows
    no print, as a photo."""
    if page.has_text_layer or abs(page.slant) < _LEAST_SLANT:
        return None
    level = Leveled(slanted=page, angle=page.slant)
    return level if shows_print(level.page) else None
