"""Compare what two paths computed, and judge it by limits that are stated in the report.

Differences of logits are given in standard deviations of the reference's logits at that position.
The limits are several times what we measured on sound models; a wrong mask, scale or kernel is far
beyond them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from paligemma.certify.drift import StageError, stage_errors
from paligemma.certify.findings import Finding
from paligemma.certify.paths import PathOutputs, ProbeOutputs
from paligemma.certify.probes import ProbeInputs
from paligemma.model.paligemma import PaliGemma
from paligemma.processor.tokenizer import Tokenizer
from paligemma.results import BoxXyxy
from paligemma.tasks.objects import ParsedObject, decode_box, parse_objects
from paligemma.tasks.seg_codec import MaskCodec, paste_mask

_GRID = 256  # pixels per side on which masks are compared
_ROUNDINGS = 1.5
_MIN_IOU = 0.5  # objects closer than that are the same one


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a path of this form may differ by, in standard deviations of the logits."""

    form: str
    largest: float
    typical: float
    """The root mean square."""
    layer: float
    """The error of one layer, as a part of what it adds, besides rounding its sum."""
    cache: float
    """Between steps with the key-value cache and whole passes, and between batches and single
    rows, in the same path."""
    agreement: float
    """The least part of greedy tokens that are the same."""
    iou: float
    """The least mean IoU of boxes, and of masks."""
    precision: float
    """Half the distance of two neighboring numbers, relative to them."""


LIMITS = {
    limits.form: limits
    for limits in (
        Limits(form="float32", largest=0.01, typical=0.002, layer=0.001, cache=0.01,
               agreement=1.0, iou=0.99, precision=2.0**-24),
        Limits(form="float16", largest=0.1, typical=0.02, layer=0.002, cache=0.05,
               agreement=0.98, iou=0.95, precision=2.0**-11),
        Limits(form="bfloat16", largest=0.5, typical=0.1, layer=0.01, cache=0.2,
               agreement=0.9, iou=0.85, precision=2.0**-8),
        Limits(form="int8", largest=1.0, typical=0.2, layer=0.05, cache=0.25,
               agreement=0.8, iou=0.75, precision=2.0**-8),
        Limits(form="int4", largest=2.5, typical=0.6, layer=0.25, cache=0.3,
               agreement=0.6, iou=0.5, precision=2.0**-8),
    )
}  # fmt: skip


def limits_for(model: PaliGemma, quantization: str | None) -> Limits:
    """The limits for a loaded model."""
    return LIMITS[quantization or str(model.dtype).removeprefix("torch.")]


@dataclass(frozen=True, kw_only=True)
class ProbeReport:
    """One probe: how far apart the two paths are."""

    name: str
    task: str
    prompt: str
    positions: int
    """Of the prefix, image tokens included."""
    largest: float
    typical: float
    cache: float
    """Steps with the key-value cache against one whole pass, in the path under test."""
    num_tokens: int
    num_same: int
    num_unexplained: int
    """Tokens that differ although the reference preferred its own by more than the limit."""
    reference_text: str
    text: str
    box_iou: float | None
    mask_iou: float | None


@dataclass(frozen=True, kw_only=True)
class TaskReport:
    """All probes of a task, with the verdict."""

    task: str
    num_probes: int
    largest: float
    typical: float
    agreement: float
    box_iou: float | None
    mask_iou: float | None
    passes: bool
    reasons: tuple[str, ...]


def compare_probes(
    inputs: ProbeInputs,
    reference: PathOutputs,
    tested: PathOutputs,
    limits: Limits,
    tokenizer: Tokenizer | None,
    codec: MaskCodec | None,
) -> list[ProbeReport]:
    """One report per probe."""
    reports = []
    rows = zip(inputs.probes, inputs.prefixes, reference.probes, tested.probes, strict=True)
    for probe, prefix, before, after in rows:
        difference = relative(after.logits, before.logits)
        chosen = after.logits.argmax(1)
        same = chosen == before.logits.argmax(1)
        preferred = before.logits.amax(1) - before.logits.gather(1, chosen[:, None])[:, 0]
        unexplained = preferred > 2 * limits.largest * _spread(before.logits)[:, 0]
        boxes, masks = _overlaps(before, after, tokenizer, codec)
        reports.append(
            ProbeReport(
                name=probe.name,
                task=probe.task,
                prompt=probe.prompt,
                positions=int(prefix.input_mask.sum()),
                largest=float(difference.abs().max()),
                typical=float(difference.square().mean().sqrt()),
                cache=float(relative(after.whole_logits, after.logits).abs().max()),
                num_tokens=len(same),
                num_same=int(same.sum()),
                num_unexplained=int(unexplained.sum()),
                reference_text=_text(before, tokenizer),
                text=_text(after, tokenizer),
                box_iou=boxes,
                mask_iou=masks,
            )
        )
    return reports


