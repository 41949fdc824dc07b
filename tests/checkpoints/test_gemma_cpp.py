"""gemma.cpp's files: read as gemma.cpp reads them, written so that it can; damage is named."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from paligemma.checkpoints import convert as conversion
from paligemma.checkpoints import gemma_cpp
from paligemma.checkpoints.gemma_cpp import losses, open_sbs, write_sbs
from paligemma.checkpoints.open import open_checkpoint
from paligemma.checkpoints.rows import Contents, StoredRows, parameter_shapes, read_all
from paligemma.checkpoints.save import write_hf
from paligemma.checkpoints.sbs import (
    TENSOR,
    NewMatrix,
    SbsFile,
    WeightType,
    decode_sfp,
    encode_sfp,
    encode_structure,
    write_sbs_file,
)
from paligemma.config import GEMMA2_27B, PaliGemmaConfig, VisionConfig, release_config
from paligemma.errors import CheckpointError, OptionError
from paligemma.model.paligemma import PaliGemma
from tests.tiny import FAMILIES, TensorRows, tiny_config

FILES = Path(__file__).parents[1] / "vectors" / "interop" / "gemma_cpp"
OFFICIAL = {"t_bf16": "params_bf16", "t_sfp": "params_bf16", "t_pg1": "params_pg1"}
IMAGE_TOLERANCE = 1e-3
"""gemma.cpp computes image tokens with bfloat16 activations; they reach 0.4 to 0.5 here."""


WHOLE = (FILES / "t_sfp.sbs").read_bytes()
with closing(SbsFile(FILES / "t_sfp.sbs")) as _file:
    RANGES = _file.blobs
"""Offset and size of each blob."""


def values_of(path: Path) -> dict[str, Tensor]:
    with open_sbs(path) as checkpoint:
        return {name: read_all(rows) for name, rows in checkpoint.contents.parameters.items()}


def sfp_steps(values: Tensor, expected: Tensor) -> Tensor:
    """Return the errors in steps: there are 8 from a power of 2 to the next, 4 below 2^-7."""
    magnitudes = expected.double().abs()
    steps = magnitudes.log2().floor().exp2() / torch.where(magnitudes < 2**-7, 4, 8)
    return (values.double() - expected.double()).abs() / steps.clamp(min=2**-25)


def computable(config: PaliGemmaConfig, **vision_fields: Any) -> PaliGemmaConfig:
    """With the constants that gemma.cpp has in its code."""
    vision = replace(config.vision, layer_norm_eps=1e-6, **vision_fields)
    head_dim = config.decoder.head_dim
    decoder = replace(config.decoder, rope_theta=1e4, rms_norm_eps=1e-6, query_scale=head_dim**-0.5)
    return PaliGemmaConfig(vision=vision, decoder=decoder)


def random_contents(
    config: PaliGemmaConfig, dtype: torch.dtype = torch.bfloat16, **fields: Any
) -> Contents:
    generator = torch.Generator().manual_seed(5)
    rows: dict[str, StoredRows] = {
        name: TensorRows(name, (0.1 * torch.randn(shape, generator=generator)).to(dtype))
        for name, shape in parameter_shapes(config).items()
    }
    return Contents(config=config, parameters=rows, **fields)


def original(contents: Contents) -> dict[str, Tensor]:
    return {name: read_all(rows) for name, rows in contents.parameters.items()}


# --- files of an independent writer, loaded by gemma.cpp ---


@pytest.mark.parametrize("name", OFFICIAL)
def test_weights_are_those_before_encoding(name: str) -> None:
    ours = values_of(FILES / f"{name}.sbs")
    for parameter, bits in np.load(FILES / f"{OFFICIAL[name]}.npz").items():
        expected = torch.from_numpy(bits).view(torch.bfloat16)
        values = ours[parameter]
        if name != "t_bf16" and "decoder.blocks" in parameter and values.dim() == 2:
            assert (sfp_steps(values, expected) <= 0.5).all(), parameter
        else:
            assert torch.equal(values.bfloat16(), expected), parameter


@pytest.mark.parametrize("name", OFFICIAL)
def test_image_tokens_are_those_of_gemma_cpp(name: str) -> None:
    with open_sbs(FILES / f"{name}.sbs") as checkpoint:
        config = checkpoint.contents.config
        model = PaliGemma(config).eval()
        model.load_state_dict(
            {key: value.float() for key, value in original(checkpoint.contents).items()}
        )
    pixels = np.frombuffer((FILES / "img.ppm").read_bytes()[-28 * 28 * 3 :], dtype=np.uint8)
    image = torch.from_numpy(pixels.astype(np.float32) / 255 * 2 - 1).view(1, 28, 28, 3)
    with torch.no_grad():
        tokens = model.embed_images(image.permute(0, 3, 1, 2))[0]
    expected = np.fromfile(FILES / f"o_{name[2:]}.img", dtype=np.float32).reshape(tokens.shape)
    assert (tokens - torch.from_numpy(expected)).abs().max() < IMAGE_TOLERANCE


def test_the_config_follows_from_the_file() -> None:
    with open_sbs(FILES / "t_pg1.sbs") as checkpoint:
        decoder = checkpoint.contents.config.decoder
        assert (decoder.post_norms, decoder.attn_logit_softcap) == (False, None)
        assert (decoder.num_heads, decoder.num_kv_heads, decoder.head_dim) == (4, 1, 64)
        assert checkpoint.description["stored_dtypes"] == {"f32": 11, "bf16": 28, "sfp": 12}
        assert "8 bits" in checkpoint.notes[0]
    with open_sbs(FILES / "t_bf16.sbs", sliding_window=7) as checkpoint:
        decoder = checkpoint.contents.config.decoder
        assert (decoder.attn_logit_softcap, decoder.final_logit_softcap) == (50, 30)
        assert (decoder.sliding_window, decoder.sliding_layers) == (7, (True, False, True))
        assert not checkpoint.notes
        assert checkpoint.contents.tokenizer is None
    with pytest.raises(OptionError, match="PaliGemma 1"):
        open_sbs(FILES / "t_pg1.sbs", sliding_window=7)


@pytest.mark.parametrize("name", ["t_sfp", "t_pg1"])
def test_decoded_weights_encode_to_the_same(name: str, tmp_path: Path) -> None:
    with open_sbs(FILES / f"{name}.sbs") as checkpoint:
        write_sbs(checkpoint.contents, tmp_path / "again.sbs", "sfp")
    with (
        closing(SbsFile(FILES / f"{name}.sbs")) as theirs,
        closing(SbsFile(tmp_path / "again.sbs")) as ours,
    ):
        check_same_tensors(ours, theirs)


def check_same_tensors(ours: SbsFile, theirs: SbsFile) -> None:
    assert ours.tensors.keys() == theirs.tensors.keys()
    for tensor, matrix in theirs.tensors.items():
        assert ours.tensors[tensor].type == matrix.type
        assert ours.blobs[tensor][1] == theirs.blobs[tensor][1]
        assert torch.equal(
            ours.read(tensor, (), 0, matrix.shape[0]), theirs.read(tensor, (), 0, matrix.shape[0])
        ), tensor
    assert ours.size == theirs.size


# --- writing ---


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_round_trip_is_bit_exact(family: Any, dtype: torch.dtype, tmp_path: Path) -> None:
    config = computable(tiny_config(family))
    contents = random_contents(config, dtype, tokenizer=b"a tokenizer")
    write_sbs(contents, tmp_path / "m.sbs", dtype)
    assert not losses(contents, dtype)
    with open_sbs(tmp_path / "m.sbs") as checkpoint:
        assert checkpoint.contents.config == config
        assert checkpoint.contents.tokenizer == b"a tokenizer"
        assert checkpoint.dtype == dtype
        assert checkpoint.is_all_bfloat16 == (dtype == torch.bfloat16)
    values = values_of(tmp_path / "m.sbs")
    for name, expected in original(contents).items():
        assert torch.equal(values[name].to(dtype), expected), name


# A tokenizer that tokenizer.json cannot represent travels all the same.
@pytest.mark.filterwarnings("ignore:The folder has a tokenizer.model but no tokenizer.json")
def test_conversions_keep_every_bit_and_the_tokenizer(tmp_path: Path) -> None:
    """bfloat16 stays bfloat16, although gemma.cpp has biases and positions in float32."""
    contents = random_contents(computable(tiny_config()), tokenizer=b"a tokenizer")
    (tmp_path / "hf").mkdir()
    write_hf(contents, tmp_path / "hf", torch.bfloat16)
    (tmp_path / "hf" / "tokenizer.model").write_bytes(b"a tokenizer")
    for source, target in (("hf", "m.sbs"), ("m.sbs", "again")):
        with open_checkpoint(tmp_path / source) as checkpoint:
            plan = conversion.plan(
                checkpoint, tmp_path / target, to="hf" if target == "again" else None
            )
            assert (plan.dtype, plan.notes) == ("bfloat16", ())
            conversion.run(plan)
            assert conversion.verify(plan).num_equal == len(contents.parameters)
    assert not list(tmp_path.glob("*.model"))
    with open_checkpoint(tmp_path / "again") as checkpoint:
        assert checkpoint.contents.config == contents.config
        assert checkpoint.contents.tokenizer == b"a tokenizer"
        for name, expected in original(contents).items():
            values = read_all(checkpoint.contents.parameters[name])
            assert values.dtype == torch.bfloat16
            assert torch.equal(values, expected), name


def test_sfp_is_a_choice_for_gemma_cpp_alone(tmp_path: Path) -> None:
    with open_checkpoint(FILES / "t_bf16.sbs") as checkpoint:
        plan = conversion.plan(checkpoint, tmp_path / "m.sbs", dtype="sfp")
        assert plan.notes == (
            "The matrices of the decoder's layers are rounded to the 8 bits of SFP: about 4 "
            "significant binary digits.",
        )
        conversion.run(plan)
        comparison = conversion.verify(plan)
        assert len(comparison.differences) == 3 * 7
        assert max(comparison.differences.values()) < 1 / 16
        with pytest.raises(OptionError, match="'sfp'"):
            conversion.plan(checkpoint, tmp_path / "hf", to="hf", dtype="sfp")
        with pytest.raises(OptionError, match="float16"):
            conversion.plan(checkpoint, tmp_path / "x.sbs", dtype="float16")


def test_rounding_is_announced(tmp_path: Path) -> None:
    contents = random_contents(computable(tiny_config()), torch.float32)
    (note,) = losses(contents, torch.bfloat16)
    assert note.startswith("float32 weights are rounded to bfloat16")
    assert len(losses(contents, "sfp")) == 2
    write_sbs(contents, tmp_path / "m.sbs", torch.bfloat16)
    values = values_of(tmp_path / "m.sbs")
    for name, expected in original(contents).items():
        stays = name.endswith("position_embedding.weight") or (
            name.endswith("bias") and "norm" not in name
        )
        assert values[name].dtype == (torch.float32 if stays else torch.bfloat16), name
        assert torch.equal(values[name], expected.to(values[name].dtype)), name


def test_a_large_weight_gets_a_scale_and_encodes_to_itself(tmp_path: Path) -> None:
    contents = random_contents(computable(tiny_config()))
    rows = dict(contents.parameters)
    name = "decoder.blocks.0.mlp.down_proj.weight"
    large = read_all(rows[name]).float()
    large[3, 5] = 7.7
    rows[name] = TensorRows(name, large)
    write_sbs(replace(contents, parameters=rows), tmp_path / "m.sbs", "sfp")
    with closing(SbsFile(tmp_path / "m.sbs")) as file:
        scale = file.tensors["linear_w_0"].scale
    assert scale == pytest.approx(7.7 / 1.875, rel=2**-19)
    values = values_of(tmp_path / "m.sbs")
    assert values[name][3, 5] == pytest.approx(7.7, rel=1e-5)
    assert (sfp_steps(values[name] / scale, large / scale) <= 0.5).all()
    with open_sbs(tmp_path / "m.sbs") as checkpoint:
        write_sbs(checkpoint.contents, tmp_path / "again.sbs", "sfp")
    assert (tmp_path / "again.sbs").read_bytes() == (tmp_path / "m.sbs").read_bytes()


def test_the_config_names_what_gemma_cpp_needs() -> None:
    """Values of gemma.cpp's `ConfigPaliGemma2_10B_448`, and of `ConfigGemma2_27B`."""
    _, fields = gemma_cpp.read_blob(
        gemma_cpp.write_blob(release_config("paligemma2", "10b", 448), WeightType.sfp), FILES
    )
    assert (fields["model"], fields["wrapping"], fields["weight"]) == (13, 3, 3)
    assert fields["display_name"] == "PaliGemma2_10B_448"
    assert fields["attention_window_sizes"] == [4096, 8192] * 21
    assert (fields["att_cap"], fields["final_cap"], fields["query_scale"]) == (50, 30, 0)
    assert (fields["eos_id"], fields["secondary_eos_id"]) == (1, 107)
    config = release_config("paligemma2", "28b", 896)
    read, fields = gemma_cpp.read_blob(gemma_cpp.write_blob(config, WeightType.bf16), FILES)
    assert read == config
    assert read.decoder.query_scale == GEMMA2_27B.query_scale
    assert (fields["query_scale"], set(fields["attention_window_sizes"])) == (1, {8192})
    config = release_config("paligemma", "3b", 224)
    read, fields = gemma_cpp.read_blob(gemma_cpp.write_blob(config, WeightType.bf16), FILES)
    assert read == config
    assert (fields["att_cap"], fields["secondary_eos_id"]) == (0, 1)


