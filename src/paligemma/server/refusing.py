"""Refuses requests under overload before the HTTP server parses them.

At ten times the load that a server carries, nine of ten requests are refused. Each is decided by
the first bytes of its connection: to parse it and pass it through the application would take time
from the answers to the tenth.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from email.utils import formatdate

from starlette.responses import Response
from starlette.types import Scope

from paligemma.errors import BusyError, UnavailableError
from paligemma.server.errors import error_response, to_api_error
from paligemma.server.middleware import (
    SECURITY_HEADERS,
    RequestCallback,
    bearer_key,
    find_header,
    log_request,
    request_id_of,
)
from paligemma.server.service import Service
from paligemma.server.settings import KeyRing


class EarlyRefusal:
    """Refuses a request for overload as the application would.

    `paths` are those to which work is posted. `on_request` is called for each refused request.
    """

    def __init__(
        self,
        service: Service,
        keys: KeyRing | None,
        paths: Iterable[str],
        on_request: RequestCallback,
    ) -> None:
        self._service = service
        self._keys = keys
        self._paths = {path.encode(): path for path in paths}
        self._on_request = on_request

    def __call__(self, data: bytes, address: str) -> bytes | None:
        """The answer to a request that begins with `data`; the connection must close after it.

        None if the application must decide: the request may be accepted, is not for work or not
        valid, its headers are not complete, or a browser sends it and needs further headers.
        """
        started = time.monotonic()
        scope = self._scope(data)
        if scope is None:
            return None
        client: str | None = address
        if self._keys is not None:
            key = bearer_key(scope)
            client = None if key is None else self._keys.name_of(key)
        if client is None:
            return None
        try:
            self._service.check_admission(client)
        except UnavailableError:
            return None
        except BusyError as error:
            refusal = to_api_error(error)
        else:
            return None
        refusal.closes = True
        request_id = request_id_of(scope)
        state = {"client": client, "request_id": request_id, "error_code": refusal.code}
        seconds = time.monotonic() - started
        self._on_request("POST", scope["path"], refusal.status, seconds)
        log_request("POST", scope["path"], refusal.status, seconds, state)
        return _to_bytes(error_response(refusal), request_id)

    def _scope(self, data: bytes) -> Scope | None:
        """Path and headers of a request for work; None for any other."""
        if not data.startswith(b"POST "):
            return None
        head, end, _ = data.partition(b"\r\n\r\n")
        request_line, *lines = head.split(b"\r\n")
        target, _, version = request_line.removeprefix(b"POST ").partition(b" ")
        path = self._paths.get(target.partition(b"?")[0].removesuffix(b"/"))
        if not end or path is None or version != b"HTTP/1.1":
            return None
        pairs = (line.partition(b":") for line in lines)
        headers = [(name.lower(), value.strip()) for name, _, value in pairs]
        scope = {"type": "http", "path": path, "headers": headers}
        return None if find_header(scope, b"origin") else scope


def _to_bytes(response: Response, request_id: str) -> bytes:
    headers = [*response.raw_headers, *SECURITY_HEADERS]
    headers += [(b"x-request-id", request_id.encode()), (b"date", formatdate(usegmt=True).encode())]
    lines = [name + b": " + value for name, value in headers]
    return b"\r\n".join([b"HTTP/1.1 429 Too Many Requests", *lines, b"", bytes(response.body)])
