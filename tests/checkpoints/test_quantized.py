"""Quantized checkpoints: the same bits back, made at load or saved, strict, and small in memory."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from paligemma.checkpoints.load import load_model
from paligemma.checkpoints.quantized import format_of
from paligemma.checkpoints.save import save_model
from paligemma.config import Family
from paligemma.errors import CheckpointError, NumericalError, OptionError
from paligemma.fast.accelerate import accelerate, quantization_of, weight_rows
from paligemma.fast.linear import WeightRows
from paligemma.fast.weights import Packed, Plain, Quantization, Trainable, weights_name
from paligemma.model.paligemma import PaliGemma
from tests.tiny import FAMILIES, tiny_config, tiny_model

QUANTIZATIONS: tuple[Quantization, ...] = ("int8", "int4")
UP = "language_model.model.layers.1.mlp.up_proj.weight"
TABLE = "language_model.model.embed_tokens.weight"
FILE = "quantized.safetensors"


def bfloat16_model(family: Family = "paligemma2") -> PaliGemma:
    return tiny_model(family).to(torch.bfloat16)


def quantized(quantization: Quantization, family: Family = "paligemma2") -> PaliGemma:
    return accelerate(bfloat16_model(family), quantization)


def contents(model: PaliGemma) -> dict[str, tuple[Tensor, ...]]:
    """Every weight by its plain name: its values, or its whole numbers and scales."""
    found: dict[str, tuple[Tensor, ...]] = {}
    for name, rows in weight_rows(model).items():
        if isinstance(rows, WeightRows) and rows.layer.weight_format.name != "bfloat16":
            found[name] = rows.read_stored(0, rows.shape[0])
        else:
            found[name] = (rows.read(0, rows.shape[0]),)
    return found


def same_bits(a: PaliGemma, b: PaliGemma) -> bool:
    one, two = contents(a), contents(b)
    return one.keys() == two.keys() and all(
        len(one[name]) == len(two[name])
        and all(
            x.dtype == y.dtype and torch.equal(x, y)
            for x, y in zip(one[name], two[name], strict=True)
        )
        for name in one
    )


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_stored_quantized_is_what_a_fast_model_quantizes(
    family: Family, quantization: Quantization
) -> None:
    num_quantized = 0
    for name, rows in weight_rows(quantized(quantization, family)).items():
        weight_format = format_of(name, quantization)
        if weight_format is None:
            assert not isinstance(rows, WeightRows) or rows.layer.weight_format.name == "bfloat16"
        else:
            assert isinstance(rows, WeightRows)
            assert rows.layer.weight_format == weight_format
            num_quantized += 1
        assert format_of(name, None) is None
    assert num_quantized == 7 * tiny_config(family).decoder.depth + 1


@pytest.mark.parametrize("max_shard_bytes", [10**9, 20_000])
@pytest.mark.parametrize("quantization", QUANTIZATIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_quantized_model_comes_back_bit_by_bit(
    tmp_path: Path, family: Family, quantization: Quantization, max_shard_bytes: int
) -> None:
    model = quantized(quantization, family)
    folder = save_model(model, tmp_path / "a", max_shard_bytes=max_shard_bytes)
    assert (folder / FILE).exists() == (max_shard_bytes == 10**9)
    loaded = load_model(folder, verify=True)
    assert quantization_of(loaded) == quantization
    assert not loaded.training
    assert same_bits(loaded, model)
    assert same_bits(load_model(folder, weights=quantization), model)
    again = save_model(loaded, tmp_path / "b", max_shard_bytes=max_shard_bytes)
    for path in folder.iterdir():
        assert (again / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("quantization", [None, *QUANTIZATIONS])
def test_weights_go_from_the_files_into_fast_modules(
    tmp_path: Path, quantization: Quantization | None, dtype: torch.dtype
) -> None:
    model = tiny_model()
    folder = save_model(model, tmp_path / "a", dtype=dtype)
    loaded = load_model(folder, weights=Packed(quantization))
    expected = accelerate(model.to(dtype).to(torch.bfloat16), quantization)
    assert quantization_of(loaded) == quantization
    assert same_bits(loaded, expected)


def test_a_fast_model_is_saved_as_the_plain_one_is(tmp_path: Path) -> None:
    plain = save_model(bfloat16_model(), tmp_path / "plain")
    fast = save_model(accelerate(bfloat16_model()), tmp_path / "fast")
    assert {path.name for path in plain.iterdir()} == {path.name for path in fast.iterdir()}
    for path in plain.iterdir():
        assert (fast / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_plain_modules_get_the_quantized_weights_widened(
    tmp_path: Path, quantization: Quantization
) -> None:
    model = quantized(quantization)
    loaded = load_model(save_model(model, tmp_path / "a"), weights=Plain())
    rows = weight_rows(model)
    assert quantization_of(loaded) is None
    for name, parameter in loaded.named_parameters():
        expected = rows[name].read(0, rows[name].shape[0])
        assert torch.equal(parameter, expected.to(torch.bfloat16)), name
    exact = load_model(tmp_path / "a", weights=Plain("float32"))
    weight = "decoder.blocks.1.mlp.up_proj.weight"
    assert torch.equal(exact.get_parameter(weight), rows[weight].read(0, 60))


def test_files_hold_what_the_documentation_says(tmp_path: Path) -> None:
    tensors = load_file(save_model(quantized("int4"), tmp_path / "a") / FILE)
    width, mlp_dim, vocab_size = 48, 60, 151
    assert UP not in tensors
    assert tensors[UP + "_q"].dtype == torch.uint8
    assert tensors[UP + "_q"].shape == (mlp_dim, 64 // 2)
    assert tensors[UP + "_scales"].dtype == torch.bfloat16
    assert tensors[UP + "_scales"].shape == (mlp_dim, 2)
    assert tensors[TABLE + "_q"].dtype == torch.uint8
    assert tensors[TABLE + "_q"].shape == (vocab_size, 128)
    assert tensors["language_model.model.norm.weight"].shape == (width,)
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    assert config["quantization"]["format"] == "int4"
    assert config["quantization"]["mlp"] == {"bits": 4, "group_size": 32}
    assert config["quantization"]["embedding"] == {"bits": 8, "group_size": 128}


def test_transformers_refuses_a_quantized_folder_and_makes_up_no_weights(tmp_path: Path) -> None:
    import transformers

    folder = save_model(quantized("int8"), tmp_path / "a")
    with pytest.raises(OSError, match=r"model\.safetensors"):
        transformers.PaliGemmaForConditionalGeneration.from_pretrained(folder)


def edit(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> Path:
    tensors = load_file(folder / FILE)
    change(tensors)
    save_file(tensors, folder / FILE)
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(UP + "_scales"), f"missing: {UP}_scales"),
        (lambda t: t.pop(UP + "_q"), f"missing: {UP}_q"),
        (lambda t: t.update({UP: torch.zeros(60, 48)}), f"unknown: {UP}"),
        (
            lambda t: t.update({UP + "_q": t[UP + "_q"][:, :24].clone()}),
            r"up_proj\.weight_q is \(60, 24\), expected \(60, 32\)",
        ),
        (
            lambda t: t.update({UP + "_scales": torch.ones(60, 3, dtype=torch.bfloat16)}),
            r"weight_scales is \(60, 3\), expected \(60, 2\)",
        ),
        (
            lambda t: t.update({UP + "_scales": t[UP + "_scales"].float()}),
            "weight_scales has dtype F32, expected BF16",
        ),
        (
            lambda t: t.update({UP + "_q": t[UP + "_q"].view(torch.int8)}),
            "weight_q has dtype I8, expected U8",
        ),
        (
            lambda t: t.update({"lm_head.weight": torch.zeros(151, 48)}),
            "contains an output layer lm_head.weight",
        ),
    ],
)
def test_tensors_that_do_not_fit_stop_the_load(
    tmp_path: Path, change: Callable[[dict[str, Tensor]], object], message: str
) -> None:
    folder = edit(save_model(quantized("int4"), tmp_path / "a"), change)
    with pytest.raises(CheckpointError, match=message):
        load_model(folder)


def test_broken_scales_are_refused_by_name(tmp_path: Path) -> None:
    def spoil(tensors: dict[str, Tensor]) -> None:
        tensors[UP + "_scales"][5, 0] = torch.nan

    folder = edit(save_model(quantized("int8"), tmp_path / "a"), spoil)
    with pytest.raises(CheckpointError, match=f"{UP}_scales"):
        load_model(folder)
    model = load_model(folder, check_finite=False)
    with pytest.raises(NumericalError, match=f"{UP}_scales"):
        save_model(model, tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_a_folder_with_plain_and_quantized_weights_is_refused(tmp_path: Path) -> None:
    folder = save_model(quantized("int8"), tmp_path / "a")
    plain = save_model(bfloat16_model(), tmp_path / "b")
    (plain / "model.safetensors").rename(folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"both model\.safetensors and quantized"):
        load_model(folder)
    (folder / FILE).unlink()
    with pytest.raises(CheckpointError, match=r"missing: .*embed_tokens.weight_q"):
        load_model(folder)


@pytest.mark.parametrize(
    ("make_weights", "message"),
    [
        (lambda: "int3", "weights is 'int3'"),
        (lambda: Packed("int3"), "quantization is 'int3'"),  # type: ignore[arg-type]
        (lambda: Plain("int8"), "dtype is 'int8'"),  # type: ignore[arg-type]
        (lambda: Trainable("int4"), "base is 'int4'"),  # type: ignore[arg-type]
        (lambda: weights_name("float32", "int8"), "dtype is 'float32'"),
        (lambda: weights_name("float16", "int4"), "dtype is 'float16'"),
        (lambda: torch.int32, "weights is 'int32'"),
    ],
)
def test_weights_that_do_not_exist_are_refused(
    tmp_path: Path, make_weights: Callable[[], Any], message: str
) -> None:
    folder = save_model(tiny_model(), tmp_path / "a")
    with pytest.raises(OptionError, match=message):
        load_model(folder, weights=make_weights())


def test_what_is_quantized_is_not_quantized_again(tmp_path: Path) -> None:
    folder = save_model(quantized("int8"), tmp_path / "a")
    with pytest.raises(OptionError, match="is quantized to int8 and cannot be converted to int4"):
        load_model(folder, weights="int4")
    assert quantization_of(load_model(folder, weights="bfloat16")) == "int8"


# The kernel's high-water mark of this program alone; getrusage would count its parent's as well.
MEASURE = """
import re, sys, torch
from pathlib import Path
from paligemma.checkpoints.load import load_model
from paligemma.fast.weights import Packed
def peak():
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
quantization = None if sys.argv[3] == "None" else sys.argv[3]
packed = Packed(quantization)
load_model(sys.argv[2], weights=packed)  # modules imported, threads started
before = peak()
model = load_model(sys.argv[1], weights=packed)
weights = sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
print(weights, peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="measured through /proc")
@pytest.mark.slow
def test_loading_never_holds_the_weights_in_full(tmp_path: Path) -> None:
    shape: dict[str, Any] = {"width": 1024, "mlp_dim": 6144, "num_heads": 8, "head_dim": 16}
    large = tiny_config(depth=5, vocab_size=30_000, **shape)
    small = tiny_config(depth=1, vocab_size=3000, **shape)
    full = save_model(PaliGemma(large), tmp_path / "large", dtype=torch.bfloat16)
    warm = save_model(PaliGemma(small), tmp_path / "small", dtype=torch.bfloat16)
    full_bytes = (full / "model.safetensors").stat().st_size
    for quantization, share in ((None, 1.0), ("int8", 0.51), ("int4", 0.336)):
        arguments = [sys.executable, "-c", MEASURE, str(full), str(warm), str(quantization)]
        done = subprocess.run(arguments, capture_output=True, text=True, check=True)
        weights, peak = map(int, done.stdout.split())
        assert weights == pytest.approx(share * full_bytes, rel=0.02)
        assert peak < weights + 0.1 * full_bytes, quantization
