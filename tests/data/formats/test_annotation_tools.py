"""Files of other programs: boxes and polygons come out in pixels, whatever the program writes."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from paligemma.data.open import open_data
from paligemma.data.record import Record
from paligemma.errors import DataError, OptionError
from tests.data.annotated import make_image

BOX = (5.0, 3.0, 15.0, 7.0)
CORNERS = [[5, 3], [15, 3], [15, 7], [5, 7]]


def write(folder: Path, name: str, content: Any) -> Path:
    make_image(folder / "images" / "a.jpg")
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def boxes(record: Record) -> list[tuple[str, tuple[float, ...]]]:
    return [(found.label, found.box_xyxy) for found in record.objects or ()]


CVAT = """<?xml version="1.0" encoding="utf-8"?>
<annotations><version>1.1</version>
<image id="0" name="sub/a.jpg" width="40" height="20">
<box label="cat" occluded="0" xtl="5" ytl="3" xbr="15" ybr="7" z_order="0"></box>
<polygon label="dog" points="5.0,3.0;15.0,3.0;15.0,7.0;5.0,7.0"></polygon>
<box label="turned" xtl="6" ytl="4" xbr="14" ybr="6" rotation="90.0"></box>
<mask label="mask" rle="1, 2, 1" left="5" top="3" width="2" height="2"></mask>
<points label="cat" points="5,3"></points><tag label="day"></tag>
</image></annotations>"""


def test_cvat(tmp_path: Path) -> None:
    records = open_data(write(tmp_path, "annotations.xml", CVAT))
    assert records.format == "cvat"
    cat, dog, turned, mask = boxes(records[0])
    assert (cat, dog) == (("cat", BOX), ("dog", BOX))
    assert turned[1] == pytest.approx((9, 1, 11, 9))
    assert mask == ("mask", (5.0, 3.0, 7.0, 5.0))
    found = (records[0].objects or ())[3].mask
    assert found is not None
    assert [tuple(point) for point in np.argwhere(found)] == [(3, 6), (4, 5)]
    assert any(note.startswith("1 points, lines") for note in records.notes)


def test_a_cvat_mask_is_read_along_the_rows(tmp_path: Path) -> None:
    # As CVAT writes it: runs of 0 and 1 in turn, the first of 0, in a part of the image.
    xml = """<annotations><image name="a.jpg" width="40" height="20">
<mask label="cat" rle="0, 3, 4, 1" left="38" top="16" width="4" height="2"></mask>
<mask label="dog" rle="5, 2, 1" left="1" top="2" width="4" height="2"></mask>
</image></annotations>"""
    record = open_data(write(tmp_path, "a.xml", xml))[0]
    cat, dog = record.objects or ()
    assert cat.mask is not None
    assert dog.mask is not None
    # The image ends at x = 40: of the first row x = 38, 39 remain, of the second none.
    assert np.argwhere(cat.mask).tolist() == [[16, 38], [16, 39]]
    assert np.argwhere(dog.mask).tolist() == [[3, 2], [3, 3]]
    assert (cat.box_xyxy, dog.box_xyxy) == ((38, 16, 40, 18), (2, 3, 4, 4))


@pytest.mark.parametrize("rle", ["", "3", "-1, 5", "99999999999", "1, x"])
def test_a_damaged_cvat_mask_is_a_data_error(rle: str, tmp_path: Path) -> None:
    xml = f"""<annotations><image name="a.jpg" width="40" height="20">
<mask label="cat" rle="{rle}" left="0" top="0" width="2" height="2"></mask>
</image></annotations>"""
    with pytest.raises(DataError, match=r"Image 'a\.jpg'"):
        open_data(write(tmp_path, "a.xml", xml))


def brush(width: int, height: int, runs: str) -> list[int]:
    """Label Studio's bits after the header: values of 8 bits, lengths of 3, 4, 8 and 16 bits."""
    bits = f"{4 * width * height:032b}" + "00111" + "0010001101111111" + runs
    bits += "0" * (-len(bits) % 8)
    return [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]


