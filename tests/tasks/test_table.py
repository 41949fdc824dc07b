"""Tables in answers: HTML as models write it, with scores, boxes and everything that goes wrong."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paligemma.tables import Table
from paligemma.tasks.table import TableTask, parse_table
from paligemma.tasks.task import TaskContext
from tests.tasks.character_tokenizer import CharacterTokenizer


def test_cells_have_texts_spans_and_headers() -> None:
    table = parse_table(
        "<table><thead><tr><th colspan=2>Name</th><td>Age</td></tr></thead><tbody>"
        "<tr><td rowspan='2'>Ann</td><td>B.<br>C.</td><td><b>4</b>1</td></tr>"
        "<tr><td>D &amp; E</td><td></td></tr></tbody></table>"
    )
    assert table.rows() == [
        ["Name", "Name", "Age"],
        ["Ann", "B.\nC.", "41"],
        ["Ann", "D & E", ""],
    ]
    assert table.rows("blank")[2] == ["", "D & E", ""]
    assert table.problems == ()
    assert (table.num_header_rows, [cell.is_header for cell in table.cells[:2]]) == (1, [True] * 2)
    corner = table[1, 0]
    assert corner is not None
    assert (corner.text, corner.rowspan, corner.colspan) == ("Ann", 2, 1)
    assert table[2] == (corner, table[2, 1], table[-1, -1])


def test_a_score_is_the_probability_of_the_text_and_its_end(
    tokenizer: CharacterTokenizer, context: TaskContext
) -> None:
    generated = tokenizer.generation("<table><tr><td>ab</td><td></td></tr></table>", logprob=-0.5)
    cells = TableTask().parse(generated, tokenizer, context).cells
    # Its characters are its tokens, and the "<" after them ends the text.
    assert [cell.score for cell in cells] == pytest.approx([math.exp(-1.5), math.exp(-0.5)])
    assert cells[0].unsure
    assert not cells[1].unsure


def test_the_end_of_the_answer_ends_a_text(
    tokenizer: CharacterTokenizer, context: TaskContext
) -> None:
    ended = TableTask().parse(tokenizer.generation("<table><tr><td>ab"), tokenizer, context)
    assert ended.cells[0].score == pytest.approx(math.exp(-1.5))  # with EOS
    cut = TableTask().parse(tokenizer.generation("<table><tr><td>ab", "length"), tokenizer, context)
    assert cut.cells[0].score == pytest.approx(math.exp(-1.0))
    assert [problem.kind for problem in cut.problems] == ["cut"]
    assert "max_new_tokens" in str(cut)


def test_coords_are_boxes_with_x_first(tokenizer: CharacterTokenizer, context: TaskContext) -> None:
    text = (
        '<table><tr><td coords="<loc0000><loc0341><loc0682><loc1023>">Total</td>'
        "<td coords=<loc0000><loc0000><loc1023><loc1023>>7</td><td></td></tr></table>"
    )
    for table in (
        TableTask().parse(tokenizer.generation(text), tokenizer, context),
        parse_table(text, (640, 480)),
    ):
        first, second, empty = table.cells
        assert first.box_xyxy == pytest.approx((0, 160, 640 * 2 / 3, 480))
        assert (first.text, second.text, second.box_xyxy) == ("Total", "7", (0, 0, 640, 480))
        assert empty.box_xyxy is None
        assert table.problems == ()
        assert table.text == text


@pytest.mark.parametrize(
    ("attribute", "detail"),
    [
        ("coords=<loc0001><loc0002>", "2 locations"),
        ("coords=<loc0009><loc0002><loc0003><loc0004>", "no area"),
        ("<loc0001><loc0002><loc0003><loc0004>", "4 locations"),
        ("colspan=1000000000", "read as 1"),
        ("rowspan=0", "read as 1"),
    ],
)
def test_attributes_that_mean_nothing_are_problems(attribute: str, detail: str) -> None:
    table = parse_table(f"<table><tr><td {attribute}>a</td><td>b</td></tr></table>", (100, 100))
    assert table.rows() == [["a", "b"]]
    assert [cell.box_xyxy for cell in table.cells] == [None, None]
    assert [detail in problem.detail for problem in table.problems] == [True]


@pytest.mark.parametrize(
    ("text", "rows", "problem"),
    [
        ("<table><tr><td>a<td>b<tr><td>c", [["a", "b"], ["c", ""]], ""),
        ("<td>a</td><td>b</td>", [["a", "b"]], ""),
        ("<table><tr><td>a</td></tr><td>b</td></table>", [["a"], ["b"]], ""),
        ("<table><tr><td rowspan=9>a</td><td>b</td></tr></table>", [["a", "b"]], ""),
        ("<tr><td>a<table><tr><td>b</td></tr></table></td><td>c</td></tr>", [["a\nb", "c"]], ""),
        ("so: <table><tr><td>a</td></tr></table> bye", [["a"]], "'bye'"),
        ("<table><tr><td>a</td></tr></table><table><td>b</table>", [["a"]], "another table"),
        ("<table><tr><td>a</td><td", [["a"]], "ends within a tag"),
        ("<table><tr><td>a<loc0001></td></tr></table>", [["a"]], "outside of coords"),
        (
            "<tr><td>a</td><td rowspan=2>b</td></tr><tr><td colspan=2>c</td></tr>",
            [["a", "b"], ["c", "b"]],
            "another one",
        ),
        ("I see no table.", [], "Text outside of cells: 'I see no table.'"),
        ("<table></table>", [], "no cells"),
        ("", [], "no cells"),
    ],
)
def test_malformed_tables_are_read_as_far_as_possible(
    text: str, rows: list[list[str]], problem: str
) -> None:
    table = parse_table(text)
    assert table.rows() == rows
    assert bool(table.problems) == bool(problem)
    assert any(problem in str(p) for p in table.problems) or not problem
    last = len(text)
    assert all(0 <= p.token_span[0] <= p.token_span[1] <= last for p in table.problems)


def test_large_tables_are_read_and_endless_ones_cut() -> None:
    table = parse_table("<table>" + ("<tr>" + "<td>x</td>" * 100) * 100)
    assert (table.num_rows, table.num_columns, len(table.cells)) == (100, 100, 10_000)
    endless = parse_table("<tr><td colspan=100 rowspan=100>x</td></tr>" * 300)
    assert endless.num_rows * endless.num_columns <= 20_000
    assert [problem.kind for problem in endless.problems].count("cut") == 1


PIECES = (
    *("<table>", "</table>", "<tr>", "<td>", "</td>", "<th colspan=2>", "<td rowspan=3>", "</tr>"),
    *("<caption>", "</caption>", "<b>", "<br>", "<thead>", "a", "&lt;", "<", "<loc0007>"),
    *('coords="', "<script>", "\n", "é", "\x1b", "="),
)


@given(st.lists(st.sampled_from(PIECES), max_size=30))
def test_nothing_that_a_model_writes_raises(pieces: list[str]) -> None:
    table = parse_table("".join(pieces), (30, 20))
    assert isinstance(table, Table)
    rows = table.rows()
    assert len(rows) == table.num_rows
    for cell in table.cells:
        assert 0 <= cell.row < table.num_rows
        assert cell.row + cell.rowspan <= table.num_rows
    again = parse_table(table.to_html())
    if not any("another one" in str(problem) for problem in table.problems):
        expected = [[" ".join(text.split()) for text in row] for row in table.rows()]
        without_control = [[text.replace("\x1b", "\\x1b") for text in row] for row in expected]
        assert [[" ".join(text.split()) for text in row] for row in again.rows()] == without_control
    assert "\x1b" not in str(table) + table.to_html()
    table.to_json()
    table.to_csv(safe=True)
