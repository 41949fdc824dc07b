"""A file next to each image: its text (1.jpg, 1.txt), or its result as JSON (1.json).

A file that the job did not write is never overwritten unless that is asked for. What the job wrote
is known by `sidecars.jsonl` in its folder, which gets a file's hash before the file is written.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from paligemma.batch.journal import Entry
from paligemma.batch.outputs.detection import label_file
from paligemma.batch.outputs.rows import Content
from paligemma.batch.source import Item
from paligemma.errors import OptionError, counted
from paligemma.writing import short_name

Sidecar = Literal["txt", "json"]
MANIFEST_FILE = "sidecars.jsonl"
_TEXT_TASKS = ("caption", "describe", "ask", "ocr", "read")
_AT_A_TIME = 1000


@dataclass(kw_only=True)
class Sidecars:
    """Where the files of a job are, and which of those that exist are its own."""

    kinds: tuple[Sidecar, ...]
    folder: Path
    """Of the job."""
    root: Path | None
    """Folder for the files; None: next to the images."""
    overwrite: bool
    _written: dict[str, set[str]] = field(default_factory=dict, init=False)

    def check(self, items: Sequence[Item], task: str) -> None:
        """Raises OptionError for files that cannot be written, or are not the job's own."""
        if not self.kinds:
            return
        if "txt" in self.kinds and task not in _TEXT_TASKS:
            raise OptionError(f"The results of {task} are not text. Use --sidecar json, or --to.")
        owners: dict[Path, str] = {}
        for item in items:
            for path in self._paths(item):
                other = owners.setdefault(path, item.key)
                if other != item.key:
                    root = " choose a folder with --sidecar-root," if self.root is None else ""
                    raise OptionError(
                        f"{other!r} and {item.key!r} would both have the file {str(path)!r}. Use "
                        f"--to jsonl,{root} or take one of them with --where."
                    )
        self._read_manifest()
        existing = [path for path in owners if _exists(path)]
        if self.overwrite:
            return
        foreign = [path for path in existing if not self._is_own(path)]
        if foreign:
            exist = counted(len(foreign), "file exists", "files exist")
            raise OptionError(
                f"{exist} that this job did not write, such as {str(foreign[0])!r}. Add "
                "--overwrite to replace them, or choose a folder with --sidecar-root."
            )

    def write(self, content: Content, items: Sequence[Item]) -> int:
        """Write the files of the items with a result that differ from what is there. Returns how
        many files are in place.

        Raises OptionError for a file that has appeared since `check`, or cannot be written.
        """
        by_key = {item.key: item for item in items}
        waiting: list[tuple[Path, bytes]] = []
        count = 0
        for entry in content.entries():
            item = by_key.get(entry.key)
            if item is None or entry.result is None:
                continue
            for kind, path in zip(self.kinds, self._paths(item), strict=True):
                waiting.append((path, _bytes_of(content, entry, kind)))
                count += 1
            if len(waiting) >= _AT_A_TIME:
                self._put(waiting)
                waiting = []
        self._put(waiting)
        return count

    def _paths(self, item: Item) -> list[Path]:
        if self.root is not None:
            return [self.root / label_file(item.key, f".{kind}") for kind in self.kinds]
        if "path" not in item.location:
            raise OptionError(
                f"The image {item.key!r} is not a file of its own: nothing can be put next to it. "
                "Choose a folder with --sidecar-root, or use --to jsonl."
            )
        image = Path(item.location["path"])
        page = item.location.get("page")
        if page is not None:
            return [image.with_name(f"{image.name}#page={page:04d}.{k}") for k in self.kinds]
        return [image.with_suffix(f".{kind}") for kind in self.kinds]

    def _put(self, files: Sequence[tuple[Path, bytes]]) -> None:
        changed = [(path, data) for path, data in files if _read(path) != data]
        foreign = [path for path, _ in changed if path.exists() and not self._is_own(path)]
        if foreign and not self.overwrite:
            raise OptionError(
                f"The file {str(foreign[0])!r} has appeared while the job ran, or was changed by "
                "hand, and is not overwritten. Add --overwrite, or move it away, and run the "
                "command again: results are kept."
            )
        self._note(changed)
        for path, data in changed:
            unfinished = path.with_name(f".{short_name(path.name)}.unfinished")
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                unfinished.unlink(missing_ok=True)  # perhaps a link that a stranger put there
                unfinished.write_bytes(data)
                unfinished.replace(path)
            except OSError as error:
                with suppress(OSError):
                    unfinished.unlink(missing_ok=True)
                raise OptionError(
                    f"{str(path)!r} cannot be written: {error.strerror}. Choose a folder with "
                    "--sidecar-root."
                ) from error

    def _is_own(self, path: Path) -> bool:
        data = _read(path)
        # After a power failure, a new file may be empty.
        return data == b"" or _sha256(data or b"") in self._written.get(str(path), ())

    def _note(self, files: Sequence[tuple[Path, bytes]]) -> None:
        if not files:
            return
        lines = []
        for path, data in files:
            digest = _sha256(data)
            self._written.setdefault(str(path), set()).add(digest)
            lines.append(json.dumps({"path": str(path), "sha256": digest}).encode("ascii") + b"\n")
        try:
            with open(self.folder / MANIFEST_FILE, "ab+") as manifest:
                end = manifest.seek(0, os.SEEK_END)
                manifest.seek(max(0, end - 1))
                if manifest.read() not in (b"", b"\n"):  # the torn end of a killed process
                    lines.insert(0, b"\n")
                manifest.write(b"".join(lines))
                manifest.flush()
                os.fsync(manifest.fileno())
        except OSError as error:
            raise OptionError(
                f"{str(self.folder / MANIFEST_FILE)!r} cannot be written: {error.strerror}."
            ) from error

    def _read_manifest(self) -> None:
        manifest = self.folder / MANIFEST_FILE
        for line in manifest.read_bytes().splitlines() if manifest.exists() else ():
            try:
                values = json.loads(line)
                self._written.setdefault(values["path"], set()).add(values["sha256"])
            except (ValueError, KeyError, TypeError):  # the torn end of a killed process
                continue


def _bytes_of(content: Content, entry: Entry, kind: Sidecar) -> bytes:
    if kind == "txt":
        text = content.text(entry) + "\n"
        return text.encode("utf-8", errors="backslashreplace")
    line = json.dumps(content.line(entry), ensure_ascii=True, allow_nan=False)
    return line.encode("ascii") + b"\n"


def _exists(path: Path) -> bool:
    """Raises OptionError for a name that the file system does not take."""
    try:
        path.stat()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise OptionError(
                f"The name of the file {str(path)!r} is too long. Use --to jsonl, or leave the "
                "image out with --where."
            ) from error
        return False
    return True


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
