"""Electronic invoices as a benchmark: PDF files that carry their own truth as XML."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from paligemma.data.record import BadRecord
from paligemma.documents.open import open_document
from paligemma.errors import DataError, MissingExtraError, PaliGemmaError
from paligemma.evals.fields.records import FieldRecord
from paligemma.extraction.einvoice import einvoice_in, read_einvoice


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
        inside = einvoice_in(document.attachments)
        if inside is not None:
            return inside.data()
    beside = path.with_suffix(".xml")
    if not beside.is_file():
        raise DataError("There is no XML file in the PDF file, and none of its name next to it.")
    return beside.read_bytes()
