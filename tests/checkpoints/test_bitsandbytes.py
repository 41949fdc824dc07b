"""Folders that bitsandbytes quantized: values, what is kept, and damage."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from paligemma.adapters.lora import lora_layers
from paligemma.checkpoints import convert
from paligemma.checkpoints.hf import to_released_name, to_released_names
from paligemma.checkpoints.load import load_model, read_model
from paligemma.checkpoints.open import open_checkpoint
from paligemma.checkpoints.rows import read_all
from paligemma.checkpoints.save import save_model
from paligemma.errors import CheckpointError
from paligemma.fast.frozen_linear import FrozenLinear
from paligemma.fast.weights import Plain, Trainable
from tests.checkpoints.references import run_reference
from tests.tiny import randomize, tiny_model

FIXTURES = Path(__file__).parents[1] / "vectors" / "interop" / "bitsandbytes"
KINDS = ("nf4", "nf4dq", "int8")
SCHEMES = {
    "nf4": "bitsandbytes nf4",
    "nf4dq": "bitsandbytes nf4, double-quantized",
    "int8": "bitsandbytes int8",
}
Q_PROJ = "language_model.model.layers.0.self_attn.q_proj.weight"
OURS = "decoder.blocks.0.attention.q_proj"


def all_weights(path: Path) -> dict[str, Tensor]:
    """All weights by released name."""
    with open_checkpoint(path) as checkpoint:
        rows = checkpoint.contents.parameters
        names = to_released_names(checkpoint.contents.config, rows)
        return {released: read_all(rows[ours]) for ours, released in names.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_values_are_those_of_bitsandbytes(kind: str) -> None:
    expected = json.loads((FIXTURES / kind / "expected_sha256.json").read_text())
    weights = all_weights(FIXTURES / kind)
    assert len(expected) == 27
    with open_checkpoint(FIXTURES / kind) as checkpoint:
        assert checkpoint.description["quantization"] == f"{SCHEMES[kind]} (27 weights)"
    for name, digest in expected.items():
        content = weights[to_released_name(name)].view(torch.uint8).numpy().tobytes()
        assert hashlib.sha256(content).hexdigest() == digest, name


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_of_rows_are_parts_of_the_whole(kind: str) -> None:
    with open_checkpoint(FIXTURES / kind) as checkpoint:
        rows = checkpoint.contents.parameters[f"{OURS}.weight"]
        whole = read_all(rows)
        parts = [rows.read(start, min(start + 48, 128)) for start in range(0, 128, 48)]
    assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("kind", ["nf4", "nf4dq"])
@pytest.mark.parametrize("weights", [Trainable("nf4"), "stored"])
def test_frozen_layers_keep_the_bits(kind: str, weights: Any) -> None:
    expected = all_weights(FIXTURES / kind)
    with open_checkpoint(FIXTURES / kind) as checkpoint:
        model, form = read_model(checkpoint, weights=weights, device=torch.device("cpu"))
    layer = model.get_submodule(OURS)
    assert isinstance(layer, FrozenLinear)
    assert torch.equal(layer.weight(torch.bfloat16), expected[Q_PROJ])
    assert "keeps these bits" in (form.note or "")


@pytest.mark.parametrize("kind", KINDS)
def test_memory_that_dequantizing_takes_is_said(kind: str) -> None:
    with open_checkpoint(FIXTURES / kind) as checkpoint:
        _, form = read_model(checkpoint, weights="auto", device=torch.device("cpu"))
    assert form.note is not None
    assert "dequantized to float32" in form.note
    assert "GB in memory instead of" in form.note


@pytest.mark.parametrize("weights", ["int8", "int4", Trainable("int8")])
def test_weights_are_quantized_again_when_asked(weights: Any) -> None:
    expected = all_weights(FIXTURES / "nf4")[Q_PROJ].float()
    with open_checkpoint(FIXTURES / "nf4") as checkpoint:
        model, form = read_model(checkpoint, weights=weights, device=torch.device("cpu"))
    assert "which rounds twice" in (form.note or "")
    assert not lora_layers(model)
    if isinstance(weights, Trainable):
        layer = model.get_submodule(OURS)
        assert isinstance(layer, FrozenLinear)
        weight = layer.weight(torch.float32)
        assert (weight - expected).abs().max() < 0.01 * expected.abs().max()


def test_conversions_say_that_weights_are_dequantized(tmp_path: Path) -> None:
    with open_checkpoint(FIXTURES / "nf4dq") as checkpoint:
        plan = convert.plan(checkpoint, tmp_path / "out", to="hf")
        convert.run(plan)
        convert.verify(plan)
    assert any("bitsandbytes nf4, double-quantized are deq" in note for note in plan.notes)
    first, second = all_weights(FIXTURES / "nf4dq"), all_weights(tmp_path / "out")
    assert all(torch.equal(first[name], second[name]) for name in first)


Tensors = dict[str, Tensor]
STATE = Q_PROJ + ".quant_state.bitsandbytes__nf4"


def with_state(**changes: Any) -> Callable[[Tensors], object]:
    def change(tensors: Tensors) -> None:
        state = json.loads(bytes(tensors[STATE].numpy())) | changes
        content = bytearray(json.dumps(state).encode())
        tensors[STATE] = torch.frombuffer(content, dtype=torch.uint8).clone()

    return change


def replaced(role: str, value: Tensor) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.update({Q_PROJ + role: value})


DAMAGE: dict[str, tuple[str, Callable[[Tensors], object], str]] = {
    "shape": ("nf4", with_state(shape=[64, 256]), r"says shape \[64, 256\], expected \[128, 128\]"),
    "huge shape": ("nf4", with_state(shape=[2**40, 2**40]), "says shape"),
    "no shape": ("nf4", with_state(shape=None), "says shape None"),
    "block size 0": ("nf4", with_state(blocksize=0), "says blocksize 0, expected 32 or 64"),
    "negative block size": ("nf4", with_state(blocksize=-64), "says blocksize -64"),
    "huge block size": ("nf4", with_state(blocksize=2**60), "says blocksize"),
    "block size true": ("nf4", with_state(blocksize=True), "says blocksize True"),
    "other block size": ("nf4", with_state(blocksize=128), r"absmax is F32 \(256,\), expected"),
    "type": ("nf4", with_state(quant_type="fp4"), "says quant_type 'fp4', expected nf4"),
    "dtype": ("nf4", with_state(dtype="float64"), "says dtype 'float64'"),
    "a list as dtype": ("nf4", with_state(dtype=[1] * 1000), r"says dtype \[1, 1"),
    "offset": ("nf4dq", with_state(nested_offset=None), "says nested_offset None"),
    "infinite offset": ("nf4dq", with_state(nested_offset=1e999), "says nested_offset inf"),
    "nested block size": ("nf4dq", with_state(nested_blocksize=3), "says nested_blocksize 3"),
    "not JSON": ("nf4", lambda t: t.update({STATE: torch.zeros(20).byte()}), "is not valid JSON"),
    "not an object": (
        "nf4",
        replaced(STATE[len(Q_PROJ) :], torch.tensor([49, 49]).byte()),
        "not a",
    ),
    "deep JSON": ("nf4", lambda t: t.update({STATE: torch.full((4000,), 91).byte()}), "valid JSON"),
    "huge state": ("nf4", lambda t: t.update({STATE: torch.zeros(9000).byte()}), "of 9000 bytes"),
    "no state": ("nf4", lambda t: t.pop(STATE), "has no quant_state"),
    "no scales": ("nf4", lambda t: t.pop(Q_PROJ + ".absmax"), "has no .absmax next to it"),
    "no codebook": ("nf4", lambda t: t.pop(Q_PROJ + ".quant_map"), "has no .quant_map"),
    "no weight": ("nf4", lambda t: t.pop(Q_PROJ), r"missing: .*q_proj\.weight"),
    "short scales": ("nf4", replaced(".absmax", torch.ones(255)), r"absmax is F32 \(255,\)"),
    "wide scales": ("nf4", replaced(".absmax", torch.ones(256).double()), "absmax is F64"),
    "short weight": ("nf4", replaced("", torch.zeros(8000, 1).byte()), "with 8000 bytes"),
    "long weight": ("nf4", replaced("", torch.zeros(8193, 1).byte()), "with 8193 bytes"),
    "codebook": ("nf4", replaced(".quant_map", torch.full((16,), torch.nan)), "beyond -1 to 1"),
    "short codebook": ("nf4", replaced(".quant_map", torch.ones(15)), "quant_map is F32"),
    "no nested scales": ("nf4dq", lambda t: t.pop(Q_PROJ + ".nested_absmax"), ".nested_absmax"),
    "no nested codebook": (
        "nf4dq",
        lambda t: t.pop(Q_PROJ + ".nested_quant_map"),
        ".nested_quant_map",
    ),
    "long nested scales": ("nf4dq", replaced(".nested_absmax", torch.ones(2)), "nested_absmax is"),
    "unknown tensor": ("nf4", replaced("_scales", torch.ones(2)), "unknown: .*weight_scales"),
    "no SCB": ("int8", lambda t: t.pop(Q_PROJ[:-6] + "SCB"), "has no scales SCB next to it"),
    "short SCB": ("int8", lambda t: t.update({Q_PROJ[:-6] + "SCB": torch.ones(9)}), "SCB is F32"),
    "order": (
        "int8",
        lambda t: t.update({Q_PROJ + "_format": torch.tensor(2).byte()}),
        "an order of weights other than rows",
    ),
    "transposed": (
        "int8",
        lambda t: t.update({Q_PROJ: torch.zeros(64, 256).to(torch.int8)}),
        r"I8 \(64, 256\), expected I8 \(128, 128\)",
    ),
    "int8 without scales": (
        "int8",
        lambda t: [t.pop(Q_PROJ[:-6] + "SCB"), t.pop(Q_PROJ + "_format")],
        "has dtype I8, expected F32",
    ),
}


def damaged(folder: Path, kind: str, change: Callable[[Tensors], object]) -> Path:
    shutil.copytree(FIXTURES / kind, folder)
    tensors = load_file(FIXTURES / kind / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named(tmp_path: Path, name: str) -> None:
    kind, change, message = DAMAGE[name]
    with pytest.raises(CheckpointError, match=message) as caught:
        load_model(damaged(tmp_path / "model", kind, change))
    assert "do not fit its config.json" in str(caught.value)


@pytest.mark.parametrize("weights", ["float32", Trainable("nf4")])
def test_scales_that_are_not_finite_are_named(tmp_path: Path, weights: Any) -> None:
    scales = torch.ones(256)
    scales[7] = torch.nan
    folder = damaged(tmp_path / "model", "nf4", replaced(".absmax", scales))
    with pytest.raises(CheckpointError, match=r"NaN.*q_proj"):
        load_model(folder, weights=weights)


def test_which_layers_are_quantized_is_read_from_the_tensors(tmp_path: Path) -> None:
    plain = all_weights(FIXTURES / "nf4")[Q_PROJ]

    def change(tensors: Tensors) -> None:
        for name in [name for name in tensors if name.startswith(Q_PROJ + ".")]:
            del tensors[name]
        tensors[Q_PROJ] = plain

    folder = damaged(tmp_path / "model", "nf4", change)
    weights = all_weights(folder)
    assert torch.equal(weights[Q_PROJ], plain)
    model = load_model(folder, weights=Plain("bfloat16"))
    assert torch.equal(model.get_parameter(f"{OURS}.weight"), plain)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_packed_bytes_may_have_any_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    def change(tensors: Tensors) -> None:
        tensors[Q_PROJ] = tensors[Q_PROJ].view(-1).view(dtype)[:, None]

    folder = damaged(tmp_path / "model", "nf4", change)
    assert torch.equal(all_weights(folder)[Q_PROJ], all_weights(FIXTURES / "nf4")[Q_PROJ])


# With transformers and bitsandbytes


@pytest.mark.parametrize(
    ("family", "kind", "dtype"),
    [
        ("paligemma", "nf4", "float16"),
        ("paligemma", "fp4", "float32"),
        ("paligemma2", "nf4dq", "bfloat16"),
        ("paligemma2", "int8", "float16"),
    ],
)
def test_folders_of_transformers_are_read_exactly(
    tmp_path: Path, family: Any, kind: str, dtype: str
) -> None:
    model = tiny_model(family, seed=len(kind))  # no width is a multiple of 64
    randomize(model, 5)
    source = save_model(model, tmp_path / "hf")
    out, reference = tmp_path / "bnb", tmp_path / "all.safetensors"
    tool = "bitsandbytes_tool.py"
    run_reference("bitsandbytes", tool, "quantize", source, out, kind, dtype)
    run_reference("bitsandbytes", tool, "dequantize", out, reference)
    ours, theirs = all_weights(out), load_file(reference)
    assert len(theirs) > 30
    for name, weight in theirs.items():
        values = ours[to_released_name(name)]
        assert values.dtype == getattr(torch, dtype)
        assert torch.equal(values, weight.to(values.dtype)), name
