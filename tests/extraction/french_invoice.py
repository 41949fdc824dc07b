"""A French electronic invoice: a drawn page with its Factur-X XML inside the PDF file."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from paligemma.fonts import Lettering

LINES = (
    "FACTURE F-2024-0117",
    "Date de facture : 17/05/2024",
    "Échéance : 16/06/2024",
    "Vendeur : Boulangerie Éloïse SARL",
    "N° TVA : FR32123456789",
    "Client : Café de l'Étoile",
    "Croissant au beurre   120 x 0,85 €   102,00 €",
    "Pain de campagne   15 x 3,20 €   48,00 €",
    "Total HT : 150,00 €",
    "TVA 5,5 % : 8,25 €",
    "Total TTC : 158,25 €",
    "IBAN : FR76 3000 6000 0112 3456 7890 189",
)

_LINE = """
  <ram:IncludedSupplyChainTradeLineItem>
    <ram:SpecifiedTradeProduct><ram:Name>{name}</ram:Name></ram:SpecifiedTradeProduct>
    <ram:SpecifiedLineTradeAgreement><ram:NetPriceProductTradePrice>
      <ram:ChargeAmount>{price}</ram:ChargeAmount>
      <ram:BasisQuantity unitCode="C62">{per}</ram:BasisQuantity>
    </ram:NetPriceProductTradePrice></ram:SpecifiedLineTradeAgreement>
    <ram:SpecifiedLineTradeDelivery>
      <ram:BilledQuantity unitCode="C62">{quantity}</ram:BilledQuantity>
    </ram:SpecifiedLineTradeDelivery>
    <ram:SpecifiedLineTradeSettlement><ram:SpecifiedTradeSettlementLineMonetarySummation>
      <ram:LineTotalAmount>{amount}</ram:LineTotalAmount>
    </ram:SpecifiedTradeSettlementLineMonetarySummation></ram:SpecifiedLineTradeSettlement>
  </ram:IncludedSupplyChainTradeLineItem>"""

_LINES = _LINE.format(
    name="Croissant au beurre", price="0.85", per="1", quantity="120", amount="102.00"
) + _LINE.format(name="Pain de campagne", price="32.00", per="10", quantity="15", amount="48.00")

XML = f"""<?xml version="1.0" encoding="UTF-8"?>
<rsm:CrossIndustryInvoice
    xmlns:rsm="urn:un:unece:uncefact:data:standard:CrossIndustryInvoice:100"
    xmlns:ram="urn:un:unece:uncefact:data:standard:ReusableAggregateBusinessInformationEntity:100"
    xmlns:udt="urn:un:unece:uncefact:data:standard:UnqualifiedDataType:100">
<rsm:ExchangedDocument>
  <ram:ID>F-2024-0117</ram:ID><ram:TypeCode>380</ram:TypeCode>
  <ram:IssueDateTime>
    <udt:DateTimeString format="102">20240517</udt:DateTimeString>
  </ram:IssueDateTime>
</rsm:ExchangedDocument>
<rsm:SupplyChainTradeTransaction>{_LINES}
  <ram:ApplicableHeaderTradeAgreement>
    <ram:SellerTradeParty><ram:Name>Boulangerie Éloïse SARL</ram:Name>
      <ram:SpecifiedTaxRegistration>
        <ram:ID schemeID="VA">FR32123456789</ram:ID>
      </ram:SpecifiedTaxRegistration></ram:SellerTradeParty>
    <ram:BuyerTradeParty><ram:Name>Café de l'Étoile</ram:Name></ram:BuyerTradeParty>
  </ram:ApplicableHeaderTradeAgreement>
  <ram:ApplicableHeaderTradeSettlement>
    <ram:InvoiceCurrencyCode>EUR</ram:InvoiceCurrencyCode>
    <ram:SpecifiedTradeSettlementPaymentMeans><ram:PayeePartyCreditorFinancialAccount>
      <ram:IBANID>FR7630006000011234567890189</ram:IBANID>
    </ram:PayeePartyCreditorFinancialAccount></ram:SpecifiedTradeSettlementPaymentMeans>
    <ram:SpecifiedTradePaymentTerms><ram:DueDateDateTime>
      <udt:DateTimeString format="102">20240616</udt:DateTimeString>
    </ram:DueDateDateTime></ram:SpecifiedTradePaymentTerms>
    <ram:SpecifiedTradeSettlementHeaderMonetarySummation>
      <ram:LineTotalAmount>150.00</ram:LineTotalAmount>
      <ram:AllowanceTotalAmount>0.00</ram:AllowanceTotalAmount>
      <ram:TaxTotalAmount currencyID="EUR">8.25</ram:TaxTotalAmount>
      <ram:GrandTotalAmount>158.25</ram:GrandTotalAmount>
    </ram:SpecifiedTradeSettlementHeaderMonetarySummation>
  </ram:ApplicableHeaderTradeSettlement>
</rsm:SupplyChainTradeTransaction>
</rsm:CrossIndustryInvoice>"""

# What a reader who knows the truth answers, by what the question is about.
ANSWERS = {
    "invoice number": "F-2024-0117",
    "invoice date": "17/05/2024",
    "due date": "16/06/2024",
    "name of the seller": "Boulangerie Éloïse SARL",
    "vat number of the seller": "FR32123456789",
    "name of the buyer": "Café de l'Étoile",
    "total without tax": "150,00 €",
    "total tax": "8,25 €",
    "total amount": "158,25 €",
    "iban": "FR76 3000 6000 0112 3456 7890 189",
    "which items": "Croissant au beurre; Pain de campagne",
    "quantity of croissant": "120",
    "unit price of croissant": "0,85 €",
    "amount of croissant": "102,00 €",
    "quantity of pain": "15",
    "unit price of pain": "3,20 €",
    "amount of pain": "48,00 €",
}


def write_french_invoice(path: Path) -> None:
    """Write the PDF file: one page as an image, and the XML as an attachment."""
    import pypdfium2

    image = Image.new("RGB", (595, 842), "white")
    lettering = Lettering(16)
    for number, line in enumerate(LINES):
        lettering.draw(image, (50, 60 + 30 * number), line, (0, 0, 0))
    page = io.BytesIO()
    image.save(page, "PDF", resolution=72)
    document = pypdfium2.PdfDocument(page.getvalue())
    document.new_attachment("factur-x.xml").set_data(XML.encode())
    document.save(path)
    document.close()
