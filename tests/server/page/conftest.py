"""The page in a browser, in front of a double of the server that tests steer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.server.page.browser import DESKTOP, Watch, chromium
from tests.server.page.double import Double, serving


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def serving_double() -> Iterator[Double]:
    with serving() as running:
        yield running


@pytest.fixture
def double(serving_double: Double) -> Double:
    """The double, as if it were new; browsers may keep the page's files."""
    serving_double.reset()
    return serving_double


@pytest.fixture
def watch() -> Watch:
    return Watch()


@pytest.fixture(scope="module")
def context(browser: Any) -> Any:
    made = browser.new_context(viewport=DESKTOP)
    made.set_default_timeout(10_000)
    made.grant_permissions(["clipboard-read", "clipboard-write"])
    return made


@pytest.fixture
def page(context: Any, double: Double, watch: Watch) -> Iterator[Any]:
    """The page, loaded and ready; afterwards nothing may have gone wrong in it."""
    made = context.new_page()
    watch.follow(made)
    made.goto(double.url)
    made.wait_for_selector(".status[data-state=ready]")
    yield made
    made.close()
    watch.check()
