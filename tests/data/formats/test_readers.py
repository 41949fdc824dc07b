"""Each reader: what it finds, and what it says about what it cannot use."""

from __future__ import annotations

import errno
import io
import json
import random
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from paligemma.data.open import open_data
from paligemma.data.record import TrueObject
from paligemma.errors import DataError, OptionError
from paligemma.masks import mask_to_rle
from tests.data.annotated import coco, jsonl, make_image


def only(objects: tuple[TrueObject, ...] | None) -> TrueObject:
    assert objects is not None
    assert len(objects) == 1
    return objects[0]


# JSON Lines


def test_lines_of_text_and_of_objects_are_read(tmp_path: Path) -> None:
    path = jsonl(
        tmp_path,
        [
            {"prefix": "caption en", "suffix": "a dog", "id": "first"},
            {"prefix": "answer en How many?", "references": ["2", "two"]},
            {"objects": [{"label": "dog", "box_xyxy": [1, 2, 11, 12]}]},
            {"prefix": "the dog", "objects": [{"label": "dog", "polygons": [[1, 2, 9, 2, 9, 8]]}]},
        ],
    )
    records = open_data(path)
    assert (records.format, len(records), records.class_names) == ("jsonl", 4, ("dog",))
    assert [r.record_id for r in records] == ["first", "line 2", "line 3", "line 4"]
    assert (records[0].suffix, records[0].references) == ("a dog", ("a dog",))
    assert (records[1].suffix, records[1].references) == ("", ("2", "two"))
    assert only(records[2].objects).box_xyxy == (1.0, 2.0, 11.0, 12.0)
    assert only(records[3].objects).box_xyxy == (1.0, 2.0, 9.0, 8.0)
    mask = only(records[3].objects).mask
    assert mask is not None
    assert mask.shape == (20, 40)


def test_a_mask_of_this_packages_own_output_can_be_learned(tmp_path: Path) -> None:
    mask = np.zeros((20, 40), np.bool_)
    mask[2:8, 1:9] = True
    record = {"objects": [{"label": "dog", "mask": mask_to_rle(mask)}]}
    found = only(open_data(jsonl(tmp_path, [record]))[0].objects)
    assert found.box_xyxy == (1.0, 2.0, 9.0, 8.0)
    np.testing.assert_array_equal(found.mask, mask)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"suffix": "x"}, "must be an object with text"),
        ({"prefix": "x"}, "must be an object with text"),
        ({"prefix": "x", "suffix": 3}, "must be an object with text"),
        ({"prefix": "x", "suffix": " "}, "empty suffix"),
        ({"prefix": "x", "references": []}, "must be an object with text"),
        ({"prefix": "x", "references": [""]}, "a list of texts"),
        ({"prefix": 3, "objects": []}, "must be an object with text"),
        ({"objects": {}}, "must be a list"),
        ({"objects": [3]}, "an object is 3"),
        ({"objects": [{"label": "dog"}]}, "none of"),
        ({"objects": [{"label": "dog", "polygons": []}]}, "polygons"),
        ({"objects": [{"box_xyxy": [1, 2, 3, 4]}]}, "label None"),
        ({"image": "none.png", "prefix": "x", "suffix": "y"}, "does not exist"),
        ({"image": "none.png", "objects": []}, "does not exist"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, record: dict[str, Any], message: str) -> None:
    good = {"prefix": "caption en", "suffix": "a dog"}
    with pytest.raises(DataError, match=r"Line 2 of .*train\.jsonl.*" + message):
        open_data(jsonl(tmp_path, [good, record]))


def test_a_line_may_hold_any_character_that_json_may(tmp_path: Path) -> None:
    make_image(tmp_path / "0.png")
    line = '{"image": "0.png", "prefix": "ocr", "suffix": "a\u2028b"}\n'
    (tmp_path / "train.jsonl").write_text("\ufeff" + line, encoding="utf-8")
    assert open_data(tmp_path)[0].suffix == "a\u2028b"


# COCO


