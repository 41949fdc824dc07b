"""Presets of Keras: fixtures that keras-hub wrote, round trips, and damaged files.

`tests/parity/test_keras_hub.py` compares with keras-hub itself, where it is installed.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from paligemma.checkpoints.convert import plan, run, verify
from paligemma.checkpoints.keras import open_keras, write_keras
from paligemma.checkpoints.load import load_model
from paligemma.checkpoints.open import open_checkpoint
from paligemma.checkpoints.rows import Contents, read_all
from paligemma.config import PaliGemmaConfig, release_config
from paligemma.errors import CheckpointError, MissingExtraError, OptionError
from paligemma.inputs import ModelInputs
from paligemma.model.paligemma import PaliGemma

h5py = pytest.importorskip("h5py", reason="the extra 'formats' is not installed")

PRESETS = Path(__file__).parents[1] / "vectors/interop/keras"
TABLE = "layers/reversible_embedding/vars/0"
QUERY = "layers/pali_gemma_decoder_block/attention/query_dense/vars/0"
KEY = "layers/pali_gemma_decoder_block/attention/key_dense/vars/0"


def parameters_of(folder: Path) -> dict[str, Tensor]:
    with open_checkpoint(folder) as preset:
        return {name: read_all(rows) for name, rows in preset.contents.parameters.items()}


# How far outputs may be from those of keras-hub in float32, and of which preset. Outputs reach
# 3.6; bfloat16 and int8 weights are compared exactly elsewhere.
@pytest.mark.parametrize(
    ("preset", "reference", "tolerance"),
    [
        ("k1", "k1", 5e-6),
        ("k2", "k2", 5e-6),
        ("k2bf", "k2", 0.03),
        ("k2sh", "k2", 0.03),
        ("k2i8", "k2", 0.1),
    ],
)
def test_outputs_are_those_of_keras_hub(preset: str, reference: str, tolerance: float) -> None:
    arrays = {key: torch.tensor(a) for key, a in np.load(PRESETS / f"{reference}_ref.npz").items()}
    model = load_model(PRESETS / preset, weights="float32")
    num_image_tokens = model.config.vision.num_image_tokens
    token_ids = torch.cat([torch.zeros(1, num_image_tokens), arrays["ids"]], dim=1).long()
    response = torch.cat([torch.zeros(1, num_image_tokens), arrays["resp"]], dim=1).bool()
    inputs = ModelInputs(
        token_ids=token_ids,
        input_mask=torch.ones_like(response),
        mask_ar=response,
        image_mask=torch.arange(token_ids.shape[1])[None] < num_image_tokens,
        pixel_values=arrays["img"].permute(0, 3, 1, 2).contiguous(),
        image_index=((0,),),
    )
    with torch.inference_mode():
        hidden, logits = model.hidden_states(inputs), model(inputs)
    assert (hidden - arrays["h"]).abs().max() < tolerance
    assert (logits - arrays["logits"]).abs().max() < tolerance


@pytest.mark.parametrize("preset", ["k2bf", "k2sh"])
def test_bfloat16_weights_are_the_rounded_float32_weights(preset: str) -> None:
    rounded = parameters_of(PRESETS / preset)
    for name, values in parameters_of(PRESETS / "k2").items():
        assert torch.equal(rounded[name], values.bfloat16()), name


def test_int8_weights_are_within_half_a_step_of_the_float32_weights() -> None:
    dequantized = parameters_of(PRESETS / "k2i8")
    exact = 0
    for name, values in parameters_of(PRESETS / "k2").items():
        difference = (dequantized[name] - values).abs()
        if values.ndim == 1 or "patch" in name:
            assert torch.equal(dequantized[name], values), name
            exact += 1
        else:
            largest = values.abs().amax(dim=1, keepdim=True)
            assert (difference <= 0.51 * largest / 127).all(), name
    assert exact > 30


def test_rows_of_an_int8_weight_are_the_same_in_any_blocks() -> None:
    with open_keras(PRESETS / "k2i8") as preset:
        for name in ("decoder.embedding.weight", "decoder.blocks.1.mlp.up_proj.weight"):
            rows = preset.contents.parameters[name]
            whole = read_all(rows)
            parts = [rows.read(i, min(i + 16, len(whole))) for i in range(0, len(whole), 16)]
            assert torch.equal(torch.cat(parts), whole)


def test_what_is_special_is_said() -> None:
    with open_checkpoint(PRESETS / "k2i8") as preset:
        assert preset.format == "keras"
        assert preset.description["quantization"] == "int8, one scale per output"
        assert preset.description["keras_hub_version"] == "0.32.0"
        assert any("dequantized" in note for note in preset.notes)
    with open_checkpoint(PRESETS / "k1") as preset:
        assert any("crops" in note for note in preset.notes)
        assert preset.contents.tokenizer is not None
        assert preset.dtype == torch.float32


@pytest.mark.parametrize("preset", ["k1", "k2", "k2sh", "k2i8"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_conversion_to_a_preset_keeps_every_bit(preset: str, dtype: str, tmp_path: Path) -> None:
    with open_checkpoint(PRESETS / preset) as source:
        conversion = plan(source, tmp_path / "to", to="keras", dtype=dtype)
        run(conversion)
        assert not verify(conversion).differences
        with open_checkpoint(tmp_path / "to") as written:
            assert written.contents.config == source.contents.config
            assert written.contents.tokenizer == source.contents.tokenizer
            assert str(written.dtype) == f"torch.{dtype}"


def test_shards_and_one_file_contain_the_same(tmp_path: Path) -> None:
    with open_keras(PRESETS / "k2") as source:
        write_keras(source.contents, tmp_path, torch.float32, max_shard_bytes=60_000)
    shards = sorted(path.name for path in tmp_path.glob("*.h5"))
    assert shards[:2] == ["model_00000.weights.h5", "model_00001.weights.h5"]
    assert not (tmp_path / "model.weights.h5").exists()
    weight_map = json.loads((tmp_path / "model.weights.json").read_text())["weight_map"]
    assert set(weight_map.values()) == set(shards)
    assert all(group.startswith("/layers/") and group.endswith("/vars") for group in weight_map)
    written, original = parameters_of(tmp_path), parameters_of(PRESETS / "k2")
    assert all(torch.equal(written[name], values) for name, values in original.items())


def test_bfloat16_is_stored_as_keras_stores_it(tmp_path: Path) -> None:
    with open_keras(PRESETS / "k2bf") as source:
        write_keras(source.contents, tmp_path, torch.bfloat16)
    with (
        h5py.File(tmp_path / "model.weights.h5") as ours,
        h5py.File(PRESETS / "k2bf/model.weights.h5") as theirs,
    ):
        assert ours[QUERY].id.get_type().equal(theirs[QUERY].id.get_type())
        assert dict(ours[QUERY].attrs) == dict(theirs[QUERY].attrs) == {"dtype": "bfloat16"}
        assert np.array_equal(ours[QUERY][()], theirs[QUERY][()])
        assert ours[QUERY].chunks is None


def test_the_json_files_are_those_of_keras_hub_except_how_images_are_resized(
    tmp_path: Path,
) -> None:
    with open_keras(PRESETS / "k1") as source:
        write_keras(source.contents, tmp_path, torch.float32)
    names = {path.name for path in (PRESETS / "k1").glob("*.json")}
    assert {path.name for path in tmp_path.glob("*.json")} == names
    resizing = {"interpolation": "bicubic", "antialias": True, "crop_to_aspect_ratio": False}

    def expected(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {k: resizing.get(k, expected(v)) for k, v in value.items()}

    for name in names - {"metadata.json"}:
        theirs = json.loads((PRESETS / "k1" / name).read_text())
        assert json.loads((tmp_path / name).read_text()) == expected(theirs), name
    metadata = json.loads((tmp_path / "metadata.json").read_text())
    theirs = json.loads((PRESETS / "k1/metadata.json").read_text())
    assert metadata | {"date_saved": ""} == theirs | {"date_saved": ""}


# Old and unusual presets


@pytest.fixture
def preset(tmp_path: Path) -> Path:
    folder = tmp_path / "preset"
    shutil.copytree(PRESETS / "k1", folder)
    return folder


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    content = json.loads(path.read_text())
    for key, value in changes.items():
        if value is KeyError:
            del content["config"][key]
        else:
            content["config"][key] = value
    path.write_text(json.dumps(content))


def test_files_of_keras_nlp_without_the_newer_keys_are_read(preset: Path) -> None:
    path = preset / "config.json"
    path.write_text(path.read_text().replace("keras_hub", "keras_nlp"))
    newer = ("query_head_dim_normalize", "use_post_ffw_norm", "use_post_attention_norm")
    caps = ("final_logit_soft_cap", "attention_logit_soft_cap")
    window = ("sliding_window_size", "use_sliding_window_attention")
    change_config(preset, dtype="bfloat16", **dict.fromkeys((*newer, *caps, *window), KeyError))
    (preset / "metadata.json").unlink()
    with open_checkpoint(preset) as old, open_checkpoint(PRESETS / "k1") as new:
        assert old.contents.config == new.contents.config


def test_an_unknown_vision_mlp_is_that_of_the_releases(preset: Path) -> None:
    change_config(preset, vit_intermediate_dim=None)
    with pytest.raises(CheckpointError, match=r"mlp_dense_1/vars/0 is \(24, 40\).*\(24, 4304\)"):
        open_checkpoint(preset)


def test_the_state_of_dropout_is_ignored(preset: Path) -> None:
    with h5py.File(preset / "model.weights.h5", "a") as file:
        path = "layers/pali_gemma_decoder_block/attention_dropout/seed_generator/vars/0"
        file[path] = np.zeros(2, np.uint32)
    open_checkpoint(preset).close()


def test_the_query_scale_of_28b_is_that_of_training_and_said_to_differ_in_keras(
    preset: Path,
) -> None:
    change_config(preset, query_head_dim_normalize=False)
    with open_checkpoint(preset) as opened:
        assert opened.contents.config.decoder.query_scale == (32 // 4) ** -0.5
        assert any("query scale 8^-0.5" in note for note in opened.notes)


def test_28b_is_written_with_its_query_scale(tmp_path: Path) -> None:
    config = release_config("paligemma2", "28b", 224)
    settings = _written_settings(config, tmp_path)
    assert settings["query_head_dim_normalize"] is False
    assert settings["intermediate_dim"] == 2 * 36864
    assert settings["use_sliding_window_attention"] is False
    settings = _written_settings(release_config("paligemma2", "10b", 448), tmp_path)
    assert settings["query_head_dim_normalize"] is True


def _written_settings(config: PaliGemmaConfig, folder: Path) -> dict[str, Any]:
    from paligemma.checkpoints.keras_config import preset_files

    files = preset_files(folder, config, "bfloat16", has_tokenizer=True)
    settings: dict[str, Any] = files["config.json"]["config"]
    return settings


def test_a_window_is_an_option(tmp_path: Path) -> None:
    with open_checkpoint(PRESETS / "k2") as preset:
        assert preset.contents.config.decoder.sliding_window is None
    with open_checkpoint(PRESETS / "k2", sliding_window=4096) as preset:
        assert preset.contents.config.decoder.sliding_window == 4096
        assert preset.contents.config.decoder.sliding_layers == (True, False, True)
    with pytest.raises(OptionError, match="PaliGemma 1"):
        open_checkpoint(PRESETS / "k1", sliding_window=4096)


def test_what_keras_cannot_represent_is_refused(tmp_path: Path) -> None:
    with open_keras(PRESETS / "k2") as source:
        decoder = replace(source.contents.config.decoder, rope_theta=500.0)
        contents = replace(source.contents, config=replace(source.contents.config, decoder=decoder))
        with pytest.raises(CheckpointError, match=r"rope_theta is 500\.0"):
            write_keras(contents, tmp_path, torch.float32)
    assert not any(tmp_path.iterdir())


def test_without_h5py_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'paligemma\[formats\]'"):
        open_checkpoint(PRESETS / "k1")


# Damage: one clear error each, and nothing is written


def expect_refusal(folder: Path, match: str) -> None:
    target = folder.parent / "target"
    with pytest.raises(CheckpointError, match=match) as refusal, open_checkpoint(folder) as source:
        run(plan(source, target, to="hf"))
    assert str(folder) in str(refusal.value)
    assert not target.exists()
    assert not list(folder.parent.glob("target*"))


def edit(folder: Path, change: Callable[[Any], None], name: str = "model.weights.h5") -> None:
    with h5py.File(folder / name, "a") as file:
        change(file)


def replace_dataset(file: Any, name: str, **options: Any) -> None:
    values = file[name][()]
    del file[name]
    file.create_dataset(name, **{"data": values, **options})


@pytest.mark.parametrize("part", [0.0, 0.001, 0.1, 0.5, 0.9, 0.9999])
def test_a_truncated_file_is_refused(part: float, preset: Path) -> None:
    path = preset / "model.weights.h5"
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * part)])
    expect_refusal(preset, "damaged, incomplete, or not an HDF5 file")


def test_a_missing_dataset_is_named(preset: Path) -> None:
    edit(preset, lambda file: file.__delitem__(QUERY))
    expect_refusal(preset, f"missing: {QUERY}")


def test_an_unknown_dataset_is_named(preset: Path) -> None:
    edit(preset, lambda file: file.__setitem__("layers/dense/vars/7", np.zeros(3, np.float32)))
    expect_refusal(preset, "unknown: layers/dense/vars/7")


def test_swapped_tensors_are_named(preset: Path) -> None:
    def swap(file: Any) -> None:
        file.move(QUERY, "other")
        file.move(KEY, QUERY)
        file.move("other", KEY)

    edit(preset, swap)
    expect_refusal(preset, r"key_dense/vars/0 is \(4, 32, 16\), expected \(1, 32, 16\)")


@pytest.mark.parametrize("dtype", ["<f8", "<i4", ">f4", "S4", "<c8", "V2", "V4"])
def test_wrong_dtypes_are_refused(dtype: str, preset: Path) -> None:
    values = np.zeros((4, 32, 16), dtype)
    edit(preset, lambda file: replace_dataset(file, QUERY, data=values))
    expect_refusal(preset, f"{QUERY} is .*expected float32")


def test_int8_without_a_scale_is_refused(preset: Path) -> None:
    edit(preset, lambda file: replace_dataset(file, QUERY, data=np.ones((4, 32, 16), np.int8)))
    expect_refusal(preset, f"{QUERY} is int8, without the scale")


def test_int8_with_a_scale_of_another_shape_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "preset"
    shutil.copytree(PRESETS / "k2i8", folder)
    scale = QUERY.replace("vars/0", "vars/1")
    edit(folder, lambda file: replace_dataset(file, scale, data=np.ones((1, 1, 2, 16), "f4")))
    expect_refusal(folder, "expected a scale for")


def test_int4_presets_are_refused(preset: Path) -> None:
    policy = {"class_name": "QuantizedDTypePolicy", "config": {"mode": "int4"}}
    layers = {"class_name": "DTypePolicyMap", "config": {"policy_map": {"dense": policy}}}
    change_config(preset, dtype=layers)
    expect_refusal(preset, "quantized as int4.* only int8")
    for _ in range(900):
        layers = {"x": layers}
    change_config(preset, dtype=layers)
    expect_refusal(preset, "quantized as int4.* only int8|nested too deeply")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(value: float, preset: Path) -> None:
    edit(preset, lambda file: file[QUERY].__setitem__((1, 2, 3), value))
    with pytest.raises(CheckpointError, match=QUERY):
        load_model(preset)


def test_chunks_and_compression_are_refused(preset: Path) -> None:
    edit(preset, lambda file: replace_dataset(file, QUERY, chunks=(1, 32, 16), compression="gzip"))
    expect_refusal(preset, f"{QUERY} is stored in chunks or compressed.*h5repack")


def test_a_compressed_dataset_that_claims_terabytes_is_refused(preset: Path) -> None:
    def bomb(file: Any) -> None:
        del file[TABLE]
        file.create_dataset(
            TABLE, (2**22, 2**22), "<f4", chunks=(1024, 1024), compression="gzip", fillvalue=1
        )

    edit(preset, bomb)
    change_config(preset, vocabulary_size=2**22, hidden_dim=2**22)
    expect_refusal(preset, "chunks or compressed")


def test_a_dataset_without_values_is_refused(preset: Path) -> None:
    def empty(file: Any) -> None:
        del file[TABLE]
        file.create_dataset(TABLE, (2**22, 2**22), "<f4")  # reads as zeros

    edit(preset, empty)
    expect_refusal(preset, f"{TABLE} is .*not all in the file")


def test_values_in_another_file_are_refused(preset: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(bytes(4 * 4 * 32 * 16))

    def external(file: Any) -> None:
        del file[QUERY]
        file.create_dataset(
            QUERY, (4, 32, 16), "<f4", external=[(str(tmp_path / "secret"), 0, h5py.h5f.UNLIMITED)]
        )

    edit(preset, external)
    expect_refusal(preset, f"the values of {QUERY} are in another file")


def test_virtual_datasets_are_refused(preset: Path) -> None:
    def virtual(file: Any) -> None:
        layout = h5py.VirtualLayout((4, 32, 16), "<f4")
        layout[:] = h5py.VirtualSource("other.h5", "x", (4, 32, 16))
        del file[QUERY]
        file.create_virtual_dataset(QUERY, layout)

    edit(preset, virtual)
    expect_refusal(preset, f"the values of {QUERY} are in another file")


@pytest.mark.parametrize("where", [QUERY, "layers/pali_gemma_vit"])
@pytest.mark.parametrize("link", [h5py.ExternalLink("copy.h5", "/x"), h5py.SoftLink("/layers")])
def test_links_are_refused(link: Any, where: str, preset: Path) -> None:
    shutil.copy(preset / "model.weights.h5", preset / "copy.h5")

    def relink(file: Any) -> None:
        del file[where]
        file[where] = link

    edit(preset, relink)
    expect_refusal(preset, f"{where} is a link to another place")


def test_groups_that_contain_themselves_are_refused(preset: Path) -> None:
    edit(preset, lambda file: file["layers"].__setitem__("again", file["layers"]))
    expect_refusal(preset, "stored under two names")


def test_one_dataset_under_two_names_is_refused(preset: Path) -> None:
    def share(file: Any) -> None:
        second = QUERY.replace("block/", "block_1/")
        del file[second]
        file[second] = file[QUERY]

    edit(preset, share)
    expect_refusal(preset, "stored under two names")


def test_a_link_to_a_file_outside_the_folder_is_refused(preset: Path, tmp_path: Path) -> None:
    path = preset / "model.weights.h5"
    path.rename(tmp_path / "elsewhere.h5")
    path.symlink_to(tmp_path / "elsewhere.h5")
    expect_refusal(preset, "outside the checkpoint")


def test_a_tokenizer_outside_the_folder_is_refused(preset: Path, tmp_path: Path) -> None:
    path = preset / "assets/tokenizer/vocabulary.spm"
    path.rename(tmp_path / "secret")
    path.symlink_to(tmp_path / "secret")
    expect_refusal(preset, "outside the checkpoint")


# Shards


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    folder = tmp_path / "preset"
    shutil.copytree(PRESETS / "k2sh", folder)
    return folder


def change_index(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "model.weights.json"
    content = json.loads(path.read_text())
    change(content["weight_map"])
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("name", ["../secret.h5", "/etc/passwd", "a/model_00000.weights.h5", 3])
def test_an_index_that_names_other_files_is_refused(name: Any, shards: Path) -> None:
    change_index(shards, lambda weights: weights.update({f"/{QUERY[:-2]}": name}))
    expect_refusal(shards, "names the file .*expected plain names")


def test_an_index_that_disagrees_with_the_files_is_refused(shards: Path) -> None:
    change_index(shards, lambda weights: weights.pop("/layers/rms_normalization/vars"))
    expect_refusal(shards, "In the file but not listed: /layers/rms_normalization/vars")


def test_a_missing_shard_is_named(shards: Path) -> None:
    (shards / "model_00001.weights.h5").unlink()
    expect_refusal(shards, r"model_00001\.weights\.h5 is missing")


def test_a_missing_index_is_named(shards: Path) -> None:
    (shards / "model.weights.json").unlink()
    expect_refusal(shards, r"no model\.weights\.json")


def test_a_shard_twice_is_refused(shards: Path) -> None:
    shutil.copy(shards / "model_00001.weights.h5", shards / "model_00002.weights.h5")
    expect_refusal(shards, "do not belong to the weights")
    change_index(
        shards,
        lambda weights: weights.update(
            {"/layers/rms_normalization/vars": ["model_00001.weights.h5", "model_00002.weights.h5"]}
        ),
    )
    expect_refusal(shards, "is in both")


def test_weights_in_one_file_and_in_shards_are_ambiguous(shards: Path) -> None:
    shutil.copy(PRESETS / "k2/model.weights.h5", shards / "model.weights.h5")
    expect_refusal(shards, "Ambiguous")


# Configs


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"hidden_dim": 64}, "expected"),
        ({"num_layers": 4}, "missing: layers/pali_gemma_decoder_block_3/"),
        ({"num_layers": 2}, "unknown: layers/pali_gemma_decoder_block_2/"),
        ({"num_layers": 10**9}, "num_layers is 1000000000; expected a whole number"),
        ({"num_query_heads": 0}, "num_query_heads is 0"),
        ({"num_query_heads": 3}, "expected"),
        ({"head_dim": 15}, "head_dim is 15"),
        ({"intermediate_dim": 97}, "intermediate_dim is 97; expected twice"),
        ({"hidden_dim": "32"}, "hidden_dim is '32'"),
        ({"vocabulary_size": None}, "vocabulary_size is None"),
        ({"image_size": 29}, "multiple of patch_size"),
        ({"image_size": 10**6}, "image_size is 1000000"),
        ({"vit_num_heads": 5}, "vision width"),
        ({"vit_pooling": "map"}, "vit_pooling is 'map'"),
        ({"use_post_ffw_norm": True}, "use_post_attention_norm is False"),
        ({"use_post_ffw_norm": "yes"}, "expected true or false"),
        ({"layer_norm_epsilon": 1e-5}, "layer_norm_epsilon is 1e-05"),
        ({"final_logit_soft_cap": -1}, "final_logit_soft_cap is -1"),
        ({"query_head_dim_normalize": 1}, "expected true or false"),
    ],
)
def test_a_lying_config_is_refused(changes: dict[str, Any], match: str, preset: Path) -> None:
    change_config(preset, **changes)
    expect_refusal(preset, match)


@pytest.mark.parametrize(
    "content",
    ["", "[]", '{"class_name": "GemmaBackbone"}', '{"class_name": "PaliGemmaBackbone"}'],
)
def test_other_configs_are_refused(content: str, preset: Path) -> None:
    (preset / "config.json").write_text(content)
    expect_refusal(preset, "config")


def test_contents_of_a_model_can_be_written(tmp_path: Path) -> None:
    """What `paligemma convert` writes comes from any format, so from models in memory too."""
    model: PaliGemma = load_model(PRESETS / "k1")

    class Rows:
        def __init__(self, name: str, values: Tensor) -> None:
            self.name, self.shape, self.dtype = name, tuple(values.shape), values.dtype
            self.read = lambda start, end: values[start:end]

    rows = {name: Rows(name, values.detach()) for name, values in model.named_parameters()}
    contents = Contents(config=model.config, parameters=rows, files={"vae-oid.npz": b"codec"})
    write_keras(contents, tmp_path, torch.float32)
    assert (tmp_path / "vae-oid.npz").read_bytes() == b"codec"
    assert not (tmp_path / "task.json").exists()
    written = parameters_of(tmp_path)
    assert all(torch.equal(written[name], p) for name, p in model.named_parameters())
