"""Write folders that mlx-vlm loads, plain or quantized; see `mlx.py` for the format."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from paligemma.checkpoints.files import read_json, write_json
from paligemma.checkpoints.hf import EMBEDDING, PATCHES, num_table_rows, to_released_names
from paligemma.checkpoints.hf_config import CONFIG_FILE, write_config
from paligemma.checkpoints.mlx import AffineRows, GroupFormat, pack, quantize_groups
from paligemma.checkpoints.reader import row_blocks
from paligemma.checkpoints.rows import Contents, QuantizedRows, StoredRows
from paligemma.checkpoints.save import TensorToWrite, plain_tensor, write_small_files, write_tensors
from paligemma.checkpoints.tokenizer_json import write_tokenizer_files
from paligemma.config import DecoderConfig
from paligemma.errors import CheckpointError
from paligemma.fast.quantization import from_stored

BITS = {"q2": 2, "q4": 4, "q8": 8}
"""The quantized formats, by the names that `paligemma convert --dtype` takes."""

_GROUP_SIZE = 64  # that of mlx_vlm.convert


class _OwnRows:
    """A weight in one of our own quantized formats, as MLX would store the same values.

    q * scale, with q from -8 or -127 on, is (q + offset) * scale - offset * scale.
    """

    def __init__(self, rows: QuantizedRows) -> None:
        self.name, self.shape, self.dtype, self.read = rows.name, rows.shape, rows.dtype, rows.read
        self._rows, self._form = rows, rows.weight_format
        self.groups = GroupFormat(self._form.bits, self._form.group_size)

    def read_groups(self, start: int, end: int) -> tuple[Tensor, Tensor, Tensor]:
        stored, scales = self._rows.read_stored(start, end)
        q = from_stored(stored, self._form).view(torch.uint8) + self._form.offset
        return q, scales, scales * -self._form.offset


def write_mlx(
    contents: Contents, folder: Path, dtype: torch.dtype | str, bits: int | None = None
) -> None:
    """Write a folder that mlx-vlm loads into an empty folder.

    With `bits` 2, 4 or 8, or a `dtype` "q2", "q4" or "q8", the decoder's linear layers and the
    embedding table are quantized in groups of 64 inputs, as mlx_vlm.convert does; `dtype` is that
    of the scales and of all other weights. Weights that are stored in groups already keep their
    bits, unless `bits` is another number.

    Raises CheckpointError for a config that mlx-vlm would read differently, and NumericalError.
    """
    if isinstance(dtype, str):
        bits = BITS[dtype]
        dtype = contents.parameters["decoder.embedding.weight"].dtype
    _check_config(contents.config.decoder)
    target = GroupFormat(bits, _GROUP_SIZE) if bits else None
    tensors: list[TensorToWrite] = []
    modules: dict[str, GroupFormat] = {}
    for ours, released in to_released_names(contents.config, contents.parameters).items():
        rows = _kept(contents.parameters[ours], bits)
        groups = rows.groups if isinstance(rows, AffineRows) else target
        module = released.removesuffix(".weight")
        is_weight = len(rows.shape) == 2 and released.startswith("language_model.")
        fits = groups is not None and rows.shape[-1] % groups.group_size == 0
        if isinstance(rows, AffineRows) or (is_weight and fits):
            assert groups is not None
            modules[module] = groups
            tensors += _group_tensors(released, rows, groups, dtype)
        elif released == PATCHES:
            tensors.append(_patch_tensor(rows, dtype))
        else:
            tensors.append(plain_tensor(released, rows, dtype))
    write_tensors(tensors, folder, metadata={"format": "mlx"})
    write_config(folder, contents.config, str(dtype).removeprefix("torch."))
    if modules:
        _write_groups(folder / CONFIG_FILE, modules)
    write_small_files(contents, folder)
    write_tokenizer_files(contents, folder)


def _check_config(decoder: DecoderConfig) -> None:
    """Raise for values that mlx-vlm's reader derives in another way."""
    if not decoder.post_norms and decoder.head_dim * decoder.num_heads != decoder.width:
        raise CheckpointError(
            f"mlx-vlm takes the head dim of PaliGemma 1 as width / heads, {decoder.width} / "
            f"{decoder.num_heads}, but this model's is {decoder.head_dim}. MLX cannot run it."
        )
    if decoder.post_norms and decoder.final_logit_softcap is None:
        raise CheckpointError(
            "mlx-vlm needs a soft cap of the logits in PaliGemma 2, and this model has none. MLX "
            "cannot run it."
        )


