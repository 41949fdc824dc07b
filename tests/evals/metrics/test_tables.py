"""TEDS and GriTS, against the reference's figures and by hand, on tables good and broken."""

import json
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paligemma.errors import DataError, MissingExtraError
from paligemma.evals.metrics.tables import Grits, Teds, parse_table, table_cells
from paligemma.tables import Cell

pytest.importorskip("apted", reason="the eval extra is not installed")
pytest.importorskip("rapidfuzz", reason="the eval extra is not installed")
pytest.importorskip("lxml", reason="the eval extra is not installed")

ROWS = st.lists(
    st.lists(st.text("ab é日", max_size=4), min_size=2, max_size=2), min_size=1, max_size=4
)

# TEDS-struct of the thirteen tables of teds.json, by the reference implementation.
STRUCTURE_SCORES = [
    1.0,
    0.971830985915493,
    0.9652173913043478,
    0.9010989010989011,
    1.0,
    0.8186046511627907,
    0.8070175438596492,
    1.0,
    1.0,
    0.6582278481012658,
    1.0,
    1.0,
    1.0,
]

# GriTS-Top and GriTS-Con of the same, by the authors' published code; the fourth it cannot read.
GRITS_SCORES = [
    (1.0, 1.0),
    (0.9777777777777777, 0.9135672514619883),
    (0.9642857142857143, 0.9606814401153724),
    None,
    (1.0, 0.9925696594427245),
    (0.8481012658227848, 0.5871762246377104),
    (0.7948717948717948, 0.7948717948717948),
    (1.0, 0.8877417970555226),
    (1.0, 1.0),
    (0.6750392464678179, 0.7117200202223285),
    (1.0, 1.0),
    (1.0, 1.0),
    (1.0, 0.9670250896057349),
]


def table(*rows: str) -> str:
    return "<table>" + "".join(f"<tr>{row}</tr>" for row in rows) + "</table>"


def as_html(rows: list[list[str]]) -> str:
    return table(*("".join(f"<td>{cell}</td>" for cell in row) for row in rows))


def grits(prediction: str, reference: str) -> tuple[float, float]:
    return (
        Grits(of="topology").score([prediction], [reference]).value,
        Grits(of="content").score([prediction], [reference]).value,
    )


def test_teds_prints_the_figures_of_the_reference(shared_data: Path) -> None:
    cases = json.loads((shared_data / "metrics" / "teds.json").read_text())["cases"]
    predictions = [case["pred_html"] for case in cases]
    references = [case["true_html"] for case in cases]
    result = Teds().score(predictions, references)
    expected = [case["teds"] for case in cases]
    assert result.per_example == pytest.approx(expected, abs=1e-12)
    structure = Teds(structure_only=True).score(predictions, references)
    assert structure.per_example == pytest.approx(STRUCTURE_SCORES, abs=1e-12)


def test_grits_is_that_of_the_authors(shared_data: Path) -> None:
    cases = json.loads((shared_data / "metrics" / "teds.json").read_text())["cases"]
    for case, expected in zip(cases, GRITS_SCORES, strict=True):
        if expected is not None:
            assert grits(case["pred_html"], case["true_html"]) == pytest.approx(expected, abs=1e-12)


def test_annotated_tables_are_grids_without_holes(shared_data: Path) -> None:
    path = shared_data / "metrics" / "tables" / "tables.json"
    tables = json.loads(path.read_text())["tables"]
    for case in tables:
        cells = iter(case["html"]["cells"])
        html = "<table>"
        for token in case["html"]["structure"]["tokens"]:
            if token == "</td>":
                html += "".join(next(cells)["tokens"])
            html += token
        html += "</table>"
        parsed = parse_table(html)
        assert parsed is not None
        found = table_cells(parsed)
        assert found is not None
        assert len(found) == len(case["html"]["cells"])
        places = [place for cell in found for place in cell.positions()]
        assert len(places) == len(set(places))
        rows, columns = (max(place[axis] for place in places) + 1 for axis in (0, 1))
        assert len(places) == rows * columns
        assert grits(html, html) == (1.0, 1.0)
        assert Teds().score([html], [html]).value == 1.0


