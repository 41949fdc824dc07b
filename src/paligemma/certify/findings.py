"""Finding: one thing that a certificate says about a model, and where in the model it is."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Level = Literal["fail", "unusual", "note"]
"""fail: the model does not compute what was trained. unusual: what one would rather look at, and
no proof. note: what a reader of the certificate should know."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What was found, and where: a config key, a tensor, a layer, a file or a task."""

    level: Level
    check: str
    """The kind of check, such as "config" or "weights"."""
    place: str
    """Where: "text_config.attn_logit_softcapping", "decoder.blocks.3.pre_mlp_norm.weight"."""
    text: str


_LAYER = re.compile(r"(vision_encoder|decoder)\.blocks\.(\d+)\.")


def place_in_words(parameter: str) -> str:
    """
    >>> place_in_words("decoder.blocks.3.pre_mlp_norm.weight")
    'decoder layer 3'
    >>> place_in_words("projector.linear.weight")
    'projector'
    """
    if match := _LAYER.match(parameter):
        return f"{'vision' if match[1] == 'vision_encoder' else 'decoder'} layer {match[2]}"
    module = parameter.split(".")[-2]
    return {"embedding": "table of tokens", "linear": "projector"}.get(
        module, module.replace("_", " ")
    )
