"""What a good alternative text looks like: doubts about those of others, and our own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit

from paligemma.results import one_line

_SUFFIX = re.compile(r"\.(?:png|jpe?g|jfif|gif|webp|svg|avif|bmp|tiff?|heic|ico)$", re.IGNORECASE)
_GENERIC = frozenset(
    {
        *("image", "img", "picture", "pic", "photo", "photograph", "graphic", "graphics", "figure"),
        *("icon", "logo", "banner", "spacer", "alt", "alt text", "alternative text", "untitled"),
        *("placeholder", "screenshot", "thumbnail", "thumb", "null", "none", "undefined", "todo"),
        *("bild", "foto", "abbildung", "grafik", "symbol", "bildbeschreibung", "ohne titel"),
        *("imagen", "fotografía", "imagem", "fotografia", "immagine", "figura", "ilustração"),
        *("photographie", "illustration", "illustrazione", "afbeelding", "plaatje", "obrázek"),
    }
)
_CAMERA = re.compile(
    r"(?:img|dsc[nf]?|pxl|p|image|picture|photo|bild|foto|screen ?shot|untitled|scan|wp|mvimg)"
    r"[-_ ]*[0-9][-_ 0-9]*",
    re.IGNORECASE,
)
_KIND = (
    r"(?:image|picture|photo|photograph|pic|graphic|illustration|drawing)s?",
    r"(?:bild|foto|abbildung|grafik)",
    r"(?:image|photo|photographie)",
    r"(?:imagen|foto|fotografía)",
    r"(?:immagine|foto|fotografia)",
    r"(?:imagem|foto|fotografia)",
)
_OF = (
    r"of|showing|that shows", r"von|mit|vom", r"de|d['’]|du|des", r"de|del",
    r"di|del|della|dell['’]", r"de|do|da",
)  # fmt: skip
_ARTICLE = r"(?:(?:the|a|an|das|ein|eine|une?|l['’]|la|una?|un|uma?|il)\s+|l['’])?"
_OPENING = re.compile(
    rf"{_ARTICLE}(?:"
    + "|".join(rf"{kind}\s+(?:{of})(?:\s+|(?<=['’]))" for kind, of in zip(_KIND, _OF, strict=True))
    + r"|(?:image|picture|photo)\s+shows?\s+|bild\s+zeigt\s+)",
    re.IGNORECASE,
)
_WITH_TEXT = {
    "en": "with the text",
    "de": "mit dem Text",
    "es": "con el texto",
    "fr": "avec le texte",
    "it": "con il testo",
    "nl": "met de tekst",
    "pt": "com o texto",
}
LONGEST_TEXT = 100
"""Characters of read text that are repeated in an alternative text; more belongs on the page."""


def doubt_about(alt: str, addresses: Sequence[str]) -> str | None:
    """What is wrong with an alternative text that is not empty; None if nothing is.

    >>> doubt_about("IMG_2041.jpg", []), doubt_about("a frog", ["frog.png"])
    ('a file name', None)
    """
    text = one_line(alt).strip("\u00a0 .:-_*")
    if not text:
        return "blank"
    names = [_file_name(address) for address in addresses]
    if _SUFFIX.search(text) or any(_names_the_file(text, name) for name in names):
        return "a file name"
    if _CAMERA.fullmatch(text):
        return "a file name"
    if re.match(r"(?:https?://|www\.|data:)\S+$", text, re.IGNORECASE):
        return "an address"
    if re.fullmatch(r"[0-9a-f-]{16,}", text, re.IGNORECASE):
        return "an identifier"
    if text.casefold() in _GENERIC:
        return f"says only {text.casefold()!r}"
    if opening := _OPENING.match(text):
        return f"begins with {one_line(opening[0])!r}"
    return None


def _file_name(address: str) -> str:
    try:
        path = urlsplit(address).path
    except ValueError:
        return ""
    return "" if address[:5].lower() == "data:" else unquote(PurePosixPath(path).name)


def _names_the_file(alt: str, file: str) -> bool:
    """Whether it repeats the file's name, unless that is a word: "frog" of frog.png is one."""
    stem = _SUFFIX.sub("", file)
    is_name = re.search(r"[-_0-9]", stem) is not None and " " not in stem
    return bool(stem) and (alt == file or (is_name and alt.casefold() == stem.casefold()))


def alt_of_caption(caption: str) -> str:
    """A caption as an alternative text: without "a picture of", beginning with a capital.

    >>> alt_of_caption("A picture of two frogs.")
    'Two frogs'
    """
    text = one_line(caption).rstrip(" .")
    text = _OPENING.sub("", text, count=1) or text
    return text[:1].upper() + text[1:]


def with_text(alt: str, text: str, language: str) -> str:
    """The alternative text and what can be read in the image.

    >>> with_text("Two frogs", "SOFA", "en"), with_text("", "SOFA", "en")
    ('Two frogs, with the text “SOFA”', 'SOFA')
    """
    if not text or _plain(text) in _plain(alt):
        return alt
    if not alt:
        return text
    words = _WITH_TEXT.get(language[:2])
    return f"{alt}, {words} “{text}”" if words else f"{alt}: “{text}”"


def _plain(text: str) -> str:
    return re.sub(r"[\W_]+", " ", text.casefold()).strip()