@pytest.mark.parametrize(
    ("prediction", "reference", "teds", "struct"),
    [
        # One row of two cells is three nodes below the table.
        (table("<td>ab</td><td>c</td>"), table("<td>ab</td><td>c</td>"), 1.0, 1.0),
        (table("<td>ax</td><td>c</td>"), table("<td>ab</td><td>c</td>"), 1 - 0.5 / 3, 1.0),
        (table("<td>ab</td>"), table("<td>ab</td><td>c</td>"), 1 - 1 / 3, 1 - 1 / 3),
        (table("<td colspan=2>a</td>"), table("<td>a</td>"), 1 - 1 / 2, 1 - 1 / 2),
        # A tag is one character of the content and, in the size of the table, one node more.
        (table("<td><b>a</b></td>"), table("<td>a</td>"), 1 - (2 / 3) / 3, 1.0),
        ("<table></table>", table("<td>a</td>"), 0.0, 0.0),
        # A row to insert, a cell to delete, a text to change: 3 edits, on 2 nodes.
        ("<table><td><td>", table("<td>a</td>"), 0.0, 0.0),
        ("no table", table("<td>a</td>"), 0.0, 0.0),
        ("", table("<td>a</td>"), 0.0, 0.0),
        ("<table></table>", "<table></table>", 1.0, 1.0),
        # Header cells are nodes without text, as in the reference.
        (table("<th>a</th>"), table("<th>b</th>"), 1.0, 1.0),
        (table("<td>&lt;</td>"), table("<td><</td>"), 1.0, 1.0),
        (table("<td>日本</td>"), table("<td>日木</td>"), 1 - 0.5 / 2, 1.0),
    ],
)
def test_teds_by_hand(prediction: str, reference: str, teds: float, struct: float) -> None:
    assert Teds().score([prediction], [reference]).value == pytest.approx(teds)
    assert Teds(structure_only=True).score([prediction], [reference]).value == pytest.approx(struct)


def test_header_cells_can_count_as_cells() -> None:
    metric = Teds(th_as_td=True)
    assert metric.score([table("<th>a</th>")], [table("<th>b</th>")]).value == 0.5
    assert metric.score([table("<th>a</th>")], [table("<td>a</td>")]).value == 1.0


@pytest.mark.parametrize(
    ("prediction", "reference", "top", "con"),
    [
        (table("<td>ab</td><td>c</td>"), table("<td>ab</td><td>c</td>"), 1.0, 1.0),
        # A column is missing: of two places one is found, precision 1 and recall 1/2.
        (table("<td>ab</td>"), table("<td>ab</td><td>c</td>"), 2 / 3, 2 / 3),
        # "ax" beside "ab": 2 * 1 / 4.
        (table("<td>ax</td><td>c</td>"), table("<td>ab</td><td>c</td>"), 1.0, 0.75),
        # One cell of two columns beside two cells: at both places 1/2 of the span, text at one.
        (table("<td colspan=2>ab</td>"), table("<td>ab</td><td></td>"), 0.5, 0.5),
        ("nothing", table("<td>a</td>"), 0.0, 0.0),
        (table("<td></td>"), table("<td></td>"), 1.0, 1.0),
        (table("<td>é日</td>"), table("<td>é本</td>"), 1.0, 0.5),
    ],
)
def test_grits_by_hand(prediction: str, reference: str, top: float, con: float) -> None:
    assert grits(prediction, reference) == pytest.approx((top, con))


def test_grits_gives_precision_and_recall() -> None:
    result = Grits(of="content").score([table("<td>a</td>")], [table("<td>a</td>", "<td>b</td>")])
    assert result.details == {"precision": 1.0, "recall": 0.5}


def test_a_spanning_cell_takes_its_places_from_the_rows_below() -> None:
    html = table("<td rowspan=2>a</td><td colspan=2>b</td>", "<td>c</td><td>d</td>")
    parsed = parse_table(html)
    assert parsed is not None
    assert table_cells(parsed) == [
        Cell(text="a", row=0, column=0, rowspan=2),
        Cell(text="b", row=0, column=1, colspan=2),
        Cell(text="c", row=1, column=1),
        Cell(text="d", row=1, column=2),
    ]


