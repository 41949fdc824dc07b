"""The built-in schemas: prescription, invoice, receipt, id-card, form, product.

They need pydantic, so that this file is imported when one of them is asked for.
"""

from __future__ import annotations

import datetime
import itertools
import re
from collections.abc import Iterator
from decimal import Decimal
from typing import Annotated, Any, Literal, Self

from paligemma.errors import MissingExtraError, OptionError
from paligemma.extraction.mrz import read_mrz

try:
    from pydantic import BaseModel, Field, model_validator
except ModuleNotFoundError as error:
    raise MissingExtraError("pydantic", "guided", "Extracting fields") from error

_ZERO = Decimal(0)
NOT_MEDICAL = (
    "Not for medical decisions: what is read from a prescription may be wrong. Compare it with the "
    "document."
)

Iban = Annotated[str, Field(json_schema_extra={"format": "iban"})]
"""An IBAN, whose check digits are checked."""
VatNumber = Annotated[str, Field(json_schema_extra={"format": "vat"})]
"""A VAT identification number of the EU; the check digits of some countries are checked."""

Mrz = Annotated[str, Field(json_schema_extra={"format": "mrz"})]
"""The machine-readable zone of an identity document, whose check digits are checked."""


def _short(description: str, length: int = 80, **extra: Any) -> Any:
    return Field(None, description=description, max_length=length, json_schema_extra=extra or None)


class Medicine(BaseModel):
    """A medicine on a prescription."""

    name: str = Field(
        description="name of the medicine", max_length=60, json_schema_extra={"names": True}
    )
    dose: str | None = _short("dose of {name}", 40)
    frequency: str | None = _short(
        "frequency", 60, question="How often is {name} taken?", second_question="{name} frequency?"
    )
    duration: str | None = _short("duration", 40, question="How long is {name} taken?")


class Prescription(BaseModel):
    """What a doctor prescribed."""

    patient: str | None = _short("name of the patient")
    prescriber: str | None = _short("name of the doctor")
    date: datetime.date | None = Field(None, description="date of the prescription")
    medicines: list[Medicine] = Field(
        default_factory=list,
        max_length=30,
        json_schema_extra={"question": "Which medicines are mentioned in the prescription?"},
    )
    diseases: list[Annotated[str, Field(max_length=60)]] = Field(
        default_factory=list,
        max_length=20,
        json_schema_extra={"question": "Which diseases are mentioned in the prescription?"},
    )


class InvoiceItem(BaseModel):
    """A line of an invoice."""

    description: str = Field(description="description of the item", max_length=100)
    quantity: Decimal | None = Field(None, description="quantity of {description}")
    unit_price: Decimal | None = Field(None, description="unit price of {description}")
    amount: Decimal | None = Field(None, description="amount of {description}")

    def wrong_product(self, *, may_be_less: bool) -> Iterator[str]:
        """Says that the amount is not quantity times unit price; less of it may be a discount."""
        if self.quantity is None or self.unit_price is None or self.amount is None:
            return
        product = self.quantity * self.unit_price
        is_less = 0 <= self.amount < product or product < self.amount <= 0
        if not (is_less and may_be_less):
            yield from _compared(f"the amount of {self.description!r}", self.amount, product)


class Invoice(BaseModel):
    """An invoice, whose sums must agree."""

    invoice_number: str = Field(max_length=40)
    invoice_date: datetime.date
    due_date: datetime.date | None = Field(None, description="due date")
    seller: str = Field(description="name of the seller", max_length=80)
    seller_vat: VatNumber | None = Field(None, description="VAT number of the seller")
    buyer: str | None = _short("name of the buyer")
    currency: str | None = _short("currency", 12)
    net_total: Decimal | None = Field(None, description="total without tax")
    discount: Decimal | None = None
    tax: Decimal | None = Field(None, description="total tax")
    shipping: Decimal | None = Field(None, description="cost of shipping")
    total: Decimal = Field(description="total amount")
    iban: Iban | None = Field(None, description="IBAN")
    items: list[InvoiceItem] = Field(
        default_factory=list,
        max_length=60,
        json_schema_extra={"question": "Which items are on the invoice?"},
    )

    @model_validator(mode="after")
    def numbers_agree(self) -> Self:
        wrong = [*self._wrong_sums()]
        if self.due_date is not None and self.due_date < self.invoice_date:
            wrong.append("the due date is before the date of the invoice")
        if wrong:
            raise ValueError("; ".join(wrong))
        return self

    def _wrong_sums(self) -> Iterator[str]:
        off, added = abs(self.discount or _ZERO), self.shipping or _ZERO
        below = added - off
        amounts = [item.amount for item in self.items if item.amount is not None]
        lines = sum(amounts, _ZERO) if amounts and len(amounts) == len(self.items) else None
        # The total without tax is printed before or after what is taken off and added below lines.
        wrong = [[*self._wrong_totals(lines, part, below - part)] for part in (_ZERO, below, -off)]
        least_wrong = min(wrong, key=len)
        is_sum = lines is not None and self.net_total is not None and not least_wrong
        for item in self.items:
            yield from item.wrong_product(may_be_less=is_sum)
        yield from least_wrong

    def _wrong_totals(self, lines: Decimal | None, above: Decimal, below: Decimal) -> Iterator[str]:
        """`above`, `below`: what is taken off or added above and below the total without tax."""
        if self.net_total is not None and lines is not None:
            yield from _compared("the total without tax", self.net_total, lines + above)
        if self.net_total is not None and self.tax is not None:
            yield from _compared("the total", self.total, self.net_total + self.tax + below)


