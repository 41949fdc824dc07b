"""Vision encoders of timm, open_clip, transformers and big_vision start ours."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from paligemma.checkpoints.big_vision import write_big_vision
from paligemma.checkpoints.rows import Contents
from paligemma.checkpoints.siglip import load_vision_tower
from paligemma.config import DecoderConfig, PaliGemmaConfig, VisionConfig
from paligemma.errors import CheckpointError, OptionError
from paligemma.fast.accelerate import accelerate
from paligemma.model.paligemma import PaliGemma
from paligemma.model.siglip import resample_positions
from tests.tiny import TensorRows, randomize

FILES = Path(__file__).parents[1] / "vectors" / "interop" / "siglip"
TIMM = FILES / "timm.safetensors"
VISION = VisionConfig(resolution=42, width=24, depth=2, mlp_dim=40, num_heads=3)
DECODER = DecoderConfig(
    vocab_size=64,
    width=32,
    depth=1,
    mlp_dim=48,
    num_heads=2,
    num_kv_heads=1,
    head_dim=16,
    query_scale=0.25,
)


def small_model(seed: int = 1, vision: VisionConfig = VISION) -> PaliGemma:
    model = PaliGemma(PaliGemmaConfig(vision=vision, decoder=DECODER))
    randomize(model, seed)
    return model.eval()


def features(model: PaliGemma, image: Tensor) -> Tensor:
    with torch.no_grad():
        encoded: Tensor = model.vision_encoder(image)
    return encoded


def test_features_are_those_of_timm() -> None:
    expected = load_file(FILES / "timm_features.safetensors")
    model = small_model()
    decoder = model.decoder.embedding.weight.clone()
    notes = load_vision_tower(model, TIMM)
    assert torch.allclose(features(model, expected["image"]), expected["features"], atol=1e-5)
    assert torch.equal(model.decoder.embedding.weight, decoder)
    assert "train at least the projector" in notes[0]
    assert notes[1] == "Left out: attn_pool."
    assert "exact GELU" in notes[2]


def test_a_model_of_open_clip_has_the_same_tensors_deeper(tmp_path: Path) -> None:
    tensors = {f"visual.trunk.{name}": value for name, value in load_file(TIMM).items()}
    others = {"logit_scale": torch.ones(1), "text.positional_embedding": torch.ones(4, 8)}
    save_file(tensors | others, tmp_path / "open_clip_model.safetensors")
    model, by_timm = small_model(), small_model()
    notes = load_vision_tower(model, tmp_path)
    load_vision_tower(by_timm, TIMM)
    for ours, theirs in zip(model.parameters(), by_timm.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert "Left out: logit_scale, text, visual.trunk.attn_pool." in notes


def test_features_are_those_of_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.SiglipVisionConfig(
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=3,
        image_size=42,
        patch_size=14,
    )
    torch.manual_seed(2)
    theirs = transformers.SiglipVisionModel(config).eval()
    theirs.save_pretrained(tmp_path)
    model = small_model()
    notes = load_vision_tower(model, tmp_path / "model.safetensors")
    image = torch.rand(2, 3, 42, 42) * 2 - 1
    with torch.no_grad():
        expected = theirs(image).last_hidden_state
    assert torch.allclose(features(model, image), expected, atol=1e-5)
    assert len(notes) == 2


def test_the_encoder_in_a_file_of_big_vision(tmp_path: Path) -> None:
    theirs, model = small_model(5), small_model(6)
    rows = {name: TensorRows(name, values.detach()) for name, values in theirs.named_parameters()}
    contents = Contents(config=theirs.config, parameters=rows)
    write_big_vision(contents, tmp_path / "m.npz", torch.float32)
    notes = load_vision_tower(model, tmp_path / "m.npz")
    for name, ours in model.vision_encoder.named_parameters():
        assert torch.equal(ours, theirs.vision_encoder.get_parameter(name)), name
    assert not torch.equal(model.projector.linear.weight, theirs.projector.linear.weight)
    assert any("params/img/head" in note for note in notes)


def test_positions_are_resampled_to_the_resolution() -> None:
    model = small_model(vision=replace(VISION, resolution=70))
    notes = load_vision_tower(model, TIMM)
    table = load_file(TIMM)["pos_embed"][0]
    assert torch.equal(
        model.vision_encoder.position_embedding.weight, resample_positions(table, 25)
    )
    assert "Its positions were resampled from 3 x 3 to 5 x 5 patches." in notes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm.weight": None}, "norm.weight is missing"),
        ({"blocks.0.mlp.fc1.weight": torch.ones(41, 24)}, r"fc1.weight is \(41, 24\), expected"),
        ({"blocks.2.norm1.weight": torch.ones(24)}, "blocks.2.norm1.weight is not expected"),
        ({"pos_embed": torch.ones(1, 10, 24)}, "without a class token"),
        ({"norm.bias": torch.full((24,), float("nan"))}, "NaN or infinity: norm.bias"),
        ({"norm.bias": torch.ones(24, dtype=torch.int32)}, "dtype I32"),
        ({"patch_embed.proj.weight": None}, "contains no vision encoder"),
    ],
)
def test_other_encoders_are_refused_and_change_nothing(
    change: dict[str, Tensor | None], message: str, tmp_path: Path
) -> None:
    tensors = load_file(TIMM) | change
    path = tmp_path / "tower.safetensors"
    save_file({name: value for name, value in tensors.items() if value is not None}, path)
    model, original = small_model(), small_model()
    with pytest.raises(CheckpointError, match=message):
        load_vision_tower(model, path)
    for ours, before in zip(model.parameters(), original.parameters(), strict=True):
        assert torch.equal(ours, before)


def test_what_is_not_an_encoder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"\x80")
    (tmp_path / "b.txt").write_text("text")
    (tmp_path / "c.safetensors").write_bytes(TIMM.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="is a pickle"):
        load_vision_tower(small_model(), tmp_path / "a.bin")
    with pytest.raises(CheckpointError, match="is not a vision encoder"):
        load_vision_tower(small_model(), tmp_path / "b.txt")
    with pytest.raises(CheckpointError, match="is damaged"):
        load_vision_tower(small_model(), tmp_path / "c.safetensors")
    with pytest.raises(CheckpointError, match="does not exist"):
        load_vision_tower(small_model(), tmp_path / "d.safetensors")
    with pytest.raises(OptionError, match="packed"):
        load_vision_tower(accelerate(small_model()), TIMM)
