"""Run the probes through one way of computing: a device, a dtype, a form of the weights.

The float32 reference writes its answers freely. Every other path is then asked for its logits along
the same tokens, so that one early difference does not make all later ones incomparable: once with
the key-value cache, as answers are generated, and once as whole sequences.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from paligemma.certify.drift import Trace, trace
from paligemma.certify.probes import ProbeInputs, with_suffix
from paligemma.engine.engine import Engine
from paligemma.engine.generate import generate
from paligemma.engine.image_cache import KeyedImage
from paligemma.engine.request import Request
from paligemma.inputs import ModelInputs
from paligemma.model.kv_cache import KVCache
from paligemma.model.paligemma import PaliGemma
from paligemma.process_memory import peak_bytes

EOS_ID = 1
TRACED = 0  # the probe whose hidden states are compared layer by layer


@dataclass(frozen=True, kw_only=True)
class ProbeOutputs:
    """What a path computed for one probe."""

    token_ids: tuple[int, ...]
    """The path's own greedy answer."""
    logits: Tensor
    """float32[N, V]: after the prefix and each of the reference's tokens but the last, with the
    key-value cache."""
    whole_logits: Tensor
    """The same, as one pass over the whole sequence."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Time and memory of a path, for one image and one prompt at a time."""

    weight_bytes: int
    process_bytes: int
    """The most memory that the process had until then."""
    encode_seconds: float
    """Per image."""
    prefill_seconds: float
    tokens_per_second: float


@dataclass(frozen=True, kw_only=True)
class PathOutputs:
    """What a path computed for all probes."""

    probes: tuple[ProbeOutputs, ...]
    batch_logits: Tensor
    """float32[R, V]: the logits after the prefixes of the batch, padded on the left."""
    engine_token_ids: tuple[tuple[int, ...], ...]
    """Answers of the batch's rows from the engine, which runs them together."""
    image_tokens: Tensor
    trace: Trace | None
    trace_problem: str | None
    """Why the layers of this path cannot be seen."""
    cost: Cost


