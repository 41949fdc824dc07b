"""Files derived from a journal."""

from __future__ import annotations

import csv
import errno
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paligemma.batch import BatchTask, Entry, Item, Job, Journal, OutputOptions
from paligemma.batch.outputs.detection import label_file
from paligemma.batch.status import read_status
from paligemma.data import open_data
from paligemma.errors import OptionError
from paligemma.masks import mask_to_rle


def found(label: str, score: float, box: tuple[float, ...], **more: Any) -> dict[str, Any]:
    values = {"label": label, "score": score, "box_xyxy": list(box), "unsure": score < 0.5}
    return {**values, **more}


def objects(*items: dict[str, Any]) -> dict[str, Any]:
    return {"objects": list(items), "phrases": ["cat", "dog"], "size_wh": [20, 10], "text": "raw"}


def entry(key: str, result: dict[str, Any] | None, error: str | None = None) -> Entry:
    return Entry(key=key, fingerprint="1", result=result, error=error, seconds=1.0)


def job(tmp_path: Path, name: str, *entries: Entry, **outputs: Any) -> Job:
    text = {"ask": "how many?", "detect": "cat ; dog", "segment": "cat"}.get(name)
    schema = "receipt" if name == "extract" else None
    task = BatchTask(name=name, text=text, schema=schema)  # type: ignore[arg-type]
    with Journal.open(tmp_path / "out", {"x": 1}) as journal:
        journal.add(entries)
    return Job(sources=(), task=task, out=tmp_path / "out", outputs=OutputOptions(**outputs))


