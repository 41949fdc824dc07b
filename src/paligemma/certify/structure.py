"""Check a checkpoint's config, sizes and tokenizer against the release that it claims to be.

A wrong soft cap or query scale changes every answer a little and breaks nothing, so no test of two
of our own paths would show it. What the family was trained with is known, and compared here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from paligemma.certify.checkpoint import Checkpoint
from paligemma.certify.findings import Finding, Level
from paligemma.checkpoints.files import read_json
from paligemma.checkpoints.hf_config import CONFIG_FILE, read_config
from paligemma.config import (
    DECODERS,
    RELEASES,
    PaliGemmaConfig,
    count_parameters,
    release_config,
)
from paligemma.errors import TokenizerError
from paligemma.processor.tokenizer import LOC_PIECES, SEG_PIECES, Tokenizer

MINI_FOLDER = Path(__file__).parents[1] / "mini" / "model"

# Our field -> key in config.json.
_KEYS = {
    "vision.resolution": "vision_config.image_size",
    "vision.patch_size": "vision_config.patch_size",
    "vision.width": "vision_config.hidden_size",
    "vision.depth": "vision_config.num_hidden_layers",
    "vision.mlp_dim": "vision_config.intermediate_size",
    "vision.num_heads": "vision_config.num_attention_heads",
    "vision.layer_norm_eps": "vision_config.layer_norm_eps",
    "decoder.vocab_size": "image_token_index",
    "decoder.width": "text_config.hidden_size",
    "decoder.depth": "text_config.num_hidden_layers",
    "decoder.mlp_dim": "text_config.intermediate_size",
    "decoder.num_heads": "text_config.num_attention_heads",
    "decoder.num_kv_heads": "text_config.num_key_value_heads",
    "decoder.head_dim": "text_config.head_dim",
    "decoder.query_scale": "text_config.query_pre_attn_scalar",
    "decoder.post_norms": "text_config.model_type",
    "decoder.attn_logit_softcap": "text_config.attn_logit_softcapping",
    "decoder.final_logit_softcap": "text_config.final_logit_softcapping",
    "decoder.sliding_window": "text_config.sliding_window",
    "decoder.sliding_layers": "text_config.layer_types",
    "decoder.rope_theta": "text_config.rope_theta",
    "decoder.rms_norm_eps": "text_config.rms_norm_eps",
}
_VALUES = frozenset(
    (
        "vision.num_heads",
        "vision.layer_norm_eps",
        "decoder.num_heads",
        "decoder.num_kv_heads",
        "decoder.head_dim",
        "decoder.query_scale",
        "decoder.attn_logit_softcap",
        "decoder.final_logit_softcap",
        "decoder.rope_theta",
        "decoder.rms_norm_eps",
    )
)
"""Fields that change no shape, or only together with others."""
_SOFT_CAPS = {"decoder.attn_logit_softcap": 50.0, "decoder.final_logit_softcap": 30.0}

# Ids of Gemma's SentencePiece model, which all released models share.
_GEMMA_TOKENIZER = "61a7b147390c64585d6c3543dd6fc636906c9af3865a5548f27f31aee1d4c8e2"
_GEMMA_IDS = {
    "\n": (108,),
    "hello world": (17534, 2134),
    "This is a test": (1596, 603, 476, 2121),
    "<loc0000>": (256000,),
    "<loc1023>": (257023,),
    "<seg000>": (257024,),
    "<seg127>": (257151,),
}


@dataclass(frozen=True, kw_only=True)
class Claim:
    """Which model a checkpoint claims to be."""

    name: str
    """Such as "PaliGemma 2 3B at 224 pixels", or "" for sizes that nobody released."""
    config: PaliGemmaConfig | None
    """What that model was trained with."""
    is_release: bool = False
    is_mini: bool = False
    variant: str | None = None
    """The name of the release, such as "paligemma2-3b-mix-224", where the model's name says it."""


def claim_of(config: PaliGemmaConfig, name: str) -> Claim:
    """Recognize a release, or mini, by the sizes of its tensors."""
    sizes = _sizes(config)
    is_released = config.vision.resolution in {release.resolution for release in RELEASES}
    for family, size in DECODERS if is_released else ():
        known = release_config(family, size, config.vision.resolution)
        if _sizes(known) == sizes:
            label = "PaliGemma" if family == "paligemma" else "PaliGemma 2"
            variant = next(
                (
                    release.variant
                    for release in sorted(RELEASES, key=lambda release: -len(release.variant))
                    if release.variant in name and release.config == known
                ),
                None,
            )
            text = f"{label} {size.upper()} at {config.vision.resolution} pixels"
            return Claim(name=text, config=known, is_release=True, variant=variant)
    mini = read_config(MINI_FOLDER).config
    if _sizes(mini) == sizes:
        return Claim(name="mini", config=mini, is_mini=True)
    return Claim(name="", config=None)


