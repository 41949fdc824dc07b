"""Charts in answers: DePlot's tables, mini's lists and plain answers, with scores and problems."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paligemma.charts import Chart
from paligemma.tasks.chart import ChartTask, kind_in, number_in, parse_chart, value_in
from paligemma.tasks.task import TaskContext
from tests.tasks.character_tokenizer import CharacterTokenizer

DEPLOT = (
    "TITLE | Favorable views, a bar chart <0x0A> Year | Democrats | Republicans <0x0A> "
    "2004 | 68.1% | 45.0% <0x0A> 2008 | | (3.5) <0x0A> 2012 | $1,200 | n/a"
)


@pytest.mark.parametrize("line_break", ["<0x0A>", "\n"])
def test_deplot_tables_are_series(line_break: str) -> None:
    chart = parse_chart(DEPLOT.replace("<0x0A>", line_break))
    assert (chart.title, chart.x_title) == ("Favorable views, a bar chart", "Year")
    assert chart.kind == "bar"
    assert chart.values == {
        "Democrats": {"2004": 68.1, "2012": 1200.0},
        "Republicans": {"2004": 45.0, "2008": -3.5, "2012": None},
    }
    assert [point.raw for point in chart.series[0]] == ["68.1%", "$1,200"]
    assert [str(problem) for problem in chart.problems] == [
        "malformed: The value of '2012' is not a number: 'n/a'."
    ]


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("CAT 3 ; A 5", {"CAT": 3, "A": 5}),
        ("A: 28, B: 55, C: 1,234", {"A": 28, "B": 55, "C": 1234}),
        ("A is 28 and B is 55", {"A": 28, "B": 55}),
        ("A - 28; B (55)", {"A": 28, "B": 55}),
        ("2004 45%\n2005 50%", {"2004": 45, "2005": 50}),
        ("28", {"": 28}),
        ("A | 28 <0x0A> B | 55", {"A": 28, "B": 55}),
        ("| x | y |\n|---|---|\n| a | 1 |", {"a": 1}),
    ],
)
def test_plain_answers_are_one_series(text: str, values: dict[str, float]) -> None:
    chart = parse_chart(text)
    [series] = chart.series
    assert {point.x: point.y for point in series} == values
    assert chart.problems == ()
    assert chart.kind is None


def test_a_score_is_the_probability_of_label_and_value(
    tokenizer: CharacterTokenizer, context: TaskContext
) -> None:
    generated = tokenizer.generation("CAT 3 ; A 5", logprob=-0.1)
    points = ChartTask().parse(generated, tokenizer, context).points
    # "CAT", " ", "3", " "; then "A", " ", "5" and EOS.
    assert [p.score for p in points] == pytest.approx([math.exp(-0.6), math.exp(-0.4)])
    cut = ChartTask().parse(tokenizer.generation("CAT 3 ; A 5", "length"), tokenizer, context)
    assert [problem.kind for problem in cut.problems] == ["cut"]


@pytest.mark.parametrize("text", ["", "I cannot tell.", "| | |", "A ; B", "TITLE | x"])
def test_answers_without_values_have_a_problem(text: str) -> None:
    chart = parse_chart(text)
    assert chart.points == ()
    assert chart.problems


def test_rows_of_another_length_are_problems() -> None:
    chart = parse_chart("Year | D | R\n2004 | 1\n2005 | 1 | 2 | 3")
    assert chart.values == {"D": {"2004": 1, "2005": 1}, "R": {"2005": 2}}
    assert ["expected 2" in problem.detail for problem in chart.problems] == [True, True]


def test_series_of_one_name_are_both_kept_and_told() -> None:
    chart = parse_chart("R | 2024 | 2024\nNorth | 1 | 2")
    assert [[point.y for point in series] for series in chart.series] == [[1], [2]]
    assert [problem.kind for problem in chart.problems] == ["repeated"]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1,234", 1234), ("1,5", 1.5), ("1.234", 1.234), ("1.234.567", 1234567), ("1 234", 1234),
        ("1.234,5 €", 1234.5), ("−5%", -5), ("-$5", -5), ("(12.3)", -12.3), ("1.2M", 1.2e6),
        ("12 million", 12e6), ("3m", 3), ("5 k", 5000), ("1e5", 1e5), ("٣", 3), (".5", 0.5),
        ("1e999", None), ("1,23,4", None), ("12abc34", None), ("NaN", None), ("", None),
        ("9" * 5000, None), ("Total", None), ("12 k€", 12e3), ("1,2 Mio. €", 1.2e6),
        ("$1.5bn", 1.5e9), ("3 M€", 3e6), ("5 km", 5), ("4 Mrd. EUR", 4e9), ("7 €", 7),
    ],
)  # fmt: skip
def test_numbers_are_read_with_their_units(text: str, number: float | None) -> None:
    assert number_in(text) == (None if number is None else pytest.approx(number))


def test_kinds_are_named() -> None:
    assert [kind_in(t) for t in ("Pie", "a stacked bar graph", "line plot", "barometer")] == [
        "pie",
        "bar",
        "line",
        None,
    ]


@given(st.text(st.sampled_from("ab1 9.,;|\n%$-()é\x1b<0xA>e"), max_size=60))
def test_nothing_that_a_model_writes_raises(text: str) -> None:
    chart = parse_chart(text)
    assert isinstance(chart, Chart)
    assert chart.points or chart.problems
    assert all(point.y is None or math.isfinite(point.y) for point in chart.points)
    assert "\x1b" not in str(chart)
    chart.to_json()
    chart.to_csv(safe=True)


def test_long_answers_take_no_time() -> None:
    for text in ("1 " * 8000, "a" + " " * 16000 + "b", "| " * 8000, "1," * 8000):
        parse_chart(text)
    chart = parse_chart(";".join(f"A{i} 1" for i in range(11_000)))
    assert len(chart.points) == 10_000
    assert [problem.kind for problem in chart.problems] == ["cut"]


@pytest.mark.parametrize(
    ("text", "value"),
    [("The value is 12 k€.", "12 k€"), ("3,5 Mio. €", "3,5 Mio. €"), ("it was 5 €M", "5 €M")],
)
def test_the_value_of_an_answer_has_its_unit(text: str, value: str) -> None:
    assert value_in(text) == value
