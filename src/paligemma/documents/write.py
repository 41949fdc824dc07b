"""The text of a document as plain text, JSON, hOCR and ALTO."""

from __future__ import annotations

import html
import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from xml.sax.saxutils import quoteattr

from paligemma.documents.direction import order_on_page
from paligemma.documents.geometry import Box, is_turned, union
from paligemma.documents.read import DocumentText, Line, PageText

_NOT_IN_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_DOTS_PER_INCH = 300  # of the pixels in which hOCR and ALTO say where something is on a PDF page


def to_txt(text: DocumentText) -> str:
    """The lines, and a form feed between pages."""
    return text.text + "\n"


def to_json(text: DocumentText) -> str:
    """All that is known, as JSON."""
    return json.dumps(text.to_dict(), ensure_ascii=False, allow_nan=False, indent=1) + "\n"


def to_hocr(text: DocumentText, *, language: str | None = None) -> str:
    """hOCR 1.2: XHTML in which every line and word has its box.

    Boxes are in pixels: those of the image, or 300 per inch of a PDF page.
    """
    lang = f" lang={_attribute(language)} xml:lang={_attribute(language)}" if language else ""
    parts = [
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        '<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.0 Transitional//EN" '
        '"http://www.w3.org/TR/xhtml1/DTD/xhtml1-transitional.dtd">\n'
        f'<html xmlns="http://www.w3.org/1999/xhtml"{lang}>\n<head>\n'
        f"<title>{_escaped(text.name)}</title>\n"
        '<meta http-equiv="Content-Type" content="text/html; charset=utf-8" />\n'
        f'<meta name="ocr-system" content={_attribute(_software(text))} />\n'
        '<meta name="ocr-capabilities" content="ocr_page ocr_line ocrx_word" />\n'
        "</head>\n<body>\n"
    ]
    for index, page in enumerate(text.pages):
        scale = _scale(page)
        image = _attribute(
            f"image {json.dumps(text.name, ensure_ascii=False)}; bbox "
            f"{_pixels((0, 0, *page.size_wh), scale)}; ppageno {page.page - 1}{_resolution(page)}"
        )
        parts.append(f'<div class="ocr_page" id="page_{page.page}" title={image}>\n')
        for number, line in enumerate(page.lines, start=1):
            name = f"{index + 1}_{number}"
            parts.append(
                f'<span class="ocr_line" id="line_{name}" '
                f'title="bbox {_pixels(line.box_xyxy, scale)}{_textangle(line)}">'
            )
            words = [
                f'<span class="ocrx_word" id="word_{name}_{at}" '
                f'title="bbox {_pixels(box, scale)}{_confidence(line)}">{_escaped(word)}</span>'
                for at, (word, box) in enumerate(words_of_line(line), start=1)
            ]
            parts.append(" ".join(words) + "</span>\n")
        parts.append("</div>\n")
    parts.append("</body>\n</html>\n")
    return "".join(parts)


def to_alto(text: DocumentText) -> str:
    """ALTO 4.4, as libraries and archives use it: a page, its print space, lines and words.

    Places are in pixels: those of the image, or 300 per inch of a PDF page.
    """
    parts = [
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        '<alto xmlns="http://www.loc.gov/standards/alto/ns-v4#" '
        'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" '
        'xsi:schemaLocation="http://www.loc.gov/standards/alto/ns-v4# '
        'http://www.loc.gov/standards/alto/v4/alto-4-4.xsd" SCHEMAVERSION="4.4">\n'
        "<Description>\n<MeasurementUnit>pixel</MeasurementUnit>\n"
        f"<sourceImageInformation><fileName>{_escaped(text.name)}</fileName>"
        "</sourceImageInformation>\n"
        '<Processing ID="OCR_0"><processingSoftware><softwareName>'
        f"{_escaped(_software(text))}</softwareName></processingSoftware></Processing>\n"
        "</Description>\n<Layout>\n"
    ]
    for page in text.pages:
        scale = _scale(page)
        width, height = (round(side * scale) for side in page.size_wh)
        number = page.page
        parts.append(
            f'<Page ID="page_{number}" PHYSICAL_IMG_NR="{number}" WIDTH="{width}" '
            f'HEIGHT="{height}">\n<PrintSpace ID="space_{number}" HPOS="0" VPOS="0" '
            f'WIDTH="{width}" HEIGHT="{height}">\n'
        )
        blocks = itertools.groupby(enumerate(page.lines, start=1), key=lambda at: at[1].angle)
        for block, (angle, lines) in enumerate(blocks, start=1):
            parts.append(_alto_block(f"{number}_{block}", angle, dict(lines), number, scale))
        parts.append("</PrintSpace>\n</Page>\n")
    parts.append("</Layout>\n</alto>\n")
    return "".join(parts)


