"""Extraction with a model that knows the truth: which part of which page answers, and what becomes
of the answers."""

from __future__ import annotations

import datetime
import itertools
import json
from collections.abc import Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw
from pydantic import BaseModel, Field, model_validator

from paligemma.documents import Document, open_document
from paligemma.errors import DocumentError, NumericalError, OptionError
from paligemma.extraction import ExtractOptions, extract
from paligemma.extraction.builtin import NOT_MEDICAL
from paligemma.extraction.names import Names
from paligemma.extraction.schema import Leaf
from paligemma.results import BoxXyxy
from paligemma.tasks.detect import DetectTask
from tests.extraction.scripted import Fact, ScriptedAsker, printed

FILES = Path(__file__).parents[1] / "vectors" / "documents"
ITEMS = "Which items are on the invoice?"
MEDICINES = "Which medicines are mentioned in the prescription?"


@pytest.fixture
def invoice() -> Iterator[Document]:
    with open_document(FILES / "einvoice_de.pdf") as document:
        yield document


def german_facts(document: Document) -> list[Fact]:
    """What `einvoice_de.xml` says, at the places where the page prints it."""
    facts = [
        printed(document, "What is the invoice number?", "RE-20170509/505"),
        printed(document, "What is the invoice date?", "09.05.2017"),
        printed(document, "What is the due date?", "30.05.2017"),
        printed(document, "What is the name of the seller?", "Bei Spiel GmbH"),
        printed(document, "What is the VAT number of the seller?", "DE136695976"),
        printed(document, "What is the name of the buyer?", "Theodor Est"),
        printed(document, "What is the total without tax?", "496,00"),
        printed(document, "What is the total tax?", "75,04"),
        printed(document, "What is the total amount?", "571,04"),
        printed(document, "What is the IBAN?", "DE88200800000970375700"),
        Fact("What is the currency?", "EUR"),
    ]
    for name, quantity, price, amount in (
        ("Künstlerische Gestaltung", "1", "160,00", "160,00"),
        ("Luftballon", "400", "0,79", "316,00"),
        ("Heiße Luft", "200", "0,10", "20,00"),
    ):
        facts.append(printed(document, ITEMS, name))
        facts.append(Fact(f"What is the quantity of {name}?", quantity))
        facts.append(Fact(f"What is the unit price of {name}?", price))
        facts.append(Fact(f"What is the amount of {name}?", amount))
    return facts


@pytest.mark.parametrize("whole_page_score", [None, 0.2])
def test_a_german_invoice(invoice: Document, whole_page_score: float | None) -> None:
    """From the whole page, or from its tiles where the model is unsure of it."""
    asker = ScriptedAsker(german_facts(invoice), frozenset([ITEMS]), whole_page_score)
    found = extract(asker, invoice, "invoice")
    assert found.problems == ()
    value = found.value
    assert value is not None
    assert value.invoice_number == "RE-20170509/505"
    assert value.invoice_date == datetime.date(2017, 5, 9)
    assert value.due_date == datetime.date(2017, 5, 30)
    assert (value.net_total, value.tax, value.total) == (
        Decimal("496.00"),
        Decimal("75.04"),
        Decimal("571.04"),
    )
    assert [(i.description, i.quantity, i.unit_price, i.amount) for i in value.items] == [
        ("Künstlerische Gestaltung", 1, Decimal("160.00"), Decimal("160.00")),
        ("Luftballon", 400, Decimal("0.79"), Decimal("316.00")),
        ("Heiße Luft", 200, Decimal("0.10"), Decimal("20.00")),
    ]
    assert found.missing == ("discount", "shipping")
    total = found["total"]
    assert (total.value, total.raw, total.score) == (Decimal("571.04"), "571,04", 0.9)
    assert total.box_source == "text layer"
    assert total.page == 1
    # Of an item, the place in its own line; "1" is printed "1,00" there and "1/1" elsewhere.
    description, quantity = found["items[0].description"], found["items[0].quantity"]
    assert description.box_xyxy is not None
    assert quantity.box_xyxy is not None
    assert abs(description.box_xyxy[1] - quantity.box_xyxy[1]) < 2
    tiles = {box for _, _, _, box in asker.asked} - {(0.0, 0.0, *invoice.page(1).size_wh)}
    assert bool(tiles) == (whole_page_score is not None) or found.missing
    assert not any(isinstance(task, DetectTask) for _, task, _, _ in asker.asked)


