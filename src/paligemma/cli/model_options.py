"""Which model a command loads, and how: options that many commands share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from paligemma.errors import OptionError
from paligemma.options import Option

if TYPE_CHECKING:
    from paligemma.predictor import Predictor

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Quantization = Literal["int8", "int4"]

DtypeOption = Annotated[
    Dtype,
    typer.Option(
        "--dtype",
        help="Data type of the weights. auto: bfloat16 for large models on devices that compute "
        "it well, else float32.",
    ),
]
RevisionOption = Annotated[
    str | None,
    typer.Option("--revision", help="Branch, tag or commit of a hub model.", show_default="main"),
]
ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        show_default=False,
        help="Model: mini, a hub id such as google/paligemma2-3b-mix-224, or a folder.",
    ),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(
        "--threads",
        min=1,
        help="Number of CPU threads to compute with.",
        show_default="as many as CPUs",
    ),
]
OutArgument = Annotated[
    Path,
    typer.Argument(
        metavar="OUT",
        show_default=False,
        help="Folder to create. It must not exist yet, or be empty.",
    ),
]


def check_new_folder(out: Path) -> None:
    """Raise OptionError unless there is nothing at this path, or an empty folder."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OptionError(f"{out} already exists. Choose another name or remove it first.")


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """A model and the form in which to load it."""

    model: str = "mini"
    """Model to use: mini, a hub id such as google/paligemma2-3b-mix-224, or a folder."""
    revision: Annotated[str | None, Option(shown_default="main")] = None
    """Branch, tag or commit of a hub model."""
    device: str = "auto"
    """Device to run on: auto, cpu, cuda, cuda:1 or mps."""
    dtype: Annotated[str, Option(metavar="[auto|stored|float32|bfloat16|float16]")] = "auto"
    """Data type of the weights. auto: bfloat16 for large models on devices that compute it well,
    else float32; stored: as in the files."""
    quantization: Annotated[Quantization | None, Option(shown_default="as stored")] = None
    """Quantize the decoder's large weights to this format."""
    offline: bool = False
    """Use only files that are already downloaded."""
    verify: bool = False
    """Check model files against their SHA-256 checksums before reading them."""
    threads: Annotated[int | None, Option(least=1, shown_default="as many as CPUs")] = None
    """Number of CPU threads to compute with."""


@dataclass(frozen=True, kw_only=True)
class LoadOptions(ModelOptions):
    """A model, and an adapter to merge into it."""

    model: str = "mini"
    """Model to use: mini, a hub id such as google/paligemma2-3b-mix-224, or a folder."""
    adapter: Annotated[Path | None, Option(shown_default="none")] = None
    """Folder of an adapter to merge into the model."""
    resize: Annotated[
        Literal["squash", "pad"] | None, Option(shown_default="as trained, else squash")
    ] = None
    """How an image becomes square. squash: stretched, as the released models were trained; pad:
    with white borders."""
    mask_codec: Annotated[Path | None, Option(shown_default="in the model's folder")] = None
    """File that turns <seg> tokens into masks, such as vae-oid.npz."""

    def load(self) -> Predictor:
        from paligemma.cli.interrupt import exit_when_interrupted

        with exit_when_interrupted():
            import paligemma
            from paligemma.checkpoints.hub import Source
            from paligemma.fast.weights import usual_name, weights_name
            from paligemma.threads import set_threads

            set_threads(self.threads)
            return paligemma.load(
                self.model,
                weights=weights_name(usual_name(self.dtype), self.quantization),
                device=self.device,
                adapter=self.adapter,
                source=Source(revision=self.revision, offline=self.offline, verify=self.verify),
                resize=self.resize,
                mask_codec=self.mask_codec,
            )
