"""Low-rank adapters: add them to a model's linear layers, train them, merge them into the weights.

    y = W x + s B A x        LoRA (arXiv 2106.09685): A [r, K], B [N, r], s = alpha / r
                             rsLoRA (arXiv 2312.03732): s = alpha / sqrt(r)
    y = m * V x / ||V||      DoRA (arXiv 2402.09353): V = W + s B A, lengths per output

W may be frozen in NF4 or int8 (`frozen_linear.py`; QLoRA, arXiv 2305.14314).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paligemma.errors import OptionError, check_whole
from paligemma.fast.frozen_linear import FrozenLinear, freeze_linears
from paligemma.fast.weights import FrozenFormat
from paligemma.model.paligemma import PaliGemma

# N outputs, K inputs, r rank

_CHUNK = 2**18  # weights per chunk, so that intermediate results stay in the CPU cache

Part = Literal["decoder", "vision_encoder", "projector"]
"""A part of the model whose linear layers can have adapters."""


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Which layers get adapters, and of which kind.

    The defaults follow arXiv 2405.09673: rank 16 on every linear layer of the decoder, because the
    choice of layers matters more than the rank, and `alpha` of twice the rank, which the default
    learning rates assume. `layers` selects linear layers by the end of their name, such as
    ("q_proj", "v_proj"); None selects all of `parts`. The embedding table, which is also the output
    layer, never has an adapter. Raises OptionError for invalid values.
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    """Dropout on the input of A."""
    use_rslora: bool = False
    use_dora: bool = False
    parts: tuple[Part, ...] = ("decoder",)
    layers: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        check_whole("rank", self.rank)
        if not math.isfinite(self.alpha) or self.alpha <= 0:
            raise OptionError(f"alpha is {self.alpha}; it must be a finite number above 0.")
        if not 0 <= self.dropout < 1:
            raise OptionError(f"dropout is {self.dropout}; it must be at least 0 and below 1.")
        unknown = [part for part in self.parts if part not in get_args(Part)]
        if unknown or not self.parts:
            raise OptionError(f"parts is {self.parts!r}; it must name some of {get_args(Part)}.")


def scaling_of(rank: int, alpha: float, use_rslora: bool) -> float:
    """Return the factor s of B A."""
    return alpha / (math.sqrt(rank) if use_rslora else rank)


@dataclass(frozen=True, kw_only=True)
class LowRank:
    """The adapter of one weight [N, K]."""

    a: Tensor  # float[r, K]
    b: Tensor  # float[N, r]
    magnitude: Tensor | None  # float[N] with DoRA
    alpha: float
    use_rslora: bool

    @property
    def rank(self) -> int:
        return int(self.a.shape[0])

    @property
    def scaling(self) -> float:
        return scaling_of(self.rank, self.alpha, self.use_rslora)

    def merged(self, rows: Tensor, start: int = 0) -> Tensor:
        """Merge the adapter into float[n, K], the weight's rows from `start` on -> float32[n, K].

        The lengths of DoRA are those of rows, so a weight can be merged a few rows at a time.
        """
        part = slice(start, start + rows.shape[0])
        merged = torch.addmm(rows.float(), self.b[part].float(), self.a.float(), alpha=self.scaling)
        if self.magnitude is None:
            return merged
        merged *= (self.magnitude[part].float() / _row_lengths(merged))[:, None]
        return merged


class LoraLinear(nn.Module):
    """A frozen linear layer, `base`, with an adapter: [..., K] -> [..., N].

    A new adapter does not change the output. A and B are float32 whatever the base is, so that
    small updates are not lost to rounding, and are cast to the dtype of the input.
    """

    def __init__(
        self,
        base: nn.Linear | FrozenLinear,
        *,
        rank: int,
        alpha: float,
        dropout: float = 0.0,
        use_rslora: bool = False,
        use_dora: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        num_outputs, num_inputs = base.out_features, base.in_features
        if rank > max(num_outputs, num_inputs):
            raise OptionError(
                f"rank is {rank}, larger than both sides of a weight of {num_outputs} x "
                f"{num_inputs}: the adapter would be larger than the weight. Choose a smaller rank."
            )
        self.base = base.requires_grad_(False)
        self.alpha = alpha
        self.use_rslora = use_rslora
        self.dropout = dropout
        device = next(iter([*base.parameters(), *base.buffers()])).device
        # Uniform, as in peft; drawn on the CPU, so that the values do not depend on the device.
        uniform = torch.empty(rank, num_inputs).uniform_(-1, 1, generator=generator)
        self.lora_a = nn.Parameter((uniform / math.sqrt(num_inputs)).to(device))
        self.lora_b = nn.Parameter(torch.zeros(num_outputs, rank, device=device))
        self.magnitude: nn.Parameter | None = None
        if use_dora:
            self.magnitude = nn.Parameter(_row_lengths(self.base_weight()))
        self.train(base.training)

    @property
    def rank(self) -> int:
        return self.lora_a.shape[0]

    @property
    def scaling(self) -> float:
        return scaling_of(self.rank, self.alpha, self.use_rslora)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.base(x)
        # Cast A and B, which are small; casting x would keep a second copy of it for the gradient.
        a, b = self.lora_a.to(x.dtype), self.lora_b.to(x.dtype)
        low = F.linear(F.dropout(x, self.dropout, self.training), a)
        shape, out, low = out.shape, out.flatten(0, -2), low.flatten(0, -2)
        if self.magnitude is None:
            out = torch.addmm(out, low, b.T, alpha=self.scaling)
            return out.view(shape)
        bias = self.base.bias if isinstance(self.base, nn.Linear) else None
        if bias is not None:
            out = out - bias
        scales = self.magnitude / self._lengths()  # float32, as its rounding error is systematic
        out = (torch.addmm(out, low, b.T, alpha=self.scaling) * scales).to(out.dtype)
        if bias is not None:
            out = out + bias
        return out.view(shape)

    @torch.no_grad()
    def _lengths(self) -> Tensor:
        """Return the lengths of the rows of W + s B A: float32[N].

        The gradient treats them as constants (arXiv 2402.09353, section 4.3).
        """
        lengths = torch.empty_like(self.lora_b[:, 0])
        step = max(1, _CHUNK // self.lora_a.shape[1])
        for start in range(0, len(lengths), step):
            rows = self._rows(start, min(start + step, len(lengths)))
            rows.addmm_(self.lora_b[start : start + step], self.lora_a, alpha=self.scaling)
            lengths[start : start + step] = _row_lengths(rows)
        return lengths

    @torch.no_grad()
    def base_weight(self) -> Tensor:
        """Return a copy of the base's weight: float32[N, K]."""
        return self._rows(0, self.base.out_features)

    def _rows(self, start: int, end: int) -> Tensor:
        if isinstance(self.base, FrozenLinear):
            return self.base.read(start, end)
        return self.base.weight[start:end].to(torch.float32, copy=True)

    def low_rank(self) -> LowRank:
        """Return the adapter alone; its tensors share memory with the trained ones."""
        return LowRank(
            a=self.lora_a.detach(),
            b=self.lora_b.detach(),
            magnitude=None if self.magnitude is None else self.magnitude.detach(),
            alpha=self.alpha,
            use_rslora=self.use_rslora,
        )

    @torch.no_grad()
    def merged(self, dtype: torch.dtype) -> nn.Linear:
        """Return a plain layer in `dtype` with the adapter merged."""
        base = self.base
        bias = base.bias if isinstance(base, nn.Linear) else None
        layer = nn.Linear(base.in_features, base.out_features, bias is not None, device="meta")
        merged = self.low_rank().merged(self.base_weight()).to(dtype)
        layer.weight = nn.Parameter(merged, requires_grad=False)
        if bias is not None:
            layer.bias = bias
        return layer

    def extra_repr(self) -> str:
        kind = "dora" if self.magnitude is not None else "rslora" if self.use_rslora else "lora"
        return f"{kind}, rank={self.rank}, alpha={self.alpha:g}"


