"""Texts that a grammar allows, without a model."""

from __future__ import annotations

import random
from typing import Any

from paligemma.engine.sampling import mask_bits
from paligemma.processor.tokenizer import Tokenizer
from paligemma.tasks.text_grammar import TextGrammar


def drawn_text(grammar: TextGrammar, tokenizer: Tokenizer, seed: int) -> str:
    """A text of tokens drawn from those that the grammar allows, each with the same chance."""
    chance = random.Random(seed)
    state: Any = grammar
    ids: list[int] = []
    while True:
        token_id = chance.choice(mask_bits(state.allowed).nonzero()[:, 0].tolist())
        if token_id == tokenizer.eos_id:
            return tokenizer.detokenize(ids)
        ids.append(token_id)
        assert len(ids) < grammar.usual_length, "its own limit is too low"
        state = state.advance(token_id)
