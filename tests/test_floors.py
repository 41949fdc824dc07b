"""The rules of the package's source: who imports whom, and what no file may use.

One test per rule. A failure lists every file and module that breaks the rule.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "src" / "paligemma"

# A part of the package imports from the layers before its own, and from parts of its own layer as
# long as no two of them import each other.
LAYERS = (
    (
        "config",
        "errors",
        "results",
        "masks",
        "inputs",
        "lazy_names",
        "options",
        "mini",
        "threads",
        "process_memory",
        "sandbox",
        "escaping",
        "tables",
        "charts",
        "writing",
    ),
    ("processor", "model", "tasks", "draw", "report", "fonts"),
    ("fast", "adapters"),
    ("engine", "checkpoints"),
    ("answering",),
    ("documents", "video", "ranking"),
    ("extraction",),
    ("predictor", "loading"),
    ("__init__",),
    (
        "alt",
        "batch",
        "bench",
        "catalog",
        "certify",
        "compare",
        "data",
        "evals",
        "finetune",
        "gradio_demo",
        "search",
        "server",
    ),
    ("cli",),
    ("__main__",),
)
# Imports within the last layer of rooms: data may be used by evals and finetune, evals by finetune.
WITHIN_LAST = {
    ("batch", "data"),
    ("catalog", "batch"),
    ("catalog", "data"),
    ("compare", "batch"),
    ("compare", "data"),
    ("compare", "evals"),
    ("evals", "data"),
    ("finetune", "data"),
    ("finetune", "evals"),
    ("search", "data"),
}
LAST = set(LAYERS[9])

# What still breaks the layers: (importing part, imported part). Only ever remove from this list:
# a test fails when an entry is no longer needed.
TEMPORARY: set[tuple[str, str]] = {
    ("results", "draw"),
}
# The same for files of the package that import from the repository's top-level folders.
TEMPORARY_OUTSIDE: set[str] = set()

OUTSIDE = {"mini", "benchmarks", "examples", "tests"}  # top-level folders of the repository
NETWORK_FILES = {
    "processor/fetch.py",
    "checkpoints/hub.py",
    "compare/endpoint.py",  # asks models at addresses that the user names as contestants
}
NETWORK_MODULES = {"requests", "urllib", "urllib3", "http", "httpx", "httpx2", "socket", "aiohttp"}
REFERENCE_MODULES = {"torchvision", "transformers", "keras", "keras_hub"}
# Runs in a process of its own, where the user compares with a model of transformers.
REFERENCE_FILES = {"compare/transformers_model.py"}
PICKLE_MODULES = {"pickle", "cPickle", "_pickle", "dill", "joblib", "shelve", "marshal"}
# The one reader of pickled data sets, which resolves no name outside its own short list.
PICKLE_FILES = {"evals/datasets/files.py"}

TREES = {
    path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
    for path in sorted(PACKAGE.rglob("*.py"))
}


def imports(tree: ast.AST) -> Iterator[str]:
    """Full names of all modules imported anywhere in the tree, except those used only as types."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
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


def roots(file: str) -> set[str]:
    return {name.split(".")[0] for name in imports(TREES[file])}


def part_of(name: str) -> str:
    """ "model/rope.py" and "paligemma.model.rope" are both in "model"; the root is "__init__"."""
    name = name.removesuffix(".py").replace("/", ".")
    return "__init__" if name == "paligemma" else name.removeprefix("paligemma.").split(".")[0]


def import_edges() -> dict[tuple[str, str], str]:
    """(importing part, imported part) -> one file that does it."""
    edges = {}
    for file, tree in TREES.items():
        for name in imports(tree):
            if name.split(".")[0] == "paligemma" and part_of(name) != part_of(file):
                edges[part_of(file), part_of(name)] = f"{file} imports {name}"
    return edges


def is_allowed(importing: str, imported: str) -> bool:
    layer = {part: number for number, parts in enumerate(LAYERS) for part in parts}
    if layer[importing] != layer[imported]:
        return layer[importing] > layer[imported]
    return importing not in LAST or (importing, imported) in WITHIN_LAST


def test_every_part_of_the_package_has_a_layer() -> None:
    parts = {part_of(file) for file in TREES}
    assert parts - {part for layer in LAYERS for part in layer} == set()


def test_modules_import_only_from_the_layers_below() -> None:
    broken = {edge: where for edge, where in import_edges().items() if not is_allowed(*edge)}
    assert {edge: where for edge, where in broken.items() if edge not in TEMPORARY} == {}
    assert TEMPORARY - broken.keys() == set(), "no longer needed: remove them from TEMPORARY"


def test_no_two_parts_import_each_other() -> None:
    graph: dict[str, set[str]] = {}
    for importing, imported in import_edges().keys() - TEMPORARY:
        graph.setdefault(importing, set()).add(imported)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        raise AssertionError(f"import cycle: {' -> '.join(error.args[1])}") from None


def test_the_package_imports_nothing_of_the_repositorys_top_level() -> None:
    users = {file for file in TREES if roots(file) & OUTSIDE}
    assert users - TEMPORARY_OUTSIDE == set()
    assert TEMPORARY_OUTSIDE - users == set(), "no longer needed: remove from TEMPORARY_OUTSIDE"


def test_only_three_files_use_the_network() -> None:
    users = set()
    for file, tree in TREES.items():
        names = set(imports(tree)) - {"urllib.parse"}  # which only reads addresses
        if NETWORK_MODULES & {name.split(".")[0] for name in names}:
            users.add(file)
    assert users - NETWORK_FILES == set()


def test_the_package_does_without_torchvision_and_transformers() -> None:
    users = {file for file in TREES if roots(file) & REFERENCE_MODULES}
    assert users - REFERENCE_FILES == set()
    edges = {
        file
        for file, tree in TREES.items()
        for name in imports(tree)
        if name == "paligemma.compare.transformers_model"
    }
    assert edges == {"compare/child.py"}, "only the process of such a contestant imports it"


def test_nothing_that_runs_code_from_files_is_used() -> None:
    broken = [file for file in TREES if roots(file) & PICKLE_MODULES and file not in PICKLE_FILES]
    for file, tree in TREES.items():
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        broken += [f"{file}:{call.lineno}" for call in calls if may_run_code(call)]
    assert broken == []


def may_run_code(call: ast.Call) -> bool:
    if ast.unparse(call.func) in {"torch.load", "eval", "exec"}:
        return True
    for keyword in call.keywords:
        value = keyword.value.value if isinstance(keyword.value, ast.Constant) else None
        if keyword.arg == "trust_remote_code" and value is not False:
            return True
        if keyword.arg == "allow_pickle" and value is not False:
            return True
        if keyword.arg == "weights_only" and value is not True:
            return True
    return False


def test_every_file_says_what_it_is_for() -> None:
    assert [file for file, tree in TREES.items() if not ast.get_docstring(tree)] == []
