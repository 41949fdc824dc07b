"""Statistics of a checkpoint's weights that show damage without an original to compare with.

Trained weights vary smoothly from layer to layer. What does not is unusual, which proves nothing:
the first and last layers of a sound model stand out too. Certain are only tensors that no training
leaves: NaN, zeros, copies of other layers, empty heads.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from paligemma.certify.checkpoint import Checkpoint, Rows
from paligemma.certify.damage import head_layout
from paligemma.certify.findings import Finding, Level, place_in_words
from paligemma.config import PaliGemmaConfig

_TABLE = "decoder.embedding.weight"
_UNUSUAL, _EXTREME = 6.0, 12.0  # robust standard deviations
_LEAST_FACTOR = 1.25
_MIN_LAYERS = 4
_FEW = 6


@dataclass(frozen=True, kw_only=True)
class TensorSummary:
    """What one pass over a tensor found."""

    name: str
    stored_name: str
    shape: tuple[int, ...]
    dtype: str
    digest: str
    """BLAKE2 of the values as stored: equal tensors have equal digests."""
    rms: float
    mean: float
    largest: float
    num_broken: int
    """Values that are NaN or infinity."""
    is_constant: bool
    zero_rows: tuple[int, ...]
    on_grid: str | None
    """The narrower dtype that holds every value of a float32 tensor, if one does."""
    head_rms: tuple[float, ...] = ()
    head_digests: tuple[str, ...] = ()
    values: tuple[float, ...] = field(default=(), repr=False)
    """All values of a vector."""


def summarize(rows: Rows, config: PaliGemmaConfig) -> TensorSummary:
    """Read a tensor once."""
    digest, squares, total, largest = hashlib.blake2b(digest_size=16), 0.0, 0.0, 0.0
    num_broken, num_values, low, high = 0, 0, np.inf, -np.inf
    zero_rows: list[int] = []
    grids = {torch.bfloat16, torch.float16} if rows.dtype == torch.float32 else set()
    row_squares, column_squares = [], None
    layout = head_layout(rows.name, config)
    kept = []
    for start, block in rows.blocks():
        digest.update(block.contiguous().view(torch.uint8).numpy().data)
        grids = {grid for grid in grids if torch.equal(block.to(grid).float(), block)}
        values = block.float().flatten(1) if block.ndim > 1 else block.float()
        broken = ~torch.isfinite(values)
        if bool(broken.any()):
            num_broken += int(broken.sum())
            values = values.masked_fill(broken, 0.0)
        square = values.square()
        squares += float(square.sum(dtype=torch.float64))
        total += float(values.sum(dtype=torch.float64))
        low, high = min(low, float(values.min())), max(high, float(values.max()))
        num_values += values.numel()
        if values.ndim > 1:
            per_row = square.sum(1)
            zero_rows += [start + int(row) for row in (per_row == 0).nonzero()[:, 0]]
            row_squares.append(per_row)
        else:
            kept += values.tolist()
            row_squares.append(square)
        if layout is not None and layout[0] == 1:
            added = square.sum(0)
            column_squares = added if column_squares is None else column_squares + added
    largest = max(abs(low), abs(high))
    heads: Tensor | None = None
    if layout is not None:
        per_feature = torch.cat(row_squares) if layout[0] == 0 else column_squares
        assert per_feature is not None
        heads = per_feature.view(-1, layout[1]).mean(1).sqrt()
    return TensorSummary(
        name=rows.name,
        stored_name=rows.stored_name,
        shape=rows.shape,
        dtype=str(rows.dtype).removeprefix("torch."),
        digest=digest.hexdigest(),
        rms=(squares / num_values) ** 0.5,
        mean=total / num_values,
        largest=largest,
        num_broken=num_broken,
        is_constant=low == high,
        zero_rows=tuple(zero_rows),
        on_grid=next((str(grid)[6:] for grid in sorted(grids, key=str)), None),
        head_rms=() if heads is None else tuple(heads.tolist()),
        head_digests=_head_digests(rows, layout),
        values=tuple(kept),
    )


def _head_digests(rows: Rows, layout: tuple[int, int] | None) -> tuple[str, ...]:
    if layout is None or layout[0] != 0 or len(rows.shape) < 2:
        return ()
    values = rows.whole().view(-1, layout[1] * rows.shape[1])
    return tuple(hashlib.blake2b(head.numpy().data, digest_size=16).hexdigest() for head in values)


def check_weights(checkpoint: Checkpoint, summaries: Sequence[TensorSummary]) -> Iterator[Finding]:
    """What is wrong with the weights, or unusual."""
    for summary in summaries:
        yield from _check_tensor(summary)
    yield from _check_copies(summaries)
    yield from _check_layers(summaries)
    yield from _check_grid(summaries)
    yield from _check_padding(checkpoint)


def _finding(level: Level, name: str, text: str) -> Finding:
    return Finding(level=level, check="weights", place=name, text=f"{place_in_words(name)}: {text}")


def _check_tensor(summary: TensorSummary) -> Iterator[Finding]:
    name = summary.name
    if summary.num_broken:
        yield _finding("fail", name, f"{summary.num_broken} values are NaN or infinity.")
    is_matrix = len(summary.shape) > 1
    if is_matrix and summary.is_constant:
        yield _finding("fail", name, f"every value is {summary.mean:g}: an unfinished download?")
    elif is_matrix and len(summary.zero_rows) > 0:
        rows = summary.zero_rows
        is_much = len(rows) >= max(2, summary.shape[0] // 100)
        yield _finding(
            "fail" if is_much else "unusual",
            name,
            f"{len(rows)} of {summary.shape[0]} rows are zeros, from row {rows[0]} to {rows[-1]}: "
            "an unfinished download, or a table that was enlarged?",
        )
    if summary.head_rms and not summary.is_constant:
        usual = float(np.median(summary.head_rms))
        dead = [i for i, rms in enumerate(summary.head_rms) if rms < 1e-3 * usual]
        if dead and is_matrix:
            yield _finding("fail", name, f"heads {', '.join(map(str, dead))} are empty.")
    digests = summary.head_digests
    for head, digest in enumerate(digests):
        if digests.index(digest) < head and not summary.is_constant:
            yield _finding("fail", name, f"heads {digests.index(digest)} and {head} are the same.")


def _check_copies(summaries: Sequence[TensorSummary]) -> Iterator[Finding]:
    first: dict[tuple[str, tuple[int, ...]], str] = {}
    for summary in summaries:
        if summary.is_constant:
            continue
        key = (summary.digest, summary.shape)
        if key in first:
            yield _finding(
                "fail", summary.name, f"the same values as {first[key]}; no training gives that."
            )
        first.setdefault(key, summary.name)


_LAYER = re.compile(r"(vision_encoder|decoder)\.blocks\.(\d+)\.(.+)")


def _check_layers(summaries: Sequence[TensorSummary]) -> Iterator[Finding]:
    """Find layers whose weights are much larger or smaller than their neighbors'."""
    kinds: dict[tuple[str, str], dict[int, float]] = defaultdict(dict)
    for summary in summaries:
        match = _LAYER.fullmatch(summary.name)
        if match is None or summary.num_broken or summary.name.endswith("bias"):
            continue
        size = summary.rms
        if match[1] == "decoder" and summary.values:  # its norms compute 1 + weight
            size = float(np.sqrt(np.mean((1 + np.array(summary.values)) ** 2)))
        kinds[match[1], match[3]][int(match[2])] = size
    outliers = [
        (score, factor, f"{tower}.blocks.{layer}.{kind}")
        for (tower, kind), sizes in kinds.items()
        for layer, score, factor in outliers_of([sizes[i] for i in sorted(sizes)])
    ]
    alone = len(outliers) <= 2
    for score, factor, name in sorted(outliers, reverse=True)[:_FEW]:
        is_extreme = score >= _EXTREME and alone
        how = f"{factor:.3g} times" if factor >= 1 else f"1/{1 / factor:.3g} of"
        yield _finding(
            "fail" if is_extreme else "unusual",
            name,
            f"its size is {how} what the layers around it suggest ({score:.0f} robust standard "
            "deviations of all layers)"
            + (", and no other tensor stands out." if is_extreme else "; that proves nothing."),
        )


