"""Convert a checkpoint of any format to another, a few megabytes at a time."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import reduce
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from paligemma.adapters.lora import LowRank
from paligemma.checkpoints.adapter import Adapter, base_fingerprint, read_adapter
from paligemma.checkpoints.mlx import AffineRows
from paligemma.checkpoints.mlx_write import BITS as MLX_BITS
from paligemma.checkpoints.open import open_checkpoint
from paligemma.checkpoints.opened import OpenCheckpoint
from paligemma.checkpoints.reader import is_finite, row_blocks
from paligemma.checkpoints.rows import Contents, ForeignRows, QuantizedRows, StoredRows, read_all
from paligemma.checkpoints.save import new_file, new_folder, write_small_files
from paligemma.checkpoints.tokenizer_file import tokenizer_beside
from paligemma.checkpoints.trained_on import TRAINED_ON_FILE
from paligemma.config import MASK_CODEC_FILES, count_parameters
from paligemma.errors import CheckpointError, NumericalError, OptionError, check_choice
from paligemma.fast.kernels.library import return_freed_memory

TargetFormat = Literal["hf", "npz", "keras", "mlx", "sbs", "onnx"]
"""The formats that can be written."""


_TORCH_DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, kw_only=True)
class _Writer:
    function: str
    """"module:function" that writes contents in a dtype to a new file, or into an empty folder."""
    dtypes: tuple[str, ...] = _TORCH_DTYPES
    suffix: str | None = None
    """Of formats that are a single file."""
    has_tokenizer: bool = False
    """Whether that file contains the tokenizer."""
    losses: str | None = None
    """"module:function" that says what is rounded or lost, given contents and dtype."""
    takes_several: bool = False
    """Whether several dtypes, separated by commas, can be written into one folder."""
    is_read: bool = True
    """Whether the format can be read again."""


_WRITERS: Mapping[TargetFormat, _Writer] = {
    "hf": _Writer(function="hf_folder:write_hf_folder"),
    "npz": _Writer(function="big_vision:write_big_vision", suffix=".npz"),
    "keras": _Writer(function="keras:write_keras", losses="keras:losses"),
    "mlx": _Writer(function="mlx_write:write_mlx", dtypes=(*_TORCH_DTYPES, *MLX_BITS)),
    "sbs": _Writer(
        function="gemma_cpp:write_sbs",
        dtypes=("float32", "bfloat16", "sfp"),
        suffix=".sbs",
        has_tokenizer=True,
        losses="gemma_cpp:losses",
    ),
    "onnx": _Writer(
        function="onnx.folder:write_onnx",
        dtypes=("fp32", "fp16", "uint8", "q8", "q4", "q4f16"),
        takes_several=True,
        is_read=False,
    ),
}
_STORED_IN_ONNX = {"float32": "fp32", "bfloat16": "fp32", "float16": "fp16"}
_BITS = {"float32": 32, "bfloat16": 16, "float16": 16, "fp32": 32, "fp16": 16, "q4": 5, "q4f16": 5}
"""Bits per weight; 8 in dtypes that are not listed."""
_KEPT_FILES = (*MASK_CODEC_FILES, TRAINED_ON_FILE)
_LEAST_FREE_BYTES = 50_000_000


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a conversion will do."""

    source: OpenCheckpoint
    target: Path
    to: TargetFormat
    dtype: str
    """The dtype of the target's weights; of quantized weights, that of the others."""
    contents: Contents
    """What is written: the source's, with an adapter merged into the weights if there is one."""
    notes: tuple[str, ...] = ()

    @property
    def is_file(self) -> bool:
        """Whether the target is a single file and not a folder."""
        suffix = _WRITERS[self.to].suffix
        return suffix is not None and self.target.suffix == suffix

    @property
    def num_bytes(self) -> int:
        """The size of the weights to write, about."""
        num_bits = sum(_BITS.get(dtype, 8) for dtype in self.dtype.split(","))
        return count_parameters(self.contents.config) * num_bits // 8

    def describe(self) -> dict[str, Any]:
        """Return the plan for display."""
        return {
            "source": str(self.source.path),
            "source_format": self.source.format,
            "source_dtype": str(self.source.dtype).removeprefix("torch."),
            "target": str(self.target),
            "target_format": self.to,
            "target_dtype": self.dtype,
            "parameters": count_parameters(self.contents.config),
            "bytes_to_write": self.num_bytes,
            "notes": list(self.notes),
        }


