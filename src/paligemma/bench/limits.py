"""How fast this machine reads memory and files, and multiplies matrices, measured now."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional as F

from paligemma.fast.kernels.library import kernels

_BUFFER_BYTES = 2**30  # more than any cache holds
_PIECE_BYTES = 2**26
_SIDE = 2048


@dataclass(frozen=True, kw_only=True)
class Limits:
    read_bandwidth: float
    """Bytes a second from memory."""
    matrix_peak: float
    """Operations a second, bfloat16; a multiplication and an addition are two."""
    file_bandwidth: float = float("inf")
    """Bytes a second from a file that was read before."""


class LimitsProbe:
    """Measures again and again in buffers that it keeps: 1 GiB.

    Where the package's own kernels are there, they measure: the matrix peak is then that of the
    processor's matrix unit on numbers at hand. torch's own products reach less of it, so that
    shares are of what torch can do at best.
    """

    def __init__(self) -> None:
        self._read_bandwidth: Callable[[], float]
        self._matrix_peak: Callable[[], float]
        native = kernels()
        self.measured_by = "torch" if native is None else "native"
        if native is None:
            side = round((_BUFFER_BYTES / 4) ** 0.5)
            self._matrix, self._vector = torch.ones(side, side), torch.ones(side)
            self._factor = torch.ones(_SIDE, _SIDE, dtype=torch.bfloat16)
            self._read_bandwidth, self._matrix_peak = self._torch_read, self._torch_multiply
        else:
            self._read_bandwidth = native.measure_read_bandwidth
            self._matrix_peak = native.measure_matrix_peak

    def measure(self) -> Limits:
        return Limits(read_bandwidth=self._read_bandwidth(), matrix_peak=self._matrix_peak())

    @torch.inference_mode()
    def _torch_read(self) -> float:
        # Of torch's operations the one that comes nearest to the memory's rate.
        return _BUFFER_BYTES / _seconds(lambda: torch.mv(self._matrix, self._vector))

    @torch.inference_mode()
    def _torch_multiply(self) -> float:
        return 2 * _SIDE**3 / _seconds(lambda: F.linear(self._factor, self._factor))


def file_bandwidth(folder: Path) -> float:
    """Bytes a second of reading the weight files of a folder, for the second time at least."""
    piece = bytearray(_PIECE_BYTES)
    files = sorted(folder.glob("*.safetensors"))

    def read() -> None:
        for path in files:
            with path.open("rb", buffering=0) as file:
                while file.readinto(piece):
                    pass

    return sum(path.stat().st_size for path in files) / _seconds(read)


def _seconds(run: Callable[[], object]) -> float:
    """The median of three, after one that does not count."""
    run()
    times = []
    for _ in range(3):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)
