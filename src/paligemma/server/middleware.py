"""Middleware: other sites, logs, header limits, keys, trusted hosts, admission, body limits.

Pure ASGI, so that streams pass through unchanged. Decisions about a path use the ASGI scope, never
a URL built from headers.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from paligemma.errors import BusyError, UnavailableError
from paligemma.fast.kernels.library import return_freed_memory
from paligemma.server.errors import (
    RETRY_SECONDS,
    AbortedResponseError,
    ApiError,
    error_response,
    to_api_error,
)
from paligemma.server.logs import describe, log
from paligemma.server.service import Service
from paligemma.server.settings import KeyRing, Limits, Settings

CONTENT_SECURITY_POLICY = (
    "default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'; object-src 'none'"
)

SECURITY_HEADERS = (
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
"""After requests with more bytes than this, freed memory is returned to the system at once."""

RequestCallback = Callable[[str, str, int, float], None]
"""Called after each request with method, route, status and seconds."""


class CrossOrigin:
    """Lets browsers pass answers to pages of the origins that the operator allows (CORS)."""

    def __init__(self, app: ASGIApp, origins: Sequence[str]) -> None:
        self.app = app
        self._origins = {origin.encode() for origin in origins}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        origin = find_header(scope, b"origin") if scope["type"] == "http" else None
        if origin is None or origin.lower() not in self._origins:
            await self.app(scope, receive, send)
            return
        allowed = [(b"access-control-allow-origin", origin), (b"vary", b"origin")]
        if scope["method"] == "OPTIONS" and find_header(scope, b"access-control-request-method"):
            headers = [
                *allowed,
                (b"access-control-allow-methods", b"GET, POST"),
                (b"access-control-allow-headers", b"authorization, content-type, x-request-id"),
                (b"access-control-allow-private-network", b"true"),
                (b"access-control-max-age", b"600"),
            ]
            await send({"type": "http.response.start", "status": 204, "headers": headers})
            await send({"type": "http.response.body", "body": b""})
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                exposed = (b"access-control-expose-headers", b"x-request-id, retry-after")
                message["headers"] = [*message["headers"], *allowed, exposed]
            await send(message)

        await self.app(scope, receive, send_with_headers)


class AccessLogMiddleware:
    """Assigns each request an id, handles uncaught errors, and logs one line per request."""

    def __init__(self, app: ASGIApp, on_request: RequestCallback) -> None:
        self.app = app
        self._on_request = on_request

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.monotonic()
        method = scope["method"]
        if method == "HEAD":  # handled as GET; the HTTP server omits the body
            scope = {**scope, "method": "GET"}
        if scope["path"].startswith("/v1/"):  # as some clients write their base address
            scope = {**scope, "path": scope["path"].removesuffix("/")}
        request_id = request_id_of(scope)
        scope.setdefault("state", {})["request_id"] = request_id
        status = 0
        is_complete = False

        async def send_with_headers(message: Message) -> None:
            nonlocal status, is_complete
            if message["type"] == "http.response.start":
                status = message["status"]
                names = {name.lower() for name, _ in message["headers"]}
                added = [pair for pair in SECURITY_HEADERS if pair[0] not in names]
                message["headers"] = [
                    *message["headers"],
                    *added,
                    (b"x-request-id", request_id.encode()),
                ]
            await send(message)
            is_complete = message["type"] == "http.response.body" and not message.get("more_body")

        problem: dict[str, object] = {}
        level = logging.INFO
        try:
            await self.app(scope, receive, send_with_headers)
        except asyncio.CancelledError:  # the process ends now
            scope["state"]["error_code"] = "unavailable"
            if status:
                raise AbortedResponseError from None
            await error_response(_shutting_down())(scope, receive, send_with_headers)
        except Exception as error:
            api_error = to_api_error(error)
            if api_error.code == "internal_error":
                problem, level = describe(error), logging.ERROR
            scope["state"]["error_code"] = api_error.code
            if not status:
                await error_response(api_error)(scope, receive, send_with_headers)
            elif not is_complete:  # part of the answer was sent: only the connection can be closed
                raise AbortedResponseError from None
        finally:
            seconds = time.monotonic() - started
            route = route_of(scope)
            self._on_request(method, route, status, seconds)
            log_request(method, route, status, seconds, scope["state"], level=level, **problem)


def request_id_of(scope: Scope) -> str:
    """The id that the client gave in `X-Request-Id`; a new one if it gave none or a bad one."""
    requested_id = find_header(scope, b"x-request-id")
    if requested_id and _REQUEST_ID.fullmatch(requested_id):
        return requested_id.decode()
    return f"req-{uuid.uuid4().hex}"


def log_request(
    method: str,
    route: str,
    status: int,
    seconds: float,
    state: Mapping[str, Any],
    *,
    level: int = logging.INFO,
    **problem: object,
) -> None:
    """Log one line about an answered request with this ASGI state."""
    log(
        "request",
        level=level,
        request_id=state["request_id"],
        method=method,
        route=route,
        status=status,
        ms=seconds * 1000,
        client=state.get("client"),
        received_bytes=state.get("received_bytes"),
        code=state.get("error_code"),
        **problem,
    )


def _shutting_down() -> ApiError:
    return ApiError(
        503, "unavailable", "The server is shutting down.", retry_after=RETRY_SECONDS, closes=True
    )


def route_of(scope: Scope) -> str:
    """The route's pattern, such as "/v1/caption". Unlike paths, these are few."""
    route = scope.get("route")
    path = getattr(route, "path", None)
    return path if isinstance(path, str) else "other"


