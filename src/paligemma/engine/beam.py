"""Beam search. Sequences are ranked by the sum of their log-probabilities, without length penalty,
as in big_vision's `beam_decode`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from paligemma.engine.generate import GeneratedRow, RowEnd
from paligemma.engine.sampling import row_limits, summarize_range
from paligemma.errors import check_whole
from paligemma.inputs import ModelInputs
from paligemma.model.kv_cache import KVCache
from paligemma.model.paligemma import PaliGemma
from paligemma.results import RangeSummary


@dataclass(frozen=True, kw_only=True)
class _Beam:
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    summaries: tuple[RangeSummary | None, ...] = ()  # without that of a final EOS

    @property
    def total(self) -> float:
        return sum(self.logprobs)

    def then(self, token_id: int, logprob: float) -> _Beam:
        return replace(
            self, token_ids=(*self.token_ids, token_id), logprobs=(*self.logprobs, logprob)
        )

    def ended(self, stop_reason: RowEnd) -> GeneratedRow:
        return GeneratedRow(
            token_ids=self.token_ids,
            logprobs=self.logprobs,
            stop_reason=stop_reason,
            summaries=(*self.summaries, None)[: len(self.token_ids)],
        )


@torch.inference_mode()
def beam_search(
    model: PaliGemma,
    inputs: ModelInputs,
    *,
    beam_size: int,
    max_new_tokens: int | Sequence[int],
    eos_id: int,
    image_tokens: Tensor | None = None,
    summarized_ids: range = range(0),
) -> list[GeneratedRow]:
    """Return the best sequence of each row; rows are searched one after the other.

    A sequence that ended with EOS is preferred to one cut at `max_new_tokens` (one for all rows,
    or one per row). One beam is greedy decoding. Where one of `summarized_ids` was chosen, the
    distribution over them is summarized. Raises OptionError for numbers below 1.
    """
    check_whole("num_beams", beam_size)
    inputs = inputs.to(model.device)
    limits = row_limits(max_new_tokens, inputs.token_ids.shape[0])
    if image_tokens is None and any(inputs.image_index):
        image_tokens = model.embed_images(inputs.required_pixel_values)
    return [
        _search_row(model, inputs.row(row), beam_size, limit, eos_id, image_tokens, summarized_ids)
        for row, limit in enumerate(limits)
    ]


def _search_row(
    model: PaliGemma,
    inputs: ModelInputs,
    beam_size: int,
    max_new_tokens: int,
    eos_id: int,
    image_tokens: Tensor | None,
    summarized_ids: range,
) -> GeneratedRow:
    kv_cache = KVCache(
        model.config.decoder,
        1,
        inputs.token_ids.shape[1] + max_new_tokens,
        dtype=model.dtype,
        device=model.device,
    )
    logits = model.prefill(inputs, kv_cache, image_tokens)
    beams = [_Beam()]
    best: _Beam | None = None  # among those that reached EOS
    for num_done in range(1, max_new_tokens + 1):
        if not bool(logits.isfinite().all()):
            return (best or beams[0]).ended("numerical_error")
        logprobs = torch.log_softmax(logits, dim=1)
        # One candidate more than there are beams, because at most one per beam is EOS.
        values, ids = logprobs.topk(min(beam_size + 1, logprobs.shape[1]), dim=1)
        candidates = [
            (slot, beam.then(token_id, logprob))
            for slot, beam in enumerate(beams)
            for token_id, logprob in zip(ids[slot].tolist(), values[slot].tolist(), strict=True)
        ]
        candidates.sort(key=lambda candidate: -candidate[1].total)
        # An EOS counts only if it ranks within the beam size, so that one beam is greedy decoding.
        survivors: list[tuple[int, _Beam]] = []
        for rank, (slot, beam) in enumerate(candidates):
            if beam.token_ids[-1] != eos_id:
                survivors.append((slot, beam))
            elif rank < beam_size and (best is None or beam.total > best.total):
                best = beam
            if len(survivors) == beam_size:
                break
        # Totals only fall as sequences grow, so no survivor can overtake a better ended one.
        if best is not None and (not survivors or best.total >= survivors[0][1].total):
            return best.ended("eos")
        beams = _with_summaries(survivors, logits, summarized_ids)
        if num_done == max_new_tokens:
            break
        kv_cache.select_rows(torch.tensor([slot for slot, _ in survivors], device=model.device))
        last = torch.tensor([beam.token_ids[-1] for beam in beams], device=model.device)
        logits = model.decode_step(last, kv_cache)
    return best.ended("eos") if best is not None else beams[0].ended("length")


def _with_summaries(
    survivors: list[tuple[int, _Beam]], logits: Tensor, summarized_ids: range
) -> list[_Beam]:
    """Add to each beam what it was chosen from; its row of the logits comes first."""
    beams = [beam for _, beam in survivors]
    rows = logits[torch.tensor([row for row, _ in survivors], device=logits.device)]
    last = [beam.token_ids[-1] for beam in beams]
    summaries = summarize_range(rows, last, [None] * len(beams), summarized_ids)
    return [
        replace(beam, summaries=(*beam.summaries, summary))
        for beam, summary in zip(beams, summaries, strict=True)
    ]