def convert_checkpoint(
    source: Path | str,
    target: Path | str,
    *,
    to: TargetFormat | None = None,
    dtype: str = "stored",
    adapter: Path | str | None = None,
    verify_target: bool = False,
) -> Path:
    """Convert a folder or file to another format; return the path of the target.

    docs/formats.md lists formats and data types. `to` may be left out for targets that end in
    ".npz" or ".sbs". An `adapter` is merged into the weights. `verify_target=True` reads the target
    again and compares every weight.

    Raises CheckpointError, NumericalError or OptionError; then nothing was written.

    >>> convert_checkpoint("pt_224.npz", "my-folder", to="hf")  # doctest: +SKIP
    PosixPath('/home/me/my-folder')
    """
    with open_checkpoint(Path(source)) as opened:
        config = opened.contents.config
        chosen = plan(
            opened,
            Path(target),
            to=to,
            dtype=dtype,
            adapter=None if adapter is None else read_adapter(adapter, config),
        )
        if verify_target:
            check_verifiable(chosen)
        written = run(chosen)
        if verify_target:
            verify(chosen)
    return written


def plan(
    source: OpenCheckpoint,
    target: Path,
    *,
    to: TargetFormat | None = None,
    dtype: str = "stored",
    tokenizer: bytes | None = None,
    adapter: Adapter | None = None,
) -> Plan:
    """Decide how to convert an open checkpoint, and check everything except its values.

    `to` is the format; by default that of the target's suffix. `dtype` is "stored" or a dtype of
    the format. `tokenizer` replaces the source's. An `adapter` is merged into the weights.

    Raises OptionError for options that do not fit each other, and CheckpointError when the target
    exists, the disk has too little room, or the adapter belongs to another model.
    """
    target = Path(os.path.expanduser(target)).absolute()
    to = _format_of(target) if to is None else to
    check_choice("to", to, TargetFormat)
    writer = _WRITERS[to]
    _check_dtype(to, dtype)
    contents, notes = source.contents, list(source.notes)
    if tokenizer is not None:
        contents = replace(contents, tokenizer=tokenizer)
    if adapter is not None:
        contents = _merged(contents, adapter)
        notes.append(f"The adapter {adapter.folder} becomes part of the weights.")
    contents, note = _with_kept_bits(contents, to, dtype)
    if note is not None:
        notes.append(note)
    if dtype == "stored":
        dtype = "bfloat16" if contents.quantization else _widest(contents)
        dtype = _STORED_IN_ONNX[dtype] if to == "onnx" else dtype
        dtype = dtype if dtype in writer.dtypes else "float32"
    if writer.losses is not None:
        notes += _function(writer.losses)(contents, _dtype(dtype))
    contents = replace(contents, files=_kept_files(source.folder))
    result = Plan(
        source=source,
        target=target,
        to=to,
        dtype=dtype,
        contents=contents,
        notes=tuple(dict.fromkeys(notes)),
    )
    _check_target(result)
    return result


def run(plan: Plan, on_read: Callable[[int], object] = lambda num_bytes: None) -> Path:
    """Carry out a conversion; return the path of the target.

    Everything is written under another name and renamed at the end, so the target is complete or
    does not exist. `on_read` is told the number of bytes after each block that was read.

    Raises CheckpointError when something cannot be read, written or represented, and
    NumericalError for values that are not finite in the dtype of the target.
    """
    writer = _WRITERS[plan.to]
    write = _function(writer.function)
    dtype = plan.dtype.split(",") if writer.takes_several else _dtype(plan.dtype)
    contents = replace(
        plan.contents,
        parameters={
            name: _watched(rows, plan.dtype, on_read)
            for name, rows in plan.contents.parameters.items()
        },
    )
    if plan.is_file:
        with new_file(plan.target) as partial:
            write(contents, partial, dtype)
        if contents.tokenizer is not None and not writer.has_tokenizer:
            tokenizer_beside(plan.target).write_bytes(contents.tokenizer)
        return plan.target
    with new_folder(plan.target) as partial:
        suffix = writer.suffix
        write(contents, partial if suffix is None else partial / f"model{suffix}", dtype)
        if suffix is not None:
            write_small_files(contents, partial)
    return plan.target


def check_verifiable(plan: Plan) -> None:
    """Raise OptionError if the target cannot be read again and compared with the source."""
    if not _WRITERS[plan.to].is_read:
        raise OptionError(
            f"The format {plan.to!r} cannot be read again, so it cannot be verified. Convert "
            "without verification, and compare what the programs answer (docs/formats.md)."
        )


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """How the parameters of a written checkpoint compare with what should have been written."""

    num_equal: int
    differences: Mapping[str, float] = field(default_factory=dict)
    """For each parameter that is not bit-equal, the largest difference relative to its largest
    value."""


