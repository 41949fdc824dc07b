"""Load a `Predictor`: find or download the checkpoint, choose device and weights, build it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict, Unpack

import torch

from paligemma.checkpoints.adapter import Adapter, read_adapter
from paligemma.checkpoints.hub import (
    KAGGLE_PREFIX,
    Source,
    fetch_checkpoint,
    fetch_from_kaggle,
    resolve,
)
from paligemma.checkpoints.load import read_model
from paligemma.checkpoints.open import open_checkpoint, read_config_and_tokenizer
from paligemma.checkpoints.tokenizer_file import TOKENIZER_FILE, tokenizer_beside
from paligemma.checkpoints.trained_on import TrainedOn
from paligemma.checkpoints.weight_form import WeightForm
from paligemma.config import MASK_CODEC_FILES, RELEASES, PaliGemmaConfig
from paligemma.errors import CheckpointError, OptionError, TokenizerError, check_choice
from paligemma.fast.cuda.model import accelerate_checked
from paligemma.fast.device import choose_device
from paligemma.fast.kernels.library import keep_freed_memory
from paligemma.fast.weights import (
    DtypeName,
    FrozenFormat,
    Plain,
    Quantization,
    Trainable,
    Weights,
    checked_weights,
    weights_name,
)
from paligemma.mini import LANGUAGES as MINI_LANGUAGES
from paligemma.model.paligemma import PaliGemma
from paligemma.predictor import Predictor
from paligemma.processor.image import Resize
from paligemma.processor.processor import Processor
from paligemma.processor.tokenizer import Tokenizer
from paligemma.tasks.seg_codec import MaskCodec, load_mask_codec_npz
from paligemma.threads import share_cpus

MODEL_VARIABLE = "PALIGEMMA_MODEL"
MINI = "mini"
_MINI_FOLDER = Path(__file__).parent / "mini" / "model"
_MINI_NOTE = (
    "This is mini, the small model inside the package, which understands only simple synthetic "
    "images. For photographs load a released model, such as google/paligemma2-3b-mix-224."
)
_UNEQUAL_NOTE = (
    "The tokenizer has {} ids and the model {}: the remaining ids appear in text as \ufffd. "
    "Tokenizer and model may not belong together."
)
_FAILED_CHECK_NOTE = (
    "The compiled modules failed their check on this device ({}), so the model runs as plain "
    "modules, with the same results but slower."
)


class OldOptions(TypedDict, total=False):
    """Keywords of `load` before `weights=` and `source=`; they still work, with a warning."""

    dtype: DtypeName
    quantization: Quantization | None
    fast: bool
    frozen_base: FrozenFormat | None
    merge_adapter: bool
    revision: str | None
    token: str | None
    offline: bool
    verify: bool


def load(
    model: str | Path | None = None,
    *,
    weights: Weights = "auto",
    device: str | int | torch.device = "auto",
    adapter: str | Path | None = None,
    source: Source | None = None,
    resize: Resize | None = None,
    sliding_window: int | None = None,
    mask_codec: str | Path | None = None,
    **old_options: Unpack[OldOptions],
) -> Predictor:
    """Load a model with its tokenizer and mask codec.

    - `model`: a folder or file in any format that docs/formats.md lists, a release
      ("paligemma2-3b-mix-448"), a model of the Hugging Face hub ("google/..." or "hf://google/...")
      or of Kaggle ("kaggle://keras/paligemma2/keras/..."), or "mini", the small model inside the
      package. None means $PALIGEMMA_MODEL, or "mini".
    - `weights`: a name, or a `Plain`, `Packed` or `Trainable`. "auto" is bfloat16 for large models
      where the device computes it well, else float32; "float32", "bfloat16" and "float16" choose
      the dtype ("bf16", "fp16" and torch's dtypes too); "int8" and "int4" quantize the decoder's
      large weights while they are read (quantized checkpoints always stay quantized). A name uses
      packed weights wherever the CPU kernels can run (in float32, for small models only; large
      ones use AMX tiles where there are any).
      `Packed()` on a CUDA device uses compiled modules, if their logits agree with the plain ones.
      `Trainable()` keeps an adapter separate from the weights, for further training;
      `Trainable("nf4")` trains on a frozen 4-bit base.
    - `device`: "auto" (CUDA, then Apple's MPS if it computes correctly, then the CPU), "cpu",
      "cuda", "cuda:1" (or its number, 1), "mps".
    - `adapter`: the folder of a LoRA, rsLoRA or DoRA adapter, written by this package or by peft.
      It is merged into the weights before these are packed or quantized, except with
      `Trainable()`.
    - `source`: the hub's revision, token and cache, and whether to verify checksums.
    - `resize`: "squash" as the released models were trained, or "pad" to keep the aspect ratio.
      None means as in fine-tuning, where the folder or adapter says so, else "squash".
    - `sliding_window`: 4096 gives PaliGemma 2 the window that transformers uses.
    - `mask_codec`: the file of the VQ-VAE for segmentation. Defaults to `mask_codec.npz` or
      `vae-oid.npz` in the model's folder.

    A tokenizer must be in the checkpoint or next to it. To use weights without one, on token ids,
    see `checkpoints.load_model` and `engine.generate`.

    Raises CheckpointError, HubError or OptionError.

    >>> predictor = load("paligemma2-3b-mix-224")
    >>> predictor.caption("cat.jpg").text
    'a cat on a sofa'
    """
    _check_paths(model=model, adapter=adapter, mask_codec=mask_codec)
    source = source or Source()
    if old_options:
        weights, source = _translate(weights, source, old_options)
    weights = checked_weights(weights)
    if resize is not None:
        check_choice("resize", resize, Resize)
    torch_device = choose_device(device)
    if torch_device.type == "cpu":
        keep_freed_memory()
    share_cpus()
    checkpoint = _find(model, source, with_weights=True)
    with open_checkpoint(checkpoint.path, sliding_window) as opened:
        config = opened.contents.config
        codec = _find_mask_codec(opened.folder, mask_codec)
        adapter_weights = None
        if adapter is not None:
            adapter_weights = read_adapter(adapter, config, verify=source.verify)
            _check_base_name(adapter_weights, checkpoint.name)
        # What a base was trained on says nothing of its adapter.
        trained_on = TrainedOn.read(opened.folder if adapter is None else Path(adapter))
        resize = resize or ("squash" if trained_on is None else trained_on.resize)
        processor = _build_processor(checkpoint.path, config, opened.contents.tokenizer, resize)
        if source.verify:
            opened.verify()

        def read(form: Weights) -> tuple[PaliGemma, WeightForm]:
            return read_model(opened, weights=form, device=torch_device, adapter=adapter_weights)

        loaded, form = read(weights)
        note = form.note
        if form.compiles_for_cuda:
            loaded, note = _accelerate_on_cuda(loaded, read)
    if checkpoint.is_mini:
        model_note = _mini_note(has_adapter=adapter is not None)
    else:
        model_note = _vocabulary_note(processor, config)
    notes = (model_note, *opened.notes, note)
    may_learn = adapter is not None or isinstance(weights, Trainable)
    return Predictor(
        model=loaded,
        processor=processor,
        mask_codec=codec,
        text_length=next((r.text_length for r in RELEASES if r.hub_id == checkpoint.name), None),
        languages=MINI_LANGUAGES if checkpoint.is_mini and not may_learn else None,
        name=checkpoint.name,
        adapter=None if adapter is None else str(adapter),
        revision=checkpoint.commit,
        trained_on=trained_on,
        note=" ".join(filter(None, notes)) or None,
    )


def _check_paths(**given: object) -> None:
    for name, value in given.items():
        if value is not None and not isinstance(value, str | os.PathLike):
            raise OptionError(f"{name} is {value!r}; it must be a path, or the name of a model.")


def _translate(weights: Weights, source: Source, old: OldOptions) -> tuple[Weights, Source]:
    if unknown := old.keys() - OldOptions.__annotations__.keys():
        raise TypeError(f"load() got an unexpected keyword argument {sorted(unknown)[0]!r}")
    warnings.warn(
        f"load({', '.join(f'{name}=' for name in old)}) is deprecated and will be removed. Use "
        "weights= (a name such as 'int4' or 'bfloat16', or Plain, Packed or Trainable) and "
        "source=Source(revision=..., token=..., offline=..., verify=...).",
        DeprecationWarning,
        stacklevel=3,
    )
    source = Source(
        revision=old.get("revision", source.revision),
        token=old.get("token", source.token),
        offline=old.get("offline", source.offline),
        verify=old.get("verify", source.verify),
    )
    if not old.keys() & {"dtype", "quantization", "fast", "frozen_base", "merge_adapter"}:
        return weights, source
    if weights != "auto":
        raise OptionError(
            "weights= was given together with deprecated keywords that it replaces. Leave the "
            "others out."
        )
    dtype, quantization = old.get("dtype", "auto"), old.get("quantization")
    name = weights_name(dtype, quantization)
    base, merges = old.get("frozen_base"), old.get("merge_adapter", True)
    is_trainable = base is not None or not merges
    if quantization is not None and (is_trainable or not old.get("fast", True)):
        raise OptionError(
            f"quantization is {quantization!r}, which needs packed weights; these cannot be "
            "trainable or plain. Leave it out, or leave out frozen_base, merge_adapter and fast."
        )
    if is_trainable:
        return Trainable(base=base, dtype=dtype, merge_adapter=merges), source
    return (name if old.get("fast", True) else Plain(dtype)), source


def _accelerate_on_cuda(
    plain: PaliGemma, read: Callable[[Weights], tuple[PaliGemma, WeightForm]]
) -> tuple[PaliGemma, str | None]:
    """Return the compiled model and None, or plain modules and why the check failed."""
    fast, problem = accelerate_checked(plain)
    if fast is not None:
        return fast, None
    plain.to("meta")  # its parts were moved: free the memory and read the weights again
    model, _ = read(Plain("bfloat16"))
    return model, _FAILED_CHECK_NOTE.format(problem)


def _mini_note(*, has_adapter: bool) -> str | None:
    """What to know about mini, unless an adapter taught it something else."""
    notes = [] if has_adapter else [_MINI_NOTE]
    if Path(MINI, "config.json").is_file():
        notes.append(f"The folder {MINI} here is another model; to use that, load ./{MINI}.")
    return " ".join(notes) or None


def _vocabulary_note(processor: Processor, config: PaliGemmaConfig) -> str | None:
    num_ids = processor.tokenizer.vocab_size
    if num_ids < config.decoder.vocab_size:
        return _UNEQUAL_NOTE.format(num_ids, config.decoder.vocab_size)
    return None


def _check_base_name(adapter: Adapter, name: str) -> None:
    """Refuse an adapter of one release on another; custom names cannot be compared."""
    releases = {release.hub_id for release in RELEASES}
    if name in releases and adapter.base_name in releases - {name}:
        raise CheckpointError(
            f"The adapter {adapter.folder} was trained on {adapter.base_name}, but this model is "
            f"{name}. Load it on {adapter.base_name}."
        )


def load_processor(
    model: str | Path | None = None,
    *,
    source: Source | None = None,
    resize: Resize = "squash",
    mask_codec: str | Path | None = None,
) -> tuple[Processor, MaskCodec | None]:
    """Load a model's processor and mask codec without its weights.

    Takes the options of `load`. Raises CheckpointError, HubError or OptionError.
    """
    _check_paths(model=model, mask_codec=mask_codec)
    check_choice("resize", resize, Resize)
    checkpoint = _find(model, source or Source(), with_weights=False)
    config, tokenizer = read_config_and_tokenizer(checkpoint.path)
    processor = _build_processor(checkpoint.path, config, tokenizer, resize)
    folder = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
    return processor, _find_mask_codec(folder, mask_codec)


@dataclass(frozen=True, kw_only=True)
class _Checkpoint:
    name: str
    path: Path
    commit: str | None = None
    is_mini: bool = False


def find_checkpoint(model: str | Path, source: Source) -> Path:
    """Return the folder or file of a model, downloaded if needed.

    Raises CheckpointError or HubError.
    """
    return _find(model, source, with_weights=True).path


def _find(model: str | Path | None, source: Source, *, with_weights: bool) -> _Checkpoint:
    name = str(model or os.environ.get(MODEL_VARIABLE) or MINI)
    if name == MINI and not isinstance(model, Path):
        return _Checkpoint(name=name, path=_MINI_FOLDER, is_mini=True)
    location = resolve(model or name)
    if isinstance(location, Path):
        return _Checkpoint(name=name, path=location)
    if location.startswith(KAGGLE_PREFIX):
        return _Checkpoint(name=name, path=fetch_from_kaggle(location, offline=source.offline))
    fetched = fetch_checkpoint(
        location,
        revision=source.revision,
        token=source.token,
        offline=source.offline,
        weights=with_weights,
    )
    return _Checkpoint(name=fetched.hub_id, path=fetched.path, commit=fetched.revision)


def _build_processor(
    path: Path, config: PaliGemmaConfig, tokenizer: bytes | None, resize: Resize
) -> Processor:
    return Processor(
        tokenizer=_read_tokenizer(path, config.decoder.vocab_size, tokenizer),
        resolution=config.vision.resolution,
        num_image_tokens=config.vision.num_image_tokens,
        resize=resize,
    )


def _read_tokenizer(path: Path, vocab_size: int, model_proto: bytes | None) -> Tokenizer:
    if model_proto is None:
        where = f"contains no {TOKENIZER_FILE}"
        if path.is_file():
            names = f"{tokenizer_beside(path).name} or {TOKENIZER_FILE}"
            where = f"has no tokenizer next to it: no {names}"
        raise TokenizerError(
            f"{path} {where} (a SentencePiece model). Copy it from the "
            "release that the weights come from. To use the model without a tokenizer, on token "
            "ids, call paligemma.checkpoints.load_model."
        )
    tokenizer = Tokenizer(model_proto)
    tokenizer.check_fits(vocab_size)
    return tokenizer


def _find_mask_codec(folder: Path, path: str | Path | None) -> MaskCodec | None:
    if path is not None:
        return load_mask_codec_npz(Path(os.path.expanduser(path)))
    for name in MASK_CODEC_FILES:
        if (folder / name).is_file():
            return load_mask_codec_npz(folder / name)
    return None
