from __future__ import annotations

import io
import json
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from paligemma.config import MaskCodecConfig
from paligemma.errors import CheckpointError, InputError
from paligemma.tasks import seg_codec
from paligemma.tasks.seg_codec import (
    MaskCodec,
    crop_mask,
    load_mask_codec_npz,
    paste_mask,
    save_mask_codec_npz,
)

TINY = MaskCodecConfig(num_codes=5, code_dim=6, width=7, stem_widths=(2, 3, 4, 8))


@pytest.fixture(scope="module")
def codec() -> MaskCodec:
    torch.manual_seed(0)
    return MaskCodec(TINY)


@pytest.fixture(scope="module")
def arrays(codec: MaskCodec) -> dict[str, np.ndarray]:
    return {name: tensor.numpy().copy() for name, tensor in codec.state_dict().items()}


def npz(arrays: dict[str, np.ndarray]) -> io.BytesIO:
    file = io.BytesIO()
    np.savez(file, **dict[str, Any](arrays))
    file.seek(0)
    return file


def test_the_released_file_has_our_names_and_shapes(shared_data: Path) -> None:
    cases = json.loads((shared_data / "segmentation" / "cases.json").read_text())
    with torch.device("meta"):
        ours = {name: list(t.shape) for name, t in MaskCodec().state_dict().items()}
    for name, shape in cases["vae_oid_npz"]["tensor_names"].items():
        for digit in "02" if "{0,2}" in name else " ":
            assert ours[name.replace("{0,2}", digit)] == shape
    # float32 numbers, and a few dozen headers: the size of the released file.
    num_bytes = 4 * sum(int(np.prod(shape)) for shape in ours.values())
    assert 0 < cases["vae_oid_npz"]["size_bytes"] - num_bytes < 300_000


def test_encoding_gives_sixteen_codes_row_by_row(codec: MaskCodec) -> None:
    masks = torch.zeros(3, 64, 64)
    masks[1, :, 32:] = 1
    codes = codec.encode_masks(masks)
    assert codes.shape == (3, 16)
    assert codes.dtype == torch.int64
    features = codec.encoder(2 * (masks[:, None] - 0.5))
    for n, row, column in ((0, 0, 0), (1, 0, 3), (1, 3, 0), (2, 2, 1)):
        distances = (codec.codebook - features[n, :, row, column]).square().sum(1)
        assert codes[n, 4 * row + column] == distances.argmin()


def test_decoding_puts_each_code_in_its_place(codec: MaskCodec) -> None:
    codes = torch.zeros(2, 16, dtype=torch.int64)
    codes[1, 3] = 4  # upper right
    changed = (codec.decode_masks(codes)[0] - codec.decode_masks(codes)[1]).abs()
    assert changed.shape == (64, 64)
    assert changed[:16, 48:].max() > 0
    # Kernels reach over the whole grid, but what is far away hardly changes.
    assert changed[48:, :16].max() < 0.01 * changed[:16, 48:].max()


def test_no_masks_are_fine(codec: MaskCodec) -> None:
    assert codec.encode_masks(torch.zeros(0, 64, 64)).shape == (0, 16)
    assert codec.decode_masks(torch.zeros(0, 16, dtype=torch.int64)).shape == (0, 64, 64)


def test_other_shapes_and_codes_are_refused(codec: MaskCodec) -> None:
    with pytest.raises(InputError, match="crop_mask"):
        codec.encode_masks(torch.zeros(64, 64))
    with pytest.raises(InputError, match="16"):
        codec.decode_masks(torch.zeros(2, 15, dtype=torch.int64))
    with pytest.raises(InputError, match="0 to 4"):
        codec.decode_masks(torch.full((1, 16), 5))


def test_a_mask_is_pasted_into_whole_pixels_of_its_box() -> None:
    mask = paste_mask(np.ones((64, 64), np.float32), (2.9, 1.0, 6.2, 3.99), (8, 5))
    assert np.argwhere(mask).tolist() == [[y, x] for y in (1, 2) for x in (2, 3, 4, 5)]


@pytest.mark.parametrize("side", [97, 480, 1023])
def test_a_box_edge_on_a_whole_pixel_is_not_lost_to_rounding(side: int) -> None:
    for pixel in range(1, side):
        # the way an edge is computed when its bin falls on a whole pixel
        edge = (pixel / side) * 224 / 224 * side
        mask = paste_mask(np.ones((64, 64), np.float32), (0, 0, edge, 1), (side, 1))
        assert mask.sum() == pixel


def test_boxes_beyond_the_image_or_empty_leave_no_trace_outside() -> None:
    ones = np.ones((64, 64), np.float32)
    assert paste_mask(ones, (-5, -5, 50, 50), (8, 5)).all()
    assert not paste_mask(ones, (3.1, 0, 3.9, 5), (8, 5)).any()
    assert not paste_mask(ones, (6, 0, 2, 5), (8, 5)).any()


