"""A process that reads documents, one after the other: the program.

python -m paligemma.documents.child '{"memory_bytes": ..., ...}'
"""

from __future__ import annotations

import io
import json
import sys
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import PIL.TiffImagePlugin  # noqa: F401 - before the limits are set

from paligemma.documents.open import document_of, open_here
from paligemma.documents.page import DocumentLimits, PageSource
from paligemma.documents.pdf import PdfFile
from paligemma.documents.remote import MAX_ATTACHMENTS, MAX_WORDS
from paligemma.errors import DocumentError, InputError, MissingExtraError
from paligemma.sandbox.child import serve
from paligemma.sandbox.frames import frame


class _File(io.BytesIO):
    name = "the document"  # what errors call it


class _Reader:
    """Answers requests about one document after the other."""

    errors = (InputError, MissingExtraError)

    def __init__(self) -> None:
        with suppress(ImportError):  # without the extra "docs": TIFF files and images alone
            import pypdfium2  # noqa: F401 - before the limits are set
        self._document: Any = None

    def answer(self, request: dict[str, Any], payload: bytes) -> bytes:
        call = request["call"]
        if call in ("open", "close") and self._document is not None:
            self._document.close()
            self._document = None
        if call == "close":
            return frame({})
        if call == "open":
            return self._open(request, payload)
        source = self._document.source
        if call == "attachments":
            names = [each.name for each in source.attachments()[:MAX_ATTACHMENTS]]
            return frame({"names": names})
        if call == "searchable":
            return frame({}, self._searchable(json.loads(payload)))
        index = request["index"]
        if call == "attachment":
            return frame({}, source.attachments()[index].data())
        if call == "size":
            return frame({"size_wh": source.size_wh(index)})
        if call == "words":
            return self._words(index)
        image = source.render(index, tuple(request["box_xyxy"]), tuple(request["size_wh"]))
        return frame({"size_wh": image.size}, image.tobytes())

    def _open(self, request: dict[str, Any], payload: bytes) -> bytes:
        """A document of any kind, or a PDF file by its path or contents with its name."""
        # How many pages may be read is checked by the other process, which knows which are meant.
        limits, password = DocumentLimits(**request["limits"]), request["password"]
        if "name" in request:
            data = Path(request["path"]) if "path" in request else payload
            source: PageSource = PdfFile(data, request["name"], password, limits)
            self._document = document_of(source, request["name"], limits)
        else:
            self._document = open_here(_File(payload), password, limits)
            source = self._document.source
        return frame({"num_pages": source.num_pages, "unit": source.unit})

    def _searchable(self, pages: list[dict[str, Any]]) -> bytes:
        from paligemma.documents.searchable import to_searchable_pdf

        texts = [
            SimpleNamespace(
                **{**page, "lines": [SimpleNamespace(**line) for line in page["lines"]]}
            )
            for page in pages
        ]
        # Not as the classes of the text: they need the model's package.
        return to_searchable_pdf(self._document, SimpleNamespace(pages=texts))  # type: ignore[arg-type]

    def _words(self, index: int) -> bytes:
        words, turn = self._document.source.words(index)
        if len(words) > MAX_WORDS:
            raise DocumentError(
                f"Page {index + 1} of {self._document.name} has {len(words):,} words; the limit is "
                f"{MAX_WORDS:,}. Leave it out with the option for pages."
            )
        rows = [
            [word.text, *word.box_xyxy, word.x_height, word.turn, word.slant, word.is_filled_in]
            for word in words
        ]
        return frame({"words": rows, "turn": turn})


if __name__ == "__main__":
    serve(_Reader, sys.argv[1])
