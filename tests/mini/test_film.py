"""Films of mini's world: the truth they tell must be the truth of the images."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mini import language
from mini.film import MIN_VISIBLE, SECONDS, Film, Sight, frame_times, make_film
from mini.film_files import main
from paligemma.errors import OptionError
from paligemma.video import open_clip

SIDE = 96


@pytest.fixture(scope="module")
def films() -> list[Film]:
    return [make_film(3, index) for index in range(6)]


def test_same_arguments_give_the_same_film(films: list[Film]) -> None:
    again = make_film(3, 1)
    assert again == films[1]
    assert np.array_equal(again.draw(2.0, SIDE), films[1].draw(2.0, SIDE))
    assert films[1] != films[2]
    assert make_film(4, 1) != films[1]


def test_a_film_that_does_not_exist_is_refused() -> None:
    with pytest.raises(OptionError, match="There is no film of seed -1, index 0"):
        make_film(-1, 0)


def test_where_nothing_is_seen_the_image_is_the_background(films: list[Film]) -> None:
    for film in films:
        for time_s in (0.0, 3.3, 7.9):
            changed = np.any(film.draw(time_s, SIDE) != film.background.draw(SIDE), axis=2)
            for sight in film.sights(time_s, SIDE):
                x1, y1, x2, y2 = (edge * SIDE for edge in sight.box_xyxy)
                # An antialiased edge is up to two pixels wider than the box.
                changed[int(max(0, y1 - 2)) : int(y2 + 3), int(max(0, x1 - 2)) : int(x2 + 3)] = 0
            # Nor is the soft edge of what is just outside.
            assert not changed[2:-2, 2:-2].any()


def test_boxes_are_tight_around_what_is_in_the_image(films: list[Film]) -> None:
    """Of the one in front, whose pixels are all seen, wherever the image cuts it."""
    num_cut = 0
    for film in films:
        for time_s in frame_times(2.5):
            without = Film(**{**vars(film), "actors": film.actors[-1:]})
            for sight in without.sights(time_s, SIDE):
                changed = np.any(without.draw(time_s, SIDE) != film.background.draw(SIDE), axis=2)
                rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
                seen = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
                assert [e * SIDE for e in sight.box_xyxy] == pytest.approx(seen, abs=2.0)
                assert 0 <= min(sight.box_xyxy) < max(sight.box_xyxy) <= 1
                num_cut += sight.visible < 1
    assert num_cut > 3


def test_things_stand_still_cross_leave_and_come_back(films: list[Film]) -> None:
    for film in films:
        paths: dict[int, list[tuple[float, Sight]]] = {}
        for time_s in frame_times(5):
            for sight in film.sights(time_s, SIDE):
                paths.setdefault(sight.actor, []).append((time_s, sight))
        spans = {
            actor: max(abs(s.box_xyxy[0] - sights[0][1].box_xyxy[0]) for _, s in sights)
            for actor, sights in paths.items()
        }
        assert min(spans.values()) == 0.0
        assert sum(span > 0.5 for span in spans.values()) >= 2
        gaps = [max(b[0] - a[0] for a, b in pairwise(sights)) for sights in paths.values()]
        assert max(gaps) > 0.5
        assert all(sights[-1][0] == SECONDS - 0.2 for sights in paths.values())


def test_what_is_covered_or_outside_is_seen_less(films: list[Film]) -> None:
    sights = [s for film in films for t in frame_times(5) for s in film.sights(t, SIDE)]
    visible = np.array([sight.visible for sight in sights])
    assert visible.min() > 0
    assert visible.max() == 1
    assert 0.02 < (visible < MIN_VISIBLE).mean() < 0.2


def test_the_command_writes_the_film_and_its_truth(tmp_path: Path) -> None:
    main([str(tmp_path / "f.mp4"), str(tmp_path / "f.json"), "--seed", "3", "--index", "2"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f.json", "f.mp4"]
    truth = json.loads((tmp_path / "f.json").read_text())
    clip = open_clip(tmp_path / "f.mp4")
    assert (clip.info.width, clip.info.height) == tuple(truth["size_wh"])
    film = make_film(3, 2)
    frames = list(clip.frames(fps=1))
    assert len(frames) == SECONDS
    for frame in frames:
        [true] = [t for t in truth["frames"] if t["time_s"] == pytest.approx(frame.time_s)]
        drawn = film.draw(frame.time_s, clip.info.width)
        difference = np.abs(np.asarray(frame.image, float) - drawn).mean()
        assert difference < 6
        labels = {language.KINDS[actor.kind].name for actor in film.actors}
        assert {thing["label"] for thing in true["objects"]} <= labels
    assert isinstance(frames[0].image, Image.Image)


def test_a_film_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    for film, truth in (("f.avi", "f.json"), ("f.mp4", "no/f.json"), ("no/f.mp4", "f.json")):
        with pytest.raises(SystemExit):
            main([str(tmp_path / film), str(tmp_path / truth)])
        assert list(tmp_path.iterdir()) == []