def test_label_studio_brush(tmp_path: Path) -> None:
    def repeated(count: int, value: int) -> str:
        return f"1{'11'}{count - 1:016b}{value:08b}"

    # Alpha is 0 up to pixel 41; pixel 42, written out, has 255, and 43 has 1.
    pixels = "0" + "00" + "111" + "".join(f"{v:08b}" for v in (9, 8, 7, 255, 1, 2, 3, 1))
    runs = repeated(42 * 4, 0) + pixels + repeated((800 - 44) * 4, 0)
    value = {"format": "rle", "rle": brush(40, 20, runs), "brushlabels": ["cat"]}
    result = {"type": "brushlabels", "value": value, "original_width": 40, "original_height": 20}
    tasks = [{"id": 1, "data": {"image": "a.jpg"}, "annotations": [{"result": [result]}]}]
    record = open_data(write(tmp_path, "tasks.json", tasks))[0]
    (cat,) = record.objects or ()
    assert (cat.label, cat.box_xyxy) == ("cat", (2, 1, 4, 2))
    assert cat.mask is not None
    assert np.argwhere(cat.mask).tolist() == [[1, 2], [1, 3]]
    value["rle"] = brush(40, 20, runs)[:-8]
    write(tmp_path, "tasks.json", tasks)
    with pytest.raises(DataError, match="cut short"):
        open_data(tmp_path)
    value["rle"] = brush(40, 21, runs)
    write(tmp_path, "tasks.json", tasks)
    with pytest.raises(DataError, match="3360 values; its image needs 3200"):
        open_data(tmp_path)
    result["original_width"] = 80
    write(tmp_path, "tasks.json", tasks)
    with pytest.raises(DataError, match="80 x 20"):
        open_data(tmp_path)


def test_images_with_points_alone_are_counted(tmp_path: Path) -> None:
    xml = """<annotations><image name="a.jpg" width="40" height="20">
<points label="cat" points="5,3"></points></image></annotations>"""
    records = open_data(write(tmp_path, "a.xml", xml))
    assert records[0].objects == ()
    assert "1 images with points or lines alone, taken to show no object" in records.notes


def test_subsets_of_cvat_are_splits(tmp_path: Path) -> None:
    make_image(tmp_path / "images" / "b.jpg")
    xml = """<annotations>
<image name="a.jpg" subset="Train" width="40" height="20"></image>
<image name="b.jpg" subset="Validation" width="40" height="20"></image></annotations>"""
    records = open_data(write(tmp_path, "a.xml", xml))
    assert ([record.record_id for record in records], records.split) == (["a.jpg"], "Train")
    assert records.splits == ("Train", "Validation")
    assert open_data(tmp_path, purpose="test")[0].record_id == "b.jpg"
    assert open_data(tmp_path, split="val")[0].record_id == "b.jpg"
    write(tmp_path, "a.xml", xml.replace("Validation", "Train"))
    assert (len(open_data(tmp_path)), open_data(tmp_path).splits) == (2, ())


def test_cvat_of_a_video_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="CVAT for images"):
        open_data(write(tmp_path, "a.xml", "<annotations><track id='0'/></annotations>"))


def test_labelme(tmp_path: Path) -> None:
    png = io.BytesIO()
    Image.fromarray(np.array([[255, 0], [255, 255]], np.uint8)).save(png, "PNG")
    shapes = [
        {"label": "cat", "points": [[15, 7], [5, 3]], "shape_type": "rectangle"},
        {"label": "dog", "points": CORNERS, "shape_type": "polygon"},
        {"label": "ball", "points": [[10, 10], [13, 14]], "shape_type": "circle"},
        {"label": "part", "points": [[5, 3], [7, 5]], "shape_type": "mask",
         "mask": base64.b64encode(png.getvalue()).decode()},
        {"label": "tip", "points": [[1, 1]], "shape_type": "point"},
    ]  # fmt: skip
    content = {"version": "5.0", "shapes": shapes, "imagePath": "..\\images\\a.jpg"}
    records = open_data(write(tmp_path, "a.json", content))
    cat, dog, ball, part = boxes(records[0])
    assert (records.format, cat, dog) == ("labelme", ("cat", BOX), ("dog", BOX))
    assert ball[1] == pytest.approx((5, 5, 15, 15), abs=0.1)
    assert part == ("part", (5.0, 3.0, 7.0, 5.0))
    mask = (records[0].objects or ())[3].mask
    assert mask is not None
    assert int(mask.sum()) == 3


def test_label_studio(tmp_path: Path) -> None:
    box = {"x": 12.5, "y": 15, "width": 25, "height": 20, "rotation": 0, "rectanglelabels": ["cat"]}
    polygon = {"points": [[12.5, 15], [37.5, 15], [37.5, 35], [12.5, 35]], "polygonlabels": ["dog"]}
    results = [
        {"type": "rectanglelabels", "value": box, "original_width": 40, "original_height": 20},
        {"type": "polygonlabels", "value": polygon, "original_width": 40, "original_height": 20},
        {"type": "choices", "value": {"choices": ["day"]}},
    ]
    annotation = {"id": 1, "completed_by": 1, "result": results}
    task = {
        "id": 7,
        "annotations": [annotation],
        "data": {"image": "/data/upload/1/1a2b3c4d-a.jpg"},
    }
    records = open_data(write(tmp_path, "export.json", [task]))
    assert (records.format, records[0].record_id) == ("labelstudio", "task 7")
    assert boxes(records[0]) == [("cat", BOX), ("dog", BOX)]
    task["annotations"] = [annotation, annotation]
    with pytest.raises(DataError, match="2 annotations, by several people"):
        open_data(write(tmp_path, "export.json", [task]))
    nobody = [{"id": 8, "data": {"image": "a.jpg"}, "annotations": []},
              {"id": 9, "data": {"image": "a.jpg"}, "predictions": [annotation]},
              {"id": 10, "data": {"image": "a.jpg"},
               "annotations": [{**annotation, "was_cancelled": True}]}]  # fmt: skip
    task["annotations"] = [{**annotation, "result": []}]
    records = open_data(write(tmp_path, "export.json", [task, *nobody]))
    assert [(record.record_id, record.objects) for record in records] == [("task 7", ())]
    assert "3 images that nobody has labeled, left out" in records.notes
    with pytest.raises(DataError, match="no images that somebody has labeled"):
        open_data(write(tmp_path, "export.json", nobody), format="labelstudio")
    short = [{"image": "a.jpg", "id": 1, "label": [{**box, "original_width": 40}]}]
    assert boxes(open_data(write(tmp_path, "export.json", short))[0]) == [("cat", BOX)]


