"""Tags of an HTML page, with the exact places of their attributes.

A scanner after the tokenizer of the HTML standard
(https://html.spec.whatwg.org/multipage/parsing.html#tokenization), on which browsers agree for
broken pages too. The standard library's html.parser, which Beautiful Soup builds on, gives the
place of a tag but not of its attributes, and what it takes for a comment or a script's text differs
between versions of Python.

It builds no tree: it says where tags and texts are. Blocks of server-side code (`<?php ... ?>`,
`<% ... %>`, `{{ ... }}`, `{% ... %}`, `{# ... #}`) are skipped as a whole, and a tag with such code
among its attributes says so (`has_code`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from html import unescape
from html.entities import html5
from typing import Literal

_BLANK = "[\t\n\f\r ]"
_TAG_NAME = re.compile(r"[^\t\n\f\r />]+")
_BLANKS = re.compile(rf"{_BLANK}*")
_BETWEEN = re.compile(r"[\t\n\f\r /]*")
_ATTRIBUTE_NAME = re.compile(r"[^\t\n\f\r />][^\t\n\f\r />=]*")
_UNQUOTED = re.compile(r"[^\t\n\f\r >]*")
_COMMENT_END = re.compile(r"--!?>")
_CODE = re.compile(r"<\?(?:php\b|=)|<%|\{\{|\{%|\{#")
_MARKUP = re.compile(r"<|\{[{%#]")
_CODE_ENDS = {"<?": "?>", "<%": "%>", "{{": "}}", "{%": "%}", "{#": "#}"}
_LONGEST_CODE = {"<?": None, "<%": None, "{{": 1_000, "{%": 1_000, "{#": 10_000}
"""Braces without an end that is so near are text."""
_LONGEST_CDATA = 100_000

_TEXT_ELEMENTS = frozenset(
    ("style", "textarea", "title", "xmp", "iframe", "noembed", "noframes")
)  # fmt: skip
"""Elements that hold text alone, up to their end tag; `script` has rules of its own."""
_SCRIPT = re.compile(rf"<!--|-->|<(/?)script(?={_BLANK}|[/>])", re.IGNORECASE)
_REFERENCE = re.compile(r"&(?:#[0-9]+|#[xX][0-9a-fA-F]+|[A-Za-z][A-Za-z0-9]*);?")


@dataclass(frozen=True, kw_only=True)
class Attribute:
    """An attribute as it stands in the page: [start, end) is the whole of it."""

    name: str
    """In lower case."""
    value: str
    """Without quotes, character references replaced; "" where there is none."""
    start: int
    end: int
    value_start: int | None = None
    """Where the value begins, its quote included; None for a bare name."""


@dataclass(frozen=True, kw_only=True)
class Tag:
    """A tag, or a run of text between tags: [start, end) of the page."""

    kind: Literal["start", "end", "text"]
    start: int
    end: int
    name: str = ""
    """In lower case; of a text, the element of which it is the whole content, such as "title"."""
    name_end: int = 0
    attributes: tuple[Attribute, ...] = ()
    """Without those that repeat an earlier name, which browsers ignore."""
    has_code: bool = False

    def get(self, name: str) -> str | None:
        """The value of an attribute; None where there is none."""
        found = self.attribute(name)
        return None if found is None else found.value

    def attribute(self, name: str) -> Attribute | None:
        """The attribute of this name."""
        return next((each for each in self.attributes if each.name == name), None)


class _Page(str):
    """A page that remembers what it found, so that a page full of openings that nothing closes is
    not searched to its end for each of them."""

    def __init__(self, _text: str) -> None:
        self._found: dict[str, tuple[int, int]] = {}

    def next(self, mark: str, start: int, end: int | None = None) -> int:
        """As `find`."""
        searched_from, found = self._found.get(mark, (0, -1))
        if not searched_from <= start <= found:
            found = self.find(mark, start)
            found = len(self) if found < 0 else found
            self._found[mark] = start, found
        return found if found + len(mark) <= min(len(self), end or len(self)) else -1


def scan(page: str) -> Iterator[Tag]:
    """The tags and texts of a page in order, without comments and server-side code.

    >>> [(tag.kind, tag.name) for tag in scan("<!-- <img> --><A HREF=x>go</a>")]
    [('start', 'a'), ('text', ''), ('end', 'a')]
    """
    page = _Page(page)
    position, text_start = 0, 0
    while found := _MARKUP.search(page, position):
        start = found.start()
        tag, end = _markup_at(page, start)
        if end == start:  # a character that begins nothing
            position = start + 1
            continue
        if start > text_start:
            yield Tag(kind="text", start=text_start, end=start)
        if tag is not None:
            yield tag
            content_end = _end_of_text(page, end, tag.name) if tag.kind == "start" else None
            if content_end is not None:
                yield Tag(kind="text", start=end, end=content_end, name=tag.name)
                end = content_end
        position = text_start = end
    if text_start < len(page):
        yield Tag(kind="text", start=text_start, end=len(page))


def _markup_at(page: _Page, start: int) -> tuple[Tag | None, int]:
    """The tag that begins here, if any, and where it ends; the same place for plain text."""
    if code_end := _end_of_code(page, start):
        return None, code_end
    following = page[start + 1 : start + 2]
    if page[start] != "<" or not following:
        return None, start
    if following.isascii() and following.isalpha():
        return _tag(page, start, "start", start + 1)
    if following == "/":
        letter = page[start + 2 : start + 3]
        if letter.isascii() and letter.isalpha():
            return _tag(page, start, "end", start + 2)
        return None, _after(page, ">", start + 2) if letter else start
    if page.startswith("<!--", start):
        return None, _end_of_comment(page, start + 4)
    if page.startswith("<![CDATA[", start):
        end = page.next("]]>", start, start + _LONGEST_CDATA)
        return None, end + 3 if end >= 0 else _after(page, ">", start + 2)
    return (None, _after(page, ">", start + 2)) if following in "!?" else (None, start)


def _after(page: str, mark: str, start: int) -> int:
    end = page.find(mark, start)
    return len(page) if end < 0 else end + len(mark)


def _end_of_code(page: _Page, start: int) -> int | None:
    """Where server-side code that begins here ends; None where none does."""
    opening = _CODE.match(page, start)
    if opening is None:
        return None
    mark = opening[0][:2]
    limit = _LONGEST_CODE[mark]
    end = page.next(_CODE_ENDS[mark], opening.end(), None if limit is None else start + limit)
    if end < 0:
        return len(page) if limit is None else None
    return end + 2


def _end_of_comment(page: str, start: int) -> int:
    for short in (">", "->"):
        if page.startswith(short, start):
            return start + len(short)
    end = _COMMENT_END.search(page, start)
    return len(page) if end is None else end.end()


def _tag(page: _Page, start: int, kind: Literal["start", "end"], name_at: int) -> tuple[Tag, int]:
    """The tag, and where it ends. A tag that the page's end cuts off is no tag, but text."""
    name = _TAG_NAME.match(page, name_at)
    assert name is not None
    position, has_code = name.end(), _CODE.search(name[0]) is not None
    attributes: dict[str, Attribute] = {}
    while True:
        position = _BETWEEN.match(page, position).end()  # type: ignore[union-attr]
        if code_end := _end_of_code(page, position):
            has_code, position = True, code_end
            continue
        if page[position : position + 1] in (">", ""):
            break
        attribute, position = _attribute(page, position)
        if attribute is None:
            position = len(page)
            break
        has_code |= _CODE.search(attribute.name) is not None
        attributes.setdefault(attribute.name, attribute)
    if position >= len(page):
        return Tag(kind="text", start=start, end=len(page)), len(page)
    tag = Tag(
        kind=kind,
        start=start,
        end=position + 1,
        name=name[0].lower(),
        name_end=name.end(),
        attributes=tuple(attributes.values()),
        has_code=has_code,
    )
    return tag, position + 1


