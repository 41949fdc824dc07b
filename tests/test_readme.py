"""The Python in README.md and docs/performance.md runs and prints the output shown below it."""

from __future__ import annotations

import contextlib
import io
import re
import shutil
from importlib.resources import files
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
PERFORMANCE = (REPOSITORY / "docs" / "performance.md").read_text(encoding="utf-8")
BLOCK = r"```python\n(.*?)```(?:\n\n```text\n(.*?)```)?"
BLOCKS = [*re.findall(BLOCK, README, re.DOTALL), *re.findall(BLOCK, PERFORMANCE, re.DOTALL)]


@pytest.fixture
def working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    if not (files("paligemma") / "mini" / "model" / "model.safetensors").is_file():
        pytest.skip("the weights of mini are not there yet")
    shutil.copytree(REPOSITORY / "examples", tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def assert_alike(printed: str, expected: str) -> None:
    """Equal words, and numbers but for what another processor rounds differently."""
    ours, theirs = printed.split(), expected.split()
    assert len(ours) == len(theirs), printed
    for one, other in zip(ours, theirs, strict=True):
        if re.fullmatch(r"[\d.]+", one) and re.fullmatch(r"[\d.]+", other):
            assert float(one) == pytest.approx(float(other), rel=0.03, abs=0.021), printed
        else:
            assert one == other, printed


def test_the_python_of_the_readme_prints_what_it_says(working_directory: Path) -> None:
    namespace: dict[str, object] = {}
    assert len(BLOCKS) == 4
    for code, expected in BLOCKS:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, "README.md", "exec"), namespace)
        if expected:
            assert_alike(printed.getvalue(), expected)
    assert (working_directory / "out.png").is_file()
    assert (working_directory / "my-model" / "config.json").is_file()


def test_every_file_that_the_readme_links_is_there() -> None:
    links = re.findall(r"\]\((?!https?://)([^)#]+)\)", README)
    assert links
    assert [link for link in links if not (REPOSITORY / link).exists()] == []


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 150
