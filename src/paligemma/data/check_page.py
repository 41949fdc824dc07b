"""The first batch and the findings of a check as one HTML page that needs nothing else.

What is drawn into the pictures is read back from the row's own tokens, by the parser that reads
the model's answers: a mistake on the way there shows here as it would show in the trained model.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from PIL import Image

from paligemma.data.check import CheckReport
from paligemma.data.record import Record
from paligemma.data.round_trip_report import RoundTripReport
from paligemma.data.targets import Target, TargetBuilder
from paligemma.draw import draw_detections
from paligemma.inputs import ModelInputs
from paligemma.processor.image import ImageTransform, LoadedImage, resize_to_square
from paligemma.processor.processor import Processor
from paligemma.results import Detection, Objects, StopReason
from paligemma.tasks.detect import DetectTask
from paligemma.tasks.segment import SegmentTask
from paligemma.tasks.task import TaskContext

_PICTURE_SIDE = 448
_NUM_BARS = 24
_MAX_CLASSES = 100

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem;
  color: #1a1a1a; background: #fff; }
h1 { font-size: 1.5rem; margin-bottom: 0; } h2 { font-size: 1.15rem; margin-top: 2rem; }
.finding { border-left: 5px solid; padding: .3rem .8rem; margin: .4rem 0; background: #f7f7f7;
  overflow-wrap: anywhere; }
.error { border-color: #d55e00; } .warning { border-color: #e69f00; } .note { border-color: #bbb; }
.finding b { text-transform: uppercase; font-size: .75rem; letter-spacing: .04em; }
.ids { color: #666; font-size: .8rem; }
.row { display: grid; grid-template-columns: minmax(12rem, 24rem) 1fr; gap: 1.2rem;
  padding: 1.2rem 0; border-top: 1px solid #ddd; }
.row img { width: 100%; image-rendering: auto; border: 1px solid #ccc; }
.row h3 { margin: 0 0 .4rem; font-size: .95rem; overflow-wrap: anywhere; }
.tokens { font: 13px/1.9 ui-monospace, monospace; overflow-wrap: anywhere; }
.t { padding: .1rem .12rem; border-radius: 3px; white-space: pre-wrap; }
.t + .t { margin-left: 2px; }
.image, .pad { white-space: nowrap; }
.image { background: #d9d9d9; } .prefix { background: #bfe0f7; } .loss { background: #a8dfc9; }
.free { background: repeating-linear-gradient(45deg, #fbe3a1 0 4px, #fff3d0 4px 8px); }
.pad { background: #f2f2f2; color: #888; }
.lost { background: #f6c9b0; text-decoration: line-through; }
.budget { display: flex; height: 12px; margin: .5rem 0 .2rem; border: 1px solid #999; }
.small { color: #555; font-size: .85rem; }
table { border-collapse: collapse; } td, th { padding: .15rem .9rem .15rem 0; text-align: left; }
td.n { text-align: right; font-variant-numeric: tabular-nums; }
.bar { background: #0072b2; height: 10px; display: inline-block; }
.legend span { margin-right: .8rem; }
@media (max-width: 45rem) { .row { grid-template-columns: 1fr; } }
"""
_LEGEND = (
    ("image", "picture"),
    ("prefix", "prefix, with BOS and separator"),
    ("loss", "learned: counts in the loss"),
    ("free", "suffix that is not learned"),
    ("lost", "cut off"),
    ("pad", "padding"),
)


@dataclass(frozen=True, kw_only=True)
class BatchRow:
    """One row of the first batch."""

    record: Record
    target: Target
    image: LoadedImage
    """Of several, the first."""


def render_page(
    report: CheckReport, builder: TargetBuilder, rows: Sequence[BatchRow], inputs: ModelInputs
) -> str:
    """The page. `inputs` is the batch that the trainer's own collation makes of the rows."""
    longest = max(max((r.total for r in report.rows), default=0), inputs.token_ids.shape[1])
    parts = [
        f"<h1>{escape(report.name)}</h1>",
        f"<p class=small>{escape(report.format)}: {escape(report.found)}. "
        f"{report.num_records} records, {report.num_bad} of them cannot be used.</p>",
        "<h2>Findings</h2>",
        *(_finding(f.level, f.text, f.ids) for f in report.findings),
        "<h2>The first batch, as the model sees it</h2>",
        f"<p class=legend>{''.join(_legend(*item) for item in _LEGEND)}</p>",
        "<p class=small>Pictures are shown at the model's resolution; boxes and masks are read "
        "back from the tokens beside them. · is a space, ⏎ a line break.</p>",
        *(
            _row(row, place, builder, inputs, report.max_tokens, longest)
            for place, row in enumerate(rows)
        ),
        "<h2>Lengths</h2>",
        _histogram([r.total for r in report.rows], report.max_tokens),
        *(() if report.round_trip is None else (_round_trip(report.round_trip),)),
        *(() if not report.class_counts else (_classes(report.class_counts),)),
    ]
    title = escape(f"Data check: {report.name}")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{_STYLE}</style></head><body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _finding(level: str, text: str, ids: Sequence[str]) -> str:
    shown = f'<div class="ids">{escape(", ".join(ids))}</div>' if ids else ""
    return f'<div class="finding {level}"><b>{level}</b> {escape(text)}{shown}</div>'


