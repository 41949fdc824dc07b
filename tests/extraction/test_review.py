"""The review page in a browser: what it shows, what it saves, and that it stays offline."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from paligemma.data import open_data
from paligemma.documents import open_document
from paligemma.errors import ImageError
from paligemma.extraction import Extraction, ExtractOptions, extract
from tests.extraction.scripted import Fact, ScriptedAsker
from tests.extraction.test_extract import FILES, ITEMS, NUMBER, Note, pages, scan_facts
from tests.server.page.browser import DESKTOP, PHONE, chromium

HOSTILE = "</script><script>document.title='x'</script><img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def found() -> Extraction[Any]:
    facts = [
        Fact(f.question, HOSTILE if f.text == "Jane Smith" else f.text, f.box_xyxy)
        for f in scan_facts()
    ]
    return extract(ScriptedAsker(facts, frozenset([ITEMS])), FILES / "invoice_scan.pdf", "invoice")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as running:
        yield running


def opened(browser: Any, path: Path, size: Any, heard: list[str]) -> Any:
    page = browser.new_context(viewport=size, accept_downloads=True).new_page()
    page.on("console", lambda message: heard.append(message.text))
    page.on("pageerror", lambda error: heard.append(str(error)))
    page.on("dialog", lambda dialog: heard.append(dialog.message))
    page.on(
        "request",
        lambda request: (
            None
            if request.url.startswith(("data:", "blob:", path.as_uri()))
            else heard.append(request.url)
        ),
    )
    page.goto(path.as_uri())
    return page


def test_reviewing_with_the_keyboard(browser: Any, found: Extraction[Any], tmp_path: Path) -> None:
    path = tmp_path / "review.html"
    found.to_html(path, file="invoice_scan.pdf")
    heard: list[str] = []
    page = opened(browser, path, DESKTOP, heard)
    assert page.title() == "Invoice: invoice_scan.pdf"
    cards = page.locator(".field")
    assert cards.count() == len(found.fields)
    first = cards.first.get_attribute("data-path")
    assert first == found.unsure()[0].path if found.unsure() else first
    assert page.locator(".field[data-path=buyer] textarea").input_value() == HOSTILE
    # The place of a value is marked on the page.
    page.locator(".field[data-path=total] textarea").focus()
    assert page.locator("rect.chosen").get_attribute("data-path") == "total"
    page.locator(".field[data-path=total] textarea").fill("$19,647.69")
    page.keyboard.press("Enter")
    page.locator(".field[data-path=seller_vat] textarea").focus()
    page.keyboard.press("Alt+x")
    for number in range(6):
        page.locator(f".field[data-path='items[{number}].description'] .accept").click()
    assert page.locator("#status").text_content() == f"8 of {len(found.fields)} values reviewed"
    with page.expect_download() as values:
        page.click("#save-values")
    saved = json.loads(Path(values.value.path()).read_text())
    assert saved["total"] == "$19,647.69"
    assert saved["seller_vat"] is None
    with page.expect_download() as examples:
        page.click("#save-examples")
    assert examples.value.suggested_filename == "invoice_scan-examples.zip"
    with zipfile.ZipFile(examples.value.path()) as archive:
        assert archive.testzip() is None
        archive.extractall(tmp_path / "examples")
    records = [record for record in open_data(tmp_path / "examples" / "examples.jsonl")]
    by_prefix = {record.prefix: record.suffix for record in records}
    assert by_prefix["answer en What is the total amount?"] == "$19,647.69"
    assert by_prefix["answer en What is the VAT number of the seller?"] == "unanswerable"
    assert by_prefix[f"answer en {ITEMS}"].startswith('12 ft HDMI cable, 27" Computer Monitor, ')
    with Image.open(str(records[0].image)) as image:
        assert min(image.size) > 1000
    assert heard == []


def test_a_phone_needs_no_scrolling_to_the_side(
    browser: Any, found: Extraction[Any], tmp_path: Path
) -> None:
    path = tmp_path / "review.html"
    found.to_html(path, file="invoice_scan.pdf")
    heard: list[str] = []
    page = opened(browser, path, PHONE, heard)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    page.locator(".field[data-path=total] .accept").click()
    assert page.locator("#status").text_content() == f"1 of {len(found.fields)} values reviewed"
    assert heard == []


def test_the_page_is_one_strict_file(found: Extraction[Any]) -> None:
    html = found.to_html(file='"><script>x</script>')
    assert html.count("<script>") == 1
    policy = html.split('Content-Security-Policy" content="')[1].split('"')[0]
    assert policy.startswith("default-src &#39;none&#39;") or "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http://" not in html.replace("http://www.w3.org", "")


def test_values_of_an_xml_are_no_examples_and_the_page_says_why(
    browser: Any, tmp_path: Path
) -> None:
    with open_document(FILES / "einvoice_de.pdf") as document:
        (tmp_path / "einvoice.xml").write_bytes(document.attachments[0].data())
    for source, count in ((FILES / "einvoice_de.pdf", 1), (tmp_path / "einvoice.xml", 0)):
        found = extract(None, source, "invoice", ExtractOptions(source="xml"))
        found.to_html(tmp_path / "review.html")
        heard: list[str] = []
        page = opened(browser, tmp_path / "review.html", DESKTOP, heard)
        assert page.locator("figure").count() == count
        assert page.locator("#save-examples").count() == 0
        assert "from the XML, which no model has read" in page.locator("#fields").inner_text()
        page.locator(".field[data-path=total] .accept").click()
        with page.expect_download() as values:
            page.click("#save-values")
        assert json.loads(Path(values.value.path()).read_text()) == {"total": "571.04"}
        assert heard == []
    with pytest.raises(ImageError, match="No page"):
        found.draw()


def test_an_example_is_never_cut_from_a_page_that_was_not_asked_about(
    browser: Any, tmp_path: Path
) -> None:
    """What several pages do not have is from none of them."""
    found = extract(ScriptedAsker([Fact(NUMBER, "R-17", page=2)]), pages(tmp_path, 3), Note)
    assert (found["number"].page, found["amount"].page, found.page_numbers) == (2, None, (1, 2, 3))
    found.to_html(tmp_path / "review.html")
    page = opened(browser, tmp_path / "review.html", DESKTOP, [])
    text = page.locator("#fields").inner_text()
    assert "4 values make no training examples: the page that was asked about is not shown" in text
    for card in page.locator(".accept").all():
        card.click()
    with page.expect_download() as examples:
        page.click("#save-examples")
    with zipfile.ZipFile(examples.value.path()) as archive:
        [line] = archive.read("examples.jsonl").decode().splitlines()
    assert json.loads(line)["suffix"] == "R-17"


def test_the_review_without_values_shows_the_page_that_was_read(tmp_path: Path) -> None:
    found = extract(ScriptedAsker([]), pages(tmp_path, 2), Note, ExtractOptions(pages="2"))
    assert found.page_numbers == (2,)
    html = found.to_html()
    assert 'data-page="2"' in html
    assert 'data-page="1"' not in html


def test_drawing(found: Extraction[Any], tmp_path: Path) -> None:
    [image] = found.draw(tmp_path / "drawn.png")
    assert (tmp_path / "drawn.png").is_file()
    assert max(image.size) == 1600


def test_drawing_without_values_shows_the_first_page(
    found: Extraction[Any], tmp_path: Path
) -> None:
    [image] = replace(found, fields=()).draw(tmp_path / "drawn.png")
    assert max(image.size) == 1600
    assert (tmp_path / "drawn.png").is_file()


def test_what_the_model_wrote_is_shown_where_it_could_not_be_read(tmp_path: Path) -> None:
    schema = {"type": "object", "properties": {"date": {"type": "string", "format": "date"}}}
    facts = [Fact("What is the date?", "03/04/2026")]
    options = ExtractOptions(detect=False, turn=False)
    found = extract(ScriptedAsker(facts), FILES / "invoice_scan.pdf", schema, options)
    found.to_html(tmp_path / "review.html")
    shown = (tmp_path / "review.html").read_text()
    assert "the words were <bdi>03/04/2026</bdi>" in shown
    assert found["date"].to_dict()["unread"] == found["date"].raw == "03/04/2026"


@pytest.mark.parametrize("answer", ["2026-03-04", "unanswerable", "N/A", "-"])
def test_an_answer_that_is_read_or_says_that_there_is_nothing_is_not_unread(answer: str) -> None:
    schema = {"type": "object", "properties": {"date": {"type": "string", "format": "date"}}}
    options = ExtractOptions(detect=False, turn=False)
    asker = ScriptedAsker([Fact("What is the date?", answer)])
    found = extract(asker, FILES / "invoice_scan.pdf", schema, options)
    assert found["date"].raw == answer
    assert found["date"].to_dict()["unread"] is None
    assert "the words were" not in found.to_html()
