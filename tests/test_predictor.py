from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from paligemma.errors import (
    CheckpointError,
    ImageError,
    NumericalError,
    OptionError,
    PromptError,
)
from paligemma.predictor import MAX_BATCH_SIZE, Predictor
from paligemma.processor.processor import Processor, PromptRow
from paligemma.processor.tokenizer import Tokenizer
from paligemma.results import Answer, Caption, Detections, Generation, Segments, Text
from paligemma.tasks.answer import AnswerTask
from paligemma.tasks.caption import CaptionTask
from paligemma.tasks.ocr import OcrTask
from paligemma.tasks.segment import SegmentTask
from tests.agreement.tiny_predictor import build_predictor, picture

IMAGE = picture(0, (200, 100))


@pytest.fixture(scope="module")
def predictor(tiny_tokenizer: Tokenizer) -> Predictor:
    return build_predictor(tiny_tokenizer)


@pytest.fixture
def broken(tiny_tokenizer: Tokenizer) -> Predictor:
    predictor = build_predictor(tiny_tokenizer)
    with torch.no_grad():
        predictor.model.decoder.final_norm.weight[0] = float("nan")
    return predictor


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[PromptRow]:
    """The rows about pictures that reach the processor."""
    rows: list[PromptRow] = []
    build = Processor.prefix_inputs

    def recorded(self: Processor, batch: Any, images: Any) -> Any:
        rows.extend(row for row in batch if row.images)
        return build(self, batch, images)

    monkeypatch.setattr(Processor, "prefix_inputs", recorded)
    return rows


@pytest.mark.parametrize(
    ("ask", "prompt", "kind"),
    [
        (lambda p: p.caption(IMAGE, max_new_tokens=2), "caption en", Caption),
        (lambda p: p.caption(IMAGE, "es", max_new_tokens=2), "caption es", Caption),
        (lambda p: p.describe(IMAGE, max_new_tokens=2), "describe en", Caption),
        (lambda p: p.ask(IMAGE, "Is it?", max_new_tokens=2), "Is it?", Answer),
        (lambda p: p.ask(IMAGE, "Is it?", "de", max_new_tokens=2), "answer de Is it?", Answer),
        (lambda p: p.question(IMAGE, "yes", max_new_tokens=2), "question en yes", Text),
        (lambda p: p.ocr(IMAGE, max_new_tokens=2), "ocr", Text),
        (lambda p: p.detect(IMAGE, "cat;dog", max_new_tokens=2), "detect cat ; dog", Detections),
        (lambda p: p.detect(IMAGE, ["cat"], max_new_tokens=2), "detect cat", Detections),
        (lambda p: p.segment(IMAGE, "cat", max_new_tokens=2), "segment cat", Segments),
        (
            lambda p: p.caption_box(IMAGE, (50, 0, 200, 50), max_new_tokens=2),
            "caption <loc0000><loc0256><loc0512><loc1023>",
            Caption,
        ),
    ],
)
def test_each_task_asks_with_its_prompt_and_gives_its_result(
    predictor: Predictor,
    asked: list[PromptRow],
    ask: Callable[[Predictor], Any],
    prompt: str,
    kind: type,
) -> None:
    result = ask(predictor)
    assert type(result) is kind
    assert [row.prompt for row in asked] == [prompt]


def test_boxes_are_in_pixels_of_the_given_picture(predictor: Predictor) -> None:
    found = predictor.detect(IMAGE, "cat", max_new_tokens=200)
    assert found.size_wh == (200, 100)
    for detection in found:
        x1, y1, x2, y2 = detection.box_xyxy
        assert 0 <= x1 < x2 <= 200
        assert 0 <= y1 < y2 <= 100


def test_many_questions_encode_the_picture_once(predictor: Predictor) -> None:
    num_encoded: list[int] = []
    handle = predictor.model.vision_encoder.register_forward_hook(
        lambda module, arguments, output: num_encoded.append(output.shape[0])
    )
    try:
        predictor.ask(IMAGE, ["a", "b", "c"])
        predictor.generate(IMAGE, ["a", "b", "c"], max_new_tokens=2)
        predictor.score(IMAGE, "caption en", ["a", "b", "c"])
        predictor.run([(IMAGE, OcrTask()), (IMAGE, CaptionTask())], max_new_tokens=2)
    finally:
        handle.remove()
    assert num_encoded == [1, 1, 1, 1]


def test_a_picture_asked_about_in_several_batches_is_encoded_once(predictor: Predictor) -> None:
    num_encoded: list[int] = []
    handle = predictor.model.vision_encoder.register_forward_hook(
        lambda module, arguments, output: num_encoded.append(output.shape[0])
    )
    texts = [f"the number {i}" for i in range(MAX_BATCH_SIZE + 2)]
    other = picture(1)
    try:
        predictor.ask(IMAGE, texts, max_new_tokens=1)
        predictor.generate([IMAGE, other], texts, max_new_tokens=1)
        predictor.score(IMAGE, "caption en", texts)
        tasks = [(IMAGE, OcrTask()), (other, OcrTask()), (other, OcrTask()), (IMAGE, OcrTask())]
        loaded = [(predictor.processor.load(image), task) for image, task in tasks[:2]]
        pairs = [loaded[0], loaded[1], loaded[1], loaded[0]]
        together = predictor.run(pairs, max_new_tokens=3)
        apart = predictor.run(pairs, max_new_tokens=3, batch_size=1)
    finally:
        handle.remove()
    assert num_encoded == [1, 2, 1, 2, 1, 1, 1]
    assert [text.token_ids for text in apart] == [text.token_ids for text in together]


