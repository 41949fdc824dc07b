"""Documents on the page: pages, fields, lines, tables and charts, with a double of the server."""

from __future__ import annotations

import csv
import io
import json
import time
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from paligemma.results import UNSURE_SCORE
from tests.server.page.browser import (
    DESKTOP,
    PHONE,
    Watch,
    choose,
    copied,
    keep_shot,
    png,
    run,
    words,
)
from tests.server.page.double import Answering, Double, fields, page_image, read, text_field
from tests.server.page.test_page import axe_source

PDF = {"name": "bill.pdf", "mimeType": "application/pdf", "buffer": b"%PDF-1.7 of three pages"}


def open_pdf(page: Any, file: dict[str, Any] = PDF) -> None:
    page.set_input_files("#file", file)
    page.wait_for_selector("#stage-0 .pane:visible")


def extract(page: Any, **options: str) -> None:
    open_pdf(page)
    page.get_by_role("radio", name="Fields").check()
    if "names" in options:
        page.click(".options summary")
    for name, value in options.items():
        page.fill(f"#{name}", value)
    run(page)


def shown_page(page: Any) -> str:
    return str(page.inner_text("#page-number"))


def box_on_image(page: Any, number: int = 0) -> list[float]:
    """A box in fractions of the image, as it is drawn."""
    return list(
        page.evaluate(
            """number => {
                const image = document.querySelector("#stage-0 img.image");
                const frame = image.getBoundingClientRect();
                const scale = Math.min(frame.width / image.naturalWidth, frame.height / image.naturalHeight);
                const [wide, high] = [image.naturalWidth * scale, image.naturalHeight * scale];
                const [left, top] = [frame.x + (frame.width - wide) / 2, frame.y + (frame.height - high) / 2];
                const box = document.querySelectorAll("#stage-0 .outline")[number].getBoundingClientRect();
                return [(box.x - left) / wide, (box.y - top) / high, (box.right - left) / wide, (box.bottom - top) / high];
            }""",  # noqa: E501
            number,
        )
    )


def test_a_pdf_is_shown_page_by_page(page: Any, double: Double) -> None:
    open_pdf(page)
    [asked] = double.asked_whole
    assert (asked.route, asked.image, asked.image_name) == ("pages", PDF["buffer"], "bill.pdf")
    assert page.inner_text("#image-name") == "bill.pdf"
    assert shown_page(page) == "Page 1 of 3"
    assert page.is_checked("input[value=read]")
    page.click("#previous-page", force=True)
    assert shown_page(page) == "Page 1 of 3"
    page.click("#next-page")
    page.wait_for_selector("#page-number:has-text('Page 2 of 3')")
    assert page.get_attribute("#stage-0 img.image", "alt") == "The image: page 2 of bill.pdf"
    assert [each.fields["pages"] for each in double.asked_whole] == ["1", "2-3"]
    page.click("#next-page")
    page.wait_for_selector("#page-number:has-text('Page 3 of 3')")
    assert len(double.asked_whole) == 2  # came with the second
    keep_shot(page, "document")


def test_a_page_can_be_asked_about_like_an_image(page: Any, double: Double) -> None:
    open_pdf(page)
    choose(page, "Ask", question="what is it?")
    run(page)
    assert double.last().image_name == "bill-page-1.jpg"
    assert double.last().image[:3] == b"\xff\xd8\xff"
    page.click("#next-page")
    page.wait_for_selector("#page-number:has-text('Page 2 of 3')")
    assert "The answer appears here" in words(page)  # it was about the first page


def test_fields_come_with_scores_places_and_problems(page: Any, double: Double) -> None:
    extract(page)
    asked = double.last()
    assert asked.image == PDF["buffer"]
    assert asked.fields == {
        "model": "mini", "schema": "invoice", "language": "en", "stream": True,
    }  # fmt: skip
    rows = page.locator(".item").all_inner_texts()
    assert [row.split("\n")[0] for row in rows] == [
        "date", "total", "number", "lines[0].name", "currency",
    ]  # fmt: skip
    assert "2026-03-04" in rows[0]
    assert "0.70?" in rows[0]
    assert "page 2" in rows[0]
    assert "Check: the date may also be 2026-04-03" in rows[0]
    assert "read as “03/04/2026”" in rows[0]
    assert "Check: the model wanted to say something else" in rows[1]
    assert "in your list: Bolts (0.92)" in rows[3]
    assert "not found" in rows[4]
    text = words(page)
    assert "4 fields, 2 unsure, 1 not found." in text
    assert "Check: the lines do not add up to the total" in text
    assert text.count("the date may also be") == 1
    assert "Texts may have 100 characters." in text
    # Of the page that is shown, the boxes where the server said.
    assert page.locator("#stage-0 .outline").count() == 1
    assert box_on_image(page) == pytest.approx([0.1, 0.1, 0.2, 0.12], abs=0.01)
    keep_shot(page, "fields")


