"""The parts of a document that the model is shown: whole pages as they are, and tiles for detail.

The tiles of a slanted scan are those of the page laid straight, so that they end between lines.
"""

from __future__ import annotations

import functools
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from paligemma.documents.find import WordSearch
from paligemma.documents.geometry import union
from paligemma.documents.level import Leveled, leveled
from paligemma.documents.page import Document, Page, Word
from paligemma.documents.tiles import Tile, tiles_of
from paligemma.errors import PaliGemmaError
from paligemma.extraction.dates import DateOrder
from paligemma.extraction.schema import Leaf
from paligemma.extraction.values import CURRENCY_SIGNS, Formats, read_value
from paligemma.processor.image import LoadedImage
from paligemma.results import BoxXyxy

WORDS_OF_A_LAYER = 10
"""A view with fewer printed words may be a scan on which a header was printed."""
_NUM_OPEN = 4


@dataclass(frozen=True, kw_only=True, order=True)
class View:
    """A whole page (tile 0), or one of its tiles (1, 2, ...), without its image."""

    page_index: int
    tile: int
    box_xyxy: BoxXyxy = field(compare=False)
    """On the upright page."""
    shown_xyxy: BoxXyxy = field(compare=False)
    """The same on the page from which it is shown, which is laid straight for tiles."""


class Views:
    """The views of a document. Only the images of a few are kept in memory at a time."""

    def __init__(
        self, document: Document, resolution: int, turns: Mapping[int, int] | None = None
    ) -> None:
        """`turns`: how far to turn a page of this number, as it is opened, to be upright."""
        self._pages = document.pages
        self._turns = turns or {}
        self._resolution = resolution
        self._tiles: OrderedDict[View, Tile] = OrderedDict()
        self._boxes: dict[int, list[View]] = {}
        self._levels: dict[int, Leveled | None] = {}
        self._printed: dict[View, _Printed] = {}  # of one page
        self.notes = [
            f"Page {number} was turned by {degrees} degrees clockwise, because the model reads it "
            "more surely like this."
            for number, degrees in self._turns.items()
        ]
        self.errors: list[PaliGemmaError] = []
        self._failed: set[int] = set()
        self.wholes = [view for index in range(len(self._pages)) for view in self._whole(index)]

    def page(self, index: int) -> Page:
        """The upright page."""
        page = self._pages[index]
        degrees = self._turns.get(page.number, 0)
        return page.turn(degrees) if degrees else page

    def number(self, view: View) -> int:
        """The page's number, from 1."""
        return self._pages[view.page_index].number

    def _whole(self, index: int) -> list[View]:
        try:
            page = self.page(index)
            if page.is_blank:
                self.notes.append(f"Page {page.number} is blank: it has neither text nor ink.")
                return []
            box = (0.0, 0.0, *page.size_wh)
            return [View(page_index=index, tile=0, box_xyxy=box, shown_xyxy=box)]
        except PaliGemmaError as error:
            self.fail(index, error)
            return []

    def fail(self, index: int, error: PaliGemmaError) -> None:
        """Note once that a page cannot be read."""
        if index not in self._failed:
            self._failed.add(index)
            self.errors.append(error)
            self.notes.append(f"Page {self._pages[index].number} was not read: {error}")

    def tiles(self, index: int) -> list[View]:
        """The tiles of a page; [] where the whole page shows all of its print."""
        if index not in self._boxes:
            try:
                self._boxes[index] = self._cut(index)
            except PaliGemmaError as error:
                self.fail(index, error)
                self._boxes[index] = []
        return self._boxes[index]

    def _cut(self, index: int) -> list[View]:
        level = self._level(index)
        page = self.page(index) if level is None else level.page
        boxes = [tile.box_xyxy for tile in tiles_of(page, self._resolution)]
        return [
            View(
                page_index=index,
                tile=number,
                box_xyxy=box if level is None else level.to_page(box),
                shown_xyxy=box,
            )
            for number, box in enumerate(boxes, start=1)
        ]

    def _level(self, index: int) -> Leveled | None:
        """The page laid straight, where it is slanted."""
        if index not in self._levels:
            self._levels[index] = leveled(self.page(index))
        return self._levels[index]

    def _level_of(self, view: View) -> Leveled | None:
        """The level page of which a view is a tile; a whole page is shown as it is."""
        return self._level(view.page_index) if view.tile else None

    def tile(self, view: View) -> Tile:
        """The tile of a view, the same one as long as it is asked for again soon."""
        if view in self._tiles:
            self._tiles.move_to_end(view)
            return self._tiles[view]
        level = self._level_of(view)
        page = self.page(view.page_index) if level is None else level.page
        tile = Tile(page=page, box_xyxy=view.shown_xyxy)
        self._tiles[view] = tile
        if len(self._tiles) > _NUM_OPEN:
            self._tiles.popitem(last=False)[1].release()
        return tile

    def place(self, view: View, fractions_xyxy: BoxXyxy) -> BoxXyxy:
        """A box in fractions of a view as a box on the upright page."""
        box = self.tile(view).from_fractions(fractions_xyxy)
        level = self._level_of(view)
        return box if level is None else level.to_page(box)

    def reader(self, view: View) -> Callable[[], LoadedImage]:
        """What an ImageQuery takes: a function that renders the view."""
        try:
            return self.tile(view).reader(self._resolution)
        except PaliGemmaError as error:
            caught = error

            def fail() -> LoadedImage:
                raise caught

            return fail

    def words(self, view: View) -> Sequence[Word]:
        """The words of the text layer, and those in form fields, that a view shows."""
        return self._printed_in(view).words

    def num_printed(self, view: View) -> int:
        """How many of the words are printed: a scan may have more in its form fields."""
        return sum(not word.is_filled_in for word in self.words(view))

    def find_value(
        self, view: View, text: str, value: Any, leaf: Leaf, formats: Formats, near: BoxXyxy | None
    ) -> BoxXyxy | None:
        """Where the text layer has a value that was written as `text`: first near a box, if one is
        given, and a currency also as its sign."""
        like = None
        if leaf.kind not in ("text", "boolean", "choice"):
            like = ValueLike(
                value=value, kind=leaf.kind, read=lambda text: _values_of(leaf, text, formats)
            )
        box = None if near is None else self.find_near(view, text, near, like)
        if box is None:
            box = self.find(view, text, like)
        if box is None and (sign := CURRENCY_SIGNS.get(text.upper())):
            box = self.find(view, sign, None)
        return box

    def find(self, view: View, text: str, like: ValueLike | None) -> BoxXyxy | None:
        """Where the text layer has a text, or else another spelling of a value: in this view, or
        for a text anywhere on its page."""
        printed = self._printed_in(view)
        box = printed.search.find(text)
        if box is None and like is not None:
            box = printed.values(like).get(like.value)
        if box is None and view.tile:
            box = self.find_here(replace(view, tile=0), text)
        return box

    def find_near(
        self, view: View, text: str, near: BoxXyxy, like: ValueLike | None
    ) -> BoxXyxy | None:
        """As `find`, in the lines of a box and those next to it, across the page."""
        height = near[3] - near[1]
        printed = _Printed(
            [
                word
                for word in self.words(replace(view, tile=0))
                if near[1] - height < (word.box_xyxy[1] + word.box_xyxy[3]) / 2 < near[3] + height
            ]
        )
        box = printed.search.find(text)
        return printed.values(like).get(like.value) if box is None and like is not None else box

    def find_here(self, view: View, text: str) -> BoxXyxy | None:
        """Where the text layer has a text in this view."""
        return self._printed_in(view).search.find(text)

    def _printed_in(self, view: View) -> _Printed:
        if view in self._printed:
            return self._printed[view]
        if any(other.page_index != view.page_index for other in self._printed):
            self._printed.clear()
        if view.tile == 0:
            try:
                words: Sequence[Word] = self.page(view.page_index).words
            except PaliGemmaError:
                words = ()
        else:
            x1, y1, x2, y2 = view.box_xyxy
            words = [
                word
                for word in self.words(replace(view, tile=0))
                if x1 <= (word.box_xyxy[0] + word.box_xyxy[2]) / 2 <= x2
                and y1 <= (word.box_xyxy[1] + word.box_xyxy[3]) / 2 <= y2
            ]
        self._printed[view] = _Printed(words)
        return self._printed[view]