def _attribute(page: str, start: int) -> tuple[Attribute | None, int]:
    """The attribute that begins here, and where it ends; None if its quote is never closed."""
    name = _ATTRIBUTE_NAME.match(page, start)
    assert name is not None
    lower, end = name[0].lower(), name.end()
    equals = _BLANKS.match(page, end).end()  # type: ignore[union-attr]
    if page[equals : equals + 1] != "=":
        return Attribute(name=lower, value="", start=start, end=end), end
    value_at = _BLANKS.match(page, equals + 1).end()  # type: ignore[union-attr]
    quote = page[value_at : value_at + 1]
    if quote in ('"', "'") and quote:
        closing = page.find(quote, value_at + 1)
        if closing < 0:
            return None, len(page)
        raw, end = page[value_at + 1 : closing], closing + 1
    else:
        raw = _UNQUOTED.match(page, value_at)[0]  # type: ignore[index]
        end = value_at + len(raw)
    made = Attribute(name=lower, value=_unescaped(raw), start=start, end=end, value_start=value_at)
    return made, end


def _unescaped(raw: str) -> str:
    """An attribute's value; "&copy=1" in an address is no copyright sign there."""

    def replaced(match: re.Match[str]) -> str:
        name = match[0][1:]
        is_known = name[0] == "#" or name in html5
        is_query = name[-1] != ";" and raw[match.end() : match.end() + 1] == "="
        return unescape(match[0]) if is_known and not is_query else match[0]

    return _REFERENCE.sub(replaced, raw)


def _end_of_text(page: str, start: int, element: str) -> int | None:
    """Where the text of an element ends that holds nothing but text; None for other elements."""
    if element == "plaintext":
        return len(page)
    if element == "script":
        return _end_of_script(page, start)
    if element not in _TEXT_ELEMENTS:
        return None
    end = re.compile(rf"</{element}(?={_BLANK}|[/>])", re.IGNORECASE).search(page, start)
    return len(page) if end is None else end.start()


def _end_of_script(page: str, start: int) -> int:
    """In `<!-- ... -->`, a script may hold another one with its end tag."""
    position, is_escaped, is_inside = start, False, False
    while found := _SCRIPT.search(page, position):
        position = found.end()
        if found[0] == "<!--":
            position -= 2  # "<!-->" is both
            is_escaped = True
        elif found[0] == "-->":
            is_escaped = is_inside = False
        elif not found[1]:
            is_inside = is_escaped
        elif is_inside:
            is_inside = False
        else:
            return found.start()
    return len(page)
