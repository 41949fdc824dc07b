"""Public names of a package, imported when they are first used."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Callable
from typing import Any

_IMPORT = re.compile(r"^    from (\S+) import \(?\s*(\w+) as \2\b", re.MULTILINE)


def lazy_names(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Return `__getattr__`, `__dir__` and `__all__` for the `__init__` of `package`.

    The names are those that it imports under TYPE_CHECKING, one per import, for type checkers. They
    are read from its source, so that they are listed only once.
    """
    module_of = {
        name: module for module, name in _IMPORT.findall(inspect.getsource(sys.modules[package]))
    }
    public_names = sorted(module_of)

    def get_attribute(name: str) -> Any:
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(module_of[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    return get_attribute, lambda: public_names, public_names
