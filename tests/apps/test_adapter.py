"""`paligemma merge`, `--adapter`, and the same from Python."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

import paligemma
from paligemma import Plain, Trainable, loading
from paligemma.adapters.lora import LoraConfig, add_lora, lora_layers
from paligemma.checkpoints.adapter import CONFIG_FILE, Adapter
from paligemma.config import RELEASES
from paligemma.errors import CheckpointError, OptionError
from paligemma.processor.tokenizer import Tokenizer
from tests.adapters.test_lora import disturb
from tests.agreement.tiny_predictor import build_predictor, picture
from tests.apps.conftest import Run


@pytest.fixture(scope="module")
def base(tiny_tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_predictor(tiny_tokenizer).save(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    trained = paligemma.load(base, device="cpu", weights=Trainable())
    add_lora(trained.model, LoraConfig(rank=3))
    disturb(trained.model)
    return trained.save_adapter(tmp_path_factory.mktemp("adapters") / "a")


def written(predictor: paligemma.Predictor) -> paligemma.Generation:
    return predictor.generate(picture(1), "caption en", max_new_tokens=12)


def test_the_adapter_names_its_base_and_info_names_the_adapter(base: Path, adapter: Path) -> None:
    settings = json.loads((adapter / CONFIG_FILE).read_text())
    assert settings["base_model_name_or_path"] == str(base)
    assert paligemma.load(base, device="cpu", adapter=adapter).info()["adapter"] == str(adapter)
    assert paligemma.load(base, device="cpu").info()["adapter"] is None


def test_merged_and_attached_write_the_same_and_not_what_the_base_writes(
    base: Path, adapter: Path
) -> None:
    merged = paligemma.load(base, device="cpu", adapter=adapter)
    attached = paligemma.load(base, device="cpu", adapter=str(adapter), weights=Trainable())
    assert not lora_layers(merged.model)
    assert lora_layers(attached.model)
    assert written(merged).token_ids == written(attached).token_ids
    assert written(merged).token_ids != written(paligemma.load(base, device="cpu")).token_ids


def test_what_is_attached_can_be_trained_and_saved_again(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    attached = paligemma.load(base, device="cpu", adapter=adapter, weights=Trainable())
    again = attached.save_adapter(tmp_path / "again")
    for path in adapter.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes()
    with pytest.raises(CheckpointError, match="LoRA"):
        attached.save(tmp_path / "whole")


def test_a_merged_model_has_no_adapter_to_save(base: Path, adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="no adapter"):
        paligemma.load(base, device="cpu", adapter=adapter).save_adapter(tmp_path / "a")


@pytest.mark.parametrize("quantization", [None, "int8"])
def test_packed_and_quantized_models_have_the_adapter_in_them(
    base: Path, adapter: Path, quantization: str | None
) -> None:
    options = {"device": "cpu", "weights": quantization or "bfloat16"}
    plain = paligemma.load(base, **options)  # type: ignore[arg-type]
    merged = paligemma.load(base, adapter=adapter, **options)  # type: ignore[arg-type]
    apart = merged.embed_image(picture(1)) - plain.embed_image(picture(1))
    assert abs(apart).max() == 0  # the encoder has no adapter
    assert written(merged).token_ids != written(plain).token_ids


def test_a_frozen_base_answers_and_carries_the_adapter(base: Path, adapter: Path) -> None:
    frozen = paligemma.load(base, device="cpu", adapter=adapter, weights=Trainable("int8"))
    assert lora_layers(frozen.model)
    assert len(written(frozen).token_ids) > 0


def test_the_adapter_of_one_release_is_refused_on_another(adapter: Path) -> None:
    first, second = RELEASES[0].hub_id, RELEASES[1].hub_id
    found = Adapter(layers={}, dropout=0.0, base_name=first, base_fingerprint=None, folder=adapter)
    loading._check_base_name(found, first)
    loading._check_base_name(found, "/home/me/my-model")
    with pytest.raises(CheckpointError, match=f"trained on {first}, but this model is {second}"):
        loading._check_base_name(found, second)


def test_merge_writes_a_plain_checkpoint(
    run: Run, base: Path, adapter: Path, tmp_path: Path
) -> None:
    out = tmp_path / "merged"
    ran = run("merge", base, adapter, out)
    assert ran.code == 0, ran.err
    assert "merged into" in ran.out
    whole = paligemma.load(out, device="cpu", weights=Plain())
    expected = paligemma.load(base, device="cpu", adapter=adapter, weights=Plain())
    assert written(whole).token_ids == written(expected).token_ids
    for name, value in expected.model.state_dict().items():
        assert torch.equal(whole.model.state_dict()[name], value), name
    assert (out / "model.safetensors").stat().st_size == (base / "model.safetensors").stat().st_size


def test_merge_says_what_it_made_in_json(
    run: Run, base: Path, adapter: Path, tmp_path: Path
) -> None:
    made = json.loads(run("merge", base, adapter, tmp_path / "m", "--json").out)
    assert made["folder"] == str(tmp_path / "m")
    assert made["bytes"] > 0


def test_merge_refuses_what_is_no_adapter_and_a_place_that_is_taken(
    run: Run, base: Path, adapter: Path, tmp_path: Path
) -> None:
    ran = run("merge", base, base, tmp_path / "m")
    assert ran.code == 2
    assert "no adapter_config.json" in ran.err
    assert not (tmp_path / "m").exists()
    ran = run("merge", base, adapter, base)
    assert ran.code == 2
    assert "already exists" in ran.err


def test_prediction_takes_an_adapter(run: Run, base: Path, adapter: Path, tmp_path: Path) -> None:
    Image.new("RGB", (40, 20), (0, 0, 200)).save(tmp_path / "blue.png")
    options = ("--model", base, "--device", "cpu", "--json", "--max-new-tokens", "12")
    texts = [
        json.loads(run("generate", tmp_path / "blue.png", "caption en", *options, *more).out)
        for more in ((), ("--adapter", adapter))
    ]
    assert texts[0]["result"] != texts[1]["result"]
