"""Conversions: from every format to every other, exact, whole or not at all, in little memory."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import pytest
import torch
from safetensors.torch import load_file, save_file

import paligemma
from paligemma.adapters.lora import LoraConfig, add_lora, lora_parameters
from paligemma.checkpoints import convert
from paligemma.checkpoints.adapter import read_adapter, write_adapter
from paligemma.checkpoints.convert import Comparison, TargetFormat
from paligemma.checkpoints.load import load_model
from paligemma.checkpoints.open import open_checkpoint
from paligemma.checkpoints.save import save_model
from paligemma.config import Family
from paligemma.errors import CheckpointError, NumericalError, OptionError
from paligemma.fast.accelerate import accelerate
from tests.checkpoints.test_save_and_load import same_bits
from tests.tiny import FAMILIES, portable_model

SUFFIXES: dict[TargetFormat, str] = {
    "hf": "",
    "npz": ".npz",
    "keras": "",
    "mlx": "",
    "sbs": ".sbs",
}
"""The formats that can be read and written."""


def converted(
    source: Path, target: Path, to: TargetFormat | None = None, dtype: str = "stored"
) -> tuple[Path, Comparison]:
    with open_checkpoint(source) as opened:
        plan = convert.plan(opened, target, to=to, dtype=dtype)
        return convert.run(plan), convert.verify(plan)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("first", "second"), [*product(SUFFIXES, SUFFIXES)])
def test_any_format_becomes_any_other_bit_by_bit(
    tmp_path: Path, first: TargetFormat, second: TargetFormat, family: Family
) -> None:
    model = portable_model(family).bfloat16()
    save_model(model, tmp_path / "start")
    one, _ = converted(tmp_path / "start", tmp_path / f"one{SUFFIXES[first]}", first)
    two, comparison = converted(one, tmp_path / f"two{SUFFIXES[second]}", second)
    assert comparison.differences == {}
    assert same_bits(load_model(two), model)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("to", SUFFIXES)
def test_values_are_rounded_to_the_dtype(
    tmp_path: Path, to: TargetFormat, dtype: Literal["float32", "bfloat16", "float16"]
) -> None:
    if (to, dtype) == ("sbs", "float16"):
        pytest.skip("gemma.cpp has no float16")
    model = portable_model().to(torch.float16).bfloat16().float()  # norms fit gemma.cpp's
    save_model(model, tmp_path / "start")
    target, _ = converted(tmp_path / "start", tmp_path / f"target{SUFFIXES[to]}", to, dtype)
    expected = {name: p.to(getattr(torch, dtype)) for name, p in model.named_parameters()}
    for name, parameter in load_model(target, weights=dtype).named_parameters():
        assert torch.equal(parameter, expected[name]), name


def test_stored_keeps_the_narrowest_dtype_that_holds_all_weights(tmp_path: Path) -> None:
    save_model(portable_model().bfloat16(), tmp_path / "a")
    file = tmp_path / "a" / "model.safetensors"
    tensors = load_file(file)
    tensors["multi_modal_projector.linear.bias"] = torch.full((48,), 1.0001)
    save_file(tensors, file)
    (tmp_path / "a" / "checksums.json").unlink()
    target, _ = converted(tmp_path / "a", tmp_path / "b.npz")
    assert load_model(target).projector.linear.bias[0] == torch.tensor(1.0001)


def test_tokenizer_and_mask_codec_travel_along(tmp_path: Path) -> None:
    source = paligemma.load("mini")
    source.save(tmp_path / "a")
    folder, _ = converted(tmp_path / "a", tmp_path / "b", "npz")
    assert sorted(path.name for path in folder.iterdir()) == [
        "checksums.json", "mask_codec.npz", "model.npz", "tokenizer.model",
    ]  # fmt: skip
    image = Path(__file__).parents[2] / "examples/scene.png"
    expected = source.segment(image, "frog")
    assert paligemma.load(folder).segment(image, "frog") == expected
    assert paligemma.load(folder / "model.npz").segment(image, "frog") == expected
    file, _ = converted(folder, tmp_path / "alone.npz")
    assert paligemma.load(file).caption(image).text == source.caption(image).text
    back, _ = converted(folder, tmp_path / "c", "hf")
    assert paligemma.load(back).segment(image, "frog") == expected
    assert (back / "tokenizer.json").is_file()  # for programs that read no SentencePiece model


def test_a_file_without_tokenizer_says_what_to_do(tmp_path: Path) -> None:
    save_model(portable_model(), tmp_path / "a")
    file, _ = converted(tmp_path / "a", tmp_path / "b.npz")
    with pytest.raises(paligemma.TokenizerError, match=r"b\.tokenizer\.model or tokenizer\.model"):
        paligemma.load(file)


@pytest.mark.parametrize("to", ["hf", "mlx"])
def test_a_tokenizer_that_is_no_bpe_is_kept_and_its_missing_json_is_said(
    tmp_path: Path, to: TargetFormat
) -> None:
    save_model(portable_model(), tmp_path / "a", tokenizer_proto=b"pieces")
    with pytest.warns(UserWarning, match=r"a tokenizer\.model but no tokenizer\.json"):
        target, _ = converted(tmp_path / "a", tmp_path / "b", to)
    assert (target / "tokenizer.model").read_bytes() == b"pieces"
    assert not (target / "tokenizer.json").exists()


def test_quantized_weights_stay_quantized_or_it_is_said(tmp_path: Path) -> None:
    model = accelerate(portable_model().bfloat16(), "int8")
    save_model(model, tmp_path / "a")
    with open_checkpoint(tmp_path / "a") as opened:
        kept = convert.plan(opened, tmp_path / "b", to="hf")
        assert kept.notes == ()
        assert kept.contents.quantization == "int8"
        convert.run(kept)
        plain = convert.plan(opened, tmp_path / "c.npz")
        assert "weights stored as int8 are dequantized" in plain.notes[0]
        convert.run(plain)
        assert convert.verify(plain).differences == {}
    quantized = (tmp_path / "a" / "quantized.safetensors").read_bytes()
    assert (tmp_path / "b" / "quantized.safetensors").read_bytes() == quantized


def test_an_adapter_is_merged(tmp_path: Path) -> None:
    save_model(portable_model(), tmp_path / "a")
    model = add_lora(load_model(tmp_path / "a"), LoraConfig(rank=2, alpha=4.0))
    with torch.no_grad():
        for parameter in lora_parameters(model):
            parameter.add_(0.1)
    write_adapter(model, tmp_path / "adapter")
    adapter = read_adapter(tmp_path / "adapter", model.config)
    with open_checkpoint(tmp_path / "a") as opened:
        plan = convert.plan(opened, tmp_path / "b.npz", adapter=adapter)
        assert "becomes part of the weights" in plan.notes[0]
        convert.run(plan)
    assert same_bits(load_model(tmp_path / "b.npz"), load_model(tmp_path / "a", adapter=adapter))


def test_an_existing_target_is_left_alone(tmp_path: Path) -> None:
    save_model(portable_model(), tmp_path / "a")
    for name, to in (("b.npz", "npz"), ("b", "hf")):
        target = tmp_path / name
        if to == "hf":
            target.mkdir()
            (target / "notes.txt").write_text("mine")
        else:
            target.write_text("mine")
        with pytest.raises(CheckpointError, match="already exists"):
            converted(tmp_path / "a", target, to)  # type: ignore[arg-type]
    assert (tmp_path / "b.npz").read_text() == "mine"
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("to", SUFFIXES)
def test_nothing_is_left_after_a_failure(tmp_path: Path, to: TargetFormat) -> None:
    save_model(portable_model(), tmp_path / "a")
    file = tmp_path / "a" / "model.safetensors"
    tensors = load_file(file)
    tensors["language_model.model.norm.weight"][3] = torch.nan
    save_file(tensors, file)
    with pytest.raises(NumericalError, match=r"norm.weight contains .*Nothing was written"):
        converted(tmp_path / "a", tmp_path / f"b{SUFFIXES[to]}", to)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_values_beyond_float16_are_named(tmp_path: Path) -> None:
    model = portable_model()
    with torch.no_grad():
        model.decoder.final_norm.weight[3] = 1e6
    save_model(model, tmp_path / "a")
    with pytest.raises(NumericalError, match=r"norm\.weight contains .*large for torch.float16"):
        converted(tmp_path / "a", tmp_path / "b", "hf", "float16")


def test_unclear_options_are_refused(tmp_path: Path) -> None:
    save_model(portable_model(), tmp_path / "a")
    with pytest.raises(OptionError, match="Choose one with --to"):
        converted(tmp_path / "a", tmp_path / "b")
    with pytest.raises(OptionError, match="to is 'gguf'"):
        converted(tmp_path / "a", tmp_path / "b", "gguf")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="dtype is 'int3'; for the format 'hf'"):
        converted(tmp_path / "a", tmp_path / "b", "hf", "int3")


def test_a_full_disk_is_noticed_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=1))
    save_model(portable_model(), tmp_path / "a")
    with pytest.raises(CheckpointError, match=r"needs .* GB, but the disk"):
        converted(tmp_path / "a", tmp_path / "b.npz")


@pytest.mark.parametrize(("to", "file"), [("hf", "b/model.safetensors"), ("npz", "b.npz")])
def test_verifying_finds_a_changed_weight(tmp_path: Path, to: TargetFormat, file: str) -> None:
    save_model(portable_model(), tmp_path / "a")
    with open_checkpoint(tmp_path / "a") as opened:
        plan = convert.plan(opened, tmp_path / f"b{SUFFIXES[to]}", to=to)
        convert.run(plan)
        content = bytearray((tmp_path / file).read_bytes())
        content[-20_000] ^= 1
        (tmp_path / file).write_bytes(content)
        with pytest.raises(CheckpointError, match="differs from"):
            convert.verify(plan)


def test_the_command_prints_plan_rate_memory_and_verdict(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "paligemma", "convert", "mini", str(tmp_path / "m.npz")]
    result = subprocess.run([*command, "--verify"], capture_output=True, text=True, check=True)
    assert "(hf, float16)" in result.stdout
    assert "peak memory" in result.stdout
    assert "all 171 parameters are bit-equal" in result.stdout
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 2
    assert "already exists" in again.stderr
    info = subprocess.run(
        [sys.executable, "-m", "paligemma", "info", str(tmp_path / "m.npz"), "--json"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    facts = json.loads(info.stdout)
    assert (facts["format"], facts["stored_dtypes"]) == ("npz", ["float16"])
