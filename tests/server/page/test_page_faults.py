"""The page when things go wrong or someone wants it to (reliability rows I4 and I5)."""

from __future__ import annotations

import io
import threading
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from paligemma.results import Generation
from tests.server.page.browser import (
    SAMPLES,
    Watch,
    choose,
    copied,
    keep_shot,
    pick_sample,
    png,
    run,
    words,
)
from tests.server.page.double import (
    Answering,
    Double,
    Reply,
    detections,
    endless,
    late,
)


def try_again(page: Any) -> None:
    page.get_by_role("button", name="Try again").click()
    page.wait_for_selector("#answer-0[data-state=done]")


def once(double: Double, route: str, fault: Any) -> None:
    """The fault for the next request, and a good answer for those after it."""
    good = double.replies[route]

    def reply(to: Answering) -> None:
        double.replies[route] = good
        fault(to)

    double.replies[route] = reply


# The server fails


def test_i5_a_server_gone_in_mid_stream_is_told_and_asked_again(page: Any, double: Double) -> None:
    once(double, "caption", lambda to: to.event("token", {"text": "two pandas"}))
    pick_sample(page)
    run(page, state="failed")
    assert "connection was lost during the answer" in words(page)
    assert "req-7" in words(page)
    assert page.inner_text(".stream") == "two pandas"  # what had come is kept
    keep_shot(page, "cut")
    try_again(page)
    assert page.inner_text(".stream") == "two pandas before a tree"
    assert page.locator("#answer-0 .problem").count() == 0
    assert double.asked[0].fields == double.asked[1].fields
    assert double.asked[0].image == double.asked[1].image


def test_i5_boxes_that_came_before_the_cut_stay(page: Any, double: Double) -> None:
    once(double, "detect", lambda to: to.event("object", detections()[0].to_dict()))
    pick_sample(page)
    choose(page, "Detect", phrases="panda ; sign ; dog")
    run(page, state="failed")
    assert page.locator("#stage-0 .outline").count() == 1
    assert page.locator(".past").count() == 0  # half an answer is none to come back to
    try_again(page)
    assert page.locator("#stage-0 .outline").count() == 3


@pytest.mark.parametrize(
    "stream",
    [
        b"data: [DONE]\n\n",
        b'event: result\ndata: {"result": {}, \n\n',
        b'event: token\ndata: {"text": "x"}\n\nevent: result\ndata: {',
        b"\xff\xfe\x00",
        b"",
    ],
)
def test_i5_a_broken_stream_is_no_answer(page: Any, double: Double, stream: bytes) -> None:
    once(double, "caption", lambda to: to.raw(stream))
    pick_sample(page)
    run(page, state="failed")
    assert "connection was lost" in words(page)
    try_again(page)


def test_i5_an_error_in_mid_stream_is_told_in_its_words(page: Any, double: Double) -> None:
    def fail(to: Answering) -> None:
        to.event("token", {"text": "two"})
        to.event("error", {"error": {"message": "The model produced NaN.", "code": "numerical"}})
        to.done()

    once(double, "caption", fail)
    pick_sample(page)
    run(page, state="failed")
    assert "The model produced NaN." in words(page)
    try_again(page)


def test_i5_a_busy_server_is_asked_again(page: Any, double: Double) -> None:
    once(double, "caption", lambda to: to.refuse(429, "64 are waiting.", Retry_After="3"))
    pick_sample(page)
    run(page, state="failed")
    assert "The server is busy. Wait 3 seconds. 64 are waiting." in " ".join(words(page).split())
    try_again(page)
    assert len(double.asked) == 2


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (404, "Unknown model"),
        (500, "The server failed (500)."),
        (503, "The server is not ready."),
        (504, "The request timed out."),
    ],
)
def test_i5_a_refusal_is_told_in_words(page: Any, double: Double, status: int, said: str) -> None:
    once(double, "caption", lambda to: to.refuse(status, "It says why."))
    pick_sample(page)
    run(page, state="failed")
    assert said in words(page)
    assert "It says why." in words(page)
    try_again(page)


