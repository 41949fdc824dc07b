"""Order what was found by how likely the model finds the query for each picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from paligemma.errors import ImageError
from paligemma.search.find import Hit

if TYPE_CHECKING:
    from paligemma.results import Score


class Scorer(Protocol):
    """A loaded model, such as a `Predictor`."""

    def score(self, images: Any, prompt: str, suffix: list[str]) -> list[Score]:
        """How probable each text is after a prompt about an image."""
        ...


def rerank(model: Scorer, hits: Sequence[Hit], query: str, *, language: str = "en") -> list[Hit]:
    """The hits, the likeliest first, with `likelihood`: P(yes) of "is there {query}?".

    Costs one question per hit. A picture that is gone or damaged comes last, without a likelihood.
    """
    prompt = f"answer {language} is there {query.strip()}?"
    found = [replace(hit, likelihood=_likelihood(model, hit, prompt)) for hit in hits]
    return sorted(found, key=lambda hit: (hit.likelihood is None, -(hit.likelihood or 0.0)))


def _likelihood(model: Scorer, hit: Hit, prompt: str) -> float | None:
    try:
        yes, no = model.score(Path(hit.path), prompt, ["yes", "no"])
    except ImageError:
        return None
    return round(1 / (1 + math.exp(min(700.0, no.total - yes.total))), 4)
