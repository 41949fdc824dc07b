"""One policy for bad records and bad boxes, in `data check`, `train` and `eval` alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from paligemma.cli.app import app
from paligemma.data.open import open_data
from paligemma.errors import DataError
from tests.data.annotated import coco, make_image


def boxes(count: int) -> list[dict[str, Any]]:
    return [
        {"image_id": number, "category_id": 1, "bbox": [number % 20, 3, 10, 4]}
        for number in range(1, count + 1)
    ]


def faulty(folder: Path, fault: str, count: int = 6) -> Path:
    """COCO labels of images of different colors, of which one has the fault."""
    items = boxes(count)
    if fault == "label":
        items[2]["bbox"] = [3, 3, 0, 4]
    path = coco(folder, items, num_images=count)
    for number in range(1, count + 1):
        make_image(folder / f"{number}.png", color=f"rgb({number}, 9, 9)")
    image = folder / "3.png"
    if fault == "header":
        image.write_bytes(b"no image")
    elif fault == "pixels":
        image.write_bytes(image.read_bytes()[:50])
    elif fault == "size":
        make_image(image, (30, 20))
    elif fault == "missing":
        image.unlink()
    return path


def command(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(word) for word in words])
    output = result.output + str(result.exception or "")
    return result.exit_code, output


FAULTS = ("label", "header", "pixels", "size", "missing")


@pytest.mark.parametrize("fault", FAULTS)
def test_check_skips_what_it_names(tmp_path: Path, fault: str) -> None:
    path = faulty(tmp_path, fault)
    page = ("--out", tmp_path / "page.html")
    code, output = command("data", "check", path, *page)
    assert code != 0
    code, output = command("data", "check", path, *page, "--on-bad-record", "skip")
    assert code == 0, output
    assert "1 of 6 records are skipped" in output
    assert "[3]" in output


def test_more_bad_records_than_allowed_are_an_error(tmp_path: Path) -> None:
    path = faulty(tmp_path, "header")
    (tmp_path / "4.png").write_bytes(b"no image")
    words = ("data", "check", path, "--out", tmp_path / "page.html", "--bad", "skip")
    code, output = command(*words)
    assert code != 0
    assert "--max-skipped" in output
    assert command(*words, "--max-skipped", 0.5)[0] == 0


def test_training_and_evaluation_skip_what_the_check_skips(tmp_path: Path) -> None:
    path = faulty(tmp_path / "set", "label", count=9)
    for number, data in ((4, b"no image"), (5, (tmp_path / "set" / "5.png").read_bytes()[:50])):
        (tmp_path / "set" / f"{number}.png").write_bytes(data)
    make_image(tmp_path / "set" / "6.png", (30, 20))
    run = tmp_path / "run"
    skip = ("--on-bad-record", "skip", "--max-skipped", 0.5)
    train = ("train", path, "--out", run, "--steps", 1, "--batch-size", 1)
    assert command(*train)[0] != 0
    code, output = command(*train, *skip)
    assert code == 0, output
    lines = [json.loads(x) for x in (run / "bad_records.jsonl").read_text().splitlines()]
    assert sorted(line["id"] for line in lines) == ["3", "4", "5", "6"]
    evaluate = ("eval", path, "--out", tmp_path / "scores")
    code, output = command(*evaluate)
    assert code != 0
    assert "annotation 2" in output
    code, output = command(*evaluate, *skip)
    assert code == 0, output
    lines = (tmp_path / "scores" / "bad_records.jsonl").read_text().splitlines()
    assert sorted(json.loads(line)["id"] for line in lines) == ["3", "4", "5", "6"]


def test_texts_that_are_too_long_are_named(tmp_path: Path) -> None:
    lines = []
    for number, suffix in enumerate(("a cat", "a dog", "long " * 4000)):
        make_image(tmp_path / f"{number}.png")
        lines.append({"image": f"{number}.png", "prefix": "caption en", "suffix": suffix})
    path = tmp_path / "set.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = ("--out", tmp_path / "page.html")
    code, output = command("data", "check", path, *page)
    assert code != 0
    assert "Line 3 of" in output
    assert "20000 characters" in output
    assert command("data", "check", path, *page, "--bad", "skip")[0] == 0


# Single objects


def test_a_box_can_be_clipped_or_dropped_alone(tmp_path: Path) -> None:
    item = {"image_id": 1, "category_id": 1}
    items = [[5, 3, 10, 4], [35, 3, 10, 4], [5, 3, 0, 4], [50, 3, 5, 4]]
    path = coco(tmp_path, [{**item, "bbox": box} for box in items])
    with pytest.raises(DataError, match="boxes='clip'"):
        open_data(path)

    def kept(boxes: str) -> list[tuple[float, ...]]:
        return [found.box_xyxy for found in open_data(path, boxes=boxes)[0].objects or ()]

    assert kept("clip") == [(5, 3, 15, 7), (35, 3, 40, 7)]
    assert kept("drop") == [(5, 3, 15, 7)]
    notes = open_data(path, boxes="clip").notes
    assert "1 boxes clipped to their image, beyond which they extended further" in notes
    assert "2 objects dropped for a box without area, or beyond the image" in notes


def test_boxes_can_be_those_of_their_masks(tmp_path: Path) -> None:
    shape = [[4, 2, 14, 2, 14, 12, 4, 12]]
    item = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 5, 5], "segmentation": shape}
    path = coco(tmp_path, [item, {**item, "image_id": 2}])
    page = ("--out", tmp_path / "page.html")
    code, output = command("data", "check", path, *page)
    assert code != 0
    assert "2 of 2 boxes do not fit the masks" in output
    code, output = command("data", "check", path, *page, "--boxes", "from-masks")
    assert code == 0, output
    found = open_data(path, boxes="from-masks")[0].objects
    assert found is not None
    assert found[0].box_xyxy == (4, 2, 14, 12)


@pytest.mark.parametrize(
    ("shape", "area"),
    [
        ([4, 2, 14, 2, 14, 12, 4, 12], 100),
        ([[4, 2], [14, 2], [14, 12], [4, 12]], 100),
        ([[[4, 2], [14, 2], [14, 12], [4, 12]]], 100),
        ([[4, 2, 14, 2, 14, 12, 4, 12], [1, 1, 2, 2]], 100),
        ([[]], None),
    ],
)
def test_polygons_are_read_in_every_spelling(tmp_path: Path, shape: Any, area: int | None) -> None:
    item = {"image_id": 1, "category_id": 1, "bbox": [4, 2, 10, 10], "segmentation": shape}
    found = open_data(coco(tmp_path, [item]))[0].objects
    assert found is not None
    mask = found[0].mask
    assert (None if mask is None else int(mask.sum())) == area


def test_crowds_are_named_as_the_cause(tmp_path: Path) -> None:
    for crowd in (1, "1"):
        path = coco(tmp_path, [{**item, "iscrowd": crowd} for item in boxes(2)])
        page = ("--out", tmp_path / "page.html")
        code, output = command("data", "check", path, *page)
        assert code != 0
        assert "All 2 annotations of cat are marked as crowds" in output
        assert "the same answer" not in output
        assert command("data", "check", path, *page, "--crowds", "learn")[0] == 0
    plain = coco(tmp_path, [{**item, "iscrowd": "0"} for item in boxes(2)])
    assert open_data(plain)[0].crowds == ()


def test_boxes_in_fractions_are_an_error(tmp_path: Path) -> None:
    path = coco(
        tmp_path,
        [{**item, "bbox": [0.1, 0.2, 0.3 + 0.1 * i, 0.5]} for i, item in enumerate(boxes(2))],
    )
    code, output = command("data", "check", path, "--out", tmp_path / "page.html")
    assert code != 0
    assert "They look like fractions of the image" in output


# Options


def test_all_commands_that_read_data_have_the_same_options() -> None:
    from paligemma.cli.options import field_parameters
    from paligemma.data.source import ReadOptions

    flags = {f"--{p.name.replace('_', '-')}" for p in field_parameters(ReadOptions)}
    for words in (("train",), ("eval",), ("data", "check")):
        _, text = command(*words, "--help")
        assert {flag for flag in flags if flag not in text} == set(), words
    _, check = command("data", "check", "--help")
    _, train = command("train", "--help")
    targets = ("--task", "--ask", "--order", "--max-objects", "--noise-token", "--no-labels")
    for flag in (*targets, "--max-tokens", "--resize", "--seed"):
        assert flag in check, flag
        assert flag in train, flag
