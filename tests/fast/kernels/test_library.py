"""Which kernels are loaded, and what happens where none can be."""

from __future__ import annotations

import re
from collections.abc import Iterator
from ctypes import c_double, c_float, c_int, c_int64, c_void_p
from pathlib import Path

import pytest

from paligemma.errors import OptionError
from paligemma.fast.kernels import build, library


@pytest.fixture(autouse=True)
def _look_again() -> Iterator[None]:
    library.kernels.cache_clear()
    yield
    library.kernels.cache_clear()


def test_the_best_level_comes_first() -> None:
    best = library.kernels()
    runnable = [level for level in build.LEVELS if library.load_kernels(level) is not None]
    if not runnable:
        pytest.skip("no kernels were compiled here")
    assert best is not None
    assert best.level == runnable[0]
    assert best.measure_read_bandwidth(1 << 24) > 1e6
    assert best.measure_matrix_peak(10_000) > 1e6


@pytest.mark.parametrize("value", ["none", "off"])
def test_kernels_can_be_switched_off(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv(library.LEVEL_VARIABLE, value)
    assert library.kernels() is None


# Names that differ: a keyword of Python, and two methods of tuples.
_PYTHON_NAMES = {
    ("split_heads", "in"): "x",
    ("split_heads", "in_stride"): "x_stride",
    ("attend", "count"): "num_keys",
    ("attend_many", "count"): "num_keys",
    ("decoder_blocks", "count"): "num_blocks",
    ("read_bandwidth", "bytes"): "num_bytes",
}
_C_TYPES = {"int": c_int, "int64_t": c_int64, "float": c_float, "double": c_double, "void": None}


@pytest.mark.parametrize("name", library.FUNCTIONS)
def test_arguments_are_those_of_the_cpp_declaration_in_name_type_and_order(name: str) -> None:
    sources = "".join(path.read_text() for path in sorted(build.SOURCES.glob("*.cpp")))
    # Definitions begin with `extern "C"` on their own line, or stand in a block of them.
    pattern = rf"(\w+) paligemma_{name}\(([^)]*)\)\s*{{"
    declarations = re.findall(pattern, sources)
    assert len(declarations) == 1
    ((result, parameters),) = declarations
    names, types = [], []
    for parameter in parameters.split(","):
        words, _, c_name = " ".join(parameter.split()).rpartition(" ")
        is_pointer = "*" in parameter
        c_name = c_name.lstrip("*")
        names.append(_PYTHON_NAMES.get((name, c_name), c_name))
        types.append(c_void_p if is_pointer else _C_TYPES[words])
    arguments, python_result = library.FUNCTIONS[name]
    assert list(arguments._fields) == names  # type: ignore[attr-defined]
    assert library.argument_types(arguments) == types
    assert python_result == _C_TYPES[result]


def test_an_unknown_level_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(library.LEVEL_VARIABLE, "fastest")
    with pytest.raises(
        OptionError, match=r"PALIGEMMA_KERNELS is 'fastest'; it must be one of none"
    ):
        library.kernels()


def test_a_processor_that_lacks_everything_gets_none(monkeypatch: pytest.MonkeyPatch) -> None:
    if not any(library._NEEDS.values()):
        pytest.skip("the generic kernels run on every processor of this kind")
    monkeypatch.setattr(library, "processor_flags", lambda: frozenset({"sse2"}))
    assert library.kernels() is None


def test_a_level_needs_the_features_that_it_is_compiled_for() -> None:
    for level, flags in build.LEVELS.items():
        needed = {need.replace("_", "") for need in library._NEEDS[level]}
        features = {flag[2:].replace("-", "") for flag in flags if "=" not in flag}
        assert features <= needed


def test_without_a_compiler_every_level_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    outcomes = build.build()
    assert outcomes.keys() == build.LEVELS.keys()
    assert all("no C++ compiler" in (problem or "") for problem in outcomes.values())


@pytest.fixture
def _failing_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiler = tmp_path / "c++"
    compiler.write_text("#!/bin/sh\necho 'x.cpp:1: error: no such flag' >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setattr(build, "OUTPUT", tmp_path / "lib")


@pytest.mark.usefixtures("_failing_compiler")
def test_a_compiler_that_fails_leaves_no_file(tmp_path: Path) -> None:
    outcomes = build.build()
    assert set(outcomes.values()) == {"x.cpp:1: error: no such flag"}
    assert not list((tmp_path / "lib").iterdir())


@pytest.mark.usefixtures("_failing_compiler")
def test_libraries_of_other_sources_are_not_loaded_but_warned_of_and_removed(
    tmp_path: Path,
) -> None:
    (tmp_path / "lib").mkdir()
    old = tmp_path / "lib" / "paligemma_generic_0123456789ab.so"
    old.write_bytes(b"not a library")
    with pytest.warns(UserWarning, match=r"another version.*paligemma\.fast\.kernels\.build"):
        assert library.kernels() is None
    build.build()
    assert not old.exists()


def test_the_name_of_a_library_follows_its_sources(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "linear.cpp").write_text("// one")
    monkeypatch.setattr(build, "SOURCES", tmp_path)
    names = set()
    for text in ("// one", "// two"):
        (tmp_path / "linear.cpp").write_text(text)
        build._digest.cache_clear()
        names.add(build.library_path("generic").name)
    build._digest.cache_clear()
    assert len(names) == 2