def test_i5_what_asking_again_would_not_mend_offers_no_such_thing(
    page: Any, double: Double
) -> None:
    once(double, "caption", lambda to: to.refuse(400, "It says why."))
    pick_sample(page)
    run(page, state="failed")
    assert "The request is invalid." in words(page)
    assert "It says why." in words(page)
    assert "Try again" not in words(page)
    run(page)


def test_i5_a_server_that_cannot_be_reached_is_waited_for(
    page: Any, double: Double, context: Any
) -> None:
    page.clock.install()
    pick_sample(page)
    context.route("**/v1/**", lambda route: route.abort())
    run(page, state="failed")
    assert "cannot be reached" in words(page)
    page.wait_for_selector(".status[data-state=unreachable]")
    keep_shot(page, "unreachable")
    context.unroute("**/v1/**")
    page.clock.fast_forward(3100)
    page.wait_for_selector(".status[data-state=ready]")
    try_again(page)


def test_a_model_that_is_being_loaded_is_waited_for(
    context: Any, double: Double, watch: Watch
) -> None:
    double.models_status = 503
    page = context.new_page()
    watch.follow(page)
    page.clock.install()
    page.goto(double.url)
    page.wait_for_selector(".status[data-state=loading]")
    assert words(page, "#status") == "loading the model"
    keep_shot(page, "loading")
    double.models_status = 200
    page.clock.fast_forward(3100)
    page.wait_for_selector(".status[data-state=ready]")
    assert "mini" in words(page, "#facts")
    page.close()
    watch.check()


def test_a_silent_server_is_told_and_given_up(page: Any, double: Double) -> None:
    go_on = threading.Event()
    double.replies["caption"] = lambda to: (go_on.wait(20), None)[1]
    page.clock.install()
    pick_sample(page)
    run(page, state="waiting")
    page.clock.fast_forward(16_000)
    page.wait_for_selector(".status[data-state=quiet]")
    assert words(page, "#status") == "no sign of the server"
    page.clock.fast_forward(170_000)
    page.wait_for_selector("#answer-0[data-state=failed]")
    assert "The server sent nothing for 180 seconds." in words(page)
    page.wait_for_selector(".status[data-state=ready]")  # it answers again
    go_on.set()


# Large pictures


def test_i5_a_photo_of_30_megabytes_is_made_smaller(
    page: Any, double: Double, tmp_path: Path
) -> None:
    path = tmp_path / "big.bmp"
    Image.new("RGB", (3200, 3200), (30, 90, 160)).save(path)
    assert path.stat().st_size > 30e6
    page.set_input_files("#file", path)
    page.get_by_text("The image has 31 MB; the limit is 20 MB.").wait_for()
    page.click("#run")
    assert double.asked == []  # nothing is sent in vain
    keep_shot(page, "too-large")
    page.get_by_role("button", name="Use a smaller copy").click()
    page.get_by_text("big-small.jpg, 1600 × 1600").wait_for()
    assert page.locator("#image-problem").is_hidden()
    run(page)
    with Image.open(io.BytesIO(double.last().image)) as sent:
        assert (sent.format, sent.size) == ("JPEG", (1600, 1600))
        red, green, blue = sent.getpixel((800, 800))  # type: ignore[misc]
        assert max(abs(red - 30), abs(green - 90), abs(blue - 160)) <= 3


def test_i5_a_413_offers_a_smaller_copy_and_asks_again(page: Any, double: Double) -> None:
    once(double, "caption", lambda to: to.refuse(413, "The body has more than 100 bytes."))
    page.set_input_files(
        "#file", {"name": "wide.png", "mimeType": "image/png", "buffer": png(2000, 500)}
    )
    page.wait_for_selector("#stage-0 .pane:visible")
    run(page, state="failed")
    assert "The image is too large for this server." in words(page)
    assert "The limit is 20 MB." in words(page)
    page.get_by_role("button", name="Use a smaller copy").click()
    page.wait_for_selector("#answer-0[data-state=done]")
    with Image.open(io.BytesIO(double.last().image)) as sent:
        assert sent.size == (1600, 400)


# People change their minds


