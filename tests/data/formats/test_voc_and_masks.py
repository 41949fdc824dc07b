"""Pascal VOC and masks as other tools write them."""

from __future__ import annotations

import shutil
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


def test_a_header_is_no_class_and_lines_have_numbers_or_not(tmp_path: Path) -> None:
    masks(tmp_path, [0, 7], "id,name\n0,background\n7,tumor\n")
    assert open_data(tmp_path).class_names == ("tumor",)
    (tmp_path / "labels.txt").write_text("1: cat\ndog\n3: owl\n")
    with pytest.raises(DataError, match="2 of 3 lines begin with a number"):
        open_data(tmp_path)


def colored_masks(folder: Path, label_map: str, *, mode: str = "RGB") -> Path:
    """As CVAT exports "Segmentation mask": two cats next to each other, a dog, an edge."""
    make_image(folder / "JPEGImages" / "sub" / "a.jpg", (6, 4))
    classes, objects = Image.new("RGB", (6, 4)), Image.new("RGB", (6, 4))
    for x in range(4):
        classes.putpixel((x, 1), (128, 0, 0))
        objects.putpixel((x, 1), (0, 128, 0) if x < 2 else (128, 128, 0))
    for y in (2, 3):
        classes.putpixel((5, y), (0, 128, 0))
        objects.putpixel((5, y), (128, 0, 0))
    classes.putpixel((0, 3), (224, 224, 192))
    objects.putpixel((0, 3), (224, 224, 192))
    for name, image in (("SegmentationClass", classes), ("SegmentationObject", objects)):
        (folder / name / "sub").mkdir(parents=True)
        image.convert(mode, palette=Image.Palette.ADAPTIVE).save(folder / name / "sub" / "a.png")
    (folder / "labelmap.txt").write_text(label_map)
    (folder / "ImageSets" / "Segmentation").mkdir(parents=True)
    (folder / "ImageSets" / "Segmentation" / "default.txt").write_text("sub/a\n")
    return folder


LABEL_MAP = (
    "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:128,0,0::\ndog:0,128,0:tail:runs\n"
)


@pytest.mark.parametrize("mode", ["RGB", "P"])
def test_colored_masks_hold_classes_and_objects(tmp_path: Path, mode: str) -> None:
    records = open_data(colored_masks(tmp_path, LABEL_MAP, mode=mode), purpose="test")
    assert (records.format, records.class_names, records.task) == (
        "masks",
        ("cat", "dog"),
        "segment",
    )
    assert records.notes == ()
    found = {(o.label, o.box_xyxy) for o in records[0].objects or ()}
    assert found == {("cat", (0, 1, 2, 2)), ("cat", (2, 1, 4, 2)), ("dog", (5, 2, 6, 4))}
    for item in records[0].objects or ():
        assert item.mask is not None
        x1, y1, x2, y2 = map(int, item.box_xyxy)
        assert item.mask[y1:y2, x1:x2].all()
        assert item.mask.sum() == 2


def test_without_colors_of_objects_a_class_is_one_object(tmp_path: Path) -> None:
    folder = colored_masks(tmp_path, LABEL_MAP)
    shutil.rmtree(folder / "SegmentationObject")
    shutil.rmtree(folder / "ImageSets")
    found = {(o.label, o.box_xyxy) for o in open_data(folder)[0].objects or ()}
    assert found == {("cat", (0, 1, 4, 2)), ("dog", (5, 2, 6, 4))}


@pytest.mark.parametrize(
    ("label_map", "message"),
    [
        ("cat:128,0,0::", "the color 0,128,0, which labelmap.txt does not name"),
        ("cat:128,0::", "must have the form name:red,green,blue"),
        ("cat:128,0,0::\ndog:128,0,0::", "that of another class"),
    ],
)
def test_label_maps_that_do_not_fit_are_errors(
    tmp_path: Path, label_map: str, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        open_data(colored_masks(tmp_path, label_map))


def test_masks_next_to_boxes_are_named(tmp_path: Path) -> None:
    folder = colored_masks(tmp_path, LABEL_MAP)
    make_image(folder / "JPEGImages" / "a.png")
    (folder / "Annotations").mkdir()
    (folder / "Annotations" / "a.xml").write_text(xml("a.png"))
    records = open_data(folder)
    assert records.format == "voc"
    assert records.notes == ("1 folder SegmentationClass of masks, which --format masks reads",)
    assert open_data(folder, format="masks").class_names == ("cat", "dog")


def test_labelme_xml_has_masks(tmp_path: Path) -> None:
    make_image(tmp_path / "a.jpg")
    mask = np.zeros((20, 40), np.uint8)
    mask[3:7, 5:15] = 255
    (tmp_path / "Masks").mkdir()
    Image.fromarray(mask).save(tmp_path / "Masks" / "a_mask_0.png")
    (tmp_path / "a.xml").write_text(
        "<annotation><filename>a.jpg</filename><object><name>cat</name><segm>"
        "<mask>a_mask_0.png</mask><box><xmin>5</xmin><ymin>3</ymin><xmax>14</xmax><ymax>6</ymax>"
        "</box></segm></object></annotation>"
    )
    (cat,) = open_data(tmp_path)[0].objects or ()
    assert (cat.label, cat.box_xyxy) == ("cat", (5, 3, 15, 7))
    assert cat.mask is not None
    assert (cat.mask == (mask > 0)).all()
