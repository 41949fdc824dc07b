"""The web application: middleware around routes.

CrossOrigin -> AccessLogMiddleware -> HeaderLimits -> Authentication -> TrustedHosts -> Admission
-> BodyLimits -> routes
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeGuard

from fastapi import FastAPI, Request
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

from paligemma import __version__
from paligemma.errors import PaliGemmaError
from paligemma.server.document_models import PageTextResult, ProgressEvent
from paligemma.server.document_tasks import TASKS
from paligemma.server.document_work import DocumentRunner
from paligemma.server.errors import ApiError, error_response, to_api_error
from paligemma.server.handler import RequestHandler
from paligemma.server.images import Fetcher
from paligemma.server.metrics import Metrics, metrics_routes
from paligemma.server.middleware import (
    AccessLogMiddleware,
    Admission,
    Authentication,
    BodyLimits,
    CrossOrigin,
    HeaderLimits,
    TrustedHosts,
)
from paligemma.server.openai_models import ChatCompletionChunk, CompletionChunk
from paligemma.server.refusing import EarlyRefusal
from paligemma.server.responses import BatchLine, ObjectEvent, SegmentEvent, TokenEvent
from paligemma.server.routes.batch import batch_routes
from paligemma.server.routes.documents import document_routes
from paligemma.server.routes.health import add_health, limits_routes
from paligemma.server.routes.native import REQUESTS, native_routes
from paligemma.server.routes.openai import OPENAI_REQUESTS, openai_routes
from paligemma.server.routes.openai_responses import openai_responses_routes
from paligemma.server.service import Service
from paligemma.server.settings import Settings
from paligemma.server.video_models import VideoRequest

PAGE_FOLDER = Path(__file__).parent / "page"

_STREAMED = (
    *(BatchLine, TokenEvent, ObjectEvent, SegmentEvent, ProgressEvent, PageTextResult),
    *(ChatCompletionChunk, CompletionChunk),
)
_DESCRIPTION = (
    "PaliGemma: image captioning, VQA, OCR, detection and segmentation. "
    "Errors have the format of OpenAI's API."
)


class Application:
    """The ASGI application, and what an HTTP server may ask before it parses a request."""

    def __init__(
        self, app: ASGIApp, early_refusal: EarlyRefusal, documents: DocumentRunner
    ) -> None:
        self.app = app
        self.early_refusal = early_refusal
        self._documents = documents

    def close(self) -> None:
        """End the process that waits for the next document, if there is one."""
        self._documents.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)


def create_app(service: Service, settings: Settings | None = None) -> Application:
    """The application for a service, which the caller starts and closes."""
    settings = settings or Settings()
    handler = RequestHandler(service=service, settings=settings, fetcher=Fetcher(settings))
    metrics = Metrics(service)
    app = FastAPI(
        title="paligemma",
        version=__version__,
        description=_DESCRIPTION,
        docs_url=None,  # FastAPI's pages load scripts from other sites
        redoc_url=None,
        openapi_url="/openapi.json",
        redirect_slashes=False,
        generate_unique_id_function=lambda route: route.name,
        separate_input_output_schemas=False,
    )
    health = add_health(app, service, open_readiness=settings.open_readiness)
    documents = DocumentRunner(service)
    work = [
        native_routes(handler),
        batch_routes(handler),
        document_routes(handler, documents),
        openai_routes(handler),
        openai_responses_routes(handler),
    ]
    for router in (*work, limits_routes(handler), metrics_routes(metrics)):
        app.include_router(router)
    page = _page_routes(app)
    app.add_exception_handler(PaliGemmaError, _answer_error)
    app.add_exception_handler(ClientDisconnect, _answer_error)
    app.add_exception_handler(HTTPException, _answer_http_exception)
    app.add_exception_handler(Exception, _answer_error)
    schemas: list[type[BaseModel]] = [
        *REQUESTS.values(),
        *(task.request for task in TASKS),
        *([VideoRequest] if settings.allow_video else []),
        *OPENAI_REQUESTS,
        *_STREAMED,
    ]
    app.openapi = lambda: _openapi(app, schemas)  # type: ignore[method-assign]

    guarded: ASGIApp = BodyLimits(app, settings.limits)
    guarded = Admission(guarded, service)
    guarded = TrustedHosts(guarded, settings, open_routes=health)
    guarded = Authentication(guarded, settings.keys, open_routes=[*health, *page])
    guarded = HeaderLimits(guarded, settings.limits)
    guarded = AccessLogMiddleware(guarded, metrics.count_request)
    guarded = CrossOrigin(guarded, settings.origins)
    paths = [route.path for router in work for route in router.routes if _is_post(route)]
    refusal = EarlyRefusal(service, settings.keys, paths, metrics.count_request)
    return Application(guarded, refusal, documents)


def _is_post(route: BaseRoute) -> TypeGuard[Route]:
    return isinstance(route, Route) and "POST" in (route.methods or ())


class _Page(StaticFiles):
    """The page's files. Browsers revalidate them, so that a new server brings a new page."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers["cache-control"] = "no-cache"
        return response

    async def get_response(self, path: str, scope: Scope) -> Response:
        scope["route"] = self  # all files count as one route in metrics
        # The files are small. Range requests would produce errors in another format.
        scope["headers"] = [header for header in scope["headers"] if header[0] != b"range"]
        return await super().get_response(path, scope)

    path = "/page"


def _page_routes(app: FastAPI) -> list[BaseRoute]:
    """`/` and `/page/...`: static files, which need no key."""
    if not PAGE_FOLDER.is_dir():
        return []

    files = _Page(directory=PAGE_FOLDER)

    @app.get("/", include_in_schema=False)
    async def index(request: Request) -> Response:
        return await files.get_response("index.html", request.scope)

    @app.get("/favicon.ico", include_in_schema=False)
    async def icon(request: Request) -> Response:
        return await files.get_response("icon.svg", request.scope)

    app.mount("/page", files)
    return [
        route
        for route in app.routes
        if getattr(route, "path", None) in ("/", "/favicon.ico")
        or (isinstance(route, Mount) and route.path == "/page")
    ]


async def _answer_error(request: Request, error: Exception) -> Response:
    api_error = to_api_error(error)
    request.state.error_code = api_error.code
    return error_response(api_error)


async def _answer_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    messages = {404: "Not found.", 405: "Method not allowed."}
    message = messages.get(error.status_code, "Invalid request.")
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "invalid_request")
    headers = {name: value for name, value in (error.headers or {}).items() if name == "Allow"}
    return error_response(ApiError(error.status_code, code, message, headers=headers))


def _openapi(app: FastAPI, models: Sequence[type[BaseModel]]) -> dict[str, Any]:
    """FastAPI's document, with the models of bodies that FastAPI does not read or write itself."""
    if app.openapi_schema is None:
        document = get_openapi(
            title=app.title, version=app.version, description=app.description, routes=app.routes
        )
        _, definitions = models_json_schema(
            [(model, "validation") for model in models], ref_template="#/components/schemas/{model}"
        )
        components = document.setdefault("components", {})
        components.setdefault("schemas", {}).update(definitions.get("$defs", {}))
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"key": []}, {}]
        for path in document["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)  # path parameters are never invalid
        for unused in ("HTTPValidationError", "ValidationError"):
            components["schemas"].pop(unused, None)
        app.openapi_schema = document
    return app.openapi_schema
