"""mini's vocabulary: a small SentencePiece model with Gemma's conventions.

Byte fallback, no dummy prefix, no whitespace folding, <pad> <eos> <bos> <unk> = 0 1 2 3. The places
(`<loc>`, `<seg>`) are appended by `processor/tokenizer.py`, as for Gemma's own model.
"""

from __future__ import annotations

import io

import sentencepiece

from paligemma.mini import language

VOCABULARY_SIZE = 1800


def train_vocabulary() -> bytes:
    """The SentencePiece model of everything that is said in mini's world; always the same."""
    # Weights, so that task words and labels become one piece with and without a space before.
    texts = list(language.all_texts())
    texts += [kind.name for kind in language.KINDS for _ in range(20)]
    texts += [word for word in ("caption", "segment", "detect") for _ in range(400)]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        model_type="bpe",
        vocab_size=VOCABULARY_SIZE,
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