def _legend(kind: str, text: str) -> str:
    return f'<span><span class="t {kind}">&nbsp;&nbsp;</span> {escape(text)}</span>'


def _row(
    row: BatchRow,
    place: int,
    builder: TargetBuilder,
    inputs: ModelInputs,
    max_tokens: int | None,
    longest: int,
) -> str:
    picture = draw_row(row, builder, answer_ids(inputs, place, max_tokens), max_tokens is not None)
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    data = base64.b64encode(file.getvalue()).decode()
    kinds = kinds_of_row(inputs, place, max_tokens)
    counts = {kind: kinds.count(kind) for kind, _ in _LEGEND}
    budget = "".join(
        f'<div class="{kind}" style="width:{100 * counts[kind] / longest:.3f}%"></div>'
        for kind, _ in _LEGEND
    )
    numbers = ", ".join(
        f"{counts[kind]} {text.partition(',')[0].partition(':')[0]}"
        for kind, text in _LEGEND
        if counts[kind]
    )
    size = " x ".join(map(str, row.image.size_wh))
    left_out = row.target.num_left_out
    objects = "" if row.record.objects is None else f", {row.target.num_objects} objects"
    if left_out:
        objects += f" and {left_out} beyond the budget, left out"
    if row.target.num_noise:
        objects += f", {row.target.num_noise} noise boxes, not drawn"
    return (
        f'<div class="row"><div><img alt="{escape(row.record.record_id)}" '
        f'src="data:image/png;base64,{data}"></div><div>'
        f"<h3>{escape(row.record.record_id)} <span class=small>{escape(row.image.name)}, "
        f"{size} pixels{objects}</span></h3>"
        f'<div class="budget">{budget}</div><div class="small">Tokens: {numbers}; the longest row '
        f"of the data has {longest}</div>"
        f'<div class="tokens">{_tokens(inputs, place, kinds, builder.processor)}</div>'
        "</div></div>"
    )


def kinds_of_row(inputs: ModelInputs, place: int, max_tokens: int | None) -> list[str]:
    """For each position its kind in the legend: "image", "prefix", "loss", ...

    What lies at `max_tokens` or behind is "lost".
    """
    assert inputs.loss_mask is not None
    masks = (inputs.input_mask, inputs.image_mask, inputs.loss_mask, inputs.mask_ar)
    kinds = []
    rows = zip(*(mask[place].tolist() for mask in masks), strict=True)
    for at, (is_real, is_image, counts, is_suffix) in enumerate(rows):
        if not is_real:
            kinds.append("pad")
        elif max_tokens is not None and at >= max_tokens:
            kinds.append("lost")
        elif is_image:
            kinds.append("image")
        else:
            kinds.append("loss" if counts else "free" if is_suffix else "prefix")
    return kinds


def answer_ids(inputs: ModelInputs, place: int, max_tokens: int | None) -> list[int]:
    """The suffix of a row, as far as it is not cut."""
    is_suffix = inputs.mask_ar[place] & inputs.input_mask[place]
    if max_tokens is not None:
        is_suffix[max_tokens:] = False
    ids: list[int] = inputs.token_ids[place, is_suffix].tolist()
    return ids


def _tokens(inputs: ModelInputs, place: int, kinds: Sequence[str], processor: Processor) -> str:
    ids = inputs.token_ids[place].tolist()
    spans = []
    for kind in ("image", "pad"):
        if number := kinds.count(kind):
            spans.append((kinds.index(kind), f'<span class="t {kind}">{number} x {kind}</span>'))
    for at, (token_id, kind) in enumerate(zip(ids, kinds, strict=True)):
        if kind not in ("image", "pad"):
            text = escape(token_text(token_id, processor))
            spans.append((at, f'<span class="t {kind}" title="{token_id}">{text}</span>'))
    return "".join(text for _, text in sorted(spans))


def token_text(token_id: int, processor: Processor) -> str:
    """A token as a person reads it."""
    tokenizer = processor.tokenizer
    named = {tokenizer.bos_id: "<bos>", tokenizer.eos_id: "<eos>"}
    text = named.get(token_id) or tokenizer.detokenize([token_id])
    return text.replace(" ", "·").replace("\n", "⏎") or f"[{token_id}]"


@dataclass(frozen=True, kw_only=True)
class _Written:
    """A row's answer, as a task reads one that a model wrote."""

    token_ids: Sequence[int]
    logprobs: Sequence[float]
    stop_reason: StopReason


