"""One server process from its first byte to its last: uvicorn, with what it leaves open closed.

    bind the port -> listen, while the model loads -> serve -> SIGTERM: drain -> exit

uvicorn by itself waits for ever on open streams when it is told to end, keeps connections that
never send a request, and answers too large headers with 400. Knows signals and connections; knows
no routes and no model.
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
from paligemma.fast.kernels.memory import share_one_arena
from paligemma.server.errors import ApiError, error_response
from paligemma.server.limits import Limits
from paligemma.server.logs import log
from paligemma.server.service import Service

MAX_CONNECTIONS = 1024
DEAD_SECONDS = 5.0
"""How long a process whose engine has died still says so before it ends."""
FAILED = 1
"""Exit code of a process whose engine died, or that was told twice to end."""

_CLOSE_SECONDS = 1
_WATCH_SECONDS = 0.1
_LINGER_SECONDS = 2.0
_LINGER_BYTES = 64 * 2**20


def serve(app: ASGIApp, service: Service, limits: Limits, *, host: str, port: int) -> int:
    """Serves until it is told to end; gives back the exit code.

    Raises OptionError for an address that cannot be had, and whatever loading the model raised.
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
            loop.add_signal_handler(number, self._told_to_end)
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
            made: asyncio.Protocol = config.http_protocol_class(  # type: ignore[call-arg]
                config=config, server_state=self.server_state, app_state={}
            )
            return made

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
        """It listens already."""
        self.started = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are taken care of here."""
        yield

    def _told_to_end(self) -> None:
        if self._draining is None:
            log("draining", seconds=self._drain_seconds)
            self._draining = asyncio.create_task(self._drain())
        else:
            self._exit_code = FAILED
            self.force_exit = self.should_exit = True

    async def _drain(self) -> None:
        """Until the end, requests are answered: with 503 when they bring new work."""
        await self._service.drain(self._drain_seconds)
        self.should_exit = True

    async def _watch(self) -> None:
        """Ends a process that cannot serve any more: whoever started it can start it anew."""
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
    """The protocol of connections with these limits."""
    patience = {"idle": limits.idle_seconds, "patience": limits.body_seconds}
    return type("_LimitedProtocol", (_GuardedProtocol,), patience)


class _GuardedProtocol(H11Protocol):
    """A connection that must bring whole headers in time and take its answers in time.

    Its own refusals are JSON as those of the routes.
    """

    idle: ClassVar[float]
    """Seconds for the headers of a request, and between two requests."""
    patience: ClassVar[float]
    """Seconds for a client to take what is ready for it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._waiting: asyncio.TimerHandle | None = None
        self._stuck: asyncio.TimerHandle | None = None
        self._num_discarded: int | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            transport.abort()
        else:
            self._wait_for_request()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        self._take_note(None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._num_discarded is not None:
            self._num_discarded += len(data)
            if self._num_discarded > _LINGER_BYTES:
                self.transport.abort()
            return
        super().data_received(data)
        if self._is_answering:
            self._stop_waiting()

    def on_response_complete(self) -> None:
        self._wait_for_request()
        super().on_response_complete()
        if self._is_answering:  # a request that had been sent ahead
            self._stop_waiting()

    def _unsupported_upgrade_warning(self) -> None:
        """Nothing: who asks for another protocol is answered in this one."""

    def send_400_response(self, msg: str) -> None:
        """Called while h11's error is handled. Reads on a while, so that the answer arrives."""
        error = sys.exc_info()[1]
        if self._is_answering:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            is_large = isinstance(error, h11.RemoteProtocolError) and (
                error.error_status_hint == 431
            )
            found = (
                ApiError(431, "headers_too_large", "The headers are too large.", closes=True)
                if is_large
                else ApiError(400, "invalid_http", "This is not valid HTTP.", closes=True)
            )
            response = error_response(found)
            event = h11.Response(status_code=found.status, headers=response.raw_headers)
            for part in (event, h11.Data(data=bytes(response.body)), h11.EndOfMessage()):
                self.transport.write(self.conn.send(part) or b"")
            self._num_discarded = 0
            self.transport.write_eof()
            self.loop.call_later(_LINGER_SECONDS, self.transport.close)
        else:
            self.transport.close()

    def pause_writing(self) -> None:
        """More is ready than the client takes."""
        super().pause_writing()
        self._take_note(self.loop.call_later(self.patience, self.transport.abort))

    def resume_writing(self) -> None:
        """The client has taken it."""
        super().resume_writing()
        self._take_note(None)

    def _take_note(self, timer: asyncio.TimerHandle | None) -> None:
        if self._stuck is not None:
            self._stuck.cancel()
        self._stuck = timer

    @property
    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _wait_for_request(self) -> None:
        self._stop_waiting()
        self._waiting = self.loop.call_later(self.idle, self._give_up)

    def _stop_waiting(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def _give_up(self) -> None:
        if not self._is_answering:
            self.transport.close()
