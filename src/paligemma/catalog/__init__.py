"""Catalogs: the attributes of articles, read from their photos into a table.

>>> articles = build_catalog(model, "photos", "product", "catalog.csv")   # doctest: +SKIP
>>> articles[0].values, articles[0].cells["color"].score                  # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from paligemma.lazy_names import lazy_names

if TYPE_CHECKING:
    from paligemma.catalog.articles import Article as Article
    from paligemma.catalog.articles import Cell as Cell
    from paligemma.catalog.build import CatalogOptions as CatalogOptions
    from paligemma.catalog.build import build_catalog as build_catalog
else:
    __getattr__, __dir__, __all__ = lazy_names(__name__)