def _alto_block(name: str, angle: float, lines: Mapping[int, Line], page: int, scale: float) -> str:
    """Lines that run in the same direction, by their numbers."""
    around = union([line.box_xyxy for line in lines.values()])
    rotation = f' ROTATION="{angle:g}"' if angle else ""
    parts = [f'<TextBlock ID="block_{name}"{rotation} {_alto_place(around, scale)}>\n']
    for number, line in lines.items():
        name = f"{page}_{number}"
        parts.append(f'<TextLine ID="line_{name}" {_alto_place(line.box_xyxy, scale)}>')
        certainty = "" if line.score is None else f' WC="{line.score:.4f}"'
        strings = [
            f'<String ID="string_{name}_{at}" CONTENT={_attribute(word)}{certainty} '
            f"{_alto_place(box, scale)}/>"
            for at, (word, box) in enumerate(words_of_line(line), start=1)
        ]
        parts.append("<SP/>".join(strings) + "</TextLine>\n")
    parts.append("</TextBlock>\n")
    return "".join(parts)


def words_of_line(line: Line) -> Iterator[tuple[str, Box]]:
    """The words of a line, each with the part of its box that it takes by its length."""
    text = " ".join(line.text.split())
    length = max(1, len(text))
    places = {index: place for place, index in enumerate(order_on_page(text))}
    x0, y0, x1, y1 = line.box_xyxy
    across, up = _extent(line.angle, x1 - x0, y1 - y0, length)
    for word in re.finditer(r"\S+", text):
        taken = [places[index] for index in range(*word.span())]
        before, after = min(taken) / length, 1 - (max(taken) + 1) / length
        left, right = (before, after) if across >= 0 else (after, before)
        top, bottom = (after, before) if up >= 0 else (before, after)
        yield (
            word[0],
            (
                x0 + left * abs(across),
                y0 + top * abs(up),
                x1 - right * abs(across),
                y1 - bottom * abs(up),
            ),
        )


def _extent(angle: float, width: float, height: float, num_letters: int) -> tuple[float, float]:
    """How far a line in a box of this size runs to the right and upwards.

    The box of a slanted line shows its length and the height of its print in one: letters are taken
    to be half as wide as high.
    """
    quarter = 90 * round(angle / 90)
    cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    if not is_turned(angle - quarter):
        return (
            (math.copysign(width, cosine), 0.0)
            if quarter % 180 == 0
            else (
                0.0,
                math.copysign(height, sine),
            )
        )
    length = (width + height) / ((abs(cosine) + abs(sine)) * (1 + 2 / num_letters))
    return (
        math.copysign(min(width, length * abs(cosine)), cosine),
        math.copysign(min(height, length * abs(sine)), sine),
    )


def _scale(page: PageText) -> float:
    return 1.0 if page.unit == "px" else _DOTS_PER_INCH / 72


def _resolution(page: PageText) -> str:
    """That of the pixels that stand for points; what an image was scanned at is not known."""
    return "" if page.unit == "px" else f"; scan_res {_DOTS_PER_INCH} {_DOTS_PER_INCH}"


def _pixels(box: Sequence[float], scale: float) -> str:
    return " ".join(str(max(0, round(value * scale))) for value in box)


def _alto_place(box: Box, scale: float) -> str:
    x0, y0, x1, y1 = (max(0, round(value * scale)) for value in box)
    return f'HPOS="{x0}" VPOS="{y0}" WIDTH="{x1 - x0}" HEIGHT="{y1 - y0}"'


def _confidence(line: Line) -> str:
    return "" if line.score is None else f"; x_wconf {round(100 * line.score)}"


def _textangle(line: Line) -> str:
    return f"; textangle {line.angle:g}" if line.angle else ""


def _software(text: DocumentText) -> str:
    return "paligemma" if text.source == "model" else "paligemma (text layer of the file)"


def _escaped(text: str) -> str:
    """Text for XML, in which most control characters must not occur at all."""
    return html.escape(_NOT_IN_XML.sub("\ufffd", text), quote=False)


def _attribute(text: str) -> str:
    return quoteattr(_NOT_IN_XML.sub("\ufffd", text))


WRITERS: dict[str, Any] = {"txt": to_txt, "json": to_json, "hocr": to_hocr, "alto": to_alto}
