"""Each token's own bytes: joined they are the text, whatever the text is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paligemma.processor.tokenizer import LOC_PIECES, Tokenizer, check_text


@given(text=st.text(max_size=60).filter(lambda text: "\0" not in text))
def test_the_bytes_of_all_tokens_are_the_text(tiny_tokenizer: Tokenizer, text: str) -> None:
    check_text(text)
    ids = tiny_tokenizer.tokenize_text(text)
    joined = b"".join(tiny_tokenizer.token_bytes(token_id) for token_id in ids)
    assert joined.decode() == tiny_tokenizer.detokenize(ids)


def test_a_character_of_several_tokens_has_its_bytes_spread_over_them(
    tiny_tokenizer: Tokenizer,
) -> None:
    ids = tiny_tokenizer.tokenize_text("é")
    assert [tiny_tokenizer.token_bytes(i) for i in ids] == [b"\xc3", b"\xa9"]


def test_spaces_and_places_are_spelled_out_and_control_tokens_are_nothing(
    tiny_tokenizer: Tokenizer,
) -> None:
    ids = tiny_tokenizer.tokenize_text(f"{LOC_PIECES[7]} cat\n")
    pieces = [tiny_tokenizer.token_bytes(i) for i in ids]
    assert pieces[0] == b"<loc0007>"
    assert b"".join(pieces[1:]) == b" cat\n"
    for control in (tiny_tokenizer.pad_id, tiny_tokenizer.bos_id, tiny_tokenizer.eos_id):
        assert tiny_tokenizer.token_bytes(control) == b""


@pytest.mark.parametrize("beyond", [-1, 10**6])
def test_an_id_beyond_the_vocabulary_is_no_character(
    tiny_tokenizer: Tokenizer, beyond: int
) -> None:
    assert tiny_tokenizer.token_bytes(beyond).decode() == "\ufffd"
