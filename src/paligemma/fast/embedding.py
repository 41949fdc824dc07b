"""The table of token embeddings, packed: what `accelerate` puts in the place of `TiedEmbedding`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from paligemma.fast.kernels.products import packed_linear
from paligemma.fast.linear import PackedLinear, Rows, WeightRows
from paligemma.fast.packing import LANES, WeightFormat

# V vocabulary, D width, R rows


class PackedEmbedding(nn.Module):
    """Ids to vectors, and vectors to logits over the ids, by one table [V, D]."""

    def __init__(
        self,
        vocab_size: int,
        width: int,
        weight_format: WeightFormat,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.table = PackedLinear(width, (vocab_size,), weight_format, device=device)

    def forward(self, token_ids: Tensor) -> Tensor:
        """int64[B, T] -> bfloat16[B, T, D], times sqrt(D) rounded to bfloat16 as Gemma does."""
        values, scales = self.table.values, self.table.scales
        width = self.table.num_inputs
        flat = token_ids.reshape(-1)
        panels, lanes = flat // LANES, flat % LANES
        picked = values[panels, :, lanes]  # (B * T, K / 2 or 4, 2 or 4)
        if scales is None:
            vectors = picked.flatten(1)[:, :width]
        else:
            weight_format = self.table.weight_format
            q = picked.flatten(1).float() - weight_format.offset
            groups = q.unflatten(1, (-1, weight_format.group_size))
            vectors = groups * scales[panels, :, lanes].float()[..., None]
            vectors = vectors.flatten(1)[:, :width].to(torch.bfloat16)
        scale = torch.tensor(width**0.5, dtype=torch.bfloat16, device=vectors.device)
        return vectors.view(*token_ids.shape, width) * scale

    def logits(self, hidden: Tensor, vocab_range: range | None = None) -> Tensor:
        """[R, D] -> float32[R, V]; of the ids in `vocab_range` only, when one is given."""
        ids = vocab_range or range(self.table.num_outputs[0])
        first = ids.start // LANES
        panels = slice(first, -(-ids.stop // LANES))
        scales = self.table.scales
        out = packed_linear(
            hidden,
            self.table.values[panels],
            None if scales is None else scales[panels],
            self.table.weight_format,
            out_dtype=torch.float32,
        )
        start = ids.start - first * LANES
        return out[:, start : start + len(ids)]

    def weight_rows(self) -> dict[str, Rows]:
        return {"weight": WeightRows(self.table)}
