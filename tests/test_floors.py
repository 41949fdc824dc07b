"""The shape of the package, read from its source: who imports whom, and what nobody may use."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "paligemma"

# A module imports from floors below its own, and inside its own folder.
FLOORS: dict[str, int] = {
    "errors": 0,
    "quantization": 0,
    "masks": 0,
    "config": 1,
    "results": 1,
    "processor.inputs": 1,  # the typed batch that processor and model hand on
    "processor": 2,
    "model": 2,
    "tasks": 2,
    "native": 2,
    "frozen_linear": 2,
    "draw": 2,
    "fused": 3,
    "data": 3,
    "lora": 3,
    "engine": 4,
    "checkpoints": 4,
    "text_engine": 5,
    "predictor": 6,
    "loading": 7,
    "finetune": 8,
    "evals": 8,
    "mini": 9,
    "bench": 9,
    "recipes": 9,
    "runs": 10,
    "server": 11,
    "gradio_demo": 11,
    "__init__": 10,
    "cli": 12,
    "__main__": 13,
}
# Written down where it stands: people look for `draw` at the objects that were found.
UPWARD = {("results", "draw")}
NETWORK_FILES = {"processor/fetch.py", "checkpoints/hub.py"}
NETWORK_MODULES = {"requests", "urllib", "urllib3", "http", "httpx", "httpx2", "socket", "aiohttp"}
# The other side of a benchmark, imported only when that is asked for.
COMPARING_FILES = {"bench/transformers_runner.py", "bench/keras_runner.py"}
PICKLE_MODULES = {"pickle", "cPickle", "_pickle", "dill", "joblib", "shelve", "marshal"}

FILES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


def parse(file: str) -> ast.Module:
    return ast.parse((PACKAGE / file).read_text(encoding="utf-8"))


def module_name(file: str) -> str:
    parts = file.removesuffix(".py").split("/")
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


def place(module: str) -> str:
    """The entry of FLOORS that a module (its name inside the package) belongs to."""
    return module if module in FLOORS else module.split(".")[0]


def is_for_types_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)


def imports(tree: ast.AST) -> Iterator[str]:
    """Full names of all modules imported anywhere in the tree, but for those used as types."""
    for node in ast.iter_child_nodes(tree):
        if is_for_types_only(node):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}"
            assert node.module is not None
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                path = PACKAGE.parent / full.replace(".", "/")
                is_module = path.is_dir() or path.with_suffix(".py").is_file()
                yield full if is_module else node.module
        yield from imports(node)


def inner(name: str) -> str | None:
    """ "paligemma.model.rope" -> "model.rope"; None for what is not ours."""
    if name == "paligemma":
        return "__init__"
    return name.removeprefix("paligemma.") if name.startswith("paligemma.") else None


@pytest.mark.parametrize("file", FILES)
def test_a_module_imports_only_from_floors_below(file: str) -> None:
    module = module_name(file)
    here = place(module)
    assert here in FLOORS, f"{file} stands on no floor; give it one in FLOORS"
    for name in imports(parse(file)):
        imported = inner(name)
        if imported is None or (here, there := place(imported)) in UPWARD:
            continue
        same_folder = imported.split(".")[0] == module.split(".")[0]
        assert same_folder or FLOORS[there] < FLOORS[here], f"{module} imports {imported}"


@pytest.mark.parametrize("file", FILES)
def test_nothing_that_runs_code_from_files_is_used(file: str) -> None:
    tree = parse(file)
    assert not PICKLE_MODULES & {name.split(".")[0] for name in imports(tree)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        where = f"{file}:{node.lineno}"
        assert called != "torch.load", where
        assert called not in {"eval", "exec"}, where
        for keyword in node.keywords:
            is_true = isinstance(keyword.value, ast.Constant) and keyword.value.value is True
            is_false = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
            assert keyword.arg != "allow_pickle" or is_false, where
            assert keyword.arg != "weights_only" or is_true, where
            assert keyword.arg != "trust_remote_code", where


@pytest.mark.parametrize("file", [file for file in FILES if file not in NETWORK_FILES])
def test_the_network_is_used_in_two_files_only(file: str) -> None:
    names = set(imports(parse(file))) - {"urllib.parse"}  # which only reads addresses
    assert not NETWORK_MODULES & {name.split(".")[0] for name in names}


@pytest.mark.parametrize("file", [file for file in FILES if file not in COMPARING_FILES])
def test_the_package_does_without_torchvision_and_transformers(file: str) -> None:
    roots = {name.split(".")[0] for name in imports(parse(file))}
    assert not roots & {"torchvision", "transformers", "keras", "keras_hub"}


@pytest.mark.parametrize("file", FILES)
def test_every_file_says_what_it_is_for(file: str) -> None:
    assert ast.get_docstring(parse(file)), f"{file} has no docstring"
