"""Search for pictures by words: an index of captions, read text and labels in one file.

>>> build_index(model, "pictures", "index.db")                       # doctest: +SKIP
>>> with Index.open("index.db") as index:                            # doctest: +SKIP
...     for hit in index.search("receipt from Paris"):
...         print(hit.path, hit.matches)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from paligemma.lazy_names import lazy_names

if TYPE_CHECKING:
    from paligemma.search.build import IndexOptions as IndexOptions
    from paligemma.search.build import build_index as build_index
    from paligemma.search.find import Hit as Hit
    from paligemma.search.find import Index as Index
    from paligemma.search.find import Match as Match
    from paligemma.search.likelihood import rerank as rerank
else:
    __getattr__, __dir__, __all__ = lazy_names(__name__)
