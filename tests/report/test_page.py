"""Pages from templates."""

from __future__ import annotations

import base64
import io

import jinja2
import pytest
from PIL import Image

from paligemma.report import image_uri, render_page


def test_values_are_escaped_and_missing_ones_are_errors() -> None:
    assert "<title>&lt;b&gt; &amp; co</title>" in render_page("base.html", title="<b> & co")
    with pytest.raises(jinja2.UndefinedError, match="title"):
        render_page("base.html")


def test_an_image_is_embedded_and_not_larger_than_asked() -> None:
    uri = image_uri(Image.new("RGB", (80, 40)), format="PNG", side=20)
    head, _, data = uri.partition(",")
    assert head == "data:image/png;base64"
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (20, 10)
