"""Match the tensors in a checkpoint's files with the parameters of our model.

Whether a parameter is plain or was quantized, by bitsandbytes or MLX, is decided by the tensors
with its name. Tensors that are missing, unknown, or of the wrong shape or dtype raise an error;
known parts of larger models are left out and named.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import isqrt

import torch
from torch import Tensor

from paligemma.checkpoints.bitsandbytes import STATE, EightBitRows, FourBitRows
from paligemma.checkpoints.hf import (
    EMBEDDING,
    OUTPUT_LAYER,
    PATCHES,
    POSITIONS,
    belongs_to,
    is_adapter_part,
    to_released_name,
    to_released_names,
)
from paligemma.checkpoints.hf_config import StoredConfig
from paligemma.checkpoints.mlx import GroupFormat, GroupRows
from paligemma.checkpoints.quantized import (
    Q_SUFFIX,
    SCALES_SUFFIX,
    format_of,
    q_shape,
    scales_shape,
)
from paligemma.checkpoints.reader import DTYPE_CODES, WeightFiles, shorten
from paligemma.checkpoints.refused import method_of, why_method
from paligemma.checkpoints.rows import StoredRows
from paligemma.errors import CheckpointError, counted
from paligemma.fast.quantization import WeightFormat, dequantize, from_stored

_MAX_LISTED = 10

_FOUR_BIT = (".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map")
_EIGHT_BIT = (".SCB", "_format")
_MLX = (".scales", ".biases")
_OF_WEIGHT = re.compile(
    rf"(.+\.weight)({Q_SUFFIX}|{SCALES_SUFFIX}|_format|{'|'.join(map(re.escape, _FOUR_BIT))}"
    rf"|{re.escape(STATE)}.+)"
)
_OF_MODULE = re.compile(r"(.+)(\.SCB|\.scales|\.biases)")


@dataclass(frozen=True, kw_only=True)
class MatchedTensors:
    """Our parameters in a checkpoint's files."""

    parameters: dict[str, StoredRows]
    notes: tuple[str, ...]
    """What was left out."""
    is_mlx: bool


class FileRows:
    """A parameter in a safetensors file."""

    def __init__(self, files: WeightFiles, name: str, shape: tuple[int, ...]) -> None:
        self.name, self.shape = name, shape
        self.dtype = DTYPE_CODES[files.tensors[name].dtype_code]
        self._files = files

    def read(self, start: int, end: int) -> Tensor:
        return self._files.read_rows(self.name, start, end)


class QuantizedFileRows:
    """A weight in one of our own quantized formats: its values and scales are two tensors."""

    dtype = torch.float32

    def __init__(
        self, files: WeightFiles, names: tuple[str, str], shape: tuple[int, ...], form: WeightFormat
    ) -> None:
        self.name, self.scales_name = names
        self.shape, self.weight_format = shape, form
        self._files = files

    def read_stored(self, start: int, end: int) -> tuple[Tensor, Tensor]:
        values = self._files.read_rows(self.name, start, end)
        return values, self._files.read_rows(self.scales_name, start, end)

    def read(self, start: int, end: int) -> Tensor:
        values, scales = self.read_stored(start, end)
        q = from_stored(values, self.weight_format)[:, : self.shape[1]]
        return dequantize(q, scales, self.weight_format.group_size)


class PatchRows(FileRows):
    """MLX's kernel of the patch embedding, whose channels are the last axis: (d, 14, 14, 3)."""

    def read(self, start: int, end: int) -> Tensor:
        return super().read(start, end).permute(0, 3, 1, 2).contiguous()


_Roles = Mapping[str, str]
"""The tensors of a parameter: what follows its name, such as ".absmax", to names in the files."""


