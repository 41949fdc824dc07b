from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from paligemma.answering import AnswerPipeline, Query, TokenizedQuery
from paligemma.errors import (
    CheckpointError,
    ImageError,
    NumericalError,
    OptionError,
    PromptError,
)
from paligemma.fast.accelerate import accelerate
from paligemma.fast.kernels.library import kernels
from paligemma.predictor import MAX_BATCH_SIZE, Predictor
from paligemma.processor.tokenizer import Tokenizer
from paligemma.results import Answer, Caption, Detections, Generation, Segments, Text
from paligemma.tasks.detect import DetectTask
from paligemma.tasks.segment import SegmentTask
from paligemma.tasks.text import AnswerTask, CaptionTask, OcrTask
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
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The prompts that are asked about pictures."""
    prompts: list[str] = []
    tokenize = AnswerPipeline.tokenize

    def recorded(self: AnswerPipeline, query: Query, num_images: int) -> TokenizedQuery:
        prompts.extend([query.text] * num_images)
        return tokenize(self, query, num_images)

    monkeypatch.setattr(AnswerPipeline, "tokenize", recorded)
    return prompts


@contextmanager
def counted_encodings(predictor: Predictor) -> Iterator[list[int]]:
    """How many pictures each pass of the vision encoder takes."""
    counts: list[int] = []
    handle = predictor.model.vision_encoder.register_forward_hook(
        lambda module, arguments, output: counts.append(output.shape[0])
    )
    try:
        yield counts
    finally:
        handle.remove()


@pytest.mark.parametrize(
    ("ask", "prompt", "kind"),
    [
        (lambda p: p.caption(IMAGE, max_new_tokens=2), "caption en", Caption),
        (lambda p: p.caption(IMAGE, "es", max_new_tokens=2), "caption es", Caption),
        (lambda p: p.describe(IMAGE, max_new_tokens=2), "describe en", Caption),
        (lambda p: p.ask(IMAGE, "Is it?", max_new_tokens=2), "answer en Is it?", Answer),
        (lambda p: p.ask(IMAGE, "Is it?", None, max_new_tokens=2), "Is it?", Answer),
        (lambda p: p.ask(IMAGE, "Is it?", "de", max_new_tokens=2), "answer de Is it?", Answer),
        (lambda p: p.question(IMAGE, "yes", max_new_tokens=2), "question en yes", Text),
        (lambda p: p.ocr(IMAGE, max_new_tokens=2), "ocr", Text),
        (
            lambda p: p.detect(IMAGE, "cat;dog", max_new_tokens=2, separate=False),
            "detect cat ; dog",
            Detections,
        ),
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
    asked: list[str],
    ask: Callable[[Predictor], Any],
    prompt: str,
    kind: type,
) -> None:
    result = ask(predictor)
    assert type(result) is kind
    assert asked == [prompt]


def test_boxes_are_in_pixels_of_the_given_image(predictor: Predictor) -> None:
    found = predictor.detect(IMAGE, "cat", max_new_tokens=200)
    assert found.size_wh == (200, 100)
    for detection in found:
        x1, y1, x2, y2 = detection.box_xyxy
        assert 0 <= x1 < x2 <= 200
        assert 0 <= y1 < y2 <= 100


@pytest.mark.parametrize(
    "ask",
    [
        lambda p: p.ask(IMAGE, ["a", "b", "c"]),
        lambda p: p.generate(IMAGE, ["a", "b", "c"], max_new_tokens=2),
        lambda p: p.generate(IMAGE, ["a", "b", "c"], max_new_tokens=2, num_beams=2),
        lambda p: p.score(IMAGE, "caption en", ["a", "b", "c"]),
        lambda p: p.run([(IMAGE, OcrTask()), (IMAGE, CaptionTask())], max_new_tokens=2),
    ],
)
def test_many_questions_encode_the_image_once(
    predictor: Predictor, ask: Callable[[Predictor], object]
) -> None:
    predictor = replace(predictor)  # one that has seen nothing
    with counted_encodings(predictor) as counts:
        ask(predictor)
        assert counts == [1]


def test_an_image_asked_about_in_several_batches_is_encoded_once(predictor: Predictor) -> None:
    predictor = replace(predictor)
    texts = [f"the number {i}" for i in range(MAX_BATCH_SIZE + 2)]
    other = picture(1)
    pairs = [(IMAGE, OcrTask()), (other, OcrTask()), (other, OcrTask()), (IMAGE, OcrTask())]
    with counted_encodings(predictor) as counts:
        predictor.ask(IMAGE, texts, max_new_tokens=1)
        predictor.generate([IMAGE, other], texts, max_new_tokens=1)
        together = predictor.run(pairs, max_new_tokens=3)
        apart = predictor.run(pairs, max_new_tokens=3, batch_size=1)
    assert counts == [1, 1]
    assert [text.token_ids for text in apart] == [text.token_ids for text in together]


def test_a_later_call_knows_the_image_by_what_is_in_it(predictor: Predictor) -> None:
    predictor = replace(predictor)
    with counted_encodings(predictor) as counts:
        first = predictor.caption(IMAGE, max_new_tokens=3)
        assert predictor.caption(np.asarray(IMAGE), max_new_tokens=3) == first
        list(predictor.stream(IMAGE, "ocr", max_new_tokens=1))
        predictor.score(IMAGE, "ocr", "a")
        predictor.embed_image(IMAGE)
        assert counts == [1]
        predictor.caption(picture(1), max_new_tokens=3)
        assert counts == [1, 1]
        replace(predictor, image_cache_bytes=0).ask(IMAGE, ["a", "b"], max_new_tokens=1)
        assert counts == [1, 1, 1]
        replace(predictor, image_cache_bytes=0).caption(IMAGE, max_new_tokens=1)
    assert counts == [1, 1, 1, 1]


def test_an_image_is_encoded_anew_when_the_weights_have_changed(tiny_tokenizer: Tokenizer) -> None:
    predictor = build_predictor(tiny_tokenizer)
    weight = predictor.model.projector.linear.weight
    before = predictor.embed_image(IMAGE)
    weight.grad = torch.ones_like(weight)
    torch.optim.SGD([weight], lr=0.1).step()
    trained = predictor.embed_image(IMAGE)
    assert abs(trained - before).max() > 0.01
    weight.data = weight.data.clone() * 2
    assert abs(predictor.embed_image(IMAGE) - trained).max() > 0.01
    state = predictor.model.state_dict() | {"projector.linear.weight": weight.detach() / 2}
    predictor.model.load_state_dict(state)
    assert abs(predictor.embed_image(IMAGE) - trained).max() < 1e-6


def test_a_model_loaded_for_inference_alone_serves(tiny_tokenizer: Tokenizer) -> None:
    with torch.inference_mode():
        predictor = build_predictor(tiny_tokenizer)
    expected = build_predictor(tiny_tokenizer).caption(IMAGE, max_new_tokens=3)
    assert predictor.caption(IMAGE, max_new_tokens=3) == expected


def test_an_edit_of_weights_through_data_is_noticed(tiny_tokenizer: Tokenizer) -> None:
    predictor = build_predictor(tiny_tokenizer)
    assert np.abs(predictor.embed_image(IMAGE)).max() > 0
    linear = predictor.model.projector.linear
    linear.weight.data.mul_(0)
    linear.bias.data.mul_(0)
    assert np.abs(predictor.embed_image(IMAGE)).max() == 0


def test_clear_cache_forgets_image_tokens(tiny_tokenizer: Tokenizer) -> None:
    predictor = build_predictor(tiny_tokenizer)
    before = predictor.embed_image(IMAGE)
    # One element that no sample holds: only the caller can know.
    predictor.model.projector.linear.weight.data[1, 1] += 100
    predictor.clear_cache()
    assert not np.array_equal(predictor.embed_image(IMAGE), before)


def test_a_copied_predictor_answers_alike(predictor: Predictor) -> None:
    expected = predictor.caption(IMAGE, max_new_tokens=3)
    assert copy.deepcopy(predictor).caption(IMAGE, max_new_tokens=3) == expected


def test_several_threads_may_ask_at_once(predictor: Predictor) -> None:
    predictor = replace(predictor, image_cache_bytes=3 * 25 * 48 * 4)
    pictures = [picture(number) for number in range(5)]

    def ask(number: int) -> list[Any]:
        own = pictures[number % 5 :] + pictures[: number % 5]
        return [predictor.caption(image, max_new_tokens=2) for image in own]

    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(ask, range(8)))
    for number, found in enumerate(answers):
        turned = answers[0][number % 5 :] + answers[0][: number % 5]
        assert [caption.token_ids for caption in found] == [text.token_ids for text in turned]


def test_a_prompt_is_tokenized_once(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    texts: list[str] = []
    tokenize = Tokenizer.tokenize_text

    def recorded(self: Tokenizer, text: str) -> list[int]:
        texts.append(text)
        return tokenize(self, text)

    monkeypatch.setattr(Tokenizer, "tokenize_text", recorded)
    pairs: list[tuple[Any, Any]] = [(IMAGE, OcrTask()), (IMAGE, CaptionTask())]
    predictor.run(pairs, max_new_tokens=2)
    predictor.run([(IMAGE, OcrTask())], max_new_tokens=2, num_beams=2)
    predictor.generate(IMAGE, "caption de", max_new_tokens=2)
    list(predictor.stream(IMAGE, "caption fr", max_new_tokens=2))
    assert texts == ["ocr", "caption en", "ocr", "caption de", "caption fr"]


@pytest.mark.parametrize("task", [DetectTask, SegmentTask])
def test_lists_are_held_to_their_form_unless_one_asks_for_more(
    predictor: Predictor, task: Any
) -> None:
    pictures = [picture(number) for number in range(4)]

    def found(options: dict[str, Any], **more: Any) -> list[Any]:
        tasks = [(image, task.of("cat ; dog", **options)) for image in pictures]
        return predictor.run(tasks, max_new_tokens=60, **more)

    held = found({"max_objects": 1})
    assert [result.stop_reason for result in held] == ["eos"] * 4
    assert {problem.detail for result in held for problem in result.problems} == {
        "the list ended at max_objects = 1; more objects may follow. Ask again with a larger "
        "max_objects, or for fewer phrases."
    }
    assert {label for result in held for label in result.labels} <= {"cat", "dog"}
    assert {len(result) for result in held} == {1}
    renamed = found({"labels": "any", "max_objects": 1})
    assert {label for result in renamed for label in result.labels} - {"cat", "dog"}
    free = found({}, constrained=False)
    assert [result.text for result in free] == [
        predictor.generate(image, task.of("cat ; dog").prompt(), max_new_tokens=60).text
        for image in pictures
    ]


@pytest.mark.parametrize("method", ["detect", "segment"])
def test_the_methods_that_find_things_hand_their_options_on(
    predictor: Predictor, method: str
) -> None:
    find = getattr(predictor, method)
    few = find(IMAGE, "cat", max_objects=1, max_new_tokens=80)
    assert (len(few), few.stop_reason, few.is_cut) == (1, "eos", True)
    assert few.labels == ("cat",)
    other = find(IMAGE, "cat", labels="any", max_objects=1, max_new_tokens=80)
    assert other.labels != ("cat",)
    free = find(IMAGE, "cat", constrained=False, max_new_tokens=8)
    assert free.text == predictor.generate(IMAGE, few.prompt, max_new_tokens=8).text
    for options in ({"labels": "some"}, {"max_objects": 0}):
        with pytest.raises(OptionError):
            find(IMAGE, "cat", **options)


def test_a_thing_named_like_a_place_is_the_error_of_its_row(predictor: Predictor) -> None:
    tasks = [(IMAGE, DetectTask.of("<loc0001>")), (IMAGE, DetectTask.of("cat"))]
    found = predictor.run(tasks, max_new_tokens=3, errors="return")
    assert [type(result) for result in found] == [PromptError, Detections]


def test_what_is_no_error_of_ours_is_raised(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def prefix_state(*arguments: object) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr(predictor.model, "prefix_state", prefix_state)
    with pytest.raises(MemoryError, match="no room"):
        predictor.run([(IMAGE, OcrTask())], errors="return")
    with pytest.raises(MemoryError, match="no room"):
        list(predictor.stream(IMAGE, "ocr"))


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


def test_images_come_in_any_form(predictor: Predictor, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    IMAGE.save(path)
    forms: list[Any] = [
        IMAGE,
        np.asarray(IMAGE),
        path,
        str(path),
        path.read_bytes(),
        predictor.processor.load(IMAGE),
    ]
    texts = {predictor.generate(form, "caption en", max_new_tokens=6).text for form in forms}
    assert len(texts) == 1


def test_several_images_and_none_make_one_prompt(predictor: Predictor) -> None:
    lists: list[Any] = [(), [IMAGE], [IMAGE, picture(1)], [picture(1), IMAGE]]
    texts = [predictor.generate(images, "caption en", max_new_tokens=8).text for images in lists]
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
    options: dict[str, Any] = {"max_new_tokens": 8, "temperature": 1.0}
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


def test_tasks_of_several_kinds_need_no_annotation_to_type_check(predictor: Predictor) -> None:
    kinds = [type(made) for made in predictor.run([(IMAGE, OcrTask()), (IMAGE, CaptionTask())])]
    assert kinds == [Text, Caption]
    made = predictor.iterate([(IMAGE, DetectTask.of("cat")), (IMAGE, CaptionTask())])
    assert [type(each) for each in made] == [Detections, Caption]


def test_a_bad_row_of_a_long_run_can_be_returned_instead_of_raised(predictor: Predictor) -> None:
    bare = replace(predictor, mask_codec=None)
    tasks: list[tuple[Any, Any]] = [
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
    assert isinstance(found[0], Text)
    assert found[0].token_ids == bare.ocr(IMAGE, max_new_tokens=3).token_ids
    with pytest.raises(PromptError, match="NUL"):  # before anything is computed
        bare.run(tasks, max_new_tokens=3)
    with pytest.raises(ImageError, match=r"nowhere\.png"):
        bare.run(tasks[:2], max_new_tokens=3)


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
    [
        ((0, 0, 0, 0), "which measures"),
        ((9, 9, 3, 3), r"The box \(9.0, 9.0, 3.0, 3.0\) has no area"),
        ((300, 0, 400, 50), "in pixels, with x1 < x2"),
        ((0, 0, float("nan"), 9), "no area"),
        ((0, 0, 10), "expected four numbers"),
        ("1234", "expected four numbers"),
        (None, "expected four numbers"),
    ],
)
def test_a_box_that_holds_nothing_is_refused(predictor: Predictor, box: Any, error: str) -> None:
    with pytest.raises(OptionError, match=error):
        predictor.caption_box(IMAGE, box)


def test_image_tokens_come_out_as_the_decoder_gets_them(predictor: Predictor) -> None:
    tokens = predictor.embed_image(IMAGE)
    assert tokens.shape == (25, 48)
    assert tokens.dtype == np.float32
    assert np.isfinite(tokens).all()


def test_several_images_are_embedded_at_once(predictor: Predictor) -> None:
    images = [picture(number, (40, 30)) for number in range(3)]
    tokens = predictor.embed_image(images)
    assert tokens.shape == (3, 25, 48)
    assert np.allclose(tokens[1], predictor.embed_image(images[1]), atol=1e-5)
    pooled = predictor.embed_image(images, pooled=True)
    assert np.allclose(pooled, tokens.mean(axis=1), atol=1e-5)
    assert np.allclose(predictor.embed_image(images[2], pooled=True), pooled[2], atol=1e-5)
    with pytest.raises(OptionError, match="no images"):
        predictor.embed_image([])


def test_hidden_states_of_image_and_prompt(predictor: Predictor) -> None:
    hidden = predictor.embed_prompt(IMAGE, "ocr")
    assert hidden.shape[0] > 25
    assert hidden.shape[1] == 48
    assert np.allclose(predictor.embed_prompt(IMAGE, "ocr", pooled=True), hidden.mean(0), atol=1e-5)
    assert predictor.embed_prompt((), "ocr").shape[0] == hidden.shape[0] - 25
    with pytest.raises(PromptError, match="Leave it out"):
        predictor.embed_prompt(IMAGE, "<image>ocr")


def test_a_result_knows_its_image(predictor: Predictor) -> None:
    for result in (
        predictor.detect(IMAGE, "cat"),
        predictor.run([(IMAGE, DetectTask.of("cat"))])[0],
        predictor.detect(IMAGE, "cat ; dog", separate=True),
    ):
        assert result.draw().size == IMAGE.size


def test_info_says_what_was_loaded(predictor: Predictor) -> None:
    info = predictor.info()
    assert info["name"] == "tiny"
    assert info["family"] == "paligemma2"
    assert info["dtype"] == "float32"
    assert info["device"] == "cpu"
    assert info["resolution"] == 30
    assert info["image_tokens"] == 25
    assert info["parameters"] == sum(p.numel() for p in predictor.model.parameters())
    assert info["quantization"] is None
    assert info["kernels"] == (None if (compiled := kernels()) is None else compiled.level)


def test_info_counts_what_is_packed(tiny_tokenizer: Tokenizer) -> None:
    plain = build_predictor(tiny_tokenizer)
    model = accelerate(copy.deepcopy(plain.model).to(torch.bfloat16), "int4")
    info = replace(plain, model=model).info()
    assert info["parameters"] == plain.info()["parameters"]
    assert (info["quantization"], info["dtype"]) == ("int4", "bfloat16")


def test_results_are_yielded_while_later_ones_are_computed(predictor: Predictor) -> None:
    taken: list[int] = []

    def tasks() -> Iterator[tuple[Any, OcrTask]]:
        for number in range(1000):
            taken.append(number)
            yield IMAGE if number != 1 else "nowhere.png", OcrTask()

    results = predictor.iterate(tasks(), batch_size=2, max_new_tokens=2, errors="return")
    kinds = [type(result) for result in islice(results, 3)]
    assert kinds == [Text, ImageError, Text]
    assert len(taken) < 8
    raising = predictor.iterate(tasks(), batch_size=2, max_new_tokens=2)
    assert isinstance(next(raising), Text)
    with pytest.raises(ImageError):
        next(raising)


def test_many_tasks_may_come_from_a_generator(predictor: Predictor) -> None:
    tasks: list[tuple[Any, Any]] = [(IMAGE, OcrTask()), (IMAGE, CaptionTask())] * 3
    runs = [
        predictor.run(tasks, max_new_tokens=3),
        predictor.run((task for task in tasks), max_new_tokens=3, batch_size=2),
        list(predictor.iterate(tasks, max_new_tokens=3)),
    ]
    assert [[type(result) for result in results] for results in runs] == [[Text, Caption] * 3] * 3
    ids = [[result.token_ids for result in results] for results in runs]
    assert ids[0] == ids[1] == ids[2]
    assert predictor.run(iter([])) == []


def test_phrases_can_be_asked_one_by_one_lazily(predictor: Predictor) -> None:
    [together] = predictor.iterate([(IMAGE, DetectTask.of("cat ; dog"))], separate=True)
    assert together == predictor.detect(IMAGE, ["cat", "dog"], separate=True)


@pytest.mark.parametrize("value", [5, None, [None], 2.5])
def test_what_is_no_text_is_refused(predictor: Predictor, value: Any) -> None:
    for ask in (
        lambda: predictor.detect(IMAGE, value),
        lambda: predictor.generate(IMAGE, value),
        lambda: predictor.ask(IMAGE, value),
        lambda: predictor.score(IMAGE, "ocr", value),
    ):
        # Without phrases, detection falls back on the classes of training, which are not known.
        with pytest.raises((PromptError, OptionError)):
            ask()


def test_without_a_seed_each_sample_differs(predictor: Predictor) -> None:
    texts = {
        predictor.generate(IMAGE, "ocr", temperature=5.0, seed=None, max_new_tokens=8).token_ids
        for _ in range(3)
    }
    assert len(texts) == 3