@torch.inference_mode()
def run_path(
    model: PaliGemma, inputs: ProbeInputs, reference: PathOutputs | None = None
) -> PathOutputs:
    """Run all probes. With a reference, along its tokens."""
    pixels = inputs.pixel_values.to(model.device)
    image_tokens, encode_seconds = [], []
    for image in pixels:
        started = time.perf_counter()
        image_tokens.append(model.embed_images(image[None]).cpu())  # waits for the device
        encode_seconds.append(time.perf_counter() - started)
    tokens = torch.cat(image_tokens).to(model.device)
    outputs, prefill_seconds, step_seconds = [], [], []
    for number, (probe, prefix) in enumerate(zip(inputs.probes, inputs.prefixes, strict=True)):
        given = None if reference is None else reference.probes[number].token_ids
        logits, seconds = _along(model, prefix, tokens, given, probe.max_new_tokens)
        if given is None:
            given = tuple(logits.argmax(1).tolist())
        prefill_seconds.append(seconds[0])
        step_seconds += seconds[1:]
        own = given
        if reference is not None and logits.argmax(1).tolist() != list(given):
            own = _greedy(model, prefix, tokens, probe.max_new_tokens)
        outputs.append(
            ProbeOutputs(
                token_ids=own, logits=logits, whole_logits=_whole(model, prefix, tokens, given)
            )
        )
    traced, problem = None, None
    try:
        traced = trace(
            model,
            pixels[list(inputs.probes[TRACED].images)],
            with_suffix(inputs.prefixes[TRACED], outputs[TRACED].token_ids[:4])
            if reference is None
            else with_suffix(inputs.prefixes[TRACED], reference.probes[TRACED].token_ids[:4]),
            None if reference is None else reference.trace,
        )
    except (RuntimeError, NotImplementedError, AssertionError) as error:
        problem = f"{type(error).__name__}: {error}"
    cache = _cache(model, inputs.batch, 1)
    batch_logits = model.prefill(inputs.batch.to(model.device), cache, tokens).float().cpu()
    return PathOutputs(
        probes=tuple(outputs),
        batch_logits=batch_logits,
        engine_token_ids=_with_engine(model, inputs, pixels),
        image_tokens=tokens.float().cpu(),
        trace=traced,
        trace_problem=problem,
        cost=Cost(
            weight_bytes=sum(
                tensor.numel() * tensor.element_size()
                for tensor in chain(model.parameters(), model.buffers())
            ),
            process_bytes=peak_bytes(),
            encode_seconds=sorted(encode_seconds)[len(encode_seconds) // 2],
            prefill_seconds=prefill_seconds[0],
            tokens_per_second=len(step_seconds) / max(1e-9, sum(step_seconds)),
        ),
    )


def _cache(model: PaliGemma, inputs: ModelInputs, num_new: int) -> KVCache:
    num_rows, length = inputs.token_ids.shape
    return KVCache(
        model.config.decoder, num_rows, length + num_new, dtype=model.dtype, device=model.device
    )


def _greedy(
    model: PaliGemma, prefix: ModelInputs, image_tokens: Tensor, max_new_tokens: int
) -> tuple[int, ...]:
    [row] = generate(
        model, prefix, max_new_tokens=max_new_tokens, eos_id=EOS_ID, image_tokens=image_tokens
    )
    return row.token_ids


def _along(
    model: PaliGemma,
    prefix: ModelInputs,
    image_tokens: Tensor,
    token_ids: Sequence[int] | None,
    max_new_tokens: int,
) -> tuple[Tensor, list[float]]:
    """The logits before each of the tokens, or of the model's own greedy ones, step by step.

    Also the seconds of each step.
    """
    cache = _cache(model, prefix, max_new_tokens)
    started = time.perf_counter()
    rows = [model.prefill(prefix.to(model.device), cache, image_tokens).float().cpu()]
    seconds = [time.perf_counter() - started]
    while len(rows) < (max_new_tokens if token_ids is None else len(token_ids)):
        started = time.perf_counter()
        token_id = int(rows[-1].argmax()) if token_ids is None else token_ids[len(rows) - 1]
        if token_id == EOS_ID:
            break
        step = torch.tensor([token_id], device=model.device)
        rows.append(model.decode_step(step, cache).float().cpu())
        seconds.append(time.perf_counter() - started)
    return torch.cat(rows), seconds


def _whole(
    model: PaliGemma, prefix: ModelInputs, image_tokens: Tensor, token_ids: Sequence[int]
) -> Tensor:
    """The logits before each of the tokens, in one pass without a cache."""
    inputs = with_suffix(prefix, token_ids[:-1])
    [hidden] = model.hidden_states(inputs.to(model.device), image_tokens=image_tokens)
    return model.decoder.logits(hidden[-len(token_ids) :]).float().cpu()


def _with_engine(
    model: PaliGemma, inputs: ProbeInputs, pixels: Tensor
) -> tuple[tuple[int, ...], ...]:
    """Let the engine run the batch's rows together; fewer than they are, so that rows change."""
    images = [KeyedImage(pixel_values=image) for image in pixels]
    requests = [
        Request.from_row(
            inputs.batch,
            row,
            images,
            max_new_tokens=inputs.probes[probe].max_new_tokens,
            eos_id=EOS_ID,
        )
        for row, probe in enumerate(inputs.batch_rows)
    ]
    longest = inputs.batch.token_ids.shape[1]
    most = max(inputs.probes[probe].max_new_tokens for probe in inputs.batch_rows)
    engine = Engine(
        model, num_positions=longest + most, max_rows=max(1, len(requests) - 1),
        image_cache_bytes=2**28,
    )  # fmt: skip
    return tuple(row.token_ids for row in engine.run(requests))
