"""Alternative texts for the images of web pages and for folders of pictures.

>>> for found in describe_pages(model, pages_below("site"), root="site"):   # doctest: +SKIP
...     print([(a.line, a.image, a.alt, a.score) for a in found.alternatives])
...     found.write()
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from paligemma.lazy_names import lazy_names

if TYPE_CHECKING:
    from paligemma.alt.pages import Alternative as Alternative
    from paligemma.alt.pages import PageAlternatives as PageAlternatives
    from paligemma.alt.propose import AltOptions as AltOptions
    from paligemma.alt.propose import describe_pages as describe_pages
    from paligemma.alt.propose import describe_pictures as describe_pictures
    from paligemma.alt.propose import pages_below as pages_below
else:
    __getattr__, __dir__, __all__ = lazy_names(__name__)