def test_i5_a_double_click_asks_once(page: Any, double: Double) -> None:
    go_on = threading.Event()
    double.replies["caption"] = late(go_on)
    pick_sample(page)
    page.dblclick("#run")
    page.click("#run", force=True)  # it says that it is disabled; people click anyway
    page.keyboard.press("Control+Enter")
    go_on.set()
    page.wait_for_selector("#answer-0[data-state=done]")
    assert len(double.asked) == 1


@pytest.mark.parametrize("how", ["button", "escape"])
def test_i5_stopping_cancels_the_request_on_the_server(page: Any, double: Double, how: str) -> None:
    once(double, "caption", endless("two pandas"))
    pick_sample(page)
    run(page, state="streaming")
    page.wait_for_selector(".stream:text-is('two pandas')")
    if how == "button":
        page.click("#stop")
    else:
        page.keyboard.press("Escape")
    page.wait_for_selector("#answer-0[data-state=failed]")
    assert "Stopped." in words(page)
    assert page.inner_text(".stream") == "two pandas"
    assert double.asked[0].hung_up.wait(5)
    assert page.locator("#stop").is_hidden()
    try_again(page)


def test_i5_another_image_cancels_the_request_for_the_first(page: Any, double: Double) -> None:
    once(double, "caption", endless("of the first"))
    pick_sample(page)
    run(page, state="streaming")
    page.locator("#samples button").nth(1).click()
    page.get_by_text(SAMPLES[1]["file"]).wait_for()
    assert double.asked[0].hung_up.wait(5)
    page.wait_for_selector("#stop", state="hidden")
    assert "of the first" not in words(page)
    assert page.locator("#answer-0 .problem").count() == 0
    run(page)
    assert page.inner_text(".stream") == "two pandas before a tree"


def test_i5_leaving_cancels_and_coming_back_works(page: Any, double: Double) -> None:
    once(double, "caption", endless("two"))
    pick_sample(page)
    run(page, state="streaming")
    page.goto(f"{double.url}page/icon.svg")
    assert double.asked[0].hung_up.wait(5)
    page.go_back()
    page.wait_for_selector(".status[data-state=ready]")
    assert page.get_attribute("#run", "aria-disabled") != "true"
    pick_sample(page)
    run(page)
    assert page.inner_text(".stream") == "two pandas before a tree"


# Keys


def test_a_key_is_asked_for_and_sent_and_never_written_out(
    context: Any, double: Double, watch: Watch
) -> None:
    double.key = "secret-key-of-16"
    page = context.new_page()
    watch.follow(page)
    page.goto(double.url)
    page.wait_for_selector("#key-dialog[open]")
    assert page.evaluate("document.activeElement.id") == "key"
    keep_shot(page, "key")
    page.fill("#key", "wrong")
    page.keyboard.press("Enter")
    page.get_by_text("does not accept this key").wait_for()
    page.fill("#key", double.key)
    page.keyboard.press("Enter")
    page.wait_for_selector(".status[data-state=ready]")
    pick_sample(page)
    run(page)
    assert double.last().key == f"Bearer {double.key}"
    command = copied(page, "curl")
    assert double.key not in command
    assert "$PALIGEMMA_API_KEY" in command
    assert double.key not in page.content()
    assert page.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}])").find(
        double.key
    ) == -1  # fmt: skip

    double.key = "another-key-of-16"  # it was changed on the server
    run(page, state="failed")
    assert "requires a key" in words(page)
    page.fill("#key", double.key)
    page.keyboard.press("Enter")
    page.wait_for_selector("#answer-0[data-state=done]")  # asked again by itself
    page.close()
    watch.check()


def test_the_key_can_be_left_for_later(context: Any, double: Double, watch: Watch) -> None:
    double.key = "secret-key-of-16"
    page = context.new_page()
    watch.follow(page)
    page.goto(double.url)
    page.wait_for_selector("#key-dialog[open]")
    page.get_by_role("button", name="Not now").click()
    assert words(page, "#status") == "requires a key"
    page.get_by_role("button", name="Key", exact=True).click()
    page.fill("#key", double.key)
    page.keyboard.press("Enter")
    page.wait_for_selector(".status[data-state=ready]")
    page.close()
    watch.check()


# Nothing a model or a file says becomes part of the page

