"""Read and write tensors in HDF5 files, as Keras stores weights: one file, or shards.

HDF5 can do far more than hold tensors: datasets may be in other files, be computed from others, or
be compressed, so that a few bytes claim to be terabytes. Keras uses nothing of it. Here every
dataset is one block of values inside the file itself, which is checked when the file is opened;
anything else is refused before a value is read.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from paligemma.errors import CheckpointError, MissingExtraError

_DTYPES = {"<f4": torch.float32, "<f2": torch.float16, "|i1": torch.int8}
_BFLOAT16 = np.dtype("V2")  # NumPy and HDF5 have none: opaque bytes, with an attribute
_NUMPY_DTYPES = {
    torch.float32: np.dtype("<f4"),
    torch.float16: np.dtype("<f2"),
    torch.bfloat16: _BFLOAT16,
}
_MAX_OBJECTS = 100_000  # groups and datasets in a file; the largest released model has 3,000


class Hdf5Store:
    """The datasets of HDF5 files, by their paths such as `layers/dense/vars/0`.

    Raises CheckpointError, which names file and dataset, for files that are damaged or truncated,
    for datasets in more than one file, and for everything that Keras does not write: links,
    external, virtual, chunked or compressed datasets, other dtypes.
    """

    def __init__(
        self, path: Path, files: Sequence[Path], ignore: Callable[[str], bool] = lambda _: False
    ) -> None:
        """`path` is the file or folder for errors; `ignore` says which datasets to leave out."""
        self.path = path
        self._ignore = ignore
        self.file_of: dict[str, Path] = {}
        self._datasets: dict[str, Any] = {}
        self._dtypes: dict[str, torch.dtype] = {}
        self._files: list[Any] = []
        try:
            for file in files:
                self._open(file)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        for file in self._files:
            file.close()

    @property
    def names(self) -> Collection[str]:
        return self._datasets.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._datasets[name].shape)

    def dtype(self, name: str) -> torch.dtype:
        return self._dtypes[name]

    def read(self, name: str, index: tuple[int, ...], start: int, end: int) -> Tensor:
        """Read rows `start` to `end` of the block `tensor[index]`, in the stored dtype."""
        dataset = self._datasets[name]
        values = np.empty((end - start, *dataset.shape[len(index) + 1 :]), dataset.dtype)
        if values.size:
            with _errors_name(self.file_of[name]):
                dataset.read_direct(values, (*index, slice(start, end)))
        if values.dtype == _BFLOAT16:
            return torch.from_numpy(values.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(values)

    def _open(self, path: Path) -> None:
        h5py = _import_h5py("Reading")
        with _errors_name(path):
            file = h5py.File(path, "r", locking="best-effort")
            self._files.append(file)
            datasets = {n: found for n, found in _walk(h5py, file) if not self._ignore(n)}
            dtypes = {name: _check(h5py, name, dataset) for name, dataset in datasets.items()}
            _check_extents(datasets, path.stat().st_size)
        for name in datasets:
            if name in self._datasets:
                raise CheckpointError(
                    f"{name} is in both {self.file_of[name]} and {path}. The files do not belong "
                    "together; download or save them again."
                )
            self.file_of[name] = path
        self._datasets |= datasets
        self._dtypes |= dtypes


@dataclass(frozen=True, kw_only=True)
class DatasetToWrite:
    """A tensor, given as its values in order, in pieces that are whole rows of it."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    pieces: Iterable[Tensor]

    @property
    def num_bytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


def write_hdf5(path: Path, datasets: Mapping[str, DatasetToWrite]) -> None:
    """Write datasets piece by piece, each as one block of values."""
    h5py = _import_h5py("Writing")
    with h5py.File(path, "x") as file:
        for name, dataset in datasets.items():
            target = file.create_dataset(name, dataset.shape, _NUMPY_DTYPES[dataset.dtype])
            if dataset.dtype == torch.bfloat16:
                target.attrs["dtype"] = "bfloat16"
            row = 0
            for piece in dataset.pieces:
                values = piece.to(device="cpu", dtype=dataset.dtype).contiguous()
                values = values.view(-1, *dataset.shape[1:])
                if dataset.dtype == torch.bfloat16:
                    values = values.view(torch.int16)
                rows = slice(row, row + len(values))
                target.write_direct(values.numpy().view(target.dtype), dest_sel=rows)
                row = rows.stop
            assert row == dataset.shape[0], name


