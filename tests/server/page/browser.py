"""A headless Chromium whose every word is heard, and the steps that people take on the page.

Needs Debian's chromium and the package playwright; tests skip where one is missing.
"""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from PIL import Image

from mini.samples import read_samples

SAMPLES = read_samples()
DESKTOP = {"width": 1360, "height": 860}
PHONE = {"width": 390, "height": 844}

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SHOTS_VARIABLE = "PALIGEMMA_PAGE_SHOTS"
"""A folder that keeps a picture of each state, for people to look at."""


@contextmanager
def chromium() -> Iterator[Any]:
    """A running browser; skips the test where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    binary = shutil.which("chromium")
    if binary is None:
        pytest.skip("chromium is not installed")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=binary, args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Watch:
    """What a page did that it should not have done."""

    far_requests: list[str] = field(default_factory=list)
    console: list[str] = field(default_factory=list)
    dialogs: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    """Requests that failed or were refused: what a test of faults brings about on purpose."""

    def follow(self, page: Any) -> None:
        page.on("request", self._on_request)
        page.on("console", self._on_console)
        page.on("pageerror", lambda error: self.console.append(str(error)))
        page.on("dialog", self._on_dialog)

    def _on_request(self, request: Any) -> None:
        address = urlsplit(request.url)
        if address.scheme not in ("data", "blob") and address.hostname != "127.0.0.1":
            self.far_requests.append(request.url)

    def _on_console(self, message: Any) -> None:
        if message.type not in ("error", "warning"):
            return
        if "Failed to load resource" in message.text:
            self.failures.append(message.text)
        else:
            self.console.append(message.text)

    def _on_dialog(self, dialog: Any) -> None:
        self.dialogs.append(dialog.message)
        dialog.dismiss()

    def check(self) -> None:
        """Fails on anything but refused requests."""
        assert self.far_requests == []
        assert self.console == []
        assert self.dialogs == []


def keep_shot(page: Any, name: str) -> None:
    """A picture of the whole page, where someone wants to see it."""
    if (folder := os.environ.get(SHOTS_VARIABLE)) is not None:
        page.screenshot(path=Path(folder) / f"page-{name}.png", full_page=True)


def png(width: int = 64, height: int = 48) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (200, 60, 30)).save(buffer, "PNG")
    return buffer.getvalue()


def pick_sample(page: Any, number: int = 0) -> None:
    page.locator("#samples button").nth(number).click()
    page.wait_for_selector("#stage-0 .pane:visible")


def choose(page: Any, task: str, **fields: str) -> None:
    page.get_by_role("radio", name=task).check()
    for name, value in fields.items():
        if name == "language":
            page.select_option("#language", value)
        else:
            page.fill(f"#{name}", value)


def run(page: Any, state: str = "done") -> None:
    page.click("#run")
    page.wait_for_selector(f"#answer-0[data-state={state}]")


def words(page: Any, selector: str = "#answer-0") -> str:
    return str(page.inner_text(selector))


def copied(page: Any, form: str) -> str:
    page.click(f"text={form} >> visible=true")
    page.wait_for_selector(f".toast.shown:has-text('Copied as {form}')")
    return str(page.evaluate("navigator.clipboard.readText()"))
