"""Grammars of text: an answer is held to a regular expression or a JSON schema.

    TextGrammar.of_regex("[0-9]{4}-[0-9]{2}-[0-9]{2}", tokenizer)

A state says which tokens may come next as a bit mask, which llguidance computes. Every grammar is
finite, so that an answer ends whatever the model prefers.
`TextGrammar` implements the engine's `Constraint` protocol.
"""

from __future__ import annotations

import json
import re
import threading
import weakref
from collections import OrderedDict
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from paligemma.errors import MissingExtraError, OptionError
from paligemma.tasks.json_schema import bounded_schema

if TYPE_CHECKING:
    from paligemma.processor.tokenizer import Tokenizer

MAX_BYTES = 4096  # of the longest text that a pattern may allow
_LONGEST_PATTERN = 100_000  # characters: 200 choices of 100 letters in four spellings are 80,000
MAX_JSON_TOKENS = 2048
_MAX_ROOTS = 256  # of 32 KB and a small automaton each

# Pieces that are names, not text; `Tokenizer` makes them ordinary pieces where the model has them.
_NAMES = re.compile(r"<unused\d+>|<mask>|<2mass>|\[@BOS@\]|<(start|end)_of_turn>")
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_CONTROL_BYTES = frozenset((*range(32), 127)) - frozenset(b"\t\n\r")


class TextGrammar:
    """A state of a grammar of text. Immutable, but one thread at a time may use it.

    Raises MissingExtraError without llguidance.
    """

    def __init__(self, matcher: Any, tokenizer: Tokenizer, usual_length: int) -> None:
        self._matcher = matcher  # only ever read: `advance` changes a copy
        self._tokenizer = tokenizer  # which the matcher calls
        self.usual_length = usual_length
        """The number of tokens after which every answer has ended, EOS included; of a JSON text at
        most 2,048, after which it is cut."""

    @classmethod
    def of_regex(cls, pattern: str, tokenizer: Tokenizer) -> Self:
        r"""Return the initial state for a text that matches a pattern as a whole.

        The text may begin with a space, as models write it after some prompts. `\d` is one of the
        digits 0 to 9. Anchors, look-around and back references do not exist.

        Raises OptionError for a pattern that is invalid, or allows a text of more than 4,096
        bytes.
        """
        lark, num_bytes = _lark_of(pattern)
        return cls._compiled(lark, tokenizer, num_bytes + 2, _shown(pattern))

    @classmethod
    def of_json_schema(cls, schema: Mapping[str, Any], tokenizer: Tokenizer) -> Self:
        r"""Return the initial state for a JSON text without white space that a schema describes.

        The text may begin with a space. What the schema leaves open is limited, see
        `bounded_schema`. In its patterns `\d`, `\w` and `\s` are ASCII.

        Raises OptionError, with the path of the part, for a schema that cannot be a grammar.
        """
        bounded, num_bytes = bounded_schema(schema, _json_pattern)
        # Only escapes that stand for one byte, so that no text ends in half a surrogate pair.
        options = {"whitespace_flexible": False, "json_allowed_escapes": '"\\nt'}
        body = json.dumps({**bounded, "x-guidance": options})
        lark = f'start: " "? body\nbody: %json {body}'
        length = min(num_bytes + 2, MAX_JSON_TOKENS)
        return cls._compiled(lark, tokenizer, length, "of the JSON schema")

    @classmethod
    def _compiled(cls, lark: str, tokenizer: Tokenizer, usual_length: int, name: str) -> Self:
        matcher, allowed = _token_table(tokenizer).root(lark, name)
        state = cls(matcher, tokenizer, usual_length)
        state.allowed = allowed
        return state

    @cached_property
    def allowed(self) -> Tensor:
        """The ids that may come next: int32[ceil(V / 32)], with id i at bit i % 32 of word i // 32.

        Raises OptionError where no token continues the text, or the grammar is too complex.
        """
        return _mask(self._matcher)

    def advance(self, token_id: int, /) -> TextGrammar:
        """Return the state after one of the allowed ids."""
        matcher = self._matcher.deep_copy()
        if not matcher.consume_token(token_id):
            raise OptionError(
                f"The grammar does not allow token {token_id}: {_one_line(matcher.get_error())}."
            )
        return TextGrammar(matcher, self._tokenizer, self.usual_length)


def check_pattern(pattern: str) -> None:
    """Raises OptionError for a pattern that `TextGrammar.of_regex` refuses, without a tokenizer."""
    lark, _ = _lark_of(pattern)
    matcher = _llguidance().LLMatcher
    if reason := matcher.validate_grammar(matcher.grammar_from_lark(lark)):
        raise OptionError(f"The pattern {_shown(pattern)} is invalid: {_one_line(reason)}.")


