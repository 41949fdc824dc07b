"""The bytes of a page as text, and back without changing one.

The encoding is found as browsers find it
(https://html.spec.whatwg.org/multipage/parsing.html#determining-the-character-encoding): a byte
order mark, then what a `<meta>` or an XML declaration in the first 1024 bytes says, else UTF-8 if
the bytes are valid UTF-8, else Windows-1252.
"""

from __future__ import annotations

import codecs
import re

from paligemma.errors import InputError

_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_META = re.compile(
    rb"<meta[\s/][^>]{0,400}?charset\s*=\s*[\"']?\s*([A-Za-z0-9_.:+-]{2,40})", re.IGNORECASE
)
_XML = re.compile(rb"<\?xml[^>]{0,100}?encoding\s*=\s*[\"']([A-Za-z0-9_.:+-]{2,40})")
_COMMENT = re.compile(rb"<!--.*?(?:-->|\Z)", re.DOTALL)
_DECLARED_WITHIN = 1024

# By the names that Python gives to them. Where browsers read a label as a larger code page, that.
_READ_AS = {
    "ascii": "cp1252",
    "iso8859-1": "cp1252",
    "iso8859-9": "cp1254",
    "iso8859-11": "cp874",
    "tis-620": "cp874",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "big5": "big5hkscs",
    "shift_jis": "cp932",
    "euc_kr": "cp949",
    "utf-16": "utf-8",  # a page whose declaration can be read as ASCII is not UTF-16
    "utf-16-le": "utf-8",
    "utf-16-be": "utf-8",
}
_READABLE = frozenset(
    {
        *("utf-8", "gb18030", "big5hkscs", "cp932", "euc_jp", "iso2022_jp", "cp949"),
        *("koi8-r", "koi8-u", "mac-roman", "mac-cyrillic", "cp866", "cp874"),
        *(f"iso8859-{number}" for number in (2, 3, 4, 5, 6, 7, 8, 10, 13, 14, 15, 16)),
        *(f"cp{number}" for number in range(1250, 1259)),
    }
)


def decode(data: bytes) -> tuple[str, str]:
    """The text and the name of its encoding; `encode` gives the same bytes again.

    Bytes that are wrong in the encoding become lone surrogates. Raises InputError for a text that
    cannot be written back byte for byte.
    """
    encoding = _encoding(data)
    try:
        text = data.decode(encoding, "surrogateescape")
        is_same = encode(text, encoding) == data
    except UnicodeError:
        is_same = False
    if not is_same:
        raise InputError(
            f"The page is not valid {encoding}, which it declares, so that it cannot be changed "
            "without changing other parts. Save it as UTF-8."
        )
    return text, encoding


def encode(text: str, encoding: str) -> bytes:
    """The bytes of a text; see `decode`."""
    return text.encode(encoding, "surrogateescape")


def writable(text: str, encoding: str) -> str:
    """The text as a page of this encoding can hold it.

    Character references mean the same in every encoding, also in one that is declared wrongly.

    >>> writable("Grün ✓", "cp1252"), writable("Grün ✓", "utf-8")
    ('Gr&#252;n &#10003;', 'Grün ✓')
    """
    if encoding.startswith("utf"):
        return text
    return text.encode("ascii", "xmlcharrefreplace").decode("ascii")


def _encoding(data: bytes) -> str:
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return encoding
    head = _COMMENT.sub(b"", data[:_DECLARED_WITHIN])
    if (declared := _XML.match(head) or _META.search(head)) and (
        known := _known(declared[1].decode("ascii"))
    ):
        return known
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return "cp1252"
    return "utf-8"


def _known(label: str) -> str | None:
    """What browsers read for a label; None for one that they do not know."""
    try:
        name = codecs.lookup(label).name
    except LookupError:
        return None
    name = _READ_AS.get(name, name)
    return name if name in _READABLE else None
