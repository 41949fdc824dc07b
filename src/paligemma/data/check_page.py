"""The findings of a check and the first batch as one HTML page that needs no other file.

Boxes and masks are decoded from the row's own tokens, by the parser that reads the model's
answers: a mistake in the targets shows here as it would show in the trained model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from paligemma.data.check import CheckReport
from paligemma.data.record import Record
from paligemma.data.targets import Target, TargetBuilder
from paligemma.draw import draw_detections
from paligemma.inputs import ModelInputs
from paligemma.processor.image import ImageTransform, LoadedImage, resize_to_square
from paligemma.processor.processor import Processor
from paligemma.report import image_uri, render_page
from paligemma.results import Detection, Generation, Objects
from paligemma.tasks.detect import DetectTask
from paligemma.tasks.parse_prompt import kind_of_prompt
from paligemma.tasks.segment import SegmentTask
from paligemma.tasks.task import TaskContext

_IMAGE_SIDE = 448
_NUM_BARS = 24
_MAX_CLASSES = 100

# A token's kind, its short name, and what the legend says about it.
_LEGEND = (
    ("image", "image", "image"),
    ("prefix", "prefix", "prefix, with BOS and separator"),
    ("loss", "learned", "learned: counts in the loss"),
    ("free", "suffix that is not learned", "suffix that is not learned"),
    ("lost", "cut off", "cut off"),
    ("pad", "padding", "padding"),
)


@dataclass(frozen=True, kw_only=True)
class BatchRow:
    """One row of the first batch."""

    record: Record
    target: Target
    image: LoadedImage
    """The first one of several."""


def render_check_page(
    report: CheckReport, builder: TargetBuilder, rows: Sequence[BatchRow], inputs: ModelInputs
) -> str:
    """The page. `inputs` is the batch that the trainer's own collation makes of the rows."""
    longest = max(max((r.total for r in report.rows), default=0), inputs.token_ids.shape[1])
    return render_page(
        "data_check.html",
        title=f"Data check: {report.name}",
        report=report,
        legend=_LEGEND,
        longest=longest,
        rows=[
            _row(row, index, builder, inputs, report.max_tokens) for index, row in enumerate(rows)
        ],
        lengths=_histogram([row.total for row in report.rows], report.max_tokens),
        max_classes=_MAX_CLASSES,
    )


def _row(
    row: BatchRow, index: int, builder: TargetBuilder, inputs: ModelInputs, max_tokens: int | None
) -> dict[str, Any]:
    """What the page shows of row `index` of the batch."""
    ids = answer_ids(inputs, index, max_tokens)
    kinds = kinds_of_row(inputs, index, max_tokens)
    return {
        "record": row.record,
        "target": row.target,
        "name": row.image.name,
        "size": " x ".join(map(str, row.image.size_wh)),
        "image": image_uri(draw_row(row, builder, ids, max_tokens is not None), format="PNG"),
        "counts": {kind: kinds.count(kind) for kind, _, _ in _LEGEND},
        "tokens": _tokens(inputs.token_ids[index].tolist(), kinds, builder.processor),
    }


def kinds_of_row(inputs: ModelInputs, index: int, max_tokens: int | None) -> list[str]:
    """The kind of each token in the legend: "image", "prefix", "loss", ...

    Tokens from position `max_tokens` on are "lost".
    """
    assert inputs.loss_mask is not None
    masks = (inputs.input_mask, inputs.image_mask, inputs.loss_mask, inputs.mask_ar)
    kinds = []
    tokens = zip(*(mask[index].tolist() for mask in masks), strict=True)
    for position, (is_real, is_image, counts_in_loss, is_suffix) in enumerate(tokens):
        if not is_real:
            kinds.append("pad")
        elif max_tokens is not None and position >= max_tokens:
            kinds.append("lost")
        elif is_image:
            kinds.append("image")
        else:
            kinds.append("loss" if counts_in_loss else "free" if is_suffix else "prefix")
    return kinds


