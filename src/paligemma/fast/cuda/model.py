"""The model on a CUDA device: compiled prefixes, and decode steps recorded as CUDA graphs.

    prefill       vision blocks and decoder layers, compiled for any batch and length
    decode step   compiled for 1, 2, 4, 8, ... rows and recorded as a CUDA graph, which the host
                  replays instead of launching some thousand operations

Everything else (a `KVCache` after its prefix, a sliding window, several tokens at once after a
prefix, gradients) uses the plain implementation with the same weights.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, Literal, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from paligemma.errors import MissingExtraError, OptionError, check_choice
from paligemma.fast.cuda.attention import prefix_blocks, slots_in_reach
from paligemma.fast.cuda.block import Angles, MergedBlock, prefix_layer, slots_layer
from paligemma.fast.device import agree, probe_inputs
from paligemma.inputs import ModelInputs
from paligemma.model.attention import pick, positions_of, rotary_angles
from paligemma.model.gemma import Decoder, DecoderBlock
from paligemma.model.kv_cache import Cache, KVCache, SlotCache
from paligemma.model.paligemma import PaliGemma

# B rows, T tokens in this call, S positions of a slot, D width, V vocabulary

# By default torch compiles a function at most 8 times; a server has more shapes, which recur.
_MANY_SHAPES = {"recompile_limit": 64}
_WARM_UP_STEPS = 2
_PROBE_STEPS = 3  # of the check


def accelerate_for_cuda(
    model: PaliGemma, quantization: CudaQuantization | None = None
) -> CudaPaliGemma:
    """Turn a model on a CUDA device into a faster one with the same weights.

    Consumes the model block by block, so that the weights are never in memory twice. The first
    pass of each shape is slow, because it compiles.
    """
    return CudaPaliGemma(model, quantization=quantization)


class CudaPaliGemma(PaliGemma):
    """A `PaliGemma` with the same methods and results, but faster.

    `backend` is that of torch.compile; None compiles nothing. On CUDA devices, compiled decode
    steps are also recorded as CUDA graphs.
    """

    def __init__(
        self,
        model: PaliGemma,
        *,
        quantization: CudaQuantization | None = None,
        backend: str | None = "inductor",
    ) -> None:
        nn.Module.__init__(self)  # not that of PaliGemma, which would create a second model
        self.config = model.config
        self.vision_encoder = model.vision_encoder
        self.projector = model.projector
        self.decoder = model.decoder
        for layer, block in enumerate(self.decoder.blocks):
            if isinstance(block, DecoderBlock):
                self.decoder.blocks[layer] = MergedBlock(block)
        if quantization is not None:
            quantize_for_cuda(self, quantization)
            if quantization in ("nf4", "int8-outliers"):
                backend = None  # bitsandbytes' layers read values on the host
        self.train(model.training)
        self.is_recorded = backend is not None and self.device.type == "cuda"
        self._prefix_layer = _compiled(prefix_layer, backend)
        self._enter = _compiled(_enter, backend, dynamic=False)
        self._slots_layer = _compiled(slots_layer, backend, dynamic=False)
        self._logits = _compiled(_logits, backend, dynamic=False)
        self._steps: WeakKeyDictionary[object, dict[int, _RecordedStep]] = WeakKeyDictionary()
        self._graph_memory: Any = None
        if backend is not None:
            for vision_block in self.vision_encoder.blocks:
                vision_block.compile(backend=backend, fullgraph=True)

    def embed_images(self, pixel_values: Tensor) -> Tensor:
        with torch._dynamo.config.patch(_MANY_SHAPES):
            return super().embed_images(pixel_values)

    def hidden_states(
        self,
        inputs: ModelInputs,
        *,
        image_tokens: Tensor | None = None,
        kv_cache: Cache | None = None,
        at: Tensor | None = None,
    ) -> Tensor:
        """As `PaliGemma.hidden_states`; the compiled last layer computes all positions."""
        slides = self.config.decoder.sliding_window is not None
        is_known = kv_cache is None or (isinstance(kv_cache, KVCache) and kv_cache.length == 0)
        if slides or not is_known or torch.is_grad_enabled():
            return super().hidden_states(
                inputs, image_tokens=image_tokens, kv_cache=kv_cache, at=at
            )
        cache = cast("KVCache | None", kv_cache)
        x = self.embed(inputs, image_tokens)
        positions = positions_of(inputs.input_mask)
        if cache is not None:
            cache.claim(inputs.input_mask, positions)
        decoder = self.decoder.config
        angles = rotary_angles(positions, decoder.head_dim, decoder.rope_theta)
        is_hidden = inputs.mask_ar | ~inputs.input_mask
        blocks = prefix_blocks(inputs.input_mask, inputs.mask_ar) if is_hidden.any() else None
        layers = list(_layers(self.decoder))
        normed: Tensor = layers[0][0].pre_attention_norm(x)
        with torch._dynamo.config.patch(_MANY_SHAPES):
            for i, (block, next_norm) in enumerate(layers):
                memory = None
                if cache is not None:
                    here = slice(cache.length)
                    memory = (cache.keys[i][:, :, here], cache.values[i][:, :, here])
                x, normed = self._prefix_layer(block, next_norm, x, normed, angles, blocks, memory)
        return normed if at is None else pick(normed, at, 1)

    def decode_step(
        self, token_ids: Tensor, kv_cache: Cache, vocab_range: range | None = None
    ) -> Tensor:
        """As `PaliGemma.decode_step`; fast with a `SlotCache`."""
        slides = self.config.decoder.sliding_window is not None
        if slides or not isinstance(kv_cache, SlotCache) or torch.is_grad_enabled():
            return super().decode_step(token_ids, kv_cache, vocab_range)
        slots, num_rows = kv_cache, len(token_ids)
        positions = slots.next_position[:, None]
        slots.claim(torch.ones_like(positions, dtype=torch.bool), positions)
        steps = self._steps.setdefault(slots, {})
        padded = min(1 << (num_rows - 1).bit_length(), slots.num_slots)
        # Tensors created in inference mode can only be modified there, whatever the caller's mode.
        with torch.inference_mode():
            if padded not in steps:
                steps[padded] = _RecordedStep(self, slots, padded)
            hidden = steps[padded](token_ids)
            if vocab_range is None:
                with torch._dynamo.config.patch(_MANY_SHAPES):
                    logits: Tensor = self._logits(self.decoder, hidden)
                return logits[:num_rows]
            return self.decoder.logits(hidden[:num_rows], vocab_range=vocab_range)


class _RecordedStep:
    """A decode step of up to B rows, after the cache has claimed it: ids to hidden states.

    Unused rows write to position 0 of free slots, which later prefixes overwrite.
    """

    def __init__(self, model: CudaPaliGemma, slots: SlotCache, num_rows: int) -> None:
        self._model = model
        self._memory = [
            (keys[:num_rows], values[:num_rows])
            for keys, values in zip(slots.keys, slots.values, strict=True)
        ]
        self._lengths = slots.lengths[:num_rows]
        self._num_positions = slots.num_positions
        self._token_ids = torch.zeros(num_rows, dtype=torch.long, device=model.device)
        self._recorded: tuple[torch.cuda.CUDAGraph, Tensor] | None = None

    def __call__(self, token_ids: Tensor) -> Tensor:
        """int64[at most B] -> [B, D], valid until the next step."""
        self._token_ids[: len(token_ids)] = token_ids
        if not self._model.is_recorded:
            return self._run()
        if self._recorded is None:
            self._recorded = self._record()
        graph, hidden = self._recorded
        graph.replay()
        return hidden

    def _run(self) -> Tensor:
        model = self._model
        lengths = self._lengths.clamp_min(1)
        positions = lengths - 1
        reach = slots_in_reach(lengths, self._num_positions)
        layers = list(_layers(model.decoder))
        with torch._dynamo.config.patch(_MANY_SHAPES):
            x, normed, angles = model._enter(model.decoder, self._token_ids, positions)
            for (block, next_norm), memory in zip(layers, self._memory, strict=True):
                x, normed = model._slots_layer(
                    block, next_norm, x, normed, angles, positions, reach, memory
                )
        hidden: Tensor = normed[:, 0]
        return hidden

    def _record(self) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        """Run the step, which compiles it, then capture it as a graph.

        Running a step again is harmless: it writes the same values to the same positions.
        """
        model = self._model
        current, side = torch.cuda.current_stream(), torch.cuda.Stream()
        side.wait_stream(current)
        with torch.cuda.stream(side):
            for _ in range(_WARM_UP_STEPS):
                self._run()
        current.wait_stream(side)
        if model._graph_memory is None:
            model._graph_memory = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=model._graph_memory):
            hidden = self._run()
        return graph, hidden


def _enter(decoder: Decoder, token_ids: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Angles]:
    """int64[B] twice -> embeddings [B, 1, D], their first norm, and rotary angles."""
    config = decoder.config
    x = decoder.embed(token_ids[:, None])
    angles = rotary_angles(positions[:, None], config.head_dim, config.rope_theta)
    return x, cast("MergedBlock", decoder.blocks[0]).pre_attention_norm(x), angles


def _logits(decoder: Decoder, hidden: Tensor) -> Tensor:
    return decoder.logits(hidden)


def _layers(decoder: Decoder) -> zip[tuple[MergedBlock, nn.Module]]:
    blocks = cast("list[MergedBlock]", list(decoder.blocks))
    norms = [block.pre_attention_norm for block in blocks[1:]]
    return zip(blocks, [*norms, decoder.final_norm], strict=True)


def _compiled(
    function: Callable[..., Any], backend: str | None, dynamic: bool | None = None
) -> Callable[..., Any]:
    if backend is None:
        return function
    options: dict[str, Any] | None = None
    if backend == "inductor" and dynamic is False:
        # Tuning brings products with a single row close to the memory bandwidth. Independent small
        # kernels are combined, because launching them costs the most.
        options = {"coordinate_descent_tuning": True, "combo_kernels": True}
    return torch.compile(
        function, backend=backend, fullgraph=True, dynamic=dynamic, options=options
    )


# Check that the accelerated model computes the same


def accelerate_checked(model: PaliGemma) -> tuple[CudaPaliGemma | None, str]:
    """Accelerate a plain model, and compare the logits of a probe before and after.

    Returns the fast model and "", or None and the reason. The plain model is consumed in both
    cases: after a failure it must be loaded again.
    """
    expected = probe_logits(model)
    try:
        fast = accelerate_for_cuda(model)
        logits = probe_logits(fast, follow=expected.argmax(dim=-1).tolist())
    except Exception as error:  # compilers raise anything, from ImportError to their own types
        reason = str(error).strip().splitlines()
        return None, f"{type(error).__name__}: {reason[0] if reason else 'no message'}"
    if not agree(logits, expected, model.dtype):
        error_share = (logits - expected).abs().max() / expected.abs().max()
        return None, f"its logits differ by up to {float(error_share):.1%} of the largest"
    return fast, ""


@torch.inference_mode()
def probe_logits(model: PaliGemma, follow: list[int] | None = None) -> Tensor:
    """Return float32[steps + 1, V] on the CPU: after a short prefix, and after each of few tokens.

    The tokens are those in `follow`, or the likeliest ones.
    """
    inputs = probe_inputs(model.config).to(model.device)
    length = inputs.token_ids.shape[1]
    decoder, num_positions = model.config.decoder, length + _PROBE_STEPS
    slots = SlotCache(decoder, 1, num_positions, dtype=model.dtype, device=model.device)
    rows = [model.prefill(inputs, slots.fresh(1)).float().cpu()]
    slots.admit([length])
    for step in range(_PROBE_STEPS):
        token = int(rows[-1].argmax()) if follow is None else follow[step]
        token_ids = torch.tensor([token], device=model.device)
        rows.append(model.decode_step(token_ids, slots).float().cpu())
    return torch.cat(rows)


# Quantized weights, by torchao and bitsandbytes: of the decoder's linear layers only; the embedding
# table, norms and the vision encoder stay as they are. `fast/quantization.py` is for the CPU.

CudaQuantization = Literal["int8", "int4", "fp8", "nf4", "int8-outliers"]

_FP8_CAPABILITY = (8, 9)  # Ada and later
_GROUP_SIZE = 128


def quantize_for_cuda(model: PaliGemma, method: CudaQuantization) -> None:
    """Quantize the decoder's linear layers in place.

    torchao: "int8" and "int4" weights, "fp8" weights and inputs; bitsandbytes: "nf4" weights and
    "int8-outliers" (LLM.int8, arXiv 2208.07339).

    Raises OptionError for an unknown method, for a model that is not bfloat16 on a CUDA device, and
    for a device that does not support the format; MissingExtraError without the library.
    """
    check_choice("method", method, CudaQuantization)
    if model.device.type != "cuda" or model.dtype != torch.bfloat16:
        raise OptionError(
            f"The model is {model.dtype} on {model.device}; {method!r} needs bfloat16 on a CUDA "
            "device. Load it with device='cuda' and weights=Plain('bfloat16')."
        )
    capability = torch.cuda.get_device_capability(model.device)
    if method == "fp8" and capability < _FP8_CAPABILITY:
        raise OptionError(
            f"This device has compute capability {capability[0]}.{capability[1]}; 'fp8' needs 8.9 "
            "(Ada, Hopper or later). Use 'int8'."
        )
    if method in ("nf4", "int8-outliers"):
        _replace_linears(model.decoder.blocks, bitsandbytes_layer(method))
    else:
        _library("torchao").quantize_(model.decoder.blocks, torchao_config(method))


def torchao_config(method: CudaQuantization) -> Any:
    """Return the config for torchao's `quantize_`."""
    torchao = _library("torchao")
    plain = {"set_inductor_config": False}  # else it would change the compilation of everything
    if method == "int8":
        return torchao.Int8WeightOnlyConfig(**plain)
    if method == "int4":
        # The format of torch's own kernel; torchao's other formats need another library.
        return torchao.Int4WeightOnlyConfig(
            group_size=_GROUP_SIZE, int4_packing_format="tile_packed_to_4d", **plain
        )
    return torchao.Float8DynamicActivationFloat8WeightConfig(granularity=torchao.PerRow(), **plain)


