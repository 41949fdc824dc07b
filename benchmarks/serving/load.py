"""Load for a server: requests of mixed kinds at random times, however slowly they are answered.

    times (Poisson) + kinds (by weight) -> arrivals -> one request per arrival -> outcomes

An open loop: a request is sent when it is due, whether or not earlier ones were answered, and
latency counts from the time at which it was due. So a server that falls behind shows it.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import random
import re
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import h11
import numpy as np
from PIL import Image

from mini.scene import RESOLUTION, make_scene
from paligemma.errors import OptionError

_BASE_URL = re.compile(r"(https?)://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._\-]+)(?::([0-9]{1,5}))?(/.*)?")
_SCENES = 64  # per series
_MAX_RESPONSE_BYTES = 64 * 2**20
_CONNECTION_ERRORS = (OSError, TimeoutError, EOFError, h11.RemoteProtocolError)


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of request."""

    name: str
    fields: dict[str, Any] = field(default_factory=dict)
    """The body of the request, without image and model."""
    weight: int
    """How often it is sent, relative to the other kinds."""

    @property
    def path(self) -> str:
        return f"/v1/{self.name}"


MIX = (
    Kind(name="ask", fields={"question": "how many things are there?", "lang": "en"}, weight=4),
    Kind(name="caption", weight=3),
    Kind(name="ocr", weight=1),
    Kind(name="detect", fields={"phrases": ["frog", "mushroom", "car"]}, weight=2),
    Kind(name="segment", fields={"phrases": ["frog"]}, weight=1),
)
"""Short answers, long answers and masks, as a service with many users sees them."""


def choose_mix(names: Sequence[str]) -> tuple[Kind, ...]:
    """The kinds of these names; all kinds if there are no names. Raises OptionError."""
    kinds = {kind.name: kind for kind in MIX}
    for name in names:
        if name not in kinds:
            raise OptionError(f"Unknown kind of request: {name!r}. Kinds: {', '.join(kinds)}.")
    return tuple(kinds[name] for name in names) or MIX


@dataclass(frozen=True, kw_only=True)
class Arrival:
    """A request and the time at which it is due."""

    due: float
    """Seconds from the start."""
    kind: Kind
    image: int
    """Index of its image."""


def poisson_arrivals(
    *, rate: float, seconds: float, mix: Sequence[Kind], num_images: int | None, seed: int | str
) -> list[Arrival]:
    """Independent requests, `rate` per second on average; the same seed gives the same requests.

    Each has an image of its own, or one of `num_images`. The gaps of a Poisson process
    are exponential, with mean 1 / rate.
    """
    rng = random.Random(seed)
    weights = [kind.weight for kind in mix]
    arrivals: list[Arrival] = []
    due = rng.expovariate(rate)
    while due < seconds:
        [kind] = rng.choices(mix, weights)
        image = len(arrivals) if num_images is None else rng.randrange(num_images)
        arrivals.append(Arrival(due=due, kind=kind, image=image))
        due += rng.expovariate(rate)
    return arrivals


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The result of one request; times are seconds from the start."""

    kind: str
    due: float
    ended: float
    status: int
    """HTTP status; 0 if there was no response."""
    num_tokens: int = 0

    @property
    def latency(self) -> float:
        """From the time at which it was due to the last byte of the response."""
        return self.ended - self.due

    @property
    def is_answered(self) -> bool:
        return self.status == 200

    @property
    def is_refused(self) -> bool:
        """Rejected because of overload."""
        return self.status in (429, 503)


@dataclass(frozen=True, kw_only=True)
class Target:
    """The server under load. Raises OptionError for a malformed address."""

    base_url: str
    key: str | None = None
    model: str | None = None
    timeout: float = 60.0
    """Seconds after which a request counts as lost."""

    def __post_init__(self) -> None:
        if not _BASE_URL.fullmatch(self.base_url):
            raise OptionError(
                f"{self.base_url!r} is not a server address. Expected: http://NAME:PORT"
            )


async def run_load(
    target: Target, arrivals: Sequence[Arrival], images: Sequence[bytes]
) -> list[Outcome]:
    """Sends each request when it is due. Returns the outcomes in the order of the arrivals."""
    connections = _Connections(target)
    bodies: dict[tuple[str, int], bytes] = {}
    for arrival in arrivals:  # encoded in advance, so that nothing delays sending
        key = (arrival.kind.name, arrival.image)
        if key not in bodies:
            bodies[key] = request_body(arrival.kind, images[arrival.image], target.model)
    start = time.perf_counter()

    async def send(arrival: Arrival) -> Outcome:
        await asyncio.sleep(start + arrival.due - time.perf_counter())
        body = bodies[arrival.kind.name, arrival.image]
        status, response = 0, b""
        try:
            async with asyncio.timeout(target.timeout):
                status, response = await connections.request("POST", arrival.kind.path, body)
        except _CONNECTION_ERRORS:
            status = 0
        ended = time.perf_counter() - start
        return Outcome(
            kind=arrival.kind.name,
            due=arrival.due,
            ended=ended,
            status=status,
            num_tokens=_num_tokens(response) if status == 200 else 0,
        )

    try:
        return list(await asyncio.gather(*(send(arrival) for arrival in arrivals)))
    finally:
        connections.close()


async def wait_until_ready(target: Target, *, seconds: float) -> bool:
    """True as soon as the server accepts requests; False if it does not in time."""
    connections = _Connections(target)
    deadline = time.perf_counter() + seconds
    try:
        while time.perf_counter() < deadline:
            try:
                async with asyncio.timeout(target.timeout):
                    if (await connections.request("GET", "/health/ready"))[0] == 200:
                        return True
            except _CONNECTION_ERRORS:
                pass  # not listening yet
            await asyncio.sleep(0.1)
        return False
    finally:
        connections.close()


def request_body(kind: Kind, image: bytes, model: str | None) -> bytes:
    """The JSON body of one request."""
    body = {"image": base64.b64encode(image).decode(), **kind.fields}
    if model is not None:
        body["model"] = model
    return json.dumps(body).encode()


def draw_images(number: int, seed: int, *, series: int = 0) -> list[bytes]:
    """PNG files of scenes of mini's world, all different; two series share none.

    Drawing a scene takes long, so each of the first ones comes again, moved sideways.
    """
    first = series * _SCENES
    scenes = [
        make_scene("test", seed, first + index).draw(RESOLUTION)
        for index in range(min(number, _SCENES))
    ]
    files = []
    for index in range(number):
        shift, scene = divmod(index, _SCENES)
        file = io.BytesIO()
        Image.fromarray(np.roll(scenes[scene], shift, axis=1)).save(file, "PNG", compress_level=1)
        files.append(file.getvalue())
    return files


_CACHES = ("image_cache", "prefix_cache")


async def read_cache_counts(target: Target) -> dict[str, float] | None:
    """Hits and misses of the server's caches so far; None if it does not report them."""
    connections = _Connections(target)
    try:
        async with asyncio.timeout(target.timeout):
            status, response = await connections.request("GET", "/metrics")
    except _CONNECTION_ERRORS:
        return None
    finally:
        connections.close()
    values = dict(
        line.rsplit(" ", 1) for line in response.decode().splitlines() if line.count(" ") == 1
    )
    names = [f"{cache}_{event}" for cache in _CACHES for event in ("hits", "misses")]
    if status != 200 or any(f"paligemma_{name}_total" not in values for name in names):
        return None
    return {name: float(values[f"paligemma_{name}_total"]) for name in names}


