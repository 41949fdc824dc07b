"""Read and write adapters in peft's format, with Hugging Face tensor names.

    adapter_config.json         rank, alpha, kind
    adapter_model.safetensors   base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_A.weight
                                float[r, K]; lora_B.weight float[N, r]; lora_magnitude_vector float[N]

Files are untrusted input: names, shapes and the base model must match before any value is read, and
a setting that would change the computation is never ignored. The tensors determine which layers are
adapted; `target_modules`, a regular expression for other readers, is written but never evaluated.
peft need not be installed.
"""  # noqa: E501

from __future__ import annotations

import hashlib
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from paligemma.adapters.lora import LowRank, Part, linear_layers, lora_layers
from paligemma.checkpoints.files import read_json, write_json
from paligemma.checkpoints.hf import to_memory_name, to_released_name, to_released_names
from paligemma.checkpoints.reader import DTYPE_CODES, WeightFiles, is_finite, shorten, single_file
from paligemma.checkpoints.save import TensorToWrite, new_folder, write_weight_file
from paligemma.checkpoints.trained_on import TRAINED_ON_FILE, TrainedOn
from paligemma.config import PaliGemmaConfig
from paligemma.errors import CheckpointError, NumericalError, OptionError, counted
from paligemma.fast.accelerate import weight_rows
from paligemma.model.paligemma import PaliGemma

CONFIG_FILE = "adapter_config.json"

_STEM = "adapter_model"
ADAPTER_WEIGHTS = single_file(_STEM)
_PREFIX = "base_model.model."
_FINGERPRINT = "paligemma.base_fingerprint"
_LEAVES = {
    "lora_A.weight": "a",
    "lora_B.weight": "b",
    "lora_magnitude_vector": "magnitude",
    "lora_magnitude_vector.weight": "magnitude",  # older peft
}

