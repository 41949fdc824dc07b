"""Compare two checkpoints tensor by tensor, and say what was done to a tensor that differs.

Training changes a tensor a little everywhere. Damage has a form that training never gives: a
factor, heads or rows in another order, rows moved by a constant, another layer's tensor, zeros.
Each form is tried in turn and named with its numbers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from paligemma.certify.checkpoint import Checkpoint, Rows
from paligemma.config import PaliGemmaConfig

Kind = Literal["equal", "rounded", "quantized", "damaged", "changed"]
"""equal: every bit. rounded: the same in another dtype. quantized: as close as int8 or int4 is.
damaged: another arrangement or scale of the original. changed: other values."""

_BITS: dict[torch.dtype, torch.dtype] = {
    torch.float32: torch.int32,
    torch.bfloat16: torch.int16,
    torch.float16: torch.int16,
}
_PRECISION = {torch.float32: 2.0**-23, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
_LARGE = 2**28  # values: above it, tensors are compared by the hashes of their rows
_QUANTIZED_ERROR = 0.12  # of the root mean square; int4 groups reach 0.1
_FEW = 8


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How one tensor differs from the original's."""

    name: str
    kind: Kind
    text: str = ""
    """What was done to it, in words: "multiplied by 1.5"."""
    largest: float = 0.0
    """The largest absolute difference."""
    relative: float = 0.0
    """The root mean square of the difference, as a part of that of the original."""


def compare_tensors(original: Checkpoint, other: Checkpoint) -> Iterator[Difference]:
    """Compare every parameter that both have in the same shape."""
    for name, rows in other.parameters.items():
        before = original.parameters.get(name)
        if before is not None and before.shape == rows.shape:
            yield _compare(before, rows, original, other)


def other_shapes(original: Checkpoint, other: Checkpoint) -> list[str]:
    """What is in one of the two only, or has another shape there."""
    problems = []
    for name in sorted(original.parameters.keys() | other.parameters.keys()):
        shapes = [
            side.parameters[name].shape if name in side.parameters else None
            for side in (original, other)
        ]
        if shapes[0] != shapes[1]:
            problems.append(f"{name} is {shapes[1]}, and {shapes[0]} in the original")
    return problems


def _compare(before: Rows, after: Rows, original: Checkpoint, other: Checkpoint) -> Difference:
    name = before.name
    same_form = before.dtype == after.dtype and before.is_quantized == after.is_quantized
    equal, rounded, largest, squares, total = same_form, True, 0.0, 0.0, 0.0
    narrow = _narrower(before.dtype, after.dtype)
    for (_, a), (_, b) in zip(before.blocks(), after.blocks(), strict=True):
        equal = equal and torch.equal(_bits(a), _bits(b))
        if equal:
            continue
        rounded = rounded and torch.equal(_bits(a.to(narrow)), _bits(b.to(narrow)))
        wide, difference = a.float(), b.float() - a.float()
        largest = max(largest, float(difference.abs().max())) if a.numel() else largest
        squares += float(difference.square().sum(dtype=torch.float64))
        total += float(wide.square().sum(dtype=torch.float64))
    if equal:
        return Difference(name=name, kind="equal")
    relative = (squares / total) ** 0.5 if total else float(squares > 0)
    numbers = {"largest": largest, "relative": relative}
    if rounded and not (before.is_quantized or after.is_quantized):
        return Difference(name=name, kind="rounded", text=f"the same in {narrow}", **numbers)
    is_quantized = before.is_quantized or after.is_quantized
    if is_quantized and relative <= _QUANTIZED_ERROR:
        return Difference(name=name, kind="quantized", text="the same, quantized", **numbers)
    if text := _explain(before, after, original, other):
        return Difference(name=name, kind="damaged", text=text, **numbers)
    text = f"other values: they differ by {relative:.2g} of their size"
    return Difference(name=name, kind="changed", text=text, **numbers)


def _narrower(a: torch.dtype, b: torch.dtype) -> torch.dtype:
    return max(a, b, key=lambda dtype: _PRECISION[dtype])


def _bits(values: Tensor) -> Tensor:
    return values.contiguous().view(_BITS[values.dtype])


def _explain(before: Rows, after: Rows, original: Checkpoint, other: Checkpoint) -> str | None:
    """What was done to the tensor, or None for values that are simply other ones."""
    if int(np.prod(after.shape)) > _LARGE:
        return _moved_rows(before, after)
    narrow = _narrower(before.dtype, after.dtype)
    a, b = before.whole().to(narrow).float(), after.whole().to(narrow).float()
    tolerance = 4 * max(_PRECISION[before.dtype], _PRECISION[after.dtype])
    if not bool(torch.isfinite(b).all()):
        return f"{int((~torch.isfinite(b)).sum())} values are NaN or infinity"
    tests: tuple[Callable[[], str | None], ...] = (
        lambda: _zeroed(a, b),
        lambda: _scaled(a, b, tolerance, after.name),
        lambda: _permuted_heads(a, b, after.name, original.config),
        lambda: _interleaved(a, b, after.name, original.config),
        lambda: _moved_rows(before, after),
        lambda: _other_layer(b, after, original),
        lambda: _transposed(a, b),
        lambda: _part(a, b, after.name, original.config),
    )
    return next((text for test in tests if (text := test())), None)


