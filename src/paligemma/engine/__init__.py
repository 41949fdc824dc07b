"""Inputs to token ids. Knows no text.

sampling.py       logits to the next id: sampling, and grammars that restrict it
generate.py       the plain loop; everything faster must equal it
beam.py           the likeliest whole sequence, by beams
score.py          how likely a given suffix is

Many requests at once:

engine.py         add, step, run, stream
scheduler.py      who is prefilled next and who decodes
request.py        one request, how far it has come, and why it stopped
image_cache.py    image tokens of pictures seen before
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from paligemma.lazy_names import lazy_names

if TYPE_CHECKING:
    from paligemma.engine.beam import beam_search as beam_search
    from paligemma.engine.engine import Engine as Engine
    from paligemma.engine.engine import Event as Event
    from paligemma.engine.engine import FinishedRequest as FinishedRequest
    from paligemma.engine.image_cache import ImageCache as ImageCache
    from paligemma.engine.image_cache import KeyedImage as KeyedImage
    from paligemma.engine.request import Request as Request
    from paligemma.engine.request import TopLogprob as TopLogprob
    from paligemma.engine.sampling import GREEDY as GREEDY
    from paligemma.engine.sampling import Constraint as Constraint
    from paligemma.engine.sampling import Sampling as Sampling
else:
    __getattr__, __dir__, __all__ = lazy_names(
        __name__,
        {
            "engine": ("Engine", "Event", "FinishedRequest"),
            "request": ("Request", "TopLogprob"),
            "image_cache": ("ImageCache", "KeyedImage"),
            "sampling": ("GREEDY", "Constraint", "Sampling"),
            "beam": ("beam_search",),
        },
    )