def _lark_of(pattern: str) -> tuple[str, int]:
    """The grammar of a pattern, and the bytes of its longest text."""
    _check_pattern(pattern)
    num_bytes = longest_match(pattern)
    body = _llguidance().regex_to_lark(pattern, "d")
    return f"start: / ?(?:{body})/", num_bytes


def _check_pattern(pattern: object) -> None:
    is_usual = isinstance(pattern, str) and len(pattern) <= _LONGEST_PATTERN
    if not is_usual or _SURROGATE.search(str(pattern)):
        raise OptionError(
            f"The pattern is {_shown(pattern)}; it must be a regular expression of at most "
            f"{_LONGEST_PATTERN} characters."
        )


def _json_pattern(pattern: str) -> str:
    _check_pattern(pattern)
    if re.search(r"\(\?(=|!|<=|<!)|\\[1-9bB]", pattern):
        raise OptionError("look-around and back references are not supported")
    written: str = _llguidance().regex_to_lark(pattern, "dws")
    return written


def _llguidance() -> Any:
    try:
        import llguidance
    except ImportError:
        raise MissingExtraError("llguidance", "guided", "Holding an answer to a pattern") from None
    return llguidance


def _mask(matcher: Any) -> Tensor:
    octets = matcher.compute_bitmask()
    if matcher.is_error():
        reason = _one_line(matcher.get_error())
        raise OptionError(f"The grammar cannot go on: {reason}. Use a simpler one.")
    return torch.frombuffer(bytearray(octets), dtype=torch.int32)


