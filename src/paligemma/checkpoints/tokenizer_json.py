"""Write a SentencePiece model as the `tokenizer.json` of Hugging Face's tokenizers.

transformers.js and most servers read only that format. Both split a text alike:

    SentencePiece                        tokenizer.json
    spaces become U+2581                 a normalizer
    user-defined pieces match first,     added tokens; runs of spaces are split off by a pattern
    the longest at each position
    neighbors merge by score             merges, in the order of the scores of their results
    unknown characters become bytes      byte_fallback

Control tokens differ: this package spells out `<bos>` or `<image>` in a text, while a
`tokenizer.json` turns them into their ids, because processors write them into the text.
"""

from __future__ import annotations

import json
import struct
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paligemma.checkpoints.rows import Contents
from paligemma.errors import CheckpointError, TokenizerError
from paligemma.processor.tokenizer import LOC_PIECES, SEG_PIECES, Tokenizer

IMAGE_TOKEN = "<image>"
_SPACE = "\u2581"

_NORMAL, _USER_DEFINED = 1, 4  # types of pieces in a SentencePiece model
_BPE = 2  # type of model


@dataclass(frozen=True, kw_only=True)
class _Piece:
    text: str
    score: float
    kind: int


def write_tokenizer_files(contents: Contents, folder: Path) -> None:
    """Write `tokenizer.json` and its companions for programs that read no SentencePiece model.

    Warns, and writes nothing, if they cannot represent the tokenizer.
    """
    if contents.tokenizer is None:
        return
    try:
        files = tokenizer_files(contents.tokenizer, contents.config.decoder.vocab_size)
    except (CheckpointError, TokenizerError) as error:
        warnings.warn(
            f"The folder has a tokenizer.model but no tokenizer.json, which some programs need: "
            f"{error}",
            stacklevel=2,
        )
        return
    for name, content in files.items():
        (folder / name).write_bytes(content)


def tokenizer_files(model_proto: bytes, image_token_id: int) -> dict[str, bytes]:
    """Return `tokenizer.json`, `tokenizer_config.json` and `special_tokens_map.json`.

    `image_token_id` is the id of `<image>`, `image_token_index` in config.json. Raises
    CheckpointError for a SentencePiece model that `tokenizer.json` cannot represent, and
    TokenizerError for one that is damaged or of another family.

    >>> tokenizer_files(tokenizer.model_proto, 257152).keys()  # doctest: +SKIP
    dict_keys(['tokenizer.json', 'tokenizer_config.json', 'special_tokens_map.json'])
    """
    tokenizer = Tokenizer(model_proto)
    pieces = _read_pieces(model_proto)
    names = {piece.text for piece in pieces}
    pieces += [
        _Piece(text=text, score=0.0, kind=_USER_DEFINED)
        for text in (*LOC_PIECES, *SEG_PIECES)
        if text not in names
    ]
    if image_token_id < len(pieces):
        raise CheckpointError(
            f"The id of {IMAGE_TOKEN} is {image_token_id}, but the tokenizer has {len(pieces)} "
            "pieces; it must come after them. Use the tokenizer.model of the checkpoint."
        )
    special = {
        f"{name}_token": pieces[token_id].text
        for name, token_id in {
            "bos": tokenizer.bos_id,
            "eos": tokenizer.eos_id,
            "pad": tokenizer.pad_id,
            "unk": tokenizer.unk_id,
        }.items()
    }
    config = {
        **special,
        "tokenizer_class": "GemmaTokenizer",
        "processor_class": "PaliGemmaProcessor",
        "add_bos_token": False,  # the processor writes it into the text
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "spaces_between_special_tokens": False,
        "extra_special_tokens": {"image_token": IMAGE_TOKEN},
        "model_max_length": 10**30,
    }
    special_tokens_map = {**special, "additional_special_tokens": [IMAGE_TOKEN]}
    return {
        "tokenizer.json": _to_bytes(_tokenizer_json(pieces, image_token_id), indent=None),
        "tokenizer_config.json": _to_bytes(config, indent=2),
        "special_tokens_map.json": _to_bytes(special_tokens_map, indent=2),
    }


def _to_bytes(content: dict[str, Any], indent: int | None) -> bytes:
    separators = (",", ":") if indent is None else None
    text = json.dumps(content, ensure_ascii=False, indent=indent, separators=separators)
    return text.encode() + b"\n"


