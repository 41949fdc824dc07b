"""Catalogs of photos, with a model that knows what the tests tell it."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from paligemma.catalog import Article, CatalogOptions, Cell, build_catalog
from paligemma.catalog.articles import group_photos, vote
from paligemma.data.source import images_below
from paligemma.errors import ImageError, OptionError
from paligemma.extraction import read_schema
from tests.catalog.scripted import Said, Seer, draw

SCHEMA = {
    "title": "Thing",
    "type": "object",
    "properties": {
        "kind": {"enum": ["hat", "shoes"], "question": "kind?"},
        "print": {"type": "string", "maxLength": 30, "question": "print?"},
        "count": {"type": "integer", "question": "count?"},
        "tags": {"type": "array", "items": {"type": "string"}, "question": "tags?"},
        "size": {
            "type": "object",
            "properties": {"width": {"type": "number", "question": "width?"}},
        },
    },
}
NAMES = ["kind", "print", "count", "tags", "size.width"]
_SAID: dict[str, dict[str, Said]] = {
    "red": {
        "kind": ("hat", 0.3, 0.6),
        "print": ("=SUM(A1)", 0.9),
        "count": ("2", 0.95),
        "tags": ("old, wool", 0.7),
        "width": ("4.5", 0.9),
    },
    "green": {"kind": ("shoes", 0.04, 0.96), "print": ("A\x1b[2JB", 0.8), "count": ("3", 0.2)},
    "blue": {"kind": ("hat", 0.5, 0.2), "count": ("3", 0.6)},
}
SAID = {color: {f"{name}?": said for name, said in each.items()} for color, each in _SAID.items()}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three photos, two of them of one article."""
    draw(tmp_path / "photos" / "one.png", "green")
    draw(tmp_path / "photos" / "hat" / "a.png", "red")
    draw(tmp_path / "photos" / "hat" / "b.png", "blue")
    (tmp_path / "photos" / "notes.txt").write_text("no photo")
    return tmp_path / "photos"


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_photos_become_rows_with_unsure_cells_empty(photos: Path, tmp_path: Path) -> None:
    hat, one = build_catalog(Seer(SAID), photos, SCHEMA, tmp_path / "out.csv")
    assert (hat.name, hat.photos) == ("hat", ("hat/a.png", "hat/b.png"))
    # Of the list's words alone, "hat" has 0.3 / 0.4 on one photo and 0.5 / 0.8 on the other.
    assert hat.cells["kind"].score == pytest.approx((0.75 + 0.625) / 2, abs=1e-4)
    assert hat.values == {
        "kind": "hat",
        "print": "=SUM(A1)",
        "count": None,  # 2 and 3: the photos disagree
        "tags": ["old", "wool"],
        "size.width": 4.5,
    }
    assert one.values == {name: "A\x1b[2JB" if name == "print" else None for name in NAMES}
    assert one.cells["kind"].value == "shoes"  # forced: the model wanted to say something else
    assert one.cells["kind"].problems
    first, second = rows_of(tmp_path / "out.csv")
    assert list(first) == ["article", "photos", *(c for n in NAMES for c in (n, f"{n}_score"))]
    assert (first["print"], first["tags"]) == ("'=SUM(A1)", "old ; wool")
    assert (first["count"], first["count_score"]) == ("", "0.475")
    assert (second["print"], second["kind"], second["kind_score"]) == ("A\\x1b[2JB", "", "0.04")