def _import_h5py(doing: str) -> Any:
    try:
        import h5py
    except ImportError as error:
        raise MissingExtraError("h5py", "formats", f"{doing} Keras presets") from error
    return h5py


@contextmanager
def _errors_name(path: Path) -> Iterator[None]:
    """Turn what h5py raises for damaged files into CheckpointError."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except (OSError, RuntimeError, ValueError, TypeError, KeyError, OverflowError) as error:
        raise CheckpointError(
            f"{path} is damaged, incomplete, or not an HDF5 file: {error}. Copy or download it "
            "again."
        ) from error


def _walk(h5py: Any, file: Any) -> Iterator[tuple[str, Any]]:
    """Yield all datasets with their paths; follow no links to elsewhere."""
    seen = {h5py.h5o.get_info(file.id).addr}
    groups = [("", file)]
    while groups:
        prefix, group = groups.pop()
        for key in group:
            name = f"{prefix}{key}"
            if not isinstance(group.get(key, getlink=True), h5py.HardLink):
                raise CheckpointError(
                    f"{name} is a link to another place, which is never followed. Save the "
                    "preset again with Keras."
                )
            item = group[key]
            address = h5py.h5o.get_info(item.id).addr
            if address in seen or len(seen) > _MAX_OBJECTS:
                raise CheckpointError(
                    f"{name} is stored under two names, or there are too many. Save the preset "
                    "again with Keras."
                )
            seen.add(address)
            if isinstance(item, h5py.Dataset):
                yield name, item
            elif isinstance(item, h5py.Group):
                groups.append((f"{name}/", item))
            else:
                raise CheckpointError(f"{name} is neither a group nor a dataset.")


def _check(h5py: Any, name: str, dataset: Any) -> torch.dtype:
    """Return the dtype of a dataset that is one block of values in its file."""
    layout = dataset.id.get_create_plist().get_layout()
    if dataset.external or layout == h5py.h5d.VIRTUAL:
        raise CheckpointError(
            f"the values of {name} are in another file, which is never read. Save the preset "
            "again with Keras."
        )
    if layout != h5py.h5d.CONTIGUOUS:
        raise CheckpointError(
            f"{name} is stored in chunks or compressed; expected one block, as Keras writes it. "
            "Rewrite the file with: h5repack -l CONTI -f NONE OLD.h5 NEW.h5"
        )
    dtype = dataset.dtype
    if dtype == _BFLOAT16 and _says_bfloat16(dataset.attrs):
        return torch.bfloat16
    if dtype.str not in _DTYPES:
        raise CheckpointError(
            f"{name} is {dtype}; expected float32, float16, bfloat16 (two opaque bytes, with the "
            "attribute dtype = 'bfloat16') or int8."
        )
    return _DTYPES[dtype.str]


def _says_bfloat16(attributes: Any) -> bool:
    if "dtype" not in attributes:
        return False
    stored = attributes.get_id("dtype")
    is_short = stored.shape == () and stored.get_storage_size() <= 64
    return is_short and attributes["dtype"] in ("bfloat16", b"bfloat16")


def _check_extents(datasets: Mapping[str, Any], file_size: int) -> None:
    """Raise unless the values of all datasets are in the file and do not overlap."""
    extents = []
    for name, dataset in datasets.items():
        start, num_bytes = dataset.id.get_offset(), prod(dataset.shape) * dataset.dtype.itemsize
        stored = dataset.id.get_storage_size()
        if start is None or stored != num_bytes or start + num_bytes > file_size:
            raise CheckpointError(
                f"{name} is {dataset.shape}, {num_bytes} bytes, which are not all in the file. It "
                "is incomplete; copy or download it again."
            )
        extents.append((start, start + num_bytes, name))
    extents.sort()
    for (_, end, name), (start, _, following) in pairwise(extents):
        if start < end:
            raise CheckpointError(
                f"{name} and {following} overlap. The file is damaged; copy or download it again."
            )
