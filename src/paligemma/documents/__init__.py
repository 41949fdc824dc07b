"""Documents: PDF files, TIFF files and images as pages, their text in reading order.

>>> with open_document("letter.pdf") as document:
...     for page in document.pages:
...         image = whole(page).image(448)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from paligemma.lazy_names import lazy_names

if TYPE_CHECKING:
    from paligemma.documents.asker import Asker as Asker
    from paligemma.documents.find import find_on_page as find_on_page
    from paligemma.documents.ink import deskew_angle as deskew_angle
    from paligemma.documents.ink import ink_lines as ink_lines
    from paligemma.documents.open import DocumentInput as DocumentInput
    from paligemma.documents.open import open_document as open_document
    from paligemma.documents.order import reading_order as reading_order
    from paligemma.documents.page import Attachment as Attachment
    from paligemma.documents.page import Document as Document
    from paligemma.documents.page import DocumentLimits as DocumentLimits
    from paligemma.documents.page import Page as Page
    from paligemma.documents.page import Word as Word
    from paligemma.documents.read import DocumentText as DocumentText
    from paligemma.documents.read import Line as Line
    from paligemma.documents.read import PageText as PageText
    from paligemma.documents.read import ReadOptions as ReadOptions
    from paligemma.documents.read import read_document as read_document
    from paligemma.documents.read import read_pages as read_pages
    from paligemma.documents.tables import ChartOptions as ChartOptions
    from paligemma.documents.tables import PartOptions as PartOptions
    from paligemma.documents.tables import read_chart as read_chart
    from paligemma.documents.tables import read_table as read_table
    from paligemma.documents.tiles import Tile as Tile
    from paligemma.documents.tiles import tiles_of as tiles_of
    from paligemma.documents.tiles import whole as whole
else:
    __getattr__, __dir__, __all__ = lazy_names(__name__)
