"""Load for a server: requests of mixed kinds at random moments, whatever the server does.

    moments (Poisson) + kinds (by weight) -> arrivals -> one request each -> outcomes

An open loop: who asks does not wait for others' answers, so a server that falls behind gets no
mercy, and a latency counts from the moment at which the request was due. Knows the native routes
and one address, which its caller chose; knows no server's inside.
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

from paligemma.errors import OptionError

_BASE_URL = re.compile(r"(https?)://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._\-]+)(?::([0-9]{1,5}))?(/.*)?")
_MAX_ANSWER_BYTES = 64 * 2**20


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of request."""

    name: str
    fields: dict[str, Any] = field(default_factory=dict)
    weight: int
    """How often it comes, beside the others' weights."""

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
"""Short answers, long ones and masks, as a service of many users sees them."""


def choose_mix(names: Sequence[str]) -> tuple[Kind, ...]:
    """The kinds of these names, all of them for none. Raises OptionError for an unknown one."""
    known = {kind.name: kind for kind in MIX}
    if unknown := [name for name in names if name not in known]:
        raise OptionError(f"There is no kind {unknown[0]!r} of request. Kinds: {', '.join(known)}.")
    return tuple(known[name] for name in names) or MIX


@dataclass(frozen=True, kw_only=True)
class Arrival:
    """A request and the moment at which it is due."""

    due: float
    """Seconds from the start."""
    kind: Kind
    picture: int
    """Place of its picture among those given."""


def poisson_arrivals(
    *, rate: float, seconds: float, mix: Sequence[Kind], num_pictures: int, seed: int
) -> list[Arrival]:
    """Requests at `rate` a second on average, independent of each other; the same for a seed.

    The gaps of a Poisson process are exponential, of mean 1 / rate.
    """
    chance = random.Random(seed)
    weights = [kind.weight for kind in mix]
    arrivals: list[Arrival] = []
    due = chance.expovariate(rate)
    while due < seconds:
        [kind] = chance.choices(mix, weights)
        arrivals.append(Arrival(due=due, kind=kind, picture=chance.randrange(num_pictures)))
        due += chance.expovariate(rate)
    return arrivals


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one request; times are seconds from the start."""

    kind: str
    due: float
    ended: float
    status: int
    """0: no answer came."""
    num_tokens: int = 0

    @property
    def latency(self) -> float:
        """From the moment it was due to the last byte of the answer."""
        return self.ended - self.due

    @property
    def is_answered(self) -> bool:
        return self.status == 200

    @property
    def is_refused(self) -> bool:
        """Sent away because too much was going on."""
        return self.status in (429, 503)


@dataclass(frozen=True, kw_only=True)
class Target:
    """A server to load. Raises OptionError for an address of another form."""

    base_url: str
    key: str | None = None
    model: str | None = None
    timeout: float = 60.0
    """Seconds after which a request counts as lost."""

    def __post_init__(self) -> None:
        if not _BASE_URL.fullmatch(self.base_url):
            raise OptionError(
                f"{self.base_url!r} is no server's address. Expected: http://NAME:PORT"
            )


async def run_load(
    target: Target, arrivals: Sequence[Arrival], pictures: Sequence[bytes]
) -> list[Outcome]:
    """Sends each request when it is due; an outcome for each, in their order."""
    connections = _Connections(target)
    bodies: dict[tuple[str, int], bytes] = {}
    for arrival in arrivals:  # made beforehand, so that sending is all that is left
        key = (arrival.kind.name, arrival.picture)
        if key not in bodies:
            bodies[key] = request_body(arrival.kind, pictures[arrival.picture], target.model)
    start = time.perf_counter()

    async def send(arrival: Arrival) -> Outcome:
        await asyncio.sleep(start + arrival.due - time.perf_counter())
        body = bodies[arrival.kind.name, arrival.picture]
        status, answer = 0, b""
        try:
            async with asyncio.timeout(target.timeout):
                status, answer = await connections.request("POST", arrival.kind.path, body)
        except (OSError, TimeoutError, EOFError, h11.RemoteProtocolError):
            status = 0
        ended = time.perf_counter() - start
        return Outcome(
            kind=arrival.kind.name,
            due=arrival.due,
            ended=ended,
            status=status,
            num_tokens=_num_tokens(answer) if status == 200 else 0,
        )

    try:
        return list(await asyncio.gather(*(send(arrival) for arrival in arrivals)))
    finally:
        connections.close()


async def wait_until_ready(target: Target, *, seconds: float) -> bool:
    """True as soon as the server takes requests; False when it does not in time."""
    connections = _Connections(target)
    until = time.perf_counter() + seconds
    try:
        while time.perf_counter() < until:
            try:
                async with asyncio.timeout(target.timeout):
                    if (await connections.request("GET", "/health/ready"))[0] == 200:
                        return True
            except (OSError, TimeoutError, EOFError, h11.RemoteProtocolError):
                pass  # not listening yet
            await asyncio.sleep(0.1)
        return False
    finally:
        connections.close()


def request_body(kind: Kind, picture: bytes, model: str | None) -> bytes:
    """The JSON of one request."""
    document = {"image": base64.b64encode(picture).decode(), **kind.fields}
    if model is not None:
        document["model"] = model
    return json.dumps(document).encode()


def draw_pictures(number: int, seed: int) -> list[bytes]:
    """PNG files of scenes of mini's world, each another."""
    from PIL import Image

    from mini.scene import RESOLUTION, make_scene

    files = []
    for index in range(number):
        file = io.BytesIO()
        Image.fromarray(make_scene("test", seed, index).draw(RESOLUTION)).save(file, "PNG")
        files.append(file.getvalue())
    return files


