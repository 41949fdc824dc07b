"""The page of examples/browser in Chromium answers as this package does.

npm install --ignore-scripts --prefix FOLDER onnxruntime-web @huggingface/tokenizers
PALIGEMMA_NODE_MODULES=FOLDER/node_modules pytest -m slow tests/parity/test_browser.py
"""

from __future__ import annotations

import importlib.util
import os
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import paligemma
from paligemma.processor.image import ImageTransform, load_image, pixel_array
from tests.server.page.browser import Watch, chromium

pytestmark = pytest.mark.slow

EXAMPLE = Path(__file__).parents[2] / "examples" / "browser"
SCENE = EXAMPLE.parent / "scene.png"
NODE_MODULES = Path(os.environ.get("PALIGEMMA_NODE_MODULES", "node_modules"))


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if not (NODE_MODULES / "onnxruntime-web").is_dir():
        pytest.skip(
            "onnxruntime-web is not installed: run npm install --ignore-scripts, and set "
            "PALIGEMMA_NODE_MODULES to its folder node_modules"
        )
    spec = importlib.util.spec_from_file_location("browser_build", EXAMPLE / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    folder = tmp_path_factory.mktemp("browser") / "page"
    module.build(folder, node_modules=NODE_MODULES)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def page(address: str) -> Iterator[Any]:
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 1200, "height": 760})
        watch = Watch()
        watch.follow(page)
        page.goto(address)
        page.wait_for_function("!document.querySelector('#ask').disabled", timeout=240_000)
        yield page
        assert not watch.far_requests
        assert not watch.console


def ask(page: Any, prompt: str) -> str:
    page.fill("#prompt", prompt)
    page.click("#ask")
    page.wait_for_function(
        "/tokens in|failed/.test(document.querySelector('#status').textContent)", timeout=240_000
    )
    assert "failed" not in page.inner_text("#status")
    if shots := os.environ.get("PALIGEMMA_PAGE_SHOTS"):
        page.screenshot(path=f"{shots}/browser-{prompt.split()[0]}.png", full_page=True)
    answer: str = page.evaluate("document.body.dataset.answer")
    return answer


@pytest.mark.parametrize("size", [(640, 480), (333, 97), (160, 160)])
def test_pixels_are_those_of_pillow(page: Any, size: tuple[int, int]) -> None:
    rgb = load_image(SCENE).rgb.resize(size)
    values = page.evaluate(
        """async ([rgb, width, height]) => {
            const { resize } = await import("./image.js");
            return Array.from(resize(Uint8Array.from(rgb), width, height, 160));
        }""",
        [np.asarray(rgb).ravel().tolist(), *size],
    )
    expected = pixel_array(rgb, ImageTransform(source_wh=size, resolution=160))
    actual = np.asarray(values, np.float32).reshape(160, 160, 3).transpose(2, 0, 1) / 127.5 - 1
    np.testing.assert_allclose(actual, expected, atol=1e-6)


def test_answers(page: Any) -> None:
    model = paligemma.load("mini", weights="float32")
    assert ask(page, "caption en") == model.caption(SCENE).text
    page_objects = ask(page, "segment frog")
    assert page_objects.count("<seg") >= 32
    assert page.locator("#objects li").count() == len(model.detect(SCENE, "frog"))
    assert "with mask" in page.inner_text("#objects")
