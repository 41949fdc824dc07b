"""Liveness, readiness and limits."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, FastAPI
from starlette.responses import Response
from starlette.routing import BaseRoute

from paligemma.server.handler import RequestHandler
from paligemma.server.responses import (
    LimitsResponse,
    LiveResponse,
    ReadyResponse,
    ResponseModel,
    error_responses,
    json_response,
)
from paligemma.server.service import Service

IMAGE_FORMATS = ["jpeg", "png", "webp", "gif", "bmp"]


def add_health(app: FastAPI, service: Service, *, open_readiness: bool) -> list[BaseRoute]:
    """Add `/health/live` and `/health/ready`. Returns the routes that need no key."""

    @app.get(
        "/health/live", response_class=Response, responses=_states(LiveResponse), tags=["server"]
    )
    async def live() -> Response:
        """200 while the engine responds, whether or not it is ready; 503 when it has failed."""
        is_alive = service.is_alive()
        body = LiveResponse(status="live" if is_alive else "dead")
        return json_response(body, status=200 if is_alive else 503)

    live_route = app.routes[-1]

    @app.get(
        "/health/ready", response_class=Response, responses=_states(ReadyResponse), tags=["server"]
    )
    async def ready() -> Response:
        """200 while new requests are accepted; otherwise 503, and `status` says why."""
        state = service.state()
        body = ReadyResponse(status=state)
        if state == "ready":
            return json_response(body)
        return json_response(body, status=503, headers={"retry-after": "1"})

    return [live_route, app.routes[-1]] if open_readiness else [live_route]


def limits_routes(handler: RequestHandler) -> APIRouter:
    """`/v1/limits`."""
    router = APIRouter(tags=["server"])

    @router.get(
        "/v1/limits",
        response_class=Response,
        responses={
            200: {"description": "All limits, with their values.", "model": LimitsResponse},
            **error_responses(401, 403, 421, 431, 500),
        },
    )
    async def limits() -> Response:
        """The server's limits and the image formats it accepts."""
        body = LimitsResponse.model_validate(
            {
                **handler.limits.to_dict(),
                "image_formats": IMAGE_FORMATS,
                "fetches_images": bool(
                    handler.settings.image_domains or handler.settings.private_image_hosts
                ),
                "reads_videos": handler.settings.allow_video,
            }
        )
        return json_response(body)

    return router


def _states(model: type[ResponseModel]) -> dict[int | str, dict[str, Any]]:
    return {
        200: {"description": "Yes.", "model": model},
        503: {"description": "No.", "model": model},
        **error_responses(401, 403, 421, 431, 500),
    }
