"""A checkpoint folder -> the model. Strict: what is missing, left over or mis-shaped stops it.

Weights go from the files into the modules that compute with them, plain, packed or quantized, a
few megabytes at a time. Knows no network and no tokenizer.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from math import isqrt
from pathlib import Path

import torch
from torch import Tensor

from paligemma.adapters.lora import attach_lora, freeze_base
from paligemma.checkpoints.adapter import Adapter, base_fingerprint
from paligemma.checkpoints.hf import (
    EMBEDDING,
    OUTPUT_LAYER,
    POSITIONS,
    is_pooling_head,
    to_released_name,
    to_released_names,
)
from paligemma.checkpoints.hf_config import StoredConfig, read_config
from paligemma.checkpoints.quantized import (
    Q_SUFFIX,
    SCALES_SUFFIX,
    format_of,
    q_shape,
    scales_shape,
)
from paligemma.checkpoints.weight_files import (
    DTYPE_CODES,
    WeightFiles,
    is_finite,
    row_blocks,
    shorten,
)
from paligemma.errors import CheckpointError, OptionError
from paligemma.fast.accelerate import accelerate, weight_rows
from paligemma.fast.frozen_linear import FrozenFormat
from paligemma.fast.kernels.memory import use_huge_pages
from paligemma.fast.linear import Rows, WeightRows
from paligemma.fast.packing import WeightFormat, from_stored
from paligemma.fast.quantization import Quantization, dequantize
from paligemma.model.paligemma import PaliGemma


def load_model(
    folder: Path | str,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    quantization: Quantization | None = None,
    fast: bool | None = None,
    sliding_window: int | None = None,
    adapter: Adapter | None = None,
    merge_adapter: bool = True,
    frozen_base: FrozenFormat | None = None,
    check_finite: bool = True,
    verify: bool = False,
) -> PaliGemma:
    """Build the model that a folder describes and fill it, a few megabytes at a time.

    Memory stays within a few megabytes of the weights in the form asked for, whatever dtype is
    stored (float32, bfloat16 or float16). `dtype=None` keeps the stored one.
    `quantization` makes the large weights of the decoder "int8" or "int4", the rest bfloat16; a
    quantized folder stays what it is. `fast=True` packs bfloat16 weights for the kernels; None
    does so for quantized weights only, and False gives the plain modules, into which a quantized
    folder is widened.
    `sliding_window=4096` gives PaliGemma 2 the window that transformers uses; the default is
    none, as in the code that trained the weights. An `adapter` becomes part of the weights while
    they are read, before they are packed or quantized; with `merge_adapter=False` it stands beside
    plain modules, for more training. `frozen_base` keeps the decoder's linear layers as "nf4" or
    "int8" modules, on which adapters can be trained in little memory. `check_finite=False` lets NaN
    and infinity pass. `verify=True` compares files with their SHA-256 first.

    Raises CheckpointError that names what is wrong: files, config keys, or tensors; OptionError
    for options that do not go together.

    The model takes `ModelInputs`, ids and masks: `model(inputs)` gives logits, and
    `engine.generate.generate(model, inputs, max_new_tokens=32, eos_id=1)` the ids that follow.

    >>> model = load_model("paligemma2-3b-mix-224", dtype=torch.bfloat16)  # doctest: +SKIP
    >>> sum(p.numel() for p in model.parameters())  # doctest: +SKIP
    3032094960
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder. Give a folder with a checkpoint.")
    stored = read_config(folder, sliding_window)
    quantization = _choose_quantization(folder, stored, quantization)
    trains = frozen_base is not None or (adapter is not None and not merge_adapter)
    if trains and (fast or (quantization is not None and stored.quantization is None)):
        raise OptionError(
            "Packed and quantized weights cannot be trained: frozen_base and merge_adapter=False "
            "go with fast=False and without quantization."
        )
    fast = quantization is not None and not trains if fast is None else fast
    if quantization is not None and (fast or stored.quantization is None):
        dtype = _check_quantizable(quantization, fast, dtype)
    with WeightFiles(folder) as weights:
        if verify:
            weights.verify()
        with torch.device("meta"):  # shapes without memory
            model = PaliGemma(stored.config)
        shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
        sources = _match(weights, shapes, stored)
        if adapter is not None:
            adapter.check_base(base_fingerprint(stored.config, _reader(weights, sources)))
        dtype = dtype or _stored_dtype(weights, sources)
        device = torch.device(device)
        model = model.to(dtype)
        if fast:
            model = accelerate(model, quantization)
        if frozen_base is not None:
            model = freeze_base(model, frozen_base)
        _check_memory(model, dtype, device)
        model = model.to_empty(device=device)
        for tensor in chain(model.parameters(), model.buffers()):
            use_huge_pages(tensor)
        merged = adapter if merge_adapter else None
        broken = _fill(weight_rows(model), weights, sources, dtype, merged, check_finite)
    if broken:
        raise CheckpointError(
            f"{folder} holds NaN, infinity, or values too large for {dtype} in "
            f"{len(broken)} tensor(s): {shorten(broken)}. The weights are broken; get them again, "
            "or load in float32 if they were float32."
        )
    if adapter is not None and not merge_adapter:
        attach_lora(model, adapter.layers, dropout=adapter.dropout)
    return model.eval()


