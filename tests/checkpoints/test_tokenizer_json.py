"""The same ids from tokenizer.json, read by Hugging Face's tokenizers, as from our tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import transformers
from hypothesis import given
from hypothesis import strategies as st

import paligemma
from paligemma.checkpoints.tokenizer_json import tokenizer_files
from paligemma.errors import CheckpointError
from paligemma.processor.tokenizer import Tokenizer
from tests.tiny import train_tokenizer

IMAGE_TOKEN_ID = 257152
MINI = Path(paligemma.__file__).parent / "mini" / "model" / "tokenizer.model"

TEXTS = (
    "",
    " ",
    "\n",
    "caption en\n",
    "detect cat ; dog\n",
    "segment   the    left  cow" + " " * 70 + "x",
    "<loc0001><loc1023> cat ; <seg000><seg127>",
    "<loc12> <loc00001> <seg1> <table><tr> <tab <unused1> <start_of_turn>user",
    "tab\tand\t\ttabs\n\n\n\nlines \n indented\r\n",
    "Größe: 5 µm, naïve café, Ελλάδα, Москва, 漢字かな交じり文, हिन्दी, עברית",
    "\U0001f600\U0001f468‍\U0001f469‍\U0001f467 é ﬁ ﻿​　▁▁▁ ▁a",
    "aaaaaaa ababababa ======= ------ 0000000 1.000.000,00 ......",
    "I don't know , really ! Is it 's ?",
)


def converted(tokenizer: Tokenizer, image_token_id: int) -> tokenizers.Tokenizer:
    files = tokenizer_files(tokenizer.model_proto, image_token_id)
    return tokenizers.Tokenizer.from_str(files["tokenizer.json"].decode())


@pytest.fixture(scope="module")
def gemma(shared_data: Path) -> tuple[Tokenizer, tokenizers.Tokenizer]:
    tokenizer = Tokenizer.from_file(shared_data / "tokenizer" / "tokenizer.model")
    return tokenizer, converted(tokenizer, IMAGE_TOKEN_ID)


@pytest.fixture(scope="module")
def mini() -> tuple[Tokenizer, tokenizers.Tokenizer]:
    tokenizer = Tokenizer.from_file(MINI)
    return tokenizer, converted(tokenizer, tokenizer.vocab_size)


def assert_equal(pair: tuple[Tokenizer, tokenizers.Tokenizer], text: str) -> None:
    ours, theirs = pair
    ids = ours.tokenize_text(text)
    assert theirs.encode(text).ids == ids
    assert theirs.decode(ids) == ours.detokenize(ids)


@pytest.mark.parametrize("text", TEXTS)
def test_equal_ids_with_gemmas_tokenizer(gemma: Any, text: str) -> None:
    assert_equal(gemma, text)


def test_ids_from_upstream_tests(gemma: Any, shared_data: Path) -> None:
    cases = json.loads((shared_data / "tokenizer" / "vectors.json").read_text())["encode"]
    for case in cases:
        if "<pad>" in case["text"]:
            continue  # a control token, which we spell out
        assert gemma[1].encode(case["text"]).ids == case["ids"], case["text"]


@given(
    st.text(
        st.sampled_from("abe ▁\n\t-=.0漢é\U0001f600<>/loctrbi19") | st.characters(codec="utf-8")
    )
)
def test_equal_ids_for_any_text(gemma: Any, mini: Any, text: str) -> None:
    text = text.replace("\0", "")
    assert_equal(gemma, text)
    assert_equal(mini, text)


def test_mini_and_a_tokenizer_with_double_newlines(mini: Any, tiny_tokenizer: Tokenizer) -> None:
    tiny = (tiny_tokenizer, converted(tiny_tokenizer, tiny_tokenizer.vocab_size))
    for text in TEXTS:
        assert_equal(mini, text)
        assert_equal(tiny, text)


def test_special_tokens(gemma: Any) -> None:
    tokenizer = gemma[1]
    ids = tokenizer.encode("<image><image><bos>caption en\n").ids
    assert ids == [IMAGE_TOKEN_ID, IMAGE_TOKEN_ID, 2, *gemma[0].tokenize_text("caption en\n")]
    # What a model wrote: control tokens add nothing, locations and masks stay.
    assert tokenizer.decode([2, 256000, 257024, 1, 0, IMAGE_TOKEN_ID]) == "<loc0000><seg000>"


def test_transformers_loads_the_folder(tmp_path: Path, mini: Any) -> None:
    ours = mini[0]
    for name, content in tokenizer_files(ours.model_proto, ours.vocab_size).items():
        (tmp_path / name).write_bytes(content)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in TEXTS:
        assert theirs(text)["input_ids"] == ours.tokenize_text(text), text
    assert theirs.convert_tokens_to_ids("<image>") == ours.vocab_size
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (2, 1, 0)


def test_refuses_what_tokenizer_json_cannot_represent() -> None:
    proto = train_tokenizer(["a cat and a dog\n"], vocab_size=300, user_defined=("\n", "a▁cat"))
    with pytest.raises(CheckpointError, match="contain spaces and other characters"):
        tokenizer_files(proto, IMAGE_TOKEN_ID)


def test_refuses_an_image_token_inside_the_vocabulary(tiny_tokenizer: Tokenizer) -> None:
    with pytest.raises(CheckpointError, match="must come after them"):
        tokenizer_files(tiny_tokenizer.model_proto, 100)
