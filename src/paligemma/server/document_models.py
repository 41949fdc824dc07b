"""The bodies of requests about documents and of their answers, as models."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from paligemma.server.requests import ModelName, RequestModel
from paligemma.server.responses import ResponseModel

EXAMPLE_DOCUMENT = "data:application/pdf;base64,JVBERi0xLjcK..."


class DocumentRequest(RequestModel):
    """A request about a document: a PDF file, a TIFF file, or an image of a page."""

    document: Annotated[
        str | None,
        Field(
            description="The file as base64 or as a data URL. In a form: the file field "
            "`document`.",
            examples=[EXAMPLE_DOCUMENT],
        ),
    ] = None
    model: ModelName | None = None
    pages: Annotated[
        str | None,
        Field(
            pattern=r"^[0-9,\- ]+$",
            max_length=200,
            description="The pages to read, such as 1-3,7,9-; the first is 1. Default: all.",
        ),
    ] = None
    password: Annotated[
        str | None, Field(max_length=200, description="For an encrypted PDF file.")
    ] = None


class PagesRequest(DocumentRequest):
    """Show the pages of a document as images."""

    max_side: Annotated[int, Field(ge=64, le=2000)] = 1200


class StreamedRequest(DocumentRequest):
    """A request about a document whose answer takes long."""

    stream: Annotated[
        bool, Field(description="Send events: `progress` while it is read, then `result`.")
    ] = False


# Answers

PageSize = Annotated[list[float], Field(min_length=2, max_length=2, description="[width, height]")]
PageUnit = Annotated[
    Literal["pt", "px"],
    Field(description="Of sizes and boxes. pt: points, 1/72 inch, of PDF files. px: pixels."),
]


class PageImage(ResponseModel):
    """A page of a document, upright."""

    page: int  # from 1
    size_wh: PageSize
    unit: PageUnit
    turned: Literal[0, 90, 180, 270]
    """How far the page as displayed was turned, clockwise, to be upright."""
    num_words: int
    """Words in the text layer; 0 for scans."""
    image: str | None = None
    """A JPEG file as a data URL; left out where the page cannot be drawn."""
    problem: str | None = None


class PagesResponse(ResponseModel):
    """The answer of /v1/pages."""

    num_pages: int
    """Of the whole file."""
    pages: list[PageImage]


class ProgressEvent(ResponseModel):
    """The event `progress`: how many questions about the document have been answered."""

    answers: int
