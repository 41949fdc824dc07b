"""What a job works on: which items a source has, and their keys."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from paligemma.batch import SourceOptions, find_items
from paligemma.batch.reading import LocationReader
from paligemma.errors import DocumentError, ImageError, OptionError
from tests.documents.pdf_files import pdf_of_pages, text_at


def png(color: int = 0) -> bytes:
    data = io.BytesIO()
    Image.fromarray(np.full((4, 6, 3), color, np.uint8)).save(data, "PNG")
    return data.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.png", "a/1.png", "a/2.jpg", "a/notes.txt", ".hidden/x.png", "a/.y.png"):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png())
    return tmp_path / "in"


def keys(*sources: object, **options: object) -> list[str]:
    found = find_items([str(source) for source in sources], SourceOptions(**options))  # type: ignore[arg-type]
    return [item.key for item in found]


def test_a_folder_gives_its_images_and_those_below_by_their_paths_in_it(folder: Path) -> None:
    assert keys(folder) == ["a/1.png", "a/2.jpg", "b.png"]
    assert keys(folder / "b.png") == ["b.png"]


def test_keys_of_patterns_and_of_several_sources_are_relative_to_what_they_share(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert keys(folder / "*" / "*.png") == ["a/1.png"]
    assert keys(folder / "a", folder / "b.png") == ["a/1.png", "a/2.jpg", "b.png"]
    monkeypatch.chdir(folder)
    assert keys("a/*.jpg") == ["2.jpg"]
    assert keys("b.png", "./b.png") == ["b.png"]


def test_where_limit_and_shards_choose_among_them(folder: Path) -> None:
    assert keys(folder, where="*.png") == ["a/1.png", "b.png"]
    assert keys(folder, where="a/*") == ["a/1.png", "a/2.jpg"]
    assert keys(folder, limit=2) == ["a/1.png", "a/2.jpg"]
    parts = [keys(folder, shard=(number, 3)) for number in (1, 2, 3)]
    assert sorted(key for part in parts for key in part) == keys(folder)
    with pytest.raises(OptionError, match=r"None of the 3 images matches the pattern '\*\.tif'"):
        keys(folder, where="*.tif")
    with pytest.raises(OptionError, match="from 1 to 3"):
        keys(folder, shard=(4, 3))


def test_a_list_holds_paths_relative_to_it_and_addresses_if_allowed(folder: Path) -> None:
    listed = folder / "a" / "list.txt"
    listed.write_text("1.png\n\n../b.png\nhttps://example.com/x.png\n")
    with pytest.raises(OptionError, match=r"Line 4 of .* web address .* --allow-urls"):
        keys(listed)
    assert keys(listed, allow_urls=True) == ["../b.png", "1.png", "https://example.com/x.png"]
    listed.write_text("ftp://example.com/x.png")
    with pytest.raises(OptionError, match="only http and https"):
        keys(listed, allow_urls=True)


def test_a_table_of_json_lines_has_ids_or_names(folder: Path) -> None:
    table = folder / "rows.jsonl"
    rows = [{"image": "b.png", "id": 7}, {"path": "a/1.png"}, {"url": "a/2.jpg", "id": "x"}]
    table.write_text("\n".join(map(json.dumps, rows)))
    assert keys(table) == ["7", "a/1.png", "x"]
    for line, told in (
        ('{"text": "b.png"}', "Line 1 .* does not name an image"),
        ("[1]", "does not name an image"),
        ('{"image": "b.png"', "is not JSON"),
        ('{"image": 3}', "does not name an image"),
        ('{"image": "b.png"}\n{"image": "b.png"}', 'Line 2 .* same key as line 1, .*"id"'),
    ):
        table.write_text(line)
        with pytest.raises(OptionError, match=told):
            keys(table)


def asked(table: Path, **options: object) -> dict[str, dict[str, str]]:
    found = find_items([str(table)], SourceOptions(**options), text_column="question")  # type: ignore[arg-type]
    return {item.key: item.asks for item in found}


def test_each_row_that_asks_is_an_item_also_about_the_same_image(folder: Path) -> None:
    table = folder / "rows.jsonl"
    rows: list[dict[str, object]] = [
        {"image": "b.png", "question": "How many?"},
        {"image": "a/1.png", "question": "What color?", "id": 7},
        {"image": "b.png", "question": "What color?"},
    ]
    table.write_text("\n".join(map(json.dumps, rows)))
    expected = {
        "7": {"question": "What color?"},
        "b.png": {"question": "How many?"},
        "b.png#question=0002": {"question": "What color?"},
    }
    assert asked(table) == expected
    assert list(asked(table, where="b.png")) == ["b.png", "b.png#question=0002"]
    parts = [asked(table, shard=(number, 3)) for number in (1, 2, 3)]
    assert {key: asks for part in parts for key, asks in part.items()} == expected
    [seven, *_] = find_items([str(table)], text_column="question")
    assert seven.place == f"Line 2 of {str(table)!r}"
    rows[1]["question"] = "What colour?"
    table.write_text("\n".join(map(json.dumps, rows)))
    [changed, *_] = find_items([str(table)], text_column="question")
    assert changed.fingerprint != seven.fingerprint
    for wrong in ("", 3, ["a"]):
        table.write_text(json.dumps({"image": "b.png", "question": wrong}))
        with pytest.raises(OptionError, match=r"Line 1 .* as its \"question\"; expected text"):
            asked(table)


def test_columns_that_are_not_used_are_told_once(folder: Path) -> None:
    table = folder / "rows.jsonl"
    rows = [{"image": "b.png", "question": "x", "split": 1}, {"image": "a/1.png", "answer": "y"}]
    table.write_text("\n".join(map(json.dumps, rows)))
    said: list[str] = []
    find_items([str(table)], say=said.append)
    find_items([str(table)], text_column="question", say=said.append)
    assert [text.partition("not use: ")[2] for text in said] == [
        "'question', 'split', 'answer'.",
        "'split', 'answer'.",
    ]


def test_tables_in_parquet_may_ask_in_each_row(folder: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table, said = folder / "t.parquet", list[str]()
    columns = {"path": ["b.png"] * 2, "question": ["How many?", "What color?"], "split": [1, 2]}
    parquet.write_table(pa.table(columns), table)
    items = find_items([str(table)], text_column="question", say=said.append)
    assert [(item.key, item.asks["question"]) for item in items] == [
        ("b.png", "How many?"),
        ("b.png#question=0002", "What color?"),
    ]
    assert said == [f"The table {str(table)!r} has columns that this task does not use: 'split'."]
    columns = {"image": [png(1), png(2)], "question": ["How many?", None]}
    parquet.write_table(pa.table(columns), table)
    assert asked(table) == {
        "t.parquet#row=00000000": {"question": "How many?"},
        "t.parquet#row=00000001": {},
    }


def test_a_missing_file_of_a_list_is_an_item_that_will_fail(folder: Path) -> None:
    listed = folder / "list.txt"
    listed.write_text("b.png\ngone.png\n")
    _, item = find_items([str(listed)])
    assert item.fingerprint == "missing"
    with pytest.raises(ImageError, match=r"gone\.png"):
        LocationReader(resolution=4).read(item.location)


def test_a_text_that_is_no_list_is_told_and_left_out_of_patterns(folder: Path) -> None:
    (folder / "a" / "1.txt").write_text("a cat on a mat\n")
    with pytest.raises(OptionError, match=r"None of the files in the list .* 'a cat on a mat'"):
        keys(folder / "a" / "1.txt")
    assert keys(folder / "a" / "*") == ["1.png", "2.jpg"]


def test_images_in_a_shard_are_read_by_their_place_in_it(tmp_path: Path) -> None:
    shard = tmp_path / "s.tar"
    with tarfile.open(shard, "w") as tar:
        for name, data in (("./0.png", png(9)), ("0.json", b"{}"), ("d/1.jpg", png(200))):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    items = find_items([str(shard)])
    assert [item.key for item in items] == ["s.tar/0.png", "s.tar/d/1.jpg"]
    reader = LocationReader(resolution=4)
    assert [reader.read(item.location).rgb.getpixel((0, 0)) for item in items] == [
        (9, 9, 9),
        (200, 200, 200),
    ]
    os.truncate(shard, 1600)
    with pytest.raises(ImageError, match="shorter"):
        reader.read(items[1].location)
    with pytest.raises(OptionError, match="not a complete tar file"):
        find_items([str(shard)])
    shard.rename(tmp_path / "s.tar.gz")
    with pytest.raises(OptionError, match="Unpack it first"):
        find_items([str(tmp_path / "s.tar.gz")])


def test_tables_in_parquet_hold_paths_or_the_bytes_of_images(folder: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    reader = LocationReader(resolution=4)
    table = folder / "t.parquet"
    parquet.write_table(pa.table({"path": ["b.png", "a/1.png"], "id": [5, 6]}), table)
    assert keys(table) == ["5", "6"]
    as_bytes = [{"bytes": png(color), "path": None} for color in range(5)]
    parquet.write_table(pa.table({"image": as_bytes}), table, row_group_size=2)
    items = find_items([str(table)])
    assert [item.key for item in items] == [f"t.parquet#row={row:08d}" for row in range(5)]
    colors = [reader.read(items[row].location).rgb.getpixel((0, 0)) for row in (4, 0, 3, 1)]
    assert colors == [(4, 4, 4), (0, 0, 0), (3, 3, 3), (1, 1, 1)]
    parquet.write_table(pa.table({"image": [png(7), None], "id": ["x", "y"]}), table)
    items = find_items([str(table)])
    reader = LocationReader(resolution=4)
    assert [item.key for item in items] == ["x", "y"]
    assert reader.read(items[0].location).size_wh == (6, 4)
    with pytest.raises(ImageError, match=r"Row 1 of 't\.parquet' has no image"):
        reader.read(items[1].location)
    parquet.write_table(pa.table({"caption": ["x"]}), table)
    with pytest.raises(OptionError, match=r"no column with images.*'caption'"):
        find_items([str(table)])
    table.write_bytes(b"PAR1")
    with pytest.raises(OptionError, match="cannot be read"):
        find_items([str(table)])


def test_each_page_of_a_document_is_an_item_with_boxes_in_points(tmp_path: Path) -> None:
    path = tmp_path / "letter.pdf"
    path.write_bytes(pdf_of_pages([text_at(50, 700, "Hello")] * 11))
    items = find_items([str(tmp_path)])
    assert items[0].key == "letter.pdf#page=0001"
    assert items[10].key == "letter.pdf#page=0011"
    image = LocationReader(resolution=50).read(items[1].location)
    assert image.rgb.size == (100, 50)
    assert image.size_wh == (200, 100)
    [whole] = find_items([str(tmp_path)], SourceOptions(whole_documents=True))
    assert whole.key == "letter.pdf"
    path.write_bytes(b"%PDF-1.4 and nothing more")
    [damaged] = find_items([str(tmp_path)])
    with pytest.raises((DocumentError, ImageError)):
        LocationReader(resolution=100).read(damaged.location)


def test_what_is_no_source_is_told(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "x.doc").write_text("x")
    for source, told in (
        ("https://example.com/a.png", "Put addresses into a text file"),
        (tmp_path / "nothing", "does not exist"),
        (tmp_path / "*.gif", "No file matches"),
        (tmp_path / "empty", "no images in"),
        (tmp_path / "x.doc", "not a file that a job can take"),
    ):
        with pytest.raises(OptionError, match=told):
            keys(source)


def test_a_changed_file_has_another_fingerprint(folder: Path) -> None:
    def prints(check: str) -> dict[str, str]:
        options = SourceOptions(check=check)  # type: ignore[arg-type]
        return {item.key: item.fingerprint for item in find_items([str(folder)], options)}

    before = prints("stat"), prints("content")
    os.utime(folder / "b.png", (1, 1))
    assert prints("stat")["b.png"] != before[0]["b.png"]
    assert prints("content") == before[1]
    (folder / "b.png").write_bytes(png(3))
    assert prints("content")["b.png"] != before[1]["b.png"]


def test_an_address_is_not_fetched_unless_that_is_allowed() -> None:
    with pytest.raises(ImageError, match="fetching is not allowed"):
        LocationReader(resolution=4).read("https://example.com/a.png")


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    for name in ("a.txt", "a.jsonl", "a.tar", "a.parquet"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(OptionError, match="is a pipe"):
            find_items([str(tmp_path / name)])