def test_queries_are_ordered_by_tile(invoice: Document) -> None:
    asker = ScriptedAsker(german_facts(invoice), frozenset([ITEMS]), 0.2)
    extract(asker, invoice, "invoice")
    rounds = [box for _, _, _, box in asker.asked]
    changes = sum(a != b for a, b in itertools.pairwise(rounds))
    # Once per tile and round: values and lists, then values of items from their tile and others.
    assert changes <= 4 * len(set(rounds))


def scan_facts() -> list[Fact]:
    """invoice_scan.pdf has no text layer: places are those of the page in points."""
    truth: list[tuple[str, str, BoxXyxy]] = [
        ("What is the invoice number?", "23413561D", (497, 56, 572, 72)),
        ("What is the invoice date?", "Sep 24, 2019", (505, 109, 568, 122)),
        ("What is the due date?", "Sep 30, 2019", (505, 131, 568, 144)),
        ("What is the name of the seller?", "John Smith", (48, 85, 105, 98)),
        ("What is the name of the buyer?", "Jane Smith", (48, 129, 105, 141)),
        ("What is the currency?", "$", (515, 395, 522, 408)),
        ("What is the total without tax?", "$22,379.39", (515, 395, 569, 408)),
        ("What is the discount?", "$4,699.67", (519, 417, 569, 430)),
        ("What is the total tax?", "$1,767.97", (519, 440, 569, 452)),
        ("What is the cost of shipping?", "$199.99", (527, 462, 569, 475)),
        ("What is the total amount?", "$19,647.68", (515, 484, 569, 497)),
    ]
    facts = [Fact(*row) for row in truth]
    rows = [
        ("12 ft HDMI cable", "12", "$9.99", "$119.88"),
        ('27" Computer Monitor', "12", "$399.99", "$4,799.88"),
        ("Ergonomic Keyboard", "12", "$59.99", "$719.88"),
        ("Optical mouse", "12", "$19.99", "$239.88"),
        ("Laptop", "12", "$1,299.99", "$15,599.88"),
        ("Misc processing fees", "1", "$899.99", "$899.99"),
    ]
    for number, (name, quantity, price, amount) in enumerate(rows):
        y = 241.0 + 17.5 * number
        facts.append(Fact(ITEMS, name, (45, y, 45 + 6 * len(name), y + 12)))
        facts.append(Fact(f"What is the quantity of {name}?", quantity, (367, y, 380, y + 12)))
        facts.append(Fact(f"What is the unit price of {name}?", price, (440, y, 491, y + 12)))
        facts.append(Fact(f"What is the amount of {name}?", amount, (515, y, 568, y + 12)))
    return facts


def test_the_sums_of_a_scanned_invoice() -> None:
    asker = ScriptedAsker(scan_facts(), frozenset([ITEMS]))
    asker.places["$19,647.68"] = (1, (515, 484, 569, 497))
    found = extract(asker, FILES / "invoice_scan.pdf", "invoice")
    assert found.value is not None
    assert found.value.total == Decimal("19647.68")
    assert len(found.value.items) == 6
    assert found.problems == ()
    assert found["total"].box_source == "detect"
    assert found["total"].box_xyxy == pytest.approx((515, 484, 569, 497), abs=0.5)
    assert found["discount"].box_source == "tile"  # nothing was detected


