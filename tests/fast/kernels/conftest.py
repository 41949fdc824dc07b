"""Every level of kernels that this machine can run, one after the other."""

from __future__ import annotations

import pytest

from paligemma.fast.kernels import layers, products
from paligemma.fast.kernels.build import LEVELS
from paligemma.fast.kernels.library import Kernels, load_kernels


@pytest.fixture(params=LEVELS)
def compiled(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Kernels:
    """The kernels of one level, put in the place of the best."""
    level: str = request.param
    found = load_kernels(level)
    if found is None:
        pytest.skip(f"the kernels for {level} were not compiled, or this processor lacks it")
    for module in (products, layers):
        monkeypatch.setattr(module, "kernels", lambda: found)
    return found
