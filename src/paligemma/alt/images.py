"""The images of a page that lack an alternative text, and what is around them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from paligemma.alt.html import Tag, scan
from paligemma.alt.wording import doubt_about
from paligemma.escaping import visible
from paligemma.results import one_line

_SET_BY_CODE = re.compile(r"[:\[]alt\]?|(?:v-bind|x-bind):alt|\[attr\.alt\]|ng-attr-alt|bind:alt")
_CODE_IN_VALUE = re.compile(r"<[?%]|\{\{|\{%|\$\{")
_LAZY = ("data-src", "data-original", "data-lazy-src")
_LAZY_SETS = ("data-srcset", "data-lazy-srcset")
_DESCRIPTOR = re.compile(r"([0-9]+(?:\.[0-9]+)?|\.[0-9]+)[wx]")
_BLANKS = "\t\n\f\r "


@dataclass(kw_only=True, eq=False)
class Control:
    """A link or a button, whose name is what it holds."""

    element: str
    address: str | None
    """Where a link leads."""
    has_name: bool = False
    """Whether it has a text, or a label."""


@dataclass(frozen=True, kw_only=True)
class PageImage:
    """An image whose alternative text is missing or bad."""

    tag: Tag
    line: int
    """Counted from 1."""
    addresses: tuple[str, ...]
    """Where the image is, the likeliest first: src, srcset, the sources of a picture element."""
    was: str | None
    """The alternative text so far; None where there is none."""
    reason: str
    """What is wrong with it."""
    control: Control | None = None
    """The link or button that holds it and has no other name."""
    refusal: str | None = None
    """Why it cannot be given another one."""


@dataclass(frozen=True, kw_only=True)
class FoundImages:
    """What a page says about its images."""

    images: tuple[PageImage, ...]
    num_good: int
    """Images with an alternative text to which there is no objection."""
    num_decorative: int
    """Images with an empty one, or hidden from screen readers."""
    base: str | None
    """The address from which others count."""
    language: str | None
    """Of the page, such as "de-AT"."""
    title: str | None


@dataclass(kw_only=True)
class _Pending:
    """An image, while the link around it is still open."""

    image: PageImage
    control: Control | None


@dataclass(kw_only=True)
class _Reader:
    page: str
    pending: list[_Pending] = field(default_factory=list)
    controls: list[Control] = field(default_factory=list)
    sources: list[str] | None = None
    """Addresses of the sources of the picture element that is open."""
    num_good: int = 0
    num_decorative: int = 0
    base: str | None = None
    language: str | None = None
    title: str | None = None
    _line: int = 1
    _counted_to: int = 0

    def read(self) -> None:
        for tag in scan(self.page):
            if tag.kind == "text":
                self._text(tag)
            elif tag.kind == "start":
                self._start(tag)
            elif tag.name in ("a", "button"):
                self._close(tag.name)
            elif tag.name == "picture":
                self.sources = None

    def _text(self, tag: Tag) -> None:
        if tag.name == "title" and self.title is None:
            self.title = one_line(plain_text(self.page[tag.start : tag.end])) or None
        is_shown = tag.name in ("", "textarea", "title")  # in a link, that of an <svg>
        if self.controls and is_shown and plain_text(self.page[tag.start : tag.end]).strip():
            self._name()

    def _name(self) -> None:
        for control in self.controls:
            control.has_name = True

    def _start(self, tag: Tag) -> None:
        match tag.name:
            case "img":
                self._image(tag)
            case "input" if (tag.get("type") or "").strip().lower() == "image":
                self._image(tag)
            case "a" | "button":
                self._close(tag.name)
                control = Control(element=tag.name, address=tag.get("href"))
                control.has_name = _has_label(tag)
                if tag.name == "button" or control.address is not None:
                    self.controls.append(control)
            case "picture":
                self.sources = []
            case "source" if self.sources is not None:
                self.sources += _addresses_of_set(tag.get("srcset") or "")
                for name in _LAZY_SETS:
                    self.sources += _addresses_of_set(tag.get(name) or "")
            case "base" if self.base is None:
                self.base = tag.get("href")
            case "html" if self.language is None:
                self.language = (tag.get("lang") or tag.get("xml:lang") or "").strip() or None

    def _close(self, element: str) -> None:
        numbers = [i for i, control in enumerate(self.controls) if control.element == element]
        if numbers:
            del self.controls[numbers[-1] :]

    def _image(self, tag: Tag) -> None:
        if _is_hidden(tag):
            self.num_decorative += 1
            return
        addresses = _addresses(tag, self.sources or ())
        self.sources = None  # a picture element has one image
        was = tag.get("alt")
        is_submit = tag.name == "input"
        if was == "" and not is_submit:
            self.num_decorative += 1
            return
        reason = "no alt" if was is None else doubt_about(was, addresses)
        if _has_label(tag) and was is None:
            reason = None
        if reason is None:
            self.num_good += 1
            self._name()
            return
        image = PageImage(
            tag=tag,
            line=self._line_of(tag.start),
            addresses=addresses,
            was=was,
            reason=reason,
            refusal=_refusal(tag),
        )
        control = Control(element="input", address=None) if is_submit else None
        if self.controls:
            control = self.controls[-1]
        self.pending.append(_Pending(image=image, control=control))

    def _line_of(self, position: int) -> int:
        self._line += self.page.count("\n", self._counted_to, position)
        self._counted_to = position
        return self._line

    def images(self) -> Iterator[PageImage]:
        for each in self.pending:
            control = each.control
            if control is None or control.has_name:
                yield each.image
            else:
                yield PageImage(**{**vars(each.image), "control": control})


def find_images_of(page: str) -> FoundImages:
    """The images of a page without a good alternative text.

    >>> [image.reason for image in find_images_of('<img src=a.png><img src=b.png alt="">').images]
    ['no alt']
    """
    reader = _Reader(page=page)
    reader.read()
    return FoundImages(
        images=tuple(reader.images()),
        num_good=reader.num_good,
        num_decorative=reader.num_decorative,
        base=reader.base,
        language=reader.language,
        title=reader.title,
    )


def plain_text(source: str) -> str:
    """The text of a piece of HTML without tags, with its character references replaced."""
    from html import unescape

    return visible(unescape(source), keep="\n\t")


def _is_hidden(tag: Tag) -> bool:
    role = (tag.get("role") or "").strip().lower()
    hidden = (tag.get("aria-hidden") or "").strip().lower()
    return role in ("presentation", "none") or hidden == "true"


def _has_label(tag: Tag) -> bool:
    """Whether it has a name that screen readers say."""
    names = ("aria-label", "aria-labelledby") + (() if tag.name == "img" else ("title",))
    return any((tag.get(name) or "").strip() for name in names)


def _refusal(tag: Tag) -> str | None:
    if tag.has_code or _CODE_IN_VALUE.search(tag.get("alt") or ""):
        return "server-side code is in the tag"
    if any(_SET_BY_CODE.fullmatch(each.name) for each in tag.attributes):
        return "a script sets its alt"
    return None


def _addresses(tag: Tag, sources: tuple[str, ...] | list[str]) -> tuple[str, ...]:
    """Where the image is. What stands in for it until it is loaded comes last."""
    source = (tag.get("src") or "").strip(_BLANKS)
    sets = [a for name in ("srcset", *_LAZY_SETS) for a in _addresses_of_set(tag.get(name) or "")]
    lazy = [value.strip(_BLANKS) for name in _LAZY if (value := tag.get(name))]
    others = [*lazy, *sets, *sources]
    is_stand_in = source[:5].lower() == "data:" and others
    found = [*others, source] if is_stand_in or lazy else [source, *others]
    return tuple(dict.fromkeys(address for address in found if address))


def _addresses_of_set(text: str) -> list[str]:
    """The addresses of a srcset, the largest image first.

    https://html.spec.whatwg.org/multipage/images.html#parsing-a-srcset-attribute
    """
    found: list[tuple[float, str]] = []
    position = 0
    while position < len(text):
        start = re.compile(r"[\t\n\f\r ,]*").match(text, position).end()  # type: ignore[union-attr]
        address = re.compile(r"[^\t\n\f\r ]*").match(text, start)[0]  # type: ignore[index]
        position = start + len(address)
        descriptor = ""
        if not address.endswith(","):
            end = text.find(",", position)
            end = len(text) if end < 0 else end
            descriptor, position = text[position:end].strip(_BLANKS), end
        size = _DESCRIPTOR.fullmatch(descriptor)
        if address.rstrip(","):
            found.append((float(size[1]) if size else 1.0, address.rstrip(",")))
    return [address for _, address in sorted(found, key=lambda pair: -pair[0])]
