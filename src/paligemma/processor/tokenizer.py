"""Text to token ids and back, with the checkpoint's SentencePiece model.

Gemma's `tokenizer.model` has 256,000 pieces and none for locations. `<loc0000>`...`<loc1023>` and
`<seg000>`...`<seg127>` are appended here, in this order, as in big_vision (`pp/tokenizer.py`).
A model that already contains them (big_vision's `paligemma_tokenizer.model`) is used unchanged.

In text, `<locDDDD>` and `<segDDD>` become location and mask tokens. Control tokens cannot be
written as text: `<bos>`, `<eos>`, `<pad>`, `<unk>` and `<image>` are spelled out like any word. A
few names that Gemma's model lists as ordinary pieces (`<mask>`, `<start_of_turn>`, `<end_of_turn>`,
`<unusedN>`) do become one id, as in every other implementation; they have no special effect.

Image tokens have no id.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Sequence
from pathlib import Path

import sentencepiece

from paligemma.config import NUM_LOC_TOKENS, NUM_SEG_TOKENS
from paligemma.errors import PromptError, TokenizerError, counted

MAX_CHARACTERS = 16_384
_MAX_MODEL_BYTES = 64 * 2**20
_REPLACEMENT = "\ufffd"
_SPACE = "\u2581"  # how SentencePiece writes a space

LOC_PIECES = tuple(f"<loc{i:04d}>" for i in range(NUM_LOC_TOKENS))
SEG_PIECES = tuple(f"<seg{i:03d}>" for i in range(NUM_SEG_TOKENS))


class Tokenizer:
    """Text <-> token ids. With Gemma's model:

    >>> tokenizer.tokenize_text("caption <loc0250><loc0100><loc0750><loc0900>")
    [21209, 235248, 256250, 256100, 256750, 256900]
    >>> tokenizer.detokenize([256250, 4401])
    '<loc0250> cat'
    """

    def __init__(self, model_proto: bytes) -> None:
        """Raises TokenizerError for a model that is damaged or of another family."""
        self.model_proto = model_proto
        """The serialized model; write these bytes to a file to save the tokenizer."""
        self._pieces = _parse(model_proto)
        if not self._has_piece(LOC_PIECES[0]):
            self._pieces = _parse(model_proto + _user_defined(LOC_PIECES + SEG_PIECES))
        self.pad_id: int = self._pieces.pad_id()
        self.eos_id: int = self._pieces.eos_id()
        self.bos_id: int = self._pieces.bos_id()
        self.unk_id: int = self._pieces.unk_id()
        control_ids = (self.pad_id, self.eos_id, self.bos_id, self.unk_id)
        if control_ids != (0, 1, 2, 3):
            raise TokenizerError(
                f"The tokenizer has the ids {control_ids} for pad, eos, bos and unk; expected "
                "(0, 1, 2, 3). It belongs to another model: use the tokenizer.model of the "
                "checkpoint."
            )
        self.vocab_size: int = self._pieces.vocab_size()
        self.loc_offset = self._offset_of(LOC_PIECES)
        self.seg_offset = self._offset_of(SEG_PIECES)
        separator = self._pieces.encode("\n")
        if len(separator) != 1 or self._pieces.decode(separator) != "\n":
            raise TokenizerError(
                f"The tokenizer turns a newline into {counted(len(separator), 'token')}, not "
                "into one that decodes to a newline. Use the tokenizer.model of the checkpoint."
            )
        self.separator_id: int = separator[0]
        """The newline that ends every prefix: 108 in Gemma's model."""

    @classmethod
    def from_file(cls, path: str | Path) -> Tokenizer:
        """Read a SentencePiece model, usually named `tokenizer.model`."""
        path = Path(path)
        try:
            with path.open("rb") as file:
                model_proto = file.read(_MAX_MODEL_BYTES + 1)
        except (OSError, ValueError) as error:
            raise TokenizerError(
                f"The tokenizer {str(path)!r} cannot be read. Expected a SentencePiece model: "
                "tokenizer.model of a google/paligemma repository, or big_vision's "
                "paligemma_tokenizer.model. A tokenizer.json alone is not enough."
            ) from error
        if len(model_proto) > _MAX_MODEL_BYTES:
            raise TokenizerError(
                f"The tokenizer {str(path)!r} is larger than {_MAX_MODEL_BYTES // 2**20} MiB; "
                "PaliGemma's is 4 MiB. Pass the SentencePiece model."
            )
        return cls(model_proto)

    def tokenize_text(self, text: str) -> list[int]:
        """Return the ids of the text, without BOS, EOS or other additions.

        Raises PromptError for more than 16,384 characters, a NUL, or an unpaired surrogate.
        """
        check_text(text)
        ids: list[int] = self._pieces.encode(text)
        return ids

    def detokenize(self, ids: Sequence[int]) -> str:
        """Return the text of the ids; BOS, EOS and pads add nothing.

        An incomplete character becomes U+FFFD, and so does an id beyond the vocabulary, which a
        model with more rows than the tokenizer has pieces may generate. Raises TokenizerError for
        an id below 0.
        """
        if negative := [i for i in ids if i < 0]:
            raise TokenizerError(f"{negative[0]} is not a token id; ids start at 0.")
        runs = itertools.groupby(ids, key=lambda i: i < self.vocab_size)
        return "".join(
            self._pieces.decode(list(run)) if in_vocabulary else _REPLACEMENT * len(list(run))
            for in_vocabulary, run in runs
        )

    def token_bytes(self, token_id: int) -> bytes:
        """Return the UTF-8 bytes of one token, possibly only part of a character.

        The bytes of several tokens concatenated are those of `detokenize`. Control tokens have
        none.
        """
        if not 0 <= token_id < self.vocab_size:
            return _REPLACEMENT.encode()
        if self._pieces.is_control(token_id):
            return b""
        if token_id == self.unk_id:
            return self.detokenize([token_id]).encode()
        piece: str = self._pieces.id_to_piece(token_id)
        if self._pieces.is_byte(token_id):
            return bytes([int(piece[3:-1], 16)])  # such as <0x0A>
        return piece.replace(_SPACE, " ").encode()

    def is_loc(self, token_id: int) -> bool:
        """True for `<loc0000>` to `<loc1023>`."""
        return 0 <= token_id - self.loc_offset < NUM_LOC_TOKENS

    def is_seg(self, token_id: int) -> bool:
        """True for `<seg000>` to `<seg127>`."""
        return 0 <= token_id - self.seg_offset < NUM_SEG_TOKENS

    def check_fits(self, vocab_rows: int) -> None:
        """Raises TokenizerError if there are more ids than rows in the embedding."""
        if self.vocab_size > vocab_rows:
            raise TokenizerError(
                f"The tokenizer has {self.vocab_size} ids, but the model's embedding has only "
                f"{vocab_rows} rows. Use the tokenizer.model of the checkpoint."
            )

    def _has_piece(self, piece: str) -> bool:
        return bool(self._pieces.id_to_piece(self._pieces.piece_to_id(piece)) == piece)

    def _offset_of(self, pieces: Sequence[str]) -> int:
        """Return the id of the first piece, after checking that the others follow in order."""
        offset: int = self._pieces.piece_to_id(pieces[0])
        for i, piece in enumerate(pieces):
            if not self._has_piece(piece) or self._pieces.piece_to_id(piece) != offset + i:
                raise TokenizerError(
                    f"The tokenizer has {pieces[0]}, but {piece} is missing or out of order. "
                    "Use the tokenizer.model of the checkpoint."
                )
        return offset