class ReceiptItem(BaseModel):
    """A line of a receipt."""

    name: str = Field(description="name of the item", max_length=80)
    quantity: Decimal | None = Field(None, description="quantity of {name}")
    price: Decimal | None = Field(None, description="price of {name}")


class Receipt(BaseModel):
    """A receipt of a shop or restaurant."""

    merchant: str | None = _short("name of the shop")
    date: datetime.date | None = Field(None, description="date of the receipt")
    time: datetime.time | None = Field(None, description="time of the receipt")
    currency: str | None = _short("currency", 12)
    subtotal: Decimal | None = Field(None, description="subtotal")
    tax: Decimal | None = Field(None, description="tax")
    total: Decimal = Field(description="total")
    paid_by: str | None = _short("method of payment", 40)
    items: list[ReceiptItem] = Field(
        default_factory=list,
        max_length=60,
        json_schema_extra={"question": "Which items are on the receipt?"},
    )


class IdCard(BaseModel):
    """An identity card, passport or driving license, whose dates and numbers must agree."""

    surname: str = Field(description="surname", max_length=60)
    given_names: str | None = _short("given names", 60)
    document_number: str | None = _short("number of the document", 30)
    date_of_birth: datetime.date | None = Field(None, description="date of birth")
    place_of_birth: str | None = _short("place of birth", 60)
    nationality: str | None = _short("nationality", 40)
    sex: str | None = _short("sex", 12)
    date_of_issue: datetime.date | None = Field(None, description="date of issue")
    date_of_expiry: datetime.date | None = Field(None, description="date of expiry")
    authority: str | None = _short("authority that issued the document")
    mrz: Mrz | None = Field(None, description="machine-readable zone")

    @model_validator(mode="after")
    def parts_agree(self) -> Self:
        wrong = [*self._wrong_dates(), *self._unlike_zone()]
        if wrong:
            raise ValueError("; ".join(wrong))
        return self

    def _wrong_dates(self) -> Iterator[str]:
        dates = (
            ("birth", self.date_of_birth),
            ("issue", self.date_of_issue),
            ("expiry", self.date_of_expiry),
        )
        known = [(name, date) for name, date in dates if date is not None]
        for (first, earlier), (second, later) in itertools.pairwise(known):
            if later < earlier:
                yield f"the date of {second} is before the date of {first}"

    def _unlike_zone(self) -> Iterator[str]:
        zone = None if self.mrz is None else read_mrz(self.mrz)
        if zone is None or not zone.is_valid:  # wrong check digits are a problem of their own
            return
        number = re.sub(r"[\W_]", "", self.document_number or "").upper()
        for what, printed, coded in (
            ("number of the document", number, zone.number),
            ("date of birth", _six_digits(self.date_of_birth), zone.date_of_birth),
            ("date of expiry", _six_digits(self.date_of_expiry), zone.date_of_expiry),
        ):
            if printed and printed != coded:
                yield f"the {what} is not that of the machine-readable zone"


class FormEntry(BaseModel):
    """A label of a form and what is written next to it."""

    label: str = Field(description="label", max_length=80)
    value: str | None = _short(
        "value", 100, question="What is written next to {label}?", second_question="{label}"
    )


class Form(BaseModel):
    """Any form, as pairs of label and value."""

    title: str | None = _short("title of the form")
    entries: list[FormEntry] = Field(
        default_factory=list,
        max_length=100,
        json_schema_extra={"question": "Which labels are on the form?"},
    )


# fmt: off
ProductCategory = Literal[
    "clothing", "shoes", "bag", "jewelry", "watch", "glasses", "furniture", "lamp",
    "home textile", "kitchenware", "tableware", "food", "drink", "cosmetics", "electronics",
    "tool", "toy", "book", "stationery", "sports equipment", "plant", "decoration",
]
ProductColor = Literal[
    "black", "white", "gray", "silver", "gold", "brown", "beige", "red", "orange", "yellow",
    "green", "blue", "purple", "pink", "multicolored", "transparent",
]
ProductMaterial = Literal[
    "cotton", "wool", "leather", "denim", "silk", "synthetic fabric", "wood", "metal", "glass",
    "plastic", "rubber", "ceramic", "stone", "paper", "cardboard",
]
ProductPattern = Literal[
    "plain", "striped", "checked", "dotted", "floral", "geometric", "animal print", "printed",
]
# fmt: on


class Product(BaseModel):
    """An article of a shop, as its photo shows it."""

    category: ProductCategory | None = Field(None, description="What kind of product is this?")
    color: ProductColor | None = Field(None, description="What color is the product?")
    material: ProductMaterial | None = Field(None, description="What is the product made of?")
    pattern: ProductPattern | None = Field(None, description="What pattern does the product have?")
    brand: str | None = _short("What is the brand of the product?", 40)
    label_text: str | None = _short("What is written on the product?")
    count: int | None = Field(None, description="How many products are there?")


BUILTIN: dict[str, type[BaseModel]] = {
    "prescription": Prescription,
    "invoice": Invoice,
    "receipt": Receipt,
    "id-card": IdCard,
    "form": Form,
    "product": Product,
}


def builtin_schema(name: str) -> type[Any]:
    """Return the model of a built-in schema. Raises OptionError for another name."""
    if name not in BUILTIN:
        raise OptionError(
            f"There is no schema {name[:80]!r}. The built-in ones are: {', '.join(BUILTIN)}."
        )
    return BUILTIN[name]


def _six_digits(date: datetime.date | None) -> str:
    return "" if date is None else date.strftime("%y%m%d")


def _compared(what: str, printed: Decimal, computed: Decimal) -> Iterator[str]:
    if abs(computed - printed) > Decimal("0.015"):
        yield f"{what} is {printed}, and its parts make {computed:.2f}"
