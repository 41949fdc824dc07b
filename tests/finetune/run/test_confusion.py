"""Which class was taken for which."""

from __future__ import annotations

from paligemma.evals.metrics.result import FoundObject, ReferenceImage, ReferenceObject
from paligemma.finetune.run.report import NOTHING, confusion_of_answers, confusion_of_boxes

BOX, FAR = (0.0, 0.0, 10.0, 10.0), (50.0, 50.0, 60.0, 60.0)


def found(label: str, box: tuple[float, float, float, float], score: float = 0.9) -> FoundObject:
    return FoundObject(label=label, box_xyxy=box, score=score)


def picture(*things: tuple[str, tuple[float, float, float, float]]) -> ReferenceImage:
    objects = tuple(ReferenceObject(label=label, box_xyxy=box) for label, box in things)
    return ReferenceImage(size_wh=(100, 100), objects=objects)


def count(confusion: object, truth: str, guess: str) -> int:
    names = confusion.names  # type: ignore[attr-defined]
    return int(confusion.counts[names.index(truth)][names.index(guess)])  # type: ignore[attr-defined]


def test_boxes_meet_by_place_whatever_they_are_called() -> None:
    known = [picture(("cat", BOX), ("dog", FAR)), picture(("dog", BOX))]
    mine = [[found("dog", BOX)], [found("dog", BOX), found("cat", FAR)]]
    confusion = confusion_of_boxes(mine, known, max_names=9)
    assert confusion is not None
    assert confusion.names == ("cat", "dog", NOTHING)
    assert count(confusion, "cat", "dog") == 1
    assert count(confusion, "dog", "dog") == 1
    assert count(confusion, "dog", NOTHING) == 1  # missed
    assert count(confusion, NOTHING, "cat") == 1  # where nothing is
    assert sum(map(sum, confusion.counts)) == 4


def test_the_better_score_takes_the_box() -> None:
    mine = [[found("cat", BOX, 0.2), found("dog", BOX, 0.8)]]
    confusion = confusion_of_boxes(mine, [picture(("dog", BOX))], max_names=9)
    assert confusion is not None
    assert count(confusion, "dog", "dog") == 1
    assert count(confusion, NOTHING, "cat") == 1


def test_images_without_anything_have_no_confusion() -> None:
    assert confusion_of_boxes([[]], [picture()], max_names=9) is None


def test_answers_are_classes_while_they_are_few() -> None:
    confusion = confusion_of_answers(["yes", "no", "maybe"], ["yes", "yes", "no"], max_names=2)
    assert confusion is not None
    assert confusion.names == ("no", "yes", "(other)")
    assert count(confusion, "yes", "no") == 1
    assert count(confusion, "no", "(other)") == 1
    assert confusion_of_answers(["a", "b"], ["a", "b"], max_names=1) is None
