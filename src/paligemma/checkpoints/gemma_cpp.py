"""The layout of gemma.cpp's checkpoints, one .sbs file with weights, config and tokenizer.

All tensors are matrices, linear weights are (out, in). Names and shapes: `gemma/tensor_info.cc` and
`gemma/weights.cc`; config: `gemma/configs.h`. N heads, K key/value heads, H head dim, D width.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from paligemma.checkpoints.config_checks import (
    MAX_DEPTH,
    MAX_SIZE,
    check_represented,
    with_window,
)
from paligemma.checkpoints.layout import Layout, Part, open_parameters
from paligemma.checkpoints.opened import OpenCheckpoint
from paligemma.checkpoints.reader import shorten
from paligemma.checkpoints.rows import Contents, StoredRows, parameter_shapes, read_all
from paligemma.checkpoints.sbs import (
    CONFIG,
    TABLE,
    TOKENIZER,
    NewMatrix,
    SbsFile,
    Structure,
    Vector,
    WeightType,
    Words,
    encode_structure,
    write_sbs_file,
)
from paligemma.checkpoints.tokenizer_file import read_tokenizer
from paligemma.config import DecoderConfig, PaliGemmaConfig, VisionConfig
from paligemma.errors import CheckpointError, OptionError

_NO_TOKENIZER = b"unavailable"
_WEIGHTS: dict[torch.dtype | Literal["sfp"], WeightType] = {
    torch.float32: WeightType.f32,
    torch.bfloat16: WeightType.bf16,
    "sfp": WeightType.sfp,
}
_NOTES = {
    WeightType.sfp: "The decoder's matrices have 8 bits per weight (SFP).",
    WeightType.nuq: "Matrices have 4 bits per weight (NUQ).",
    WeightType.i8: "Matrices have 8 bits per weight (i8, in groups of 128).",
}
"""Each value is read as gemma.cpp decodes it."""
_FLOAT32 = (
    "img_emb_bias",
    "img_pos_emb",
    "img_head_bias",
    "attn_out_b",
    "qkv_ein_b",
    "linear_0_b",
    "linear_1_b",
)
_LAYER_WEIGHTS = ("att_ein", "gating_ein", "linear_w", "qkv_ein")
_MAX_LENGTH = 8192
_WINDOW = 4096
_PALIGEMMA = 3  # how prompts are wrapped
_END_OF_TURN = 107
_MODELS = {(2304, 224): 10, (2304, 448): 11, (3584, 224): 12, (3584, 448): 13}
"""gemma.cpp's numbers of its models, by width and resolution."""
_SIZES = {2048: "3B", 2304: "3B", 3584: "10B", 4608: "28B"}

_LAYER = Structure(
    name="LayerConfig",
    fields={
        "model_dim": int,
        "unused_griffin": int,
        "ff_hidden_dim": int,
        "heads": int,
        "kv_heads": int,
        "qkv_dim": int,
        "unused_convolution": int,
        "ff_biases": int,
        "unused_biases": int,
        "optimized_gating": int,
        "post_norm": int,
        "type": int,
        "activation": int,
        "post_qk": int,
        "use_qk_norm": int,
    },
)
_VIT = Structure(
    name="VitConfig",
    fields={
        "model_dim": int,
        "seq_len": int,
        "num_scales": int,
        "patch_width": int,
        "image_size": int,
        "layer_configs": Vector(_LAYER),
        "pool_dim": int,
    },
)
_MODEL = Structure(
    name="ModelConfig",
    fields={
        "model_family_version": int,
        "display_name": str,
        "model": int,
        "wrapping": int,
        "weight": int,
        "num_layers": int,
        "model_dim": int,
        "vocab_size": int,
        "max_seq_len": int,
        "unused_scales": int,
        "att_cap": float,
        "final_cap": float,
        "absolute_pe": int,
        "unused_local": int,
        "query_scale": int,
        "layer_configs": Vector(_LAYER),
        "attention_window_sizes": Vector(int),
        "norm_num_groups": int,
        "vit_config": _VIT,
        "pool_dim": int,
        "eos_id": int,
        "secondary_eos_id": int,
        "scale_base_names": Vector(str),
    },
)


