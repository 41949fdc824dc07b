"""How many files of the package a reader of one call has to open.

The kernels stand in for modules of `model/` with at most seven files of `fast/`.
"""

from __future__ import annotations

import asyncio
import base64
import json
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import paligemma
from paligemma import Plain
from paligemma.data import open_data
from paligemma.evals import evaluate

PACKAGE = str(Path(paligemma.__file__).parent)
SCENE = Path(__file__).parents[1] / "examples" / "scene.png"
FORMS = pytest.mark.parametrize(("weights", "more"), [(Plain(), 0), ("auto", 7)], ids=str)


def note_files(files: set[str]) -> Callable[[FrameType, str, object], None]:
    """A profile function that adds the package's files whose functions are called."""

    def note(frame: FrameType, event: str, argument: object) -> None:
        name = frame.f_code.co_filename
        if event == "call" and name.startswith(PACKAGE):
            files.add(name.removeprefix(PACKAGE).lstrip("/\\"))

    return note


def files_entered(call: Callable[[], object]) -> list[str]:
    """The package's files whose functions run during the call, in this thread."""
    files: set[str] = set()
    before = sys.getprofile()
    sys.setprofile(note_files(files))
    try:
        call()
    finally:
        sys.setprofile(before)
    return sorted(files)


@FORMS
def test_detect_runs_through_few_files(weights: Any, more: int) -> None:
    load = partial(paligemma.load, "mini", weights=weights)
    load().detect(SCENE, "frog")  # imports what is imported late
    predictor = load()
    files = files_entered(lambda: predictor.detect(SCENE, "frog ; mushroom"))
    assert len(files) <= 22 + more, files


@FORMS
def test_evaluating_a_record_runs_through_few_files(
    tmp_path: Path, weights: Any, more: int
) -> None:
    def measure(folder: str) -> None:
        records = open_data(SCENE.parent / "train.jsonl")
        evaluate(predictor, records[:1], tmp_path / folder)

    predictor = paligemma.load("mini", weights=weights)
    measure("imports what is imported late")
    predictor.clear_cache()
    files = files_entered(lambda: measure("again"))
    assert len(files) <= 35 + more, files


@FORMS
def test_a_request_to_detect_runs_through_few_files(weights: Any, more: int) -> None:
    pytest.importorskip("fastapi")
    from paligemma.server import Service, create_app
    from tests.server.asgi import call

    files: set[str] = set()
    predictor = paligemma.load("mini", weights=weights)
    service = Service(lambda: predictor, name="mini")
    image = base64.b64encode(SCENE.read_bytes()).decode()
    body = json.dumps({"image": image, "phrases": "frog ; mushroom"}).encode()
    headers = {"content-type": "application/json"}
    threading.setprofile(note_files(files))  # of all of the service's threads
    try:
        service.start()
        asyncio.run(service.wait_until_ready())
        app = create_app(service)
        for _ in range(2):  # the first one imports what is imported late
            files.clear()
            files |= set(
                files_entered(lambda: asyncio.run(call(app, "POST", "/v1/detect", body, headers)))
            )
    finally:
        threading.setprofile(None)
        service.close()
    assert len(files) <= 34 + more, sorted(files)