class _TokenTable:
    """A vocabulary, and the grammars that were compiled for it last: many questions share one."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._vocabulary = _llguidance().LLTokenizer(
            _Tokens(tokenizer), n_vocab=tokenizer.vocab_size
        )
        self._roots: OrderedDict[str, tuple[Any, Tensor]] = OrderedDict()
        self._lock = threading.Lock()

    def root(self, lark: str, name: str) -> tuple[Any, Tensor]:
        """Return the initial state of a grammar and what it allows. Both must not be changed."""
        llguidance = _llguidance()
        with self._lock:
            if lark not in self._roots:
                grammar = llguidance.LLMatcher.grammar_from_lark(lark)
                matcher = llguidance.LLMatcher(self._vocabulary, grammar, log_level=0)
                if matcher.is_error():
                    reason = _one_line(matcher.get_error())
                    raise OptionError(f"The grammar {name} is invalid: {reason}.")
                self._roots[lark] = matcher, _mask(matcher)
                if len(self._roots) > _MAX_ROOTS:
                    self._roots.popitem(last=False)
            self._roots.move_to_end(lark)
            return self._roots[lark]


# Building a table takes 2 seconds for Gemma's 257,152 tokens.
_tables: weakref.WeakKeyDictionary[Tokenizer, _TokenTable] = weakref.WeakKeyDictionary()
_tables_lock = threading.Lock()


def _token_table(tokenizer: Tokenizer) -> _TokenTable:
    with _tables_lock:
        if tokenizer not in _tables:
            _tables[tokenizer] = _TokenTable(tokenizer)
        return _tables[tokenizer]


class _Tokens:
    """The vocabulary as llguidance takes it."""

    is_tokenizer_wrapper = True

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = weakref.ref(tokenizer)  # lest a cached table keep its key alive
        self.eos_token_id = tokenizer.eos_id
        self.bos_token_id = tokenizer.bos_id
        self.tokens = [tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)]
        self.special_token_ids = [
            token_id
            for token_id, octets in enumerate(self.tokens)
            if token_id <= tokenizer.unk_id
            or tokenizer.is_loc(token_id)
            or tokenizer.is_seg(token_id)
            or not _CONTROL_BYTES.isdisjoint(octets)
            or _NAMES.fullmatch(octets.decode(errors="replace"))
        ]
        self._special_ids = frozenset(self.special_token_ids)

    def __call__(self, text: str) -> list[int]:
        """Tokenize what a grammar leaves no choice about, so that it is written as usual."""
        tokenizer = self._tokenizer()
        assert tokenizer is not None
        ids = tokenizer.tokenize_text(text)
        if self._special_ids.isdisjoint(ids):
            return ids
        # A text such as "<loc0001>" that is to be written in letters.
        return [i for character in text for i in tokenizer.tokenize_text(character)]


def _shown(pattern: object) -> str:
    return repr(pattern) if len(repr(pattern)) <= 200 else f"{repr(pattern)[:200]}..."


def _one_line(error: str) -> str:
    """The first lines of an error of llguidance, which go on with its internal state."""
    text = error.partition("<state>")[0].partition("Tokens:")[0]
    return re.sub(r"\s+", " ", text).strip(" .")[:500]


# The longest text of a regular expression, in the syntax of Rust, which llguidance takes


def longest_match(pattern: str) -> int:
    """Return an upper bound on the bytes of a text that matches the pattern.

    Raises OptionError if there is none, or it is above 4,096, naming the part.

    >>> longest_match("[0-9]{4}-[0-9]{2}"), longest_match("(yes|no)?"), longest_match("ü{2}")
    (7, 3, 4)
    """
    reader = _PatternReader(pattern)
    num_bytes = reader.alternatives()
    if num_bytes > MAX_BYTES:
        raise OptionError(
            f"The pattern {_shown(pattern)} allows text of up to {num_bytes} bytes; the limit is "
            f"{MAX_BYTES}. Lower its repetitions."
        )
    return num_bytes


_ESCAPE = re.compile(
    r"\\(?:[pPxuU]\{[^}]*\}|[pP][A-Za-z]|x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4}|U[0-9A-Fa-f]{8}|.)", re.S
)
_REPETITION = re.compile(r"[*+?]|\{(\d+)(,?)(\d*)\}")
_GROUP_START = re.compile(r"\(\?(?:P?<[^>]*>|[a-zA-Z-]*:|[a-zA-Z-]*(?=\)))|\(")


class _PatternReader:
    """Reads a pattern from left to right. Where its syntax is wrong, it goes on: llguidance says
    more about it."""

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        self._position = 0
        self._ignores_case = bool(re.search(r"\(\?[a-zA-Z]*i", pattern))

    def alternatives(self) -> int:
        longest = self._sequence()
        while self._peek() == "|":
            self._position += 1
            longest = max(longest, self._sequence())
        return longest

    def _peek(self) -> str:
        return self._pattern[self._position : self._position + 1]

    def _sequence(self) -> int:
        total = 0
        while self._peek() not in ("", "|", ")"):
            start = self._position
            length = self._atom()
            while (match := _REPETITION.match(self._pattern, self._position)) is not None:
                self._position = match.end()
                length = self._repeated(length, match, start)
            total += length
        return total

    def _repeated(self, length: int, match: re.Match[str], start: int) -> int:
        if match[0] == "?" or not length:
            return length
        least, comma, most = match.groups()
        if least is None or (comma and not most):
            part = self._pattern[start : match.end()]
            raise OptionError(
                f"The part {part!r} of the pattern {self._pattern!r} may repeat without end. Give "
                f"it a limit, such as {self._pattern[start : match.start()]}{{1,20}}."
            )
        return length * int(most or least)

    def _atom(self) -> int:
        character = self._peek()
        if character == "(":
            return self._group()
        if character == "[":
            return self._class()
        if character == "\\" and (match := _ESCAPE.match(self._pattern, self._position)):
            self._position = match.end()
            return 1 if self._is_single(match[0]) else 4
        self._position += 1
        if character == "." or self._ignores_case:
            return 4
        return len(character.encode(errors="replace"))

    def _is_single(self, escape: str) -> bool:
        """Whether an escape stands for one byte: a digit, or a mark such as `\\.`."""
        return escape[1] not in "DwWsSpPxuU" and escape[1].isascii()

    def _group(self) -> int:
        match = _GROUP_START.match(self._pattern, self._position)
        assert match is not None
        self._position = match.end()
        length = self.alternatives()
        self._position += 1  # the closing parenthesis
        return length

    def _class(self) -> int:
        """Skip a class such as [a-z], which may contain others; return the bytes of a character."""
        start, depth = self._position, 0
        while self._peek():
            character = self._peek()
            if character == "\\" and (match := _ESCAPE.match(self._pattern, self._position)):
                self._position = match.end()
                continue
            self._position += 1
            if character == "[":
                depth += 1
                if self._peek() == "^":
                    self._position += 1
                if self._peek() == "]":  # the first one is a member
                    self._position += 1
            elif character == "]":
                depth -= 1
                if depth == 0:
                    break
        text = self._pattern[start : self._position]
        is_simple = text.isascii() and not re.search(r"\[:?\^|\\[DwWsSpPxuU]", text)
        return 1 if is_simple and not self._ignores_case else 4