PAYLOADS = (
    "<img src=x onerror=alert(1)>",
    "<script>alert(1)</script>",
    "[click](javascript:alert(1))",
    "<svg onload=alert(1)><a href='javascript:alert(1)'>x</a>",
    "</p></section><h1>owned</h1>",
)


def replies_of(payload: str, found: dict[str, Any]) -> dict[str, Reply]:
    """A model and a server that say the payload wherever they can."""
    written: dict[str, Any] = {"token_ids": (1,), "logprobs": (0.0,), "stop_reason": "eos"}

    def say(to: Answering) -> None:
        to.text(Generation(text=payload, **written))

    def find(to: Answering) -> None:
        to.event("object", found["objects"][0])
        to.event("result", {"model": payload, "result": found, "usage": {}})
        to.done()

    def refuse(to: Answering) -> None:
        to.refuse(400, payload)

    return {"generate": say, "detect": find, "segment": refuse}


def test_i4_what_a_model_writes_is_shown_as_text(page: Any, double: Double) -> None:
    elements = "[...document.querySelectorAll('script, iframe, a, h1')].map((e) => e.outerHTML)"
    pick_sample(page)
    before = page.evaluate(elements)
    for payload in PAYLOADS:
        found = detections().to_dict()
        found["objects"] = [{**found["objects"][0], "label": payload}]
        found |= {"text": payload, "missing": [payload]}
        found["problems"] = [{"kind": payload, "detail": payload, "token_span": [0, 1]}]
        double.replies |= replies_of(payload, found)
        choose(page, "Prompt", prompt=payload)
        run(page)
        assert page.inner_text(".stream") == payload
        assert page.locator(".past-title").first.text_content() == payload
        choose(page, "Detect", phrases=payload)
        run(page)
        assert page.inner_text(".object-label") == payload
        choose(page, "Segment", phrases=payload)
        run(page, state="failed")
        assert payload in words(page, "#answer-0 .problem")
        assert page.evaluate(elements) == before
    page.wait_for_timeout(50)  # an injected handler would have raised its dialog: see Watch


def test_i4_what_a_file_is_called_is_shown_as_text(page: Any, double: Double) -> None:
    for payload in PAYLOADS:
        name = f"{payload}.png"
        page.set_input_files("#file", {"name": name, "mimeType": "image/png", "buffer": png()})
        page.get_by_text(f"{name}, 64 × 48", exact=True).wait_for()
        assert page.locator("#image-name > *").count() == 0
        run(page)
        assert double.last().image == png()


def test_i4_a_model_named_by_an_attacker_is_shown_as_text(page: Any, double: Double) -> None:
    double.models[0] |= {
        "id": PAYLOADS[0],
        "license": PAYLOADS[1],
        "license_url": "javascript:alert(1)",
        "note": PAYLOADS[3],
    }
    page.reload()
    page.wait_for_selector(".status[data-state=ready]")
    for text in (PAYLOADS[0], PAYLOADS[1], PAYLOADS[3]):
        assert text in words(page, "#facts")
    assert page.locator("#facts a").count() == 0


def test_i4_what_is_no_image_is_refused_in_words(page: Any, double: Double) -> None:
    svg = b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>"
    for name, kind, data in [
        ("a.svg", "image/svg+xml", svg),
        ("b.html", "text/html", b"<script>alert(1)</script>"),
        ("c.png", "image/png", svg),
        ("d.png", "image/png", b""),
    ]:
        page.set_input_files("#file", {"name": name, "mimeType": kind, "buffer": data})
        page.wait_for_selector(f"#image-problem:has-text('{name}')")
        assert page.locator("#stage-0 .pane").is_hidden()
    page.click("#run")
    assert double.asked == []


def test_i4_the_policy_of_the_page_lets_no_foreign_code_run(page: Any, watch: Watch) -> None:
    ran = page.evaluate(
        """() => {
            const script = document.createElement("script");
            script.textContent = "window.ran = true";
            document.body.append(script);
            const image = document.createElement("img");
            image.setAttribute("onerror", "window.ran = true");
            image.src = "data:,";
            document.body.append(image);
            return new Promise((done) => setTimeout(() => done(window.ran === true), 100));
        }"""
    )
    assert not ran
    assert any("Content Security Policy" in text for text in watch.console)
    watch.console.clear()
