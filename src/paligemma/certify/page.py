"""The certificate as one HTML page that needs no other file."""

from __future__ import annotations

import math
from typing import Any

from paligemma.certify.certificate import Certificate
from paligemma.certify.findings import place_in_words
from paligemma.report import render_page

_TASK_WORDS = {
    "caption": "captions",
    "question": "questions",
    "ocr": "reading text",
    "detect": "detection",
    "segment": "segmentation",
    "clip": "several images",
    "text": "text alone",
}
_MAX_DIFFERENCES = 40


def render_certificate(certificate: Certificate) -> str:
    """The page."""
    content = certificate.to_dict()
    differences = [row for row in certificate.differences if row.kind != "equal"]
    differences.sort(key=lambda row: (row.kind == "rounded", -row.relative))
    return render_page(
        "certificate.html",
        title=f"Certificate of {certificate.model}",
        certificate=certificate,
        digest=content["sha256"],
        counts={
            level: sum(finding.level == level for finding in certificate.findings)
            for level in ("fail", "unusual", "note")
        },
        task_words=_TASK_WORDS,
        layers=[_bar(layer) for layer in content["layers"]],
        costs=[_cost(name, cost) for name, cost in certificate.costs.items()],
        differences=[
            {"name": row.name, "place": place_in_words(row.name), "kind": row.kind,
             "text": row.text, "largest": row.largest, "relative": row.relative}
            for row in differences[:_MAX_DIFFERENCES]
        ],
        num_hidden=max(0, len(differences) - _MAX_DIFFERENCES),
    )  # fmt: skip


def _bar(layer: dict[str, Any]) -> dict[str, Any]:
    """The length of a bar: on a logarithmic scale, half of it is the limit."""
    error = layer["error"] if isinstance(layer["error"], float) else math.inf
    ratio = error / layer["limit"]
    length = 50 + 50 / 4 * math.log10(max(ratio, 1e-4)) if ratio else 0.0
    return layer | {"length": f"{min(100.0, max(0.0, length)):.0f}", "error": error}


def _cost(name: str, cost: dict[str, Any]) -> dict[str, str]:
    return {
        "name": name,
        "weights": f"{cost['weight_bytes'] / 1e9:.2f} GB" if cost.get("weight_bytes") else "",
        "process": f"{cost['process_bytes'] / 1e9:.2f} GB" if cost.get("process_bytes") else "",
        "load": f"{cost['load_seconds']:.1f} s",
        "encode": _seconds(cost.get("encode_seconds")),
        "prefill": _seconds(cost.get("prefill_seconds")),
        "tokens": f"{cost['tokens_per_second']:.1f}" if "tokens_per_second" in cost else "",
    }


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{1000 * value:.0f} ms" if value < 1 else f"{value:.1f} s"
