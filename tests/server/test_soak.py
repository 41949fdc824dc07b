"""Twenty minutes of good and bad traffic, as a service sees it before a release."""

from __future__ import annotations

import base64
import contextlib
import io
import random
import statistics
import threading
import time
from collections.abc import Callable

import psutil
import pytest
from PIL import Image

from tests.server.conftest import StartServer
from tests.server.server_process import ServerProcess, request

SECONDS = 20 * 60
SAMPLES = 100
JSON = "Content-Type: application/json\r\n"


def pictures() -> list[str]:
    """More than the caches of the server under test hold."""
    drawn = []
    for number in range(60):
        file = io.BytesIO()
        Image.effect_noise((200, 160), 20.0 + number).convert("RGB").save(file, "JPEG")
        drawn.append(base64.b64encode(file.getvalue()).decode())
    return drawn


def traffic(server: ServerProcess, seed: int, until: float, statuses: dict[int, int]) -> None:
    """One client after the other, good and bad by chance."""
    chance = random.Random(seed)
    known = pictures()

    def send(path: str, document: object) -> int:
        return server.post(path, document).status

    def leave_early() -> int:
        body = f'{{"prompt": "caption en", "max_tokens": 60, "seed": {chance.random()}}}'.encode()
        with server.connected(request("POST", "/v1/generate", body, JSON)) as connection:
            connection.settimeout(chance.random() * 0.1 + 0.001)
            with contextlib.suppress(OSError):
                connection.recv(10)
        return 0

    kinds: list[Callable[[], int]] = [
        lambda: send("/v1/caption", {"image": chance.choice(known)}),
        lambda: send("/v1/detect", {"image": chance.choice(known), "phrases": ["frog", "car"]}),
        lambda: send("/v1/segment", {"image": chance.choice(known), "phrases": ["frog"]}),
        lambda: send("/v1/ask", {"image": chance.choice(known), "questions": ["how?"] * 3}),
        lambda: send("/v1/caption", {"image": chance.choice(known)[:-400]}),
        lambda: send("/v1/caption", {"image": "?" * chance.randrange(1, 2**20)}),
        lambda: send("/v1/nothing", {"image": ""}),
        lambda: server.exchange(request("POST", "/v1/ask", b"{" * 5000, JSON)).status,
        lambda: server.exchange(b"GET / HTTP/9.9\r\n\r\n").status,
        lambda: server.get("/metrics").status,
        leave_early,
    ]
    while time.monotonic() < until:
        status = chance.choice(kinds)()
        statuses[status] = statuses.get(status, 0) + 1


@pytest.mark.slow
def test_d11_nothing_grows_and_nothing_slows_down(start_server: StartServer, scene: bytes) -> None:
    limits = ("image_cache_bytes=8000000", "prefix_cache_bytes=8000000")
    options = [part for limit in limits for part in ("--limit", limit)]
    server = start_server(*options)
    statuses: dict[int, int] = {}

    def load_for(seconds: float, seed: int) -> None:
        until = time.monotonic() + seconds
        clients = [
            threading.Thread(target=traffic, args=(server, seed + n, until, statuses))
            for n in range(3)
        ]
        for client in clients:
            client.start()
        for client in clients:
            client.join()

    process = psutil.Process(server.pid)
    load_for(SECONDS / 10, seed=0)  # what is made once is there now
    first = process.memory_info().rss, process.num_fds(), process.num_threads()
    load_for(SECONDS * 9 / 10, seed=100)
    last = process.memory_info().rss, process.num_fds(), process.num_threads()

    # A machine has slow minutes of its own: an old server is compared with a new one, in turns.
    seconds: dict[ServerProcess, list[float]] = {server: [], start_server(*options): []}
    for seed in range(SAMPLES):
        for one, taken in seconds.items():
            start = time.perf_counter()
            one.ask(scene, temperature=0.5, seed=seed)  # written anew each time
            taken.append(time.perf_counter() - start)
    old, new = (statistics.median(taken) for taken in seconds.values())

    assert last[0] <= first[0] * 1.05 + 32 * 2**20, (first, last)
    assert last[1] <= first[1] + 2, (first, last)
    assert last[2] <= first[2] + 10, (first, last)  # decoders of anyio come and go
    assert old <= new * 1.1, (old, new)
    assert not [status for status in statuses if status >= 500], statuses
    assert statuses[200] > 100
    assert not any(line.get("event") == "uncaught" for line in server.log_lines())
