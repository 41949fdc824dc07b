"""What a run validates on, and that it was not trained on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from paligemma.data.open import open_data
from paligemma.errors import OptionError
from paligemma.finetune.run.options import RunOptions
from paligemma.finetune.run.run import _Parts, _split
from tests.data.annotated import make_image


def write(folder: Path, split: str, colors: Sequence[int], questions: int = 1) -> Path:
    lines = []
    for number, color in enumerate(colors):
        name = f"{split}-{number}.png"
        make_image(folder / name, color=f"rgb({color}, 0, 0)")
        lines += [
            {"image": name, "prefix": f"answer en {q}", "suffix": "1"} for q in range(questions)
        ]
    path = folder / f"data.{split}.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def split(data: Path, **options: object) -> _Parts:
    chosen = RunOptions(data=str(data), **options)  # type: ignore[arg-type]
    return _split(chosen, open_data(data, split=chosen.split))


def sizes(parts: _Parts) -> tuple[int, int]:
    return len(parts.training), 0 if parts.held_out is None else len(parts.held_out)


def test_the_datas_own_validation_split_is_used(tmp_path: Path) -> None:
    write(tmp_path, "train", range(10))
    write(tmp_path, "valid", range(50, 54))
    parts = split(tmp_path)
    assert (sizes(parts), parts.source, parts.num_images) == ((10, 4), "the split 'valid'", 4)
    assert sizes(split(tmp_path, validation_split="val")) == (10, 4)
    assert sizes(split(tmp_path, validation_split="0.2")) == (8, 2)
    assert sizes(split(tmp_path, validation_split=0.2)) == (8, 2)
    assert sizes(split(tmp_path, validation_split=0)) == (10, 0)
    assert sizes(split(tmp_path, validation=str(tmp_path))) == (10, 4)
    with pytest.raises(OptionError, match="no split 'test'"):
        split(tmp_path, validation_split="test")


def test_images_are_held_out_with_all_their_questions(tmp_path: Path) -> None:
    parts = split(write(tmp_path, "train", range(10), questions=6))
    assert (sizes(parts), parts.num_images) == ((54, 6), 1)
    assert parts.held_out is not None
    images = {record.image for record in parts.held_out}
    assert not images & {record.image for record in parts.training}


def test_an_image_in_both_parts_is_refused_whatever_its_name(tmp_path: Path) -> None:
    write(tmp_path, "train", range(10))
    write(tmp_path, "val", [50, 3])
    with pytest.raises(OptionError, match=r"1 of 2 validation records .*measure memorization"):
        split(tmp_path)
    other = write(tmp_path / "other", "val", [7])
    with pytest.raises(OptionError, match="1 of 1 validation record"):
        split(tmp_path, validation=str(other))
    assert sizes(split(tmp_path, validation_split=0.1)) == (9, 1)


@pytest.mark.parametrize(
    ("splits", "scored"),
    [
        (("train", "val", "test"), "test"),
        (("train", "val"), "val"),
        (("train",), None),
        (("dogs", "cats"), None),
        (("dogs",), "dogs"),
    ],
)
def test_training_data_are_not_scored_unless_named(
    tmp_path: Path, splits: tuple[str, ...], scored: str | None
) -> None:
    for name in splits:
        write(tmp_path, name, [1])
    if scored is not None:
        assert open_data(tmp_path, purpose="test").split == scored
        return
    with pytest.raises(OptionError, match="Choose one of"):
        open_data(tmp_path, purpose="test")
    assert open_data(tmp_path, purpose="test", split=splits[0]).split == splits[0]