class HeaderLimits:
    """Refuses requests with too many or too large headers, or with two lengths of the body."""

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
                    f"The limits are {self._limits.max_headers} headers and "
                    f"{self._limits.max_header_bytes} bytes of headers in total.",
                    closes=True,
                )
            names = {name for name, _ in headers}
            if {b"content-length", b"transfer-encoding"} <= names:
                # A proxy and this server may disagree about where the next request begins.
                raise ApiError(
                    400,
                    "invalid_http",
                    "Send either Content-Length or Transfer-Encoding, not both.",
                    closes=True,
                )
        await self.app(scope, receive, send)


class Authentication:
    """Requires an API key on every route except `open_routes`."""

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
            key = bearer_key(scope)
            owner = self._keys.name_of(key) if key is not None else None
            if owner is None:
                raise ApiError(
                    401,
                    "invalid_api_key",
                    "A valid API key is required: Authorization: Bearer KEY.",
                    headers={"www-authenticate": "Bearer"},
                )
            state["client"] = owner
        await self.app(scope, receive, send)

    def _is_open(self, scope: Scope) -> bool:
        return any(route.matches(scope)[0] is Match.FULL for route in self._open_routes)


def bearer_key(scope: Scope) -> bytes | None:
    """The key in the Authorization header; None without exactly one such header."""
    values = [value for name, value in scope["headers"] if name == b"authorization"]
    if len(values) != 1:
        return None
    scheme, _, key = values[0].partition(b" ")
    return bytes(key.strip()) if scheme.lower() == b"bearer" else None


class TrustedHosts:
    """Refuses unknown host names, and requests from pages of other sites.

    The first defends against DNS rebinding, the second against cross-site requests; both concern
    browsers, since other programs choose their headers freely. Starlette's TrustedHostMiddleware
    does not check origins, takes the first of several Host headers, and answers in plain text.
    """

    def __init__(self, app: ASGIApp, settings: Settings, open_routes: Sequence[BaseRoute]) -> None:
        self.app = app
        self._hosts = set(settings.hosts)
        self._origins = {origin.encode() for origin in settings.origins}
        self._open_routes = open_routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            self._check(scope)
        await self.app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        # Probes use the IP address.
        if any(route.matches(scope)[0] is Match.FULL for route in self._open_routes):
            return
        values = [value for name, value in scope["headers"] if name == b"host"]
        host = _HOST.fullmatch(values[0].decode("latin-1").lower()) if len(values) == 1 else None
        if host is None or host[1].removesuffix(".") not in self._hosts:
            raise ApiError(
                421,
                "unknown_host",
                "Unknown Host header. The operator can allow a name with --allow-host NAME.",
            )
        origin = find_header(scope, b"origin")
        if origin is None or origin.lower() in self._origins:
            return
        if origin.lower().partition(b"://")[2] != values[0].lower():
            raise ApiError(
                403,
                "foreign_origin",
                "Pages of other sites may not call this server. The operator can allow one with "
                "--allow-origin ORIGIN.",
            )


