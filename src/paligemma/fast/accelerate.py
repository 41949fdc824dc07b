"""Replace modules of a model by packed, fused ones, and access its weights by their plain names.

The model keeps its structure and methods: `model/` defines what is computed, `fast/` makes it fast.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from paligemma.errors import OptionError
from paligemma.fast.blocks import (
    FusedDecoder,
    FusedDecoderBlock,
    FusedPatchEmbedding,
    FusedProjector,
    FusedVisionBlock,
)
from paligemma.fast.cuda.block import MergedBlock
from paligemma.fast.frozen_linear import FrozenLinear
from paligemma.fast.linear import PackedEmbedding, ParameterRows, Rows
from paligemma.fast.quantization import FLOAT32_FORMATS, LAYER_FORMATS
from paligemma.fast.weights import Quantization
from paligemma.model.gemma import DecoderBlock
from paligemma.model.paligemma import PaliGemma
from paligemma.model.siglip import VisionBlock

_BLOCK_ROWS = 1024  # rows copied at once: a multiple of 16
_FUSED = FusedVisionBlock | FusedDecoderBlock | FusedProjector | PackedEmbedding


def accelerate(model: PaliGemma, quantization: Quantization | None = None) -> PaliGemma:
    """Replace the modules of a model by packed, fused ones, in place; return the model.

    Works module by module, so that the weights are never in memory twice. The model is bfloat16 or
    float32 and stays so. With `quantization` "int8", the decoder's linear layers and the embedding
    table of a bfloat16 model are int8; with "int4", the MLPs are int4 and the rest int8. The vision
    encoder stays bfloat16. A model on the meta device gets empty modules, to be filled through
    `weight_rows`.

    Raises OptionError for another dtype, and for an unknown quantization.
    """
    if quantization not in LAYER_FORMATS:
        raise OptionError(f"quantization is {quantization!r}; it must be 'int8', 'int4' or None.")
    is_float32 = model.dtype == torch.float32 and quantization is None
    if model.dtype != torch.bfloat16 and not is_float32:
        raise OptionError(
            f"The model is {model.dtype}; it must be bfloat16 to be packed (float32 without a "
            "quantization). Load it with weights=Plain('bfloat16')."
        )
    formats = FLOAT32_FORMATS if is_float32 else LAYER_FORMATS[quantization]
    vision, decoder = model.config.vision, model.config.decoder
    patches = FusedPatchEmbedding(model.vision_encoder.patch_embedding)
    model.vision_encoder.patch_embedding = patches  # type: ignore[assignment]
    fused_projector = FusedProjector(model.projector, formats.vision, model.device)
    projector = _move_weights(model.projector, fused_projector)
    model.projector = projector  # type: ignore[assignment]
    blocks = model.vision_encoder.blocks
    for i, block in enumerate(blocks):
        assert isinstance(block, VisionBlock)
        fused_block = FusedVisionBlock(block, vision, formats.vision, model.device)
        blocks[i] = _move_weights(block, fused_block)
    blocks = model.decoder.blocks
    for i, block in enumerate(blocks):
        assert isinstance(block, DecoderBlock)
        fused = FusedDecoderBlock(block, decoder, formats.attention, formats.mlp, model.device)
        blocks[i] = _move_weights(block, fused)
    table = PackedEmbedding(decoder.vocab_size, decoder.width, formats.table, model.device)
    embedding = _move_weights(model.decoder.embedding, table)
    model.decoder.embedding = embedding  # type: ignore[assignment]
    model.decoder = FusedDecoder(model.decoder)
    return model


def weight_rows(model: PaliGemma) -> dict[str, Rows]:
    """Return every parameter of the plain model by its name there, wherever it is stored.

    {"decoder.blocks.0.attention.q_proj.weight": WeightRows, ...}

    Raises OptionError for a model that was quantized on a CUDA device.
    """
    rows: dict[str, Rows] = {name: ParameterRows(p) for name, p in model.named_parameters()}
    for prefix, module in model.named_modules():
        if isinstance(module, _FUSED):
            rows |= {f"{prefix}.{name}": row for name, row in module.weight_rows().items()}
        elif isinstance(module, MergedBlock):
            for name in module.merged_names:
                del rows[f"{prefix}.{name}"]
            rows |= {f"{prefix}.{name}": row for name, row in module.weight_rows().items()}
        elif isinstance(module, FrozenLinear):
            rows[f"{prefix}.weight"] = module
    return rows


def quantization_of(model: PaliGemma) -> Quantization | None:
    """Return the quantization of an accelerated model's decoder, or None."""
    block = model.decoder.blocks[0]
    if not isinstance(block, FusedDecoderBlock):
        return None
    name = block.down.weight_format.name
    return name if name == "int8" or name == "int4" else None


def _move_weights(plain: nn.Module, fused: nn.Module) -> nn.Module:
    """Copy the weights of the plain module, unless it is on the meta device; return the fused."""
    parameters = dict(plain.named_parameters())
    for name, rows in cast("FusedDecoderBlock", fused).weight_rows().items():
        weight = parameters[name].detach()
        if weight.is_meta:
            break
        for start in range(0, weight.shape[0], _BLOCK_ROWS):
            rows.write(start, weight[start : start + _BLOCK_ROWS])
    return fused