def _spread(logits: Tensor) -> Tensor:
    return logits.std(dim=1, keepdim=True).clamp_min(1e-12)


def relative(actual: Tensor, expected: Tensor) -> Tensor:
    """The difference in standard deviations; infinite where a value is not finite."""
    difference = (actual - expected) / _spread(expected)
    return torch.where(torch.isfinite(difference), difference, torch.inf)


def _text(row: ProbeOutputs, tokenizer: Tokenizer | None) -> str:
    if tokenizer is None:
        return " ".join(map(str, row.token_ids))
    return tokenizer.detokenize(row.token_ids)


def _overlaps(
    before: ProbeOutputs, after: ProbeOutputs, tokenizer: Tokenizer | None, codec: MaskCodec | None
) -> tuple[float | None, float | None]:
    """The mean IoU of the reference's boxes and masks with those of the path; None without any."""
    if tokenizer is None:
        return None, None
    expected, actual = (
        parse_objects(row.token_ids, [0.0] * len(row.token_ids), tokenizer).objects
        for row in (before, after)
    )
    if not expected:
        return None, None
    boxes, masks, left = [], [], list(actual)
    for item in expected:
        ious = [box_iou(_box(item), _box(other)) for other in left]
        best = max(range(len(left)), key=ious.__getitem__, default=None)
        if best is None or ious[best] < _MIN_IOU or left[best].label != item.label:
            boxes.append(0.0)
            continue
        boxes.append(ious[best])
        other = left.pop(best)
        if codec is not None and item.seg_codes and other.seg_codes:
            a, b = _mask(item, codec), _mask(other, codec)
            union = int((a | b).sum())
            masks.append(int((a & b).sum()) / union if union else 1.0)
    unmatched = [0.0] * max(0, len(left))
    values = boxes + unmatched
    return sum(values) / len(values), sum(masks) / len(masks) if masks else None


def _box(item: ParsedObject) -> BoxXyxy:
    return decode_box(item.box_yxyx_bins)


def _mask(item: ParsedObject, codec: MaskCodec) -> Tensor:
    [mask] = codec.decode_masks(torch.tensor([item.seg_codes]))
    x1, y1, x2, y2 = (_GRID * edge for edge in _box(item))
    pasted = paste_mask(mask.cpu().numpy(), (x1, y1, x2, y2), (_GRID, _GRID))
    return torch.from_numpy(pasted)


def box_iou(a: BoxXyxy, b: BoxXyxy) -> float:
    """
    >>> box_iou((0, 0, 1, 1), (0.5, 0, 1, 1))
    0.5
    """
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    common = max(0.0, width) * max(0.0, height)
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return common / (areas - common) if areas > common else 1.0


def judge_tasks(reports: Sequence[ProbeReport], limits: Limits) -> list[TaskReport]:
    """The verdict for each task, with the reasons."""
    tasks = []
    for task in dict.fromkeys(report.task for report in reports):
        rows = [report for report in reports if report.task == task]
        num_tokens = sum(row.num_tokens for row in rows)
        largest = max(row.largest for row in rows)
        typical = max(row.typical for row in rows)
        # A single one is no evidence: two places of an edge may be equally likely.
        num_different = num_tokens - sum(row.num_same for row in rows)
        agreement = 1 - num_different / max(1, num_tokens)
        boxes = _mean([row.box_iou for row in rows])
        masks = _mean([row.mask_iou for row in rows])
        unexplained = sum(row.num_unexplained for row in rows)
        cache = max(row.cache for row in rows)
        reasons = [
            text
            for is_wrong, text in (
                (largest > limits.largest, f"largest difference {largest:.3g}"),
                (typical > limits.typical, f"typical difference {typical:.3g}"),
                (cache > limits.cache, f"the key-value cache changes logits by {cache:.3g}"),
                (unexplained > 0, f"{unexplained} tokens differ without being close"),
                (
                    agreement < limits.agreement and num_different > 1 and num_tokens > 8,
                    f"{agreement:.0%} of the tokens are the same",
                ),
                (boxes is not None and boxes < limits.iou, f"box IoU {boxes or 0:.2f}"),
                (masks is not None and masks < limits.iou, f"mask IoU {masks or 0:.2f}"),
            )
            if is_wrong
        ]
        tasks.append(
            TaskReport(
                task=task,
                num_probes=len(rows),
                largest=largest,
                typical=typical,
                agreement=agreement,
                box_iou=boxes,
                mask_iou=masks,
                passes=not reasons,
                reasons=tuple(reasons),
            )
        )
    return tasks


