"""What can be done with a document: how each request becomes work, and its result an answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.responses import Response

from paligemma.documents.page import Document
from paligemma.documents.read import DocumentText, ReadOptions, read_pages
from paligemma.documents.tables import ChartOptions, PartOptions, read_chart, read_table
from paligemma.server.document_models import (
    ChartRequest,
    ChartResponse,
    ChartResult,
    DocumentTextResult,
    PageTextResult,
    ReadRequest,
    ReadResponse,
    StreamedRequest,
    TableRequest,
    TableResponse,
    TableResult,
)
from paligemma.server.document_work import ServiceAsker
from paligemma.server.responses import ResponseModel, TaskResponse


@dataclass(frozen=True, kw_only=True)
class Download:
    """An answer that is a file rather than JSON."""

    text: str
    media_type: str
    name: str

    def response(self) -> Response:
        """Not to be shown: browsers would take what a document says for a page of the server."""
        headers = {"content-disposition": f'attachment; filename="{self.name}"'}
        return Response(self.text.encode(), media_type=self.media_type, headers=headers)


Work = Callable[[Document, ServiceAsker], ResponseModel | Download]
RequestT = TypeVar("RequestT", bound=StreamedRequest)


@dataclass(frozen=True, kw_only=True)
class DocumentTask:
    """A route."""

    name: str
    request: type[StreamedRequest]
    response: type[TaskResponse]
    prepare: Callable[[Any], Work]
    """Returns what to do for a request. Raises OptionError before the document is opened."""
    media_types: tuple[str, ...]
    """Of the files that the answer may be, other than JSON."""


def _reading(request: ReadRequest) -> Work:
    options = ReadOptions(
        source=request.source,
        turn=request.turn,
        tiles=request.tiles,
        max_new_tokens=request.max_new_tokens,
    )

    def work(document: Document, asker: ServiceAsker) -> ResponseModel | Download:
        pages = []
        for page in read_pages(asker, document.pages, options):
            asker.tell(PageTextResult.model_validate(page.to_dict()))
            pages.append(page)
        text = DocumentText(name=document.name, source=options.source, pages=tuple(pages))
        if request.to == "txt":
            return Download(text=text.text, media_type="text/plain", name="document.txt")
        return DocumentTextResult.model_validate(text.to_dict())

    return work


def _table(request: TableRequest) -> Work:
    options = PartOptions(
        box_xyxy=request.box, page=request.page, max_new_tokens=request.max_new_tokens
    )

    def work(document: Document, asker: ServiceAsker) -> ResponseModel | Download:
        table = read_table(asker, document, options)
        if request.to == "csv":
            return Download(text=table.to_csv(safe=True), media_type="text/csv", name="table.csv")
        if request.to == "html":
            return Download(text=table.to_html(), media_type="text/html", name="table.html")
        return TableResult.model_validate(table.to_dict())

    return work


def _chart(request: ChartRequest) -> Work:
    options = ChartOptions(
        box_xyxy=request.box,
        page=request.page,
        max_new_tokens=request.max_new_tokens,
        labels=tuple(request.labels),
        series=tuple(request.series),
        language=request.language or None,
    )

    def work(document: Document, asker: ServiceAsker) -> ResponseModel | Download:
        chart = read_chart(asker, document, options)
        if request.to == "csv":
            return Download(text=chart.to_csv(safe=True), media_type="text/csv", name="chart.csv")
        return ChartResult.model_validate(chart.to_dict())

    return work


TASKS: tuple[DocumentTask, ...] = (
    DocumentTask(
        name="read",
        request=ReadRequest,
        response=ReadResponse,
        prepare=_reading,
        media_types=("text/plain",),
    ),
    DocumentTask(
        name="table",
        request=TableRequest,
        response=TableResponse,
        prepare=_table,
        media_types=("text/csv", "text/html"),
    ),
    DocumentTask(
        name="chart",
        request=ChartRequest,
        response=ChartResponse,
        prepare=_chart,
        media_types=("text/csv",),
    ),
)
