"""Masks <-> sixteen `<seg>` codes: the VQ-VAE, its file format, cropping and pasting of masks.

A mask is cropped to its box, resized to 64 x 64 and encoded as a 4 x 4 grid of codes, row by row.
The network is that of "All in Tokens" (arXiv 2301.02229, `vae/models/VQVAE.py`); the file format
and the resizing are those of big_vision (`pp/proj/paligemma/segmentation.py`,
`evaluators/proj/paligemma/transfers/segmentation.py`). Parameters have the names in the file.

Files are untrusted input: see `load_mask_codec_npz`.
"""

# N masks, D code dim, C channels, K codes

from __future__ import annotations

import io
import math
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn

from paligemma.config import NUM_CODES_PER_MASK, MaskCodecConfig
from paligemma.errors import CheckpointError, InputError
from paligemma.results import BoxXyxy
from paligemma.writing import write_whole

MASK_SIDE = 64
CODE_SIDE = math.isqrt(NUM_CODES_PER_MASK)  # 4

# The released file has 2.1 million parameters; far more means a damaged or malicious file.
_MAX_PARAMETERS = 50_000_000
_MAX_HEADER_BYTES = 4096
_IGNORED_PREFIX = "_vq_vae._ema_"  # running averages, needed only to train the codebook


class _Codebook(nn.Module):
    def __init__(self, num_codes: int, code_dim: int) -> None:
        super().__init__()
        self._embedding = nn.Parameter(torch.empty(num_codes, code_dim))
        if not self._embedding.is_meta:
            nn.init.normal_(self._embedding)


# Drawing random values for meta tensors makes torch import 800 modules, which takes a second.
class _Conv2d(nn.Conv2d):
    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            super().reset_parameters()


class _ConvTranspose2d(nn.ConvTranspose2d):
    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            super().reset_parameters()


