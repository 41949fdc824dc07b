"""The commands about models themselves: list, download, describe, quantize, merge."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from paligemma.cli.console import print_json, print_note, print_table, print_text, stderr
from paligemma.cli.memory import BYTES_PER_VALUE, QUANTIZED_BITS, in_gigabytes, memory_need
from paligemma.cli.model_options import (
    DtypeOption,
    ModelArgument,
    OutArgument,
    RevisionOption,
    check_new_folder,
)
from paligemma.cli.options import Json
from paligemma.config import RELEASES, PaliGemmaConfig, Release, count_parameters
from paligemma.errors import OptionError

if TYPE_CHECKING:
    from paligemma.predictor import Predictor

_TERMS = (
    "Google's weights are licensed under the Gemma Terms of Use (ai.google.dev/gemma/terms), which "
    "are not an open-source license. Accept them on the model's page before downloading."
)
_MINI = Path(__file__).parents[1] / "mini" / "model"
_DEFAULT_TEXT_LENGTH = 256  # tokens of prompt and answer, if the model's limit is unknown


def models(as_json: Json = False) -> None:
    """List the built-in model and all released models."""
    mini = _mini_row()
    if as_json:
        print_json([mini, *(asdict(release) for release in RELEASES)])
        return
    resolution, parameters = str(mini["resolution"]), _in_words(mini["num_parameters"])
    rows = [("mini (built in)", resolution, parameters, "", "", "")]
    for release in RELEASES:
        rows.append(
            (
                release.hub_id + ("" if release.confirmed else " (?)"),
                str(release.resolution),
                _in_words(release.num_parameters),
                str(release.text_length),
                release.stage,
                ", ".join(release.dtype_branches),
            )
        )
    headings = ("name", "pixels", "parameters", "text", "stage", "branches")
    print_table(None, headings, rows, right=("pixels", "parameters", "text"))
    print_note(
        "text: maximum number of tokens of prompt and answer. (?): the name follows the pattern of "
        "the others, but has not been checked."
    )


def download(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", show_default=False, help="Hub id or name of a release."),
    ],
    revision: RevisionOption = None,
    as_json: Json = False,
) -> None:
    """Download a model from the hub, for use offline."""
    from paligemma.checkpoints.hub import fetch_checkpoint, resolve

    hub_id = model if model == "mini" else resolve(model)
    if hub_id == "mini" or isinstance(hub_id, Path):
        raise OptionError(
            f"{model!r} is on this machine already. Give a hub id or the name of a release."
        )
    print_note(_TERMS)
    checkpoint = fetch_checkpoint(hub_id, revision=revision, progress=stderr().is_terminal)
    if as_json:
        print_json({**asdict(checkpoint), "path": str(checkpoint.path)})
    else:
        print_text(f"{hub_id} at {checkpoint.revision} is in {checkpoint.path}")


def info(model: ModelArgument, as_json: Json = False) -> None:
    """Show the properties of a model and the memory it needs.

    Nothing is downloaded, and no weights are read.
    """
    release = _find_release(model)
    if release is None:
        properties = _describe_checkpoint(model)
    else:
        memory = _memory(release.config, release.text_length)
        properties = {**asdict(release), "license": _TERMS, "memory": memory}
    if as_json:
        print_json(properties)
        return
    memory = properties.pop("memory")
    parts = ("weights", "kv cache", "activations", "process", "total")
    print_table(None, ("field", "value"), [(k, _cell(v)) for k, v in properties.items()])
    print_table(
        "memory for one image and one prompt (estimate)",
        ("weights as", *parts),
        [(form, *map(in_gigabytes, need.values())) for form, need in memory.items()],
        right=parts,
    )


def quantize(
    model: ModelArgument,
    out: OutArgument,
    to: Annotated[
        Literal["int8", "int4"],
        typer.Option("--to", show_default=False, help="Format of the decoder's large weights."),
    ],
    revision: RevisionOption = None,
    as_json: Json = False,
) -> None:
    """Write a quantized copy of a model.

    The copy needs less memory; the full weights are never in memory at once.
    """
    import paligemma
    from paligemma.checkpoints.hub import Source

    check_new_folder(out)
    predictor = paligemma.load(model, weights=to, device="cpu", source=Source(revision=revision))
    _save(predictor, out, to, {"quantization": to}, as_json)


def merge(
    model: ModelArgument,
    adapter: Annotated[
        Path,
        typer.Argument(metavar="ADAPTER", show_default=False, help="Folder of the adapter."),
    ],
    out: OutArgument,
    dtype: DtypeOption = "auto",
    revision: RevisionOption = None,
    as_json: Json = False,
) -> None:
    """Merge an adapter into its model and write the result.

    The adapter is a LoRA, rsLoRA or DoRA adapter, made by this package or by peft. The result is a
    plain checkpoint, which transformers can read too.
    """
    import paligemma
    from paligemma.checkpoints.hub import Source
    from paligemma.fast.weights import Plain

    check_new_folder(out)
    merged = paligemma.load(
        model, weights=Plain(dtype), device="cpu", adapter=adapter, source=Source(revision=revision)
    )
    message = f"{adapter} merged into {merged.name}"
    _save(merged, out, message, {"adapter": str(adapter)}, as_json)


def _save(
    predictor: Predictor, out: Path, message: str, facts: dict[str, str], as_json: bool
) -> None:
    folder = predictor.save(out)
    num_bytes = sum(path.stat().st_size for path in folder.iterdir())
    if as_json:
        print_json({"folder": str(folder), **facts, "bytes": num_bytes})
    else:
        print_text(f"{folder}: {message}, {in_gigabytes(num_bytes)}")


def _mini_row() -> dict[str, Any]:
    from paligemma.checkpoints.hf_config import read_config

    config = read_config(_MINI).config
    release = Release(
        variant="mini",
        family=config.family,
        size="mini",
        stage="mini",
        resolution=config.vision.resolution,
        num_parameters=count_parameters(config),
        text_length=_DEFAULT_TEXT_LENGTH,
        hub_id="mini",
        dtype_branches=(),
    )
    return asdict(release)


def _find_release(name: str) -> Release | None:
    return next((r for r in RELEASES if name in (r.variant, r.hub_id)), None)


def config_of(name: str) -> PaliGemmaConfig:
    """The config of a release or of a folder, without reading weights."""
    from paligemma.checkpoints.open import read_config_and_tokenizer

    release = _find_release(name)
    return release.config if release else read_config_and_tokenizer(_path_of(name))[0]


def _path_of(name: str) -> Path:
    path = _MINI if name == "mini" else Path(name).expanduser()
    if not path.exists():
        raise OptionError(
            f"{name!r} is neither a release nor a folder or file. `paligemma models` lists the "
            "releases. To look at another hub model, run `paligemma download` first."
        )
    return path


def _describe_checkpoint(name: str) -> dict[str, Any]:
    """What the config and the headers of the weight files say, without reading weights."""
    from paligemma.checkpoints.open import open_checkpoint

    with open_checkpoint(_path_of(name)) as checkpoint:
        contents = checkpoint.contents
        config = contents.config
        dtypes = {str(rows.dtype).removeprefix("torch.") for rows in contents.parameters.values()}
        num_bytes = sum(path.stat().st_size for path in checkpoint.weight_files)
        return {
            "path": str(checkpoint.path),
            "format": checkpoint.format,
            "family": config.family,
            "resolution": config.vision.resolution,
            "num_image_tokens": config.vision.num_image_tokens,
            "num_parameters": count_parameters(config),
            "quantization": contents.quantization,
            "stored_dtypes": sorted(dtypes),
            "stored_bytes": num_bytes,
            "tokenizer": contents.tokenizer is not None,
            **checkpoint.description,
            "notes": list(checkpoint.notes),
            "config": asdict(config),
            "memory": _memory(config, _DEFAULT_TEXT_LENGTH, contents.quantization),
        }


def _memory(
    config: PaliGemmaConfig, text_length: int, quantization: str | None = None
) -> dict[str, dict[str, int]]:
    forms = (*BYTES_PER_VALUE, *QUANTIZED_BITS) if quantization is None else (quantization,)
    needs = {form: memory_need(config, form, text_length) for form in forms}
    return {dtype: {**asdict(need), "total": need.total} for dtype, need in needs.items()}


def _cell(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _in_words(num_parameters: int) -> str:
    """
    >>> _in_words(3_032_094_960), _in_words(9_800_000)
    ('3.03 B', '9.8 M')
    """
    if num_parameters >= 1e8:
        return f"{num_parameters / 1e9:.2f} B"
    return f"{num_parameters / 1e6:.1f} M"