def test_words_that_could_not_be_read_are_shown_where_the_server_says_so(
    page: Any, double: Double
) -> None:
    found = fields()
    found["fields"] = [
        text_field("date", None, raw="03/04/2026", unread="03/04/2026", problems=["two dates"]),
        text_field("paid", None, raw="n/a", problems=["not read as date: it has no digits"]),
    ]
    double.replies["extract"] = lambda to: to.plain(found)
    extract(page)
    date, paid = page.locator(".item").all_inner_texts()
    assert "the words were “03/04/2026”" in date
    assert "the words were" not in paid
    keep_shot(page, "unread-fields")


def test_the_page_calls_the_same_scores_unsure_as_the_library() -> None:
    code = (files("paligemma.server") / "page" / "js" / "overlay.js").read_text()
    assert f"export const UNSURE = {UNSURE_SCORE};" in code


def test_a_field_shows_its_place_on_its_page(page: Any) -> None:
    extract(page)
    page.locator(".item", has_text="2026-03-04").click()
    page.wait_for_selector("#page-number:has-text('Page 2 of 3')")
    assert page.locator("#stage-0 .outline").count() == 1
    assert box_on_image(page) == pytest.approx([0.5, 0.5, 0.7, 0.6], abs=0.01)
    assert page.locator(".picked").count() == 1
    keep_shot(page, "field-chosen")
    # A field without a place still turns to its page.
    page.locator(".item", has_text="571.04").click()
    page.wait_for_selector("#page-number:has-text('Page 3 of 3')")
    assert page.locator("#stage-0 .outline").count() == 0
    page.click("#previous-page")
    page.wait_for_selector("#page-number:has-text('Page 2 of 3')")
    assert "2026-03-04" in words(page)  # the answer is about all pages


def test_arrow_keys_go_through_the_fields(page: Any) -> None:
    extract(page)
    page.locator(".item").first.focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("#page-number:has-text('Page 2 of 3')")
    page.keyboard.press("ArrowDown")
    page.wait_for_selector("#page-number:has-text('Page 3 of 3')")
    page.keyboard.press("ArrowDown")
    page.wait_for_selector("#page-number:has-text('Page 1 of 3')")
    assert page.evaluate("document.activeElement.textContent").startswith("number")
    page.keyboard.press("ArrowUp")
    page.wait_for_selector("#page-number:has-text('Page 3 of 3')")


def test_fields_are_copied_and_saved(page: Any, tmp_path: Path, double: Double) -> None:
    formula = fields()
    formula["fields"][0]["value"] = '=HYPERLINK("http://x")'
    double.replies["extract"] = lambda to: to.plain(formula)
    extract(page, pages="1-3", names="Bolts\nNuts\n")
    assert double.last().fields["pages"] == "1-3"
    assert double.last().fields["names"] == ["Bolts", "Nuts"]
    assert json.loads(copied(page, "JSON")) == formula
    rows = list(csv.reader(io.StringIO(copied(page, "CSV"))))
    assert rows[0][:4] == ["path", "value", "raw", "score"]
    assert rows[1][:4] == ["number", '\'=HYPERLINK("http://x")', "R-17", "0.9"]
    assert rows[2][5:10] == ["2", "297.5", "421", "416.5", "505.2"]
    assert [row[0] for row in rows[1:]] == [field["path"] for field in formula["fields"]]
    assert 'document=@"bill.pdf"' in copied(page, "curl")
    assert 'model.extract("bill.pdf", "invoice", pages="1-3")' in copied(page, "Python")
    with page.expect_download() as download:
        page.get_by_role("button", name="Save as CSV").click()
    assert download.value.suggested_filename == "bill.csv"
    download.value.save_as(tmp_path / "bill.csv")
    assert len((tmp_path / "bill.csv").read_text().splitlines()) == 6


def test_nothing_of_a_document_becomes_part_of_the_page(page: Any, double: Double) -> None:
    evil = "<img src=x onerror=alert(1)><script>alert(2)</script>"
    found = fields()
    found["fields"] = [
        text_field(evil, evil, raw=evil + "x", problems=[evil], matched={"text": evil, "score": 1})
    ]
    found["notes"] = found["problems"] = [evil]
    double.replies["extract"] = lambda to: to.plain(found)
    open_pdf(page, {**PDF, "name": f"{evil}.pdf"})
    page.get_by_role("radio", name="Fields").check()
    run(page)
    assert words(page).count("<script>alert(2)</script>") >= 5
    assert page.locator("#answer-0 script, #answer-0 img, #image-name img").count() == 0


