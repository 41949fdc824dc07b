"""The page in Chromium against a double of the server: each way in, each task, what is shown."""

from __future__ import annotations

import ast
import json
import math
import os
import shlex
import shutil
import subprocess
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from paligemma.masks import mask_to_rle
from paligemma.results import Problem
from tests.server.page.browser import (
    DESKTOP,
    PHONE,
    SAMPLES,
    SHOTS_VARIABLE,
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
    PAGE,
    Answering,
    Double,
    caption,
    detection,
    detections,
    late,
    segments,
)

# The page itself


def test_the_files_are_small_and_ask_nothing_of_others() -> None:
    files = [path for path in PAGE.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 400_000
    for path in files:
        if path.suffix in {".html", ".css", ".js"}:
            text = path.read_text(encoding="utf-8")
            for forbidden in ("innerHTML", "outerHTML", "insertAdjacentHTML", "eval(", "style="):
                assert forbidden not in text, (path.name, forbidden)
            assert "@import" not in text
            # The one foreign address is a link that people may follow.
            assert text.count("https://") == text.count("https://ai.google.dev/gemma/terms") + (
                text.count('startsWith("https://")')
            ), path.name


def test_the_empty_page_invites_an_image_and_shows_model_and_license(page: Any) -> None:
    assert "Start with an image" in words(page, "#stage-0")
    assert "Drop or paste one here, or a PDF; choose" in words(page, "#stage-0")
    assert "mini" in words(page, "#facts")
    assert "Apache-2.0" in words(page, "#facts")
    assert "its own world" in words(page, "#facts")
    assert page.locator("#samples img").count() >= 5
    for sample in page.locator("#samples img").all():
        assert sample.evaluate("image => image.naturalWidth") == 384
    keep_shot(page, "empty")


def test_asking_without_an_image_says_what_is_missing(page: Any, double: Double) -> None:
    page.click("#run")
    assert "Choose an image first" in words(page, "#image-problem")
    assert double.asked == []


# Ways in


def by_chooser(page: Any, data: bytes) -> None:
    with page.expect_file_chooser() as chooser:
        page.click("#choose")
    chooser.value.set_files({"name": "my own.png", "mimeType": "image/png", "buffer": data})


def by_camera(page: Any, data: bytes) -> None:
    assert page.get_attribute("#camera", "capture") == "environment"
    page.set_input_files("#camera", {"name": "my own.png", "mimeType": "image/png", "buffer": data})


def _transfer(page: Any, data: bytes, event: str) -> None:
    page.evaluate(
        """([bytes, event]) => {
            const held = new DataTransfer();
            held.items.add(new File([new Uint8Array(bytes)], "my own.png", {type: "image/png"}));
            const made = event === "paste"
                ? new ClipboardEvent("paste", {clipboardData: held, cancelable: true})
                : new DragEvent("drop", {dataTransfer: held, cancelable: true});
            (event === "paste" ? document : window).dispatchEvent(made);
        }""",
        [list(data), event],
    )


def by_paste(page: Any, data: bytes) -> None:
    _transfer(page, data, "paste")


def by_drop(page: Any, data: bytes) -> None:
    _transfer(page, data, "drop")


@pytest.mark.parametrize("way", [by_chooser, by_camera, by_paste, by_drop])
def test_an_image_comes_in_and_goes_out_untouched(page: Any, double: Double, way: Any) -> None:
    data = png()
    way(page, data)
    page.wait_for_selector("#stage-0 .pane:visible")
    assert "my own.png, 64 × 48" in words(page, "#image-name")
    run(page)
    assert double.last().image == data
    assert double.last().image_name == "my own.png"


def test_a_file_chosen_before_the_page_is_ready_is_shown(
    context: Any, double: Double, watch: Watch
) -> None:
    page = context.new_page()
    watch.follow(page)
    held: list[Any] = []
    page.route("**/page/page.js", lambda route: held.append(route))
    page.goto(double.url, wait_until="commit")
    page.wait_for_selector("#file", state="attached")
    page.set_input_files("#file", {"name": "soon.png", "mimeType": "image/png", "buffer": png()})
    held[0].continue_()
    page.wait_for_selector("#stage-0 .pane:visible")
    assert "soon.png, 64 × 48" in words(page, "#image-name")
    page.close()
    watch.check()


def test_dropping_text_does_not_leave_the_page(page: Any) -> None:
    page.evaluate(
        """() => {
            const held = new DataTransfer();
            held.setData("text/uri-list", "https://example.org/cat.png");
            const made = new DragEvent(
                "drop", {dataTransfer: held, bubbles: true, cancelable: true});
            document.body.dispatchEvent(made);
            if (!made.defaultPrevented) throw new Error("the browser would leave the page");
        }"""
    )
    assert "This is not a file" in words(page, "#image-problem")


# Tasks


@pytest.mark.parametrize(
    ("task", "fields", "route", "sent", "said"),
    [
        ("Caption", {"language": "de"}, "caption", {"language": "de"}, "two pandas before a tree"),
        (
            "Ask",
            {"question": " how many? ", "language": "fr"},
            "ask",
            {"question": "how many?", "language": "fr"},
            "2",
        ),
        (
            "Ask",
            {"question": "how many?", "language": ""},
            "ask",
            {"question": "how many?", "language": ""},
            "2",
        ),
        ("Read text", {}, "ocr", {}, "COFFEE"),
        (
            "Detect",
            {"phrases": "panda ; sign;dog ;"},
            "detect",
            {"phrases": ["panda", "sign", "dog"]},
            "3 found.",
        ),
        ("Segment", {"phrases": "panda"}, "segment", {"phrases": ["panda"]}, "2 found."),
        (
            "Detect",
            {"phrases": "panda, sign"},
            "detect",
            {"phrases": ["panda", "sign"]},
            "3 found.",
        ),
        (
            "Detect",
            {"phrases": "panda、sign"},
            "detect",
            {"phrases": ["panda", "sign"]},
            "3 found.",
        ),
        (
            "Detect",
            {"phrases": "man in red, left ; dog"},
            "detect",
            {"phrases": ["man in red, left", "dog"]},
            "3 found.",
        ),
        ("Detect", {"phrases": "detect panda"}, "detect", {"phrases": ["panda"]}, "3 found."),
        (
            "Ask",
            {"question": "Detect panda, sign"},
            "detect",
            {"phrases": ["panda", "sign"]},
            "3 f",
        ),
        ("Prompt", {"prompt": "segment panda"}, "segment", {"phrases": ["panda"]}, "2 found."),
        ("Prompt", {"prompt": "caption en "}, "generate", {"prompt": "caption en "}, "a raw"),
    ],
)
def test_a_task_asks_for_what_is_written_and_shows_the_answer(
    page: Any,
    double: Double,
    task: str,
    fields: dict[str, str],
    route: str,
    sent: dict[str, Any],
    said: str,
) -> None:
    pick_sample(page)
    choose(page, task, **fields)
    run(page)
    asked = double.last()
    assert asked.route == route
    assert asked.fields == {**sent, "model": "mini", "stream": True}
    assert asked.image == (PAGE / "samples" / SAMPLES[0]["file"]).read_bytes()
    assert said in words(page)
    if route == "caption":
        assert page.get_attribute(".stream", "lang") == "de"
        assert "score 0.83" in words(page)
        keep_shot(page, "caption")


def test_a_sample_brings_a_question_that_fits_it(page: Any) -> None:
    pick_sample(page, 1)
    assert page.input_value("#phrases") == SAMPLES[1]["phrases"]
    assert page.input_value("#question") == SAMPLES[1]["question"]


@pytest.mark.parametrize(("task", "field"), [("Ask", "question"), ("Detect", "phrases")])
def test_an_empty_field_is_asked_for(page: Any, double: Double, task: str, field: str) -> None:
    pick_sample(page)
    choose(page, task, **{field: " ; " if field == "phrases" else " "})
    page.click("#run")
    page.wait_for_selector(".toast.shown")
    assert page.evaluate("document.activeElement.id") == field
    assert double.asked == []


@pytest.mark.parametrize("comes", [True, False])
def test_what_was_chosen_last_is_asked_about_even_before_it_is_open(
    page: Any, double: Double, comes: bool
) -> None:
    pick_sample(page)
    held: list[Any] = []
    page.route(f"**/page/samples/{SAMPLES[1]['file']}", lambda route: held.append(route))
    page.locator("#samples button").nth(1).click()
    page.click("#run")
    page.click("#run")
    page.wait_for_timeout(200)
    assert double.asked == []
    if comes:
        held[0].continue_()
        page.wait_for_selector("#answer-0[data-state=done]")
        assert [asked.image for asked in double.asked] == [
            (PAGE / "samples" / SAMPLES[1]["file"]).read_bytes()
        ]
    else:
        held[0].fulfill(status=404)
        page.wait_for_selector("#image-problem:has-text('cannot be reached to load the sample')")
        page.wait_for_timeout(200)
        assert double.asked == []
        run(page)  # now about the image that is there
        assert double.asked[0].image == (PAGE / "samples" / SAMPLES[0]["file"]).read_bytes()


def test_words_are_seen_as_they_come(page: Any, double: Double) -> None:
    go_on = threading.Event()

    def slowly(to: Answering) -> None:
        to.event("token", {"text": "two pandas"})
        go_on.wait(5)
        to.event("token", {"text": " before a tree"})
        to.result(caption())

    double.replies["caption"] = slowly
    pick_sample(page)
    run(page, state="streaming")
    page.wait_for_selector(".stream:text-is('two pandas')")
    assert page.locator("#stop").is_visible()
    keep_shot(page, "streaming")
    go_on.set()
    page.wait_for_selector("#answer-0[data-state=done]")
    assert page.inner_text(".stream") == "two pandas before a tree"
    assert page.locator("#stop").is_hidden()


def test_waiting_is_shown_until_the_first_word(page: Any, double: Double) -> None:
    go_on = threading.Event()
    double.replies["caption"] = late(go_on)
    pick_sample(page)
    run(page, state="waiting")
    assert "Reading the image" in words(page)
    keep_shot(page, "waiting")
    go_on.set()
    page.wait_for_selector("#answer-0[data-state=done]")


def test_events_survive_any_cut_of_the_stream(page: Any, double: Double) -> None:
    text = "zwei Bären 🐼 und ein Käse"
    whole = {"model": "mini", "result": caption(text).to_dict(), "usage": {}}
    stream = (
        ": hello\r\n\r\nevent: token\r\ndata: "
        + json.dumps({"text": "zwei Bären 🐼"}, ensure_ascii=False)
        + '\r\n\r\nevent:token\ndata:{"text":\ndata:" und"}\n\nevent: result\ndata: '
        + json.dumps(whole, ensure_ascii=False)
        + "\n\ndata: [DONE]\n\n"
    ).encode()

    def in_pieces(to: Answering) -> None:
        for place in range(0, len(stream), 3):
            to.raw(stream[place : place + 3])

    double.replies["caption"] = in_pieces
    pick_sample(page)
    run(page)
    assert page.inner_text(".stream") == text


# Boxes and masks


def ask_for_boxes(page: Any) -> None:
    pick_sample(page)
    choose(page, "Detect", phrases="panda ; sign ; dog")
    run(page)


def outlines(page: Any) -> list[dict[str, float]]:
    """Where the boxes are, in fractions of the picture as it is seen, whatever its letterbox."""
    found: list[dict[str, float]] = page.evaluate(
        """() => {
            const image = document.querySelector("#stage-0 img.image");
            const frame = image.getBoundingClientRect();
            const scale = Math.min(
                frame.width / image.naturalWidth, frame.height / image.naturalHeight);
            const [w, h] = [image.naturalWidth * scale, image.naturalHeight * scale];
            const left = frame.x + (frame.width - w) / 2;
            const top = frame.y + (frame.height - h) / 2;
            return [...document.querySelectorAll("#stage-0 .outline")].map((rect) => {
                const at = (name) => rect[name].baseVal.value;
                const svg = document.querySelector("#stage-0 svg").getBoundingClientRect();
                return {
                    x1: (svg.x + at("x") - left) / w, y1: (svg.y + at("y") - top) / h,
                    x2: (svg.x + at("x") + at("width") - left) / w,
                    y2: (svg.y + at("y") + at("height") - top) / h,
                };
            });
        }"""
    )
    return found


@pytest.mark.parametrize("size", [DESKTOP, PHONE, {"width": 700, "height": 420}])
def test_boxes_lie_where_the_model_saw_them(page: Any, size: dict[str, int]) -> None:
    page.set_viewport_size(size)
    ask_for_boxes(page)
    found = outlines(page)
    expected = detections()
    assert len(found) == len(expected)
    for box, thing in zip(found, expected, strict=True):
        assert list(box.values()) == pytest.approx(thing.box_normalized_xyxy, abs=0.004)
    keep_shot(page, f"boxes-{size['width']}")


def test_each_box_is_drawn_when_it_comes(page: Any, double: Double) -> None:
    go_on = threading.Event()

    def slowly(to: Answering) -> None:
        to.event("object", detections()[0].to_dict())
        go_on.wait(5)
        to.objects(detections())

    double.replies["detect"] = slowly
    pick_sample(page)
    choose(page, "Detect", phrases="panda ; sign ; dog")
    run(page, state="streaming")
    page.wait_for_selector(".state:text-is('1 found so far …')")
    assert len(outlines(page)) == 1
    go_on.set()
    page.wait_for_selector("#answer-0[data-state=done]")
    assert len(outlines(page)) == 3
    assert "Not found: dog" in words(page)


def test_the_threshold_leaves_what_scores_higher(page: Any) -> None:
    ask_for_boxes(page)
    slider = page.get_by_label("Minimum score")
    assert slider.get_attribute("max") == "1"
    slider.fill("0.7")
    assert len(outlines(page)) == 2
    assert page.locator(".object:visible").count() == 2
    assert "3 found, 2 shown." in words(page)
    slider.fill("0.94")
    assert page.locator(".object:visible").count() == 1
    slider.fill("0.95")
    assert page.locator(".object:visible").count() == 0


def test_a_sure_object_gets_the_whole_range(page: Any, double: Double) -> None:
    sure = [replace(obj, score=0.93) for obj in detections()]
    result = replace(detections(), objects=tuple(sure))
    double.replies["detect"] = lambda to: to.objects(result)
    ask_for_boxes(page)
    assert page.get_by_label("Minimum score").get_attribute("max") == "1"


def test_what_is_unsure_not_reached_or_changed_is_said(page: Any, double: Double) -> None:
    first, *others = detections()
    result = replace(
        detections(),
        objects=(replace(first, score=0.01), *others),
        problems=(Problem(kind="cut", detail="the list ended.", token_span=(3, 3)),),
        notes=("'a, b' was split.",),
    )
    double.replies["detect"] = lambda to: to.objects(result)
    ask_for_boxes(page)
    said = words(page)
    assert "3 found, 1 unsure" in said
    assert "panda?" in said
    assert "more likely wrong than right." in said
    assert "Not found" not in said
    assert "Not reached: dog" in said
    assert "The list is cut: the list ended." in said
    assert "'a, b' was split." in said
    assert page.locator(".outline.unsure").count() == 1


def test_places_in_a_text_are_drawn_whatever_was_asked(page: Any, double: Double) -> None:
    text = "<loc0256><loc0128><loc0512><loc0768> cat"
    edges = (128 / 1023, 256 / 1023, 768 / 1023, 512 / 1023)
    reply = replace(caption(text), text=text, objects=(detection("cat", edges, 0.8),))
    double.replies["generate"] = lambda to: to.result(reply)
    pick_sample(page)
    choose(page, "Prompt", prompt="find the cat")
    run(page)
    [box] = outlines(page)
    assert list(box.values()) == pytest.approx(edges, abs=0.004)
    assert page.locator(".object-label").inner_text() == "cat"
    assert "<loc0256>" in page.locator("#answer-0 pre").text_content()
    assert "1 found." in words(page)
    assert page.inner_text(".past-answer") == "1 found."
    coco = json.loads(copied(page, "COCO"))
    assert [category["name"] for category in coco["categories"]] == ["cat"]
    page.get_by_label("Minimum score").fill("0.9")
    assert outlines(page) == []


def test_a_single_object_can_be_hidden(page: Any) -> None:
    ask_for_boxes(page)
    eye = page.get_by_role("button", name="Show panda, 17, 194 to 131, 302")
    eye.click()
    assert eye.get_attribute("aria-pressed") == "false"
    assert "3 found, 2 shown." in words(page)
    assert len(outlines(page)) == 2
    assert page.locator(".object:visible").count() == 3  # to bring it back
    assert [found["label"] for found in json.loads(copied(page, "JSON"))["objects"]] == [
        "panda",
        "sign",
    ]
    eye.click()
    assert len(outlines(page)) == 3


def test_a_label_keeps_its_color_on_the_image(page: Any, double: Double) -> None:
    ask_for_boxes(page)
    color = "() => document.querySelector('.row:last-child .swatch').style.backgroundColor"
    sign = page.evaluate(color)
    only_sign = replace(detections(), objects=detections().objects[2:], phrases=("sign",))
    double.replies["detect"] = lambda to: to.objects(only_sign)
    choose(page, "Detect", phrases="sign")
    run(page)
    assert page.locator(".row").count() == 1
    assert page.evaluate(color) == sign


def test_what_is_missing_is_asked_one_by_one(page: Any, double: Double) -> None:
    whole = detections()
    dog = detection("dog", (0.1, 0.1, 0.3, 0.3), 0.9)
    better = replace(whole, objects=(*whole, dog), notes=("Asked (to ask once: x=False) again.",))
    double.replies["detect"] = lambda to: to.objects(
        whole if to.asked.fields.get("stream") else better
    )
    ask_for_boxes(page)
    assert "4 found." in words(page)
    assert "Asked again." in words(page)
    assert [asked.fields["phrases"] for asked in double.asked_whole] == [["panda", "sign", "dog"]]
    double.replies["detect"] = lambda to: to.objects(better)
    run(page)
    assert len(double.asked_whole) == 1  # nothing was missing


def test_the_first_answer_stands_where_asking_again_fails(page: Any, double: Double) -> None:
    def busy(to: Answering) -> None:
        if to.asked.fields.get("stream"):
            to.objects(detections())
        else:
            to.refuse(429, "64 are waiting.")

    double.replies["detect"] = busy
    ask_for_boxes(page)
    assert "3 found." in words(page)
    assert "It was not asked again phrase by phrase. The server is busy." in words(page)


def test_no_name_covers_another(page: Any, double: Double) -> None:
    boxes = [(0.1 + i / 200, 0.1 + i / 200, 0.4 + i / 200, 0.3 + i / 200) for i in range(30)]
    many = tuple(detection("a very long name", box, 0.9 - i / 100) for i, box in enumerate(boxes))
    double.replies["detect"] = lambda to: to.objects(
        replace(detections(), objects=many, phrases=("a very long name",))
    )
    ask_for_boxes(page)
    tags = [tag.bounding_box() for tag in page.locator("#stage-0 .label rect").all()]
    assert 1 < len(tags) < 30
    for index, one in enumerate(tags):
        for other in tags[:index]:
            wide = min(t["x"] + t["width"] for t in (one, other)) - max(one["x"], other["x"])
            high = min(t["y"] + t["height"] for t in (one, other)) - max(one["y"], other["y"])
            assert min(wide, high) < 0.01
    page.hover(".object >> nth=29")
    assert page.locator("#stage-0 .label:not(.faint)").count() == 1


# What stands where


def test_the_question_stands_above_its_answer(page: Any) -> None:
    pick_sample(page)
    choose(page, "Ask", question="how many pandas?")
    run(page)
    assert page.inner_text(".asked >> nth=0") == "how many pandas?"


def test_an_old_answer_does_not_stand_under_another_task(page: Any) -> None:
    ask_for_boxes(page)
    choose(page, "Caption")
    assert "The answer appears here" in words(page)
    assert outlines(page) == []
    page.click(".past")  # the history brings it back
    assert "3 found" in words(page)
    assert len(outlines(page)) == 3


def test_a_sample_suggests_questions_that_one_click_asks(page: Any, double: Double) -> None:
    number = next(n for n, sample in enumerate(SAMPLES) if ", " in sample["phrases"])
    pick_sample(page, number)
    phrases = SAMPLES[number]["phrases"]
    page.get_by_role("button", name=f"Detect {phrases}").click()
    page.wait_for_selector("#answer-0[data-state=done]")
    assert double.last().fields["phrases"] == phrases.split(", ")
    by_drop(page, png())
    page.wait_for_selector("#suggestions", state="hidden")


def test_options_go_with_the_question(page: Any, double: Double) -> None:
    pick_sample(page)
    choose(page, "Prompt", prompt="caption en")
    page.click(".options summary")
    for name, value in (("length", "7"), ("temperature", "0.5"), ("seed", "3")):
        page.fill(f"#{name}", value)
    run(page)
    assert "max_new_tokens=7, temperature=0.5, seed=3)" in copied(page, "Python")
    sent = double.last().fields
    assert (sent["max_new_tokens"], sent["temperature"], sent["seed"]) == (7, 0.5, 3)
    choose(page, "Caption")
    assert page.locator("#temperature").is_hidden()
    run(page)
    assert "temperature" not in double.last().fields
    page.fill("#length", "0")
    asked = len(double.asked)
    page.click("#run")
    assert len(double.asked) == asked  # the browser says what is wrong


def test_history_survives_a_reload_of_the_tab(page: Any) -> None:
    ask_for_boxes(page)
    with page.expect_download() as download:
        page.click("#save-history")
    [saved] = json.loads(Path(download.value.path()).read_text(encoding="utf-8"))
    assert saved["image"] == {"name": SAMPLES[0]["file"], "width": 384, "height": 384}
    assert (saved["task"], saved["phrases"]) == ("detect", ["panda", "sign", "dog"])
    assert saved["result"] == detections().to_dict()
    page.reload()
    page.wait_for_selector(".past")
    page.click(".past")
    assert "3 found" in words(page)
    assert len(outlines(page)) == 3
    page.click("#clear-history")
    page.reload()
    page.wait_for_selector("#history-empty")
    assert page.locator(".past").count() == 0


def test_zooming_moves_image_and_boxes_together(page: Any) -> None:
    ask_for_boxes(page)
    before = outlines(page)
    width = page.locator("#stage-0 img.image").bounding_box()["width"]
    page.get_by_role("button", name="Zoom in").click()
    page.get_by_role("button", name="Zoom in").click()
    assert page.locator("#stage-0 img.image").bounding_box()["width"] > 2 * width
    frame = page.locator("#stage-0").bounding_box()
    page.mouse.move(frame["x"] + 200, frame["y"] + 200)
    page.mouse.down()
    page.mouse.move(frame["x"] + 120, frame["y"] + 150)
    page.mouse.up()
    keep_shot(page, "zoomed")
    page.get_by_role("button", name="Show the whole image").click()
    assert outlines(page) == before


@pytest.mark.parametrize("name", ["Drawing", "Masks", "Cut-outs"])
def test_an_answer_is_saved_as_a_file(page: Any, name: str, tmp_path: Path) -> None:
    pick_sample(page)
    choose(page, "Segment", phrases="panda")
    run(page)
    with page.expect_download() as download:
        page.get_by_role("button", name=f"Save {name}").click()
    assert download.value.suggested_filename == f"{Path(SAMPLES[0]['file']).stem}-{FILES[name]}.png"
    download.value.save_as(tmp_path / "saved.png")
    saved = np.asarray(Image.open(tmp_path / "saved.png").convert("RGBA"))
    assert saved.shape[:2] == segments().size_wh[::-1]
    covered = segments().masks.any(axis=0)
    if name == "Masks":
        assert (saved[..., 0] == 255 * covered).all()
    if name == "Cut-outs":
        assert (saved[..., 3] == 255 * covered).all()
    if (folder := os.environ.get(SHOTS_VARIABLE)) is not None:
        Image.open(tmp_path / "saved.png").save(Path(folder) / f"saved-{FILES[name]}.png")


def test_an_image_may_come_from_an_address_where_the_server_fetches(
    page: Any, double: Double
) -> None:
    assert not page.locator("#address").is_visible()
    double.limits["fetches_images"] = True
    page.reload()
    sent: list[Any] = []

    def fetch(route: Any) -> None:
        sent.append(route.request.post_data_json)
        if len(sent) == 1:
            route.fulfill(status=400, json={"error": {"message": "Not from this domain."}})
        else:
            route.fulfill(body=png(64, 48), content_type="image/png")

    page.route("**/v1/image", fetch)
    for _ in range(2):
        page.fill("#address", "https://example.com/of/cat.png?size=1")
        page.press("#address", "Enter")
        if len(sent) == 1:
            page.get_by_text("Not from this domain.").wait_for()
    page.get_by_text("cat.png, 64 × 48").wait_for()
    assert sent == [{"url": "https://example.com/of/cat.png?size=1"}] * 2
    assert not page.locator("#image-problem").is_visible()
    choose(page, "Caption")
    run(page)
    assert double.last().image == png(64, 48)


def test_a_box_that_the_model_did_not_name_is_unsure(page: Any, double: Double) -> None:
    whole = detections()
    first, *others = whole.objects
    nameless = replace(first, label_score=1.0, score=first.coordinate_score)
    result = replace(whole, objects=(nameless, *others))
    double.replies["detect"] = lambda to: to.objects(result)
    pick_sample(page)
    choose(page, "Detect", phrases="panda")
    run(page)
    assert words(page, "#answer-0 .object-label").endswith("?")
    assert "1 unsure" in words(page, "#answer-0 .state")


FILES = {"Drawing": "drawn", "Masks": "masks", "Cut-outs": "cut-outs"}


def test_labels_are_switched_off_and_on(page: Any) -> None:
    ask_for_boxes(page)
    toggle = page.get_by_role("button", name="panda 2", exact=True)
    assert toggle.get_attribute("aria-pressed") == "true"
    toggle.click()
    assert toggle.get_attribute("aria-pressed") == "false"
    assert len(outlines(page)) == 1
    page.get_by_role("button", name="sign 1", exact=True).click()
    assert "its label is hidden" in words(page)
    toggle.click()
    assert len(outlines(page)) == 2


def test_list_and_image_point_at_each_other(page: Any) -> None:
    ask_for_boxes(page)
    page.hover(".object >> nth=1")
    assert page.locator(".box:not(.faint)").count() == 1
    assert page.locator(".lit .object-place").inner_text() == "207, 176 to 349, 306"
    page.mouse.move(5, 5)
    assert page.locator(".faint").count() == 0
    page.focus(".object >> nth=2")  # the keyboard does what the pointer does
    assert page.locator(".box:not(.faint)").count() == 1
    page.focus("#run")
    box = page.locator(".outline").first.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    assert page.locator(".lit .object-place").inner_text() == "17, 194 to 131, 302"


def test_masks_are_drawn_pixel_by_pixel(page: Any) -> None:
    pick_sample(page)
    choose(page, "Segment", phrases="panda")
    run(page)
    drawn = page.evaluate(
        """() => {
            const canvas = document.querySelector("#stage-0 canvas");
            const {width, height} = canvas;
            const {data} = canvas.getContext("2d").getImageData(0, 0, width, height);
            const alphas = [];
            for (let place = 3; place < data.length; place += 4) alphas.push(data[place]);
            return {width, height, seen: alphas.map((alpha) => alpha > 0 ? 1 : 0).join("")};
        }"""
    )
    seen = np.array([c == "1" for c in drawn["seen"]]).reshape(drawn["height"], drawn["width"])
    assert (seen == segments().masks.any(axis=0)).all()
    keep_shot(page, "mask")


def test_run_lengths_are_read_as_they_were_written(page: Any) -> None:
    generator = np.random.default_rng(5)
    masks = [np.zeros((3, 5), bool), np.ones((4, 2), bool), np.ones((1, 1), bool)]
    for height, width in [(7, 11), (64, 3), (1, 90), (400, 300)]:
        masks.append(generator.random((height, width)) < 0.5)
    block = np.zeros((1500, 2100), bool)
    block[100:1300, 50:1999] = True
    masks.append(block)
    decoded = page.evaluate(
        """async (masks) => {
            const {decode, area} = await import("/page/js/masks.js");
            return masks.map((mask) => {
                const {width, height, pixels} = decode(mask, 1024);
                return {width, height, pixels: [...pixels].join(""), area: area(mask)};
            });
        }""",
        [mask_to_rle(mask) for mask in masks],
    )
    for mask, found in zip(masks, decoded, strict=True):
        step = max(1, math.ceil(max(mask.shape) / 1024))
        pixels = np.array([c == "1" for c in found["pixels"]]).reshape(
            found["height"], found["width"]
        )
        assert (pixels == mask[::step, ::step]).all()
        assert found["area"] == mask.sum()


# Copies


def test_json_and_coco_hold_what_is_seen(page: Any) -> None:
    ask_for_boxes(page)
    assert json.loads(copied(page, "JSON")) == detections().to_dict()
    page.get_by_label("Minimum score").fill("0.7")
    kept = detections().filter(0.7)
    assert json.loads(copied(page, "JSON"))["objects"] == kept.to_dict()["objects"]
    coco = json.loads(copied(page, "COCO"))
    assert coco["images"][0].pop("file_name") == SAMPLES[0]["file"]
    assert coco == kept.to_coco()


def test_coco_of_masks_is_that_of_python(page: Any) -> None:
    pick_sample(page)
    choose(page, "Segment", phrases="panda")
    run(page)
    coco = json.loads(copied(page, "COCO"))
    del coco["images"][0]["file_name"]
    assert coco == segments().to_coco()


NASTY = """a'b"; touch $(x) `y` \\ \u202e@<.png"""


CALLS: list[tuple[str, dict[str, str], str, list[Any]]] = [
    ("Caption", {"language": "de"}, "caption", ["de"]),
    ("Ask", {"question": 'who\'s "\\n" 🐼?', "language": ""}, "ask", ['who\'s "\\n" 🐼?', None]),
    ("Ask", {"question": "why?", "language": "fr"}, "ask", ["why?", "fr"]),
    ("Read", {}, "ocr", []),
    ("Detect", {"phrases": "a'; b"}, "detect", [["a'", "b"]]),
    ("Segment", {"phrases": "panda"}, "segment", [["panda"]]),
    ("Prompt", {"prompt": "two\nlines"}, "generate", ["two\nlines"]),
]


def test_python_and_curl_ask_the_same_again(page: Any, double: Double) -> None:
    page.set_input_files("#file", {"name": NASTY, "mimeType": "image/png", "buffer": png()})
    page.wait_for_selector("#stage-0 .pane:visible")
    name = NASTY.replace("\u202e", "_")
    for task, fields, method, arguments in CALLS:
        choose(page, task, **fields)
        run(page)
        asked = double.last()

        tree = ast.parse(copied(page, "Python"))
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        (asking,) = [call for call in calls if ast.unparse(call.func) == f"model.{method}"]
        assert [ast.literal_eval(argument) for argument in asking.args] == [name, *arguments]

        parts = shlex.split(copied(page, "curl"))
        assert parts[:2] == ["curl", f"{double.url}v1/{asked.route}"]
        request = parts[parts.index("--form-string") + 1].removeprefix("request=")
        assert json.loads(request) == {k: v for k, v in asked.fields.items() if k != "stream"}


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("mini", "mini"),
        ("google/paligemma2-3b-mix-448", "google/paligemma2-3b-mix-448"),
        ("paligemma2-3b-mix-448", "paligemma2-3b-mix-448"),
        ("frogs-2", "FOLDER OF frogs-2"),
    ],
)
def test_python_names_what_can_be_loaded(page: Any, double: Double, name: str, source: str) -> None:
    double.models = [{"id": name}]
    page.reload()
    page.wait_for_selector(".status[data-state=ready]")
    assert "license: not stated" in words(page, "#facts")
    pick_sample(page)
    run(page)
    assert f'paligemma.load("{source}")' in copied(page, "Python")


