"""What readers and writers of several formats check about a config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from paligemma.config import DECODERS, DecoderConfig, PaliGemmaConfig
from paligemma.errors import CheckpointError, OptionError

MAX_DEPTH = 512
MAX_SIZE = 2**22
"""Limit of all other dimensions; the largest released one is the vocabulary, 2^18."""


class Section:
    """A JSON object of the file, with defaults, validation, and errors that name the key."""

    def __init__(
        self, path: Path, name: str, content: Any, defaults: Mapping[str, Any] | None = None
    ) -> None:
        if not isinstance(content, dict):
            raise CheckpointError(f"{path}: {name} is missing or not an object {{...}}.")
        self.path, self.name = path, name
        self.content = {**(defaults or {}), **content}

    def get(self, key: str) -> Any:
        return self.content.get(key)

    def refuse(self, key: str, expected: str) -> CheckpointError:
        value = repr(self.get(key))
        value = value if len(value) <= 80 else value[:77] + "..."
        return CheckpointError(
            f"{self.path}: {self.name}.{key} is {value}; {expected}. "
            "This package cannot run such a model."
        )

    def whole(self, key: str, limit: int = MAX_SIZE) -> int:
        value = self.get(key)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= limit:
            raise self.refuse(key, f"expected a whole number from 1 to {limit}")
        return value

    def positive(self, key: str) -> float:
        value = self.get(key)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not 0 < value < 1e12:
            raise self.refuse(key, "expected a number above 0")
        return float(value)

    def positive_or_none(self, key: str) -> float | None:
        return None if self.get(key) is None else self.positive(key)

    def require(self, key: str, *allowed: object) -> None:
        """Raise unless the key is missing or has one of these values."""
        if self.get(key) is not None and self.get(key) not in allowed:
            raise self.refuse(key, "expected " + " or ".join(map(repr, allowed)))


def check_window(sliding_window: int, *, is_gemma2: bool) -> None:
    """Raise OptionError for an invalid value of the option `sliding_window`."""
    if isinstance(sliding_window, bool) or not 1 <= sliding_window <= MAX_SIZE:
        raise OptionError(
            f"sliding_window is {sliding_window!r}; it must be a whole number from 1 to {MAX_SIZE}."
        )
    if not is_gemma2:
        raise OptionError(
            "sliding_window is for PaliGemma 2, and this is PaliGemma 1, which has no sliding "
            "layers. Leave it out."
        )


def with_window(decoder: DecoderConfig, sliding_window: int | None) -> DecoderConfig:
    """Give every second layer, from the first, the window of the option `sliding_window`, if any.

    Raises OptionError for an invalid window.
    """
    if sliding_window is None:
        return decoder
    check_window(sliding_window, is_gemma2=decoder.post_norms)
    even = tuple(i % 2 == 0 for i in range(decoder.depth))
    return replace(decoder, sliding_window=sliding_window, sliding_layers=even)


def released_decoder(sizes: DecoderConfig, sliding_window: int | None = None) -> DecoderConfig:
    """Complete the sizes of a decoder with the values that its generation has in all releases.

    These are the soft caps of Gemma 2 and the query scale, which is head_dim^-0.5 except in the
    28B model, where it is (width / heads)^-0.5.
    """
    for released in DECODERS.values():
        same = ("width", "num_heads", "num_kv_heads", "head_dim", "mlp_dim", "post_norms")
        if all(getattr(sizes, name) == getattr(released, name) for name in same):
            sizes = replace(sizes, query_scale=released.query_scale)
    if sizes.post_norms:
        sizes = replace(sizes, attn_logit_softcap=50.0, final_logit_softcap=30.0)
    return with_window(sizes, sliding_window)


def check_represented(config: PaliGemmaConfig, read_back: PaliGemmaConfig, where: str) -> None:
    """Raise CheckpointError unless a written config would be read back as it is.

    `where` names the format. A sliding window is an option of loading and never written.
    """
    differences = []
    for part in ("vision", "decoder"):
        ours, theirs = getattr(config, part), getattr(read_back, part)
        for field in fields(ours):
            if field.name in ("sliding_window", "sliding_layers"):
                continue
            value, other = getattr(ours, field.name), getattr(theirs, field.name)
            if value != other:
                differences.append(f"{part}.{field.name} is {value}, which would become {other}")
    if differences:
        raise CheckpointError(
            f"The config cannot be represented in {where}: {'; '.join(differences)}. Convert to "
            "'hf' instead, whose config.json has these values."
        )