def match_tensors(
    files: WeightFiles, shapes: Mapping[str, tuple[int, ...]], stored: StoredConfig
) -> MatchedTensors:
    """Map our parameter names to their rows in the files; checks everything except values.

    `shapes` are those of the plain model's parameters. Raises CheckpointError.
    """
    _refuse_others(files)
    tensors, left_out, problems = _group(files)
    notes = [f"Left out: {part} ({counted(n, 'tensor')})." for part, n in sorted(left_out.items())]
    if output_layer := tensors.pop(OUTPUT_LAYER, None):
        if EMBEDDING not in tensors:
            notes.append(f"The embedding table was read from {next(iter(output_layer.values()))}.")
        _check_output_layer(files, output_layer, tensors.setdefault(EMBEDDING, output_layer))
    released = to_released_names(stored.config, shapes)
    formats = {released[ours]: format_of(ours, stored.quantization) for ours in shapes}
    problems += _name_problems(tensors, formats)
    opener = _Opener(files=files, stored=stored, dtype=_table_dtype(files, tensors))
    parameters: dict[str, StoredRows] = {}
    wrong: list[str] = []
    for ours, name in released.items():
        if name not in tensors or _required(formats[name]) - tensors[name].keys():
            continue  # missing, as the problems say
        try:
            parameters[ours] = opener.open(name, tensors[name], shapes[ours], formats[name])
        except CheckpointError as error:
            wrong.append(str(error))
    if wrong:
        problems.append(_listed(wrong))
    if problems:
        raise CheckpointError(
            f"The tensors in {files.folder} do not fit its config.json. "
            + ". ".join(problems)
            + ". Weights and config must come from the same checkpoint."
        )
    is_mlx = any(isinstance(rows, GroupRows | PatchRows) for rows in parameters.values())
    return MatchedTensors(parameters=parameters, notes=tuple(notes), is_mlx=is_mlx)


def _refuse_others(files: WeightFiles) -> None:
    codes = {name: tensor.dtype_code for name, tensor in files.tensors.items()}
    if quantized := method_of(codes):
        method, name = quantized
        raise CheckpointError(why_method(f"{files.folder} contains {name}", method))
    if adapters := sorted(filter(is_adapter_part, codes)):
        raise CheckpointError(
            f"{files.folder} contains a whole model with adapters that are not merged: "
            f"{shorten(adapters, limit=3)}. Merge them in peft (merge_and_unload, then "
            "save_pretrained), or save the adapter alone and load it with adapter=... "
            "(--adapter)."
        )


def _group(files: WeightFiles) -> tuple[dict[str, dict[str, str]], Counter[str], list[str]]:
    """Group tensors by parameter, by released name.

    Also return how many tensors of other models are left out, and a problem per duplicate tensor.
    """
    tensors: dict[str, dict[str, str]] = {}
    left_out: Counter[str] = Counter()
    problems = []
    for name in files.tensors:
        if part := belongs_to(name):
            left_out[part] += 1
            continue
        parameter, role = to_released_name(name), ""
        if match := _OF_WEIGHT.fullmatch(parameter):
            parameter, role = match.groups()
        elif match := _OF_MODULE.fullmatch(parameter):
            parameter, role = match[1] + ".weight", match[2]
        roles = tensors.setdefault(parameter, {})
        if role in roles:
            problems.append(f"{name} and {roles[role]} are the same tensor")
        roles[role] = name
    return tensors, left_out, problems


def _required(weight_format: WeightFormat | None) -> set[str]:
    return {""} if weight_format is None else {Q_SUFFIX, SCALES_SUFFIX}


def _scheme(roles: Collection[str]) -> str:
    """Return how a weight with these tensors is stored, unless in a format of our own."""
    if any(role in _FOUR_BIT or role.startswith(STATE) for role in roles):
        return "4-bit"
    for scheme, signs in (("8-bit", _EIGHT_BIT), ("mlx", _MLX)):
        if any(sign in roles for sign in signs):
            return scheme
    return "plain"


def _is_expected(role: str, scheme: str) -> bool:
    if scheme == "4-bit":
        return role in ("", *_FOUR_BIT) or role.startswith(STATE)
    roles = {"plain": ("",), "8-bit": ("", *_EIGHT_BIT), "mlx": ("", *_MLX)}
    return role in roles.get(scheme, (Q_SUFFIX, SCALES_SUFFIX))


def _name_problems(
    tensors: Mapping[str, _Roles], formats: Mapping[str, WeightFormat | None]
) -> list[str]:
    missing, unknown = [], []
    for name, weight_format in formats.items():
        roles = tensors.get(name, {})
        missing += [name + role for role in _required(weight_format) - roles.keys()]
        scheme = _scheme(roles) if weight_format is None else "own"
        unknown += [tensor for role, tensor in roles.items() if not _is_expected(role, scheme)]
    for name in tensors.keys() - formats.keys():
        unknown += tensors[name].values()
    problems = [f"missing: {shorten(sorted(missing))}"] if missing else []
    return problems + ([f"unknown: {shorten(sorted(unknown))}"] if unknown else [])


def _table_dtype(files: WeightFiles, tensors: Mapping[str, _Roles]) -> torch.dtype:
    """Return the dtype of the table, which is that of the model before it was quantized."""
    table = tensors.get(EMBEDDING, {}).get("")
    code = None if table is None else files.tensors[table].dtype_code
    return DTYPE_CODES.get(code or "", torch.bfloat16)


