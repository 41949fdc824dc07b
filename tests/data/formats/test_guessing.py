"""No guess about data loses or changes them: two readings are a question to the user."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from paligemma.data.open import open_data
from paligemma.errors import DataError, OptionError
from tests.data.annotated import coco, jsonl, make_image

BOX = (15.0, 5.0, 25.0, 15.0)
LINE = "1 0.5 0.5 0.25 0.5\n"


def labels(folder: Path, names: str | None = "cat\ndog\n", lines: str = LINE) -> Path:
    make_image(folder / "1.jpg")
    (folder / "1.txt").write_text(lines)
    if names is not None:
        (folder / "classes.txt").write_text(names)
    return folder


def first(path: Path, **options: Any) -> tuple[str, tuple[float, ...]]:
    records = open_data(path, **options)
    assert records.format == "yolo"
    assert records[0].objects is not None
    return records[0].objects[0].label, records[0].objects[0].box_xyxy


# Numbers next to images


def test_numbers_next_to_images_are_labels(tmp_path: Path) -> None:
    assert first(labels(tmp_path)) == ("dog", BOX)


def test_labels_without_names_ask_for_them(tmp_path: Path) -> None:
    labels(tmp_path / "set", None)
    with pytest.raises(DataError, match="--class-names"):
        open_data(tmp_path / "set")
    (tmp_path / "names").write_text("bird\nfish\n")
    assert first(tmp_path / "set", class_names=tmp_path / "names") == ("fish", BOX)


@pytest.mark.parametrize("name", ["notes.json", "obj.names"])
def test_two_lists_of_names_that_differ_are_a_question(tmp_path: Path, name: str) -> None:
    labels(tmp_path, "cat\ndog\n")
    for pairs in ((("0", "cat"), ("1", "dog")), (("1", "cat"), ("0", "dog"))):
        text = "\n".join(label for _, label in sorted(pairs))
        if name == "notes.json":
            text = json.dumps({"categories": [{"id": id_, "name": label} for id_, label in pairs]})
        (tmp_path / name).write_text(text)
        if pairs[0] == ("0", "cat"):
            assert first(tmp_path) == ("dog", BOX)
    with pytest.raises(OptionError, match=r"list different classes.*--class-names"):
        open_data(tmp_path)
    assert first(tmp_path, class_names=tmp_path / name) == ("cat", BOX)


def test_numbers_and_captions_together_are_a_question(tmp_path: Path) -> None:
    labels(tmp_path)
    make_image(tmp_path / "2.jpg")
    (tmp_path / "2.txt").write_text("a dog in the grass")
    with pytest.raises(OptionError, match=r"'yolo' or 'captions' \(--format\)"):
        open_data(tmp_path)
    assert len(open_data(tmp_path, format="captions")) == 2


def test_an_image_without_objects_does_not_make_labels_captions(tmp_path: Path) -> None:
    labels(tmp_path)
    make_image(tmp_path / "2.jpg")
    (tmp_path / "2.txt").write_text("")
    assert first(tmp_path) == ("dog", BOX)
    assert open_data(tmp_path)[1].objects == ()


@pytest.mark.parametrize("path", ["/content/pets/train/images", "../pets/train/images/", "train"])
def test_paths_of_another_machine_are_found_by_their_end(tmp_path: Path, path: str) -> None:
    labels(tmp_path / "train" / "images", None)
    (tmp_path / "train" / "labels").mkdir()
    (tmp_path / "train" / "images" / "1.txt").rename(tmp_path / "train" / "labels" / "1.txt")
    (tmp_path / "data.yaml").write_text(f"train: {path}\nval: ../valid/images\nnames: [cat, dog]")
    assert first(tmp_path) == ("dog", BOX)
    # An end without the split's name could be another split.
    make_image(tmp_path / "images" / "2.jpg")
    with pytest.raises(DataError, match="neither a folder nor a file"):
        open_data(tmp_path, split="val")


def test_darknet_folders_are_read(tmp_path: Path) -> None:
    labels(tmp_path / "obj_train_data", None)
    make_image(tmp_path / "obj_train_data" / "empty.jpg")
    (tmp_path / "obj.data").write_text(
        "classes = 2\ntrain = data/train.txt\nnames = data/obj.names\nbackup = backup/\n"
    )
    (tmp_path / "obj.names").write_text("cat\ndog\n")
    (tmp_path / "train.txt").write_text(
        "data/obj_train_data/1.jpg\ndata/obj_train_data/empty.jpg\n"
    )
    assert first(tmp_path) == ("dog", BOX)
    records = open_data(tmp_path)
    assert (len(records), records[1].objects, records.split) == (2, (), "train")


def test_label_studio_folders_are_read(tmp_path: Path) -> None:
    make_image(tmp_path / "images" / "1.jpg")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "1.txt").write_text(LINE)
    (tmp_path / "notes.json").write_text(
        json.dumps({"categories": [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}], "info": {}})
    )
    assert first(tmp_path) == ("dog", BOX)
    (tmp_path / "classes.txt").write_text("one\ntwo\n")
    with pytest.raises(OptionError, match="different classes"):
        open_data(tmp_path)
    assert first(tmp_path, class_names=tmp_path / "classes.txt") == ("two", BOX)


def test_splits_of_a_folder_of_labels_are_kept_apart(tmp_path: Path) -> None:
    for split in ("train", "val"):
        labels(tmp_path / "images" / split, None)
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    records = open_data(tmp_path)
    assert (len(records), records.split, records.splits) == (1, "train", ("train", "val"))


def test_pose_lines_are_boxes_with_keypoints(tmp_path: Path) -> None:
    make_image(tmp_path / "images" / "1.jpg")
    (tmp_path / "images" / "1.txt").write_text("0 0.5 0.5 0.25 0.5 0.4 0.4 0.6 0.6\n")
    file = tmp_path / "data.yaml"
    file.write_text("train: images\nnames: [cat]\nkpt_shape: [2, 2]\n")
    found = open_data(file)[0].objects
    assert found is not None
    assert (found[0].box_xyxy, found[0].mask) == (BOX, None)
    file.write_text("train: images\nnames: [cat]\nkpt_shape: [17, 3]\n")
    with pytest.raises(DataError, match="must have 55"):
        open_data(file)
    file.write_text("train: images\nnames: [cat]\n")  # nothing says that these are keypoints
    with pytest.raises(OptionError, match=r"polygons, or a box and keypoints.*--yolo-lines"):
        open_data(file)
    found = open_data(file, yolo_lines="keypoints")[0].objects
    assert found is not None
    assert (found[0].box_xyxy, found[0].mask) == (BOX, None)
    assert open_data(file, yolo_lines="polygons")[0].objects[0].mask is not None  # type: ignore[index]


@pytest.mark.parametrize(
    "lines",
    [
        "0 0.3 0.3 0.7 0.3 0.7 0.7 0.3 0.7\n",  # read as a box, it leaves the image
        "0 0.5 0.5 0.6 0.5 0.6 0.6 0.5 0.6\n0 0.8 0.8 0.9 0.8 0.9 0.9 0.8 0.9\n",
        "0 0.5 0.5 0.6 0.5 0.6 0.6\n0 0.5 0.5 0.6 0.5 0.6 0.6 0.5 0.6\n",  # two numbers of points
    ],
)
def test_what_can_only_be_polygons_is_no_question(tmp_path: Path, lines: str) -> None:
    objects = open_data(labels(tmp_path, lines=lines))[0].objects
    assert objects is not None
    assert all(item.mask is not None for item in objects)


@pytest.mark.parametrize("num_values", [2, 3])
def test_keypoints_that_are_not_labeled_are_keypoints(tmp_path: Path, num_values: int) -> None:
    points = "0.4 0.4 2 0 0 0" if num_values == 3 else "0.4 0.4 0 0"
    labels(tmp_path, lines=f"0 0.5 0.5 0.25 0.5 {points}\n")
    with pytest.raises(OptionError, match="--yolo-lines"):
        open_data(tmp_path)


@pytest.mark.parametrize(
    "line",
    [
        "0,0.5,0.5,0.25,0.5",
        "dog 0.5 0.5 0.25 0.5",
        "Car 0.00 0 -1.58 10.0 5.0 20.0 15.0 1.5 1.6 3.7 -2.7 1.7 3.5 -1.59",
        "10.0 5.0 20.0 5.0 20.0 15.0 10.0 15.0 small-vehicle 0",
        "3",
    ],
)
def test_labels_of_other_formats_are_not_captions(tmp_path: Path, line: str) -> None:
    labels(tmp_path, None, f"{line}\n{line}\n")
    with pytest.raises(OptionError, match=r"look like labels.*--format captions"):
        open_data(tmp_path)
    assert open_data(tmp_path, format="captions")[0].references == (line, line)


def test_captions_may_contain_numbers(tmp_path: Path) -> None:
    labels(tmp_path, None, "buses 12 and 14 at 9:30, of 3 or 4 colors")
    assert open_data(tmp_path).format == "captions"


def test_a_confidence_after_a_box_is_left_aside(tmp_path: Path) -> None:
    labels(tmp_path, lines="1 0.5 0.5 0.25 0.5 0.93\n")
    assert first(tmp_path) == ("dog", BOX)
    assert "1 boxes with a further number" in open_data(tmp_path).notes[0]


# COCO


def official(folder: Path, *names: str) -> Path:
    """COCO's official folders; every file lists the same two images."""
    item = {"image_id": 1, "category_id": 2, "bbox": [5, 3, 10, 4]}
    for name in names:
        caption = [{"image_id": number, "caption": "a"} for number in (1, 2)]
        path = coco(folder / "annotations", caption if "captions" in name else [item])
        path.rename(path.with_name(f"{name}.json"))
    return folder


