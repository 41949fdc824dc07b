"""Load a model from a checkpoint of any format.

Weights are copied from the files into the modules, plain, packed or quantized, a few megabytes at a
time.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from paligemma.adapters.lora import attach_lora, freeze_base
from paligemma.checkpoints.adapter import Adapter, base_fingerprint
from paligemma.checkpoints.bitsandbytes import FourBitRows, is_nf4
from paligemma.checkpoints.open import open_checkpoint
from paligemma.checkpoints.opened import OpenCheckpoint
from paligemma.checkpoints.reader import is_finite, row_blocks, shorten
from paligemma.checkpoints.rows import QuantizedRows, StoredRows, Uninitialized, read_all
from paligemma.checkpoints.weight_form import WeightForm, choose_form
from paligemma.errors import CheckpointError, counted
from paligemma.fast.accelerate import accelerate, weight_rows
from paligemma.fast.float32 import use_tiles
from paligemma.fast.frozen_linear import FrozenLinear
from paligemma.fast.kernels.library import use_huge_pages
from paligemma.fast.linear import Rows, WeightRows
from paligemma.fast.weights import Weights
from paligemma.model.paligemma import PaliGemma


def load_model(
    folder: Path | str,
    *,
    weights: Weights = "stored",
    device: torch.device | str = "cpu",
    adapter: Adapter | None = None,
    sliding_window: int | None = None,
    check_finite: bool = True,
    verify: bool = False,
) -> PaliGemma:
    """Build the model that a folder or file describes, and load its weights.

    Peak memory is that of the weights in the requested form plus a few megabytes, whatever dtype
    is stored (float32, bfloat16 or float16). `weights` is that form: a `Plain`, `Packed` or
    `Trainable`, or a name such as "bfloat16" or "int4"; "stored" keeps the dtype of the files. An
    `adapter` is merged into the weights before they are packed or quantized, or stays separate
    with `Trainable()`. `sliding_window=4096` gives PaliGemma 2 the window that transformers uses;
    by default there is none, as in the code that trained the weights. `check_finite=False` accepts
    NaN and infinity. `verify=True` first compares the files with their SHA-256.

    Raises CheckpointError, which names the invalid files, config keys or tensors, and OptionError
    for a form that these weights do not support.

    The model takes `ModelInputs`: `model(inputs)` returns logits, and
    `engine.generate.generate(model, inputs, max_new_tokens=32, eos_id=1)` generates token ids.

    >>> model = load_model("paligemma2-3b-mix-224", weights="bfloat16")  # doctest: +SKIP
    >>> sum(p.numel() for p in model.parameters())  # doctest: +SKIP
    3032094960
    """
    with open_checkpoint(Path(folder), sliding_window) as checkpoint:
        if verify:
            checkpoint.verify()
        model, _ = read_model(
            checkpoint,
            weights=weights,
            device=torch.device(device),
            adapter=adapter,
            check_finite=check_finite,
        )
    return model


def read_model(
    checkpoint: OpenCheckpoint,
    *,
    weights: Weights,
    device: torch.device,
    adapter: Adapter | None = None,
    check_finite: bool = True,
) -> tuple[PaliGemma, WeightForm]:
    """As `load_model`, from an open checkpoint; also return the form that was chosen."""
    config, parameters = checkpoint.contents.config, checkpoint.contents.parameters
    with torch.device("meta"), Uninitialized():  # shapes without memory
        model = PaliGemma(config)
    if adapter is not None:
        adapter.check_base(base_fingerprint(config, lambda name: read_all(parameters[name])))
    form = choose_form(weights, checkpoint, device)
    model = _empty_model(model, form, device)
    merged = adapter if form.merges_adapter else None
    broken = _fill(weight_rows(model), parameters, form.dtype, merged, check_finite)
    if broken:
        raise CheckpointError(
            f"{checkpoint.path} contains NaN, infinity, or values too large for {form.dtype} in "
            f"{counted(len(broken), 'tensor')}: {shorten(broken)}. Download the weights again, or "
            "load them as float32 if they are stored so."
        )
    if adapter is not None and not form.merges_adapter:
        attach_lora(model, adapter.layers, dropout=adapter.dropout)
    return model.eval(), form


def _empty_model(model: PaliGemma, form: WeightForm, device: torch.device) -> PaliGemma:
    """Convert a model on the meta device to the chosen form, and allocate its memory."""
    model = model.to(form.dtype)
    if form.is_packed:
        model = accelerate(model, form.quantization)
    if form.uses_tiles:
        model = use_tiles(model)
    if form.frozen_base is not None:
        model = freeze_base(model, form.frozen_base, double_quantization=not form.keeps_nf4)
    _check_memory(model, form.dtype, device)
    model = model.to_empty(device=device)
    for tensor in chain(model.parameters(), model.buffers()):
        use_huge_pages(tensor)
    return model


def _fill(
    rows: Mapping[str, Rows],
    parameters: Mapping[str, StoredRows],
    dtype: torch.dtype,
    adapter: Adapter | None,
    check_finite: bool,
) -> list[str]:
    """Write every parameter; return the names (in the files) of tensors that are not finite."""
    broken: dict[str, None] = {}
    for name, start, block, scales in _read_ahead(rows, parameters, adapter):
        source, target = parameters[name], rows[name]
        if scales is not None:
            assert isinstance(source, QuantizedRows | FourBitRows)
            if check_finite and not is_finite(scales):
                broken[source.scales_name] = None
            assert isinstance(target, WeightRows | FrozenLinear)
            target.write_stored(start, block, scales)
            continue
        low_rank = adapter.layers.get(name.removesuffix(".weight")) if adapter else None
        values = (low_rank.merged(block, start) if low_rank else block).to(dtype)
        if check_finite and not is_finite(values):
            broken[source.name] = None
        target.write(start, values)
    return list(broken)


def _read_ahead(
    rows: Mapping[str, Rows], parameters: Mapping[str, StoredRows], adapter: Adapter | None
) -> Iterator[tuple[str, int, Tensor, Tensor | None]]:
    """Yield (parameter, first row, rows, None), reading the next block in a thread.

    Quantized weights that stay as they are have scales in place of None.
    """
    blocks = ((name, *block) for name in parameters for block in row_blocks(rows[name].shape))
    layers = adapter.layers if adapter else {}

    def read(name: str, start: int, end: int) -> tuple[str, int, Tensor, Tensor | None]:
        source, target = parameters[name], rows[name]
        is_merged = name.removesuffix(".weight") in layers
        if isinstance(source, QuantizedRows) and isinstance(target, WeightRows) and not is_merged:
            return name, start, *source.read_stored(start, end)
        holds_nf4 = isinstance(target, FrozenLinear) and target.holds_stored_nf4
        if is_nf4(source) and holds_nf4 and not is_merged:
            return name, start, *source.read_nf4(start, end)
        return name, start, source.read(start, end), None

    with ThreadPoolExecutor(max_workers=1) as reader:
        pending = reader.submit(read, *next(blocks))
        for block in blocks:
            following = reader.submit(read, *block)
            yield pending.result()
            pending = following
        yield pending.result()


def _check_memory(model: PaliGemma, dtype: torch.dtype, device: torch.device) -> None:
    """Raise before allocating more memory than exists, which would get the process killed."""
    tensors = chain(model.parameters(), model.buffers())
    need = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    if device.type == "cuda":
        room = torch.cuda.mem_get_info(device)[0]
    elif hasattr(os, "sysconf"):
        room = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    else:
        return
    if need > room:
        raise CheckpointError(
            f"The weights need {need / 1e9:.1f} GB in {dtype}, but {device} has "
            f"{room / 1e9:.1f} GB. Choose weights='int4' (--quantization int4), a smaller dtype, a "
            "smaller model, or another device."
        )
