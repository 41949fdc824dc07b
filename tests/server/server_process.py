"""A server of its own process, and the checks that it is none the worse for a test."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.server.copies import Copy

CANARY = "canary-7f3a"
"""Stands in keys, prompts, file names, ids that tests send: no log may hold it."""

_START_SECONDS = 120.0
_SETTLED_SECONDS = 0.3
_MEMORY_SLACK = 64 * 2**20


@dataclass(frozen=True)
class Level:
    """What a process has: open files, threads, children by number, and resident bytes."""

    num_files: int
    num_threads: int
    children: frozenset[int]
    num_bytes: int
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Reply:
    """What came back over a socket."""

    status: int
    head: str
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class ServerProcess:
    """`paligemma serve` on a free port, with its log in a file."""

    def __init__(
        self,
        options: Sequence[str],
        env: dict[str, str],
        folder: Path,
        *,
        faults: str = "",
        is_copy: bool = False,
    ) -> None:
        """`faults` is a plan for `tests.server.faults`; `is_copy`, see `tests.server.copies`."""
        self.log_file = folder / "log"
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        self._level: Level | None = None
        # A slow machine refuses nothing for its slowness.
        arguments = ["serve", "--port", "0", "--limit", "max_wait_seconds=60", *options]
        environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("PALIGEMMA")},
            "OMP_NUM_THREADS": "1",
            "TMPDIR": str(self.temporary),
            **env,
        }
        self.process: subprocess.Popen[bytes] | Copy
        if is_copy:
            self.process = Copy(arguments, environment, self.log_file, faults)
        else:
            program = ["tests.server.faults", faults] if faults else ["paligemma"]
            with self.log_file.open("wb") as log:
                self.process = subprocess.Popen(
                    [sys.executable, "-m", *program, *arguments],
                    cwd=Path(__file__).parents[2], stdout=log, stderr=log, env=environment,
                )  # fmt: skip
        self.pid = self.process.pid
        self._port: int | None = None

    # The process

    @property
    def port(self) -> int:
        """The port that it listens on; waits until it does."""
        deadline = time.monotonic() + _START_SECONDS
        while self._port is None:
            for line in self.log_lines():
                if line.get("event") == "listening":
                    self._port = line["port"]
            assert self.process.poll() is None, self.log
            assert time.monotonic() < deadline, self.log
            time.sleep(0.02)
        return self._port

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    def log_lines(self) -> list[dict[str, Any]]:
        """The lines that are JSON."""
        found = []
        for line in self.log.splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                found.append(json.loads(line))
        return found

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while self.get("/health/ready").status != 200:
            assert self.process.poll() is None, self.log
            assert time.monotonic() < deadline, self.log
            time.sleep(0.05)

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def wait(self, seconds: float) -> int:
        """The exit code, which must be there in time."""
        return self.process.wait(seconds)

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)

    # Requests

    def connect(self, seconds: float = 20.0) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=seconds)

    @contextlib.contextmanager
    def connected(self, data: bytes = b"", seconds: float = 20.0) -> Iterator[socket.socket]:
        """A connection on which these bytes were sent."""
        with self.connect(seconds) as connection:
            connection.sendall(data)
            yield connection

    def exchange(self, data: bytes, seconds: float = 20.0) -> Reply:
        """Sends bytes, and reads until the server closes or the answer is whole."""
        with self.connect(seconds) as connection:
            with contextlib.suppress(ConnectionError):
                connection.sendall(data)
            return read_reply(connection)

    def get(self, path: str, headers: str = "") -> Reply:
        return self.exchange(request("GET", path, headers=headers))

    def post(self, path: str, document: object, headers: str = "") -> Reply:
        body = json.dumps(document).encode()
        head = f"Content-Type: application/json\r\n{headers}"
        return self.exchange(request("POST", path, body, head))

    def ask(self, picture: bytes, **fields: Any) -> tuple[int, ...]:
        """Token ids of a caption."""
        reply = self.post("/v1/caption", {"image": base64.b64encode(picture).decode(), **fields})
        assert reply.status == 200, reply
        return tuple(reply.json()["result"]["token_ids"])

    def metric(self, name: str) -> float:
        """A metric's value now; the name has its labels with it."""
        for line in self.get("/metrics").body.decode().splitlines():
            row, _, value = line.rpartition(" ")
            if row == name:
                return float(value)
        raise AssertionError(name)

    # Health

    def take_level(self, picture: bytes) -> None:
        """Remembers how it is now, and what it says to a picture. A child that is starting, or is
        about to end, is not how it is: waits until the same children, with the same files of its
        own, were there for a while."""
        deadline = time.monotonic() + _START_SECONDS
        self._level, before = self._measure(picture), None
        while before is None or not _is_settled(before, self._level):
            assert time.monotonic() < deadline, (before, self._level)
            time.sleep(_SETTLED_SECONDS)
            before, self._level = self._level, self._measure(picture)

    def check_alive(self, picture: bytes) -> None:
        """Ready, the same answer as before, and nothing left over of what went on."""
        assert self._level is not None
        assert self.process.poll() is None, self.log
        deadline = time.monotonic() + 10
        while True:
            reply = self.get("/health/ready")
            assert reply.status == 200, reply
            now = self._measure(picture)
            before = self._level
            is_well = (
                now.num_files <= before.num_files + 2
                and now.num_threads <= before.num_threads + 10  # decoders of anyio come and go
                and len(now.children) == len(before.children)
                and now.num_bytes <= before.num_bytes * 1.05 + _MEMORY_SLACK
            )
            if is_well or time.monotonic() > deadline:
                assert is_well, (before, now)
                break
            time.sleep(0.1)
        assert now.tokens == before.tokens
        assert CANARY not in self.log
        assert not any(line.get("event") == "uncaught" for line in self.log_lines())
        assert self.temporary_files() == []

    def temporary_files(self) -> list[Path]:
        """What lies in its folder for such things, where torch makes a folder that stays empty."""
        return [path for path in self.temporary.rglob("*") if path.is_file()]

    def memory(self, field: str = "VmRSS") -> int:
        """Resident bytes; with "VmHWM" the most there ever were."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith(field):
                return int(line.split()[1]) * 1024
        raise AssertionError(field)

    def _measure(self, picture: bytes) -> Level:
        process = psutil.Process(self.pid)
        return Level(
            num_files=process.num_fds(),
            num_threads=process.num_threads(),
            children=frozenset(child.pid for child in process.children(recursive=True)),
            num_bytes=process.memory_info().rss,
            tokens=self.ask(picture),
        )


def _is_settled(before: Level, now: Level) -> bool:
    """Whether nothing was starting or ending between two measurements."""
    return (before.children, before.num_files) == (now.children, now.num_files)


def request(method: str, path: str, body: bytes = b"", headers: str = "") -> bytes:
    """A request as bytes, which asks for the connection to be closed after it."""
    length = f"Content-Length: {len(body)}\r\n" if body or method == "POST" else ""
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{length}{headers}"
    return head.encode("latin-1") + b"\r\n" + body


def read_reply(connection: socket.socket) -> Reply:
    """Reads up to the end of the connection. Status 0: it ended without an answer."""
    data = bytearray()
    with contextlib.suppress(ConnectionError):
        while piece := connection.recv(2**16):
            data += piece
    head, _, body = bytes(data).partition(b"\r\n\r\n")
    status = int(head.split()[1]) if head.startswith(b"HTTP/1.1 ") else 0
    if b"transfer-encoding: chunked" in head.lower():
        body = _unchunked(body)
    return Reply(status=status, head=head.decode("latin-1"), body=body)


def _unchunked(data: bytes) -> bytes:
    body = bytearray()
    while data:
        size, _, rest = data.partition(b"\r\n")
        length = int(size or b"0", 16)
        if length == 0:
            break
        body += rest[:length]
        data = rest[length + 2 :]
    return bytes(body)