def _tokenizer_json(pieces: Sequence[_Piece], image_token_id: int) -> dict[str, Any]:
    vocab = {piece.text: i for i, piece in enumerate(pieces)} | {IMAGE_TOKEN: image_token_id}
    special_ids = {0, 1, 2, 3, image_token_id}
    added = [
        token_id
        for text, token_id in vocab.items()
        if token_id in special_ids
        or (pieces[token_id].kind == _USER_DEFINED and not text.startswith(_SPACE))
    ]
    texts = {token_id: text for text, token_id in vocab.items()}
    longest_run = _longest_run(pieces)
    split = {
        "type": "Split",
        "pattern": {"Regex": f"{_SPACE}{{2,{longest_run}}}"},
        "behavior": "Isolated",
        "invert": False,
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": token_id,
                "content": texts[token_id],
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": token_id in special_ids,
            }
            for token_id in added
        ],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE},
        "pre_tokenizer": split if longest_run > 1 else None,
        "post_processor": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": texts[3],
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": [*_merges_of_spaces(longest_run), *_merges(pieces)],
        },
    }


def _longest_run(pieces: Sequence[_Piece]) -> int:
    """Return N if the user-defined pieces of spaces are runs of 2 to N; 1 if there are none."""
    with_spaces = {
        piece.text
        for piece in pieces
        if piece.kind == _USER_DEFINED and not {" ", _SPACE}.isdisjoint(piece.text)
    }
    longest = max(map(len, with_spaces), default=1)
    if with_spaces != {_SPACE * n for n in range(2, longest + 1)}:
        raise CheckpointError(
            "The tokenizer has user-defined pieces that contain spaces and other characters, or "
            "only some lengths of runs of spaces. tokenizer.json cannot represent them."
        )
    return longest


def _merges_of_spaces(longest_run: int) -> Iterator[tuple[str, str]]:
    """Merge a run of spaces into one token. Any order of merges ends there."""
    for length in range(2, longest_run + 1):
        for left in range(1, length):
            yield _SPACE * left, _SPACE * (length - left)


def _merges(pieces: Sequence[_Piece]) -> Iterator[tuple[str, str]]:
    """Yield the pairs of pieces that merge into a piece, those of the highest score first."""
    normal = {piece.text for piece in pieces if piece.kind == _NORMAL}
    by_score = sorted((p for p in pieces if p.kind == _NORMAL), key=lambda piece: -piece.score)
    for piece in by_score:
        text = piece.text
        for end in range(1, len(text)):
            if text[:end] in normal and text[end:] in normal:
                yield text[:end], text[end:]


def _read_pieces(model_proto: bytes) -> list[_Piece]:
    """Read the pieces of a serialized ModelProto. Raises CheckpointError unless it is plain BPE."""
    pieces = []
    settings: dict[tuple[int, int], Any] = {}
    for field, value in _fields(model_proto):
        if field == 1:
            content = dict(_fields(value))
            pieces.append(
                _Piece(
                    text=content[1].decode(),
                    score=content.get(2, 0.0),
                    kind=content.get(3, _NORMAL),
                )
            )
        elif field in (2, 3, 5):  # trainer, normalizer and denormalizer
            settings |= {(field, inner): content for inner, content in _fields(value)}
    expected = {
        "is of the type BPE": settings.get((2, 3)) == _BPE,
        "writes unknown characters as bytes": settings.get((2, 35)) == 1,
        "does not change characters": not settings.get((3, 2)) and not settings.get((5, 2)),
        "adds no space at the start": settings.get((3, 3), 1) == 0,
        "keeps all spaces": settings.get((3, 4), 1) == 0,
        "writes spaces as U+2581": settings.get((3, 5), 1) == 1,
    }
    if broken := [rule for rule, holds in expected.items() if not holds]:
        raise CheckpointError(
            "This tokenizer cannot be written as tokenizer.json: a SentencePiece model is "
            f"converted if it {broken[0]}, as Gemma's does. Keep tokenizer.model instead."
        )
    return pieces


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Yield (number, value) of the fields of a protocol buffer that SentencePiece has parsed."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(message):
        number, wire_type = divmod(varint(), 8)
        if wire_type == 0:
            yield number, varint()
            continue
        size = {1: 8, 5: 4}.get(wire_type) or varint()
        value = message[at : at + size]
        at += size
        yield number, struct.unpack("<f", value)[0] if wire_type == 5 else value
