"""Presets of Keras (keras-hub's `PaliGemmaBackbone`): a folder with JSON files and HDF5 weights.

Weights are in `model.weights.h5`, or above 10 GiB in shards `model_00000.weights.h5` listed in
`model.weights.json`. A variable has the path of its layer, `/vars/` and its number: 0 is a kernel,
scale or table, 1 a bias. The first of several equal layers has no number, the next ends in _1.
Linear weights are (in, out). D width, F MLP width, N heads, K key/value heads, H head dim.

In an int8 preset, kernels and tables are int8, and the last variable of such a layer is a scale per
output or row: weight = q / scale.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor

from paligemma.checkpoints.files import read_json, write_json
from paligemma.checkpoints.hdf5 import DatasetToWrite, Hdf5Store, write_hdf5
from paligemma.checkpoints.keras_config import preset_files, query_scale_notes, read_config
from paligemma.checkpoints.layout import Layout, Part, open_parameters
from paligemma.checkpoints.opened import OpenCheckpoint
from paligemma.checkpoints.reader import check_location, shorten
from paligemma.checkpoints.rows import Contents, parameter_shapes
from paligemma.checkpoints.tokenizer_file import read_tokenizer_file
from paligemma.config import PaliGemmaConfig
from paligemma.errors import CheckpointError

WEIGHTS_FILE = "model.weights.h5"
INDEX_FILE = "model.weights.json"

_TOKENIZER = Path("assets", "tokenizer", "vocabulary.spm")
_SHARD_NAME = re.compile(r"model_\d{5}\.weights\.h5")
_MAX_SHARD_BYTES = 10 * 1024**3  # keras-hub's limit

_ENCODER = "layers/pali_gemma_vit/layers/pali_gemma_vit_encoder/"
_TRANSPOSED = "i o -> o i"


def layout(config: PaliGemmaConfig) -> Layout:
    """Return where our parameters are in the weights of a preset."""
    embeddings = _ENCODER + "vision_embeddings/"
    parts = {
        "vision_encoder.patch_embedding.weight": Part(
            embeddings + "patch_embedding/vars/0", "h w c d -> d c h w"
        ),
        "vision_encoder.patch_embedding.bias": Part(embeddings + "patch_embedding/vars/1"),
        "vision_encoder.position_embedding.weight": Part(embeddings + "position_embedding/vars/0"),
        **_with_bias("vision_encoder.post_layernorm", _ENCODER + "encoder_layer_norm"),
        **_with_bias("projector.linear", "layers/pali_gemma_vit/layers/dense", _TRANSPOSED),
        "decoder.embedding.weight": Part("layers/reversible_embedding/vars/0"),
        "decoder.final_norm.weight": Part("layers/rms_normalization/vars/0"),
    }
    for i in range(config.vision.depth):
        theirs = _numbered(_ENCODER + "resblocks/pali_gemma_vit_encoder_block", i)
        parts |= _vision_block(f"vision_encoder.blocks.{i}.", theirs)
    for i in range(config.decoder.depth):
        theirs = _numbered("layers/pali_gemma_decoder_block", i)
        parts |= _decoder_block(f"decoder.blocks.{i}.", theirs, config.decoder.post_norms)
    return Layout(
        parts=parts, sizes={"n": config.decoder.num_heads, "k": config.decoder.num_kv_heads}
    )


def _numbered(layer: str, i: int) -> str:
    return f"{layer}_{i}/" if i else f"{layer}/"


def _vision_block(ours: str, theirs: str) -> dict[str, Part]:
    parts: dict[str, Part] = {}
    for name in ("layer_norm1", "layer_norm2"):
        parts |= _with_bias(ours + name, f"{theirs}layer_norm_{name[-1]}")
    for name in ("fc1", "fc2"):
        parts |= _with_bias(f"{ours}mlp.{name}", f"{theirs}mlp_dense_{name[-1]}", _TRANSPOSED)
    names = {"q_proj": "query_proj", "k_proj": "key_proj", "v_proj": "value_proj"}
    for name, layer in (names | {"out_proj": "out_proj"}).items():
        parts |= _with_bias(f"{ours}attention.{name}", f"{theirs}attn/{layer}", _TRANSPOSED)
    return parts


def _decoder_block(ours: str, theirs: str, post_norms: bool) -> dict[str, Part]:
    layers = {
        "attention.q_proj": ("attention/query_dense", "n d h -> (n h) d"),
        "attention.k_proj": ("attention/key_dense", "k d h -> (k h) d"),
        "attention.v_proj": ("attention/value_dense", "k d h -> (k h) d"),
        "attention.o_proj": ("attention/output_dense", "n h d -> d (n h)"),
        "mlp.gate_proj": ("gating_ffw", _TRANSPOSED),
        "mlp.up_proj": ("gating_ffw_2", _TRANSPOSED),
        "mlp.down_proj": ("ffw_linear", _TRANSPOSED),
        "pre_attention_norm": ("pre_attention_norm", ""),
        "pre_mlp_norm": ("pre_ffw_norm", ""),
    }
    if post_norms:
        layers["post_attention_norm"] = ("post_attention_norm", "")
        layers["post_mlp_norm"] = ("post_ffw_norm", "")
    return {
        f"{ours}{name}.weight": Part(f"{theirs}{layer}/vars/0", pattern)
        for name, (layer, pattern) in layers.items()
    }


def _with_bias(ours: str, theirs: str, pattern: str = "") -> dict[str, Part]:
    return {
        f"{ours}.weight": Part(f"{theirs}/vars/0", pattern),
        f"{ours}.bias": Part(f"{theirs}/vars/1"),
    }


def open_keras(folder: Path, sliding_window: int | None = None) -> OpenCheckpoint:
    """Open a preset that keras-hub or keras-nlp wrote.

    int8 weights are dequantized as they are read. `sliding_window=4096` gives PaliGemma 2 the
    window of transformers.

    Raises CheckpointError, which names the invalid files, config keys or tensors, and
    MissingExtraError without h5py.
    """
    stored = read_config(folder, sliding_window)
    tokenizer = _read_tokenizer(folder)
    index, files = _weight_files(folder)
    store = Hdf5Store(folder, files, ignore=_is_random_state)
    try:
        if index is not None:
            _check_index(index, store)
        target = layout(stored.config)
        tensors = _Dequantized(store, target)
        parameters = open_parameters(target, stored.config, tensors)
    except BaseException:
        store.close()
        raise
    dtypes = {str(store.dtype(name)).removeprefix("torch.") for name in store.names}
    description: dict[str, object] = {**stored.versions, "stored_dtypes": sorted(dtypes)}
    notes = stored.notes
    if tensors.scales:
        description["quantization"] = "int8, one scale per output"
        notes = (*notes, "The int8 weights are dequantized: weight = q / scale.")
    return OpenCheckpoint(
        format="keras",
        path=folder,
        contents=Contents(
            config=stored.config,
            parameters=parameters,
            tokenizer=tokenizer,
        ),
        weight_files=tuple(files),
        close=store.close,
        dtype=parameters["decoder.final_norm.weight"].dtype,
        description=description,
        notes=notes,
    )


def _read_tokenizer(folder: Path) -> bytes | None:
    path = folder / _TOKENIZER
    if not os.path.lexists(path):
        return None
    check_location(path, folder.resolve())
    return read_tokenizer_file(path)


def _is_random_state(name: str) -> bool:
    """Return whether a dataset is the state of a dropout layer."""
    return "/seed_generator/" in name


class _Dequantized:
    """The tensors of a preset; int8 tensors and their scales appear as float32."""

    def __init__(self, store: Hdf5Store, target: Layout) -> None:
        self.path = store.path
        self._store = store
        self.scales: dict[str, tuple[str, tuple[int, ...]]] = {}
        """By int8 tensor: the name of its scale, and the shape that broadcasts to the tensor's."""
        for name in store.names:
            if store.dtype(name) == torch.int8:
                self.scales[name] = self._find_scale(name, target)

    def _find_scale(self, name: str, target: Layout) -> tuple[str, tuple[int, ...]]:
        group, _, number = name.rpartition("/")
        scale = f"{group}/{2 if f'{group}/1' in target.tensors else 1}"
        shape = self._store.shape(name)
        kept = _output_axes(target, name) if number == "0" and name in target.tensors else []
        broadcast = tuple(size if i in kept else 1 for i, size in enumerate(shape))
        if scale not in self._store.names or not kept:
            raise CheckpointError(
                f"{self.path}: {name} is int8, without the scale {scale} that Keras stores with "
                "it. Save the preset again."
            )
        has_values = [size for size in self._store.shape(scale) if size != 1]
        if has_values != [size for size in broadcast if size != 1] or not (
            self._store.dtype(scale).is_floating_point
        ):
            raise CheckpointError(
                f"{self.path}: {scale} is {self._store.dtype(scale)} {self._store.shape(scale)}; "
                f"expected a scale for {name}, which is int8 {shape}. Save the preset again."
            )
        return scale, broadcast

    @property
    def names(self) -> Collection[str]:
        return set(self._store.names) - {scale for scale, _ in self.scales.values()}

    def shape(self, name: str) -> tuple[int, ...]:
        return self._store.shape(name)

    def dtype(self, name: str) -> torch.dtype:
        return torch.float32 if name in self.scales else self._store.dtype(name)

    def read(self, name: str, index: tuple[int, ...], start: int, end: int) -> Tensor:
        values = self._store.read(name, index, start, end)
        if name not in self.scales:
            return values
        scale_name, broadcast = self.scales[name]
        scale_shape = self._store.shape(scale_name)
        scale = self._store.read(scale_name, (), 0, scale_shape[0]).float().view(broadcast)
        return values.float().div_(scale[start:end] if broadcast[0] > 1 else scale)


