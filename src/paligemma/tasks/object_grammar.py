"""The grammar of object lists, as an automaton over token ids that constrains decoding.

    output  = EOS | object (separator object)* [separator] EOS
    object  = y1 x1 y2 x2 [16 seg] label            y1 < y2, x1 < x2

A list ends where it would repeat an object, or at `max_objects`, and not before `min_objects`.
`objects.py` parses everything that the grammar allows without problems. `ObjectList` implements
the engine's `Constraint` protocol.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from paligemma.config import NUM_CODES_PER_MASK, NUM_LOC_TOKENS, NUM_SEG_TOKENS
from paligemma.errors import OptionError, PromptError, check_whole
from paligemma.tasks.objects import NUM_LOCS, SEPARATOR, TokenReader

LabelRule = Literal["asked", "any"]
MAX_OBJECTS = 100
_MAX_LABEL_TOKENS = 32
_USUAL_LABEL_TOKENS = 8  # tokens of a label that the model chooses; few labels are longer
_Ids = tuple[int, ...]


class TokenWriter(TokenReader, Protocol):
    """The part of a tokenizer that grammars use."""

    @property
    def unk_id(self) -> int:
        """The last of the control ids, which come first in the vocabulary."""

    def tokenize_text(self, text: str, /) -> list[int]: ...


class Labels(Protocol):
    """The labels allowed after a box; `tail` is what was written since: label and separator."""

    @property
    def only(self) -> str | None:
        """The label, if only one is possible."""

    @property
    def usual_length(self) -> int:
        """The number of tokens to expect per label, with its separator."""

    def name(self, tail: _Ids, /) -> str | None:
        """Return the label if it is complete, so that the list may end here; else None."""

    def closed(self, tail: _Ids, /) -> str | None:
        """Return the label if a separator has closed it; else None."""

    def after(self, tail: _Ids, /, *, may_close: bool) -> tuple[int | range, ...]:
        """Return the ids that continue the label or, if it may be closed, begin the separator."""


class AskedLabels:
    """Exactly the phrases asked for, as the tokenizer writes them.

    A single phrase may be omitted, as models tuned on referring expressions do.
    """

    def __init__(self, phrases: Sequence[str], tokenizer: TokenWriter) -> None:
        """Raises PromptError for a phrase that contains location or mask tokens."""
        separator = tuple(tokenizer.tokenize_text(SEPARATOR))
        self.only = phrases[0] if len(phrases) == 1 else None
        self._names = {tuple(tokenizer.tokenize_text(f" {phrase}")): phrase for phrase in phrases}
        for ids, phrase in self._names.items():
            if any(tokenizer.is_loc(i) or tokenizer.is_seg(i) for i in ids):
                raise PromptError(
                    f"The phrase is {phrase!r}. Phrases must not contain location tokens: "
                    "describe the object in words."
                )
        if self.only is not None:
            self._names[()] = self.only
        self._closed = {ids + separator: name for ids, name in self._names.items()}
        self.usual_length = max(map(len, self._closed))
        self._longer = _next_ids(self._names)
        self._after = _next_ids([*self._names, *self._closed])

    def name(self, tail: _Ids, /) -> str | None:
        return self._names.get(tail)

    def closed(self, tail: _Ids, /) -> str | None:
        return self._closed.get(tail)

    def after(self, tail: _Ids, /, *, may_close: bool) -> _Ids:
        return (self._after if may_close else self._longer).get(tail, ())


class AnyLabels:
    """Any single-line text of at most 32 tokens, or none."""

    only = None

    def __init__(self, tokenizer: TokenWriter) -> None:
        self._tokenizer = tokenizer
        self._separator = tokenizer.tokenize_text(SEPARATOR)
        self.usual_length = _USUAL_LABEL_TOKENS + len(self._separator)
        self._space = tokenizer.tokenize_text(" ")[0]
        first_location = min(tokenizer.loc_offset, tokenizer.seg_offset)
        # Gemma has tokens for up to 31 line breaks in a row.
        breaks = {i for n in range(1, 32) for i in tokenizer.tokenize_text("\n" * n)}
        self._text = _without(range(tokenizer.unk_id + 1, first_location), breaks)

    def name(self, tail: _Ids, /) -> str:
        return self._tokenizer.detokenize(tail).strip().removesuffix(";").rstrip()

    def closed(self, tail: _Ids, /) -> str | None:
        label, separator, _ = self._tokenizer.detokenize(tail).partition(SEPARATOR)
        return label.strip() if separator else None

    def after(self, tail: _Ids, /, *, may_close: bool) -> tuple[int | range, ...]:
        if self._tokenizer.detokenize(tail).endswith(SEPARATOR.rstrip()):
            return (self._space,)
        if (num_more := len(tail) - _MAX_LABEL_TOKENS) >= 0:
            return (self._separator[num_more],)
        return self._text


@dataclass(frozen=True, kw_only=True)
class ObjectGrammar:
    """The constant part of an `ObjectList`."""

    eos_id: int
    places: range
    codes: range | None  # mask tokens, or None for boxes alone
    labels: Labels
    max_objects: int
    min_objects: int = 0


@dataclass(frozen=True, kw_only=True)
class ObjectList:
    """A state of the grammar: the current object and the objects before it."""

    grammar: ObjectGrammar
    box: _Ids = ()  # bins of the current object's box written so far
    num_codes: int = 0
    tail: _Ids = ()
    written: frozenset[tuple[str, _Ids]] = frozenset()
    """Label and box of each object before the current one."""
    is_over: bool = False

    @property
    def usual_length(self) -> int:
        """The number of tokens of a list of `max_objects`; an upper bound if labels are given."""
        num_codes = 0 if self.grammar.codes is None else NUM_CODES_PER_MASK
        per_object = NUM_LOCS + num_codes + self.grammar.labels.usual_length
        return self.grammar.max_objects * per_object + 1

    @property
    def allowed(self) -> range | tuple[int | range, ...]:
        """The ids allowed next; inside a box or a mask they are one range."""
        grammar, places = self.grammar, self.grammar.places
        if self.is_over:
            return (grammar.eos_id,)
        # A box has an area: a first edge is never the last bin, a second edge comes after the
        # first.
        if not self.box:
            may_end = len(self.written) >= grammar.min_objects
            return (grammar.eos_id, places[:-1]) if may_end else places[:-1]
        if len(self.box) == 1:
            return places[:-1]
        if len(self.box) < NUM_LOCS:
            return places[self.box[-2] + 1 :]
        if (only := grammar.labels.only) is not None and (only, self.box) in self.written:
            return (grammar.eos_id,)
        if grammar.codes is not None and self.num_codes < NUM_CODES_PER_MASK:
            return grammar.codes
        name = grammar.labels.name(self.tail)
        if name is None:
            return grammar.labels.after(self.tail, may_close=True)
        is_new = (name, self.box) not in self.written
        following = grammar.labels.after(self.tail, may_close=is_new)
        if following and len(self.written) + is_new < grammar.min_objects:
            return following
        return (grammar.eos_id, *following)

    def advance(self, token_id: int, /) -> ObjectList:
        """Return the state after an allowed id; EOS does not change it."""
        grammar = self.grammar
        if token_id == grammar.eos_id:
            return self
        if len(self.box) < NUM_LOCS:
            return replace(self, box=(*self.box, token_id - grammar.places.start))
        if grammar.codes is not None and self.num_codes < NUM_CODES_PER_MASK:
            return replace(self, num_codes=self.num_codes + 1)
        tail = (*self.tail, token_id)
        if (name := grammar.labels.closed(tail)) is None:
            return replace(self, tail=tail)
        written = self.written | {(name, self.box)}
        is_repeated = len(written) == len(self.written)
        is_over = is_repeated or len(written) == grammar.max_objects
        return ObjectList(grammar=grammar, written=written, is_over=is_over)


def object_list(
    tokenizer: TokenWriter,
    phrases: Sequence[str],
    *,
    labels: LabelRule,
    max_objects: int,
    min_objects: int = 0,
    has_masks: bool,
) -> ObjectList:
    """Return the initial state for a list of objects labeled with `phrases`."""
    codes = range(tokenizer.seg_offset, tokenizer.seg_offset + NUM_SEG_TOKENS)
    return ObjectList(
        grammar=ObjectGrammar(
            eos_id=tokenizer.eos_id,
            places=range(tokenizer.loc_offset, tokenizer.loc_offset + NUM_LOC_TOKENS),
            codes=codes if has_masks else None,
            labels=AnyLabels(tokenizer) if labels == "any" else AskedLabels(phrases, tokenizer),
            max_objects=max_objects,
            min_objects=min_objects,
        )
    )


def check_list_options(labels: object, max_objects: object, min_objects: object = 0) -> None:
    """Raises OptionError for an invalid label rule or invalid numbers of objects."""
    if labels not in ("asked", "any"):
        raise OptionError(f"labels is {labels!r}; it must be 'asked' or 'any'.")
    check_whole("max_objects", max_objects)
    is_whole = isinstance(min_objects, int) and not isinstance(min_objects, bool)
    if not is_whole or not 0 <= min_objects <= max_objects:  # type: ignore[operator]
        raise OptionError(
            f"min_objects is {min_objects!r}; it must be a whole number from 0 to max_objects "
            f"({max_objects})."
        )


def _next_ids(sequences: Iterable[_Ids]) -> dict[_Ids, _Ids]:
    """Map each proper prefix of a sequence to the ids that may follow it."""
    next_ids: dict[_Ids, dict[int, None]] = {}
    for ids in sequences:
        for length, token_id in enumerate(ids):
            next_ids.setdefault(ids[:length], {})[token_id] = None
    return {prefix: tuple(following) for prefix, following in next_ids.items()}


def _without(whole: range, holes: Iterable[int]) -> tuple[range, ...]:
    """Return the parts of a range between the holes."""
    edges = [whole.start - 1, *sorted(hole for hole in holes if hole in whole), whole.stop]
    return tuple(range(a + 1, b) for a, b in itertools.pairwise(edges) if b > a + 1)
