"""Tools of others that tests run in environments of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

_FOLDER = Path(__file__).parent


def run_reference(module: str, tool: str, *arguments: object) -> None:
    """Run a script of this folder with a Python that has a module, or skip the test.

    That is this Python, or the one in the variable PALIGEMMA_<MODULE>_PYTHON.
    """
    variable = f"PALIGEMMA_{module.upper()}_PYTHON"
    python = sys.executable if find_spec(module) else os.environ.get(variable)
    if python is None:
        pytest.skip(
            f"needs {module}: pip install paligemma[references], or set {variable} to a Python "
            "that has it"
        )
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [python, str(_FOLDER / tool), *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