def test_coco_boxes_are_x_y_width_height(tmp_path: Path) -> None:
    path = coco(tmp_path, [{"image_id": 1, "category_id": 2, "bbox": [5, 3, 10, 4]}])
    records = open_data(path)
    found = only(records[0].objects)
    assert (found.label, found.box_xyxy, found.mask) == ("dog", (5.0, 3.0, 15.0, 7.0), None)
    assert (records[0].record_id, records[0].size_wh) == ("1", (40, 20))
    assert records[1].objects == ()
    assert records.class_names == ("cat", "dog")


def test_coco_masks_are_polygons_or_run_lengths(tmp_path: Path) -> None:
    mask = np.zeros((20, 40), np.bool_)
    mask[3:7, 5:15] = True
    rle = mask_to_rle(mask)
    numbers = {"size": [20, 40], "counts": _runs(mask)}
    shapes = ([[5, 3, 15, 3, 15, 7, 5, 7]], rle, numbers)
    item = {"image_id": 1, "category_id": 1, "bbox": [5, 3, 10, 4]}
    path = coco(tmp_path, [{**item, "segmentation": shape} for shape in shapes])
    objects = open_data(path)[0].objects
    assert objects is not None
    assert len(objects) == 3
    for found in objects:
        np.testing.assert_array_equal(found.mask, mask)


def _runs(mask: np.ndarray[Any, Any]) -> list[int]:
    flat = np.concatenate(([False], mask.ravel(order="F"), [not mask.ravel(order="F")[-1]]))
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    runs: list[int] = np.diff(np.concatenate(([0], edges))).tolist()
    return runs


def test_coco_crowds_are_kept_apart_and_counted(tmp_path: Path) -> None:
    item = {"image_id": 1, "category_id": 1, "bbox": [5, 3, 10, 4]}
    crowd = {**item, "iscrowd": 1, "bbox": [0, 0, 30, 20]}
    records = open_data(coco(tmp_path, [crowd, item, crowd]))
    assert only(records[0].objects).box_xyxy == (5, 3, 15, 7)
    assert [one.box_xyxy for one in records[0].crowds] == [(0, 0, 30, 20)] * 2
    assert records.notes == ("2 crowd annotations kept out of training",)


def test_coco_areas_are_those_of_the_file(tmp_path: Path) -> None:
    item = {"image_id": 1, "category_id": 1, "bbox": [5, 3, 10, 4]}
    areas = [12.5, 0, None, "7", -1]
    records = open_data(coco(tmp_path, [{**item, "area": area} for area in areas]))
    assert [one.area for one in records[0].objects or ()] == [12.5, 0.0, None, None, None]


def test_coco_captions_are_references(tmp_path: Path) -> None:
    found = [{"image_id": i, "caption": text} for i, text in ((1, "a"), (1, "b"), (2, "c"))]
    records = open_data(coco(tmp_path, found))
    assert [r.references for r in records] == [("a", "b"), ("c",)]
    assert {r.prefix for r in records} == {"caption en"}


def test_coco_images_are_found_where_coco_has_them(tmp_path: Path) -> None:
    path = coco(tmp_path / "annotations", [])
    (tmp_path / "train").mkdir()
    for number in (1, 2):
        (tmp_path / "annotations" / f"{number}.png").rename(tmp_path / "train" / f"{number}.png")
    assert open_data(path)[0].image == tmp_path / "train" / "1.png"
    assert open_data(tmp_path)[1].image == tmp_path / "train" / "2.png"


def test_a_folder_for_each_split_is_read(tmp_path: Path) -> None:
    for split in ("train", "valid"):
        path = coco(tmp_path / split, [], num_images=1 if split == "valid" else 2)
        path.rename(path.with_name("_annotations.coco.json"))
    assert len(open_data(tmp_path)) == 2
    assert len(open_data(tmp_path, split="val")) == 1
    with pytest.raises(OptionError, match="train, valid"):
        open_data(tmp_path, split="test")