def _output_axes(target: Layout, tensor: str) -> list[int]:
    """Return the axes of a stored kernel or table that are the rows of our parameter.

    >>> from paligemma.config import release_config
    >>> target = layout(release_config("paligemma2", "3b", 224))
    >>> _output_axes(target, "layers/pali_gemma_decoder_block/attention/query_dense/vars/0")
    [0, 2]
    """
    pattern = target.parts[target.tensors[tensor][0]].pattern
    if not pattern:
        return [0]
    stored, ours = pattern.split(" -> ")
    rows = re.findall(r"\w+", ours.partition(")")[0] if ours.startswith("(") else ours.split()[0])
    return [i for i, axis in enumerate(stored.split()) if axis in rows]


def _weight_files(folder: Path) -> tuple[Path | None, list[Path]]:
    """Return the index, if there is one, and the files that contain the weights."""
    single, index = folder / WEIGHTS_FILE, folder / INDEX_FILE
    if single.exists() and index.exists():
        raise CheckpointError(
            f"{folder} contains both {WEIGHTS_FILE} and {INDEX_FILE}. Ambiguous: remove one of "
            "them."
        )
    shards = {path.name for path in folder.iterdir() if _SHARD_NAME.fullmatch(path.name)}
    if index.exists():
        names = {name for _, name in _index_entries(index)}
    elif single.exists():
        names = {WEIGHTS_FILE}
    elif shards:
        raise CheckpointError(
            f"{folder} contains {shorten(sorted(shards))} but no {INDEX_FILE}. Download or copy it "
            "too."
        )
    else:
        raise CheckpointError(
            f"{folder} contains neither {WEIGHTS_FILE} nor {INDEX_FILE}, so there are no weights "
            "to load. Give the folder of a complete preset."
        )
    if strays := shards - names:
        raise CheckpointError(
            f"{folder} also contains {shorten(sorted(strays))}, which do not belong to the "
            "weights. The folder mixes two checkpoints: remove the files of one of them."
        )
    files = [folder / name for name in sorted(names)]
    for file in files:
        check_location(file, folder.resolve())
    return (index if index.exists() else None), files


