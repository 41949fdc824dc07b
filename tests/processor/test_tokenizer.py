"""Text to ids and back: Gemma's published vectors, and rules that hold for every model."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path
from typing import Any

import pytest
import sentencepiece

from paligemma.errors import PromptError, TokenizerError
from paligemma.processor.tokenizer import MAX_CHARACTERS, StreamDetokenizer, Tokenizer

# Prompts of the paper and their ids; computed with the 256,000-piece model plus place tokens.
PROMPT_IDS = [
    ("caption en\n", [21209, 659, 108]),
    ("cap en\n", [5549, 659, 108]),
    ("describe en\n", [15019, 659, 108]),
    ("ocr\n", [120185, 108]),
    ("caption es\n", [21209, 875, 108]),
    ("caption fr\n", [21209, 2592, 108]),
    ("caption pt\n", [21209, 20572, 108]),
    ("caption fil\n", [21209, 1751, 108]),
    ("caption zh\n", [21209, 106464, 108]),
    (
        "answer en Where is the cow standing?\n",
        [13072, 659, 7890, 603, 573, 13910, 9980, 235336, 108],
    ),
    ("Where is the cow standing?\n", [6006, 603, 573, 13910, 9980, 235336, 108]),
    ("question en yes\n", [13252, 659, 7778, 108]),
    ("detect cat ; dog\n", [39208, 4401, 2161, 5929, 108]),
    (
        "detect person ; car ; traffic light\n",
        [39208, 1552, 2161, 1226, 2161, 9988, 2611, 108],
    ),
    ("segment cat\n", [32318, 4401, 108]),
    ("detect all classes\n", [39208, 832, 8250, 108]),
    ("describe this image\n", [15019, 736, 2416, 108]),
    ("on the beach", [477, 573, 8318]),
    ("yes", [3276]),
    (" yes", [7778]),
    ("True", [5036]),
    ("False", [8393]),
    ("The answer is A.", [651, 3448, 603, 586, 235265]),
    (
        "caption <loc0250><loc0100><loc0750><loc0900>\n",
        [21209, 235248, 256250, 256100, 256750, 256900, 108],
    ),
    (
        "<loc0250><loc0100><loc0750><loc0900> cat ; <loc0000><loc0001><loc1022><loc1023> dog",
        [256250, 256100, 256750, 256900, 4401, 2161, 235248, 256000, 256001, 257022, 257023, 5929],
    ),
    (
        "<loc0347><loc0553><loc0788><loc0749><seg093><seg106> the giraffe",
        [256347, 256553, 256788, 256749, 257117, 257130, 573, 117771],
    ),
    (" \t ", [235248, 226, 235248]),
    ("a\n\nb", [235250, 109, 235268]),
    ("no\n\n", [956, 109]),
]


@pytest.fixture(scope="session")
def gemma_proto(shared_data: Path) -> bytes:
    return (shared_data / "tokenizer" / "tokenizer.model").read_bytes()


@pytest.fixture(scope="session")
def gemma(gemma_proto: bytes) -> Tokenizer:
    return Tokenizer(gemma_proto)


@pytest.fixture(scope="session")
def vectors(shared_data: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((shared_data / "tokenizer" / "vectors.json").read_text())
    return data


def train(**options: Any) -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a cat and a dog"] * 9),
        model_writer=model,
        vocab_size=300,
        hard_vocab_limit=False,
        byte_fallback=True,
        minloglevel=2,
        **options,
    )
    return model.getvalue()


def test_published_vectors_hold(gemma: Tokenizer, vectors: dict[str, Any]) -> None:
    for case in vectors["encode"]:
        assert gemma.tokenize_text(case["text"]) == case["ids"], case
        assert gemma.detokenize(case["ids"]) == case["text"], case
    for case in vectors["decode_pieces"]:
        assert gemma.detokenize(case["ids"]) == case["text"], case
    special = vectors["special"]
    assert gemma.pad_id == special["pad"]
    assert gemma.eos_id == special["eos"]
    assert gemma.bos_id == special["bos"]
    assert gemma.unk_id == special["unk"]
    assert gemma.separator_id == special["newline_id"]


@pytest.mark.parametrize(("text", "ids"), PROMPT_IDS)
def test_prompts_have_the_ids_of_the_paper(gemma: Tokenizer, text: str, ids: list[int]) -> None:
    assert gemma.tokenize_text(text) == ids
    assert gemma.detokenize(ids) == text


def test_two_spaces_are_one_piece(gemma: Tokenizer) -> None:
    assert gemma.tokenize_text("answer en  Mayfly")[:5] == [13072, 659, 139, 4914, 12000]


def test_places_follow_the_pieces(gemma: Tokenizer) -> None:
    assert (gemma.loc_offset, gemma.seg_offset, gemma.vocab_size) == (256000, 257024, 257152)
    assert [gemma.is_loc(i) for i in (255999, 256000, 257023, 257024)] == [False, True, True, False]
    assert [gemma.is_seg(i) for i in (257023, 257024, 257151, 257152)] == [False, True, True, False]


def test_a_model_that_holds_places_already_is_the_same(
    gemma: Tokenizer, gemma_proto: bytes
) -> None:
    extended = Tokenizer(gemma._pieces.serialized_model_proto())
    assert len(extended.model_proto) > len(gemma_proto)
    assert extended.vocab_size == gemma.vocab_size
    for text, ids in PROMPT_IDS:
        assert extended.tokenize_text(text) == ids


def test_places_written_wrongly_are_text(tiny_tokenizer: Tokenizer) -> None:
    for text in ("<loc1024>", "<loc12>", "<loc00001>", "<seg128>", "<seg0001>", "<LOC0001>"):
        ids = tiny_tokenizer.tokenize_text(text)
        assert not any(tiny_tokenizer.is_loc(i) or tiny_tokenizer.is_seg(i) for i in ids), text
        assert tiny_tokenizer.detokenize(ids) == text


@pytest.mark.parametrize("text", ["<bos>", "<eos>", "<pad>", "<unk>", "<image>", "a<eos>b<image>"])
def test_control_tokens_in_text_stay_text(
    tiny_tokenizer: Tokenizer, gemma: Tokenizer, text: str
) -> None:
    for tokenizer in (tiny_tokenizer, gemma):
        ids = tokenizer.tokenize_text(text)
        assert min(ids) > 3
        assert len(ids) > 1
        assert tokenizer.detokenize(ids) == text


def test_names_that_gemma_lists_as_pieces_are_one_id(gemma: Tokenizer) -> None:
    for text, token_id in (("<mask>", 4), ("<start_of_turn>", 106), ("<end_of_turn>", 107)):
        assert gemma.tokenize_text(text) == [token_id]


def test_control_ids_give_no_text(tiny_tokenizer: Tokenizer) -> None:
    cat = tiny_tokenizer.tokenize_text("cat")
    assert tiny_tokenizer.detokenize([2, 0, *cat, 1, 0]) == "cat"
    assert tiny_tokenizer.detokenize([]) == ""


def test_half_a_character_is_marked(gemma: Tokenizer) -> None:
    euro = [217 + byte for byte in "€".encode()]
    assert gemma.detokenize(euro) == "€"
    assert gemma.detokenize(euro[:2]) == "\ufffd\ufffd"
    assert gemma.detokenize([217 + 0xFF, 573]) == "\ufffd the"


def test_an_id_beyond_the_vocabulary_is_marked_in_the_text(tiny_tokenizer: Tokenizer) -> None:
    beyond = tiny_tokenizer.vocab_size
    ids = [2, beyond, *tiny_tokenizer.tokenize_text(" cat"), 10**12, beyond]
    assert tiny_tokenizer.detokenize(ids) == "\ufffd cat\ufffd\ufffd"
    stream = StreamDetokenizer(tiny_tokenizer)
    pieces = [stream.push(i) for i in ids]
    assert "".join([*pieces, stream.finish()]) == "\ufffd cat\ufffd\ufffd"
    with pytest.raises(TokenizerError, match="-1 is not a token id"):
        tiny_tokenizer.detokenize([2, -1])


@pytest.mark.parametrize("text", ["a\ud800", "\udfff", "a\0b", "x" * (MAX_CHARACTERS + 1)])
def test_text_that_is_no_text_is_refused(tiny_tokenizer: Tokenizer, text: str) -> None:
    with pytest.raises(PromptError):
        tiny_tokenizer.tokenize_text(text)


def test_bytes_are_not_a_prompt(tiny_tokenizer: Tokenizer) -> None:
    with pytest.raises(PromptError, match="bytes"):
        tiny_tokenizer.tokenize_text(b"caption en")  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["a" * MAX_CHARACTERS, "  ", "\u202eabc", "\U0001f408", "漢字 é"])
def test_odd_text_survives(tiny_tokenizer: Tokenizer, text: str) -> None:
    assert tiny_tokenizer.detokenize(tiny_tokenizer.tokenize_text(text)) == text


def test_a_saved_model_is_the_one_that_was_read(tiny_tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(tiny_tokenizer.model_proto)
    read = Tokenizer.from_file(path)
    assert read.model_proto == tiny_tokenizer.model_proto
    assert read.tokenize_text("a cat <loc0001>") == tiny_tokenizer.tokenize_text("a cat <loc0001>")


def test_a_model_cut_anywhere_is_refused(gemma_proto: bytes) -> None:
    size = len(gemma_proto)
    cuts = [0, 1, 10, size // 100, size // 2, size - 600, size - 1]
    generator = random.Random(1)
    for cut in cuts + [generator.randrange(size) for _ in range(10)]:
        with pytest.raises(TokenizerError):
            Tokenizer(gemma_proto[:cut])


def test_files_that_are_no_model_are_refused(tmp_path: Path) -> None:
    pointer = tmp_path / "tokenizer.model"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4241003\n")
    for path in (pointer, tmp_path, tmp_path / "missing.model", tmp_path / "a\0b"):
        with pytest.raises(TokenizerError):
            Tokenizer.from_file(path)


def test_a_tokenizer_of_another_model_is_refused(shared_data: Path) -> None:
    with pytest.raises(TokenizerError, match="belongs to another model"):
        Tokenizer.from_file(shared_data / "tokenizer" / "keras_gemma_test_vocab.spm")
    with pytest.raises(TokenizerError, match="belongs to another model"):
        Tokenizer(train())


def test_a_tokenizer_without_a_newline_is_refused() -> None:
    with pytest.raises(TokenizerError, match="newline"):
        Tokenizer(train(pad_id=0, eos_id=1, bos_id=2, unk_id=3))


def test_a_tokenizer_with_some_places_missing_is_refused() -> None:
    proto = train(
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        user_defined_symbols=["<loc0000>", "<loc0001>", "<loc0003>"],
    )
    with pytest.raises(TokenizerError, match="<loc0002>"):
        Tokenizer(proto)


def test_an_embedding_that_is_too_short_is_refused(gemma: Tokenizer) -> None:
    gemma.check_fits(257152)
    gemma.check_fits(257216)
    with pytest.raises(TokenizerError, match=r"257152 ids.* 257151 rows"):
        gemma.check_fits(257151)


def test_streamed_text_equals_the_whole(gemma: Tokenizer, tiny_tokenizer: Tokenizer) -> None:
    generator = random.Random(0)
    for tokenizer, first_byte in ((gemma, 217), (tiny_tokenizer, 6)):
        assert tokenizer.detokenize([first_byte + 0x41]) == "A"
        rows = [tokenizer.tokenize_text("a 🐈 <loc0012> ; \u0c05 e\u0301 \ufffd 漢 ")]
        rows += [[first_byte + byte for byte in "€🐈é".encode()[:-1]]]
        for _ in range(200):  # whatever a model may say, broken bytes among it
            byte_ids = range(first_byte, first_byte + 256)
            any_ids = range(tokenizer.vocab_size)
            rows.append(
                [generator.choice(generator.choice((byte_ids, any_ids))) for _ in range(12)]
            )
        for ids in rows:
            stream = StreamDetokenizer(tokenizer)
            pieces = [stream.push(i) for i in ids]
            assert "".join([*pieces, stream.finish()]) == tokenizer.detokenize(ids)


def test_a_character_is_streamed_when_it_is_whole(gemma: Tokenizer) -> None:
    stream = StreamDetokenizer(gemma)
    euro = [217 + byte for byte in "€".encode()]
    assert [stream.push(i) for i in [477, *euro, 573, euro[0]]] == ["on", "", "", "€", " the", ""]
    assert stream.finish() == "\ufffd"
    assert stream.finish() == ""