@dataclass(frozen=True, kw_only=True)
class _Source:
    """The tensors in the files that a parameter comes from."""

    weight: str
    scales: str | None = None
    weight_format: WeightFormat | None = None


def _choose_quantization(
    folder: Path, stored: StoredConfig, wanted: Quantization | None
) -> Quantization | None:
    if wanted not in (None, "int8", "int4"):
        raise OptionError(f"quantization is {wanted!r}; it must be 'int8', 'int4' or None.")
    if stored.quantization is not None and wanted not in (None, stored.quantization):
        raise OptionError(
            f"{folder} is quantized to {stored.quantization} and cannot be made {wanted}. Load the "
            f"checkpoint that it was made from with quantization={wanted!r}, or leave it out."
        )
    return wanted or stored.quantization


def _check_quantizable(
    quantization: Quantization, fast: bool, dtype: torch.dtype | None
) -> torch.dtype:
    if dtype not in (None, torch.bfloat16):
        raise OptionError(
            f"quantization is {quantization!r} and dtype {dtype}: what is not quantized stays "
            "bfloat16, and so do the sums. Leave dtype out, or the quantization."
        )
    if not fast:
        raise OptionError(
            f"quantization is {quantization!r} and fast is False: plain modules hold no quantized "
            "weights. Leave one of the two out."
        )
    return torch.bfloat16


def _stored_dtype(weights: WeightFiles, sources: Mapping[str, _Source]) -> torch.dtype:
    table = sources["decoder.embedding.weight"]
    return DTYPE_CODES[weights.tensors[table.scales or table.weight].dtype_code]


def _reader(weights: WeightFiles, sources: Mapping[str, _Source]) -> Callable[[str], Tensor]:
    """Gives a whole parameter that is never quantized."""

    def read(name: str) -> Tensor:
        source = sources[name].weight
        return weights.read_rows(source, 0, weights.tensors[source].shape[0])

    return read


def _fill(
    rows: Mapping[str, Rows],
    weights: WeightFiles,
    sources: Mapping[str, _Source],
    dtype: torch.dtype,
    adapter: Adapter | None,
    check_finite: bool,
) -> list[str]:
    """Write every parameter; gives back the names in the files of those that are not finite."""
    broken: dict[str, None] = {}
    for name, start, block, scales in _read_ahead(rows, weights, sources):
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
    rows: Mapping[str, Rows], weights: WeightFiles, sources: Mapping[str, _Source]
) -> Iterator[tuple[str, int, Tensor, Tensor | None]]:
    """(parameter, first row, rows, their scales): one block is read while another is in use."""
    places = ((name, *block) for name in sources for block in row_blocks(rows[name].shape))

    def read(name: str, start: int, end: int) -> tuple[str, int, Tensor, Tensor | None]:
        source = sources[name]
        block = weights.read_rows(source.weight, start, end)
        if source.scales is None:
            return name, start, block, None
        return name, start, block, weights.read_rows(source.scales, start, end)

    with ThreadPoolExecutor(max_workers=1) as reader:
        pending = reader.submit(read, *next(places))
        for place in places:
            following = reader.submit(read, *place)
            yield pending.result()
            pending = following
        yield pending.result()