@pytest.mark.parametrize(
    ("question", "wrong", "reason"),
    [
        ("What is the total amount?", "$19,641.68", "the total is 19641.68"),
        ("What is the amount of Laptop?", "$15,399.88", "the amount of 'Laptop' is 15399.88"),
        ("What is the due date?", "Sep 20, 2019", "the due date is before"),
    ],
)
def test_a_wrong_digit_shows(question: str, wrong: str, reason: str) -> None:
    facts = [
        Fact(f.question, wrong if f.question == question else f.text, f.box_xyxy)
        for f in scan_facts()
    ]
    found = extract(ScriptedAsker(facts, frozenset([ITEMS])), FILES / "invoice_scan.pdf", "invoice")
    assert found.value is None
    assert any(reason in problem for problem in found.problems)
    assert found["seller"].value == "John Smith"  # the fields are all there


def test_visit_notes_as_prescription() -> None:
    facts = [
        Fact(MEDICINES, "Vyvanse"),
        Fact(MEDICINES, "Clonidine"),
        Fact("What is the dose of Vyvanse?", "50 mgs"),
        Fact("How often is Vyvanse taken?", "at breakfast daily"),
        Fact("What is the dose of Clonidine?", "0.2 mgs"),
        Fact("How often is Clonidine taken?", "1 and 1/2 tabs po qhs"),
        Fact("Which diseases are mentioned in the prescription?", "severe rash on face and leg"),
    ]
    asker = ScriptedAsker(facts, frozenset([MEDICINES]))
    found = extract(
        asker,
        FILES / "visit_notes.png",
        "prescription",
        names=["Vyvanse", "Clonidin", "Aspirin"],
    )
    assert found.value is not None
    assert [(m.name, m.dose, m.frequency) for m in found.value.medicines] == [
        ("Vyvanse", "50 mgs", "at breakfast daily"),
        ("Clonidine", "0.2 mgs", "1 and 1/2 tabs po qhs"),
    ]
    assert found.value.diseases == ["severe rash on face", "leg"]  # "and" separates items
    matched = found["medicines[1].name"].matched
    assert matched is not None
    assert matched.text == "Clonidin"
    assert 0.9 < matched.score < 1
    assert found["medicines[1].name"].value == "Clonidine"  # shown, not replaced
    assert found.notes[0] == NOT_MEDICAL
    assert {"patient", "prescriber", "date", "medicines[0].duration"} <= set(found.missing)


class Note(BaseModel):
    number: str
    amount: Decimal | None = None
    currency: str = "EUR"
    date: datetime.date | None = None
    tags: list[str] = Field(default_factory=list, max_length=3)


NUMBER = "What is the number?"


def test_absent_values_are_none_and_listed_and_defaults_are_not_read() -> None:
    found = extract(ScriptedAsker([]), blank_page(), Note)
    assert found.value is None  # the number is required
    assert found.missing == ("number", "amount", "currency", "date", "tags")
    assert found["number"].problems == ("required, and not found",)
    assert all(field.score == 0 for field in found.fields)
    assert found["currency"].value is None
    assert any("currency" in note and "default" in note for note in found.notes)
    found = extract(ScriptedAsker([Fact(NUMBER, "7")]), blank_page(), Note)
    assert found.value == Note(number="7")
    assert found["number"].source == "model"
    assert found["currency"].source is None


def blank_page(width: int = 600, height: int = 800) -> Image.Image:
    """A page with a little print."""
    image = Image.new("RGB", (width, height), "white")
    ImageDraw.Draw(image).text((20, 20), "some print", fill="black", font_size=14)
    return image


def pages(tmp_path: Path, count: int) -> Path:
    images = [blank_page() for _ in range(count)]
    path = tmp_path / "pages.tiff"
    images[0].save(path, save_all=True, append_images=images[1:])
    return path


