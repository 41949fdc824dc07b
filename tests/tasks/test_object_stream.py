"""Objects told one by one are those of the whole answer, whatever the model writes."""

from __future__ import annotations

import random
from typing import Any

import pytest

from paligemma.processor.image import ImageTransform
from paligemma.processor.tokenizer import Tokenizer
from paligemma.results import Detection, Generation, RangeSummary, StopReason
from paligemma.tasks.detect import DetectTask
from paligemma.tasks.object_stream import ObjectStream
from paligemma.tasks.segment import SegmentTask
from paligemma.tasks.task import Task, TaskContext
from tests.agreement.tiny_predictor import build_predictor

TRANSFORM = ImageTransform(source_wh=(90, 40), resolution=30, resize="pad")


def grow(
    task: Task[Any], tokenizer: Tokenizer, context: TaskContext, answer: Generation
) -> list[Detection]:
    growing = ObjectStream(task, tokenizer, context)
    found = [
        growing.push(token_id, logprob, location)
        for token_id, logprob, location in zip(
            answer.token_ids, answer.logprobs, answer.locations, strict=True
        )
    ]
    return [one for one in [*found, growing.finish(answer.stop_reason)] if one is not None]


def answer_of(
    ids: list[int], tokenizer: Tokenizer, stop_reason: StopReason, seed: int = 0
) -> Generation:
    rng = random.Random(seed)
    return Generation(
        text="",
        token_ids=tuple(ids),
        logprobs=tuple(-rng.random() for _ in ids),
        stop_reason=stop_reason,
        locations=tuple(
            RangeSummary(rng.random(), tuple(token_id + rng.randrange(-90, 90) for _ in range(8)))
            if tokenizer.is_loc(token_id)
            else None
            for token_id in ids
        ),
    )


@pytest.mark.parametrize("seed", range(40))
def test_what_is_told_is_what_the_parser_finds_in_the_whole(
    seed: int, tiny_tokenizer: Tokenizer
) -> None:
    rng = random.Random(seed)
    separator = tiny_tokenizer.tokenize_text(" ; ")
    labels = [tiny_tokenizer.tokenize_text(text) for text in (" cat", " dog", "", " a cat", "\n")]
    # Few places, so that boxes without an area and repeated ones are common.
    places = [tiny_tokenizer.loc_offset + bin_ for bin_ in (0, 200, 400, 600, 1023)]
    codes = range(tiny_tokenizer.seg_offset, tiny_tokenizer.seg_offset + 3)
    ids: list[int] = list(rng.choice(labels)) if rng.random() < 0.3 else []
    for _ in range(rng.randrange(6)):
        ids += [rng.choice(places) for _ in range(4 if rng.random() < 0.8 else rng.randrange(7))]
        if rng.random() < 0.4:
            ids += [rng.choice(codes) for _ in range(16 if rng.random() < 0.7 else 3)]
        ids += rng.choice(labels)
        if rng.random() < 0.9:
            ids += separator
    if rng.random() < 0.5:
        ids = ids[: rng.randrange(len(ids) + 1)]
    reason: StopReason = rng.choice(["eos", "length", "stop"])
    if reason == "eos":
        ids.append(tiny_tokenizer.eos_id)
    answer = answer_of(ids, tiny_tokenizer, reason, seed)
    context = TaskContext(transform=TRANSFORM)
    for phrases in ("cat", "cat ; dog"):
        task = DetectTask.of(phrases)
        whole = task.parse(answer, tiny_tokenizer, context)
        assert grow(task, tiny_tokenizer, context, answer) == list(whole.objects)


def test_masks_come_with_their_boxes(tiny_tokenizer: Tokenizer) -> None:
    codec = build_predictor(tiny_tokenizer).mask_codec
    context = TaskContext(transform=TRANSFORM, mask_codec=codec)
    task = SegmentTask.of("cat ; dog")
    box = [tiny_tokenizer.loc_offset + bin_ for bin_ in (400, 100, 700, 900)]
    codes = [tiny_tokenizer.seg_offset + code for code in range(16)]
    one = [
        *box,
        *codes,
        *tiny_tokenizer.tokenize_text(" cat"),
        *tiny_tokenizer.tokenize_text(" ; "),
    ]
    two = [*box, *codes[::-1], *tiny_tokenizer.tokenize_text(" dog"), tiny_tokenizer.eos_id]
    answer = answer_of([*one, *two], tiny_tokenizer, "eos")
    whole = task.parse(answer, tiny_tokenizer, context)
    assert len(whole) == 2
    assert grow(task, tiny_tokenizer, context, answer) == list(whole.objects)


def test_a_box_is_told_before_the_next_is_whole(tiny_tokenizer: Tokenizer) -> None:
    growing = ObjectStream(DetectTask.of("cat"), tiny_tokenizer, TaskContext(transform=TRANSFORM))
    box = [tiny_tokenizer.loc_offset + bin_ for bin_ in (400, 100, 600, 900)]
    tail = tiny_tokenizer.tokenize_text(" cat") + tiny_tokenizer.tokenize_text(" ; ")
    assert [growing.push(token_id, -0.1, None) for token_id in (*box, *tail)] == [None] * (
        4 + len(tail)
    )
    found = growing.push(box[0], -0.1, None)
    assert found is not None
    assert found.label == "cat"
