"""The conformance kit agrees with the package and with transformers, and names every mistake."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from paligemma.checkpoints import load_model
from paligemma.fast.weights import Plain
from paligemma.masks import rle_to_mask

KIT = Path(__file__).parents[1] / "conformance"


def module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"conformance_{name}", KIT / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = loaded
    spec.loader.exec_module(loaded)
    return loaded


make, check = module("make"), module("check")
KITS = ("pg1", "pg2")


def outputs_of(model: Any, probe: str) -> dict[str, Any]:
    values = make.compute(make.setting_of(model, probe))
    return {f"{probe}/{stage}": array for stage, array in values.items()}


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    return {kit: load_model(KIT / kit / "hf", weights=Plain("float32")) for kit in KITS}


@pytest.mark.parametrize("kit", KITS)
def test_the_kit_is_what_the_package_computes(kit: str, models: dict[str, Any]) -> None:
    built = make.build_model(make.FAMILIES[kit]).state_dict()
    stored = models[kit].state_dict()
    assert all(torch.equal(built[name], stored[name]) for name in built)
    for probe in make.PROBES:
        outputs = outputs_of(models[kit], probe)
        outputs[f"{probe}/greedy_ids"] = make.greedy(make.setting_of(models[kit], probe))
        report = check.check(kit, outputs)
        assert report.agrees, report
        assert report.mistakes == ()


@pytest.mark.parametrize("kit", KITS)
def test_bfloat16_agrees_within_its_own_tolerance(kit: str) -> None:
    model = load_model(KIT / kit / "hf")
    assert model.dtype == torch.bfloat16
    outputs = outputs_of(model, "caption")
    assert check.check(kit, outputs, "bfloat16").agrees
    assert not check.check(kit, outputs, "float32").agrees


@pytest.mark.parametrize("kit", KITS)
@pytest.mark.parametrize("format_name", ["big_vision.npz", "keras"])
def test_all_formats_hold_the_same_model(
    kit: str, format_name: str, models: dict[str, Any]
) -> None:
    other = load_model(KIT / kit / format_name, weights=Plain("float32")).state_dict()
    assert all(torch.equal(value, other[name]) for name, value in models[kit].state_dict().items())


CASES = [(kit, name) for kit in KITS for name in make.mistakes_of(kit)]


@pytest.mark.parametrize(("kit", "mistake"), CASES)
def test_every_mistake_is_named(kit: str, mistake: str, models: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    outputs = {}
    for probe in make.PROBES:
        values = make.mistakes_of(kit)[mistake](make.setting_of(models[kit], probe))
        for stage, array in values.items():
            if stage != "token_ids":  # as another machine would compute it
                array = array + 1e-5 * array.std() * rng.normal(size=array.shape)
            outputs[f"{probe}/{stage}"] = array
    report = check.check(kit, outputs)
    assert not report.agrees
    assert report.mistakes[0][0] == mistake, report.mistakes
    # The logits after the prefix alone are enough for most ports.
    if mistake not in ("no_newline", "no_bos", "bidirectional_suffix"):
        last = make.setting_of(models[kit], "caption").inputs.token_ids.shape[1] - 1
        report = check.check(kit, {"caption/logits": outputs["caption/logits"][last]})
        assert mistake in [name for name, _, _ in report.mistakes], report


def test_boxes_and_masks(tmp_path: Path) -> None:
    objects = make.objects_of(make.build_codec(), make.processor_of(make.build_model(
        "paligemma2")).tokenizer)  # fmt: skip
    mask = rle_to_mask(objects["mask_rle"], objects["size_wh"], "objects.json")
    x1, y1, x2, y2 = objects["box_xyxy"]
    np.savez(tmp_path / "good.npz", boxes=[x1, y1, x2, y2], mask=mask)
    np.savez(tmp_path / "bad.npz", boxes=[y1, x1, y2, x2], mask=~mask)
    run = [sys.executable, str(KIT / "check.py"), "pg2"]
    good = subprocess.run([*run, str(tmp_path / "good.npz")], capture_output=True, text=True)
    assert good.returncode == 0, good.stdout + good.stderr
    bad = subprocess.run([*run, str(tmp_path / "bad.npz")], capture_output=True, text=True)
    assert bad.returncode == 1
    assert "likely mistake: boxes_xyxy" in bad.stdout


@pytest.mark.parametrize("kit", KITS)
def test_transformers_agrees_with_the_kit(kit: str) -> None:
    transformers = pytest.importorskip("transformers")
    model = transformers.PaliGemmaForConditionalGeneration.from_pretrained(
        KIT / kit / "hf", dtype=torch.float32, attn_implementation="eager"
    ).eval()
    expected = np.load(KIT / kit / "expected.npz")
    for probe in make.PROBES:
        ids = torch.from_numpy(expected[f"{probe}/token_ids"])
        num_images = int(expected[f"{probe}/num_image_tokens"])
        ids[:num_images] = model.config.image_token_index
        ids = torch.cat([ids, torch.from_numpy(expected[f"{probe}/suffix_ids"])])[None]
        types = torch.zeros_like(ids)
        types[:, int(expected[f"{probe}/prefix_length"]) :] = 1
        pixels = torch.from_numpy(expected[f"{probe}/pixel_values"])[None]
        with torch.inference_mode():
            logits = model(
                input_ids=ids,
                token_type_ids=types,
                attention_mask=torch.ones_like(ids),
                pixel_values=pixels,
            ).logits
        report = check.check(kit, {f"{probe}/logits": logits[0].numpy()})
        assert report.agrees, report
