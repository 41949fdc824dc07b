"""MLX folders: what mlx-vlm wrote is read, and mlx-vlm reads what is written here."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import paligemma
from paligemma.checkpoints import convert
from paligemma.checkpoints.hf import to_released_names
from paligemma.checkpoints.load import load_model
from paligemma.checkpoints.mlx import BITS, GroupFormat, pack, quantize_groups, unpack
from paligemma.checkpoints.open import open_checkpoint
from paligemma.checkpoints.rows import read_all
from paligemma.checkpoints.save import save_model
from paligemma.config import DecoderConfig, Family, PaliGemmaConfig, VisionConfig
from paligemma.errors import CheckpointError, NumericalError
from paligemma.fast.accelerate import accelerate
from paligemma.inputs import ModelInputs
from paligemma.model.paligemma import PaliGemma
from tests.checkpoints.references import run_reference
from tests.tiny import FAMILIES, randomize

FIXTURE = Path(__file__).parents[1] / "vectors" / "interop" / "mlx" / "q4"
NUM_IMAGE_TOKENS = 9


def mlx_config(family: Family, head_dim: int = 32) -> PaliGemmaConfig:
    """Widths of which some are multiples of 64, as quantized weights need, and some are not."""
    gemma2: dict[str, Any] = {
        "post_norms": True,
        "attn_logit_softcap": 20.0,
        "final_logit_softcap": 30.0,
        "query_scale": 48**-0.5,
        "head_dim": 48,
    }
    gemma1 = {"query_scale": head_dim**-0.5, "head_dim": head_dim}
    return PaliGemmaConfig(
        vision=VisionConfig(
            resolution=42, patch_size=14, width=64, depth=2, mlp_dim=72, num_heads=2
        ),
        decoder=DecoderConfig(
            vocab_size=190,
            width=128,
            depth=3,
            mlp_dim=320,
            num_heads=4,
            num_kv_heads=1 if family == "paligemma" else 2,
            **(gemma1 if family == "paligemma" else gemma2),
        ),
    )


def random_model(family: Family, seed: int = 0) -> PaliGemma:
    model = PaliGemma(mlx_config(family))
    randomize(model, seed)
    return model.eval()


def our_logits(model: PaliGemma, ids: Tensor, pixels: Tensor) -> Tensor:
    """Logits of one image and text, for all positions; `ids` are those of the text."""
    num_image_tokens = model.config.vision.num_image_tokens
    token_ids = torch.cat([torch.zeros(num_image_tokens, dtype=torch.long), ids])[None]
    image_mask = torch.arange(token_ids.shape[1])[None] < num_image_tokens
    inputs = ModelInputs(
        token_ids=token_ids,
        input_mask=torch.ones_like(image_mask),
        mask_ar=torch.zeros_like(image_mask),
        image_mask=image_mask,
        pixel_values=pixels,
        image_index=((0,),),
    )
    with torch.no_grad():
        return model(inputs)[0]


def all_weights(path: Path) -> dict[str, Tensor]:
    with open_checkpoint(path) as checkpoint:
        return {name: read_all(rows) for name, rows in checkpoint.contents.parameters.items()}


def converted(source: Path, target: Path, dtype: str = "stored") -> Path:
    with open_checkpoint(source) as checkpoint:
        plan = convert.plan(checkpoint, target, to="mlx", dtype=dtype)
        convert.run(plan)
        convert.verify(plan)
    return target


def test_a_folder_of_mlx_gives_its_logits() -> None:
    model = load_model(FIXTURE, weights="float32")
    expected = torch.from_numpy(np.load(FIXTURE / "expected_logits.npy"))
    pixels = torch.linspace(-1, 1, 3 * 28 * 28).view(1, 3, 28, 28)
    logits = our_logits(model, torch.tensor([2, 10, 20, 30]), pixels)
    assert (logits - expected.view(logits.shape[0], -1)[:, :512]).abs().max() < 2e-5


def test_a_folder_of_mlx_says_what_it_is() -> None:
    with open_checkpoint(FIXTURE) as checkpoint:
        assert checkpoint.format == "mlx"
        assert checkpoint.schemes == {"MLX 4 bits in groups of 64": 27}


@pytest.mark.parametrize("bits", BITS)
def test_packing_is_the_inverse_of_unpacking(bits: int) -> None:
    q = torch.randint(0, 1 << bits, (5, 64), generator=torch.Generator().manual_seed(bits)).byte()
    packed = pack(q, bits)
    assert packed.shape == (5, 8 * bits)
    assert torch.equal(unpack(packed, bits), q)


@pytest.mark.parametrize("bits", BITS)
def test_quantizing_keeps_the_ends_and_zero(bits: int) -> None:
    rows = torch.randn(6, 128, generator=torch.Generator().manual_seed(bits))
    rows[2], rows[3] = 0, rows[3].abs()
    q, scales, biases = quantize_groups(rows, GroupFormat(bits, 64))
    read = (q.view(6, 2, 64) * scales[..., None] + biases[..., None]).flatten(1)
    step = scales.abs().repeat_interleave(64, dim=1)
    assert ((read - rows).abs() <= 0.51 * step + 1e-6).float().mean() > 0.95
    assert not read[2].any()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_conversions_there_and_back_are_exact(tmp_path: Path, family: Family, dtype: str) -> None:
    model = random_model(family)
    source = save_model(model, tmp_path / "hf", dtype=getattr(torch, dtype))
    mlx = converted(source, tmp_path / "mlx")
    with open_checkpoint(mlx) as checkpoint:
        assert checkpoint.format == "mlx"
        convert.run(convert.plan(checkpoint, tmp_path / "back", to="hf"))
    first, second = all_weights(source), all_weights(tmp_path / "back")
    assert all(torch.equal(first[name], second[name]) for name in first)
    patches = "vision_tower.vision_model.embeddings.patch_embedding.weight"
    assert load_file(mlx / "model.safetensors")[patches].shape == (64, 14, 14, 3)


@pytest.mark.parametrize("dtype", ["q2", "q4", "q8"])
def test_quantized_folders_keep_their_bits(tmp_path: Path, dtype: str) -> None:
    source = save_model(random_model("paligemma2"), tmp_path / "hf")
    mlx = converted(source, tmp_path / "mlx", dtype)
    again = converted(mlx, tmp_path / "again")
    first, second = (load_file(path / "model.safetensors") for path in (mlx, again))
    assert first.keys() == second.keys()
    vocab_size = mlx_config("paligemma2").decoder.vocab_size
    for name, tensor in first.items():  # added rows are the mean, which rounding moves
        rows = slice(0, vocab_size) if "embed_tokens" in name else slice(None)
        assert torch.equal(tensor.view(torch.uint8)[rows], second[name].view(torch.uint8)[rows])
    config = json.loads((mlx / "config.json").read_text())
    assert config["quantization"] == {"bits": int(dtype[1]), "group_size": 64, "mode": "affine"}


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_our_quantized_weights_keep_their_bits_in_mlx(tmp_path: Path, quantization: Any) -> None:
    model = accelerate(random_model("paligemma2").to(torch.bfloat16), quantization)
    source = save_model(model, tmp_path / "hf")
    with open_checkpoint(source) as checkpoint:
        convert.run(convert.plan(checkpoint, tmp_path / "mlx", to="mlx", dtype="stored"))
    config = json.loads((tmp_path / "mlx" / "config.json").read_text())["quantization"]
    assert config["bits"] == 8
    first, second = all_weights(source), all_weights(tmp_path / "mlx")
    for name, weight in first.items():
        assert (second[name].float() - weight.float()).abs().max() <= 0.02 * weight.abs().max()


def test_what_mlx_would_compute_differently_is_refused(tmp_path: Path) -> None:
    model = PaliGemma(mlx_config("paligemma", head_dim=16))
    randomize(model, 0)
    source = save_model(model, tmp_path / "hf")
    with pytest.raises(CheckpointError, match="width / heads, 128 / 4"):
        converted(source, tmp_path / "mlx")
    assert not (tmp_path / "mlx").exists()


Q_PROJ = "language_model.model.layers.0.self_attn.q_proj"


def with_entry(content: dict[str, Any], entry: dict[str, Any]) -> None:
    content["quantization"] = content["quantization_config"] = content["quantization"] | entry


DAMAGE: dict[str, tuple[Any, Any, str]] = {
    "no scales": (lambda t: t.pop(Q_PROJ + ".scales"), None, "q_proj.* has no scales next to it"),
    "no biases": (lambda t: t.pop(Q_PROJ + ".biases"), None, "q_proj.* has no biases next to it"),
    "no weight": (lambda t: t.pop(Q_PROJ + ".weight"), None, r"missing: .*q_proj\.weight"),
    "cut weight": (
        lambda t: t.update({Q_PROJ + ".weight": t[Q_PROJ + ".weight"][:, :15].contiguous()}),
        None,
        "not a packing of 128 inputs",
    ),
    "fewer rows": (
        lambda t: t.update({Q_PROJ + ".weight": t[Q_PROJ + ".weight"][:64].contiguous()}),
        None,
        "expected floating point with 64 rows",
    ),
    "all with fewer rows": (
        lambda t: t.update({k: v[:64].clone() for k, v in t.items() if k.startswith(Q_PROJ + ".")}),
        None,
        "has 64 rows, expected 128",
    ),
    "integer scales": (
        lambda t: t.update({Q_PROJ + ".scales": t[Q_PROJ + ".scales"].to(torch.int32)}),
        None,
        "scales is I32",
    ),
    "other bits": (lambda t: None, {"bits": 8}, "has 4 bits in groups of 64, .* says 8 bits"),
    "bits for a module": (
        lambda t: None,
        {"model." + Q_PROJ: {"bits": 4, "group_size": 32}},
        "says 4 bits in groups of 32",
    ),
    "another mode": (lambda t: None, {"mode": "mxfp4"}, "mode 'mxfp4'"),
    "bits of a wrong type": (lambda t: None, {"bits": "4"}, "whole number"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named(tmp_path: Path, kind: str) -> None:
    change, entry, message = DAMAGE[kind]
    shutil.copytree(FIXTURE, tmp_path / "mlx")
    tensors = load_file(FIXTURE / "model.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "mlx" / "model.safetensors", {"format": "mlx"})
    if entry:
        path = tmp_path / "mlx" / "config.json"
        content = json.loads(path.read_text())
        with_entry(content, entry)
        path.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=message):
        load_model(tmp_path / "mlx")


def test_scales_that_are_not_finite_are_named(tmp_path: Path) -> None:
    shutil.copytree(FIXTURE, tmp_path / "mlx")
    tensors = load_file(FIXTURE / "model.safetensors")
    tensors[Q_PROJ + ".scales"][3, 1] = torch.nan
    save_file(tensors, tmp_path / "mlx" / "model.safetensors", {"format": "mlx"})
    with pytest.raises(CheckpointError, match=r"NaN.*q_proj"):
        load_model(tmp_path / "mlx")
    with pytest.raises(NumericalError, match="q_proj"):
        converted(tmp_path / "mlx", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_tokenizer_is_written_as_mlx_vlm_reads_it(tmp_path: Path) -> None:
    mini = Path(paligemma.__file__).parent / "mini" / "model"
    folder = converted(mini, tmp_path / "mlx", "q4")
    assert {"tokenizer.model", "tokenizer.json", "tokenizer_config.json"} <= {
        path.name for path in folder.iterdir()
    }


# With mlx-vlm


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", ["float32", "q4", "q8"])
def test_mlx_vlm_computes_our_logits(tmp_path: Path, family: Family, dtype: str) -> None:
    mlx = converted(save_model(random_model(family), tmp_path / "hf"), tmp_path / "mlx", dtype)
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(4, 190, (6,), generator=generator)
    pixels = torch.rand((1, 3, 42, 42), generator=generator) * 2 - 1
    image_ids = torch.full((NUM_IMAGE_TOKENS,), 190)
    np.savez(tmp_path / "in.npz", ids=torch.cat([image_ids, ids])[None], pixels=pixels)
    run_reference("mlx_vlm", "mlx_tool.py", "logits", mlx, tmp_path / "in.npz", tmp_path / "out")
    theirs = torch.from_numpy(np.load(tmp_path / "out.npz")["logits"])[0]
    ours = our_logits(load_model(mlx, weights="float32"), ids, pixels)
    assert (ours - theirs[:, :190]).abs().max() < 2e-5 * theirs.abs().max()


FORMS = (
    *(f"{bits}-{size}-bfloat16" for bits in BITS for size in (32, 64, 128)),
    *("4-64-float16", "5-32-float32", "0-64-bfloat16", "4-64-float32-mixed_3_6"),
)


@pytest.mark.parametrize("family", FAMILIES)
def test_folders_of_mlx_vlm_are_read_exactly(tmp_path: Path, family: Family) -> None:
    source = save_model(random_model(family), tmp_path / "hf")
    run_reference("mlx_vlm", "mlx_tool.py", "quantize", source, tmp_path, *FORMS)
    for form in FORMS:
        theirs = np.load(tmp_path / f"{form}.npz")
        ours = all_weights(tmp_path / form)
        for name, released in to_released_names(mlx_config(family), ours).items():
            expected = torch.from_numpy(theirs[released])
            if expected.ndim == 4:
                expected = expected.permute(0, 3, 1, 2)
            assert torch.equal(ours[name].float(), expected[: ours[name].shape[0]]), (form, name)
