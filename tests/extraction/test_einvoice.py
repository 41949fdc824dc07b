"""The XML of electronic invoices: German, French and UBL, as a source of values; hostile XML."""

from __future__ import annotations

import datetime
import json
import math
import time
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path

import pytest

from paligemma.cli.main import main
from paligemma.cli.model_options import LoadOptions
from paligemma.documents.page import Attachment
from paligemma.errors import DocumentError, OptionError
from paligemma.extraction import ExtractOptions, extract
from paligemma.extraction.builtin import Invoice
from paligemma.extraction.einvoice import einvoice_in, read_einvoice
from tests.documents.pdf_files import pdf_of_pages, text_at
from tests.extraction.french_invoice import XML, write_french_invoice
from tests.extraction.scripted import ScriptedAsker

pytest.importorskip("pypdfium2", reason="the docs extra is not installed")
pytest.importorskip("defusedxml", reason="the docs extra is not installed")

FROM_XML = ExtractOptions(source="xml")

UBL = """<Invoice xmlns="urn:oasis:names:specification:ubl:schema:xsd:Invoice-2"
 xmlns:cac="urn:oasis:names:specification:ubl:schema:xsd:CommonAggregateComponents-2"
 xmlns:cbc="urn:oasis:names:specification:ubl:schema:xsd:CommonBasicComponents-2">
<cbc:ID>2024-9</cbc:ID><cbc:IssueDate>2024-03-01</cbc:IssueDate>
<cbc:DueDate>2024-03-31</cbc:DueDate><cbc:DocumentCurrencyCode>EUR</cbc:DocumentCurrencyCode>
<cac:AccountingSupplierParty><cac:Party>
 <cac:PartyName><cbc:Name>Trade name</cbc:Name></cac:PartyName>
 <cac:PartyTaxScheme><cbc:CompanyID>BE0123456749</cbc:CompanyID></cac:PartyTaxScheme>
 <cac:PartyLegalEntity><cbc:RegistrationName>Legal NV</cbc:RegistrationName></cac:PartyLegalEntity>
</cac:Party></cac:AccountingSupplierParty>
<cac:AccountingCustomerParty><cac:Party>
 <cac:PartyName><cbc:Name>Buyer</cbc:Name></cac:PartyName>
</cac:Party></cac:AccountingCustomerParty>
<cac:PaymentMeans><cac:PayeeFinancialAccount><cbc:ID>BE68539007547034</cbc:ID>
</cac:PayeeFinancialAccount></cac:PaymentMeans>
<cac:TaxTotal><cbc:TaxAmount currencyID="EUR">21.00</cbc:TaxAmount></cac:TaxTotal>
<cac:LegalMonetaryTotal><cbc:LineExtensionAmount>100.00</cbc:LineExtensionAmount>
 <cbc:TaxInclusiveAmount>121.00</cbc:TaxInclusiveAmount>
 <cbc:AllowanceTotalAmount>5.00</cbc:AllowanceTotalAmount></cac:LegalMonetaryTotal>
<cac:InvoiceLine><cbc:ID>1</cbc:ID><cbc:InvoicedQuantity unitCode="C62">4</cbc:InvoicedQuantity>
 <cbc:LineExtensionAmount>100.00</cbc:LineExtensionAmount>
 <cac:Item><cbc:Name>Chair</cbc:Name></cac:Item>
 <cac:Price><cbc:PriceAmount>25.00</cbc:PriceAmount></cac:Price></cac:InvoiceLine>
</Invoice>"""


def test_the_xml_of_a_french_invoice_is_its_truth() -> None:
    fields = read_einvoice(XML.encode())
    assert fields == {
        "invoice_number": "F-2024-0117",
        "invoice_date": datetime.date(2024, 5, 17),
        "due_date": datetime.date(2024, 6, 16),
        "seller": "Boulangerie Éloïse SARL",
        "seller_vat": "FR32123456789",
        "buyer": "Café de l'Étoile",
        "currency": "EUR",
        "iban": "FR7630006000011234567890189",
        "net_total": Decimal("150.00"),
        "discount": None,
        "tax": Decimal("8.25"),
        "total": Decimal("158.25"),
        "items": [
            {
                "description": "Croissant au beurre",
                "quantity": Decimal(120),
                "unit_price": Decimal("0.85"),
                "amount": Decimal("102.00"),
            },
            # The price is for ten, which pages print in ways of their own.
            {"description": "Pain de campagne", "quantity": 15, "amount": Decimal("48.00")},
        ],
    }


