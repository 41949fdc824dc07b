"""Charts as SVG."""

from __future__ import annotations

import math
import sys
import xml.etree.ElementTree as ElementTree

import pytest

from paligemma.errors import MissingExtraError
from paligemma.report.charts import Bin, Curve, check_charts, line_chart, reliability_chart

pytest.importorskip("matplotlib", reason="the extra 'train' is not installed")


def texts(svg: str) -> set[str]:
    return {"".join(node.itertext()) for node in ElementTree.fromstring(svg).iter(f"{SVG}text")}


SVG = "{http://www.w3.org/2000/svg}"


def test_a_chart_is_a_document_whose_texts_are_escaped() -> None:
    svg = line_chart([Curve(name="<$loss>", points=[(1, 3.0), (2, 1.0), (3, 2.0)])], x_name="step")
    assert svg.startswith("<svg")
    assert {"<$loss>", "step"} <= texts(svg)


def test_the_same_chart_is_the_same_text() -> None:
    curves = [Curve(name="loss", points=[(1, 3.0), (2, 1.0)])]
    assert line_chart(curves, x_name="step") == line_chart(curves, x_name="step")


def test_points_that_are_not_finite_are_left_out() -> None:
    points = [(1, 1.0), (2, 2.0), (3, math.nan), (4, 2.0), (5, 1.0)]
    assert "nan" not in line_chart([Curve(name="loss", points=points)], x_name="step")
    assert line_chart([Curve(name="map", points=[(5, math.nan)])], x_name="step") == ""


def test_a_single_point_is_a_dot() -> None:
    svg = line_chart([Curve(name="map", points=[(5, 0.5)])], x_name="step")
    root = ElementTree.fromstring(svg)
    line = next(node for node in root.iter(f"{SVG}g") if node.get("id", "").startswith("line2d"))
    assert list(root.iter(f"{SVG}use"))
    assert line is not None


def test_a_reliability_chart_has_one_panel_per_title() -> None:
    bars = [
        Bin(low=0.0, high=0.5, count=3, confidence=0.3, accuracy=0.2),
        Bin(low=0.5, high=1.0, count=9, confidence=0.8, accuracy=0.9),
    ]
    svg = reliability_chart([("before", bars), ("after", bars), ("empty", [])])
    assert {"before", "after", "empty", "score", "fraction correct"} <= texts(svg)


def test_without_matplotlib_the_message_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'paligemma\[eval\]'"):
        check_charts("eval", "Drawing")