class _ResidualBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            _Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            _Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            _Conv2d(width, width, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.net(x)  # no ReLU after the sum
        return out


class MaskCodec(nn.Module):
    """The VQ-VAE that maps 64 x 64 masks to 16 codes, the `<seg>` tokens, and back.

    >>> codec = MaskCodec()
    >>> codec.encode_masks(torch.ones(2, 64, 64)).shape
    torch.Size([2, 16])
    >>> codec.decode_masks(torch.zeros(2, 16, dtype=torch.int64)).shape
    torch.Size([2, 64, 64])
    """

    def __init__(self, config: MaskCodecConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or MaskCodecConfig()
        a, b, c, d = config.stem_widths

        def halve(inputs: int, outputs: int) -> _Conv2d:
            return _Conv2d(inputs, outputs, 4, stride=2, padding=1)

        def double(inputs: int, outputs: int) -> _ConvTranspose2d:
            return _ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1)

        self._vq_vae = _Codebook(config.num_codes, config.code_dim)
        self.encoder = nn.Sequential(
            *(halve(1, a), nn.ReLU()),  # (N, a, 32, 32)
            *(halve(a, b), nn.ReLU()),
            *(halve(b, c), nn.ReLU()),
            *(halve(c, d), nn.ReLU()),  # (N, d, 4, 4)
            _ResidualBlock(d),
            _ResidualBlock(d),
            _Conv2d(d, config.code_dim, 1),  # (N, D, 4, 4)
        )
        self.decoder = nn.Sequential(
            *(_Conv2d(config.code_dim, config.width, 1), nn.ReLU()),  # (N, C, 4, 4)
            _ResidualBlock(config.width),
            _ResidualBlock(config.width),
            *(double(config.width, d), nn.ReLU()),  # (N, d, 8, 8)
            *(double(d, c), nn.ReLU()),
            *(double(c, b), nn.ReLU()),
            *(double(b, a), nn.ReLU()),  # (N, a, 64, 64)
            _Conv2d(a, 1, 1),
        )

    @property
    def codebook(self) -> Tensor:
        """float[K, D]."""
        return self._vq_vae._embedding

    @torch.no_grad()
    def encode_masks(self, masks: Tensor) -> Tensor:
        """Encode float[N, 64, 64] in [0, 1] as the nearest codes, int64[N, 16].

        Raises InputError for another shape.
        """
        if masks.ndim != 3 or masks.shape[1:] != (MASK_SIDE, MASK_SIDE):
            raise InputError(
                f"The masks have shape {tuple(masks.shape)}; expected (N, {MASK_SIDE}, "
                f"{MASK_SIDE}). Use crop_mask to crop an image's mask to its box."
            )
        codebook = self.codebook
        x = self.encoder(2.0 * (masks.to(codebook)[:, None] - 0.5))  # (N, D, 4, 4)
        x = x.flatten(2).transpose(1, 2).flatten(0, 1)  # (N * 16, D)
        # |x - e|^2 without |x|^2, which is the same for every code e.
        distances = codebook.square().sum(1) - 2.0 * x @ codebook.T
        codes: Tensor = distances.argmin(1).reshape(-1, NUM_CODES_PER_MASK)
        return codes

    @torch.no_grad()
    def decode_masks(self, codes: Tensor) -> Tensor:
        """Decode int64[N, 16] to float[N, 64, 64] in about [-1, 1]; foreground is above 0.

        Raises InputError for another shape or a code outside the codebook.
        """
        if codes.ndim != 2 or codes.shape[1] != NUM_CODES_PER_MASK:
            raise InputError(
                f"The codes have shape {tuple(codes.shape)}; expected (N, {NUM_CODES_PER_MASK})."
            )
        if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < len(self.codebook):
            raise InputError(
                f"The codes range from {int(codes.min())} to {int(codes.max())}; the codebook has "
                f"0 to {len(self.codebook) - 1}."
            )
        x = self.codebook[codes.to(self.codebook.device)]  # (N, 16, D)
        x = x.transpose(1, 2).reshape(
            -1, self.config.code_dim, CODE_SIDE, CODE_SIDE
        )  # (N, D, 4, 4)
        masks: Tensor = self.decoder(x)[:, 0]
        return masks


def crop_mask(mask: npt.NDArray[np.bool_], box_normalized_xyxy: BoxXyxy) -> npt.NDArray[np.float32]:
    """Crop bool[H, W] to the box and resize it for `encode_masks`: float32[64, 64] in [0, 1].

    Raises InputError when the box, rounded to pixels, is empty.
    """
    if mask.ndim != 2:
        raise InputError(f"The mask has shape {mask.shape}; expected (height, width).")
    height, width = mask.shape
    x1, y1, x2, y2 = (
        min(max(round(edge * side), 0), side)
        for edge, side in zip(box_normalized_xyxy, (width, height, width, height), strict=True)
    )
    if x2 <= x1 or y2 <= y1:
        raise InputError(
            f"The box {box_normalized_xyxy} contains no pixel of an image of {width} x {height}. "
            "Give x1, y1, x2, y2 as fractions, with x1 < x2 and y1 < y2."
        )
    crop = Image.fromarray(mask[y1:y2, x1:x2].astype(np.float32))
    resized = crop.resize((MASK_SIDE, MASK_SIDE), Image.Resampling.BILINEAR)
    return np.asarray(resized, dtype=np.float32).clip(0.0, 1.0)


def paste_mask(
    mask64: npt.NDArray[np.float32], box_xyxy: BoxXyxy, size_wh: tuple[int, int]
) -> npt.NDArray[np.bool_]:
    """Paste a mask of `decode_masks` into its box, given in pixels: bool[H, W] of the whole image.

    The box is rounded down to pixels; foreground is where the resized mask is above 0. A box that
    extends beyond the image is cropped.
    """
    width, height = size_wh
    # A box edge computed as bin / 1023 * side may be slightly below a whole number.
    left, top, right, bottom = (math.floor(edge + 1e-6) for edge in box_xyxy)
    x1, x2 = max(left, 0), min(right, width)
    y1, y2 = max(top, 0), min(bottom, height)
    full_mask = np.zeros((height, width), dtype=np.bool_)
    if x2 > x1 and y2 > y1:
        source = Image.fromarray(np.asarray(mask64, dtype=np.float32))
        across = ((x - left) * MASK_SIDE / (right - left) for x in (x1, x2))
        down = ((y - top) * MASK_SIDE / (bottom - top) for y in (y1, y2))
        (u1, u2), (v1, v2) = across, down
        part = (u1, v1, u2, v2)
        resized = source.resize((x2 - x1, y2 - y1), Image.Resampling.BILINEAR, box=part)
        full_mask[y1:y2, x1:x2] = np.asarray(resized) > 0
    return full_mask


@dataclass(frozen=True, kw_only=True)
class PastedMask:
    """A mask of `decode_masks` with its box, which is pasted into the image when asked for."""

    mask64: npt.NDArray[np.float32]
    box_xyxy: BoxXyxy
    size_wh: tuple[int, int]

    def unpack(self) -> npt.NDArray[np.bool_]:
        """bool[H, W], see `paste_mask`."""
        return paste_mask(self.mask64, self.box_xyxy, self.size_wh)


def mask_codec_to_npz(codec: MaskCodec) -> bytes:
    """Serialize the codec as an .npz file with the tensor names of the released file."""
    arrays: dict[str, Any] = {
        name: tensor.detach().float().cpu().numpy() for name, tensor in codec.state_dict().items()
    }
    content = io.BytesIO()
    np.savez(content, **arrays)
    return content.getvalue()


def save_mask_codec_npz(codec: MaskCodec, path: str | Path) -> None:
    """Write the codec as an .npz file, whole or not at all. Raises OptionError."""
    write_whole(Path(path), mask_codec_to_npz(codec))


def load_mask_codec_npz(path_or_file: str | Path | IO[bytes]) -> MaskCodec:
    """Load a codec, float32 on the CPU, from big_vision's `vae-oid.npz` or a file saved here.

    All tensor headers are checked against the expected shapes before any data is read, so a file
    cannot cause larger allocations than the codec needs. Nothing is unpickled.

    Raises CheckpointError for members that are missing, unknown, duplicate, truncated, not finite,
    or of another shape or dtype.
    """
    is_path = isinstance(path_or_file, str | Path)
    name = str(path_or_file) if is_path else "The mask codec"
    try:
        with zipfile.ZipFile(path_or_file) as archive:
            members = _list_members(archive)
            headers = {key: _read_header(archive, info) for key, info in members.items()}
            with torch.device("meta"):
                codec = MaskCodec(_infer_config(headers))
            _check_shapes(codec, headers)
            arrays = {key: _read_array(archive, members[key], headers[key]) for key in headers}
    except CheckpointError as error:
        raise CheckpointError(f"{name}: {error}") from None
    except OSError as error:
        raise CheckpointError(f"The mask codec {name} cannot be read: {error.strerror}.") from error
    # NotImplementedError: a compression that zipfile does not know
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError) as error:
        raise CheckpointError(
            f"{name} cannot be read as a mask codec ({error}). Expected an .npz file such as "
            "big_vision's vae-oid.npz; download it again."
        ) from error
    codec.load_state_dict(
        {key: torch.from_numpy(array) for key, array in arrays.items()}, assign=True
    )
    return codec.eval().requires_grad_(False)


