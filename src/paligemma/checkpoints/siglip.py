"""Vision encoders of SigLIP models, as a start for training.

    timm             patch_embed.proj.weight, blocks.0.attn.qkv.weight, ...
    open_clip        the same after "visual.trunk."
    transformers     vision_model.embeddings.patch_embedding.weight, ...; also PaliGemma's own
    big_vision       params/img/embedding/kernel, ... in an .npz file

Only SigLIP's image transformers of the same width, depth and patch size fit. A file contains no
projector: it and the decoder still expect the features of the encoder that they were trained with.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import isqrt
from pathlib import Path

import torch
from torch import Tensor

from paligemma.checkpoints import big_vision, hf
from paligemma.checkpoints.layout import Layout, Part, PartRows, TensorStore
from paligemma.checkpoints.npz import NpzStore
from paligemma.checkpoints.reader import DTYPE_CODES, WeightFiles, is_finite, shorten
from paligemma.checkpoints.rows import read_all
from paligemma.config import PaliGemmaConfig
from paligemma.errors import CheckpointError, OptionError
from paligemma.model.paligemma import PaliGemma
from paligemma.model.siglip import resample_positions

_OURS = "vision_encoder."
_POSITIONS = _OURS + "position_embedding.weight"
_FOLDER_STEMS = ("model", "open_clip_model")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


@dataclass(frozen=True, kw_only=True)
class _Source:
    """How a library names the tensors of the encoder."""

    name: str
    marker: str
    """The name of a tensor that only this library's encoders have."""
    parts: Callable[[PaliGemmaConfig, Collection[str]], dict[str, Part]]
    """Our parameters' places, given the names after the prefix."""
    unused: tuple[str, ...]
    """Starts of names that are not of the encoder, such as its pooling head."""
    has_exact_gelu: bool = False


def load_vision_tower(model: PaliGemma, path: Path | str) -> tuple[str, ...]:
    """Replace the weights of a model's vision encoder by those in a file of a SigLIP model.

    `path` is a .safetensors file of timm, open_clip or transformers, a folder with one, or an .npz
    file of big_vision. Positions are resampled to the model's resolution, bilinear with aligned
    corners as in big_vision. Returns notes on what differs and what was left out.

    Raises CheckpointError, which names the tensors, for a file that is damaged or has an encoder of
    another shape, and OptionError for a model whose weights are packed. The model is then
    unchanged.

    >>> model = load_model("paligemma2-3b-pt-224", weights=Plain("float32"))  # doctest: +SKIP
    >>> load_vision_tower(model, "ViT-SO400M-14-SigLIP/model.safetensors")  # doctest: +SKIP
    """
    parameters = {
        _OURS + name: parameter for name, parameter in model.vision_encoder.named_parameters()
    }
    shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    with _opened(Path(path)) as store:
        source, prefix = _recognize(store)
        names = {name.removeprefix(prefix) for name in store.names if name.startswith(prefix)}
        parts = source.parts(model.config, names)
        if parts.keys() != shapes.keys():
            raise OptionError(
                "The weights of the model's vision encoder are packed or have adapters. Load the "
                "model with weights=Plain('float32')."
            )
        parts = {name: replace(part, tensor=prefix + part.tensor) for name, part in parts.items()}
        layout = Layout(parts=parts, sizes={"heads": model.config.vision.num_heads})
        positions = parts[_POSITIONS].tensor
        num_positions = _num_positions(store, positions)
        stored = shapes | {_POSITIONS: (num_positions, model.config.vision.width)}
        left_out = _check(store, layout.shapes(stored), prefix, source)
        values = {
            name: read_all(PartRows(name, shape, layout, store)) for name, shape in stored.items()
        }
    if broken := sorted(parts[name].tensor for name in values if not is_finite(values[name])):
        raise CheckpointError(f"{path} contains NaN or infinity: {shorten(broken)}.")
    values[_POSITIONS] = resample_positions(values[_POSITIONS], shapes[_POSITIONS][0])
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(values[name])
    return tuple(_notes(source, left_out, num_positions, shapes[_POSITIONS][0]))


