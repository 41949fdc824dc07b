from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paligemma.engine.sampling import mask_bits
from paligemma.errors import OptionError
from paligemma.processor.tokenizer import Tokenizer
from paligemma.tasks.text_grammar import TextGrammar, longest_match
from tests.tasks.drawn_text import drawn_text


def allowed_texts(grammar: TextGrammar, tokenizer: Tokenizer) -> set[str]:
    """The texts of the tokens that may come next, EOS as "<eos>"."""
    ids = mask_bits(grammar.allowed).nonzero()[:, 0].tolist()
    return {"<eos>" if i == tokenizer.eos_id else tokenizer.detokenize([i]) for i in ids}


def written(grammar: TextGrammar, tokenizer: Tokenizer, text: str) -> TextGrammar:
    for token_id in tokenizer.tokenize_text(text):
        assert mask_bits(grammar.allowed)[token_id], text
        following = grammar.advance(token_id)
        assert isinstance(following, TextGrammar)
        grammar = following
    return grammar


def test_a_date_is_written_digit_by_digit_and_then_ends(tiny_tokenizer: Tokenizer) -> None:
    grammar = TextGrammar.of_regex(r"\d{2}-\d", tiny_tokenizer)
    digits = set("0123456789")
    assert allowed_texts(grammar, tiny_tokenizer) == digits | {" "}
    spaced = written(grammar, tiny_tokenizer, " 1")
    assert allowed_texts(spaced, tiny_tokenizer) == digits
    done = written(grammar, tiny_tokenizer, "12-3")
    assert allowed_texts(done, tiny_tokenizer) == {"<eos>"}


def test_states_are_immutable(tiny_tokenizer: Tokenizer) -> None:
    grammar = TextGrammar.of_regex("(ab|ac)d?", tiny_tokenizer)
    before = grammar.allowed.clone()
    written(grammar, tiny_tokenizer, "abd")
    written(grammar, tiny_tokenizer, "ac")
    assert grammar.allowed.equal(before)
    assert TextGrammar.of_regex("(ab|ac)d?", tiny_tokenizer).allowed.equal(before)


def test_no_control_token_is_text(tiny_tokenizer: Tokenizer) -> None:
    bits = mask_bits(TextGrammar.of_regex(".{0,40}", tiny_tokenizer).allowed)
    allowed = {i for i in range(tiny_tokenizer.vocab_size) if bits[i]}
    assert tiny_tokenizer.eos_id in allowed
    banned = {tiny_tokenizer.pad_id, tiny_tokenizer.bos_id, tiny_tokenizer.unk_id}
    banned |= {i for i in range(tiny_tokenizer.vocab_size) if tiny_tokenizer.is_loc(i)}
    banned |= {i for i in range(tiny_tokenizer.vocab_size) if tiny_tokenizer.is_seg(i)}
    banned |= {
        i for i in range(tiny_tokenizer.vocab_size) if tiny_tokenizer.token_bytes(i) == b"\0"
    }
    assert not banned & allowed
    assert not any("\n" in tiny_tokenizer.detokenize([i]) for i in allowed)
    assert not bits[tiny_tokenizer.vocab_size :].any()


def test_a_token_that_is_not_allowed_is_refused(tiny_tokenizer: Tokenizer) -> None:
    grammar = TextGrammar.of_regex("a", tiny_tokenizer)
    (token_id,) = tiny_tokenizer.tokenize_text("z")
    with pytest.raises(OptionError, match="does not allow token"):
        grammar.advance(token_id)


@pytest.mark.parametrize(
    ("pattern", "num_bytes"),
    [
        ("", 0),
        ("abc", 3),
        ("ü", 2),
        ("a|bcd|", 3),
        ("(a|bc){2,3}d?", 7),
        (r"\d{4}-\d\d", 7),
        (r"\.\-\/\n", 4),
        (r"\w\D\pL\p{Greek}\x41\u{e9}", 24),
        ("[a-z]{3}[^a]{3}[é]", 19),
        ("[]a]{2}[[:alpha:]-]{2}[a-z&&[^b]]", 8),
        (r"[\]\\a]b", 2),
        (".{0,10}", 40),
        ("(?i)ab", 8),
        ("(?i:ab)c", 12),
        ("(?:a)(?P<n>b)(?<m>c)", 3),
        ("a{2}{3}", 6),
        ("a{3}?", 3),
        ("(){1,}", 0),
        (r"\*\+\{2,\}", 6),
        ("[*+]{2}", 2),
    ],
)
def test_the_longest_match(pattern: str, num_bytes: int) -> None:
    assert longest_match(pattern) == num_bytes


@pytest.mark.parametrize(
    ("pattern", "part"),
    [
        ("a*", "a*"),
        ("ab+c", "b+"),
        ("x(a|b){2,}y", "(a|b){2,}"),
        ("[a-z]+?", "[a-z]+"),
        ("((a+)b)", "a+"),
        (r"\d*", r"\d*"),
    ],
)
def test_patterns_without_limit_are_refused(
    pattern: str, part: str, tiny_tokenizer: Tokenizer
) -> None:
    with pytest.raises(OptionError, match=re.escape(f"The part {part!r} of the pattern")):
        TextGrammar.of_regex(pattern, tiny_tokenizer)


