"""Draw papers that mini was not trained on, with their ground truth.

    python -m mini.paper --kind prescription --seed 7 paper.png paper.json
    python -m mini.paper --kind invoice --pages 3 --long invoice.pdf invoice.json
    python -m mini.paper --kind receipt --count 60 receipts receipts/forms.jsonl

The image is of the type that its name ends with; a PDF may have several pages, without a text
layer, as a scanner writes it. The JSON file lists the fields of each page, by their path in the
built-in schema of that kind, with value and box in pixels of the image. With --count the first
name is that of a folder of images, and the second that of a JSON Lines file as `paligemma eval`
reads it: a paper per line, with null where a paper does not have a field that others of its kind
have.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from mini.paper import PAPER_KINDS, Page, Paper, PaperKind, make_page, make_paper
from mini.scene import RESOLUTION
from paligemma.errors import OptionError, PaliGemmaError

_PRINTED: Mapping[PaperKind, tuple[str, ...]] = {
    "prescription": (
        "patient",
        "prescriber",
        "date",
        "medicines.name",
        "medicines.dose",
        "medicines.frequency",
        "medicines.duration",
        "diseases",
    ),
    "invoice": (
        "invoice_number",
        "invoice_date",
        "seller",
        "buyer",
        "tax",
        "total",
        "items.description",
        "items.amount",
    ),
    "receipt": ("merchant", "date", "tax", "total", "paid_by", "items.name", "items.price"),
    "id-card": (
        "surname",
        "given_names",
        "date_of_birth",
        "sex",
        "document_number",
        "date_of_expiry",
    ),
}
"""The fields that papers of each kind print."""
_DPI = 72.0
"""Of a PDF: one point per pixel, so that boxes are in points as well."""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m mini.paper",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("image", type=Path, help="image or PDF to write")
    parser.add_argument("truth", type=Path, help="JSON file to write")
    parser.add_argument("--kind", choices=PAPER_KINDS, default=PAPER_KINDS[0])
    parser.add_argument("--seed", type=int, default=7, help="random seed (%(default)s)")
    parser.add_argument("--index", type=int, default=0, help="number of the first (%(default)s)")
    parser.add_argument("--pages", type=int, default=1, help="pages of a PDF (%(default)s)")
    parser.add_argument("--count", type=int, help="write a folder of this many papers")
    parser.add_argument(
        "--long",
        action="store_true",
        help="long papers in two columns, whose pages are too large to be read whole",
    )
    options = parser.parse_args(arguments)
    try:
        papers = [
            _make(options.kind, options.seed, options.index + page, options.long)
            for page in range(options.count or options.pages)
        ]
        if options.count is None:
            write_papers(papers, options.image, options.truth)
        else:
            write_forms(papers, options.image, options.truth)
    except PaliGemmaError as error:
        parser.error(str(error))
    print(f"Wrote {options.image} and {options.truth}")


def write_papers(papers: Sequence[Paper | Page], image: Path, truth: Path) -> None:
    """Writes the papers as pages of one file, and what they say. Raises OptionError."""
    is_pdf = image.suffix.lower() == ".pdf"
    if not papers or (len(papers) > 1 and not is_pdf):
        raise OptionError(
            f"{image} cannot have {len(papers)} pages. Write one page, or a name ending in .pdf."
        )
    first, *others = (Image.fromarray(paper.draw(RESOLUTION)) for paper in papers)
    try:
        if is_pdf:
            first.save(image, save_all=True, append_images=others, resolution=_DPI)
        else:
            first.save(image)
        pages = [truth_of(paper) for paper in papers]
        truth.write_text(json.dumps({"pages": pages}, indent=1) + "\n", encoding="utf-8")
    except (OSError, ValueError) as error:
        raise OptionError(f"Cannot write {image} or {truth}: {error}.") from error


def write_forms(papers: Sequence[Paper | Page], folder: Path, truth: Path) -> None:
    """Writes an image per paper into a folder, and a line per paper. Raises OptionError."""
    lines = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for number, paper in enumerate(papers):
            image = folder / f"{number:03}.png"
            Image.fromarray(paper.draw(RESOLUTION)).save(image)
            line = {"file": os.path.relpath(image, truth.parent), "fields": fields_of(paper)}
            lines.append(json.dumps(line) + "\n")
        truth.write_text("".join(lines), encoding="utf-8")
    except OSError as error:
        raise OptionError(f"Cannot write {folder} or {truth}: {error}.") from error


def fields_of(paper: Paper | Page) -> dict[str, Any]:
    """The values of a paper, as in the built-in schema; None for one that only others have."""
    printed = {field.path: field.value for field in paper.fields}
    values: dict[str, Any] = {}
    for path in _PRINTED[paper.kind]:
        name, _, key = path.partition(".")
        entries = sorted({p.partition("]")[0] + "]" for p in printed if p.startswith(f"{name}[")})
        if key:
            items = values.setdefault(name, [{} for _ in entries])
            for entry, item in zip(entries, items, strict=True):
                item[key] = printed.get(f"{entry}.{key}")
        elif name == "diseases":
            values[name] = [printed[entry] for entry in entries]
        else:
            values[name] = printed.get(name)
    return values


def truth_of(paper: Paper | Page) -> dict[str, Any]:
    """What a page says: its kind, text and fields, with boxes in pixels."""
    fields = [
        {
            "path": field.path,
            "value": field.value,
            "box_xyxy": [round(edge * RESOLUTION, 2) for edge in field.box_xyxy],
        }
        for field in paper.fields
    ]
    return {"kind": paper.kind, "text": paper.text, "fields": fields}


def _make(kind: PaperKind, seed: int, index: int, is_long: bool) -> Paper | Page:
    if is_long:
        return make_page("test", seed, index, kind)
    return make_paper("test", seed, index, kind)