def test_the_curl_command_works(page: Any, double: Double, tmp_path: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    data = png()
    page.set_input_files("#file", {"name": NASTY, "mimeType": "image/png", "buffer": data})
    page.wait_for_selector("#stage-0 .pane:visible")
    choose(page, "Prompt", prompt="@file; type=x '\"")
    run(page)
    command = copied(page, "curl")
    (tmp_path / NASTY.replace("\u202e", "_")).write_bytes(data)
    done = subprocess.run(
        ["sh", "-c", f"{command} --silent --max-time 5"], cwd=tmp_path, capture_output=True,
        timeout=20, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout)["result"]["text"] == "a raw answer"
    assert double.asked_whole[-1].image == data
    assert double.asked_whole[-1].fields["prompt"] == "@file; type=x '\""
    assert sorted(path.name for path in tmp_path.iterdir()) == [NASTY.replace("\u202e", "_")]


# History, two models


def test_the_session_is_kept_and_comes_back(page: Any, double: Double) -> None:
    ask_for_boxes(page)
    pick_sample(page, 2)
    choose(page, "Caption", language="de")
    run(page)
    assert page.locator(".past").count() == 2
    assert page.locator(".past-title").all_inner_texts() == [
        "Caption in German",
        "Detect panda, sign, dog",
    ]
    keep_shot(page, "history")
    page.click(".past >> nth=1")
    assert page.locator("#task-detect").is_checked()
    assert SAMPLES[0]["file"] in words(page, "#image-name")
    assert page.input_value("#phrases") == "panda ; sign ; dog"
    assert len(outlines(page)) == 3
    assert len(double.asked) == 2  # looked up, not asked again
    page.click("#clear-history")
    assert page.locator(".past").count() == 0


def test_two_models_answer_side_by_side(page: Any, double: Double) -> None:
    double.models.append({"id": "birds", "license": "CC-BY-4.0", "parent": "mini"})
    page.reload()
    page.wait_for_selector(".status[data-state=ready]")

    def by_model(to: Answering) -> None:
        to.text(caption(f"said by {to.asked.fields['model']}"))

    double.replies["caption"] = by_model
    pick_sample(page)
    page.select_option("#beside", "birds")
    assert "birds, an adapter of mini" in words(page, "#facts")
    assert "CC-BY-4.0" in words(page, "#facts")
    run(page)
    page.wait_for_selector("#answer-1[data-state=done]")
    assert "said by mini" in words(page, "#answer-0")
    assert "said by birds" in words(page, "#answer-1")
    assert "Answer of birds" in words(page, "#answer-1")
    assert {asked.fields["model"] for asked in double.asked} == {"mini", "birds"}
    assert page.inner_text(".past-answer") == "said by mini | said by birds"
    keep_shot(page, "beside")

    choose(page, "Detect", phrases="panda ; sign ; dog")
    run(page)
    page.wait_for_selector("#answer-1[data-state=done]")
    assert page.locator("#stage-0 .outline").count() == 3
    assert page.locator("#stage-1 .outline").count() == 3
    keep_shot(page, "beside-boxes")
    page.select_option("#beside", "")
    assert page.locator("#stage-1").is_hidden()


def test_one_of_two_models_may_fail_alone(page: Any, double: Double) -> None:
    double.models.append({"id": "birds"})
    page.reload()
    page.wait_for_selector(".status[data-state=ready]")

    def one_fails(to: Answering) -> None:
        if to.asked.fields["model"] == "birds":
            to.event("error", {"error": {"message": "The model gave NaN."}})
            to.done()
        else:
            to.text(caption())

    double.replies["caption"] = one_fails
    pick_sample(page)
    page.select_option("#beside", "birds")
    run(page)
    page.wait_for_selector("#answer-1[data-state=failed]")
    assert "The model gave NaN." in words(page, "#answer-1")
    assert "two pandas" in words(page, "#answer-0")


# For everyone


def test_everything_is_done_with_the_keyboard_alone(page: Any, double: Double) -> None:
    def tab_to(selector: str) -> None:
        for _ in range(40):
            if page.evaluate("s => document.activeElement.matches(s)", selector):
                return
            page.keyboard.press("Tab")
        raise AssertionError(f"Tab does not reach {selector}")

    tab_to("#samples button")
    page.keyboard.press("Enter")
    page.wait_for_selector("#stage-0 .pane:visible")
    tab_to("input[name=task]")
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    assert page.locator("#task-detect").is_checked()
    tab_to("#phrases")
    page.keyboard.press("Control+a")
    page.keyboard.type("panda ; sign")
    page.keyboard.press("Enter")
    page.wait_for_selector("#answer-0[data-state=done]")
    assert double.last().fields["phrases"] == ["panda", "sign"]
    tab_to("#answer-0 input[type=range]")
    page.keyboard.press("End")
    assert "0 shown" in words(page)
    tab_to("#answer-0 .toggle")
    page.keyboard.press("Space")
    assert "0 shown" in words(page)
    tab_to("button[aria-label='Copy as JSON']")
    page.keyboard.press("Enter")
    page.wait_for_selector(".toast.shown")
    tab_to(".past")


def test_a_screen_reader_hears_the_end_and_not_each_word(page: Any) -> None:
    pick_sample(page)
    run(page)
    assert page.get_attribute(".state", "role") == "status"
    assert page.inner_text(".state") == "Done."
    assert page.locator("[aria-live], [role=status], [role=alert]").locator(".stream").count() == 0
    described = page.get_attribute("#stage-0 img.image", "alt")
    assert described.startswith(f"The image: {SAMPLES[0]['about']}")


@pytest.mark.parametrize("size", [PHONE, {"width": 320, "height": 640}])
def test_a_phone_needs_no_sideways_scrolling(page: Any, size: dict[str, int]) -> None:
    page.set_viewport_size(size)
    keep_shot(page, f"phone-empty-{size['width']}")
    ask_for_boxes(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
    # The picture stays in sight beside the list that points into it.
    picture = page.locator("#stage-0").bounding_box()
    row = page.locator(".object").first.bounding_box()
    assert picture["y"] >= 0
    assert row["y"] + row["height"] <= size["height"]
    assert picture["y"] + picture["height"] <= row["y"]
    keep_shot(page, f"phone-boxes-{size['width']}")
    # And does not cover what one writes next.
    page.focus("#phrases")
    assert page.locator("#stage-0.sticks").count() == 0


def test_fingers_find_room(browser: Any, double: Double, watch: Watch) -> None:
    context = browser.new_context(viewport=PHONE, has_touch=True, is_mobile=True)
    page = context.new_page()
    watch.follow(page)
    page.goto(double.url)
    page.wait_for_selector(".status[data-state=ready]")
    assert page.locator("#photograph").is_visible()
    pick_sample(page)
    choose(page, "Detect", phrases="panda ; sign")
    run(page)
    for target in page.locator("button:visible, select:visible, .task:visible").all():
        box = target.bounding_box()
        assert min(box["width"], box["height"]) >= 36, target.inner_text()
    context.close()
    watch.check()


def axe_source(shared_data: Path) -> str:
    path = shared_data / "axe-core" / "axe.min.js"
    if not path.is_file():
        pytest.skip("axe-core is not beside this checkout")
    return path.read_text(encoding="utf-8")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_axe_finds_nothing(
    page: Any, double: Double, shared_data: Path, scheme: str, size: dict[str, int]
) -> None:
    source = axe_source(shared_data)
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    page.set_viewport_size(size)
    page.evaluate(source)

    def check(state: str) -> None:
        keep_shot(page, f"{scheme}-{size['width']}-{state}")
        found = page.evaluate("axe.run().then((report) => report.violations)")
        told = [(one["id"], [node["html"] for node in one["nodes"]]) for one in found]
        assert told == [], state

    check("empty")
    ask_for_boxes(page)
    page.locator("#answer-0 details summary").click()
    page.get_by_role("button", name="sign 1", exact=True).click()
    page.hover(".object >> nth=0")
    check("boxes")
    choose(page, "Caption")
    run(page)
    check("caption")
    double.replies["caption"] = lambda to: to.refuse(429, "Too much is waiting.", Retry_After="2")
    page.click("#run")
    page.wait_for_selector("#answer-0[data-state=failed]")
    check("error")
    double.replies["caption"] = lambda to: to.refuse(401, "A key is needed.")
    page.click("#run")
    page.wait_for_selector("#key-dialog[open]")
    check("key")


def test_the_theme_is_chosen_and_kept(page: Any) -> None:
    page.emulate_media(color_scheme="light")
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(ground)
    page.click("#theme")
    assert page.evaluate(ground) == light
    page.click("#theme")
    dark = page.evaluate(ground)
    assert dark != light
    page.reload()
    page.wait_for_selector(".status[data-state=ready]")
    assert page.evaluate(ground) == dark
    page.click("#theme")  # auto again, for the next test
    assert page.evaluate(ground) == light