def outliers_of(sizes: Sequence[float]) -> list[tuple[int, float, float]]:
    """(index, robust score, factor) of sizes that their neighbors do not suggest.

    >>> outliers_of([1.0, 1.1, 1.2, 3.9, 1.4, 1.5, 1.6, 1.7])[0][0]
    3
    """
    if len(sizes) < _MIN_LAYERS or min(sizes) <= 0:
        return []
    logs = np.log(np.array(sizes))
    expected = np.array([_expected(logs, i) for i in range(len(logs))])
    rest = logs - expected
    result = []
    for i, value in enumerate(rest):
        others = np.delete(rest, i)
        spread = 1.4826 * float(np.median(np.abs(others - np.median(others))))
        score = abs(value) / max(spread, 0.01)
        if score >= _UNUSUAL and abs(value) >= np.log(_LEAST_FACTOR):
            result.append((i, float(score), float(np.exp(value))))
    # A layer that stands out makes its neighbors look wrong too: keep the worst of a row.
    return [
        entry
        for entry in result
        if all(other[1] <= entry[1] for other in result if abs(other[0] - entry[0]) <= 2)
    ]


def _expected(logs: np.ndarray, i: int) -> float:
    """The median of the two layers before and the two after; fewer at the ends."""
    near = [j for j in range(i - 2, i + 3) if j != i and 0 <= j < len(logs)]
    return float(np.median(logs[near]))


