"""Small files of a checkpoint: strict JSON, and SHA-256 checksums.

Checksums are written by `save_model`, or published by the hub.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from paligemma.errors import CheckpointError

CHECKSUM_FILE = "checksums.json"

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


def verify_files(folder: Path, paths: Sequence[Path]) -> None:
    """Compare the weight files in a folder with their SHA-256.

    The checksums come from `checksums.json`, which `save_model` writes, or, in a hub cache, from
    the names of the blobs, which are the checksums that the hub published. Raises CheckpointError
    at the first difference.
    """
    listed = folder / CHECKSUM_FILE
    sums = _listed_sums(listed) if listed.exists() else {}
    for path in paths:
        blob = path.resolve().name
        if path.name not in sums and re.fullmatch(r"[0-9a-f]{64}", blob):
            sums[path.name] = blob
        if path.name not in sums:
            raise CheckpointError(
                f"{path} cannot be verified: there is no checksum for it. Folders written by this "
                f"package contain {CHECKSUM_FILE}; load others without verification."
            )
    for name, expected in sums.items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(
                f"{path} is listed in {CHECKSUM_FILE} but does not exist. Copy or download it "
                "again."
            )
        actual = sha256_of(path)
        if actual != expected:
            raise CheckpointError(
                f"{path} has SHA-256 {actual}; expected {expected}. The file is damaged or was "
                "changed: copy or download it again."
            )


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _listed_sums(path: Path) -> dict[str, str]:
    files = read_json(path).get("sha256")
    if not isinstance(files, dict) or not all(isinstance(value, str) for value in files.values()):
        raise CheckpointError(
            f'{path} has no valid "sha256" object that maps file names to checksums.'
        )
    if outside := [name for name in files if Path(name).name != name or "\\" in name]:
        raise CheckpointError(
            f"{path} lists {outside[0]!r}; expected plain file names without a folder."
        )
    return dict(files)