def test_json_lines_and_parquet_hold_typed_values(photos: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    from pyarrow import parquet

    build_catalog(Seer(SAID), photos, SCHEMA, tmp_path / "out.jsonl")
    hat, one = (json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines())
    assert hat["values"]["tags"] == ["old", "wool"]
    assert hat["unsure"]["count"] == {"value": 2, "score": 0.475, "problems": []}
    assert one["photos"] == ["one.png"]
    build_catalog(Seer(SAID), photos, SCHEMA, tmp_path / "out.parquet")
    table = parquet.read_table(tmp_path / "out.parquet").to_pydict()
    assert table["article"] == ["hat", "one"]
    assert table["size.width"] == [4.5, None]
    assert table["count"] == [None, None]
    assert table["count_score"] == [0.475, 0.2]
    assert table["print"] == ["=SUM(A1)", "A\x1b[2JB"]


def test_an_interrupted_catalog_goes_on_and_changed_photos_are_read_again(
    photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.csv"
    whole = tmp_path / "whole.csv"
    build_catalog(Seer(SAID), photos, SCHEMA, whole)
    with pytest.raises(KeyboardInterrupt):
        build_catalog(Seer(SAID, stop_after=2), photos, SCHEMA, out)
    assert not out.exists()
    seer = Seer(SAID)
    build_catalog(seer, photos, SCHEMA, out)
    assert {color for color, _ in seer.asked} == {"green"}
    assert out.read_bytes() == whole.read_bytes()
    draw(photos / "one.png", "gray")
    draw(photos / "two.png", "blue")
    (photos / "hat" / "b.png").unlink()
    seer = Seer(SAID)
    names = [a.name for a in build_catalog(seer, photos, SCHEMA, out)]
    assert {color for color, _ in seer.asked} == {"gray", "blue"}
    assert names == ["hat", "one", "two"]
    seer = Seer(SAID)
    build_catalog(seer, photos, SCHEMA, out, CatalogOptions(group="none", min_score=0.99))
    assert seer.asked == []
    with pytest.raises(OptionError, match="model name was 'seer' and is now 'other'"):
        build_catalog(Seer(SAID, name="other"), photos, SCHEMA, out)
    with pytest.raises(OptionError, match="language was 'en'"):
        build_catalog(Seer(SAID), photos, SCHEMA, out, CatalogOptions(language="de"))


def test_a_photo_that_cannot_be_read_does_not_stop_the_others(photos: Path) -> None:
    (photos / "hat" / "c.png").write_bytes(b"\x89PNG\r\n\x1a\nno")
    (photos / "bad.jpg").write_bytes(b"")
    bad, hat, _ = build_catalog(Seer(SAID), photos, SCHEMA)
    assert list(bad.failed) == ["bad.jpg"]
    assert set(bad.values.values()) == {None}
    assert "c.png" in next(iter(hat.failed.values()))
    assert hat.values["kind"] == "hat"


def test_photos_are_grouped_by_folder_or_by_name() -> None:
    photos = ["7-1.jpg", "7-2.jpg", "a b_front.png", "a b_back.png", "x/1.jpg", "x/y/1.jpg"]
    assert list(group_photos(photos, "folder")) == [
        *("7-1", "7-2", "a b_front", "a b_back", "x", "x/y")
    ]
    assert list(group_photos(photos, "name")) == ["7", "a b", "x/1", "x/y/1"]
    assert len(group_photos(photos, "none")) == 6
    assert list(group_photos(["-1.jpg", "2024.jpg", "_a.png"], "name")) == ["-1", "2024", "_a"]


def test_photos_vote_by_their_scores() -> None:
    def cell(value, score: float, *problems: str) -> Cell:
        return Cell(value=value, score=score, problems=problems)

    assert vote([cell(None, 0), cell("red", 0.8)]).score == 0.8
    assert vote([]) == vote([cell(None, 0)]) == cell(None, 0.0)
    assert vote([cell("red", 0.9), cell("blue", 0.5), cell("Blue", 0.5)]).value == "blue"
    assert vote([cell("a", 0.6, "odd"), cell("a", 0.5)]) == cell("a", 0.55)
    assert vote([cell(["x", "y"], 0.5), cell(["X", "Y"], 0.7)]).value == ["X", "Y"]
    assert vote([cell(0, 0.9)]).value == 0


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "object", "properties": {"article": {"type": "string"}}}, "name of a column"),
        (
            {
                "type": "object",
                "properties": {"a": {"type": "string"}, "a_score": {"type": "string"}},
            },
            "name of a column",
        ),
        ("receipt", "does not fit into a row"),
        ("nothing", "no schema"),
    ],
)
def test_schemas_without_a_row_are_refused(photos: Path, schema, message: str) -> None:
    seer = Seer(SAID)
    with pytest.raises(OptionError, match=message):
        build_catalog(seer, photos, schema)
    assert seer.asked == []


def test_what_cannot_be_read_or_written_is_said_first(photos: Path, tmp_path: Path) -> None:
    for out in ("x.txt", "none/x.csv", "."):
        with pytest.raises(OptionError):
            build_catalog(Seer(SAID), photos, SCHEMA, tmp_path / out)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImageError, match="contains no images"):
        images_below(tmp_path / "empty")
    with pytest.raises(ImageError, match="is not a folder"):
        images_below(photos / "one.png")


def test_the_built_in_schema_of_products_has_closed_lists() -> None:
    leaves = {leaf.path: leaf for leaf in read_schema("product").leaves()}
    assert list(leaves) == [
        *("category", "color", "material", "pattern", "brand", "label_text", "count")
    ]
    assert [leaf.kind for leaf in leaves.values()] == [*["choice"] * 4, "text", "text", "integer"]
    assert not any(leaf.is_required for leaf in leaves.values())


def test_an_article_says_what_is_unsure() -> None:
    cells = {"a": Cell(value="x", score=0.4), "b": Cell(value=None, score=0.0)}
    article = Article(name="n", photos=("n.png",), cells=cells, failed={}, min_score=0.5)
    assert article.to_dict()["unsure"] == {"a": {"value": "x", "score": 0.4, "problems": []}}