# Settings that this package applies, and those without effect on a trained adapter. All others
# must be off.
_APPLIED = frozenset(
    (
        "peft_type", "r", "lora_alpha", "use_rslora", "use_dora", "lora_dropout", "rank_pattern",
        "alpha_pattern", "init_lora_weights", "bias", "modules_to_save",
    )
)  # fmt: skip
_INERT = frozenset(
    (
        "auto_mapping", "base_model_name_or_path", "revision", "inference_mode", "peft_version",
        "task_type", "target_modules", "exclude_modules", "layers_pattern", "layers_to_transform",
        "eva_config", "megatron_core", "qalora_group_size", "runtime_config",
    )
)  # fmt: skip
# Initializations that leave the base as it is; the others subtract from it what they put into A
# and B.
_INITIALIZATIONS = (True, False, None, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """A trained adapter whose names and shapes fit the model."""

    layers: Mapping[str, LowRank]
    """By the name of the layer in our model."""
    dropout: float
    base_name: str | None
    """The name of the base model, as recorded in the adapter's config."""
    base_fingerprint: str | None
    """`base_fingerprint` of the base model's weights, if this package wrote the adapter."""
    folder: Path

    def check_base(self, fingerprint: str) -> None:
        """Raises CheckpointError if the adapter was trained on other weights."""
        if self.base_fingerprint not in (None, fingerprint):
            raise CheckpointError(
                f"The adapter {self.folder} was trained on other weights: {self.base_name!r} with "
                f"fingerprint {self.base_fingerprint}, but this model's fingerprint is "
                f"{fingerprint}. Load it on the model that it was trained on."
            )


def read_adapter(folder: Path | str, config: PaliGemmaConfig, *, verify: bool = False) -> Adapter:
    """Read an adapter for a model with this config.

    Supports LoRA, rsLoRA and DoRA of peft, with the names of transformers 4 and 5. `verify=True`
    first compares the file with its SHA-256, which this package writes and peft does not.

    Raises CheckpointError for files that are missing or damaged, unsupported settings, tensors
    without a counterpart in the model or of another shape, invalid ranks, NaN and infinity.
    """
    folder = Path(os.path.expanduser(folder))
    if not folder.exists():
        raise CheckpointError(f"The adapter's folder {folder} does not exist. Check the path.")
    if not (folder / CONFIG_FILE).is_file():
        raise CheckpointError(
            f"{folder} contains no {CONFIG_FILE}, so it is not an adapter. Give a folder written "
            "by save_adapter or by peft's save_pretrained."
        )
    settings = _Settings.read(folder / CONFIG_FILE)
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise CheckpointError(
            f"{folder} contains no {ADAPTER_WEIGHTS}. Other formats, such as pickles (.bin), "
            "are never read: save the adapter again as safetensors."
        )
    with WeightFiles(folder, (_STEM,)) as weights:
        if verify:
            weights.verify()
        sources = _match(weights, config, settings)
        broken: list[str] = []
        layers = {}
        for layer, names in sources.items():
            tensors = {leaf: _read(weights, name, broken) for leaf, name in names.items()}
            layers[layer] = LowRank(
                a=tensors["a"],
                b=tensors["b"],
                magnitude=tensors.get("magnitude"),
                alpha=settings.alpha_of(_peft_module(config, layer)),
                use_rslora=settings.use_rslora,
            )
        fingerprint = weights.metadata.get(_FINGERPRINT)
    if broken:
        raise CheckpointError(
            f"{folder} contains NaN or infinity in {counted(len(broken), 'tensor')}: "
            f"{shorten(broken)}. "
            "Download the adapter again, or train it again with a lower learning rate."
        )
    return Adapter(
        layers=layers,
        dropout=settings.dropout,
        base_name=settings.base_name,
        base_fingerprint=fingerprint,
        folder=folder,
    )


def write_adapter(
    model: PaliGemma,
    folder: Path | str,
    *,
    base_name: str | None = None,
    revision: str | None = None,
    trained_on: TrainedOn | None = None,
) -> Path:
    """Write a model's adapters atomically; return the absolute path of the folder.

    `base_name` and `revision` record what the model was loaded from, `trained_on` how it was asked
    in training. Tensors are written as float32, as they are trained. Raises OptionError for a
    model without adapters, CheckpointError when the folder exists and is not empty, NumericalError
    for NaN and infinity.

    >>> write_adapter(model, "my-adapter")  # doctest: +SKIP
    PosixPath('/home/me/my-adapter')
    """
    adapted = lora_layers(model)
    if not adapted:
        raise OptionError(
            "The model has no adapter to save: none was added, or it was merged. Save the whole "
            "model with save()."
        )
    tensors = []
    for name, layer in adapted.items():
        module = _PREFIX + _peft_module(model.config, name)
        low_rank = layer.low_rank()
        parts = {"lora_A.weight": low_rank.a, "lora_B.weight": low_rank.b}
        if low_rank.magnitude is not None:
            parts["lora_magnitude_vector"] = low_rank.magnitude
        tensors += [_to_write(f"{module}.{leaf}", tensor) for leaf, tensor in parts.items()]
    metadata = {}
    # With float16, the values of the fingerprint would be rounded twice.
    if model.dtype != torch.float16:
        metadata[_FINGERPRINT] = fingerprint_of(model)
    tensors.sort(key=lambda tensor: tensor.name)
    with new_folder(folder) as partial:
        broken = write_weight_file(partial / ADAPTER_WEIGHTS, tensors, metadata)
        if broken:
            raise NumericalError(
                f"{counted(len(broken), 'tensor')} of the adapter with NaN or infinity: "
                f"{shorten(broken)}. Nothing was written. Train again with a lower learning rate."
            )
        write_json(partial / CONFIG_FILE, _describe(model, base_name, revision))
        if trained_on is not None:
            (partial / TRAINED_ON_FILE).write_bytes(trained_on.to_bytes())
    return Path(folder).absolute()


def base_fingerprint(config: PaliGemmaConfig, read: Callable[[str], Tensor]) -> str:
    """Return a hash that identifies a model's weights, independent of dtype and quantization.

    It covers vectors that are never quantized, the decoder's norms and the projector's bias,
    rounded to bfloat16; any full fine-tuning changes some of them. `read` returns a parameter of
    our model by name.
    """
    digest = hashlib.sha256()
    for name in _vectors(config):
        values = read(name).detach().to(device="cpu", dtype=torch.bfloat16).contiguous()
        digest.update(name.encode() + values.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:32]


def fingerprint_of(model: PaliGemma) -> str:
    """Return the `base_fingerprint` of a model in memory, with or without adapters."""
    rows = {name.replace(".base.", "."): row for name, row in weight_rows(model).items()}
    return base_fingerprint(model.config, lambda name: rows[name].read(0, rows[name].shape[0]))


def _vectors(config: PaliGemmaConfig) -> list[str]:
    norms = ["pre_attention_norm", "pre_mlp_norm"]
    if config.decoder.post_norms:
        norms += ["post_attention_norm", "post_mlp_norm"]
    names = [f"decoder.blocks.{i}.{n}" for i in range(config.decoder.depth) for n in norms]
    weights = [f"{name}.weight" for name in (*names, "decoder.final_norm")]
    return [*weights, "projector.linear.bias"]


@dataclass(frozen=True, kw_only=True)
class _Settings:
    rank: int
    alpha: float
    dropout: float
    use_rslora: bool
    use_dora: bool
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]
    base_name: str | None

    @classmethod
    def read(cls, path: Path) -> _Settings:
        content = read_json(path)
        kind = content.get("peft_type")
        if kind != "LORA":
            raise CheckpointError(
                f"{path}: peft_type is {_shown(kind)}; only 'LORA' (with rsLoRA and DoRA) is "
                "supported. Merge other adapters into their model with peft."
            )
        if content.get("modules_to_save"):
            raise CheckpointError(
                f"{path}: modules_to_save is {_shown(content['modules_to_save'])}; whole layers "
                "trained alongside the adapter are not supported. Merge the adapter into its model "
                "with peft and load that."
            )
        if content.get("bias", "none") != "none":
            raise CheckpointError(
                f"{path}: bias is {_shown(content['bias'])}; only adapters without trained biases "
                "('none') are supported. Merge the adapter into its model with peft."
            )
        init = content.get("init_lora_weights", True)
        if not any(init is name or init == name for name in _INITIALIZATIONS):
            raise CheckpointError(
                f"{path}: init_lora_weights is {_shown(init)}, which also changes the base model. "
                "Convert it to plain LoRA when saving with peft "
                "(path_initial_model_for_weight_conversion), or merge it there."
            )
        for key, value in content.items():
            if key not in _APPLIED | _INERT and not _is_off(value):
                raise CheckpointError(
                    f"{path}: {_shown(key)} is {_shown(value)}, a setting that this package does "
                    "not support. Merge the adapter into its model with peft."
                )
        base_name = content.get("base_model_name_or_path")
        return cls(
            rank=_number(path, content, "r", 8, whole=True),
            alpha=_number(path, content, "lora_alpha", 8),
            dropout=_number(path, content, "lora_dropout", 0.0, lowest=0),
            use_rslora=_flag(path, content, "use_rslora"),
            use_dora=_flag(path, content, "use_dora"),
            ranks=_pattern(path, content, "rank_pattern", whole=True),
            alphas=_pattern(path, content, "alpha_pattern"),
            base_name=base_name if isinstance(base_name, str) else None,
        )

    def rank_of(self, module: str) -> int:
        return next((r for end, r in self.ranks.items() if _ends_in(module, end)), self.rank)

    def alpha_of(self, module: str) -> float:
        return next((a for end, a in self.alphas.items() if _ends_in(module, end)), self.alpha)


