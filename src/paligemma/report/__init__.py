"""Reports: HTML pages from Jinja2 templates, and images embedded in them.

Templates are in `templates/`, extend `base.html`, and escape every value. A page is one file:
styles are inside it, and images and charts (`charts.py`) are data URIs.
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
from functools import cache
from pathlib import Path
from typing import Any, Literal

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

_TEMPLATES = Path(__file__).parent / "templates"


def render_page(template: str, **values: Any) -> str:
    """The page that a template makes of the values; a value that is missing is an error."""
    return _environment().get_template(template).render(values) + "\n"


_POLICY = "CONTENT-SECURITY-POLICY"


def render_sealed_page(template: str, **values: Any) -> str:
    """A page with a script, whose policy allows nothing but its own script and style, by their
    hashes. The template puts `csp` into its head."""
    page = render_page(template, csp=_POLICY, **values)
    hashes = {
        kind: " ".join(
            f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
            for text in re.findall(rf"<{kind}>(.*?)</{kind}>", page, re.DOTALL)
        )
        for kind in ("style", "script")
    }
    policy = (
        f"default-src 'none'; img-src data: blob:; style-src {hashes['style']}; "
        f"script-src {hashes['script']}; base-uri 'none'; form-action 'none'"
    )
    return page.replace(_POLICY, policy, 1)


def image_uri(
    image: Image.Image, *, format: Literal["JPEG", "PNG"] = "JPEG", side: int | None = None
) -> str:
    """A data URI of an image, reduced to at most `side` pixels of width and height."""
    if side is not None:
        image = image.copy()
        image.thumbnail((side, side))
    file = io.BytesIO()
    options: dict[str, Any] = {"quality": 85} if format == "JPEG" else {"optimize": True}
    image.save(file, format, **options)
    return _data_uri(file.getvalue(), f"image/{format.lower()}")


def svg_uri(svg: str) -> str:
    """A data URI of an SVG document."""
    return _data_uri(svg.encode(), "image/svg+xml")


def _data_uri(data: bytes, media_type: str) -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode('ascii')}"


@cache
def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