def test_instances_come_before_keypoints(tmp_path: Path) -> None:
    official(tmp_path, "instances_train2017", "person_keypoints_train2017", "instances_val2017")
    records = open_data(tmp_path, split="train")
    assert "instances_train2017.json" in records.summary
    assert any("person_keypoints_train2017.json" in note for note in records.notes)
    assert open_data(tmp_path).split == "train2017"
    assert open_data(tmp_path, split="val").split == "val2017"


def test_boxes_and_captions_are_a_question(tmp_path: Path) -> None:
    official(tmp_path, "instances_train2017", "captions_train2017")
    with pytest.raises(OptionError, match=r"captions_train2017.*instances_train2017.*--column"):
        open_data(tmp_path)
    assert "instances" in open_data(tmp_path, column="objects").summary
    assert "captions" in open_data(tmp_path, column="caption").summary


def test_annotations_with_boxes_and_captions_are_a_question(tmp_path: Path) -> None:
    item = {"image_id": 1, "category_id": 2, "bbox": [5, 3, 10, 4], "caption": "a dog"}
    path = coco(tmp_path, [item, {**item, "image_id": 2}])
    with pytest.raises(OptionError, match="--column objects or --column caption"):
        open_data(path)
    assert open_data(path, column="objects")[0].objects
    assert open_data(path, column="caption")[0].references == ("a dog",)