def _zeroed(a: Tensor, b: Tensor) -> str | None:
    if bool((b == 0).all()):
        return "all zeros"
    if b.ndim < 2:
        return None
    zero = (b.flatten(1) == 0).all(1) & ~(a.flatten(1) == 0).all(1)
    same = (a == b).flatten(1).all(1)
    if bool(zero.any()) and bool((zero | same).all()):
        return f"rows {_ranges(zero.nonzero()[:, 0].tolist())} are zeros"
    return None


def _scaled(a: Tensor, b: Tensor, tolerance: float, name: str) -> str | None:
    """Multiplied by a factor, or for a norm of the decoder, 1 + weight multiplied by one."""
    if (factor := _factor(a, b, tolerance)) is not None:
        return f"multiplied by {factor:.4g}"
    is_norm = name.startswith("decoder") and name.endswith("norm.weight")
    if is_norm and (factor := _factor(1 + a, 1 + b, 4 * tolerance)) is not None:
        return f"the norm (1 + weight) is multiplied by {factor:.4g}"
    difference = (b - a).flatten()
    middle = float(difference.median())
    error = float((difference - middle).abs().max())
    if middle and error <= tolerance * float(b.abs().max() + a.abs().max()):
        hint = " (the 1 of a norm belongs to the code, not to the weight)" if is_norm else ""
        return f"{middle:+.4g} was added to every value{hint}"
    return None


def _factor(a: Tensor, b: Tensor, tolerance: float) -> float | None:
    denominator = float(a.double().square().sum())
    if denominator == 0:
        return None
    factor = float((a.double() * b.double()).sum()) / denominator
    error = (b.double() - factor * a.double()).abs()
    allowed = tolerance * (b.double().abs() + 1e-3 * float(b.abs().max()))
    is_scaled = bool((error <= allowed).all()) and factor != 0 and abs(factor - 1) > tolerance
    return factor if is_scaled else None


def head_layout(name: str, config: PaliGemmaConfig) -> tuple[int, int] | None:
    """(axis of the heads, size of one head) of an attention tensor; None for others."""
    is_vision = name.startswith("vision_encoder")
    size = config.vision.head_dim if is_vision else config.decoder.head_dim
    if ".attention." not in name:
        return None
    if name.endswith(("o_proj.weight", "out_proj.weight")):
        return 1, size
    if name.endswith("out_proj.bias"):
        return None
    return 0, size


