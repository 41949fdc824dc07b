"""Compare what a port of PaliGemma computed with what it should compute, and name its mistake.

    python check.py pg2 outputs.npz --dtype bfloat16

`outputs.npz` holds any of the arrays below, for any of the two probes ("caption", "detect"):

    PROBE/token_ids      int [T]           image positions (any id), BOS, prompt, newline
    PROBE/pixel_values   float [3, S, S]   channels first; channels last is understood too
    PROBE/image_tokens   float [P, D]      after the projector
    PROBE/hidden_states  float [T, D]      after the last norm, of prefix and suffix
    PROBE/logits         float [T, V] or [V]   of prefix and suffix; [V]: after the prefix alone
    PROBE/greedy_ids     int [N]
    boxes                float [4]         x1, y1, x2, y2 in pixels of the image in objects.json
    mask                 bool [H, W]

Needs numpy and nothing else. Exit code 0: everything given agrees; 1: something does not.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).parent

# The root mean square of the error, as a part of the standard deviation of the expected values.
TOLERANCES = {
    "float32": {"pixel_values": 0.01, "image_tokens": 1e-4, "hidden_states": 2e-4, "logits": 2e-4},
    "float16": {"pixel_values": 0.01, "image_tokens": 0.003, "hidden_states": 0.02, "logits": 0.02},
    "bfloat16": {"pixel_values": 0.01, "image_tokens": 0.02, "hidden_states": 0.1, "logits": 0.1},
}
STAGES = ("token_ids", "pixel_values", "image_tokens", "hidden_states", "logits", "greedy_ids")
SURE = 0.35
"""A mistake is named when the outputs are that much closer to it than to what is expected."""


@dataclass(frozen=True)
class Result:
    """One compared array."""

    name: str
    agrees: bool
    error: float
    limit: float
    note: str = ""


@dataclass(frozen=True)
class Report:
    """All compared arrays, and the mistakes that explain them, likeliest first."""

    results: tuple[Result, ...]
    mistakes: tuple[tuple[str, str, float], ...]
    """(name, explanation, error if that mistake is made)"""

    @property
    def agrees(self) -> bool:
        return all(result.agrees for result in self.results)


def check(kit: str, outputs: Mapping[str, Any], dtype: str = "float32") -> Report:
    """Compare arrays with the kit `kit` ("pg1" or "pg2")."""
    expected = dict(np.load(FOLDER / kit / "expected.npz"))
    objects = json.loads((FOLDER / "objects.json").read_text(encoding="utf-8"))
    results = []
    for name, values in outputs.items():
        actual = np.asarray(values)
        if name in ("boxes", "mask"):
            results.append(_check_object(name, actual, objects))
            continue
        if name not in expected:
            results.append(Result(name, False, np.inf, 0.0, "unknown name; see check.py"))
            continue
        results.append(_check_array(name, actual, expected, dtype))
    mistakes = _explain(kit, outputs, expected, results)
    return Report(tuple(results), tuple(mistakes))


def _check_array(name: str, actual: Any, expected: Mapping[str, Any], dtype: str) -> Result:
    stage, wanted = name.partition("/")[2], expected[name]
    if stage == "token_ids":
        num_images = int(expected[f"{name.partition('/')[0]}/num_image_tokens"])
        same = actual.shape == wanted.shape and bool((actual == wanted)[num_images:].all())
        return Result(name, same, 0.0 if same else np.inf, 0.0, "" if same else f"{actual[-12:]}")
    if stage == "greedy_ids":
        same = list(actual) == list(wanted[: len(actual)])
        return Result(name, same, 0.0 if same else np.inf, 0.0)
    actual, wanted = _fitted(name, actual, wanted, expected)
    limit = TOLERANCES[dtype][stage]
    error = relative_error(actual, wanted)
    return Result(name, error <= limit, error, limit)


def _fitted(name: str, actual: Any, wanted: Any, expected: Mapping[str, Any]) -> tuple[Any, Any]:
    """Bring both to one shape: channels last, a batch axis, the last position alone."""
    actual = np.asarray(actual, dtype=np.float64)
    while actual.ndim > wanted.ndim and actual.shape[0] == 1:
        actual = actual[0]
    if name.endswith("pixel_values") and actual.shape[-1] == 3 != actual.shape[0]:
        actual = np.moveaxis(actual, -1, 0)
    if name.endswith("logits") and actual.ndim == 1:
        wanted = wanted[int(expected[f"{name.partition('/')[0]}/prefix_length"]) - 1]
    if actual.ndim and wanted.ndim and actual.shape[-1] > wanted.shape[-1]:
        actual = actual[..., : wanted.shape[-1]]  # rows of the table beyond the vocabulary
    return actual, wanted


def relative_error(actual: Any, wanted: Any) -> float:
    """In standard deviations of the expected values; infinite for another shape or NaN."""
    if actual.shape != wanted.shape or not np.isfinite(actual).all():
        return float("inf")
    return float(np.sqrt(np.mean((actual - wanted) ** 2)) / max(wanted.std(), 1e-12))


def _check_object(name: str, actual: Any, objects: Mapping[str, Any]) -> Result:
    if name == "boxes":
        wanted = np.array(objects["box_xyxy"])
        actual = np.asarray(actual, dtype=np.float64).reshape(-1)
        if actual.shape != (4,):
            return Result(name, False, np.inf, 1.5, "expected four numbers")
        error = float(np.abs(actual - wanted).max())
        note = ""
        if error > 1.5 and np.abs(actual[[1, 0, 3, 2]] - wanted).max() <= 1.5:
            note = "x and y are swapped"
        return Result(name, error <= 1.5, error, 1.5, note)
    width, height = objects["size_wh"]
    wanted = np.zeros(width * height, dtype=bool)
    for start, length in objects["mask_runs"]:
        wanted[start : start + length] = True
    wanted = wanted.reshape(height, width)
    if np.asarray(actual).shape != wanted.shape:
        return Result(name, False, np.inf, 0.05, f"expected shape {wanted.shape}")
    actual = np.asarray(actual).astype(bool)
    iou = float((actual & wanted).sum() / max(1, (actual | wanted).sum()))
    return Result(name, 1 - iou <= 0.05, 1 - iou, 0.05)


def _explain(
    kit: str, outputs: Mapping[str, Any], expected: Mapping[str, Any], results: list[Result]
) -> list[tuple[str, str, float]]:
    """The mistakes whose known outputs are much closer than the expected ones."""
    texts = json.loads((FOLDER / "mistakes.json").read_text(encoding="utf-8"))
    known = dict(np.load(FOLDER / kit / "mistakes.npz"))
    wrong = {result.name: result.error for result in results if not result.agrees}
    found = []
    if any(result.note == "x and y are swapped" for result in results):
        found.append(("boxes_xyxy", texts["boxes_xyxy"], 0.0))
    for mistake, text in texts.items():
        errors = []
        for name in wrong:
            signature = known.get(f"{mistake}/{name}")
            if signature is None:
                continue
            error = _distance(name, outputs[name], signature, expected, known)
            base = _distance(name, outputs[name], None, expected, known)
            if not np.isfinite(base):  # another length: compare with the size of the values
                base = max(float(np.std(signature)), 1e-12)
            if base > 0:
                errors.append(error / base)
        if errors and max(errors) < SURE:
            found.append((mistake, text, max(errors)))
    return sorted(found, key=lambda row: row[2])


def _distance(
    name: str, actual: Any, signature: Any, expected: Mapping[str, Any], known: Mapping[str, Any]
) -> float:
    """The root mean square distance to a mistake's outputs, or (None) to the expected ones."""
    actual = np.asarray(actual)
    stage = name.partition("/")[2]
    if stage in ("token_ids", "greedy_ids"):
        wanted = expected[name] if signature is None else signature
        return 0.0 if list(actual) == list(wanted) else float("inf")
    actual, wanted = _fitted(name, actual, expected[name], expected)
    rows = known["rows"] if actual.ndim == 2 and stage in ("hidden_states", "logits") else None
    if stage == "image_tokens":
        rows = known["image_rows"]
    columns = known["columns"] if stage == "logits" else None

    def sample(values: Any) -> Any:
        values = values if rows is None else values[rows]
        return values if columns is None else values[..., columns]

    same_length = actual.shape == wanted.shape
    if not same_length and (signature is None or rows is None or len(actual) < len(rows)):
        return float("inf")
    target = sample(wanted)
    if signature is not None:
        target = np.asarray(signature, dtype=np.float64)
        if rows is None and target.ndim == 2:
            target = target[known["last_prefix_row"]]
    return float(np.sqrt(np.mean((sample(actual) - target) ** 2)))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("kit", choices=("pg1", "pg2"))
    parser.add_argument("outputs", type=Path)
    parser.add_argument("--dtype", choices=tuple(TOLERANCES), default="float32")
    arguments = parser.parse_args()
    report = check(arguments.kit, dict(np.load(arguments.outputs)), arguments.dtype)
    order = {stage: number for number, stage in enumerate(STAGES)}
    for result in sorted(report.results, key=lambda r: order.get(r.name.partition("/")[2], 9)):
        verdict = "agrees" if result.agrees else "DIFFERS"
        print(f"{verdict:8} {result.name:24} error {result.error:.3g} (limit {result.limit:g}) "
              f"{result.note}")  # fmt: skip
    for name, text, _ in report.mistakes[:3]:
        print(f"likely mistake: {name}: {text}")
    if not report.agrees and not report.mistakes:
        print("No known mistake explains this. Look at the first stage that differs.")
    sys.exit(0 if report.agrees else 1)


if __name__ == "__main__":
    main()