def draw_row(
    row: BatchRow, builder: TargetBuilder, ids: Sequence[int], may_be_cut: bool
) -> Image.Image:
    """The model's square picture, enlarged, with the objects that its answer's tokens give."""
    processor = builder.processor
    square = resize_to_square(row.image.rgb, processor.transform(row.image))
    side = max(_PICTURE_SIDE, processor.resolution)
    shown = square.resize((side, side), Image.Resampling.NEAREST)
    verb, _, phrases = row.target.prefix.partition(" ")
    if row.record.objects is None and verb not in ("detect", "segment"):
        return shown
    # Noise boxes are not there; they would hide what is.
    noise = builder.options.noise_token
    codec = builder.mask_codec
    is_whole = bool(ids) and ids[-1] == processor.tokenizer.eos_id
    written = _Written(
        token_ids=ids,
        logprobs=[0.0] * len(ids),
        stop_reason="eos" if is_whole or not may_be_cut else "length",
    )
    context = TaskContext(
        transform=ImageTransform(source_wh=(side, side), resolution=side), mask_codec=codec
    )
    names = tuple(phrases.split(" ; ")) if verb in ("detect", "segment") else (row.target.prefix,)
    found: Objects[Detection]
    has_masks = any(processor.tokenizer.is_seg(token_id) for token_id in ids)
    if has_masks and codec is not None:
        found = SegmentTask(phrases=names, labels="any").parse(
            written, processor.tokenizer, context
        )
    else:
        found = DetectTask(phrases=names, labels="any").parse(written, processor.tokenizer, context)
    kept = tuple(item for item in found if item.label != noise)
    detections: Objects[Detection] = type(found)(**{**vars(found), "objects": kept})
    return draw_detections(shown, detections, scores=False)


def _histogram(lengths: Sequence[int], max_tokens: int | None) -> str:
    if not lengths:
        return "<p>There are none.</p>"
    low, high = min(lengths), max(lengths)
    step = max(1, -(-(high - low + 1) // _NUM_BARS))
    counts = [0] * (-(-(high - low + 1) // step))
    for length in lengths:
        counts[(length - low) // step] += 1
    rows = []
    for place, count in enumerate(counts):
        first = low + place * step
        name = f"{first}" if step == 1 else f"{first} to {first + step - 1}"
        is_cut = max_tokens is not None and first + step - 1 > max_tokens
        color = ' style="background:#d55e00;' if is_cut else ' style="'
        width = f'width:{24 * count / max(counts):.2f}rem"'
        bar = f'<span class="bar"{color}{width}></span>'
        rows.append(f"<tr><td class=n>{name}</td><td>{bar} {count}</td></tr>")
    limit = "" if max_tokens is None else f" Orange: beyond {max_tokens}, where rows are cut."
    mean = sum(lengths) / len(lengths)
    return (
        f"<p class=small>Tokens of a row with image tokens and EOS: {low} to {high}, "
        f"{mean:.0f} on average.{limit}</p>"
        f"<table><tr><th>tokens</th><th>records</th></tr>{''.join(rows)}</table>"
    )


def _round_trip(report: RoundTripReport) -> str:
    rows = []
    for name, number, mean, low in (
        ("boxes", report.num_boxes, report.box_iou_mean, report.box_iou_min),
        ("masks", report.num_masks, report.mask_iou_mean, report.mask_iou_min),
    ):
        if mean is not None and low is not None:
            cells = f"<td class=n>{number}</td><td class=n>{mean:.3f}</td><td class=n>{low:.3f}"
            rows.append(f"<tr><td>{name}</td>{cells}</td></tr>")
    worst = "".join(
        f"<tr><td>{o.of}</td><td>{escape(o.label)}</td><td class=n>{o.iou:.3f}</td>"
        f"<td>{escape(o.record_id)}</td></tr>"
        for o in report.worst
    )
    return (
        "<h2>Through the tokens and back</h2><p class=small>IoU of what was annotated with what "
        "its tokens say: the most that a trained model can reach.</p>"
        "<table><tr><th></th><th>objects</th><th>mean IoU</th><th>lowest</th></tr>"
        f"{''.join(rows)}</table><p class=small>The lowest:</p><table><tr><th></th><th>label</th>"
        f"<th>IoU</th><th>record</th></tr>{worst}</table>"
    )


def _classes(counts: Sequence[tuple[str, int]]) -> str:
    most = counts[0][1]
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td class=n>{count}</td>"
        f'<td><span class="bar" style="width:{20 * count / most:.2f}rem"></span></td></tr>'
        for name, count in counts[:_MAX_CLASSES]
    )
    rest = len(counts) - _MAX_CLASSES
    more = f"<p class=small>and {rest} more</p>" if rest > 0 else ""
    head = f"<h2>Classes</h2><table><tr><th>class</th><th>objects</th><th></th></tr>{rows}</table>"
    return head + more