def _heads(values: Tensor, axis: int, size: int) -> Tensor:
    """[heads, size x others]"""
    values = values.movedim(axis, 0)
    return values.reshape(values.shape[0] // size, -1)


def _permuted_heads(a: Tensor, b: Tensor, name: str, config: PaliGemmaConfig) -> str | None:
    if (layout := head_layout(name, config)) is None:
        return None
    before, after = _heads(a, *layout), _heads(b, *layout)
    sources: dict[int, int] = {}
    for head in range(len(after)):
        matches = [i for i in range(len(before)) if torch.equal(before[i], after[head])]
        if not matches:
            return None
        sources[head] = head if head in matches else matches[0]
    moved = {head: source for head, source in sources.items() if head != source}
    if not moved:
        return None
    if len(moved) == 2 and all(moved.get(source) == head for head, source in moved.items()):
        first, second = sorted(moved)
        return f"heads {first} and {second} are swapped"
    listed = ", ".join(f"{head} is head {source}" for head, source in moved.items())
    return f"heads are in another order: head {listed} of the original"


def _interleaved(a: Tensor, b: Tensor, name: str, config: PaliGemmaConfig) -> str | None:
    """Queries and keys rearranged for rotary positions that pair neighboring features."""
    is_rotated = name.startswith("decoder") and name.endswith(("q_proj.weight", "k_proj.weight"))
    if not is_rotated:
        return None
    size = config.decoder.head_dim
    halves = a.view(-1, 2, size // 2, a.shape[1])
    if torch.equal(halves.transpose(1, 2).reshape(a.shape), b):
        return "the two halves of every head are interleaved, as for another kind of RoPE"
    if torch.equal(a.view(-1, size // 2, 2, a.shape[1]).transpose(1, 2).reshape(a.shape), b):
        return "neighboring features of every head are split into halves, as from another RoPE"
    return None


def _moved_rows(before: Rows, after: Rows) -> str | None:
    """Rows that are those of the original from elsewhere: shifted, swapped or shuffled."""
    if len(before.shape) < 2:
        return None
    narrow = _narrower(before.dtype, after.dtype)
    a, b = row_hashes(before, narrow), row_hashes(after, narrow)
    (different,) = np.nonzero(a != b)
    if not len(different):
        return None
    first_row = {int(value): row for row, value in reversed(list(enumerate(a)))}
    sources = [first_row.get(int(b[row])) for row in different]
    num_rows = len(a)
    shifts = Counter(
        (int(row) - source + num_rows // 2) % num_rows - num_rows // 2
        for row, source in zip(different, sources, strict=True)
        if source is not None
    )
    num_known = sum(source is not None for source in sources)
    if not shifts or num_known < 0.5 * len(different):
        return None
    shift, count = shifts.most_common(1)[0]
    listed = _ranges(different.tolist())
    if count >= 0.8 * num_known and count > 2:
        return f"rows {listed} are shifted by {shift:+d}: row i has the values of row i{-shift:+d}"
    if len(different) == 2 and num_known == 2:
        return f"rows {different[0]} and {different[1]} are swapped"
    return f"rows {listed} are in another order"


_PRIME = np.uint64(0x9E3779B97F4A7C15)


def row_hashes(rows: Rows, dtype: torch.dtype) -> np.ndarray:
    """uint64[R]: equal for equal rows."""
    hashes = []
    for _, block in rows.blocks():
        bits = _bits(block.flatten(1).to(dtype)).numpy().astype(np.uint64)
        keys = (np.arange(1, bits.shape[1] + 1, dtype=np.uint64) * _PRIME) | np.uint64(1)
        bits ^= bits >> np.uint64(7)
        hashes.append(((bits + _PRIME) * keys).sum(axis=1, dtype=np.uint64))
    return np.concatenate(hashes)


def _other_layer(b: Tensor, after: Rows, original: Checkpoint) -> str | None:
    """The tensor of another layer, or another tensor of this one, in its place."""
    narrow = after.dtype
    sample = b.flatten()[:64].to(narrow)
    for name, rows in original.parameters.items():
        if name == after.name or rows.shape != after.shape:
            continue
        [(_, block)] = [next(iter(rows.blocks()))]
        if not torch.equal(_bits(block.flatten()[:64].to(narrow)), _bits(sample)):
            continue
        if torch.equal(rows.whole().to(narrow), b.to(narrow)):
            return f"it is the original's {name}"
    return None


def _transposed(a: Tensor, b: Tensor) -> str | None:
    if a.ndim == 2 and a.shape[0] == a.shape[1] and torch.equal(a.T, b):
        return "transposed"
    if a.ndim == 4 and torch.equal(a.transpose(2, 3), b):
        return "rows and columns of the patches are swapped"
    if a.ndim == 4 and torch.equal(a.flip(1), b):
        return "the color channels are in reverse order"
    return None


def _part(a: Tensor, b: Tensor, name: str, config: PaliGemmaConfig) -> str | None:
    """Only some heads or rows differ, which training never does."""
    if (layout := head_layout(name, config)) is not None:
        before, after = _heads(a, *layout), _heads(b, *layout)
        heads = [i for i in range(len(before)) if not torch.equal(before[i], after[i])]
        if 0 < len(heads) <= len(before) // 2:
            scaled = [_factor(before[i], after[i], 1e-2) for i in heads]
            how = "have other values"
            if scaled[0] is not None and all(scaled):
                how = f"are multiplied by {scaled[0]:.4g}"
            return f"heads {_ranges(heads)} {how}, and all others are as before"
    different = (a != b).flatten(1).any(1) if a.ndim > 1 else a != b
    rows = different.nonzero()[:, 0].tolist()
    if 0 < len(rows) <= 0.5 * len(a):
        what = "rows" if a.ndim > 1 else "values"
        return f"{what} {_ranges(rows)} differ, and all others are as before"
    return None


def _ranges(numbers: Sequence[int]) -> str:
    """
    >>> _ranges([3, 4, 5, 9])
    '3 to 5, 9'
    """
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    texts = [str(first) if first == last else f"{first} to {last}" for first, last in ranges]
    rest = len(texts) - _FEW
    return ", ".join(texts[:_FEW]) + (f" and {rest} more" if rest > 0 else "")


def config_differences(
    original: Mapping[str, object], other: Mapping[str, object]
) -> list[tuple[str, object, object]]:
    """(key, original's value, the other's) of two flat mappings."""
    return [
        (key, original.get(key), other.get(key))
        for key in sorted(original.keys() | other.keys())
        if original.get(key) != other.get(key)
    ]
