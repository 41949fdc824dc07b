"""Tables and charts as results: HTML, CSV, data frames and text, also of hostile contents."""

from __future__ import annotations

import csv
import io
import json
import math

import pytest

from paligemma.charts import Chart, Point, Series
from paligemma.errors import OptionError
from paligemma.escaping import columns_of_text, visible, without_formula
from paligemma.tables import Cell, Table
from paligemma.tasks import parse_chart, parse_table

HOSTILE = (
    "<script>alert(1)</script>",
    '=HYPERLINK("http://x")',
    "a\x1b[2J\x00b",
    "\u202etxt",
    "-5",
)
TABLE = Table(
    cells=(
        Cell(text="Deposits and others", row=0, column=0, colspan=2, is_header=True, score=0.9),
        Cell(text="Date", row=1, column=0, is_header=True, score=0.2),
        Cell(text="Credits", row=1, column=1, is_header=True, score=math.nan),
        Cell(text="2/4", row=2, column=0, rowspan=2, score=0.4),
        Cell(text="445", row=2, column=1, score=0.95, box_xyxy=(1, 2, 3, 4)),
        Cell(text="300", row=3, column=1, score=0.95),
    )
)
HOSTILE_TABLE = Table(
    cells=tuple(Cell(text=text, row=0, column=i) for i, text in enumerate(HOSTILE)),
    title="<img src=x onerror=alert(1)>",
)


def test_html_has_the_spans_and_is_escaped() -> None:
    assert TABLE.to_html().replace("\n", "") == (
        '<table><thead><tr><th colspan="2">Deposits and others</th></tr>'
        "<tr><th>Date</th><th>Credits</th></tr></thead>"
        '<tr><td rowspan="2">2/4</td><td>445</td></tr><tr><td>300</td></tr></table>'
    )
    assert HOSTILE_TABLE.to_html().replace("\n", "") == (
        "<table><caption>&lt;img src=x onerror=alert(1)&gt;</caption>"
        "<tr><td>&lt;script&gt;alert(1)&lt;/script&gt;</td>"
        "<td>=HYPERLINK(&quot;http://x&quot;)</td><td>a\\x1b[2J\\x00b</td><td>\\u202etxt</td>"
        "<td>-5</td></tr></table>"
    )


def test_csv_repeats_spans_or_leaves_them_blank() -> None:
    header = "Deposits and others,Deposits and others\nDate,Credits\n"
    assert TABLE.to_csv() == f"{header}2/4,445\n2/4,300\n"
    assert TABLE.to_csv("blank") == "Deposits and others,\nDate,Credits\n2/4,445\n,300\n"
    with pytest.raises(OptionError, match="spans"):
        TABLE.to_csv("merge")  # type: ignore[arg-type]


def test_control_characters_are_written_out_in_csv() -> None:
    table = parse_table("<table><tr><td>\x1b[2Jz</td></tr></table>")
    chart = parse_chart("\x1b[31mA 5")
    for text in (table.to_csv(), table.to_csv(safe=True), chart.to_csv(), chart.to_csv(safe=True)):
        assert "\x1b" not in text
        assert "\\x1b[" in text


def test_formulas_are_quoted_only_on_request() -> None:
    [row] = csv.reader(io.StringIO(HOSTILE_TABLE.to_csv()))
    assert tuple(row) == tuple(map(visible, HOSTILE))
    [row] = csv.reader(io.StringIO(HOSTILE_TABLE.to_csv(safe=True)))
    assert row == [HOSTILE[0], f"'{HOSTILE[1]}", *map(visible, HOSTILE[2:])]
    assert [
        without_formula(text)[0] for text in ("+1+1", "@A", " =1", "＝1", "-2-3|cmd", "\ufeff=1")
    ] == ["'"] * 6
    assert [without_formula(text) for text in ("-5.20", "+49 30", "")] == ["-5.20", "+49 30", ""]


def test_text_is_aligned_and_without_control_characters() -> None:
    assert str(TABLE).split("\n") == [
        "Deposits and others",
        "Date                 Credits",
        "2/4                  445",
        "                     300",
        "unsure: Date 0.20, 2/4 0.40",
    ]
    assert "\x1b" not in str(HOSTILE_TABLE)
    assert "a\\x1b[2J\\x00b" in str(HOSTILE_TABLE)
    assert columns_of_text([["日本", "1"], ["a" * 99, "2"]]) == [
        f"日本{' ' * 36}  1",
        f"{'a' * 39}…  2",
    ]
    many = Table(cells=tuple(Cell(text="x", row=row, column=0) for row in range(150)))
    assert str(many).endswith("x\n... 50 more rows")


def test_unsure_cells_come_first_and_json_has_no_nan() -> None:
    assert [cell.text for cell in TABLE.unsure()] == ["Date", "2/4"]
    cells = json.loads(TABLE.to_json())["cells"]
    assert cells[2]["score"] is None
    assert cells[4]["box_xyxy"] == [1, 2, 3, 4]


@pytest.mark.parametrize("position", [4, -5, (0, 2), (0, -3), (4, 0)])
def test_positions_outside_are_errors(position: int | tuple[int, int]) -> None:
    with pytest.raises(IndexError, match="4 rows and 2 columns"):
        TABLE[position]


def test_data_frames_have_the_header_as_columns() -> None:
    pytest.importorskip("pandas")
    frame = TABLE.to_dataframe()
    assert list(frame.columns) == [
        ("Deposits and others", "Date"),
        ("Deposits and others", "Credits"),
    ]
    assert frame.values.tolist() == [["2/4", "445"], ["2/4", "300"]]
    assert TABLE.to_dataframe(0).shape == (4, 2)
    assert Table(cells=()).to_dataframe().empty


CHART = Chart(
    series=(
        Series(name="=A", points=(Point(x="2004", y=68.1, raw="68.1%", score=0.9),)),
        Series(name="B", points=(Point(x="2004", y=None, raw="\x1b", score=0.1),)),
    ),
    kind="bar",
    title="Views\n",
    x_title="Year",
)


def test_charts_are_tables_of_points() -> None:
    assert CHART.to_csv() == (
        "series,x,y,raw,score\n=A,2004,68.1,68.1%,0.9000\nB,2004,,\\x1b,0.1000\n"
    )
    assert "'=A," in CHART.to_csv(safe=True)
    assert (
        str(CHART)
        == "bar chart: Views\nYear  =A     B\n2004  68.1%  \\x1b\nunsure: 2004 \\x1b 0.10"
    )
    assert [point.raw for point in CHART.unsure()] == ["\x1b"]
    assert json.loads(CHART.to_json())["series"][0]["points"][0]["y"] == 68.1
    pandas = pytest.importorskip("pandas")
    frame = CHART.to_dataframe()
    assert frame["series"].tolist() == ["=A", "B"]
    assert pandas.isna(frame["y"][1])
