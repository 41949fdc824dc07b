"""Electronic invoices in German, French and UBL, and XML that is damaged or unsafe."""

from __future__ import annotations

import datetime
from decimal import Decimal
from pathlib import Path

import pytest

from paligemma.data.record import BadRecord
from paligemma.errors import DataError
from paligemma.evals.fields.datasets import find_field_benchmark, open_field_benchmark
from paligemma.evals.fields.einvoices import read_einvoice, read_einvoices
from paligemma.evals.fields.records import FieldRecord
from tests.evals.fields.french_invoice import XML, write_french_invoice

pytest.importorskip("pypdfium2", reason="the docs extra is not installed")
pytest.importorskip("defusedxml", reason="the docs extra is not installed")

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


def test_a_folder_of_invoices_is_a_data_set(tmp_path: Path, shared_data: Path) -> None:
    write_french_invoice(tmp_path / "fr.pdf")
    (tmp_path / "de.pdf").write_bytes((shared_data / "documents" / "einvoice_de.pdf").read_bytes())
    (tmp_path / "plain.pdf").write_bytes(
        (shared_data / "documents" / "bank_statement.pdf").read_bytes()
    )
    (tmp_path / "damaged.pdf").write_bytes(b"%PDF-1.4 cut")
    benchmark = find_field_benchmark("einvoices")
    assert benchmark is not None
    slots = {slot.record_id: slot for slot in open_field_benchmark(benchmark, tmp_path)}
    german, french = slots["de.pdf"], slots["fr.pdf"]
    assert isinstance(german, FieldRecord)
    assert isinstance(french, FieldRecord)
    assert french.fields["total"] == Decimal("158.25")
    assert german.fields["invoice_number"] == "RE-20170509/505"
    assert german.fields["invoice_date"] == datetime.date(2017, 5, 9)
    assert (german.fields["net_total"], german.fields["tax"]) == (496, Decimal("75.04"))
    assert german.fields["iban"] == "DE88 2008 0000 0970 3757 00"
    assert [item["amount"] for item in german.fields["items"]] == [160, 316, 20]
    assert german.fields["items"][1]["description"] == "Luftballon: Bunt, ca. 500ml"
    plain, damaged = slots["plain.pdf"], slots["damaged.pdf"]
    assert isinstance(plain, BadRecord)
    assert "no XML file" in plain.reason
    assert isinstance(damaged, BadRecord)
    (tmp_path / "plain.xml").write_text(UBL)
    by_name = {slot.record_id: slot for slot in read_einvoices(tmp_path)}
    beside = by_name["plain.pdf"]
    assert isinstance(beside, FieldRecord)
    assert beside.fields["invoice_number"] == "2024-9"


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
        (UBL.replace("121.00", "NaN"), "not finite"),
        (UBL.replace("121.00", "a lot"), "'a lot'"),
    ],
)
def test_unsafe_and_damaged_xml_is_refused(xml: str, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        read_einvoice(xml.encode())


def test_folders_without_invoices_are_refused(tmp_path: Path) -> None:
    benchmark = find_field_benchmark("einvoices")
    assert benchmark is not None
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(DataError):
            open_field_benchmark(benchmark, folder)
