"""Order what was found by how likely the model finds the query for each picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from paligemma.answering import ImageQuery, Query
from paligemma.documents.asker import Asker
from paligemma.errors import ImageError
from paligemma.ranking import RankOptions
from paligemma.search.find import Hit


def rerank(model: Asker, hits: Sequence[Hit], query: str, *, language: str = "en") -> list[Hit]:
    """The hits, the likeliest first, with `likelihood`: P(yes) of "is there {query}?".

    Costs one question per hit. A picture that is gone or damaged comes last, without a likelihood.
    """
    task = RankOptions(question="is there {label}?", language=language).task(query.strip())
    asked = (ImageQuery(images=(Path(hit.path),), query=Query(task=task)) for hit in hits)
    found = []
    for hit, answer in zip(hits, model.answer(asked), strict=True):
        if isinstance(answer, Exception) and not isinstance(answer, ImageError):
            raise answer
        is_read = not isinstance(answer, ImageError)
        found.append(replace(hit, likelihood=round(answer.yes, 4) if is_read else None))
    return sorted(found, key=lambda hit: (hit.likelihood is None, -(hit.likelihood or 0.0)))