def test_a_parent_of_all_classes_is_no_class(tmp_path: Path) -> None:
    path = coco(tmp_path, [])
    content = json.loads(path.read_text())
    content["categories"] = [
        {"id": 0, "name": "animals", "supercategory": "none"},
        {"id": 1, "name": "cat", "supercategory": "animals"},
        {"id": 2, "name": "person", "supercategory": "person"},
    ]
    path.write_text(json.dumps(content))
    assert open_data(path).class_names == ("cat", "person")


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        ({"image_id": 1, "category_id": 9, "bbox": [5, 3, 10, 4]}, "category 9"),
        ({"image_id": 1, "category_id": 1, "bbox": [5, 3, 10]}, "bbox is"),
        ({"image_id": 1, "category_id": 1, "bbox": [5, 3, "wide", 4]}, "bbox is"),
        ({"image_id": 1, "category_id": 1}, "bbox is"),
        ({"image_id": 1, "category_id": 1, "bbox": [5, 3, 0, 4]}, "no area"),
        ({"image_id": 1, "category_id": 1, "bbox": [30, 3, 30, 4]}, "extends beyond"),
    ],
)
def test_a_wrong_annotation_is_named(
    tmp_path: Path, annotation: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=f"Image 1 of .*annotation 0.*{message}"):
        open_data(coco(tmp_path, [annotation]))


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"images": []}', '{"images": [{"id": 1}], "annotations": []}']
)
def test_a_file_that_is_no_coco_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "instances.json"
    path.write_text(content)
    with pytest.raises(DataError, match=r"instances\.json"):
        open_data(path)


# YOLO


def yolo(folder: Path, lines: str | None, *, size_wh: tuple[int, int] = (40, 20)) -> Path:
    make_image(folder / "train" / "images" / "1.jpg", size_wh)
    if lines is not None:
        (folder / "train" / "labels").mkdir()
        (folder / "train" / "labels" / "1.txt").write_text(lines)
    path = folder / "data.yaml"
    path.write_text("train: ../train/images\nval: ../valid/images\nnc: 2\nnames: [cat, 7]\n")
    return path


def test_yolo_boxes_are_centers_in_fractions(tmp_path: Path) -> None:
    yolo(tmp_path, "1 0.5 0.5 0.25 0.5\n0 0.1 0.2 0.5 0.2 0.5 0.9\n")
    records = open_data(tmp_path)
    assert (records.format, records.class_names) == ("yolo", ("cat", "7"))
    objects = records[0].objects
    assert objects is not None
    assert (objects[0].label, objects[0].box_xyxy) == ("7", (15.0, 5.0, 25.0, 15.0))
    assert objects[0].mask is None
    assert objects[1].box_xyxy == (4.0, 4.0, 20.0, 18.0)
    assert objects[1].mask is not None


def test_a_yolo_image_without_labels_is_background_and_counted(tmp_path: Path) -> None:
    records = open_data(yolo(tmp_path, None))
    assert records[0].objects == ()
    assert records.notes[0].startswith("1 images without a label file")


def test_a_yolo_split_that_is_not_on_this_disk_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="valid/images"):
        open_data(yolo(tmp_path, ""), split="val")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 0.5 0.5 0.1", "3 numbers"),
        ("0 0.1 0.2 0.3 0.4 0.5 0.6 0.7", "7 numbers"),
        ("2 0.5 0.5 0.1 0.1", "class 2"),
        ("0 0.5 0.5 ? 0.1", "must consist of numbers"),
        ("0 0.9 0.5 0.5 0.1", "extends beyond"),
    ],
)
def test_a_wrong_yolo_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(DataError, match=rf"Line 2 of .*1\.txt.*{message}"):
        open_data(yolo(tmp_path, f"0 0.5 0.5 0.1 0.1\n{line}\n"))


def test_a_turned_image_is_measured_upright(tmp_path: Path) -> None:
    yolo(tmp_path, "0 0.5 0.5 1 1\n")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(tmp_path / "train" / "images" / "1.jpg", exif=exif)
    record = open_data(tmp_path)[0]
    assert record.size_wh == (20, 40) == record.load_image().size_wh


# Pascal VOC

VOC = """<annotation><filename>C:\\pictures\\1.png</filename>
<size><width>40</width><height>20</height><depth>3</depth></size>
<object><name>dog</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>10</xmax><ymax>{ymax}</ymax>
</bndbox></object></annotation>"""


