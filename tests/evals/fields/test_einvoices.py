"""Electronic invoices in German, French and UBL, and XML that is damaged or unsafe."""

from __future__ import annotations

import datetime
from decimal import Decimal
from pathlib import Path

import pytest

from paligemma.data.record import BadRecord
from paligemma.errors import DataError
from paligemma.evals.fields.datasets import find_field_benchmark, open_field_benchmark
from paligemma.evals.fields.einvoices import read_einvoices
from paligemma.evals.fields.records import FieldRecord
from tests.extraction.french_invoice import write_french_invoice
from tests.extraction.test_einvoice import UBL

pytest.importorskip("pypdfium2", reason="the docs extra is not installed")
pytest.importorskip("defusedxml", reason="the docs extra is not installed")


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


def test_folders_without_invoices_are_refused(tmp_path: Path) -> None:
    benchmark = find_field_benchmark("einvoices")
    assert benchmark is not None
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(DataError):
            open_field_benchmark(benchmark, folder)
