"""What the server's tests share: mini as a service, pictures, and whole server processes."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import io
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import torch
from PIL import Image
from starlette.types import ASGIApp

import paligemma
from paligemma.predictor import Predictor
from paligemma.server.app import create_app
from paligemma.server.service import Service
from paligemma.server.settings import Limits, Settings
from tests.server.copies import prepare
from tests.server.faults import Faults, FaultyService
from tests.server.server_process import ServerProcess
from tests.server.serving import patient

EXAMPLES = Path(__file__).parents[2] / "examples"

StartServer = Callable[..., ServerProcess]
MakeService = Callable[..., FaultyService]


@pytest.fixture(scope="session")
def mini() -> Predictor:
    """The model in the package, on one thread, so that tests leave room for each other."""
    if not (Path(paligemma.__file__).parent / "mini" / "model" / "model.safetensors").is_file():
        pytest.skip("the weights of mini are not there yet")
    torch.set_num_threads(1)
    return paligemma.load("mini")


@pytest.fixture(scope="session")
def scene() -> bytes:
    """A picture of mini's world, as the bytes of a PNG."""
    picture = Image.open(EXAMPLES / "scene.png").convert("RGB").resize((160, 160))
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


@contextlib.contextmanager
def ready_service(
    mini: Predictor, limits: Limits | None = None, plan: str = ""
) -> Iterator[FaultyService]:
    """A service around mini, ready to answer; it ends with the context.

    Its cache takes 400 MB with the usual limits, so no service should live longer than its tests.
    """
    faults = Faults(plan)
    service = FaultyService(lambda: mini, name="mini", limits=patient(limits), faults=faults)
    service.start()
    try:
        asyncio.run(service.wait_until_ready())
        yield service
    finally:
        service.close()


@pytest.fixture
def make_service(mini: Predictor) -> Iterator[MakeService]:
    """Makes services around mini, ready to answer; ends and frees them with the test."""
    with contextlib.ExitStack() as services:
        yield lambda limits=None, plan="": services.enter_context(ready_service(mini, limits, plan))
    gc.collect()


@pytest.fixture(scope="session")
def mini_service(mini: Predictor) -> Iterator[FaultyService]:
    """One service for all tests that leave it as they find it."""
    with ready_service(mini) as service:
        yield service


@pytest.fixture
def mini_app(mini_service: Service) -> Iterator[ASGIApp]:
    """An application around it; at the end nothing may be under way any more."""
    yield create_app(mini_service, Settings())
    deadline = time.monotonic() + 10
    while (stats := mini_service.stats()).waiting + stats.running and time.monotonic() < deadline:
        time.sleep(0.01)
    assert stats.waiting + stats.running == 0
    assert mini_service.state() == "ready"


@pytest.fixture(scope="session")
def start_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartServer]:
    """Starts `paligemma serve` as a process of its own; ends each that a test left running.

    Each is a copy of a process that has imported everything, unless `is_copy` is False.
    """
    prepare()
    started: list[ServerProcess] = []

    def start(
        *options: str,
        env: dict[str, str] | None = None,
        faults: str = "",
        wait: bool = True,
        is_copy: bool = True,
    ) -> ServerProcess:
        folder = tmp_path_factory.mktemp("server")
        server = ServerProcess(options, env or {}, folder, faults=faults, is_copy=is_copy)
        started.append(server)
        if wait:
            server.wait_until_ready()
        return server

    yield start
    for server in started:
        server.kill()


@pytest.fixture(scope="session")
def shared_server(start_server: StartServer, scene: bytes) -> ServerProcess:
    """One process for many tests; each ends with the alive check of `server`."""
    limits = ("--limit", "idle_seconds=2", "--limit", "body_seconds=3")
    server = start_server(*limits, is_copy=False)
    for _ in range(3):  # what is made at the first requests is there before the level is taken
        server.ask(scene)
    server.take_level(scene)
    return server


@pytest.fixture
def server(shared_server: ServerProcess, scene: bytes) -> Iterator[ServerProcess]:
    """The shared process; it must be as well after the test as it was before."""
    yield shared_server
    shared_server.check_alive(scene)


@pytest.fixture
def no_children_left() -> Iterator[None]:
    """Fails when a test leaves processes behind."""
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    yield
    with contextlib.suppress(psutil.NoSuchProcess):
        left = {child.pid for child in psutil.Process().children(recursive=True)}
        assert left <= before, os.getpid()