def _sizes(config: PaliGemmaConfig) -> tuple[int, ...]:
    """What the shapes of all tensors follow from."""
    vision, decoder = config.vision, config.decoder
    return (
        vision.resolution, vision.patch_size, vision.width, vision.depth, vision.mlp_dim,
        decoder.vocab_size, decoder.width, decoder.depth, decoder.mlp_dim, decoder.post_norms,
        decoder.num_heads * decoder.head_dim, decoder.num_kv_heads * decoder.head_dim,
    )  # fmt: skip


def flat_config(config: PaliGemmaConfig) -> dict[str, Any]:
    """{"decoder.query_scale": 0.0625, ...}"""
    return {
        f"{part}.{name}": value
        for part, fields in asdict(config).items()
        for name, value in fields.items()
    }


def key_of(field: str) -> str:
    """The key of config.json that a field of ours is read from."""
    return _KEYS[field]


def show_value(field: str, value: Any) -> str:
    """
    >>> show_value("decoder.query_scale", 0.0625), show_value("decoder.attn_logit_softcap", None)
    ('256', 'null')
    """
    return _show(stored_value(field, value))


def stored_value(field: str, value: Any) -> Any:
    """The value as config.json has it: the query scale as its inverse square."""
    return round(value**-2, 3) if field == "decoder.query_scale" else value


def check_config(checkpoint: Checkpoint, claim: Claim) -> Iterator[Finding]:
    """Compare what the config says with what the model was trained with."""
    values = flat_config(checkpoint.config)
    if claim.config is not None:
        expected = flat_config(claim.config)
        for field in _VALUES:
            if not _is_close(values[field], expected[field]):
                yield _wrong(field, values[field], expected[field], f"{claim.name} was trained")
    else:
        yield from _check_family(values)
    if checkpoint.format == "hf":
        yield from _check_small_files(checkpoint.path, checkpoint.config)


def _wrong(field: str, value: Any, expected: Any, who: str, level: Level = "fail") -> Finding:
    shown = _show(stored_value(field, value))
    return Finding(
        level=level,
        check="config",
        place=key_of(field),
        text=f"{shown}; {who} with {_show(stored_value(field, expected))}.",
    )


def _check_family(values: Mapping[str, Any]) -> Iterator[Finding]:
    """Sizes that nobody released: the rules that hold for every model of the family."""
    is_second = values["decoder.post_norms"]
    who = f"every {'PaliGemma 2' if is_second else 'PaliGemma'} was trained"
    for field, cap in _SOFT_CAPS.items():
        expected = cap if is_second else None
        if not _is_close(values[field], expected):
            is_off = (values[field] is None) != (expected is None)
            yield _wrong(field, values[field], expected, who, "fail" if is_off else "unusual")
    scalars = {
        values["decoder.head_dim"],
        round(values["decoder.width"] / values["decoder.num_heads"], 3),
    }
    scalar = stored_value("decoder.query_scale", values["decoder.query_scale"])
    if scalar not in scalars:
        choices = " or ".join(map(_show, sorted(scalars)))
        yield Finding(
            level="fail",
            check="config",
            place=key_of("decoder.query_scale"),
            text=f"{_show(scalar)}; {who} with the size of its heads, or its width per head: "
            f"{choices} here.",
        )
    usual = {"decoder.rope_theta": 1e4, "decoder.rms_norm_eps": 1e-6, "vision.layer_norm_eps": 1e-6}
    for field, value in usual.items():
        if not _is_close(values[field], value):
            yield _wrong(field, values[field], value, who, "unusual")


def _is_close(value: Any, expected: Any) -> bool:
    if isinstance(value, float) and isinstance(expected, float):
        return math.isclose(value, expected, rel_tol=1e-5)
    return bool(value == expected)


