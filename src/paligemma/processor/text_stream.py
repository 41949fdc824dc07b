"""The text of a row while its tokens come: whole characters only, up to the first stop string.

Knows token ids and text; knows no model and not why tokens come.
"""

from __future__ import annotations

from paligemma.processor.tokenizer import StreamDetokenizer, Tokenizer


class GrowingText:
    """One row's text; what was taken is never taken back."""

    def __init__(self, tokenizer: Tokenizer, stop: tuple[str, ...]) -> None:
        self._detokenizer = StreamDetokenizer(tokenizer)
        self._stop = stop
        self._text = ""
        self._has_ended = False
        self._num_taken = 0

    def push(self, token_id: int) -> bool:
        """Take in a token; True when the text has come to a stop string."""
        return self._add(self._detokenizer.push(token_id))

    @property
    def text(self) -> str:
        """All of it so far, whether taken or not."""
        return self._text

    def take(self) -> str:
        """What is new and certain."""
        held = max((self._overlap(stop) for stop in self._stop), default=0)
        return self._take_up_to(len(self._text) - held)

    def take_rest(self) -> str:
        """Everything left, when no more tokens come."""
        self._add(self._detokenizer.finish())
        return self._take_up_to(len(self._text))

    def _add(self, piece: str) -> bool:
        if self._has_ended:
            return True
        self._text += piece
        found = [at for at in map(self._text.find, self._stop) if at >= 0]
        if found:
            self._text = self._text[: min(found)]
            self._has_ended = True
        return self._has_ended

    def _overlap(self, stop: str) -> int:
        """Length of the longest end of the text that may become `stop`."""
        lengths = range(min(len(stop) - 1, len(self._text)), 0, -1)
        return next((n for n in lengths if self._text.endswith(stop[:n])), 0)

    def _take_up_to(self, end: int) -> str:
        start, self._num_taken = self._num_taken, max(end, self._num_taken)
        return self._text[start : self._num_taken]
