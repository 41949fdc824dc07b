"""The Gradio app: what it answers, and the whole way through it in a browser."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import paligemma
from examples.gradio_app import TASKS, answer, build_demo
from paligemma.errors import MissingExtraError, PromptError
from paligemma.predictor import Predictor
from tests.server.page.browser import Watch, chromium, keep_shot

PICTURE = Path(paligemma.__file__).parent / "mini" / "sample.png"


@pytest.fixture(scope="module")
def mini() -> Predictor:
    if not (Path(paligemma.__file__).parent / "mini" / "model" / "model.safetensors").is_file():
        pytest.skip("the weights of mini are not there yet")
    return paligemma.load("mini", device="cpu")


@pytest.fixture
def image() -> Image.Image:
    with Image.open(PICTURE) as file:
        return file.convert("RGB")


def test_the_answers_are_those_of_the_predictor(mini: Predictor, image: Image.Image) -> None:
    expected = {
        "Caption": ("de", mini.caption(image, "de").text),
        "Ask": ("what is written?", mini.ask(image, "what is written?", "en").text),
        "Read": ("", mini.ocr(image).text),
        "Prompt": ("caption fr", mini.generate(image, "caption fr").text),
    }
    for task, (text, said) in expected.items():
        assert answer(mini, image, task, f" {text} ") == (said, (image, []))
    boxes = mini.detect(image, "guitar")
    said, (_, marks) = answer(mini, image, "Detect", "guitar")
    assert said == str(boxes)
    assert [mark for mark, _ in marks] == [tuple(map(round, o.box_xyxy)) for o in boxes]
    masks = mini.segment(image, "guitar")
    said, (_, marks) = answer(mini, image, "Segment", "guitar")
    assert said == str(masks)
    for (mark, label), found in zip(marks, masks, strict=True):
        assert (mark == found.mask).all()
        assert label == found.label
    assert set(TASKS) == {*expected, "Detect", "Segment"}


def test_what_is_missing_is_said_in_the_familys_words(mini: Predictor, image: Image.Image) -> None:
    with pytest.raises(PromptError):
        answer(mini, image, "Detect", " ; ")


def test_without_gradio_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(MissingExtraError, match=r"paligemma\[demo\]"):
        build_demo("mini")


def test_the_app_is_shorter_than_a_hundred_lines() -> None:
    file = Path(__file__).parents[1] / "examples" / "gradio_app.py"
    assert len(file.read_text(encoding="utf-8").splitlines()) < 100


@pytest.mark.filterwarnings("ignore")  # Gradio's own
def test_the_app_works_in_a_browser_and_asks_nothing_of_others(
    mini: Predictor, image: Image.Image
) -> None:
    pytest.importorskip("gradio", reason="gradio is not installed")
    app: Any = build_demo(mini)
    app.launch(prevent_thread_lock=True, share=False, quiet=True, server_name="127.0.0.1")
    watch = Watch()
    try:
        with chromium() as browser:
            page = browser.new_page()
            watch.follow(page)
            page.goto(app.local_url)
            page.set_input_files("input[type=file]", PICTURE)
            page.get_by_label("Detect").check()
            page.get_by_label("Words").fill("guitar")
            page.wait_for_selector("img[src*=sample], .image-frame img, .image-container img")
            page.get_by_role("button", name="Run").click()
            said = page.get_by_label("Answer")
            for _ in range(100):
                if "objects in an image" in said.input_value():
                    break
                page.wait_for_timeout(100)
            assert said.input_value() == str(mini.detect(image, "guitar"))
            keep_shot(page, "gradio")
            page.get_by_label("Words").fill(" ; ")
            page.get_by_role("button", name="Run").click()
            page.locator(".toast-body").first.wait_for()
    finally:
        app.close()
    assert watch.far_requests == []
    assert watch.dialogs == []