def voc(folder: Path, ymax: str = "5") -> Path:
    make_image(folder / "JPEGImages" / "1.png")
    make_image(folder / "JPEGImages" / "2.png")
    (folder / "Annotations").mkdir()
    for number in (1, 2):
        text = VOC.format(ymax=ymax).replace("1.png", f"{number}.png")
        (folder / "Annotations" / f"{number}.xml").write_text(text)
    return folder


def test_voc_boxes_count_from_one_with_both_ends_inside(tmp_path: Path) -> None:
    records = open_data(voc(tmp_path))
    assert (records.format, len(records), records.class_names) == ("voc", 2, ("dog",))
    assert only(records[0].objects).box_xyxy == (0.0, 0.0, 10.0, 5.0)
    assert records[0].load_image().size_wh == (40, 20)


def test_voc_splits_are_lists_of_names(tmp_path: Path) -> None:
    (voc(tmp_path) / "ImageSets" / "Main").mkdir(parents=True)
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text("2\n")
    (tmp_path / "ImageSets" / "Main" / "val.txt").write_text("1\n")
    assert [r.record_id for r in open_data(tmp_path)] == ["2"]
    assert [r.record_id for r in open_data(tmp_path, split="val")] == ["1"]


def test_voc_files_beside_their_images_are_read(tmp_path: Path) -> None:
    make_image(tmp_path / "1.png")
    (tmp_path / "1.xml").write_text(VOC.format(ymax="5"))
    assert open_data(tmp_path)[0].image == tmp_path / "1.png"


@pytest.mark.parametrize(("ymax", "message"), [("tall", "bndbox"), ("0", "no area")])
def test_a_wrong_voc_object_is_named(tmp_path: Path, ymax: str, message: str) -> None:
    with pytest.raises(DataError, match=rf"1\.xml.*{message}"):
        open_data(voc(tmp_path, ymax))


def test_a_damaged_voc_file_is_named(tmp_path: Path) -> None:
    (voc(tmp_path) / "Annotations" / "1.xml").write_text("<annotation>")
    with pytest.raises(DataError, match=r"1\.xml.* is not XML"):
        open_data(tmp_path)


# Masks


def masks(folder: Path, values: np.ndarray[Any, Any], names: str | None = "cat\ndog\n") -> Path:
    make_image(folder / "images" / "1.jpg")
    (folder / "masks").mkdir()
    Image.fromarray(values).save(folder / "masks" / "1.png")
    if names is not None:
        (folder / "labels.txt").write_text(names)
    return folder


def indices() -> np.ndarray[Any, Any]:
    values = np.zeros((20, 40), np.uint8)
    values[2:6, 3:9] = 2
    values[19, :] = 255
    return values


@pytest.mark.parametrize("names", ["cat\ndog\n", "background\ncat\ndog\n"])
def test_index_masks_give_an_object_a_class(tmp_path: Path, names: str) -> None:
    records = open_data(masks(tmp_path, indices(), names))
    found = only(records[0].objects)
    assert (records.format, records.task, records.class_names) == (
        "masks",
        "segment",
        ("cat", "dog"),
    )
    assert (found.label, found.box_xyxy) == ("dog", (3.0, 2.0, 9.0, 6.0))
    np.testing.assert_array_equal(found.mask, indices() == 2)


def test_sixteen_bits_and_palettes_are_numbers_too(tmp_path: Path) -> None:
    wide = indices().astype(np.uint16)
    wide[wide == 255] = 65535
    assert only(open_data(masks(tmp_path / "a", wide))[0].objects).label == "dog"
    folder = masks(tmp_path / "b", indices())
    image = Image.fromarray(indices(), mode=None).convert("P")
    image.putpalette([7] * 768)
    image.save(folder / "masks" / "1.png")
    assert only(open_data(folder)[0].objects).label == "dog"