@pytest.mark.parametrize(
    "broken",
    [
        "<table><tr><td>a<td>b<tr><td>c<td>d",
        "<table><tr><td>a</td></b><td>b</tr></td><tr><td>c</td><td>d</td></tr></table>",
        "text <html><body><table><tr><td>a</td><td>b</td></tr><tr><td>c</td><td>d</td",
    ],
)
def test_broken_html_is_read_like_a_browser_reads_it(broken: str) -> None:
    parsed = parse_table(broken)
    assert parsed is not None
    cells = table_cells(parsed)
    assert cells is not None
    assert [(cell.row, cell.column) for cell in cells] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert [cell.text for cell in cells][:3] == ["a", "b", "c"]


@pytest.mark.parametrize("span", ["99999999999", "0", "-3", "x", "", "²"])
def test_a_span_that_makes_no_sense_is_bounded(span: str) -> None:
    parsed = parse_table(f"<table><tr><td colspan='{span}' rowspan='{span}'>a</td></tr></table>")
    assert parsed is not None
    cells = table_cells(parsed)
    assert cells is not None
    (cell,) = cells
    assert (cell.rowspan, cell.colspan) in {(1, 1), (100, 100)}


def test_a_model_that_repeats_itself_does_not_break_the_scores() -> None:
    truth = table("<td>a</td>")
    for endless in ("<b>", "<table>", "<div>", "<td>", "<tr>"):
        html = "<table><tr><td>" + endless * 3000
        assert 0.0 <= Teds().score([html], [truth]).value <= 1.0
        assert 0.0 <= Grits().score([html], [truth]).value <= 1.0


@pytest.mark.parametrize("end", ["</td", "<b", "<", " <3", "</", '<td colspan="2', "<!-- "])
def test_a_tag_that_is_cut_off_is_no_text_of_the_cell(end: str) -> None:
    parsed = parse_table(f"<table><tr><td>d{end}")
    assert parsed is not None
    cells = table_cells(parsed)
    assert cells is not None
    (cell,) = cells
    assert cell.text == ("d" + end if end in ("<", " <3") else "d")
    assert parse_table("<table><tr><td>" + "<a " * 20_000) is not None  # and soon


def test_spans_that_blow_a_table_up_score_nothing_and_end_soon() -> None:
    truth = table(*["<td>a</td>" * 10] * 20)
    vast = table('<td colspan="100" rowspan="100">a</td>' * 300)
    sparse = table("<td>a</td>" * 300, *["<td>a</td>"] * 300)
    for html in (vast, sparse):
        parsed = parse_table(html)
        assert parsed is not None
        assert table_cells(parsed) is None
        assert grits(html, truth) == (0.0, 0.0)
        with pytest.raises(DataError, match="or one of too many cells"):
            grits(truth, html)
    assert grits(truth, truth) == (1.0, 1.0)


@settings(deadline=None, derandomize=True)
@given(ROWS, ROWS)
def test_similarities_are_between_0_and_1_and_a_table_is_like_itself(
    first: list[list[str]], second: list[list[str]]
) -> None:
    one, other = as_html(first), as_html(second)
    for score in (Teds().score([one], [other]).value, *grits(one, other)):
        assert -1e-12 <= score <= 1 + 1e-12
    assert grits(one, one) == pytest.approx((1.0, 1.0))
    assert Teds().score([one], [one]).value == 1.0
    swapped = Teds().score([other], [one]).value
    assert Teds().score([one], [other]).value == pytest.approx(swapped)


@settings(deadline=None, derandomize=True)
@given(
    st.lists(
        st.sampled_from(["<td>", "</td>", "<tr>", "</tr>", "<b>", "</b>", "a", "<table>"]),
        max_size=20,
    ).map("".join)
)
def test_no_prediction_breaks_the_scores(html: str) -> None:
    truth = table("<td>a</td>")
    for score in (Teds().score([html], [truth]).value, *grits(html, truth)):
        assert -1e-12 <= score <= 1 + 1e-12


def test_a_truth_without_a_table_is_refused() -> None:
    for metric in (Teds(), Grits()):
        with pytest.raises(DataError, match="reference of example 1 has no <table>"):
            metric.score([table("<td>a</td>")] * 2, [table("<td>a</td>"), "<tr><td>a</td></tr>"])


def test_without_the_extra_the_message_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "apted", None)
    with pytest.raises(MissingExtraError, match=r"TEDS needs .*pip install 'paligemma\[eval\]'"):
        Teds().score([table("<td>a</td>")], [table("<td>b</td>")])
