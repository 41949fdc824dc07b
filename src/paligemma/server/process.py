"""The server process: uvicorn with stricter timeouts, limits and shutdown.

    bind the port -> listen, while the model loads -> serve -> SIGTERM: drain -> exit

uvicorn alone waits forever for open streams at shutdown, keeps connections that never send a
request, and answers headers that are too large with 400.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import logging
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from paligemma.errors import OptionError
from paligemma.fast.kernels.library import share_one_arena
from paligemma.server.app import Application
from paligemma.server.errors import ApiError, error_response
from paligemma.server.logs import log
from paligemma.server.refusing import EarlyRefusal
from paligemma.server.service import Service
from paligemma.server.settings import Limits

MAX_CONNECTIONS = 1024
"""Fewer if the process may not open so many files."""
DEAD_SECONDS = 5.0
"""Time that a process whose engine has failed keeps running to report it."""
FAILED = 1
"""Exit code after an engine failure or a second signal."""

_RESERVED_FILES = 64  # for the model, libraries, and connections that wait to be closed
_ACCEPTED_AT_ONCE = 16
_BACKLOG = 512
_CLOSE_SECONDS = 1
_WATCH_SECONDS = 0.1
_PROBE_SECONDS = 0.05
_LINGER_SECONDS = 2.0
_LINGER_BYTES = 64 * 2**20


def serve(app: Application, service: Service, limits: Limits, *, host: str, port: int) -> int:
    """Serve until a signal arrives. Returns the exit code.

    Raises OptionError for an address that cannot be bound, and any error of loading the model.
    """
    share_one_arena()
    max_connections = allowed_connections()
    return asyncio.run(_Server(app, service, limits, host, port, max_connections).run_to_end())


def allowed_connections() -> int:
    """How many connections this process can hold, after raising its limit on open files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = MAX_CONNECTIONS + _RESERVED_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        highest = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (highest, hard))
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return MAX_CONNECTIONS
    log("few_files", level=logging.WARNING, limit=soft, connections=max(8, soft - _RESERVED_FILES))
    return max(8, soft - _RESERVED_FILES)


class _Server(uvicorn.Server):
    def __init__(
        self,
        app: Application,
        service: Service,
        limits: Limits,
        host: str,
        port: int,
        max_connections: int,
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                host=host,
                port=port,
                http=limited_protocol(limits, max_connections, app.early_refusal),
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
        self._application = app
        self._service = service
        self._drain_seconds = limits.drain_seconds
        self._exit_code = 0
        self._draining: asyncio.Task[None] | None = None
        self._load_failure: BaseException | None = None

    async def run_to_end(self) -> int:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(_on_loop_error)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)
        self.servers = [await self._listen()]
        port = self.servers[0].sockets[0].getsockname()[1]
        log("listening", host=self.config.host, port=port, pid=os.getpid())
        self._service.start()
        watching = asyncio.create_task(self._watch())
        try:
            await self.serve()
        finally:
            watching.cancel()
            if self._draining is not None:
                self._draining.cancel()
            self._application.close()
            self._service.close(wait=not self.force_exit)
        if self._load_failure is not None:
            raise self._load_failure
        log("ended", exit_code=self._exit_code)
        if self.force_exit:  # without waiting for threads that compute
            sys.stderr.flush()
            os._exit(self._exit_code)
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
            # asyncio accepts as many connections at once as its backlog is long, before it closes
            # the first of those that are too many.
            server = await loop.create_server(
                protocol, host=config.host, port=config.port, backlog=_ACCEPTED_AT_ONCE
            )
        except OSError as error:
            raise OptionError(
                f"The server cannot listen on {config.host}, port {config.port}: "
                f"{error.strerror or 'no such address'}. Give another --host or --port."
            ) from error
        for listening in server.sockets:
            with contextlib.closing(listening.dup()) as duplicate:
                duplicate.listen(_BACKLOG)
        return server

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
        elif not self.force_exit:
            self._exit_code = FAILED
            self._draining.cancel()
            self._draining = asyncio.create_task(self._end_now())

    async def _drain(self) -> None:
        """Finish accepted requests. New ones are answered with 503."""
        await self._service.drain(self._drain_seconds)
        await self._end_requests()
        self.force_exit = self._service.predictor is None  # do not wait for a model that loads
        self.should_exit = True

    def _announce(self) -> None:
        address = _web_address(self.config.host, self.servers[0].sockets[0].getsockname()[1])
        log("ready", address=address)
        gc.collect()
        gc.freeze()  # or each full collection would look at all modules again, and all would wait
        if sys.stderr.isatty():
            print(
                f"\n{self._service.name} is ready. Try it in a browser: {address}   "
                "(Ctrl-C stops it)\n",
                file=sys.stderr,
            )

    async def _end_now(self) -> None:
        """End all requests with 503, and then the process."""
        await self._service.drain(0)
        await self._end_requests()
        self.force_exit = self.should_exit = True

    async def _end_requests(self) -> None:
        """Let answers be sent; then end what is still being received or fetched, with 503."""
        for _ in range(2):
            until = time.monotonic() + _CLOSE_SECONDS
            while self.server_state.tasks and time.monotonic() < until:
                await asyncio.sleep(_WATCH_SECONDS / 10)
            for task in self.server_state.tasks:
                task.cancel()

    async def _watch(self) -> None:
        """End the process when the engine has failed, so that a supervisor can restart it."""
        state = "loading"
        while state == "loading":
            await asyncio.sleep(_WATCH_SECONDS)
            state = self._service.state()
        if state == "ready":
            self._announce()
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


