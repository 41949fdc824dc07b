"""The public namespaces: what they hold, and that README, docs and examples need nothing else."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
ROOMS = [
    "tasks", "data", "finetune", "evals", "engine", "checkpoints", "server", "adapters", "certify",
    "documents", "extraction", "alt", "batch", "catalog", "compare", "search", "video",
]  # fmt: skip
NAMESPACES = ("paligemma", *(f"paligemma.{room}" for room in ROOMS))
HEAVY = {"torch", "numpy", "PIL", "transformers", "huggingface_hub", "fastapi", "uvicorn"}


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_every_public_name_can_be_imported(namespace: str) -> None:
    module = importlib.import_module(namespace)
    for name in module.__all__:
        imported = getattr(module, name)
        assert imported is not None
        # A function and a module of one name would hide each other.
        assert not isinstance(imported, type(sys)), f"{namespace}.{name} is a module"
        assert importlib.util.find_spec(f"{namespace}.{name}") is None
    assert set(dir(module)) == set(module.__all__)
    with pytest.raises(AttributeError, match="no_such_name"):
        module.no_such_name  # noqa: B018


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_type_checkers_see_the_same_names(namespace: str) -> None:
    """The imports under TYPE_CHECKING name the same modules as those made on first use."""
    module = importlib.import_module(namespace)
    assert module.__file__ is not None
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    static = {
        alias.asname: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname is not None
    }
    assert sorted(static) == module.__all__
    for name, home in static.items():
        assert home is not None
        assert getattr(importlib.import_module(home), name) is getattr(module, name)


def test_importing_a_namespace_imports_nothing_heavy() -> None:
    code = (
        f"import sys, {', '.join(NAMESPACES)}; paligemma.RELEASES; paligemma.OptionError; "
        f"sys.exit(', '.join({HEAVY!r} & set(sys.modules)) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def shown_code() -> Iterator[tuple[str, str]]:
    """(where, Python) of each code block in README and docs, and of each example."""
    for page in (REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))):
        blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
        for number, code in enumerate(blocks, start=1):
            yield f"{page.relative_to(REPOSITORY)}, block {number}", code
    for path in sorted((REPOSITORY / "examples").rglob("*.py")):
        yield str(path.relative_to(REPOSITORY)), path.read_text(encoding="utf-8")
    for notebook in sorted((REPOSITORY / "examples").rglob("*.ipynb")):
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        code = "".join("".join(c["source"]) + "\n" for c in cells if c["cell_type"] == "code")
        yield str(notebook.relative_to(REPOSITORY)), re.sub(r"(?m)^[%!].*", "", code)


def used_names(code: str) -> Iterator[tuple[str, str]]:
    """(namespace, name) of everything that the code takes from the package."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "paligemma":
            assert node.module is not None
            yield from ((node.module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((a.name, "") for a in node.names if a.name.startswith("paligemma."))
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) in NAMESPACES:
            yield ast.unparse(node.value), node.attr


def test_readme_docs_and_examples_use_public_names_only() -> None:
    wrong, number = [], 0
    for where, code in shown_code():
        for namespace, name in used_names(code):
            number += 1
            public = importlib.import_module(namespace).__all__ if namespace in NAMESPACES else ()
            if name not in (*public, "__version__", *(ROOMS if namespace == "paligemma" else ())):
                wrong.append(f"{where}: {namespace}.{name}")
    assert wrong == []
    assert number > 20