_Header = tuple[tuple[int, ...], bool, np.dtype[Any]]  # shape, Fortran order, dtype


def _tensor_names() -> set[str]:
    with torch.device("meta"):
        return set(MaskCodec().state_dict())


def _list_members(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """Return the archive members by tensor name; unknown members raise CheckpointError."""
    members: dict[str, zipfile.ZipInfo] = {}
    expected = _tensor_names()
    unknown = []
    for info in archive.infolist():
        if info.flag_bits & 1:
            raise CheckpointError(f"the member {info.filename!r} is encrypted.")
        key = info.filename.removesuffix(".npy")
        if key in members:
            raise CheckpointError(f"the tensor {key!r} occurs twice; download the file again.")
        if key in expected and info.filename.endswith(".npy"):
            members[key] = info
        elif not key.startswith(_IGNORED_PREFIX):
            unknown.append(info.filename)
    if unknown:
        raise CheckpointError(
            f"unknown members {_some(unknown)}; expected only the tensors of a mask codec."
        )
    if missing := sorted(expected - members.keys()):
        raise CheckpointError(
            f"{len(missing)} tensors are missing: {_some(missing)}. The file needs both the "
            "encoder and the decoder."
        )
    return members


def _some(names: list[str]) -> str:
    shown = ", ".join(repr(name[:100]) for name in names[:8])
    return shown if len(names) <= 8 else f"{shown} and {len(names) - 8} more"


def _read_header(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> _Header:
    with archive.open(info) as file:
        return _parse_header(file, info.filename)


def _parse_header(file: IO[bytes], name: str) -> _Header:
    version = np.lib.format.read_magic(file)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read is None:
        raise CheckpointError(f"{name!r} has format version {version}; expected 1.0 or 2.0.")
    shape, fortran_order, dtype = read(file, max_header_size=_MAX_HEADER_BYTES)
    if dtype.kind != "f":
        raise CheckpointError(f"{name!r} has dtype {dtype}; expected floating-point numbers.")
    return shape, fortran_order, dtype


def _infer_config(headers: Mapping[str, _Header]) -> MaskCodecConfig:
    """Infer sizes from the shapes that determine them; `_check_shapes` checks all others."""

    def sizes(key: str, num_axes: int) -> tuple[int, ...]:
        shape = headers[key][0]
        if len(shape) != num_axes or not all(1 <= side <= 2**16 for side in shape):
            raise CheckpointError(f"{key!r} has shape {shape}; expected {num_axes} axes.")
        return shape

    num_codes, code_dim = sizes("_vq_vae._embedding", 2)
    a, b, c, d = (sizes(f"encoder.{i}.weight", 4)[0] for i in (0, 2, 4, 6))
    return MaskCodecConfig(
        num_codes=num_codes,
        code_dim=code_dim,
        width=sizes("decoder.0.weight", 4)[0],
        stem_widths=(a, b, c, d),
    )


def _check_shapes(codec: MaskCodec, headers: Mapping[str, _Header]) -> None:
    tensors = codec.state_dict()
    if (total := sum(tensor.numel() for tensor in tensors.values())) > _MAX_PARAMETERS:
        raise CheckpointError(
            f"its tensors have {total} parameters in all; the limit is {_MAX_PARAMETERS}, and a "
            "mask codec has about 2 million."
        )
    for key, tensor in tensors.items():
        if headers[key][0] != tuple(tensor.shape):
            raise CheckpointError(
                f"{key!r} has shape {headers[key][0]}; expected {tuple(tensor.shape)} to match "
                "the other tensors."
            )


def _read_array(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, header: _Header
) -> npt.NDArray[np.float32]:
    shape, fortran_order, dtype = header
    num_bytes = math.prod(shape) * dtype.itemsize
    with archive.open(info) as file:
        _parse_header(file, info.filename)
        data = file.read(num_bytes)
        if len(data) != num_bytes or file.read(1):
            raise CheckpointError(
                f"{info.filename!r} does not have the {num_bytes} bytes that its shape requires; "
                "download the file again."
            )
    stored = np.frombuffer(data, dtype=dtype)
    array = stored.reshape(shape, order="F" if fortran_order else "C").astype(np.float32, order="C")
    if not np.isfinite(array).all():
        raise CheckpointError(
            f"{info.filename!r} contains NaN or infinity; download the file again."
        )
    return array
