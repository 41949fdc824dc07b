"""big_vision's checkpoints: one .npz file in the layout in which the models were trained.

Names and shapes: `big_vision/models/vit.py`, `models/ppp/gemma.py` and
`models/proj/paligemma/paligemma.py`. Layers are stacked along the first axis; linear weights are
(in, out). There is no config: it follows from the shapes (`big_vision_config.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor

from paligemma.checkpoints.big_vision_config import BLOCKS as _BLOCKS
from paligemma.checkpoints.big_vision_config import DECODER as _DECODER
from paligemma.checkpoints.big_vision_config import LAYERS as _LAYER
from paligemma.checkpoints.big_vision_config import VISION as _VISION
from paligemma.checkpoints.big_vision_config import config_of_shapes
from paligemma.checkpoints.config_checks import check_represented
from paligemma.checkpoints.layout import Layout, Part, TensorStore, open_parameters
from paligemma.checkpoints.npz import ArrayToWrite, NpzStore, write_npz
from paligemma.checkpoints.opened import OpenCheckpoint
from paligemma.checkpoints.reader import shorten
from paligemma.checkpoints.rows import Contents, parameter_shapes
from paligemma.checkpoints.tokenizer_file import read_tokenizer
from paligemma.config import PaliGemmaConfig
from paligemma.errors import CheckpointError

PREFIXES = ("params/", "opt/target/", "")
"""Where the arrays of a model are, in the files of big_vision's versions."""


_TRANSPOSED = "i o -> o i"


_ALIASES = {
    _VISION + "Transformer/posembed_input/pos_embedding": _VISION + "pos_embedding",
    _VISION + "Transformer/pos_embedding": _VISION + "pos_embedding",
}
"""Names of older versions, which big_vision's own loader repairs."""
_POOLING_HEAD = _VISION + "MAPHead_0/"  # of SigLIP; PaliGemma never uses it


def layout(
    config: PaliGemmaConfig, *, stacks_vision: bool = True, merges_qkv: bool = False
) -> Layout:
    """Return where our parameters are in a file with `params/img/...` and `params/llm/...`.

    Vision towers that were trained without `nn.scan` have one group of arrays per layer, and
    decoders with as many key/value heads as heads have query, key and value in one array.
    """
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
        theirs = _BLOCKS + ("/" if stacks_vision else f"_{i}/")
        parts |= _vision_block(f"vision_encoder.blocks.{i}.", theirs, (i,) if stacks_vision else ())
    for i in range(config.decoder.depth):
        ours = f"decoder.blocks.{i}."
        parts |= _attention(ours + "attention.", i, merges_qkv)
        parts |= _mlp_and_norms(ours, i, config.decoder.post_norms)
    sizes = {"heads": config.vision.num_heads, "n": config.decoder.num_heads}
    return Layout(parts=parts, sizes=sizes | {"k": config.decoder.num_kv_heads})


def _vision_block(ours: str, theirs: str, index: tuple[int, ...]) -> dict[str, Part]:
    attention = theirs + "MultiHeadDotProductAttention_0/"
    parts = {
        **_norm(ours + "layer_norm1", theirs + "LayerNorm_0", index),
        **_norm(ours + "layer_norm2", theirs + "LayerNorm_1", index),
        **_linear(ours + "mlp.fc1", theirs + "MlpBlock_0/Dense_0", index),
        **_linear(ours + "mlp.fc2", theirs + "MlpBlock_0/Dense_1", index),
        f"{ours}attention.out_proj.weight": Part(
            attention + "out/kernel", "heads h o -> o (heads h)", index
        ),
        f"{ours}attention.out_proj.bias": Part(attention + "out/bias", index=index),
    }
    for short, name in (("q", "query"), ("k", "key"), ("v", "value")):
        parts[f"{ours}attention.{short}_proj.weight"] = Part(
            f"{attention}{name}/kernel", "i heads h -> (heads h) i", index
        )
        parts[f"{ours}attention.{short}_proj.bias"] = Part(
            f"{attention}{name}/bias", "heads h -> (heads h)", index
        )
    return parts


def _attention(ours: str, i: int, merges_qkv: bool) -> dict[str, Part]:
    theirs = _LAYER + "attn/"
    if merges_qkv:
        parts = {
            f"{ours}{name}_proj.weight": Part(
                theirs + "qkv_einsum/w", "n d h -> (n h) d", (i, number)
            )
            for number, name in enumerate("qkv")
        }
    else:
        key_value = theirs + "kv_einsum/w"
        parts = {
            ours + "q_proj.weight": Part(theirs + "q_einsum/w", "n d h -> (n h) d", (i,)),
            ours + "k_proj.weight": Part(key_value, "k d h -> (k h) d", (i, 0)),
            ours + "v_proj.weight": Part(key_value, "k d h -> (k h) d", (i, 1)),
        }
    out = Part(theirs + "attn_vec_einsum/w", "n h d -> d (n h)", (i,))
    return parts | {ours + "o_proj.weight": out}


