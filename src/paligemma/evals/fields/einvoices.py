"""Electronic invoices: PDF files that carry their own truth as XML.

Factur-X and ZUGFeRD 1 and 2 (UN/CEFACT Cross Industry Invoice), and UBL 2 invoices and credit
notes, are read into the fields of the built-in schema `invoice`. What the XML does not say is left
out: the page may still print it.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable, Iterator
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from paligemma.data.record import BadRecord
from paligemma.documents.open import open_document
from paligemma.errors import DataError, MissingExtraError, PaliGemmaError
from paligemma.evals.fields.records import FieldRecord

Element = Any
"""Of xml.etree."""
_LARGEST_XML = 16 * 2**20

# Paths with the alternatives of ZUGFeRD 2 (Factur-X), ZUGFeRD 1 and UBL.
_SELLER = ("SellerTradeParty", "AccountingSupplierParty/Party")
_BUYER = ("BuyerTradeParty", "AccountingCustomerParty/Party")
_PARTY_NAMES = ("Name", "PartyLegalEntity/RegistrationName", "PartyName/Name")
_SUMS = (
    "SpecifiedTradeSettlementHeaderMonetarySummation",
    "SpecifiedTradeSettlementMonetarySummation",
)
_SETTLEMENTS = ("ApplicableHeaderTradeSettlement", "ApplicableSupplyChainTradeSettlement")
_LINES = ("IncludedSupplyChainTradeLineItem", "InvoiceLine", "CreditNoteLine")
_QUANTITIES = (
    "SpecifiedLineTradeDelivery/BilledQuantity",
    "SpecifiedSupplyChainTradeDelivery/BilledQuantity",
    "InvoicedQuantity",
    "CreditedQuantity",
)
_LINE_AMOUNTS = (
    "SpecifiedLineTradeSettlement/SpecifiedTradeSettlementLineMonetarySummation/LineTotalAmount",
    "SpecifiedSupplyChainTradeSettlement/SpecifiedTradeSettlementMonetarySummation/LineTotalAmount",
    "LineExtensionAmount",
)
_PRICES = (
    "SpecifiedLineTradeAgreement/NetPriceProductTradePrice",
    "SpecifiedSupplyChainTradeAgreement/NetPriceProductTradePrice",
    "Price",
)


def read_einvoices(folder: Path) -> Iterator[FieldRecord | BadRecord]:
    """A record for each PDF file with XML inside, or with an .xml file of the same name next to it.

    Raises DataError for a folder without PDF files.
    """
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() == ".pdf")
    if not paths:
        raise DataError(f"The folder {str(folder)!r} has no PDF files.")
    for path in paths:
        name = path.relative_to(folder).as_posix()
        try:
            fields = read_einvoice(_xml_of(path))
            yield FieldRecord(record_id=name, source=path, fields=fields, where=name)
        except MissingExtraError:
            raise
        except PaliGemmaError as error:
            yield BadRecord(record_id=name, where=name, reason=f"{name}: {error}")


def _xml_of(path: Path) -> bytes:
    with open_document(path) as document:
        inside = [a for a in document.attachments if a.name.lower().endswith(".xml")]
        inside.sort(key=lambda attachment: "invoice" not in attachment.name.lower())
        if inside:
            return inside[0].data()
    beside = path.with_suffix(".xml")
    if not beside.is_file():
        raise DataError("There is no XML file in the PDF file, and none of its name next to it.")
    return beside.read_bytes()


def read_einvoice(xml: bytes) -> dict[str, Any]:
    """The fields of an invoice's XML, with amounts as Decimal and dates as date.

    Raises DataError for XML that is damaged, unsafe (entities) or no invoice.
    """
    root = _parsed(xml)
    name = root.tag.rpartition("}")[2]
    if name not in ("CrossIndustryInvoice", "CrossIndustryDocument", "Invoice", "CreditNote"):
        raise DataError(
            f"The XML is not an electronic invoice: its root is {name[:80]!r}; expected Factur-X, "
            "ZUGFeRD or UBL."
        )
    is_ubl = name in ("Invoice", "CreditNote")
    fields = _ubl_fields(root) if is_ubl else _cii_fields(root)
    fields |= {
        "seller": _text(root, _joined(_SELLER, _PARTY_NAMES)),
        "buyer": _text(root, _joined(_BUYER, _PARTY_NAMES)),
        "seller_vat": _vat(root),
    }
    fields = {key: value for key, value in fields.items() if value is not None}
    # The page need not print that nothing was taken off.
    if fields.get("discount") == 0:
        fields["discount"] = None
    fields["items"] = [_item(line) for line in _all(root, _LINES)]
    return fields


def _parsed(xml: bytes) -> Element:
    try:
        from defusedxml import DefusedXmlException, ElementTree
    except ImportError as error:
        raise MissingExtraError("defusedxml", "docs", "Reading electronic invoices") from error
    if len(xml) > _LARGEST_XML:
        raise DataError(f"The XML is larger than {_LARGEST_XML // 2**20} MiB.")
    try:
        return ElementTree.fromstring(xml)
    except DefusedXmlException as error:
        raise DataError("The XML declares entities, which are not read from files.") from error
    except (ElementTree.ParseError, ValueError, LookupError, RecursionError) as error:
        raise DataError(f"The XML is damaged: {error}.") from error


def _cii_fields(root: Element) -> dict[str, Any]:
    sums = _joined(_joined(_SETTLEMENTS, _SUMS), ("",))

    def amount(name: str) -> Decimal | None:
        return _amount(root, _joined(sums, (name,)))

    heads = ("ExchangedDocument", "HeaderExchangedDocument")
    settled = _joined(_SETTLEMENTS, ("",))
    means = "SpecifiedTradeSettlementPaymentMeans/PayeePartyCreditorFinancialAccount/IBANID"
    due = "SpecifiedTradePaymentTerms/DueDateDateTime/DateTimeString"
    return {
        "invoice_number": _text(root, _joined(heads, ("ID",))),
        "invoice_date": _date(root, _joined(heads, ("IssueDateTime/DateTimeString",))),
        "due_date": _date(root, _joined(settled, (due,))),
        "currency": _text(root, _joined(settled, ("InvoiceCurrencyCode",))),
        "iban": _text(root, _joined(settled, (means,))),
        "net_total": amount("LineTotalAmount"),
        "discount": amount("AllowanceTotalAmount"),
        "tax": amount("TaxTotalAmount"),
        "total": amount("GrandTotalAmount"),
    }


def _ubl_fields(root: Element) -> dict[str, Any]:
    def amount(name: str) -> Decimal | None:
        return _amount(root, (f"./LegalMonetaryTotal/{name}",))

    return {
        "invoice_number": _text(root, ("./ID",)),
        "invoice_date": _date(root, ("./IssueDate",)),
        "due_date": _date(root, ("./DueDate", "PaymentMeans/PaymentDueDate")),
        "currency": _text(root, ("./DocumentCurrencyCode",)),
        "iban": _text(root, ("PaymentMeans/PayeeFinancialAccount/ID",)),
        "net_total": amount("LineExtensionAmount"),
        "discount": amount("AllowanceTotalAmount"),
        "tax": _amount(root, ("./TaxTotal/TaxAmount",)),
        "total": amount("TaxInclusiveAmount"),
    }


def _item(line: Element) -> dict[str, Any]:
    item = {
        "description": _text(line, ("SpecifiedTradeProduct/Name", "Item/Name")),
        "quantity": _amount(line, _QUANTITIES),
        "unit_price": None,
        "amount": _amount(line, _LINE_AMOUNTS),
    }
    price = _amount(line, _joined(_PRICES, ("ChargeAmount", "PriceAmount")))
    per = _amount(line, _joined(_PRICES, ("BasisQuantity", "BaseQuantity"))) or Decimal(1)
    if price is not None and per == 1:  # other prices are printed in ways of their own
        item["unit_price"] = price
    return {key: value for key, value in item.items() if value is not None}


def _vat(root: Element) -> str | None:
    for seller in _all(root, _SELLER):
        for number in _all(seller, ("SpecifiedTaxRegistration/ID",)):
            if number.get("schemeID") == "VA":
                return _clean(number)
        for number in _all(seller, ("PartyTaxScheme/CompanyID",)):
            return _clean(number)
    return None


def _joined(above: Iterable[str], below: Iterable[str]) -> tuple[str, ...]:
    """Every path of the one followed by every path of the other."""
    return tuple(f"{first}/{last}".rstrip("/") for first in above for last in below)


def _all(node: Element, paths: Iterable[str]) -> list[Element]:
    """Elements at one of the paths, in any name space; "./" begins at the node itself."""
    found: list[Element] = []
    for path in paths:
        is_direct = path.startswith("./")
        steps = "/".join(f"{{*}}{step}" for step in path.removeprefix("./").split("/"))
        found += node.findall(steps if is_direct else f".//{steps}")
    return found


def _clean(node: Element) -> str | None:
    return " ".join("".join(node.itertext()).split()) or None


def _text(node: Element, paths: Iterable[str]) -> str | None:
    return next((text for each in _all(node, paths) if (text := _clean(each))), None)


def _value(node: Element, paths: Iterable[str], read: Callable[[str], Any]) -> Any:
    text = _text(node, paths)
    if text is None:
        return None
    try:
        return read(text)
    except (ValueError, InvalidOperation) as error:
        raise DataError(f"{text[:40]!r} at {next(iter(paths))!r} cannot be read.") from error


def _amount(node: Element, paths: Iterable[str]) -> Decimal | None:
    value: Decimal | None = _value(node, tuple(paths), Decimal)
    if value is not None and not value.is_finite():
        raise DataError(f"The amount {value} is not finite.")
    return value


def _date(node: Element, paths: Iterable[str]) -> datetime.date | None:
    value: datetime.date | None = _value(node, tuple(paths), _read_date)
    return value


def _read_date(text: str) -> datetime.date:
    """20240501 or 2024-05-01, maybe with a time zone."""
    return datetime.date.fromisoformat(text[:10] if "-" in text[:8] else text[:8])
