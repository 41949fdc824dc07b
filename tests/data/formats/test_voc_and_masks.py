"""Pascal VOC and masks as other tools write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from paligemma.data.open import open_data
from paligemma.errors import DataError
from tests.data.annotated import make_image


def xml(name: str, difficult: int = 0, head: str = "", first: str = "1") -> str:
    return (
        f"{head}<annotation><filename>{name}</filename><object><name>dog</name>"
        f"<difficult>{difficult}</difficult><bndbox><xmin>{first}</xmin><ymin>1</ymin><xmax>10"
        "</xmax><ymax>5</ymax></bndbox></object></annotation>"
    )


def voc(folder: Path, names: tuple[str, ...] = ("1",), **options: Any) -> Path:
    for name in names:
        make_image(folder / "JPEGImages" / f"{name}.png")
        file = folder / "Annotations" / f"{name}.xml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(xml(f"{name}.png", **options))
    return folder


def test_difficult_objects_are_neither_learned_nor_counted(tmp_path: Path) -> None:
    records = open_data(voc(tmp_path, difficult=1))
    assert records[0].objects == ()
    assert [item.label for item in records[0].crowds] == ["dog"]
    assert records.notes == ("1 objects marked as difficult, kept out of training",)
    assert len(open_data(tmp_path, crowds="learn")[0].objects or ()) == 1


@pytest.mark.parametrize("encoding", ["gbk", "iso-8859-1", "utf-16", "utf-8"])
def test_xml_is_read_in_its_own_encoding(tmp_path: Path, encoding: str) -> None:
    voc(tmp_path)
    text = xml("1.png", head=f'<?xml version="1.0" encoding="{encoding}"?>\n')
    word = "été" if encoding == "iso-8859-1" else "狗"
    text = text.replace("<name>dog", f"<name>{word}")
    (tmp_path / "Annotations" / "1.xml").write_bytes(text.encode(encoding))
    assert open_data(tmp_path).class_names == (word,)


def test_names_with_blanks_and_flags_are_found(tmp_path: Path) -> None:
    voc(tmp_path, ("my dog", "a 1", "b"))
    lists = tmp_path / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("my dog\na 1\nb -1\n\n")
    assert [record.record_id for record in open_data(tmp_path)] == ["my dog", "a 1", "b"]
    (lists / "train.txt").write_text("missing\n")
    with pytest.raises(DataError, match=r"missing\.xml' does not exist"):
        open_data(tmp_path)


def test_nested_folders_and_namespaces_are_read(tmp_path: Path) -> None:
    voc(tmp_path)
    file = tmp_path / "Annotations" / "1.xml"
    (tmp_path / "Annotations" / "sub").mkdir()
    text = file.read_text().replace("<annotation>", '<annotation xmlns="http://a.b/c">')
    (tmp_path / "Annotations" / "sub" / "1.xml").write_text(text)
    file.unlink()
    records = open_data(tmp_path)
    assert (records[0].record_id, len(records[0].objects or ())) == ("1", 1)


def test_boxes_may_count_from_zero(tmp_path: Path) -> None:
    voc(tmp_path, first="0")
    assert any("--first-pixel 0" in note for note in open_data(tmp_path).notes)
    found = open_data(tmp_path, first_pixel=0)[0].objects
    assert found is not None
    assert found[0].box_xyxy == (0, 1, 10, 5)


def test_labelme_xml_has_polygons(tmp_path: Path) -> None:
    voc(tmp_path)
    points = "".join(f"<pt><x>{x}</x><y>{y}</y></pt>" for x, y in ((5, 3), (15, 3), (15, 7)))
    item = f"<object><name>dog</name><deleted>0</deleted><polygon>{points}</polygon></object>"
    text = f"<annotation><filename>1.png</filename>{item}{item.replace('>0<', '>1<')}</annotation>"
    (tmp_path / "Annotations" / "1.xml").write_text(text)
    found = open_data(tmp_path)[0].objects
    assert found is not None
    assert [item.box_xyxy for item in found] == [(5, 3, 15, 7)]
    assert found[0].mask is not None


# Masks


def masks(folder: Path, values: list[int], names: str) -> Path:
    make_image(folder / "images" / "1.jpg")
    (folder / "masks").mkdir()
    array = np.zeros((20, 40), np.uint8)
    for number, value in enumerate(values):
        array[2:5, 4 * number : 4 * number + 3] = value
    Image.fromarray(array).save(folder / "masks" / "1.png")
    (folder / "labels.txt").write_text(names)
    return folder


def test_masks_of_0_and_255_show_the_only_class(tmp_path: Path) -> None:
    records = open_data(masks(tmp_path / "one", [255], "tumor\n"))
    assert [item.label for item in records[0].objects or ()] == ["tumor"]
    assert records.class_names == ("tumor",)
    with pytest.raises(DataError, match="only 0 and 255, and 2 classes have names"):
        open_data(masks(tmp_path / "two", [255], "cat\ndog\n"))
    records = open_data(masks(tmp_path / "both", [1, 255], "tumor\n"))
    assert len(records[0].objects or ()) == 1
    assert records.notes == ("1 masks with pixels of 255, which are ignored",)


def test_names_may_have_their_numbers(tmp_path: Path) -> None:
    records = open_data(masks(tmp_path, [2], "0: background\n2: dog\n"))
    assert [item.label for item in records[0].objects or ()] == ["dog"]