def _check_grid(summaries: Sequence[TensorSummary]) -> Iterator[Finding]:
    """float32 files whose values were rounded to 16 bits once, but for a few tensors."""
    wide = [summary for summary in summaries if summary.dtype == "float32" and summary.rms > 0]
    for grid in ("bfloat16", "float16"):
        rounded = [summary for summary in wide if summary.on_grid == grid]
        others = [summary for summary in wide if summary.on_grid is None]
        if others and len(rounded) >= 0.8 * len(wide):
            for summary in others[:_FEW]:
                yield _finding(
                    "unusual",
                    summary.name,
                    f"it has values that no {grid} has, while {len(rounded)} of {len(wide)} "
                    "tensors were rounded to it: this one was changed afterwards.",
                )


def _check_padding(checkpoint: Checkpoint) -> Iterator[Finding]:
    """Rows beyond the vocabulary are the mean of the others, with hardly any noise."""
    padding = checkpoint.padding
    if padding is None or len(padding) < 3:
        return
    wide = padding.float()
    middle = wide.median(dim=0).values
    distance = (wide - middle).square().mean(1).sqrt()
    table = checkpoint.parameters[_TABLE]
    [block] = [next(iter(table.blocks()))[1].float()]
    spread = float((block - middle).square().mean().sqrt())
    odd = (distance > 0.5 * spread).nonzero()[:, 0].tolist()
    if 0 < len(odd) < 0.5 * len(padding):
        first = checkpoint.config.decoder.vocab_size
        yield _finding(
            "fail",
            _TABLE,
            f"{len(odd)} of the {len(padding)} rows beyond the vocabulary (from row "
            f"{first + odd[0]} on) look like rows of tokens: the table is shifted.",
        )
    same = torch.isclose(block, middle, rtol=0.0, atol=1e-3 * spread).all(1)
    same &= (block != 0).any(1)
    if bool(same.any()) and float(distance.median()) < 1e-3 * spread:
        rows = same.nonzero()[:, 0].tolist()
        yield _finding(
            "fail",
            _TABLE,
            f"row {rows[0]} is one of the rows beyond the vocabulary: the table is shifted by "
            f"{len(rows)}.",
        )
