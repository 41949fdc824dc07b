"""A name -> a `Predictor`: finds the folder, chooses device and dtype, joins the parts.

Knows where the embedded model lies and what a checkpoint folder holds; reads no tensors itself.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch

from paligemma.checkpoints.adapter import Adapter, read_adapter
from paligemma.checkpoints.hf_config import read_config
from paligemma.checkpoints.hub import fetch_checkpoint, resolve
from paligemma.checkpoints.load import load_model
from paligemma.checkpoints.save import TOKENIZER_FILE
from paligemma.checkpoints.weight_files import WeightFiles
from paligemma.config import (
    RELEASES,
    DecoderConfig,
    PaliGemmaConfig,
    VisionConfig,
    count_parameters,
)
from paligemma.errors import CheckpointError, OptionError, TokenizerError
from paligemma.fast.frozen_linear import FrozenFormat
from paligemma.fast.kernels.allocator import keep_freed_memory
from paligemma.fast.kernels.library import kernels
from paligemma.fast.quantization import Quantization
from paligemma.inputs import ModelInputs
from paligemma.model.paligemma import PaliGemma
from paligemma.predictor import MASK_CODEC_FILE, Predictor
from paligemma.processor.image import Resize
from paligemma.processor.processor import Processor
from paligemma.processor.tokenizer import Tokenizer
from paligemma.tasks.seg_codec import MaskCodec, load_mask_codec_npz

MODEL_VARIABLE = "PALIGEMMA_MODEL"
MINI = "mini"
_MINI_FOLDER = Path(__file__).parent / "mini" / "model"
_MINI_NOTE = (
    "This is mini, the small model inside the package: it knows only its own world of simple "
    "pictures. For photographs load a released model, such as google/paligemma2-3b-mix-224."
)
_UNEQUAL_NOTE = (
    "The tokenizer has {} ids and the model {}: where the model writes one of the others, the text "
    "shows \ufffd. They may not belong together."
)
_RELEASED_CODEC_FILE = "vae-oid.npz"
_LARGE = 1_000_000_000

DtypeName = Literal["auto", "float32", "bfloat16", "float16"]


def load(
    model: str | Path | None = None,
    *,
    revision: str | None = None,
    token: str | None = None,
    offline: bool = False,
    device: str = "auto",
    dtype: DtypeName = "auto",
    quantization: Quantization | None = None,
    adapter: str | Path | None = None,
    merge_adapter: bool = True,
    frozen_base: FrozenFormat | None = None,
    fast: bool = True,
    resize: Resize = "squash",
    sliding_window: int | None = None,
    mask_codec: str | Path | None = None,
    verify: bool = False,
) -> Predictor:
    """Load a model and everything around it.

    `model` is a folder, a release ("paligemma2-3b-mix-448"), a model of the Hugging Face hub, or
    "mini", the small model inside the package. None takes $PALIGEMMA_MODEL, or "mini".
    `revision`, `token` and `offline` are for the hub. `device`: "auto" (CUDA, then Apple's MPS
    if it computes correctly, then the CPU), "cpu", "cuda", "cuda:1", "mps". `dtype`: "auto" is
    bfloat16 for large models where it serves, else float32. `quantization`: "int8" or "int4"
    makes the large weights of the decoder so while they are read; a quantized folder needs no
    asking. `adapter`: the folder of a LoRA, rsLoRA or DoRA adapter, of this package or of peft; it
    becomes part of the weights, before these are packed or quantized, or with
    `merge_adapter=False` stands beside them for more training. `frozen_base`: "nf4" or "int8" keeps
    the decoder's linear layers small and frozen, for adapters to be trained on. `fast=False` keeps
    the plain modules where packed weights and kernels would compute (on the CPU in bfloat16).
    `resize`: "squash" as the released models were trained, "pad" keeps the shape of pictures.
    `sliding_window=4096` gives PaliGemma 2 the window that transformers uses.
    `mask_codec` is the VQ-VAE's file for segmentation; by default `mask_codec.npz` or
    `vae-oid.npz` in the model's folder. `verify` compares files with their SHA-256 first: those
    that saving wrote down, or those that the hub published.

    The folder must hold `config.json`, safetensors and `tokenizer.model`. For weights without a
    tokenizer, or ids instead of text: `checkpoints.load.load_model` and `engine.generate`.

    Raises CheckpointError, HubError or OptionError.

    >>> predictor = load("paligemma2-3b-mix-224")
    >>> predictor.caption("cat.jpg").text
    'a cat on a sofa'
    """
    _check_resize(resize)
    torch_device = choose_device(device)
    if torch_device.type == "cpu":
        keep_freed_memory()
    found = _find(model, revision=revision, token=token, offline=offline, weights=True)
    name, folder = found.name, found.folder
    stored = read_config(folder, sliding_window)
    config = stored.config
    quantized = quantization or stored.quantization
    processor = _build_processor(folder, config, resize)
    tokenizer = processor.tokenizer
    note = None
    if found.is_mini:
        note = _MINI_NOTE
    elif tokenizer.vocab_size < config.decoder.vocab_size:
        note = _UNEQUAL_NOTE.format(tokenizer.vocab_size, config.decoder.vocab_size)
    codec = _find_mask_codec(folder, mask_codec)
    found_adapter = None
    if adapter is not None:
        found_adapter = read_adapter(adapter, config, verify=verify)
        _check_base_name(found_adapter, name)
    trains = frozen_base is not None or (adapter is not None and not merge_adapter)
    torch_dtype = choose_dtype(dtype, torch_device, folder, quantized)
    packs = torch_dtype == torch.bfloat16 and torch_device.type == "cpu" and kernels() is not None
    packs = (packs or quantized is not None) and not trains
    return Predictor(
        model=load_model(
            folder,
            dtype=torch_dtype,
            device=torch_device,
            quantization=quantization,
            fast=fast and packs,
            sliding_window=sliding_window,
            adapter=found_adapter,
            merge_adapter=merge_adapter,
            frozen_base=frozen_base,
            verify=verify,
        ),
        processor=processor,
        mask_codec=codec,
        text_length=next((r.text_length for r in RELEASES if r.hub_id == name), None),
        name=name,
        adapter=None if adapter is None else str(adapter),
        revision=found.commit,
        note=note,
    )


def _check_base_name(adapter: Adapter, name: str) -> None:
    """Refuses a release's adapter on another release; other names say too little."""
    releases = {release.hub_id for release in RELEASES}
    if name in releases and adapter.base_name in releases - {name}:
        raise CheckpointError(
            f"The adapter {adapter.folder} was trained on {adapter.base_name}, and this is {name}. "
            f"Load it on {adapter.base_name}."
        )


