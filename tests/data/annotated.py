"""Small data sets of each form, made where a test wants them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

SIZE_WH = (40, 20)


def make_image(path: Path, size_wh: tuple[int, int] = SIZE_WH, color: str = "gray") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size_wh, color).save(path)
    return path


def coco(folder: Path, annotations: Sequence[dict[str, Any]], num_images: int = 2) -> Path:
    """Pictures 1, 2, ... of 40 x 20; categories 1 cat and 2 dog."""
    for number in range(1, num_images + 1):
        make_image(folder / f"{number}.png")
    content = {
        "images": [
            {"id": number, "file_name": f"{number}.png", "width": 40, "height": 20}
            for number in range(1, num_images + 1)
        ],
        "annotations": [{"id": i, **item} for i, item in enumerate(annotations)],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    }
    path = folder / "instances_train.json"
    path.write_text(json.dumps(content))
    return path


def jsonl(folder: Path, records: Sequence[dict[str, Any]]) -> Path:
    """Each record gets a picture of its own, unless it names one."""
    lines = []
    for number, record in enumerate(records):
        if "image" not in record:
            make_image(folder / f"{number}.png")
            record = {"image": f"{number}.png", **record}
        lines.append(json.dumps(record))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "train.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path