def test_a_schema_of_ones_own_is_checked_and_sent(page: Any, double: Double) -> None:
    open_pdf(page)
    page.get_by_role("radio", name="Fields").check()
    assert not page.is_visible("#own-schema")
    page.select_option("#schema", "own")
    for wrong, message in (("", "no JSON"), ("{", "no JSON"), ("[1]", "is an object")):
        page.fill("#own-schema", wrong)
        page.click("#run")
        page.wait_for_selector(f".toast.shown:has-text('{message}')")
    assert double.asked == []
    schema = {"title": "Bill", "properties": {"total": {"type": "number"}}}
    page.fill("#own-schema", json.dumps(schema))
    run(page)
    assert double.last().fields["schema"] == schema
    assert "Extract Bill from all pages" in words(page)
    assert "json.loads(" in copied(page, "Python")
    keep_shot(page, "own-schema")


def test_text_comes_page_by_page(page: Any, double: Double) -> None:
    go_on = False

    def reply(to: Answering) -> None:
        to.event("page", {**page_of_text(1), "lines": [line("First line", 1)]})
        while not go_on:
            to.raw(b": still here\n\n")
            time.sleep(0.02)
        read(to)

    double.replies["read"] = reply
    open_pdf(page)
    page.click("#run")
    page.wait_for_selector("#answer-0[data-state=streaming] .item:has-text('First line')")
    assert "1 page read" in words(page)
    go_on = True
    page.wait_for_selector("#answer-0[data-state=done]")
    assert "3 lines on 3 pages." in words(page)
    assert "Page 2: blank: neither ink nor text" in words(page)
    page.get_by_role("button", name="Copy as Text").click()
    page.wait_for_selector(".toast.shown:has-text('Copied as Text')")
    text = page.evaluate("navigator.clipboard.readText()")
    assert text == "First line\nSecond\n\f\n\n\f\nLast"
    assert page.locator("#stage-0 .outline").count() == 2
    assert box_on_image(page) == pytest.approx([0.1, 0.1, 0.5, 0.124], abs=0.01)
    # The model read the third page turned by 180 degrees; it is shown as the file has it.
    page.locator(".item", has_text="Last").click()
    page.wait_for_selector("#page-number:has-text('Page 3 of 3')")
    assert box_on_image(page) == pytest.approx([0.5, 0.476, 0.9, 0.5], abs=0.01)
    keep_shot(page, "read")


def page_of_text(number: int) -> dict[str, Any]:
    about = {"size_wh": [595.0, 842.0], "unit": "pt", "turned": 0, "problems": [], "error": None}
    return {"page": number, "lines": [], **about}


def line(text: str, page: int) -> dict[str, Any]:
    box = [59.5, 84.2, 297.5, 104.2]
    return {"text": text, "box_xyxy": box, "score": 0.9, "page": page, "source": "model"}


def test_an_image_is_a_document_of_one_page(page: Any, double: Double) -> None:
    data = png(595, 842)
    page.set_input_files("#file", {"name": "rx.png", "mimeType": "image/png", "buffer": data})
    page.wait_for_selector("#stage-0 .pane:visible")
    assert not page.is_visible("#pager")
    page.get_by_role("radio", name="Fields").check()
    page.select_option("#schema", "prescription")
    run(page)
    assert (double.last().image, double.last().image_name) == (data, "rx.png")
    assert double.last().fields["schema"] == "prescription"
    assert box_on_image(page) == pytest.approx([0.1, 0.1, 0.2, 0.12], abs=0.01)
    assert double.asked_whole == []


def test_a_password_is_asked_for_and_never_shown(page: Any, double: Double) -> None:
    def pages(to: Answering) -> None:
        if to.asked.fields.get("password") != "open sesame":
            to.refuse(400, "The document needs a password: the field `password`.")
        else:
            to.json({"num_pages": 1, "pages": [page_image(1)]})

    double.replies["pages"] = pages
    page.set_input_files("#file", PDF)
    page.wait_for_selector("#image-problem input[type=password]")
    keep_shot(page, "password")
    page.fill("#image-problem input", "wrong")
    page.click("#image-problem button")
    page.wait_for_function("() => document.querySelector('#image-problem input')?.value === ''")
    page.fill("#image-problem input", "open sesame")
    page.click("#image-problem button")
    page.wait_for_selector("#stage-0 .pane:visible")
    page.get_by_role("radio", name="Fields").check()
    run(page)
    assert double.last().fields["password"] == "open sesame"
    for form in ("JSON", "Python", "curl"):
        assert "sesame" not in copied(page, form)