def load_processor(
    model: str | Path | None = None,
    *,
    revision: str | None = None,
    token: str | None = None,
    offline: bool = False,
    resize: Resize = "squash",
    mask_codec: str | Path | None = None,
) -> tuple[Processor, MaskCodec | None]:
    """What `load` puts around a model, without its weights: quick, and little to download.

    Raises CheckpointError, HubError or OptionError.
    """
    _check_resize(resize)
    found = _find(model, revision=revision, token=token, offline=offline, weights=False)
    processor = _build_processor(found.folder, read_config(found.folder).config, resize)
    return processor, _find_mask_codec(found.folder, mask_codec)


@dataclass(frozen=True, kw_only=True)
class _Found:
    """Where a model lies, and what it is called."""

    name: str
    folder: Path
    commit: str | None = None
    is_mini: bool = False


def _find(
    model: str | Path | None,
    *,
    revision: str | None,
    token: str | None,
    offline: bool,
    weights: bool,
) -> _Found:
    """A name's folder, downloaded if it has to be."""
    name = str(model or os.environ.get(MODEL_VARIABLE) or MINI)
    if name == MINI and not isinstance(model, Path):
        return _Found(name=name, folder=_MINI_FOLDER, is_mini=True)
    place = resolve(model or name)
    if isinstance(place, Path):
        return _Found(name=name, folder=place)
    fetched = fetch_checkpoint(
        place, revision=revision, token=token, offline=offline, weights=weights
    )
    return _Found(name=fetched.hub_id, folder=fetched.path, commit=fetched.revision)