def _kept(rows: StoredRows, bits: int | None) -> StoredRows:
    """Return rows as `AffineRows` if their bits are kept, else as they are read: plain."""
    if isinstance(rows, QuantizedRows):
        form = rows.weight_format
        if rows.shape[1] % form.group_size == 0 and bits in (None, form.bits):
            return _OwnRows(rows)
    if isinstance(rows, AffineRows) and bits not in (None, rows.groups.bits):
        return _Plain(rows)
    return rows


class _Plain:
    """A weight as floating point, however it is stored."""

    def __init__(self, rows: StoredRows) -> None:
        self.name, self.shape, self.dtype, self.read = rows.name, rows.shape, rows.dtype, rows.read


def _patch_tensor(rows: StoredRows, dtype: torch.dtype) -> TensorToWrite:
    num_outputs, channels, *sides = rows.shape
    return TensorToWrite(
        name=PATCHES,
        dtype=dtype,
        shape=(num_outputs, *sides, channels),
        blocks=(rows.read(*block).permute(0, 2, 3, 1) for block in row_blocks(rows.shape)),
    )


def _group_tensors(
    released: str, rows: StoredRows, groups: GroupFormat, dtype: torch.dtype
) -> Iterator[TensorToWrite]:
    module = released.removesuffix(".weight")
    num_rows, num_inputs = rows.shape
    if released == EMBEDDING:
        num_rows = num_table_rows(num_rows)
    parts = _Groups(rows, groups, num_rows, dtype)
    num_groups = num_inputs // groups.group_size
    for name, part_dtype, width in (
        ("biases", dtype, num_groups),
        ("scales", dtype, num_groups),
        ("weight", torch.uint32, num_inputs * groups.bits // 32),
    ):
        yield TensorToWrite(
            name=f"{module}.{name}",
            dtype=part_dtype,
            shape=(num_rows, width),
            blocks=parts.take(name),
        )


class _Groups:
    """The three tensors of a quantized weight, computed when the first is written."""

    def __init__(
        self, rows: StoredRows, groups: GroupFormat, num_rows: int, dtype: torch.dtype
    ) -> None:
        self._rows, self._groups, self._num_rows, self._dtype = rows, groups, num_rows, dtype
        self._parts: dict[str, list[Tensor]] = {}

    def take(self, name: str) -> Iterator[Tensor]:
        if not self._parts:
            parts = zip(*self._blocks(), strict=True)
            self._parts = dict(zip(("weight", "scales", "biases"), map(list, parts), strict=True))
        yield from self._parts.pop(name)

    def _blocks(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield words, scales and biases. Rows that are added have the mean of the others."""
        total = torch.zeros(self._rows.shape[1], dtype=torch.float64)
        is_padded = self._num_rows > self._rows.shape[0]
        for start, end in row_blocks(self._rows.shape):
            if isinstance(self._rows, AffineRows):
                yield self._packed(*self._rows.read_groups(start, end))
            else:
                values = self._rows.read(start, end).to(self._dtype)
                yield self._packed(*quantize_groups(values, self._groups))
            if is_padded:
                total += self._rows.read(start, end).sum(dim=0, dtype=torch.float64)
        if is_padded:
            mean = (total / self._rows.shape[0]).to(self._dtype)
            rows = mean.expand(self._num_rows - self._rows.shape[0], -1)
            yield self._packed(*quantize_groups(rows, self._groups))

    def _packed(self, q: Tensor, scales: Tensor, biases: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        words = pack(q, self._groups.bits).view(torch.uint32)
        return words, scales.to(self._dtype), biases.to(self._dtype)


def _write_groups(path: Path, modules: Mapping[str, GroupFormat]) -> None:
    """Add the entry "quantization": the most frequent format, and the modules with others."""
    formats = list(modules.values())
    usual = max(set(formats), key=formats.count)
    entry = {**asdict(usual), "mode": "affine"}
    others = {name: asdict(groups) for name, groups in modules.items() if groups != usual}
    content = read_json(path)
    content["quantization"] = content["quantization_config"] = entry | others
    write_json(path, content)
