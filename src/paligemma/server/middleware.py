"""What stands before the routes: ids and log lines, header limits, keys, hosts, body limits.

Pure ASGI, so that streams pass through untouched. Every decision about a path looks at the ASGI
scope, never at an address put together from headers. Knows no bodies' meaning.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Callable, Sequence

from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from paligemma.fast.kernels.memory import return_freed_memory
from paligemma.server.errors import ApiError, error_response, to_api_error
from paligemma.server.limits import Limits
from paligemma.server.logs import describe, log
from paligemma.server.settings import KeyRing, Settings

CONTENT_SECURITY_POLICY = (
    "default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'; base-uri 'none'; "
    "form-action 'none'; object-src 'none'"
)

_SECURITY_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"content-security-policy", CONTENT_SECURITY_POLICY.encode()),
)
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._\-]{1,64}")
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9_.\-]+)(:[0-9]{1,5})?")
_LINGER_SECONDS = 2.0
_LINGER_BYTES = 256 * 2**20
_LARGE_BODY = 8 * 2**20
"""Bytes from which on what a request used is given back to the system at once."""

Seen = Callable[[str, str, int, float], None]
"""Called after each request with method, route, status and seconds."""


class Edge:
    """Gives each request an id, answers what nobody caught, and writes one log line."""

    def __init__(self, app: ASGIApp, seen: Seen) -> None:
        self.app = app
        self._seen = seen

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.monotonic()
        given = _header(scope, b"x-request-id")
        method = scope["method"]
        if method == "HEAD":  # as GET; whoever speaks HTTP leaves the body out
            scope = {**scope, "method": "GET"}
        request_id = (
            given.decode() if given and _REQUEST_ID.fullmatch(given) else f"req-{uuid.uuid4().hex}"
        )
        scope.setdefault("state", {})["request_id"] = request_id
        status = 0
        is_whole = False

        async def send_marked(message: Message) -> None:
            nonlocal status, is_whole
            if message["type"] == "http.response.start":
                status = message["status"]
                names = {name.lower() for name, _ in message["headers"]}
                added = [pair for pair in _SECURITY_HEADERS if pair[0] not in names]
                message["headers"] = [
                    *message["headers"],
                    *added,
                    (b"x-request-id", request_id.encode()),
                ]
            await send(message)
            is_whole = message["type"] == "http.response.body" and not message.get("more_body")

        problem: dict[str, object] = {}
        level = logging.INFO
        try:
            await self.app(scope, receive, send_marked)
        except asyncio.CancelledError:
            status = status or 503
            raise
        except Exception as error:
            found = to_api_error(error)
            if not isinstance(error, ApiError):
                problem, level = describe(error), logging.ERROR
            scope["state"]["error_code"] = found.code
            if not status:
                await error_response(found)(scope, receive, send_marked)
            elif not is_whole:  # an answer had begun: all that is left is to break it off
                raise _BrokenOffError from None
        finally:
            seconds = time.monotonic() - started
            route = route_of(scope)
            self._seen(method, route, status, seconds)
            log(
                "request",
                level=level,
                request_id=request_id,
                method=method,
                route=route,
                status=status,
                ms=seconds * 1000,
                client=scope["state"].get("client"),
                received_bytes=scope["state"].get("received_bytes"),
                code=scope["state"].get("error_code"),
                **problem,
            )


class _BrokenOffError(Exception):
    """Makes uvicorn close a connection whose answer cannot be finished."""


def route_of(scope: Scope) -> str:
    """The route's own pattern, such as "/v1/caption": of a bounded number, unlike paths."""
    route = scope.get("route")
    path = getattr(route, "path", None)
    return path if isinstance(path, str) else "other"


class HeaderLimits:
    """Refuses requests with too many or too large headers, however they came in."""

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self.app = app
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = scope["headers"]
            size = sum(len(name) + len(value) + 4 for name, value in headers)
            size += len(scope.get("raw_path", b"")) + len(scope["query_string"])
            if len(headers) > self._limits.max_headers or size > self._limits.max_header_bytes:
                raise ApiError(
                    431,
                    "headers_too_large",
                    f"At most {self._limits.max_headers} headers of {self._limits.max_header_bytes}"
                    " bytes in all are read.",
                    closes=True,
                )
        await self.app(scope, receive, send)


class Authentication:
    """Asks for a key on every route but those given, which are matched as route objects."""

    def __init__(
        self, app: ASGIApp, keys: KeyRing | None, open_routes: Sequence[BaseRoute]
    ) -> None:
        self.app = app
        self._keys = keys
        self._open_routes = open_routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        state["client"] = (scope.get("client") or ("local", 0))[0]
        if self._keys is not None and not self._is_open(scope):
            key = _given_key(scope)
            owner = self._keys.name_of(key) if key is not None else None
            if owner is None:
                raise ApiError(
                    401,
                    "invalid_api_key",
                    "A valid API key is needed: Authorization: Bearer KEY.",
                    headers={"www-authenticate": "Bearer"},
                )
            state["client"] = owner
        await self.app(scope, receive, send)

    def _is_open(self, scope: Scope) -> bool:
        return any(route.matches(scope)[0] is Match.FULL for route in self._open_routes)


def _given_key(scope: Scope) -> bytes | None:
    """The key of the one Authorization header; None where there is none, or more than one."""
    values = [value for name, value in scope["headers"] if name == b"authorization"]
    if len(values) != 1:
        return None
    scheme, _, key = values[0].partition(b" ")
    return bytes(key.strip()) if scheme.lower() == b"bearer" else None


