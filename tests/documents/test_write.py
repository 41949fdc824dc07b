"""Text as plain text, JSON, hOCR and ALTO: valid, and nothing of a document gets out of place."""

from __future__ import annotations

import json
import math
from xml.etree import ElementTree

import pytest

from paligemma.documents import DocumentText, Line, PageText, ReadOptions, open_document
from paligemma.documents.read import read_document
from paligemma.documents.write import to_alto, to_hocr, to_json, to_txt, words_of_line
from tests.documents.pdf_files import pdf_of_pages, text_at
from tests.documents.readers import ScriptedReader, text_result

NASTY = 'a <b> & "c" \' ]]> --> \x00\x1b[2J \ud800 é 漢 <script>alert(1)</script>'


def document(text: str = NASTY, *, unit: str = "pt", score: float | None = 0.876) -> DocumentText:
    line = Line(text=text, box_xyxy=(72.0, 36.0, 144.0, 54.0), score=score, page=2, source="model")
    pages = (
        PageText(page=1, size_wh=(595.0, 842.0), unit=unit, turned=0),  # type: ignore[arg-type]
        PageText(page=2, size_wh=(595.0, 842.0), unit=unit, turned=0, lines=(line, line)),  # type: ignore[arg-type]
    )
    return DocumentText(name=f"{text}.pdf", source="model", pages=pages)


def test_plain_text_has_a_form_feed_between_pages() -> None:
    assert to_txt(document("some words")) == "\fsome words\nsome words\n"


def test_json_is_all_that_is_known() -> None:
    read = json.loads(to_json(document("some words")))
    assert read["pages"][1]["lines"][0] == {
        "text": "some words",
        "box_xyxy": [72.0, 36.0, 144.0, 54.0],
        "score": 0.876,
        "page": 2,
        "source": "model",
        "angle": 0.0,
    }


X = "{http://www.w3.org/1999/xhtml}"


def test_hocr_has_pages_lines_and_words_with_boxes() -> None:
    root = ElementTree.fromstring(to_hocr(document("some words"), language="de"))
    assert root.tag == f"{X}html"
    assert root.get("lang") == "de"
    capabilities = [
        meta.get("content") for meta in root.iter(f"{X}meta")
        if meta.get("name") == "ocr-capabilities"
    ]  # fmt: skip
    first, second = [div for div in root.iter(f"{X}div") if div.get("class") == "ocr_page"]
    assert len(first) == 0
    assert 'image "some words.pdf"; bbox 0 0 2479 3508; ppageno 1' in str(second.get("title"))
    lines = [span for span in second.iter(f"{X}span") if span.get("class") == "ocr_line"]
    assert [line.get("title") for line in lines] == ["bbox 300 150 600 225"] * 2
    words = list(lines[0])
    assert [word.text for word in words] == ["some", "words"]
    assert [word.get("title") for word in words] == [
        "bbox 300 150 420 225; x_wconf 88",
        "bbox 450 150 600 225; x_wconf 88",
    ]
    classes = {span.get("class") for span in root.iter(f"{X}span")}
    assert classes | {"ocr_page"} == set(str(capabilities[0]).split())
    ids = [element.get("id") for element in root.iter() if element.get("id")]
    assert len(ids) == len(set(ids))


A = "{http://www.loc.gov/standards/alto/ns-v4#}"
# The elements of ALTO 4.4 that are written here: their parents, and what they must have.
ALTO = {
    "alto": (None, set()),
    "Description": ("alto", set()),
    "MeasurementUnit": ("Description", set()),
    "sourceImageInformation": ("Description", set()),
    "fileName": ("sourceImageInformation", set()),
    "Processing": ("Description", {"ID"}),
    "processingSoftware": ("Processing", set()),
    "softwareName": ("processingSoftware", set()),
    "Layout": ("alto", set()),
    "Page": ("Layout", {"ID", "PHYSICAL_IMG_NR"}),
    "PrintSpace": ("Page", {"HEIGHT", "WIDTH", "HPOS", "VPOS"}),
    "TextBlock": ("PrintSpace", {"ID"}),
    "TextLine": ("TextBlock", set()),
    "String": ("TextLine", {"CONTENT"}),
    "SP": ("TextLine", set()),
}


