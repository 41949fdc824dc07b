"""Generation: model inputs to token ids.

sampling.py       logits to the next id: sampling, and grammars that constrain it
generate.py       the reference loop, which everything faster must match; scores of given suffixes
beam.py           beam search

Many requests at once (continuous batching):

engine.py         the engine: add, step, run, stream
runner.py         the engine's calls of the model
scheduler.py      which requests are prefilled next, and which decode
request.py        one request and its state
image_cache.py    caches of image tokens
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
    __getattr__, __dir__, __all__ = lazy_names(__name__)