def _mean(values: Sequence[float | None]) -> float | None:
    numbers = [value for value in values if value is not None]
    return sum(numbers) / len(numbers) if numbers else None


@dataclass(frozen=True, kw_only=True)
class LayerReport:
    """One stage of the computation, with its limit."""

    stage: str
    error: float
    limit: float
    drift: float

    @property
    def passes(self) -> bool:
        return self.error <= self.limit


def compare_layers(
    reference: PathOutputs, tested: PathOutputs, limits: Limits
) -> list[LayerReport]:
    """The error of each layer; empty where the layers of the path cannot be seen."""
    if reference.trace is None or tested.trace is None:
        return []
    errors: list[StageError] = stage_errors(reference.trace, tested.trace, limits.precision)
    return [
        LayerReport(
            stage=error.stage,
            error=error.error,
            limit=limits.layer + _ROUNDINGS * error.rounding,
            drift=error.drift,
        )
        for error in errors
    ]


def check_agreement(
    inputs: ProbeInputs,
    tested: PathOutputs,
    tasks: Sequence[TaskReport],
    layers: Sequence[LayerReport],
    limits: Limits,
) -> Iterator[Finding]:
    """What is wrong with the path under test."""
    wrong = [layer for layer in layers if not layer.passes]
    if wrong:
        first = wrong[0]
        more = f" So do {len(wrong) - 1} stages after it." if len(wrong) > 1 else ""
        yield Finding(
            level="fail",
            check="layers",
            place=first.stage,
            text="it is the first that computes something else than the float32 reference from "
            f"the same input: off by {first.error:.3g} of what it adds (limit "
            f"{first.limit:.2g}).{more}",
        )
    for task in tasks:
        if not task.passes:
            yield Finding(
                level="fail",
                check="probes",
                place=f"task {task.task}",
                text="; ".join(task.reasons) + f" (limits for {limits.form}: largest "
                f"{limits.largest}, typical {limits.typical}, cache {limits.cache}, tokens "
                f"{limits.agreement:.0%}, IoU {limits.iou}).",
            )
    single = torch.stack([tested.probes[row].logits[0] for row in inputs.batch_rows])
    error = float(relative(tested.batch_logits, single).abs().max())
    if error > limits.cache:
        yield Finding(
            level="fail",
            check="batches",
            place="rows padded on the left",
            text=f"a row in a batch has other logits than alone: {error:.3g} (limit "
            f"{limits.cache}).",
        )
    yield from _check_engine(inputs, tested, limits)


def _check_engine(inputs: ProbeInputs, tested: PathOutputs, limits: Limits) -> Iterator[Finding]:
    """Rows that run together must write what they write alone, up to ties."""
    for ids, number in zip(tested.engine_token_ids, inputs.batch_rows, strict=True):
        row = tested.probes[number]
        pairs = enumerate(zip(ids, row.token_ids, strict=False))
        step = next((i for i, (among, alone) in pairs if among != alone), None)
        if step is None or step >= len(row.logits):
            continue
        # The logits are along the reference's tokens, which are the same up to here.
        logits = row.logits[step]
        margin = float(logits.max() - logits[ids[step]]) / float(logits.std())
        if margin > 2 * limits.cache:
            yield Finding(
                level="fail",
                check="engine",
                place=f"probe {inputs.probes[number].name}",
                text=f"among others, it writes another token at step {step} than alone, which it "
                f"likes less by {margin:.3g}.",
            )
