"""How fast this machine reads memory and multiplies matrices, measured now."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from paligemma.fast.kernels.library import kernels

_BUFFER_BYTES = 2**30  # larger than any cache
_SIDE = 2048


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The machine's measured limits."""

    read_bandwidth: float
    """Bytes per second from memory."""
    matrix_peak: float
    """bfloat16 operations per second; a multiplication and an addition are two."""


class LimitsProbe:
    """Measures the limits repeatedly, in buffers of 1 GiB.

    Uses the package's compiled kernels if there are any: they measure the peak of the processor's
    matrix unit on operands in registers. torch's matrix products reach less, so without kernels
    shares are relative to the best that torch reaches.
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
        # The torch operation that comes closest to the memory's rate.
        return _BUFFER_BYTES / median_seconds(lambda: torch.mv(self._matrix, self._vector))

    @torch.inference_mode()
    def _torch_multiply(self) -> float:
        return 2 * _SIDE**3 / median_seconds(lambda: F.linear(self._factor, self._factor))


def median_seconds(run: Callable[[], object]) -> float:
    """The median of three runs, after one warm-up run."""
    run()
    times = []
    for _ in range(3):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)
