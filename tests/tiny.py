"""Tiny models and inputs. Every dimension has a value of its own, so that a mix-up shows."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import sentencepiece
import torch
from torch import Tensor

from paligemma.config import DecoderConfig, Family, PaliGemmaConfig, VisionConfig
from paligemma.inputs import ModelInputs
from paligemma.model.attention import positions_of
from paligemma.model.paligemma import PaliGemma

FAMILIES: tuple[Family, ...] = ("paligemma", "paligemma2")

# How far apart two float32 computations of the same logits or log-probabilities may be. Tiny
# models' logits reach 5, where neighboring float32 values are 4.8e-7 apart. A batch, a cache or
# another processor adds the same terms in another order: after up to seven layers we have seen
# 1.2e-5. A real mistake (a wrong mask, position or scale) is off by 1e-3 or more.
FLOAT32_TOLERANCE = 2e-5

_VISION = VisionConfig(
    resolution=30, patch_size=6, width=27, depth=2, mlp_dim=44, num_heads=3, layer_norm_eps=3e-5
)
_DECODERS: dict[Family, DecoderConfig] = {
    "paligemma": DecoderConfig(
        vocab_size=151,
        width=32,
        depth=4,
        mlp_dim=56,
        num_heads=8,
        num_kv_heads=1,
        head_dim=10,
        query_scale=10**-0.5,
        rope_theta=500.0,
        rms_norm_eps=2e-5,
    ),
    "paligemma2": DecoderConfig(
        vocab_size=151,
        width=48,
        depth=7,
        mlp_dim=60,
        num_heads=12,
        num_kv_heads=4,
        head_dim=14,
        query_scale=20**-0.5,
        post_norms=True,
        attn_logit_softcap=1.5,
        final_logit_softcap=2.5,
        rope_theta=500.0,
        rms_norm_eps=2e-5,
    ),
}


class TensorRows:
    """A tensor as the `StoredRows` of a checkpoint."""

    def __init__(self, name: str, values: Tensor) -> None:
        self.name, self.values = name, values
        self.shape, self.dtype = tuple(values.shape), values.dtype

    def read(self, start: int, end: int) -> Tensor:
        return self.values[start:end]


def tiny_config(family: Family = "paligemma2", **decoder_fields: Any) -> PaliGemmaConfig:
    """25 image tokens of 27 features; a vocabulary of 151."""
    return PaliGemmaConfig(vision=_VISION, decoder=replace(_DECODERS[family], **decoder_fields))


def train_tokenizer(
    sentences: Sequence[str], *, vocab_size: int, user_defined: Sequence[str]
) -> bytes:
    """Train a SentencePiece model like Gemma's on a few sentences; return the file."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*sentences] * 20),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab_size,
        hard_vocab_limit=False,
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        user_defined_symbols=list(user_defined),
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        pad_piece="<pad>",
        eos_piece="<eos>",
        bos_piece="<bos>",
        minloglevel=2,
    )
    return model.getvalue()


def portable_config(family: Family = "paligemma2") -> PaliGemmaConfig:
    """A tiny config that all formats can represent: with the constants of the releases."""
    # mlx-vlm takes PaliGemma 1's head dim as width / heads.
    head_dim = 14 if family == "paligemma2" else 4
    decoder = replace(
        _DECODERS[family],
        head_dim=head_dim,
        query_scale=head_dim**-0.5,
        rope_theta=10_000.0,
        rms_norm_eps=1e-6,
    )
    if family == "paligemma2":
        decoder = replace(decoder, attn_logit_softcap=50.0, final_logit_softcap=30.0)
    return PaliGemmaConfig(vision=replace(_VISION, layer_norm_eps=1e-6), decoder=decoder)


def portable_model(family: Family = "paligemma2", seed: int = 0) -> PaliGemma:
    """A random float32 model that all formats can represent."""
    model = PaliGemma(portable_config(family))
    randomize(model, seed)
    return model.eval()


def tiny_model(family: Family = "paligemma2", seed: int = 0, **decoder_fields: Any) -> PaliGemma:
    """A random float32 model in eval mode, the same for the same arguments."""
    model = PaliGemma(tiny_config(family, **decoder_fields))
    randomize(model, seed)
    return model.eval()


def varied_model(family: Family = "paligemma2", **decoder_fields: Any) -> PaliGemma:
    """A tiny model that says something else at every step, and is sure of it.

    A tied model with a strong embedding repeats its last token, and narrow caps make ties.
    """
    wide: dict[str, Any] = {"attn_logit_softcap": 20.0, "final_logit_softcap": 30.0}
    model = tiny_model(family, **(wide if family == "paligemma2" else {}), **decoder_fields)
    with torch.no_grad():
        model.decoder.embedding.weight.mul_(0.05)
        model.decoder.final_norm.weight.add_(20.0)
    return model


