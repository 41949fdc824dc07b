"""The server on several machines: each replica of a Ray Serve application is one whole server.

    pip install 'paligemma[serve]' 'ray[serve]'
    serve run --working-dir deploy --app-dir deploy ray_serve:build model=mini replicas=2 cpus=2

Ray's proxy spreads requests over the replicas; each has its own model, batcher and limits, and
drains before it is taken away. Keys come from $PALIGEMMA_API_KEYS of the replicas' environment.
Ray is imported where it is used, so that this file can be read without it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, ClassVar

from paligemma.server.app import create_app
from paligemma.server.service import Service
from paligemma.server.settings import (
    LOOPBACK_HOSTS,
    Limits,
    Settings,
    limits_without_keys,
    read_keys,
    served_name,
)

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send


class ServerApp:
    """The server as an ASGI application that loads its model when it is started.

    It travels to the replica before that, so until then it holds settings alone.
    """

    running: ClassVar[Service | None] = None
    """The service of this process."""

    def __init__(self, model: str, hosts: tuple[str, ...]) -> None:
        self.model = model
        self.hosts = hosts
        self._app: ASGIApp | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        else:
            assert self._app is not None
            await self._app(scope, receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        """Ready when the model is; ends when what was accepted is answered."""
        await receive()  # lifespan.startup
        service = self._start()
        await service.wait_until_ready()
        await send({"type": "lifespan.startup.complete"})
        await receive()  # lifespan.shutdown
        await service.drain()
        await asyncio.to_thread(service.close)
        await send({"type": "lifespan.shutdown.complete"})

    def _start(self) -> Service:
        import paligemma

        keys = read_keys(None)
        limits = Limits() if keys is not None else limits_without_keys(Limits())
        hosts = (*LOOPBACK_HOSTS, *self.hosts)
        settings = Settings(limits=limits, keys=keys, hosts=hosts)
        service = Service(
            lambda: paligemma.load(self.model), name=served_name(self.model), limits=limits
        )
        service.start()
        self._app = create_app(service, settings)
        ServerApp.running = service
        return service


def build(options: dict[str, str]) -> Any:
    """The application for `serve run` and for config files.

    Options: model (mini), replicas (1), cpus and gpus of each replica (1 and 0), hosts: the names
    by which clients call the proxy, by commas.
    """
    from ray import serve

    hosts = tuple(name.lower() for name in options.get("hosts", "").split(",") if name)
    app = ServerApp(options.get("model", "mini"), hosts)
    drain_seconds = Limits().drain_seconds

    @serve.deployment(
        name="paligemma",
        num_replicas=int(options.get("replicas", "1")),
        ray_actor_options={
            "num_cpus": float(options.get("cpus", "1")),
            "num_gpus": float(options.get("gpus", "0")),
        },
        # Above the server's own limits, so that it is the server that refuses, in its own words.
        max_ongoing_requests=1000,
        graceful_shutdown_timeout_s=drain_seconds + 10,
        health_check_period_s=5,
        health_check_timeout_s=10,
    )
    @serve.ingress(app)
    class Server:
        def check_health(self) -> None:
            """Ray replaces a replica whose engine does not answer any more."""
            if ServerApp.running is not None and not ServerApp.running.is_alive():
                raise RuntimeError("the engine does not answer")

    return Server.bind()