def test_what_is_no_document_is_explained(page: Any, double: Double) -> None:
    message = "The document is no PDF file that can be read: it is damaged."
    double.replies["pages"] = lambda to: to.refuse(400, message)
    page.set_input_files("#file", PDF)
    page.wait_for_selector(f"#image-problem:has-text('{message}')")
    assert page.locator("#image-problem input").count() == 0
    unknown = {"name": "a.docx", "mimeType": "application/msword", "buffer": b"x"}
    page.set_input_files("#file", unknown)
    assert "Use PDF, TIFF, JPEG" in words(page, "#image-problem")


def test_a_page_that_cannot_be_drawn_is_said(page: Any, double: Double) -> None:
    sheet = page_image(1)
    del sheet["image"]
    sheet["problem"] = "Page 1 of the document is damaged."
    double.replies["pages"] = lambda to: to.json({"num_pages": 1, "pages": [sheet]})
    open_pdf(page)
    assert "is damaged" in words(page, "#image-problem")


def test_tables_have_spans_and_marks_and_charts_their_values(page: Any, double: Double) -> None:
    open_pdf(page)
    page.click("#next-page")
    page.wait_for_selector("#page-number:has-text('Page 2 of 3')")
    page.get_by_role("radio", name="Table").check()
    run(page)
    assert double.last().fields["page"] == 2
    assert page.get_attribute("#answer-0 th", "colspan") == "2"
    assert "3 cells, 1 unsure." in words(page)
    assert page.inner_text(".unsure-cell") == "=1+2?"
    assert list(csv.reader(io.StringIO(copied(page, "CSV")))) == [
        ["Amounts", "Amounts"],
        ["Bolts", "'=1+2"],
    ]
    keep_shot(page, "table")
    page.get_by_role("radio", name="Chart").check()
    run(page)
    assert page.locator("#answer-0 tr").all_inner_texts() == [
        "Series\tYear\tValue", "Sales\t2024\t3 %", "Sales\t2025\t??",
    ]  # fmt: skip
    assert "2 values, 1 unsure." in words(page)
    keep_shot(page, "chart")


def test_stopping_a_document_keeps_what_was_read(page: Any, double: Double) -> None:
    def reply(to: Answering) -> None:
        to.event("page", {**page_of_text(1), "lines": [line("First line", 1)]})
        to.wait_for_hang_up()

    double.replies["read"] = reply
    open_pdf(page)
    page.click("#run")
    page.wait_for_selector(".item:has-text('First line')")
    page.keyboard.press("Escape")
    page.wait_for_selector("#answer-0[data-state=failed]")
    assert "Stopped." in words(page)
    assert "First line" in words(page)
    assert double.last().hung_up.wait(5)


def test_history_brings_a_document_back(page: Any) -> None:
    extract(page)
    page.locator("#samples button").first.click()
    page.wait_for_selector("#image-name:has-text('.jpg')")
    assert not page.is_visible("#pager")
    page.click("#history button")
    page.wait_for_selector("#answer-0[data-state=done] .item")
    assert page.inner_text("#image-name") == "bill.pdf"
    page.locator(".item", has_text="2026-03-04").click()
    page.wait_for_selector("#page-number:has-text('Page 2 of 3')")


@pytest.mark.parametrize("size", [PHONE, {"width": 320, "height": 640}, DESKTOP])
def test_documents_fit_into_any_window(page: Any, size: dict[str, int]) -> None:
    page.set_viewport_size(size)
    extract(page)
    keep_shot(page, f"fields-{size['width']}")
    assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
    page.locator(".item", has_text="R-17").click()
    assert page.locator("#stage-0").is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_axe_finds_nothing_with_documents(
    page: Any, shared_data: Path, scheme: str, size: dict[str, int]
) -> None:
    source = axe_source(shared_data)
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    page.set_viewport_size(size)
    page.evaluate(source)
    open_pdf(page)
    for task in ("Fields", "Pages", "Table", "Chart"):
        page.get_by_role("radio", name=task).check()
        run(page)
        if task == "Fields":
            page.click(".options summary")
            page.locator(".item").first.click()
            page.wait_for_selector("#page-number:has-text('Page 2 of 3')")
        keep_shot(page, f"{scheme}-{size['width']}-{task.lower()}")
        found = page.evaluate("axe.run().then((report) => report.violations)")
        told = [(one["id"], [node["html"] for node in one["nodes"]]) for one in found]
        assert told == [], task


def test_fingers_find_room_in_documents(browser: Any, double: Double, watch: Watch) -> None:
    context = browser.new_context(viewport=PHONE, has_touch=True, is_mobile=True)
    page = context.new_page()
    watch.follow(page)
    page.goto(double.url)
    page.wait_for_selector(".status[data-state=ready]")
    extract(page)
    for target in page.locator("button:visible, select:visible, .task:visible").all():
        box = target.bounding_box()
        assert min(box["width"], box["height"]) >= 36, target.inner_text()
    context.close()
    watch.check()
