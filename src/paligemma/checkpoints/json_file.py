"""Strict parsing of small JSON files: a size limit, one object, no NaN."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

from paligemma.errors import CheckpointError

_MAX_BYTES = 64 * 1024**2  # the largest index of a released model has 0.1 MB


def read_json(path: Path) -> dict[str, Any]:
    """Read the object in a JSON file. Raises CheckpointError, which names the file.

    >>> read_json(Path("config.json"))["model_type"]  # doctest: +SKIP
    'paligemma'
    """
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from error
    if len(raw) > _MAX_BYTES:
        raise CheckpointError(f"{path} is larger than the limit of {_MAX_BYTES // 1024**2} MiB.")
    try:
        content = json.loads(raw, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise CheckpointError(f"{path} is not valid JSON: {reason}.") from error
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path} contains a JSON {type(content).__name__}; expected an object {{...}}."
        )
    return content


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")
