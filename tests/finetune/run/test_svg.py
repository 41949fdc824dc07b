"""Curves as SVG."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree

from paligemma.finetune.run.svg import Curve, line_chart, smoothed


def parse(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)


def test_a_chart_is_well_formed_and_names_its_curves() -> None:
    svg = line_chart([Curve(name="<loss>", points=[(1, 3.0), (2, 1.0), (3, 2.0)])], x_name="step")
    figure = parse(svg)
    line = figure.find(".//polyline")
    assert line is not None
    heights = [float(place.split(",")[1]) for place in line.attrib["points"].split()]
    assert heights[0] < heights[2] < heights[1]  # upward is towards zero
    assert "&lt;loss&gt;" in svg


def test_a_gap_parts_the_line() -> None:
    points = [(1, 1.0), (2, 2.0), (3, math.nan), (4, 2.0), (5, 1.0)]
    figure = parse(line_chart([Curve(name="loss", points=points)], x_name="step"))
    assert len(figure.findall(".//polyline")) == 2
    assert "nan" not in ElementTree.tostring(figure).decode()


def test_one_point_is_a_dot_and_none_is_no_chart() -> None:
    figure = parse(line_chart([Curve(name="map", points=[(5, 0.5)])], x_name="step"))
    assert len(figure.findall(".//circle")) == 1
    assert line_chart([Curve(name="map", points=[(5, math.nan)])], x_name="step") == ""


def test_smoothing_leaves_out_what_is_not_finite() -> None:
    assert smoothed([2.0, math.nan, 4.0], 3) == [2.0, 2.0, 3.0]
