"""Values from a scan that lies at a slant: it is read straight, and boxes are on it as it is."""

from __future__ import annotations

import io
import math
import zipfile
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from paligemma.extraction import Extraction, ExtractOptions, extract
from paligemma.results import BoxXyxy
from tests.extraction.scripted import ScriptedAsker
from tests.extraction.test_extract import LINES, Lines, line_facts, lines_page
from tests.server.page.browser import DESKTOP, chromium

SLANT = 3.0
WIDTH, HEIGHT = 1240, 1754
COSINE, SINE = math.cos(math.radians(SLANT)), math.sin(math.radians(SLANT))


def slanted(x: float, y: float) -> tuple[float, float]:
    """Where a point of the straight page is on the scan."""
    x, y = x - WIDTH / 2, y - HEIGHT / 2
    return COSINE * x + SINE * y + WIDTH / 2, -SINE * x + COSINE * y + HEIGHT / 2


def laid_straight(box: BoxXyxy) -> BoxXyxy:
    """A box of the straight page on the scan laid straight, which has kept its corners."""
    right = (WIDTH * COSINE + HEIGHT * SINE - WIDTH) / 2
    down = (WIDTH * SINE + HEIGHT * COSINE - HEIGHT) / 2
    return box[0] + right, box[1] + down, box[2] + right, box[3] + down


def middle(box: BoxXyxy) -> tuple[float, float]:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


@pytest.fixture(scope="module")
def scan() -> Image.Image:
    return lines_page().rotate(SLANT, Image.Resampling.BICUBIC, fillcolor="white")


@pytest.fixture(scope="module")
def found(scan: Image.Image) -> Extraction[Any]:
    facts = [
        replace(fact, box_xyxy=laid_straight(fact.box_xyxy)) for fact in line_facts()
        if fact.box_xyxy is not None
    ]  # fmt: skip
    places = {"7,00": (1, laid_straight((800, 334, 860, 358)))}
    asker = ScriptedAsker(facts, frozenset([LINES]), whole_page_score=0.1, places=places)
    return extract(asker, scan, Lines, ExtractOptions(turn=False))


def test_tiles_are_cut_on_the_straight_page(found: Extraction[Any]) -> None:
    assert found.value is not None
    assert [line.name for line in found.value.lines] == [f"Line {n}" for n in range(40)]
    assert [line.price for line in found.value.lines] == [Decimal(f"{n}.00") for n in range(40)]
    assert found.problems == ()


def test_boxes_are_on_the_page_as_it_is(found: Extraction[Any]) -> None:
    price = found["lines[7].price"]
    assert (price.box_source, price.page) == ("detect", 1)
    assert price.box_xyxy is not None
    assert middle(price.box_xyxy) == pytest.approx(slanted(830, 346), abs=2)
    for field in found.fields:
        assert field.tile_xyxy is not None
        x0, y0, x1, y1 = field.tile_xyxy
        assert 0 <= x0 < x1 <= WIDTH
        assert 0 <= y0 < y1 <= HEIGHT
        number = int(field.path.split("[")[1].split("]")[0])
        x, y = slanted(95 if field.path.endswith("name") else 830, 52 + 42 * number)
        assert x0 < x < x1
        assert y0 < y < y1


def test_examples_show_the_parts_as_the_model_saw_them(
    found: Extraction[Any], scan: Image.Image, tmp_path: Path
) -> None:
    found.to_html(tmp_path / "review.html", source=scan)
    with chromium() as browser:
        page = browser.new_context(viewport=DESKTOP, accept_downloads=True).new_page()
        page.goto((tmp_path / "review.html").as_uri())
        page.locator(".field[data-path='lines[7].price'] .accept").click()
        with page.expect_download() as examples:
            page.click("#save-examples")
        with zipfile.ZipFile(examples.value.path()) as archive:
            [name] = [name for name in archive.namelist() if name.endswith(".jpg")]
            ink = np.asarray(Image.open(io.BytesIO(archive.read(name))).convert("L")) < 128
    # Between level lines there are rows without ink; a slanted line crosses them all.
    rows = np.flatnonzero(ink.any(axis=1))
    assert len(rows) < 0.7 * (rows[-1] - rows[0])
