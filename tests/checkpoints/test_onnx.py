"""Exported graphs in onnxruntime against our model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor

import paligemma
from paligemma.checkpoints import convert
from paligemma.checkpoints.load import load_model
from paligemma.checkpoints.onnx import graph as graph_module
from paligemma.checkpoints.onnx.folder import write_onnx
from paligemma.checkpoints.onnx.weights import VARIANTS, Variant
from paligemma.checkpoints.open import open_checkpoint
from paligemma.checkpoints.rows import Contents
from paligemma.config import Family
from paligemma.engine.generate import generate
from paligemma.errors import CheckpointError, NumericalError, OptionError
from paligemma.fast.weights import Plain
from paligemma.inputs import ModelInputs
from paligemma.model.attention import positions_of
from paligemma.model.paligemma import PaliGemma
from paligemma.processor.processor import Processor, PromptRow
from paligemma.processor.tokenizer import Tokenizer
from paligemma.tasks.seg_codec import load_mask_codec_npz
from tests.tiny import FAMILIES, FLOAT32_TOLERANCE, Row, tiny_inputs, tiny_model, varied_model

MINI = Path(paligemma.__file__).parent / "mini" / "model"
SCENE = Path(__file__).parents[2] / "examples" / "scene.png"
VOCABULARY = 1500  # the tiny tokenizer has about 1470 pieces, most of them locations
EOS = 1

TABLE = "decoder.embedding.weight"


@dataclass(frozen=True)
class MemoryRows:
    values: Tensor
    name: str

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.values.shape)

    @property
    def dtype(self) -> torch.dtype:
        return self.values.dtype

    def read(self, start: int, end: int) -> Tensor:
        return self.values[start:end]


def contents_of(model: PaliGemma, tokenizer: bytes | None) -> Contents:
    rows = {name: MemoryRows(p.detach(), name) for name, p in model.named_parameters()}
    return Contents(config=model.config, parameters=rows, tokenizer=tokenizer)


class Exported:
    """The three sessions of a folder, driven as transformers.js drives them."""

    def __init__(self, folder: Path, config: Any, suffix: str = "") -> None:
        self.config = config
        self.paths = {
            name: folder / "onnx" / f"{name}{suffix}.onnx"
            for name in ("vision_encoder", "embed_tokens", "decoder_model_merged")
        }
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        for path in self.paths.values():
            onnx.checker.check_model(path, full_check=suffix == "")
        self.sessions = {
            name: onnxruntime.InferenceSession(path, options) for name, path in self.paths.items()
        }

    def run(self, name: str, **inputs: Any) -> list[NDArray[Any]]:
        arrays = {key.replace("__", "."): np.asarray(value) for key, value in inputs.items()}
        outputs: list[NDArray[Any]] = self.sessions[name].run(None, arrays)
        return outputs

    def embed(self, inputs: ModelInputs) -> NDArray[Any]:
        image_token = self.config.decoder.vocab_size
        ids = inputs.token_ids.masked_fill(inputs.image_mask, image_token)
        embeds = self.run("embed_tokens", input_ids=ids)[0]
        flat_index = [image for row in inputs.image_index for image in row]
        pixels = inputs.required_pixel_values[flat_index]
        features = self.run("vision_encoder", pixel_values=pixels)[0]
        embeds[inputs.image_mask.numpy()] = features.reshape(-1, features.shape[-1])
        return embeds

    def decode(
        self,
        embeds: NDArray[Any],
        mask: Tensor,
        caches: Sequence[NDArray[Any]] = (),
        num_logits: int = 0,
    ) -> tuple[Tensor, list[NDArray[Any]]]:
        decoder = self.config.decoder
        batch, length = embeds.shape[:2]
        empty = np.zeros((batch, decoder.num_kv_heads, 0, decoder.head_dim), np.float32)
        caches = caches or [empty] * (2 * decoder.depth)
        names = [
            f"past_key_values__{i}__{part}"
            for i in range(decoder.depth)
            for part in ("key", "value")
        ]
        logits, *presents = self.run(
            "decoder_model_merged",
            inputs_embeds=embeds,
            attention_mask=mask.long(),
            position_ids=(positions_of(mask) + 1)[:, -length:],
            num_logits_to_keep=num_logits,
            **dict(zip(names, caches, strict=True)),
        )
        return torch.from_numpy(logits), presents

    def logits(self, inputs: ModelInputs) -> Tensor:
        return self.decode(self.embed(inputs), inputs.input_mask)[0]

    def greedy(self, inputs: ModelInputs, max_new_tokens: int) -> list[int]:
        """The ids after a single row."""
        ids: list[int] = []
        mask = inputs.input_mask
        logits, caches = self.decode(self.embed(inputs), mask, num_logits=1)
        while len(ids) < max_new_tokens:
            ids.append(int(logits[0, -1].argmax()))
            if ids[-1] == EOS:
                break
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
            embeds = self.run("embed_tokens", input_ids=[[ids[-1]]])[0]
            logits, caches = self.decode(embeds, mask, caches, num_logits=1)
        return ids


@pytest.fixture(scope="module")
def tiny_models() -> dict[Family, PaliGemma]:
    return {family: tiny_model(family, vocab_size=VOCABULARY) for family in FAMILIES}


@pytest.fixture(scope="module")
def tiny_folders(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_models: dict[Family, PaliGemma],
    tiny_tokenizer: Tokenizer,
) -> dict[Family, Path]:
    folders = {}
    for family, model in tiny_models.items():
        folders[family] = tmp_path_factory.mktemp(family)
        write_onnx(contents_of(model, tiny_tokenizer.model_proto), folders[family], VARIANTS)
    return folders


def two_rows(model: PaliGemma) -> ModelInputs:
    """Two images, and pads on the left of the first row."""
    return tiny_inputs(model.config, [Row(images=(0,), prefix=6), Row(images=(1,), prefix=9)])


def expected_logits(model: PaliGemma, inputs: ModelInputs) -> Tensor:
    with torch.no_grad():
        return model(inputs)


@pytest.mark.parametrize("family", FAMILIES)
def test_float32_logits(family: Family, tiny_models: Any, tiny_folders: Any) -> None:
    model = tiny_models[family]
    inputs = two_rows(model)
    actual = Exported(tiny_folders[family], model.config).logits(inputs)
    expected = expected_logits(model, inputs)
    real = inputs.input_mask
    torch.testing.assert_close(actual[real], expected[real], rtol=0, atol=FLOAT32_TOLERANCE)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_of_the_last_tokens_only(
    family: Family, tiny_models: Any, tiny_folders: Any
) -> None:
    exported = Exported(tiny_folders[family], tiny_models[family].config)
    inputs = two_rows(tiny_models[family])
    embeds = exported.embed(inputs)
    every, _ = exported.decode(embeds, inputs.input_mask)
    last, _ = exported.decode(embeds, inputs.input_mask, num_logits=2)
    torch.testing.assert_close(last, every[:, -2:], rtol=0, atol=FLOAT32_TOLERANCE)


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_ids(family: Family, tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    model = varied_model(family, vocab_size=VOCABULARY)
    write_onnx(contents_of(model, tiny_tokenizer.model_proto), tmp_path)
    inputs = tiny_inputs(model.config, [Row(prefix=7)])
    expected = list(generate(model, inputs, max_new_tokens=12, eos_id=EOS)[0].token_ids)
    assert Exported(tmp_path, model.config).greedy(inputs, 12) == expected
    assert len(set(expected)) > 3


def rounded_model(model: PaliGemma, exported: Exported, variant: Variant) -> PaliGemma:
    """Our model with the weights that a variant stores, which are decoded here independently."""
    tensors: dict[str, NDArray[Any]] = {}
    for path in exported.paths.values():
        for tensor in onnx.load(path).graph.initializer:
            tensors[tensor.name] = numpy_helper.to_array(tensor)
    rounded = PaliGemma(model.config)
    rounded.load_state_dict(model.state_dict())
    for name, parameter in rounded.named_parameters():
        decoded = _decode(name, tensors, tuple(parameter.shape))
        if decoded is not None:
            error = (parameter.detach() - decoded).norm() / parameter.detach().norm()
            assert 0 < error < {"fp16": 0.001, "uint8": 0.02}.get(variant, 0.15), name
            parameter.data.copy_(decoded)
    return rounded.eval()


def _decode(
    name: str, tensors: Mapping[str, NDArray[Any]], shape: tuple[int, ...]
) -> Tensor | None:
    if (half := tensors.get(name)) is not None:
        return torch.from_numpy(half.astype(np.float32)) if half.dtype == np.float16 else None
    if name + ".uint8" in tensors:
        centered = tensors[name + ".uint8"].astype(np.float32).T - 128
        return torch.from_numpy(centered * tensors[name + ".scales"].reshape(-1, 1))
    if name + ".q4" not in tensors:
        return None
    packed = tensors[name + ".q4"].reshape(shape[0], -1)
    values = np.stack([packed & 15, packed >> 4], axis=-1).reshape(shape[0], -1) - 8.0
    scales = tensors[name + ".scales"].astype(np.float32).reshape(shape[0], -1).repeat(32, 1)
    return torch.from_numpy((values * scales)[:, : shape[1]].astype(np.float32))


@pytest.mark.parametrize("variant", ["fp16", "uint8", "q4", "q4f16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_variants_compute_with_rounded_weights(
    family: Family, variant: Variant, tiny_models: Any, tiny_folders: Any
) -> None:
    model = tiny_models[family]
    exported = Exported(tiny_folders[family], model.config, f"_{variant}")
    inputs = two_rows(model)
    actual = exported.logits(inputs)
    if variant in ("uint8", "q4", "q4f16"):  # the embeddings are stored apart from the logits
        table = exported.run("embed_tokens", input_ids=[list(range(VOCABULARY))])[0][0]
        rounded = rounded_model(model, exported, variant)
        scale = model.config.decoder.width**0.5
        np.testing.assert_allclose(
            table / scale,
            rounded.decoder.embedding.weight.detach(),
            atol=2e-3 if variant == "q4f16" else 1e-6,
        )
    else:
        rounded = rounded_model(model, exported, variant)
    difference = (actual - expected_logits(rounded, inputs))[inputs.input_mask].abs()
    # Activations are rounded as well: to float16, or to 8 bits per call.
    tolerance = {"fp16": 0.02, "uint8": 1.0, "q4": FLOAT32_TOLERANCE, "q4f16": 0.05}[variant]
    assert difference.max() < tolerance
    assert difference.mean() < tolerance / 8


def test_q8_is_uint8_under_the_default_name_of_browsers(tiny_folders: Any) -> None:
    folder = tiny_folders["paligemma2"] / "onnx"
    for name in ("vision_encoder", "embed_tokens", "decoder_model_merged"):
        default = (folder / f"{name}_quantized.onnx").read_bytes()
        assert default == (folder / f"{name}_uint8.onnx").read_bytes()


def test_mini(tmp_path: Path) -> None:
    model = load_model(MINI, weights=Plain("float32"))
    proto = (MINI / "tokenizer.model").read_bytes()
    codec_file = (MINI / "mask_codec.npz").read_bytes()
    contents = replace(contents_of(model, proto), files={"mask_codec.npz": codec_file})
    write_onnx(contents, tmp_path)
    processor = Processor(
        tokenizer=Tokenizer(proto),
        resolution=model.config.vision.resolution,
        num_image_tokens=model.config.vision.num_image_tokens,
    )
    exported = Exported(tmp_path, model.config)
    image = processor.load(SCENE)
    for prompt in ("caption en", "detect frog ; mushroom"):
        inputs = processor.prefix_inputs([PromptRow(prompt=prompt)], [image])
        actual, expected = exported.logits(inputs), expected_logits(model, inputs)
        torch.testing.assert_close(
            actual, expected, rtol=0, atol=2e-5 * float(expected.abs().max())
        )
        ids = list(generate(model, inputs, max_new_tokens=20, eos_id=EOS)[0].token_ids)
        assert exported.greedy(inputs, 20) == ids
    config = json.loads((tmp_path / "config.json").read_text())
    # transformers.js looks up the row of <image> before it overwrites it.
    assert exported.run("embed_tokens", input_ids=[[config["image_token_index"]]])[0].shape == (
        (1, 1, model.config.decoder.width)
    )
    codec = load_mask_codec_npz(tmp_path / "mask_codec.npz")
    codes = torch.randint(128, (3, 16), generator=torch.Generator().manual_seed(0))
    session = onnxruntime.InferenceSession(tmp_path / "onnx" / "mask_decoder.onnx")
    np.testing.assert_allclose(
        session.run(None, {"codes": codes.numpy()})[0], codec.decode_masks(codes), atol=1e-5
    )
    assert config["transformers.js_config"] == {"dtype": "fp32"}


def test_convert(tmp_path: Path) -> None:
    with open_checkpoint(MINI) as source:
        plan = convert.plan(source, tmp_path / "mini", to="onnx", dtype="fp16,q4")
        folder = convert.run(plan)
        with pytest.raises(OptionError, match="cannot be verified"):
            convert.check_verifiable(plan)
        assert convert.plan(source, tmp_path / "other", to="onnx").dtype == "fp16"
        with pytest.raises(OptionError, match="one of 'stored', 'fp32', 'fp16'"):
            convert.plan(source, tmp_path / "other", to="onnx", dtype="fp16,float32")
    assert len(list((folder / "onnx").iterdir())) == 7  # three graphs twice, and the mask decoder
    assert (folder / "mask_codec.npz").read_bytes() == (MINI / "mask_codec.npz").read_bytes()
    with pytest.raises(CheckpointError, match="is an ONNX export"):
        open_checkpoint(folder)


def test_weights_in_data_files(
    tmp_path: Path,
    tiny_models: Any,
    tiny_folders: Any,
    tiny_tokenizer: Tokenizer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(graph_module, "MAX_FILE_BYTES", 150_000)
    model = tiny_models["paligemma2"]
    write_onnx(contents_of(model, tiny_tokenizer.model_proto), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    counts = config["transformers.js_config"]["use_external_data_format"]
    data_files = {path.name for path in (tmp_path / "onnx").glob("*_data*")}
    assert counts["embed_tokens.onnx"] == 1  # one large tensor cannot be split
    assert counts["decoder_model_merged.onnx"] > 2
    assert data_files == {
        f"{name}_data{f'_{i}' if i else ''}" for name, count in counts.items() for i in range(count)
    }
    inputs = two_rows(model)
    actual = Exported(tmp_path, model.config).logits(inputs)
    expected = Exported(tiny_folders["paligemma2"], model.config).logits(inputs)
    assert torch.equal(actual, expected)


def test_reads_a_few_rows_at_a_time(tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    """Not even the table is ever in memory, nor are several matrices."""
    model = tiny_model("paligemma2", vocab_size=200_000)
    largest_read = 0

    class Watched(MemoryRows):
        def read(self, start: int, end: int) -> Tensor:
            nonlocal largest_read
            largest_read = max(largest_read, self.values[start:end].numel())
            return super().read(start, end)

    rows = {name: Watched(p.detach(), name) for name, p in model.named_parameters()}
    contents = Contents(config=model.config, parameters=rows, tokenizer=tiny_tokenizer.model_proto)
    write_onnx(contents, tmp_path, ["fp16", "q4"])
    assert largest_read <= 2**20 < model.decoder.embedding.weight.numel()


@pytest.mark.parametrize(
    ("changes", "variants", "error", "message"),
    [
        ({"tokenizer": None}, ["fp32"], CheckpointError, "no tokenizer.model"),
        ({}, ["fp8"], OptionError, "'fp8' is no ONNX variant. Choose from fp32, fp16"),
        ({}, [], OptionError, "No ONNX variant was given"),
        ({"tokenizer": b"damaged"}, ["fp32"], CheckpointError, "not a complete SentencePiece"),
    ],
)
def test_refusals(
    tmp_path: Path,
    tiny_models: Any,
    tiny_tokenizer: Tokenizer,
    changes: dict[str, Any],
    variants: Any,
    error: type[Exception],
    message: str,
) -> None:
    contents = contents_of(tiny_models["paligemma"], tiny_tokenizer.model_proto)
    with pytest.raises(error, match=message):
        write_onnx(replace(contents, **changes), tmp_path, variants)
    assert not list(tmp_path.iterdir())


def test_refuses_a_sliding_window(tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    slides = (True, False, True, False, True, False, True)
    model = tiny_model(vocab_size=VOCABULARY, sliding_window=5, sliding_layers=slides)
    with pytest.raises(CheckpointError, match="has a sliding window"):
        write_onnx(contents_of(model, tiny_tokenizer.model_proto), tmp_path)


@pytest.mark.parametrize("name", [TABLE, "decoder.blocks.1.mlp.up_proj.weight"])
@pytest.mark.parametrize(("variant", "value"), [("fp32", np.nan), ("fp16", 1e5), ("q4", np.inf)])
def test_refuses_weights_that_the_variant_cannot_hold(
    tmp_path: Path, tiny_tokenizer: Tokenizer, name: str, variant: Variant, value: float
) -> None:
    model = tiny_model("paligemma", vocab_size=VOCABULARY)
    model.get_parameter(name).data[3, 5] = value
    with pytest.raises(NumericalError, match=name):
        write_onnx(contents_of(model, tiny_tokenizer.model_proto), tmp_path, [variant])
