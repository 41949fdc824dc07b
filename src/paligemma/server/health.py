"""Is it alive, is it ready, what are its limits?

Alive looks at the engine's heartbeat, not at whether this code can run.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, FastAPI
from starlette.responses import Response
from starlette.routing import BaseRoute

from paligemma.server.native_api import Desk
from paligemma.server.service import Service
from paligemma.server.strict_json import write_json


def add_liveness(app: FastAPI, service: Service) -> BaseRoute:
    """Adds `/health/live`; gives back the route, the one that everybody may ask."""

    @app.get("/health/live", response_class=Response, responses=_STATES, tags=["server"])
    async def live() -> Response:
        """200 while the process is worth keeping: its engine's thread answers."""
        is_alive = service.is_alive()
        return _json(200 if is_alive else 503, {"status": "live" if is_alive else "dead"})

    return app.routes[-1]


def health_routes(desk: Desk) -> APIRouter:
    """`/health/ready` and `/v1/limits`."""
    router = APIRouter(tags=["server"])
    service = desk.service

    @router.get("/health/ready", response_class=Response, responses=_STATES)
    async def ready() -> Response:
        """200 while new work is taken; the state says why not."""
        state = service.state()
        is_ready = state == "ready" and service.is_alive()
        headers = {} if is_ready else {"retry-after": "1"}
        return _json(200 if is_ready else 503, {"status": state}, headers)

    @router.get("/v1/limits", response_class=Response)
    async def limits() -> Response:
        """What is accepted, and how much."""
        return _json(
            200,
            {
                **desk.limits.to_dict(),
                "image_formats": ["jpeg", "png", "webp", "gif", "bmp"],
                "fetches_images": bool(desk.settings.image_domains),
            },
        )

    return router


_STATES: dict[int | str, dict[str, Any]] = {
    200: {"description": "Yes."},
    503: {"description": "No."},
}


def _json(status: int, value: dict[str, Any], headers: dict[str, str] | None = None) -> Response:
    return Response(
        write_json(value), status_code=status, media_type="application/json", headers=headers
    )
