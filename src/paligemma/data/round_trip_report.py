"""How much of boxes and masks survives as tokens: the best that a perfect model could reach.

Boxes lose by 1024 bins and at the edge of the image, masks by the codec's 16 codes for a 64 x 64
grid. Worth a look before training: a low box IoU means tiny objects, a low mask IoU thin objects
or ones with holes, or polygons that do not belong to their boxes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from paligemma.data.overlap import iou_of_boxes, mask_iou
from paligemma.data.record import Record
from paligemma.data.targets import TargetBuilder
from paligemma.results import BoxXyxy, Result
from paligemma.tasks.objects import decode_box
from paligemma.tasks.seg_codec import paste_mask

NUM_WORST = 5


@dataclass(frozen=True, kw_only=True)
class WorstObject(Result):
    """One of the objects that lose most."""

    record_id: str
    label: str
    box_xyxy: BoxXyxy
    iou: float
    of: str
    """"box" or "mask"."""


@dataclass(frozen=True, kw_only=True)
class RoundTripReport(Result):
    """IoU of annotated boxes and masks with those decoded from their tokens; None without any."""

    num_records: int
    num_boxes: int
    num_masks: int
    box_iou_mean: float | None
    box_iou_min: float | None
    mask_iou_mean: float | None
    mask_iou_min: float | None
    worst: tuple[WorstObject, ...]
    """The lowest, of boxes and of masks."""


def round_trip(records: Sequence[Record], builder: TargetBuilder) -> RoundTripReport:
    """Encode all objects that become targets of the builder, decode them, and compare.

    Masks are measured where the builder's task is "segment". Raises DataError as the builder does.
    """
    boxes: list[WorstObject] = []
    masks: list[WorstObject] = []
    num_records = 0
    for record in records:
        if record.suffix or not record.objects:
            continue
        num_records += 1
        boxes += _boxes(record, builder)
        if builder.task == "segment":
            masks += _masks(record, builder)
    worst = [o for group in (boxes, masks) for o in sorted(group, key=lambda o: o.iou)[:NUM_WORST]]
    return RoundTripReport(
        num_records=num_records,
        num_boxes=len(boxes),
        num_masks=len(masks),
        box_iou_mean=_mean(boxes),
        box_iou_min=min((o.iou for o in boxes), default=None),
        mask_iou_mean=_mean(masks),
        mask_iou_min=min((o.iou for o in masks), default=None),
        worst=tuple(worst),
    )


def _boxes(record: Record, builder: TargetBuilder) -> list[WorstObject]:
    assert record.objects is not None
    assert record.size_wh is not None
    transform = builder.transform(record.size_wh)
    results = []
    for item in record.objects:
        bins = builder.bins_of(item.box_xyxy, record.size_wh)
        decoded = transform.box_to_source(decode_box(bins), order="xyxy")
        iou = iou_of_boxes(item.box_xyxy, decoded)
        results.append(_result(record, item.label, item.box_xyxy, iou, "box"))
    return results


def _masks(record: Record, builder: TargetBuilder) -> list[WorstObject]:
    assert record.objects is not None
    assert record.size_wh is not None
    assert builder.mask_codec is not None
    transform = builder.transform(record.size_wh)
    codes = torch.tensor(builder.codes_of(record.objects, record), dtype=torch.int64)
    masks_64 = builder.mask_codec.decode_masks(codes).cpu().numpy()
    results = []
    for item, mask_64 in zip(record.objects, masks_64, strict=True):
        box = decode_box(builder.bins_of(item.box_xyxy, record.size_wh))
        box_in_image = transform.box_to_source(box, order="xyxy", clamp=False)
        decoded = paste_mask(mask_64, box_in_image, record.size_wh)
        mask = item.mask
        assert mask is not None
        iou = mask_iou(mask, decoded)
        results.append(_result(record, item.label, item.box_xyxy, iou, "mask"))
    return results


def _result(record: Record, label: str, box: BoxXyxy, iou: float, of: str) -> WorstObject:
    return WorstObject(record_id=record.record_id, label=label, box_xyxy=box, iou=iou, of=of)


def _mean(objects: Sequence[WorstObject]) -> float | None:
    return sum(o.iou for o in objects) / len(objects) if objects else None