def layout(config: PaliGemmaConfig, names: Collection[str] = ()) -> Layout:
    """Return where our parameters are in a file with tensors of these names.

    Three tensors of a layer can also be stored as two, or in another order: `names` decides.
    """
    vision, decoder = config.vision, config.decoder
    parts = {
        "vision_encoder.patch_embedding.weight": Part("img_emb_kernel", "d (p q c) -> d c p q"),
        "vision_encoder.patch_embedding.bias": _vector("img_emb_bias"),
        "vision_encoder.position_embedding.weight": Part("img_pos_emb"),
        "vision_encoder.post_layernorm.weight": _vector("enc_norm_scale"),
        "vision_encoder.post_layernorm.bias": _vector("enc_norm_bias"),
        "projector.linear.weight": Part("img_head_kernel"),
        "projector.linear.bias": _vector("img_head_bias"),
        "decoder.embedding.weight": Part("c_embedding"),
        "decoder.final_norm.weight": _vector("c_final_norm"),
    }
    for i in range(vision.depth):
        parts |= _vision_block(f"vision_encoder.blocks.{i}.", i)
    for i in range(decoder.depth):
        parts |= _decoder_block(f"decoder.blocks.{i}.", i, decoder, names)
    sizes = {"p": vision.patch_size, "q": vision.patch_size, "n": decoder.num_heads}
    sizes |= {"heads": vision.num_heads, "k": decoder.num_kv_heads, "two": 2, "three": 3}
    return Layout(parts=parts, sizes=sizes)


def _vision_block(ours: str, i: int) -> dict[str, Part]:
    attention = ours + "attention."
    parts = {
        f"{ours}layer_norm1.weight": _vector(f"ln_0_scale_{i}"),
        f"{ours}layer_norm1.bias": _vector(f"ln_0_bias_{i}"),
        f"{ours}layer_norm2.weight": _vector(f"ln_1_scale_{i}"),
        f"{ours}layer_norm2.bias": _vector(f"ln_1_bias_{i}"),
        f"{ours}mlp.fc1.weight": Part(f"linear_0_w_{i}"),
        f"{ours}mlp.fc1.bias": _vector(f"linear_0_b_{i}"),
        f"{ours}mlp.fc2.weight": Part(f"linear_1_w_{i}"),
        f"{ours}mlp.fc2.bias": _vector(f"linear_1_b_{i}"),
        f"{attention}out_proj.weight": Part(f"attn_out_w_{i}"),
        f"{attention}out_proj.bias": _vector(f"attn_out_b_{i}"),
    }
    for pick, name in enumerate(("q_proj", "k_proj", "v_proj")):
        parts[f"{attention}{name}.weight"] = Part(
            f"qkv_ein_w_{i}", "(heads three h) d -> three (heads h) d", pick=pick
        )
        parts[f"{attention}{name}.bias"] = Part(
            f"qkv_ein_b_{i}", "(heads three) h -> three (heads h)", pick=pick
        )
    return parts


