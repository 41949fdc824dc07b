"""Accelerate a model on a CUDA device if its logits stay those of the plain modules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from paligemma.fast.cuda.model import CudaPaliGemma, Slots, accelerate_for_cuda
from paligemma.fast.device import agree, probe_inputs
from paligemma.model.kv_cache import Cache
from paligemma.model.paligemma import PaliGemma

_STEPS = 3


class ProbeSlots(Slots, Protocol):
    """The part of a `SlotCache` that the check uses."""

    def fresh(self, num_rows: int) -> Cache:
        """Return a cache for the prefill of `num_rows` rows into free slots."""

    def admit(self, lengths: Sequence[int]) -> None:
        """Occupy the slots that were just prefilled."""


MakeSlots = Callable[[PaliGemma, int], ProbeSlots]
"""(model, number of positions) -> slots for one row."""


def accelerate_checked(model: PaliGemma, make_slots: MakeSlots) -> tuple[CudaPaliGemma | None, str]:
    """Accelerate a plain model, and compare the logits of a probe before and after.

    Returns the fast model and "", or None and the reason. The plain model is consumed in both
    cases: after a failure it must be loaded again.
    """
    expected = probe_logits(model, make_slots)
    try:
        fast = accelerate_for_cuda(model)
        logits = probe_logits(fast, make_slots, follow=expected.argmax(dim=-1).tolist())
    except Exception as error:  # compilers raise anything, from ImportError to their own types
        reason = str(error).strip().splitlines()
        return None, f"{type(error).__name__}: {reason[0] if reason else 'no message'}"
    if not agree(logits, expected, model.dtype):
        error_share = (logits - expected).abs().max() / expected.abs().max()
        return None, f"its logits differ by up to {float(error_share):.1%} of the largest"
    return fast, ""


@torch.inference_mode()
def probe_logits(
    model: PaliGemma, make_slots: MakeSlots, follow: list[int] | None = None
) -> Tensor:
    """Return float32[steps + 1, V] on the CPU: after a short prefix, and after each of few tokens.

    The tokens are those in `follow`, or the likeliest ones.
    """
    inputs = probe_inputs(model.config).to(model.device)
    length = inputs.token_ids.shape[1]
    slots = make_slots(model, length + _STEPS)
    rows = [model.prefill(inputs, slots.fresh(1)).float().cpu()]
    slots.admit([length])
    for step in range(_STEPS):
        token = int(rows[-1].argmax()) if follow is None else follow[step]
        token_ids = torch.tensor([token], device=model.device)
        rows.append(model.decode_step(token_ids, slots).float().cpu())
    return torch.cat(rows)
