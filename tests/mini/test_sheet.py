"""Tables, charts and forms: the truth they tell must be the truth of the picture."""

from itertools import pairwise

import numpy as np
import pytest

from mini.sheet import MAX_VALUE, SHEET_KINDS, Sheet, make_sheet
from paligemma.errors import OptionError


@pytest.fixture(scope="module")
def tables() -> list[Sheet]:
    return [make_sheet("train", seed=3, index=index, kind="table") for index in range(150)]


@pytest.fixture(scope="module")
def charts() -> list[Sheet]:
    return [make_sheet("train", seed=3, index=index, kind="chart") for index in range(150)]


@pytest.fixture(scope="module")
def forms() -> list[Sheet]:
    return [make_sheet("train", seed=3, index=index, kind="form") for index in range(150)]


def test_same_arguments_give_the_same_sheet_and_image() -> None:
    first, second = (make_sheet("test", seed=1, index=7) for _ in range(2))
    assert first == second
    assert np.array_equal(first.draw(128), second.draw(128))


def test_splits_seeds_and_indices_give_different_sheets() -> None:
    sheet = make_sheet("train", seed=1, index=7, kind="table")
    others = [("test", 1, 7), ("train", 2, 7), ("train", 1, 8)]
    for split, seed, index in others:
        assert make_sheet(split, seed, index, kind="table") != sheet  # type: ignore[arg-type]


def test_all_kinds_come_where_none_is_asked_for() -> None:
    kinds = [make_sheet("train", seed=1, index=index).kind for index in range(100)]
    assert all(20 < kinds.count(kind) < 50 for kind in SHEET_KINDS)


@pytest.mark.parametrize(("split", "seed", "index"), [("val", 0, 0), ("test", -1, 0)])
def test_a_sheet_that_does_not_exist_is_refused(split: str, seed: int, index: int) -> None:
    with pytest.raises(OptionError, match="There is no sheet"):
        make_sheet(split, seed, index)  # type: ignore[arg-type]


def test_everything_lies_inside_the_image(
    tables: list[Sheet], charts: list[Sheet], forms: list[Sheet]
) -> None:
    for sheet in tables + charts + forms:
        boxes = [word.box_xyxy for word in sheet.words]
        boxes += [patch.box_xyxy for patch in sheet.patches]
        for x0, y0, x1, y1 in boxes:
            assert 0 <= x0 < x1 <= 1
            assert 0 <= y0 < y1 <= 1


def test_cells_stand_in_reading_order(tables: list[Sheet]) -> None:
    for table in tables:
        assert 2 <= len(table.rows) <= 4
        assert len({len(row) for row in table.rows} & {2, 3}) == 1
        assert [word.text for word in table.words] == [cell for row in table.rows for cell in row]
        num_columns = len(table.rows[0])
        for i, (one, other) in enumerate(pairwise(table.words)):
            if (i + 1) % num_columns:
                assert one.box_xyxy[2] < other.box_xyxy[0]
            else:
                assert one.box_xyxy[3] < other.box_xyxy[1]
        for name, *numbers in table.rows:
            assert name.isupper()
            assert all(0 <= int(number) <= 99 for number in numbers)


def test_the_height_of_a_bar_is_its_value(charts: list[Sheet]) -> None:
    seen = set()
    for chart in charts:
        bars = chart.patches[-len(chart.rows) :]
        # The lines at every value come first, from 0 upward.
        lines = [patch.box_xyxy[1] for patch in chart.patches[: MAX_VALUE + 1]]
        for patch, (label, value) in zip(bars, chart.bars, strict=True):
            assert patch.box_xyxy[1] == lines[value]
            assert patch.box_xyxy[3] == lines[0]
            (under,) = [word for word in chart.words if word.text == label]
            middle = (patch.box_xyxy[0] + patch.box_xyxy[2]) / 2
            assert middle == pytest.approx((under.box_xyxy[0] + under.box_xyxy[2]) / 2)
            seen.add(value)
        assert [patch.box_xyxy[0] for patch in bars] == sorted(p.box_xyxy[0] for p in bars)
    assert seen == set(range(1, MAX_VALUE + 1))


def test_a_bar_is_drawn_in_its_color(charts: list[Sheet]) -> None:
    for chart in charts[:30]:
        picture = chart.draw(200)
        for patch in chart.patches[-len(chart.rows) :]:
            x0, y0, x1, y1 = (edge * 200 for edge in patch.box_xyxy)
            pixel = picture[int((y0 + y1) / 2), int((x0 + x1) / 2)]
            assert tuple(pixel.tolist()) == patch.color


def test_fields_stand_under_a_heading_in_two_columns(forms: list[Sheet]) -> None:
    for form in forms:
        (heading,), *fields = form.rows
        assert heading in ("BILL", "CLINIC", "SHOP")
        assert 3 <= len(fields) <= 6
        assert len({label for label, _ in fields}) == len(fields)
        texts = [text for row in form.rows for text in row]
        assert [word.text for word in form.words] == texts
        edge = form.words[0].box_xyxy[3]
        for label, value in zip(form.words[1::2], form.words[2::2], strict=True):
            assert edge < label.box_xyxy[1]
            assert label.box_xyxy[2] < value.box_xyxy[0]
            assert label.box_xyxy[1] < sum(value.box_xyxy[1::2]) / 2 < label.box_xyxy[3]
            edge = max(label.box_xyxy[3], value.box_xyxy[3])


def test_print_stands_out_from_the_paper(
    tables: list[Sheet], charts: list[Sheet], forms: list[Sheet]
) -> None:
    weights = np.array([0.299, 0.587, 0.114]) / 255
    for sheet in tables + charts + forms:
        for word in sheet.words:
            assert abs(np.dot(word.color, weights) - np.dot(sheet.paper, weights)) > 0.5
