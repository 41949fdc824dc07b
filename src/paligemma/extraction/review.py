"""The pages of an extraction with its boxes: as drawings, and as one HTML page to correct values.

The page needs no network and no other file: images are inside it, and its policy allows only its
own script and style, by their hashes. Corrected values are saved as training examples, with the
parts of the pages that the model saw.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from paligemma.documents.level import leveled
from paligemma.documents.open import open_document
from paligemma.documents.page import Document, Page
from paligemma.draw import draw_detections
from paligemma.errors import ImageError, PaliGemmaError
from paligemma.escaping import visible
from paligemma.extraction.result import Extraction, Field, shown_value
from paligemma.processor.image import LoadedImage
from paligemma.report import image_uri, render_sealed_page
from paligemma.results import BoxXyxy, Detection, Detections

_SIDE = 1600
_LARGEST_SIDE = 3000
_TILE_SIDE = 700  # pixels of a tile in the training examples, at least
_MAX_PAGES = 50


@dataclass(frozen=True, kw_only=True)
class ReviewPage:
    """A page as the review shows it."""

    number: int
    image: str
    """A data URI."""
    size_wh: tuple[float, float]
    """In page units."""
    angle: float
    """Degrees, counterclockwise, by which the model was shown its parts rotated."""


def render_review(found: Extraction[Any], *, file: str = "", source: Any = None) -> str:
    """The review page. Raises ImageError where the document is not known any more."""
    numbers = _page_numbers(found)
    pages = _review_pages(found, numbers[:_MAX_PAGES], source)
    asked = {field.path: _asked_page(found, field) for field in found.fields}
    whys = [_why_no_example(f, asked[f.path] in numbers[:_MAX_PAGES]) for f in found.fields]
    by_doubt = sorted(found.fields, key=lambda f: (not f.is_unsure(found.min_score), f.doubt()))
    ranks = {field.path: rank for rank, field in enumerate(by_doubt)}
    return render_sealed_page(
        "extraction.html",
        title=visible(f"{found.schema_name}: {file}" if file else found.schema_name),
        found=found,
        stem=re.sub(r"[^\w-]+", "-", file.rsplit("/", 1)[-1].rsplit(".", 1)[0]) or "document",
        pages=pages,
        left_out=max(0, len(numbers) - _MAX_PAGES),
        no_examples=Counter(filter(None, whys)).most_common(),
        has_examples=not all(whys),
        fields=[
            {
                "field": field,
                "asked_page": asked[field.path],
                "is_example": not why,
                "rank": ranks[field.path],
                "shown": _answer_of(field),
                "value": shown_value(field.value),
                "is_unsure": field.is_unsure(found.min_score),
            }
            for field, why in zip(found.fields, whys, strict=True)
        ],
    )


def _page_numbers(found: Extraction[Any]) -> list[int]:
    """The pages that values are from; without any values the first that was read."""
    numbers = sorted({f.page for f in found.fields if f.page is not None})
    return numbers or list(found.page_numbers[:1])


def _asked_page(found: Extraction[Any], field: Field) -> int | None:
    """The page that a field was asked about: that of its value, or the only one."""
    if field.page is None and found.num_pages == 1:
        return found.page_numbers[0]
    return field.page


def _why_no_example(field: Field, is_shown: bool) -> str:
    """Why a field makes no training example, in the plural; "" where it makes one."""
    if not field.question:
        return "they are from the XML, which no model has read"
    if not field.prompt:
        return "the model wrote all values as one answer"
    if field.tile_xyxy is None:
        return "the model was not asked about them"
    return "" if is_shown else "the page that was asked about is not shown"


def _answer_of(field: Field) -> str:
    """What the model should have answered, as it stands."""
    return "" if field.raw is None or field.is_missing else field.raw


def _review_pages(found: Extraction[Any], numbers: Sequence[int], source: Any) -> list[ReviewPage]:
    if not numbers:
        return []
    with _open(found, source) as document:
        return [_review_page(_page(found, document, n), found.fields) for n in numbers]


def _review_page(page: Page, fields: Sequence[Field]) -> ReviewPage:
    width, height = page.size_wh
    tiles = [f.tile_xyxy for f in fields if f.page == page.number and f.tile_xyxy is not None]
    level = leveled(page) if tiles else None
    narrow = min((min(box[2] - box[0], box[3] - box[1]) for box in tiles), default=width)
    side = min(_LARGEST_SIDE, max(_SIDE, _TILE_SIDE * max(width, height) / max(narrow, 1)))
    return ReviewPage(
        number=page.number,
        image=image_uri(_rendered(page, side)),
        size_wh=(width, height),
        angle=0.0 if level is None else level.angle,
    )


def _rendered(page: Page, side: float) -> Image.Image:
    """The page with at most this many pixels of width and height; an image not enlarged."""
    width, height = page.size_wh
    scale = side / max(width, height)
    if page.unit == "px":
        scale = min(scale, 1.0)
    return page.render(size_wh=(max(1, round(width * scale)), max(1, round(height * scale))))


def draw_pages(found: Extraction[Any], *, source: Any = None) -> dict[int, Image.Image]:
    """The pages that values are from, by number, with the boxes of the values; without any values
    the first page. Raises ImageError where no page was read, as of an XML file."""
    numbers = _page_numbers(found)
    if not numbers:
        raise ImageError("No page of the document was read, so that there is none to draw.")
    drawn = {}
    with _open(found, source) as document:
        for number in numbers:
            page = _page(found, document, number)
            image = _rendered(page, _SIDE)
            scale = image.width / page.size_wh[0], image.height / page.size_wh[1]
            boxes = [
                _detection(f, _scaled(f.box_xyxy, scale))
                for f in found.fields
                if f.page == number and f.box_xyxy is not None and f.box_source != "tile"
            ]
            detections = Detections(
                objects=tuple(boxes),
                prompt="",
                phrases=(),
                problems=(),
                size_wh=image.size,
                stop_reason="eos",
                text="",
            )
            loaded = LoadedImage(rgb=image, name=page.name)
            drawn[number] = draw_detections(loaded, detections, fine=True)
    return drawn


def _page(found: Extraction[Any], document: Document, number: int) -> Page:
    """The page as it was asked about."""
    return document.page(number).turn(found.turns.get(number, 0))


def _scaled(box: BoxXyxy, scale: tuple[float, float]) -> BoxXyxy:
    return box[0] * scale[0], box[1] * scale[1], box[2] * scale[0], box[3] * scale[1]


def _detection(field: Field, box: BoxXyxy) -> Detection:
    return Detection(
        label=field.path,
        box_xyxy=box,
        box_normalized_xyxy=box,
        score=field.score,
        existence_score=field.score,
        label_score=1.0,
        coordinate_score=1.0,
    )


def _open(found: Extraction[Any], source: Any) -> Document:
    if source is None and found.image_reference is not None:
        source = found.image_reference.get()
    if source is None:
        raise ImageError(
            "The result does not know its document: a path is remembered, an image in memory only "
            "as long as it exists. Pass the document: source=..."
        )
    try:
        return open_document(source)
    except PaliGemmaError as error:
        raise ImageError(f"The document cannot be opened again: {error}") from error