def add_lora(model: PaliGemma, config: LoraConfig, *, seed: int = 0) -> PaliGemma:
    """Add new adapters to a plain model, in place; return the model.

    Afterwards only the adapters require gradients. Equal seeds give equal adapters. Raises
    OptionError when the model already has adapters or packed weights, and when `config` names
    layers that do not exist.

    >>> add_lora(model, LoraConfig(rank=8))  # doctest: +SKIP
    >>> optimizer = torch.optim.AdamW(lora_parameters(model), lr=1e-4)  # doctest: +SKIP
    """
    check_adaptable(model)
    chosen = [name for name in linear_layers(model, config.parts) if _is_named(name, config.layers)]
    for layer_name in config.layers or ():
        if not any(_is_named(name, (layer_name,)) for name in chosen):
            kinds = sorted({n.rpartition(".")[2] for n in linear_layers(model, config.parts)})
            raise OptionError(
                f"There is no linear layer {layer_name!r} in {', '.join(config.parts)}. "
                f"Choose from: {', '.join(kinds)}."
            )
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name in chosen:
        layer = LoraLinear(
            _base(model, name),
            rank=config.rank,
            alpha=config.alpha,
            dropout=config.dropout,
            use_rslora=config.use_rslora,
            use_dora=config.use_dora,
            generator=generator,
        )
        _replace(model, name, layer)
    return model


