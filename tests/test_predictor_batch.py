"""Predictor.batch: any number of images, read ahead, in bounded memory."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import paligemma
from paligemma import AnswerTask, BatchItem, DetectTask, OptionError, Predictor, PromptError
from paligemma.errors import InputError
from paligemma.processor.ahead import ReadAhead


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return paligemma.load("mini")


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("images")
    made = []
    for number in range(5):
        made.append(folder / f"{number}.png")
        Image.fromarray(np.full((40, 50, 3), 50 * number, np.uint8)).save(made[-1])
    made[2].write_bytes(b"no image")
    return made


def test_each_image_comes_with_its_result_or_error_in_order(
    predictor: Predictor, paths: list[Path]
) -> None:
    items: list[BatchItem[Any]] = list(
        predictor.batch(iter(paths), "caption", batch_size=2, max_new_tokens=4)
    )
    assert [item.image for item in items] == paths
    assert [item.error is None for item in items] == [True, True, False, True, True]
    assert "2.png" in str(items[2].error)
    assert items[2].result is None
    for index in (0, 4):
        result = items[index].result
        assert result is not None
        assert result.text == predictor.caption(paths[index], max_new_tokens=4).text


def test_detections_know_their_image(predictor: Predictor, paths: list[Path]) -> None:
    [item] = predictor.batch(paths[:1], DetectTask.of("frog"), max_new_tokens=4)
    assert item.result is not None
    assert item.result.image_reference is not None
    assert item.result.image_reference.get() == paths[0]


def test_images_are_taken_at_most_two_batches_ahead(
    predictor: Predictor, paths: list[Path]
) -> None:
    taken: list[None] = []

    def endless() -> Iterator[Path]:
        while True:
            taken.append(None)
            yield paths[0]

    items: Iterator[BatchItem[Any]] = predictor.batch(
        endless(), "caption", batch_size=2, max_new_tokens=2
    )
    for _ in range(6):
        next(items)
    assert len(taken) <= 6 + 3 * 2 + 1
    items.close()  # type: ignore[attr-defined]


def test_a_task_that_no_image_could_be_asked_is_an_error_at_once(predictor: Predictor) -> None:
    with pytest.raises(PromptError, match="not the prompt of a task"):
        predictor.batch([], "write a poem")
    with pytest.raises(OptionError, match="batch_size"):
        predictor.batch([], "caption", batch_size=0)
    with pytest.raises(PromptError, match="<image>"):
        predictor.batch([], "detect <image>")


def test_each_image_may_have_a_task_of_its_own(predictor: Predictor, paths: list[Path]) -> None:
    questions = ["how many frogs are there?", "what color is the frog?"]
    tasks = [AnswerTask(question=question, language="en") for question in questions]
    for given in (tasks, iter(tasks)):
        items = list(predictor.batch([paths[0], paths[0]], given, batch_size=2, max_new_tokens=4))
        assert [item.result.question for item in items if item.result] == questions
    with pytest.raises(OptionError, match="There are 2 tasks and more images"):
        list(predictor.batch(paths, tasks))
    with pytest.raises(OptionError, match="There are 1 images and more tasks"):
        list(predictor.batch(paths[:1], tasks))


def test_what_is_no_task_and_no_list_of_images_is_told(
    predictor: Predictor, paths: list[Path]
) -> None:
    calls: list[tuple[Callable[[Any], object], Any, str]] = [
        (lambda task: predictor.batch(paths, task), 3, "The task is 3"),
        (lambda task: predictor.batch(paths, task), DetectTask, "The task is DetectTask"),
        (lambda task: predictor.batch(paths, task), ["caption", 3], "The task is 3"),
        (lambda images: predictor.batch(images, "caption"), paths[0], "takes several images"),
        (lambda images: predictor.batch(images, "caption"), "a.jpg", "got str"),
        (lambda images: predictor.batch(images, "caption"), np.zeros((4, 4, 3)), "got ndarray"),
        (lambda images: predictor.rank(images, "a frog"), "a.jpg", "rank takes several images"),
        (lambda labels: predictor.classify(paths[0], labels), 3, "The labels are 3"),
        (predictor.run, 3, r"pairs \(image, task\), not 3"),
        (predictor.run, paths, "one is of type PosixPath"),
        (predictor.run, [(paths[0], "caption")], "The task is 'caption'"),
        (lambda tasks: list(predictor.iterate(tasks)), [(paths[0],)], "tuple with 1 item"),
        (predictor.generate_batch, [(paths[0], 3)], "The prompt is 3"),
        (lambda prompt: predictor.stream(paths[0], prompt), 3, "The prompt is 3"),
        (lambda prompt: predictor.score(paths[0], prompt, "x"), 3, "The prompt is 3"),
    ]
    for call, argument, told in calls:
        with pytest.raises(InputError, match=told):
            call(argument)


def test_reading_goes_ahead_in_threads_and_into_what_follows() -> None:
    read: list[int] = []
    names: set[str] = set()

    def reader(item: int) -> int:
        read.append(item)
        names.add(threading.current_thread().name)
        if item == 1:
            raise ValueError("one")
        return item * 10

    ahead = ReadAhead[int, int](reader, lambda item: item, depth=3)
    taken: list[Any] = []
    for item, take in ahead.over([0, 1], following=[2, 3]):
        try:
            taken.append((item, take()))
        except ValueError as error:
            taken.append((item, str(error)))
    assert taken == [(0, 0), (1, "one")]
    ahead.forget([3])
    assert [take() for _, take in ahead.over([2])] == [20]
    ahead.close()
    assert set(read) - {3} == {0, 1, 2}
    assert read.count(2) == 1  # when it was still to follow
    assert all(name.startswith("paligemma-reader") for name in names)
