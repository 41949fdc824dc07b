"""Mean IoU of masks, by hand-counted pixels."""

from __future__ import annotations

import numpy as np
import pytest

from paligemma.errors import DataError
from paligemma.evals.metrics.mask_iou import MaskIou
from paligemma.evals.metrics.result import FoundObject, ReferenceObject
from paligemma.masks import Rle, mask_to_rle


def rectangle(box: tuple[int, int, int, int], size_wh: tuple[int, int] = (30, 20)) -> Rle:
    mask = np.zeros(size_wh[::-1], dtype=np.bool_)
    x1, y1, x2, y2 = box
    mask[y1:y2, x1:x2] = True
    return mask_to_rle(mask)


def found(box: tuple[int, int, int, int]) -> FoundObject:
    return FoundObject(label="", box_xyxy=box, score=0.5, rle=rectangle(box))


def known(box: tuple[int, int, int, int]) -> ReferenceObject:
    return ReferenceObject(label="cup", box_xyxy=box, rle=rectangle(box))


def test_the_mean_is_over_examples_and_ciou_over_pixels() -> None:
    result = MaskIou().score(
        [found((0, 0, 10, 10)), found((0, 0, 2, 2))], [known((0, 0, 10, 5)), known((0, 0, 2, 2))]
    )
    assert result.per_example == (0.5, 1.0)
    assert result.value == 0.75
    assert result.details["ciou"] == pytest.approx((50 + 4) / (100 + 4))
    assert result.details["precision@0.5"] == 1.0
    assert result.details["precision@0.6"] == 0.5
    assert result.details["box_accuracy@0.5"] == 1.0
    assert result.details["box_accuracy@0.75"] == 0.5


def test_an_invalid_output_counts_zero_and_stays_in_the_mean() -> None:
    result = MaskIou().score([None, found((0, 0, 4, 4))], [known((0, 0, 4, 4))] * 2)
    assert result.per_example == (0.0, 1.0)
    assert result.value == 0.5
    assert result.details["invalid"] == 0.5
    assert result.details["ciou"] == 0.5
    assert result.details["box_accuracy@0.5"] == 0.5


def test_masks_that_share_nothing_score_zero() -> None:
    assert MaskIou().score([found((0, 0, 3, 3))], [known((5, 5, 9, 9))]).value == 0.0


def test_what_cannot_be_compared_is_refused() -> None:
    bare = FoundObject(label="", box_xyxy=(0, 0, 1, 1), score=1.0)
    with pytest.raises(DataError, match="found object of example 0 has no mask"):
        MaskIou().score([bare], [known((0, 0, 3, 3))])
    other = FoundObject(
        label="", box_xyxy=(0, 0, 1, 1), score=1.0, rle=rectangle((0, 0, 1, 1), (9, 9))
    )
    with pytest.raises(DataError, match=r"\(9, 9\) and \(20, 30\)"):
        MaskIou().score([other], [known((0, 0, 3, 3))])
    with pytest.raises(DataError, match="aligned"):
        MaskIou().score([], [known((0, 0, 3, 3))])