def test_several_pages(tmp_path: Path) -> None:
    facts = [
        Fact(NUMBER, "7", page=2),
        Fact("What is the amount?", "1,50", page=3, score=0.7),
        Fact("What is the amount?", "9,99", page=1, score=0.65),
        Fact("Which tags are mentioned in the note?", "a", page=3),
        Fact("Which tags are mentioned in the note?", "b", page=1),
    ]
    asker = ScriptedAsker(facts, frozenset(["Which tags are mentioned in the note?"]))
    found = extract(asker, pages(tmp_path, 3), Note)
    assert found.num_pages == 3
    assert (found["number"].value, found["number"].page) == ("7", 2)
    assert (found["amount"].value, found["amount"].page) == (Decimal("1.50"), 3)
    assert found["amount"].problems == ("read differently on page 1: 9,99 (0.65)",)
    assert found.value is not None
    assert found.value.tags == ["b", "a"]
    found = extract(asker, pages(tmp_path, 3), Note, ExtractOptions(pages="2"))
    assert found.num_pages == 1
    assert found.missing == ("amount", "currency", "date", "tags")


def test_one_bad_page_is_a_note_and_all_bad_pages_an_error(tmp_path: Path) -> None:
    asker = ScriptedAsker([Fact(NUMBER, "7", page=2)])
    asker.fail = lambda tile: DocumentError("It is cut.") if tile.page.number == 1 else None
    found = extract(asker, pages(tmp_path, 2), Note)
    assert found.value == Note(number="7")
    assert [note for note in found.notes if "Page 1" in note] == ["Page 1 was not read: It is cut."]
    asker.fail = lambda tile: NumericalError("NaN")
    with pytest.raises(NumericalError):
        extract(asker, pages(tmp_path, 2), Note)
    asker.fail = lambda tile: OptionError("The grammar is too complex.")
    with pytest.raises(OptionError):
        extract(asker, pages(tmp_path, 2), Note)


def test_blank_pages_are_noted_and_not_asked(tmp_path: Path) -> None:
    path = tmp_path / "pages.tiff"
    Image.new("RGB", (600, 800), "white").save(path, save_all=True, append_images=[blank_page()])
    asker = ScriptedAsker([Fact(NUMBER, "7")])
    found = extract(asker, path, Note)
    assert {page for _, _, page, _ in asker.asked} == {2}
    assert any("Page 1 is blank" in note for note in found.notes)
    found = extract(asker, Image.new("RGB", (600, 800), "white"), Note)
    assert found.value is None
    assert found.num_pages == 0


def test_a_scan_on_its_side_is_turned() -> None:
    lying = blank_page(800, 600)
    asker = ScriptedAsker([Fact(NUMBER, "7", (10, 10, 60, 40))], up=90)
    asker.places["7"] = (1, (10, 10, 60, 40))
    found = extract(asker, lying, Note)
    assert found.turns == {1: 90}
    assert any(note.startswith("Page 1 was turned by 90 degrees") for note in found.notes)
    assert found["number"].tile_xyxy == (0, 0, 600, 800)  # of the upright page
    assert found["number"].box_source == "detect"
    [drawn] = found.draw(source=lying)
    assert drawn.size == (600, 800)
    still = extract(asker, lying, Note, ExtractOptions(turn=False))
    assert still.turns == {}
    assert not any("turned" in note for note in still.notes)


def test_other_dates_settle_one_that_may_be_two(invoice: Document) -> None:
    class Dates(BaseModel):
        first: datetime.date | None = None
        second: datetime.date | None = None

    first, second = "What is the first?", "What is the second?"
    found = extract(ScriptedAsker([Fact(first, "03/04/2020")]), blank_page(), Dates)
    assert found["first"].value is None
    assert found["first"].raw == "03/04/2020"
    assert "either way round" in found["first"].problems[0]
    facts = [Fact(first, "03/04/2020"), Fact(second, "25/12/2020")]
    found = extract(ScriptedAsker(facts), blank_page(), Dates)
    assert found["first"].value == datetime.date(2020, 4, 3)
    assert found["first"].problems == ()
    assert any("day first" in note for note in found.notes)
    # The text layer has 30.05.2017.
    found = extract(ScriptedAsker([Fact(first, "05/06/2017")]), invoice, Dates)
    assert found["first"].value == datetime.date(2017, 6, 5)