def test_what_gemma_cpp_cannot_compute_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="rope_theta is 500"):
        write_sbs(random_contents(tiny_config()), tmp_path / "m.sbs")
    with pytest.raises(CheckpointError, match=r"no torch\.float16"):
        write_sbs(random_contents(computable(tiny_config())), tmp_path / "m.sbs", torch.float16)
    assert not list(tmp_path.iterdir())


def test_the_other_tensors_of_a_layer_are_read(tmp_path: Path) -> None:
    """`att_w`, `qkv1_w` and `qkv2_w`, `gating1_w` and `gating2_w`."""
    contents = random_contents(computable(tiny_config()))
    path, decoder = tmp_path / "m.sbs", contents.config.decoder
    names = [
        f"{base}_{i}"
        for base in ("att_w", "qkv1_w", "qkv2_w", "gating1_w", "gating2_w")
        for i in range(decoder.depth)
    ]
    target = gemma_cpp.layout(contents.config, names)
    shapes = target.shapes(parameter_shapes(contents.config))
    assert shapes["att_w_0"] == (decoder.width, decoder.num_heads * decoder.head_dim)
    assert shapes["qkv2_w_6"] == (2 * decoder.num_kv_heads * decoder.head_dim, decoder.width)
    assert shapes["gating2_w_0"] == (decoder.mlp_dim, decoder.width)
    assert not {"att_ein_0", "qkv_ein_0", "gating_ein_0"} & shapes.keys()
    tensors = {
        name: NewMatrix(
            type=WeightType.bf16,
            shape=(shape[0], shape[1]),
            pieces=partial(target.blocks, name, contents.parameters, torch.bfloat16),
        )
        for name, shape in shapes.items()
    }
    blob = gemma_cpp.write_blob(contents.config, WeightType.bf16)
    write_sbs_file(path, tensors, {"config": blob, "tokenizer": b"t"})
    values = values_of(path)
    for name, expected in original(contents).items():
        assert torch.equal(values[name], expected), name
    # Key and value rows alternate by head, as in the joined tensor.
    key = original(contents)["decoder.blocks.0.attention.k_proj.weight"]
    with closing(SbsFile(path)) as file:
        rows = file.read("qkv2_w_0", (), 0, 3 * decoder.head_dim)
    assert torch.equal(rows[: decoder.head_dim], key[: decoder.head_dim])
    assert torch.equal(rows[2 * decoder.head_dim :], key[decoder.head_dim : 2 * decoder.head_dim])


