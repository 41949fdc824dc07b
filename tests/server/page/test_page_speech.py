"""Reading answers aloud on the page, with voices that the test gives the browser."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.server.page.browser import Watch, choose, keep_shot, pick_sample, run
from tests.server.page.double import Double, caption

_FAKE = """
    window.said = [];
    const voices = [
        {name: "far", lang: "de-DE", localService: false, default: true},
        {name: "near", lang: "de_DE", localService: true, default: false},
        {name: "english", lang: "en-US", localService: true, default: true},
        {name: "british", lang: "en-GB", localService: true, default: false},
    ];
    class Synthesis extends EventTarget {
        getVoices() { return window.late ? [] : voices; }
        speak(utterance) { window.said.push(utterance); }
        cancel() { window.said.push("cancel"); }
    }
    Object.defineProperty(window, "speechSynthesis", {value: new Synthesis()});
    window.SpeechSynthesisUtterance = class extends EventTarget {
        constructor(text) { super(); this.text = text; }
    };
"""
_SAID = "() => window.said.filter(each => each.text).map(each => [each.text, each.voice.name])"


@pytest.fixture
def page(context: Any, double: Double, watch: Watch) -> Iterator[Any]:
    """The page in a browser with voices."""
    made = context.new_page()
    watch.follow(made)
    made.add_init_script(_FAKE)
    made.goto(double.url)
    made.wait_for_selector(".status[data-state=ready]")
    pick_sample(made)
    yield made
    made.close()
    watch.check()


def test_a_caption_is_read_by_a_voice_of_this_machine_when_asked(page: Any, double: Double) -> None:
    double.replies["caption"] = lambda to: to.result(caption())
    run(page)
    button = page.get_by_role("button", name="Read aloud")
    assert page.evaluate(_SAID) == []
    button.click()
    assert page.evaluate(_SAID) == [["two pandas before a tree", "english"]]
    stop = page.get_by_role("button", name="Stop reading")
    keep_shot(page, "read-aloud")
    stop.click()
    assert page.evaluate("window.said.at(-1)") == "cancel"
    button.click()
    page.evaluate("window.said.at(-1).dispatchEvent(new Event('end'))")
    assert button.is_visible()
    button.click()
    run(page)  # a new answer is not spoken over
    assert page.evaluate("window.said.at(-1)") == "cancel"
    assert button.is_visible()


def test_the_voice_speaks_the_language_of_the_answer(page: Any, double: Double) -> None:
    double.replies["caption"] = lambda to: to.result(caption("zwei Pandas", "de"))
    choose(page, "Caption", language="de")
    run(page)
    page.get_by_role("button", name="Read aloud").click()
    assert page.evaluate(_SAID) == [["zwei Pandas", "near"]]


def test_without_a_voice_of_this_machine_there_is_no_button(page: Any, double: Double) -> None:
    double.replies["caption"] = lambda to: to.result(caption("deux pandas", "fr"))
    choose(page, "Caption", language="fr")
    run(page)
    assert not page.locator(".speak").is_visible()
    page.evaluate("window.late = true")
    double.replies["caption"] = lambda to: to.result(caption())
    choose(page, "Caption", language="en")
    run(page)
    assert not page.locator(".speak").is_visible()
    page.evaluate("window.late = false; speechSynthesis.dispatchEvent(new Event('voiceschanged'))")
    assert page.locator(".speak").is_visible()
