"""JSON from strangers: what is refused, and that what is left comes through unchanged."""

from __future__ import annotations

import json
import time
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paligemma.server.strict_json import JsonError, read_json, write_json

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(VALUES)
def test_ordinary_values_come_through_unchanged(value: object) -> None:
    assert read_json(write_json(value)) == value
    assert read_json(json.dumps(value).encode()) == value


@given(st.binary(max_size=60))
def test_c7_any_bytes_give_a_value_or_a_json_error(data: bytes) -> None:
    with suppress(JsonError):
        assert write_json(read_json(data))


@pytest.mark.parametrize(
    "text",
    [
        "NaN",
        "-Infinity",
        '{"a": Infinity}',
        "1e400",
        "[-1e999]",
        "1" * 31,
        "-" + "9" * 5000,
        '{"a": 1, "a": 2}',
        "[" * 100_000,
        "[" * 100_000 + "]" * 100_000,
        '{"a":' * 50_000,
        '{"a": 1',
        "",
        "'a'",
        "{a: 1}",
        '"\\ud800"',
        '{"\\udfff": 1}',
        '[["\\uDC00\\uD800"]]',
    ],
    ids=lambda text: text[:24],
)
def test_c7_what_the_standard_leaves_open_is_refused(text: str) -> None:
    with pytest.raises(JsonError):
        read_json(text.encode())


@pytest.mark.parametrize("data", [b"\xff\xfe{\x00}\x00", b'"\xed\xa0\x80"', b'"\x80"'])
def test_c8_bytes_that_are_not_utf8_are_refused(data: bytes) -> None:
    with pytest.raises(JsonError, match="UTF-8"):
        read_json(data)


def test_c8_surrogate_pairs_nul_and_bidi_are_text() -> None:
    assert read_json(b'"\\ud83d\\ude00 \\u0000 \\u202e"') == "\U0001f600 \0 \u202e"


def test_minus_zero_is_a_number() -> None:
    assert read_json(b"[-0, -0.0]") == [0, 0.0]


def test_an_error_quotes_nothing_of_the_text() -> None:
    for text in (
        '{"canary": NaN}',
        '{"canary": 1, "canary": 2}',
        '{"canary" 1}',
        '"canary\\ud800"',
    ):
        with pytest.raises(JsonError) as caught:
            read_json(text.encode())
        assert "canary" not in str(caught.value)


def test_large_and_nasty_texts_are_read_in_linear_time() -> None:
    started = time.monotonic()
    assert read_json(b'"' + b"A" * 8_000_000 + b'"') == "A" * 8_000_000
    with pytest.raises(JsonError):
        read_json(b'"' + b'\\"' * 2_000_000)
    assert time.monotonic() - started < 5
