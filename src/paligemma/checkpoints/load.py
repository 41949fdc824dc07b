"""A checkpoint folder -> the model. Strict: what is missing, left over or mis-shaped stops it.

Knows no network and no tokenizer.
"""

from __future__ import annotations

import os
from math import isqrt
from pathlib import Path

import torch

from paligemma.checkpoints.hf import (
    EMBEDDING,
    OUTPUT_LAYER,
    POSITIONS,
    is_pooling_head,
    to_released_name,
    to_released_names,
)
from paligemma.checkpoints.hf_config import StoredConfig, read_config
from paligemma.checkpoints.weight_files import DTYPE_CODES, WeightFiles, is_finite, shorten
from paligemma.config import count_parameters
from paligemma.errors import CheckpointError
from paligemma.model.paligemma import PaliGemma


def load_model(
    folder: Path | str,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    sliding_window: int | None = None,
    check_finite: bool = True,
    verify: bool = False,
) -> PaliGemma:
    """Build the model that a folder describes and fill it, one tensor at a time.

    Memory stays within a few megabytes of the weights in the dtype asked for, whatever dtype is
    stored (float32, bfloat16 or float16). `dtype=None` keeps the stored one.
    `sliding_window=4096` gives PaliGemma 2 the window that transformers uses; the default is
    none, as in the code that trained the weights. `check_finite=False` lets NaN and infinity
    pass. `verify=True` compares files with their SHA-256 first.

    Raises CheckpointError that names what is wrong: files, config keys, or tensors.

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
    with WeightFiles(folder) as weights:
        if verify:
            weights.verify()
        with torch.device("meta"):  # shapes without memory
            model = PaliGemma(stored.config)
        sources = _match(weights, model, stored)
        if dtype is None:
            dtype = DTYPE_CODES[weights.tensors[sources["decoder.embedding.weight"]].dtype_code]
        device = torch.device(device)
        _check_memory(stored, dtype, device)
        model = model.to(dtype).to_empty(device=device)
        broken = []
        for name, parameter in model.named_parameters():
            weights.read(sources[name], parameter.data)
            if check_finite and not is_finite(parameter.data, dtype):
                broken.append(sources[name])
    if broken:
        raise CheckpointError(
            f"{folder} holds NaN, infinity, or values too large for {dtype} in "
            f"{len(broken)} tensor(s): {shorten(broken)}. The weights are broken; get them again, "
            "or load in float32 if they were float32."
        )
    return model.eval()


def _match(weights: WeightFiles, model: PaliGemma, stored: StoredConfig) -> dict[str, str]:
    """Our parameter names -> names in the files, after every check that needs no values."""
    spellings: dict[str, str] = {}  # released name -> name in the files
    problems = []
    for name in weights.tensors:
        released = to_released_name(name)
        if is_pooling_head(released):
            continue
        if released in spellings:
            problems.append(f"{name} and {spellings[released]} are the same tensor")
        spellings[released] = name

    wanted = to_released_names(stored.config, [name for name, _ in model.named_parameters()])
    output_layer = spellings.pop(OUTPUT_LAYER, None)
    missing = sorted(wanted.values() - spellings.keys())
    left_over = sorted(spellings[name] for name in spellings.keys() - wanted.values())
    problems += [f"missing: {shorten(missing)}"] if missing else []
    problems += [f"unknown: {shorten(left_over)}"] if left_over else []
    wrong = []
    for ours, parameter in model.named_parameters():
        released = wanted[ours]
        if released not in spellings:
            continue
        found = weights.tensors[spellings[released]]
        shape = tuple(parameter.shape)
        if released == EMBEDDING:
            shape = (stored.table_rows, *shape[1:])
        if found.shape != shape:
            wrong.append(f"{spellings[released]} is {found.shape}, expected {shape}")
            if released == POSITIONS and found.shape[1:] == shape[1:]:
                wrong[-1] += _other_resolution(found.shape[0], stored)
        elif found.dtype_code not in DTYPE_CODES:
            wrong.append(f"{spellings[released]} has dtype {found.dtype_code}, not a float of ours")
    if wrong:
        shown = "; ".join(wrong[:10])
        problems.append(shown + (f"; and {len(wrong) - 10} more" if len(wrong) > 10 else ""))
    if problems:
        raise CheckpointError(
            f"The tensors in {weights.folder} do not fit its config.json. "
            + ". ".join(problems)
            + ". Weights and config must come from the same checkpoint."
        )
    if output_layer and not weights.hold_the_same(output_layer, spellings[EMBEDDING]):
        raise CheckpointError(
            f"{weights.folder} holds an output layer {output_layer} that differs from the "
            f"embedding {spellings[EMBEDDING]}. PaliGemma has one table for both."
        )
    return {ours: spellings[released] for ours, released in wanted.items()}


def _other_resolution(num_positions: int, stored: StoredConfig) -> str:
    vision = stored.config.vision
    side = isqrt(num_positions)
    if side**2 != num_positions:
        return ""
    return (
        f" (positions for pictures of {side * vision.patch_size} pixels, while the config says "
        f"{vision.resolution})"
    )


def _check_memory(stored: StoredConfig, dtype: torch.dtype, device: torch.device) -> None:
    """Refuse what cannot fit before anything is allocated: otherwise the system kills us."""
    need = count_parameters(stored.config) * dtype.itemsize
    if device.type == "cuda":
        room = torch.cuda.mem_get_info(device)[0]
    elif hasattr(os, "sysconf"):
        room = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    else:
        return
    if need > room:
        raise CheckpointError(
            f"The weights need {need / 1e9:.1f} GB in {dtype}; {device} has {room / 1e9:.1f} GB. "
            "Choose a smaller dtype, a smaller model, or another device."
        )