def attach_lora(
    model: PaliGemma, adapter: Mapping[str, LowRank], *, dropout: float = 0.0
) -> PaliGemma:
    """Add trained adapters, by the names of their layers, to a plain model, in place.

    This is for further training or inspection; to merge an adapter, pass it to `load_model`. Names
    and shapes must fit the model, which `read_adapter` checks.
    """
    check_adaptable(model)
    model.requires_grad_(False)
    for name, low_rank in adapter.items():
        layer = LoraLinear(
            _base(model, name),
            rank=low_rank.rank,
            alpha=low_rank.alpha,
            dropout=dropout,
            use_rslora=low_rank.use_rslora,
            use_dora=low_rank.magnitude is not None,
        )
        with torch.no_grad():
            layer.lora_a.copy_(low_rank.a)
            layer.lora_b.copy_(low_rank.b)
            if layer.magnitude is not None and low_rank.magnitude is not None:
                layer.magnitude.copy_(low_rank.magnitude)
        _replace(model, name, layer)
    return model


def merge_lora(model: PaliGemma) -> PaliGemma:
    """Merge all adapters into their base weights, in place; return the model, now a plain one.

    Bases in NF4 or int8, with or without adapters, become plain too, in the model's dtype.
    """
    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLinear):
            _replace(model, name, module.merged(model.dtype))
    for name, module in list(model.named_modules()):
        if isinstance(module, FrozenLinear):
            layer = nn.Linear(module.in_features, module.out_features, bias=False, device="meta")
            layer.weight = nn.Parameter(module.weight(model.dtype), requires_grad=False)
            _replace(model, name, layer)
    return model


def freeze_base(
    model: PaliGemma, frozen_format: FrozenFormat, *, double_quantization: bool = True
) -> PaliGemma:
    """Quantize the decoder's linear layers to NF4 or int8, in place, as the base for QLoRA.

    The vision encoder, the projector and the embedding table stay as they are. Raises OptionError
    for a model that has adapters or packed weights.
    """
    check_adaptable(model)
    names = [
        n for n in linear_layers(model, ("decoder",)) if isinstance(_base(model, n), nn.Linear)
    ]
    parents = ((model.get_submodule(n.rpartition(".")[0]), n.rpartition(".")[2]) for n in names)
    freeze_linears(parents, frozen_format, double_quantization=double_quantization)
    return model


def lora_layers(model: nn.Module) -> dict[str, LoraLinear]:
    """Return every adapted layer by its name in the plain model."""
    return {n: module for n, module in model.named_modules() if isinstance(module, LoraLinear)}


def lora_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return the trained parameters, A, B and magnitudes, in the order of the model."""
    return [p for layer in lora_layers(model).values() for p in layer.parameters(recurse=False)]


def linear_layers(model: PaliGemma, parts: tuple[Part, ...]) -> Iterator[str]:
    """Yield the names of the linear layers of these parts, in the order of the model."""
    for part in get_args(Part):
        if part in parts:
            for name, module in model.get_submodule(part).named_modules(prefix=part):
                if isinstance(module, nn.Linear | FrozenLinear):
                    yield name


def check_adaptable(model: PaliGemma) -> None:
    """Raises OptionError for a model that has adapters or packed weights."""
    if lora_layers(model):
        raise OptionError(
            "The model already has adapters. Merge them first, or load the model again."
        )
    if not any(True for _ in linear_layers(model, ("decoder",))):
        raise OptionError(
            "The model's weights are packed for the kernels, so they cannot be trained. Load it "
            "with weights=Trainable()."
        )


def _row_lengths(rows: Tensor) -> Tensor:
    """Return the lengths of rows [n, K], float32[n]; never zero, because DoRA divides by them."""
    lengths: Tensor = torch.linalg.vector_norm(rows, dim=1)
    return lengths.clamp_min(torch.finfo(torch.float32).tiny)


def _is_named(name: str, ends: tuple[str, ...] | None) -> bool:
    return ends is None or any(name == end or name.endswith(f".{end}") for end in ends)


def _base(model: PaliGemma, name: str) -> nn.Linear | FrozenLinear:
    layer = model.get_submodule(name)
    assert isinstance(layer, nn.Linear | FrozenLinear)
    return layer


def _replace(model: PaliGemma, name: str, layer: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, layer)