def _match(
    weights: WeightFiles, config: PaliGemmaConfig, settings: _Settings
) -> dict[str, dict[str, str]]:
    """Map our layers to {"a": name in the file, ...}; checks everything except values."""
    shapes = _linear_shapes(config)
    released = to_released_names(config, [f"{layer}.weight" for layer in shapes])
    layers = {theirs: ours.removesuffix(".weight") for ours, theirs in released.items()}
    matched: dict[str, dict[str, str]] = {}
    unknown, problems = [], []
    for name in weights.tensors:
        module, leaf = _split(name)
        layer = layers.get(to_released_name(f"{module}.weight")) if leaf else None
        if leaf is None or layer is None:
            unknown.append(name)
        elif leaf in matched.setdefault(layer, {}):
            problems.append(f"{name} and {matched[layer][leaf]} are the same tensor")
        else:
            matched[layer][leaf] = name
    required = ("a", "b", "magnitude") if settings.use_dora else ("a", "b")
    for layer, names in matched.items():
        if missing := [leaf for leaf in required if leaf not in names]:
            problems.append(f"{next(iter(names.values()))} has no matching {missing[0]}")
            continue
        unknown += [] if settings.use_dora else [names[x] for x in names if x == "magnitude"]
        problems += _wrong_shapes(weights, names, shapes[layer], settings)
    if unknown:
        problems.insert(0, f"no linear layer of this model has {shorten(sorted(unknown))}")
    if not weights.tensors:
        problems.append("it contains no tensors")
    if problems:
        shown = "; ".join(problems[:6])
        more = f"; and {len(problems) - 6} more" if len(problems) > 6 else ""
        raise CheckpointError(
            f"The adapter {weights.folder} does not fit this model: {shown}{more}. According to "
            f"its config it was trained on {settings.base_name!r}; load it on that model."
        )
    return matched


