"""Makes small folders in the form of the official files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image


@dataclass(frozen=True)
class Official:
    """A folder that a person would have unpacked the official files into."""

    folder: Path

    def text(self, path: str, text: str) -> None:
        self._place(path).write_text(text, encoding="utf-8")

    def json(self, path: str, value: Any) -> None:
        self.text(path, json.dumps(value))

    def lines(self, path: str, *values: Any) -> None:
        self.text(path, "".join(json.dumps(value) + "\n" for value in values))

    def picture(self, path: str, size_wh: tuple[int, int] = (8, 6), color: str = "gray") -> None:
        Image.new("RGB", size_wh, color).save(self._place(path))

    def table(self, path: str, rows: list[dict[str, Any]]) -> None:
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), self._place(path))

    def _place(self, path: str) -> Path:
        place = self.folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        return place