def answer_ids(inputs: ModelInputs, index: int, max_tokens: int | None) -> list[int]:
    """The suffix of a row, without the tokens that are cut off."""
    is_suffix = inputs.mask_ar[index] & inputs.input_mask[index]
    if max_tokens is not None:
        is_suffix[max_tokens:] = False
    ids: list[int] = inputs.token_ids[index, is_suffix].tolist()
    return ids


def _tokens(
    ids: Sequence[int], kinds: Sequence[str], processor: Processor
) -> list[tuple[str, str, int | None]]:
    """Kind, text and id of each token; image tokens and padding as one item without an id."""
    items: list[tuple[str, str, int | None]] = []
    for token_id, kind in zip(ids, kinds, strict=True):
        if kind not in ("image", "pad"):
            items.append((kind, token_text(token_id, processor), token_id))
        elif not items or items[-1][0] != kind:
            items.append((kind, f"{kinds.count(kind)} x {kind}", None))
    return items


def token_text(token_id: int, processor: Processor) -> str:
    """A token in readable form, with visible spaces."""
    tokenizer = processor.tokenizer
    names = {tokenizer.bos_id: "<bos>", tokenizer.eos_id: "<eos>"}
    text = names.get(token_id) or tokenizer.detokenize([token_id])
    return text.replace(" ", "·").replace("\n", "⏎") or f"[{token_id}]"


def draw_row(
    row: BatchRow, builder: TargetBuilder, ids: Sequence[int], may_be_cut: bool
) -> Image.Image:
    """The model's square input, enlarged, with the objects decoded from the answer's tokens."""
    processor = builder.processor
    input_image = resize_to_square(row.image.rgb, processor.transform(row.image))
    side = max(_IMAGE_SIDE, processor.resolution)
    image = input_image.resize((side, side), Image.Resampling.NEAREST)
    asks_for_objects = kind_of_prompt(row.target.prefix) in ("detect", "segment")
    if row.record.objects is None and not asks_for_objects:
        return image
    has_eos = bool(ids) and ids[-1] == processor.tokenizer.eos_id
    answer = Generation(
        text="",
        token_ids=tuple(ids),
        logprobs=(0.0,) * len(ids),
        stop_reason="eos" if has_eos or not may_be_cut else "length",
    )
    context = TaskContext(
        transform=ImageTransform(source_wh=(side, side), resolution=side),
        mask_codec=builder.mask_codec,
    )
    phrases = row.target.prefix.partition(" ")[2]
    names = tuple(phrases.split(" ; ")) if asks_for_objects else (row.target.prefix,)
    has_masks = any(processor.tokenizer.is_seg(token_id) for token_id in ids)
    objects: Objects[Detection]
    if has_masks and builder.mask_codec is not None:
        segment = SegmentTask(phrases=names, labels="any")
        objects = segment.parse(answer, processor.tokenizer, context)
    else:
        detect = DetectTask(phrases=names, labels="any")
        objects = detect.parse(answer, processor.tokenizer, context)
    # Noise boxes show nothing, and would hide what there is.
    kept = tuple(item for item in objects if item.label != builder.options.noise_token)
    detections: Objects[Detection] = type(objects)(**{**vars(objects), "objects": kept})
    return draw_detections(image, detections, scores=False)


def _histogram(lengths: Sequence[int], max_tokens: int | None) -> dict[str, Any] | None:
    """Numbers of records by length, in at most `_NUM_BARS` bars of equal width."""
    if not lengths:
        return None
    low, high = min(lengths), max(lengths)
    step = max(1, -(-(high - low + 1) // _NUM_BARS))
    counts = [0] * (-(-(high - low + 1) // step))
    for length in lengths:
        counts[(length - low) // step] += 1
    bars = []
    for index, count in enumerate(counts):
        first, last = low + index * step, low + (index + 1) * step - 1
        name = f"{first}" if step == 1 else f"{first} to {last}"
        bars.append((name, count, max_tokens is not None and last > max_tokens))
    return {
        "low": low,
        "high": high,
        "mean": sum(lengths) / len(lengths),
        "largest": max(counts),
        "bars": bars,
    }
