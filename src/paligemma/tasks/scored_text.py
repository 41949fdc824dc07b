"""The text of an answer with the probability of each of its parts."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from paligemma.tasks.objects import TokenReader, before_eos, joint_probability

LOCATION = "\ue000"
"""Stands for a location token in `ScoredText.text`, where nothing else is this character."""
_UNKNOWN = "\ufffd"
_MAX_BYTES = 4  # of a character in UTF-8


class ScoredTokens(Protocol):
    """An answer as tokens, such as `results.Generation` or `results.Text`."""

    @property
    def token_ids(self) -> Sequence[int]: ...
    @property
    def logprobs(self) -> Sequence[float]: ...


@dataclass(frozen=True, kw_only=True)
class ScoredText:
    """A text, the tokens that it is made of, and their log-probabilities."""

    text: str
    starts: tuple[int, ...]
    """Where each token begins in the text; some are part of a character."""
    logprobs: tuple[float, ...]
    """One per token, and one for the end, if the model ended the text."""
    locations: dict[int, int]
    """Index of a location in the text -> its bin, 0 to 1023."""

    @classmethod
    def of(cls, generated: ScoredTokens, tokenizer: TokenReader) -> ScoredText:
        """The text up to EOS. Takes time in proportion to its length."""
        ids = before_eos(generated.token_ids, tokenizer)
        pieces: list[str] = []
        starts: list[int] = []
        locations: dict[int, int] = {}
        length = 0
        context: list[int] = []
        pending: list[int] = []
        for index, token_id in enumerate(ids):
            starts.append(length)
            if tokenizer.is_loc(token_id):
                locations[length] = token_id - tokenizer.loc_offset
                piece, context, pending = LOCATION, [token_id], []
            else:
                pending.append(token_id)
                piece = _text_after(context, pending, tokenizer)
                is_last = index + 1 == len(ids) or tokenizer.is_loc(ids[index + 1])
                if piece.endswith(_UNKNOWN) and len(pending) < _MAX_BYTES and not is_last:
                    continue  # the rest of the character follows
                piece = piece.replace(LOCATION, _UNKNOWN)
                context, pending = pending, []
            pieces.append(piece)
            length += len(piece)
        return cls(
            text="".join(pieces),
            starts=tuple(starts),
            logprobs=tuple(generated.logprobs),
            locations=locations,
        )

    def tokens(self, start: int, end: int) -> tuple[int, int]:
        """[first, last) of the tokens that a part of the text is in; at the end, with EOS."""
        first = max(0, bisect.bisect_right(self.starts, start) - 1)
        while first and self.starts[first - 1] == self.starts[first]:
            first -= 1  # all bytes of the character
        last = bisect.bisect_left(self.starts, end) if end <= len(self.text) else len(self.logprobs)
        return first, max(first, last)

    def probability(self, start: int, end: int) -> float:
        """Of the tokens that text[start:end] is in; an `end` beyond the text includes EOS."""
        first, last = self.tokens(start, end)
        return joint_probability(self.logprobs[first:last])

    def mean_probability(self, start: int, end: int) -> float:
        """The geometric mean over the tokens that text[start:end] is in; 0.0 without any."""
        first, last = self.tokens(start, end)
        logprobs = self.logprobs[first:last]
        return math.exp(math.fsum(logprobs) / len(logprobs)) if logprobs else 0.0

    def written(self, start: int, end: int) -> str:
        """text[start:end] with its locations as they are written, such as <loc0512>."""
        text = self.text[start:end]
        if not self.locations or LOCATION not in text:
            return text
        return "".join(
            f"<loc{self.locations[index]:04d}>" if index in self.locations else character
            for index, character in enumerate(text, start=start)
        )

    def bins(self, start: int, end: int) -> list[int]:
        """The locations in text[start:end]."""
        return [self.locations[i] for i in range(start, end) if i in self.locations]


def _text_after(context: Sequence[int], ids: Sequence[int], tokenizer: TokenReader) -> str:
    """The text of `ids` after `context`: at the very start, a piece may be written differently."""
    if not context:
        return tokenizer.detokenize(list(ids))
    length = len(tokenizer.detokenize(context))
    return tokenizer.detokenize(list(itertools.chain(context, ids)))[length:]
