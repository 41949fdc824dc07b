"""Ours equals transformers on tiny random weights, both generations, float32.

The reference is transformers 5, with `token_type_ids` 0 over the prefix: without them it runs
the prefix causally.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from paligemma.checkpoints.hf_config import read_config
from paligemma.checkpoints.load import load_model
from paligemma.checkpoints.save import save_model
from paligemma.config import Family
from paligemma.engine.generate import generate
from paligemma.inputs import ModelInputs
from paligemma.model.paligemma import PaliGemma
from tests.tiny import (
    FAMILIES,
    FLOAT32_TOLERANCE,
    Row,
    reference_arguments,
    tiny_config,
    tiny_inputs,
    tiny_model,
    tiny_reference,
)

BATCHES = {
    "one row": ([Row()], "left"),
    "prompts of several lengths, padded left": ([Row(prefix=3), Row(prefix=9), Row()], "left"),
    "prompts of several lengths, padded right": ([Row(prefix=3), Row(prefix=9), Row()], "right"),
    "two pictures a prompt": ([Row(images=(0, 1)), Row(images=(2, 0), prefix=8)], "left"),
    "prefix and suffix, padded right": ([Row(suffix=6), Row(prefix=9, suffix=3)], "right"),
    "prefix and suffix, padded left": ([Row(suffix=6), Row(prefix=9, suffix=3)], "left"),
    "a suffix and none": ([Row(images=(0, 1), suffix=7), Row(images=(2, 1))], "left"),
}


@functools.cache
def reference_of(family: Family, sliding_window: int | None = None) -> Any:
    layers = tuple(i % 2 == 0 for i in range(7)) if sliding_window else ()
    return tiny_reference(tiny_config(family, sliding_window=sliding_window, sliding_layers=layers))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[Family, Path]:
    """What transformers' own save_pretrained writes."""
    made = {family: tmp_path_factory.mktemp(family) for family in FAMILIES}
    for family, folder in made.items():
        reference_of(family).save_pretrained(folder)
    return made