def _decoder_block(
    ours: str, i: int, decoder: DecoderConfig, names: Collection[str]
) -> dict[str, Part]:
    attention, mlp = ours + "attention.", ours + "mlp."
    queries = decoder.num_heads * decoder.head_dim
    rows = queries + 2 * decoder.num_kv_heads * decoder.head_dim
    key_value = "(k two h) d -> two (k h) d"
    parts = {
        f"{attention}o_proj.weight": Part(f"att_ein_{i}", "(n d) h -> d (n h)"),
        f"{attention}q_proj.weight": Part(f"qkv_ein_{i}", rows=(0, queries)),
        f"{attention}k_proj.weight": Part(f"qkv_ein_{i}", key_value, rows=(queries, rows), pick=0),
        f"{attention}v_proj.weight": Part(f"qkv_ein_{i}", key_value, rows=(queries, rows), pick=1),
        f"{mlp}gate_proj.weight": Part(f"gating_ein_{i}", rows=(0, decoder.mlp_dim)),
        f"{mlp}up_proj.weight": Part(
            f"gating_ein_{i}", rows=(decoder.mlp_dim, 2 * decoder.mlp_dim)
        ),
        f"{mlp}down_proj.weight": Part(f"linear_w_{i}"),
        f"{ours}pre_attention_norm.weight": _vector(f"pre_att_ns_{i}"),
        f"{ours}pre_mlp_norm.weight": _vector(f"pre_ff_ns_{i}"),
    }
    if decoder.post_norms:
        parts[f"{ours}post_attention_norm.weight"] = _vector(f"post_att_ns_{i}")
        parts[f"{ours}post_mlp_norm.weight"] = _vector(f"post_ff_ns_{i}")
    if f"att_w_{i}" in names:
        parts[f"{attention}o_proj.weight"] = Part(f"att_w_{i}")
    if f"qkv1_w_{i}" in names:
        parts[f"{attention}q_proj.weight"] = Part(f"qkv1_w_{i}")
        parts[f"{attention}k_proj.weight"] = Part(f"qkv2_w_{i}", key_value, pick=0)
        parts[f"{attention}v_proj.weight"] = Part(f"qkv2_w_{i}", key_value, pick=1)
    if f"gating1_w_{i}" in names:
        parts[f"{mlp}gate_proj.weight"] = Part(f"gating1_w_{i}")
        parts[f"{mlp}up_proj.weight"] = Part(f"gating2_w_{i}")
    return parts


def open_sbs(path: Path, sliding_window: int | None = None) -> OpenCheckpoint:
    """Open a file of gemma.cpp. Raises CheckpointError, which says what is damaged or missing."""
    file = SbsFile(path)
    try:
        if CONFIG not in file.blobs or not file.tensors:
            raise CheckpointError(_why_no_config(file))
        config, fields = read_blob(file.blob(CONFIG), path, sliding_window)
        parameters = open_parameters(layout(config, file.tensors), config, file)
        parameters = _narrowed(parameters)
        tokenizer = file.blob(TOKENIZER) if TOKENIZER in file.blobs else _NO_TOKENIZER
    except BaseException:
        file.close()
        raise
    types = Counter(matrix.type for matrix in file.tensors.values())
    return OpenCheckpoint(
        format="sbs",
        path=path,
        contents=Contents(
            config=config,
            parameters=parameters,
            tokenizer=read_tokenizer(path) if tokenizer == _NO_TOKENIZER else tokenizer,
        ),
        weight_files=(path,),
        close=file.close,
        dtype=parameters["decoder.embedding.weight"].dtype,
        description={
            "version": f"gemma.cpp, container {file.version}",
            "model": fields.get("display_name", ""),
            "stored_dtypes": {kind.name: types[kind] for kind in sorted(types)},
        },
        notes=tuple(_NOTES[kind] for kind in sorted(types) if kind in _NOTES),
    )


class _Bfloat16Rows:
    """Float32 rows that bfloat16 holds exactly."""

    def __init__(self, rows: StoredRows) -> None:
        self.name, self.shape, self.dtype = rows.name, rows.shape, torch.bfloat16
        self._rows = rows

    def read(self, start: int, end: int) -> Tensor:
        return self._rows.read(start, end).bfloat16()


def _narrowed(parameters: dict[str, StoredRows]) -> dict[str, StoredRows]:
    """Return biases and positions as bfloat16 if all are exact in it, as all else is.

    gemma.cpp has them in float32, whatever they were converted from. So a bfloat16 model stays one.
    """
    names = [name for name, rows in parameters.items() if rows.dtype == torch.float32]
    if any(not name.startswith(("vision_encoder.", "projector.")) for name in names):
        return parameters
    for name in names:
        values = read_all(parameters[name])
        if not torch.equal(values, values.bfloat16().float()):
            return parameters
    return parameters | {name: _Bfloat16Rows(parameters[name]) for name in names}