def edited(path: Path, **lists: Any) -> Path:
    path.write_text(json.dumps(json.loads(path.read_text()) | lists))
    return path


def test_two_categories_of_one_id_are_refused(tmp_path: Path) -> None:
    categories = [{"id": 1, "name": "cat"}, {"id": 1, "name": "dog"}]
    with pytest.raises(DataError, match="have the id 1: 'cat' and 'dog'"):
        open_data(edited(coco(tmp_path, []), categories=categories))


def test_ids_are_compared_as_text(tmp_path: Path) -> None:
    path = coco(tmp_path, [{"image_id": "1", "category_id": "2", "bbox": [5, 3, 10, 4]}])
    objects = open_data(path)[0].objects
    assert objects is not None
    assert objects[0].label == "dog"


def test_an_image_listed_twice_is_one_record_with_all_boxes(tmp_path: Path) -> None:
    item = {"category_id": 2, "bbox": [5, 3, 10, 4]}
    path = coco(tmp_path, [{**item, "image_id": 2}, {**item, "image_id": 1}])
    images = [{"id": i, "file_name": "1.png", "width": 40, "height": 20} for i in (1, 2)]
    records = open_data(edited(path, images=images))
    assert [len(record.objects or ()) for record in records] == [2]
    assert "1 images listed again under another id" in records.notes[0]


def test_a_class_that_is_a_parent_of_some_is_kept(tmp_path: Path) -> None:
    categories = [
        {"id": 0, "name": "dog", "supercategory": "animal"},
        {"id": 1, "name": "puppy", "supercategory": "dog"},
        {"id": 2, "name": "cat", "supercategory": "animal"},
    ]
    path = edited(coco(tmp_path, []), categories=categories)
    assert open_data(path).class_names == ("dog", "puppy", "cat")


# Several files, several formats


def test_two_files_of_a_split_are_a_question(tmp_path: Path) -> None:
    for name in ("cats", "dogs"):
        path = jsonl(tmp_path, [{"prefix": "caption en", "suffix": name}])
        path.rename(path.with_name(f"{name}.train.jsonl"))
    with pytest.raises(OptionError, match=r"cats\.train\.jsonl, dogs\.train\.jsonl"):
        open_data(tmp_path)


