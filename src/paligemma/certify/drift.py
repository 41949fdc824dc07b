"""Compare hidden states layer by layer, and find the layer that computes something else.

Each layer of the path under test is given the reference's input of that layer, so that its own
error shows, and not what it inherited. A second pass without this gives the drift that adds up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from paligemma.inputs import ModelInputs
from paligemma.model.paligemma import PaliGemma

_NUM_LOGITS = 4  # positions, from the end


@dataclass(frozen=True, kw_only=True)
class Trace:
    """The hidden states of one sequence on the CPU in float32."""

    inputs: Mapping[str, Tensor]
    """What each stage was given by the stages before it."""
    outputs: Mapping[str, Tensor]
    """What each stage computed, from the reference's input where there is a reference."""
    drifted: Mapping[str, Tensor] = field(default_factory=dict)
    """What each stage computed from the path's own input."""


@dataclass(frozen=True, kw_only=True)
class StageError:
    """How far one stage is off."""

    stage: str
    error: float
    """The root mean square of its error, as a part of what it adds to its input."""
    rounding: float
    """The part of it that rounding the sum of both to the dtype explains."""
    drift: float
    """The error that has added up to here, as a part of the hidden states."""


def stages_of(model: PaliGemma) -> dict[str, nn.Module]:
    """Names and modules, in the order of the computation."""
    stages: dict[str, nn.Module] = {}
    for i, block in enumerate(model.vision_encoder.blocks):
        stages[f"vision layer {i}"] = block
    stages["last vision norm"] = model.vision_encoder.post_layernorm
    stages["projector"] = model.projector
    for i, block in enumerate(model.decoder.blocks):
        stages[f"decoder layer {i}"] = block
    stages["final norm"] = model.decoder.final_norm
    return stages


@torch.inference_mode()
def trace(
    model: PaliGemma, pixel_values: Tensor, inputs: ModelInputs, reference: Trace | None = None
) -> Trace:
    """Record the hidden states; with a reference, give every stage the reference's input."""
    inputs = inputs.to(model.device)
    rows = ModelInputs(
        token_ids=inputs.token_ids,
        input_mask=inputs.input_mask,
        mask_ar=inputs.mask_ar,
        image_mask=inputs.image_mask,
        pixel_values=None,
        image_index=(tuple(range(len(pixel_values))),),
    )
    drifted: dict[str, Tensor] = {}
    if reference is not None:
        with _recording(model, None) as (_, drifted):
            model.hidden_states(rows, image_tokens=model.embed_images(pixel_values))
    with _recording(model, reference) as (given, outputs):
        image_tokens = model.embed_images(pixel_values)
        if reference is not None:
            image_tokens = reference.outputs["projector"].to(model.device, model.dtype)
        hidden = model.hidden_states(rows, image_tokens=image_tokens)
    if reference is not None:
        hidden = reference.outputs["final norm"].to(model.device, model.dtype)
    outputs["image patches"] = given["vision layer 0"]
    outputs["embedding"] = given["decoder layer 0"]
    outputs["logits"] = model.decoder.logits(hidden[0, -_NUM_LOGITS:]).float().cpu()
    if missing := stages_of(model).keys() - outputs.keys():
        raise RuntimeError(f"{min(missing)} does not run as a module of its own")
    return Trace(inputs=given, outputs=outputs, drifted=drifted)


@contextmanager
def _recording(
    model: PaliGemma, reference: Trace | None
) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    given: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}

    def before(name: str) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
            given[name] = args[0].float().cpu().clone()
            if reference is None:
                return None
            fed = reference.inputs[name].to(args[0].device, args[0].dtype, copy=True)
            return (fed, *args[1:])

        return hook

    def after(name: str) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            outputs[name] = output.float().cpu().clone()

        return hook

    with ExitStack() as stack:
        for name, module in stages_of(model).items():
            stack.callback(module.register_forward_pre_hook(before(name)).remove)
            stack.callback(module.register_forward_hook(after(name)).remove)
        yield given, outputs


def stage_errors(reference: Trace, tested: Trace, precision: float) -> list[StageError]:
    """The error of every stage, in the order of the computation."""
    names = list(reference.outputs)
    order = ["image patches", *(n for n in names if "vision" in n), "projector", "embedding"]
    order += [name for name in names if name not in order]
    return [_error(name, reference, tested, precision) for name in order]


def _error(name: str, reference: Trace, tested: Trace, precision: float) -> StageError:
    expected, actual = reference.outputs[name], tested.outputs[name]
    given = reference.inputs.get(name)
    adds = given is not None and given.shape == expected.shape and "layer" in name
    update = expected - given if adds and given is not None else expected
    size = max(_rms(update), 1e-30)
    drift = tested.drifted.get(name)
    return StageError(
        stage=name,
        error=_rms(actual - expected) / size,
        rounding=precision * _rms(expected) / size,
        drift=0.0 if drift is None else _rms(drift - expected) / max(_rms(expected), 1e-30),
    )


def _rms(values: Tensor) -> float:
    return float(values.double().square().mean().sqrt())