class Hosts:
    """Refuses names that this server does not have, and calls from other sites' pages.

    The first is against pages whose own name was made to lead to this machine; the second against
    forms, which browsers send anywhere. Both are of browsers: other programs send what they like.
    """

    def __init__(self, app: ASGIApp, settings: Settings, open_routes: Sequence[BaseRoute]) -> None:
        self.app = app
        self._hosts = set(settings.hosts)
        self._open_routes = open_routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            self._check(scope)
        await self.app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        # Whoever watches over the process asks by its address.
        if any(route.matches(scope)[0] is Match.FULL for route in self._open_routes):
            return
        values = [value for name, value in scope["headers"] if name == b"host"]
        found = _HOST.fullmatch(values[0].decode("latin-1").lower()) if len(values) == 1 else None
        if found is None or found[1].removesuffix(".") not in self._hosts:
            raise ApiError(
                421,
                "unknown_host",
                "This server does not answer to the name in the Host header. Its operator can "
                "allow one with --allow-host NAME.",
            )
        origin = _header(scope, b"origin")
        if origin is not None and origin.lower().partition(b"://")[2] != values[0].lower():
            raise ApiError(403, "foreign_origin", "Pages of other sites may not call this server.")


class BodyLimits:
    """Counts a request's body while it comes, and gives up on bodies that come too slowly."""

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self.app = app
        self._limits = limits
        self._budget = 8 * limits.max_body_bytes
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body = _Body(receive, self._limits, self)
        scope.setdefault("state", {})["release_body"] = body.let_go
        send_last = _lingering(body, receive, send)
        announced = _header(scope, b"content-length")
        try:
            if (_header(scope, b"content-encoding") or b"identity").lower() != b"identity":
                raise ApiError(
                    415, "wrong_content_encoding", "Send the body as it is, without compression."
                )
            if announced is not None and int(announced) > self._limits.max_body_bytes:
                error = body.too_large()
                scope["state"]["error_code"] = error.code
                await error_response(error)(scope, receive, send_last)
            else:
                await self.app(scope, body.receive, send_last)
        finally:
            scope["state"]["received_bytes"] = body.num_bytes
            body.let_go()
            if body.was_given_up or body.num_bytes > _LARGE_BODY:
                return_freed_memory()

    def hold(self, num_bytes: int) -> None:
        """Counts bytes of bodies in memory. Raises ApiError when all together are too much."""
        if self._held + num_bytes > self._budget:
            raise ApiError(
                429,
                "overloaded",
                "Too many large requests are being read. Try again in a moment.",
                retry_after=1,
                closes=True,
            )
        self._held += num_bytes

    def let_go(self, num_bytes: int) -> None:
        """The opposite."""
        self._held -= num_bytes


class _Body:
    """One request's receive channel, with its limits."""

    def __init__(self, receive: Receive, limits: Limits, total: BodyLimits) -> None:
        self._receive = receive
        self._limits = limits
        self._total = total
        self._deadline = time.monotonic() + limits.body_seconds
        self._is_whole = False
        self.was_given_up = False
        self.num_bytes = 0
        self._num_held = 0

    async def receive(self) -> Message:
        if self._is_whole:
            return await self._receive()
        patience = min(self._limits.idle_seconds, self._deadline - time.monotonic())
        try:
            message = await asyncio.wait_for(self._receive(), max(patience, 0))
        except TimeoutError:
            self.was_given_up = True
            raise ApiError(
                408, "body_timeout", "The request's body came too slowly.", closes=True
            ) from None
        if message["type"] == "http.request":
            size = len(message.get("body", b""))
            if self.num_bytes + size > self._limits.max_body_bytes:
                raise self.too_large()
            try:
                self._total.hold(size)
            except ApiError:
                self.was_given_up = True
                raise
            self.num_bytes += size
            self._num_held += size
            self._is_whole = not message.get("more_body", False)
        return message

    def let_go(self) -> None:
        """The body is not in memory any more; called twice it counts once."""
        self._total.let_go(self._num_held)
        self._num_held = 0

    def too_large(self) -> ApiError:
        self.was_given_up = True
        return ApiError(
            413,
            "body_too_large",
            f"The request's body is larger than {self._limits.max_body_bytes} bytes.",
            closes=True,
        )


def _lingering(body: _Body, receive: Receive, send: Send) -> Send:
    """A `send` that after giving up on a body reads on for a moment, without keeping anything.

    To close a connection on bytes that were not read is to reset it, and the client would lose
    the answer that says why.
    """

    async def send_last(message: Message) -> None:
        is_last = message["type"] == "http.response.body" and not message.get("more_body", False)
        if not (is_last and body.was_given_up):
            await send(message)
            return
        await send({**message, "more_body": True})
        deadline = time.monotonic() + _LINGER_SECONDS
        num_bytes = 0
        while num_bytes < _LINGER_BYTES and (left := deadline - time.monotonic()) > 0:
            try:
                piece = await asyncio.wait_for(receive(), left)
            except TimeoutError:
                break
            if piece["type"] != "http.request" or not piece.get("more_body", False):
                break
            num_bytes += len(piece["body"])
        await send({"type": "http.response.body", "body": b""})

    return send_last


def _header(scope: Scope, wanted: bytes) -> bytes | None:
    return next((value for name, value in scope["headers"] if name == wanted), None)
