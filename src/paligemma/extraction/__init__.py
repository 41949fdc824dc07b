"""Extraction: typed values from documents, each with a score, a place and the question asked.

>>> found = extract(model, "rx.pdf", "prescription")                    # doctest: +SKIP
>>> found["medicines[0].dose"].value, found.unsure(0.6), found.missing  # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from paligemma.lazy_names import lazy_names

if TYPE_CHECKING:
    from paligemma.extraction.asking import extract as extract
    from paligemma.extraction.asking import list_questions as list_questions
    from paligemma.extraction.builtin import Iban as Iban
    from paligemma.extraction.builtin import Mrz as Mrz
    from paligemma.extraction.builtin import VatNumber as VatNumber
    from paligemma.extraction.options import ExtractOptions as ExtractOptions
    from paligemma.extraction.result import Extraction as Extraction
    from paligemma.extraction.result import Field as Field
    from paligemma.extraction.result import Match as Match
    from paligemma.extraction.schema import Leaf as Leaf
    from paligemma.extraction.schema import Schema as Schema
    from paligemma.extraction.schema import read_schema as read_schema
else:
    __getattr__, __dir__, __all__ = lazy_names(__name__)
