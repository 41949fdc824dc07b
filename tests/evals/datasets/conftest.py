"""What the tests of the readers share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.evals.datasets.official import Official


@pytest.fixture
def official(tmp_path: Path) -> Official:
    return Official(tmp_path)