def _index_entries(index: Path) -> set[tuple[str, str]]:
    """Return the pairs of a group and a file that an index lists."""
    weight_map = read_json(index).get("weight_map")
    entries = set()
    for group, value in weight_map.items() if isinstance(weight_map, dict) else ():
        for name in value if isinstance(value, list) else [value]:
            if not isinstance(name, str) or not _SHARD_NAME.fullmatch(name):
                raise CheckpointError(
                    f"{index} names the file {str(name)[:80]!r}; expected plain names such as "
                    "model_00000.weights.h5, of files in the same folder."
                )
            entries.add((group, name))
    if not entries:
        raise CheckpointError(
            f"{index} has no weight_map that maps variables to files. Download or copy it again."
        )
    return entries


def _check_index(index: Path, store: Hdf5Store) -> None:
    """Raise unless an index lists exactly the variables that are in the files."""
    listed = {(group, name) for group, name in _index_entries(index) if not _is_random_state(group)}
    stored = {("/" + name.rpartition("/")[0], file.name) for name, file in store.file_of.items()}
    problems = [
        f"{what}: {shorten([f'{group} ({name})' for group, name in sorted(entries)], 5)}. "
        for what, entries in (
            ("Listed but not in the file", listed - stored),
            ("In the file but not listed", stored - listed),
        )
        if entries
    ]
    if problems:
        raise CheckpointError(
            f"{index} and the files disagree. {''.join(problems)}The files do not belong "
            "together; download or save them again."
        )


