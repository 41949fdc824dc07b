"""mini's vocabulary: a small SentencePiece model with Gemma's conventions.

Byte fallback, no dummy prefix, no whitespace folding, <pad> <eos> <bos> <unk> = 0 1 2 3. The places
(`<loc>`, `<seg>`) are appended by `processor/tokenizer.py`, as for Gemma's own model.

It was learned in two parts: first what is said of scenes in the first languages, then, when more
languages, tables and charts came, more pieces behind it. What was said before is cut into pieces as
before, so a model that knows the first part can go on learning with the second.
"""

from __future__ import annotations

import io
import struct
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise

import sentencepiece

from mini import language

FIRST_VOCABULARY_SIZE = 1800
MAX_NEW_PIECES = 600
_MIN_PAIRS = 6  # a pair that stands together less often stays two pieces
_SPACE = "\u2581"  # how SentencePiece writes one


def train_vocabulary() -> bytes:
    """The SentencePiece model of everything that is said in mini's world; always the same."""
    first = train_first_vocabulary()
    spoken = list(language.all_texts(language.FIRST_LANGUAGES))
    later = list(language.all_texts(language.LATER_LANGUAGES))
    later += [text for text in language.sheet_texts() for _ in range(50)]
    return extend_vocabulary(first, later, keep=spoken)


def train_first_vocabulary() -> bytes:
    """The first part: scenes, in the first languages."""
    # Weights, so that task words and labels become one piece with and without a space before.
    texts = list(language.all_texts(language.FIRST_LANGUAGES))
    texts += [kind.name for kind in language.KINDS for _ in range(20)]
    texts += [word for word in ("caption", "segment", "detect") for _ in range(400)]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        model_type="bpe",
        vocab_size=FIRST_VOCABULARY_SIZE,
        character_coverage=1.0,
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        split_digits=True,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        pad_piece="<pad>",
        eos_piece="<eos>",
        bos_piece="<bos>",
        unk_piece="<unk>",
        user_defined_symbols=["\n"],
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def extend_vocabulary(proto: bytes, texts: Iterable[str], keep: Iterable[str]) -> bytes:
    """A byte-pair model with further pieces, learned from `texts`, behind its own.

    Byte-pair encoding (arXiv 1508.07909, section 3.2) that goes on where the model stopped: missing
    characters first, then, again and again, the pair that stands together most often. A pair that
    occurs in `keep` is never joined, and new pieces rank behind all others: so `keep`, and every
    text made of its words, is cut as it was.
    """
    pieces = sentencepiece.SentencePieceProcessor(model_proto=proto)
    texts = [text.replace(" ", _SPACE) for text in texts]
    known = {pieces.id_to_piece(i) for i in range(pieces.vocab_size())}
    added = sorted({letter for text in texts for letter in text} - known)
    score = min(pieces.get_score(i) for i in range(pieces.vocab_size()))
    proto += _normal_pieces(added, score)
    score -= len(added)
    pieces = sentencepiece.SentencePieceProcessor(model_proto=proto)
    kept = {
        pair
        for text in keep
        for word in _words(pieces.encode(text, out_type=str))
        for pair in pairwise(word)
    }
    words = Counter(
        word
        for text in texts
        for word in _words(pieces.encode(text.replace(_SPACE, " "), out_type=str))
    )
    joined: list[str] = []
    while len(joined) < MAX_NEW_PIECES:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, count in words.items():
            for pair in pairwise(word):
                pairs[pair] += count
        choices = [(-count, pair) for pair, count in pairs.items() if pair not in kept]
        if not choices or -min(choices)[0] < _MIN_PAIRS:
            break
        first, second = min(choices)[1]
        joined.append(first + second)
        words = Counter({_join(word, first, second): count for word, count in words.items()})
    return proto + _normal_pieces(joined, score)


def _words(cut: list[str]) -> list[tuple[str, ...]]:
    """A cut text in parts at its spaces: no new piece reaches over one."""
    words: list[list[str]] = []
    for piece in cut:
        if not words or piece.startswith(_SPACE) or words[-1][-1].endswith(_SPACE):
            words.append([])
        words[-1].append(piece)
    return [tuple(word) for word in words]


def _join(word: tuple[str, ...], first: str, second: str) -> tuple[str, ...]:
    joined: list[str] = []
    for piece in word:
        if joined and (joined[-1], piece) == (first, second):
            joined[-1] += piece
        else:
            joined.append(piece)
    return tuple(joined)


def _normal_pieces(pieces: list[str], last_score: float) -> bytes:
    """The pieces, each ranked behind the one before, as they stand in a serialized ModelProto.

    Field 1 of the model, repeated: {1: piece, 2: score as float}; the type is NORMAL if left out.
    """
    entries = []
    for rank, piece in enumerate(pieces, start=1):
        name = piece.encode()
        score = struct.pack("<f", last_score - rank)
        entry = b"\x0a" + bytes([len(name)]) + name + b"\x15" + score
        entries.append(b"\x0a" + bytes([len(entry)]) + entry)
    return b"".join(entries)
