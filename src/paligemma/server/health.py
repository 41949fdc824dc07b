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


def add_health(app: FastAPI, service: Service, *, open_readiness: bool) -> list[BaseRoute]:
    """Adds `/health/live` and `/health/ready`; gives back the routes that everybody may ask."""

    @app.get("/health/live", response_class=Response, responses=_STATES, tags=["server"])
    async def live() -> Response:
        """200 while the process is worth keeping: its engine's thread answers."""
        is_alive = service.is_alive()
        return _json(200 if is_alive else 503, {"status": "live" if is_alive else "dead"})

    live_route = app.routes[-1]

    @app.get("/health/ready", response_class=Response, responses=_STATES, tags=["server"])
    async def ready() -> Response:
        """200 while new work is taken; the state says why not."""
        state = service.state()
        headers = {} if state == "ready" else {"retry-after": "1"}
        return _json(200 if state == "ready" else 503, {"status": state}, headers)

    return [live_route, app.routes[-1]] if open_readiness else [live_route]


def limits_routes(desk: Desk) -> APIRouter:
    """`/v1/limits`."""
    router = APIRouter(tags=["server"])

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