def bitsandbytes_layer(method: CudaQuantization) -> Callable[[nn.Linear], nn.Module]:
    """Return a function that converts a linear layer to bitsandbytes' format on its device."""
    bnb = _library("bitsandbytes")

    def convert(linear: nn.Linear) -> nn.Module:
        # bitsandbytes quantizes weights while copying them from the CPU to the device.
        weight, device = linear.weight.detach().cpu(), linear.weight.device
        sizes = (linear.in_features, linear.out_features)
        layer: nn.Module
        if method == "nf4":
            layer = bnb.nn.Linear4bit(
                *sizes, bias=False, compute_dtype=weight.dtype, quant_type="nf4", device="meta"
            )
            layer.weight = bnb.nn.Params4bit(weight, requires_grad=False, quant_type="nf4")
        else:
            layer = bnb.nn.Linear8bitLt(
                *sizes, bias=False, has_fp16_weights=False, threshold=6.0, device="meta"
            )
            layer.weight = bnb.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
        return layer.to(device)

    return convert


def _replace_linears(parent: nn.Module, convert: Callable[[nn.Linear], nn.Module]) -> None:
    for name, child in parent.named_children():
        if isinstance(child, nn.Linear):
            setattr(parent, name, convert(child))
        else:
            _replace_linears(child, convert)


def _library(name: Literal["torchao", "bitsandbytes"]) -> Any:
    module = "torchao.quantization" if name == "torchao" else name
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(name, name, "This quantization") from error