def _notes(source: _Source, left_out: list[str], num_positions: int, used: int) -> Iterator[str]:
    yield (
        f"The vision encoder is that of a model of {source.name}. The projector and the decoder "
        "were not trained with it, so train at least the projector."
    )
    if num_positions != used:
        old, new = isqrt(num_positions), isqrt(used)
        yield f"Its positions were resampled from {old} x {old} to {new} x {new} patches."
    if left_out:
        yield f"Left out: {shorten(left_out, limit=3)}."
    if source.has_exact_gelu:
        yield (
            f"{source.name} computes it with the exact GELU, and SigLIP was trained with the tanh "
            "approximation, which is used here: features differ slightly."
        )


class _SafetensorsStore:
    """The tensors of safetensors files."""

    def __init__(self, path: Path, files: WeightFiles) -> None:
        self.path = path
        self._files = files

    @property
    def names(self) -> Collection[str]:
        return self._files.tensors.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return self._files.tensors[name].shape

    def dtype(self, name: str) -> torch.dtype:
        code = self._files.tensors[name].dtype_code
        if code not in DTYPE_CODES:
            raise CheckpointError(
                f"{name} in {self.path} has dtype {code}; expected one of {', '.join(DTYPE_CODES)}."
            )
        return DTYPE_CODES[code]

    def read(self, name: str, index: tuple[int, ...], start: int, end: int) -> Tensor:
        if index:  # only a leading axis of 1
            return self._files.read_rows(name, 0, 1)[index][start:end]
        return self._files.read_rows(name, start, end)


@contextmanager
def _opened(path: Path) -> Iterator[TensorStore]:
    path = path.expanduser()
    if not path.exists():
        raise CheckpointError(f"{path} does not exist. Give the file of a SigLIP model.")
    if path.suffix in _PICKLES:
        raise CheckpointError(
            f"{path} is a pickle, which can run code when opened, so it is never read. Use the "
            ".safetensors file of the same model."
        )
    if path.suffix == ".npz":
        store = NpzStore(path)
        try:
            yield store
        finally:
            store.close()
        return
    is_folder = path.is_dir()
    if not is_folder and path.suffix != ".safetensors":
        raise CheckpointError(
            f"{path} is not a vision encoder that can be read. Give a .safetensors file of timm, "
            "open_clip or transformers, a folder with one, or an .npz file of big_vision."
        )
    stems = _FOLDER_STEMS if is_folder else (path.stem,)
    with WeightFiles(path if is_folder else path.parent, stems) as files:
        yield _SafetensorsStore(path, files)


def _recognize(store: TensorStore) -> tuple[_Source, str]:
    """Return the library and what its names start with."""
    for source in _SOURCES:
        ends = sorted(name for name in store.names if name.endswith(source.marker))
        prefixes = [name.removesuffix(source.marker) for name in ends]
        for prefix in prefixes:
            if not prefix or prefix.endswith((".", "/")):
                return source, prefix
    raise CheckpointError(
        f"{store.path} contains no vision encoder of timm, open_clip, transformers or big_vision. "
        f"It contains {shorten(sorted(store.names), limit=3)}."
    )


def _num_positions(store: TensorStore, name: str) -> int:
    shape = store.shape(name) if name in store.names else ()
    number = shape[-2] if len(shape) >= 2 else 0
    if isqrt(number) ** 2 != number or number == 0:
        raise CheckpointError(
            f"{name} in {store.path} has the shape {shape}; expected the positions of a square "
            "grid, without a class token."
        )
    return number


