"""Every level of kernels, one after the other: compiled for it where this processor can run it, and
with its instructions emulated on every processor."""

from __future__ import annotations

import os

import pytest

from paligemma.fast import float32
from paligemma.fast.kernels import layers, products
from paligemma.fast.kernels.build import LEVELS, find_compiler
from paligemma.fast.kernels.library import Kernels, load_kernels
from tests.fast.kernels.emulation import EMULATED_LEVELS, emulated_kernels


@pytest.fixture(params=[*LEVELS, *(f"{level} emulated" for level in EMULATED_LEVELS)])
def compiled(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> Kernels:
    """The kernels of one level, put in the place of the best."""
    level, *emulated = request.param.split()
    if emulated and find_compiler() is None:
        pytest.skip("no C++ compiler")
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # of all processes of this run
    found = emulated_kernels(level, folder) if emulated else load_kernels(level)
    if found is None:
        pytest.skip(f"the kernels for {level} were not compiled, or this processor lacks it")
    for module in (products, layers, float32):
        monkeypatch.setattr(module, "kernels", lambda: found)
    return found
