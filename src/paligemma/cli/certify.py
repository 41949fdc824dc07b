"""`paligemma certify`: does a checkpoint still compute what was trained?"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from paligemma.cli.console import (
    check_output_files,
    print_json,
    print_note,
    print_table,
    print_text,
    write_json,
)
from paligemma.cli.model_options import ModelArgument, Quantization
from paligemma.cli.options import Json, takes
from paligemma.errors import CheckpointError
from paligemma.options import Option
from paligemma.writing import write_whole

if TYPE_CHECKING:
    from paligemma.certify import Certificate, CertifyRequest


@dataclass(frozen=True, kw_only=True)
class CertifyOptions:
    """What to compare a model with, and the form in which it is used."""

    against: Annotated[str | None, Option(metavar="MODEL", shown_default="none")] = None
    """Original to compare with, tensor by tensor: the model before a conversion or a copy."""
    release: Annotated[str | None, Option(metavar="NAME", shown_default="by its name")] = None
    """Release that the model claims to be, such as paligemma2-3b-mix-224."""
    out: Annotated[Path | None, Option(metavar="PATH", shown_default="none")] = None
    """Where to write the report: PATH.json and PATH.html."""
    device: str = "auto"
    """Device to test: auto, cpu, cuda, cuda:1 or mps."""
    dtype: Annotated[str, Option(metavar="[auto|stored|float32|bfloat16|float16]")] = "auto"
    """Data type to test. auto: bfloat16 for large models on devices that compute it well, else
    float32; stored: as in the files."""
    quantization: Annotated[Quantization | None, Option(shown_default="as stored")] = None
    """Quantization of the decoder's large weights to test."""
    adapter: Annotated[Path | None, Option(shown_default="none")] = None
    """Folder of an adapter to merge into the model."""
    mask_codec: Annotated[Path | None, Option(shown_default="in the model's folder")] = None
    """File that turns <seg> tokens into masks, such as vae-oid.npz."""
    revision: Annotated[str | None, Option(shown_default="main")] = None
    """Branch, tag or commit of a hub model."""
    offline: bool = False
    """Use only files that are already downloaded."""
    probes: bool = True
    """Also load the model and compute. Without, only files, config and weights are checked."""
    threads: Annotated[int | None, Option(least=1, shown_default="as many as CPUs")] = None
    """Number of CPU threads to compute with."""
    fail_on: Literal["fail", "unusual"] = "fail"
    """Exit with code 1 for failures only, or also for what is unusual."""


@takes(options=CertifyOptions)
def certify(*, model: ModelArgument, options: CertifyOptions, as_json: Json = False) -> None:
    """Check that a model still computes what was trained.

    Compares its files, config and weights with the release it claims to be or with --against, and
    runs probes of every task through the float32 reference and through the form and device to
    test. Exit code 0: pass; 1: fail.
    """
    from paligemma.certify import certify as check
    from paligemma.certify import render_certificate
    from paligemma.threads import set_threads

    check_output_files(options.out)
    set_threads(options.threads)
    certificate = check(request_of(model, options), print_note)
    if options.out is not None:
        content = certificate.to_dict()
        write_json(options.out.with_name(options.out.name + ".json"), content)
        page = options.out.with_name(options.out.name + ".html")
        write_whole(page, render_certificate(certificate).encode())
    if as_json:
        print_json(certificate.to_dict())
    else:
        _show(certificate)
    is_unusual = any(finding.level == "unusual" for finding in certificate.findings)
    if not certificate.passes or (options.fail_on == "unusual" and is_unusual):
        sys.exit(1)


def request_of(model: str, options: Any) -> CertifyRequest:
    """The request for a model and the options of a command that loads one."""
    from paligemma.certify import CertifyRequest
    from paligemma.checkpoints.hub import Source
    from paligemma.fast.weights import usual_name, weights_name

    return CertifyRequest(
        model=model,
        weights=weights_name(usual_name(options.dtype), options.quantization),
        device=options.device,
        adapter=getattr(options, "adapter", None),
        mask_codec=getattr(options, "mask_codec", None),
        source=Source(revision=options.revision, offline=options.offline),
        against=getattr(options, "against", None),
        release=getattr(options, "release", None),
        probes=getattr(options, "probes", True),
    )


def refuse_failing(model: str, options: Any) -> None:
    """Raise CheckpointError for a model whose certificate fails."""
    from paligemma.certify import certify as check

    certificate = check(replace(request_of(model, options), stops_early=True), print_note)
    fails = [finding for finding in certificate.findings if finding.level == "fail"]
    if fails:
        listed = "; ".join(f"{finding.place}: {finding.text}" for finding in fails[:3])
        raise CheckpointError(
            f"{model} does not pass its certificate, so it is not served. {listed} Run "
            f"`paligemma certify {model}` for the whole report."
        )


def _show(certificate: Certificate) -> None:
    print_text(f"{certificate.verdict}: {certificate.model}. {certificate.origin}")
    for finding in certificate.findings:
        print_text(f"{finding.level}: {finding.check}: {finding.place}: {finding.text}")
    if not certificate.tasks:
        return
    limits = certificate.limits
    assert limits is not None
    print_table(
        f"logits in standard deviations; limits for {limits.form}: {limits.largest} and "
        f"{limits.typical}",
        ("task", "largest", "typical", "same tokens", "box IoU", "mask IoU", "verdict"),
        [
            (
                task.task,
                f"{task.largest:.2g}",
                f"{task.typical:.2g}",
                f"{task.agreement:.0%}",
                _share(task.box_iou),
                _share(task.mask_iou),
                "pass" if task.passes else "fail",
            )
            for task in certificate.tasks
        ],
        right=("largest", "typical", "same tokens", "box IoU", "mask IoU"),
    )


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
