"""Pictures: what each kind becomes, what is refused, and how boxes find their way back."""

from __future__ import annotations

import base64
import io
import json
import os
import random
import re
import struct
import subprocess
import sys
import time
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote_from_bytes

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import (
    EpsImagePlugin,
    FitsImagePlugin,
    IcoImagePlugin,
    Image,
    ImageFile,
    PsdImagePlugin,
    TiffImagePlugin,
)

from paligemma.errors import ImageError, OptionError
from paligemma.processor.image import (
    MAX_FILE_BYTES,
    MAX_SIDE,
    ImageSource,
    ImageTransform,
    load_image,
    pixel_array,
    read_size_wh,
    resize_to_square,
)

TURNED_HEIC = Path(__file__).with_name("turned.heic")
RED = (255, 0, 0)
WHITE = (255, 255, 255)


def noise(width: int, height: int, channels: int = 3) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


def saved(image: Image.Image, file_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def png(width: int, height: int, bit_depth: int, color_type: int, rows: bytes) -> bytes:
    """A PNG from scratch: `rows` are the filtered scan lines."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        checksum = zlib.crc32(kind + body)
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", width, height, bit_depth, color_type, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows, 1))
        + chunk(b"IEND", b"")
    )


def first_pixel(source: Any) -> Any:
    return load_image(source).rgb.getpixel((0, 0))


def palette_with_transparency() -> Image.Image:
    image = Image.new("P", (2, 2), 1)
    image.putpalette([0, 0, 0, *RED])
    image.info["transparency"] = 1
    return image


def gray16(mode: str, value: int) -> Image.Image:
    image = Image.new("I;16", (2, 2), value)
    return image if mode == "I;16" else image.convert(mode)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("RGB", (2, 2), RED), RED),
        (Image.new("1", (2, 2), 1), WHITE),
        (Image.new("L", (2, 2), 100), (100, 100, 100)),
        (Image.new("LA", (2, 2), (0, 0)), WHITE),
        (Image.new("LA", (2, 2), (100, 255)), (100, 100, 100)),
        (Image.new("RGBA", (2, 2), (*RED, 0)), WHITE),
        (Image.new("RGBA", (2, 2), (*RED, 255)), RED),
        (Image.new("RGBA", (2, 2), (*RED, 128)), (255, 127, 127)),
        (palette_with_transparency(), WHITE),
        (Image.new("CMYK", (2, 2), (0, 255, 255, 0)), RED),
        (Image.new("YCbCr", (2, 2), (76, 85, 255)), (254, 0, 0)),
        (Image.new("HSV", (2, 2), (0, 255, 255)), RED),
        (gray16("I;16", 40_000), (156, 156, 156)),
        (gray16("I", 65_535), WHITE),
        (Image.new("F", (2, 2), 0.5), (128, 128, 128)),
    ],
    ids=lambda value: value.mode if isinstance(value, Image.Image) else None,
)
def test_each_mode_becomes_what_a_person_sees(image: Image.Image, expected: Any) -> None:
    assert first_pixel(image) == expected


def test_files_of_rare_kinds_become_what_a_person_sees() -> None:
    cmyk = load_image(saved(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG")).rgb
    assert np.abs(np.asarray(cmyk).astype(int) - RED).max() <= 3
    assert first_pixel(saved(gray16("I;16", 40_000), "PNG")) == (156, 156, 156)
    color16 = png(1, 1, 16, 2, b"\0" + struct.pack(">HHH", 40_000, 257, 65_535))
    assert first_pixel(color16) == (156, 1, 255)
    assert first_pixel(saved(palette_with_transparency(), "GIF", transparency=1)) == WHITE
    rgb_keyed = saved(Image.new("RGB", (2, 2), RED), "PNG", transparency=RED)
    assert first_pixel(rgb_keyed) == WHITE
    gray_keyed = saved(Image.new("L", (2, 2), 9), "PNG", transparency=9)
    assert first_pixel(gray_keyed) == WHITE
    gray16_keyed = saved(gray16("I;16", 900), "PNG", transparency=900)
    assert first_pixel(gray16_keyed) == WHITE
    profiled = saved(Image.new("RGB", (2, 2), RED), "PNG", icc_profile=b"not a profile")
    assert first_pixel(profiled) == RED


def test_numbers_without_a_meaning_are_refused() -> None:
    with pytest.raises(ImageError, match="floats must lie in"):
        load_image(Image.new("F", (2, 2), 1.5))
    with pytest.raises(ImageError, match="65535"):
        load_image(Image.new("I", (2, 2), 70_000))
    with pytest.raises(ImageError, match="4 values that are not numbers"):
        load_image(np.full((2, 2), np.nan))
    for array in (np.full((2, 2), np.nan), np.full((2, 2), np.inf), np.full((2, 2), -0.1)):
        with pytest.raises(ImageError, match="floats must lie in"):
            load_image(array)


@pytest.mark.parametrize(
    "tensor", [torch.zeros(3, 4, 4, device="meta"), torch.zeros(3, 4, 4).to_sparse()]
)
def test_a_tensor_without_plain_values_is_refused(tensor: torch.Tensor) -> None:
    with pytest.raises(ImageError, match="no plain values"):
        load_image(tensor)


def test_an_image_that_was_closed_before_it_was_read_is_not_called_damaged(
    tmp_path: Path,
) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        pass
    image.close()
    with pytest.raises(ImageError, match="closed before it was read"):
        load_image(image)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.full((2, 3), 7, np.uint8), (7, 7, 7)),
        (np.full((2, 3, 3), RED, np.uint8), RED),
        (np.full((2, 3, 4), (*RED, 0), np.uint8), WHITE),
        (np.ones((2, 3), np.bool_), WHITE),
        (np.full((2, 3, 3), (1.0, 0.5, 0.0), np.float32), (255, 128, 0)),
        (np.full((2, 3), 0.5, np.float64), (128, 128, 128)),
        (np.full((2, 3), 0.5, np.float16), (128, 128, 128)),
        (np.full((4, 6, 3), RED, np.uint8)[::2, ::2], RED),
    ],
)
def test_arrays_of_every_kind_are_read(array: NDArray[Any], expected: Any) -> None:
    assert first_pixel(array) == expected
    assert load_image(array).size_wh == (3, 2)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((3, 8, 8), np.uint8),
        np.zeros((1, 8, 8, 3), np.uint8),
        np.zeros(8, np.uint8),
        np.zeros((8, 8), object),
        np.zeros((0, 8, 3), np.uint8),
        np.zeros((1, 65_536), np.uint8),
        np.full((8, 8), -1, np.int64),
        np.full((8, 8), 65_536, np.int64),
        np.zeros((8, 8, 2), np.uint8),
        np.zeros((8, 8), np.complex64),
    ],
    ids=lambda array: f"{array.shape}-{array.dtype}",
)
def test_arrays_that_could_mean_two_things_are_refused(array: NDArray[Any]) -> None:
    with pytest.raises(ImageError):
        load_image(array)


def test_other_objects_are_refused() -> None:
    for source in (None, 3, [[1, 2]]):
        with pytest.raises(ImageError, match=type(source).__name__):
            load_image(source)  # type: ignore[arg-type]


def test_e8_file_bytes_array_and_pil_image_are_one_image(tmp_path: Path) -> None:
    pixels = noise(13, 9)
    path = tmp_path / "picture.png"
    Image.fromarray(pixels).save(path)
    with Image.open(path) as opened:
        sources: list[ImageSource] = [
            path,
            str(path),
            path.read_bytes(),
            pixels,
            opened,
            Image.fromarray(pixels),
        ]
        for source in sources:
            loaded = load_image(source)
            assert np.array_equal(np.asarray(loaded.rgb), pixels)
            assert loaded.size_wh == (13, 9)
    assert load_image(path).name == "picture.png"


def test_the_callers_image_and_the_loaded_one_are_apart() -> None:
    image, pixels = Image.new("RGB", (2, 2), RED), np.full((2, 2, 3), RED, np.uint8)
    loaded = [load_image(image), load_image(pixels)]
    image.paste(WHITE, (0, 0, 2, 2))
    pixels[:] = 255
    assert all(one.rgb.getpixel((0, 0)) == RED for one in loaded)


def upright(stored: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """EXIF's own table: what is shown of what is stored."""
    shown = {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.transpose(1, 0, 2),
        6: np.rot90(stored, -1),
        7: stored[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(stored, 1),
    }
    return shown[orientation]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP"])
def test_a_turned_arrow_is_shown_upright(file_format: str, orientation: int) -> None:
    arrow = np.full((32, 64, 3), 255, np.uint8)
    arrow[8:16, :] = 0  # a shaft above the middle, and one barb at its left end
    arrow[16:32, :16] = 0
    image = Image.fromarray(arrow)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options: dict[str, bool | int] = {"lossless": True} if file_format == "WEBP" else {}
    if file_format == "JPEG":
        options = {"quality": 100}
    data = saved(image, file_format, exif=exif.tobytes(), **options)
    expected = upright(arrow, orientation)
    loaded = load_image(data)
    assert loaded.size_wh == (expected.shape[1], expected.shape[0]) == read_size_wh(data)
    assert np.abs(np.asarray(loaded.rgb).astype(int) - expected).max() <= 8
    # Once, however often the picture passes through.
    assert np.array_equal(np.asarray(load_image(loaded.rgb).rgb), np.asarray(loaded.rgb))
    with Image.open(io.BytesIO(data)) as opened:
        assert load_image(opened).rgb == loaded.rgb


def test_the_size_alone_comes_from_any_source(tmp_path: Path) -> None:
    image = Image.fromarray(noise(9, 5))
    image.save(tmp_path / "1.png")
    for source in (tmp_path / "1.png", str(tmp_path / "1.png"), image, np.asarray(image)):
        assert read_size_wh(source) == (9, 5)
    for unreadable in (b"no picture", tmp_path / "none.png"):
        with pytest.raises(ImageError):
            read_size_wh(unreadable)


def test_damaged_exif_leaves_the_image_as_stored() -> None:
    pixels = noise(8, 8)
    for damaged in (b"", b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", os.urandom(40)):
        data = saved(Image.fromarray(pixels), "PNG", exif=damaged or b"\0")
        assert np.array_equal(np.asarray(load_image(data).rgb), pixels)
    exif = Image.Exif()
    exif[0x0112] = 77
    data = saved(Image.fromarray(pixels), "PNG", exif=exif.tobytes())
    assert np.array_equal(np.asarray(load_image(data).rgb), pixels)


def test_the_first_frame_is_shown_and_frames_are_not_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    frames = [Image.new("P", (4, 4), i % 250) for i in range(3000)]
    for frame in frames:
        frame.putpalette([v for i in range(256) for v in (i, 255 - i, 7)])
    gif = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    few = [Image.new("RGB", (4, 4), (i * 20, 0, 0)) for i in range(1, 9)]
    webp = saved(few[0], "WEBP", save_all=True, append_images=few[1:], lossless=True)
    apng = saved(few[0], "PNG", save_all=True, append_images=few[1:])

    def counted(_: object) -> int:
        raise AssertionError("frames were counted")

    from PIL.GifImagePlugin import GifImageFile

    monkeypatch.setattr(GifImageFile, "n_frames", property(counted))
    monkeypatch.setattr(GifImageFile, "is_animated", property(counted))
    start = time.perf_counter()
    assert first_pixel(gif) == (0, 255, 7)
    assert first_pixel(webp) == (20, 0, 0)
    assert first_pixel(apng) == (20, 0, 0)
    assert time.perf_counter() - start < 1


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_a_file_cut_short_is_refused_or_whole(file_format: str) -> None:
    image = Image.fromarray(noise(60, 40))
    for options in ({}, {"progressive": True}, {"lossless": True}):
        data = saved(image, file_format, **options)
        whole = np.asarray(load_image(data).rgb)
        generator = random.Random(file_format)
        cuts = [len(data) // 100, len(data) // 2, len(data) - 2, len(data) - 1]
        refused = 0
        for cut in cuts + [generator.randrange(len(data)) for _ in range(40)]:
            try:
                loaded = load_image(data[:cut], strict=True)
            except ImageError:
                refused += 1
            else:  # only what follows the pixels was missing
                assert np.array_equal(np.asarray(loaded.rgb), whole), cut
        assert refused > 30
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_a_flipped_byte_gives_an_image_or_one_error(file_format: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "a description long enough to be stored elsewhere"
    image = Image.fromarray(noise(24, 16)).quantize(16).convert("RGB")
    options = {"exif": exif.tobytes()} if file_format in ("JPEG", "PNG", "WEBP") else {}
    data = saved(image, file_format, **options)
    generator = random.Random(file_format)
    for _ in range(300):
        broken = bytearray(data)
        # The first kilobyte holds the headers, where most of the trouble is.
        broken[generator.randrange(min(len(data), 1024))] ^= 1 << generator.randrange(8)
        with suppress(ImageError):
            load_image(bytes(broken), max_pixels=10_000)


def test_what_is_no_image_has_one_clear_error(tmp_path: Path) -> None:
    for data in (b"", b"\0" * 100, b"<html></html>", b"hello", b"BM", b"\xff\xd8\xff", b"GIF89a"):
        path = tmp_path / "picture.png"
        path.write_bytes(data)
        for source in (data, path):
            with pytest.raises(ImageError, match="The image") as caught:
                load_image(source)
            assert not re.search(r"0x|object at|Traceback", str(caught.value))


def refused_files() -> dict[str, bytes]:
    image = Image.new("RGB", (4, 4), RED)
    files = {name: saved(image, name) for name in ("TIFF", "EPS", "PDF", "ICO", "PPM", "TGA")}
    files["PSD"] = b"8BPS\0\1" + b"\0" * 40
    files["FITS"] = b"SIMPLE  =                    T".ljust(2880)
    files["SVG"] = b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>'
    files["HEIC"] = b"\0\0\0\x18ftypheic\0\0\0\0"
    return files


@pytest.mark.parametrize("name", refused_files())
def test_refused_formats_never_meet_their_parser(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = refused_files()[name]

    def entered(*_: object, **__: object) -> None:
        raise AssertionError("a parser was entered")

    for parser in (
        EpsImagePlugin.EpsImageFile,
        PsdImagePlugin.PsdImageFile,
        FitsImagePlugin.FitsImageFile,
        TiffImagePlugin.TiffImageFile,
        IcoImagePlugin.IcoImageFile,
    ):
        monkeypatch.setattr(parser, "_open", entered)
    monkeypatch.setattr(Image, "open", entered)
    path = tmp_path / "picture.png"
    path.write_bytes(data)
    with pytest.raises(ImageError, match="JPEG, PNG, WebP, GIF and BMP are supported"):
        load_image(path, strict=True)
    looks = "has an unknown format" if name == "TGA" else f"looks like {name}"
    with pytest.raises(ImageError, match=looks):
        load_image(data, strict=True)
    monkeypatch.setattr("paligemma.processor.image.fetch_image_bytes", lambda url: data)
    with pytest.raises(ImageError, match="JPEG, PNG, WebP, GIF and BMP are supported"):
        load_image("https://example.org/cat.png", allow_urls=True)
    if name not in ("TIFF", "PPM", "HEIC"):
        with pytest.raises(ImageError, match=r"JPEG, PNG, .*HEIC and PPM are supported"):
            load_image(data)


_MEASURE = """
import resource, sys, time
from paligemma.errors import ImageError
from paligemma.processor.image import load_image
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.perf_counter()
try:
    load_image(sys.argv[1], strict=True)
except ImageError as error:
    seconds = time.perf_counter() - start
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(seconds, grown // 1024, error, sep="|")
"""


def animated_webp(width: int, height: int) -> bytes:
    """Two small frames on a canvas of any size."""
    frames = [Image.new("RGB", (4, 4), color) for color in (RED, WHITE)]
    data = bytearray(saved(frames[0], "WEBP", save_all=True, append_images=frames[1:]))
    assert data[12:16] == b"VP8X"
    data[24:27] = (width - 1).to_bytes(3, "little")
    data[27:30] = (height - 1).to_bytes(3, "little")
    return bytes(data)


def test_a_pixel_bomb_is_refused_from_its_header(tmp_path: Path) -> None:
    bombs = {
        "20000.png": png(20_000, 20_000, 1, 0, (b"\0" * 2501) * 20_000),
        "13000.png": png(13_000, 13_000, 1, 0, (b"\0" * 1626) * 13_000),
        "canvas.webp": animated_webp(10_000, 10_000),
        "canvas.gif": b"GIF89a" + struct.pack("<HH", 65_535, 65_535) + b"\0\0\0,"
        + struct.pack("<HHHH", 0, 0, 65_535, 65_535) + b"\0\2\2\x44\1\0;",
    }  # fmt: skip
    for name, data in bombs.items():
        path = tmp_path / name
        path.write_bytes(data)
        environment = dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path))
        result = subprocess.run(
            [sys.executable, "-c", _MEASURE, str(path)],
            capture_output=True,
            text=True,
            env=environment,
            check=True,
        )
        seconds, megabytes, message = result.stdout.strip().split("|")
        assert "the limit is 50 megapixels" in message, name
        assert name in message
        assert float(seconds) < 0.5, name
        assert int(megabytes) < 50, name
        assert result.stderr == "", name


def test_limits_hold_at_the_limit_and_one_beyond() -> None:
    assert load_image(np.zeros((10, 10), np.uint8), max_pixels=100).size_wh == (10, 10)
    with pytest.raises(ImageError, match=r"10 x 10; the limit is 9\.9e-05 megapixels"):
        load_image(np.zeros((10, 10), np.uint8), max_pixels=99)
    with pytest.raises(ImageError, match=r"10 x 10; the limit is 9\.9e-05 megapixels"):
        load_image(Image.new("L", (10, 10)), max_pixels=99)
    with pytest.raises(
        ImageError, match=f"{MAX_SIDE + 1} x 1; the limit is {MAX_SIDE} pixels per side"
    ):
        load_image(saved(Image.new("L", (MAX_SIDE + 1, 1)), "PNG"), strict=True)
    with pytest.raises(ImageError, match="no pixels"):
        load_image(Image.new("RGB", (0, 5)))
    with pytest.raises(ImageError, match="The image"):
        load_image(png(0, 5, 8, 0, b""))
    with pytest.raises(ImageError, match="64 MiB"):
        load_image(b"\xff\xd8\xff" + b"\0" * MAX_FILE_BYTES, strict=True)


@pytest.mark.parametrize("size", [(1, 1), (1, MAX_SIDE), (MAX_SIDE, 1)])
def test_thin_images_are_read(size: tuple[int, int]) -> None:
    loaded = load_image(saved(Image.new("RGB", size, RED), "PNG"))
    assert loaded.size_wh == size
    for resize in ("squash", "pad"):
        transform = ImageTransform(source_wh=size, resolution=28, resize=resize)
        assert pixel_array(loaded.rgb, transform).shape == (3, 28, 28)


def test_paths_that_are_no_file_are_named(tmp_path: Path) -> None:
    fifo = tmp_path / "pipe.png"
    os.mkfifo(fifo)
    large = tmp_path / "large.png"
    with large.open("wb") as file:
        file.truncate(512 * 2**20 + 1)
    for path, message in [
        (tmp_path, "a folder"),
        (fifo, "a device or pipe"),
        (Path("/dev/zero"), "a device or pipe"),
        (tmp_path / "missing.png", "does not exist"),
        (large, "512 MiB"),
        (Path("a\0b"), "cannot be opened"),
        (Path("x" * 5000), "cannot be opened"),
    ]:
        for source in (path, str(path)):
            with pytest.raises(ImageError, match=message) as caught:
                load_image(source)
            assert repr(str(path))[1:20] in str(caught.value)


def test_addresses_are_not_fetched_unless_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    def opened(*_: object, **__: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", opened)
    monkeypatch.setattr(socket, "getaddrinfo", opened)
    for url in ("http://example.org/cat.png", "HTTPS://example.org/cat.png"):
        with pytest.raises(ImageError, match=r"load_image.*allow_urls=True"):
            load_image(url)
    for url in ("ftp://a/b", "s3://bucket/cat.png"):
        for allow_urls in (False, True):
            with pytest.raises(ImageError, match=r"neither a path nor an http\(s\) URL"):
                load_image(url, allow_urls=allow_urls)


def test_a_fetched_image_is_read_like_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    from paligemma.processor import image

    data = saved(Image.new("RGB", (2, 3), RED), "PNG")
    monkeypatch.setattr(image, "fetch_image_bytes", lambda url: data)
    loaded = load_image("https://example.org/cat.png", allow_urls=True)
    assert loaded.size_wh == (2, 3)
    assert loaded.name == "https://example.org/cat.png"


def test_every_source_of_a_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = noise(13, 9)
    data = saved(Image.fromarray(pixels), "PNG")
    path = tmp_path / "an image.png"
    path.write_bytes(data)
    monkeypatch.setenv("HOME", str(tmp_path))
    buffer = io.BytesIO(data)
    buffer.seek(5)
    with os.scandir(tmp_path) as entries:
        [entry] = entries
    encoded = base64.b64encode(data).decode()
    with path.open("rb") as file:
        for source in (
            buffer,
            file,
            bytearray(data),
            memoryview(data),
            entry,
            "~/an image.png",
            Path("~/an image.png"),
            path.as_uri(),
            f"data:image/png;base64,{encoded}",
            f"DATA:image/jpeg;base64,{encoded[:8]}\n{encoded[8:].rstrip('=')}",
            "data:image/png," + quote_from_bytes(data),
        ):
            for _ in range(2):
                assert np.array_equal(np.asarray(load_image(source).rgb), pixels)
            assert read_size_wh(source) == (13, 9)
    assert load_image(entry).name == load_image(path.as_uri()).name == "an image.png"


def test_sources_that_cannot_be_read_are_named() -> None:
    closed = io.BytesIO(b"")
    closed.close()
    sources: list[tuple[Any, str]] = [
        ("", "path of the image is empty"),
        (io.BytesIO(), "empty"),
        (io.StringIO("text"), '"rb"'),
        (closed, "cannot be read"),
        ("data:image/png;base64,@@", "base64 is damaged"),
        ("data:image/png", "not a data URI"),
        ("file:///no/such.png", "does not exist"),
    ]
    for source, message in sources:
        with pytest.raises(ImageError, match=message):
            load_image(source)
    with pytest.raises(ImageError) as caught:
        load_image("data:image/png;base64," + "@" * 5000)
    assert len(str(caught.value)) < 200


PIXELS = noise(6, 4)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (PIXELS.astype(np.int32), "8-bit values"),
        (PIXELS.astype(np.uint16), "8-bit values"),
        (torch.from_numpy(PIXELS).long(), "8-bit values"),
        (PIXELS.astype(np.int64) * 257, "16-bit values"),
    ],
)
def test_what_is_assumed_of_integers_is_said(source: Any, message: str) -> None:
    with pytest.warns(UserWarning, match=message):
        loaded = load_image(source)
    assert np.array_equal(np.asarray(loaded.rgb), PIXELS)


def test_dark_integers_are_not_read_as_black() -> None:
    gray = PIXELS[..., 0]
    for image in (Image.fromarray(gray.astype(np.int32)), Image.fromarray(gray.astype(np.uint16))):
        with pytest.warns(UserWarning, match="8-bit values"):
            loaded = load_image(image)
        assert np.array_equal(np.asarray(loaded.rgb)[..., 0], gray)


@pytest.mark.parametrize(
    "source",
    [
        PIXELS.astype(np.uint16) * np.uint16(257),
        PIXELS / 255,
        torch.from_numpy(PIXELS),
        torch.from_numpy(PIXELS).permute(2, 0, 1),
        torch.from_numpy(PIXELS / 255).permute(2, 0, 1).requires_grad_(),
    ],
)
def test_arrays_and_tensors_with_a_clear_meaning_are_read(source: Any) -> None:
    assert np.array_equal(np.asarray(load_image(source).rgb), PIXELS)
    assert read_size_wh(source) == (6, 4)


def test_one_channel_is_gray() -> None:
    gray = PIXELS[..., :1]
    tensor = torch.from_numpy(gray)
    sources: list[ImageSource] = [gray, gray[..., 0], tensor, tensor.permute(2, 0, 1)]
    for source in sources:
        assert np.array_equal(np.asarray(load_image(source).rgb), np.repeat(gray, 3, axis=2))
    la = Image.fromarray(gray[..., 0]).convert("LA").convert("La")
    assert np.abs(np.asarray(load_image(la).rgb).astype(int) - gray).max() <= 1


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((3, 8, 3), "first or last"),
        ((5, 8, 8), "no axis"),
        ((1, 3, 8, 8), "a batch"),
        ((8,), "has shape"),
    ],
)
def test_tensors_without_a_clear_meaning_are_refused(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ImageError, match=message):
        load_image(torch.zeros(shape))


@pytest.mark.parametrize("file_format", ["TIFF", "AVIF", "PPM"])
@pytest.mark.parametrize("orientation", [1, 6, 3])
def test_formats_of_scanners_and_phones_are_read(file_format: str, orientation: int) -> None:
    stored = np.zeros((32, 64, 3), np.uint8)
    stored[:16, :32] = RED
    options: dict[str, Any] = {}
    if file_format != "PPM":
        exif = Image.Exif()
        exif[0x0112] = orientation
        options = {"exif": exif.tobytes()}
    else:
        orientation = 1
    data = saved(Image.fromarray(stored), file_format, **options)
    expected = upright(stored, orientation)
    loaded = load_image(data)
    assert loaded.size_wh == (expected.shape[1], expected.shape[0]) == read_size_wh(data)
    difference = np.abs(np.asarray(loaded.rgb).astype(int) - expected)
    assert np.median(difference) <= 8
    assert difference.mean() < 12
    with pytest.raises(ImageError, match=f"looks like {file_format}"):
        load_image(data, strict=True)


def test_of_several_pages_the_first_is_read() -> None:
    pages = [Image.new("RGB", (3, 2), color) for color in (RED, WHITE)]
    assert first_pixel(saved(pages[0], "TIFF", save_all=True, append_images=pages[1:])) == RED


def test_heic_is_read_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pi_heif")
    loaded = load_image(TURNED_HEIC)
    assert loaded.size_wh == read_size_wh(TURNED_HEIC) == (32, 64)
    pixels = np.asarray(loaded.rgb).astype(int)
    assert np.abs(pixels[4:28, 20:28] - (200, 0, 0)).max() < 30  # stored at the left, turned
    monkeypatch.setitem(sys.modules, "pi_heif.as_plugin", None)
    with pytest.raises(ImageError, match=r"paligemma\[formats\]"):
        load_image(TURNED_HEIC)


def test_a_jpeg_without_its_end_mark_is_read_with_a_warning() -> None:
    whole = saved(Image.fromarray(noise(60, 40)), "JPEG")
    for cut in (1, 2):
        with pytest.warns(UserWarning, match="lacks its end mark"):
            loaded = load_image(whole[:-cut])
        assert loaded.rgb.tobytes() == load_image(whole).rgb.tobytes()
    for data in (whole[:-60], whole[: len(whole) // 2]):
        with pytest.raises(ImageError, match="truncated"):
            load_image(data)
    with pytest.raises(ImageError, match="truncated"):
        load_image(whole[:-2], strict=True)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
def test_large_photographs_are_scaled_down_but_keep_their_size(file_format: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = saved(
        Image.new("L", (9504, 6336), 200), file_format, exif=exif.tobytes(), **{"compress_level": 1}
    )
    loaded = load_image(data)
    assert loaded.size_wh == read_size_wh(data) == (6336, 9504)
    assert loaded.rgb.size == (3168, 4752)
    assert loaded.rgb.getpixel((9, 9)) == (200, 200, 200)
    for options in ({"max_pixels": 50_000_000}, {"strict": True}):
        with pytest.raises(ImageError, match="9504 x 6336; the limit is 50 megapixels"):
            load_image(data, **options)


def test_long_screenshots_are_read() -> None:
    data = saved(Image.new("1", (1080, 24_000)), "PNG")
    assert load_image(data).size_wh == load_image(data).rgb.size == (1080, 24_000)


@pytest.mark.parametrize("size", [(60, 40), (224, 224), (1, 300), (700, 33)])
def test_e8_pixel_values_equal_the_reference(size: tuple[int, int]) -> None:
    siglip = pytest.importorskip("transformers.models.siglip.image_processing_pil_siglip")
    reference = siglip.SiglipImageProcessorPil(size={"height": 224, "width": 224})
    rgb = Image.fromarray(noise(*size))
    expected = np.asarray(reference(rgb, return_tensors="np")["pixel_values"][0])
    ours = pixel_array(rgb, ImageTransform(source_wh=size, resolution=224))
    assert ours.dtype == np.float32
    assert ours.shape == expected.shape
    assert np.abs(ours - expected).max() <= 1e-6


def test_values_run_from_minus_one_to_one() -> None:
    rgb = load_image(np.arange(256, dtype=np.uint8).reshape(16, 16)).rgb
    values = pixel_array(rgb, ImageTransform(source_wh=(16, 16), resolution=16))
    expected = np.arange(256).reshape(16, 16) / 255 * 2 - 1
    assert np.abs(values - expected).max() < 1e-6
    assert values.min() == -1
    assert values.max() == 1


def test_loaded_pixels_equal_the_published_ones(shared_data: Path) -> None:
    expected = json.loads((shared_data / "vectors" / "image_preprocess.json").read_text())["load"]
    path = shared_data / "outputs" / "images" / "gemma_cpp_building.ppm"
    with Image.open(path) as image:
        loaded = load_image(image)
    assert loaded.size_wh == (expected["width"], expected["height"])
    values = np.asarray(loaded.rgb).reshape(-1)
    for position, value in expected["values_8bit"].items():
        assert values[int(position)] == value


def test_padding_keeps_the_shape_and_is_white() -> None:
    rgb = Image.new("RGB", (640, 480), RED)
    transform = ImageTransform(source_wh=(640, 480), resolution=224, resize="pad")
    assert transform.content_xywh == (0, 28, 224, 168)
    pixels = np.asarray(resize_to_square(rgb, transform))
    assert pixels.shape == (224, 224, 3)
    assert (pixels[28:196] == RED).all()
    assert (pixels[:28] == 255).all()
    assert (pixels[196:] == 255).all()
    squashed = ImageTransform(source_wh=(640, 480), resolution=224)
    assert (np.asarray(resize_to_square(rgb, squashed)) == RED).all()


def test_boxes_are_mapped_to_the_persons_pixels() -> None:
    squash = ImageTransform(source_wh=(640, 480), resolution=224)
    assert squash.box_to_source((0.25, 0.5, 0.75, 1.0)) == (320, 120, 640, 360)
    assert squash.box_to_source((0.5, 0.25, 1.0, 0.75), order="xyxy") == (320, 120, 640, 360)
    pad = ImageTransform(source_wh=(640, 480), resolution=224, resize="pad")
    assert pad.box_to_source((0.125, 0, 0.875, 1)) == pytest.approx((0, 0, 640, 480))
    assert pad.box_to_source((0, 0, 1, 1)) == (0, 0, 640, 480)  # the border is cut off
    assert pad.box_to_source((0, 0, 0.1, 1)) == (0, 0, 640, 0)  # nothing but border
    assert squash.box_to_source((-1, -1, 2, 2)) == (0, 0, 640, 480)


def test_boxes_survive_the_way_there_and_back() -> None:
    generator = np.random.default_rng(0)
    for resize in ("squash", "pad"):
        for size in [(640, 480), (33, 700), (5, 5), (1, 999)]:
            transform = ImageTransform(source_wh=size, resolution=224, resize=resize)
            box = (generator.random(4) * [*size, *size]).tolist()
            for order in ("yxyx", "xyxy"):
                there = transform.box_from_source(box, order=order)
                back = transform.box_to_source(there, order=order)
                assert back == pytest.approx(box)


def test_a_mark_in_the_image_lies_in_its_box() -> None:
    pixels = np.full((200, 400, 3), 255, np.uint8)
    pixels[50:100, 100:200] = RED
    for resize in ("squash", "pad"):
        transform = ImageTransform(source_wh=(400, 200), resolution=100, resize=resize)
        square = np.asarray(resize_to_square(Image.fromarray(pixels), transform))
        rows, columns = np.nonzero(square[:, :, 1] < 128)
        box = [rows.min() / 100, columns.min() / 100, (rows.max() + 1) / 100]
        found = transform.box_to_source([*box, (columns.max() + 1) / 100])
        assert found == pytest.approx((100, 50, 200, 100), abs=2)


def test_a_transform_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(OptionError):
        ImageTransform(source_wh=(0, 4), resolution=224)
    with pytest.raises(OptionError):
        ImageTransform(source_wh=(4, 4), resolution=0)
    with pytest.raises(OptionError, match="squash"):
        ImageTransform(source_wh=(4, 4), resolution=224, resize="crop")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="expected 4"):
        ImageTransform(source_wh=(4, 4), resolution=224).box_to_source((0, 1, 2))