@pytest.mark.parametrize(
    "pattern", ["(a", "a)", "a{,3}", "[a", "(?=a)b", r"a\b", "^a$", r"(a)\1", "*"]
)
def test_what_the_syntax_lacks_is_an_error(pattern: str, tiny_tokenizer: Tokenizer) -> None:
    with pytest.raises(OptionError, match=r"is invalid|without end"):
        TextGrammar.of_regex(pattern, tiny_tokenizer)


def test_a_pattern_too_long_to_ever_end_is_refused(tiny_tokenizer: Tokenizer) -> None:
    with pytest.raises(OptionError, match="up to 1000000 bytes"):
        TextGrammar.of_regex("((a{1,100}){1,100}){1,100}", tiny_tokenizer)


def test_digits_are_ascii(tiny_tokenizer: Tokenizer) -> None:
    grammar = TextGrammar.of_regex(r"\d[\d]", tiny_tokenizer)
    assert allowed_texts(written(grammar, tiny_tokenizer, "1"), tiny_tokenizer) == set("0123456789")
    assert torch.equal(grammar.allowed, TextGrammar.of_regex("[0-9]{2}", tiny_tokenizer).allowed)


# Random patterns of the kinds that fields use

ATOMS = st.one_of(
    st.sampled_from([".", r"\d", "[a-c]", "[^a-z]", r"[\d.,-]", r"\.", r"\-", "é", "[äöü]"]),
    st.text("abcxyz019 -", min_size=1, max_size=4).map(re.escape),
)


def _repeated(pattern: str, least: int, more: int) -> str:
    return f"(?:{pattern}){{{least},{least + more}}}"


PATTERNS = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        st.builds(_repeated, inner, st.integers(0, 3), st.integers(0, 3)),
        st.builds("(?:{})?".format, inner),
        st.lists(inner, min_size=1, max_size=3).map("".join),
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: f"({'|'.join(parts)})"),
    ),
    max_leaves=6,
)


@settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
@given(PATTERNS, st.integers(0, 2**32))
def test_texts_drawn_from_a_random_pattern_match_it(
    tiny_tokenizer: Tokenizer, pattern: str, seed: int
) -> None:
    text = drawn_text(TextGrammar.of_regex(pattern, tiny_tokenizer), tiny_tokenizer, seed)
    assert re.fullmatch(f" ?(?:{pattern})", text)
    assert len(text.encode()) <= longest_match(pattern) + 1


# Gemma's tokenizer: 256,000 pieces, then the location and mask tokens


@pytest.fixture(scope="module")
def gemma(shared_data: Path) -> Tokenizer:
    return Tokenizer.from_file(shared_data / "tokenizer" / "tokenizer.model")


def test_of_gemmas_vocabulary_text_is_allowed_and_nothing_else(gemma: Tokenizer) -> None:
    grammar = TextGrammar.of_regex(".{0,30}", gemma)
    bits = mask_bits(grammar.allowed)
    assert int(bits.sum()) > 240_000
    names = [gemma.tokenize_text(name) for name in ("<mask>", "<unused5>", "<start_of_turn>")]
    assert not any(bits[ids[0]] for ids in names)
    assert all(len(ids) == 1 for ids in names)
    assert not bits[256_000:].any()
    assert not any(bits[gemma.tokenize_text("\n" * n)[0]] for n in range(1, 32))
    assert bits[[gemma.eos_id, *gemma.tokenize_text("a"), *gemma.tokenize_text(" cat")]].all()


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        (r"\d{4}-\d{2}-\d{2}", "2019-09-24"),
        (".{1,40}", "25 mg, zweimal täglich"),
        ("[^0-9]{1,4}", "日本𓀀"),  # the last one takes four byte tokens
        ("[^\t]{1,9}", "a\nb\n\nc"),
    ],
)
def test_texts_in_gemmas_tokens(gemma: Tokenizer, pattern: str, text: str) -> None:
    grammar = TextGrammar.of_regex(pattern, gemma)
    for start in ("", " "):
        state: Any = grammar
        for token_id in gemma.tokenize_text(start + text):
            assert mask_bits(state.allowed)[token_id], gemma.detokenize([token_id])
            state = state.advance(token_id)
        assert mask_bits(state.allowed)[gemma.eos_id]


@pytest.mark.parametrize(
    "pattern",
    [r"\d{2}\.\d{2}", "[A-Z]{2}[0-9]{2}([A-Z0-9]{4}){2}", ".{0,9}", "<loc0001>|<mask>|<eos>"],
)
def test_texts_drawn_from_gemmas_tokens_match(gemma: Tokenizer, pattern: str) -> None:
    for seed in range(3):
        text = drawn_text(TextGrammar.of_regex(pattern, gemma), gemma, seed)
        assert re.fullmatch(f" ?(?:{pattern})", text)
