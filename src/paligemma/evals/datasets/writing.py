"""PubTabNet, FinTabNet, ChemDraw, GrandStaff and MIMIC-CXR: longer texts about an image.

HTML, SMILES, **kern and reports. The papers publish no prompts for these tasks; those here are
this package's own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from paligemma.data.record import Record
from paligemma.data.source import read_text
from paligemma.errors import ImageError
from paligemma.evals.datasets.benchmark import Benchmark, Item, SplitSource, item
from paligemma.evals.datasets.files import read_csv, read_json_lines, read_table
from paligemma.evals.metrics.captions import Bleu, Cider
from paligemma.evals.metrics.molecules import SmilesExactMatch, TanimotoSimilarity
from paligemma.evals.metrics.tables import Grits, Teds
from paligemma.evals.metrics.texts import ErrorRate
from paligemma.processor.image import load_image
from paligemma.tasks.table import TABLE_PROMPT

MOLECULE_PROMPT = "molecule"
MUSIC_PROMPT = "music"
REPORT_PROMPT = "report {indication}"
_TAG = re.compile(r"</?[a-zA-Z]+[^<>]*>")


def _read_pubtabnet(source: SplitSource) -> Iterator[Item]:
    for entry in read_json_lines(source.folder / "PubTabNet_2.0.0.jsonl"):
        if entry["split"] == source.split:
            name = entry["filename"]
            image = source.folder / source.split / name
            yield item(name, image, TABLE_PROMPT, _table_html(entry["html"]))


def _table_html(html: dict[str, Any]) -> str:
    """The HTML of the structure, with each cell's text inside.

    Tokens are characters, or tags such as <b>. The structure may include the <table> tags.

    >>> _table_html({"structure": {"tokens": ["<tr>", "<td>", "</td>", "</tr>"]},
    ...              "cells": [{"tokens": ["<b>", ">", "9", "</b>"]}]})
    '<table><tr><td><b>&gt;9</b></td></tr></table>'
    """
    cells = iter(html["cells"])
    pieces = []
    for token in html["structure"]["tokens"]:
        if token.endswith("</td>"):
            cell = next(cells, None)
            if cell is None:
                raise ValueError("a table has fewer cells than its structure")
            text = (t if _TAG.fullmatch(t) else escape(t) for t in cell["tokens"])
            pieces += [token.removesuffix("</td>"), *text, "</td>"]
        else:
            pieces.append(token)
    html_text = "".join(pieces)
    return html_text if html_text.startswith("<table") else f"<table>{html_text}</table>"


_FINTABNET = "https://developer.ibm.com/exchanges/data/all/fintabnet"
_PIXELS_PER_POINT = 2  # 144 pixels and 72 points per inch


def _read_fintabnet(source: SplitSource) -> Iterator[Item]:
    """A line is one table: `filename` "HAL/2009/page_77.pdf", and its box on that page."""
    folder = source.folder / "fintabnet"
    for entry in read_json_lines(folder / f"FinTabNet_1.0.0_cell_{source.split}.jsonl"):
        html = _table_html(entry["html"])
        page = (folder / "pages" / entry["filename"]).with_suffix(".png")
        x1, y1, x2, y2 = map(float, entry["bbox"])
        record = Record(
            record_id=str(entry["table_id"]),
            image=partial(_cut_out, page, (x1, y1, x2, y2)),
            prefix=TABLE_PROMPT,
            suffix=html,
            references=(html,),
            where=f"The table {entry['table_id']}",
        )
        yield Item(record, files=(page,))


def _cut_out(page: Path, box: tuple[float, float, float, float]) -> Image.Image:
    """The part of the page inside a box, in points from the lower left corner, x before y.

    Raises ImageError where the box is outside the page.
    """
    image = load_image(page).rgb
    x1, y1, x2, y2 = (_PIXELS_PER_POINT * number for number in box)
    left, top = max(0, round(x1)), max(0, round(image.height - y2))
    right = min(image.width, round(x2))
    bottom = min(image.height, round(image.height - y1))
    if left >= right or top >= bottom:
        raise ImageError(
            f"{page.name!r} has {image.width} x {image.height} pixels, and the table, at "
            f"{box} points, is outside. Render pages with 144 pixels per inch."
        )
    return image.crop((left, top, right, bottom))


def _read_chemdraw(source: SplitSource) -> Iterator[Item]:
    """`file_path` is "synthetic/chemdraw/0.png"."""
    for number, row in enumerate(read_csv(source.folder / "synthetic" / "chemdraw.csv")):
        image = source.folder / row["file_path"]
        yield item(row.get("image_id") or number, image, MOLECULE_PROMPT, row["SMILES"])


def _read_grandstaff(source: SplitSource) -> Iterator[Item]:
    for path in sorted((source.folder / "data").glob(f"{source.split}-*.parquet")):
        for number, row in enumerate(read_table(path, "image")):
            if row.image is not None:
                music = row.values["transcription"].strip()
                yield item(f"{path.stem}-{number}", row.image, MUSIC_PROMPT, music)


_SECTION = re.compile(r"^\s*([A-Z][A-Z ]+):", re.MULTILINE)


def _read_mimic(source: SplitSource) -> Iterator[Item]:
    """files/p10/p1000/s500.txt is the report on the images files/p10/p1000/s500/*.jpg."""
    for row in read_csv(source.folder / "mimic-cxr-2.0.0-split.csv"):
        if row["split"] != source.split:
            continue
        subject = f"p{row['subject_id']}"
        folder = source.folder / "files" / subject[:3] / subject
        parts = _sections(read_text(folder / f"s{row['study_id']}.txt"))
        named = (("FINDINGS", parts.get("FINDINGS")), ("IMPRESSION", parts.get("IMPRESSION")))
        report = "\n".join(f"{name}: {text}" for name, text in named if text)
        if report:
            image = folder / f"s{row['study_id']}" / f"{row['dicom_id']}.jpg"
            prefix = REPORT_PROMPT.format(indication=parts.get("INDICATION", "")).strip()
            yield item(row["dicom_id"], image, prefix, report)


def _sections(report: str) -> dict[str, str]:
    r"""Heading -> text with single spaces.

    >>> _sections("  INDICATION: cough \n\n FINDINGS:  The heart\n is normal.")
    {'INDICATION': 'cough', 'FINDINGS': 'The heart is normal.'}
    """
    headings = list(_SECTION.finditer(report))
    ends = [heading.start() for heading in headings[1:]] + [len(report)]
    return {
        heading[1]: " ".join(report[heading.end() : end].split())
        for heading, end in zip(headings, ends, strict=True)
    }


_PUBTABNET = "https://github.com/ibm-aur-nlp/PubTabNet"
_CHEMDRAW = "https://huggingface.co/yujieq/MolScribe, synthetic.zip"
_MIMIC = "https://physionet.org/content/mimic-cxr-jpg"
_OWN_PROMPT = "The paper does not publish its prompt; this one is ours. "
_PADDED = _OWN_PROMPT + "Images are padded with white to a square."
_Tables = partial(
    Benchmark,
    task="write",
    prompt=TABLE_PROMPT,
    metrics={
        "S-TEDS": Teds(structure_only=True),
        "TEDS": Teds(),
        "GriTS-Top": Grits(),
        "GriTS-Con": Grits(of="content"),
    },
    max_new_tokens=4096,
)
BENCHMARKS = (
    _Tables(
        name="pubtabnet",
        title="PubTabNet",
        splits={"val": ("PubTabNet",), "train": ()},
        files=lambda split: {"PubTabNet_2.0.0.jsonl": _PUBTABNET, f"{split}/": _PUBTABNET},
        read=_read_pubtabnet,
        homepage=_PUBTABNET,
        note=_PADDED + " The paper's HTML has the position of each cell in an attribute, which the "
        "scores ignore.",
    ),
    _Tables(
        name="fintabnet",
        title="FinTabNet",
        splits={"test": ("FinTabNet",), "val": (), "train": ()},
        files=lambda split: {
            f"fintabnet/FinTabNet_1.0.0_cell_{split}.jsonl": _FINTABNET,
            "fintabnet/pages/": "the files in fintabnet/pdf as images with 144 pixels per inch, "
            "such as: pdftoppm -r 144 -png -singlefile pdf/HAL/2009/page_77.pdf "
            "pages/HAL/2009/page_77",
        },
        read=_read_fintabnet,
        homepage=_FINTABNET,
        note=_PADDED + " The paper scored annotations refined by others (arXiv 2303.00716); this "
        "reader uses the original ones.",
    ),
    Benchmark(
        name="chemdraw",
        title="ChemDraw drawings of molecules",
        task="write",
        prompt=MOLECULE_PROMPT,
        metrics={"exact match %": SmilesExactMatch(), "Tanimoto": TanimotoSimilarity()},
        splits={"test": ("ChemDraw",)},
        files=lambda split: dict.fromkeys(
            ("synthetic/chemdraw.csv", "synthetic/chemdraw/"), _CHEMDRAW
        ),
        read=_read_chemdraw,
        homepage="https://github.com/thomas0809/MolScribe",
        max_new_tokens=256,
        note=_PADDED,
    ),
    Benchmark(
        name="grandstaff",
        title="GrandStaff",
        task="write",
        prompt=MUSIC_PROMPT,
        metrics={
            "CER %": ErrorRate(),
            "SER %": ErrorRate(unit="symbol"),
            "LER %": ErrorRate(unit="line"),
        },
        splits={"test": ("GrandStaff",), "val": (), "train": ()},
        files=lambda split: {"data/": "https://huggingface.co/datasets/antoniorv6/grandstaff"},
        read=_read_grandstaff,
        homepage="https://sites.google.com/view/multiscore-project/datasets",
        max_new_tokens=1024,
        note=_PADDED + " The transcription is used as published (basic extended **kern).",
    ),
    Benchmark(
        name="mimic-cxr",
        title="MIMIC-CXR",
        task="write",
        prompt=REPORT_PROMPT,
        metrics={"CIDEr": Cider(), "BLEU-4": Bleu()},
        splits={"test": ("MIMIC-CXR",), "validate": (), "train": ()},
        files=lambda split: {
            "mimic-cxr-2.0.0-split.csv": f"{_MIMIC} (credentialed access), unpacked",
            "files/": f"{_MIMIC} (credentialed access), with the reports of mimic-cxr next to them",
        },
        read=_read_mimic,
        homepage=_MIMIC,
        max_new_tokens=512,
        note=_OWN_PROMPT + "The paper removes mentions of earlier examinations with a language "
        "model; this reader keeps the reports as they are. Not for medical use.",
    ),
)
