"""A tokenizer without files: every character is a token; `<locDDDD>` and `<segDDD>` are one."""

from __future__ import annotations

import re
from collections.abc import Sequence

from paligemma.results import Generation, StopReason


class CharacterTokenizer:
    eos_id = 1
    loc_offset = 0x110000 + 10
    seg_offset = loc_offset + 1024
    unk_id = 9
    _first_character = 10

    def is_loc(self, token_id: int) -> bool:
        return 0 <= token_id - self.loc_offset < 1024

    def is_seg(self, token_id: int) -> bool:
        return 0 <= token_id - self.seg_offset < 128

    def tokenize_text(self, text: str) -> list[int]:
        ids: list[int] = []
        for match in re.finditer(r"<loc(\d{4})>|<seg(\d{3})>|<eos>|(.)", text, re.DOTALL):
            loc, seg, character = match.groups()
            if loc is not None:
                ids.append(self.loc_offset + int(loc))
            elif seg is not None:
                ids.append(self.seg_offset + int(seg))
            else:
                ids.append(1 if character is None else self._first_character + ord(character))
        return ids

    def detokenize(self, token_ids: Sequence[int]) -> str:
        return "".join(self._piece(token_id) for token_id in token_ids)

    def _piece(self, token_id: int) -> str:
        if self.is_loc(token_id):
            return f"<loc{token_id - self.loc_offset:04d}>"
        if self.is_seg(token_id):
            return f"<seg{token_id - self.seg_offset:03d}>"
        return chr(token_id - self._first_character) if token_id >= self._first_character else ""

    def generation(
        self, text: str, stop_reason: StopReason = "eos", logprob: float = -0.5
    ) -> Generation:
        """As if a model had written the text, each token with the same log-probability."""
        ids = self.tokenize_text(text) + ([self.eos_id] if stop_reason == "eos" else [])
        return Generation(
            text=text,
            token_ids=tuple(ids),
            logprobs=(logprob,) * len(ids),
            stop_reason=stop_reason,
        )