def verify(plan: Plan, on_read: Callable[[int], object] = lambda num_bytes: None) -> Comparison:
    """Open what was written and compare every parameter with the source.

    Source values are first rounded to the dtype of the target. Raises CheckpointError if the target
    cannot be read, or differs although its dtype can hold the values.
    """
    parameters = plan.contents.parameters
    is_rounded = plan.dtype not in _TORCH_DTYPES or (
        plan.to == "mlx" and any(isinstance(rows, QuantizedRows) for rows in parameters.values())
    )
    dtype = None if is_rounded else getattr(torch, plan.dtype)
    num_equal, differences = 0, {}
    with open_checkpoint(plan.target) as written:
        for name, rows in parameters.items():
            difference = _largest_difference(
                rows, written.contents.parameters[name], dtype, on_read
            )
            if difference:
                differences[name] = difference
            else:
                num_equal += 1
    if differences and dtype is not None:
        worst = max(differences, key=lambda name: differences[name])
        raise CheckpointError(
            f"{plan.target} differs from {plan.source.path} in {len(differences)} parameters, most "
            f"in {worst}. The disk or memory may be faulty: convert again."
        )
    return Comparison(num_equal=num_equal, differences=differences)


def _function(name: str) -> Callable[..., Any]:
    module, function = name.split(":")
    loaded: Callable[..., Any] = getattr(import_module(f"paligemma.checkpoints.{module}"), function)
    return loaded


def _dtype(name: str) -> torch.dtype | str:
    """Return torch's dtype, or the name of one that only a format has."""
    return getattr(torch, name) if name in _TORCH_DTYPES else name


def _with_kept_bits(
    contents: Contents, to: TargetFormat, dtype: str
) -> tuple[Contents, str | None]:
    """Dequantize what the target cannot hold as it is, and say so."""
    kept: tuple[type, ...] = ()
    if (to, dtype) == ("hf", "stored"):
        kept = (QuantizedRows,)
    elif to == "mlx" and (dtype == "stored" or dtype in MLX_BITS):
        kept = (QuantizedRows, AffineRows)
    is_quantized = (QuantizedRows, ForeignRows)
    parameters, schemes = {}, set()
    for name, rows in contents.parameters.items():
        parameters[name] = rows
        if isinstance(rows, is_quantized) and not isinstance(rows, kept):
            parameters[name] = _Dequantized(rows)
            schemes.add(rows.scheme if isinstance(rows, ForeignRows) else contents.quantization)
    if not schemes:
        return contents, None
    names = " and ".join(sorted(map(str, schemes)))
    quantization = contents.quantization if QuantizedRows in kept else None
    return (
        replace(contents, parameters=parameters, quantization=quantization),
        f"The weights stored as {names} are dequantized. Their rounding errors remain.",
    )


def _format_of(target: Path) -> TargetFormat:
    for name, writer in _WRITERS.items():
        if writer.suffix is not None and target.suffix == writer.suffix:
            return name
    raise OptionError(
        f"Which format {target.name} should have is not said. Choose one with --to: "
        f"{', '.join(_WRITERS)}."
    )


def _check_dtype(to: TargetFormat, dtype: str) -> None:
    choices = ("stored", *_WRITERS[to].dtypes)
    names = dtype.split(",") if _WRITERS[to].takes_several else [dtype]
    if dtype != "stored" and not set(names) <= set(_WRITERS[to].dtypes):
        raise OptionError(
            f"dtype is {dtype!r}; for the format {to!r} it must be one of "
            f"{', '.join(map(repr, choices))}."
        )


def _widest(contents: Contents) -> str:
    """Return the narrowest dtype that holds all values as they are."""
    dtypes = (rows.dtype for rows in contents.parameters.values())
    return str(reduce(torch.promote_types, dtypes)).removeprefix("torch.")


def _kept_files(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in _KEPT_FILES if (folder / name).is_file()}


def _check_target(plan: Plan) -> None:
    target = plan.target
    if target.exists() and (plan.is_file or not target.is_dir() or any(target.iterdir())):
        raise CheckpointError(f"{target} already exists. Choose another name or remove it first.")
    folder = next(parent for parent in target.parents if parent.exists())
    free = shutil.disk_usage(folder).free
    if free < plan.num_bytes + _LEAST_FREE_BYTES:
        raise CheckpointError(
            f"{target} needs {plan.num_bytes / 1e9:.1f} GB, but the disk of {folder} has "
            f"{free / 1e9:.1f} GB free. Free some space or choose another disk."
        )
    has_tokenizer = _WRITERS[plan.to].has_tokenizer
    if plan.is_file and plan.contents.tokenizer is not None and not has_tokenizer:
        beside = tokenizer_beside(target)
        if beside.exists() and beside.read_bytes() != plan.contents.tokenizer:
            raise CheckpointError(
                f"{beside} already exists and is another tokenizer. Choose another name for "
                f"{target.name}, or give the name of a new folder."
            )