def test_parquet_holds_what_each_row_asked(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    asked = replace(entry("a.jpg", {"text": "two", "score": 0.5}), asks={"question": "how many?"})
    failed = replace(entry("b.jpg", None, "bad"), asks={"question": "who?"})
    job(tmp_path, "ask", asked, failed, to=("parquet",)).write([])
    rows = parquet.read_table(tmp_path / "out/results.parquet").to_pylist()
    assert [(row["id"], row["question"], row["text"], row["error"]) for row in rows] == [
        ("a.jpg", "how many?", "two", None),
        ("b.jpg", "who?", None, "bad"),
    ]


def items(tmp_path: Path, *names: str) -> list[Item]:
    (tmp_path / "in").mkdir(exist_ok=True)
    made = []
    for name in names:
        path = tmp_path / "in" / name
        path.write_bytes(b"image")
        made.append(Item(key=name, fingerprint="1", location={"path": str(path)}))
    return made


def test_json_lines_hold_texts_as_they_are_and_csv_holds_nothing_that_acts(
    tmp_path: Path,
) -> None:
    made = job(
        tmp_path, "ask",
        entry("b.jpg", {"text": "=1+1\x1b[2J", "score": 0.25}),
        entry("a.jpg", None, "It is no image."),
        to=("jsonl", "csv"),
    )  # fmt: skip
    made.write([])
    lines = [json.loads(x) for x in (tmp_path / "out/results.jsonl").read_text().splitlines()]
    assert lines == [
        {"image": "a.jpg", "error": "It is no image."},
        {
            "image": "b.jpg", "model": "mini", "task": "ask",
            "result": {"text": "=1+1\x1b[2J", "score": 0.25},
        },
    ]  # fmt: skip
    rows = list(csv.reader((tmp_path / "out/results.csv").read_text().splitlines()))
    assert rows == [
        ["image", "text", "score", "error"],
        ["a.jpg", "", "", "It is no image."],
        ["b.jpg", r"'=1+1\x1b[2J", "0.25", ""],
    ]


def test_a_file_name_that_is_not_utf8_is_written_with_escapes(tmp_path: Path) -> None:
    made = job(
        tmp_path, "caption", entry(os.fsdecode(b"caf\xe9.jpg"), {"text": "x", "score": 1.0}),
        to=("jsonl", "csv", "parquet"),
    )  # fmt: skip
    made.write([])
    line = json.loads((tmp_path / "out/results.jsonl").read_text("utf-8"))
    assert os.fsencode(line["image"]) == b"caf\xe9.jpg"
    assert r"caf\udce9.jpg,x,1.0" in (tmp_path / "out/results.csv").read_text("utf-8")


def test_coco_has_the_classes_asked_for_first_and_ids_by_key(tmp_path: Path) -> None:
    made = job(
        tmp_path, "detect",
        entry("b.jpg", objects(found("zebra", 0.9, (1, 2, 5, 4)), found("cat", 0.2, (0, 0, 1, 1)))),
        entry("a.jpg", objects(found("dog", 0.5, (0, 0, 20, 10)))),
        entry("bad.jpg", None, "bad"),
        to=("coco", "yolo"), min_score=0.3,
    )  # fmt: skip
    made.write([])
    coco = json.loads((tmp_path / "out/coco.json").read_text())
    assert [image["file_name"] for image in coco["images"]] == ["a.jpg", "b.jpg"]
    assert coco["categories"] == [
        {"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}, {"id": 3, "name": "zebra"},
    ]  # fmt: skip
    assert [
        (a["image_id"], a["category_id"], a["bbox"], a["area"]) for a in coco["annotations"]
    ] == [
        (1, 2, [0, 0, 20, 10], 200),
        (2, 3, [1, 2, 4, 2], 8),
    ]
    labels = tmp_path / "out/yolo/labels"
    assert (labels / "a.txt").read_text() == "1 0.500000 0.500000 1.000000 1.000000\n"
    assert (labels / "b.txt").read_text() == "2 0.150000 0.300000 0.200000 0.200000\n"
    assert (
        'names:\n  0: "cat"\n  1: "dog"\n  2: "zebra"\n'
        in (labels.parent / "data.yaml").read_text()
    )
    made.write([])  # replaces the folder
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "coco.json", "journal.jsonl", "journal.lock", "outputs.lock", "yolo",
    ]  # fmt: skip


def test_masks_become_run_lengths_in_coco_and_outlines_in_yolo(tmp_path: Path) -> None:
    mask = np.zeros((10, 20), bool)
    mask[2:4, 4:10] = True
    rle = mask_to_rle(mask)
    result = objects(found("cat", 0.9, (4, 2, 10, 4), mask=rle))
    job(tmp_path, "segment", entry("a.jpg", result), to=("coco", "yolo", "parquet")).write([])
    [annotation] = json.loads((tmp_path / "out/coco.json").read_text())["annotations"]
    assert (annotation["area"], annotation["segmentation"]) == (12, rle)
    line = (tmp_path / "out/yolo/labels/a.txt").read_text().split()
    assert {float(x) for x in line[1::2]} == {0.2, 0.5}
    assert {float(y) for y in line[2::2]} == {0.2, 0.4}


def test_parquet_has_flat_columns_and_a_list_of_objects(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    job(
        tmp_path, "detect", entry("a", objects(found("dog", 0.5, (0, 0, 2, 1)))),
        entry("b", None, "bad"), to=("parquet",),
    ).write([])  # fmt: skip
    rows = parquet.read_table(tmp_path / "out/results.parquet").to_pylist()
    assert rows[0]["objects"] == [
        {"label": "dog", "x1": 0.0, "y1": 0.0, "x2": 2.0, "y2": 1.0, "score": 0.5}
    ]
    assert (rows[0]["id"], rows[0]["text"], rows[0]["error"]) == ("a", "raw", None)
    assert (rows[1]["id"], rows[1]["error"], rows[1]["objects"]) == ("b", "bad", None)


def test_text_files_next_to_the_images_are_read_back_as_they_are(tmp_path: Path) -> None:
    images = items(tmp_path, "1.jpg", "2.jpg", "3.jpg")
    from PIL import Image

    for item in images:
        assert item.file is not None
        Image.new("RGB", (4, 4)).save(item.file)
    made = job(
        tmp_path, "caption", entry("1.jpg", {"text": "a cat\n on  a mat"}),
        entry("2.jpg", {"text": "ein Zelt, grün"}), entry("3.jpg", None, "bad"), sidecar=("txt",),
    )  # fmt: skip
    assert made.write(images) == ()
    assert (tmp_path / "in/1.txt").read_bytes() == b"a cat on a mat\n"
    assert not (tmp_path / "in/3.txt").exists()
    records = open_data(tmp_path / "in", format="captions", on_bad_record="skip", max_skipped=1.0)
    assert [record.references for record in records] == [
        ("a cat on a mat",),
        ("ein Zelt, grün",),
    ]


def test_files_that_the_job_did_not_write_are_never_overwritten(tmp_path: Path) -> None:
    images = items(tmp_path, "1.jpg", "2.jpg")
    theirs = tmp_path / "in/2.txt"
    theirs.write_text("by hand")
    one, two = entry("1.jpg", {"text": "one"}), entry("2.jpg", {"text": "two"})
    made = job(tmp_path, "caption", one, two, sidecar=("txt", "json"))
    with pytest.raises(OptionError, match=r"1 file exists that this job did not write.*2\.txt"):
        made.outputs.sidecars(made.out).check(images, "caption")
    with pytest.raises(OptionError, match="did not write"):
        made.write(images)
    assert theirs.read_text() == "by hand"
    theirs.unlink()
    made.write(images)
    assert theirs.read_text() == "two\n"
    assert json.loads((tmp_path / "in/1.json").read_text())["result"] == {"text": "one"}
    job(tmp_path, "caption", entry("2.jpg", {"text": "another"}), sidecar=("txt",)).write(images)
    assert theirs.read_text() == "another\n"  # it was the job's own
    theirs.write_text("corrected by hand")
    with pytest.raises(OptionError, match="did not write"):
        made.write(images)
    job(tmp_path, "caption", sidecar=("txt",), overwrite=True).write(images)
    assert theirs.read_text() == "another\n"


def test_text_files_can_have_a_folder_of_their_own(tmp_path: Path) -> None:
    images = [
        Item(
            key="s.tar/d/1.jpg", fingerprint="", location={"tar": "s.tar", "offset": 0, "size": 1}
        ),
        Item(key="x.pdf#page=0002", fingerprint="", location={"path": "x.pdf", "page": 2}),
    ]
    entries = [entry(item.key, {"text": "t"}) for item in images]
    made = job(tmp_path, "ocr", *entries, sidecar=("txt",), sidecar_root=tmp_path / "texts")
    made.write(images)
    written = sorted(p.relative_to(tmp_path / "texts").as_posix() for p in tmp_path.rglob("*.txt"))
    assert written == ["s.tar/d/1.txt", "x.pdf#page=0002.txt"]
    with pytest.raises(OptionError, match="not a file of its own"):
        job(tmp_path, "ocr", sidecar=("txt",)).outputs.sidecars(tmp_path).check(images, "ocr")
    job(tmp_path, "ocr", to=("csv",)).outputs.sidecars(tmp_path).check(images, "ocr")


def test_what_cannot_be_written_is_told_before_anything_is_computed(tmp_path: Path) -> None:
    images = items(tmp_path, "1.jpg", "1.png")
    for name, told, outputs in (
        ("caption", "coco is for the objects", {"to": ("coco",)}),
        ("embed", "fit no CSV", {"to": ("csv",)}),
        ("detect", "both have the labels", {"to": ("yolo",)}),
        ("caption", "needs --sidecar", {"sidecar_root": tmp_path}),
    ):
        with pytest.raises(OptionError, match=told):
            job(tmp_path, name, **outputs).outputs.check(images, name)
    for name, told in (("caption", "both have the file"), ("detect", "are not text")):
        with pytest.raises(OptionError, match=told):
            job(tmp_path, name, sidecar=("txt",)).outputs.sidecars(tmp_path).check(images, name)


@pytest.mark.parametrize("key", ["../x.jpg", "/etc/x.jpg", "http://host/x.jpg", "a/../../x.jpg"])
def test_no_file_is_written_outside_of_its_folder(key: str) -> None:
    with pytest.raises(OptionError, match="no place below a folder"):
        label_file(key)


def test_a_disk_that_is_full_leaves_the_earlier_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = job(tmp_path, "caption", entry("a", {"text": "x"}))
    made.write([])
    before = (tmp_path / "out/results.jsonl").read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("paligemma.batch.outputs.rows.os.fsync", full)
    with pytest.raises(OptionError, match="No space left on device"):
        made.write([])
    assert (tmp_path / "out/results.jsonl").read_bytes() == before
    assert not list((tmp_path / "out").glob(".*unfinished"))


def test_text_files_of_a_process_killed_while_it_noted_them_stay_the_jobs_own(
    tmp_path: Path,
) -> None:
    images = items(tmp_path, "1.jpg", "2.jpg")
    made = job(
        tmp_path, "caption", entry("1.jpg", {"text": "one"}), entry("2.jpg", {"text": "two"}),
        sidecar=("txt",),
    )  # fmt: skip
    (tmp_path / "out/sidecars.jsonl").write_bytes(b'{"path": "in/1.t')  # torn
    made.write(images)
    made.outputs.sidecars(made.out).check(images, "caption")


def test_text_files_of_images_with_the_longest_names_are_written(tmp_path: Path) -> None:
    images = items(tmp_path, 251 * "x" + ".jpg")
    made = job(tmp_path, "caption", entry(images[0].key, {"text": "one"}), sidecar=("txt",))
    made.write(images)
    assert (tmp_path / "in" / (251 * "x" + ".txt")).read_text() == "one\n"
    with pytest.raises(OptionError, match=r"The name of the file .* is too long\. Use --to jsonl"):
        OutputOptions(sidecar=("json",)).sidecars(tmp_path / "out").check(images, "caption")


def test_images_beside_the_labels_of_yolo_outlive_another_run(tmp_path: Path) -> None:
    box = (0.0, 0.0, 10.0, 10.0)
    job(tmp_path, "detect", entry("1.jpg", objects(found("cat", 0.9, box))), to=("yolo",)).write([])
    theirs = tmp_path / "out/yolo/images/1.jpg"
    theirs.parent.mkdir()
    theirs.write_bytes(b"image")
    job(tmp_path, "detect", entry("2.jpg", objects(found("dog", 0.9, box))), to=("yolo",)).write([])
    assert theirs.read_bytes() == b"image"
    labels = tmp_path / "out/yolo/labels"
    assert sorted(path.name for path in labels.iterdir()) == ["1.txt", "2.txt"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if "yolo" in path.name) == [
        "yolo"
    ]


def test_a_model_in_a_folder_whose_name_is_not_utf8_is_written_with_escapes(tmp_path: Path) -> None:
    made = job(tmp_path, "caption", entry("1.jpg", {"text": "ein Zelt, grün"}), to=("jsonl",))
    replace(made, model={"model": os.fsdecode(b"m\xff")}).write([])
    line = json.loads((tmp_path / "out/results.jsonl").read_text("utf-8"))
    assert os.fsencode(line["model"]) == b"m\xff"
    assert line["result"]["text"] == "ein Zelt, grün"


def test_the_status_of_a_job_is_read_without_writing_into_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job(tmp_path, "caption", entry("1.jpg", {"text": "x"}))
    given = os.open

    def open_on_a_read_only_disk(path: Any, flags: int, *more: Any, **named: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise OSError(errno.EROFS, "Read-only file system")
        return given(path, flags, *more, **named)

    monkeypatch.setattr(os, "open", open_on_a_read_only_disk)
    status = read_status(tmp_path / "out")
    assert (status.done, status.running) == (1, 0)
    with pytest.raises(OptionError, match="outputs\\.lock' cannot be written: Read-only"):
        Job(sources=(), task=BatchTask(name="caption"), out=tmp_path / "out").write([])