# --- types ---


def test_sfp_values_and_the_nearest_code() -> None:
    codes = np.arange(256, dtype=np.uint8)
    values = decode_sfp(codes).float()
    assert values[[0x80, 0x01, 0x7F]].tolist() == [0, 1.4901161193847656e-07, 1.875]
    assert (values[:127].diff() > 0).all()
    again = encode_sfp(values)
    assert again[0x80] == 0
    assert (again[codes != 0x80] == codes[codes != 0x80]).all()
    generator = torch.Generator().manual_seed(1)
    random = torch.randn(20000, generator=generator) * torch.logspace(-7, 0, 20000)
    halfway = (values[1:127] + values[:126]) / 2
    inputs = torch.cat((random, halfway, halfway.nextafter(torch.zeros(())), torch.tensor([9.0])))
    encoded = decode_sfp(encode_sfp(inputs)).float()
    best = (inputs[:, None].double() - values.double()).abs().amin(dim=1)
    assert torch.equal((inputs.double() - encoded.double()).abs(), best)
    assert (decode_sfp(encode_sfp(halfway)).float() > halfway).all()


def raw_file(path: Path, name: str, raw: bytes, **entry: Any) -> closing[SbsFile]:
    """A file with one tensor of these bytes."""
    fields = {"name": name, "element_bytes": 1, "num_elements": len(raw), "scale": 1.0, **entry}
    table = encode_structure(TENSOR, fields | {"stride": fields["cols"]})
    blobs = {name: raw, "toc": struct.pack(f"<{len(table)}I", *table)}
    path.unlink(missing_ok=True)
    path.write_bytes(version_1(blobs))
    return closing(SbsFile(path))


