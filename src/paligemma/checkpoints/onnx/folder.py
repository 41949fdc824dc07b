"""Write the folder that transformers.js loads: graphs, configs and tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

from paligemma.checkpoints.files import read_json, write_json
from paligemma.checkpoints.hf_config import CONFIG_FILE, write_config
from paligemma.checkpoints.rows import Contents
from paligemma.checkpoints.tokenizer_file import TOKENIZER_FILE
from paligemma.checkpoints.tokenizer_json import tokenizer_files
from paligemma.config import MASK_CODEC_FILES
from paligemma.errors import CheckpointError, MissingExtraError, OptionError
from paligemma.tasks.seg_codec import load_mask_codec_npz

try:
    from paligemma.checkpoints.onnx import model
    from paligemma.checkpoints.onnx.mask_codec import mask_decoder
    from paligemma.checkpoints.onnx.weights import VARIANTS, Variant
except ModuleNotFoundError as error:
    if error.name != "onnx":
        raise
    raise MissingExtraError("onnx", "formats", "Exporting to ONNX") from None

_GRAPHS = (model.vision_encoder, model.embed_tokens, model.decoder_model_merged)
_SUFFIXES: dict[Variant, str] = {
    "fp32": "",
    "fp16": "_fp16",
    "uint8": "_uint8",
    "q8": "_quantized",
    "q4": "_q4",
    "q4f16": "_q4f16",
}


def write_onnx(contents: Contents, folder: Path, variants: Sequence[Variant] = ("fp32",)) -> None:
    """Write graphs in each of the variants, configs and the tokenizer into an empty folder.

    Raises OptionError for an unknown variant, CheckpointError for a model without a tokenizer or
    with a sliding window, and NumericalError for weights that are not finite or too large for
    float16.
    """
    _check(contents, variants)
    assert contents.tokenizer is not None
    files = tokenizer_files(contents.tokenizer, contents.config.decoder.vocab_size)
    files |= {TOKENIZER_FILE: contents.tokenizer, **contents.files}
    for name, content in files.items():
        (folder / name).write_bytes(content)
    is_half = all(variant in ("fp16", "q4f16") for variant in variants)
    write_config(folder, contents.config, "float16" if is_half else "float32")
    config = read_json(folder / CONFIG_FILE)
    config["transformers.js_config"] = {"dtype": variants[0]}
    if num_data_files := _write_graphs(contents, folder / "onnx", variants):
        config["transformers.js_config"]["use_external_data_format"] = num_data_files
    write_json(folder / CONFIG_FILE, config)


def _write_graphs(contents: Contents, folder: Path, variants: Sequence[Variant]) -> dict[str, int]:
    """Return the number of data files of each file that has some."""
    folder.mkdir()
    num_data_files: dict[str, int] = {}
    for variant in dict.fromkeys(variants):
        for build in _GRAPHS:
            name = f"{build.__name__}{_SUFFIXES[variant]}.onnx"
            graph = build(contents.config, contents.parameters, variant)
            if count := graph.write(folder / name):
                num_data_files[name] = count
    codecs = [contents.files[name] for name in MASK_CODEC_FILES if name in contents.files]
    if codecs:
        codec = load_mask_codec_npz(BytesIO(codecs[0]))
        mask_decoder(codec).write(folder / "mask_decoder.onnx")
    return num_data_files


def _check(contents: Contents, variants: Sequence[Variant]) -> None:
    if unknown := [variant for variant in variants if variant not in VARIANTS]:
        raise OptionError(f"{unknown[0]!r} is no ONNX variant. Choose from {', '.join(VARIANTS)}.")
    if not variants:
        raise OptionError(f"No ONNX variant was given. Choose from {', '.join(VARIANTS)}.")
    if contents.tokenizer is None:
        raise CheckpointError(
            "The checkpoint has no tokenizer.model, which an ONNX export needs, because "
            "transformers.js reads prompts with the tokenizer.json made from it. Add the "
            "tokenizer.model of the checkpoint."
        )
    if contents.config.decoder.sliding_window is not None:
        raise CheckpointError(
            "The model has a sliding window, which the ONNX export does not have. Load it without "
            "sliding_window; released weights were trained without one."
        )