def test_a_prompt_too_long_for_the_model_is_the_error_of_its_row_alone(
    predictor: Predictor,
) -> None:
    too_long = AnswerTask(question="猫" * 5000)  # three bytes, three tokens each
    tasks = [(IMAGE, too_long), (IMAGE, AnswerTask(question="ab"))]
    found = predictor.run(tasks, max_new_tokens=1, errors="return")
    assert isinstance(found[0], PromptError)
    assert isinstance(found[1], Answer)


@pytest.mark.parametrize("limit", ["5", 2.5, True])
def test_a_limit_that_is_no_number_is_refused_everywhere(predictor: Predictor, limit: Any) -> None:
    calls: list[Callable[[], object]] = [
        lambda: predictor.caption(IMAGE, max_new_tokens=limit),
        lambda: predictor.generate(IMAGE, "ocr", max_new_tokens=limit),
        lambda: predictor.stream(IMAGE, "ocr", max_new_tokens=limit),
    ]
    for call in calls:
        with pytest.raises(OptionError, match="max_new_tokens is"):
            call()


def test_pictures_come_in_any_form(predictor: Predictor, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    IMAGE.save(path)
    forms = [
        IMAGE,
        np.asarray(IMAGE),
        path,
        str(path),
        path.read_bytes(),
        predictor.processor.load(IMAGE),
    ]
    texts = {predictor.generate(form, "caption en", max_new_tokens=6).text for form in forms}
    assert len(texts) == 1


def test_several_pictures_and_none_make_one_prompt(predictor: Predictor) -> None:
    texts = [
        predictor.generate(images, "caption en", max_new_tokens=8).text
        for images in ((), [IMAGE], [IMAGE, picture(1)], [picture(1), IMAGE])
    ]
    assert len(set(texts)) == 4
    assert texts[1] == predictor.generate(IMAGE, "caption en", max_new_tokens=8).text


def test_a_list_of_prompts_gives_a_list_and_one_prompt_one_result(predictor: Predictor) -> None:
    assert isinstance(predictor.generate(IMAGE, "ocr", max_new_tokens=1), Generation)
    assert predictor.generate(IMAGE, [], max_new_tokens=1) == []
    assert len(predictor.generate(IMAGE, ["ocr"], max_new_tokens=1)) == 1
    assert predictor.score(IMAGE, "ocr", []) == []
    assert predictor.ask(IMAGE, []) == []
    assert predictor.run([]) == []


def test_sampling_repeats_with_its_seed_and_differs_between_rows_and_seeds(
    predictor: Predictor,
) -> None:
    options = {"max_new_tokens": 8, "temperature": 1.0}
    rows = predictor.generate(IMAGE, ["ocr"] * 3, seed=1, **options)
    assert len({row.text for row in rows}) == 3
    assert rows == predictor.generate(IMAGE, ["ocr"] * 3, seed=1, **options)
    assert rows[0] != predictor.generate(IMAGE, "ocr", seed=2, **options)


def test_beams_find_a_text_at_least_as_likely_as_one_beam_here(predictor: Predictor) -> None:
    one = predictor.generate(IMAGE, "ocr", max_new_tokens=4)
    many = predictor.generate(IMAGE, "ocr", max_new_tokens=4, num_beams=8)
    assert sum(many.logprobs) >= sum(one.logprobs) - 1e-5
    assert predictor.generate(IMAGE, "ocr", max_new_tokens=4, num_beams=1) == one
    captioned = predictor.run([(IMAGE, CaptionTask())], max_new_tokens=4, num_beams=3)
    assert isinstance(captioned[0], Caption)


@pytest.mark.parametrize(
    ("options", "error", "word"),
    [
        ({"temperature": -1}, OptionError, "temperature"),
        ({"top_k": 0}, OptionError, "top_k"),
        ({"top_p": 2}, OptionError, "top_p"),
        ({"seed": -1}, OptionError, "seed"),
        ({"max_new_tokens": 0}, OptionError, "max_new_tokens"),
        ({"max_new_tokens": 10_000_000}, PromptError, "8192"),
        ({"num_beams": 0}, OptionError, "num_beams"),
        ({"num_beams": 2, "temperature": 1.0}, OptionError, "num_beams"),
        ({"num_beams": 2, "stop": ["."]}, OptionError, "num_beams"),
        ({"stop": "."}, OptionError, "stop"),
        ({"stop": [""]}, OptionError, "stop"),
        ({"stop": [1]}, OptionError, "stop"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused_by_name(
    predictor: Predictor, options: dict[str, Any], error: type[Exception], word: str
) -> None:
    with pytest.raises(error, match=word):
        predictor.generate(IMAGE, "ocr", **options)


@pytest.mark.parametrize("options", [{"max_new_tokens": 0}, {"stop": "x"}, {"top_p": -1}])
def test_a_stream_refuses_before_its_first_piece(
    predictor: Predictor, options: dict[str, Any]
) -> None:
    with pytest.raises(OptionError):
        predictor.stream(IMAGE, "ocr", **options)


@pytest.mark.parametrize("batch_size", [0, -1, 1.5, True])
def test_a_batch_size_below_one_is_refused(predictor: Predictor, batch_size: Any) -> None:
    with pytest.raises(OptionError, match="batch_size"):
        predictor.run([(IMAGE, OcrTask())], batch_size=batch_size)


@pytest.mark.parametrize(
    ("num_image_tokens", "num_images", "expected"),
    [(256, 1, 32), (1024, 1, 8), (4096, 1, 2), (256, 16, 2), (4096, 3, 1), (256, 0, 32)],
)
def test_a_batch_has_as_many_rows_as_fill_the_context(
    predictor: Predictor, num_image_tokens: int, num_images: int, expected: int
) -> None:
    processor = replace(predictor.processor, num_image_tokens=num_image_tokens)
    assert replace(predictor, processor=processor)._batch_size(None, num_images) == expected


def test_without_mask_codec_segmentation_says_where_to_get_one_and_the_rest_works(
    predictor: Predictor,
) -> None:
    bare = replace(predictor, mask_codec=None)
    with pytest.raises(CheckpointError, match=r"gs://big_vision/paligemma/vae-oid\.npz"):
        bare.segment(IMAGE, "cat")
    assert isinstance(bare.detect(IMAGE, "cat", max_new_tokens=3), Detections)


def test_a_bad_row_of_a_long_run_can_be_returned_instead_of_raised(predictor: Predictor) -> None:
    bare = replace(predictor, mask_codec=None)
    tasks = [
        (IMAGE, OcrTask()),
        ("nowhere.png", OcrTask()),
        (IMAGE, AnswerTask(question="a\0b")),
        (IMAGE, SegmentTask.of("cat")),
        (IMAGE, CaptionTask()),
    ]
    found = bare.run(tasks, max_new_tokens=3, errors="return", batch_size=2)
    assert [type(result) for result in found] == [
        Text,
        ImageError,
        PromptError,
        CheckpointError,
        Caption,
    ]
    assert found[0] == bare.ocr(IMAGE, max_new_tokens=3)
    with pytest.raises(ImageError, match=r"nowhere\.png"):
        bare.run(tasks, max_new_tokens=3)


def test_a_predictor_prints_in_one_line(predictor: Predictor) -> None:
    assert "\n" not in repr(predictor)
    assert "tiny" in repr(predictor)


def test_broken_numbers_are_an_error_and_never_an_answer(broken: Predictor) -> None:
    with pytest.raises(NumericalError, match="float32"):
        broken.caption(IMAGE)
    with pytest.raises(NumericalError):
        broken.generate(IMAGE, "ocr", num_beams=2)
    with pytest.raises(NumericalError):
        broken.score(IMAGE, "ocr", "a")
    with pytest.raises(NumericalError):
        list(broken.stream(IMAGE, "ocr"))
    found = broken.run([(IMAGE, OcrTask())], errors="return")
    assert isinstance(found[0], NumericalError)


def test_answers_are_capped_by_task_and_by_the_text_length_of_training(
    predictor: Predictor,
) -> None:
    assert len(predictor.ask(IMAGE, "a").token_ids) == 48
    short = replace(predictor, text_length=7)
    assert len(short.ask(IMAGE, "a").token_ids) == 7
    assert len(short.describe(IMAGE, max_new_tokens=9).token_ids) == 9


@pytest.mark.parametrize(
    ("box", "error"),
    [((0, 0, 0, 0), OptionError), ((0, 0, 10), OptionError), ((300, 0, 400, 50), OptionError)],
)
def test_a_box_that_holds_nothing_is_refused(
    predictor: Predictor, box: Any, error: type[Exception]
) -> None:
    with pytest.raises(error):
        predictor.caption_box(IMAGE, box)


def test_image_tokens_come_out_as_the_decoder_gets_them(predictor: Predictor) -> None:
    tokens = predictor.embed_image(IMAGE)
    assert tokens.shape == (25, 48)
    assert tokens.dtype == np.float32
    assert np.isfinite(tokens).all()


def test_info_says_what_was_loaded(predictor: Predictor) -> None:
    info = predictor.info()
    assert info["name"] == "tiny"
    assert info["family"] == "paligemma2"
    assert info["dtype"] == "float32"
    assert info["device"] == "cpu"
    assert info["resolution"] == 30
    assert info["image_tokens"] == 25
    assert info["parameters"] == sum(p.numel() for p in predictor.model.parameters())
