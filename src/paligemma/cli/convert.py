"""The command that converts a checkpoint to another format."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from paligemma.cli.console import byte_progress, print_json, print_note, print_table, print_text
from paligemma.cli.memory import in_gigabytes
from paligemma.cli.options import Json, takes
from paligemma.options import Option
from paligemma.process_memory import peak_bytes

if TYPE_CHECKING:
    from paligemma.checkpoints.convert import Comparison, Plan

_FORMATS = Literal["hf", "npz", "keras", "mlx", "sbs", "onnx"]


@dataclass(frozen=True, kw_only=True)
class ConvertOptions:
    """What to convert a checkpoint to."""

    to: Annotated[_FORMATS | None, Option(shown_default="by the suffix of TARGET")] = None
    """Format to write. hf: folder of Hugging Face. npz: file of big_vision (JAX). keras: preset of
    keras-hub. mlx: folder of mlx-vlm. sbs: file of gemma.cpp. onnx: folder for transformers.js and
    onnxruntime."""
    dtype: str = "stored"
    """Data type to write: stored, float32, bfloat16 or float16; for mlx also q2, q4 or q8;
    for sbs also sfp (8 bits); for onnx one or more of fp32, fp16, uint8, q8, q4 and q4f16,
    separated by commas. stored keeps that of the source."""
    adapter: Path | None = None
    """LoRA adapter to merge into the weights: its folder."""
    tokenizer: Path | None = None
    """SentencePiece model to write, where the source has none."""
    revision: Annotated[str | None, Option(shown_default="main")] = None
    """Branch, tag or commit of a hub model."""
    verify: bool = False
    """Read the target again and compare every weight with the source."""


@takes(options=ConvertOptions)
def convert(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE", show_default=False, help="Folder, file or hub id of a model."
        ),
    ],
    target: Annotated[
        Path,
        typer.Argument(metavar="TARGET", show_default=False, help="Folder or file to create."),
    ],
    *,
    options: ConvertOptions,
    as_json: Json = False,
) -> None:
    """Convert a model to the format of another program.

    The model is never in memory as a whole. docs/formats.md describes all formats.
    """
    from paligemma.checkpoints import convert as conversion
    from paligemma.checkpoints.adapter import read_adapter
    from paligemma.checkpoints.hub import Source
    from paligemma.checkpoints.open import open_checkpoint
    from paligemma.checkpoints.tokenizer_file import read_tokenizer_file
    from paligemma.loading import find_checkpoint

    path = find_checkpoint(source, Source(revision=options.revision))
    with open_checkpoint(path) as opened:
        config = opened.contents.config
        plan = conversion.plan(
            opened,
            target,
            to=options.to,
            dtype=options.dtype,
            tokenizer=read_tokenizer_file(options.tokenizer) if options.tokenizer else None,
            adapter=read_adapter(options.adapter, config) if options.adapter else None,
        )
        if options.verify:
            conversion.check_verifiable(plan)
        if not as_json:
            _print_plan(plan)
        started = time.monotonic()
        with byte_progress("converting", plan.num_bytes) as on_bytes:
            written = conversion.run(plan, on_bytes)
        seconds = time.monotonic() - started
        comparison = None
        if options.verify:
            with byte_progress("verifying", 2 * plan.num_bytes) as on_bytes:
                comparison = conversion.verify(plan, on_bytes)
    _report(plan, written, seconds, comparison, as_json)


def _print_plan(plan: Plan) -> None:
    facts = plan.describe()
    rows = [
        ("from", f"{facts['source']} ({facts['source_format']}, {facts['source_dtype']})"),
        ("to", f"{facts['target']} ({facts['target_format']}, {facts['target_dtype']})"),
        ("parameters", f"{facts['parameters']:,}"),
        ("size", in_gigabytes(facts["bytes_to_write"])),
    ]
    print_table(None, ("plan", ""), rows)
    for note in plan.notes:
        print_note(note)


def _report(
    plan: Plan, written: Path, seconds: float, comparison: Comparison | None, as_json: bool
) -> None:
    files = [written] if written.is_file() else [p for p in written.rglob("*") if p.is_file()]
    num_bytes = sum(path.stat().st_size for path in files)
    peak = peak_bytes()
    if as_json:
        facts: dict[str, Any] = {
            **plan.describe(),
            "bytes": num_bytes,
            "seconds": round(seconds, 3),
            "peak_memory_bytes": peak,
        }
        if comparison is not None:
            facts["verified"] = {
                "equal_parameters": comparison.num_equal,
                "relative_differences": dict(comparison.differences),
            }
        print_json(facts)
        return
    rate = num_bytes / 1e6 / max(seconds, 1e-3)
    print_text(
        f"{written}: {in_gigabytes(num_bytes)} in {seconds:.1f} s ({rate:.0f} MB/s), peak memory "
        f"{in_gigabytes(peak)}"
    )
    if comparison is not None:
        print_text(_verdict(comparison))


def _verdict(comparison: Comparison) -> str:
    if not comparison.differences:
        return f"Verified: all {comparison.num_equal} parameters are bit-equal."
    name, difference = max(comparison.differences.items(), key=lambda item: item[1])
    return (
        f"Verified: {comparison.num_equal} parameters are bit-equal, "
        f"{len(comparison.differences)} are rounded. The largest difference is {difference:.2%} of "
        f"the largest value, in {name}."
    )
