"""The certificate of a damaged model fails and names the place."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from paligemma.certify import Certificate, CertifyRequest, certify
from paligemma.certify.statistics import outliers_of
from paligemma.certify.structure import MINI_FOLDER
from paligemma.checkpoints.convert import TargetFormat, convert_checkpoint
from paligemma.config import Family
from paligemma.predictor import Predictor
from paligemma.processor.processor import Processor
from paligemma.processor.tokenizer import Tokenizer
from tests.certify.damage_kinds import LAYER, WEIGHTS, edit, scale_norm, swap_query_heads
from tests.tiny import FAMILIES, tiny_model


def quick(model: Path, against: Path | None = None, **options: Any) -> Certificate:
    """Files, config and weights, without running the model."""
    return certify(CertifyRequest(model=model, against=against, probes=False, **options))


def assert_named(certificate: Certificate, place: str, text: str) -> None:
    assert certificate.verdict == "fail"
    named = [f for f in certificate.findings if f.level == "fail" and f.place == place]
    assert any(re.search(text, finding.text) for finding in named), certificate.summary()


@pytest.fixture(scope="module")
def folders(tiny_tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny model of each generation."""
    saved: dict[str, Path] = {}
    usual: dict[str, Any] = {
        "attn_logit_softcap": 50.0,
        "final_logit_softcap": 30.0,
        "query_scale": 14**-0.5,
    }
    for family in FAMILIES:
        fields = usual if family == "paligemma2" else {}
        model = tiny_model(family, vocab_size=tiny_tokenizer.vocab_size, **fields)
        vision = model.config.vision
        processor = Processor(
            tokenizer=tiny_tokenizer,
            resolution=vision.resolution,
            num_image_tokens=vision.num_image_tokens,
        )
        folder = tmp_path_factory.mktemp("models") / family
        saved[family] = Predictor(model=model, processor=processor).save(folder)
    return saved


@pytest.mark.parametrize(("damage", "place", "text"), WEIGHTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_damage_is_named_against_the_original(
    folders: dict[str, Path],
    tmp_path: Path,
    family: Family,
    damage: Callable[..., None],
    place: str,
    text: str,
) -> None:
    copy = edit(folders[family], tmp_path / "copy", tensors=damage)
    assert_named(quick(copy, folders[family]), place, text)


@pytest.mark.parametrize(("damage", "place", "text"), WEIGHTS)
def test_damage_to_a_copy_of_mini_is_named_without_the_original(
    tmp_path: Path, damage: Callable[..., None], place: str, text: str
) -> None:
    assert_named(quick(edit(MINI_FOLDER, tmp_path / "copy", tensors=damage)), place, text)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_copy_passes_in_every_dtype(
    folders: dict[str, Path], tmp_path: Path, family: Family
) -> None:
    original = folders[family]
    certificate = quick(edit(original, tmp_path / "same"), original)
    assert certificate.passes, certificate.summary()
    assert {difference.kind for difference in certificate.differences} == {"equal"}

    def narrow(tensors: dict[str, torch.Tensor], config: Any) -> None:
        tensors.update({name: value.bfloat16() for name, value in tensors.items()})

    certificate = quick(edit(original, tmp_path / "narrow", tensors=narrow), original)
    assert certificate.passes, certificate.summary()
    assert {difference.kind for difference in certificate.differences} == {"rounded"}


CONFIG = (
    ({"attn_logit_softcapping": None}, "text_config.attn_logit_softcapping", "null; .* 50"),
    ({"final_logit_softcapping": None}, "text_config.final_logit_softcapping", "null; .* 30"),
    ({"query_pre_attn_scalar": 77}, "text_config.query_pre_attn_scalar", "77; "),
)


@pytest.mark.parametrize(("text", "place", "expected"), CONFIG)
@pytest.mark.parametrize("has_original", [True, False])
@pytest.mark.parametrize("source", ["tiny", "mini"])
def test_a_wrong_config_is_named_by_its_key(
    folders: dict[str, Path],
    tmp_path: Path,
    text: dict[str, Any],
    place: str,
    expected: str,
    has_original: bool,
    source: str,
) -> None:
    original = folders["paligemma2"] if source == "tiny" else MINI_FOLDER
    copy = edit(original, tmp_path / "copy", text=text)
    assert_named(quick(copy, original if has_original else None), place, expected)


def test_other_heads_of_the_same_shapes_are_named(tmp_path: Path) -> None:
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 128}
    certificate = quick(edit(MINI_FOLDER, tmp_path / "copy", text=heads))
    assert_named(certificate, "text_config.head_dim", "128; mini was trained with 64")


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ({"rope_theta": 1e6}, "text_config.rope_theta"),
        ({"rms_norm_eps": 1e-5}, "text_config.rms_norm_eps"),
    ],
)
def test_small_constants_count_where_they_are_known(
    tmp_path: Path, text: dict[str, Any], place: str
) -> None:
    assert_named(quick(edit(MINI_FOLDER, tmp_path / "copy", text=text)), place, "mini was trained")


def test_what_the_original_has_too_is_no_damage(folders: dict[str, Path], tmp_path: Path) -> None:
    odd = edit(folders["paligemma2"], tmp_path / "odd", text={"attn_logit_softcapping": None})
    assert not quick(odd).passes
    copy = edit(odd, tmp_path / "copy")
    certificate = quick(copy, odd)
    assert certificate.passes
    assert any("The original has this too." in finding.text for finding in certificate.findings)