def version_1(blobs: Mapping[str, bytes]) -> bytes:
    """As gemma.cpp wrote files before August 2025."""
    start = -(-(16 + 32 * len(blobs)) // 256) * 256
    payload, ranges = b"", b""
    for content in blobs.values():
        ranges += struct.pack("<2Q", start + len(payload), len(content))
        payload += content + bytes(-len(content) % 256)
    size = -(-(start + len(payload)) // 65536) * 65536
    head = struct.pack("<4sIQ", b"SBS\n", len(blobs), size)
    head += b"".join(name.encode().ljust(16, b"\0") for name in blobs) + ranges
    return (head.ljust(start, b"\0") + payload).ljust(size, b"\0")


def test_i8_values_have_a_scale_and_a_zero_point_per_group(tmp_path: Path) -> None:
    """As `compression/int-inl.h` stores them; the last group is shorter."""
    generator = np.random.default_rng(2)
    codes = generator.integers(-128, 128, size=3 * 100).astype(np.int8)
    scales, zeros = torch.tensor([0.5, 0.25, 2.0]), torch.tensor([3.0, -7.0, 0.0])
    raw, expected = b"", []
    for i in range(3):
        group = codes[128 * i : 128 * (i + 1)]
        header = torch.stack((scales[i], zeros[i])).bfloat16().view(torch.int16).numpy()
        raw += header.tobytes() + group.tobytes()
        expected.append((torch.from_numpy(group).float() - zeros[i]) * scales[i])
    whole = torch.cat(expected).view(3, 100)
    with raw_file(tmp_path / "m.sbs", "w", raw, type=8, rows=3, cols=100) as file:
        assert torch.equal(file.read("w", (), 0, 3), whole)
        assert torch.equal(file.read("w", (), 1, 2), whole[1:2])


def test_nuq_values_are_looked_up_in_the_table_of_their_group(tmp_path: Path) -> None:
    generator = np.random.default_rng(3)
    tables = generator.integers(0, 256, size=(8, 16)).astype(np.uint8)
    indices = generator.integers(0, 16, size=8 * 256).astype(np.uint8)
    raw = tables.tobytes() + (indices[::2] | (indices[1::2] << 4)).tobytes()
    whole = 2 * decode_sfp(tables[np.arange(8).repeat(256), indices]).float().view(16, 128)
    with raw_file(tmp_path / "m.sbs", "w", raw, type=4, rows=16, cols=128, scale=2.0) as file:
        assert torch.equal(file.read("w", (), 0, 16), whole)
        assert torch.equal(file.read("w", (), 3, 9), whole[3:9])
        assert torch.equal(file.read("w", (5,), 1, 128), whole[5, 1:])
    with pytest.raises(CheckpointError, match="multiple of 1024"):
        raw_file(tmp_path / "m.sbs", "w", bytes(16 + 128), type=4, rows=2, cols=128)


def test_files_of_the_first_version_are_read(tmp_path: Path) -> None:
    (tmp_path / "m.sbs").write_bytes(edit(lambda _: None))
    with open_sbs(tmp_path / "m.sbs") as checkpoint:
        assert checkpoint.description["version"] == "gemma.cpp, container 1"
    expected = values_of(FILES / "t_sfp.sbs")
    for name, values in values_of(tmp_path / "m.sbs").items():
        assert torch.equal(values, expected[name])


# --- damage ---


def edit(change: Callable[[dict[str, bytearray]], None]) -> bytes:
    blobs = {name: bytearray(WHOLE[start : start + size]) for name, (start, size) in RANGES.items()}
    change(blobs)
    return version_1({name: bytes(content) for name, content in blobs.items()})


def patched(offset: int, format: str, *values: int) -> bytes:
    """A V2 file with other numbers from an offset on, negative from its end."""
    raw = bytearray(WHOLE)
    struct.pack_into(format, raw, offset % len(raw), *values)
    return bytes(raw)


def in_blob(name: str, offset: int, format: str, *values: float) -> bytes:
    return edit(lambda blobs: struct.pack_into(format, blobs[name], offset, *values))


def toc_word(word: int, format: str, value: float) -> bytes:
    """Of the first entry, `c_embedding`: length, name (1 + 3 words), type, 1, 2, rows ..."""
    return in_blob("toc", 4 * word, format, value)


def swapped_blobs() -> bytes:
    def change(blobs: dict[str, bytearray]) -> None:
        blobs["linear_w_0"], blobs["qkv_ein_0"] = blobs["qkv_ein_0"], blobs["linear_w_0"]

    return edit(change)


def without(name: str) -> bytes:
    def change(blobs: dict[str, bytearray]) -> None:
        del blobs[name]

    return edit(change)


def renamed_tensor() -> bytes:
    """`att_ein_0` as `att_ein_9`, in the directory and in the table."""
    raw = edit(lambda _: None)
    return raw.replace(b"att_ein_0", b"att_ein_9")


DIRECTORY = -16 - 16 * len(RANGES)  # of offsets and sizes
DAMAGED: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "has only 0 bytes"),
    "a header alone": (lambda: WHOLE[:16], "has only 16 bytes"),
    "cut": (lambda: WHOLE[:-65536], "its end is missing"),
    "cut by one byte": (lambda: WHOLE[:-1], "its end is missing"),
    "bytes at the end": (lambda: WHOLE + bytes(16), "its end is missing"),
    "another magic": (lambda: patched(0, "<4s", b"GGUF"), "starts with b'GGUF'"),  # type: ignore[arg-type]
    "another size": (lambda: patched(-8, "<Q", 2**40), "header says 1099511627776"),
    "no blobs": (lambda: patched(-12, "<I", 0), "claims to contain 0"),
    "too many blobs": (lambda: patched(-12, "<I", 2**14), "claims to contain 16384"),
    "2^32 blobs": (lambda: patched(-12, "<I", 2**32 - 1), "claims to contain 4294967295"),
    "a blob of 2^63 bytes": (lambda: patched(DIRECTORY + 8, "<Q", 2**63), "'c_embedding' should"),
    "a blob beyond the end": (lambda: patched(DIRECTORY, "<Q", 2**40), "'c_embedding' should"),
    "blobs overlap": (lambda: patched(DIRECTORY + 16, "<Q", 256), "'c_final_norm' should"),
    "an empty blob": (lambda: patched(DIRECTORY + 24, "<Q", 0), "'c_final_norm' should"),
    "a name twice": (
        lambda: patched(DIRECTORY - 16 * (len(RANGES) - 1), "<16s", b"c_embedding"),  # type: ignore[arg-type]
        "'c_embedding' twice",
    ),
    "no name": (lambda: patched(DIRECTORY - 16, "<2Q", 0, 0), "a blob is named b''"),
    "too many rows": (lambda: toc_word(8, "<I", 2**31), "not 2147483648 rows"),
    "transposed": (lambda: in_blob("toc", 32, "<IIfI", 128, 512, 1.0, 512), "c_embedding is (128"),
    "another stride": (lambda: toc_word(11, "<I", 1), "one after the other"),
    "another type": (lambda: toc_word(5, "<I", 1), "not 512 rows of 128 f32"),
    "an unknown type": (lambda: toc_word(5, "<I", 99), "type 99"),
    "a scale of infinity": (lambda: toc_word(10, "<f", float("inf")), "NaN or infinity"),
    "a scale of NaN": (lambda: toc_word(10, "<f", float("nan")), "NaN or infinity"),
    "a scale below 0": (lambda: toc_word(10, "<f", -1.0), "scale of 'c_embedding' is -1"),
    "a scale of bf16": (lambda: toc_word(10, "<f", 2.0), "expected 1"),
    "a long entry": (lambda: toc_word(0, "<I", 2**32 - 1), "ends beyond its blob"),
    "a long name": (lambda: toc_word(1, "<I", 2**20), "a string is too long"),
    "swapped blobs": (swapped_blobs, "not 128 rows of 192 sfp"),
    "no config": (lambda: without("config"), "has no 'config'"),
    "no toc": (lambda: without("toc"), "has no 'config' or no 'toc'"),
    "a tensor without blob": (lambda: without("qkv_ein_1"), "'qkv_ein_1', which it does not"),
    "a renamed tensor": (renamed_tensor, "missing: att_ein_0"),
    "half a word": (lambda: edit(lambda blobs: blobs["toc"].append(0)), "multiple of 4"),
    "no vision encoder": (
        lambda: edit(lambda blobs: blobs.update(config=blobs["config"][: 4 * 80])),
        "ends beyond its blob",
    ),
    "another width": (lambda: in_blob("config", 4 * 12, "<I", 64), "model_dim is 128; expected 64"),
    "a huge width": (lambda: in_blob("config", 4 * 12, "<I", 2**31), "model_dim is 2147483648"),
    "another vocabulary": (lambda: in_blob("config", 4 * 13, "<I", 500), "c_embedding is"),
    "fewer layers": (lambda: in_blob("config", 4 * 11, "<I", 2), "num_layers is 2"),
    "many layers": (lambda: in_blob("config", 4 * 21, "<I", 10**6), "list is longer"),
    "Gemma 3": (lambda: in_blob("config", 4 * 9, "<I", 2), "wrapping is 2"),
    "a soft cap of NaN": (lambda: in_blob("config", 4 * 16, "<f", float("nan")), "NaN"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_file_is_refused_with_its_name(kind: str, tmp_path: Path) -> None:
    content, message = DAMAGED[kind]
    path = tmp_path / "damaged.sbs"
    path.write_bytes(content())
    with pytest.raises(CheckpointError) as error:
        open_sbs(path)
    assert message in str(error.value)
    assert "damaged.sbs" in str(error.value)


def test_files_from_before_2025_are_refused_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "old.sbs"
    path.write_bytes(version_1({"Bc_embedding": b"1234", "$att_ein_0": b"12"}))
    with pytest.raises(CheckpointError, match="migrate_weights"):
        open_sbs(path)


def test_a_file_that_is_cut_while_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "m.sbs"
    path.write_bytes(WHOLE)
    with open_sbs(path) as checkpoint:
        path.write_bytes(WHOLE[:100_000])
        with pytest.raises(CheckpointError, match="truncated while being read"):
            original(checkpoint.contents)


def test_a_writer_never_replaces_a_file(tmp_path: Path) -> None:
    (tmp_path / "m.sbs").write_bytes(b"precious")
    with pytest.raises(FileExistsError):
        write_sbs(random_contents(computable(tiny_config())), tmp_path / "m.sbs")
    assert (tmp_path / "m.sbs").read_bytes() == b"precious"


def test_infinite_weights_have_no_sfp(tmp_path: Path) -> None:
    contents = random_contents(computable(tiny_config()))
    rows = dict(contents.parameters)
    name = "decoder.blocks.0.mlp.down_proj.weight"
    rows[name] = TensorRows(name, torch.full(rows[name].shape, float("inf")))
    with pytest.raises(CheckpointError, match="NaN or infinity"):
        write_sbs(replace(contents, parameters=rows), tmp_path / "m.sbs", "sfp")


def test_other_dimensions(tmp_path: Path) -> None:
    """One head; one layer; as many key/value heads as heads; a patch size of 2."""
    config = computable(
        tiny_config("paligemma", num_kv_heads=8, depth=1),
        resolution=6,
        patch_size=2,
        depth=1,
        num_heads=1,
    )
    assert config.vision == VisionConfig(
        resolution=6, patch_size=2, width=27, depth=1, mlp_dim=44, num_heads=1
    )
    contents = random_contents(config)
    write_sbs(contents, tmp_path / "m.sbs")
    values = values_of(tmp_path / "m.sbs")
    for name, expected in original(contents).items():
        assert torch.equal(values[name].bfloat16(), expected), name