class Admission:
    """Refuses work when it would wait too long, before its body is read."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        state = scope["state"]
        try:
            number = self._service.admit(state["client"])
        except (BusyError, UnavailableError) as error:
            refusal = to_api_error(error)
            refusal.closes = True  # rather than read the body
            raise refusal from None

        def end_arrival() -> None:
            self._service.end_arrival(number)

        state["end_arrival"] = end_arrival
        try:
            await self.app(scope, receive, send)
        finally:
            end_arrival()


class BodyLimits:
    """Limits the size of bodies, the time to receive them, and their memory in total."""

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
        scope.setdefault("state", {})["release_body"] = body.release
        send_last = _send_after_rejection(body, receive, send)
        announced = find_header(scope, b"content-length")
        try:
            if (find_header(scope, b"content-encoding") or b"identity").lower() != b"identity":
                raise ApiError(415, "wrong_content_encoding", "Send the body without compression.")
            if announced is not None and int(announced) > self._limits.max_body_bytes:
                error = body.too_large()
                scope["state"]["error_code"] = error.code
                await error_response(error)(scope, receive, send_last)
                return
            try:
                # At the start, so that of many large bodies some are read rather than none.
                body.reserve(int(announced or 0))
            except ApiError as error:
                scope["state"]["error_code"] = error.code
                await error_response(error)(scope, receive, send_last)
                return
            await self.app(scope, body.receive, send_last)
        finally:
            scope["state"]["received_bytes"] = body.num_bytes
            body.release()
            if body.is_rejected or body.num_bytes > _LARGE_BODY:
                return_freed_memory()

    def reserve(self, num_bytes: int) -> None:
        """Count bytes of bodies in memory. Raises ApiError when they exceed the total limit."""
        if self._held + num_bytes > self._budget:
            raise ApiError(
                429,
                "overloaded",
                "Too many large requests are being read. Try again in a moment.",
                retry_after=1,
                closes=True,
            )
        self._held += num_bytes

    def release(self, num_bytes: int) -> None:
        """Undo `reserve`."""
        self._held -= num_bytes


class _Body:
    def __init__(self, receive: Receive, limits: Limits, total: BodyLimits) -> None:
        self._receive = receive
        self._limits = limits
        self._total = total
        self._deadline = time.monotonic() + limits.body_seconds
        self._is_complete = False
        self.is_rejected = False
        self.num_bytes = 0
        self._num_held = 0

    async def receive(self) -> Message:
        if self._is_complete:
            return await self._receive()
        timeout = min(self._limits.idle_seconds, self._deadline - time.monotonic())
        try:
            message = await asyncio.wait_for(self._receive(), max(timeout, 0))
        except TimeoutError:
            self.is_rejected = True
            raise ApiError(
                408, "body_timeout", "The body was received too slowly.", closes=True
            ) from None
        if message["type"] == "http.request":
            size = len(message.get("body", b""))
            if self.num_bytes + size > self._limits.max_body_bytes:
                raise self.too_large()
            self.num_bytes += size
            self.reserve(self.num_bytes)
            self._is_complete = not message.get("more_body", False)
        return message

    def reserve(self, num_bytes: int) -> None:
        """Hold room for so many bytes in total. Raises ApiError when there is none."""
        missing = max(0, num_bytes - self._num_held)
        try:
            self._total.reserve(missing)
        except ApiError:
            self.is_rejected = True
            raise
        self._num_held += missing

    def release(self) -> None:
        """Tell that the body is no longer in memory. Further calls do nothing."""
        self._total.release(self._num_held)
        self._num_held = 0

    def too_large(self) -> ApiError:
        self.is_rejected = True
        return ApiError(
            413,
            "body_too_large",
            f"The body is larger than {self._limits.max_body_bytes} bytes.",
            closes=True,
        )


def _send_after_rejection(body: _Body, receive: Receive, send: Send) -> Send:
    """A `send` that keeps reading a rejected body for a moment, and discards what it reads.

    Closing a connection with unread bytes resets it, and the client would lose the response.
    """

    async def send_last(message: Message) -> None:
        is_last = message["type"] == "http.response.body" and not message.get("more_body", False)
        if not (is_last and body.is_rejected):
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


def find_header(scope: Scope, header: bytes) -> bytes | None:
    """The first value of a header, whose name is in lower case."""
    return next((value for name, value in scope["headers"] if name == header), None)