def randomize(model: torch.nn.Module, seed: int) -> None:
    """Weights large enough that every part of the model leaves its mark on the logits."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            values = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:  # biases and norms
                parameter.copy_(0.3 * values)
            else:
                parameter.copy_(1.5 * values * parameter[0].numel() ** -0.5)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row to build: which pictures, then how many tokens of each kind."""

    images: tuple[int, ...] = (0,)
    prefix: int = 5
    suffix: int = 0


def tiny_inputs(
    config: PaliGemmaConfig, rows: Sequence[Row], *, pad: str = "left", seed: int = 1
) -> ModelInputs:
    """Random tokens and pictures in the given rows; pads stand on the side named."""
    generator = torch.Generator().manual_seed(seed)
    num_image_tokens = config.vision.num_image_tokens
    lengths = [len(r.images) * num_image_tokens + r.prefix + r.suffix for r in rows]
    shape = (len(rows), max(lengths))
    token_ids = torch.zeros(shape, dtype=torch.long)
    input_mask, mask_ar, image_mask, loss_mask = (
        torch.zeros(shape, dtype=torch.bool) for _ in range(4)
    )
    for i, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        start = shape[1] - length if pad == "left" else 0
        text = start + len(row.images) * num_image_tokens
        suffix, end = text + row.prefix, start + length
        token_ids[i, text:end] = torch.randint(
            4, config.decoder.vocab_size, (end - text,), generator=generator
        )
        input_mask[i, start:end] = True
        image_mask[i, start:text] = True
        mask_ar[i, suffix:] = True
        loss_mask[i, suffix:end] = True
    num_images = 1 + max((image for row in rows for image in row.images), default=-1)
    side = config.vision.resolution
    return ModelInputs(
        token_ids=token_ids,
        input_mask=input_mask,
        mask_ar=mask_ar,
        image_mask=image_mask,
        pixel_values=torch.rand((num_images, 3, side, side), generator=generator) * 2 - 1,
        image_index=tuple(row.images for row in rows),
        loss_mask=loss_mask,
    )


def tiny_reference(config: PaliGemmaConfig, seed: int = 0) -> Any:
    """The same shape built by transformers, with random weights, in eval mode."""
    import transformers

    vision, decoder = config.vision, config.decoder
    table_rows = -(-(decoder.vocab_size + 1) // 64) * 64
    text_config: dict[str, Any] = {
        "model_type": "gemma",
        "vocab_size": table_rows,
        "hidden_size": decoder.width,
        "intermediate_size": decoder.mlp_dim,
        "num_hidden_layers": decoder.depth,
        "num_attention_heads": decoder.num_heads,
        "num_key_value_heads": decoder.num_kv_heads,
        "head_dim": decoder.head_dim,
        "rms_norm_eps": decoder.rms_norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": decoder.rope_theta},
    }
    if decoder.post_norms:
        text_config |= {
            "model_type": "gemma2",
            "query_pre_attn_scalar": round(decoder.query_scale**-2),
            "attn_logit_softcapping": decoder.attn_logit_softcap,
            "final_logit_softcapping": decoder.final_logit_softcap,
            "sliding_window": decoder.sliding_window or 4096,
        }
    reference = transformers.PaliGemmaForConditionalGeneration._from_config(
        transformers.PaliGemmaConfig(
            text_config=text_config,
            vision_config={
                "model_type": "siglip_vision_model",
                "image_size": vision.resolution,
                "patch_size": vision.patch_size,
                "hidden_size": vision.width,
                "intermediate_size": vision.mlp_dim,
                "num_hidden_layers": vision.depth,
                "num_attention_heads": vision.num_heads,
                "layer_norm_eps": vision.layer_norm_eps,
                "vision_use_head": False,
            },
            image_token_index=decoder.vocab_size,
            projection_dim=decoder.width,
            hidden_size=decoder.width,
        ),
        attn_implementation="eager",  # the one that knows soft caps
    )
    randomize(reference, seed)
    table = reference.get_input_embeddings().weight
    with torch.no_grad():  # no padding row may win
        table[decoder.vocab_size :] = table[: decoder.vocab_size].mean(dim=0)
    return reference.eval()


def reference_arguments(inputs: ModelInputs, reference: Any) -> dict[str, torch.Tensor]:
    """A batch as transformers wants it: placeholder ids, and token types 0 for the prefix."""
    ids = inputs.token_ids.masked_fill(inputs.image_mask, reference.config.image_token_index)
    flat_index = [image for row in inputs.image_index for image in row]
    assert inputs.pixel_values is not None
    # Its positions count pads unless they are given; counting starts at 1.
    return {
        "input_ids": ids,
        "attention_mask": inputs.input_mask.long(),
        "token_type_ids": inputs.mask_ar.long(),
        "position_ids": positions_of(inputs.input_mask) + 1,
        "pixel_values": inputs.pixel_values[flat_index],
    }
