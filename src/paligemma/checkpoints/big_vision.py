"""The layout of big_vision's checkpoints, in which the models were trained (JAX, one .npz file).

Names and shapes: `big_vision/models/vit.py`, `models/ppp/gemma.py` and
`models/proj/paligemma/paligemma.py`. Layers are stacked along the first axis; linear weights are
(in, out). L layers, D width, F MLP width, N heads, K key/value heads, H head dim.
"""

from __future__ import annotations

from paligemma.checkpoints.layout import Layout, Part
from paligemma.config import PaliGemmaConfig

_VISION = "params/img/"
_DECODER = "params/llm/"
_BLOCK = _VISION + "Transformer/encoderblock/"
_LAYER = _DECODER + "layers/"

_TRANSPOSED = "i o -> o i"


def layout(config: PaliGemmaConfig) -> Layout:
    """Return where our parameters are in a file with `params/img/...` and `params/llm/...`."""
    parts = {
        "vision_encoder.patch_embedding.weight": Part(
            _VISION + "embedding/kernel", "h w c d -> d c h w"
        ),
        "vision_encoder.patch_embedding.bias": Part(_VISION + "embedding/bias"),
        "vision_encoder.position_embedding.weight": Part(_VISION + "pos_embedding", index=(0,)),
        **_norm("vision_encoder.post_layernorm", _VISION + "Transformer/encoder_norm"),
        **_linear("projector.linear", _VISION + "head"),
        "decoder.embedding.weight": Part(_DECODER + "embedder/input_embedding"),
        "decoder.final_norm.weight": Part(_DECODER + "final_norm/scale"),
    }
    for i in range(config.vision.depth):
        parts |= _vision_block(f"vision_encoder.blocks.{i}.", i)
    for i in range(config.decoder.depth):
        parts |= _decoder_block(f"decoder.blocks.{i}.", i, config.decoder.post_norms)
    sizes = {"heads": config.vision.num_heads, "n": config.decoder.num_heads}
    return Layout(parts=parts, sizes=sizes | {"k": config.decoder.num_kv_heads})


def _vision_block(ours: str, i: int) -> dict[str, Part]:
    attention = _BLOCK + "MultiHeadDotProductAttention_0/"
    parts = {
        **_norm(ours + "layer_norm1", _BLOCK + "LayerNorm_0", i),
        **_norm(ours + "layer_norm2", _BLOCK + "LayerNorm_1", i),
        **_linear(ours + "mlp.fc1", _BLOCK + "MlpBlock_0/Dense_0", i),
        **_linear(ours + "mlp.fc2", _BLOCK + "MlpBlock_0/Dense_1", i),
        f"{ours}attention.out_proj.weight": Part(
            attention + "out/kernel", "heads h o -> o (heads h)", (i,)
        ),
        f"{ours}attention.out_proj.bias": Part(attention + "out/bias", index=(i,)),
    }
    for short, name in (("q", "query"), ("k", "key"), ("v", "value")):
        parts[f"{ours}attention.{short}_proj.weight"] = Part(
            f"{attention}{name}/kernel", "i heads h -> (heads h) i", (i,)
        )
        parts[f"{ours}attention.{short}_proj.bias"] = Part(
            f"{attention}{name}/bias", "heads h -> (heads h)", (i,)
        )
    return parts


def _decoder_block(ours: str, i: int, post_norms: bool) -> dict[str, Part]:
    attention, mlp = ours + "attention.", ours + "mlp."
    key_value = _LAYER + "attn/kv_einsum/w"
    gating = _LAYER + "mlp/gating_einsum"
    parts = {
        attention + "q_proj.weight": Part(_LAYER + "attn/q_einsum/w", "n d h -> (n h) d", (i,)),
        attention + "k_proj.weight": Part(key_value, "k d h -> (k h) d", (i, 0)),
        attention + "v_proj.weight": Part(key_value, "k d h -> (k h) d", (i, 1)),
        attention + "o_proj.weight": Part(
            _LAYER + "attn/attn_vec_einsum/w", "n h d -> d (n h)", (i,)
        ),
        mlp + "gate_proj.weight": Part(gating, _TRANSPOSED, (i, 0)),
        mlp + "up_proj.weight": Part(gating, _TRANSPOSED, (i, 1)),
        mlp + "down_proj.weight": Part(_LAYER + "mlp/linear", _TRANSPOSED, (i,)),
    }
    norms = {"pre_attention_norm": "pre_attention_norm", "pre_mlp_norm": "pre_ffw_norm"}
    if post_norms:
        norms |= {"post_attention_norm": "post_attention_norm", "post_mlp_norm": "post_ffw_norm"}
    for name, theirs in norms.items():
        parts[f"{ours}{name}.weight"] = Part(f"{_LAYER}{theirs}/scale", index=(i,))
    return parts


def _norm(ours: str, theirs: str, *index: int) -> dict[str, Part]:
    return {
        f"{ours}.weight": Part(f"{theirs}/scale", index=index),
        f"{ours}.bias": Part(f"{theirs}/bias", index=index),
    }


def _linear(ours: str, theirs: str, *index: int) -> dict[str, Part]:
    return {
        f"{ours}.weight": Part(f"{theirs}/kernel", _TRANSPOSED, index),
        f"{ours}.bias": Part(f"{theirs}/bias", index=index),
    }