class _Watched:
    """Rows that raise NumericalError for values that are not finite, and tell what was read."""

    def __init__(
        self, rows: StoredRows, dtype: torch.dtype, on_read: Callable[[int], object]
    ) -> None:
        self.name, self.shape, self.dtype = rows.name, rows.shape, rows.dtype
        self._rows, self._target_dtype, self._on_read = rows, dtype, on_read

    def read(self, start: int, end: int) -> Tensor:
        values = self._rows.read(start, end)
        if not is_finite(values.to(self._target_dtype)):
            raise NumericalError(
                f"{self.name} contains NaN, infinity, or values too large for "
                f"{self._target_dtype}. Nothing was written. Convert to float32, or download the "
                "weights again."
            )
        self._on_read(values.nbytes)
        if end == self.shape[0] > 1:
            # Whole matrices come and go between small blocks that stay; without this, the gaps
            # that they leave are not used again, and memory grows with every layer.
            return_freed_memory()
        return values


class _WatchedGroups(_Watched):
    """The same for weights that stay in MLX's groups."""

    def __init__(
        self, rows: AffineRows, dtype: torch.dtype, on_read: Callable[[int], object]
    ) -> None:
        super().__init__(rows, dtype, on_read)
        self.groups = rows.groups
        self._stored = rows

    def read_groups(self, start: int, end: int) -> tuple[Tensor, Tensor, Tensor]:
        q, scales, biases = self._stored.read_groups(start, end)
        if not (is_finite(scales) and is_finite(biases)):
            raise NumericalError(f"The scales or biases of {self.name} contain NaN or infinity.")
        self._on_read(q.nbytes)
        return q, scales, biases


class _WatchedQuantized(_Watched):
    """The same for weights that stay quantized."""

    def __init__(self, rows: QuantizedRows, on_read: Callable[[int], object]) -> None:
        super().__init__(rows, torch.float32, on_read)
        self.weight_format, self.scales_name = rows.weight_format, rows.scales_name
        self._quantized = rows

    def read_stored(self, start: int, end: int) -> tuple[Tensor, Tensor]:
        values, scales = self._quantized.read_stored(start, end)
        if not is_finite(scales):
            raise NumericalError(f"{self.scales_name} contains NaN or infinity.")
        self._on_read(values.nbytes + scales.nbytes)
        return values, scales


def _watched(rows: StoredRows, dtype: str, on_read: Callable[[int], object]) -> StoredRows:
    if isinstance(rows, QuantizedRows):
        return _WatchedQuantized(rows, on_read)
    target_dtype = getattr(torch, dtype) if dtype in _TORCH_DTYPES else rows.dtype
    if isinstance(rows, AffineRows):
        return _WatchedGroups(rows, target_dtype, on_read)
    return _Watched(rows, target_dtype, on_read)


class _Dequantized:
    """A quantized weight as floating point."""

    def __init__(self, rows: StoredRows) -> None:
        self.name, self.shape, self.dtype = rows.name, rows.shape, rows.dtype
        self.read = rows.read


def _dequantized(contents: Contents) -> Contents:
    parameters = {
        name: _Dequantized(rows) if isinstance(rows, QuantizedRows) else rows
        for name, rows in contents.parameters.items()
    }
    return replace(contents, parameters=parameters, quantization=None)


class _MergedRows:
    """A weight with an adapter merged into it."""

    def __init__(self, rows: StoredRows, low_rank: LowRank) -> None:
        self.name, self.shape, self.dtype = rows.name, rows.shape, rows.dtype
        self._rows, self._low_rank = rows, low_rank

    def read(self, start: int, end: int) -> Tensor:
        merged = self._low_rank.merged(self._rows.read(start, end), start)
        return merged.to(self.dtype)


def _merged(contents: Contents, adapter: Adapter) -> Contents:
    parameters = contents.parameters
    adapter.check_base(base_fingerprint(contents.config, lambda name: read_all(parameters[name])))
    merged = {
        name: _MergedRows(rows, adapter.layers[layer])
        if (layer := name.removesuffix(".weight")) in adapter.layers
        else rows
        for name, rows in _dequantized(contents).parameters.items()
    }
    return replace(contents, parameters=merged, quantization=None)


def _largest_difference(
    rows: StoredRows,
    written: StoredRows,
    dtype: torch.dtype | None,
    on_read: Callable[[int], object],
) -> float:
    """Return 0 for bit-equal parameters, else the largest difference by the largest value."""
    is_equal, difference, largest = True, 0.0, 0.0
    for start, end in row_blocks(rows.shape):
        values, others = rows.read(start, end), written.read(start, end)
        on_read(values.nbytes + others.nbytes)
        if dtype is not None:
            values, others = values.to(dtype), others.to(dtype)
            if torch.equal(values.view(torch.uint8), others.view(torch.uint8)):
                continue
        is_equal = is_equal and torch.equal(values, others.to(values.dtype))
        difference = max(difference, float((values.float() - others.float()).abs().max()))
        largest = max(largest, float(values.float().abs().max()))
    return 0.0 if is_equal else difference / max(largest, 1e-30) or 1e-30
