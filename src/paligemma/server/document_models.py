"""The bodies of requests about documents and of their answers, as models."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, ConfigDict, Field, ValidationInfo

from paligemma.results import StopReason
from paligemma.server.requests import (
    Language,
    MaxNewTokens,
    ModelName,
    RequestModel,
    Text,
    limit_error,
    limits_of,
)
from paligemma.server.responses import (
    Box,
    ProblemResult,
    ResponseModel,
    TaskResponse,
    UsageResponse,
)

MAX_LABELS = 100
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
    password: Annotated[
        str | None, Field(max_length=200, description="For an encrypted PDF file.")
    ] = None

    @property
    def page_numbers(self) -> str | None:
        """The pages to open; None for all."""
        raise NotImplementedError


Pages = Annotated[
    str | None,
    Field(
        pattern=r"^[0-9,\- ]+$",
        max_length=200,
        description="The pages to read, such as 1-3,7,9-; the first is 1. Default: all.",
    ),
]


class PagesRequest(DocumentRequest):
    """Show the pages of a document as images."""

    pages: Pages = None
    max_side: Annotated[int, Field(ge=64, le=2000)] = 1200

    @property
    def page_numbers(self) -> str | None:
        return self.pages


class StreamedRequest(DocumentRequest):
    """A request about a document whose answer takes long."""

    stream: Annotated[
        bool, Field(description="Send events: `progress` while it is read, then `result`.")
    ] = False


class ManyPagesRequest(StreamedRequest):
    """A request about all pages of a document, or several."""

    pages: Pages = None

    @property
    def page_numbers(self) -> str | None:
        return self.pages


class PartRequest(StreamedRequest):
    """A request about one page, or a box on it."""

    page: Annotated[int, Field(ge=1, le=1_000_000, description="The first page is 1.")] = 1
    box_xyxy: Annotated[
        Box | None,
        Field(description="Read what is in this box: in points of PDF files, else in pixels."),
    ] = None
    max_new_tokens: Annotated[MaxNewTokens | None, Field(description="Per answer.")] = None

    @property
    def page_numbers(self) -> str | None:
        return str(self.page)

    @property
    def box(self) -> tuple[float, float, float, float] | None:
        """The box as the package has it."""
        return None if self.box_xyxy is None else tuple(self.box_xyxy)  # type: ignore[return-value]


class TableRequest(PartRequest):
    """Read the table in an image or on a page."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"document": EXAMPLE_DOCUMENT, "page": 1}]}
    )

    to: Annotated[
        Literal["json", "csv", "html"],
        Field(description="Other than JSON: a file to download."),
    ] = "json"


def _labels(labels: list[str], info: ValidationInfo) -> list[str]:
    most = limits_of(info).max_prompt_characters
    if len(labels) > MAX_LABELS or sum(map(len, labels)) > most:
        raise limit_error(f"There may be {MAX_LABELS} names with {most} characters in all.")
    return labels


class ChartRequest(PartRequest):
    """Read the series of the chart in an image or on a page."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"document": EXAMPLE_DOCUMENT, "page": 1}]}
    )

    labels: Annotated[
        list[Text],
        AfterValidator(_labels),
        Field(
            default_factory=list,
            description="Labels of bars, slices or points: the value of each is asked for.",
        ),
    ]
    series: Annotated[
        list[Text],
        AfterValidator(_labels),
        Field(default_factory=list, description="Names in the legend."),
    ]
    language: Annotated[
        Language | Literal[""], Field(description='Of the questions; "" leaves it out.')
    ] = "en"
    to: Annotated[
        Literal["json", "csv"], Field(description="csv: one line per point, to download.")
    ] = "json"


class ReadRequest(ManyPagesRequest):
    """Read the text of a document in reading order."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"document": EXAMPLE_DOCUMENT, "pages": "1-3"}]}
    )

    source: Annotated[
        Literal["model", "text layer"],
        Field(description="Who reads: the model, or the text layer that many PDF files have."),
    ] = "model"
    turn: Annotated[
        bool, Field(description="Turn pages upright that have no text layer, by trying.")
    ] = True
    tiles: Annotated[
        bool, Field(description="Show the model parts of pages that are large enough to be read.")
    ] = True
    max_new_tokens: Annotated[MaxNewTokens | None, Field(description="Of one part of a page.")] = (
        None
    )
    to: Annotated[
        Literal["json", "txt"], Field(description="Other than JSON: a file to download.")
    ] = "json"


# Answers

PageSize = Annotated[list[float], Field(min_length=2, max_length=2, description="[width, height]")]
PageUnit = Annotated[
    Literal["pt", "px"],
    Field(description="Of sizes and boxes. pt: points, 1/72 inch, of PDF files. px: pixels."),
]


PageTurn = Annotated[
    Literal[0, 90, 180, 270],
    Field(description="How far the page as displayed was turned, clockwise, to be upright."),
]


class PageImage(ResponseModel):
    """A page of a document, upright."""

    page: int  # from 1
    size_wh: PageSize
    unit: PageUnit
    turned: PageTurn
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


class LineResult(ResponseModel):
    """A line of text."""

    text: str
    box_xyxy: Box  # on the upright page
    score: float | None
    """The mean probability of its tokens; null for lines of the text layer."""
    page: int
    source: Literal["model", "text layer"]


class PageTextResult(ResponseModel):
    """The text of one page."""

    page: int  # from 1
    size_wh: PageSize
    unit: PageUnit
    turned: PageTurn
    lines: list[LineResult]
    """In reading order."""
    problems: list[str]
    error: str | None
    """Why the page could not be read."""


class DocumentTextResult(ResponseModel):
    """The text of a document."""

    name: str
    source: Literal["model", "text layer"]
    pages: list[PageTextResult]


class ReadResponse(TaskResponse):
    """The answer of /v1/read."""

    result: DocumentTextResult
    usage: UsageResponse


class CellResult(ResponseModel):
    """A cell of a table, and what it covers; rows and columns start at 0."""

    text: str
    row: int
    column: int
    rowspan: int
    colspan: int
    score: float | None
    """The probability of this text, and that it ends there."""
    box_xyxy: Box | None
    is_header: bool


class TableResult(ResponseModel):
    """A table."""

    cells: list[CellResult]
    title: str
    problems: list[ProblemResult]
    size_wh: PageSize
    page: int
    text: str
    stop_reason: StopReason
    notes: list[str]


class TableResponse(TaskResponse):
    """The answer of /v1/table."""

    result: TableResult
    usage: UsageResponse


class PointResult(ResponseModel):
    """One mark of a chart."""

    x: str
    y: float | None
    """null where the model wrote no number."""
    raw: str
    score: float | None


class SeriesResult(ResponseModel):
    """The marks of a chart that belong together."""

    name: str
    points: list[PointResult]


class ChartResult(ResponseModel):
    """The data of a chart."""

    series: list[SeriesResult]
    kind: Literal["bar", "line", "pie", "scatter", "area"] | None
    title: str
    x_title: str
    problems: list[ProblemResult]
    size_wh: PageSize
    page: int
    text: str
    stop_reason: StopReason
    notes: list[str]


class ChartResponse(TaskResponse):
    """The answer of /v1/chart."""

    result: ChartResult
    usage: UsageResponse


class ProgressEvent(ResponseModel):
    """The event `progress`: how many questions about the document have been answered."""

    answers: int