def _mlp_and_norms(ours: str, i: int, post_norms: bool) -> dict[str, Part]:
    gating = _LAYER + "mlp/gating_einsum"
    parts = {
        ours + "mlp.gate_proj.weight": Part(gating, _TRANSPOSED, (i, 0)),
        ours + "mlp.up_proj.weight": Part(gating, _TRANSPOSED, (i, 1)),
        ours + "mlp.down_proj.weight": Part(_LAYER + "mlp/linear", _TRANSPOSED, (i,)),
    }
    norms = {"pre_attention_norm": "pre_attention_norm", "pre_mlp_norm": "pre_ffw_norm"}
    if post_norms:
        norms |= {"post_attention_norm": "post_attention_norm", "post_mlp_norm": "post_ffw_norm"}
    for name, theirs in norms.items():
        parts[f"{ours}{name}.weight"] = Part(f"{_LAYER}{theirs}/scale", index=(i,))
    return parts


def _norm(ours: str, theirs: str, index: tuple[int, ...] = ()) -> dict[str, Part]:
    return {
        f"{ours}.weight": Part(f"{theirs}/scale", index=index),
        f"{ours}.bias": Part(f"{theirs}/bias", index=index),
    }


def _linear(ours: str, theirs: str, index: tuple[int, ...] = ()) -> dict[str, Part]:
    return {
        f"{ours}.weight": Part(f"{theirs}/kernel", _TRANSPOSED, index),
        f"{ours}.bias": Part(f"{theirs}/bias", index=index),
    }


def open_npz(path: Path, sliding_window: int | None = None) -> OpenCheckpoint:
    """Open a checkpoint of big_vision, or one in the same form from openpi.

    Arrays other than the model's, such as an optimizer's, are left out and named in the notes.

    Raises CheckpointError, which names the file and the arrays.
    """
    store = NpzStore(path)
    try:
        arrays, notes = _model_arrays(store)
        shapes = {name: arrays.shape(name) for name in arrays.names}
        config = config_of_shapes(path, shapes, sliding_window)
        parameters = open_parameters(
            layout(
                config,
                stacks_vision=_BLOCKS + "/LayerNorm_0/scale" in shapes,
                merges_qkv=_LAYER + "attn/qkv_einsum/w" in shapes,
            ),
            config,
            arrays,
        )
    except BaseException:
        store.close()
        raise
    dtypes = sorted({str(arrays.dtype(name)).removeprefix("torch.") for name in arrays.names})
    return OpenCheckpoint(
        format="npz",
        path=path,
        contents=Contents(config=config, parameters=parameters, tokenizer=read_tokenizer(path)),
        weight_files=(path,),
        close=store.close,
        dtype=parameters["decoder.embedding.weight"].dtype,
        description={"version": "big_vision", "stored_dtypes": dtypes},
        notes=notes,
    )


class _ModelArrays:
    """The arrays of a model in an archive, under the names of released files."""

    def __init__(self, store: NpzStore, names: Mapping[str, str]) -> None:
        self.path = store.path
        self._store, self._names = store, names

    @property
    def names(self) -> Collection[str]:
        return self._names.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return self._store.shape(self._names[name])

    def dtype(self, name: str) -> torch.dtype:
        return self._store.dtype(self._names[name])

    def read(self, name: str, index: tuple[int, ...], start: int, end: int) -> Tensor:
        return self._store.read(self._names[name], index, start, end)


def _model_arrays(store: NpzStore) -> tuple[TensorStore, tuple[str, ...]]:
    """Return the arrays of the model, and notes on those that are left out."""
    prefix = next((p for p in PREFIXES if f"{p}llm/embedder/input_embedding" in store.names), None)
    if prefix is None:
        raise CheckpointError(_why_no_model(store))
    names, others = {}, []
    for name in store.names:
        released = "params/" + name.removeprefix(prefix)
        released = _ALIASES.get(released, released)
        if (
            not released.startswith((_VISION, _DECODER))
            or not name.startswith(prefix)
            or released.startswith(_POOLING_HEAD)
        ):
            others.append(name)
        else:
            names[released] = name
    note = f"Left out, because they are not of the model: {shorten(sorted(others), limit=3)}."
    return _ModelArrays(store, names), (note,) if others else ()


def _why_no_model(store: NpzStore) -> str:
    names = sorted(store.names)
    if any(name.endswith("img/embedding/kernel") for name in names):
        return (
            f"{store.path} contains an image encoder but no PaliGemma decoder "
            "(llm/embedder/input_embedding). It may be a SigLIP model, which training can start "
            "from."
        )
    return (
        f"{store.path} is not a PaliGemma of big_vision: it contains {shorten(names, limit=5)}; "
        "expected params/img/... and params/llm/... . Give the .npz file of a release."
    )


def write_big_vision(contents: Contents, path: Path, dtype: torch.dtype) -> None:
    """Write an .npz file. Raises CheckpointError for a config that it cannot represent."""
    shapes = parameter_shapes(contents.config)
    target = layout(contents.config)
    stored = target.shapes(shapes)
    check_represented(contents.config, config_of_shapes(path, stored), "an .npz file")
    arrays = {
        name: ArrayToWrite(
            dtype=dtype, shape=shape, pieces=target.blocks(name, contents.parameters, dtype)
        )
        for name, shape in stored.items()
    }
    write_npz(path, arrays)