def _show(value: Any) -> str:
    return "null" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _check_small_files(folder: Path, config: PaliGemmaConfig) -> Iterator[Finding]:
    """Keys that this package does not read, but other programs do."""
    content = read_json(folder / CONFIG_FILE)
    text = content.get("text_config")
    window = text.get("sliding_window") if isinstance(text, dict) else None
    if config.decoder.post_norms and window not in (None, 4096):
        yield Finding(
            level="unusual",
            check="config",
            place="text_config.sliding_window",
            text=f"{window}; PaliGemma 2 has 4096. This package computes without a window, as in "
            "training, but transformers would use this one.",
        )
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        return
    preprocessor = read_json(path)
    size = {"height": config.vision.resolution, "width": config.vision.resolution}
    expected = {
        "size": size,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "resample": 3,
        "rescale_factor": 1 / 255,
    }
    for key, value in expected.items():
        if key in preprocessor and preprocessor[key] != value:
            yield Finding(
                level="unusual",
                check="config",
                place=f"{path.name}: {key}",
                text=f"{preprocessor[key]}; the model was trained with {value}. This package does "
                "not read the file, but other programs do.",
            )


def check_sizes(checkpoint: Checkpoint, claim: Claim) -> tuple[dict[str, Any], list[Finding]]:
    """The numbers of the structure, for the report, with what is wrong with them."""
    config = checkpoint.config
    decoder = config.decoder
    num_padding = 0 if checkpoint.padding is None else len(checkpoint.padding)
    counted = sum(math.prod(rows.shape) for rows in checkpoint.parameters.values())
    expected = count_parameters(claim.config or config)
    findings = []
    if counted != expected:
        findings.append(
            Finding(
                level="fail",
                check="structure",
                place="parameters",
                text=f"{counted:,} parameters; {claim.name} has {expected:,}.",
            )
        )
    structure = {
        "format": checkpoint.format,
        "claims to be": claim.name or "a model of other sizes than any release",
        "release": claim.variant,
        "family": "PaliGemma 2" if decoder.post_norms else "PaliGemma 1",
        "parameters": counted,
        "rows of the table": checkpoint.config.decoder.vocab_size + num_padding,
        "rows that count": decoder.vocab_size,
        "image tokens": config.vision.num_image_tokens,
        "layers (vision, decoder)": f"{config.vision.depth}, {decoder.depth}",
        "heads (vision)": f"{config.vision.num_heads} x {config.vision.head_dim}",
        "heads (decoder)": f"{decoder.num_heads} x {decoder.head_dim}, "
        f"{decoder.num_kv_heads} for keys and values",
        "norms after attention and MLP": decoder.post_norms,
        "query scale": f"{_show(stored_value('decoder.query_scale', decoder.query_scale))}^-0.5",
        "attention soft cap": _show(decoder.attn_logit_softcap),
        "final soft cap": _show(decoder.final_logit_softcap),
        "sliding window": "none, as in training"
        if decoder.sliding_window is None
        else decoder.sliding_window,
        "RoPE theta": _show(decoder.rope_theta),
        "stored dtypes": ", ".join(
            sorted({str(rows.dtype)[6:] for rows in checkpoint.parameters.values()})
        ),
        "stored quantization": checkpoint.quantization,
    }
    return structure, findings


def check_tokenizer(
    tokenizer: Tokenizer | TokenizerError | None, digest: str | None, checkpoint: Checkpoint,
    claim: Claim,
) -> Iterator[Finding]:  # fmt: skip
    """Whether tokenizer and table belong together."""

    def finding(level: Level, text: str) -> Finding:
        return Finding(level=level, check="tokenizer", place="tokenizer.model", text=text)

    if tokenizer is None:
        yield finding(
            "unusual", "It is missing, so the probes are token ids, and no text is checked."
        )
        return
    if isinstance(tokenizer, TokenizerError):
        yield finding("fail", str(tokenizer))
        return
    vocab_size = checkpoint.config.decoder.vocab_size
    if claim.is_release:
        if digest == _GEMMA_TOKENIZER:
            return
        wrong = [
            text for text, ids in _GEMMA_IDS.items() if tuple(tokenizer.tokenize_text(text)) != ids
        ]
        if wrong:
            yield finding(
                "fail",
                f"It is not Gemma's: {wrong[0]!r} becomes {tokenizer.tokenize_text(wrong[0])}, and "
                f"{list(_GEMMA_IDS[wrong[0]])} in the released models.",
            )
        else:
            yield finding("note", "Not the released file, but the ids of the texts tried agree.")
    elif tokenizer.vocab_size != vocab_size:
        extra = len(LOC_PIECES) + len(SEG_PIECES)
        hint = (
            f" The difference is that of the {extra} location and mask tokens."
            if abs(tokenizer.vocab_size - vocab_size) == extra
            else ""
        )
        yield finding(
            "fail",
            f"It has {tokenizer.vocab_size} ids and the table {vocab_size} rows, so it belongs to "
            f"another model.{hint}",
        )