def test_a_folder_of_masks_gives_an_object_a_file(tmp_path: Path) -> None:
    folder = masks(tmp_path, indices(), None)
    (folder / "masks" / "1.png").unlink()
    for name, column in (("big_dog_1", 3), ("big_dog_2", 20), ("cat", 30)):
        values = np.zeros((20, 40), np.uint8)
        values[1:3, column : column + 4] = 200
        (folder / "masks" / "1").mkdir(exist_ok=True)
        Image.fromarray(values).save(folder / "masks" / "1" / f"{name}.png")
    objects = open_data(folder)[0].objects
    assert objects is not None
    assert [o.label for o in objects] == ["big_dog", "big_dog", "cat"]
    assert objects[1].box_xyxy == (20.0, 1.0, 24.0, 3.0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.full((20, 40), 3, np.uint8), "class 3"),
        (np.zeros((20, 41), np.uint8), "41 x 20 pixels"),
        (np.zeros((20, 40, 3), np.uint8), "in color"),
    ],
)
def test_a_wrong_mask_is_named(tmp_path: Path, values: np.ndarray[Any, Any], message: str) -> None:
    with pytest.raises(DataError, match=rf"1\.png.*{message}"):
        open_data(masks(tmp_path, values))


def test_an_image_without_its_mask_is_named(tmp_path: Path) -> None:
    (masks(tmp_path, indices()) / "masks" / "1.png").unlink()
    with pytest.raises(DataError, match=r"1\.jpg.* has neither"):
        open_data(tmp_path)


# Captions beside pictures


def test_lines_beside_an_image_are_its_captions(tmp_path: Path) -> None:
    for name, text in (("a/1", "one\ntwo\n"), ("b/1", "three")):
        make_image(tmp_path / f"{name}.jpg")
        (tmp_path / f"{name}.txt").write_text(text)
    records = open_data(tmp_path, prefix="caption de")
    assert records.format == "captions"
    assert [r.record_id for r in records] == ["a/1.jpg", "b/1.jpg"]
    assert [r.references for r in records] == [("one", "two"), ("three",)]
    assert {r.prefix for r in records} == {"caption de"}


@pytest.mark.parametrize(("text", "message"), [(None, "no caption"), (" \n", "empty caption")])
def test_an_image_without_caption_is_named(tmp_path: Path, text: str | None, message: str) -> None:
    for name in ("1", "2"):
        make_image(tmp_path / f"{name}.jpg")
    (tmp_path / "1.txt").write_text("a dog")
    if text is not None:
        (tmp_path / "2.txt").write_text(text)
    with pytest.raises(DataError, match=rf"2\.jpg.*{message}"):
        open_data(tmp_path)


# Hugging Face


def hugging_face(folder: Path, columns: dict[str, Any], features: dict[str, Any]) -> Path:
    datasets = pytest.importorskip("datasets", reason="the library is not installed")
    images = [str(make_image(folder.parent / "pictures" / f"{i}.png")) for i in range(2)]
    kinds = datasets.Features({"image": datasets.Image(), **features})
    table = datasets.Dataset.from_dict({"image": images, **columns}, features=kinds)
    table.save_to_disk(str(folder))
    return folder


def test_a_saved_table_of_questions_is_read(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="the library is not installed")
    text = datasets.Value("string")
    columns = {"question": ["What?", "Who?"], "answers": [["a", "b"], ["c"]]}
    features = {"question": text, "answers": datasets.List(text)}
    records = open_data(hugging_face(tmp_path / "set", columns, features))
    assert records.format == "huggingface"
    assert [r.prefix for r in records] == ["answer en What?", "answer en Who?"]
    assert [(r.suffix, r.references) for r in records] == [("", ("a", "b")), ("c", ("c",))]
    assert records[1].load_image().size_wh == (40, 20)


def test_a_saved_table_of_objects_is_read(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="the library is not installed")
    kinds = {
        "bbox": datasets.List(datasets.Value("float32"), length=4),
        "category": datasets.ClassLabel(names=["cat", "dog"]),
    }
    one = {"bbox": [5.0, 3.0, 10.0, 4.0], "category": 1}
    records = open_data(
        hugging_face(tmp_path / "set", {"objects": [[one], []]}, {"objects": datasets.List(kinds)})
    )
    found = only(records[0].objects)
    assert (found.label, found.box_xyxy) == ("dog", (5.0, 3.0, 15.0, 7.0))
    assert (records[1].objects, records.class_names) == ((), ("cat", "dog"))


def test_a_saved_table_whose_columns_say_nothing_is_refused(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="the library is not installed")
    path = hugging_face(tmp_path / "set", {"n": [1, 2]}, {"n": datasets.Value("int32")})
    with pytest.raises(DataError, match="columns image, n"):
        open_data(path)