def test_the_mask_of_a_wheel_covers_its_box() -> None:
    rows, columns = np.mgrid[:64, :64]
    radius = np.hypot(rows - 31.5, columns - 31.5)
    mask64 = np.clip((31 - radius) / 4, -1, 1).astype(np.float32)  # a disc with a soft rim
    x1, y1, x2, y2 = 62, 254, 140, 348
    mask = paste_mask(mask64, (x1, y1, x2, y2), (448, 448))
    assert not mask[:y1].any()
    assert not mask[y2:].any()
    assert not mask[:, :x1].any()
    assert not mask[:, x2:].any()
    share = mask[y1:y2, x1:x2].mean()
    assert share == pytest.approx((mask64 > 0).mean(), abs=0.02)
    # A wheel fills about pi / 4 of its box.
    assert 0.6 < share < 0.95


def test_crop_and_paste_are_inverse_up_to_resizing() -> None:
    rows, columns = np.mgrid[:300, :400]
    circle = (rows - 150) ** 2 + (columns - 220) ** 2 < 80**2
    box = (140 / 400, 70 / 300, 300 / 400, 230 / 300)
    cut = crop_mask(circle, box)
    assert cut.shape == (64, 64)
    assert cut.dtype == np.float32
    assert 0 <= cut.min() < cut.max() <= 1
    back = paste_mask(2 * cut - 1, (140, 70, 300, 230), (400, 300))
    assert (back & circle).sum() / (back | circle).sum() > 0.98


def test_cropping_averages_when_it_shrinks() -> None:
    stripes = np.zeros((640, 640), dtype=bool)
    stripes[:, ::2] = True
    assert np.abs(crop_mask(stripes, (0, 0, 1, 1)) - 0.5).max() < 0.1


@pytest.mark.parametrize("box", [(0.5, 0, 0.5, 1), (0.501, 0, 0.502, 1), (2, 2, 3, 3)])
def test_an_empty_crop_is_refused(box: tuple[float, float, float, float]) -> None:
    with pytest.raises(InputError, match="no pixel"):
        crop_mask(np.ones((10, 10), dtype=bool), box)


def test_a_mask_with_channels_is_refused() -> None:
    with pytest.raises(InputError, match="height, width"):
        crop_mask(np.ones((10, 10, 3), dtype=bool), (0, 0, 1, 1))


def test_a_saved_codec_loads_as_it_was(codec: MaskCodec, tmp_path: Path) -> None:
    path = tmp_path / "codec.npz"
    save_mask_codec_npz(codec, path)
    loaded = load_mask_codec_npz(path)
    assert loaded.config == TINY
    assert not loaded.training
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, codec.state_dict()[name]), name
    with path.open("rb") as file:
        assert load_mask_codec_npz(file).config == TINY
    assert [p.name for p in tmp_path.iterdir()] == ["codec.npz"]