def _why_no_config(file: SbsFile) -> str:
    if all(name[0] in "FB$2I" for name in file.blobs):
        return (
            f"{file.path} is in the form that gemma.cpp wrote before 2025, which has no config. "
            "Convert a PaliGemma 2 with gemma.cpp's tool `migrate_weights`, which no longer knows "
            "PaliGemma 1, or use the release in another format."
        )
    return (
        f"{file.path} has no {CONFIG!r} or no {TABLE!r}, so it is not a model. It contains "
        f"{shorten(list(file.blobs), limit=5)}."
    )


def write_sbs(
    contents: Contents, path: Path, dtype: torch.dtype | Literal["sfp"] = torch.bfloat16
) -> None:
    """Write a file for gemma.cpp: float32, bfloat16, or the decoder's layers in 8 bits ("sfp").

    Raises CheckpointError for a model that gemma.cpp cannot compute.
    """
    if dtype not in _WEIGHTS:
        raise CheckpointError(
            f"gemma.cpp has no {dtype}. Choose float32, bfloat16 or sfp (8 bits)."
        )
    weight = _WEIGHTS[dtype]
    blob = write_blob(contents.config, weight)
    check_represented(contents.config, read_blob(blob, path)[0], "gemma.cpp's files")
    target = layout(contents.config)
    tensors = {}
    for name, shape in target.shapes(parameter_shapes(contents.config)).items():
        weight_type = _type_of(name, weight)
        piece_dtype = torch.bfloat16 if weight_type is WeightType.bf16 else torch.float32
        tensors[name] = NewMatrix(
            type=weight_type,
            shape=(shape[0], shape[1]),
            pieces=partial(target.blocks, name, contents.parameters, piece_dtype),
        )
    blobs = {CONFIG: blob, TOKENIZER: contents.tokenizer or _NO_TOKENIZER}
    write_sbs_file(path, tensors, blobs)


def losses(contents: Contents, dtype: torch.dtype | Literal["sfp"]) -> tuple[str, ...]:
    """Return notes on which weights `write_sbs` rounds."""
    notes = []
    parts, parameters = layout(contents.config).parts, contents.parameters
    rounded = sorted(
        {
            str(rows.dtype).removeprefix("torch.")
            for name, rows in parameters.items()
            if rows.dtype != torch.bfloat16
            and _type_of(parts[name].tensor, _WEIGHTS[dtype]) is not WeightType.f32
        }
    )
    if rounded:
        notes.append(
            f"{' and '.join(rounded)} weights are rounded to bfloat16; biases and position "
            "embeddings stay float32."
        )
    if dtype == "sfp":
        notes.append(
            "The matrices of the decoder's layers are rounded to the 8 bits of SFP: about 4 "
            "significant binary digits."
        )
    return tuple(notes)


def _type_of(tensor: str, weight: WeightType) -> WeightType:
    """Return the type that gemma.cpp expects: its readers check them."""
    base = tensor.rstrip("0123456789").rstrip("_")
    if weight is WeightType.f32 or base in _FLOAT32:
        return WeightType.f32
    return weight if base in _LAYER_WEIGHTS else WeightType.bf16


def _vector(tensor: str) -> Part:
    """A matrix of one row."""
    return Part(tensor, index=(0,))


