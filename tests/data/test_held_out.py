"""Validation records are told apart from training records by their images."""

from __future__ import annotations

from pathlib import Path

from paligemma.data.open import open_data
from paligemma.data.record import held_out_ids, image_keys, num_images, shared_ids
from tests.data.annotated import coco, make_image


def keys(count: int, questions: int = 1) -> dict[str, tuple[str, ...]]:
    """Ids of so many questions about each of so many images."""
    return {
        f"{image}-{question}": (f"{hash(str(image)) % 10**8:08}{image}",)
        for image in range(count)
        for question in range(questions)
    }


def test_which_records_are_held_out_does_not_depend_on_their_order_or_company() -> None:
    forty = keys(40)
    ids = held_out_ids(forty, 0.25)
    assert len(ids) == 10
    assert ids == held_out_ids(dict(reversed(forty.items())), 0.25)
    assert len(held_out_ids(keys(44), 0.25) & ids) >= 7


def test_all_questions_about_an_image_are_in_one_part() -> None:
    sixty = keys(10, questions=6)
    ids = held_out_ids(sixty, 0.1)
    assert len(ids) == 6
    assert num_images({i: sixty[i] for i in ids}) == 1


def test_questions_about_several_images_join_what_they_share() -> None:
    chain = {"a": ("1",), "b": ("1", "2"), "c": ("2",), "d": ("3",)}
    assert held_out_ids(chain, 0.5) in ({"a", "b", "c"}, {"d"} | {"a", "b", "c"})
    assert shared_ids({"x": ("2", "9"), "y": ("8",)}, chain) == ["x"]


def test_an_image_that_cannot_be_read_is_not_held_out(tmp_path: Path) -> None:
    records = open_data(coco(tmp_path, [], num_images=4))
    for number in range(1, 5):
        make_image(tmp_path / f"{number}.png", color=f"#{number:06}")
    (tmp_path / "3.png").write_bytes((tmp_path / "3.png").read_bytes()[:50])
    keys = image_keys(records)
    assert len(set(keys.values())) == 4
    for share in (0.1, 0.5, 0.75):
        assert "3" not in held_out_ids(keys, share)