def _wrong_shapes(
    weights: WeightFiles, names: Mapping[str, str], shape: tuple[int, int], settings: _Settings
) -> list[str]:
    num_outputs, num_inputs = shape
    module, _ = _split(names["a"])
    rank = settings.rank_of(to_memory_name(to_released_name(module)))
    expected = {"a": (rank, num_inputs), "b": (num_outputs, rank), "magnitude": (num_outputs,)}
    wrong = []
    if rank > max(shape):
        wrong.append(f"{module} has rank {rank}, but its weight is {num_outputs} x {num_inputs}")
    for leaf, name in names.items():
        stored = weights.tensors[name]
        if stored.shape != expected[leaf]:
            wrong.append(f"{name} is {stored.shape}, expected {expected[leaf]}")
        elif stored.dtype_code not in DTYPE_CODES:
            wrong.append(f"{name} has dtype {stored.dtype_code}")
    return wrong


def _read(weights: WeightFiles, name: str, broken: list[str]) -> Tensor:
    values = weights.read_rows(name, 0, weights.tensors[name].shape[0]).float()
    if not is_finite(values):
        broken.append(name)
    return values


def _describe(model: PaliGemma, base_name: str | None, revision: str | None) -> dict[str, Any]:
    """Return the content of `adapter_config.json`, from which peft rebuilds the same adapter."""
    layers = {_peft_module(model.config, n): layer for n, layer in lora_layers(model).items()}
    first = next(iter(layers.values()))
    rank = Counter(layer.rank for layer in layers.values()).most_common(1)[0][0]
    alpha = Counter(layer.alpha for layer in layers.values()).most_common(1)[0][0]
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base_name,
        "revision": revision,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": _plain_number(alpha),
        "lora_dropout": first.dropout,
        "use_rslora": first.use_rslora,
        "use_dora": first.magnitude is not None,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "modules_to_save": None,
        "target_modules": _search_pattern(layers),
        "rank_pattern": {n: layer.rank for n, layer in layers.items() if layer.rank != rank},
        "alpha_pattern": {
            n: _plain_number(layer.alpha) for n, layer in layers.items() if layer.alpha != alpha
        },
    }


