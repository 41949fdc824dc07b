"""Load a model from a checkpoint folder.

Weights are copied from the files into the modules, plain, packed or quantized, a few megabytes at a
time.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from paligemma.adapters.lora import attach_lora, freeze_base
from paligemma.checkpoints.adapter import Adapter, base_fingerprint
from paligemma.checkpoints.hf_config import StoredConfig, read_config
from paligemma.checkpoints.match import StoredParameter, match_tensors
from paligemma.checkpoints.reader import DTYPE_CODES, WeightFiles, is_finite, row_blocks, shorten
from paligemma.checkpoints.rows import Uninitialized
from paligemma.checkpoints.weight_form import StoredWeights, WeightForm, choose_form
from paligemma.errors import CheckpointError, counted
from paligemma.fast.accelerate import accelerate, weight_rows
from paligemma.fast.kernels.library import use_huge_pages
from paligemma.fast.linear import Rows, WeightRows
from paligemma.fast.quantization import dequantize, from_stored
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
    """Build the model that a folder describes, and load its weights.

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
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder. Give the folder of a checkpoint.")
    model, _ = read_model(
        folder,
        read_config(folder, sliding_window),
        weights=weights,
        device=torch.device(device),
        adapter=adapter,
        check_finite=check_finite,
        verify=verify,
    )
    return model


def read_model(
    folder: Path,
    stored: StoredConfig,
    *,
    weights: Weights,
    device: torch.device,
    adapter: Adapter | None = None,
    check_finite: bool = True,
    verify: bool = False,
) -> tuple[PaliGemma, WeightForm]:
    """As `load_model`, with a config that was read before; also return the form that was chosen."""
    with WeightFiles(folder) as files:
        if verify:
            files.verify()
        with torch.device("meta"), Uninitialized():  # shapes without memory
            model = PaliGemma(stored.config)
        shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
        sources = match_tensors(files, shapes, stored)
        if adapter is not None:
            adapter.check_base(base_fingerprint(stored.config, _reader(files, sources)))
        form = choose_form(weights, _facts(files, sources, stored), device)
        model = _empty_model(model, form, device)
        merged = adapter if form.merges_adapter else None
        broken = _fill(weight_rows(model), files, sources, form.dtype, merged, check_finite)
    if broken:
        raise CheckpointError(
            f"{folder} contains NaN, infinity, or values too large for {form.dtype} in "
            f"{counted(len(broken), 'tensor')}: {shorten(broken)}. Download the weights again, or "
            "load "
            "them as float32 if they are stored so."
        )
    if adapter is not None and not form.merges_adapter:
        attach_lora(model, adapter.layers, dropout=adapter.dropout)
    return model.eval(), form


def _facts(
    files: WeightFiles, sources: Mapping[str, StoredParameter], stored: StoredConfig
) -> StoredWeights:
    table = sources["decoder.embedding.weight"]
    codes = {tensor.dtype_code for tensor in files.tensors.values()}
    return StoredWeights(
        folder=files.folder,
        config=stored,
        dtype=DTYPE_CODES[files.tensors[table.scales or table.weight].dtype_code],
        is_all_bfloat16=codes == {"BF16"},
    )


def _empty_model(model: PaliGemma, form: WeightForm, device: torch.device) -> PaliGemma:
    """Convert a model on the meta device to the chosen form, and allocate its memory."""
    model = model.to(form.dtype)
    if form.is_packed:
        model = accelerate(model, form.quantization)
    if form.frozen_base is not None:
        model = freeze_base(model, form.frozen_base)
    _check_memory(model, form.dtype, device)
    model = model.to_empty(device=device)
    for tensor in chain(model.parameters(), model.buffers()):
        use_huge_pages(tensor)
    return model


def _reader(files: WeightFiles, sources: Mapping[str, StoredParameter]) -> Callable[[str], Tensor]:
    """Return a function that reads a whole parameter that is never quantized."""

    def read(name: str) -> Tensor:
        source = sources[name].weight
        return files.read_rows(source, 0, files.tensors[source].shape[0])

    return read


def _fill(
    rows: Mapping[str, Rows],
    files: WeightFiles,
    sources: Mapping[str, StoredParameter],
    dtype: torch.dtype,
    adapter: Adapter | None,
    check_finite: bool,
) -> list[str]:
    """Write every parameter; return the names (in the files) of tensors that are not finite."""
    broken: dict[str, None] = {}
    for name, start, block, scales in _read_ahead(rows, files, sources):
        source, target = sources[name], rows[name]
        low_rank = adapter.layers.get(name.removesuffix(".weight")) if adapter else None
        if scales is None:
            values = (low_rank.merged(block, start) if low_rank else block).to(dtype)
            if check_finite and not is_finite(values):
                broken[source.weight] = None
            target.write(start, values)
            continue
        if check_finite and not is_finite(scales):
            broken[str(source.scales)] = None
        assert source.weight_format is not None
        if isinstance(target, WeightRows) and low_rank is None:
            target.write_stored(start, block, scales)
        else:
            q = from_stored(block, source.weight_format)[:, : target.shape[1]]
            values = dequantize(q, scales, source.weight_format.group_size)
            target.write(start, low_rank.merged(values, start) if low_rank else values)
    return list(broken)


def _read_ahead(
    rows: Mapping[str, Rows], files: WeightFiles, sources: Mapping[str, StoredParameter]
) -> Iterator[tuple[str, int, Tensor, Tensor | None]]:
    """Yield (parameter, first row, rows, their scales), reading the next block in a thread."""
    blocks = ((name, *block) for name in sources for block in row_blocks(rows[name].shape))

    def read(name: str, start: int, end: int) -> tuple[str, int, Tensor, Tensor | None]:
        source = sources[name]
        values = files.read_rows(source.weight, start, end)
        if source.scales is None:
            return name, start, values, None
        return name, start, values, files.read_rows(source.scales, start, end)

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
            f"{room / 1e9:.1f} GB. Choose weights='int4', a smaller dtype, a smaller model, or "
            "another device."
        )