def _match(
    weights: WeightFiles, shapes: Mapping[str, tuple[int, ...]], stored: StoredConfig
) -> dict[str, _Source]:
    """Where each of our parameters stands in the files, after every check that needs no values."""
    spellings: dict[str, str] = {}  # released name -> name in the files
    problems = []
    for name in weights.tensors:
        released = to_released_name(name)
        if is_pooling_head(released):
            continue
        if released in spellings:
            problems.append(f"{name} and {spellings[released]} are the same tensor")
        spellings[released] = name

    expected = _expected(shapes, stored)
    output_layer = spellings.pop(OUTPUT_LAYER, None)
    missing = sorted(expected.keys() - spellings.keys())
    left_over = sorted(spellings[name] for name in spellings.keys() - expected.keys())
    problems += [f"missing: {shorten(missing)}"] if missing else []
    problems += [f"unknown: {shorten(left_over)}"] if left_over else []
    wrong = []
    for released, (shape, codes) in expected.items():
        if released not in spellings:
            continue
        found = weights.tensors[spellings[released]]
        if found.shape != shape:
            wrong.append(f"{spellings[released]} is {found.shape}, expected {shape}")
            if released == POSITIONS and found.shape[1:] == shape[1:]:
                wrong[-1] += _other_resolution(found.shape[0], stored)
        elif found.dtype_code not in codes:
            wrong.append(
                f"{spellings[released]} has dtype {found.dtype_code}, expected {' or '.join(codes)}"
            )
    if wrong:
        shown = "; ".join(wrong[:10])
        problems.append(shown + (f"; and {len(wrong) - 10} more" if len(wrong) > 10 else ""))
    if problems:
        raise CheckpointError(
            f"The tensors in {weights.folder} do not fit its config.json. "
            + ". ".join(problems)
            + ". Weights and config must come from the same checkpoint."
        )
    if output_layer and (
        EMBEDDING not in spellings or not weights.hold_the_same(output_layer, spellings[EMBEDDING])
    ):
        raise CheckpointError(
            f"{weights.folder} holds an output layer {output_layer} that differs from the "
            f"embedding {EMBEDDING}. PaliGemma has one table for both."
        )
    return {
        ours: _Source(
            weight=spellings[released + Q_SUFFIX if weight_format else released],
            scales=spellings[released + SCALES_SUFFIX] if weight_format else None,
            weight_format=weight_format,
        )
        for ours, released in to_released_names(stored.config, shapes).items()
        for weight_format in (format_of(ours, stored.quantization),)
    }


def _expected(
    shapes: Mapping[str, tuple[int, ...]], stored: StoredConfig
) -> dict[str, tuple[tuple[int, ...], tuple[str, ...]]]:
    """Released name -> the shape that a tensor must have, and the dtypes that it may have."""
    expected: dict[str, tuple[tuple[int, ...], tuple[str, ...]]] = {}
    for ours, released in to_released_names(stored.config, shapes).items():
        shape = shapes[ours]
        weight_format = format_of(ours, stored.quantization)
        if weight_format is not None:
            expected[released + Q_SUFFIX] = q_shape(shape, weight_format), ("U8",)
            expected[released + SCALES_SUFFIX] = scales_shape(shape, weight_format), ("BF16",)
            continue
        if released == EMBEDDING:
            shape = (stored.table_rows, *shape[1:])
        expected[released] = shape, tuple(DTYPE_CODES)
    return expected


def _other_resolution(num_positions: int, stored: StoredConfig) -> str:
    vision = stored.config.vision
    side = isqrt(num_positions)
    if side**2 != num_positions:
        return ""
    return (
        f" (positions for pictures of {side * vision.patch_size} pixels, while the config says "
        f"{vision.resolution})"
    )


def _check_memory(model: PaliGemma, dtype: torch.dtype, device: torch.device) -> None:
    """Refuse what cannot fit before anything is allocated: otherwise the system kills us."""
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
            f"The weights need {need / 1e9:.1f} GB in {dtype}; {device} has {room / 1e9:.1f} GB. "
            "Choose quantization='int4', a smaller dtype, a smaller model, or another device."
        )