def _on_loop_error(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    error = context.get("exception")
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        # asyncio accepts no connections for a second.
        log("out_of_file_descriptors", level=logging.ERROR)
    else:
        loop.default_exception_handler(context)


def _web_address(host: str, port: int) -> str:
    """An address at which a browser on this machine reaches the server."""
    if host in ("", "0.0.0.0", "::"):
        host = "localhost"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def limited_protocol(
    limits: Limits,
    max_connections: int = MAX_CONNECTIONS,
    early_refusal: EarlyRefusal | None = None,
) -> type[H11Protocol]:
    """The connection protocol with these limits."""
    attributes = {
        "idle_seconds": limits.idle_seconds,
        "write_seconds": limits.body_seconds,
        "max_connections": max_connections,
        "early_refusal": early_refusal,
    }
    return type("_LimitedProtocol", (_GuardedProtocol,), attributes)


class _GuardedProtocol(H11Protocol):
    """A connection with timeouts for receiving headers and for sending answers.

    Its error responses are JSON, like those of the routes.
    """

    idle_seconds: ClassVar[float]
    """Time to receive the headers of a request, and between two requests."""
    max_connections: ClassVar[int]
    early_refusal: ClassVar[EarlyRefusal | None]
    write_seconds: ClassVar[float]  # time for a client to receive what is ready to be sent

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._idle_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._num_discarded: int | None = None  # while the rest of a refused request is not read

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(_LingeringTransport(transport, self))  # type: ignore[arg-type]
        self._idle_since = self.loop.time()
        self._start_idle_timer()
        if len(self.connections) > self.max_connections:
            self._make_room()

    def _make_room(self) -> None:
        """Close the connection without a request that has been idle the longest, or this one."""
        idle = [c for c in self.connections if isinstance(c, _GuardedProtocol) and c.is_idle]
        oldest = min(idle, key=lambda c: c._idle_since, default=self)
        self.connections.discard(oldest)
        oldest.transport.abort()

    @property
    def is_idle(self) -> bool:
        """Whether no request is being answered."""
        return not self._is_answering

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
        if self.early_refusal is not None and self._is_between_requests:
            answer = self.early_refusal(data, self.client[0] if self.client else "local")
            if answer is not None:
                self._send_last(answer)
                return
        super().data_received(data)
        if self._is_answering:
            self._stop_idle_timer()

    def eof_received(self) -> bool:  # type: ignore[override]
        """Called when the client sends nothing more. Returns whether to keep the connection.

        The client may have closed only its half, or be gone. In the second case it resets the
        connection when something is sent to it, such as `100 Continue`, which is always allowed.
        """
        if not self._is_answering or self._num_discarded is not None or self.cycle.more_body:
            return False
        self.cycle.keep_alive = False
        if self.cycle.scope["http_version"] != "1.0":  # which has no `100 Continue`
            self._probe(_PROBE_SECONDS)
        return True

    def _probe(self, seconds: float) -> None:
        is_gone = self.transport.is_closing()
        if self._is_answering and not self.cycle.response_started and not is_gone:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self.loop.call_later(seconds, self._probe, min(2 * seconds, 1.0))

    def linger(self, close: Callable[[], None]) -> None:
        """Close after an answer, but first discard what the client is still sending.

        Closing a connection with unread bytes resets it, and the client would lose the answer.
        """
        if self.cycle is None or not self.cycle.more_body or self._num_discarded is not None:
            close()
            return
        self._num_discarded = 0
        self.transport.write_eof()
        self.transport.resume_reading()
        self.loop.call_later(_LINGER_SECONDS, close)

    def on_response_complete(self) -> None:
        self._idle_since = self.loop.time()
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
            parts = (event, h11.Data(data=bytes(response.body)), h11.EndOfMessage())
            self._send_last(b"".join(self.conn.send(part) or b"" for part in parts))
        else:
            self.transport.close()

    def _send_last(self, answer: bytes) -> None:
        """Send an answer and close, but first discard for a while what the client still sends."""
        self._stop_idle_timer()
        self._num_discarded = 0
        self.transport.write(answer)
        self.transport.write_eof()
        self.loop.call_later(_LINGER_SECONDS, self.transport.close)

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

    @property
    def _is_between_requests(self) -> bool:
        is_idle = self.conn.their_state is h11.IDLE and not self._is_answering
        return is_idle and not self.conn.trailing_data[0]

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


class _LingeringTransport:
    """A transport whose `close` lets the client finish its request, if it is still sending."""

    def __init__(self, transport: asyncio.Transport, protocol: _GuardedProtocol) -> None:
        self._transport = transport
        self._protocol = protocol

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def close(self) -> None:
        self._protocol.linger(self._transport.close)
