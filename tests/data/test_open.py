"""Guessing what data are, and what becomes of bad records."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from paligemma.data.open import open_data
from paligemma.data.record import BadRecord
from paligemma.errors import DataError, ImageError, OptionError
from tests.data.annotated import jsonl, make_image


def lines(number: int, bad: tuple[int, ...] = ()) -> list[dict[str, object]]:
    """So many records, of which some have no answer."""
    return [
        {"prefix": "caption en", "suffix": "" if i in bad else f"picture {i}", "id": f"r{i}"}
        for i in range(number)
    ]


def test_nothing_is_fetched_for_a_path_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="format='huggingface'"):
        open_data(tmp_path / "owner" / "name")


def test_a_folder_that_is_no_data_set_is_described(tmp_path: Path) -> None:
    make_image(tmp_path / "1.png")
    with pytest.raises(
        DataError, match=r"does not look like any supported format: captions.*1\.png"
    ):
        open_data(tmp_path)


def test_options_that_do_not_exist_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="Formats: captions, coco"):
        open_data(tmp_path, format="tfrecord")
    with pytest.raises(OptionError, match="on_bad_record is 'ignore'"):
        open_data(tmp_path, on_bad_record="ignore")  # type: ignore[arg-type]


@pytest.mark.parametrize("format", ["yolo", "coco", "voc", "masks", "jsonl", "captions"])
def test_a_format_that_is_not_there_is_an_error_that_names_the_place(
    tmp_path: Path, format: str
) -> None:
    with pytest.raises(DataError, match="nowhere"):
        open_data(tmp_path / "nowhere", format=format)


def test_a_bad_record_is_an_error_by_default(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"Line 2 of .*empty suffix"):
        open_data(jsonl(tmp_path, lines(3, bad=(1,))))


def test_a_skipped_record_moves_no_other(tmp_path: Path) -> None:
    whole = open_data(jsonl(tmp_path / "whole", lines(5)))
    log = tmp_path / "logs" / "skipped.jsonl"
    rest = open_data(
        jsonl(tmp_path / "rest", lines(5, bad=(1,))), on_bad_record="skip", bad_file=log
    )
    assert len(rest) == 4
    assert [slot.record_id for slot in rest.slots] == [slot.record_id for slot in whole.slots]
    assert [isinstance(slot, BadRecord) for slot in rest.slots] == [False, True, *[False] * 3]
    written = json.loads(log.read_text())
    assert written["id"] == "r1"
    assert "Line 2" in written["where"]
    assert "empty suffix" in written["reason"]
    assert rest.skipped[0].record_id == "r1"


def test_a_run_without_bad_records_leaves_an_empty_file(tmp_path: Path) -> None:
    log = tmp_path / "skipped.jsonl"
    log.write_text("from an earlier run\n")
    assert not open_data(jsonl(tmp_path, lines(2)), on_bad_record="skip", bad_file=log).skipped
    assert log.read_text() == ""


def test_more_than_one_in_a_hundred_is_too_many(tmp_path: Path) -> None:
    path = jsonl(tmp_path, lines(100, bad=(3, 4)))
    with pytest.raises(DataError, match=r"2 of 100 records are bad, more than 1\.0%.*Line 4"):
        open_data(path, on_bad_record="skip")
    assert len(open_data(path, on_bad_record="skip", max_skipped=0.02)) == 98


def test_a_set_of_bad_records_alone_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No record can be used"):
        open_data(jsonl(tmp_path, lines(1, bad=(0,))), on_bad_record="skip", max_skipped=1.0)


def test_an_id_that_comes_twice_is_bad(tmp_path: Path) -> None:
    records = lines(3)
    records[2]["id"] = "r0"
    path = jsonl(tmp_path, records)
    with pytest.raises(DataError, match=r"Line 3 .*same id as Line 1 .*'r0'"):
        open_data(path)
    assert [r.record_id for r in open_data(path, on_bad_record="skip")] == ["r0", "r1"]


def test_a_damaged_image_shows_when_it_is_read(tmp_path: Path) -> None:
    path = jsonl(tmp_path, lines(1))
    (tmp_path / "0.png").write_bytes(b"no picture")
    record = open_data(path)[0]
    with pytest.raises(ImageError, match=r"0\.png"):
        record.load_image()


def test_annotations_of_another_image_are_found_out(tmp_path: Path) -> None:
    objects = [{"label": "dog", "box_xyxy": [1, 2, 3, 4]}]
    record = open_data(jsonl(tmp_path, [{"objects": objects}]))[0]
    make_image(tmp_path / "0.png", (30, 20))
    with pytest.raises(DataError, match=r"Line 1 .*40 x 20 pixels, '0.png' has 30 x 20"):
        record.load_image()
    make_image(tmp_path / "0.png", (20, 40))
    with pytest.raises(DataError, match="swapped in the annotations"):
        record.load_image()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(tmp_path / "0.png", exif=exif)
    with pytest.raises(DataError, match="turned upright"):
        record.load_image()
