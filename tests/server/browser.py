"""A headless Chromium whose every word is heard: console errors, failed answers, far requests.

Needs Debian's chromium and the package playwright; tests skip where one is missing.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
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