def read_blob(
    blob: bytes, path: Path, sliding_window: int | None = None
) -> tuple[PaliGemmaConfig, dict[str, Any]]:
    """Return the config in a blob, and the fields of the blob.

    gemma.cpp trusts these fields, whatever model they name. Raises CheckpointError if they are not
    those of a PaliGemma.
    """
    words = Words(blob, f"{CONFIG!r} of {path}")
    fields = words.structure(_MODEL)
    check = _Check(path)
    check.value("its prompts", fields, "wrapping", _PALIGEMMA)
    for name, expected in (("absolute_pe", 0), ("norm_num_groups", 1), ("pool_dim", 1)):
        check.value("the model", fields, name, expected)
    try:
        vision = _read_vision(fields.get("vit_config", {}), check)
        decoder = _read_decoder(fields, check)
    except OptionError as error:
        raise CheckpointError(f"{path}: {error}") from error
    decoder = with_window(decoder, sliding_window)
    return PaliGemmaConfig(vision=vision, decoder=decoder), fields


class _Check:
    """Reads fields of the config; its errors name the file, the structure and the field."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def value(
        self, what: str, fields: Mapping[str, Any], name: str, *allowed: object, default: Any = None
    ) -> Any:
        value = fields.get(name, allowed[0] if default is None else default)
        if value not in allowed:
            raise CheckpointError(
                f"The config in {self._path} says for {what} that {name} is {value}; expected "
                f"{' or '.join(map(str, allowed))}. This is not a PaliGemma, or the file is "
                "damaged."
            )
        return value

    def size(self, what: str, fields: Mapping[str, Any], name: str) -> int:
        value = fields.get(name, 0)
        if not 1 <= value <= MAX_SIZE:
            raise CheckpointError(
                f"The config in {self._path} says for {what} that {name} is {value}; expected 1 "
                f"to {MAX_SIZE}. This is not a PaliGemma, or the file is damaged."
            )
        return int(value)

    def layers(self, what: str, fields: Mapping[str, Any], constants: Mapping[str, int]) -> Any:
        """Return the fields that all layers share."""
        layers = fields.get("layer_configs", [])
        if not 1 <= len(layers) <= MAX_DEPTH or any(layer != layers[0] for layer in layers):
            raise CheckpointError(
                f"The config in {self._path} has {len(layers)} layers for {what}; expected 1 to "
                f"{MAX_DEPTH}, all of the same shape. This is not a PaliGemma, or the file is "
                "damaged."
            )
        for name, expected in constants.items():
            self.value(f"a layer of {what}", layers[0], name, expected)
        self.value(what, layers[0], "model_dim", fields.get("model_dim"), 0)
        return layers[0]


def _read_vision(fields: Mapping[str, Any], check: _Check) -> VisionConfig:
    what = "the vision encoder"
    width = check.size(what, fields, "model_dim")
    layer = check.layers(what, fields, {"type": 1, "ff_biases": 1, "activation": 0, "post_norm": 0})
    config = VisionConfig(
        resolution=check.size(what, fields, "image_size"),
        patch_size=check.size(what, fields, "patch_width"),
        width=width,
        depth=len(fields["layer_configs"]),
        mlp_dim=check.size(what, layer, "ff_hidden_dim"),
        num_heads=check.size(what, layer, "heads"),
    )
    check.value(what, fields, "seq_len", config.num_image_tokens)
    check.value(what, fields, "pool_dim", 1)
    check.value(what, layer, "kv_heads", config.num_heads)
    check.value(what, layer, "qkv_dim", config.head_dim)
    return config


def _read_decoder(fields: Mapping[str, Any], check: _Check) -> DecoderConfig:
    what = "the decoder"
    width = check.size(what, fields, "model_dim")
    constants = {"type": 0, "ff_biases": 0, "activation": 0, "post_qk": 0, "use_qk_norm": 0}
    layer = check.layers(what, fields, constants)
    depth = len(fields["layer_configs"])
    check.value(what, fields, "num_layers", depth)
    heads, head_dim = check.size(what, layer, "heads"), check.size(what, layer, "qkv_dim")
    scale_size = width // heads if check.value(what, fields, "query_scale", 0, 1) else head_dim
    post_norms = bool(check.value(what, layer, "post_norm", 0, 1))
    caps = {name: fields.get(name, 0.0) for name in ("att_cap", "final_cap")}
    if min(caps.values()) < 0:
        raise CheckpointError(f"The config of {what} has negative soft caps: {caps}.")
    return DecoderConfig(
        vocab_size=check.size(what, fields, "vocab_size"),
        width=width,
        depth=depth,
        mlp_dim=check.size(what, layer, "ff_hidden_dim"),
        num_heads=heads,
        num_kv_heads=check.size(what, layer, "kv_heads"),
        head_dim=head_dim,
        query_scale=scale_size**-0.5,
        post_norms=post_norms,
        attn_logit_softcap=caps["att_cap"] or None,
        final_logit_softcap=caps["final_cap"] or None,
    )


def write_blob(config: PaliGemmaConfig, weight: WeightType) -> bytes:
    """Return the blob for a config; `read_blob` tells what gemma.cpp would compute with it."""
    vision, decoder = config.vision, config.decoder
    layer = dict.fromkeys(_LAYER.fields, 0) | {
        "model_dim": decoder.width,
        "ff_hidden_dim": decoder.mlp_dim,
        "heads": decoder.num_heads,
        "kv_heads": decoder.num_kv_heads,
        "qkv_dim": decoder.head_dim,
        "post_norm": int(decoder.post_norms),
    }
    vision_layer = dict.fromkeys(_LAYER.fields, 0) | {
        "model_dim": vision.width,
        "ff_hidden_dim": vision.mlp_dim,
        "heads": vision.num_heads,
        "kv_heads": vision.num_heads,
        "qkv_dim": vision.head_dim,
        "ff_biases": 1,
        "optimized_gating": 1,
        "type": 1,
    }
    is_second = decoder.post_norms
    size = _SIZES.get(decoder.width, f"W{decoder.width}")
    content = dict.fromkeys(_MODEL.fields, 0) | {
        "model_family_version": 1,
        "display_name": f"PaliGemma{2 if is_second else 1}_{size}_{vision.resolution}",
        "model": _MODELS.get((decoder.width, vision.resolution), min(_MODELS.values())),
        "wrapping": _PALIGEMMA,
        "weight": int(weight),
        "num_layers": decoder.depth,
        "model_dim": decoder.width,
        "vocab_size": decoder.vocab_size,
        "max_seq_len": _MAX_LENGTH,
        "att_cap": decoder.attn_logit_softcap or 0.0,
        "final_cap": decoder.final_logit_softcap or 0.0,
        "query_scale": int(decoder.query_scale != decoder.head_dim**-0.5),
        "layer_configs": [layer] * decoder.depth,
        "attention_window_sizes": _windows(config),
        "norm_num_groups": 1,
        "vit_config": {
            "model_dim": vision.width,
            "seq_len": vision.num_image_tokens,
            "num_scales": 4 * vision.depth,
            "patch_width": vision.patch_size,
            "image_size": vision.resolution,
            "layer_configs": [vision_layer] * vision.depth,
            "pool_dim": 1,
        },
        "pool_dim": 1,
        "eos_id": 1,
        "secondary_eos_id": _END_OF_TURN if is_second else 1,
        "scale_base_names": list(_LAYER_WEIGHTS),
    }
    words = encode_structure(_MODEL, content)
    return struct.pack(f"<{len(words)}I", *words)


def _windows(config: PaliGemmaConfig) -> list[int]:
    """Return each layer's window, as Google's files have it for PaliGemma 2.

    Where the window would cut image tokens off, there is none, as in the code that trained.
    """
    decoder = config.decoder
    if decoder.sliding_window is not None:
        return [decoder.sliding_window if w else _MAX_LENGTH for w in decoder.sliding_layers]
    if not decoder.post_norms or config.vision.num_image_tokens >= _WINDOW:
        return [_MAX_LENGTH] * decoder.depth
    return [_MAX_LENGTH if i % 2 else _WINDOW for i in range(decoder.depth)]