def test_two_formats_are_a_question(tmp_path: Path) -> None:
    coco(tmp_path, [])
    jsonl(tmp_path, [{"prefix": "caption en", "suffix": "a dog"}])
    with pytest.raises(OptionError, match="can be read as jsonl and as coco"):
        open_data(tmp_path)
    assert open_data(tmp_path, format="jsonl").format == "jsonl"


def test_the_only_data_set_in_a_folder_is_read(tmp_path: Path) -> None:
    labels(tmp_path / "dataset")
    assert open_data(tmp_path).name == "dataset"
    coco(tmp_path / "third", [])
    with pytest.raises(OptionError, match=r"several data sets: dataset \(yolo\), third \(coco\)"):
        open_data(tmp_path)


def test_other_programs_json_is_no_coco(tmp_path: Path) -> None:
    make_image(tmp_path / "1.jpg")
    (tmp_path / "state.txt.json").write_text(json.dumps([{"annotations": [], "images": []}]))
    with pytest.raises(DataError, match="does not look like"):
        open_data(tmp_path)


# Tables


def table(folder: Path, columns: dict[str, Any]) -> Path:
    datasets = pytest.importorskip("datasets", reason="the library is not installed")
    image = str(make_image(folder.parent / "images" / "1.png"))
    text = datasets.Value("string")
    kinds: dict[str, Any] = {name: text for name in columns}
    boxes = datasets.List(datasets.Value("float32"), length=4)
    if "objects" in columns:
        kinds["objects"] = datasets.List({"bbox": boxes, "category": text})
    features = datasets.Features({"image": datasets.Image(), **kinds})
    made = datasets.Dataset.from_dict({"image": [image], **columns}, features=features)
    made.save_to_disk(str(folder))
    return folder


def test_objects_and_captions_in_a_table_are_a_question(tmp_path: Path) -> None:
    objects = [[{"bbox": [5.0, 3.0, 10.0, 4.0], "category": "dog"}]]
    path = table(tmp_path / "set", {"objects": objects, "caption": ["a dog"]})
    with pytest.raises(OptionError, match=r"caption, objects.*--column objects"):
        open_data(path)
    records = open_data(path, column="objects")
    assert records[0].objects is not None
    assert records[0].objects[0].box_xyxy == (5.0, 3.0, 15.0, 7.0)
    assert "not used: caption" in records.notes[0]
    assert open_data(path, column="caption")[0].references == ("a dog",)
    with pytest.raises(OptionError, match="no column 'text'"):
        open_data(path, column="text")


def test_a_single_parquet_file_is_a_table(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    table(tmp_path / "set", {"caption": ["a dog"]})
    datasets.load_from_disk(str(tmp_path / "set")).to_parquet(str(tmp_path / "t.parquet"))
    records = open_data(tmp_path / "t.parquet")
    assert (records.format, records[0].references) == ("huggingface", ("a dog",))


def test_an_empty_suffix_of_detect_in_a_table_is_an_answer(tmp_path: Path) -> None:
    path = table(tmp_path / "set", {"prefix": ["detect cat"], "suffix": [""]})
    assert (open_data(path)[0].suffix, open_data(path)[0].prefix) == ("", "detect cat")


# Names of images


@pytest.mark.parametrize(
    "name", ["images\\a b.jpg", "images/a%20b.jpg", "A B.JPG", "/home/bob/images/a b.jpg"]
)
@pytest.mark.parametrize("format", ["coco", "jsonl"])
def test_images_are_found_by_the_names_of_other_machines(
    tmp_path: Path, name: str, format: str
) -> None:
    image = make_image(tmp_path / "images" / "a b.jpg")
    if format == "jsonl":
        path = jsonl(tmp_path, [{"image": name, "prefix": "ocr", "suffix": "x"}])
    else:
        images = [{"id": 1, "file_name": name, "width": 40, "height": 20}]
        path = edited(coco(tmp_path, []), images=images)
    records = open_data(path)
    assert records[0].image == image
    assert "images found elsewhere than the annotations say" in records.notes[0]


def test_another_image_of_the_same_name_is_not_taken(tmp_path: Path) -> None:
    make_image(tmp_path / "val" / "1.jpg")
    line = {"image": "train/1.jpg", "prefix": "ocr", "suffix": "x"}
    with pytest.raises(DataError, match=r"does not exist\. Is it .*val/1\.jpg"):
        open_data(jsonl(tmp_path, [line]))
    make_image(tmp_path / "train" / "1.jpg")
    with pytest.raises(DataError, match="could be"):
        open_data(jsonl(tmp_path, [{**line, "image": "1.jpg"}]))