def _check_resize(resize: Resize) -> None:
    if resize not in get_args(Resize):
        raise OptionError(f"resize is {resize!r}; it must be one of {get_args(Resize)}.")


def _build_processor(folder: Path, config: PaliGemmaConfig, resize: Resize) -> Processor:
    return Processor(
        tokenizer=_read_tokenizer(folder, config.decoder.vocab_size),
        resolution=config.vision.resolution,
        num_image_tokens=config.vision.num_image_tokens,
        resize=resize,
    )


def choose_device(device: str) -> torch.device:
    """The device that a name stands for. Raises OptionError when it is unknown or not there."""
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
            f"The device {device!r} is not there: torch sees {num_devices} of this kind. "
            "Use device='auto' or 'cpu', or install a torch build that knows the device."
        )
    return chosen


def choose_dtype(
    dtype: DtypeName,
    device: torch.device,
    folder: Path,
    quantization: Quantization | None = None,
) -> torch.dtype:
    """The dtype for the weights in a folder; raises OptionError for an unknown name."""
    if dtype != "auto":
        if dtype not in get_args(DtypeName):
            raise OptionError(f"dtype is {dtype!r}; it must be one of {get_args(DtypeName)}.")
        chosen: torch.dtype = getattr(torch, dtype)
        return chosen
    if quantization is not None:  # the rest and the sums are bfloat16
        return torch.bfloat16
    # A small model is quick anyway, and float32 gives the same tokens in any batch.
    if count_parameters(read_config(folder).config) <= _LARGE:
        return torch.float32
    if device.type == "cuda":
        serves = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device.type == "mps":
        serves = computes_correctly(device, torch.bfloat16)
    else:
        with WeightFiles(folder) as weights:
            serves = {tensor.dtype_code for tensor in weights.tensors.values()} == {"BF16"}
    # Never float16: activations of the released models leave its range.
    return torch.bfloat16 if serves else torch.float32


def computes_correctly(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a small random model gives the logits there that it gives on the CPU in float32."""
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
        is_image = torch.arange(9)[None] < config.vision.num_image_tokens
        inputs = ModelInputs(
            token_ids=torch.arange(9)[None] * ~is_image,
            input_mask=torch.ones(1, 9, dtype=torch.bool),
            mask_ar=torch.arange(9)[None] >= 7,
            image_mask=is_image,
            pixel_values=torch.rand(1, 3, 28, 28) * 2 - 1,
            image_index=((0,),),
        )
        expected = model(inputs)
        try:
            found = model.to(device=device, dtype=dtype)(inputs.to(device)).cpu()
        except (RuntimeError, NotImplementedError):  # an operation that the device lacks
            return False
    tolerance = 1e-3 if dtype == torch.float32 else 0.1
    return bool((found - expected).abs().max() <= tolerance * expected.abs().max())


def _read_tokenizer(folder: Path, vocab_size: int) -> Tokenizer:
    if not (folder / TOKENIZER_FILE).exists():
        raise TokenizerError(
            f"{folder} holds no {TOKENIZER_FILE}, the SentencePiece model that turns text into "
            "ids. Copy it from the release that the weights come from. The model alone, from ids "
            "to ids: paligemma.checkpoints.load.load_model."
        )
    tokenizer = Tokenizer.from_file(folder / TOKENIZER_FILE)
    tokenizer.check_fits(vocab_size)
    return tokenizer


def _find_mask_codec(folder: Path, given: str | Path | None) -> MaskCodec | None:
    if given is not None:
        return load_mask_codec_npz(Path(given).expanduser())
    for name in (MASK_CODEC_FILE, _RELEASED_CODEC_FILE):
        if (folder / name).is_file():
            return load_mask_codec_npz(folder / name)
    return None