def test_a_changed_file_is_found_by_its_checksum(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(folders["paligemma"], folder)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    scale_norm(tensors, None)
    save_file(tensors, file, {"format": "pt"})
    assert_named(quick(folder), "model.safetensors", "was changed after it was written")


def test_a_tokenizer_of_another_model_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    copy = edit(folders["paligemma2"], tmp_path / "copy")
    shutil.copy(MINI_FOLDER / "tokenizer.model", copy)
    assert_named(quick(copy), "tokenizer.model", "belongs to another model")
    assert_named(quick(copy, folders["paligemma2"]), "tokenizer.model", "not the original's")
    copy = edit(MINI_FOLDER, tmp_path / "mini")
    shutil.copy(folders["paligemma2"] / "tokenizer.model", copy)
    assert_named(quick(copy), "tokenizer.model", "not mini's")


def test_a_truncated_file_fails_with_its_name(folders: dict[str, Path], tmp_path: Path) -> None:
    copy = edit(folders["paligemma"], tmp_path / "copy")
    file = copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert_named(quick(copy), "copy", "model.safetensors is damaged")


def test_training_from_mini_is_no_damage_but_damage_to_it_is(tmp_path: Path) -> None:
    def train(tensors: dict[str, torch.Tensor], config: Any) -> None:
        generator = torch.Generator().manual_seed(0)
        for name, value in tensors.items():
            if "self_attn" in name or ".mlp." in name:
                noise = torch.randn(value.shape, generator=generator) * 0.02 * value.float().std()
                tensors[name] = (value.float() + noise).to(value.dtype)

    trained = edit(MINI_FOLDER, tmp_path / "trained", tensors=train)
    certificate = quick(trained)
    assert certificate.passes, certificate.summary()
    assert certificate.origin.startswith("Trained further from mini")
    damaged = edit(trained, tmp_path / "damaged", tensors=scale_norm)
    place = "decoder.blocks.2.pre_attention_norm.weight"
    assert_named(quick(damaged), place, "multiplied by 1.5")
    swapped = edit(trained, tmp_path / "swapped", tensors=swap_query_heads)
    assert_named(
        quick(swapped, trained), "decoder.blocks.2.attention.q_proj.weight", "0 and 2 are swapped"
    )


# Without any original


def test_one_layer_among_smooth_ones_stands_out() -> None:
    rng = np.random.default_rng(0)
    sizes = np.exp(np.linspace(0, 1.5, 26) + rng.normal(0, 0.03, 26))
    assert outliers_of(list(sizes)) == []
    sizes[11] *= 2
    [(layer, score, factor)] = outliers_of(list(sizes))
    assert layer == 11
    assert score > 12
    assert factor == pytest.approx(2, rel=0.1)


def test_copies_empty_heads_and_zeros_need_no_original(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    def repeat(tensors: dict[str, torch.Tensor], config: Any) -> None:
        other = LAYER.replace("2", "3")
        tensors[LAYER + "mlp.up_proj.weight"] = tensors[other + "mlp.up_proj.weight"].clone()

    def empty(tensors: dict[str, torch.Tensor], config: Any) -> None:
        tensors[LAYER + "self_attn.q_proj.weight"][: config["text_config"]["head_dim"]] = 0

    def enlarge(tensors: dict[str, torch.Tensor], config: Any) -> None:
        tensors["language_model.model.embed_tokens.weight"][200:] = 0

    source = folders["paligemma2"]
    assert_named(
        quick(edit(source, tmp_path / "a", tensors=repeat)),
        "decoder.blocks.3.mlp.up_proj.weight",
        "the same values as decoder.blocks.2",
    )
    place = "decoder.blocks.2.attention.q_proj.weight"
    assert_named(quick(edit(source, tmp_path / "b", tensors=empty)), place, "heads 0 are empty")
    place = "decoder.embedding.weight"
    assert_named(quick(edit(source, tmp_path / "c", tensors=enlarge)), place, "rows are zeros")


def test_a_shifted_table_shows_in_the_rows_beyond_the_vocabulary(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    def shift(tensors: dict[str, torch.Tensor], config: Any) -> None:
        name = "language_model.model.embed_tokens.weight"
        tensors[name] = torch.roll(tensors[name], 3, dims=0)

    certificate = quick(edit(folders["paligemma"], tmp_path / "copy", tensors=shift))
    assert_named(certificate, "decoder.embedding.weight", "shifted by 3")


@pytest.mark.parametrize(
    ("to", "dtype"), [("mlx", "q4"), ("mlx", "q8"), ("sbs", "sfp"), ("keras", "stored")]
)
def test_a_conversion_that_quantizes_passes_and_damage_in_it_fails(
    tmp_path: Path, to: TargetFormat, dtype: str
) -> None:
    good = convert_checkpoint(MINI_FOLDER, tmp_path / f"good.{to}", to=to, dtype=dtype)
    certificate = quick(good, MINI_FOLDER)
    assert certificate.passes, certificate.summary()
    damaged = edit(MINI_FOLDER, tmp_path / "damaged", tensors=scale_norm)
    bad = convert_checkpoint(damaged, tmp_path / f"bad.{to}", to=to, dtype=dtype)
    place = "decoder.blocks.2.pre_attention_norm.weight"
    assert_named(quick(bad, MINI_FOLDER), place, "multiplied by 1.5")
