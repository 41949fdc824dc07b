"""big_vision's npz: its own fixtures, every variant that its loader accepts, and damaged files."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from paligemma.checkpoints.big_vision import write_big_vision
from paligemma.checkpoints.config_checks import released_decoder
from paligemma.checkpoints.load import load_model
from paligemma.checkpoints.open import open_checkpoint
from paligemma.checkpoints.save import contents_of
from paligemma.config import Family, release_config
from paligemma.errors import CheckpointError, OptionError
from paligemma.fast.weights import Plain
from paligemma.inputs import ModelInputs
from paligemma.model.paligemma import PaliGemma
from tests.checkpoints.test_save_and_load import same_bits
from tests.tiny import FAMILIES, portable_model, tiny_model

Arrays = dict[str, npt.NDArray[Any]]

FIXTURES = Path(__file__).parents[1] / "vectors/interop/big_vision"
PREFIX = "params/"


def save_npz(model: PaliGemma, path: Path, dtype: torch.dtype = torch.float32) -> Path:
    write_big_vision(contents_of(model), path, dtype)
    return path


def save_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    np.savez(path, **arrays)


def arrays_of(path: Path) -> Arrays:
    with np.load(path) as archive:
        return dict(archive)


def inputs_of(reference: Arrays) -> ModelInputs:
    """Image tokens, then the ids of the fixture."""
    ids = torch.from_numpy(reference["ids"]).long()
    num_image_tokens, num_ids = reference["zimg"].shape[1], ids.shape[1]
    is_image = torch.arange(num_image_tokens + num_ids)[None] < num_image_tokens
    before = torch.zeros(1, num_image_tokens)
    return ModelInputs(
        token_ids=torch.cat([before.long(), ids], dim=1),
        input_mask=torch.ones_like(is_image),
        mask_ar=torch.cat([before, torch.from_numpy(reference["mask_ar"])], dim=1).bool(),
        image_mask=is_image,
        pixel_values=torch.from_numpy(reference["img"]).permute(0, 3, 1, 2).contiguous(),
        image_index=((0,),),
    )


# With 16-bit files big_vision scales the embedding in the file's dtype, and we in float32.
@pytest.mark.parametrize(
    ("name", "tolerance"), [("bv1", 2e-6), ("bv2", 2e-6), ("bv1.f16", 2e-3), ("bv2.bf16", 1e-2)]
)
def test_logits_are_those_of_the_official_code(name: str, tolerance: float) -> None:
    reference = arrays_of(FIXTURES / f"{name}_ref.npz")
    model = load_model(FIXTURES / f"{name}.npz", weights=Plain("float32"))
    inputs = inputs_of(reference)
    with torch.no_grad():
        image_tokens = model.embed_images(inputs.required_pixel_values)
        logits = model(inputs)
    num_ids = reference["ids"].shape[1]
    expected = torch.from_numpy(reference["logits"].astype(np.float32))
    if (cap := model.config.decoder.final_logit_softcap) is not None:
        expected = cap * torch.tanh(expected / cap)  # its training forward never applies it
    torch.testing.assert_close(
        image_tokens, torch.from_numpy(reference["zimg"].astype(np.float32)), atol=1e-6, rtol=0
    )
    torch.testing.assert_close(logits[:, -num_ids:], expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize("name", ["bv1", "bv2", "bv1.f16", "bv2.bf16"])
def test_writing_restores_every_array_of_the_official_file(tmp_path: Path, name: str) -> None:
    with open_checkpoint(FIXTURES / f"{name}.npz") as checkpoint:
        write_big_vision(checkpoint.contents, tmp_path / "again.npz", checkpoint.dtype)
    before, after = arrays_of(FIXTURES / f"{name}.npz"), arrays_of(tmp_path / "again.npz")
    assert before.keys() == after.keys()
    for key, array in before.items():
        assert array.dtype == after[key].dtype, key
        assert array.shape == after[key].shape, key
        assert array.tobytes() == after[key].tobytes(), key


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_bits_come_back(tmp_path: Path, family: Family, dtype: torch.dtype) -> None:
    model = portable_model(family).to(dtype)
    assert same_bits(load_model(save_npz(model, tmp_path / "a.npz", dtype)), model)


def test_a_config_that_shapes_do_not_determine_is_refused_on_writing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"decoder\.query_scale is .* Convert to 'hf'"):
        save_npz(tiny_model(), tmp_path / "a.npz")


def test_the_28b_model_is_recognized_by_its_sizes_and_gets_its_own_query_scale() -> None:
    released = release_config("paligemma2", "28b", 448).decoder
    sizes = replace(
        released, query_scale=128**-0.5, attn_logit_softcap=None, final_logit_softcap=None
    )
    assert released_decoder(sizes) == released
    other = replace(sizes, width=4096)
    assert released_decoder(other).query_scale == 128**-0.5


def compressed(arrays: Arrays, path: Path) -> None:
    values: Mapping[str, Any] = arrays
    np.savez_compressed(path, **values)


def in_fortran_order(arrays: Arrays, path: Path) -> None:
    save_arrays(path, {key: np.asfortranarray(value) for key, value in arrays.items()})


def under_opt_target(arrays: Arrays, path: Path) -> None:
    save_arrays(path, {"opt/target/" + key.removeprefix(PREFIX): v for key, v in arrays.items()})


def without_prefix(arrays: Arrays, path: Path) -> None:
    save_arrays(path, {key.removeprefix(PREFIX): value for key, value in arrays.items()})


def with_separate_vision_layers(arrays: Arrays, path: Path) -> None:
    block = "params/img/Transformer/encoderblock"
    separate = {}
    for key, value in arrays.items():
        if key.startswith(block + "/"):
            for i, layer in enumerate(value):
                separate[f"{block}_{i}/{key.removeprefix(block + '/')}"] = layer
        else:
            separate[key] = value
    save_arrays(path, separate)


def with_old_positions(arrays: Arrays, path: Path) -> None:
    positions = arrays.pop("params/img/pos_embedding")
    save_arrays(path, arrays | {"params/img/Transformer/posembed_input/pos_embedding": positions})


@pytest.mark.parametrize(
    "write",
    [
        compressed,
        in_fortran_order,
        under_opt_target,
        without_prefix,
        with_separate_vision_layers,
        with_old_positions,
    ],
)
def test_every_form_that_the_official_loader_accepts_is_read(
    tmp_path: Path, write: Callable[[Arrays, Path], None]
) -> None:
    model = portable_model()
    write(arrays_of(save_npz(model, tmp_path / "a.npz")), tmp_path / "b.npz")
    assert same_bits(load_model(tmp_path / "b.npz"), model)


def test_a_decoder_with_one_array_for_query_key_and_value_is_read(tmp_path: Path) -> None:
    model = portable_model("paligemma")
    arrays = arrays_of(save_npz(model, tmp_path / "a.npz"))
    query = arrays.pop("params/llm/layers/attn/q_einsum/w")
    arrays.pop("params/llm/layers/attn/kv_einsum/w")
    arrays["params/llm/layers/attn/qkv_einsum/w"] = np.stack([query, query + 1, query + 2], axis=1)
    save_arrays(tmp_path / "b.npz", arrays)
    loaded = dict(load_model(tmp_path / "b.npz").named_parameters())
    expected = dict(model.named_parameters())["decoder.blocks.1.attention.q_proj.weight"]
    assert torch.equal(loaded["decoder.blocks.1.attention.q_proj.weight"], expected)
    assert torch.equal(loaded["decoder.blocks.1.attention.v_proj.weight"], expected + 2)


def test_arrays_of_an_optimizer_and_a_pooling_head_are_left_out_with_a_note(tmp_path: Path) -> None:
    model = portable_model()
    arrays = arrays_of(save_npz(model, tmp_path / "a.npz"))
    extra = {"opt/0/mu": np.zeros(3, np.float32), "params/img/MAPHead_0/x": np.zeros(3, np.float32)}
    save_arrays(tmp_path / "b.npz", arrays | extra)
    with open_checkpoint(tmp_path / "b.npz") as checkpoint:
        assert checkpoint.notes == (
            "Left out, because they are not of the model: opt/0/mu, params/img/MAPHead_0/x.",
        )
    assert same_bits(load_model(tmp_path / "b.npz"), model)


def test_mixed_dtypes_are_read_as_they_are_stored(tmp_path: Path) -> None:
    model = portable_model().to(torch.float16).float()
    arrays = arrays_of(save_npz(model, tmp_path / "a.npz"))
    table = "params/llm/embedder/input_embedding"
    arrays[table] = arrays[table].astype(np.float16)
    save_arrays(tmp_path / "b.npz", arrays)
    assert same_bits(load_model(tmp_path / "b.npz", weights="float32"), model)


def without(key: str) -> Callable[[Arrays], None]:
    return lambda arrays: arrays.__delitem__(key)


def reshaped(key: str) -> Callable[[Arrays], None]:
    def change(arrays: Arrays) -> None:
        arrays[key] = arrays[key][..., :-1]

    return change


def swapped(first: str, second: str) -> Callable[[Arrays], None]:
    def change(arrays: Arrays) -> None:
        arrays[first], arrays[second] = arrays[second], arrays[first]

    return change


def added(key: str, value: npt.NDArray[Any]) -> Callable[[Arrays], None]:
    return lambda arrays: arrays.update({key: value})


PATCHES = "params/img/embedding/kernel"
NORM, LINEAR = "params/llm/final_norm/scale", "params/llm/layers/mlp/linear"
UP, DOWN = (f"params/img/Transformer/encoderblock/MlpBlock_0/Dense_{i}/kernel" for i in (0, 1))
WRONG_ARRAYS = {
    "a missing norm": (without(NORM), f"missing: {NORM}"),
    "a missing table": (without("params/llm/embedder/input_embedding"), "no PaliGemma decoder"),
    "a missing layer tensor": (without("params/llm/layers/attn/q_einsum/w"), "q_einsum"),
    "a wrong shape": (reshaped(LINEAR), f"{LINEAR} is "),
    "swapped arrays": (swapped(UP, DOWN), "is .* expected"),
    "an unknown array": (added("params/llm/layers/attn/x/w", np.zeros(3, np.float32)), "unknown"),
    "positions that make no square": (reshaped("params/img/pos_embedding"), "pos_embedding"),
    "integers": (added(NORM, np.zeros(48, np.int32)), "its type is int32"),
    "float64": (added(NORM, np.zeros(48, np.float64)), "its type is float64"),
    "Python objects": (added(NORM, np.array([None] * 48)), "Python objects"),
    "a scalar": (added(NORM, np.float32(1)), "is \\(\\), expected \\(48,\\)"),  # type: ignore[arg-type]
    "an empty array": (
        added("params/img/embedding/kernel", np.zeros((0, 6, 3, 27), np.float32)),
        "from 1 to",
    ),
    "NaN": (added(NORM, np.full(48, np.nan, np.float32)), f"NaN.*{NORM}"),
}


@pytest.mark.parametrize("kind", WRONG_ARRAYS)
def test_wrong_arrays_are_named(tmp_path: Path, kind: str) -> None:
    arrays = arrays_of(save_npz(portable_model(), tmp_path / "a.npz"))
    change, message = WRONG_ARRAYS[kind]
    change(arrays)
    save_arrays(tmp_path / "b.npz", arrays)
    with pytest.raises(CheckpointError, match=message):
        load_model(tmp_path / "b.npz")


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    content = save_npz(portable_model(), tmp_path / "a.npz").read_bytes()
    for length in (0, 1, 3, 30, 1000, len(content) // 2, len(content) - 1):
        (tmp_path / "b.npz").write_bytes(content[:length])
        with pytest.raises(CheckpointError, match=r"b\.npz"):
            load_model(tmp_path / "b.npz")


def test_a_damaged_name_is_not_quoted_at_length(tmp_path: Path) -> None:
    path = save_npz(portable_model(), tmp_path / "a.npz")
    content = bytearray(path.read_bytes())
    content[26:28] = b"\xff\xff"  # the length of the first member's name
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as error:
        load_model(path)
    assert len(str(error.value)) < 600


def with_member(path: Path, name: str, content: bytes, compression: int = 0) -> Path:
    with zipfile.ZipFile(path, "a", compression) as archive:
        archive.writestr(name, content)
    return path


def npy(shape: str, num_bytes: int, dtype: str = "<f4") -> bytes:
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}}}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(num_bytes)


LYING_MEMBERS = {
    "more values than bytes": (npy("(100,)", 8), "needs"),
    "fewer values than bytes": (npy("(1,)", 8), "needs"),
    "a terabyte in a few bytes": (npy("(1000000, 1000000)", 8), "needs"),
    "a negative shape": (npy("(-2,)", 8), "cannot be read"),
    "code in the header": (npy("__import__('os').getcwd()", 8), "cannot be read"),
    "a header without end": (b"\x93NUMPY\x01\x00\xff\xff{", "cannot be read"),
    "a version of the future": (b"\x93NUMPY\x09\x00" + bytes(20), "version"),
    "no array at all": (b"hello", "cannot be read"),
}


@pytest.mark.parametrize("kind", LYING_MEMBERS)
def test_lying_headers_are_refused(tmp_path: Path, kind: str) -> None:
    content, message = LYING_MEMBERS[kind]
    path = with_member(save_npz(portable_model(), tmp_path / "a.npz"), "opt/x.npy", content)
    with pytest.raises(CheckpointError, match=message):
        load_model(path)


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    bomb = npy("(3,)", 300_000_000)
    path = save_npz(portable_model(), tmp_path / "a.npz")
    with_member(path, "opt/bomb.npy", bomb, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 2_000_000
    with pytest.raises(CheckpointError, match="needs"):
        load_model(path)


def test_a_name_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    path = save_npz(portable_model(), tmp_path / "a.npz")
    with pytest.warns(UserWarning, match="Duplicate name"):
        with_member(path, f"{NORM}.npy", npy("(48,)", 192))
    with pytest.raises(CheckpointError, match="twice"):
        load_model(path)


def test_other_archives_say_what_they_are(tmp_path: Path) -> None:
    np.savez(tmp_path / "codec.npz", a=np.zeros(3, np.float32))
    with pytest.raises(CheckpointError, match="is not a PaliGemma of big_vision"):
        load_model(tmp_path / "codec.npz")
    save_arrays(tmp_path / "siglip.npz", {"params/img/embedding/kernel": np.zeros(3, np.float32)})
    with pytest.raises(CheckpointError, match="image encoder but no PaliGemma decoder"):
        load_model(tmp_path / "siglip.npz")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("model/data.pkl", b"\x80\x02.")
    (tmp_path / "model.pt").write_bytes(buffer.getvalue())
    with pytest.raises(CheckpointError, match="pickle"):
        load_model(tmp_path / "model.pt")


def test_a_window_is_an_option_here_too() -> None:
    model = load_model(FIXTURES / "bv2.npz", sliding_window=4096)
    assert model.config.decoder.sliding_layers == (True, False, True)
    with pytest.raises(OptionError, match="PaliGemma 1"):
        load_model(FIXTURES / "bv1.npz", sliding_window=4096)