@torch.inference_mode()
def logits_of_both(
    model: PaliGemma, reference: Any, inputs: ModelInputs
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits at real positions, over the vocabulary."""
    theirs = reference(**reference_arguments(inputs, reference)).logits
    theirs = theirs[..., : model.config.decoder.vocab_size]
    return model(inputs)[inputs.input_mask], theirs[inputs.input_mask]


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("family", FAMILIES)
def test_e1_logits_equal_those_of_transformers(
    folders: dict[Family, Path], family: Family, batch: str
) -> None:
    model = load_model(folders[family])
    rows, side = BATCHES[batch]
    ours, theirs = logits_of_both(
        model, reference_of(family), tiny_inputs(tiny_config(family), rows, pad=side)
    )
    assert theirs.std() > 0.3
    assert (ours - theirs).abs().max() < FLOAT32_TOLERANCE


def test_e3_a_sliding_window_shorter_than_the_sequence_equals_that_of_transformers(
    tmp_path: Path,
) -> None:
    reference = reference_of("paligemma2", sliding_window=9)
    reference.save_pretrained(tmp_path)
    model = load_model(tmp_path, sliding_window=9)
    assert model.config.decoder.sliding_layers == (True, False, True, False, True, False, True)
    rows = [Row(prefix=4, suffix=20), Row(images=(0, 1), prefix=9, suffix=12)]
    for side in ("left", "right"):
        inputs = tiny_inputs(tiny_config("paligemma2"), rows, pad=side)
        ours, theirs = logits_of_both(model, reference, inputs)
        assert (ours - theirs).abs().max() < FLOAT32_TOLERANCE
        without_window, _ = logits_of_both(load_model(tmp_path), reference, inputs)
        assert (without_window - theirs).abs().max() > 0.01


@pytest.mark.parametrize("family", FAMILIES)
def test_e1_greedy_ids_equal_those_of_transformers(
    folders: dict[Family, Path], family: Family
) -> None:
    model = load_model(folders[family])
    rows = [Row(prefix=3), Row(images=(1, 0), prefix=7), Row()]
    inputs = tiny_inputs(tiny_config(family), rows)
    reference = reference_of(family)
    arguments = reference_arguments(inputs, reference)
    del arguments["position_ids"]  # generate counts for itself
    reference.generation_config.eos_token_id = None
    reference.generation_config.pad_token_id = 0
    with torch.inference_mode():
        theirs = reference.generate(**arguments, do_sample=False, max_new_tokens=32)
    ours = generate(model, inputs, max_new_tokens=32, eos_id=-1)
    start = inputs.token_ids.shape[1]
    assert [list(row.token_ids) for row in ours] == theirs[:, start:].tolist()
    assert len({token for row in ours for token in row.token_ids}) >= 4


def respell(folder: Path, to: Path, spelling: str) -> None:
    """Rewrite a checkpoint of transformers 5 with the tensor names of another version."""
    renamed = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        if spelling == "released":
            name = name.replace("vision_tower.", "vision_tower.vision_model.")
        elif spelling == "in memory":
            name = "model." + name.replace("language_model.model.", "language_model.")
            if "embed_tokens" in name:
                renamed["lm_head.weight"] = tensor.clone()
        renamed[name] = tensor
    save_file(renamed, to / "model.safetensors")
    content = json.loads((folder / "config.json").read_text())
    if spelling == "released":  # and of the 4.x line's config
        text = content["text_config"]
        text["rope_theta"] = text.pop("rope_parameters")["rope_theta"]
        for key in ("use_bidirectional_attention", "tie_word_embeddings", "layer_types"):
            text.pop(key, None)
    (to / "config.json").write_text(json.dumps(content))


@pytest.mark.parametrize("spelling", ["released", "saved by 5.x", "in memory"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_spelling_of_names_gives_the_same_model(
    folders: dict[Family, Path], tmp_path: Path, family: Family, spelling: str
) -> None:
    respell(folders[family], tmp_path, spelling)
    expected, found = load_model(folders[family]), load_model(tmp_path)
    assert found.config == expected.config
    for (name, a), (_, b) in zip(
        expected.named_parameters(), found.named_parameters(), strict=True
    ):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_loads_what_we_save_and_gives_the_same_logits(
    tmp_path: Path, family: Family
) -> None:
    import transformers

    model = tiny_model(family)
    folder = save_model(model, tmp_path / "saved", max_shard_bytes=40_000)
    assert len(list(folder.glob("model-*.safetensors"))) > 3
    reference, report = transformers.PaliGemmaForConditionalGeneration.from_pretrained(
        folder, output_loading_info=True, attn_implementation="eager"
    )
    assert {key: list(value) for key, value in report.items() if value} == {}
    inputs = tiny_inputs(model.config, [Row(suffix=6), Row(images=(0, 1), prefix=9)])
    ours, theirs = logits_of_both(model, reference.eval(), inputs)
    assert (ours - theirs).abs().max() < FLOAT32_TOLERANCE


def test_a_window_survives_saving(tmp_path: Path) -> None:
    import transformers

    layers = (True, True, False, False, True, False, False)
    model = tiny_model("paligemma2", sliding_window=9, sliding_layers=layers)
    folder = save_model(model, tmp_path / "saved")
    reference = transformers.PaliGemmaForConditionalGeneration.from_pretrained(
        folder, attn_implementation="eager"
    )
    inputs = tiny_inputs(model.config, [Row(prefix=4, suffix=20)])
    ours, theirs = logits_of_both(model, reference.eval(), inputs)
    assert (ours - theirs).abs().max() < FLOAT32_TOLERANCE
    assert load_model(folder, sliding_window=9).config == model.config


@pytest.mark.parametrize("model_type", ["gemma", "gemma2"])
def test_omitted_keys_take_the_defaults_of_transformers(tmp_path: Path, model_type: str) -> None:
    import transformers

    content = {
        "model_type": "paligemma",
        "image_token_index": 1000,
        "text_config": {"model_type": model_type},
        "vision_config": {"model_type": "siglip_vision_model", "image_size": 64},
    }
    (tmp_path / "config.json").write_text(json.dumps(content))
    stored = read_config(tmp_path)
    vision, decoder = stored.config.vision, stored.config.decoder
    theirs = transformers.PaliGemmaConfig.from_pretrained(tmp_path)
    text, image = theirs.text_config, theirs.vision_config
    assert stored.table_rows == text.vocab_size
    assert (decoder.width, decoder.depth) == (text.hidden_size, text.num_hidden_layers)
    assert (decoder.mlp_dim, decoder.head_dim) == (text.intermediate_size, text.head_dim)
    assert decoder.num_heads == text.num_attention_heads
    assert decoder.num_kv_heads == text.num_key_value_heads
    assert decoder.rms_norm_eps == text.rms_norm_eps
    assert decoder.rope_theta == text.rope_parameters["rope_theta"]
    assert decoder.query_scale == getattr(text, "query_pre_attn_scalar", 256) ** -0.5
    assert decoder.attn_logit_softcap == getattr(text, "attn_logit_softcapping", None)
    assert decoder.final_logit_softcap == getattr(text, "final_logit_softcapping", None)
    assert (vision.width, vision.depth) == (image.hidden_size, image.num_hidden_layers)
    assert (vision.mlp_dim, vision.num_heads) == (
        image.intermediate_size,
        image.num_attention_heads,
    )
    assert (vision.patch_size, vision.layer_norm_eps) == (image.patch_size, image.layer_norm_eps)
