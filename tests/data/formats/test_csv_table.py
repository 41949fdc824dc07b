"""CSV: columns by their names, and nothing guessed without a header."""

from __future__ import annotations

from pathlib import Path

import pytest

from paligemma.data.open import open_data
from paligemma.data.record import Record
from paligemma.errors import DataError, OptionError
from tests.data.annotated import make_image

BOX = (5.0, 3.0, 15.0, 7.0)


def table(folder: Path, text: str, name: str = "labels.csv") -> Path:
    for image in ("a.jpg", "b.jpg"):
        make_image(folder / "images" / image)
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text, encoding="utf-8")
    return folder


def boxes(record: Record) -> list[tuple[str, tuple[float, ...]]]:
    return [(found.label, found.box_xyxy) for found in record.objects or ()]


@pytest.mark.parametrize(
    "text",
    [
        "image,xmin,ymin,xmax,ymax,label\na.jpg,5,3,15,7,cat\nb.jpg,,,,,\na.jpg,5,3,15,7,dog\n",
        "\ufefffilename;class;xmin;ymin;xmax;ymax\r\na.jpg;cat;5.0;3;15;7\r\n"
        "b.jpg;;;;;\r\n\r\na.jpg;dog;5;3;15;7\r\n",
        'filename,width,height,class,xmin,ymin,xmax,ymax\n"a.jpg",40,20,cat,5,3,15,7\n'
        "b.jpg,40,20,,,,,\na.jpg,40,20,dog,5,3,15,7\n",
        "X1,X2,Y1,Y2,Path,Name\n5,15,3,7,C:\\data\\a.jpg,cat\n,,,,b.jpg,\n5,15,3,7,C:\\data\\a.jpg,dog\n",
    ],
)
def test_a_row_is_an_object(tmp_path: Path, text: str) -> None:
    for data in (table(tmp_path, text), tmp_path / "labels.csv"):
        records = open_data(data)
        assert (records.format, len(records)) == ("csv", 2)
        assert boxes(records[0]) == [("cat", BOX), ("dog", BOX)]
        assert records[1].objects == ()
        assert records.class_names == ("cat", "dog")


def test_a_second_column_of_images_is_named(tmp_path: Path) -> None:
    text = "path,filename,xmin,ymin,xmax,ymax,label\n/data/a.jpg,a.jpg,5,3,15,7,cat\n"
    records = open_data(table(tmp_path, text))
    assert boxes(records[0]) == [("cat", BOX)]
    assert "1 column filename was not used, as the images are in path" in records.notes


def test_files_are_splits(tmp_path: Path) -> None:
    header = "filename,width,height,class,xmin,ymin,xmax,ymax\n"
    table(tmp_path, f"{header}a.jpg,40,20,cat,5,3,15,7\n", "train_labels.csv")
    table(tmp_path, f"{header}b.jpg,40,20,dog,5,3,15,7\n", "test_labels.csv")
    assert boxes(open_data(tmp_path)[0]) == [("cat", BOX)]
    assert boxes(open_data(tmp_path, purpose="test")[0]) == [("dog", BOX)]


def test_a_table_without_a_header_is_read_when_asked(tmp_path: Path) -> None:
    folder = table(tmp_path, "images/a.jpg,5,3,15,7,cat\nimages/b.jpg,,,,,\n")
    with pytest.raises(DataError, match="--format retinanet"):
        open_data(folder / "labels.csv", format="csv")
    with pytest.raises(DataError, match="does not look like"):
        open_data(folder / "labels.csv")
    records = open_data(folder / "labels.csv", format="retinanet")
    assert boxes(records[0]) == [("cat", BOX)]
    assert records[1].objects == ()


def test_numbers_are_classes_until_they_have_names(tmp_path: Path) -> None:
    text = "image,xmin,ymin,xmax,ymax,label\na.jpg,5,3,15,7,1\n"
    records = open_data(table(tmp_path, text))
    assert boxes(records[0]) == [("1", BOX)]
    assert "--class-names" in records.notes[0]
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    named = open_data(tmp_path / "labels.csv", class_names=tmp_path / "names.txt")
    assert boxes(named[0]) == [("dog", BOX)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,xmin,ymin,xmax,ymax,label\na.jpg,5,3,15,cat\n", "Line 2 .* 5 fields"),
        ("image,xmin,ymin,xmax,ymax,label\na.jpg,5,3,15,x,cat\n", "must be four numbers"),
        ("image,xmin,ymin,xmax,ymax,label\na.jpg,5,3,15,7,\n", "label ''"),
        ("image,xmin,ymin,xmax,ymax,label\na.jpg,15,3,5,7,cat\n", "Line 2 .* no area"),
        ("image,xmin,ymin,xmax,ymax,label\nz.jpg,5,3,15,7,cat\n", "does not exist"),
        ("image,xmin,ymin,xmax,ymax,label\n\"a.jpg,5,3,15,7,cat\n", "is not CSV"),
        ("filename,width,height,class,xmin,ymin,xmax,ymax\na.jpg,40,20,cat,5,3,15,7\n"
         "a.jpg,80,20,cat,5,3,15,7\n", "different sizes"),
    ],
)  # fmt: skip
def test_rows_that_cannot_be_read_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_data(table(tmp_path, text))


def test_two_columns_of_classes_are_a_question(tmp_path: Path) -> None:
    text = "image,xmin,ymin,xmax,ymax,class,label\na.jpg,5,3,15,7,3,cat\n"
    with pytest.raises(OptionError, match=r"class and label.*--column class"):
        open_data(table(tmp_path, text))
    assert boxes(open_data(tmp_path, column="label")[0]) == [("cat", BOX)]
    table(tmp_path, "image,xmin,ymin,xmax,ymax,cell_type\na.jpg,5,3,15,7,cat\n")
    with pytest.raises(OptionError, match=r"cell_type .*--column NAME"):
        open_data(tmp_path)
    assert boxes(open_data(tmp_path, column="cell_type")[0]) == [("cat", BOX)]
