"""The page of a comparison: what is in it, and what a person can do on it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from paligemma.compare import CompareOptions, compare_models, count_votes, gallery
from tests.server.page.browser import chromium

HOSTILE = '</script><script>alert(1)</script><img src=x onerror="alert(2)">\u202eevil\x1b[2J'
QUESTION = "how many objects are there?"


@pytest.fixture(scope="module")
def page(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two recorded contestants on four scenes, asked for a text and for boxes."""
    folder = tmp_path_factory.mktemp("page")
    names = [f"{number}.png" for number in range(4)]
    for file, shift in (("good.jsonl", 0), ("bad.jsonl", 30)):
        lines: list[dict[str, Any]] = []
        for number, name in enumerate(names):
            text = HOSTILE if shift and number == 2 else f"{number + shift}"
            lines.append({"image": name, "question": QUESTION, "text": text, "seconds": 0.5})
            box = [40 + shift, 40, 140 + shift, 140]
            objects = [{"label": "frog", "box_xyxy": box, "score": 0.9}]
            lines.append({"image": name, "prefix": "detect frog", "objects": objects})
        (folder / file).write_text("".join(json.dumps(line) + "\n" for line in lines))
    compare_models(
        scenes,
        [str(folder / "good.jsonl"), str(folder / "bad.jsonl")],
        folder / "out",
        CompareOptions(ask=(QUESTION,), detect="frog"),
    )
    return folder / "out" / "compare.html"


def test_the_page_is_one_file_whose_policy_allows_its_own_script_alone(page: Path) -> None:
    html = page.read_text()
    [policy] = re.findall(r'Content-Security-Policy" content="([^"]*)"', html)
    assert policy.startswith("default-src &#39;none&#39;") or policy.startswith(
        "default-src 'none'"
    )
    assert "unsafe" not in policy
    assert set(re.findall(r"https?://[^\"]*", html)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r'\b(src|href)="(?!data:)', html)


def test_what_contestants_write_is_neither_markup_nor_control(page: Path) -> None:
    html = page.read_text()
    assert "alert(1)</script>" not in html
    assert "\u202e" not in html
    assert "\x1b" not in html
    [data] = re.findall(r'id="data">(.*?)</script>', html, re.DOTALL)
    texts = [answer["text"] for r in json.loads(data)["records"] for answer in r["answers"]]
    assert any("<script>alert(1)" in text for text in texts)


def test_questions_with_most_disagreement_come_first(page: Path) -> None:
    [data] = re.findall(r'id="data">(.*?)</script>', page.read_text(), re.DOTALL)
    order = [record["disagreement"] for record in json.loads(data)["records"]]
    assert order == sorted(order, reverse=True)
    assert order[0] > 0.9


def test_images_stop_at_a_total_size(
    scenes: Path, page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gallery, "MAX_IMAGE_BYTES", 1)
    good = page.parents[1] / "good.jsonl"
    options = CompareOptions(ask=(QUESTION,), detect="frog")
    compare_models(scenes, [str(good)], tmp_path, options)
    html = (tmp_path / "compare.html").read_text()
    [data] = re.findall(r'id="data">(.*?)</script>', html, re.DOTALL)
    assert len(json.loads(data)["images"]) == 1
    assert "Some images are left out" in html


@pytest.fixture
def browser_page(page: Path) -> Iterator[Any]:
    """The page in a browser, which must not complain or ask for anything."""
    with chromium() as browser:
        opened = browser.new_context(accept_downloads=True).new_page()
        said: list[str] = []
        asked: list[str] = []
        opened.on("console", lambda message: said.append(message.text))
        opened.on("pageerror", lambda error: said.append(str(error)))
        opened.on("dialog", lambda dialog: said.append(dialog.message))
        opened.on("request", lambda request: asked.append(request.url))
        opened.goto(page.as_uri())
        yield opened
        assert said == []
        assert {url.partition(":")[0] for url in asked} <= {"file", "data", "blob"}


def test_answers_are_filtered_and_boxes_hidden_and_votes_kept(
    browser_page: Any, tmp_path: Path
) -> None:
    page = browser_page
    page.click("#tab-answers")
    assert page.locator(".card").count() == 8
    page.select_option("#task", "detect")
    assert page.locator(".card").count() == 4
    assert page.locator("#cards g[data-layer='0']:not([display])").count() == 4
    page.keyboard.press("Escape")
    page.locator("#answers").click(position={"x": 2, "y": 2})
    page.keyboard.press("1")
    assert page.locator("#cards g[data-layer='0']:not([display])").count() == 0
    assert page.locator("#cards g[data-layer='1']:not([display])").count() == 4
    page.select_option("#task", "")
    page.fill("#search", "alert(1)")
    assert page.locator(".card").count() == 1

    page.click("#tab-vote")
    assert "good.jsonl" not in page.inner_text("#booth")
    assert "bad.jsonl" not in page.inner_text("#booth")
    assert "0 votes, 8 left" in page.inner_text("#vote-count")
    for key in ("a", "b", "g", "n"):
        page.keyboard.press(key)
    page.keyboard.press("u")
    assert "3 votes, 5 left" in page.inner_text("#vote-count")
    page.reload()
    page.click("#tab-vote")
    assert "3 votes, 5 left" in page.inner_text("#vote-count")
    with page.expect_download() as download:
        page.click("#export")
    saved = tmp_path / "votes.json"
    download.value.save_as(saved)
    [pair] = count_votes([saved])
    assert pair.first_better + pair.second_better == 2
    assert pair.both == 1
    page.on("dialog", lambda dialog: dialog.accept())
    page.evaluate("localStorage.clear()")
    page.reload()
    page.click("#tab-vote")
    page.set_input_files("#import", str(saved))
    page.wait_for_function("document.getElementById('vote-note').textContent.includes('3 votes')")
    page.click("#reveal")
    shown = [cell.strip() for cell in page.locator("#result td").all_inner_texts()]
    assert shown[2:6] == [str(pair.first_better), str(pair.second_better), "1", "0"]
