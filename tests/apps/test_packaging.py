"""What is installed and what the repository promises about it."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

REPOSITORY = Path(__file__).parents[2]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# Gradio wants an older Pillow than the rest is tested with: `demo` has an environment of its own.
# So have the programs that checkpoints are compared with (`references`), which are large.
REQUIREMENTS = [
    *PROJECT["dependencies"],
    *(
        each
        for name, extra in PROJECT["optional-dependencies"].items()
        if name not in ("demo", "references")
        for each in extra
        if not each.startswith("paligemma[")
    ),
]


@pytest.mark.parametrize("requirement", sorted(set(REQUIREMENTS)))
def test_what_is_installed_is_what_is_asked_for(requirement):
    wanted = Requirement(requirement)
    assert wanted.specifier.contains(Version(version(wanted.name)).public)


@pytest.mark.parametrize(("name", "least"), [("torch", "2.10"), ("pillow", "12.3")])
def test_versions_with_known_holes_cannot_be_asked_for(name, least):
    [wanted] = [r for r in map(Requirement, PROJECT["dependencies"]) if r.name == name]
    assert str(wanted.specifier) == f">={least}"


def test_torchvision_is_absent():
    with pytest.raises(PackageNotFoundError):
        version("torchvision")


def test_constraints_are_names_and_versions_only():
    lines = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = dict(line.split("==") for line in lines)
    for name, number in pinned.items():
        assert re.fullmatch(r"[A-Za-z0-9._-]+", name)
        assert Version(number).local is None
    names = {re.sub(r"[-_.]+", "-", name).lower() for name in pinned}
    for wanted in map(Requirement, REQUIREMENTS):
        assert re.sub(r"[-_.]+", "-", wanted.name).lower() in names


def test_the_package_says_its_version_once():
    import paligemma

    assert "version" in PROJECT["dynamic"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", paligemma.__version__)