def test_ubl_has_the_same_fields() -> None:
    fields = read_einvoice(UBL.encode())
    assert (fields["invoice_number"], fields["seller"]) == ("2024-9", "Legal NV")
    assert (fields["seller_vat"], fields["buyer"]) == ("BE0123456749", "Buyer")
    assert (fields["iban"], fields["due_date"]) == (
        "BE68539007547034",
        datetime.date(2024, 3, 31),
    )
    assert (fields["net_total"], fields["tax"], fields["total"]) == (100, 21, 121)
    assert fields["discount"] == 5
    assert fields["items"] == [
        {"description": "Chair", "quantity": 4, "unit_price": 25, "amount": 100}
    ]


@pytest.mark.parametrize(
    ("xml", "reason"),
    [
        ("", "damaged"),
        ("<Invoice>", "damaged"),
        ("<html/>", "not an electronic invoice"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><Invoice>&b;</Invoice>', "entities"),
        (
            '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///x">]><Invoice>&b;</Invoice>',
            "entities",
        ),
        (UBL.replace("2024-03-01", "yesterday"), "'yesterday'"),
        (UBL.replace("121.00", "NaN"), "'NaN'"),
        (UBL.replace("121.00", "1E999999999"), "'1E999999999'"),
        ("<!DOCTYPE Invoice><Invoice/>", "document type"),
        ("<Invoice>" + "<a>" * 70 + "</a>" * 70 + "</Invoice>", "more than 64 within each other"),
        ("<Invoice>" + "<a/>" * 200_001 + "</Invoice>", "more than 200000 elements"),
        ("<Invoice " + " ".join(f"a{i}='1'" for i in range(65)) + "/>", "64 attributes"),
        ("<Invoice>" + " " * (16 * 2**20) + "</Invoice>", "larger than 16 MiB"),
        ("<?xml version='1.0' encoding='nonsense'?><Invoice/>", "damaged"),
        (UBL.replace("121.00", "a lot"), "'a lot'"),
    ],
)
def test_unsafe_and_damaged_xml_is_refused(xml: str, reason: str) -> None:
    with pytest.raises(DocumentError, match=reason):
        read_einvoice(xml.encode())


def test_an_endless_nesting_takes_neither_time_nor_memory() -> None:
    started = time.process_time()
    with pytest.raises(DocumentError, match="within each other"):
        read_einvoice(b"<Invoice>" + b"<a>" * 5_000_000)
    assert time.process_time() - started < 2


def attached(*names: str) -> list[Attachment]:
    return [Attachment(name=name, read=name.encode) for name in names]


def test_the_xml_with_a_name_of_the_standards_is_the_invoice() -> None:
    found = einvoice_in(attached("a.xml", "notes.txt", "Factur-X.xml", "b.xml"))
    assert found is not None
    assert found.name == "Factur-X.xml"
    assert einvoice_in(attached("only.XML", "a.csv")) is not None
    assert einvoice_in(attached("a.csv")) is None
    with pytest.raises(DocumentError, match="has 2 XML files inside"):
        einvoice_in(attached("a.xml", "b.xml"))


PRINTED = (
    *("Facture F-2024-0117 du 17/05/2024, à payer avant le 16 juin 2024",),
    *("Boulangerie Éloïse SARL", "TVA FR32 123456789", "Client : Café de l'Étoile"),
    *("Croissant au beurre 120 0,85 102,00 EUR", "Pain de campagne 15 48,00 EUR"),
    *("Total HT 150,00 EUR", "TVA 8,25 EUR", "Total TTC 158,25 EUR"),
    "IBAN FR76 3000 6000 0112 3456 7890 189",
)


def write_printed_invoice(path: Path, xml: str = XML, printed: Sequence[str] = PRINTED) -> None:
    """Write a PDF file with a text layer and XML inside."""
    import pypdfium2

    lines = [text_at(40, 700 - 20 * n, line, 11) for n, line in enumerate(printed)]
    document = pypdfium2.PdfDocument(pdf_of_pages([b"".join(lines)], media_box="0 0 595 842"))
    document.new_attachment("factur-x.xml").set_data(xml.encode())
    document.save(path)
    document.close()


def test_values_come_from_the_xml_and_places_from_the_page(tmp_path: Path) -> None:
    write_printed_invoice(tmp_path / "fr.pdf")
    options = ExtractOptions(source="xml", language="fr", date_order="dmy")
    found = extract(None, tmp_path / "fr.pdf", Invoice, options)
    assert found.problems == ()
    assert found.value is not None
    assert found.value.total == Decimal("158.25")
    assert found.value.items[0].description == "Croissant au beurre"
    total = found["total"]
    assert (total.source, total.box_source, total.page) == ("xml", "text layer", 1)
    assert math.isnan(total.score)
    assert found["discount"].source is None
    assert "discount" in found.missing
    amounts = [found[f"items[{number}].amount"].box_xyxy for number in (0, 1)]
    names = [found[f"items[{number}].description"].box_xyxy for number in (0, 1)]
    for name, amount in zip(names, amounts, strict=True):
        assert name is not None
        assert amount is not None
        assert abs(name[1] - amount[1]) < 3
    assert json.loads(found.to_json())["fields"][0]["score"] is None
    assert "  xml     1  total" in str(found)
    assert found.to_csv().splitlines()[1].endswith('"xml"')
    assert "from the XML" in found.to_html()


def test_what_the_page_prints_differently_is_a_problem(tmp_path: Path) -> None:
    forged = XML.replace("158.25", "1158.25").replace("FR32123456789", "FR32552100554")
    write_printed_invoice(tmp_path / "fr.pdf", forged)
    found = extract(None, tmp_path / "fr.pdf", Invoice, FROM_XML)
    assert found["total"].problems == ("the text layer of the pages does not have this value",)
    assert found.value is None
    assert "the total is 1158.25" in " ".join(found.object_problems)


DISCOUNTS = (
    ("102.00", "91.80"),  # 10 % off the croissants
    ("<ram:LineTotalAmount>150.00", "<ram:LineTotalAmount>139.80"),
    ("AllowanceTotalAmount>0.00", "AllowanceTotalAmount>5.00"),
    ("<ram:TaxTotal", "<ram:TaxBasisTotalAmount>134.80</ram:TaxBasisTotalAmount><ram:TaxTotal"),
    ("158.25", "143.05"),
    ("20240517", "20240305"),
    ("20240616", "20240405"),
)


def with_discounts(xml: str = XML) -> str:
    for before, after in DISCOUNTS:
        assert before in xml
        xml = xml.replace(before, after)
    return xml


def test_an_invoice_with_discounts_agrees_with_its_page(tmp_path: Path) -> None:
    """One of a line, one below the lines, and dates that may be two."""
    printed = [
        *("Facture F-2024-0117 05/03/2024, a payer 05/04/2024", "Boulangerie Éloïse SARL"),
        *("TVA FR32 123456789", "Client : Café de l'Étoile", "Total HT brut 139,80 EUR"),
        *("Croissant au beurre 120 0,85 10 % 91,80 EUR", "Pain de campagne 15 48,00 EUR"),
        *("Remise -5,00 EUR", "Total HT net 134,80 EUR", "TVA 8,25 EUR"),
        *("Total TTC 143,05 EUR", "IBAN FR76 3000 6000 0112 3456 7890 189"),
    ]
    write_printed_invoice(tmp_path / "fr.pdf", with_discounts(), printed)
    found = extract(None, tmp_path / "fr.pdf", "invoice", FROM_XML)
    assert found.problems == ()
    assert found.value is not None
    assert (found.value.net_total, found.value.discount) == (Decimal("134.80"), 5)
    places = [found[path].box_source for path in ("invoice_date", "due_date", "discount")]
    assert places == ["text layer"] * 3
    # Another date of the page says that the month is first.
    write_printed_invoice(tmp_path / "fr.pdf", with_discounts(), [*printed, "Shipped 03/25/2024"])
    found = extract(None, tmp_path / "fr.pdf", "invoice", FROM_XML)
    assert found["invoice_date"].problems
    write_printed_invoice(tmp_path / "fr.pdf", with_discounts(), printed)
    text = {"type": "string", "maxLength": 20}
    names = ("discount", "total", "due_date", "invoice_number")
    as_texts = {"type": "object", "properties": dict.fromkeys(names, text)}
    found = extract(None, tmp_path / "fr.pdf", as_texts, FROM_XML)
    assert found.problems == ()
    assert (found["discount"].value, found["due_date"].value) == ("5.00", "2024-04-05")
    assert {found[name].box_source for name in names} == {"text layer"}


@pytest.mark.parametrize(
    ("net", "discount", "shipping", "total"),
    [("100", "10", "5", "114"), ("95", "10", "5", "114"), ("90", "10", "5", "114")],
    ids=["of the lines", "after both", "after the discount"],
)
def test_a_total_without_tax_may_be_before_or_after_what_is_below_the_lines(
    net: str, discount: str, shipping: str, total: str
) -> None:
    line = {"description": "Chair", "quantity": 4, "unit_price": 30, "amount": 100}
    given: dict[str, object] = {
        **{"invoice_number": "1", "invoice_date": "2024-03-01", "seller": "A", "items": [line]},
        **{"net_total": net, "discount": discount, "shipping": shipping, "tax": "19"},
    }
    assert Invoice.model_validate({**given, "total": total}).items[0].amount == 100
    for change in ({"net_total": "85"}, {"total": "113"}, {"discount": "-9"}, {"tax": "18"}):
        with pytest.raises(ValueError, match=r"the amount of 'Chair' is 100, and .* 120\.00"):
            Invoice.model_validate({**given, "total": total, **change})
    more = {"items": [{**line, "amount": 130}], "net_total": "130", "total": "144"}
    with pytest.raises(ValueError, match="the amount of 'Chair' is 130"):
        Invoice.model_validate({**given, **more})


def test_amounts_of_the_accounts_and_numbers_of_local_taxes_are_not_the_invoices() -> None:
    other = '<ram:TaxTotalAmount currencyID="CHF">7.99</ram:TaxTotalAmount><ram:TaxTotal'
    assert read_einvoice(XML.replace("<ram:TaxTotal", other).encode())["tax"] == Decimal("8.25")
    tax = '<cac:TaxTotal><cbc:TaxAmount currencyID="SEK">240</cbc:TaxAmount></cac:TaxTotal>'
    local = "<cac:PartyTaxScheme><cbc:CompanyID>0417</cbc:CompanyID><cac:TaxScheme><cbc:ID>LOC"
    local += "</cbc:ID></cac:TaxScheme></cac:PartyTaxScheme>"
    ubl = UBL.replace("<cac:TaxTotal>", f"{tax}<cac:TaxTotal>", 1)
    ubl = ubl.replace("<cac:PartyTaxScheme>", f"{local}<cac:PartyTaxScheme>", 1)
    fields = read_einvoice(ubl.encode())
    assert (fields["tax"], fields["seller_vat"]) == (21, "BE0123456749")


def test_the_xml_is_never_used_unasked(tmp_path: Path) -> None:
    write_french_invoice(tmp_path / "fr.pdf")
    found = extract(ScriptedAsker([]), tmp_path / "fr.pdf", "invoice")
    assert found["total"].value is None
    assert any("source=xml" in note for note in found.notes)
    other = {"title": "A", "type": "object", "properties": {"color": {"type": "string"}}}
    found = extract(ScriptedAsker([]), tmp_path / "fr.pdf", other)
    assert not any("source=xml" in note for note in found.notes)


def test_an_xml_file_is_an_invoice_of_its_own_and_schemas_choose_values(tmp_path: Path) -> None:
    (tmp_path / "a.xml").write_text(UBL, encoding="utf-8")
    schema = {
        "title": "Short",
        "type": "object",
        "required": ["total", "color"],
        "properties": {
            "total": {"type": "number"},
            "due_date": {"type": "string", "format": "date"},
            "color": {"type": "string", "maxLength": 9},
        },
    }
    for source in (tmp_path / "a.xml", UBL.encode(), UBL.encode("utf-16")):
        found = extract(None, source, schema, FROM_XML)
        assert (found["total"].value, found["due_date"].value) == (
            121.0,
            datetime.date(2024, 3, 31),
        )
        assert found["color"].problems == ("required, and not in the XML",)
        assert (found["total"].page, found["total"].box_xyxy, found.num_pages) == (None, None, 0)
    with pytest.raises(OptionError, match="no value of an electronic invoice"):
        extract(None, UBL.encode(), "prescription", FROM_XML)
    with pytest.raises(OptionError, match="no model"):
        extract(None, tmp_path / "a.png", schema)
    with pytest.raises(OptionError, match="asks no model"):
        ExtractOptions(source="xml", check="twice")


def test_the_command_takes_xml_and_loads_no_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(LoadOptions, "load", lambda self: pytest.fail("loaded"))
    monkeypatch.chdir(tmp_path)
    write_french_invoice(tmp_path / "fr.pdf")
    Path("ubl.xml").write_text(UBL, encoding="utf-8")
    Path("bomb.xml").write_text('<!DOCTYPE a [<!ENTITY b "c">]><Invoice>&b;</Invoice>')
    Path("plain.tiff").write_bytes(b"II*\0")
    names = ["fr.pdf", "ubl.xml", "bomb.xml", "plain.tiff"]
    with pytest.raises(SystemExit) as stopped:
        main(["extract", *names, "--schema", "invoice", "--source", "xml", "--json"])
    assert stopped.value.code == 3
    out, err = capsys.readouterr()
    lines = [json.loads(line) for line in out.splitlines()]
    assert [("error" in line, line["file"]) for line in lines] == [
        (name in names[2:], name) for name in names
    ]
    assert lines[1]["result"]["fields"][0]["value"] == "2024-9"
    assert "declares a document type or entities" in err