# webdataset


def shard(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (40, 20)).save(file, "PNG")
    return file.getvalue()


def test_shards_hold_images_with_fields_or_captions(tmp_path: Path) -> None:
    fields = json.dumps({"objects": [{"label": "dog", "box_xyxy": [1, 2, 3, 4]}]}).encode()
    shard(tmp_path / "train-0.tar", {"a/1.png": png(), "a/1.txt": b"a dog\n"})
    shard(tmp_path / "train-1.tar", {"2.json": fields, "2.png": png()})
    records = open_data(tmp_path)
    assert (records.format, len(records)) == ("webdataset", 2)
    assert (records[0].record_id, records[0].prefix, records[0].suffix) == (
        *("a/1", "caption en", "a dog"),
    )
    assert only(records[1].objects).box_xyxy == (1.0, 2.0, 3.0, 4.0)
    assert [r.load_image().size_wh for r in records] == [(40, 20)] * 2


def test_the_webdataset_package_reads_the_same(tmp_path: Path) -> None:
    wds = pytest.importorskip("webdataset", reason="the library is not installed")
    path = tmp_path / "train-000.tar"
    with wds.TarWriter(str(path)) as writer:
        for i in range(3):
            writer.write({"__key__": f"{i:03d}", "png": png(), "txt": f"caption {i}"})
    records = open_data(path)
    assert [(r.record_id, r.suffix) for r in records] == [
        (f"{i:03d}", f"caption {i}") for i in range(3)
    ]


def test_a_shard_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"Sample '1' of .*no image"):
        open_data(shard(tmp_path / "a.tar", {"1.txt": b"a dog"}))
    (tmp_path / "b.tar").write_bytes(b"no tar")
    with pytest.raises(DataError, match=r"b\.tar"):
        open_data(tmp_path / "b.tar")
    (tmp_path / "c.tar.gz").write_bytes(b"")
    with pytest.raises(DataError, match="compressed"):
        open_data(tmp_path / "c.tar.gz")
    path = shard(tmp_path / "d.tar", {"1.png": b"no picture", "1.json": b'{"objects": []}'})
    with pytest.raises(DataError, match=r"Sample '1' of .*unknown format"):
        open_data(path)


def test_a_shard_that_cannot_be_opened_is_not_called_incomplete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = shard(tmp_path / "a.tar", {"1.png": png(), "1.txt": b"a dog"})

    def fail(*_: Any, **__: Any) -> Any:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(tarfile, "open", fail)
    with pytest.raises(DataError, match=r"a\.tar' cannot be read: Too many open files\."):
        open_data(path)


# Whatever stands in a file


def mutated(value: Any, rng: random.Random) -> Any:
    """The same, with some of its parts lost or replaced by something of another kind."""
    if rng.random() < 0.1:
        return rng.choice([None, 3, -1, "x", [], {}, [1], True, 1e400, {"a": 1}])
    if isinstance(value, dict):
        return {k: mutated(v, rng) for k, v in value.items() if rng.random() > 0.03}
    return [mutated(item, rng) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("seed", range(3))
def test_any_json_gives_records_or_one_error(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    shapes = ([[5, 3, 15, 3, 15, 7]], {"size": [20, 40], "counts": [800]})
    item = {"image_id": 1, "category_id": 1, "bbox": [5, 3, 10, 4]}
    boxes = coco(tmp_path / "coco", [{**item, "segmentation": shape} for shape in shapes])
    line = {"objects": [{"label": "dog", "box_xyxy": [1, 2, 3, 4], "polygons": shapes[0]}]}
    lines = jsonl(tmp_path / "jsonl", [line])
    whole = {path: json.loads(path.read_text()) for path in (boxes, lines)}
    outcomes: list[list[Any] | None] = []
    for path, content in list(whole.items()) * 100:
        path.write_text(json.dumps(mutated(content, rng)))
        try:
            records = open_data(path)
            outcomes.append([o.mask for record in records for o in record.objects or ()])
        except DataError:
            outcomes.append(None)
    assert None in outcomes
    assert any(outcomes)
