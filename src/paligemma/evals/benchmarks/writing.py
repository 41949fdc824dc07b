"""PubTabNet, ChemDraw, GrandStaff and MIMIC-CXR: pictures to HTML, SMILES, **kern and reports.

The papers print no prompt for these tasks; the words here are this package's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import escape
from typing import Any

from paligemma.data.record import Record
from paligemma.data.source import read_text
from paligemma.evals.benchmarks.benchmark import Benchmark, Item, Metric, Needed, Place
from paligemma.evals.benchmarks.files import read_csv, read_json_lines
from paligemma.evals.benchmarks.table_file import read_table
from paligemma.evals.metrics.bleu import Bleu
from paligemma.evals.metrics.cider import Cider
from paligemma.evals.metrics.error_rates import ErrorRate
from paligemma.evals.metrics.grits import Grits
from paligemma.evals.metrics.molecules import SmilesExactMatch, TanimotoSimilarity
from paligemma.evals.metrics.teds import Teds

TABLE_METRICS: dict[str, Metric] = {
    "S-TEDS": Teds(structure_only=True),
    "TEDS": Teds(),
    "GriTS-Top": Grits(),
    "GriTS-Con": Grits(of="content"),
}
TABLE_PROMPT = "table"
MOLECULE_PROMPT = "molecule"
MUSIC_PROMPT = "music"
REPORT_PROMPT = "report {indication}"
_OWN_PROMPT = "The paper does not print its prompt; this one is ours. "


def _pubtabnet_needs(split: str) -> tuple[Needed, ...]:
    source = "https://github.com/ibm-aur-nlp/PubTabNet"
    return (
        Needed(path="PubTabNet_2.0.0.jsonl", source=source),
        Needed(path=f"{split}/", source=source),
    )


def _read_pubtabnet(place: Place) -> Iterator[Item]:
    for entry in read_json_lines(place.folder / "PubTabNet_2.0.0.jsonl"):
        if entry["split"] == place.split:
            html = _table_html(entry["html"])
            record = Record(
                record_id=entry["filename"],
                image=place.folder / place.split / entry["filename"],
                prefix=TABLE_PROMPT,
                suffix=html,
                references=(html,),
            )
            yield Item(record)


def _table_html(html: dict[str, Any]) -> str:
    """The pieces of the structure, with the next cell's text before each end of a cell.

    Tokens of one character are text, longer ones are tags such as <b>.

    >>> _table_html({"structure": {"tokens": ["<tr>", "<td>", "</td>", "</tr>"]},
    ...              "cells": [{"tokens": ["<b>", ">", "9", "</b>"]}]})
    '<table><tr><td><b>&gt;9</b></td></tr></table>'
    """
    cells = iter(html["cells"])
    pieces = []
    for token in html["structure"]["tokens"]:
        if token.endswith("</td>"):
            text = (escape(t) if len(t) == 1 else t for t in next(cells)["tokens"])
            pieces += [token.removesuffix("</td>"), *text, "</td>"]
        else:
            pieces.append(token)
    return f"<table>{''.join(pieces)}</table>"


PUBTABNET = Benchmark(
    name="pubtabnet",
    title="PubTabNet",
    task="write",
    prompt=TABLE_PROMPT,
    metrics=TABLE_METRICS,
    splits={"val": ("PubTabNet",), "train": ()},
    needs=_pubtabnet_needs,
    read=_read_pubtabnet,
    homepage="https://github.com/ibm-aur-nlp/PubTabNet",
    max_new_tokens=4096,
    note=_OWN_PROMPT + "Pictures are padded with white to a square. The paper's HTML carries the "
    "place of each cell in an attribute, which the scores pass over.",
)


def _chemdraw_needs(split: str) -> tuple[Needed, ...]:
    source = "https://huggingface.co/yujieq/MolScribe, synthetic.zip"
    return (
        Needed(path="synthetic/chemdraw.csv", source=source),
        Needed(path="synthetic/chemdraw/", source=source),
    )


def _read_chemdraw(place: Place) -> Iterator[Item]:
    """`file_path` is "synthetic/chemdraw/0.png"."""
    for number, row in enumerate(read_csv(place.folder / "synthetic" / "chemdraw.csv")):
        record = Record(
            record_id=str(row.get("image_id") or number),
            image=place.folder / row["file_path"],
            prefix=MOLECULE_PROMPT,
            suffix=row["SMILES"],
            references=(row["SMILES"],),
        )
        yield Item(record)


CHEMDRAW = Benchmark(
    name="chemdraw",
    title="ChemDraw drawings of molecules",
    task="write",
    prompt=MOLECULE_PROMPT,
    metrics={"exact match %": SmilesExactMatch(), "Tanimoto": TanimotoSimilarity()},
    splits={"test": ("ChemDraw",)},
    needs=_chemdraw_needs,
    read=_read_chemdraw,
    homepage="https://github.com/thomas0809/MolScribe",
    max_new_tokens=256,
    note=_OWN_PROMPT + "Pictures are padded with white to a square.",
)


def _grandstaff_files(place: Place) -> list[Any]:
    return sorted((place.folder / "data").glob(f"{place.split}-*.parquet"))


def _read_grandstaff(place: Place) -> Iterator[Item]:
    files = _grandstaff_files(place)
    for path in files:
        for number, row in enumerate(read_table(path, "image")):
            if row.image is None:
                continue
            music = row.values["transcription"].strip()
            record = Record(
                record_id=f"{path.stem}-{number}",
                image=row.image,
                prefix=MUSIC_PROMPT,
                suffix=music,
                references=(music,),
            )
            yield Item(record)


GRANDSTAFF = Benchmark(
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
    needs=lambda split: (
        Needed(path="data/", source="https://huggingface.co/datasets/antoniorv6/grandstaff"),
    ),
    read=_read_grandstaff,
    homepage="https://sites.google.com/view/multiscore-project/datasets",
    max_new_tokens=1024,
    note=_OWN_PROMPT + "Pictures are padded with white to a square. The transcription is taken as "
    "its authors publish it (basic extended **kern).",
)

_SECTION = re.compile(r"^\s*([A-Z][A-Z ]+):", re.MULTILINE)


def _mimic_needs(split: str) -> tuple[Needed, ...]:
    source = "https://physionet.org/content/mimic-cxr-jpg (credentialed access)"
    return (
        Needed(path="mimic-cxr-2.0.0-split.csv", source=f"{source}, unpacked"),
        Needed(path="files/", source=f"{source}, with the reports of mimic-cxr beside them"),
    )


def _read_mimic(place: Place) -> Iterator[Item]:
    """files/p10/p1000/s500.txt is the report of the pictures files/p10/p1000/s500/*.jpg."""
    for row in read_csv(place.folder / "mimic-cxr-2.0.0-split.csv"):
        if row["split"] != place.split:
            continue
        subject = f"p{row['subject_id']}"
        folder = place.folder / "files" / subject[:3] / subject
        parts = _sections(read_text(folder / f"s{row['study_id']}.txt"))
        named = (("FINDINGS", parts.get("FINDINGS")), ("IMPRESSION", parts.get("IMPRESSION")))
        report = "\n".join(f"{name}: {text}" for name, text in named if text)
        if report:
            record = Record(
                record_id=row["dicom_id"],
                image=folder / f"s{row['study_id']}" / f"{row['dicom_id']}.jpg",
                prefix=REPORT_PROMPT.format(indication=parts.get("INDICATION", "")).strip(),
                suffix=report,
                references=(report,),
            )
            yield Item(record)


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


MIMIC_CXR = Benchmark(
    name="mimic-cxr",
    title="MIMIC-CXR",
    task="write",
    prompt=REPORT_PROMPT,
    metrics={"CIDEr": Cider(), "BLEU-4": Bleu()},
    splits={"test": ("MIMIC-CXR",), "validate": (), "train": ()},
    needs=_mimic_needs,
    read=_read_mimic,
    homepage="https://physionet.org/content/mimic-cxr-jpg",
    max_new_tokens=512,
    note=_OWN_PROMPT + "The paper removes what speaks of earlier examinations with a language "
    "model; this reader leaves the reports as they are. Not for medical use.",
)
