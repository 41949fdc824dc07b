"""Public names of a package, imported when they are first used."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def lazy_names(
    package: str, modules: Mapping[str, tuple[str, ...]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Return `__getattr__`, `__dir__` and `__all__` for the `__init__` of `package`.

    `modules` maps each module of the package to its public names. Type checkers read the same
    names from the imports under TYPE_CHECKING next to the call.
    """
    module_of = {name: module for module, names in modules.items() for name in names}
    public_names = sorted(module_of)

    def get_attribute(name: str) -> Any:
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f"{package}.{module_of[name]}"), name)
        setattr(sys.modules[package], name, value)
        return value

    return get_attribute, lambda: public_names, public_names
