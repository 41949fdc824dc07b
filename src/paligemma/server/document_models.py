"""The bodies of requests about documents and of their answers, as models."""

from __future__ import annotations

from typing import Annotated, Any, Literal

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
MAX_NAMES = 2000
"""Names in one list, which every value read is compared with."""
_MAX_NAME_CHARACTERS = 200
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
        Literal["json", "txt", "hocr", "alto", "searchable-pdf"],
        Field(description="Other than JSON: a file to download."),
    ] = "json"


def _names(names: list[str]) -> list[str]:
    if len(names) > MAX_NAMES or any(len(name) > _MAX_NAME_CHARACTERS for name in names):
        raise limit_error(
            f"A list may have {MAX_NAMES} names, each of at most {_MAX_NAME_CHARACTERS} characters."
        )
    return names


def _schema(schema: str | dict[str, Any]) -> str | dict[str, Any]:
    if isinstance(schema, str) and len(schema) > _MAX_NAME_CHARACTERS:
        raise limit_error("It must be the name of a built-in schema, or a JSON schema.")
    return schema


Names = Annotated[list[str], AfterValidator(_names)]


class ExtractRequest(ManyPagesRequest):
    """Read the values of a schema from a document, each with a score and a place."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"document": EXAMPLE_DOCUMENT, "schema": "invoice"}]}
    )

    schema_: Annotated[
        str | dict[str, Any],
        AfterValidator(_schema),
        Field(
            alias="schema",
            description="A JSON schema, or the name of a built-in one: prescription, invoice, "
            "receipt, id-card, form, product.",
        ),
    ]
    source: Annotated[
        Literal["model", "xml"],
        Field(
            description="Where the values are from. xml: the XML of an electronic invoice inside "
            "of the PDF file, without the model."
        ),
    ] = "model"
    language: Annotated[
        Language | Literal[""],
        Field(description='Of the questions and the document; "" leaves it out of the prompt.'),
    ] = "en"
    date_order: Annotated[
        Literal["auto", "dmy", "mdy", "ymd"],
        Field(description="Of dates such as 03/04/2026. auto: reported where it is not clear."),
    ] = "auto"
    decimal_mark: Literal["auto", ".", ","] = "auto"
    min_score: Annotated[
        float,
        Field(
            ge=0, le=1, allow_inf_nan=False, description="Values with lower scores are `unsure`."
        ),
    ] = 0.5
    check: Annotated[
        Literal["once", "twice"],
        Field(description="twice: ask for every value in a second way, and report differences."),
    ] = "once"
    mode: Annotated[
        Literal["questions", "json"],
        Field(description="json: for models that were fine-tuned to write JSON."),
    ] = "questions"
    json_prompt: Text = "extract JSON"
    detect: Annotated[
        bool, Field(description="Find the places of values that the file has no words for.")
    ] = True
    names: Annotated[
        Names | dict[str, Names] | None,
        Field(
            description="How names are spelled, to be shown next to what was read: a list, or "
            'lists by the path of the value, such as {"medicines.name": [...]}.'
        ),
    ] = None
    to: Annotated[
        Literal["json", "csv", "html"],
        Field(description="csv: one line per field. html: a page to review and correct them."),
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
    """Words in the text layer and in form fields; 0 for scans without fields."""
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
    angle: float  # degrees, counterclockwise: 90 where it runs upwards


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


class MatchResult(ResponseModel):
    """The entry of the list of names that is nearest to what was read."""

    text: str
    score: float


class FieldResult(ResponseModel):
    """One value: what was read, how sure the model is, and where it is."""

    path: str  # such as medicines[0].dose
    value: Any
    raw: str | None
    """The model's own words."""
    unread: str | None
    """The words, where they could not be read as a value; null where there is one, and where the
    words say that there is none."""
    score: float | None
    """The model's probability of exactly these words; null for values of the XML."""
    held: float | None
    """The probability that the pattern of the answer took away from other answers."""
    page: int | None  # from 1
    box_xyxy: Box | None  # in points of PDF files, pixels of images
    box_source: Literal["text layer", "detect", "tile"] | None
    question: str
    list_path: str | None
    """For an item of a list: the list, whose question had all items as its answer."""
    prompt: str
    tile_xyxy: Box | None
    """The part of the page that the model saw when it gave the answer."""
    source: Literal["model", "xml"] | None
    problems: list[str]
    """Why the value may be wrong, or is missing."""
    matched: MatchResult | None


class ExtractionResult(ResponseModel):
    """The fields of a schema, and the object that they make."""

    schema_: str = Field(alias="schema")
    value: Any
    """The object; null where the fields make none that is valid."""
    fields: list[FieldResult]
    missing: list[str]
    """The paths of all values that the document does not have."""
    unsure: list[str]
    """The paths of values with a score below `min_score` or with problems, the lowest first."""
    problems: list[str]
    notes: list[str]
    num_pages: int
    turns: dict[str, int]
    """How far pages were turned to be upright, in degrees by number; boxes are on the turned
    page."""


class ExtractResponse(TaskResponse):
    """The answer of /v1/extract."""

    result: ExtractionResult
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