@pytest.mark.parametrize("text", ["some words", NASTY])
@pytest.mark.parametrize("score", [None, 0.5])
def test_alto_has_the_structure_of_its_schema(text: str, score: float | None) -> None:
    root = ElementTree.fromstring(to_alto(document(text, score=score)))
    parents = {child: parent for parent in root.iter() for child in parent}
    ids = []
    for element in root.iter():
        name = element.tag.removeprefix(A)
        parent, needed = ALTO[name]
        assert (parents[element].tag if element in parents else None) == (
            None if parent is None else A + parent
        )
        assert needed <= set(element.keys())
        ids += [element.get("ID")] if element.get("ID") else []
        for key in {"HPOS", "VPOS", "WIDTH", "HEIGHT", "PHYSICAL_IMG_NR"} & set(element.keys()):
            assert int(str(element.get(key))) >= 0
        if name == "String":
            assert element.get("WC") == (None if score is None else "0.5000")
    assert len(ids) == len(set(ids))
    [unit] = root.iter(f"{A}MeasurementUnit")
    assert unit.text == "pixel"
    first, second = root.iter(f"{A}Page")
    assert len(first[0]) == 0
    assert first.get("WIDTH") == "2479"
    strings = [str(string.get("CONTENT")) for string in second.iter(f"{A}String")]
    if text == "some words":
        assert strings == ["some", "words"] * 2
        line = next(iter(second.iter(f"{A}TextLine")))
        assert dict(line.items()) | {"ID": ""} == {
            "ID": "", "HPOS": "300", "VPOS": "150", "WIDTH": "300", "HEIGHT": "75",
        }  # fmt: skip


def test_nothing_of_a_document_becomes_markup() -> None:
    for made in (to_hocr(document()), to_alto(document())):
        root = ElementTree.fromstring(made)
        assert not [element for element in root.iter() if element.tag.endswith("}script")]
        assert "\x00" not in made
        assert "\x1b" not in made
        assert made.encode("utf-8")
    json.loads(to_json(document()))


def test_boxes_of_images_are_in_their_pixels() -> None:
    assert "bbox 72 36 144 54" in to_hocr(document("some words", unit="px"))
    assert 'HPOS="72" VPOS="36" WIDTH="72" HEIGHT="18"' in to_alto(document("x", unit="px"))


@pytest.mark.parametrize("degrees", [0, 20, 45, 70, 90, 135, 180, 225, 270, 300, 340])
def test_words_of_turned_lines_have_their_own_boxes(degrees: int) -> None:
    pytest.importorskip("pypdfium2", reason="the docs extra is not installed")
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    matrix = " ".join(f"{value:.4f}" for value in (cosine, sine, -sine, cosine))
    level = b"".join(text_at(10, 380 - 15 * row, "level words of a letter") for row in range(3))
    data = pdf_of_pages(
        [level + text_at(200, 150, "some turned words here", 12, matrix)], media_box="0 0 400 400"
    )
    reader = ScriptedReader(lambda image: text_result(""))
    read = read_document(reader, data, ReadOptions(source="text layer"))
    [line] = [line for line in read.lines if line.text.startswith("some")]
    assert line.angle == pytest.approx(degrees, abs=0.1)
    with open_document(data) as document:
        boxes = {word.text: word.box_xyxy for word in document.pages[0].words}
    for word, box in words_of_line(line):
        assert box == pytest.approx(boxes[word], abs=9)  # letters are not all as wide
    shown = f"textangle {degrees}" in to_hocr(read), f'ROTATION="{degrees}"' in to_alto(read)
    assert shown == (degrees != 0,) * 2