def test_via(tmp_path: Path) -> None:
    xs, ys = zip(*CORNERS, strict=True)
    regions = [
        {"shape_attributes": {"name": "rect", "x": 5, "y": 3, "width": 10, "height": 4},
         "region_attributes": {"class": "cat"}},
        {"shape_attributes": {"name": "polygon", "all_points_x": xs, "all_points_y": ys},
         "region_attributes": {"kind": {"dog": True, "cat": False}}},
        {"shape_attributes": {"name": "point", "cx": 1, "cy": 1},
         "region_attributes": {"class": "x"}},
    ]  # fmt: skip
    files = {"a.jpg123": {"filename": "a.jpg", "size": 123, "regions": regions}}
    records = open_data(write(tmp_path, "via_region_data.json", files))
    assert records.format == "via"
    assert boxes(records[0]) == [("cat", BOX), ("dog", BOX)]
    numbered = {"a.jpg": {**files["a.jpg123"], "regions": dict(enumerate(regions))}}
    project = {"_via_settings": {}, "_via_img_metadata": numbered}
    records = open_data(write(tmp_path, "via_region_data.json", project))
    assert boxes(records[0]) == [("cat", BOX), ("dog", BOX)]
    regions[0]["region_attributes"] = {"class": "cat", "color": "red"}
    path = write(tmp_path, "via_region_data.json", files)
    with pytest.raises(DataError, match=r"class, color.*--column"):
        open_data(path)
    assert boxes(open_data(path, column="color")[0])[0] == ("red", BOX)


def test_create_ml(tmp_path: Path) -> None:
    place = {"x": 10, "y": 5, "width": 10, "height": 4}
    content = [{"image": "a.jpg", "annotations": [{"label": "cat", "coordinates": place}]}]
    records = open_data(write(tmp_path, "_annotations.createml.json", content))
    assert records.format == "createml"
    assert boxes(records[0]) == [("cat", BOX)]
    for split in ("train", "valid"):
        write(tmp_path / "set" / split, "_annotations.createml.json", content)
    records = open_data(tmp_path / "set")
    assert (records.split, records.splits) == ("train", ("train", "valid"))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", {"version": "5", "shapes": [{"label": "a"}]}),
        ("a.json", [{"image": "a.jpg", "annotations": [{"result": [{"value": None}]}]}]),
        ("a.json", {"a": {"filename": "a.jpg", "regions": [{}]}}),
        ("a.json", [{"image": "a.jpg", "annotations": [{"coordinates": 3}]}]),
        ("a.xml", '<annotations><image name="a.jpg"><box label="x"/></image></annotations>'),
    ],
)
def test_broken_files_are_one_error(tmp_path: Path, name: str, content: Any) -> None:
    with pytest.raises(DataError, match=r"a\.jpg"):
        open_data(write(tmp_path, name, content))


# Chats


def llava(*turns: str) -> list[dict[str, str]]:
    return [
        {"from": ("human", "gpt")[number % 2], "value": text} for number, text in enumerate(turns)
    ]


def test_llava_chats_are_questions(tmp_path: Path) -> None:
    chat = {
        "id": "x",
        "image": "a.jpg",
        "conversations": llava("<image>\nWhat?", "A dog.", "Where?", "Here."),
    }
    records = open_data(write(tmp_path, "llava.json", [chat, {**chat, "id": "y", "image": None}]))
    assert records.format == "conversations"
    assert [(r.record_id, r.prefix, r.suffix) for r in records] == [
        ("x", "What?", "A dog."),
        ("x question 2", "Where?", "Here."),
    ]
    assert "1 chats without an image left out" in records.notes
    assert "1 follow-up questions, learned without what was said before" in records.notes


