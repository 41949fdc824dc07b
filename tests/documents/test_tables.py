"""Tables and charts on pages: by models that know the answer, and by mini on what it was shown."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from mini.sheet import make_sheet
from paligemma.documents import ChartOptions, PartOptions, read_chart, read_table
from paligemma.errors import DocumentError, NumericalError, OptionError
from paligemma.predictor import Predictor
from tests.documents.scripted import ScriptedModel

STATEMENT = (
    '<table><thead><tr><th rowspan="2">Date</th><th rowspan="2">Description</th>'
    '<th rowspan="2">Details</th><th colspan="2">Deposits and others Debits</th></tr>'
    "<tr><th>Credits</th><th>Debits</th></tr></thead>"
    '<tr><td rowspan="3" coords="<loc0000><loc0000><loc0512><loc1023>">2/4/2022</td>'
    "<td>Life Insurance Payments</td><td>Credit</td><td>445</td><td></td></tr>"
    "<tr><td>Property Management</td><td>Credit</td><td>300</td><td></td></tr>"
    "<tr><td>Retail Store 4</td><td>Credit</td><td>65.75</td><td></td></tr></table>"
)
BARS = {"A": 28, "B": 55, "C": 43, "D": 91, "E": 81, "F": 53, "G": 19, "H": 87, "I": 52}


@pytest.fixture(scope="module")
def statement(shared_data: Path) -> Path:
    pytest.importorskip("pypdfium2", reason="the docs extra is not installed")
    return shared_data / "documents" / "bank_statement.pdf"


def test_merged_cells_of_a_pdf_are_spans_with_places_on_the_page(statement: Path) -> None:
    model = ScriptedModel(reply=lambda prompt, image: STATEMENT)
    table = read_table(model, statement, PartOptions(box_xyxy=(36, 250, 576, 550)))
    assert model.prompts == ["table"]
    assert table.rows()[:3] == [
        ["Date", "Description", "Details", *["Deposits and others Debits"] * 2],
        ["Date", "Description", "Details", "Credits", "Debits"],
        ["2/4/2022", "Life Insurance Payments", "Credit", "445", ""],
    ]
    assert [row[0] for row in table.rows()[2:]] == ["2/4/2022"] * 3
    assert table.to_csv("blank").split("\n")[3] == ",Property Management,Credit,300,"
    assert '<td rowspan="3">2/4/2022</td>' in table.to_html()
    date = table[3, 0]
    assert date is not None
    # Half of the box's width and all of its height, in points.
    assert date.box_xyxy == pytest.approx((36, 250, 36 + 270, 550), abs=1)
    assert date.score == pytest.approx(0.9 ** len("2/4/2022<"))
    assert (table.size_wh, table.page, table.problems) == ((612, 792), 1, ())


def test_the_part_is_shown_in_the_size_that_the_model_needs(statement: Path) -> None:
    model = ScriptedModel(reply=lambda prompt, image: STATEMENT, resolution=224)
    table = read_table(model, statement)
    assert model.sizes == [(224, round(224 * 792 / 612))]
    assert "small letters" in table.notes[0]  # a whole page in 224 pixels
    read_table(model, statement, PartOptions(box_xyxy=(0, 0, 100, 50)))
    assert model.sizes[1] == (448, 224)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (PartOptions(page=2), DocumentError),
        (PartOptions(box_xyxy=(700, 0, 800, 10)), OptionError),
        (PartOptions(box_xyxy=(20, 0, 10, 10)), OptionError),
    ],
)
def test_parts_outside_are_refused(
    statement: Path, options: PartOptions, error: type[Exception]
) -> None:
    model = ScriptedModel(reply=lambda prompt, image: STATEMENT)
    with pytest.raises(error):
        read_table(model, statement, options)
    assert model.prompts == []


def test_a_box_has_four_finite_numbers() -> None:
    for box in ((0, 0, 1, float("nan")), (0, 0, 1)):
        with pytest.raises(OptionError, match="four numbers"):
            PartOptions(box_xyxy=box)  # type: ignore[arg-type]


def test_errors_of_the_model_are_raised() -> None:
    class Broken(ScriptedModel):
        def answer(self, queries, batch_size=None):  # type: ignore[no-untyped-def]
            yield NumericalError.of_model()

    model = Broken(reply=lambda prompt, image: "")
    with pytest.raises(NumericalError):
        read_table(model, Image.new("RGB", (30, 20)))


def test_a_chart_is_read_from_one_text_where_the_model_writes_it(shared_data: Path) -> None:
    text = "TITLE | <0x0A> a | b <0x0A> " + " <0x0A> ".join(f"{a} | {b}" for a, b in BARS.items())
    model = ScriptedModel(reply=lambda prompt, image: text)
    chart = read_chart(model, shared_data / "documents" / "chart_bar.png")
    assert chart.values == {"b": BARS}
    assert (chart.x_title, chart.problems) == ("a", ())
    assert model.prompts == ["chart"]


def _answers(prompt: str, image: Image.Image) -> str:
    match prompt.removeprefix("answer en "):
        case "chart":
            return "a chart with bars"
        case "what kind of chart is this?":
            return "bar"
        case "what are the labels in the chart?":
            return "A, B, C, D, E, F, G, H and I"
    label = prompt.removesuffix("?").rpartition(" ")[2]
    return "unanswerable" if label == "C" else f"{BARS[label]}"


def test_a_chart_is_asked_for_label_by_label_where_it_does_not(shared_data: Path) -> None:
    model = ScriptedModel(reply=_answers)  # type: ignore[arg-type]
    chart = read_chart(model, shared_data / "documents" / "chart_bar.png")
    assert chart.kind == "bar"
    assert chart.values == {"": {**BARS, "C": None}}
    assert [problem.detail for problem in chart.problems] == [
        "'what is the value of C?' was answered with 'unanswerable': no number."
    ]
    # The label with its comma, and the answer with its end.
    assert chart.points[0].score == pytest.approx(0.9**2 * 0.9**3)
    assert model.prompts[3] == "answer en what is the value of A?"


def test_labels_and_series_can_be_given(shared_data: Path) -> None:
    model = ScriptedModel(reply=lambda prompt, image: "1,5 %")
    options = ChartOptions(labels=("A", "B"), series=("x", "y"), language=None)
    chart = read_chart(model, shared_data / "documents" / "chart_bar.png", options)
    assert chart.values == {"x": {"A": 1.5, "B": 1.5}, "y": {"A": 1.5, "B": 1.5}}
    assert chart.points[0].raw == "1,5 %"
    assert model.prompts[1:3] == ["what is the value of A for x?", "what is the value of B for x?"]


def test_a_model_that_says_nothing_gives_a_chart_without_series() -> None:
    model = ScriptedModel(reply=lambda prompt, image: "")
    chart = read_chart(model, Image.new("RGB", (30, 20)))
    assert chart.series == ()
    assert "no labels" in chart.problems[0].detail


@pytest.fixture(scope="module")
def mini_model() -> Predictor:
    import paligemma

    return paligemma.load("mini")


def test_mini_reads_its_tables_and_charts(mini_model: Predictor) -> None:
    num_right = {"table": 0, "chart": 0}
    num_cells = dict(num_right)
    for index in range(6):
        sheet = make_sheet("test", 1007, index, "table")
        table = mini_model.table(Image.fromarray(sheet.draw(224)))
        rows = table.rows()
        cells = [(i, j, cell) for i, row in enumerate(sheet.rows) for j, cell in enumerate(row)]
        num_cells["table"] += len(cells)
        num_right["table"] += sum(
            i < len(rows) and j < len(rows[i]) and rows[i][j] == cell for i, j, cell in cells
        )
        assert all(0 <= cell.score <= 1 for cell in table.cells)
        sheet = make_sheet("test", 1007, index, "chart")
        chart = mini_model.chart(Image.fromarray(sheet.draw(224)))
        values = {point.x: point.y for point in chart.points}
        num_cells["chart"] += len(sheet.bars)
        num_right["chart"] += sum(values.get(label) == value for label, value in sheet.bars)
    # mini reads 0.70 of the cells and 0.2 of the bars: enough to see that all is connected.
    assert num_right["table"] / num_cells["table"] > 0.2
    assert num_right["chart"] > 0
    print(num_right, num_cells)


def test_mini_reads_the_part_in_a_box(mini_model: Predictor) -> None:
    sheet = make_sheet("test", 1007, 2, "table")
    drawn = Image.fromarray(sheet.draw(224))
    page = Image.new("RGB", (500, 400), "white")
    page.paste(drawn, (200, 100))
    table = mini_model.table(page, (200, 100, 424, 324))
    assert table.rows() == mini_model.table(drawn).rows()
    assert table.size_wh == (500, 400)