def _num_tokens(answer: bytes) -> int:
    try:
        return int(json.loads(answer)["usage"]["completion_tokens"])
    except (ValueError, KeyError, TypeError):
        return 0


class _Connections:
    """HTTP/1.1 connections to one server, kept for further requests."""

    def __init__(self, target: Target) -> None:
        found = _BASE_URL.fullmatch(target.base_url)
        assert found is not None
        scheme, self._host, port, path = found.groups()
        self._port = int(port or (443 if scheme == "https" else 80))
        self._prefix = (path or "").rstrip("/")
        self._ssl = ssl.create_default_context() if scheme == "https" else None
        headers = [("host", f"{self._host}:{self._port}"), ("content-type", "application/json")]
        if target.key is not None:
            headers.append(("authorization", f"Bearer {target.key}"))
        self._headers = headers
        self._idle: list[_Connection] = []

    async def request(self, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        """Status and body of the answer. Raises OSError, EOFError and h11's errors."""
        while self._idle:
            connection = self._idle.pop()
            try:
                return await self._request_on(connection, method, path, body)
            except (ConnectionError, EOFError):
                continue  # the server had closed it meanwhile
        host = self._host.strip("[]")
        reader, writer = await asyncio.open_connection(host, self._port, ssl=self._ssl)
        return await self._request_on(_Connection(reader, writer), method, path, body)

    async def _request_on(
        self, connection: _Connection, method: str, path: str, body: bytes
    ) -> tuple[int, bytes]:
        headers = [*self._headers, ("content-length", str(len(body)))]
        try:
            answer = await connection.exchange(method, self._prefix + path, headers, body)
        except BaseException:
            connection.close()
            raise
        if connection.is_reusable:
            self._idle.append(connection)
        else:
            connection.close()
        return answer

    def close(self) -> None:
        for connection in self._idle:
            connection.close()


class _Connection:
    """One of them, for one request at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._protocol = h11.Connection(h11.CLIENT)

    async def exchange(
        self, method: str, path: str, headers: list[tuple[str, str]], body: bytes
    ) -> tuple[int, bytes]:
        request = h11.Request(method=method, target=path, headers=headers)
        for part in (request, h11.Data(data=body), h11.EndOfMessage()):
            self._writer.write(self._protocol.send(part) or b"")
        await self._writer.drain()
        status, answer = 0, bytearray()
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
                answer += event.data
                if len(answer) > _MAX_ANSWER_BYTES:
                    raise EOFError
            elif isinstance(event, h11.EndOfMessage):
                return status, bytes(answer)

    @property
    def is_reusable(self) -> bool:
        """Readies it for the next request, where the server keeps it open."""
        if self._protocol.our_state is h11.DONE and self._protocol.their_state is h11.DONE:
            self._protocol.start_next_cycle()
            return True
        return False

    def close(self) -> None:
        self._writer.close()
