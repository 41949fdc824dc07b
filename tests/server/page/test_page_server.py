"""The page in front of the real server: what it shows is what Python says, also after a kill."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import paligemma
from paligemma.adapters.lora import LoraConfig, add_lora
from paligemma.predictor import Predictor
from paligemma.results import Detections, Segments
from tests.adapters.test_lora import disturb
from tests.documents.pdf_files import pdf_of_pages, text_at
from tests.server.conftest import StartServer
from tests.server.page.browser import (
    SAMPLES,
    Watch,
    choose,
    copied,
    keep_shot,
    pick_sample,
    run,
    words,
)
from tests.server.page.double import PAGE
from tests.server.server_process import ServerProcess

SLOW = "forward*0=sleep:0.2"


@pytest.fixture
def opened(context: Any, watch: Watch) -> Iterator[Any]:
    """Opens the page of a server; afterwards nothing may have gone wrong in it."""
    pages = []

    def open_page(server: ServerProcess) -> Any:
        page = context.new_page()
        pages.append(page)
        watch.follow(page)
        page.goto(f"http://127.0.0.1:{server.port}/")
        page.wait_for_selector(".status[data-state=ready]")
        return page

    yield open_page
    for page in pages:
        page.close()
    watch.check()


def test_the_page_shows_what_python_says(
    opened: Any, shared_server: ServerProcess, mini: Predictor, watch: Watch
) -> None:
    page = opened(shared_server)
    assert "mini" in words(page, "#facts")
    assert "Apache-2.0" in words(page, "#facts")
    names = sorted(path.name for path in (PAGE / "samples").iterdir())
    assert page.locator("#samples img").count() == len(names)

    def shown() -> dict[str, Any]:
        found: dict[str, Any] = json.loads(copied(page, "JSON"))
        return found

    for number in (0, 4):
        source = page.locator("#samples img").nth(number).get_attribute("src")
        name = source.rpartition("/")[2]
        pick_sample(page, number)
        page.wait_for_function(
            "name => document.querySelector('#image-name').textContent.startsWith(name)", arg=name
        )
        picture = PAGE / "samples" / name
        choose(page, "Caption", language="de")
        run(page)
        assert page.inner_text(".stream") == mini.caption(picture, "de").text
        choose(page, "Ask", language="en")
        run(page)
        question = page.input_value("#question")
        assert page.inner_text(".stream") == mini.ask(picture, question, "en").text
        choose(page, "Read")
        run(page)
        assert shown()["text"] == mini.ocr(picture).text
        choose(page, "Detect")
        run(page)
        phrases = page.input_value("#phrases")
        expect_objects(shown(), mini.detect(picture, phrases))
        choose(page, "Segment")
        run(page)
        expect_objects(shown(), mini.segment(picture, phrases))
        choose(page, "Prompt", prompt="caption fr")
        run(page)
        assert page.inner_text(".stream") == mini.generate(picture, "caption fr").text
    assert watch.failures == []
    keep_shot(page, "real")


def expect_objects(shown: dict[str, Any], found: Detections | Segments) -> None:
    """The same objects; scores may differ in the last digits, as batches do."""
    expected = found.to_dict()
    assert [o["label"] for o in shown["objects"]] == [o["label"] for o in expected["objects"]]
    for one, other in zip(shown["objects"], expected["objects"], strict=True):
        assert one["box_xyxy"] == pytest.approx(other["box_xyxy"])
        assert one["score"] == pytest.approx(other["score"], abs=1e-4)
        assert one.get("mask") == other.get("mask")
    assert {k: shown[k] for k in ("prompt", "text", "size_wh", "missing", "stop_reason")} == {
        k: expected[k] for k in ("prompt", "text", "size_wh", "missing", "stop_reason")
    }


def test_a_document_is_shown_and_read_as_python_reads_it(
    opened: Any, shared_server: ServerProcess, tmp_path: Path, watch: Watch
) -> None:
    data = pdf_of_pages([text_at(20, 70, f"Page number {number}") for number in (1, 2)])
    (tmp_path / "letter.pdf").write_bytes(data)
    page = opened(shared_server)
    page.set_input_files("#file", tmp_path / "letter.pdf")
    page.wait_for_selector("#page-number:has-text('Page 1 of 2')")
    assert page.locator("#stage-0 img.image").evaluate("image => image.naturalWidth") == 1600
    page.click(".options summary")
    page.select_option("#source", "text layer")
    run(page)
    assert page.locator(".item-value").all_inner_texts() == ["Page number 1", "Page number 2"]
    page.locator(".item", has_text="number 2").click()
    page.wait_for_selector("#page-number:has-text('Page 2 of 2')")
    assert page.locator("#stage-0 .outline").count() == 1
    page.get_by_role("radio", name="Fields").check()
    page.select_option("#schema", "own")
    page.fill("#own-schema", '{"properties": {"number": {"type": "integer"}}}')
    run(page)
    assert "number" in words(page, ".item-path")
    # And what is damaged is explained.
    (tmp_path / "cut.pdf").write_bytes(data[:200])
    page.set_input_files("#file", tmp_path / "cut.pdf")
    page.wait_for_selector("#image-problem:has-text('damaged or cut short')")
    keep_shot(page, "real-document")


def test_what_is_no_image_is_refused_by_the_server_in_words(
    opened: Any, shared_server: ServerProcess, mini: Predictor, tmp_path: Path
) -> None:
    page = opened(shared_server)
    whole = (PAGE / "samples" / SAMPLES[0]["file"]).read_bytes()
    path = tmp_path / "cut.jpg"
    path.write_bytes(whole[: len(whole) // 2])  # browsers show half a picture, the server does not
    page.set_input_files("#file", path)
    page.wait_for_selector("#stage-0 .pane:visible")
    run(page, state="failed")
    assert "The request is invalid." in words(page)
    pick_sample(page)
    run(page)
    assert words(page, ".stream") == mini.caption(whole).text


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that changes what mini says."""
    trained = paligemma.load("mini", device="cpu", weights=paligemma.Trainable())
    add_lora(trained.model, LoraConfig(rank=2))
    disturb(trained.model)
    return trained.save_adapter(tmp_path_factory.mktemp("adapters") / "changed")


