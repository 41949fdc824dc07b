"""What can be done with documents and videos: how requests become work, and results answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.responses import Response

from paligemma.documents.page import Document
from paligemma.documents.read import DocumentText, ReadOptions, read_pages
from paligemma.documents.remote import RemotePages
from paligemma.documents.searchable import unsearchable
from paligemma.documents.tables import ChartOptions, PartOptions, read_chart, read_table
from paligemma.documents.write import to_alto, to_hocr, to_txt
from paligemma.extraction.asking import extract
from paligemma.extraction.names import read_names
from paligemma.extraction.options import ExtractOptions
from paligemma.extraction.schema import read_schema
from paligemma.server.document_models import (
    ChartRequest,
    ChartResponse,
    ChartResult,
    DocumentTextResult,
    ExtractionResult,
    ExtractRequest,
    ExtractResponse,
    PageTextResult,
    ReadRequest,
    ReadResponse,
    StreamedRequest,
    TableRequest,
    TableResponse,
    TableResult,
)
from paligemma.server.document_work import ServiceAsker
from paligemma.server.images import DOCUMENT, VIDEO, FileKind
from paligemma.server.responses import ResponseModel, TaskResponse
from paligemma.server.video_models import SegmentResult, VideoRequest, VideoResponse, VideoResult
from paligemma.server.video_reader import RemoteClip, check_questions
from paligemma.video.asking import FRAMES_OF_A_FILM, Video
from paligemma.video.segment import VideoSegment


@dataclass(frozen=True, kw_only=True)
class Download:
    """An answer that is a file rather than JSON."""

    data: bytes
    media_type: str
    name: str

    def response(self) -> Response:
        """Not to be shown: browsers would take what a document says for a page of the server."""
        headers = {"content-disposition": f'attachment; filename="{self.name}"'}
        return Response(self.data, media_type=self.media_type, headers=headers)


Work = Callable[[Any, ServiceAsker], ResponseModel | Download]
"""Gets a `Document`, or the `RemoteClip` of a video."""
RequestT = TypeVar("RequestT", bound=StreamedRequest)


@dataclass(frozen=True, kw_only=True)
class DocumentTask:
    """A route."""

    name: str
    request: type[StreamedRequest] | type[VideoRequest]
    response: type[TaskResponse]
    prepare: Callable[[Any], Work]
    """Returns what to do for a request. Raises OptionError before the document is opened."""
    media_types: tuple[str, ...] = ()
    """Of the files that the answer may be, other than JSON."""
    kind: FileKind = DOCUMENT


def _reading(request: ReadRequest) -> Work:
    options = ReadOptions(
        source=request.source,
        turn=request.turn,
        tiles=request.tiles,
        max_new_tokens=request.max_new_tokens,
    )

    def work(document: Document, asker: ServiceAsker) -> ResponseModel | Download:
        pages = []
        unread = document.pages
        if request.to == "searchable-pdf" and request.source == "model":
            unread = unsearchable(unread)
        for page in read_pages(asker, unread, options):
            asker.tell(PageTextResult.model_validate(page.to_dict()))
            pages.append(page)
        text = DocumentText(name=document.name, source=options.source, pages=tuple(pages))
        if request.to == "json":
            return DocumentTextResult.model_validate(text.to_dict())
        media_type, name, write = _TEXT_FILES[request.to]
        return Download(data=write(document, text), media_type=media_type, name=name)

    return work


def _searchable_pdf(document: Document, text: DocumentText) -> bytes:
    assert isinstance(document.source, RemotePages)
    return document.source.searchable_pdf(text)


_TEXT_FILES: dict[str, tuple[str, str, Callable[[Document, DocumentText], bytes]]] = {
    "txt": ("text/plain", "document.txt", lambda _, text: to_txt(text).encode()),
    "hocr": ("application/xhtml+xml", "document.hocr", lambda _, text: to_hocr(text).encode()),
    "alto": ("application/xml", "document.xml", lambda _, text: to_alto(text).encode()),
    "searchable-pdf": ("application/pdf", "document.pdf", _searchable_pdf),
}
"""Media type, name and contents of each file that a text can be written to."""


def _extraction(request: ExtractRequest) -> Work:
    schema = read_schema(request.schema_)
    names = request.names or ()
    read_names(names, schema)
    options = ExtractOptions(
        source=request.source,
        language=request.language,
        date_order=request.date_order,
        decimal_mark=request.decimal_mark,
        min_score=request.min_score,
        check=request.check,
        mode=request.mode,
        json_prompt=request.json_prompt,
        detect=request.detect,
    )

    def work(document: Document, asker: ServiceAsker) -> ResponseModel | Download:
        found = extract(asker, document, schema, options, names)
        if request.to == "csv":
            data = found.to_csv(safe=True).encode()
            return Download(data=data, media_type="text/csv", name="fields.csv")
        if request.to == "html":
            data = found.to_html(source=document).encode()
            return Download(data=data, media_type="text/html", name="fields.html")
        return ExtractionResult.model_validate(found.to_dict())

    return work


def _table(request: TableRequest) -> Work:
    options = PartOptions(
        box_xyxy=request.box, page=request.page, max_new_tokens=request.max_new_tokens
    )

    def work(document: Document, asker: ServiceAsker) -> ResponseModel | Download:
        table = read_table(asker, document, options)
        if request.to == "csv":
            data = table.to_csv(safe=True).encode()
            return Download(data=data, media_type="text/csv", name="table.csv")
        if request.to == "html":
            data = table.to_html().encode()
            return Download(data=data, media_type="text/html", name="table.html")
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
            data = chart.to_csv(safe=True).encode()
            return Download(data=data, media_type="text/csv", name="chart.csv")
        return ChartResult.model_validate(chart.to_dict())

    return work


def _video(request: VideoRequest) -> Work:
    settings = {
        "frames": request.frames,
        "pick": request.pick,
        "max_new_tokens": request.max_new_tokens,
    }
    question, every = request.question, request.every

    def segments(video: Video) -> Iterator[VideoSegment]:
        if every is None:
            given: dict[str, Any] = {k: v for k, v in settings.items() if v is not None}
            if question is None:
                yield video.caption(language=request.language or "en", **given)
            else:
                yield video.ask(question, language=request.language or None, **given)
        elif question is None:
            yield from video.captions(every, language=request.language or "en", **settings)  # type: ignore[arg-type]
        else:
            yield from video.answers(question, every, language=request.language or None, **settings)  # type: ignore[arg-type]

    def work(clip: RemoteClip, asker: ServiceAsker) -> ResponseModel | Download:
        video = Video(asker=asker, clip=clip, start_s=request.start_s, end_s=request.end_s)
        number = 1 if every is None else len(video.windows(every))
        usual = FRAMES_OF_A_FILM if every is None else 1
        check_questions(number * (request.frames or usual), asker.limits)
        found = []
        for segment in segments(video):
            found.append(SegmentResult.model_validate(segment.to_dict()))
            asker.tell(found[-1])
        info = clip.info
        return VideoResult(
            width=info.width,
            height=info.height,
            duration_s=info.duration_s,
            stream=info.stream,
            segments=found,
            problems=list(clip.problems),
        )

    return work


VIDEO_TASK = DocumentTask(
    name="video", request=VideoRequest, response=VideoResponse, prepare=_video, kind=VIDEO
)
"""Only where the server's settings allow it."""

TASKS: tuple[DocumentTask, ...] = (
    DocumentTask(
        name="read",
        request=ReadRequest,
        response=ReadResponse,
        prepare=_reading,
        media_types=tuple(media_type for media_type, _, _ in _TEXT_FILES.values()),
    ),
    DocumentTask(
        name="extract",
        request=ExtractRequest,
        response=ExtractResponse,
        prepare=_extraction,
        media_types=("text/csv", "text/html"),
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
