"""Metrics of fields, by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paligemma.errors import DataError
from paligemma.evals.metrics.fields import (
    FieldCell,
    best_matching,
    coverage,
    reading_order_distance,
    score_cells,
    similarity,
)

pytest.importorskip("rapidfuzz", reason="the eval extra is not installed")


def cell(
    score: float, right: bool, record: int = 0, *, true: str | None = "a", read: str | None = "b"
) -> FieldCell:
    return FieldCell(
        record=record,
        path="total",
        true=true,
        read=read,
        is_right=right,
        similarity=float(right),
        score=score,
    )


def test_coverage_is_the_largest_share_at_the_precision() -> None:
    # 19 right ones above a wrong one are 95 %; the next wrong one is too many.
    cells = [cell(0.9 - n / 100, True, n) for n in range(19)]
    cells += [cell(0.5, False, 19), cell(0.4, False, 20), cell(0.3, True, 21)]
    found = coverage(cells)
    assert found is not None
    assert (found.share, found.min_score, found.precision) == (20 / 22, 0.5, 0.95)
    assert found.interval is not None
    assert found.interval.low <= found.share <= found.interval.high


def test_the_interval_of_a_small_share_is_a_share() -> None:
    found = coverage([cell(0.9 - n / 100, n == 0, n) for n in range(20)])
    assert found is not None
    assert found.interval is not None
    assert 0 <= found.interval.low <= found.share <= found.interval.high <= 1


def test_equal_scores_are_accepted_together() -> None:
    assert coverage([cell(0.9, True), cell(0.9, False)]) is None
    found = coverage([cell(0.9, True), cell(0.5, True), cell(0.5, False)])
    assert found is not None
    assert found.share == pytest.approx(1 / 3)
    assert found.min_score == 0.9


def test_what_was_not_read_counts_and_cannot_be_accepted() -> None:
    cells = [cell(0.9, True), cell(0.0, False, read=None)]
    found = coverage(cells)
    assert found is not None
    assert found.share == 0.5
    # Absent and not read is nothing that anyone has to look at.
    again = coverage([*cells, cell(0.0, True, true=None, read=None)])
    assert again is not None
    assert again.share == 0.5


@pytest.mark.parametrize(
    "cells",
    [[], [cell(0.9, False)], [cell(0.0, False, read=None)], [cell(0, True, true=None, read=None)]],
)
def test_a_precision_that_is_never_reached_has_no_coverage(cells: list[FieldCell]) -> None:
    assert coverage(cells) is None


@given(
    st.lists(
        st.tuples(st.sampled_from([0.1, 0.4, 0.6, 0.9]), st.booleans()), min_size=1, max_size=12
    )
)
def test_coverage_is_that_of_the_best_threshold(values: list[tuple[float, bool]]) -> None:
    cells = [cell(score, right, n) for n, (score, right) in enumerate(values)]
    found = coverage(cells, 0.75)
    shares = []
    for threshold in {score for score, _ in values}:
        accepted = [right for score, right in values if score >= threshold]
        if sum(accepted) >= 0.75 * len(accepted) - 1e-9:
            shares.append(len(accepted) / len(values))
    assert (0 if found is None else found.share) == pytest.approx(max(shares, default=0))


def test_scores_of_a_field_by_hand() -> None:
    cells = [
        cell(0.9, True, 0),
        cell(0.8, False, 1),
        cell(0.0, False, 2, read=None),
        cell(0.7, False, 3, true=None),
        cell(0.0, True, 4, true=None, read=None),
    ]
    score = score_cells("total", cells)
    assert (score.exact, score.num_cells) == (0.4, 5)
    assert score.precision == pytest.approx(1 / 3)
    assert score.recall == pytest.approx(1 / 3)
    assert score.f1 == pytest.approx(2 / 6)
    assert math.isnan(score.evidence_iou)
    assert score.to_dict()["evidence_iou"] is None
    assert score.coverage is not None
    assert score.coverage.share == 0.25
    absent = score_cells("x", [cell(0, True, true=None, read=None)])
    assert (absent.exact, absent.coverage) == (1.0, None)
    assert math.isnan(absent.f1)
    with pytest.raises(DataError):
        score_cells("x", [])


@given(st.data())
def test_the_matching_has_the_largest_sum(data: st.DataObject) -> None:
    shape = data.draw(st.tuples(st.integers(0, 4), st.integers(0, 4)))
    weights = np.array(
        data.draw(
            st.lists(
                st.sampled_from([0.0, 0.25, 0.5, 1.0]),
                min_size=shape[0] * shape[1],
                max_size=shape[0] * shape[1],
            )
        )
    ).reshape(shape)
    rows, columns = list(range(shape[0])), list(range(shape[1]))
    pairs = best_matching(rows, columns, lambda i, j: float(weights[i, j]))
    assert len({i for i, _ in pairs}) == len({j for _, j in pairs}) == len(pairs)
    assert all(weights[i, j] > 0 for i, j in pairs)
    short, long = sorted((rows, columns), key=len)
    is_turned = len(rows) > len(columns)
    sums = [
        sum(weights[j, i] if is_turned else weights[i, j] for i, j in zip(short, part, strict=True))
        for part in itertools.permutations(long, len(short))
    ]
    assert sum(weights[i, j] for i, j in pairs) == pytest.approx(max(sums, default=0.0))


def test_a_hundred_items_are_matched_in_no_time() -> None:
    numbers = list(range(100))
    pairs = best_matching(numbers, numbers[::-1], lambda i, j: float(i == j) + 0.1)
    assert [i + j for i, j in pairs] == [99] * 100


def test_texts_are_alike_from_one_half_on() -> None:
    assert similarity("Coca-Cola", "coca  cola") == pytest.approx(8 / 9)
    assert similarity("abcd", "abxy") == 0.0
    assert reading_order_distance("b\n a", "a b") == pytest.approx(2 / 3)
    assert reading_order_distance("a\n\n b", "a b") == 0.0