def _check(
    store: TensorStore, expected: Mapping[str, tuple[int, ...]], prefix: str, source: _Source
) -> list[str]:
    """Raise unless the file has exactly the encoder's tensors; return the names of others."""
    unused = [
        name
        for name in sorted(store.names)
        if not name.startswith(prefix) or name.removeprefix(prefix).startswith(source.unused)
    ]
    names = set(store.names) - set(unused)
    problems = [f"{name} is missing" for name in sorted(expected.keys() - names)]
    problems += [
        f"{name} is {store.shape(name)}, expected {shape}"
        for name, shape in sorted(expected.items())
        if name in names and store.shape(name) != shape
    ]
    problems += [f"{name} is not expected" for name in sorted(names - expected.keys())]
    if problems:
        raise CheckpointError(
            f"The vision encoder in {store.path} is not of the shape of the model's: "
            f"{shorten(problems, limit=5)}. PaliGemma needs SigLIP So400m with patches of 14 "
            "pixels."
        )
    return sorted({_group(name, prefix) for name in unused})


def _group(name: str, prefix: str) -> str:
    """
    >>> _group("visual.trunk.attn_pool.kv.bias", "visual.trunk."), _group("text.proj", "")
    ('visual.trunk.attn_pool', 'text')
    """
    inside = prefix if name.startswith(prefix) else ""
    return inside + name.removeprefix(inside).replace("/", ".").partition(".")[0]


def _timm(config: PaliGemmaConfig, names: Collection[str]) -> dict[str, Part]:
    width = config.vision.width
    parts = {
        _POSITIONS: Part("pos_embed", index=(0,)),
        **_both("patch_embedding", "patch_embed.proj"),
        **_both("post_layernorm", "norm"),
    }
    for i in range(config.vision.depth):
        ours, theirs = f"blocks.{i}.", f"blocks.{i}."
        parts |= _both(ours + "layer_norm1", theirs + "norm1")
        parts |= _both(ours + "layer_norm2", theirs + "norm2")
        parts |= _both(ours + "attention.out_proj", theirs + "attn.proj")
        parts |= _both(ours + "mlp.fc1", theirs + "mlp.fc1")
        parts |= _both(ours + "mlp.fc2", theirs + "mlp.fc2")
        for j, name in enumerate(("q_proj", "k_proj", "v_proj")):
            rows = (j * width, (j + 1) * width)
            parts |= _both(f"{ours}attention.{name}", f"{theirs}attn.qkv", rows)
    return parts


def _both(ours: str, theirs: str, rows: tuple[int, int] | None = None) -> dict[str, Part]:
    return {
        f"{_OURS}{ours}.{leaf}": Part(f"{theirs}.{leaf}", rows=rows) for leaf in ("weight", "bias")
    }


def _transformers(config: PaliGemmaConfig, names: Collection[str]) -> dict[str, Part]:
    start = hf.POSITIONS.removesuffix("embeddings.position_embedding.weight")
    released = hf.to_released_names(config, _parameters(config))
    return {name: Part(theirs.removeprefix(start)) for name, theirs in released.items()}


def _big_vision(config: PaliGemmaConfig, names: Collection[str]) -> dict[str, Part]:
    is_stacked = "Transformer/encoderblock/LayerNorm_0/scale" in names
    parts = big_vision.layout(config, stacks_vision=is_stacked).parts
    return {
        name: replace(parts[name], tensor=parts[name].tensor.removeprefix("params/img/"))
        for name in _parameters(config)
    }


def _parameters(config: PaliGemmaConfig) -> list[str]:
    return list(_timm(config, ()))


_SOURCES = (
    _Source(
        name="timm or open_clip",
        marker="patch_embed.proj.weight",
        parts=_timm,
        unused=("attn_pool.", "fc_norm.", "head."),
        has_exact_gelu=True,
    ),
    _Source(
        name="transformers",
        marker="embeddings.patch_embedding.weight",
        parts=_transformers,
        unused=("head.", "embeddings.position_ids"),
    ),
    _Source(
        name="big_vision",
        marker="embedding/kernel",
        parts=_big_vision,
        unused=("MAPHead_0/", "head/", "pre_logits/"),
    ),
)
