"""The guide shows what works: its lines of JSON are read, its Python runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from paligemma.data.open import open_data
from paligemma.processor.processor import Processor
from paligemma.tasks.seg_codec import MaskCodec
from tests.data.annotated import coco, make_image
from tests.video.clips import film

GUIDE = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", GUIDE, flags=re.DOTALL)


def test_the_lines_of_the_guide_are_read(tmp_path: Path) -> None:
    lines, of_film, _ = blocks("json")  # the others are of documents with fields
    make_image(tmp_path / "1.jpg", (100, 100))
    (tmp_path / "train.jsonl").write_text(lines)
    records = open_data(tmp_path / "train.jsonl")
    assert len(records) == 4
    assert records.class_names == ("dog",)
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "7010.mp4").write_bytes(film(range(10)))
    (tmp_path / "films.jsonl").write_text(of_film)
    [record] = open_data(tmp_path / "films.jsonl")
    assert len(record.load_images()) == 16


def test_the_python_of_the_guide_runs(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    mini: tuple[Processor, MaskCodec],
) -> None:
    monkeypatch.chdir(tmp_path)
    make_image(tmp_path / "1.png")
    line = '{"image": "1.png", "prefix": "caption en", "suffix": "a dog"}\n'
    (tmp_path / "train.jsonl").write_text(line)
    shape = [[0, 0, 20, 0, 20, 20, 0, 20]]
    item = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 20, 20], "segmentation": shape}
    coco(tmp_path / "annotations", [item])
    skipping, learning = blocks("python")
    namespace: dict[str, Any] = {}
    exec(compile(skipping, "data.md", "exec"), namespace)
    assert len(namespace["records"]) == 1
    exec(compile(learning, "data.md", "exec"), namespace)
    assert "coco 2" in capsys.readouterr().out
    assert len(namespace["examples"]) == 2