def test_openai_messages_are_questions(tmp_path: Path) -> None:
    image = make_image(tmp_path / "b.png").read_bytes()
    url = "data:image/png;base64," + base64.b64encode(image).decode()
    question = [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "text", "text": "What?"},
    ]
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": question},
        {"role": "assistant", "content": "A dog."},
    ]
    records = open_data(write(tmp_path, "train.jsonl", json.dumps({"messages": messages})))
    assert (records.format, records[0].prefix, records[0].suffix) == (
        *("conversations", "What?", "A dog."),
    )
    assert records[0].load_image().size_wh == (40, 20)
    assert records.notes == ("1 system messages left out",)
    with pytest.raises(DataError, match="must alternate"):
        open_data(write(tmp_path, "train.jsonl", json.dumps({"messages": messages[:2]})))
    (tmp_path / "val.jsonl").write_text((tmp_path / "train.jsonl").read_text())
    with pytest.raises(OptionError, match="there is no split 'test'"):
        open_data(tmp_path, split="test")


def labelbox_row(*objects: dict[str, Any]) -> dict[str, Any]:
    labels = [{"label_kind": "Default", "annotations": {"objects": list(objects)}}]
    return {
        "data_row": {"id": "cl1", "external_id": "a.jpg", "row_data": "https://x.org/1-a.jpg?k=1"},
        "media_attributes": {"height": 20, "width": 40, "mime_type": "image/jpeg"},
        "projects": {"p1": {"name": "pets", "labels": labels}},
    }


def test_labelbox(tmp_path: Path) -> None:
    row = labelbox_row(
        {"name": "cat", "bounding_box": {"top": 3.0, "left": 5.0, "height": 4.0, "width": 10.0}},
        {"name": "dog", "polygon": [{"x": x, "y": y} for x, y in CORNERS]},
        {"name": "tip", "point": {"x": 1, "y": 1}},
    )
    write(tmp_path, "export.ndjson", json.dumps(row) + "\n")
    for data in (tmp_path, tmp_path / "export.ndjson"):
        records = open_data(data)
        assert (records.format, records[0].record_id) == ("labelbox", "cl1")
        assert boxes(records[0]) == [("cat", BOX), ("dog", BOX)]
        assert records.notes == ("1 points, lines and other annotations without an area, left out",)


def test_labelbox_finds_the_image_by_its_address(tmp_path: Path) -> None:
    row = labelbox_row({"name": "cat", "bounding_box": dict(top=3, left=5, height=4, width=10)})
    row["data_row"] |= {"external_id": None, "row_data": "https://x.org/storage/a.jpg?token=1"}
    assert boxes(open_data(write(tmp_path, "e.ndjson", json.dumps(row)))[0]) == [("cat", BOX)]


def test_labelbox_in_the_first_form(tmp_path: Path) -> None:
    objects = [{"title": "cat", "bbox": {"top": 3, "left": 5, "height": 4, "width": 10}}]
    rows = [{"ID": "1", "Labeled Data": "https://x.org/a.jpg", "External ID": "a.jpg",
             "Label": {"objects": objects}}]  # fmt: skip
    records = open_data(write(tmp_path, "export.json", rows))
    assert (records.format, boxes(records[0])) == ("labelbox", [("cat", BOX)])


def test_labelboxs_oldest_form_is_refused(tmp_path: Path) -> None:
    polygon = [{"x": 1, "y": 2}, {"x": 3, "y": 4}, {"x": 1, "y": 4}]
    rows = [{"ID": "1", "Labeled Data": "https://x.org/a.jpg", "Label": {"cat": [polygon]}}]
    with pytest.raises(DataError, match="y may be counted from the bottom"):
        open_data(write(tmp_path, "export.json", rows))


def test_images_that_nobody_labeled_are_not_background(tmp_path: Path) -> None:
    empty, unlabeled = labelbox_row(), labelbox_row()
    unlabeled["data_row"] = {**unlabeled["data_row"], "id": "cl2"}
    unlabeled["projects"]["p1"]["labels"] = []
    write(tmp_path, "e.ndjson", f"{json.dumps(empty)}\n{json.dumps(unlabeled)}\n")
    records = open_data(tmp_path)
    assert [(record.record_id, record.objects) for record in records] == [("cl1", ())]
    assert records.notes == ("1 images that nobody has labeled, left out",)


def test_what_labelbox_does_not_hold_is_an_error(tmp_path: Path) -> None:
    row = labelbox_row({"name": "cat", "mask": {"url": "https://x.org/mask.png"}})
    with pytest.raises(DataError, match="web address"):
        open_data(write(tmp_path, "e.ndjson", json.dumps(row)))
    row["projects"]["p2"] = row["projects"]["p1"]
    with pytest.raises(DataError, match="2 sets of labels"):
        open_data(write(tmp_path, "e.ndjson", json.dumps(row)))