def lines_page() -> Image.Image:
    """A page with forty lines of small print, which needs tiles at 448 pixels."""
    image = Image.new("RGB", (1240, 1754), "white")
    draw = ImageDraw.Draw(image)
    for number in range(40):
        draw.text(
            (60, 40 + 42 * number), f"Line {number} of the list in print", "black", font_size=20
        )
        draw.text((800, 40 + 42 * number), f"{number},00 EUR in print", "black", font_size=20)
    return image


class Line(BaseModel):
    name: str
    price: Decimal | None = Field(None, description="price of {name}")


class Lines(BaseModel):
    lines: list[Line] = Field(max_length=60)


LINES = "Which lines are mentioned in the lines?"


def line_facts(page: Sequence[int] = range(40)) -> list[Fact]:
    facts = []
    for number in page:
        y = 40.0 + 42 * number
        facts.append(Fact(LINES, f"Line {number}", (60, y, 130, y + 24)))
        price = Fact(f"What is the price of Line {number}?", f"{number},00", (800, y, 860, y + 24))
        facts.append(price)
    return facts


def test_the_items_of_tiles_are_joined_in_reading_order() -> None:
    asker = ScriptedAsker(line_facts(), frozenset([LINES]), whole_page_score=0.1)
    found = extract(asker, lines_page(), Lines)
    assert found.value is not None
    assert [line.name for line in found.value.lines] == [f"Line {n}" for n in range(40)]
    assert [line.price for line in found.value.lines] == [Decimal(f"{n}.00") for n in range(40)]
    assert len({box for prompt, _, _, box in asker.asked if LINES in prompt}) > 2
    assert found.problems == ()


class Tags(BaseModel):
    tags: list[str] = Field(max_length=4)


TAGS = "Which tags are mentioned in the tags?"


def test_limits_of_lists_and_items_that_cannot_be_read() -> None:
    class Numbers(BaseModel):
        counts: list[int] = Field(max_length=3)

    asker = ScriptedAsker([Fact("Which counts are mentioned in the numbers?", "1; two; 3; 4; 5")])
    found = extract(asker, blank_page(), Numbers)
    assert found.value == Numbers(counts=[1, 3, 4])
    assert found.problems == (
        "counts: left out 'two': not read as integer: it has no digits",
        "counts: 4 items were read; the first 3 are kept",
    )


def test_contradictions_between_tiles() -> None:
    box = (60.0, 40.0, 130.0, 64.0)
    other = (60.0, 1678.0, 130.0, 1702.0)
    facts = [
        Fact("What is the amount?", "1,50", box, score=0.8),
        Fact("What is the amount?", "7,50", other, score=0.75),
        Fact(NUMBER, "7", box, score=0.9),
        Fact(NUMBER, "8", other, score=0.2),  # too unsure to contradict
    ]
    found = extract(ScriptedAsker(facts, whole_page_score=0.1), lines_page(), Note)
    assert found["amount"].value == Decimal("1.50")
    assert found["amount"].problems == ("read differently: 7,50 (0.75)",)
    assert found["amount"] in found.unsure()
    assert (found["number"].value, found["number"].problems) == ("7", ())