def _num_tokens(response: bytes) -> int:
    try:
        return int(json.loads(response)["usage"]["completion_tokens"])
    except (ValueError, KeyError, TypeError):
        return 0


class _Connections:
    """HTTP/1.1 connections to one server, reused for later requests."""

    def __init__(self, target: Target) -> None:
        match = _BASE_URL.fullmatch(target.base_url)
        assert match is not None
        scheme, self._host, port, path = match.groups()
        self._port = int(port or (443 if scheme == "https" else 80))
        self._prefix = (path or "").rstrip("/")
        self._ssl = ssl.create_default_context() if scheme == "https" else None
        headers = [("host", f"{self._host}:{self._port}"), ("content-type", "application/json")]
        if target.key is not None:
            headers.append(("authorization", f"Bearer {target.key}"))
        self._headers = headers
        self._idle: list[_Connection] = []

    async def request(self, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        """Status and body of the response. Raises one of _CONNECTION_ERRORS."""
        while self._idle:
            connection = self._idle.pop()
            try:
                return await self._request_on(connection, method, path, body)
            except (ConnectionError, EOFError):
                continue  # the server closed it in the meantime
        host = self._host.strip("[]")
        reader, writer = await asyncio.open_connection(host, self._port, ssl=self._ssl)
        return await self._request_on(_Connection(reader, writer), method, path, body)

    async def _request_on(
        self, connection: _Connection, method: str, path: str, body: bytes
    ) -> tuple[int, bytes]:
        headers = [*self._headers, ("content-length", str(len(body)))]
        try:
            response = await connection.exchange(method, self._prefix + path, headers, body)
        except BaseException:
            connection.close()
            raise
        if connection.prepare_next():
            self._idle.append(connection)
        else:
            connection.close()
        return response

    def close(self) -> None:
        for connection in self._idle:
            connection.close()


class _Connection:
    """One connection, for one request at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._protocol = h11.Connection(h11.CLIENT)

    async def exchange(
        self, method: str, path: str, headers: list[tuple[str, str]], body: bytes
    ) -> tuple[int, bytes]:
        """Sends one request and reads the response."""
        request = h11.Request(method=method, target=path, headers=headers)
        for part in (request, h11.Data(data=body), h11.EndOfMessage()):
            self._writer.write(self._protocol.send(part) or b"")
        await self._writer.drain()
        status, response = 0, bytearray()
        while True:
            event = self._protocol.next_event()
            if event is h11.NEED_DATA:
                data = await self._reader.read(2**16)
                if not data and not status:
                    raise EOFError
                self._protocol.receive_data(data)
            elif isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                response += event.data
                if len(response) > _MAX_RESPONSE_BYTES:
                    raise EOFError
            elif isinstance(event, h11.EndOfMessage):
                return status, bytes(response)

    def prepare_next(self) -> bool:
        """Prepares the connection for another request; False if the server closes it."""
        if self._protocol.our_state is h11.DONE and self._protocol.their_state is h11.DONE:
            self._protocol.start_next_cycle()
            return True
        return False

    def close(self) -> None:
        self._writer.close()