@pytest.fixture(scope="module")
def slow_server(start_server: StartServer, adapter: Path, mini: Predictor) -> ServerProcess:
    """A server of mini and the adapter that takes 0.2 s for each token."""
    return start_server("--adapter", f"changed={adapter}", faults=SLOW)


def test_base_and_adapter_answer_side_by_side(
    opened: Any, slow_server: ServerProcess, adapter: Path, mini: Predictor
) -> None:
    page = opened(slow_server)
    pick_sample(page)
    page.select_option("#beside", "changed")
    choose(page, "Detect")
    run(page)
    page.wait_for_selector("#answer-1[data-state=done]")
    changed = paligemma.load("mini", device="cpu", adapter=adapter)
    picture = PAGE / "samples" / SAMPLES[0]["file"]
    said = []
    for number, predictor in enumerate((mini, changed)):
        found = predictor.detect(picture, SAMPLES[0]["phrases"].split(", "))
        page.click(f"#answer-{number} >> text=JSON")
        page.wait_for_selector(".toast.shown")
        expect_objects(json.loads(page.evaluate("navigator.clipboard.readText()")), found)
        said.append(found.text)
    assert said[0] != said[1]


def test_i5_stopping_frees_the_slot_on_the_server(opened: Any, slow_server: ServerProcess) -> None:
    page = opened(slow_server)
    pick_sample(page)
    choose(page, "Segment")
    run(page, state="waiting")
    page.wait_for_timeout(400)
    assert slow_server.metric("paligemma_running") == 1
    page.click("#stop")
    page.wait_for_selector("#answer-0[data-state=failed]")
    assert "Stopped." in words(page)
    for _ in range(50):
        if slow_server.metric("paligemma_running") == 0:
            break
        page.wait_for_timeout(50)
    assert slow_server.metric("paligemma_running") == 0


def test_i5_a_server_killed_in_mid_stream_and_started_again(
    opened: Any, slow_server: ServerProcess, start_server: StartServer, mini: Predictor
) -> None:
    page = opened(slow_server)
    pick_sample(page)
    choose(page, "Detect")
    run(page, state="streaming")
    slow_server.signal(signal.SIGKILL)
    page.wait_for_selector("#answer-0[data-state=failed]")
    assert "connection was lost during the answer" in words(page)
    keep_shot(page, "killed")
    page.get_by_role("button", name="Try again").click()
    page.wait_for_selector("#answer-0 .problem:has-text('cannot be reached')")
    again = start_server("--port", str(slow_server.port))
    page.wait_for_selector(".status[data-state=ready]")
    page.get_by_role("button", name="Try again").click()
    page.wait_for_selector("#answer-0[data-state=done]")
    picture = PAGE / "samples" / SAMPLES[0]["file"]
    expect_objects(
        json.loads(copied(page, "JSON")), mini.detect(picture, SAMPLES[0]["phrases"].split(", "))
    )
    again.kill()