def test_a_second_formulation() -> None:
    class Asker(ScriptedAsker):
        """Says something else when asked without "answer en"."""

        def _say(self, tile: Any, question: str) -> Any:
            answer = super()._say(tile, question)
            if not self.asked[-1][0].startswith("answer"):
                changed = {"7": "1", "a, b": "a"}.get(answer.text, answer.text)
                return type(answer)(**{**vars(answer), "text": changed})
            return answer

    tags = "Which tags are mentioned in the note?"
    facts = [Fact(NUMBER, "7"), Fact("What is the amount?", "5"), Fact(tags, "a"), Fact(tags, "b")]
    found = extract(
        Asker(facts, frozenset([tags])), blank_page(), Note, ExtractOptions(check="twice")
    )
    assert found["number"].problems == ("asked in another way, the answer is: 1 (0.90)",)
    assert found["amount"].problems == ()
    assert found["tags[0]"].problems == ()
    assert found["tags[1]"].problems == ("asked in another way, the list does not have it",)


def test_a_forced_value_is_reported() -> None:
    found = extract(ScriptedAsker([Fact(NUMBER, "7")], held=0.97), blank_page(), Note)
    assert found["number"].held == 0.97
    assert "wanted to say something else" in found["number"].problems[0]


def test_optional_values_that_are_not_valid_are_left_out() -> None:
    class Strict(BaseModel):
        number: int = Field(ge=1)
        size: int | None = Field(None, le=9)

    facts = [Fact(NUMBER, "7"), Fact("What is the size?", "99")]
    found = extract(ScriptedAsker(facts), blank_page(), Strict)
    assert found.value == Strict(number=7, size=None)
    assert found["size"].value == 99
    assert "not valid, and left out" in found["size"].problems[0]
    facts = [Fact(NUMBER, "0")]
    found = extract(ScriptedAsker(facts), blank_page(), Strict)
    assert found.value is None
    assert "not valid" in found["number"].problems[0]


def test_validators_across_fields_are_problems() -> None:
    class Range(BaseModel):
        low: int
        high: int

        @model_validator(mode="after")
        def ordered(self) -> Range:
            if self.low > self.high:
                raise ValueError("low is above high")
            return self

    class Broken(BaseModel):
        low: int

        @model_validator(mode="after")
        def fails(self) -> Broken:
            raise ZeroDivisionError

    facts = [Fact("What is the low?", "5"), Fact("What is the high?", "3")]
    found = extract(ScriptedAsker(facts), blank_page(), Range)
    assert (found.value, found.problems) == (None, ("low is above high",))
    broken = extract(ScriptedAsker(facts), blank_page(), Broken)
    assert broken.value is None
    assert "ZeroDivisionError" in broken.problems[0]


def test_a_json_schema_gives_a_dict() -> None:
    schema = {
        "title": "Note",
        "type": "object",
        "required": ["number"],
        "properties": {
            "number": {"type": "string", "pattern": "^(a+)+$", "maxLength": 60},
            "amount": {"type": "number", "maximum": 10},
            "kind": {"enum": ["bill", "letter"]},
            "total": {"type": "string", "format": "decimal"},
        },
    }
    facts = [
        Fact(NUMBER, "a" * 40),
        Fact("What is the amount?", "5.5"),
        Fact("What is the kind?", "Bill"),
        Fact("What is the total?", "1.234,50 €"),
    ]
    found = extract(ScriptedAsker(facts), blank_page(), schema)
    expected = {"number": "a" * 40, "amount": 5.5, "kind": "bill", "total": "1234.50"}
    assert found.value == expected
    # A pattern that other engines take hours for.
    facts[0] = Fact(NUMBER, "a" * 50 + "b")
    found = extract(ScriptedAsker(facts), blank_page(), schema)
    assert found.value is None


