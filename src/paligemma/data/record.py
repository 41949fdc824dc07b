"""Record: one picture with what is asked of it and what is true of it.

Knows pictures; knows no file format, no tokens and no task.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from paligemma.errors import DataError, ImageError
from paligemma.processor.image import ImageSource, LoadedImage, load_image
from paligemma.results import BoxXyxy

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, eq=False)
class TrueObject:
    """A thing that is in the picture."""

    label: str
    box_xyxy: BoxXyxy
    """Pixels of the picture as it is shown, upright; inside it, with area."""
    make_mask: Callable[[], Mask] | None = None
    """Gives bool[H, W]; masks of a data set together would not fit into memory."""
    area: float | None = None
    """In pixels, where the data say it: that of the thing, as a rule less than its box."""

    @property
    def mask(self) -> Mask | None:
        """bool[H, W] of the whole picture, made anew at each call; None where only a box is known.

        Raises DataError when the annotation cannot be read as a mask.
        """
        return None if self.make_mask is None else self.make_mask()


@dataclass(frozen=True, kw_only=True, eq=False)
class Record:
    """One line, one picture or one entry of a data set.

    `suffix` is what to learn. Where it is empty the suffix is made: from `objects`, or it is one of
    `references`. An empty `prefix` beside objects is made, too.
    """

    record_id: str
    """Unlike all others of the data set, and the same each time it is opened."""
    image: Path | Callable[[], ImageSource]
    prefix: str = ""
    suffix: str = ""
    objects: tuple[TrueObject, ...] | None = None
    """All that is there, maybe nothing; None where the data do not speak of objects."""
    crowds: tuple[TrueObject, ...] = ()
    """Regions of many things at once: nothing to learn, and not wrong to find something in."""
    references: tuple[str, ...] = ()
    """All accepted answers or captions; evaluation compares with them."""
    size_wh: tuple[int, int] | None = None
    """Of the upright picture, as the annotations say; always there beside objects."""
    where: str = ""
    """For messages: "Line 3 of 'train.jsonl'"."""
    more_images: tuple[Path | Callable[[], ImageSource], ...] = ()
    """Pictures that stand after `image` in the same question: pairs, frames of a video."""

    def load_images(self) -> tuple[LoadedImage, ...]:
        """All pictures of the question, in order. Raises as `load_image`."""
        more = (load_image(m if isinstance(m, Path) else m()) for m in self.more_images)
        return (replace(self, more_images=()).load_image(), *more)

    def load_image(self) -> LoadedImage:
        """The picture itself.

        Raises ImageError when it is missing or damaged, DataError when it is not of the size that
        its annotations are for, or not the only one.
        """
        if self.more_images:
            raise DataError(
                f"{self.where or self.record_id}: the question has "
                f"{1 + len(self.more_images)} pictures; take all of them with load_images()."
            )
        if isinstance(self.image, Path):
            image = load_image(self.image)
        else:
            try:
                image = load_image(self.image())
            except ImageError as error:  # which names no file, for there is none
                raise ImageError(f"{self.where}: {error}") from error
        if self.size_wh is not None and image.size_wh != self.size_wh:
            turned = " It was turned upright as its EXIF data say; annotate the upright picture."
            raise DataError(
                f"{self.where}: the annotations are for a picture of {self.size_wh[0]} x "
                f"{self.size_wh[1]} pixels, {image.name!r} has {image.size_wh[0]} x "
                f"{image.size_wh[1]}."
                + (turned if image.size_wh == self.size_wh[::-1] else " Pair them anew.")
            )
        return image


@dataclass(frozen=True, kw_only=True)
class BadRecord:
    """A record that cannot be used, and why."""

    record_id: str
    where: str
    reason: str