def write_keras(
    contents: Contents,
    folder: Path,
    dtype: torch.dtype,
    max_shard_bytes: int = _MAX_SHARD_BYTES,
) -> None:
    """Write a preset into an empty folder, which keras-hub's `from_preset` loads.

    Raises CheckpointError for a config that a preset cannot represent, and MissingExtraError
    without h5py.
    """
    dtype_name = str(dtype).removeprefix("torch.")
    files = preset_files(
        folder, contents.config, dtype_name, has_tokenizer=contents.tokenizer is not None
    )
    target = layout(contents.config)
    _write_weights(
        folder,
        {
            name: DatasetToWrite(
                dtype=dtype, shape=shape, pieces=target.blocks(name, contents.parameters, dtype)
            )
            for name, shape in target.shapes(parameter_shapes(contents.config)).items()
        },
        max_shard_bytes,
    )
    for name, content in files.items():
        write_json(folder / name, content)
    if contents.tokenizer is not None:
        (folder / _TOKENIZER).parent.mkdir(parents=True)
        (folder / _TOKENIZER).write_bytes(contents.tokenizer)
    for name, data in contents.files.items():
        (folder / name).write_bytes(data)


def losses(contents: Contents, dtype: torch.dtype) -> tuple[str, ...]:
    """Return notes on what Keras will do differently with a preset that `write_keras` writes."""
    notes = query_scale_notes(contents.config)
    if contents.tokenizer is None:
        notes.append(
            "There is no tokenizer, so Keras can load only the backbone of the preset. Give one "
            "with --tokenizer."
        )
    return tuple(notes)


def _write_weights(
    folder: Path, datasets: Mapping[str, DatasetToWrite], max_shard_bytes: int
) -> None:
    groups: dict[str, dict[str, DatasetToWrite]] = {}
    for name in sorted(datasets):
        groups.setdefault(name.rpartition("/")[0], {})[name] = datasets[name]
    shards: list[dict[str, DatasetToWrite]] = [{}]
    size, weight_map = 0, {}
    for group, members in groups.items():
        num_bytes = sum(dataset.num_bytes for dataset in members.values())
        if shards[-1] and size + num_bytes > max_shard_bytes:
            shards.append({})
            size = 0
        shards[-1] |= members
        size += num_bytes
        weight_map[f"/{group}"] = _shard_file(len(shards) - 1)
    for number, shard in enumerate(shards):
        write_hdf5(folder / (WEIGHTS_FILE if len(shards) == 1 else _shard_file(number)), shard)
    if len(shards) > 1:
        total = float(sum(dataset.num_bytes for dataset in datasets.values()))
        write_json(
            folder / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": weight_map}
        )


def _shard_file(number: int) -> str:
    """
    >>> _shard_file(0)
    'model_00000.weights.h5'
    """
    return f"model_{number:05}.weights.h5"
