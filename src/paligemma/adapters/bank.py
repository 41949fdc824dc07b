"""Several low-rank adapters on one model in memory; each row of a batch uses one of them, or none.

    y = W x + [B1 B2 ...] m(row) * [A1; A2; ...] x

The A and B of all adapters are concatenated, and the mask m(row) selects the ranks of the row's
adapter. So a pass has two more thin products per layer, and the weights are read once for all
rows. DoRA (arXiv 2402.09353) also scales each output, per row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paligemma.adapters.lora import LowRank, check_adaptable
from paligemma.errors import OptionError
from paligemma.fast.frozen_linear import FrozenLinear
from paligemma.model.paligemma import PaliGemma

# B rows, T tokens, N outputs, K inputs, R ranks of all adapters together

_NO_ADAPTER = 0


class _Selection:
    """The adapter of each row in the next pass."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.select([])

    def select(self, numbers: Sequence[int]) -> None:
        self.is_plain = not any(numbers)
        self.numbers = torch.tensor(list(numbers), device=self.device)
        self._masks: dict[tuple[int, ...], Tensor] = {}

    def mask(self, owners: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return [B, 1, R]: 1 where a rank belongs to the row's adapter. Most layers share it."""
        if owners not in self._masks:
            rank_owners = torch.tensor(owners, device=self.device)
            self._masks[owners] = (self.numbers[:, None] == rank_owners).to(dtype)[:, None]
        return self._masks[owners]


class AdapterBank:
    """Adds adapters to the layers of a plain model, in place; rows without one are unchanged.

    `adapters` maps adapter names to layers by their names in the plain model. Raises OptionError
    for a model that has adapters or packed weights, for an empty name, and for an adapter of layers
    outside the decoder, because rows share image tokens.
    """

    def __init__(self, model: PaliGemma, adapters: Mapping[str, Mapping[str, LowRank]]) -> None:
        check_adaptable(model)
        for name, layers in adapters.items():
            if not name:
                raise OptionError('An adapter is named "". Give each adapter a name.')
            if any(not layer.startswith("decoder.") for layer in layers):
                raise OptionError(
                    f"The adapter {name!r} changes layers outside the decoder, but images are "
                    "encoded once for all adapters. Merge it into a separate model and serve that."
                )
        self.names = tuple(adapters)
        self._selection = _Selection(model.device)
        numbers = {name: number for number, name in enumerate(adapters, start=_NO_ADAPTER + 1)}
        adapted = dict.fromkeys(layer for layers in adapters.values() for layer in layers)
        for layer in adapted:
            low_ranks = {
                numbers[n]: layers[layer] for n, layers in adapters.items() if layer in layers
            }
            parent, _, leaf = layer.rpartition(".")
            base = model.get_submodule(layer)
            assert isinstance(base, nn.Linear | FrozenLinear)
            setattr(
                model.get_submodule(parent),
                leaf,
                _AdaptedLinear(base, low_ranks, len(adapters), self._selection, model.dtype),
            )
        self._numbers = numbers | {"": _NO_ADAPTER}

    def check(self, name: str) -> None:
        """Raises OptionError for an unknown name; "" is the model without adapter."""
        if name not in self._numbers:
            choices = ", ".join(map(repr, self.names)) or "none"
            raise OptionError(f"Unknown adapter {name!r}. Loaded adapters: {choices}.")

    def select(self, names: Sequence[str]) -> None:
        """Set the adapters of the next passes, one name per row; "" for none."""
        self._selection.select([self._numbers[name] for name in names])


class _AdaptedLinear(nn.Module):
    a: Tensor  # [R, K]
    b: Tensor  # [N, R], scaled
    scales: Tensor | None  # float32[adapters + 1, N], if one of them is DoRA

    def __init__(
        self,
        base: nn.Linear | FrozenLinear,
        adapters: Mapping[int, LowRank],
        num_adapters: int,
        selection: _Selection,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        assert getattr(base, "bias", None) is None, "no layer of a decoder has a bias"
        self.base = base
        self._selection = selection
        device = selection.device
        self._owners = tuple(n for n, adapter in adapters.items() for _ in range(adapter.rank))
        a = torch.cat([adapter.a.float() for adapter in adapters.values()])
        b = torch.cat([adapter.b.float() * adapter.scaling for adapter in adapters.values()], dim=1)
        self.register_buffer("a", a.to(device, dtype), persistent=False)
        self.register_buffer("b", b.to(device, dtype), persistent=False)
        scales = None
        if any(adapter.magnitude is not None for adapter in adapters.values()):
            scales = torch.ones(num_adapters + 1, base.out_features)
            for number, adapter in adapters.items():
                if adapter.magnitude is not None:
                    lengths = _row_lengths(base, adapter).cpu()
                    scales[number] = adapter.magnitude.float().cpu() / lengths
            scales = scales.to(device)
        self.register_buffer("scales", scales, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.base(x)
        if self._selection.is_plain:
            return out
        low = F.linear(x, self.a) * self._selection.mask(self._owners, x.dtype)
        out = out + F.linear(low, self.b)
        if self.scales is not None:
            out = (out * self.scales[self._selection.numbers][:, None]).to(out.dtype)
        return out


def _row_lengths(base: nn.Linear | FrozenLinear, low_rank: LowRank) -> Tensor:
    """Return the lengths of the rows of W + s B A: float32[N]."""
    if isinstance(base, FrozenLinear):
        weight = base.read(0, base.out_features)
    else:
        weight = base.weight.detach().float()
    a, b = low_rank.a.float().to(weight.device), low_rank.b.float().to(weight.device)
    lengths: Tensor = torch.linalg.vector_norm(weight + low_rank.scaling * (b @ a), dim=1)
    return lengths