def _search_pattern(modules: Iterable[str]) -> str:
    r"""Return a regular expression that fully matches these modules and no others of the model.

    >>> _search_pattern(["model.language_model.layers.0.mlp.up_proj"])
    'model\\.language_model\\.layers\\.(0)\\.mlp\\.up_proj'
    """
    numbers: dict[str, list[str]] = {}
    for module in modules:
        match = re.search(r"\.layers\.(\d+)\.", module)
        pattern = re.escape(module)
        if match is not None:
            pattern = pattern.replace(rf"\.layers\.{match[1]}\.", r"\.layers\.({})\.")
        numbers.setdefault(pattern, []).append(match[1] if match is not None else "")
    return "|".join(p.replace("{}", "|".join(layers)) for p, layers in numbers.items())


def _linear_shapes(config: PaliGemmaConfig) -> dict[str, tuple[int, int]]:
    with torch.device("meta"):
        model = PaliGemma(config)
    names = linear_layers(model, get_args(Part))
    return {
        n: (w.shape[0], w.shape[1]) for n in names for w in (model.get_parameter(n + ".weight"),)
    }


def _split(name: str) -> tuple[str, str | None]:
    """Split a name in the file into module and "a", "b" or "magnitude" (None for other names)."""
    for leaf, kind in _LEAVES.items():
        if name.startswith(_PREFIX) and name.endswith(f".{leaf}"):
            return name.removeprefix(_PREFIX).removesuffix(f".{leaf}"), kind
    return name, None


def _peft_module(config: PaliGemmaConfig, layer: str) -> str:
    released = to_released_names(config, [f"{layer}.weight"])[f"{layer}.weight"]
    return to_memory_name(released).removesuffix(".weight")


def _to_write(name: str, tensor: Tensor) -> TensorToWrite:
    return TensorToWrite(
        name=name, dtype=torch.float32, shape=tuple(tensor.shape), blocks=[tensor.detach()]
    )


def _ends_in(module: str, end: str) -> bool:
    return module == end or module.endswith(f".{end}")


def _is_off(value: object) -> bool:
    return value is None or value is False or value in ({}, [], "")


def _plain_number(value: float) -> float | int:
    return int(value) if float(value).is_integer() else value


def _number(
    path: Path,
    content: dict[str, Any],
    key: str,
    default: float,
    *,
    whole: bool = False,
    lowest: float = 1e-9,
) -> Any:
    value = content.get(key, default)
    kinds = (int,) if whole else (int, float)
    is_number = isinstance(value, kinds) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or value < lowest:
        expected = "a whole number of at least 1" if whole else f"a number of at least {lowest:g}"
        raise CheckpointError(f"{path}: {key} is {_shown(value)}; it must be {expected}.")
    return value


def _flag(path: Path, content: dict[str, Any], key: str) -> bool:
    value = content.get(key, False)
    if not isinstance(value, bool):
        raise CheckpointError(f"{path}: {key} is {_shown(value)}; it must be true or false.")
    return value


def _pattern(
    path: Path, content: dict[str, Any], key: str, *, whole: bool = False
) -> dict[str, Any]:
    """Read numbers per layer, by suffixes of layer names. peft allows any regular expression."""
    numbers = content.get(key) or {}
    if not isinstance(numbers, dict):
        raise CheckpointError(f"{path}: {key} is {_shown(numbers)}; it must be an object.")
    for name in numbers:
        _number(path, numbers, name, 0, whole=whole)
        if not re.fullmatch(r"\^?[\w.]+", name):
            raise CheckpointError(
                f"{path}: {key} contains the pattern {_shown(name)}; only layer names, or their "
                "ends, are supported there."
            )
    return {name.removeprefix("^"): value for name, value in numbers.items()}


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 100 else text[:97] + "..."
