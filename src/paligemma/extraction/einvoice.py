"""Electronic invoices: the XML that the sender wrote, alone or inside of a PDF file.

Factur-X and ZUGFeRD 1 and 2 (UN/CEFACT Cross Industry Invoice), and UBL 2 invoices and credit
notes, are read into the fields of the built-in schema `invoice`; what is charged beside the lines
is `shipping`. What the XML does not say is left out: the page may still print it.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal
from typing import Any
from xml.etree import ElementTree

from paligemma.documents.page import Attachment
from paligemma.errors import DocumentError, MissingExtraError
from paligemma.results import one_line

Element = Any
"""Of xml.etree."""
_LARGEST_XML = 16 * 2**20
_MOST_ELEMENTS = 200_000
_MOST_LEVELS = 64
_MOST_ATTRIBUTES = 64
_NUMBER = re.compile(r"[+-]?[0-9]{1,30}(\.[0-9]{0,30})?|[+-]?\.[0-9]{1,30}")

ITEM_FIELDS = ("description", "quantity", "unit_price", "amount")
FIELDS = (
    *("invoice_number", "invoice_date", "due_date", "seller", "seller_vat", "buyer", "currency"),
    *("net_total", "discount", "tax", "shipping", "total", "iban", "items"),
)
"""What is read, by its names in the built-in schema `invoice`."""

STANDARD_NAMES = ("factur-x.xml", "xrechnung.xml", "zugferd-invoice.xml")
"""What Factur-X and ZUGFeRD call the XML inside of a PDF file, in any case of letters."""

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


def einvoice_in(attachments: Sequence[Attachment]) -> Attachment | None:
    """The XML of the invoice among the files inside a PDF file: the one with a name of the
    standards, else the only XML file.

    Raises DocumentError where there are several without such a name.
    """
    files = [each for each in attachments if each.name.lower().endswith(".xml")]
    for name in STANDARD_NAMES:
        for each in files:
            if each.name.lower() == name:
                return each
    if len(files) > 1:
        raise DocumentError(
            f"The document has {len(files)} XML files inside, and none has a name of an electronic "
            f"invoice: {', '.join(STANDARD_NAMES)}."
        )
    return files[0] if files else None


def read_einvoice(xml: bytes) -> dict[str, Any]:
    """The fields of an invoice's XML, with amounts as Decimal and dates as date.

    Raises DocumentError for XML that is damaged, unsafe (entities, or nested too deep) or no
    invoice.
    """
    root = _parsed(xml)
    name = root.tag.rpartition("}")[2]
    if name not in ("CrossIndustryInvoice", "CrossIndustryDocument", "Invoice", "CreditNote"):
        raise DocumentError(
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
    # The page need not print that nothing was taken off or added.
    for key in ("discount", "shipping"):
        if fields.get(key) == 0:
            fields[key] = None
    fields["items"] = [_item(line) for line in _all(root, _LINES)]
    return fields


def _parsed(xml: bytes) -> Element:
    try:
        from defusedxml import DefusedXmlException
        from defusedxml.ElementTree import DefusedXMLParser
    except ImportError as error:
        raise MissingExtraError("defusedxml", "docs", "Reading electronic invoices") from error
    if len(xml) > _LARGEST_XML:
        raise DocumentError(f"The XML is larger than {_LARGEST_XML // 2**20} MiB.")
    try:
        parser = DefusedXMLParser(target=_BoundedBuilder(), forbid_dtd=True)
        parser.feed(xml)
        return parser.close()
    except DefusedXmlException as error:
        raise DocumentError(
            "The XML declares a document type or entities, which are not read from files."
        ) from error
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        if isinstance(error, DocumentError):
            raise
        raise DocumentError(f"The XML is damaged: {one_line(str(error))[:200]}.") from error


class _BoundedBuilder(ElementTree.TreeBuilder):
    """Builds the tree of an invoice, which is neither deep nor endless."""

    def __init__(self) -> None:
        super().__init__()
        self._num_elements = self._level = 0

    def start(self, tag: str, attrs: dict[str, str], /) -> Element:
        self._num_elements += 1
        self._level += 1
        if self._num_elements > _MOST_ELEMENTS or self._level > _MOST_LEVELS:
            raise DocumentError(
                f"The XML has more than {_MOST_ELEMENTS} elements, or more than {_MOST_LEVELS} "
                "within each other."
            )
        if len(attrs) > _MOST_ATTRIBUTES:
            raise DocumentError(
                f"The XML has an element with more than {_MOST_ATTRIBUTES} attributes."
            )
        return super().start(tag, attrs)

    def end(self, tag: str, /) -> Element:
        self._level -= 1
        return super().end(tag)


def _cii_fields(root: Element) -> dict[str, Any]:
    sums = _joined(_joined(_SETTLEMENTS, _SUMS), ("",))

    def amount(*names: str) -> Decimal | None:
        return _amount(root, [path for name in names for path in _joined(sums, (name,))])

    currency = _text(root, _joined(_SETTLEMENTS, ("InvoiceCurrencyCode",)))
    heads = ("ExchangedDocument", "HeaderExchangedDocument")
    settled = _joined(_SETTLEMENTS, ("",))
    means = "SpecifiedTradeSettlementPaymentMeans/PayeePartyCreditorFinancialAccount/IBANID"
    due = "SpecifiedTradePaymentTerms/DueDateDateTime/DateTimeString"
    return {
        "invoice_number": _text(root, _joined(heads, ("ID",))),
        "invoice_date": _date(root, _joined(heads, ("IssueDateTime/DateTimeString",))),
        "due_date": _date(root, _joined(settled, (due,))),
        "currency": currency,
        "iban": _text(root, _joined(settled, (means,))),
        "net_total": amount("TaxBasisTotalAmount", "LineTotalAmount"),
        "discount": amount("AllowanceTotalAmount"),
        "tax": _in_currency(root, _joined(sums, ("TaxTotalAmount",)), currency),
        "shipping": amount("ChargeTotalAmount"),
        "total": amount("GrandTotalAmount"),
    }


def _ubl_fields(root: Element) -> dict[str, Any]:
    def amount(*names: str) -> Decimal | None:
        return _amount(root, [f"./LegalMonetaryTotal/{name}" for name in names])

    currency = _text(root, ("./DocumentCurrencyCode",))
    return {
        "invoice_number": _text(root, ("./ID",)),
        "invoice_date": _date(root, ("./IssueDate",)),
        "due_date": _date(root, ("./DueDate", "PaymentMeans/PaymentDueDate")),
        "currency": currency,
        "iban": _text(root, ("PaymentMeans/PayeeFinancialAccount/ID",)),
        "net_total": amount("TaxExclusiveAmount", "LineExtensionAmount"),
        "discount": amount("AllowanceTotalAmount"),
        "tax": _in_currency(root, ("./TaxTotal/TaxAmount",), currency),
        "shipping": amount("ChargeTotalAmount"),
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
        for scheme in _all(seller, ("PartyTaxScheme",)):  # others than VAT are of local taxes
            if _text(scheme, ("TaxScheme/ID",)) in ("VAT", None):
                return _text(scheme, ("CompanyID",))
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


def _read(text: str | None, paths: Iterable[str], read: Callable[[str], Any]) -> Any:
    if text is None:
        return None
    try:
        return read(text)
    except ValueError as error:
        raise DocumentError(f"{text[:40]!r} at {next(iter(paths))!r} cannot be read.") from error


def _amount(node: Element, paths: Sequence[str]) -> Decimal | None:
    value: Decimal | None = _read(_text(node, paths), paths, _read_number)
    return value


def _in_currency(node: Element, paths: Sequence[str], currency: str | None) -> Decimal | None:
    """The amount in the invoice's currency: the tax may be given in that of the accounts too."""
    for each in _all(node, paths):
        if each.get("currencyID") in (currency, None):
            value: Decimal | None = _read(_clean(each), paths, _read_number)
            return value
    return None


def _read_number(text: str) -> Decimal:
    """A decimal of XML Schema, which has no exponent."""
    if not _NUMBER.fullmatch(text):
        raise ValueError
    return Decimal(text)


def _date(node: Element, paths: Sequence[str]) -> datetime.date | None:
    value: datetime.date | None = _read(_text(node, paths), paths, _read_date)
    return value


def _read_date(text: str) -> datetime.date:
    """20240501 or 2024-05-01, maybe with a time zone."""
    return datetime.date.fromisoformat(text[:10] if "-" in text[:8] else text[:8])
