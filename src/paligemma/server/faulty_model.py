"""A model with fault points inside: what tests serve in place of the model itself.

Stands where a `PaliGemma` is expected and hands everything on to it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from paligemma.model.paligemma import PaliGemma
from paligemma.server.faults import Faults


class FaultyModel:
    """Passes "forward" before each pass, and "row" for each of its rows, keyed "0", "1", ..."""

    def __init__(self, model: PaliGemma, faults: Faults) -> None:
        self._model = model
        self._faults = faults

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def prefix_state(self, *args: Any, **kwargs: Any) -> Tensor:
        self._faults.hit("forward", "prefill")
        return self._spoilt(self._model.prefix_state(*args, **kwargs))

    def decode_step(self, *args: Any, **kwargs: Any) -> Tensor:
        self._faults.hit("forward", "decode")
        return self._spoilt(self._model.decode_step(*args, **kwargs))

    def _spoilt(self, rows: Tensor) -> Tensor:
        for row in range(len(rows)):
            if self._faults.hit("row", str(row)):
                rows = rows.clone()
                rows[row] = torch.nan
        return rows