@dataclass(frozen=True, kw_only=True)
class _Opener:
    """Opens parameters, after checking their shapes and dtypes."""

    files: WeightFiles
    stored: StoredConfig
    dtype: torch.dtype
    """The dtype of int8 weights before they were quantized."""

    def open(
        self, name: str, roles: _Roles, shape: tuple[int, ...], weight_format: WeightFormat | None
    ) -> StoredRows:
        """Raises CheckpointError, whose text is only about the tensors."""
        if weight_format is not None:
            names = roles[Q_SUFFIX], roles[SCALES_SUFFIX]
            self._check(names[0], q_shape(shape, weight_format), ("U8",))
            self._check(names[1], scales_shape(shape, weight_format), ("BF16",))
            return QuantizedFileRows(self.files, names, shape, weight_format)
        scheme = _scheme(roles)
        if scheme == "4-bit":
            return FourBitRows(self.files, roles, shape)
        if scheme == "8-bit":
            return EightBitRows(self.files, roles, shape, self.dtype)
        if scheme == "mlx":
            return self._open_groups(name, roles, shape)
        return self._open_plain(name, roles[""], shape)

    def _open_plain(self, name: str, tensor: str, shape: tuple[int, ...]) -> StoredRows:
        stored = self.files.tensors[tensor]
        if name == PATCHES and len(stored.shape) == 4:
            last = (*shape[:1], *shape[2:], shape[1])
            is_mlx = self.files.metadata.get("format") == "mlx"
            if stored.shape == last and (last != shape or is_mlx):
                self._check(tensor, last, tuple(DTYPE_CODES))
                return PatchRows(self.files, tensor, shape)
        if name == EMBEDDING:
            self._check(tensor, (self.stored.table_rows, *shape[1:]), tuple(DTYPE_CODES))
        else:
            hint = ""
            if name == POSITIONS and stored.shape[1:] == shape[1:]:
                hint = _other_resolution(stored.shape[0], self.stored)
            self._check(tensor, shape, tuple(DTYPE_CODES), hint)
        return FileRows(self.files, tensor, shape)

    def _open_groups(self, name: str, roles: _Roles, shape: tuple[int, ...]) -> StoredRows:
        rows = GroupRows(self.files, roles, shape)
        num_rows = (shape[0], self.stored.table_rows) if name == EMBEDDING else shape[:1]
        if rows.num_rows not in num_rows:
            raise CheckpointError(f"{rows.name} has {rows.num_rows} rows, expected {num_rows[-1]}")
        declared = self._declared_groups(name)
        if declared not in (None, rows.groups):
            raise CheckpointError(
                f"{rows.name} has {_in_words(rows.groups)}, but config.json says "
                f"{_in_words(declared)}"
            )
        return rows

    def _declared_groups(self, name: str) -> GroupFormat | None:
        entry = self.stored.mlx_groups
        if entry is None:
            return None
        for module, groups in entry.items():
            if isinstance(groups, dict) and to_released_name(f"{module}.weight") == name:
                entry = {**entry, **groups}
        return GroupFormat(entry["bits"], entry["group_size"])

    def _check(
        self, tensor: str, shape: tuple[int, ...], codes: tuple[str, ...], hint: str = ""
    ) -> None:
        stored = self.files.tensors[tensor]
        if stored.shape != shape:
            raise CheckpointError(f"{tensor} is {stored.shape}, expected {shape}{hint}")
        if stored.dtype_code not in codes:
            raise CheckpointError(
                f"{tensor} has dtype {stored.dtype_code}, expected {' or '.join(codes)}"
            )


def _in_words(groups: GroupFormat) -> str:
    return f"{groups.bits} bits in groups of {groups.group_size}"


def _listed(problems: Sequence[str]) -> str:
    rest = len(problems) - _MAX_LISTED
    return "; ".join(problems[:_MAX_LISTED]) + (f"; and {rest} more" if rest > 0 else "")


def _other_resolution(num_positions: int, stored: StoredConfig) -> str:
    vision = stored.config.vision
    side = isqrt(num_positions)
    if side**2 != num_positions:
        return ""
    return (
        f" (positions for images of {side * vision.patch_size} pixels, while the config says "
        f"{vision.resolution})"
    )


def _check_output_layer(files: WeightFiles, output_layer: _Roles, embedding: _Roles) -> None:
    are_equal = output_layer.keys() == embedding.keys() and all(
        files.hold_the_same(tensor, embedding[role]) for role, tensor in output_layer.items()
    )
    if not are_equal:
        raise CheckpointError(
            f"{files.folder} contains an output layer {next(iter(output_layer.values()))} that "
            f"differs from the embedding {EMBEDDING}. PaliGemma uses one table for both."
        )
