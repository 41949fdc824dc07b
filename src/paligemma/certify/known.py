"""What is known of models beforehand: mini's files and answers, and published answers of releases.

mini is part of this package, so its logits also show whether the float32 path of this machine,
which everything else is compared with, computes what it computed where the package was made.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from paligemma.certify.findings import Finding
from paligemma.certify.paths import PathOutputs
from paligemma.certify.probes import ProbeInputs
from paligemma.predictor import Predictor

_FOLDER = Path(__file__).parent / "known"
_LOGIT_LIMIT = 2e-3
_SIMILAR = 0.6
_NUM_IDS = 24


@cache
def known_mini() -> dict[str, Any]:
    """mini's checksums, and its answers and logits for the probes."""
    content: dict[str, Any] = json.loads((_FOLDER / "mini.json").read_text(encoding="utf-8"))
    return content


def describe_mini(inputs: ProbeInputs, outputs: PathOutputs, files: dict[str, str]) -> str:
    """The content of mini.json, from the float32 path on the machine where mini is released."""
    answers = {
        probe.name: {
            "token_ids": list(row.token_ids),
            "logits": [[round(float(v), 3) for v in line] for line in _sample(row.logits)],
        }
        for probe, row in zip(inputs.probes, outputs.probes, strict=True)
    }
    return json.dumps({"sha256": files, "answers": answers}) + "\n"


def _sample(logits: Tensor) -> Tensor:
    """Logits of a few ids spread over the vocabulary: [N, 24], of at most 4 positions."""
    return logits[:4, torch.linspace(0, logits.shape[1] - 1, _NUM_IDS).long()]


def check_mini_outputs(inputs: ProbeInputs, outputs: PathOutputs) -> Finding | None:
    """None if a float32 path computes mini's known logits."""
    for probe, row in zip(inputs.probes, outputs.probes, strict=True):
        known = known_mini()["answers"].get(probe.name)
        if known is None:
            continue
        expected = torch.tensor(known["logits"])
        actual = _sample(row.logits)
        same = actual.shape == expected.shape and list(row.token_ids) == known["token_ids"]
        error = float((actual - expected).abs().max()) if same else float("inf")
        if error > _LOGIT_LIMIT:
            return Finding(
                level="fail",
                check="reference",
                place="float32 path",
                text=f"mini's logits for the probe {probe.name!r} are off by {error:.2g} "
                f"(limit {_LOGIT_LIMIT}) or its answer is another one: the float32 path of this "
                "installation does not compute what it should, so nothing can be compared with "
                "it. Reinstall torch and this package.",
            )
    return None


@dataclass(frozen=True, kw_only=True)
class PublishedAnswer:
    """What a released checkpoint answered somewhere else."""

    id: str
    variants: tuple[str, ...]
    image: str
    prompt: str
    answer: str
    match: Literal["exact", "contains", "similar"]
    source: str
    license: str


@cache
def published_answers() -> tuple[PublishedAnswer, ...]:
    """Published answers whose images may be passed on."""
    content = json.loads((_FOLDER / "public.json").read_text(encoding="utf-8"))
    return tuple(
        PublishedAnswer(**(case | {"variants": tuple(case["variants"])}))
        for case in content["cases"]
    )


def check_published(
    predictor: Predictor, variant: str | None, cases: Sequence[PublishedAnswer] | None = None
) -> tuple[list[dict[str, Any]], list[Finding]]:
    """Ask what was published for this release: rows for the report, and what is wrong."""
    cases = published_answers() if cases is None else cases
    rows = []
    for case in cases:
        if variant not in case.variants:
            continue
        generation = predictor.generate(_FOLDER / case.image, case.prompt, max_new_tokens=32)
        rows.append(
            {
                "id": case.id,
                "prompt": case.prompt,
                "published": case.answer,
                "answer": generation.text,
                "match": case.match,
                "agrees": agrees(generation.text, case.answer, case.match),
                "source": case.source,
            }
        )
    wrong = [row for row in rows if not row["agrees"]]
    level: Literal["fail", "unusual"] = "fail" if 2 * len(wrong) > len(rows) else "unusual"
    findings = [
        Finding(
            level=level,
            check="published answers",
            place=str(row["id"]),
            text=f"{row['prompt']!r}: {row['answer']!r}; {variant} answered {row['published']!r} "
            f"({row['source']}).",
        )
        for row in wrong
    ]
    return rows, findings


def agrees(answer: str, published: str, match: str) -> bool:
    """
    >>> agrees("Beach", "beach", "exact"), agrees("a cow", "a big cow", "similar")
    (True, True)
    """
    words, expected = (re.findall(r"\w+", text.lower()) for text in (answer, published))
    if match == "exact":
        return words == expected
    if match == "contains":
        return " ".join(expected) in " ".join(words)
    common = sum(min(words.count(word), expected.count(word)) for word in set(words))
    return 2 * common >= _SIMILAR * (len(words) + len(expected))
