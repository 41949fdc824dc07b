"""Answers that are held to a form: a pattern, or the JSON of a schema."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, cast

from paligemma.errors import OptionError, PromptError
from paligemma.results import FieldAnswer, JsonAnswer, JsonLeaf, Text
from paligemma.tasks.objects import TokenReader, before_eos, joint_probability
from paligemma.tasks.task import AnswerKind, Generated, TaskContext, read_scored_text
from paligemma.tasks.text import AnswerTask
from paligemma.tasks.text_grammar import TextGrammar

if TYPE_CHECKING:
    from paligemma.processor.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class FieldTask(AnswerTask):
    r"""Answer a question with a text that matches a pattern; see `TextGrammar.of_regex`.

    The prompt is that of `AnswerTask`. Decoding raises OptionError for a pattern that is invalid
    or has no limit, and MissingExtraError without llguidance.

    >>> FieldTask(question="What is the date?", pattern=r"\d{4}-\d{2}-\d{2}").prompt()
    'answer en What is the date?'
    """

    pattern: str

    def grammar(self, tokenizer: Tokenizer) -> TextGrammar:
        return TextGrammar.of_regex(self.pattern, tokenizer)

    def parse(
        self, generated: Generated, tokenizer: TokenReader, context: TaskContext
    ) -> FieldAnswer:
        text = read_scored_text(generated, tokenizer, joint_probability)
        return FieldAnswer(**vars(text), question=self.question)


@dataclass(frozen=True, kw_only=True)
class JsonTask:
    """Write JSON that a schema describes; see `TextGrammar.of_json_schema`.

    For checkpoints that were tuned to write JSON after this prompt. Raises PromptError for an
    empty prompt. Decoding raises OptionError for a schema that cannot be a grammar, and
    MissingExtraError without llguidance.
    """

    text: str
    """The prompt."""
    schema: Mapping[str, Any] = field(hash=False)
    answer_kind: ClassVar[AnswerKind] = "generate"

    def __post_init__(self) -> None:
        if not isinstance(self.text, str) or not self.text.strip():
            raise PromptError(f"The prompt is {self.text!r}; it must be text with a word or more.")
        if not isinstance(self.schema, Mapping):
            raise OptionError(
                f"The schema is of type {type(self.schema).__name__}; expected a JSON schema as a "
                "dict, such as that of model_json_schema()."
            )

    def prompt(self) -> str:
        return self.text

    def grammar(self, tokenizer: Tokenizer) -> TextGrammar:
        return TextGrammar.of_json_schema(self.schema, tokenizer)

    def parse(
        self, generated: Generated, tokenizer: TokenReader, context: TaskContext
    ) -> JsonAnswer:
        text = read_scored_text(generated, tokenizer, joint_probability)
        value, leaves = None, []
        if generated.stop_reason == "eos":
            # Without the grammar, the answer may be anything.
            try:
                value = json.loads(text.text)
                leaves = _scored_leaves(text, cast("Tokenizer", tokenizer))
            except (ValueError, RecursionError):
                value, leaves = None, []
        return JsonAnswer(**vars(text), value=value, leaves=tuple(leaves))


class _Span(NamedTuple):
    """A value in a text of JSON."""

    keys: tuple[str | int, ...]
    value: Any
    start: int
    end: int


def _scored_leaves(text: Text, tokenizer: Tokenizer) -> list[JsonLeaf]:
    """Return the values with the scores of the tokens that they, or a part of them, are in."""
    ids = before_eos(text.token_ids, tokenizer)
    octets = [tokenizer.token_bytes(token_id) for token_id in ids]
    ends = list(itertools.accumulate(map(len, octets)))
    whole = b"".join(octets).decode()
    offset = len(whole) - len(whole.lstrip())
    leaves = []
    for span in _spans(whole, offset):
        start, end = (len(whole[:position].encode()) for position in (span.start, span.end))
        tokens = [
            index
            for index, (octet, token_end) in enumerate(zip(octets, ends, strict=True))
            if token_end > start and token_end - len(octet) < end
        ]
        allowed: Sequence[float] = text.allowed_probabilities
        leaf = JsonLeaf(
            keys=span.keys,
            value=span.value,
            score=joint_probability([text.logprobs[index] for index in tokens]),
            held=1.0 - math.prod(allowed[index] for index in tokens),
        )
        leaves.append(leaf)
    return leaves


_DECODER = json.JSONDecoder()


def _spans(text: str, start: int, keys: tuple[str | int, ...] = ()) -> Generator[_Span, None, int]:
    """Yield the values of valid JSON that are neither object nor list.

    >>> [(span.keys, span.value) for span in _spans('{"a":[1, {"b":"c"}]}', 0)]
    [(('a', 0), 1), (('a', 1, 'b'), 'c')]
    """
    start = _skip_blanks(text, start)
    opening = text[start]
    if opening not in "{[":
        value, end = _DECODER.raw_decode(text, start)
        yield _Span(keys, value, start, end)
        return end
    position, index = start + 1, 0
    while text[position := _skip_blanks(text, position)] not in "]}":
        if index:
            position = _skip_blanks(text, position + 1)  # after the comma
        key: str | int = index
        if opening == "{":
            key, position = _DECODER.raw_decode(text, position)
            position = _skip_blanks(text, position) + 1  # after the colon
        position = yield from _spans(text, position, (*keys, key))
        index += 1
    return position + 1


def _skip_blanks(text: str, position: int) -> int:
    while text[position] in " \t\r\n":
        position += 1
    return position
