"""The page shows the captions of a film along its time line, from the real server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.server.conftest import EXAMPLES, StartServer
from tests.server.page.browser import PHONE, Watch, keep_shot, pick_sample
from tests.server.server_process import ServerProcess
from tests.video.clips import film

SCENE = Image.open(EXAMPLES / "scene.png").convert("RGB")


def draw(number: int, size: tuple[int, int]) -> Image.Image:
    """The scene, and nothing at all in the second half."""
    return SCENE.resize(size) if number < 8 else Image.new("RGB", size, (90, 140, 90))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: Any) -> Path:
    path: Path = tmp_path_factory.mktemp("film") / "garden.webm"
    times = [k / 4 for k in range(16)]
    path.write_bytes(film(times, container="webm", codec="libvpx", size=(192, 192), draw=draw))
    return path


@pytest.fixture(scope="module")
def video_server(start_server: StartServer) -> ServerProcess:
    return start_server("--allow-video")


@pytest.fixture
def opened(context: Any, watch: Watch, video_server: ServerProcess) -> Iterator[Any]:
    page = context.new_page()
    watch.follow(page)
    page.goto(f"http://127.0.0.1:{video_server.port}/")
    page.wait_for_selector(".status[data-state=ready]")
    yield page
    page.close()
    watch.check()


def done(page: Any) -> str:
    page.wait_for_selector("#film-stop", state="hidden", timeout=60_000)
    return str(page.inner_text("#film-state"))


def test_a_film_chosen_before_the_server_answers_is_opened_once_it_does(
    context: Any, watch: Watch, video_server: ServerProcess, clip: Path
) -> None:
    page = context.new_page()
    watch.follow(page)
    held: list[Any] = []
    page.route("**/v1/limits", lambda route: held.append(route))
    page.goto(f"http://127.0.0.1:{video_server.port}/")
    page.wait_for_selector("#samples img")
    page.set_input_files("#file", clip)
    page.wait_for_selector("text=is opened as soon as the server answers")
    held[0].continue_()
    page.wait_for_selector("#film:visible")
    page.close()
    watch.check()


def test_captions_stand_along_the_time_line(opened: Any, clip: Path) -> None:
    page = opened
    assert "a PDF or a video clip; choose" in page.inner_text("#stage-0")
    page.set_input_files("#file", clip)
    page.wait_for_selector("#film:visible")
    assert page.locator("#controls").is_hidden()
    page.fill("#film-every", "1")
    page.click("#film-run")
    page.wait_for_selector("#film-list li")
    assert "parts." in done(page)
    rows = page.locator("#film-list .film-row")
    assert rows.count() >= 2
    assert "frog" in rows.first.inner_text()
    assert page.locator(".film-piece").count() == rows.count()
    keep_shot(page, "video")
    rows.last.click()
    page.wait_for_selector("#film-list li:last-child.now")
    assert page.evaluate("document.getElementById('film-player').currentTime") > 1.5
    assert page.inner_text("#film-caption") == page.inner_text(
        "#film-list li:last-child .film-text"
    )
    with page.expect_download() as saved:
        page.click("text=Save as SRT")
    assert saved.value.suggested_filename == "garden.srt"
    assert Path(saved.value.path()).read_text().startswith("1\n00:00:00,000 --> 00:00:0")


def test_a_question_is_asked_and_an_image_gives_the_page_back(opened: Any, clip: Path) -> None:
    page = opened
    page.set_input_files("#file", clip)
    page.fill("#film-question", "how many frogs are there?")
    assert page.inner_text("#film-run") == "Ask"
    page.fill("#film-every", "2")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#film-list li")
    done(page)
    assert page.locator("#film-list .film-text").first.inner_text() == "2"
    page.set_viewport_size(PHONE)
    keep_shot(page, "video-phone")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    pick_sample(page)
    assert page.locator("#film").is_hidden()
    assert page.locator("#controls").is_visible()


def test_what_is_no_video_is_said(opened: Any, tmp_path: Path) -> None:
    page = opened
    path = tmp_path / "list.mp4"
    path.write_text("ffconcat version 1.0\nfile <img src=x onerror=alert(1)>.mp4\n")
    page.set_input_files("#file", path)
    page.click("#film-run")
    page.wait_for_selector("#film-state:has-text('list of other video files')")


def test_a_server_without_videos_says_so(context: Any, watch: Watch, page: Any, clip: Path) -> None:
    page.set_input_files("#file", clip)
    page.wait_for_selector("#image-problem:has-text('reads no videos')")
    assert page.locator("#film").is_hidden()