@dataclass(frozen=True, kw_only=True)
class ValueLike:
    """A value, and how a text is read as one of its kind, however it is written."""

    value: Any
    kind: str
    read: Callable[[str], Sequence[Any]]
    """A text -> the values that it may be."""


class _Printed:
    """The words of a view, prepared to be searched many times."""

    def __init__(self, words: Sequence[Word]) -> None:
        self.words = words
        self._values: dict[str, dict[Any, BoxXyxy]] = {}

    @functools.cached_property
    def search(self) -> WordSearch:
        return WordSearch(self.words)

    def values(self, like: ValueLike) -> dict[Any, BoxXyxy]:
        """The first place of each value of a kind that up to three words are."""
        if like.kind not in self._values:
            self._values[like.kind] = _values_in(self.words, like.read)
        return self._values[like.kind]


def _values_of(leaf: Leaf, text: str, formats: Formats) -> list[Any]:
    """The value of a text; both, of a date with day and month either way round."""
    reading = read_value(leaf, text, formats)
    if not reading.is_ambiguous:
        return [] if reading.value is None else [reading.value]
    orders: tuple[DateOrder, ...] = ("dmy", "mdy")
    return [read_value(leaf, text, replace(formats, date_order=order)).value for order in orders]


def _values_in(words: Sequence[Word], read: Callable[[str], Sequence[Any]]) -> dict[Any, BoxXyxy]:
    places: dict[Any, BoxXyxy] = {}
    for length in (1, 2, 3):
        for start in range(len(words) - length + 1):
            group = words[start : start + length]
            text = " ".join(word.text for word in group)
            if not re.search("[0-9]", text):
                continue
            for value in read(text):
                places.setdefault(value, union([word.box_xyxy for word in group]))
    return places