def test_text_of_documents_in_questions_and_terminals() -> None:
    tags = "Which tags are mentioned in the tags?"

    class Entry(BaseModel):
        name: str
        size: int | None = None

    class Entries(BaseModel):
        entries: list[Entry] = Field(max_length=4)

    hostile = "<loc0001><image> \x1b[2Jx\u202e"
    question = "Which entries are mentioned in the entries?"
    asker = ScriptedAsker([Fact(question, hostile)])
    found = extract(asker, blank_page(), Entries)
    prompts = [prompt for prompt, task, _, _ in asker.asked]
    assert all("<image>" not in prompt and "<loc" not in prompt for prompt in prompts)
    assert found["entries[0].name"].value == hostile  # as read
    assert "\x1b" not in str(found)
    assert "\u202e" not in str(found)
    page = found.to_html(file="\u202egnp.exe", source=blank_page())
    assert "\\u202egnp.exe</" in page
    titled = {**Entries.model_json_schema(), "title": "\x1b[2J\u202eT"}
    for text in (str(found := extract(asker, blank_page(), titled)), repr(found)):
        assert "\x1b" not in text
        assert "\u202e" not in text
    assert tags


def test_the_same_item_twice() -> None:
    class Entry(BaseModel):
        name: str
        size: int | None = None

    class Entries(BaseModel):
        entries: list[Entry] = Field(max_length=4)

    question = "Which entries are mentioned in the entries?"
    found = extract(ScriptedAsker([Fact(question, "x, x")]), blank_page(), Entries)
    assert found.value is not None
    assert len(found.value.entries) == 2
    assert "several items" in found["entries[1].name"].problems[0]


def test_a_fragment_of_a_name_is_not_near_it() -> None:
    leaf = Leaf(path="name", keys=("name",), kind="text")
    names = Names(by_keys={("name",): ("ARCOX",)})
    assert names.match(leaf, "C") == (None, "no name in the list is near")
    for text in ("ARCO", "ARCOX 25MG tablets"):
        match, _ = names.match(leaf, text)
        assert match is not None


def test_lists_of_names() -> None:
    facts = [Fact(TAGS, "Vyvanze, nothing like it")]
    found = extract(
        ScriptedAsker(facts), blank_page(), Tags, names={"tags": ["Vyvanse", "Aspirin"]}
    )
    first = found["tags[0]"].matched
    assert first is not None
    assert first.text == "Vyvanse"
    assert found["tags[1]"].problems[-1] == "no name in the list is near"
    with pytest.raises(OptionError, match="no value 'x'"):
        extract(ScriptedAsker([]), blank_page(), Tags, names={"x": ["a"]})


def test_exports(tmp_path: Path) -> None:
    facts = [Fact(NUMBER, '=HYPERLINK("x")'), Fact("What is the amount?", "-5,00")]
    found = extract(ScriptedAsker(facts), blank_page(), Note)
    line = json.loads(found.to_json())
    assert line["value"] == {
        "number": '=HYPERLINK("x")',
        "amount": "-5.00",
        "currency": "EUR",
        "date": None,
        "tags": [],
    }
    assert line["fields"][1]["value"] == "-5.00"
    assert line["missing"] == ["currency", "date", "tags"]
    assert line["unsure"] == [field.path for field in found.unsure()]
    assert '"=HYPERLINK(""x"")"' in found.to_csv()
    assert '"\'=HYPERLINK(""x"")"' in found.to_csv(safe=True, file="a.png")
    found.to_parquet(tmp_path / "fields.parquet", file="a.png")
    import pyarrow.parquet

    rows = pyarrow.parquet.read_table(tmp_path / "fields.parquet").to_pylist()
    assert rows[0]["value"] == '=HYPERLINK("x")'
    assert rows[2]["value"] == ""
    assert "number" in str(found)
    assert found.unsure(0.95)[0].path == "number"


def test_the_number_of_questions_can_be_limited() -> None:
    with pytest.raises(DocumentError, match="more than 3 questions"):
        extract(ScriptedAsker([]), blank_page(), Note, ExtractOptions(max_questions=3))


def test_options_are_checked() -> None:
    for wrong in (
        {"date_order": "ymx"},
        {"decimal_mark": ";"},
        {"check": "thrice"},
        {"mode": "xml"},
        {"min_score": 2},
        {"language": "klingon"},
    ):
        with pytest.raises(OptionError):
            ExtractOptions(**wrong)  # type: ignore[arg-type]
