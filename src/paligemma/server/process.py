"""The server process: uvicorn with stricter timeouts, limits and shutdown.

    bind the port -> listen, while the model loads -> serve -> SIGTERM: drain -> exit

uvicorn alone waits forever for open streams at shutdown, keeps connections that never send a
request, and answers headers that are too large with 400.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from paligemma.errors import OptionError
from paligemma.fast.kernels.library import share_one_arena
from paligemma.server.errors import ApiError, error_response
from paligemma.server.logs import log
from paligemma.server.service import Service
from paligemma.server.settings import Limits

MAX_CONNECTIONS = 1024
DEAD_SECONDS = 5.0
"""Time that a process whose engine has failed keeps running to report it."""
FAILED = 1
"""Exit code after an engine failure or a second signal."""

_CLOSE_SECONDS = 1
_WATCH_SECONDS = 0.1
_LINGER_SECONDS = 2.0
_LINGER_BYTES = 64 * 2**20


def serve(app: ASGIApp, service: Service, limits: Limits, *, host: str, port: int) -> int:
    """Serve until a signal arrives. Returns the exit code.

    Raises OptionError for an address that cannot be bound, and any error of loading the model.
    """
    share_one_arena()
    return asyncio.run(_Server(app, service, limits, host, port).run_to_end())


class _Server(uvicorn.Server):
    def __init__(
        self, app: ASGIApp, service: Service, limits: Limits, host: str, port: int
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                host=host,
                port=port,
                http=limited_protocol(limits),
                ws="none",
                lifespan="off",
                log_config=None,
                log_level=logging.WARNING,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                h11_max_incomplete_event_size=limits.max_header_bytes,
                timeout_keep_alive=max(1, round(limits.idle_seconds)),
                timeout_graceful_shutdown=_CLOSE_SECONDS,
            )
        )
        self._service = service
        self._drain_seconds = limits.drain_seconds
        self._exit_code = 0
        self._draining: asyncio.Task[None] | None = None
        self._load_failure: BaseException | None = None

    async def run_to_end(self) -> int:
        self.servers = [await self._listen()]
        port = self.servers[0].sockets[0].getsockname()[1]
        log("listening", host=self.config.host, port=port, pid=os.getpid())
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)
        self._service.start()
        watching = asyncio.create_task(self._watch())
        try:
            await self.serve()
        finally:
            watching.cancel()
            if self._draining is not None:
                self._draining.cancel()
            self._service.close()
        if self._load_failure is not None:
            raise self._load_failure
        log("ended", exit_code=self._exit_code)
        return self._exit_code

    async def _listen(self) -> asyncio.Server:
        config = self.config
        config.load()

        def protocol() -> asyncio.Protocol:
            connection: asyncio.Protocol = config.http_protocol_class(  # type: ignore[call-arg]
                config=config, server_state=self.server_state, app_state={}
            )
            return connection

        loop = asyncio.get_running_loop()
        try:
            return await loop.create_server(
                protocol, host=config.host, port=config.port, backlog=512
            )
        except OSError as error:
            raise OptionError(
                f"The server cannot listen on {config.host}, port {config.port}: "
                f"{error.strerror or 'no such address'}. Give another --host or --port."
            ) from error

    async def startup(self, sockets: Sequence[Any] | None = None) -> None:
        """Do nothing: the server listens already."""
        self.started = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Do nothing: `run_to_end` handles signals."""
        yield

    def _on_signal(self) -> None:
        if self._draining is None:
            log("draining", seconds=self._drain_seconds)
            self._draining = asyncio.create_task(self._drain())
        else:
            self._exit_code = FAILED
            self.force_exit = self.should_exit = True

    async def _drain(self) -> None:
        """Finish accepted requests. New ones are answered with 503."""
        await self._service.drain(self._drain_seconds)
        self.should_exit = True

    async def _watch(self) -> None:
        """End the process when the engine has failed, so that a supervisor can restart it."""
        state = "loading"
        while state == "loading":
            await asyncio.sleep(_WATCH_SECONDS)
            state = self._service.state()
        if state == "dead":
            self._load_failure = self._service.failure
        seconds_dead = 0.0
        while seconds_dead < DEAD_SECONDS and self._load_failure is None:
            await asyncio.sleep(_WATCH_SECONDS)
            is_dead = self._service.state() == "dead"
            seconds_dead = seconds_dead + _WATCH_SECONDS if is_dead else 0.0
        log("engine_failed", level=logging.ERROR)
        self._exit_code = FAILED
        self.should_exit = True


def limited_protocol(limits: Limits) -> type[H11Protocol]:
    """The connection protocol with these limits."""
    timeouts = {"idle_seconds": limits.idle_seconds, "write_seconds": limits.body_seconds}
    return type("_LimitedProtocol", (_GuardedProtocol,), timeouts)


class _GuardedProtocol(H11Protocol):
    """A connection with timeouts for receiving headers and for sending answers.

    Its error responses are JSON, like those of the routes.
    """

    idle_seconds: ClassVar[float]
    """Time to receive the headers of a request, and between two requests."""
    write_seconds: ClassVar[float]  # time for a client to receive what is ready to be sent

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._idle_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._num_discarded: int | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            transport.abort()
        else:
            self._start_idle_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_idle_timer()
        self._set_write_timer(None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._num_discarded is not None:
            self._num_discarded += len(data)
            if self._num_discarded > _LINGER_BYTES:
                self.transport.abort()
            return
        super().data_received(data)
        if self._is_answering:
            self._stop_idle_timer()

    def on_response_complete(self) -> None:
        self._start_idle_timer()
        super().on_response_complete()
        if self._is_answering:  # a pipelined request
            self._stop_idle_timer()

    def _unsupported_upgrade_warning(self) -> None:
        """Do nothing: upgrade requests are answered as plain HTTP."""

    def send_400_response(self, msg: str) -> None:
        """Called while h11's error is handled. Reads on for a while, so that the answer arrives."""
        error = sys.exc_info()[1]
        if self._is_answering:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            is_large = isinstance(error, h11.RemoteProtocolError) and (
                error.error_status_hint == 431
            )
            api_error = (
                ApiError(431, "headers_too_large", "The headers are too large.", closes=True)
                if is_large
                else ApiError(400, "invalid_http", "Invalid HTTP request.", closes=True)
            )
            response = error_response(api_error)
            event = h11.Response(status_code=api_error.status, headers=response.raw_headers)
            for part in (event, h11.Data(data=bytes(response.body)), h11.EndOfMessage()):
                self.transport.write(self.conn.send(part) or b"")
            self._num_discarded = 0
            self.transport.write_eof()
            self.loop.call_later(_LINGER_SECONDS, self.transport.close)
        else:
            self.transport.close()

    def pause_writing(self) -> None:
        """Called when more is ready to be sent than the client receives."""
        super().pause_writing()
        self._set_write_timer(self.loop.call_later(self.write_seconds, self.transport.abort))

    def resume_writing(self) -> None:
        """Called when the client has received it."""
        super().resume_writing()
        self._set_write_timer(None)

    def _set_write_timer(self, timer: asyncio.TimerHandle | None) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
        self._write_timer = timer

    @property
    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _start_idle_timer(self) -> None:
        self._stop_idle_timer()
        self._idle_timer = self.loop.call_later(self.idle_seconds, self._close_if_idle)

    def _stop_idle_timer(self) -> None:
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None

    def _close_if_idle(self) -> None:
        if not self._is_answering:
            self.transport.close()