def test_a_failed_save_leaves_the_old_file(
    codec: MaskCodec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "codec.npz"
    path.write_bytes(b"old")

    def full(*args: object, **kwargs: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="No space"):
        save_mask_codec_npz(codec, path)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["codec.npz"]


def test_averages_of_training_are_ignored(arrays: dict[str, np.ndarray]) -> None:
    extra = {"_vq_vae._ema_w": np.zeros((5, 6)), "_vq_vae._ema_cluster_size": np.zeros(5)}
    assert load_mask_codec_npz(npz(arrays | extra)).config == TINY


@pytest.mark.parametrize(
    "change",
    [
        lambda a: a.astype(np.float64),
        lambda a: a.astype(">f4"),
        np.asfortranarray,
    ],
)
def test_other_layouts_of_the_same_numbers_load(
    change: Callable[[np.ndarray], np.ndarray], arrays: dict[str, np.ndarray]
) -> None:
    loaded = load_mask_codec_npz(npz({name: change(array) for name, array in arrays.items()}))
    for name, tensor in loaded.state_dict().items():
        assert np.array_equal(tensor.numpy(), arrays[name])


WEIGHT = "decoder.2.net.0.weight"


def with_member(arrays: dict[str, np.ndarray], name: str, data: bytes) -> io.BytesIO:
    """The file with one member replaced by raw bytes."""
    file = npz({key: array for key, array in arrays.items() if f"{key}.npy" != name})
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr(name, data)
    file.seek(0)
    return file


def npy(header: dict[str, object], data: bytes = b"") -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue() + data


def objects_in(arrays: dict[str, np.ndarray]) -> io.BytesIO:
    header = {"descr": "|O", "fortran_order": False, "shape": (7, 7, 3, 3)}
    return with_member(arrays, f"{WEIGHT}.npy", npy(header, pickle.dumps([1])))


def huge_claim(arrays: dict[str, np.ndarray]) -> io.BytesIO:
    header = {"descr": "<f4", "fortran_order": False, "shape": (400_000, 1_000_000)}
    return with_member(arrays, "_vq_vae._embedding.npy", npy(header))


def large_claim(arrays: dict[str, np.ndarray]) -> io.BytesIO:
    header = {"descr": "<f4", "fortran_order": False, "shape": (65_536, 65_536)}
    return with_member(arrays, "_vq_vae._embedding.npy", npy(header))


def zip_bomb(arrays: dict[str, np.ndarray]) -> io.BytesIO:
    header = {"descr": "<f4", "fortran_order": False, "shape": (7, 7, 3, 3)}
    file = npz({key: array for key, array in arrays.items() if key != WEIGHT})
    with zipfile.ZipFile(file, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{WEIGHT}.npy", npy(header, bytes(50_000_000)))
    file.seek(0)
    return file


def truncated(arrays: dict[str, np.ndarray]) -> io.BytesIO:
    header = {"descr": "<f4", "fortran_order": False, "shape": (7, 7, 3, 3)}
    return with_member(arrays, f"{WEIGHT}.npy", npy(header, bytes(100)))


def twice(arrays: dict[str, np.ndarray]) -> io.BytesIO:
    file = npz(arrays)
    with (
        pytest.warns(UserWarning, match="Duplicate name"),
        zipfile.ZipFile(file, "a") as archive,
    ):
        archive.writestr(f"{WEIGHT}.npy", b"")
    file.seek(0)
    return file


def with_nan(arrays: dict[str, np.ndarray]) -> io.BytesIO:
    broken = arrays[WEIGHT].copy()
    broken[0, 0, 0, 0] = np.nan
    return npz(arrays | {WEIGHT: broken})


def damaged(arrays: dict[str, np.ndarray]) -> io.BytesIO:
    data = bytearray(npz(arrays).getvalue())
    data[2000:2040] = bytes(40)
    return io.BytesIO(bytes(data))


def encrypted(arrays: dict[str, np.ndarray]) -> io.BytesIO:
    data = npz(arrays).getvalue()
    # The flags of each entry in the central directory.
    return io.BytesIO(re.sub(rb"(PK\x01\x02.{4}).", b"\\g<1>\x01", data, flags=re.DOTALL))


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        (objects_in, "object"),
        (huge_claim, "_embedding"),
        (large_claim, "parameters in all"),
        (zip_bomb, "does not have the"),
        (truncated, "does not have the"),
        (twice, "twice"),
        (with_nan, "NaN"),
        (damaged, "mask codec"),
        (lambda a: with_member(a, "../evil.npy", b""), r"\.\./evil"),
        (lambda a: with_member(a, "/etc/decoder.0.weight.npy", b""), "/etc/"),
        (lambda a: with_member(a, "readme.txt", b"hello"), "readme.txt"),
        (encrypted, "is encrypted"),
        (lambda a: with_member(a, "decoder.0.weight", b""), "decoder.0.weight"),
        (lambda a: with_member(a, f"{WEIGHT}.npy", b""), "mask codec"),
        (lambda a: with_member(a, f"{WEIGHT}.npy", b"\x93NUMPY\x09\x00"), "version"),
        (lambda a: npz({k: v for k, v in a.items() if k != WEIGHT}), WEIGHT),
        (lambda a: npz({k: v for k, v in a.items() if "encoder" not in k}), "encoder"),
        (lambda a: npz(a | {WEIGHT: a[WEIGHT][:5]}), WEIGHT),
        (lambda a: npz(a | {"_vq_vae._embedding": np.zeros((0, 6))}), "_embedding"),
        (lambda a: npz(a | {WEIGHT: a[WEIGHT].astype(np.int64)}), "int64"),
        (lambda a: io.BytesIO(b"not a zip"), "vae-oid.npz"),
        (lambda a: io.BytesIO(), "vae-oid.npz"),
    ],
)
def test_hostile_or_broken_files_are_refused(
    attack: Callable[[dict[str, np.ndarray]], io.BytesIO],
    message: str,
    arrays: dict[str, np.ndarray],
) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_mask_codec_npz(attack(arrays))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"absent\.npz"):
        load_mask_codec_npz(tmp_path / "absent.npz")


def test_a_codec_that_does_not_exist_or_that_torch_cannot_hold_is_not_damaged(
    arrays: dict[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CheckpointError, match="cannot be read: No such file"):
        load_mask_codec_npz(tmp_path / "none.npz")
    monkeypatch.setattr(
        seg_codec, "_read_array", Mock(side_effect=RuntimeError("not enough memory"))
    )
    with pytest.raises(RuntimeError, match="not enough memory"):
        load_mask_codec_npz(npz(arrays))
