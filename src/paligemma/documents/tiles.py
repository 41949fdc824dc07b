"""Parts of a page that are large enough, at the model's resolution, for the print to be read."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from paligemma.documents.geometry import Box
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
                rgb=self.page.render(self.box_xyxy, size_wh=size_wh), name=self.page.name
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
