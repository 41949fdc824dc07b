"""Choose a device, and check that it computes correctly."""

from __future__ import annotations

import torch
from torch import Tensor

from paligemma.config import DecoderConfig, PaliGemmaConfig, VisionConfig
from paligemma.errors import OptionError
from paligemma.inputs import ModelInputs
from paligemma.model.paligemma import PaliGemma

_NUM_TEXT_TOKENS = 5

# Largest difference of a logit, relative to the largest logit.
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.1}


def choose_device(device: str | int | torch.device) -> torch.device:
    """Return the device with this name, or the CUDA device with this number.

    Raises OptionError if it is unknown or does not exist.
    """
    if isinstance(device, str):
        device = f"cuda:{device}" if device.isdecimal() else device.lower()
    elif isinstance(device, int) and not isinstance(device, bool):
        device = f"cuda:{device}"
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        mps = torch.device("mps")
        if torch.backends.mps.is_available() and computes_correctly(mps, torch.float32):
            return mps
        return torch.device("cpu")
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise OptionError(
            f"device is {device!r}; it must be 'auto', 'cpu', 'cuda', 'cuda:N' or 'mps'."
        ) from error
    num_devices = {
        "cpu": 1,
        "cuda": torch.cuda.device_count() if torch.cuda.is_available() else 0,
        "mps": int(torch.backends.mps.is_available()),
    }.get(chosen.type, 0)
    if (chosen.index or 0) >= num_devices:
        raise OptionError(
            f"The device {device!r} does not exist: torch finds {num_devices} of this type. "
            "Use device='auto' or 'cpu', or install a torch build that supports the device."
        )
    return chosen


def computes_correctly(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether a small random model has the same logits there as on the CPU in float32."""
    config = PaliGemmaConfig(
        vision=VisionConfig(
            resolution=28, patch_size=14, width=32, depth=2, mlp_dim=48, num_heads=4
        ),
        decoder=DecoderConfig(
            vocab_size=96,
            width=40,
            depth=2,
            mlp_dim=80,
            num_heads=4,
            num_kv_heads=2,
            head_dim=16,
            query_scale=0.25,
            post_norms=True,
            attn_logit_softcap=50.0,
            final_logit_softcap=30.0,
        ),
    )
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.manual_seed(0)
        model = PaliGemma(config).eval()
        inputs = probe_inputs(config, num_suffix_tokens=2)
        expected = model(inputs)
        try:
            logits = model.to(device=device, dtype=dtype)(inputs.to(device)).cpu()
        except (RuntimeError, NotImplementedError):  # an operation that the device lacks
            return False
    return agree(logits, expected, dtype)


def probe_inputs(config: PaliGemmaConfig, *, num_suffix_tokens: int = 0) -> ModelInputs:
    """Build one row with a random image and a few tokens; the same for equal configs."""
    num_image_tokens, side = config.vision.num_image_tokens, config.vision.resolution
    length = num_image_tokens + _NUM_TEXT_TOKENS
    positions = torch.arange(length)[None]
    is_image = positions < num_image_tokens
    generator = torch.Generator().manual_seed(0)
    return ModelInputs(
        token_ids=positions % config.decoder.vocab_size * ~is_image,
        input_mask=torch.ones(1, length, dtype=torch.bool),
        mask_ar=positions >= length - num_suffix_tokens,
        image_mask=is_image,
        pixel_values=torch.rand(1, 3, side, side, generator=generator) * 2 - 1,
        image_index=((0,),),
    )


def agree(logits: Tensor, expected: Tensor, dtype: torch.dtype) -> bool:
    """Return whether logits computed in `dtype` equal the expected ones up to rounding."""
    largest_error = (logits.float() - expected.float()).abs().max()
    return bool(largest_error <= _TOLERANCE[dtype] * expected.abs().max())