def check_text(text: str) -> None:
    """Raises PromptError for text that cannot be tokenized; see `Tokenizer.tokenize_text`."""
    if not isinstance(text, str):
        raise PromptError(f"The prompt is a {type(text).__name__}; it must be a str.")
    if len(text) > MAX_CHARACTERS:
        raise PromptError(
            f"The text has {len(text)} characters; the limit is {MAX_CHARACTERS}. Shorten it."
        )
    if "\0" in text:
        raise PromptError(
            f"The text contains a NUL character at position {text.index(chr(0))}. Remove it."
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PromptError(
            f"The text contains an unpaired surrogate at position {error.start}, which is not a "
            "character. Decode its bytes again as UTF-8, with errors='replace'."
        ) from error


class StreamDetokenizer:
    """Detokenize ids one at a time; text that was returned never changes.

    A character may take several tokens (byte pieces) and is held back until it is complete. All
    returned pieces concatenated, with `finish()` last, equal `detokenize` of all ids.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        # The ids returned last are kept as context, because a piece may be written differently at
        # the very start of a text.
        self._context: list[int] = []
        self._pending: list[int] = []

    def push(self, token_id: int) -> str:
        """Add an id and return the text that is now complete; often "" inside a character."""
        self._pending.append(token_id)
        text = self._pending_text()
        if text.endswith(_REPLACEMENT):
            return ""
        self._context, self._pending = self._pending, []
        return text

    def finish(self) -> str:
        """Return the pending text, even if its last character is incomplete."""
        text = self._pending_text()
        self._context, self._pending = self._pending, []
        return text

    def _pending_text(self) -> str:
        context = self._tokenizer.detokenize(self._context)
        return self._tokenizer.detokenize(self._context + self._pending)[len(context) :]


def _parse(model_proto: bytes) -> sentencepiece.SentencePieceProcessor:
    pieces = sentencepiece.SentencePieceProcessor()
    try:
        pieces.LoadFromSerializedProto(model_proto)
    except RecursionError:
        raise  # says nothing about the file
    except RuntimeError as error:
        raise TokenizerError(
            f"The tokenizer's {len(model_proto)} bytes are not a complete SentencePiece model. "
            "Download the file again; a text file of a few lines is a git-lfs pointer."
        ) from error
    return pieces


def _user_defined(pieces: Sequence[str]) -> bytes:
    """Serialize the pieces as in a SentencePiece ModelProto; append the bytes to a model.

    Field 1 of the model, repeated: {1: piece, 2: score as float, 3: type, 4 = USER_DEFINED}.
    Such pieces are matched before all others and split the text around them.
    """
    entries = []
    for piece in pieces:
        name = piece.encode("ascii")
        entry = b"\x0a" + bytes([len(name)]) + name + b"\x15" + struct.pack("<f", 0.0) + b"\x18\x04"
        entries.append(b"\x0a" + bytes([len(entry)]) + entry)
    return b"".join(entries)


class TextStream:
    """The text of one row while it is generated, cut at the first stop string."""

    def __init__(self, tokenizer: Tokenizer, stop: tuple[str, ...]) -> None:
        self._detokenizer = StreamDetokenizer(tokenizer)
        self._stop = stop
        self._text = ""
        self._has_ended = False
        self._num_taken = 0

    def push(self, token_id: int) -> bool:
        """Add a token; True once the text has reached a stop string."""
        return self._add(self._detokenizer.push(token_id))

    @property
    def text(self) -> str:
        """The whole text so far."""
        return self._text

    def take(self) -> str:
        """Return the text since the last call that can no longer become part of a stop string."""
        num_held_back = max((self._overlap(stop) for stop in self._stop), default=0)
        return self._take_up_to(len(self._text) - num_held_back)

    def take_rest(self) -> str:
        """Return the rest of the text, after the last token."""
        self._add(self._detokenizer.finish())
        return self._take_up_to(len(self._text))

    def _add(self, piece: str) -> bool:
        if self._has_ended:
            return True
        self._text += piece
        stop_positions = [i for i in map(self._text.find, self._stop) if i >= 0]
        if stop_positions:
            self._text = self._text[: min(stop_positions)]
            self._has_ended = True
        return self._has_ended

    def _overlap(self, stop: str) -> int:
        """Return the length of the longest suffix of the text that is a prefix of `stop`."""
        lengths = range(min(len(stop) - 1, len(self._text)), 0, -1)
        return next((n for n in lengths if self._text.endswith(stop[:n])), 0)

    def _take_up_to(self, end: int) -> str:
        start, self._num_taken = self._num_taken, max(end, self._num_taken)
        return self._text[start : self._num_taken]
