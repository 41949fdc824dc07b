"""Compiles the kernels while the package is built or installed; never stops it.

Without a compiler the package is pure Python and computes the same, only slower.
"""

from __future__ import annotations

import importlib.util
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class KernelBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel":
            return
        path = Path(self.root) / "src/paligemma/fast/kernels/build.py"
        spec = importlib.util.spec_from_file_location("kernel_build", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        outcomes: dict[str, str | None] = module.build()
        for level, problem in outcomes.items():
            if problem is not None:
                self.app.display_warning(f"kernels ({level}) were not compiled: {problem}")
        if version == "editable" or all(outcomes.values()):
            return
        # The libraries know no Python, so one wheel serves every version of it on this platform.
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["tag"] = f"py3-none-{platform}"
        build_data["pure_python"] = False
        build_data["artifacts"].append("src/paligemma/fast/kernels/lib/*.so")
