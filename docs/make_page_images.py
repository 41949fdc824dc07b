"""Draw the images of `docs/page.md` with the page of a running server.

paligemma serve &
python docs/make_page_images.py [ADDRESS]
"""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

IMAGES = Path(__file__).parent / "images"
DESKTOP, PHONE = (1440, 900), (390, 844)
SAMPLES = {"turtle-and-lemon": 1, "cactus": 0}


def shoot(browser: Any, address: str, name: str, sample: str, size: tuple[int, int]) -> None:
    """Ask the sample's own question about its objects, and save what the page shows."""
    task = "Segment" if "segment" in name else "Detect"
    scheme = "dark" if "dark" in name else "light"
    page = browser.new_page(
        viewport={"width": size[0], "height": size[1]},
        color_scheme=scheme,
        is_mobile=size == PHONE,
    )
    page.goto(address)
    page.locator("#samples button").nth(SAMPLES[sample]).click()
    page.get_by_role("button", name=f"{task} ").click()
    page.locator("#answer-0 .object-label").first.wait_for()
    page.locator("#stop").wait_for(state="hidden")
    page.mouse.move(0, 0)  # an object under the pointer would be highlighted
    page.wait_for_timeout(500)
    shot = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    shot.quantize(256).save(IMAGES / f"{name}.png", optimize=True)
    page.close()


if __name__ == "__main__":
    server = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path="/usr/bin/chromium", args=["--no-sandbox"]
        )
        shoot(chromium, server, "page-detect", "turtle-and-lemon", DESKTOP)
        shoot(chromium, server, "page-segment-dark", "cactus", DESKTOP)
        shoot(chromium, server, "page-phone", "turtle-and-lemon", PHONE)
